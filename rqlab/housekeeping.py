"""What must happen though nobody asks: due jobs, schedules, time-outs, stalls, expiry, retention.

`Housekeeper.step(now)` says when to call it again; it reads no clock. Any number of processes may keep house over one
directory at once: every duty is a transaction that finds its work done, or does it.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from rqlab.engine import MAX_MOVES, Engine, Push
from rqlab.errors import RQLabError, StoreCorrupt
from rqlab.job import State, milliseconds
from rqlab.schedule import Schedule

log = logging.getLogger("rqlab")

#: Which states of jobs give a duty something to do in a queue; where the counters show none it is not looked at.
UNSTARTED = (State.WAITING, State.DELAYED)

SWEEP_SECONDS = 60.0  # retention is counted in days; once a minute is often enough


class Retention(msgspec.Struct, frozen=True):
    """How long finished jobs are kept, in seconds from `finished_at`; None keeps them for ever."""

    completed: float | None = 7 * 86_400.0
    cancelled: float | None = 7 * 86_400.0
    dlq: float | None = 90 * 86_400.0


class Housekeeper:
    """One pass over all duties each tick, each duty isolated from the errors of the others."""

    def __init__(
        self,
        engine: Engine,
        make: Callable[[Schedule, int, int], tuple[Push, str]],
        *,
        stall_timeout: float,
        tick_interval: float,
        retention: Callable[[], Retention],
        refresh: Callable[[int], object] = lambda now: None,
    ) -> None:
        self.engine = engine
        self.make = make  #: make(schedule, tick, now) gives the job of a tick and its id: ids are the front door's
        self.stall_timeout_ms = milliseconds(stall_timeout)
        self.tick_ms = milliseconds(tick_interval)
        self.retention = retention
        self.refresh_metrics = refresh
        self.judgement = Judgement(self.stall_timeout_ms)
        self.errors = 0  #: duties that failed since the start
        self.due_at: int | None = None  #: when the next tick is due; None before the first
        self.sweep_at: int | None = None
        self.clock_went_back = True  #: at the first tick nobody knows what the clock did before
        self._counters: Mapping[str, Mapping[str, int]] | None = None  #: of all queues, as this tick has found them

    def step(self, now: int) -> int:
        """One tick. Returns when the next is due, in ms since the epoch."""
        self._look_at_the_clock(now)
        self._counters = None
        judged_until = self.judgement.until(now, self.due_at)
        for name, duty in DUTIES:
            try:
                duty(self, now, judged_until)
            except RQLabError as error:
                self.errors += 1
                log.warning("housekeeping could not %s; it tries again at the next tick: %s", name, error)
            except Exception:
                self.errors += 1
                log.exception("housekeeping could not %s; it tries again at the next tick", name)
        self.due_at = now + self.tick_ms
        return self.due_at

    def _look_at_the_clock(self, now: int) -> None:
        if self.due_at is not None and now < self.due_at - self.tick_ms:
            log.warning("the wall clock went back by at least %.1f s", (self.due_at - self.tick_ms - now) / 1000)
            self.clock_went_back = True
            self.due_at = self.sweep_at = None
            self.judgement = Judgement(self.stall_timeout_ms)

    # Duties.

    def promote(self, now: int, judged_until: int) -> None:
        self._in_each_queue((State.DELAYED,), lambda queue: self.engine.promote(queue, now))

    def fire(self, now: int, judged_until: int) -> None:
        while self.engine.fire(now, lambda schedule, tick: self.make(schedule, tick, now)):
            pass

    def shorten(self, now: int, judged_until: int) -> None:
        if self.clock_went_back:
            self._in_each_queue((State.ACTIVE,), lambda queue: self.engine.shorten(queue, now))
            self.clock_went_back = False

    def recover(self, now: int, judged_until: int) -> None:
        def move(queue: str) -> bool:
            recovered = self.engine.recover(queue, judged_until, now)
            for job in recovered:
                log.warning("%s/%s %s %s; it is %s", job.queue, job.name, job.id, job.last_error, job.state)
            return len(recovered) == MAX_MOVES

        self._in_each_queue((State.ACTIVE,), move)

    def expire(self, now: int, judged_until: int) -> None:
        self._in_each_queue(UNSTARTED, lambda queue: self.engine.expire(queue, now))

    def refresh(self, now: int, judged_until: int) -> None:
        self.refresh_metrics(now)

    def sweep(self, now: int, judged_until: int) -> None:
        if self.sweep_at is not None and now < self.sweep_at:
            return
        retention = self.retention()
        kept_seconds = {
            State.COMPLETED: retention.completed,
            State.CANCELLED: retention.cancelled,
            State.DLQ: retention.dlq,
        }

        for state, seconds in kept_seconds.items():
            if seconds is not None:
                self._remove(state, now - milliseconds(seconds), now)
        self.sweep_at = now + milliseconds(SWEEP_SECONDS)

    def _remove(self, state: State, before: int, now: int) -> None:
        def purge(queue: str) -> None:
            self.engine.purge(queue, state, before, now)

        self._in_each_queue((state,), purge)

    def _in_each_queue(self, states: Sequence[State], move: Callable[[str], bool | None]) -> None:
        """Do this in each queue that has jobs in one of these states, again while it says that there may be more.

        A look into each of 5 000 idle queues took a tick 0.9 s. A damaged queue holds up no other.
        """
        if self._counters is None:
            self._counters = self.engine.counters()
        damage: StoreCorrupt | None = None
        for queue, counters in self._counters.items():
            if not any(map(counters.get, states)):
                continue
            try:
                while move(queue):
                    pass
            except StoreCorrupt as error:
                damage = error
        if damage is not None:
            raise damage


Duty = Callable[[Housekeeper, int, int], None]

#: What a tick does, in this order; a new duty is one method and one row.
DUTIES: Sequence[tuple[str, Duty]] = (
    ("promote the delayed jobs that are due", Housekeeper.promote),
    ("fire the schedules that are due", Housekeeper.fire),
    ("cut the leases that a clock gone back left too long", Housekeeper.shorten),
    ("time out and recover the runs that are past due", Housekeeper.recover),
    ("expire the jobs whose ttl has passed", Housekeeper.expire),
    ("refresh the gauges", Housekeeper.refresh),
    ("remove what retention no longer keeps", Housekeeper.sweep),
)


class Judgement:
    """Which leases and time-outs a tick may judge: a late tick proves nothing.

    If this housekeeper itself was delayed by more than half a stall_timeout (suspend, a paused machine, a clock step),
    the workers were probably delayed with it. Then whatever is past due gets one more heartbeat interval, once: what
    was already past due at an earlier tick, at least that long ago, has had it.
    """

    def __init__(self, stall_timeout_ms: int) -> None:
        self.late_ms = stall_timeout_ms // 2
        self.grace_ms = stall_timeout_ms // 3  # a heartbeat interval
        self.ticks: deque[int] = deque()  #: earlier ticks: those within the grace, and the newest before it
        self.grace_until = 0

    def until(self, now: int, due_at: int | None) -> int:
        """What fell due at or before the returned instant may be judged; `due_at` is when this tick was due."""
        while len(self.ticks) > 1 and self.ticks[1] <= now - self.grace_ms:
            self.ticks.popleft()
        if due_at is not None and now - due_at > self.late_ms:
            log.warning(
                "housekeeping is %.1f s late: leases and time-outs get %.1f s more",
                (now - due_at) / 1000,
                self.grace_ms / 1000,
            )
            self.grace_until = now + self.grace_ms
        judged_until = now
        if now < self.grace_until:
            seen_before = bool(self.ticks) and self.ticks[0] <= now - self.grace_ms
            judged_until = self.ticks[0] if seen_before else 0
        self.ticks.append(now)
        return judged_until
