"""One transaction around one transition: the rules of lifecycle.py, applied to a store.

Time, chance and ids are arguments. The engine reads no clock, draws no number and starts no thread, so the same code
runs in production and in virtual time. Every change of a job goes through `_change`, which keeps what belongs
together in one transaction: the record, its unique key, the counters, and the news of it.
"""

import contextlib
import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from rqlab import lifecycle
from rqlab.errors import (
    DuplicateKey,
    InvalidState,
    JobNotFound,
    LeaseLost,
    RQLabError,
    ScheduleNotFound,
    StoreCorrupt,
    StoreError,
    ValidationError,
)
from rqlab.job import NULL, Counts, Job, State
from rqlab.lifecycle import ACTIVE, CANCELLED, COMPLETED, DELAYED, DLQ, WAITING, Event
from rqlab.schedule import Schedule, due
from rqlab.storage import Store, Transaction
from rqlab.storage.damage import first_sound, scan_sound, walk
from rqlab.storage.place import LAST, TIME_DIGITS, expiring, place, shelf, until

T = TypeVar("T")

log = logging.getLogger("rqlab")

MAX_LOOKS = 500  # records read for one reading of the oldest waiting job
MAX_MOVES = 500  # jobs a transaction may move: others wait for the lock meanwhile, and goes on in the next
MAX_FIRED = 50  # schedules a transaction: after a long downtime each takes milliseconds to compute
UNIQUE = "unique/"  # + queue/key: the id of the job that holds a unique key
PAUSED = "paused/"  # + queue: the queue is paused
SCHEDULE = "schedule/"  # + name: a schedule; its place is on the shelf DUE while it has a next tick
DUE = "due/"
OFF = "off/"  # the shelf of schedules that are paused or finished

#: The running totals that each event adds to; states are counted by the store.
TOTALS: dict[Event, str] = {
    Event.PUSH: "pushed_total",
    Event.ACK: "completed_total",
    Event.FAIL: "failed_total",
    Event.STALL: "stalled_total",
    Event.TIME_OUT: "timed_out_total",
    Event.RELEASE: "released_total",
    Event.SNOOZE: "snoozed_total",
    Event.EXPIRE: "expired_total",
    Event.CANCEL: "cancelled_total",
    Event.REQUEUE: "requeued_total",
    Event.PURGE: "purged_total",
}
PUSHED = TOTALS[Event.PUSH]
PUSH, EXPIRE = Event.PUSH, Event.EXPIRE  # finding a member in its class costs 0.06 us
CHARGED = frozenset({Event.FAIL, Event.STALL, Event.TIME_OUT})

#: Upper bounds, in seconds, of the buckets of the wait and run histograms; a last bucket has no bound.
BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 3600.0)
BUCKETS_MS = tuple(int(bound * 1000) for bound in BUCKETS)
BUCKET_NAMES = {what: [f"{what}_bucket_{index}" for index in range(len(BUCKETS) + 1)] for what in ("wait", "run")}

LISTED = (WAITING, DELAYED, ACTIVE, COMPLETED, DLQ, CANCELLED)


class Push(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A job to push, as the front door has checked it."""

    job: Job  #: without an id and without instants
    delay: float = 0.0  #: seconds
    return_holder: bool = False  #: on a unique key that is held: give its holder's id instead of raising
    data: msgspec.Raw | None = None  #: the job's data, if not in `job`, which pushes of one kind share

    @property
    def whole(self) -> "Push":
        """The same with its data in the job."""
        return self if self.data is None else replace(self, job=replace(self.job, encoded_data=self.data), data=None)


class Pull(msgspec.Struct, frozen=True, gc=False):
    """What a worker asks for."""

    queues: tuple[str, ...]  #: the first is served first
    at_most: int
    worker: str
    stall_timeout: float  #: seconds; of the leases it gets


class Ending(msgspec.Struct, frozen=True, gc=False):
    """How a run ended, as its worker reports it."""

    job: Job
    event: Event  #: ACK, FAIL, TIME_OUT, RELEASE or SNOOZE
    result: msgspec.Raw = NULL
    error: str = ""
    delay: float | None = None  #: seconds: RetryAfter's and Snooze's
    final: bool = False  #: DeadLetter


class _Look(NamedTuple):
    """How far the look for the oldest waiting job of a queue has come."""

    start: str  #: the place to go on from; empty: from the head
    oldest: Job | None  #: so far


_FROM_THE_HEAD = _Look("", None)


class Engine:
    """The queue's operations on one store; thread-safe as the store is.

    `chance(purpose, entity, counter)` gives numbers in [0, 1): production ignores the keys, a simulation draws a
    stream of its own for each. `deliver` is called after each commit, outside the store's lock.
    """

    def __init__(self, store: Store, chance: Callable[[str, str, int], float]) -> None:
        self.store = store
        self.chance = chance
        self.deliver: Callable[[], None] = lambda: None
        #: Places whose jobs, and lines whose counters, cannot be read: pulls leave them where they are.
        self._damaged: set[str] = set()
        self._looks: dict[str, _Look] = {}  #: by queue: where the next look for the oldest waiting job begins
        self._counted: tuple[int, Mapping[str, Mapping[str, int]]] = (-1, {})  #: the store's version, and its counters

    # Producers.

    def push_one(self, push: Push, job_id: str, now: int) -> str:
        """Store a job under its new id; its id, or its key's holder's. DuplicateKey if its unique key is held."""
        return self._write(lambda tx: _push(tx, push, job_id, now))

    def push(self, pushes: Sequence[tuple[Push, str]], now: int) -> list[str]:
        """Store all jobs under their new ids, or none; their ids. DuplicateKey if a unique key is held."""
        return self._write(lambda tx: _push_many(tx, pushes, now))

    # Workers.

    def pull(self, request: Pull, now: int) -> list[Job]:
        """Up to `request.at_most` jobs, leased. Looks first without the lock, so an idle worker never takes it."""
        taken: list[Job] = []
        while len(taken) < request.at_most and self.has_due(request.queues, now):
            rest = replace(request, at_most=request.at_most - len(taken)) if taken else request
            try:
                jobs, more = self._write(lambda tx, rest=rest: _pull(tx, rest, now, self._damaged))  # type: ignore[misc]
            except StoreCorrupt:
                if not self._notice_damage_in_line(rest.queues, now):
                    raise
                continue
            except StoreError:
                if not taken:
                    raise
                break  # the caller must learn of the leases that it has; the next call meets the error again
            taken += jobs
            if not more:
                break
        return taken

    def has_due(self, queues: Sequence[str], now: int) -> bool:
        """Whether a pull would find something to move."""
        for queue in queues:
            ready, later = shelf(queue, WAITING), shelf(queue, DELAYED)
            if ready in self._damaged:
                continue
            found = first_sound(self.store, ready, ready + LAST, self._damaged)
            found = found or first_sound(self.store, later, until(later, now), self._damaged)
            if found and self.store.entry(PAUSED + queue) is None:
                return True
        return False

    def next_due(self, queues: Sequence[str]) -> int | None:
        """When the first delayed job of these queues becomes due."""
        shelves = [shelf(queue, DELAYED) for queue in queues]
        firsts = [(self.store.first(later, later + LAST), len(later)) for later in shelves]
        return min((int(at[cut : cut + TIME_DIGITS]) for at, cut in firsts if at is not None), default=None)

    def finish(
        self, endings: Sequence[Ending], request: Pull | None, now: int
    ) -> tuple[list[Job | RQLabError], list[Job]]:
        """End these runs and pull the next jobs, in one commit. Each ending has its own outcome."""
        # An ack puts nothing into a line, so the pull may come first: it then reads the store alone, not the store with
        # what is staged over it. That is 5 % of a cycle.
        puts_nothing_back = all(ending.event is Event.ACK for ending in endings)

        def end(tx: Transaction) -> list[Job | RQLabError]:
            return [_or_error(lambda ending=ending: self._end(tx, ending, now)) for ending in endings]  # type: ignore[misc]

        def pull(tx: Transaction) -> list[Job]:
            try:
                return _pull(tx, request, now, self._damaged)[0] if request is not None and request.at_most else []
            except StoreCorrupt:  # what has ended is stored all the same; the next pull meets it again, and leaves it
                return []

        def work(tx: Transaction) -> tuple[list[Job | RQLabError], list[Job]]:
            if puts_nothing_back:
                pulled = pull(tx)
                return end(tx), pulled
            return end(tx), pull(tx)

        try:
            return self._write(work)
        except StoreCorrupt:  # counters that a pull would change
            if request is None or not self._notice_damage_in_line(request.queues, now):
                raise
            return self._write(work)

    def end(self, ending: Ending, now: int) -> Job:
        """End one run; LeaseLost if it does not hold the job any more."""
        return self._write(lambda tx: self._end(tx, ending, now))

    def heartbeat(self, jobs: Sequence[Job], now: int) -> list[Job | RQLabError]:
        """Keep the leases of these runs, in one commit; each has its own outcome: StoreCorrupt if it is damaged."""

        def beat(tx: Transaction, held: Job) -> Job:
            stored = lifecycle.fence(tx.get(held.id), held)
            return _held(_change(tx, Event.HEARTBEAT, stored, lifecycle.heartbeat(stored, now), now), held)

        return self._write(
            lambda tx: [_or_error(lambda held=held: beat(tx, held)) for held in jobs]  # type: ignore[misc]
        )

    def progress(self, held: Job, percent: float, message: str | None, now: int) -> Job:
        """Record how far the run is; it is no heartbeat."""
        return self._update(held, Event.PROGRESS, lambda job: lifecycle.progress(job, now, percent, message), now)

    def log(self, held: Job, line: str, now: int) -> Job:
        """Add a line to the job's log."""
        return self._update(held, Event.LOG, lambda job: lifecycle.log(job, now, line), now)

    def holds(self, jobs: Sequence[Job]) -> list[bool]:
        """Whether each of these runs still holds its job; a look, no write."""
        return [self._holds(held) for held in jobs]

    # Callers.

    def get(self, job_id: str) -> Job:
        job = self.store.get(job_id)
        loaded = None if job is None else self._loaded(job)
        if loaded is None:
            raise JobNotFound(job_id)
        return loaded

    def jobs(
        self, queues: Sequence[str], states: Sequence[State], tag: str | None, after: Job | None, limit: int
    ) -> list[Job]:
        """Jobs in the order of their places: state by state, queue by queue, each as its line runs."""
        found: list[Job] = []
        for state in states:
            for queue in queues:
                if after is not None and (LISTED.index(state), queue) < (LISTED.index(after.state), after.queue):
                    continue
                start = shelf(queue, state)
                if after is not None and after.state is state and after.queue == queue:
                    start = place(after) + LAST
                for job in self._walk(start, shelf(queue, state) + LAST, limit if tag is None else MAX_MOVES):
                    if tag is None or tag in job.tags:
                        found.append(job)
                    if len(found) == limit:
                        return [job for job in map(self._loaded, found) if job is not None]
        return [job for job in map(self._loaded, found) if job is not None]

    def newest(self, queue: str, state: State, limit: int) -> list[Job]:
        """Finished jobs of one state, the newest first."""
        start = shelf(queue, state)
        jobs = self.store.scan(start, start + LAST, limit, backwards=True)
        return [job for job in map(self._loaded, jobs) if job is not None]

    def counts(self, queues: Sequence[str]) -> Counts:
        counters = [self.store.counters(queue) for queue in queues]
        return Counts(**{state: sum(each.get(state, 0) for each in counters) for state in LISTED})

    def cancel(self, job_id: str, now: int) -> Job:
        def work(tx: Transaction) -> Job:
            stored = _required(tx, job_id, "cancel")
            return tx.load(_change(tx, Event.CANCEL, stored, lifecycle.cancel(stored, now), now))

        return self._write(work)

    def requeue(self, job_id: str, now: int) -> Job:
        return self._write(lambda tx: tx.load(_requeue(tx, _required(tx, job_id, "requeue"), now)))

    def requeue_all(self, queue: str, now: int) -> int:
        """Requeue all of the queue's dead-lettered jobs but those whose unique key another job now holds."""
        start, end = shelf(queue, DLQ), self._end_of(shelf(queue, DLQ))

        def work(tx: Transaction, start: str) -> tuple[int, str | None]:
            jobs = tx.scan(start, end, MAX_MOVES)
            outcomes = [_or_error(lambda job=job: _requeue(tx, job, now)) for job in jobs]  # type: ignore[misc]
            moved = sum(isinstance(outcome, Job) for outcome in outcomes)
            return moved, place(jobs[-1]) + LAST if len(jobs) == MAX_MOVES else None

        return self._in_batches(work, start)

    def purge(self, queue: str, state: State, before: int | None, now: int) -> int:
        """Remove the queue's jobs of one finished state that finished by `before`; None: all that are there now."""
        start = shelf(queue, state)
        end = self._end_of(start) if before is None else until(start, before)
        if self.store.first(start, end) is None:
            return 0

        def work(tx: Transaction, start: str) -> tuple[int, str | None]:
            jobs = tx.scan(start, end, MAX_MOVES)
            for job in jobs:
                lifecycle.require(job, Event.PURGE)
                tx.delete(job)
                _tell(tx, Event.PURGE, job, now)
            return len(jobs), start if len(jobs) == MAX_MOVES else None

        return self._in_batches(work, start)

    def pause(self, queue: str) -> None:
        self._write(lambda tx: tx.put_entry(PAUSED + queue, b"1", PAUSED + queue))

    def resume(self, queue: str) -> None:
        self._write(lambda tx: tx.delete_entry(PAUSED + queue))

    def paused(self) -> list[str]:
        entries = self.store.entries(PAUSED, PAUSED + LAST, 10_000)
        return [key.removeprefix(PAUSED) for key, _ in entries]

    # Schedules.

    def put_schedule(self, schedule: Schedule, keep: Callable[[Schedule], bool]) -> Schedule:
        """Store a schedule, unless one of its name is there and `keep` says that it is the same. Damage is replaced."""

        def work(tx: Transaction) -> Schedule:
            entry = tx.entry(SCHEDULE + schedule.name)
            with contextlib.suppress(StoreCorrupt):
                if entry is not None and keep(stored := decode_schedule(entry)):
                    return stored
            _put_schedule(tx, schedule)
            return schedule

        return self._write(work)

    def change_schedule(self, name: str, attempted: str, change: Callable[[Schedule], Schedule] | None) -> None:
        """Replace a schedule by what `change` makes of it; without `change` remove it. ScheduleNotFound without one."""

        def work(tx: Transaction) -> None:
            entry = tx.entry(SCHEDULE + name)
            if entry is None:
                raise ScheduleNotFound(name, attempted, known)
            if change is None:
                tx.delete_entry(SCHEDULE + name)
            else:
                _put_schedule(tx, change(decode_schedule(entry)))

        known = [schedule.name for schedule in self.schedules()]
        self._write(work)

    def schedules(self) -> list[Schedule]:
        """All schedules, by name; the log names those whose entries are damaged."""
        found: list[Schedule] = []
        for key, value in (entry for start in (DUE, OFF) for entry in self.store.entries(start, start + LAST, 100_000)):
            try:
                found.append(decode_schedule(value))
            except StoreCorrupt as error:
                log.warning("schedule %r is damaged: %s", key.removeprefix(SCHEDULE), error)
        return sorted(found, key=lambda schedule: schedule.name)

    def fire(self, now: int, make: Callable[[Schedule, int], tuple[Push, str]]) -> bool:
        """Push what the schedules owe by now; whether there may be more. A push and its books are one transaction.

        `make(schedule, tick)` gives the job of a tick, and its id. Where its unique key is held, its holder stands for
        the tick. A schedule whose entry is damaged holds up no other: it is put off, as it is, and fires no more.
        """

        def work(tx: Transaction) -> bool:
            moves = MAX_MOVES
            entries = tx.entries(DUE, until(DUE, now), MAX_FIRED)
            for key, value in entries:
                if moves <= 0:
                    break
                try:
                    schedule = decode_schedule(value)
                except StoreCorrupt as error:
                    name = key.removeprefix(SCHEDULE)
                    log.warning("schedule %r is damaged and fires no more; register it again: %s", name, error)
                    tx.put_entry(key, value, OFF + name)
                    continue
                ticks, after = due(schedule, now, moves)
                for tick in ticks:
                    push, job_id = make(after, tick)
                    _push(tx, replace(push, return_holder=True), job_id, now)
                _put_schedule(tx, after)
                moves -= max(len(ticks), 1)
            return moves <= 0 or len(entries) == MAX_FIRED

        return bool(self.store.entries(DUE, until(DUE, now), 1)) and self._write(work)

    # Housekeeping: each of these moves at most MAX_MOVES jobs a call; at that number there may be more. What is damaged
    # holds up nothing else: it is left where it is, and the log says which it is.

    def promote(self, queue: str, now: int) -> bool:
        later = shelf(queue, DELAYED)

        def move(tx: Transaction, job: Job) -> Job:
            return _change(tx, Event.PROMOTE, job, lifecycle.promote(job, now), now)

        return len(self._move(later, until(later, now), move)) == MAX_MOVES

    def recover(self, queue: str, judged_until: int, now: int) -> list[Job]:
        """Time out and stall the runs whose time-out or lease ended by `judged_until`; the jobs as they now are."""
        leased = shelf(queue, ACTIVE)
        return self._move(leased, until(leased, judged_until), lambda tx, job: self._judge(tx, job, judged_until, now))

    def shorten(self, queue: str, now: int) -> None:
        """Cut the leases that lie further ahead than a heartbeat now would put them: the wall clock went back."""
        leased = shelf(queue, ACTIVE)
        for job in self._walk(leased, leased + LAST, MAX_MOVES):
            if lifecycle.is_too_far_ahead(job, now):
                self._write(lambda tx, job=job: _shorten(tx, job, now))  # type: ignore[misc]

    def expire(self, queue: str, now: int) -> bool:
        """Dead-letter the jobs whose ttl passed before they started."""
        start = expiring(queue)
        if not self.store.entries(start, until(start, now), 1):
            return False

        def work(tx: Transaction) -> int:
            expired = 0
            for key, _ in tx.entries(start, until(start, now), MAX_MOVES):
                job_id = key.rpartition("/")[2]
                try:
                    job = tx.get(job_id)
                except StoreCorrupt as error:
                    _warn_of_damage(job_id, error)
                    continue
                assert job is not None, "the side entry of a ttl goes with its job"
                _change(tx, Event.EXPIRE, job, lifecycle.expire(job, now), now)
                expired += 1
            return expired

        return self._write(work) == MAX_MOVES

    def oldest_waiting_at(self, queue: str) -> int | None:
        """Since when the longest waiting job waits.

        A line runs in push order, and no job waits since before its push. So within a priority the look ends at the
        first job that was pushed no earlier than the longest waiting one so far waits: mostly the head itself. Where
        more than MAX_LOOKS jobs that came back stand before it, the next call goes on from there: until it gets to the
        oldest it names a younger one, and never one that does not wait.
        """
        ready = shelf(queue, WAITING)
        before = self._looks.pop(queue, _FROM_THE_HEAD)
        oldest = self._as_it_waits(before.oldest)
        start = before.start if oldest is not None else ""
        try:
            oldest, following = self._look_for_oldest(ready, start, oldest)
        except StoreCorrupt:
            if not self._notice_damage(start or ready, ready + LAST):
                raise
            return self.oldest_waiting_at(queue)
        if following or start:  # a look in parts: what it found is where the next one begins
            self._looks[queue] = _Look(following, oldest)
        return None if oldest is None else _due_at(oldest)

    def _look_for_oldest(self, ready: str, start: str, oldest: Job | None) -> tuple[Job | None, str]:
        """The oldest among MAX_LOOKS jobs from `start` on, and where to go on; an empty text at the end of the line."""
        start, looks, page = start or ready, 0, 1
        while jobs := scan_sound(self.store, start, ready + LAST, page, self._damaged):
            looks += len(jobs)
            candidates = jobs if oldest is None else [oldest, *jobs]
            oldest = min(candidates, key=_due_at)
            newest = jobs[-1]
            is_enough = newest.created_at >= _due_at(oldest)  # of this priority; on with the next one
            start = (place(newest).rpartition("/")[0] if is_enough else place(newest)) + LAST
            page = 1 if is_enough else 20
            if looks >= MAX_LOOKS:
                return oldest, start
        return oldest, ""

    def _as_it_waits(self, job: Job | None) -> Job | None:
        """The job if it still waits since then."""
        if job is None:
            return None
        with contextlib.suppress(StoreCorrupt):
            found = self.store.get(job.id)
            if found is not None and found.state is WAITING and _due_at(found) == _due_at(job):
                return found
        return None

    def counters(self) -> Mapping[str, Mapping[str, int]]:
        """The counters of all queues; read again only if something has changed since. Damaged ones are left out.

        A queue with damaged counters can change no more, so it has no work for anybody; the log says which it is.
        """
        version = self.store.changed()  # before the reading: what is stored meanwhile shows at the next one
        if version != self._counted[0]:
            found: dict[str, Mapping[str, int]] = {}
            for queue in self.store.queues():
                try:
                    found[queue] = self.store.counters(queue)
                except StoreCorrupt as error:
                    _warn_of_counters(queue, error)
            self._counted = (version, found)
        return self._counted[1]

    # Below: what the operations share.

    def _move(self, start: str, end: str, move: Callable[[Transaction, Job], Job]) -> list[Job]:
        """Move up to MAX_MOVES jobs in one transaction; where one of them is damaged, each in one of its own."""
        if self.store.first(start, end) is None:
            return []
        try:
            return self._write(lambda tx: [move(tx, job) for job in tx.scan(start, end, MAX_MOVES)])
        except StoreCorrupt:
            return self._move_each(start, end, move)

    def _move_each(self, start: str, end: str, move: Callable[[Transaction, Job], Job]) -> list[Job]:
        moved: list[Job] = []
        while len(moved) < MAX_MOVES and (at := self.store.first(start, end)) is not None:
            job_id, start = at.rpartition("/")[2], at + LAST
            try:
                moved += self._write(lambda tx, job_id=job_id, at=at: _move_from(tx, job_id, at, move))  # type: ignore[misc]
            except StoreCorrupt as error:
                _warn_of_damage(job_id, error)
        return moved

    def _notice_damage_in_line(self, queues: Sequence[str], now: int) -> bool:
        """Look for what a pull cannot read; whether there is anything new. From now on pulls leave it out."""
        known = len(self._damaged)
        for queue in queues:
            ready, later = shelf(queue, WAITING), shelf(queue, DELAYED)
            self._notice_damage(ready, ready + LAST)
            self._notice_damage(later, until(later, now))
            try:
                self.store.counters(queue)
            except StoreCorrupt as error:
                if ready not in self._damaged:
                    self._damaged.add(ready)
                    _warn_of_counters(queue, error)
        return len(self._damaged) > known

    def _notice_damage(self, start: str, end: str) -> bool:
        """Look for jobs that cannot be read, as far as a pull looks; whether there are new ones.

        They stay where they are: what a restored backup, or a look with other tools, may mend is not ours to move.
        """
        known = len(self._damaged)

        def tell(at: str, error: StoreCorrupt) -> None:
            if at not in self._damaged:
                self._damaged.add(at)
                _warn_of_damage(at.rpartition("/")[2], error)

        for job in islice(walk(self.store, start, end, 1, tell), 2 * MAX_MOVES):
            try:
                self.store.load(job)
            except StoreCorrupt as error:  # its record is there, its data is gone
                tell(place(job), error)
        return len(self._damaged) > known

    def _holds(self, held: Job) -> bool:
        try:
            stored = self.store.get(held.id)
        except StoreCorrupt:  # nobody can tell, and nobody else can run it; the next heartbeat says so
            return True
        return stored is not None and stored.state is ACTIVE and stored.deliveries == held.deliveries

    def _write(self, work: Callable[[Transaction], T]) -> T:
        try:
            return self.store.write(work)
        finally:
            self.deliver()

    def _update(self, held: Job, event: Event, step: Callable[[Job], Job], now: int) -> Job:
        def work(tx: Transaction) -> Job:
            stored = lifecycle.fence(tx.get(held.id), held)
            return _held(_change(tx, event, stored, step(stored), now), held)

        return self._write(work)

    def _end(self, tx: Transaction, ending: Ending, now: int) -> Job:
        stored = lifecycle.fence(tx.get(ending.job.id), ending.job)
        match ending.event:
            case Event.ACK:
                ended = lifecycle.ack(stored, now, ending.result)
            case Event.FAIL:
                draw = self._draw(stored)
                ended = lifecycle.fail(stored, now, ending.error, draw, retry_after=ending.delay, final=ending.final)
            case Event.TIME_OUT:
                ended = lifecycle.time_out(stored, now, self._draw(stored))
            case Event.SNOOZE:
                ended = lifecycle.snooze(stored, now, ending.delay or 0.0)
            case _:
                ended = lifecycle.release(stored, now)
        return _held(_change(tx, ending.event, stored, ended, now), ending.job)

    def _judge(self, tx: Transaction, job: Job, judged_until: int, now: int) -> Job:
        timeout_at = job.timeout_at
        if timeout_at is not None and timeout_at <= judged_until:
            return _change(tx, Event.TIME_OUT, job, lifecycle.time_out(job, now, self._draw(job)), now)
        return _change(tx, Event.STALL, job, lifecycle.stall(job, now, self._draw(job)), now)

    def _draw(self, job: Job) -> float:
        return self.chance("jitter", job.id, job.deliveries) if job.jitter else 0.5

    def _loaded(self, job: Job) -> Job | None:
        """The job with its data; None if it was removed between the two looks."""
        try:
            return self.store.load(job)
        except StoreCorrupt:
            if self.store.get(job.id) is None:
                return None
            raise

    def _walk(self, start: str, end: str, page: int) -> Iterator[Job]:
        while True:
            jobs = self.store.scan(start, end, page)
            yield from jobs
            if len(jobs) < page:
                return
            start = place(jobs[-1]) + LAST

    def _end_of(self, shelf: str) -> str:
        """Behind the last job that stands on a shelf, not behind `now`: the clock that placed it may have gone back."""
        last = self.store.scan(shelf, shelf + LAST, 1, backwards=True)
        return place(last[0]) + LAST if last else shelf

    def _in_batches(self, work: Callable[[Transaction, str], tuple[int, str | None]], start: str) -> int:
        moved, following = 0, start
        while True:
            count, next_start = self._write(lambda tx, at=following: work(tx, at))  # type: ignore[misc]
            moved += count
            if next_start is None:
                return moved
            following = next_start


def decode_schedule(entry: bytes) -> Schedule:
    try:
        return msgspec.json.decode(entry, type=Schedule)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"expected a schedule that rqlab wrote; found {entry[:60]!r}… ({error})") from error


def _push(tx: Transaction, push: Push, job_id: str, now: int) -> str:
    job = lifecycle.push(push.job, job_id, now, push.delay, push.data)
    holder = None if job.unique_key is None else _take_key(tx, job, push.return_holder)
    if holder is not None:
        return holder
    tx.put(job)
    tx.tally(job.queue, PUSHED)
    tx.emit((PUSH, job, now))
    return job.id


def _push_many(tx: Transaction, pushes: Sequence[tuple[Push, str]], now: int) -> list[str]:
    """As many pushes, with what they have in common done once."""
    ids: list[str] = []
    new: list[Job] = []
    for push, job_id in pushes:
        job = lifecycle.push(push.job, job_id, now, push.delay, push.data)
        holder = None if job.unique_key is None else _take_key(tx, job, push.return_holder, new)
        if holder is None:
            new.append(job)
        ids.append(holder or job_id)
    tx.put_new(new)
    for queue, count in Counter([job.queue for job in new]).items():
        tx.tally(queue, PUSHED, count)
    for job in new:
        tx.emit((PUSH, job, now))
    return ids


def _take_key(tx: Transaction, job: Job, return_holder: bool, beside: Sequence[Job] = ()) -> str | None:
    """Give the job its unique key, or, if that is held, return the holder's id, or raise DuplicateKey.

    The jobs `beside` it are stored only if it is: an error names none of them.
    """
    assert job.unique_key is not None
    key = f"{UNIQUE}{job.queue}/{job.unique_key}"
    entry = tx.entry(key)
    if entry is None:
        tx.put_entry(key, job.id.encode())
        return None
    holder = entry.decode()
    if return_holder:
        return holder
    raise DuplicateKey(job.queue, job.unique_key, None if any(each.id == holder for each in beside) else holder)


def _pull(tx: Transaction, request: Pull, now: int, damaged: Collection[str]) -> tuple[list[Job], bool]:
    """Jobs for a worker, and whether the transaction was full before the worker was served.

    What is `damaged` is left where it is. A queue with damage that is new holds up no other: its StoreCorrupt is raised
    when the others have nothing.
    """
    taken: list[Job] = []
    moves = MAX_MOVES
    damage: StoreCorrupt | None = None
    for queue in request.queues:
        try:
            moves = _pull_from(tx, queue, request, now, taken, moves, damaged)
        except StoreCorrupt as error:
            damage = error
    if damage is not None and not taken:
        raise damage
    return taken, moves <= 0


def _pull_from(
    tx: Transaction, queue: str, request: Pull, now: int, taken: list[Job], moves: int, damaged: Collection[str]
) -> int:
    """Add the queue's next jobs to `taken`; how many moves are left.

    Delayed jobs that are due join the line first, those due longest before others, and as many as leave room for the
    pull itself: it takes the best of the line as it then is. So of more than MAX_MOVES due jobs a later one may be
    overtaken, whatever its priority; no caller pays for the promotion of all.
    """
    ready = shelf(queue, WAITING)
    if tx.entry(PAUSED + queue) is not None or ready in damaged:
        return moves
    moves -= _promote(tx, queue, now, max(moves - request.at_most, moves // 2), damaged)
    while moves > 0 and len(taken) < request.at_most:
        jobs = scan_sound(tx, ready, ready + LAST, min(request.at_most - len(taken), moves), damaged)
        if not jobs:
            break
        for job in jobs:
            if job.expires_at is not None and job.expires_at <= now:
                _change(tx, Event.EXPIRE, job, lifecycle.expire(job, now), now)
            else:
                loaded = tx.load(job)  # before anything is changed: its data may be damaged
                pulled = lifecycle.pull(loaded, now, request.worker, request.stall_timeout)
                _observe(tx, queue, "wait", now - _due_at(job))
                taken.append(_change(tx, Event.PULL, job, pulled, now))
        moves -= len(jobs)
    return moves


def _due_at(job: Job) -> int:
    """Since when a waiting job could have been pulled: its promotion may have come late, so that is not it."""
    return job.updated_at if job.delay_until is None else job.delay_until


def _promote(tx: Transaction, queue: str, now: int, limit: int, damaged: Collection[str]) -> int:
    if limit <= 0 or not tx.counters(queue).get(DELAYED):
        return 0
    later = shelf(queue, DELAYED)
    jobs = scan_sound(tx, later, until(later, now), limit, damaged)
    for job in jobs:
        _change(tx, Event.PROMOTE, job, lifecycle.promote(job, now), now)
    return len(jobs)


def _requeue(tx: Transaction, job: Job, now: int) -> Job:
    lifecycle.require(job, Event.REQUEUE)
    if job.unique_key is not None:
        key = f"{UNIQUE}{job.queue}/{job.unique_key}"
        holder = tx.entry(key)
        if holder is not None:
            raise DuplicateKey(job.queue, job.unique_key, holder.decode(), f"requeue job {job.id}")
        tx.put_entry(key, job.id.encode())
    return _change(tx, Event.REQUEUE, job, lifecycle.requeue(job, now), now)


def _shorten(tx: Transaction, seen: Job, now: int) -> None:
    job = tx.get(seen.id)
    if job is not None and job.state is ACTIVE and lifecycle.is_too_far_ahead(job, now):
        _change(tx, Event.HEARTBEAT, job, lifecycle.cut_short(job, now), now)


def _change(tx: Transaction, event: Event, old: Job, new: Job, now: int) -> Job:
    """Store what an event made of a job, with everything that belongs to it. What may be damaged is read first."""
    if new.is_finished and new.unique_key is not None:
        key = f"{UNIQUE}{new.queue}/{new.unique_key}"
        if tx.entry(key) == new.id.encode():
            tx.delete_entry(key)
    if new.state is COMPLETED and new.remove_on_complete:
        tx.delete(old)
    else:
        tx.put(new, replacing=old)
    if old.state is ACTIVE and new.state is not ACTIVE:
        _observe(tx, new.queue, "run", now - (now if old.started_at is None else old.started_at))
    if event in CHARGED:
        tx.tally(new.queue, "dead_lettered_total" if new.state is DLQ else "retried_total")
    elif event is EXPIRE:
        tx.tally(new.queue, "dead_lettered_total")
    _tell(tx, event, new, now)
    return new


def _tell(tx: Transaction, event: Event, job: Job, now: int) -> None:
    total = TOTALS.get(event)
    if total is not None:
        tx.tally(job.queue, total)
    tx.emit((event, job, now))  # a Change, made when somebody listens: that would cost a push 0.3 us


def _observe(tx: Transaction, queue: str, what: str, duration_ms: int) -> None:
    """Put a duration into its bucket of a histogram; one that a clock made negative counts as none."""
    tx.tally(queue, BUCKET_NAMES[what][bisect_left(BUCKETS_MS, duration_ms)])
    if duration_ms > 0:
        tx.tally(queue, f"{what}_ms_total", duration_ms)


def _move_from(tx: Transaction, job_id: str, at: str, move: Callable[[Transaction, Job], Job]) -> list[Job]:
    """Move the job if it still stands at this place."""
    job = tx.get(job_id)
    return [] if job is None or place(job) != at else [move(tx, job)]


def _warn_of_damage(job_id: str, error: StoreCorrupt) -> None:
    log.warning("job %s is damaged and left where it is; rqlab doctor tells more: %s", job_id, error)


def _warn_of_counters(queue: str, error: StoreCorrupt) -> None:
    log.warning("the counters of queue %s are damaged; rqlab doctor tells more: %s", queue, error)


def _required(tx: Transaction, job_id: str, attempted: str) -> Job:
    job = tx.get(job_id)
    if job is None:
        raise JobNotFound(job_id, attempted)
    return job


def _put_schedule(tx: Transaction, schedule: Schedule) -> None:
    is_on = schedule.next_at is not None and not schedule.paused
    at = f"{DUE}{schedule.next_at:0{TIME_DIGITS}d}/{schedule.name}" if is_on else f"{OFF}{schedule.name}"
    tx.put_entry(SCHEDULE + schedule.name, msgspec.json.encode(schedule), at)


def _held(job: Job, held: Job) -> Job:
    """The new record for the caller, with the data that it already has if that is kept apart."""
    return replace(job, encoded_data=held.encoded_data) if job.data_apart and job.encoded_data == NULL else job


def _or_error(step: Callable[[], Job]) -> Job | RQLabError:
    """The outcome of one item among many: a StoreError concerns them all, and is raised, but for its own damage."""
    try:
        return step()
    except (ValidationError, DuplicateKey, JobNotFound, InvalidState, LeaseLost, StoreCorrupt) as error:
        return error
