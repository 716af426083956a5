"""A line: texts in order, cheap at the two ends where a queue works. Knows no job and no store.

A line is a list of short sorted lists, its blocks. Jobs mostly come in behind all others and go out at the head, and
both are then one step on one block; whatever happens in the middle is found by bisection. A change in the midst of
which an interrupt lands leaves a line that must be made anew.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from itertools import islice

BLOCK = 1_024  # texts; taking out the head moves them, and at 300 000 jobs 128 to 1 024 measured alike


class Line:
    """Different texts, sorted."""

    __slots__ = ("_blocks", "_starts")

    def __init__(self, places: Iterable[str] = ()) -> None:
        ordered = sorted(places)
        #: No block is empty, but the only one of an empty line.
        self._blocks = [ordered[at : at + BLOCK] for at in range(0, len(ordered), BLOCK)] or [[]]
        #: Where each block's range starts: not after its first text, and behind the last of the block before.
        self._starts = ["", *(block[0] for block in self._blocks[1:])]

    def add(self, place: str) -> None:
        """Let `place` in; it must not stand there yet."""
        block = self._blocks[-1]
        if not block or place > block[-1]:
            if len(block) < BLOCK:
                block.append(place)
            else:
                self._blocks.append([place])
                self._starts.append(place)
            return
        index = bisect_right(self._starts, place) - 1
        block = self._blocks[index]
        insort(block, place)
        if len(block) > 2 * BLOCK:
            self._blocks.insert(index + 1, block[BLOCK:])
            self._starts.insert(index + 1, block[BLOCK])
            del block[BLOCK:]

    def remove(self, place: str) -> None:
        """Let `place` out; it must stand there."""
        index = at = 0
        block = self._blocks[0]
        if block[0] != place:
            index, at = self._find(place)
            block = self._blocks[index]
            assert block[at] == place, f"{place} does not stand in this line"
        del block[at]
        if not block and len(self._blocks) > 1:
            del self._blocks[index], self._starts[index]
            self._starts[0] = ""

    def first(self, start: str, end: str) -> str | None:
        """The first place in [start, end)."""
        block = self._blocks[0]
        if not block:
            return None
        place = block[0]
        if place < start:
            index, at = self._find(start)
            if index == len(self._blocks):
                return None
            place = self._blocks[index][at]
        return place if place < end else None

    def count(self, start: str, end: str) -> int:
        """How many places are in [start, end)."""
        (index, at), (last, stop) = self._find(start), self._find(max(start, end))
        return sum(map(len, self._blocks[index:last])) + stop - at

    def run(self, start: str, end: str, limit: int) -> list[str]:
        """Up to `limit` places in [start, end), in order."""
        index, at = self._find(start)
        found: list[str] = []
        for block in islice(self._blocks, index, None):
            stop = len(block) if block[-1] < end else bisect_left(block, end)
            found += block[at : min(stop, at + limit - len(found))]
            if stop < len(block) or len(found) == limit:
                break
            at = 0
        return found

    def run_backwards(self, start: str, end: str, limit: int) -> list[str]:
        """Up to `limit` places in [start, end), from the last to the first."""
        index, stop = self._find(end)
        found: list[str] = []
        while len(found) < limit and (index or stop):
            if stop == 0:  # nothing is left of this block, and there is one before it
                index -= 1
                stop = len(self._blocks[index])
            block = self._blocks[index]
            low = max(bisect_left(block, start, 0, stop), stop - limit + len(found))
            found += reversed(block[low:stop])
            if low > 0:
                break
            stop = 0
        return found

    def _find(self, place: str) -> tuple[int, int]:
        """The block and the index in it of the first text that is not before `place`; behind all blocks if none is."""
        index = bisect_right(self._starts, place) - 1
        at = bisect_left(self._blocks[index], place)
        return (index, at) if at < len(self._blocks[index]) else (index + 1, 0)
