"""What callers push: drawn from the seed, or given by the user. Knows jobs, not what becomes of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from rqlab import arguments
from rqlab.engine import Push
from rqlab.errors import ValidationError
from rqlab.job import Backoff, Job
from rqlab.simulation.chance import Chance

BACKOFFS = tuple(Backoff)
NAMES = ("welcome", "receipt", "reminder", "digest")
GIVEN_EVERY_MS = 200  # between two jobs of the user's that name no `at`
SHARE_OF_BURSTS = 0.25  # of the jobs: pushed together with the one before
MANY = 25  # jobs, one more than simulate's default: so many have some with large data, are paused, and purged
LARGE = msgspec.Raw(b'"' + b"large " * 1_000 + b'"')  # over 4 KiB: kept in an entry of its own
SHARE_OF_PUSHES = 0.5  # of the span: then everything is pushed


class Timing(Protocol):
    @property
    def duration(self) -> float: ...
    @property
    def stall_timeout(self) -> float: ...


def drawn(chance: Chance, count: int, span: float, timing: Timing) -> Iterator[tuple[int, Push, int | None]]:
    """(when, what, and when it is cancelled) of each job; `count` of them, the first at once."""
    before = 0.0
    for number in range(count):
        label = f"job {number}"
        pushed_at = number / max(count, 1) * SHARE_OF_PUSHES * span
        pushed_at += chance("push", label) * SHARE_OF_PUSHES * span / max(count, 1) if number else 0.0
        if number and chance("burst", label) < SHARE_OF_BURSTS:
            pushed_at = before  # another caller, at the same instant: their commits may be one
        before = pushed_at
        at = int(pushed_at * 1000)
        cancel = chance("cancel", label)
        cancel_at = at + int(cancel * 40 * 2000) if cancel < 0.025 else None
        is_large = count >= MANY and chance("large", label) < 0.08
        yield at, _drawn_push(chance, label, number, timing, is_large), cancel_at


def _drawn_push(chance: Chance, label: str, number: int, timing: Timing, is_large: bool) -> Push:
    options: dict[str, Any] = {}
    if chance("priority", label) < 0.2:
        options["priority"] = int(chance.between(-2, 6, "priority value", label))
    if chance("jitter option", label) < 0.3:
        options["jitter"] = 0.2
    if chance("ttl", label) < 0.05:
        options["ttl"] = 20 * timing.duration
    if chance("key", label) < 0.15:
        options["unique_key"] = f"customer-{int(chance('key value', label) * 5)}"
    if chance("remove", label) < 0.05:
        options["remove_on_complete"] = True
    job = Job(
        id="",
        queue="mail" if chance("queue", label) < 0.8 else "reports",
        name=chance.choice(NAMES, "name", label),
        encoded_data=LARGE if is_large else msgspec.Raw(b'{"number":%d}' % number),
        max_attempts=3 + int(chance("attempts", label) * 3),
        backoff=chance.choice(BACKOFFS, "backoff", label),
        backoff_delay=max(timing.duration, 0.001),
        timeout=8 * timing.duration + timing.stall_timeout,
        **options,
    )
    delay = chance.between(1, 6, "delay value", label) * timing.duration if chance("delay", label) < 0.1 else 0.0
    return Push(job, delay)


def given(items: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Push]]:
    """The user's own jobs: dicts of push's arguments, with `queue` ("mail") and `at` (seconds) where wanted."""
    from rqlab import queues  # the front door checks what callers pass

    with queues.memory() as door:
        for number, item in enumerate(items):
            if not isinstance(item, Mapping):
                raise ValidationError(
                    f"jobs[{number}]: expected a dict of push's arguments; got {arguments.shown(item)}"
                )
            options = dict(item)
            queue, at = options.pop("queue", "mail"), options.pop("at", number * GIVEN_EVERY_MS / 1000)
            due_at = round(arguments.seconds(at, f"jobs[{number}]: at") * 1000)
            try:
                push = door._checked_item(queue, {"name": "job", **options}, number)
            except ValidationError as error:  # push_many calls them items
                raise ValidationError(str(error).replace("items[", "jobs[", 1)) from error
            yield due_at, push
