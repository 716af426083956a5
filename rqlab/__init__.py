"""rqlab: a durable job queue for Python that you can take apart. One directory, no server.

    import rqlab

    with rqlab.open("jobs") as rq:
        rq.push("emails", "send", {"to": "ada@example.org"})
        rq.drain("emails", lambda job: print(job.data))

`rqlab.open` and `rqlab.memory` give a `Queues`, the front door; every public name is listed below.
"""

from rqlab.durability import MODES, Mode
from rqlab.errors import (
    DeadLetter,
    DuplicateKey,
    FormatTooNew,
    InvalidState,
    JobNotFound,
    LeaseLost,
    RetryAfter,
    RQLabError,
    ScheduleNotFound,
    Snooze,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreLocked,
    ValidationError,
)
from rqlab.executors import Context
from rqlab.housekeeping import Retention
from rqlab.job import Backoff, Counts, Delivery, Job, Outcome, State
from rqlab.lifecycle import TRANSITIONS, Change, Event
from rqlab.queues import Queues, memory, open  # like shelve.open and dbm.open
from rqlab.schedule import Schedule
from rqlab.simulation.audit import Audit, audit

__version__ = "0.1.0"

__all__ = [
    "MODES",
    "TRANSITIONS",
    "Audit",
    "Backoff",
    "Change",
    "Context",
    "Counts",
    "DeadLetter",
    "Delivery",
    "DuplicateKey",
    "Event",
    "FormatTooNew",
    "InvalidState",
    "Job",
    "JobNotFound",
    "LeaseLost",
    "Mode",
    "Outcome",
    "Queues",
    "RQLabError",
    "Retention",
    "RetryAfter",
    "Schedule",
    "ScheduleNotFound",
    "Snooze",
    "State",
    "StoreBusy",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "StoreLocked",
    "ValidationError",
    "audit",
    "memory",
    "open",
]
