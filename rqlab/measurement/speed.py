"""How fast a mode is: pushes, and whole cycles of a job, by callers that wait for each answer."""

from pathlib import Path
from typing import NamedTuple

from rqlab.measurement import workload
from rqlab.measurement.callers import timed


class Speed(NamedTuple):
    """What a timed run came to."""

    push_per_second: float
    cycles_per_second: float
    push_p50_seconds: float
    push_p99_seconds: float
    acknowledged: int  #: pushes that returned, warm-up included, before the cycles
    cycles: int  #: jobs that were pushed, pulled and acked, warm-up included


def measure_speed(mode: str, callers: int, seconds: float, path: Path) -> Speed:
    """Time pushes for `seconds`, then cycles for as long, in a new directory.

    Its opening and its close are not timed. The cycles have a queue of their own, so that no backlog is in their way.
    """
    with workload.opened(mode, path) as rq:
        pushes = timed(callers, lambda: workload.push(rq), seconds)
        cycles = timed(callers, lambda: workload.cycle(rq), seconds)
    return Speed(
        push_per_second=pushes.per_second,
        cycles_per_second=cycles.per_second,
        push_p50_seconds=pushes.percentile(0.50),
        push_p99_seconds=pushes.percentile(0.99),
        acknowledged=pushes.calls,
        cycles=cycles.calls,
    )
