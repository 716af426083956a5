"""`rqlab.measurer()`: `rqlab.measure` with buttons, and the trade-off drawn as its rows arrive.

A panel of its own, because `measure` is below the floor of widgets, and a function that sometimes returns a result
and sometimes a panel would be two. It draws between rows only: whatever moves while a row is timed takes turns at the
interpreter with the callers that are timed.
"""

import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rqlab import clock
from rqlab.charts import tradeoffs
from rqlab.charts.histories import times
from rqlab.charts.looks import seconds
from rqlab.durability import MODES
from rqlab.errors import RQLabError, ValidationError
from rqlab.html import FRAME, NUMBERS, svg
from rqlab.html.plots import tradeoff
from rqlab.measurement import FULL, QUICK, Measurement, Settings, measure
from rqlab.measurement.machine import machine
from rqlab.measurement.result import Row
from rqlab.widgets import registry
from rqlab.widgets.shell import Panel, Shell
from rqlab.widgets.ticker import TICKER, Ticker

CALLERS = (1, 10, 100)  # buttons
THROUGHPUTS = {"pushes": "push", "push, run and ack": "cycles"}
ROUNDS: dict[str, Settings] = {"quick": QUICK, "thorough": FULL}

_running = threading.Lock()  # one measurement at a time in a process: two would measure each other


class Progress(NamedTuple):
    """How far a measurement is."""

    rows: int
    of: int
    seconds: float  #: since it began
    is_running: bool = False
    is_cancelled: bool = False

    def said(self) -> str:
        if not self.of:
            return "nothing is measured yet: choose, and press measure"
        done = f"{self.rows} of {times(self.of, 'row')}"
        if not self.is_running:
            return f"{'cancelled' if self.is_cancelled else 'measured'}: {done} in {seconds(round(self.seconds, 1))}"
        if self.is_cancelled:
            return f"{done}: cancelled, when the row that is being measured has come to its end"
        left = f", about {seconds(round(self.seconds / self.rows * (self.of - self.rows)))} left" if self.rows else ""
        return f"measuring: {done}{left}"


def picture(rows: Sequence[Row], throughput: str) -> str:
    """Throughput against loss window, one plot for each number of callers."""
    if not rows:
        return ""
    frame = Measurement(rows, {}).frame
    plots = [
        f"<div>{tradeoff(tradeoffs.marks(frame, THROUGHPUTS[throughput], callers))}</div>"  # type: ignore[arg-type]
        for callers in sorted({int(row["callers"]) for row in rows})
    ]
    return f'<div style="{FRAME};{NUMBERS}">{"".join(plots)}</div>'


def measurer(
    modes: str | Iterable[str] | None = None, *, callers: int | Iterable[int] = (1, 100), quick: bool = True,
    directory: Any = None,
) -> "Measurer":  # fmt: skip
    """Measure the durability modes by buttons, and watch the trade-off as rows arrive.

        panel = rqlab.measurer()            # as the last line of a cell; press measure
        panel.measurement.frame             # what has been measured so far

    The arguments say what the buttons show first; `directory` is that of `rqlab.measure`, which does the work. A cell
    that is run again replaces its panel. ValidationError for modes or callers that there are not.
    """
    return registry.replace(
        registry.cell("measurer"), lambda: Measurer(modes, callers=callers, quick=quick, directory=directory)
    )


class Measurer(Panel):
    """A measurement that is begun and cancelled by buttons. `rqlab.measurer` makes it."""

    name = "measurer"

    def __init__(
        self, modes: str | Iterable[str] | None = None, *, callers: int | Iterable[int] = (1, 100), quick: bool = True,
        directory: Any = None, ticker: Ticker = TICKER,
    ) -> None:  # fmt: skip
        super().__init__(ticker)
        self._state = threading.RLock()
        self._modes = _chosen("modes", MODES, list(MODES) if modes is None else modes)
        self._callers = _chosen("callers", CALLERS, callers)
        self._rounds = "quick" if quick else "thorough"
        self._throughput = next(iter(THROUGHPUTS))
        self._directory = directory
        self._rows: list[Row] = []
        self._machine: dict[str, Any] = {}
        self._of = 0
        self._began = self._ended = 0.0
        self._thread: threading.Thread | None = None
        self._is_cancelled = False
        self._done: Measurement | None = None
        self._drawn: object = None
        self._over = threading.Event()
        self._over.set()
        self._buttons: dict[str, Any] = {}

    @property
    def measurement(self) -> Measurement:
        """What has been measured so far. RQLabError before the first row."""
        with self._state:
            if self._done is not None:
                return self._done
            if not self._rows:
                raise RQLabError("nothing has been measured yet: press measure, or call start() and wait()")
            return Measurement(self._rows, self._machine)

    @property
    def progress(self) -> Progress:
        """How far it is."""
        with self._state:
            running = self._thread is not None
            spent = (clock.monotonic() if running else self._ended) - self._began if self._of else 0.0
            return Progress(len(self._rows), self._of, spent, running, self._is_cancelled)

    def __repr__(self) -> str:
        return f"<rqlab.measurer {', '.join(self._modes)}: {'closed' if self.is_closed else self.progress.said()}>"

    # What can be done.

    def choose(self, *, modes: Iterable[str] | None = None, callers: Iterable[int] | None = None, quick: bool | None = None) -> None:  # fmt: skip # noqa: E501
        """Choose what the next measurement is of; ValidationError for what there is not."""
        with self._state:
            if modes is not None:
                self._modes = _chosen("modes", MODES, modes)
            if callers is not None:
                self._callers = _chosen("callers", CALLERS, callers)
            if quick is not None:
                self._rounds = "quick" if quick else "thorough"
        self._ticker.ring()

    def start(self) -> None:
        """Begin to measure. RQLabError while any measurer of this process measures."""
        if not _running.acquire(blocking=False):
            raise RQLabError("cannot measure now: another measurement is under way, and each would slow the other")
        with self._state:
            settings = ROUNDS[self._rounds]
            self._rows, self._done, self._is_cancelled = [], None, False
            self._of = len(self._modes) * len(self._callers) * settings.repeats
            self._began = clock.monotonic()
            self._over.clear()
            self._thread = threading.Thread(target=self._work, name="rqlab-measurer", daemon=True)
            self._thread.start()

    def cancel(self) -> None:
        """Stop when the row that is being measured has come to its end; what was measured stays."""
        with self._state:
            self._is_cancelled = self._thread is not None

    def wait(self, timeout: float = 600.0) -> bool:
        """Wait until it is over; False if it took longer than that, in seconds."""
        return self._over.wait(timeout)

    # What a Panel does.

    def _lay_out(self, shell: Shell) -> None:
        modes = [self._toggle(shell, "mode", mode, MODES[mode].use_when) for mode in MODES]
        callers = [self._toggle(shell, "callers", count, f"{count} threads that push at once") for count in CALLERS]
        rounds = self._kept("rounds", shell.control(
            "Dropdown", lambda which: self.choose(quick=which == "quick"), name="rounds", description="rounds",
            options=list(ROUNDS), style={"description_width": "initial"},
        ))  # fmt: skip
        shown = shell.control(
            "Dropdown", self._show, name="throughput", description="throughput of", options=list(THROUGHPUTS),
            style={"description_width": "initial"},
        )  # fmt: skip
        start = shell.button("measure", self.start, name="measure", colour="warning", tip="measure what is chosen")
        cancel = shell.button("cancel", self.cancel, name="cancel", tip="stop after the row that is being measured")
        self._kept("measure", start)
        self._kept("cancel", cancel)
        shell.place(
            shell.row(*modes), shell.row(*callers, rounds, shown), shell.row(start, cancel),
            shell.html("progress"), shell.html("tradeoff"), shell.html("tables"),
        )  # fmt: skip

    def _draw(self, shell: Shell) -> None:
        with self._state:
            rows, done, throughput = list(self._rows), self._done, self._throughput
            running, cancelled = self._thread is not None, self._is_cancelled
            chosen = (self._modes, self._callers, self._rounds)
        seen = (len(rows), done, throughput, running, cancelled, chosen, self._of)
        if seen == self._drawn:
            return
        shell.set("progress", f'<div style="{FRAME}" role="status">{svg.text(self.progress.said(), 200)}</div>')
        shell.set("tradeoff", picture(rows, throughput))
        shell.set("tables", done._repr_html_() if done is not None else "")
        for name, widget in self._buttons.items():
            what, _, which = name.partition(" ")
            if what in ("mode", "callers"):
                on = which in self._modes if what == "mode" else int(which) in self._callers
                shell.change(widget, value=on, disabled=running)
        shell.change(self._buttons["rounds"], value=chosen[2], disabled=running)
        shell.change(self._buttons["measure"], disabled=running or not (chosen[0] and chosen[1]))
        shell.change(self._buttons["cancel"], disabled=not running or cancelled)
        self._drawn = seen

    def _end(self) -> None:
        self.cancel()

    def _as_html(self) -> str:
        with self._state:
            return self._done._repr_html_() if self._done is not None else ""

    # Below.

    def _toggle(self, shell: Shell, what: str, which: str | int, tip: str) -> Any:
        words = f"{which} callers" if what == "callers" else str(which)
        words = "1 caller" if words == "1 callers" else words
        on = which in self._modes if what == "mode" else which in self._callers
        button = shell.control(
            "ToggleButton", lambda on: self._toggled(what, which, on), name=f"{what}-{which}", description=words,
            tooltip=tip, value=on, layout={"width": "auto"},
        )  # fmt: skip
        return self._kept(f"{what} {which}", button)

    def _kept(self, name: str, widget: Any) -> Any:
        self._buttons[name] = widget
        return widget

    def _toggled(self, what: str, which: str | int, on: bool) -> None:
        with self._state:
            if what == "mode":
                self._modes = tuple(m for m in MODES if (on if m == which else m in self._modes))
            else:
                self._callers = tuple(c for c in CALLERS if (on if c == which else c in self._callers))

    def _show(self, throughput: str) -> None:
        with self._state:
            self._throughput = throughput

    def _work(self) -> None:
        """Measure, in a thread; an error is shown, and what was measured stays."""
        try:
            settings = ROUNDS[self._rounds]._asdict() | {"modes": list(self._modes), "callers": list(self._callers)}
            here = Path(self._directory or tempfile.gettempdir())
            self._machine = {**machine(here), "settings": settings, "is_complete": False}
            done = measure(
                self._modes, callers=self._callers, quick=self._rounds == "quick", directory=self._directory,
                progress=False, on_row=self._note,
            )  # fmt: skip
            with self._state:
                self._done = done
        except Exception as error:  # noqa: BLE001  # of whatever kind: the panel shows it, a thread has nobody to raise to
            self.show_error(error)
        finally:
            with self._state:
                self._thread, self._ended = None, clock.monotonic()
            _running.release()
            self._over.set()
            self._ticker.ring()

    def _note(self, row: Mapping[str, Any]) -> None:
        with self._state:
            self._rows.append(dict(row))
            is_cancelled = self._is_cancelled
        self._ticker.ring()
        if is_cancelled:
            raise KeyboardInterrupt  # measure's own way to end early and return what it has


def _chosen(what: str, known: Iterable[Any], given: Any) -> tuple[Any, ...]:
    """Those that were given, in the order in which they are known."""
    wanted = (given,) if isinstance(given, str | int) else tuple(given)
    unknown = [each for each in wanted if each not in list(known)]
    if unknown or not wanted:
        listed = ", ".join(map(repr, known))
        raise ValidationError(f"{what}: expected one or more of {listed}; got {unknown or wanted!r}")
    return tuple(each for each in known if each in wanted)
