"""`buffered` and `hybrid` under power cuts: what is lost is what may be, and what survives is one instant.

The same workload runs in durable first, so the state after each number of calls is known. Whatever a cut leaves must
be one of these, and no older than the mode's row in MODES allows. The keeper's steps are driven by hand, in between.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import Wall
from power_cuts import CHECKPOINT_FRAMES, ENGINE_SHARE, JOBS, WAYS, everything, fix_chance, runs_on
from test_buffered import NEVER

import rqlab
from rqlab.simulation import recovery
from rqlab.simulation.platter import CRASH_KINDS, Cut, Platter
from rqlab.simulation.recorder import Recorder
from rqlab.simulation.recovery import History, State, laid_out
from rqlab.simulation.windows import IN_LOG, hits

SEEDS = range(int(os.environ.get("RQLAB_CUT_SEEDS", "1")))
FILED = [name for name in rqlab.MODES if name != "memory"]
MAX_BATCH = 5


class Setting(NamedTuple):
    """A mode, and when its keeper's steps come: before which calls."""

    mode: str
    options: dict[str, Any]
    take_every: int = 0
    store_after: int = 0  #: calls between take and store
    flush_every: int = 0


SETTINGS = {
    "buffered, at max_batch": Setting("buffered", {"flush_interval": NEVER, "max_batch": MAX_BATCH}),
    "buffered, flushed": Setting("buffered", {"flush_interval": NEVER, "max_batch": MAX_BATCH}, flush_every=3),
    "hybrid": Setting("hybrid", {"snapshot_interval": NEVER}, take_every=5, store_after=3),
    "hybrid, a disk 100 times slower": Setting("hybrid", {"snapshot_interval": NEVER}, take_every=8, store_after=7),
}


class Call(NamedTuple):
    """A call of the workload that returned, or a flush."""

    at: int  #: the length of the log then
    calls: int  #: acknowledged by then
    floor: int  #: of these, as many as the mode promises to keep whatever happens


class Recorded(NamedTuple):
    """A workload that has run in a mode, and what it may lose."""

    platter: Platter
    history: History
    returned: list[Call]
    plain: dict[frozenset[Any], list[int]]  #: state -> after how many calls it was so
    flushing: list[range]  #: the lengths of the log while the keeper stored what it had taken
    bound: int | None  #: calls that may be lost at most


def plain(state: State) -> frozenset[Any]:
    """The entries, without what two modes may write differently: the order of counters in a record."""
    rows = []
    for row in state:
        if len(row) == 6 and str(row[0]).startswith("queue/"):
            counted = json.loads(row[5])  # type: ignore[arg-type]
            rows.append((row[0], tuple(sorted((name, count) for name, count in counted.items() if count))))
        elif len(row) == 6:
            rows.append((row[0], row[2], alike(row[5])))  # type: ignore[arg-type]
    return frozenset(rows)


def alike(value: bytes) -> str:
    """A progress of 50 that was read from the disk is written as 50.0."""
    return repr(json.loads(value, parse_int=float)) if value.startswith(b"{") else repr(value)


def run_durable(directory: Path, patch: pytest.MonkeyPatch, wall: Wall) -> list[frozenset[Any]]:
    fix_chance(patch)
    states = []
    with rqlab.open(directory / JOBS) as rq:
        connection = rq._store._connection  # type: ignore[attr-defined]
        states.append(plain(recovery.state_of(connection)))
        after_each_write(rq, lambda: states.append(plain(recovery.state_of(connection))))
        for _ in everything(rq, wall):
            pass
    return states


def after_each_write(rq: rqlab.Queues, then: Callable[[], object]) -> None:
    """A tick is several writes, so states are counted by these and not by calls of the front door."""
    store: Any = rq._store
    real = store.write

    def write(work: Any) -> Any:
        result = real(work)
        then()
        return result

    store.write = write


def run(setting: Setting, directory: Path, scratch: Path, patch: pytest.MonkeyPatch, wall: Wall) -> Recorded:
    with recovery.scratch_directory() as twin:
        start, states = wall.now, run_durable(twin, patch, wall)
    wall.now = start
    fix_chance(patch)
    returned: list[Call] = []
    flushing: list[range] = []
    with Recorder(directory) as recorder:
        rq = rqlab.open(directory / JOBS, setting.mode, **setting.options)
        store: Any = rq._store
        disk = getattr(store, "disk", store)
        disk._connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_FRAMES}").fetchall()
        store.flush()
        calls = floor = taken = 0
        returned.append(Call(len(recorder), 0, 0))

        def keep() -> None:
            nonlocal calls, floor, taken
            calls += 1
            if not store.unsafe_writes:
                floor = calls
            returned.append(Call(len(recorder), calls, floor))
            if setting.take_every and calls % setting.take_every == 0:
                store.take()
                taken = calls
            if setting.take_every and calls % setting.take_every == setting.store_after:
                begun = len(recorder)
                store.store_taken()
                flushing.append(range(begun, len(recorder)))
                floor = max(floor, taken)
            if setting.flush_every and calls % setting.flush_every == 0:
                begun = len(recorder)
                store.flush()
                flushing.append(range(begun, len(recorder)))
                floor = calls
            returned.append(Call(len(recorder), calls, floor))

        after_each_write(rq, keep)
        for _ in everything(rq, wall):
            pass
        rq.close()
        returned.append(Call(len(recorder), calls, calls))
    known: dict[frozenset[Any], list[int]] = {}
    for after, state in enumerate(states):
        known.setdefault(state, []).append(after)
    platter = Platter(recorder.recording)
    history = History(platter, JOBS, [], scratch)
    return Recorded(platter, history, returned, known, flushing, setting.options.get("max_batch"))


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with recovery.scratch_directory() as path:
        yield path


@pytest.fixture(scope="module", params=SETTINGS)
def recorded(request: pytest.FixtureRequest, scratch: Path) -> Recorded:
    with pytest.MonkeyPatch.context() as patch:
        wall = Wall()
        patch.setattr("rqlab.clock.now", lambda: wall.now)
        directory = scratch / request.param.replace(" ", "-")
        directory.mkdir()
        return run(SETTINGS[request.param], directory, scratch, patch, wall)


def losses(recorded: Recorded, kind: str, names: str, scratch: Path, seed: int) -> Iterator[tuple[Cut, int, int]]:
    """For each cut: how many acknowledged calls are gone, and how many of the promised ones."""
    ats = [call.at for call in recorded.returned]
    for at in range(len(recorded.platter) + 1):
        cut = Cut(at, kind, names, seed)
        found = recorded.history.recover(recorded.platter, cut, scratch)
        assert found.complaints == [], cut
        returned = bisect_right(ats, at)
        last = recorded.returned[returned - 1] if returned else Call(0, 0, 0)  # the directory is being made
        opening = recorded.history.states[: recorded.history.committed_at[ats[0]] + 1]
        after = [0] if found.state in opening else recorded.plain.get(plain(found.state))
        assert after is not None, f"{cut}: its state is that after no number of calls"
        kept = max(number for number in after if number <= last.calls + 1)
        yield cut, max(last.calls - kept, 0), max(last.floor - kept, 0)


@pytest.mark.parametrize(("kind", "names"), WAYS)
def test_a_cut_leaves_one_instant_and_loses_no_more_than_may_be(
    recorded: Recorded, scratch: Path, kind: str, names: str, request: pytest.FixtureRequest
) -> None:
    lost_in_all = 0
    for seed in SEEDS:
        for cut, lost, promised in losses(recorded, kind, names, scratch, seed):
            lost_in_all += lost
            if not CRASH_KINDS[kind].loses_the_last:  # such a disk may take the last commit, whatever the mode
                assert recorded.bound is None or lost <= recorded.bound, cut
                assert promised == 0, f"{cut}: {promised} calls are gone that were safe"

    assert lost_in_all > 0, "a mode that loses nothing here is tested by a broken test"


def test_the_campaign_is_large_and_hits_every_window(recorded: Recorded) -> None:
    operations = recorded.platter.recording.operations
    counted = hits(operations, range(len(operations) + 1))

    assert (len(operations) + 1) * len(WAYS) >= 1_000
    assert set(counted) == set(IN_LOG)  # the snapshot is in no log: it is counted below
    assert min(counted.values()) >= 10, counted
    assert recorded.bound is not None or sum(map(len, recorded.flushing)) >= 10, "no snapshot was under way at a cut"


@pytest.mark.parametrize(("kind", "names"), WAYS)
def test_the_engine_goes_on_after_a_cut_in_any_mode(recorded: Recorded, scratch: Path, kind: str, names: str) -> None:
    platter = recorded.platter
    for seed in SEEDS:
        start = (WAYS.index((kind, names)) + seed) % ENGINE_SHARE
        for number, at in enumerate(range(start, len(platter) + 1, ENGINE_SHARE)):
            cut = Cut(at, kind, names, seed)
            with laid_out(platter, cut, scratch) as image:
                state = recorded.history.recover(platter, cut, scratch).state
                runs_on(image / JOBS, state, FILED[number % len(FILED)])


@pytest.mark.parametrize("name", ["buffered, at max_batch", "hybrid"])
def test_a_cut_before_any_flush_loses_all(name: str, scratch: Path) -> None:
    setting = SETTINGS[name]
    with recovery.scratch_directory() as directory, Recorder(directory) as recorder:
        with rqlab.open(directory / JOBS, setting.mode, **setting.options) as rq:
            rq.flush()
            at = [len(recorder)]
            rq.push("a", "n")
            at.append(len(recorder))
    with laid_out(Platter(recorder.recording), Cut(at[1], "sigkill"), scratch) as image:
        assert at[0] == at[1], "nothing was written before the call returned"
        assert recovery.jobs_in(recovery.read(image / JOBS).state) == []


Plant = Callable[[pytest.MonkeyPatch], None]


def normal(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(rqlab.storage.disk.SETTINGS, "sqlite_synchronous", 1)


def late(patch: pytest.MonkeyPatch) -> None:
    from rqlab.storage import hybrid

    real = hybrid._step

    def look_again(snapshot: hybrid.Snapshot) -> Any:
        now = _stores[-1]._jobs
        return real(snapshot._replace(jobs={job_id: now.get(job_id, job) for job_id, job in snapshot.jobs.items()}))

    patch.setattr(hybrid, "_step", look_again)
    init = hybrid.HybridStore.__init__
    patch.setattr(hybrid.HybridStore, "__init__", lambda self, *a, **k: (_stores.append(self), init(self, *a, **k))[1])


_stores: list[Any] = []
NOT_ONE_INSTANT = ("its state is that after no number of calls", "its counters say")


@pytest.mark.parametrize(
    ("name", "plant"), [("buffered, flushed", normal), ("hybrid", normal), ("hybrid, a disk 100 times slower", late)]
)
def test_a_cheat_is_caught(name: str, plant: Plant, scratch: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, recovery.scratch_directory() as directory:
        plant(patch)
        wall = Wall()
        patch.setattr("rqlab.clock.now", lambda: wall.now)
        caught = 0
        try:
            cheated = run(SETTINGS[name], directory, scratch, patch, wall)
            caught = sum(promised > 0 for _, _, promised in losses(cheated, "lost", "strict", scratch, 0))
        except AssertionError as error:
            if not any(said in str(error) for said in NOT_ONE_INSTANT):
                raise
            caught = 1

    assert caught > 0
