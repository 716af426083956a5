"""Which panels are open: a cell that is run again replaces its panel, and the end of the program leaves nothing.

Keyed by what a panel stands on: two panels on one directory would be in each other's way.
"""

import atexit
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from rqlab import notebook


class Closable(Protocol):
    """What can be registered."""

    def close(self) -> None:
        """End it, and all that belongs to it. Called again, it does nothing."""
        ...


T = TypeVar("T", bound=Closable)

_open: dict[str, Closable] = {}
_calls: dict[tuple[str, int], int] = {}  #: by panel and cell, and how often it was run: calls so far
_lock = threading.RLock()  # held while one panel takes another's place: a cell may be run in two threads


def replace(key: str, make: Callable[[], T]) -> T:
    """Close what is open under this key, then make what takes its place."""
    with _lock:
        before = _open.pop(key, None)
        if before is not None:
            before.close()
        made = make()
        _open[key] = made
        return made


def forget(panel: Closable) -> None:
    """It is closed."""
    with _lock:
        for key in [key for key, each in _open.items() if each is panel]:
            del _open[key]


def close_all() -> None:
    """Close every panel; at exit, too."""
    with _lock:
        while _open:
            _open.popitem()[1].close()


def cell(panel: str) -> str:
    """A key for a panel that stands on nothing but the call that makes it; to be asked by the function called.

    It is the notebook's cell, if the kernel knows it, and the number of the call in it; else the line of the call.
    """
    caller = sys._getframe(2)
    shell = notebook.shell()
    parent = getattr(shell, "parent_header", None)
    metadata = parent.get("metadata") if isinstance(parent, Mapping) else None
    name = metadata.get("cellId") if isinstance(metadata, Mapping) else None
    if not name:
        return f"{panel} {caller.f_code.co_filename}:{caller.f_lineno}"
    run = (f"{panel} {name}", int(getattr(shell, "execution_count", 0)))
    if run not in _calls:
        _calls.clear()  # another cell, or this one again
    _calls[run] = _calls.get(run, 0) + 1
    return f"{panel} {name} {_calls[run]}"


atexit.register(close_all)
