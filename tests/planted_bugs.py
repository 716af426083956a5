"""Bugs to plant in the production code, each a change to one seam of it and nothing of the simulation."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from rqlab import backoff, lifecycle
from rqlab.durability import Keeper
from rqlab.engine import Engine
from rqlab.errors import StoreCorrupt, StoreError, StoreFull
from rqlab.job import State
from rqlab.lifecycle import Event
from rqlab.storage import disk, entries, memory
from rqlab.storage.buffered import BufferedStore
from rqlab.storage.hybrid import HybridStore

#: What `simulate` is told, so that a plant is noticed.
MEMORY: dict[str, Any] = {"store": "memory", "jobs": 30, "faults": 9}
HYBRID: dict[str, Any] = {"durability": "hybrid", "crashes": 4, "jobs": 30, "faults": 9}
DISK: dict[str, Any] = {"jobs": 16}

Patch = pytest.MonkeyPatch


def no_fencing(patch: Patch) -> None:
    """An ack is believed whoever holds the job by now."""

    def fence(stored: Any, held: Any) -> Any:
        if stored is None or stored.state is not lifecycle.ACTIVE:
            raise lifecycle.LeaseLost("not active")
        return stored

    patch.setattr(lifecycle, "fence", fence)


def no_stall_recovery(patch: Patch) -> None:
    """Nobody takes a job from a worker that is gone."""
    patch.setattr(Engine, "recover", lambda self, queue, judged_until, now: [])


def max_attempts_ignored(patch: Patch) -> None:
    """A job is tried for ever."""
    charge = lifecycle._charge

    def forever(job: Any, *arguments: Any) -> Any:
        charged = charge(lifecycle.replace(job, max_attempts=1_000_000), *arguments)
        return lifecycle.replace(charged, max_attempts=job.max_attempts)

    patch.setattr(lifecycle, "_charge", forever)


def early_retry(patch: Patch) -> None:
    """A retry forgets half of its backoff."""
    patch.setattr(lifecycle, "retry_in", lambda job, draw: backoff.retry_in(job, draw) // 2)


def normal_in_durable(patch: Patch) -> None:
    """A commit returns before it is on the disk."""
    patch.setitem(disk.SETTINGS, "sqlite_synchronous", 1)


def lost_wake_up(patch: Patch) -> None:
    """A delayed job is promoted by nobody."""
    patch.setattr("rqlab.engine._promote", lambda *ignored: 0)  # a pull's own
    patch.setattr(Engine, "promote", lambda self, queue, now: False)  # housekeeping's


def counters_only_rise(patch: Patch) -> None:
    """A job that moves on is counted in, and not counted out."""

    def count_in(tx: Any, job: Any, replacing: Any) -> None:
        if replacing is None or replacing.state is not job.state:
            tx.tally(job.queue, job.state)

    patch.setattr(memory, "count_in", count_in)


def unique_key_leaks(patch: Patch) -> None:
    """A finished job keeps its unique key."""
    change = Engine.__init__.__globals__["_change"]

    def leaky(tx: Any, event: Event, old: Any, new: Any, now: int) -> Any:
        class Keeps:
            def __getattr__(self, name: str) -> Any:
                return getattr(tx, name)

            def delete_entry(self, key: str) -> None:
                if not key.startswith("unique/"):
                    tx.delete_entry(key)

        return change(Keeps(), event, old, new, now)

    patch.setattr("rqlab.engine._change", leaky)


def flush_forgets(patch: Patch) -> None:
    """What a snapshot that failed should have stored is not stored by the next one."""

    def forget(self: Any, snapshot: Any) -> None:
        self._taken = None

    patch.setattr(HybridStore, "_put_back", forget)


def snapshot_by_halves(patch: Patch) -> None:
    """A snapshot is stored without its counters, the next one has them."""
    patch.setattr("rqlab.storage.hybrid.counter_rows", lambda counters: [])


def does_not_open_after_a_crash(patch: Patch) -> None:
    """A log that its process has left behind is taken for damage."""
    opens = disk.DiskStore._open

    def strict(self: Any) -> None:
        if (self.path / "cache.db-wal").exists() and not (self.path / "cache.db-shm").exists():
            raise StoreCorrupt("its log has no index")
        opens(self)

    patch.setattr(disk.DiskStore, "_open", strict)


def schedule_fires_twice(patch: Patch) -> None:
    """A tick's job is pushed, and the schedule is not told."""
    put = Engine.fire.__globals__["_put_schedule"]

    def forgetful(tx: Any, schedule: Any) -> None:
        if schedule.executions != 1:
            put(tx, schedule)

    patch.setattr("rqlab.engine._put_schedule", forgetful)


def deliveries_stand_still(patch: Patch) -> None:
    """A released job gives its delivery back."""
    release = lifecycle.release

    def forgetful(job: Any, now: int) -> Any:
        released = release(job, now)
        return lifecycle.replace(released, deliveries=released.deliveries - 1)

    patch.setattr(lifecycle, "release", forgetful)


def keeper_is_late(patch: Patch) -> None:
    """A snapshot, or a commit of a batch, is made at every fourth interval."""
    init = Keeper.__init__

    def late(self: Any, store: Any, interval: float) -> None:
        init(self, store, 4 * interval)

    patch.setattr(Keeper, "__init__", late)


def last_come_first_served(patch: Patch) -> None:
    """A pull takes the end of the line."""
    scan = memory.MemoryTransaction.scan

    def backwards(self: Any, start: str, end: str, limit: int, **options: Any) -> Any:
        if start.startswith("ready/"):
            return scan(self, start, end, limit, backwards=True)
        return scan(self, start, end, limit, **options)

    patch.setattr(memory.MemoryTransaction, "scan", backwards)


def a_stray_error(patch: Patch) -> None:
    """A key that is held raises an error that is none of ours."""

    def take_key(tx: Any, job: Any, return_holder: bool, beside: Any = ()) -> None:
        key = f"unique/{job.queue}/{job.unique_key}"
        if tx.entry(key) is not None:
            raise KeyError(key)
        tx.put_entry(key, job.id.encode())

    patch.setattr("rqlab.engine._take_key", take_key)


def unique_keys_unchecked(patch: Patch) -> None:
    """A key goes to whoever asks last."""

    def take_key(tx: Any, job: Any, return_holder: bool, beside: Any = ()) -> None:
        tx.put_entry(f"unique/{job.queue}/{job.unique_key}", job.id.encode())

    patch.setattr("rqlab.engine._take_key", take_key)


def released_as_done(patch: Patch) -> None:
    """A worker that stops completes what it holds."""
    release = lifecycle.release

    def done(job: Any, now: int) -> Any:
        return lifecycle.replace(release(job, now), state=State.COMPLETED, finished_at=now)

    patch.setattr(lifecycle, "release", done)


def deaf_to_retries(patch: Patch) -> None:
    """The fence looks at the wrong number: a run after a failure is never heard."""
    fence = lifecycle.fence

    def deaf(stored: Any, held: Any) -> Any:
        if stored is not None and stored.attempt:
            raise lifecycle.LeaseLost("it has another attempt")
        return fence(stored, held)

    patch.setattr(lifecycle, "fence", deaf)


def a_lost_update(patch: Patch) -> None:
    """What a failed run changed is counted and not stored."""
    put = memory.MemoryTransaction.put

    def forgetful(self: Any, job: Any, replacing: Any = None) -> None:
        if job.state is State.DELAYED and job.attempt > 1:
            memory.count_in(self, job, replacing)
        else:
            put(self, job, replacing)

    patch.setattr(memory.MemoryTransaction, "put", forgetful)


def pause_ignored(patch: Patch) -> None:
    """A pull looks for the pause of another queue."""
    pull_from = Engine.pull.__globals__["_pull_from"]

    def deaf(tx: Any, *arguments: Any) -> Any:
        class Unpaused:
            def __getattr__(self, name: str) -> Any:
                return getattr(tx, name)

            def entry(self, key: str) -> Any:
                return None if key.startswith("paused/") else tx.entry(key)

        return pull_from(Unpaused(), *arguments)

    patch.setattr("rqlab.engine._pull_from", deaf)


def large_data_forgotten(patch: Patch) -> None:
    """A record is stored, and the data that is kept apart is not."""
    rows = entries.job_rows
    patch.setattr(entries, "job_rows", lambda job, is_fresh: rows(job, is_fresh)[-1:])


def no_transaction(patch: Patch) -> None:
    """Each row is a commit of its own, and one that fails does not keep the others from being stored."""

    def run(self: Any, batch: Any) -> None:
        self._run_works(batch)
        late, self._late = self._late, {}
        for key, row in late.items():
            try:
                self._connection.execute(*((entries.delete(1), [key]) if row is None else (entries.upsert(1), row)))
            except sqlite3.Error as error:
                batch.error = entries.in_our_words(error, self.path)
        self._store_counters(batch.counters)
        if batch.error is None:
            batch.committed.append(None)

    patch.setattr(disk.DiskStore, "_run", run)


def rollback_dropped(patch: Patch) -> None:
    """A commit that failed has left nothing in the transaction, and nothing is put back into it."""

    def put_back(self: Any) -> None:
        self._is_whole = True

    patch.setattr(BufferedStore, "_put_back", put_back)


def _after_a_crash(patch: Patch, do: Any) -> None:
    """Do something whenever a store opens a directory whose last process has left its log behind."""
    init = disk.DiskStore.__init__

    def opened(self: Any, path: Any, **options: Any) -> None:
        was_left = (Path(path) / "cache.db-wal").exists()
        init(self, path, **options)
        if was_left:
            self.write(do)

    patch.setattr(disk.DiskStore, "__init__", opened)


def recovery_invents_a_job(patch: Patch) -> None:
    """A job is there twice after a crash."""

    def copy(tx: Any) -> None:
        for job in tx.scan("ready/", "ready/~", 1):
            tx.put_new([lifecycle.replace(job, id=job.id[:-4] + "beef")])

    _after_a_crash(patch, copy)


def recovery_completes_what_was_held(patch: Patch) -> None:
    """Who held a job at a crash is taken to have done it."""

    def complete(tx: Any) -> None:
        for job in tx.scan("leased/", "leased/~", 1):
            tx.put(lifecycle.replace(job, state=State.COMPLETED, lease_until=None, finished_at=job.updated_at), job)

    _after_a_crash(patch, complete)


def refuses_for_ever(patch: Patch) -> None:
    """A store that failed once does not try again."""
    write = disk.DiskStore.write

    def sulking(self: Any, work: Any) -> Any:
        if getattr(self, "has_failed", False):
            raise StoreFull("it was full before")
        try:
            return write(self, work)
        except StoreError:
            self.has_failed = True
            raise

    patch.setattr(disk.DiskStore, "write", sulking)
