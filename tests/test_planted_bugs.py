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
    a_lost_update,
    a_stray_error,
    counters_only_rise,
    deaf_to_retries,
    deliveries_stand_still,
    does_not_open_after_a_crash,
    early_retry,
    flush_forgets,
    keeper_is_late,
    large_data_forgotten,
    last_come_first_served,
    lost_wake_up,
    max_attempts_ignored,
    no_fencing,
    no_stall_recovery,
    no_transaction,
    normal_in_durable,
    pause_ignored,
    recovery_completes_what_was_held,
    recovery_invents_a_job,
    refuses_for_ever,
    released_as_done,
    rollback_dropped,
    schedule_fires_twice,
    snapshot_by_halves,
    unique_key_leaks,
    unique_keys_unchecked,
)

from rqlab import experiments
from rqlab.simulation.checks import CHECKS
from rqlab.simulation.faults import Fault
from rqlab.simulation.run import simulate

#: Power cuts of a disk that takes 400 ms for what it did in less than four.
SLOWED = [Fault(0.0, "slow disk", seconds=60.0), *(Fault(at, "power cut") for at in (3.333, 6.777, 9.123))]
BUFFERED: dict[str, Any] = {"durability": "buffered", "jobs": 60, "duration": 0.5, "faults": ()}


class Plant(NamedTuple):
    plant: Callable[[Patch], None]
    caught_by: str  #: the check that complains; where others would be first, `checks` among the options names it
    options: dict[str, Any]
    seeds: range
    at_least: int  #: seeds that notice

    def __str__(self) -> str:
        return f"{self.plant.__name__}-{self.caught_by}"


def only(*checks: str, **options: Any) -> dict[str, Any]:
    return {**options, "checks": checks}


def always_fails(job: object) -> None:
    raise ValueError("no")


RARELY = {**MEMORY, "jobs": 60}  # unique keys are few
REDEPLOY = {**MEMORY, "crashes": [Fault(4.0, "redeploy", seconds=1.0)]}
POWER_CUT = {**DISK, "crashes": [Fault(4.0, "power cut", seconds=1.0)]}
I_O_ERRORS = {**DISK, "faults": [Fault(3.0 + 0.9 * number, "I/O error") for number in range(8)]}
FULL = {**DISK, "faults": [Fault(3.0 + 0.9 * number, "disk full", seconds=0.3) for number in range(8)]}
LARGE = {"jobs": [{"name": "x", "data": "x" * 9_000}], "faults": ()}
FAILING = {
    "crashes": 0, "faults": (), "store": "memory", "duration": 0.1, "handler": always_fails,
    "jobs": [{"name": "x", "backoff": "fixed", "backoff_delay": 0.1}],
}  # fmt: skip

PLANTS = [
    Plant(a_stray_error, "I0", RARELY, range(6), 3),
    Plant(released_as_done, "I1", REDEPLOY, range(4), 3),
    Plant(deliveries_stand_still, "I2", REDEPLOY, range(4), 3),
    Plant(no_fencing, "I3", MEMORY, range(20), 10),
    Plant(deaf_to_retries, "I3b", MEMORY, range(4), 4),
    Plant(max_attempts_ignored, "I4", {**MEMORY, "failure_rate": 0.5}, range(6), 6),
    Plant(early_retry, "I5", MEMORY, range(6), 6),
    Plant(a_lost_update, "I6", only("I6", **MEMORY, failure_rate=0.5), range(4), 4),
    Plant(a_lost_update, "I6b", {**MEMORY, "failure_rate": 0.5}, range(4), 4),
    Plant(large_data_forgotten, "I6", only("I6", **LARGE), range(2), 2),
    Plant(large_data_forgotten, "I6b", LARGE, range(2), 2),
    Plant(large_data_forgotten, "I6b", {**DISK, "jobs": 30}, range(4), 3),  # as drawn
    Plant(last_come_first_served, "I7", MEMORY, range(4), 4),
    Plant(pause_ignored, "I7", MEMORY, range(6), 3),
    Plant(no_transaction, "I8", only("I8", **I_O_ERRORS), range(6), 4),
    Plant(schedule_fires_twice, "I9", MEMORY, range(4), 4),
    Plant(unique_keys_unchecked, "I10", RARELY, range(6), 3),
    Plant(unique_key_leaks, "I10b", only("I10b", **RARELY), range(6), 5),
    Plant(counters_only_rise, "I11", MEMORY, range(6), 6),
    Plant(does_not_open_after_a_crash, "R0", POWER_CUT, range(3), 3),
    Plant(snapshot_by_halves, "R1", only("R1", **HYBRID), range(4), 3),
    Plant(rollback_dropped, "R1", only("R1", **FULL, durability="buffered"), range(8), 3),
    Plant(recovery_invents_a_job, "R2", {**POWER_CUT, "durability": "buffered"}, range(4), 2),
    Plant(normal_in_durable, "R3", {**DISK, "crashes": 4}, range(10), 4),
    Plant(flush_forgets, "R3", only("R3", **{**HYBRID, "faults": 14}), range(16), 3),
    Plant(keeper_is_late, "R3b", {**HYBRID, "faults": (), "crashes": SLOWED}, range(4), 4),
    Plant(keeper_is_late, "R3b", {**BUFFERED, "flush_interval": 0.5, "crashes": SLOWED}, range(4), 3),
    Plant(normal_in_durable, "R4", only("R4", **DISK, crashes=4), range(16), 2),
    Plant(recovery_completes_what_was_held, "R5", {**POWER_CUT, "durability": "buffered"}, range(4), 2),
    Plant(no_stall_recovery, "L1", MEMORY, range(6), 6),
    Plant(lost_wake_up, "L1", {**MEMORY, "jobs": 8, "failure_rate": 0.5}, range(2), 2),
    Plant(no_stall_recovery, "L2", only("L2", **MEMORY), range(4), 4),
    Plant(
        refuses_for_ever, "L3", {**DISK, "crashes": 0, "faults": [Fault(3.0, "disk full", seconds=3.0)]}, range(2), 2
    ),
    Plant(max_attempts_ignored, "L4", only("L4", **FAILING), range(1), 1),
]


def caught(plant: Plant, seed: int) -> set[str]:
    """The checks that complain."""
    return {violation.check for violation in simulate(**plant.options, seed=seed).violations}


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_a_planted_bug_is_caught_by_the_check_that_should(
    plant: Plant, monkeypatch: Patch, record_property: Callable[[str, object], None]
) -> None:
    plant.plant(monkeypatch)
    complaints = [caught(plant, seed) for seed in plant.seeds]
    noticed = sum(plant.caught_by in each for each in complaints)
    record_property("noticed", f"{noticed} of {len(plant.seeds)} seeds notice {plant}")

    assert noticed >= plant.at_least, complaints


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_without_the_plant_nothing_is_found(plant: Plant) -> None:
    options = {**plant.options, "checks": None}

    assert [caught(plant._replace(options=options), seed) for seed in plant.seeds] == [set()] * len(plant.seeds)


def test_every_check_has_a_bug_that_trips_it() -> None:
    assert {plant.caught_by for plant in PLANTS} == set(CHECKS)


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
