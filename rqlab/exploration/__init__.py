"""Thousands of seeds, as many at once as there are cores: what broke, why, and what was tried.

`hunting` is what an executor runs, `processes` the executor where none is given, `bugs` the plans that broke something
once, `result` what is shown. This file hands out seeds and gathers what comes back; it decides nothing about a job.
"""

import inspect
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from rqlab import arguments, clock
from rqlab.charts.histories import times
from rqlab.durability import MODES
from rqlab.errors import ValidationError
from rqlab.exploration import hunting
from rqlab.exploration.bugs import Bug, BugBase
from rqlab.exploration.hunting import Row, Smaller
from rqlab.exploration.processes import ChildDied, Processes
from rqlab.exploration.progress import Progress
from rqlab.exploration.result import Death, Exploration, Facts, Failure
from rqlab.simulation.run import DEFAULTS
from rqlab.simulation.shrinking import BUDGET

__all__ = ["Bug", "BugBase", "Death", "Exploration", "Failure", "explore"]

BUGS = "rqlab-bugs"  # the bug base, in the current directory; it is made when there is a bug
SECONDS_A_CALL = 0.5  # of work that is handed out at once: handing over costs a thousandth of it
MOST_SEEDS_A_CALL = 64
MOST_SHRUNK = 3  # failures of one check in one mode: the others are likely the same bug
LEAVE_SECONDS = 6.0  # after an interrupt, for what runs to end


def explore(
    seeds: int | Iterable[int] = 10_000,
    *,
    durability: str | Sequence[str] = "durable",
    executor: Executor | None = None,
    processes: int | None = None,
    bugs: str | os.PathLike[str] | None = BUGS,
    shrink: bool = True,
    budget: int = BUDGET,
    stop_after: int | None = 20,
    progress: bool = True,
    **options: Any,
) -> Exploration:
    """Simulate under many seeds, as many at once as there are cores, and show what broke and why.

        found = rqlab.explore(1_000, faults=9)
        found.ok, found.failures                    # each with its replay line, and the few faults that cause it
        found.plot()                                # what each crash took, seeds against crash points

    `seeds` is how many (from 0), or which: `range(10_000, 20_000)`. `durability` is a row of MODES or several, and each
    seed is then run in each. All other `options` are those of `rqlab.simulate`.

    Seeds are run by child processes, as many as this process may use cores, or `processes`; 0 runs them here. Neither
    a notebook nor a script needs a main guard. Or give any `executor` of `concurrent.futures`: a ProcessPoolExecutor,
    Dask's `client.get_executor()`. In one process one world runs at a time, so threads add nothing: a
    ThreadPoolExecutor is taken, and is as fast as `processes=0`.

    A plan that broke a promise is shrunk, within `budget` runs, and kept in the directory `bugs` (None: nowhere); the
    plans there are run first. `stop_after` so many failures it ends: None goes on. An interrupt (Ctrl-C, or a
    notebook's stop) ends it too, and what was done by then is returned. A process that dies is told with the seeds
    that it had.

    Raises ValidationError for a wrong argument, before or at the first seed.
    """
    if "seed" in options:
        raise ValidationError("explore: expected seeds, not a seed: they are what it explores")
    unknown = sorted(options.keys() - DEFAULTS.keys())
    if unknown:
        raise ValidationError(f"explore: simulate has no argument {', '.join(unknown)}; it has {', '.join(DEFAULTS)}")
    if executor is not None and (isinstance(executor, type) or not callable(getattr(executor, "submit", None))):
        raise ValidationError(
            f"executor: expected one of concurrent.futures, with submit(), and not its class; got {executor!r:.100}"
        )
    if executor is not None and processes is not None:
        raise ValidationError("explore: expected an executor or a number of processes, not both")
    runs = [(seed, mode) for seed in _seeds(seeds) for mode in _modes(durability)]
    plan = _Plan(
        runs=runs,
        options=options,
        packed=hunting.packed(options),
        base=None if bugs is None else BugBase(bugs),
        shrink=shrink,
        budget=arguments.whole(budget, "budget", 1),
        stop_after=None if stop_after is None else arguments.whole(stop_after, "stop_after", 1),
        progress=progress,
    )
    with ExitStack() as block:
        chosen = block.enter_context(_processes(processes)) if executor is None else executor
        return _Hunt(plan, chosen).hunt()


class _Plan(NamedTuple):
    runs: Sequence[tuple[int, str]]
    options: dict[str, Any]
    packed: bytes
    base: BugBase | None
    shrink: bool
    budget: int
    stop_after: int | None
    progress: bool


class _Inline(Executor):
    """Calls at once, in this thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args))
        except Exception as error:  # noqa: BLE001  # it is the future's to raise
            future.set_exception(error)
        return future


def _processes(count: int | None) -> Executor:
    if count is None:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Processes(count) if arguments.whole(count, "processes", 0, 1_000) else _Inline()


def _slots(executor: Executor) -> int:
    """How much it runs at once, as far as it tells."""
    if isinstance(executor, _Inline):
        return 1
    told = getattr(executor, "count", None) or getattr(executor, "_max_workers", None)  # ours; the standard library's
    client = getattr(executor, "_client", None)  # Dask's
    if told is None and client is not None:
        told = sum(client.ncores().values())
    return int(told or os.cpu_count() or 1)


Seeds = tuple[tuple[int, str], ...]  #: (seed, durability) each


class _Task(NamedTuple):
    """What one future is about."""

    seeds: Seeds
    kind: str  #: seeds, bug, smaller
    about: Any = None


class _Stopped(Exception):
    """Nothing more is to be run."""


class _Hunt:
    """One exploration under way."""

    def __init__(self, plan: _Plan, executor: Executor) -> None:
        self.plan = plan
        self.executor = executor
        self.rows: list[Row] = []
        self.failures: list[Failure] = []
        self.died: list[Death] = []
        self.why = ""  #: it ended early
        self._under_way: dict[Future[Any], _Task] = {}
        self._again: list[Seeds] = []  #: one at a time, of those whose process died with all of them
        self._shrunk: Counter[tuple[str, str]] = Counter()
        self._left = iter(plan.runs)
        self._began = clock.monotonic()
        self._at_once = 1 if isinstance(executor, _Inline) else 2 * _slots(executor)  # one runs, one is at hand

    def hunt(self) -> Exploration:
        """Known bugs, then the seeds; what there is, whatever ends it."""
        known = {} if self.plan.base is None else self.plan.base.read()
        runnable = {file: bug for file, bug in known.items() if self._can_run(bug)}
        modes = ", ".join(dict.fromkeys(mode for _, mode in self.plan.runs))
        bar = Progress(len(self.plan.runs), f"exploring {modes}", self.plan.progress)
        try:
            bugs = iter([self._bug(file, bug) for file, bug in runnable.items()])
            self._gather(bar, lambda: next(bugs, None))
            self._gather(bar, self._seeds)
        except KeyboardInterrupt:
            self.why = "interrupted"
            self._leave()
        except _Stopped as stopped:
            self.why = str(stopped)
            self._leave()
        except BaseException:
            self._leave()
            raise
        finally:
            bar.close()
        return self._found(len(runnable))

    # Handing out.

    def _gather(self, bar: Progress, next_one: Callable[[], Callable[[], None] | None]) -> None:
        """Hand out as much as runs at once, and take what comes back, until nothing is left."""
        while True:
            while len(self._under_way) < self._at_once and (hand_out := next_one()) is not None:
                hand_out()
            if not self._under_way:
                return
            done, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
            for future in done:
                before = len(self.rows)
                self._take(future, self._under_way.pop(future))
                bar.add(len(self.rows) - before)
            if self.failures:
                bar.say(f"{len(self.failures)} broke a promise")
            if self.plan.stop_after is not None and len(self.failures) >= self.plan.stop_after:
                self._finish_shrinking()
                raise _Stopped(f"stopped after {len(self.failures)} failures")

    def _seeds(self) -> Callable[[], None] | None:
        some = self._again.pop() if self._again else tuple(itertools.islice(self._left, self._at_a_time()))
        if not some:
            return None
        return lambda: self._submit(_Task(some, "seeds"), hunting.run_seeds, self.plan.packed, some)

    def _at_a_time(self) -> int:
        """Seeds in one call: about half a second of them, as far as is known."""
        seen = self.rows[-50:]
        if not seen:
            return 1
        return max(1, min(MOST_SEEDS_A_CALL, int(SECONDS_A_CALL * len(seen) / sum(row.seconds for row in seen))))

    def _submit(self, task: _Task, function: Callable[..., Any], *given: Any) -> None:
        try:
            self._under_way[self.executor.submit(function, *given)] = task
        except BrokenExecutor as error:
            self._broken(task, error)

    def _bug(self, file: Path, bug: Bug) -> Callable[[], None]:
        seeds = ((bug.seed, bug.arguments["durability"]),)
        return lambda: self._submit(_Task(seeds, "bug", (file, bug)), hunting.run_bug, self.plan.packed, bug)

    def _can_run(self, bug: Bug) -> bool:
        """One that was found with a handler needs that very handler."""
        handler = self.plan.options.get("handler")
        name = None if handler is None else getattr(handler, "__qualname__", repr(handler))
        return bug.arguments.get("handler") in (None, name)

    # Taking back.

    def _take(self, future: "Future[Any]", task: _Task) -> None:
        error = CancelledError() if future.cancelled() else future.exception()
        if error is None:
            self._take_result(task, future.result())
        elif isinstance(error, ValidationError):
            raise error
        elif isinstance(error, BrokenExecutor):
            self._broken(task, error)
        elif isinstance(error, KeyboardInterrupt):
            raise error
        elif task.kind == "smaller":
            pass  # the failure is reported without its cause
        elif len(task.seeds) > 1:
            self._again += [(each,) for each in task.seeds]  # which of them was it?
        else:
            says = str(error) if isinstance(error, ChildDied) else f"{type(error).__name__}: {error}"
            self.died.append(Death(task.seeds, says))

    def _take_result(self, task: _Task, result: Any) -> None:
        if task.kind == "seeds":
            self.rows += result
            for row in result:
                if not row.ok:
                    self._failed(row)
        elif task.kind == "bug":
            if not result.ok:
                self.failures.append(_failure(result)._replace(kept=task.about[0], was_known=True))
        elif result is not None:
            self._keep(task.about, result)

    def _failed(self, row: Row) -> None:
        self.failures.append(_failure(row))
        self._shrunk[row.check, row.durability] += 1
        if row.header is None or self._shrunk[row.check, row.durability] > MOST_SHRUNK:
            return
        if not self.plan.shrink:
            self._keep(row, Smaller(row.header, row.check, 0, False, len(row.header.plan)))
            return
        task = _Task(((row.seed, row.durability),), "smaller", row)
        self._submit(task, hunting.run_smaller, self.plan.packed, row.header, self.plan.budget)

    def _keep(self, row: Row, smaller: Smaller) -> None:
        number = next(
            number
            for number, failure in enumerate(self.failures)
            if (failure.seed, failure.durability, failure.was_known) == (row.seed, row.durability, False)
        )
        header = smaller.header
        kept = None
        if self.plan.base is not None:
            _, _, says = header.violations[0]
            kept = self.plan.base.keep(
                Bug(
                    check=smaller.check, says=says, seed=header.seed, arguments=header.arguments, plan=header.plan,
                    replay=header.replay,
                )
            )  # fmt: skip
        known = smaller if self.plan.shrink else None
        self.failures[number] = self.failures[number]._replace(smaller=known, kept=kept)

    def _broken(self, task: _Task, error: BaseException) -> None:
        """A foreign pool lost a process, and gives up everything: any of these seeds may have been the one."""
        in_flight = [task, *self._under_way.values()]
        self._under_way.clear()
        seeds = tuple(seed for each in in_flight for seed in each.seeds)
        said = str(error).partition("\n")[0].rstrip(".") or "it broke"
        self.died.append(
            Death(seeds, f"{type(self.executor).__name__} lost a process ({type(error).__name__}: {said})")
        )
        raise _Stopped("a process of the executor died")

    # Ending.

    def _finish_shrinking(self) -> None:
        """The causes of what was found are worth waiting for."""
        shrinking = {future: task for future, task in self._under_way.items() if task.kind == "smaller"}
        for future in wait(shrinking).done:
            self._take(future, self._under_way.pop(future))

    def _leave(self) -> None:
        """End what runs, and take what it has come to by then."""
        for future in self._under_way:
            future.cancel()
        if isinstance(self.executor, Processes):
            self.executor.hurry()
        done, _ = wait(self._under_way, timeout=LEAVE_SECONDS)
        for future in done:
            if not future.cancelled() and future.exception() is None:
                self._take_late(self._under_way[future], future.result())
        self._under_way.clear()

    def _take_late(self, task: _Task, result: Any) -> None:
        if task.kind == "seeds":
            self.rows += result
            self.failures += [_failure(row) for row in result if not row.ok]
        elif task.kind == "smaller" and result is not None:
            self._keep(task.about, result)

    def _found(self, known: int) -> Exploration:
        facts = Facts(
            planned=len(self.plan.runs),
            seconds=clock.monotonic() - self._began,
            executor=_called(self.executor),
            is_complete=not self.why
            and len(self.rows) + sum(len(each.seeds) for each in self.died) >= len(self.plan.runs),
            why=self.why,
            options={name: repr(value)[:200] for name, value in self.plan.options.items() if value != DEFAULTS[name]},
        )
        failures = sorted(self.failures, key=lambda each: (not each.was_known, each.durability, each.seed))
        return Exploration(self.rows, failures, self.died, known, facts)


def _failure(row: Row) -> Failure:
    return Failure(row.seed, row.durability, row.check, row.says, row.replay)


def _called(executor: Executor) -> str:
    if isinstance(executor, _Inline):
        return "this process"
    if isinstance(executor, Processes):
        return times(executor.count, "process")
    return type(executor).__name__


def _seeds(seeds: int | Iterable[int]) -> list[int]:
    seeds = arguments.plain(seeds)
    if isinstance(seeds, int):
        return list(range(arguments.whole(seeds, "seeds", 0, 10**9)))
    if isinstance(seeds, str | bytes) or not isinstance(seeds, Iterable):
        raise ValidationError(f"seeds: expected how many, or whole numbers, as a range; got {arguments.shown(seeds)}")
    return [arguments.whole(arguments.plain(seed), "seeds", 0, 2**63) for seed in seeds]


def _modes(durability: str | Sequence[str]) -> list[str]:
    modes = [durability] if isinstance(durability, str) or not isinstance(durability, Iterable) else list(durability)
    unknown = [mode for mode in modes if not isinstance(mode, str) or mode not in MODES]
    if unknown or not modes:
        raise ValidationError(f"durability: expected {', '.join(MODES)}, or several; got {arguments.shown(durability)}")
    return modes


def _shown_options() -> list[inspect.Parameter]:
    """What `help` and a notebook show of `explore`: simulate's arguments too."""
    from rqlab.simulation.run import simulate

    own = inspect.signature(explore).parameters
    rest = [each for name, each in inspect.signature(simulate).parameters.items() if name not in (*own, "seed")]
    rest = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in rest]
    return [*(each for each in own.values() if each.kind is not inspect.Parameter.VAR_KEYWORD), *rest]


explore.__signature__ = inspect.Signature(_shown_options())  # type: ignore[attr-defined]
