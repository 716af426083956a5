"""The promise of `durable` under power cuts: at every operation, in every way, nothing acknowledged is lost.

Beside each test that nothing is lost stands one that a store which cheats does lose, in the same test.
"""

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import diskcache
import pytest
from conftest import Wall
from power_cuts import (
    ENGINE_SHARE,
    JOBS,
    WAYS,
    Recorded,
    everything,
    fix_chance,
    let_diskcache_write,
    pushes,
    record,
    runs_on,
)

import rqlab
from rqlab.errors import StoreError
from rqlab.simulation import recovery
from rqlab.simulation.platter import CRASH_KINDS, Cut, Platter
from rqlab.simulation.recorder import ERRORS, Fault, Recorder
from rqlab.simulation.recovery import History, Verdict, laid_out
from rqlab.simulation.windows import IN_LOG, hits
from rqlab.storage import cache, disk

SEEDS = range(int(os.environ.get("RQLAB_CUT_SEEDS", "1")))  # each cuts every operation in every way; see make torture
ORDINARY_CUTS = 5_000  # at least so many in an ordinary run


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with recovery.scratch_directory() as path:
        yield path


@pytest.fixture(scope="module")
def workload(scratch: Path) -> Recorded:
    """One recording for all cuts: a directory's life from its creation to its second close."""
    with pytest.MonkeyPatch.context() as patch:
        fix_chance(patch)
        wall = Wall()
        patch.setattr("rqlab.clock.now", lambda: wall.now)
        (scratch / "everything").mkdir()
        return record(scratch / "everything", scratch, wall, everything)


def verdicts(recorded: Recorded, kind: str, names: str, scratch: Path, seed: int = 0) -> list[Verdict]:
    """Of a cut at every operation."""
    platter, history = recorded.platter, recorded.history
    return [history.judge(platter, Cut(at, kind, names, seed), scratch) for at in range(len(platter) + 1)]


# What is lost: nothing.


@pytest.mark.parametrize(("kind", "names"), WAYS)
def test_no_cut_loses_what_was_acknowledged(workload: Recorded, scratch: Path, kind: str, names: str) -> None:
    bad = [verdict for seed in SEEDS for verdict in verdicts(workload, kind, names, scratch, seed) if not verdict.ok]

    assert bad == []


def test_the_campaign_is_large_and_hits_every_window(workload: Recorded) -> None:
    cuts_a_way = len(workload.platter) + 1
    counted = hits(workload.platter.recording.operations, range(cuts_a_way))

    assert cuts_a_way * len(WAYS) >= ORDINARY_CUTS
    assert set(counted) == set(IN_LOG)
    assert min(counted.values()) >= 10, counted


@pytest.mark.parametrize(("kind", "names"), WAYS)
def test_the_engine_goes_on_after_a_cut(workload: Recorded, scratch: Path, kind: str, names: str) -> None:
    platter = workload.platter
    for seed in SEEDS:
        start = (WAYS.index((kind, names)) + seed) % ENGINE_SHARE  # other operations in each way, and with each seed
        for at in range(start, len(platter) + 1, ENGINE_SHARE):
            cut = Cut(at, kind, names, seed)
            with laid_out(platter, cut, scratch) as image:
                runs_on(image / JOBS, workload.history.recover(platter, cut, scratch).state)


@pytest.mark.parametrize("kind", CRASH_KINDS)
def test_a_look_after_a_cut_sees_everything_or_says_what_to_do(workload: Recorded, scratch: Path, kind: str) -> None:
    platter, history = workload.platter, workload.history
    refused = 0
    for at in range(history.acknowledged_at[0], len(platter) + 1, 40):
        cut = Cut(at, kind)
        state = history.recover(platter, cut, scratch).state
        with laid_out(platter, cut, scratch) as image:
            try:
                seen = ids_seen(image / JOBS)
            except StoreError as error:
                assert "open it once without read_only=True" in str(error)  # noqa: PT017  # not at every cut
                refused += 1
                rqlab.open(image / JOBS).close()
                seen = ids_seen(image / JOBS)

        assert seen == {job.id for job in recovery.jobs_in(state)}
    assert refused > 0


def ids_seen(directory: Path) -> set[str]:
    with rqlab.open(directory, read_only=True) as view:
        return {job.id for job in view.jobs(limit=1_000)}


def test_a_process_killed_at_the_first_commit_leaves_a_directory_that_opens(workload: Recorded, scratch: Path) -> None:
    """Its log has a header and no frame, its index is there: SQLite reads that only if it may repair the index."""
    log = workload.platter.recording.operations
    header_at = next(at for at, each in enumerate(log) if each.name.endswith("-wal") and each.payload)
    with laid_out(workload.platter, Cut(header_at + 1, "sigkill"), scratch) as image:
        assert (image / JOBS / "cache.db-wal").stat().st_size == 32
        (image / JOBS / "cache.db-shm").write_bytes(bytes(32 * 1024))
        started = time.monotonic()
        runs_on(image / JOBS, recovery.NOTHING)

    assert time.monotonic() - started < 5, "SQLite waits 10 s before it gives up"


@pytest.mark.parametrize(("kind", "names"), WAYS)
def test_a_directory_cut_while_it_was_made_opens_or_was_never_made(
    workload: Recorded, scratch: Path, kind: str, names: str
) -> None:
    platter = workload.platter
    opened_at = workload.history.acknowledged_at[0]
    for at in range(opened_at + 1):
        cut = Cut(at, kind, names)
        recovered = workload.history.recover(platter, cut, scratch)
        assert recovered.complaints == []
        assert recovery.jobs_in(recovered.state) == []
        with laid_out(platter, cut, scratch) as image:
            runs_on(image / JOBS, recovered.state)


def test_a_new_directory_has_a_safe_name_before_anything_is_stored_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), real(fd))[1])
    with Recorder(tmp_path, stop_at=0):  # the power fails when SQLite first asks for anything
        with pytest.raises(StoreError):
            rqlab.open(tmp_path / "new" / "newer" / JOBS)

    assert set(synced) >= {path.stat().st_ino for path in (tmp_path, tmp_path / "new", tmp_path / "new" / "newer")}


def test_a_backup_has_a_safe_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    with rqlab.open(tmp_path / JOBS) as rq:
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
        rq.backup(tmp_path / "new" / "copy")

    assert set(synced) >= {path.stat().st_ino for path in (tmp_path, tmp_path / "new", tmp_path / "new" / "copy")}


def test_a_directory_under_one_that_cannot_be_read_still_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("rqlab.storage.directory.sync_names", refused)
    (tmp_path / JOBS).mkdir()

    with rqlab.open(tmp_path / JOBS) as rq:
        assert rq.push("mail", "send")


def test_what_the_store_held_is_what_its_log_says(workload: Recorded) -> None:
    history = workload.history

    for at, state in workload.live:
        assert history.states[history.committed_at[at]] == state
    assert len(history.states) > 30


@pytest.mark.parametrize("kind", CRASH_KINDS)
def test_no_cut_loses_what_a_group_commit_acknowledged(scratch: Path, tmp_path: Path, kind: str) -> None:
    acknowledged: list[tuple[int, str]] = []
    with recovery.scratch_directory() as directory, Recorder(directory, seed=1) as recorder:
        rq = rqlab.open(directory / JOBS)

        def producer() -> None:
            for number in range(4):
                job_id = rq.push("mail", "send", number)
                acknowledged.append((len(recorder), job_id))

        threads = [threading.Thread(target=producer) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rq.close()
    platter = Platter(recorder.recording)
    history = History(platter, JOBS, [at for at, _ in acknowledged], scratch)

    for at in range(len(platter) + 1):
        cut = Cut(at, kind, "strict")
        verdict = history.judge(platter, cut, scratch)
        assert verdict.ok, verdict
        if not CRASH_KINDS[kind].loses_the_last:
            keys = {row[0] for row in history.recover(platter, cut, scratch).state}
            assert {job_id for returned_at, job_id in acknowledged if returned_at <= at} <= keys
    assert len(acknowledged) == 24


@pytest.mark.parametrize("error", ERRORS)
def test_no_cut_after_a_failed_call_loses_what_was_acknowledged(scratch: Path, wall: Wall, error: str) -> None:
    with recovery.scratch_directory() as directory, Recorder(directory) as clean:
        rqlab.open(directory / JOBS).close()
    kinds = itertools.cycle(CRASH_KINDS)
    raised = 0
    for fails_at in range(len(clean), len(clean) + 60, 10):
        acknowledged_at = []
        with recovery.scratch_directory() as directory:
            with Recorder(directory, faults=(Fault(fails_at, error),)) as recorder:
                with rqlab.open(directory / JOBS) as rq:
                    for number in range(8):
                        try:
                            rq.push("mail", "send", number)
                            acknowledged_at.append(len(recorder))
                        except StoreError:
                            raised += 1
        platter = Platter(recorder.recording)
        history = History(platter, JOBS, acknowledged_at, scratch)
        for at in range(fails_at, len(platter) + 1):
            verdict = history.judge(platter, Cut(at, next(kinds), "strict"), scratch)
            assert verdict.ok, (fails_at, verdict)
    assert raised >= 5


# What a cheat loses: these tests can fail.


def test_synchronous_normal_planted_in_durable_is_caught(
    scratch: Path, wall: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cache.SETTINGS, "sqlite_synchronous", 1)
    with recovery.scratch_directory() as directory:
        recorded = record(directory, scratch, wall, pushes)

    found = Counter(
        {kind: sum(verdict.lost > 0 for verdict in verdicts(recorded, kind, "strict", scratch)) for kind in CRASH_KINDS}
    )

    assert found["sigkill"] == 0, "kill -9 loses nothing in any mode"
    assert all(found[kind] > 20 for kind in CRASH_KINDS if kind != "sigkill"), found


def test_a_side_file_that_nobody_syncs_is_caught(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cache.SETTINGS, "disk_min_file_size", 32 * 1024)
    let_diskcache_write(monkeypatch)
    monkeypatch.setattr(cache.Bytes, "store", diskcache.Disk.store)  # ours keeps every value inside, whatever is set
    with recovery.scratch_directory() as directory, Recorder(directory) as recorder:
        with rqlab.open(directory / JOBS) as rq:
            rq.push("mail", "send", "x" * 40_000)
            at = len(recorder)
        assert list((directory / JOBS).rglob("*.val")), "the plant has not grown"
    with laid_out(Platter(recorder.recording), Cut(at, "lost"), scratch) as image:
        state = recovery.read(image / JOBS).state
        said = recovery.complaints_about(state, image / JOBS)

    assert len(said) == 1
    assert "its value was in the file" in said[0]


def test_a_store_that_forgets_to_write_its_counters_is_caught(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.DiskStore, "_totals", lambda *arguments: {})
    with recovery.scratch_directory() as directory, Recorder(directory) as recorder:
        with rqlab.open(directory / JOBS) as rq:
            rq.push("mail", "send")
    with laid_out(Platter(recorder.recording), Cut(len(recorder), "lost"), scratch) as image:
        said = recovery.complaints_about(recovery.read(image / JOBS).state, image / JOBS)

    assert said == ["queue mail: its counters say 0 waiting, there are 1"]
