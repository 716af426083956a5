"""The front door: every public call, in memory and in a directory, by a clock that the test turns."""

import asyncio
import logging
import os
import pickle
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import START, Unequal, Wall
from msgspec.structs import replace

import rqlab
from rqlab import Change, Event, Job, State, queues
from rqlab.errors import (
    DuplicateKey,
    InvalidState,
    JobNotFound,
    LeaseLost,
    RQLabError,
    StoreError,
)


def pull_one(rq: rqlab.Queues, queue: str = "q") -> Job:
    (job,) = rq.pull(queue)
    return job


def recount(rq: rqlab.Queues, queue: str) -> rqlab.Counts:
    found = Counter(str(job.state) for job in rq.jobs(queue, limit=100_000))
    return rqlab.Counts(**{state: found[state] for state in State})


# Pushing.


def test_a_push_keeps_everything_it_was_told(rq: rqlab.Queues, wall: Wall) -> None:
    job_id = rq.push(
        "emails", "send", {"to": "ada"}, priority=7, delay=5, max_attempts=4, backoff="linear", backoff_delay=2.5,
        max_backoff=60, jitter=0.25, timeout=30, ttl=90, unique_key="ada", tags=["a", "b"], metadata={"by": "test"},
        remove_on_complete=True,
    )  # fmt: skip

    job = rq.get(job_id)
    assert job == Job(
        id=job_id, queue="emails", name="send", encoded_data=job.encoded_data, state=State.DELAYED, priority=7,
        max_attempts=4, backoff=rqlab.Backoff.LINEAR, backoff_delay=2.5, max_backoff=60, jitter=0.25, timeout=30,
        ttl=90, expires_at=START + 95_000, delay_until=START + 5_000, unique_key="ada", tags=("a", "b"),
        encoded_metadata=job.encoded_metadata, remove_on_complete=True, created_at=START, updated_at=START,
    )  # fmt: skip
    assert (job.data, job.metadata) == ({"to": "ada"}, {"by": "test"})


def test_the_defaults_of_a_push(rq: rqlab.Queues, wall: Wall) -> None:
    job = rq.get(rq.push("emails", "send"))

    assert (job.data, job.metadata, job.result, job.tags, job.priority) == (None, None, None, (), 0)
    assert (job.max_attempts, job.backoff, job.backoff_delay, job.max_backoff, job.jitter) == (
        3, "exponential", 1, 86_400, 0,
    )  # fmt: skip
    assert (job.timeout, job.ttl, job.delay_until, job.unique_key, job.remove_on_complete) == (
        None, None, None, None, False,
    )  # fmt: skip


@pytest.mark.parametrize("size", [1, 10_000])
def test_changing_the_data_later_changes_nothing(rq: rqlab.Queues, size: int) -> None:
    data, metadata = {"list": ["x" * size]}, {"a": [1]}
    job_id = rq.push("q", "n", data, metadata=metadata)
    data["list"].append("more")
    metadata["a"].append(2)
    job = rq.get(job_id)
    job.data["list"].append("more")

    for record in (job, rq.get(job_id), pull_one(rq)):
        assert record.data == {"list": ["x" * size]}
        assert record.metadata == {"a": [1]}


def test_ids_are_sorted_by_push_order(rq: rqlab.Queues) -> None:
    one_by_one = [rq.push("q", "n") for _ in range(20)]
    together = rq.push_many("q", [{"name": "n"}] * 20)

    assert one_by_one + together == sorted({*one_by_one, *together})


def test_push_many_takes_each_item_as_push_does(rq: rqlab.Queues) -> None:
    ids = rq.push_many("q", [{"name": "a", "data": 1, "priority": 1}, {"name": "b", "delay": 5, "tags": ["t"]}])

    first, second = map(rq.get, ids)
    assert (first.name, first.data, first.priority, first.state) == ("a", 1, 1, "waiting")
    assert (second.name, second.state, second.tags) == ("b", "delayed", ("t",))


def test_push_many_of_nothing_is_nothing(rq: rqlab.Queues) -> None:
    assert rq.push_many("q", []) == []
    assert rq.push_many("q", iter(())) == []
    assert rq.queues() == []


def test_push_many_stores_all_or_nothing(rq: rqlab.Queues) -> None:
    rq.push("q", "n", unique_key="k")

    with pytest.raises(DuplicateKey):
        rq.push_many("q", [{"name": "a"}, {"name": "b", "unique_key": "k"}, {"name": "c"}])
    assert rq.counts() == rqlab.Counts(waiting=1)
    assert rq.metrics()["queues"]["q"]["pushed"] == 1


def test_a_duplicate_names_its_holder(rq: rqlab.Queues) -> None:
    holder = rq.push("q", "n", unique_key="k")

    with pytest.raises(DuplicateKey, match=holder) as refused:
        rq.push("q", "n", unique_key="k")
    assert (refused.value.job_id, refused.value.queue, refused.value.unique_key) == (holder, "q", "k")
    assert "on_conflict" in str(refused.value)
    assert rq.push("q", "n", unique_key="k", on_conflict="return") == holder
    assert rq.push_many("q", [{"name": "n", "unique_key": k, "on_conflict": "return"} for k in ("k", "l", "l")])[0] == (
        holder
    )
    assert rq.counts().waiting == 2


def test_a_key_that_stands_twice_in_one_call_names_no_job_that_was_not_stored(rq: rqlab.Queues) -> None:
    with pytest.raises(DuplicateKey, match=r"stands twice in this call.*stored none") as refused:
        rq.push_many("q", [{"name": "a", "unique_key": "k"}, {"name": "b"}, {"name": "c", "unique_key": "k"}])

    assert (refused.value.job_id, refused.value.queue, refused.value.unique_key) == (None, "q", "k")
    assert rq.counts() == rqlab.Counts()
    assert rq.queues() == []


def test_a_key_that_stands_twice_in_one_call_may_be_the_first_ones(rq: rqlab.Queues) -> None:
    second = {"name": "c", "unique_key": "k", "on_conflict": "return"}
    first_id, other_id, second_id = rq.push_many("q", [{"name": "a", "unique_key": "k"}, {"name": "b"}, second])

    assert second_id == first_id != other_id
    assert [job.id for job in rq.jobs("q")] == [first_id, other_id]


def test_a_key_that_is_held_names_its_holder_even_if_the_call_was_given_it_before(rq: rqlab.Queues) -> None:
    holder = rq.push("q", "n", unique_key="k")

    with pytest.raises(DuplicateKey) as refused:
        rq.push_many("q", [{"name": "a", "unique_key": "k", "on_conflict": "return"}, {"name": "b", "unique_key": "k"}])
    assert refused.value.job_id == holder


def test_what_push_many_stores_is_what_as_many_pushes_store(rq: rqlab.Queues, wall: Wall) -> None:
    items: list[dict[str, Any]] = [
        {"name": "a"}, {"name": "a", "data": 1}, {"name": "a", "data": None}, {"data": {"x": [2]}, "name": "a"},
        {"name": "a", "priority": 3}, {"name": "b", "delay": 5}, {"name": "a", "ttl": 60, "data": "y"}, {"name": "a"},
        {"name": "b", "unique_key": "k", "tags": ["t"]},
    ]  # fmt: skip
    together = [rq.get(job_id) for job_id in rq.push_many("many", items)]
    singly = [rq.get(rq.push("one", **item)) for item in items]

    assert [replace(job, id="", queue="") for job in together] == [replace(job, id="", queue="") for job in singly]
    assert rq.counts("many") == rq.counts("one") == recount(rq, "many")
    assert rq.metrics()["queues"]["many"]["pushed"] == len(items)


def test_data_is_encoded_as_its_item_is_met(rq: rqlab.Queues) -> None:
    def items() -> Iterator[dict[str, Any]]:
        item = {"name": "n", "data": {"number": 0}}
        for number in range(3):
            item["data"] = {"number": number}
            yield item
            item["data"]["number"] = 99  # type: ignore[index]

    rq.push_many("q", items())

    assert [job.data["number"] for job in rq.jobs("q")] == [0, 1, 2]


def test_options_that_are_given_as_they_are_by_default_leave_no_trace(rq: rqlab.Queues, wall: Wall) -> None:
    given = {
        "priority": int("0"), "max_attempts": int("3"), "backoff": rqlab.Backoff.EXPONENTIAL,
        "backoff_delay": float("1"), "max_backoff": 86_400.0, "jitter": float("0"), "tags": [], "delay": 0,
        "on_conflict": "".join("raise"), "remove_on_complete": False,
    }  # fmt: skip
    plain, same = rq.get(rq.push("q", "n")), rq.get(rq.push("q", "n", None, **given))  # type: ignore[arg-type]

    assert msgspec.json.encode(replace(same, id="")) == msgspec.json.encode(replace(plain, id=""))


def test_more_kinds_of_job_than_are_remembered_are_pushed_all_the_same() -> None:
    with rqlab.memory() as rq:
        for number in range(queues.MAX_PLAIN_JOBS + 10):
            rq.push(f"q{number % 7}", f"n{number}", number)

        assert len(queues._plain_jobs) <= queues.MAX_PLAIN_JOBS
        assert all(job.name == f"n{job.data}" and job.queue == f"q{job.data % 7}" for job in rq.jobs(limit=10_000))
        assert rq.counts().waiting == queues.MAX_PLAIN_JOBS + 10


def test_fifty_threads_that_push_one_key_store_one_job(rq: rqlab.Queues) -> None:
    start, outcomes = threading.Barrier(50), []

    def push() -> None:
        start.wait()
        try:
            outcomes.append(rq.push("q", "n", unique_key="k"))
        except DuplicateKey as duplicate:
            outcomes.append(duplicate.job_id)

    threads = [threading.Thread(target=push) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(outcomes) == 50
    assert len(set(outcomes)) == 1
    assert rq.counts() == rqlab.Counts(waiting=1)


# Pulling and ending.


def test_a_pull_leases_for_the_stall_timeout(mode: str, tmp_path: Path, wall: Wall) -> None:
    with rqlab.memory(stall_timeout=7) if mode == "memory" else rqlab.open(tmp_path / "j", stall_timeout=7) as rq:
        rq.push("q", "n")
        (job,) = rq.pull("q", worker="me")

        assert (job.state, job.deliveries, job.worker, job.lease_until) == ("active", 1, "me", START + 7_000)
        wall.advance(5)
        assert rq.heartbeat(job).lease_until == START + 12_000


def test_a_pull_names_its_host_process_and_thread(rq: rqlab.Queues) -> None:
    rq.push("q", "n")

    host, pid, thread = str(pull_one(rq).worker).rsplit(":", 2)
    assert host
    assert pid.isdigit()
    assert thread == threading.current_thread().name


def test_nothing_is_pulled_from_a_queue_that_never_was(rq: rqlab.Queues) -> None:
    assert rq.pull("nowhere", 10) == []
    assert rq.queues() == []


def test_a_pull_that_may_wait_no_longer_gives_nothing(rq: rqlab.Queues) -> None:
    assert rq.pull("q", wait=0) == []
    assert rq.pull("q", wait=0.01) == []


def test_a_waiting_pull_gets_a_job_that_is_pushed_meanwhile(rq: rqlab.Queues) -> None:
    pulled: list[Job] = []
    started = threading.Event()

    def pull() -> None:
        started.set()
        pulled.extend(rq.pull("q", wait=30))

    thread = threading.Thread(target=pull)
    thread.start()
    started.wait()
    job_id = rq.push("q", "n")
    thread.join(30)

    assert [job.id for job in pulled] == [job_id]


def test_an_ack_completes_with_its_result(rq: rqlab.Queues, wall: Wall) -> None:
    rq.push("q", "n")
    job = pull_one(rq)
    wall.advance(2)

    done = rq.ack(job, {"sent": 3})

    assert done == rq.get(job.id)
    assert (done.state, done.result, done.finished_at, done.lease_until) == (
        "completed", {"sent": 3}, START + 2_000, None,
    )  # fmt: skip


@pytest.mark.parametrize("size", [1, 10_000])
def test_a_job_to_be_removed_leaves_no_entry(rq: rqlab.Queues, size: int) -> None:
    job_id = rq.push("q", "n", "x" * size, remove_on_complete=True, unique_key="k")

    done = rq.ack(pull_one(rq), "fine")

    assert (done.state, done.result, done.data) == ("completed", "fine", "x" * size)
    with pytest.raises(JobNotFound):
        rq.get(job_id)
    assert rq.counts() == rqlab.Counts()
    assert rq.metrics()["queues"]["q"]["completed"] == 1
    rq.push("q", "n", unique_key="k")


def test_a_job_to_be_removed_stays_if_it_fails(rq: rqlab.Queues) -> None:
    rq.push("q", "n", max_attempts=1, remove_on_complete=True)

    assert rq.fail(pull_one(rq), "boom").state == "dlq"
    assert rq.counts() == rqlab.Counts(dlq=1)


def test_ack_many_gives_each_job_its_own_outcome(rq: rqlab.Queues) -> None:
    rq.push_many("q", [{"name": "n"}] * 4)
    jobs = rq.pull("q", 4)
    rq.release(jobs[1])
    rq.cancel(jobs[2].id)

    outcomes = rq.ack_many([(job, index) for index, job in enumerate([*jobs, jobs[0]])])

    assert [type(outcome) for outcome in outcomes] == [Job, LeaseLost, LeaseLost, Job, LeaseLost]
    assert [outcome.result for outcome in outcomes if isinstance(outcome, Job)] == [0, 3]
    assert rq.counts() == rqlab.Counts(waiting=1, cancelled=1, completed=2)
    assert rq.ack_many([]) == []


def test_a_failed_job_comes_back_as_it_now_is(rq: rqlab.Queues, wall: Wall) -> None:
    rq.push("q", "n", max_attempts=2)

    delayed = rq.fail(pull_one(rq), "first")
    assert (delayed.state, delayed.attempt, delayed.delay_until) == ("delayed", 1, START + 1_000)
    assert rq.pull("q") == []
    wall.advance(1)
    dead = rq.fail(pull_one(rq), "second")
    assert (dead.state, dead.attempt, dead.last_error, dead.finished_at) == ("dlq", 2, "second", START + 1_000)
    assert [line.error for line in rq.get(dead.id).history] == ["first", "second"]


def test_a_failure_without_backoff_waits_again_at_once(rq: rqlab.Queues) -> None:
    rq.push("q", "n", backoff_delay=0)

    assert rq.fail(pull_one(rq), "boom").state == "waiting"


def test_fail_takes_exceptions_and_keeps_what_and_where(rq: rqlab.Queues) -> None:
    rq.push("q", "n")
    try:
        raise KeyError("customer")
    except KeyError as error:
        failed = rq.fail(pull_one(rq), error)

    assert str(failed.last_error).startswith("KeyError: 'customer'")
    assert "test_queues.py" in str(failed.last_error)


@pytest.mark.parametrize(
    ("error", "state", "attempt", "delay"),
    [
        (rqlab.RetryAfter(90), "delayed", 1, 90_000),
        (rqlab.RetryAfter(0), "waiting", 1, None),
        (rqlab.RetryAfter(timedelta(minutes=2)), "delayed", 1, 120_000),
        (rqlab.Snooze(timedelta(minutes=2)), "delayed", 0, 120_000),
        (rqlab.DeadLetter("no such customer"), "dlq", 1, None),
        (rqlab.Snooze(60), "delayed", 0, 60_000),
        (rqlab.Snooze(0), "waiting", 0, None),
    ],
)
def test_fail_takes_the_three_outcomes(
    rq: rqlab.Queues, wall: Wall, error: Exception, state: str, attempt: int, delay: int | None
) -> None:
    rq.push("q", "n")

    job = rq.fail(pull_one(rq), error)

    assert (job.state, job.attempt) == (state, attempt)
    assert job.delay_until == (None if delay is None else START + delay)


def test_an_outcome_says_its_duration_in_seconds() -> None:
    assert str(rqlab.RetryAfter(timedelta(minutes=2))) == "retry after 120 s"
    assert str(rqlab.Snooze(timedelta(milliseconds=1500))) == "snoozed for 1.5 s"
    assert str(rqlab.RetryAfter(90)) == "retry after 90 s"


@pytest.mark.parametrize(
    "error",
    [
        rqlab.DuplicateKey("q", "key", "some-id"),
        rqlab.JobNotFound("some-id", "cancel"),
        rqlab.ScheduleNotFound("s", "pause", ["t"]),
        rqlab.LeaseLost("lost"),
        rqlab.ValidationError("priority: expected"),
        rqlab.Reentered("these"),
        rqlab.StoreFull("full"),
        rqlab.RetryAfter(90, "rate limit"),
        rqlab.Snooze(timedelta(minutes=2)),
        rqlab.DeadLetter("no such customer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_out_of_a_process_pool_as_it_went_in(error: Exception) -> None:
    """By way of pickle; where that fails, the pool ends as broken, and nobody learns why."""
    error.add_note("seen by a child")

    again = pickle.loads(pickle.dumps(error))

    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_job_comes_out_of_a_process_pool_as_it_went_in(rq: rqlab.Queues) -> None:
    rq.push("q", "n", {"to": "ada"}, tags=["t"], metadata={"a": 1})
    job = rq.ack(pull_one(rq), [1, 2])

    again = pickle.loads(pickle.dumps(job))

    assert again == job
    assert (again.data, again.result, again.metadata, again.state) == ({"to": "ada"}, [1, 2], {"a": 1}, State.COMPLETED)


def test_a_release_gives_the_job_back_uncharged(rq: rqlab.Queues) -> None:
    job_id = rq.push("q", "n")

    assert rq.release(pull_one(rq)).state == "waiting"
    again = pull_one(rq)
    assert (again.id, again.attempt, again.deliveries) == (job_id, 0, 2)


def test_progress_is_stored_with_its_words(rq: rqlab.Queues) -> None:
    rq.push("q", "n")
    job = pull_one(rq)
    rq.progress(job, 10, "one of ten")
    rq.progress(job, 20)

    assert (rq.get(job.id).progress, rq.get(job.id).logs) == (20, ("one of ten",))
    assert rq.get(job.id).lease_until == job.lease_until


CALLS: dict[str, Callable[[rqlab.Queues, Job], Any]] = {
    "ack": lambda rq, job: rq.ack(job, 1),
    "fail": lambda rq, job: rq.fail(job, "late"),
    "snooze": lambda rq, job: rq.fail(job, rqlab.Snooze(5)),
    "heartbeat": lambda rq, job: rq.heartbeat(job),
    "progress": lambda rq, job: rq.progress(job, 50, "late"),
    "release": lambda rq, job: rq.release(job),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_run_that_froze_lost_its_job_and_woke_up_does_no_harm(rq: rqlab.Queues, wall: Wall, call: str) -> None:
    rq.push("q", "n", backoff_delay=0)
    frozen = pull_one(rq)
    wall.advance(31)
    rq.tick()
    other = pull_one(rq)
    before = rq.metrics()

    with pytest.raises(LeaseLost, match=f"job {frozen.id} is not held.*delivery 1.*delivery 2"):
        CALLS[call](rq, frozen)
    assert rq.get(frozen.id) == other
    assert rq.metrics() == before
    assert rq.ack(other).state == "completed"


@pytest.mark.parametrize("call", CALLS)
def test_a_job_that_was_never_pulled_is_held_by_no_run(rq: rqlab.Queues, call: str) -> None:
    job = rq.get(rq.push("q", "n"))

    with pytest.raises(LeaseLost):
        CALLS[call](rq, job)
    assert rq.get(job.id) == job


def test_a_job_of_other_queues_is_not_held_here(rq: rqlab.Queues) -> None:
    with rqlab.memory() as other:
        other.push("q", "n")
        with pytest.raises(LeaseLost, match="no such job"):
            rq.ack(pull_one(other))


# Managing.


def test_cancel_and_requeue(rq: rqlab.Queues, wall: Wall) -> None:
    job_id = rq.push("q", "n", {"a": 1}, delay=60)

    cancelled = rq.cancel(job_id)
    assert (cancelled.state, cancelled.data, cancelled.finished_at) == ("cancelled", {"a": 1}, START)
    with pytest.raises(InvalidState, match=f"cannot cancel job {job_id}: expected waiting or delayed or active, got"):
        rq.cancel(job_id)
    waiting = rq.requeue(job_id)
    assert (waiting.state, waiting.attempt, waiting.finished_at) == ("waiting", 0, None)
    with pytest.raises(InvalidState, match=f"cannot requeue job {job_id}: expected dlq or cancelled, got waiting"):
        rq.requeue(job_id)


def test_cancelling_a_run_takes_its_job_away_at_once(rq: rqlab.Queues) -> None:
    rq.push("q", "n")
    held = pull_one(rq)
    rq.cancel(held.id)

    with pytest.raises(LeaseLost, match="cancelled"):
        rq.heartbeat(held)


def test_purge_removes_one_state_of_one_queue(rq: rqlab.Queues) -> None:
    for queue in ("q", "other"):
        rq.push_many(queue, [{"name": "n", "max_attempts": 1, "data": "x" * 5_000}] * 3)
        done, dead, _ = rq.pull(queue, 3)
        rq.ack(done)
        rq.fail(dead, "boom")

    assert rq.purge("q") == 1
    assert rq.purge("q") == 0
    assert rq.purge("q", "completed") == 1
    assert rq.purge("q", "cancelled") == 0
    assert rq.counts("q") == rqlab.Counts(active=1)
    assert rq.counts("other") == rqlab.Counts(active=1, completed=1, dlq=1)


@pytest.mark.parametrize(
    ("state", "days", "is_gone"),
    [("completed", 6.9, False), ("completed", 7.1, True), ("cancelled", 7.1, True), ("dlq", 89, False),
     ("dlq", 91, True)],
)  # fmt: skip
def test_retention_removes_finished_jobs(rq: rqlab.Queues, wall: Wall, state: str, days: float, is_gone: bool) -> None:
    job_id = rq.push("q", "n", unique_key="k", max_attempts=1)
    job = pull_one(rq)
    {"completed": rq.ack, "cancelled": lambda job: rq.cancel(job.id), "dlq": lambda job: rq.fail(job, "x")}[state](job)  # type: ignore[operator]
    wall.advance(days * 86_400)
    rq.tick()

    assert [job.id for job in rq.jobs()] == ([] if is_gone else [job_id])
    rq.push("q", "n", unique_key="k")


def test_retention_of_none_keeps_for_ever(wall: Wall) -> None:
    rq = rqlab.memory(retention=rqlab.Retention(completed=None, cancelled=0, dlq=None))
    rq.push_many("q", [{"name": "n"}] * 2)
    rq.ack(pull_one(rq))
    rq.cancel(pull_one(rq).id)
    wall.advance(50 * 365 * 86_400)
    rq.tick()

    assert rq.counts() == rqlab.Counts(completed=1)


def test_retention_is_stored_and_the_stored_one_holds(tmp_path: Path) -> None:
    asked = rqlab.Retention(completed=60, cancelled=None, dlq=None)
    for given in ({"retention": asked}, {}, {"retention": rqlab.Retention()}, {}):
        with rqlab.open(tmp_path / "jobs", **given) as rq:  # type: ignore[arg-type]
            asked = given.get("retention", asked)
            assert rq._retention() == asked


def test_a_pause_is_stored(tmp_path: Path) -> None:
    with rqlab.open(tmp_path / "jobs") as rq:
        rq.pause("q")
        rq.pause("q")
        rq.push("q", "n")
    with rqlab.open(tmp_path / "jobs") as rq:
        assert rq.paused() == ["q"]
        assert rq.pull("q") == []
        assert rq.pull("q", wait=0.01) == []
        assert rq.drain("q", lambda job: None) == {}
        rq.resume("q")
        rq.resume("q")
        assert len(rq.pull("q")) == 1


def test_requeue_all_counts_what_it_requeued(rq: rqlab.Queues) -> None:
    rq.push_many("q", [{"name": "n", "max_attempts": 1, "unique_key": key} for key in ("a", "b", None)])
    for job in rq.pull("q", 3):
        rq.fail(job, "boom")
    rq.push("q", "n", unique_key="a")

    assert rq.requeue_all("q") == 2
    assert rq.counts() == rqlab.Counts(waiting=3, dlq=1)
    assert rq.requeue_all("nowhere") == 0


# Looking.


def all_states(rq: rqlab.Queues, wall: Wall) -> dict[str, list[str]]:
    """Seven jobs in each state of two queues, as they should be listed; every third with a tag."""
    listed: dict[str, list[str]] = {}
    for queue in ("a", "b"):
        items = [{"name": "n", "priority": n % 3, "tags": ["third"] if n % 3 == 0 else []} for n in range(7)]

        def pushed(queue: str = queue, items: Any = items, **fields: Any) -> list[str]:
            return rq.push_many(queue, [{**item, **fields} for item in items])

        done, dead = pushed(), None
        for job in rq.pull(queue, 7):
            wall.advance(1)
            rq.ack(job)
        listed[f"completed {queue}"] = sorted(done, key=lambda id: rq.get(id).finished_at or 0)
        dead = pushed(max_attempts=1)
        for job in rq.pull(queue, 7):
            wall.advance(1)
            rq.fail(job, "boom")
        listed[f"dlq {queue}"] = sorted(dead, key=lambda id: rq.get(id).finished_at or 0)
        listed[f"active {queue}"] = pushed()
        assert len(rq.pull(queue, 7)) == 7
        listed[f"cancelled {queue}"] = [rq.cancel(job_id).id for job_id in pushed()]
        listed[f"delayed {queue}"] = pushed(delay=60)
        waiting = pushed()
        listed[f"waiting {queue}"] = sorted(waiting, key=lambda id: (-rq.get(id).priority, id))
    order = [f"{state} {queue}" for state in State for queue in ("a", "b")]
    return {key: listed[key] for key in order}


def test_jobs_are_listed_by_state_then_queue_each_as_its_line_runs(rq: rqlab.Queues, wall: Wall) -> None:
    listed = all_states(rq, wall)

    assert [job.id for job in rq.jobs()] == [job_id for ids in listed.values() for job_id in ids]
    assert [job.id for job in rq.jobs("b", state="waiting")] == listed["waiting b"]
    assert [job.id for job in rq.jobs(state=State.DLQ)] == listed["dlq a"] + listed["dlq b"]
    assert rq.jobs("nowhere") == []
    assert [job.id for job in rq.get_dlq_jobs("a")] == listed["dlq a"][::-1]
    assert [job.id for job in rq.get_dlq_jobs("a", limit=2)] == listed["dlq a"][:-3:-1]
    assert rq.get_dlq_jobs("nowhere") == []


@pytest.mark.parametrize("filters", [{}, {"tag": "third"}, {"queue": "b"}, {"state": "dlq"}, {"state": "waiting", "tag": "third"}])  # fmt: skip # noqa: E501
@pytest.mark.parametrize("limit", [1, 3, 7, 8, 84])
@pytest.mark.parametrize("by_id", [False, True])
def test_page_by_page_each_job_is_visited_once(wall: Wall, filters: dict[str, Any], limit: int, by_id: bool) -> None:
    rq = rqlab.memory()
    all_states(rq, wall)
    whole = [job.id for job in rq.jobs(**filters, limit=1_000)]
    visited: list[str] = []
    after: Any = None
    while page := rq.jobs(**filters, after=after, limit=limit):
        assert len(page) <= limit
        visited += [job.id for job in page]
        after = page[-1].id if by_id else page[-1]

    assert visited == whole
    assert len(whole) == (84 if not filters else len(set(whole)))


def test_page_by_page_in_a_directory(tmp_path: Path, wall: Wall) -> None:
    with rqlab.open(tmp_path / "jobs") as rq:
        listed = [job_id for ids in all_states(rq, wall).values() for job_id in ids]
        visited: list[str] = []
        while page := rq.jobs(after=visited[-1] if visited else None, limit=5):
            visited += [job.id for job in page]

    assert visited == listed


def test_a_page_goes_on_behind_a_job_that_has_been_removed_since(rq: rqlab.Queues) -> None:
    ids = rq.push_many("q", [{"name": "n"}] * 4)
    for job_id in ids:
        rq.cancel(job_id)
    _, second = rq.jobs("q", limit=2)
    rq.purge("q", "cancelled")

    assert rq.jobs("q", after=second) == []
    with pytest.raises(JobNotFound):
        rq.jobs("q", after=second.id)


def test_a_tag_far_down_the_line_is_found(rq: rqlab.Queues) -> None:
    rq.push_many("q", [{"name": "n"}] * 1_200)
    job_id = rq.push("q", "n", tags=["rare"])

    assert [job.id for job in rq.jobs(tag="rare")] == [job_id]
    assert rq.jobs(tag="rar") == []


def test_large_data_is_listed_too(rq: rqlab.Queues) -> None:
    rq.push("q", "n", "x" * 5_000, max_attempts=1)
    rq.fail(pull_one(rq), "boom")

    assert rq.jobs()[0].data == rq.get_dlq_jobs("q")[0].data == "x" * 5_000


def test_counts_and_queues(rq: rqlab.Queues) -> None:
    assert rq.counts() == rq.counts("q") == rqlab.Counts()
    assert rq.queues() == []
    rq.push_many("b", [{"name": "n"}] * 3)
    rq.push("a", "n", delay=60)
    rq.pull("b")

    assert rq.queues() == ["a", "b"]
    assert rq.counts("b") == rqlab.Counts(waiting=2, active=1)
    assert rq.counts() == rqlab.Counts(waiting=2, active=1, delayed=1)
    assert (rq.counts().unfinished, rq.counts().total) == (4, 4)


# Frames.

INTEGERS = ["priority", "attempt", "max_attempts", "deliveries"]
SECONDS = ["progress", "backoff_delay", "max_backoff", "jitter", "timeout", "ttl"]
MOMENTS = [
    "delay_until", "lease_until", "expires_at", "created_at", "updated_at", "started_at", "finished_at",
]  # fmt: skip


@pytest.mark.parametrize("filled", [False, True])
def test_a_frame_has_one_row_a_job_and_the_same_types_whatever_is_in_it(
    rq: rqlab.Queues, wall: Wall, filled: bool
) -> None:
    if filled:
        all_states(rq, wall)
    frame = rq.frame()

    assert len(frame) == (84 if filled else 0)
    assert {str(frame[column].dtype) for column in INTEGERS} == {"int64"}
    assert {str(frame[column].dtype) for column in SECONDS} == {"float64"}
    assert {str(frame[column].dtype) for column in MOMENTS} == {"datetime64[ms, UTC]"}
    assert str(frame["remove_on_complete"].dtype) == "bool"
    assert list(frame["state"].cat.categories) == [str(state) for state in State]
    assert list(frame["backoff"].cat.categories) == ["fixed", "linear", "exponential"]


def test_a_frame_says_what_the_jobs_say(rq: rqlab.Queues, wall: Wall) -> None:
    wall.now = START + 1
    job_id = rq.push("q", "n", {"a": [1]}, delay=1.5, timeout=30, tags=["t"], metadata={"m": 1}, priority=4)
    rq.push("q", "n")
    row = rq.frame(state="delayed").iloc[0]

    assert (row["id"], row["queue"], row["state"], row["priority"], row["timeout"]) == (job_id, "q", "delayed", 4, 30.0)
    assert (row["data"], row["tags"], row["metadata"]) == ({"a": [1]}, ("t",), {"m": 1})
    assert row["created_at"].to_pydatetime() == datetime(2026, 1, 1, 0, 0, 0, 1_000, tzinfo=UTC)
    assert (row["delay_until"] - row["created_at"]).total_seconds() == 1.5
    assert row[["lease_until", "started_at", "ttl"]].isna().all()
    assert len(rq.frame("q", limit=1)) == len(rq.frame(tag="t")) == len(rq.frame(after=job_id)) + 1 == 1


# Metrics.


def test_the_metrics_are_what_happened(rq: rqlab.Queues, wall: Wall) -> None:
    rq.push_many("q", [{"name": "n", "max_attempts": 2, "backoff_delay": 0, "timeout": 900}] * 5)
    wall.advance(2)
    one, two, three, *_ = rq.pull("q", 4)
    wall.advance(0.03)
    rq.ack(one)
    rq.fail(two, "boom")
    rq.release(three)
    rq.push("other", "n", delay=60)

    read = rq.metrics()
    q = read["queues"]["q"]
    assert read["at"] == wall.now
    assert q["jobs"] == {"waiting": 3, "delayed": 0, "active": 1, "completed": 1, "dlq": 0, "cancelled": 0}
    assert q["oldest_waiting_seconds"] == 2.03
    assert [q[total] for total in ("pushed", "completed", "failed", "retried", "released")] == [5, 1, 1, 1, 1]
    assert (q["wait"]["count"], q["wait"]["sum_seconds"]) == (4, 8.0)
    assert (q["run"]["count"], q["run"]["sum_seconds"]) == (3, 0.09)
    assert q["run"]["buckets"]["+Inf"] == q["run"]["buckets"]["0.05"] == 3
    assert q["run"]["buckets"]["0.01"] == 0
    assert read["queues"]["other"]["oldest_waiting_seconds"] is None


def test_the_metrics_of_a_directory_outlive_its_process(tmp_path: Path, wall: Wall) -> None:
    with rqlab.open(tmp_path / "jobs") as rq:
        rq.push("q", "n")
        rq.ack(pull_one(rq))
        before = rq.metrics()
    with rqlab.open(tmp_path / "jobs") as rq:
        assert rq.metrics() == before


def test_prometheus_shows_what_the_metrics_say(rq: rqlab.Queues, wall: Wall) -> None:
    client = pytest.importorskip("prometheus_client")
    rq.push_many("q", [{"name": "n"}] * 3)
    wall.advance(2)
    rq.ack(pull_one(rq))
    registry = client.CollectorRegistry()
    registry.register(rq.prometheus())

    shown = client.generate_latest(registry).decode()
    for line in (
        'rqlab_jobs{queue="q",state="waiting"} 2.0',
        'rqlab_oldest_waiting_seconds{queue="q"} 2.0',
        'rqlab_pushed_total{queue="q"} 3.0',
        'rqlab_completed_total{queue="q"} 1.0',
        'rqlab_wait_seconds_bucket{le="1",queue="q"} 0.0',
        'rqlab_wait_seconds_bucket{le="+Inf",queue="q"} 1.0',
        'rqlab_wait_seconds_count{queue="q"} 1.0',
        'rqlab_wait_seconds_sum{queue="q"} 2.0',
    ):
        assert line in shown.splitlines()


def test_a_scrape_in_a_process_that_keeps_no_house_shows_what_there_is_now(tmp_path: Path) -> None:
    client = pytest.importorskip("prometheus_client")

    def shown(registry: Any) -> list[str]:
        return [line for line in client.generate_latest(registry).decode().splitlines() if "pushed_total{" in line]

    with rqlab.open(tmp_path / "jobs") as rq, rqlab.open(tmp_path / "jobs", read_only=True) as view:
        registries = [client.CollectorRegistry() for _ in range(2)]
        for registry, each in zip(registries, (rq, view), strict=True):
            registry.register(each.prometheus())

        for pushed in (1, 2, 3):
            rq.push("q", "n")

            assert [shown(registry) for registry in registries] == [[f'rqlab_pushed_total{{queue="q"}} {pushed}.0']] * 2

    assert shown(registries[1]) == ['rqlab_pushed_total{queue="q"} 3.0'], "closed: the other metrics of a program go on"


def test_a_scrape_beside_housekeeping_reads_no_store(rq: rqlab.Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    registry.register(rq.prometheus())
    rq.start_housekeeping()
    rq._supervisor.close()  # no tick any more
    monkeypatch.setattr(rq._metrics, "refresh", lambda now: pytest.fail("a scrape must not wait for a busy store"))

    assert "rqlab_jobs" in client.generate_latest(registry).decode()


# News.


def test_on_change_tells_each_change_in_order_with_the_record_after_it(rq: rqlab.Queues, wall: Wall) -> None:
    changes: list[Change] = []
    rq.on_change(changes.append)
    job_id = rq.push("q", "n", delay=1, max_attempts=1)
    wall.advance(1)
    job = pull_one(rq)
    rq.progress(job, 5)
    rq.heartbeat(job)
    rq.fail(job, "boom")
    rq.requeue(job_id)
    rq.cancel(job_id)
    rq.purge("q", "cancelled")

    assert [change.event for change in changes] == [
        "push", "promote", "pull", "progress", "heartbeat", "fail", "requeue", "cancel", "purge",
    ]  # fmt: skip
    assert [str(change.job.state) for change in changes] == [
        "delayed", "waiting", "active", "active", "active", "dlq", "waiting", "cancelled", "cancelled",
    ]  # fmt: skip
    assert {change.job.id for change in changes} == {job_id}
    assert [change.at - START for change in changes] == [0] + [1_000] * 8
    assert all(isinstance(change, Change) for change in changes)


def test_on_change_comes_after_the_commit(rq: rqlab.Queues) -> None:
    seen: list[str] = []
    rq.on_change(lambda change: seen.append(str(rq.get(change.job.id).state)))
    job_id = rq.push("q", "n")
    rq.cancel(job_id)

    assert seen == ["waiting", "cancelled"]


def test_unsubscribing_ends_it_and_is_idempotent(rq: rqlab.Queues) -> None:
    heard: list[str] = []
    off = rq.on_change(lambda change: heard.append("one"))
    rq.on_change(lambda change: heard.append("two"))
    rq.push("q", "n")
    off()
    off()
    rq.push("q", "n")

    assert heard == ["one", "two", "two"]


def test_the_same_callback_twice_is_two_subscriptions(rq: rqlab.Queues) -> None:
    heard: list[Change] = []
    off = rq.on_change(heard.append)
    rq.on_change(heard.append)
    off()
    rq.push("q", "n")

    assert len(heard) == 1


def test_a_callback_that_raises_is_logged_and_harms_nobody(rq: rqlab.Queues, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []

    def broken(change: Change) -> None:
        raise RuntimeError("my own bug")

    rq.on_change(broken)
    rq.on_change(lambda change: heard.append(change.event))
    job_id = rq.push("q", "n")
    rq.cancel(job_id)

    assert heard == ["push", "cancel"]
    assert caplog.text.count("RuntimeError: my own bug") == 2
    assert caplog.text.count("it stays subscribed") == 2


def test_a_callback_may_push_and_the_order_holds(rq: rqlab.Queues) -> None:
    heard: list[tuple[str, str]] = []

    def chain(change: Change) -> None:
        heard.append((change.event, change.job.name))
        if change.event == "push" and change.job.name == "first":
            rq.push_many("q", [{"name": "second"}, {"name": "third"}])
            heard.append(("returned", ""))

    rq.on_change(chain)
    rq.push("q", "first")

    assert heard == [("push", "first"), ("returned", ""), ("push", "second"), ("push", "third")]
    assert rq.counts().waiting == 3


def test_changes_of_many_threads_are_all_told_each_job_in_order(rq: rqlab.Queues) -> None:
    heard: list[tuple[str, Event]] = []
    rq.on_change(lambda change: heard.append((change.job.id, change.event)))

    def work() -> None:
        for _ in range(25):
            rq.cancel(rq.push("q", "n"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(heard) == 200
    for job_id in {job_id for job_id, _ in heard}:
        assert [event for told, event in heard if told == job_id] == ["push", "cancel"]


def test_nothing_is_told_of_what_was_refused(rq: rqlab.Queues) -> None:
    heard: list[Change] = []
    job_id = rq.push("q", "n", unique_key="k")
    rq.on_change(heard.append)
    for refused in (
        lambda: rq.push("q", "n", unique_key="k"),
        lambda: rq.requeue(job_id),
        lambda: rq.ack(rq.get(job_id)),
        lambda: rq.push("q", "n", priority=10**9),
    ):
        with pytest.raises(RQLabError):
            refused()

    assert heard == []


def test_a_change_of_large_data_says_where_the_data_is(tmp_path: Path) -> None:
    told: list[Change] = []
    with rqlab.open(tmp_path / "jobs") as rq:
        rq.on_change(told.append)
        job_id = rq.push("q", "n", "x" * 5_000)
        rq.cancel(job_id)

    assert told[0].job.data == "x" * 5_000
    with pytest.raises(LookupError, match=job_id):
        _ = told[1].job.data


def test_the_log_has_one_line_a_change(rq: rqlab.Queues, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "rqlab")
    job_id = rq.push("emails", "send")
    rq.cancel(job_id)

    lines = [record.getMessage() for record in caplog.records if job_id in record.getMessage()]
    assert [line.split()[:2] for line in lines] == [["push", "emails/send"], ["cancel", "emails/send"]]
    assert all(record.name == "rqlab" and record.levelno == logging.DEBUG for record in caplog.records)


# Draining.


def test_drain_runs_what_is_due_and_says_how_it_ended(rq: rqlab.Queues) -> None:
    def handler(job: Job) -> str:
        match job.name:
            case "snooze":
                raise rqlab.Snooze(60)
            case "later":
                raise rqlab.RetryAfter(60)
            case "dead":
                raise rqlab.DeadLetter("no such customer")
            case "boom":
                raise ValueError("boom")
            case "exit":
                raise SystemExit(3)
        return job.name

    names = ["fine", "snooze", "later", "dead", "boom", "exit", "fine"]
    ids = rq.push_many("q", [{"name": name} for name in names])
    rq.push("q", "fine", delay=60)

    assert rq.drain("q", handler) == {"completed": 2, "snoozed": 1, "failed": 4}
    states = [str(rq.get(job_id).state) for job_id in ids]
    assert states == ["completed", "delayed", "delayed", "dlq", "delayed", "delayed", "completed"]
    assert [rq.get(job_id).attempt for job_id in ids] == [0, 0, 1, 1, 1, 1, 0]
    assert rq.get(ids[0]).result == "fine"
    assert rq.get(ids[3]).last_error == "no such customer"
    assert "SystemExit" in str(rq.get(ids[5]).last_error)


def test_drain_stops_at_its_limit(rq: rqlab.Queues) -> None:
    rq.push_many("q", [{"name": "n"}] * 5)

    assert rq.drain("q", lambda job: None, limit=0) == {}
    assert rq.drain("q", lambda job: None, limit=2) == {"completed": 2}
    assert rq.drain("q", lambda job: None) == {"completed": 3}
    assert rq.drain("q", lambda job: None) == {}
    assert rq.drain(["q", "nowhere"], lambda job: None) == {}


def test_drain_runs_by_priority_and_what_a_handler_pushes(rq: rqlab.Queues) -> None:
    ran: list[str] = []

    def handler(job: Job) -> None:
        ran.append(job.name)
        if job.name == "first":
            rq.push("q", "urgent", priority=5)

    rq.push_many("q", [{"name": "first", "priority": 1}, {"name": "last"}])

    assert rq.drain("q", handler) == {"completed": 3}
    assert ran == ["first", "urgent", "last"]


def test_drain_runs_a_job_to_the_dlq_where_there_is_no_backoff(rq: rqlab.Queues) -> None:
    job_id = rq.push("q", "n", backoff_delay=0, max_attempts=3)

    assert rq.drain("q", lambda job: 1 / 0) == {"failed": 3}
    assert (rq.get(job_id).state, rq.get(job_id).deliveries) == ("dlq", 3)
    assert str(rq.get(job_id).last_error).startswith("ZeroDivisionError")


def test_drain_takes_a_mapping_and_dead_letters_unknown_names(rq: rqlab.Queues) -> None:
    known, unknown = rq.push("q", "b"), rq.push("q", "c")

    assert rq.drain("q", {"b": lambda job: 1, "a": lambda job, ctx: 2}) == {"completed": 1, "failed": 1}
    assert rq.get(known).result == 1
    assert (rq.get(unknown).state, rq.get(unknown).last_error) == (
        "dlq", "no handler called 'c'; this worker has: a, b",
    )  # fmt: skip


def test_drain_gives_a_context_to_a_handler_that_wants_one(rq: rqlab.Queues) -> None:
    def handler(job: Job, ctx: rqlab.Context) -> dict[str, Any]:
        ctx.progress(50, "half")
        ctx.log("a line")
        return {"token": ctx.token, "lost": ctx.lost, "cancelled": ctx.cancelled, "same": ctx.job == job}

    job_id = rq.push("q", "n")

    assert rq.drain("q", handler) == {"completed": 1}
    job = rq.get(job_id)
    assert job.result == {"token": 1, "lost": False, "cancelled": False, "same": True}
    assert (job.progress, job.logs) == (50, ("half", "a line"))


def test_drain_runs_async_handlers(rq: rqlab.Queues) -> None:
    async def handler(job: Job) -> str:
        await asyncio.sleep(0)
        return f"async {job.name}"

    ids = rq.push_many("q", [{"name": "a"}, {"name": "b"}])

    assert rq.drain("q", handler) == {"completed": 2}
    assert [rq.get(job_id).result for job_id in ids] == ["async a", "async b"]


def test_a_result_that_json_cannot_say_fails_the_attempt(rq: rqlab.Queues) -> None:
    job_id = rq.push("q", "n")

    assert rq.drain("q", lambda job: {1, 2}) == {"failed": 1}
    assert "the handler returned what cannot be stored: result: expected a JSON value" in str(rq.get(job_id).last_error)


def test_drain_releases_its_run_at_ctrl_c(rq: rqlab.Queues) -> None:
    def handler(job: Job) -> None:
        raise KeyboardInterrupt

    job_id = rq.push("q", "n")

    with pytest.raises(KeyboardInterrupt):
        rq.drain("q", handler)
    assert (rq.get(job_id).state, rq.get(job_id).attempt) == ("waiting", 0)


@pytest.mark.parametrize("handler", [None, 7, "handler", {}, {"a": 1}, {"bad name": print}, lambda: None, []])
def test_what_is_no_handler_is_refused_before_any_job_is_pulled(rq: rqlab.Queues, handler: Any) -> None:
    rq.push("q", "a")

    for call in (rq.drain, rq.run_worker, rq.worker):
        with pytest.raises(rqlab.ValidationError, match="expected"):
            call("q", handler)
    assert rq.counts() == rqlab.Counts(waiting=1)


@pytest.mark.parametrize("queues", [[], "", None, 7, ["a", ""], [7]])
def test_the_queues_to_drain_are_names(rq: rqlab.Queues, queues: Any) -> None:
    with pytest.raises(rqlab.ValidationError, match=r"queue.*expected"):
        rq.drain(queues, lambda job: None)


# Housekeeping by hand.


def test_a_tick_recovers_promotes_and_expires(rq: rqlab.Queues, wall: Wall) -> None:
    stalled = rq.push("q", "n")
    pull_one(rq)
    due, expired = rq.push("q", "n", delay=10), rq.push("q", "n", ttl=20)
    timed_out = rq.push("other", "n", timeout=5, max_attempts=1)
    pull_one(rq, "other")
    wall.advance(31)
    rq.tick()

    assert (rq.get(stalled).state, rq.get(stalled).attempt) == ("delayed", 1)
    assert "stalled: no heartbeat" in str(rq.get(stalled).last_error)
    assert rq.get(due).state == "waiting"
    assert (rq.get(expired).state, rq.get(expired).last_error) == ("dlq", "expired")
    assert (rq.get(timed_out).state, rq.get(timed_out).last_error) == ("dlq", "timed out after 5 s")


# The directory.


def test_what_was_pushed_is_there_after_a_reopen(tmp_path: Path) -> None:
    with rqlab.open(tmp_path / "jobs") as rq:
        ids = rq.push_many("q", [{"name": "n", "data": "x" * size} for size in (1, 5_000, 200_000)])
        rq.ack(pull_one(rq), "y" * 10_000)
        before = rq.jobs()
    with rqlab.open(str(tmp_path / "jobs")) as rq:
        assert rq.jobs() == before
        assert rq.get(ids[0]).result == "y" * 10_000
        assert rq.get(ids[2]).data == "x" * 200_000


def test_a_handle_knows_its_path_and_mode(rq: rqlab.Queues, mode: str, tmp_path: Path) -> None:
    assert rq.durability == mode
    assert rq.path == (None if mode == "memory" else tmp_path / "jobs")
    assert mode in repr(rq)


def test_a_read_only_handle_sees_all_and_changes_nothing(tmp_path: Path, wall: Wall) -> None:
    with rqlab.open(tmp_path / "jobs") as rq:
        job_id = rq.push("q", "n", {"a": 1}, unique_key="k")
        rq.push("q", "n", max_attempts=1)
        held, dead = rq.pull("q", 2)
        rq.fail(dead, "boom")
        with rqlab.open(tmp_path / "jobs", read_only=True) as look:
            assert look.read_only
            assert "read_only" in repr(look)
            assert look.get(job_id).data == {"a": 1}
            assert look.jobs() == rq.jobs()
            assert look.counts() == rq.counts()
            assert look.queues() == ["q"]
            assert look.metrics() == rq.metrics()
            assert [job.id for job in look.get_dlq_jobs("q")] == [dead.id]
            assert len(look.frame()) == 2
            assert look.schedules() == []
            changes: list[Callable[[], Any]] = [
                lambda: look.push("q", "n"),
                lambda: look.push_many("q", [{"name": "n"}]),
                lambda: look.pull("q"),
                lambda: look.pull("q", wait=1),
                lambda: look.ack(held),
                lambda: look.ack_many([(held, None)]),
                lambda: look.fail(held, "boom"),
                lambda: look.heartbeat(held),
                lambda: look.progress(held, 5),
                lambda: look.release(held),
                lambda: look.cancel(job_id),
                lambda: look.requeue(dead.id),
                lambda: look.requeue_all("q"),
                lambda: look.purge("q"),
                lambda: look.purge("nowhere"),
                lambda: look.pause("q"),
                lambda: look.resume("q"),
                lambda: look.schedule("s", "q", "n", every=60),
                lambda: look.pause_schedule("s"),
                lambda: look.unschedule("s"),
                lambda: look.run_worker("q", print),
                lambda: look.worker("q", print),
                lambda: look.drain("q", print),
                look.start_housekeeping,
                look.tick,
                look.vacuum,
            ]
            for change in changes:
                with pytest.raises(StoreError, match="read_only"):
                    change()
            assert rq.push("q", "n")
            assert look.counts().waiting == 1
        assert rq.ack(held).state == "completed"


def test_looking_creates_no_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected a directory that rqlab has made"):
        rqlab.open(tmp_path / "jobs", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_look_is_not_asked_to_store_a_retention(tmp_path: Path) -> None:
    rqlab.open(tmp_path / "jobs").close()

    with pytest.raises(rqlab.ValidationError, match="read_only=True stores nothing; got Retention"):
        rqlab.open(tmp_path / "jobs", read_only=True, retention=rqlab.Retention(completed=1))


def test_close_is_idempotent_and_everything_after_it_is_refused(rq: rqlab.Queues) -> None:
    job_id = rq.push("q", "n")
    job = pull_one(rq)
    rq.close()
    rq.close()

    calls: list[Callable[[], Any]] = [
        lambda: rq.push("q", "n"),
        lambda: rq.pull("q"),
        lambda: rq.pull("q", wait=1),
        lambda: rq.ack(job),
        lambda: rq.heartbeat(job),
        lambda: rq.get(job_id),
        lambda: rq.jobs(),
        lambda: rq.counts(),
        lambda: rq.queues(),
        lambda: rq.metrics(),
        lambda: rq.cancel(job_id),
        lambda: rq.purge("q"),
        lambda: rq.pause("q"),
        lambda: rq.schedules(),
        lambda: rq.drain("q", print),
        lambda: rq.run_worker("q", print),
        lambda: rq.worker("q", print),
        rq.start_housekeeping,
        rq.tick,
        rq.flush,
    ]
    for call in calls:
        with pytest.raises(StoreError, match="closed"):
            call()


def test_a_handle_is_closed_at_the_end_of_its_block_also_by_an_error(mode: str, tmp_path: Path) -> None:
    rq = rqlab.memory() if mode == "memory" else rqlab.open(tmp_path / "jobs")
    rq.start_housekeeping()
    with pytest.raises(ZeroDivisionError), rq:
        _ = 1 / 0
    with pytest.raises(StoreError, match="closed"):
        rq.queues()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rqlab-housekeeping")]


def test_two_memories_know_nothing_of_each_other() -> None:
    with rqlab.memory() as one, rqlab.memory() as other:
        one.push("q", "n")
        assert other.queues() == []


# Everything at once.


def test_counts_equal_a_recount_after_a_random_program(rq: rqlab.Queues, wall: Wall) -> None:
    rng, held = random.Random(11), []
    for _ in range(150):
        wall.advance(rng.choice([0, 0.001, 1, 40]))
        match rng.randrange(8):
            case 0 | 1:
                rq.push_many("q", [{"name": "n", "delay": rng.choice([0, 3]), "ttl": rng.choice([None, 5])}] * 3)
            case 2 | 3:
                held += rq.pull("q", 2)
            case 4:
                rq.ack_many([(job, None) for job in held[-2:]])
            case 5:
                for job in held[-1:]:
                    try:
                        rq.fail(job, rng.choice([rqlab.Snooze(1), rqlab.DeadLetter(), ValueError("boom")]))
                    except LeaseLost:
                        held.clear()
            case 6:
                rq.tick()
            case 7:
                rq.requeue_all("q")
        assert rq.counts("q") == recount(rq, "q")


def test_an_item_of_push_many_may_not_name_another_queue(rq: rqlab.Queues) -> None:
    with pytest.raises(rqlab.ValidationError, match=r"items\[1\].*unknown 'queue'"):
        rq.push_many("mine", [{"name": "a"}, {"name": "b", "queue": "other"}])

    assert rq.counts().total == 0


def test_a_second_ack_is_told_that_the_first_was_stored(rq: rqlab.Queues) -> None:
    rq.push("q", "n")
    (job,) = rq.pull("q")
    rq.ack(job)

    with pytest.raises(LeaseLost, match="ended already, as completed, and that is stored"):
        rq.ack(job)


def test_a_job_that_was_never_pulled_is_told_so(rq: rqlab.Queues) -> None:
    job = rq.get(rq.push("q", "n"))

    with pytest.raises(LeaseLost, match="Call this with a job that pull returned"):
        rq.ack(job)


def test_one_ack_of_many_that_cannot_be_stored_is_its_own_outcome(rq: rqlab.Queues) -> None:
    rq.push_many("q", [{"name": "a"}, {"name": "b"}])
    one, other = rq.pull("q", 2)

    outcomes = rq.ack_many([(one, object()), (other, 1)])

    assert isinstance(outcomes[0], rqlab.ValidationError)
    assert isinstance(outcomes[1], Job)
    assert rq.counts() == rqlab.Counts(active=1, completed=1)


def test_a_schedule_of_any_name_is_listed_when_it_is_paused(rq: rqlab.Queues) -> None:
    for name in ("émile", "~", "plain"):
        rq.schedule(name, "q", "j", every=60)
        rq.pause_schedule(name)

    assert {schedule.name for schedule in rq.schedules()} == {"émile", "~", "plain"}


def test_the_same_schedule_in_other_words_changes_nothing(rq: rqlab.Queues) -> None:
    first = rq.schedule("s", "q", "j", {"a": 1, "b": 2}, cron="0  9 * * *")

    assert rq.schedule("s", "q", "j", {"b": 2, "a": 1}, cron="0 9 * * *") == first


def test_a_value_whose_comparison_fails_is_refused_as_any_other(rq: rqlab.Queues) -> None:
    with pytest.raises(rqlab.ValidationError, match="data: expected a JSON value"):
        rq.push("q", "n", Unequal())


def test_a_path_that_is_none_is_refused(rq: rqlab.Queues, tmp_path: Path) -> None:
    for wrong in ("a\0b", "", None, 3, b"bytes"):
        with pytest.raises(rqlab.ValidationError, match="path: expected"):
            rqlab.open(wrong)  # type: ignore[arg-type]


def test_a_drain_says_why_the_store_refuses(rq: rqlab.Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    rq.push("q", "n")

    def full(work: Any) -> None:
        raise rqlab.StoreFull("no space")

    monkeypatch.setattr(rq._store, "write", full)

    with pytest.raises(rqlab.StoreFull, match="no space"):
        rq.drain("q", lambda job: None)


def test_ticks_by_hand_remember_the_tick_before(rq: rqlab.Queues) -> None:
    rq.tick()
    due_at = rq._ticker.due_at

    rq.tick()

    assert due_at is not None
    assert rq._ticker.due_at is not None
    assert rq._ticker.due_at >= due_at


def test_queues_in_memory_refuse_a_fork(tmp_path: Path) -> None:
    with rqlab.memory() as rq:
        rq._store._lock.acquire()  # type: ignore[attr-defined]  # a thread of the parent was at work as it forked
        pid = os.fork()
        if pid == 0:
            try:
                rq.push("q", "n")
            except rqlab.StoreError as error:
                os._exit(0 if "this is its fork" in str(error) else 2)
            os._exit(1)
        rq._store._lock.release()  # type: ignore[attr-defined]

        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_run_times_out_though_the_wall_clock_went_back(wall: Wall) -> None:
    with rqlab.memory() as rq:
        job_id = rq.push("q", "n", timeout=5)
        (job,) = rq.pull("q")
        wall.now -= 3_600_000
        rq.heartbeat(job)
        rq.tick()
        wall.now += 5_001
        rq.heartbeat(job)
        rq.tick()

        assert rq.get(job_id).last_error == "timed out after 5 s"


def test_a_damaged_queue_holds_up_no_other(tmp_path: Path) -> None:
    with rqlab.open(tmp_path / "jobs") as rq:
        rq.push("bad", "n")
        good = rq.push("good", "n")
    with rqlab.open(tmp_path / "jobs") as rq:
        rq._store.write(lambda tx: tx.put_entry("queue/bad", b"{no counters", "queue/bad"))

        assert rq.drain(["bad", "good"], lambda job: None) == {"completed": 1}
        assert rq.get(good).state is State.COMPLETED
