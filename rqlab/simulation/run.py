"""`simulate`: one call from a seed to a result. Checks what callers pass, draws the plan, and runs the world.

The only file of the simulation that draws what is not a function of the seed: the seed itself, where none is given.
"""

import contextlib
import gc
import inspect
import logging
import secrets
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rqlab import arguments, executors
from rqlab.durability import MODES, Opening
from rqlab.errors import ValidationError
from rqlab.executors import Handler
from rqlab.simulation import recovery
from rqlab.simulation.chance import Chance
from rqlab.simulation.checks import CHECKS, Check, Moment
from rqlab.simulation.faults import FAULTS, Fault, Plan, Span, checked_plan, draw_crashes, draw_swarm, in_order
from rqlab.simulation.history import hash_of
from rqlab.simulation.machine import Disk, Machine, Memory
from rqlab.simulation.result import Header, Loss, SimulationResult
from rqlab.simulation.settings import Settings
from rqlab.simulation.stage import Stage

log = logging.getLogger("rqlab")

SEEDS = 1_000_000  # drawn seeds are below: short enough to be read out
MOST_FAULTS = 10_000  # of one call
LIGHT_SWARM = 4.0  # faults besides the crashes, about
CHECKPOINT_FRAMES = (20, 60, 1000)  # of SQLite's log; its default is 1000, and no small world gets there
LEAST_SPAN = 8.0  # stall_timeouts are seconds: a story needs room


def simulate(
    crashes: int | Sequence[Fault] = 3,
    *,
    seed: int | None = None,
    jobs: int | Sequence[Mapping[str, Any]] = 24,
    workers: int = 3,
    concurrency: int = 1,
    durability: str = "durable",
    store: str = "disk",
    faults: Sequence[Fault] | float | None = None,
    handler: Handler | Mapping[str, Handler] | None = None,
    failure_rate: float = 0.15,
    duration: float = 2.0,
    stall_timeout: float = 4.0,
    tick_interval: float = 1.0,
    flush_interval: float = 0.010,
    max_batch: int = 100,
    snapshot_interval: float = 1.0,
    max_dirty: int = 5_000,
    cuts: str | None = None,
    until: float | None = None,
    checks: Sequence[str] | None = None,
) -> SimulationResult:
    """Run the production engine, workers, housekeeping and store in virtual time while things break; see what held.

    The same arguments and seed give the same result, event for event; without a seed one is drawn, and shown.

    - `crashes`: so many of worker crash, process kill and power cut, drawn from the seed; or a list of `Fault`.
    - `faults`: the others. None draws a light swarm of them, a number about so many; a list is the plan itself, `()`
      none. `FAULTS` is the table of their kinds.
    - `jobs`: so many, of all sorts, drawn from the seed, and with them those of a schedule ("report"); or a list of
      dicts of push's arguments, each with `queue` ("mail" if left out) and `at` (seconds).
    - `workers`, each a process of its own where the mode allows it, with `concurrency` runs at once.
    - `durability` is a row of `MODES`; `store="memory"` takes a store in memory for the disk: some ten times as
      fast, without the faults of a disk.
    - `handler`: your own, run for real at the virtual instant, with `ctx.effect("charged card")` to tell what it does;
      without one, runs last `duration` seconds on average and fail at `failure_rate`, drawn from the seed.
    - `cuts="every-operation"`: let nothing else break, and cut the power at every single operation of the disk.
    - `flush_interval`, `max_batch`, `snapshot_interval` and `max_dirty` are those of `rqlab.open`.
    - `until`: stop after so many virtual seconds, instead of when everything has come to rest.
    - `checks`: ids of `CHECKS`; all if left out.

    Durations are in seconds. Raises ValidationError for a wrong argument.
    """
    given = _plain({name: value for name, value in locals().items() if name in DEFAULTS})
    given["seed"] = secrets.randbelow(SEEDS) if seed is None else arguments.whole(given["seed"], "seed", 0, 2**63)
    settings = settings_of(given)
    if settings.store == "memory" and settings.durability not in ("durable", "memory"):
        raise ValidationError(
            f'store: expected "disk" for durability={settings.durability!r}; what it may lose is a matter of the disk'
        )
    has_disk = _has_disk(settings)
    span = span_of(settings)
    if cuts is not None:
        _one_of(cuts, "cuts", ("every-operation",))
        if not has_disk:
            raise ValidationError(
                'cuts: expected store="disk" and a mode with a file; there are no operations in memory'
            )
        given["crashes"], given["faults"] = 0, ()
    plan = _plan(settings, span, given["crashes"], given["faults"], has_disk)
    return _simulate(settings, plan, span, cuts is not None, _call(given), given)


def story_of(**given: Any) -> float:
    """How many virtual seconds the story of these arguments is long: faults strike within it."""
    return span_of(settings_of(_plain(DEFAULTS | given)))


def drawn_plan(**given: Any) -> Plan:
    """The faults that `simulate` draws for these arguments, with a seed among them."""
    everything = _plain(DEFAULTS | given)
    arguments.whole(everything["seed"], "seed", 0, 2**63)
    settings = settings_of(everything)
    return _plan(settings, span_of(settings), everything["crashes"], everything["faults"], _has_disk(settings))


def replay(result: SimulationResult) -> SimulationResult:
    """Run the plan of a result again; one with a handler of the user's needs `simulate` and that handler."""
    given = dict(result.header.arguments)
    if given.get("handler"):
        raise ValidationError(
            f"replay: the handler {given['handler']} is not in the history; call {result.replay_line} with it"
        )
    given.pop("handler", None)
    plan = list(result.plan)
    return simulate(0, seed=result.seed, faults=plan, **given)


def once_more(result: SimulationResult) -> tuple[Settings, Plan, float]:
    """What `staged` needs to run a result again, with those checks alone that ended it."""
    handler = result.header.arguments.get("handler")
    if handler:
        raise ValidationError(
            f"cannot run {result.replay_line} again: the handler {handler} is not in the history, and what it does to "
            "the world it would do twice"
        )
    broken = sorted({violation.check for violation in result.violations})
    settings = settings_of(DEFAULTS | dict(result.header.arguments) | {"seed": result.seed, "checks": broken})
    return settings, result.plan, span_of(settings)


def settings_of(given: Mapping[str, Any]) -> Settings:
    """The arguments of `simulate`, all of them, checked. ValidationError for a wrong one."""
    return Settings(
        seed=given["seed"],
        jobs=_jobs(given["jobs"]),
        workers=arguments.whole(given["workers"], "workers", 1, 1_000),
        concurrency=arguments.whole(given["concurrency"], "concurrency", 1, 1_000),
        durability=_one_of(given["durability"], "durability", MODES),
        store=_one_of(given["store"], "store", ("disk", "memory")),
        handler=None if given["handler"] is None else executors.checked(given["handler"]),
        failure_rate=arguments.fraction(given["failure_rate"], "failure_rate"),
        duration=arguments.seconds(given["duration"], "duration", above=0),
        stall_timeout=arguments.seconds(given["stall_timeout"], "stall_timeout", at_least=0.1),
        tick_interval=arguments.seconds(given["tick_interval"], "tick_interval", above=0),
        opening=Opening(
            path="",
            busy_timeout=0.0,  # one steps at a time: who finds a lock held would wait for ever
            flush_interval=arguments.seconds(given["flush_interval"], "flush_interval", above=0),
            max_batch=arguments.whole(given["max_batch"], "max_batch", 1, 1_000_000),
            snapshot_interval=arguments.seconds(given["snapshot_interval"], "snapshot_interval", above=0),
            max_dirty=arguments.whole(given["max_dirty"], "max_dirty", 1, 10_000_000),
        ),
        until=None if given["until"] is None else arguments.seconds(given["until"], "until", above=0),
        checks=_checks(given["checks"]),
    )


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, with numbers and durations as a history keeps them, and a replay line can say them."""
    plain = {name: arguments.plain(value) for name, value in given.items()}
    for name in ("crashes", "faults"):
        if plain[name] and not isinstance(plain[name], int | float):
            plain[name] = checked_plan(plain[name], name)
    if isinstance(plain["jobs"], list | tuple):
        plain["jobs"] = [
            {name: arguments.plain(value) for name, value in item.items()} if isinstance(item, Mapping) else item
            for item in plain["jobs"]
        ]
    return plain


def _jobs(jobs: object) -> int | Sequence[Mapping[str, object]]:
    if isinstance(jobs, int):
        return arguments.whole(jobs, "jobs", 0, 10_000_000)
    if not isinstance(jobs, list | tuple):
        raise ValidationError(
            f"jobs: expected how many, or a list of dicts of push's arguments; got {arguments.shown(jobs)}"
        )
    for number, item in enumerate(jobs):
        if not isinstance(item, Mapping):
            raise ValidationError(f"jobs[{number}]: expected a dict of push's arguments; got {arguments.shown(item)}")
        arguments.seconds(item.get("at", 0.0), f"jobs[{number}]: at")
    return jobs


def _simulate(
    settings: Settings, plan: Plan, span: float, every_cut: bool, line: str, given: Mapping[str, Any]
) -> SimulationResult:
    cut_rows = None
    with staged(settings, plan, span) as (stage, machine, scratch):
        stage.run()
        if every_cut:
            assert isinstance(machine, Disk), "it was checked"
            from rqlab.simulation.cuts import every_operation

            cut_rows = every_operation(stage, machine, scratch)
    happenings = stage.history.happenings()
    on_disk = machine if isinstance(machine, Disk) else None
    header = Header(
        seed=settings.seed,
        arguments=_kept(given),
        plan=list(plan),
        replay=line,
        hash=hash_of(happenings, stage.judge.ledger.jobs.values()),
        violations=[(each.check, each.at, each.says) for each in stage.judge.violations],
        losses=[Loss(*loss) for loss in stage.judge.losses],
        windows=[window for _, windows in on_disk.cuts for window in sorted(windows)] if on_disk else [],
        cut_at=[cut.at for cut, _ in on_disk.cuts] if on_disk else [],
        asked=_asked(settings, stage),
        operations=on_disk.operations + len(on_disk.recorder) if on_disk else 0,
        syncs=on_disk.syncs if on_disk else 0,
        steps=stage.world.steps,
        ended_at=stage.world.now / 1000,
    )
    result = SimulationResult(header, happenings)
    if cut_rows is not None:
        result.cuts = cut_rows
    return result


@contextlib.contextmanager
def staged(
    settings: Settings, plan: Plan, span: float, disk_type: type[Disk] = Disk, stage_type: type[Stage] = Stage
) -> Iterator[tuple[Stage, Machine, Path]]:
    """A world before its first step, its machine, and a directory for as long as the block runs.

    Who wants to see more of it than a history tells brings a Disk or a Stage that looks on.
    """
    with contextlib.ExitStack() as block:
        block.enter_context(_quiet())
        block.enter_context(_without_garbage_collection())
        scratch = block.enter_context(recovery.scratch_directory())
        machine: Machine
        if _has_disk(settings):
            frames = Chance(settings.seed).choice(CHECKPOINT_FRAMES, "checkpoint", "frames")
            disk = disk_type(scratch, settings.durability, settings.opening, settings.seed, frames)
            block.callback(disk.close)
            machine = disk
        else:
            machine = Memory(is_kept=settings.durability != "memory")
        stage = stage_type(settings, plan, machine, span)
        block.callback(_let_go, stage)
        yield stage, machine, scratch


def _has_disk(settings: Settings) -> bool:
    return settings.store == "disk" and settings.durability != "memory"


def _kept(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that stand in a history's header beside its seed and its plan."""
    kept = {name: value for name, value in given.items() if name not in ("crashes", "faults", "seed")}
    handler = kept.pop("handler")
    if handler is not None:
        kept["handler"] = getattr(handler, "__qualname__", repr(handler))
    return {name: value for name, value in kept.items() if value is not None or name == "until"}


def _asked(settings: Settings, stage: Stage) -> dict[str, int]:
    """By check: how often it was asked."""
    kinds = Counter(event[1] for event in stage.history.raw)
    return {
        check.id: sum(kinds[event] for event in check.events)
        if check.moment is Moment.CHANGE
        else stage.judge.asked[check.moment]
        for check in settings.checks
    }


def _let_go(stage: Stage) -> None:
    for process in stage.processes:
        if process.is_alive:
            process.silence()
            stage.machine.leave(process.store.real)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the engine would log in this thread: simulated faults are no news for the user's console."""
    thread = threading.get_ident()

    def is_ours(record: logging.LogRecord) -> bool:
        return record.thread != thread

    log.addFilter(is_ours)
    try:
        yield
    finally:
        log.removeFilter(is_ours)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A history is a hundred thousand small things that stay: looking through them again and again costs 15 %."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def span_of(settings: Settings) -> float:
    """Within which faults strike: while there is work."""
    if settings.until is not None:
        return settings.until
    if not isinstance(settings.jobs, int):
        last = max((arguments.seconds(item.get("at", 0.0), "at") for item in settings.jobs), default=0.0)
        count = len(settings.jobs)
    else:
        last, count = 0.0, settings.jobs
    busy = count * settings.duration * (1 + settings.failure_rate) / (settings.workers * settings.concurrency)
    return round(max(1.3 * busy, last + 2 * settings.duration, 2 * settings.stall_timeout, LEAST_SPAN), 3)


def _plan(
    settings: Settings,
    span: float,
    crashes: int | Sequence[Fault],
    faults: Sequence[Fault] | float | None,
    has_disk: bool,
) -> Plan:
    names = [f"worker-{number + 1}" for number in range(settings.workers)]
    count = settings.jobs if isinstance(settings.jobs, int) else len(settings.jobs)
    drawn_for = Span(span, settings.stall_timeout, names, max(count, 1), has_disk)
    chance = Chance(settings.seed)
    if isinstance(crashes, int):
        first = draw_crashes(chance, drawn_for, arguments.whole(crashes, "crashes", 0, MOST_FAULTS))
    else:
        first = checked_plan(crashes, "crashes")
    if faults is None:
        rest = draw_swarm(chance, drawn_for, LIGHT_SWARM)
    elif isinstance(faults, int | float):
        rest = draw_swarm(chance, drawn_for, _amount(faults))
    else:
        rest = checked_plan(faults)
    for fault in (*first, *rest):
        if FAULTS[fault.kind].needs_disk and not has_disk:
            raise ValidationError(f'{fault!r} needs store="disk" and a mode with a file: there is no disk in memory')
        if fault.target.startswith("worker") and fault.target not in names:
            raise ValidationError(f"{fault!r}: no such worker; there are: {', '.join(names)}")
    return in_order((*first, *rest))


def _amount(faults: float) -> float:
    """How many faults to draw, about."""
    if isinstance(faults, bool) or not 0 <= faults <= MOST_FAULTS:
        raise ValidationError(
            f"faults: expected about how many, 0 to {MOST_FAULTS}, or a list of rqlab.Fault, or None for a few; "
            f"got {arguments.shown(faults)}"
        )
    return faults


def _checks(ids: Sequence[str] | None) -> tuple[Check, ...]:
    if ids is None:
        return tuple(CHECKS.values())
    if isinstance(ids, str) or not isinstance(ids, Collection):
        raise ValidationError(f'checks: expected a list of ids, such as ["I2"]; got {arguments.shown(ids)}')
    unknown = [each for each in ids if not isinstance(each, str) or each not in CHECKS]
    if unknown:
        raise ValidationError(f"checks: expected ids of {', '.join(CHECKS)}; got {', '.join(map(str, unknown))}")
    return tuple(CHECKS[each] for each in ids)


def _one_of(value: object, what: str, known: Iterable[str]) -> str:
    if isinstance(value, str) and value in known:
        return value
    raise ValidationError(f"{what}: expected {' or '.join(map(repr, known))}; got {arguments.shown(value)}")


def _call(given: Mapping[str, Any]) -> str:
    """The call with these arguments, as a user would write it."""
    said = []
    for name, value in given.items():
        if name == "handler" and value is not None:
            said.append(f"handler={getattr(value, '__name__', value)}")
        elif name == "seed" or value != DEFAULTS[name]:
            said.append(written(value) if name == "crashes" else f"{name}={written(value)}")
    return f"rqlab.simulate({', '.join(said)})"


def written(value: object) -> str:
    """A value as it stands in a call that can be pasted."""
    if isinstance(value, Sequence) and any(isinstance(each, Fault) for each in value):
        return f"[{', '.join(f'rqlab.{each!r}' if isinstance(each, Fault) else repr(each) for each in value)}]"
    return repr(value)


#: What `simulate` takes, and what it takes if it is not told.
DEFAULTS: dict[str, Any] = {
    name: parameter.default for name, parameter in inspect.signature(simulate).parameters.items()
}
