"""A store in a directory: one diskcache entry a job, and the job's place in line is the entry's tag.

The only file that knows diskcache and SQLite. It must hold these together:

- One process, one SQLite connection, under one lock: an open transaction is then visible to every thread.
- Callers that wait at the same time share one commit. One of them, the leader, runs everybody's work in one transaction
  and hands each its own result or error (group commit). An interrupt may hit the leader anywhere. So locks and the
  transaction are held by `with` and `finally` that end in C, where none can come between; and what was committed is
  kept in `_batch` until it is handed out, if need be by whoever comes next.
- Between processes, whoever writes, checkpoints or closes holds `flock` on `write.lock`. SQLite's own busy handler
  sleeps up to 100 ms between looks, and starves.
- Only bytes and text, inside SQLite: nothing is ever unpickled, nothing lives in a file that nobody fsyncs.
"""

import contextlib
import os
import sqlite3
import sys
import threading
import urllib.parse
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import diskcache
import msgspec
from diskcache.core import DEFAULT_SETTINGS, METADATA, MODE_RAW
from msgspec.structs import replace

from rqlab.errors import (
    FormatTooNew,
    RQLabError,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
)
from rqlab.job import NULL, Job
from rqlab.storage import FORMAT, Transaction
from rqlab.storage.locks import Lock, file_error, network_file_system, own
from rqlab.storage.place import LAST, SHELVES, place
from rqlab.storage.staging import Staged

T = TypeVar("T")
P = ParamSpec("P")

SETTINGS = {
    "eviction_policy": "none",  # diskcache evicts by default; a queue never forgets
    "cull_limit": 0,  # and looks for something to evict at every write
    "size_limit": 2**62,
    "statistics": 0,
    "tag_index": 1,  # the one index that answers every question about order
    "disk_min_file_size": 2**40,  # values of 32 KiB and more would go to files that are never fsynced
    "sqlite_synchronous": 2,  # FULL: an fsync a commit; diskcache's default is NORMAL
    "sqlite_journal_mode": "wal",
    "sqlite_auto_vacuum": 0,  # FULL costs at every delete; `vacuum()` does it when asked
    "sqlite_mmap_size": 0,
    "sqlite_cache_size": 8192,  # pages
}
KNOWN_SETTINGS = DEFAULT_SETTINGS.keys() | METADATA.keys()
DATA_APART_BYTES = 4 * 1024  # larger data is written once, not at every heartbeat (1 MB jobs: 41 cycles/s against 591)
MAX_BATCH = 500  # callers a commit; the others are the next leader's
TAKE_OVER_SECONDS = 0.02  # a waiting caller looks whether the leader is gone (it was interrupted); else it is woken
LOOK_SECONDS = 1.0  # a view waits so long for a writer's commit to end before it goes on beside it
FOREIGN_WRITER_SECONDS = 1.0  # SQLite's own wait; only a program that is not rqlab can hold its lock
#: Entries a statement, largest first; the rest goes in one of 1-9. SQLite runs a statement without Python's lock, and
#: gets it back 5 ms later where another thread computes: an entry a statement made that 4.5 ms an entry, this 14 us.
CHUNKS = (1_000, 100, 10)
COUNTERS = "queue/"  # + queue: the key, and the place, of a queue's counters
DATA = "payload/"  # + job id: data that is kept apart
FORMAT_KEY = "rqlab/format"
DATABASE = "cache.db"  # diskcache's name for it
FULL_BYTES = 64 * 1024  # with less room than this, an I/O error means a full disk
MAX_COMPLAINTS = 10  # of a damaged file; more say no more
KEPT = "what was written before is kept, and tried again"
SQLITE_VERSION = sqlite3.sqlite_version

RANGE = "SELECT mode, value FROM Cache WHERE tag >= ? AND tag < ? ORDER BY tag"
UPSERT = (
    "INSERT INTO Cache(key, raw, store_time, access_time, tag, mode, value) VALUES {}"
    " ON CONFLICT(key, raw) DO UPDATE SET tag = excluded.tag, value = excluded.value"
)
UPSERT_ROW = "(?, 1, 0, 0, ?, 1, ?)"
DELETE = "DELETE FROM Cache WHERE raw = 1 AND key IN ({})"

CHECKPOINT = "PRAGMA wal_checkpoint(TRUNCATE)"
BESIDE_A_WRITER = "readonly_shm=1"
#: A log of this length has no frames: the database is complete without it. A kill at the first commit leaves one, and
#: SQLite, where it may not repair it, waits 10 s for its salts and those of the index to agree.
LOG_HEADER_BYTES = 32
STILL = "immutable=1"

_looking = threading.Lock()  # held by whichever view of this process is looking
FORK_ADVICE = 'Start the child by spawn (multiprocessing.get_context("spawn"), subprocess) and open the directory there'

_inherited: set[tuple[int, int] | None] = set()  # files that this process's parent had open as it forked
_stores: "weakref.WeakSet[DiskStore]" = weakref.WeakSet()
_views: "weakref.WeakSet[ReadOnlyStore]" = weakref.WeakSet()

_encode = msgspec.json.Encoder().encode
_decode_job = msgspec.json.Decoder(Job).decode
_decode_counters = msgspec.json.Decoder(dict[str, int]).decode


class _Bytes(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Keeps text keys and bytes values, and refuses to unpickle: a hostile file must not run code."""

    def put(self, key: str) -> tuple[str, bool]:
        assert isinstance(key, str), "keys are text"
        return key, True

    def get(self, key: Any, raw: bool) -> str:
        if not raw or not isinstance(key, str):
            raise StoreCorrupt(f"expected text as the key of every entry; found {type(key).__name__}, raw={raw}")
        return key

    def store(self, value: bytes, read: bool, key: Any = None) -> tuple[int, int, None, bytes]:
        assert isinstance(value, bytes), "values are bytes"
        return 0, MODE_RAW, None, value

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> bytes:
        return _checked(mode, value)


class _Cache(diskcache.Cache):  # type: ignore[misc]  # diskcache has no types
    """diskcache on the one connection that its store opened; diskcache itself would open one a thread."""

    def __init__(self, directory: str, connection: sqlite3.Connection) -> None:
        self._connection = connection
        if os.path.expandvars(directory) != directory:  # it would make that directory; it needs none from us
            directory = "/"
        super().__init__(directory, timeout=FOREIGN_WRITER_SECONDS, disk=_Bytes, **SETTINGS)

    @property
    def _con(self) -> sqlite3.Connection:
        return self._connection


class Condition(NamedTuple):
    """What a file says of itself, for `doctor`."""

    format: int
    settings: dict[str, Any]  #: as SETTINGS; None for what is not there
    page_bytes: int
    pages: int
    free_pages: int
    wal_bytes: int  #: of the write-ahead log; 0 without one


Row = tuple[str, str | None, bytes]  # key, tag, value


class _Call:
    """One caller's work in the line for the next commit."""

    __slots__ = ("done", "error", "result", "wake", "work")

    def __init__(self, work: Callable[[Transaction], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False  #: the caller may go: result or error is final, or the caller itself gave up
        self.wake = threading.Lock()
        self.wake.acquire()

    def nudge(self) -> None:
        with contextlib.suppress(RuntimeError):  # it was awake already
            self.wake.release()


class Batch:
    """One transaction in the making, and what came of it."""

    __slots__ = ("calls", "changes", "committed", "counters", "error", "steps", "writes", "writes_so_far")

    def __init__(self, calls: list[_Call], counters: dict[str, dict[str, int]]) -> None:
        self.calls = calls
        self.counters = counters
        self.changes: list[Any] = []
        self.steps: list[tuple[list[str], list[Row]]] = []  #: what each call removes, and then stores
        self.writes = 0  #: calls that store something
        self.writes_so_far = 0  #: with those of the batches before it that are not committed either
        self.committed: list[
            Any
        ] = []  #: not empty: its callers may be told; it is on the disk, or nothing is to be stored
        self.error: RQLabError | None = None  #: the transaction itself failed: everybody's error


class _Reads:
    """What can be asked of a directory."""

    def _read(self, ask: Callable[Concatenate["_Raw", P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        raise NotImplementedError

    def get(self, job_id: str) -> Job | None:
        return self._read(_Raw.get, job_id)

    def load(self, job: Job) -> Job:
        return self._read(_Raw.load, job) if job.data_apart else job

    def first(self, start: str, end: str) -> str | None:
        return self._read(_Raw.first, start, end)

    def scan(self, start: str, end: str, limit: int, *, backwards: bool = False) -> list[Job]:
        return self._read(_Raw.scan, start, end, limit, backwards=backwards)

    def entry(self, key: str) -> bytes | None:
        return self._read(_Raw.entry, key)

    def entries(self, start: str, end: str, limit: int) -> list[tuple[str, bytes]]:
        return self._read(_Raw.entries, start, end, limit)

    def counters(self, queue: str) -> Mapping[str, int]:
        return self._read(_Raw.counters, queue)

    def count(self, start: str, end: str) -> int:
        return self._read(_Raw.count, start, end)

    def queues(self) -> list[str]:
        return self._read(_Raw.queues)


class DiskStore(_Reads):
    """A directory of jobs that many processes may open; the disk holds what a returned `write` changed.

    Raises StoreError (or one of its kinds) when the directory cannot be made, locked or read, FormatTooNew when a newer
    rqlab wrote it. `durability` names the mode for the ownership lock; `exclusive` admits no other process.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        busy_timeout: float = 30.0,
        durability: str = "durable",
        exclusive: bool = False,
        allow_network: bool = False,
    ) -> None:
        self.listener: Callable[[list[Any]], None] | None = None
        self.path = Path(path).absolute()  # the program may change its directory
        self._pid = os.getpid()
        self._lead = threading.RLock()  # held by the leader, and by whoever needs the directory alone
        self._lock = threading.Lock()  # held by whoever uses the connection
        self._line: deque[_Call] = deque()
        self._batch: Batch | None = None
        self._version = 0
        self._closed = False
        self._raw = _Raw()
        self._make_directory(allow_network, busy_timeout)
        self._owner = own(self.path, durability, exclusive)
        try:
            self._write_lock = Lock(self.path / "write.lock", busy_timeout)
            self._open()
        except BaseException:
            self._owner.close()
            raise

    # Group commit.

    def write(self, work: Callable[[Transaction], T]) -> T:
        self._refuse_if_closed()  # before any lock: in a fork a thread that is not there may hold them
        call = _Call(work)
        try:
            self._line.append(call)
            while not call.done:
                self._wait(call)
        finally:
            call.done = True  # if the caller was interrupted: nobody waits for this any more
        if call.error is not None:
            raise call.error
        result: T = call.result
        return result

    def write_together(self, works: Sequence[Callable[[Transaction], Any]]) -> list[Any]:
        """Run the work of several callers in one commit; for each its result, or the error that it would have met.

        Group commit does this for callers that happen to wait at the same time; a simulation decides who does.
        """
        self._refuse_if_closed()
        calls = [_Call(work) for work in works]
        self._line.extend(calls)
        for call in calls:
            while not call.done:
                self._wait(call)
        return [call.result if call.error is None else call.error for call in calls]

    def _wait(self, call: _Call) -> None:
        """Lead, or wait until a leader has done this call: it wakes us, or is gone after an interrupt."""
        if not self._lead_if_free(call):
            call.wake.acquire(timeout=TAKE_OVER_SECONDS)

    def _lead_if_free(self, call: _Call) -> bool:
        """Nobody queues for the lead: who was served meanwhile would have to wait for it to get away."""
        try:
            if not self._lead.acquire(blocking=False):
                return False
            if not call.done:
                self._lead_line()
        finally:
            try:  # noqa: SIM105  # nothing that an interrupt could hit may come before this release
                self._lead.release()
            except RuntimeError:
                pass  # we have not got it
        self._call_next()
        return True

    def _lead_line(self) -> None:
        try:
            self._refuse_if_closed()
            try:
                self._write_lock.acquire()
                with self._lock:
                    self._run_line()
            finally:
                self._write_lock.release()
        except RQLabError as error:
            _hand_out_error(list(self._line), error)
        except sqlite3.Error as error:  # of a ROLLBACK, once more
            _hand_out_error(list(self._line), in_our_words(error, self.path))

    def _call_next(self) -> None:
        while self._line:
            try:
                first = self._line[0]
                if not first.done:
                    first.nudge()
                    return
                self._line.remove(first)
            except (IndexError, ValueError):  # another caller has just tidied the same end of the line
                continue

    def _run_line(self) -> None:
        """Run everybody's work in one transaction, then hand out what came of it."""
        self._refuse_if_gone()
        self._settle()
        calls = [call for call in list(self._line)[: self._room()] if not call.done]
        if calls:
            self._batch = Batch(calls, self._counters_so_far())
            self._run(self._batch)
            self._settle()

    def _room(self) -> int:
        """How many callers the next batch may have."""
        return MAX_BATCH

    def _counters_so_far(self) -> dict[str, dict[str, int]]:
        """By queue: the counters that are not written yet."""
        return {}

    def _run(self, batch: Batch) -> None:
        try:
            with self._connection:  # in C: whatever ends this block, an interrupt too, ends in COMMIT or ROLLBACK
                self._connection.execute("BEGIN IMMEDIATE")
                self._run_works(batch)
                self._store(counter_rows(batch.counters))
                # One call into C: no interrupt comes between the commit and the note that it was done.
                batch.committed.extend(map(self._connection.execute, ("COMMIT",)))
        except Exception as error:  # noqa: BLE001  # everybody's, and raised there
            batch.error = in_our_words(error, self.path)

    def _run_works(self, batch: Batch) -> None:
        self._raw.pending = batch.counters
        for call in batch.calls:
            self._run_work(call, batch)

    def _run_work(self, call: _Call, batch: Batch) -> None:
        staged = Staged(self._raw)
        try:
            call.result = call.work(staged)
            call.error = None
            step = _step(staged)
            totals = self._totals(staged)
        except sqlite3.Error:
            raise
        except Exception as error:  # noqa: BLE001  # it is the caller's, and raised there
            call.error = error
            return
        if staged.is_empty:
            batch.changes += staged.changes
            return
        self._apply(step)
        batch.counters.update(totals)
        batch.changes += staged.changes
        batch.steps.append(step)
        batch.writes += 1

    def _apply(self, step: tuple[list[str], list[Row]]) -> None:
        gone, rows = step
        for chunk in _chunks(gone):
            self._connection.execute(DELETE.format(", ".join("?" * len(chunk))), chunk)
        self._store(rows)

    def _store(self, rows: list[Row]) -> None:
        for chunk in _chunks(rows):
            values = ", ".join((UPSERT_ROW,) * len(chunk))
            self._connection.execute(UPSERT.format(values), tuple(chain.from_iterable(chunk)))

    def _totals(self, staged: Staged) -> dict[str, dict[str, int]]:
        """The counters of the queues that this work touched, as they are after it."""
        totals: dict[str, dict[str, int]] = {}
        for (queue, name), amount in staged.tallies.items():
            counters = totals.get(queue)
            if counters is None:
                counters = totals[queue] = dict(self._raw.counters(queue))
            counters[name] = counters.get(name, 0) + amount
        return totals

    def _settle(self) -> None:
        """Hand out what came of the last batch, wherever its leader was interrupted. The caller holds `_lock`.

        A batch that was neither committed nor failed has left nothing: its calls are still in the line.
        """
        self._mend()
        batch = self._batch
        if batch is None:
            return
        self._raw.pending = self._counters_so_far()
        if batch.error is not None:
            _hand_out_error(batch.calls, batch.error)
        elif batch.committed:
            self._hand_out(batch)
        self._batch = None

    def _mend(self) -> None:
        """End what a ROLLBACK that failed has left: nothing of it may be seen, or committed."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _hand_out(self, batch: Batch) -> None:
        if batch.writes:
            self._version += 1
        changes, batch.changes = batch.changes, []
        if changes and self.listener is not None:
            self.listener(changes)
        for call in batch.calls:
            call.done = True
            call.nudge()

    def put_rows(self, gone: list[str], rows: list[Row]) -> None:
        """Remove and store these entries, as they are, in one commit. For the store whose snapshots this one keeps."""
        self._refuse_if_closed()
        with self._lead:
            try:
                self._write_lock.acquire()
                with self._lock:
                    self._refuse_if_gone()
                    self._settle()
                    with self._connection:
                        self._connection.execute("BEGIN IMMEDIATE")
                        self._apply((gone, rows))
            except sqlite3.Error as error:
                raise in_our_words(error, self.path, "store a snapshot in", KEPT) from error
            finally:
                self._write_lock.release()

    def side_entries(self) -> dict[str, tuple[bytes, str | None]]:
        """All entries that are neither jobs, nor their data, nor counters: key -> (value, place)."""
        return self._read(_side_entries)

    def changed(self) -> int:
        self._refuse_if_gone()  # the one look that an idle worker takes
        return self._read(_Raw.data_version) + self._version

    def _read(self, ask: Callable[Concatenate["_Raw", P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Ask while nobody else uses the connection.

        Not a context manager written in Python: an interrupt as it begins or ends would leave the lock held.
        """
        self._refuse_if_closed()
        with self._lock:
            try:
                self._refuse_if_closed()
                self._settle()
                return ask(self._raw, *args, **kwargs)
            except sqlite3.Error as error:
                raise in_our_words(error, self.path, "read") from error

    # The directory's life.

    def _make_directory(self, allow_network: bool, busy_timeout: float) -> None:
        kind = network_file_system(self.path)
        if kind is not None and not allow_network:
            raise StoreError(
                f"cannot open {self.path}: it lies on a network file system ({kind}), where neither flock nor SQLite's "
                "WAL holds between machines. Use a local disk; if one machine alone uses it, pass "
                "allow_network_filesystem=True"
            )
        try:
            _make_safely(self.path)
        except OSError as error:
            raise file_error(f"cannot make the directory {self.path}", error) from error
        is_whole = not (self.path / f"{DATABASE}-journal").exists()  # else it was cut as it was made: _open mends it
        if (self.path / DATABASE).is_file() and is_whole:  # look before anything is touched: it may not be ours
            try:
                ReadOnlyStore(self.path, min(busy_timeout, LOOK_SECONDS), may_be_empty=True).close()
            except (FormatTooNew, StoreCorrupt):
                raise
            except StoreError:
                pass  # what keeps a view out, a writer may mend

    def _open(self) -> None:
        """Let diskcache set itself up in one transaction: a power cut in the middle leaves nothing half made."""
        connection, is_open = None, False
        _refuse_what_a_fork_inherited(self.path)
        try:
            with _looking:  # taken before write.lock, as views do
                self._write_lock.acquire()
                for view in list(_views):  # SQLite would give this process's writer a view's read-only shared memory
                    view.let_go()
                with contextlib.suppress(FileExistsError):  # SQLite would make it readable for all
                    os.close(os.open(self.path / DATABASE, os.O_CREAT | os.O_EXCL, 0o600))
                connection = sqlite3.connect(
                    self.path / DATABASE, timeout=FOREIGN_WRITER_SECONDS, isolation_level=None, check_same_thread=False
                )
                self._connection = connection
                self._raw.sql = connection.execute
                check_format(self._raw, self.path, may_be_empty=True)
                _set_pragmas(connection)
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                self._cache = _Cache(str(self.path), connection)
                self._cache._txn_id = threading.get_ident()
                if self._cache.get(FORMAT_KEY) is None:
                    self._cache.set(FORMAT_KEY, b"%d" % FORMAT)
                self._cache._txn_id = None
            self._file = _identity(self.path / DATABASE)
            _stores.add(self)
            is_open = True
        except OSError as error:
            raise file_error(f"cannot open {self.path}", error) from error
        except (sqlite3.Error, diskcache.Timeout) as error:
            raise in_our_words(error, self.path, "open") from error
        finally:
            if connection is not None and not is_open:
                connection.close()
            self._write_lock.release()

    def is_there(self) -> bool:
        return _identity(self.path / DATABASE) == self._file

    def _refuse_if_gone(self) -> None:
        """SQLite would go on in a file that has been removed, and all of it would be lost at the end."""
        if not self.is_there():
            raise StoreError(
                f"the directory {self.path} was removed or replaced while these queues had it open: nothing more is "
                "stored in it. Close them and open the directory again; stop workers before you remove a directory"
            )

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreError(f"the queues in {self.path} are closed: open them again")
        _refuse_in_a_fork(self._pid)

    def flush(self) -> None:
        """Every write is on the disk before it returns, so there is nothing to wait for."""
        self._refuse_if_closed()

    def vacuum(self) -> None:
        """Give the space of removed jobs back to the file system. Others wait meanwhile."""
        self._alone("VACUUM", CHECKPOINT)  # what VACUUM has written is in the log until then

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the database file and empty it."""
        self._alone(CHECKPOINT)

    def _alone(self, *statements: str) -> None:
        self._refuse_if_closed()
        with self._lead:
            self._refuse_if_closed()
            try:
                self._write_lock.acquire()
                for statement in statements:
                    self._read(_Raw.run, statement)
            finally:
                self._write_lock.release()

    def backup(self, target: Path) -> None:
        """Copy the database, as it is at one instant, into a new directory; writers go on meanwhile."""
        self._refuse_if_closed()
        unfinished = target / "cache.db-unfinished"
        try:
            _make_safely(target)
            for found in target.iterdir():
                if not found.name.startswith(unfinished.name):  # it, or SQLite's journal of it: a kill cut it short
                    raise StoreError(f"cannot back up to {target}: expected an empty directory; found {found.name}")
                found.unlink()
            with (
                contextlib.closing(_connect_read_only(self.path, BESIDE_A_WRITER)) as source,
                contextlib.closing(sqlite3.connect(unfinished)) as copy,
            ):
                source.backup(copy)
            unfinished.rename(target / DATABASE)
            _fsync_directory(target)
        except OSError as error:
            raise file_error(f"cannot back up to {target}", error) from error
        except sqlite3.Error as error:
            raise in_our_words(error, target, "back up to") from error

    def close(self) -> None:
        if os.getpid() != self._pid:
            return  # a fork has nothing of it to let go: the locks and the connection are its parent's
        with self._lead:
            try:
                if not self._closed:
                    # The last to close writes the log back. Where the lock stays busy, others are there to do that.
                    with contextlib.suppress(StoreBusy):
                        self._write_lock.acquire()
                    self._read(lambda raw: None)  # settles what an interrupt has left
            finally:  # a second call finishes what an interrupt broke off
                self._closed = True
                self._connection.close()
                self._write_lock.close()
                self._owner.close()


class ReadOnlyStore(_Reads):
    """A look at a directory beside whoever uses it: sees what is on the disk, writes nothing, not even its `-shm`.

    While there is a write-ahead log, SQLite reads beside its writer through shared memory that it may not change. There
    is none after a clean close; then the file is complete, and stays as it is while we share `write.lock`: each look
    opens it anew as immutable. (SQLite's plain `mode=ro` makes both files, leaves them, and fails where it may not.)

    Raises StoreError if there is no rqlab directory at `path`: looking creates nothing.
    """

    def __init__(
        self, path: str | os.PathLike[str], busy_timeout: float = LOOK_SECONDS, *, may_be_empty: bool = False
    ) -> None:
        self.listener: Callable[[list[Any]], None] | None = None
        self.path = Path(path).absolute()  # the program may change its directory
        self._pid = os.getpid()
        self._closed = False
        self._connection: sqlite3.Connection | None = None  # beside a writer; a still file is opened at each look
        self._raw = _Raw()
        self._log = self.path / f"{DATABASE}-wal"
        _refuse_what_a_fork_inherited(self.path)
        if not (self.path / DATABASE).is_file():
            raise StoreError(f"cannot read {self.path}: expected a directory that rqlab has made; found none")
        self._write_lock = Lock(self.path / "write.lock", busy_timeout, only_look=True)
        _views.add(self)
        try:
            self._read(lambda raw: check_format(raw, self.path, may_be_empty))
        except BaseException:
            self.close()
            raise

    def write(self, work: Callable[[Transaction], T]) -> T:
        raise StoreError(f"{self.path} was opened with read_only=True: open it without to change anything")

    def changed(self) -> int:
        version = self._read(_Raw.data_version)  # it counts while one connection lives
        return version if self._connection is not None else -(self.path / DATABASE).stat().st_mtime_ns

    def _read(self, ask: Callable[Concatenate["_Raw", P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        _refuse_in_a_fork(self._pid)
        with _looking:
            if self._closed:
                raise StoreError(f"the view of {self.path} is closed: open it again")
            try:
                if self._connection is None:
                    try:
                        if not self._join_writer():
                            return self._read_still(ask, *args, **kwargs)
                    finally:
                        self._write_lock.release()
                return ask(self._raw, *args, **kwargs)
            except sqlite3.Error as error:
                raise in_our_words(error, self.path, "read") from error

    def _join_writer(self) -> bool:
        """Share `write.lock`, so that no log comes or goes meanwhile, and connect beside the log if there is one.

        From its first read on the connection keeps the log: no writer that leaves takes it away.
        """
        try:
            self._write_lock.acquire()
        except StoreBusy:  # a writer that was stopped in the middle; its log stays
            if not self._log.exists():
                raise
        log_bytes = _size(self._log)
        has_index = self._log.with_name(f"{DATABASE}-shm").exists()
        if has_index and self._log.exists() and log_bytes != LOG_HEADER_BYTES:
            self._connect(BESIDE_A_WRITER)
            self._raw.data_version()
        elif log_bytes > LOG_HEADER_BYTES:
            raise StoreError(
                f"cannot read {self.path}: its {self._log.name} has lost its {DATABASE}-shm, by a copy or a power cut; "
                "open it once without read_only=True"
            )
        return self._connection is not None

    def _connect(self, how: str) -> None:
        self._connection = _connect_read_only(self.path, how)
        self._raw.sql = self._connection.execute

    def _read_still(self, ask: Callable[Concatenate["_Raw", P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            self._connect(STILL)
            return ask(self._raw, *args, **kwargs)
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Close the connection, if there is one; the next look makes another. The caller holds `_looking`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def flush(self) -> None:
        """There is nothing to flush."""
        self._read(lambda raw: None)

    def close(self) -> None:
        if os.getpid() == self._pid:
            with _looking:
                self._closed = True
                self.let_go()
            self._write_lock.close()

    # For `doctor`.

    @contextlib.contextmanager
    def at_one_instant(self) -> Iterator[None]:
        """All reads in this block see the directory as it was at the first of them, whoever writes meanwhile.

        Writers that come to a directory that nobody had open wait for its end.
        """
        still = False
        try:
            with _looking:
                still = self._connection is None and not self._join_writer()
                if still:
                    self._connect(STILL)
                else:
                    self._write_lock.release()
            self._read(_Raw.run, "BEGIN")
            yield
        finally:
            if self._connection is not None and self._connection.in_transaction:  # damage may have ended it
                self._read(_Raw.run, "ROLLBACK")
            if still:
                with _looking:
                    self.let_go()
            self._write_lock.release()

    def condition(self) -> Condition:
        """What SQLite says of the file, and how diskcache was told to keep it."""
        return self._read(_condition, _size(self._log))

    def complaints(self) -> list[str]:
        """What SQLite finds wrong with the file, reading all of it; empty if nothing is."""
        return self._read(_complaints)


class _Raw:
    """The reads, on a connection whose lock is already held."""

    __slots__ = ("pending", "sql")

    sql: Callable[..., sqlite3.Cursor]

    def __init__(self) -> None:
        self.pending: dict[str, dict[str, int]] = {}  #: counters of the batch under way, not yet written

    def get(self, job_id: str) -> Job | None:
        record = self.entry(job_id)
        return None if record is None else _job(record)

    def load(self, job: Job) -> Job:
        if not job.data_apart or len(job.encoded_data) > DATA_APART_BYTES:
            return job
        data = self.entry(DATA + job.id)
        if data is None:
            raise StoreCorrupt(f"job {job.id} has lost its data: expected the entry {DATA + job.id}, found none")
        return replace(job, encoded_data=msgspec.Raw(data))

    def first(self, start: str, end: str) -> str | None:
        row = self.sql("SELECT tag FROM Cache WHERE tag >= ? AND tag < ? ORDER BY tag LIMIT 1", (start, end)).fetchone()
        return None if row is None else str(row[0])

    def scan(self, start: str, end: str, limit: int, *, backwards: bool = False) -> list[Job]:
        order = " DESC" if backwards else ""
        return [_job(_checked(*row)) for row in self.sql(f"{RANGE}{order} LIMIT ?", (start, end, limit)).fetchall()]

    def entry(self, key: str) -> bytes | None:
        row = self.sql("SELECT mode, value FROM Cache WHERE key = ? AND raw = 1", (key,)).fetchone()
        return None if row is None else _checked(*row)

    def entries(self, start: str, end: str, limit: int) -> list[tuple[str, bytes]]:
        query = "SELECT key, mode, value FROM Cache WHERE tag >= ? AND tag < ? ORDER BY tag LIMIT ?"
        return [(str(key), _checked(mode, value)) for key, mode, value in self.sql(query, (start, end, limit))]

    def counters(self, queue: str) -> Mapping[str, int]:
        pending = self.pending.get(queue)
        if pending is not None:
            return pending
        value = self.entry(COUNTERS + queue)
        return {} if value is None else _decoded(_decode_counters, value)

    def count(self, start: str, end: str) -> int:
        return int(self.sql("SELECT COUNT(*) FROM Cache WHERE tag >= ? AND tag < ?", (start, end)).fetchone()[0])

    def data_version(self) -> int:
        """SQLite's number that differs when another connection has committed."""
        return int(self.sql("PRAGMA data_version").fetchone()[0])

    def run(self, statement: str) -> None:
        self.sql(statement).fetchall()

    def queues(self) -> list[str]:
        rows = self.sql("SELECT key FROM Cache WHERE tag >= ? AND tag < ? ORDER BY tag", (COUNTERS, COUNTERS + LAST))
        stored = {str(key).removeprefix(COUNTERS) for (key,) in rows}
        return sorted(stored.union(self.pending))


def _make_safely(path: Path) -> None:
    """Make a directory whose name survives a power cut: SQLite syncs the names in it, nobody its own.

    The parent of a directory that is there but has no database is synced too: whoever made it may have died first.
    """
    path = path.absolute()
    if (path / DATABASE).exists():
        return
    unsafe = [path.parent, *(each.parent for each in path.parents if not each.exists())]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)  # diskcache would make it 0755
    for parent in unsafe:
        with contextlib.suppress(PermissionError):  # it may be entered but not read: then it was there before us
            _fsync_directory(parent)


def _fsync_directory(path: Path) -> None:
    """Make the names of new files in it safe."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _size(path: Path) -> int:
    """In bytes; 0 if there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _side_entries(raw: "_Raw") -> dict[str, tuple[bytes, str | None]]:
    others = [(shelf, shelf + LAST) for shelf in (*SHELVES.values(), COUNTERS)]
    apart = " AND ".join(["NOT (tag >= ? AND tag < ?)"] * len(others))
    query = f"SELECT key, tag, mode, value FROM Cache WHERE (tag IS NULL AND NOT (key >= ? AND key < ?)) OR ({apart})"
    bounds = [DATA, DATA + LAST, *chain.from_iterable(others)]
    return {str(key): (_checked(mode, value), tag) for key, tag, mode, value in raw.sql(query, bounds)}


def _condition(raw: "_Raw", wal_bytes: int) -> Condition:
    settings = dict(raw.sql("SELECT key, value FROM Settings").fetchall())
    page_bytes, pages, free_pages = (
        int(raw.sql(f"PRAGMA {name}").fetchone()[0]) for name in ("page_size", "page_count", "freelist_count")
    )
    found = int(raw.entry(FORMAT_KEY) or b"0")
    kept = {key: settings.get(key) for key in SETTINGS}
    return Condition(found, kept, page_bytes, pages, free_pages, wal_bytes)


def _complaints(raw: "_Raw") -> list[str]:
    said = [str(line) for (line,) in raw.sql(f"PRAGMA integrity_check({MAX_COMPLAINTS})").fetchall()]
    return [] if said == ["ok"] else said


def _set_pragmas(connection: sqlite3.Connection) -> None:
    """diskcache sets a pragma only where it differs, and some cannot be set in its transaction: so they come first."""
    for key, value in SETTINGS.items():
        if key.startswith("sqlite_"):
            connection.execute(f"PRAGMA {key.removeprefix('sqlite_')} = {value}").fetchall()
    # Some builds zero what is freed, through the log: a purge of 500 jobs of 1 MB then kept all writers out for 4 s.
    connection.execute("PRAGMA secure_delete = 0").fetchall()
    if sys.platform == "darwin":  # there, fsync does not reach the platter
        connection.execute("PRAGMA fullfsync = 1")
        connection.execute("PRAGMA checkpoint_fullfsync = 1")


def _connect_read_only(path: Path, how: str) -> sqlite3.Connection:
    """A connection that can change nothing."""
    uri = f"file:{urllib.parse.quote(str((path / DATABASE).resolve()))}?mode=ro&{how}"
    return sqlite3.connect(uri, uri=True, timeout=FOREIGN_WRITER_SECONDS, isolation_level=None, check_same_thread=False)


def check_format(raw: "_Raw", path: Path, may_be_empty: bool) -> None:
    """Refuse what a newer rqlab, or something else, has written; nothing has been changed yet."""
    tables = {str(name) for (name,) in raw.sql("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables and may_be_empty:  # a power cut as it was made
        return
    found = raw.entry(FORMAT_KEY) if "Cache" in tables else None
    if found is None or not found.isdigit():
        raise StoreCorrupt(
            f"cannot open {path}: its cache.db was not made by rqlab (no format number in it). Choose another directory"
        )
    unknown = {str(key) for (key,) in raw.sql("SELECT key FROM Settings")} - KNOWN_SETTINGS
    if unknown:  # diskcache makes attributes, pragmas and arguments of whatever stands there
        raise StoreCorrupt(f"cannot open {path}: expected diskcache's settings in its cache.db; found also {unknown}")
    if int(found) > FORMAT:
        raise FormatTooNew(
            f"cannot open {path}: expected format {FORMAT} or older, found {int(found)}. "
            "A newer rqlab wrote it: upgrade rqlab; nothing was changed"
        )


def _refuse_in_a_fork(pid: int) -> None:
    if os.getpid() != pid:
        raise StoreError(
            f"these queues were opened by process {pid}, this is its fork {os.getpid()}: SQLite connections do not "
            f"survive a fork. {FORK_ADVICE}"
        )


def _refuse_what_a_fork_inherited(path: Path) -> None:
    """SQLite believes that this process holds its parent's locks on the file: it would take none of its own, and its
    commits would go into a log that the parent removes."""
    if _identity(path / DATABASE) in _inherited:
        raise StoreError(
            f"cannot open {path}: this process ({os.getpid()}) is the fork of one that had it open. {FORK_ADVICE}"
        )


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file stands under a name: device and inode."""
    try:
        there = path.stat()
    except OSError:
        return None
    return there.st_dev, there.st_ino


def _after_fork() -> None:
    """A thread of the parent may have held the lock, and is not here to let go; what was open stays out of reach."""
    global _looking
    _looking = threading.Lock()
    _inherited.update(store._file for store in list(_stores) if not store._closed)
    _inherited.update(_identity(view.path / DATABASE) for view in list(_views) if view._connection is not None)


os.register_at_fork(after_in_child=_after_fork)


def _step(staged: Staged) -> tuple[list[str], list[Row]]:
    """What a transaction removes, by key, and then stores."""
    gone = deletions(job_id for job_id, job in staged.jobs.items() if job is None)
    gone += [key for key, entry in staged.entry_changes.items() if entry is None]
    rows: list[Row] = []
    for job_id, job in staged.jobs.items():
        if job is not None:
            rows += job_rows(job, is_fresh=job_id in staged.fresh)
    rows += [(key, entry[1], entry[0]) for key, entry in staged.entry_changes.items() if entry is not None]
    return gone, rows


def job_rows(job: Job, is_fresh: bool) -> list[Row]:
    """A job's entry, and that of its data if it is large and was never stored."""
    rows: list[Row] = []
    if is_fresh and len(job.encoded_data) > DATA_APART_BYTES:
        rows.append((DATA + job.id, None, bytes(job.encoded_data)))
        job = replace(job, data_apart=True)
    if job.data_apart:
        job = replace(job, encoded_data=NULL)
    rows.append((job.id, place(job), _encode(job)))
    return rows


def deletions(job_ids: Iterable[str]) -> list[str]:
    """The keys of all that is stored of these jobs."""
    return [key for job_id in job_ids for key in (job_id, DATA + job_id)]


def counter_rows(counters: dict[str, dict[str, int]]) -> list[Row]:
    return [(COUNTERS + queue, COUNTERS + queue, _encode(counted)) for queue, counted in counters.items()]


def _chunks(items: list[T]) -> Iterator[list[T]]:
    """All items in few sizes, so that SQLite's statements are prepared once."""
    start = 0
    for size in CHUNKS:
        while len(items) - start >= size:
            yield items[start : start + size]
            start += size
    if start < len(items):
        yield items[start:]


def _hand_out_error(calls: list[_Call], error: RQLabError) -> None:
    for call in calls:
        if not call.done:
            call.error = type(error)(str(error))  # one each: threads that raise the same object mix their tracebacks
            call.done = True
            call.nudge()


def _job(record: bytes) -> Job:
    return _decoded(_decode_job, record)


def _decoded(decode: Callable[[bytes], T], value: bytes) -> T:
    try:
        return decode(value)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"expected a record that rqlab wrote; found {value[:60]!r}… ({error})") from error


def _checked(mode: Any, value: Any) -> bytes:
    if mode != MODE_RAW or not isinstance(value, bytes):
        raise StoreCorrupt(
            f"expected bytes in cache.db; found {type(value).__name__} in storage mode {mode}. Something other than "
            "rqlab wrote it; it was not unpickled"
        )
    return value


def _is_full(path: Path) -> bool:
    """SQLite calls it an I/O error when its shared memory finds no room."""
    try:
        found = os.statvfs(path)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < FULL_BYTES


def in_our_words(
    error: Exception, path: Path, attempted: str = "write to", outcome: str = "nothing was changed"
) -> RQLabError:
    """SQLite's error in our words. diskcache says Timeout for any BEGIN that fails."""
    if isinstance(error, RQLabError):
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code of an extended one
    said = f"cannot {attempted} {path}: {error}; {outcome}"
    match code:
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR if code == sqlite3.SQLITE_FULL or _is_full(path):
            return StoreFull(f"cannot {attempted} {path}: the disk is full; {outcome}. Free some space")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreBusy(f"{said}. A program that is not rqlab holds cache.db: open it with nothing else")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreCorrupt(f"{said}. The file is damaged: restore a backup; rqlab doctor tells more")
        case _:
            return StoreError(said)
