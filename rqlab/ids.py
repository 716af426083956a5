"""Job ids: UUIDv7 text whose order is push order. Time and chance are arguments; it reads no clock.

Layout (RFC 9562, method 1): 48 bits of milliseconds, version, a 12-bit counter, variant, 62 random bits, drawn anew for
each millisecond. Within it the counter rises from a random start; when it is used up, or the clock goes back, the
milliseconds run ahead of the clock instead, so ids of one process rise strictly whatever the clock does.
"""

import threading
from collections.abc import Callable

from rqlab.errors import Reentered

COUNTERS = 2**12
START_BITS = 9  # the counter starts below 512: at least 3 584 ids fit into each millisecond


class Ids:
    """Draws ids; one instance serves a whole process, from any thread."""

    def __init__(self, random_bits: Callable[[int], int]) -> None:
        self._random_bits = random_bits
        self._lock = threading.RLock()  # it alone can say that this thread holds it
        self._millisecond = -1  # virtual time may start at 0
        self._counter = 0
        self._head = ""
        self._tail = ""

    def draw(self, now: int) -> str:
        """A new id at `now` (milliseconds since the epoch), above every id this instance has drawn."""
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise Reentered
        with self._lock:
            self._advance(now)
            return f"{self._head}{'%03x' % self._counter}{self._tail}"  # noqa: UP031  # half the time of `:03x`

    def draw_many(self, now: int, count: int) -> list[str]:
        """As many calls of `draw`, under one lock."""
        drawn: list[str] = []
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise Reentered
        with self._lock:
            while len(drawn) < count:
                self._advance(now)
                numbers = range(self._counter, min(self._counter + count - len(drawn), COUNTERS))
                self._counter = numbers[-1]  # used up before any is given out: an interrupt may not bring one twice
                head, tail = self._head, self._tail
                drawn += [f"{head}{'%03x' % number}{tail}" for number in numbers]  # noqa: UP031  # as above
        return drawn

    def part_from_parent(self) -> None:
        """In the child of a fork: go on under random bits of its own, or it would draw its parent's next ids."""
        self._lock = threading.RLock()  # another thread of the parent may have held it
        if self._millisecond >= 0:
            self._start(self._millisecond + 1)

    def _advance(self, now: int) -> None:
        self._counter += 1
        if now > self._millisecond or self._counter >= COUNTERS:
            self._start(max(now, self._millisecond + 1))

    def _start(self, millisecond: int) -> None:
        digits = f"{millisecond:012x}"
        tail = f"{self._random_bits(62) | 1 << 63:016x}"  # the variant is the two top bits, 10
        self._millisecond = millisecond  # first, and the counter last: whatever an interrupt leaves goes on rising
        self._head = f"{digits[:8]}-{digits[8:]}-7"
        self._tail = f"-{tail[:4]}-{tail[4:]}"
        self._counter = self._random_bits(START_BITS)
