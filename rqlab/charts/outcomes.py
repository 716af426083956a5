"""What the checks said of each simulated crash: seeds against crash points, and the line that replays a violation."""

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from rqlab.charts.chart import Chart, dress, new_axes, say
from rqlab.charts.histories import Table, rows, times
from rqlab.charts.looks import VERDICTS, Theme, plain, theme

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

MOST_SEEDS = 40  # rows; seeds without trouble share the last one beyond that
MOST_POINTS = 60  # columns; further crash points are gathered into ranges
MOST_REPLAYS = 4  # lines under the picture; `.data` has them all
WORST_FIRST = ("violated", "lost", "held")


class Cell(NamedTuple):
    """One crash, or the worst of several that share a cell."""

    row: int
    column: int
    verdict: str


class Grid(NamedTuple):
    """Rows are seeds, columns crash points."""

    seeds: tuple[str, ...]
    points: tuple[str, ...]
    cells: tuple[Cell, ...]
    replays: tuple[str, ...]  #: of violations, in the order of the frame
    counts: dict[str, int]  #: crashes by verdict

    def said(self) -> str:
        """The picture in words."""
        counted = ", ".join(f"{self.counts.get(v, 0):,} {VERDICTS[v].word}" for v in reversed(WORST_FIRST))
        first = f" First violation: {self.replays[0]}" if self.replays else ""
        return f"{times(sum(self.counts.values()), 'simulated crash')}: {counted}.{first}"


def marks(frame: Table) -> Grid:
    """From one row a crash: columns seed, crash (where), verdict (held, lost, violated), replay."""
    told = [
        (seed, crash, str(v), replay) for seed, crash, v, replay in rows(frame, "seed", "crash", "verdict", "replay")
    ]
    wrong = next((verdict for _, _, verdict, _ in told if verdict not in WORST_FIRST), None)
    if wrong is not None:
        raise ValueError(f"verdict: expected one of {', '.join(WORST_FIRST)}; got {wrong!r}")
    seeds = list(dict.fromkeys(seed for seed, _, _, _ in told))
    points = list(dict.fromkeys(crash for _, crash, _, _ in told))
    order = getattr(getattr(frame, "dtypes", {}).get("crash"), "categories", ())  # of a categorical column
    if len(order):
        points.sort(key=list(order).index)
    elif all(isinstance(point, int | float) for point in points):
        points.sort()
    row_of, row_names = _rows(seeds, told)
    column_of, column_names = _columns(points)
    worst: dict[tuple[int, int], str] = defaultdict(lambda: WORST_FIRST[-1])
    for seed, crash, verdict, _ in told:
        at = row_of[seed], column_of[crash]
        worst[at] = min(worst[at], verdict, key=WORST_FIRST.index)
    cells = tuple(Cell(*at, verdict) for at, verdict in sorted(worst.items()))
    replays = tuple(
        plain(replay or f"seed {seed}, crash {crash}", 200) for seed, crash, v, replay in told if v == "violated"
    )
    return Grid(row_names, column_names, cells, replays, dict(Counter(verdict for _, _, verdict, _ in told)))


def _rows(seeds: list[Any], told: list[tuple[Any, Any, str, Any]]) -> tuple[dict[Any, int], tuple[str, ...]]:
    """A row a seed; beyond a screenful those with trouble, and one row for the rest."""
    if len(seeds) <= MOST_SEEDS:
        return {seed: row for row, seed in enumerate(seeds)}, tuple(plain(seed, 14) for seed in seeds)
    trouble: dict[Any, int] = dict.fromkeys(seeds, len(WORST_FIRST))
    for seed, _, verdict, _ in told:
        trouble[seed] = min(trouble[seed], WORST_FIRST.index(verdict))
    chosen = set(sorted(seeds, key=lambda seed: trouble[seed])[: MOST_SEEDS - 1])
    kept = [seed for seed in seeds if seed in chosen]
    row_of = {seed: row for row, seed in enumerate(kept)}
    names = (*(plain(seed, 14) for seed in kept), f"{len(seeds) - len(kept):,} more")
    return {seed: row_of.get(seed, len(kept)) for seed in seeds}, names


def _columns(points: list[Any]) -> tuple[dict[Any, int], tuple[str, ...]]:
    """A column a crash point, or a range of them."""
    width = max(1, -(-len(points) // MOST_POINTS))
    column_of = {point: n // width for n, point in enumerate(points)}
    groups = [points[n : n + width] for n in range(0, len(points), width)]
    names = tuple(plain(g[0], 20) if len(g) == 1 else f"{plain(g[0], 18)} …" for g in groups)
    return column_of, names


def data(frame: Table) -> "pandas.DataFrame":
    """One row a crash: seed, crash, verdict, replay."""
    import pandas

    columns = ["seed", "crash", "verdict", "replay"]
    return pandas.DataFrame(list(rows(frame, *columns)), columns=columns)


def outcome_grid(frame: Table, *, ax: "Axes | None" = None, dark: bool = False) -> Chart:
    """Draw what was held, lost as the mode allows, or violated, by seed and crash point.

    `frame` has one row a crash: seed, crash, verdict (`held`, `lost`, `violated`) and replay, the line that does it
    again. Columns are in the order of the crashes' categories, if they
    have some. A cell that stands for several crashes shows the worst. ValueError for another verdict.
    """
    drawn = marks(frame)
    look = theme(dark)
    lines = min(len(drawn.replays), MOST_REPLAYS + 1)
    pitch = 0.26 if len(drawn.seeds) <= 20 else 0.18
    below = 0.85 + 0.18 * lines + _depth(drawn)
    ax = ax or new_axes(look, 9.2, 0.85 + below + pitch * max(3, len(drawn.seeds)), (1.1, below, 0.3, 0.85))
    draw(ax, drawn, look)
    return Chart(ax, data(frame), drawn.said())


def _depth(drawn: Grid) -> float:
    """Inches that upright names of columns take below the others' line."""
    return max(len(point) for point in drawn.points) * 0.068 - 0.05 if _turned(drawn) else 0.0


def _turned(drawn: Grid) -> bool:
    """Whether the names of the columns only fit upright."""
    return max((len(point) for point in drawn.points), default=0) * 0.075 > 7.8 / max(1, len(drawn.points))


def draw(ax: "Axes", drawn: Grid, look: Theme) -> None:
    """Cells with glyphs, a legend that counts, and replay lines under the picture."""
    dress(ax, look)
    columns, height = max(1, len(drawn.points)), max(3, len(drawn.seeds))
    ax.set_xlim(-0.5, columns - 0.5)
    ax.set_ylim(height - 0.5, -0.5)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    turned = _turned(drawn)
    skip = -(-columns // 45) if turned else 1
    ax.set_xticks(
        range(0, columns if drawn.points else 0, skip), drawn.points[::skip], rotation=90 if turned else 0, size=8,
        parse_math=False,
    )  # fmt: skip
    ax.set_yticks(range(len(drawn.seeds)), drawn.seeds, size=8, parse_math=False)
    box = ax.get_window_extent()
    size = min(9.0, 72 / ax.figure.dpi * min(box.width / columns, box.height / height) * 0.62)
    for cell in drawn.cells:
        kind = VERDICTS[cell.verdict]
        ax.barh(
            cell.row, 0.92, left=cell.column - 0.46, height=0.88, facecolor=kind.colour, linewidth=0,
            hatch="" if size >= 4 else kind.hatch, edgecolor=kind.ink,
        )  # fmt: skip
        if size >= 4 and cell.verdict != "held":
            ax.text(
                cell.column, cell.row, kind.glyph, ha="center", va="center_baseline", size=size, color=kind.ink,
                weight="bold",
            )  # fmt: skip
    counted = "   ".join(f"{VERDICTS[v].label}: {drawn.counts.get(v, 0):,}" for v in reversed(WORST_FIRST))
    say(ax, look, "Did the promises hold?", counted, "", "seed")
    lines = [plain(line, 110) for line in drawn.replays[:MOST_REPLAYS]]
    more = len(drawn.replays) - len(lines)
    lines += [f"… and {times(more, 'more violation')}, in .data"] * (more > 0)
    ax.annotate(
        "crash point" + "".join(f"\n{line}" for line in (["", *lines] if lines else [])), (0, 0),
        xycoords="axes fraction", xytext=(0, -22 - 72 * _depth(drawn)), textcoords="offset points", ha="left", va="top",
        size=8, color=look.ink, family="monospace", parse_math=False, linespacing=1.3,
    )  # fmt: skip
