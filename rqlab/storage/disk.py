"""A store in a directory: one diskcache entry a job, and the job's place in line is the entry's tag.

The only file that knows diskcache and SQLite. It must hold these together:

- One process, one SQLite connection, under one lock: an open transaction is then visible to every thread.
- Callers that wait at the same time share one commit. One of them, the leader, runs everybody's work in one transaction
  and hands each its own result or error (group commit). An interrupt may hit the leader anywhere; what it leaves is
  kept in `_batch`, and whoever comes next settles it: rolls back, or hands out what was committed.
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
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import diskcache
import msgspec
from diskcache.core import MODE_RAW
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
from rqlab.storage.locks import Lock, network_file_system, own
from rqlab.storage.place import LAST, place
from rqlab.storage.staging import Staged

T = TypeVar("T")

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
DATA_APART_BYTES = 4 * 1024  # larger data is written once, not at every heartbeat (1 MB jobs: 41 cycles/s against 591)
MAX_BATCH = 500  # callers a commit; the others are the next leader's
TAKE_OVER_SECONDS = 0.02  # a waiting caller looks whether the leader is gone (it was interrupted); else it is woken
FOREIGN_WRITER_SECONDS = 1.0  # SQLite's own wait; only a program that is not rqlab can hold its lock
BULK = 8  # from here on one executemany is faster than diskcache's set, row by row (2.1 times at 100 rows)
COUNTERS = "queue/"  # + queue: the key, and the place, of a queue's counters
DATA = "payload/"  # + job id: data that is kept apart
FORMAT_KEY = "rqlab/format"
MAX_COMPLAINTS = 10  # of a damaged file; more say no more
SQLITE_VERSION = sqlite3.sqlite_version

RANGE = "SELECT mode, value FROM Cache WHERE tag >= ? AND tag < ? ORDER BY tag"
UPSERT = (
    "INSERT INTO Cache(key, raw, store_time, access_time, tag, mode, value) VALUES (?, 1, 0, 0, ?, 1, ?)"
    " ON CONFLICT(key, raw) DO UPDATE SET tag = excluded.tag, value = excluded.value"
)

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
        self._pid = os.getpid()
        super().__init__(directory, timeout=FOREIGN_WRITER_SECONDS, disk=_Bytes, **SETTINGS)

    @property
    def _con(self) -> sqlite3.Connection:
        if os.getpid() != self._pid:
            raise StoreError(
                f"these queues were opened by process {self._pid}, this is its fork {os.getpid()}: "
                "SQLite connections do not survive a fork; open the directory again in the child"
            )
        return self._connection


class Condition(NamedTuple):
    """What a file says of itself, for `doctor`."""

    format: int
    settings: dict[str, Any]  #: as SETTINGS; None for what is not there
    page_bytes: int
    pages: int
    free_pages: int
    wal_bytes: int  #: of the write-ahead log; 0 without one


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


class _Batch:
    """One transaction in the making: what is needed to finish it, or to undo it, from wherever it stopped."""

    __slots__ = ("began", "calls", "changes", "counters", "error")

    def __init__(self, calls: list[_Call]) -> None:
        self.calls = calls
        self.counters: dict[str, dict[str, int]] = {}
        self.changes: list[Any] = []
        self.began = False
        self.error: RQLabError | None = None  #: the transaction itself failed: everybody's error


class _Reads:
    """What can be asked of a directory, each on the one connection under its lock."""

    def _reading(self) -> contextlib.AbstractContextManager["_Raw"]:
        raise NotImplementedError

    def get(self, job_id: str) -> Job | None:
        with self._reading() as raw:
            return raw.get(job_id)

    def load(self, job: Job) -> Job:
        if not job.data_apart:
            return job
        with self._reading() as raw:
            return raw.load(job)

    def first(self, start: str, end: str) -> str | None:
        with self._reading() as raw:
            return raw.first(start, end)

    def scan(self, start: str, end: str, limit: int, *, backwards: bool = False) -> list[Job]:
        with self._reading() as raw:
            return raw.scan(start, end, limit, backwards=backwards)

    def entry(self, key: str) -> bytes | None:
        with self._reading() as raw:
            return raw.entry(key)

    def entries(self, start: str, end: str, limit: int) -> list[tuple[str, bytes]]:
        with self._reading() as raw:
            return raw.entries(start, end, limit)

    def counters(self, queue: str) -> Mapping[str, int]:
        with self._reading() as raw:
            return raw.counters(queue)

    def count(self, start: str, end: str) -> int:
        with self._reading() as raw:
            return raw.count(start, end)

    def queues(self) -> list[str]:
        with self._reading() as raw:
            return raw.queues()


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
        self.path = Path(path)
        self._make_directory(allow_network)
        self._owner = own(self.path, durability, exclusive)
        self._write_lock = Lock(self.path / "write.lock", busy_timeout)
        self._lead = threading.Lock()  # held by the leader
        self._lock = threading.Lock()  # held by whoever uses the connection
        self._line: deque[_Call] = deque()
        self._leading = False  # a hint: the leader is at work, waiting callers will be woken
        self._batch: _Batch | None = None
        self._version = 0
        self._closed = False
        self._raw = _Raw()
        try:
            self._open()
        except BaseException:
            self._owner.close()
            self._write_lock.close()
            raise

    # Group commit.

    def write(self, work: Callable[[Transaction], T]) -> T:
        call = _Call(work)
        self._line.append(call)
        try:
            self._wait(call)
        finally:
            call.done = True  # if the caller was interrupted: nobody waits for this any more
        if call.error is not None:
            raise call.error
        result: T = call.result
        return result

    def _wait(self, call: _Call) -> None:
        while not call.done:
            if self._leading and not call.wake.acquire(timeout=TAKE_OVER_SECONDS) and self._leading:
                continue
            with self._lead:  # a lock in C: an interrupt leaves it either held by this block or free
                if call.done:
                    return
                self._leading = True
                try:
                    self._run_line()
                finally:
                    self._leading = False
            self._call_next()

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
        """Be the leader: run everybody's work in one transaction, then hand out what came of it."""
        calls = [call for call in list(self._line)[:MAX_BATCH] if not call.done]
        try:
            self._refuse_if_closed()
            self._write_lock.acquire()
        except RQLabError as error:
            _hand_out_error(calls, error)
            return
        try:
            with self._lock:
                try:
                    self._settle()
                    self._batch = _Batch(calls)
                    self._run(self._batch)
                finally:
                    self._settle_whatever_comes()
        finally:
            self._write_lock.release()

    def _run(self, batch: _Batch) -> None:
        sql = self._connection.execute
        try:
            if self._connection.in_transaction:  # a rollback that failed; nothing of it may be committed
                sql("ROLLBACK")
            sql("BEGIN IMMEDIATE")
            batch.began = True
            self._raw.pending = batch.counters
            self._cache._txn_id = threading.get_ident()  # diskcache's set and delete join this transaction
            for call in batch.calls:
                self._run_work(call, batch)
            for queue, counters in batch.counters.items():
                key = COUNTERS + queue
                self._cache.set(key, _encode(counters), tag=key)
            sql("COMMIT")
        except (sqlite3.Error, diskcache.Timeout) as error:
            batch.error = _ours(error, self.path)
        finally:
            self._cache._txn_id = None

    def _run_work(self, call: _Call, batch: _Batch) -> None:
        staged = Staged(self._raw)
        try:
            call.result = call.work(staged)
            call.error = None
            rows, gone = _rows(staged)
        except sqlite3.Error:
            raise
        except Exception as error:  # noqa: BLE001  # it is the caller's, and raised there
            call.error = error
            return
        for key in gone:
            self._cache.delete(key)
        self._store(rows)
        self._count(staged.tallies, batch.counters)
        batch.changes += staged.changes

    def _store(self, rows: list[tuple[str, bytes, str | None]]) -> None:
        if len(rows) < BULK:
            for key, value, tag in rows:
                self._cache.set(key, value, tag=tag)
        else:
            self._connection.executemany(UPSERT, ((key, tag, value) for key, value, tag in rows))

    def _count(self, tallies: dict[tuple[str, str], int], totals: dict[str, dict[str, int]]) -> None:
        for (queue, name), amount in tallies.items():
            counters = totals.get(queue)
            if counters is None:
                counters = totals[queue] = dict(self._raw.counters(queue))
            counters[name] = counters.get(name, 0) + amount

    def _settle(self) -> None:
        """Finish a batch from wherever it stopped. Idempotent; the caller holds `_lock`."""
        batch = self._batch
        if batch is None:
            return
        undone = self._connection.in_transaction
        if undone:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                batch.error = batch.error or _ours(error, self.path)
        if batch.error is not None:
            _hand_out_error(batch.calls, batch.error)
        elif batch.began and not undone:
            self._hand_out(batch)
        self._raw.pending = {}
        self._batch = None

    def _settle_whatever_comes(self) -> None:
        """Settle even if interrupts keep coming; the last one is raised when all is settled."""
        interrupt: BaseException | None = None
        while self._batch is not None:
            try:
                self._settle()
            except BaseException as another:  # noqa: BLE001  # raised again below
                interrupt = another
        if interrupt is not None:
            raise interrupt

    def _hand_out(self, batch: _Batch) -> None:
        self._version += 1
        changes, batch.changes = batch.changes, []
        if changes and self.listener is not None:
            self.listener(changes)
        for call in batch.calls:
            call.done = True
            call.nudge()

    def changed(self) -> int:
        with self._reading() as raw:
            (version,) = raw.sql("PRAGMA data_version").fetchone()
            return int(version) + self._version

    @contextlib.contextmanager
    def _reading(self) -> Iterator["_Raw"]:
        with self._lock:
            self._refuse_if_closed()
            self._settle()
            try:
                yield self._raw
            except sqlite3.Error as error:
                raise _ours(error, self.path) from error

    # The directory's life.

    def _make_directory(self, allow_network: bool) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)  # diskcache would make it 0755
        except OSError as error:
            raise StoreError(f"cannot make the directory {self.path}: {error.strerror or error}") from error
        kind = network_file_system(self.path)
        if kind is not None and not allow_network:
            raise StoreError(
                f"cannot open {self.path}: it lies on a network file system ({kind}), where neither flock nor SQLite's "
                "WAL holds between machines. Use a local disk; if one machine alone uses it, pass "
                "allow_network_filesystem=True"
            )

    def _open(self) -> None:
        self._write_lock.acquire()
        connection = None
        try:
            connection = sqlite3.connect(
                self.path / "cache.db", timeout=FOREIGN_WRITER_SECONDS, isolation_level=None, check_same_thread=False
            )
            check_format(connection, self.path)
            self._connection = connection
            self._raw.sql = connection.execute
            self._prepare(connection)
        except (sqlite3.Error, diskcache.Timeout) as error:
            raise _ours(error, self.path, "open") from error
        finally:
            if not hasattr(self, "_cache") and connection is not None:
                connection.close()
            self._write_lock.release()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Let diskcache set itself up in one transaction: a power cut in the middle leaves nothing half made.

        diskcache sets a pragma only where it differs, and some cannot be set inside a transaction: so they come first.
        """
        for key, value in SETTINGS.items():
            if key.startswith("sqlite_"):
                connection.execute(f"PRAGMA {key.removeprefix('sqlite_')} = {value}").fetchall()
        if sys.platform == "darwin":  # there, fsync does not reach the platter
            connection.execute("PRAGMA fullfsync = 1")
            connection.execute("PRAGMA checkpoint_fullfsync = 1")
        connection.execute("BEGIN IMMEDIATE")
        try:
            cache = _Cache(str(self.path), connection)
            cache._txn_id = threading.get_ident()
            if cache.get(FORMAT_KEY) is None:
                cache.set(FORMAT_KEY, b"%d" % FORMAT)
            cache._txn_id = None
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._cache = cache

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreError(f"the queues in {self.path} are closed: open them again")
        self._cache._con  # noqa: B018  # refuses in a fork

    def flush(self) -> None:
        """Every write is on the disk before it returns, so there is nothing to wait for."""

    def vacuum(self) -> None:
        """Give the space of removed jobs back to the file system. Others wait meanwhile."""
        self._alone("VACUUM")

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the database file and empty it."""
        self._alone("PRAGMA wal_checkpoint(TRUNCATE)")

    def backup(self, target: Path) -> None:
        """Copy the database, as it is at one instant, into a new directory; writers go on meanwhile."""
        self._refuse_if_closed()
        if target.exists() and any(target.iterdir()):
            raise StoreError(f"cannot back up to {target}: expected a directory that is new or empty; it has files")
        try:
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (
                contextlib.closing(connect_read_only(self.path)) as source,
                contextlib.closing(sqlite3.connect(target / "cache.db")) as copy,
            ):
                source.backup(copy)
            _fsync_directory(target)
        except OSError as error:
            raise StoreError(f"cannot back up to {target}: {error}") from error
        except sqlite3.Error as error:
            raise _ours(error, target, "back up to") from error

    def _alone(self, statement: str) -> None:
        with self._lead:
            self._refuse_if_closed()
            self._write_lock.acquire()
            try:
                with self._reading() as raw:
                    raw.sql(statement).fetchall()
            finally:
                self._write_lock.release()

    def close(self) -> None:
        with self._lead:
            if self._closed:
                return
            self._refuse_if_closed()
            self._write_lock.acquire()  # the last to close writes the log back into the database
            try:
                with self._lock:
                    self._settle()
                    self._closed = True
                    self._connection.close()
            finally:
                self._write_lock.close()
                self._owner.close()


class ReadOnlyStore(_Reads):
    """A look at a directory beside whoever uses it: sees what is on the disk, writes nothing.

    Raises StoreError if there is no rqlab directory at `path`: looking creates nothing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.listener: Callable[[list[Any]], None] | None = None
        self.path = Path(path)
        self._lock = threading.Lock()
        self._closed = False
        if not (self.path / "cache.db").is_file():
            raise StoreError(f"cannot read {self.path}: expected a directory that rqlab has made; found none")
        try:
            self._connection = connect_read_only(self.path)
            check_format(self._connection, self.path, must_exist=True)
        except sqlite3.Error as error:
            raise _ours(error, self.path, "read") from error
        self._raw = _Raw()
        self._raw.sql = self._connection.execute

    def write(self, work: Callable[[Transaction], T]) -> T:
        raise StoreError(f"{self.path} was opened with read_only=True: open it without to change anything")

    def changed(self) -> int:
        with self._reading() as raw:
            return int(raw.sql("PRAGMA data_version").fetchone()[0])

    @contextlib.contextmanager
    def _reading(self) -> Iterator["_Raw"]:
        with self._lock:
            if self._closed:
                raise StoreError(f"the view of {self.path} is closed: open it again")
            try:
                yield self._raw
            except sqlite3.Error as error:
                raise _ours(error, self.path, "read") from error

    def flush(self) -> None:
        """There is nothing to flush."""

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._connection.close()

    # For `doctor`.

    @contextlib.contextmanager
    def at_one_instant(self) -> Iterator[None]:
        """All reads in this block see the directory as it was at the first of them, whoever writes meanwhile."""
        with self._reading() as raw:
            raw.sql("BEGIN")
        try:
            yield
        finally:
            with self._reading() as raw:
                if self._connection.in_transaction:  # damage in the file may have ended it
                    raw.sql("ROLLBACK")

    def condition(self) -> Condition:
        """What SQLite says of the file, and how diskcache was told to keep it."""
        with self._reading() as raw:
            settings = dict(raw.sql("SELECT key, value FROM Settings").fetchall())
            page_bytes, pages, free_pages = (
                int(raw.sql(f"PRAGMA {name}").fetchone()[0]) for name in ("page_size", "page_count", "freelist_count")
            )
            found = int(raw.entry(FORMAT_KEY) or b"0")
        kept = {key: settings.get(key) for key in SETTINGS}
        return Condition(found, kept, page_bytes, pages, free_pages, _size(self.path / "cache.db-wal"))

    def complaints(self) -> list[str]:
        """What SQLite finds wrong with the file, reading all of it; empty if nothing is."""
        with self._reading() as raw:
            said = [str(line) for (line,) in raw.sql(f"PRAGMA integrity_check({MAX_COMPLAINTS})").fetchall()]
        return [] if said == ["ok"] else said


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

    def queues(self) -> list[str]:
        rows = self.sql("SELECT key FROM Cache WHERE tag >= ? AND tag < ? ORDER BY tag", (COUNTERS, COUNTERS + LAST))
        return [str(key).removeprefix(COUNTERS) for (key,) in rows]


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


def connect_read_only(path: Path) -> sqlite3.Connection:
    """A connection that can change nothing."""
    uri = f"file:{urllib.parse.quote(str((path / 'cache.db').resolve()))}?mode=ro"
    return sqlite3.connect(uri, uri=True, timeout=FOREIGN_WRITER_SECONDS, isolation_level=None, check_same_thread=False)


def check_format(connection: sqlite3.Connection, path: Path, *, must_exist: bool = False) -> None:
    """Refuse what a newer rqlab, or something else, has written; nothing has been changed yet."""
    tables = {str(name) for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables and not must_exist:
        return
    query = "SELECT value FROM Cache WHERE key = ? AND raw = 1"
    row = connection.execute(query, (FORMAT_KEY,)).fetchone() if "Cache" in tables else None
    if row is None:
        raise StoreCorrupt(
            f"cannot open {path}: its cache.db was not made by rqlab (no format number in it). Choose another directory"
        )
    found = int(row[0])
    if found > FORMAT:
        raise FormatTooNew(
            f"cannot open {path}: expected format {FORMAT} or older, found {found}. "
            "A newer rqlab wrote it: upgrade rqlab; nothing was changed"
        )


def _rows(staged: Staged) -> tuple[list[tuple[str, bytes, str | None]], list[str]]:
    """What a transaction writes, as (key, value, tag), and the keys it removes."""
    rows: list[tuple[str, bytes, str | None]] = []
    gone: list[str] = []
    for job_id, job in staged.jobs.items():
        if job is None:
            gone += [job_id, DATA + job_id]
            continue
        is_fresh = job_id in staged.fresh
        if is_fresh and len(job.encoded_data) > DATA_APART_BYTES:
            rows.append((DATA + job_id, bytes(job.encoded_data), None))
            job = replace(job, data_apart=True)
        if job.data_apart:
            job = replace(job, encoded_data=NULL)
        rows.append((job_id, _encode(job), place(job)))
    for key, entry in staged.entry_changes.items():
        if entry is None:
            gone.append(key)
        else:
            rows.append((key, *entry))
    return rows, gone


def _hand_out_error(calls: list[_Call], error: RQLabError) -> None:
    for call in calls:
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


def _ours(error: Exception, path: Path, attempted: str = "write to") -> RQLabError:
    """SQLite's error in our words. diskcache says Timeout for any BEGIN that fails."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code of an extended one
    said = f"cannot {attempted} {path}: {error}; nothing was changed"
    match code:
        case sqlite3.SQLITE_FULL:
            return StoreFull(f"cannot {attempted} {path}: the disk is full; nothing was changed. Free some space")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreBusy(f"{said}. A program that is not rqlab holds cache.db: open it with nothing else")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreCorrupt(f"{said}. The file is damaged: restore a backup; rqlab doctor tells more")
        case _:
            return StoreError(said)
