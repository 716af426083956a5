"""Where each acknowledged job is at an instant: on the disk, in the page cache, or only in the memory of its process.

That is asked of the real store by crashing it twice at the same operation: what a kill -9 leaves had reached the
kernel, and what a power cut leaves had reached the disk. Time is virtual; the same seed gives the same answer.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rqlab import arguments, charts
from rqlab.charts.chart import Chart
from rqlab.durability import MODES
from rqlab.errors import ValidationError
from rqlab.measurement import cuts, paced
from rqlab.simulation.audit import recorded
from rqlab.simulation.platter import Cut, Platter
from rqlab.simulation.recovery import laid_out, scratch_directory

if TYPE_CHECKING:
    import pandas

KILL, POWER_CUT = "sigkill", "lost"  # rows of CRASH_KINDS: everything issued survives; nothing unsynced does
LASTS_MS = 2_400  # a hybrid queue has taken two snapshots by then
BURST = 6  # jobs of the last milliseconds: else a mode that writes 10 ms later would have nothing at risk
BURST_MS = 1  # between two of them

Job = Hashable
Queue = tuple[Callable[[Path], Iterable[Job]], Callable[[Path], Iterable[Job]]]


class Spot(NamedTuple):
    """One job, and where it was."""

    row: str  #: the mode or queue, with the instant if several were asked for
    job: int  #: its number in the order of the pushes, from 1
    where: str  #: "disk", "cache" (the page cache only) or "process" (its memory only)


class Whereabouts:
    """Where each acknowledged job was; in a notebook it shows itself as a picture."""

    def __init__(self, spots: Sequence[Spot], seed: int) -> None:
        self.spots = tuple(spots)
        self.seed = seed

    @property
    def frame(self) -> "pandas.DataFrame":
        """One row a job: row, job, where."""
        import pandas

        frame = pandas.DataFrame(self.spots, columns=list(Spot._fields))
        frame.attrs["seed"] = self.seed
        return frame

    def lost(self, row: str) -> tuple[int, int]:
        """How many jobs of a row a kill -9 would take, and how many a power cut. KeyError if there is no such row."""
        where = [spot.where for spot in self.spots if spot.row == row]
        if not where:
            raise KeyError(f"no row {row!r}; there are: {', '.join(dict.fromkeys(spot.row for spot in self.spots))}")
        return where.count("process"), len(where) - where.count("disk")

    def plot(self, **how: Any) -> Chart:
        """One cell a job: `rqlab.charts.whereabouts` of the frame, and its arguments."""
        return charts.whereabouts(self.frame, **how)

    def __repr__(self) -> str:
        return charts.whereabouts(self.frame).alt

    def _repr_mimebundle_(self, **how: object) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.plot()._repr_mimebundle_(**how)


def whereabouts(
    modes: str | Iterable[str] | None = None,
    *,
    at: float | Iterable[float] | None = None,
    jobs: int = 40,
    queues: Mapping[str, Queue] | None = None,
    seed: int = 7,
) -> Whereabouts:
    """Push jobs, stop everything, and look how far each job had come: what a kill -9 takes, and what a power cut.

        rqlab.whereabouts()                                            # every mode, 2.4 s after the first push
        rqlab.whereabouts("hybrid", at=[0.5, 1.0, 1.5, 2.0])           # one mode, at several instants

    `modes` are rows of `rqlab.MODES`, all if left out; `()` none. So many `jobs` are pushed at instants that `seed`
    draws, the last six in quick succession at the end. `at` is when to look, in seconds of virtual time.
    `queues` adds others by name: (workload, survivors), the two functions of `rqlab.audit`, which says what they are.

    Raises ValidationError for a mode that is none, RecorderUnavailable where SQLite's writes cannot be seen.
    """
    chosen = _checked(modes)
    count = arguments.whole(jobs, "jobs", BURST + 1, 1_000)
    instants = _instants(count, seed)
    whens = [None] if at is None else [at] if isinstance(at, int | float) else list(at)
    spots: list[Spot] = []
    with scratch_directory() as scratch:
        for mode in chosen:
            found = paced.record(mode, instants, scratch / mode, seed)
            for when in whens:
                name = mode if len(whens) == 1 else f"{mode}, {when:g} s"
                spots += _of_mode(name, found, when, seed, scratch)
        for name, queue in (queues or {}).items():
            spots += _of_queue(name, *queue, seed, scratch)
    return Whereabouts(spots, seed)


def _instants(count: int, seed: int) -> list[int]:
    """When the jobs are pushed, in milliseconds: spread over the story, and a burst at its end."""
    dice = random.Random(seed)
    spread = sorted(dice.randint(0, LASTS_MS - 100) for _ in range(count - BURST))
    return [*spread, *(LASTS_MS - BURST_MS * left for left in reversed(range(BURST)))]


def _of_mode(name: str, found: cuts.Recorded, when: float | None, seed: int, scratch: Path) -> list[Spot]:
    pushes = found.pushes if when is None else [push for push in found.pushes if push.acknowledgement.at <= when]
    operations = found.end if when is None else min(bisect_right(found.stamps, when), found.end)
    platter = Platter(found.recording)
    kept = [cuts.found_after(platter, Cut(operations, kind, "journalled", seed), scratch) for kind in (KILL, POWER_CUT)]
    return _spots(name, [push.acknowledgement.job_id for push in pushes], *kept)


def _of_queue(
    name: str,
    workload: Callable[[Path], Iterable[Job]],
    survivors: Callable[[Path], Iterable[Job]],
    seed: int,
    scratch: Path,
) -> list[Spot]:
    """Cut when the newest push has returned, before the queue is closed."""
    with scratch_directory() as directory:
        platter, returned = recorded(directory, workload, seed)
    kept = []
    for kind in (KILL, POWER_CUT):
        with laid_out(platter, Cut(max(returned.values()), kind, "journalled", seed), scratch) as image:
            kept.append(_what_opens(survivors, image))
    return _spots(name, list(returned), *kept)


def _what_opens(survivors: Callable[[Path], Iterable[Job]], image: Path) -> frozenset[Job]:
    try:
        return frozenset(survivors(image))
    except Exception:  # noqa: BLE001  # whatever a foreign library says of a directory it cannot open: it has nothing
        return frozenset()


def _spots(name: str, jobs: Sequence[Job], kernel: frozenset[Job], disk: frozenset[Job]) -> list[Spot]:
    return [
        Spot(name, number, "disk" if job in disk else "cache" if job in kernel else "process")
        for number, job in enumerate(jobs, 1)
    ]


def _checked(modes: object) -> tuple[str, ...]:
    given = tuple(MODES) if modes is None else (modes,) if isinstance(modes, str) else modes
    names = tuple(given) if isinstance(given, Iterable) else (given,)
    if wrong := [name for name in names if name not in MODES]:
        raise ValidationError(f"modes: expected some of {', '.join(map(repr, MODES))}; got {wrong[0]!r:.60}")
    return tuple(map(str, names))
