"""What a crash cost: acknowledged jobs that are not there any more, and how old the oldest of them was."""

import math
from collections.abc import Iterable, Set
from pathlib import Path
from typing import NamedTuple

from rqlab.errors import StoreCorrupt
from rqlab.simulation import recovery


class Acknowledgement(NamedTuple):
    """A push that has returned."""

    job_id: str
    at: float  #: seconds, by the monotonic clock


class Loss(NamedTuple):
    """What one crash cost."""

    acknowledged: int  #: pushes that had returned
    lost: int  #: of those, jobs that are gone
    window_seconds: float  #: age of the oldest lost push; 0 if nothing was lost, inf if the mode keeps nothing


def loss(acknowledged: Iterable[Acknowledgement], found: Set[str], crashed_at: float, *, keeps_nothing: bool) -> Loss:
    """Hold what was acknowledged against what was `found` after the crash.

    A mode without a file loses everything, whatever its age, so its window is infinite.
    """
    pushes = list(acknowledged)
    lost_at = [push.at for push in pushes if push.job_id not in found]
    if not lost_at:
        return Loss(len(pushes), 0, 0.0)
    age = round(max(crashed_at - min(lost_at), 0.0), 6)  # a difference of floats is a little off
    return Loss(len(pushes), len(lost_at), math.inf if keeps_nothing else age)


def found_in(directory: Path) -> frozenset[str]:
    """The ids of all jobs in a directory after a crash, read by SQLite alone.

    Raises StoreCorrupt if SQLite finds anything wrong with the file: then no figure of it can be trusted.
    """
    recovered = recovery.read(directory)
    if recovered.complaints:
        raise StoreCorrupt(f"{directory} is damaged after a crash that was measured: {'; '.join(recovered.complaints)}")
    return frozenset(str(row[0]) for row in recovered.state)


def worst(losses: Iterable[Loss]) -> Loss:
    """The most of each: jobs and age need not come from the same crash."""
    found = list(losses)
    most = max(found, key=lambda each: (each.lost, each.acknowledged))
    return Loss(most.acknowledged, most.lost, max(each.window_seconds for each in found))
