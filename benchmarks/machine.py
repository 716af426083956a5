"""Where a figure was measured: without that it says nothing."""

import os
import platform
import sqlite3
import statistics
import time
import timeit
from pathlib import Path

CALLS = 20_000


def machine(directory: Path) -> str:
    """The system, and two yardsticks: what an fsync costs on the disk under a directory, and a call in Python.

    Shared machines differ by half in the second, and so do all figures that no disk limits.
    """
    started, path = [], directory / "fsync"
    with path.open("wb") as file:
        for _ in range(50):
            before = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            started.append(time.perf_counter() - before)
    path.unlink()
    call = statistics.median(timeit.repeat(_nothing, number=CALLS, repeat=15)) / CALLS
    return (
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}; fsync of 4 KiB: median {statistics.median(started) * 1e6:.0f} us, "
        f"a call of an empty Python function: {call * 1e9:.0f} ns"
    )


def _nothing() -> None:
    pass
