"""Runs handlers in threads of this process, kept one a slot.

A thread cannot be stopped from outside: it is told (`ctx.cancelled`), its report is dropped, and its slot is taken
until the handler returns. The threads are daemons, so a process that gave a run up can end.
"""

import threading
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue

from rqlab.executors import Finished, Handlers, OnEnd, Run, call


class ThreadExecutor:
    """`concurrency` threads. One that has ended a run may make its worker's next step, and run what that starts."""

    def __init__(self, handlers: Handlers, concurrency: int, on_end: OnEnd, name: str) -> None:
        self.concurrency = concurrency
        self._handlers = handlers
        self._on_end = on_end
        self._name = name
        self._todo: SimpleQueue[Run | None] = SimpleQueue()
        self._finished: deque[Finished] = deque()
        self._busy = 0
        self._threads: list[threading.Thread] = []

    def free(self) -> int:
        return self.concurrency - self._busy

    def is_over(self) -> bool:
        return False

    def start(self, run: Run) -> None:
        if len(self._threads) < min(self._busy + 1, self.concurrency):
            name = f"{self._name}-run-{len(self._threads) + 1}"
            thread = threading.Thread(target=self._serve, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._busy += 1
        self._todo.put(run)

    def poll(self) -> Sequence[Finished]:
        finished = []
        while self._finished:
            finished.append(self._finished.popleft())
        self._busy -= len(finished)
        return finished

    def stop(self, run: Run) -> None:
        run.is_stopped = True

    def close(self) -> None:
        for _ in self._threads:
            self._todo.put(None)

    def _serve(self) -> None:
        while (run := self._todo.get()) is not None:
            self._finished.append(Finished(run, call(self._handlers, run)))
            self._on_end(self._todo.empty())  # what waits to be run comes first: then one commit reports them all
