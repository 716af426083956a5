"""Every promise as one row: a sentence, and the function that says how it was broken.

A check is asked at its moment: for every change of a job (between the record that was and the one that is), for every
commit, of the jobs that it touched, for every run that begins, for every answer, whenever the whole store is read and
counted, after every recovery, and at the end. None asks the code that it judges: the formulas here are written down a
second time.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from math import ceil
from typing import NamedTuple

from rqlab.engine import LISTED, PAUSED, Ending
from rqlab.errors import LeaseLost, RQLabError, StoreError
from rqlab.job import FINISHED, Backoff, Job, State
from rqlab.lifecycle import TRANSITIONS, Event
from rqlab.simulation.ledger import Commit, Found, Ledger, told
from rqlab.simulation.platter import CRASH_KINDS

WAITING, DELAYED, ACTIVE, DLQ = State.WAITING, State.DELAYED, State.ACTIVE, State.DLQ

CHARGED = frozenset({Event.FAIL, Event.STALL, Event.TIME_OUT})
FENCED = frozenset({Event.ACK, Event.FAIL, Event.RELEASE, Event.SNOOZE, Event.PROGRESS, Event.LOG})
LONGEST_BACKOFF_MS = 2**62


class Moment(StrEnum):
    """When a check is asked."""

    CHANGE = "change"
    RUN = "run"
    ANSWER = "answer"
    STORED = "stored"
    COUNT = "count"
    RECOVERY = "recovery"
    END = "end"


class Seen(NamedTuple):
    """One change of a job, in the transaction that was committed."""

    event: Event
    old: Job | None
    new: Job
    at: int  #: the instant that the engine was given
    clock: int  #: what the wall of the process showed
    token: int | None  #: the delivery on whose behalf a worker called; None: it was not a worker's call
    ending: Ending | None
    ran: Mapping[tuple[str, int], bytes]  #: the data that each delivery's handler got


class Touched(NamedTuple):
    """A job that a commit changed, as the store gives it right afterwards."""

    job_id: str
    there: Job | None
    complaint: str = ""  #: why it could not be read, though nothing strikes


class Begun(NamedTuple):
    """A handler that begins."""

    job: Job
    is_durable: bool


class Answer(NamedTuple):
    """What a call came to."""

    attempted: str
    job: Job
    outcome: Job | RQLabError
    stored: Job | None  #: the record after it
    torn: Sequence[str]  #: of a call that raised: jobs that have neither their old record nor their new one
    bug: str  #: an error that is none of rqlab's own


class Recovery(NamedTuple):
    """What was there when the queues were opened after a crash."""

    found: Found | None  #: None: they could not be opened
    complaints: Sequence[str]  #: why not; or what SQLite finds wrong with the file
    how: str  #: "kill", or a row of CRASH_KINDS
    taken_back: Sequence[Commit] | None  #: commits that are gone; None: what was found is no prefix of them
    allowed: float  #: how many may be gone
    held: Sequence[Job]  #: the records that were active at the crash, and that no call was about to change
    age: float  #: seconds that the oldest lost write had been acknowledged, without those in which nobody could act
    age_allowed: float


class End(NamedTuple):
    """How it ended, a while after the last fault."""

    at: int
    allowed_until: int
    pushes_failed: int  #: of those made after the last fault
    deliveries: int
    deliveries_allowed: int
    now: int  #: by a right wall clock
    is_exhausted: bool  #: it was stopped after too many steps


class Check(NamedTuple):
    id: str
    sentence: str
    moment: Moment
    broken: Callable[..., str | None]  #: (ledger, what was seen) -> how it was broken, None if it was not
    events: frozenset[Event] = frozenset(Event)  #: of a change: those that it is asked of


class Violation(NamedTuple):
    """A promise that was broken."""

    check: str  #: a row of CHECKS
    at: float  #: seconds since the beginning
    says: str

    def __str__(self) -> str:
        return f"{self.check} at {self.at:.3f} s: {CHECKS[self.check].sentence}; {self.says}"


# Always.


def _legal(ledger: Ledger, seen: Seen) -> str | None:
    sources, targets, _ = TRANSITIONS[seen.event]
    if seen.old is None:
        if sources or seen.event is not Event.PUSH:
            return f"{seen.event} of job {seen.new.id}, which is not there"
    elif seen.old.state not in sources:
        return f"{seen.event} of job {seen.new.id}, which was {seen.old.state}"
    if targets and seen.new.state not in targets:
        return f"{seen.event} left job {seen.new.id} {seen.new.state}"
    return None


def _one_lease(ledger: Ledger, seen: Seen) -> str | None:
    old, new = seen.old, seen.new
    if seen.event is Event.PULL and old is not None:
        if old.state is ACTIVE:
            return f"job {new.id} was pulled while {old.worker} holds it"
        if new.deliveries != old.deliveries + 1:
            return f"delivery {new.deliveries} of job {new.id} follows {old.deliveries}"
    elif new.deliveries != (0 if old is None else old.deliveries):
        return f"{seen.event} changed the deliveries of job {new.id}"
    if new.state is ACTIVE:
        if new.lease_until is None or new.stall_timeout is None:
            return f"job {new.id} is active without a lease"
        if seen.event in (Event.PULL, Event.HEARTBEAT) and new.lease_until != seen.at + ceil(new.stall_timeout * 1000):
            return f"{seen.event} of job {new.id} made a lease of {new.lease_until - seen.at} ms"
    return None


def _fenced(ledger: Ledger, seen: Seen) -> str | None:
    if seen.token is None:
        return f"{seen.event} of job {seen.new.id} by nobody who holds it" if seen.event in FENCED else None
    if seen.event in (Event.PULL, Event.PROMOTE, Event.EXPIRE):
        return None  # of the next job: the same call pulls
    if seen.old is None or seen.old.state is not ACTIVE or seen.old.deliveries != seen.token:
        there = "gone" if seen.old is None else f"{seen.old.state}, delivery {seen.old.deliveries}"
        return f"{seen.event} by delivery {seen.token} changed job {seen.new.id}, which was {there}"
    return None


def _refused(ledger: Ledger, answer: Answer) -> str | None:
    """A run that holds its job is heard; one that does not is told so, not something else."""
    if isinstance(answer.outcome, LeaseLost):
        stored = answer.stored
        if stored is not None and stored.state is ACTIVE and stored.deliveries == answer.job.deliveries:
            return (
                f"{answer.attempted} of job {answer.job.id} was refused, though delivery {stored.deliveries} holds it"
            )
    elif isinstance(answer.outcome, RQLabError) and not isinstance(answer.outcome, StoreError):
        return f"{answer.attempted} of job {answer.job.id} raised {type(answer.outcome).__name__}: {answer.outcome}"
    return None


def _attempts(ledger: Ledger, seen: Seen) -> str | None:
    old, new, event = seen.old, seen.new, seen.event
    before = 0 if old is None or event is Event.REQUEUE else old.attempt
    if new.attempt != before + (event in CHARGED):
        return f"{event} made attempt {new.attempt} of job {new.id} out of {before}"
    if new.attempt > new.max_attempts:
        return f"job {new.id} has had {new.attempt} attempts of {new.max_attempts}"
    is_final = seen.ending is not None and seen.ending.final
    if event in CHARGED and (new.state is DLQ) != (new.attempt >= new.max_attempts or is_final):
        return f"{event} left job {new.id} {new.state} after attempt {new.attempt} of {new.max_attempts}"
    if event in CHARGED and not new.last_error:
        return f"{event} left job {new.id} without an error"
    if event is Event.EXPIRE:
        if old is None or old.expires_at is None or old.expires_at > seen.at or old.started_at is not None:
            return f"job {new.id} expired too early, or had started"
        if new.last_error != "expired":
            return f"the last error of expired job {new.id} is {new.last_error!r}"
    return None


def _not_early(ledger: Ledger, seen: Seen) -> str | None:
    old, new, event = seen.old, seen.new, seen.event
    if abs(seen.at - seen.clock) > 0:
        return f"{event} of job {new.id} was given {seen.at} by a wall that shows {seen.clock}"
    if new.updated_at != seen.at and event is not Event.PURGE:
        return f"{event} of job {new.id} at {seen.at} was stamped {new.updated_at}"
    if event is Event.PROMOTE and old is not None and old.delay_until is not None:
        if old.delay_until > seen.at:  # a pull may be by a slower clock than that which promoted
            return f"job {new.id} came {old.delay_until - seen.at} ms before it was due"
    elif event in CHARGED and new.state in (WAITING, DELAYED):
        low, high = _backoff(new, seen.ending)
        due_in = 0 if new.state is WAITING or new.delay_until is None else new.delay_until - seen.at
        if not low <= due_in <= high:
            return f"after attempt {new.attempt} job {new.id} waits {due_in} ms; expected {low} to {high}"
    elif event is Event.STALL and old is not None and old.lease_until is not None and old.lease_until > seen.at:
        return f"job {new.id} was taken for stalled {old.lease_until - seen.at} ms before its lease ended"
    return None


def _backoff(job: Job, ending: Ending | None) -> tuple[int, int]:
    """What a job that has just failed may wait, in milliseconds."""
    if ending is not None and ending.delay is not None:
        asked = ceil(round(ending.delay * 1000, 6))
        return asked, asked
    match job.backoff:
        case Backoff.FIXED:
            seconds = job.backoff_delay
        case Backoff.LINEAR:
            seconds = job.backoff_delay * job.attempt
        case _:
            seconds = job.backoff_delay * 2.0 ** min(job.attempt - 1, 64)
    seconds = min(seconds, job.max_backoff)
    most = min(seconds * (1 + job.jitter), job.max_backoff)
    return int(seconds * (1 - job.jitter) * 1000), ceil(round(most * 1000, 6)) + (1 if job.jitter else 0)


def _conserved(ledger: Ledger, found: Found) -> str | None:
    if found.complaint:
        return f"the store cannot be read: {found.complaint}"
    kept = len(found.jobs)
    if kept != ledger.pushed - ledger.removed - len(ledger.lost):
        return f"{ledger.pushed} were pushed, {kept} are there, {ledger.removed} removed, {len(ledger.lost)} lost"
    for job_id in found.jobs.keys() | ledger.jobs.keys():
        says = _stored(ledger, Touched(job_id, found.jobs.get(job_id)))
        if says is not None:
            return says
    if found.entries != ledger.entries:
        wrong = {
            key
            for key in found.entries.keys() | ledger.entries.keys()
            if found.entries.get(key) != ledger.entries.get(key)
        }
        return f"stored is not what was committed of {', '.join(sorted(wrong))}"
    return None


def _ran(ledger: Ledger, seen: Seen) -> str | None:
    job = seen.new
    if seen.event is Event.ACK:
        data = seen.ran.get((job.id, job.deliveries))
        if data is None:
            return f"job {job.id} is completed, and delivery {job.deliveries} never ran"
        if data != bytes(job.encoded_data):
            return f"job {job.id} ran with {data[:60]!r}; pushed was {bytes(job.encoded_data)[:60]!r}"
    else:
        if PAUSED + job.queue in ledger.entries:
            return f"job {job.id} was pulled from {job.queue}, which is paused"
        first = ledger.first(job.queue)
        if first is not None and first != job.id:
            return f"job {job.id} was pulled before job {first}"
    return None


def _whole_or_not(ledger: Ledger, answer: Answer) -> str | None:
    if answer.torn:
        return f"{answer.attempted} raised, and of {', '.join(answer.torn)} a part of its effect is there"
    return None


def _no_bug(ledger: Ledger, answer: Answer) -> str | None:
    return answer.bug or None


def _ticks(ledger: Ledger, seen: Seen) -> str | None:
    tick = ledger.ticks.get(seen.new.id)
    if tick is not None and tick in ledger.fired:
        return f"schedule {tick[0]} fired its tick {tick[1]} again as job {seen.new.id}"
    return None


def _unique(ledger: Ledger, seen: Seen) -> str | None:
    job = seen.new
    if job.unique_key is not None:
        holder = ledger.unique.get((job.queue, job.unique_key))
        if holder is not None and holder != job.id:
            return f"{seen.event} of job {job.id} took the key {job.unique_key!r}, which job {holder} holds"
    return None


def _stored(ledger: Ledger, touched: Touched) -> str | None:
    job_id, there, complaint = touched
    if complaint:
        return f"job {job_id} cannot be read: {complaint}"
    committed = ledger.jobs.get(job_id)
    if there is committed or there == committed:
        return None
    return (
        f"job {job_id} is stored as {'nothing' if there is None else told(there)}; "
        f"committed was {'nothing' if committed is None else told(committed)}"
    )


def _keys_held(ledger: Ledger, found: Found) -> str | None:
    for job in found.jobs.values():
        if job.unique_key is None:
            continue
        holder = found.unique.get((job.queue, job.unique_key))
        if job.state in FINISHED:
            if holder == job.id:
                return f"job {job.id} is {job.state} and still holds its key {job.unique_key!r}"
        elif holder != job.id:
            return f"job {job.id} is {job.state}, and its key {job.unique_key!r} is held by {holder}"
    return None


def _counted(ledger: Ledger, found: Found) -> str | None:
    counted: dict[str, Counter[str]] = {}
    for job in found.jobs.values():
        counted.setdefault(job.queue, Counter())[job.state] += 1
    for queue in found.counters.keys() | counted.keys():
        for state in LISTED:
            says = found.counters.get(queue, {}).get(state, 0)
            there = counted.get(queue, Counter())[state]
            if says != there:
                return f"the counters of {queue} say {says} {state}, there are {there}"
    return None


# After every recovery.


def _opens(ledger: Ledger, recovery: Recovery) -> str | None:
    return "; ".join(recovery.complaints) or None


def _prefix(ledger: Ledger, recovery: Recovery) -> str | None:
    if recovery.found is None or recovery.taken_back is not None:
        return None
    return "what is there is the state after no prefix of the commits" + _first_difference(ledger, recovery.found)


def _first_difference(ledger: Ledger, found: Found) -> str:
    wrong = [
        job_id
        for job_id in sorted(found.jobs.keys() | ledger.jobs.keys())
        if found.jobs.get(job_id) != ledger.jobs.get(job_id)
    ]
    if not wrong:
        return ""
    there = found.jobs.get(wrong[0])
    return f": job {wrong[0]} is {'gone' if there is None else told(there)}"


def _pushed(ledger: Ledger, recovery: Recovery) -> str | None:
    strangers = [] if recovery.found is None else sorted(recovery.found.jobs.keys() - ledger.ever)
    return f"nobody pushed {', '.join(strangers)}" if strangers else None


def _kept(ledger: Ledger, recovery: Recovery) -> str | None:
    gone = 0 if recovery.taken_back is None else len(recovery.taken_back)
    if gone > recovery.allowed:
        return f"a {recovery.how} took {gone} acknowledged writes; allowed are {recovery.allowed:g}"
    return None


def _young(ledger: Ledger, recovery: Recovery) -> str | None:
    if recovery.age > recovery.age_allowed:
        return (
            f"a {recovery.how} took a write that was acknowledged {recovery.age:.3f} s before; "
            f"allowed are {recovery.age_allowed:.3f} s"
        )
    return None


def _never_again(ledger: Ledger, begun: Begun) -> str | None:
    if begun.is_durable and begun.job.id in ledger.completed:
        return f"job {begun.job.id} runs again, as delivery {begun.job.deliveries}; its completion was acknowledged"
    return None


def _leases(ledger: Ledger, recovery: Recovery) -> str | None:
    if recovery.found is None:
        return None
    for job in recovery.held:
        there = recovery.found.jobs.get(job.id)
        if there is not None and there.state in FINISHED and there.deliveries >= job.deliveries:  # not an older record
            return f"job {job.id} was held at the crash, and is {there.state} after it"
    return None


# After all faults have stopped.


def _rests(ledger: Ledger, end: End) -> str | None:
    if end.at < end.allowed_until and not end.is_exhausted:
        return None
    left = [job for job in ledger.jobs.values() if job.state not in FINISHED]
    if not left:
        return None
    shown = ", ".join(f"{job.id} ({job.state})" for job in left[:3])
    return f"{len(left)} jobs have come to no end {end.at / 1000:.0f} s after the beginning: {shown}"


def _beaten(ledger: Ledger, end: End) -> str | None:
    for job in ledger.jobs.values():
        if job.state is ACTIVE and job.lease_until is not None and job.stall_timeout is not None:
            silent = end.now - job.lease_until
            if silent > job.stall_timeout * 1000:
                return f"job {job.id} is active, and its lease ended {silent / 1000:.1f} s ago"
    return None


def _pushable(ledger: Ledger, end: End) -> str | None:
    return f"{end.pushes_failed} pushes failed after the last fault" if end.pushes_failed else None


def _no_livelock(ledger: Ledger, end: End) -> str | None:
    if end.is_exhausted:
        return "the world was stopped after too many steps"
    if end.deliveries > end.deliveries_allowed:
        return f"{end.deliveries} deliveries; {end.deliveries_allowed} are enough for any plan of this size"
    return None


def loses_the_last(how: str) -> bool:
    """Whether this crash may take the last transaction with it although it was synced."""
    return how in CRASH_KINDS and CRASH_KINDS[how].loses_the_last


_ROWS = (
    Check("I0", "nothing raises but errors of rqlab's own", Moment.ANSWER, _no_bug),
    Check("I1", "a job changes state only as TRANSITIONS says", Moment.CHANGE, _legal),
    Check("I2", "a job has at most one live lease, and its deliveries rise strictly", Moment.CHANGE, _one_lease),
    Check("I3", "a delivery that does not hold its job changes nothing", Moment.CHANGE, _fenced),
    Check("I3b", "a delivery that holds its job is heard", Moment.ANSWER, _refused),
    Check("I4", "a job is tried max_attempts times, then dead-lettered with its last error", Moment.CHANGE, _attempts),
    Check("I5", "no job runs before it is due, and no retry before its backoff", Moment.CHANGE, _not_early),
    Check("I6", "every job that was pushed is there, removed or lost, as it was committed", Moment.COUNT, _conserved),
    Check("I6b", "what a commit changed is stored as it was committed", Moment.STORED, _stored),
    Check(
        *("I7", "a completed job ran with exactly its data, and jobs run in their order", Moment.CHANGE, _ran),
        events=frozenset({Event.ACK, Event.PULL}),
    ),
    Check("I8", "a call that raised had no effect, or its whole effect", Moment.ANSWER, _whole_or_not),
    Check("I9", "a tick of a schedule is one job", Moment.CHANGE, _ticks, frozenset({Event.PUSH})),
    Check("I10", "a unique key has one holder", Moment.CHANGE, _unique, frozenset({Event.PUSH, Event.REQUEUE})),
    Check("I10b", "a unique key is held by its job until that is finished", Moment.COUNT, _keys_held),
    Check("I11", "the counters equal a recount", Moment.COUNT, _counted),
    Check("R0", "after a crash the queues open, and the file is sound", Moment.RECOVERY, _opens),
    Check("R1", "what is there after a crash is what some prefix of the commits left", Moment.RECOVERY, _prefix),
    Check("R2", "nothing is there that was never pushed", Moment.RECOVERY, _pushed),
    Check("R3", "no more is lost than the mode allows", Moment.RECOVERY, _kept),
    Check("R3b", "what is lost is no older than the mode allows", Moment.RECOVERY, _young),
    Check("R4", "in durable, an acknowledged completion never runs again", Moment.RUN, _never_again),
    Check("R5", "what was held at a crash is held or can be pulled again, and is never done", Moment.RECOVERY, _leases),
    Check("L1", "when nothing breaks any more, every job comes to an end", Moment.END, _rests),
    Check("L2", "nothing stays active without heartbeats", Moment.END, _beaten),
    Check("L3", "pushes succeed again", Moment.END, _pushable),
    Check("L4", "nothing goes round for ever", Moment.END, _no_livelock),
)

CHECKS: dict[str, Check] = {check.id: check for check in _ROWS}
