"""Who moves jobs on: pulls what there is room for, hands it to an executor, and reports how it ended.

`Worker.step(now)` says when to call it again, `Worker.beat(now)` keeps the leases; both read no clock. A storage error
never ends a worker: what could not be stored is tried again until the lease ends.
"""

import logging
from collections import Counter
from collections.abc import Callable

from rqlab.engine import Ending, Engine, Pull
from rqlab.errors import LeaseLost, RQLabError, StoreCorrupt
from rqlab.executors import Executor, Run, Services
from rqlab.job import Job, milliseconds
from rqlab.lifecycle import Event

log = logging.getLogger("rqlab")

POLL_MS = 25  # between two looks for what other processes did: wakes within 50 ms, 0.3 % of a core
LOOK_MS = 10_000  # a look at the line even if nothing seems to have changed: of 5 000 queues it takes 0.2 s
CHECK_MS = 50  # between two looks whether the runs still hold their jobs: a cancelled run is told within 0.1 s
RETRY_MS = (50, 100, 200, 500, 1_000)  # between tries while the store refuses

#: What a drain counts its runs as; a run that lost its job is "lost".
OUTCOMES = {
    Event.ACK: "completed",
    Event.FAIL: "failed",
    Event.TIME_OUT: "timed_out",
    Event.RELEASE: "released",
    Event.SNOOZE: "snoozed",
}


class Worker:
    """At most `executor.concurrency` runs of jobs from `queues`; driven by `step`, kept alive by `beat`.

    `step` and `beat` may be called from two threads; each from one at a time.
    """

    def __init__(
        self,
        engine: Engine,
        executor: Executor,
        queues: tuple[str, ...],
        *,
        stall_timeout: float,
        name: str,
        clock: Callable[[], int],
    ) -> None:
        self.engine = engine
        self.executor = executor
        self.queues = queues
        self.stall_timeout = stall_timeout
        self._stall_ms = milliseconds(stall_timeout)
        self.name = name  #: host:pid:thread, in every record that it holds
        self.runs: dict[str, Run] = {}  #: by job id: the runs whose leases this worker keeps
        self.outcomes: Counter[str] = Counter()  #: what it reported, by event
        self.is_stopping = False  #: no more pulls; `step` returns None when the last run has ended
        self.is_releasing = False  #: runs in flight are released at the next step
        self.pulls_left: int | None = None  #: jobs it may still pull; None: no limit
        self.is_drain = False  #: it ends by itself: see `_ended`
        self.clock = clock  #: the instant inside a run, for its progress and logs: `step` is not there to pass it
        self._services = Services(self._progress, self._log)
        self._unstored: list[tuple[Run, Ending]] = []  #: reports that the store has not taken yet
        self._put_off: list[tuple[Run, Ending]] = []  #: reports that are stored at the end of the drain
        self.refusal: RQLabError | None = None  #: why the store did not take the last step
        self._failures = 0  #: in a row
        self._failing_since = 0  #: when the first of them was
        self._look_at = 0
        self._seen = -1
        self._check_at = 0
        self._checked = -1
        self._expected_at: int | None = None
        self._now = 0

    def step(self, now: int) -> int | None:
        """Report what ended, pull and start what there is room for. None when it has stopped."""
        self._notice_the_clock(now)
        self._drop_lost(now)
        self._collect(now)
        if self.executor.is_over() and not self.is_releasing:
            log.warning("%s stops: the event loop of its application is closed", self.name)
            self.release()
        if self.is_releasing:
            self._release()
        if self.is_stopping:
            self._unstored, self._put_off = self._unstored + self._put_off, []
        try:
            again_at = now if self._report_and_pull(now) else now + POLL_MS
            self._failures, self.refusal = 0, None
        except RQLabError as error:
            self.refusal = error
            again_at = self._retry_at(now, error)
        if self.is_stopping and not self.runs and not self._unstored:
            return None
        self._expected_at = again_at
        return again_at

    def beat(self, now: int) -> int:
        """Keep the leases of the runs in flight; when to call again."""
        runs = list(self.runs.values())
        interval = milliseconds(self.stall_timeout / 3)
        if not runs:
            return now + interval
        try:
            outcomes = self.engine.heartbeat([run.job for run in runs], now)
        except RQLabError as error:
            log.warning("%s could not store its heartbeats, and tries again: %s", self.name, error)
            return now + min(interval // 4 + 1, RETRY_MS[-1])
        for run, outcome in zip(runs, outcomes, strict=True):
            if isinstance(outcome, LeaseLost) and self.runs.get(run.job.id) is run:
                run.is_lost = True
            elif isinstance(outcome, StoreCorrupt):
                log.warning("%s cannot keep job %s, delivery %d: %s", self.name, *_which(run), outcome)
        return now + interval

    def stop(self) -> None:
        """Pull no more; `step` goes on until the runs in flight have ended."""
        self.is_stopping = True

    def release(self) -> None:
        """Give the runs in flight back at the next step, no attempt charged."""
        self.is_stopping = self.is_releasing = True

    def in_flight(self) -> int:
        """How many runs have not ended, or not been reported though they could be."""
        return len(self.runs) - len(self._put_off)

    @property
    def idle_until(self) -> int:
        """Until when a step finds nothing, unless a run ends or something is stored: a simulation need not poll."""
        time_outs = [
            max(at, run.forgiven_until) for run in self.runs.values() if (at := run.job.timeout_at) is not None
        ]
        look_at = self._look_at if self.executor.free() else self._now + LOOK_MS
        return min([look_at, self._now + LOOK_MS, *time_outs])

    # The parts of a step.

    def _notice_the_clock(self, now: int) -> None:
        """A step that comes late proves nothing about the runs: a time-out gets one more heartbeat interval, once."""
        if now < self._now:  # the wall clock went back: instants noted before are no use
            self._look_at = self._check_at = 0
            self._failing_since = now
        self._now = now
        if self._expected_at is None or now - self._expected_at <= self._stall_ms // 2:
            return
        forgiven_until = now + self._stall_ms // 3
        for run in self.runs.values():
            timeout_at = run.job.timeout_at
            if timeout_at is not None and timeout_at < forgiven_until and not run.forgiven_until:
                run.forgiven_until = forgiven_until

    def _drop_lost(self, now: int) -> None:
        """Runs that hold their jobs no more: told, stopped where possible, and their reports dropped."""
        if self.runs and now >= self._check_at:
            self._check(now)
        for run in [run for run in self.runs.values() if run.is_lost]:
            log.warning("%s lost job %s, delivery %d: its result is dropped", self.name, *_which(run))
            self._give_up(run)
            self.outcomes["lost"] += 1

    def _check(self, now: int) -> None:
        self._check_at = now + CHECK_MS
        try:
            version = self.engine.store.changed()
            if version == self._checked:
                return
            runs = list(self.runs.values())
            for run, holds in zip(runs, self.engine.holds([run.job for run in runs]), strict=True):
                run.is_lost = run.is_lost or not holds
            self._checked = version
        except RQLabError as error:
            log.warning("%s could not look whether its runs hold their jobs: %s", self.name, error)

    def _collect(self, now: int) -> None:
        for run, report in self.executor.poll():
            self._look_at = now  # there is room again
            if self.runs.get(run.job.id) is run:
                self._ended(run, report.ending(run.job), now)
        if any(_is_over_time(run, now) for run in self.runs.values()):
            for run in self._in_flight():
                if _is_over_time(run, now):
                    self._break_off(run, Event.TIME_OUT)

    def _ended(self, run: Run, ending: Ending, now: int) -> None:
        """The run is to be reported. In a drain two things are otherwise.

        It is blocked by its handlers, so nobody notices a time-out before the run has returned: then it is charged. And
        what is snoozed for no time at all would be due again for ever: that is stored when the rest has been run.
        """
        timeout_at = run.job.timeout_at
        if self.is_drain and timeout_at is not None and timeout_at <= now:  # a late step is the handler's doing
            ending = Ending(run.job, Event.TIME_OUT)
        if self.is_drain and ending.event is Event.SNOOZE and not milliseconds(ending.delay or 0):
            self._put_off.append((run, ending))
        else:
            self._unstored.append((run, ending))

    def _release(self) -> None:
        for run in self._in_flight():
            self._break_off(run, Event.RELEASE)

    def _in_flight(self) -> list[Run]:
        """The runs that have not ended: those whose reports only wait to be stored are not stopped any more."""
        ended = {id(run) for run, _ in self._unstored + self._put_off}
        return [run for run in self.runs.values() if id(run) not in ended]

    def _break_off(self, run: Run, event: Event) -> None:
        self._give_up(run)
        self._unstored.append((run, Ending(run.job, event)))

    def _report_and_pull(self, now: int) -> bool:
        """Store the endings and pull the next jobs in one commit; whether there may be more to do at once."""
        room = 0 if self.is_stopping else self.executor.free()
        if self.pulls_left is not None:
            room = min(room, self.pulls_left)
        request = Pull(self.queues, room, self.name, self.stall_timeout)
        if self._unstored:
            unstored = self._unstored
            outcomes, jobs = self.engine.finish([ending for _, ending in unstored], request, now)
            self._unstored = []
            for (run, ending), outcome in zip(unstored, outcomes, strict=True):
                self._note(run, ending, outcome)
            self._look_at = now
        elif room and self._should_look(now):
            self._look_at = now  # also if the pull fails
            jobs = self.engine.pull(request, now)
            if not jobs:
                self._look_at = self._next_look(now)
        else:
            return False
        for job in jobs:
            self._start(job)
        if self.pulls_left is not None:
            self.pulls_left -= len(jobs)
        self.queues = self.queues[1:] + self.queues[:1]  # each queue is served first in its turn
        return bool(jobs) and self.executor.free() > 0

    def _should_look(self, now: int) -> bool:
        version = self.engine.store.changed()
        if version == self._seen and now < self._look_at:
            return False
        self._seen = version
        return True

    def _next_look(self, now: int) -> int:
        due_at = self.engine.next_due(self.queues)
        return now + LOOK_MS if due_at is None else min(due_at, now + LOOK_MS)

    def _start(self, job: Job) -> None:
        run = Run(job, self._services)
        self.runs[job.id] = run
        try:
            self.executor.start(run)
        except Exception as error:
            log.exception("%s could not start job %s, delivery %d", self.name, *_which(run))
            reason = f"its worker could not start it: {type(error).__name__}: {error}"
            self._unstored.append((run, Ending(job, Event.FAIL, error=reason)))

    def _note(self, run: Run, ending: Ending, outcome: Job | RQLabError) -> None:
        if self.runs.get(run.job.id) is run:
            del self.runs[run.job.id]
        if isinstance(outcome, StoreCorrupt):
            log.error(
                "%s cannot store the %s of job %s, delivery %d: %s", self.name, ending.event, *_which(run), outcome
            )
            self.outcomes["lost"] += 1
        elif isinstance(outcome, RQLabError):
            # A time-out or a release of its own takes nothing away: somebody else, as housekeeping, was quicker.
            level = logging.DEBUG if ending.event in (Event.TIME_OUT, Event.RELEASE) else logging.WARNING
            late = "%s: the %s of job %s, delivery %d, came too late: %s"
            log.log(level, late, self.name, ending.event, *_which(run), outcome)
            self.outcomes["lost"] += 1
        else:
            self.outcomes[OUTCOMES[ending.event]] += 1

    def _give_up(self, run: Run) -> None:
        if self.runs.get(run.job.id) is run:
            del self.runs[run.job.id]
        self._unstored = [(other, ending) for other, ending in self._unstored if other is not run]
        self._put_off = [(other, ending) for other, ending in self._put_off if other is not run]
        self.executor.stop(run)

    def _retry_at(self, now: int, error: RQLabError) -> int:
        log.warning("%s could not reach the store, and tries again: %s", self.name, error)
        if not self._failures:
            self._failing_since = now
        if self.is_stopping and now - self._failing_since >= self._stall_ms:
            self._forget_unstored()
        pause = RETRY_MS[min(self._failures, len(RETRY_MS) - 1)]
        self._failures += 1
        return now + pause

    def _forget_unstored(self) -> None:
        """The leases have ended while the store refused: a worker that was told to stop need not wait any longer."""
        for run, ending in self._unstored:
            log.error(
                "%s gives up: the %s of job %s, delivery %d, is not stored", self.name, ending.event, *_which(run)
            )
            if self.runs.get(run.job.id) is run:
                del self.runs[run.job.id]
        self._unstored = []

    # What a run's context asks.

    def _progress(self, run: Run, percent: float, message: str | None) -> None:
        self._record(run, lambda now: self.engine.progress(run.job, percent, message, now))

    def _log(self, run: Run, line: str) -> None:
        self._record(run, lambda now: self.engine.log(run.job, line, now))

    def _record(self, run: Run, store: Callable[[int], Job]) -> None:
        try:
            store(self.clock())
        except LeaseLost:
            run.is_lost = True
            raise
        except RQLabError as error:
            log.warning("job %s, delivery %d: progress could not be stored: %s", *_which(run), error)


def _is_over_time(run: Run, now: int) -> bool:
    timeout_at = run.job.timeout_at
    return timeout_at is not None and max(timeout_at, run.forgiven_until) <= now


def _which(run: Run) -> tuple[str, int]:
    return run.job.id, run.job.deliveries
