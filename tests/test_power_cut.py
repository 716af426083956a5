"""The demo of the power cut tells the same story for a seed, and would say so if a mode broke its promise."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import rqlab
from rqlab import power_cut
from rqlab.measurement import cuts, paced
from rqlab.measurement.losses import Loss
from rqlab.power_cut import Kept
from rqlab.simulation import recorder
from rqlab.storage import cache


def told(seed: int) -> tuple[bool, str]:
    said: list[str] = []
    held = power_cut.run(seed, said.append)
    return held, "\n".join(said)


def numbers(said: str) -> dict[str, tuple[int, int, int]]:
    """Acknowledged, survived, lost of each mode, as the table says."""
    rows = re.findall(r"^(\w+) +(\d+) +(\d+) +(\d+) ", said, re.MULTILINE)
    return {mode: (int(acknowledged), int(survived), int(lost)) for mode, acknowledged, survived, lost in rows}


@pytest.mark.parametrize("seed", range(5))
def test_every_mode_keeps_its_promise_and_the_numbers_add_up(seed: int) -> None:
    held, said = told(seed)

    found = numbers(said)
    assert held
    assert list(found) == list(rqlab.MODES)
    assert len({acknowledged for acknowledged, _, _ in found.values()}) == 1
    assert all(acknowledged == survived + lost for acknowledged, survived, lost in found.values())
    assert found["durable"][2] == found["memory"][1] == 0


def test_over_some_seeds_every_mode_but_durable_loses_something() -> None:
    lost = [{mode: row[2] for mode, row in numbers(told(seed)[1]).items()} for seed in range(5)]

    for mode in rqlab.MODES:
        assert any(each[mode] for each in lost) == (mode != "durable")


def test_the_same_seed_tells_the_same_story_in_every_process() -> None:
    first, again = [
        subprocess.run(
            [sys.executable, "-m", "rqlab", "demo", "--power"],
            capture_output=True, text=True, timeout=60, check=True, env={"PYTHONHASHSEED": hash_seed},
        ).stdout
        for hash_seed in ("1", "2")
    ]  # fmt: skip

    assert first == again == f"{told(power_cut.SEED)[1]}\n"
    assert told(8)[1] not in first


def test_the_power_fails_in_the_middle_of_a_commit(tmp_path: Path) -> None:
    """Over some seeds the cut hits the push in flight while its write is not synced yet."""
    recorded = paced.record("durable", [0, 5], tmp_path / "durable")
    shares = [power_cut.story(seed)[1].share for seed in range(20)]
    issued = [round(share * (recorded.in_flight_end - recorded.end)) for share in shares]

    assert recorded.in_flight_end > recorded.end
    assert any(0 < each < recorded.in_flight_end - recorded.end for each in issued)


def test_there_is_a_sentence_for_every_mode() -> None:
    said = told(0)[1]

    for mode in rqlab.MODES:
        assert re.search(rf"^{mode} lost ", said, re.MULTILINE), said


def test_nothing_of_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rqlab.simulation.recovery.MEMORY_DIRECTORY", tmp_path)

    told(0)

    assert list(tmp_path.iterdir()) == []


def test_synchronous_normal_planted_in_durable_breaks_its_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cache.SETTINGS, "sqlite_synchronous", 1)

    held, said = told(0)

    assert not held
    assert "durable BROKE ITS PROMISE" in said


def test_a_keeper_that_sleeps_breaks_the_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    asleep = rqlab.MODES["hybrid"]._replace(keeper=lambda store, opening: None)
    monkeypatch.setitem(rqlab.MODES, "hybrid", asleep)

    held, said = told(0)

    assert not held
    assert "hybrid BROKE ITS PROMISE" in said


def test_a_hole_among_the_older_jobs_breaks_the_promise_of_every_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    real = cuts.found_after

    def with_a_hole(*arguments: object) -> frozenset[str]:
        found = real(*arguments)  # type: ignore[arg-type]
        return found - {min(found)} if found else found

    monkeypatch.setattr(cuts, "found_after", with_a_hole)

    held, said = told(0)

    assert not held
    assert "buffered BROKE ITS PROMISE" in said
    assert "older ones among them while newer ones are there" in said


def test_one_lost_job_is_said_in_good_english() -> None:
    said = power_cut.sentence(Kept("buffered", Loss(10, 1, 0.004), 9, True, True))

    assert said.startswith("buffered lost its newest job, pushed in the last 4 ms, and none before")


def test_where_nothing_can_be_recorded_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "BACKENDS", ("no_such_backend",))

    held, said = told(0)

    assert not held
    assert "This cannot be shown here: cannot record what SQLite writes" in said
    assert "pip install" in said


@pytest.mark.parametrize("arguments", [("--power", "--kills", "2"), ("--seed", "3")])
def test_options_that_would_be_ignored_are_refused(arguments: tuple[str, ...]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "rqlab", "demo", *arguments], capture_output=True, text=True, timeout=60, check=False
    )

    assert run.returncode == 2
    assert "expected --kills and --max-attempts without --power, or --seed with it" in run.stderr
