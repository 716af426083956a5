"""Memory in front, a directory behind: calls are answered from memory, and snapshots of what changed are stored.

A snapshot is taken under the lock, so it is one instant of the store, and stored outside it in one commit. Live jobs
and side entries are always in memory; finished jobs leave it once they are on the disk, and are then read from there.

What is marked as changed is stored as it then is in memory, so a mark too many does no harm: marks are made before the
change and not undone, and neither an error, an interrupt nor a snapshot that failed forgets one. Only the mark of a
deletion is undone with it, for what is not in memory may stand on the disk.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from rqlab.errors import Reentered, RQLabError, StoreBusy, StoreCorrupt, StoreError
from rqlab.job import FINISHED, Job
from rqlab.storage import Transaction
from rqlab.storage.damage import walk
from rqlab.storage.disk import DiskStore
from rqlab.storage.entries import DATA_APART_BYTES, Step, counter_rows, deletions, job_rows
from rqlab.storage.memory import ABSENT, Entry, MemoryStore, MemoryTransaction
from rqlab.storage.place import LAST, SHELVES, place

T = TypeVar("T")

log = logging.getLogger("rqlab")

BOUND = 4  # times max_dirty: with so many unsafe writes, writers wait
PAGE = 1_000  # finished jobs read from the disk at once
LOAD_PAGE = 5_000  # live jobs read at once as the directory is opened
DROP_PAGE = 500  # finished jobs that leave memory in one hold of the lock
DONE = "done/"  # what the places of finished jobs begin with
LIVE = [shelf for state, shelf in SHELVES.items() if state not in FINISHED]


class Snapshot(NamedTuple):
    """What changed since the one before, as it was at one instant."""

    jobs: dict[str, Job]
    fresh: set[str]  #: the ids of those that no snapshot has stored before
    gone: dict[str, bool]  #: the ids of jobs that were deleted
    entries: dict[str, Entry | None]  #: None for one that was deleted
    counters: dict[str, dict[str, int]]
    writes: int


class HybridStore(MemoryStore):
    """A MemoryStore over a DiskStore, which it owns and closes.

    A snapshot is due when the store's keeper says so, or at `max_dirty` unsafe writes (each change of a job is one). At
    four times as many, writers wait: up to `busy_timeout` seconds, then they get StoreBusy.
    """

    def __init__(self, disk: DiskStore, *, max_dirty: int = 5_000, busy_timeout: float = 30.0) -> None:
        super().__init__()
        self.path: Path = disk.path
        self.disk = disk
        self.max_dirty = max_dirty
        self.busy_timeout = busy_timeout
        self.on_unsafe: Callable[[], None] = lambda: None
        self.make_room: Callable[[], None] = self._wait_for_room
        self._transaction = HybridTransaction(self)
        self._closed_as = f"the queues in {disk.path} are closed: open them again"
        self._bound = BOUND * max_dirty
        self._dirty_jobs: set[str] = set()
        self._dirty_entries: set[str] = set()
        self._dirty_queues: set[str] = set()
        self._dirty_writes = 0
        self._fresh: set[str] = set()
        self._gone: dict[str, bool] = {}
        self._taken: Snapshot | None = None  #: the one that is being stored
        self._snapshots = 0  #: stored so far
        self._stored: list[Snapshot] = []  #: on the disk; their finished jobs may leave memory
        self._storing = threading.RLock()  #: held by whoever stores a snapshot
        self._has_room = threading.Condition(self._lock)
        self._failure: RQLabError | None = None  #: of a snapshot, for the next caller who writes
        self._has_called = False  #: the keeper knows of the writes that are marked
        self._is_closing = False
        try:
            self._load()
        except BaseException:
            disk.close()
            raise

    @property
    def unsafe_writes(self) -> int:
        """Acknowledged writes that a crash would lose now."""
        while True:  # also without the lock: a snapshot that is taken between two looks is not to hide
            taken = self._taken
            writes = self._dirty_writes + (0 if taken is None else taken.writes)
            if taken is self._taken:
                return writes

    @property
    def must_hurry(self) -> bool:
        """Whether so much has changed that the next snapshot is due, whatever the time."""
        return self._dirty_writes >= self.max_dirty

    # What can be asked: live jobs from memory, finished ones also from the disk.

    def get(self, job_id: str) -> Job | None:
        self._refuse_if_inside()
        with self._lock:
            self._refuse_or_undo()
            job = self._jobs.get(job_id)
            if job is not None or self._is_gone(job_id):
                return job
        return self.disk.get(job_id)

    def load(self, job: Job) -> Job:
        return self.disk.load(job)

    def first(self, start: str, end: str) -> str | None:
        if not start.startswith(DONE):
            return super().first(start, end)
        jobs = self.scan(start, end, 1)
        return place(jobs[0]) if jobs else None

    def scan(self, start: str, end: str, limit: int, *, backwards: bool = False) -> list[Job]:
        # Memory first: what leaves it meanwhile has been seen there. The disk is read without the lock, so that a
        # snapshot that is being stored holds up nobody but who asks for finished jobs.
        found = self._read(self._transaction.held, start, end, limit, backwards)
        if not start.startswith(DONE):
            return found
        return _merged(found, self._on_disk(start, end, limit, backwards, self._page), limit, backwards)

    def count(self, start: str, end: str) -> int:
        if not start.startswith(DONE):
            return super().count(start, end)
        return len(self.scan(start, end, 2**31))

    # What can be changed.

    def write(self, work: Callable[[Transaction], T]) -> T:
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise Reentered
        while True:
            with self._lock:
                if self._failure is not None:
                    self._raise_failure()
                if self._is_closing:
                    raise StoreError(self._closed_as)
                before, taken = self._dirty_writes, self._taken
                waiting = 0 if taken is None else taken.writes
                if before + waiting < self._bound:  # unsafe_writes, under the lock
                    result = self._write(work)
                    after = self._dirty_writes
                    break
            self.make_room()
        if (after and not self._has_called) or before < self.max_dirty <= after:
            self.on_unsafe()
            self._has_called = True
        if after + waiting > self._bound:  # a large transaction: it is acknowledged when no more than that is unsafe
            self._wait_for_its_room()
        return result

    def _wait_for_its_room(self) -> None:
        try:
            self.make_room()
        except StoreBusy as error:
            raise StoreBusy(f"{error}. This write is one of them: it is kept, and stored as soon as can be") from error

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise type(failure)(str(failure))

    def _wait_for_room(self) -> None:
        """Wait until a snapshot has been stored."""
        self.on_unsafe()
        with self._lock:
            if not self._has_room.wait_for(self._may_go_on, self.busy_timeout):
                raise StoreBusy(
                    f"cannot write to {self.path}: {self.unsafe_writes:,} writes wait to be stored, no more than "
                    f"{self._bound:,} may ({BOUND} x max_dirty), and no snapshot was stored for all of busy_timeout "
                    f"({self.busy_timeout:g} s)"
                )
            if self._failure is not None:
                self._raise_failure()

    def _may_go_on(self) -> bool:
        return self.unsafe_writes < self._bound or self._failure is not None or self._closed

    # Snapshots.

    def flush(self) -> None:
        """Return when everything stored so far is on the disk; StoreError if it cannot be, and then none is lost."""
        self._refuse_if_closed()  # before the lock: in a fork a thread that is not there may hold it
        self._refuse_if_inside()
        with self._storing:
            self._store_pending()
            self.take()
            self._store_pending()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreError(self._closed_as)

    def _refuse_if_inside(self) -> None:
        super()._refuse_if_inside()
        if self._storing._is_owned():  # type: ignore[attr-defined]
            raise Reentered

    def take(self) -> None:
        """Take a snapshot, unless one waits to be stored: the first of the two steps of a keeper."""
        with self._lock:
            self._refuse_or_undo()
            if self._taken is not None:
                return
            jobs = self._jobs
            snapshot = Snapshot(
                jobs={job_id: jobs[job_id] for job_id in self._dirty_jobs if job_id in jobs},
                fresh=self._fresh,
                gone={job_id: True for job_id in self._gone if job_id not in self._fresh},
                entries={key: self._entries.get(key) for key in self._dirty_entries},
                counters={queue: dict(self._counters.get(queue, {})) for queue in self._dirty_queues},
                writes=self._dirty_writes,
            )
            self._begin_marks(snapshot, set(), set(), set(), set(), {}, 0)

    def _begin_marks(
        self,
        taken: Snapshot | None,
        jobs: set[str],
        entries: set[str],
        queues: set[str],
        fresh: set[str],
        gone: dict[str, bool],
        writes: int,
    ) -> None:
        """Replace the snapshot that is being stored, and all marks. No call, so no interrupt comes between.

        Else a job could be stored and fresh at once, and its deletion would not reach the disk.
        """
        self._taken, self._dirty_jobs, self._dirty_entries, self._dirty_queues = taken, jobs, entries, queues
        self._fresh, self._gone, self._dirty_writes, self._has_called = fresh, gone, writes, False

    def store_taken(self) -> None:
        """Store the snapshot: the second step. Its error is raised here, and to the next caller who writes."""
        self._refuse_if_inside()
        try:
            with self._storing:
                self._store_pending()
        except RQLabError as error:
            with self._lock:
                self._failure = error
                self._has_room.notify_all()
            raise

    def _store_pending(self) -> None:
        snapshot = self._taken
        if snapshot is not None:
            try:
                self.disk.put_rows(*_step(snapshot))
            except RQLabError:
                with self._lock:
                    self._put_back(snapshot)
                raise
            self._stored.append(snapshot)
            with self._lock:
                self._taken = self._failure = None
                self._snapshots += 1
                self._has_room.notify_all()
        while self._stored:
            self._drop_finished(self._stored[0])
            self._stored.pop(0)

    def _put_back(self, snapshot: Snapshot) -> None:
        self._begin_marks(
            None,
            self._dirty_jobs | snapshot.jobs.keys(),
            self._dirty_entries | snapshot.entries.keys(),
            self._dirty_queues | snapshot.counters.keys(),
            self._fresh | snapshot.fresh,
            self._gone | snapshot.gone,
            self._dirty_writes + snapshot.writes,
        )
        self.on_unsafe()

    def _drop_finished(self, snapshot: Snapshot) -> None:
        """Let finished jobs leave memory: they are on the disk, as they are."""
        finished = (job for job in snapshot.jobs.values() if job.is_finished)
        while page := list(islice(finished, DROP_PAGE)):
            with self._lock:
                self._refuse_or_undo()
                for job in page:
                    if self._jobs.get(job.id) is job:
                        self._transaction.keep(job.id, None)
                self._journal.clear()

    # The directory.

    def _load(self) -> None:
        """Live jobs, without data that is kept apart; side entries; counters."""
        names: dict[str, str] = {}
        for start in LIVE:
            for job in walk(self.disk, start, start + LAST, LOAD_PAGE, _warn):
                self._jobs[job.id] = _lean(job, names)
        self._entries.update(self.disk.side_entries())
        self._counters.update({queue: dict(self.disk.counters(queue)) for queue in self.disk.queues()})
        self._rebuild_places()

    def backup(self, target: Path) -> None:
        self.flush()
        self.disk.backup(target)

    def vacuum(self) -> None:
        self.flush()
        self.disk.vacuum()

    def checkpoint(self) -> None:
        self.flush()
        self.disk.checkpoint()

    def close(self) -> None:
        """Flush, and let go. If the flush fails its error is raised and the store stays open: close it again later."""
        if not self._closed:
            try:
                self._is_closing = True  # nobody is acknowledged between the last flush and the end
                self.flush()
                self._let_go()
            except StoreError:
                if self.disk.is_there():
                    raise
                self._let_go()  # nothing can be stored any more where there is no directory
                self.disk.close()
                raise
            finally:
                self._is_closing = False
        self.disk.close()

    def _let_go(self) -> None:
        with self._lock:
            self._closed = True
            self._dirty_writes, self._taken = 0, None
            self._has_room.notify_all()

    # Below: finished jobs that are on the disk only.

    def _is_gone(self, job_id: str) -> bool:
        return job_id in self._gone or (self._taken is not None and job_id in self._taken.gone)

    def _page(self, start: str, end: str, limit: int, backwards: bool) -> tuple[list[Job], list[Job]]:
        """The same without the lock. A snapshot that is stored meanwhile takes its marks away: then look again."""
        while True:
            stored = self._snapshots
            page = self.disk.scan(start, end, limit, backwards=backwards)
            with self._lock:
                if stored == self._snapshots:
                    return page, self._not_superseded(page)

    def page(self, start: str, end: str, limit: int, backwards: bool) -> tuple[list[Job], list[Job]]:
        """Finished jobs as the disk has them, and those of them that are neither in memory nor deleted since."""
        page = self.disk.scan(start, end, limit, backwards=backwards)
        return page, self._not_superseded(page)

    def _not_superseded(self, jobs: list[Job]) -> list[Job]:
        return [job for job in jobs if job.id not in self._jobs and not self._is_gone(job.id)]

    def _on_disk(
        self,
        start: str,
        end: str,
        limit: int,
        backwards: bool,
        turn: Callable[[str, str, int, bool], tuple[list[Job], list[Job]]],
    ) -> list[Job]:
        found: list[Job] = []
        while len(found) < limit:
            page, visible = turn(start, end, min(PAGE, limit - len(found)), backwards)
            if not page:
                break
            found += visible
            if backwards:
                end = place(page[-1])
            else:
                start = place(page[-1]) + LAST
        return found


class HybridTransaction(MemoryTransaction):
    """A MemoryTransaction that marks what it changes, and finds finished jobs on the disk."""

    __slots__ = ()

    _store: HybridStore

    def get(self, job_id: str) -> Job | None:
        store = self._store
        job = store._jobs.get(job_id)
        if job is not None or store._is_gone(job_id):
            return job
        return store.disk.get(job_id)

    def load(self, job: Job) -> Job:
        return self._store.disk.load(job)

    def first(self, start: str, end: str) -> str | None:
        if not start.startswith(DONE):
            return self.first_held(start, end)
        jobs = self.scan(start, end, 1)
        return place(jobs[0]) if jobs else None

    def scan(self, start: str, end: str, limit: int, *, backwards: bool = False) -> list[Job]:
        found = self.held(start, end, limit, backwards)
        if not start.startswith(DONE):
            return found
        store = self._store
        return _merged(found, store._on_disk(start, end, limit, backwards, store.page), limit, backwards)

    def put(self, job: Job, replacing: Job | None = None) -> None:
        store = self._store
        store._dirty_jobs.add(job.id)
        store._dirty_writes += 1
        if replacing is None:
            store._fresh.add(job.id)
        super().put(job, replacing)

    def put_new(self, jobs: Sequence[Job]) -> None:
        store, ids = self._store, [job.id for job in jobs]
        store._dirty_jobs.update(ids)
        store._fresh.update(ids)
        store._dirty_writes += len(ids)
        super().put_new(jobs)

    def delete(self, job: Job) -> None:
        store = self._store
        store._dirty_writes += 1
        store._journal.append((store._gone, job.id, ABSENT))
        store._gone[job.id] = True
        super().delete(job)

    def put_entry(self, key: str, value: bytes, place: str | None = None) -> None:
        self._mark_entry(key)
        super().put_entry(key, value, place)

    def delete_entry(self, key: str) -> None:
        self._mark_entry(key)
        super().delete_entry(key)

    def _mark_entry(self, key: str) -> None:
        self._store._dirty_entries.add(key)
        self._store._dirty_writes += 1

    def tally(self, queue: str, name: str, amount: int = 1) -> None:
        store = self._store
        store._dirty_queues.add(queue)
        counters = store._counters.get(queue)  # from here on as in memory: two calls a push through super() cost it 4 %
        if counters is None:
            counters = store._counters.setdefault(queue, {})
        before = counters.get(name, ABSENT)
        store._journal.append((counters, name, before))
        counters[name] = amount if before is ABSENT else before + amount


def _step(snapshot: Snapshot) -> Step:
    """What a snapshot removes, and then stores. In order: marks are sets, and a power cut must fall in one place."""
    entries = sorted(snapshot.entries.items())
    gone = deletions(snapshot.gone)
    gone += [key for key, entry in entries if entry is None]
    rows = [(key, entry[1], entry[0]) for key, entry in entries if entry is not None]
    rows += counter_rows(dict(sorted(snapshot.counters.items())))
    for job_id, job in sorted(snapshot.jobs.items()):
        is_fresh = job_id in snapshot.fresh
        if not is_fresh and len(job.encoded_data) > DATA_APART_BYTES:
            job = replace(job, data_apart=True)  # its data was stored as it was fresh
        rows += job_rows(job, is_fresh)
    return gone, rows


def _merged(found: list[Job], stored: list[Job], limit: int, backwards: bool) -> list[Job]:
    by_id = {job.id: job for job in stored} | {job.id: job for job in found}
    return sorted(by_id.values(), key=place, reverse=backwards)[:limit]


def _lean(job: Job, names: dict[str, str]) -> Job:
    """The same record, holding nothing twice: a third less memory a job.

    As it was decoded it has a name and a queue of its own, and by its data, a view, keeps all that was read.
    """
    return replace(
        job,
        queue=names.setdefault(job.queue, job.queue),
        name=names.setdefault(job.name, job.name),
        encoded_data=job.encoded_data.copy(),
        updated_at=job.created_at if job.updated_at == job.created_at else job.updated_at,
    )


def _warn(at: str, error: StoreCorrupt) -> None:
    log.warning("job %s is damaged and left where it is; rqlab doctor tells more: %s", at.rpartition("/")[2], error)
