"""How fast each durability mode is here, with what spread, and what it loses: measured, beside what it promises.

`measure` runs every mode through the same rounds; each thing it measures is a file: `speed` (timed), `cuts` (recorded,
and cut), `kills` (real processes), on the `machine`, held against `promises`. It tunes nothing and asserts nothing.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rqlab import arguments
from rqlab.arguments import shown
from rqlab.durability import MODES
from rqlab.errors import ValidationError
from rqlab.measurement.result import COLUMNS, Measurement, Row

if TYPE_CHECKING:
    from rqlab.measurement.progress import Progress  # the same floor, loaded when it is needed

__all__ = ["COLUMNS", "FULL", "QUICK", "Measurement", "Settings", "measure"]

MAX_CALLERS = 1_000
MAX_REPEATS = 1_000
MAX_JOBS = 1_000_000
RECORDED_SECONDS = 0.25  # of pushes, and of cycles: the recorder keeps every byte in memory


class Settings(NamedTuple):
    """How much is measured."""

    callers: tuple[int, ...]  #: threads at once, one row each
    seconds: float  #: of timed pushes, and as many of timed cycles, a row
    repeats: int  #: each goes through all modes and callers before the next begins
    jobs: int  #: at least so many are pushed before a kill, and in a recorded run
    cuts: int  #: power cuts a row
    alive: tuple[float, float]  #: seconds between its first push and its kill -9, least and most


FULL = Settings(callers=(1, 10, 100), seconds=1.0, repeats=5, jobs=500, cuts=48, alive=(0.1, 0.5))
#: For a notebook's cell: less than a second a row.
QUICK = Settings(callers=(1, 100), seconds=0.12, repeats=3, jobs=100, cuts=16, alive=(0.03, 0.1))


def measure(
    modes: str | Iterable[str] | None = None,
    *,
    callers: int | Iterable[int] | None = None,
    seconds: float | None = None,
    repeats: int | None = None,
    jobs: int | None = None,
    quick: bool = False,
    directory: str | os.PathLike[str] | None = None,
    progress: bool = True,
    on_row: Callable[[Row], object] | None = None,
) -> Measurement:
    """Measure what each durability mode costs on this machine, and what it loses.

        measurement = rqlab.measure(quick=True)     # about 20 seconds
        measurement.plot()                          # throughput against loss window
        measurement.frame                           # a row for each mode, number of callers and repeat

    `modes` are rows of `rqlab.MODES`, all if left out. What else is left out is that of `FULL` (callers 1, 10 and 100,
    5 repeats of 1 s: some minutes), or with `quick` that of `QUICK`. `directory` says on which disk: durable costs what
    an fsync there costs. The default is the system's temporary directory; if that is in memory, the result says so.

    A repeat goes through all callers and modes, and the next one begins with another mode, so that a noisy minute hits
    all of them. A row is a warm-up and three runs, each in a new directory that is removed afterwards:

    - timed: `callers` threads push, each waiting for its answer, for `seconds`; then as long full cycles, in which
      each caller pushes a job, pulls the next in line and acks it: three calls. (A worker acks and pulls in one commit,
      so it needs a commit less.) All are threads of one Python, which runs one at a time: what has no disk to wait for
      does not gain by callers, and their p99 is mostly the wait for a turn;
    - recorded: the same under the simulator's recorder, shorter and apart, because the recorder would slow the timed
      run. It tells fsyncs and bytes a job, checkpoints and the last one at close included; and in it the power is cut
      at many operations, in every way in which disks lose what was not synced;
    - killed: a process pushes, tells each acknowledged id through a pipe, and gets SIGKILL at a random moment.

    `lost_jobs_…` are acknowledged pushes that were gone: at a power cut, at the worst of them. `loss_window_seconds` is
    the age of the oldest of them at any crash of the row, and at cuts of a quiet queue, which gets a job every 5 ms:
    there nothing but time hurries a mode that writes later. 0 if nothing was lost, inf for a mode that keeps nothing.

    `progress` draws a bar on stderr between rows. `on_row` is called with each row as it is complete, a dict of
    COLUMNS. Interrupted (Ctrl-C, "Interrupt kernel"), it ends its processes, removes its files, and returns what has
    been measured so far, with `is_complete` False; before the first row KeyboardInterrupt is raised.

    Raises ValidationError for arguments that cannot be; whatever the queue itself raises when a disk fails.
    """
    chosen = _checked_modes(modes)
    settings = _checked_settings(QUICK if quick else FULL, callers, seconds, repeats, jobs)
    rows: list[Row] = []
    quiet: dict[str, float] = {}
    with ExitStack() as stack:
        here = stack.enter_context(_directory(directory))
        machine = _machine(here, chosen, settings)
        plan = list(_plan(chosen, settings))
        bar = stack.enter_context(_progress(len(plan), progress))
        try:
            for mode, at_once, repeat in plan:
                bar.next(f"{mode}, {at_once} caller{'s' if at_once > 1 else ''}, repeat {repeat}")
                rows.append(_row(mode, at_once, repeat, settings, here, machine, quiet))
                if on_row is not None:
                    on_row(dict(rows[-1]))
        except KeyboardInterrupt:
            if not rows:
                raise
            machine["is_complete"] = False
    return Measurement(
        sorted(rows, key=lambda row: (chosen.index(row["mode"]), row["callers"], row["repeat"])), machine
    )


def _plan(modes: tuple[str, ...], settings: Settings) -> Iterator[tuple[str, int, int]]:
    """The rows in the order in which they are measured: repeats outermost, modes innermost, another one first each."""
    for repeat in range(1, settings.repeats + 1):
        for at_once in settings.callers:
            for number in range(len(modes)):
                yield modes[(number + repeat - 1) % len(modes)], at_once, repeat


def _row(
    mode: str,
    callers: int,
    repeat: int,
    settings: Settings,
    here: Path,
    machine: dict[str, Any],
    quiet: dict[str, float],
) -> Row:
    from rqlab.measurement import cuts, kills, losses, paced, promises, speed
    from rqlab.simulation.recorder import RecorderUnavailable
    from rqlab.simulation.recovery import scratch_directory

    nan = float("nan")
    with _emptied(here):
        timed = speed.measure_speed(mode, callers, settings.seconds, here / "timed")
    with _emptied(here):
        killed = kills.lost_at_kill(mode, callers, settings.jobs, settings.alive, here / "killed")
    row: Row = {
        "mode": mode, "callers": callers, "repeat": repeat, "promised": promises.promised(mode),
        "push_per_second": timed.push_per_second, "cycles_per_second": timed.cycles_per_second,
        "push_p50_seconds": timed.push_p50_seconds, "push_p99_seconds": timed.push_p99_seconds,
        "lost_jobs_kill": float(killed.lost), "acknowledged_jobs_kill": float(killed.acknowledged),
        "fsyncs_per_job": nan, "bytes_per_job": nan, "loss_window_seconds": nan, "lost_jobs_power_cut": nan,
        "acknowledged_jobs_power_cut": nan, "mean_lost_jobs_power_cut": nan,
    }  # fmt: skip
    try:
        with _emptied(here), scratch_directory() as scratch:
            seconds = min(settings.seconds / 2, RECORDED_SECONDS)
            recorded, cost = cuts.record(mode, callers, settings.jobs, seconds, here / "recorded")
            cut = cuts.losses(recorded, settings.cuts, repeat, scratch)
            if mode not in quiet:  # in virtual time: neither callers nor another repeat would change it
                pushes = paced.record(mode, paced.QUIET, scratch / "paced")
                quiet[mode] = losses.worst(cuts.losses(pushes, settings.cuts, 0, scratch)).window_seconds
    except RecorderUnavailable as error:
        machine["recorder"] = str(error)
    else:
        most = losses.worst(cut)
        row |= {
            "fsyncs_per_job": cost.fsyncs_per_job,
            "bytes_per_job": cost.bytes_per_job,
            "lost_jobs_power_cut": float(most.lost),
            "acknowledged_jobs_power_cut": float(most.acknowledged),
            "mean_lost_jobs_power_cut": sum(each.lost for each in cut) / len(cut),
            "loss_window_seconds": max(most.window_seconds, killed.window_seconds, quiet[mode]),
        }
    row["promise_held"] = promises.held(mode, row["lost_jobs_kill"], row["lost_jobs_power_cut"])
    return {name: row[name] for name in COLUMNS}


# Below: checks, and what is imported when it is needed: `import rqlab` must stay quick.


def _machine(here: Path, modes: tuple[str, ...], settings: Settings) -> dict[str, Any]:
    from rqlab.measurement.machine import machine

    used = {
        **settings._asdict(),
        "callers": list(settings.callers),
        "alive": list(settings.alive),
        "modes": list(modes),
    }
    return {**machine(here), "settings": used, "is_complete": True}


def _progress(rows: int, is_wanted: bool) -> "Progress":
    from rqlab.measurement.progress import Progress

    return Progress(rows, arguments.truth(is_wanted, "progress"))


@contextmanager
def _directory(directory: str | os.PathLike[str] | None) -> Iterator[Path]:
    """A directory of its own on that disk, for as long as the block runs."""
    from tempfile import TemporaryDirectory

    try:
        temporary = TemporaryDirectory(prefix="rqlab-measure-", dir=directory)
    except (OSError, TypeError, ValueError) as error:
        raise ValidationError(
            f"directory: expected a directory that can be written to; got {shown(directory)} ({error})"
        ) from None
    with temporary as path:
        yield Path(path).resolve()


@contextmanager
def _emptied(here: Path) -> Iterator[None]:
    """Remove what a run has left in the directory, however it ends."""
    from shutil import rmtree

    try:
        yield
    finally:
        for path in here.iterdir():
            rmtree(path)


def _checked_modes(modes: object) -> tuple[str, ...]:
    given = tuple(MODES) if modes is None else (modes,) if isinstance(modes, str) else modes
    names = tuple(dict.fromkeys(given)) if isinstance(given, Iterable) else ()
    if not names or not all(isinstance(name, str) and name in MODES for name in names):
        raise ValidationError(f"modes: expected one or more of {', '.join(map(repr, MODES))}; got {shown(modes)}")
    return tuple(map(str, names))


def _checked_settings(base: Settings, callers: object, seconds: object, repeats: object, jobs: object) -> Settings:
    if callers is not None:
        given = (callers,) if isinstance(callers, int) else callers
        if not isinstance(given, Iterable) or isinstance(given, str) or not (each := list(given)):
            raise ValidationError(f"callers: expected a whole number, or some of them; got {shown(callers)}")
        checked = sorted({arguments.whole(number, "callers", 1, MAX_CALLERS) for number in each})
        base = base._replace(callers=tuple(checked))
    if seconds is not None:
        base = base._replace(seconds=arguments.seconds(seconds, "seconds", above=0))
    if repeats is not None:
        base = base._replace(repeats=arguments.whole(repeats, "repeats", 1, MAX_REPEATS))
    if jobs is not None:
        base = base._replace(jobs=arguments.whole(jobs, "jobs", 1, MAX_JOBS))
    return base
