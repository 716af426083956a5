"""Records as tidy DataFrames: one row a job, an attempt, an event. pandas is imported when a frame is made.

Categories have all their values, so that frames of two runs have the same groups. `jobs` has aware datetimes; what is
drawn against time has seconds since a start, which stands in `attrs["since"]`.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from rqlab import schedule
from rqlab.job import Backoff, Job, Outcome, State
from rqlab.lifecycle import Change, Event

if TYPE_CHECKING:
    import pandas

#: Fields that are instants, in milliseconds; in a frame they are aware datetimes.
INSTANTS = (
    "delay_until",
    "lease_until",
    "expires_at",
    "created_at",
    "updated_at",
    "started_at",
    "finished_at",
)
PLAIN = (
    "id", "queue", "name", "state", "priority", "attempt", "max_attempts", "deliveries", "data", "result", "last_error",
    "progress", "worker", "unique_key", "tags", "metadata", "backoff", "backoff_delay", "max_backoff", "jitter",
    "timeout", "ttl", "remove_on_complete",
)  # fmt: skip
#: The types of columns that pandas would choose by what happens to be in them: none, in an empty frame.
TYPES = {
    **dict.fromkeys(("priority", "attempt", "max_attempts", "deliveries"), "int64"),
    **dict.fromkeys(("progress", "backoff_delay", "max_backoff", "jitter", "timeout", "ttl"), "float64"),
    "remove_on_complete": "bool",
}


def jobs(records: Sequence[Job]) -> "pandas.DataFrame":
    """One row a job, in the order given; `state` and `backoff` are categories with all their values."""
    import pandas

    columns = [*PLAIN, *INSTANTS]
    rows = [[getattr(job, column) for column in columns] for job in records]
    frame = pandas.DataFrame(rows, columns=columns, dtype=object).astype(TYPES)
    for instant in INSTANTS:
        frame[instant] = pandas.to_datetime(frame[instant].astype("Int64"), unit="ms", utc=True)
        frame[instant] = frame[instant].dt.as_unit("ms")
    for column, kind in (("state", State), ("backoff", Backoff)):
        frame[column] = pandas.Categorical(frame[column].astype(str), categories=[str(member) for member in kind])
    return frame


#: How an attempt ended, or that it goes on.
OUTCOMES = (*(str(outcome) for outcome in Outcome), "active")
ATTEMPTS = ("job", "delivery", "worker", "started", "ended", "outcome", "waited")
EVENTS = ("at", "kind", "job", "worker", "cause", "detail")


def attempts(
    records: Sequence[Job], *, since: int | None = None, seed: int | None = None, replay: str | None = None
) -> "pandas.DataFrame":
    """One row a delivery of these jobs, by start: finished ones from their histories, and those that run now.

    `started`, `ended` and `waited` are seconds: the first two since `since` (milliseconds since the epoch; by default
    the oldest push), the last since the job was pushed or its previous delivery ended. A run that goes on has outcome
    `active` and no `ended`. A history keeps the newest 100 deliveries, and so does this.
    """
    start = _start(records) if since is None else since
    rows: list[tuple[Any, ...]] = []
    for job in records:
        before = job.created_at
        for line in job.history:
            waited = max(0, line.started_at - before) / 1000
            times = (line.started_at - start) / 1000, (line.ended_at - start) / 1000
            rows.append((job.id, line.delivery, line.worker, *times, str(line.outcome), waited))
            before = line.ended_at
        if job.state is State.ACTIVE and job.started_at is not None:
            waited = max(0, job.started_at - before) / 1000
            began = (job.started_at - start) / 1000
            rows.append((job.id, job.deliveries, job.worker or "", began, None, "active", waited))
    rows.sort(key=lambda row: (row[3], row[0]))
    return _tidy(
        rows, ATTEMPTS, {"delivery": "int64", "started": "float64", "ended": "float64", "waited": "float64"},
        {"outcome": OUTCOMES}, start, seed, replay,
    )  # fmt: skip


def events(
    changes: Iterable[Change], *, since: int | None = None, seed: int | None = None, replay: str | None = None
) -> "pandas.DataFrame":
    """One row a change, as `on_change` callbacks get them; `at` is seconds since `since`, by default the first change.

    `cause` is the row of the same job's previous event, and missing for its first; `detail` is the newest error of a
    failure, stall or time-out.
    """
    listed = list(changes)
    start = min((change.at for change in listed), default=0) if since is None else since
    newest: dict[str, int] = {}
    rows = []
    for number, (event, job, at) in enumerate(listed):
        failed = event in (Event.FAIL, Event.STALL, Event.TIME_OUT, Event.EXPIRE)
        detail = (job.last_error or "").partition("\n")[0] if failed else ""
        worker = job.worker or (job.history[-1].worker if job.history and failed else "")
        rows.append(((at - start) / 1000, str(event), job.id, worker, newest.get(job.id), detail))
        newest[job.id] = number
    kinds = tuple(str(event) for event in Event)
    return _tidy(rows, EVENTS, {"at": "float64", "cause": "Int64"}, {"kind": kinds}, start, seed, replay)


def compare(
    rows: Sequence[Mapping[str, Any]], *, seed: int | None = None, replay: str | None = None
) -> "pandas.DataFrame":
    """One row a mode, side by side, in the order given; `mode` is an ordered category. ValueError without a `mode`."""
    import pandas

    if any("mode" not in row for row in rows):
        raise ValueError(f"compare: expected a mode in every row; got {[dict(row) for row in rows]!r:.200}")
    frame = pandas.DataFrame([dict(row) for row in rows])
    if len(frame):
        frame["mode"] = pandas.Categorical(frame["mode"], categories=list(dict.fromkeys(frame["mode"])), ordered=True)
    frame.attrs |= {"seed": seed, "replay": replay}
    return frame


def ticks(cron: str, timezone: str = "UTC", *, start: str, count: int = 5) -> "pandas.DataFrame":
    """When a cron line ticks: one row a tick, in UTC and by the clock on the wall of its time zone.

    `start` is an ISO date or date and time there ("2026-03-28"); the first tick is the first after it. ValidationError
    for a line or a zone that is none, ValueError for a start that is none.
    """
    import pandas

    schedule.ticks(cron, timezone, 0, 1)  # refuses what cannot tick, in our words
    since = pandas.Timestamp(start).tz_localize(timezone)
    found = schedule.ticks(cron, timezone, int(since.timestamp() * 1000), count)
    utc = pandas.to_datetime(list(found), unit="ms", utc=True)
    frame = pandas.DataFrame({"utc": utc, "local": utc.tz_convert(timezone)})
    frame.attrs |= {"cron": cron, "timezone": timezone}
    return frame


class History(NamedTuple):
    """What happened to real jobs, in the tables that `rqlab.charts` draws."""

    jobs: "pandas.DataFrame"  #: id, queue, state, attempt, deliveries, pushed, finished, lost
    attempts: "pandas.DataFrame"
    events: "pandas.DataFrame"
    faults: "pandas.DataFrame"  #: at, kind, target
    seed: int | None = None


def history(
    records: Sequence[Job],
    changes: Iterable[Change] = (),
    faults: Sequence[tuple[int, str, str]] = (),
    lost: Iterable[str] = (),
) -> History:
    """The history of a real queue, to draw as a simulated one is.

    `faults` are (milliseconds since the epoch, kind, target), as whoever broke something noted them; `lost` are the
    ids among the jobs that were acknowledged and are gone.
    """
    start = _start(records)
    gone = set(lost)
    rows = [
        (
            job.id, job.queue, str(job.state), job.attempt, job.deliveries, (job.created_at - start) / 1000,
            None if job.finished_at is None else (job.finished_at - start) / 1000, job.id in gone,
        )
        for job in sorted(records, key=lambda job: job.id)
    ]  # fmt: skip
    columns = ("id", "queue", "state", "attempt", "deliveries", "pushed", "finished", "lost")
    numbers = {"attempt": "int64", "deliveries": "int64", "pushed": "float64", "finished": "float64", "lost": "bool"}
    states = {"state": tuple(str(state) for state in State)}
    struck = [((at - start) / 1000, kind, target) for at, kind, target in sorted(faults)]
    return History(
        _tidy(rows, columns, numbers, states, start, None, None),
        attempts(records, since=start),
        events(changes, since=start),
        _tidy(struck, ("at", "kind", "target"), {"at": "float64"}, {}, start, None, None),
    )


def _start(records: Sequence[Job]) -> int:
    return min((job.created_at for job in records), default=0)


def _tidy(
    rows: Sequence[tuple[Any, ...]], columns: Sequence[str], types: Mapping[str, str],
    categories: Mapping[str, Sequence[str]], since: int, seed: int | None, replay: str | None,
) -> "pandas.DataFrame":  # fmt: skip
    import pandas

    frame = pandas.DataFrame(rows, columns=list(columns), dtype=object).astype(dict(types))
    for column, kinds in categories.items():
        frame[column] = pandas.Categorical(frame[column], categories=list(kinds))
    frame.attrs |= {"since": datetime.fromtimestamp(since / 1000, UTC), "seed": seed, "replay": replay}
    return frame
