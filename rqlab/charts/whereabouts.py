"""Where each acknowledged job was when everything stopped: one cell a job, in the order of their pushes.

The picture is to answer, for somebody who sees it first, what a kill -9 and what a power cut takes, and why.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from rqlab.charts.chart import Chart, dress, new_axes, say
from rqlab.charts.histories import Table, rows
from rqlab.charts.looks import WHEREABOUTS, Theme, plain, theme

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

MOST_CELLS = 120  # in a row; the oldest jobs are left out beyond that
ASIDE = 1.75  # inches for the two columns of numbers
PITCH = 0.34  # inches a row


class Row(NamedTuple):
    """The jobs of one queue at one instant."""

    name: str
    jobs: tuple[str, ...]  #: keys of WHEREABOUTS, the oldest job first

    @property
    def cells(self) -> list[tuple[int, str]]:
        """The jobs that are drawn, the newest of them, by number."""
        return list(enumerate(self.jobs, 1))[-MOST_CELLS:]

    @property
    def lost_at_kill(self) -> int:
        return self.jobs.count("process")

    @property
    def lost_at_power_cut(self) -> int:
        return len(self.jobs) - self.jobs.count("disk")


class Whereabouts(NamedTuple):
    """One row a queue, or an instant of it."""

    rows: tuple[Row, ...]

    def said(self) -> str:
        """The picture in words."""
        each = "; ".join(
            f"{row.name}: of {len(row.jobs)} jobs "
            + ", ".join(f"{count} {WHEREABOUTS[where].word}" for where, count in Counter(row.jobs).items())
            + f"; kill -9 loses {row.lost_at_kill}, a power cut {row.lost_at_power_cut}"
            for row in self.rows
        )
        return f"Where each acknowledged job was when everything stopped. {each}."


def marks(frame: Table) -> Whereabouts:
    """From one row a job: columns row (its name), job (number), where (a key of WHEREABOUTS)."""
    cells: dict[str, list[str]] = {}
    for name, _, where in rows(frame, "row", "job", "where"):
        cells.setdefault(str(name), []).append(str(where))
    wrong = next((where for each in cells.values() for where in each if where not in WHEREABOUTS), None)
    if wrong is not None:
        raise ValueError(f"where: expected one of {', '.join(WHEREABOUTS)}; got {wrong!r}")
    return Whereabouts(tuple(Row(plain(name, 34), tuple(each)) for name, each in cells.items()))


def data(frame: Table) -> "pandas.DataFrame":
    """One row a job: row, job, where."""
    import pandas

    columns = ["row", "job", "where"]
    return pandas.DataFrame(list(rows(frame, *columns)), columns=columns)


def whereabouts(frame: Table, *, ax: "Axes | None" = None, dark: bool = False) -> Chart:
    """Draw where each acknowledged job was: on the disk, in the page cache, or in the memory of its process.

    `frame` has one row a job: row (the name of its line), job, where (`disk`, `cache` or `process`).
    """
    drawn = marks(frame)
    look = theme(dark)
    left = 0.35 + 0.075 * max((len(row.name) for row in drawn.rows), default=0)
    height = PITCH * max(1, len(drawn.rows))
    below = 0.55 + 0.17 * len({where for row in drawn.rows for where in row.jobs})
    ax = ax or new_axes(look, 9.2, 0.85 + height + below, (left, below, ASIDE, 0.85))
    draw(ax, drawn, look)
    return Chart(ax, data(frame), drawn.said())


def draw(ax: "Axes", drawn: Whereabouts, look: Theme) -> None:
    """The cells, what each crash takes beside them, and the key."""
    dress(ax, look)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    numbers = [number for row in drawn.rows for number, _ in row.cells] or [1]
    widest = max(numbers) - min(numbers) + 1
    ax.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
    ax.set_ylim(max(1, len(drawn.rows)) - 0.5, -0.5)
    ax.set_yticks(range(len(drawn.rows)), [row.name for row in drawn.rows], parse_math=False)
    ax.tick_params(axis="y", labelcolor=look.ink)
    box = ax.get_window_extent()
    size = min(9.0, 72 / ax.figure.dpi * box.width / widest * 0.75)
    for y, row in enumerate(drawn.rows):
        for number, where in row.cells:
            _draw_cell(ax, number, y, where, size)
        _draw_losses(ax, y, row, look)
    _draw_heads(ax, look)
    say(
        ax, look, "Where each acknowledged job was when everything stopped",
        "kill −9 takes the memory of the process. A power cut takes the page cache too.",
        "jobs in the order of their pushes; the newest on the right", up=0.12,
    )  # fmt: skip
    _draw_key(ax, drawn, look)


def _draw_cell(ax: "Axes", x: int, y: int, where: str, size: float) -> None:
    kind = WHEREABOUTS[where]
    shows_glyph = size >= 4
    ax.bar(
        x, 0.8, bottom=y - 0.4, width=0.86, facecolor=kind.colour, linewidth=0, edgecolor=kind.ink,
        hatch="" if shows_glyph else kind.hatch,
    )  # fmt: skip
    if shows_glyph:
        ax.text(
            x,
            y,
            kind.glyph,
            ha="center",
            va="center_baseline",
            size=size,
            color=kind.ink,
            weight="bold",
            alpha=0.4 if where == "disk" else 1.0,
        )


ASIDES = (("lost at\nkill −9", 0.26), ("lost at a\npower cut", 0.72))  # heads, and where in ASIDE they stand


def _draw_losses(ax: "Axes", y: int, row: Row, look: Theme) -> None:
    for (_, share), lost in zip(ASIDES, (row.lost_at_kill, row.lost_at_power_cut), strict=True):
        ax.annotate(
            str(lost) if lost else "nothing", (1, y), xycoords=("axes fraction", "data"),
            xytext=(72 * ASIDE * share, 0), textcoords="offset points", ha="center", va="center",
            size=10 if lost else 9, color=look.ink if lost else look.quiet, weight="bold" if lost else "normal",
            annotation_clip=False,
        )  # fmt: skip


def _draw_heads(ax: "Axes", look: Theme) -> None:
    for head, share in ASIDES:
        ax.annotate(
            head, (1, 1), xycoords="axes fraction", xytext=(72 * ASIDE * share, 5), textcoords="offset points",
            ha="center", va="bottom", size=9, color=look.ink, annotation_clip=False,
        )  # fmt: skip


def _draw_key(ax: "Axes", drawn: Whereabouts, look: Theme) -> None:
    from matplotlib.patches import Patch

    present: set[str] = {where for row in drawn.rows for where in row.jobs}
    keys: list[Any] = [
        Patch(facecolor=kind.colour, edgecolor=kind.ink, hatch=kind.hatch, linewidth=0, label=kind.label)
        for where, kind in WHEREABOUTS.items()
        if where in present
    ]
    legend = ax.legend(
        handles=keys, loc="upper left", bbox_to_anchor=(0, -0.42 / (PITCH * max(1, len(drawn.rows)))), ncols=1,
        frameon=False, fontsize=9, borderaxespad=0, borderpad=0, handlelength=1.6, labelspacing=0.25,
    )  # fmt: skip
    for each in legend.get_texts():
        each.set_color(look.ink)
