"""How things stood right after each event of a history: jobs by state, and what each worker was at. Pure.

One pass over the history; after it any event is found at once, however long the history is.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rqlab.charts.histories import moment
from rqlab.durability import MODES
from rqlab.job import State
from rqlab.lifecycle import Event
from rqlab.simulation.history import Happening

CRASHES = ("worker crash", "process kill", "power cut")
IDLE, ACTIVE, FROZEN, STOPPING, DOWN = "idle", "active", "frozen", "stopping", "down"
#: A glyph beside each word.
GLYPHS = {IDLE: "○", ACTIVE: "▶", FROZEN: "❄", STOPPING: "↩", DOWN: "✗"}


class Held(NamedTuple):
    """A job that is active, and until when its lease holds."""

    job: str
    lease_until: float | None  #: seconds


class WorkerNow(NamedTuple):
    """A worker at an instant."""

    name: str
    is_at: str = IDLE  #: idle, active, frozen, stopping or down; `active` follows from what it holds
    until: float | None = None  #: when it comes back by itself, seconds; None: an event says so
    held: tuple[Held, ...] = ()  #: by it, or by the run of it that died

    def standing(self, at: float) -> str:
        """What it is at, by an instant."""
        gone = self.is_at != IDLE and (self.until is None or at < self.until)
        return self.is_at if gone else ACTIVE if self.held else IDLE

    def said(self, at: float, names: Mapping[str, str]) -> str:
        """What it holds, and how much of the lease is left."""
        parts = []
        for held in self.held:
            left = "" if held.lease_until is None else f", lease {_left(held.lease_until - at)}"
            parts.append(f"{names.get(held.job, held.job)}{left}")
        return "; ".join(parts)


def _left(seconds: float) -> str:
    return f"{moment(seconds)} left" if seconds > 0 else "has run out"


class Instant(NamedTuple):
    """How things stood right after an event."""

    counts: Mapping[str, int]  #: jobs by state; "lost" too
    workers: Mapping[str, WorkerNow]


class Instants:
    """An Instant for each event."""

    def __init__(self, happenings: Sequence[Happening], durability: str, workers: int) -> None:
        self._each_has_a_process = MODES[durability].processes == "many"
        self._workers = {f"worker-{n}": WorkerNow(f"worker-{n}") for n in range(1, workers + 1)}
        self._states: dict[str, str] = {}
        self._holders: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._instants = [self._follow(happening) for happening in happenings]
        self.crashes = [each.n for each in happenings if each.kind in CRASHES and each.detail.get("fault")]

    def __len__(self) -> int:
        return len(self._instants)

    def __getitem__(self, number: int) -> Instant:
        return self._instants[number]

    def _follow(self, happening: Happening) -> Instant:
        if happening.job:
            self._job(happening)
        if happening.detail.get("fault") or happening.kind in ("start", "thaw", "calm"):
            self._workers = dict(self._workers)
            self._machinery(happening)
        return Instant(self._counts, self._workers)

    # Jobs.

    def _job(self, happening: Happening) -> None:
        state = happening.detail.get("state")
        if happening.kind == "lost":
            state = "lost"
        elif happening.kind == Event.PURGE:
            state = "removed"
        if state is None:
            return
        job, before = happening.job, self._states.get(happening.job)
        if state != before:
            self._states[job] = str(state)
            self._counts = {**self._counts, str(state): self._counts.get(str(state), 0) + 1}
            if before is not None:
                self._counts[before] -= 1
        if state == State.ACTIVE:
            self._hold(job, happening.worker, happening.detail.get("lease_until"))
        else:
            self._let_go(job)

    def _hold(self, job: str, worker: str, lease_until: float | None) -> None:
        if self._holders.get(job) != worker:
            self._let_go(job)
        now = self._workers.get(worker)
        if now is None:
            return
        others = tuple(held for held in now.held if held.job != job)
        self._holders[job] = worker
        self._workers = {**self._workers, worker: now._replace(held=(*others, Held(job, lease_until)))}

    def _let_go(self, job: str) -> None:
        worker = self._holders.pop(job, None)
        if worker is not None:
            now = self._workers[worker]
            held = tuple(each for each in now.held if each.job != job)
            self._workers = {**self._workers, worker: now._replace(held=held)}

    # Workers.

    def _machinery(self, happening: Happening) -> None:
        at, target = happening.at, happening.worker
        match happening.kind:
            case "worker crash":
                self._become(self._just(target), DOWN, at + float(happening.detail.get("seconds", 0)))
            case "process kill":
                self._become(self._beside(target), DOWN)
            case "power cut":
                self._become(list(self._workers), DOWN)
            case "redeploy":
                self._become(list(self._workers), STOPPING)
            case "freeze":
                self._become(self._beside(target), FROZEN)
            case "thaw":
                self._become([name for name in self._beside(target) if self._workers[name].is_at == FROZEN], IDLE)
            case "calm":
                self._become([name for name, each in self._workers.items() if each.is_at == FROZEN], IDLE)
            case "start":
                self._become(self._in_process(target), IDLE)

    def _become(self, names: Sequence[str], is_at: str, until: float | None = None) -> None:
        for name in names:
            self._workers[name] = self._workers[name]._replace(is_at=is_at, until=until)

    def _just(self, target: str) -> list[str]:
        return [target] if target in self._workers else []

    def _beside(self, target: str) -> list[str]:
        """The workers in the target's process."""
        return self._just(target) if self._each_has_a_process else list(self._workers)

    def _in_process(self, process: str) -> list[str]:
        if not self._each_has_a_process:
            return list(self._workers)
        return self._just(f"worker-{process.removeprefix('process ')}")
