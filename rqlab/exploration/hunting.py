"""What an executor runs: simulations of some seeds, the shrinking of one that broke, a plan that was kept.

These are the functions that travel into other processes. Arguments travel as bytes made by cloudpickle, so that a
handler from a notebook arrives wherever an executor runs it.
"""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cloudpickle
import msgspec

from rqlab import clock
from rqlab.errors import RQLabError, ValidationError
from rqlab.exploration.bugs import Bug
from rqlab.lifecycle import Event
from rqlab.simulation.faults import FAULTS
from rqlab.simulation.result import Header, Loss, SimulationResult
from rqlab.simulation.run import simulate
from rqlab.simulation.shrinking import shrink

Options = Mapping[str, Any]  #: the arguments of `simulate`, but for seed and durability

#: This process is to end: what it runs returns what there is by then. Set by `child.py` when the parent is gone.
leaving = threading.Event()

RAISED = "raised"  #: stands for a check's id where `simulate` itself raised

_alone = threading.Lock()  # SQLite has one default VFS a process, and the recorder is it: one world at a time


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What one seed came to: small, since it travels."""

    seed: int
    durability: str
    ok: bool
    check: str  #: the row of CHECKS that broke first; "" if none did
    says: str  #: how
    replay: str  #: the line that runs it again
    hash: str
    events: int  #: in its history
    faults: int  #: that struck
    losses: list[Loss]  #: of its crashes, each recovered from
    power_cuts: int
    operations: int  #: of the disk
    pushed: int
    simulated_seconds: float
    seconds: float  #: of this machine
    coverage: dict[str, int]  #: times each kind of fault struck, each window was hit, and each event happened
    asked: dict[str, int]  #: by row of CHECKS
    header: Header | None  #: of the history, if a promise broke


class Smaller(NamedTuple):
    """What the shrinking of a failure came to; a header, as nobody needs its history until it is replayed."""

    header: Header
    check: str
    runs: int
    is_minimal: bool
    faults_before: int


def packed(options: Options) -> bytes:
    """The options in a form that travels. ValidationError if the handler cannot."""
    try:
        return bytes(cloudpickle.dumps(dict(options)))
    except Exception as error:
        raise ValidationError(
            f"explore: expected a handler that can travel into another process; {type(error).__name__}: {error}. "
            "Put it into a module that can be imported, or explore in this process: processes=0"
        ) from error


def run_seeds(options: bytes, seeds: Sequence[tuple[int, str]]) -> list[Row]:
    """One row for each (seed, durability); fewer if this process is to end."""
    loaded = cloudpickle.loads(options)
    rows = []
    for seed, durability in seeds:
        if leaving.is_set():
            break
        with _alone:
            rows.append(_run(loaded, seed, durability))
    return rows


def run_smaller(options: bytes, header: Header, budget: int) -> Smaller | None:
    """The smallest simulation that breaks the same promise; None if it does not break again."""
    handler = cloudpickle.loads(options).get("handler")
    with _alone:
        try:
            found = shrink(
                SimulationResult(header, ()), budget=budget, handler=handler, on_run=lambda runs: leaving.is_set()
            )
        except RQLabError:
            return None
    return Smaller(found.result.header, found.check, found.runs, found.is_minimal, found.faults_before)


def run_bug(options: bytes, bug: Bug) -> Row:
    """A plan of the bug base, run again."""
    handler = cloudpickle.loads(options).get("handler") if bug.arguments.get("handler") else None
    given = {name: value for name, value in bug.arguments.items() if name not in ("handler", "durability")}
    given |= {"crashes": 0, "faults": bug.plan, "handler": handler}
    with _alone:
        return _run(given, bug.seed, bug.arguments["durability"])


def _run(options: Options, seed: int, durability: str) -> Row:
    began = clock.monotonic()
    try:
        result = simulate(**options, seed=seed, durability=durability)
    except ValidationError:
        raise  # a wrong argument is wrong for every seed
    except Exception as error:  # noqa: BLE001  # the simulator's own bug: as much of a find, and no reason to stop
        return _raised(seed, durability, error, clock.monotonic() - began)
    header, struck = result.header, result.coverage
    kinds = Counter(each.kind for each in result.history)
    first = result.violations[0] if result.violations else None
    return Row(
        seed=seed,
        durability=durability,
        ok=result.ok,
        check=first.check if first else "",
        says=str(first) if first else "",
        replay=result.replay_line,
        hash=result.hash,
        events=len(result.history),
        faults=sum(count for kind, count in struck.items() if not kind.startswith("window: ")),
        losses=header.losses,
        power_cuts=len(header.cut_at) if header.operations else struck["power cut"],
        operations=header.operations,
        pushed=kinds[Event.PUSH],
        simulated_seconds=header.ended_at,
        seconds=clock.monotonic() - began,
        coverage=struck | {f"event: {kind}": times for kind, times in kinds.items() if kind not in FAULTS},
        asked=header.asked,
        header=None if result.ok else header,
    )


def _raised(seed: int, durability: str, error: Exception, took: float) -> Row:
    said = f"{type(error).__name__}: {error}"
    return Row(
        seed=seed, durability=durability, ok=False, check=RAISED, says=f"simulate raised {said}",
        replay=f"rqlab.simulate(seed={seed}, durability={durability!r}, …)", hash="", events=0, faults=0, losses=[],
        power_cuts=0, operations=0, pushed=0, simulated_seconds=0.0, seconds=took, coverage={}, asked={}, header=None,
    )  # fmt: skip
