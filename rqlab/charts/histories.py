"""What pictures of a run read: the tables of a result, row by row, and the names of jobs and workers, made short.

A table is a tidy DataFrame or a list of dicts, so that a live panel needs no pandas. Times are seconds since the start.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol

from rqlab.charts.looks import FAULTS, Look, plain, seconds

HYPHEN = re.compile(r"(?<=\w)-(?=\w)")  # between two words

#: A DataFrame, or one dict a row; None is an empty one.
Table = Any

DEADLY = ("crash", "kill", "power", "redeploy")  # words of faults that end the workers they strike
FOUND_OUT = ("lost", "undone")  # after a crash; `losses` says what it took when it struck
MARKED_EVENTS = ("recovered", "refused")  # besides faults, what is worth a mark

#: The look of a fault by a word of its kind; FAULTS has the looks.
LOOKS_BY_WORD = (
    ("power", "power cut"), ("recover", "recovery"), ("freeze", "freeze"), ("pause", "freeze"), ("refused", "refused"),
    ("redeploy", "redeploy"), ("crash", "crash"), ("kill", "crash"),
)  # fmt: skip


class Result(Protocol):
    """What can be drawn: a SimulationResult, or `rqlab.frames.history(jobs)` of a real queue.

    A simulation has more to tell, which is drawn where it is there: `losses`, `what_was_lost`, who is struck and
    until when (columns of `faults`), and the state that each event left its job in (a column of `events`).
    """

    @property
    def jobs(self) -> Table: ...  #: id, queue, state, attempt, deliveries, pushed, finished, lost
    @property
    def attempts(self) -> Table: ...  #: job, delivery, worker, started, ended, outcome, waited
    @property
    def events(self) -> Table: ...  #: at, kind, job, worker, cause, detail
    @property
    def faults(self) -> Table: ...  #: at, kind, target


class JobRow(NamedTuple):
    """A job at the end of the history."""

    id: str
    state: str
    pushed: float
    finished: float | None
    lost: bool
    deliveries: int


class Run(NamedTuple):
    """One delivery; `ended` is None while it goes on."""

    job: str
    delivery: int
    worker: str
    started: float
    ended: float | None
    outcome: str


class Happening(NamedTuple):
    """A fault, a recovery, or a late report that was refused."""

    at: float
    kind: str
    worker: str  #: the target
    job: str = ""
    strikes: str = "all"  #: worker, all, job or producer
    until: float | None = None  #: when it was over, as far as that is known
    lost: str = ""  #: what it took, in words

    @property
    def is_deadly(self) -> bool:
        """Whether it ends the workers that it strikes."""
        return any(word in self.kind.lower() for word in DEADLY)

    @property
    def stops(self) -> bool:
        """Whether the workers that it strikes do nothing from there on, for a while."""
        return self.is_deadly or "freeze" in self.kind.lower()

    def hits(self, worker: str) -> bool:
        return self.strikes == "all" or (self.strikes == "worker" and self.worker == worker)


Course = Sequence[tuple[float, str]]  #: when a job got into which state


class History(NamedTuple):
    """The tables of a result, in order, with what is missing filled in."""

    jobs: tuple[JobRow, ...]  #: in push order
    runs: tuple[Run, ...]  #: by start
    faults: tuple[Happening, ...]  #: by time
    marked: tuple[Happening, ...]  #: recoveries and refusals, by time
    beats: dict[str, list[float]]  #: by job: its heartbeats, by time
    courses: dict[str, Course]  #: by job
    start: float
    end: float  #: the last instant there is anything at
    seed: int | None
    what_was_lost: str  #: in a sentence; nothing where nobody knows

    @property
    def broken(self) -> str:
        """The faults, counted."""
        counted = Counter(fault_look(fault.kind).word for fault in self.faults)
        return ", ".join(times(n, word) for word, n in counted.items()) or "no faults"


def history(result: Result, newest: int | None = None) -> History:
    """Read a result. Jobs that only attempts tell of are added, so that attempts alone can be drawn.

    `newest` keeps so many runs, what happened since the first of them, and the jobs that are concerned; so does an
    instant that the result itself calls `since`.
    """
    runs = sorted(_runs(result.attempts), key=lambda run: (run.started, run.job))
    jobs = {row.id: row for row in _jobs(getattr(result, "jobs", None))}
    for run in runs:
        if run.job not in jobs:
            jobs[run.job] = JobRow(run.job, "", run.started, None, False, 0)
    losses = list(rows(getattr(result, "losses", None), "at", "job", "acknowledged", "stored"))
    faults = sorted(_faults(getattr(result, "faults", None), _taken(losses)))
    marked, beats, changes, last = _events(getattr(result, "events", None))
    for at, job, _, stored in losses:  # when it happened, not when somebody found out
        changes[job] = sorted([*changes.get(job, ()), (at, stored)], key=lambda change: change[0])
    instants = [run.started if run.ended is None else run.ended for run in runs]
    instants += [row.pushed for row in jobs.values()] + [row.finished for row in jobs.values() if row.finished]
    instants += [each.at for each in faults]
    in_order = sorted(jobs.values(), key=lambda row: row.pushed)  # stable: those of one instant stay as they are
    start, end = 0.0, max([*instants, last], default=0.0)
    courses = _courses(in_order, runs, faults, changes, end)
    since = getattr(result, "since", None)
    if since is not None:
        runs, start = [run for run in runs if run.ended is None or run.ended > since], since
    if newest is not None and len(runs) > newest:
        runs = runs[-newest:]
        start = max(start, runs[0].started)
    if start:
        concerned = {run.job for run in runs}
        in_order = [row for row in in_order if row.id in concerned or row.finished is None]
        faults = [fault for fault in faults if fault.at >= start]
        marked = [each for each in marked if each.at >= start]
    return History(
        tuple(in_order), tuple(runs), tuple(faults), tuple(marked), beats, courses, start, end,
        getattr(result, "seed", None), plain(getattr(result, "what_was_lost", ""), 400),
    )  # fmt: skip


def rows(table: Table, *columns: str) -> Iterable[Sequence[Any]]:
    """The columns of a table, row by row; None for what is missing."""
    if table is None:
        return ()
    if hasattr(table, "columns"):
        return zip(
            *(_cells(table[name]) if name in table.columns else [None] * len(table) for name in columns), strict=True
        )
    return ([value if (value := row.get(name)) == value else None for name in columns] for row in table)


def _cells(column: Any) -> list[Any]:
    """The cells of a pandas column, with None for its several words for nothing."""
    cells: list[Any] = column.tolist()
    try:
        return [cell if cell == cell else None for cell in cells]
    except TypeError:  # pandas.NA is neither
        return [None if gone else cell for cell, gone in zip(cells, column.isna().tolist(), strict=True)]


def _jobs(table: Table) -> Iterator[JobRow]:
    columns = ("id", "state", "pushed", "finished", "lost", "deliveries")
    for job, state, pushed, finished, lost, deliveries in rows(table, *columns):
        yield JobRow(str(job), str(state or ""), float(pushed or 0), finished, bool(lost), int(deliveries or 0))


def _runs(table: Table) -> Iterator[Run]:
    columns = ("job", "delivery", "worker", "started", "ended", "outcome")
    for job, delivery, worker, started, ended, outcome in rows(table, *columns):
        if started is not None:
            said = "active" if outcome in (None, "", "running") else str(outcome).replace(" ", "_")
            yield Run(str(job), int(delivery or 0), str(worker or ""), float(started), ended, said)


def _faults(table: Table, taken: Mapping[float, str]) -> Iterator[Happening]:
    for at, kind, target, strikes, until in rows(table, "at", "kind", "target", "strikes", "until"):
        if at is not None:
            said, whom = str(kind or ""), str(target or "")
            guess = "all" if whom in ("", "machine") or "power" in said.lower() else "worker"
            yield Happening(float(at), said, whom, "", str(strikes or guess), until, taken.get(float(at), ""))


def _taken(losses: Iterable[Sequence[Any]]) -> dict[float, str]:
    """By the instant of a crash: what it took, in words."""
    counts: dict[float, Counter[str]] = defaultdict(Counter)
    for at, _, before, after in losses:
        key = "lost" if after == "lost" else "completed" if before == "completed" else "older"
        counts[float(at)][key] += 1
    words = {"lost": ("job lost", "jobs lost"), "completed": ("ack lost", "acks lost")}
    return {
        at: ", ".join(f"{n} {words[key][n > 1]}" for key in words if (n := count[key]))
        for at, count in counts.items()
        if count["lost"] + count["completed"]
    }


def _events(table: Table) -> tuple[list[Happening], dict[str, list[float]], dict[str, list[tuple[float, str]]], float]:
    """Marks, heartbeats, changes of state ("due" where a delay ends), and the last instant."""
    marked: list[Happening] = []
    beats: dict[str, list[float]] = {}
    changes: dict[str, list[tuple[float, str]]] = {}
    last = 0.0
    for at, kind, job, worker, state in rows(table, "at", "kind", "job", "worker", "state"):
        if at is None:
            continue
        last = max(last, at)
        if kind == "heartbeat":
            beats.setdefault(job, []).append(at)
        elif state and kind not in FOUND_OUT:
            changes.setdefault(job, []).append((at, str(state)))
        elif kind == "promote":
            changes.setdefault(job, []).append((at, "due"))
        elif kind in MARKED_EVENTS:
            strikes = "worker" if kind == "refused" else "all"
            marked.append(Happening(float(at), str(kind), str(worker or ""), str(job or ""), strikes))
    for each in beats.values():
        each.sort()
    return sorted(marked), beats, changes, last


def _courses(
    jobs: Sequence[JobRow], runs: Sequence[Run], faults: Sequence[Happening],
    changes: Mapping[str, list[tuple[float, str]]], end: float,
) -> dict[str, Course]:  # fmt: skip
    """When each job got into which state: as its events tell, or worked out where they tell only some of it."""
    mine: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        mine[run.job].append(run)
    courses: dict[str, Course] = {}
    for job in jobs:
        told = changes.get(job.id, ())
        if told and told[0][1] != "due" and told[0][0] <= job.pushed:
            courses[job.id] = told
        else:
            due = sorted(at for at, state in told if state == "due")
            courses[job.id] = _worked_out(job, mine[job.id], due, faults, end)
    return courses


def _worked_out(
    job: JobRow, runs: Sequence[Run], due: Sequence[float], faults: Sequence[Happening], end: float
) -> Course:
    """The course of a job from its runs and promotions: between a failure and a promotion it is delayed."""
    first = runs[0].started if runs else end
    delayed = any(job.pushed < at <= first for at in due)
    course = [(job.pushed, "delayed" if delayed else "waiting")]
    course += [(at, "waiting") for at in due if at <= first]
    for run, after in zip_longest(runs, runs[1:]):
        course.append((run.started, "active"))
        if run.ended is None:
            continue
        if run.outcome == "completed":
            course.append((run.ended, "completed"))
        elif after is None and job.state and not job.lost:
            course.append((run.ended, job.state))
        else:
            waits = run.outcome in ("failed", "stalled", "timed_out")
            course.append((run.ended, "delayed" if waits else "waiting"))
            until = after.started if after else end
            course += [(at, "waiting") for at in due if run.ended <= at <= until]
    if job.lost:
        cuts = [fault.at for fault in faults if fault.is_deadly and fault.strikes == "all"]
        known = max(at for at, _ in course)
        cut = next((at for at in cuts if at >= known), next(iter(reversed(cuts)), end))
        return [step for step in course if step[0] <= cut] + [(cut, "lost")]
    if job.finished is not None and course[-1][1] != job.state:
        course.append((job.finished, job.state))  # cancelled or expired without a run
    return course


def in_words(detail: Any) -> str:
    """What an event says: an error, or its details one by one."""
    if isinstance(detail, Mapping):
        said = detail.get("error") or detail.get("says")
        return str(said) if said else ", ".join(f"{key} {value}" for key, value in detail.items())
    return str(detail or "")


def names_in(table: Table) -> dict[str, str]:
    """The short names of the jobs in a table, the same that its pictures have."""
    return job_names(sorted(_jobs(table), key=lambda row: row.pushed))


def job_names(jobs: Sequence[JobRow]) -> dict[str, str]:
    """Short names: an id that is short stays, a longer one becomes its number in push order."""
    return {row.id: plain(row.id) if len(row.id) <= 12 else f"job {number}" for number, row in enumerate(jobs, 1)}


def worker_names(workers: Sequence[str]) -> dict[str, str]:
    """Short names: without the host or process that all have in common, and at most 14 characters, the last ones."""
    parts = [worker.split(":") for worker in workers]
    common = 0
    while len(parts) > 1 and all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    short = {}
    for worker, each in zip(workers, parts, strict=True):
        name = plain(":".join(each[common:])[-40:]) or "no worker"
        short[worker] = name if len(name) <= 14 else "…" + name[-13:]
    return short


def fault_look(kind: str) -> Look:
    """How a kind of fault or mark is shown, with its own word; the hyphen of kill -9 stays."""
    said = HYPHEN.sub(" ", kind.replace("_", " ")).strip()
    low = said.lower()
    key = next((key for word, key in LOOKS_BY_WORD if word in low), "fault")
    return FAULTS[key]._replace(word=plain(said, 24) or "fault")


def times(number: int, noun: str) -> str:
    """A count with its noun: 1 job, 2 jobs."""
    many = noun + ("es" if noun.endswith(("sh", "s", "x")) else "s")
    many = noun[:-1] + "ies" if noun.endswith("y") else many
    return f"{number:,} {noun if number == 1 else many}"


def moment(value: float) -> str:
    """An instant on the axis of a history: 2.35 s."""
    return seconds(round(value, 3)) if value < 100 else f"{value:,.0f} s"
