"""Whether safety holds, as far as it can be judged from the records and from what was acknowledged.

A pure function: evidence in, verdict out. The checks that need more than that (a power cut, the moment between two
steps) are listed too, and not claimed: `rqlab.simulate` judges those.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

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
    """One promise; `judge` gives what speaks against it, None if it cannot be judged here."""

    id: str
    sentence: str
    judge: Callable[[Evidence], Iterator[str]] | None


class Finding(NamedTuple):
    """A check and what came of it."""

    id: str
    sentence: str
    holds: bool | None  #: None: not judged
    says: tuple[str, ...] = ()


class Loss(NamedTuple):
    """What crashes have cost, beside what they may cost."""

    jobs: tuple[str, ...]  #: ids that were acknowledged and are gone
    undone: int  #: completions that were acknowledged and are not in the records
    at_risk: int  #: acknowledged jobs that a crash would lose now
    allowed: float  #: writes that the crashes so far may have lost, by the modes' rows
    crashes: int  #: of processes that owned writes
    broken: tuple[str, ...]  #: what was lost beyond the row

    @property
    def writes(self) -> int:
        return len(self.jobs) + self.undone


class Verdict(NamedTuple):
    """All findings, and whether none speaks against safety."""

    safe: bool | None
    findings: tuple[Finding, ...]
    loss: Loss


def judge(evidence: Evidence) -> Verdict:
    """Judge every check that can be judged."""
    findings = []
    for check in CHECKS:
        if check.judge is None:
            findings.append(Finding(check.id, check.sentence, None))
            continue
        found = list(check.judge(evidence))
        more = (f"and {len(found) - MOST_SAID} more",) if len(found) > MOST_SAID else ()
        findings.append(Finding(check.id, check.sentence, not found, (*found[:MOST_SAID], *more)))
    safe = all(finding.holds is not False for finding in findings)
    return Verdict(safe, tuple(findings), loss(evidence))


def loss(evidence: Evidence) -> Loss:
    """What was acknowledged and is gone, life by life of the processes that acknowledged it."""
    books, in_memory = evidence.books, evidence.mode == "memory"
    there = {job.id: job for job in evidence.records}
    missing: Counter[int] = Counter()
    lost: list[str] = []
    for job_id, said in books.acknowledged.items():
        life = books.lives[said.life]
        if in_memory and not life.in_memory:
            continue  # it is in the directory, which nobody reads now
        if job_id not in there or (life.in_memory and not in_memory):
            missing[life.number] += 1
            lost.append(job_id)
    undone = _undone(evidence, there)
    broken, gone, at_risk, allowed, crashes = [], [], 0, 0.0, 0
    for number, life in books.lives.items():
        most = _most_lost(evidence, life.mode)
        crashes += life.ended == "crashed"
        allowed += most if life.ended == "crashed" else 0
        writes = missing[number] + undone[number]
        if not writes:
            continue
        if life.ended == "" and most > 0:
            at_risk += missing[number]
            continue
        gone.append(number)
        permitted = math.inf if life.in_memory else most if life.ended == "crashed" else 0
        if writes > permitted:
            end = {"crashed": "a crash of", "stopped": "a clean end of", "": "no crash of"}[life.ended]
            broken.append(
                f"{writes:,} acknowledged writes are gone after {end} {life.name} (pid {life.pid}): "
                f"{life.mode} may lose {permitted:,.0f}"
            )
    jobs = tuple(job_id for job_id in lost if books.acknowledged[job_id].life in set(gone))
    return Loss(jobs, sum(undone[number] for number in gone), at_risk, allowed, crashes, tuple(broken))


def _undone(evidence: Evidence, there: dict[str, Job]) -> Counter[int]:
    """Completions that somebody was told of and that the records do not have, by life. A lost job is counted once."""
    found: Counter[int] = Counter()
    for said in evidence.books.completed:
        life = evidence.books.lives[said.life]
        job = there.get(said.job)
        if job is None or life.in_memory != (evidence.mode == "memory") or len(job.history) >= MAX_HISTORY:
            continue
        kept = any(
            line.delivery == said.delivery and line.worker == said.worker and line.outcome is Outcome.COMPLETED
            for line in job.history
        )
        found[said.life] += not kept
    return found


def _most_lost(evidence: Evidence, mode: str) -> float:
    return MODES[mode].most_lost(evidence.opening)


def _conservation(evidence: Evidence) -> Iterator[str]:
    ours: dict[int, str] = {}
    seen: set[str] = set()
    for job in evidence.records:
        if job.id in seen:
            yield f"job {job.id} stands in two places"
        seen.add(job.id)
        metadata = job.metadata or {}
        if metadata.get("lab") != evidence.lab:
            continue  # somebody else's: nothing is known of it
        number = metadata.get("number")
        if number not in evidence.books.asked:
            yield f"job {job.id} is there as number {number}, and was never pushed"
        elif number in ours:
            yield f"number {number} was pushed once and is there twice: {ours[number]}, {job.id}"
        else:
            ours[number] = job.id


def _loss(evidence: Evidence) -> Iterator[str]:
    yield from loss(evidence).broken


def _counters(evidence: Evidence) -> Iterator[str]:
    recount = Counter(str(job.state) for job in evidence.records)
    for state in State:
        said, there = getattr(evidence.counts, state), recount[state]
        if said != there:
            yield f"the counter says {said:,} {state}, a recount {there:,}"


def _deliveries(evidence: Evidence) -> Iterator[str]:
    for job in evidence.records:
        if job.deliveries >= MAX_HISTORY:
            continue  # the oldest lines have left
        live = int(job.state is State.ACTIVE)
        if job.deliveries != len(job.history) + live:
            yield f"job {job.id}: {job.deliveries} deliveries, {len(job.history)} finished, {live} under way"
        elif [line.delivery for line in job.history] != list(range(1, len(job.history) + 1)):
            yield f"job {job.id}: its deliveries do not rise one by one"


def _overlap(evidence: Evidence) -> Iterator[str]:
    for job in evidence.records:
        until = None
        runs = [(line.delivery, line.started_at, line.ended_at) for line in job.history]
        if job.state is State.ACTIVE and job.started_at is not None:
            runs.append((job.deliveries, job.started_at, job.started_at))
        for delivery, started_at, ended_at in runs:
            if until is not None and started_at + evidence.forgiven_ms < until:
                yield f"job {job.id}: run {delivery} began {(until - started_at) / 1000:g} s before the last one ended"
            until = ended_at


def _attempts(evidence: Evidence) -> Iterator[str]:
    for job in evidence.records:
        if job.attempt > job.max_attempts:
            yield f"job {job.id}: attempt {job.attempt} of {job.max_attempts}"
        if len(job.history) < MAX_HISTORY:
            charged = sum(line.outcome in CHARGED for line in job.history)
            if job.attempt > charged:
                yield f"job {job.id}: attempt {job.attempt}, but {charged} runs failed"
        if job.state is State.DLQ and job.last_error is None:
            yield f"job {job.id} is in the DLQ without an error"


def _completed(evidence: Evidence) -> Iterator[str]:
    for job in evidence.records:
        if job.state is State.COMPLETED and (not job.history or job.history[-1].outcome is not Outcome.COMPLETED):
            yield f"job {job.id} is completed, and no run of it completed it"


#: Every check, judged or not. A new one is a row here.
CHECKS: tuple[Check, ...] = (
    Check("conservation", "nothing is there twice, or was never pushed", _conservation),
    Check("loss", "what was acknowledged is there, but for what the mode's row lets a crash lose", _loss),
    Check("counters", "the counters equal a recount", _counters),
    Check("deliveries", "deliveries are the finished runs and the one under way", _deliveries),
    Check("overlap", "no two runs of a job overlap", _overlap),
    Check("attempts", "no job has more attempts than max_attempts", _attempts),
    Check("completed", "a completed job was completed by a run", _completed),
    Check("power cut", "what survives a power cut is a prefix", None),
    Check("fencing", "a stale delivery changes nothing", None),
    Check("back-off", "no retry before its back-off", None),
)
