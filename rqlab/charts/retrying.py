"""How often each job ran and waited before it ended: one row a job, or one row a course that many jobs took.

A hundred jobs mostly go one of a few ways, so beyond a screenful jobs of one course share a row, with their number.
"""

from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from rqlab.charts.chart import Chart, dress, lines, new_axes, say
from rqlab.charts.histories import Result, history, job_names, times
from rqlab.charts.looks import OUTCOMES, REMOVED, STATES, WAIT, Look, Theme, on_paper, seconds, theme

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

MOST_JOBS = 25  # with a row each; more are gathered by course
MOST_ROWS = 32
MOST_RUNS = 12  # columns; later runs are counted


class Course(NamedTuple):
    """What one job, or several alike, went through."""

    name: str  #: of the job, or how many jobs
    jobs: tuple[str, ...]
    outcomes: tuple[str, ...]  #: of each run
    waits: tuple[tuple[float, float], ...]  #: seconds between a run and the next: the shortest and the longest
    end: str  #: the state they are in, or lost

    @property
    def look(self) -> Look:
        return {"lost": OUTCOMES["lost"], "removed": REMOVED, **STATES}.get(self.end, OUTCOMES["active"])


class Retries(NamedTuple):
    """The rows, those with most runs first."""

    courses: tuple[Course, ...]
    columns: int
    gathered: bool  #: whether jobs share rows
    hidden: str
    summary: str
    seed: int | None

    def said(self) -> str:
        """The picture in words."""
        return f"Retries: {self.summary}." + (f" {self.hidden}." if self.hidden else "")


def marks(result: Result) -> Retries:
    """The course of each job: outcomes of its runs, and the waits between them."""
    told = history(result)
    names = job_names(told.jobs)
    runs = defaultdict(list)
    for run in told.runs:
        runs[run.job].append(run)
    single = []
    for job in told.jobs:
        mine = runs[job.id]
        gaps = [
            max(0.0, after.started - (before.ended if before.ended is not None else after.started))
            for before, after in pairwise(mine)
        ]
        end = "lost" if job.lost else job.state or (mine[-1].outcome if mine else "waiting")
        outcomes = tuple(run.outcome for run in mine)
        single.append(Course(names[job.id], (job.id,), outcomes, tuple((gap, gap) for gap in gaps), end))
    gathered = len(single) > MOST_JOBS
    courses = _gather(single) if gathered else single
    courses = sorted(courses, key=lambda course: (-len(course.outcomes), _rank(course.end)))
    left = courses[MOST_ROWS:]
    hidden = f"{times(len(left), 'more row')} not drawn: {times(sum(len(c.jobs) for c in left), 'job')}" if left else ""
    longest = max((len(course.outcomes) for course in courses), default=1)
    summary = _summary(single)
    columns = max(3, min(longest, MOST_RUNS))
    return Retries(tuple(courses[:MOST_ROWS]), columns, gathered, hidden, summary, told.seed)


def _gather(single: list[Course]) -> list[Course]:
    alike: dict[tuple[tuple[str, ...], str], list[Course]] = defaultdict(list)
    for course in single:
        alike[course.outcomes, course.end].append(course)
    gathered = []
    for (outcomes, end), same in alike.items():
        waits = tuple(
            (min(course.waits[n][0] for course in same), max(course.waits[n][1] for course in same))
            for n in range(len(same[0].waits))
        )
        jobs = tuple(job for course in same for job in course.jobs)
        name = same[0].name if len(same) == 1 else times(len(same), "job")
        gathered.append(Course(name, jobs, outcomes, waits, end))
    return sorted(gathered, key=lambda course: -len(course.jobs))


def _rank(end: str) -> int:
    order = ("lost", "dlq", "delayed", "waiting", "active", "cancelled", "completed", "removed")
    return order.index(end) if end in order else len(order)


def _summary(single: list[Course]) -> str:
    ends = Counter(course.end for course in single)
    once = sum(len(course.outcomes) == 1 and course.end == "completed" for course in single)
    most = max((len(course.outcomes) for course in single), default=0)
    waited = sum(wait for course in single for wait, _ in course.waits)
    ended = ", ".join(f"{number:,} {end}" for end, number in sorted(ends.items(), key=lambda each: _rank(each[0])))
    return (
        f"{times(len(single), 'job')}" + (f" ({ended})" if ended else "") + f"; {once:,} completed at the first run; "
        f"at most {times(most, 'run')} of one job; {seconds(round(waited, 3))} between runs in all"
    )


def data(drawn: Retries) -> "pandas.DataFrame":
    """One row a run of a course, as drawn; `wait_min` and `wait_max` are seconds before the next run."""
    import pandas

    rows = []
    for number, course in enumerate(drawn.courses):
        waits = [*course.waits, (None, None)]
        for run, outcome in enumerate(course.outcomes):
            rows.append((number, course.name, len(course.jobs), run + 1, outcome, *waits[run], course.end))
    columns = ["row", "name", "jobs", "run", "outcome", "wait_min", "wait_max", "end"]
    return pandas.DataFrame(rows, columns=columns)


def retries(result: Result, *, ax: "Axes | None" = None, dark: bool = False) -> Chart:
    """Draw the runs of each job, the waits between them, and how it ended.

    Beyond 25 jobs those that went the same way share a row.
    """
    drawn = marks(result)
    look = theme(dark)
    ax = ax or new_axes(look, 9.2, 1.8 + 0.27 * max(3, len(drawn.courses)), (1.0, 0.75, 0.3, 1.0))
    draw(ax, drawn, look)
    return Chart(ax, data(drawn), drawn.said())


def draw(ax: "Axes", drawn: Retries, look: Theme) -> None:
    """The courses on matplotlib's axes: a cell a run, a hatched stretch with its length a wait."""
    dress(ax, look)
    ax.set_xlim(0.6, drawn.columns + 1.15)
    ax.set_ylim(max(3, len(drawn.courses)) - 0.4, -0.6)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_yticks(range(len(drawn.courses)), [course.name for course in drawn.courses], size=8.5, parse_math=False)
    ax.set_xticks(range(1, drawn.columns + 1))
    pixels = ax.get_window_extent().width / (drawn.columns + 0.55) * 100 / ax.figure.dpi  # a run
    half = 13 / pixels
    for row, course in enumerate(drawn.courses):
        for run, outcome in enumerate(course.outcomes[: drawn.columns], 1):
            kind = OUTCOMES.get(outcome, OUTCOMES["active"])
            ax.barh(
                row, 2 * half, left=run - half, height=0.72, facecolor=kind.colour, edgecolor=look.paper, linewidth=0.5
            )
            ax.text(run, row, kind.glyph, ha="center", va="center_baseline", size=9, color=kind.ink)
            if run <= len(course.waits) and run < drawn.columns:
                _draw_wait(ax, row, run + half, 1 - 2 * half, course.waits[run - 1], pixels, look)
        last = min(max(len(course.outcomes), 1), drawn.columns)
        more = len(course.outcomes) - drawn.columns
        words = (f"+ {times(more, 'run')} " if more > 0 else "") + course.look.label
        ax.text(
            last + half + 0.05, row, words, ha="left", va="center_baseline", size=8.5,
            color=on_paper(course.look.colour, look.paper) if course.end in ("dlq", "lost") else look.ink,
        )  # fmt: skip
    title = "How often jobs ran" + (", alike ones in one row" if drawn.gathered else "")
    title += f" (seed {drawn.seed})" if drawn.seed is not None else ""
    subtitle = "\n".join(lines(drawn.summary, ax.get_window_extent().width * 100 / ax.figure.dpi, 2))
    say(ax, look, title, subtitle, "run" + (f" ({drawn.hidden})" if drawn.hidden else ""))
    kinds = dict.fromkeys(OUTCOMES.get(o, OUTCOMES["active"]) for c in drawn.courses for o in c.outcomes)
    said = "   ".join([*(kind.label for kind in kinds), f"{WAIT.glyph} between runs: back-off, then the line"])
    ax.annotate(
        said, (0, 0), xycoords="axes fraction", xytext=(0, -40), textcoords="offset points", ha="left", va="top",
        size=8, color=look.quiet,
    )  # fmt: skip


def _draw_wait(
    ax: "Axes", row: int, left: float, wide: float, wait: tuple[float, float], pixels: float, look: Theme
) -> None:
    least, most = wait
    ax.barh(row, wide, left=left, height=0.4, facecolor="none", edgecolor=WAIT.colour, hatch="////", linewidth=0)
    same = most - least < 0.005 * max(most, 1e-9)
    words = seconds(float(f"{most:.2g}")) if same else f"{_short(least)}–{_short(most)} s"
    style: dict[str, Any] = {"facecolor": look.paper, "edgecolor": "none", "pad": 1.2}
    if wide * pixels >= 6.2 * len(words) + 8:
        ax.text(
            left + wide / 2, row, words, ha="center", va="center_baseline", size=8, color=look.ink, bbox=style, zorder=4
        )


def _short(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"
