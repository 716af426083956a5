"""What notebooks show is escaped, small, and readable in light, in dark and without markup."""

import math
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pandas
import pytest
from histories import result, world

import rqlab
from rqlab import html
from rqlab.charts import looks, timelines, tradeoffs
from rqlab.charts.chart import meet
from rqlab.html import plots, svg
from rqlab.job import Counts, Delivery, Job, Outcome, State

HOSTILE = "<script>alert('1')</script>\"'&\x00\x1b[31m\u202e</svg></pre>" + "n" * 10_000
NOW = 1_795_000_000_000
VOID = {"img", "br", "hr"}


class Page(HTMLParser):
    """Reads HTML as a browser would: its tags, attributes and text; notes what is not closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def a_job(**fields: Any) -> Job:
    return Job(
        **{"id": "018f0000-0000-7000-8000-000000000001", "queue": "emails", "name": "send", "created_at": NOW} | fields
    )


def hostile_job() -> Job:
    """Every text that a caller writes is hostile; names are not: push refuses them."""
    line = Delivery(1, HOSTILE, NOW, NOW + 5, Outcome.FAILED, HOSTILE)
    return a_job(
        state=State.ACTIVE, worker=HOSTILE, last_error=HOSTILE, history=(line,) * 100, tags=(HOSTILE,) * 100,
        queue=HOSTILE, name=HOSTILE, lease_until=NOW, delay_until=NOW, priority=3, deliveries=101,
    )  # fmt: skip


def hostile_view() -> dict[str, Any]:
    jobs = [{"id": f"{n}{HOSTILE}", "state": "completed", "pushed": 0.0} for n in range(9)]
    runs = [
        {"job": job["id"], "delivery": 1, "worker": HOSTILE, "started": n, "ended": n + 1, "outcome": HOSTILE}
        for n, job in enumerate(jobs)
    ]
    events = [{"at": 1.0, "kind": HOSTILE, "job": HOSTILE, "worker": HOSTILE, "detail": {"error": HOSTILE}}] * 20
    return {
        "mode": HOSTILE, "seed": HOSTILE, "now": 1.0, "safe": True, "counts": {HOSTILE: 3, "waiting": 2},
        "workers": [{"name": HOSTILE, "pid": HOSTILE, "state": HOSTILE, "job": HOSTILE, "lease_left": 1.0}] * 50,
        "jobs": jobs, "attempts": runs, "events": events, "name": HOSTILE,
        "faults": [{"at": 1.0, "kind": HOSTILE, "target": HOSTILE}],
    }  # fmt: skip


def promised(*rows: tuple[str, str, int, int, int]) -> Any:
    return pandas.DataFrame(list(rows), columns=["crash", "may lose", "crashes", "writes lost", "jobs lost"])


def simulated(ok: bool = True, **fields: Any) -> Any:
    told = world(30)
    told.ok, told.durability, told.replay_line = ok, "buffered", "rqlab.simulate(seed=7)"
    told.effects_in_words = []
    told.violations = [] if ok else ["R3: 3 acknowledged jobs lost"]
    told.what_was_lost = "Lost, as buffered may: the power cut at 6.0 s took 1 acknowledged write."
    told.promise = promised(("power cut", "at most the open batch", 2, 1, 0))
    for name, value in fields.items():
        setattr(told, name, value)
    return told


SHOWN = {
    "a job": html.job(a_job()),
    "counts": html.counts(Counts(waiting=3, dlq=1)),
    "no counts": html.counts(Counts()),
    "queues": html.queues("/tmp/jobs", "durable", {"emails": Counts(completed=3), "b": Counts()}, ["b"]),
    "no queues": html.queues("/tmp/jobs", "durable", {}),
    "many queues": html.queues(HOSTILE, HOSTILE, {f"{n}{HOSTILE}": Counts(10**9) for n in range(100)}),
    "a hostile job": html.job(hostile_job()),
    "a result": html.result(simulated(), picture=b""),
    "a broken result": html.result(simulated(False), picture=b""),
    "a hostile result": html.result(
        simulated(
            False,
            violations=[HOSTILE] * 99,
            promise=promised((HOSTILE, HOSTILE, 1, 2, 3)),
            what_was_lost=HOSTILE,
            replay_line=HOSTILE,
            durability=HOSTILE,
        ),
        picture=b"",
    ),
}
QUOTES = '"' * 10_000  # six bytes each when escaped
SHOWN["a job in quotes"] = html.job(a_job(last_error=QUOTES, tags=(QUOTES,) * 9, worker=QUOTES))
SHOWN["queues in quotes"] = html.queues(QUOTES, "durable", {QUOTES + str(n): Counts() for n in range(30)})
SHOWN["a result in quotes"] = html.result(
    simulated(
        False,
        violations=[QUOTES] * 9,
        promise=promised((QUOTES, QUOTES, 1, 2, 3)),
        what_was_lost=QUOTES,
        replay_line=QUOTES,
    ),
    picture=b"",
)
PANELS = {
    "a panel": html.render({**vars(world(30)), "counts": {"waiting": 3}, "mode": "durable"}),
    "an empty panel": html.render({}),
    "a hostile panel": html.render(hostile_view()),
}


@pytest.mark.parametrize("shown", [*SHOWN.values(), *PANELS.values()], ids=[*SHOWN, *PANELS])
def test_what_callers_wrote_is_escaped(shown: str) -> None:
    page = Page(shown)

    assert not {"script", "style", "link", "iframe", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("srcdoc", "href")]
    assert not [letter for letter in shown if not letter.isprintable() and letter != "\n"]
    assert "<script" not in shown


@pytest.mark.parametrize("planted", ["<script>x</script>", '<b onclick="x">y</b>', "<div>", "\x00"])
def test_the_look_for_markup_would_notice(planted: str) -> None:
    with pytest.raises(AssertionError):
        test_what_callers_wrote_is_escaped(SHOWN["a job"] + planted)


@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)
def test_what_a_notebook_keeps_is_small(shown: str) -> None:
    assert len(shown.encode()) <= html.MOST_BYTES


@pytest.mark.parametrize("shown", [*SHOWN.values(), *PANELS.values()], ids=[*SHOWN, *PANELS])
def test_colours_are_the_themes_or_have_paper_of_their_own(shown: str) -> None:
    """No text has a fixed colour, except on a background that is given with it, so it reads in light and dark."""
    for name, value in Page(shown).attributes:
        if name == "style" and re.search(r"(?<![-\w])color:#", value):
            assert "background:#" in value


def test_a_job_without_markup_reads_line_by_line() -> None:
    line = Delivery(1, "w1", NOW, NOW + 1500, Outcome.FAILED, "ValueError: no")
    job = a_job(state=State.DELAYED, attempt=1, deliveries=1, history=(line,), last_error="ValueError: no\ntrace")

    words = Page(html.job(job)).words

    assert words.splitlines() == [
        "emails/send 018f0000-0000-7000-8000-000000000001",
        "state ↻ delayed",
        "attempt 1 of 3, deliveries 1",
        "pushed 2026-11-18 11:06:40.000+00:00",
        "data null",
        "last error ValueError: no",
        "run 1: ✗ failed after 1.5 s: ValueError: no",
    ]


def test_queues_without_markup_read_line_by_line() -> None:
    words = Page(html.queues("jobs", "durable", {"emails": Counts(waiting=1_234, dlq=1)}, ["emails"])).words

    assert [line.split() for line in words.splitlines()] == [
        ["rqlab.Queues", "jobs,", "durable,", "1", "queue"],
        ["queue", "○", "waiting", "↻", "delayed", "▶", "active", "✓", "completed", "✗", "dlq", "⊘", "cancelled"],
        ["emails", "(paused)", "1,234", "0", "0", "0", "1", "0"],
    ]


def test_a_result_tells_its_verdict_its_promise_and_its_loss() -> None:
    held = Page(html.result(simulated(), picture=b"png"))
    broken = Page(html.result(simulated(False), picture=b"png"))

    assert "✓ SAFETY HOLDS" in held.words
    assert "the power cut at 6.0 s took 1 acknowledged write" in held.words
    assert "again: rqlab.simulate(seed=7)" in held.words
    assert "✗ SAFETY BROKEN" in broken.words
    assert "R3: 3 acknowledged jobs lost" in broken.words
    assert any(name == "alt" and value.startswith("Timeline by worker: 30 jobs") for name, value in held.attributes)


def test_a_result_without_markup_reads_line_by_line() -> None:
    words = Page(html.result(rqlab.simulate(seed=7, store="memory"), picture=b"png")).words

    assert [line.split() for line in words.splitlines() if line] == [
        ["✓", "SAFETY", "HOLDS", "durable,", "seed", "7"],
        "Nothing that was acknowledged was lost (1 x process kill, 1 x power cut).".split(),  # noqa: SIM905  # as read
        ["at", "may", "be", "lost", "happened", "acknowledged", "writes", "lost", "jobs", "lost"],
        ["kill", "-9", "nothing", "1", "0", "0"],
        ["power", "cut", "nothing", "1", "0", "0"],
        ["clean", "exit", "nothing", "0", "0", "0"],
        ["again:", "rqlab.simulate(seed=7,", "store='memory')"],
    ]


def test_the_timeline_of_a_result_is_a_png() -> None:
    shown = html.result(simulated())

    assert 'src="data:image/png;base64,iVBOR' in shown
    assert len(shown) < 200_000
    assert "<svg" not in shown


def test_jobs_counts_and_queues_show_themselves_in_notebooks() -> None:
    with rqlab.memory() as rq:
        job = rq.get(rq.push("emails", "send", {"to": "<script>"}))

        assert job._repr_html_() == html.job(job)
        assert rq.counts()._repr_html_() == html.counts(rq.counts())
        assert "in memory" in Page(rq._repr_html_()).words
        assert "&lt;script&gt;" in str(job._repr_html_())
    assert rq._repr_html_() is None  # closed: IPython falls back to the plain repr


def test_only_what_has_a_look_is_shown() -> None:
    with pytest.raises(TypeError, match="expected a Job or Counts, got int"):
        html.of(3)


# The SVG


def svg_of(told: Any, by: Any = "worker") -> ElementTree.Element:
    return ElementTree.fromstring(svg.timeline(timelines.marks(told, by)))


SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("by", ["worker", "job"])
def test_a_timeline_is_well_formed_and_says_what_it_shows(by: str) -> None:
    for told in (world(5), world(100, concurrency=3), result([]), SimpleNamespace(**hostile_view())):
        root = svg_of(told, by)

        assert root.attrib["role"] == "img"
        assert (root.findtext(f"{SVG}title"), root.findtext(f"{SVG}desc")) == (
            f"Timeline by {by}",
            looks.plain(timelines.marks(told, by).said(), 2000),  # type: ignore[arg-type]
        )


def test_the_svg_and_the_drawing_show_the_same_bars() -> None:
    """One data function: the bars in the SVG are as many, as long and as far as the marks that matplotlib draws."""
    drawn = timelines.marks(world(30), "job")
    bars = [
        (float(rect.attrib["x"]), rect.findtext(f"{SVG}title"))
        for rect in svg_of(world(30), "job").iter(f"{SVG}rect")
        if rect.find(f"{SVG}title") is not None
    ]
    scale = (760 - svg.LEFT - svg.RIGHT) / (drawn.end - drawn.start)

    assert [said for _, said in bars] == [looks.plain(bar.said(), 200) for bar in drawn.bars]
    assert all(abs(x - svg.LEFT - bar.start * scale) < 0.1 for (x, _), bar in zip(bars, drawn.bars, strict=True))


@pytest.mark.parametrize("jobs", [5, 30, 100])
@pytest.mark.parametrize("by", ["worker", "job"])
def test_no_word_of_the_svg_covers_another(jobs: int, by: str) -> None:
    boxes = []
    for text in svg_of(world(jobs), by).iter(f"{SVG}text"):
        words = text.text or ""
        width, x = len(words) * svg.LETTER, float(text.attrib["x"])
        left = x - {"middle": width / 2, "end": width}.get(text.attrib.get("text-anchor", ""), 0)
        y = float(text.attrib["y"])
        boxes.append((left, y - 9, left + width, y + 2, words))
    clashes = [
        (one[4], other[4])
        for n, one in enumerate(boxes)
        for other in boxes[n + 1 :]
        if one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
        and len(one[4]) > 1 and len(other[4]) > 1  # a final glyph may stand on the line of the next bar
    ]  # fmt: skip

    assert clashes == []


def test_the_word_of_a_power_cut_has_room_whatever_else_happens_and_wherever_it_comes() -> None:
    crashes = [(19.0 + n / 100, "worker crash", f"worker-{n}") for n in range(9)]
    told = result([("a", 1, "w", 0.0, 20.0, "completed")], [*crashes, (19.99, "power cut", "")])

    drawn = svg_of(told, "worker")

    (words,) = [text for text in drawn.iter(f"{SVG}text") if "power cut" in (text.text or "")]
    _, _, width, _ = map(float, drawn.attrib["viewBox"].split())
    assert words.text == "⌁ power cut"
    assert float(words.attrib["x"]) + len(words.text) * svg.LETTER <= width


def test_words_that_are_not_there_take_no_room() -> None:
    quiet = svg_of(result([("a", 1, "w", 0.0, 20.0, "completed")]), "worker")
    crashed = svg_of(result([("a", 1, "w", 0.0, 20.0, "completed")], [(3.0, "power cut", "")]), "worker")
    heights = [float(each.attrib["viewBox"].split()[3]) for each in (quiet, crashed)]

    assert heights[1] - heights[0] == svg.WORD_HIGH


def test_every_hatched_look_has_a_pattern() -> None:
    tables = (looks.STATES, looks.OUTCOMES, looks.VERDICTS)
    hatches = {look.hatch for table in tables for look in table.values()} | {looks.WAIT.hatch}

    assert hatches - {""} <= set(svg.PATTERNS)
    assert {look.hatch for look in looks.STATES.values()} - {""} <= set(html.STRIPES)


def test_two_timelines_on_a_page_keep_their_patterns_apart() -> None:
    drawn = timelines.marks(world(30))
    first, second = (set(re.findall(r' id="([^"]+)"', svg.timeline(drawn, name=name))) for name in ("a", "b"))

    assert first
    assert not first & second
    assert set(re.findall(r"url\(#([^)]+)\)", svg.timeline(drawn, name="a"))) <= first


@pytest.mark.parametrize(
    ("start", "end", "instants"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 9, [0, 2, 4, 6, 8]), (31, 44, [32, 34, 36, 38, 40, 42, 44])],
)
def test_the_axis_has_round_instants(start: float, end: float, instants: list[float]) -> None:
    assert svg.round_instants(start, end) == instants


def quickest(call: Any, times: int = 30) -> float:
    seconds = []
    for _ in range(times):
        before = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - before)
    return min(seconds)


def test_a_timeline_of_thirty_jobs_takes_two_milliseconds() -> None:
    drawn = timelines.marks(world(30), "job")

    assert quickest(lambda: svg.timeline(drawn)) < 0.020  # 0.6 ms; ten times the promise, for a busy machine


# The trade-off


def measured(extra: tuple[str, ...] = ()) -> Any:
    rows = [("durable", 3e3, 0.0), ("buffered", 3e4, 0.009), ("hybrid", 8e4, 0.9), ("memory", 2e5, math.inf)]
    rows += [(name, 3_000.0 + n, 0.0) for n, name in enumerate(extra)]
    return tradeoffs.marks(
        pandas.DataFrame(
            {
                "mode": mode, "callers": 1, "repeat": n, "push_per_second": rate * (1 + n / 10), "promised": HOSTILE,
                "cycles_per_second": rate, "loss_window_seconds": loss,
            }
            for mode, rate, loss in rows
            for n in range(3)
        )
    )  # fmt: skip


def test_the_trade_off_in_a_panel_has_the_points_of_the_drawing() -> None:
    drawn = measured()
    root = ElementTree.fromstring(html.tradeoff(drawn))
    places = [
        tuple(map(float, group.attrib["transform"].removeprefix("translate(").rstrip(")").split()))
        for group in root.iter(f"{SVG}g")
        if "transform" in group.attrib
    ]

    assert len(places) == len(drawn.points)
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    assert root.findtext(f"{SVG}desc") == looks.plain(drawn.said(), 2000)
    assert set(plots.MARKERS) == {marker for marker, _, _ in looks.SERIES}


@pytest.mark.parametrize("extra", [(), ("a", "b", HOSTILE)])
def test_no_label_of_the_trade_off_covers_another(extra: tuple[str, ...]) -> None:
    root = ElementTree.fromstring(html.tradeoff(measured(extra)))
    boxes = []
    for label in root.iter(f"{SVG}text"):
        lines = [span for span in label.iter(f"{SVG}tspan") if "y" in span.attrib]
        if lines:
            left, top = float(lines[0].attrib["x"]), float(lines[0].attrib["y"]) - 9
            wide = max(len(line.text or "") for line in lines) * svg.LETTER
            boxes.append((left, top, left + wide, top + plots.LINE * len(lines) - 1))

    assert len(boxes) == 4 + len(extra)
    for n, one in enumerate(boxes):
        assert not any(meet(one, other) for other in boxes[n + 1 :])


# Panels


def live_view() -> dict[str, Any]:
    """A view as large as a lab's may be: 1 000 jobs, 10 000 events."""
    told = world(1_000, workers=4)
    tables = {name: getattr(told, name).to_dict("records") for name in ("jobs", "attempts", "faults")}
    beats = told.events.to_dict("records")
    events = sorted((beats * 5)[:10_000], key=lambda event: event["at"])
    return {"mode": "durable", "now": 300.0, "counts": {"completed": 1_000}, **tables, "events": events}


def test_a_panel_of_a_thousand_jobs_is_small_and_quick() -> None:
    view = live_view()

    assert len(html.render(view)) < 20_000
    assert len(html.render({**view, "by": "worker"})) < 20_000
    assert quickest(lambda: html.render(view), 10) < 0.2  # 10 ms; ten times the promise of 20 ms


def test_panels_are_chosen_by_name() -> None:
    view = {"counts": {"waiting": 3}, "workers": [{"name": "w0", "pid": 12, "state": "active", "lease_left": 2.44}]}

    assert Page(html.render(view, ["states"])).words.split()[:3] == ["○", "waiting", "3"]
    assert Page(html.render(view, ["workers"])).words.split()[-6:] == ["w0", "12", "▶", "active", "2.4", "s"]
    with pytest.raises(
        ValueError, match="panels: expected some of header, states, workers, timeline, events; got 'lamp'"
    ):
        html.render(view, ["lamp"])


def test_events_are_the_newest_without_heartbeats() -> None:
    kinds = ["push", "pull", "heartbeat", "fail", "heartbeat"] * 4
    events = [{"at": n, "kind": kind, "job": "a", "worker": "w"} for n, kind in enumerate(kinds)]

    lines = Page(html.events({"events": events, "jobs": [{"id": "a"}]})).words.splitlines()

    assert len(lines) == html.MOST_EVENTS
    assert [line.split() for line in lines[:2]] == [
        ["18.000", "s", "fail", "a", "w"],
        ["16.000", "s", "pull", "a", "w"],
    ]


def test_safety_is_said_only_where_it_was_judged() -> None:
    assert "SAFETY HOLDS ✓" in html.header({"safe": True})
    assert "SAFETY BROKEN ✗" in html.header({"safe": False})
    assert "SAFETY" not in html.header({})


def test_importing_the_panels_loads_neither_pandas_nor_matplotlib() -> None:
    program = (
        "import sys, rqlab.html\nrqlab.html.render({'counts': {'waiting': 1}})\n"
        "assert not {'pandas', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
