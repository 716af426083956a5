"""What one tick of the lab's panel costs: looking, judging, drawing, and what is sent to the page."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.table import Table

import rqlab
from benchmarks.rounds import Spread
from rqlab.widgets.lab import Lab

WORKERS, JOBS, EVENTS = 4, 1_000, 10_000
MAX_MILLISECONDS, MAX_BYTES = 20, 20 * 1024  # the contract's
TICKS = 20  # a round


@contextmanager
def a_full_lab() -> Iterator[Lab]:
    """Four workers with a job each, under way; a thousand jobs; as many events as a lab keeps."""
    with rqlab.lab(durability="hybrid", workers=WORKERS, seconds=0.0, failure_rate=0.0, stall_timeout=30.0) as lab:
        lab.push(JOBS - WORKERS)
        lab.settle()
        lab.set_workload(seconds=60.0)
        lab.push(WORKERS)
        lab.wait_until(lambda view: view["counts"]["active"] == WORKERS)
        events = lab._controller._events  # three a job have happened; more would take minutes
        while len(events) < EVENTS:
            events.append(events[0])
        lab.widget._view_count = 0  # nobody else draws meanwhile
        yield lab


def ticks(lab: Lab, number: int) -> tuple[list[float], list[float], int]:
    """Of each tick milliseconds, and those of the processor; and the bytes of the largest."""
    sizes: dict[str, int] = {}
    for widget in _inside(lab.widget):
        if hasattr(widget, "value"):
            widget.observe(lambda change: sizes.update({change["owner"].model_id: len(str(change["new"]))}), "value")
    took, used, most = [], [], 0
    for _ in range(number):
        sizes.clear()
        began, busy = time.perf_counter(), time.thread_time()
        lab.draw()
        took.append((time.perf_counter() - began) * 1000)
        used.append((time.thread_time() - busy) * 1000)
        most = max(most, sum(sizes.values()))
    return took, used, most


def panel(rounds: int) -> Table:
    """Median (low-high) of all ticks."""
    table = Table(title=f"a tick of the lab: {WORKERS} workers, {JOBS:,} jobs, {EVENTS:,} events", title_justify="left")
    for column in ("", "found", "floor", ""):
        table.add_column(column, justify="right" if column else "left")
    with a_full_lab() as lab:
        took, used, most = ticks(lab, rounds * TICKS)
    for name, found in (("ms", Spread.of(took)), ("ms of the processor", Spread.of(used))):
        shown = f"{found.median:.1f} ({found.low:.1f}-{found.high:.1f})"
        table.add_row(name, shown, f"<= {MAX_MILLISECONDS}", "ok" if found.median <= MAX_MILLISECONDS else "MISSED")
    table.add_row("bytes of the largest", f"{most:,}", f"<= {MAX_BYTES:,}", "ok" if most <= MAX_BYTES else "MISSED")
    return table


def _inside(widget: Any) -> Iterator[Any]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from _inside(child)
