"""The wall clock, and the loop that drives steps by it. For the front door, the supervisor, measurement and the CLI.

Everything below them takes `now` as an argument; `tests/test_house.py` holds that no other file reads a clock.
"""

import time
from collections.abc import Callable
from queue import Empty, SimpleQueue


def now() -> int:
    """Milliseconds since the Unix epoch, UTC, by the wall: it may jump, also back."""
    return time.time_ns() // 1_000_000


def monotonic() -> float:
    """Seconds that never go back: for waiting, not for records."""
    return time.monotonic()


class Bell:
    """Wakes one waiting thread. Ringing is safe anywhere, in a signal handler too: SimpleQueue is reentrant."""

    def __init__(self) -> None:
        self._rings: SimpleQueue[None] = SimpleQueue()

    def ring(self) -> None:
        if self._rings.empty():
            self._rings.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait for a ring, at most `seconds`; whether it rang."""
        try:
            if seconds <= 0:
                self._rings.get_nowait()
            else:
                self._rings.get(timeout=seconds)
        except Empty:
            return False
        return True


def run(step: Callable[[int], int | None], bell: Bell, longest_wait: float = 3600.0) -> None:
    """Call `step(now)`; it says when to call again (ms since the epoch), or None to end. A ring calls it at once.

    The wait is by the monotonic clock and never longer than the step asked for when it asked, so a wall clock that goes
    back delays nothing by more than one such wait.
    """
    while True:
        asked_at = now()
        again_at = step(asked_at)
        if again_at is None:
            return
        bell.wait(min(max(again_at - now(), 0) / 1000, max(again_at - asked_at, 0) / 1000, longest_wait))
