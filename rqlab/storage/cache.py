"""diskcache as rqlab uses it: its settings, and what it may put into a file. The only file that imports diskcache.

Only bytes and text, inside SQLite: nothing is ever unpickled, nothing lives in a file that nobody fsyncs.
"""

import os
import sqlite3
from typing import Any

import diskcache
from diskcache import Timeout as Timeout  # what it says of any BEGIN that fails
from diskcache.core import DEFAULT_SETTINGS, METADATA, MODE_RAW

from rqlab.errors import StoreCorrupt

SETTINGS = {
    "eviction_policy": "none",  # diskcache evicts by default; a queue never forgets
    "cull_limit": 0,  # and looks for something to evict at every write
    "size_limit": 2**62,
    "statistics": 0,
    "tag_index": 1,  # the one index that answers every question about order
    "disk_min_file_size": 2**40,  # values of 32 KiB and more would go to files that are never fsynced
    "sqlite_synchronous": 2,  # FULL: an fsync a commit; diskcache's default is NORMAL
    "sqlite_journal_mode": "wal",
    "sqlite_auto_vacuum": 0,  # FULL costs at every delete; `vacuum()` does it when asked
    "sqlite_mmap_size": 0,
    "sqlite_cache_size": 8192,  # pages
}
FOREIGN_WRITER_SECONDS = 1.0  # SQLite's own wait; only a program that is not rqlab can hold its lock
KNOWN_SETTINGS = DEFAULT_SETTINGS.keys() | METADATA.keys()


class Bytes(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """Keeps text keys and bytes values, and refuses to unpickle: a hostile file must not run code."""

    def put(self, key: str) -> tuple[str, bool]:
        assert isinstance(key, str), "keys are text"
        return key, True

    def get(self, key: Any, raw: bool) -> str:
        if not raw or not isinstance(key, str):
            raise StoreCorrupt(f"expected text as the key of every entry; found {type(key).__name__}, raw={raw}")
        return key

    def store(self, value: bytes, read: bool, key: Any = None) -> tuple[int, int, None, bytes]:
        assert isinstance(value, bytes), "values are bytes"
        return 0, MODE_RAW, None, value

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> bytes:
        return checked(mode, value)


class Cache(diskcache.Cache):  # type: ignore[misc]  # diskcache has no types
    """diskcache on the one connection that its store opened; diskcache itself would open one a thread."""

    def __init__(self, directory: str, connection: sqlite3.Connection) -> None:
        self._connection = connection
        if os.path.expandvars(directory) != directory:  # it would make that directory; it needs none from us
            directory = "/"
        super().__init__(directory, timeout=FOREIGN_WRITER_SECONDS, disk=Bytes, **SETTINGS)

    @property
    def _con(self) -> sqlite3.Connection:
        return self._connection


def checked(mode: Any, value: Any) -> bytes:
    if mode != MODE_RAW or not isinstance(value, bytes):
        raise StoreCorrupt(
            f"expected bytes in cache.db; found {type(value).__name__} in storage mode {mode}. Something other than "
            "rqlab wrote it; it was not unpickled"
        )
    return value
