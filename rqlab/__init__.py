"""rqlab: a durable job queue for Python that you can take apart. One directory, no server.

    import rqlab

    with rqlab.open("jobs") as rq:
        rq.push("emails", "send", {"to": "ada@example.org"})
        rq.drain("emails", lambda job: print(job.data))

`rqlab.open` and `rqlab.memory` give a `Queues`, the front door; every public name is listed below.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from rqlab.durability import MODES, Mode
from rqlab.errors import (
    DeadLetter,
    DuplicateKey,
    FormatTooNew,
    InvalidState,
    JobNotFound,
    LeaseLost,
    Reentered,
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
from rqlab.executors import AsyncContext, Context
from rqlab.housekeeping import Retention
from rqlab.job import Backoff, Counts, Delivery, Job, Outcome, State
from rqlab.lifecycle import TRANSITIONS, Change, Event
from rqlab.queues import Queues, memory, open  # like shelve.open and dbm.open
from rqlab.schedule import Schedule

if (
    TYPE_CHECKING
):  # the laboratory is imported at first use: `import rqlab` takes 0.1 s, and an application needs no more
    from rqlab import testing
    from rqlab.exercises import (
        EXERCISES,
        check_crashes,
        check_cron,
        check_grace,
        check_handler,
        check_mission,
        check_modes,
        check_order,
        check_queue,
        check_safe_until,
        check_seed,
        check_stall_timeout,
        check_waits,
    )
    from rqlab.exploration import explore
    from rqlab.exploration.result import Exploration
    from rqlab.measurement import Measurement, measure
    from rqlab.measurement.whereabouts import Whereabouts, whereabouts
    from rqlab.simulation.audit import Audit, audit
    from rqlab.simulation.checks import CHECKS
    from rqlab.simulation.comparing import Comparison, compare
    from rqlab.simulation.faults import FAULTS, Fault
    from rqlab.simulation.result import SimulationResult
    from rqlab.simulation.run import simulate
    from rqlab.widgets.explorer import explorer
    from rqlab.widgets.lab import Lab, lab
    from rqlab.widgets.measurer import measurer
    from rqlab.widgets.report import LabReport

__version__ = "0.1.0"

#: The laboratory: where each of its names is found.
LABORATORY = {
    "Audit": "rqlab.simulation.audit",
    "Exploration": "rqlab.exploration.result",
    "Measurement": "rqlab.measurement",
    "audit": "rqlab.simulation.audit",
    "explore": "rqlab.exploration",
    "explorer": "rqlab.widgets.explorer",
    "Comparison": "rqlab.simulation.comparing",
    "compare": "rqlab.simulation.comparing",
    "measure": "rqlab.measurement",
    "measurer": "rqlab.widgets.measurer",
    "Whereabouts": "rqlab.measurement.whereabouts",
    "whereabouts": "rqlab.measurement.whereabouts",
    "CHECKS": "rqlab.simulation.checks",
    "EXERCISES": "rqlab.exercises",
    "FAULTS": "rqlab.simulation.faults",
    "Fault": "rqlab.simulation.faults",
    "SimulationResult": "rqlab.simulation.result",
    "simulate": "rqlab.simulation.run",
    "check_crashes": "rqlab.exercises",
    "check_cron": "rqlab.exercises",
    "check_grace": "rqlab.exercises",
    "check_handler": "rqlab.exercises",
    "check_mission": "rqlab.exercises",
    "check_modes": "rqlab.exercises",
    "check_order": "rqlab.exercises",
    "check_queue": "rqlab.exercises",
    "check_safe_until": "rqlab.exercises",
    "check_seed": "rqlab.exercises",
    "check_stall_timeout": "rqlab.exercises",
    "check_waits": "rqlab.exercises",
    "Lab": "rqlab.widgets.lab",
    "LabReport": "rqlab.widgets.report",
    "lab": "rqlab.widgets.lab",
}

__all__ = [
    "CHECKS",
    "EXERCISES",
    "FAULTS",
    "MODES",
    "TRANSITIONS",
    "AsyncContext",
    "Audit",
    "Backoff",
    "Change",
    "Comparison",
    "Context",
    "Counts",
    "DeadLetter",
    "Delivery",
    "DuplicateKey",
    "Event",
    "Exploration",
    "Fault",
    "FormatTooNew",
    "InvalidState",
    "Job",
    "JobNotFound",
    "Lab",
    "LabReport",
    "LeaseLost",
    "Measurement",
    "Mode",
    "Outcome",
    "Queues",
    "RQLabError",
    "Reentered",
    "Retention",
    "RetryAfter",
    "Schedule",
    "ScheduleNotFound",
    "SimulationResult",
    "Snooze",
    "State",
    "StoreBusy",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "StoreLocked",
    "ValidationError",
    "Whereabouts",
    "audit",
    "check_crashes",
    "check_cron",
    "check_grace",
    "check_handler",
    "check_mission",
    "check_modes",
    "check_order",
    "check_queue",
    "check_safe_until",
    "check_seed",
    "check_stall_timeout",
    "check_waits",
    "compare",
    "explore",
    "explorer",
    "lab",
    "measure",
    "measurer",
    "memory",
    "open",
    "simulate",
    "testing",
    "whereabouts",
]


def __getattr__(name: str) -> object:
    if name == "testing":
        return import_module("rqlab.testing")
    if name not in LABORATORY:
        raise AttributeError(f"module 'rqlab' has no attribute {name!r}")
    found: object = getattr(import_module(LABORATORY[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
