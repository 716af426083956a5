"""Proof that the simulator would notice: bugs planted in the production code, each caught by the check that should.

A plant is a change to one seam of the code under test, and nothing of the simulation. Beside all of them stands the
control: the same campaigns without a plant find nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import typer
from planted_bugs import (
    DISK,
    HYBRID,
    MEMORY,
    Patch,
    counters_only_rise,
    deliveries_stand_still,
    does_not_open_after_a_crash,
    early_retry,
    error_is_not_kept,
    flush_forgets,
    last_come_first_served,
    lost_wake_up,
    max_attempts_ignored,
    no_fencing,
    no_stall_recovery,
    normal_in_durable,
    schedule_fires_twice,
    snapshot_by_halves,
    unique_key_leaks,
)

from rqlab import experiments
from rqlab.simulation.faults import Fault
from rqlab.simulation.run import simulate


class Plant(NamedTuple):
    plant: Callable[[Patch], None]
    caught_by: set[str]  #: any of these checks
    options: dict[str, Any]
    seeds: range
    at_least: int  #: seeds that notice


PLANTS = [
    Plant(no_fencing, {"I3"}, MEMORY, range(20), 10),
    Plant(no_stall_recovery, {"L1"}, MEMORY, range(6), 6),
    Plant(max_attempts_ignored, {"I4"}, {**MEMORY, "failure_rate": 0.5}, range(6), 6),
    Plant(early_retry, {"I5"}, MEMORY, range(6), 6),
    Plant(lost_wake_up, {"L1"}, {**MEMORY, "jobs": 8, "failure_rate": 0.5}, range(2), 2),
    Plant(unique_key_leaks, {"I10b", "I11"}, {**MEMORY, "jobs": 60}, range(6), 5),
    Plant(flush_forgets, {"R1", "R3", "R5"}, {**HYBRID, "faults": 14}, range(16), 3),
    Plant(snapshot_by_halves, {"R1", "R3", "I11"}, HYBRID, range(4), 3),
    Plant(does_not_open_after_a_crash, {"R0"}, {**DISK, "crashes": [Fault(4.0, "power cut")]}, range(3), 3),
    Plant(schedule_fires_twice, {"I9"}, MEMORY, range(4), 4),
    Plant(deliveries_stand_still, {"I2"}, {**MEMORY, "crashes": [Fault(4.0, "redeploy", seconds=1.0)]}, range(4), 3),
    Plant(error_is_not_kept, {"I6b"}, MEMORY, range(4), 4),
    Plant(last_come_first_served, {"I7"}, MEMORY, range(4), 4),
    Plant(normal_in_durable, {"R3"}, {**DISK, "crashes": 4}, range(10), 4),
    Plant(counters_only_rise, {"I11"}, MEMORY, range(6), 6),
]


def caught(plant: Plant, seed: int) -> set[str]:
    """The checks that complain."""
    return {violation.check for violation in simulate(**plant.options, seed=seed).violations}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.plant.__name__)
def test_a_planted_bug_is_caught_by_the_check_that_should(plant: Plant, monkeypatch: Patch) -> None:
    plant.plant(monkeypatch)
    complaints = [caught(plant, seed) for seed in plant.seeds]
    noticed = sum(bool(each & plant.caught_by) for each in complaints)

    assert noticed >= plant.at_least, complaints


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.plant.__name__)
def test_without_the_plant_nothing_is_found(plant: Plant) -> None:
    assert [caught(plant, seed) for seed in plant.seeds] == [set()] * len(plant.seeds)


def test_a_broken_promise_ends_the_command_with_the_line_that_replays_it(
    monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_stall_recovery(monkeypatch)

    with pytest.raises(typer.Exit) as ended:
        experiments.simulate(seed=1, store="memory", jobs=12)

    said = capsys.readouterr().out
    assert ended.value.exit_code == 1
    assert "BROKEN L1" in said
    assert "replay: rqlab.simulate(seed=1, jobs=12, store='memory')" in said
    assert "plan = [\n    rqlab.Fault(" in said
