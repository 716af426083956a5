"""`rqlab.explorer()`: a simulation under sliders, and a scrubber that goes through it event by event.

It chooses what to simulate and where in it to stand; what that looks like is made in `explored` and `retries`.
Simulations that take longer than the blink of an eye run in a thread, one at a time, and the newest wish wins.
"""

import base64
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rqlab import charts, clock, html
from rqlab.durability import MODES
from rqlab.errors import RQLabError
from rqlab.html import svg
from rqlab.job import Backoff
from rqlab.simulation.result import SimulationResult
from rqlab.simulation.run import simulate
from rqlab.widgets import registry, retries
from rqlab.widgets.explored import STOPS, Explored, Stop
from rqlab.widgets.retries import Retries
from rqlab.widgets.shell import Panel, Shell
from rqlab.widgets.ticker import TICKER, Ticker

QUICK = 0.3  # seconds; what takes longer is simulated in a thread
KEPT = 16  # results, by their arguments: going back to one costs nothing
PLAY_EVERY = 400  # milliseconds between two events; the ticker draws at most every 250

#: What `rqlab.explorer()` simulates if nothing else is said; the other arguments of `simulate` keep its defaults.
START: dict[str, Any] = {
    "crashes": 3, "seed": 7, "workers": 3, "jobs": 24, "durability": "durable", "stall_timeout": 4.0,
    "failure_rate": 0.15, "faults": None,
}  # fmt: skip


class Control(NamedTuple):
    """A control and the argument that it sets. One that holds what no slider can (a plan) is only shown."""

    argument: str
    kind: str  #: of ipywidgets
    label: str
    traits: Mapping[str, Any]
    types: tuple[type, ...]  #: what its value may be


#: The controls of the simulation, in order.
CONTROLS = (
    Control("durability", "ToggleButtons", "mode", {"options": list(MODES)}, (str,)),
    Control("crashes", "IntSlider", "crashes", {"min": 0, "max": 8}, (int,)),
    Control("seed", "BoundedIntText", "seed", {"min": 0, "max": 2**31 - 1}, (int,)),
    Control("workers", "IntSlider", "workers", {"min": 1, "max": 8}, (int,)),
    Control("jobs", "IntSlider", "jobs", {"min": 1, "max": 100}, (int,)),
    Control("stall_timeout", "FloatSlider", "stall_timeout, s", {"min": 0.5, "max": 20.0, "step": 0.5}, (int, float)),
    Control("failure_rate", "FloatSlider", "failure rate", {"min": 0.0, "max": 1.0, "step": 0.05}, (int, float)),
    Control("faults", "Dropdown", "other faults", {"options": ["a few", "none", "many"]}, (str,)),
)
#: What the words for other faults are as an argument; None lets the seed draw a light swarm.
FAULTS: dict[str, float | None] = {"a few": None, "none": 0.0, "many": 15.0}

#: The controls of the retries tab, by the field of Retries that each sets.
RETRIES = (
    Control("strategy", "ToggleButtons", "strategy", {"options": [str(each) for each in Backoff]}, (str,)),
    Control("base", "FloatSlider", "base, s", {"min": 0.1, "max": 60.0, "step": 0.1}, (float,)),
    Control("jitter", "FloatSlider", "jitter", {"min": 0.0, "max": 1.0, "step": 0.05}, (float,)),
    Control("cap", "FloatLogSlider", "cap, s", {"min": 0, "max": 5, "step": 0.05, "readout_format": ".0f"}, (float,)),
    Control("max_attempts", "IntSlider", "max_attempts", {"min": 1, "max": 12}, (int,)),
    Control("failure_rate", "FloatSlider", "failure rate", {"min": 0.0, "max": 1.0, "step": 0.05}, (float,)),
    Control("seed", "BoundedIntText", "seed", {"min": 0, "max": 10**6}, (int,)),
)

_numbers = itertools.count(1)
_one_at_a_time = threading.Lock()  # simulations of explorers: two at once would take each other's time


def explorer(result: SimulationResult | None = None, **arguments: Any) -> "Explorer":
    """Simulate with sliders, and go through what happened: event by event, crash by crash, down to the sectors.

        rqlab.explorer()                                     # as the last line of a cell
        rqlab.explorer(durability="hybrid", crashes=5)       # any arguments of simulate, to begin with
        rqlab.explorer(result)                               # a result of yours: a seed that failed, say

    The sliders set the arguments of `rqlab.simulate`; the defaults are those of `START`, with a seed, so that everybody
    sees the same. At each event it shows how jobs and workers stood, and where each sector of the store's files was.
    A second tab shows how retries wait. Everything can also be done by code: `choose`, `go_to`, `step`, `next_crash`.

    A cell that is run again replaces its explorer. Raises ValidationError for wrong arguments, and ImportError where
    ipywidgets is not installed, when it is first shown.
    """
    return registry.replace(registry.cell("explorer"), lambda: Explorer(arguments, result))


class Report:
    """What an explorer showed, to be kept: it needs neither a kernel nor widgets."""

    def __init__(self, words: str, page: str) -> None:
        self._words = words
        self._page = page

    def __repr__(self) -> str:
        return self._words

    def _repr_html_(self) -> str:
        return self._page


class Explorer(Panel):
    """A simulation that can be changed and gone through. `rqlab.explorer` makes it."""

    name = "explorer"

    def __init__(
        self, arguments: Mapping[str, Any], result: SimulationResult | None = None, ticker: Ticker = TICKER
    ) -> None:
        super().__init__(ticker)
        self._number = next(_numbers)
        self._state = threading.RLock()  #: of everything below; never held while something is simulated
        self._known: OrderedDict[str, Explored] = OrderedDict()
        self._arguments = _of_result(result) if result is not None else START | dict(arguments)
        self._wanted: dict[str, Any] | None = None  #: arguments to be simulated by the thread
        self._thread: threading.Thread | None = None
        self._settled = threading.Event()
        self._seconds_a_job = 0.0  #: of the last simulation
        self._which = next(iter(STOPS))
        self._placing = 0  #: the thread that sets controls: what they report then nobody chose
        self._wishes = 0  #: so far: a control whose wish could not be met goes back
        self._mover = ""  #: who moved last: "play" is not told where it is
        self._drawn: object = None
        self._retries = Retries()
        self._retries_drawn: object = None
        self._controls: dict[str, Any] = {}
        self._explored = self._made(self._arguments, result)
        self._stops = self._explored.stops(self._which)
        self._position = 0
        self._settled.set()

    # What there is.

    @property
    def result(self) -> SimulationResult:
        """The simulation that is shown."""
        return self._explored.result

    @property
    def arguments(self) -> dict[str, Any]:
        """What was last asked for, as arguments of `rqlab.simulate`."""
        return dict(self._arguments)

    @property
    def event(self) -> int:
        """The number of the event that the scrubber stands at."""
        return self._stop().event

    @property
    def at(self) -> float:
        """The instant that it stands at, in seconds."""
        return self._explored.at(self._stop())

    @property
    def caption(self) -> str:
        """What happened there, in a sentence."""
        return self._explored.said(self._stop())

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else self.caption
        return f"<rqlab.explorer {self.result.replay_line}: {state}>"

    # What can be done.

    def choose(self, **arguments: Any) -> None:
        """Simulate with these arguments changed. What takes long is shown when it is ready: `wait` for it.

        ValidationError for a wrong one; what is shown stays then.
        """
        with self._state:
            self._wishes += 1
            wished = self._arguments | arguments
            known = self._known.get(_key(wished))
            count = wished["jobs"] if isinstance(wished["jobs"], int) else len(wished["jobs"])
            is_quick = self._seconds_a_job * count < QUICK and self._thread is None
        if known is None and not is_quick:
            self._ask(wished)
            return
        explored = known or self._made(wished, None)
        self._show(explored, wished)

    def wait(self, timeout: float = 60.0) -> bool:
        """Wait until what was chosen is shown, its platter too; False if it took longer than that, in seconds."""
        with self._state:
            self._look_at_disk()
        return self._settled.wait(timeout)

    def go_to(self, event: int) -> None:
        """Stand at an event, or at the last stop before it. IndexError if there is no such event."""
        if not 0 <= event < max(len(self.result.history), 1):
            raise IndexError(f"cannot go to event {event}: there are {len(self.result.history)}, counted from 0")
        with self._state:
            before = [
                place for place, stop in enumerate(self._stops) if (stop.event, stop.step is None) <= (event, True)
            ]
            self._place(before[-1] if before else 0)

    def step(self, stops: int = 1) -> None:
        """Go so many stops further; back if negative."""
        with self._state:
            self._place(self._position + stops)

    def next_crash(self) -> None:
        """Go to the next crash; stay where there is none."""
        with self._state:
            later = [event for event in self._explored.crashes if event > self._now()]
        if later:
            self.go_to(later[0])

    def previous_crash(self) -> None:
        """Go to the crash before."""
        with self._state:
            earlier = [event for event in self._explored.crashes if event < self._now()]
        if earlier:
            self.go_to(earlier[-1])

    def stop_at(self, which: str) -> None:
        """Stop at these events only: a row of STOPS."""
        if which not in STOPS:
            raise ValueError(f"stop_at: expected one of {', '.join(map(repr, STOPS))}; got {which!r}")
        with self._state:
            self._which = which
            self._restop()

    def retry(self, **chosen: Any) -> None:
        """Set the retries tab: fields of Retries."""
        with self._state:
            self._retries = self._retries._replace(**chosen)

    def report(self) -> Report:
        """The verdict, the timeline as a PNG, and where the scrubber stands, in 5 KB and a picture."""
        with self._state:
            explored, stop = self._explored, self._stop()
        said = explored.said(stop)
        lines = [said, *(f"because, at {cause.at:.3f} s: {says}" for cause, says in explored.reasons(stop))]
        lines += explored.platter_lines(stop)
        body = "\n".join(svg.text(line, 260) for line in lines[:8])
        picture = base64.b64encode(charts.timeline(explored.result)._repr_png_()).decode()
        page = (
            f'{html.verdict(explored.result)}<img alt="{svg.text(explored.alt, 600)}" style="max-width:100%;'
            f'background:#fff" src="data:image/png;base64,{picture}">'
            f'<pre style="white-space:pre-wrap;color:inherit;background:none">{body}</pre>'
        )
        return Report("\n".join([str(explored.result.summary()), *lines]), page)

    # What a Panel does.

    def _lay_out(self, shell: Shell) -> None:
        control, button = self._control, shell.button
        simulation = [control(shell, each, self._chosen, _value(self._arguments, each.argument)) for each in CONTROLS]
        simulation[3:3] = [button("next seed", lambda: self.choose(seed=self._arguments["seed"] + 1), name="next-seed")]
        drawn = button(
            "draw faults from the seed", lambda: self.choose(crashes=3, faults=None), name="draw-faults",
            tip="instead of the plan that was given",
        )  # fmt: skip
        self._controls["draw-faults"] = drawn
        scrubber = shell.row(
            self._kept("play", shell.control(
                "Play", self._played, name="play", description="play", max=0, interval=PLAY_EVERY,
            )),
            button("previous crash", self.previous_crash, name="previous-crash"),
            button("step back", lambda: self.step(-1), name="step-back"),
            button("step", self.step, name="step"),
            button("next crash", self.next_crash, name="next-crash"),
            self._kept("stops", shell.control(
                "Dropdown", self.stop_at, name="stops", description="stop at", options=list(STOPS),
                style={"description_width": "initial"},
            )),
        )  # fmt: skip
        position = self._kept("position", shell.control(
            "IntSlider", self._moved, name="position", description="stop", max=0, continuous_update=True,
            layout={"width": "760px", "max_width": "100%"}, style={"description_width": "initial"},
        ))  # fmt: skip
        timeline, cursor = shell.html("timeline"), shell.html("cursor")
        timeline.layout.margin = cursor.layout.margin = "0"
        cursor.layout.height, cursor.layout.overflow = "0", "visible"  # it lies over the timeline
        run = shell.column(
            shell.row(*simulation, drawn), shell.html("verdict"), scrubber, position,
            shell.html("caption"), timeline, cursor, shell.html("standing"), shell.html("platter"),
        )  # fmt: skip
        tab = shell.column(
            shell.row(*(control(shell, each, self._retried, getattr(self._retries, each.argument), "retries-")
                        for each in RETRIES)),
            shell.html("retries-curve"), shell.html("retries-story"),
        )  # fmt: skip
        shell.place(shell.tabs(run=run, retries=tab))

    def _draw(self, shell: Shell) -> None:
        with self._state:
            self._look_at_disk()
            explored, stop, position, count = self._explored, self._stop(), self._position, len(self._stops)
            busy, arguments, chosen = self._wanted is not None, dict(self._arguments), self._retries
            mover, which, wishes = self._mover, self._which, self._wishes
        seen = (explored, explored.trace, explored.why_no_trace, stop, count, busy, which, _key(arguments), wishes)
        if seen != self._drawn:
            shell.set("verdict", (_busy() if busy else "") + explored.verdict)
            shell.set("timeline", explored.timeline)
            for name, text in explored.pieces(stop).items():
                shell.set(name, text)
            self._set_controls(shell, arguments, position, count, mover, which)
            self._drawn = seen
        if chosen != self._retries_drawn:
            shell.set("retries-curve", retries.curve(chosen))
            with _one_at_a_time:
                done = retries.run(chosen)
            shell.set("retries-story", retries.story(done, f"rq{self._number}-retries"))
            self._retries_drawn = chosen

    def _end(self) -> None:
        with self._state:
            self._wanted = None

    def _as_html(self) -> str:
        return self.report()._repr_html_()

    def _act(self, action: Callable[[], object]) -> None:
        if self._placing != threading.get_ident():  # else a control tells what it was just set to: nobody's wish
            super()._act(action)

    # Controls.

    def _control(self, shell: Shell, control: Control, action: Any, value: Any, prefix: str = "") -> Any:
        """Make a control; one that cannot show its value is disabled, and says that it is given."""
        traits = dict(control.traits)
        fits = type(value) in control.types and not isinstance(value, bool)
        if fits and isinstance(traits.get("max"), int | float) and control.kind != "FloatLogSlider":
            traits["max"], traits["min"] = max(traits["max"], value), min(traits["min"], value)
        label = control.label if fits else f"{control.label}: as given"
        if fits:
            traits["value"] = value
        if "Slider" in control.kind or "Text" in control.kind:
            traits["continuous_update"] = False
        widget = shell.control(
            control.kind, lambda new: action(control.argument, new), name=prefix + control.argument.replace("_", "-"),
            description=label, disabled=not fits, style={"description_width": "initial"}, **traits,
        )  # fmt: skip
        return self._kept(prefix + control.argument, widget)

    def _kept(self, name: str, widget: Any) -> Any:
        self._controls[name] = widget
        return widget

    def _chosen(self, argument: str, value: Any) -> None:
        if _value(self._arguments, argument) != value:
            self.choose(**{argument: FAULTS[value] if argument == "faults" else value})

    def _retried(self, field: str, value: Any) -> None:
        self.retry(**{field: value})

    def _moved(self, position: int) -> None:
        with self._state:
            self._place(position)

    def _played(self, position: int) -> None:
        with self._state:
            self._place(position)
            self._mover = "play"

    def _set_controls(
        self, shell: Shell, arguments: Mapping[str, Any], position: int, count: int, mover: str, which: str
    ) -> None:
        """Have the controls show what is."""
        self._placing = threading.get_ident()
        try:
            for name in ("position", "play"):
                widget = self._controls[name]
                if widget.max != count - 1:
                    shell.change(widget, max=count - 1)
                if name == "position" or mover != "play":
                    shell.change(widget, value=position)
            shell.change(self._controls["stops"], value=which)
            for control in CONTROLS:
                self._set_control(shell, control, _value(arguments, control.argument))
            given = any(self._controls[name].disabled for name in ("crashes", "faults"))
            self._controls["draw-faults"].layout.display = None if given else "none"
        finally:
            self._placing = 0

    def _set_control(self, shell: Shell, control: Control, value: Any) -> None:
        widget = self._controls[control.argument]
        fits = type(value) in control.types and not isinstance(value, bool)
        label = control.label if fits else f"{control.label}: as given"
        shell.change(widget, disabled=not fits, description=label)
        if fits:
            if "max" in control.traits and value > widget.max:
                shell.change(widget, max=value)
            if "min" in control.traits and value < widget.min:
                shell.change(widget, min=value)
            shell.change(widget, value=value)

    # Where it stands.

    def _stop(self) -> Stop:
        return self._stops[self._position]

    def _now(self) -> float:
        """The event it stands at; a little less, if it stands at a step of the disk before it."""
        stop = self._stop()
        return stop.event - 0.5 if stop.step is not None else stop.event

    def _place(self, position: int) -> None:
        self._position = min(max(position, 0), len(self._stops) - 1)
        self._mover = ""
        self._ticker.ring()

    def _restop(self) -> None:
        """The stops have changed: stand where it stood in time."""
        stood = self._stop()
        at = self._explored.at(stood)
        self._stops = self._explored.stops(self._which)

        def far(place: int) -> tuple[float, int, bool]:
            stop = self._stops[place]
            return abs(self._explored.at(stop) - at), abs(stop.event - stood.event), stop.step != stood.step

        nearest = min(range(len(self._stops)), key=far)
        self._place(nearest)

    # Simulating.

    def _made(self, arguments: Mapping[str, Any], result: SimulationResult | None) -> Explored:
        """Simulate; the result, laid out."""
        began = clock.monotonic()
        with _one_at_a_time:
            explored = Explored(result or simulate(**arguments), f"rq{self._number}")
        with self._state:
            self._seconds_a_job = (clock.monotonic() - began) / max(len(explored.result.jobs), 1)
            self._known[_key(arguments)] = explored
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return explored

    def _show(self, explored: Explored, arguments: dict[str, Any]) -> None:
        """Show a result; the scrubber stays where it was in time."""
        with self._state:
            at = self._explored.at(self._stop())
            self._arguments, self._explored = arguments, explored
            self._stops = explored.stops(self._which)
            self._place(min(range(len(self._stops)), key=lambda place: abs(explored.at(self._stops[place]) - at)))
        self._ticker.ring()

    def _ask(self, arguments: dict[str, Any]) -> None:
        """Have the thread simulate this, instead of whatever else waits."""
        with self._state:
            self._wanted = arguments
            self._run_thread()

    def _look_at_disk(self) -> None:
        """Have the thread find out about the platter, if nobody knows."""
        if self._explored.trace is None and not self._explored.has_no_trace and not self._is_closed:
            self._run_thread()

    def _run_thread(self) -> None:
        self._settled.clear()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="rqlab-explorer", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        """Do what is wanted, the newest wish first, until there is nothing to do."""
        while True:
            with self._state:
                wanted, explored = self._wanted, self._explored
                is_idle = wanted is None and (explored.trace is not None or explored.has_no_trace)
                if self._is_closed or is_idle:
                    self._thread = None
                    self._settled.set()
                    return
            try:
                if wanted is not None:
                    self._simulate(wanted)
                else:
                    self._look_closer(explored)
            except Exception as error:  # noqa: BLE001  # of whatever kind: the panel shows it, a thread has nobody to raise to
                self.show_error(error)
            self._ticker.ring()

    def _simulate(self, wanted: dict[str, Any]) -> None:
        try:
            explored = self._known.get(_key(wanted)) or self._made(wanted, None)
        finally:
            with self._state:
                is_newest = self._wanted is wanted
                if is_newest:
                    self._wanted = None
        if is_newest:
            self._show(explored, wanted)

    def _look_closer(self, explored: Explored) -> None:
        try:
            with _one_at_a_time:
                explored.trace = explored.result.trace
        except RQLabError as error:
            explored.say_why_no_trace(str(error))
        except BaseException:
            explored.say_why_no_trace("see above")
            raise
        with self._state:
            if self._explored is explored:
                self._restop()


def _busy() -> str:
    """What stands above a result while the next is made."""
    return f'<div style="color:{svg.QUIET}" role="status">simulating …</div>'


def _value(arguments: Mapping[str, Any], argument: str) -> Any:
    """What the control of an argument shows."""
    value = arguments.get(argument)
    if argument != "faults" or (isinstance(value, list | tuple) and value):
        return value
    return next((words for words, amount in FAULTS.items() if amount == (value if value != () else 0.0)), value)


def _of_result(result: SimulationResult) -> dict[str, Any]:
    """The arguments that give this result again: its faults as a plan."""
    given = {name: value for name, value in result.header.arguments.items() if name != "handler"}
    return START | given | {"seed": result.seed, "crashes": [], "faults": list(result.plan)}


def _key(arguments: Mapping[str, Any]) -> str:
    return repr(sorted(arguments.items(), key=lambda item: item[0]))
