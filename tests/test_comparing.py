"""One plan in every mode: each loses what it may and no more, side by side."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from planted_bugs import Patch, normal_in_durable

import rqlab
from rqlab import experiments
from rqlab.charts.losses import marks
from rqlab.simulation.faults import Fault


@pytest.fixture(scope="module")
def found() -> rqlab.Comparison:
    return rqlab.compare(seed=7)


def test_each_mode_loses_what_it_may_and_durable_nothing(found: rqlab.Comparison) -> None:
    """A mode that loses nothing in the test that should lose is a broken test."""
    lost = found.frame.set_index("mode", drop=False)[["writes_lost_kill", "writes_lost_power_cut"]]

    assert found.ok
    assert list(found.frame["mode"]) == list(rqlab.MODES)
    assert list(lost.loc["durable"]) == [0, 0]
    assert (lost.loc[["buffered", "hybrid", "memory"]] > 0).all(axis=None)
    assert lost.loc["hybrid"].sum() < lost.loc["memory"].sum()


def test_the_plan_is_the_same_in_every_mode(found: rqlab.Comparison) -> None:
    assert {result.plan for result in found.results.values()} == {found.plan}
    assert [fault.kind for fault in found.plan] == ["process kill", "power cut"]
    assert {result.seed for result in found.results.values()} == {7}
    assert all(rqlab.simulate(0, seed=7, faults=found.plan, durability=mode).hash == result.hash
               for mode, result in found.results.items())  # fmt: skip


def test_fewer_fsyncs_is_what_a_mode_gains(found: rqlab.Comparison) -> None:
    fsyncs = list(found.frame["fsyncs"])

    assert fsyncs == sorted(fsyncs, reverse=True)
    assert fsyncs[-1] == 0
    assert (found.frame["jobs_per_second"] > 0).all()


def test_the_numbers_are_those_of_the_results(found: rqlab.Comparison) -> None:
    for row in found.frame.itertuples():
        result = found.results[row.mode]
        promise = result.promise.set_index("crash")
        assert row.completed == (result.jobs["state"] == "completed").sum()
        assert row.writes_lost_kill == promise.loc["kill -9", "writes lost"]
        assert row.writes_lost_power_cut == promise.loc["power cut", "writes lost"]
        assert row.jobs_lost_kill + row.jobs_lost_power_cut == result.jobs["lost"].sum()


def test_faults_of_a_disk_are_left_out_in_memory() -> None:
    plan = [Fault(2.0, "failed fsync"), Fault(3.0, "freeze", "worker-1", seconds=5.0)]
    found = rqlab.compare(["durable", "memory"], seed=1, crashes=0, faults=plan, jobs=4)

    assert [len(result.plan) for result in found.results.values()] == [2, 1]


def test_a_comparison_of_ones_own_is_a_call_that_gives_it_again() -> None:
    plan = [Fault(2.0, "process kill", "worker-1", seconds=1.0)]
    found = rqlab.compare(["hybrid"], seed=3, crashes=plan, jobs=5, snapshot_interval=0.5)

    again = eval(found.replay_line, {"rqlab": rqlab})
    drawn = eval(rqlab.compare("durable", seed=3, crashes=2, faults=None, jobs=5).replay_line, {"rqlab": rqlab})

    assert again.results["hybrid"].hash == found.results["hybrid"].hash
    assert len(drawn.plan) > 2, "a light swarm was drawn too"


def test_a_broken_promise_is_told_where_it_broke(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    normal_in_durable(monkeypatch)

    with pytest.raises(typer.Exit) as ended:
        experiments.compare(seed=7)

    said = capsys.readouterr().out
    assert ended.value.exit_code == 1
    assert "BROKEN in durable: R3 at " in said
    assert "replay: rqlab.simulate(0, seed=7, faults=[rqlab.Fault(" in said


def test_the_picture_says_what_the_table_says(found: rqlab.Comparison, tmp_path: Path) -> None:
    chart = found.plot()
    chart.save(tmp_path / "losses.png")
    drawn = marks(found.frame)

    assert (tmp_path / "losses.png").stat().st_size > 10_000
    assert chart.alt.startswith(
        "Acknowledged writes lost in the same story: durable 0 at kill -9 and 0 at a power cut;"
    )
    assert chart.data["writes_lost"].sum() == found.frame[["writes_lost_kill", "writes_lost_power_cut"]].sum().sum()
    assert drawn.seed == 7
    dark = found.plot(dark=True)
    assert dark.ax is not chart.ax


def test_what_a_notebook_shows_is_the_verdict_and_a_row_a_mode(found: rqlab.Comparison) -> None:
    class Page(HTMLParser):
        words = ""
        rows = 0

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.rows += tag == "tr"

        def handle_data(self, data: str) -> None:
            self.words += data

    page = Page()
    page.feed(found._repr_html_())

    assert page.rows == 1 + len(rqlab.MODES)
    assert page.words.startswith("✓ SAFETY HOLDS seed 7: the same 2 faults in every mode")
    assert "rqlab.compare(seed=7)" in page.words
    assert len(found._repr_html_()) < 5_000
    assert "memory" in repr(found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"modes": ["sturdy"]}, "modes: expected some of durable, buffered"),
        ({"modes": []}, "modes: expected some of"),
        ({"durability": "hybrid"}, "expected modes, not durability"),
        ({"store": "memory"}, "expected modes, not store"),
        ({"wrokers": 2}, "simulate has no argument wrokers"),
        ({"workers": 0}, "workers: expected"),
    ],
)
def test_a_wrong_argument_is_refused_and_said(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(rqlab.ValidationError) as refused:
        rqlab.compare(**arguments)

    assert said in str(refused.value)
