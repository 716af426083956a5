"""How long to wait before a job is tried again. Pure arithmetic: chance comes in as a number.

The attempt already counts the failure, so a base of 1 s gives 1, 1, 1 (fixed), 1, 2, 3 (linear)
and 1, 2, 4 s (exponential: base x 2^(attempt-1)).
"""

from rqlab.job import Backoff, Job, milliseconds

MAX_DOUBLINGS = 64  # 1 ms x 2^64 is 584 million years: far past any max_backoff, and never an overflow


def retry_in(job: Job, draw: float) -> int:
    """Milliseconds until the next run of a job whose `attempt` has just been counted.

    `draw` is a number in [0, 1) from the injected random source; with jitter 0 it has no effect.
    """
    delay = min(_uncapped(job.backoff, job.backoff_delay, job.attempt), job.max_backoff)
    if job.jitter:
        delay = min(delay * (1 + job.jitter * (2 * draw - 1)), job.max_backoff)
    return milliseconds(delay)


def _uncapped(backoff: Backoff, base: float, attempt: int) -> float:
    match backoff:
        case Backoff.FIXED:
            return base
        case Backoff.LINEAR:
            return base * attempt
        case Backoff.EXPONENTIAL:
            return float(base * 2 ** min(attempt - 1, MAX_DOUBLINGS))
