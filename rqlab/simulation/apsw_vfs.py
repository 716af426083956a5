"""The recorder where Python hides its SQLite (static builds): a VFS of apsw, which brings a SQLite of its own.

`sqlite3` itself cannot be reached there, so inside the `with` block `sqlite3.connect` answers a path below a recorded
directory with a stand-in over an apsw connection. It does what the store asks of a connection, and no more; any
other path gets the real thing.
"""

import contextlib
import itertools
import os
import sqlite3
import threading
import urllib.parse
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

try:
    import apsw
except ImportError as error:
    raise ImportError("apsw is not installed") from error

from rqlab.simulation.recorder import OK, SHARED_MEMORY, RecordedFile, Recorder

T = TypeVar("T")

NAME = "rqlab-recorder-apsw"
OPEN_MADE_WITH_NAMES = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_WAL
#: What the standard library raises, by SQLite's primary code; OperationalError for all others.
ERRORS: dict[int, type[sqlite3.Error]] = {
    apsw.SQLITE_CORRUPT: sqlite3.DatabaseError,
    apsw.SQLITE_NOTADB: sqlite3.DatabaseError,
    apsw.SQLITE_CONSTRAINT: sqlite3.IntegrityError,
}

_recorders: list[Recorder] = []  # the newest last
_lock = threading.Lock()
_open_files: "weakref.WeakSet[_File]" = weakref.WeakSet()
_kept: list[Any] = []  # a connection that outlives its `with` block still points at the VFS
_connect: Callable[..., Any] = sqlite3.connect


class _Vfs(apsw.VFS):
    """apsw's default VFS, but for files below a recorded directory."""

    def __init__(self) -> None:
        self.base = apsw.vfs_names()[0]
        super().__init__(NAME, self.base, makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        found = None if path is None else _find(path)
        if found is None:
            return super().xOpen(name, flags)
        recorder, recorded_name = found
        opened: list[_File] = []
        _perform(
            lambda do: recorder.open(recorded_name, do),
            lambda: opened.append(_File(self.base, name, flags, recorder, recorded_name)),
        )
        return opened[0]

    def xDelete(self, name: str, sync_names: bool) -> None:
        found = _find(name)
        if found is None:
            super().xDelete(name, sync_names)
            return
        recorder, recorded_name = found
        delete = super().xDelete
        _perform(
            lambda do: recorder.delete(recorded_name, sync_names, do),
            lambda: delete(name, sync_names and recorder.real_fsync),
        )

    def xRandomness(self, count: int) -> bytes:
        return _recorders[-1].random_bytes(count) if _recorders else bytes(super().xRandomness(count))


class _File(apsw.VFSFile):
    """One recorded file."""

    def __init__(self, base: str, name: Any, flags: list[int], recorder: Recorder, recorded_name: str) -> None:
        syncs_names = bool(flags[0] & apsw.SQLITE_OPEN_CREATE and flags[0] & OPEN_MADE_WITH_NAMES)
        self.recorded = RecordedFile(recorder, recorded_name, syncs_names)
        super().__init__(base, name, flags)
        _open_files.add(self)

    def xRead(self, count: int, offset: int) -> bytes:
        read: list[bytes] = []
        real = super().xRead
        _perform(self.recorded.read, lambda: read.append(real(count, offset)))
        return read[0]

    def xWrite(self, payload: Any, offset: int) -> None:
        written = bytes(payload)
        real = super().xWrite
        _perform(lambda do: self.recorded.write(written, offset, do), lambda: real(written, offset))

    def xTruncate(self, size: int) -> None:
        real = super().xTruncate
        _perform(lambda do: self.recorded.truncate(size, do), lambda: real(size))

    def xSync(self, flags: int) -> None:
        real = super().xSync
        _perform(self.recorded.sync, lambda: real(flags))


class _Cursor:
    """What the store asks of a cursor."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def fetchone(self) -> Any:
        return _translated(self._cursor.fetchone)

    def fetchall(self) -> list[Any]:
        rows: list[Any] = _translated(self._cursor.fetchall)
        return rows

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row


class _Connection:
    """What the store asks of a connection."""

    def __init__(self, path: str, timeout: float, uri: bool) -> None:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | (apsw.SQLITE_OPEN_URI if uri else 0)
        self._connection = _translated(lambda: apsw.Connection(path, flags=flags, vfs=NAME))
        self._connection.set_busy_timeout(round(timeout * 1000))

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> _Cursor:
        return _Cursor(_translated(lambda: self._connection.execute(sql, tuple(parameters))))

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> _Cursor:
        return _Cursor(_translated(lambda: self._connection.executemany(sql, (tuple(row) for row in rows))))

    @property
    def in_transaction(self) -> bool:
        return bool(self._connection.in_transaction)

    def __enter__(self) -> "_Connection":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        """Commit or roll back, as sqlite3's does; a COMMIT that fails is rolled back."""
        if not self.in_transaction:
            return
        try:
            self.execute("COMMIT" if error is None else "ROLLBACK")
        except sqlite3.Error:
            if error is None and self.in_transaction:
                self.execute("ROLLBACK")
            raise

    def close(self) -> None:
        with contextlib.suppress(apsw.Error):  # sqlite3 closes without a word too: what was committed is in the log
            self._connection.close()


def install(recorder: Recorder) -> None:
    with _lock:
        if not _recorders:
            _kept.append(_Vfs())
            sqlite3.connect = _stand_in
        _recorders.append(recorder)
        apsw.randomness(0)  # SQLite's generator forgets, and asks its default VFS for a seed


def remove(recorder: Recorder) -> None:
    with _lock:
        _recorders.remove(recorder)
        if not _recorders:
            sqlite3.connect = _connect
            apsw.unregister_vfs(NAME)  # the default before it is the default again
        apsw.randomness(0)


def _stand_in(database: Any, *arguments: Any, **settings: Any) -> Any:
    text, uri = os.fsdecode(database), settings.get("uri", False)
    path = urllib.parse.unquote(urllib.parse.urlsplit(text).path) if uri and text.startswith("file:") else text
    if _find(os.path.realpath(path)) is None:
        return _connect(database, *arguments, **settings)
    return _Connection(text, settings.get("timeout", 5.0), uri)


def _find(path: str) -> tuple[Recorder, str] | None:
    """Whose file this is. A recorder whose block is over still answers for the files that it left open."""
    if path.endswith(SHARED_MEMORY):
        return None
    for recorder in itertools.chain(reversed(_recorders), (file.recorded.recorder for file in list(_open_files))):
        name = recorder.name_of(path)
        if name is not None:
            return recorder, name
    return None


def _perform(perform: Callable[[Callable[[], int]], int], real: Callable[[], object]) -> None:
    """apsw tells errors by raising them, the recorder by SQLite's codes."""
    raised: list[apsw.Error] = []

    def do() -> int:
        try:
            real()
        except apsw.Error as error:
            raised.append(error)
            return _code(error) or apsw.SQLITE_IOERR
        return OK

    code = perform(do)
    if raised:
        raise raised[0]
    if code != OK:
        raise apsw.exception_for(code)


def _translated(step: Callable[[], T]) -> T:
    """Run a step of apsw's; its errors are raised as the standard library's."""
    try:
        return step()
    except apsw.Error as error:
        code = _code(error) or apsw.SQLITE_ERROR
        kind = ERRORS.get(code & 0xFF, sqlite3.OperationalError)
        told = kind(str(error))
        told.sqlite_errorcode = code
        raise told from error


def _code(error: apsw.Error) -> int:
    """SQLite's extended result code; 0 for errors of apsw itself."""
    return int(getattr(error, "extendedresult", 0))
