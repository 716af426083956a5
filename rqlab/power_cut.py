"""The demo of the power cut: the same jobs in every durability mode, and what each had really kept.

No machine is harmed: SQLite's real writes are recorded, and a model of a disk forgets what was not synced. Time is
virtual and everything is drawn from the seed, so the same seed tells the same story.
"""

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rqlab.durability import MODES
from rqlab.measurement import cuts, paced, promises
from rqlab.measurement.losses import Loss, loss
from rqlab.measurement.result import Table
from rqlab.simulation.platter import CRASH_KINDS, Cut, Platter
from rqlab.simulation.recorder import RecorderUnavailable
from rqlab.simulation.recovery import scratch_directory

MEAN_PAUSE_MS = 4.0  # between two pushes
SEED = 7  # if none is given
CUT_AFTER_MS = (2_100, 2_900)  # at the earliest, at the latest: a hybrid queue has taken snapshots by then


class Kept(NamedTuple):
    """What one mode had kept when the power failed."""

    mode: str
    loss: Loss
    survived: int
    is_prefix: bool  #: what survived is all that came before what is gone
    promise_held: bool


def run(seed: int, say: Callable[[str], None] = print) -> bool:
    """Push, cut, recover and tell, in every mode; whether every mode kept its promise. Nothing of it stays."""
    instants, blow = story(seed)
    lasted = instants[-1] / 1000
    say(f"{len(instants)} jobs are pushed in each mode, in {lasted:.1f} s. In the next push the power fails.")
    say("SQLite is real; the seconds are virtual, and the disk is a model. It fails like this:")
    say(f"{CRASH_KINDS[blow.kind].says}.\n")
    try:
        with scratch_directory() as scratch:
            kept = [cut_power(mode, instants, blow, scratch, seed) for mode in MODES]
    except RecorderUnavailable as error:
        say(f"This cannot be shown here: {error}")
        return False
    say(table(kept).text())
    say("")
    for each in kept:
        say(sentence(each))
    say(f"\nAnother cut: rqlab demo --power --seed {seed + 1}")
    return all(each.promise_held for each in kept)


class Blow(NamedTuple):
    """How the power fails, and how the disk takes it."""

    kind: str  #: a row of CRASH_KINDS
    names: str  #: a row of NAME_MODELS
    share: float  #: of the operations of the push in flight that had been issued


def story(seed: int) -> tuple[list[int], Blow]:
    """When the jobs are pushed (milliseconds), the last right before the cut, and how it comes."""
    dice = random.Random(seed)
    until = dice.randint(*CUT_AFTER_MS)
    instants, at = [0], 0.0
    while (at := at + dice.expovariate(1 / MEAN_PAUSE_MS)) < until:
        instants.append(int(at))
    return instants, Blow(*dice.choice(cuts.WAYS), dice.random())


def cut_power(mode: str, instants: Sequence[int], blow: Blow, scratch: Path, seed: int) -> Kept:
    """Push in one mode, cut the power while one push more is under way, and look what is there."""
    recorded = paced.record(mode, instants, scratch / mode, seed)
    at = recorded.end + round(blow.share * (recorded.in_flight_end - recorded.end))
    found = cuts.found_after(Platter(recorded.recording), Cut(at, blow.kind, blow.names, seed), scratch)
    acknowledged = [push.acknowledgement for push in recorded.pushes]
    lost = loss(acknowledged, found, recorded.ended_at, keeps_nothing=not recorded.recording.operations)
    survived = len(acknowledged) - lost.lost
    is_prefix = all(push.job_id in found for push in acknowledged[:survived])
    allowed = promises.bound(mode)
    within = lost.lost <= allowed.jobs and lost.window_seconds <= allowed.seconds
    return Kept(mode, lost, survived, is_prefix, within and is_prefix)


def table(kept: Sequence[Kept]) -> Table:
    """One row a mode."""
    head = ("mode", "acknowledged", "survived", "lost", "oldest lost", "promised: at most", "held")
    return Table(head, [_row(each) for each in kept])


def sentence(kept: Kept) -> str:
    """What happened in one mode, for somebody who sees this for the first time."""
    mode, lost = kept.mode, kept.loss
    if not kept.promise_held:
        return f"{mode} BROKE ITS PROMISE: {lost.lost} jobs are gone{_hole(kept)}. Please report it, with the seed."
    if not lost.lost:
        return f"{mode} lost nothing: its push returns {MODES[mode].returns.split(';')[0]}."
    if lost.window_seconds == math.inf:
        return f"{mode} lost everything: it has no file, so nothing outlives the process, as its promise says."
    return (
        f"{mode} lost its newest {_jobs(lost.lost)}, pushed in the last {_age(lost.window_seconds)}, and none before:\n"
        "    its push returns before the disk has the job, as its promise says."
    )


def _row(kept: Kept) -> list[str]:
    lost = kept.loss
    oldest = "" if not lost.lost else "–" if lost.window_seconds == math.inf else _age(lost.window_seconds)
    numbers = (str(lost.acknowledged), str(kept.survived), str(lost.lost), oldest)
    return [
        kept.mode,
        *numbers,
        promises.promised(kept.mode),
        "yes" if kept.promise_held else "NO",
    ]


def _hole(kept: Kept) -> str:
    return "" if kept.is_prefix else ", older ones among them while newer ones are there"


def _age(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{max(seconds * 1000, 1):.0f} ms"


def _jobs(count: int) -> str:
    return "job" if count == 1 else f"{count} jobs"
