"""Who ran what, when: one lane a worker or one lane a job, with waits, leases that run out, and what broke.

The marks are shared: `draw` puts them on matplotlib's axes, `rqlab.html.timeline` writes them as SVG. So is what can
be decided without pixels of either: which words stand on a bar, and where captions have room.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rqlab.charts.captions import Mark, draw_captions, draw_line, fault_marks, height, on_axis, refusals
from rqlab.charts.chart import Chart, dress, lines, new_axes, say, text_width
from rqlab.charts.histories import (
    Happening,
    History,
    JobRow,
    Result,
    Run,
    history,
    job_names,
    moment,
    times,
    worker_names,
)
from rqlab.charts.looks import DOWN, FROZEN, LEASE, OUTCOMES, REMOVED, STATES, WAIT, Look, Theme, on_paper, plain, theme

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

MOST_TICKS = 400  # heartbeats; more are a grey smear and are counted instead
MOST_LINKS = 10  # arrows to the next run of a job; more are a net
MOST_LANES = 120  # a taller picture is no picture
LEGEND_COLUMNS = 5
INCHES = (9.2, 1.25, 0.3)  # width of the picture, and of its margins left and right

#: What a bar is, besides a run with its outcome.
PARTS: dict[str, Look] = {"wait": WAIT, "lease": LEASE, "in line": STATES["waiting"], "down": DOWN, "frozen": FROZEN}
#: Where a bar lies in its row of height 1: how far its top is above the middle, and how high it is.
BOXES = {
    "run": (0.37, 0.74), "wait": (0.25, 0.5), "lease": (0.25, 0.5), "in line": (0.06, 0.12), "down": (0.5, 1.0),
    "frozen": (0.5, 1.0),
}  # fmt: skip
LEASE_OF_A_WORKER = (0.49, 0.1)  # over the runs that the worker may have meanwhile
UNDER = 0.42  # rows under the middle, where a glyph covers no name of a run
BANDS = ("down", "frozen")  # parts that are all rows of a lane, under its runs


class Lane(NamedTuple):
    """A worker or a job; a worker that runs several jobs at once has several rows."""

    name: str
    full_name: str
    row: int  #: its first, from the top
    rows: int


class Bar(NamedTuple):
    """A stretch of time in one row, or of all rows of a lane."""

    row: int
    start: float
    end: float
    part: str  #: run, or a key of PARTS
    outcome: str = ""  #: of a run: a key of OUTCOMES
    job: str = ""
    name: str = ""  #: of the job, short
    worker: str = ""
    delivery: int = 0
    rows: int = 1

    @property
    def look(self) -> Look:
        return OUTCOMES.get(self.outcome, OUTCOMES["active"]) if self.part == "run" else PARTS[self.part]

    def box(self, by: str) -> tuple[float, float]:
        """How far its top is above the middle of its first row, and how high it is, in rows."""
        above, high = LEASE_OF_A_WORKER if self.part == "lease" and by == "worker" else BOXES[self.part]
        return above, high + self.rows - 1

    def words(self, by: str, fits: Callable[[str], bool]) -> str:
        """What stands on it: of a run its glyph, and its job if there is room."""
        if self.part != "run" or (by == "job" and self.outcome == "completed"):  # there the end of the lane says it
            return ""
        again = [f"{self.look.glyph} {self.name} ({self.delivery})"] if self.delivery > 1 else []
        named = [*again, f"{self.look.glyph} {self.name}"] if by == "worker" else []
        return next((words for words in [*named, self.look.glyph] if fits(words)), "")

    def said(self) -> str:
        """What hovering over it says."""
        span = f"{moment(self.start)}–{moment(self.end)}"
        if self.part in BANDS:
            return f"{plain(self.worker)}: {self.look.word} {span}"
        if self.part != "run":
            return f"{self.name} {self.look.word} {span}"
        return f"{self.name} run {self.delivery} on {plain(self.worker)}: {self.look.word} {span}"


class Link(NamedTuple):
    """From where a job was taken back to where it ran again."""

    at: float
    row: int
    to: float
    to_row: int


class Timeline(NamedTuple):
    """The picture: rows are numbered from the top, times are seconds."""

    by: str
    lanes: tuple[Lane, ...]
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[int, float], ...]  #: heartbeats: row, instant
    marks: tuple[Mark, ...]
    links: tuple[Link, ...]
    rows: int
    start: float
    end: float
    legend: tuple[Look, ...]
    hidden: str  #: what is not drawn, in words
    told: str  #: what was lost, where that is known
    summary: str  #: jobs and runs, counted
    broken: str  #: faults, counted
    seed: int | None

    def said(self) -> str:
        """The picture in words."""
        told = f" {self.told}" if self.told else ""
        facts = f"{self.summary}; {self.broken}; {moment(self.end - self.start)} in all"
        return f"Timeline by {self.by}: {facts}.{told}" + (f" {self.hidden}." if self.hidden else "")

    def named_lanes(self, rows_a_name: int) -> Iterator[tuple[float, Lane]]:
        """The lanes whose names have room, where a name takes so many rows; and the middle of each."""
        last = -float(rows_a_name)
        for lane in self.lanes:
            middle = lane.row + (lane.rows - 1) / 2
            if middle - last >= rows_a_name * 0.999 or rows_a_name == 1:
                last = middle
                yield middle, lane


def marks(
    result: Result, by: Literal["worker", "job"] = "worker", most: int = MOST_LANES, newest: int | None = None
) -> Timeline:
    """Lanes, bars and marks. Of more than `most` jobs those with trouble are kept, then the newest.

    `newest` draws only so many runs, from the first of them on.
    """
    if by not in ("worker", "job"):
        raise ValueError(f"by: expected 'worker' or 'job', got {by!r}")
    told = history(result, newest)
    names = job_names(told.jobs)
    lanes, bars, hidden = (_worker_lanes if by == "worker" else _job_lanes)(told, names, most)
    if told.start:
        bars = [bar._replace(start=max(bar.start, told.start)) for bar in bars if bar.end > told.start]
    rows = sum(lane.rows for lane in lanes)
    ticks, beats = _ticks(told, bars)
    if by == "worker":
        drawn = fault_marks(told, {lane.full_name: (lane.row, lane.rows) for lane in lanes})
        drawn += refusals(told, {(bar.job, bar.worker): bar.row for bar in bars if bar.part == "run"})
    else:
        drawn = fault_marks(told) + _ends(told, lanes, bars)
    links = _links(bars) if by == "worker" else ()
    seen = {bar.look for bar in bars} | {mark.look for mark in drawn if mark.reach == "here" and by == "worker"}
    order = [*OUTCOMES.values(), *PARTS.values()]
    legend = tuple(sorted(seen, key=lambda look: order.index(look) if look in order else len(order)))
    said = ". ".join(part for part in (hidden, beats) if part)
    return Timeline(
        by, tuple(lanes), tuple(bars), ticks, tuple(sorted(drawn, key=lambda mark: mark.at)), links, rows, told.start,
        told.end if told.end > told.start else told.start + 1, legend, said, told.what_was_lost,
        _summary(told), told.broken, told.seed,
    )  # fmt: skip


def _pieces(run: Run, told: History, row: int, name: str) -> list[Bar]:
    """A run as bars: one, or two if its worker died under it and the lease ran out."""
    end = told.end if run.ended is None else run.ended
    whole = Bar(row, run.started, end, "run", run.outcome, run.job, name, run.worker, run.delivery)
    broken = _died_at(run, end, told)
    if broken is None:
        return [whole]
    return [whole._replace(end=broken), whole._replace(start=broken, part="lease")]


def _died_at(run: Run, end: float, told: History) -> float | None:
    """When the worker of a stalled run was last alive: at its crash, else at its last heartbeat."""
    if run.outcome not in ("stalled", "lost"):
        return None
    hits = [fault.at for fault in told.faults if run.started <= fault.at < end and _ends_run(fault, run)]
    if hits:
        return hits[0]
    beats = [at for at in told.beats.get(run.job, ()) if run.started <= at <= end]
    return beats[-1] if beats and run.outcome == "stalled" else None


def _ends_run(fault: Happening, run: Run) -> bool:
    """Whether the fault is why nobody kept the run's lease any more."""
    late = "late ack" in fault.kind.lower()
    return fault.hits(run.worker) and (fault.stops or late)


def _worker_lanes(told: History, names: dict[str, str], most: int) -> tuple[list[Lane], list[Bar], str]:
    """A lane a worker, in order of name; runs that overlap go into further rows of it."""
    by_worker: dict[str, list[Run]] = defaultdict(list)
    for run in told.runs:
        by_worker[run.worker].append(run)
    for fault in told.faults:  # a worker that never ran a job and died is a worker
        if fault.worker and fault.strikes == "worker" and "worker" in fault.kind.lower():
            by_worker.setdefault(fault.worker, [])
    workers = sorted(by_worker, key=_natural)
    short = worker_names(workers)
    lanes: list[Lane] = []
    bars: list[Bar] = []
    row = 0
    for worker in workers[:most]:
        free: list[float] = []  # until when each row is taken
        for run in by_worker[worker]:
            at = next((n for n, until in enumerate(free) if until <= run.started), len(free))
            pieces = _pieces(run, told, row + at, names[run.job])
            free[at : at + 1] = [pieces[0].end]
            bars += pieces
        lanes.append(Lane(short[worker], worker, row, max(1, len(free))))
        bars += _bands(told, lanes[-1])
        row += max(1, len(free))
    left = len(workers) - len(lanes)
    return lanes, bars, f"{times(left, 'more worker')} not drawn" if left else ""


def _bands(told: History, lane: Lane) -> Iterator[Bar]:
    """When the worker of a lane did nothing: it was down, or frozen."""
    hits = [fault for fault in told.faults if fault.stops and fault.hits(lane.full_name)]
    for number, fault in enumerate(hits):
        dies_at = next((other.at for other in hits[number + 1 :] if other.is_deadly), None)
        until = dies_at if fault.until is None else fault.until  # who dies frozen is frozen no longer
        if until is not None:
            part = "down" if fault.is_deadly else "frozen"
            yield Bar(lane.row, fault.at, until, part, worker=lane.full_name, rows=lane.rows)


def _natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """w2 before w10."""
    parts: list[str] = []
    for letter in name[:200]:
        if parts and parts[-1][-1].isdecimal() == letter.isdecimal():
            parts[-1] += letter
        else:
            parts.append(letter)
    return tuple((part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts)


def _job_lanes(told: History, names: dict[str, str], most: int) -> tuple[list[Lane], list[Bar], str]:
    """A lane a job, in push order: the line, the runs, the waits between them."""
    by_job: dict[str, list[Run]] = defaultdict(list)
    for run in told.runs:
        by_job[run.job].append(run)
    shown = set(range(len(told.jobs)))
    if len(shown) > most:
        ranked = sorted(shown, key=lambda n: (-_trouble(told.jobs[n], by_job[told.jobs[n].id]), -n))
        shown = set(ranked[:most])
    lanes: list[Lane] = []
    bars: list[Bar] = []
    for job in (told.jobs[n] for n in sorted(shown)):
        row, name = len(lanes), names[job.id]
        lanes.append(Lane(name, job.id, row, 1))
        pieces = [piece for run in by_job[job.id] for piece in _pieces(run, told, row, name)]
        bars += [*_waits(told.courses[job.id], pieces, Bar(row, 0, told.end, "wait", "", job.id, name)), *pieces]
    left = [told.jobs[n] for n in range(len(told.jobs)) if n not in shown]
    if not left:
        return lanes, bars, ""
    smooth = all(_trouble(job, by_job[job.id]) == 0 for job in left)
    return lanes, bars, f"{times(len(left), 'more job')} not drawn" + (", all without trouble" if smooth else "")


def _waits(course: Sequence[tuple[float, str]], pieces: Sequence[Bar], pattern: Bar) -> Iterator[Bar]:
    """The stretches in which a job waited: in line, or for its delay to end. What it ran or was leased is cut out."""
    parts = {"waiting": "in line", "delayed": "wait"}
    for (start, state), (end, _) in pairwise([*course, (pattern.end, "")]):
        if state not in parts:
            continue
        for piece in pieces:
            if piece.start < end and piece.end > start:
                start = max(start, min(piece.end, end))
        if end > start:
            yield pattern._replace(start=start, end=end, part=parts[state])


def _trouble(job: JobRow, runs: list[Run]) -> int:
    """How much a job is worth looking at."""
    return 4 * job.lost + 3 * (job.state == "dlq") + 2 * (len(runs) > 1) + any(r.outcome == "stalled" for r in runs)


def _ticks(told: History, bars: list[Bar]) -> tuple[tuple[tuple[int, float], ...], str]:
    number = sum(len(beats) for beats in told.beats.values())
    if number > MOST_TICKS:
        return (), f"{times(number, 'heartbeat')} not drawn"
    by_job: dict[str, list[Bar]] = defaultdict(list)
    for bar in bars:
        if bar.part == "run":
            by_job[bar.job].append(bar)
    ticks = [
        (bar.row, at)
        for job, beats in told.beats.items()
        for at in beats
        for bar in by_job[job]
        if bar.start <= at <= bar.end
    ]
    return tuple(ticks), ""


def _links(bars: list[Bar]) -> tuple[Link, ...]:
    """For each job that was taken back from a worker: where it ran next."""
    pieces: dict[str, list[Bar]] = defaultdict(list)
    for bar in sorted(bars, key=lambda bar: bar.start):
        if bar.part in ("run", "lease"):
            pieces[bar.job].append(bar)
    found = [
        Link(before.end, before.row, after.start, after.row)
        for job in pieces.values()
        for before, after in pairwise(job)
        if before.outcome in ("stalled", "lost") and after.part == "run"
    ]
    return tuple(found) if len(found) <= MOST_LINKS else ()


def _ends(told: History, lanes: list[Lane], bars: list[Bar]) -> list[Mark]:
    """The final glyph of each job: how it ended, where its last bar does."""
    last = {bar.row: bar.end for bar in bars}
    rows = {lane.full_name: lane.row for lane in lanes}
    drawn = []
    for job in told.jobs:
        if job.id in rows and (job.lost or job.state in ("completed", "dlq", "cancelled")):
            look = OUTCOMES["lost"] if job.lost else STATES[job.state]
            at = last.get(rows[job.id], job.pushed)
            at = max(at, job.finished) if job.finished is not None else at
            drawn.append(Mark(at, rows[job.id], look, look.label, "here"))
    return drawn


def _summary(told: History) -> str:
    """What happened, counted."""
    workers = len({run.worker for run in told.runs})
    outcomes = Counter(run.outcome for run in told.runs)
    runs = ", ".join(f"{n:,} {OUTCOMES[k].word}" for k in OUTCOMES if (n := outcomes.get(k, 0)))
    lost = sum(job.lost for job in told.jobs)
    states = Counter(job.state for job in told.jobs if not job.lost)
    ended = [f"{n:,} {state}" for state in (*STATES, REMOVED.word) if (n := states.get(state, 0))] + [
        f"{lost:,} lost"
    ] * (lost > 0)
    parts = [
        f"{times(len(told.jobs), 'job')}" + (f" ({', '.join(ended)})" if ended else ""),
        f"{times(len(told.runs), 'run')} on {times(workers, 'worker')}" + (f" ({runs})" if runs else ""),
    ]
    return "; ".join(parts)


def data(drawn: Timeline) -> "pandas.DataFrame":
    """One row a bar and one a mark, as drawn."""
    import pandas

    lanes = {row: lane.full_name for lane in drawn.lanes for row in range(lane.row, lane.row + lane.rows)}
    bars = [
        (lanes[b.row], b.row, b.start, b.end, b.part, b.outcome if b.part == "run" else "", b.job, b.worker, b.delivery)
        for b in drawn.bars
    ]
    ends = [
        (lanes.get(m.row, "") if m.row is not None else "", -1 if m.row is None else m.row, m.at, m.at,
         "mark" if m.reach == "here" else "fault", m.look.word, "", "", 0)
        for m in drawn.marks
    ]  # fmt: skip
    columns = ["lane", "row", "start", "end", "part", "outcome", "job", "worker", "delivery"]
    return pandas.DataFrame(bars + ends, columns=columns)


def timeline(
    result: Result, by: Literal["worker", "job"] = "worker", *, ax: "Axes | None" = None, dark: bool = False
) -> Chart:
    """Draw who ran what, when, and what broke: one lane a worker (default), or one lane a job.

    `result` is a SimulationResult, or `rqlab.frames.history(jobs)` of a real queue. ValueError for another `by`.
    """
    drawn = marks(result, by)
    look = theme(dark)
    if ax is None:
        width, left, right = INCHES
        inner = 100 * (width - left - right)
        pitch = max(0.085, min(0.36, 7.5 / max(1, drawn.rows)))  # inches a row
        entries = len(drawn.legend) + bool(drawn.ticks) + bool(drawn.links)
        below = 0.68 + 0.17 * -(-entries // LEGEND_COLUMNS)
        above = 0.45 + 0.15 * len(_subtitle(drawn, inner)) + height(on_axis(drawn.marks, *_span(drawn), inner))
        ax = new_axes(look, width, above + below + pitch * max(2, drawn.rows), (left, below, right, above))
    draw(ax, drawn, look)
    return Chart(ax, data(drawn), drawn.said())


def _subtitle(drawn: Timeline, width: float) -> list[str]:
    """What was lost, and what happened, in lines of a width in hundredths of an inch."""
    return [*lines(drawn.told, width, 3), *lines(drawn.summary, width, 2)]


def _span(drawn: Timeline) -> tuple[float, float]:
    """What the axis shows: a little more than there is."""
    span = drawn.end - drawn.start
    return drawn.start - span * 0.01, drawn.end + span * 0.03


def draw(ax: "Axes", drawn: Timeline, look: Theme) -> None:
    """The marks on matplotlib's axes."""
    dress(ax, look)
    ax.set_xlim(*_span(drawn))
    ax.set_ylim(max(2, drawn.rows) - 0.45, -0.6)
    ax.grid(True, axis="x", color=look.faint, linewidth=0.7)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    box, scale = ax.get_window_extent(), ax.figure.dpi / 100
    width = box.width / scale  # hundredths of an inch
    pixels = width / ((drawn.end - drawn.start) * 1.04)  # and a second
    pitch = box.height / (max(2, drawn.rows) + 0.15) / scale  # and a row
    named = list(drawn.named_lanes(max(1, round(12.5 / pitch + 0.49))))
    ax.set_yticks([middle for middle, _ in named], [lane.name for _, lane in named], size=8.5, parse_math=False)
    for lane in drawn.lanes[1:] if drawn.by == "worker" else ():
        ax.axhline(lane.row - 0.5, color=look.faint, linewidth=0.7, zorder=0)
    size = min(8.0, pitch * 0.42)
    _draw_bars(ax, drawn, look, pixels)
    for bar in drawn.bars:
        _write_on(ax, bar, drawn.by, size, pixels)
    if drawn.ticks:
        low = [row + 0.22 for row, _ in drawn.ticks]
        high = [row + 0.40 for row, _ in drawn.ticks]
        ax.vlines([at for _, at in drawn.ticks], low, high, color=look.ink, linewidth=0.8, zorder=4)
    for link in drawn.links:
        _draw_link(ax, link)
    for mark in drawn.marks:
        _draw_mark(ax, mark, drawn, look, size)
    title = "Who ran what, when" if drawn.by == "worker" else "What became of each job"
    title += f" (seed {drawn.seed})" if drawn.seed is not None else ""
    below = "seconds since the start" + (f" ({drawn.hidden})" if drawn.hidden else "")
    up = draw_captions(ax, drawn.marks, look)
    say(ax, look, title, "\n".join(_subtitle(drawn, width)), below, up=up)
    _draw_legend(ax, drawn, look)


def _fill(kind: Look, look: Theme) -> dict[str, Any]:
    """How a look is filled, in matplotlib's words; the legend shows the same."""
    if kind is WAIT:
        return {"facecolor": "none", "edgecolor": kind.colour, "hatch": "////", "linewidth": 0}
    if kind is LEASE:
        return {"facecolor": "none", "edgecolor": kind.colour, "linestyle": (0, (3, 1)), "linewidth": 1.2}
    if kind in (DOWN, FROZEN):
        return {"facecolor": look.faint, "edgecolor": kind.colour, "hatch": kind.hatch, "linewidth": 0}
    if kind.hatch:
        return {"facecolor": kind.colour, "edgecolor": kind.ink, "hatch": kind.hatch, "linewidth": 0}
    return {"facecolor": kind.colour, "edgecolor": look.paper, "linewidth": 0.4}


def _draw_bars(ax: "Axes", drawn: Timeline, look: Theme, pixels: float) -> None:
    """All bars of one look at once: bar by bar took half of the time that a picture takes."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    alike: dict[tuple[int, Look], list[Rectangle]] = defaultdict(list)
    for bar in drawn.bars:
        above, high = bar.box(drawn.by)
        width = max(bar.end - bar.start, 1.5 / pixels)  # what is too short to see is drawn as a stroke
        layer = 1 if bar.part in BANDS else 2 if bar.part == "in line" else 3
        alike[layer, bar.look].append(Rectangle((bar.start, bar.row - above), width, high))
    for (layer, kind), boxes in alike.items():
        ax.add_collection(PatchCollection(boxes, zorder=layer, **_fill(kind, look)), autolim=False)


def _write_on(ax: "Axes", bar: Bar, by: str, size: float, pixels: float) -> None:
    room = (bar.end - bar.start) * pixels
    if size < 5 or room < 15 or bar.part != "run":
        return
    words = bar.words(by, lambda words: len(words) == 1 or text_width(words, size) + 7 <= room)
    cover = {"facecolor": bar.look.colour, "edgecolor": "none", "pad": 1.6} if bar.look.hatch else None
    if words:
        ax.text(
            (bar.start + bar.end) / 2, bar.row, words, ha="center", va="center_baseline", size=size,
            color=bar.look.ink, zorder=5, parse_math=False, bbox=cover, clip_on=True,
        )  # fmt: skip


def _draw_link(ax: "Axes", link: Link) -> None:
    """From the end of a lease to the next run of its job."""
    low = link.to_row - (0.37 if link.to_row >= link.row else -0.37)
    ax.annotate(
        "", (link.to, low), xytext=(link.at, link.row - 0.44), zorder=4, annotation_clip=False,
        arrowprops={"arrowstyle": "->", "color": LEASE.colour, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0,
                    "mutation_scale": 8},
    )  # fmt: skip


def _draw_mark(ax: "Axes", mark: Mark, drawn: Timeline, look: Theme, size: float) -> None:
    if mark.reach == "here" and mark.row is not None:
        aside = drawn.by == "job"
        colour = on_paper(mark.look.colour, look.paper)
        place = mark.at, mark.row + (0 if aside else UNDER)
        ax.annotate(
            mark.look.glyph, place, xytext=(2 if aside else 0, 0), textcoords="offset points",
            ha="left" if aside else "center", va="center_baseline", size=max(4.0, min(8.5, size * 1.15)),
            weight="bold", zorder=6, color=colour, annotation_clip=False,
        )  # fmt: skip
    elif mark.reach == "lane" and mark.row is not None:
        ax.plot([mark.at] * 2, [-0.6, mark.row - 0.5], color=look.quiet, linewidth=0.5, linestyle=(0, (1, 3)), zorder=2)
        draw_line(ax, mark, mark.row - 0.5, mark.row + mark.rows - 0.5, look)
    elif mark.reach == "all":
        draw_line(ax, mark, -0.6, drawn.rows - 0.5, look)


def _draw_legend(ax: "Axes", drawn: Timeline, look: Theme) -> None:
    """What fills and glyphs mean, in lines under the axis."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for each in drawn.legend:
        if each in OUTCOMES.values() or each in PARTS.values():
            handles.append(Patch(label=each.label, **_fill(each, look)))
        else:
            handles.append(Line2D([], [], linestyle="none", label=each.label))
    if drawn.ticks:
        handles.append(Line2D([], [], color=look.ink, marker="|", linestyle="none", label="heartbeat"))
    if drawn.links:
        handles.append(Line2D([], [], color=LEASE.colour, linewidth=1.1, label="→ taken back, runs again"))
    if not handles:
        return
    below = -0.48 * ax.figure.dpi / ax.get_window_extent().height
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, below), frameon=False,
        ncols=min(len(handles), LEGEND_COLUMNS),
        fontsize=8, labelcolor=look.ink, handlelength=1.8, columnspacing=1.2, borderaxespad=0, borderpad=0,
    )  # fmt: skip
