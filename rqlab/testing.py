"""Queues for the tests of an application: the same engine and the same front door, in virtual time.

    with rqlab.testing.queues() as rq:
        sign_up("ada@example.org")                      # the application pushes
        rq.assert_pushed("emails", "welcome", {"to": "ada@example.org"})
        rq.drain("emails", send, within=86_400)         # retries and delays happen at once, at their instants

`VirtualQueues` is a real `Queues` over a store in memory; it replaces what the front door has from outside, time and
chance, and knows nothing of pytest. Time passes only when a test says so, so no test sleeps, and each run is the same.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple, NoReturn, Self

from rqlab import arguments, executors
from rqlab.durability import mode
from rqlab.engine import Pull
from rqlab.errors import DeadLetter, RetryAfter, Snooze, ValidationError
from rqlab.executors import AsyncContext, Context, Finished, Handler, Handlers, Report, Run
from rqlab.executors.inline import InlineExecutor
from rqlab.housekeeping import Retention
from rqlab.ids import Ids
from rqlab.job import Job, instant, milliseconds
from rqlab.lifecycle import Change, Event
from rqlab.queues import DEFAULT_RETENTION, Queues, Seconds, checked_retention, queue_names, timing
from rqlab.queues import memory as real_memory
from rqlab.queues import open as real_open
from rqlab.simulation.chance import Chance
from rqlab.simulation.world import EPOCH
from rqlab.storage.memory import MemoryStore
from rqlab.storage.place import LAST, TIME_DIGITS
from rqlab.worker import Worker

MOST_SHOWN = 10  # jobs in an error message: the nearest ones
MOST_STEPS = 100_000  # instants in one call: a handler that pushes its own job again goes round for ever
UNSAID: Any = object()  # an argument that was not given: None is a value of its own
OPEN_OPTIONS = frozenset(real_open.__kwdefaults__ or ())
MEMORY_OPTIONS = frozenset(real_memory.__kwdefaults__ or ())


class Crash(BaseException):
    """Raised in a handler, it takes the worker with it, as `kill -9` would: nothing is reported, the lease runs out.

    No `except Exception` stops it. The job stays active until its lease ends, then its attempt counts as stalled.
    """


class Failure(NamedTuple):
    """A run that raised."""

    job: Job  #: as it was pulled
    error: BaseException  #: what the handler raised, with its traceback


class Effect(NamedTuple):
    """What a handler said that it did to the world outside, by `ctx.effect`."""

    job_id: str
    what: str
    delivery: int


@contextmanager
def queues(
    *,
    at: datetime | int = EPOCH,
    seed: int = 0,
    stall_timeout: Seconds = 30.0,
    tick_interval: Seconds = 1.0,
    retention: Retention = DEFAULT_RETENTION,
    stands_in: bool = True,
) -> Iterator["VirtualQueues"]:
    """Queues in virtual time for the block, which begins at `at` (2026-01-01 UTC; aware, or ms since the epoch).

    Within the block `rqlab.open` and `rqlab.memory` return them too, whatever the path, so that an application which
    opens its own queues is tested as it is; `stands_in=False` leaves those alone. An object that an application made
    earlier is replaced by the test: `monkeypatch.setattr(app, "rq", rq)`. The rest is as in `rqlab.memory`; `seed` is
    that of ids and jitter. ValidationError for a wrong argument.
    """
    rq = VirtualQueues(_instant(at), seed, retention, **timing(stall_timeout, tick_interval))
    names: Any = sys.modules["rqlab"]  # it is there; to import it would be to reach up the house
    before = names.open, names.memory
    if stands_in:
        names.open, names.memory = rq._opened, rq._opened_in_memory
    try:
        yield rq
    finally:
        names.open, names.memory = before
        rq.end()


class VirtualQueues(Queues):
    """`Queues` whose clock stands still until `advance`, `advance_to`, `drain(within=…)` or a `pull(wait=…)` move it.

    What falls due meanwhile happens at its own instant: delayed jobs, backoffs, schedules, stalls, time-outs, expiry.
    Made by `queues`, or the pytest fixture `rq`. Not for several threads: time has one owner.
    """

    def __init__(self, at: int, seed: int, retention: Retention, *, stall_timeout: float, tick_interval: float) -> None:
        chance = Chance(arguments.whole(seed, "seed", 0, 2**63))
        self._now_ms = self._began_at = at
        self._chance = chance
        self._bits = 0
        self._own_ids = Ids(self._draw_bits)
        self._workers: list[VirtualWorker] = []  #: under way, oldest first
        self._driven: list[Worker] = []  #: those that run something now: it may let time pass
        self._pushed: list[Job] = []
        self.failures: list[Failure] = []  #: every run that raised, oldest first; a run that crashed raised nothing
        self.effects: list[Effect] = []  #: of all runs, oldest first: what is there twice was done twice
        super().__init__(MemoryStore(), None, "memory", stall_timeout=stall_timeout, tick_interval=tick_interval)
        self._remember(checked_retention(retention))
        self.on_change(self._note)

    # Time.

    @property
    def at(self) -> datetime:
        """The virtual instant, aware, in UTC."""
        return datetime.fromtimestamp(self._now_ms / 1000, UTC)

    @property
    def elapsed(self) -> float:
        """Virtual seconds since the beginning."""
        return (self._now_ms - self._began_at) / 1000

    def advance(self, seconds: Seconds) -> Counter[str]:
        """Let so many seconds pass: schedules fire, leases end, `worker`s run what falls due; how their runs ended.

        Called by a handler, it is the time that its run takes: its lease is kept, as a worker's heartbeats would.
        """
        return self._pass_until(self._now_ms + milliseconds(arguments.seconds(seconds, "seconds")))

    def advance_to(self, at: datetime | int) -> Counter[str]:
        """Let time pass until an instant: an aware datetime, or ms since the epoch. ValidationError if it is past."""
        until = _instant(at)
        if until < self._now_ms:
            raise ValidationError(f"at: expected an instant after {instant(self._now_ms)}; got {instant(until)}")
        return self._pass_until(until)

    # Work.

    def drain(
        self,
        queues: str | Sequence[str],
        handler: Handlers,
        *,
        limit: int | None = None,
        within: Seconds = 0.0,
        raises: bool = False,
    ) -> Counter[str]:
        """Run what is due, as `Queues.drain`; and what falls due `within` so many seconds, the clock moving to each.

        So a job that fails is retried until it succeeds or is dead-lettered, a delayed one runs, a schedule fires, and
        a run that crashed is recovered, all without waiting. It ends when nothing more falls due in that time; the
        clock then stands where the last thing happened. `raises=True` raises what a handler raised, once its attempt is
        charged, so that a test shows the traceback. A run that crashed counts as `crashed`.
        """
        self._refuse_if_closed()
        worker = VirtualWorker(self, queues, handler)
        left = None if limit is None else arguments.whole(limit, "limit", 0)
        until = self._now_ms + milliseconds(arguments.seconds(within, "within"))
        outcomes: Counter[str] = Counter()
        for _ in range(MOST_STEPS):
            outcomes += worker.work(None if left is None else left - sum(outcomes.values()), raises)
            next_at = self._next_at()
            if next_at is None or next_at > until or (left is not None and sum(outcomes.values()) >= left):
                return outcomes
            self._move_to(next_at)
        return self._goes_round(outcomes)

    def worker(  # type: ignore[override]  # what it returns runs by this clock, not by threads
        self,
        queues: str | Sequence[str],
        handler: Handlers,
        *,
        concurrency: int = 1,
        isolation: str = "thread",
        shutdown: Any = None,
        grace: Seconds | None = None,
    ) -> "VirtualWorker":
        """A worker for a block, sync or async: it runs what is due whenever time passes, `advance(0)` included.

        It is checked as a real one, and runs one job after the other in the thread that lets time pass, whatever its
        concurrency and isolation; the end of the block is its shutdown.
        """
        self._worker(queues, handler, concurrency, isolation, shutdown, grace)
        return VirtualWorker(self, queues, handler)

    def run_worker(
        self,
        queues: str | Sequence[str],
        handler: Handlers,
        *,
        concurrency: int = 1,
        isolation: str = "thread",
        shutdown: Any = None,
        grace: Seconds | None = None,
    ) -> None:
        """Run what is due, and return: nobody else could push meanwhile. Checked as a real one."""
        self._worker(queues, handler, concurrency, isolation, shutdown, grace)
        self.drain(queues, handler)

    def crash(self, *arguments: object, **options: object) -> NoReturn:
        """Kill the worker, here: for a handler, or for what it calls, as `monkeypatch.setattr(bank, "pay", rq.crash)`.

        It takes any arguments. See `Crash`.
        """
        raise Crash

    def start_housekeeping(self) -> None:
        """Nothing to start: house is kept whenever time passes."""
        self._refuse_if_closed()

    def close(self) -> None:
        """What an application closes, its test still looks into: the queues stay open until the test ends."""

    def end(self) -> None:
        """Let go of everything; `queues` does so at the end of its block."""
        super().close()

    # What was pushed.

    def pushed(self, queue: str | None = None, name: str | None = None) -> list[Job]:
        """Every job that was ever pushed, as it was then: also those that have run or are removed; oldest first."""
        return [job for job in self._pushed if queue in (None, job.queue) and name in (None, job.name)]

    def forget_pushed(self) -> None:
        """Begin anew: `pushed` and the assertions see what is pushed from here on."""
        self._pushed.clear()

    def assert_pushed(
        self,
        queue: str,
        name: str | None = None,
        data: Any = UNSAID,
        *,
        has: Mapping[str, Any] | None = None,
        count: int | None = None,
        delay: Seconds | None = None,
        **fields: Any,
    ) -> list[Job]:
        """Such a job was pushed, `count` times exactly or at least once; the jobs.

        `data` must be equal, `has` is a part of it. `delay` is in seconds, and `fields` are any others of `Job`, as
        they were at the push: `priority=5`, `unique_key="ada"`. AssertionError shows what was pushed instead, and how
        the nearest jobs differ. ValidationError for a field that no job has.
        """
        wanted = _Wanted(queue, name, data, has, delay, fields)
        found = [job for job in self._pushed if not wanted.differences(job)]
        if found if count is None else len(found) == count:
            return found
        raise AssertionError(_said(f"{_times(count)} of {wanted}", f"{len(found)}", self._pushed, wanted))

    def assert_not_pushed(
        self,
        queue: str,
        name: str | None = None,
        data: Any = UNSAID,
        *,
        has: Mapping[str, Any] | None = None,
        delay: Seconds | None = None,
        **fields: Any,
    ) -> None:
        """No such job was pushed; the arguments are those of `assert_pushed`."""
        self.assert_pushed(queue, name, data, has=has, count=0, delay=delay, **fields)

    def assert_no_failures(self) -> None:
        """No run raised; AssertionError names those that did, from the last one's own error."""
        if self.failures:
            said = "\n".join(f"  {_shown(each.job)}: {each.error!r}" for each in self.failures)
            raise AssertionError(f"expected no run to raise; {len(self.failures)} did:\n{said}") from self.failures[
                -1
            ].error

    # What the front door has from outside.

    def _now(self) -> int:
        return self._now_ms

    def _draw_id(self, now: int) -> str:
        return self._own_ids.draw(now)

    def _draw_ids(self, now: int, count: int) -> list[str]:
        return self._own_ids.draw_many(now, count)

    def _draw(self, purpose: str, entity: str, counter: int) -> float:
        return self._chance(purpose, entity, counter)

    def _draw_bits(self, wanted: int) -> int:
        self._bits += 1
        return self._chance.bits("id", "", self._bits) >> (64 - wanted)

    # Below.

    def _opened(self, path: object, durability: str = "durable", **options: Any) -> "VirtualQueues":
        """What `rqlab.open` gives: these queues, with the timing and retention that the application asks for."""
        mode(durability)
        if unknown := options.keys() - OPEN_OPTIONS:
            raise TypeError(f"open() got an unexpected keyword argument {min(unknown)!r}")
        return self._opened_in_memory(**{key: value for key, value in options.items() if key in MEMORY_OPTIONS})

    def _opened_in_memory(
        self,
        *,
        stall_timeout: Seconds | None = None,
        tick_interval: Seconds | None = None,
        retention: Retention = DEFAULT_RETENTION,
    ) -> "VirtualQueues":
        chosen = timing(
            self.stall_timeout if stall_timeout is None else stall_timeout,
            self.tick_interval if tick_interval is None else tick_interval,
        )
        self.stall_timeout, self.tick_interval = chosen["stall_timeout"], chosen["tick_interval"]
        self._remember(checked_retention(retention))
        self._ticker = self._housekeeper()
        return self

    def _pull_within(self, request: Pull, wait: float) -> list[Job]:
        until = self._now_ms + milliseconds(wait)
        while not (jobs := self._engine.pull(request, self._now_ms)) and self._now_ms < until:
            next_at = self._next_at()
            self._move_to(until if next_at is None else min(next_at, until))
        return jobs

    def _note(self, change: Change) -> None:
        if change.event is Event.PUSH:
            self._pushed.append(change.job)

    def _pass_until(self, until: int) -> Counter[str]:
        self._refuse_if_closed()
        outcomes = self._work()
        for _ in range(MOST_STEPS):
            next_at = self._next_at()
            if next_at is None or next_at > until:
                self._move_to(until)
                return outcomes + self._work()
            self._move_to(next_at)
            outcomes += self._work()
        return self._goes_round(outcomes)

    def _work(self) -> Counter[str]:
        """What the workers under way have to do now; within a run they wait for its end."""
        outcomes: Counter[str] = Counter()
        if not self._driven:
            for worker in self._workers:
                outcomes += worker.work(None, False)
        return outcomes

    def _goes_round(self, outcomes: Counter[str]) -> NoReturn:
        raise RuntimeError(
            f"stopped at {instant(self._now_ms)} after {MOST_STEPS:,} instants: something is due again and again. "
            f"Runs: {dict(outcomes)}; waiting jobs: {[_shown(job) for job in self.jobs(limit=3)]}"
        )

    def _move_to(self, at: int) -> None:
        """The clock shows `at`, house is kept, and whoever runs keeps its leases."""
        self._now_ms = max(at, self._now_ms)
        for worker in self._driven:
            worker.beat(self._now_ms)
        self._ticker.due_at = self._now_ms  # it is on time: nobody slept
        self.tick()

    def _next_at(self) -> int | None:
        """When something happens next, of itself: a job falls due or expires, a schedule fires, a lease ends."""
        engine, store, soonest = self._engine, self._store, []
        for queue in self.queues():
            soonest.append(engine.next_due([queue]))
            for start in (f"leased/{queue}/", f"expiring/{queue}/"):
                places = [store.first(start, start + LAST)] if start[0] == "l" else self._expiring(start)
                soonest += [int(at[len(start) : len(start) + TIME_DIGITS]) for at in places if at is not None]
        soonest += [each.next_at for each in self.schedules() if not each.paused]
        if self._driven:
            soonest.append(self._now_ms + milliseconds(self.stall_timeout / 3))
        due = [at for at in soonest if at is not None and at > self._now_ms]
        return min(due, default=None)

    def _expiring(self, start: str) -> list[str]:
        jobs = [self._store.get(key.rpartition("/")[2]) for key, _ in self._store.entries(start, start + LAST, 1)]
        return [f"{start}{job.expires_at:0{TIME_DIGITS}d}" for job in jobs if job is not None]


class VirtualWorker:
    """A worker by the virtual clock: one job after the other, in the calling thread. A context manager."""

    def __init__(self, rq: VirtualQueues, queues: object, handlers: Handlers) -> None:
        self._rq = rq
        self._names = queue_names(queues)
        self._handlers = executors.checked(handlers)
        executors.is_async(self._handlers)  # as in production: all of one kind

    def __enter__(self) -> Self:
        self._rq._workers.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._rq._workers.remove(self)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *error: object) -> None:
        self.__exit__()

    def work(self, limit: int | None, raises: bool) -> Counter[str]:
        """Run what is due now, at most `limit` jobs; how the runs ended."""
        rq = self._rq
        executor = _VirtualExecutor(self._handlers)
        worker = rq._new_worker(executor, self._names)
        worker.pulls_left, worker.is_drain = limit, True
        rq._driven.append(worker)
        try:
            self._drive(worker, executor, raises)
        except BaseException:  # Ctrl-C: the run in flight goes back into the line
            worker.release()
            worker.step(rq._now())
            raise
        finally:
            rq._driven.remove(worker)
            rq.failures += executor.failures
            rq.effects += executor.effects
        if raises and executor.failures:
            raise executor.failures[0].error
        return worker.outcomes + Counter(crashed=executor.crashes)

    def _drive(self, worker: Worker, executor: "_VirtualExecutor", raises: bool) -> None:
        again_at: int | None = 0
        while again_at is not None:
            is_enough = raises and executor.failures
            if is_enough or (not worker.in_flight() and not self._rq._goes_on(worker, self._names)):
                worker.stop()
            again_at = worker.step(self._rq._now())
            for run in executor.crashed:  # nobody keeps its lease, or reports it
                worker.runs.pop(run.job.id, None)
            executor.crashed.clear()
            if worker.refusal is not None:
                raise worker.refusal


class _VirtualExecutor(InlineExecutor):
    """Runs a handler in the calling thread, keeps what it raised, and dies with it where it crashes."""

    def __init__(self, handlers: Handlers) -> None:
        super().__init__(handlers)
        self.failures: list[Failure] = []
        self.crashed: list[Run] = []  #: since the last step
        self.crashes = 0
        self.effects: list[Effect] = []

    def start(self, run: Run) -> None:
        run.services = run.services._replace(effect=self._note)
        try:
            report = self._perform(run)
        except Crash:
            self.crashed.append(run)
            self.crashes += 1
        else:
            self._finished.append(Finished(run, report))

    def _note(self, run: Run, what: str) -> None:
        self.effects.append(Effect(run.job.id, what, run.job.deliveries))

    def _perform(self, run: Run) -> Report:
        function = executors.chosen(self._handlers, run.job)
        if isinstance(function, Report):
            return function
        try:
            result = _called(function, run)
        except (KeyboardInterrupt, Crash):
            raise
        except BaseException as error:  # noqa: BLE001  # as in production: whatever it raises fails the attempt
            if not isinstance(error, Snooze | RetryAfter | DeadLetter):
                self.failures.append(Failure(run.job, error))
            return executors.failure(error)
        return executors.success(result)


def _called(function: Handler, run: Run) -> Any:
    if not executors.is_async(function):
        return function(run.job, Context(run)) if executors.wants_context(function) else function(run.job)

    async def whole() -> Any:
        ctx = AsyncContext(run)
        result = await (function(run.job, ctx) if executors.wants_context(function) else function(run.job))
        await ctx.stored()
        return result

    with ThreadPoolExecutor(1, "rqlab-testing") as pool:  # the test itself may run on a loop of this thread
        return pool.submit(lambda: asyncio.run(whole())).result()


class _Wanted:
    """What an assertion looks for."""

    def __init__(
        self,
        queue: str,
        name: str | None,
        data: Any,
        has: Mapping[str, Any] | None,
        delay: Seconds | None,
        fields: Mapping[str, Any],
    ) -> None:
        known = {*Job.__struct_fields__, "metadata"}
        if unknown := sorted(fields.keys() - known):
            raise ValidationError(f"expected fields of Job; got {', '.join(unknown)}")
        self._facts: dict[str, Any] = {"queue": arguments.queue_name(queue)}
        if name is not None:
            self._facts["name"] = arguments.job_name(name)
        if data is not UNSAID:
            self._facts["data"] = data
        self._has = has
        if delay is not None:
            self._facts["delay"] = arguments.seconds(delay, "delay")
        self._facts |= {key: tuple(value) if key == "tags" else value for key, value in fields.items()}

    def differences(self, job: Job) -> list[str]:
        """Why this job is none of those."""
        found = [
            f"{key} {there!r}, not {wanted!r}"
            for key, wanted in self._facts.items()
            if (there := _fact(job, key)) != wanted
        ]
        if self._has is not None:
            data = job.data if isinstance(job.data, Mapping) else {}
            found += [
                f"data[{key!r}] {data.get(key)!r}, not {wanted!r}"
                for key, wanted in self._has.items()
                if key not in data or data[key] != wanted
            ]
        return found

    def __str__(self) -> str:
        facts = [f"{key}={value!r}" for key, value in self._facts.items()]
        return ", ".join(facts if self._has is None else [*facts, f"has={dict(self._has)!r}"])


def _fact(job: Job, key: str) -> Any:
    if key == "delay":
        return 0.0 if job.delay_until is None else (job.delay_until - job.created_at) / 1000
    return getattr(job, key)


def _said(expected: str, found: str, pushed: Sequence[Job], wanted: _Wanted) -> str:
    """An error message: what was expected, and what was pushed instead, the nearest first."""
    nearest = sorted(pushed, key=lambda job: len(wanted.differences(job)))
    lines = [f"  {_shown(job)}: {'; '.join(wanted.differences(job)) or 'this is one'}" for job in nearest[:MOST_SHOWN]]
    if len(nearest) > MOST_SHOWN:
        lines.append(f"  and {len(nearest) - MOST_SHOWN} more")
    were = "pushed were, the nearest first:" if lines else "nothing was pushed"
    return "\n".join([f"expected {expected} to be pushed; found {found}", were, *lines])


def _shown(job: Job) -> str:
    data = repr(job.data)
    return f"{job.queue}/{job.name} {data if len(data) <= 80 else data[:79] + '…'}"


def _times(count: int | None) -> str:
    return "at least one job" if count is None else "no job" if count == 0 else f"{count} job{'s' * (count != 1)}"


def _instant(at: datetime | int) -> int:
    if isinstance(at, datetime) and at.tzinfo is not None:
        return round(at.timestamp() * 1000)
    if isinstance(at, int) and not isinstance(at, bool) and at >= 0:
        return at
    raise ValidationError(f"at: expected an aware datetime, or ms since the epoch; got {arguments.shown(at)}")
