"""What the modes that become safe later give: buffered and hybrid, beside durable and memory, on one disk in one run.

A burst is answered before anything is safe, so it is timed alone, and what it left unsafe is flushed untimed. The
sustained rate is the opposite: pushes for ten snapshot intervals, and the clock stops when all of them are safe.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

import rqlab
from benchmarks.rounds import Spread

BURST = 15_000  # pushes: below the bound of 4 x max_dirty, where writers wait
SNAPSHOT_INTERVALS = 10
ITEMS = 1_000  # a push_many


class Figure(NamedTuple):
    """One row of the table: what is measured, its floor, and one round of it."""

    name: str
    unit: str
    floor: str
    is_met: Callable[[float], bool]
    once: Callable[[], float]


class Sustained(NamedTuple):
    """One sustained run."""

    pushes_per_second: float  #: until all is safe
    longest_wait: float  #: seconds, of one push
    most_unsafe: float  #: writes at once, sampled
    oldest_unsafe: float  #: seconds, sampled


def modes(directory: Path, rounds: int) -> Table:
    """Interleaved rounds of everything; median (low-high), beside the floors."""
    with ExitStack() as stack:
        rq = {
            name: stack.enter_context(rqlab.open(directory / f"mode-{name}", name))
            for name in ("durable", "buffered", "hybrid")
        }
        pool = stack.enter_context(ThreadPoolExecutor(100))
        sustained: list[Sustained] = []

        def sustain() -> float:
            sustained.append(_sustained(rq["hybrid"]))
            return sustained[-1].pushes_per_second

        one_caller: list[float] = []

        def durable_one() -> float:
            one_caller.append(_rate(lambda: _pushes(rq["durable"], 300), 300))
            return one_caller[-1]

        figures = [
            Figure("durable push, 1 caller", "/s", "", lambda rate: True, durable_one),
            Figure(
                "durable push, 100 callers / 1 caller",
                "x",
                "4",
                lambda ratio: ratio >= 4,
                lambda: _from_many(pool, rq["durable"], 100, 30) / one_caller[-1],
            ),
            _at_least(15_000, "buffered push, 1 caller", lambda: _rate(lambda: _pushes(rq["buffered"], 5_000), 5_000)),
            _at_least(12_000, "buffered push, 4 callers", lambda: _from_many(pool, rq["buffered"], 4, 2_000)),
            _at_least(6_000, "buffered cycle (drain)", lambda: _cycles(rq["buffered"], 2_000)),
            _at_least(
                150_000, "hybrid burst, push", lambda: _burst(rq["hybrid"], lambda: _pushes(rq["hybrid"], BURST))
            ),
            _at_least(300_000, "hybrid burst, push_many", lambda: _burst(rq["hybrid"], lambda: _many(rq["hybrid"]))),
            _at_least(40_000, "hybrid sustained push, until all is safe", sustain),
            Figure(
                "hybrid sustained, longest wait of a push",
                "s",
                "1",
                lambda seconds: seconds <= 1,
                lambda: sustained[-1].longest_wait,
            ),
            Figure(
                "hybrid sustained, most unsafe writes",
                "",
                "20,000",
                lambda writes: writes <= 20_000,
                lambda: sustained[-1].most_unsafe,
            ),
            Figure(
                "hybrid sustained, oldest unsafe write",
                "s",
                "1 + a snapshot",
                lambda seconds: seconds <= 2,
                lambda: sustained[-1].oldest_unsafe,
            ),
            _at_least(0, "hybrid cycle (drain)", lambda: _cycles(rq["hybrid"], 4_000)),
        ]
        found: dict[str, list[float]] = {figure.name: [] for figure in figures}
        for number in range(rounds + 1):
            for figure in figures:
                one = figure.once()
                if number:  # the first is the warm-up
                    found[figure.name].append(one)
    table = Table(title="the modes, on this disk", title_justify="left")
    for column in ("what", "median (low-high)", "floor", "met"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for figure in figures:
        spread = Spread.of(found[figure.name])
        verdict = ("yes" if figure.is_met(spread.median) else "NO") if figure.floor else ""
        table.add_row(figure.name, _shown(spread, figure.unit), figure.floor, verdict)
    return table


def _at_least(floor: int, name: str, once: Callable[[], float]) -> Figure:
    return Figure(name, "/s", f"{floor:,}" if floor else "", lambda rate: rate >= floor, once)


def _shown(spread: Spread, unit: str) -> str:
    digits = 0 if spread.median >= 100 else 2
    median, low, high = (f"{each:,.{digits}f}" for each in (spread.median, spread.low, spread.high))
    return f"{median}{unit} ({low}-{high})"


def _rate(run: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    run()
    return count / (time.perf_counter() - started)


def _pushes(rq: rqlab.Queues, count: int) -> None:
    for number in range(count):
        rq.push("pushed", "no-op", {"number": number})


def _many(rq: rqlab.Queues) -> None:
    items = [{"name": "no-op", "data": {"number": number}} for number in range(ITEMS)]
    for _ in range(BURST // ITEMS):
        rq.push_many("pushed", items)


def _from_many(pool: ThreadPoolExecutor, rq: rqlab.Queues, callers: int, each: int) -> float:
    return _rate(lambda: list(pool.map(lambda _: _pushes(rq, each), range(callers))), callers * each)


def _cycles(rq: rqlab.Queues, count: int) -> float:
    rq.push_many("cycle", [{"name": "no-op", "data": {"number": number}} for number in range(count)])
    rq.flush()
    return _rate(lambda: rq.drain("cycle", lambda job: None), count)


def _burst(rq: rqlab.Queues, run: Callable[[], object]) -> float:
    rq.flush()
    rate = _rate(run, BURST)
    rq.flush()
    return rate


def _sustained(rq: rqlab.Queues) -> Sustained:
    keeper = rq._supervisor.keeper
    assert keeper is not None, "a hybrid directory has a keeper"
    ended = threading.Event()
    looks: list[dict[str, float]] = []

    def watch() -> None:
        while not ended.wait(0.02):
            looks.append(keeper.at_risk(time.time_ns() // 1_000_000))

    rq.flush()
    watcher = threading.Thread(target=watch)
    watcher.start()
    longest, count = 0.0, 0
    started = before = time.perf_counter()
    while before - started < SNAPSHOT_INTERVALS * keeper.interval_ms / 1000:
        rq.push("pushed", "no-op", {"number": count})
        now = time.perf_counter()
        longest = max(longest, now - before)
        before = now
        count += 1
    rq.flush()
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    return Sustained(
        count / seconds,
        longest,
        max(look["unsafe_writes"] for look in looks),
        max(look["unsafe_seconds"] for look in looks),
    )
