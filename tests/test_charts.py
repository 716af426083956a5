"""Pictures say what their frames say: the marks are judged without pixels, the texts by where they stand."""

import html
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
from histories import result, world

from rqlab import charts
from rqlab.backoff import retry_in
from rqlab.charts import backlogs, delays, looks, outcomes, retrying, timelines, tradeoffs
from rqlab.charts.chart import meet, text_box
from rqlab.charts.histories import worker_names
from rqlab.job import Backoff, Job
from rqlab.simulation.run import simulate

INF, NAN = float("inf"), float("nan")
HOSTILE = '<script>alert("1")</script>$x_1$\x00\x1b[31m\u202e' + "n" * 10_000


def measured(mode: str, rate: float, losses: list[float], promised: str = "nothing", callers: int = 32) -> list[dict]:
    """Rows as rqlab.measure() gives them."""
    return [
        {
            "mode": mode, "callers": callers, "repeat": repeat, "push_per_second": rate * (1 + repeat / 10),
            "cycles_per_second": rate / 2, "loss_window_seconds": loss, "promised": promised,
        }
        for repeat, loss in enumerate(losses)
    ]  # fmt: skip


FOUR = pandas.DataFrame(
    measured("durable", 3_000, [0, 0, 0])
    + measured("buffered", 30_000, [0.004, 0.013, 0.009], "the open batch: at most 100 writes or 10 ms")
    + measured("hybrid", 80_000, [0.4, 0.9, 1.1], "snapshot_interval plus the snapshot under way")
    + measured("memory", 190_000, [INF, INF, INF], "all")
)


def texts(chart: charts.Chart) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Every text that is drawn, with its box in pixels."""
    from matplotlib.text import Text

    chart.figure.canvas.draw()
    unseen = {
        id(tick.label1)
        for ax in chart.figure.axes
        for axis in (ax.xaxis, ax.yaxis)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    everything = [text for text in chart.figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    drawn = [text for text in everything if id(text) not in unseen]
    return [(text.get_text(), text_box(text)) for text in drawn]


def overlaps(chart: charts.Chart) -> list[tuple[str, str]]:
    return [(a, b) for (a, one), (b, other) in combinations(texts(chart), 2) if meet(one, other)]


def outside(chart: charts.Chart) -> list[str]:
    width, height = chart.figure.canvas.get_width_height()
    return [
        text for text, (left, low, right, top) in texts(chart) if left < 0 or low < 0 or right > width or top > height
    ]


def test_a_mode_is_one_point_at_its_median_with_its_range() -> None:
    drawn = tradeoffs.marks(FOUR)

    buffered = drawn.points[1]
    assert [point.mode for point in drawn.points] == ["durable", "buffered", "hybrid", "memory"]
    assert (buffered.rate_low, buffered.rate, buffered.rate_high) == (30_000, 33_000, 36_000)
    assert (buffered.loss_low, buffered.loss, buffered.loss_high) == (0.004, 0.009, 0.013)


def test_nothing_and_everything_lost_stand_beyond_the_ends_of_the_scale() -> None:
    drawn = tradeoffs.marks(FOUR)

    low, high = drawn.span
    assert drawn.place(0) < low < 0.004 < 1.1 < high < drawn.place(INF)


def test_one_lossless_repeat_does_not_make_a_mode_lossless() -> None:
    for losses in ([0, 0.01], [0, INF], [0, 0, 0.02]):
        (point,) = tradeoffs.marks(pandas.DataFrame(measured("buffered", 10, losses))).points

        assert point.kept != "nothing lost"
        assert point.loss_high == max(losses)


def test_a_mode_whose_loss_was_not_measured_is_named_and_not_placed() -> None:
    frame = pandas.concat([FOUR, pandas.DataFrame(measured("strange", 5_000, [NAN, NAN]))])

    chart = charts.tradeoff(frame)

    assert [point.mode for point in tradeoffs.marks(frame).unplaced] == ["strange"]
    assert "strange 5.25 k pushes/s, loss not measured" in chart.alt
    assert any("loss not measured: strange" in text for text, _ in texts(chart))


def test_callers_and_throughput_choose_the_rows() -> None:
    frame = pandas.concat([FOUR, pandas.DataFrame(measured("durable", 700, [0], callers=1))])

    assert tradeoffs.marks(frame).callers == 32
    assert tradeoffs.marks(frame, callers=1).points[0].rate == 700
    assert tradeoffs.marks(frame, "cycles", callers=1).points[0].rate == 350
    with pytest.raises(ValueError, match=r"callers: expected one that was measured \(1, 32\), got 4"):
        tradeoffs.marks(frame, callers=4)
    with pytest.raises(ValueError, match="throughput: expected 'push' or 'cycles', got 'pull'"):
        tradeoffs.marks(frame, "pull")  # type: ignore[arg-type]


def test_the_alt_text_says_what_the_picture_says() -> None:
    chart = charts.tradeoff(FOUR)

    assert repr(chart) == chart.alt
    assert "32 callers" in chart.alt
    assert "durable 3.3 k pushes/s, nothing lost" in chart.alt
    assert "buffered 33 k pushes/s, lost up to the last 13 ms" in chart.alt
    assert "memory 209 k pushes/s, everything lost" in chart.alt
    assert "Median of 3 repeats" in chart.alt


def crowded() -> pandas.DataFrame:
    """Modes that are hard to tell apart: nearly one place, and long names."""
    rows = [row for n in range(4) for row in measured(f"mode-{n}", 3_000 + n, [0, 0, 0.02], "nothing at all")]
    return pandas.DataFrame(rows + measured(HOSTILE, 3_100, [0.01], HOSTILE)).reset_index(drop=True)


@pytest.mark.parametrize(
    "frame", [FOUR, crowded(), FOUR.iloc[:0], FOUR.iloc[:1]], ids=["four", "crowded", "none", "one"]
)
@pytest.mark.parametrize("dark", [False, True])
def test_no_text_of_a_trade_off_covers_another(frame: pandas.DataFrame, dark: bool) -> None:
    chart = charts.tradeoff(frame, dark=dark)

    assert overlaps(chart) == []
    assert outside(chart) == []


def test_the_look_for_overlaps_would_notice() -> None:
    chart = charts.tradeoff(FOUR)
    chart.ax.text(drawn_at := 0.009, 33_000, "one")
    chart.ax.text(drawn_at, 33_000, "other")

    assert ("one", "other") in overlaps(chart)


def test_a_chart_is_saved_and_shown_with_its_alt_text(tmp_path: Path) -> None:
    chart = charts.tradeoff(FOUR)
    chart.save(tmp_path / "tradeoff.png")
    chart.save(tmp_path / "tradeoff.svg")
    shown, about = chart._repr_mimebundle_()

    assert (tmp_path / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert chart.alt.encode() in (tmp_path / "tradeoff.png").read_bytes()
    assert "durable" in (tmp_path / "tradeoff.svg").read_text()
    assert shown["image/png"].startswith(b"\x89PNG")
    assert about["image/png"]["alt"] == chart.alt
    assert f'alt="{chart.alt}"' in html.unescape(shown["text/html"])


def test_a_chart_can_be_drawn_on_axes_of_ones_own() -> None:
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()

    assert charts.tradeoff(FOUR, ax=ax).ax is ax


def grey_twins(kinds: dict[str, looks.Look]) -> list[tuple[str, str]]:
    """Pairs that a grey print would not tell apart by their fill, or whose glyph is one."""
    return [
        (a, b)
        for (a, one), (b, other) in combinations(kinds.items(), 2)
        if one.glyph == other.glyph
        or (one.hatch == other.hatch and abs(looks.luminance(one.colour) - looks.luminance(other.colour)) < 0.08)
    ]


@pytest.mark.parametrize("table", ["STATES", "OUTCOMES", "VERDICTS"])
def test_looks_are_told_apart_in_grey(table: str) -> None:
    assert grey_twins(getattr(looks, table)) == []


def test_series_have_markers_of_their_own_and_keep_theirs() -> None:
    few = looks.series(["memory", "durable"])
    more = looks.series(["strange", "durable", "buffered", "hybrid", "memory", "other"])

    assert few["memory"] == more["memory"]
    assert len({marker for marker, _, _ in more.values()}) == 6


def test_every_glyph_is_in_the_font_that_draws_it() -> None:
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    tables = (looks.STATES, looks.OUTCOMES, looks.FAULTS, looks.VERDICTS)
    glyphs = {look.glyph for table in tables for look in table.values()} | {looks.WAIT.glyph, looks.LEASE.glyph}

    assert [glyph for glyph in sorted(glyphs) if ord(glyph) not in known] == []


def test_what_is_shown_is_one_line_without_control_characters() -> None:
    shown = looks.plain(HOSTILE)

    assert len(shown) == 60
    assert not set(shown) & set("\x00\x1b\u202e\n")


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0 s"), (2e-5, "20 µs"), (0.0125, "12.5 ms"), (3.4, "3.4 s"), (300, "5 min"), (9000, "2.5 h")],
)
def test_durations_read_well(value: float, said: str) -> None:
    assert looks.seconds(value) == said


def test_importing_the_pictures_loads_no_matplotlib_and_drawing_no_pyplot() -> None:
    program = """
import sys
from rqlab import charts
assert "matplotlib" not in sys.modules and "pandas" not in sys.modules
import pandas
charts.tradeoff(pandas.DataFrame(columns=["mode", "callers", "push_per_second", "loss_window_seconds", "promised"]))
assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_pyplot_is_named_nowhere() -> None:
    root = Path(charts.__file__).parents[1]
    named = [
        str(path)
        for path in root.rglob("*.py")
        if "import pyplot" in (text := path.read_text()) or "matplotlib.pyplot" in text
    ]

    assert named == []


# Timelines


def test_a_run_is_a_bar_in_its_workers_lane() -> None:
    drawn = timelines.marks(result([("a", 1, "w10", 0.0, 1.0, "completed"), ("b", 1, "w2", 0.5, 2.0, "failed")]))

    assert [(lane.name, lane.row, lane.rows) for lane in drawn.lanes] == [("w2", 0, 1), ("w10", 1, 1)]
    assert [(bar.row, bar.start, bar.end, bar.outcome) for bar in drawn.bars] == [
        (0, 0.5, 2.0, "failed"),
        (1, 0.0, 1.0, "completed"),
    ]


def test_runs_at_the_same_time_on_one_worker_have_rows_of_their_own() -> None:
    runs = [("a", 1, "w", 0, 4, "completed"), ("b", 1, "w", 1, 2, "completed"), ("c", 1, "w", 2, 3, "completed")]

    drawn = timelines.marks(result(runs))

    assert [(bar.job, bar.row) for bar in drawn.bars] == [("a", 0), ("b", 1), ("c", 1)]
    assert (drawn.lanes[0].rows, drawn.rows) == (2, 2)


@pytest.mark.parametrize("seed", range(5))
def test_bars_of_one_row_never_overlap(seed: int) -> None:
    for by in ("worker", "job"):
        drawn = timelines.marks(world(60, seed, concurrency=4), by)  # type: ignore[arg-type]
        for row in range(drawn.rows):
            parts = ("run",) if by == "worker" else ("run", "lease", "wait", "in line")  # a lease is over its lane
            bars = sorted((bar.start, bar.end) for bar in drawn.bars if bar.row == row and bar.part in parts)
            assert all(before[1] <= after[0] + 1e-9 for before, after in pairwise(bars))


def test_the_lease_of_a_dead_worker_runs_out_from_its_crash() -> None:
    run = ("a", 1, "w1", 0.0, 5.0, "stalled")
    drawn = timelines.marks(result([run], [(2.0, "worker crash", "w1")]))

    assert [(bar.part, bar.start, bar.end) for bar in drawn.bars] == [("run", 0.0, 2.0), ("lease", 2.0, 5.0)]
    assert [(mark.at, mark.row, mark.look.glyph) for mark in drawn.marks] == [(2.0, 0, "⚡")]


def test_the_crash_of_another_worker_ends_no_run() -> None:
    drawn = timelines.marks(result([("a", 1, "w1", 0.0, 5.0, "stalled")], [(2.0, "worker crash", "w2")]))

    assert [(bar.part, bar.end) for bar in drawn.bars] == [("run", 5.0)]


def test_without_a_known_crash_the_lease_runs_out_from_the_last_heartbeat() -> None:
    beats = [{"at": at, "kind": "heartbeat", "job": "a", "worker": "w1"} for at in (1.0, 2.5)]
    drawn = timelines.marks(result([("a", 1, "w1", 0.0, 5.0, "stalled")], events=beats))

    assert [(bar.part, bar.start, bar.end) for bar in drawn.bars] == [("run", 0.0, 2.5), ("lease", 2.5, 5.0)]
    assert drawn.ticks == ((0, 1.0), (0, 2.5))


def test_a_power_cut_strikes_every_lane() -> None:
    runs = [("a", 1, "w1", 0.0, 1.0, "completed"), ("b", 1, "w2", 0.0, 1.0, "completed")]
    (mark,) = timelines.marks(result(runs, [(0.5, "power cut", "w1")])).marks

    assert mark.row is None
    assert mark.label.startswith("⌁ power cut")


def test_a_run_that_goes_on_reaches_to_the_end() -> None:
    drawn = timelines.marks(result([("a", 1, "w", 0.0, None, "active"), ("b", 1, "v", 1.0, 3.0, "completed")]))

    assert {(bar.job, bar.end) for bar in drawn.bars} == {("a", 3.0), ("b", 3.0)}


def test_between_runs_a_job_waits_for_its_backoff_and_then_in_line() -> None:
    runs = [("a", 1, "w", 1.0, 2.0, "failed"), ("a", 2, "w", 5.0, 6.0, "completed")]
    jobs = [{"id": "a", "state": "completed", "pushed": 0.0, "finished": 6.0}]
    told = [{"at": 4.0, "kind": "promote", "job": "a"}]

    without = timelines.marks(result(runs, jobs=jobs), "job")
    promoted = timelines.marks(result(runs, jobs=jobs, events=told), "job")
    states = ("waiting", 0.0), ("active", 1.0), ("delayed", 2.0), ("waiting", 3.0), ("active", 5.0), ("completed", 6.0)
    stated = result(runs, jobs=jobs)
    stated.events = [{"at": at, "kind": "x", "job": "a", "state": state} for state, at in states]

    def parts(drawn: timelines.Timeline) -> list[tuple[str, float, float]]:
        return [(bar.part, bar.start, bar.end) for bar in drawn.bars if bar.part != "run"]

    assert parts(without) == [("in line", 0.0, 1.0), ("wait", 2.0, 5.0)]
    assert parts(promoted) == [("in line", 0.0, 1.0), ("wait", 2.0, 4.0), ("in line", 4.0, 5.0)]
    assert parts(timelines.marks(stated, "job")) == [("in line", 0.0, 1.0), ("wait", 2.0, 3.0), ("in line", 3.0, 5.0)]


def test_each_finished_job_ends_with_its_glyph() -> None:
    runs = [(job, 1, "w", at, at + 0.5, "completed") for at, job in enumerate("abcd")]
    states = {"a": "completed", "b": "dlq", "c": "cancelled", "d": "completed"}
    jobs = [{"id": job, "state": state, "pushed": 0.0, "lost": job == "d"} for job, state in states.items()]

    drawn = timelines.marks(result(runs, jobs=jobs), "job")

    assert [mark.look.glyph for mark in drawn.marks] == ["✓", "✗", "⊘", "∅"]


def test_of_too_many_jobs_those_with_trouble_are_drawn() -> None:
    told = world(300)

    drawn = timelines.marks(told, "job", most=40)

    shown = {lane.full_name for lane in drawn.lanes}
    lost = told.jobs[told.jobs["lost"]]["id"]
    dead = told.jobs[told.jobs["state"] == "dlq"]["id"]
    assert len(shown) == 40
    assert set(lost) | set(dead) <= shown
    assert "260 more jobs not drawn" in drawn.said()


def test_the_newest_runs_alone_start_a_window() -> None:
    drawn = timelines.marks(world(100), newest=20)

    assert len({(bar.job, bar.delivery) for bar in drawn.bars}) == 20
    assert drawn.start > 0
    assert all(drawn.start <= bar.start <= bar.end <= drawn.end for bar in drawn.bars)


def test_a_timeline_says_what_happened() -> None:
    chart = charts.timeline(world(30))

    assert repr(chart).startswith("Timeline by worker: 30 jobs (")
    assert "1 lost" in chart.alt
    assert "on 3 workers" in chart.alt
    assert "1 worker crash, 1 power cut" in chart.alt


def test_a_timeline_goes_by_worker_or_by_job() -> None:
    with pytest.raises(ValueError, match="by: expected 'worker' or 'job', got 'queue'"):
        charts.timeline(world(5), "queue")  # type: ignore[arg-type]


def test_tables_may_be_lists_of_dicts() -> None:
    told = world(20)
    listed = SimpleNamespace(
        seed=7, **{name: getattr(told, name).to_dict("records") for name in ("jobs", "attempts", "events", "faults")}
    )

    assert timelines.marks(listed, "job") == timelines.marks(told, "job")


def test_missing_values_of_every_kind_are_missing() -> None:
    nullable = result([("a", 1, "w", 0.0, 1.0, "failed"), ("a", 2, "w", 2.0, None, None)])
    nullable.attempts = nullable.attempts.convert_dtypes()

    assert [bar.outcome for bar in timelines.marks(nullable).bars] == ["failed", "active"]


def test_worker_names_are_short_and_told_apart() -> None:
    names = worker_names(["host:4121:140213:w0", "host:4121:140213:w1"])

    assert list(names.values()) == ["w0", "w1"]
    assert worker_names(["host:1:MainThread-12"])["host:1:MainThread-12"] == "…MainThread-12"
    assert max(map(len, worker_names([HOSTILE]).values())) <= 14


def test_the_words_of_a_simulation_are_understood() -> None:
    """A simulation calls a run that goes on running, and its machine is every worker's."""
    runs = [("a", 1, "w", 0.0, 2.0, "stalled"), ("a", 2, "w", 4.0, None, "running")]
    drawn = timelines.marks(result(runs, [(1.0, "power cut", "machine")]), "job")

    assert sorted((bar.start, bar.end, bar.part) for bar in drawn.bars) == [
        (0.0, 1.0, "run"), (1.0, 2.0, "lease"), (2.0, 4.0, "wait"), (4.0, 4.0, "run"),
    ]  # fmt: skip
    assert [bar.outcome for bar in drawn.bars if bar.part == "run"] == ["stalled", "active"]
    assert drawn.marks[0].label == "⌁ power cut"


def a_crash(**fault: Any) -> Any:
    """A worker that dies at 2, another that takes its job at 6, and all that a simulation tells besides."""
    told = result([("a", 1, "w1", 0.0, 5.0, "stalled"), ("a", 2, "w2", 6.0, 8.0, "completed")])
    told.faults = [{"at": 2.0, "kind": "process kill", "target": "w1", "strikes": "worker", "until": 4.0} | fault]
    return told


def test_a_worker_that_is_down_is_shown_to_be() -> None:
    (band,) = [bar for bar in timelines.marks(a_crash()).bars if bar.part == "down"]
    everywhere = [bar for bar in timelines.marks(a_crash(strikes="all")).bars if bar.part == "down"]

    assert (band.row, band.start, band.end) == (0, 2.0, 4.0)
    assert [bar.row for bar in everywhere] == [0, 1]


def test_an_arrow_leads_from_a_lease_that_ran_out_to_the_next_run() -> None:
    assert timelines.marks(a_crash()).links == (timelines.Link(5.0, 0, 6.0, 1),)
    runs = [
        (f"j{n}", run, "w1", 9.0 * n + 4 * run, 9.0 * n + 4 * run + 3, "stalled") for n in range(30) for run in (1, 2)
    ]
    assert timelines.marks(result(runs)).links == (), "a net of arrows shows nothing"


def test_a_crash_says_what_it_took() -> None:
    told = a_crash()
    told.losses = [
        {"at": 2.0, "acknowledged": "waiting", "stored": "lost"},
        {"at": 2.0, "acknowledged": "completed", "stored": "active"},
        {"at": 2.0, "acknowledged": "active", "stored": "waiting"},
    ]

    assert [mark.label for mark in timelines.marks(told).marks] == ["⚡ process kill: 1 job lost, 1 ack lost"]


def test_a_late_report_that_was_refused_is_marked_in_its_run() -> None:
    told = a_crash()
    told.events = [{"at": 7.0, "kind": "refused", "job": "a", "worker": "w1"}]

    assert [(mark.at, mark.row, mark.look.glyph) for mark in timelines.marks(told).marks if mark.reach == "here"] == [
        (7.0, 0, "⊗")
    ]


# Retries


def test_a_job_is_its_runs_and_the_waits_between_them() -> None:
    runs = [("a", 1, "w", 0.0, 1.0, "failed"), ("a", 2, "w", 3.0, 4.0, "timed_out"), ("a", 3, "w", 8.0, 9.0, "failed")]
    jobs = [{"id": "a", "state": "dlq", "pushed": 0.0}]

    (course,) = retrying.marks(result(runs, jobs=jobs)).courses

    assert course.outcomes == ("failed", "timed_out", "failed")
    assert course.waits == ((2.0, 2.0), (4.0, 4.0))
    assert course.look.label == "✗ dlq"


def test_many_jobs_that_went_the_same_way_share_a_row() -> None:
    drawn = retrying.marks(world(100))

    assert drawn.gathered
    assert len(drawn.courses) < 30
    assert sum(len(course.jobs) for course in drawn.courses) == 100
    assert any(course.name.endswith(" jobs") for course in drawn.courses)


def test_rows_that_do_not_fit_are_counted() -> None:
    kinds = ["failed", "stalled", "timed_out", "released"]
    runs = [
        (f"job-{n}", delivery + 1, "w", n + delivery / 10, n + delivery / 10 + 0.05, kinds[n // 4**delivery % 4])
        for n in range(64)
        for delivery in range(3)
    ]

    drawn = retrying.marks(result(runs))

    assert len(drawn.courses) == retrying.MOST_ROWS
    assert "32 more rows not drawn: 32 jobs" in drawn.said()


# Backlog


@pytest.mark.parametrize("seed", range(5))
def test_the_backlog_counts_every_job_once(seed: int) -> None:
    drawn = backlogs.marks(world(60, seed))
    totals = [sum(each) for each in zip(*drawn.counts.values(), strict=True)]

    assert totals == sorted(totals)
    assert totals[-1] == 60
    assert min(min(series) for series in drawn.counts.values()) >= 0


def test_the_backlog_follows_a_job_through_its_states() -> None:
    runs = [("a", 1, "w", 1.0, 2.0, "failed"), ("a", 2, "w", 5.0, 6.0, "completed")]
    jobs = [{"id": "a", "state": "completed", "pushed": 0.0, "finished": 6.0}]
    drawn = backlogs.marks(result(runs, jobs=jobs, events=[{"at": 4.0, "kind": "promote", "job": "a"}]))

    states = [next(state for state, counts in drawn.counts.items() if counts[n]) for n in range(len(drawn.instants))]
    assert drawn.instants == (0.0, 1.0, 2.0, 4.0, 5.0, 6.0)
    assert states == ["waiting", "active", "delayed", "waiting", "active", "completed"]


def test_a_lost_job_leaves_its_state_at_the_power_cut() -> None:
    jobs = [{"id": "a", "state": "completed", "pushed": 0.0, "finished": 2.0, "lost": True}]
    drawn = backlogs.marks(result([("a", 1, "w", 1.0, 2.0, "completed")], [(3.0, "power cut", "")], jobs=jobs))

    assert drawn.instants[-1] == 3.0
    assert {state: counts[-1] for state, counts in drawn.counts.items()} == {
        "active": 0, "waiting": 0, "completed": 0, "lost": 1,
    }  # fmt: skip


def test_the_backlog_says_its_counts() -> None:
    chart = charts.backlog(world(30))

    assert "1 worker crash, 1 power cut" in chart.alt
    assert chart.data["lost"].iloc[-1] == 1


# Back-off


@pytest.mark.parametrize("strategy", ["fixed", "linear", "exponential"])
@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_curves_are_what_the_engine_waits(strategy: str, jitter: float) -> None:
    (curve,) = delays.marks([strategy], base=0.7, cap=20.0, jitter=jitter, attempts=12).curves

    for point in curve:
        job = Job(
            id="x", queue="q", name="n", attempt=point.attempt, backoff=Backoff(strategy), backoff_delay=0.7,
            max_backoff=20.0, jitter=jitter,
        )  # fmt: skip
        drawn = [retry_in(job, draw / 100) / 1000 for draw in range(100)]
        assert point.least <= min(drawn) <= max(drawn) <= point.most <= 20.0


def test_curves_are_logarithmic_where_they_span_much() -> None:
    assert charts.backoff_curves().ax.get_yscale() == "log"
    assert charts.backoff_curves(["fixed", "linear"], attempts=4).ax.get_yscale() == "linear"
    assert "exponential 1 s, 2 s, 4 s, 8 s" in charts.backoff_curves().alt
    with pytest.raises(ValueError, match="cubic"):
        charts.backoff_curves(["cubic"])
    with pytest.raises(ValueError, match="attempts: expected 1 or more, got 0"):
        charts.backoff_curves(attempts=0)


# Outcomes


def crashes(seeds: int, points: int, wrong: tuple[int, int] | None = (2, 3)) -> pandas.DataFrame:
    return pandas.DataFrame(
        {
            "seed": seed, "crash": point, "verdict": "violated" if (seed, point) == wrong else "held",
            "replay": f"rqlab.simulate(seed={seed}, crashes=[{point}])",
        }
        for seed in range(seeds)
        for point in range(points)
    )  # fmt: skip


def test_a_violation_is_a_cell_with_its_replay_line() -> None:
    drawn = outcomes.marks(crashes(5, 6))
    chart = charts.outcome_grid(crashes(5, 6))

    assert [(cell.row, cell.column) for cell in drawn.cells if cell.verdict == "violated"] == [(2, 3)]
    assert any("rqlab.simulate(seed=2, crashes=[3])" in text for text, _ in texts(chart))
    assert chart.alt == (
        "30 simulated crashes: 29 held, 0 lost, as the mode allows, 1 violated. "
        "First violation: rqlab.simulate(seed=2, crashes=[3])"
    )
    assert set(chart.data["replay"]) == set(crashes(5, 6)["replay"])


def test_a_cell_that_stands_for_many_crashes_shows_the_worst() -> None:
    drawn = outcomes.marks(crashes(300, 90, wrong=(271, 88)))

    assert len(drawn.seeds) == outcomes.MOST_SEEDS
    assert "271" in drawn.seeds
    assert sum(cell.verdict == "violated" for cell in drawn.cells) == 1


def test_a_verdict_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="verdict: expected one of violated, lost, held; got 'fine'"):
        outcomes.marks([{"seed": 1, "crash": 1, "verdict": "fine"}])


# All of them


def hostile() -> Any:
    told = world(12)
    told.jobs["id"] = told.jobs["id"] + HOSTILE
    told.attempts["job"] = told.attempts["job"] + HOSTILE
    told.attempts["worker"] = told.attempts["worker"] + HOSTILE
    told.faults["kind"] = told.faults["kind"] + HOSTILE
    return told


EACH = ("timeline", "jobs", "retries", "backlog")
PICTURES = {
    **{f"{name} of {n} jobs": (name, world(n)) for name in EACH for n in (5, 30, 100)},
    **{f"{name} of many at once": (name, world(100, concurrency=4)) for name in ("timeline", "jobs")},
    **{f"{name} of nothing": (name, result([])) for name in EACH},
    **{f"{name} of hostile names": (name, hostile()) for name in EACH},
    "timeline of many faults": ("timeline", result(
        [("a", 1, "w1", 0.0, 9.0, "completed")], [(n / 4, "worker crash", f"w{n % 3}") for n in range(40)])),
    **{f"{name} of a simulation": (name, simulate(seed=4, durability="hybrid")) for name in EACH},
    "timeline of a large simulation": ("timeline", simulate(seed=103, jobs=100, store="memory")),
    "outcomes": ("outcome_grid", crashes(8, 12)),
    "outcomes of nothing": ("outcome_grid", crashes(0, 0)),
    "many outcomes": ("outcome_grid", crashes(300, 90)),
}  # fmt: skip


def drawn(name: str, told: Any, dark: bool = False) -> charts.Chart:
    if name == "jobs":
        return charts.timeline(told, "job", dark=dark)
    chart: charts.Chart = getattr(charts, name)(told, dark=dark)
    return chart


@pytest.mark.parametrize("picture", PICTURES)
def test_no_text_of_a_picture_covers_another(picture: str) -> None:
    chart = drawn(*PICTURES[picture])

    assert overlaps(chart) == []
    assert outside(chart) == []


@pytest.mark.parametrize(
    "options", [{}, {"jitter": 0.3, "cap": 60}, {"attempts": 1}, {"base": 0}, {"strategies": ["linear"]}]
)
def test_no_text_of_the_curves_covers_another(options: dict[str, Any]) -> None:
    chart = charts.backoff_curves(**options)

    assert overlaps(chart) == []
    assert outside(chart) == []


@pytest.mark.parametrize("picture", PICTURES)
def test_words_and_marks_stand_out_from_light_and_dark_paper(picture: str) -> None:
    from matplotlib.colors import to_hex
    from matplotlib.text import Text

    for dark in (False, True):
        chart = drawn(*PICTURES[picture], dark=dark)
        paper = looks.luminance(looks.theme(dark).paper)
        for text in chart.figure.findobj(Text):
            if text.get_text().strip() and text.get_bbox_patch() is None and text.axes is None:
                ink = looks.luminance(to_hex(text.get_color()))
                assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, text.get_text()


def test_every_picture_is_one_line_of_words_without_control_characters() -> None:
    for name, told in PICTURES.values():
        alt = drawn(name, told).alt
        assert alt.isprintable(), alt[:200]
        assert len(alt) < 1_500


def test_a_job_that_was_purged_is_removed_and_not_active() -> None:
    purged = simulate(0, seed=4, jobs=30, faults=(), store="memory")
    drawn = retrying.marks(purged)
    ends = {course.end: course.look.word for course in drawn.courses}

    assert ends["removed"] == "removed"
    assert "removed" in drawn.summary
    assert f"{(purged.jobs['state'] == 'removed').sum()} removed" in timelines.marks(purged).summary
