"""How many jobs were in each state, over time, and what broke meanwhile."""

import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from rqlab.charts.chart import Chart, dress, meet, new_axes, say, text_box
from rqlab.charts.histories import History, JobRow, Result, Run, fault_look, history, moment, times
from rqlab.charts.looks import OUTCOMES, STATES, Look, Theme, on_paper, theme

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

#: From the bottom: what still has to run, then what ended.
ORDER = ("active", "waiting", "delayed", "dlq", "cancelled", "completed", "lost")
MOST_INSTANTS = 600  # on the axis; more change nothing that can be seen


class Backlog(NamedTuple):
    """Counts after each instant, one series a state, and the faults."""

    instants: tuple[float, ...]
    counts: dict[str, tuple[int, ...]]  #: by state, in ORDER; states that never occur are left out
    faults: tuple[tuple[float, Look], ...]
    end: float
    seed: int | None

    def said(self) -> str:
        """The picture in words."""
        most = [
            max(sum(each) for each in zip(*rows, strict=True))
            for rows in [[self.counts.get(state, (0,) * len(self.instants)) for state in ORDER[:3]]]
            if self.instants
        ] or [0]
        ended = ", ".join(f"{series[-1]:,} {state}" for state, series in self.counts.items() if series[-1])
        faults = ", ".join(times(n, word) for word, n in Counter(look.word for _, look in self.faults).items())
        return (
            f"Jobs by state over {moment(self.end)}: at most {most[0]:,} unfinished at once; at the end "
            f"{ended or 'none'}; {faults or 'no faults'}."
        )


def marks(result: Result) -> Backlog:
    """Count the jobs by state from their pushes, runs and ends."""
    told = history(result)
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in told.runs:
        runs[run.job].append(run)
    changes: dict[float, Counter[str]] = defaultdict(Counter)
    for job in told.jobs:
        before = ""
        for at, state in _course(job, runs[job.id], told.due.get(job.id, ()), told):
            changes[at][state] += 1
            if before:
                changes[at][before] -= 1
            before = state
    now: Counter[str] = Counter()
    series: list[tuple[float, dict[str, int]]] = []
    for at in sorted(changes):
        now.update(changes[at])  # update adds, also what is negative
        series.append((at, dict(now)))
    series = _thin(series)
    seen = [state for state in ORDER if any(counts.get(state) for _, counts in series)]
    counts = {state: tuple(counts.get(state, 0) for _, counts in series) for state in seen}
    faults = tuple((fault.at, fault_look(fault.kind)) for fault in told.faults)
    return Backlog(tuple(at for at, _ in series), counts, faults, told.end or 1.0, told.seed)


def _course(job: JobRow, runs: list[Run], due: Sequence[float], told: History) -> list[tuple[float, str]]:
    """When the job got into which state. Between a failure and a promotion it is delayed."""
    first = runs[0].started if runs else told.end
    delayed = any(job.pushed < at <= first for at in due)
    course = [(job.pushed, "delayed" if delayed else "waiting")]
    course += [(at, "waiting") for at in due if at <= first]
    for run, after in zip_longest(runs, runs[1:]):
        course.append((run.started, "active"))
        if run.ended is None:
            continue
        if run.outcome == "completed":
            course.append((run.ended, "completed"))
        elif after is None and job.state in STATES and not job.lost:
            course.append((run.ended, job.state))
        else:
            waits = run.outcome in ("failed", "stalled", "timed_out")
            course.append((run.ended, "delayed" if waits else "waiting"))
            until = after.started if after else told.end
            course += [(at, "waiting") for at in due if run.ended <= at <= until]
    if job.lost:
        cuts = [f.at for f in told.faults if any(word in f.kind.lower() for word in ("power", "kill", "process"))]
        known = max(at for at, _ in course)
        cut = next((at for at in cuts if at >= known), next(iter(reversed(cuts)), told.end))
        course = [step for step in course if step[0] <= cut] + [(cut, "lost")]
    elif job.finished is not None and course[-1][1] != job.state and job.state in STATES:
        course.append((job.finished, job.state))  # cancelled or expired without a run
    return course


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
    ax = ax or new_axes(look, 9.2, 4.5, (0.75, 0.7, 1.25, 1.3))
    draw(ax, drawn, look)
    return Chart(ax, data(drawn), drawn.said())


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
    taken: list[list[Any]] = [[], []]
    for when, kind in drawn.faults:
        colour = on_paper(kind.colour, look.paper)
        ax.axvline(when, color=colour, linewidth=1.6, linestyle=(0, (4, 2)))
        _fault_words(ax, when, kind, colour, taken)
    said = textwrap.fill(drawn.said()[:-1], 112, max_lines=2, placeholder=" …")
    seed = f", seed {drawn.seed}" if drawn.seed is not None else ""
    say(ax, look, "Jobs by state", said, f"seconds since the start{seed}", "jobs", up=0.34)


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
    for height, (_, kind, number) in zip(heights, ends, strict=True):
        swatch = Rectangle(
            (1 + 8 * pixel, height - step * 0.33), 11 * pixel, step * 0.66, transform=ax.get_yaxis_transform(),
            facecolor=kind.colour, edgecolor=kind.ink, hatch=kind.hatch, linewidth=0, clip_on=False,
        )  # fmt: skip
        ax.add_patch(swatch)
        ax.text(
            1 + 24 * pixel, height, f"{kind.label} {number:,}", transform=ax.get_yaxis_transform(), ha="left",
            va="center_baseline", size=8.5, color=look.ink,
        )  # fmt: skip


def _fault_words(ax: "Axes", when: float, kind: Look, colour: str, taken: list[list[Any]]) -> None:
    for words in (kind.label, kind.glyph):
        for level, row in enumerate(taken):
            text = ax.annotate(
                words, (when, 1), xycoords=("data", "axes fraction"), xytext=(-3, 3 + 12 * level),
                textcoords="offset points", ha="left", va="bottom", size=8, color=colour, parse_math=False,
            )  # fmt: skip
            box = text_box(text)
            if not any(meet(box, other) for other in row):
                row.append((box[0] - 3, box[1], box[2] + 3, box[3]))
                return
            text.remove()
