"""Who is compared: rqlab in each of its modes, other queues in a file or directory, and SQLite itself.

One class a library, with the same few verbs, which call the library as its documentation shows; one row a setting.
Libraries are imported when their queue is opened, so that one which is not installed costs its rows and nothing else.
"""

import importlib.metadata
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import rqlab

QUEUE = "compared"
TIDY_EVERY = 500  # cycles; libraries that keep finished jobs want to be told to forget them
SYNCHRONOUS = ("OFF", "NORMAL", "FULL", "EXTRA")  # by the number that SQLite gives


class Adapter:
    """A queue that is open. What it has not is said by its class: a queue that cannot acknowledge has no `ack`."""

    def push(self, number: int) -> None:
        """Put one job in; what returns is acknowledged."""
        raise NotImplementedError

    def take(self) -> Any:
        """The next job, or None."""
        raise NotImplementedError

    def number_of(self, taken: Any) -> int:
        """Which job was taken."""
        return int(taken["number"])

    def jobs(self) -> list[int]:
        """Every job that is there, taken or not."""
        raise NotImplementedError

    def connection(self) -> sqlite3.Connection | None:
        """The one that pushes; None if there is none."""
        return None

    def for_thread(self) -> "Adapter":
        """What one more thread of this process uses: this very object, unless the library wants one a thread."""
        return self

    def run(self, count: int) -> None:
        """Run so many jobs as the library's own worker does; where it has none, take and acknowledge each."""
        for _ in range(count):
            taken = self.take()
            if isinstance(self, Acknowledging):
                self.ack(taken)

    def recover(self) -> None:
        """Whatever the library offers to bring back what a dead worker had taken."""

    def flush(self) -> None:
        """Wait until what was pushed and taken is safe, where the library has a call for it."""

    def tidy(self) -> None:
        """Forget finished jobs, where the library has a call for it."""

    def close(self) -> None:
        """Close it as a program does that ends well."""


class Acknowledging(Adapter):
    """A queue that keeps a job until it is told that the job is done."""

    def ack(self, taken: Any) -> None:
        """The job is done."""
        raise NotImplementedError


def data(number: int) -> dict[str, object]:
    """What each job carries: as much as a small job has."""
    return {"number": number, "to": "ada@example.org", "subject": "what a queue keeps", "body": "x" * 100}


class RQLab(Acknowledging):
    """Ours."""

    def __init__(self, directory: Path, mode: str) -> None:
        if mode == "memory":
            self._rq = rqlab.memory(stall_timeout=0.5)
        else:
            self._rq = rqlab.open(directory / "jobs", durability=mode, stall_timeout=0.5)

    def push(self, number: int) -> None:
        self._rq.push(QUEUE, "send", data(number), backoff_delay=0.1)

    def take(self) -> rqlab.Job | None:
        return next(iter(self._rq.pull(QUEUE)), None)

    def number_of(self, taken: rqlab.Job) -> int:
        return int(taken.data["number"])

    def ack(self, taken: rqlab.Job) -> None:
        self._rq.ack(taken)

    def run(self, count: int) -> None:
        ran = self._rq.drain(QUEUE, lambda job: None, limit=count)
        assert ran == {"completed": count}, ran

    def jobs(self) -> list[int]:
        return [job.data["number"] for job in self._rq.jobs(QUEUE, limit=1_000_000)]

    def connection(self) -> sqlite3.Connection | None:
        return _connection_in(self._rq._store)

    def recover(self) -> None:
        self._rq.tick()

    def flush(self) -> None:
        self._rq.flush()

    def close(self) -> None:
        self._rq.close()


class Huey(Adapter):
    """https://huey.readthedocs.io: to take a job is to delete it."""

    def __init__(self, directory: Path, **options: object) -> None:
        from huey import SqliteHuey

        self._huey = SqliteHuey(QUEUE, filename=str(directory / "huey.db"), **options)
        self._push = self._huey.task(name="send")(_no_op)

    def push(self, number: int) -> None:
        self._push(**data(number))

    def take(self) -> Any:
        return self._huey.dequeue()

    def number_of(self, taken: Any) -> int:
        return int(taken.kwargs["number"])

    def run(self, count: int) -> None:
        for _ in range(count):
            self._huey.execute(self._huey.dequeue())

    def jobs(self) -> list[int]:
        return [self.number_of(each) for each in self._huey.pending()]

    def connection(self) -> sqlite3.Connection:
        return self._huey.storage.conn

    def close(self) -> None:
        self._huey.storage.close()


class PersistQueue(Acknowledging):
    """https://github.com/peter-wangxu/persist-queue: pickles; what was taken is ready again when it is opened anew."""

    def __init__(self, directory: Path) -> None:
        from persistqueue import SQLiteAckQueue

        self._queue = SQLiteAckQueue(str(directory / "persist-queue"), multithreading=True)

    def push(self, number: int) -> None:
        self._queue.put(data(number))

    def take(self) -> Any:
        from persistqueue import Empty

        try:
            return self._queue.get(block=False, raw=True)
        except Empty:
            return None

    def number_of(self, taken: Any) -> int:
        return int(taken["data"]["number"])

    def ack(self, taken: Any) -> None:
        self._queue.ack(id=taken["pqid"])

    def jobs(self) -> list[int]:
        return [self.number_of(each) for each in self._queue.queue()]

    def connection(self) -> sqlite3.Connection:
        return self._queue._putter

    def tidy(self) -> None:
        self._queue.clear_acked_data(max_delete=TIDY_EVERY, keep_latest=0)

    def close(self) -> None:
        self._queue.close()


class LiteQueue(Acknowledging):
    """https://github.com/litements/litequeue: a job is a text; one that was taken stays locked until somebody says."""

    def __init__(self, directory: Path, synchronous: str | None = None) -> None:
        from litequeue import LiteQueue as Library

        self._again = partial(LiteQueue, directory, synchronous)
        self._queue = Library(directory / "litequeue.db")
        if synchronous:
            self._queue.conn.execute(f"PRAGMA synchronous = {synchronous}")

    def for_thread(self) -> "LiteQueue":
        return self._again()  # to pop is a transaction of its connection

    def push(self, number: int) -> None:
        self._queue.put(json.dumps(data(number)))

    def take(self) -> Any:
        return self._queue.pop()

    def number_of(self, taken: Any) -> int:
        return int(json.loads(taken.data)["number"])

    def ack(self, taken: Any) -> None:
        self._queue.done(taken.message_id)

    def jobs(self) -> list[int]:
        rows = self._queue.conn.execute(f"SELECT data FROM {self._queue.table}").fetchall()
        return [int(json.loads(row["data"])["number"]) for row in rows]

    def connection(self) -> sqlite3.Connection:
        return self._queue.conn

    def tidy(self) -> None:
        self._queue.prune()

    def close(self) -> None:
        self._queue.close()


class DiskCache(Adapter):
    """https://grantjenks.com/docs/diskcache: push and pull of a cache, without what rqlab builds on it."""

    def __init__(self, directory: Path, bytes_each: int = 0, **settings: object) -> None:
        from diskcache import Cache

        self._cache = Cache(directory / "diskcache", **settings)
        self._filling = {"filling": "x" * bytes_each} if bytes_each else {}

    def push(self, number: int) -> None:
        self._cache.push(data(number) | self._filling, retry=True)

    def take(self) -> Any:
        key, value = self._cache.pull(retry=True)
        return None if key is None else value

    def jobs(self) -> list[int]:
        found = []
        for key in self._cache.iterkeys():
            try:
                found.append(self.number_of(self._cache[key]))
            except Exception:  # noqa: BLE001  # its side file is torn or gone: pickle raises anything
                continue
        return found

    def connection(self) -> sqlite3.Connection:
        return self._cache._con

    def close(self) -> None:
        self._cache.close()


class BareSQLite(Acknowledging):
    """A table, three statements and nothing else: what the disk and SQLite cost everybody."""

    def __init__(self, directory: Path, synchronous: str) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            directory / "bare.db", isolation_level=None, check_same_thread=False, timeout=60
        )
        self._connection.execute("PRAGMA journal_mode = wal").fetchall()
        self._connection.execute(f"PRAGMA synchronous = {synchronous}")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS queue (id INTEGER PRIMARY KEY, taken INTEGER NOT NULL DEFAULT 0, data TEXT)"
        )

    def push(self, number: int) -> None:
        with self._lock:
            self._connection.execute("INSERT INTO queue (data) VALUES (?)", (json.dumps(data(number)),))

    def take(self) -> Any:
        with self._lock:
            return self._connection.execute(
                "UPDATE queue SET taken = 1 WHERE id = (SELECT min(id) FROM queue WHERE taken = 0) RETURNING id, data"
            ).fetchone()

    def number_of(self, taken: Any) -> int:
        return int(json.loads(taken[1])["number"])

    def ack(self, taken: Any) -> None:
        with self._lock:
            self._connection.execute("DELETE FROM queue WHERE id = ?", (taken[0],))

    def jobs(self) -> list[int]:
        return [self.number_of(row) for row in self._connection.execute("SELECT id, data FROM queue")]

    def connection(self) -> sqlite3.Connection:
        return self._connection

    def close(self) -> None:
        self._connection.close()


class Contestant(NamedTuple):
    """A row of the comparison: a library in one setting."""

    name: str
    setting: str  #: what was changed from how it ships
    distribution: str  #: that pip installs; empty for what comes with Python
    open: Callable[[Path], Adapter]
    many_processes: bool = True

    @property
    def title(self) -> str:
        return f"{self.name}, {self.setting}"

    @property
    def is_installed(self) -> bool:
        return self.version is not None

    @property
    def version(self) -> str | None:
        """None if it is not installed."""
        if not self.distribution:
            return sqlite3.sqlite_version
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None


SHIPPED = "as shipped"


def contestants() -> Iterator[Contestant]:
    """Every row, in the order of the table; the first is the yardstick: the commits that this disk and SQLite give."""
    yield Contestant("SQLite itself", "FULL", "", partial(BareSQLite, synchronous="FULL"))
    yield Contestant("SQLite itself", "NORMAL", "", partial(BareSQLite, synchronous="NORMAL"))
    for mode, row in rqlab.MODES.items():
        yield Contestant("rqlab", mode, "rqlab", partial(RQLab, mode=mode), many_processes=row.processes == "many")
    yield Contestant("huey SqliteHuey", SHIPPED, "huey", Huey)
    yield Contestant("huey SqliteHuey", "fsync=True", "huey", partial(Huey, fsync=True))
    yield Contestant("huey SqliteHuey", "fsync=False", "huey", partial(Huey, fsync=False))
    yield Contestant("persist-queue SQLiteAckQueue", SHIPPED, "persist-queue", PersistQueue)
    yield Contestant("litequeue", SHIPPED, "litequeue", LiteQueue)
    yield Contestant("litequeue", "synchronous = FULL", "litequeue", partial(LiteQueue, synchronous="FULL"))
    yield Contestant("diskcache push/pull", SHIPPED, "diskcache", DiskCache)
    yield Contestant(
        "diskcache push/pull", "sqlite_synchronous=2", "diskcache", partial(DiskCache, sqlite_synchronous=2)
    )


#: Audited, and not timed: values of this size go into files beside the table.
LARGE = Contestant(
    "diskcache push/pull",
    "sqlite_synchronous=2, 40 kB each",
    "diskcache",
    partial(DiskCache, sqlite_synchronous=2, bytes_each=40_000),
)


def settings_of(adapter: Adapter) -> str:
    """Journal and synchronous, asked of the connection that pushes: documentation and defaults may say otherwise."""
    connection = adapter.connection()
    if connection is None:
        return "no SQLite"
    (journal,) = connection.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
    return f"{journal}, {SYNCHRONOUS[synchronous]}"


def _connection_in(store: object, depth: int = 2) -> sqlite3.Connection | None:
    """The connection that one of our stores keeps, in itself or in a store that it stands before."""
    for value in vars(store).values() if hasattr(store, "__dict__") else ():
        if isinstance(value, sqlite3.Connection):
            return value
    for value in vars(store).values() if hasattr(store, "__dict__") and depth else ():
        if type(value).__module__.startswith("rqlab.") and (found := _connection_in(value, depth - 1)):
            return found
    return None


def _no_op(**data: object) -> None:
    """What a job comes to."""
