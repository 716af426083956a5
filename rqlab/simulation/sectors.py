"""Where each sector of the store's files was, event by event: on the platter, in the page cache only, lost, torn.

Made of what `tracing` saw: looks at a running world, and the log of its disk. Knows files and sectors, and neither
worlds nor results.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from rqlab.charts.platters import SECTOR, PlatterView, Sectors, Strip
from rqlab.simulation.history import Happening
from rqlab.simulation.machine import JOBS
from rqlab.simulation.platter import CRASH_KINDS, Cut, Platter
from rqlab.simulation.recorder import Kind, Operation, Recording
from rqlab.simulation.windows import JOURNAL, WAL

DATABASE = "cache.db"
#: The files of a store, and what they are for. The first two are always shown.
FILES = {
    DATABASE: "the database",
    DATABASE + WAL: "the log of commits",
    DATABASE + JOURNAL: "undoes a write to the database that did not end",
}
ALWAYS = 2
CRASHES = ("process kill", "power cut")  # what takes the memory of a process
KILL_SAYS = "the process and its memory are gone; what it gave to the system, the system still writes"
ANSWERS_EARLY = ("buffered", "hybrid")  # modes that acknowledge what is in memory


class DiskStep(NamedTuple):
    """Operations on one file in a row, as a scrubber shows them: something written, or one fsync."""

    at: float  #: seconds
    event: int  #: the event that comes next
    kind: str  #: a row of Kind, or "refused"
    file: str
    size: int  #: bytes: written, made safe, or left by a truncate
    disk: int  #: a power cut leaves another one
    operation: int  #: how many that disk had done by then


class Look(NamedTuple):
    """How things stood at one moment of a run."""

    events: int  #: how many had been noted
    disk: int  #: the number of the disk
    operations: int  #: of that disk, so far
    in_memory: int  #: acknowledged writes that no file had
    at: int  #: milliseconds


class Trace:
    """What the disk did in a run; it can be asked at any event, in a fraction of a millisecond."""

    def __init__(
        self, mode: str, happenings: Sequence[Happening], looks: Sequence[Look], disks: Sequence["DiskLog"]
    ) -> None:
        self.mode = mode
        self._happenings = happenings
        self._looks = [Look(0, 0, 0, 0, 0), *looks]
        self._disks = disks
        self._instants = [round(each.at * 1000) for each in happenings]
        self._look_before_cuts()
        self._crashes = [each.n for each in happenings if each.kind in CRASHES]
        room: dict[str, int] = {}
        for disk in disks:
            for name, sectors in disk.room().items():
                room[name] = max(room.get(name, 1), sectors)
        self._room = room

    def at_event(self, number: int) -> PlatterView:
        """How things stood right after an event; a crash shows what it left."""
        look = self._before(number, bisect_right(self._looks, number, key=lambda look: look.events))
        happening = self._happenings[number]
        view = self._view(look, happening.at, number)
        if happening.kind == "process kill" and self._disks:
            return view._replace(crash="kill", crash_says=KILL_SAYS)
        if happening.kind == "power cut" and look.disk < len(self._disks):
            disk = self._disks[look.disk]
            says = CRASH_KINDS[disk.cut.kind].says if disk.cut is not None else ""
            crash = disk.cut.kind if disk.cut is not None else ""
            return view._replace(crash=crash, crash_says=says, strips=self._roomy(disk.left))
        return view

    def at(self, seconds: float) -> PlatterView:
        """How things stood at an instant: what happened at that instant included."""
        now = round(seconds * 1000)
        number = max(bisect_right(self._instants, now) - 1, 0)
        seen = bisect_right(self._looks, now, key=lambda look: look.at)
        if seen and self._looks[seen - 1].events == number + 1:  # the disk went on after the event
            return self._view(self._looks[seen - 1], seconds, number)
        return self.at_event(number)._replace(at=seconds)

    def at_step(self, step: DiskStep) -> PlatterView:
        """How things stood right after a step of the disk."""
        here = (step.disk, step.operation)
        look = self._before(step.event, bisect_right(self._looks, here, key=lambda look: (look.disk, look.operations)))
        return self._view(look._replace(disk=step.disk, operations=step.operation), step.at, step.event - 1)

    def steps(self) -> Iterator[DiskStep]:
        """What the disk did, in order."""
        for before, after in pairwise(self._looks):
            begun = before.operations if before.disk == after.disk else 0
            if after.operations > begun:
                yield from self._disks[after.disk].steps(begun, after)

    def _look_before_cuts(self) -> None:
        """Add a look at the end of each disk: its last operations may be those of a step that the cut ended."""
        cuts = [each for each in self._happenings if each.kind == "power cut" and each.detail.get("fault")]
        for number, (disk, cut) in enumerate(zip(self._disks, cuts, strict=False)):  # the last disk may go on
            here = bisect_right(self._looks, cut.n, key=lambda look: look.events)
            before = self._looks[here - 1]
            in_memory = before.in_memory if before.disk == number else 0
            self._looks.insert(here, Look(cut.n, number, len(disk), in_memory, round(cut.at * 1000)))

    def _before(self, event: int, seen: int) -> Look:
        """The last of so many looks, and what crashes have left of it before an event."""
        look = self._looks[max(seen - 1, 0)]
        for crash in self._crashes[bisect_left(self._crashes, look.events) : bisect_left(self._crashes, event)]:
            look = look._replace(in_memory=0)
            if self._happenings[crash].kind == "power cut":
                look = look._replace(disk=look.disk + 1, operations=0)
        return look

    def _view(self, look: Look, at: float, event: int) -> PlatterView:
        has_disk = look.disk < len(self._disks)
        strips = self._roomy(self._disks[look.disk].strips(look.operations)) if has_disk else ()
        early = self.mode in ANSWERS_EARLY
        done = sum(len(disk) for disk in self._disks[: look.disk]) + look.operations
        return PlatterView(at, event, self.mode, strips, look.in_memory if early else 0, early, operations=done)

    def _roomy(self, strips: Sequence[Strip]) -> tuple[Strip, ...]:
        return tuple(strip._replace(room=self._room.get(strip.name, 1)) for strip in strips)


# Below: one disk, and its files.


class DiskLog:
    """One disk from its first operation to the power cut that ended it, without the bytes."""

    def __init__(self, recording: Recording, number: int, cut: Cut | None) -> None:
        self._number = number
        self._operations = recording.operations
        self._syncs = [at for at, each in enumerate(recording.operations, 1) if _is(each, Kind.SYNC)]
        self._files = {name: _File(len(content)) for name, content in recording.before.items()}
        for at, operation in enumerate(recording.operations, 1):
            if not operation.refused and operation.kind is not Kind.OPEN:
                self._files.setdefault(operation.name, _File(None)).add(at, operation)
        self.cut = cut
        self.left = () if cut is None else self._autopsy(recording, cut)
        self._operations = [each._replace(payload=b"") for each in recording.operations]
        self._lengths = [len(each.payload) for each in recording.operations]

    def __len__(self) -> int:
        return len(self._operations)

    def room(self) -> dict[str, int]:
        """Sectors that each file ever has."""
        return {_short(name): _sectors(file.most) for name, file in self._files.items()}

    def strips(self, operations: int) -> tuple[Strip, ...]:
        """The files after so many operations."""
        found = {}
        for name, file in self._files.items():
            entry = file.after(operations)
            if entry.size is not None:
                is_named = entry.made_at is None or self._has_synced(entry.made_at, operations)
                note = "" if is_named else "its name is not safe yet"
                found[_short(name)] = Strip(_short(name), "", entry.size, file.runs(operations), 1, note)
        return _listed(found)

    def steps(self, begun: int, until: Look) -> Iterator[DiskStep]:
        """What was done from one operation to another; reads and openings leave no trace."""
        before: DiskStep | None = None
        for at in range(begun + 1, until.operations + 1):
            operation = self._operations[at - 1]
            if operation.kind is Kind.OPEN:
                continue
            kind, size = "refused" if operation.refused else str(operation.kind), self._lengths[at - 1]
            if operation.kind is Kind.SYNC:
                size = self._files[operation.name].unsynced(at - 1) if operation.name in self._files else 0
                if not size and not operation.refused:
                    continue  # there was nothing to make safe
            elif operation.kind is Kind.TRUNCATE:
                size = operation.offset
            step = DiskStep(until.at / 1000, until.events, kind, _short(operation.name), size, self._number, at)
            if before is not None and (before.kind, before.file) == (step.kind, step.file) == ("write", step.file):
                before = step._replace(size=before.size + size)
                continue
            if before is not None:
                yield before
            before = step
        if before is not None:
            yield before

    def _has_synced(self, made_at: int, operations: int) -> bool:
        after = bisect_right(self._syncs, made_at)
        return after < len(self._syncs) and self._syncs[after] <= operations

    def _autopsy(self, recording: Recording, cut: Cut) -> tuple[Strip, ...]:
        """What a cut left, beside what had been asked for, and what was safe."""
        platter = Platter(recording)
        asked = platter.cut(cut._replace(kind="sigkill")).files
        safe = platter.cut(cut._replace(kind="lost", names="journalled")).files  # what was synced, whatever its name
        left = platter.cut(cut).files
        found = {}
        for name in {**asked, **left}:
            note = "" if name in left else "its name is gone" if name in asked else ""
            note = note if name in asked else "it had been deleted, and is back"
            unsynced = self._files[name].cached(len(recording.operations)) if name in self._files else set()
            runs = _compared(asked.get(name, b""), safe.get(name, b""), left.get(name, b""), unsynced)
            found[_short(name)] = Strip(_short(name), "", len(left.get(name, b"")), runs, 1, note)
        return _listed(found)


class _Entry(NamedTuple):
    """One operation on a file, and how the file is after it."""

    at: int  #: operations of the disk, with this one
    start: int  #: bytes; of a write
    end: int
    size: int | None  #: bytes; None where it is not there
    since: int  #: the first entry that no sync has made safe
    made_at: int | None  #: the operation that made the file


class _File:
    """One file's operations, in order, so that its state after any of them is found at once."""

    def __init__(self, size: int | None) -> None:
        self._entries = [_Entry(0, 0, 0, size, 1, None)]

    @property
    def most(self) -> int:
        """Bytes that it ever has."""
        return max(entry.size or 0 for entry in self._entries)

    def add(self, at: int, operation: Operation) -> None:
        before, here = self._entries[-1], len(self._entries)
        entry = before._replace(at=at, start=0, end=0)
        match operation.kind:
            case Kind.CREATE:
                entry = entry._replace(size=0, since=here, made_at=at)
            case Kind.DELETE:
                entry = entry._replace(size=None)
            case Kind.WRITE:
                end = operation.offset + len(operation.payload)
                entry = entry._replace(start=operation.offset, end=end, size=max(before.size or 0, end))
            case Kind.TRUNCATE:
                entry = entry._replace(size=operation.offset)
            case Kind.SYNC:
                entry = entry._replace(since=here + 1)
        self._entries.append(entry)

    def after(self, operations: int) -> _Entry:
        return self._entries[self._done(operations) - 1]

    def runs(self, operations: int) -> tuple[Sectors, ...]:
        """Its sectors, by whether they are synced."""
        cached = self.cached(operations)
        size = self.after(operations).size or 0
        return _runs("cached" if sector in cached else "durable" for sector in range(_sectors(size)))

    def unsynced(self, operations: int) -> int:
        """Bytes of sectors that the next sync makes safe."""
        return len(self.cached(operations)) * SECTOR

    def _done(self, operations: int) -> int:
        return bisect_right(self._entries, operations, key=lambda entry: entry.at)

    def cached(self, operations: int) -> set[int]:
        """Its sectors that were written and not synced since."""
        entry, cached = self.after(operations), set[int]()
        for write in self._entries[entry.since : self._done(operations)]:
            cached.update(range(write.start // SECTOR, _sectors(min(write.end, entry.size or 0))))
        return cached


def _compared(asked: bytes, safe: bytes, left: bytes, unsynced: set[int]) -> tuple[Sectors, ...]:
    """Sector by sector: what is there now, beside what it should have become and what it had safely been."""

    def where(sector: int) -> str:
        here = slice(sector * SECTOR, (sector + 1) * SECTOR)
        now, wanted, before = left[here], asked[here], safe[here]
        if now == wanted:
            return "durable" if now == before and sector not in unsynced else "kept"
        if now == before or not now:
            return "lost" if wanted else "durable"  # only a truncate was lost: old bytes are still there
        return "torn"

    return _runs(where(sector) for sector in range(_sectors(max(len(asked), len(left)))))


def _runs(places: Iterator[str]) -> tuple[Sectors, ...]:
    found: list[Sectors] = []
    start = 0
    for where, same in groupby(places):
        length = sum(1 for _ in same)
        found.append(Sectors(start, length, where))
        start += length
    return tuple(found)


def _listed(found: dict[str, Strip]) -> tuple[Strip, ...]:
    """In the order of FILES; the database and its log are listed before they are made, so that nothing jumps."""
    names = [name for number, name in enumerate(FILES) if number < ALWAYS or name in found]
    names += sorted(found.keys() - set(FILES))
    none = {name: Strip(name, "", 0, (), 1, "it is not there") for name in names if name not in found}
    return tuple((found | none)[name]._replace(says=FILES.get(name, "")) for name in names)


def _sectors(size: int) -> int:
    return -(-size // SECTOR)


def _short(name: str) -> str:
    return name.removeprefix(f"{JOBS}/")


def _is(operation: Operation, kind: Kind) -> bool:
    return operation.kind is kind and not operation.refused
