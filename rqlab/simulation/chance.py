"""Chance, as a function: every draw has a name, and the same name under the same seed is the same number.

There is no generator to advance. So a fault that is taken out of a plan moves no other draw, and plans shrink.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")

FRACTION_BITS = 53  # of a float: every multiple of 2^-53 in [0, 1) is one
FRACTION = 2.0**-FRACTION_BITS


class Chance:
    """Draws by (purpose, entity, counter) under one seed: which question, about whom, for the how-manieth time."""

    __slots__ = ("_keyed", "seed")

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._keyed = blake2b(digest_size=8, key=blake2b(b"rqlab/%d" % seed).digest())

    def __call__(self, purpose: str, entity: str, counter: int = 0) -> float:
        """A number in [0, 1)."""
        digest = self._keyed.copy()  # as `bits` does, in one call: a world draws five times an event
        digest.update(f"{purpose}/{entity}/{counter}".encode())
        return (int.from_bytes(digest.digest()) >> (64 - FRACTION_BITS)) * FRACTION

    def bits(self, purpose: str, entity: str, counter: int = 0) -> int:
        """64 random bits."""
        return int.from_bytes(self.tie(f"{purpose}/{entity}", counter))

    def tie(self, entity: str, counter: int) -> bytes:
        """Eight bytes to sort by."""
        digest = self._keyed.copy()  # half the time of taking in the key anew
        digest.update(f"{entity}/{counter}".encode())
        return digest.digest()

    def between(self, low: float, high: float, purpose: str, entity: str, counter: int = 0) -> float:
        return low + (high - low) * self(purpose, entity, counter)

    def choice(self, options: Sequence[T], purpose: str, entity: str, counter: int = 0) -> T:
        return options[int(self(purpose, entity, counter) * len(options))]

    def weighted(self, weights: dict[str, float], purpose: str, entity: str, counter: int = 0) -> str:
        """One of the names, each as likely as its weight says."""
        left = self(purpose, entity, counter) * sum(weights.values())
        for name, weight in weights.items():
            left -= weight
            if left < 0:
                return name
        return next(reversed(weights))  # a rounding error at the very end
