"""The machine that simulated processes share: where their stores are, and what is left of them after a crash.

`Disk` is a directory behind the recorder, which every simulated process opens for itself as a real one would, with a
connection, locks and shared memory of its own: so locks between processes, `data_version` and recovery are the real
ones. A killed process's files are closed while the recorder refuses all I/O: nothing is written back. `Memory` stands
in for it where thousands of seeds are to be run: one store that no crash harms, or, in the mode that promises
nothing, one that goes with its process.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from rqlab.durability import MODES, Opening
from rqlab.errors import RQLabError
from rqlab.simulation.faults import Fault
from rqlab.simulation.platter import CRASH_KINDS, Cut, Platter
from rqlab.simulation.recorder import ERRORS, OK, Kind, Operation, Recorder
from rqlab.simulation.windows import IN_LOG, JOURNAL, SNAPSHOT, WAL, windows_at
from rqlab.storage import Store
from rqlab.storage.disk import DiskStore
from rqlab.storage.hybrid import HybridStore
from rqlab.storage.locks import Lock
from rqlab.storage.memory import MemoryStore

JOBS = "jobs"  # the store's directory within the recorded one
FULL = (Kind.CREATE, Kind.WRITE)  # what a full disk refuses


class Machine(Protocol):
    """Where the stores of a world are."""

    survives_kill: bool  #: another process, or the disk, still has what a killed one stored
    windows: frozenset[str]  #: rows of WINDOWS that the newest power cut fell into

    @property
    def is_down(self) -> bool:
        """The power failed, or a process was killed, inside the step that has just ended."""

    @property
    def is_refusing(self) -> bool:
        """Whether the disk answers something with an error now."""

    def open(self) -> Store:
        """What a process does first; a StoreError if it cannot."""

    def leave(self, store: Store) -> None:
        """The process that had it was killed, or has closed it."""

    def cut(self, fault: Fault, seed: int, in_snapshot: bool) -> str:
        """The power fails, now; all processes must have left, one of them while a snapshot waited. The crash kind."""

    def arm(self, fault: Fault) -> None:
        """Stop all I/O at the operation, or in the window, that the fault names, counted from now on."""

    def disarm(self) -> None: ...

    def revive(self) -> None:
        """I/O goes on: only a process was killed."""

    def complaints(self, store: Store) -> list[str]:
        """What is wrong with the file."""


class Memory:
    """A store in memory. `is_kept`: it stands in for a disk, and survives whatever happens to processes."""

    is_down = False
    is_refusing = False
    windows: frozenset[str] = frozenset()  # there is no log

    def __init__(self, is_kept: bool) -> None:
        self.survives_kill = is_kept
        self._store = MemoryStore()

    def open(self) -> Store:
        return self._store

    def leave(self, store: Store) -> None:
        if not self.survives_kill:
            self._store = MemoryStore()

    def cut(self, fault: Fault, seed: int, in_snapshot: bool) -> str:
        return fault.how.partition("/")[0] or "lost"

    def arm(self, fault: Fault) -> None:
        raise AssertionError("there are no operations in memory")

    def disarm(self) -> None: ...

    def revive(self) -> None: ...

    def complaints(self, store: Store) -> list[str]:
        return []


class Disk:
    """A directory behind the recorder; use it as a context manager."""

    survives_kill = True

    def __init__(self, scratch: Path, durability: str, opening: Opening, seed: int, checkpoint_frames: int) -> None:
        self._scratch = scratch
        self._mode = MODES[durability]
        self._opening = opening
        self._seed = seed
        self._checkpoint_frames = checkpoint_frames
        self._names = itertools.count()
        self._block = contextlib.ExitStack()
        self.cuts: list[tuple[Cut, frozenset[str]]] = []  #: power cuts, and the windows that each fell into
        self.windows: frozenset[str] = frozenset()
        self.operations = 0  #: in the logs of the directories before this one
        self._syncs = 0  #: the same
        self.recorder = self._begin(None)

    @property
    def is_down(self) -> bool:
        return self.recorder.is_stopped

    @property
    def is_refusing(self) -> bool:
        refusals = self.recorder.refusals
        return bool(refusals) and any(refusal.times != 0 for refusal in refusals)

    @property
    def syncs(self) -> int:
        """How often the disk was told to keep what it has been given."""
        return self._syncs + _syncs(self.recorder.operations)

    def open(self) -> Store:
        store = self._mode.open(self._opening._replace(path=self.recorder.directory / JOBS))
        try:
            _file_of(store)._read(lambda raw: raw.run(f"PRAGMA wal_autocheckpoint = {self._checkpoint_frames}"))
        except RQLabError:
            self.leave(store)
            raise
        return store

    def leave(self, store: Store) -> None:
        """Nothing is flushed, nothing written back: the files are let go of, as the kernel does for the dead."""
        was_stopped, self.recorder.is_stopped = self.recorder.is_stopped, True
        file = _file_of(store)
        file._closed = True
        if isinstance(store, HybridStore):
            store._closed = True
        file._connection.close()
        file._write_lock.close()
        file._owner.close()
        self.recorder.is_stopped = was_stopped

    def cut(self, fault: Fault, seed: int, in_snapshot: bool) -> str:
        kind, _, names = (fault.how or "lost").partition("/")
        recording = self.recorder.recording
        cut = Cut(len(recording.operations), kind, names or "journalled", seed)
        self.windows = windows_at(recording.operations)[cut.at]
        if in_snapshot or (self._mode.name == "hybrid" and self.windows & {"torn frame", "creation"} == {"torn frame"}):
            self.windows |= {SNAPSHOT}  # once its file is made, hybrid writes nothing else
        self.cuts.append((cut, self.windows))
        self.operations += len(recording.operations)
        self._syncs += _syncs(recording.operations)
        image = Platter(recording).cut(cut)
        self._block.close()
        self._block = contextlib.ExitStack()
        self.recorder = self._begin(image.write)
        return kind

    def arm(self, fault: Fault) -> None:
        if fault.window:
            self.recorder.stop_in(fault.window if fault.window in OPENS else "")
        else:
            self.recorder.stop_at = len(self.recorder) + fault.operation

    def disarm(self) -> None:
        self.recorder.stop_at = None
        self.recorder.stop_in("")

    def revive(self) -> None:
        self.disarm()
        self.recorder.is_stopped = False

    def complaints(self, store: Store) -> list[str]:
        file = _file_of(store)
        rows = file._read(lambda raw: raw.sql("PRAGMA integrity_check(10)").fetchall())
        said = [str(line) for (line,) in rows]
        return [] if said == ["ok"] else said

    def refuse(self, error: str, kinds: tuple[Kind, ...] = tuple(Kind), times: int | None = None) -> None:
        """Answer operations of these kinds with an error: so many, or all until `heal`."""
        self.recorder.refusals.append(Refusal(error, kinds, times))

    def heal(self, error: str) -> None:
        self.recorder.refusals = [refusal for refusal in self.recorder.refusals if refusal.error != error]

    def lock(self) -> Lock:
        """Take the write lock, as another process would."""
        lock = Lock(self.recorder.directory / JOBS / "write.lock", 0.0)
        lock.acquire()
        return lock

    def close(self) -> None:
        self.recorder.is_stopped = True
        self._block.close()

    def _begin(self, lay_out: Callable[[Path], None] | None) -> "WorldRecorder":
        directory = self._scratch / f"disk-{next(self._names)}"
        if lay_out is None:
            directory.mkdir(mode=0o700)
        else:
            lay_out(directory)
        return self._block.enter_context(WorldRecorder(directory, seed=self._seed))


def is_in_snapshot(store: Store) -> bool:
    """Whether a snapshot was taken, and is not stored yet."""
    return isinstance(store, HybridStore) and store._taken is not None


def _file_of(store: Store) -> DiskStore:
    file = store.disk if isinstance(store, HybridStore) else store
    assert isinstance(file, DiskStore), "a disk has stores in files"
    return file


class Refusal:
    """An error that some operations get for an answer."""

    def __init__(self, error: str, kinds: tuple[Kind, ...], times: int | None) -> None:
        self.error = error  #: a row of ERRORS
        self.kinds = kinds
        self.times = times  #: how often still; None: always


class WorldRecorder(Recorder):
    """A recorder that can refuse by kind of operation, and stop when a window opens."""

    def __init__(self, directory: Path, *, seed: int) -> None:
        super().__init__(directory, seed=seed)
        self.refusals: list[Refusal] = []
        self._window = ""
        self._has_frames = False  #: the log has some

    def stop_in(self, window: str) -> None:
        """Stop all I/O right after the operation that next opens this window; nothing: do not."""
        self._window = window

    def perform(self, operation: Operation, do: Callable[[], int]) -> int:
        if not (self._window or self.refusals):
            return super().perform(operation, do)
        code = super().perform(operation, do)
        if code == OK and self._window and OPENS[self._window](operation, self.operations):
            self.is_stopped = True
        return code

    def _refusal(self, kind: Kind) -> int:
        for refusal in self.refusals:
            if kind in refusal.kinds and refusal.times != 0:
                if refusal.times is not None:
                    refusal.times -= 1
                return ERRORS[refusal.error][kind]
        return super()._refusal(kind)


def _syncs(log: Sequence[Operation]) -> int:
    return sum(operation.kind is Kind.SYNC for operation in log)


def _is_log(operation: Operation, kind: Kind) -> bool:
    return operation.kind is kind and operation.name.endswith(WAL)


def _is_database(operation: Operation, kind: Kind) -> bool:
    return operation.kind is kind and not operation.name.endswith((WAL, JOURNAL))


def _restarts(operation: Operation, log: list[Operation]) -> bool:
    return (
        _is_log(operation, Kind.WRITE) and operation.offset == 0 and any(_is_log(each, Kind.WRITE) for each in log[:-1])
    )


#: The operation that opens each window; `windows.py` judges afterwards whether the cut fell into it.
OPENS: dict[str, Callable[[Operation, list[Operation]], bool]] = {
    "torn frame": lambda operation, log: _is_log(operation, Kind.WRITE) and operation.offset > 0,
    "log restart": _restarts,
    "checkpoint": lambda operation, log: _is_database(operation, Kind.WRITE) and operation.offset > 0,
    "creation": lambda operation, log: _is_log(operation, Kind.WRITE),
    "last close": lambda operation, log: _is_log(operation, Kind.DELETE),
}
assert OPENS.keys() == IN_LOG.keys(), "every window of a log can be waited for"
assert "lost" in CRASH_KINDS, "the kind of a cut that names none"
