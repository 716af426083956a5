"""Where jobs are kept. A store keeps, orders, finds and counts jobs; it knows no rule about them.

Two rules hold for every store. All changes of one `write(work)` are stored, or none; and what a place says about the
order of jobs is the order in which `scan` gives them. `tests/test_stores.py` holds every implementation to this.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from rqlab.job import Job

T = TypeVar("T")

FORMAT = 1  # what this version writes; a higher number in a directory is refused with FormatTooNew


class Reader(Protocol):
    """What can be asked of a store, and of a transaction, which also sees its own changes."""

    def get(self, job_id: str) -> Job | None:
        """The record of a job; its data may be apart, see `load`."""

    def load(self, job: Job) -> Job:
        """The same record with its data, if that is kept apart."""

    def first(self, start: str, end: str) -> str | None:
        """The first place in [start, end), without reading the job that stands there."""

    def scan(self, start: str, end: str, limit: int, *, backwards: bool = False) -> list[Job]:
        """Up to `limit` jobs whose places lie in [start, end), in their order; `backwards` from the end."""

    def entry(self, key: str) -> bytes | None:
        """The value of a side entry: unique keys, schedules, pauses, settings."""

    def entries(self, start: str, end: str, limit: int) -> list[tuple[str, bytes]]:
        """Up to `limit` side entries whose places lie in [start, end), in their order."""

    def counters(self, queue: str) -> Mapping[str, int]:
        """The queue's counters: jobs by state, and running totals. Empty for a queue that never had a job."""


class Transaction(Reader, Protocol):
    """The changes of one piece of work; nobody else sees them before all of them are stored."""

    def put(self, job: Job, replacing: Job | None = None) -> None:
        """Keep this record, and count it; `replacing` is the record it follows, None for a new job."""

    def put_new(self, jobs: Sequence[Job]) -> None:
        """Keep these records of new jobs, and count them: what `put` of each does, in fewer steps."""

    def delete(self, job: Job) -> None:
        """Forget this job, and count it out."""

    def put_entry(self, key: str, value: bytes, place: str | None = None) -> None: ...

    def delete_entry(self, key: str) -> None: ...

    def tally(self, queue: str, name: str, amount: int = 1) -> None:
        """Add to one of the queue's counters. They are written once a commit, not once a call."""

    def emit(self, change: Any) -> None:
        """Hand `change` to the store's listener once everything is stored; the store does not look at it."""


class Store(Reader, Protocol):
    """A store keeps its promise from `open` to `close`; calls may come from any thread."""

    #: Gets the emitted changes of each commit, in commit order, while the store is locked: it may not call back.
    listener: Callable[[list[Any]], None] | None

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in a transaction, store its changes, and return what it returned.

        If `work` raises, nothing is changed and the error is raised here. `work` may be run again when the thread that
        ran it was interrupted, so it must not change anything but the transaction.
        """

    def count(self, start: str, end: str) -> int:
        """How many jobs stand in [start, end), counted one by one: for `doctor`, not for a hot path."""

    def queues(self) -> list[str]:
        """The names of the queues that have counters, sorted."""

    def changed(self) -> int:
        """A number that differs from the last one if anybody, here or in another process, may have stored something."""

    def flush(self) -> None:
        """Return when everything stored so far is as safe as the store can make it."""

    def close(self) -> None:
        """Flush and let go. Idempotent; every later call raises StoreError."""


class LaterStore(Store, Protocol):
    """A store that acknowledges a write before it is safe. Its keeper takes what is unsafe, and then stores it."""

    #: Called, perhaps under a lock, when the first unsafe write arrives and when a bound is reached: no calling back.
    on_unsafe: Callable[[], None]

    @property
    def unsafe_writes(self) -> int:
        """Acknowledged writes that a crash would lose now."""

    @property
    def must_hurry(self) -> bool:
        """Whether a bound is reached, so that waiting any longer is against the mode's promise."""

    def take(self) -> None:
        """Fix what is to be stored next: the state at this instant."""

    def store_taken(self) -> None:
        """Store it. If that fails nothing is lost; the error is raised here, and to the next caller who writes."""
