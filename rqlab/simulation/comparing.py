"""One plan in every durability mode: what each acknowledged, what each lost, and what it had promised.

The same jobs, workers and faults; only the mode differs. What a write costs is not simulated, so speed is told in what
is: fsyncs, and how many jobs were completed a simulated second, crashes and recoveries included. `rqlab.measure` has
the speed of real disks.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rqlab import frames
from rqlab.charts.chart import Chart
from rqlab.charts.histories import times
from rqlab.charts.looks import three_digits
from rqlab.durability import MODES
from rqlab.errors import ValidationError
from rqlab.html import cards
from rqlab.job import State
from rqlab.lifecycle import Event
from rqlab.simulation.faults import FAULTS, Fault, Plan
from rqlab.simulation.platter import CRASH_KINDS
from rqlab.simulation.result import SimulationResult
from rqlab.simulation.run import DEFAULTS, drawn_plan, simulate, story_of, written

if TYPE_CHECKING:
    import pandas

#: The crashes of a comparison that names none: where in the story, kind, how. Each strikes in the middle of the next
#: write to the disk, when most is unsafe; a cut that loses all that was not synced tells the modes apart best.
CRASHES = ((0.35, "process kill", ""), (0.7, "power cut", "lost/journalled"))

#: What the text shows: columns of the frame, and of writes and jobs lost one together.
SHOWN = {
    "mode": "mode",
    "pushed": "jobs pushed",
    "completed": "completed",
    "kill": "kill -9 lost",
    "power_cut": "a power cut lost",
    "may_lose": "may lose",
    "held": "held",
    "fsyncs": "fsyncs",
    "jobs_per_second": "jobs/s (virtual)",
}
WORDS = frozenset({"mode", "kill -9 lost", "a power cut lost", "may lose", "held"})


def compare(
    modes: str | Iterable[str] | None = None,
    *,
    seed: int = 7,
    crashes: int | Sequence[Fault] | None = None,
    faults: Sequence[Fault] | float | None = (),
    **options: Any,
) -> "Comparison":
    """Run one plan in every durability mode, and show side by side what each lost.

        rqlab.compare()                     # a kill and a power cut, each in the middle of a write
        rqlab.compare(["durable", "hybrid"], seed=8, crashes=3, faults=None)

    `modes` are rows of MODES, all if left out. `crashes` and `faults` are those of `rqlab.simulate`: drawn once from
    the seed, then the same in every mode; left out, one process is killed and the power is cut once. All other
    `options` are simulate's too. In memory there is no disk, so its faults are left out there.

    Raises ValidationError for a wrong argument.
    """
    chosen = _modes(modes)
    for name in ("durability", "store"):
        if name in options:
            raise ValidationError(f"compare: expected modes, not {name}: the disk is what they differ in")
    if "cuts" in options:
        raise ValidationError(
            "compare: expected one plan for all modes, not cuts: simulate takes them, a mode at a time"
        )
    unknown = sorted(options.keys() - DEFAULTS.keys())
    if unknown:
        raise ValidationError(f"compare: simulate has no argument {', '.join(unknown)}; it has {', '.join(DEFAULTS)}")
    given = {**options, "seed": seed, "faults": faults}
    given["crashes"] = _telling(story_of(**given)) if crashes is None else crashes
    plan = drawn_plan(**given)
    results = {
        mode: simulate(0, seed=seed, faults=_possible(plan, mode), durability=mode, **options) for mode in chosen
    }
    named = {
        "modes": modes,
        "seed": seed,
        "crashes": crashes,
        **({"faults": faults} if faults != () else {}),
        **options,
    }
    said = ", ".join(
        f"{name}={written(value)}" for name, value in named.items() if value is not None or name == "faults"
    )
    return Comparison(results, plan, f"rqlab.compare({said})")


def _modes(modes: str | Iterable[str] | None) -> list[str]:
    if modes is None:
        return list(MODES)
    chosen: list[Any] = list(modes) if isinstance(modes, Iterable) and not isinstance(modes, str) else [modes]
    unknown = [mode for mode in chosen if not isinstance(mode, str) or mode not in MODES]
    if unknown or not chosen:
        raise ValidationError(f"modes: expected some of {', '.join(MODES)}; got {chosen!r:.100}")
    return chosen


def _telling(span: float) -> list[Fault]:
    return [
        Fault(round(share * span, 3), kind, "worker-1" if kind == "process kill" else "", 2.0, how, operation=1)
        for share, kind, how in CRASHES
    ]


def _possible(plan: Plan, mode: str) -> Plan:
    """In memory no disk breaks."""
    return tuple(fault for fault in plan if mode != "memory" or not FAULTS[fault.kind].needs_disk)


class Comparison:
    """What one plan came to in several modes. In a notebook it shows itself; `plot()` draws what was lost."""

    def __init__(self, results: Mapping[str, SimulationResult], plan: Plan, replay_line: str) -> None:
        self.results = MappingProxyType(dict(results))  #: by mode
        self.plan = plan
        self.replay_line = replay_line

    @property
    def ok(self) -> bool:
        """Whether every promise held in every mode."""
        return all(result.ok for result in self.results.values())

    @property
    def seed(self) -> int:
        return next(iter(self.results.values())).seed

    @cached_property
    def frame(self) -> "pandas.DataFrame":
        """One row a mode: pushed (jobs whose push was acknowledged), completed, jobs and acknowledged writes lost at
        kill -9 and at power cuts, what the mode may lose, whether its promises held, fsyncs, and jobs completed a
        simulated second."""
        rows = [_row(mode, result) for mode, result in self.results.items()]
        return frames.compare(rows, seed=self.seed, replay=self.replay_line)

    def plot(self, **how: Any) -> Chart:
        """What each mode lost at which crash: `rqlab.charts.losses` of the frame, and its arguments."""
        from rqlab.charts import losses

        return losses(self.frame, **how)

    def __repr__(self) -> str:
        grid = self._grid()
        lines = [list(grid.head), *map(list, grid.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(grid.head))]
        table = [
            "  ".join(
                cell.ljust(width) if name in WORDS else cell.rjust(width)
                for cell, width, name in zip(line, widths, grid.head, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*table, "", *self._notes()])

    def _repr_html_(self) -> str:
        light, colour = ("✓ SAFETY HOLDS", cards.HELD) if self.ok else ("✗ SAFETY BROKEN", cards.BROKEN)
        title = f"seed {self.seed}: the same {len(self.plan)} faults in every mode"
        return cards.card(light, colour, title, [self._grid()], self._notes())

    def _grid(self) -> cards.Grid:
        rows = [[_shown(name, row) for name in SHOWN] for row in self.frame.to_dict("records")]
        return cards.Grid(tuple(SHOWN.values()), rows, WORDS)

    def _notes(self) -> list[str]:
        faults = "; ".join(f"{fault.kind} at {fault.at:g} s" for fault in self.plan) or "none"
        lines = [f"faults: {faults}"]
        lines += [f"BROKEN in {mode}: {each}" for mode, result in self.results.items() for each in result.violations]
        lines += [f"replay: {result.replay_line}" for result in self.results.values() if not result.ok]
        if self.ok:
            lines.append(f"replay: {self.replay_line}")
        return lines


def _row(mode: str, result: SimulationResult) -> dict[str, Any]:
    losses = result.header.losses
    at_kill = [loss for loss in losses if loss.how == "kill"]
    at_cut = [loss for loss in losses if loss.how in CRASH_KINDS]
    finished = [
        each for each in result.history if each.detail.get("state") == State.COMPLETED or each.kind == Event.ACK
    ]
    completed = int((result.jobs["state"] == State.COMPLETED).sum())
    promised = MODES[mode]
    alike = promised.lost_at_power_cut in (promised.lost_at_kill, "the same")
    return {
        "mode": mode,
        "pushed": sum(each.kind == Event.PUSH for each in result.history),
        "completed": completed,
        "jobs_lost_kill": sum(loss.jobs for loss in at_kill),
        "jobs_lost_power_cut": sum(loss.jobs for loss in at_cut),
        "writes_lost_kill": sum(loss.writes for loss in at_kill),
        "writes_lost_power_cut": sum(loss.writes for loss in at_cut),
        "may_lose": promised.lost_at_kill if alike else f"{promised.lost_at_kill}; {promised.lost_at_power_cut}",
        "held": result.ok,
        "fsyncs": result.header.syncs,
        "jobs_per_second": completed / finished[-1].at if finished else 0.0,
    }


def _shown(name: str, row: Mapping[str, Any]) -> str:
    if name in ("kill", "power_cut"):
        writes, jobs = row[f"writes_lost_{name}"], row[f"jobs_lost_{name}"]
        return f"{times(writes, 'write')}, {times(jobs, 'job')}" if writes else "nothing"
    value = row[name]
    if name == "held":
        return "yes" if value else "NO"
    return three_digits(value) if isinstance(value, float) else str(value).replace("`", "")
