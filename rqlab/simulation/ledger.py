"""What must be in the store: kept beside it from what was committed, and held against it.

The ledger believes no read of the store. It follows the changes of each commit, remembers what was there before, and
so can say after a crash which commits are gone; the checks ask it for what it knows.
"""

from collections import Counter, deque
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from rqlab.engine import LISTED, PAUSED, SCHEDULE, UNIQUE, decode_schedule
from rqlab.job import FINISHED, NULL, Job, State
from rqlab.lifecycle import Event
from rqlab.storage import Store
from rqlab.storage.place import LAST, shelf

WAITING = State.WAITING
ALL = 1_000_000  # more than any simulated queue holds
KEPT_ENTRIES = (SCHEDULE, PAUSED)  # side entries that follow from no record
DATA_APART_BYTES = 4 * 1024  # larger data is not in the record

Change = tuple[Event, Job, int]
Key = tuple[str, str]  # queue, unique key
Tick = tuple[str, int]  # schedule, instant

ABSENT: Any = object()


class Effects(NamedTuple):
    """What a transaction does."""

    changes: list[Change]
    entries: list[tuple[str, bytes | None]]  #: of side entries; None: deleted


class Commit(NamedTuple):
    """One commit, and what it takes to undo it."""

    at: int
    undo: list[tuple[dict[Any, Any], Any, Any]]
    changes: list[Change]


class Found(NamedTuple):
    """Everything that is in a store, as it was read."""

    jobs: dict[str, Job]
    entries: dict[str, bytes]
    unique: dict[Key, str]
    counters: dict[str, dict[str, int]]
    complaint: str = ""  #: why it could not be read, though nothing strikes


class Ledger:
    """The state that the commits so far add up to."""

    def __init__(self, commits_kept: int) -> None:
        self.jobs: dict[str, Job] = {}
        self.entries: dict[str, bytes] = {}
        self.unique: dict[Key, str] = {}  #: who holds each unique key
        self.fired: dict[Tick, str] = {}  #: by (schedule, tick): the job
        self.ticks: dict[str, Tick] = {}  #: of ids that were drawn for a tick
        self.ever: set[str] = set()  #: ids of all jobs that a caller ever tried to push
        self.pushed = 0
        self.removed = 0
        self.lost: dict[str, Job] = {}  #: jobs that a crash took, as they were
        self.lost_writes = 0
        self.completed: dict[str, int] = {}  #: acked completions that are not lost: when
        self.states: Counter[str] = Counter()
        self.commits: deque[Commit] = deque(maxlen=commits_kept)
        self.unknown: list[Effects] = []  #: of calls that raised since the newest commit: they may yet turn up
        self._waiting: dict[str, list[tuple[int, str]]] = {}  #: by queue: a heap of (priority inverted, id)

    @property
    def unfinished(self) -> int:
        states = self.states
        return states[State.WAITING] + states[State.DELAYED] + states[State.ACTIVE]

    @property
    def has_ticks_to_come(self) -> bool:
        """Whether a schedule will push another job."""
        schedules = (decode_schedule(value) for key, value in self.entries.items() if key.startswith(SCHEDULE))
        return any(schedule.next_at is not None for schedule in schedules)

    def first(self, queue: str) -> str | None:
        """The id of the job whose turn it is."""
        line = self._waiting.get(queue)
        while line:
            priority, job_id = line[0]
            job = self.jobs.get(job_id)
            if job is not None and job.state is WAITING and -job.priority == priority:
                return job_id
            heappop(line)
        return None

    def begin(self, at: int, changes: list[Change]) -> Commit:
        """Open a commit; `apply` its changes one by one, so that a check sees each between what was and what is."""
        commit = Commit(at, [], changes)
        self.commits.append(commit)
        self.unknown.clear()
        return commit

    def apply(self, commit: Commit, event: Event, new: Job) -> None:
        old = self.jobs.get(new.id)
        if new.data_apart:
            new = with_data_of(new, old)
        commit.undo.append((self.jobs, new.id, ABSENT if old is None else old))
        if old is not None:
            self.states[old.state] -= 1
        is_gone = event is Event.PURGE or (event is Event.ACK and new.remove_on_complete)
        if is_gone:
            self.jobs.pop(new.id, None)
            self.removed += 1
        else:
            self.jobs[new.id] = new
            self.states[new.state] += 1
        if event is Event.PUSH:
            self._pushed(commit, new)
        elif event is Event.ACK:
            self.completed[new.id] = commit.at
        if new.unique_key is not None:
            self._hold_key(commit, new)
        if new.state is WAITING and (old is None or old.state is not WAITING):
            heappush(self._waiting.setdefault(new.queue, []), (-new.priority, new.id))

    def put_entry(self, commit: Commit, key: str, value: bytes | None) -> None:
        if key.startswith(KEPT_ENTRIES) and (value is not None or key in self.entries):
            commit.undo.append((self.entries, key, self.entries.get(key, ABSENT)))
            if value is None:
                self.entries.pop(key, None)
            else:
                self.entries[key] = value

    def _pushed(self, commit: Commit, job: Job) -> None:
        self.pushed += 1
        tick = self.ticks.get(job.id)
        if tick is not None:
            commit.undo.append((self.fired, tick, self.fired.get(tick, ABSENT)))
            self.fired[tick] = job.id

    def _hold_key(self, commit: Commit, job: Job) -> None:
        key = (job.queue, job.unique_key or "")
        holder = self.unique.get(key)
        if job.state in FINISHED:
            if holder == job.id:
                commit.undo.append((self.unique, key, holder))
                del self.unique[key]
        elif holder != job.id:
            commit.undo.append((self.unique, key, ABSENT if holder is None else holder))
            self.unique[key] = job.id

    # After a crash.

    def differs_from(self, found: Found) -> bool:
        return found.jobs != self.jobs or found.entries != self.entries

    def take_back(self) -> Commit | None:
        """Undo the newest commit; None if there is none, or it is not kept."""
        if not self.commits:
            return None
        commit = self.commits.pop()
        for table, key, before in reversed(commit.undo):
            if before is ABSENT:
                table.pop(key, None)
            else:
                table[key] = before
        return commit

    def count_again(self) -> None:
        """Work out anew what follows from the records, after commits were taken back."""
        self.states = Counter(job.state for job in self.jobs.values())
        self._waiting = {}
        for job in self.jobs.values():
            if job.state is WAITING:
                heappush(self._waiting.setdefault(job.queue, []), (-job.priority, job.id))

    def forget_completions(self, job_ids: Iterable[str]) -> None:
        """These may have been taken back: those that were need not stay completed."""
        for job_id in list(job_ids):
            if not self._is_completed(job_id):
                self.completed.pop(job_id, None)

    def _is_completed(self, job_id: str) -> bool:
        job = self.jobs.get(job_id)
        return job.state is State.COMPLETED if job is not None else job_id not in self.lost


def read(store: Store) -> Found:
    """All that is in a store."""
    jobs: dict[str, Job] = {}
    counters: dict[str, dict[str, int]] = {}
    for queue in store.queues():
        counters[queue] = dict(store.counters(queue))
        for state in LISTED:
            start = shelf(queue, state)
            for job in store.scan(start, start + LAST, ALL):
                jobs[job.id] = whole(store, job)
    entries: dict[str, bytes] = {}
    for start in ("due/", "off/", PAUSED):
        entries.update((key, bytes(value)) for key, value in store.entries(start, start + LAST, ALL))
    unique = {}
    for job in jobs.values():
        if job.unique_key is not None:
            holder = store.entry(f"{UNIQUE}{job.queue}/{job.unique_key}")
            if holder is not None:
                unique[job.queue, job.unique_key] = holder.decode()
    return Found(jobs, entries, unique, counters)


def whole(store: Store, job: Job) -> Job:
    """The record as the engine knows it, wherever its data is kept."""
    return replace(store.load(job), data_apart=False) if job.data_apart else job


def with_data_of(job: Job, before: Job | None) -> Job:
    """The record that a change made, with its data: the engine changes records without reading what is kept apart."""
    if not job.data_apart:
        return job
    data = before.encoded_data if before is not None and job.encoded_data == NULL else job.encoded_data
    return replace(job, encoded_data=data, data_apart=False)


def told(job: Job) -> str:
    """A record for an error message."""
    return msgspec.json.encode(replace(job, encoded_data=NULL) if len(job.encoded_data) > 200 else job).decode()
