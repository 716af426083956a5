"""What a mode promises, as numbers that a measured loss can be held against; the words are the row's in MODES."""

import math
from collections.abc import Callable
from typing import NamedTuple

from rqlab.durability import MODES, Opening


class Bound(NamedTuple):
    """The most that a crash may cost."""

    jobs: float  #: acknowledged pushes
    seconds: float  #: age of the oldest lost push, beyond what the disk takes to make a commit safe


DEFAULTS = Opening._field_defaults
NOTHING, ALL = Bound(0, 0), Bound(math.inf, math.inf)
HYBRID_ROOM = 4  # × max_dirty: there its writers wait

#: Of the rows whose words are neither "nothing" nor "all": by the defaults of `rqlab.open`, which are what is measured;
#: and what the disk may take longer.
BETWEEN: dict[str, tuple[Callable[[], Bound], str]] = {
    "buffered": (lambda: Bound(DEFAULTS["max_batch"], DEFAULTS["flush_interval"]), "a commit"),
    "hybrid": (lambda: Bound(HYBRID_ROOM * DEFAULTS["max_dirty"], DEFAULTS["snapshot_interval"]), "a snapshot"),
}


def bound(mode: str, words: str) -> Bound:
    """The numbers behind the words of a mode's row: `lost_at_kill` or `lost_at_power_cut`."""
    if words in ("nothing", "all"):
        return NOTHING if words == "nothing" else ALL
    return BETWEEN[mode][0]()


def most(mode: str, words: str) -> str:
    """The same, short enough for a table or a picture: `100 jobs, 10 ms + a commit`."""
    if words in ("nothing", "all"):
        return words
    allowed = bound(mode, words)
    jobs = f"{allowed.jobs:,.0f}".replace(",", " ")
    age = f"{allowed.seconds:g} s" if allowed.seconds >= 1 else f"{allowed.seconds * 1000:g} ms"
    return f"{jobs} jobs, {age} + {BETWEEN[mode][1]}"


def promised(mode: str) -> str:
    """What the mode's row in MODES allows to be lost at a crash."""
    row = MODES[mode]
    at_kill, at_power_cut = most(mode, row.lost_at_kill), most(mode, row.lost_at_power_cut)
    return at_kill if at_kill == at_power_cut else f"kill -9: {at_kill}; power cut: {at_power_cut}"


def held(mode: str, lost_at_kill: float, lost_at_power_cut: float) -> bool:
    """Whether no more was lost than the mode allows. What was not measured (nan) breaks no promise.

    In jobs, because the seconds depend on how long this disk takes for a commit.
    """
    row = MODES[mode]
    at_kill, at_power_cut = bound(mode, row.lost_at_kill), bound(mode, row.lost_at_power_cut)
    return not (lost_at_kill > at_kill.jobs or lost_at_power_cut > at_power_cut.jobs)
