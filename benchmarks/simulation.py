"""How much a simulation gets through: events, seeds and power cuts a second, beside the floor of the bare world."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table

import rqlab
from benchmarks.rounds import Spread
from rqlab.engine import Ending, Engine, Pull, Push
from rqlab.ids import Ids
from rqlab.job import Job
from rqlab.lifecycle import Event
from rqlab.simulation import recovery
from rqlab.simulation.chance import Chance
from rqlab.simulation.checks import CHECKS
from rqlab.simulation.history import History, hash_of
from rqlab.simulation.ledger import read
from rqlab.simulation.machine import JOBS
from rqlab.simulation.platter import Cut, Platter
from rqlab.simulation.recorder import Recorder
from rqlab.simulation.world import Actor, World
from rqlab.storage.memory import MemoryStore

EVENTS = 60_000  # of the bare world
MANY_JOBS = 2_000  # of a simulation in memory
SEEDS = 6  # a round
CUT_JOBS = 20
STORE_CUTS = 150  # a round
FIRST = """
import time, rqlab
started = time.process_time()
rqlab.simulate(crashes=3, seed={seed})
print((time.process_time() - started) * 1000)
"""


def simulation(rounds: int) -> Table:
    """One row a figure, with the floor that the design names."""
    figures: dict[str, tuple[Callable[[int], float], str]] = {
        "bare world, keyed ties and hash: events/s": (_bare_world, "300,000"),
        "bare engine, no world: events/s": (_bare_engine, ""),
        "memory store: engine events/s": (lambda number: _in_memory(checks=()), "50,000"),
        "memory store, every check: engine events/s": (lambda number: _in_memory(), "20,000"),
        "durable, 60 jobs, 12 faults: seeds/s": (_seeds, "5"),
        "simulate(crashes=3): ms": (_default, "300 (at most)"),
        "its first call in a fresh process, imports included: ms": (_first, "300 (at most)"),
        "1,000 of them: s": (_default, "200 (at most)"),
        "the same in simulated hours/s: how sparse its load is": (_hours, ""),
        "cut, recover, check by SQLite alone, 20 jobs: cuts/s": (_raw_cuts, "500"),
        "cut, recover by the store, recount, 20 jobs: cuts/s": (_store_cuts, "150"),
    }
    table = Table(title="simulation, seconds of the process's own CPU time", title_justify="left")
    for column in ("what", "median (lowest-highest)", "floor"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, (measure, floor) in figures.items():
        spread = Spread.of([measure(number) for number in range(rounds)])
        digits = 0 if spread.low >= 10 else 2
        table.add_row(name, f"{spread.median:,.{digits}f} ({spread.low:,.{digits}f}-{spread.high:,.{digits}f})", floor)
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
    for at in range(MANY_JOBS):
        engine.push([(Push(Job(id="", queue="line", name="no-op")), ids.draw(at))], at)
    jobs = engine.pull(request, MANY_JOBS)
    while jobs:
        _, jobs = engine.finish([Ending(jobs[0], Event.ACK)], request, MANY_JOBS)
    return 3 * MANY_JOBS / (time.process_time() - started)


def _in_memory(**options: Any) -> float:
    started = time.process_time()
    result = rqlab.simulate(
        0, faults=(), seed=1, store="memory", workers=4, jobs=MANY_JOBS, duration=0.5, stall_timeout=10, **options
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


def _first(number: int) -> float:
    command = [sys.executable, "-c", FIRST.format(seed=number)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _hours(number: int) -> float:
    started = time.process_time()
    result = rqlab.simulate(seed=number)
    return result.header.ended_at / 3600 / (time.process_time() - started)


@contextmanager
def _recorded(seed: int) -> Iterator[tuple[Platter, list[int], Path]]:
    """Jobs pushed and run in durable, as the disk saw it; where each push had returned; a scratch directory."""
    with recovery.scratch_directory() as scratch:
        directory = scratch / "recorded"
        directory.mkdir()
        with Recorder(directory, seed=seed) as recorder, rqlab.open(directory / JOBS) as rq:
            returned = []
            for _ in range(CUT_JOBS):
                rq.push("line", "no-op")
                returned.append(len(recorder))
            rq.drain("line", lambda job: None)
        yield Platter(recorder.recording), returned, scratch


def _raw_cuts(number: int) -> float:
    with _recorded(number) as (platter, returned, scratch):
        started = time.process_time()
        history = recovery.History(platter, JOBS, returned, scratch)
        verdicts = [history.judge(platter, Cut(at, "reorder", seed=number), scratch) for at in range(len(platter) + 1)]
        assert all(verdict.ok for verdict in verdicts)
        return 2 * len(verdicts) / (time.process_time() - started)  # the history cut everywhere too


def _store_cuts(number: int) -> float:
    with _recorded(number) as (platter, returned, scratch):
        started = time.process_time()
        for each in range(STORE_CUTS):
            cut = Cut(each * len(platter) // STORE_CUTS, "reorder", seed=number)
            with recovery.laid_out(platter, cut, scratch) as image, rqlab.open(image / JOBS) as rq:
                found = read(rq._store)
                assert CHECKS["I11"].broken(None, found) is None
                assert len(found.jobs) >= sum(at <= cut.at for at in returned)
        return STORE_CUTS / (time.process_time() - started)
