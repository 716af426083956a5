"""What a power cut costs, and what a job costs the disk: from a run that the recorder writes down.

It is a run of its own, because the recorder sits between SQLite and the disk and would slow the timed one. The power is
then cut in the recording, at many operations; no machine is harmed, and no root is needed.
"""

import math
from bisect import bisect_right
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from rqlab import clock
from rqlab.measurement import workload
from rqlab.measurement.callers import keep_calling, timed
from rqlab.measurement.losses import Acknowledgement, Loss, found_in, loss
from rqlab.simulation.platter import CRASH_KINDS, NAME_MODELS, Cut, Platter
from rqlab.simulation.recorder import Kind, Recorder, Recording
from rqlab.simulation.recovery import laid_out

JOBS = "jobs"  # the store's directory within the recorded one

#: The ways in which the power is cut. Not `sigkill`, which is none; and not those in which a half-written sector takes
#: its neighbours with it: drives are expected not to, and SQLite promises its last transaction only on those.
KINDS = tuple(kind.name for kind in CRASH_KINDS.values() if not (kind.keeps_all_names or kind.loses_the_last))
WAYS = tuple((kind, names) for names in NAME_MODELS for kind in KINDS)


class Pushed(NamedTuple):
    """A push that has returned, and where in the log that was."""

    operations: int  #: that had been issued by then
    acknowledgement: Acknowledgement


class Recorded(NamedTuple):
    """Pushes that were written down, and may be cut."""

    recording: Recording
    stamps: list[float]  #: when each operation was asked for, by the clock of the acknowledgements
    pushes: list[Pushed]  #: in the order in which they returned
    begin: int  #: operations before the first that may be cut
    ended_at: float  #: by the same clock; what may be cut ends here
    end: int  #: operations by then
    in_flight_end: int  #: operations after one push more, that had not returned when the power failed; `end` without


class Cost(NamedTuple):
    """What a job's whole life costs the disk."""

    fsyncs_per_job: float
    bytes_per_job: float


def record(mode: str, callers: int, jobs: int, seconds: float, path: Path) -> tuple[Recorded, Cost]:
    """Push `jobs` jobs and flush; push for `seconds`; then cycle jobs for as long.

    The power cuts are about the pushes after the flush: what came before it must be there in every mode with a file,
    so that one sees a mode lose its newest jobs, not all that there were. What a job costs the disk is told by the
    cycles: all that was written and synced from their begin until the close, with its checkpoint, over the number of
    jobs. Syncs are real, so that callers share commits as they do without the recorder.
    """
    path.mkdir()
    pushes: list[Pushed] = []
    with Recorder(path, real_fsync=True, stamp=clock.monotonic) as recorder:  # noqa: SIM117  # what a close does too
        with workload.opened(mode, path / JOBS) as rq:

            def push() -> None:
                job_id = workload.push(rq)
                pushes.append(Pushed(len(recorder), Acknowledgement(job_id, clock.monotonic())))

            keep_calling(callers, push, lambda: len(pushes) < jobs)
            rq.flush()
            begin = len(recorder)
            timed(callers, push, seconds)
            ended_at, end = clock.monotonic(), len(recorder)
            rq.flush()
            start = len(recorder)
            cycles = timed(callers, lambda: workload.cycle(rq), seconds).calls
    written = recorder.operations[start:]
    fsyncs = sum(1 + operation.with_names for operation in written if operation.kind is Kind.SYNC)
    return (
        Recorded(
            recorder.recording, recorder.stamps, sorted(pushes, key=attrgetter("operations")), begin, ended_at, end, end
        ),
        Cost(fsyncs / cycles, sum(len(operation.payload) for operation in written) / cycles),
    )


def losses(recorded: Recorded, cuts: int, seed: int, scratch: Path) -> list[Loss]:
    """Cut the power at so many operations, spread over the pushes, and count what is gone after each.

    Half of them are right before a sync, when most is at stake, the others anywhere.
    """
    platter = Platter(recorded.recording)
    return [loss_at(recorded, platter, cut, scratch) for cut in chosen(recorded, cuts, seed)]


def chosen(recorded: Recorded, cuts: int, seed: int) -> list[Cut]:
    """The cuts, in rising order: each costs only the way from the one before."""
    log = recorded.recording.operations
    syncs = [at for at in range(recorded.begin, recorded.end) if log[at].kind is Kind.SYNC]
    before_syncs = _spread(syncs, cuts // 2)
    anywhere = _spread(range(recorded.begin, recorded.end + 1), cuts - len(before_syncs))
    ats = sorted([*before_syncs, *anywhere])
    return [Cut(at, *WAYS[number % len(WAYS)], seed) for number, at in enumerate(ats)]


def loss_at(recorded: Recorded, platter: Platter, cut: Cut, scratch: Path) -> Loss:
    """Of a cut right before operation `cut.at` is issued: all that was acknowledged until then counts."""
    returned = bisect_right(recorded.pushes, cut.at, key=attrgetter("operations"))
    cut_at = recorded.stamps[cut.at] if cut.at < recorded.end else recorded.ended_at
    acknowledged = [push.acknowledgement for push in recorded.pushes[:returned]]
    found = found_after(platter, cut, scratch)
    return loss(acknowledged, found, cut_at, keeps_nothing=not recorded.recording.operations)


def found_after(platter: Platter, cut: Cut, scratch: Path) -> frozenset[str]:
    """The ids of the jobs that are there after a cut."""
    with laid_out(platter, cut, scratch) as image:
        return found_in(image / JOBS)


def _spread(among: "list[int] | range", count: int) -> list[int]:
    """Up to `count` of them, evenly spread, the first and the last included."""
    if count >= len(among):
        return list(among)
    if count < 2:
        return list(among[:count])
    return [among[math.floor(number * (len(among) - 1) / (count - 1))] for number in range(count)]
