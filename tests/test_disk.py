"""The directory store: each trap of diskcache and SQLite, with its cure, and what happens when the cure is taken out.

Other processes are real ones. Nothing here opens `cache.db` but through SQLite: to close it in any other way would drop
this process's locks (there is a test of that too).
"""

import errno
import os
import pickle
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import diskcache
import pytest
from power_cuts import let_diskcache_write
from test_stores import counted, id_of, job, line, put, recounted, sized

import rqlab
from rqlab.errors import FormatTooNew, StoreBusy, StoreCorrupt, StoreError, StoreFull, StoreLocked
from rqlab.job import State
from rqlab.simulation.recorder import Kind, Recorder
from rqlab.storage import Store, cache, entries
from rqlab.storage import disk as disk_module
from rqlab.storage import view as view_module
from rqlab.storage.cache import SETTINGS
from rqlab.storage.disk import DiskStore
from rqlab.storage.entries import DATA, DATA_APART_BYTES, FORMAT_KEY
from rqlab.storage.locks import NOT_ALLOWED, file_error, file_system, network_file_system
from rqlab.storage.place import LAST
from rqlab.storage.view import ReadOnlyStore

PATIENCE = 30.0  # seconds for another process to do its part


def sql(directory: Path, statement: str, *values: Any) -> list[Any]:
    """What somebody else's SQLite does to the file."""
    with closing(sqlite3.connect(directory / "cache.db", isolation_level=None)) as connection:
        return connection.execute(statement, values).fetchall()


def files(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that a look could change. Of a directory that no store of this process has open: see the head of the file."""
    facts = {each.name: each.stat() for each in sorted(directory.iterdir())}
    return {name: (f.st_mtime_ns, f.st_mode, (directory / name).read_bytes()) for name, f in facts.items()}


def kill_nine(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


@contextmanager
def another_process(code: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """A Python that runs `code` to its `print`, then waits for its input to end."""
    code = f"import sys, os, rqlab\nfrom rqlab.storage.disk import *\n{code}\nprint(flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline(), "it came as far as its print"
            yield process
        finally:
            kill_nine(process)


def run(code: str, *arguments: object, **options: Any) -> str:
    """What a Python that runs `code` printed."""
    code = f"import sys, os, rqlab\nfrom rqlab.storage.disk import *\n{code}"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


WRITER = "rq = rqlab.open(sys.argv[1]); rq.push('a', 'n')"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    store = DiskStore(tmp_path / "q")
    yield store
    store.close()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A directory with ten waiting jobs, one of them large, cleanly closed."""
    with closing(DiskStore(tmp_path / "made")) as store:
        put(store, *(job(number) for number in range(9)), sized(9, DATA_APART_BYTES * 2))
    return tmp_path / "made"


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A directory whose only writer was killed: its ten jobs are in the log alone."""
    with another_process("rq = rqlab.open(sys.argv[1])\nfor _ in range(10): rq.push('a', 'n')", tmp_path / "killed"):
        pass
    assert (tmp_path / "killed" / "cache.db-wal").stat().st_size > 0
    return tmp_path / "killed"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB; only root may make one."""
    path = tmp_path / "small"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "rqlab", path], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def fill(path: Path) -> Path:
    filler = path / "filler"
    with suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return filler


def take_out(monkeypatch: pytest.MonkeyPatch, *cures: str) -> None:
    """Leave these settings to diskcache's defaults."""
    for cure in cures:
        monkeypatch.delitem(SETTINGS, cure)


# diskcache forgets.


@pytest.mark.parametrize(
    ("without", "kept"),
    [((), True), (("cull_limit",), True), (("eviction_policy",), True), (("cull_limit", "eviction_policy"), False)],
)
def test_nothing_is_evicted_however_full_the_directory_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: tuple[str, ...], kept: bool
) -> None:
    monkeypatch.setitem(SETTINGS, "size_limit", 50_000)
    let_diskcache_write(monkeypatch)
    take_out(monkeypatch, *without)
    with closing(DiskStore(tmp_path)) as store:
        for number in range(40):
            put(store, sized(number, 4_000))

        assert (len(line(store, "a")) == 40) is kept, "either cure holds alone; without both diskcache forgets jobs"


def test_the_size_limit_is_none(store: DiskStore) -> None:
    assert store._cache.size_limit >= 2**62


@pytest.mark.parametrize("cured", [True, False])
def test_an_expiry_time_in_the_file_makes_nothing_vanish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cured: bool
) -> None:
    if not cured:
        let_diskcache_write(monkeypatch)
        take_out(monkeypatch, "cull_limit")
    with closing(DiskStore(tmp_path)) as store:
        put(store, job(1))
    assert sql(tmp_path, "SELECT COUNT(*) FROM Cache WHERE expire_time IS NOT NULL") == [(0,)], "we never write one"
    sql(tmp_path, "UPDATE Cache SET expire_time = 1 WHERE key = ?", id_of(1))

    with closing(DiskStore(tmp_path)) as store:
        assert store._cache.get(id_of(1)) is None, "diskcache reads its own clock"
        assert store.get(id_of(1)) is not None, "we do not"
        put(store, job(2))
        assert (store.get(id_of(1)) is not None) is cured


@pytest.mark.parametrize("cured", [True, False])
def test_an_index_of_expiry_times_that_nobody_writes_costs_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cured: bool
) -> None:
    with monkeypatch.context() as patch:
        if not cured:
            patch.setattr(disk_module, "_spare_what_nobody_reads", lambda connection: None)
        with closing(DiskStore(tmp_path)) as store:
            put(store, job(1))
            assert bool(indexed(store)) is not cured
    with closing(DiskStore(tmp_path)) as store:  # a directory that an older rqlab has made, if it was not cured
        put(store, job(2))

        assert indexed(store) == 0
        assert line(store, "a") == [1, 2]


@pytest.mark.parametrize("cured", [True, False])
def test_what_diskcache_counts_and_nobody_reads_costs_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cured: bool
) -> None:
    with monkeypatch.context() as patch:
        if not cured:
            patch.setattr(disk_module, "_spare_what_nobody_reads", lambda connection: None)
        with closing(DiskStore(tmp_path)) as store:
            put(store, job(1), job(2))
            assert (entries_that_diskcache_counts(store) == 1) is cured, (
                "1: what it wrote itself as the directory was made"
            )
    with closing(DiskStore(tmp_path)) as store:
        before = entries_that_diskcache_counts(store)
        put(store, job(3))

        assert entries_that_diskcache_counts(store) == before
        assert line(store, "a") == [1, 2, 3]


def entries_that_diskcache_counts(store: DiskStore) -> int:
    (count,) = store._connection.execute("SELECT value FROM Settings WHERE key = 'count'").fetchone()
    return int(count)


def indexed(store: DiskStore) -> int:
    """Entries in diskcache's index of expiry times."""
    (made,) = store._connection.execute("SELECT sql FROM sqlite_master WHERE name = 'Cache_expire_time'").fetchone()
    where = " WHERE expire_time IS NOT NULL" if "WHERE" in made else ""
    (count,) = store._connection.execute(
        f"SELECT COUNT(*) FROM Cache INDEXED BY Cache_expire_time{where or ' WHERE expire_time IS NULL'}"
    ).fetchone()
    return int(count)


# When a commit is safe.


@pytest.mark.parametrize("cured", [True, False])
def test_each_commit_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cured: bool) -> None:
    if not cured:
        monkeypatch.setitem(SETTINGS, "sqlite_synchronous", diskcache.core.DEFAULT_SETTINGS["sqlite_synchronous"])
    with closing(DiskStore(tmp_path)) as store:
        (level,) = store._connection.execute("PRAGMA synchronous").fetchone()

        assert level == (2 if cured else 1), "FULL; diskcache's default is NORMAL"


def syncs(code: str, *arguments: object) -> int:
    """How often a process calls fsync or fdatasync."""
    if shutil.which("strace") is None or subprocess.run(["strace", "true"], capture_output=True).returncode:
        pytest.skip("needs strace")
    code = f"import sys, rqlab\nfrom rqlab.storage.disk import *\n{code}"
    command = ["strace", "-f", "-e", "trace=fsync,fdatasync", sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return sum("sync(" in said for said in done.stderr.splitlines())


def test_twenty_pushes_sync_twenty_times_more_than_none(tmp_path: Path) -> None:
    pushes = "rq = rqlab.open(sys.argv[1])\nfor _ in range(int(sys.argv[2])): rq.push('a', 'n')\nos._exit(0)"
    loose = "SETTINGS['sqlite_synchronous'] = 1\n" + pushes

    opening = syncs(pushes, tmp_path / "none", 0)
    assert opening <= 20, "a new directory is made in one transaction"
    assert syncs(pushes, tmp_path / "full", 20) - opening >= 20
    assert syncs(loose, tmp_path / "normal", 20) - opening < 20, "without the cure"


FILL = """
import os, sys, rqlab
rq = rqlab.open(sys.argv[1])
for _ in range(int(sys.argv[2])): rq.push_many("a", [{"name": "n"}] * 500)
if sys.argv[3] == "killed": os.kill(os.getpid(), 9)
rq.close()
"""


def syncs_of_an_opening(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """SQLite's, and our own."""
    ours: list[int] = []
    with monkeypatch.context() as patch, Recorder(path) as recorder:
        patch.setattr(os, "fsync", ours.append)
        with rqlab.open(path):
            return len(ours) + sum(operation.kind is Kind.SYNC for operation in recorder.operations)


@pytest.mark.parametrize("ending", ["closed", "killed"])
def test_an_opening_syncs_at_most_twenty_times_whatever_the_size(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    for batches in (1, 20):
        path = tmp_path / str(batches)
        subprocess.run([sys.executable, "-c", FILL, str(path), str(batches), ending], timeout=60)
        counted.append(syncs_of_an_opening(path, monkeypatch))

    assert len(set(counted)) == 1, "the same for 500 and 10 000 jobs"
    assert counted[0] <= 20
    assert syncs_of_an_opening(tmp_path / "new", monkeypatch) <= 20


def test_reads_and_empty_transactions_sync_nothing(tmp_path: Path) -> None:
    opening = "store = DiskStore(sys.argv[1])\n"
    looks = "for _ in range(50): store.write(lambda tx: tx.get('x')); store.first('ready/a/', 'ready/a/~')\n"

    assert syncs(opening + looks + "os._exit(0)", tmp_path / "a") == syncs(opening + "os._exit(0)", tmp_path / "b")


@pytest.mark.parametrize("cured", [True, False])
def test_large_values_stay_inside_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cured: bool) -> None:
    if not cured:
        let_diskcache_write(monkeypatch)
        monkeypatch.setattr(cache, "Bytes", diskcache.Disk)
        take_out(monkeypatch, "disk_min_file_size")
    with closing(DiskStore(tmp_path)) as store:
        put(store, sized(1, 200_000))
        store.write(lambda tx: tx.put_entry("k", b"x" * 100_000))

        side_files = [found for found in tmp_path.rglob("*") if found.suffix == ".val"]
        assert bool(side_files) is not cured, "diskcache puts 32 KiB and more into files that nobody syncs"


def written_bytes(store: DiskStore) -> int:
    return (store.path / "cache.db-wal").stat().st_size


def test_a_heartbeat_does_not_write_large_data_again(store: DiskStore) -> None:
    put(store, sized(1, 500_000, state=State.ACTIVE, at=1))
    store.checkpoint()
    for beat in range(10):
        stored = store.get(id_of(1))
        assert stored is not None
        store.write(
            lambda tx, stored=stored, beat=beat: tx.put(  # type: ignore[misc]
                job(1, state=State.ACTIVE, at=beat + 2, data_apart=stored.data_apart), replacing=stored
            )
        )

    assert written_bytes(store) < 400_000, "ten records of a few pages, not ten times half a megabyte"


def test_a_deleted_job_takes_its_large_data_along(store: DiskStore) -> None:
    put(store, sized(1, DATA_APART_BYTES * 2))
    assert store.entry(DATA + id_of(1)) is not None
    store.write(lambda tx: tx.delete(job(1)))

    assert store.entry(DATA + id_of(1)) is None


# A hostile directory.


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return Path.write_text, (self.proof, "pwned")  # type: ignore[return-value]


PICKLED = 4  # diskcache's mode for a pickled value

LOOKS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get(id_of(1)),
    "scan": lambda store: store.scan("ready/a/", "ready/a/" + LAST, 10),
    "entry": lambda store: store.entry(id_of(1)),
    "entries": lambda store: store.entries("ready/a/", "ready/a/" + LAST, 10),
    "load": lambda store: store.load(job(1, data_apart=True)),
    "counters": lambda store: store.counters("a"),
    "in a transaction": lambda store: store.write(lambda tx: tx.get(id_of(1))),
    "counting": lambda store: store.write(lambda tx: tx.tally("a", "x")),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_pickled_value_never_runs(made: Path, tmp_path: Path, look: str, read_only: bool) -> None:
    proof = tmp_path / "proof"
    hostile = pickle.dumps(Hostile(proof))
    sql(made, "UPDATE Cache SET mode = ?, value = ? WHERE key = ?", PICKLED, hostile, id_of(1))
    sql(made, "UPDATE Cache SET mode = ?, value = ? WHERE key = 'queue/a'", PICKLED, hostile)
    sql(made, "INSERT INTO Cache (key, raw, mode, value) VALUES (?, 1, ?, ?)", DATA + id_of(1), PICKLED, hostile)
    if read_only and look in ("in a transaction", "counting"):
        pytest.skip("a view has no transactions")

    with closing(ReadOnlyStore(made) if read_only else DiskStore(made)) as store:
        with pytest.raises(StoreCorrupt, match="not unpickled"):
            LOOKS[look](store)
    assert not proof.exists()
    with closing(diskcache.Cache(str(made))) as plain:
        plain.get(id_of(1))
    assert proof.exists(), "diskcache as it is would have run it"


def test_a_pickled_key_never_runs(made: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    key = pickle.dumps(Hostile(proof))
    sql(made, "INSERT INTO Cache (key, raw, tag, mode, value) VALUES (?, 0, 'ready/a/00000/x', 1, x'00')", key)

    with closing(DiskStore(made)) as store:
        with pytest.raises(StoreCorrupt):
            line(store, "a")
        with pytest.raises(StoreCorrupt, match="text as the key"):
            list(store._cache)
    assert not proof.exists()
    with suppress(Exception), closing(diskcache.Cache(str(made))) as plain:
        list(plain)
    assert proof.exists(), "diskcache as it is would have run it"


@pytest.mark.parametrize("format_number", [pickle.dumps(1), b"one", b"", None, "1"])
def test_a_format_that_is_no_number_is_refused(made: Path, format_number: Any) -> None:
    sql(made, "UPDATE Cache SET value = ? WHERE key = ?", format_number, FORMAT_KEY)

    for opening in (DiskStore, ReadOnlyStore):
        with pytest.raises(StoreCorrupt):
            opening(made)


@pytest.mark.parametrize("key", ["set", "disk_evil", "sqlite_writable_schema", "_txn_id"])
def test_settings_that_diskcache_does_not_know_are_refused(made: Path, key: str) -> None:
    sql(made, "INSERT INTO Settings VALUES (?, ?)", key, pickle.dumps(1))

    for opening in (DiskStore, ReadOnlyStore):
        with pytest.raises(StoreCorrupt, match=key):
            opening(made)


def test_damaged_counters_hurt_only_their_own_queue(made: Path) -> None:
    sql(made, "UPDATE Cache SET value = x'00' WHERE key = 'queue/a'")
    with closing(DiskStore(made)) as store:
        with pytest.raises(StoreCorrupt, match="expected a record that rqlab wrote"):
            put(store, job(20, "a"))
        put(store, job(21, "b"))

        assert line(store, "b") == [21]
        assert store.get(id_of(20)) is None


# What is in the directory.


def test_the_directory_is_ours_alone_to_read(tmp_path: Path) -> None:
    DiskStore(tmp_path / "new" / "q").close()
    diskcache.Cache(str(tmp_path / "theirs")).close()

    assert stat.S_IMODE((tmp_path / "new" / "q").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "theirs").stat().st_mode) == 0o755, "as diskcache makes it"


def test_settings_are_ours_again_at_each_opening(made: Path) -> None:
    for key, value in {"eviction_policy": "least-recently-used", "cull_limit": 10, "sqlite_synchronous": 0}.items():
        sql(made, "UPDATE Settings SET value = ? WHERE key = ?", value, key)

    with closing(DiskStore(made)) as store:
        assert dict(store._connection.execute("SELECT key, value FROM Settings")).items() >= SETTINGS.items()
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert store._cache.eviction_policy == "none"


@pytest.mark.parametrize("cured", [True, False])
def test_a_delete_does_not_shrink_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cured: bool) -> None:
    if not cured:  # it takes effect only if it is the first that is set
        theirs = {"sqlite_auto_vacuum": diskcache.core.DEFAULT_SETTINGS["sqlite_auto_vacuum"]}
        monkeypatch.setattr(disk_module, "SETTINGS", theirs | {k: v for k, v in SETTINGS.items() if k not in theirs})
    with closing(DiskStore(tmp_path)) as store:
        for number in range(50):
            put(store, sized(number, 4_000))
        pages = store._connection.execute("PRAGMA page_count").fetchone()
        store.write(lambda tx: [tx.delete(job(number)) for number in range(50)])

        assert (store._connection.execute("PRAGMA page_count").fetchone() == pages) is cured


def test_vacuum_gives_the_space_back(store: DiskStore) -> None:
    put(store, *(sized(number, 40_000) for number in range(50)))
    store.write(lambda tx: [tx.delete(job(number)) for number in range(49)])
    store.checkpoint()
    before = (store.path / "cache.db").stat().st_size

    store.vacuum()
    assert (store.path / "cache.db").stat().st_size < before / 10
    assert written_bytes(store) == 0
    assert line(store, "a") == [49]


def test_checkpoint_empties_the_log_and_loses_nothing(store: DiskStore) -> None:
    put(store, *(job(number) for number in range(20)))
    assert written_bytes(store) > 0
    store.checkpoint()

    assert written_bytes(store) == 0
    assert len(line(store, "a")) == 20


def test_a_clean_close_leaves_the_database_and_the_locks(made: Path) -> None:
    assert sorted(each.name for each in made.iterdir()) == ["cache.db", "owner.lock", "write.lock"]


def test_a_directory_of_a_newer_format_is_refused_and_not_touched(made: Path) -> None:
    sql(made, "UPDATE Cache SET value = ? WHERE key = ?", b"%d" % (entries.FORMAT + 1), FORMAT_KEY)
    before = files(made)

    for opening in (DiskStore, ReadOnlyStore):
        with pytest.raises(FormatTooNew, match="upgrade rqlab; nothing was changed"):
            opening(made)
    assert files(made) == before


def test_a_diskcache_of_something_else_is_refused_and_not_touched(tmp_path: Path) -> None:
    with closing(diskcache.Cache(str(tmp_path))) as theirs:
        theirs["their"] = "value"
    before = files(tmp_path)

    for opening in (DiskStore, ReadOnlyStore):
        with pytest.raises(StoreCorrupt, match="was not made by rqlab"):
            opening(tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize("content", [b"garbage" * 2_000, b"SQLite format 3\0" + b"\xff" * 5_000])
def test_a_damaged_database_is_called_that_and_not_touched(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache.db").write_bytes(content)

    for opening in (DiskStore, ReadOnlyStore):
        with pytest.raises(StoreCorrupt, match="damaged: restore a backup"):
            opening(tmp_path)
    assert (tmp_path / "cache.db").read_bytes() == content


@pytest.mark.parametrize("left", ["nothing", "an empty database", "a database without tables"])
def test_what_a_power_cut_left_of_a_new_directory_is_opened(tmp_path: Path, left: str) -> None:
    if left != "nothing":
        (tmp_path / "cache.db").touch()
    if left == "a database without tables":
        sql(tmp_path, "PRAGMA journal_mode = wal")

    with closing(DiskStore(tmp_path)) as store:
        put(store, job(1))
    with closing(DiskStore(tmp_path)) as store:
        assert line(store, "a") == [1]


def test_a_process_killed_at_any_write_of_the_first_opening_leaves_a_directory_that_opens(tmp_path: Path) -> None:
    opens = """
import sqlite3
steps = 0
class Cut(sqlite3.Connection):
    def execute(self, *a):
        global steps
        steps += 1
        if steps == int(sys.argv[2]): os.kill(os.getpid(), 9)
        return super().execute(*a)
connect = sqlite3.connect
sqlite3.connect = lambda *a, **k: connect(*a, factory=Cut, **k)
DiskStore(sys.argv[1])
"""
    code = f"import sys, os\nfrom rqlab.storage.disk import *\n{opens}"
    for cut in (1, 5, 12, 14, 20, 40, 60, 75):
        path = tmp_path / str(cut)
        subprocess.run([sys.executable, "-c", code, str(path), str(cut)], timeout=60)

        with closing(DiskStore(path)) as store:
            put(store, job(1))
            assert line(store, "a") == [1]


def test_a_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    for path in (tmp_path / "file", tmp_path / "file" / "q"):
        with pytest.raises(
            StoreError, match=r"cannot make the directory .*: expected .*; found a file. Choose another"
        ):
            DiskStore(path)
    assert (tmp_path / "file").read_text() == "mine"


# A full disk.


def test_a_full_database_refuses_the_write_keeps_the_rest_and_goes_on_when_there_is_room(store: DiskStore) -> None:
    put(store, job(1))
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(StoreFull, match="the disk is full; nothing was changed"):
        put(store, *(sized(number, 4_000) for number in range(10, 30)))
    assert not store._connection.in_transaction
    assert line(store, "a") == [1]
    store._connection.execute("PRAGMA max_page_count = 1000000")
    put(store, job(2))
    assert line(store, "a") == [1, 2]
    assert counted(store) == recounted(store)


COMMIT_FAILS = """
import resource, signal, sqlite3, threading, diskcache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
"""


def test_a_commit_that_fails_leaves_no_transaction_and_loses_nothing(tmp_path: Path) -> None:
    said = run(
        COMMIT_FAILS
        + """
rq = rqlab.open(sys.argv[1])
rq.push("a", "n")
limit((rq.path / "cache.db-wal").stat().st_size)
try: rq.push("a", "n")
except rqlab.StoreError as error: print(type(error).__name__, "nothing was changed" in str(error))
print(rq._store._connection.in_transaction, rq.counts().waiting)
limit(resource.RLIM_INFINITY)
rq.push("a", "n")
print(rq.counts().waiting, len(rq.jobs("a")))
""",
        tmp_path,
    )

    assert said.split() == ["StoreError", "True", "False", "1", "2", "2"]


def deny(connection: sqlite3.Connection, statement: str, times: int) -> None:
    """Let SQLite refuse a COMMIT or a ROLLBACK so many times; the transaction stays open."""
    left = [times]

    def authorize(action: int, what: str | None, *rest: object) -> int:
        if action == sqlite3.SQLITE_TRANSACTION and what == statement and left[0]:
            left[0] -= 1
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    connection.set_authorizer(authorize)


def test_a_commit_that_is_refused_is_rolled_back(store: DiskStore) -> None:
    deny(store._connection, "COMMIT", 1)
    with pytest.raises(StoreError, match="not authorized; nothing was changed"):
        put(store, job(1))

    assert not store._connection.in_transaction
    put(store, job(2))
    assert line(store, "a") == [2]


def test_what_a_refused_statement_left_for_later_is_stored_by_nobody(store: DiskStore) -> None:
    """Neither by the next look, outside of any transaction, nor by the next commit."""
    store._connection.set_authorizer(
        lambda action, *rest: sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_INSERT else sqlite3.SQLITE_OK
    )
    with pytest.raises(StoreError, match="nothing was changed"):
        put(store, job(1))
    store._connection.set_authorizer(None)

    assert store.get(id_of(1)) is None
    put(store, job(2))
    assert line(store, "a") == [2]
    assert counted(store) == recounted(store)


def test_work_sees_what_the_work_before_it_in_the_same_commit_has_changed(store: DiskStore) -> None:
    found = store.write_together(
        [lambda tx: tx.put(job(1)), lambda tx: (tx.get(id_of(1)), tx.scan("ready/", "ready0", 9))]
    )

    assert found == [None, (job(1), [job(1)])]


def test_diskcache_as_it_is_keeps_a_refused_commit_open(tmp_path: Path) -> None:
    """The reason for the rollback of ours: from then on every write of another thread is a Timeout."""
    said: list[str] = []

    def write() -> None:
        try:
            cache.set("c", 1)
        except diskcache.Timeout:
            said.append("Timeout")

    with closing(diskcache.Cache(str(tmp_path), timeout=0.1)) as cache:
        deny(cache._con, "COMMIT", 1)
        with pytest.raises(sqlite3.DatabaseError):
            cache.set("a", 1)
        assert cache._con.in_transaction
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()

    assert said == ["Timeout"]


def test_a_commit_on_a_full_disk_raises_store_full_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    with closing(DiskStore(small_disk / "q")) as store:
        put(store, job(1))
        store.checkpoint()
        filler = fill(small_disk)
        with pytest.raises(StoreFull, match=r"the disk is full; nothing was changed. Free some space"):
            put(store, *(sized(number, 4_000) for number in range(10, 30)))
        assert not store._connection.in_transaction
        assert line(store, "a") == [1]
        filler.unlink()
        put(store, job(2))
    with closing(DiskStore(small_disk / "q")) as store:
        assert line(store, "a") == [1, 2]


@pytest.mark.parametrize("there", [True, False])
def test_opening_on_a_full_disk_says_so(small_disk: Path, there: bool) -> None:
    if there:
        with closing(DiskStore(small_disk / "q")) as store:
            put(store, job(1))
    filler = fill(small_disk)

    with pytest.raises(StoreFull, match="the disk is full"):
        DiskStore(small_disk / "q")
    filler.unlink()
    with closing(DiskStore(small_disk / "q")) as store:
        assert line(store, "a") == ([1] if there else [])


def test_a_full_disk_still_lets_us_look(small_disk: Path) -> None:
    with closing(DiskStore(small_disk / "q")) as store:
        put(store, job(1))
    fill(small_disk)

    with closing(ReadOnlyStore(small_disk / "q")) as view:
        assert line(view, "a") == [1]


def test_a_begin_that_fails_says_who_may_hold_the_file(store: DiskStore) -> None:
    store._connection.execute("PRAGMA busy_timeout = 20")
    with closing(sqlite3.connect(store.path / "cache.db", isolation_level=None)) as theirs:
        theirs.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy, match=r"A program that is not rqlab holds cache.db"):
            put(store, job(1))
        assert not store._connection.in_transaction
        theirs.execute("ROLLBACK")
    put(store, job(2))

    assert line(store, "a") == [2]


def test_a_rollback_that_fails_is_tried_again_and_nothing_of_it_is_seen(store: DiskStore) -> None:
    def half(tx: Any) -> None:
        store._store([("half", None, b"done")])
        raise sqlite3.OperationalError("disk I/O error")

    deny(store._connection, "ROLLBACK", 3)
    for act in (lambda: store.write(half), lambda: store.entry("half")):
        with pytest.raises(StoreError):
            act()
    assert store.entry("half") is None
    put(store, job(1))
    assert line(store, "a") == [1]


# Between processes.


def test_store_busy_after_the_time_that_was_set(tmp_path: Path) -> None:
    holds = "store = DiskStore(sys.argv[1]); store._write_lock.acquire()"
    with another_process(holds, tmp_path) as holder:
        with pytest.raises(StoreBusy, match=r"held write.lock for all of busy_timeout \(0.2 s\)"):
            DiskStore(tmp_path, busy_timeout=0.2)
        kill_nine(holder)
        with closing(DiskStore(tmp_path, busy_timeout=0.2)) as store:
            put(store, job(1))


def test_a_writer_that_waited_in_vain_goes_on_when_the_lock_is_free(tmp_path: Path) -> None:
    with closing(DiskStore(tmp_path, busy_timeout=0.1)) as store:
        with another_process("store = DiskStore(sys.argv[1]); store._write_lock.acquire()", tmp_path):
            with pytest.raises(StoreBusy):
                put(store, job(1))
            assert line(store, "a") == [], "reading needs no lock"
        put(store, job(2))

        assert line(store, "a") == [2]


def test_closing_gets_away_even_while_another_process_keeps_the_lock(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, busy_timeout=0.1)
    put(store, job(1))
    with another_process("store = DiskStore(sys.argv[1]); store._write_lock.acquire()", tmp_path):
        store.close()
    with closing(DiskStore(tmp_path)) as store:
        assert line(store, "a") == [1]


def owner(path: Path, kind: str) -> DiskStore:
    return DiskStore(path, durability=kind, exclusive=kind == "buffered")


HOLD = "store = DiskStore(sys.argv[1], durability=sys.argv[2], exclusive=sys.argv[2] == 'buffered')"


@pytest.mark.parametrize(
    ("held", "wanted"), [("durable", "buffered"), ("buffered", "durable"), ("buffered", "buffered")]
)
def test_an_owner_admits_nobody_who_must_be_alone(tmp_path: Path, held: str, wanted: str) -> None:
    with another_process(HOLD, tmp_path, held) as holder:
        with pytest.raises(StoreLocked, match=f"as '{wanted}': process {holder.pid} has it open as '{held}'"):
            owner(tmp_path, wanted)
        with closing(ReadOnlyStore(tmp_path)) as view:
            assert line(view, "a") == []
        kill_nine(holder)

        owner(tmp_path, wanted).close()


def test_durable_stores_share_a_directory(tmp_path: Path) -> None:
    with (
        another_process(HOLD, tmp_path, "durable"),
        closing(DiskStore(tmp_path)),
        closing(DiskStore(tmp_path)) as store,
    ):
        put(store, job(1))
        assert line(store, "a") == [1]


def test_this_very_process_is_named_as_the_owner(tmp_path: Path) -> None:
    with closing(owner(tmp_path, "buffered")):
        with pytest.raises(StoreLocked, match=rf"this very process \(pid {os.getpid()}\) has it open as 'buffered'"):
            owner(tmp_path, "buffered")
    owner(tmp_path, "durable").close()


def test_the_holder_that_is_named_is_one_that_is_there(tmp_path: Path) -> None:
    with another_process(HOLD, tmp_path, "durable") as first:
        with another_process(HOLD, tmp_path, "durable"):
            pass  # the newest to have written its name is gone
        with pytest.raises(StoreLocked, match=f"process {first.pid} has it open"):
            owner(tmp_path, "buffered")


def test_a_store_that_was_dropped_without_a_close_locks_nobody_out(tmp_path: Path) -> None:
    store = owner(tmp_path, "buffered")
    with pytest.warns(ResourceWarning):
        del store

    owner(tmp_path, "buffered").close()


MOUNTS = """/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/local\\040disk ext4 rw 0 0
host /mnt/s fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind", "refused"),
    [
        ("/srv/q", "ext4", False),
        ("/home/ada/q", "nfs4", True),
        ("/homely/q", "ext4", False),
        ("/home/local disk/q", "ext4", False),
        ("/mnt/s", "fuse.sshfs", True),
    ],
)
def test_network_file_systems_are_known_by_their_mounts(tmp_path: Path, path: str, kind: str, refused: bool) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)

    assert file_system(Path(path), tmp_path / "mounts") == kind
    assert (kind in rqlab.storage.locks.NETWORK_FILE_SYSTEMS) is refused
    assert file_system(Path(path), tmp_path / "no such file") is None
    assert network_file_system(tmp_path) is None


def test_a_network_file_system_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "network_file_system", lambda path: "nfs4")

    with pytest.raises(StoreError, match=r"network file system \(nfs4\).*allow_network_filesystem=True"):
        DiskStore(tmp_path / "q")
    assert not (tmp_path / "q").exists()
    DiskStore(tmp_path / "q", allow_network=True).close()


# Forks.


def forked(child: Callable[[], None]) -> int:
    """Run `child` in a fork that ends as Python ends, and give its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_fork_may_not_use_its_parents_store(store: DiskStore, made: Path) -> None:
    view = ReadOnlyStore(made)
    store._lead.acquire()  # a thread of the parent was at work as it forked: in the child nobody will let go
    view_module._looking.acquire()

    def child() -> None:
        signal.alarm(20)
        for each in (store, view):
            with pytest.raises(StoreError, match=f"opened by process {os.getppid()}, this is its fork"):
                each.get(id_of(1))
        with pytest.raises(StoreError, match=r"Start the child by spawn .* and open the directory there"):
            put(store, job(1))
        store.close()
        view.close()
        for opened in (DiskStore, ReadOnlyStore):  # SQLite would believe that it holds its parent's locks
            with pytest.raises(StoreError, match="is the fork of one that had it open"):
                opened(store.path)

    code = forked(child)
    view_module._looking.release()
    store._lead.release()
    assert code == 0
    put(store, job(2))
    assert line(store, "a") == [2]
    view.close()


FORKS = """
store = DiskStore(sys.argv[1], durability=sys.argv[2], exclusive=sys.argv[2] == "buffered")
store.write(lambda tx: tx.put_entry("k", b"1"))
if sys.argv[3] == "parent stays":
    if os.fork() == 0: sys.exit()  # the interpreter ends, and takes all its objects apart
    os.wait()
else:
    parent = os.getpid()
    if os.fork() != 0: os.kill(parent, 9)
    while os.getppid() == parent: pass
    # the child goes on to print, and to wait
"""


@pytest.mark.parametrize("kind", ["durable", "buffered"])
def test_a_childs_exit_does_not_drop_its_parents_locks(tmp_path: Path, kind: str) -> None:
    with another_process(FORKS, tmp_path, kind, "parent stays") as parent:
        with pytest.raises(StoreLocked, match=f"process {parent.pid} has it open as '{kind}'"):
            owner(tmp_path, "buffered")
        assert is_locked_by_sqlite(tmp_path)


@pytest.mark.parametrize("kind", ["durable", "buffered"])
def test_a_childs_life_does_not_keep_its_parents_locks(tmp_path: Path, kind: str) -> None:
    with another_process(FORKS, tmp_path, kind, "parent goes"):
        with closing(owner(tmp_path, "buffered")) as store:
            put(store, job(1))
            assert store.entry("k") == b"1"


SHARED_FIRST = 0x40000000 + 2  # SQLite's lock bytes, see "os_unix.c"; a connection that has read holds these


def is_locked_by_sqlite(directory: Path) -> bool:
    """Whether another process than the one that asks has the database open, as SQLite sees it."""
    asks = f"""
import fcntl, struct
with open(sys.argv[1] + "/cache.db", "rb+") as file:
    wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, {SHARED_FIRST}, 510, 0)
    found, *_ = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, wanted))
    print(found != fcntl.F_UNLCK)
"""
    return run(asks, directory).strip() == "True"


def test_nothing_we_do_drops_the_locks_that_sqlite_holds(store: DiskStore, tmp_path: Path) -> None:
    put(store, job(1))
    with closing(ReadOnlyStore(store.path)) as view:
        line(view, "a")
        with closing(DiskStore(store.path)) as second:
            line(second, "a")
    store.backup(tmp_path / "copy")
    store.vacuum()

    assert is_locked_by_sqlite(store.path)
    with open(store.path / "cache.db", "rb"):
        pass
    assert not is_locked_by_sqlite(store.path), "opening the file by anything but SQLite drops them: nobody here may"
    line(store, "a")


def test_a_view_made_before_its_writer_does_not_drop_the_writers_locks(made: Path) -> None:
    with closing(ReadOnlyStore(made)) as view:
        line(view, "a")
        with closing(DiskStore(made)) as store:
            put(store, job(20))
            line(view, "a")
            view.close()

            assert is_locked_by_sqlite(made)


# Looking only.


def states_of_a_directory(tmp_path: Path, name: str, made: Path, killed: Path) -> Path:
    return {"cleanly closed": made, "its writer killed": killed}[name]


@pytest.mark.parametrize("which", ["cleanly closed", "its writer killed"])
def test_looking_changes_nothing(tmp_path: Path, made: Path, killed: Path, which: str) -> None:
    path = states_of_a_directory(tmp_path, which, made, killed)
    before, of_directory = files(path), path.stat().st_mtime_ns
    with closing(ReadOnlyStore(path)) as view:
        assert len(line(view, "a")) == 10
        assert view.counters("a")["waiting"] == 10
        view.changed()
        view.complaints()
        with view.at_one_instant():
            assert view.queues() == ["a"]
            view.condition()

    assert files(path) == before
    assert path.stat().st_mtime_ns == of_directory


def test_looking_beside_a_writer_changes_nothing_and_sees_what_is_new(tmp_path: Path) -> None:
    pushes = WRITER + "\nfor _ in iter(lambda: (print(flush=True), sys.stdin.readline())[1], ''): rq.push('a', 'n')"
    with another_process(pushes, tmp_path) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        before = files(tmp_path)
        with closing(ReadOnlyStore(tmp_path)) as view:
            assert len(line(view, "a")) == 1
            version = view.changed()
            assert files(tmp_path) == before

            writer.stdin.write("\n")
            writer.stdin.flush()
            writer.stdout.readline()
            before = files(tmp_path)
            assert view.changed() != version
            assert len(line(view, "a")) == 2
        assert files(tmp_path) == before


@pytest.mark.parametrize("which", ["cleanly closed", "its writer killed"])
def test_a_view_sees_the_commits_of_a_writer_that_comes_later(
    tmp_path: Path, made: Path, killed: Path, which: str
) -> None:
    path = states_of_a_directory(tmp_path, which, made, killed)
    with closing(ReadOnlyStore(path)) as view:
        versions = [view.changed()]
        assert len(line(view, "a")) == 10
        with another_process(WRITER, path) as writer:
            assert len(line(view, "a")) == 11
            versions.append(view.changed())
            kill_nine(writer)
        run(WRITER + "; rq.close()", path)
        assert len(line(view, "a")) == 12
        versions.append(view.changed())

    assert len(set(versions)) == 3


def test_a_view_sees_a_whole_life_of_a_writer_between_two_looks(made: Path) -> None:
    with closing(ReadOnlyStore(made)) as view:
        version = view.changed()
        run(WRITER + "; rq.close()", made)

        assert view.changed() != version
        assert len(line(view, "a")) == 11


@pytest.mark.parametrize("which", ["cleanly closed", "its writer killed"])
def test_a_view_and_a_writer_may_share_a_process_whoever_comes_first(
    tmp_path: Path, made: Path, killed: Path, which: str
) -> None:
    path = states_of_a_directory(tmp_path, which, made, killed)
    with closing(ReadOnlyStore(path)) as view:
        assert len(line(view, "a")) == 10
        with closing(DiskStore(path)) as store:
            put(store, job(20))
            assert len(line(view, "a")) == 11
            put(store, job(21))
        assert len(line(view, "a")) == 12
        with closing(DiskStore(path)) as store:
            put(store, job(22))
            assert len(line(view, "a")) == 13


def test_views_and_writers_of_many_threads_do_not_wait_for_each_other_for_ever(made: Path) -> None:
    errors: list[Exception] = []

    def look() -> None:
        try:
            for _ in range(15):
                with closing(ReadOnlyStore(made)) as view:
                    assert len(line(view, "a")) >= 10
        except Exception as error:  # noqa: BLE001  # asserted below, in the thread that tests
            errors.append(error)

    def open_and_close() -> None:
        try:
            for _ in range(15):
                DiskStore(made).close()
        except Exception as error:  # noqa: BLE001  # asserted below, in the thread that tests
            errors.append(error)

    threads = [threading.Thread(target=each, daemon=True) for each in (look, open_and_close) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert not any(thread.is_alive() for thread in threads)
    assert errors == []


NOBODY = 65534
AS_NOBODY = "if os.getuid() == 0: os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))"


@pytest.mark.parametrize("which", ["cleanly closed", "its writer killed"])
def test_a_directory_that_nobody_may_write_can_be_looked_at(
    tmp_path: Path, made: Path, killed: Path, which: str, quick_path: Path
) -> None:
    # Not below tmp_path: another pytest that starts closes what holds it to others.
    path = shutil.copytree(states_of_a_directory(tmp_path, which, made, killed), quick_path / "looked-at")
    before = {name: content for name, (_, _, content) in files(path).items()}
    if os.getuid() == 0:  # root may write everything: look as somebody else
        for each in (path, *path.iterdir()):
            os.chown(each, NOBODY, NOBODY)
        quick_path.chmod(0o711)
    path.chmod(0o500)
    looks = f"""
{AS_NOBODY}
try: open(sys.argv[1] + "/mine", "w"); print("may write")
except PermissionError: pass
with rqlab.open(sys.argv[1], read_only=True) as rq: print(rq.counts().waiting)
"""

    assert run(looks, path, NOBODY).split() == ["10"]
    path.chmod(0o700)
    assert {name: content for name, (_, _, content) in files(path).items()} == before


def test_a_directory_that_may_not_be_entered_is_refused_in_our_words(quick_path: Path) -> None:
    path = quick_path / "closed"
    DiskStore(path).close()
    quick_path.chmod(0o711)
    path.chmod(0o000)
    tries = f"""
{AS_NOBODY}
try: rqlab.open(sys.argv[1], read_only=True)
except rqlab.StoreError as error: print(error)
"""

    assert run(tries, path, NOBODY).endswith(f"closed: Permission denied. {NOT_ALLOWED}\n")
    path.chmod(0o700)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_an_error_of_the_system_says_what_to_do(number: int) -> None:
    said = str(file_error("cannot open x", OSError(number, os.strerror(number))))

    assert said.startswith("cannot open x: ")
    assert said.split(". ")[-1].startswith(("Choose", "The disk", "Free some space"))


def test_a_log_that_lost_its_shared_memory_is_not_overlooked(killed: Path) -> None:
    (killed / "cache.db-shm").unlink()

    with pytest.raises(StoreError, match="open it once without read_only=True"):
        ReadOnlyStore(killed)
    assert not (killed / "cache.db-shm").exists()
    DiskStore(killed).close()
    with closing(ReadOnlyStore(killed)) as view:
        assert len(line(view, "a")) == 10


def test_a_view_goes_on_beside_a_writer_that_was_stopped_in_the_middle(tmp_path: Path) -> None:
    with another_process(WRITER + "; rq._store._write_lock.acquire()", tmp_path):
        with closing(ReadOnlyStore(tmp_path, busy_timeout=0.1)) as view:
            assert len(line(view, "a")) == 1


def test_a_view_refuses_to_change_anything(made: Path) -> None:
    with closing(ReadOnlyStore(made)) as view:
        with pytest.raises(StoreError, match="was opened with read_only=True"):
            view.write(lambda tx: None)
        with pytest.raises(StoreError, match="attempt to write a readonly database"):
            view._read(lambda raw: raw.run("DELETE FROM Cache"))


def test_looking_creates_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no" / "such"):
        with pytest.raises(StoreError, match="expected a directory that rqlab has made; found"):
            ReadOnlyStore(path)
    assert list(tmp_path.iterdir()) == []


def test_a_closed_view_refuses_every_look(made: Path) -> None:
    view = ReadOnlyStore(made)
    view.close()
    view.close()

    for look in (view.queues, view.changed, view.flush, view.complaints):
        with pytest.raises(StoreError, match="closed: open it again"):
            look()


def test_a_look_at_one_instant_sees_no_later_commit(store: DiskStore) -> None:
    put(store, job(1))
    with closing(ReadOnlyStore(store.path)) as view:
        with view.at_one_instant():
            assert len(line(view, "a")) == 1
            put(store, job(2))
            assert len(line(view, "a")) == 1
        assert len(line(view, "a")) == 2


def test_a_look_at_one_instant_at_a_still_directory_holds_writers_off(made: Path) -> None:
    with closing(ReadOnlyStore(made)) as view:
        with view.at_one_instant():
            assert len(line(view, "a")) == 10
            said = run("try: rqlab.open(sys.argv[1], busy_timeout=0.1)\nexcept rqlab.StoreBusy: print('busy')", made)
            assert said.strip() == "busy"
        run(WRITER, made)
        assert len(line(view, "a")) == 11


# Copies.


@pytest.mark.parametrize("kind", [DiskStore, ReadOnlyStore])
def test_a_backup_under_load_is_consistent(tmp_path: Path, kind: type[DiskStore | ReadOnlyStore]) -> None:
    loads = """
import threading
rq = rqlab.open(sys.argv[1])
def load(queue):
    while True:
        rq.push_many(queue, [{"name": "n", "data": "x" * 6_000}, {"name": "n"}])
        for job in rq.pull(queue, 1): rq.ack(job)
for queue in ("a", "b"): threading.Thread(target=load, args=(queue,), daemon=True).start()
while rq.counts().completed < 50: pass
"""
    with another_process(loads, tmp_path / "q"), closing(kind(tmp_path / "q")) as store:
        for copy in range(3):
            store.backup(tmp_path / f"copy-{copy}")
    for copy in range(3):
        with closing(ReadOnlyStore(tmp_path / f"copy-{copy}")) as view:
            assert view.complaints() == []
        with closing(DiskStore(tmp_path / f"copy-{copy}")) as store:
            assert counted(store) == recounted(store)
            assert store.counters("a")["pushed_total"] % 2 == 0, "pushes are whole"
            assert store.counters("a")["completed"] > 0
            for found in store.scan("ready/a/", "ready/a/" + LAST, 1_000):
                store.load(found)
            put(store, job(1))


def test_a_view_backs_up_a_still_directory_and_changes_nothing_in_it(store: DiskStore, tmp_path: Path) -> None:
    put(store, job(1), sized(2, 60_000))
    store.close()
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in store.path.iterdir()}

    with closing(ReadOnlyStore(store.path)) as view:
        view.backup(tmp_path / "copy")
        with pytest.raises(StoreError, match="expected an empty directory; found"):
            view.backup(store.path)

    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in store.path.iterdir()} == before
    with closing(DiskStore(tmp_path / "copy")) as copy:
        assert line(copy, "a") == [1, 2]


def test_a_backup_is_refused_where_there_are_files(store: DiskStore, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()

    with pytest.raises(StoreError, match="expected an empty directory; found"):
        store.backup(tmp_path / "full")
    with pytest.raises(StoreError, match="expected an empty directory; found"):
        store.backup(store.path)
    with pytest.raises(StoreError, match="cannot back up to"):
        store.backup(tmp_path / "full" / "mine")
    assert [each.name for each in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_backup_that_was_killed_can_be_made_again(store: DiskStore, tmp_path: Path) -> None:
    put(store, job(1))
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "cache.db-unfinished").write_bytes(b"half" * 1_000)
    (tmp_path / "copy" / "cache.db-unfinished-journal").write_bytes(b"hot" * 1_000)

    store.backup(tmp_path / "copy")
    assert [each.name for each in (tmp_path / "copy").iterdir()] == ["cache.db"]
    with closing(ReadOnlyStore(tmp_path / "copy")) as view:
        assert line(view, "a") == [1]


@pytest.mark.parametrize("kind", [DiskStore, ReadOnlyStore])
def test_a_backup_that_failed_can_be_made_again(
    store: DiskStore, small_disk: Path, kind: type[DiskStore | ReadOnlyStore]
) -> None:
    put(store, *(sized(number, 60_000) for number in range(5)))
    filler = fill(small_disk)

    with closing(kind(store.path)) as source:
        with pytest.raises(StoreFull, match=f"cannot back up to {small_disk / 'copy'}"):
            source.backup(small_disk / "copy")
        filler.unlink()
        source.backup(small_disk / "copy")
    with closing(ReadOnlyStore(small_disk / "copy")) as view:
        assert len(line(view, "a")) == 5


def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    pushes = "rq = rqlab.open(sys.argv[1])\nfor n in range(10**9): print(rq.push('a', 'n'), flush=True)"
    code = f"import sys, rqlab\n{pushes}"
    acknowledged: list[str] = []
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            acknowledged += [process.stdout.readline().strip() for _ in range(30)]
            kill_nine(process)
            acknowledged += [said for said in process.stdout.read().splitlines() if len(said) == 36]

    with closing(DiskStore(tmp_path)) as store:
        assert all(store.get(job_id) is not None for job_id in acknowledged)
        assert counted(store) == recounted(store)


def test_a_directory_that_was_removed_takes_no_more_jobs(tmp_path: Path) -> None:
    with rqlab.open(tmp_path / "jobs") as rq:
        rq.push("q", "n")
        shutil.rmtree(tmp_path / "jobs")

        with pytest.raises(StoreError, match="removed or replaced"):
            rq.push("q", "n")
        (tmp_path / "jobs").mkdir()
        with pytest.raises(StoreError, match="removed or replaced"):
            rq.push("q", "n")


def test_a_program_that_changes_its_directory_keeps_its_queues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with rqlab.open("jobs") as rq:
        monkeypatch.chdir("/")
        job_id = rq.push("q", "n")
        rq.backup(tmp_path / "copy")

    with rqlab.open(tmp_path / "copy", read_only=True) as copy:
        assert copy.get(job_id).name == "n"


def test_nobody_else_may_read_the_file(tmp_path: Path) -> None:
    with rqlab.open(tmp_path / "jobs") as rq:
        rq.push("q", "n")

        modes = {path.name: path.stat().st_mode & 0o077 for path in (tmp_path / "jobs").iterdir()}

    assert len(modes) >= 4
    assert set(modes.values()) == {0}


def test_a_path_that_looks_like_a_variable_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "elsewhere"))

    with rqlab.open(tmp_path / "$ELSEWHERE" / "~") as rq:
        rq.push("q", "n")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["$ELSEWHERE"]


def test_a_fork_may_open_what_its_parent_had_closed(tmp_path: Path) -> None:
    DiskStore(tmp_path).close()

    def child() -> None:
        with closing(DiskStore(tmp_path)) as own:
            put(own, job(2))

    assert forked(child) == 0
    with closing(DiskStore(tmp_path)) as store:
        assert line(store, "a") == [2]


def test_what_a_purge_frees_is_not_written_again(store: DiskStore) -> None:
    assert store._connection.execute("PRAGMA secure_delete").fetchone() == (0,)
