"""The recorder inside the SQLite that the standard library uses: a VFS of ours around its default one, by ctypes.

Files below a recorded directory get a copy of their own method table, in which read, write, truncate, sync and close
lead here; locks and shared memory stay native. Every other file keeps SQLite's own table. What SQLite may call is
kept for ever: a connection that outlives its `with` block still points at it. One that is still open as the interpreter
ends, when a call into Python would be a segmentation fault, is given SQLite's own functions back before.
"""

import _sqlite3
import atexit
import ctypes
import itertools
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

from rqlab.simulation.recorder import (
    OK,
    SHARED_MEMORY,
    RecordedFile,
    Recorder,
    RecorderUnavailable,
)

log = logging.getLogger("rqlab")

NAME = b"rqlab-recorder"
OPEN_CREATE = 0x00000004
OPEN_MADE_WITH_NAMES = 0x00000800 | 0x00004000 | 0x00080000  # a main journal, a super-journal, a write-ahead log
IOERR = 10

POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
OPEN = ctypes.CFUNCTYPE(INT, POINTER, POINTER, POINTER, INT, ctypes.POINTER(INT))
DELETE = ctypes.CFUNCTYPE(INT, POINTER, POINTER, INT)
RANDOMNESS = ctypes.CFUNCTYPE(INT, POINTER, INT, POINTER)
CLOSE = ctypes.CFUNCTYPE(INT, POINTER)
READ_OR_WRITE = ctypes.CFUNCTYPE(INT, POINTER, POINTER, INT, LONG)
TRUNCATE = ctypes.CFUNCTYPE(INT, POINTER, LONG)
SYNC = ctypes.CFUNCTYPE(INT, POINTER, INT)


def _fields(ints: str, pointers: str) -> list[tuple[str, Any]]:
    return [(name, INT) for name in ints.split()] + [(name, POINTER) for name in pointers.split()]


class _Vfs(ctypes.Structure):
    """sqlite3_vfs, https://sqlite.org/c3ref/vfs.html, version 3: older ones are its beginning."""

    _fields_ = _fields(
        "iVersion szOsFile mxPathname",
        "pNext zName pAppData xOpen xDelete xAccess xFullPathname xDlOpen xDlError xDlSym xDlClose xRandomness xSleep "
        "xCurrentTime xGetLastError xCurrentTimeInt64 xSetSystemCall xGetSystemCall xNextSystemCall",
    )


class _Methods(ctypes.Structure):
    """sqlite3_io_methods, https://sqlite.org/c3ref/io_methods.html, version 3."""

    _fields_ = _fields(
        "iVersion",
        "xClose xRead xWrite xTruncate xSync xFileSize xLock xUnlock xCheckReservedLock xFileControl xSectorSize "
        "xDeviceCharacteristics xShmMap xShmLock xShmBarrier xShmUnmap xFetch xUnfetch",
    )


class _File(ctypes.Structure):
    """The head of any sqlite3_file; the rest is its VFS's own."""

    _fields_ = _fields("", "pMethods")


LAST_VFS_FIELD = {1: "xGetLastError", 2: "xCurrentTimeInt64"}
LAST_METHOD = {1: "xDeviceCharacteristics", 2: "xShmUnmap"}


class _Table:
    """One of SQLite's method tables, and the copy of it that leads to a recorder."""

    def __init__(self, address: int, files: dict[int, RecordedFile], refusal: int | None) -> None:
        self._files = files
        self._refusal = refusal  #: the address of a function that always fails
        self._copy = _copied(_Methods, address, LAST_METHOD)
        self._native_close = self._copy.xClose
        self._close: Callable[..., int] = CLOSE(self._native_close)
        self._read = READ_OR_WRITE(self._copy.xRead)
        self._write = READ_OR_WRITE(self._copy.xWrite)
        self._truncate = TRUNCATE(self._copy.xTruncate)
        self._sync = SYNC(self._copy.xSync)
        self._kept = [
            _lead(self._copy, "xClose", CLOSE, self.close),
            _lead(self._copy, "xRead", READ_OR_WRITE, self.read),
            _lead(self._copy, "xWrite", READ_OR_WRITE, self.write),
            _lead(self._copy, "xTruncate", TRUNCATE, self.truncate),
            _lead(self._copy, "xSync", SYNC, self.sync),
        ]
        self.address = ctypes.addressof(self._copy)

    def refuse(self) -> int:
        """Make each call that reads or writes fail without Python; the address of the table.

        What fails whatever it is given is SQLite's own `sqlite3_libversion_number`: its answer is never 0, which would
        mean that it was done.
        """
        for field in ("xRead", "xWrite", "xTruncate", "xSync"):
            setattr(self._copy, field, self._refusal)
        self._copy.xClose = self._native_close
        return self.address

    def close(self, file: int) -> int:
        self._files.pop(file, None)
        return self._close(file)

    def read(self, file: int, buffer: int, count: int, offset: int) -> int:
        return self._files[file].read(lambda: self._read(file, buffer, count, offset))

    def write(self, file: int, buffer: int, count: int, offset: int) -> int:
        payload = ctypes.string_at(buffer, count)
        return self._files[file].write(payload, offset, lambda: self._write(file, buffer, count, offset))

    def truncate(self, file: int, size: int) -> int:
        return self._files[file].truncate(size, lambda: self._truncate(file, size))

    def sync(self, file: int, flags: int) -> int:
        return self._files[file].sync(lambda: self._sync(file, flags))


class _Interceptor:
    """Our VFS; one for the process, made at the first recording and never freed."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._recorders: list[Recorder] = []  # the newest last
        self._files: dict[int, RecordedFile] = {}  # by the address of the open sqlite3_file
        self._tables: dict[int, _Table] = {}  # by the address of SQLite's own
        self._lock = threading.Lock()
        self._default: int = library.sqlite3_vfs_find(None)
        self._vfs = _copied(_Vfs, self._default, LAST_VFS_FIELD)
        self._natives = {field: getattr(self._vfs, field) for field in ("xOpen", "xDelete", "xRandomness")}
        self._open: Callable[..., int] = OPEN(self._vfs.xOpen)
        self._delete: Callable[..., int] = DELETE(self._vfs.xDelete)
        self._randomness: Callable[..., int] = RANDOMNESS(self._vfs.xRandomness)
        self._name = ctypes.create_string_buffer(NAME)
        self._vfs.zName = ctypes.addressof(self._name)
        self._vfs.pNext = None
        self._kept = [
            _lead(self._vfs, "xOpen", OPEN, self.open),
            _lead(self._vfs, "xDelete", DELETE, self.delete),
            _lead(self._vfs, "xRandomness", RANDOMNESS, self.randomness),
        ]
        self._address = ctypes.addressof(self._vfs)
        self._refusal = ctypes.cast(library.sqlite3_libversion_number, POINTER).value
        atexit.register(self.hand_back)

    def install(self, recorder: Recorder) -> None:
        with self._lock:
            self._recorders.append(recorder)
            self._library.sqlite3_vfs_register(self._address, 1)
            self._library.sqlite3_randomness(0, None)  # its generator forgets, and asks us for a seed

    def remove(self, recorder: Recorder) -> None:
        with self._lock:
            self._recorders.remove(recorder)
            self._library.sqlite3_randomness(0, None)
            if not self._recorders:
                if self._library.sqlite3_vfs_find(None) == self._address:
                    self._library.sqlite3_vfs_register(self._default, 1)
                self._library.sqlite3_vfs_unregister(self._address)

    def hand_back(self) -> None:
        """The interpreter ends: from here on SQLite calls no Python. Where the power was cut, it stays cut."""
        with self._lock:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))  # never freed: connections point into its structures
            originals = {table.address: original for original, table in self._tables.items()}
            for file, recorded in self._files.items():
                head = _File.from_address(file)
                original = originals[head.pMethods]
                head.pMethods = self._tables[original].refuse() if recorded.recorder.is_stopped else original
            for field, function in self._natives.items():
                setattr(self._vfs, field, function)
            self._library.sqlite3_vfs_register(self._default, 1)
            self._library.sqlite3_vfs_unregister(self._address)

    # What SQLite calls.

    def open(self, vfs: int, path: int | None, file: int, flags: int, flags_out: Any) -> int:
        found = self._find(path)
        if found is None:
            return self._open(self._default, path, file, flags, flags_out)
        recorder, name = found
        assert path is not None, "a file without a name is nobody's"
        code = recorder.open(name, lambda: self._open(self._default, path, file, flags, flags_out))
        head = _File.from_address(file)
        if code != OK:
            head.pMethods = None  # SQLite must not close what was refused
            return code
        self._files[file] = RecordedFile(recorder, name, bool(flags & OPEN_CREATE and flags & OPEN_MADE_WITH_NAMES))
        table = self._tables.get(head.pMethods)
        if table is None:
            table = self._tables.setdefault(head.pMethods, _Table(head.pMethods, self._files, self._refusal))
        head.pMethods = table.address
        return OK

    def delete(self, vfs: int, path: int | None, sync_names: int) -> int:
        found = self._find(path)
        if found is None:
            return self._delete(self._default, path, sync_names)
        recorder, name = found
        real_sync = sync_names if recorder.real_fsync else 0
        return recorder.delete(name, bool(sync_names), lambda: self._delete(self._default, path, real_sync))

    def randomness(self, vfs: int, count: int, buffer: int) -> int:
        if not self._recorders:
            return self._randomness(self._default, count, buffer)
        ctypes.memmove(buffer, self._recorders[-1].random_bytes(count), count)
        return count

    def _find(self, path: int | None) -> tuple[Recorder, str] | None:
        """Whose file this is. A recorder whose block is over still answers for the files that it left open."""
        if path is None:
            return None
        text = os.fsdecode(ctypes.string_at(path))
        if text.endswith(SHARED_MEMORY):
            return None
        left = (file.recorder for file in list(self._files.values()))
        for recorder in itertools.chain(reversed(self._recorders), left):
            name = recorder.name_of(text)
            if name is not None:
                return recorder, name
        return None


_interceptor: _Interceptor | None = None


def install(recorder: Recorder) -> None:
    global _interceptor
    if _interceptor is None:
        _interceptor = _Interceptor(_library())
    _interceptor.install(recorder)
    try:
        sqlite3.connect(f"file:probe?mode=memory&vfs={NAME.decode()}", uri=True).close()
    except sqlite3.OperationalError as error:
        _interceptor.remove(recorder)
        raise RecorderUnavailable(f"the SQLite found is not the one that sqlite3 uses ({error})") from error


def remove(recorder: Recorder) -> None:
    assert _interceptor is not None, "nothing is removed that was not installed"
    _interceptor.remove(recorder)


def _library() -> ctypes.CDLL:
    """The very SQLite inside `sqlite3`: through its extension module, or the program where that is built in."""
    library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
    if not hasattr(library, "sqlite3_vfs_find"):
        raise RecorderUnavailable(
            f"expected the symbols of SQLite in {getattr(_sqlite3, '__file__', 'this program')}; they are hidden"
        )
    library.sqlite3_vfs_find.restype = POINTER
    library.sqlite3_vfs_find.argtypes = [ctypes.c_char_p]
    library.sqlite3_vfs_register.argtypes = [POINTER, INT]
    library.sqlite3_vfs_unregister.argtypes = [POINTER]
    library.sqlite3_randomness.argtypes = [INT, POINTER]
    library.sqlite3_randomness.restype = None
    return library


def _copied(kind: Any, address: int, last_field: dict[int, str]) -> Any:
    """A copy of one of SQLite's structures, as long as its version says."""
    version = kind.from_address(address).iVersion
    last = getattr(kind, last_field[version]) if version in last_field else None
    copy = kind()
    ctypes.memmove(ctypes.addressof(copy), address, ctypes.sizeof(kind) if last is None else last.offset + last.size)
    return copy


def _lead(structure: Any, field: str, signature: Any, answer: Callable[..., int]) -> Any:
    """Make a function pointer lead to `answer`; the caller must keep what this returns."""

    def guarded(*arguments: Any) -> int:
        try:
            return answer(*arguments)
        except BaseException:  # an interrupt, say: ctypes would print it and answer 0, and 0 means that it was done
            log.exception("the recorder failed in %s; SQLite is told of an I/O error", field)
            return IOERR

    callback = signature(guarded)
    setattr(structure, field, ctypes.cast(callback, POINTER).value)
    return callback
