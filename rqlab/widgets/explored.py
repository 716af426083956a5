"""A simulation laid out for a scrubber: where it can stop, and what every part shows there. Pure, and without widgets.

An `Explored` is made once a result; after that a stop costs a few milliseconds. What the disk did is added when
it is known, as it takes another run to find out.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple

from rqlab import html
from rqlab.charts import timelines
from rqlab.charts.histories import fault_look, names_in
from rqlab.charts.platters import PlatterView
from rqlab.durability import MODES
from rqlab.html import explored, svg
from rqlab.html.platter import platter
from rqlab.simulation.faults import FAULTS
from rqlab.simulation.history import Happening
from rqlab.simulation.result import SimulationResult
from rqlab.simulation.sectors import DiskStep, Trace
from rqlab.widgets.captions import Captions, of_step
from rqlab.widgets.instants import GLYPHS, Instants

MOST_RUNS = 400  # in the timeline: the newest
MOST_LANES = 40
WIDTH = 760  # pixels


class Stop(NamedTuple):
    """One place at which the scrubber can stand: right after an event, or after a step of the disk before it."""

    event: int
    step: DiskStep | None = None


def _is_crash_or_its_trail(happening: Happening) -> bool:
    fault = FAULTS.get(happening.kind) if happening.detail.get("fault") else None
    return fault is not None or happening.kind in ("lost", "undone", "recovered", "stall", "refused", "violation")


#: Where the scrubber stops, by what its control says. The last also stops at what the disk does between events.
STOPS: dict[str, Callable[[Happening], bool]] = {
    "every event": lambda happening: True,
    "all but heartbeats": lambda happening: happening.kind != "heartbeat",
    "faults and their consequences": _is_crash_or_its_trail,
    "every event and disk step": lambda happening: True,
}
WITH_DISK = "every event and disk step"


class Explored:
    """One result, and what a scrubber shows of it. `name` keeps its pictures apart from others on the page."""

    def __init__(self, result: SimulationResult, name: str = "rq") -> None:
        self.result = result
        self.trace: Trace | None = None  #: of the disk; None: not known yet, or it cannot be
        self.has_no_trace = False
        self.why_no_trace = "the platter is being worked out: the same plan runs again, and somebody looks at the disk"
        self.names: Mapping[str, str] = names_in(result.jobs)
        given = result.header.arguments
        self.instants = Instants(result.history, str(given["durability"]), int(given["workers"]))
        has_one_process = MODES[str(given["durability"])].processes != "many"
        self.captions = Captions(result.history, self.names, has_one_process)
        self._name = name
        self._drawn = timelines.marks(result, "worker", MOST_LANES, MOST_RUNS)

    def say_why_no_trace(self, why: str) -> None:
        """It cannot be known where the sectors were."""
        self.has_no_trace, self.why_no_trace = True, f"no platter: {why}"

    @property
    def alt(self) -> str:
        """The timeline in words."""
        return self._drawn.said()

    @property
    def verdict(self) -> str:
        """Whether safety holds, the promise beside what was lost, and the line that runs it again."""
        return html.verdict(self.result)

    @cached_property
    def timeline(self) -> str:
        """The whole run, a lane a worker."""
        hidden = (
            f'<div style="color:{svg.QUIET}">{svg.text(self._drawn.hidden, 200)}</div>' if self._drawn.hidden else ""
        )
        return hidden + svg.timeline(self._drawn, WIDTH, f"{self._name}-timeline")

    def stops(self, which: str) -> list[Stop]:
        """The places of a row of STOPS, in order; at least one."""
        wanted = STOPS[which]
        stops = [Stop(each.n) for each in self.result.history if wanted(each)]
        if which == WITH_DISK and self.trace is not None:
            stops += [Stop(step.event, step) for step in self.trace.steps() if step.event < len(self.result.history)]
            stops.sort(key=lambda stop: (stop.event, stop.step is None, stop.step or ()))
        return stops or [Stop(0)]

    @property
    def crashes(self) -> list[int]:
        """The events that are crashes."""
        return self.instants.crashes

    # What is shown at a stop.

    def at(self, stop: Stop) -> float:
        """The instant, in seconds."""
        return stop.step.at if stop.step is not None else self._happening(stop.event).at

    def caption(self, stop: Stop) -> str:
        """What happened, in a sentence, and because of what."""
        history = self.result.history
        if not history:
            return explored.caption("no event", 0.0, "Nothing happened.", [])
        if stop.step is not None:
            place = f"the disk, before event {stop.event} of {len(history):,}"
            return explored.caption(place, stop.step.at, of_step(stop.step), [], "◇")
        happening = history[stop.event]
        causes = [(cause.at, says) for cause, says in self.reasons(stop)]
        place = f"event {stop.event} of {len(history):,}"
        return explored.caption(place, happening.at, self.sentence(stop), causes, self._glyph(happening))

    def sentence(self, stop: Stop) -> str:
        """What happened, as plain text; a crash says what was on the platter."""
        if stop.step is not None:
            return of_step(stop.step)
        is_fault = self.result.history[stop.event].detail.get("fault")
        view = self.trace.at_event(stop.event) if self.trace is not None and is_fault else None
        return self.captions.at(stop.event, view)

    def reasons(self, stop: Stop) -> list[tuple[Happening, str]]:
        """Because of what it happened, the nearest first."""
        return self.captions.causes(stop.event) if stop.step is None and self.result.history else []

    def standing(self, stop: Stop) -> str:
        """Jobs by state, and what every worker is at."""
        at = self.at(stop)
        if not len(self.instants):
            return explored.standing({}, [])
        instant = self.instants[max(stop.event - (stop.step is not None), 0)]
        workers = []
        for worker in instant.workers.values():
            is_at = worker.standing(at)
            workers.append((worker.name, f"{GLYPHS[is_at]} {is_at}", worker.said(at, self.names)))
        return explored.standing(instant.counts, workers)

    def cursor(self, stop: Stop) -> str:
        """Where it is in the timeline."""
        return svg.cursor(self._drawn, self.at(stop), WIDTH)

    def platter(self, stop: Stop) -> str:
        """Where the sectors of the store's files are."""
        if self.trace is None:
            return f'<div style="color:{svg.QUIET}">{svg.text(self.why_no_trace, 300)}</div>'
        return platter(self._view(self.trace, stop), f"{self._name}-platter")

    def platter_lines(self, stop: Stop) -> list[str]:
        """The same in words; nothing where it is not known."""
        return [] if self.trace is None else list(self._view(self.trace, stop).lines())

    def _view(self, trace: Trace, stop: Stop) -> PlatterView:
        return trace.at_step(stop.step) if stop.step is not None else trace.at_event(stop.event)

    def pieces(self, stop: Stop) -> dict[str, str]:
        """All that changes as the scrubber moves, by the name of its piece."""
        return {
            "caption": self.caption(stop),
            "cursor": self.cursor(stop),
            "standing": self.standing(stop),
            "platter": self.platter(stop),
        }

    def said(self, stop: Stop) -> str:
        """The same in a line of plain text."""
        if not self.result.history:
            return "nothing happened"
        return f"event {stop.event} of {len(self.result.history):,}, at {self.at(stop):.3f} s: {self.sentence(stop)}"

    def _happening(self, number: int) -> Happening:
        return self.result.history[number] if self.result.history else Happening(0, 0.0, "start")

    def _glyph(self, happening: Happening) -> str:
        """A second cue for what kind of event it is."""
        if happening.kind in ("lost", "undone"):
            return "∅"
        if happening.kind == "violation":
            return "✗"
        return fault_look(happening.kind).glyph if happening.detail.get("fault") else "•"
