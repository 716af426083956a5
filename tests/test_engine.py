"""One transaction around one transition: the engine on every store, at instants that the test chooses."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rqlab.engine import BUCKETS, LISTED, MAX_LOOKS, MAX_MOVES, TOTALS, Ending, Engine, Pull, Push
from rqlab.errors import DuplicateKey, InvalidState, JobNotFound, LeaseLost, RQLabError, StoreError
from rqlab.ids import Ids
from rqlab.job import FINISHED, Job, State
from rqlab.lifecycle import Event
from rqlab.metrics import Metrics
from rqlab.storage import Store, Transaction
from rqlab.storage.memory import MemoryStore
from rqlab.storage.place import LAST, expiring, shelf

NOW = 1_767_225_600_000
STALL = 30.0  # seconds

ids = Ids(random.Random(5).getrandbits)


def pushing(queue: str = "q", *, delay: float = 0.0, data: Any = None, **fields: Any) -> tuple[Push, str]:
    encoded = msgspec.Raw(msgspec.json.encode(data))
    return Push(Job(id="", queue=queue, name="n", encoded_data=encoded, **fields), delay), ids.draw(NOW)


def push(engine: Engine, now: int = NOW, **fields: Any) -> str:
    (job_id,) = engine.push([pushing(**fields)], now)
    return job_id


def pulling(*queues: str, at_most: int = 1) -> Pull:
    return Pull(queues or ("q",), at_most, "host:1:main", STALL)


def pull(engine: Engine, now: int = NOW, at_most: int = 1) -> list[Job]:
    return engine.pull(pulling(at_most=at_most), now)


def pull_one(engine: Engine, now: int = NOW) -> Job:
    (job,) = pull(engine, now)
    return job


def counts(engine: Engine, queue: str = "q") -> dict[str, int]:
    return {state: count for state, count in msgspec.structs.asdict(engine.counts([queue])).items() if count}


def counters(engine: Engine, queue: str = "q") -> dict[str, int]:
    return {name: count for name, count in engine.store.counters(queue).items() if count}


def check(engine: Engine, *queues: str) -> None:
    """What is true of every store between two transactions: counters, unique keys and side entries fit the jobs."""
    for queue in queues or ("q",):
        holders = {}
        expiring_ids = []
        for state in LISTED:
            jobs = engine.store.scan(shelf(queue, state), shelf(queue, state) + LAST, 100_000)
            assert engine.store.counters(queue).get(state, 0) == len(jobs), state
            assert all(job.state is state and job.queue == queue for job in jobs)
            holders |= {job.unique_key: job.id for job in jobs if job.unique_key and state not in FINISHED}
            expiring_ids += [job.id for job in jobs if job.expires_at is not None]
        for key in ("k1", "k2"):
            held_by = engine.store.entry(f"unique/{queue}/{key}")
            assert (None if held_by is None else held_by.decode()) == holders.get(key), key
        entries = engine.store.entries(expiring(queue), expiring(queue) + LAST, 100_000)
        assert sorted(key.rpartition("/")[2] for key, _ in entries) == sorted(expiring_ids)


# The line.


def test_a_line_runs_by_priority_then_in_push_order(engine: Engine) -> None:
    priorities = [0, 5, -3, 5, 0, 32_767, -32_768]
    pushed = [(priority, push(engine, priority=priority)) for priority in priorities]

    pulled = [job.id for job in pull(engine, at_most=10)]
    assert pulled == [job_id for _, job_id in sorted(pushed, key=lambda pair: (-pair[0], pair[1]))]


def test_a_retried_job_goes_back_to_its_place_in_the_line(engine: Engine) -> None:
    first = push(engine, backoff_delay=0.0)
    push(engine)
    engine.end(Ending(pull_one(engine), Event.FAIL, error="boom"), NOW)

    assert pull_one(engine).id == first


def test_a_delayed_job_of_high_priority_that_is_due_runs_first(engine: Engine) -> None:
    push(engine)
    urgent = push(engine, delay=10.0, priority=9)

    assert pull_one(engine, NOW + 9_999).id != urgent
    push(engine)
    assert pull_one(engine, NOW + 10_000).id == urgent


def test_a_due_job_is_pulled_though_nobody_keeps_house(engine: Engine) -> None:
    job_id = push(engine, delay=10.0)

    assert pull(engine, NOW + 9_999) == []
    assert engine.next_due(["q"]) == NOW + 10_000
    assert not engine.has_due(["q"], NOW + 9_999)
    assert engine.has_due(["q"], NOW + 10_000)
    assert pull_one(engine, NOW + 10_000).id == job_id


@pytest.mark.parametrize("at_most", [1, 2, 3, 5, 1_000])
def test_a_pull_gives_as_many_as_are_asked_for_and_there(engine: Engine, at_most: int) -> None:
    for _ in range(3):
        push(engine)

    assert len(pull(engine, at_most=at_most)) == min(at_most, 3)
    check(engine)


def test_a_pull_from_several_queues_serves_the_first_first(engine: Engine) -> None:
    for queue in ("a", "b", "b"):
        push(engine, queue=queue, priority=ord(queue))

    assert [job.queue for job in engine.pull(pulling("b", "a", at_most=9), NOW)] == ["b", "b", "a"]


def test_no_queue_sees_the_jobs_of_one_whose_name_begins_alike(engine: Engine) -> None:
    for queue in ("mail", "mail.bulk", "mail-bulk", "mai", "mail2"):
        push(engine, queue=queue)

    assert [job.queue for job in engine.pull(pulling("mail", at_most=9), NOW)] == ["mail"]


def test_a_pull_gives_the_due_jobs_that_a_transaction_can_promote_in_the_order_of_the_line(engine: Engine) -> None:
    pushes = [pushing(delay=1.0, priority=number % 7) for number in range(400)]
    engine.push(pushes, NOW)

    jobs = pull(engine, NOW + 1_000, at_most=100)

    order = sorted(((-pushed.job.priority, job_id) for pushed, job_id in pushes))
    assert [job.id for job in jobs] == [job_id for _, job_id in order[:100]]
    check(engine)


def test_a_pull_of_one_job_does_not_pay_for_the_promotion_of_all(engine: Engine) -> None:
    """Those due longest join the line first, and the best of them is pulled; the rest is left to the next pull."""
    pushes = [pushing(delay=1.0 + number / 1000, priority=number) for number in range(1_200)]
    engine.push(pushes, NOW)
    sizes: list[int] = []
    engine.store.listener = lambda changes: sizes.append(len(changes))

    (job,) = pull(engine, NOW + 60_000)

    assert sizes == [MAX_MOVES]
    assert job.priority == MAX_MOVES - 2
    assert counts(engine) == {"waiting": MAX_MOVES - 2, "delayed": 1_200 - MAX_MOVES + 1, "active": 1}
    assert [pull(engine, NOW + 60_000)[0].priority for _ in range(2)] == [2 * MAX_MOVES - 3, 1_199]
    check(engine)


def test_a_pull_of_many_due_jobs_moves_at_most_500_a_transaction(engine: Engine) -> None:
    engine.push([pushing(delay=1.0) for _ in range(1_200)], NOW)
    sizes: list[int] = []
    engine.store.listener = lambda changes: sizes.append(len(changes))

    jobs = pull(engine, NOW + 1_000, at_most=1_000)

    assert len({job.id for job in jobs}) == 1_000
    assert max(sizes) <= MAX_MOVES == 500
    check(engine)


def test_the_pull_in_the_commit_of_an_ack_finds_what_a_failed_run_has_put_back(engine: Engine) -> None:
    """Acks put nothing back, so their pull comes first; of other endings it comes after them."""
    push(engine, backoff_delay=0.0)
    (held,) = pull(engine)

    _, again = engine.finish([Ending(held, Event.FAIL, error="no")], pulling(), NOW)

    assert [(job.id, job.deliveries) for job in again] == [(held.id, 2)]
    check(engine)


def test_a_pull_that_breaks_off_gives_the_leases_that_it_has(engine: Engine) -> None:
    engine.push([pushing() for _ in range(900)], NOW)
    write, calls = engine.store.write, 0

    def broken(work: Callable[[Transaction], Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise StoreError("the disk is gone")
        return write(work)

    engine.store.write = broken  # type: ignore[method-assign,assignment]
    assert len(pull(engine, at_most=900)) == 500
    with pytest.raises(StoreError):
        pull(engine, at_most=900)


# Expiry.


def test_a_pull_skips_expired_jobs_and_dead_letters_them(engine: Engine) -> None:
    gone = push(engine, ttl=5.0, priority=9)
    late = push(engine, ttl=5.0, delay=10.0)
    good = push(engine)

    assert [job.id for job in pull(engine, NOW + 5_000, at_most=9)] == [good]
    assert [job.id for job in pull(engine, NOW + 15_000, at_most=9)] == []
    for job_id in (gone, late):
        assert (engine.get(job_id).state, engine.get(job_id).last_error) == (State.DLQ, "expired")
    check(engine)


def test_a_job_is_pulled_in_the_last_millisecond_of_its_ttl(engine: Engine) -> None:
    job_id = push(engine, ttl=5.0)

    assert pull_one(engine, NOW + 4_999).id == job_id


def test_a_pull_past_600_expired_jobs_finds_the_good_one(engine: Engine) -> None:
    engine.push([pushing(ttl=1.0, priority=1) for _ in range(600)], NOW)
    good = push(engine)

    assert [job.id for job in pull(engine, NOW + 2_000, at_most=2)] == [good]
    assert counts(engine) == {"active": 1, "dlq": 600}
    check(engine)


def test_a_started_job_never_expires(engine: Engine) -> None:
    push(engine, ttl=5.0)
    engine.end(Ending(pull_one(engine), Event.RELEASE), NOW)

    assert not engine.expire("q", NOW + 60_000)
    assert counts(engine) == {"waiting": 1}


def test_expiry_takes_waiting_and_delayed_jobs_that_are_past_due(engine: Engine) -> None:
    waiting, delayed = push(engine, ttl=5.0), push(engine, ttl=5.0, delay=1.0)
    kept = push(engine, ttl=5.0, delay=1.001)

    assert not engine.expire("q", NOW + 4_999)
    assert not engine.expire("q", NOW + 6_000)
    assert {engine.get(job_id).state for job_id in (waiting, delayed)} == {State.DLQ}
    assert engine.get(kept).state is State.DELAYED
    check(engine)


# Runs and their ends.


def test_max_attempts_1_is_one_run(engine: Engine) -> None:
    push(engine, max_attempts=1)
    job = engine.end(Ending(pull_one(engine), Event.FAIL, error="boom"), NOW)

    assert (job.state, job.attempt) == (State.DLQ, 1)
    assert pull(engine, NOW + 86_400_000) == []


def test_the_ends_of_many_runs_and_the_next_pull_are_one_commit(engine: Engine) -> None:
    for _ in range(4):
        push(engine)
    held = pull(engine, at_most=3)
    commits: list[list[Event]] = []
    engine.store.listener = lambda changes: commits.append([change[0] for change in changes])

    outcomes, pulled = engine.finish(
        [
            Ending(held[0], Event.ACK),
            Ending(held[1], Event.FAIL, error="boom"),
            Ending(held[2], Event.SNOOZE, delay=5.0),
        ],
        pulling(at_most=5),
        NOW,
    )

    assert [outcome.state for outcome in outcomes if isinstance(outcome, Job)] == ["completed", "delayed", "delayed"]
    assert len(pulled) == 1
    assert commits == [[Event.ACK, Event.FAIL, Event.SNOOZE, Event.PULL]]


def test_each_ending_has_its_own_outcome(engine: Engine) -> None:
    for _ in range(3):
        push(engine)
    one, lost, three = pull(engine, at_most=3)
    engine.end(Ending(lost, Event.RELEASE), NOW)

    outcomes, _ = engine.finish([Ending(job, Event.ACK) for job in (one, lost, three, one)], None, NOW)

    assert [type(outcome) for outcome in outcomes] == [Job, LeaseLost, Job, LeaseLost]
    assert counts(engine) == {"waiting": 1, "completed": 2}
    check(engine)


def test_jitter_draws_from_chance_by_job_and_delivery(store: Store) -> None:
    drawn: list[tuple[str, str, int]] = []

    def chance(purpose: str, entity: str, counter: int) -> float:
        drawn.append((purpose, entity, counter))
        return 0.0

    engine = Engine(store, chance)
    jittered, plain = push(engine, jitter=0.5, backoff_delay=10.0), push(engine, backoff_delay=10.0)
    for job in pull(engine, at_most=2):
        engine.end(Ending(job, Event.FAIL, error="boom"), NOW)

    assert drawn == [("jitter", jittered, 1)]
    assert engine.get(jittered).delay_until == NOW + 5_000
    assert engine.get(plain).delay_until == NOW + 10_000


def test_a_retry_with_a_backoff_longer_than_the_stall_timeout_is_not_reclaimed_at_its_next_run(engine: Engine) -> None:
    push(engine, backoff_delay=100.0)
    job = pull_one(engine)
    engine.heartbeat([job], NOW + 10_000)
    engine.end(Ending(job, Event.FAIL, error="boom"), NOW + 11_000)
    due_at = NOW + 111_000

    again = pull_one(engine, due_at)

    for now in (due_at, due_at + 29_999):
        assert engine.recover("q", now, now) == []
    assert engine.get(again.id).state is State.ACTIVE
    assert [job.state for job in engine.recover("q", due_at + 30_000, due_at + 30_000)] == [State.DELAYED]


@pytest.mark.parametrize("timeout", [10.0, 60.0])
def test_recovery_takes_the_earlier_of_lease_and_time_out(engine: Engine, timeout: float) -> None:
    push(engine, timeout=timeout, max_attempts=1)
    pull_one(engine)
    first = NOW + min(10_000, 30_000) if timeout == 10.0 else NOW + 30_000

    assert engine.recover("q", first - 1, first - 1) == []
    (job,) = engine.recover("q", first, first)
    assert job.last_error == (
        "timed out after 10 s" if timeout == 10.0 else "stalled: no heartbeat from host:1:main for 30.0 s"
    )
    check(engine)


def test_a_heartbeat_does_not_put_off_a_time_out(engine: Engine) -> None:
    push(engine, timeout=40.0, max_attempts=1)
    job = pull_one(engine)
    engine.heartbeat([job], NOW + 29_000)

    assert engine.recover("q", NOW + 39_999, NOW + 39_999) == []
    (ended,) = engine.recover("q", NOW + 40_000, NOW + 40_000)
    assert ended.last_error == "timed out after 40 s"


def test_what_is_not_judged_yet_is_left_alone(engine: Engine) -> None:
    push(engine)
    pull_one(engine)

    assert engine.recover("q", NOW + 29_999, NOW + 90_000) == []


def test_recovery_moves_at_most_500_a_transaction(engine: Engine) -> None:
    engine.push([pushing() for _ in range(600)], NOW)
    pull(engine, at_most=600)

    assert [len(engine.recover("q", NOW + 60_000, NOW + 60_000)) for _ in range(3)] == [500, 100, 0]


def test_a_lease_left_too_long_by_a_clock_gone_back_is_cut(engine: Engine) -> None:
    push(engine)
    job = pull_one(engine)
    engine.shorten("q", NOW - 3_600_000)

    assert engine.get(job.id).lease_until == NOW - 3_600_000 + 30_000
    engine.shorten("q", NOW - 3_600_000)
    assert engine.get(job.id).history == ()


# Fencing: every call that takes a Job.

CALLS: dict[str, Callable[[Engine, Job], Any]] = {
    "ack": lambda engine, job: engine.end(Ending(job, Event.ACK), NOW),
    "fail": lambda engine, job: engine.end(Ending(job, Event.FAIL, error="late"), NOW),
    "time out": lambda engine, job: engine.end(Ending(job, Event.TIME_OUT), NOW),
    "release": lambda engine, job: engine.end(Ending(job, Event.RELEASE), NOW),
    "snooze": lambda engine, job: engine.end(Ending(job, Event.SNOOZE, delay=5.0), NOW),
    "progress": lambda engine, job: engine.progress(job, 50, "late", NOW),
    "log": lambda engine, job: engine.log(job, "late", NOW),
    "heartbeat": lambda engine, job: raised(engine.heartbeat([job], NOW)[0]),
    "finish": lambda engine, job: raised(engine.finish([Ending(job, Event.ACK)], None, NOW)[0][0]),
}


def raised(outcome: Job | RQLabError) -> Job:
    if isinstance(outcome, RQLabError):
        raise outcome
    return outcome


def lose(engine: Engine, held: Job, how: str) -> None:
    match how:
        case "stalled":
            engine.recover("q", NOW + 60_000, NOW)
        case "pulled again":
            engine.end(Ending(held, Event.RELEASE), NOW)
            pull_one(engine)
        case "requeued and pulled again":
            engine.cancel(held.id, NOW)
            engine.requeue(held.id, NOW)
            pull_one(engine)
        case "completed":
            engine.end(Ending(held, Event.ACK), NOW)
        case "cancelled":
            engine.cancel(held.id, NOW)
        case "removed":
            engine.cancel(held.id, NOW)
            engine.purge("q", State.CANCELLED, None, NOW)


@pytest.mark.parametrize(
    "how", ["stalled", "pulled again", "requeued and pulled again", "completed", "cancelled", "removed"]
)
@pytest.mark.parametrize("call", CALLS)
def test_a_run_that_lost_its_job_changes_nothing(engine: Engine, call: str, how: str) -> None:
    push(engine, max_attempts=2, timeout=900.0)
    held = pull_one(engine)
    lose(engine, held, how)
    stored, counted = engine.store.get(held.id), counters(engine)

    with pytest.raises(LeaseLost, match=held.id):
        CALLS[call](engine, held)

    assert engine.store.get(held.id) == stored
    assert counters(engine) == counted
    assert engine.holds([held]) == [False]


@pytest.mark.parametrize("call", CALLS)
def test_a_run_that_holds_its_job_may(engine: Engine, call: str) -> None:
    push(engine, timeout=900.0)
    held = pull_one(engine)

    assert engine.holds([held]) == [True]
    assert CALLS[call](engine, held).deliveries == 1
    check(engine)


# Illegal events.


@pytest.mark.parametrize("state", [State.COMPLETED, State.DLQ, State.CANCELLED])
def test_a_finished_job_cannot_be_cancelled(engine: Engine, state: State) -> None:
    job_id = bring_to(engine, state)
    before = engine.get(job_id), counters(engine)

    with pytest.raises(InvalidState, match=f"cannot cancel job {job_id}: expected .*, got {state}"):
        engine.cancel(job_id, NOW)
    assert (engine.get(job_id), counters(engine)) == before


@pytest.mark.parametrize("state", [State.WAITING, State.DELAYED, State.ACTIVE, State.COMPLETED])
def test_only_dead_lettered_and_cancelled_jobs_can_be_requeued(engine: Engine, state: State) -> None:
    job_id = bring_to(engine, state, unique_key="k1")
    before = engine.get(job_id), counters(engine)

    with pytest.raises(InvalidState, match=f"cannot requeue job {job_id}: expected dlq or cancelled, got {state}"):
        engine.requeue(job_id, NOW)
    assert (engine.get(job_id), counters(engine)) == before
    check(engine)


def bring_to(engine: Engine, state: State, **fields: Any) -> str:
    """A new job in this state; no other job may be waiting."""
    job_id = push(engine, delay=60.0 if state is State.DELAYED else 0.0, **fields)
    if state in (State.ACTIVE, State.COMPLETED, State.DLQ):
        held = pull_one(engine)
        assert held.id == job_id
        if state is not State.ACTIVE:
            engine.end(Ending(held, Event.ACK if state is State.COMPLETED else Event.FAIL, final=True), NOW)
    elif state is State.CANCELLED:
        engine.cancel(job_id, NOW)
    return job_id


@pytest.mark.parametrize("attempted", ["get", "cancel", "requeue"])
def test_what_is_not_there_is_not_found(engine: Engine, attempted: str) -> None:
    job_id = ids.draw(NOW)
    call = {
        "get": lambda: engine.get(job_id),
        "cancel": lambda: engine.cancel(job_id, NOW),
        "requeue": lambda: engine.requeue(job_id, NOW),
    }[attempted]

    with pytest.raises(JobNotFound, match=job_id):
        call()


# Unique keys.


@pytest.mark.parametrize("state", [State.WAITING, State.DELAYED, State.ACTIVE])
def test_a_job_that_is_not_finished_holds_its_key(engine: Engine, state: State) -> None:
    holder = bring_to(engine, state, unique_key="k1")
    before = counters(engine)

    with pytest.raises(DuplicateKey) as refused:
        push(engine, unique_key="k1")
    assert refused.value.job_id == holder
    assert counters(engine) == before
    check(engine)


@pytest.mark.parametrize("how", [Event.RELEASE, Event.SNOOZE, Event.FAIL, Event.TIME_OUT, Event.STALL])
def test_a_job_that_will_run_again_keeps_its_key(engine: Engine, how: Event) -> None:
    holder = bring_to(engine, State.ACTIVE, unique_key="k1", timeout=900.0)
    held = engine.get(holder)
    if how is Event.STALL:
        engine.recover("q", NOW + 60_000, NOW)
    else:
        engine.end(Ending(held, how), NOW)

    with pytest.raises(DuplicateKey):
        push(engine, unique_key="k1")
    check(engine)


@pytest.mark.parametrize("state", [State.COMPLETED, State.DLQ, State.CANCELLED])
def test_a_finished_job_has_released_its_key(engine: Engine, state: State) -> None:
    bring_to(engine, state, unique_key="k1")

    push(engine, unique_key="k1")
    check(engine)


def test_a_key_is_released_by_expiry_and_by_a_completed_job_that_leaves_no_entry(engine: Engine) -> None:
    push(engine, unique_key="k1", ttl=1.0)
    engine.expire("q", NOW + 2_000)
    bring_to(engine, State.COMPLETED, unique_key="k2", remove_on_complete=True)

    assert counts(engine) == {"dlq": 1}
    push(engine, unique_key="k1")
    push(engine, unique_key="k2")
    check(engine)


def test_a_key_belongs_to_its_queue(engine: Engine) -> None:
    push(engine, queue="q", unique_key="k1")
    push(engine, queue="other", unique_key="k1")

    check(engine, "q", "other")


def test_removing_a_former_holder_leaves_the_key_to_its_new_holder(engine: Engine) -> None:
    bring_to(engine, State.DLQ, unique_key="k1")
    push(engine, unique_key="k1")

    assert engine.purge("q", State.DLQ, None, NOW) == 1
    check(engine)
    with pytest.raises(DuplicateKey):
        push(engine, unique_key="k1")


@pytest.mark.parametrize("state", [State.DLQ, State.CANCELLED])
def test_a_requeue_takes_the_key_again(engine: Engine, state: State) -> None:
    job_id = bring_to(engine, state, unique_key="k1")
    engine.requeue(job_id, NOW)

    with pytest.raises(DuplicateKey) as refused:
        push(engine, unique_key="k1")
    assert refused.value.job_id == job_id
    check(engine)


def test_a_requeue_of_a_job_whose_key_is_held_is_refused(engine: Engine) -> None:
    job_id = bring_to(engine, State.DLQ, unique_key="k1")
    holder = push(engine, unique_key="k1")
    before = engine.get(job_id), counters(engine)

    with pytest.raises(DuplicateKey, match=f"requeue job {job_id}") as refused:
        engine.requeue(job_id, NOW)
    assert refused.value.job_id == holder
    assert "on_conflict" not in str(refused.value)
    assert (engine.get(job_id), counters(engine)) == before


def test_requeue_all_leaves_the_jobs_whose_key_is_held(engine: Engine) -> None:
    left = bring_to(engine, State.DLQ, unique_key="k1")
    first, second = (bring_to(engine, State.DLQ, unique_key="k2") for _ in range(2))
    plain = bring_to(engine, State.DLQ)
    push(engine, unique_key="k1")

    assert engine.requeue_all("q", NOW) == 2
    assert engine.get(left).state is State.DLQ
    assert engine.get(plain).state is State.WAITING
    assert Counter([engine.get(first).state, engine.get(second).state]) == {State.WAITING: 1, State.DLQ: 1}
    check(engine)


def test_on_conflict_return_gives_the_holder_and_stores_nothing(engine: Engine) -> None:
    holder = push(engine, unique_key="k1")
    before = counters(engine)
    wanted, job_id = pushing(unique_key="k1")

    assert engine.push([(msgspec.structs.replace(wanted, return_holder=True), job_id)], NOW) == [holder]
    assert counters(engine) == before


def test_a_key_twice_in_one_push_is_a_duplicate_and_nothing_is_stored(engine: Engine) -> None:
    with pytest.raises(DuplicateKey):
        engine.push([pushing(), pushing(unique_key="k1"), pushing(unique_key="k1")], NOW)

    assert engine.store.queues() == []
    assert engine.store.entry("unique/q/k1") is None


def test_a_key_twice_in_one_push_may_give_the_first_of_them(engine: Engine) -> None:
    pushes = [pushing(unique_key="k1"), pushing(), pushing(unique_key="k1")]
    first, other, again = engine.push(
        [(msgspec.structs.replace(each, return_holder=True), job_id) for each, job_id in pushes], NOW
    )

    assert (first, other, again) == (pushes[0][1], pushes[1][1], pushes[0][1])
    assert counts(engine) == {"waiting": 2}


# All or nothing.


def test_a_push_of_many_that_fails_stores_none(engine: Engine) -> None:
    push(engine, unique_key="k1")
    before = counters(engine)

    with pytest.raises(DuplicateKey):
        engine.push([pushing(ttl=5.0), pushing(data="x" * 10_000), pushing(unique_key="k1")], NOW)
    assert counters(engine) == before
    check(engine)


# Purge, retention, requeue.


def test_a_purge_by_age_takes_what_finished_by_then(engine: Engine) -> None:
    old, young = push(engine), push(engine)
    engine.cancel(old, NOW)
    engine.cancel(young, NOW + 1)

    assert engine.purge("q", State.CANCELLED, NOW - 1, NOW + 9) == 0
    assert engine.purge("q", State.CANCELLED, NOW, NOW + 9) == 1
    assert engine.get(young).state is State.CANCELLED
    with pytest.raises(JobNotFound):
        engine.get(old)
    check(engine)


def test_a_purge_takes_1200_jobs_in_transactions_of_at_most_500(engine: Engine) -> None:
    engine.push([pushing(data="x" * 5_000) for _ in range(1_200)], NOW)
    engine.finish([Ending(job, Event.ACK) for job in pull(engine, at_most=1_200)], None, NOW)
    sizes: list[int] = []
    engine.store.listener = lambda changes: sizes.append(len(changes))

    assert engine.purge("q", State.COMPLETED, None, NOW) == 1_200
    assert sizes == [500, 500, 200]
    assert counts(engine) == {}


def test_what_a_clock_gone_back_put_into_the_future_is_purged_and_requeued_too(engine: Engine) -> None:
    engine.cancel(push(engine), NOW)
    bring_to(engine, State.DLQ)

    assert engine.purge("q", State.CANCELLED, None, NOW - 3_600_000) == 1
    assert engine.requeue_all("q", NOW - 3_600_000) == 1
    check(engine)


def test_requeue_all_takes_each_job_once_though_it_fails_again_meanwhile(engine: Engine) -> None:
    engine.push([pushing(max_attempts=1) for _ in range(700)], NOW)
    engine.finish([Ending(job, Event.FAIL, error="boom") for job in pull(engine, at_most=700)], None, NOW)

    def busy_worker() -> None:
        engine.deliver = lambda: None
        engine.finish([Ending(job, Event.FAIL, error="boom") for job in pull(engine, NOW + 5, 500)], None, NOW + 5)
        engine.deliver = busy_worker

    engine.deliver = busy_worker

    assert engine.requeue_all("q", NOW) == 700
    assert counts(engine) == {"dlq": 700}
    check(engine)


# Pauses.


def test_a_paused_queue_gives_no_jobs_and_takes_them(engine: Engine) -> None:
    push(engine)
    engine.pause("q")
    push(engine)
    push(engine, queue="other")

    assert pull(engine, at_most=9) == []
    assert not engine.has_due(["q"], NOW)
    assert [job.queue for job in engine.pull(pulling("q", "other", at_most=9), NOW)] == ["other"]
    assert engine.paused() == ["q"]
    engine.resume("q")
    assert len(pull(engine, at_most=9)) == 2
    assert engine.paused() == []


def test_a_pause_of_a_queue_leaves_the_ones_named_alike(engine: Engine) -> None:
    push(engine, queue="q2")
    engine.pause("q")

    assert len(engine.pull(pulling("q2"), NOW)) == 1


# Numbers.


def test_the_counters_are_what_happened(engine: Engine) -> None:
    for _ in range(9):
        push(engine, max_attempts=2, timeout=900.0, backoff_delay=0.0)
    one, two, three, four, five = pull(engine, at_most=5)
    engine.end(Ending(one, Event.ACK), NOW)
    engine.end(Ending(two, Event.FAIL, error="boom"), NOW)
    engine.end(Ending(three, Event.TIME_OUT), NOW)
    engine.end(Ending(four, Event.SNOOZE, delay=60.0), NOW)
    engine.end(Ending(five, Event.RELEASE), NOW)
    six = pull_one(engine)
    assert six.id == two.id
    engine.recover("q", NOW + 60_000, NOW)
    engine.requeue(two.id, NOW)
    engine.cancel(two.id, NOW)
    engine.purge("q", State.CANCELLED, None, NOW)
    push(engine, ttl=1.0)
    engine.expire("q", NOW + 5_000)

    totals = {name: count for name, count in counters(engine).items() if name.endswith("_total")}
    assert {name: count for name, count in totals.items() if "_ms_" not in name} == {
        "pushed_total": 10,
        "completed_total": 1,
        "failed_total": 1,
        "timed_out_total": 1,
        "stalled_total": 1,
        "retried_total": 2,
        "dead_lettered_total": 2,
        "released_total": 1,
        "snoozed_total": 1,
        "requeued_total": 1,
        "cancelled_total": 1,
        "purged_total": 1,
        "expired_total": 1,
    }
    check(engine)


@pytest.mark.parametrize(("waited_ms", "bound"), [(0, "0.001"), (1, "0.001"), (2, "0.005"), (60_000, "60"), (60_001, "300"), (10**9, "+Inf")])  # fmt: skip # noqa: E501
def test_a_wait_falls_into_the_bucket_that_holds_it(engine: Engine, waited_ms: int, bound: str) -> None:
    push(engine)
    pull_one(engine, NOW + waited_ms)

    read = Metrics(engine).refresh(NOW)["queues"]["q"]["wait"]
    bounds = list(read["buckets"])
    assert bounds == [f"{each:g}" for each in BUCKETS] + ["+Inf"]
    assert [read["buckets"][each] for each in bounds] == [
        int(bounds.index(each) >= bounds.index(bound)) for each in bounds
    ]
    assert (read["count"], read["sum_seconds"]) == (1, waited_ms / 1000)


@pytest.mark.parametrize("is_promoted_by_housekeeping", [False, True])
def test_the_wait_of_a_delayed_job_counts_from_when_it_was_due(
    engine: Engine, is_promoted_by_housekeeping: bool
) -> None:
    push(engine, delay=10.0)
    if is_promoted_by_housekeeping:
        engine.promote("q", NOW + 12_000)
        assert engine.oldest_waiting_at("q") == NOW + 10_000
    pull_one(engine, NOW + 15_000)

    assert counters(engine)["wait_ms_total"] == 5_000


def test_the_wait_of_a_released_job_counts_from_its_release(engine: Engine) -> None:
    push(engine, delay=10.0)
    engine.end(Ending(pull_one(engine, NOW + 10_000), Event.RELEASE), NOW + 50_000)
    pull_one(engine, NOW + 50_700)

    assert counters(engine)["wait_ms_total"] == 700


def test_a_run_is_measured_from_its_pull_to_its_end(engine: Engine) -> None:
    push(engine, backoff_delay=0.0)
    engine.end(Ending(pull_one(engine), Event.FAIL, error="boom"), NOW + 400)
    engine.end(Ending(pull_one(engine, NOW + 9_000), Event.ACK), NOW + 9_030)

    read = Metrics(engine).refresh(NOW)["queues"]["q"]["run"]
    assert (read["count"], read["sum_seconds"]) == (2, 0.43)
    assert (read["buckets"]["0.05"], read["buckets"]["0.5"]) == (1, 2)


def test_a_clock_that_went_back_makes_no_negative_duration(engine: Engine) -> None:
    push(engine)
    engine.end(Ending(pull_one(engine, NOW - 5_000), Event.ACK), NOW - 60_000)

    assert "wait_ms_total" not in counters(engine)
    assert "run_ms_total" not in counters(engine)


def test_virtual_time_may_start_at_0(engine: Engine) -> None:
    push(engine, now=0, timeout=900.0)
    job = pull_one(engine, 0)
    engine.end(Ending(job, Event.ACK), 250)

    assert counters(engine)["run_ms_total"] == 250
    assert engine.get(job.id).history[0].started_at == 0


def test_the_oldest_waiting_job_is_the_oldest_head_of_all_priorities(engine: Engine) -> None:
    assert engine.oldest_waiting_at("q") is None
    for age, priority in ((50, 0), (40, 0), (90, -5), (10, 7)):
        push(engine, now=NOW - age, priority=priority)

    assert engine.oldest_waiting_at("q") == NOW - 90


def test_jobs_that_come_back_to_the_head_of_the_line_hide_no_backlog(engine: Engine) -> None:
    engine.push([pushing(backoff_delay=0.0) for _ in range(30)], NOW - 5_000)
    delayed = push(engine, NOW - 5_000, delay=4.0)
    push(engine, NOW - 3_000)
    push(engine, NOW - 2_000)
    jobs = pull(engine, NOW - 4_000, at_most=30)
    engine.finish([Ending(job, Event.FAIL, error="boom") for job in jobs], None, NOW)
    engine.promote("q", NOW)
    assert engine.get(delayed).delay_until == NOW - 1_000

    assert engine.oldest_waiting_at("q") == NOW - 3_000


def test_more_jobs_that_came_back_than_one_look_reads_hide_the_oldest_for_a_few_looks_only(engine: Engine) -> None:
    many = 3 * MAX_LOOKS
    engine.push([pushing(backoff_delay=0.0) for _ in range(many)], NOW - 9_000)
    oldest = push(engine, NOW - 5_000)
    jobs = [job for _ in range(many // 500) for job in pull(engine, NOW - 4_000, at_most=500)]
    for job in jobs:
        engine.end(Ending(job, Event.RELEASE), NOW - 100)

    seen = [engine.oldest_waiting_at("q") for _ in range(12)]

    assert seen[0] == NOW - 100
    found_after = seen.index(NOW - 5_000)
    assert found_after <= 4
    assert set(seen[found_after:]) == {NOW - 5_000}, "and it stays found"
    engine.cancel(oldest, NOW)
    assert engine.oldest_waiting_at("q") == NOW - 100, "never one that does not wait"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3), st.integers(-1, 1)), max_size=60), st.integers(0, 60))
def test_the_oldest_waiting_job_is_that_of_a_full_look(jobs: list[tuple[int, int, int]], pulled: int) -> None:
    engine, now = Engine(MemoryStore(), lambda *key: 0.5), NOW
    for passed, delay, priority in jobs:
        now += passed
        push(engine, now, delay=delay / 100, priority=priority, backoff_delay=0.0)
    held = pull(engine, now + 7, pulled) if pulled else []
    engine.finish([Ending(job, Event.FAIL, error="boom") for job in held[::2]], None, now + 9)
    engine.promote("q", now + 20)

    waiting = engine.jobs(["q"], [State.WAITING], None, None, 1_000)
    since = [job.updated_at if job.delay_until is None else job.delay_until for job in waiting]
    assert engine.oldest_waiting_at("q") == min(since, default=None)


def test_every_total_of_the_engine_is_shown_by_the_metrics(engine: Engine) -> None:
    push(engine)
    read = Metrics(engine).refresh(NOW)["queues"]["q"]

    for total in TOTALS.values():
        assert total.removesuffix("_total") in read


# News.


def test_a_commit_tells_what_it_changed_and_a_failed_one_nothing(engine: Engine) -> None:
    told: list[tuple[Event, str]] = []
    engine.store.listener = lambda changes: told.extend((change[0], change[1].id) for change in changes)
    job_id = push(engine, unique_key="k1")
    with pytest.raises(DuplicateKey):
        engine.push([pushing(), pushing(unique_key="k1")], NOW)
    engine.cancel(job_id, NOW)

    assert told == [(Event.PUSH, job_id), (Event.CANCEL, job_id)]


# Whatever happens.

OPERATIONS: dict[str, Callable[[Engine, list[Job], random.Random, int], Any]] = {}


def operation(function: Callable[[Engine, list[Job], random.Random, int], Any]) -> None:
    OPERATIONS[function.__name__] = function


@operation
def push_some(engine: Engine, held: list[Job], rng: random.Random, now: int) -> None:
    pushes = [
        pushing(
            delay=rng.choice([0.0, 0.0, 5.0]),
            ttl=rng.choice([None, None, 3.0]),
            priority=rng.choice([-1, 0, 1]),
            max_attempts=rng.choice([1, 2]),
            backoff_delay=rng.choice([0.0, 5.0]),
            unique_key=rng.choice([None, None, "k1", "k2"]),
            remove_on_complete=rng.random() < 0.3,
            timeout=rng.choice([None, 10.0]),
            data="x" * rng.choice([1, 5_000]),
        )
        for _ in range(rng.choice([1, 3]))
    ]
    engine.push(pushes, now)


@operation
def pull_some(engine: Engine, held: list[Job], rng: random.Random, now: int) -> None:
    held += pull(engine, now, at_most=rng.choice([1, 2, 5]))


@operation
def end_one(engine: Engine, held: list[Job], rng: random.Random, now: int) -> None:
    if held:
        event = rng.choice([Event.ACK, Event.FAIL, Event.RELEASE, Event.SNOOZE])
        job = held[rng.randrange(len(held))]  # it stays: later ends of it are stale
        engine.end(Ending(job, event, delay=5.0, final=event is Event.FAIL and rng.random() < 0.3), now)


@operation
def finish_some(engine: Engine, held: list[Job], rng: random.Random, now: int) -> None:
    endings = [Ending(job, Event.ACK) for job in rng.sample(held, min(len(held), 2))]
    held += engine.finish(endings, pulling(at_most=2), now)[1]


@operation
def beat(engine: Engine, held: list[Job], rng: random.Random, now: int) -> None:
    engine.heartbeat(held, now)


@operation
def keep_house(engine: Engine, held: list[Job], rng: random.Random, now: int) -> None:
    engine.promote("q", now)
    engine.recover("q", now, now)
    engine.expire("q", now)
    engine.shorten("q", now)


def any_job(engine: Engine, rng: random.Random) -> str:
    jobs = engine.jobs(["q"], LISTED, None, None, 1_000)
    return rng.choice(jobs).id if jobs else ids.draw(NOW)


@operation
def cancel_one(engine: Engine, held: list[Job], rng: random.Random, now: int) -> None:
    engine.cancel(any_job(engine, rng), now)


@operation
def requeue_one(engine: Engine, held: list[Job], rng: random.Random, now: int) -> None:
    engine.requeue(any_job(engine, rng), now)


@operation
def requeue_or_purge(engine: Engine, held: list[Job], rng: random.Random, now: int) -> None:
    if rng.random() < 0.7:
        engine.requeue_all("q", now)
    else:
        engine.purge("q", rng.choice([State.COMPLETED, State.DLQ, State.CANCELLED]), None, now)


def run_program(engine: Engine, names: Sequence[str], seed: int) -> None:
    rng, held, now = random.Random(seed), [], NOW
    deliveries: Counter[str] = Counter()
    for name in names:
        now += rng.choice([0, 1, 1_000, 7_000, -2_000])
        with suppress(DuplicateKey, LeaseLost, InvalidState, JobNotFound):
            OPERATIONS[name](engine, held, rng, now)
        check(engine)
        for job in engine.jobs(["q"], LISTED, None, None, 1_000):
            assert job.deliveries >= deliveries[job.id]
            assert len(job.data) in (1, 5_000)
            deliveries[job.id] = job.deliveries


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=15, max_size=60), st.integers(0, 2**32))
def test_counters_and_keys_equal_a_recount_after_any_program(names: list[str], seed: int) -> None:
    run_program(Engine(MemoryStore(), lambda *key: 0.5), names, seed)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=30, max_size=60), st.integers(0, 2**32))
def test_counters_and_keys_equal_a_recount_on_every_store(engine: Engine, names: list[str], seed: int) -> None:
    engine.purge("q", State.DLQ, None, NOW)  # the store is that of the example before: that is one more program
    run_program(engine, names, seed)
