"""Writes down what SQLite asks of the disk, and refuses it when told to: disk full, I/O errors, the power cut.

It knows operations on named files, and nothing of how they are intercepted: that is `vfs.py`, for the SQLite inside
the standard library, or `apsw_vfs.py` where that one cannot be reached.
"""

import importlib
import logging
import random
import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from rqlab.errors import RQLabError

log = logging.getLogger("rqlab")

SHARED_MEMORY = "-shm"  # the suffix of SQLite's index of the log: memory that looks like a file, gone after a power cut
BACKENDS = ("vfs", "apsw_vfs")  # modules here that can intercept SQLite; the first that works is used


class RecorderUnavailable(RQLabError):
    """This Python's SQLite can be intercepted in no way that the recorder knows."""


class Kind(StrEnum):
    """What a disk is asked for. Reads and locks leave no trace on it and are not written down."""

    OPEN = "open"  #: of a file that is there
    CREATE = "create"
    WRITE = "write"
    TRUNCATE = "truncate"
    SYNC = "sync"
    DELETE = "delete"
    RENAME = "rename"  #: SQLite never does; the payload is the new name


class Operation(NamedTuple):
    """One line of the log: an operation on one file, done or refused."""

    kind: Kind
    name: str  #: of the file, relative to the recorded directory
    offset: int = 0  #: bytes; where a write begins, what length a truncate leaves
    payload: bytes = b""  #: of a write
    with_names: bool = False  #: a sync or delete that makes the names in its directory safe too
    refused: bool = False  #: it got an error for an answer, and changed nothing


class Recording(NamedTuple):
    """A log, and the files that were there before it began: all that `platter` needs."""

    before: dict[str, bytes]  #: by name; taken to be safe
    operations: list[Operation]


class Fault(NamedTuple):
    """An answer that is an error: to operation `at`, or to it and every later one."""

    at: int  #: counted from 0, as in the log; a refused operation counts
    error: str  #: a row of ERRORS
    lasting: bool = False


#: SQLite's result codes, by error and kind of operation: the extended codes that its own layer over POSIX gives.
ERRORS: dict[str, dict[Kind, int]] = {
    "disk full": {
        Kind.OPEN: 14,  # CANTOPEN: that layer hides why a file could not be opened
        Kind.CREATE: 14,
        Kind.WRITE: 13,  # FULL
        Kind.TRUNCATE: 13,
        Kind.SYNC: 13,
        Kind.DELETE: 2570,  # IOERR_DELETE
        Kind.RENAME: 10,  # IOERR; SQLite has no code for what it never does
    },
    "I/O error": {
        Kind.OPEN: 14,
        Kind.CREATE: 14,
        Kind.WRITE: 778,  # IOERR_WRITE
        Kind.TRUNCATE: 1546,  # IOERR_TRUNCATE
        Kind.SYNC: 1034,  # IOERR_FSYNC
        Kind.DELETE: 2570,
        Kind.RENAME: 10,
    },
}
OK = 0
IOERR_READ = 266


class Backend(Protocol):
    """A module that routes SQLite's calls for a recorder's directory through it, and all others past it."""

    def install(self, recorder: "Recorder") -> None:
        """Begin; RecorderUnavailable if SQLite cannot be reached this way."""

    def remove(self, recorder: "Recorder") -> None:
        """Put everything back as it was."""


class Recorder:
    """Records SQLite's operations below one directory while its `with` block runs; nobody else's files notice.

        with Recorder(directory) as recorder:
            store = DiskStore(directory / "jobs")
            ...
        platter = Platter(recorder.recording)

    `seed` makes SQLite's own randomness (the salts of its logs) a function of it. `real_fsync=False` answers a sync
    without asking the disk: the model in `platter` is what says what is safe. `stop_at` cuts the power before that
    operation: it and all later I/O fail, reads too, or the dying code would go on writing. Close stores inside the
    block; one that was cut may be left to the garbage collector, it can do no harm.

    Begin before a store in the directory is opened: its files are read here, and to close a file that SQLite has open
    drops this process's locks on it.

    `backend` is a row of BACKENDS; left out, the first that works is used, else RecorderUnavailable is raised.
    `stamp` is asked at each operation, and its answers are kept in `stamps`: by them one tells how old a lost write is.
    """

    def __init__(
        self,
        directory: Path,
        *,
        seed: int = 0,
        real_fsync: bool = False,
        stop_at: int | None = None,
        faults: tuple[Fault, ...] = (),
        backend: str | None = None,
        stamp: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.directory = directory.resolve()
        self.real_fsync = real_fsync
        self.stop_at = stop_at
        self.faults = faults  #: may be replaced at any time
        self.before_operation: Callable[[], None] | None = None  #: called before each; may add operations of its own
        self.is_stopped = False
        self.operations: list[Operation] = []
        self.stamps: list[float] = []  #: of each operation, what `stamp` said as it was asked for
        self.before: dict[str, bytes] = {}
        self._known: set[str] = set()  # names of files that are in `before` or in the log
        self._stamp = stamp
        self._random = random.Random(seed)
        self._backends = BACKENDS if backend is None else (backend,)
        self._installed: Backend | None = None
        self.backend: str | None = None  #: the row of BACKENDS that is at work, or was
        self.lock = threading.RLock()  #: two connections: an operation and its line in the log are one step

    @property
    def recording(self) -> Recording:
        return Recording(self.before, list(self.operations))

    def content_before(self, path: Path) -> bytes:
        """What a file holds as the recording begins; who only counts operations need not read gigabytes."""
        return path.read_bytes()

    def __len__(self) -> int:
        """How many operations there have been: where in the log we are."""
        return len(self.operations)

    def stop(self) -> None:
        """Cut the power now."""
        self.is_stopped = True

    def __enter__(self) -> Self:
        self.before = {
            str(path.relative_to(self.directory)): self.content_before(path)
            for path in sorted(self.directory.rglob("*"))
            if path.is_file() and not path.name.endswith(SHARED_MEMORY)
        }
        self._known = set(self.before)
        self._installed = self._install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._installed is not None:
            self._installed.remove(self)
            self._installed = None

    def _install(self) -> Backend:
        complaints = []
        for name in self._backends:
            try:
                backend: Backend = importlib.import_module(f"rqlab.simulation.{name}")
                backend.install(self)
            except (RecorderUnavailable, ImportError) as error:
                complaints.append(f"{name}: {error}")
                log.info("power cuts: %s does not work here: %s", name, error)
            else:
                self.backend = name
                return backend
        raise RecorderUnavailable(
            "cannot record what SQLite writes, so the power cannot be cut: "
            f"{'; '.join(complaints)}. Install the fallback with: pip install 'rqlab[power]'"
        )

    # For the backends.

    def name_of(self, path: str) -> str | None:
        """The name under which a file is recorded; None if it is none of ours."""
        prefix = f"{self.directory}/"
        return path.removeprefix(prefix) if path.startswith(prefix) else None

    def random_bytes(self, count: int) -> bytes:
        """For SQLite's pseudo-random generator, which asks for a seed of its own once after `install`."""
        return self._random.randbytes(count)

    def open(self, name: str, do: Callable[[], int]) -> int:
        """Perform the opening of a file. One that somebody else has made since we began is new to the disk too."""
        with self.lock:
            is_known = name in self._known
            code = self.perform(Operation(Kind.OPEN if is_known else Kind.CREATE, name), do)
            if code == OK and not is_known:
                self._known.add(name)
                content = (self.directory / name).read_bytes()
                if content:
                    self._write_down(Operation(Kind.WRITE, name, 0, content), self._stamp())
            return code

    def delete(self, name: str, syncs_names: bool, do: Callable[[], int]) -> int:
        """Perform the deletion of a file."""
        with self.lock:
            code = self.perform(Operation(Kind.DELETE, name, with_names=syncs_names), do)
            if code == OK:
                self._known.discard(name)
            return code

    def perform(self, operation: Operation, do: Callable[[], int]) -> int:
        """Do it and write it down, or refuse it; SQLite's result code."""
        with self.lock:
            if self.before_operation is not None:
                self.before_operation()
            if self.stop_at is not None and len(self.operations) >= self.stop_at:
                self.is_stopped = True
            if self.is_stopped:
                return ERRORS["I/O error"][operation.kind]
            asked_at = self._stamp()
            code = self._refusal(operation.kind)
            if code == OK:
                code = do()
            done = operation if code == OK else operation._replace(payload=b"", refused=True)
            self._write_down(done, asked_at)
            return code

    def _write_down(self, operation: Operation, asked_at: float) -> None:
        self.stamps.append(asked_at)
        self.operations.append(operation)

    def _refusal(self, kind: Kind) -> int:
        here = len(self.operations)
        for fault in self.faults:
            if fault.at == here or (fault.lasting and fault.at < here):
                return ERRORS[fault.error][kind]
        return OK


class RecordedFile:
    """One open file: what every backend does with SQLite's calls for it.

    SQLite's layer over POSIX fsyncs the directory at the first sync of a journal or a log that it may have made;
    `syncs_names` says that this is still to come.
    """

    __slots__ = ("name", "recorder", "syncs_names")

    def __init__(self, recorder: Recorder, name: str, syncs_names: bool) -> None:
        self.recorder = recorder
        self.name = name
        self.syncs_names = syncs_names

    def read(self, do: Callable[[], int]) -> int:
        return IOERR_READ if self.recorder.is_stopped else do()

    def write(self, payload: bytes, offset: int, do: Callable[[], int]) -> int:
        return self.recorder.perform(Operation(Kind.WRITE, self.name, offset, payload), do)

    def truncate(self, size: int, do: Callable[[], int]) -> int:
        return self.recorder.perform(Operation(Kind.TRUNCATE, self.name, size), do)

    def sync(self, do: Callable[[], int]) -> int:
        real = do if self.recorder.real_fsync else lambda: OK
        code = self.recorder.perform(Operation(Kind.SYNC, self.name, with_names=self.syncs_names), real)
        if code == OK:
            self.syncs_names = False
        return code
