"""A store in this process's memory: nothing survives the process. For tests, notebooks, simulations, and speed.

Its lines are sorted lists, one a shelf (sortedcontainers). A KeyboardInterrupt may land inside a change; the change
waits in `_pending` and is finished by the next call, so an interrupted write is stored whole or not at all.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sortedcontainers import SortedDict, SortedList

from rqlab.errors import StoreError
from rqlab.job import Job
from rqlab.storage import Transaction
from rqlab.storage.place import place
from rqlab.storage.staging import Staged

T = TypeVar("T")


class _Pending:
    """A change that has been decided: applying it twice is the same as applying it once."""

    __slots__ = ("changes", "counters", "staged", "started")

    def __init__(self, staged: Staged, counters: list[tuple[dict[str, int], str, int]]) -> None:
        self.staged = staged
        self.counters = counters  #: absolute values, so that a second application counts nothing twice
        self.changes = staged.changes
        self.started = False


class MemoryStore:
    """All calls hold one lock; reads are of the newest change."""

    def __init__(self) -> None:
        self.listener: Callable[[list[Any]], None] | None = None
        self._lock = threading.Lock()
        self._pending: _Pending | None = None
        self._version = 0
        self._closed = False
        self._jobs: dict[str, Job] = {}
        self._lines: dict[str, SortedList] = {}
        self._entries: dict[str, tuple[bytes, str | None]] = {}
        self._entry_places: SortedDict = SortedDict()
        self._counters: dict[str, dict[str, int]] = {}
        self._raw = _Raw(self)

    def write(self, work: Callable[[Transaction], T]) -> T:
        with self._lock:
            self._settle()
            staged = Staged(self._raw)
            result = work(staged)
            if staged.is_empty:
                return result
            self._pending = _Pending(staged, self._absolute(staged))
            self._settle()
            return result

    def get(self, job_id: str) -> Job | None:
        with self._lock:
            self._settle()
            return self._jobs.get(job_id)

    def load(self, job: Job) -> Job:
        return job

    def first(self, start: str, end: str) -> str | None:
        with self._lock:
            self._settle()
            return self._raw.first(start, end)

    def scan(self, start: str, end: str, limit: int, *, backwards: bool = False) -> list[Job]:
        with self._lock:
            self._settle()
            return self._raw.scan(start, end, limit, backwards=backwards)

    def entry(self, key: str) -> bytes | None:
        with self._lock:
            self._settle()
            return self._raw.entry(key)

    def entries(self, start: str, end: str, limit: int) -> list[tuple[str, bytes]]:
        with self._lock:
            self._settle()
            return self._raw.entries(start, end, limit)

    def counters(self, queue: str) -> Mapping[str, int]:
        with self._lock:
            self._settle()
            return dict(self._raw.counters(queue))

    def count(self, start: str, end: str) -> int:
        with self._lock:
            self._settle()
            line = self._lines.get(_shelf_of(start))
            return 0 if line is None else line.bisect_left(end) - line.bisect_left(start)

    def queues(self) -> list[str]:
        with self._lock:
            self._settle()
            return sorted(self._counters)

    def changed(self) -> int:
        return self._version

    def flush(self) -> None:
        """Nothing here is ever safe from the end of the process, so there is nothing to wait for."""

    def close(self) -> None:
        self._closed = True

    def _absolute(self, staged: Staged) -> list[tuple[dict[str, int], str, int]]:
        totals = []
        for (queue, name), amount in staged.tallies.items():
            counters = self._counters.get(queue)
            if counters is None:
                counters = self._counters.setdefault(queue, {})
            totals.append((counters, name, counters.get(name, 0) + amount))
        return totals

    def _settle(self) -> None:
        """Apply the change that was decided: the one just now, or one whose writer was interrupted."""
        if self._closed:
            raise StoreError("the queues are closed: open them again")
        pending = self._pending
        if pending is None:
            return
        if pending.started:
            self._apply(pending.staged, move=False)
            self._rebuild_lines()
        else:
            pending.started = True
            self._apply(pending.staged, move=True)
        for counters, name, value in pending.counters:
            counters[name] = value
        self._version += 1
        changes, pending.changes = pending.changes, []
        if changes and self.listener is not None:
            self.listener(changes)
        self._pending = None

    def _apply(self, staged: Staged, move: bool) -> None:
        jobs = self._jobs
        for job_id, job in staged.jobs.items():
            if move:
                self._move(jobs.get(job_id), job)
            if job is None:
                jobs.pop(job_id, None)
            else:
                jobs[job_id] = job
        for key, entry in staged.entry_changes.items():
            self._put_entry(key, entry)

    def _move(self, old: Job | None, new: Job | None) -> None:
        leaves = None if old is None else place(old)
        enters = None if new is None else place(new)
        if leaves == enters:
            return
        if leaves is not None:
            self._lines[_shelf_of(leaves)].discard(leaves)
        if enters is not None:
            shelf = _shelf_of(enters)
            line = self._lines.get(shelf)
            if line is None:
                line = self._lines.setdefault(shelf, SortedList())
            line.add(enters)

    def _put_entry(self, key: str, entry: tuple[bytes, str | None] | None) -> None:
        old = self._entries.get(key)
        if old is not None and old[1] is not None:
            self._entry_places.pop(old[1], None)
        if entry is None:
            self._entries.pop(key, None)
        else:
            self._entries[key] = entry
            if entry[1] is not None:
                self._entry_places[entry[1]] = key

    def _rebuild_lines(self) -> None:
        """An interrupt inside a sorted list may leave it torn; the records say what stands where."""
        shelves: dict[str, list[str]] = {}
        for job in self._jobs.values():
            shelves.setdefault(_shelf_of(place(job)), []).append(place(job))
        self._lines = {shelf: SortedList(places) for shelf, places in shelves.items()}
        self._entry_places = SortedDict({at: key for key, (_, at) in self._entries.items() if at is not None})


class _Raw:
    """What a transaction reads: the store under a lock that is already held."""

    __slots__ = ("_store",)

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def get(self, job_id: str) -> Job | None:
        return self._store._jobs.get(job_id)

    def load(self, job: Job) -> Job:
        return job

    def first(self, start: str, end: str) -> str | None:
        line = self._store._lines.get(_shelf_of(start))
        if not line:
            return None
        index = line.bisect_left(start)
        return line[index] if index < len(line) and line[index] < end else None

    def scan(self, start: str, end: str, limit: int, *, backwards: bool = False) -> list[Job]:
        line = self._store._lines.get(_shelf_of(start))
        if not line:
            return []
        jobs = self._store._jobs
        places = line.irange(start, end, inclusive=(True, False), reverse=backwards)
        return [jobs[at[-36:]] for at, _ in zip(places, range(limit), strict=False)]

    def entry(self, key: str) -> bytes | None:
        entry = self._store._entries.get(key)
        return None if entry is None else entry[0]

    def entries(self, start: str, end: str, limit: int) -> list[tuple[str, bytes]]:
        store = self._store
        places = store._entry_places.irange(start, end, inclusive=(True, False))
        keys = [store._entry_places[at] for at, _ in zip(places, range(limit), strict=False)]
        return [(key, store._entries[key][0]) for key in keys]

    def counters(self, queue: str) -> Mapping[str, int]:
        return self._store._counters.get(queue, {})


def _shelf_of(place: str) -> str:
    """`ready/emails/` of `ready/emails/32767/0193…`; a done place has one part more."""
    cut = place.index("/", place.index("/") + 1)
    if place.startswith("done/"):
        cut = place.index("/", cut + 1)
    return place[: cut + 1]
