"""A store in this process's memory: nothing survives the process. For tests, notebooks, simulations, and speed.

A transaction changes the store in place and keeps a journal of what was there before; work that raises is undone from
it. A KeyboardInterrupt may land inside any change: the journal it leaves is undone by whoever comes next, so an
interrupted write is stored whole or not at all.
"""

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from rqlab.errors import Reentered, RQLabError, StoreError
from rqlab.job import Job
from rqlab.storage import Transaction
from rqlab.storage.line import Line
from rqlab.storage.place import place, shelf, turn
from rqlab.storage.staging import count_in, count_new, count_out

T = TypeVar("T")
P = ParamSpec("P")

Entry = tuple[bytes, str | None]  # value and place

ABSENT: Any = object()  # in the journal: the key was not there


_stores: "weakref.WeakSet[MemoryStore]" = weakref.WeakSet()


class MemoryStore:
    """All calls hold one lock; reads are of the newest change."""

    def __init__(self) -> None:
        self.listener: Callable[[list[Any]], None] | None = None
        self._lock = threading.RLock()  # it alone can say that this thread holds it
        self._version = 0
        self._closed = False
        self._jobs: dict[str, Job] = {}
        self._lines: dict[str, Line] = {}  #: by shelf: the places on it
        self._entries: dict[str, Entry] = {}
        self._entry_line = Line()  #: the places of side entries
        self._entry_keys: dict[str, str] = {}  #: by place: whose it is
        self._counters: dict[str, dict[str, int]] = {}
        self._journal: list[tuple[dict[Any, Any], Any, Any]] = []  #: (dict, key, what was there), oldest first
        self._transaction = MemoryTransaction(self)  # one serves all: the lock admits one at a time
        self._closed_as = "the queues are closed: open them again"
        _stores.add(self)

    def write(self, work: Callable[[Transaction], T]) -> T:
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise Reentered
        with self._lock:
            return self._write(work)

    def _write(self, work: Callable[[Transaction], T]) -> T:
        self._refuse_or_undo()
        tx = self._transaction
        tx.changes = []
        try:
            result = work(tx)
        except Exception as error:
            # One that no work raises came from a signal handler, or is a bug: it may come in the middle of any change.
            self._undo(torn=isinstance(error, Reentered) or not isinstance(error, RQLabError))
            raise
        if self._journal:
            self._version += 1
            self._journal.clear()  # from here on it is stored
            if self.listener is not None:
                self.listener(tx.changes)
        return result

    def get(self, job_id: str) -> Job | None:
        return self._read(self._transaction.get, job_id)

    def load(self, job: Job) -> Job:
        return job

    def first(self, start: str, end: str) -> str | None:
        return self._read(self._transaction.first, start, end)

    def scan(self, start: str, end: str, limit: int, *, backwards: bool = False) -> list[Job]:
        return self._read(self._transaction.scan, start, end, limit, backwards=backwards)

    def entry(self, key: str) -> bytes | None:
        return self._read(self._transaction.entry, key)

    def entries(self, start: str, end: str, limit: int) -> list[tuple[str, bytes]]:
        return self._read(self._transaction.entries, start, end, limit)

    def counters(self, queue: str) -> Mapping[str, int]:
        return dict(self._read(self._transaction.counters, queue))

    def count(self, start: str, end: str) -> int:
        return self._read(self._transaction.count, start, end)

    def queues(self) -> list[str]:
        return self._read(self._transaction.queues)

    def changed(self) -> int:
        return self._read(lambda: self._version)

    def flush(self) -> None:
        """Nothing here is ever safe from the end of the process, so there is nothing to wait for."""
        self._read(lambda: None)

    def close(self) -> None:
        self._refuse_if_inside()
        with self._lock:
            self._closed = True

    def _read(self, ask: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise Reentered
        with self._lock:
            self._refuse_or_undo()
            return ask(*args, **kwargs)

    def _refuse_if_inside(self) -> None:
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise Reentered

    def _refuse_or_undo(self) -> None:
        if self._closed:
            raise StoreError(self._closed_as)
        if self._journal:  # its writer was interrupted
            self._undo(torn=True)

    def _undo(self, torn: bool) -> None:
        """Put back what the journal remembers. `torn`: a line may be half changed, so all are made anew."""
        for of, key, before in reversed(self._journal):
            if not torn:
                self._undo_places(of, key, before)
            if before is ABSENT:
                of.pop(key, None)
            else:
                of[key] = before
        if torn:
            self._rebuild_places()
        self._journal.clear()

    def _undo_places(self, of: dict[Any, Any], key: str, before: Any) -> None:
        if of is self._jobs:
            self._move(self._jobs.get(key), None if before is ABSENT else before)
        elif of is self._entries:
            self._move_entry(key, self._entries.get(key), None if before is ABSENT else before)

    def _move(self, old: Job | None, new: Job | None) -> None:
        """Take a job from the place of its old record to that of its new one."""
        if old is not None:
            left = shelf(old.queue, old.state)
            leaves = left + turn(old)
        if new is not None:
            entered = shelf(new.queue, new.state)
            enters = entered + turn(new)
            if old is not None and leaves == enters:
                return
            line = self._lines.get(entered)
            if line is None:
                line = self._lines.setdefault(entered, Line())
            line.add(enters)
        if old is not None:
            self._lines[left].remove(leaves)

    def _move_entry(self, key: str, old: Entry | None, new: Entry | None) -> None:
        leaves = None if old is None else old[1]
        enters = None if new is None else new[1]
        if leaves == enters:
            return
        if leaves is not None:
            del self._entry_keys[leaves]
            self._entry_line.remove(leaves)
        if enters is not None:
            self._entry_keys[enters] = key
            self._entry_line.add(enters)

    def _rebuild_places(self) -> None:
        shelves: dict[str, list[str]] = {}
        for job in self._jobs.values():
            shelves.setdefault(shelf(job.queue, job.state), []).append(place(job))
        self._lines = {at: Line(places) for at, places in shelves.items()}
        self._entry_keys = {at: key for key, (_, at) in self._entries.items() if at is not None}
        self._entry_line = Line(self._entry_keys)


class MemoryTransaction:
    """Reads and changes of a store whose lock is held; each change is journalled before it is made."""

    __slots__ = ("_store", "changes")

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.changes: list[Any] = []

    def get(self, job_id: str) -> Job | None:
        return self._store._jobs.get(job_id)

    def load(self, job: Job) -> Job:
        return job

    def first(self, start: str, end: str) -> str | None:
        return self.first_held(start, end)

    def scan(self, start: str, end: str, limit: int, *, backwards: bool = False) -> list[Job]:
        return self.held(start, end, limit, backwards)

    def first_held(self, start: str, end: str) -> str | None:
        """The first place in memory."""
        line = self._line(start)
        return None if line is None else line.first(start, end)

    def held(self, start: str, end: str, limit: int, backwards: bool = False) -> list[Job]:
        """The jobs in memory."""
        line = self._line(start)
        if line is None:
            return []
        jobs = self._store._jobs
        if limit == 1 and not backwards:  # a pull of one job
            at = line.first(start, end)
            return [] if at is None else [jobs[at.rpartition("/")[2]]]
        places = line.run_backwards(start, end, limit) if backwards else line.run(start, end, limit)
        return [jobs[at.rpartition("/")[2]] for at in places]

    def entry(self, key: str) -> bytes | None:
        entry = self._store._entries.get(key)
        return None if entry is None else entry[0]

    def entries(self, start: str, end: str, limit: int) -> list[tuple[str, bytes]]:
        store = self._store
        keys = [store._entry_keys[at] for at in store._entry_line.run(start, end, limit)]
        return [(key, store._entries[key][0]) for key in keys]

    def counters(self, queue: str) -> Mapping[str, int]:
        return self._store._counters.get(queue, {})

    def count(self, start: str, end: str) -> int:
        line = self._line(start)
        return 0 if line is None else line.count(start, end)

    def queues(self) -> list[str]:
        return sorted(queue for queue, counters in self._store._counters.items() if counters)

    def put(self, job: Job, replacing: Job | None = None) -> None:
        self.keep(job.id, job)
        if replacing is None and job.expires_at is None:
            self.tally(job.queue, job.state)  # all that count_in would do
        else:
            count_in(self, job, replacing)

    def put_new(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.keep(job.id, job)
        count_new(self, jobs)

    def delete(self, job: Job) -> None:
        self.keep(job.id, None)
        count_out(self, job)

    def put_entry(self, key: str, value: bytes, place: str | None = None) -> None:
        store, new = self._store, (value, place)
        old = store._entries.get(key)
        store._journal.append((store._entries, key, ABSENT if old is None else old))
        store._move_entry(key, old, new)
        store._entries[key] = new

    def delete_entry(self, key: str) -> None:
        store = self._store
        old = store._entries.get(key)
        if old is not None:
            store._journal.append((store._entries, key, old))
            store._move_entry(key, old, None)
            del store._entries[key]

    def tally(self, queue: str, name: str, amount: int = 1) -> None:
        store = self._store
        counters = store._counters.get(queue)
        if counters is None:
            counters = store._counters.setdefault(queue, {})
        before = counters.get(name, ABSENT)
        store._journal.append((counters, name, before))
        counters[name] = amount if before is ABSENT else before + amount

    def emit(self, change: Any) -> None:
        self.changes.append(change)

    def _line(self, start: str) -> Line | None:
        lines = self._store._lines
        line = lines.get(start)  # most look at all of a shelf
        return lines.get(_shelf_of(start)) if line is None else line

    def keep(self, job_id: str, new: Job | None) -> None:
        """Change the record of a job, and where it stands; None takes it out. It is not counted."""
        store = self._store
        old = store._jobs.get(job_id)
        store._journal.append((store._jobs, job_id, ABSENT if old is None else old))
        store._move(old, new)
        if new is None:
            store._jobs.pop(job_id, None)
        else:
            store._jobs[job_id] = new


def _shelf_of(place: str) -> str:
    """`ready/emails/` of `ready/emails/32767/0193…`; a done place has one part more."""
    parts = place.split("/", 3)
    return "/".join((*parts[: 3 if parts[0] == "done" else 2], ""))


def _close_in_a_fork() -> None:
    """A thread of the parent may have held the lock, and is not here to let go; and what a copy does, nobody sees."""
    for store in list(_stores):
        store._lock = threading.RLock()
        store._closed = True
        store._closed_as = "queues in memory are the process's that made them: this is its fork, make queues of its own"


os.register_at_fork(after_in_child=_close_in_a_fork)
