"""Is a directory healthy, and is it safe where it lies? Looks beside whoever uses it, and changes nothing in it.

A check is a function from a look to a finding, and a row of CHECKS. A finding is wrong only if jobs may be lost,
miscounted or unreadable; what a person should know, but may have chosen, is a note.
"""

import os
import statistics
from collections.abc import Callable
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from rqlab.engine import DUE, LISTED, OFF, SCHEDULE, decode_schedule
from rqlab.errors import RQLabError, StoreCorrupt, StoreError
from rqlab.job import State
from rqlab.lifecycle import ACTIVE, DELAYED, WAITING
from rqlab.measurement import machine
from rqlab.queues import SETTINGS_KEY
from rqlab.storage.cache import SETTINGS
from rqlab.storage.damage import walk
from rqlab.storage.entries import SQLITE_VERSION, Condition
from rqlab.storage.locks import NETWORK_FILE_SYSTEMS, file_system
from rqlab.storage.place import LAST, shelf, until
from rqlab.storage.view import ReadOnlyStore

WAL_RESET_FIXED = (
    3,
    51,
    3,
)  # https://sqlite.org/wal.html: before it, a checkpoint at the wrong moment may lose a commit
IMPLAUSIBLE_SYNC_SECONDS = 0.000_02  # the fastest drives that keep their promise need longer
LARGE_WAL_BYTES = 64 * 2**20  # SQLite empties it at 4 MiB unless a reader never ends
MUCH_FREE_BYTES = 64 * 2**20
SCARCE_BYTES = 8 * 2**20  # of the disk: less than SQLite wants for its log before it empties it, twice
RECOVERED_SECONDS = 5.0  # housekeeping ticks once a second; what is past due for longer has nobody
PAGE = 500  # records read at once
SHOWN_RECORDS = 5  # of damaged ones; `--json` has them all
MAX_SCHEDULES = 100_000
SHELVES = ("ready/", "later/", "leased/", "done/")


class Verdict(StrEnum):
    FINE = "ok"
    NOTE = "note"  #: worth knowing
    WRONG = "wrong"  #: jobs may be lost, miscounted or unreadable


class Finding(NamedTuple):
    """What one check found."""

    check: str
    verdict: Verdict
    says: str
    found: dict[str, Any]  #: the same as numbers, for `--json`


class Look(NamedTuple):
    """What a check may look at."""

    path: Path
    store: ReadOnlyStore
    now: int  #: milliseconds since the epoch, UTC


def examine(path: Path, now: int) -> list[Finding]:
    """All findings about the directory. StoreError if there is none; one that cannot be read is a finding."""
    around = [sqlite(), disk(path), fsync(path)]
    try:
        store = ReadOnlyStore(path)
    except StoreError as error:
        if not (path / "cache.db").is_file():
            raise
        return [*around, Finding("file", Verdict.WRONG, str(error), {})]
    with closing(store):
        return around + [_isolated(name, check, Look(path, store, now)) for name, check in CHECKS.items()]


def is_healthy(findings: list[Finding]) -> bool:
    return all(finding.verdict is not Verdict.WRONG for finding in findings)


# Around the directory.


def sqlite() -> Finding:
    """Which SQLite this Python has."""
    found = {"version": SQLITE_VERSION}
    if tuple(map(int, SQLITE_VERSION.split("."))) >= WAL_RESET_FIXED:
        return Finding("sqlite", Verdict.FINE, f"SQLite {SQLITE_VERSION}", found)
    says = (
        f"SQLite {SQLITE_VERSION}: before 3.51.3 two programs that write and checkpoint at the same instant can lose a "
        "commit (the WAL-reset bug). rqlab serialises its writers and checkpoints: open cache.db with nothing else"
    )
    return Finding("sqlite", Verdict.NOTE, says, found)


def disk(path: Path) -> Finding:
    """What kind of file system the directory lies on."""
    kind = file_system(path)
    found = {"type": kind, "is_network": kind in NETWORK_FILE_SYSTEMS}
    if kind is None:
        return Finding("file system", Verdict.NOTE, "this system does not tell its type; use a local disk", found)
    if kind in NETWORK_FILE_SYSTEMS:
        says = f"{kind}, a network file system: neither locks nor SQLite's WAL hold between machines. Use a local disk"
        return Finding("file system", Verdict.NOTE, says, found)
    if kind in machine.MEMORY_FILE_SYSTEMS:
        return Finding(
            "file system", Verdict.NOTE, f"{kind}, in memory: a restart of the machine loses all jobs", found
        )
    return Finding("file system", Verdict.FINE, kind, found)


def fsync(path: Path) -> Finding:
    """How long the disk takes to make a page safe: what every commit waits for."""
    try:
        took = sorted(machine.syncs(path))
    except OSError as error:
        says = f"not measured: cannot write a temporary file in {path} ({error.strerror or error})"
        return Finding("fsync", Verdict.NOTE, says, {"median_seconds": None})
    median = statistics.median(took)
    found = {"median_seconds": median, "least_seconds": took[0], "most_seconds": took[-1], "samples": len(took)}
    says = (
        f"{_milliseconds(median)}, the median of {len(took)} ({_milliseconds(took[0])} to {_milliseconds(took[-1])}): "
        f"one process alone commits at most {1 / max(median, 1e-9):,.0f} times a second"
    )
    if median >= IMPLAUSIBLE_SYNC_SECONDS:
        return Finding("fsync", Verdict.FINE, says, found)
    says += (
        ". That is faster than a disk can be: something between here and the disk says done before it is, and a power "
        "cut may lose jobs that were accepted"
    )
    return Finding("fsync", Verdict.NOTE, says, found)


# In the directory.


def settings(look: Look) -> Finding:
    """Whether the directory is kept as rqlab keeps it, and for how long it keeps finished jobs."""
    condition = look.store.condition()
    entry = look.store.entry(SETTINGS_KEY)
    retention = None if entry is None else msgspec.json.decode(entry).get("retention")
    found = {"format": condition.format, "kept_as": condition.settings, "retention_seconds": retention}
    wrong = [
        f"{name} is {condition.settings[name]!r}, expected {expected!r}"
        for name, expected in SETTINGS.items()
        if condition.settings[name] != expected
    ]
    if wrong:
        says = f"format {condition.format}; {'; '.join(wrong)}: something other than rqlab has changed it"
        return Finding("settings", Verdict.WRONG, says, found)
    kept = "the default retention" if retention is None else f"retention {_retention(retention)}"
    says = f"format {condition.format}, {condition.settings['sqlite_journal_mode']}, synchronous full, {kept}"
    return Finding("settings", Verdict.FINE, says, found)


def file(look: Look) -> Finding:
    """Whether SQLite finds the file whole."""
    complaints = look.store.complaints()
    if complaints:
        says = f"damaged: {'; '.join(complaints)}. Restore a backup"
        return Finding("file", Verdict.WRONG, says, {"complaints": complaints})
    return Finding("file", Verdict.FINE, "SQLite's integrity check finds nothing wrong", {"complaints": []})


def space(look: Look) -> Finding:
    """How large the file and its log are, and how much of it is free."""
    condition = look.store.condition()
    total, free = _bytes(condition)
    found = {
        "file_bytes": total,
        "free_bytes": free,
        "pages": condition.pages,
        "free_pages": condition.free_pages,
        "wal_bytes": condition.wal_bytes,
    }
    says = (
        f"cache.db {_megabytes(total)}, of it free {_megabytes(free)} ({condition.free_pages} of {condition.pages} "
        f"pages); log {_megabytes(condition.wal_bytes)}"
    )
    disk = os.statvfs(look.path)
    room = found["disk_free_bytes"] = disk.f_bavail * disk.f_frsize
    says += f"; on the disk {_megabytes(room)} are free"
    if room < SCARCE_BYTES:
        says += ". The disk is full, or nearly: pushes will fail with StoreFull. Free some space"
        return Finding("space", Verdict.WRONG, says, found)
    if condition.wal_bytes > LARGE_WAL_BYTES:
        says += ". The log is large: some process has been reading for very long; find it with: fuser cache.db"
        return Finding("space", Verdict.NOTE, says, found)
    if free > MUCH_FREE_BYTES and free > total / 2:
        says += ". rqlab.open(…).vacuum() gives the free pages back"
        return Finding("space", Verdict.NOTE, says, found)
    return Finding("space", Verdict.FINE, says, found)


def counts(look: Look) -> Finding:
    """Whether every queue's counters say what stands in its lines, counted one by one at one instant."""
    store = look.store
    differing: list[dict[str, Any]] = []
    with store.at_one_instant():
        queues = store.queues()
        recounted = 0
        for queue in queues:
            counters = store.counters(queue)
            for state in LISTED:
                start = shelf(queue, state)
                counter, there = counters.get(state, 0), store.count(start, start + LAST)
                recounted += there
                if counter != there:
                    differing.append({"queue": queue, "state": str(state), "counter": counter, "recounted": there})
        unknown = sum(store.count(start, start + LAST) for start in SHELVES) - recounted
    found = {"queues": len(queues), "jobs": recounted, "differing": differing, "jobs_in_no_queue": unknown}
    wrong = [f"{each['queue']} {each['state']}: {each['recounted']}, not {each['counter']}" for each in differing]
    if unknown:
        wrong.append(f"{unknown} jobs belong to no queue that is known")
    if wrong:
        return Finding("counts", Verdict.WRONG, f"recounted, {'; '.join(wrong)}. Please report it", found)
    says = f"{recounted} jobs in {len(queues)} queues, recounted state by state: the counters are right"
    return Finding("counts", Verdict.FINE, says, found)


def records(look: Look) -> Finding:
    """Whether every job that is not finished, and every schedule, can be read. Others go on beside a damaged one."""
    shelves = [shelf(queue, state) for queue in look.store.queues() for state in (WAITING, DELAYED, ACTIVE)]
    jobs = [job_id for start in shelves for job_id in _unreadable(look.store, start)]
    schedules = _unreadable_schedules(look.store)
    found = {"jobs": jobs, "schedules": schedules}
    if not jobs and not schedules:
        return Finding("records", Verdict.FINE, "every unfinished job and every schedule can be read", found)
    wrong = [f"job {job_id}" for job_id in jobs] + [f"schedule {name!r}" for name in schedules]
    more = len(wrong) - SHOWN_RECORDS
    some = ", ".join(wrong[:SHOWN_RECORDS]) + (f" and {more} more" if more > 0 else "")
    says = f"cannot be read: {some}. Restore a backup; a schedule can be registered again"
    return Finding("records", Verdict.WRONG, says, found)


def leases(look: Look) -> Finding:
    """Whether runs are past due and nobody has taken their jobs back."""
    past_due = 0
    longest_seconds = 0.0
    for queue in look.store.queues():
        start = shelf(queue, State.ACTIVE)
        past_due += look.store.count(start, until(start, look.now))
        for job in look.store.scan(start, until(start, look.now), 1):  # the first in line has waited longest
            due_at = min(at for at in (job.lease_until, job.timeout_at) if at is not None)
            longest_seconds = max(longest_seconds, (look.now - due_at) / 1000)
    found = {"past_due": past_due, "longest_seconds": longest_seconds}
    if not past_due:
        return Finding("leases", Verdict.FINE, "no run is past its lease or time-out", found)
    says = f"{past_due} past their lease or time-out, the longest for {longest_seconds:.1f} s"
    if longest_seconds < RECOVERED_SECONDS:
        return Finding("leases", Verdict.FINE, f"{says}: due for the next tick of housekeeping", found)
    says += ": no housekeeping is at work. Start a worker on this directory, and it recovers them"
    return Finding("leases", Verdict.NOTE, says, found)


#: What is looked at in the directory, in this order; a new check is one function and one row.
CHECKS: dict[str, Callable[[Look], Finding]] = {
    "settings": settings,
    "file": file,
    "space": space,
    "counts": counts,
    "records": records,
    "leases": leases,
}


def _unreadable(store: ReadOnlyStore, start: str) -> list[str]:
    """The ids of the jobs on a shelf whose records, or whose data, cannot be read."""
    damaged: list[str] = []
    for job in walk(store, start, start + LAST, PAGE, lambda at, error: damaged.append(at.rpartition("/")[2])):
        try:
            store.load(job)
        except StoreCorrupt:
            damaged.append(job.id)
    return damaged


def _unreadable_schedules(store: ReadOnlyStore) -> list[str]:
    """The names of the schedules whose entries cannot be read."""
    damaged: list[str] = []
    for key, value in (each for start in (DUE, OFF) for each in store.entries(start, start + LAST, MAX_SCHEDULES)):
        try:
            decode_schedule(value)
        except StoreCorrupt:
            damaged.append(key.removeprefix(SCHEDULE))
    return damaged


def _isolated(name: str, check: Callable[[Look], Finding], look: Look) -> Finding:
    try:
        return check(look)
    except (RQLabError, msgspec.MsgspecError) as error:
        return Finding(name, Verdict.WRONG, f"could not be checked: {error}", {})


def _bytes(condition: Condition) -> tuple[int, int]:
    return condition.pages * condition.page_bytes, condition.free_pages * condition.page_bytes


def _retention(retention: dict[str, float | None]) -> str:
    kept = (f"{state} {'for ever' if s is None else f'{s / 86_400:g} d'}" for state, s in retention.items())
    return ", ".join(kept)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
