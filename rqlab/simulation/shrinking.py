"""From a broken promise to its cause: the smallest plan, the fewest jobs and workers that still break it.

Every guess is a simulation. One is believed only if the same check fails in it; what another check says of it proves
nothing. The seed stays: draws are keyed by what they are for, so a fault that goes moves none of those that stay.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from rqlab import arguments
from rqlab.errors import RQLabError, ValidationError
from rqlab.executors import Handler
from rqlab.simulation.faults import FAULTS, Fault
from rqlab.simulation.result import Shrunk, SimulationResult
from rqlab.simulation.run import DEFAULTS, simulate

T = TypeVar("T")

BUDGET = 200  # runs: seconds, and far more than a plan of a dozen faults needs

#: What is simpler than whatever it is now, in the order in which it is tried.
SIMPLER: dict[str, Any] = {
    "concurrency": 1,
    "failure_rate": 0.0,
    "store": "memory",
    "until": None,
    **{
        name: DEFAULTS[name]
        for name in (
            "duration", "stall_timeout", "tick_interval", "flush_interval", "max_batch", "snapshot_interval",
            "max_dirty",
        )
    },
}  # fmt: skip


def shrink(
    result: SimulationResult,
    *,
    budget: int = BUDGET,
    handler: Handler | Mapping[str, Handler] | None = None,
    on_run: Callable[[int], bool] = lambda runs: False,
) -> Shrunk:
    """The smallest simulation found within `budget` runs that breaks the promise that `result` broke first.

    Fewer faults, then fewer jobs and workers, then simpler parameters, then, if a power cut is left, an earlier
    operation of the disk to cut at; and again, until nothing is simpler. `on_run` is called after each run with their
    number; if it says True, the search ends there. ValidationError if nothing broke or the handler is missing;
    RQLabError if it does not break again.
    """
    arguments.whole(budget, "budget", 1)
    if result.ok:
        raise ValidationError(f"shrink: expected a broken promise; every one held in {result.replay_line}")
    needs = result.header.arguments.get("handler")
    if needs and handler is None:
        raise ValidationError(f"shrink: the handler {needs} is not in the history; pass it as handler=")
    search = _Search(result, handler, budget, on_run)
    is_minimal = True
    try:
        search.confirm(_guess(result))
        while sum(stage(search) for stage in STAGES):  # each in its turn, until none finds anything
            pass
    except _BudgetIsUp:
        is_minimal = False
    assert search.best_result is not None, "what the search began with breaks it"
    return Shrunk(search.best_result, search.check, search.runs, is_minimal, len(result.plan))


class _BudgetIsUp(Exception):
    pass


class _Guess(NamedTuple):
    """Something that may break the promise too."""

    plan: tuple[Fault, ...]
    arguments: dict[str, Any]

    def having(self, **changes: Any) -> "_Guess":
        return self._replace(arguments={**self.arguments, **changes})

    @property
    def key(self) -> bytes:
        return msgspec.json.encode([self.plan, self.arguments])


def _guess(result: SimulationResult) -> _Guess:
    """What to begin with: the plan; or, of a power cut at every operation, the first that took something."""
    given = dict(result.header.arguments)
    given.pop("handler", None)
    if given.pop("cuts", None) is None or result.cuts is None:
        return _Guess(result.plan, given)
    for cut in result.cuts.sort_values("operation").itertuples():
        if cut.operation and (cut.complaints or cut.lost):
            return _Guess((_cut_at(int(cut.operation), f"{cut.kind}/{cut.names}"),), given)
    return _Guess(result.plan, given)


def _cut_at(operation: int, how: str) -> Fault:
    """A power cut before an operation counted from the very beginning of the log."""
    return Fault(0.0, "power cut", seconds=3.0, how=how, operation=operation)


class _Search:
    """The best guess so far, and what it costs to look for a better one."""

    def __init__(self, result: SimulationResult, handler: Any, budget: int, on_run: Callable[[int], bool]) -> None:
        self.seed = result.seed
        self.check = result.violations[0].check
        self.best: _Guess
        self.best_result: SimulationResult | None = None
        self.runs = 0
        self._handler = handler
        self._budget = budget
        self._on_run = on_run
        self._is_over = False
        self._tried: set[bytes] = set()

    def confirm(self, first: _Guess) -> None:
        """Run what the search begins with."""
        self.best = first
        if not self.breaks(first):
            raise RQLabError(
                f"shrink: expected {self.check} to break again under seed {self.seed}; it held. The code has changed "
                "since, or a handler does not depend on its job alone"
            )

    def breaks(self, guess: _Guess) -> bool:
        """Whether the same check fails; the guess is then the best. One that was tried is not tried again."""
        key = guess.key
        if key in self._tried:
            return False
        self._tried.add(key)
        if self.runs >= self._budget or (self._is_over and self.runs):
            raise _BudgetIsUp
        self.runs += 1
        try:
            result = simulate(0, seed=self.seed, faults=guess.plan, handler=self._handler, **guess.arguments)
        except ValidationError:  # a guess that makes no sense, such as a disk fault in memory
            return False
        finally:
            self._is_over = self._on_run(self.runs)
        if self.check not in {violation.check for violation in result.violations}:
            return False
        self.best, self.best_result = guess, result
        return True


# The stages: each returns whether it found something smaller.


def _fewer_faults(search: _Search) -> bool:
    return _fewer(search.best.plan, lambda plan: search.breaks(search.best._replace(plan=tuple(plan))))


def _fewer_jobs(search: _Search) -> bool:
    jobs = search.best.arguments["jobs"]
    if isinstance(jobs, int):
        return _lowest(0, jobs, lambda count: search.breaks(search.best.having(jobs=count)))
    found = _fewer(jobs, lambda some: search.breaks(search.best.having(jobs=list(some))))
    return _plainer_jobs(search) or found


def _plainer_jobs(search: _Search) -> bool:
    found = False
    for number, job in enumerate(search.best.arguments["jobs"]):
        for option in [each for each in job if each not in ("name", "at", "queue")]:
            jobs = [dict(each) for each in search.best.arguments["jobs"]]
            del jobs[number][option]
            found = search.breaks(search.best.having(jobs=jobs)) or found
    return found


def _fewer_workers(search: _Search) -> bool:
    def breaks(count: int) -> bool:
        plan = tuple(_for_workers(fault, count) for fault in search.best.plan)
        return search.breaks(search.best._replace(plan=plan).having(workers=count))

    return _lowest(1, search.best.arguments["workers"], breaks)


def _for_workers(fault: Fault, count: int) -> Fault:
    """The same fault for one of the workers that are left."""
    if not fault.target.startswith("worker-"):
        return fault
    number = int(fault.target.removeprefix("worker-"))
    return replace(fault, target=f"worker-{(number - 1) % count + 1}")


def _simpler_arguments(search: _Search) -> bool:
    found = False
    for name, value in SIMPLER.items():
        if name in search.best.arguments and search.best.arguments[name] != value and _makes_sense(search, name):
            found = search.breaks(search.best.having(**{name: value})) or found
    return found


def _makes_sense(search: _Search, name: str) -> bool:
    if name != "store":
        return True
    is_kept = search.best.arguments["durability"] == "durable"
    return is_kept and not any(FAULTS[fault.kind].needs_disk for fault in search.best.plan)


def _simpler_faults(search: _Search) -> bool:
    found = False
    for number in range(len(search.best.plan)):
        for simpler in _simplifications(search.best.plan[number]):
            plan = list(search.best.plan)
            plan[number] = simpler
            found = search.breaks(search.best._replace(plan=tuple(plan))) or found
            if search.best.plan[number] == simpler:
                break
    return found


def _simplifications(fault: Fault) -> Iterator[Fault]:
    """Simpler ones, the simplest first."""
    for digits in (0, 1):
        rounded = replace(fault, at=round(fault.at, digits), seconds=round(fault.seconds, digits))
        if fault.how or fault.window or fault.operation:
            yield replace(rounded, how="lost" if fault.how else "", window="", operation=0)
        if rounded != fault:
            yield rounded
    if fault.how not in ("", "lost"):
        yield replace(fault, how="lost")
    if fault.window or fault.operation > 1:
        yield replace(fault, window="", operation=1)


def _earlier_cut(search: _Search) -> bool:
    """The first power cut, at the lowest operation of the log at which it still does it."""
    assert search.best_result is not None, "the first guess has been run"
    cut_at, plan = search.best_result.header.cut_at, search.best.plan
    number = next((number for number, fault in enumerate(plan) if fault.kind == "power cut"), None)
    if number is None or not cut_at:
        return False
    fault = plan[number]
    is_addressed = fault.at == 0 and fault.operation > 0
    how, others = fault.how or "lost", plan[:number] + plan[number + 1 :]

    def breaks(operation: int) -> bool:
        return search.breaks(search.best._replace(plan=(_cut_at(operation, how), *others)))

    return _lowest(1, fault.operation if is_addressed else cut_at[0] + 1, breaks)


STAGES: tuple[Callable[[_Search], bool], ...] = (
    _fewer_faults, _fewer_jobs, _fewer_workers, _simpler_arguments, _simpler_faults, _earlier_cut,
)  # fmt: skip


# Searching.


def _fewer(things: Sequence[T], breaks: Callable[[Sequence[T]], bool]) -> bool:
    """Delta debugging: leave out ever smaller parts, until none can be left out. Whether something went.

    Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, 2002: ddmin. Nothing at all is tried
    first, then each thing alone: most bugs have one cause.
    """
    left = list(things)
    if not left:
        return False
    if breaks([]):
        return True
    if len(left) > 1 and any(breaks([each]) for each in left):
        return True
    parts = 2
    while len(left) > 1:
        size = -(-len(left) // parts)
        for start in range(0, len(left), size):
            rest = left[:start] + left[start + size :]
            if breaks(rest):
                left, parts = rest, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(2 * parts, len(left))
    return len(left) < len(things)


def _lowest(low: int, high: int, breaks: Callable[[int], bool]) -> bool:
    """Look for the lowest number below `high` that breaks: in growing steps from below, then halving the last one.

    What breaks may have gaps, so this need not be the very lowest.
    """
    step, number, held = 1, low, low - 1
    while number < high:
        if breaks(number):
            break
        held, number, step = number, number + step, 2 * step
    else:
        return False
    while number - held > 1:
        middle = (number + held) // 2
        if breaks(middle):
            number = middle
        else:
            held = middle
    return True
