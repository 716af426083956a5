"""How much a simulation gets through: events, seeds and power cuts a second, beside the floor of the bare world."""

import time
from collections.abc import Callable
from typing import Any

from rich.table import Table

import rqlab
from benchmarks.rounds import Spread
from rqlab.engine import Ending, Engine, Pull, Push
from rqlab.ids import Ids
from rqlab.job import Job
from rqlab.lifecycle import Event
from rqlab.simulation.chance import Chance
from rqlab.simulation.history import History, hash_of
from rqlab.simulation.world import Actor, World
from rqlab.storage.memory import MemoryStore

EVENTS = 60_000  # of the bare world
JOBS = 2_000  # of a simulation in memory
SEEDS = 6  # a round


def simulation(rounds: int) -> Table:
    """One row a figure, with the floor that the design names."""
    figures: dict[str, tuple[Callable[[int], float], str]] = {
        "bare world, keyed ties and hash: events/s": (_bare_world, "300,000"),
        "bare engine, no world: events/s": (_bare_engine, ""),
        "memory store: engine events/s": (lambda number: _in_memory(checks=()), "50,000"),
        "memory store, every check: engine events/s": (lambda number: _in_memory(), "20,000"),
        "durable, 60 jobs, 12 faults: seeds/s": (_seeds, "5"),
        "simulate(crashes=3): ms": (_default, "300 (at most)"),
        "cut, recover, check: cuts/s": (_cuts, "150"),
    }
    table = Table(title="simulation, seconds of this process's own CPU time", title_justify="left")
    for column in ("what", "median (lowest-highest)", "floor"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, (measure, floor) in figures.items():
        spread = Spread.of([measure(number) for number in range(rounds)])
        table.add_row(name, f"{spread.median:,.0f} ({spread.low:,.0f}-{spread.high:,.0f})", floor)
    return table


class _Ticker(Actor):
    """Notes that it was called."""

    __slots__ = ("history",)

    history: History

    def step(self, now: int) -> int:
        self.history.raw.append((now, "heartbeat", "", self.name, -1, None))
        return now + 7


def _bare_world(number: int) -> float:
    world, history = World(Chance(number)), History()
    for each in range(50):
        ticker = _Ticker(f"actor {each}")
        ticker.history = history
        world.call(ticker, each)
    started = time.process_time()
    world.run(EVENTS * 7 // 50)
    hash_of(history.happenings(), ())
    return world.steps / (time.process_time() - started)


def _bare_engine(number: int) -> float:
    engine, ids = Engine(MemoryStore(), lambda purpose, entity, counter: 0.5), Ids(lambda bits: number)
    request = Pull(("line",), 1, "worker", 30.0)
    started = time.process_time()
    for at in range(JOBS):
        engine.push([(Push(Job(id="", queue="line", name="no-op")), ids.draw(at))], at)
    jobs = engine.pull(request, JOBS)
    while jobs:
        _, jobs = engine.finish([Ending(jobs[0], Event.ACK)], request, JOBS)
    return 3 * JOBS / (time.process_time() - started)


def _in_memory(**options: Any) -> float:
    started = time.process_time()
    result = rqlab.simulate(
        0, faults=(), seed=1, store="memory", workers=4, jobs=JOBS, duration=0.5, stall_timeout=10, **options
    )
    return sum("state" in each.detail for each in result.history) / (time.process_time() - started)


def _seeds(number: int) -> float:
    started = time.process_time()
    for seed in range(SEEDS):
        rqlab.simulate(3, seed=number * SEEDS + seed, jobs=60, faults=9)
    return SEEDS / (time.process_time() - started)


def _default(number: int) -> float:
    started = time.process_time()
    rqlab.simulate(seed=number)
    return (time.process_time() - started) * 1000


def _cuts(number: int) -> float:
    started = time.process_time()
    result = rqlab.simulate(cuts="every-operation", jobs=3, seed=number)
    assert result.cuts is not None
    return len(result.cuts) / (time.process_time() - started)
