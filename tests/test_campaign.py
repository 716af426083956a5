"""The campaign: every mode and both stores, every kind of fault, every window, every check asked. Nothing breaks.

`make torture` is the same with ten thousand seeds. What it ever found is in fixtures/bugs, and tried first.
"""

from collections import Counter

import pytest

import rqlab
from rqlab import Exploration, Fault
from rqlab.exploration import explore
from rqlab.lifecycle import Event
from rqlab.simulation.checks import CHECKS
from rqlab.simulation.faults import FAULTS
from rqlab.simulation.history import KINDS
from rqlab.simulation.platter import CRASH_KINDS
from rqlab.simulation.run import simulate
from rqlab.simulation.windows import WINDOWS

SEEDS = 20  # a mode; more are not needed to meet everything
TWINS = 100  # seeds in memory and on the disk
BATCHES = 4  # of them, for a test each: two cores
HERE = {"processes": 0, "bugs": None, "progress": False}

#: What no world here does: what handlers say, and a cut that loses nothing.
NOT_HERE = {"event: progress", "event: log", "event: effect", "event: violation", "cut: sigkill"}


def said(found: Exploration) -> str:
    return f"{found!r}"


@pytest.fixture(scope="module")
def found() -> Exploration:
    return explore(SEEDS, durability=list(rqlab.MODES), crashes=4, faults=12, jobs=25, **HERE)


def test_every_promise_holds_in_every_mode(found: Exploration) -> None:
    assert found.ok, said(found)
    assert len(found) == SEEDS * len(rqlab.MODES)


def test_every_promise_holds_in_memory_too() -> None:
    found = explore(60, store="memory", crashes=4, faults=12, jobs=40, **HERE)

    assert found.ok, said(found)


@pytest.mark.parametrize("window", WINDOWS)
def test_a_cut_in_a_window_loses_what_the_mode_may_and_no_more(window: str) -> None:
    at = 0.0 if window == "creation" else 5.0
    cuts = [Fault(at, "power cut", seconds=2.0, how=f"{kind}/strict", window=window) for kind in ("lost", "torn")]
    found = [
        explore(2, durability=["durable", "buffered", "hybrid"], crashes=[cut], faults=(), jobs=25, **HERE)
        for cut in cuts
    ]

    assert all(each.ok for each in found), "\n".join(map(said, found))
    assert sum(each.coverage[f"window: {window}"] for each in found) >= 4


def test_every_fault_strikes_and_every_check_is_asked(found: Exploration) -> None:
    everything = {
        *FAULTS,
        *(f"cut: {kind}" for kind in CRASH_KINDS),
        *(f"event: {event}" for event in (*Event, *KINDS)),
        *(f"check: {check}" for check in CHECKS),
    }

    assert everything - NOT_HERE <= {name for name, times in found.coverage.items() if times}, found.missed
    assert {f"window: {window}" for window in WINDOWS} - set(found.missed) > {
        "window: torn frame",
        "window: checkpoint",
    }


@pytest.mark.parametrize("batch", range(BATCHES))
def test_memory_and_disk_go_the_same_way_where_no_disk_breaks(batch: int) -> None:
    differ = Counter()
    for seed in range(batch, TWINS, BATCHES):
        in_memory = simulate(seed=seed, crashes=3, faults=9, jobs=16, store="memory")
        on_disk = simulate(0, seed=seed, faults=in_memory.plan, jobs=16)
        assert in_memory.ok, in_memory.summary()
        differ[seed] = in_memory.hash != on_disk.hash

    assert len(differ) == TWINS // BATCHES
    assert not +differ
