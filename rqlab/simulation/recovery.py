"""Opens what a power cut left, by SQLite alone, and reads it: sound or not, and which state it is.

Knows the entries of a directory as the store lays them out; not what should be in them.
"""

import contextlib
import sqlite3
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import msgspec

from rqlab.job import Job
from rqlab.storage.place import SHELVES, place

COUNTERS = "queue/"
DATABASE = "cache.db"

Row = tuple[object, ...]
State = frozenset[Row]

NOTHING: State = frozenset()
ENTRIES = "SELECT key, raw, tag, mode, filename, value FROM Cache"
SETTINGS = "SELECT key, value FROM Settings"  # diskcache's, with the count of entries that its triggers keep


class Recovered(NamedTuple):
    """What is in a directory after recovery."""

    state: State  #: every entry and setting; NOTHING where no table has been made
    complaints: list[str]  #: what SQLite finds wrong with the file


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


def complaints_about(state: State, directory: Path) -> list[str]:
    """What is wrong with the records: undecodable, in the wrong place, miscounted, or in a file that is not there."""
    said: list[str] = []
    counted: dict[str, Counter[str]] = {}
    stored: dict[str, dict[str, int]] = {}
    for row in state:
        if len(row) != 6:
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
