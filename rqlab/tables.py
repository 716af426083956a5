"""What a terminal shows of jobs, queues and schedules: pure functions from records to tables. They read no store.

A table must read well at 80 columns, and in a pipe: ids are never cut, and what is not a terminal gets one line a job.
Text that callers wrote is shown with its control characters spelled out: an error must not steer the terminal.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from rqlab.engine import LISTED
from rqlab.job import Job, State, instant
from rqlab.schedule import Schedule

PIPE_COLUMNS = 10_000  # wide enough that no line is folded where nobody sees columns
SHOWN_CHARACTERS = 2_000  # of one value; `--json` has all of it
SHOWN_LOGS = 10  # lines; `--json` has them all

STYLES = {
    State.WAITING: "",
    State.DELAYED: "cyan",
    State.ACTIVE: "yellow",
    State.COMPLETED: "green",
    State.DLQ: "red",
    State.CANCELLED: "dim",
}


def console() -> Console:
    """Standard output, as wide as it is; in a pipe as wide as its lines."""
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    return Console(width=width, highlight=False, markup=False, emoji=False)


def status(metrics: dict[str, Any], paused: Sequence[str], active: Sequence[Job]) -> RenderableType:
    """The queues with their counts, and the runs under way."""
    if not metrics["queues"]:
        return Text("no queue has had a job yet")
    table = _table("queue", *map(str, LISTED), "oldest waiting", right=range(1, 8))
    for queue, read in metrics["queues"].items():
        name = f"{queue} (paused)" if queue in paused else queue
        waited = read["oldest_waiting_seconds"]
        table.add_row(name, *_counts(read["jobs"]), "" if waited is None else duration(waited))
    if len(metrics["queues"]) > 1:
        reads = [read["jobs"] for read in metrics["queues"].values()]
        table.add_section()
        table.add_row("all", *_counts({state: sum(read[state] for read in reads) for state in map(str, LISTED)}), "")
    return Group(table, Text(), _runs(active, metrics["at"])) if active else table


def jobs(records: Sequence[Job], now: int) -> RenderableType:
    """One line a job: where it is, how often it failed, and what comes next."""
    table = _table("id", "state", "job", "attempt", "when", whole=(0, 1, 3), gap=1)
    for job in records:
        attempt = f"{job.attempt}/{job.max_attempts}"
        table.add_row(job.id, _state(job), f"{job.queue}/{job.name}", attempt, _when(job, now))
    return table


def dlq(records: Sequence[Job], now: int) -> RenderableType:
    """Dead-lettered jobs, each with the first line of what ended it."""
    lines: list[RenderableType] = []
    for job in records:
        error = (job.last_error or "no error was recorded").split("\n")[0]
        lines += [
            Text(f"{job.id}  {job.name}  attempt {job.attempt}/{job.max_attempts}  {_when(job, now)}"),
            Text(f"    {spelled(error)}", "red"),
        ]
    return Group(*lines)


def job(record: Job, now: int) -> RenderableType:
    """All that is known of one job; what was never set is left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _facts(record, now):
        grid.add_row(name, value)
    parts: list[RenderableType] = [grid]
    if record.last_error is not None:
        parts += [Text(), Text("last error", "bold"), Text(_cut(spelled(record.last_error)), "red")]
    if record.history:
        parts += [Text(), Text("history", "bold"), _history(record)]
    if record.logs:
        shown = record.logs[-SHOWN_LOGS:]
        title = (
            f"logs, the newest {len(shown)} of {len(record.logs)} lines" if len(record.logs) > len(shown) else "logs"
        )
        parts += [Text(), Text(title, "bold"), *(Text(spelled(line)) for line in shown)]
    return Group(*parts)


def schedules(records: Sequence[Schedule], now: int) -> RenderableType:
    """One line a schedule: what it pushes, when, and when next."""
    table = _table("schedule", "pushes", "when", "next", "last", "jobs", whole=(3, 4, 5), right=(5,))
    for schedule in records:
        when = f"every {duration(schedule.every)}" if schedule.every is not None else f"{schedule.cron}"
        if schedule.cron is not None and schedule.timezone != "UTC":
            when = f"{when} {schedule.timezone}"
        table.add_row(
            Text(spelled(schedule.name)),
            f"{schedule.queue}/{schedule.job_name}",
            when,
            _next(schedule, now),
            "never" if schedule.last_at is None else relative(schedule.last_at, now),
            f"{schedule.executions}" + (f"/{schedule.max_executions}" if schedule.max_executions is not None else ""),
        )
    return table


def line(*cells: tuple[str, str]) -> Table:
    """One line of (text, style) cells; the last folds under itself."""
    grid = Table.grid(padding=(0, 1))
    for index in range(len(cells)):
        grid.add_column(no_wrap=index < len(cells) - 1)
    grid.add_row(*(Text(text, style) for text, style in cells))
    return grid


def duration(seconds: float) -> str:
    """A duration in a unit that keeps it readable: 4 ms, 1.5 s, 12 s, 3 min, 5.2 h, 8.0 d."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, size, limit in (("s", 1, 120), ("min", 60, 7_200), ("h", 3_600, 172_800)):
        if seconds < limit:
            number = seconds / size
            return f"{number:.0f} {unit}" if number >= 10 or number == int(number) else f"{number:.1f} {unit}"
    return f"{seconds / 86_400:.1f} d"


def relative(at: int, now: int) -> str:
    """An instant as people say it: in 5 s, 3.0 min ago."""
    return f"in {duration((at - now) / 1000)}" if at > now else f"{duration((now - at) / 1000)} ago"


def spelled(text: str) -> str:
    """The text with everything that a terminal would obey instead of show spelled out, lines kept."""
    return "".join(
        character if character.isprintable() or character == "\n" else character.encode("unicode_escape").decode()
        for character in text
    )


def _table(*headers: str, whole: Sequence[int] = (), right: Sequence[int] = (), gap: int = 2) -> Table:
    """Columns in `whole` are never folded; the others fold rather than lose a character."""
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for index, header in enumerate(headers):
        table.add_column(header, no_wrap=index in whole, overflow="fold", justify="right" if index in right else "left")
    return table


def _counts(counts: dict[str, int]) -> Iterator[Text]:
    for state in LISTED:
        yield Text(f"{counts[state]:,}".replace(",", " "), STYLES[state] if counts[state] else "dim")


def _runs(active: Sequence[Job], now: int) -> Table:
    table = _table("active", "job", "progress", "lease", whole=(0, 2))
    for job in active:
        table.add_row(job.id, f"{job.queue}/{job.name}", f"{job.progress:g} %", _lease(job, now))
    return table


def _state(job: Job) -> Text:
    return Text(job.state, STYLES[job.state])


def _when(job: Job, now: int) -> Text:
    """What comes next for this job, or when its end came."""
    match job.state:
        case State.ACTIVE:
            return _lease(job, now)
        case State.DELAYED:
            assert job.delay_until is not None, "a delayed job has a due time"
            return Text("due" if job.delay_until <= now else relative(job.delay_until, now))
        case State.WAITING:
            return Text(f"for {duration(max(now - job.updated_at, 0) / 1000)}")
        case _:
            return Text(relative(job.finished_at or job.updated_at, now))


def _lease(job: Job, now: int) -> Text:
    assert job.lease_until is not None, "an active job has a lease"
    left = (job.lease_until - now) / 1000
    return Text(f"{duration(left)} left") if left > 0 else Text(f"lease over for {duration(-left)}", "red")


def _facts(job: Job, now: int) -> Iterator[tuple[str, RenderableType]]:
    yield "id", job.id
    yield "job", f"{job.queue}/{job.name}"
    yield "state", _state(job)
    yield "attempt", f"{job.attempt} of {job.max_attempts}"
    yield "deliveries", f"{job.deliveries}"
    if job.priority:
        yield "priority", f"{job.priority}"
    yield "backoff", _backoff(job)
    for name, seconds in (("timeout", job.timeout), ("ttl", job.ttl)):
        if seconds is not None:
            yield name, duration(seconds)
    if job.unique_key is not None:
        yield "unique key", Text(spelled(job.unique_key))
    if job.tags:
        yield "tags", Text(spelled(", ".join(job.tags)))
    if job.metadata is not None:
        yield "metadata", _json(job.metadata)
    if job.worker is not None:
        yield "worker", Text(spelled(job.worker))
    if job.progress:
        yield "progress", f"{job.progress:g} %"
    for name, at in (
        ("lease until", job.lease_until),
        ("delay until", job.delay_until),
        ("expires", job.expires_at),
        ("created", job.created_at),
        ("updated", job.updated_at),
        ("started", job.started_at),
        ("finished", job.finished_at),
    ):
        if at is not None:
            yield name, f"{instant(at)}  ({relative(at, now)})"
    yield "data", _json(job.data)
    if job.state is State.COMPLETED:
        yield "result", _json(job.result)


def _backoff(job: Job) -> str:
    jitter = f" ± {job.jitter * 100:g} %" if job.jitter else ""
    return f"{job.backoff}, from {duration(job.backoff_delay)}{jitter}, at most {duration(job.max_backoff)}"


def _history(job: Job) -> Table:
    table = _table("delivery", "outcome", "started", "took", "worker", right=(0,), whole=(0, 1, 3))
    for delivery in job.history:
        table.add_row(
            f"{delivery.delivery}",
            delivery.outcome.replace("_", " "),
            instant(delivery.started_at).removesuffix("+00:00"),
            duration((delivery.ended_at - delivery.started_at) / 1000),
            Text(spelled(delivery.worker)),
        )
    return table


def _next(schedule: Schedule, now: int) -> str:
    if schedule.paused:
        return "paused"
    if schedule.next_at is None:
        return "finished"
    return "due" if schedule.next_at <= now else relative(schedule.next_at, now)


def _json(value: Any) -> Text:
    short = json.dumps(value, ensure_ascii=False)
    return Text(_cut(spelled(short if len(short) <= 60 else json.dumps(value, ensure_ascii=False, indent=2))))


def _cut(text: str) -> str:
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[:SHOWN_CHARACTERS]}… ({len(text)} characters; --json has them all)"
