"""What a newcomer gets wrong when he calls the laboratory: each mistake has an answer, and nothing is left of it."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rqlab
from rqlab import Fault

QUICK: dict[str, Any] = {"seed": 7, "jobs": 4, "store": "memory", "crashes": 0, "faults": ()}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"crashes": None}, "crashes: expected how many, or a list"),
        ({"crashes": 2.5}, "crashes: expected how many, or a list"),
        ({"crashes": Fault(1.0, "freeze", "worker-1")}, "crashes: expected how many, or a list"),
        ({"crashes": ["power cut"]}, "crashes: expected a list of rqlab.Fault"),
        ({"jobs": None}, "jobs: expected how many, or a list"),
        ({"jobs": "ten"}, "jobs: expected how many, or a list"),
        ({"jobs": 2.5}, "jobs: expected how many, or a list"),
        ({"jobs": ["send"]}, r"jobs\[0\]: expected a dict"),
        ({"jobs": [{"name": "send", "at": "soon"}]}, r"jobs\[0\]: at: expected"),
        ({"jobs": [{"name": "send", "at": float("inf")}]}, r"jobs\[0\]: at: expected"),
        ({"faults": "many"}, "faults: expected how many, or a list"),
        ({"faults": True}, "faults: expected about how many"),
        ({"faults": 1e9}, "faults: expected about how many"),
        ({"faults": Fault(1.0, "freeze", "worker-1")}, "faults: expected how many, or a list"),
        ({"faults": [{"kind": "freeze"}]}, "missing required field `at`"),
        ({"faults": [{"at": 1.0, "kind": "freeze", "sekonds": 2.0}]}, "a fault has no sekonds; it has at, kind"),
        ({"faults": [Fault("1", "freeze")]}, r"Expected `float`, got `str` - at `\$.at`"),  # type: ignore[arg-type]
        ({"faults": [Fault(float("nan"), "freeze")]}, "expected an instant"),
        ({"faults": [Fault(1.0, "freeze", "worker-1", -3.0)]}, "expected a number of seconds, 0 or more"),
        ({"faults": [Fault(1.0, "freeze", "worker-1", float("inf"))]}, "expected a number of seconds, 0 or more"),
        ({"faults": [Fault(1.0, "freeze", "w1", 3.0)]}, 'expected a worker as its target, such as "worker-1"'),
        ({"faults": [Fault(1.0, "poison job", "worker-1")]}, 'expected a job as its target, such as "job 17"'),
        ({"faults": [Fault(1.0, "process kill", "job 1")]}, "expected a worker as its target"),
        ({"checks": "I2"}, "checks: expected a list of ids"),
        ({"checks": 3}, "checks: expected a list of ids"),
        ({"checks": [["I2"]]}, "checks: expected ids of"),
    ],
    ids=str,
)
def test_simulate_says_what_is_wrong_with_an_argument(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(rqlab.ValidationError, match=says):
        rqlab.simulate(**QUICK | wrong)


def test_numpys_numbers_and_timedeltas_come_back_from_a_file_as_the_same_history(tmp_path: Path) -> None:
    """A sweep over np.linspace, a plan made of rows of `result.faults`."""
    jobs: Sequence[dict[str, Any]] = [
        {"name": "send", "at": timedelta(seconds=1), "delay": timedelta(seconds=2), "priority": 3}
    ]
    result = rqlab.simulate(
        0, seed=np.int64(5), jobs=jobs, workers=np.int64(2), store="memory", failure_rate=np.float64(0.5),
        duration=timedelta(seconds=1), faults=[Fault(np.float64(2), "freeze", "worker-1", np.int64(6))],
    )  # fmt: skip
    file = tmp_path / "history.jsonl"

    result.to_jsonl(file)

    again = rqlab.SimulationResult.from_jsonl(file).replay()
    assert again.hash == result.hash
    assert "np." not in result.replay_line
    assert eval(result.replay_line, {"rqlab": rqlab}).hash == result.hash


def test_a_whole_number_as_an_instant_of_a_fault_is_the_same_plan_as_a_float(tmp_path: Path) -> None:
    def run(at: float) -> rqlab.SimulationResult:
        return rqlab.simulate(0, seed=3, store="memory", faults=[Fault(at, "freeze", "worker-1", 9)])

    assert run(2).hash == run(2.0).hash


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"seeds": 1.5}, "seeds: expected how many, or whole numbers"),
        ({"seeds": None}, "seeds: expected how many, or whole numbers"),
        ({"seeds": "10"}, "seeds: expected how many, or whole numbers"),
        ({"durability": 5}, "durability: expected durable, buffered"),
        ({"durability": [["durable"]]}, "durability: expected durable, buffered"),
        ({"executor": ThreadPoolExecutor}, r"executor: expected one of concurrent.futures, .* not its class"),
        ({"bugs": 5}, "bugs: expected the path of a directory, or None"),
        ({"crashes": None}, "crashes: expected how many, or a list"),
    ],
    ids=str,
)
def test_explore_says_what_is_wrong_with_an_argument(wrong: dict[str, Any], says: str) -> None:
    where = {} if "executor" in wrong else {"processes": 0}
    with pytest.raises(rqlab.ValidationError, match=says):
        rqlab.explore(**{"seeds": 1, "progress": False, "bugs": None, "store": "memory"} | where | wrong)


def test_explore_takes_numpys_seeds() -> None:
    found = rqlab.explore(np.arange(2), processes=0, progress=False, bugs=None, store="memory", jobs=2, crashes=0)

    assert sorted(found.runs["seed"]) == [0, 1]


def test_explore_refuses_a_bug_base_that_is_no_directory_before_it_spends_an_hour(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")

    with pytest.raises(rqlab.ValidationError, match="bugs: expected a directory"):
        rqlab.explore(1, processes=0, progress=False, bugs=file, store="memory")

    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "damage",
    [
        {"seed": -4},
        {"arguments": {"durability": 5}},
        {"arguments": {"durability": "durable", "colour": "red"}},
        {"plan": [{"at": 1.0, "kind": "meteor"}]},
    ],
    ids=str,
)
def test_a_damaged_file_in_the_bug_base_is_named(tmp_path: Path, damage: dict[str, Any]) -> None:
    bug = {
        "rqlab": 1, "check": "I2", "says": "", "seed": 4, "arguments": {"durability": "durable"}, "plan": [],
        "replay": "",
    }  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps(bug | damage))

    with pytest.raises(rqlab.ValidationError, match=r"mine\.json"):
        rqlab.explore(1, processes=0, progress=False, bugs=tmp_path, store="memory", jobs=2)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"modes": 5}, "modes: expected some of"),
        ({"modes": [["durable"]]}, "modes: expected some of"),
        ({"cuts": "every-operation"}, "compare: expected one plan for all modes, not cuts"),
        ({"seed": None}, "seed: expected a whole number"),
        ({"crashes": "3"}, "crashes: expected how many"),
    ],
    ids=str,
)
def test_compare_says_what_is_wrong_with_an_argument(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(rqlab.ValidationError, match=says):
        rqlab.compare(**wrong)
