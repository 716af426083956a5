"""How the entries of a directory look in SQLite: their keys and rows, the statements, and its errors in our words.

Knows no lock and no transaction: whoever calls holds the connection.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import msgspec
from msgspec.structs import replace

from rqlab.errors import FormatTooNew, RQLabError, StoreBusy, StoreCorrupt, StoreError, StoreFull
from rqlab.job import NULL, Job
from rqlab.storage import FORMAT
from rqlab.storage.cache import KNOWN_SETTINGS, SETTINGS, checked
from rqlab.storage.locks import DISK_FAILED
from rqlab.storage.place import LAST, SHELVES, place
from rqlab.storage.staging import Staged

T = TypeVar("T")
P = ParamSpec("P")

DATA_APART_BYTES = 4 * 1024  # larger data is written once, not at every heartbeat (1 MB jobs: 41 cycles/s against 591)
#: Entries a statement, largest first; the rest goes in one of 1-9. SQLite runs a statement without Python's lock, and
#: gets it back 5 ms later where another thread computes: an entry a statement made that 4.5 ms an entry, this 14 us.
CHUNKS = (1_000, 100, 10)
COUNTERS = "queue/"  # + queue: the key, and the place, of a queue's counters
DATA = "payload/"  # + job id: data that is kept apart
FORMAT_KEY = "rqlab/format"
DATABASE = "cache.db"  # diskcache's name for it
FULL_BYTES = 64 * 1024  # with less room than this, an I/O error means a full disk
MAX_COMPLAINTS = 10  # of a damaged file; more say no more
KEPT = "what was written before is kept, and tried again"
#: What to do about errors that SQLite names and says no more of, by primary code.
REMEDIES = {
    sqlite3.SQLITE_IOERR: DISK_FAILED,
    sqlite3.SQLITE_CANTOPEN: "See that this user may read and write the directory, and that the disk has room",
    sqlite3.SQLITE_READONLY: "Make the directory and the files in it writable for this user",
}
SQLITE_VERSION = sqlite3.sqlite_version
RANGE = "SELECT mode, value FROM Cache WHERE tag >= ? AND tag < ? ORDER BY tag"
_encode = msgspec.json.Encoder().encode
_decode_job = msgspec.json.Decoder(Job).decode
_decode_counters = msgspec.json.Decoder(dict[str, int]).decode


class Condition(NamedTuple):
    """What a file says of itself, for `doctor`."""

    format: int
    settings: dict[str, Any]  #: as SETTINGS; None for what is not there
    page_bytes: int
    pages: int
    free_pages: int
    wal_bytes: int  #: of the write-ahead log; 0 without one


Row = tuple[str, str | None, bytes]  # key, tag, value


Step = tuple[list[str], list[Row]]  # the keys of the entries that a transaction removes, and those that it then stores


NOTHING: Step = ([], [])


class Reads:
    """What can be asked of a directory."""

    def _read(self, ask: Callable[Concatenate["Raw", P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        raise NotImplementedError

    def get(self, job_id: str) -> Job | None:
        return self._read(Raw.get, job_id)

    def load(self, job: Job) -> Job:
        return self._read(Raw.load, job) if job.data_apart else job

    def first(self, start: str, end: str) -> str | None:
        return self._read(Raw.first, start, end)

    def scan(self, start: str, end: str, limit: int, *, backwards: bool = False) -> list[Job]:
        return self._read(Raw.scan, start, end, limit, backwards=backwards)

    def entry(self, key: str) -> bytes | None:
        return self._read(Raw.entry, key)

    def entries(self, start: str, end: str, limit: int) -> list[tuple[str, bytes]]:
        return self._read(Raw.entries, start, end, limit)

    def counters(self, queue: str) -> Mapping[str, int]:
        return self._read(Raw.counters, queue)

    def count(self, start: str, end: str) -> int:
        return self._read(Raw.count, start, end)

    def queues(self) -> list[str]:
        return self._read(Raw.queues)


class Raw:
    """The reads, on a connection whose lock is already held."""

    __slots__ = ("pending", "sql")

    sql: Callable[..., sqlite3.Cursor]

    def __init__(self) -> None:
        self.pending: dict[str, dict[str, int]] = {}  #: counters of the batch under way, not yet written

    def get(self, job_id: str) -> Job | None:
        record = self.entry(job_id)
        return None if record is None else _job(record)

    def load(self, job: Job) -> Job:
        if not job.data_apart or len(job.encoded_data) > DATA_APART_BYTES:
            return job
        data = self.entry(DATA + job.id)
        if data is None:
            raise StoreCorrupt(f"job {job.id} has lost its data: expected the entry {DATA + job.id}, found none")
        return replace(job, encoded_data=msgspec.Raw(data))

    def first(self, start: str, end: str) -> str | None:
        row = self.sql("SELECT tag FROM Cache WHERE tag >= ? AND tag < ? ORDER BY tag LIMIT 1", (start, end)).fetchone()
        return None if row is None else str(row[0])

    def scan(self, start: str, end: str, limit: int, *, backwards: bool = False) -> list[Job]:
        order = " DESC" if backwards else ""
        return [_job(checked(*row)) for row in self.sql(f"{RANGE}{order} LIMIT ?", (start, end, limit)).fetchall()]

    def entry(self, key: str) -> bytes | None:
        row = self.sql("SELECT mode, value FROM Cache WHERE key = ? AND raw = 1", (key,)).fetchone()
        return None if row is None else checked(*row)

    def entries(self, start: str, end: str, limit: int) -> list[tuple[str, bytes]]:
        query = "SELECT key, mode, value FROM Cache WHERE tag >= ? AND tag < ? ORDER BY tag LIMIT ?"
        return [(str(key), checked(mode, value)) for key, mode, value in self.sql(query, (start, end, limit))]

    def counters(self, queue: str) -> Mapping[str, int]:
        pending = self.pending.get(queue)
        if pending is not None:
            return pending
        value = self.entry(COUNTERS + queue)
        return {} if value is None else _decoded(_decode_counters, value)

    def count(self, start: str, end: str) -> int:
        return int(self.sql("SELECT COUNT(*) FROM Cache WHERE tag >= ? AND tag < ?", (start, end)).fetchone()[0])

    def data_version(self) -> int:
        """SQLite's number that differs when another connection has committed."""
        return int(self.sql("PRAGMA data_version").fetchone()[0])

    def run(self, statement: str) -> None:
        self.sql(statement).fetchall()

    def queues(self) -> list[str]:
        rows = self.sql("SELECT key FROM Cache WHERE tag >= ? AND tag < ? ORDER BY tag", (COUNTERS, COUNTERS + LAST))
        stored = {str(key).removeprefix(COUNTERS) for (key,) in rows}
        return sorted(stored.union(self.pending))


def step_of(staged: Staged) -> Step:
    """What a transaction removes, by key, and then stores."""
    gone = deletions(job_id for job_id, job in staged.jobs.items() if job is None)
    gone += [key for key, entry in staged.entry_changes.items() if entry is None]
    rows: list[Row] = []
    for job_id, job in staged.jobs.items():
        if job is not None:
            rows += job_rows(job, is_fresh=job_id in staged.fresh)
    rows += [(key, entry[1], entry[0]) for key, entry in staged.entry_changes.items() if entry is not None]
    return gone, rows


def job_rows(job: Job, is_fresh: bool) -> list[Row]:
    """A job's entry, and that of its data if it is large and was never stored."""
    rows: list[Row] = []
    if is_fresh and len(job.encoded_data) > DATA_APART_BYTES:
        rows.append((DATA + job.id, None, bytes(job.encoded_data)))
        job = replace(job, data_apart=True)
    if job.data_apart:
        job = replace(job, encoded_data=NULL)
    rows.append((job.id, place(job), _encode(job)))
    return rows


def deletions(job_ids: Iterable[str]) -> list[str]:
    """The keys of all that is stored of these jobs."""
    return [key for job_id in job_ids for key in (job_id, DATA + job_id)]


def counter_rows(counters: Mapping[str, Mapping[str, int]]) -> list[Row]:
    return [(COUNTERS + queue, COUNTERS + queue, _encode(counted)) for queue, counted in counters.items()]


@cache  # of few sizes, as CHUNKS has it
def upsert(rows: int) -> str:
    values = ", ".join(["(?, 1, 0, 0, ?, 1, ?)"] * rows)
    return (
        f"INSERT INTO Cache(key, raw, store_time, access_time, tag, mode, value) VALUES {values}"
        " ON CONFLICT(key, raw) DO UPDATE SET tag = excluded.tag, value = excluded.value"
    )


#: For an entry whose place never changes: setting a tag to what it is writes a page of its index.
UPSERT_IN_PLACE = (
    "INSERT INTO Cache(key, raw, store_time, access_time, tag, mode, value) VALUES (?, 1, 0, 0, ?, 1, ?)"
    " ON CONFLICT(key, raw) DO UPDATE SET value = excluded.value"
)


@cache
def delete(keys: int) -> str:
    return f"DELETE FROM Cache WHERE raw = 1 AND key IN ({', '.join('?' * keys)})"


def chunks(items: list[T]) -> Iterable[list[T]]:
    """All items in few sizes, so that SQLite's statements are prepared once."""
    if len(items) < CHUNKS[-1]:
        return (items,) if items else ()
    return _in_chunks(items)


def _in_chunks(items: list[T]) -> Iterator[list[T]]:
    start = 0
    for size in CHUNKS:
        while len(items) - start >= size:
            yield items[start : start + size]
            start += size
    if start < len(items):
        yield items[start:]


def side_entries(raw: Raw) -> dict[str, tuple[bytes, str | None]]:
    others = [(shelf, shelf + LAST) for shelf in (*SHELVES.values(), COUNTERS)]
    apart = " AND ".join(["NOT (tag >= ? AND tag < ?)"] * len(others))
    query = f"SELECT key, tag, mode, value FROM Cache WHERE (tag IS NULL AND NOT (key >= ? AND key < ?)) OR ({apart})"
    bounds = [DATA, DATA + LAST, *chain.from_iterable(others)]
    return {str(key): (checked(mode, value), tag) for key, tag, mode, value in raw.sql(query, bounds)}


def condition(raw: Raw, wal_bytes: int) -> Condition:
    settings = dict(raw.sql("SELECT key, value FROM Settings").fetchall())
    page_bytes, pages, free_pages = (
        int(raw.sql(f"PRAGMA {name}").fetchone()[0]) for name in ("page_size", "page_count", "freelist_count")
    )
    found = int(raw.entry(FORMAT_KEY) or b"0")
    kept = {key: settings.get(key) for key in SETTINGS}
    return Condition(found, kept, page_bytes, pages, free_pages, wal_bytes)


def complaints(raw: Raw) -> list[str]:
    said = [str(line) for (line,) in raw.sql(f"PRAGMA integrity_check({MAX_COMPLAINTS})").fetchall()]
    return [] if said == ["ok"] else said


def check_format(raw: Raw, path: Path, may_be_empty: bool) -> None:
    """Refuse what a newer rqlab, or something else, has written; nothing has been changed yet."""
    tables = {str(name) for (name,) in raw.sql("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables and may_be_empty:  # a power cut as it was made
        return
    found = raw.entry(FORMAT_KEY) if "Cache" in tables else None
    if found is None or not found.isdigit():
        raise StoreCorrupt(
            f"cannot open {path}: its cache.db was not made by rqlab (no format number in it). Choose another directory"
        )
    unknown = {str(key) for (key,) in raw.sql("SELECT key FROM Settings")} - KNOWN_SETTINGS
    if unknown:  # diskcache makes attributes, pragmas and arguments of whatever stands there
        raise StoreCorrupt(f"cannot open {path}: expected diskcache's settings in its cache.db; found also {unknown}")
    if int(found) > FORMAT:
        raise FormatTooNew(
            f"cannot open {path}: expected format {FORMAT} or older, found {int(found)}. "
            "A newer rqlab wrote it: upgrade rqlab; nothing was changed"
        )


def _job(record: bytes) -> Job:
    return _decoded(_decode_job, record)


def _decoded(decode: Callable[[bytes], T], value: bytes) -> T:
    try:
        return decode(value)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"expected a record that rqlab wrote; found {value[:60]!r}… ({error})") from error


def _is_full(path: Path) -> bool:
    """SQLite calls it an I/O error when its shared memory finds no room."""
    try:
        found = os.statvfs(path)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < FULL_BYTES


def in_our_words(
    error: Exception, path: Path, attempted: str = "write to", outcome: str = "nothing was changed"
) -> RQLabError:
    """SQLite's error in our words. diskcache says Timeout for any BEGIN that fails."""
    if isinstance(error, RQLabError):
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code of an extended one
    said = f"cannot {attempted} {path}: {error}; {outcome}"
    match code:
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR if code == sqlite3.SQLITE_FULL or _is_full(path):
            return StoreFull(f"cannot {attempted} {path}: the disk is full; {outcome}. Free some space")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreBusy(f"{said}. A program that is not rqlab holds cache.db: open it with nothing else")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreCorrupt(f"{said}. The file is damaged: restore a backup; rqlab doctor tells more")
        case _:
            return StoreError(f"{said}. {REMEDIES[code]}" if code in REMEDIES else said)
