"""The simulator: the same seed is the same history, the checks look on, and what is shown is what happened."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import rqlab
from rqlab import FAULTS, Fault
from rqlab.simulation.result import SimulationResult
from rqlab.simulation.run import simulate

SEEDS = range(12)  # of each campaign here
CAMPAIGN = {"crashes": 3, "faults": 9, "jobs": 30}


# The same again.


def test_the_same_seed_gives_the_same_history_whatever_the_hash_seed() -> None:
    code = (
        "import rqlab; print([rqlab.simulate(seed=s, faults=9.0, durability=mode).hash for s in (0, 1, 2)"
        " for mode in ('durable', 'hybrid')])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True, timeout=100,
        ).stdout
        for seed in ("0", "5", "4242")
    }  # fmt: skip

    hashes = [simulate(seed=s, faults=9.0, durability=mode).hash for s in (0, 1, 2) for mode in ("durable", "hybrid")]
    assert said == {f"{hashes}\n"}


def other_pythons() -> list[str]:
    """Interpreters of other versions that have what rqlab needs: on the PATH, or named in RQLAB_PYTHONS."""
    names = [f"python3.{minor}" for minor in range(11, 16) if minor != sys.version_info.minor]
    named = os.environ.get("RQLAB_PYTHONS", "").split(os.pathsep)
    found = dict.fromkeys(path for each in (*named, *names) if each and (path := shutil.which(each)))
    needs = "import croniter, diskcache, msgspec, typer"
    return [path for path in found if subprocess.run([path, "-c", needs], capture_output=True).returncode == 0]


def test_the_same_seed_gives_the_same_history_on_another_python() -> None:
    pythons = other_pythons()
    if not pythons:
        pytest.skip("no other Python with rqlab's dependencies; name some: RQLAB_PYTHONS=/path/to/venv/bin/python")
    options = [{"seed": seed, "faults": 9.0, "durability": mode} for seed in (0, 1) for mode in rqlab.MODES]
    code = f"import rqlab; print([rqlab.simulate(**options).hash for options in {options}])"
    home = {**os.environ, "PYTHONPATH": str(Path(rqlab.__file__).parent.parent)}
    said = {
        python: subprocess.run([python, "-c", code], env=home, capture_output=True, text=True, timeout=100).stdout
        for python in pythons
    }

    assert said == dict.fromkeys(pythons, f"{[simulate(**options).hash for options in options]}\n")  # type: ignore[arg-type]


def test_another_seed_gives_another_history() -> None:
    assert len({simulate(seed=seed, store="memory").hash for seed in SEEDS}) == len(SEEDS)


# What holds.


def test_callers_that_push_at_the_same_instant_share_a_commit() -> None:
    jobs = [{"name": "burst", "at": 1.0} for _ in range(5)]
    together = simulate(0, seed=1, jobs=jobs, faults=())
    apart = simulate(0, seed=1, jobs=[{**job, "at": 1 + number / 10} for number, job in enumerate(jobs)], faults=())

    assert together.ok
    assert together.header.operations < apart.header.operations - 20


def test_memory_loses_everything_with_its_process_and_may() -> None:
    plan = [Fault(8.0, "process kill", "worker-1", seconds=1.0)]
    lost = simulate(0, seed=3, faults=plan, durability="memory")
    kept = simulate(0, seed=3, faults=plan, durability="durable")

    assert lost.ok
    assert lost.jobs["lost"].sum() >= 5
    assert kept.ok
    assert not kept.jobs["lost"].any()


def test_hybrid_loses_less_than_its_row_says_and_something() -> None:
    """A mode that loses nothing in the test that should lose is a broken test."""
    results = [
        simulate(0, seed=seed, faults=[Fault(8.3, "power cut", seconds=1.0, how="lost")], durability="hybrid")
        for seed in SEEDS
    ]

    assert all(result.ok for result in results)
    assert sum(int(result.promise["writes lost"].sum()) for result in results) >= 3


def test_a_zombie_that_wakes_is_refused() -> None:
    refused = 0
    for seed in SEEDS:
        result = simulate(0, seed=seed, faults=[Fault(5.0, "late ack", "worker-1")], store="memory")
        assert result.ok
        refused += sum(each.kind == "refused" for each in result.history)

    assert refused >= len(SEEDS) // 2


def test_a_poison_job_ends_in_the_dead_letter_queue() -> None:
    result = simulate(0, seed=1, faults=[Fault(0.0, "poison job", "job 0")], store="memory")
    job = result.jobs.iloc[0]

    assert result.ok
    assert job.state == "dlq"
    assert list(result.attempts[result.attempts["job"] == job.id]["outcome"]) == ["stalled"] * job.deliveries


@pytest.mark.parametrize("options", [{"durability": "buffered", "flush_interval": 0.5}, {"durability": "hybrid"}])
def test_on_a_disk_slowed_a_hundredfold_only_the_newest_is_lost(options: dict[str, Any]) -> None:
    """R3b judges the age: what the mode's row allows, and a commit of 400 ms; no more, and not nothing."""
    cuts = [Fault(0.0, "slow disk", seconds=60.0), *(Fault(at, "power cut") for at in (3.333, 6.777, 9.123))]
    results = [simulate(cuts, seed=seed, jobs=60, duration=0.5, faults=(), **options) for seed in range(4)]

    assert [result.violations for result in results] == [[]] * 4
    assert all(result.header.asked["R3b"] >= 3 for result in results)
    assert sum(loss.writes for result in results for loss in result.header.losses) > 20


@pytest.mark.parametrize("operation", [4, 6])
def test_a_commit_that_nobody_heard_of_may_be_there_after_a_crash(operation: int) -> None:
    """Also when calls before it had raised, so that the newest of several unknown outcomes is the one to be found."""
    faults = [
        Fault(1.0, "disk full", seconds=2.0),
        Fault(3.0, "power cut", seconds=1.0, how="sigkill", operation=operation),
    ]
    results = [simulate(0, seed=seed, jobs=4, workers=2, faults=faults) for seed in range(4)]

    assert [result.violations for result in results] == [[]] * 4


def test_a_writer_that_waits_for_a_keepers_next_try_is_not_refused_for_ever() -> None:
    """Hybrid at its bound: a snapshot failed as the last fault, and the next one comes when its interval is over."""
    jobs = [{"name": "x", "at": number / 4} for number in range(48)]
    faults = [Fault(9.0, "failed fsync"), Fault(11.9, "failed fsync")]
    result = simulate(
        0, seed=0, jobs=jobs, faults=faults, duration=0.2, durability="hybrid", snapshot_interval=5.0, max_dirty=4
    )

    assert result.ok, result.summary()
    assert sum(each.kind == "error" and each.worker == "producer" for each in result.history) >= 2


def test_a_cut_at_every_operation_loses_nothing() -> None:
    result = simulate(cuts="every-operation", jobs=3, seed=3)

    assert result.ok
    assert result.cuts is not None
    assert len(result.cuts) > 500
    assert {"torn frame", "creation"} <= set(", ".join(result.cuts["windows"]).split(", "))


@pytest.mark.parametrize("durability", ["durable", "buffered", "hybrid"])
def test_large_data_is_kept_through_crashes(durability: str) -> None:
    """Over 4 KiB it has an entry of its own, and records are changed without it."""
    jobs = [{"name": "large", "data": "x" * 9_000} for _ in range(8)]
    results = [simulate(seed=seed, jobs=jobs, durability=durability) for seed in range(3)]

    assert [result.violations for result in results] == [[]] * 3
    in_memory = simulate(0, seed=1, jobs=jobs, faults=results[1].plan[:0], store="memory")
    assert simulate(0, seed=1, jobs=jobs, faults=()).hash == in_memory.hash


def test_a_handler_that_hangs_stops_hanging_when_nothing_breaks_any_more() -> None:
    """A job without a time-out would else never end, and nothing of the engine's could end it."""
    result = simulate(0, seed=1, jobs=[{"name": "x"}], faults=[Fault(0.0, "hanging handler", "job 0")], store="memory")
    hang = result.faults.iloc[0]

    assert result.ok, result.summary()
    assert list(result.jobs["state"]) == ["completed"]
    assert hang.until == next(each.at for each in result.history if each.kind == "calm")


def asks_for_a_day(job: rqlab.Job, ctx: rqlab.Context) -> None:
    if ctx.token <= 3:
        raise rqlab.RetryAfter(86_400)


@pytest.mark.parametrize(
    ("job", "options", "hours"),
    [
        ({"max_attempts": 12}, {"failure_rate": 1.0}, 0.5),
        ({"max_attempts": 40, "backoff": "fixed", "backoff_delay": 3600.0}, {"failure_rate": 1.0}, 10),
        ({"max_attempts": 5}, {"handler": asks_for_a_day}, 72),
    ],
)
def test_a_job_that_waits_long_between_its_attempts_is_waited_for(
    job: dict[str, Any], options: dict[str, Any], hours: float
) -> None:
    few = {"workers": 1, "tick_interval": 60.0, "store": "memory"}  # steps: the days are long
    result = simulate(0, seed=1, jobs=[{"name": "x", **job}], faults=(), **few, **options)

    assert result.ok, result.summary()
    assert set(result.jobs["state"]) <= {"dlq", "completed"}
    assert result.header.ended_at >= hours * 3600


def test_a_handler_that_snoozes_for_ever_is_told_so() -> None:
    def later(job: rqlab.Job) -> None:
        raise rqlab.Snooze(10.0)

    result = simulate(0, seed=1, jobs=[{"name": "x"}], faults=(), handler=later, store="memory")

    assert {violation.check for violation in result.violations} == {"L1", "L4"}


# What is shown.


def test_a_history_survives_its_file_and_replays(tmp_path: Path) -> None:
    result = simulate(seed=7)
    result.to_jsonl(tmp_path / "seven.jsonl")

    read = SimulationResult.from_jsonl(tmp_path / "seven.jsonl")

    assert read.plan == result.plan
    for table in ("jobs", "attempts", "events", "faults", "promise"):
        assert getattr(read, table).equals(getattr(result, table)), table
    assert read.replay().hash == result.hash


def test_every_cause_comes_before_what_it_brought_about(tmp_path: Path) -> None:
    result = simulate(seed=7, faults=9)
    causes = result.events["cause"].dropna()
    stalls = [each for each in result.history if each.kind == "stall"]

    assert (causes < causes.index).all()
    assert any(result.history[each.cause].kind in FAULTS for each in stalls if each.cause is not None)


def test_the_tables_agree_with_each_other() -> None:
    result = simulate(seed=7)
    runs = result.attempts.groupby("job").size()
    finished = result.jobs[result.jobs["state"] == "completed"]

    assert (result.jobs.set_index("id")["deliveries"].reindex(runs.index) == runs).all()
    assert finished["finished"].notna().all()
    assert (result.attempts["ended"] >= result.attempts["started"]).all()
    assert (result.attempts["waited"] >= 0).all()
    assert result.jobs.attrs == {"seed": 7, "replay": "rqlab.simulate(seed=7)"}
    assert len(result.faults) == sum(bool(each.detail.get("fault")) for each in result.history)


def test_the_state_at_an_instant_is_what_had_happened_by_then() -> None:
    result = simulate(seed=7)
    start, end = result.at(0.0), result.at(result.header.ended_at)

    assert start.counts["completed"] == 0
    assert list(end.jobs["state"]) == list(result.jobs["state"])
    assert sum(map(len, result.at(10.0).running.values())) == result.at(10.0).counts["active"]


def test_the_default_tells_a_story() -> None:
    """Retries, a stall that is recovered, three crashes, and nothing lost."""
    results = [simulate(seed=seed) for seed in SEEDS]
    kinds = [Counter(each.kind for each in result.history) for result in results]

    assert all(result.ok for result in results)
    assert all(len(result.plan) >= 3 for result in results)
    assert sum(each["stall"] > 0 for each in kinds) >= 10
    assert sum(each["fail"] > 0 for each in kinds) >= 10


def test_an_example_of_its_own_plan_is_a_call_that_gives_it_again() -> None:
    result = simulate(seed=9, store="memory")
    again = eval(  # it is what a user would paste
        f"rqlab.simulate(0, seed=9, store='memory', faults={result.plan_as_python})", {"rqlab": rqlab}
    )

    assert again.hash == result.hash
    assert eval(result.replay_line, {"rqlab": rqlab}).hash == result.hash


# The user's own handler.


def test_a_handler_of_ones_own_runs_for_real_and_its_effects_are_counted() -> None:
    seen: list[int] = []

    def charge(job: rqlab.Job, ctx: rqlab.Context) -> str:
        seen.append(job.data["order"])
        ctx.effect("charged card")  # type: ignore[attr-defined]
        return "charged"

    result = simulate(
        0,
        seed=2,
        jobs=[{"name": "charge", "data": {"order": number}} for number in range(10)],
        faults=[Fault(1.0, "late ack", "worker-1")],
        handler=charge,
        store="memory",
    )

    assert result.ok
    assert set(seen) == set(range(10))
    assert result.effects["times"].max() == 2, "a run that was taken for dead had charged already"
    assert len(result.effects) == 10


def test_an_async_handler_runs_too() -> None:
    async def handler(job: rqlab.Job) -> int:
        return int(job.data) * 2

    result = simulate(0, seed=2, jobs=[{"name": "double", "data": 21}], faults=(), handler=handler, store="memory")

    assert result.ok
    assert list(result.jobs["state"]) == ["completed"]


# Wrong arguments.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"durability": "sturdy"}, "durability: expected 'durable' or"),
        ({"store": "paper"}, "store: expected 'disk' or 'memory'"),
        ({"store": "memory", "durability": "hybrid"}, 'store: expected "disk"'),
        ({"workers": 0}, "workers"),
        ({"failure_rate": 2}, "failure_rate"),
        ({"cuts": "some"}, "cuts: expected 'every-operation'"),
        ({"faults": [Fault(1.0, "earthquake")]}, "no such kind of fault"),
        ({"faults": [Fault(1.0, "freeze", "worker-9")]}, "no such worker"),
        ({"faults": [Fault(1.0, "disk full")], "store": "memory"}, 'needs store="disk"'),
        ({"faults": [Fault(1.0, "power cut", how="boiled")]}, "expected how="),
        ({"faults": ["freeze"]}, "expected a list of rqlab.Fault"),
        ({"jobs": [{"nam": "x"}]}, "jobs[0]"),
        ({"jobs": [{"queue": "bad queue"}]}, "jobs[0]: queue"),
        ({"checks": ["I99"]}, "checks: expected ids"),
        ({"seed": -1}, "seed"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused_and_said(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(rqlab.ValidationError) as caught:
        simulate(**arguments)  # type: ignore[arg-type]

    assert said in str(caught.value)


# The command line.


def rqlab_says(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rqlab", *arguments], capture_output=True, text=True, check=False, timeout=100
    )


def test_the_command_line_simulates_and_replays(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"

    simulated = rqlab_says("simulate", "--seed", "7", "--output", str(file))
    replayed = rqlab_says("replay", str(file))

    assert simulated.returncode == 0, simulated.stderr
    assert "every promise held" in simulated.stdout
    assert "replay: rqlab.simulate(seed=7)" in simulated.stdout
    assert replayed.returncode == 0, replayed.stderr
    assert "the same history" in replayed.stdout
    header = json.loads(file.read_text().splitlines()[0])
    assert (header["seed"], header["rqlab"]) == (7, 1)


def test_a_mistake_on_the_command_line_is_one_line() -> None:
    said = rqlab_says("simulate", "--durability", "sturdy")

    assert said.returncode == 2
    assert said.stderr.startswith("error: durability: expected")
    assert len(said.stderr.splitlines()) == 1


def test_a_world_ends_when_callers_have_nothing_left_to_do() -> None:
    """And not when patience does: callers of a larger world resume its queue once more when nothing breaks."""
    result = simulate(0, seed=1, faults=(), store="memory", jobs=25, duration=0.5)
    calm = next(each.at for each in result.history if each.kind == "calm")

    assert calm < result.header.ended_at < calm + 10
