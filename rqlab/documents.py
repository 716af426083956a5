"""Jobs, schedules and numbers as documents: what `--json` prints, and what the README says was measured.

Knows no terminal and no command.

Every field is always there, so a script may rely on it. Instants are ISO 8601 text in UTC, durations are seconds;
data, metadata and results are the JSON values that they were.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from rqlab.durability import MODES, promise_table
from rqlab.engine import Push
from rqlab.job import Delivery, Job
from rqlab.measurement import Measurement
from rqlab.measurement.result import count
from rqlab.schedule import Schedule

INTERNAL = frozenset({"data_apart", "options", "anchor_at"})  # how a record is kept, not what it says


def text(document: Any) -> str:
    """The document as text. ASCII: the same bytes whatever the encoding of the terminal or the pipe."""
    return json.dumps(document, indent=2)


def job(record: Job) -> dict[str, Any]:
    return _fields(record)


def jobs(records: Sequence[Job]) -> list[dict[str, Any]]:
    return [_fields(record) for record in records]


def schedule(record: Schedule) -> dict[str, Any]:
    """The schedule, with the data of the jobs that it pushes."""
    push = msgspec.json.decode(record.options, type=Push)
    return {**_fields(record), "data": push.job.data}


def status(path: str, metrics: dict[str, Any], paused: Sequence[str]) -> dict[str, Any]:
    """What `rq.metrics()` tells, and which queues are paused."""
    queues = {queue: {"paused": queue in paused, **read} for queue, read in metrics["queues"].items()}
    return {"path": path, "at": instant(metrics["at"]), "queues": queues}


def measured_promises(measurement: Measurement, callers: tuple[int, ...] = (1, 100)) -> str:
    """MODES as a Markdown table, with the pushes a second that were measured beside what each mode promises."""
    head, ruler, *rows = promise_table().splitlines()
    said = " and ".join(map(str, callers))
    cells = [", ".join(_rate(measurement, mode, number) for number in callers) for mode in MODES]
    machine = measurement.machine
    below = (
        f"Pushes a second, median of {machine['settings']['repeats']} repeats: {machine['cores']} cores, "
        f"{machine['file_system']}, an fsync takes {machine['fsync_median_seconds'] * 1000:.2g} ms, "
        f"Python {machine['python']}. `rqlab measure --quick` measures yours, and what each mode really loses."
    )
    table = [f"{head} push/s: {said} callers |", f"{ruler} --- |"]
    table += [f"{row} {cell} |" for row, cell in zip(rows, cells, strict=True)]
    return "\n".join([*table, "", below])


def _rate(measurement: Measurement, mode: str, callers: int) -> str:
    spread = measurement.spread("push_per_second", mode, callers)
    return "–" if spread is None else count(spread.median)


def instant(at: int) -> str:
    """2026-11-23T20:37:01.250Z"""
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: msgspec.Struct) -> dict[str, Any]:
    names = [name for name in record.__struct_fields__ if name not in INTERNAL]
    return {name.removeprefix("encoded_"): _value(name, getattr(record, name)) for name in names}


def _value(name: str, value: Any) -> Any:
    match value:
        case msgspec.Raw():
            return json.loads(bytes(value))  # any whole number comes back exact
        case int() if name.endswith(("_at", "_until")):
            return instant(value)
        case tuple():
            return [_fields(item) if isinstance(item, Delivery) else item for item in value]
        case _:
            return value
