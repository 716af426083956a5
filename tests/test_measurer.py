"""The panel of a measurement, by its buttons: rows are drawn as they arrive, one measurement at a time."""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ipywidgets.widgets.widget import _instances as alive

import rqlab
from rqlab.measurement import COLUMNS, Measurement
from rqlab.measurement.machine import machine
from rqlab.widgets import measurer as module
from rqlab.widgets.measurer import Measurer, Progress, picture

HOSTILE = "<script>alert('1')</script>"
PATIENCE = 120.0  # seconds, for what takes two on a quiet machine


def row(mode: str = "durable", callers: int = 1, **more: Any) -> dict[str, Any]:
    kinds = {"str": mode, "int": callers, "float": 1000.0, "bool": True}
    return {name: kinds[kind] for name, kind in COLUMNS.items()} | {"loss_window_seconds": 0.0} | more


@pytest.fixture
def panel() -> Iterator[Measurer]:
    with Measurer("memory", callers=1) as made:
        made.draw()
        yield made
        made.cancel()
        assert made.wait(PATIENCE)


def control(panel: Measurer, name: str) -> Any:
    (found,) = [each for each in walk(panel.widget) if f"rq-{name}" in each._dom_classes]
    return found


def walk(widget: Any) -> Iterator[Any]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


def shown(panel: Measurer, name: str) -> str:
    panel.draw()
    return str(control(panel, name).value)


class Scripted:
    """Stands in for `rqlab.measure`: its rows come when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
        self.rows = rows
        self.was_interrupted = False
        monkeypatch.setattr(module, "measure", self)

    def __call__(self, modes: Any, *, callers: Any, on_row: Any, **_: Any) -> Measurement:
        found = []
        try:
            for number in range(self.rows):
                found.append(row(modes[0], callers[0], repeat=number + 1))
                on_row(found[-1])
        except KeyboardInterrupt:
            self.was_interrupted = True
        settings = {"settings": {"cuts": 1}, "is_complete": not self.was_interrupted}
        return Measurement(found, machine(Path(tempfile.gettempdir())) | settings)


def test_a_measurement_is_begun_by_its_button_and_drawn_row_by_row(panel: Measurer) -> None:
    assert "nothing is measured yet" in shown(panel, "progress")

    control(panel, "measure").click()
    panel.draw()
    assert control(panel, "measure").disabled
    assert panel.wait(PATIENCE)

    assert "measured: 3 of 3 rows" in shown(panel, "progress")
    assert "everything lost" in shown(panel, "tradeoff")
    assert "push/s" in shown(panel, "tables")
    assert not control(panel, "measure").disabled
    assert len(panel.measurement.frame) == 3
    assert panel.measurement.is_complete


def test_there_is_no_second_measurement_at_a_time(panel: Measurer) -> None:
    module._running.acquire()
    try:
        control(panel, "measure").click()

        assert "another measurement" in shown(panel, "problem")
        with pytest.raises(rqlab.RQLabError, match="another measurement"):
            panel.start()
    finally:
        module._running.release()


def test_cancelled_it_keeps_what_it_has(panel: Measurer, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted(monkeypatch, 1000)
    note = panel._note

    def cancel_at_the_second(each: dict[str, Any]) -> None:
        if len(panel._rows) == 1:
            assert "fsync" in repr(panel.measurement), "what there is can be read meanwhile"
            panel.cancel()
        note(each)

    monkeypatch.setattr(panel, "_note", cancel_at_the_second)
    panel.start()
    assert panel.wait(PATIENCE)

    assert scripted.was_interrupted
    assert "Interrupted" in repr(panel.measurement)
    assert len(panel.measurement) == 2
    assert "cancelled: 2 of 3 rows" in shown(panel, "progress")


def test_an_error_is_shown_and_ends_it(panel: Measurer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Measurement:
        raise rqlab.StoreFull(f"no room {HOSTILE}")

    monkeypatch.setattr(module, "measure", fail)
    panel.start()
    assert panel.wait(PATIENCE)

    assert "no room" in shown(panel, "problem")
    assert "<script" not in shown(panel, "problem")
    assert module._running.acquire(blocking=False)
    module._running.release()


def test_the_buttons_choose_modes_and_callers(panel: Measurer) -> None:
    control(panel, "mode-durable").value = True
    control(panel, "mode-memory").value = False
    control(panel, "callers-100").value = True
    panel.draw()

    assert (panel._modes, panel._callers) == (("durable",), (1, 100))
    control(panel, "mode-durable").value = False
    panel.draw()
    assert control(panel, "measure").disabled, "there is nothing to measure"


def test_what_there_is_not_is_refused() -> None:
    for given in ({"modes": "redb"}, {"modes": []}, {"callers": 7}):
        with pytest.raises(rqlab.ValidationError, match="expected one or more of"):
            rqlab.measurer(**given)  # type: ignore[arg-type]


def test_before_the_first_row_there_is_no_measurement(panel: Measurer) -> None:
    with pytest.raises(rqlab.RQLabError, match="nothing has been measured"):
        _ = panel.measurement


def test_the_picture_has_a_plot_for_each_number_of_callers_and_stays_small() -> None:
    rows = [row(mode, callers, repeat=n) for mode in rqlab.MODES for callers in (1, 10, 100) for n in range(5)]
    rows += [row("odd", 1, loss_window_seconds=math.nan, promised=HOSTILE)]
    drawn = picture(rows, "push, run and ack")

    assert drawn.count("<svg") == 3
    assert "<script" not in drawn
    assert len(drawn.encode()) < 20 * 1024


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (Progress(0, 0, 0.0), "nothing is measured yet"),
        (Progress(2, 8, 4.0, True), "2 of 8 rows, about 12 s left"),
        (Progress(2, 8, 4.0, True, True), "when the row that is being measured has come to its end"),
        (Progress(8, 8, 16.04), "measured: 8 of 8 rows in 16 s"),
    ],
)
def test_progress_says_how_far_it_is(progress: Progress, said: str) -> None:
    assert said in progress.said()


def test_a_cell_run_again_leaves_no_widget() -> None:
    def cell() -> Measurer:
        made = rqlab.measurer("memory", callers=1)
        made.draw()
        return made

    first = cell()
    count = len(alive)
    last = cell()

    assert first.is_closed
    assert len(alive) == count
    last.close()
