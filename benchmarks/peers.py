"""`python -m benchmarks.peers`: rqlab and other queues on one disk, each with what it loses when the power fails.

Speed means nothing beside a queue that promises less, so every row stands with its audit, and a floor is held only
against rows whose audit lost nothing. `--write` puts the result into benchmarks/README.md.
"""

import argparse
import contextlib
import datetime
import itertools
import logging
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

import rqlab
from benchmarks.contestants import LARGE, TIDY_EVERY, Acknowledging, Adapter, Contestant, contestants, settings_of
from benchmarks.machine import machine
from benchmarks.rounds import Contender, Spread, rates, ratio
from rqlab.simulation.audit import Loss, worst_of
from rqlab.simulation.recorder import Kind, Recorder

BURST = 20  # operations between two looks at the clock
WORKED = 100  # jobs that a worker finds when it is started
COSTED = 9  # batches of them whose CPU is taken
CALLERS = 8
AUDITED_PUSHES = 300  # a NORMAL queue syncs about once in so many
LEAST_CUTS = 20  # of each crash kind; a floor is held only against rows whose audit lost nothing
README = Path(__file__).with_name("README.md")
RESULTS = ("<!-- RESULTS: written by python -m benchmarks.peers --write -->", "<!-- /RESULTS -->")
NO_ACK = "no acknowledgement"


class Cost(NamedTuple):
    """What one job costs from its push to the end of its run by the worker: it says why a rate is as it is."""

    fsyncs: float
    cpu_seconds: float  #: of the process: Python, SQLite and the system's part of it; the median of some batches

    def __str__(self) -> str:
        return f"{self.fsyncs:.1f} fsyncs, {self.cpu_seconds * 1e6:,.0f} µs of CPU"


class Found(NamedTuple):
    """What was measured of a contestant."""

    contestant: Contestant
    settings: str  #: journal and synchronous, read from the live connection
    acknowledges: bool
    audit: rqlab.Audit | None  #: None if it was not asked for
    taken_at_kill: str  #: what becomes of a job that was taken when its process died
    cost: Cost
    figures: dict[str, list[float]]  #: operations a second in each round, by measure
    refused: Counter[str]  #: pushes that raised, by measure: "database is locked" when many processes write

    @property
    def keeps_all(self) -> bool:
        """Its audit lost nothing: the same durability as rqlab's `durable`."""
        return self.audit is not None and self.audit.ok


class Floor(NamedTuple):
    """What rqlab's durable mode is held to, against every peer of the same durability."""

    measure: str
    times: float  #: rqlab's figure is at least so many times the peer's


#: How the command line calls a measure, and how the table does.
ONLY = {
    "push": "push, 1 caller",
    "threads": f"push, {CALLERS} threads",
    "processes": f"push, {CALLERS} processes",
    "cycle": "job cycle, by hand",
    "worker": "job cycle, its worker",
    "cycles": f"job cycle, {CALLERS} threads",
}
MEASURES = tuple(ONLY.values())
CYCLES = (ONLY["cycle"], ONLY["worker"], ONLY["cycles"])
FLOORS = (Floor(ONLY["push"], 0.6), Floor(ONLY["threads"], 1.0), *(Floor(cycle, 1.0) for cycle in CYCLES))
OURS = "rqlab, durable"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, audit, print; write into the README if told to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    # Many short rounds: a shared disk changes within seconds, and a ratio is of two figures of one round.
    parser.add_argument("--rounds", type=int, default=11, help="each gives one figure of each row; 11 if not given")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each row in each round; 0.3 if not given")
    parser.add_argument("--directory", default=None, help="on the disk to measure; the system's temporary one if none")
    parser.add_argument("--only", choices=(*ONLY, "audit"), default=None, help="one measure, or no speed at all")
    parser.add_argument("--cuts", type=int, default=200, help="audited cuts of each crash kind; 200 if not given")
    parser.add_argument("--write", action="store_true", help="put the results into benchmarks/README.md")
    given = parser.parse_args(arguments)
    if given.cuts < LEAST_CUTS:
        parser.error(f"--cuts: expected at least {LEAST_CUTS}, got {given.cuts}: fewer miss what a queue loses")
    if given.write and given.only:
        parser.error("--write wants every measure: leave --only out")
    logging.getLogger("rqlab").setLevel(logging.ERROR)  # the stall of a job that was taken is meant
    console = Console(width=None if sys.stdout.isatty() else 200)
    measures = [measure for name, measure in ONLY.items() if given.only in (None, name)]
    present, absent = sort_out(contestants())
    with tempfile.TemporaryDirectory(prefix="rqlab-peers-", dir=given.directory) as directory:
        where = machine(Path(directory))
        found = look_at(present, Path(directory), measures, given.rounds, given.seconds, given.cuts, console.print)
        large = rqlab.audit(*audited(LARGE, 40), cuts=given.cuts)
    console.print(where)
    console.print(results(found, absent))
    if verdicts_of(found):
        console.print(verdicts(found))
    console.print(about_large(large))
    if given.write:
        README.write_text(rewritten(README.read_text(), report(found, absent, large, where)))
        console.print(f"written into {README}")


def sort_out(rows: Iterator[Contestant]) -> tuple[list[Contestant], list[Contestant]]:
    """Those that can run here, and those that are not installed."""
    everyone = list(rows)
    return [each for each in everyone if each.is_installed], [each for each in everyone if not each.is_installed]


# Measuring.


def look_at(
    rows: Sequence[Contestant],
    directory: Path,
    measures: Sequence[str],
    rounds: int,
    seconds: float,
    cuts: int,
    say: Callable[[str], None] = lambda text: None,
) -> list[Found]:
    """Audit every row, then time them: the rows of a measure one after the other in each round."""
    numbers = itertools.count()
    settings, acknowledges, audits, taken, costs = {}, {}, {}, {}, {}
    for row in rows:
        say(f"audit of {row.title}")
        with closing(row.open(_fresh(directory, numbers))) as adapter:
            settings[row.title] = settings_of(adapter)
            acknowledges[row.title] = isinstance(adapter, Acknowledging)
        audits[row.title] = rqlab.audit(*audited(row, AUDITED_PUSHES), cuts=cuts)
        taken[row.title] = taken_at_kill(row, directory, numbers)
        costs[row.title] = cost(row, directory, numbers)
    timed: dict[str, dict[str, list[float]]] = {row.title: {} for row in rows}
    refused: dict[str, Counter[str]] = {row.title: Counter() for row in rows}
    for measure in measures:
        say(f"{measure}, {rounds} rounds")
        with ExitStack() as stack:
            contenders = {
                row.title: MEASURING[measure](row, _fresh(directory, numbers), stack, refused[row.title])
                for row in rows
                if row.many_processes or "processes" not in measure
            }
            for title, figures in rates(contenders, rounds, seconds).items():
                timed[title][measure] = figures
    return [
        Found(row, settings[key], acknowledges[key], audits[key], taken[key], costs[key], timed[key], refused[key])
        for row, key in ((row, row.title) for row in rows)
    ]


def audited(row: Contestant, pushes: int) -> tuple[Callable[[Path], Iterator[int]], Callable[[Path], list[int]]]:
    """A workload of so many pushes, and what survives of it, as `rqlab.audit` asks for them."""

    def workload(directory: Path) -> Iterator[int]:
        with closing(row.open(directory)) as adapter:
            for number in range(pushes):
                adapter.push(number)
                yield number

    def survivors(directory: Path) -> list[int]:
        with closing(row.open(directory)) as adapter:
            return adapter.jobs()

    return workload, survivors


def taken_at_kill(row: Contestant, directory: Path, numbers: Iterator[int], patience: float = 3.0) -> str:
    """What becomes of the job that a worker was at when it was killed; the files are copied in that moment.

    `patience` is in seconds: what has not come back by then, with all that the library offers to help, is stuck.
    """
    before, after = _fresh(directory, numbers), _fresh(directory, numbers)
    with closing(row.open(before)) as adapter:
        adapter.push(7)
        adapter.take()
        adapter.flush()
        shutil.copytree(before, after, ignore=shutil.ignore_patterns("*-shm"), dirs_exist_ok=True)
    with closing(row.open(after)) as adapter:
        until = time.monotonic() + patience
        while time.monotonic() < until:
            adapter.recover()
            if adapter.take() is not None:
                return "comes back"
            time.sleep(0.05)
        return "stays locked" if 7 in adapter.jobs() else "gone"


def cost(row: Contestant, directory: Path, numbers: Iterator[int]) -> Cost:
    """What a job costs. Syncs are counted as SQLite asks for them; CPU is taken without the counting."""
    recorded, timed = _fresh(directory, numbers), _fresh(directory, numbers)
    with Recorder(recorded) as recorder, closing(row.open(recorded)) as adapter:
        _worked(adapter)
        start = len(recorder)
        _worked(adapter)
        adapter.flush()
        asked = recorder.operations[start:]
    syncs = sum(1 + operation.with_names for operation in asked if operation.kind is Kind.SYNC)
    with closing(row.open(timed)) as adapter:
        _worked(adapter)
        batches = []
        for _ in range(COSTED):
            before = time.process_time()
            _worked(adapter)
            adapter.flush()
            batches.append((time.process_time() - before) / WORKED)
    return Cost(syncs / WORKED, statistics.median(batches))


def _pushing(row: Contestant, directory: Path, stack: ExitStack, refused: Counter[str]) -> Contender:
    adapter = stack.enter_context(closing(row.open(directory)))
    numbers = itertools.count()
    return lambda: _sum([_burst(adapter, numbers)], ONLY["push"], refused)


def _pushing_from_threads(row: Contestant, directory: Path, stack: ExitStack, refused: Counter[str]) -> Contender:
    adapter = stack.enter_context(closing(row.open(directory)))
    pool = stack.enter_context(ThreadPoolExecutor(CALLERS))
    numbers = itertools.count()
    return lambda: _sum(pool.map(lambda _: _burst(adapter, numbers), range(CALLERS)), ONLY["threads"], refused)


def _pushing_from_processes(row: Contestant, directory: Path, stack: ExitStack, refused: Counter[str]) -> Contender:
    row.open(directory).close()  # eight that make a directory at once is another question
    spawn = multiprocessing.get_context("spawn")
    pool = stack.enter_context(ProcessPoolExecutor(CALLERS, spawn, _open_in_child, (row.open, directory)))
    list(pool.map(_burst_in_child, range(CALLERS)))  # they are all there before anything is timed
    return lambda: _sum(pool.map(_burst_in_child, range(CALLERS)), ONLY["processes"], refused)


def _cycling(row: Contestant, directory: Path, stack: ExitStack, refused: Counter[str]) -> Contender:
    adapter = stack.enter_context(closing(row.open(directory)))
    return partial(_cycles, adapter, itertools.count())


def _working(row: Contestant, directory: Path, stack: ExitStack, refused: Counter[str]) -> Contender:
    adapter = stack.enter_context(closing(row.open(directory)))
    return partial(_worked, adapter)


def _cycling_in_threads(row: Contestant, directory: Path, stack: ExitStack, refused: Counter[str]) -> Contender:
    adapter = stack.enter_context(closing(row.open(directory)))
    pool = stack.enter_context(ThreadPoolExecutor(CALLERS))
    theirs = [adapter.for_thread() for _ in range(CALLERS)]
    for each in theirs:
        if each is not adapter:
            stack.callback(each.close)

    def cycle() -> int:
        done = list(pool.map(_cycles_among_others, theirs))
        refused[ONLY["cycles"]] += BURST * CALLERS - sum(done)
        adapter.tidy()
        return sum(done)

    return cycle


#: measure -> what makes its contender, and counts what was refused
MEASURING: dict[str, Callable[[Contestant, Path, ExitStack, Counter[str]], Contender]] = dict(
    zip(
        MEASURES,
        (_pushing, _pushing_from_threads, _pushing_from_processes, _cycling, _working, _cycling_in_threads),
        strict=True,
    )
)


def _burst(adapter: Adapter, numbers: Iterator[int]) -> int:
    """How many of a burst of pushes returned; one that raises, as a library whose lock was not to be had, did not."""
    done = 0
    for _ in range(BURST):
        with contextlib.suppress(Exception):
            adapter.push(next(numbers))
            done += 1
    return done


def _sum(bursts: Iterable[int], measure: str, refused: Counter[str]) -> int:
    done = list(bursts)
    refused[measure] += BURST * len(done) - sum(done)
    return sum(done)


def _cycles(adapter: Adapter, numbers: Iterator[int]) -> int:
    """Push, take, acknowledge, one job at a time: three commits where nothing is left out."""
    for _ in range(BURST):
        number = next(numbers)
        adapter.push(number)
        taken = adapter.take()
        assert adapter.number_of(taken) == number, f"expected job {number}, was given {taken}"
        if isinstance(adapter, Acknowledging):
            adapter.ack(taken)
        if number % TIDY_EVERY == TIDY_EVERY - 1:
            adapter.tidy()
    return BURST


def _cycles_among_others(adapter: Adapter) -> int:
    """The same, but the job may be another thread's. How many came to their end: a locked library raises."""
    done = 0
    for number in range(BURST):
        with contextlib.suppress(Exception):
            adapter.push(number)
            taken = adapter.take()
            if isinstance(adapter, Acknowledging) and taken is not None:
                adapter.ack(taken)
            done += taken is not None
    return done


def _worked(adapter: Adapter) -> int:
    """Jobs are pushed one at a time, then a worker runs them."""
    for number in range(WORKED):
        adapter.push(number)
    adapter.run(WORKED)
    adapter.tidy()
    return WORKED


_in_child: Adapter | None = None  # of a process of the pool


def _open_in_child(opens: Callable[[Path], Adapter], directory: Path) -> None:
    global _in_child
    _in_child = opens(directory)


def _burst_in_child(_: int) -> int:
    assert _in_child is not None, "the pool opens it first"
    return _burst(_in_child, itertools.count())


def _fresh(directory: Path, numbers: Iterator[int]) -> Path:
    made = directory / f"{next(numbers)}"
    made.mkdir()
    return made


# What it comes to.


def lines_of(found: Sequence[Found], absent: Sequence[Contestant]) -> tuple[list[str], list[list[str]]]:
    """The heads and the cells of the table; the last rows are those that are not installed."""
    measures = [each for each in MEASURES if any(each in row.figures for row in found)]
    heads = ["queue", "setting", "live: journal, synchronous"]
    heads += [f"{each}, /s" for each in measures]
    heads += ["a job costs, with its worker"]
    heads += ["a power cut loses, acknowledged", "`kill -9` loses", "a job taken at `kill -9`"]
    cells = []
    for row in found:
        cells.append([row.contestant.name, row.contestant.setting, row.settings])
        cells[-1] += [*(_figure(row, measure) for measure in measures), str(row.cost)]
        power, kill = (row.audit.at_power_cut, row.audit.at_kill) if row.audit else ((), ())
        cells[-1] += [_losses(power), _losses(kill), row.taken_at_kill]
    for missing in absent:
        cells.append([missing.name, missing.setting, "not installed: skipped", *[""] * (len(heads) - 3)])
    return heads, cells


def verdicts_of(found: Sequence[Found]) -> list[list[str]]:
    """Each floor against each peer of the same durability: measure, peer, ratio with spread, floor, verdict."""
    ours = next((row for row in found if row.contestant.title == OURS), None)
    lines = []
    for floor in FLOORS:
        if ours is None or floor.measure not in ours.figures:
            continue
        for peer in found:
            is_peer = peer.contestant.name not in ("rqlab", "SQLite itself") and peer.keeps_all
            if not is_peer or (floor.measure in CYCLES and not peer.acknowledges):
                continue
            figures = {"ours": ours.figures[floor.measure], "theirs": peer.figures[floor.measure]}
            head, least = [floor.measure, peer.contestant.title], f"{floor.times:g}"
            if not all(figures["theirs"]):
                lines.append([*head, "it refused every push of a round", least, "held"])
                continue
            spread = ratio(figures, "ours", "theirs")
            lines.append([*head, times(spread), least, verdict(spread, floor.times)])
    return lines


def verdict(spread: Spread, floor: float) -> str:
    """By the median; said to be close where the rounds do not agree."""
    word = "held" if spread.median >= floor else "MISSED"
    return word if (spread.low >= floor) == (spread.high >= floor) else f"{word}, but the rounds disagree"


def times(spread: Spread) -> str:
    """A ratio with its spread."""
    return f"{spread.median:.2f} ({spread.low:.2f}–{spread.high:.2f})"


def results(found: Sequence[Found], absent: Sequence[Contestant]) -> Table:
    """All rows, for a terminal."""
    heads, cells = lines_of(found, absent)
    return _table("Operations a second: median of the rounds (lowest–highest)", heads, cells)


VERDICT_HEADS = ["measure", "against", "rqlab durable is … times", "floor", "verdict"]


def verdicts(found: Sequence[Found]) -> Table:
    """The floors, for a terminal."""
    return _table("Against every peer whose audit lost nothing", VERDICT_HEADS, verdicts_of(found))


def about_large(large: rqlab.Audit) -> str:
    """What becomes of values that do not go into the table."""
    return f"{LARGE.title} (its files beside the table): {large}"


def report(found: Sequence[Found], absent: Sequence[Contestant], large: rqlab.Audit, where: str) -> str:
    """The results section of the README."""
    today = datetime.date.today().isoformat()
    versions = {row.contestant.distribution or "SQLite": row.contestant.version for row in found}
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    cuts = sum(len(row.audit.losses) for row in found if row.audit)
    return "\n\n".join(
        (
            f"{today}, on {where}. Versions: {named}. Each figure is the median of {_rounds(found)} rounds "
            f"(lowest–highest); {cuts:,} cuts were made.",
            _markdown(*lines_of(found, absent)),
            "The floors, against every peer whose audit lost nothing:",
            _markdown(VERDICT_HEADS, verdicts_of(found)),
            f"{about_large(large)}.",
        )
    )


def rewritten(text: str, section: str) -> str:
    """The README with another results section. ValueError if it has lost the marks around it."""
    head, opening, rest = text.partition(RESULTS[0])
    _, closing_mark, tail = rest.partition(RESULTS[1])
    if not opening or not closing_mark:
        raise ValueError(f"cannot write the results: expected {RESULTS[0]} and {RESULTS[1]} in the file")
    return f"{head}{opening}\n{section}\n{closing_mark}{tail}"


def _figure(row: Found, measure: str) -> str:
    if measure not in row.figures:
        return "one process"
    spread = Spread.of(row.figures[measure])
    said = f"{spread.median:,.0f} ({spread.low:,.0f}–{spread.high:,.0f})"
    if row.refused[measure]:
        said += f", {row.refused[measure]:,} refused"
    return f"{said}, {NO_ACK}" if measure in CYCLES and not row.acknowledges else said


def _losses(losses: Sequence[Loss]) -> str:
    if not losses:
        return ""
    worst = worst_of(losses)
    said = "0"
    if worst.lost:
        share = sum(each.lost > 0 for each in losses) / len(losses)
        said = f"up to {worst.lost:,} of {worst.acknowledged:,}, in {share:.0%} of cuts"
    damaged = sum(bool(each.complaint) for each in losses)
    return f"{said}; unreadable in {damaged / len(losses):.0%}" if damaged else said


def _rounds(found: Sequence[Found]) -> int:
    return max((len(figures) for row in found for figures in row.figures.values()), default=0)


def _table(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head.replace("`", ""), justify="right" if head.endswith("/s") else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---:" if head.endswith("/s") else "---" for head in heads]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))


if __name__ == "__main__":
    main()
