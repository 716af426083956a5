"""`python -m benchmarks`: the floors that the design promises, and what this machine gives."""

import argparse
import itertools
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

import rqlab
from benchmarks.big import big_store
from benchmarks.machine import machine
from benchmarks.modes import modes
from benchmarks.opening import opening
from benchmarks.panel import panel
from benchmarks.processes import processes
from benchmarks.rounds import Contender, Spread, rates, ratio
from benchmarks.simulation import simulation

BACKLOG = 300_000  # waiting jobs in memory while it is measured
RECORD_BYTES = 300  # what a small job's record takes; the bare insert writes as much
SECONDS_AMONG_PROCESSES = 3  # times as long as other contenders: the worst wait is a rare one
BURST = 20  # operations between two looks at the clock


def main() -> None:
    """Measure everything, print one table a subject."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="each gives one figure of each contender; 5 if not given")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each contender in each round; 1 if not given")
    parser.add_argument("--directory", default=None, help="on the disk to measure; the system's temporary one if none")
    parser.add_argument("--finished", type=int, default=1_000_000, help="finished jobs in the big store")
    parser.add_argument("--waiting", type=int, default=100_000, help="waiting jobs in the big store")
    parser.add_argument("--stored", type=int, default=1_000_000, help="waiting jobs in the directory that is opened")
    parser.add_argument(
        "--only",
        choices=("durable", "modes", "memory", "processes", "big", "open", "simulation", "panel"),
        default=None,
    )
    given = parser.parse_args()
    console = Console(width=110)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rqlab-bench-", dir=given.directory)))
        console.print(machine(directory))
        if given.only in (None, "durable"):
            console.print(_durable(directory, given.rounds, given.seconds))
        if given.only in (None, "modes"):
            console.print(modes(directory, given.rounds))
        if given.only in (None, "memory"):
            console.print(_memory(given.rounds, given.seconds))
        if given.only in (None, "processes"):
            console.print(processes(directory, given.rounds, given.seconds * SECONDS_AMONG_PROCESSES))
        if given.only in (None, "big"):
            console.print(big_store(directory, given.finished, given.waiting))
        if given.only in (None, "open"):
            console.print(opening(directory, given.stored, given.rounds))
        if given.only in (None, "simulation"):
            console.print(simulation(given.rounds))
        if given.only in (None, "panel"):
            console.print(panel(given.rounds))


def _durable(directory: Path, rounds: int, seconds: float) -> Table:
    """Pushes and cycles against the bare commit rate of the same disk."""
    with ExitStack() as stack:
        bare = _bare(stack, directory)
        rq = stack.enter_context(rqlab.open(directory / "durable"))
        pool = stack.enter_context(ThreadPoolExecutor(32))
        contenders: dict[str, Contender] = {
            "bare SQLite FULL": bare,
            "push, 1 thread": lambda: _pushes(rq, "one", BURST),
            "push, 32 threads": lambda: sum(pool.map(lambda _: _pushes(rq, "many", BURST), range(32))),
            "cycle (drain)": lambda: _cycles(rq, lambda: rq.drain("cycle", _no_op)),
            "cycle (worker, 1 thread)": lambda: _worker_cycles(rq, concurrency=1),
        }
        figures = rates(contenders, rounds, seconds)
    table = _table("durable, on this disk", "ops/s", "ratio", "floor")
    for name in contenders:
        table.add_row(name, _rate(figures[name]), *_against(name, figures))
    return table


#: contender -> (what it is measured against, the floor of the ratio)
FLOORS = {
    "push, 1 thread": ("bare SQLite FULL", 0.45),
    "push, 32 threads": ("push, 1 thread", 3.0),
    "cycle (drain)": ("bare SQLite FULL", 0.4),
    "cycle (worker, 1 thread)": ("bare SQLite FULL", 0.4),
}


def _memory(rounds: int, seconds: float) -> Table:
    """Pushes and cycles with a long line."""
    with rqlab.memory() as rq:
        for _ in range(BACKLOG // 1000):
            rq.push_many("line", [{"name": "no-op"}] * 1000)

        def pull_and_ack() -> int:
            for _ in range(BURST):
                (job,) = rq.pull("line")
                rq.ack(job)
            return BURST

        contenders: dict[str, Contender] = {
            "push": lambda: _pushes(rq, "line", BURST * 10),
            "push_many (1 000 a call)": lambda: len(rq.push_many("line", [{"name": "no-op"}] * 1000)),
            "cycle (pull, ack)": pull_and_ack,
            "cycle (drain)": lambda: sum(rq.drain("line", _no_op, limit=1000).values()),
        }
        figures = rates(contenders, rounds, seconds)
    table = _table(f"memory, at {BACKLOG:,} waiting or more", "ops/s", "floor", "verdict")
    for name in contenders:
        table.add_row(name, _rate(figures[name]), *_judged(name, figures[name]))
    return table


#: contender -> the floor of its rate, in operations a second
MEMORY_FLOORS = {"push": 150_000, "cycle (pull, ack)": 40_000}


def _bare(stack: ExitStack, directory: Path) -> Contender:
    connection = sqlite3.connect(directory / "bare.db", isolation_level=None)
    stack.callback(connection.close)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE bare (id INTEGER PRIMARY KEY, key TEXT UNIQUE, value BLOB)")
    value = b"x" * RECORD_BYTES

    def insert() -> int:
        for _ in range(BURST):
            connection.execute("INSERT INTO bare(key, value) VALUES (?, ?)", (str(time.perf_counter_ns()), value))
        return BURST

    return insert


def _pushes(rq: rqlab.Queues, queue: str, count: int) -> int:
    for number in range(count):
        rq.push(queue, "no-op", {"number": number})
    return count


def _cycles(rq: rqlab.Queues, run: Callable[[], object]) -> int:
    """Only the cycles are timed by the caller's clock: the pushes share one commit."""
    rq.push_many("cycle", [{"name": "no-op", "data": {"number": number}} for number in range(500)])
    run()
    return 500


def _worker_cycles(rq: rqlab.Queues, concurrency: int) -> int:
    """This thread is woken once, at the end: waking it for every job would be a tenth of what is timed."""
    done = itertools.count(1)
    is_done = threading.Event()

    def handler(job: rqlab.Job) -> None:
        if next(done) == 500:
            is_done.set()

    rq.push_many("worked", [{"name": "no-op", "data": {"number": number}} for number in range(500)])
    with rq.worker("worked", handler, concurrency=concurrency):
        is_done.wait()
    return 500


def _no_op(job: rqlab.Job) -> None:
    pass


def _against(name: str, figures: dict[str, list[float]]) -> tuple[str, str]:
    if name not in FLOORS:
        return "", ""
    base, floor = FLOORS[name]
    spread = ratio(figures, name, base)
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f}) x {base}", f"{floor:g}"


def _judged(name: str, figures: list[float]) -> tuple[str, str]:
    """The floor of a rate, and whether the median of the rounds meets it."""
    if name not in MEMORY_FLOORS:
        return "", ""
    floor = MEMORY_FLOORS[name]
    return f"{floor:,}", "met" if Spread.of(figures).median >= floor else "missed"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _rate(figures: list[float]) -> str:
    spread = Spread.of(figures)
    return f"{spread.median:,.0f} ({spread.low:,.0f}-{spread.high:,.0f})"


if __name__ == "__main__":
    main()
