"""Whether safety holds, as far as it can be judged from the records and from what was acknowledged.

Evidence in, verdict out. The checks that need more than that (a power cut, the moment between two steps) are listed
too, and not claimed: `rqlab.simulate` judges those.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from rqlab.durability import MODES, Opening
from rqlab.job import MAX_HISTORY, Counts, Job, Outcome, State
from rqlab.widgets.ledger import Books

CHARGED = (Outcome.FAILED, Outcome.STALLED, Outcome.TIMED_OUT)
MOST_SAID = 3  # violations of one check that are told


class Evidence(NamedTuple):
    """What is judged: all records at one instant, and the books as they were before."""

    records: Sequence[Job]
    counts: Counts  #: the store's own counters
    books: Books
    mode: str
    opening: Opening
    lab: str  #: what the metadata of this lab's jobs say
    forgiven_ms: int  #: a pull may carry an instant so old: it was read before the process waited, or was frozen


class Check(NamedTuple):
    """One promise, judged over all records or one by one: what speaks against it. With neither it is not judged."""

    id: str
    sentence: str
    judge: "Callable[[Evidence, dict[str, _Known], Loss], Iterator[str]] | None" = None
    judge_one: Callable[[Job, int], Iterator[str]] | None = None  #: given what is forgiven, in ms


class Finding(NamedTuple):
    """A check and what came of it."""

    id: str
    sentence: str
    holds: bool | None  #: None: not judged
    says: tuple[str, ...] = ()


class Loss(NamedTuple):
    """What crashes have cost, beside what they may cost."""

    jobs: tuple[str, ...] = ()  #: ids that were acknowledged and are gone
    undone: int = 0  #: completions that were acknowledged and are not in the records
    at_risk: int = 0  #: acknowledged jobs that a crash would lose now
    allowed: float = 0.0  #: writes that the crashes so far may have lost, by the modes' rows
    crashes: int = 0  #: of processes
    broken: tuple[str, ...] = ()  #: what was lost beyond the row


class Verdict(NamedTuple):
    """All findings, and whether none speaks against safety."""

    safe: bool
    findings: tuple[Finding, ...]
    loss: Loss


class _Known(NamedTuple):
    """What was found in one record."""

    record: Job
    says: tuple[tuple[str, str], ...]  #: (check, what speaks against it)
    completed: frozenset[tuple[int, str]]  #: delivery and worker of the runs that completed it
    lab: Any  #: whose it is, if its metadata say so
    number: Any  #: as what it was asked for


class Judge:
    """Judges a lab again and again; a record that is the same object as last time is not looked into again."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge every check that can be judged."""
        known = self._known
        looked = [known.get(job.id) for job in evidence.records]
        self._known = {
            job.id: before if before is not None and before.record is job else _look(job, evidence.forgiven_ms)
            for job, before in zip(evidence.records, looked, strict=True)
        }
        lost = _loss(evidence, self._known)
        single: dict[str, list[str]] = {}
        for each in self._known.values():
            for check_id, said in each.says:
                single.setdefault(check_id, []).append(said)
        findings = []
        for check in CHECKS:
            if check.judge is None and check.judge_one is None:
                findings.append(Finding(check.id, check.sentence, None))
                continue
            found = single.get(check.id, []) if check.judge is None else list(check.judge(evidence, self._known, lost))
            more = (f"and {len(found) - MOST_SAID} more",) if len(found) > MOST_SAID else ()
            findings.append(Finding(check.id, check.sentence, not found, (*found[:MOST_SAID], *more)))
        return Verdict(all(finding.holds is not False for finding in findings), tuple(findings), lost)


def _look(job: Job, forgiven_ms: int) -> _Known:
    says = [(check.id, said) for check in CHECKS if check.judge_one for said in check.judge_one(job, forgiven_ms)]
    completed = {(line.delivery, line.worker) for line in job.history if line.outcome is Outcome.COMPLETED}
    metadata = job.metadata or {}
    return _Known(job, tuple(says), frozenset(completed), metadata.get("lab"), metadata.get("number"))


def _loss(evidence: Evidence, known: dict[str, _Known]) -> Loss:
    """What was acknowledged and is gone, life by life of the processes that acknowledged it."""
    books = evidence.books
    missing = _missing(evidence, known)
    undone = _undone(evidence, known)
    broken: list[str] = []
    gone: list[str] = []
    undone_for_good = at_risk = crashes = 0
    allowed = 0.0
    for number, life in books.lives.items():
        has_crashed = life.ended == "crashed"
        most = MODES[life.mode].most_lost(evidence.opening)
        crashes += has_crashed
        allowed += most if has_crashed else 0
        writes = len(missing[number]) + undone[number]
        if not writes:
            continue
        if not life.ended and most > 0:
            at_risk += len(missing[number])
            continue
        gone += missing[number]
        undone_for_good += undone[number]
        permitted = math.inf if life.in_memory else most if has_crashed else 0
        if writes > permitted:
            end = {"crashed": "a crash of", "stopped": "a clean end of"}.get(life.ended, "no crash of")
            broken.append(
                f"{writes:,} acknowledged writes are gone after {end} {life.name} (pid {life.pid}): "
                f"{life.mode} may lose {permitted:,.0f}"
            )
    return Loss(tuple(gone), undone_for_good, at_risk, allowed, crashes, tuple(broken))


def _missing(evidence: Evidence, known: dict[str, _Known]) -> dict[int, list[str]]:
    """Jobs that were acknowledged and are not there, by the life that acknowledged them."""
    lives, in_memory = evidence.books.lives, evidence.mode == "memory"
    missing: dict[int, list[str]] = {number: [] for number in lives}
    for job_id, said in evidence.books.acknowledged.items():
        its_memory = lives[said.life].in_memory
        if in_memory and not its_memory:
            continue  # it is in the directory, which nobody reads now
        if job_id not in known or (its_memory and not in_memory):
            missing[said.life].append(job_id)
    return missing


def _undone(evidence: Evidence, known: dict[str, _Known]) -> Counter[int]:
    """Completions that somebody was told of and that the records do not have, by life. A lost job is counted once."""
    found: Counter[int] = Counter()
    in_memory, lives = evidence.mode == "memory", evidence.books.lives
    for said in evidence.books.completed:
        there = known.get(said.job)
        if there is None or (said.delivery, said.worker) in there.completed:
            continue
        if lives[said.life].in_memory == in_memory and len(there.record.history) < MAX_HISTORY:
            found[said.life] += 1
    return found


def _conservation(evidence: Evidence, known: dict[str, _Known], lost: Loss) -> Iterator[str]:
    if len(known) < len(evidence.records):
        for job_id, places in Counter(job.id for job in evidence.records).items():
            if places > 1:
                yield f"job {job_id} stands in {places} places"
    ours: dict[int, str] = {}
    for job_id, each in known.items():
        if each.lab != evidence.lab:
            continue  # somebody else's: nothing is known of it
        if each.number not in evidence.books.asked:
            yield f"job {job_id} is there as number {each.number}, and was never pushed"
        elif each.number in ours:
            yield f"number {each.number} was pushed once and is there twice: {ours[each.number]}, {job_id}"
        ours[each.number] = job_id


def _beyond_the_row(evidence: Evidence, known: dict[str, _Known], lost: Loss) -> Iterator[str]:
    yield from lost.broken


def _counters(evidence: Evidence, known: dict[str, _Known], lost: Loss) -> Iterator[str]:
    recount = Counter(str(job.state) for job in evidence.records)
    for state in State:
        said, there = getattr(evidence.counts, state), recount[state]
        if said != there:
            yield f"the counter says {said:,} {state}, a recount {there:,}"


def _deliveries(job: Job, forgiven_ms: int) -> Iterator[str]:
    if job.deliveries >= MAX_HISTORY:
        return  # the oldest lines have left
    live = int(job.state is State.ACTIVE)
    if job.deliveries != len(job.history) + live:
        yield f"job {job.id}: {job.deliveries} deliveries, {len(job.history)} finished, {live} under way"
    elif [line.delivery for line in job.history] != list(range(1, len(job.history) + 1)):
        yield f"job {job.id}: its deliveries do not rise one by one"


def _overlap(job: Job, forgiven_ms: int) -> Iterator[str]:
    until = None
    runs = [(line.delivery, line.started_at, line.ended_at) for line in job.history]
    if job.state is State.ACTIVE and job.started_at is not None:
        runs.append((job.deliveries, job.started_at, job.started_at))
    for delivery, started_at, ended_at in runs:
        if until is not None and started_at + forgiven_ms < until:
            yield f"job {job.id}: run {delivery} began {(until - started_at) / 1000:g} s before the last one ended"
        until = ended_at


def _attempts(job: Job, forgiven_ms: int) -> Iterator[str]:
    if job.attempt > job.max_attempts:
        yield f"job {job.id}: attempt {job.attempt} of {job.max_attempts}"
    if len(job.history) < MAX_HISTORY:
        charged = sum(line.outcome in CHARGED for line in job.history)
        if job.attempt > charged:
            yield f"job {job.id}: attempt {job.attempt}, but {charged} runs failed"
    if job.state is State.DLQ and job.last_error is None:
        yield f"job {job.id} is in the DLQ without an error"


def _completed(job: Job, forgiven_ms: int) -> Iterator[str]:
    if job.state is State.COMPLETED and (not job.history or job.history[-1].outcome is not Outcome.COMPLETED):
        yield f"job {job.id} is completed, and no run of it completed it"


#: Every check, judged or not. A new one is a row here.
CHECKS: tuple[Check, ...] = (
    Check("loss", "what was acknowledged is there, but for what the mode's row lets a crash lose", _beyond_the_row),
    Check("conservation", "nothing is there twice, or was never pushed", _conservation),
    Check("counters", "the counters equal a recount", _counters),
    Check("deliveries", "deliveries are the finished runs and the one under way", judge_one=_deliveries),
    Check("overlap", "no two runs of a job overlap", judge_one=_overlap),
    Check("attempts", "no job has more attempts than max_attempts", judge_one=_attempts),
    Check("completed", "a completed job was completed by a run", judge_one=_completed),
    Check("power cut", "what survives a power cut is a prefix of what was acknowledged"),
    Check("fencing", "a stale delivery changes nothing"),
    Check("back-off", "no retry before its back-off is over"),
)
