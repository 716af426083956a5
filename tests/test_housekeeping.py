"""Housekeeping, driven by hand: each duty, their isolation, the late tick, clocks that jump, several at once."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import StubbornStore

import rqlab
from rqlab import housekeeping, lifecycle, schedule
from rqlab.engine import Ending, Engine, Pull, Push
from rqlab.errors import StoreBusy, StoreCorrupt
from rqlab.housekeeping import DUTIES, Housekeeper, Judgement, Retention
from rqlab.ids import Ids
from rqlab.job import NULL, Job, State
from rqlab.lifecycle import Event
from rqlab.metrics import Metrics
from rqlab.storage.disk import DiskStore

NOW = 1_767_225_600_000  # 2026-01-01 00:00:00 UTC
STALL = 30.0  # seconds; late is more than 15, a heartbeat interval is 10
SECOND, DAY = 1_000, 86_400_000

_ids = Ids(lambda bits: 0)


@pytest.fixture
def mode() -> str:
    return "stubborn"


@pytest.fixture
def keeper(engine: Engine) -> Housekeeper:
    return new_keeper(engine)


def new_keeper(
    engine: Engine, retention: Retention | None = None, refresh: Callable[[int], object] = lambda now: None
) -> Housekeeper:
    return Housekeeper(
        engine,
        lambda stored, tick, now: (Push(Job(id="", queue=stored.queue, name=stored.job_name)), _ids.draw(now)),
        stall_timeout=STALL,
        tick_interval=1.0,
        retention=lambda: retention or Retention(),
        refresh=refresh,
    )


def push(engine: Engine, queue: str = "q", *, delay: float = 0.0, now: int = NOW, **fields: Any) -> str:
    return engine.push([(Push(Job(id="", queue=queue, name="work", **fields), delay), _ids.draw(now))], now)[0]


def pull(engine: Engine, queue: str = "q", now: int = NOW, count: int = 1, stall: float = STALL) -> list[Job]:
    return engine.pull(Pull((queue,), count, "w1", stall), now)


def put_schedule(engine: Engine, **when: Any) -> None:
    new = schedule.new(name="s", queue="scheduled", job_name="tick", options=NULL, now=NOW, **when)
    engine.put_schedule(new, lambda stored: False)


# Each duty.


def test_a_delayed_job_waits_from_the_tick_at_which_it_is_due(engine: Engine, keeper: Housekeeper) -> None:
    job_id = push(engine, delay=5)

    keeper.step(NOW + 4_999)
    assert engine.get(job_id).state is State.DELAYED
    keeper.step(NOW + 5_000)

    assert engine.get(job_id).state is State.WAITING


def test_a_run_without_heartbeats_is_recovered_when_its_lease_ends(engine: Engine, keeper: Housekeeper) -> None:
    job_id = push(engine)
    pull(engine)

    for second in range(30):
        keeper.step(NOW + second * SECOND)
    assert engine.get(job_id).state is State.ACTIVE
    keeper.step(NOW + 30 * SECOND)

    job = engine.get(job_id)
    assert (job.state, job.attempt, job.deliveries) == (State.DELAYED, 1, 1)
    assert job.last_error == "stalled: no heartbeat from w1 for 30.0 s"


def test_a_run_past_its_timeout_is_timed_out_though_its_lease_holds(engine: Engine, keeper: Housekeeper) -> None:
    job_id = push(engine, timeout=12.5)
    (held,) = pull(engine)

    for second in range(13):
        engine.heartbeat([held], NOW + second * SECOND)
        keeper.step(NOW + second * SECOND)
    assert engine.get(job_id).state is State.ACTIVE
    keeper.step(NOW + 12_500)

    job = engine.get(job_id)
    assert (job.state, job.attempt, job.last_error) == (State.DELAYED, 1, "timed out after 12.5 s")


def test_a_stall_on_the_last_attempt_goes_to_the_dead_letter_queue(engine: Engine, keeper: Housekeeper) -> None:
    job_id = push(engine, max_attempts=1)
    pull(engine)

    keeper.step(NOW + 31 * SECOND)

    job = engine.get(job_id)
    assert (job.state, job.attempt) == (State.DLQ, 1)
    assert (job.last_error or "").startswith("stalled: no heartbeat from w1 for 31.0 s")


def test_a_retry_whose_backoff_is_longer_than_a_lease_is_not_recovered_at_its_next_run(
    engine: Engine, keeper: Housekeeper
) -> None:
    job_id = push(engine, backoff_delay=100.0)
    (held,) = pull(engine)
    for beat in range(5):
        engine.heartbeat([held], NOW + beat * 10 * SECOND)
    keeper.step(NOW + 70 * SECOND)
    assert engine.get(job_id).state is State.DELAYED

    (again,) = pull(engine, now=NOW + 170 * SECOND)
    for tick in range(29):
        keeper.step(NOW + (170 + tick) * SECOND)

    assert engine.get(job_id) == again


def test_a_job_that_did_not_start_within_its_ttl_expires(engine: Engine, keeper: Housekeeper) -> None:
    waiting, delayed, running = push(engine, ttl=5.0), push(engine, ttl=5.0, delay=2), push(engine, "other", ttl=5.0)
    pull(engine, "other")

    keeper.step(NOW + 4_999)
    assert engine.get(waiting).state is State.WAITING
    keeper.step(NOW + 5_000)
    assert (engine.get(waiting).state, engine.get(waiting).last_error) == (State.DLQ, "expired")
    assert engine.get(delayed).state is State.WAITING, "its ttl counts from when it was first due"
    keeper.step(NOW + 7_000)

    assert engine.get(delayed).state is State.DLQ
    assert engine.get(running).state is State.ACTIVE, "it has started"


def test_each_tick_refreshes_the_gauges(engine: Engine) -> None:
    at: list[int] = []
    keeper = new_keeper(engine, refresh=at.append)

    keeper.step(NOW)
    keeper.step(NOW + SECOND)

    assert at == [NOW, NOW + SECOND]


def test_finished_jobs_are_removed_when_retention_no_longer_keeps_them(engine: Engine) -> None:
    completed, dead, cancelled = push(engine), push(engine, max_attempts=1), push(engine)
    engine.finish([_ending(held, index) for index, held in enumerate(pull(engine, count=2))], None, NOW)
    engine.cancel(cancelled, NOW)
    keeper = new_keeper(engine, Retention(completed=10.0, cancelled=None, dlq=100.0))

    def there() -> list[bool]:
        return [engine.store.get(job_id) is not None for job_id in (completed, dead, cancelled)]

    keeper.step(NOW + 9_999)
    assert there() == [True, True, True]
    keeper.step(NOW + 9_999 + 60 * SECOND)
    assert there() == [False, True, True]
    keeper.step(NOW + 9_999 + 120 * SECOND)
    assert there() == [False, False, True]
    keeper.step(NOW + 100 * 365 * DAY)
    assert there() == [False, False, True], "None keeps for ever"


def test_finished_jobs_are_looked_for_once_a_minute(engine: Engine) -> None:
    swept_at: list[int] = []
    keeper = new_keeper(engine)
    now = NOW

    def retention() -> Retention:
        swept_at.append(now)
        return Retention()

    keeper.retention = retention
    for second in range(181):
        now = NOW + second * SECOND
        keeper.step(now)

    assert swept_at == [NOW, NOW + 60 * SECOND, NOW + 120 * SECOND, NOW + 180 * SECOND]


def test_a_tick_says_when_the_next_is_due(keeper: Housekeeper) -> None:
    assert keeper.step(NOW) == NOW + SECOND


def test_a_tick_with_nothing_to_do_writes_nothing(engine: Engine, store: StubbornStore, keeper: Housekeeper) -> None:
    for_later, running = push(engine, delay=3600), push(engine, "other")
    pull(engine, "other")
    put_schedule(engine, every=3600)
    before = store.commits

    for second in range(29):
        keeper.step(NOW + second * SECOND)

    assert store.commits == before
    assert (engine.get(for_later).state, engine.get(running).state) == (State.DELAYED, State.ACTIVE)


def test_a_tick_looks_into_no_queue_that_has_nothing_for_it(engine: Engine, store: StubbornStore) -> None:
    """Of many queues most are idle: the looks of a tick are as many as there are queues with something live."""
    for number in range(100):
        push(engine, f"idle-{number}")
        (job,) = pull(engine, f"idle-{number}")
        engine.end(Ending(job, Event.ACK), NOW)
    for queue in ("delayed", "waiting"):
        push(engine, queue, delay=3_600 if queue == "delayed" else 0)
    metrics = Metrics(engine)
    keeper = new_keeper(engine, refresh=metrics.refresh)
    keeper.step(NOW)
    looks: Counter[str] = Counter()
    for name in ("get", "first", "scan", "entries", "counters"):
        look = getattr(store, name)
        setattr(
            store, name, lambda *given, name=name, look=look, **options: looks.update([name]) or look(*given, **options)
        )

    keeper.step(NOW + SECOND)

    assert looks.total() < 10, looks
    read = metrics.latest["queues"] if metrics.latest else {}
    assert (len(read), read["waiting"]["oldest_waiting_seconds"]) == (102, 1.0)


@pytest.mark.parametrize("count", [499, 500, 501, 1_700])
def test_more_jobs_than_a_transaction_may_move_are_all_moved_in_one_tick(
    engine: Engine, store: StubbornStore, keeper: Housekeeper, count: int
) -> None:
    def push_many(**fields: Any) -> None:
        delay = fields.pop("delay", 0.0)
        made = [(Push(Job(id="", name="work", **fields), delay), _ids.draw(NOW)) for _ in range(count)]
        engine.push(made, NOW)

    push_many(queue="due", delay=1.0)
    push_many(queue="stalled")
    while pull(engine, "stalled", count=1000):
        pass
    push_many(queue="expired", ttl=1.0)
    push_many(queue="gone")
    engine.store.write(lambda tx: [_cancelled(tx, job) for job in tx.scan("ready/gone/", "ready/gone/~", 5_000)])
    keeper.retention = lambda: Retention(cancelled=1.0)
    before = store.commits

    keeper.step(NOW + 40 * SECOND)

    assert engine.counts(["due"]).waiting == count
    assert engine.counts(["stalled"]).delayed == count
    assert engine.counts(["expired"]).dlq == count
    assert engine.counts(["gone"]).total == 0
    assert store.commits - before >= 4 * (count / 500)


def test_a_schedule_that_owes_more_ticks_than_a_transaction_may_push_gets_all(
    engine: Engine, store: StubbornStore, keeper: Housekeeper
) -> None:
    put_schedule(engine, every=1, catch_up="all")
    before = store.commits

    keeper.step(NOW + 1_700 * SECOND)

    assert engine.counts(["scheduled"]).waiting == 1_700
    assert store.commits - before == 4, "of at most 500 each: others wait for the lock meanwhile"


# Isolation.


@pytest.mark.parametrize("broken", range(len(DUTIES)), ids=[name for name, _ in DUTIES])
@pytest.mark.parametrize("error", [StoreBusy("busy"), ZeroDivisionError("a bug")], ids=["StoreBusy", "a bug"])
def test_the_error_of_one_duty_keeps_no_other_from_its_work(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, broken: int, error: Exception
) -> None:
    def fail(keeper: Housekeeper, now: int, judged_until: int) -> None:
        raise error

    rows = [(name, fail if index == broken else duty) for index, (name, duty) in enumerate(DUTIES)]
    monkeypatch.setattr(housekeeping, "DUTIES", rows)
    refreshed: list[int] = []
    keeper = new_keeper(engine, Retention(cancelled=1.0), refreshed.append)
    due = push(engine, "due", delay=1)
    put_schedule(engine, every=1)
    long_lease = push(engine, "ahead")
    pull(engine, "ahead", now=NOW + 10 * DAY)
    stalled = push(engine, "stalled")
    pull(engine, "stalled")
    expired = push(engine, "expired", ttl=1.0)
    gone = push(engine, "gone")
    engine.cancel(gone, NOW)
    now = NOW + 40 * SECOND

    keeper.step(now)

    done = [
        engine.get(due).state is State.WAITING,
        engine.counts(["scheduled"]).waiting == 1,
        engine.get(long_lease).lease_until == now + 30 * SECOND,
        engine.get(stalled).attempt == 1,
        engine.get(expired).state is State.DLQ,
        refreshed == [now],
        engine.store.get(gone) is None,
    ]
    assert done == [index != broken for index in range(len(DUTIES))]
    assert keeper.errors == 1


def test_a_damaged_queue_does_not_hold_up_the_queues_behind_it(
    engine: Engine, store: StubbornStore, keeper: Housekeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged, sound = push(engine, "a", delay=1), push(engine, "b", delay=1)
    promote = engine.promote

    def promote_but_a(queue: str, now: int) -> bool:
        if queue == "a":
            raise StoreCorrupt("expected a record that rqlab wrote")
        return promote(queue, now)

    monkeypatch.setattr(engine, "promote", promote_but_a)
    keeper.step(NOW + 2 * SECOND)

    assert (engine.get(damaged).state, engine.get(sound).state) == (State.DELAYED, State.WAITING)
    assert keeper.errors == 1


def test_a_sweep_that_failed_is_tried_again_at_the_next_tick(engine: Engine, store: StubbornStore) -> None:
    keeper = new_keeper(engine, Retention(cancelled=1.0))
    job_id = push(engine)
    engine.cancel(job_id, NOW)
    store.refusals = [StoreBusy("busy")]

    keeper.step(NOW + 10 * SECOND)
    assert store.get(job_id) is not None
    keeper.step(NOW + 11 * SECOND)

    assert store.get(job_id) is None


def test_leases_that_could_not_be_cut_are_cut_at_the_next_tick(
    engine: Engine, store: StubbornStore, keeper: Housekeeper
) -> None:
    job_id = push(engine)
    pull(engine, now=NOW + DAY)
    store.refusals = [StoreBusy("busy")]

    keeper.step(NOW)
    assert engine.get(job_id).lease_until == NOW + DAY + 30 * SECOND
    keeper.step(NOW + SECOND)

    assert engine.get(job_id).lease_until == NOW + 31 * SECOND


# The late tick.


def test_a_late_tick_gives_leases_and_timeouts_one_more_heartbeat_interval(engine: Engine, keeper: Housekeeper) -> None:
    silent, slow = push(engine, "silent"), push(engine, "slow", timeout=20.0)
    pull(engine, "silent")
    pull(engine, "slow")
    keeper.step(NOW)
    woke_at = NOW + 120 * SECOND

    for second in range(10):
        keeper.step(woke_at + second * SECOND)
        assert [engine.get(job_id).state for job_id in (silent, slow)] == [State.ACTIVE] * 2
    keeper.step(woke_at + 10 * SECOND)

    assert [engine.get(job_id).attempt for job_id in (silent, slow)] == [1, 1]


def test_a_worker_that_woke_with_its_machine_keeps_its_job(engine: Engine, keeper: Housekeeper) -> None:
    job_id = push(engine)
    (held,) = pull(engine)
    keeper.step(NOW)
    woke_at = NOW + 3600 * SECOND

    keeper.step(woke_at)
    engine.heartbeat([held], woke_at + 1)
    for second in range(1, 25):
        keeper.step(woke_at + second * SECOND)

    assert engine.get(job_id).state is State.ACTIVE


@pytest.mark.parametrize(("late_ms", "is_late"), [(15_000, False), (15_001, True)])
def test_a_tick_is_late_when_it_is_more_than_half_a_stall_timeout_behind_its_time(
    engine: Engine, keeper: Housekeeper, late_ms: int, is_late: bool
) -> None:
    job_id = push(engine)
    pull(engine, now=NOW - 29 * SECOND)
    keeper.step(NOW)

    keeper.step(NOW + SECOND + late_ms)

    assert engine.get(job_id).state is (State.ACTIVE if is_late else State.DELAYED)


def test_the_first_tick_is_never_late(engine: Engine) -> None:
    job_id = push(engine)
    pull(engine)

    new_keeper(engine).step(NOW + 3600 * SECOND)

    assert engine.get(job_id).attempt == 1


def test_ticks_that_are_always_late_do_not_put_a_recovery_off_for_ever(engine: Engine, keeper: Housekeeper) -> None:
    job_id = push(engine)
    pull(engine)
    keeper.step(NOW)

    keeper.step(NOW + 40 * SECOND)  # late: forgiven, once
    assert engine.get(job_id).state is State.ACTIVE
    keeper.step(NOW + 80 * SECOND)  # late again: but it was past due 40 s ago already

    assert engine.get(job_id).attempt == 1


def test_what_falls_due_after_the_first_of_two_late_ticks_is_forgiven_by_the_second(
    engine: Engine, keeper: Housekeeper
) -> None:
    job_id = push(engine)
    keeper.step(NOW)
    pull(engine, now=NOW + 20 * SECOND)  # its lease ends at 50
    keeper.step(NOW + 40 * SECOND)

    keeper.step(NOW + 80 * SECOND)
    assert engine.get(job_id).state is State.ACTIVE
    keeper.step(NOW + 120 * SECOND)

    assert engine.get(job_id).attempt == 1


def test_the_rule_of_late_ticks_holds_for_any_row_of_ticks() -> None:
    """Against the rule word for word, which remembers everything."""
    rng = random.Random(8)
    late, grace = 15_000, 10_000
    for _ in range(500):
        judgement = Judgement(30_000)
        ticks: list[int] = []
        late_ticks: list[int] = []
        now, due_at = NOW, None
        for _ in range(40):
            if due_at is not None and now - due_at > late:
                late_ticks.append(now)
            forgiving = any(now < at + grace for at in late_ticks)
            seen = max((at for at in ticks if at <= now - grace), default=0)
            assert judgement.until(now, due_at) == (seen if forgiving else now)
            ticks.append(now)
            due_at = now + 1_000
            now = due_at + rng.choice([0, 3, 999, 2_000, 9_000, 10_001, 15_000, 15_001, 16_000, 40_000])


# Clocks that jump.


def test_a_lease_that_lies_too_far_ahead_is_cut_after_the_wall_clock_went_back(
    engine: Engine, keeper: Housekeeper
) -> None:
    held_here, held_elsewhere = push(engine, "here"), push(engine, "elsewhere")
    keeper.step(NOW)
    pull(engine, "here", now=NOW)
    pull(engine, "elsewhere", now=NOW, stall=300.0)
    back = NOW - 3600 * SECOND

    keeper.step(back)
    assert engine.get(held_here).lease_until == back + 30 * SECOND
    assert engine.get(held_elsewhere).lease_until == back + 300 * SECOND, "its own stall_timeout, not ours"
    for second in range(1, 31):
        keeper.step(back + second * SECOND)

    assert engine.get(held_here).attempt == 1
    assert engine.get(held_elsewhere).attempt == 0


@pytest.mark.parametrize("has_beaten", [False, True])
def test_a_run_that_began_before_the_wall_clock_went_back_still_times_out(
    engine: Engine, keeper: Housekeeper, has_beaten: bool
) -> None:
    """Its time-out counts from the new time. A heartbeat that came first has put the lease right, but not the start."""
    job_id = push(engine, timeout=100.0)
    keeper.step(NOW)
    held = pull(engine, now=NOW)
    back = NOW - 3600 * SECOND
    if has_beaten:
        engine.heartbeat(held, back)

    for second in range(101):
        keeper.step(back + second * SECOND)
        assert engine.get(job_id).attempt == (second == 100)
        if second % 10 == 0 and second < 100:
            engine.heartbeat(held, back + second * SECOND)

    assert engine.get(job_id).last_error == "timed out after 100 s"


def test_a_housekeeper_that_starts_after_the_clock_went_back_cuts_leases_too(engine: Engine) -> None:
    job_id = push(engine)
    pull(engine, now=NOW + DAY)

    new_keeper(engine).step(NOW)

    assert engine.get(job_id).lease_until == NOW + 30 * SECOND


def test_leases_of_other_stall_timeouts_are_left_alone(engine: Engine, keeper: Housekeeper) -> None:
    job_id = push(engine)
    pull(engine, stall=3600.0)

    for second in range(10):
        keeper.step(NOW + second * SECOND)

    assert engine.get(job_id).lease_until == NOW + 3600 * SECOND


def test_what_a_late_tick_forgave_does_not_last_until_the_old_time_is_reached_again(
    engine: Engine, keeper: Housekeeper
) -> None:
    keeper.step(NOW)
    keeper.step(NOW + 60 * SECOND)  # late
    back = NOW - 3600 * SECOND
    job_id = push(engine, now=back)
    pull(engine, now=back)

    for second in range(31):
        keeper.step(back + second * SECOND)

    assert engine.get(job_id).attempt == 1


def test_leases_are_looked_through_only_when_the_clock_may_have_gone_back(
    engine: Engine, keeper: Housekeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(engine)
    pull(engine)
    looks: list[int] = []
    monkeypatch.setattr(engine, "shorten", lambda queue, now: looks.append(now))

    for second in (0, 1, 2, -100, -99, -98):
        keeper.step(NOW + second * SECOND)

    assert looks == [NOW, NOW - 100 * SECOND]


def test_work_goes_on_at_once_after_the_wall_clock_went_back(engine: Engine) -> None:
    keeper = new_keeper(engine, Retention(cancelled=1.0))
    keeper.step(NOW)
    back = NOW - 3600 * SECOND
    delayed, cancelled = push(engine, delay=5, now=back), push(engine, now=back)
    engine.cancel(cancelled, back)

    for second in range(7):
        keeper.step(back + second * SECOND)

    assert engine.get(delayed).state is State.WAITING
    keeper.step(back + 61 * SECOND)
    assert engine.store.get(cancelled) is None, "nor does the sweep wait until the old time is reached again"


# Several at once.


def test_what_one_housekeeper_has_done_another_does_not_do_again(engine: Engine, store: StubbornStore) -> None:
    one, two = new_keeper(engine), new_keeper(engine)
    push(engine, delay=1)
    push(engine, "stalled")
    pull(engine, "stalled")
    put_schedule(engine, every=10)
    one.step(NOW)
    two.step(NOW)

    one.step(NOW + 31 * SECOND)
    commits = store.commits
    two.step(NOW + 31 * SECOND)

    assert store.commits == commits
    assert engine.counts(["scheduled"]).waiting == 1


def test_several_housekeepers_at_the_same_time_do_nothing_twice(tmp_path: Path) -> None:
    stores = [DiskStore(tmp_path) for _ in range(2)]  # as two processes: each with its connection
    engines = [Engine(store, lambda purpose, entity, counter: 0.5) for store in stores]
    for _ in range(60):
        push(engines[0], "due", delay=1)
        push(engines[0], "stalled", max_attempts=50, backoff_delay=0.0)
        push(engines[0], "expired", ttl=1.0)
    pull(engines[0], "stalled", count=60)
    put_schedule(engines[0], every=1, catch_up="all")
    threads = [threading.Thread(target=new_keeper(engine).step, args=(NOW + 40 * SECOND,)) for engine in engines * 3]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert engines[0].counts(["due"]).waiting == 60
    assert engines[0].counts(["expired"]).dlq == 60
    assert engines[0].counts(["scheduled"]).waiting == 40
    stalled = engines[0].jobs(["stalled"], [State.WAITING], None, None, 100)
    assert [job.attempt for job in stalled] == [1] * 60
    assert stores[0].counters("stalled")["stalled_total"] == 60
    for store in stores:
        store.close()


# Through the front door.


@pytest.fixture
def queues() -> Iterator[rqlab.Queues]:
    with rqlab.memory(tick_interval=0.02) as rq:
        yield rq


def keepers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rqlab-housekeeping"]


def test_starting_housekeeping_again_changes_nothing(queues: rqlab.Queues) -> None:
    before = len(keepers())

    for _ in range(3):
        queues.start_housekeeping()
    with queues.worker("q", lambda job: None):
        assert len(keepers()) == before + 1, "a worker starts it, too"

    assert len(keepers()) == before + 1
    queues.close()
    assert len(keepers()) == before


def test_a_tick_by_hand_is_one_pass_over_all_duties(queues: rqlab.Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    now = NOW
    monkeypatch.setattr(rqlab.clock, "now", lambda: now)
    delayed, stalled = queues.push("q", "work", delay=1), queues.push("other", "work", backoff_delay=0)
    queues.pull("other")

    now += 31 * SECOND
    queues.tick()

    assert queues.get(delayed).state is State.WAITING
    assert queues.get(stalled).attempt == 1


def _ending(held: Job, index: int) -> Ending:
    return Ending(held, lifecycle.Event.ACK if index == 0 else lifecycle.Event.FAIL, error="no")


def _cancelled(tx: Any, job: Job) -> None:
    tx.put(lifecycle.cancel(job, NOW), replacing=job)
