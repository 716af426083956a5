"""Pictures say what their frames say: the marks are judged without pixels, the texts by where they stand."""

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pandas
import pytest

from rqlab import charts
from rqlab.charts import looks, tradeoffs
from rqlab.charts.chart import meet, text_box

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
    drawn = [text for text in chart.figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
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
