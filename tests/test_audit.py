"""What an audit says of queues whose answer is known: those that sync, those that do not, and those it cannot see.

Each queue here is as small as can be, and each does, or leaves out, one thing that a real one may.
"""

import contextlib
import inspect
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import rqlab
from rqlab.simulation.audit import Audit, Loss, audit, moments
from rqlab.simulation.platter import CRASH_KINDS, Cut
from rqlab.simulation.recorder import Kind, Operation, RecorderUnavailable

PUSHES = 30
Workload = Callable[[Path], Iterator[int]]


def in_sqlite(journal: str, synchronous: str) -> Workload:
    def workload(directory: Path) -> Iterator[int]:
        with contextlib.closing(sqlite3.connect(directory / "queue.db", isolation_level=None)) as connection:
            connection.execute(f"PRAGMA journal_mode = {journal}").fetchall()
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            connection.execute("CREATE TABLE queue (job INTEGER PRIMARY KEY)")
            for number in range(PUSHES):
                connection.execute("INSERT INTO queue VALUES (?)", (number,))
                yield number

    return workload


def rows(directory: Path) -> list[int]:
    """What is in the table; nothing where there is none."""
    with contextlib.closing(sqlite3.connect(directory / "queue.db")) as connection:
        if not connection.execute("SELECT * FROM sqlite_master WHERE name = 'queue'").fetchall():
            return []
        return [job for (job,) in connection.execute("SELECT job FROM queue")]


def lines(directory: Path) -> list[int]:
    """What is in a file of one number a line, the last of which may be torn."""
    path = directory / "queue.log"
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [int(line) for line in whole.split()]


def worst(losses: list[Loss]) -> int:
    return max(each.lost for each in losses)


# Queues in SQLite.


@pytest.mark.parametrize(
    ("journal", "synchronous"), [("wal", "FULL"), ("truncate", "FULL"), ("persist", "FULL"), ("delete", "EXTRA")]
)
def test_sqlite_that_syncs_loses_nothing_in_any_way(journal: str, synchronous: str) -> None:
    kinds = [kind for kind in CRASH_KINDS if kind != "nopsow"]
    found = audit(in_sqlite(journal, synchronous), rows, kinds=kinds, cuts=60)

    assert found.ok, str(found)
    assert found.acknowledged == PUSHES
    assert found.syncs >= PUSHES
    assert "loses nothing acknowledged" in str(found)


def test_full_with_sqlites_default_journal_may_lose_the_last_push() -> None:
    """To delete the journal is the commit, and only EXTRA syncs the directory after it: https://sqlite.org/pragma.html"""
    found = audit(in_sqlite("delete", "FULL"), rows, cuts=60)

    assert worst(found.at_power_cut) == 1
    assert worst(found.at_kill) == 0


@pytest.mark.parametrize(("journal", "synchronous"), [("wal", "NORMAL"), ("wal", "OFF"), ("delete", "OFF")])
def test_sqlite_that_does_not_sync_loses_at_a_power_cut_and_nothing_at_kill_9(journal: str, synchronous: str) -> None:
    found = audit(in_sqlite(journal, synchronous), rows, cuts=60)

    assert worst(found.of("lost")) == PUSHES
    assert worst(found.of("torn")) > 0
    assert worst(found.of("reorder")) > 0
    assert worst(found.at_kill) == 0
    assert not found.ok
    assert f"loses up to {PUSHES} of {PUSHES} acknowledged pushes" in str(found)


def test_a_queue_that_never_commits_loses_at_kill_9_too() -> None:
    def workload(directory: Path) -> Iterator[int]:
        connection = sqlite3.connect(directory / "queue.db")
        connection.execute("CREATE TABLE queue (job INTEGER PRIMARY KEY)")
        for number in range(PUSHES):
            connection.execute("INSERT INTO queue VALUES (?)", (number,))
            yield number
        connection.close()

    found = audit(workload, rows)

    assert worst(found.at_kill) == PUSHES
    assert worst(found.at_power_cut) == PUSHES


def test_what_a_batch_acknowledged_before_its_commit_is_counted() -> None:
    def workload(directory: Path) -> Iterator[int]:
        with contextlib.closing(sqlite3.connect(directory / "queue.db", isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = wal").fetchall()
            connection.execute("CREATE TABLE queue (job INTEGER PRIMARY KEY)")
            for number in range(PUSHES):
                if number % 10 == 0:
                    connection.execute("BEGIN")
                connection.execute("INSERT INTO queue VALUES (?)", (number,))
                if number % 10 < 9:
                    yield number
                else:
                    connection.execute("COMMIT")
                    yield number

    found = audit(workload, rows)

    assert worst(found.at_kill) == 9
    assert worst(found.at_power_cut) == 9


def test_a_durable_queue_of_ours_keeps_everything_and_one_in_memory_nothing() -> None:
    def workload(directory: Path) -> Iterator[int]:
        with rqlab.open(directory / "jobs") as rq:
            for number in range(10):
                rq.push("audited", "number", number)
                yield number

    def survivors(directory: Path) -> list[int]:
        with rqlab.open(directory / "jobs") as rq:
            return [job.data for job in rq.jobs("audited", limit=100)]

    def forgetful(directory: Path) -> Iterator[int]:
        with rqlab.memory() as rq:
            for number in range(10):
                rq.push("audited", "number", number)
                yield number

    assert rqlab.audit(workload, survivors, cuts=30).ok
    assert worst(rqlab.audit(forgetful, lambda directory: []).at_kill) == 10


# Queues in files of their own.


def appended(*, flushes: bool = True, syncs: Callable[[int], None] | None = None) -> Workload:
    def workload(directory: Path) -> Iterator[int]:
        with (directory / "queue.log").open("ab") as file:
            for number in range(PUSHES):
                file.write(b"%d\n" % number)
                if flushes:
                    file.flush()
                if syncs:
                    syncs(file.fileno())
                yield number

    return workload


@pytest.mark.parametrize("sync", [os.fsync, os.fdatasync])
def test_a_file_that_is_synced_keeps_what_it_was_given(sync: Callable[[int], None]) -> None:
    name = sync.__name__
    found = audit(appended(syncs=lambda fd: getattr(os, name)(fd)), lines)  # as a library would call it

    assert found.ok, str(found)
    assert found.syncs == PUSHES


def test_a_file_that_is_never_synced_loses_at_a_power_cut_and_one_never_flushed_at_kill_9() -> None:
    written, buffered = audit(appended(), lines), audit(appended(flushes=False), lines)

    assert (worst(written.at_power_cut), worst(written.at_kill)) == (PUSHES, 0)
    assert (worst(buffered.at_power_cut), worst(buffered.at_kill)) == (PUSHES, PUSHES)


def replaced(*, syncs_file: bool, syncs_directory: bool) -> Workload:
    """A file that is written anew for each push, and takes the place of the old one."""

    def workload(directory: Path) -> Iterator[int]:
        for number in range(PUSHES):
            new = directory / "queue.new"
            with new.open("wb") as file:
                file.write(b"".join(b"%d\n" % each for each in range(number + 1)))
                file.flush()
                if syncs_file:
                    os.fsync(file.fileno())
            new.replace(directory / "queue.log")
            if syncs_directory:
                fd = os.open(directory, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)
            yield number

    return workload


def test_a_file_put_in_place_of_another_is_safe_when_its_content_and_its_name_are() -> None:
    safe = audit(replaced(syncs_file=True, syncs_directory=True), lines)
    no_name = audit(replaced(syncs_file=True, syncs_directory=False), lines)
    no_content = audit(replaced(syncs_file=False, syncs_directory=True), lines)

    assert safe.ok, str(safe)
    assert worst(no_name.of("lost")) == 1, "the next fsync makes the last name safe"
    assert worst(no_name.at_kill) == 0
    assert worst(no_content.of("lost")) == PUSHES, "the name of an empty file"
    assert worst(no_content.at_kill) == 0


@pytest.mark.parametrize("syncs", [False, True])
def test_values_in_files_beside_the_table_are_kept_only_if_they_were_synced(syncs: bool) -> None:
    def workload(directory: Path) -> Iterator[int]:
        with contextlib.closing(sqlite3.connect(directory / "queue.db", isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = wal").fetchall()
            connection.execute("CREATE TABLE queue (job INTEGER PRIMARY KEY)")
            for number in range(PUSHES):
                with (directory / f"{number}.value").open("wb") as file:
                    file.write(b"%d" % number)
                    file.flush()
                    if syncs:
                        os.fsync(file.fileno())
                connection.execute("INSERT INTO queue VALUES (?)", (number,))
                yield number

    def survivors(directory: Path) -> list[int]:
        found = rows(directory)
        orphans = [job for job in found if not (directory / f"{job}.value").exists()]
        dangling.extend(orphans)
        return [job for job in found if job not in orphans and (directory / f"{job}.value").read_bytes() == b"%d" % job]

    dangling: list[int] = []
    found = audit(workload, survivors, kinds=["sigkill"], cuts=200)
    assert found.ok
    assert dangling == [], "a file that was written before its row is there before it"
    found = audit(workload, survivors, cuts=200)
    assert worst(found.at_kill) == 0
    assert (worst(found.at_power_cut) == 0) is syncs


def test_a_file_that_was_there_before_sqlite_opened_it_is_sqlites() -> None:
    def workload(directory: Path) -> Iterator[int]:
        (directory / "queue.db").touch()
        (directory / "other").touch()
        with (directory / "other").open() as file:
            os.fsync(file.fileno())  # a look: the database is not SQLite's yet
        yield from in_sqlite("wal", "FULL")(directory)

    assert audit(workload, rows, cuts=60).ok


def test_os_fsync_is_put_back_after_an_error_too() -> None:
    real = os.fsync

    def workload(directory: Path) -> Iterator[int]:
        assert os.fsync is not real
        yield 1
        raise OSError("the workload's own")

    with pytest.raises(OSError, match="own"):
        audit(workload, lambda directory: [])
    assert os.fsync is real


# What it says, and what it refuses.


def test_a_queue_that_does_not_open_has_lost_everything_and_says_why() -> None:
    def survivors(directory: Path) -> list[int]:
        raise RuntimeError("no such queue")

    found = audit(in_sqlite("wal", "FULL"), survivors, cuts=10)

    assert worst(found.at_kill) == PUSHES
    assert {each.complaint for each in found.losses} == {"RuntimeError: no such queue"}
    assert not found.ok


def test_a_queue_that_holds_what_was_never_pushed_is_told() -> None:
    invented = audit(in_sqlite("wal", "FULL"), lambda directory: [*rows(directory), 99], cuts=10)
    doubled = audit(in_sqlite("wal", "FULL"), lambda directory: rows(directory) * 2, cuts=10)

    assert "holds 99" in invented.losses[-1].complaint
    assert "there twice" in doubled.losses[-1].complaint
    assert "with complaints" in str(invented)


def test_the_same_seed_is_the_same_audit() -> None:
    workload = in_sqlite("wal", "NORMAL")

    assert audit(workload, rows, cuts=20, seed=3) == audit(workload, rows, cuts=20, seed=3)


def test_a_sample_has_the_moments_before_syncs_and_the_end() -> None:
    log = [Operation(Kind.SYNC if at % 100 == 99 else Kind.WRITE, "file") for at in range(1_000)]
    sample = moments(log, 50)

    assert {*range(99, 1_000, 100), 1_000} <= set(sample)
    assert 40 <= len(sample) <= 50
    assert moments(log, 2_000) == list(range(1_001))
    assert moments(log[:1], 1) == [1]


def test_the_frame_has_one_row_a_crash_kind() -> None:
    losses = (Loss(Cut(1, "sigkill"), 1, 0), Loss(Cut(1, "lost"), 1, 1), Loss(Cut(2, "lost"), 2, 2, "empty"))
    frame = Audit(losses, 2, 2, 0).frame()

    assert list(frame.index) == ["sigkill", "lost"]
    assert frame.loc["lost", ["cuts", "cuts with loss", "worst loss", "of acknowledged", "complaints"]].tolist() == [
        2, 2, 2, 2, 1,
    ]  # fmt: skip


def test_the_example_in_the_docstring_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """With a queue that has the verbs of litequeue, and its settings."""

    class LiteQueue:
        def __init__(self, path: Path) -> None:
            self._connection = sqlite3.connect(path, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = wal").fetchall()
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute("CREATE TABLE IF NOT EXISTS queue (data TEXT)")

        def put(self, data: str) -> None:
            self._connection.execute("INSERT INTO queue VALUES (?)", (data,))

        def pop(self) -> SimpleNamespace | None:
            statement = "DELETE FROM queue WHERE rowid = (SELECT min(rowid) FROM queue) RETURNING data"
            row = self._connection.execute(statement).fetchone()
            return SimpleNamespace(data=row[0]) if row else None

        def close(self) -> None:
            self._connection.close()

    documented = inspect.cleandoc(audit.__doc__ or "").splitlines()
    example = [line for line in documented if line.startswith("    ") or not line]
    exec(textwrap.dedent("\n".join(example)), {"audit": audit, "LiteQueue": LiteQueue})

    assert capsys.readouterr().out.startswith("loses up to 100 of 100 acknowledged pushes")


def test_strict_names_take_a_file_whose_directory_nobody_synced() -> None:
    def safe(names: str) -> bool:
        return audit(appended(syncs=lambda fd: os.fsync(fd)), lines, names=names).ok

    assert safe("journalled")
    assert not safe("strict")


def test_a_sqlite_that_cannot_be_seen_is_refused() -> None:
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('CREATE TABLE queue (job)'); c.commit()"

    def workload(directory: Path) -> Iterator[int]:
        subprocess.run([sys.executable, "-c", code, str(directory / "queue.db")], check=True, timeout=60)
        yield 1

    with pytest.raises(RecorderUnavailable, match=r"cannot audit queue\.db"):
        audit(workload, rows)


def test_a_wrong_argument_is_refused_before_anything_runs() -> None:
    def workload(directory: Path) -> Iterator[int]:
        raise AssertionError("it ran")

    with pytest.raises(ValueError, match="kinds: expected some of sigkill"):
        audit(workload, rows, kinds=["flood"])
    with pytest.raises(ValueError, match="kinds: expected at least one"):
        audit(workload, rows, kinds=[])
    with pytest.raises(ValueError, match="names: expected one of journalled, strict; got 'fat'"):
        audit(workload, rows, names="fat")
    with pytest.raises(ValueError, match="cuts: expected at least 1, got 0"):
        audit(workload, rows, cuts=0)


def test_jobs_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="yielded 1 twice"):
        audit(lambda directory: [1, 1], lambda directory: [])
    with pytest.raises(ValueError, match="yielded nothing"):
        audit(lambda directory: [], lambda directory: [])
