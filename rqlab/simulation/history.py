"""What happened, one event a line: the only thing that results, pictures and replays are made of.

An event has an instant, a kind, the job and the worker that it is about, the event that caused it, and details. The
hash is of these lines, so it covers what the engine did and never the bytes of a file.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from rqlab.job import Job
from rqlab.simulation.world import EPOCH

FORMAT = 1  # of a history in a file
HASH_BYTES = 8

Detail = Job | str | dict[str, Any] | None

_encode_into = msgspec.json.Encoder().encode_into  # behind what a buffer holds: one update of the hash for all


class Happening(msgspec.Struct, frozen=True):
    """One event of a history, as a file has it."""

    n: int  #: its number; `cause` refers to it
    at: float  #: seconds since the world began
    kind: str  #: an event of `rqlab.TRANSITIONS`, a fault, or one of KINDS
    job: str = ""  #: the job's id
    worker: str = ""  #: who did it, or whom it struck
    cause: int | None = None  #: the number of the event that brought it about
    detail: dict[str, Any] = {}


#: Kinds of events that are neither transitions of a job nor faults.
KINDS = {
    "start": "a process opened the queues",
    "effect": "a handler did what it says it did",
    "refused": "the engine refused a call whose run does not hold its job any more",
    "error": "a call raised",
    "duplicate": "a push found its unique key held",
    "thaw": "a frozen process goes on",
    "heal": "a lasting fault ended",
    "recovered": "the queues were opened after a crash, and read",
    "lost": "a job that was there before a crash is not there after it",
    "undone": "what had become of a job before a crash is not stored: it is again what it was",
    "calm": "from here on nothing breaks: everything has to come to rest",
    "violation": "a promise was broken",
}


class Raw(NamedTuple):
    """An event as the world notes it: details that are a record are put into words only when somebody looks."""

    at: int
    kind: str
    job: str
    worker: str
    cause: int
    detail: Detail


class History:
    """Events in the order in which they happened."""

    def __init__(self) -> None:
        self.raw: list[Raw | tuple[int, str, str, str, int, Detail]] = []
        self._newest: dict[str, int] = {}  #: by job: its newest event

    def __len__(self) -> int:
        return len(self.raw)

    def note(self, at: int, kind: str, job: str = "", worker: str = "", cause: int = -1, detail: Detail = None) -> int:
        """Add an event, and give its number. One about a job that names no cause follows from the job's last one."""
        number = len(self.raw)
        if job:
            if cause < 0:
                cause = self._newest.get(job, -1)
            self._newest[job] = number
        self.raw.append((at, kind, job, worker, cause, detail))
        return number

    def newest(self, job: str) -> int:
        """The number of the job's newest event; -1 if it has none."""
        return self._newest.get(job, -1)

    def happenings(self) -> list[Happening]:
        return [_told(number, *event) for number, event in enumerate(self.raw)]


def _told(number: int, at: int, kind: str, job: str, worker: str, cause: int, detail: Detail) -> Happening:
    told = (
        detail_of(kind, detail) if isinstance(detail, Job) else {"says": detail} if isinstance(detail, str) else detail
    )
    return Happening(number, at / 1000, kind, job, worker, cause if cause >= 0 else None, told or {})


def detail_of(kind: str, job: Job) -> dict[str, Any]:
    """What a viewer needs of the record that an event made."""
    detail: dict[str, Any] = {"queue": job.queue, "state": job.state, "attempt": job.attempt}
    detail["deliveries"] = job.deliveries
    if kind == "push":
        detail["name"] = job.name
        if job.priority:
            detail["priority"] = job.priority
    if job.delay_until is not None:
        detail["due"] = (job.delay_until - EPOCH) / 1000
    if job.lease_until is not None:
        detail["lease_until"] = (job.lease_until - EPOCH) / 1000
    if kind in ("fail", "stall", "time_out", "expire") and job.last_error is not None:
        detail["error"] = job.last_error.partition("\n")[0][:200]
    return detail


def hash_of(happenings: Iterable[Happening], records: Iterable[Job]) -> str:
    """The name of a history: of its events, and of the records that were left at the end."""
    said = bytearray()
    for happening in happenings:
        _encode_into(happening, said, -1)
    for job in sorted(records, key=_id):
        _encode_into(job, said, -1)
    return blake2b(said, digest_size=HASH_BYTES).hexdigest()


def _id(job: Job) -> str:
    return job.id
