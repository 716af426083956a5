"""The moments at which a power cut is most telling, so that a campaign can count its hits.

All but one are found in a recorded log, read as SQLite's: which file is the database, which its write-ahead log, where
a transaction ends. That a snapshot was taken and is not stored is in memory alone, so the machine that is cut tells it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rqlab.simulation.recorder import Kind, Operation

WAL, JOURNAL = "-wal", "-journal"
SNAPSHOT = "snapshot"
FRAME_HEADER_BYTES = 24  # https://sqlite.org/fileformat2.html#walformat
COMMIT_FIELD = slice(4, 8)  # of a frame's header: not zero in the last frame of a transaction


class Window(NamedTuple):
    """A stretch of a log; `find` marks each operation that the power may fail right after, or in the middle of."""

    name: str
    says: str
    find: Callable[[Sequence[Operation]], list[bool]] | None  #: None: no log shows it


def _torn_frames(log: Sequence[Operation]) -> list[bool]:
    """From a write to the log until the sync that makes it safe."""
    return _between(log, lambda operation: _is(operation, WAL, Kind.WRITE), lambda o: _is(o, WAL, Kind.SYNC))


def _restarts(log: Sequence[Operation]) -> list[bool]:
    """From a new header over a log that has frames, until the first transaction behind it is safe."""
    has_frames, is_open, has_commit = False, False, False
    marks = []
    for operation in log:
        if _is(operation, WAL, Kind.WRITE):
            if operation.offset == 0:
                is_open, has_commit = has_frames, False
            else:
                has_frames = True
                has_commit = has_commit or _commits(operation)
        elif _is(operation, WAL, Kind.CREATE) or _is(operation, WAL, Kind.TRUNCATE):
            has_frames = operation.kind is Kind.TRUNCATE  # a log cut to nothing restarts too
        is_open = is_open and not (has_commit and _is(operation, WAL, Kind.SYNC))
        marks.append(is_open)
    return marks


def _checkpoints(log: Sequence[Operation]) -> list[bool]:
    """From the first page that goes from the log into the database until the sync of the database."""
    has_wal = False
    from_log = []
    for operation in log:
        if operation.name.endswith(WAL):
            has_wal = operation.kind is not Kind.DELETE
        from_log.append(has_wal)
    marks = _between(log, lambda o: _is(o, "", Kind.WRITE), lambda o: _is(o, "", Kind.SYNC))
    return [mark and logged for mark, logged in zip(marks, from_log, strict=True)]


def _creations(log: Sequence[Operation]) -> list[bool]:
    """From the making of the database until its first transaction in the log is safe."""
    is_open, has_commit = False, False
    marks = []
    for operation in log:
        if _is(operation, "", Kind.CREATE):
            is_open, has_commit = True, False
        has_commit = has_commit or (_is(operation, WAL, Kind.WRITE) and _commits(operation))
        is_open = is_open and not (has_commit and _is(operation, WAL, Kind.SYNC))
        marks.append(is_open)
    return marks


def _closes(log: Sequence[Operation]) -> list[bool]:
    """The last checkpoint, up to and with the deletion of the log."""
    marks = [False] * len(log)
    for end, operation in enumerate(log):
        if not _is(operation, WAL, Kind.DELETE):
            continue
        start = end
        while start > 0 and not _is(log[start - 1], WAL, Kind.WRITE):
            start -= 1
        if _is(log[start], WAL, Kind.SYNC):
            start += 1  # it made the last transaction safe
        marks[start : end + 1] = [True] * (end + 1 - start)
    return marks


WINDOWS: dict[str, Window] = {
    window.name: window
    for window in (
        Window("torn frame", "a transaction is on its way into the log", _torn_frames),
        Window("log restart", "the log begins anew over old frames", _restarts),
        Window("checkpoint", "pages are on their way from the log into the database", _checkpoints),
        Window("creation", "the database is being made", _creations),
        Window("last close", "the log is written back and deleted", _closes),
        Window(SNAPSHOT, "hybrid has taken a snapshot, which is not stored yet", None),
    )
}
IN_LOG = {name: window.find for name, window in WINDOWS.items() if window.find is not None}


def windows_at(log: Sequence[Operation]) -> list[frozenset[str]]:
    """For a cut at 0, 1, …, len(log): the windows that are open, as far as a log shows them."""
    marks = {name: [False, *find(log)] for name, find in IN_LOG.items()}
    return [frozenset(name for name, open_ in marks.items() if open_[at]) for at in range(len(log) + 1)]


def hits(log: Sequence[Operation], cuts_at: Iterable[int]) -> Counter[str]:
    """How many of these cuts fell into each window that a log shows; a window that none hit has 0."""
    at = windows_at(log)
    counted = Counter(dict.fromkeys(IN_LOG, 0))
    counted.update(name for cut in cuts_at for name in at[cut])
    return counted


def _is(operation: Operation, suffix: str, kind: Kind) -> bool:
    if operation.kind is not kind:
        return False
    return operation.name.endswith(suffix) if suffix else not operation.name.endswith((WAL, JOURNAL))


def _commits(operation: Operation) -> bool:
    return len(operation.payload) == FRAME_HEADER_BYTES and any(operation.payload[COMMIT_FIELD])


def _between(
    log: Sequence[Operation], opens: Callable[[Operation], bool], closes: Callable[[Operation], bool]
) -> list[bool]:
    is_open = False
    marks = []
    for operation in log:
        is_open = (is_open or opens(operation)) and not closes(operation)
        marks.append(is_open)
    return marks
