"""The front door: named queues in one directory. The only place that says what time it is.

It checks what callers pass, draws ids, and hands instants to the engine; it decides nothing about a job.
"""

import atexit
import copy
import difflib
import gc
import logging
import os
import random
import re
import socket
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import msgspec

from rqlab import arguments, clock, durability, executors, schedule
from rqlab import job as nouns
from rqlab.arguments import shown
from rqlab.clock import Bell
from rqlab.durability import Keeper, Mode, Opening
from rqlab.engine import LISTED, Ending, Engine, Pull, Push
from rqlab.errors import JobNotFound, Reentered, RQLabError, StoreError, StoreLocked, ValidationError
from rqlab.executors import Executor, Handlers, OnEnd
from rqlab.executors.inline import InlineExecutor
from rqlab.executors.threads import ThreadExecutor
from rqlab.housekeeping import Housekeeper, Retention
from rqlab.ids import Ids
from rqlab.job import FINISHED, MAX_PRIORITY, MIN_PRIORITY, NULL, Backoff, Counts, Job, State
from rqlab.lifecycle import Change, Event
from rqlab.metrics import Metrics, PrometheusCollector
from rqlab.observe import Observers
from rqlab.schedule import Schedule
from rqlab.storage import LaterStore, Store
from rqlab.storage.disk import DiskStore
from rqlab.storage.hybrid import HybridStore
from rqlab.storage.memory import MemoryStore
from rqlab.storage.view import ReadOnlyStore
from rqlab.supervisor import Running, Supervisor
from rqlab.worker import Worker

if TYPE_CHECKING:  # each is imported where it is used: pandas takes 0.4 s, asyncio a third of `import rqlab`
    import asyncio

    import pandas

log = logging.getLogger("rqlab")

Seconds = float | timedelta

MAX_PULL = 1_000
MAX_LISTED = 1_000_000  # jobs in one answer: more is gigabytes; `after` goes on
MAX_CONCURRENCY = 1_000
MIN_STALL_TIMEOUT = 0.1  # seconds; below it a heartbeat interval is no longer long against a commit
MAX_ATTEMPTS = 2**31 - 1
POLL_SECONDS = 0.025  # pull(wait=…) looks this often for jobs that other processes pushed
SETTINGS_KEY = "rqlab/settings"
DEFAULT_RETENTION = Retention()
MAX_UNSAFE = 1_000_000  # writes that may wait for a commit or a snapshot
MAX_PLAIN_JOBS = 1_000  # kinds of job that are checked once: a program has few
LAST_OF_ALL = -100  # among what multiprocessing runs as a child ends: others may yet push
HOST = socket.gethostname()
ID = re.compile(r"[0-9a-f-]{36}")

_plain_jobs: dict[tuple[str, str], Job] = {}  #: by queue and name
_random = random.Random()  # seeded by the system; ids must be unique, not secret, and urandom costs 1 µs a draw
os.register_at_fork(after_in_child=_random.seed)  # a child would draw its parent's numbers
_ids = Ids(_random.getrandbits)  # one for the process: ids rise strictly across all its queues
os.register_at_fork(after_in_child=_ids.part_from_parent)  # runs after the new seed


class _Open(NamedTuple):
    """Whose an open store is."""

    path: Path
    queues: "weakref.ref[Queues]"
    end_keeper: Callable[[], None]


_later: "dict[LaterStore, _Open]" = {}  # open stores whose writes become safe later, also those that were dropped
os.register_at_fork(after_in_child=_later.clear)  # they are the parent's


def _close_at_exit() -> None:
    """A program that ends without a close is not a crash: what was acknowledged is stored.

    And nothing is acknowledged after it: daemon threads still run, and what else was told to run at exit.
    """
    for store, opened in list(_later.items()):
        try:
            store.close()
        except StoreError as error:
            if store.unsafe_writes:
                log.error("the program ends, and %d writes to %s are lost: %s", store.unsafe_writes, opened.path, error)


atexit.register(_close_at_exit)


def _close_at_the_end_of_a_child() -> None:
    """A child that multiprocessing has forked ends without atexit; it has a list of its own."""
    multiprocessing = sys.modules.get("multiprocessing")  # it is there in such a child; nobody else pays for it
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, _close_at_exit, exitpriority=LAST_OF_ALL)


def _open_store(mode: Mode, opening: Opening) -> Store:
    """Open it. If its owner is this process, which has dropped it without a close, that is made good first.

    A keeper goes on for what was dropped, so nobody else could close it any more.
    """
    try:
        return mode.open(opening)
    except StoreLocked:
        here = {store: opened for store, opened in list(_later.items()) if _is_same(opened.path, opening.path)}
        if not here:
            raise
        gc.collect()  # queues and their engine refer to each other
        dropped = {store: opened for store, opened in here.items() if opened.queues() is None}
        if not dropped:
            raise
        for store, opened in dropped.items():
            store.close()
            opened.end_keeper()
            _later.pop(store, None)
        return mode.open(opening)


def _is_same(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samefile(one, other)  # noqa: PTH121  # either may be text
    except OSError:
        return False


def _as_html(noun: object) -> str:
    from rqlab import html  # when a notebook first shows one

    return html.of(noun)


nouns.html_writer = _as_html


class _Settings(msgspec.Struct, frozen=True):
    """What a directory remembers for every process that opens it."""

    retention: Retention


def open(  # like shelve.open and dbm.open: always called as rqlab.open
    path: str | os.PathLike[str],
    durability: str = "durable",
    *,
    read_only: bool = False,
    busy_timeout: Seconds = 30.0,
    stall_timeout: Seconds = 30.0,
    tick_interval: Seconds = 1.0,
    flush_interval: Seconds = 0.010,
    max_batch: int = 100,
    snapshot_interval: Seconds = 1.0,
    max_dirty: int = 5_000,
    retention: Retention = DEFAULT_RETENTION,
    allow_network_filesystem: bool = False,
) -> "Queues":
    """Open the queues in a directory; it is made if it is not there (mode 0700).

    `durability` is a row of `rqlab.MODES`. `read_only` looks at what is on the disk beside whoever uses it, and
    writes nothing. All durations are in seconds, or a timedelta:

    - `busy_timeout`: how long a write waits for another process's, before StoreBusy;
    - `stall_timeout` (at least 0.1): how long a worker of this process may be silent before its job is taken from it.
      30 s forgives a long garbage collection or a busy disk; shorter means faster recovery;
    - `tick_interval`: the pause between two housekeeping passes of this process;
    - `flush_interval` and `max_batch` (calls that write), of `durability="buffered"` only: a commit at the latest after
      so much time (10 ms: an fsync or two) or so many writes. A crash loses no more than that;
    - `snapshot_interval` and `max_dirty` (changed jobs), of `durability="hybrid"` only: a snapshot at the latest after
      so much time or so many changes. At 4 x `max_dirty` unsafe writes, writers wait, up to `busy_timeout`;
    - `retention`: how long finished jobs are kept. It is stored in the directory, so it does not go with `read_only`;
      left out, the stored one holds.

    Network file systems are refused (flock and SQLite's WAL do not hold there) unless `allow_network_filesystem`.
    Raises ValidationError, StoreLocked, StoreFull, StoreCorrupt, FormatTooNew or StoreError; nothing is changed then.
    """
    pace = timing(stall_timeout, tick_interval)
    directory = _checked_path(path)
    kept = checked_retention(retention)
    mode = durability_mode(durability)
    opening = Opening(
        directory,
        busy_timeout=arguments.seconds(busy_timeout, "busy_timeout"),
        flush_interval=arguments.seconds(flush_interval, "flush_interval", above=0),
        max_batch=arguments.whole(max_batch, "max_batch", 1, MAX_UNSAFE),
        snapshot_interval=arguments.seconds(snapshot_interval, "snapshot_interval", above=0),
        max_dirty=arguments.whole(max_dirty, "max_dirty", 1, MAX_UNSAFE),
        allow_network_filesystem=arguments.truth(allow_network_filesystem, "allow_network_filesystem"),
    )
    _refuse_what_is_not_used(mode, opening)
    if arguments.truth(read_only, "read_only"):
        if kept is not DEFAULT_RETENTION:
            raise ValidationError(
                f"retention: it is stored in the directory, and read_only=True stores nothing; got {shown(retention)}. "
                "Leave one of them out"
            )
        return Queues(ReadOnlyStore(directory), directory, mode.name, read_only=True, **pace)
    store = _open_store(mode, opening)
    queues = None
    try:
        queues = Queues(store, directory, mode.name, keeper=mode.keeper(store, opening), **pace)
        queues._remember(kept)
    except BaseException:
        (store if queues is None else queues).close()
        raise
    return queues


def memory(
    *, stall_timeout: Seconds = 30.0, tick_interval: Seconds = 1.0, retention: Retention = DEFAULT_RETENTION
) -> "Queues":
    """Queues in this process's memory: the same engine, nothing survives the process."""
    kept = checked_retention(retention)
    queues = Queues(MemoryStore(), None, "memory", **timing(stall_timeout, tick_interval))
    queues._remember(kept)
    return queues


class Queues:
    """A set of named queues in one directory; a context manager. Made by `rqlab.open` and `rqlab.memory`.

    Thread-safe. A queue exists from its first push. Every change is stored before the call that made it returns.
    """

    def __init__(
        self,
        store: Store,
        path: Path | None,
        durability: str,
        *,
        stall_timeout: float,
        tick_interval: float,
        keeper: Keeper | None = None,
        read_only: bool = False,
    ) -> None:
        self.path = path  #: the directory; None for queues in memory
        self.durability = durability  #: the mode's name
        self.stall_timeout = stall_timeout  #: seconds
        self.tick_interval = tick_interval  #: seconds
        self.read_only = read_only
        self._store = store
        self._keeper = keeper
        self._engine = Engine(store, self._draw)
        self._observers = Observers()
        self._engine.deliver = self._observers.deliver
        store.listener = self._observers.take
        self._metrics = Metrics(self._engine, (lambda now: {}) if keeper is None else keeper.at_risk)
        self._supervisor = Supervisor(self._housekeeper(), keeper)
        self._ticker = self._housekeeper()  # for whoever calls tick() instead: it remembers when the last one was
        self._ticking = threading.RLock()
        self._running: weakref.WeakSet[Running] = weakref.WeakSet()  # those under way keep themselves alive
        self._closing = threading.RLock()
        self._is_closed = False
        if keeper is not None:
            assert path is not None, "what becomes safe later has a file"
            if not _later:
                _close_at_the_end_of_a_child()
            _later[keeper.store] = _Open(path, weakref.ref(self), self._supervisor.end_keeper)

    # Producers.

    def push(
        self,
        queue: str,
        name: str,
        data: Any = None,
        *,
        priority: int = 0,
        delay: Seconds | None = None,
        max_attempts: int = 3,
        backoff: str = "exponential",
        backoff_delay: Seconds = 1.0,
        max_backoff: Seconds = 86_400,
        jitter: float = 0.0,
        timeout: Seconds | None = None,
        ttl: Seconds | None = None,
        unique_key: str | None = None,
        on_conflict: str = "raise",
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        remove_on_complete: bool = False,
    ) -> str:
        """Store a job and return its id; when it returns, the job is as safe as the mode promises.

        `data` is any JSON value up to 1 MiB, encoded now: changing it later changes nothing. `name` is what a mapping
        of handlers chooses by. Durations are in seconds or a timedelta. `max_attempts` counts runs; `timeout` is what
        one run may take; a job that has not started `ttl` seconds after it was due goes to the dead-letter queue.

        `unique_key` is held, within the queue, until the job is completed, dead-lettered or cancelled; while it is
        held, a push of the same key raises DuplicateKey, or, with `on_conflict="return"`, returns the holder's id. It
        refuses a second push, not a second delivery: for that see `ctx.token`.

        Raises ValidationError for a wrong argument; nothing is stored then.
        """
        push = self._checked_push(
            queue, name, data, priority, delay, max_attempts, backoff, backoff_delay, max_backoff, jitter, timeout, ttl,
            unique_key, on_conflict, tags, metadata, remove_on_complete,
        )  # fmt: skip
        now = self._now()
        return self._engine.push_one(push, self._draw_id(now), now)

    def push_many(self, queue: str, items: Iterable[Mapping[str, Any]]) -> list[str]:
        """Store many jobs in one transaction, all or none; their ids, in the order of `items`.

        Each item is a dict of push's arguments: {"name": "send", "data": {...}, "priority": 3}.
        """
        if isinstance(items, Mapping | str) or not isinstance(items, Iterable):
            raise ValidationError(f"items: expected a list of dicts of push's arguments; got {shown(items)}")
        pushes = self._checked_items(queue, items)
        if not pushes:
            return []
        now = self._now()
        return self._engine.push(list(zip(pushes, self._draw_ids(now, len(pushes)), strict=True)), now)

    # Workers of one's own.

    def pull(self, queue: str, count: int = 1, *, wait: Seconds | None = None, worker: str | None = None) -> list[Job]:
        """Lease up to `count` jobs (1...1000), by priority, then in push order; fewer if fewer are due, [] if none is.

        With `wait`, block up to so many seconds for the first one. The leases last `stall_timeout`: call `heartbeat`
        well within it, and `ack`, `fail` or `release` at the end. `worker` names the holder (host:pid:thread if None).
        """
        self._refuse_if_read_only()
        name = _worker_name() if worker is None else arguments.text(worker, "worker", 1024)
        request = Pull(
            (arguments.queue_name(queue),), arguments.whole(count, "count", 1, MAX_PULL), name, self.stall_timeout
        )
        if wait is None:
            return self._engine.pull(request, self._now())
        return self._pull_within(request, arguments.seconds(wait, "wait"))

    def ack(self, job: Job, result: Any = None) -> Job:
        """The run succeeded: the job is completed, with `result` (JSON, at most 1 MiB). LeaseLost if it is not held."""
        return self._end(job, Event.ACK, result=arguments.result(result))

    def ack_many(self, pairs: Iterable[tuple[Job, Any]]) -> list[Job | RQLabError]:
        """Ack many (job, result) pairs in one transaction; for each the completed job, or its own error."""
        if isinstance(pairs, Mapping | str) or not isinstance(pairs, Iterable):
            raise ValidationError(f"pairs: expected a list of (job, result) pairs; got {shown(pairs)}")
        endings = [_ack(pair) for pair in pairs]
        good = [ending for ending in endings if isinstance(ending, Ending)]
        outcomes = iter(self._engine.finish(good, None, self._now())[0] if good else [])
        return [next(outcomes) if isinstance(ending, Ending) else ending for ending in endings]

    def fail(self, job: Job, error: str | BaseException) -> Job:
        """The run failed: the job as it now is, delayed, waiting or dlq. LeaseLost if it is not held.

        `error` is text or an exception; RetryAfter, DeadLetter and Snooze mean what they mean in a handler.
        """
        if isinstance(error, BaseException):
            ending = executors.failure(error).ending(_checked_job(job))
            return self._engine.end(ending, self._now())
        if not isinstance(error, str):
            raise ValidationError(f"error: expected text or an exception; got {shown(error)}")
        return self._end(job, Event.FAIL, error=error)

    def heartbeat(self, job: Job) -> Job:
        """Keep the lease for another `stall_timeout` from now.

        Raises LeaseLost if the job is not held any more: stop working on it, another worker may have it.
        """
        (outcome,) = self._engine.heartbeat([_checked_job(job)], self._now())
        if isinstance(outcome, RQLabError):
            raise outcome
        return outcome

    def progress(self, job: Job, percent: float, message: str | None = None) -> Job:
        """Record how far the run is, 0-100, and a line for the job's log. It is no heartbeat. LeaseLost if not held."""
        if message is not None and not isinstance(message, str):
            raise ValidationError(f"message: expected text or None; got {shown(message)}")
        return self._engine.progress(_checked_job(job), arguments.percent(percent), message, self._now())

    def release(self, job: Job) -> Job:
        """Give the job back: waiting again, no attempt charged. LeaseLost if it is not held."""
        return self._end(job, Event.RELEASE)

    # Looking.

    def get(self, job_id: str) -> Job:
        """The job as it is now. JobNotFound if there is none."""
        return self._engine.get(_checked_id(job_id, "find"))

    def jobs(
        self,
        queue: str | None = None,
        *,
        state: str | None = None,
        tag: str | None = None,
        after: Job | str | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """Jobs by state, then queue, each in the order of its line: waiting as they will run, finished by their end.

        `after` (a job or its id) continues a listing behind that job, at the place where it now stands; `tag` keeps the
        jobs that carry it.
        """
        queues = self.queues() if queue is None else [arguments.queue_name(queue)]
        states = LISTED if state is None else (arguments.choice(state, "state", State),)
        label = None if tag is None else arguments.text(tag, "tag", 1024)
        behind = self.get(after) if isinstance(after, str) else None if after is None else _checked_job(after)
        return self._engine.jobs(queues, states, label, behind, arguments.whole(limit, "limit", 1, MAX_LISTED))

    def frame(
        self,
        queue: str | None = None,
        *,
        state: str | None = None,
        tag: str | None = None,
        after: Job | str | None = None,
        limit: int = 100,
    ) -> "pandas.DataFrame":
        """The same jobs as `jobs`, as a DataFrame: one row a job, aware datetimes, durations in seconds."""
        from rqlab import frames

        return frames.jobs(self.jobs(queue, state=state, tag=tag, after=after, limit=limit))

    def counts(self, queue: str | None = None) -> Counts:
        """How many jobs are in each state, in one queue or in all. Zeros for a queue that never had a job."""
        return self._engine.counts(self.queues() if queue is None else [arguments.queue_name(queue)])

    def queues(self) -> list[str]:
        """The names of the queues that ever had a job, sorted."""
        return self._store.queues()

    def get_dlq_jobs(self, queue: str, limit: int = 50) -> list[Job]:
        """The queue's dead-lettered jobs, newest first."""
        at_most = arguments.whole(limit, "limit", 1, MAX_LISTED)
        return self._engine.newest(arguments.queue_name(queue), State.DLQ, at_most)

    def metrics(self) -> dict[str, Any]:
        """Gauges, running totals and histograms by queue, read now; `rqlab.metrics` says what each counts.

        Where writes become safe later, also `unsafe_writes`: what a crash would lose now, and `unsafe_seconds`: how
        long the oldest of them has been at risk.
        """
        return copy.deepcopy(self._metrics.refresh(self._now()))  # parts of it serve the next reading too

    def prometheus(self) -> PrometheusCollector:
        """A collector for `prometheus_client.REGISTRY.register`.

        A scrape shows what housekeeping read at its newest tick; in a process that keeps no house, as one that only
        looks, what there is now.
        """
        self.metrics()
        return PrometheusCollector(self._scraped)

    def on_change(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Call `callback(change)` after each commit for each change of this process, in order; returns the off switch.

        It runs in the thread that made a change, so it should be quick; an error in it is logged, and it stays.
        """
        if not callable(callback):
            raise ValidationError(f"callback: expected a function of one Change; got {shown(callback)}")
        return self._observers.subscribe(callback)

    # Managing.

    def cancel(self, job_id: str) -> Job:
        """Cancel a job that is not finished; a run in flight loses its lease at once. JobNotFound, InvalidState."""
        return self._engine.cancel(_checked_id(job_id, "cancel"), self._now())

    def requeue(self, job_id: str) -> Job:
        """Put a dead-lettered or cancelled job back in the line with all its attempts.

        JobNotFound, InvalidState; DuplicateKey if another job holds its unique key by now.
        """
        return self._engine.requeue(_checked_id(job_id, "requeue"), self._now())

    def requeue_all(self, queue: str) -> int:
        """Requeue the queue's dead-lettered jobs, but those whose unique key another job holds; how many."""
        return self._engine.requeue_all(arguments.queue_name(queue), self._now())

    def purge(self, queue: str, state: str = "dlq") -> int:
        """Remove the queue's jobs in one finished state: dlq, completed or cancelled; how many."""
        self._refuse_if_read_only()
        chosen = arguments.choice(state, "state", State)
        if chosen not in FINISHED:
            raise ValidationError(f"state: expected 'dlq', 'completed' or 'cancelled' to purge; got {shown(state)}")
        return self._engine.purge(arguments.queue_name(queue), chosen, None, self._now())

    def pause(self, queue: str) -> None:
        """Stop pulls from the queue, here and in every process, until `resume`; pushes go on. Stored."""
        self._engine.pause(arguments.queue_name(queue))

    def resume(self, queue: str) -> None:
        """End a pause; without one, nothing happens."""
        self._engine.resume(arguments.queue_name(queue))

    def paused(self) -> list[str]:
        """The names of the paused queues, sorted."""
        return self._engine.paused()

    # Schedules.

    def schedule(
        self,
        name: str,
        queue: str,
        job_name: str,
        data: Any = None,
        *,
        cron: str | None = None,
        every: Seconds | None = None,
        timezone: str = "UTC",
        first: str = "wait",
        catch_up: str = "one",
        max_executions: int | None = None,
        **push_options: Any,
    ) -> Schedule:
        """Push a job at every tick of a cron line (5 fields, or @daily …) or of an interval in seconds; not both.

        `timezone` is an IANA name; `rqlab.schedule` says what happens in the skipped and the repeated hour. `first` is
        "wait" (the next match; one interval from now) or "now". After downtime `catch_up` pushes "one" job for all
        missed ticks, "all" of them, or "none". It ends after `max_executions` jobs. Registering the same schedule again
        changes nothing; another one of the same name replaces it. `push_options` are those of push.
        """
        push = self._checked_item(queue, {"name": job_name, "data": data, **push_options}, None).whole
        new = schedule.new(
            name=arguments.text(name, "schedule name", 256),
            queue=push.job.queue,
            job_name=push.job.name,
            options=msgspec.Raw(msgspec.json.encode(push)),
            now=self._now(),
            cron=cron,
            every=every,
            timezone=timezone,
            first=first,
            catch_up=catch_up,
            max_executions=max_executions,
        )
        return self._engine.put_schedule(new, lambda stored: schedule.same_definition(stored, new))

    def schedules(self) -> list[Schedule]:
        """All schedules, by name."""
        return self._engine.schedules()

    def pause_schedule(self, name: str) -> None:
        """Stop a schedule's ticks until `resume_schedule`; what it misses is not made up. ScheduleNotFound."""
        self._change_schedule(name, "pause", schedule.pause)

    def resume_schedule(self, name: str) -> None:
        """Go on with the next tick from now. ScheduleNotFound."""
        self._change_schedule(name, "resume", schedule.resume)

    def unschedule(self, name: str) -> None:
        """Delete a schedule; the jobs that it pushed stay. ScheduleNotFound."""
        self._engine.change_schedule(arguments.text(name, "schedule name", 256), "delete", None)

    # Workers.

    def run_worker(
        self,
        queues: str | Sequence[str],
        handler: Handlers,
        *,
        concurrency: int = 1,
        isolation: str = "thread",
        shutdown: threading.Event | Awaitable[object] | None = None,
        grace: Seconds | None = None,
    ) -> None:
        """Run jobs from one queue or several until told to stop; blocks.

        `handler(job)` or `handler(job, ctx)`, sync or async, or a mapping from job names to such. What it returns is
        the result; what it raises fails the attempt. `concurrency` runs at once, each in a thread, a task (async), or,
        with `isolation="process"`, a child process, which alone can really be stopped at a time-out or cancel.

        In the main thread, SIGINT and SIGTERM stop it: runs in flight finish, then it returns; after `grace` seconds
        (None: however long it takes), or at a second signal, they are released, no attempt charged. `shutdown` does the
        same from elsewhere: a threading.Event, or anything awaitable. Starts housekeeping.
        """
        running = self._worker(queues, handler, concurrency, isolation, shutdown, grace)
        try:
            running.run()
        finally:
            self._running.discard(running)

    def worker(
        self,
        queues: str | Sequence[str],
        handler: Handlers,
        *,
        concurrency: int = 1,
        isolation: str = "thread",
        shutdown: threading.Event | Awaitable[object] | None = None,
        grace: Seconds | None = None,
    ) -> Running:
        """The same as a context manager: `with rq.worker(…):` or `async with rq.worker(…):`, as in an ASGI lifespan.

        It runs in a thread of its own and is stopped at the end of the block. In an `async with`, async handlers run on
        the caller's loop.
        """
        return self._worker(queues, handler, concurrency, isolation, shutdown, grace)

    def drain(self, queues: str | Sequence[str], handler: Handlers, *, limit: int | None = None) -> Counter[str]:
        """Run what is due now, in this thread, one job after the other, and return: how many runs ended how.

        For notebooks and tests. It goes on until nothing is due, or `limit` runs were started; the counter's keys are
        completed, failed, timed_out, snoozed, released and lost. Ctrl-C releases the run in flight.

        A sync handler cannot be stopped here: a run that takes longer than its job's `timeout` is charged as timed out
        when it returns, and its result is dropped. A job that is snoozed for 0 s is due again when the drain has ended.
        """
        self._refuse_if_read_only()
        handlers = executors.checked(handler)
        names = queue_names(queues)
        left = None if limit is None else arguments.whole(limit, "limit", 0)
        bell = Bell()
        executor: Executor
        if executors.is_async(handlers):
            executor = _loop_executor(handlers, 1, lambda may_step: bell.ring(), "rqlab-drain", None)
        else:
            executor = InlineExecutor(handlers)
        worker = self._new_worker(executor, names)
        worker.pulls_left, worker.is_drain = left, True
        with self._kept_alive(worker, executor):
            again_at: int | None = 0
            while again_at is not None:
                if not worker.in_flight() and not self._goes_on(worker, names):
                    worker.stop()
                now = self._now()
                again_at = worker.step(now)
                if worker.refusal is not None:
                    raise worker.refusal
                if worker.in_flight() and again_at != now:
                    bell.wait(POLL_SECONDS)
        return worker.outcomes

    def start_housekeeping(self) -> None:
        """Keep house in a thread of this process, every `tick_interval`; if it does already, nothing happens."""
        self._refuse_if_read_only()
        self._refuse_if_closed()
        self._supervisor.start_housekeeping()

    def tick(self) -> None:
        """One housekeeping pass, now: promote, fire, time out, recover, expire, refresh, sweep."""
        self._refuse_if_read_only()
        self._refuse_if_closed()  # a duty's error is logged, not raised
        self._refuse_if_inside(self._ticking)
        with self._ticking:
            self._ticker.step(self._now())

    # The directory.

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the directory, as it is at one instant, into a new one; others go on. StoreError if it cannot be.

        With `read_only` too: what is on the disk, beside whoever owns the directory.
        """
        target = _checked_path(path)
        if not isinstance(self._store, DiskStore | HybridStore | ReadOnlyStore):
            raise StoreError(f"cannot back up {self!r}: expected queues in a directory")
        self._store.backup(target)

    def vacuum(self) -> None:
        """Give the space of removed jobs back to the file system; writers wait meanwhile."""
        if self.path is not None:
            self._refuse_if_read_only()
            assert isinstance(self._store, DiskStore | HybridStore), "a directory that may be written"
            self._store.vacuum()

    def flush(self) -> None:
        """A barrier: when it returns, everything stored so far is as safe as the mode can make it."""
        self._refuse_if_closed()
        self._store.flush()

    def close(self) -> None:
        """Release the runs of workers still under way, make every write safe, let go of the directory. Idempotent.

        StoreError if what was acknowledged cannot be stored (a full disk): it is kept, so free some space and close
        again; with `durability="durable"` nothing is left to store.
        """
        self._refuse_if_inside(self._closing)
        with self._closing:
            if not self._is_closed:
                self._is_closed = True
                for running in list(self._running):
                    running.abandon()
                self._supervisor.close()
            self._store.close()  # if it fails its keeper goes on
            self._supervisor.end_keeper()
            if self._keeper is not None:
                _later.pop(self._keeper.store, None)

    def __enter__(self) -> "Queues":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else repr(str(self.path))
        return f"<rqlab.Queues {where} {self.durability}{' read_only' if self.read_only else ''}>"

    def _repr_html_(self) -> str | None:
        """Queues and their jobs by state, for notebooks; the plain repr where they cannot be read, as after a close."""
        from rqlab import html

        try:
            numbers = {queue: self.counts(queue) for queue in self.queues()}
            paused = self.paused()
        except RQLabError:
            return None
        where = "in memory" if self.path is None else str(self.path)
        return html.queues(where, self.durability + (", read only" if self.read_only else ""), numbers, paused)

    # What it has from outside, time and chance: `rqlab.testing` brings its own.

    def _now(self) -> int:
        return clock.now()

    def _draw_id(self, now: int) -> str:
        return _ids.draw(now)

    def _draw_ids(self, now: int, count: int) -> list[str]:
        return _ids.draw_many(now, count)

    def _draw(self, purpose: str, entity: str, counter: int) -> float:
        return _random.random()

    # Below: checks, and the making of parts.

    def _checked_push(
        self, queue: object, name: object, data: object, priority: object, delay: object, max_attempts: object,
        backoff: object, backoff_delay: object, max_backoff: object, jitter: object, timeout: object, ttl: object,
        unique_key: object, on_conflict: object, tags: object, metadata: object, remove_on_complete: object,
    ) -> Push:  # fmt: skip
        """What is the very default object needs no look: at 200 000 pushes a second the looks would cost a third."""
        options: dict[str, Any] = {}
        if priority is not _default.priority:
            options["priority"] = arguments.whole(priority, "priority", MIN_PRIORITY, MAX_PRIORITY)
        if max_attempts is not _default.max_attempts:
            options["max_attempts"] = arguments.whole(max_attempts, "max_attempts", 1, MAX_ATTEMPTS)
        if backoff is not _default.backoff:
            options["backoff"] = arguments.choice(backoff, "backoff", Backoff)
        if backoff_delay is not _default.backoff_delay:
            options["backoff_delay"] = arguments.seconds(backoff_delay, "backoff_delay")
        if max_backoff is not _default.max_backoff:
            options["max_backoff"] = arguments.seconds(max_backoff, "max_backoff")
        if jitter is not _default.jitter:
            options["jitter"] = arguments.fraction(jitter, "jitter")
        if timeout is not None:
            options["timeout"] = arguments.seconds(timeout, "timeout", above=0)
        if ttl is not None:
            options["ttl"] = arguments.seconds(ttl, "ttl", above=0)
        if unique_key is not None:
            options["unique_key"] = arguments.unique_key(unique_key)
        if tags is not _default.tags:
            options["tags"] = arguments.tags(tags)
        if metadata is not None:
            options["encoded_metadata"] = arguments.metadata(metadata)
        if remove_on_complete is not False:
            options["remove_on_complete"] = arguments.truth(remove_on_complete, "remove_on_complete")
        conflict = "raise"
        if on_conflict is not _default.on_conflict:
            conflict = arguments.one_of(on_conflict, "on_conflict", "raise", "return")
        job = _plain_job(queue, name)
        encoded = NULL if data is None else arguments.data(data)
        if options:  # one that is as by default stays the default itself: records leave those out
            given = {key: value for key, value in options.items() if value != getattr(job, key)}
            job = Job(id="", queue=job.queue, name=job.name, **given)
        return Push(job, 0.0 if delay is None else arguments.seconds(delay, "delay"), conflict == "return", encoded)

    def _checked_items(self, queue: object, items: Iterable[object]) -> list[Push]:
        """Most items are a name, or a name and data: such a name is checked once a call."""
        pushes: list[Push] = []
        plain: dict[str, Push] = {}  #: by name: a push of nothing else
        for index, item in enumerate(items):
            if type(item) is not dict or len(item) > 1 + ("data" in item) or type(item.get("name")) is not str:
                pushes.append(self._checked_item(queue, item, index))
                continue
            push = plain.get(item["name"])
            if push is None:
                push = plain[item["name"]] = self._checked_item(queue, {"name": item["name"]}, index)
            if len(item) == 2:
                try:
                    push = Push(push.job, data=arguments.data(item["data"]))
                except ValidationError as error:
                    raise ValidationError(f"items[{index}]: {error}") from None
            pushes.append(push)
        return pushes

    def _checked_item(self, queue: object, item: object, index: int | None) -> Push:
        where = "" if index is None else f"items[{index}]: "
        if not isinstance(item, Mapping):
            raise ValidationError(f"{where}expected a dict of push's arguments; got {shown(item)}")
        try:
            return self._checked_push(queue, **{**PUSH_DEFAULTS, **item})
        except TypeError:
            known = ("name", *PUSH_DEFAULTS)
            wrong = [key for key in item if key not in known]
            near = [match for key in wrong for match in difflib.get_close_matches(str(key), known, 1)]
            meant = f" (did you mean {' and '.join(near)}?)" if near else ""
            problem = f"unknown {', '.join(map(repr, wrong))}{meant}" if wrong else "no name"
            raise ValidationError(f"{where}expected push's arguments ({', '.join(known)}); got {problem}") from None
        except ValidationError as error:
            raise ValidationError(f"{where}{error}") from None

    def _end(self, job: Job, event: Event, result: msgspec.Raw = NULL, error: str = "") -> Job:
        return self._engine.end(Ending(_checked_job(job), event, result, error), self._now())

    def _pull_within(self, request: Pull, wait: float) -> list[Job]:
        bell = Bell()
        until = clock.monotonic() + wait
        self._observers.add_bell(bell)
        try:
            while not (jobs := self._engine.pull(request, self._now())):
                left = until - clock.monotonic()
                if left <= 0:
                    return []
                bell.wait(min(left, POLL_SECONDS))
            return jobs
        finally:
            self._observers.remove_bell(bell)

    def _change_schedule(self, name: str, attempted: str, change: Callable[[Schedule, int], Schedule]) -> None:
        now = self._now()
        checked = arguments.text(name, "schedule name", 256)
        self._engine.change_schedule(checked, attempted, lambda stored: change(stored, now))

    def _scraped(self) -> dict[str, Any]:
        """The newest reading. Where there is no new one the last stands: the application's own metrics go on."""
        latest = self._metrics.latest
        if latest is None or not self._supervisor.keeps_house:
            try:
                return self._metrics.refresh(self._now())
            except RQLabError as error:
                log.warning("the metrics could not be read, and stay as they were: %s", error)
        return latest or {"queues": {}}

    def _make_scheduled(self, stored: Schedule, tick: int, now: int) -> tuple[Push, str]:
        return msgspec.json.decode(stored.options, type=Push), self._draw_id(now)

    def _worker(
        self, queues: object, handler: object, concurrency: object, isolation: object, shutdown: Any, grace: object
    ) -> Running:
        self._refuse_if_read_only()
        self._refuse_if_closed()  # a worker takes the store's own error for one that passes, and would wait for ever
        handlers = executors.checked(handler)
        names = queue_names(queues)
        slots = arguments.whole(concurrency, "concurrency", 1, MAX_CONCURRENCY)
        isolated = arguments.one_of(isolation, "isolation", "thread", "process")
        is_async = executors.is_async(handlers)
        _check_shutdown(shutdown)
        grace_seconds = None if grace is None else arguments.seconds(grace, "grace")

        def make(on_end: OnEnd, loop: "asyncio.AbstractEventLoop | None") -> tuple[Worker, Executor]:
            name = f"rqlab-{names[0]}"
            executor: Executor
            if isolated == "process":
                from rqlab.executors.processes import ProcessExecutor  # cloudpickle: 30 ms of every import otherwise

                executor = ProcessExecutor(handlers, slots, on_end)
            elif is_async:
                executor = _loop_executor(handlers, slots, on_end, name, loop)
            else:
                executor = ThreadExecutor(handlers, slots, on_end, name)
            self.start_housekeeping()
            return self._new_worker(executor, names), executor

        running = Running(make, self._supervisor, self._observers, shutdown=shutdown, grace=grace_seconds)
        self._running.add(running)
        return running

    def _new_worker(self, executor: Executor, names: tuple[str, ...]) -> Worker:
        return Worker(
            self._engine, executor, names, stall_timeout=self.stall_timeout, name=_worker_name(), clock=self._now
        )

    @contextmanager
    def _kept_alive(self, worker: Worker, executor: Executor) -> Iterator[None]:
        self._supervisor.add(worker)
        try:
            yield
        except BaseException:
            worker.release()
            worker.step(self._now())
            raise
        finally:
            self._supervisor.remove(worker)
            executor.close()

    def _goes_on(self, worker: Worker, names: tuple[str, ...]) -> bool:
        return worker.pulls_left != 0 and self._engine.has_due(names, self._now())

    def _housekeeper(self) -> Housekeeper:
        return Housekeeper(
            self._engine,
            self._make_scheduled,
            stall_timeout=self.stall_timeout,
            tick_interval=self.tick_interval,
            retention=self._retention,
            refresh=self._metrics.refresh,
        )

    def _retention(self) -> Retention:
        entry = self._store.entry(SETTINGS_KEY)
        return DEFAULT_RETENTION if entry is None else msgspec.json.decode(entry, type=_Settings).retention

    def _remember(self, retention: Retention) -> None:
        if retention is not DEFAULT_RETENTION and retention != self._retention():
            settings = msgspec.json.encode(_Settings(retention))
            self._store.write(lambda tx: tx.put_entry(SETTINGS_KEY, settings))

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise StoreError(f"{self!r} is closed: open it again")

    def _refuse_if_inside(self, lock: Any) -> None:
        if lock._is_owned():
            raise Reentered(repr(self))

    def _refuse_if_read_only(self) -> None:
        if self.read_only:
            raise StoreError(f"{self.path} was opened with read_only=True: open it without to change anything")


#: What an item of push_many may say beside its name, as may a schedule; and what holds if it does not.
PUSH_DEFAULTS: dict[str, Any] = {"data": None, **(Queues.push.__kwdefaults__ or {})}

#: The same, as attributes of one object.
_default: Any = msgspec.defstruct("_Default", [(key, Any, value) for key, value in PUSH_DEFAULTS.items()])()

durability_mode = durability.mode


def _plain_job(queue: object, name: object) -> Job:
    """A job of this queue and name with nothing but defaults; pushes of one kind share it."""
    if type(queue) is str and type(name) is str:
        known = _plain_jobs.get((queue, name))
        if known is not None:
            return known
    job = Job(id="", queue=arguments.queue_name(queue), name=arguments.job_name(name))
    if len(_plain_jobs) < MAX_PLAIN_JOBS:
        _plain_jobs[job.queue, job.name] = job
    return job


def _loop_executor(
    handlers: Handlers, slots: int, on_end: OnEnd, name: str, loop: "asyncio.AbstractEventLoop | None"
) -> Executor:
    from rqlab.executors.loop import LoopExecutor

    return LoopExecutor(handlers, slots, on_end, name, loop)


def _worker_name() -> str:
    return f"{HOST}:{os.getpid()}:{threading.current_thread().name}"


def _refuse_what_is_not_used(mode: durability.Mode, opening: Opening) -> None:
    for other in durability.MODES.values():
        for name in other.settings:
            given = getattr(opening, name)
            if other is not mode and given != Opening._field_defaults[name]:
                raise ValidationError(
                    f"{name}: expected it with durability={other.name!r} only; got {given!r} with {mode.name!r}"
                )


class _Timing(TypedDict):
    stall_timeout: float
    tick_interval: float


def timing(stall_timeout: object, tick_interval: object) -> _Timing:
    return {
        "stall_timeout": arguments.seconds(stall_timeout, "stall_timeout", at_least=MIN_STALL_TIMEOUT),
        "tick_interval": arguments.seconds(tick_interval, "tick_interval", above=0),
    }


def checked_retention(retention: object) -> Retention:
    if not isinstance(retention, Retention):
        raise ValidationError(
            f"retention: expected rqlab.Retention(completed=…, cancelled=…, dlq=…); got {shown(retention)}"
        )
    if retention is DEFAULT_RETENTION:
        return retention  # the same object: it means that the stored one holds
    kept = {state: getattr(retention, state) for state in ("completed", "cancelled", "dlq")}
    return Retention(
        **{
            state: None if kept_for is None else arguments.seconds(kept_for, f"retention.{state}")
            for state, kept_for in kept.items()
        }
    )


def queue_names(queues: object) -> tuple[str, ...]:
    names = (queues,) if isinstance(queues, str) else queues
    if not isinstance(names, Iterable) or not (checked := tuple(dict.fromkeys(map(arguments.queue_name, names)))):
        raise ValidationError(f"queues: expected the name of a queue, or a list of names; got {shown(queues)}")
    return checked


def _ack(pair: object) -> Ending | ValidationError:
    """One of many acks; a result that cannot be stored is that ack's own outcome."""
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise ValidationError(f"pairs: expected (job, result) pairs; got {shown(pair)}")
    job = _checked_job(pair[0])
    try:
        return Ending(job, Event.ACK, arguments.result(pair[1]))
    except ValidationError as error:
        return error


def _checked_path(path: object) -> Path:
    if isinstance(path, str | os.PathLike):
        named = os.fspath(path)
        if isinstance(named, str) and named and "\0" not in named and _is_encodable(named):
            return Path(named).absolute()  # the program may change its directory
    raise ValidationError(f"path: expected the path of a directory; got {shown(path)}")


def _is_encodable(path: str) -> bool:
    """Whether the system can be asked for it: a surrogate stands for a byte that is no Unicode, or for nothing."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def _checked_job(job: object) -> Job:
    if not isinstance(job, Job):
        raise ValidationError(f"job: expected the Job that pull returned; got {shown(job)}")
    return job


def _checked_id(job_id: object, attempted: str) -> str:
    if not isinstance(job_id, str):
        raise ValidationError(f"job_id: expected the id of a job, text as push returned it; got {shown(job_id)}")
    if not ID.fullmatch(job_id):  # it may be the key of another entry, or no valid Unicode
        raise JobNotFound(job_id, attempted)
    return job_id


def _check_shutdown(shutdown: object) -> None:
    if shutdown is not None and not hasattr(shutdown, "is_set") and not isinstance(shutdown, Awaitable):
        raise ValidationError(
            f"shutdown: expected a threading.Event, something awaitable, or None; got {shown(shutdown)}"
        )
