"""The nouns: a job, its states, and one finished delivery of it. Knows no rule, no clock and no store."""

from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import msgspec

from rqlab.fields import explained

MAX_DATA_BYTES = 1024 * 1024  # encoded; larger things belong in a file whose path is the data
MAX_RESULT_BYTES = 1024 * 1024  # encoded
MAX_METADATA_BYTES = 64 * 1024  # encoded
MAX_QUEUE_BYTES = 256
MAX_NAME_BYTES = 1024
MAX_UNIQUE_KEY_BYTES = 1024
MAX_TAGS = 100
MAX_TAG_BYTES = 256
MAX_ERROR_BYTES = 8 * 1024  # a longer error is cut, never refused
MAX_HISTORY = 100  # finished deliveries; the oldest leave
MAX_HISTORY_ERROR_BYTES = 512  # a delivery keeps the head of its error: the record is rewritten at each heartbeat
MAX_LOGS = 1_000  # lines; the oldest leave
MAX_LOG_LINE_BYTES = 1024
MAX_LOGS_BYTES = 64 * 1024  # in all
MIN_PRIORITY, MAX_PRIORITY = -32_768, 32_767

#: Writes a job or counts as HTML for a notebook. The front door hangs `rqlab.html.of` here: a noun knows no such thing,
#: and where nobody hung one, notebooks show the plain repr.
html_writer: Callable[[object], str] | None = None

NULL = msgspec.Raw(b"null")


class State(StrEnum):
    """Where a job is in its life; `lifecycle.TRANSITIONS` says how it gets from one to another."""

    WAITING = "waiting"
    DELAYED = "delayed"
    ACTIVE = "active"
    COMPLETED = "completed"
    DLQ = "dlq"
    CANCELLED = "cancelled"

    __hash__ = str.__hash__  # Enum's is Python code, and states are the keys of counters and shelves


#: The states a job ends in; it leaves them by requeue (not from completed), purge or retention.
FINISHED = frozenset({State.COMPLETED, State.DLQ, State.CANCELLED})


class Backoff(StrEnum):
    """How the delay before a retry grows; `backoff.py` has the formulas."""

    FIXED = "fixed"
    LINEAR = "linear"
    EXPONENTIAL = "exponential"


class Outcome(StrEnum):
    """How a delivery ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    STALLED = "stalled"
    TIMED_OUT = "timed_out"
    RELEASED = "released"
    CANCELLED = "cancelled"


@explained
class Delivery(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One finished run of a job: a line of its history."""

    delivery: int  #: which one: the job's `deliveries` while it ran
    worker: str  #: host:pid:thread that held it
    started_at: int  #: milliseconds since the epoch, UTC
    ended_at: int  #: milliseconds since the epoch, UTC
    outcome: Outcome
    error: str | None = None  #: the head of the error text, at most 512 bytes

    def __repr__(self) -> str:
        seconds = (self.ended_at - self.started_at) / 1000
        said = f", {self.error.splitlines()[0]!r}" if self.error else ""
        return f"<Delivery {self.delivery} {self.outcome} after {seconds:g} s at {instant(self.ended_at)}{said}>"


@explained
class Job(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """A job as it was at one moment. Records never change: every event makes the next one.

    Instants are integer milliseconds since the Unix epoch (UTC), in fields ending in `_at` or `_until`;
    durations are seconds, rounded up to the millisecond. Stored as JSON without the fields that have their defaults, so
    the defaults are part of the format.
    """

    id: str  #: UUIDv7 text; its order is push order
    queue: str  #: 1-256 bytes of [A-Za-z0-9._-]
    name: str  #: 1-1024 bytes of [A-Za-z0-9._-]; a mapping of handlers chooses by it
    encoded_data: msgspec.Raw = msgspec.field(default=NULL, name="data")  #: the data as JSON, encoded once at push
    data_apart: bool = False  #: the data is over 4 KiB and has an entry of its own
    state: State = State.WAITING  #: only lifecycle.py changes it
    priority: int = 0  #: -32768...32767; larger runs first
    attempt: int = 0  #: attempts that have failed so far: errors, stalls and time-outs all count
    max_attempts: int = 3  #: it counts runs: 3 means at most three
    deliveries: int = 0  #: times pulled, ever; it never falls: the fencing token
    backoff: Backoff = Backoff.EXPONENTIAL  #: how the delay before a retry grows
    backoff_delay: float = 1.0  #: seconds; the base of the backoff
    max_backoff: float = 86_400.0  #: seconds; no backoff is longer
    jitter: float = 0.0  #: 0.2 draws each backoff from +-20 %
    timeout: float | None = None  #: seconds one run may take
    ttl: float | None = None  #: seconds from when it was first due, after which it expires if it never started
    expires_at: int | None = None  #: that moment; cleared by the first pull
    delay_until: int | None = None  #: when a delayed job becomes, or became, due; cleared by its pull
    lease_until: int | None = None  #: while active: it is stalled when this passes
    stall_timeout: float | None = None  #: seconds; while active: what a heartbeat adds to now
    unique_key: str | None = None  #: held, within the queue, until the job is finished
    tags: tuple[str, ...] = ()  #: searchable labels
    encoded_metadata: msgspec.Raw = msgspec.field(default=NULL, name="metadata")  #: the metadata as JSON
    remove_on_complete: bool = False  #: a completed job leaves no entry
    progress: float = 0  #: 0-100, as its handler said; it is no heartbeat
    logs: tuple[str, ...] = ()  #: the newest 1 000 lines, 64 KiB in all
    encoded_result: msgspec.Raw = msgspec.field(default=NULL, name="result")  #: the result as JSON
    last_error: str | None = None  #: the newest error, at most 8 KiB
    history: tuple[Delivery, ...] = ()  #: one line a finished delivery, the newest 100
    worker: str | None = None  #: host:pid:thread of the run that holds it
    created_at: int = 0  #: when it was pushed
    updated_at: int = 0  #: when it last changed
    started_at: int | None = None  #: when its newest run was pulled
    finished_at: int | None = None  #: when it was completed, dead-lettered or cancelled; retention counts from it

    @property
    def data(self) -> Any:
        """What was pushed, decoded afresh at each access: changing it changes nothing.

        LookupError in a Change of a job with large data, which is not read again for each event.
        """
        if self.data_apart and self.encoded_data == NULL:
            raise LookupError(f"this record of job {self.id} came without its large data: get({self.id!r}).data has it")
        return msgspec.json.decode(self.encoded_data)

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The JSON object given at push, decoded afresh at each access."""
        decoded: dict[str, Any] | None = msgspec.json.decode(self.encoded_metadata)
        return decoded

    @property
    def result(self) -> Any:
        """What its handler returned, decoded afresh at each access; None until it is completed."""
        return msgspec.json.decode(self.encoded_result)

    def _repr_html_(self) -> str | None:
        return None if html_writer is None else html_writer(self)

    @property
    def is_finished(self) -> bool:
        """Whether it is completed, in the dead-letter queue, or cancelled."""
        return self.state in FINISHED

    @property
    def timeout_at(self) -> int | None:
        """When its present run has had its `timeout`; None without one, or while it is not active."""
        if self.timeout is None or self.started_at is None or self.state is not State.ACTIVE:
            return None
        return self.started_at + milliseconds(self.timeout)

    def __repr__(self) -> str:
        facts = [f"{self.queue}/{self.name}", f"{self.state}", f"attempt {self.attempt} of {self.max_attempts}"]
        if self.deliveries:
            facts.append(f"deliveries {self.deliveries}")
        if self.priority:
            facts.append(f"priority {self.priority}")
        if self.delay_until is not None:
            facts.append(f"delay_until {instant(self.delay_until)}")
        if self.lease_until is not None:
            facts.append(f"lease_until {instant(self.lease_until)} by {self.worker}")
        if self.last_error is not None:
            facts.append(f"last_error {self.last_error.splitlines()[0] if self.last_error else ''!r}")
        return f"<Job {self.id} {', '.join(facts)}>"


class Counts(msgspec.Struct, frozen=True):
    """How many jobs are in each state, now."""

    waiting: int = 0
    delayed: int = 0
    active: int = 0
    completed: int = 0
    dlq: int = 0
    cancelled: int = 0

    @property
    def unfinished(self) -> int:
        """Jobs that still have to run or are running: waiting, delayed and active."""
        return self.waiting + self.delayed + self.active

    @property
    def total(self) -> int:
        return self.unfinished + self.completed + self.dlq + self.cancelled

    def _repr_html_(self) -> str | None:
        return None if html_writer is None else html_writer(self)


def milliseconds(seconds: float) -> int:
    """Whole milliseconds, rounded up: only 0 is 0. The inner rounding forgives binary fractions (16.1 s is 16100)."""
    exact = seconds * 1000
    whole = int(exact)
    if whole == exact:  # most are: the rest is a third of the cost
        return whole
    exact = round(exact, 6)
    whole = int(exact)
    return whole if whole == exact and (whole or not seconds) else whole + 1


def instant(at: int) -> str:
    """An aware instant for people: 2026-11-23 20:37:01.250+00:00."""
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")
