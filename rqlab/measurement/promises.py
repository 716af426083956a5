"""What a mode promises, as numbers that a measured loss can be held against, and in a few words for a table."""

import math
from typing import NamedTuple

from rqlab.durability import MODES, Opening

DEFAULTS = Opening("")  # what is measured is a mode as it is opened without any setting


class Bound(NamedTuple):
    """The most that a crash may cost."""

    jobs: float  #: acknowledged pushes; inf is all
    seconds: float  #: age of the oldest lost push, beyond what the disk takes for one commit; inf is any


def bound(mode: str) -> Bound:
    """What the mode's row in MODES promises."""
    row = MODES[mode]
    return Bound(row.most_lost(DEFAULTS), row.window_seconds(DEFAULTS))


def promised(mode: str) -> str:
    """The same, short enough for a table or a picture: `100 jobs, 10 ms + a commit`."""
    jobs, seconds = bound(mode)
    if jobs in (0, math.inf):
        return "all" if jobs else "nothing"
    age = f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"
    return f"{jobs:,.0f} jobs, {age} + a commit".replace(",", " ", 1 if jobs >= 1000 else 0)


def held(mode: str, *lost_jobs: float) -> bool:
    """Whether none of these losses is more than the mode allows. What was not measured (nan) breaks no promise.

    In jobs, because the seconds depend on how long this disk takes for a commit.
    """
    allowed = bound(mode).jobs
    return not any(lost > allowed for lost in lost_jobs)
