"""The only place where a job changes state: one table, and one pure function an event.

Two rules hold for everything here. A function takes a job and the moment, and returns the next record; it reads no
clock, draws no number and touches no store. And every change goes through `_step`, which refuses what
TRANSITIONS does not list, so the table is the whole truth about the life of a job.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from rqlab.backoff import retry_in
from rqlab.errors import InvalidState, LeaseLost
from rqlab.fields import explained
from rqlab.job import (
    MAX_ERROR_BYTES,
    MAX_HISTORY,
    MAX_HISTORY_ERROR_BYTES,
    MAX_LOG_LINE_BYTES,
    MAX_LOGS,
    MAX_LOGS_BYTES,
    Delivery,
    Job,
    Outcome,
    State,
    milliseconds,
)

FORGIVEN_MS = 1_000

WAITING, DELAYED, ACTIVE = State.WAITING, State.DELAYED, State.ACTIVE
COMPLETED, DLQ, CANCELLED = State.COMPLETED, State.DLQ, State.CANCELLED


class Event(StrEnum):
    """What can happen to a job."""

    PUSH = "push"
    PROMOTE = "promote"
    PULL = "pull"
    HEARTBEAT = "heartbeat"
    PROGRESS = "progress"
    LOG = "log"
    ACK = "ack"
    FAIL = "fail"
    STALL = "stall"
    TIME_OUT = "time_out"
    RELEASE = "release"
    SNOOZE = "snooze"
    EXPIRE = "expire"
    CANCEL = "cancel"
    REQUEUE = "requeue"
    PURGE = "purge"

    __hash__ = str.__hash__  # Enum's is Python code, and events are looked up at every change


class Transition(NamedTuple):
    """One row of the table: the states an event may find, the states it may leave, and who brings it."""

    sources: tuple[State, ...]  #: empty: there was no job yet
    targets: tuple[State, ...]  #: empty: the job is gone
    by: str


@explained
class Change(NamedTuple):
    """One event that happened to one job: what `on_change` callbacks get, after the commit."""

    event: Event
    job: Job  #: the record after the event; for `purge`, and for `ack` with remove_on_complete, the last one
    at: int  #: milliseconds since the epoch, UTC


TRANSITIONS: dict[Event, Transition] = {
    Event.PUSH: Transition((), (WAITING, DELAYED), "producer"),
    Event.PROMOTE: Transition((DELAYED,), (WAITING,), "housekeeping, pull"),
    Event.PULL: Transition((WAITING,), (ACTIVE,), "worker"),
    Event.HEARTBEAT: Transition((ACTIVE,), (ACTIVE,), "worker"),
    Event.PROGRESS: Transition((ACTIVE,), (ACTIVE,), "handler"),
    Event.LOG: Transition((ACTIVE,), (ACTIVE,), "handler"),
    Event.ACK: Transition((ACTIVE,), (COMPLETED,), "worker"),
    Event.FAIL: Transition((ACTIVE,), (DELAYED, WAITING, DLQ), "worker"),
    Event.STALL: Transition((ACTIVE,), (DELAYED, WAITING, DLQ), "housekeeping"),
    Event.TIME_OUT: Transition((ACTIVE,), (DELAYED, WAITING, DLQ), "worker, housekeeping"),
    Event.RELEASE: Transition((ACTIVE,), (WAITING,), "worker at shutdown"),
    Event.SNOOZE: Transition((ACTIVE,), (DELAYED, WAITING), "handler"),
    Event.EXPIRE: Transition((WAITING, DELAYED), (DLQ,), "housekeeping, pull"),
    Event.CANCEL: Transition((WAITING, DELAYED, ACTIVE), (CANCELLED,), "caller"),
    Event.REQUEUE: Transition((DLQ, CANCELLED), (WAITING,), "caller"),
    Event.PURGE: Transition((COMPLETED, DLQ, CANCELLED), (), "caller, retention"),
}


def push(job: Job, job_id: str, now: int, delay: float, data: msgspec.Raw | None = None) -> Job:
    """A new job enters the line under its id: delayed if it has a delay (seconds), waiting if not.

    `data`, if given, becomes its data: jobs that differ in nothing else are made from one.
    """
    encoded_data = job.encoded_data if data is None else data
    new = replace(job, id=job_id, encoded_data=encoded_data, created_at=now, updated_at=now)
    due_at = now + milliseconds(delay) if delay else now
    if job.ttl is not None:
        new = replace(new, expires_at=due_at + milliseconds(job.ttl))
    return new if due_at == now else replace(new, state=DELAYED, delay_until=due_at)


def promote(job: Job, now: int) -> Job:
    """A delayed job that is due joins the line, at the place of its id. Since when it is due stays to be seen."""
    return _step(job, Event.PROMOTE, WAITING, now)


def pull(job: Job, now: int, worker: str, stall_timeout: float) -> Job:
    """A worker takes the job: a new delivery, a fresh lease. Nothing of an earlier run's lease is left."""
    return _step(
        job,
        Event.PULL,
        ACTIVE,
        now,
        deliveries=job.deliveries + 1,
        lease_until=now + milliseconds(stall_timeout),
        stall_timeout=stall_timeout,
        started_at=now,
        worker=worker,
        delay_until=None,
        expires_at=None,
        progress=0,
    )


def heartbeat(job: Job, now: int) -> Job:
    """The lease holds for another `stall_timeout` from now."""
    assert job.stall_timeout is not None, "an active job has a stall_timeout"
    return _step(job, Event.HEARTBEAT, ACTIVE, now, lease_until=now + milliseconds(job.stall_timeout))


def progress(job: Job, now: int, percent: float, message: str | None) -> Job:
    """How far the run is, and a line for its log. It keeps no lease: a stuck loop can report for ever."""
    logs = job.logs if message is None else _with_line(job.logs, message)
    return _step(job, Event.PROGRESS, ACTIVE, now, progress=percent, logs=logs)


def log(job: Job, now: int, line: str) -> Job:
    """One more line in the job's log; the oldest leave at 1 000 lines or 64 KiB."""
    return _step(job, Event.LOG, ACTIVE, now, logs=_with_line(job.logs, line))


def ack(job: Job, now: int, result: msgspec.Raw) -> Job:
    """The run succeeded."""
    return _end(job, Event.ACK, COMPLETED, now, Outcome.COMPLETED, encoded_result=result, finished_at=now)


def fail(job: Job, now: int, error: str, draw: float, *, retry_after: float | None = None, final: bool = False) -> Job:
    """The run failed: back in the line after its backoff (or `retry_after` seconds), or, if used up, to the DLQ."""
    return _charge(job, Event.FAIL, now, Outcome.FAILED, error, draw, retry_after, final)


def stall(job: Job, now: int, draw: float) -> Job:
    """The lease ran out without a heartbeat: the worker is taken for dead, the attempt for failed."""
    assert job.lease_until is not None, "an active job has a lease"
    assert job.stall_timeout is not None, "an active job has a lease"
    silent = (now - job.lease_until) / 1000 + job.stall_timeout
    error = f"stalled: no heartbeat from {job.worker} for {silent:.1f} s"
    return _charge(job, Event.STALL, now, Outcome.STALLED, error, draw, None, False)


def time_out(job: Job, now: int, draw: float) -> Job:
    """The run took longer than its `timeout`."""
    error = f"timed out after {job.timeout:.12g} s"  # all digits: a long time-out is not 1.2e+06 s
    return _charge(job, Event.TIME_OUT, now, Outcome.TIMED_OUT, error, draw, None, False)


def release(job: Job, now: int) -> Job:
    """The run is given up through no fault of the job: back in the line, no attempt charged."""
    return _end(job, Event.RELEASE, WAITING, now, Outcome.RELEASED)


def snooze(job: Job, now: int, seconds: float) -> Job:
    """The handler asks to be run again later; no attempt is charged."""
    if milliseconds(seconds) == 0:
        return _end(job, Event.SNOOZE, WAITING, now, Outcome.RELEASED)
    return _end(job, Event.SNOOZE, DELAYED, now, Outcome.RELEASED, delay_until=now + milliseconds(seconds))


def expire(job: Job, now: int) -> Job:
    """Its ttl passed before it ever started."""
    return _step(job, Event.EXPIRE, DLQ, now, last_error="expired", delay_until=None, expires_at=None, finished_at=now)


def cancel(job: Job, now: int) -> Job:
    """Nobody wants it any more. An active job's lease is revoked at once."""
    if job.state is ACTIVE:
        return _end(job, Event.CANCEL, CANCELLED, now, Outcome.CANCELLED, finished_at=now)
    return _step(job, Event.CANCEL, CANCELLED, now, delay_until=None, expires_at=None, finished_at=now)


def requeue(job: Job, now: int) -> Job:
    """A dead-lettered or cancelled job starts over with all its attempts; history and deliveries stay."""
    return _step(
        job,
        Event.REQUEUE,
        WAITING,
        now,
        attempt=0,
        started_at=None,
        finished_at=None,
        ttl=None,
        expires_at=None,
        last_error=None,
        progress=0,
    )


def is_too_far_ahead(job: Job, now: int) -> bool:
    """Whether its lease, or its start, lies further ahead than the clock allows: the wall clock went back since.

    A second is forgiven: two processes read the clock apart.
    """
    if job.lease_until is None or job.stall_timeout is None or job.started_at is None:
        return False
    latest = now + FORGIVEN_MS
    return job.lease_until > latest + milliseconds(job.stall_timeout) or job.started_at > latest


def cut_short(job: Job, now: int) -> Job:
    """Cut what lies too far ahead: the lease to now + its own stall_timeout, and the start, where `timeout` begins."""
    assert job.started_at is not None, "an active job has started"
    return replace(heartbeat(job, now), started_at=min(job.started_at, now))


def require(job: Job, event: Event) -> None:
    """Raise InvalidState unless the table lets `event` happen to this job."""
    sources = TRANSITIONS[event].sources
    if job.state not in sources:
        raise InvalidState(
            f"cannot {event.replace('_', ' ')} job {job.id}: expected {_either(sources)}, got {job.state}"
        )


def fence(stored: Job | None, held: Job) -> Job:
    """The stored record, if the run that holds `held` is still the run of this job; LeaseLost if not.

    `deliveries` is the token: `attempt` would not do, a requeue lowers it.
    """
    if stored is not None and stored.state is ACTIVE and stored.deliveries == held.deliveries:
        return stored
    if stored is None:
        found, advice = "no such job: it was removed", "If this run has not ended, drop its work"
    elif held.state is not ACTIVE:
        found, advice = f"{stored.state}, delivery {stored.deliveries}", "Call this with a job that pull returned"
    elif stored.deliveries != held.deliveries:
        found, advice = f"{stored.state}, delivery {stored.deliveries}", "Drop this run's work: another run has the job"
    else:
        ended = stored.history[-1].outcome if stored.history else stored.state
        found, advice = f"{stored.state}", f"This delivery has ended already, as {ended}, and that is stored"
    raise LeaseLost(
        f"job {held.id} is not held by this run: expected active, delivery {held.deliveries}; found {found}. {advice}; "
        "this call changed nothing"
    )


def cut(words: str, max_bytes: int) -> str:
    """Text cut to `max_bytes` bytes of UTF-8 on a character boundary; what is not valid Unicode is replaced."""
    encoded = words.encode("utf-8", "backslashreplace")
    return encoded[:max_bytes].decode("utf-8", "ignore")


def _step(job: Job, event: Event, target: State, now: int, **changes: Any) -> Job:
    require(job, event)
    assert target in TRANSITIONS[event].targets, f"{event} never leads to {target}"
    return replace(job, state=target, updated_at=now, **changes)


def _end(
    job: Job, event: Event, target: State, now: int, outcome: Outcome, error: str | None = None, **changes: Any
) -> Job:
    """A delivery ends, however it ended: its line enters the history and its lease goes."""
    line = Delivery(
        delivery=job.deliveries,
        worker=job.worker or "",
        started_at=now if job.started_at is None else job.started_at,
        ended_at=now,
        outcome=outcome,
        error=None if error is None else cut(error, MAX_HISTORY_ERROR_BYTES),
    )
    history = (*job.history[-MAX_HISTORY + 1 :], line)
    return _step(job, event, target, now, history=history, lease_until=None, stall_timeout=None, worker=None, **changes)


def _charge(
    job: Job,
    event: Event,
    now: int,
    outcome: Outcome,
    error: str,
    draw: float,
    retry_after: float | None,
    final: bool,
) -> Job:
    """An attempt failed: count it, then decide between another run and the dead-letter queue."""
    error = cut(error, MAX_ERROR_BYTES)
    charged = replace(job, attempt=job.attempt + 1, last_error=error)
    if final or charged.attempt >= charged.max_attempts:
        return _end(charged, event, DLQ, now, outcome, error, finished_at=now)
    delay = retry_in(charged, draw) if retry_after is None else milliseconds(retry_after)
    if delay == 0:
        return _end(charged, event, WAITING, now, outcome, error)
    return _end(charged, event, DELAYED, now, outcome, error, delay_until=now + delay)


def _with_line(logs: tuple[str, ...], line: str) -> tuple[str, ...]:
    kept = (*logs[-MAX_LOGS + 1 :], cut(line, MAX_LOG_LINE_BYTES))
    surplus = sum(len(each.encode()) for each in kept) - MAX_LOGS_BYTES
    first = 0
    while surplus > 0:
        surplus -= len(kept[first].encode())
        first += 1
    return kept[first:]


def _either(states: Iterable[State]) -> str:
    return " or ".join(states)
