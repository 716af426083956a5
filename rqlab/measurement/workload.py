"""What is measured: queues opened in a mode, a push of a small job, and a job's whole life.

The timed run, the recorded one and the process that is killed all do this, so that their figures belong together.
"""

from pathlib import Path

from rqlab.queues import Queues, memory
from rqlab.queues import open as open_queues

PUSHED, CYCLED = "pushes", "cycles"  # queues
DATA = {"to": "ada@example.org", "subject": "Notes upon the memoir"}


def opened(mode: str, path: Path) -> Queues:
    """Queues in a row of MODES, with that mode's defaults; `path` is not made if the mode has no file."""
    return memory() if mode == "memory" else open_queues(path, mode)


def push(rq: Queues) -> str:
    return rq.push(PUSHED, "send", DATA)


def cycle(rq: Queues) -> None:
    """Push a job, pull the next in line, ack it.

    There always is one: a caller's own push comes before its pull, and nobody pulls more often than they push.
    """
    rq.push(CYCLED, "send", DATA)
    (job,) = rq.pull(CYCLED)
    rq.ack(job)
