"""Whether the lab's light tells the truth: each check is seen to break by evidence that was spoilt by hand."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from rqlab.durability import Opening
from rqlab.job import Counts, Delivery, Job, Outcome, State
from rqlab.widgets.ledger import Ledger
from rqlab.widgets.safety import CHECKS, Evidence, Judge, Verdict

LAB = "lab-1"
JOB = "01890a5d-ac96-774b-bcce-b302099a8057"
OTHER = "01890a5d-ac96-774b-bcce-b302099a8058"
W1, W2 = "host:11:MainThread", "host:12:MainThread"


def record(job_id: str = JOB, number: int = 1, **changes: Any) -> Job:
    """A job that w1 completed."""
    facts: dict[str, Any] = {
        "state": State.COMPLETED, "deliveries": 1, "created_at": 1_000, "finished_at": 9_000,
        "history": (line(1, Outcome.COMPLETED),),
    }  # fmt: skip
    metadata = msgspec.Raw(msgspec.json.encode({"lab": LAB, "number": number}))
    job = Job(id=job_id, queue="lab", name="work", encoded_metadata=metadata)
    return msgspec.structs.replace(job, **(facts | changes))


def line(delivery: int, outcome: Outcome, started: int = 2_000, ended: int = 9_000, worker: str = W1) -> Delivery:
    return Delivery(delivery=delivery, worker=worker, started_at=started, ended_at=ended, outcome=outcome, error=None)


def a_lab(mode: str = "durable", numbers: tuple[int, ...] = (1,)) -> Ledger:
    """A producer (life 1) that pushed JOB, and a worker (life 2) that completed it."""
    ledger = Ledger()
    ledger.asked.update(numbers)
    ledger.begin("producer", 10, mode, mode == "memory")
    ledger.begin("w1", 11, mode, mode == "memory")
    ledger.acknowledge(JOB, 1, 1, 1_000)
    ledger.complete(JOB, 1, W1, 2)
    return ledger


def judged(
    ledger: Ledger, *records: Job, mode: str = "durable", counts: Counts | None = None, judge: Judge | None = None
) -> Verdict:
    if counts is None:
        states = [str(job.state) for job in records]
        counts = Counts(**{str(state): states.count(state) for state in State})
    evidence = Evidence(records, counts, ledger.books(), mode, Opening("jobs"), LAB, forgiven_ms=1_000)
    return (judge or Judge()).judge(evidence)


def broken(verdict: Verdict) -> list[str]:
    return [finding.id for finding in verdict.findings if finding.holds is False]


def test_what_is_sound_is_called_sound() -> None:
    verdict = judged(a_lab(), record())

    assert (verdict.safe, broken(verdict), verdict.loss.jobs) == (True, [], ())


def test_what_cannot_be_judged_is_not_claimed() -> None:
    unjudged = [finding.id for finding in judged(a_lab(), record()).findings if finding.holds is None]

    assert unjudged == ["power cut", "fencing", "back-off"]


SPOILT: dict[str, tuple[str, Callable[[], Job]]] = {
    "a delivery nobody finished": ("deliveries", lambda: record(deliveries=2)),
    "deliveries that do not rise": (
        "deliveries",
        lambda: record(deliveries=2, history=(line(2, Outcome.FAILED), line(2, Outcome.COMPLETED, 9_000, 9_500))),
    ),
    "two runs at once": (
        "overlap",
        lambda: record(deliveries=2, history=(line(1, Outcome.STALLED), line(2, Outcome.COMPLETED, 3_000, 9_000))),
    ),
    "a run beside a live one": (
        "overlap",
        lambda: record(state=State.ACTIVE, deliveries=2, started_at=3_000, history=(line(1, Outcome.STALLED),)),
    ),
    "more attempts than it may have": ("attempts", lambda: record(attempt=4, max_attempts=3)),
    "an attempt that no run used": ("attempts", lambda: record(attempt=1)),
    "dead-lettered for no reason": ("attempts", lambda: record(state=State.DLQ, last_error=None)),
    "completed by nobody": ("completed", lambda: record(history=(line(1, Outcome.FAILED),))),
    "never asked for": ("conservation", lambda: record(number=7)),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_record_is_noticed(name: str) -> None:
    check, make = SPOILT[name]

    assert check in broken(judged(a_lab(), make()))


def test_a_job_that_is_there_twice_is_noticed() -> None:
    assert broken(judged(a_lab(), record(), record(OTHER))) == ["conservation"]
    assert "conservation" in broken(judged(a_lab(), record(), record()))


def test_somebody_elses_job_is_no_offence() -> None:
    stranger = record(OTHER, encoded_metadata=msgspec.Raw(b"null"))

    assert judged(a_lab(), record(), stranger).safe


def test_a_counter_that_is_wrong_is_noticed() -> None:
    assert broken(judged(a_lab(), record(), counts=Counts(waiting=1))) == ["counters"]


def test_every_check_that_is_judged_is_seen_to_break() -> None:
    seen = {check for check, _ in SPOILT.values()} | {"loss", "counters"}

    assert seen == {check.id for check in CHECKS if check.judge or check.judge_one}


def test_an_overlap_that_a_freeze_explains_is_forgiven() -> None:
    late = record(deliveries=2, history=(line(1, Outcome.STALLED), line(2, Outcome.COMPLETED, 8_500, 9_500)))

    assert "overlap" not in broken(judged(a_lab(), late))


# Loss: what a crash may cost is the mode's row, and a clean end may cost nothing.

LOSSES: list[tuple[str, str, bool]] = [
    ("durable", "", False), ("durable", "crashed", False), ("durable", "stopped", False),
    ("buffered", "crashed", True), ("buffered", "stopped", False),
    ("hybrid", "crashed", True), ("hybrid", "stopped", False),
    ("memory", "crashed", True), ("memory", "stopped", True),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "end", "may"), LOSSES)
def test_a_lost_job_is_held_against_the_modes_row(mode: str, end: str, may: bool) -> None:
    ledger = a_lab(mode)
    if end:
        ledger.end(1, end)

    verdict = judged(ledger, mode=mode)

    assert verdict.loss.jobs == (JOB,)
    assert broken(verdict) == ([] if may else ["loss"])


@pytest.mark.parametrize("mode", ["buffered", "hybrid"])
def test_what_is_not_on_the_disk_yet_is_at_risk_and_not_lost(mode: str) -> None:
    loss = judged(a_lab(mode), mode=mode).loss

    assert (loss.at_risk, loss.jobs) == (1, ())


def test_more_than_the_row_allows_is_a_broken_promise() -> None:
    ledger = a_lab("buffered", tuple(range(1, 102)))
    for number in range(2, 102):
        ledger.acknowledge(f"job-{number}", number, 1, 1_000)
    ledger.end(1, "crashed")

    assert broken(judged(ledger, mode="buffered")) == ["loss"]
    assert broken(judged(ledger, record(), mode="buffered")) == []  # 100 writes: what its row says


def test_a_completion_that_is_undone_counts_as_a_lost_write() -> None:
    again = record(state=State.WAITING, deliveries=0, history=())

    durable, buffered = a_lab(), a_lab("buffered")
    buffered.end(2, "crashed")

    assert broken(judged(durable, again)) == ["loss"]
    assert (broken(judged(buffered, again, mode="buffered")), judged(buffered, again, mode="buffered").loss.undone) == (
        [],
        1,
    )


def test_jobs_in_a_directory_are_not_lost_while_the_lab_is_in_memory() -> None:
    ledger = a_lab()
    ledger.end(1, "stopped")

    assert judged(ledger, mode="memory").loss.jobs == ()


def test_a_record_that_has_not_changed_keeps_its_verdict() -> None:
    judge, spoilt = Judge(), record(attempt=4)

    first = judged(a_lab(), spoilt, judge=judge)
    second = judged(a_lab(), spoilt, judge=judge)

    assert broken(first) == broken(second) == ["attempts"]
    assert judged(a_lab(), record(), judge=judge).safe
