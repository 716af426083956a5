"""One contract for every store: what any of them keeps, orders, finds and counts.

A directory is closed and opened again between act and assert, so what is checked is what is on the disk.
"""

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from rqlab.errors import StoreError
from rqlab.job import NULL, Job, State
from rqlab.storage import Store, Transaction
from rqlab.storage.buffered import BufferedStore
from rqlab.storage.disk import DiskStore
from rqlab.storage.entries import DATA_APART_BYTES
from rqlab.storage.hybrid import HybridStore
from rqlab.storage.memory import MemoryStore
from rqlab.storage.place import LAST, expiring, expiring_place, place, shelf, until

NOW = 1_767_225_600_000
EXAMPLES = int(os.environ.get("RQLAB_EXAMPLES", "30"))  # random histories a store; more in a campaign
QUEUES = ("a", "a-b", "a.b", "ab")  # each begins like the first: no shelf may show another's jobs


class Kept:
    """A store under test, and how to look at it as it will be found tomorrow."""

    def __init__(self, open_store: Callable[[], Store], *, has_file: bool) -> None:
        self.open_store = open_store
        self.has_file = has_file
        self.store = open_store()

    def reopened(self) -> Store:
        if self.has_file:
            self.store.close()
            self.store = self.open_store()
        return self.store


class _Eager(HybridStore):
    """A hybrid store that has nothing unsafe: finished jobs leave memory at once."""

    def write(self, work: Callable[[Transaction], Any]) -> Any:
        try:
            return super().write(work)
        finally:
            self.flush()


STORES: dict[str, Callable[[Path], Kept]] = {
    "memory": lambda path: Kept(MemoryStore, has_file=False),
    "disk": lambda path: Kept(lambda: DiskStore(path), has_file=True),
    "buffered": lambda path: Kept(lambda: BufferedStore(path), has_file=True),
    "hybrid": lambda path: Kept(lambda: HybridStore(DiskStore(path)), has_file=True),
    # What a store keeps must not depend on when it becomes safe.
    "buffered, committed at once": lambda path: Kept(lambda: BufferedStore(path, max_batch=1), has_file=True),
    "hybrid, stored at once": lambda path: Kept(lambda: _Eager(DiskStore(path)), has_file=True),
}


@pytest.fixture(params=STORES)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kept]:
    kept = STORES[request.param](tmp_path / "store")
    yield kept
    kept.store.close()


def id_of(number: int) -> str:
    return f"0193c0de-0000-7000-8000-{number:012x}"


def job(number: int, queue: str = "a", state: State = State.WAITING, **fields: Any) -> Job:
    at = fields.pop("at", NOW + number)
    match state:
        case State.WAITING:
            pass
        case State.DELAYED:
            fields["delay_until"] = at
        case State.ACTIVE:
            fields |= {"lease_until": at, "deliveries": 1}
        case _:
            fields["finished_at"] = at
    return Job(id=id_of(number), queue=queue, name="n", state=state, **fields)


def sized(number: int, size: int, queue: str = "a", **fields: Any) -> Job:
    return job(number, queue, encoded_data=msgspec.Raw(b'"' + b"x" * (size - 2) + b'"'), **fields)


def put(store: Store, *jobs: Job) -> None:
    store.write(lambda tx: [tx.put(each) for each in jobs])


def numbers(jobs: list[Job]) -> list[int]:
    return [int(each.id[-12:], 16) for each in jobs]


def line(store: Store | Transaction, queue: str, state: State = State.WAITING, limit: int = 1_000) -> list[int]:
    start = shelf(queue, state)
    return numbers(store.scan(start, start + LAST, limit))


def recounted(store: Store) -> dict[str, dict[str, int]]:
    counts = {
        queue: {state: store.count(shelf(queue, state), shelf(queue, state) + LAST) for state in State}
        for queue in store.queues()
    }
    return {queue: {state: count for state, count in states.items() if count} for queue, states in counts.items()}


def counted(store: Store) -> dict[str, dict[str, int]]:
    return {
        queue: {state: count for state in State if (count := store.counters(queue).get(state, 0))}
        for queue in store.queues()
    }


# Records.


def test_a_job_that_was_put_is_found_as_it_was(kept: Kept) -> None:
    stored = job(1, priority=-3, tags=("x",), unique_key="k", last_error="é\n\0", encoded_data=msgspec.Raw(b"[1]"))
    put(kept.store, stored)

    assert kept.reopened().get(stored.id) == stored
    assert kept.store.get(id_of(2)) is None


def test_a_record_that_replaces_another_is_the_only_one_left(kept: Kept) -> None:
    old = job(1)
    put(kept.store, old)
    new = job(1, state=State.ACTIVE, worker="w")
    kept.store.write(lambda tx: tx.put(new, replacing=old))

    store = kept.reopened()
    assert store.get(old.id) == new
    assert line(store, "a") == []
    assert line(store, "a", State.ACTIVE) == [1]


def test_a_deleted_job_leaves_no_record_no_place_and_no_count(kept: Kept) -> None:
    gone, other = sized(1, DATA_APART_BYTES * 2), job(2)
    put(kept.store, gone, other)
    kept.store.write(lambda tx: tx.delete(gone))

    store = kept.reopened()
    assert store.get(gone.id) is None
    assert line(store, "a") == [2]
    assert store.counters("a")[State.WAITING] == 1


@pytest.mark.parametrize("size", [4, DATA_APART_BYTES, DATA_APART_BYTES + 1, 40_000, 1024 * 1024])
def test_data_of_any_size_comes_back_through_load(kept: Kept, size: int) -> None:
    stored = sized(1, size)
    put(kept.store, stored)

    found = kept.reopened().get(stored.id)
    assert found is not None
    assert bytes(kept.store.load(found).encoded_data) == bytes(stored.encoded_data)


def test_data_survives_the_records_that_follow_without_it(kept: Kept) -> None:
    first = sized(1, DATA_APART_BYTES + 1)
    put(kept.store, first)

    def pull(tx: Transaction) -> None:
        stored = tx.get(first.id)
        assert stored is not None
        tx.put(replace(stored, state=State.ACTIVE, lease_until=NOW), replacing=stored)

    kept.store.write(pull)

    found = kept.reopened().get(first.id)
    assert found is not None
    assert found.state is State.ACTIVE
    assert bytes(kept.store.load(found).encoded_data) == bytes(first.encoded_data)


# Order.


def test_a_line_runs_by_priority_then_in_push_order(kept: Kept) -> None:
    put(kept.store, job(1), job(2, priority=32_767), job(3, priority=-32_768), job(4, priority=5), job(5, priority=5))

    assert line(kept.reopened(), "a") == [2, 4, 5, 1, 3]


@pytest.mark.parametrize("state", [State.DELAYED, State.ACTIVE, State.COMPLETED, State.DLQ, State.CANCELLED])
def test_timed_lines_run_by_time_then_in_push_order(kept: Kept, state: State) -> None:
    times = {1: NOW, 2: 0, 3: 10**14, 4: NOW - 1, 5: NOW - 1}
    put(kept.store, *(job(number, state=state, at=at) for number, at in times.items()))

    assert line(kept.reopened(), "a", state) == [2, 4, 5, 1, 3]


def test_a_timed_line_is_due_up_to_and_with_the_instant_asked_for(kept: Kept) -> None:
    put(kept.store, *(job(number, state=State.DELAYED, at=NOW + number) for number in range(5)))
    later = shelf("a", State.DELAYED)

    store = kept.reopened()
    assert numbers(store.scan(later, until(later, NOW + 2), 10)) == [0, 1, 2]
    assert store.first(later, until(later, NOW - 1)) is None


def test_an_active_job_stands_where_its_lease_or_its_timeout_ends_first(kept: Kept) -> None:
    slow = job(1, state=State.ACTIVE, at=NOW + 9_000, started_at=NOW, timeout=1.0)
    put(kept.store, slow, job(2, state=State.ACTIVE, at=NOW + 5_000))

    assert line(kept.reopened(), "a", State.ACTIVE) == [1, 2]


@pytest.mark.parametrize("state", list(State))
def test_queues_whose_names_begin_alike_share_nothing(kept: Kept, state: State) -> None:
    put(kept.store, *(job(number, queue, state) for number, queue in enumerate(QUEUES)))

    store = kept.reopened()
    assert [line(store, queue, state) for queue in QUEUES] == [[0], [1], [2], [3]]
    assert store.queues() == sorted(QUEUES)


def test_first_and_scan_keep_to_their_bounds(kept: Kept) -> None:
    jobs = [job(number) for number in range(5)]
    put(kept.store, *jobs)
    at = [place(each) for each in jobs]
    start, end = shelf("a", State.WAITING), shelf("a", State.WAITING) + LAST

    store = kept.reopened()
    assert store.first(start, end) == at[0]
    assert store.first(at[2], end) == at[2], "the start belongs to the range"
    assert store.first(at[2] + LAST, end) == at[3]
    assert store.first(at[2], at[2]) is None, "the end does not"
    assert numbers(store.scan(at[1], at[3], 10)) == [1, 2]
    assert numbers(store.scan(start, end, 2)) == [0, 1]
    assert numbers(store.scan(start, end, 2, backwards=True)) == [4, 3]
    assert numbers(store.scan(at[1], at[3], 10, backwards=True)) == [2, 1]
    assert store.scan(start, end, 0) == []
    assert store.count(at[1], at[3]) == 2


def test_a_queue_that_never_was_is_empty_everywhere(kept: Kept) -> None:
    store = kept.reopened()
    assert line(store, "a") == []
    assert store.first("ready/a/", "ready/a/" + LAST) is None
    assert store.count("ready/a/", "ready/a/" + LAST) == 0
    assert dict(store.counters("a")) == {}
    assert store.queues() == []


# Transactions.


def test_work_sees_its_own_changes_before_anybody_else(kept: Kept) -> None:
    old, moved, gone = job(1), job(2), job(3)
    put(kept.store, old, moved, gone)
    kept.store.write(lambda tx: tx.put_entry("k", b"before"))

    def work(tx: Transaction) -> None:
        tx.put(job(4, priority=9))
        tx.put(job(2, state=State.ACTIVE), replacing=moved)
        tx.delete(gone)
        tx.put_entry("k", b"after")
        tx.put_entry("new", b"1")
        tx.tally("a", "pushed_total", 3)
        assert line(tx, "a") == [4, 1]
        assert line(tx, "a", limit=1) == [4]
        assert numbers(tx.scan("ready/a/", "ready/a/" + LAST, 1, backwards=True)) == [1]
        assert tx.first("ready/a/", "ready/a/" + LAST) == place(job(4, priority=9))
        assert line(tx, "a", State.ACTIVE) == [2]
        assert tx.get(gone.id) is None
        assert tx.get(id_of(4)) == job(4, priority=9)
        assert (tx.entry("k"), tx.entry("new")) == (b"after", b"1")
        assert {name: count for name, count in tx.counters("a").items() if count} == {
            "waiting": 2,
            "active": 1,
            "pushed_total": 3,
        }
        tx.delete_entry("new")
        assert tx.entry("new") is None

    kept.store.write(work)


def test_work_that_raises_leaves_nothing(kept: Kept) -> None:
    old = job(1, expires_at=NOW)
    put(kept.store, old)
    kept.store.write(lambda tx: tx.put_entry("k", b"before", "shelf/k"))
    before = dict(kept.store.counters("a"))
    version = kept.store.changed()

    def work(tx: Transaction) -> None:
        tx.put(job(2))
        tx.put(job(1, state=State.ACTIVE), replacing=old)
        tx.put(job(3, "another"))
        tx.put_entry("k", b"after", "shelf/j")
        tx.put_entry("new", b"1", "shelf/n")
        tx.tally("a", "pushed_total")
        raise LookupError("no")

    with pytest.raises(LookupError, match="no"):
        kept.store.write(work)

    assert kept.store.changed() == version
    store = kept.reopened()
    assert line(store, "a") == [1]
    assert line(store, "a", State.ACTIVE) == []
    assert store.get(id_of(2)) is None
    assert store.entries("shelf/", "shelf/" + LAST, 9) == [("k", b"before")]
    assert [key for key, _ in store.entries(expiring("a"), expiring("a") + LAST, 9)] == ["expiring/" + old.id]
    assert dict(store.counters("a")) == before
    assert store.queues() == ["a"]


def test_write_returns_what_its_work_returned(kept: Kept) -> None:
    assert kept.store.write(lambda tx: "done") == "done"


def test_jobs_of_several_queues_and_entries_are_stored_in_one(kept: Kept) -> None:
    def work(tx: Transaction) -> None:
        for number in range(200):
            tx.put(job(number, QUEUES[number % 4]))
        tx.put_entry("k", b"v")

    kept.store.write(work)

    store = kept.reopened()
    assert [len(line(store, queue)) for queue in QUEUES] == [50, 50, 50, 50]
    assert store.entry("k") == b"v"


def test_a_job_put_and_deleted_in_one_transaction_never_was(kept: Kept) -> None:
    def work(tx: Transaction) -> None:
        tx.put(job(1, expires_at=NOW))
        tx.delete(job(1, expires_at=NOW))

    kept.store.write(work)

    store = kept.reopened()
    assert store.get(id_of(1)) is None
    assert line(store, "a") == []
    assert counted(store).get("a", {}) == {}
    assert store.entries(expiring("a"), expiring("a") + LAST, 9) == []


def test_jobs_put_together_are_kept_and_counted_like_jobs_put_one_by_one(kept: Kept) -> None:
    jobs = [
        *(job(number, QUEUES[number % 4], priority=number % 3) for number in range(20)),
        *(job(number, "a", State.DELAYED) for number in range(20, 25)),
        job(25, expires_at=NOW + 5),
        sized(26, DATA_APART_BYTES + 1),
    ]
    kept.store.write(lambda tx: tx.put_new(jobs))
    together = [(dict(kept.reopened().counters(queue)), line(kept.store, queue)) for queue in QUEUES]
    for each in jobs:
        assert kept.store.get(each.id) is not None
    assert bytes(kept.store.load(kept.store.get(jobs[-1].id) or jobs[0]).encoded_data) == bytes(jobs[-1].encoded_data)
    assert [key for key, _ in kept.store.entries(expiring("a"), expiring("a") + LAST, 9)] == ["expiring/" + id_of(25)]
    kept.store.write(lambda tx: [tx.delete(each) for each in jobs])
    put(kept.store, *jobs)

    assert [(dict(kept.reopened().counters(queue)), line(kept.store, queue)) for queue in QUEUES] == together
    assert counted(kept.store) == recounted(kept.store)


def test_jobs_put_together_are_seen_by_their_transaction_and_leave_with_it(kept: Kept) -> None:
    put(kept.store, job(5))

    def work(tx: Transaction) -> None:
        tx.put_new([job(7), job(3), job(4, "ab", expires_at=NOW)])
        assert line(tx, "a") == [3, 5, 7]
        assert tx.counters("a")["waiting"] == 3
        raise LookupError

    with pytest.raises(LookupError):
        kept.store.write(work)
    store = kept.reopened()
    assert line(store, "a") == [5]
    assert store.queues() == ["a"]
    assert store.entries(expiring("ab"), expiring("ab") + LAST, 9) == []


def test_no_jobs_put_together_change_nothing(kept: Kept) -> None:
    before = kept.store.changed()
    kept.store.write(lambda tx: tx.put_new([]))

    assert kept.store.changed() == before
    assert kept.store.queues() == []


# Side entries.


def test_side_entries_stand_in_the_order_of_their_places(kept: Kept) -> None:
    def work(tx: Transaction) -> None:
        tx.put_entry("x", b"3", "due/3")
        tx.put_entry("y", b"1", "due/1")
        tx.put_entry("z", b"2", "due/2")
        tx.put_entry("placeless", b"0")

    kept.store.write(work)

    store = kept.reopened()
    assert store.entries("due/", "due/" + LAST, 10) == [("y", b"1"), ("z", b"2"), ("x", b"3")]
    assert store.entries("due/", "due/3", 10) == [("y", b"1"), ("z", b"2")]
    assert store.entries("due/", "due/" + LAST, 1) == [("y", b"1")]
    assert store.entry("placeless") == b"0"


def test_a_side_entry_moves_with_its_new_place_and_goes_when_deleted(kept: Kept) -> None:
    kept.store.write(lambda tx: tx.put_entry("x", b"1", "due/1"))
    kept.store.write(lambda tx: tx.put_entry("x", b"2", "off/1"))
    kept.store.write(lambda tx: tx.put_entry("y", b"", "due/1"))
    kept.store.write(lambda tx: tx.delete_entry("never there"))

    store = kept.reopened()
    assert store.entries("due/", "due/" + LAST, 10) == [("y", b"")]
    assert store.entries("off/", "off/" + LAST, 10) == [("x", b"2")]
    store.write(lambda tx: tx.delete_entry("x"))
    store = kept.reopened()
    assert store.entries("off/", "off/" + LAST, 10) == []
    assert store.entry("x") is None


def test_a_job_with_a_ttl_stands_on_the_expiring_shelf_until_it_starts(kept: Kept) -> None:
    waiting = job(1, expires_at=NOW + 5)
    put(kept.store, waiting, job(2, expires_at=NOW + 3))
    shelf_of = expiring("a")

    store = kept.reopened()
    assert store.first(shelf_of, shelf_of + LAST) in (None, expiring_place(job(2, expires_at=NOW + 3)))
    assert [key[-1] for key, _ in store.entries(shelf_of, until(shelf_of, NOW + 9), 9)] == ["2", "1"]
    store.write(lambda tx: tx.put(job(1, state=State.ACTIVE), replacing=waiting))
    assert [key[-1] for key, _ in kept.reopened().entries(shelf_of, until(shelf_of, NOW + 9), 9)] == ["2"]


# Counters.


def test_tallies_add_up_over_calls_and_transactions(kept: Kept) -> None:
    def work(tx: Transaction) -> None:
        tx.tally("a", "pushed_total")
        tx.tally("a", "pushed_total", 4)
        tx.tally("b", "run_ms_total", 10**12)

    kept.store.write(work)
    kept.store.write(work)

    store = kept.reopened()
    assert store.counters("a")["pushed_total"] == 10
    assert store.counters("b")["run_ms_total"] == 2 * 10**12


Step = tuple[str, int, int, int]

steps = st.tuples(
    st.sampled_from(["push", "push", "push many", "move", "move", "delete", "entry", "drop entry", "tally"]),
    st.integers(0, 7),
    st.integers(0, len(State) - 1),
    st.integers(0, 3),
)
programs = st.lists(
    st.tuples(st.lists(steps, max_size=12), st.sampled_from(["", "", "", "raise", "reopen"])), max_size=10
)


class Model:
    """What a store should hold, in the plainest way."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.entries: dict[str, tuple[bytes, str | None]] = {}
        self.tallies: Counter[tuple[str, str]] = Counter()
        self.next_number = 0

    def copy(self) -> "Model":
        copy = Model()
        copy.jobs, copy.entries, copy.tallies = dict(self.jobs), dict(self.entries), Counter(self.tallies)
        copy.next_number = self.next_number
        return copy

    def apply(self, step: Step, tx: Transaction) -> None:
        """Do the step to the model and to the transaction."""
        what, which, state, spare = step
        chosen = sorted(self.jobs)[which % len(self.jobs)] if self.jobs else None
        match what:
            case "push":
                size = (20, DATA_APART_BYTES, DATA_APART_BYTES + 1, 40_000)[spare]
                expires_at = NOW + which if spare % 2 else None
                new = sized(self.next_number, size, QUEUES[which % 4], priority=spare - 1, expires_at=expires_at)
                self.next_number += 1
                self.jobs[new.id] = new
                tx.put(new)
            case "push many":
                states = (State.WAITING, list(State)[state])
                many = [job(self.next_number + n, QUEUES[which % 4], states[n % 2], priority=n) for n in range(spare)]
                self.next_number += spare
                self.jobs.update({new.id: new for new in many})
                tx.put_new(many)
            case "move" if chosen is not None:
                stored = tx.get(chosen)
                assert stored is not None
                fields = {"priority": spare, "delay_until": None, "lease_until": None, "finished_at": None}
                to = job(0, state=list(State)[state], at=NOW + which)
                fields |= {name: getattr(to, name) for name in ("state", "delay_until", "lease_until", "finished_at")}
                if to.state is State.ACTIVE:
                    fields["expires_at"] = None
                tx.put(replace(stored, **fields), replacing=stored)
                self.jobs[chosen] = replace(self.jobs[chosen], **fields)
            case "delete" if chosen is not None:
                stored = tx.get(chosen)
                assert stored is not None
                tx.delete(stored)
                del self.jobs[chosen]
            case "entry":
                at = f"due/{state}/{which}" if spare else None
                self.entries[f"k{which}"] = (bytes([spare]), at)
                tx.put_entry(f"k{which}", bytes([spare]), at)
            case "drop entry":
                self.entries.pop(f"k{which}", None)
                tx.delete_entry(f"k{which}")
            case "tally":
                self.tallies[(QUEUES[spare], "runs_total")] += which
                tx.tally(QUEUES[spare], "runs_total", which)

    def check(self, found: Store | Transaction) -> None:
        for queue in QUEUES:
            for state in State:
                start = shelf(queue, state)
                there = sorted((j for j in self.jobs.values() if j.queue == queue and j.state is state), key=place)
                jobs = found.scan(start, start + LAST, 1_000)
                assert [self.plain(found.load(each)) for each in jobs] == there
                assert numbers(found.scan(start, start + LAST, 2)) == numbers(there[:2])
                assert numbers(found.scan(start, start + LAST, 2, backwards=True)) == numbers(there[::-1][:2])
                assert found.first(start, start + LAST) == (place(there[0]) if there else None)
            counted = {name: count for name, count in found.counters(queue).items() if count}
            expected = Counter(str(each.state) for each in self.jobs.values() if each.queue == queue)
            expected["runs_total"] = self.tallies[(queue, "runs_total")]
            assert counted == {name: count for name, count in expected.items() if count}
        for which in range(8):
            assert found.entry(f"k{which}") == self.entries.get(f"k{which}", (None, None))[0]

    def check_places(self, store: Store) -> None:
        placed = sorted((at, key, value) for key, (value, at) in self.entries.items() if at is not None)
        assert store.entries("due/", "due/" + LAST, 100) == [(key, value) for _, key, value in placed]
        expiring_jobs = sorted(expiring_place(j) for j in self.jobs.values() if j.expires_at is not None)
        keys = [key for queue in QUEUES for key, _ in store.entries(expiring(queue), expiring(queue) + LAST, 1_000)]
        assert sorted(key[-36:] for key in keys) == sorted(at[-36:] for at in expiring_jobs)

    @staticmethod
    def plain(stored: Job) -> Job:
        return replace(stored, data_apart=False)


class Refused(Exception):
    """What a work raises in a random history."""


def run_history(kept: Kept, program: list[tuple[list[Step], str]]) -> None:
    model = Model()
    for transaction, ending in program:
        after = model.copy()

        def work(tx: Transaction, after: Model = after, todo: list[Step] = transaction, ending: str = ending) -> None:
            for step in todo:
                after.apply(step, tx)
            after.check(tx)
            if ending == "raise":
                raise Refused

        with suppress(Refused):
            kept.store.write(work)
        if ending != "raise":
            model = after
        if ending == "reopen":
            kept.reopened()
        model.check(kept.store)
    store = kept.reopened()
    model.check(store)
    model.check_places(store)
    assert counted(store) == recounted(store)


@pytest.mark.parametrize("name", STORES)
def test_random_histories_are_stored_as_a_plain_dict_would_and_counters_equal_a_recount(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        print_blob=True,
    )
    @given(programs)
    def check(program: list[tuple[list[Step], str]]) -> None:
        kept = STORES[name](tmp_path_factory.mktemp("store") / "q")
        try:
            run_history(kept, program)
        finally:
            kept.store.close()

    check()


@pytest.mark.parametrize("seed", range(3))
def test_a_long_random_history_ends_as_a_plain_dict_would(kept: Kept, seed: int) -> None:
    chance = random.Random(seed)
    kinds = ["push"] * 3 + ["push many"] + ["move"] * 5 + ["delete", "entry", "drop entry", "tally"]

    def step() -> Step:
        return chance.choice(kinds), chance.randrange(1_000), chance.randrange(len(State)), chance.choice([0, 0, 0, 2])

    run_history(kept, [([step() for _ in range(20)], chance.choice(["", "", "raise"])) for _ in range(20)])


# News.


def test_changed_differs_after_a_store_and_not_otherwise(kept: Kept) -> None:
    before = kept.store.changed()
    line(kept.store, "a")
    kept.store.write(lambda tx: line(tx, "a"))

    assert kept.store.changed() == before
    put(kept.store, job(1))
    after = kept.store.changed()
    assert after != before
    assert kept.store.changed() == after
    kept.store.write(lambda tx: tx.put_entry("k", b""))
    assert kept.store.changed() not in (before, after)


def test_changed_differs_after_another_process_has_stored(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    put(store, job(1))
    before = store.changed()
    writes = f"import rqlab; rqlab.open({str(tmp_path)!r}).push('a', 'n')"
    subprocess.run([sys.executable, "-c", writes], check=True, timeout=60)

    assert store.changed() != before
    assert len(store.scan("ready/a/", "ready/a/" + LAST, 9)) == 2
    assert store.counters("a")["waiting"] == 2
    store.close()


def test_emitted_changes_arrive_in_commit_order_after_the_work(kept: Kept) -> None:
    heard: list[list[int]] = []
    kept.store.listener = heard.append

    def work(tx: Transaction, first: int) -> None:
        for number in (first, first + 1):
            tx.put(job(number))
            tx.emit(number)
        assert len(heard) == first // 2, "nothing is told before it is stored"

    for first in range(0, 6, 2):
        kept.store.write(lambda tx, first=first: work(tx, first))  # type: ignore[misc]

    assert heard == [[0, 1], [2, 3], [4, 5]]


def test_work_that_raises_tells_nobody(kept: Kept) -> None:
    heard: list[list[int]] = []
    kept.store.listener = heard.append

    def work(tx: Transaction) -> None:
        tx.put(job(1))
        tx.emit(1)
        raise LookupError

    with pytest.raises(LookupError):
        kept.store.write(work)
    kept.store.write(lambda tx: (tx.put(job(2)), tx.emit(2)))

    assert heard == [[2]]


# The end.

CALLS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get(id_of(1)),
    "load": lambda store: store.load(replace(job(1), data_apart=True, encoded_data=NULL)),
    "first": lambda store: store.first("ready/a/", "ready/a/~"),
    "scan": lambda store: store.scan("ready/a/", "ready/a/~", 1),
    "entry": lambda store: store.entry("k"),
    "entries": lambda store: store.entries("due/", "due/~", 1),
    "counters": lambda store: store.counters("a"),
    "count": lambda store: store.count("ready/a/", "ready/a/~"),
    "queues": lambda store: store.queues(),
    "changed": lambda store: store.changed(),
    "flush": lambda store: store.flush(),
    "write": lambda store: store.write(lambda tx: None),
}


@pytest.mark.parametrize("call", [name for name in CALLS if name != "load"])
def test_a_closed_store_refuses_every_call(kept: Kept, call: str) -> None:
    kept.store.close()
    kept.store.close()

    with pytest.raises(StoreError, match="closed: open them again"):
        CALLS[call](kept.store)


def test_every_call_of_the_protocol_is_in_the_table_of_calls() -> None:
    public = {name for name in dir(Store) if not name.startswith("_")} - {"close", "listener"}

    assert public == set(CALLS)
