"""What the lab and its processes say to each other: one JSON document a line, orders down, reports up.

The first line down is the role. The end of the orders (end of file) means that the lab is gone: the process ends too.
"""

from typing import Any

import msgspec


class Role(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is started to be."""

    name: str  #: w1, producer, owner
    kind: str  #: worker, producer, or owner: a producer and worker threads in one
    mode: str  #: a row of MODES
    path: str | None  #: the directory; None in memory
    handler: str | None  #: module:handler; None is the demo's, if there are no `handlers`
    handlers: dict[str, str] | None  #: functions that travel by value, by job name
    workers: int  #: threads of an owner
    stall_timeout: float  #: seconds
    tick_interval: float  #: seconds
    paused: bool | None = None  #: whether the queue is to be; None leaves it as it is
    home: str  #: the lab's temporary directory: whoever outlives the lab clears it away
    settings: dict[str, Any] = {}  #: of the mode


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A job to be pushed."""

    number: int
    name: str
    data: Any
    metadata: dict[str, Any]
    max_attempts: int
    backoff_delay: float  #: seconds


class Order(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One line down."""

    push: list[Ask] = []
    pause: bool | None = None  #: True pauses the queue, False resumes it
    stop: bool = False  #: end cleanly: release the runs under way, make every write safe


class Report(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One line up."""

    kind: str  #: ready, pushed, change, refused; wrong: the process cannot go on
    at: int = 0  #: milliseconds since the epoch, UTC
    number: int = 0  #: of an Ask
    job: str = ""  #: its id
    event: str = ""  #: of a change
    delivery: int = 0
    worker: str = ""
    says: str = ""  #: an error
    record: msgspec.Raw = msgspec.Raw(b"null")  #: the job; only from queues in memory, which nobody else can read
