"""How fast each durability mode is here, with what spread, and what it loses: measured, beside what it promises.

`measure` runs every mode through the same rounds; what makes a row is in `rows`, and each thing in it is a file:
`speed` (timed), `cuts` (recorded, and cut), `paced` (the same in virtual time), `kills` (real processes), held against
`promises`. It tunes nothing and asserts nothing.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rqlab import arguments
from rqlab.arguments import shown
from rqlab.durability import MODES
from rqlab.errors import ValidationError
from rqlab.measurement.progress import Progress
from rqlab.measurement.result import COLUMNS, Measurement, Row
from rqlab.measurement.settings import FULL, QUICK, Settings

__all__ = ["COLUMNS", "FULL", "QUICK", "Measurement", "Settings", "measure"]

MAX_CALLERS = 1_000
MAX_REPEATS = 1_000
MAX_JOBS = 1_000_000


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
    from rqlab.measurement.rows import Rows  # here: `import rqlab` must stay quick

    chosen = _checked_modes(modes)
    settings = _checked_settings(QUICK if quick else FULL, callers, seconds, repeats, jobs)
    found: list[Row] = []
    with ExitStack() as stack:
        rows = Rows(chosen, settings, stack.enter_context(_directory(directory)))
        plan = list(_plan(chosen, settings))
        bar = stack.enter_context(Progress(len(plan), arguments.truth(progress, "progress")))
        try:
            for mode, at_once, repeat in plan:
                bar.next(f"{mode}, {at_once} caller{'s' if at_once > 1 else ''}, repeat {repeat}")
                found.append(rows.measure(mode, at_once, repeat))
                bar.done()
                if on_row is not None:
                    on_row(dict(found[-1]))
        except KeyboardInterrupt:
            if not found:
                raise
            rows.machine["is_complete"] = False
    found.sort(key=lambda row: (chosen.index(row["mode"]), row["callers"], row["repeat"]))
    return Measurement(found, rows.machine)


def _plan(modes: tuple[str, ...], settings: Settings) -> Iterator[tuple[str, int, int]]:
    """The rows in the order in which they are measured: repeats outermost, modes innermost, another one first each."""
    for repeat in range(1, settings.repeats + 1):
        for at_once in settings.callers:
            for number in range(len(modes)):
                yield modes[(number + repeat - 1) % len(modes)], at_once, repeat


# Below: checks.


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
