"""How far a measurement is. Drawn only between two rows, by the thread that measures: a bar that moves by itself would
take turns at the interpreter with the callers that are timed."""

import importlib
import sys
from types import TracebackType
from typing import Any, Self

from rqlab import clock, notebook


class Progress:
    """A bar on stderr in a terminal, a line that is written over in a notebook, nothing in a pipe or a log."""

    def __init__(self, rows: int, is_wanted: bool) -> None:
        self._rows = rows
        self._done = 0
        self._began = clock.monotonic()
        self._bar: Any = None
        self._line: Any = None
        if is_wanted and notebook.is_kernel():
            self._line = importlib.import_module("IPython.display").display(_plain(""), raw=True, display_id=True)
        elif is_wanted and sys.stderr.isatty():
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
        elif self._line is not None:
            took = clock.monotonic() - self._began
            self._line.update(_plain(f"measured {self._done} of {self._rows} rows in {took:.0f} s"), raw=True)

    def next(self, what: str) -> None:
        """Say what is measured now."""
        if self._bar is not None:
            self._bar.update(self._row, completed=self._done, description=what, refresh=True)
        elif self._line is not None:
            spent = clock.monotonic() - self._began
            left = f", {spent / self._done * (self._rows - self._done):.0f} s left" if self._done else ""
            self._line.update(_plain(f"row {self._done + 1} of {self._rows}: {what}{left}"), raw=True)

    def done(self) -> None:
        """A row is complete."""
        self._done += 1


def _plain(text: str) -> dict[str, str]:
    """A notebook's output: text that can be replaced, not a widget, which a saved notebook cannot show."""
    return {"text/plain": text}


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
