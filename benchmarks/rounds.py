"""Rounds of contenders, and what they came to. Knows no queue."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

#: Does as many operations as it likes, and says how many; called until the time is up.
Contender = Callable[[], int]


class Spread(NamedTuple):
    """The median of the rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: list[float]) -> "Spread":
        return cls(statistics.median(figures), min(figures), max(figures))


def rates(contenders: Mapping[str, Contender], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Operations a second of each contender in each round, after one round of warm-up."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, contender in contenders.items():
            rate = _rate(contender, seconds if number else min(seconds, 0.2))
            if number:
                figures[name].append(rate)
    return figures


def ratio(figures: Mapping[str, list[float]], name: str, base: str) -> Spread:
    """`name` over `base`, round by round."""
    return Spread.of([one / other for one, other in zip(figures[name], figures[base], strict=True)])


def timed(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each call."""
    figures = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        figures.append(time.perf_counter() - started)
    return figures


def _rate(contender: Contender, seconds: float) -> float:
    started = time.perf_counter()
    done = 0
    while (elapsed := time.perf_counter() - started) < seconds:
        done += contender()
    return done / elapsed
