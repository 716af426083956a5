"""Runs a handler in the calling thread: for `drain`, tests and simulations. When `start` returns, the run is over."""

from collections.abc import Sequence

from rqlab.executors import Finished, Handlers, Run, call


class InlineExecutor:
    """One run at a time; `start` blocks until it ends. A KeyboardInterrupt is the caller's own, and goes through."""

    def __init__(self, handlers: Handlers) -> None:
        self.concurrency = 1
        self._handlers = handlers
        self._finished: list[Finished] = []

    def free(self) -> int:
        return 1

    def is_over(self) -> bool:
        return False

    def start(self, run: Run) -> None:
        self._finished.append(Finished(run, call(self._handlers, run, through=(KeyboardInterrupt,))))

    def poll(self) -> Sequence[Finished]:
        finished, self._finished = self._finished, []
        return finished

    def stop(self, run: Run) -> None:
        run.is_stopped = True

    def close(self) -> None:
        """There is nothing to let go of."""
