"""Opens what a power cut left, by SQLite alone, and reads it: sound or not, and which state it is.

Knows the entries of a directory as the store lays them out; not what should be in them. What should is told by a
History: the states that the recorded log went through, and how many of them were acknowledged before each cut.
"""

import contextlib
import itertools
import os
import shutil
import sqlite3
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from rqlab.job import Job
from rqlab.simulation.platter import CRASH_KINDS, Cut, Platter
from rqlab.storage.place import SHELVES, place

COUNTERS = "queue/"
DATABASE = "cache.db"
MEMORY_DIRECTORY = Path("/dev/shm")  # files in memory, on Linux: a scratch directory needs no disk

Row = tuple[object, ...]
State = frozenset[Row]

NOTHING: State = frozenset()
ENTRY_COLUMNS = ("key", "raw", "tag", "mode", "filename", "value")  # no stamps: nothing of ours reads them
ENTRIES = f"SELECT {', '.join(ENTRY_COLUMNS)} FROM Cache"
SETTINGS = "SELECT key, value FROM Settings"  # diskcache's, with the count of entries that its triggers keep


class Recovered(NamedTuple):
    """What is in a directory after recovery."""

    state: State  #: every entry and setting; NOTHING where no table has been made
    complaints: list[str]  #: what SQLite finds wrong with the file


class Verdict(NamedTuple):
    """What a cut did to what had been promised."""

    cut: Cut
    lost: int  #: acknowledged transactions that are gone
    complaints: list[str]  #: damage, or a state that never was

    @property
    def ok(self) -> bool:
        return not self.lost and not self.complaints


class History:
    """The states that a recorded directory went through, one a transaction, and which were acknowledged when.

    They are read from the `sigkill` image at every operation: what a process finds that starts at that moment.
    `acknowledged_at` are the lengths of the log at which a call returned, `directory` is the store's name in it.
    """

    def __init__(self, platter: Platter, directory: str, acknowledged_at: Iterable[int], scratch: Path) -> None:
        self.directory = directory
        self.states: list[State] = [NOTHING]
        self.committed_at: list[int] = []  #: by cut: the index of the newest state that the process could see
        self.acknowledged_at = sorted(acknowledged_at)
        self._judged: dict[State, list[str]] = {}
        for at in range(len(platter) + 1):
            recovered = self.recover(platter, Cut(at, "sigkill"), scratch)
            assert not recovered.complaints, f"the log itself is damaged at {at}: {recovered.complaints}"
            if recovered.state != self.states[-1]:
                self.states.append(recovered.state)
            self.committed_at.append(len(self.states) - 1)

    def recover(self, platter: Platter, cut: Cut, scratch: Path) -> Recovered:
        """Recover from a cut in a fresh directory, which is removed again; with the complaints about the records."""
        with laid_out(platter, cut, scratch) as image:
            recovered = read(image / self.directory)
            if recovered.state not in self._judged:
                self._judged[recovered.state] = complaints_about(recovered.state, image / self.directory)
        return recovered._replace(complaints=recovered.complaints + self._judged[recovered.state])

    def judge(self, platter: Platter, cut: Cut, scratch: Path) -> Verdict:
        """Recover from a cut, and hold what is there against what was promised by then."""
        recovered = self.recover(platter, cut, scratch)
        if recovered.complaints:
            return Verdict(cut, 0, recovered.complaints)
        promised = self.promised_at(cut.at)
        issued = self.committed_at[cut.at]
        found = [index for index in range(issued + 1) if self.states[index] == recovered.state]
        if not found:
            return Verdict(cut, 0, [f"its state is that after none of the {issued} transactions"])
        lost = max(promised - found[-1], 0)
        return Verdict(cut, max(lost - 1, 0) if CRASH_KINDS[cut.kind].loses_the_last else lost, [])

    def promised_at(self, at: int) -> int:
        """The index of the newest state that was acknowledged before a cut."""
        returned = bisect_right(self.acknowledged_at, at)
        return self.committed_at[self.acknowledged_at[returned - 1]] if returned else 0


_numbers = itertools.count()


@contextlib.contextmanager
def laid_out(platter: Platter, cut: Cut, scratch: Path) -> Iterator[Path]:
    """What is left after a cut, in a fresh directory for as long as the block runs."""
    directory = scratch / f"cut-{next(_numbers)}"
    platter.cut(cut).write(directory)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)  # an audited library may yet be closing its files


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory for as long as the block runs, in memory where the system can."""
    in_memory = MEMORY_DIRECTORY.is_dir() and os.access(MEMORY_DIRECTORY, os.W_OK)
    where = MEMORY_DIRECTORY if in_memory else None
    with tempfile.TemporaryDirectory(prefix="rqlab-", dir=where, ignore_cleanup_errors=True) as path:
        yield Path(path).resolve()


def read(directory: Path) -> Recovered:
    """Recover the directory and read all of it. The ordinary VFS does it: call this outside any recording of it."""
    path = directory / DATABASE
    if not path.exists():
        return Recovered(NOTHING, [])
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            return _read(connection)
    except sqlite3.DatabaseError as error:
        return Recovered(NOTHING, [f"{type(error).__name__}: {error}"])


def _read(connection: sqlite3.Connection) -> Recovered:
    said = [str(line) for (line,) in connection.execute("PRAGMA integrity_check(10)").fetchall()]
    return Recovered(state_of(connection), [] if said == ["ok"] else said)


def state_of(connection: sqlite3.Connection) -> State:
    """All that is stored, as this connection sees it; NOTHING before the tables are made."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()}
    if not tables:
        return NOTHING  # everything was lost, or never there: that is no damage
    rows: list[Row] = connection.execute(ENTRIES).fetchall() + connection.execute(SETTINGS).fetchall()
    return frozenset(rows)


def jobs_in(state: State) -> list[Job]:
    """The records in a state, in no order; large data is apart from them."""
    shelves = tuple(SHELVES.values())
    return [
        msgspec.json.decode(row[5], type=Job)
        for row in state
        if len(row) == len(ENTRY_COLUMNS) and isinstance(row[5], bytes) and str(row[2]).startswith(shelves)
    ]


def complaints_about(state: State, directory: Path) -> list[str]:
    """What is wrong with the records: undecodable, in the wrong place, miscounted, or in a file that is not there."""
    said: list[str] = []
    counted: dict[str, Counter[str]] = {}
    stored: dict[str, dict[str, int]] = {}
    for row in state:
        if len(row) != len(ENTRY_COLUMNS):
            continue
        key, _, tag, _, filename, value = row
        if filename is not None:
            if not (directory / str(filename)).is_file():
                said.append(f"entry {key}: its value was in the file {filename}, which is gone")
        elif not isinstance(value, bytes):
            said.append(f"entry {key}: expected bytes, found {type(value).__name__}")
        elif str(tag).startswith(COUNTERS):
            stored[str(tag).removeprefix(COUNTERS)] = msgspec.json.decode(value)
        elif str(tag).startswith(tuple(SHELVES.values())):
            said += _complaints_about_job(key, tag, value, counted)
    for queue in sorted(stored.keys() | counted.keys()):
        found = counted.get(queue, Counter())
        for state_name in SHELVES:
            kept = stored.get(queue, {}).get(state_name, 0)
            if kept != found[state_name]:
                said.append(f"queue {queue}: its counters say {kept} {state_name}, there are {found[state_name]}")
    return said


def _complaints_about_job(key: object, tag: object, value: bytes, counted: dict[str, Counter[str]]) -> list[str]:
    try:
        job = msgspec.json.decode(value, type=Job)
    except msgspec.MsgspecError as error:
        return [f"job {key}: {error}"]
    counted.setdefault(job.queue, Counter())[job.state] += 1
    if job.id != key:
        return [f"job {job.id}: its entry is called {key}"]
    return [] if place(job) == tag else [f"job {job.id}: expected in {place(job)}, found in {tag}"]
