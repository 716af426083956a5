"""Which panels are open: a cell that is run again replaces its panel, and the end of the program leaves nothing.

Keyed by what a panel stands on: two panels on one directory would be in each other's way.
"""

import atexit
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar


class Closable(Protocol):
    """What can be registered."""

    def close(self) -> None:
        """End it, and all that belongs to it. Called again, it does nothing."""
        ...


T = TypeVar("T", bound=Closable)

_open: dict[str, Closable] = {}
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


atexit.register(close_all)
