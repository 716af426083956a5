"""Runs handlers in threads of this process, kept one a slot.

A thread cannot be stopped from outside: it is told (`ctx.cancelled`), its report is dropped, and its slot is taken
until the handler returns. The threads are daemons, so a process that gave a run up can end.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from rqlab.executors import Finished, Handlers, Run, call


class ThreadExecutor:
    """`concurrency` threads; `ring` is called when a run ends."""

    def __init__(self, handlers: Handlers, concurrency: int, ring: Callable[[], None], name: str) -> None:
        self.concurrency = concurrency
        self._handlers = handlers
        self._ring = ring
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
            self._ring()
