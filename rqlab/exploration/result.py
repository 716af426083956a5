"""What an exploration found: a verdict, each failure with its cause, and what was tried, counted.

Everything is made of the rows that came back, one a seed. pandas and matplotlib are imported when they are needed.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from rqlab.charts.chart import Chart
from rqlab.charts.histories import times
from rqlab.charts.looks import count
from rqlab.exploration.hunting import RAISED, Row, Smaller
from rqlab.html import cards
from rqlab.lifecycle import Event
from rqlab.simulation.checks import CHECKS
from rqlab.simulation.faults import FAULTS, Fault
from rqlab.simulation.history import KINDS
from rqlab.simulation.platter import CRASH_KINDS
from rqlab.simulation.result import SimulationResult
from rqlab.simulation.windows import WINDOWS

if TYPE_CHECKING:
    import pandas

OUTSIDE = "no crash"  # the crash point of what broke at no crash
MOST_SHOWN = 5  # failures

#: Columns of `runs` that come from the row as they are.
PLAIN = (
    "seed", "durability", "ok", "check", "says", "events", "faults", "power_cuts", "operations", "pushed",
    "simulated_seconds", "seconds", "hash", "replay",
)  # fmt: skip


class Failure(NamedTuple):
    """A seed under which a promise broke."""

    seed: int
    durability: str
    check: str  #: the row of CHECKS; "raised" where the simulator itself did
    says: str
    replay_line: str  #: runs the seed as it was
    smaller: Smaller | None = None  #: the smallest plan that breaks the same promise; None: not looked for
    kept: Path | None = None  #: its file in the bug base
    was_known: bool = False  #: it was run because the bug base has it

    @property
    def shrunk(self) -> SimulationResult | None:
        """The smallest simulation that breaks the same promise, without its history: `.replay()` makes it."""
        return None if self.smaller is None else SimulationResult(self.smaller.header, ())

    @property
    def plan(self) -> tuple[Fault, ...]:
        """The faults of the smallest; () where it was not shrunk."""
        return () if self.smaller is None else tuple(self.smaller.header.plan)

    def lines(self) -> Iterator[str]:
        """What to read and what to run."""
        known = ", known to the bug base" if self.was_known else ""
        yield f"seed {self.seed}, {self.durability}{known}: {self.says}"
        yield f"    replay: {self.replay_line}"
        if self.smaller is not None:
            faults = times(len(self.smaller.header.plan), "fault")
            yield f"    shrunk to {faults} in {self.smaller.runs} runs: {self.smaller.header.replay}"
        if self.kept is not None:
            yield f"    kept: {self.kept}"


class Death(NamedTuple):
    """Seeds that a worker process had when it died."""

    seeds: tuple[tuple[int, str], ...]  #: (seed, durability); one, if a process of ours died
    says: str

    @property
    def said(self) -> str:
        listed = ", ".join(f"{seed} ({durability})" for seed, durability in self.seeds[:20])
        return f"in flight when {self.says}: {listed}" + (" …" if len(self.seeds) > 20 else "")


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """How it was explored."""

    planned: int  #: runs: seeds times modes
    seconds: float  #: of the wall
    executor: str
    is_complete: bool  #: False: interrupted, or stopped after too many failures
    why: str  #: it is not
    options: dict[str, str]  #: arguments that are not simulate's defaults, as text


class Exploration:
    """What `rqlab.explore` found. In a notebook it shows itself; `plot()` draws what each crash took."""

    def __init__(
        self, rows: Sequence[Row], failures: Sequence[Failure], died: Sequence[Death], known: int, facts: Facts
    ) -> None:
        self.rows = sorted(
            rows, key=lambda row: (row.durability, row.seed)
        )  #: one a run, the bug base's not among them
        self.failures = list(failures)  #: those that the bug base knew first
        self.died = list(died)
        self.known = known  #: plans of the bug base that were run first
        self.facts = facts

    @property
    def ok(self) -> bool:
        """Whether every promise held in everything that was run, and no process died."""
        return not self.failures and not self.died

    @property
    def is_complete(self) -> bool:
        """Whether all seeds were run."""
        return self.facts.is_complete

    def __len__(self) -> int:
        return len(self.rows)

    # Figures.

    @cached_property
    def coverage(self) -> Counter[str]:
        """How often everything happened that may; what never did is 0.

        Faults ("power cut"), ways of losing what was not synced ("cut: torn"), windows that a cut fell into ("window:
        checkpoint"), events ("event: stall"), and questions ("check: I3").
        """
        counted = Counter(dict.fromkeys(_everything(), 0))
        for row in self.rows:
            counted.update(row.coverage)
            counted.update({f"check: {check}": times for check, times in row.asked.items()})
            counted.update(f"cut: {loss.how}" for loss in row.losses if loss.how in CRASH_KINDS)
        return counted

    @property
    def missed(self) -> list[str]:
        """What of `coverage` never happened: in memory, for example, no disk was full."""
        return [name for name in _everything() if not self.coverage[name]]

    @property
    def rates(self) -> dict[str, float]:
        """Seeds, events, crashes recovered from, power cuts, and simulated hours, each a second of this machine's."""
        seconds = max(self.facts.seconds, 1e-9)
        totals = {
            "seeds": len(self.rows),
            "events": sum(row.events for row in self.rows),
            "recoveries": sum(len(row.losses) for row in self.rows),
            "cuts": sum(row.power_cuts for row in self.rows),
            "simulated_hours": sum(row.simulated_seconds for row in self.rows) / 3600,
        }
        return {f"{name}_per_second": total / seconds for name, total in totals.items()}

    @cached_property
    def runs(self) -> "pandas.DataFrame":
        """One row a run: seed, durability, ok, the check that broke, what was counted, its hash and replay line."""
        import pandas

        rows = [
            (
                *(getattr(row, name) for name in PLAIN),
                len(row.losses),
                sum(loss.writes for loss in row.losses),
                sum(loss.jobs for loss in row.losses),
            )
            for row in self.rows
        ]
        frame = pandas.DataFrame(rows, columns=[*PLAIN, "recoveries", "writes_lost", "jobs_lost"])
        frame.attrs.update(seconds=self.facts.seconds, executor=self.facts.executor, options=self.facts.options)
        return frame

    @cached_property
    def crashes(self) -> "pandas.DataFrame":
        """One row a crash: seed, durability, crash (how, and in which window), verdict, writes and jobs lost, replay.

        The verdict is `held`, `lost` (as the mode allows) or `violated`; what broke elsewhere has a row "no crash".
        """
        import pandas

        columns = ["seed", "durability", "crash", "verdict", "writes_lost", "jobs_lost", "replay"]
        frame = pandas.DataFrame([crash for row in self.rows for crash in _crashes(row)], columns=columns)
        frame["crash"] = pandas.Categorical(frame["crash"], categories=_points())
        frame["verdict"] = pandas.Categorical(frame["verdict"], categories=["held", "lost", "violated"])
        return frame

    def plot(self, **how: Any) -> Chart:
        """Seeds against crash points: `rqlab.charts.outcome_grid` of `crashes`, and its arguments."""
        from rqlab.charts import outcome_grid

        frame = self.crashes.copy()
        if frame["durability"].nunique() > 1:
            frame["seed"] = [f"{mode} {seed}" for seed, mode in zip(frame["seed"], frame["durability"], strict=True)]
        return outcome_grid(frame, **how)

    # Words.

    @property
    def verdict(self) -> str:
        """One sentence."""
        modes = list(dict.fromkeys(row.durability for row in self.rows))
        ran = f"{times(len(self.rows), 'seed' if len(modes) < 2 else 'run')} in {', '.join(modes) or 'no mode'}"
        known_failures = sum(failure.was_known for failure in self.failures)
        broken = len(self.failures) - known_failures
        held = f"{broken:,} broke a promise" if broken else "every promise held"
        if self.died:
            held += f", {len(self.died)} ended their process"
        known = f"; {times(self.known, 'kept plan')} run first" if self.known else ""
        known += f", {known_failures} of them still broken" if known_failures else ""
        stopped = "" if self.is_complete else f" ({self.facts.why}; {self.facts.planned:,} were planned)"
        return f"{ran}: {held}{known}{stopped}"

    def speed(self) -> str:
        """The rates in a line."""
        shown = {name.removesuffix("_per_second").replace("_", " "): count(rate) for name, rate in self.rates.items()}
        said = ", ".join(f"{rate} {name}/s" for name, rate in shown.items())
        return f"{self.facts.seconds:.1f} s on {self.facts.executor}: {said}"

    def __repr__(self) -> str:
        lines = [self.verdict, self.speed()]
        for title, names in _groups().items():
            lines.append(f"{title}: {self._counted(names)}")
        for failure in self.failures[:MOST_SHOWN]:
            lines += ["", *failure.lines()]
        if len(self.failures) > MOST_SHOWN:
            lines.append(f"and {len(self.failures) - MOST_SHOWN} more, in .failures")
        lines += [death.said for death in self.died]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        light, colour = ("✓ SAFETY HOLDS", cards.HELD) if self.ok else ("✗ SAFETY BROKEN", cards.BROKEN)
        if self.ok and not self.rows:
            light, colour = "nothing was run", cards.OPEN
        rates = [*self.rates.items(), ("seconds", self.facts.seconds)]
        head = [name.replace("_per_second", "/s").replace("_", " ") for name, _ in rates]
        speed = cards.Grid((*head, "by"), [[*(count(figure) for _, figure in rates), self.facts.executor]])
        tried = [(title, self._counted(names)) for title, names in _groups().items()]
        lines = [line for failure in self.failures[:MOST_SHOWN] for line in failure.lines()]
        lines += [death.said for death in self.died]
        below = [cards.Grid(("tried", "times"), tried, frozenset({"tried", "times"}))]
        return cards.card(light, colour, self.verdict, [speed], lines, below)

    def _counted(self, names: Sequence[str]) -> str:
        return ", ".join(f"{_bare(name)} {count(self.coverage[name])}" for name in names)


def _groups() -> Mapping[str, list[str]]:
    return {
        "faults": list(FAULTS),
        "cuts": [f"cut: {kind}" for kind in CRASH_KINDS],
        "windows": [f"window: {window}" for window in WINDOWS],
        "events": [f"event: {event}" for event in (*Event, *KINDS)],
        "checks": [f"check: {check}" for check in CHECKS],
    }


def _everything() -> list[str]:
    return [name for names in _groups().values() for name in names]


def _bare(name: str) -> str:
    return name.rpartition(": ")[2]


def _points() -> list[str]:
    """Every crash point, in the order in which the picture has them."""
    kinds = ["kill", "exit", *CRASH_KINDS]
    return [*(f"{kind}{where}" for kind in kinds for where in ("", *(f", {name}" for name in WINDOWS))), OUTSIDE]


def _crashes(row: Row) -> Iterator[tuple[Any, ...]]:
    at_crash = row.check.startswith("R") and bool(row.losses)
    for number, loss in enumerate(row.losses):
        broke = at_crash and number == len(row.losses) - 1
        verdict = "violated" if broke else "lost" if loss.writes else "held"
        point = ", ".join([loss.how, *loss.windows[:1]])
        yield row.seed, row.durability, point, verdict, loss.writes, loss.jobs, row.replay
    if not row.ok and not at_crash:
        yield row.seed, row.durability, OUTSIDE, "violated", 0, 0, row.replay


assert RAISED not in CHECKS, "it stands for no check"
