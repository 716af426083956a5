"""How long a push waits while other processes push too: writers of one directory take turns (`write.lock`)."""

import json
import subprocess
import sys
import time
from pathlib import Path

from rich.table import Table

import rqlab
from benchmarks.rounds import Spread

WRITERS = 8
AHEAD_SECONDS = 2.0  # for all of them to have started
PERCENTILES = (("median", 0.5), ("p99", 0.99), ("worst", 1.0))


def processes(directory: Path, rounds: int, seconds: float) -> Table:
    """The wait of a push, alone and among 8 processes that do nothing but push; each round is new processes."""
    rqlab.open(directory / "shared").close()
    table = Table(title=f"a push among {WRITERS} processes, and alone", title_justify="left")
    for column in ("processes", "pushes/s, all", *(f"{name}, ms" for name, _ in PERCENTILES)):
        table.add_column(column, justify="right")
    for writers in (1, WRITERS):
        waits = [_round(directory / "shared", writers, seconds) for _ in range(rounds)]
        rates = Spread.of([len(each) / seconds for each in waits])
        cells = [f"{rates.median:,.0f} ({rates.low:,.0f}-{rates.high:,.0f})"]
        for _, share in PERCENTILES:
            found = Spread.of([each[min(int(len(each) * share), len(each) - 1)] * 1000 for each in waits])
            cells.append(f"{found.median:.2f} ({found.low:.2f}-{found.high:.2f})")
        table.add_row(str(writers), *cells)
    return table


def _round(directory: Path, writers: int, seconds: float) -> list[float]:
    """The seconds that each push of a round took, in order."""
    begin_at = str(time.time() + AHEAD_SECONDS)
    command = [sys.executable, "-m", "benchmarks.processes", str(directory), begin_at, str(seconds)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(writers)]
    return sorted(wait for each in started for wait in json.loads(each.communicate()[0]))


def _write(directory: str, begin_at: float, seconds: float) -> list[float]:
    waits: list[float] = []
    with rqlab.open(directory) as rq:
        time.sleep(max(begin_at - time.time(), 0))
        end_at = time.perf_counter() + seconds
        while (before := time.perf_counter()) < end_at:
            rq.push("shared", "no-op", {"number": len(waits)})
            waits.append(time.perf_counter() - before)
    return waits


if __name__ == "__main__":
    print(json.dumps(_write(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))))
