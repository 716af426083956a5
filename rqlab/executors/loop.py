"""Runs async handlers on an event loop: one of its own in a thread, or the one a web application already runs.

Heartbeats do not come from the loop, so a handler that blocks it keeps its lease all the same.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rqlab.executors import (
    AsyncContext,
    Finished,
    Handlers,
    OnEnd,
    Report,
    Run,
    chosen,
    failure,
    success,
    wants_context,
)

CLOSE_SECONDS = 5.0  # for cancelled handlers to end; one that blocks its loop is left behind with its daemon thread
STORING_THREADS = 4  # for what handlers say: several at once share a commit
RELEASED = Report(event="release")  # nothing is charged: the handler was given no chance to end


class LoopExecutor:
    """At most `concurrency` tasks on `loop`; without one, on a loop of its own. `on_end` may not block it."""

    def __init__(
        self,
        handlers: Handlers,
        concurrency: int,
        on_end: OnEnd,
        name: str,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.concurrency = concurrency
        self._handlers = handlers
        self._on_end = on_end
        self._finished: deque[Finished] = deque()
        self._runs: set[Run] = set()  #: started and not yet polled
        self._tasks: dict[Run, asyncio.Task[Report]] = {}  # touched on the loop's thread only
        self._context = contextvars.copy_context()  # each run gets a copy: it sees what was set before the worker began
        self._pool = ThreadPoolExecutor(STORING_THREADS, f"{name}-store")  # it has no thread until a handler speaks
        self._thread: threading.Thread | None = None
        if loop is None:
            loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=loop.run_forever, name=f"{name}-loop", daemon=True)
            self._thread.start()
        self._loop = loop

    def free(self) -> int:
        return 0 if self.is_over() else self.concurrency - len(self._runs)

    def is_over(self) -> bool:
        return self._loop.is_closed()

    def start(self, run: Run) -> None:
        self._runs.add(run)
        with contextlib.suppress(RuntimeError):  # the loop was closed just now: `poll` gives the run back
            self._loop.call_soon_threadsafe(self._begin, run)

    def poll(self) -> Sequence[Finished]:
        finished: list[Finished] = []
        while self._finished:
            finished.append(self._finished.popleft())
        if self.is_over():  # the application has closed its loop: what has not ended on it never will
            ended = {run for run, _ in finished}
            finished += [Finished(run, RELEASED) for run in self._runs if run not in ended]
        self._runs.difference_update(run for run, _ in finished)
        return finished

    def stop(self, run: Run) -> None:
        run.is_stopped = True
        with contextlib.suppress(RuntimeError):  # the application has closed its loop, and with it ended the run
            self._loop.call_soon_threadsafe(self._cancel, run)

    def close(self) -> None:
        self._pool.shutdown(wait=False)
        if self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._cancel_all)
        self._thread.join(CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    def _begin(self, run: Run) -> None:
        task = _Task(self._call(run), loop=self._loop, context=self._context.copy())
        self._tasks[run] = task
        task.add_done_callback(lambda done: self._end(run, done))

    def _end(self, run: Run, task: asyncio.Task[Report]) -> None:
        del self._tasks[run]
        report = RELEASED if task.cancelled() else task.result()  # cancelled before it began
        self._finished.append(Finished(run, report))
        self._on_end(False)

    async def _call(self, run: Run) -> Report:
        context = AsyncContext(run, self._pool)
        report = await self._report(run, context)
        if not run.is_stopped:  # else nobody waits for the report
            await context.stored()
        return report

    async def _report(self, run: Run, context: AsyncContext) -> Report:
        function = chosen(self._handlers, run.job)
        if isinstance(function, Report):
            return function
        try:
            result = await (function(run.job, context) if wants_context(function) else function(run.job))
        except BaseException as error:  # noqa: BLE001  # also SystemExit, which would end the loop
            return RELEASED if _is_cancelled_by_others(run, error) else failure(error)
        return success(result)

    def _cancel(self, run: Run) -> None:
        task = self._tasks.get(run)
        if task is not None:
            task.cancel()

    def _cancel_all(self) -> None:
        for task in asyncio.all_tasks(self._loop):  # of this loop of our own; a handler may have left some behind
            task.cancel()
        self._loop.call_soon(self._stop_when_idle)

    def _stop_when_idle(self) -> None:
        if asyncio.all_tasks(self._loop):
            self._loop.call_later(0.01, self._stop_when_idle)
        else:
            self._loop.stop()


class _Task(asyncio.Task[Report]):
    """A run's task. It notes whether it was cancelled by itself: such a run would be released and pulled for ever."""

    has_cancelled_itself = False

    def cancel(self, msg: Any = None) -> bool:
        with contextlib.suppress(RuntimeError):  # no loop runs in this thread
            self.has_cancelled_itself = self.has_cancelled_itself or asyncio.current_task() is self
        return super().cancel(msg)


def _is_cancelled_by_others(run: Run, error: BaseException) -> bool:
    """Whether the run's task was cancelled, not by us nor by itself: its application ends. No fault of the handler's.

    A handler that raises CancelledError by itself, or passes on that of a task it awaited, was not cancelled.
    """
    if run.is_stopped or not isinstance(error, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    assert isinstance(task, _Task), "handlers run in tasks of this executor"
    return task.cancelling() > 0 and not task.has_cancelled_itself
