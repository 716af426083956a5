"""How a worker ends: shutdown requests of every kind, context managers, signals, the grace. Nothing is left of it."""

import asyncio
import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

import rqlab
from rqlab import Context, Job, ValidationError, clock, supervisor
from rqlab.job import State
from rqlab.supervisor import Running

LONG = 30.0  # seconds; whatever takes longer does not come at all


def wait_for(is_so: Callable[[], object], what: str = "it") -> None:
    until = time.monotonic() + LONG
    while not is_so():
        assert time.monotonic() < until, f"{what} did not come about"
        time.sleep(0.002)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("rqlab")}


@pytest.fixture
def rq() -> Iterator[rqlab.Queues]:
    with rqlab.memory() as queues:
        yield queues
    wait_for(lambda: not threads(), "the end of all threads")


class Handler:
    """A handler that says when it has begun, and ends when it is told to, or when it is cancelled."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.was_cancelled = threading.Event()

    def __call__(self, job: Job, ctx: Context) -> str:
        self.begun.set()
        while not self.may_end.wait(0.002):
            if ctx.cancelled:
                self.was_cancelled.set()
                return "broken off"
        return "finished"


@contextlib.contextmanager
def in_a_thread(work: Callable[[], object]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield thread
    thread.join(LONG)
    assert not thread.is_alive(), "the worker did not end"


@contextlib.contextmanager
def loop_in_a_thread() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LONG)
        loop.close()


async def run_on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> Any:
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


# What `shutdown` may be.


def check_that_it_stops(rq: rqlab.Queues, shutdown: Any, request: Callable[[], object]) -> None:
    """A worker with this shutdown finishes its run when it is requested, and pulls no other."""
    handler = Handler()
    running, waiting = rq.push("q", "work"), rq.push("q", "work")
    with in_a_thread(lambda: rq.run_worker("q", handler, shutdown=shutdown)) as worker:
        assert handler.begun.wait(LONG)
        time.sleep(0.1)
        assert worker.is_alive(), "not before it is requested"
        request()
        time.sleep(0.1)
        assert worker.is_alive(), "the run in flight is finished first"
        handler.may_end.set()

    assert (rq.get(running).state, rq.get(running).result) == (State.COMPLETED, "finished")
    assert (rq.get(waiting).state, rq.get(waiting).deliveries) == (State.WAITING, 0)


def test_a_threading_event_stops_a_worker(rq: rqlab.Queues) -> None:
    stop = threading.Event()
    check_that_it_stops(rq, stop, stop.set)


def test_an_asyncio_event_stops_a_worker_that_has_no_loop(rq: rqlab.Queues) -> None:
    stop = asyncio.Event()
    check_that_it_stops(rq, stop, stop.set)


def test_a_coroutine_stops_a_worker_at_its_end(rq: rqlab.Queues) -> None:
    stop = threading.Event()

    async def wait() -> None:
        while not stop.is_set():
            await asyncio.sleep(0.002)

    check_that_it_stops(rq, wait(), stop.set)


def test_a_future_of_another_loop_stops_a_worker(rq: rqlab.Queues) -> None:
    with loop_in_a_thread() as loop:
        future = loop.create_future()
        check_that_it_stops(rq, future, lambda: loop.call_soon_threadsafe(future.set_result, None))


def test_a_task_of_another_loop_stops_a_worker(rq: rqlab.Queues) -> None:
    async def start(event: asyncio.Event) -> asyncio.Task[Any]:
        return asyncio.create_task(event.wait())

    with loop_in_a_thread() as loop:
        event = asyncio.Event()
        task = asyncio.run_coroutine_threadsafe(start(event), loop).result(LONG)
        check_that_it_stops(rq, task, lambda: loop.call_soon_threadsafe(event.set))


def test_an_awaitable_that_fails_or_is_cancelled_stops_a_worker_too(rq: rqlab.Queues) -> None:
    with loop_in_a_thread() as loop:
        fails, is_cancelled = loop.create_future(), loop.create_future()
        check_that_it_stops(rq, fails, lambda: loop.call_soon_threadsafe(fails.set_exception, OSError("no")))
        rq.purge("q", "completed")
        rq.drain("q", lambda job: None)
        check_that_it_stops(rq, is_cancelled, lambda: loop.call_soon_threadsafe(is_cancelled.cancel))


def test_a_future_of_one_loop_stops_an_async_worker_on_another(rq: rqlab.Queues) -> None:
    async def main(future: asyncio.Future[None], other: asyncio.AbstractEventLoop) -> None:
        async with rq.worker("q", handler, shutdown=future) as running:
            job_id = rq.push("q", "work")
            while rq.get(job_id).state is not State.COMPLETED:
                await asyncio.sleep(0.002)
            assert not running._ended.is_set()
            other.call_soon_threadsafe(future.set_result, None)
            while not running._ended.is_set():
                await asyncio.sleep(0.002)

    async def handler(job: Job) -> None: ...

    with loop_in_a_thread() as other:
        asyncio.run(asyncio.wait_for(main(other.create_future(), other), LONG))


def test_a_coroutine_is_awaited_on_the_loop_of_an_async_with(rq: rqlab.Queues) -> None:
    seen: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        event = asyncio.Event()

        async def wait() -> None:
            seen.append(asyncio.get_running_loop())
            await event.wait()

        async with rq.worker("q", handler, shutdown=wait()) as running:
            await asyncio.sleep(0.05)
            assert not running._ended.is_set()
            event.set()
            while not running._ended.is_set():
                await asyncio.sleep(0.002)
        assert seen == [asyncio.get_running_loop()]

    async def handler(job: Job) -> None: ...

    asyncio.run(asyncio.wait_for(main(), LONG))


def test_a_shutdown_that_was_requested_before_pulls_nothing(rq: rqlab.Queues) -> None:
    stop = threading.Event()
    stop.set()
    rq.push("q", "work")

    rq.run_worker("q", lambda job: None, shutdown=stop)

    assert rq.counts("q").waiting == 1


def test_a_worker_that_ended_otherwise_waits_no_longer_and_leaves_what_it_waited_for_alone(rq: rqlab.Queues) -> None:
    ended: list[str] = []

    async def wait_for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("ended")

    with rq.worker("q", lambda job: None, shutdown=wait_for_ever()):
        pass
    wait_for(lambda: ended, "the end of the coroutine")
    wait_for(lambda: "rqlab-shutdown" not in threads())
    with loop_in_a_thread() as loop:
        future = loop.create_future()
        with rq.worker("q", lambda job: None, shutdown=future):
            pass
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.02), loop).result(LONG)

        assert not future.cancelled(), "somebody else may wait for it"
        assert asyncio.run_coroutine_threadsafe(_other_tasks(), loop).result(LONG) == 0


async def _other_tasks() -> int:
    return len(asyncio.all_tasks()) - 1


def test_a_future_whose_loop_is_closed_is_refused(rq: rqlab.Queues) -> None:
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    loop.close()

    with pytest.raises(ValidationError, match=r"the loop of .* is closed"):
        rq.run_worker("q", lambda job: None, shutdown=future)


@pytest.mark.parametrize("shutdown", [True, "SIGTERM", 5, lambda: None])
def test_a_shutdown_that_is_neither_an_event_nor_awaitable_is_refused(rq: rqlab.Queues, shutdown: Any) -> None:
    with pytest.raises(ValidationError, match=r"shutdown: expected a threading\.Event, something awaitable, or None"):
        rq.run_worker("q", lambda job: None, shutdown=shutdown)


# Context managers.


def test_a_with_block_runs_a_worker_and_finishes_its_runs_at_the_end(rq: rqlab.Queues) -> None:
    handler = Handler()
    running, waiting = rq.push("q", "work"), rq.push("q", "work")
    with rq.worker("q", handler):
        assert handler.begun.wait(LONG)
        threading.Timer(0.1, handler.may_end.set).start()

    assert [rq.get(job_id).state for job_id in (running, waiting)] == [State.COMPLETED, State.WAITING]
    wait_for(lambda: threads() == {"rqlab-heartbeat", "rqlab-housekeeping"}, "the end of its threads")
    assert rq._supervisor._workers == {}
    assert rq._observers._bells == frozenset()


def test_an_error_in_a_with_block_is_raised_when_the_worker_has_ended(rq: rqlab.Queues) -> None:
    with pytest.raises(ZeroDivisionError), rq.worker("q", lambda job: None):
        raise ZeroDivisionError

    wait_for(lambda: "rqlab-worker" not in threads())


def test_an_async_with_does_not_block_its_loop_while_it_ends(rq: rqlab.Queues) -> None:
    handler = Handler()
    job_id = rq.push("q", "work")
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    async def main() -> None:
        beating = asyncio.create_task(beat())
        async with rq.worker("q", handler):
            await asyncio.to_thread(handler.begun.wait, LONG)
            threading.Timer(0.5, handler.may_end.set).start()
            before = beats
        beating.cancel()
        assert beats - before >= 5  # 50 here

    asyncio.run(asyncio.wait_for(main(), LONG))
    assert rq.get(job_id).state is State.COMPLETED


def test_an_async_with_does_not_block_its_loop_while_it_begins(
    rq: rqlab.Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_begin = threading.Event()
    begin = Running._begin
    monkeypatch.setattr(Running, "_begin", lambda *both: may_begin.wait(LONG) and begin(*both))

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.05, may_begin.set)  # comes only if the loop is free
        async with rq.worker("q", lambda job: None):
            assert may_begin.is_set()

    before = time.monotonic()
    asyncio.run(asyncio.wait_for(main(), LONG))
    assert time.monotonic() - before < LONG / 2


def test_an_application_that_is_cancelled_while_its_worker_begins_leaves_none_behind(
    rq: rqlab.Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_beginning, may_begin = threading.Event(), threading.Event()
    begin = Running._begin

    def slowly(running: Running, loop: asyncio.AbstractEventLoop | None) -> None:
        is_beginning.set()
        may_begin.wait(LONG)
        begin(running, loop)

    monkeypatch.setattr(Running, "_begin", slowly)
    running = rq.worker("q", lambda job: None)

    async def main() -> None:
        entering = asyncio.create_task(running.__aenter__())
        await asyncio.to_thread(is_beginning.wait, LONG)
        entering.cancel()
        await asyncio.wait([entering])
        may_begin.set()
        assert entering.cancelled()

    asyncio.run(asyncio.wait_for(main(), LONG))

    wait_for(running._ended.is_set, "the end of the worker")


def test_a_worker_is_entered_once(rq: rqlab.Queues) -> None:
    running = rq.worker(["b", "a"], lambda job: None)
    assert repr(running) == "<rqlab.Running not begun>"
    with running:
        assert re.fullmatch(r"<rqlab\.Running \S+ of a, b: running, 0 in flight>", repr(running))
        with pytest.raises(ValidationError, match=r"call rq\.worker again"):
            running.start()
    assert repr(running).endswith(": ended>")

    with pytest.raises(ValidationError, match=r"it runs once; call rq\.worker again"), running:
        pass
    with pytest.raises(ValidationError, match="it runs once"):
        asyncio.run(running.__aenter__())


def test_an_application_that_is_cancelled_while_its_worker_ends_lets_go_of_the_runs(rq: rqlab.Queues) -> None:
    handler = Handler()
    job_id = rq.push("q", "work")

    async def main() -> None:
        async with rq.worker("q", handler):
            await asyncio.to_thread(handler.begun.wait, LONG)

    async def impatient() -> None:
        application = asyncio.create_task(main())
        while not handler.begun.is_set():
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.1)
        application.cancel()
        await asyncio.wait([application])
        assert application.cancelled()

    asyncio.run(asyncio.wait_for(impatient(), LONG))

    wait_for(lambda: rq.get(job_id).state is State.WAITING)
    assert (rq.get(job_id).attempt, rq.get(job_id).deliveries) == (0, 1)
    assert handler.was_cancelled.wait(LONG)


# The grace, and being asked twice.


@pytest.mark.parametrize("isolation", ["thread", "async"])
def test_after_the_grace_runs_in_flight_are_released_and_no_attempt_is_charged(
    rq: rqlab.Queues, isolation: str
) -> None:
    sync, was_cancelled = Handler(), threading.Event()

    async def handler(job: Job) -> None:
        sync.begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            was_cancelled.set()

    job_id = rq.push("q", "work")
    with rq.worker("q", sync if isolation == "thread" else handler, grace=0.2):
        assert sync.begun.wait(LONG)
        asked_at = time.monotonic()
    took = time.monotonic() - asked_at

    job = rq.get(job_id)
    assert (job.state, job.attempt, job.deliveries) == (State.WAITING, 0, 1)
    assert [line.outcome for line in job.history] == ["released"]
    assert (sync.was_cancelled if isolation == "thread" else was_cancelled).wait(LONG), "the handler is told"
    assert 0.15 < took < 10


def test_the_grace_does_not_depend_on_the_wall_clock(rq: rqlab.Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = Handler()
    job_id = rq.push("q", "work")
    real = clock.now
    with rq.worker("q", handler, grace=0.2) as running:
        assert handler.begun.wait(LONG)
        running.stop()
        time.sleep(0.1)
        monkeypatch.setattr(clock, "now", lambda: real() - 3_600_000)
        wait_for(running._ended.is_set)

    assert rq.get(job_id).state is State.WAITING


def test_a_run_that_ends_within_the_grace_is_completed(rq: rqlab.Queues) -> None:
    handler = Handler()
    job_id = rq.push("q", "work")
    with rq.worker("q", handler, grace=LONG):
        assert handler.begun.wait(LONG)
        threading.Timer(0.1, handler.may_end.set).start()

    assert rq.get(job_id).state is State.COMPLETED


def test_a_worker_that_is_asked_twice_lets_go_at_once(rq: rqlab.Queues) -> None:
    handler = Handler()
    job_id = rq.push("q", "work")
    with rq.worker("q", handler) as running:
        assert handler.begun.wait(LONG)
        running.stop()
        time.sleep(0.1)
        assert rq.get(job_id).state is State.ACTIVE
        running.stop()
        wait_for(running._ended.is_set)

    assert (rq.get(job_id).state, rq.get(job_id).attempt) == (State.WAITING, 0)


@pytest.mark.parametrize("kind", ["with", "run_worker"])
def test_closing_the_queues_releases_the_runs_of_workers_under_way(tmp_path: Any, kind: str) -> None:
    handler = Handler()
    rq = rqlab.open(tmp_path)
    job_id = rq.push("q", "work")
    if kind == "with":
        rq.worker("q", handler).__enter__()
    else:
        threading.Thread(target=rq.run_worker, args=("q", handler), daemon=True).start()
    assert handler.begun.wait(LONG)
    (running,) = rq._running
    step = running._worker.step  # type: ignore[union-attr]
    running._worker.step = lambda now: time.sleep(0.2) or step(now)  # type: ignore[union-attr,method-assign]

    rq.close()

    wait_for(lambda: not threads(), "the end of all threads")
    with rqlab.open(tmp_path) as again:
        assert (again.get(job_id).state, again.get(job_id).attempt) == (State.WAITING, 0)


def test_a_worker_that_meets_a_bug_of_ours_goes_on(
    rq: rqlab.Queues, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "BUG_PAUSE_MS", 10)
    with rq.worker("q", lambda job: None) as running:
        worker = running._worker
        assert worker is not None
        step, errors = worker.step, [ZeroDivisionError("a bug")] * 3

        def fail_at_first(now: int) -> int | None:
            if errors:
                raise errors.pop()
            return step(now)

        monkeypatch.setattr(worker, "step", fail_at_first)
        job_id = rq.push("q", "work")
        wait_for(lambda: rq.get(job_id).state is State.COMPLETED)

    assert "met a bug of rqlab" in caplog.text


# Signals. These run in the main thread.


@pytest.fixture
def own_handlers() -> Iterator[list[int]]:
    """Signal handlers of the application, which a worker must put back."""
    got: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: got.append(number)) for number in numbers]
    yield got
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_run_in_flight_finish_and_handlers_are_put_back(
    rq: rqlab.Queues, own_handlers: list[int], number: signal.Signals
) -> None:
    def handler(job: Job) -> str:
        os.kill(os.getpid(), number)
        time.sleep(0.1)
        return "finished"

    first, second = rq.push("q", "work"), rq.push("q", "work")

    rq.run_worker("q", handler)

    assert rq.get(first).result == "finished"
    assert rq.get(second).deliveries == 0
    assert own_handlers == [], "the worker took it"
    os.kill(os.getpid(), number)
    assert own_handlers == [number]


def test_a_second_signal_releases_the_run_in_flight(rq: rqlab.Queues, own_handlers: list[int]) -> None:
    handler = Handler()

    def impatient(job: Job, ctx: Context) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        return handler(job, ctx)

    job_id = rq.push("q", "work")
    rq.run_worker("q", impatient)

    assert (rq.get(job_id).state, rq.get(job_id).attempt) == (State.WAITING, 0)
    assert handler.was_cancelled.wait(LONG)


def test_handlers_are_put_back_if_the_worker_cannot_begin(rq: rqlab.Queues, own_handlers: list[int]) -> None:
    lock = threading.Lock()
    with pytest.raises(ValidationError):
        rq.run_worker("q", lambda job: lock.locked(), isolation="process")

    os.kill(os.getpid(), signal.SIGTERM)
    assert own_handlers == [signal.SIGTERM]


def test_off_the_main_thread_a_worker_leaves_signals_alone(rq: rqlab.Queues, own_handlers: list[int]) -> None:
    handler, stop = Handler(), threading.Event()
    rq.push("q", "work")
    with in_a_thread(lambda: rq.run_worker("q", handler, shutdown=stop)):
        assert handler.begun.wait(LONG)
        os.kill(os.getpid(), signal.SIGINT)
        assert own_handlers == [signal.SIGINT]
        handler.may_end.set()
        stop.set()
