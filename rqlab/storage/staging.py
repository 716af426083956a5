"""One transaction, in memory: changes are staged over a store and applied when the work has returned.

Work that raises leaves nothing behind, because nothing has been touched yet: no savepoint, no undo. It knows no kind
of store; memory.py, whose changes cost less than staging them, does without.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rqlab.job import Job, State
from rqlab.storage import Reader, Transaction
from rqlab.storage.place import expiring_place, place

EXPIRING = "expiring/"  # keys of the side entries that stand on the expiring shelves


class Staged:
    """The Transaction of both stores: an overlay of changes on `base`."""

    __slots__ = ("_counted", "base", "changes", "entry_changes", "fresh", "jobs", "tallies")

    def __init__(self, base: Reader) -> None:
        self.base = base
        self.jobs: dict[str, Job | None] = {}  #: the record to keep, or None to forget the job
        self.fresh: set[str] = set()  #: ids of jobs that were not there before: their data must be written
        self.entry_changes: dict[str, tuple[bytes, str | None] | None] = {}
        self.tallies: dict[tuple[str, str], int] = {}
        self.changes: list[Any] = []
        self._counted: dict[str, Mapping[str, int]] = {}

    # What can be asked.

    def get(self, job_id: str) -> Job | None:
        if job_id in self.jobs:
            return self.jobs[job_id]
        return self.base.get(job_id)

    def load(self, job: Job) -> Job:
        return self.base.load(job)

    def first(self, start: str, end: str) -> str | None:
        if not self.jobs:
            return self.base.first(start, end)
        jobs = self.scan(start, end, 1)
        return place(jobs[0]) if jobs else None

    def scan(self, start: str, end: str, limit: int, *, backwards: bool = False) -> list[Job]:
        if not self.jobs:
            return self.base.scan(start, end, limit, backwards=backwards)
        below = self.base.scan(start, end, limit + len(self.jobs), backwards=backwards)
        found = [job for job in below if job.id not in self.jobs]
        found += [job for job in self.jobs.values() if job is not None and start <= place(job) < end]
        found.sort(key=place, reverse=backwards)
        return found[:limit]

    def entry(self, key: str) -> bytes | None:
        if key in self.entry_changes:
            staged = self.entry_changes[key]
            return None if staged is None else staged[0]
        return self.base.entry(key)

    def entries(self, start: str, end: str, limit: int) -> list[tuple[str, bytes]]:
        if not self.entry_changes:
            return self.base.entries(start, end, limit)
        raise AssertionError("a transaction lists side entries before it changes any")

    def counters(self, queue: str) -> Mapping[str, int]:
        if not self.tallies:
            return self.counters_before(queue)
        counters = dict(self.counters_before(queue))
        for (tallied, name), amount in self.tallies.items():
            if tallied == queue:
                counters[name] = counters.get(name, 0) + amount
        return counters

    def counters_before(self, queue: str) -> Mapping[str, int]:
        """The queue's counters without the tallies of this transaction; read once."""
        found = self._counted.get(queue)
        if found is None:
            found = self._counted[queue] = self.base.counters(queue)
        return found

    # What can be changed.

    def put(self, job: Job, replacing: Job | None = None) -> None:
        self.jobs[job.id] = job
        if replacing is None:
            self.fresh.add(job.id)
        count_in(self, job, replacing)

    def put_new(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.jobs[job.id] = job
            self.fresh.add(job.id)
        count_new(self, jobs)

    def delete(self, job: Job) -> None:
        self.jobs[job.id] = None
        count_out(self, job)

    def put_entry(self, key: str, value: bytes, place: str | None = None) -> None:
        self.entry_changes[key] = (value, place)

    def delete_entry(self, key: str) -> None:
        self.entry_changes[key] = None

    def tally(self, queue: str, name: str, amount: int = 1) -> None:
        key = (queue, name)
        self.tallies[key] = self.tallies.get(key, 0) + amount

    def emit(self, change: Any) -> None:
        self.changes.append(change)

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be stored."""
        return not (self.jobs or self.entry_changes or self.tallies)


def count_in(tx: Transaction, job: Job, replacing: Job | None) -> None:
    """What goes with a record that is put, in every store: its state's count, and its place among the expiring."""
    if replacing is None:
        tx.tally(job.queue, job.state)
        if job.expires_at is not None:
            tx.put_entry(EXPIRING + job.id, b"", expiring_place(job))
        return
    if replacing.state is not job.state:
        tx.tally(job.queue, replacing.state, -1)
        tx.tally(job.queue, job.state)
    if replacing.expires_at is not None and job.expires_at is None:
        tx.delete_entry(EXPIRING + job.id)


def count_new(tx: Transaction, jobs: Sequence[Job]) -> None:
    """The same for many new jobs: one tally a queue and state."""
    counts: dict[tuple[str, State], int] = {}
    for job in jobs:
        key = (job.queue, job.state)
        counts[key] = counts.get(key, 0) + 1
        if job.expires_at is not None:
            tx.put_entry(EXPIRING + job.id, b"", expiring_place(job))
    for (queue, state), count in counts.items():
        tx.tally(queue, state, count)


def count_out(tx: Transaction, job: Job) -> None:
    """The same for a job that is deleted."""
    tx.tally(job.queue, job.state, -1)
    if job.expires_at is not None:
        tx.delete_entry(EXPIRING + job.id)
