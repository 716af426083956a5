"""The command `rqlab measure`: asks for a measurement, and prints, draws or keeps what came of it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from rqlab import measurement
from rqlab.arguments import shown
from rqlab.errors import ValidationError
from rqlab.measurement import FULL, Measurement

PICTURES = (".png", ".svg", ".pdf")
INTERRUPTED = 130  # the exit code of what Ctrl-C ended, in every shell


def measure(
    quick: Annotated[
        bool, typer.Option("--quick", help="About 20 seconds instead of some minutes, with a wider spread.")
    ] = False,
    modes: Annotated[
        str | None, typer.Option(metavar="MODE[,MODE…]", help="Only these durability modes.", show_default=False)
    ] = None,
    callers: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N…]", help="Threads that push at once.", show_default=",".join(map(str, FULL.callers))
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="Of timed pushes, and of timed cycles, a row.", show_default=f"{FULL.seconds:g}"),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Rounds through all modes and callers.", show_default=f"{FULL.repeats}")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Pushed before a kill, and in a recorded run, at least.", show_default=f"{FULL.jobs}"),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            help="A directory on the disk to measure; what is made in it is removed.", show_default="the temporary one"
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep it all: Measurement.load(FILE).", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw throughput against loss window.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what --save would write.")] = False,
) -> None:
    """Measure what each durability mode costs here, and what it loses.

    It kills processes that it has started, and cuts the power in a recording; nothing of yours is touched. It takes
    some minutes, or --quick. Ctrl-C ends it, shows what there is by then, and exits with 130. Exit code 1 if a mode
    lost more than it promises.
    """
    for target in filter(None, (save, plot)):
        _refuse_unwritable(target)
    if plot is not None and plot.suffix.lower() not in PICTURES:
        raise ValidationError(f"--plot: expected the name of a file ending in {', '.join(PICTURES)}; got {plot}")
    with _terminated_like_interrupted():
        found = measurement.measure(
            None if modes is None else modes.split(","),
            callers=None if callers is None else _numbers(callers),
            seconds=seconds,
            repeats=repeats,
            jobs=jobs,
            quick=quick,
            directory=directory,
        )
    if save is not None:
        found.save(save)
    if plot is not None:
        found.plot().save(plot)
    print(found.to_json() if as_json else f"{found!r}\n", end="")
    raise typer.Exit(_exit_code(found))


def _exit_code(found: Measurement) -> int:
    if not found.is_complete:
        return INTERRUPTED
    return 1 if found.broken else 0


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValidationError(f"--callers: expected whole numbers, such as 1,10,100; got {shown(text)}") from None


def _refuse_unwritable(target: Path) -> None:
    """Before the minutes that a measurement takes, not after them."""
    if not target.parent.is_dir() or target.is_dir():
        raise ValidationError(f"{target}: expected the name of a file in a directory that is there")


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that no process and no file is left behind."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # no signal comes here
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
