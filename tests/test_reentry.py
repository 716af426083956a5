"""A signal handler that calls rqlab in the middle of a call is told so, or served; it never hangs, and parts nothing.

Python runs a handler as a function begins and as a C function returns. `Between` makes a call at the nth such moment,
in the same thread, as a handler does, so a loop over n visits them all; a real signal shows that it is so.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from test_group_commit import Caller
from test_stores import counted, recounted

import rqlab
from rqlab.errors import Reentered

MODES = ("memory", "durable", "buffered", "hybrid")
SIGNALS = 150


@pytest.fixture(params=MODES)
def rq(request: pytest.FixtureRequest, quick_path: Path) -> Iterator[rqlab.Queues]:
    with rqlab.memory() if request.param == "memory" else rqlab.open(quick_path / "q", request.param) as queues:
        yield queues


class Between:
    """Makes a call at the nth moment while its block runs; what came of it."""

    def __init__(self, nth: int, call: Callable[[], object]) -> None:
        self.left = nth
        self.call = call
        self.outcome = ""

    def __enter__(self) -> "Between":
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "c_return") or not self.left:
            return
        self.left -= 1
        if self.left == 0:
            try:
                self.call()
                self.outcome = "served"
            except Reentered:
                self.outcome = "refused"


CALLS: dict[str, Callable[[rqlab.Queues], object]] = {
    "push": lambda rq: rq.push("a", "inner"),
    "pull": lambda rq: rq.pull("b"),
    "look": lambda rq: rq.counts("a"),
    "flush": lambda rq: rq.flush(),
}
STRIDE = 3  # of all moments one in so many


def check_whole(rq: rqlab.Queues, outer: int, inner: int) -> None:
    """From another thread: no lock is left, and all that was acknowledged is there."""
    found = Caller(lambda: rq.jobs("a", limit=1_000_000)).finish()
    assert found.error is None
    names = [job.name for job in found.result]
    assert (names.count("outer"), names.count("inner")) == (outer, inner)
    assert counted(rq._store) == recounted(rq._store)


@pytest.mark.parametrize("inner", CALLS)
def test_a_call_in_the_middle_of_a_push_is_refused_or_served_and_parts_nothing(rq: rqlab.Queues, inner: str) -> None:
    seen: list[str] = []
    nth, outer, served = 1, 0, 0
    while True:
        with Between(nth, lambda: CALLS[inner](rq)) as between:
            rq.push("a", "outer")
        outer += 1
        if not between.outcome:
            break
        seen.append(between.outcome)
        served += inner == "push" and between.outcome == "served"
        nth += STRIDE

    assert len(seen) > 10
    assert inner != "push" or set(seen) == {"refused", "served"}
    check_whole(rq, outer, served)


@pytest.mark.parametrize("outer", ["flush", "close", "look"])
def test_a_call_in_the_middle_of_another_leaves_no_lock(rq: rqlab.Queues, outer: str, quick_path: Path) -> None:
    for nth in range(1, 200, STRIDE):
        path = quick_path / str(nth)
        with rqlab.memory() if rq.path is None else rqlab.open(path, rq.durability) as queues:
            queues.push("a", "outer")
            act = {"flush": queues.flush, "close": queues.close, "look": lambda: queues.jobs("a")}[outer]
            with Between(nth, lambda: (queues.flush(), queues.push("b", "inner"), queues.close())) as between:
                try:
                    act()
                except rqlab.StoreError as error:  # what came in between may have closed it
                    assert "closed" in str(error)  # noqa: PT017  # not at every moment
            if not between.outcome:
                break
            assert Caller(queues.close).finish().error is None
        if rq.path is not None:
            with rqlab.open(path) as again:
                assert again.counts("a").waiting == 1


def test_a_real_signal_whose_handler_pushes_hangs_nobody_and_loses_nothing(rq: rqlab.Queues) -> None:
    outcomes = {"served": 0, "refused": 0}

    def handle(number: int, frame: object) -> None:
        try:
            rq.push("a", "inner")
            outcomes["served"] += 1
        except Reentered:
            outcomes["refused"] += 1

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)
    pushed = 0
    try:
        deadline = time.monotonic() + 30
        while (sum(outcomes.values()) < SIGNALS or not outcomes["refused"]) and time.monotonic() < deadline:
            rq.push("a", "outer")
            pushed += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert outcomes["refused"], "or it was never in the middle"
    check_whole(rq, pushed, outcomes["served"])


def test_a_handler_that_lets_the_refusal_through_stops_the_call_like_any_exception(rq: rqlab.Queues) -> None:
    stored = 0
    for nth in range(1, 1_000, STRIDE):
        between = Between(nth, lambda: None)

        def raises() -> None:
            raise LookupError("from a handler")

        between.call = raises
        try:
            with between:
                rq.push("a", "outer")
            stored += 1
        except LookupError:
            pass
        except rqlab.StoreError as error:  # in durable, the transaction's: it tells everybody in it
            assert "from a handler" in str(error)  # noqa: PT017  # not at every moment
        if between.left:
            break

    found = Caller(lambda: rq.jobs("a", limit=10_000)).finish()
    assert len(found.result) >= stored, "what was acknowledged is there"
    assert counted(rq._store) == recounted(rq._store)
