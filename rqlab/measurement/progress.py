"""How far a measurement is. Drawn only between two rows, by the thread that measures: a bar that moves by itself would
take turns at the interpreter with the callers that are timed."""

import sys
from types import TracebackType
from typing import Any, Self

from rqlab import clock


class Progress:
    """A line on stderr: a bar in a terminal, a line written over in a notebook, nothing in a pipe or a log."""

    def __init__(self, rows: int, is_wanted: bool) -> None:
        self._rows = rows
        self._done = 0
        self._began = clock.monotonic()
        self._bar: Any = None
        self._is_notebook = is_wanted and "ipykernel" in sys.modules
        if is_wanted and not self._is_notebook and sys.stderr.isatty():
            self._bar = _bar()
            self._row = self._bar.add_task("", total=rows)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._is_notebook:
            self._write_over("")

    def next(self, what: str) -> None:
        """Say what is measured now."""
        if self._bar is not None:
            self._bar.update(self._row, completed=self._done, description=what, refresh=True)
        elif self._is_notebook:
            spent = clock.monotonic() - self._began
            left = f", {spent / self._done * (self._rows - self._done):.0f} s left" if self._done else ""
            self._write_over(f"row {self._done + 1} of {self._rows}: {what}{left}")
        self._done += 1

    def _write_over(self, line: str) -> None:
        print(f"\r{line:<70}", end="" if line else "\r", file=sys.stderr, flush=True)


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
