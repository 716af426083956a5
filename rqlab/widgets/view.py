"""What the panels show: a small plain dict, made from the records, the books and the processes at one moment.

The directory is read as anybody else may read it, read-only and beside its owners. Times are seconds since the lab
began; jobs are named by their numbers. Knows no widget.
"""

import contextlib
import math
import threading
from collections.abc import Sequence
from heapq import nlargest
from pathlib import Path
from typing import Any, NamedTuple

from rqlab import clock
from rqlab.durability import MODES
from rqlab.engine import LISTED, Engine
from rqlab.errors import RQLabError
from rqlab.job import Counts, Job, State
from rqlab.storage.view import ReadOnlyStore
from rqlab.widgets import safety
from rqlab.widgets.controller import MOST_JOBS, Controller, Happened
from rqlab.widgets.handle import Status
from rqlab.widgets.ledger import Books
from rqlab.widgets.safety import Evidence, Verdict
from rqlab.widgets.workload import QUEUE

NEWEST_EVENTS = 200  # that a view carries
NEWEST_FAULTS = 100
DRAWN_RUNS = 60  # the newest, in a timeline that is drawn four times a second
DRAWN_WAITING = 5  # the first of the line
DRAWN_LOST = 5  # the last: a hundred empty lanes would say no more
SILENCE_SECONDS = 20.0  # without a run: a timeline begins after it


LIVE = ("waiting", "delayed", "active")  # states of jobs that are not finished


class Seen(NamedTuple):
    """The records at one instant."""

    records: Sequence[Job]
    counts: Counts
    paused: bool


class _Told(NamedTuple):
    """What a view says of one record; kept while the record stays the same."""

    record: Job
    row: dict[str, Any]
    attempts: list[dict[str, Any]]


class DirectoryReader:
    """Reads a directory beside whoever uses it; one that is not there yet is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._store: ReadOnlyStore | None = None

    def read(self) -> Seen | None:
        """All jobs of the lab's queue at one instant; None if there is no directory yet."""
        if self._store is None:
            if not (self.path / "cache.db").is_file():  # asked first: it may be made at any moment
                return None
            self._store = ReadOnlyStore(self.path)
        engine = Engine(self._store, lambda purpose, entity, counter: 0.0)
        with self._store.at_one_instant():
            records = engine.jobs([QUEUE], LISTED, None, None, 2 * MOST_JOBS)
            return Seen(records, engine.counts([QUEUE]), QUEUE in engine.paused())

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None


class Viewer:
    """Makes views of a lab. Once safety was broken, it stays broken: `first` says by what. Thread-safe."""

    def __init__(self, lab: Controller) -> None:
        self._lab = lab
        self._reader = DirectoryReader(lab.path)
        self._looking = threading.Lock()
        self._judge = safety.Judge()
        self._told: dict[str, _Told] = {}
        self.first: dict[str, Any] | None = None  #: when safety was first seen broken, and by what
        self._last: dict[str, Any] | None = None  #: what there was to see at the end
        self._is_closed = False

    def view(self) -> dict[str, Any]:
        """The lab as it is now; after `close`, as it was then. A dict of

        - mode, promise (what its row may lose at kill -9), changing (to which mode, or ""), seed, now, paused, problem;
        - safe, broken_by (the first thing seen against it: at, says), checks (id, sentence, holds, says);
        - acknowledged, unanswered (pushes), lost and at_risk (jobs), undone (completions), allowed (writes), crashes;
        - counts (jobs by state), workers (name, kind, pid, state, says, job, lease_left),
          jobs, attempts, events (the newest), faults: the tables that `rqlab.charts.timeline` draws,
          and silent (jobs whose holder is dead or frozen).
        """
        with self._looking:
            if not self._is_closed:
                return self._view()
            if self._last is None:
                raise RQLabError(f"cannot look at the lab in {self._lab.path}: it is closed")
            return self._last

    def records(self) -> list[Job]:
        """The jobs of the lab's queue, as they are now; after `close`, as they were then."""
        with self._looking:
            return [told.record for told in self._told.values()] if self._is_closed else list(self._seen().records)

    def close(self) -> None:
        """Look for the last time, and let the directory go: what is temporary will be gone, and that is no loss."""
        with self._looking:
            if self._is_closed:
                return
            with contextlib.suppress(RQLabError):  # a directory that cannot be read has no last view
                self._last = self._view()
            self._is_closed = True
            self._reader.close()

    def _seen(self) -> Seen:
        if self._lab.mode == "memory":
            records = self._lab.reported()
            return Seen(records, _counted(records), bool(self._lab.is_paused))
        try:
            seen = self._reader.read()
        except RQLabError:
            if self._lab.has_been_opened:
                raise
            seen = None  # it is being made, or it cannot be opened: then its process says why
        return seen or Seen([], Counts(), False)

    def _view(self) -> dict[str, Any]:
        lab = self._lab
        for _ in range(3):  # a mode that changed meanwhile: look again
            mode, books = lab.mode, lab.books()  # before the records: what was acknowledged must be in them
            unanswered, statuses = lab.unanswered(), lab.statuses()
            seen = self._seen()
            if mode == lab.mode:
                break
        now = clock.now()
        records = [self._as_before(job) for job in seen.records]
        evidence = Evidence(records, seen.counts, books, mode, lab.settings.opening, lab.lab, lab.forgiven_ms)
        verdict = self._judge.judge(evidence)
        self._told = {job.id: self._tell(job) for job in records}
        labels = {job_id: told.row["id"] for job_id, told in self._told.items()}
        return {
            "mode": mode,
            "promise": MODES[mode].lost_at_kill,
            "changing": lab.is_changing,
            "seed": lab.settings.seed,
            "now": self._seconds(now),
            "acknowledged": len(books.acknowledged),
            "unanswered": unanswered,
            "paused": seen.paused,
            "problem": lab.problem,
            "counts": {str(state): getattr(seen.counts, state) for state in LISTED},
            "workers": self._workers(statuses, records, labels, now),
            "jobs": self._jobs(books, verdict),
            "silent": _silent(statuses, records, labels),
            "attempts": [line for told in self._told.values() for line in told.attempts],
            "events": [self._event(each, labels) for each in lab.events(NEWEST_EVENTS)],
            "faults": [self._fault(each) for each in lab.faults(NEWEST_FAULTS)],
            **self._safety(verdict, self._seconds(now)),
        }

    def _safety(self, verdict: Verdict, at: float) -> dict[str, Any]:
        """What the light says, and what was lost."""
        for finding in verdict.findings:
            if finding.holds is False and self.first is None:
                self.first = {"at": at, "says": f"{finding.id}: {finding.says[0]}"}
        return {
            "safe": self.first is None,
            "broken_by": self.first,
            "checks": [finding._asdict() for finding in verdict.findings],
            "lost": len(verdict.loss.jobs),
            "undone": verdict.loss.undone,
            "at_risk": verdict.loss.at_risk,
            "allowed": verdict.loss.allowed,
            "crashes": verdict.loss.crashes,
        }

    def _jobs(self, books: Books, verdict: Verdict) -> list[dict[str, Any]]:
        """A row a job, those that were lost too, in push order: ids rise with every push."""
        rows = {job_id: told.row for job_id, told in self._told.items()}
        for job_id in verdict.loss.jobs:
            said = books.acknowledged[job_id]
            rows[job_id] = _lost(f"job {said.number}", self._seconds(said.at))
        return [row for _, row in sorted(rows.items())]

    def _as_before(self, job: Job) -> Job:
        """The very object of the last view, if nothing has changed in it: what was found in it then still holds."""
        before = self._told.get(job.id)
        return before.record if before is not None and before.record == job else job

    def _tell(self, job: Job) -> _Told:
        before = self._told.get(job.id)
        if before is not None and before.record is job:
            return before
        label = self._label(job)
        row = {
            "id": label, "queue": job.queue, "state": str(job.state), "attempt": job.attempt,
            "deliveries": job.deliveries, "pushed": self._seconds(job.created_at),
            "finished": None if job.finished_at is None else self._seconds(job.finished_at), "lost": False,
            "error": job.last_error,
        }  # fmt: skip
        return _Told(job, row, self._attempts(job, label))

    def _attempts(self, job: Job, label: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [
            {
                "job": label, "delivery": line.delivery, "worker": self._worker_name(line.worker),
                "started": self._seconds(line.started_at), "ended": self._seconds(line.ended_at),
                "outcome": str(line.outcome),
            }
            for line in job.history
        ]  # fmt: skip
        if job.state is State.ACTIVE and job.started_at is not None:
            found.append(
                {
                    "job": label, "delivery": job.deliveries, "worker": self._worker_name(job.worker or ""),
                    "started": self._seconds(job.started_at), "ended": None, "outcome": "active",
                }
            )  # fmt: skip
        return found

    def _workers(
        self, statuses: Sequence[Status], records: Sequence[Job], labels: dict[str, str], now: int
    ) -> list[dict[str, Any]]:
        """One row a process (and a thread that works): what it runs is what the records say."""
        running = {
            (self._worker_name(job.worker), _pid(job.worker)): job
            for job in records
            if job.state is State.ACTIVE and job.worker
        }
        rows = []
        for status in statuses:
            held = running.get((status.name, status.pid))
            state = status.state
            if state == "running" and status.kind in ("worker", "thread"):
                state = "active" if held else "idle"
            lease = None if held is None or held.lease_until is None else round((held.lease_until - now) / 1000, 1)
            rows.append(
                {
                    "name": status.name, "kind": status.kind, "pid": status.pid, "state": state, "says": status.says,
                    "job": labels[held.id] if held else "", "lease_left": lease,
                }
            )  # fmt: skip
        return rows

    def _event(self, each: Happened, labels: dict[str, str]) -> dict[str, Any]:
        number = self._lab.numbers.get(each.job)
        known = labels.get(each.job) or (f"job {number}" if number else f"…{each.job[-8:]}")
        return {
            "at": self._seconds(each.at), "kind": each.kind, "job": known if each.job else "",
            "worker": self._worker_name(each.worker), "cause": None, "detail": each.detail,
        }  # fmt: skip

    def _fault(self, each: Happened) -> dict[str, Any]:
        """What strikes an owner strikes all of its workers."""
        return {
            "at": self._seconds(each.at),
            "kind": each.kind,
            "target": "" if each.worker == "owner" else each.worker,
        }

    def _label(self, job: Job) -> str:
        number = self._lab.numbers.get(job.id)
        if number is None:  # pushed by a process that died before it could say so, or by somebody else
            metadata = job.metadata or {}
            number = metadata.get("number") if metadata.get("lab") == self._lab.lab else None
        return f"…{job.id[-8:]}" if number is None else f"job {number}"

    def _worker_name(self, worker: str) -> str:
        """w1 for host:pid:thread, if it is one of the lab's; else as it stands."""
        name, kind = self._lab.names.get(_pid(worker), (worker, ""))
        return worker.rpartition(":")[2] if kind == "owner" else name

    def _seconds(self, at: int) -> float:
        return (at - self._lab.began_at) / 1000


def only(view: dict[str, Any], *, failed: bool = False, job: str = "") -> dict[str, Any]:
    """The view with only the jobs that had trouble, or that are called `job` (or by its number)."""
    wanted = job.strip().lower()
    if not failed and not wanted:
        return view
    wanted = f"job {wanted}" if wanted.isdigit() else wanted
    trouble = {row["job"] for row in view["attempts"] if row["outcome"] not in ("completed", "active")}
    trouble |= {row["id"] for row in view["jobs"] if row["lost"] or row["state"] == "dlq"}
    kept = {
        row["id"]
        for row in view["jobs"]
        if (not failed or row["id"] in trouble) and (not wanted or row["id"].lower() == wanted)
    }
    return {
        **view,
        "jobs": [row for row in view["jobs"] if row["id"] in kept],
        "attempts": [row for row in view["attempts"] if row["job"] in kept],
        "events": [row for row in view["events"] if not row["job"] or row["job"] in kept],
    }


def newest(view: dict[str, Any]) -> dict[str, Any]:
    """What a live timeline draws: the newest runs, and of jobs without one the first in line and the last lost.

    It begins (`since`) after the last long silence, and ends now while a job is under way. `left_out` counts the rest.
    A run whose process is dead or frozen is drawn as stalled before anybody has found out: its lease runs out.
    """
    silent = set(view["silent"])
    runs = [
        {**run, "outcome": "stalled"} if run["ended"] is None and run["job"] in silent else run
        for run in nlargest(DRAWN_RUNS, view["attempts"], key=_started)
    ]
    concerned = {run["job"] for run in runs}
    without = [row for row in view["jobs"] if row["id"] not in concerned and row["finished"] is None]
    lost = [row for row in without if row["lost"]]
    line = [row for row in without if not row["lost"]]
    shown = concerned | {row["id"] for row in [*line[:DRAWN_WAITING], *lost[-DRAWN_LOST:]]}
    jobs = [row for row in view["jobs"] if row["id"] in shown]
    events = [event for event in view["events"] if event["kind"] == "promote"]
    if any(view["counts"][state] for state in LIVE):
        events.append({"at": view["now"], "kind": "now"})
    left_out = {
        "older run": len(view["attempts"]) - len(runs),
        "waiting job": max(0, len(line) - DRAWN_WAITING),
        "lost job": max(0, len(lost) - DRAWN_LOST),
    }
    since = _since(runs, [*line[:DRAWN_WAITING], *lost[-DRAWN_LOST:]], len(runs) < len(view["attempts"]))
    return {**view, "attempts": runs, "jobs": jobs, "events": events, "left_out": left_out, "since": since}


def _since(runs: list[dict[str, Any]], others: list[dict[str, Any]], are_cut: bool) -> float | None:
    """Where a timeline begins: after the last long silence, else with the oldest run that is kept; None: at 0."""
    spans = [(run["started"], math.inf if run["ended"] is None else run["ended"]) for run in runs]
    spans += [(row["pushed"], row["pushed"] if row["lost"] else math.inf) for row in others]
    spans.sort()
    begin: float | None = min(run["started"] for run in runs) if are_cut else None
    quiet_from = 0.0
    for started, ended in spans:
        if started - quiet_from > SILENCE_SECONDS:
            begin = started
        quiet_from = max(quiet_from, ended)
    return begin


def _started(run: dict[str, Any]) -> float:
    return float(run["started"])


def _lost(label: str, pushed: float) -> dict[str, Any]:
    """A job that was acknowledged and is gone."""
    return {
        "id": label, "queue": QUEUE, "state": "", "attempt": 0, "deliveries": 0, "pushed": pushed, "finished": None,
        "lost": True, "error": None,
    }  # fmt: skip


def _silent(statuses: Sequence[Status], records: Sequence[Job], labels: dict[str, str]) -> list[str]:
    """Jobs whose runs are held by a process that is dead or frozen: their leases run out."""
    live = {status.pid for status in statuses if status.state in ("starting", "running")}
    return [labels[job.id] for job in records if job.state is State.ACTIVE and _pid(job.worker or "") not in live]


def _pid(worker: str) -> int:
    parts = worker.split(":")
    return int(parts[-2]) if len(parts) >= 3 and parts[-2].isdecimal() else 0


def _counted(records: Sequence[Job]) -> Counts:
    counted = {str(state): 0 for state in State}
    for job in records:
        counted[job.state] += 1
    return Counts(**counted)
