"""What a measurement was made on: without it a figure is worth nothing."""

import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rqlab import clock
from rqlab.storage.entries import SQLITE_VERSION
from rqlab.storage.locks import file_system

MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})
SYNCS = 21  # of which the median is told, where nothing else says how many
SYNC_BYTES = 4_096  # a page, which is what a small commit appends


def machine(directory: Path) -> dict[str, Any]:
    """The machine, the disk under `directory` and what runs there, as values that JSON has."""
    from importlib.metadata import version  # here: it costs `import rqlab` nothing then

    kind = file_system(directory)
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "sqlite": SQLITE_VERSION,
        "file_system": kind,
        "is_in_memory": kind in MEMORY_FILE_SYSTEMS,
        **latency(syncs(directory)),
        "rqlab": version("rqlab"),
        "measured_at": datetime.fromtimestamp(clock.now() / 1000, UTC).isoformat(timespec="seconds"),
    }


def latency(took: Sequence[float]) -> dict[str, float]:
    """How long an fsync takes, with its spread."""
    return {
        "fsync_median_seconds": statistics.median(took),
        "fsync_low_seconds": min(took),
        "fsync_high_seconds": max(took),
    }


def syncs(path: Path, count: int = SYNCS) -> list[float]:
    """Seconds that each of some syncs took, on a file of no name in the directory: nothing of it stays."""
    sync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)
    took = []
    with tempfile.TemporaryFile(dir=path, buffering=0) as scratch:
        for _ in range(count):
            scratch.write(bytes(SYNC_BYTES))
            before = clock.monotonic()
            sync(scratch.fileno())
            took.append(clock.monotonic() - before)
    return took
