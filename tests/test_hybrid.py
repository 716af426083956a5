"""`hybrid`: answered from memory, stored by snapshots; each is one instant, and the window is a promise.

No test waits for the clock: takes and stores are driven by hand, and a store of the front door waits for hours.
"""

import json
import os
import random
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interrupts import Instructions
from test_buffered import NEVER, safe
from test_disk import deny, fill
from test_disk import small_disk as small_disk  # a fixture
from test_group_commit import PATIENCE, Caller, Moments, at_each_moment, is_held, is_whole, pair, until_true
from test_stores import (
    EXAMPLES,
    NOW,
    Model,
    Refused,
    Step,
    counted,
    id_of,
    job,
    line,
    numbers,
    programs,
    put,
    recounted,
    sized,
)

import rqlab
from rqlab.durability import IDLE_MS, Keeper
from rqlab.errors import DuplicateKey, JobNotFound, StoreBusy, StoreError, StoreFull
from rqlab.job import Job, State
from rqlab.storage import Store, Transaction
from rqlab.storage import hybrid as hybrid_module
from rqlab.storage.disk import DiskStore
from rqlab.storage.entries import DATA, DATA_APART_BYTES
from rqlab.storage.hybrid import HybridStore
from rqlab.storage.place import LAST, shelf
from rqlab.storage.view import ReadOnlyStore

FINISHED_JOBS = int(os.environ.get("RQLAB_FINISHED", "50000"))  # a million in make torture
RESIDENT_MB = 300  # promised at a million finished jobs, and at any other number


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HybridStore]:
    store = opened(tmp_path / "q")
    yield store
    if not store._closed:
        repair(store)
    store.close()


def opened(path: Path, **fields: Any) -> HybridStore:
    """A store whose keeper is the test."""
    return HybridStore(DiskStore(path, durability="hybrid", exclusive=True), **{"busy_timeout": 0.2, **fields})


def hybrid(path: Path, **settings: Any) -> rqlab.Queues:
    return rqlab.open(path, "hybrid", **{"snapshot_interval": NEVER, **settings})


def refuse(store: HybridStore, times: int = 10**9) -> None:
    """Let so many snapshots fail."""
    deny(store.disk._connection, "COMMIT", times)


def repair(store: HybridStore) -> None:
    store.disk._connection.set_authorizer(None)


def finished(number: int, state: State = State.COMPLETED, **fields: Any) -> Job:
    return job(number, state=state, **fields)


# When a call returns, and when it is safe.


def test_a_call_returns_before_anything_is_stored(store: HybridStore) -> None:
    put(store, job(1))

    assert (store.unsafe_writes, line(store, "a"), safe(store.path)) == (2 - 1, [1], [])
    store.flush()
    assert (store.unsafe_writes, safe(store.path)) == (0, [1])


def test_a_snapshot_holds_what_was_written_before_it_was_taken_and_nothing_later(store: HybridStore) -> None:
    put(store, job(1))
    store.take()
    put(store, job(2))
    store.write(lambda tx: tx.put(job(1, state=State.ACTIVE), replacing=job(1)))
    store.store_taken()

    assert safe(store.path) == [1], "as it was as the snapshot was taken"
    assert (line(store, "a"), line(store, "a", State.ACTIVE)) == ([2], [1])
    assert store.unsafe_writes == 2
    store.flush()
    assert safe(store.path) == [2]


def test_a_second_take_before_the_store_changes_nothing(store: HybridStore) -> None:
    put(store, job(1))
    store.take()
    put(store, job(2))
    store.take()
    store.store_taken()

    assert safe(store.path) == [1]
    assert store.unsafe_writes == 1


def test_every_read_sees_what_no_snapshot_has_stored(tmp_path: Path) -> None:
    with hybrid(tmp_path) as rq:
        first = rq.push("a", "n", unique_key="k")
        rq.push("b", "n", delay=60)
        rq.schedule("s", "a", "n", every=60)
        rq.pause("b")

        assert rq.queues() == ["a", "b"]
        assert (rq.counts().waiting, rq.counts().delayed) == (1, 1)
        assert [found.id for found in rq.jobs("a")] == [first]
        assert rq.paused() == ["b"]
        assert rq.metrics()["unsafe_writes"] > 0
        with pytest.raises(DuplicateKey):
            rq.push("a", "n", unique_key="k")
        assert safe(tmp_path) == []


@pytest.mark.parametrize("moment", ["flush", "checkpoint", "vacuum", "backup", "close"])
def test_everything_acknowledged_is_safe_after(tmp_path: Path, moment: str) -> None:
    with hybrid(tmp_path / "q") as rq:
        rq.push("a", "n")
        match moment:
            case "backup":
                rq.backup(tmp_path / "copy")
            case "checkpoint":
                rq._store.checkpoint()  # type: ignore[attr-defined]
            case _:
                getattr(rq, moment)()
        held = safe(tmp_path / ("copy" if moment == "backup" else "q"))

    assert len(held) == 1


# The keeper.


def keeper_of(store: HybridStore) -> tuple[Keeper, list[int]]:
    calls: list[int] = []
    store.on_unsafe = lambda: calls.append(store.unsafe_writes)
    return Keeper(store, 1.0), calls


def test_a_snapshot_is_taken_after_its_interval_and_stored_in_a_second_step(store: HybridStore) -> None:
    keeper, calls = keeper_of(store)
    put(store, job(1))
    assert keeper.step(NOW) == NOW + 1_000
    assert keeper.step(NOW + 1_000) == NOW + 1_000
    put(store, job(2))
    assert safe(store.path) == []

    assert keeper.step(NOW + 1_400) == NOW + 2_000, "from when the one before was taken, not stored"
    assert safe(store.path) == [1]
    assert keeper.at_risk(NOW + 1_500) == {"unsafe_writes": 1, "unsafe_seconds": 0.5}
    assert keeper.step(NOW + 2_000) == NOW + 2_000
    assert keeper.step(NOW + 2_001) == NOW + 2_001 + IDLE_MS
    assert safe(store.path) == [1, 2]
    assert calls == [1, 2], "for the first unsafe write after each snapshot was taken"


def test_a_snapshot_is_taken_at_once_when_max_dirty_writes_are_unsafe(tmp_path: Path) -> None:
    with closing(opened(tmp_path, max_dirty=5)) as store:
        keeper, calls = keeper_of(store)
        for number in range(4):
            put(store, job(number))
        keeper.step(NOW)
        put(store, job(4))

        assert calls == [1, 5]
        assert keeper.step(NOW + 1) == NOW + 1, "taken"
        keeper.step(NOW + 1)
        assert len(safe(tmp_path)) == 5


def test_a_keeper_backs_off_while_snapshots_fail_though_it_must_hurry(tmp_path: Path) -> None:
    with closing(opened(tmp_path, max_dirty=2)) as store:
        keeper, _ = keeper_of(store)
        put(store, job(1), job(2), job(3))
        refuse(store, 2)
        now = NOW
        for failures in (1, 2):
            assert keeper.step(now) == now
            assert keeper.step(now) == now + 1_000
            assert keeper.step(now + 1) == now + 1_000
            assert keeper.failures == failures
            now += 1_000
        keeper.step(now)
        keeper.step(now)

        assert (keeper.failures, len(safe(tmp_path))) == (0, 3)


@pytest.mark.parametrize("broken", ["raises", "KeyboardInterrupt"])
def test_a_first_write_that_was_undone_keeps_nobody_from_calling_the_keeper(store: HybridStore, broken: str) -> None:
    keeper, calls = keeper_of(store)

    def work(tx: Transaction) -> None:
        tx.put(job(1))
        raise LookupError if broken == "raises" else KeyboardInterrupt

    with pytest.raises((LookupError, KeyboardInterrupt)):
        store.write(work)
    calls.clear()
    put(store, job(2))

    assert calls, "or it would be unsafe until the keeper looks in an hour"
    assert keeper.step(NOW) == NOW + 1_000


def test_a_flush_of_somebody_else_that_fails_calls_the_keeper(store: HybridStore) -> None:
    _, calls = keeper_of(store)
    put(store, job(1))
    calls.clear()
    refuse(store, 1)
    with pytest.raises(StoreError):
        store.flush()

    assert calls


# The window is a promise.


def test_writers_wait_at_four_times_max_dirty_and_go_on_when_a_snapshot_is_stored(tmp_path: Path) -> None:
    with closing(opened(tmp_path, max_dirty=3, busy_timeout=PATIENCE)) as store:
        highest: list[int] = []
        store.on_unsafe = lambda: highest.append(store.unsafe_writes)
        done: list[int] = []

        def write(first: int) -> None:
            for number in range(first, first + 20):
                put(store, job(number))
                done.append(number)
                highest.append(store.unsafe_writes)

        writers = [Caller(lambda first=first: write(first)) for first in (0, 100, 200)]  # type: ignore[misc]
        until_true(lambda: store.unsafe_writes >= 12)
        before = len(done)
        store.take()
        assert store.unsafe_writes >= 12, "a snapshot that was only taken makes no room"
        assert len(done) - before <= 3, "none but those that had been let in already"
        while any(writer.is_alive() for writer in writers):
            store.flush()

        assert [writer.finish().error for writer in writers] == [None] * 3
        assert len(done) == 60
        assert max(highest) <= 12


def test_a_writer_that_waited_in_vain_is_told_and_has_changed_nothing(tmp_path: Path) -> None:
    with closing(opened(tmp_path, max_dirty=2, busy_timeout=0.05)) as store:
        for number in range(8):
            put(store, job(number))
        with pytest.raises(
            StoreBusy, match=r"8 writes wait to be stored, no more than 8 may .* busy_timeout \(0.05 s\)"
        ):
            put(store, job(8))

        assert (store.unsafe_writes, len(line(store, "a"))) == (8, 8)
        store.flush()
        put(store, job(9))
        assert line(store, "a") == [*range(8), 9]


def test_writers_that_wait_are_told_of_a_snapshot_that_failed(tmp_path: Path) -> None:
    with closing(opened(tmp_path, max_dirty=1, busy_timeout=PATIENCE)) as store:
        for number in range(4):
            put(store, job(number))
        writer = Caller(lambda: put(store, job(4)))
        refuse(store, 1)
        store.take()
        with pytest.raises(StoreError):
            store.store_taken()

        assert isinstance(writer.finish().error, StoreError)
        assert line(store, "a") == [0, 1, 2, 3]


def test_a_transaction_larger_than_the_bound_returns_when_it_is_safe(tmp_path: Path) -> None:
    with hybrid(tmp_path, max_dirty=5, snapshot_interval=0.001) as rq:
        ids = rq.push_many("a", [{"name": "n"}] * 200)

        assert len(safe(tmp_path)) == len(ids) == 200


@pytest.mark.parametrize("taken", [1, 90, 399])
def test_a_large_transaction_is_not_acknowledged_while_it_and_the_snapshot_under_way_are_more_than_the_bound(
    tmp_path: Path, taken: int
) -> None:
    with closing(opened(tmp_path, max_dirty=100, busy_timeout=0.05)) as store:
        put(store, *(job(number) for number in range(taken)))
        store.take()
        with pytest.raises(StoreBusy, match="This write is one of them: it is kept"):
            put(store, *(job(1_000 + number) for number in range(400)))


def test_a_large_transaction_that_waited_in_vain_is_kept_and_that_is_said(tmp_path: Path) -> None:
    with closing(opened(tmp_path, max_dirty=1, busy_timeout=0.05)) as store:
        with pytest.raises(StoreBusy, match="This write is one of them: it is kept"):
            put(store, *(job(number) for number in range(9)))

        assert len(line(store, "a")) == 9
    assert len(safe(tmp_path)) == 9


def test_a_world_makes_room_by_running_the_keeper(tmp_path: Path) -> None:
    with closing(opened(tmp_path, max_dirty=2)) as store:
        made: list[int] = []

        def make_room() -> None:
            made.append(store.unsafe_writes)
            store.take()
            store.store_taken()

        store.make_room = make_room
        for number in range(20):
            put(store, job(number))

        assert made == [8, 8]
        assert len(safe(tmp_path)) == 16


# A snapshot is one instant.


def test_a_snapshot_is_one_instant_under_writers_that_never_stop(tmp_path: Path) -> None:
    """Two jobs change in one transaction, so their priorities agree in every image, and the counters are a recount."""
    with closing(opened(tmp_path, max_dirty=10**6, busy_timeout=PATIENCE)) as store:
        stop = threading.Event()

        def turn(of: int) -> int:
            pairs = [job(of), job(of + 1, "b")]
            put(store, *pairs)
            turns = 0
            while not stop.is_set():
                turns += 1
                after = [replaced(each, turns) for each in pairs]
                store.write(
                    lambda tx, old=pairs, new=after: [tx.put(n, replacing=o) for o, n in zip(old, new, strict=True)]
                )  # type: ignore[misc]
                pairs = after
            return turns

        def replaced(each: Job, turns: int) -> Job:
            state = State.ACTIVE if turns % 2 else State.WAITING
            return job(int(each.id[-12:], 16), each.queue, state, priority=turns % 1_000, at=NOW)

        writers = [Caller(lambda of=of: turn(of)) for of in (10, 20, 30)]  # type: ignore[misc]
        images = []
        for _ in range(40):
            store.take()
            store.store_taken()
            with closing(ReadOnlyStore(tmp_path)) as view:
                assert counted(view) == recounted(view)
                found = {n: view.get(id_of(n)) for of in (10, 20, 30) for n in (of, of + 1)}
            for of in (10, 20, 30):
                one, other = found[of], found[of + 1]
                assert (one is None) == (other is None)
                assert one is None or (one.priority, one.state) == (other.priority, other.state)  # type: ignore[union-attr]
            images.append({n: each and each.priority for n, each in found.items()})
        stop.set()

        assert min(writer.finish().result for writer in writers) > 40
        assert len({tuple(image.items()) for image in images}) > 10, "they caught it at different instants"


def test_a_snapshot_that_reads_as_it_stores_is_caught(store: HybridStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plant: records and counters are looked up as they are stored, so they are of different instants."""
    real = hybrid_module._step
    monkeypatch.setattr(
        hybrid_module,
        "_step",
        lambda snapshot: real(snapshot._replace(jobs={job_id: store._jobs[job_id] for job_id in snapshot.jobs})),
    )
    put(store, job(1))
    store.take()
    store.write(lambda tx: tx.put(job(1, state=State.ACTIVE), replacing=job(1)))
    store.store_taken()

    with closing(ReadOnlyStore(store.path)) as view:
        assert counted(view) != recounted(view), "the plant has not grown"


# A snapshot that fails.


def test_a_snapshot_that_fails_puts_back_says_so_and_is_tried_again(store: HybridStore) -> None:
    put(store, job(1), sized(2, DATA_APART_BYTES * 2), job(3))
    store.flush()
    store.write(lambda tx: (tx.delete(job(3)), tx.put(job(4, expires_at=NOW)), tx.put_entry("k", b"v", "due/1")))
    store.take()
    refuse(store, 1)
    put(store, job(5))
    with pytest.raises(StoreError, match="what was written before is kept, and tried again"):
        store.store_taken()

    assert line(store, "a") == [1, 2, 4, 5]
    with pytest.raises(StoreError, match="kept, and tried again"):
        put(store, job(6))
    put(store, job(7))
    assert store.get(id_of(3)) is None
    store.flush()
    assert safe(store.path) == [1, 2, 4, 5, 7]
    with closing(ReadOnlyStore(store.path)) as view:
        assert counted(view) == recounted(view)
        assert view.entry("k") == b"v"


def test_a_snapshot_that_forgets_what_failed_is_caught(store: HybridStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HybridStore, "_put_back", lambda self, snapshot: setattr(self, "_taken", None))
    put(store, job(1))
    refuse(store, 1)
    with pytest.raises(StoreError):
        store.flush()
    store.flush()

    assert safe(store.path) == [], "the plant has not grown"


def test_marks_that_are_cleared_late_are_caught(store: HybridStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plant: what comes between take and store is thought to be stored."""
    real = HybridStore._store_pending

    def clear_late(self: HybridStore) -> None:
        real(self)
        self._dirty_jobs.clear()

    put(store, job(1))
    store.take()
    put(store, job(2))
    monkeypatch.setattr(HybridStore, "_store_pending", clear_late)
    store.store_taken()
    store.flush()

    assert safe(store.path) == [1], "the plant has not grown"


def test_a_job_that_was_deleted_while_its_first_snapshot_failed_never_was(store: HybridStore) -> None:
    put(store, sized(1, DATA_APART_BYTES * 2), job(2))
    store.take()
    store.write(lambda tx: tx.delete(job(1)))
    refuse(store, 1)
    with pytest.raises(StoreError):
        store.store_taken()
    store.flush()

    with closing(ReadOnlyStore(store.path)) as view:
        assert line(view, "a") == [2]
        assert view.entry(DATA + id_of(1)) is None


def test_a_job_that_was_deleted_while_its_first_snapshot_was_stored_goes_with_the_next(store: HybridStore) -> None:
    put(store, sized(1, DATA_APART_BYTES * 2), job(2))
    store.take()
    store.write(lambda tx: tx.delete(job(1)))
    store.store_taken()
    assert safe(store.path) == [1, 2]
    store.flush()

    with closing(ReadOnlyStore(store.path)) as view:
        assert line(view, "a") == [2]
        assert view.entry(DATA + id_of(1)) is None
        assert counted(view) == recounted(view)


def test_a_full_disk_refuses_a_close_keeps_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    rq = hybrid(small_disk / "q")
    ids = {rq.push("a", "n", "x" * 3_000) for _ in range(30)}
    filler = fill(small_disk)
    for attempt in (rq.flush, rq.close, rq.close):
        with pytest.raises(StoreFull, match="the disk is full"):
            attempt()
    assert {found.id for found in rq.jobs("a")} == ids
    filler.unlink()
    rq.close()

    with rqlab.open(small_disk / "q") as again:
        assert {found.id for found in again.jobs("a")} == ids


# Interrupts.

ACTS: dict[str, Callable[[HybridStore], object]] = {
    "flush": lambda store: store.flush(),
    "take": lambda store: store.take(),
    "store_taken": lambda store: store.store_taken(),
    "a flush that fails": lambda store: suppressed(store),
    "a look at finished jobs": lambda store: line(store, "a", State.DLQ),
}


def suppressed(store: HybridStore) -> None:
    refuse(store, 1)
    with suppress(StoreError):
        store.flush()


@pytest.mark.parametrize(
    ("act", "kind"),  # an interrupt from the profiler in the middle of store_taken has crashed the interpreter itself
    [(act, kind) for act in ACTS for kind in (Moments, Instructions) if (act, kind) != ("store_taken", Moments)],
)
def test_an_interrupt_at_any_moment_forgets_neither_a_write_nor_a_deletion(
    quick_path: Path, act: str, kind: type[Moments]
) -> None:
    with closing(opened(quick_path)) as store:
        stored, deleted = [], []
        stride = (1,) if act == "take" and kind is Instructions else ()

        def strike(nth: int) -> bool:
            store.write(pair(nth))
            put(store, finished(10**6 + nth))
            store.take()
            with kind(nth, *stride) as moments:
                ACTS[act](store)
            repair(store)
            store.flush()
            store.write(pair(10**5 + nth))
            if act != "store_taken":
                with kind(nth, *stride) as moments:
                    ACTS[act](store)
                repair(store)
            store.write(unpair(10**5 + nth))
            store._failure = None
            stored.append(nth)
            deleted.append(10**5 + nth)
            assert not is_held(store._lock)
            assert not is_held(store._storing)
            store.flush()
            assert 10**6 + nth not in numbers(list(store._jobs.values())), "it left memory"
            assert store.get(id_of(10**6 + nth)) == finished(10**6 + nth)
            return moments.has_struck

        assert at_each_moment(strike) >= 1
    with closing(DiskStore(quick_path)) as disk:
        assert all(is_whole(disk, number) for number in stored)
        assert not any(is_whole(disk, number) for number in deleted), "a deletion is a write too"
        assert counted(disk) == recounted(disk)


def unpair(number: int) -> Callable[[Transaction], None]:
    def work(tx: Transaction) -> None:
        for which in (2 * number, 2 * number + 1):
            found = tx.get(id_of(which))
            if found is not None:
                tx.delete(found)
        tx.delete_entry(f"pair/{number}")

    return work


@pytest.mark.parametrize("kind", [Moments, Instructions])
def test_an_interrupt_at_any_moment_of_a_write_parts_nothing(quick_path: Path, kind: type[Moments]) -> None:
    with closing(opened(quick_path)) as store:
        calls: list[int] = []
        store.on_unsafe = lambda: calls.append(1)
        there = {}

        def strike(nth: int) -> bool:
            returned = False
            with kind(nth) as moments:
                store.write(pair(nth))
                returned = True
            there[nth] = is_whole(store, nth)
            assert there[nth] or not returned
            put(store, job(10**6 + nth, "b"))
            assert calls, "what is acknowledged has a keeper that knows"
            if nth % 3 == 0:
                store.flush()
                calls.clear()
            return moments.has_struck

        assert at_each_moment(strike) > 3
        assert set(there.values()) == {True, False}
    with closing(DiskStore(quick_path)) as disk:
        assert {number: is_whole(disk, number) for number in there} == there
        assert counted(disk) == recounted(disk)


@pytest.mark.parametrize("kind", [Moments, Instructions])
def test_an_interrupt_at_any_moment_of_closing_loses_nothing_and_keeps_no_lock(
    quick_path: Path, kind: type[Moments]
) -> None:
    stored = []

    def strike(nth: int) -> bool:
        store = opened(quick_path)
        store.write(pair(nth))
        stored.append(nth)
        with kind(nth) as moments:
            store.close()
        store.close()
        return moments.has_struck

    assert at_each_moment(strike) > 3
    with closing(opened(quick_path)) as store:
        assert all(is_whole(store, number) for number in stored)


# What is in memory, and what is on the disk.


def test_opening_loads_what_lives_and_leaves_what_is_finished_on_the_disk(tmp_path: Path) -> None:
    with rqlab.open(tmp_path, retention=rqlab.Retention(completed=1234)) as rq:
        waiting = rq.push("a", "n", "x" * 40_000, unique_key="k")
        delayed = rq.push("a", "n", delay=600, ttl=60)
        done, dead, running = (rq.push("b", "n", priority=priority, max_attempts=1) for priority in (3, 2, 1))
        pulled = rq.pull("b", 3)
        rq.ack(pulled[0])
        rq.fail(pulled[1], "no")
        rq.schedule("s", "a", "n", every=60)
        rq.pause("a")
        facts = [rq.counts("a"), rq.counts("b"), rq.schedules(), rq.paused()]
    with hybrid(tmp_path) as rq:
        store = rq._store
        assert isinstance(store, HybridStore)
        assert set(store._jobs) == {waiting, delayed, running}
        assert [rq.counts("a"), rq.counts("b"), rq.schedules(), rq.paused()] == facts
        assert (rq.get(done).state, rq.get(dead).last_error) == ("completed", "no")
        assert rq.ack(pulled[2]).state == "completed", "its lease is still held"
        rq.resume("a")
        (large,) = rq.pull("a")
        assert large.data == "x" * 40_000
        with pytest.raises(DuplicateKey):
            rq.push("a", "n", unique_key="k")
        rq.ack(large)
        assert rq.push("a", "n", unique_key="k")
        assert json.loads(store.entry("rqlab/settings") or b"")["retention"]["completed"] == 1234
        assert [key[-36:] for key, _ in store.entries("expiring/a/", "expiring/a/" + LAST, 9)] == [delayed]
    with closing(DiskStore(tmp_path)) as disk:
        assert counted(disk) == recounted(disk)


def test_what_an_opening_loads_holds_nothing_twice(tmp_path: Path) -> None:
    name = "n" * 1_000
    with hybrid(tmp_path) as rq:
        rq.push_many("a", [{"name": name}] * 1_000)
    with traced() as held, hybrid(tmp_path) as rq:
        assert rq.jobs()[0].name == name

        assert held() < 1_500 * 1_000, "neither 1 000 names nor 1 000 records with the name in them"


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Gives how many bytes Python has taken since."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_every_call_finds_finished_jobs_in_memory_and_on_the_disk_alike(tmp_path: Path) -> None:
    with hybrid(tmp_path) as rq:
        store = rq._store
        assert isinstance(store, HybridStore)

        def finish(many: int) -> list[str]:
            ids = rq.push_many("a", [{"name": "n", "max_attempts": 1, "data": "x" * 5_000}] * many)
            for pulled in rq.pull("a", many):
                rq.fail(pulled, "no")
            return ids

        on_disk = finish(4)
        rq.flush()
        assert store._jobs == {}
        half_way = finish(3)
        store.take()
        in_memory = finish(2)
        everything = on_disk + half_way + in_memory

        assert [found.id for found in rq.jobs("a", state="dlq")] == everything
        assert [found.id for found in rq.get_dlq_jobs("a", 6)] == everything[::-1][:6]
        assert [found.id for found in rq.jobs("a", state="dlq", after=everything[2], limit=3)] == everything[3:6]
        assert rq.counts("a").dlq == 9
        assert store.count("done/dlq/a/", "done/dlq/a/" + LAST) == 9
        assert {rq.get(job_id).data for job_id in everything} == {"x" * 5_000}
        rq.requeue(on_disk[0])
        rq.requeue(half_way[0])
        store.store_taken()
        assert [found.id for found in rq.jobs("a", state="dlq")] == [
            i for i in everything if i not in (on_disk[0], half_way[0])
        ]
        store.take()
        assert rq.requeue_all("a") == 7
        assert rq.counts("a").dlq == 0
        assert rq.get_dlq_jobs("a") == []
        pulled_data = [pulled.data for pulled in rq.pull("a", 20)]
        assert pulled_data == ["x" * 5_000] * 9
        rq.flush()
        assert rq.counts("a").active == 9


def test_a_purge_takes_jobs_from_memory_and_from_the_disk_and_they_stay_away(tmp_path: Path) -> None:
    with hybrid(tmp_path) as rq:
        store = rq._store
        assert isinstance(store, HybridStore)
        ids = []
        for round_ in range(3):
            ids += rq.push_many("a", [{"name": "n", "data": "x" * 5_000}] * 5)
            rq.ack_many([(pulled, None) for pulled in rq.pull("a", 5)])
            (rq.flush, store.take, lambda: None)[round_]()
        assert rq.purge("a", "completed") == 15

        for step in (lambda: None, store.store_taken, rq.flush):
            step()
            assert rq.jobs("a") == []
            assert rq.counts("a").completed == 0
            for job_id in ids:
                with pytest.raises(JobNotFound):
                    rq.get(job_id)
    with closing(DiskStore(tmp_path)) as disk:
        assert recounted(disk) == {"a": {}}
        assert not any(disk.entry(DATA + job_id) for job_id in ids)


def test_a_look_during_which_a_deletion_is_stored_does_not_show_the_deleted(
    store: HybridStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, *(finished(number) for number in range(4)))
    store.flush()
    store.write(lambda tx: tx.delete(finished(2)))
    real = DiskStore.scan

    def scan(self: DiskStore, *arguments: Any, **named: Any) -> list[Job]:
        found = real(self, *arguments, **named)
        monkeypatch.setattr(DiskStore, "scan", real)
        store.flush()  # between the look at the disk and the look at what has changed since
        return found

    monkeypatch.setattr(DiskStore, "scan", scan)

    assert line(store, "a", State.COMPLETED) == [0, 1, 3], "its deletion was acknowledged before the look began"


def test_a_look_during_which_a_job_came_back_and_finished_again_shows_it_once_and_new(
    store: HybridStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, finished(1), finished(2, State.DLQ))
    store.flush()
    store.write(lambda tx: tx.put(job(2), replacing=finished(2, State.DLQ)))
    real = DiskStore.scan

    def scan(self: DiskStore, *arguments: Any, **named: Any) -> list[Job]:
        found = real(self, *arguments, **named)
        monkeypatch.setattr(DiskStore, "scan", real)
        store.write(lambda tx: tx.put(finished(2, at=NOW + 99), replacing=job(2)))
        store.flush()
        return found

    monkeypatch.setattr(DiskStore, "scan", scan)

    assert line(store, "a", State.DLQ) == [], "it was requeued before the look began"
    assert line(store, "a", State.COMPLETED) == [1, 2]


@pytest.mark.parametrize("change", ["deletes", "requeues"])
@pytest.mark.parametrize("when", ["stored", "taken"])
def test_work_that_raises_after_it_changed_a_job_on_the_disk_loses_nothing(
    store: HybridStore, change: str, when: str
) -> None:
    dead = finished(1, State.DLQ, encoded_data=sized(1, 9_000).encoded_data)
    put(store, dead, job(2))
    (store.flush if when == "stored" else store.take)()

    def work(tx: Transaction) -> None:
        found = tx.get(id_of(1))
        assert found is not None
        if change == "deletes":
            tx.delete(found)
        else:
            tx.put(job(1, data_apart=found.data_apart, encoded_data=found.encoded_data), replacing=found)
        raise LookupError

    for _ in range(2):
        with pytest.raises(LookupError):
            store.write(work)
    assert line(store, "a", State.DLQ) == [1]
    store.flush()
    store.flush()
    found = store.get(id_of(1))
    assert found is not None
    assert bytes(store.load(found).encoded_data) == bytes(dead.encoded_data)
    assert line(store, "a", State.DLQ) == [1]
    store.close()
    with closing(DiskStore(store.path)) as disk:
        assert line(disk, "a", State.DLQ) == [1]
        assert counted(disk) == recounted(disk) == {"a": {"waiting": 1, "dlq": 1}}


def test_a_job_deleted_twice_the_second_time_in_vain_stays_deleted(store: HybridStore) -> None:
    put(store, finished(1), finished(2))
    store.flush()
    store.write(lambda tx: tx.delete(finished(1)))

    def again(tx: Transaction) -> None:
        tx.delete(finished(2))
        raise LookupError

    with pytest.raises(LookupError):
        store.write(again)
    assert line(store, "a", State.COMPLETED) == [2]
    store.flush()
    assert line(store, "a", State.COMPLETED) == [2]


def test_large_data_goes_through_every_snapshot_and_every_opening(tmp_path: Path) -> None:
    data = ["x" * 4_094, "x" * 4_095, "x" * 40_000, "é" * 500_000]
    with hybrid(tmp_path) as rq:
        ids = [rq.push("a", "n", each) for each in data]
        rq.flush()
        pulled = rq.pull("a", 4)
        assert [each.data for each in pulled] == data
        rq.flush()
        for each in pulled[:2]:
            rq.release(each)
        rq._store.take()  # type: ignore[attr-defined]
        rq.ack(pulled[2])
    with hybrid(tmp_path) as rq:
        assert [rq.get(job_id).data for job_id in ids] == data
        again = rq.pull("a", 4)
        assert [each.data for each in again] == data[:2]
        assert rq.heartbeat(pulled[3]).data == data[3]
        rq.fail(pulled[3], "no")
    with rqlab.open(tmp_path) as rq:
        assert [rq.get(job_id).data for job_id in ids] == data
        assert [rq.get(job_id).state for job_id in ids] == ["active", "active", "completed", "delayed"]


def test_finished_jobs_leave_memory_when_they_are_stored_and_not_before(store: HybridStore) -> None:
    put(store, *(finished(number) for number in range(1_200)))
    refuse(store, 1)
    with pytest.raises(StoreError):
        store.flush()
    assert len(store._jobs) == 1_200
    store.take()
    assert len(store._jobs) == 1_200
    store.store_taken()

    assert store._jobs == {}
    assert not any(line.count("", LAST) for line in store._lines.values())
    assert line(store, "a", State.COMPLETED, 2_000) == list(range(1_200))


MANY = """
import json, sys
import rqlab
def resident():
    with open("/proc/self/status") as file:
        return max(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
rq = rqlab.open(sys.argv[1], "hybrid")
before = resident()
for _ in range(int(sys.argv[2]) // 1000):
    rq.push_many("a", [{"name": "n", "data": {"some": "data"}}] * 1000)
    rq.ack_many([(job, None) for job in rq.pull("a", 1000)])
rq.flush()
print(json.dumps([before, resident(), rq.counts("a").completed, len(rq._store._jobs)]))
rq.close()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux what is resident")
@pytest.mark.timeout(900)
def test_finished_jobs_by_the_million_need_no_memory(quick_path: Path) -> None:
    command = [sys.executable, "-c", MANY, str(quick_path), str(FINISHED_JOBS)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=800).stdout
    before, after, completed, in_memory = json.loads(said)
    print(f"{completed} completed jobs: {before:.0f} MB as it opened, {after:.0f} MB at the most")

    assert (completed, in_memory) == (FINISHED_JOBS, 0)
    assert after < RESIDENT_MB
    assert after - before < RESIDENT_MB / 2, "it does not grow with their number"


# Any history.

DISTURBANCES = ("", "", "take", "take", "store", "store", "fail", "flush", "reopen")


def disturb(store: HybridStore, what: str, path: Path) -> HybridStore:
    match what:
        case "take":
            store.take()
        case "store":
            store.store_taken()
        case "flush":
            store.flush()
        case "fail":
            refuse(store, 1)
            with suppress(StoreError):
                store.store_taken()
            repair(store)
            store._failure = None
        case "reopen":
            store.close()
            store = opened(path)
    return store


def run_history(path: Path, program: list[tuple[list[Step], str]], chance: random.Random) -> None:
    """Against a plain dict; snapshots are taken, stored, and fail between the transactions."""
    store, model = opened(path), Model()
    try:
        for transaction, ending in program:
            after = model.copy()

            def work(
                tx: Transaction, after: Model = after, todo: list[Step] = transaction, ending: str = ending
            ) -> None:
                for step in todo:
                    after.apply(step, tx)
                after.check(tx)
                if ending == "raise":
                    raise Refused

            with suppress(Refused):
                store.write(work)
            if ending != "raise":
                model = after
            store = disturb(store, chance.choice(DISTURBANCES), path)
            model.check(store)
            model.check_places(store)
        store.close()
        with closing(DiskStore(path)) as disk:
            model.check(disk)
            model.check_places(disk)
            assert counted(disk) == recounted(disk)
    finally:
        store.close()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    print_blob=True,
)
@given(program=programs, seed=st.integers(0, 2**32))
def test_random_histories_with_snapshots_half_done_are_what_a_plain_dict_says(
    tmp_path_factory: pytest.TempPathFactory, program: list[tuple[list[Step], str]], seed: int
) -> None:
    run_history(tmp_path_factory.mktemp("store") / "q", program, random.Random(seed))


@pytest.mark.parametrize("seed", range(int(os.environ.get("RQLAB_HISTORIES", "6"))))
def test_long_random_histories_with_snapshots_half_done_are_what_a_plain_dict_says(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    kinds = ["push"] * 4 + ["move"] * 6 + ["delete", "delete", "entry", "drop entry", "tally"]

    def step() -> Step:
        return chance.choice(kinds), chance.randrange(1_000), chance.randrange(len(State)), chance.choice([0, 0, 0, 2])

    program = [([step() for _ in range(chance.randrange(12))], chance.choice(["", "", "raise"])) for _ in range(40)]
    run_history(tmp_path / "q", program, chance)


def test_many_threads_and_a_keeper_get_on_and_counters_equal_a_recount(tmp_path: Path) -> None:
    with rqlab.open(tmp_path, "hybrid", snapshot_interval=0.002, max_dirty=40) as rq:

        def work(queue: str) -> list[str]:
            ids = []
            for number in range(80):
                ids.append(rq.push(queue, "n", number, max_attempts=1))
                for pulled in rq.pull(queue, 1 + number % 3):
                    (rq.ack, rq.release, lambda job: rq.fail(job, "no"))[number % 3](pulled)
                if number % 20 == 0:
                    rq.requeue_all(queue)
                    rq.flush()
                rq.jobs(queue, limit=5)
            return ids

        callers = [Caller(lambda queue=queue: work(queue)) for queue in ("a", "a", "b", "b", "c")]  # type: ignore[misc]
        errors = [caller.finish().error for caller in callers]
        assert errors == [None] * 5
        ids = {job_id for caller in callers for job_id in caller.result}
        assert rq._store.unsafe_writes <= 160  # type: ignore[attr-defined]
    with closing(DiskStore(tmp_path)) as store:
        assert counted(store) == recounted(store)
    with rqlab.open(tmp_path) as again:
        assert {found.id for found in again.jobs(limit=1_000)} == ids


def test_lines_are_as_their_records_say_after_jobs_have_left_memory(store: HybridStore) -> None:
    put(store, *(job(number) for number in range(20)))
    for number in range(0, 20, 2):
        store.write(lambda tx, number=number: tx.put(finished(number), replacing=job(number)))  # type: ignore[misc]
        if number % 4 == 0:
            store.flush()
    held: Store = store

    assert line(held, "a") == list(range(1, 20, 2))
    assert line(held, "a", State.COMPLETED) == list(range(0, 20, 2))
    assert numbers(held.scan(shelf("a", State.COMPLETED), shelf("a", State.COMPLETED) + LAST, 3, backwards=True)) == [
        18,
        16,
        14,
    ]
    assert held.first(shelf("a", State.COMPLETED), shelf("a", State.COMPLETED) + LAST) is not None
