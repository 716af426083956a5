"""How much is measured: two sets of numbers, one for a reference and one for a notebook's cell."""

from typing import NamedTuple


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
