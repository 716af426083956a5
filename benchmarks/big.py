"""Whether a directory with a long past is as quick as an empty one."""

import statistics
import time
from pathlib import Path

from msgspec.structs import replace
from rich.table import Table

import rqlab
from benchmarks.rounds import Spread, timed
from rqlab.job import State

BATCH = 5_000  # jobs a transaction while filling
REPEATS = 200


def big_store(directory: Path, finished: int, waiting: int) -> Table:
    """Pull, tick and counts in an empty directory and in a full one, alternating."""
    with rqlab.open(directory / "empty") as empty, rqlab.open(directory / "big") as big:
        started = time.perf_counter()
        _fill(big, finished, waiting)
        filled = time.perf_counter() - started
        table = Table(
            title=f"{finished:,} finished, {waiting:,} waiting (filled in {filled:.0f} s), against an empty directory",
            title_justify="left",
        )
        for column in ("what", "empty, ms", "big, ms", "ratio of medians", "floor"):
            table.add_column(column, justify="left" if column == "what" else "right")
        for what, floor in (("pull", "1.5"), ("tick", "2 or 1 ms"), ("counts", "2 or 1 ms")):
            small, large = _alternating(empty, big, what)
            medians = statistics.median(large) / statistics.median(small)
            table.add_row(what, _ms(small), _ms(large), f"{medians:.2f}", floor)
    return table


def _alternating(empty: rqlab.Queues, big: rqlab.Queues, what: str) -> tuple[list[float], list[float]]:
    """Seconds of each call, one in the empty directory and one in the big one, in turn: the disk is shared."""
    for rq in (empty, big):
        rq.push_many("line", [{"name": "no-op"}] * REPEATS)
        rq.tick()
    figures: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for rq, seconds in zip((empty, big), figures, strict=True):
            call = {"pull": lambda rq=rq: rq.pull("line"), "tick": rq.tick, "counts": rq.counts}[what]
            seconds += timed(call, 1)
    return figures


def _fill(rq: rqlab.Queues, finished: int, waiting: int) -> None:
    """Finished jobs go straight into the store, as acks would leave them; waiting ones are pushed."""
    engine, now = rq._engine, int(time.time() * 1000)
    made = 0
    while made < finished:
        ids = rq.push_many("past", [{"name": "no-op"}] * min(BATCH, finished - made))

        def finish(tx, ids=ids) -> None:  # type: ignore[no-untyped-def]
            for job_id in ids:
                job = tx.get(job_id)
                tx.put(replace(job, state=State.COMPLETED, deliveries=1, finished_at=now), replacing=job)

        engine.store.write(finish)
        made += len(ids)
    for _ in range(waiting // BATCH):
        rq.push_many("line", [{"name": "no-op"}] * BATCH)


def _ms(seconds: list[float]) -> str:
    spread = Spread.of([each * 1000 for each in seconds])
    return f"{spread.median:.3f} ({spread.low:.3f}-{spread.high:.3f})"
