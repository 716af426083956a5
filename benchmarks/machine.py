"""Where a figure was measured: without that it says nothing."""

import os
import platform
import sqlite3
import statistics
import time
from pathlib import Path


def machine(directory: Path) -> str:
    """The system, and what an fsync costs on the disk under a directory."""
    started, path = [], directory / "fsync"
    with path.open("wb") as file:
        for _ in range(50):
            before = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            started.append(time.perf_counter() - before)
    path.unlink()
    return (
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}; fsync of 4 KiB: median {statistics.median(started) * 1e6:.0f} us"
    )
