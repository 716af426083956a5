"""`buffered`: acknowledged inside an open transaction, committed a little later; lost by a crash, and by nothing else.

No test waits for the clock: the keeper is driven by hand, and a store of the front door has an interval of hours.
"""

import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from interrupts import Instructions
from test_disk import another_process, deny, fill, forked, kill_nine
from test_disk import small_disk as small_disk  # a fixture
from test_group_commit import (
    PATIENCE,
    Caller,
    Moments,
    at_each_moment,
    failing,
    in_line,
    is_held,
    is_whole,
    pair,
    putting,
    together,
    until_true,
)
from test_stores import NOW, counted, id_of, job, line, put, recounted, sized

import rqlab
from rqlab.durability import IDLE_MS, RETRY_MS, Keeper
from rqlab.errors import DuplicateKey, StoreBusy, StoreError, StoreFull, StoreLocked
from rqlab.storage import Transaction
from rqlab.storage import disk as disk_module
from rqlab.storage.buffered import BufferedStore
from rqlab.storage.disk import DiskStore
from rqlab.storage.entries import DATA_APART_BYTES
from rqlab.storage.view import ReadOnlyStore

NEVER = 86_400.0  # seconds; a flush_interval or snapshot_interval that no test lives to see
LAZY: dict[str, Any] = {"buffered": {"flush_interval": NEVER}, "hybrid": {"snapshot_interval": NEVER}}
INTERVAL_MS = 10


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BufferedStore]:
    store = BufferedStore(tmp_path / "q", max_batch=10)
    yield store
    if not store._closed:
        store._connection.set_authorizer(None)  # a test that failed may have left it refusing
    store.close()


def safe(directory: Path, queue: str = "a") -> list[int]:
    """The waiting jobs that are on the disk: what a crash now would leave."""
    with closing(ReadOnlyStore(directory)) as view:
        return line(view, queue)


def buffered(path: Path, **settings: Any) -> rqlab.Queues:
    return rqlab.open(path, "buffered", **{"flush_interval": NEVER, **settings})


# When a call returns, and what it sees.


def test_a_call_returns_before_its_commit(store: BufferedStore) -> None:
    put(store, job(1))

    assert store.unsafe_writes == 1
    assert line(store, "a") == [1]
    assert safe(store.path) == [], "if it were there, nothing would be buffered"
    store.flush()
    assert (store.unsafe_writes, safe(store.path)) == (0, [1])


def test_every_read_sees_the_open_batch(tmp_path: Path) -> None:
    with buffered(tmp_path) as rq:
        first = rq.push("a", "n", unique_key="k")
        rq.push("b", "n", delay=60)
        rq.schedule("s", "a", "n", every=60)
        rq.pause("b")
        assert safe(tmp_path) == []

        assert rq.queues() == ["a", "b"]
        assert (rq.counts().waiting, rq.counts().delayed, rq.counts("a").waiting) == (1, 1, 1)
        assert rq.get(first).unique_key == "k"
        assert [found.id for found in rq.jobs("a")] == [first]
        assert rq.paused() == ["b"]
        assert [schedule.name for schedule in rq.schedules()] == ["s"]
        assert list(rq.metrics()["queues"]) == ["a", "b"]
        with pytest.raises(DuplicateKey):
            rq.push("a", "n", unique_key="k")
        (pulled,) = rq.pull("a")
        assert rq.ack(pulled).state == "completed"
        assert rq.counts("a").completed == 1
        assert safe(tmp_path) == []


def test_large_data_in_the_open_batch_can_be_pulled(tmp_path: Path) -> None:
    with buffered(tmp_path) as rq:
        rq.push("a", "n", "x" * 40_000)
        (pulled,) = rq.pull("a")

        assert pulled.data == "x" * 40_000
        rq.ack(pulled)
    with rqlab.open(tmp_path) as rq:
        assert rq.jobs("a")[0].data == "x" * 40_000


def test_works_see_the_counters_of_the_batches_before_them(store: BufferedStore) -> None:
    put(store, job(1))
    seen = store.write(lambda tx: tx.counters("a")["waiting"])
    put(store, job(2))

    assert (seen, store.counters("a")["waiting"]) == (1, 2)
    store.flush()
    assert counted(store) == recounted(store) == {"a": {"waiting": 2}}


# When it is committed.


def test_the_batch_is_committed_at_max_batch_writes(store: BufferedStore) -> None:
    put(store, *(job(number) for number in range(20)))
    for number in range(20, 28):
        put(store, job(number))
    assert (store.unsafe_writes, safe(store.path)) == (9, [])

    put(store, job(28))
    assert (store.unsafe_writes, len(safe(store.path))) == (0, 29)


def test_works_that_store_nothing_are_not_counted(store: BufferedStore) -> None:
    put(store, job(1))
    for _ in range(30):
        store.write(lambda tx: tx.get(id_of(1)))

    assert store.unsafe_writes == 1


def test_callers_that_come_together_are_one_batch_no_larger_than_the_bound(store: BufferedStore) -> None:
    callers = together(store, *(putting(number) for number in range(25)))

    assert [caller.result for caller in callers] == list(range(25))
    assert store.unsafe_writes == 5
    assert len(safe(store.path)) == 20


@pytest.mark.parametrize("moment", ["flush", "checkpoint", "vacuum", "backup", "close"])
def test_everything_acknowledged_is_safe_after(tmp_path: Path, moment: str) -> None:
    with buffered(tmp_path / "q") as rq:
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


def keeper_of(store: BufferedStore) -> tuple[Keeper, list[int]]:
    """A keeper that is driven by hand, and how often the store called for it."""
    calls: list[int] = []
    store.on_unsafe = lambda: calls.append(store.unsafe_writes)
    return Keeper(store, INTERVAL_MS / 1000), calls


def test_the_batch_is_committed_after_flush_interval(store: BufferedStore) -> None:
    keeper, calls = keeper_of(store)
    put(store, job(1))
    put(store, job(2))
    assert calls == [1], "called at the first unsafe write, not at each"

    assert keeper.step(NOW) == NOW + INTERVAL_MS
    assert keeper.step(NOW + INTERVAL_MS - 1) == NOW + INTERVAL_MS
    assert safe(store.path) == []
    again = keeper.step(NOW + INTERVAL_MS)  # take …
    assert again == NOW + INTERVAL_MS
    assert keeper.step(again) == again + IDLE_MS  # … and store
    assert safe(store.path) == [1, 2]
    put(store, job(3))
    assert calls == [1, 1]


def test_the_front_door_keeps_its_store_without_being_asked(tmp_path: Path) -> None:
    with rqlab.open(tmp_path, "buffered") as rq:
        rq.push("a", "n")
        until_true(lambda: len(safe(tmp_path)) == 1)
        until_true(lambda: rq.metrics()["unsafe_writes"] == 0)


def test_metrics_say_what_is_at_risk(store: BufferedStore) -> None:
    keeper, _ = keeper_of(store)
    assert keeper.at_risk(NOW) == {"unsafe_writes": 0, "unsafe_seconds": 0.0}
    put(store, job(1))
    keeper.step(NOW)

    assert keeper.at_risk(NOW + 7) == {"unsafe_writes": 1, "unsafe_seconds": 0.007}
    assert keeper.at_risk(NOW - 7_000)["unsafe_seconds"] == 0.0, "the wall clock went back"
    keeper.step(NOW + INTERVAL_MS)
    keeper.step(NOW + INTERVAL_MS)
    assert keeper.at_risk(NOW + 99) == {"unsafe_writes": 0, "unsafe_seconds": 0.0}


def test_a_keeper_between_two_steps_has_nothing_to_say_of_a_store_that_was_closed(
    store: BufferedStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The close stored everything; a warning that writes are not safe would frighten for nothing."""
    keeper, _ = keeper_of(store)
    put(store, job(1))
    keeper.step(NOW)
    put(store, job(2))
    keeper.store.take()
    keeper._taken_at = NOW
    store.close()

    assert keeper.step(NOW + INTERVAL_MS) == NOW + INTERVAL_MS + IDLE_MS
    assert caplog.records == []
    assert safe(store.path) == [1, 2]


def test_what_is_at_risk_can_be_asked_while_others_write(quick_path: Path) -> None:
    with closing(BufferedStore(quick_path, max_batch=2)) as store:
        keeper, _ = keeper_of(store)
        stop = threading.Event()

        def look() -> int:
            looks = 0
            while not stop.is_set():
                keeper.at_risk(NOW)
                looks += 1
            return looks

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            looker = Caller(look)
            for number in range(600):
                put(store, job(number))
        finally:
            sys.setswitchinterval(before)
            stop.set()

        assert looker.finish().error is None
        assert looker.result > 0


def test_an_idle_keeper_does_nothing(store: BufferedStore) -> None:
    keeper, calls = keeper_of(store)
    commits: list[str] = []
    store._connection.set_trace_callback(commits.append)

    assert keeper.step(NOW) == NOW + IDLE_MS
    assert keeper.step(NOW + IDLE_MS) == NOW + 2 * IDLE_MS
    assert (commits, calls) == ([], [])


@pytest.mark.parametrize("back", [1, 50, 99, 1_000, 10**9])
def test_a_wall_clock_that_goes_back_delays_a_flush_by_no_more_than_an_interval(
    store: BufferedStore, back: int
) -> None:
    keeper, _ = keeper_of(store)
    put(store, job(1))
    keeper.step(NOW)

    earlier = NOW - back
    due = keeper.step(earlier)
    assert due <= earlier + INTERVAL_MS
    keeper.step(due)
    keeper.step(due)
    assert safe(store.path) == [1]


def test_a_keeper_backs_off_while_commits_fail_and_goes_on(store: BufferedStore) -> None:
    keeper, _ = keeper_of(store)
    put(store, job(1))
    keeper.step(NOW)
    deny(store._connection, "COMMIT", 2)
    now = NOW + INTERVAL_MS
    for _ in range(2):
        assert keeper.step(now) == now
        again = keeper.step(now)
        assert again == now + RETRY_MS, "neither at once nor an hour later"
        assert keeper.step(now + 1) == again, "being called in between changes nothing"
        now = again

    assert keeper.failures == 2
    assert keeper.at_risk(now)["unsafe_seconds"] == (now - NOW) / 1000
    keeper.step(now)
    assert keeper.step(now) == now + IDLE_MS
    assert (safe(store.path), keeper.failures) == ([1], 0)


# A commit that fails.


def refuse_commits(store: BufferedStore, times: int = 10**9) -> Callable[[], None]:
    deny(store._connection, "COMMIT", times)
    return lambda: store._connection.set_authorizer(None)


def test_a_flush_that_fails_raises_forgets_nothing_and_is_tried_again(store: BufferedStore) -> None:
    put(store, job(1), sized(2, DATA_APART_BYTES * 2))
    put(store, job(3, expires_at=NOW))
    repair = refuse_commits(store)
    with pytest.raises(StoreError, match="what was written before is kept, and tried again"):
        store.flush()

    assert line(store, "a") == [1, 2, 3], "reads go on"
    assert store.unsafe_writes == 2
    put(store, job(4))
    repair()
    store.flush()
    assert safe(store.path) == [1, 2, 3, 4]
    assert counted(store) == recounted(store)


def test_a_keepers_failure_is_raised_to_the_next_caller_who_writes_and_only_to_that_one(store: BufferedStore) -> None:
    put(store, job(1))
    repair = refuse_commits(store, 1)
    with pytest.raises(StoreError):
        store.store_taken()
    repair()

    assert line(store, "a") == [1]
    with pytest.raises(StoreError, match="kept, and tried again"):
        put(store, job(2))
    put(store, job(3))
    store.flush()
    assert safe(store.path) == [1, 3], "the caller that was told has changed nothing"


def test_a_commit_at_the_bound_that_fails_refuses_further_writes_and_keeps_what_was_acknowledged(
    store: BufferedStore,
) -> None:
    refused, acknowledged = 0, []
    repair = refuse_commits(store)
    for number in range(30):
        try:
            put(store, job(number))
            acknowledged.append(number)
        except StoreError:
            refused += 1
        assert store.unsafe_writes <= 10, "never more than max_batch"

    assert (len(acknowledged), refused) == (10, 20)
    assert line(store, "a") == acknowledged
    repair()
    put(store, job(99))
    store.flush()
    assert safe(store.path) == [*acknowledged, 99]
    assert counted(store) == recounted(store)


@pytest.mark.parametrize("max_batch", [1, 2, 5])
def test_the_keeper_is_called_for_a_first_batch_that_reaches_the_bound_and_cannot_be_committed(
    tmp_path: Path, max_batch: int
) -> None:
    with closing(BufferedStore(tmp_path, max_batch=max_batch)) as store:
        keeper, calls = keeper_of(store)
        repair = refuse_commits(store, 1)
        together(store, *(putting(number) for number in range(max_batch)))
        repair()

        assert store.unsafe_writes == max_batch
        assert calls, "or nobody would try again before the next write"
        now = keeper.step(NOW)
        while store.unsafe_writes:
            assert now <= NOW + RETRY_MS
            now = keeper.step(now)
        assert len(safe(tmp_path)) == max_batch


def test_a_close_that_fails_leaves_the_store_open_and_a_second_one_loses_nothing(store: BufferedStore) -> None:
    put(store, job(1))
    repair = refuse_commits(store)
    for _ in range(2):
        with pytest.raises(StoreError):
            store.close()
    assert line(store, "a") == [1]
    put(store, job(2))
    repair()

    store.close()
    with closing(DiskStore(store.path)) as again:
        assert line(again, "a") == [1, 2]


def test_queues_whose_close_failed_go_on_being_kept(tmp_path: Path) -> None:
    rq = rqlab.open(tmp_path, "buffered", flush_interval=0.001)
    deny(rq._store._connection, "COMMIT", 10**9)  # type: ignore[attr-defined]
    job_id = rq.push("a", "n")
    with pytest.raises(StoreError):
        rq.close()
    rq._store._connection.set_authorizer(None)  # type: ignore[attr-defined]

    until_true(lambda: len(safe(tmp_path)) == 1)
    rq.close()
    with rqlab.open(tmp_path) as again:
        assert again.get(job_id)


def test_a_full_disk_refuses_keeps_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    path = small_disk / "q"
    rq = buffered(path, max_batch=4)
    kept = [rq.push("a", "n", "x" * 3_000) for _ in range(2)]
    filler = fill(small_disk)
    refused = 0
    for _ in range(10):
        try:
            kept.append(rq.push("a", "n", "x" * 3_000))
        except StoreFull:
            refused += 1
        assert rq.metrics()["unsafe_writes"] <= 4
    assert refused >= 5
    assert {found.id for found in rq.jobs("a")} == set(kept)
    with pytest.raises(StoreFull, match="the disk is full"):
        rq.flush()
    with pytest.raises(StoreFull, match="the disk is full"):
        rq.close()
    filler.unlink()
    rq.close()

    with rqlab.open(path) as again:
        assert {found.id for found in again.jobs("a")} == set(kept)


@pytest.mark.parametrize("mode", ["buffered", "hybrid"])
def test_a_directory_that_was_removed_can_still_be_let_go(tmp_path: Path, mode: str) -> None:
    rq = rqlab.open(tmp_path / "q", mode, **LAZY[mode])
    rq.push("a", "n")
    shutil.rmtree(tmp_path / "q")

    with pytest.raises(StoreError, match="removed or replaced"):
        rq.flush()
    with pytest.raises(StoreError, match="removed or replaced"):
        rq.close()
    rq.close()
    with rqlab.open(tmp_path / "q", mode) as again:
        assert again.counts().waiting == 0


def test_an_error_of_one_work_is_its_callers_alone(store: BufferedStore) -> None:
    heard: list[int] = []
    store.listener = heard.extend
    callers = together(store, putting(1), failing(2), putting(3))

    assert [type(caller.error) for caller in callers] == [type(None), LookupError, type(None)]
    assert line(store, "a") == heard == [1, 3]
    store.flush()
    assert counted(store) == recounted(store)


def test_a_work_that_breaks_the_transaction_takes_no_earlier_batch_along(store: BufferedStore) -> None:
    put(store, job(1))

    def breaks(tx: Transaction) -> None:
        tx.put(job(2))
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(StoreError, match="nothing was changed"):
        store.write(breaks)
    put(store, job(3))
    store.flush()
    assert safe(store.path) == [1, 3]
    assert counted(store) == recounted(store)


def test_a_look_at_which_sqlite_gives_its_transaction_up_loses_nothing(
    store: BufferedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a full disk makes it: what was left for later is applied as somebody looks, and all of it is gone."""

    def give_up(step: object) -> None:
        store._connection.execute("ROLLBACK")
        raise sqlite3.OperationalError("database or disk is full")

    put(store, job(1))
    assert line(store, "a") == [1]  # in SQLite's transaction from now on
    put(store, job(2))
    monkeypatch.setattr(store, "_apply", give_up)
    with pytest.raises(StoreError, match="full"):
        store.get(job(1).id)
    monkeypatch.undo()

    put(store, job(3))
    store.flush()
    assert safe(store.path) == [1, 2, 3]
    assert counted(store) == recounted(store)


# A planted bug: these tests can fail.


def test_a_flush_that_forgets_is_caught(store: BufferedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(self: BufferedStore) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._open_batches.clear()
        self._late = {}
        self._raw.pending = {}
        self._is_whole = True

    monkeypatch.setattr(BufferedStore, "_put_back", forget)
    put(store, job(1))
    repair = refuse_commits(store, 1)
    with pytest.raises(StoreError):
        store.flush()
    repair()
    store.flush()

    assert safe(store.path) == [], "the plant has not grown"


# Interrupts.


def check_free(store: BufferedStore) -> None:
    """No lock is held: any thread can go on at once."""
    assert not is_held(store._lock)
    assert Caller(lambda: store.write(lambda tx: None)).finish().error is None


@pytest.mark.parametrize("kind", [Moments, Instructions])
def test_an_interrupt_at_any_moment_of_a_write_loses_nothing_that_was_acknowledged(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Moments]
) -> None:
    monkeypatch.setattr(disk_module, "TAKE_OVER_SECONDS", 0.002)
    store = BufferedStore(quick_path, max_batch=7)  # some of the writes commit
    calls: list[int] = []
    store.on_unsafe = lambda: calls.append(1)
    numbers = iter(range(10**9))
    acknowledged, unknown = [], []

    def act(nth: int) -> bool:
        followers = []
        with store._lead:  # the main thread will lead, and another waits
            follower = next(numbers)
            followers.append(Caller(lambda: store.write(pair(follower))))
            until_true(lambda: in_line(store) == 1)
            mine, returned = next(numbers), False
            calls.clear()
            was_unsafe = store.unsafe_writes
            with kind(nth) as moments:
                store.write(pair(mine))
                returned = True
        assert [each.finish().error for each in followers] == [None]
        assert not was_unsafe or store.unsafe_writes or calls == []
        assert calls or was_unsafe or not store.unsafe_writes, "what is unsafe has a keeper that knows"
        assert store.unsafe_writes <= 7
        check_free(store)
        assert is_whole(store, follower)
        acknowledged.append(follower)
        there = is_whole(store, mine)
        assert there or not returned
        (acknowledged if there else unknown).append(mine)
        return moments.has_struck

    struck = at_each_moment(act)
    store.close()

    assert struck > 10
    assert unknown, "some struck before the write"
    with closing(DiskStore(quick_path)) as again:
        assert all(is_whole(again, number) for number in acknowledged)
        assert not any(is_whole(again, number) for number in unknown)
        assert counted(again) == recounted(again)


FLUSHES: dict[str, Callable[[BufferedStore], None]] = {
    "flush": lambda store: store.flush(),
    "checkpoint": lambda store: store.checkpoint(),
    "store_taken": lambda store: store.store_taken(),
}


@pytest.mark.parametrize("kind", [Moments, Instructions])
@pytest.mark.parametrize("flush", FLUSHES)
def test_an_interrupt_at_any_moment_of_a_flush_loses_nothing_and_hangs_nobody(
    quick_path: Path, flush: str, kind: type[Moments]
) -> None:
    store = BufferedStore(quick_path)
    numbers = iter(range(10**9))
    acknowledged = []

    def act(nth: int) -> bool:
        for _ in range(2):
            acknowledged.append(next(numbers))
            store.write(pair(acknowledged[-1]))
        returned = False
        with kind(nth) as moments:
            FLUSHES[flush](store)
            returned = True
        assert not returned or not store.unsafe_writes
        check_free(store)
        assert all(is_whole(store, number) for number in acknowledged[-4:])
        store.flush()
        assert store.unsafe_writes == 0
        assert counted(store) == recounted(store)
        return moments.has_struck

    assert at_each_moment(act) >= 1
    with closing(ReadOnlyStore(quick_path)) as view:
        assert all(is_whole(view, number) for number in acknowledged)  # type: ignore[arg-type]
    store.close()


@pytest.mark.parametrize("kind", [Moments, Instructions])
def test_an_interrupt_at_any_moment_of_closing_loses_nothing_and_keeps_no_lock(
    quick_path: Path, kind: type[Moments]
) -> None:
    stored = []

    def act(nth: int) -> bool:
        store = BufferedStore(quick_path)
        store.write(pair(nth))
        stored.append(nth)
        with kind(nth) as moments:
            store.close()
        store.close()
        return moments.has_struck

    assert at_each_moment(act) > 3
    with closing(BufferedStore(quick_path)) as store:
        assert all(is_whole(store, number) for number in stored)


# One owner.


@pytest.mark.parametrize("mode", ["durable", "buffered", "hybrid"])
@pytest.mark.parametrize("held", ["buffered", "hybrid"])
def test_a_second_opener_is_told_at_once_who_holds_it_and_the_lock_dies_with_its_owner(
    tmp_path: Path, held: str, mode: str
) -> None:
    with another_process(
        "rq = rqlab.open(sys.argv[1], sys.argv[2]); rq.push('a', 'n'); rq.flush()", tmp_path, held
    ) as holder:
        with pytest.raises(
            StoreLocked, match=f"cannot open .* as '{mode}': process {holder.pid} has it open as '{held}'"
        ):
            rqlab.open(tmp_path, mode)
        with rqlab.open(tmp_path, read_only=True) as view:
            assert view.counts().waiting == 1
        kill_nine(holder)

        with rqlab.open(tmp_path, mode) as rq:
            assert rq.counts().waiting == 1


@pytest.mark.parametrize("mode", ["buffered", "hybrid"])
def test_a_cell_that_is_run_twice_is_told_that_it_is_this_process(tmp_path: Path, mode: str) -> None:
    with rqlab.open(tmp_path, mode):
        with pytest.raises(StoreLocked, match=rf"this very process \(pid {os.getpid()}\) has it open as '{mode}'"):
            rqlab.open(tmp_path, mode)
    rqlab.open(tmp_path, mode).close()


@pytest.mark.parametrize("second", ["durable", "buffered", "hybrid"])
@pytest.mark.parametrize("first", ["buffered", "hybrid"])
def test_queues_that_were_dropped_without_a_close_make_way_for_this_process_and_lose_nothing(
    tmp_path: Path, first: str, second: str
) -> None:
    threads = threading.active_count()
    rqlab.open(tmp_path, first, **LAZY[first]).push("a", "n")

    with rqlab.open(tmp_path, second) as rq:
        assert rq.counts("a").waiting == 1
    assert threading.active_count() == threads


@pytest.mark.parametrize("mode", ["buffered", "hybrid"])
def test_queues_that_somebody_still_has_make_way_for_nobody(tmp_path: Path, mode: str) -> None:
    with rqlab.open(tmp_path, mode, **LAZY[mode]) as kept:
        with pytest.raises(StoreLocked, match="this very process"):
            rqlab.open(tmp_path, mode)

        assert kept.push("a", "n")


@pytest.mark.parametrize("mode", ["buffered", "hybrid"])
def test_a_worker_keeps_the_queues_that_were_dropped(tmp_path: Path, mode: str) -> None:
    rq = rqlab.open(tmp_path, mode, **LAZY[mode])
    seen, worker = weakref.ref(rq), rq.worker("a", lambda job: None)
    del rq
    with worker:
        with pytest.raises(StoreLocked, match="this very process"):
            rqlab.open(tmp_path, mode)

        kept = seen()
        assert kept is not None
    kept.close()  # or its threads would go on in the tests that follow


@pytest.mark.parametrize("mode", ["buffered", "hybrid"])
def test_a_fork_may_use_nothing_and_leaves_its_parents_writes_alone(tmp_path: Path, mode: str) -> None:
    rq = rqlab.open(tmp_path, mode, **LAZY[mode])
    first = rq.push("a", "n")
    held = [getattr(rq._store, name) for name in ("_lead", "_storing", "_lock") if hasattr(rq._store, name)]
    for lock in held:  # a thread was at work as the process forked: in the child nobody will let go
        lock.acquire()

    def child() -> None:
        signal.alarm(20)
        for act in (lambda: rq.push("a", "n"), rq.flush, lambda: rq.get(first)):
            with pytest.raises(StoreError):
                act()
        rqlab.queues._close_at_exit()
        rq.close()

    code = forked(child)
    for lock in held:
        lock.release()
    assert code == 0
    second = rq.push("a", "n")
    rq.close()
    with rqlab.open(tmp_path) as again:
        assert {found.id for found in again.jobs("a")} == {first, second}


# The end of a program.

EXITS = {
    "at its end": "",
    "by sys.exit": "sys.exit(0)",
    "by an exception": "raise SystemExit(0)",
    "out of a function": "",
}


@pytest.mark.parametrize("how", EXITS)
@pytest.mark.parametrize("mode", ["buffered", "hybrid"])
def test_a_program_that_forgot_to_close_loses_nothing_as_it_ends(tmp_path: Path, mode: str, how: str) -> None:
    settings = "flush_interval=9999" if mode == "buffered" else "snapshot_interval=9999"
    opens = f"rqlab.open({str(tmp_path)!r}, {mode!r}, {settings})"
    code = (
        f"{opens}.push('a', 'n')\ngc.collect()"
        if how == "out of a function"
        else f"rq = {opens}\nrq.push('a', 'n')\n{EXITS[how]}"
    )
    subprocess.run([sys.executable, "-c", f"import gc, rqlab, sys\n{code}"], check=True, timeout=60)

    with rqlab.open(tmp_path) as rq:
        assert rq.counts("a").waiting == 1


PUSHES_TO_THE_END = """
import atexit, os, sys, threading
def push(): os.write(1, (rq.push("a", "n") + "\\n").encode())
def load():
    while True: push()
if sys.argv[3] == "atexit": atexit.register(push)  # before rqlab's own, so it runs after that
import rqlab
rq = rqlab.open(sys.argv[1], sys.argv[2])
push()
if sys.argv[3] == "daemon":
    for _ in range(3): threading.Thread(target=load, daemon=True).start()
    threading.Event().wait(0.05)  # they are at it
"""


@pytest.mark.parametrize("who", ["daemon", "atexit"])
@pytest.mark.parametrize("mode", ["buffered", "hybrid"])
def test_nothing_is_acknowledged_and_then_lost_as_a_program_ends(tmp_path: Path, mode: str, who: str) -> None:
    command = [sys.executable, "-c", PUSHES_TO_THE_END, str(tmp_path), mode, who]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    acknowledged = {line for line in said.stdout.splitlines() if len(line) == 36}

    with rqlab.open(tmp_path) as rq:
        assert acknowledged - {job.id for job in rq.jobs(limit=1_000_000)} == set()
    assert acknowledged
    assert who == "daemon" or "are closed: open them again" in said.stderr


CHILD = """
import multiprocessing, sys, rqlab
def child(path, mode):
    rq = rqlab.open(path, mode)
    rq.push("a", "n")
if __name__ == "__main__":
    path, mode, start = sys.argv[1:]
    process = multiprocessing.get_context(start).Process(target=child, args=(path, mode))
    process.start()
    process.join()
"""


@pytest.mark.parametrize("start", multiprocessing.get_all_start_methods())
@pytest.mark.parametrize("mode", ["buffered", "hybrid"])
def test_a_child_of_multiprocessing_that_forgot_to_close_loses_nothing_as_it_ends(
    tmp_path: Path, mode: str, start: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(CHILD)
    subprocess.run([sys.executable, str(program), str(tmp_path / "jobs"), mode, start], check=True, timeout=60)

    with rqlab.open(tmp_path / "jobs") as rq:
        assert rq.counts("a").waiting == 1


@pytest.mark.parametrize("mode", ["buffered", "hybrid"])
def test_a_program_that_is_killed_does_lose_what_was_unsafe(tmp_path: Path, mode: str) -> None:
    settings = "flush_interval=9999" if mode == "buffered" else "snapshot_interval=9999"
    code = f"rq = rqlab.open(sys.argv[1], {mode!r}, {settings})\nrq.push('a', 'n'); rq.flush(); rq.push('a', 'n')"
    with another_process(code, tmp_path):
        pass

    with rqlab.open(tmp_path) as rq:
        assert rq.counts("a").waiting == 1, "one was flushed; the other is what the mode may lose"


# Many threads.


@pytest.mark.parametrize("mode", ["buffered", "hybrid"])
def test_nothing_is_acknowledged_and_then_lost_while_the_store_is_closed(quick_path: Path, mode: str) -> None:
    for attempt in range(12):
        path = quick_path / str(attempt)
        rq = rqlab.open(path, mode)
        begun = threading.Semaphore(0)

        def push(rq: rqlab.Queues = rq, begun: threading.Semaphore = begun) -> list[str]:
            ids: list[str] = []
            try:
                while True:
                    ids.append(rq.push("a", "n"))
                    begun.release()
            except StoreError as error:
                assert "closed" in str(error)  # noqa: PT017  # it ends like this, sooner or later
                return ids

        callers = [Caller(push) for _ in range(4)]
        for _ in range(40):
            assert begun.acquire(timeout=PATIENCE)
        rq.close()
        acknowledged = {job_id for caller in callers for job_id in (caller.finish().result or ())}
        assert [caller.error for caller in callers] == [None] * 4
        with rqlab.open(path) as again:
            missing = acknowledged - {found.id for found in again.jobs("a", limit=100_000)}
        assert missing == set()


def test_many_threads_get_on_and_counters_equal_a_recount(tmp_path: Path) -> None:
    with rqlab.open(tmp_path, "buffered", flush_interval=0.001, max_batch=13) as rq:

        def work(queue: str) -> list[str]:
            ids = []
            for number in range(60):
                ids.append(rq.push(queue, "n", number))
                for pulled in rq.pull(queue, 1 + number % 3):
                    (rq.ack if number % 2 else rq.release)(pulled)
                if number % 20 == 0:
                    rq.flush()
            return ids

        callers = [Caller(lambda queue=queue: work(queue)) for queue in ("a", "a", "b", "b", "c")]  # type: ignore[misc]
        assert [caller.finish().error for caller in callers] == [None] * 5
        ids = {job_id for caller in callers for job_id in caller.result}
    with closing(DiskStore(tmp_path)) as store:
        assert counted(store) == recounted(store)
    with rqlab.open(tmp_path) as again:
        assert {found.id for found in again.jobs(limit=1_000)} == ids


def test_a_foreign_lock_makes_a_flush_wait_and_then_say_so(tmp_path: Path) -> None:
    with closing(BufferedStore(tmp_path, busy_timeout=0.1)) as store:
        put(store, job(1))
        holds = (
            "from rqlab.storage.locks import Lock\nkept = Lock(Path(sys.argv[1]) / 'write.lock', 1.0); kept.acquire()"
        )
        with another_process(holds, tmp_path):
            with pytest.raises(StoreBusy):
                store.flush()
            assert line(store, "a") == [1]
        store.flush()
        assert safe(tmp_path) == [1]


def test_a_failure_is_told_to_whoever_writes_together_too(store: BufferedStore) -> None:
    put(store, job(1))
    repair = refuse_commits(store, 1)
    with pytest.raises(StoreError):
        store.store_taken()
    repair()
    told, stored = store.write_together([putting(2), putting(3)])

    assert isinstance(told, StoreError)
    assert stored == 3
    assert line(store, "a") == [1, 3]
