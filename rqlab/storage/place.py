"""A job's place in line: one text that sorts as the queue runs. Knows no store.

| state | place |
|---|---|
| waiting | ready/{queue}/{priority inverted}/{id} |
| delayed | later/{queue}/{due}/{id} |
| active | leased/{queue}/{min(lease_until, time-out)}/{id} |
| completed, dlq, cancelled | done/{state}/{queue}/{finished}/{id} |

A *shelf* is what such places have in common up to the queue, with its last slash: `ready/emails/`. Numbers have a
fixed width, so text order is their order; `/` is in no queue's name, so no shelf is part of another.
"""

from rqlab.job import MAX_PRIORITY, Job, State

TIME_DIGITS = 15  # milliseconds since the epoch until the year 33658: any delay of a hundred years fits
WAITING, DELAYED, ACTIVE = State.WAITING, State.DELAYED, State.ACTIVE
SHELVES = {
    WAITING: "ready/",
    DELAYED: "later/",
    ACTIVE: "leased/",
    State.COMPLETED: "done/completed/",
    State.DLQ: "done/dlq/",
    State.CANCELLED: "done/cancelled/",
}
LAST = "\U0010ffff"  # sorts behind every character: a shelf + LAST ends the shelf


def place(job: Job) -> str:
    """Where the job stands; it changes exactly when the job's turn does."""
    return shelf(job.queue, job.state) + turn(job)


def turn(job: Job) -> str:
    """What orders the jobs of one shelf: the part of a place that follows the shelf."""
    state = job.state
    if state is WAITING:
        return f"{str(MAX_PRIORITY - job.priority).zfill(5)}/{job.id}"  # a format of `05d` takes three times as long
    at = deadline(job) if state is ACTIVE else job.delay_until if state is DELAYED else job.finished_at
    return f"{str(at).zfill(TIME_DIGITS)}/{job.id}"


def deadline(job: Job) -> int:
    """When housekeeping must look at an active job: the end of its lease, or its time-out if that is earlier."""
    assert job.lease_until is not None, "an active job has a lease"
    timeout_at = job.timeout_at
    return job.lease_until if timeout_at is None else min(job.lease_until, timeout_at)


def shelf(queue: str, state: State) -> str:
    """What the places of all jobs of one queue in one state begin with."""
    return f"{SHELVES[state]}{queue}/"


def until(shelf: str, at: int) -> str:
    """The end of the part of a timed shelf that is due at `at`, that instant included."""
    return f"{shelf}{str(at + 1).zfill(TIME_DIGITS)}/"


def expiring(queue: str) -> str:
    """The shelf of the side entries of jobs with a ttl that have not started."""
    return f"expiring/{queue}/"


def expiring_place(job: Job) -> str:
    return f"{expiring(job.queue)}{job.expires_at:015d}/{job.id}"
