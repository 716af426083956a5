"""A look at a directory beside whoever uses it; and what the two must know of each other within one process."""

import contextlib
import os
import sqlite3
import threading
import urllib.parse
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from rqlab.errors import Reentered, StoreBusy, StoreError
from rqlab.files import sync_names
from rqlab.storage import Transaction
from rqlab.storage.cache import FOREIGN_WRITER_SECONDS
from rqlab.storage.directory import make_safely
from rqlab.storage.entries import DATABASE, Condition, Raw, Reads, check_format, complaints, condition, in_our_words
from rqlab.storage.locks import Lock, file_error

T = TypeVar("T")
P = ParamSpec("P")

LOOK_SECONDS = 1.0  # a view waits so long for a writer's commit to end before it goes on beside it
BESIDE_A_WRITER = "readonly_shm=1"
#: A log of this length has no frames: the database is complete without it. A kill at the first commit leaves one, and
#: SQLite, where it may not repair it, waits 10 s for its salts and those of the index to agree.
LOG_HEADER_BYTES = 32
STILL = "immutable=1"
_looking = threading.RLock()  # held by whichever view of this process is looking
_views: "weakref.WeakSet[ReadOnlyStore]" = weakref.WeakSet()
FORK_ADVICE = 'Start the child by spawn (multiprocessing.get_context("spawn"), subprocess) and open the directory there'
inherited: set[tuple[int, int] | None] = set()  # files that this process's parent had open as it forked


class ReadOnlyStore(Reads):
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
        self._raw = Raw()
        self._log = self.path / f"{DATABASE}-wal"
        refuse_what_a_fork_inherited(self.path)
        try:
            is_there = (self.path / DATABASE).is_file()
        except OSError as error:  # a directory that may not be entered
            raise file_error(f"cannot read {self.path}", error) from error
        if not is_there:
            raise StoreError(
                f"cannot read {self.path}: expected a directory that rqlab has made; found {_what_is_at(self.path)}. "
                "Look for a mistake in the path; the first push, or rqlab.open without read_only, makes a directory"
            )
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
        version = self._read(Raw.data_version)  # it counts while one connection lives
        return version if self._connection is not None else -(self.path / DATABASE).stat().st_mtime_ns

    def _read(self, ask: Callable[Concatenate[Raw, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        refuse_in_a_fork(self._pid)
        if _looking._is_owned():  # type: ignore[attr-defined]
            raise Reentered(str(self.path))
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
        self._connection = connect_read_only(self.path, how)
        self._raw.sql = self._connection.execute

    def _read_still(self, ask: Callable[Concatenate[Raw, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            self._connect(STILL)
            return ask(self._raw, *args, **kwargs)
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Close the connection, if there is one; the next look makes another. The caller holds `looking()`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def flush(self) -> None:
        """There is nothing to flush."""
        self._read(lambda raw: None)

    def backup(self, target: Path) -> None:
        """Copy the database, as it is at one instant, into a new directory.

        Whoever writes goes on meanwhile; writers that come to a directory that nobody had open wait for its end.
        """

        def copy(into: sqlite3.Connection) -> None:
            error = self._read(lambda raw: self._copy(into))
            if error is not None:
                raise error

        back_up(target, copy)

    def _copy(self, into: sqlite3.Connection) -> sqlite3.Error | None:
        """What went wrong is not raised here, where it would be said of our own file: mostly the other disk is full."""
        assert self._connection is not None, "a look has one"
        try:
            self._connection.backup(into)
        except sqlite3.Error as error:
            return error
        return None

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
            self._read(Raw.run, "BEGIN")
            yield
        finally:
            if self._connection is not None and self._connection.in_transaction:  # damage may have ended it
                self._read(Raw.run, "ROLLBACK")
            if still:
                with _looking:
                    self.let_go()
            self._write_lock.release()

    def condition(self) -> Condition:
        """What SQLite says of the file, and how diskcache was told to keep it."""
        return self._read(condition, _size(self._log))

    def complaints(self) -> list[str]:
        """What SQLite finds wrong with the file, reading all of it; empty if nothing is."""
        return self._read(complaints)


def looking() -> contextlib.AbstractContextManager[object]:
    """While it is held, no view of this process looks. Whoever also takes `write.lock` takes this first."""
    return _looking


def let_views_go() -> None:
    """Have all views connect anew: SQLite would give this process's writer a view's read-only shared memory."""
    for view in list(_views):
        view.let_go()


def _what_is_at(path: Path) -> str:
    if path.is_dir():
        return f"one without {DATABASE}"
    return "a file" if path.exists() else "none"


def _size(path: Path) -> int:
    """In bytes; 0 if there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def back_up(target: Path, copy: Callable[[sqlite3.Connection], None]) -> None:
    """Have a database copied into a new directory, which has it whole or not at all."""
    unfinished = target / "cache.db-unfinished"
    try:
        make_safely(target)
        for found in target.iterdir():
            if not found.name.startswith(unfinished.name):  # it, or SQLite's journal of it: a kill cut it short
                raise StoreError(f"cannot back up to {target}: expected an empty directory; found {found.name}")
            found.unlink()
        with contextlib.closing(sqlite3.connect(unfinished)) as into:
            copy(into)
        unfinished.rename(target / DATABASE)
        sync_names(target)
    except OSError as error:
        raise file_error(f"cannot back up to {target}", error) from error
    except sqlite3.Error as error:
        raise in_our_words(error, target, "back up to") from error


def connect_read_only(path: Path, how: str) -> sqlite3.Connection:
    """A connection that can change nothing."""
    uri = f"file:{urllib.parse.quote(str((path / DATABASE).resolve()))}?mode=ro&{how}"
    return sqlite3.connect(uri, uri=True, timeout=FOREIGN_WRITER_SECONDS, isolation_level=None, check_same_thread=False)


def refuse_in_a_fork(pid: int) -> None:
    if os.getpid() != pid:
        raise StoreError(
            f"these queues were opened by process {pid}, this is its fork {os.getpid()}: SQLite connections do not "
            f"survive a fork. {FORK_ADVICE}"
        )


def refuse_what_a_fork_inherited(path: Path) -> None:
    """SQLite believes that this process holds its parent's locks on the file: it would take none of its own, and its
    commits would go into a log that the parent removes."""
    if identity(path / DATABASE) in inherited:
        raise StoreError(
            f"cannot open {path}: this process ({os.getpid()}) is the fork of one that had it open. {FORK_ADVICE}"
        )


def identity(path: str | Path) -> tuple[int, int] | None:
    """Which file stands under a name: device and inode."""
    try:
        there = os.stat(path)  # noqa: PTH116  # a Path costs 4 us, at every commit
    except OSError:
        return None
    return there.st_dev, there.st_ino


def _after_fork() -> None:
    """A thread of the parent may have held the lock, and is not here to let go; what was open stays out of reach."""
    global _looking
    _looking = threading.RLock()
    inherited.update(identity(view.path / DATABASE) for view in list(_views) if view._connection is not None)


os.register_at_fork(after_in_child=_after_fork)
