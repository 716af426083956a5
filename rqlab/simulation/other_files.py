"""Watches what a queue keeps in files that SQLite does not write, so that a power cut takes these too.

SQLite's own calls lead to the recorder; nobody else's do. So the directory is looked at: what is new in it was written
since the last look, and it is safe when Python was asked to fsync it.
"""

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from rqlab.simulation.recorder import OK, SHARED_MEMORY, Kind, Operation, Recorder, RecorderUnavailable

DIRECTORY = "."  # a sync under this name makes names safe, and no content
SQLITE_HEADS = (b"SQLite format 3\0", b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")  # of a database, and of its logs
SYNCS = ("fsync", "fdatasync")  # of the module os


class _Seen(NamedTuple):
    """A file at the last look."""

    inode: int
    changed_at: int  #: nanoseconds, as the file system counts them
    content: bytes


class OtherFiles:
    """Adds to a recorder's log, while its `with` block runs, what happens to files that SQLite has not opened.

    A look comes before everything that SQLite asks for, before every fsync, and when `look` is called. What lies
    between two looks is one change: a file written twice was written once, and one that is overwritten with as many
    bytes within one tick of the file system's clock was not written at all.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._seen: dict[str, _Seen] = {}
        self._of_sqlite: set[str] = set()
        self._read_to = 0  # operations of the log that we have read
        self._is_looking = False
        self._real: dict[str, Callable[[int], None]] = {}

    def __enter__(self) -> Self:
        self._recorder.before_operation = self.look
        for name in SYNCS:
            if hasattr(os, name):  # macOS has no fdatasync
                self._real[name] = getattr(os, name)
                setattr(os, name, self._watched(self._real[name]))  # a library's call leaves no other trace
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._recorder.before_operation = None
        for name, real in self._real.items():
            setattr(os, name, real)

    def look(self) -> None:
        """Write down what has changed. RecorderUnavailable if a SQLite is at work that the recorder does not see."""
        with self._recorder.lock:
            if self._is_looking:
                return  # it is what we have found that is written down
            self._is_looking = True
            try:
                self._look()
            finally:
                self._is_looking = False

    def _look(self) -> None:
        for operation in self._recorder.operations[self._read_to :]:
            self._of_sqlite.add(operation.name)  # ours are read over: see _record
            self._seen.pop(operation.name, None)
        self._read_to = len(self._recorder)
        there = {name: path for name, path in self._files() if name not in self._of_sqlite}
        names = {seen.inode: name for name, seen in self._seen.items()}
        for name, path in there.items():
            self._look_at(name, path, names)
        for name in self._seen.keys() - there.keys():
            self._record(Operation(Kind.DELETE, name))
            del self._seen[name]

    def _files(self) -> list[tuple[str, Path]]:
        directory = self._recorder.directory
        found = [path for path in directory.rglob("*") if path.is_file() and not path.name.endswith(SHARED_MEMORY)]
        return sorted((str(path.relative_to(directory)), path) for path in found)

    def _look_at(self, name: str, path: Path, names: dict[int, str]) -> None:
        before = self._seen.get(name)
        try:
            state = path.stat()
            if before is not None and (before.inode, before.changed_at) == (state.st_ino, state.st_mtime_ns):
                return
            content = path.read_bytes()
        except FileNotFoundError:
            return  # it went while we looked; the next look finds it gone
        if content.startswith(SQLITE_HEADS):
            raise RecorderUnavailable(
                f"cannot audit {name}: it was written by a SQLite other than that of Python's sqlite3 (apsw, another "
                "process, an extension), so its syncs cannot be seen"
            )
        if before is None or before.inode != state.st_ino:
            before = self._arrived(name, state.st_ino, content, names)
        self._wrote(name, before.content, content)
        self._seen[name] = _Seen(state.st_ino, state.st_mtime_ns, content)

    def _arrived(self, name: str, inode: int, content: bytes, names: dict[int, str]) -> _Seen:
        """A name has got another file: one that was there under another name, or a new one."""
        old = names.get(inode)
        if old is None or old not in self._seen:
            if name not in self._seen:
                self._record(Operation(Kind.CREATE, name))
                return _Seen(inode, 0, b"")
            old = f"{name}~"  # it was made under a name that was gone again before we looked
            self._record(Operation(Kind.CREATE, old))
            self._record(Operation(Kind.WRITE, old, 0, content))
            self._seen[old] = _Seen(inode, 0, content)
        self._record(Operation(Kind.RENAME, old, payload=os.fsencode(name)))
        return self._seen.pop(old)

    def _wrote(self, name: str, before: bytes, content: bytes) -> None:
        if content.startswith(before):
            if len(content) > len(before):
                self._record(Operation(Kind.WRITE, name, len(before), content[len(before) :]))
        else:
            self._record(Operation(Kind.TRUNCATE, name, 0))
            self._record(Operation(Kind.WRITE, name, 0, content))

    def _watched(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            real(fd)
            inode = os.fstat(fd).st_ino
            with self._recorder.lock:
                self.look()
                name = next((name for name, seen in self._seen.items() if seen.inode == inode), None)
                if name is not None:
                    self._record(Operation(Kind.SYNC, name))
                elif self._is_directory(inode):
                    self._record(Operation(Kind.SYNC, DIRECTORY, with_names=True))

        return sync

    def _is_directory(self, inode: int) -> bool:
        directory = self._recorder.directory
        return any(path.stat().st_ino == inode for path in (directory, *directory.rglob("*/")))

    def _record(self, operation: Operation) -> None:
        with self._recorder.lock:
            assert self._read_to == len(self._recorder), "what SQLite did since is not read yet"
            self._recorder.perform(operation, lambda: OK)  # it happened already
            self._read_to = len(self._recorder)
