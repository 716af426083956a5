"""What can go wrong, said so that a caller knows what to do next. Knows no rule and no store.

    RQLabError
    ├── ValidationError      a wrong argument; nothing was changed (also a ValueError)
    ├── JobNotFound          no job has this id
    ├── ScheduleNotFound     no schedule has this name
    ├── InvalidState         the job's state does not allow this event
    ├── LeaseLost            the run that holds this job is not its run any more
    ├── DuplicateKey         another job holds the unique key (.job_id)
    └── StoreError           the directory could not do it: an I/O error, or one of
        ├── StoreBusy        another process held the write lock for all of busy_timeout
        ├── StoreLocked      another process owns the directory
        ├── StoreFull        the disk is full
        ├── StoreCorrupt     what is on the disk is not what rqlab wrote
        ├── Reentered        this very thread is in the middle of another call: a signal handler made this one
        └── FormatTooNew     a newer rqlab wrote it

A handler may raise three more, which are outcomes, not errors of rqlab: RetryAfter, DeadLetter and Snooze.
"""

from datetime import timedelta
from typing import Any


class _Travelling(Exception):
    """Comes out of a pickle, and so out of a pool of processes, as it went in.

    Python would call the class with the message alone; where it takes more, that breaks the whole pool.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), self.args), self.__dict__


def _unpickled(kind: type[_Travelling], args: tuple[Any, ...]) -> _Travelling:
    return kind.__new__(kind, *args)


class RQLabError(_Travelling):
    """Whatever rqlab raises on purpose."""


class ValidationError(RQLabError, ValueError):
    """A wrong argument: what was expected, what came, what to do. Nothing was changed."""


class JobNotFound(RQLabError, LookupError):
    """No job has this id: it never existed, was purged, or was pushed with `remove_on_complete`."""

    def __init__(self, job_id: str, attempted: str = "find") -> None:
        said = job_id[:80] if job_id and job_id.isprintable() else repr(job_id[:80])  # it may be anything
        super().__init__(
            f"cannot {attempted} job {said}: no job has this id in this directory; "
            "it may have been purged, removed by retention, or pushed with remove_on_complete"
        )
        self.job_id = job_id


class ScheduleNotFound(RQLabError, LookupError):
    """No schedule has this name."""

    def __init__(self, name: str, attempted: str, known: list[str]) -> None:
        there = ", ".join(sorted(known)) or "none"
        super().__init__(f"cannot {attempted} schedule {name!r}: no schedule has this name; there are: {there}")
        self.name = name


class InvalidState(RQLabError):
    """The state of the job does not allow this event. Nothing was changed."""


class LeaseLost(RQLabError):
    """The caller's run does not hold the job any more: it stalled, timed out, was released or cancelled.

    Stop working on it: another worker may have it. Nothing was changed. A repeated call for a run that has
    ended, such as a second ack, raises it too: the message says how the run ended.
    """


class DuplicateKey(RQLabError):
    """Another job that is not finished holds this unique key; its id is `job_id`.

    It is None if both stood in one call of push_many: the other was not stored either.
    """

    def __init__(self, queue: str, unique_key: str, job_id: str | None, attempted: str = "push") -> None:
        if job_id is None:
            found = "stands twice in this call, which stores all of its jobs or none; it stored none"
            remedy = 'give it once, or pass on_conflict="return" the second time to get the first one\'s id'
        else:
            found = f"is held by job {job_id} until that job is completed, dead-lettered or cancelled"
            is_push = attempted == "push"
            remedy = 'pass on_conflict="return" to get its id instead' if is_push else "cancel that one first"
        super().__init__(f"cannot {attempted} into {queue!r}: unique_key {unique_key!r} {found}; {remedy}")
        self.queue = queue
        self.unique_key = unique_key
        self.job_id = job_id


class StoreError(RQLabError):
    """The directory could not do what was asked. Nothing was changed.

    One exception: if a commit's fsync failed and all processes are then killed before they write again, the next one
    may find the whole of that change stored, never a part of it.
    """


class StoreBusy(StoreError):
    """Another process held the write lock for all of `busy_timeout`."""


class StoreLocked(StoreError):
    """Another process owns the directory, in a way that admits no second one."""


class StoreFull(StoreError):
    """The disk is full. Nothing was changed; free some space and call again."""


class StoreCorrupt(StoreError):
    """What is on the disk is not what rqlab wrote."""


class Reentered(StoreError):
    """This very thread is in the middle of a call, and a signal handler (or a finalizer) made another one in between.

    Nothing was changed by it. The interrupted call goes on if the handler catches this.
    """

    def __init__(self, what: str = "these queues") -> None:
        super().__init__(
            f"cannot use {what} now: this thread is in the middle of another call, and this one came in between, from "
            "a signal handler or a finalizer; nothing was changed. Let the handler set a threading.Event, and make "
            "the call where somebody waits for that"
        )


class FormatTooNew(StoreError):
    """A newer rqlab wrote this directory: upgrade rqlab to open it."""


class RetryAfter(_Travelling):
    """Raised by a handler: this attempt failed; try again in `seconds` instead of after the backoff."""

    def __init__(self, seconds: float | timedelta, reason: str = "") -> None:
        super().__init__(reason or f"retry after {_said(seconds)}")
        self.seconds = seconds


class DeadLetter(_Travelling):
    """Raised by a handler: this attempt failed and no other may follow; to the dead-letter queue."""

    def __init__(self, reason: str = "dead-lettered by its handler") -> None:
        super().__init__(reason)


class Snooze(_Travelling):
    """Raised by a handler: not now, run me again in `seconds`; no attempt is charged."""

    def __init__(self, seconds: float | timedelta) -> None:
        super().__init__(f"snoozed for {_said(seconds)}")
        self.seconds = seconds


def _said(seconds: object) -> str:
    """A duration as it was given; whether it is one is seen where it is used."""
    return f"{seconds.total_seconds():g} s" if isinstance(seconds, timedelta) else f"{seconds} s"
