"""A broken promise shrinks to its cause: few faults, few jobs, the same check, within a budget."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from msgspec.structs import replace
from planted_bugs import (
    DISK,
    HYBRID,
    MEMORY,
    Patch,
    deliveries_stand_still,
    does_not_open_after_a_crash,
    early_retry,
    flush_forgets,
    no_fencing,
    no_stall_recovery,
    normal_in_durable,
)

import rqlab
from rqlab import experiments, lifecycle
from rqlab.job import Outcome, State
from rqlab.simulation import shrinking
from rqlab.simulation.chance import Chance
from rqlab.simulation.faults import Fault
from rqlab.simulation.result import SimulationResult
from rqlab.simulation.run import simulate


def first_broken(check: str, least: int = 0, **options: Any) -> SimulationResult:
    """The first seed that breaks this promise, of those with so many faults at least."""
    for seed in range(60):
        result = simulate(**{"faults": 9, **options}, seed=seed)
        if len(result.plan) >= least and check in {violation.check for violation in result.violations}:
            return result
    raise AssertionError(f"no seed of 60 breaks {check}")


# Down to the cause.


@pytest.mark.parametrize(
    ("plant", "check", "options", "cause"),
    [
        (no_fencing, "I3", MEMORY, {"late ack", "freeze"}),
        (no_stall_recovery, "L1", MEMORY, {"worker crash", "process kill", "late ack", "freeze"}),
        (early_retry, "I5", MEMORY, set()),
        (deliveries_stand_still, "I2", {**MEMORY, "crashes": [Fault(4.0, "redeploy", seconds=1.0)]}, {"redeploy"}),
        (flush_forgets, "R3", {**HYBRID, "faults": 14}, {"power cut", "process kill", "I/O error", "disk full"}),
        (does_not_open_after_a_crash, "R0", {"crashes": [Fault(4.0, "power cut")], "faults": 11}, {"power cut"}),
        (normal_in_durable, "R3", {**DISK, "crashes": 4}, {"power cut"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_a_plan_of_a_dozen_faults_shrinks_to_its_cause(
    plant: Callable[[Patch], None], check: str, options: dict[str, Any], cause: set[str], monkeypatch: Patch
) -> None:
    plant(monkeypatch)
    broken = first_broken(check, 10, **options)

    shrunk = broken.shrink()

    assert (shrunk.check, shrunk.is_minimal) == (check, True)
    assert len(shrunk.plan) <= min(3, len(cause)), shrunk
    assert {fault.kind for fault in shrunk.plan} <= cause
    assert shrunk.runs <= 60, "a budget of 200 leaves room"
    assert shrunk.result.header.arguments["workers"] == 1
    assert eval(shrunk.replay_line, {"rqlab": rqlab}).hash == shrunk.result.hash


@pytest.mark.parametrize("causes", [set(), {7}, {2, 9}, {0, 5, 11}], ids=str)
def test_causes_that_only_break_together_are_all_found(causes: set[int]) -> None:
    tried: list[Sequence[int]] = []

    def breaks(plan: Sequence[int]) -> bool:
        tried.append(plan)
        return causes <= set(plan)

    shrinking._fewer(range(12), breaks)

    assert set(min((plan for plan in tried if causes <= set(plan)), key=len)) == causes
    assert len(tried) < 60


def unfenced_once_released(patch: Patch) -> None:
    """Whoever held a job that was ever released may finish it."""
    fence = lifecycle.fence

    def careless(stored: Any, held: Any) -> Any:
        was_released = stored is not None and any(line.outcome is Outcome.RELEASED for line in stored.history)
        return stored if was_released and stored.state is State.ACTIVE else fence(stored, held)

    patch.setattr(lifecycle, "fence", careless)


def test_faults_that_only_break_together_are_all_left(monkeypatch: Patch) -> None:
    unfenced_once_released(monkeypatch)
    plan = [Fault(4.0, "redeploy", seconds=1.0), Fault(5.0, "late ack", "worker-1"), Fault(5.5, "late ack", "worker-2")]
    noise = [Fault(2.0 + number, "duplicate push") for number in range(9)]
    broken = next(
        result
        for seed in range(60)
        if not (result := simulate(0, seed=seed, store="memory", faults=[*plan, *noise])).ok
    )

    shrunk = broken.shrink()

    assert [fault.kind for fault in shrunk.plan] == ["redeploy", "late ack"]


def test_a_power_cut_is_made_at_the_earliest_operation_that_still_breaks(monkeypatch: Patch) -> None:
    normal_in_durable(monkeypatch)
    broken = first_broken("R3", **DISK, crashes=4)

    (cut,) = broken.shrink().plan

    assert (cut.at, cut.kind) == (0.0, "power cut")
    assert 0 < cut.operation < 100, "the first commits, not some time in the middle"
    assert simulate(0, seed=broken.seed, faults=[replace(cut, operation=cut.operation - 1)], jobs=0, workers=1).ok


def test_a_cut_at_every_operation_shrinks_to_one_of_them(monkeypatch: Patch) -> None:
    normal_in_durable(monkeypatch)
    broken = simulate(cuts="every-operation", jobs=3, seed=3)

    shrunk = broken.shrink()

    assert shrunk.check in ("R1", "R3")
    assert [fault.kind for fault in shrunk.plan] == ["power cut"]
    assert not shrunk.result.ok


def test_jobs_of_ones_own_get_fewer_and_plainer(monkeypatch: Patch) -> None:
    early_retry(monkeypatch)
    jobs = [{"name": "plain", "priority": number} for number in range(5)]
    jobs.append({"name": "retried", "backoff_delay": 8.0, "tags": ["a"], "metadata": {"tenant": 1}})

    def fail(job: rqlab.Job) -> None:
        if job.name == "retried":
            raise ValueError("no")

    shrunk = simulate(0, seed=1, jobs=jobs, faults=(), handler=fail, store="memory").shrink(handler=fail)

    (job,) = shrunk.result.header.arguments["jobs"]
    assert job["name"] == "retried"
    assert not {"tags", "metadata", "priority"} & set(job)


# Within its budget, and honestly.


def test_the_best_so_far_is_returned_when_the_budget_is_used_up(monkeypatch: Patch) -> None:
    no_fencing(monkeypatch)
    broken = first_broken("I3", 10, **MEMORY)

    one, few, enough = (broken.shrink(budget=budget) for budget in (1, 6, 200))

    assert (one.runs, one.is_minimal, one.plan) == (1, False, broken.plan)
    assert few.runs == 6
    assert not few.is_minimal
    assert len(few.plan) <= len(broken.plan)
    assert not few.result.ok
    assert enough.is_minimal
    assert "when the budget was used up" in str(few)
    assert f"faults to 1 in {enough.runs} runs\n" in str(enough)


def test_what_breaks_another_promise_is_no_smaller_failure(monkeypatch: Patch) -> None:
    """With nothing else broken, an engine that retries early breaks I5: a search for I3 must not end there."""
    no_fencing(monkeypatch)
    broken = first_broken("I3", 10, **MEMORY)
    early_retry(monkeypatch)

    with pytest.raises(rqlab.RQLabError, match="expected I3 to break again"):
        broken.shrink()


def test_a_failure_that_was_mended_meanwhile_is_told_so(monkeypatch: Patch) -> None:
    with monkeypatch.context() as planted:
        no_fencing(planted)
        broken = first_broken("I3", **MEMORY)

    with pytest.raises(rqlab.RQLabError, match="expected I3 to break again under seed"):
        broken.shrink()


def test_what_broke_nothing_cannot_be_shrunk() -> None:
    with pytest.raises(rqlab.ValidationError, match="expected a broken promise"):
        simulate(0, seed=1, faults=(), jobs=2, store="memory").shrink()


def test_a_missing_handler_is_asked_for(monkeypatch: Patch) -> None:
    early_retry(monkeypatch)

    def fail(job: rqlab.Job) -> None:
        raise ValueError("no")

    broken = simulate(0, seed=1, jobs=3, faults=(), handler=fail, store="memory")

    with pytest.raises(rqlab.ValidationError, match=r"pass it as handler="):
        broken.shrink()


def test_a_history_in_a_file_shrinks_too(
    monkeypatch: Patch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_fencing(monkeypatch)
    broken = first_broken("I3", 10, **MEMORY)
    broken.to_jsonl(tmp_path / "broken.jsonl")

    with pytest.raises(typer.Exit) as ended:
        experiments.replay(tmp_path / "broken.jsonl", shrink=True)

    said = capsys.readouterr().out
    assert ended.value.exit_code == 1
    assert "the same history" in said
    assert f"shrunk: I3: {len(broken.plan)} faults to 1 in " in said


# Why it works.


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_a_fault_that_is_taken_out_moves_no_draw_of_those_that_stay(store: str, monkeypatch: Patch) -> None:
    """Draws have names, not turns: both worlds ask nearly the same questions, and get the same answers."""
    draw = Chance.__call__
    answers: list[dict[tuple[object, ...], float]] = [{}]

    def noted(self: Chance, *question: Any) -> float:
        answers[-1][question] = draw(self, *question)
        return answers[-1][question]

    plan = simulate(seed=11, faults=9, store=store).plan
    monkeypatch.setattr(Chance, "__call__", noted)
    whole = simulate(0, seed=11, faults=plan, store=store)
    for number in range(0, len(plan), 1 if store == "memory" else 4):
        answers.append({})
        without = simulate(0, seed=11, faults=plan[:number] + plan[number + 1 :], store=store)

        before, after = answers[0], answers[-1]
        shared = before.keys() & after.keys()
        assert all(before[question] == after[question] for question in shared)
        assert len(shared) > 0.9 * min(len(before), len(after)), plan[number]
        unmoved = [each for each in whole.history if each.at < plan[number].at]
        assert list(without.history[: len(unmoved)]) == unmoved
