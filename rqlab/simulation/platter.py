"""What is on the platter if the power fails now: a model of a disk, fed with a recorded log.

Between two syncs a disk may do as it likes with what it was given; a crash kind says what it did. Knows files, bytes
and names, not what is in them, and draws every number from the cut's own seed: the same cut is the same image.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rqlab.simulation.recorder import Kind, Operation, Recording

SECTOR = 512  # bytes; what a disk writes whole or not at all, at the least
WIDE_SECTOR = 4096  # bytes; the physical sector of today's disks, which they read, change and write back
KEEP_CHANCES = (0.1, 0.5, 0.9)  # of an unsynced sector; drawn anew for each cut, so that both extremes are met
JUNK_CHANCE = 0.25  # of a sector that was kept, in `garbage`
TORN_CHANCE = 0.25  # of a sector that was in flight, in `nopsow`

Content = bytearray
Survive = Callable[[Content, list[Operation], random.Random], None]


class Cut(NamedTuple):
    """A power cut, by which it can be told and repeated."""

    at: int  #: operations that were issued before it
    kind: str  #: a row of CRASH_KINDS
    names: str = "journalled"  #: a row of NAME_MODELS
    seed: int = 0


class CrashKind(NamedTuple):
    """One way in which a disk loses what it was not told to keep."""

    name: str
    says: str
    survive: Survive  #: change the safe content by what happened to the unsynced operations, oldest first
    keeps_all_names: bool = False
    keeps_unsafe_names: bool = True
    loses_the_last: bool = False  #: SQLite relies on power-safe overwrite: FULL may lose its last transaction


def _keep_all(content: Content, unsynced: list[Operation], dice: random.Random) -> None:
    for operation in unsynced:
        _apply(content, operation)


def _keep_none(content: Content, unsynced: list[Operation], dice: random.Random) -> None:
    pass


def _tear(content: Content, unsynced: list[Operation], dice: random.Random) -> None:
    kept = dice.randint(0, len(unsynced))
    for operation in unsynced[:kept]:
        _apply(content, operation)
    if kept < len(unsynced) and unsynced[kept].kind is Kind.WRITE:
        torn = unsynced[kept]
        _put(content, torn.offset, torn.payload[: dice.randint(0, len(torn.payload))])


def _reorder(content: Content, unsynced: list[Operation], dice: random.Random, junk_chance: float = 0.0) -> None:
    chance = dice.choice(KEEP_CHANCES)
    for operation in unsynced:
        if operation.kind is Kind.TRUNCATE:
            if dice.random() < chance:
                _apply(content, operation)
            continue
        for offset, piece in _sectors(operation, SECTOR):
            if dice.random() < chance:
                is_junk = dice.random() < junk_chance
                _put(content, offset, dice.randbytes(len(piece)) if is_junk else piece)


def _garble(content: Content, unsynced: list[Operation], dice: random.Random) -> None:
    _reorder(content, unsynced, dice, JUNK_CHANCE)


def _tear_neighbours(content: Content, unsynced: list[Operation], dice: random.Random) -> None:
    chance = dice.choice(KEEP_CHANCES)
    for operation in unsynced:
        if operation.kind is Kind.TRUNCATE:
            if dice.random() < chance:
                _apply(content, operation)
            continue
        for offset, piece in _sectors(operation, WIDE_SECTOR):
            if dice.random() < TORN_CHANCE:
                start = offset - offset % WIDE_SECTOR
                end = max(offset + len(piece), min(start + WIDE_SECTOR, len(content)))
                _put(content, start, dice.randbytes(end - start))
            elif dice.random() < chance:
                _put(content, offset, piece)


CRASH_KINDS: dict[str, CrashKind] = {
    kind.name: kind
    for kind in (
        CrashKind("sigkill", "the process dies, the machine goes on: all that was issued survives", _keep_all, True),
        CrashKind("lost", "nothing survives but what was synced", _keep_none, keeps_unsafe_names=False),
        CrashKind("torn", "of each file a prefix of the unsynced operations; the next write is cut at a byte", _tear),
        CrashKind("reorder", "each sector of each unsynced write is kept or lost on its own", _reorder),
        CrashKind("garbage", "each sector of each unsynced write is kept, lost, or holds junk", _garble),
        CrashKind(
            "nopsow",
            "no power-safe overwrite: a half-written sector takes its synced neighbours with it",
            _tear_neighbours,
            loses_the_last=True,
        ),
    )
}


class NameModel(NamedTuple):
    """When the names in a directory (create, delete) are safe, and what is left of those that are not."""

    name: str
    says: str
    any_sync_is_enough: bool  #: a sync of any file makes all earlier names safe
    in_order: bool  #: a prefix of the unsafe ones survives; else each on its own


NAME_MODELS: dict[str, NameModel] = {
    model.name: model
    for model in (
        NameModel("journalled", "as ext4 and xfs: any fsync commits all earlier names; the rest in order", True, True),
        NameModel("strict", "as POSIX reads: only an fsync of the directory; the rest each on its own", False, False),
    )
}


class Image(NamedTuple):
    """The files of a directory after a cut."""

    files: dict[str, bytes]  #: by name, relative to the directory

    def write(self, directory: Path) -> None:
        """Lay the files out in a directory that is not there yet."""
        directory.mkdir(mode=0o700)
        for name, content in self.files.items():
            path = directory / name
            if "/" in name:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(content)


class _Inode:
    """A file apart from its name: what is safe of it, and what was asked for since."""

    __slots__ = ("remembered", "safe", "unsynced")

    def __init__(self, content: bytes = b"") -> None:
        self.safe = Content(content)
        self.unsynced: list[Operation] = []
        self.remembered: Content | None = None  #: what a process reads, once that differs from what may become safe

    def issue(self, operation: Operation) -> None:
        self.unsynced.append(operation)
        if self.remembered is not None:
            _apply(self.remembered, operation)

    def forget(self) -> None:
        """A sync failed, and what it was to write will never be written. Whoever reads the file still finds it."""
        if self.remembered is None:
            self.remembered = self.safe.copy()
            _keep_all(self.remembered, self.unsynced, random.Random(0))
        self.unsynced = []

    def sync(self) -> None:
        _keep_all(self.safe, self.unsynced, random.Random(0))
        self.unsynced = []

    def after(self, kind: CrashKind, dice: random.Random) -> bytes:
        if self.remembered is not None and kind.keeps_all_names:
            return bytes(self.remembered)
        content = self.safe.copy()
        kind.survive(content, self.unsynced, dice)
        return bytes(content)


Names = dict[str, _Inode]


class _Directory:
    """The names under one model: those that are safe, and the changes since."""

    def __init__(self, model: NameModel, names: Names) -> None:
        self.model = model
        self.safe = dict(names)
        self.unsafe: list[tuple[str, _Inode | None]] = []  # None: the name was deleted

    def sync(self) -> None:
        _rename(self.safe, self.unsafe)
        self.unsafe = []

    def after(self, dice: random.Random) -> Names:
        names = dict(self.safe)
        if self.model.in_order:
            _rename(names, self.unsafe[: dice.randint(0, len(self.unsafe))])
        else:
            _rename(names, [change for change in self.unsafe if dice.random() < 0.5])
        return names


class Platter:
    """The disk under a recorded log. Cuts asked for in rising order cost one walk through it.

    With `forgets`, as on Linux: what a sync that failed was to write is never written, and a later sync that succeeds
    says nothing of it.
    """

    def __init__(self, recording: Recording, *, forgets: bool = False) -> None:
        self.recording = recording
        self.forgets = forgets
        self._start()

    def __len__(self) -> int:
        """Cuts may be made before any operation and after the last: at 0 to this."""
        return len(self.recording.operations)

    def cut(self, cut: Cut) -> Image:
        """What is on the platter after a cut."""
        kind = CRASH_KINDS[cut.kind]
        self._walk(cut.at)
        dice = random.Random(f"{cut.seed}/{cut.kind}/{cut.names}/{cut.at}")  # of a text: the same in every process
        directory = self._directories[cut.names]
        if kind.keeps_all_names:
            names = self._names
        elif kind.keeps_unsafe_names:
            names = directory.after(dice)
        else:
            names = directory.safe
        return Image({name: inode.after(kind, dice) for name, inode in names.items()})

    def _start(self) -> None:
        self._at = 0
        self._names: Names = {name: _Inode(content) for name, content in self.recording.before.items()}
        self._directories = {name: _Directory(model, self._names) for name, model in NAME_MODELS.items()}

    def _walk(self, at: int) -> None:
        if not 0 <= at <= len(self):
            raise ValueError(f"cannot cut at operation {at}: expected 0 to {len(self)}")
        if at < self._at:
            self._start()
        for operation in self.recording.operations[self._at : at]:
            if not operation.refused:
                self._issue(operation)
            elif self.forgets and operation.kind is Kind.SYNC:
                self._names[operation.name].forget()
        self._at = at

    def _issue(self, operation: Operation) -> None:
        match operation.kind:
            case Kind.CREATE:
                self._name(operation.name, _Inode())
            case Kind.DELETE:
                self._name(operation.name, None)
                if operation.with_names:
                    self._sync_names(with_directory=True)
            case Kind.WRITE | Kind.TRUNCATE:
                self._names[operation.name].issue(operation)
            case Kind.RENAME:
                self._name(os.fsdecode(operation.payload), self._names[operation.name])
                self._name(operation.name, None)
            case Kind.SYNC:
                if operation.name in self._names:  # else it is the directory's own
                    self._names[operation.name].sync()
                self._sync_names(with_directory=operation.with_names)
            case Kind.OPEN:
                pass

    def _name(self, name: str, inode: _Inode | None) -> None:
        _rename(self._names, [(name, inode)])
        for directory in self._directories.values():
            directory.unsafe.append((name, inode))

    def _sync_names(self, *, with_directory: bool) -> None:
        for directory in self._directories.values():
            if with_directory or directory.model.any_sync_is_enough:
                directory.sync()


def _rename(names: Names, changes: list[tuple[str, _Inode | None]]) -> None:
    for name, inode in changes:
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def _apply(content: Content, operation: Operation) -> None:
    if operation.kind is Kind.WRITE:
        _put(content, operation.offset, operation.payload)
    elif operation.offset < len(content):
        del content[operation.offset :]
    else:
        content.extend(bytes(operation.offset - len(content)))


def _put(content: Content, offset: int, payload: bytes) -> None:
    """Write as a file system does: a gap before the offset reads as zeros."""
    if payload and offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(payload)] = payload


def _sectors(operation: Operation, size: int) -> list[tuple[int, bytes]]:
    """The pieces of a write that lie in one sector each, as (offset, bytes)."""
    first, end = operation.offset, operation.offset + len(operation.payload)
    starts = [first, *range(first - first % size + size, end, size)]
    return [
        (start, operation.payload[start - first : stop - first])
        for start, stop in zip(starts, [*starts[1:], end], strict=True)
    ]
