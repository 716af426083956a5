"""What every live panel shares: one ticker, one registry, one shell. Without a browser: clicks are calls."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from ipywidgets.widgets.widget import _instances as alive

from rqlab.errors import ValidationError
from rqlab.widgets import registry
from rqlab.widgets.shell import Panel, Shell
from rqlab.widgets.ticker import PERIOD, UNWATCHED, Ticker

PATIENCE = 30.0  # seconds, for what takes milliseconds on a quiet machine


class Sketch:
    """A panel for the ticker: as slow, as watched and as broken as it is told to be."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.watched = True
        self.breaks = False
        self.ticks = 0
        self.errors: list[str] = []
        self.drawn = threading.Event()

    def is_watched(self) -> bool:
        return self.watched

    def tick(self) -> None:
        self.ticks += 1
        self.drawn.set()
        HAND.now += self.seconds
        if self.breaks:
            raise RuntimeError("<b>no ink</b>")

    def show_error(self, error: Exception) -> None:
        self.errors.append(str(error))


class Hand:
    """A clock that is moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


HAND = Hand()


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> Ticker:
    """A ticker whose steps the test makes."""
    ticker = Ticker(HAND)
    monkeypatch.setattr(threading.Thread, "start", lambda thread: None)
    return ticker


def tickers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rqlab-ticker"]


def test_a_panel_is_drawn_four_times_a_second(by_hand: Ticker) -> None:
    panel = Sketch()
    by_hand.add(panel)

    for _ in range(40):  # ten seconds
        assert by_hand.step() == pytest.approx(PERIOD)
        HAND.now += PERIOD

    assert panel.ticks == 40


def test_drawing_takes_at_most_a_fifth_of_the_time(by_hand: Ticker) -> None:
    panel = Sketch(seconds=0.5)
    by_hand.add(panel)
    began, busy = HAND.now, 0.0

    for _ in range(20):
        wait = by_hand.step()
        busy += 0.5
        HAND.now += wait

    assert busy / (HAND.now - began) == pytest.approx(0.2)


def test_nobody_looking_is_no_work(by_hand: Ticker) -> None:
    panel = Sketch()
    panel.watched = False
    by_hand.add(panel)

    assert (by_hand.step(), panel.ticks) == (UNWATCHED, 0)


def test_a_click_does_not_draw_more_often(by_hand: Ticker) -> None:
    panel = Sketch()
    by_hand.add(panel)
    by_hand.step()

    by_hand.ring()
    HAND.now += PERIOD / 5

    assert by_hand.step() == pytest.approx(PERIOD * 4 / 5)
    assert panel.ticks == 1


def test_a_panel_that_cannot_be_drawn_says_so_and_holds_up_no_other(by_hand: Ticker) -> None:
    broken, sound = Sketch(), Sketch()
    broken.breaks = True
    by_hand.add(broken)
    by_hand.add(sound)

    by_hand.step()

    assert (broken.errors, sound.ticks) == (["<b>no ink</b>"], 1)


def test_all_panels_share_one_thread_which_ends_with_the_last() -> None:
    ticker = Ticker()
    panels = [Sketch(), Sketch(), Sketch()]
    before = set(tickers())

    for panel in panels:
        ticker.add(panel)
    assert all(panel.drawn.wait(PATIENCE) for panel in panels)
    (ours,) = set(tickers()) - before
    for panel in panels:
        ticker.remove(panel)
    ours.join(PATIENCE)

    assert ours.daemon
    assert not ours.is_alive()


def test_who_begins_to_look_is_not_kept_waiting() -> None:
    ticker, panel = Ticker(), Sketch()
    panel.watched = False
    ticker.add(panel)

    panel.watched = True
    ticker.ring()

    assert panel.drawn.wait(PATIENCE)
    ticker.remove(panel)


# The registry.


class Door:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name
        log.append(f"open {name}")

    def close(self) -> None:
        self.log.append(f"close {self.name}")
        registry.forget(self)


def test_what_takes_a_place_is_made_after_what_had_it_was_closed() -> None:
    log: list[str] = []

    registry.replace("a directory", lambda: Door(log, "first"))
    registry.replace("another", lambda: Door(log, "stranger"))
    registry.replace("a directory", lambda: Door(log, "second"))
    registry.close_all()
    registry.close_all()

    assert log[:4] == ["open first", "open stranger", "close first", "open second"]
    assert sorted(log[4:]) == ["close second", "close stranger"]


# The shell.


class Counter(Panel):
    """A panel with a number, a button, and a slider."""

    name = "counter"

    def __init__(self, ticker: Ticker) -> None:
        super().__init__(ticker)
        self.number = 0
        self.ends = 0

    def __repr__(self) -> str:
        return f"<Counter {self.number}>"

    def _lay_out(self, shell: Shell) -> None:
        more = shell.button("one more", self._more, name="more", tip="count on", colour="danger")
        bound = shell.control("IntSlider", self._set, name="number", value=0, max=10, description="number")
        shell.place(shell.html("total"), shell.row(more, bound), shell.tabs(first_tab=shell.column()))

    def _draw(self, shell: Shell) -> None:
        shell.set("total", f"<b>{self.number}</b>")

    def _more(self) -> None:
        self.number += 1

    def _set(self, number: int) -> None:
        if number > 5:
            raise ValidationError("number: expected at most 5; got <img src=x>")
        self.number = number

    def _end(self) -> None:
        self.ends += 1


@pytest.fixture
def counter() -> Iterator[Counter]:
    with Counter(Ticker()) as panel:
        yield panel


def found(panel: Panel, name: str) -> Any:
    """The widget of a panel that has this class."""
    (widget,) = [each for each in inside(panel.widget) if f"rq-{name}" in each._dom_classes]
    return widget


def inside(widget: Any) -> Iterator[Any]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from inside(child)


def revision(panel: Panel) -> str:
    return str(found(panel, "marker").value)


def test_a_click_does_what_the_button_says(counter: Counter) -> None:
    found(counter, "more").click()
    counter.draw()

    assert found(counter, "total").value == "<b>1</b>"


def test_only_what_changed_is_sent_and_the_marker_last(counter: Counter) -> None:
    sent: list[str] = []
    for each in inside(counter.widget):
        each.observe(lambda change: sent.append(change["owner"]._dom_classes[-1]), names="value")

    counter.draw()
    counter.number = 3
    counter.draw()
    counter.draw()

    assert sent == ["rq-total", "rq-marker"]
    assert revision(counter) == '<span data-rq-rev="2"></span>'


def test_what_is_wrong_with_a_click_stands_in_the_panel_escaped(counter: Counter) -> None:
    slider = found(counter, "number")
    slider.value = 9

    said = found(counter, "problem").value
    assert "expected at most 5; got &lt;img src=x&gt;" in said

    slider.value = 4
    counter.draw()

    assert (counter.number, found(counter, "problem").value) == (4, "")


def test_a_drawing_that_fails_is_told_until_one_succeeds(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    counter.draw()
    with monkeypatch.context() as broken:
        broken.setattr(Counter, "_draw", lambda self, shell: 1 // 0)
        counter.tick()
    assert "ZeroDivisionError" in found(counter, "problem").value

    counter.tick()

    assert found(counter, "problem").value == ""


def test_it_is_watched_while_a_page_shows_it(counter: Counter) -> None:
    assert not counter.is_watched()

    counter.widget._view_count = 1

    assert counter.is_watched()


def test_close_leaves_no_widget_and_is_idempotent() -> None:
    before = set(alive)
    panel = Counter(Ticker())
    panel.draw()
    assert len(set(alive) - before) > 10

    panel.close()
    panel.close()

    assert set(alive) - before == set()
    assert panel.ends == 1
    assert panel.is_closed


def test_a_closed_panel_is_shown_as_text(counter: Counter) -> None:
    live = counter._repr_mimebundle_()
    counter.close()

    assert "application/vnd.jupyter.widget-view+json" in str(live)
    assert counter._repr_mimebundle_() == {"text/plain": "<Counter 0>"}


def test_the_shell_says_how_to_get_ipywidgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)

    with pytest.raises(ImportError, match=r"pip install 'rqlab\[lab\]'"):
        _ = Counter(Ticker()).widget


def test_importing_the_panels_loads_no_ipywidgets() -> None:
    code = "import rqlab.widgets.shell, sys; print('ipywidgets' in sys.modules)"

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout

    assert said == "False\n"
