"""What changed: news of every event, after its commit, in commit order, to callbacks, waiting threads and the log.

Knows changes, not where they come from. The news is of this process's own changes; what other processes do is seen by
looking (`Store.changed`).
"""

import contextlib
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from rqlab.job import Job, State
from rqlab.lifecycle import Change, Event

log = logging.getLogger("rqlab")

Callback = Callable[[Change], None]


class Ringable(Protocol):
    """Something that wakes a waiting thread."""

    def ring(self) -> None: ...


class Observers:
    """Takes the changes of each commit from the store, and hands them out outside its lock."""

    def __init__(self) -> None:
        self._callbacks: dict[int, Callback] = {}
        self._bells: set[Ringable] = set()
        self._news: deque[Change] = deque()
        self._delivering = threading.RLock()
        self._deliverer = 0  #: the thread that delivers now; its callbacks may make changes of their own
        self._subscribing = threading.RLock()  # reentrant: a signal handler may subscribe in the middle of this
        self._keys = itertools.count()

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Call `callback(change)` for every change from now on; the returned function ends that."""
        with self._subscribing:
            key = next(self._keys)
            self._callbacks[key] = callback

        def unsubscribe() -> None:
            self._callbacks.pop(key, None)

        return unsubscribe

    def add_bell(self, bell: Ringable) -> None:
        """Ring this bell whenever a job may have become due, or a run may have lost its job."""
        with self._subscribing:
            self._bells = self._bells | {bell}  # a new set: `take` walks the old one without a lock

    def remove_bell(self, bell: Ringable) -> None:
        with self._subscribing:
            self._bells = self._bells - {bell}

    def take(self, changes: list[tuple[Event, Job, int]]) -> None:
        """The store's listener: called in commit order, under the store's lock, so it only notes and rings."""
        if self._callbacks or log.isEnabledFor(logging.DEBUG):
            self._news.extend(Change(*change) for change in changes)
        if self._bells and any(_concerns_workers(event, job) for event, job, _ in changes):
            for bell in self._bells:
                bell.ring()

    def deliver(self) -> None:
        """Hand out what there is. One thread at a time does it, so the order holds; the others go on."""
        while self._news and self._deliverer != threading.get_ident():
            try:  # nothing may come between: an interrupt there would keep the lock for ever
                if not self._delivering.acquire(blocking=False):
                    return
                self._deliverer = threading.get_ident()
                while self._news:
                    self._hand_out(self._news.popleft())
            finally:
                self._end_delivery()

    def _end_delivery(self) -> None:
        with contextlib.suppress(RuntimeError):  # another thread has it
            if self._deliverer == threading.get_ident():
                self._deliverer = 0
            self._delivering.release()

    def _hand_out(self, change: Change) -> None:
        job = change.job
        log.debug(
            "%s %s/%s %s: %s, attempt %d of %d, delivery %d",
            *(change.event, job.queue, job.name, job.id, job.state, job.attempt, job.max_attempts, job.deliveries),
        )
        for callback in list(self._callbacks.values()):
            try:
                callback(change)
            except Exception:
                log.exception(
                    "on_change callback %r failed on %s of job %s; it stays subscribed", callback, *change[:2]
                )


def _concerns_workers(event: Event, job: Job) -> bool:
    return job.state is State.WAITING or job.state is State.DELAYED or event is Event.CANCEL
