"""What each durability mode lost in the same story: a row a mode, a bar a crash, the promise in words beside it."""

from typing import TYPE_CHECKING, NamedTuple

from rqlab.charts.chart import Chart, dress, new_axes, say
from rqlab.charts.histories import Table, rows, times
from rqlab.charts.looks import FAULTS, VERDICTS, Look, Theme, on_paper, plain, theme

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

CRASHES: tuple[tuple[str, str, Look], ...] = (
    ("writes_lost_kill", "at kill -9", FAULTS["crash"]),
    ("writes_lost_power_cut", "at a power cut", FAULTS["power cut"]),
)


class Bar(NamedTuple):
    """What one mode lost at one kind of crash."""

    row: int
    crash: int  #: a row of CRASHES
    writes: int
    jobs: int


class Losses(NamedTuple):
    """Rows are modes."""

    modes: tuple[str, ...]
    promises: tuple[str, ...]
    held: tuple[bool, ...]
    pushed: tuple[int, ...]
    bars: tuple[Bar, ...]
    seed: int | None

    def said(self) -> str:
        """The picture in words."""
        lost = {mode: [bar for bar in self.bars if bar.row == row] for row, mode in enumerate(self.modes)}
        told = [
            f"{mode} {' and '.join(f'{bar.writes} {CRASHES[bar.crash][1]}' for bar in bars)}"
            + ("" if held else ", more than it promises")
            for (mode, bars), held in zip(lost.items(), self.held, strict=True)
        ]
        return f"Acknowledged writes lost in the same story: {'; '.join(told)}."


def marks(frame: Table) -> Losses:
    """From one row a mode: mode, pushed, may_lose, held, and writes and jobs lost at each kind of crash."""
    told = list(
        rows(
            frame, "mode", "pushed", "may_lose", "held", "writes_lost_kill", "jobs_lost_kill", "writes_lost_power_cut",
            "jobs_lost_power_cut",
        )
    )  # fmt: skip
    bars = [
        Bar(row, crash, int(writes), int(jobs))
        for row, (_, _, _, _, *lost) in enumerate(told)
        for crash, (writes, jobs) in enumerate((lost[:2], lost[2:]))
    ]
    return Losses(
        tuple(str(mode) for mode, *_ in told),
        tuple(plain(str(may_lose).replace("`", ""), 90) for _, _, may_lose, *_ in told),
        tuple(bool(held) for _, _, _, held, *_ in told),
        tuple(int(pushed) for _, pushed, *_ in told),
        tuple(bars),
        getattr(frame, "attrs", {}).get("seed"),
    )


def data(drawn: Losses) -> "pandas.DataFrame":
    """One row a bar: mode, crash, writes and jobs lost, whether the mode's promises held."""
    import pandas

    told = [
        (drawn.modes[bar.row], CRASHES[bar.crash][1], bar.writes, bar.jobs, drawn.held[bar.row]) for bar in drawn.bars
    ]
    return pandas.DataFrame(told, columns=["mode", "crash", "writes_lost", "jobs_lost", "held"])


def losses(frame: Table, *, ax: "Axes | None" = None, dark: bool = False) -> Chart:
    """Draw the acknowledged writes that each mode lost in one story, at kill -9 and at power cuts.

    `frame` has one row a mode, as `rqlab.compare(…).frame` has. The promise stands under each row.
    """
    drawn = marks(frame)
    look = theme(dark)
    ax = ax or new_axes(look, 9.2, 1.75 + 0.8 * max(1, len(drawn.modes)), (1.0, 0.75, 0.5, 0.9))
    draw(ax, drawn, look)
    return Chart(ax, data(drawn), drawn.said())


def draw(ax: "Axes", drawn: Losses, look: Theme) -> None:
    """Two bars a mode with their numbers, the promise in words under them."""
    dress(ax, look)
    most = max((bar.writes for bar in drawn.bars), default=0) or 1
    ax.set_xlim(0, 1.3 * most)
    ax.set_ylim(max(1, len(drawn.modes)) - 0.4, -0.55)
    ax.tick_params(axis="y", length=0)
    ax.set_yticks(range(len(drawn.modes)), drawn.modes, size=10, parse_math=False)
    ax.locator_params(axis="x", integer=True)  # a write is whole
    for bar in drawn.bars:
        _, words, kind = CRASHES[bar.crash]
        at = bar.row - 0.3 + 0.26 * bar.crash
        ax.barh(
            at, bar.writes, height=0.22, facecolor=on_paper(kind.colour, look.paper), linewidth=0,
            hatch="///" if bar.crash else "", edgecolor=look.paper,
        )  # fmt: skip
        lost = f"{bar.writes:,} {words}" + (f" ({times(bar.jobs, 'job')})" if bar.jobs else "")
        ax.text(
            bar.writes + 0.01 * most, at, f"{kind.glyph} {lost}", va="center_baseline", size=8.5, color=look.ink,
            parse_math=False,
        )  # fmt: skip
    for row, (promise, held) in enumerate(zip(drawn.promises, drawn.held, strict=True)):
        verdict = VERDICTS["held" if held else "violated"]
        ax.text(
            0.004 * most, row + 0.24, f"{verdict.glyph} {verdict.word}; may lose {promise}", va="center_baseline",
            size=8, color=look.quiet, parse_math=False,
        )  # fmt: skip
    seed = f"   seed {drawn.seed}" if drawn.seed is not None else ""
    pushed = sorted(set(drawn.pushed))
    of = f"{pushed[0]:,}" if len(pushed) == 1 else f"{pushed[0]:,} to {pushed[-1]:,}" if pushed else "no"
    say(ax, look, "The same story in every mode", f"{of} jobs pushed{seed}", "acknowledged writes that were lost")
