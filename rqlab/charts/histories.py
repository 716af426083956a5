"""What pictures of a run read: the tables of a result, row by row, and the names of jobs and workers, made short.

A table is a tidy DataFrame or a list of dicts, so that a live panel needs no pandas. Times are seconds since the start.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from rqlab.charts.looks import FAULTS, Look, plain, seconds

DUE = re.compile(r"(?:^| )due=(\d+(?:\.\d+)?)(?: |$)")
HYPHEN = re.compile(r"(?<=\w)-(?=\w)")  # between two words

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
    """A fault, or a recovery."""

    at: float
    kind: str
    worker: str  #: the target; empty strikes all


class History(NamedTuple):
    """The tables of a result, in order, with what is missing filled in."""

    jobs: tuple[JobRow, ...]  #: in push order
    runs: tuple[Run, ...]  #: by start
    faults: tuple[Happening, ...]  #: by time
    recoveries: tuple[Happening, ...]  #: by time
    beats: dict[str, list[float]]  #: by job: its heartbeats, by time
    due: dict[str, list[float]]  #: by job: when its delays and back-offs ended, as far as the events say
    start: float
    end: float  #: the last instant there is anything at
    seed: int | None


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
    faults = sorted(_faults(getattr(result, "faults", None)))
    recoveries, beats, due, last = _events(getattr(result, "events", None))
    instants = [run.started if run.ended is None else run.ended for run in runs]
    instants += [row.pushed for row in jobs.values()] + [row.finished for row in jobs.values() if row.finished]
    instants += [each.at for each in faults]
    in_order = sorted(jobs.values(), key=lambda row: row.pushed)  # stable: those of one instant stay as they are
    start, end = 0.0, max(instants, default=0.0)
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
        recoveries = [each for each in recoveries if each.at >= start]
    return History(
        tuple(in_order), tuple(runs), tuple(faults), tuple(recoveries), beats, due, start, max(end, last),
        getattr(result, "seed", None),
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


def _faults(table: Table) -> Iterator[Happening]:
    for at, kind, target in rows(table, "at", "kind", "target"):
        if at is not None:
            yield Happening(float(at), str(kind or ""), str(target or ""))


def _events(table: Table) -> tuple[list[Happening], dict[str, list[float]], dict[str, list[float]], float]:
    """Recoveries, heartbeats, ends of delays, and the last instant: what pictures take from the events."""
    recoveries: list[Happening] = []
    beats: dict[str, list[float]] = {}
    due: dict[str, set[float]] = {}
    last = 0.0
    for at, kind, job, worker, detail in rows(table, "at", "kind", "job", "worker", "detail"):
        if at is None:
            continue
        last = max(last, at)
        if kind == "heartbeat":
            beats.setdefault(job, []).append(at)
        elif kind == "promote":
            due.setdefault(job, set()).add(at)
        elif (put_off := _due(detail)) is not None:
            due.setdefault(job, set()).add(put_off)
        elif kind and "recover" in str(kind) and not job:
            recoveries.append(Happening(float(at), str(kind), str(worker or "")))
    for each in beats.values():
        each.sort()
    return sorted(recoveries), beats, {job: sorted(instants) for job, instants in due.items()}, last


def _due(detail: Any) -> float | None:
    """Until when an event put its job off: in its details, or in their words."""
    if isinstance(detail, str):
        found = DUE.search(detail) if "due=" in detail else None
        return float(found[1]) if found else None
    return float(detail["due"]) if type(detail) is dict and detail.get("due") is not None else None


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
    """How a kind of fault is shown, with its own word; the hyphen of kill -9 stays."""
    said = HYPHEN.sub(" ", kind.replace("_", " ")).lower()
    named = (("power", "power cut"), ("recover", "recovery"), ("freeze", "freeze"), ("pause", "freeze"))
    crashes = (("crash", "crash"), ("kill", "crash"))
    key = next((key for word, key in (*named, *crashes) if word in said), "fault")
    return FAULTS[key]._replace(word=plain(said, 24) or "fault")


def times(number: int, noun: str) -> str:
    """A count with its noun: 1 job, 2 jobs."""
    many = noun + ("es" if noun.endswith(("sh", "s", "x")) else "s")
    many = noun[:-1] + "ies" if noun.endswith("y") else many
    return f"{number:,} {noun if number == 1 else many}"


def moment(value: float) -> str:
    """An instant on the axis of a history: 2.35 s."""
    return seconds(round(value, 3)) if value < 100 else f"{value:,.0f} s"
