"""What it takes to open a directory with a long line: time, memory, syncs.

Each opening is a process of its own. One more counts the syncs, by the recorder and in Python, and is not timed.
"""

import json
import subprocess
import sys
from pathlib import Path

from rich.table import Table

import rqlab
from benchmarks.rounds import Spread

BATCH = 5_000  # jobs a transaction while filling
MAX_SYNCS = 20  # of durable, whatever the size

OPEN = """
import json, os, sys, time
import rqlab

def kilobytes(what):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(what))

before = kilobytes("VmRSS")
started, used = time.perf_counter(), time.process_time()
rq = rqlab.open(sys.argv[1], sys.argv[2])
seconds, processor_seconds = time.perf_counter() - started, time.process_time() - used
resident = kilobytes("VmHWM") - before
(job,) = rq.pull("line")
pulled = time.perf_counter() - started
rq.release(job)
rq.close()
print(json.dumps([seconds, processor_seconds, pulled, resident * 1024]))
"""

COUNT = """
import os, sys
import rqlab
from pathlib import Path
from rqlab.simulation.recorder import Kind, Recorder

class Counter(Recorder):
    def content_before(self, path):
        return b""

syncs, real = [], os.fsync
os.fsync = lambda fd: (syncs.append(fd), real(fd))
with Counter(Path(sys.argv[1])) as recorder:
    rq = rqlab.open(sys.argv[1], sys.argv[2])
    syncs += [operation for operation in recorder.operations if operation.kind is Kind.SYNC]
    print(len(syncs))
    rq.close()
"""


def opening(directory: Path, waiting: int, rounds: int) -> Table:
    """Median (low-high) of each mode that has a file."""
    path = directory / "long-line"
    with rqlab.open(path) as rq:
        for _ in range(waiting // BATCH):
            rq.push_many("line", [{"name": "no-op", "data": {"number": number}} for number in range(BATCH)])
    table = Table(title=f"opening a directory with {waiting:,} waiting jobs", title_justify="left")
    for column in ("mode", "s", "processor s", "s to a first pull", "MB more", "bytes a job", "syncs", "floor"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for mode in rqlab.MODES:
        if mode == "memory":
            continue
        seconds, used, pulled, resident = zip(*(_run(OPEN, path, mode) for _ in range(rounds)), strict=True)
        syncs = _run(COUNT, path, mode)
        floor = f"{MAX_SYNCS} syncs" if mode == "durable" else ""
        sizes = [f"{Spread.of(resident).median / 1e6:,.0f}", f"{Spread.of(resident).median / waiting:,.0f}"]
        table.add_row(mode, *map(_seconds, (seconds, used, pulled)), *sizes, str(syncs), floor)
    return table


def _run(program: str, path: Path, mode: str) -> list[float]:
    command = [sys.executable, "-c", program, str(path), mode]
    said: list[float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return said


def _seconds(figures: tuple[float, ...]) -> str:
    spread = Spread.of(list(figures))
    return f"{spread.median:.3f} ({spread.low:.3f}-{spread.high:.3f})"
