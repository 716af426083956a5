"""The commands of the laboratory: `rqlab simulate`, `rqlab replay`, `rqlab explore` and `rqlab compare`.

They decide nothing; cli.py takes them in.

A broken promise ends with exit code 1, the line that replays it and its plan as Python.
"""

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rqlab.durability import MODES
from rqlab.errors import ValidationError
from rqlab.exploration import BUGS
from rqlab.exploration import explore as hunt
from rqlab.simulation.comparing import compare as compared
from rqlab.simulation.result import SimulationResult
from rqlab.simulation.run import replay as run_again
from rqlab.simulation.run import simulate as run

BROKEN = 1  # the exit code
INTERRUPTED = 130  # the exit code of what Ctrl-C ended, in every shell


def add_to(app: typer.Typer) -> None:
    """Make these commands of `app`."""
    app.command()(simulate)
    app.command()(replay)
    app.command()(explore)
    app.command()(compare)


def simulate(
    crashes: Annotated[int, typer.Option(help="Worker crashes, process kills and power cuts.")] = 3,
    seed: Annotated[int | None, typer.Option(help="Drawn, and shown, if not given.", show_default=False)] = None,
    jobs: Annotated[int, typer.Option(help="Jobs that are pushed.")] = 24,
    workers: Annotated[int, typer.Option(help="Workers; each a process where the mode allows it.")] = 3,
    durability: Annotated[str, typer.Option(help="durable, buffered, hybrid or memory.")] = "durable",
    store: Annotated[str, typer.Option(help="disk, or memory: faster, without the faults of a disk.")] = "disk",
    faults: Annotated[
        float | None, typer.Option(help="Other faults, about; 0: none. A few if not given.", show_default=False)
    ] = None,
    failure_rate: Annotated[float, typer.Option(help="Share of runs that fail.")] = 0.15,
    duration: Annotated[float, typer.Option(help="Seconds that a run takes on average.")] = 2.0,
    stall_timeout: Annotated[float, typer.Option(help="Seconds without a heartbeat until a run is stalled.")] = 4.0,
    handler: Annotated[
        str | None,
        typer.Option(metavar="MODULE:HANDLER", help="Your own handler, run for real.", show_default=False),
    ] = None,
    every_cut: Annotated[
        bool, typer.Option("--every-cut", help="Break nothing else, and cut the power at every operation.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the history there, as JSON lines.", show_default=False)
    ] = None,
    shrink: Annotated[
        bool, typer.Option("--shrink", help="If a promise broke, look for the fewest faults that break it.")
    ] = False,
) -> None:
    """Run the real engine in virtual time while things break, and check every promise.

    The same seed gives the same history. Exit code 1 if a promise was broken.
    """
    options: dict[str, Any] = {} if faults is None else {"faults": faults or ()}
    loaded = None if handler is None else _loaded(handler)
    result = run(
        crashes,
        seed=seed,
        jobs=jobs,
        workers=workers,
        durability=durability,
        store=store,
        failure_rate=failure_rate,
        duration=duration,
        stall_timeout=stall_timeout,
        handler=loaded,
        cuts="every-operation" if every_cut else None,
        **options,
    )
    if output is not None:
        result.to_jsonl(output)
    _show(result, shrink=shrink, handler=loaded)


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A history, as simulate --output wrote it.")],
    shrink: Annotated[
        bool, typer.Option("--shrink", help="If a promise broke, look for the fewest faults that break it.")
    ] = False,
) -> None:
    """Run the plan of a history again, and say whether it went as it did then."""
    then = SimulationResult.from_jsonl(file)
    now = run_again(then)
    same = "the same history" if now.hash == then.hash else f"another history: {now.hash}, then {then.hash}"
    _show(now, f"replayed {file}: {same}", is_broken=now.hash != then.hash, shrink=shrink)


def explore(
    seeds: Annotated[str, typer.Argument(metavar="SEEDS", help="How many, from 0; or which: 10000-19999.")] = "1000",
    durability: Annotated[
        str, typer.Option(metavar="MODE[,MODE…]", help="Durability modes; all: every one.")
    ] = "durable",
    store: Annotated[str, typer.Option(help="disk, or memory: faster, without the faults of a disk.")] = "disk",
    crashes: Annotated[int, typer.Option(help="Worker crashes, process kills and power cuts a seed.")] = 3,
    faults: Annotated[
        float | None, typer.Option(help="Other faults a seed, about; 0: none. A few if not given.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option(help="Jobs a seed.")] = 24,
    workers: Annotated[int, typer.Option(help="Workers a seed.")] = 3,
    handler: Annotated[
        str | None,
        typer.Option(metavar="MODULE:HANDLER", help="Your own handler, run for real.", show_default=False),
    ] = None,
    processes: Annotated[int | None, typer.Option(help="Child processes; 0: none.", show_default="one a core")] = None,
    bugs: Annotated[
        Path, typer.Option(metavar="DIR", help="Where plans that break a promise are kept, and run first.")
    ] = Path(BUGS),
    stop_after: Annotated[int, typer.Option(help="End when so many seeds have broken a promise; 0: go on.")] = 20,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw what each crash took.", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Simulate under many seeds, and show what broke and why.

    Plans that break a promise are shrunk and kept. Ctrl-C ends it, shows what there is, and exits with 130. Exit code
    1 if a promise was broken or a process died.
    """
    options: dict[str, Any] = {} if faults is None else {"faults": faults or ()}
    found = hunt(
        _seeds(seeds),
        durability=list(MODES) if durability == "all" else durability.split(","),
        store=store,
        crashes=crashes,
        jobs=jobs,
        workers=workers,
        handler=None if handler is None else _loaded(handler),
        processes=processes,
        bugs=bugs,
        stop_after=stop_after or None,
        progress=not quiet,
        **options,
    )
    print(found)
    if plot is not None:
        found.plot().save(plot)
    if not found.ok:
        raise typer.Exit(BROKEN)
    if not found.is_complete:
        raise typer.Exit(INTERRUPTED)


def compare(
    modes: Annotated[
        str | None, typer.Option(metavar="MODE[,MODE…]", help="Durability modes.", show_default="every one")
    ] = None,
    seed: Annotated[int, typer.Option(help="What jobs, runs and faults are drawn from.")] = 7,
    crashes: Annotated[int | None, typer.Option(help="Crashes, drawn.", show_default="a kill and a power cut")] = None,
    faults: Annotated[float, typer.Option(help="Other faults, about.")] = 0.0,
    jobs: Annotated[int, typer.Option(help="Jobs that are pushed.")] = 24,
    workers: Annotated[int, typer.Option(help="Workers; each a process where the mode allows it.")] = 3,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw what each mode lost.", show_default=False)
    ] = None,
) -> None:
    """Run one plan in every durability mode, and show what each lost beside what it had promised.

    Time is virtual, and a write takes none of it; for the speed of a real disk call rqlab measure. Exit code 1 if a
    promise was broken.
    """
    found = compared(
        None if modes is None else modes.split(","),
        seed=seed,
        crashes=crashes,
        faults=faults or (),
        jobs=jobs,
        workers=workers,
    )
    print(found)
    if plot is not None:
        found.plot().save(plot)
    if not found.ok:
        raise typer.Exit(BROKEN)


def _seeds(text: str) -> int | range:
    first, dash, last = text.partition("-")
    try:
        return range(int(first), int(last) + 1) if dash else int(first)
    except ValueError:
        raise ValidationError(f"seeds: expected a number, such as 1000, or a range, 500-999; got {text!r}") from None


def _show(
    result: SimulationResult, said: str = "", *, is_broken: bool = False, shrink: bool = False, handler: Any = None
) -> None:
    if said:
        print(said)
    print(result.summary())
    if result.cuts is not None:
        print(f"power cuts: {len(result.cuts)}, one at every operation in each crash kind")
    if not result.ok:
        print(f"its plan:\nplan = {result.plan_as_python}")
        if shrink:
            print(f"\nshrunk: {result.shrink(handler=handler)}")
    if is_broken or not result.ok:
        raise typer.Exit(BROKEN)


def _loaded(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    if not attribute:
        raise ValidationError(f"handler: expected MODULE:HANDLER; got {name!r}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # and it stays: children of `explore` import from there too
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValidationError(f"handler: cannot load {name!r}: {error}") from error
    return found
