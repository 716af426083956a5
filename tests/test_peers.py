"""The comparison with other queues, without any of them installed: rows, skips, floors, and the tables they make."""

import io
import itertools
import re
import sqlite3
from collections import Counter
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

import rqlab
from benchmarks import peers
from benchmarks.contestants import Acknowledging, Adapter, BareSQLite, Contestant, contestants, settings_of
from benchmarks.peers import OURS, Cost, Found
from benchmarks.rounds import Spread
from rqlab.simulation.audit import Audit, Loss
from rqlab.simulation.platter import Cut

FULL = Contestant("SQLite itself", "FULL", "", partial(BareSQLite, synchronous="FULL"))
NORMAL = Contestant("SQLite itself", "NORMAL", "", partial(BareSQLite, synchronous="NORMAL"))
ABSENT = Contestant("nobody's queue", "as shipped", "no-such-distribution-of-rqlab", partial(BareSQLite, synchronous="OFF"))  # fmt: skip # noqa: E501
KEPT = Audit((Loss(Cut(1, "lost"), 9, 0), Loss(Cut(1, "sigkill"), 9, 0)), 9, 2, 1)
LOST = Audit((Loss(Cut(1, "lost"), 9, 7), Loss(Cut(2, "lost"), 9, 0), Loss(Cut(1, "sigkill"), 9, 0)), 9, 2, 1)


def found(name: str, setting: str, audit: Audit = KEPT, *, acknowledges: bool = True, **figures: float) -> Found:
    """A row that was measured, with one figure in each of three rounds."""
    row = Contestant(name, setting, "", partial(BareSQLite, synchronous="FULL"))
    measured = {measure: [figures[short]] * 3 for short, measure in peers.ONLY.items() if short in figures}
    return Found(row, "wal, FULL", acknowledges, audit, "comes back", Cost(2, 3e-4), measured, Counter())


def ours(**figures: float) -> Found:
    name, _, setting = OURS.partition(", ")
    return found(name, setting, **figures)


def own_rows() -> list[Contestant]:
    return [row for row in contestants() if row.name in ("rqlab", "SQLite itself")]


@pytest.mark.parametrize("row", own_rows(), ids=lambda row: row.title)
def test_every_row_takes_a_job_from_push_to_acknowledgement(row: Contestant, tmp_path: Path) -> None:
    with closing(row.open(tmp_path)) as adapter:
        assert isinstance(adapter, Acknowledging)
        for number in (3, 4):
            adapter.push(number)
        taken = adapter.take()

        assert adapter.number_of(taken) == 3
        assert sorted(adapter.jobs()) == [3, 4]
        adapter.ack(taken)
        adapter.tidy()
        adapter.run(1)
        assert adapter.take() is None


def test_there_is_a_row_for_every_mode() -> None:
    assert [row.setting for row in contestants() if row.name == "rqlab"] == list(rqlab.MODES)
    assert OURS in {row.title for row in contestants()}


def test_settings_are_read_from_the_live_connection(tmp_path: Path) -> None:
    durable = next(row for row in own_rows() if row.title == OURS)
    for row, settings in ((FULL, "wal, FULL"), (NORMAL, "wal, NORMAL"), (durable, "wal, FULL")):
        (tmp_path / row.setting).mkdir()
        with closing(row.open(tmp_path / row.setting)) as adapter:
            assert settings_of(adapter) == settings
    assert settings_of(Adapter()) == "no SQLite"


def test_what_is_not_installed_is_skipped_and_said_to_be() -> None:
    present, absent = peers.sort_out(iter([FULL, ABSENT]))
    heads, cells = peers.lines_of([found("SQLite itself", "FULL", push=10)], absent)

    assert (present, absent) == ([FULL], [ABSENT])
    assert cells[1][:3] == ["nobody's queue", "as shipped", "not installed: skipped"]
    assert {len(line) for line in cells} == {len(heads)}


def test_a_short_run_measures_and_audits_every_row(tmp_path: Path) -> None:
    rows = [FULL, NORMAL]
    full, normal = peers.look_at(
        rows, tmp_path, ["push, 1 caller", "job cycle, by hand"], rounds=2, seconds=0.02, cuts=40
    )

    assert full.keeps_all
    assert not normal.keeps_all
    assert normal.audit is not None
    assert max(loss.lost for loss in normal.audit.at_power_cut) == peers.AUDITED_PUSHES
    assert [len(figures) for figures in full.figures.values()] == [2, 2]
    assert all(figure > 0 for figures in full.figures.values() for figure in figures)


def test_what_a_job_costs_is_counted_in_syncs_and_in_cpu(tmp_path: Path) -> None:
    durable = next(row for row in own_rows() if row.title == OURS)
    numbers = itertools.count()
    bare, ours, unsynced = (peers.cost(row, tmp_path, numbers) for row in (FULL, durable, NORMAL))

    assert 3 <= bare.fsyncs < 3.1  # push, take, acknowledge; and now and then a checkpoint
    assert 2 <= ours.fsyncs < 2.2  # an acknowledgement and the next pull share a commit
    assert unsynced.fsyncs < 0.1
    assert 0 < bare.cpu_seconds < ours.cpu_seconds
    assert str(ours) == f"{ours.fsyncs:.1f} fsyncs, {ours.cpu_seconds * 1e6:,.0f} µs of CPU"


@pytest.mark.parametrize("measure", peers.MEASURES)
def test_every_measure_counts_what_it_pushed(measure: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        refused: Counter[str] = Counter()
        contender = peers.MEASURING[measure](FULL, tmp_path, stack, refused)
        counted = contender() + contender()
    with closing(FULL.open(tmp_path)) as adapter:
        left = len(adapter.jobs())

    if measure in peers.CYCLES:
        a_call = {"worker": peers.WORKED, "cycle": peers.BURST, "cycles": peers.BURST * peers.CALLERS}
        assert counted == 2 * next(jobs for name, jobs in a_call.items() if peers.ONLY[name] == measure)
        assert left == 0
    else:
        assert counted == 2 * peers.BURST * (1 if "1 caller" in measure else peers.CALLERS)
        warm_up = peers.CALLERS * peers.BURST if "processes" in measure else 0
        assert left == counted + warm_up
    assert refused.total() == 0


def test_pushes_that_a_queue_refuses_are_counted_and_not_timed(tmp_path: Path) -> None:
    class Busy(BareSQLite):
        def push(self, number: int) -> None:
            if number % 4 == 0:
                raise sqlite3.OperationalError("database is locked")
            super().push(number)

    busy = Contestant("a busy one", "", "", partial(Busy, synchronous="OFF"))
    refused: Counter[str] = Counter()
    with ExitStack() as stack:
        done = peers.MEASURING["push, 1 caller"](busy, tmp_path, stack, refused)()
    row = found("a busy one", "", push=30)._replace(refused=refused)
    heads, (cells,) = peers.lines_of([row], [])

    assert (done, refused["push, 1 caller"]) == (peers.BURST * 3 // 4, peers.BURST // 4)
    assert cells[heads.index("push, 1 caller, /s")] == "30 (30–30), 5 refused"


def test_a_peer_that_refused_everything_for_a_round_is_no_division_by_zero() -> None:
    (line,) = peers.verdicts_of([ours(push=10), found("locked", "out", push=0)])

    assert line == ["push, 1 caller", "locked, out", "it refused every push of a round", "0.6", "held"]


def test_a_job_taken_at_kill_9_comes_back_stays_locked_or_is_gone(tmp_path: Path) -> None:
    class Forgetful(BareSQLite):
        def take(self) -> object:
            taken = super().take()
            if taken is not None:
                self.ack(taken)
            return taken

    numbers = itertools.count()
    filed = [row for row in own_rows() if row.name == "rqlab" and row.setting != "memory"]
    forgetful = Contestant("one that forgets", "", "", partial(Forgetful, synchronous="FULL"))

    for row in filed:
        assert peers.taken_at_kill(row, tmp_path, numbers, patience=30) == "comes back", row.title
    assert peers.taken_at_kill(FULL, tmp_path, numbers, patience=0.1) == "stays locked"
    assert peers.taken_at_kill(forgetful, tmp_path, numbers, patience=0.1) == "gone"


# The floors.


def test_a_floor_holds_only_against_peers_of_the_same_durability() -> None:
    rows = [
        ours(push=100, threads=100, cycle=100),
        found("SQLite itself", "FULL", push=1_000, threads=1_000, cycle=1_000),
        found("rqlab", "memory", LOST, push=1_000, threads=1_000, cycle=1_000),
        found("quick", "careless", LOST, push=1_000, threads=1_000, cycle=1_000),
        found("slow", "safe", push=125, threads=80, cycle=125),
        found("slow", "without acks", acknowledges=False, push=50, threads=50, cycle=1_000),
    ]
    said = {(line[0], line[1]): line[2:] for line in peers.verdicts_of(rows)}

    assert said == {
        ("push, 1 caller", "slow, safe"): ["0.80 (0.80–0.80)", "0.6", "held"],
        ("push, 1 caller", "slow, without acks"): ["2.00 (2.00–2.00)", "0.6", "held"],
        ("push, 8 threads", "slow, safe"): ["1.25 (1.25–1.25)", "1", "held"],
        ("push, 8 threads", "slow, without acks"): ["2.00 (2.00–2.00)", "1", "held"],
        ("job cycle, by hand", "slow, safe"): ["0.80 (0.80–0.80)", "1", "MISSED"],
    }
    assert peers.verdicts_of(rows[1:]) == []


def test_a_verdict_says_when_the_rounds_disagree() -> None:
    assert peers.verdict(Spread(1.2, 1.1, 1.3), 1.0) == "held"
    assert peers.verdict(Spread(1.2, 0.9, 1.3), 1.0) == "held, but the rounds disagree"
    assert peers.verdict(Spread(0.8, 0.7, 0.9), 1.0) == "MISSED"
    assert peers.verdict(Spread(0.8, 0.7, 1.1), 1.0) == "MISSED, but the rounds disagree"


# The tables.


def test_a_row_says_what_it_loses_beside_how_fast_it_is() -> None:
    rows = [
        found("quick", "careless", LOST, acknowledges=False, push=1_000, cycle=500),
        ours(push=100, threads=4, processes=3, cycle=2),
    ]
    heads, cells = peers.lines_of(rows, [])
    quick, mine = (dict(zip(heads, line, strict=True)) for line in cells)

    assert quick["push, 1 caller, /s"] == "1,000 (1,000–1,000)"
    assert quick["a power cut loses, acknowledged"] == "up to 7 of 9, in 50% of cuts"
    assert quick["`kill -9` loses"] == mine["a power cut loses, acknowledged"] == "0"
    assert quick["job cycle, by hand, /s"].endswith("no acknowledgement")
    assert quick["push, 8 processes, /s"] == "one process"
    assert mine["job cycle, by hand, /s"] == "2 (2–2)"


def test_the_tables_can_be_printed_and_written() -> None:
    rows = [found("peer", "as shipped", push=10), ours(push=9)]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(peers.results(rows, [ABSENT]))
    console.print(peers.verdicts(rows))
    shown = console.export_text()
    written = peers.report(rows, [ABSENT], LOST, "a machine")

    for text in (shown, written):
        assert "not installed: skipped" in text
        assert "0.90 (0.90–0.90)" in text
    assert "loses up to 7 of 9 acknowledged pushes" in written
    assert {line.count("|") for line in written.splitlines() if line.startswith("| peer")} == {9}


def test_an_audit_too_small_to_find_a_loss_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.main(["--cuts", "1"])

    assert "expected at least 20, got 1" in capsys.readouterr().err


def test_the_results_are_put_between_their_marks_and_nowhere_else() -> None:
    text = f"before\n{peers.RESULTS[0]}\nold\n{peers.RESULTS[1]}\nafter\n"
    once = peers.rewritten(text, "new")

    assert once == f"before\n{peers.RESULTS[0]}\nnew\n{peers.RESULTS[1]}\nafter\n"
    assert peers.rewritten(once, "new") == once
    with pytest.raises(ValueError, match="expected <!-- RESULTS"):
        peers.rewritten("no marks", "new")


def test_the_page_has_a_line_for_every_peer_and_for_ours() -> None:
    _, _, rest = peers.README.read_text().partition(peers.RESULTS[0])
    section, _, _ = rest.partition(peers.RESULTS[1])

    for row in contestants():
        if row.name != "rqlab" or row.title == OURS:
            assert re.search(rf"\| {re.escape(row.name)} \| {re.escape(row.setting)} \|", section), row.title
