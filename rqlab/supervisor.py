"""Who keeps workers alive: threads that drive the steps of workers, heartbeats and housekeeping by the wall clock.

Heartbeats have a thread of their own, so neither a handler nor a long housekeeping pass can keep them waiting. Signals
and shutdown requests end here: the first says finish, the second says let go.

A worker's steps have a thread too, for all that happens by the clock; but whoever ends a run makes the step that
reports it and starts the next one. Handing that over cost two thread switches a job, a quarter of its cycle.
"""

import contextlib
import inspect
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

from rqlab import clock
from rqlab.clock import Bell
from rqlab.durability import Keeper
from rqlab.errors import ValidationError
from rqlab.executors import Executor, OnEnd
from rqlab.housekeeping import Housekeeper
from rqlab.job import milliseconds
from rqlab.observe import Observers
from rqlab.worker import Worker

if TYPE_CHECKING:  # imported where it is used: a third of `import rqlab` otherwise
    import asyncio

log = logging.getLogger("rqlab")

IDLE_MS = 1_000  # the heartbeat thread's look for workers when it has none; a new worker rings it
BUG_PAUSE_MS = 1_000  # after an error of our own: a worker goes on
JOIN_SECONDS = 10.0  # for a thread that was told to end: it is at most one step away


class Supervisor:
    """The heartbeat and housekeeping threads of one set of queues, and that of its keeper where the mode has one."""

    def __init__(self, housekeeper: Housekeeper, keeper: Keeper | None) -> None:
        self.housekeeper = housekeeper
        self.keeper = keeper
        self._workers: dict[Worker, float] = {}  #: when each is to beat next, by the monotonic clock
        self._lock = threading.RLock()  # reentrant: a signal handler may begin or end a worker in the middle of this
        self._heart = _Thread("rqlab-heartbeat", self._beat)
        self._house = _Thread("rqlab-housekeeping", self._keep_house)
        #: End the keeper's thread, if there is one. It knows its store alone, so it keeps nothing alive but that.
        self.end_keeper: Callable[[], None] = lambda: None
        if keeper is not None:
            safe = _Thread("rqlab-keeper", keeper.step)
            self.end_keeper = safe.end
            keeper.store.on_unsafe = safe.bell.ring
            safe.start()

    def add(self, worker: Worker) -> None:
        """Keep the leases of this worker's runs from now on."""
        with self._lock:
            self._workers[worker] = 0.0
        self._heart.start()
        self._heart.bell.ring()

    def remove(self, worker: Worker) -> None:
        with self._lock:
            self._workers.pop(worker, None)

    def start_housekeeping(self) -> None:
        """Start the housekeeping thread; if it runs, nothing happens."""
        self._house.start()

    @property
    def keeps_house(self) -> bool:
        """Whether the housekeeping thread was started."""
        return self._house.has_started

    def close(self) -> None:
        """End all threads but the keeper's: while the store is open, what was acknowledged is to become safe."""
        self._house.end()
        self._heart.end()

    def _beat(self, now: int) -> int:
        with self._lock:
            due = [worker for worker, at in self._workers.items() if at <= clock.monotonic()]
        for worker in due:
            again_in = self._beaten(worker, clock.now())
            with self._lock:
                if worker in self._workers:
                    self._workers[worker] = clock.monotonic() + again_in / 1000
        with self._lock:
            next_at = min(self._workers.values(), default=None)
        return now + (IDLE_MS if next_at is None else int((next_at - clock.monotonic()) * 1000) + 1)

    def _beaten(self, worker: Worker, now: int) -> int:
        """Milliseconds until the worker's next heartbeat."""
        try:
            return worker.beat(now) - now
        except Exception:
            log.exception("heartbeats of %s failed, and go on", worker.name)
            return milliseconds(worker.stall_timeout / 10)

    def _keep_house(self, now: int) -> int:
        return self.housekeeper.step(now)


class Running:
    """A worker under way: driven by the wall clock until it is told to stop. A context manager, sync and async.

    `make(on_end, loop)` builds the worker and its executor once it is known which event loop, if any, async handlers
    run on; the executor is to call `on_end` when a run has ended.
    """

    def __init__(
        self,
        make: Callable[[OnEnd, "asyncio.AbstractEventLoop | None"], tuple[Worker, Executor]],
        supervisor: Supervisor,
        observers: Observers,
        *,
        shutdown: Any = None,
        grace: float | None = None,
    ) -> None:
        self._make = make
        self._supervisor = supervisor
        self._observers = observers
        self._shutdown = shutdown
        self._grace = grace
        self._bell = Bell()
        self._turn = threading.Lock()  # held by whoever makes a step
        self._stepper = 0  #: the thread that holds it; a callback of its may end what it drives
        self._has_ended_runs = False  #: a run has ended since the newest step began
        self._wakes_at = 0  #: when the thread that drives it steps next, by the wall clock
        self._is_over = False  #: no more steps: what it would step on is let go of
        self._requests = 0  #: how often it was asked to stop
        self._release_at: float | None = None  #: by the monotonic clock
        self._thread: threading.Thread | None = None  #: the one that drives it
        self._watch: _Watch | None = None
        self._worker: Worker | None = None
        self._executor: Executor | None = None
        self._has_begun = False
        self._ended = threading.Event()

    def __repr__(self) -> str:
        worker = self._worker
        if worker is None:
            return f"<rqlab.Running {'beginning' if self._has_begun else 'not begun'}>"
        if self._ended.is_set():
            state = "ended"
        else:
            state = f"{'stopping' if worker.is_stopping else 'running'}, {len(worker.runs)} in flight"
        return f"<rqlab.Running {worker.name} of {', '.join(sorted(worker.queues))}: {state}>"

    def stop(self) -> None:
        """Ask it to finish its runs and end; asked again, it releases them. At once, also in a signal handler."""
        self._requests += 1
        self._bell.ring()

    def run(self) -> None:
        """Drive it in this thread until it has stopped; in the main thread, SIGINT and SIGTERM stop it."""
        with self._signals():
            self._begin(None)
            self._thread = threading.current_thread()
            self._drive()

    def start(self, loop: "asyncio.AbstractEventLoop | None" = None) -> None:
        """Drive it in a thread of its own."""
        self._begin(loop)
        self._thread = threading.Thread(target=self._drive, name="rqlab-worker", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Stop it and wait for the end: of its runs, or of the grace."""
        self.stop()
        if self._thread is not None:
            self._ended.wait()

    def abandon(self) -> None:
        """Stop it now: its runs are released."""
        self._requests += 2
        self._bell.ring()
        is_within = threading.current_thread() is self._thread or threading.get_ident() == self._stepper
        if self._thread is not None and not is_within:
            self._ended.wait(JOIN_SECONDS)

    def __enter__(self) -> "Running":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()

    async def __aenter__(self) -> "Running":
        import asyncio

        try:  # in a thread, with the caller's context variables: a first child process may take a minute to be ready
            await asyncio.to_thread(self.start, asyncio.get_running_loop())
        except asyncio.CancelledError:  # nobody will leave the block: what is still beginning is to end at once
            self._requests += 2
            self._bell.ring()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        import asyncio

        try:
            await asyncio.to_thread(self.finish)
        except asyncio.CancelledError:  # the application will not wait: let go while its loop still runs
            self.stop()
            raise

    def _begin(self, loop: "asyncio.AbstractEventLoop | None") -> None:
        if self._has_begun:
            raise ValidationError(f"cannot begin {self!r}: it runs once; call rq.worker again for another")
        self._has_begun = True
        if inspect.isawaitable(self._shutdown):
            self._watch = _Watch(self._shutdown, loop, self.stop)
        try:
            self._worker, self._executor = self._make(self._on_end, loop)
        except BaseException:
            self._end_watch()
            raise
        self._observers.add_bell(self._bell)
        self._supervisor.add(self._worker)

    def _drive(self) -> None:
        assert self._worker is not None, "it has begun"
        assert self._executor is not None, "it has begun"
        try:
            clock.run(self._step_in_turn, self._bell)
        finally:
            self._end_watch()
            self._observers.remove_bell(self._bell)
            self._supervisor.remove(self._worker)
            with self._turn:
                self._is_over = True
            self._executor.close()
            self._ended.set()

    def _on_end(self, may_step: bool) -> None:
        """Whoever has ended a run reports it and starts the next, if it may. Who ends one meanwhile does not wait, but
        is ready for what is started: the thread that has the turn goes on until no more runs have ended."""
        self._has_ended_runs = True
        if not may_step:
            self._bell.ring()
        while may_step and self._has_ended_runs and self._turn.acquire(blocking=False):
            try:
                if self._is_over:
                    return
                again_at = self._step()
            finally:
                self._turn.release()
            if again_at is None or again_at < self._wakes_at:
                self._bell.ring()

    def _step_in_turn(self, now: int) -> int | None:
        with self._turn:
            again_at = self._step()
            self._wakes_at = again_at or 0
        return now if self._has_ended_runs and again_at is not None else again_at

    def _step(self) -> int | None:
        """One step; the caller holds `_turn`. The clock is read within it, so between two steps it does not go back."""
        worker = self._worker
        assert worker is not None, "it has begun"
        self._stepper, self._has_ended_runs = threading.get_ident(), False
        now = clock.now()
        try:
            self._heed_requests(worker)
            return worker.step(now)
        except Exception:
            log.exception("worker %s met a bug of rqlab, and goes on; please report it", worker.name)
            return now + BUG_PAUSE_MS
        finally:
            self._stepper = 0

    def _heed_requests(self, worker: Worker) -> None:
        if self._shutdown_is_set():
            self._requests = max(self._requests, 1)
        if self._requests and not worker.is_stopping:
            worker.stop()
            if worker.runs:
                log.info("stopping: %d in flight finish first; asked again, they are released", len(worker.runs))
            if self._grace is not None:
                self._release_at = clock.monotonic() + self._grace
        if self._requests > 1 or (self._release_at is not None and clock.monotonic() >= self._release_at):
            worker.release()

    def _shutdown_is_set(self) -> bool:
        is_set = getattr(self._shutdown, "is_set", None)
        return is_set is not None and bool(is_set())

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.end()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask it to stop, while this lasts; Python lets only the main thread set handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                # None: it was not set from Python, which cannot set it again; the default is the nearest to it.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: object) -> None:
        self.stop()


class _Watch:
    """Waits for an awaitable on the event loop it belongs to, or on one of its own, and then calls `then`."""

    def __init__(
        self, awaitable: Awaitable[object], loop: "asyncio.AbstractEventLoop | None", then: Callable[[], None]
    ) -> None:
        self._awaitable = awaitable
        self._then = then
        self._cancel: Callable[[], object] = lambda: None
        self._is_over = False
        get_loop = getattr(awaitable, "get_loop", None)  # a future can be waited for on its own loop only
        home: asyncio.AbstractEventLoop | None = loop if get_loop is None else get_loop()
        if home is None:
            threading.Thread(target=self._run, name="rqlab-shutdown", daemon=True).start()
        elif home.is_closed():
            raise ValidationError(
                f"shutdown: expected something that can be awaited; the loop of {awaitable!r} is closed"
            )
        else:
            home.call_soon_threadsafe(self._begin, home)

    def end(self) -> None:
        """Wait no more. What was waited for goes on, if it is somebody else's."""
        self._is_over = True
        with contextlib.suppress(RuntimeError):  # its loop is closed
            self._cancel()

    def _run(self) -> None:
        import asyncio

        asyncio.run(self._wait())

    def _begin(self, home: "asyncio.AbstractEventLoop") -> None:
        self._task = home.create_task(self._wait())  # kept: a loop holds its tasks weakly

    async def _wait(self) -> None:
        import asyncio

        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None, "it runs in a task"
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        if self._is_over:
            task.cancel()
        awaitable = self._awaitable
        try:
            await (asyncio.shield(awaitable) if asyncio.isfuture(awaitable) else awaitable)
        except asyncio.CancelledError:
            pass  # ended from here, or what was waited for was cancelled: in both cases it is over
        except Exception:
            log.exception("shutdown %r failed: its worker stops", awaitable)
        finally:
            self._then()


class _Thread:
    """A daemon thread that drives one step; it is started at most once, and ended once."""

    def __init__(self, name: str, step: Callable[[int], int]) -> None:
        self.bell = Bell()
        self._step = step
        self._name = name
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._is_ending = False

    @property
    def has_started(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        if self._lock._is_owned():  # type: ignore[attr-defined]
            return  # a signal handler, in the middle of this: it is being started
        with self._lock:
            if self._thread is None and not self._is_ending:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def end(self) -> None:
        with self._lock:
            self._is_ending = True
            thread = self._thread
        self.bell.ring()
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        clock.run(lambda now: None if self._is_ending else self._step(now), self.bell)
