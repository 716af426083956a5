"""What a simulation came to is told rightly: what was lost and why, and pictures that show themselves."""

from functools import cache
from pathlib import Path

import pytest

import rqlab
from rqlab import SimulationResult
from rqlab.simulation.faults import CRASHES
from rqlab.simulation.run import simulate

SEEDS = range(8)


@cache
def hybrid(seed: int) -> SimulationResult:
    return simulate(seed=seed, durability="hybrid")


# What was lost.


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("durability", ["durable", "hybrid", "memory"])
def test_every_recovery_names_the_crash_it_followed(durability: str, seed: int) -> None:
    result = simulate(seed=seed, durability=durability, faults=9.0)
    recovered = [each for each in result.history if each.kind == "recovered"]

    assert {result.crash_of(each).kind for each in recovered} <= {*CRASHES, "redeploy"}
    assert all(result.crash_of(each).at <= each.at for each in recovered)


def test_a_completion_that_was_lost_is_told_and_the_job_runs_again() -> None:
    forgotten = 0
    for seed in SEEDS:
        result = hybrid(seed)
        losses = result.losses
        again = losses[(losses["acknowledged"] == "completed") & (losses["stored"] != "lost")]
        forgotten += len(again)
        for loss in again.itertuples():
            runs = result.attempts[result.attempts["job"] == loss.job]
            before = runs[(runs["started"] <= loss.at) & (runs["outcome"] == "lost")]
            assert len(before)
            assert (runs["started"] > loss.at).any()

    assert forgotten >= 3


def test_the_state_after_a_recovery_is_what_is_stored() -> None:
    """Counted from the store by the simulator itself; the tables are made of the history alone."""
    for seed in SEEDS:
        result = hybrid(seed)
        for loss in result.losses.itertuples():
            recovered = next(each.at for each in result.history if each.kind == "recovered" and each.at >= loss.at)
            states = dict(zip(*(result.at(recovered).jobs[name] for name in ("id", "state")), strict=True))
            later = [each for each in result.history if each.job == loss.job and each.at == recovered]
            if later[-1].kind in ("lost", "undone"):  # else it has moved on at that very instant
                assert states[loss.job] == loss.stored


def test_losses_agree_with_the_promise() -> None:
    for seed in SEEDS:
        result = hybrid(seed)

        assert (result.losses["stored"] == "lost").sum() == result.promise["jobs lost"].sum()


def test_a_run_that_a_crash_took_out_of_the_records_ends_at_the_crash() -> None:
    kill = rqlab.Fault(8.0, "process kill", "worker-1", seconds=1.0)
    runs = simulate(0, seed=3, faults=[kill], durability="memory").attempts
    running = runs[(runs["started"] < 8.0) & (runs["ended"] >= 8.0)]

    assert list(running["ended"]) == [8.0] * 3
    assert set(runs[runs["started"] < 8.0]["outcome"]) == {"lost"}


def test_a_second_crash_while_a_process_starts_is_not_the_one_that_ended_it() -> None:
    cuts = [rqlab.Fault(at, "power cut", seconds=3.0, how="lost") for at in (8.3, 9.0)]
    results = [simulate(0, seed=seed, faults=cuts, durability="hybrid") for seed in SEEDS]

    assert {at for result in results for at in result.losses["at"]} == {8.3}


def test_what_was_lost_is_a_sentence_that_names_the_crash() -> None:
    assert simulate(0, faults=(), seed=1).what_was_lost.startswith("Nothing was lost: the store met no kill")
    assert simulate(seed=7).what_was_lost == "Nothing that was acknowledged was lost (1 x process kill, 1 x power cut)."
    lost = simulate(seed=4, durability="hybrid").what_was_lost
    assert lost.startswith("Lost, as hybrid may: the power cut at 8.9 s took 10 acknowledged writes (3 jobs are gone")


def test_a_fault_says_whom_it_strikes_and_until_when() -> None:
    plan = [
        rqlab.Fault(3.0, "freeze", "worker-1", seconds=2.0),
        rqlab.Fault(6.0, "process kill", "worker-2", seconds=1),
    ]
    many, one = (simulate(0, faults=plan, seed=1, durability=mode).faults for mode in ("durable", "hybrid"))

    assert list(many["strikes"]) == ["worker", "worker"]
    assert list(one["strikes"]) == ["all", "all"], "all workers live in one process"
    assert list(many["until"]) == [5.0, 7.0]


# Pictures.


@pytest.mark.parametrize("plot", ["plot_timeline", "plot_retries", "plot_backlog"])
def test_a_plot_takes_axes_and_gives_them_back(plot: str) -> None:
    from matplotlib.figure import Figure

    mine = Figure().add_subplot()

    assert getattr(hybrid(2), plot)(mine) is mine


@pytest.mark.parametrize("plot", ["plot_timeline", "plot_retries", "plot_backlog"])
def test_axes_of_ours_show_themselves_in_a_notebook(plot: str) -> None:
    ax = getattr(hybrid(2), plot)()
    shown, about = ax._repr_mimebundle_()

    assert shown["image/png"].startswith(b"\x89PNG")
    assert shown["text/plain"] == about["image/png"]["alt"] == ax.chart.alt
    assert len(ax.chart.data)


def test_a_result_shows_itself() -> None:
    shown = hybrid(4)._repr_html_()

    assert 'src="data:image/png;base64,iVBOR' in shown
    assert "3 jobs are gone" in shown


def test_a_notebook_shows_axes_as_their_picture() -> None:
    """IPython's own formatter: what a cell's last expression goes through."""
    from IPython.core.formatters import DisplayFormatter

    shown, about = DisplayFormatter().format(hybrid(4).plot_backlog())

    assert shown["image/png"].startswith(b"\x89PNG")
    assert shown["text/plain"].startswith("Jobs by state over 35.5 s")
    assert about["image/png"]["alt"] == shown["text/plain"]


def test_a_history_from_a_file_says_and_shows_the_same(tmp_path: Path) -> None:
    hybrid(4).to_jsonl(tmp_path / "four.jsonl")

    read = SimulationResult.from_jsonl(tmp_path / "four.jsonl")

    assert read.what_was_lost == hybrid(4).what_was_lost
    assert read._repr_html_() == hybrid(4)._repr_html_()
    for table in ("losses", "effects", "faults", "attempts"):
        assert getattr(read, table).equals(getattr(hybrid(4), table)), table
        assert getattr(read, table).attrs == {"seed": 4, "replay": "rqlab.simulate(seed=4, durability='hybrid')"}
