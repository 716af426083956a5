"""Many callers, one commit: each gets its own answer, whoever fails, whoever is interrupted, wherever.

Python looks for an interrupt as a function begins and as a C function returns. `interrupted_at` raises one at the nth
such moment, so a loop over n visits them all; that this is where they fall is proven by the real ones further down.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from test_disk import another_process, deny
from test_stores import counted, id_of, job, line, put, recounted

import rqlab
from rqlab.errors import DuplicateKey, JobNotFound, StoreBusy, StoreError
from rqlab.job import State
from rqlab.storage import Store, Transaction
from rqlab.storage import disk as disk_module
from rqlab.storage.disk import DiskStore
from rqlab.storage.memory import MemoryStore
from rqlab.storage.place import LAST, place, shelf

PATIENCE = 30.0  # seconds for a thread to do its part
INTERRUPTS = int(os.environ.get("RQLAB_INTERRUPTS", "200"))
SECONDS = float(os.environ.get("RQLAB_SECONDS", "1.5"))  # that processes write at once


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    store = DiskStore(tmp_path / "q", busy_timeout=5.0)
    yield store
    store.close()


class Caller(threading.Thread):
    """A thread that makes one call, and keeps what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.result: Any = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.call()
        except Exception as error:  # noqa: BLE001  # asserted in the thread that tests
            self.error = error

    def finish(self) -> "Caller":
        self.join(PATIENCE)
        assert not self.is_alive(), "the call never came back"
        return self


def until_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def in_line(store: DiskStore) -> int:
    return sum(not call.done for call in list(store._line))


def together(store: DiskStore, *works: Callable[[Transaction], Any]) -> list[Caller]:
    """Callers whose works all wait for the same commit."""
    with store._lead:
        callers = []
        for work in works:
            callers.append(Caller(lambda work=work: store.write(work)))  # type: ignore[misc]
            until_true(lambda: in_line(store) == len(callers))  # called at once
    return [caller.finish() for caller in callers]


def putting(number: int, **fields: Any) -> Callable[[Transaction], int]:
    def work(tx: Transaction) -> int:
        tx.put(job(number, **fields))
        tx.emit(number)
        return number

    return work


def failing(number: int) -> Callable[[Transaction], int]:
    def work(tx: Transaction) -> int:
        tx.put(job(number))
        tx.tally("a", "pushed_total")
        tx.emit(number)
        raise LookupError(number)

    return work


@pytest.fixture
def commits(store: DiskStore) -> list[str]:
    """The COMMITs of the store, as SQLite sees them."""
    seen: list[str] = []
    store._connection.set_trace_callback(lambda statement: seen.append(statement) if statement == "COMMIT" else None)
    return seen


def check_at_rest(store: DiskStore) -> None:
    """No transaction, no lock: any thread and any process can go on at once."""
    check_nothing_is_held(store)
    assert Caller(lambda: store.write(lambda tx: None)).finish().error is None


def is_held(lock: Any) -> bool:
    """Whether some thread has it; asked from another, as one may take its own again."""

    def take() -> bool:
        taken = bool(lock.acquire(blocking=False))
        if taken:
            lock.release()
        return not taken

    return bool(Caller(take).finish().result)


def check_nothing_is_held(store: DiskStore) -> None:
    assert not store._connection.in_transaction
    assert not is_held(store._lock)
    with open(store.path / "write.lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# Sharing a commit.


def test_callers_that_wait_at_the_same_time_share_one_commit(store: DiskStore, commits: list[str]) -> None:
    callers = together(store, *(putting(number) for number in range(20)))

    assert len(commits) == 1
    assert [caller.result for caller in callers] == list(range(20))
    assert line(store, "a") == list(range(20))
    assert store.counters("a")["waiting"] == 20


def test_more_callers_than_a_batch_holds_are_all_served(
    store: DiskStore, commits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "MAX_BATCH", 8)
    callers = together(store, *(putting(number) for number in range(20)))

    assert [caller.result for caller in callers] == list(range(20))
    assert len(commits) == 3


def test_each_work_sees_the_changes_of_those_before_it(store: DiskStore) -> None:
    callers = together(store, putting(1), lambda tx: (line(tx, "a"), tx.counters("a")["waiting"]), putting(2))

    assert callers[1].result == ([1], 1)


def test_each_caller_gets_its_own_result_or_error(store: DiskStore, commits: list[str]) -> None:
    heard: list[int] = []
    store.listener = heard.extend
    callers = together(store, putting(1), failing(2), putting(3), failing(4))

    assert len(commits) == 1
    assert [caller.result for caller in callers] == [1, None, 3, None]
    assert [str(caller.error) for caller in callers] == ["None", "2", "None", "4"]
    assert line(store, "a") == heard == [1, 3]
    assert counted(store) == recounted(store)
    assert "pushed_total" not in store.counters("a")


def test_a_transaction_that_fails_gives_everybody_an_error_of_their_own(store: DiskStore) -> None:
    heard: list[int] = []
    store.listener = heard.extend
    deny(store._connection, "COMMIT", 1)
    callers = together(store, *(putting(number) for number in range(5)))

    errors = [caller.error for caller in callers]
    assert all(type(error) is StoreError and "nothing was changed" in str(error) for error in errors)
    assert len({id(error) for error in errors}) == 5, "threads that raise one object mix their tracebacks"
    assert (line(store, "a"), heard) == ([], [])
    check_at_rest(store)
    put(store, job(9))
    assert line(store, "a") == [9]


def test_an_error_of_one_commit_does_not_reach_a_caller_that_the_one_before_has_served(store: DiskStore) -> None:
    served = disk_module._Call(putting(1))
    served.done = True
    served.result = 1
    store._line.append(served)
    deny(store._connection, "ROLLBACK", 2)
    with pytest.raises(StoreError):
        store.write(lambda tx: store._connection.execute("no such statement"))

    assert served.error is None


def test_store_busy_is_given_to_every_caller_that_waits(tmp_path: Path) -> None:
    with closing(DiskStore(tmp_path, busy_timeout=0.5)) as store:
        with another_process("store = DiskStore(sys.argv[1]); store._write_lock.acquire()", tmp_path):
            began = time.monotonic()
            callers = together(store, *(putting(number) for number in range(8)))
            took = time.monotonic() - began

        assert [type(caller.error) for caller in callers] == [StoreBusy] * 8
        assert len({id(caller.error) for caller in callers}) == 8
        assert took < 2.5, "they wait together, not one after another"
        check_at_rest(store)
        put(store, job(9))
        assert line(store, "a") == [9]


def test_those_who_wait_as_a_store_is_closed_are_told(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    with store._lead:
        caller = Caller(lambda: store.write(putting(1)))
        until_true(lambda: in_line(store) == 1)
        store._let_go()  # what `close` does, once it has the lead

    with pytest.raises(StoreError, match="closed: open them again"):
        raise caller.finish().error or AssertionError("it was stored")


def test_news_of_many_threads_arrives_in_the_order_of_the_commits(store: DiskStore) -> None:
    heard: list[int] = []
    store.listener = heard.extend

    def count(tx: Transaction) -> None:
        value = int(tx.entry("n") or b"0") + 1
        tx.put_entry("n", b"%d" % value)
        tx.emit(value)

    callers = [Caller(lambda: [store.write(count) for _ in range(20)]) for _ in range(8)]
    assert [caller.finish().error for caller in callers] == [None] * 8

    assert heard == list(range(1, 161))


def test_fifty_threads_that_push_one_unique_key_are_one_accepted(tmp_path: Path) -> None:
    with rqlab.open(tmp_path) as rq:
        ready = threading.Barrier(50)

        def push() -> str:
            ready.wait(PATIENCE)
            return rq.push("a", "n", unique_key="k")

        callers = [Caller(push) for _ in range(50)]
        accepted = [caller.result for caller in callers if caller.finish().error is None]
        refused = [caller.error for caller in callers if caller.error is not None]

        assert len(accepted) == 1
        assert [(type(error), getattr(error, "job_id", None)) for error in refused] == [
            (DuplicateKey, accepted[0])
        ] * 49
        assert rq.counts().waiting == 1


# An interrupt at each moment.


class Moments:
    """Raises KeyboardInterrupt at the nth moment at which Python would look for one."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    @property
    def has_struck(self) -> bool:
        return self.left == 0

    def __enter__(self) -> "Moments":
        sys.setprofile(self._profile)
        return self

    def __exit__(self, kind: type | None, *rest: object) -> bool:
        sys.setprofile(None)
        return kind is KeyboardInterrupt

    def _profile(self, frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_return") and frame.f_code is not Moments.__exit__.__code__ and self.left:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def at_each_moment(act: Callable[[int], bool]) -> int:
    """Call `act` with 1, 2, 3 … until it says that no interrupt has struck; how many have."""
    nth = 1
    while act(nth):
        nth += 1
        assert nth < 5_000, "the acts never end"
    return nth - 1


def pair(number: int) -> Callable[[Transaction], None]:
    """Work whose halves must not be parted."""

    def work(tx: Transaction) -> None:
        tx.put(job(2 * number, expires_at=number))
        tx.put(job(2 * number + 1, "b", State.DELAYED))
        tx.put_entry(f"pair/{number}", b"1", f"pair/{number:09d}")

    return work


def is_whole(store: Store, number: int) -> bool:
    """Whether the pair is there; half a pair is an error."""
    found = [
        store.get(id_of(2 * number)) is not None,
        store.get(id_of(2 * number + 1)) is not None,
        store.entry(f"pair/{number}") is not None,
    ]
    assert len(set(found)) == 1, f"half of pair {number} is stored: {found}"
    return found[0]


def test_an_interrupt_at_any_moment_of_the_leader_hangs_nobody_and_parts_nothing(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = []
    monkeypatch.setattr(disk_module, "TAKE_OVER_SECONDS", 0.002)  # for speed, as the next line
    store._connection.execute("PRAGMA synchronous = OFF")

    def act(nth: int) -> bool:
        returned = False
        with store._lead:  # the main thread will lead, and two others wait
            followers = [Caller(lambda number=number: store.write(pair(number))) for number in (3 * nth, 3 * nth + 1)]  # type: ignore[misc]
            until_true(lambda: in_line(store) == 2)
            with Moments(nth) as moments:
                store.write(pair(3 * nth + 2))
                returned = True
            check_nothing_is_held(store)
        assert [follower.finish().error for follower in followers] == [None, None]
        check_at_rest(store)
        assert is_whole(store, 3 * nth)
        assert is_whole(store, 3 * nth + 1)
        stored.append(is_whole(store, 3 * nth + 2))
        assert stored[-1] or not returned, "what returned is stored"
        return moments.has_struck

    struck = at_each_moment(act)

    assert struck > 100
    assert set(stored) == {True, False}, "some struck before the commit, and some behind it"
    assert counted(store) == recounted(store)


def test_the_work_of_a_caller_that_was_interrupted_in_line_is_not_done_later(store: DiskStore) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    go_on = threading.Event()

    def keep_the_lead(tx: Transaction) -> None:
        assert go_on.wait(PATIENCE)

    def interrupt() -> None:
        until_true(lambda: in_line(store) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    leader = Caller(lambda: store.write(keep_the_lead))
    until_true(lambda: is_held(store._lock))
    helper = Caller(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            put(store, job(1))
    finally:
        signal.signal(signal.SIGINT, before)
    go_on.set()
    leader.finish()
    helper.finish()
    put(store, job(2))

    assert line(store, "a") == [2]


READS: dict[str, Callable[[DiskStore], object]] = {
    "get": lambda store: store.get(id_of(1)),
    "scan": lambda store: line(store, "a"),
    "counters": lambda store: store.counters("a"),
    "changed": lambda store: store.changed(),
    "checkpoint": lambda store: store.checkpoint(),
}


@pytest.mark.parametrize("read", READS)
def test_an_interrupt_at_any_moment_of_a_look_leaves_no_lock(store: DiskStore, read: str) -> None:
    put(store, job(1))
    kept = []  # as a notebook keeps the last traceback, with all its frames

    def act(nth: int) -> bool:
        with Moments(nth) as moments:
            try:
                READS[read](store)
            except KeyboardInterrupt as interrupt:
                kept.append(interrupt)
        check_at_rest(store)
        return moments.has_struck

    assert at_each_moment(act) > 3


def test_an_interrupt_at_any_moment_of_closing_keeps_no_lock(tmp_path: Path) -> None:
    def act(nth: int) -> bool:
        store = DiskStore(tmp_path)
        with Moments(nth) as moments:
            store.close()
        store.close()
        DiskStore(tmp_path, exclusive=True).close()
        return moments.has_struck

    assert at_each_moment(act) > 10


def rebuilt(store: MemoryStore) -> None:
    """Every line is what the records say."""
    for queue in ("a", "b"):
        for state in State:
            start = shelf(queue, state)
            there = sorted(place(j) for j in store._jobs.values() if j.queue == queue and j.state is state)
            assert [place(j) for j in store.scan(start, start + LAST, 10_000)] == there
            assert store.count(start, start + LAST) == len(there)
    keys = sorted(key for key in store._entries if key.startswith("pair/"))
    assert sorted(key for key, _ in store.entries("pair/", "pair/" + LAST, 10_000)) == keys
    assert counted(store) == recounted(store)


@pytest.mark.parametrize("ending", ["returns", "raises"])
def test_an_interrupt_at_any_moment_of_a_change_in_memory_parts_nothing(ending: str) -> None:
    store = MemoryStore()
    stored = []

    def work(tx: Transaction, number: int) -> None:
        pair(number)(tx)
        tx.put_new([job(10**6 + 2 * number + half, "b", expires_at=number) for half in (0, 1)])
        before = tx.get(id_of(2 * number - 2))
        if before is not None:
            tx.put(job(2 * number - 2, state=State.ACTIVE, expires_at=before.expires_at), replacing=before)
            tx.put_entry(f"pair/{number - 1}", b"2", f"pair/{number - 1:09d}-moved")
        if ending == "raises":
            raise JobNotFound("x")

    def act(nth: int) -> bool:
        store.write(pair(10 * nth - 1))
        returned = False
        with Moments(nth) as moments:
            try:
                store.write(lambda tx: work(tx, 10 * nth))
                returned = True
            except JobNotFound:
                pass
        assert not is_held(store._lock)
        stored.append(is_whole(store, 10 * nth))
        before = store.get(id_of(20 * nth - 2))
        assert before is not None
        assert (before.state is State.ACTIVE) is stored[-1]
        assert (store.entry(f"pair/{10 * nth - 1}") == b"2") is stored[-1]
        assert all((store.get(id_of(10**6 + 20 * nth + half)) is not None) is stored[-1] for half in (0, 1))
        assert stored[-1] or not returned
        rebuilt(store)
        return moments.has_struck

    struck = at_each_moment(act)

    assert struck > 100
    assert any(stored) is (ending == "returns")


# Real interrupts.

INTERRUPTED = """
import faulthandler, json, os, random, signal, sys, threading, time
import rqlab
from rqlab.job import State
from rqlab.storage.place import LAST, shelf

faulthandler.dump_traceback_later(90, exit=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
path, wanted, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
rq = rqlab.open(path, busy_timeout=5)
ids, interrupts, stop = [], 0, False

def push():
    while not stop:
        ids.append(rq.push("a", "n", {"some": "data"}))

def interrupt():
    for number in range(wanted):
        time.sleep(chance.random() * 0.004)
        os.kill(os.getpid(), signal.SIGINT)
        while interrupts <= number:
            time.sleep(0.0002)

threads = [threading.Thread(target=push, daemon=True) for _ in range(3)]
for thread in threads: thread.start()
helper = threading.Thread(target=interrupt, daemon=True)
helper.start()
while interrupts < wanted:
    try:
        while True:
            ids.append(rq.push("a", "n"))
            rq.counts("a")
    except KeyboardInterrupt:
        interrupts += 1
stop = True
for thread in threads:
    thread.join(30)
    assert not thread.is_alive(), "a thread hangs"
store = rq._store
assert not store._connection.in_transaction
missing = [job_id for job_id in ids if store.get(job_id) is None]
there = store.count(shelf("a", State.WAITING), shelf("a", State.WAITING) + LAST)
print(json.dumps({"interrupts": interrupts, "pushed": len(ids), "missing": missing, "there": there,
                  "counted": rq.counts("a").waiting, "pushed_total": store.counters("a")["pushed_total"]}), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("seed", range(max(1, INTERRUPTS // 200)))
def test_two_hundred_interrupts_under_load_hang_nobody_and_lose_nothing(tmp_path: Path, seed: int) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path), "200", str(seed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = json.loads(process.stdout.readline())
            with rqlab.open(tmp_path, busy_timeout=0.5) as rq:  # it still has the directory open
                rq.push("a", "n")
        finally:
            process.kill()

    assert said["interrupts"] == 200
    assert said["missing"] == []
    assert said["pushed"] > 200
    assert said["pushed"] <= said["there"] == said["counted"] == said["pushed_total"]


# Many processes.

WRITES = """
import json, sys, time
import rqlab
rq = rqlab.open(sys.argv[1])
print(flush=True)
sys.stdin.readline()
until, worst, pushed = time.monotonic() + float(sys.argv[2]), 0.0, 0
while (began := time.monotonic()) < until:
    rq.push("a", "n", {"some": "data"})
    pushed, worst = pushed + 1, max(worst, time.monotonic() - began)
print(json.dumps([pushed, worst]), flush=True)
"""


@pytest.mark.parametrize("processes", [int(os.environ.get("RQLAB_PROCESSES", "4"))])
def test_processes_that_write_at_once_all_get_on_and_lose_nothing(tmp_path: Path, processes: int) -> None:
    command = [sys.executable, "-c", WRITES, str(tmp_path), str(SECONDS)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen(command, **pipes) for _ in range(processes)]
    for writer in writers:
        writer.stdout.readline()  # type: ignore[union-attr]
    for writer in writers:
        writer.stdin.write("\n")  # type: ignore[union-attr]
        writer.stdin.flush()  # type: ignore[union-attr]
    said = [json.loads(writer.communicate(timeout=60)[0]) for writer in writers]

    total, worst = sum(pushed for pushed, _ in said), max(wait for _, wait in said)
    print(f"{processes} processes: {total / SECONDS:.0f} push/s, fewest {min(said)[0]}, worst wait {worst:.3f} s")
    assert min(said)[0] > 0
    assert worst < 10
    with closing(DiskStore(tmp_path)) as store:
        assert store.counters("a")["pushed_total"] == total
        assert counted(store) == recounted(store)
