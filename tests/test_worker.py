"""A worker, driven by hand: `step(now)` and `beat(now)` over the memory store; runs end when the test says so."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from conftest import StubbornStore, Wall

import rqlab
from rqlab import executors
from rqlab.engine import Engine, Pull, Push
from rqlab.errors import StoreBusy, StoreError, StoreFull
from rqlab.executors import Context, Executor, Finished, Report, Run
from rqlab.executors.inline import InlineExecutor
from rqlab.executors.threads import ThreadExecutor
from rqlab.ids import Ids
from rqlab.job import Job, State
from rqlab.lifecycle import Event
from rqlab.worker import CHECK_MS, POLL_MS, Worker

NOW = 1_767_225_600_000  # 2026-01-01 00:00:00 UTC
STALL = 30.0  # seconds
HEARTBEAT = 10_000  # ms; a third of it

_ids = Ids(lambda bits: 0)


class HandExecutor:
    """Its runs end when the test says so; a stopped run ends at once, as a process does."""

    def __init__(self, concurrency: int = 1) -> None:
        self.concurrency = concurrency
        self.running: list[Run] = []
        self.stopped: list[Run] = []
        self._finished: list[Finished] = []

    def free(self) -> int:
        return self.concurrency - len(self.running)

    def is_over(self) -> bool:
        return False

    def start(self, run: Run) -> None:
        self.running.append(run)

    def end(self, run: Run, report: Report | None = None) -> None:
        self.running.remove(run)
        self._finished.append(Finished(run, report or executors.success(None)))

    def poll(self) -> Sequence[Finished]:
        finished, self._finished = self._finished, []
        return finished

    def stop(self, run: Run) -> None:
        run.is_stopped = True
        self.stopped.append(run)
        if run in self.running:
            self.running.remove(run)

    def close(self) -> None: ...


@pytest.fixture
def mode() -> str:
    return "stubborn"


@pytest.fixture
def hand() -> HandExecutor:
    return HandExecutor()


@pytest.fixture
def worker(engine: Engine, hand: HandExecutor) -> Worker:
    return new_worker(engine, hand)


def new_worker(engine: Engine, executor: Executor, *queues: str) -> Worker:
    return Worker(engine, executor, queues or ("q",), stall_timeout=STALL, name="w1", clock=lambda: NOW)


def push(engine: Engine, queue: str = "q", name: str = "work", *, delay: float = 0.0, **fields: Any) -> str:
    job = Job(id="", queue=queue, name=name, **fields)
    return engine.push([(Push(job, delay), _ids.draw(NOW))], NOW)[0]


def drive(worker: Worker, now: int, until: int) -> int:
    """Call step as often as it asks, up to an instant; that instant."""
    while now <= until:
        again_at = worker.step(now)
        if again_at is None:
            break
        now = max(again_at, now + 1)
    return until


def test_what_a_handler_returns_is_the_jobs_result(engine: Engine) -> None:
    job_id = push(engine)
    worker = new_worker(engine, InlineExecutor(lambda job: {"name": job.name, "delivery": job.deliveries}))

    drive(worker, NOW, NOW + 100)

    done = engine.get(job_id)
    assert (done.state, done.result) == (State.COMPLETED, {"name": "work", "delivery": 1})
    assert worker.outcomes == Counter(completed=1)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(0), KeyboardInterrupt(), GeneratorExit()])
def test_a_worker_fails_the_attempt_on_whatever_a_handler_raises_and_goes_on(
    engine: Engine, error: BaseException
) -> None:
    def handler(job: Job) -> str:
        if job.name == "bad":
            raise error
        return "fine"

    bad, good = push(engine, name="bad"), push(engine, name="good")
    executor = ThreadExecutor(handler, 1, lambda may_step: None, "test")
    worker = new_worker(engine, executor)
    until = time.monotonic() + 20
    while engine.get(good).state is not State.COMPLETED and time.monotonic() < until:
        worker.step(NOW)
        time.sleep(0.001)
    executor.close()

    assert engine.get(good).result == "fine"
    failed = engine.get(bad)
    assert (failed.state, failed.attempt) == (State.DELAYED, 1)
    assert type(error).__name__ in (failed.last_error or "")
    assert "in handler" in (failed.last_error or ""), "the error says where it was raised"


def test_a_keyboard_interrupt_in_a_drain_is_the_callers_own(engine: Engine) -> None:
    def handler(job: Job) -> None:
        raise KeyboardInterrupt

    push(engine)
    with pytest.raises(KeyboardInterrupt):
        new_worker(engine, InlineExecutor(handler)).step(NOW)


def test_the_ack_of_one_job_and_the_pull_of_the_next_are_one_commit(
    engine: Engine, store: StubbornStore, worker: Worker, hand: HandExecutor
) -> None:
    first, second = push(engine), push(engine)
    worker.step(NOW)
    before = store.commits

    hand.end(hand.running[0])
    worker.step(NOW + 5)

    assert store.commits == before + 1
    assert engine.get(first).state is State.COMPLETED
    assert [run.job.id for run in hand.running] == [second]


def test_all_runs_that_ended_since_the_last_step_are_reported_in_one_commit(
    engine: Engine, store: StubbornStore
) -> None:
    hand = HandExecutor(4)
    worker = new_worker(engine, hand)
    ids = [push(engine) for _ in range(8)]
    before = store.commits

    worker.step(NOW)
    assert (store.commits - before, len(hand.running)) == (1, 4)
    for run in list(hand.running):
        hand.end(run)
    worker.step(NOW + 1)

    assert (store.commits - before, len(hand.running)) == (2, 4)
    assert [engine.get(job_id).state for job_id in ids] == [State.COMPLETED] * 4 + [State.ACTIVE] * 4


def test_a_worker_never_has_more_runs_than_its_concurrency(engine: Engine) -> None:
    hand = HandExecutor(3)
    worker = new_worker(engine, hand)
    for _ in range(10):
        push(engine)

    for millisecond in range(0, 2_000, 25):
        worker.step(NOW + millisecond)
        assert len(hand.running) == 3


def test_an_idle_worker_writes_nothing(engine: Engine, store: StubbornStore, worker: Worker) -> None:
    push(engine, delay=3600)
    before = store.commits

    drive(worker, NOW, NOW + 60_000)
    for second in range(0, 60, 10):
        worker.beat(NOW + second * 1000)

    assert store.commits == before


def test_a_delayed_job_starts_when_it_is_due_without_housekeeping(
    engine: Engine, worker: Worker, hand: HandExecutor
) -> None:
    push(engine, delay=5.010)

    drive(worker, NOW, NOW + 5_009)
    assert hand.running == []
    drive(worker, NOW + 5_009, NOW + 5_010 + POLL_MS)

    assert len(hand.running) == 1


def test_an_ack_that_the_store_refuses_is_tried_again_until_it_is_stored(
    engine: Engine, store: StubbornStore, worker: Worker, hand: HandExecutor
) -> None:
    job_id = push(engine)
    worker.step(NOW)
    hand.end(hand.running[0], executors.success("kept"))
    store.refusals = [StoreBusy("busy"), StoreFull("full"), StoreError("input/output error"), StoreBusy("busy")]

    now, pauses = NOW, []
    while store.refusals:
        again_at = worker.step(now)
        assert again_at is not None, "a storage error never ends a worker"
        pauses.append(again_at - now)
        now = again_at
    worker.beat(now)  # the lease is kept as long as the report is not stored
    assert engine.get(job_id).lease_until == now + 30_000
    worker.step(now)

    done = engine.get(job_id)
    assert (done.state, done.result, done.deliveries) == (State.COMPLETED, "kept", 1)
    assert pauses == sorted(pauses), "it backs off"
    assert 10 <= pauses[0] <= pauses[-1] <= 1_000


def test_a_pull_that_the_store_refuses_is_tried_again_soon(
    engine: Engine, store: StubbornStore, worker: Worker, hand: HandExecutor
) -> None:
    drive(worker, NOW, NOW + 10)  # it has looked: nothing is there, and it would look again in a second
    push(engine)
    store.refusals = [StoreBusy("busy")]

    again_at = worker.step(NOW + 20)
    assert hand.running == []
    assert again_at is not None
    worker.step(again_at)

    assert len(hand.running) == 1
    assert again_at <= NOW + 20 + 100


def test_a_job_that_cannot_be_started_fails_and_the_others_start(engine: Engine) -> None:
    class Exhausted(HandExecutor):
        def start(self, run: Run) -> None:
            if run.job.name == "unlucky":
                raise RuntimeError("can't start new thread")
            super().start(run)

    hand = Exhausted(3)
    worker = new_worker(engine, hand)
    names = ["work", "unlucky", "work"]
    ids = [push(engine, name=name) for name in names]

    worker.step(NOW)
    worker.step(NOW + 25)

    assert [run.job.id for run in hand.running] == [ids[0], ids[2]]
    failed = engine.get(ids[1])
    assert (failed.state, failed.attempt) == (State.DELAYED, 1)
    assert "can't start new thread" in (failed.last_error or "")


def test_heartbeats_keep_the_lease(engine: Engine, worker: Worker, hand: HandExecutor) -> None:
    job_id = push(engine)
    worker.step(NOW)

    now = NOW
    for _ in range(10):
        now = worker.beat(now)
        assert now - NOW <= 10 * HEARTBEAT, "a heartbeat every third of a stall_timeout"

    assert engine.get(job_id).lease_until == now - HEARTBEAT + 30_000


def test_heartbeats_that_the_store_refuses_are_tried_again_well_within_the_lease(
    engine: Engine, store: StubbornStore, worker: Worker
) -> None:
    job_id = push(engine)
    worker.step(NOW)
    store.refusals = [StoreBusy("busy"), StoreFull("full"), StoreBusy("busy")]

    now = NOW + HEARTBEAT
    for _ in range(3):
        again_at = worker.beat(now)
        assert 0 < again_at - now <= 3_000
        now = again_at
    assert worker.beat(now) == now + HEARTBEAT

    assert engine.get(job_id).lease_until == now + 30_000


def test_a_run_that_lost_its_lease_is_told_and_its_result_dropped(
    engine: Engine, worker: Worker, hand: HandExecutor
) -> None:
    job_id = push(engine, backoff_delay=0.0)
    worker.step(NOW)
    run = hand.running[0]
    engine.recover("q", NOW + 40_000, NOW + 40_000)  # it froze, and housekeeping elsewhere took its job
    (taken,) = engine.pull(Pull(("q",), 1, "w2", STALL), NOW + 40_000)

    worker.beat(NOW + 40_001)
    assert Context(run).lost
    hand.end(run, executors.success("too late"))
    worker.step(NOW + 40_002)

    stored = engine.get(job_id)
    assert (stored.state, stored.deliveries, stored.worker) == (State.ACTIVE, 2, "w2")
    assert stored == taken
    assert worker.outcomes == Counter(lost=1)
    assert worker.runs == {}


def test_a_result_that_comes_too_late_harms_nothing_even_if_nobody_noticed_before(
    engine: Engine, worker: Worker, hand: HandExecutor
) -> None:
    job_id = push(engine, backoff_delay=0.0)
    worker.step(NOW)
    worker._check_at = NOW + 10**9  # it never looks: the store alone must refuse
    hand.end(hand.running[0], executors.success("too late"))
    engine.recover("q", NOW + 40_000, NOW + 40_000)
    engine.pull(Pull(("q",), 1, "w2", STALL), NOW + 40_000)

    worker.step(NOW + 40_001)

    assert (engine.get(job_id).state, engine.get(job_id).worker) == (State.ACTIVE, "w2")
    assert worker.outcomes == Counter(lost=1)


def test_a_worker_that_pulls_its_lost_job_again_keeps_the_two_runs_apart(engine: Engine) -> None:
    class Deaf(HandExecutor):
        def stop(self, run: Run) -> None:
            run.is_stopped = True  # like a thread: told, and not stopped

    hand = Deaf(2)
    worker = new_worker(engine, hand)
    job_id = push(engine, backoff_delay=0.0)
    worker.step(NOW)
    engine.recover("q", NOW + 40_000, NOW + 40_000)
    worker.step(NOW + 40_000)
    worker.step(NOW + 40_025)
    first, second = hand.running
    assert first.job.id == second.job.id == job_id

    hand.end(first, executors.success("of the first run"))
    worker.step(NOW + 40_050)
    assert engine.get(job_id).state is State.ACTIVE
    hand.end(second, executors.success("of the second run"))
    worker.step(NOW + 40_075)

    assert (engine.get(job_id).result, engine.get(job_id).deliveries) == ("of the second run", 2)


def test_a_cancelled_run_is_told_within_a_tenth_of_a_second(engine: Engine, worker: Worker, hand: HandExecutor) -> None:
    job_id = push(engine)
    worker.step(NOW)
    run = hand.running[0]
    drive(worker, NOW + 1, NOW + 990)
    engine.cancel(job_id, NOW + 1_000)

    drive(worker, NOW + 1_000, NOW + 1_000 + CHECK_MS + POLL_MS)

    assert CHECK_MS + POLL_MS <= 100
    assert Context(run).cancelled
    assert hand.stopped == [run]
    assert engine.get(job_id).state is State.CANCELLED


def test_a_run_past_its_timeout_is_stopped_and_charged(engine: Engine, worker: Worker, hand: HandExecutor) -> None:
    job_id = push(engine, timeout=2.0)
    worker.step(NOW)
    run = hand.running[0]

    drive(worker, NOW, NOW + 1_999)
    assert hand.stopped == []
    drive(worker, NOW + 1_999, NOW + 2_000 + POLL_MS)

    job = engine.get(job_id)
    assert hand.stopped == [run]
    assert Context(run).cancelled
    assert (job.state, job.attempt, job.last_error) == (State.DELAYED, 1, "timed out after 2 s")
    assert worker.outcomes == Counter(timed_out=1)


@pytest.mark.parametrize(("event", "warnings"), [("time_out", 0), ("release", 0), ("ack", 1)])
def test_a_worker_warns_of_a_result_that_comes_too_late_not_of_a_timeout_or_release(
    engine: Engine, worker: Worker, hand: HandExecutor, caplog: pytest.LogCaptureFixture, event: str, warnings: int
) -> None:
    push(engine, timeout=5.0, max_attempts=2)
    worker.step(NOW)
    engine.recover("q", NOW + 5_000, NOW + 5_000)  # housekeeping was quicker
    worker._check_at = NOW + 10**9  # and nobody noticed
    if event == "release":
        worker.release()
    if event == "ack":
        hand.end(hand.running[0])

    worker.step(NOW + (5_001 if event == "time_out" else 4_999))

    late = [record for record in caplog.records if "came too late" in record.message]
    assert len(late) == warnings
    assert worker.outcomes == Counter(lost=1)


def test_a_run_that_ended_before_its_timeout_was_noticed_is_completed(
    engine: Engine, worker: Worker, hand: HandExecutor
) -> None:
    job_id = push(engine, timeout=2.0)
    worker.step(NOW)
    hand.end(hand.running[0])

    worker.step(NOW + 2_010)

    assert engine.get(job_id).state is State.COMPLETED


def test_a_report_that_waits_for_the_store_is_not_timed_out(
    engine: Engine, store: StubbornStore, worker: Worker, hand: HandExecutor
) -> None:
    job_id = push(engine, timeout=2.0)
    worker.step(NOW)
    hand.end(hand.running[0])
    store.refusals = [StoreBusy("busy")]

    worker.step(NOW + 1_990)
    worker.step(NOW + 2_090)

    assert engine.get(job_id).state is State.COMPLETED


def test_a_step_that_comes_late_gives_a_timeout_one_more_heartbeat_interval(
    engine: Engine, worker: Worker, hand: HandExecutor
) -> None:
    push(engine, timeout=60.0)
    worker.step(NOW)
    woke_at = NOW + 100_000  # the machine was suspended

    drive(worker, woke_at, woke_at + HEARTBEAT - 1)
    assert hand.stopped == []
    drive(worker, woke_at + HEARTBEAT, woke_at + HEARTBEAT)

    assert len(hand.stopped) == 1


def test_steps_that_are_late_again_and_again_do_not_put_a_timeout_off_for_ever(
    engine: Engine, worker: Worker, hand: HandExecutor
) -> None:
    push(engine, timeout=60.0)
    worker.step(NOW)

    for late in range(1, 5):  # each 40 s after the last one: 60 s pass at the second, which is forgiven
        worker.step(NOW + late * 40_000)
        assert len(hand.stopped) == (1 if late >= 3 else 0)


def test_an_early_late_step_does_not_use_up_what_a_timeout_is_forgiven(
    engine: Engine, worker: Worker, hand: HandExecutor
) -> None:
    push(engine, timeout=3600.0)
    worker.step(NOW)
    worker.step(NOW + 60_000)  # late, but far from the time-out

    worker.step(NOW + 4_000_000)
    assert hand.stopped == []
    worker.step(NOW + 4_000_000 + HEARTBEAT)

    assert len(hand.stopped) == 1


@pytest.mark.parametrize("jump_ms", [-3_600_000, 3_600_000])
def test_a_worker_goes_on_when_the_wall_clock_jumps(
    engine: Engine, worker: Worker, hand: HandExecutor, jump_ms: int
) -> None:
    first, second = push(engine), push(engine)
    worker.step(NOW)
    drive(worker, NOW, NOW + 1_000)
    now = NOW + 1_000 + jump_ms

    drive(worker, now, now + 100)
    worker.beat(now + 100)
    assert engine.get(first).lease_until == now + 100 + 30_000, "the heartbeat is by the new clock"
    assert hand.stopped == []
    hand.end(hand.running[0])
    drive(worker, now + 100, now + 200)

    assert engine.get(first).state is State.COMPLETED
    assert [run.job.id for run in hand.running] == [second]


def test_a_run_is_told_of_its_cancel_and_a_delayed_job_starts_though_the_wall_clock_went_back(engine: Engine) -> None:
    hand = HandExecutor(2)
    worker = new_worker(engine, hand)
    job_id, delayed = push(engine), push(engine, delay=1.0)
    worker.step(NOW)
    drive(worker, NOW, NOW + 500)

    drive(worker, NOW - 3_600_000, NOW - 3_600_000 + 100)
    engine.cancel(job_id, NOW - 3_599_900)
    drive(worker, NOW - 3_599_900, NOW - 3_599_800)

    assert [run.job.id for run in hand.stopped] == [job_id]
    drive(worker, NOW + 1_000, NOW + 1_000 + POLL_MS)
    assert [run.job.id for run in hand.running] == [delayed]


def test_a_lost_run_whose_report_waits_for_the_store_is_counted_once(
    engine: Engine, store: StubbornStore, worker: Worker, hand: HandExecutor
) -> None:
    job_id = push(engine)
    worker.step(NOW)
    hand.end(hand.running[0])
    store.refusals = [StoreBusy("busy")]
    worker.step(NOW + 10)
    engine.cancel(job_id, NOW + 20)

    drive(worker, NOW + 60, NOW + 500)

    assert worker.outcomes == Counter(lost=1)


def test_a_worker_that_was_told_to_stop_finishes_its_runs_and_pulls_no_more(
    engine: Engine, worker: Worker, hand: HandExecutor
) -> None:
    running, waiting = push(engine), push(engine)
    worker.step(NOW)
    worker.stop()

    assert worker.step(NOW + 10) is not None
    hand.end(hand.running[0])
    assert worker.step(NOW + 20) is None

    assert [engine.get(job_id).state for job_id in (running, waiting)] == [State.COMPLETED, State.WAITING]


def test_a_worker_that_lets_go_releases_its_runs_without_charging_an_attempt(
    engine: Engine, worker: Worker, hand: HandExecutor
) -> None:
    job_id = push(engine)
    worker.step(NOW)
    run = hand.running[0]
    worker.release()

    assert worker.step(NOW + 10) is None

    job = engine.get(job_id)
    assert (job.state, job.attempt, job.deliveries) == (State.WAITING, 0, 1)
    assert hand.stopped == [run]
    assert worker.outcomes == Counter(released=1)


def test_a_run_that_has_ended_is_reported_not_released(engine: Engine) -> None:
    hand = HandExecutor(2)
    worker = new_worker(engine, hand)
    ended, running = push(engine), push(engine)
    worker.step(NOW)
    hand.end(hand.running[0])
    worker.release()

    assert worker.step(NOW + 10) is None

    assert (engine.get(ended).state, engine.get(running).state) == (State.COMPLETED, State.WAITING)


def test_a_report_that_waits_for_the_store_is_not_released(
    engine: Engine, store: StubbornStore, worker: Worker, hand: HandExecutor
) -> None:
    job_id = push(engine)
    worker.step(NOW)
    hand.end(hand.running[0])
    store.refusals = [StoreBusy("busy")] * 2
    worker.step(NOW + 10)
    worker.release()

    drive(worker, NOW + 60, NOW + 1_000)

    assert engine.get(job_id).state is State.COMPLETED
    assert hand.stopped == []


def test_a_worker_that_was_told_to_stop_ends_when_the_store_has_refused_for_a_stall_timeout(
    engine: Engine, store: StubbornStore, worker: Worker, hand: HandExecutor
) -> None:
    push(engine)
    worker.step(NOW)
    hand.end(hand.running[0])
    store.refusals = [StoreFull("full")] * 1_000
    drive(worker, NOW, NOW + 60_000)
    assert len(worker._unstored) == 1, "one that was not told to stop tries on"
    worker.stop()

    now: int | None = NOW + 60_000
    while now is not None and now < NOW + 60_000 + 2_000:
        now = worker.step(now)

    assert now is None


def test_a_mapping_chooses_the_handler_by_the_jobs_name(engine: Engine) -> None:
    one, two = push(engine, name="one"), push(engine, name="two")
    worker = new_worker(engine, InlineExecutor({"one": lambda job: 1, "two": lambda job, ctx: ctx.token + 1}))

    drive(worker, NOW, NOW + 100)

    assert (engine.get(one).result, engine.get(two).result) == (1, 2)


def test_a_name_without_a_handler_is_dead_lettered_with_the_names_there_are(engine: Engine) -> None:
    job_id = push(engine, name="three")
    worker = new_worker(engine, InlineExecutor({"one": lambda job: 1, "two": lambda job: 2}))

    drive(worker, NOW, NOW + 100)

    job = engine.get(job_id)
    assert (job.state, job.attempt) == (State.DLQ, 1)
    assert job.last_error == "no handler called 'three'; this worker has: one, two"


def test_several_queues_are_each_served_first_in_their_turn(engine: Engine) -> None:
    served: list[str] = []
    worker = new_worker(engine, InlineExecutor(lambda job: served.append(job.queue)), "a", "b", "c")
    for queue in ("a", "b", "c"):
        for _ in range(20):
            push(engine, queue)

    drive(worker, NOW, NOW + 2_000)

    assert len(served) == 60
    assert all(set(served[at : at + 3]) == {"a", "b", "c"} for at in range(0, 60, 3))


def test_an_empty_queue_takes_no_turn_from_the_others(engine: Engine, store: StubbornStore) -> None:
    hand = HandExecutor(2)
    worker = new_worker(engine, hand, "empty", "busy")
    push(engine, "busy")
    push(engine, "busy")

    worker.step(NOW)

    assert len(hand.running) == 2


@pytest.mark.parametrize(
    ("raised", "state", "attempt", "due_in"),
    [
        (rqlab.Snooze(60), State.DELAYED, 0, 60_000),
        (rqlab.Snooze(0), State.WAITING, 0, None),
        (rqlab.RetryAfter(90, "rate limit"), State.DELAYED, 1, 90_000),
        (rqlab.RetryAfter(0), State.WAITING, 1, None),
        (rqlab.DeadLetter("no such customer"), State.DLQ, 1, None),
        (rqlab.RetryAfter(-1), State.DELAYED, 1, 1_000),  # a mistake in the handler: failed, with its usual backoff
    ],
)
def test_a_handler_may_say_what_is_to_become_of_its_job(
    engine: Engine, raised: Exception, state: State, attempt: int, due_in: int | None
) -> None:
    def handler(job: Job) -> None:
        raise raised

    job_id = push(engine)
    worker = new_worker(engine, InlineExecutor(handler))
    worker.pulls_left = 1

    drive(worker, NOW, NOW)
    worker.step(NOW)

    job = engine.get(job_id)
    assert (job.state, job.attempt) == (state, attempt)
    assert job.delay_until == (None if due_in is None else NOW + due_in)


def test_a_result_that_json_cannot_say_fails_the_attempt(engine: Engine) -> None:
    job_id = push(engine, max_attempts=1)
    drive(new_worker(engine, InlineExecutor(lambda job: {1, 2})), NOW, NOW + 100)

    job = engine.get(job_id)
    assert job.state is State.DLQ
    assert "the handler returned what cannot be stored" in (job.last_error or "")


def test_progress_and_logs_are_stored_before_the_call_returns_and_are_no_heartbeat(engine: Engine) -> None:
    seen: list[Job] = []

    def handler(job: Job, ctx: Context) -> None:
        ctx.log("begun")
        ctx.progress(40, "nearly half")
        seen.append(engine.get(job.id))

    push(engine)
    worker = new_worker(engine, InlineExecutor(handler))
    worker.clock = lambda: NOW + 5_000
    worker.step(NOW)

    (job,) = seen
    assert (job.progress, job.logs, job.lease_until) == (40, ("begun", "nearly half"), NOW + 30_000)


def test_progress_of_a_lost_run_raises_lease_lost_and_a_store_that_refuses_does_not_fail_the_run(
    engine: Engine, store: StubbornStore, worker: Worker, hand: HandExecutor
) -> None:
    job_id = push(engine)
    worker.step(NOW)
    context = Context(hand.running[0])

    store.refusals = [StoreBusy("busy")]
    context.progress(10)  # logged, and forgotten
    assert not context.lost
    engine.cancel(job_id, NOW)
    with pytest.raises(rqlab.LeaseLost):
        context.log("more")

    assert context.lost
    assert context.cancelled


def test_a_paused_queue_gives_a_worker_nothing_until_it_is_resumed(
    engine: Engine, worker: Worker, hand: HandExecutor
) -> None:
    engine.pause("q")
    push(engine)
    drive(worker, NOW, NOW + 3_000)
    assert hand.running == []

    engine.resume("q")
    drive(worker, NOW + 3_000, NOW + 3_000 + POLL_MS)

    assert len(hand.running) == 1


def test_a_thread_that_does_not_listen_keeps_its_slot_until_it_returns(engine: Engine) -> None:
    let_go = threading.Event()
    executor = ThreadExecutor(lambda job: let_go.wait(20), 1, lambda may_step: None, "test")
    worker = new_worker(engine, executor)
    deaf, second = push(engine, timeout=1.0), push(engine)
    worker.step(NOW)

    worker.step(NOW + 1_000)
    assert engine.get(deaf).last_error == "timed out after 1 s"
    assert executor.free() == 0
    worker.step(NOW + 1_100)
    assert engine.get(second).state is State.WAITING, "nothing is pulled that could not start"
    let_go.set()
    for _ in range(2_000):
        if worker.step(NOW + 1_200) and engine.get(second).state is State.COMPLETED:
            break
        time.sleep(0.005)

    assert engine.get(second).state is State.COMPLETED
    assert engine.get(deaf).attempt == 1, "what the deaf run returned was dropped"
    executor.close()


def test_a_worker_may_pull_no_more_than_it_was_allowed(engine: Engine) -> None:
    hand = HandExecutor(2)
    worker = new_worker(engine, hand)
    worker.pulls_left = 3
    for _ in range(5):
        push(engine)

    for millisecond in range(0, 500, 25):
        worker.step(NOW + millisecond)
        for run in list(hand.running):
            hand.end(run)

    assert engine.counts(["q"]).completed == 3
    assert engine.counts(["q"]).waiting == 2


# The same through the front door, by the wall clock.


@pytest.fixture
def queues() -> Iterator[rqlab.Queues]:
    with rqlab.memory(stall_timeout=5) as rq:
        yield rq


def wait_for(is_so: Callable[[], object], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.002)


def test_a_worker_wakes_within_milliseconds_of_a_push_in_its_process(queues: rqlab.Queues) -> None:
    started_at: list[float] = []
    with queues.worker("q", lambda job: started_at.append(time.monotonic())):
        time.sleep(0.3)  # so that it is idle
        pauses = []
        for _ in range(20):
            time.sleep(0.01)
            pushed_at = time.monotonic()
            queues.push("q", "work")
            wait_for(lambda: started_at)
            pauses.append(started_at.pop() - pushed_at)

    assert sorted(pauses)[10] < 0.010, f"the median of {pauses}"  # 0.0005 s here; a poll alone takes 0.025


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_thread_that_has_ended_a_run_reports_it_and_pulls_the_next(queues: rqlab.Queues, concurrency: int) -> None:
    """A hand-over to another thread would cost each job two switches."""
    pullers: Counter[str] = Counter()

    def count(change: rqlab.Change) -> None:
        if change.event is Event.PULL:
            pullers[threading.current_thread().name.rstrip("0123456789")] += 1

    queues.on_change(count)
    ids = queues.push_many("q", [{"name": "work"}] * 200)
    with queues.worker("q", lambda job: None, concurrency=concurrency):
        wait_for(lambda: queues.counts("q").unfinished == 0)

    assert {queues.get(job_id).deliveries for job_id in ids} == {1}
    assert pullers["rqlab-q-run-"] >= 20, pullers  # all but the first few; the worker's own thread looks in too


def test_a_run_that_ends_while_another_is_reported_is_reported_next(queues: rqlab.Queues) -> None:
    both_run, second_has_ended = threading.Barrier(2), threading.Event()

    def handler(job: Job) -> None:
        both_run.wait(20)
        if job.name == "second":
            second_has_ended.set()

    def hold_up_the_first_report(change: rqlab.Change) -> None:
        if change.event is Event.ACK:
            second_has_ended.wait(20)

    queues.on_change(hold_up_the_first_report)
    queues.push_many("q", [{"name": "first"}, {"name": "second"}])
    with queues.worker("q", handler, concurrency=2):
        wait_for(lambda: queues.counts("q").completed == 2)


def test_an_on_change_callback_of_a_worker_may_close_the_queues() -> None:
    """It runs within a step: waiting for the worker to end would be waiting for itself."""
    queues = rqlab.memory(stall_timeout=0.5)
    took: list[float] = []

    def close(change: rqlab.Change) -> None:
        if change.event is Event.ACK:
            started_at = time.monotonic()
            queues.close()
            took.append(time.monotonic() - started_at)

    queues.on_change(close)
    queues.push_many("q", [{"name": "work"}] * 3)
    running = queues.worker("q", lambda job: None)
    running.start()

    wait_for(lambda: took)
    running.finish()
    assert took[0] < 5.0  # waiting for itself would take 10


def test_a_cancelled_run_sees_it_at_once(queues: rqlab.Queues) -> None:
    seen: list[float] = []

    def handler(job: Job, ctx: Context) -> None:
        while not ctx.cancelled:
            time.sleep(0.001)
        seen.append(time.monotonic())

    with queues.worker("q", handler):
        job_id = queues.push("q", "work")
        wait_for(lambda: queues.get(job_id).state is State.ACTIVE)
        cancelled_at = time.monotonic()
        queues.cancel(job_id)
        wait_for(lambda: seen)

    assert seen[0] - cancelled_at < 1.0  # promised: 0.1; ten times that for a busy machine
    assert queues.get(job_id).state is State.CANCELLED


def test_a_drain_counts_how_its_runs_ended(queues: rqlab.Queues) -> None:
    def handler(job: Job) -> None:
        match job.name:
            case "bad":
                raise ValueError
            case "later":
                raise rqlab.Snooze(60)

    for name in ("good", "bad", "later", "good"):
        queues.push("q", name)

    assert queues.drain("q", handler) == Counter(completed=2, failed=1, snoozed=1)
    assert queues.drain("q", handler) == Counter()


@pytest.mark.parametrize("is_async", [False, True])
def test_a_drain_ends_though_a_job_is_snoozed_for_no_time_at_all(queues: rqlab.Queues, is_async: bool) -> None:
    ran: list[str] = []

    def handler(job: Job) -> None:
        ran.append(job.name)
        if job.name == "not-now":
            raise rqlab.Snooze(0)

    async def async_handler(job: Job) -> None:
        handler(job)

    queues.push("q", "not-now", priority=9)
    queues.push("q", "work")

    assert queues.drain("q", async_handler if is_async else handler, limit=20) == Counter(snoozed=1, completed=1)
    assert ran == ["not-now", "work"]
    (job,) = queues.jobs("q", state="waiting")
    assert (job.name, job.attempt, job.deliveries) == ("not-now", 0, 1)
    assert queues.drain("q", handler, limit=20) == Counter(snoozed=1)


@pytest.mark.parametrize("took", [2.5, 20])
def test_a_run_that_outlasts_its_timeout_in_a_drain_is_charged_when_it_returns(
    queues: rqlab.Queues, wall: Wall, took: float
) -> None:
    job_id = queues.push("q", "slow", timeout=2, max_attempts=1)

    outcomes = queues.drain("q", lambda job: wall.advance(took))

    assert outcomes == Counter(timed_out=1)
    assert queues.get(job_id).last_error == "timed out after 2 s"


def test_ctrl_c_in_a_drain_gives_back_what_it_has_put_off(queues: rqlab.Queues) -> None:
    def handler(job: Job) -> None:
        if job.name == "not-now":
            raise rqlab.Snooze(0)
        raise KeyboardInterrupt

    queues.push("q", "not-now", priority=9)
    queues.push("q", "work")
    with pytest.raises(KeyboardInterrupt):
        queues.drain("q", handler, limit=20)

    assert queues.counts("q").waiting == 2


def test_a_drain_of_async_handlers_runs_them_and_ends(queues: rqlab.Queues) -> None:
    async def handler(job: Job) -> str:
        return job.name

    ids = [queues.push("q", f"n{number}") for number in range(5)]

    assert queues.drain("q", handler) == Counter(completed=5)
    assert [queues.get(job_id).result for job_id in ids] == [f"n{number}" for number in range(5)]


def test_ctrl_c_in_a_drain_releases_the_run_in_flight(queues: rqlab.Queues) -> None:
    def handler(job: Job) -> None:
        raise KeyboardInterrupt

    job_id = queues.push("q", "work")
    with pytest.raises(KeyboardInterrupt):
        queues.drain("q", handler)

    job = queues.get(job_id)
    assert (job.state, job.attempt, job.deliveries) == (State.WAITING, 0, 1)
