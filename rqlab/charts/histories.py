"""What pictures of a run read: the tables of a result, row by row, and the names of jobs and workers, made short.

A table is a tidy DataFrame or a list of dicts, so that a live panel needs no pandas. Times are seconds since the start.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from rqlab.charts.looks import FAULTS, Look, plain, seconds

#: A DataFrame, or one dict a row; None is an empty one.
Table = Any


class Result(Protocol):
    """What can be drawn: a SimulationResult, or `rqlab.frames.history(jobs)` of a real queue."""

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
    """An event or a fault; `due` is until when the event put its job off."""

    at: float
    kind: str
    job: str
    worker: str
    detail: str
    due: float | None


class History(NamedTuple):
    """The tables of a result, in order, with what is missing filled in."""

    jobs: tuple[JobRow, ...]  #: in push order
    runs: tuple[Run, ...]  #: by start
    events: tuple[Happening, ...]  #: by time
    faults: tuple[Happening, ...]  #: by time; `worker` is the target
    due: dict[str, tuple[float, ...]]  #: by job: when its delays and back-offs ended, as far as the events say
    end: float  #: the last instant there is anything at
    seed: int | None


def history(result: Result) -> History:
    """Read a result. Jobs that only attempts tell of are added, so that attempts alone can be drawn."""
    runs = sorted(_runs(result.attempts), key=lambda run: (run.started, run.job))
    jobs = {row.id: row for row in _jobs(getattr(result, "jobs", None))}
    for run in runs:
        if run.job not in jobs:
            jobs[run.job] = JobRow(run.job, "", run.started, None, False, 0)
    events = sorted(_happenings(getattr(result, "events", None), "worker"), key=_at)
    faults = sorted(_happenings(getattr(result, "faults", None), "target"), key=_at)
    instants = [run.ended if run.ended is not None else run.started for run in runs]
    instants += [row.pushed for row in jobs.values()] + [row.finished for row in jobs.values() if row.finished]
    instants += [each.at for each in (*events, *faults)]
    due: dict[str, set[float]] = {}
    for event in events:
        if event.job and (event.kind == "promote" or event.due is not None):
            due.setdefault(event.job, set()).add(event.at if event.due is None else event.due)
    in_order = sorted(jobs.values(), key=lambda row: row.pushed)  # stable: those of one instant stay as they are
    end = max(instants, default=0.0)
    return History(
        tuple(in_order), tuple(runs), tuple(events), tuple(faults),
        {job: tuple(sorted(instants)) for job, instants in due.items()}, end, getattr(result, "seed", None),
    )  # fmt: skip


def _at(happening: Happening) -> float:
    return happening.at


def rows(table: Table, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The columns of a table, row by row; None for what is missing."""
    if table is None:
        return
    if hasattr(table, "columns"):
        values = [table[name].tolist() if name in table.columns else [None] * len(table) for name in columns]
        for row in zip(*values, strict=True):
            yield tuple(_known(value) for value in row)
        return
    for each in table:
        row_of: Mapping[str, Any] = each
        yield tuple(_known(row_of.get(name)) for name in columns)


def _known(value: Any) -> Any:
    """None for pandas' several words for it."""
    return None if type(value).__name__ == "NAType" or value != value else value


def _jobs(table: Table) -> Iterator[JobRow]:
    columns = ("id", "state", "pushed", "finished", "lost", "deliveries")
    for job, state, pushed, finished, lost, deliveries in rows(table, *columns):
        yield JobRow(str(job), str(state or ""), float(pushed or 0), finished, bool(lost), int(deliveries or 0))


def _runs(table: Table) -> Iterator[Run]:
    columns = ("job", "delivery", "worker", "started", "ended", "outcome")
    for job, delivery, worker, started, ended, outcome in rows(table, *columns):
        if started is not None:
            said = str(outcome or "active").replace(" ", "_")
            yield Run(str(job), int(delivery or 0), str(worker or ""), float(started), ended, said)


def _happenings(table: Table, worker: str) -> Iterator[Happening]:
    for at, kind, job, who, detail in rows(table, "at", "kind", "job", worker, "detail"):
        if at is not None:
            due = detail.get("due") if isinstance(detail, Mapping) else None
            yield Happening(float(at), *(str(each or "") for each in (kind, job, who)), _in_words(detail), due)


def _in_words(detail: Any) -> str:
    """What an event says: an error, or its details one by one."""
    if isinstance(detail, Mapping):
        said = detail.get("error") or detail.get("says")
        return str(said) if said else ", ".join(f"{key} {value}" for key, value in detail.items())
    return str(detail or "")


def job_names(jobs: Sequence[JobRow]) -> dict[str, str]:
    """Short names: an id that is short stays, a longer one becomes its number in push order."""
    return {row.id: plain(row.id) if len(row.id) <= 12 else f"job {number}" for number, row in enumerate(jobs, 1)}


def worker_names(workers: Sequence[str]) -> dict[str, str]:
    """Short names: without the host or process that all have in common, and at most 16 characters, the last ones."""
    parts = [worker.split(":") for worker in workers]
    common = 0
    while len(parts) > 1 and all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    short = {}
    for worker, each in zip(workers, parts, strict=True):
        name = plain(":".join(each[common:])[-40:]) or "no worker"
        short[worker] = name if len(name) <= 16 else "…" + name[-15:]
    return short


def fault_look(kind: str) -> Look:
    """How a kind of fault is shown, with its own word."""
    said = kind.replace("_", " ").replace("-", " ").lower()
    named = (("power", "power cut"), ("recover", "recovery"), ("freeze", "freeze"), ("pause", "freeze"))
    crashes = (("crash", "crash"), ("kill", "crash"))
    key = next((key for word, key in (*named, *crashes) if word in said), "fault")
    return FAULTS[key]._replace(word=plain(said, 24) or "fault")


def times(number: int, noun: str) -> str:
    """A count with its noun: 1 job, 2 jobs."""
    many = noun + ("es" if noun.endswith(("sh", "s", "x")) else "s")
    many = noun[:-1] + "ies" if noun.endswith("y") else many
    return f"{number:,} {noun if number == 1 else many}"


def clock(value: float) -> str:
    """An instant on the axis of a history: 2.35 s."""
    return seconds(round(value, 3)) if value < 100 else f"{value:,.0f} s"
