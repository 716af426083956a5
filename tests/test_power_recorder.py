"""The recorder and the disk model on their own: they tell the truth, and leave no trace on anybody else's files."""

import contextlib
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Wall
from power_cuts import JOBS, fix_chance, pushes

import rqlab
from rqlab.errors import StoreError, StoreFull
from rqlab.simulation import recorder as recorder_module
from rqlab.simulation import recovery, vfs
from rqlab.simulation.platter import CRASH_KINDS, NAME_MODELS, SECTOR, Cut, Image, Platter
from rqlab.simulation.recorder import BACKENDS, ERRORS, Fault, Kind, Operation, Recorder, RecorderUnavailable, Recording
from rqlab.simulation.windows import IN_LOG, hits, windows_at


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each way to intercept SQLite; apsw is in the extra that the tests install, so none is skipped."""
    return str(request.param)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of its own, in memory where the system can."""
    with recovery.scratch_directory() as path:
        yield path


def default_vfs() -> int:
    address: int = vfs._library().sqlite3_vfs_find(None)
    return address


def live_files(directory: Path) -> dict[str, bytes]:
    """What SQLite keeps there now; its shared memory is no file."""
    found = sorted(directory.rglob("cache.db*"))
    return {str(path.relative_to(directory)): path.read_bytes() for path in found if not path.name.endswith("-shm")}


def kept(rq: rqlab.Queues) -> list[object]:
    return [job.data for job in rq.jobs("mail")]


def fill(rq: rqlab.Queues) -> None:
    for number in range(6):
        rq.push("mail", "send", number)


# The log says what happened.


def test_a_killed_process_leaves_what_is_live(place: Path, backend: str) -> None:
    with Recorder(place, backend=backend) as recorder:
        with rqlab.open(place / JOBS) as rq:
            for number in range(4):
                rq.push("mail", "send", number)
                image = Platter(recorder.recording).cut(Cut(len(recorder), "sigkill"))
                assert image.files == live_files(place)
        image = Platter(recorder.recording).cut(Cut(len(recorder), "sigkill"))

        assert image.files == live_files(place)


@pytest.mark.parametrize("kind", CRASH_KINDS)
@pytest.mark.parametrize("names", NAME_MODELS)
def test_where_all_is_synced_every_cut_leaves_what_is_live(place: Path, kind: str, names: str) -> None:
    with Recorder(place) as recorder:
        with rqlab.open(place / JOBS) as rq:
            fill(rq)
            assert recorder.operations[-1].kind is Kind.SYNC
            image = Platter(recorder.recording).cut(Cut(len(recorder), kind, names))

            assert image.files == live_files(place)


def test_the_shared_memory_is_gone_after_a_cut(place: Path) -> None:
    with Recorder(place) as recorder:
        with rqlab.open(place / JOBS) as rq:
            fill(rq)
            assert (place / JOBS / "cache.db-shm").exists()

    assert not [name for at in range(len(recorder)) for name in image_at(recorder, at).files if name.endswith("-shm")]


def image_at(recorder: Recorder, at: int) -> Image:
    return Platter(recorder.recording).cut(Cut(at, "sigkill"))


def test_files_that_were_there_before_are_in_the_image(place: Path) -> None:
    with rqlab.open(place / JOBS) as rq:
        fill(rq)
        with Recorder(place) as recorder:
            image = image_at(recorder, 0)

    assert f"{JOBS}/cache.db-wal" in image.files


def test_both_backends_write_the_same_log(place: Path, wall: Wall) -> None:
    logs = {}
    for backend in BACKENDS:
        with pytest.MonkeyPatch.context() as patch, Recorder(place / backend, backend=backend) as recorder:
            fix_chance(patch)
            with rqlab.open(place / backend / JOBS) as rq:
                for _ in pushes(rq, wall):
                    pass
        logs[backend] = [
            (each.kind, each.name, each.offset, len(each.payload), each.with_names) for each in recorder.operations
        ]

    assert logs["vfs"] == logs["apsw_vfs"]
    assert len(logs["vfs"]) > 100


def test_the_same_seed_gives_the_same_log_and_another_seed_another(place: Path, wall: Wall, backend: str) -> None:
    def log(name: str, seed: int) -> list[Operation]:
        with pytest.MonkeyPatch.context() as patch, Recorder(place / name, seed=seed, backend=backend) as recorder:
            fix_chance(patch)
            with rqlab.open(place / name / JOBS) as rq:
                for _ in pushes(rq, wall):
                    pass
        return recorder.operations

    assert log("one", 7) == log("two", 7)
    assert log("one", 7) != log("three", 8)  # the salts of the write-ahead log


def test_a_thread_that_leads_a_group_commit_is_recorded_too(place: Path, backend: str) -> None:
    with Recorder(place, backend=backend) as recorder, rqlab.open(place / JOBS) as rq:
        threads = [threading.Thread(target=fill, args=(rq,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert image_at(recorder, len(recorder)).files == live_files(place)
        assert rq.counts("mail").waiting == 24


# Nobody else notices.


def test_files_elsewhere_keep_their_own_methods(place: Path, tmp_path: Path, backend: str) -> None:
    with Recorder(place, backend=backend) as recorder:
        connection = sqlite3.connect(tmp_path / "history.db")
        connection.execute("CREATE TABLE line (text)")
        connection.commit()
        recorder.stop()
        connection.execute("INSERT INTO line VALUES ('still here')")
        connection.commit()
        connection.close()

    assert type(connection) is sqlite3.Connection
    assert recorder.operations == []
    with sqlite3.connect(tmp_path / "history.db") as again:
        assert again.execute("SELECT text FROM line").fetchall() == [("still here",)]
    again.close()


def test_a_directory_whose_name_begins_alike_is_elsewhere(place: Path, backend: str) -> None:
    (place / "lab").mkdir()
    with Recorder(place / "lab", backend=backend) as recorder:
        with rqlab.open(place / "laboratory") as rq:
            fill(rq)

    assert recorder.operations == []


def test_the_default_is_put_back_after_an_error(place: Path, backend: str) -> None:
    before, connect = default_vfs(), sqlite3.connect

    def fails() -> None:
        with Recorder(place, backend=backend), rqlab.open(place / JOBS):
            assert (default_vfs(), sqlite3.connect) != (before, connect)
            raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        fails()
    assert (default_vfs(), sqlite3.connect) == (before, connect)


def test_recorders_may_be_nested(place: Path, backend: str) -> None:
    before = default_vfs()
    with Recorder(place / "a", backend=backend) as first:
        with Recorder(place / "b", backend=backend) as second:
            with rqlab.open(place / "a" / JOBS) as rq:
                fill(rq)
        with rqlab.open(place / "a" / JOBS) as rq:
            fill(rq)

    assert len(first) > 0
    assert len(second) == 0
    assert default_vfs() == before


def test_a_store_that_outlives_its_recorder_still_works(place: Path, backend: str) -> None:
    with Recorder(place, backend=backend):
        rq = rqlab.open(place / JOBS)
        fill(rq)
    fill(rq)
    rq.close()

    with rqlab.open(place / JOBS) as again:
        assert len(kept(again)) == 12


def test_where_nothing_works_it_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(recorder: Recorder) -> None:
        raise RecorderUnavailable("the symbols are hidden")

    monkeypatch.setattr(vfs, "install", hidden)
    monkeypatch.setattr(recorder_module, "BACKENDS", ("vfs", "no_such_vfs"))

    with pytest.raises(RecorderUnavailable, match=r"symbols are hidden.*pip install 'rqlab\[power\]'"):
        Recorder(place).__enter__()


def test_where_the_symbols_are_hidden_apsw_takes_over(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(recorder: Recorder) -> None:
        raise RecorderUnavailable("the symbols are hidden")

    monkeypatch.setattr(vfs, "install", hidden)
    with Recorder(place) as recorder, rqlab.open(place / JOBS) as rq:
        fill(rq)
        assert recorder.backend == "apsw_vfs"

    assert len(recorder) > 50


def test_a_sqlite_that_is_not_the_one_in_use_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Recorder(place, backend="vfs"):
        pass  # ours is made and named at the first recording
    before = default_vfs()
    monkeypatch.setattr(vfs, "NAME", b"never-registered")

    with pytest.raises(RecorderUnavailable, match="not the one that sqlite3 uses"):
        Recorder(place, backend="vfs").__enter__()
    assert default_vfs() == before


# The power cut while it runs.


def test_after_the_cut_every_io_fails_and_nothing_more_is_written(place: Path, backend: str) -> None:
    with Recorder(place, backend=backend) as recorder:
        rq = rqlab.open(place / JOBS)
        fill(rq)
        recorder.stop()
        before, length = live_files(place), len(recorder)
        for _ in range(3):
            with pytest.raises(StoreError):
                rq.push("mail", "send", "too late")
        with pytest.raises(StoreError):
            rqlab.open(place / JOBS)
        rq.close()

        assert live_files(place) == before
        assert len(recorder) == length
    assert live_files(place) == before


def test_the_power_can_be_cut_before_any_operation(place: Path, backend: str) -> None:
    with Recorder(place / "whole", backend=backend) as whole, rqlab.open(place / "whole" / JOBS) as rq:
        fill(rq)
    for at in range(0, len(whole), 7):
        directory = place / str(at)
        with Recorder(directory, backend=backend, stop_at=at) as recorder:
            with contextlib.suppress(StoreError), rqlab.open(directory / JOBS) as rq:
                fill(rq)

        assert len(recorder) == at
        assert recorder.is_stopped


# Errors for answers.


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_at_any_operation_is_raised_and_nothing_is_forgotten(place: Path, backend: str, error: str) -> None:
    with Recorder(place, backend=backend) as recorder:
        with rqlab.open(place / JOBS) as rq:
            opened_at = len(recorder)
            fill(rq)
    told: list[type[StoreError]] = []
    for at in range(opened_at, len(recorder)):
        directory = place / str(at)
        with Recorder(directory, backend=backend, faults=(Fault(at, error),)) as faulty:
            acknowledged = []
            with rqlab.open(directory / JOBS) as rq:
                for number in range(6):
                    try:
                        rq.push("mail", "send", number)
                        acknowledged.append(number)
                    except StoreError as raised:
                        told.append(type(raised))
                assert kept(rq) == acknowledged
            assert faulty.operations[at].refused
        with rqlab.open(directory / JOBS) as rq:
            assert kept(rq) == acknowledged

    assert len(told) > 20
    assert set(told) == {StoreFull if error == "disk full" else StoreError}


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_while_a_directory_is_made_leaves_it_to_be_opened_again(place: Path, backend: str, error: str) -> None:
    with Recorder(place, backend=backend) as recorder, rqlab.open(place / JOBS):
        opened_at = len(recorder)
    for at in range(opened_at):
        directory = place / str(at)
        with Recorder(directory, backend=backend, faults=(Fault(at, error, lasting=True),)):
            with pytest.raises(StoreError):
                rqlab.open(directory / JOBS)
        with rqlab.open(directory / JOBS) as rq:
            fill(rq)
            assert kept(rq) == [0, 1, 2, 3, 4, 5]


def test_a_lasting_error_lasts_until_it_is_lifted(place: Path, backend: str) -> None:
    with Recorder(place, backend=backend) as recorder, rqlab.open(place / JOBS) as rq:
        fill(rq)
        recorder.faults = (Fault(len(recorder), "disk full", lasting=True),)
        for _ in range(3):
            with pytest.raises(StoreFull):
                rq.push("mail", "send", "no room")
        recorder.faults = ()
        rq.push("mail", "send", "room again")

        assert kept(rq) == [0, 1, 2, 3, 4, 5, "room again"]


# The disk model.


def made(*operations: Operation) -> Platter:
    return Platter(Recording({}, list(operations)))


CREATE = Operation(Kind.CREATE, "file")
SYNC = Operation(Kind.SYNC, "file", with_names=True)


def write(offset: int, payload: bytes) -> Operation:
    return Operation(Kind.WRITE, "file", offset, payload)


def outcomes(platter: Platter, kind: str, names: str = "strict") -> set[bytes | None]:
    """The file after the last operation, over many seeds; None where it is not there."""
    cuts = [Cut(len(platter), kind, names, seed) for seed in range(400)]
    return {platter.cut(cut).files.get("file") for cut in cuts}


def test_the_same_cut_is_the_same_image_in_any_order() -> None:
    random_writes = random.Random(1)
    log = [CREATE, SYNC, *(write(random_writes.randrange(5_000), random_writes.randbytes(900)) for _ in range(20))]
    cuts = [Cut(at, kind, names) for at in range(len(log) + 1) for kind in CRASH_KINDS for names in NAME_MODELS]
    forwards = [made(*log).cut(cut) for cut in cuts]
    platter = made(*log)

    assert [platter.cut(cut) for cut in reversed(cuts)] == forwards[::-1]


def test_what_was_not_synced_is_lost_and_what_was_is_kept() -> None:
    platter = made(CREATE, write(0, b"safe"), SYNC, write(4, b"gone"))

    assert outcomes(platter, "lost") == {b"safe"}
    assert outcomes(platter, "sigkill") == {b"safegone"}


def test_a_torn_write_ends_at_any_byte() -> None:
    platter = made(CREATE, SYNC, write(0, b"ab"), write(2, b"cd"))

    assert outcomes(platter, "torn") == {b"", b"a", b"ab", b"abc", b"abcd"}


def test_reordered_sectors_are_kept_or_lost_each_on_its_own() -> None:
    a, b = b"a" * SECTOR, b"b" * SECTOR
    platter = made(CREATE, SYNC, write(0, a + b))

    assert outcomes(platter, "reorder") == {b"", a, bytes(SECTOR) + b, a + b}


def test_garbage_never_touches_what_was_synced() -> None:
    safe = b"s" * SECTOR
    platter = made(CREATE, write(0, safe), SYNC, write(SECTOR, b"n" * SECTOR))
    found = outcomes(platter, "garbage")

    assert all(content is not None and content.startswith(safe) for content in found)
    assert len(found) > 3, "junk differs from seed to seed"


def test_without_power_safe_overwrite_a_synced_neighbour_may_go() -> None:
    platter = made(CREATE, write(0, b"s" * 100), SYNC, write(100, b"n" * 100))
    found = outcomes(platter, "nopsow")

    assert any(content is not None and not content.startswith(b"s" * 100) for content in found)
    assert b"s" * 100 in found


def test_a_truncate_that_was_not_synced_may_be_undone() -> None:
    platter = made(CREATE, write(0, b"abcdef"), SYNC, Operation(Kind.TRUNCATE, "file", 2))

    assert outcomes(platter, "torn") == {b"abcdef", b"ab"}
    assert outcomes(platter, "lost") == {b"abcdef"}


def test_a_journal_commits_names_with_any_sync_and_posix_only_with_the_directory() -> None:
    platter = made(CREATE, Operation(Kind.SYNC, "file"))

    assert outcomes(platter, "lost", "journalled") == {b""}
    assert outcomes(platter, "lost", "strict") == {None}
    assert outcomes(platter, "torn", "strict") == {None, b""}


def test_a_deleted_file_may_come_back() -> None:
    deleted = Operation(Kind.DELETE, "file")
    platter = made(CREATE, write(0, b"old"), SYNC, deleted)

    assert outcomes(platter, "torn") == {None, b"old"}
    assert outcomes(platter, "lost") == {b"old"}
    assert outcomes(made(CREATE, write(0, b"old"), SYNC, deleted._replace(with_names=True)), "lost") == {None}


def test_what_was_refused_never_happened() -> None:
    refused = Operation(Kind.SYNC, "file", refused=True)

    assert outcomes(made(CREATE, SYNC, write(0, b"new"), refused), "lost") == {b""}


def test_a_cut_outside_the_log_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 to 1"):
        made(CREATE).cut(Cut(2, "lost"))


# Windows.


def test_each_window_opens_where_its_sentence_says(place: Path) -> None:
    with Recorder(place) as recorder, rqlab.open(place / JOBS) as rq:
        created_at = len(recorder)
        fill(rq)
        filled_at = len(recorder)
        rq._store.checkpoint()  # type: ignore[attr-defined]
        checked_at = len(recorder)
        rq.push("mail", "send", "a new log")
        pushed_at = len(recorder)
    open_at = windows_at(recorder.operations)

    def during(start: int, end: int) -> set[str]:
        return set().union(*open_at[start + 1 : end + 1])

    assert "creation" in during(0, created_at)
    assert during(created_at, filled_at) == {"torn frame"}
    assert during(filled_at, checked_at) == {"checkpoint"}
    assert "log restart" in during(checked_at, pushed_at)
    assert during(pushed_at, len(recorder)) == {"checkpoint", "last close"}
    assert open_at[created_at] == open_at[filled_at] == open_at[pushed_at] == frozenset()
    assert set(hits(recorder.operations, [0])) == set(IN_LOG)


# The end of the interpreter.

LEFT_OPEN = """
import os, sys
from pathlib import Path
import rqlab
from rqlab.simulation.recorder import Recorder

here = Path(sys.argv[1])
recorder = Recorder(here, seed=1).__enter__()
rq = rqlab.open(here / "jobs")
rq.push("q", "job")
{ends}
"""


@pytest.mark.parametrize(
    ("ends", "code", "log_is_left"),
    [
        ("pass", 0, False),
        ("raise RuntimeError('a bug')", 1, False),
        ("sys.exit(3)", 3, False),
        ("recorder.__exit__(None, None, None)", 0, False),
        ("os._exit(4)", 4, True),
        ("recorder.stop()", 0, True),
        ("recorder.stop(); recorder.__exit__(None, None, None); sys.exit(3)", 3, True),
    ],
    ids=["end", "exception", "sys.exit", "after the block", "os._exit", "cut", "cut, after the block"],
)
def test_a_store_left_open_under_the_recorder_ends_in_peace(
    tmp_path: Path, ends: str, code: int, log_is_left: bool
) -> None:
    """The connection closes after Python's functions are gone; SQLite's own close it then, unless the power was cut."""
    run = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN.format(ends=ends), str(tmp_path)], capture_output=True, text=True, timeout=60
    )

    assert run.returncode == code, run.stderr
    assert "Error" not in run.stderr.replace("RuntimeError: a bug", "")
    assert (tmp_path / "jobs" / "cache.db-wal").exists() is log_is_left
    with rqlab.open(tmp_path / "jobs") as rq:
        assert [job.name for job in rq.jobs()] == ["job"]
