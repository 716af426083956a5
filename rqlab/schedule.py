"""When a schedule pushes its next job: ticks, from a cron line or an interval. Knows no clock and no store.

A cron line speaks of local time, and twice a year a local clock jumps. The rule for the skipped and the
repeated hour:

- A cron that names hours (`30 2 * * *`, `0 */2 * * *`) ticks at the first instant at which the local clock
  has reached the time it names. A skipped time thus ticks when the gap ends (several skipped times are one
  tick), and a repeated time ticks once, when it is first reached.
- A cron for every hour (`*/15 * * * *`, `0 * * * *`) ticks whenever the local clock shows a matching time.
  Elapsed time goes on: a skipped hour has no ticks, and both passes through a repeated hour have theirs.

Ticks rise strictly. Instants are integer milliseconds since the epoch (UTC). croniter only ever sees local
times without a zone, as pure calendar; the zone arithmetic is done here, by the tz database zoneinfo reads.
"""

import math
import sys
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from msgspec.structs import replace

from rqlab import arguments
from rqlab.errors import ValidationError
from rqlab.fields import explained
from rqlab.job import NULL, instant

#: What the first tick is.
FIRST = {
    "wait": "the next match of the cron, or one interval from now",
    "now": "the moment of registration",
}

#: Which of the ticks that have come due since the last look get a job.
CATCH_UP = {
    "one": "the newest; however many were missed, one job makes up for them",
    "all": "each of them, oldest first",
    "none": "the newest, if it is on time; what was missed is dropped",
}

ALIASES = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")

MISSED_AFTER = 60_000  # milliseconds; a slow commit is not downtime, and the unit of cron is the minute
MIN_EVERY = 0.001  # seconds; instants are whole milliseconds
MAX_EXECUTIONS = 2**53  # the largest count that every JSON reader keeps exact
FAR = 2 * 86_400_000  # milliseconds; no clock jumps by more than a day, nor (since 2000) twice within a week

EPOCH = datetime(1970, 1, 1)
MILLISECOND = timedelta(milliseconds=1)


@explained
class Schedule(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What to push, and when: a cron line or an interval; never both."""

    name: str  #: what it is called; registering the same name again finds it
    queue: str  #: where its jobs go
    job_name: str  #: what its jobs are called
    options: msgspec.Raw  #: the push options as JSON, encoded once at registration and opaque here
    cron: str | None = None  #: five fields or an alias such as @daily, in local time of `timezone`; else None
    every: float | None = None  #: seconds between two ticks, in whole milliseconds; None with a cron
    timezone: str = "UTC"  #: IANA name of the zone whose local time the cron speaks of
    first: str = "wait"  #: what the first tick is: a key of FIRST
    catch_up: str = "one"  #: which ticks get a job after downtime: a key of CATCH_UP
    max_executions: int | None = None  #: the schedule is finished after so many jobs; None: never
    paused: bool = False  #: while True nothing is due; `pause` and `resume` change it
    executions: int = 0  #: jobs pushed so far; it never falls
    next_at: int | None = None  #: the next tick; None once the schedule is finished
    last_at: int | None = None  #: the tick that last pushed a job; None before the first
    anchor_at: int = 0  #: when it was registered; interval ticks are anchor_at + n * every: they do not drift
    created_at: int = 0  #: when it was first stored
    updated_at: int = 0  #: when anything of it last changed

    @property
    def is_finished(self) -> bool:
        """It has pushed all of its `max_executions` jobs; no tick follows."""
        return self.max_executions is not None and self.executions >= self.max_executions

    @property
    def definition(self) -> tuple[object, ...]:
        """What its caller asked for, as against how far it has come."""
        what = (self.name, self.queue, self.job_name, msgspec.json.decode(self.options))  # keys in any order
        when = (self.cron, self.every, self.timezone, self.first, self.catch_up, self.max_executions)
        return what + when

    def __repr__(self) -> str:
        ticks = f"cron {self.cron!r} in {self.timezone}" if self.cron is not None else f"every {self.every:.12g} s"
        facts = [ticks, f"pushes {self.queue}/{self.job_name}", f"executions {self.executions}"]
        if self.max_executions is not None:
            facts[-1] += f" of {self.max_executions}"
        if self.paused:
            facts.append("paused")
        if self.next_at is not None:
            facts.append(f"next_at {instant(self.next_at)}")
        if self.last_at is not None:
            facts.append(f"last_at {instant(self.last_at)}")
        return f"<Schedule {self.name!r} {', '.join(facts)}>"


def new(
    *,
    name: str,
    queue: str,
    job_name: str,
    options: msgspec.Raw,
    now: int,
    cron: str | None = None,
    every: float | timedelta | None = None,
    timezone: str = "UTC",
    first: str = "wait",
    catch_up: str = "one",
    max_executions: int | None = None,
) -> Schedule:
    """A schedule registered at `now`, with its first tick in `next_at`.

    Raises ValidationError if it could not tick as asked. The names and the options are the caller's to check.
    """
    if (cron is None) == (every is None):
        expected = "expected exactly one of them, such as cron='0 3 * * *' or every=60"
        raise ValidationError(f"cron, every: {expected}; got cron={cron!r:.100} and every={every!r:.100}")
    _zone(timezone)
    schedule = Schedule(
        name=name,
        queue=queue,
        job_name=job_name,
        options=options,
        cron=None if cron is None else _checked_cron(cron, now),
        every=None if every is None else arguments.seconds(every, "every", at_least=MIN_EVERY),
        timezone=timezone,
        first=_checked_choice("first", first, FIRST),
        catch_up=_checked_choice("catch_up", catch_up, CATCH_UP),
        max_executions=None
        if max_executions is None
        else arguments.whole(max_executions, "max_executions", 1, MAX_EXECUTIONS),
        anchor_at=now,
        created_at=now,
        updated_at=now,
    )
    return replace(schedule, next_at=now if first == "now" else next_tick(schedule, now))


def same_definition(a: Schedule, b: Schedule) -> bool:
    """Both were asked for in the same words, so that registering one over the other changes nothing."""
    return a.definition == b.definition


def due(schedule: Schedule, now: int, limit: int = 500) -> tuple[tuple[int, ...], Schedule]:
    """The ticks to push a job for, oldest first, and the schedule to store in the same transaction.

    At most `limit` ticks; if there are more, `next_at` is the next of them and still due: call again.
    When nothing is due, the schedule comes back as the same object.
    """
    if schedule.paused or schedule.next_at is None or schedule.next_at > now:
        return (), schedule
    ticks = _ticks_to_push(schedule, schedule.next_at, now, limit)
    pushed = replace(
        schedule,
        executions=schedule.executions + len(ticks),
        last_at=ticks[-1] if ticks else schedule.last_at,
        updated_at=now,
    )
    return ticks, replace(pushed, next_at=next_tick(pushed, ticks[-1] if ticks else now))


def next_tick(schedule: Schedule, after: int) -> int | None:
    """The first tick strictly after `after`, paused or not; None if the schedule is finished."""
    return None if schedule.is_finished else _tick_after(schedule, after)


def ticks(cron: str, timezone: str, start: int, limit: int) -> tuple[int, ...]:
    """The first `limit` ticks of a cron line after `start`, for people who want to see them. ValidationError."""
    asked = new(name="", queue="", job_name="", options=NULL, now=start, cron=cron, timezone=timezone)
    return _ticks_up_to(asked, _tick_after(asked, start), sys.maxsize, limit)


def pause(schedule: Schedule, now: int) -> Schedule:
    """Nothing is due until it is resumed. A paused schedule comes back as it is."""
    return schedule if schedule.paused else replace(schedule, paused=True, updated_at=now)


def resume(schedule: Schedule, now: int) -> Schedule:
    """Go on with the next tick after `now`; what was missed while paused is dropped, whatever `catch_up`."""
    if not schedule.paused:
        return schedule
    after = max(now, schedule.last_at or now)  # no tick twice, even if the wall went back
    return replace(schedule, paused=False, next_at=next_tick(schedule, after), updated_at=now)


def _ticks_to_push(schedule: Schedule, oldest: int, now: int, limit: int) -> tuple[int, ...]:
    """What `catch_up` makes of the ticks from `oldest` (which is due) to `now`."""
    if schedule.catch_up == "all":
        left = math.inf if schedule.max_executions is None else schedule.max_executions - schedule.executions
        return _ticks_up_to(schedule, oldest, now, min(limit, left))
    newest = _newest_tick(schedule, oldest, now)
    if schedule.catch_up == "none" and now - newest > MISSED_AFTER:
        return ()
    return (newest,)


def _ticks_up_to(schedule: Schedule, tick: int, now: int, limit: float) -> tuple[int, ...]:
    ticks: list[int] = []
    while tick <= now and len(ticks) < limit:
        ticks.append(tick)
        tick = _tick_after(schedule, tick)
    return tuple(ticks)


def _newest_tick(schedule: Schedule, newest: int, now: int) -> int:
    """The last tick up to `now`, given one of them; a cron's by bisection: ten years take 40 looks."""
    if schedule.every is not None:
        return now - (now - schedule.anchor_at) % _step(schedule.every)
    if _tick_after(schedule, newest) > now:  # nothing was missed: nearly always
        return newest
    none_after = now
    while newest < none_after:
        middle = (newest + none_after) // 2
        tick = _tick_after(schedule, middle)
        if tick <= now:
            newest = tick
        else:
            none_after = middle
    return newest


def _tick_after(schedule: Schedule, after: int) -> int:
    if after < schedule.anchor_at:  # no tick precedes the registration
        if schedule.first == "now":
            return schedule.anchor_at
        after = schedule.anchor_at
    if schedule.every is not None:
        step = _step(schedule.every)
        return after - (after - schedule.anchor_at) % step + step
    assert schedule.cron is not None
    next_at = _next_shown if _is_for_every_hour(schedule.cron) else _next_reached
    return next_at(schedule.cron, _zone(schedule.timezone), after)


def _next_reached(cron: str, zone: ZoneInfo, after: int) -> int:
    """For a cron that names hours: when the clock next reaches a time it had not reached by `after`."""
    reading = _reading(zone, after)
    while True:
        reading = _next_match(cron, reading)
        tick = _reached(zone, reading)
        if tick > after:  # else this is the second pass through a repeated hour
            return tick


def _next_shown(cron: str, zone: ZoneInfo, after: int) -> int:
    """For a cron for every hour: when the clock next shows a matching time.

    Walks from one change of the clock to the next; between two of them a match is a subtraction away.
    """
    while True:
        offset = _offset(zone, after + 1)
        tick = _next_match(cron, after + offset) - offset
        end = min(tick, after + FAR)
        if _offset(zone, end) != offset:
            after = _change(zone, after + 1, end) - 1
        elif end == tick:
            return tick
        else:
            after = tick - FAR  # the clock did not change, so nothing matches until a day before `tick`


def _reached(zone: ZoneInfo, reading: int) -> int:
    """The first instant at which a clock in the zone shows this reading, or has jumped over it."""
    at = _instant(zone, reading, fold=0)
    if _reading(zone, at) == reading:
        return at
    return _first(_instant(zone, reading, fold=1), at, lambda at: _reading(zone, at) >= reading)


def _change(zone: ZoneInfo, low: int, high: int) -> int:
    """The first instant from `low` to `high` at which the offset is not that of `low`."""
    offset = _offset(zone, low)
    return _first(low, high, lambda at: _offset(zone, at) != offset)


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first instant from `low` to `high` for which something holds that, once true, stays true."""
    return low + bisect_left(range(low, high), True, key=holds)


def _offset(zone: ZoneInfo, at: int) -> int:
    return _reading(zone, at) - at


def _reading(zone: ZoneInfo, at: int) -> int:
    """What a clock in the zone shows at this instant, in milliseconds since it showed 1970-01-01 00:00."""
    local = (EPOCH + at * MILLISECOND).replace(tzinfo=UTC).astimezone(zone)
    return (local.replace(tzinfo=None) - EPOCH) // MILLISECOND


def _instant(zone: ZoneInfo, reading: int, fold: int) -> int:
    """When a clock shows this reading; a skipped one as if the clock jumped later (fold 0) or earlier (1)."""
    local = (EPOCH + reading * MILLISECOND).replace(tzinfo=zone, fold=fold)
    return (local.astimezone(UTC).replace(tzinfo=None) - EPOCH) // MILLISECOND


def _next_match(cron: str, reading: int) -> int:
    """The next reading the cron names, by the calendar alone; ValueError if there is none in 50 years."""
    calendar = copy(_calendar(cron))  # get_next moves its object on, and threads share this one
    match = calendar.get_next(datetime, start_time=EPOCH + reading * MILLISECOND)
    return int((match - EPOCH) // MILLISECOND)


def _is_for_every_hour(cron: str) -> bool:
    return bool(_calendar(cron).expanded[1] == ["*"])  # croniter turns 0-23 and */1 into "*" too


@lru_cache(maxsize=256)  # reading a line takes croniter up to 0.2 ms, a copy 2 µs
def _calendar(cron: str) -> Any:
    """croniter's reading of the line. Raises ValueError if it cannot be read."""
    from croniter import croniter  # takes 70 ms, so at first use

    return croniter(cron, EPOCH)


def _step(every: float) -> int:
    return round(every * 1000)


def _zone(timezone: str) -> ZoneInfo:
    with suppress(LookupError, ValueError, OSError):  # zoneinfo's ways to say no
        if isinstance(timezone, str):  # anything else it would look up, and so compare, by its own code
            return ZoneInfo(timezone)
    expected = "an IANA name such as 'UTC' or 'Europe/Berlin' (if it is one: pip install tzdata)"
    raise _unexpected("timezone", expected, timezone)


def _checked_cron(cron: object, now: int) -> str:
    aliases = " ".join(ALIASES)
    expected = f"5 fields (minute hour day month weekday) such as '0 9 * * mon-fri', or one of {aliases}"
    if not isinstance(cron, str) or (len(cron.split()) != 5 and cron.lower() not in ALIASES):
        raise _unexpected("cron", expected, cron)
    if any(field[0] in "hHrR" for field in cron.split()):
        raise _unexpected("cron", "fixed values, as ticks must be reproducible: no R and no H", cron)
    try:
        _calendar(cron)
    except ValueError as error:
        raise _unexpected("cron", expected, cron, f": {error!s:.200}") from None
    try:
        _next_match(cron, now)
    except ValueError:
        raise _unexpected("cron", "days that exist", cron, ": it never matches; correct its days") from None
    return " ".join(cron.split())


def _checked_choice(what: str, value: str, table: dict[str, str]) -> str:
    if isinstance(value, str) and value in table:
        return value
    raise _unexpected(what, " or ".join(f"{key!r} ({meaning})" for key, meaning in table.items()), value)


def _checked_max_executions(value: object) -> int | None:
    return None if value is None else arguments.whole(value, "max_executions", 1, MAX_EXECUTIONS)


def _unexpected(what: str, expected: str, came: object, why: str = "") -> ValidationError:
    return ValidationError(f"{what}: expected {expected}; got {arguments.shown(came)}{why}")
