"""A store in a directory: one diskcache entry a job, and the job's place in line is the entry's tag.

It must hold these together:

- One process, one SQLite connection, under one lock: an open transaction is then visible to every thread.
- Callers that wait at the same time share one commit. One of them, the leader, runs everybody's work in one transaction
  and hands each its own result or error (group commit). An interrupt may hit the leader anywhere. So locks and the
  transaction are held by `with` and `finally` that end in C, where none can come between; and what was committed is
  kept in `_batch` until it is handed out, if need be by whoever comes next.
- Between processes, whoever writes, checkpoints or closes holds `flock` on `write.lock`. SQLite's own busy handler
  sleeps up to 100 ms between looks, and starves.
"""

import contextlib
import os
import sqlite3
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from rqlab.errors import FormatTooNew, Reentered, RQLabError, StoreBusy, StoreCorrupt, StoreError
from rqlab.storage import FORMAT, Transaction
from rqlab.storage.cache import FOREIGN_WRITER_SECONDS, SETTINGS, Cache, Timeout
from rqlab.storage.directory import make_safely
from rqlab.storage.entries import (
    DATABASE,
    FORMAT_KEY,
    KEPT,
    NOTHING,
    UPSERT_IN_PLACE,
    Raw,
    Reads,
    Row,
    Step,
    check_format,
    chunks,
    counter_rows,
    delete,
    in_our_words,
    side_entries,
    step_of,
    upsert,
)
from rqlab.storage.locks import Lock, file_error, network_file_system, own
from rqlab.storage.staging import Staged
from rqlab.storage.view import (
    BESIDE_A_WRITER,
    LOOK_SECONDS,
    ReadOnlyStore,
    back_up,
    connect_read_only,
    identity,
    inherited,
    let_views_go,
    looking,
    refuse_in_a_fork,
    refuse_what_a_fork_inherited,
)

T = TypeVar("T")
P = ParamSpec("P")


MAX_BATCH = 500  # callers a commit; the others are the next leader's
TAKE_OVER_SECONDS = 0.02  # a waiting caller looks whether the leader is gone (it was interrupted); else it is woken


CHECKPOINT = "PRAGMA wal_checkpoint(TRUNCATE)"


_stores: "weakref.WeakSet[DiskStore]" = weakref.WeakSet()


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
        self.steps: list[Step] = []  #: of each call
        self.writes = 0  #: calls that store something
        self.writes_so_far = 0  #: with those of the batches before it that are not committed either
        self.committed: list[
            Any
        ] = []  #: not empty: its callers may be told; it is on the disk, or nothing is to be stored
        self.error: RQLabError | None = None  #: the transaction itself failed: everybody's error


class _Inside(Reads):
    """What a work looks at: the transaction, made to hold what the works before it have changed."""

    def __init__(self, raw: Raw, apply_late: Callable[[], None]) -> None:
        self._raw = raw
        self._apply_late = apply_late

    def _read(self, ask: Callable[Concatenate[Raw, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        self._apply_late()
        return ask(self._raw, *args, **kwargs)

    def counters(self, queue: str) -> Mapping[str, int]:
        return self._raw.counters(queue)  # never left for later, and all that most pushes look at


class DiskStore(Reads):
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
        self._database = str(self.path / DATABASE)
        self._pid = os.getpid()
        self._lead = threading.RLock()  # held by the leader, and by whoever needs the directory alone
        self._lock = threading.RLock()  # held by whoever uses the connection; reentrant, to know that this thread does
        self._line: deque[_Call] = deque()
        self._batch: Batch | None = None
        self._version = 0
        self._closed = False
        self._raw = Raw()
        #: By key: the entries that the transaction under way does not hold yet; None: to be removed. See `_apply_late`.
        self._late: dict[str, Row | None] = {}
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
        self._refuse_if_inside(also_as_leader=False)
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
        self._refuse_if_inside(also_as_leader=False)
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
                self._apply_late()
                self._store_counters(batch.counters)
                # One call into C: no interrupt comes between the commit and the note that it was done.
                batch.committed.extend(map(self._connection.execute, ("COMMIT",)))
        except Exception as error:  # noqa: BLE001  # everybody's, and raised there
            batch.error = in_our_words(error, self.path)

    def _run_works(self, batch: Batch) -> None:
        """Each work sees what those before it have changed."""
        self._raw.pending = batch.counters
        inside = _Inside(self._raw, self._apply_late)
        for call in batch.calls:
            self._leave_for_later(self._run_work(call, batch, Staged(inside)))

    def _run_work(self, call: _Call, batch: Batch, staged: Staged) -> Step:
        try:
            call.result = call.work(staged)
            call.error = None
            step = step_of(staged)
            totals = self._totals(staged)
        except sqlite3.Error:
            raise
        except Exception as error:  # noqa: BLE001  # it is the caller's, and raised there
            call.error = error
            return NOTHING
        batch.changes += staged.changes
        if staged.is_empty:
            return NOTHING
        batch.counters.update(totals)
        batch.steps.append(step)
        batch.writes += 1
        return step

    def _leave_for_later(self, step: Step) -> None:
        gone, rows = step
        for key in gone:
            self._late[key] = None
        for row in rows:
            self._late[row[0]] = row

    def _apply_late(self) -> None:
        """Let the transaction hold what was left for later: before its commit, and before anybody looks into it.

        So the rows of many callers, who mostly push and look at nothing, go in one statement. Each statement of its own
        would give Python's lock away, and wait for it among all those callers.
        """
        if self._late:
            gone = [key for key, row in self._late.items() if row is None]
            self._apply((gone, [row for row in self._late.values() if row is not None]))
            self._late = {}  # an interrupt before this line: they are applied once more, as they are

    def _apply(self, step: Step) -> None:
        gone, rows = step
        for keys in chunks(gone):
            self._connection.execute(delete(len(keys)), keys)
        self._store(rows)

    def _store(self, rows: list[Row]) -> None:
        for chunk in chunks(rows):
            self._connection.execute(upsert(len(chunk)), tuple(chain.from_iterable(chunk)))

    def _store_counters(self, counters: Mapping[str, Mapping[str, int]]) -> None:
        for row in counter_rows(counters):
            self._connection.execute(UPSERT_IN_PLACE, row)

    def _totals(self, staged: Staged) -> dict[str, dict[str, int]]:
        """The counters of the queues that this work touched, as they are after it."""
        totals: dict[str, dict[str, int]] = {}
        for (queue, name), amount in staged.tallies.items():
            counters = totals.get(queue)
            if counters is None:
                counters = totals[queue] = dict(staged.counters_before(queue))
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
        if batch.committed:  # first: an exception from a signal handler may have come behind the commit
            self._hand_out(batch)
        elif batch.error is not None:
            _hand_out_error(batch.calls, batch.error)
        self._batch = None

    def _mend(self) -> None:
        """End what a ROLLBACK that failed has left: nothing of it, nor what was left for later, may be seen."""
        self._late = {}
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
        self._refuse_if_inside()
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
        return self._read(side_entries)

    def changed(self) -> int:
        self._refuse_if_gone()  # the one look that an idle worker takes
        return self._read(Raw.data_version) + self._version

    def _read(self, ask: Callable[Concatenate[Raw, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Ask while nobody else uses the connection.

        Not a context manager written in Python: an interrupt as it begins or ends would leave the lock held.
        """
        self._refuse_if_closed()
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise Reentered(str(self.path))
        with self._lock:
            try:
                self._refuse_if_closed()
                self._settle()
                self._apply_late()
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
            make_safely(self.path)
        except (FileExistsError, NotADirectoryError) as error:
            raise StoreError(
                f"cannot make the directory {self.path}: expected nothing, or directories only, on that path; found a "
                "file. Choose another path"
            ) from error
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
        refuse_what_a_fork_inherited(self.path)
        try:
            with looking():  # taken before write.lock, as views do
                self._write_lock.acquire()
                let_views_go()
                _read_the_log_from_the_disk(self.path / f"{DATABASE}-wal")
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
                self._cache = Cache(str(self.path), connection)
                self._cache._txn_id = threading.get_ident()
                if self._cache.get(FORMAT_KEY) is None:
                    self._cache.set(FORMAT_KEY, b"%d" % FORMAT)
                self._cache._txn_id = None
                _spare_what_nobody_reads(connection)
            self._file = identity(self._database)
            _stores.add(self)
            is_open = True
        except OSError as error:
            raise file_error(f"cannot open {self.path}", error) from error
        except (sqlite3.Error, Timeout) as error:
            raise in_our_words(error, self.path, "open") from error
        finally:
            if connection is not None and not is_open:
                connection.close()
            self._write_lock.release()

    def is_there(self) -> bool:
        return identity(self._database) == self._file

    def _refuse_if_gone(self) -> None:
        """SQLite would go on in a file that has been removed, and all of it would be lost at the end."""
        if not self.is_there():
            raise StoreError(
                f"the directory {self.path} was removed or replaced while these queues had it open: nothing more is "
                "stored in it. Close them and open the directory again; stop workers before you remove a directory"
            )

    def _refuse_if_inside(self, *, also_as_leader: bool = True) -> None:
        """In a signal handler. A write that comes while its thread leads, but uses no connection yet, can be served."""
        if self._lock._is_owned() or (also_as_leader and self._lead._is_owned()):  # type: ignore[attr-defined]
            raise Reentered(str(self.path))

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StoreError(f"the queues in {self.path} are closed: open them again")
        refuse_in_a_fork(self._pid)

    def flush(self) -> None:
        """Every write is on the disk before it returns, so there is nothing to wait for."""
        self._refuse_if_closed()

    def vacuum(self) -> None:
        """Give the space of removed jobs back to the file system. Others wait meanwhile."""
        self._alone("vacuum", "VACUUM", CHECKPOINT)  # what VACUUM has written is in the log until then

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the database file and empty it."""
        self._alone("checkpoint", CHECKPOINT)

    def _alone(self, attempted: str, *statements: str) -> None:
        self._refuse_if_closed()
        self._refuse_if_inside()
        self._run_alone(attempted, *statements)

    def _run_alone(self, attempted: str, *statements: str) -> None:
        with self._lead:
            self._refuse_if_closed()
            try:
                self._write_lock.acquire()
                with self._lock:
                    self._settle()
                    for statement in statements:
                        self._raw.run(statement)
            except sqlite3.Error as error:
                raise in_our_words(error, self.path, attempted) from error
            finally:
                self._write_lock.release()

    def backup(self, target: Path) -> None:
        """Copy the database, as it is at one instant, into a new directory; writers go on meanwhile."""
        self._refuse_if_closed()

        def copy(into: sqlite3.Connection) -> None:
            with contextlib.closing(connect_read_only(self.path, BESIDE_A_WRITER)) as source:
                source.backup(into)

        back_up(target, copy)

    def close(self) -> None:
        if os.getpid() != self._pid:
            return  # a fork has nothing of it to let go: the locks and the connection are its parent's
        self._refuse_if_inside()
        self._let_go()

    def _let_go(self) -> None:
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


def _read_the_log_from_the_disk(log: Path) -> None:
    """Whoever recovers the log is to find in it what the disk has, not what the system remembers.

    After an fsync that failed, Linux keeps what was to be written and calls it clean. The process that was told writes
    it anew at its next commit. But if it is killed before, the next process would find that commit whole, go on behind
    it, and a power cut would take all that it stored there: no later fsync writes what is clean. So the system is told
    to forget. SQLite has no locks on the log, so opening it here drops none.
    """
    try:
        fd = os.open(log, os.O_RDONLY)
    except FileNotFoundError:  # no process was killed, and none is at work
        return
    try:
        if os.fstat(fd).st_size:
            os.fsync(fd)
            if hasattr(os, "posix_fadvise"):  # macOS has none
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


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


def _spare_what_nobody_reads(connection: sqlite3.Connection) -> None:
    """Each of these cost a commit a page, of seven: an index of the expiry times that we never write, and the triggers
    that count entries and bytes in diskcache's settings. They keep their names, so that diskcache makes no others.
    """
    (made,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'Cache_expire_time'").fetchone()
    if "WHERE" not in made:
        connection.execute("DROP INDEX Cache_expire_time")
        connection.execute("CREATE INDEX Cache_expire_time ON Cache(expire_time) WHERE expire_time IS NOT NULL")
    for name, made in connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall():
        if "WHEN 0" not in made:
            connection.execute(f"DROP TRIGGER {name}")
            connection.execute(f"CREATE TRIGGER {name} AFTER DELETE ON Cache WHEN 0 BEGIN SELECT 1; END")


def _after_fork() -> None:
    """What was open stays out of reach."""
    inherited.update(store._file for store in list(_stores) if not store._closed)


os.register_at_fork(after_in_child=_after_fork)


def _hand_out_error(calls: list[_Call], error: RQLabError) -> None:
    for call in calls:
        if not call.done:
            call.error = type(error)(str(error))  # one each: threads that raise the same object mix their tracebacks
            call.done = True
            call.nudge()
