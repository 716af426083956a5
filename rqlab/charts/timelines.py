"""Who ran what, when: one lane a worker or one lane a job, with waits, leases that run out, and what broke.

The marks are shared: `draw` puts them on matplotlib's axes, `rqlab.html.timeline` writes them as SVG.
"""

import textwrap
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rqlab.charts.chart import Chart, dress, meet, new_axes, say, text_box
from rqlab.charts.histories import (
    Happening,
    History,
    JobRow,
    Result,
    Run,
    fault_look,
    history,
    job_names,
    moment,
    times,
    worker_names,
)
from rqlab.charts.looks import LEASE, OUTCOMES, STATES, WAIT, Look, Theme, on_paper, plain, theme

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

MOST_TICKS = 400  # heartbeats; more are a grey smear and are counted instead
LEGEND_COLUMNS = 6
MOST_LANES = 120  # a taller picture is no picture

#: What a bar is, besides a run with its outcome.
PARTS: dict[str, Look] = {"wait": WAIT, "lease": LEASE, "in line": STATES["waiting"]}


class Lane(NamedTuple):
    """A worker or a job; a worker that runs several jobs at once has several rows."""

    name: str
    full_name: str
    row: int  #: its first, from the top
    rows: int


class Bar(NamedTuple):
    """A stretch of time in one row."""

    row: int
    start: float
    end: float
    part: str  #: run, wait, lease, in line
    outcome: str  #: of a run: a key of OUTCOMES
    job: str
    name: str  #: of the job, short
    worker: str
    delivery: int

    @property
    def look(self) -> Look:
        return OUTCOMES.get(self.outcome, OUTCOMES["active"]) if self.part == "run" else PARTS[self.part]

    def said(self) -> str:
        """What hovering over it says."""
        span = f"{moment(self.start)}–{moment(self.end)}"
        if self.part != "run":
            return f"{self.name} {self.look.word} {span}"
        return f"{self.name} run {self.delivery} on {plain(self.worker)}: {self.look.word} {span}"


class Mark(NamedTuple):
    """A fault, or the end of a job."""

    at: float
    row: int | None  #: None strikes all
    look: Look
    label: str
    fault: bool


class Timeline(NamedTuple):
    """The picture: rows are numbered from the top, times are seconds."""

    by: str
    lanes: tuple[Lane, ...]
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[int, float], ...]  #: heartbeats: row, instant
    marks: tuple[Mark, ...]
    rows: int
    start: float
    end: float
    legend: tuple[Look, ...]
    hidden: str  #: what is not drawn, in words
    summary: str
    seed: int | None

    def said(self) -> str:
        """The picture in words."""
        return f"Timeline by {self.by}: {self.summary}." + (f" {self.hidden}." if self.hidden else "")


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
    if by == "worker":
        lanes, bars, hidden = _worker_lanes(told, names, most)
    else:
        lanes, bars, hidden = _job_lanes(told, names, most)
    if told.start:
        bars = [bar._replace(start=max(bar.start, told.start)) for bar in bars if bar.end > told.start]
    rows = sum(lane.rows for lane in lanes)
    ticks, beats = _ticks(told, bars)
    drawn = _fault_marks(told, lanes, by)
    if by == "job":
        drawn += _ends(told, lanes, bars)
    seen = dict.fromkeys(bar.look for bar in bars)
    order = [*OUTCOMES.values(), *PARTS.values()]
    legend = tuple(sorted(seen, key=order.index))
    said = ". ".join(part for part in (hidden, beats) if part)
    return Timeline(
        by, tuple(lanes), tuple(bars), ticks, tuple(sorted(drawn, key=lambda mark: mark.at)), rows, told.start,
        told.end if told.end > told.start else told.start + 1, legend, said, _summary(told), told.seed,
    )  # fmt: skip


def _pieces(run: Run, told: History, row: int, name: str) -> list[Bar]:
    """A run as bars: one, or two if its worker died under it and the lease ran out."""
    end = told.end if run.ended is None else run.ended
    facts = (run.outcome, run.job, name, run.worker, run.delivery)
    broken = _died_at(run, end, told)
    if broken is None:
        return [Bar(row, run.started, end, "run", *facts)]
    return [Bar(row, run.started, broken, "run", *facts), Bar(row, broken, end, "lease", *facts)]


def _died_at(run: Run, end: float, told: History) -> float | None:
    """When the worker of a stalled run was last alive: at its crash, else at its last heartbeat."""
    if run.outcome != "stalled":
        return None
    hits = [fault.at for fault in told.faults if run.started <= fault.at <= end and _strikes(fault, run.worker)]
    if hits:
        return hits[0]
    beats = [at for at in told.beats.get(run.job, ()) if run.started <= at <= end]
    return beats[-1] if beats else None


def _strikes(fault: Happening, worker: str) -> bool:
    kind = fault.kind.lower()
    deadly = any(word in kind for word in ("crash", "kill", "power", "freeze"))
    return deadly and (fault.worker in ("", worker) or "power" in kind)


def _worker_lanes(told: History, names: dict[str, str], most: int) -> tuple[list[Lane], list[Bar], str]:
    """A lane a worker, in order of name; runs that overlap go into further rows of it."""
    by_worker: dict[str, list[Run]] = defaultdict(list)
    for run in told.runs:
        by_worker[run.worker].append(run)
    for fault in told.faults:  # a worker that never ran a job and died is a worker
        if fault.worker and "worker" in fault.kind.lower():
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
            free[at : at + 1] = [told.end if run.ended is None else run.ended]
            bars += _pieces(run, told, row + at, names[run.job])
        lanes.append(Lane(short[worker], worker, row, max(1, len(free))))
        row += max(1, len(free))
    left = len(workers) - len(lanes)
    return lanes, bars, f"{times(left, 'more worker')} not drawn" if left else ""


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
        row = len(lanes)
        name = names[job.id]
        lanes.append(Lane(name, job.id, row, 1))
        since, part = job.pushed, "in line"
        for run in by_job[job.id]:
            due = next((at for at in told.due.get(job.id, ()) if since < at <= run.started), None)
            if due is not None:  # it was delayed, became due, and then waited for a worker
                bars.append(Bar(row, since, due, "wait", "", job.id, name, "", 0))
                since, part = due, "in line"
            if run.started > since:
                bars.append(Bar(row, since, run.started, part, "", job.id, name, "", 0))
            bars += _pieces(run, told, row, name)
            since = told.end if run.ended is None else run.ended
            part = "wait" if run.outcome in ("failed", "stalled", "timed_out") else "in line"
        if job.state in ("waiting", "delayed") and told.end > since and not job.lost:
            rest = "wait" if job.state == "delayed" else part
            bars.append(Bar(row, since, told.end, rest, "", job.id, name, "", 0))
    left = [told.jobs[n] for n in range(len(told.jobs)) if n not in shown]
    if not left:
        return lanes, bars, ""
    smooth = all(_trouble(job, by_job[job.id]) == 0 for job in left)
    return lanes, bars, f"{times(len(left), 'more job')} not drawn" + (", all without trouble" if smooth else "")


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


def _fault_marks(told: History, lanes: list[Lane], by: str) -> list[Mark]:
    by_name = {lane.full_name: lane for lane in lanes} if by == "worker" else {}
    short = worker_names(sorted({lane.full_name for lane in lanes} | {fault.worker for fault in told.faults} - {""}))
    drawn = []
    for fault in (*told.faults, *told.recoveries):
        look = fault_look(fault.kind)
        lane = None if "power" in fault.kind.lower() else by_name.get(fault.worker)
        target = (
            ""
            if fault.worker == "machine"
            else f" {by_name[fault.worker].name if fault.worker in by_name else short.get(fault.worker, '')}".rstrip()
        )
        drawn.append(Mark(fault.at, lane.row if lane else None, look, f"{look.glyph} {look.word}{target}", True))
    return drawn


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
            drawn.append(Mark(at, rows[job.id], look, look.label, False))
    return drawn


def _summary(told: History) -> str:
    """What happened, counted."""
    workers = len({run.worker for run in told.runs})
    outcomes = Counter(run.outcome for run in told.runs)
    runs = ", ".join(f"{n:,} {OUTCOMES[k].word}" for k in OUTCOMES if (n := outcomes.get(k, 0)))
    lost = sum(job.lost for job in told.jobs)
    states = Counter(job.state for job in told.jobs if not job.lost)
    ended = [f"{n:,} {state}" for state in STATES if (n := states.get(state, 0))] + [f"{lost:,} lost"] * (lost > 0)
    faults = Counter(fault_look(fault.kind).word for fault in told.faults)
    parts = [
        f"{times(len(told.jobs), 'job')}" + (f" ({', '.join(ended)})" if ended else ""),
        f"{times(len(told.runs), 'run')} on {times(workers, 'worker')}" + (f" ({runs})" if runs else ""),
        ", ".join(times(n, word) for word, n in faults.items()) or "no faults",
        f"{moment(told.end - told.start)} in all",
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
         "fault" if m.fault else "end", m.look.word, "", "", 0)
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
        pitch = max(0.085, min(0.30, 7.5 / max(1, drawn.rows)))  # inches a row
        below = 0.68 + 0.17 * -(-(len(drawn.legend) + 1) // LEGEND_COLUMNS)
        ax = new_axes(look, 9.2, 1.3 + below + pitch * max(2, drawn.rows), (1.25, below, 0.3, 1.3))
    draw(ax, drawn, look)
    return Chart(ax, data(drawn), drawn.said())


def draw(ax: "Axes", drawn: Timeline, look: Theme) -> None:
    """The marks on matplotlib's axes."""
    dress(ax, look)
    span = drawn.end - drawn.start
    ax.set_xlim(drawn.start - span * 0.01, drawn.end + span * 0.03)
    ax.set_ylim(max(2, drawn.rows) - 0.45, -0.6)
    ax.grid(True, axis="x", color=look.faint, linewidth=0.7)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    box = ax.get_window_extent()
    pixels = box.width / (span * 1.04)  # a second
    pitch = box.height / (max(2, drawn.rows) + 0.15)  # pixels a row
    scale = ax.figure.dpi / 100
    skip = max(1, round(12.5 * scale / pitch + 0.49))  # a name needs so many rows
    named, last = [], -skip
    for lane in drawn.lanes:
        middle = lane.row + (lane.rows - 1) / 2
        if middle - last >= skip * 0.999 or skip == 1:
            named.append((middle, lane.name))
            last = middle  # type: ignore[assignment]
    ax.set_yticks([row for row, _ in named], [name for _, name in named], size=8.5, parse_math=False)
    for lane in drawn.lanes[1:] if drawn.by == "worker" else ():
        ax.axhline(lane.row - 0.5, color=look.faint, linewidth=0.7, zorder=0)
    _draw_bars(ax, drawn, look, pixels, pitch, scale)
    for row, at in drawn.ticks:
        ax.plot([at, at], [row + 0.22, row + 0.40], color=look.ink, linewidth=0.8, zorder=4)
    _draw_faults(ax, drawn, look, scale)
    title = "Who ran what, when" if drawn.by == "worker" else "What became of each job"
    seed = f", seed {drawn.seed}" if drawn.seed is not None else ""
    below = f"seconds since the start{seed}" + (f" ({drawn.hidden})" if drawn.hidden else "")
    say(ax, look, title, textwrap.fill(drawn.summary, 112, max_lines=2, placeholder=" …"), below, up=0.34)
    _draw_legend(ax, drawn, look)


def _draw_bars(ax: "Axes", drawn: Timeline, look: Theme, pixels: float, pitch: float, scale: float) -> None:
    size = min(8.0, pitch / scale * 0.5)
    for bar in drawn.bars:
        width = max(bar.end - bar.start, 1.5 / pixels)  # what is too short to see is drawn as a stroke
        fill: dict[str, Any] = {"facecolor": bar.look.colour, "edgecolor": look.paper, "linewidth": 0.4}
        high = 0.74
        if bar.part == "run" and bar.look.hatch:
            fill |= {"hatch": bar.look.hatch, "edgecolor": bar.look.ink, "linewidth": 0}
        elif bar.part == "wait":
            fill = {"facecolor": "none", "edgecolor": bar.look.colour, "hatch": "////", "linewidth": 0}
            high = 0.5
        elif bar.part == "lease":
            fill = {"facecolor": "none", "edgecolor": bar.look.colour, "linestyle": (0, (3, 2)), "linewidth": 1.1}
            high = 0.5
        elif bar.part == "in line":
            fill = {"facecolor": bar.look.colour, "linewidth": 0}
            high = 0.12
        ax.barh(bar.row, width, left=bar.start, height=high, zorder=2 if bar.part == "in line" else 3, **fill)
        room = width * pixels / scale
        twice = drawn.by == "job" and bar.outcome == "completed"  # the end of the lane says it
        if bar.part == "run" and size >= 5 and room >= 15 and not twice:
            words = f"{bar.look.glyph} {bar.name}"
            fits = room >= 7 + len(words) * size * 0.95 and drawn.by == "worker"
            text = words if fits else bar.look.glyph
            cover = {"facecolor": bar.look.colour, "edgecolor": "none", "pad": 1.6} if bar.look.hatch else None
            ax.text(
                bar.start + width / 2, bar.row, text, ha="center", va="center_baseline", size=size, color=bar.look.ink,
                zorder=5, parse_math=False, bbox=cover, clip_on=True,
            )  # fmt: skip
    for mark in drawn.marks:
        if not mark.fault and mark.row is not None:
            ax.annotate(
                mark.look.glyph, (mark.at, mark.row), xytext=(2, 0), textcoords="offset points", ha="left",
                va="center_baseline", size=max(4.0, min(8.5, size * 1.15)), weight="bold", zorder=6,
                color=on_paper(mark.look.colour, look.paper), annotation_clip=False,
            )  # fmt: skip


def _draw_faults(ax: "Axes", drawn: Timeline, look: Theme, scale: float) -> None:
    """Lines through what a fault strikes; words above, in two rows, for as many as have room there.

    The words are in ink: in the colours of their lines they could not be read.
    """
    taken: list[list[tuple[float, float, float, float]]] = [[], []]
    for mark in drawn.marks:
        if not mark.fault:
            continue
        colour = on_paper(mark.look.colour, look.paper)
        low, high = (-0.6, drawn.rows - 0.5) if mark.row is None else (mark.row - 0.5, mark.row + 0.5)
        ax.plot([mark.at, mark.at], [low, high], color=colour, linewidth=1.4, linestyle=(0, (4, 2)), zorder=5)
        for words in (mark.label, mark.look.glyph):
            for level, row in enumerate(taken):
                text = ax.annotate(
                    words, (mark.at, 1), xycoords=("data", "axes fraction"), xytext=(-3, 3 + 12 * level),
                    textcoords="offset points", ha="left", va="bottom", size=8, color=look.ink, parse_math=False,
                )  # fmt: skip
                place = text_box(text)
                wide = (place[0] - 3 * scale, place[1], place[2] + 3 * scale, place[3])
                beyond = place[2] > ax.get_window_extent().x1 + 20 * scale
                if not beyond and not any(meet(wide, other) for other in row):
                    row.append(place)
                    break
                text.remove()
            else:
                continue
            break


def _draw_legend(ax: "Axes", drawn: Timeline, look: Theme) -> None:
    """What fills and glyphs mean, in a line under the axis."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if not drawn.legend:
        return
    handles: list[Any] = []
    for each in drawn.legend:
        if each is WAIT:
            handles.append(Patch(facecolor="none", edgecolor=each.colour, hatch="////", linewidth=0, label=each.label))
        elif each is LEASE:
            handles.append(Patch(facecolor="none", edgecolor=each.colour, linestyle=(0, (3, 2)), label=each.label))
        else:
            handles.append(
                Patch(facecolor=each.colour, edgecolor=each.ink, hatch=each.hatch, linewidth=0, label=each.label)
            )
    if drawn.ticks:
        handles.append(Line2D([], [], color=look.ink, marker="|", linestyle="none", label="heartbeat"))
    below = -0.48 * ax.figure.dpi / ax.get_window_extent().height
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, below), frameon=False,
        ncols=min(len(handles), LEGEND_COLUMNS),
        fontsize=8, labelcolor=look.ink, handlelength=1.8, columnspacing=1.2, borderaxespad=0, borderpad=0,
    )  # fmt: skip
