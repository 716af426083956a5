"""What the panels show: a small plain dict, made from the records, the books and the processes at one moment.

The directory is read as anybody else may read it, read-only and beside its owners. Times are seconds since the lab
began; jobs are named by their numbers. Knows no widget.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rqlab import clock
from rqlab.engine import LISTED, Engine
from rqlab.errors import StoreError
from rqlab.job import Counts, Job, State
from rqlab.storage.view import ReadOnlyStore
from rqlab.widgets import safety
from rqlab.widgets.controller import MOST_JOBS, Controller, Happened, Status
from rqlab.widgets.safety import Evidence, Verdict
from rqlab.widgets.workload import QUEUE

NEWEST_EVENTS = 2_000  # that a view carries
FAULTS = {"kill -9": "kill -9", "freeze": "freeze"}  #: what is drawn as a fault


class Seen(NamedTuple):
    """The records at one instant."""

    records: Sequence[Job]
    counts: Counts
    paused: bool


class DirectoryReader:
    """Reads a directory beside whoever uses it; one that is not there yet is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._store: ReadOnlyStore | None = None

    def read(self) -> Seen | None:
        """All jobs of the lab's queue at one instant; None if there is no directory yet."""
        if self._store is None:
            try:
                self._store = ReadOnlyStore(self.path)
            except StoreError:
                if (self.path / "cache.db").is_file():
                    raise
                return None
        engine = Engine(self._store, lambda purpose, entity, counter: 0.0)
        with self._store.at_one_instant():
            records = engine.jobs([QUEUE], LISTED, None, None, 2 * MOST_JOBS)
            return Seen(records, engine.counts([QUEUE]), QUEUE in engine.paused())

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None


class Viewer:
    """Makes views of a lab. Once safety was broken, it stays broken: `first` says by what."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._reader = DirectoryReader(controller.path)
        self.first: tuple[float, str] | None = None  #: when safety was first seen broken, and by what

    def view(self) -> dict[str, Any]:
        """The lab as it is now."""
        lab = self._controller
        for _ in range(3):  # a mode that changed meanwhile: look again
            mode, books = lab.mode, lab.books()  # before the records: what was acknowledged must be in them
            statuses = lab.statuses()
            if mode == "memory":
                records = lab.reported()
                seen = Seen(records, _counted(records), lab.is_paused)
            else:
                seen = self._reader.read() or Seen([], Counts(), False)
            if mode == lab.mode:
                break
        now = clock.now()
        evidence = Evidence(seen.records, seen.counts, books, mode, lab.opening, lab.lab, lab.forgiven_ms)
        verdict = safety.judge(evidence)
        at = round((now - lab.began_at) / 1000, 1)
        for finding in verdict.findings:
            if finding.holds is False and self.first is None:
                self.first = at, f"{finding.id}: {finding.says[0]}"
        return make(lab, seen, verdict, statuses, now, self.first)

    def close(self) -> None:
        self._reader.close()


def make(
    lab: Controller, seen: Seen, verdict: Verdict, statuses: Sequence[Status], now: int, first: tuple[float, str] | None
) -> dict[str, Any]:
    """The dict that panels take."""
    began_at = lab.began_at
    labels = {job.id: _label(job, lab) for job in seen.records}
    lost = {job_id: f"job {lab.numbers[job_id]}" for job_id in verdict.loss.jobs}
    names = {**labels, **lost}
    jobs, attempts = [], []
    for job in seen.records:
        label = labels[job.id]
        jobs.append(
            {
                "id": label, "queue": job.queue, "state": str(job.state), "attempt": job.attempt,
                "deliveries": job.deliveries, "pushed": (job.created_at - began_at) / 1000,
                "finished": None if job.finished_at is None else (job.finished_at - began_at) / 1000, "lost": False,
                "error": job.last_error,
            }
        )  # fmt: skip
        attempts += _attempts(job, label, lab)
    return {
        "mode": lab.mode,
        "changing": lab.is_changing,
        "seed": lab.settings.seed,
        "now": round((now - began_at) / 1000, 1),
        "safe": False if first is not None else verdict.safe,
        "broken_by": None if first is None else {"at": first[0], "says": first[1]},
        "checks": [finding._asdict() for finding in verdict.findings],
        "acknowledged": len(lab.numbers),
        "lost": len(verdict.loss.jobs),
        "undone": verdict.loss.undone,
        "at_risk": verdict.loss.at_risk,
        "allowed": verdict.loss.allowed,
        "crashes": verdict.loss.crashes,
        "paused": seen.paused,
        "problem": lab.problem,
        "counts": {str(state): getattr(seen.counts, state) for state in LISTED},
        "workers": _workers(statuses, seen.records, labels, lab, now),
        "jobs": sorted(jobs, key=lambda row: row["pushed"])
        + [
            {
                "id": name, "queue": QUEUE, "state": "", "attempt": 0, "deliveries": 0, "pushed": 0.0,
                "finished": None, "lost": True, "error": None,
            }
            for name in lost.values()
        ],
        "attempts": attempts,
        "events": [_event(each, names, lab) for each in lab.events(NEWEST_EVENTS)],
        "faults": [
            {"at": (each.at - began_at) / 1000, "kind": FAULTS[each.kind], "target": each.worker}
            for each in lab.events(NEWEST_EVENTS)
            if each.kind in FAULTS
        ],
    }  # fmt: skip


def only(view: dict[str, Any], *, failed: bool = False, job: str = "") -> dict[str, Any]:
    """The view with only the jobs that had trouble, or whose name has `job` in it."""
    if not failed and not job.strip():
        return view
    wanted = job.strip().lower()
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


def _label(job: Job, lab: Controller) -> str:
    number = lab.numbers.get(job.id)
    if number is None:  # pushed by a process that died before it could say so, or by somebody else
        metadata = job.metadata or {}
        number = metadata.get("number") if metadata.get("lab") == lab.lab else None
    return f"…{job.id[-8:]}" if number is None else f"job {number}"


def _attempts(job: Job, label: str, lab: Controller) -> list[dict[str, Any]]:
    began_at = lab.began_at
    found: list[dict[str, Any]] = [
        {
            "job": label, "delivery": line.delivery, "worker": worker_name(line.worker, lab.names),
            "started": (line.started_at - began_at) / 1000, "ended": (line.ended_at - began_at) / 1000,
            "outcome": str(line.outcome),
        }
        for line in job.history
    ]  # fmt: skip
    if job.state is State.ACTIVE and job.started_at is not None:
        found.append(
            {
                "job": label, "delivery": job.deliveries, "worker": worker_name(job.worker or "", lab.names),
                "started": (job.started_at - began_at) / 1000, "ended": None, "outcome": "active",
            }
        )  # fmt: skip
    return found


def _workers(
    statuses: Sequence[Status], records: Sequence[Job], labels: dict[str, str], lab: Controller, now: int
) -> list[dict[str, Any]]:
    """One row a process (and a thread that works): what it runs is what the records say."""
    running: dict[tuple[str, int], Job] = {}
    for job in records:
        if job.state is State.ACTIVE and job.worker:
            running[worker_name(job.worker, lab.names), _pid(job.worker)] = job
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


def worker_name(worker: str, names: dict[int, tuple[str, str]]) -> str:
    """w1 for host:pid:thread, if it is one of the lab's; else as it stands."""
    name, kind = names.get(_pid(worker), (worker, ""))
    return worker.rpartition(":")[2] if kind == "owner" else name


def _pid(worker: str) -> int:
    parts = worker.split(":")
    return int(parts[-2]) if len(parts) >= 3 and parts[-2].isdecimal() else 0


def _event(each: Happened, names: dict[str, str], lab: Controller) -> dict[str, Any]:
    number = lab.numbers.get(each.job)
    label = "" if not each.job else names.get(each.job) or (f"job {number}" if number else f"…{each.job[-8:]}")
    worker = worker_name(each.worker, lab.names)
    return {
        "at": (each.at - lab.began_at) / 1000, "kind": each.kind, "job": label, "worker": worker, "cause": None,
        "detail": each.detail,
    }  # fmt: skip


def _counted(records: Sequence[Job]) -> Counts:
    counted = {str(state): 0 for state in State}
    for job in records:
        counted[job.state] += 1
    return Counts(**counted)
