"""What can break, as data: a plan is a list of faults, and FAULTS says how each kind is drawn and how it strikes.

A fault names an instant, a kind and whom it strikes; the rest is its own. Nothing here decides anything about a job.
A new fault is one row.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from rqlab import arguments
from rqlab.errors import ValidationError
from rqlab.simulation.chance import Chance
from rqlab.simulation.platter import CRASH_KINDS, NAME_MODELS
from rqlab.simulation.windows import IN_LOG, WINDOWS

CRASHES = ("worker crash", "process kill", "power cut")
OF_JOBS = ("poison job", "hanging handler")
GO_BACK = ("wall jump", "drift")  # their seconds may be negative
TARGET = re.compile(r"(worker-\d+|job \d+)?")


class Fault(msgspec.Struct, frozen=True, omit_defaults=True, repr_omit_defaults=True):
    """One thing that breaks."""

    at: float  #: seconds since the world begins
    kind: str  #: a row of FAULTS
    target: str = ""  #: a worker, or "job 17"; nobody: the machine
    seconds: float = 0.0  #: how long, how far, how late; FAULTS says which
    how: str = ""  #: of a power cut: a row of CRASH_KINDS, and of NAME_MODELS: "torn/strict"
    operation: int = 0  #: of a kill or power cut: before which operation of the target's next write; 0: at once
    window: str = ""  #: of a power cut: the next time that this row of WINDOWS opens; nothing: at once


class Scene(Protocol):
    """What a fault may do to a world. The fault comes with it, for the history."""

    def crash_worker(self, fault: Fault) -> None: ...
    def kill(self, fault: Fault) -> None: ...
    def cut_power(self, fault: Fault) -> None: ...
    def redeploy(self, fault: Fault) -> None: ...
    def jump(self, fault: Fault) -> None: ...
    def drift(self, fault: Fault) -> None: ...
    def freeze(self, fault: Fault) -> None: ...
    def delay_ack(self, fault: Fault) -> None: ...
    def repeat_ack(self, fault: Fault) -> None: ...
    def repeat_push(self, fault: Fault) -> None: ...
    def slow_disk(self, fault: Fault) -> None: ...
    def fill_disk(self, fault: Fault) -> None: ...
    def break_disk(self, fault: Fault) -> None: ...
    def fail_sync(self, fault: Fault) -> None: ...
    def lock(self, fault: Fault) -> None: ...
    def poison(self, fault: Fault) -> None: ...
    def hang(self, fault: Fault) -> None: ...


class Span(NamedTuple):
    """What a plan is drawn for."""

    seconds: float  #: faults strike within it
    stall_timeout: float  #: seconds
    workers: Sequence[str]
    jobs: int
    has_disk: bool


class Kind(NamedTuple):
    """One kind of fault."""

    name: str
    says: str
    strike: Callable[[Scene, Fault], None]
    draw: Callable[[Span, Callable[[str], float]], Fault]  #: `draw(span, number)`: number(what) is in [0, 1)
    weight: float = 1.0  #: how often a swarm has it, against the others
    needs_disk: bool = False  #: there is no such thing in memory


Number = Callable[[str], float]


def _drawn(
    kind: str, seconds: Callable[[Span, Number], float] = lambda span, number: 0.0, of_job: bool = False
) -> Callable[[Span, Number], Fault]:
    """Draw a fault that is an instant, a target and some seconds."""

    def draw(span: Span, number: Number) -> Fault:
        target = f"job {int(number('job') * span.jobs)}" if of_job else _worker(span, number)
        return Fault(_at(span, number), kind, target, round(seconds(span, number), 3))

    return draw


def _at(span: Span, number: Number) -> float:
    return round((0.05 + 0.9 * number("at")) * span.seconds, 3)


def _worker(span: Span, number: Number) -> str:
    return span.workers[int(number("worker") * len(span.workers))]


def _within(low: float, high: float) -> Callable[[Span, Number], float]:
    return lambda span, number: low + (high - low) * number("seconds")


def _leases(low: float, high: float) -> Callable[[Span, Number], float]:
    """A time that may outlast a lease."""
    return lambda span, number: span.stall_timeout * (low + (high - low) * number("seconds"))


def _lateness(span: Span, number: Number) -> float:
    """Half of them at the worst moment."""
    return 0.0 if number("worst") < 0.5 else _leases(0.5, 3)(span, number)


def _draw_kill(span: Span, number: Number) -> Fault:
    operation = int(number("operation") * 40) if span.has_disk and number("inside") < 0.5 else 0
    return Fault(_at(span, number), "process kill", _worker(span, number), 2.0, operation=operation)


def _draw_power_cut(span: Span, number: Number) -> Fault:
    at = _at(span, number)
    if not span.has_disk:
        return Fault(at, "power cut", seconds=3.0)
    kinds = [kind for kind in CRASH_KINDS if kind != "sigkill"]
    kind = kinds[int(number("how") * len(kinds))]
    names = list(NAME_MODELS)[int(number("names") * len(NAME_MODELS))]
    when = number("when")
    operation = 1 + int(number("operation") * 40) if when < 0.6 else 0
    window = list(IN_LOG)[int(number("window") * len(IN_LOG))] if when >= 0.75 else ""
    if window == "creation":
        at = 0.0
    return Fault(at, "power cut", seconds=3.0, how=f"{kind}/{names}", operation=operation, window=window)


def _draw_jump(span: Span, number: Number) -> Fault:
    size = span.stall_timeout * (0.2 + 20 * number("seconds") ** 3)
    forward = number("direction") < 0.5
    return Fault(_at(span, number), "wall jump", _worker(span, number), round(size if forward else -size, 3))


FAULTS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "worker crash", "a worker's thread dies; its process lives on; a new one starts `seconds` later",
            lambda scene, fault: scene.crash_worker(fault), _drawn("worker crash", _within(1, 3)),
        ),
        Kind(
            "process kill", "kill -9: everything in the worker's process is gone; it starts again `seconds` later",
            lambda scene, fault: scene.kill(fault), _draw_kill,
        ),
        Kind(
            "power cut", "every process dies, and the disk keeps what `how` says; all start again `seconds` later",
            lambda scene, fault: scene.cut_power(fault), _draw_power_cut,
        ),
        Kind(
            "redeploy", "all workers are told to stop, release what they hold, and start again `seconds` later",
            lambda scene, fault: scene.redeploy(fault), _drawn("redeploy", _within(1, 3)), weight=0.5,
        ),
        Kind(
            "wall jump", "the wall clock of the worker's process jumps by `seconds`",
            lambda scene, fault: scene.jump(fault), _draw_jump,
        ),
        Kind(
            "drift", "the wall clock of the worker's process runs fast by `seconds` a second; slow if negative",
            lambda scene, fault: scene.drift(fault), _drawn("drift", _within(-0.3, 0.3)), weight=0.5,
        ),
        Kind(
            "freeze", "the worker's process stands still for `seconds`: a GC pause, a SIGSTOP, the lid of a laptop",
            lambda scene, fault: scene.freeze(fault), _drawn("freeze", _leases(0.3, 4)), weight=4.0,
        ),
        Kind(
            "late ack", "a run reports `seconds` late, without heartbeats; 0: in the middle of its job's next run",
            lambda scene, fault: scene.delay_ack(fault), _drawn("late ack", _lateness), weight=4.0,
        ),
        Kind(
            "duplicate ack", "a report is sent again `seconds` after it was stored",
            lambda scene, fault: scene.repeat_ack(fault), _drawn("duplicate ack", _within(0, 2)), weight=2.0,
        ),
        Kind(
            "duplicate push", "the producer does not hear of a push, and pushes again",
            lambda scene, fault: scene.repeat_push(fault), _drawn("duplicate push"),
        ),
        Kind(
            "slow disk", "for `seconds`, every write takes 0.4 s",
            lambda scene, fault: scene.slow_disk(fault), _drawn("slow disk", _leases(0.5, 2)),
        ),
        Kind(
            "disk full", "for `seconds`, nothing more can be written",
            lambda scene, fault: scene.fill_disk(fault), _drawn("disk full", _within(0.5, 5)), needs_disk=True,
        ),
        Kind(
            "I/O error", "the next operation fails; for `seconds` every one does",
            lambda scene, fault: scene.break_disk(fault),
            _drawn("I/O error", lambda span, number: 0.0 if number("once") < 0.6 else 3 * number("seconds")),
            needs_disk=True,
        ),
        Kind(
            "failed fsync", "the next fsync fails",
            lambda scene, fault: scene.fail_sync(fault), _drawn("failed fsync"), needs_disk=True,
        ),
        Kind(
            "locked database", "for `seconds`, a stopped process holds the write lock",
            lambda scene, fault: scene.lock(fault), _drawn("locked database", _within(0.2, 4)), needs_disk=True,
        ),
        Kind(
            "poison job", "a job that crashes its worker whenever it runs",
            lambda scene, fault: scene.poison(fault), _drawn("poison job", of_job=True), weight=0.5,
        ),
        Kind(
            "hanging handler", "the job's next run never ends of itself",
            lambda scene, fault: scene.hang(fault), _drawn("hanging handler", of_job=True),
        ),
    )
}  # fmt: skip

Plan = tuple[Fault, ...]


def draw_crashes(chance: Chance, span: Span, count: int) -> list[Fault]:
    """So many crashes of the three kinds, spread over the span."""
    drawn = []
    for number in range(count):
        kind = chance.choice(CRASHES, "crash", "kind", number)
        fault = FAULTS[kind].draw(span, _numbers(chance, "crash", number))
        share = (number + 0.15 + 0.6 * chance("crash", "share", number)) / count  # one in each part of the story
        at = fault.at if fault.window == "creation" else round(share * span.seconds, 3)
        drawn.append(msgspec.structs.replace(fault, at=at))
    return drawn


def draw_swarm(chance: Chance, span: Span, amount: float) -> list[Fault]:
    """A swarm: a random subset of the kinds, each at a rate of its own; about `amount` faults in all."""
    kinds = [kind for kind in FAULTS.values() if kind.name not in CRASHES and (span.has_disk or not kind.needs_disk)]
    chosen = [kind for kind in kinds if chance("swarm", kind.name) < min(0.4 + 0.1 * kind.weight, 0.8)]
    weights = {kind.name: kind.weight * (0.2 + chance("rate", kind.name)) for kind in chosen}
    total = sum(weights.values())
    drawn = []
    for kind in chosen:
        expected = amount * weights[kind.name] / total
        count = int(expected + chance("count", kind.name))
        drawn += [kind.draw(span, _numbers(chance, kind.name, number)) for number in range(count)]
    return drawn


def checked_plan(faults: object, what: str = "faults") -> list[Fault]:
    """The faults, if each is one that can strike; ValidationError says what is wrong with it."""
    if isinstance(faults, str | bytes | Mapping) or not isinstance(faults, Iterable):
        raise ValidationError(
            f"{what}: expected how many, or a list of rqlab.Fault(at, kind, target, …); got {arguments.shown(faults)}"
        )
    return [_checked(fault, what) for fault in faults]


def _checked(given: object, what: str) -> Fault:
    fault = _typed(given, what)
    if fault.kind not in FAULTS:
        raise ValidationError(f"{fault!r}: no such kind of fault; there are: {', '.join(FAULTS)}")
    how, _, names = fault.how.partition("/")
    if how and (how not in CRASH_KINDS or (names and names not in NAME_MODELS)):
        raise ValidationError(
            f"{fault!r}: expected how= one of {', '.join(CRASH_KINDS)}, and after a slash one of "
            f"{', '.join(NAME_MODELS)}"
        )
    if fault.window and fault.window not in WINDOWS:
        raise ValidationError(f"{fault!r}: no such window; there are: {', '.join(WINDOWS)}")
    if not 0 <= fault.at <= arguments.MAX_SECONDS or fault.operation < 0:
        raise ValidationError(f"{fault!r}: expected an instant and an operation of 0 or more")
    least = -arguments.MAX_SECONDS if fault.kind in GO_BACK else 0.0
    if not least <= fault.seconds <= arguments.MAX_SECONDS:
        raise ValidationError(
            f"{fault!r}: expected a number of seconds, {'' if least else '0 or more, '}at most 100 years"
        )
    if fault.kind in OF_JOBS and not fault.target.startswith("job "):
        raise ValidationError(f'{fault!r}: expected a job as its target, such as "job 17"')
    if not TARGET.fullmatch(fault.target) or (fault.kind not in OF_JOBS and fault.target.startswith("job ")):
        raise ValidationError(f'{fault!r}: expected a worker as its target, such as "worker-1", or nobody')
    return fault


def _typed(given: object, what: str) -> Fault:
    """A fault whose fields are what they are declared as: neither numpy's numbers nor other types have passed here."""
    if isinstance(given, Fault):
        fields = msgspec.structs.asdict(given)
    elif isinstance(given, Mapping):
        fields = dict(given)
    else:
        raise ValidationError(
            f"{what}: expected a list of rqlab.Fault(at, kind, target, …); got {arguments.shown(given)} in it"
        )
    if unknown := [str(name) for name in fields if name not in Fault.__struct_fields__]:
        raise ValidationError(
            f"{what}: a fault has no {', '.join(unknown)}; it has {', '.join(Fault.__struct_fields__)}"
        )
    try:
        return msgspec.convert({name: arguments.plain(value) for name, value in fields.items()}, Fault)
    except msgspec.ValidationError as error:
        raise ValidationError(
            f"{what}: expected a rqlab.Fault(at, kind, target, …); got {given!r:.200}: {error}"
        ) from None


def in_order(faults: Iterable[Fault]) -> Plan:
    return tuple(sorted(faults, key=lambda fault: (fault.at, fault.kind, fault.target)))


def _numbers(chance: Chance, kind: str, number: int) -> Number:
    return lambda what: chance(f"fault/{what}", kind, number)
