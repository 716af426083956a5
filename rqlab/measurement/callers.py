"""Callers that do the same thing over and over, each in a thread of its own, and how long each call took."""

import threading
from collections.abc import Callable
from typing import NamedTuple

from rqlab import clock

WARM_UP_SHARE = 0.1  # of the timed seconds, before them: the first calls fill caches and make the log


class Timed(NamedTuple):
    """What calls in a stretch of time came to."""

    calls: int  #: warm-up included
    per_second: float  #: without the warm-up
    took: list[float]  #: seconds of each call that began after the warm-up, rising

    def percentile(self, share: float) -> float:
        """The least of `took` that at least this share of the calls did not exceed."""
        return self.took[min(int(share * len(self.took)), len(self.took) - 1)]


def keep_calling(
    callers: int, call: Callable[[], object], goes_on: Callable[[], bool], begin: Callable[[], None] = lambda: None
) -> None:
    """Make `call` over and over in `callers` threads while `goes_on()`; they start together, after `begin()`.

    The first error of any of them ends all, and is raised here, as an interrupt is. No thread is left.
    """
    gate = threading.Barrier(callers, begin)
    errors: list[BaseException] = []

    def caller() -> None:
        try:
            gate.wait()
            while goes_on() and not errors:
                call()
        except threading.BrokenBarrierError:
            pass  # they were called off
        except BaseException as error:  # noqa: BLE001  # raised below, in the thread that asked
            errors.append(error)

    threads = [threading.Thread(target=caller, name=f"rqlab-caller-{number}", daemon=True) for number in range(callers)]
    started: list[threading.Thread] = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
        for thread in started:
            thread.join()
    except BaseException as error:  # an interrupt, or no more threads
        errors.append(error)
        gate.abort()
        for thread in started:
            thread.join()
        raise
    if errors:
        raise errors[0]


def timed(callers: int, call: Callable[[], object], seconds: float) -> Timed:
    """Make `call` in `callers` threads for this long, after a warm-up.

    Each caller waits for its call to return before it makes the next. The rate is of the calls that began after the
    warm-up, by the time until the last of them had returned.
    """
    read = clock.monotonic
    window = [0.0, 0.0]
    calls: list[None] = []
    took: list[float] = []

    def begin() -> None:
        window[0] = read() + seconds * WARM_UP_SHARE
        window[1] = window[0] + seconds

    def one() -> None:
        began = read()
        call()
        ended = read()
        calls.append(None)
        if began >= window[0]:
            took.append(ended - began)

    def goes_on() -> bool:
        return not took or read() < window[1]  # however slow the disk, there is one figure

    keep_calling(callers, one, goes_on, begin)
    elapsed = read() - window[0]
    return Timed(len(calls), len(took) / elapsed, sorted(took))
