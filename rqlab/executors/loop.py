"""Runs async handlers on an event loop: one of its own in a thread, or the one a web application already runs.

Heartbeats do not come from the loop, so a handler that blocks it keeps its lease all the same.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence

from rqlab.executors import Context, Finished, Handlers, Report, Run, chosen, failure, success, wants_context

CLOSE_SECONDS = 5.0  # for cancelled handlers to end; one that blocks its loop is left behind with its daemon thread


class LoopExecutor:
    """At most `concurrency` tasks on `loop`; without one, on a loop of its own. `ring` is called when a run ends."""

    def __init__(
        self,
        handlers: Handlers,
        concurrency: int,
        ring: Callable[[], None],
        name: str,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.concurrency = concurrency
        self._handlers = handlers
        self._ring = ring
        self._finished: deque[Finished] = deque()
        self._busy = 0
        self._tasks: dict[Run, asyncio.Task[Report]] = {}  # touched on the loop's thread only
        self._context = contextvars.copy_context()  # each run gets a copy: it sees what was set before the worker began
        self._thread: threading.Thread | None = None
        if loop is None:
            loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=loop.run_forever, name=f"{name}-loop", daemon=True)
            self._thread.start()
        self._loop = loop

    def free(self) -> int:
        return self.concurrency - self._busy

    def start(self, run: Run) -> None:
        self._loop.call_soon_threadsafe(self._begin, run)
        self._busy += 1

    def poll(self) -> Sequence[Finished]:
        finished = []
        while self._finished:
            finished.append(self._finished.popleft())
        self._busy -= len(finished)
        return finished

    def stop(self, run: Run) -> None:
        run.is_stopped = True
        with contextlib.suppress(RuntimeError):  # the application has closed its loop, and with it ended the run
            self._loop.call_soon_threadsafe(self._cancel, run)

    def close(self) -> None:
        if self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._cancel_all)
        self._thread.join(CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    def _begin(self, run: Run) -> None:
        task = self._loop.create_task(self._call(run), context=self._context.copy())
        self._tasks[run] = task
        task.add_done_callback(lambda done: self._end(run, done))

    def _end(self, run: Run, task: asyncio.Task[Report]) -> None:
        del self._tasks[run]
        report = failure(asyncio.CancelledError()) if task.cancelled() else task.result()
        self._finished.append(Finished(run, report))
        self._ring()

    async def _call(self, run: Run) -> Report:
        function = chosen(self._handlers, run.job)
        if isinstance(function, Report):
            return function
        try:
            result = await (function(run.job, Context(run)) if wants_context(function) else function(run.job))
        except BaseException as error:  # noqa: BLE001  # also SystemExit, which would end the loop
            return failure(error)
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
