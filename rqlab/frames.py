"""Records as tidy DataFrames: one row a job, aware datetimes, seconds. pandas is imported when a frame is made."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rqlab.job import Backoff, Job, State

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
