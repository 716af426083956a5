"""What one run of a world is of, but for its plan: the arguments of `simulate`, checked."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rqlab.durability import Opening
from rqlab.executors import Handlers
from rqlab.simulation.checks import Check


class Settings(NamedTuple):
    """What a run is of, but for its plan."""

    seed: int
    jobs: int | Sequence[Mapping[str, object]]
    workers: int
    concurrency: int
    durability: str
    store: str
    handler: Handlers | None
    failure_rate: float
    duration: float  #: seconds; the mean of a run
    stall_timeout: float  #: seconds
    tick_interval: float  #: seconds
    opening: Opening  #: the settings of the mode
    until: float | None  #: seconds; None: until everything has come to rest
    checks: tuple[Check, ...]
