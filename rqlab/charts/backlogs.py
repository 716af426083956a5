"""How many jobs were in each state, over time, and what broke meanwhile."""

from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from rqlab.charts.captions import Mark, draw_captions, draw_line, fault_marks, height, on_axis
from rqlab.charts.chart import Chart, dress, lines, new_axes, say
from rqlab.charts.histories import Result, history, moment
from rqlab.charts.looks import OUTCOMES, STATES, Look, Theme, theme

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

#: From the bottom: what still has to run, then what ended.
ORDER = ("active", "waiting", "delayed", "dlq", "cancelled", "completed", "lost")
INCHES = (9.2, 0.75, 1.25)  # width of the picture, and of its margins left and right
MOST_INSTANTS = 600  # on the axis; more change nothing that can be seen


class Backlog(NamedTuple):
    """Counts after each instant, one series a state, and what broke."""

    instants: tuple[float, ...]
    counts: dict[str, tuple[int, ...]]  #: by state, in ORDER; states that never occur are left out
    marks: tuple[Mark, ...]  #: what broke
    end: float
    told: str  #: what was lost, where that is known
    broken: str  #: faults, counted
    seed: int | None

    @property
    def summary(self) -> str:
        unfinished = zip(*(self.counts[state] for state in ORDER[:3] if state in self.counts), strict=True)
        most = max((sum(each) for each in unfinished), default=0)
        ended = ", ".join(f"{series[-1]:,} {state}" for state, series in self.counts.items() if series[-1])
        return f"at most {most:,} unfinished at once; at the end {ended or 'none'}"

    def said(self) -> str:
        """The picture in words."""
        told = f" {self.told}" if self.told else ""
        return f"Jobs by state over {moment(self.end)}: {self.summary}; {self.broken}.{told}"


def marks(result: Result) -> Backlog:
    """Count the jobs by state from their pushes, runs and ends."""
    told = history(result)
    changes: dict[float, Counter[str]] = defaultdict(Counter)
    for course in told.courses.values():
        for (_, before), (at, state) in pairwise([(0.0, ""), *course]):
            changes[at][state] += 1
            changes[at][before] -= 1
    now: Counter[str] = Counter()
    series: list[tuple[float, dict[str, int]]] = []
    for at in sorted(changes):
        now.update(changes[at])  # update adds, also what is negative
        series.append((at, dict(now)))
    series = _thin(series)
    seen = [state for state in ORDER if any(counts.get(state) for _, counts in series)]
    counts = {state: tuple(counts.get(state, 0) for _, counts in series) for state in seen}
    instants = tuple(at for at, _ in series)
    broken = tuple(fault_marks(told))
    return Backlog(instants, counts, broken, told.end or 1.0, told.what_was_lost, told.broken, told.seed)


def _thin(series: list[tuple[float, dict[str, int]]]) -> list[tuple[float, dict[str, int]]]:
    """At most so many instants, the last one among them."""
    step = -(-len(series) // MOST_INSTANTS)
    return series if step <= 1 else [*series[:-1:step], series[-1]]


def data(drawn: Backlog) -> "pandas.DataFrame":
    """One row an instant, one column a state: the counts from then on."""
    import pandas

    frame = pandas.DataFrame({"at": drawn.instants, **drawn.counts})
    frame.attrs["seed"] = drawn.seed
    return frame


def backlog(result: Result, *, ax: "Axes | None" = None, dark: bool = False) -> Chart:
    """Draw how many jobs were in each state, stacked, with a line where something broke."""
    drawn = marks(result)
    look = theme(dark)
    if ax is None:
        width, left, right = INCHES
        inner = 100 * (width - left - right)
        above = 0.5 + 0.15 * len(_subtitle(drawn, inner)) + height(on_axis(drawn.marks, 0, drawn.end, inner))
        ax = new_axes(look, width, 3.2 + above, (left, 0.7, right, above))
    draw(ax, drawn, look)
    return Chart(ax, data(drawn), drawn.said())


def _subtitle(drawn: Backlog, width: float) -> list[str]:
    """What was lost, and what was counted, in lines of a width in hundredths of an inch."""
    return [*lines(drawn.told, width, 3), *lines(drawn.summary, width, 2)]


def draw(ax: "Axes", drawn: Backlog, look: Theme) -> None:
    """The stack on matplotlib's axes, each layer named at its right end."""
    from matplotlib.ticker import MaxNLocator

    dress(ax, look)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(True, axis="y", color=look.faint, linewidth=0.7)
    ax.set_xlim(0, drawn.end)
    top = [0] * len(drawn.instants)
    total = max((sum(each) for each in zip(*drawn.counts.values(), strict=True)), default=0) or 1
    ax.set_ylim(0, total * 1.04)
    at = [*drawn.instants, drawn.end]
    ends = []
    for state, counts in drawn.counts.items():
        kind = STATES.get(state, OUTCOMES["lost"])
        low = top
        top = [a + b for a, b in zip(low, counts, strict=True)]
        ax.fill_between(
            at, [*low, low[-1]], [*top, top[-1]], step="post", facecolor=kind.colour, edgecolor=kind.ink,
            hatch=kind.hatch, linewidth=0,
        )  # fmt: skip
        ax.step(at, [*top, top[-1]], where="post", color=look.paper, linewidth=0.7)
        ends.append(((low[-1] + top[-1]) / 2, kind, counts[-1]))
    _name_layers(ax, ends, look)
    for mark in drawn.marks:
        if mark.reach != "above":
            draw_line(ax, mark, *ax.get_ylim(), look)
    up = draw_captions(ax, drawn.marks, look)
    subtitle = "\n".join(_subtitle(drawn, ax.get_window_extent().width * 100 / ax.figure.dpi))
    seed = f" (seed {drawn.seed})" if drawn.seed is not None else ""
    say(ax, look, f"Jobs by state{seed}", subtitle, "seconds since the start", "jobs", up=up)


def _name_layers(ax: "Axes", ends: list[tuple[float, Look, int]], look: Theme) -> None:
    """Names and counts at the end beside the right edge, moved apart where layers are thin."""
    low, high = ax.get_ylim()
    step = (high - low) * 15 * ax.figure.dpi / 100 / ax.get_window_extent().height
    at = low + step / 2
    heights = []
    for middle, _, _ in ends:
        at = max(middle, at)
        heights.append(at)
        at += step
    ceiling = high
    for n in range(len(heights) - 1, -1, -1):
        heights[n] = min(heights[n], ceiling)
        ceiling = heights[n] - step
    from matplotlib.patches import Rectangle

    pixel = ax.figure.dpi / 100 / ax.get_window_extent().width
    for at, (_, kind, number) in zip(heights, ends, strict=True):
        swatch = Rectangle(
            (1 + 8 * pixel, at - step * 0.33), 11 * pixel, step * 0.66, transform=ax.get_yaxis_transform(),
            facecolor=kind.colour, edgecolor=kind.ink, hatch=kind.hatch, linewidth=0, clip_on=False,
        )  # fmt: skip
        ax.add_patch(swatch)
        ax.text(
            1 + 24 * pixel, at, f"{kind.label} {number:,}", transform=ax.get_yaxis_transform(), ha="left",
            va="center_baseline", size=8.5, color=look.ink,
        )  # fmt: skip
