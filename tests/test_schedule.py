"""What a schedule promises: which ticks there are, above all where clocks jump, and which of them get a job.

The ticks are held against a brute-force scan that reads the zone's clock once a minute and matches the fields by
itself: it shares neither croniter nor the zone arithmetic with the code it checks.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from conftest import Unequal
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from rqlab import schedule as schedule_module
from rqlab.errors import RQLabError, ValidationError
from rqlab.schedule import (
    CATCH_UP,
    FIRST,
    MISSED_AFTER,
    Schedule,
    due,
    new,
    next_tick,
    pause,
    resume,
    same_definition,
)

SECOND = 1000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def at(text: str, zone: str = "UTC", fold: int = 0) -> int:
    """The instant of a local time, in milliseconds."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp() * 1000)


def local(tick: int, zone: str) -> str:
    """A tick as people in the zone see it, with its offset: 2024-03-31T03:00+02:00."""
    return datetime.fromtimestamp(tick / 1000, ZoneInfo(zone)).isoformat(timespec="minutes")


NOON = at("2024-06-03T12:00")


def schedule(now: int = NOON, **arguments: Any) -> Schedule:
    return new(**{"name": "n", "queue": "q", "job_name": "j", "options": msgspec.Raw(b"{}"), "now": now, **arguments})


def ticks_between(a_schedule: Schedule, start: int, end: int) -> list[int]:
    """All ticks with start <= tick < end, by next_tick alone."""
    ticks: list[int] = []
    tick = next_tick(a_schedule, start - 1)
    while tick is not None and tick < end:
        ticks.append(tick)
        tick = next_tick(a_schedule, tick)
    return ticks


def local_ticks(cron: str, zone: str, start: str, end: str) -> list[str]:
    """The ticks of a cron between two local times, as people in the zone see them."""
    a_schedule = schedule(cron=cron, timezone=zone, now=0)
    return [local(tick, zone) for tick in ticks_between(a_schedule, at(start, zone), at(end, zone))]


# The skipped hour


def test_a_cron_in_the_skipped_hour_runs_once_when_the_gap_ends() -> None:
    assert local_ticks("30 2 * * *", "Europe/Berlin", "2024-03-30", "2024-04-02") == [
        "2024-03-30T02:30+01:00",
        "2024-03-31T03:00+02:00",
        "2024-04-01T02:30+02:00",
    ]
    assert local_ticks("30 2 * * *", "America/New_York", "2024-03-09", "2024-03-12") == [
        "2024-03-09T02:30-05:00",
        "2024-03-10T03:00-04:00",
        "2024-03-11T02:30-04:00",
    ]


def test_a_gap_of_half_an_hour_ends_after_half_an_hour() -> None:
    assert local_ticks("10 2 * * *", "Australia/Lord_Howe", "2024-10-05", "2024-10-08") == [
        "2024-10-05T02:10+10:30",
        "2024-10-06T02:30+11:00",
        "2024-10-07T02:10+11:00",
    ]


@pytest.mark.parametrize(
    ("zone", "day_before", "expected"),
    [
        ("America/Santiago", "2024-09-07", "2024-09-08T01:00-03:00"),
        ("Africa/Cairo", "2024-04-25", "2024-04-26T01:00+03:00"),
        ("America/Havana", "2024-03-09", "2024-03-10T01:00-04:00"),
    ],
)
def test_a_midnight_that_is_skipped_runs_once_at_one_o_clock(zone: str, day_before: str, expected: str) -> None:
    after = at(f"{day_before}T12:00", zone)

    assert local(next_tick(schedule(cron="@daily", timezone=zone, now=0), after) or 0, zone) == expected


def test_several_times_in_one_gap_are_one_tick() -> None:
    assert local_ticks("*/10 2,3 * * *", "Europe/Berlin", "2024-03-31", "2024-03-31T03:15") == [
        "2024-03-31T03:00+02:00",
        "2024-03-31T03:10+02:00",
    ]


def test_a_day_that_never_was_runs_once_when_the_next_day_begins() -> None:
    assert local_ticks("0 9 * * *", "Pacific/Apia", "2011-12-29", "2012-01-01") == [
        "2011-12-29T09:00-10:00",
        "2011-12-31T00:00+14:00",
        "2011-12-31T09:00+14:00",
    ]
    assert local_ticks("0 9 30 12 *", "Pacific/Apia", "2011-01-01", "2012-01-01") == ["2011-12-31T00:00+14:00"]


def test_an_hourly_cron_follows_elapsed_time_through_the_skipped_hour() -> None:
    assert local_ticks("0 * * * *", "America/New_York", "2024-03-10T00:30", "2024-03-10T04:30") == [
        "2024-03-10T01:00-05:00",
        "2024-03-10T03:00-04:00",
        "2024-03-10T04:00-04:00",
    ]
    assert local_ticks("30 * * * *", "Europe/Berlin", "2024-03-31T01:00", "2024-03-31T04:00") == [
        "2024-03-31T01:30+01:00",
        "2024-03-31T03:30+02:00",
    ]


# The repeated hour


def test_a_cron_in_the_repeated_hour_runs_once_at_its_first_pass() -> None:
    assert local_ticks("30 2 * * *", "Europe/Berlin", "2024-10-26", "2024-10-29") == [
        "2024-10-26T02:30+02:00",
        "2024-10-27T02:30+02:00",
        "2024-10-28T02:30+01:00",
    ]
    assert local_ticks("30 1 * * *", "America/New_York", "2024-11-02", "2024-11-05") == [
        "2024-11-02T01:30-04:00",
        "2024-11-03T01:30-04:00",
        "2024-11-04T01:30-05:00",
    ]
    assert local_ticks("45 1 * * *", "Australia/Lord_Howe", "2024-04-06", "2024-04-09") == [
        "2024-04-06T01:45+11:00",
        "2024-04-07T01:45+11:00",
        "2024-04-08T01:45+10:30",
    ]


def test_an_hour_before_midnight_that_is_repeated_runs_once() -> None:
    assert local_ticks("30 23 * * *", "America/Santiago", "2024-04-06", "2024-04-08") == [
        "2024-04-06T23:30-03:00",
        "2024-04-07T23:30-04:00",
    ]
    assert local_ticks("30 23 * * *", "Africa/Cairo", "2024-10-31", "2024-11-02") == [
        "2024-10-31T23:30+03:00",
        "2024-11-01T23:30+02:00",
    ]


def test_a_midnight_that_is_repeated_runs_once() -> None:
    assert local_ticks("0 0 * * *", "America/Havana", "2024-11-02", "2024-11-05") == [
        "2024-11-02T00:00-04:00",
        "2024-11-03T00:00-04:00",
        "2024-11-04T00:00-05:00",
    ]


def test_an_hourly_cron_runs_in_both_passes_through_the_repeated_hour() -> None:
    assert local_ticks("50 * * * *", "Europe/Berlin", "2024-10-27T01:30", "2024-10-27T03:30") == [
        "2024-10-27T01:50+02:00",
        "2024-10-27T02:50+02:00",
        "2024-10-27T02:50+01:00",
    ]
    assert local_ticks("45 * * * *", "Australia/Lord_Howe", "2024-04-07T01:00", "2024-04-07T03:00") == [
        "2024-04-07T01:45+11:00",
        "2024-04-07T01:45+10:30",
        "2024-04-07T02:45+10:30",
    ]


def test_an_hourly_cron_ticks_only_where_the_clock_of_lord_howe_shows_the_full_hour() -> None:
    assert local_ticks("0 * * * *", "Australia/Lord_Howe", "2024-04-07T00:30", "2024-04-07T03:30") == [
        "2024-04-07T01:00+11:00",
        "2024-04-07T02:00+10:30",
        "2024-04-07T03:00+10:30",
    ]
    assert local_ticks("0 * * * *", "Australia/Lord_Howe", "2024-10-06T00:30", "2024-10-06T03:30") == [
        "2024-10-06T01:00+10:30",
        "2024-10-06T03:00+11:00",
    ]


def test_a_repeated_midnight_months_ahead_is_found_at_its_first_pass() -> None:
    zone = "America/Havana"
    a_schedule = schedule(cron="30 * 3 11 *", timezone=zone, now=at("2024-01-15", zone))

    assert local(a_schedule.next_at or 0, zone) == "2024-11-03T00:30-04:00"


def test_a_cron_asked_in_the_second_pass_waits_for_the_next_day() -> None:
    second_pass = at("2024-10-27T02:15", "Europe/Berlin", fold=1)

    tick = next_tick(schedule(cron="30 2 * * *", timezone="Europe/Berlin", now=0), second_pass)

    assert local(tick or 0, "Europe/Berlin") == "2024-10-28T02:30+01:00"


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("Europe/Berlin", "2024-03-31"),
        ("Europe/Berlin", "2024-10-27"),
        ("America/New_York", "2024-03-10"),
        ("America/New_York", "2024-11-03"),
        ("Australia/Lord_Howe", "2024-04-07"),
        ("Australia/Lord_Howe", "2024-10-06"),
        ("America/Santiago", "2024-04-06"),
        ("America/Santiago", "2024-09-08"),
    ],
)
def test_a_quarter_hourly_cron_ticks_each_quarter_of_an_hour_of_elapsed_time(zone: str, day: str) -> None:
    start = at(f"{day}T12:00", zone) - DAY

    ticks = ticks_between(schedule(cron="*/15 * * * *", timezone=zone, now=0), start, start + 2 * DAY)

    assert ticks == list(range(start, start + 2 * DAY, 15 * MINUTE))


# All of it, against a brute-force scan

JUMPS = {
    "Europe/Berlin": ("2024-03-31", "2024-10-27"),
    "America/New_York": ("2024-03-10", "2024-11-03"),
    "Australia/Lord_Howe": ("2024-04-07", "2024-10-06"),
    "America/Santiago": ("2024-04-07", "2024-09-08"),
    "Africa/Cairo": ("2024-04-26", "2024-11-01"),
    "America/Havana": ("2024-03-10", "2024-11-03"),
    "Europe/Dublin": ("2024-03-31", "2024-10-27"),  # its winter is the exception, in the tz database
    "Antarctica/Troll": ("2024-03-31", "2024-10-27"),  # two hours at once
    "Africa/Casablanca": ("2024-03-10", "2024-04-14"),  # off for Ramadan
    "Asia/Kathmandu": ("2024-05-01",),  # never jumps; 45 minutes off
    "Pacific/Apia": ("2011-12-30",),  # a whole day
    "Pacific/Kwajalein": ("1993-08-21",),  # the same
    "America/St_Johns": ("2010-03-14", "2010-11-07"),  # a minute after midnight
}
LIMITS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))  # minute, hour, day, month, weekday

places = st.sampled_from([(zone, day) for zone, days in JUMPS.items() for day in days])


@st.composite
def fields(draw: st.DrawFn, low: int, high: int) -> str:
    """One field of a cron: a star, a step, a number, a range, or a list of them."""
    number = st.integers(low, high)
    ranges = st.tuples(number, number).filter(lambda ends: ends[0] < ends[1]).map(lambda ends: f"{ends[0]}-{ends[1]}")
    steps = st.integers(2, high).map(lambda step: f"*/{step}")
    parts = st.lists(st.one_of(number.map(str), ranges), min_size=1, max_size=3).map(",".join)
    return draw(st.one_of(st.just("*"), steps, parts))


def crons() -> st.SearchStrategy[str]:
    """Crons that match within the days of a scan: hours early in the day, where the jumps are, are frequent."""
    minute = fields(0, 59)
    hour = st.one_of(st.just("*"), fields(0, 3), st.sampled_from(["23", "0,23", "*/2", "22-23"]), fields(0, 23))
    day = st.one_of(st.just("*"), st.just("*"), fields(1, 31))
    weekday = st.one_of(st.just("*"), st.just("*"), fields(0, 6))
    return st.tuples(minute, hour, day, st.just("*"), weekday).map(" ".join)


def values(field: str, low: int, high: int) -> set[int]:
    """What a field of numbers names."""
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = (str(low) + "-" + str(high) if span == "*" else span).partition("-")
        found.update(range(int(first), int(last or first) + 1, int(step or 1)))
    return found


def matcher(cron: str) -> Callable[[datetime], bool]:
    """Whether a local time matches; a day matches by date or by weekday if the cron names both.

    To name all weekdays beside a step of days, as in `*/2 * 0-6`, or the reverse, is to name no weekday: so Vixie's
    cron and croniter.
    """
    texts = cron.split()
    minutes, hours, days, months, weekdays = (values(text, *limits) for text, limits in zip(texts, LIMITS, strict=True))
    names_date = texts[2] != "*" and not (len(days) == 31 and "*" in texts[4])
    names_weekday = texts[4] != "*" and not (len(weekdays) == 7 and "*" in texts[2])
    either = names_date and names_weekday

    def matches(when: datetime) -> bool:
        by_date, by_weekday = when.day in days, when.isoweekday() % 7 in weekdays
        is_day = by_date or by_weekday if either else by_date and by_weekday
        return when.minute in minutes and when.hour in hours and when.month in months and is_day

    return matches


@cache
def clock(zone: str, start: int, end: int) -> list[tuple[int, datetime, list[datetime]]]:
    """Minute by minute: the instant, what the clock shows, and the times it reached or jumped over just then."""
    lines: list[tuple[int, datetime, list[datetime]]] = []
    newest = datetime.min
    for instant in range(start, end, MINUTE):
        reached: list[datetime] = []
        shown = datetime.fromtimestamp(instant / 1000, ZoneInfo(zone)).replace(tzinfo=None)
        newest = newest if lines else shown
        while newest < shown:
            newest += timedelta(minutes=1)
            reached.append(newest)
        lines.append((instant, shown, reached))
    return lines


def scan(cron: str, zone: str, start: int, end: int) -> list[int]:
    """Every tick of the written rule, start <= tick < end."""
    matches = matcher(cron)
    is_hourly = values(cron.split()[1], 0, 23) == set(range(24))
    return [
        instant
        for instant, shown, reached in clock(zone, start - 2 * DAY, end)
        if instant >= start and (matches(shown) if is_hourly else any(map(matches, reached)))
    ]


@settings(max_examples=250, deadline=None)
@given(crons(), places)
def test_the_ticks_around_a_jump_are_those_of_a_scan_minute_by_minute(cron: str, place: tuple[str, str]) -> None:
    zone, day = place
    start, end = at(day) - 18 * HOUR, at(day) + 30 * HOUR

    ticks = ticks_between(schedule(cron=cron, timezone=zone, now=0), start, end)

    assert ticks == scan(cron, zone, start, end)


@settings(max_examples=100, deadline=None)
@given(crons(), places, st.integers(-2 * DAY, 2 * DAY))
def test_the_next_tick_is_strictly_later_from_any_moment(cron: str, place: tuple[str, str], shift: int) -> None:
    zone, day = place
    after = at(day) + shift
    a_schedule = schedule(cron=cron, timezone=zone, now=0)

    first = next_tick(a_schedule, after)

    assert first is not None
    assert first > after
    assert next_tick(a_schedule, first - 1) == first
    assert next_tick(a_schedule, (after + first) // 2) == first


@settings(max_examples=100, deadline=None)
@given(crons(), places, st.integers(0, 4 * DAY), st.integers(0, 4 * DAY))
def test_catching_up_with_one_finds_the_newest_tick_that_a_walk_finds(
    cron: str, place: tuple[str, str], registered: int, down: int
) -> None:
    zone, day = place
    now = at(day) - 2 * DAY + registered
    a_schedule = schedule(cron=cron, timezone=zone, now=now)
    all_of_them = ticks_between(a_schedule, now + 1, now + down + 1)

    ticks, after = due(a_schedule, now + down)

    assert list(ticks) == all_of_them[-1:]
    assert after.next_at == next_tick(a_schedule, now + down)


@settings(max_examples=100, deadline=None)
@given(
    fields(1, 31),
    fields(1, 12),
    st.one_of(st.just("*"), fields(0, 6)),
    st.integers(0, 40 * 365),
    st.sampled_from([0, 3]),
)
def test_days_months_and_weekdays_are_those_of_the_calendar(
    days: str, months: str, weekdays: str, days_on: int, hour: int
) -> None:
    cron = f"0 {hour} {days} {months} {weekdays}"
    start = at("2024-01-01") + days_on * DAY
    try:
        a_schedule = schedule(cron=cron, now=0)
    except ValidationError:
        a_schedule = None
    matches = matcher(cron)
    midnights = (datetime.fromtimestamp(start / 1000 + 86_400 * n, UTC).replace(tzinfo=None) for n in range(8 * 366))
    expected = next((when for when in midnights if matches(when.replace(hour=hour))), None)

    tick = None if a_schedule is None else next_tick(a_schedule, start - 1)

    assert tick == (None if expected is None else at(expected.replace(hour=hour).isoformat()))


# What a cron may be


IMPOSSIBLE = ("0 0 30 2 *", "0 0 31 4 *", "0 0 31 2,4,6,9,11 *", "*/5 * 30-31 2 *", "0 0 1-7 * 1#3")


@pytest.mark.parametrize("cron", IMPOSSIBLE)
def test_a_cron_that_never_matches_is_refused_within_a_second(cron: str) -> None:
    started = time.perf_counter()

    with pytest.raises(ValidationError, match=r"cron: expected days that exist; got .* never matches") as refusal:
        schedule(cron=cron)

    assert cron in str(refusal.value)
    assert time.perf_counter() - started < 1


def test_the_29th_of_february_is_accepted_even_where_a_leap_year_is_left_out() -> None:
    a_schedule = schedule(cron="0 0 29 2 *", now=at("2095-06-01"))

    first = a_schedule.next_at
    assert first == at("2096-02-29")
    assert next_tick(a_schedule, first) == at("2104-02-29")


def test_a_rare_day_on_every_hour_is_found_across_many_changes_of_the_clock() -> None:
    zone = "Europe/Berlin"
    a_schedule = schedule(cron="0 * 29 2 *", timezone=zone, now=at("2096-03-01"))

    assert local(a_schedule.next_at or 0, zone) == "2104-02-29T00:00+01:00"


@pytest.mark.parametrize(
    ("alias", "line"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@Daily", "0 0 * * *"),
    ],
)
def test_an_alias_is_the_line_it_stands_for(alias: str, line: str) -> None:
    now = at("2024-02-10T05:05")

    assert schedule(cron=alias, now=now).next_at == schedule(cron=line, now=now).next_at


@pytest.mark.parametrize(
    "cron",
    [
        "",
        " ",
        "* * * *",
        "0 * * * * *",  # seconds
        "0 * * * * * 2026",  # and years
        "@reboot",
        "@sometimes",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "*/0 * * * *",
        "-1 * * * *",
        "a b c d e",
        "1" * 5000 + " * * * *",
        5,
        True,
        b"* * * * *",
    ],
)
def test_a_cron_that_cannot_be_read_is_refused_with_what_was_expected(cron: Any) -> None:
    with pytest.raises(ValidationError, match=r"cron: expected 5 fields .*@daily.*; got ") as refusal:
        schedule(cron=cron)

    assert repr(cron)[:100] in str(refusal.value)


@pytest.mark.parametrize("cron", ["R * * * *", "r(0-3) * * * *", "0 H * * *", "h/15 * * * *", "0 0 H(1-5) * *"])
def test_random_and_hashed_fields_are_refused_because_ticks_are_reproducible(cron: str) -> None:
    with pytest.raises(ValidationError, match="reproducible") as refusal:
        schedule(cron=cron)

    assert cron in str(refusal.value)


def test_a_cron_or_an_interval_but_never_both_and_never_neither() -> None:
    with pytest.raises(ValidationError, match=r"expected exactly one .*; got cron='@daily' and every=60"):
        schedule(cron="@daily", every=60)
    with pytest.raises(ValidationError, match=r"expected exactly one .*; got cron=None and every=None"):
        schedule()


@pytest.mark.parametrize(
    "zone",
    [
        "",
        "Mars/Olympus",
        "Europe",
        "../etc/passwd",
        "/etc/passwd",
        "a\0b",
        "x" * 5000,
        ".",
        None,
        1,
        ["UTC"],
        Unequal(),
    ],
)
def test_an_unknown_timezone_is_refused_by_name(zone: Any) -> None:
    for when in ({"cron": "@daily"}, {"every": 60}):
        with pytest.raises(ValidationError, match=r"timezone: expected an IANA name .*'Europe/Berlin'") as refusal:
            schedule(timezone=zone, **when)

        assert repr(zone)[:100] in str(refusal.value)


@pytest.mark.parametrize(
    "every",
    [
        *(0, -1, 0.0, -0.5, 0.0005, float("nan"), float("inf"), -float("inf"), 101 * 366 * 86_400, 10**400),
        *(timedelta(0), timedelta(seconds=-1), timedelta(microseconds=1), timedelta(days=36_600)),
        *(True, "60", [60]),
    ],
)
def test_an_interval_that_is_no_duration_is_refused(every: Any) -> None:
    with pytest.raises(
        ValidationError, match=r"every: expected a duration in seconds or a timedelta, .*; got "
    ) as refusal:
        schedule(every=every)

    assert repr(every)[:100] in str(refusal.value)


@pytest.mark.parametrize(
    ("every", "seconds"),
    [
        *((1, 1.0), (0.001, 0.001), (16.1, 16.1), (0.07, 0.07), (1.00001, 1.001), (3_153_600_000, 3.1536e9)),
        *((timedelta(minutes=5), 300.0), (timedelta(milliseconds=1), 0.001)),
    ],
)
def test_an_interval_is_kept_in_seconds_rounded_up_to_the_millisecond(every: Any, seconds: float) -> None:
    a_schedule = schedule(every=every)

    assert a_schedule.every == seconds
    assert a_schedule.next_at == NOON + round(seconds * 1000)


@pytest.mark.parametrize(
    ("what", "value", "expected"),
    [
        ("first", "later", "'wait'.* or 'now'"),
        ("first", None, "'wait'.* or 'now'"),
        ("first", ["now"], "'wait'.* or 'now'"),
        ("catch_up", "some", "'one'.* or 'all'.* or 'none'"),
        ("catch_up", True, "'one'.* or 'all'.* or 'none'"),
        ("max_executions", 0, "a whole number, 1"),
        ("max_executions", -1, "a whole number, 1"),
        ("max_executions", True, "a whole number, 1"),
        ("max_executions", 1.0, "a whole number, 1"),
        ("max_executions", "3", "a whole number, 1"),
        ("max_executions", 2**64, "a whole number, 1"),
    ],
)
def test_other_arguments_are_refused_with_what_was_expected_and_what_came(what: str, value: Any, expected: str) -> None:
    with pytest.raises(ValidationError, match=f"{what}: expected {expected}") as refusal:
        schedule(every=60, **{what: value})

    assert f"got {value!r}" in str(refusal.value)
    assert isinstance(refusal.value, RQLabError)
    assert isinstance(refusal.value, ValueError)


# The first tick


def test_a_cron_first_runs_at_its_next_match_even_if_it_matches_now() -> None:
    assert schedule(cron="0 12 * * *").next_at == NOON + DAY
    assert schedule(cron="0 12 * * *", now=NOON - 1).next_at == NOON


def test_an_interval_first_runs_after_one_interval() -> None:
    assert schedule(every=60).next_at == NOON + MINUTE


@pytest.mark.parametrize("when", [{"cron": "0 * * * *"}, {"every": 3600}])
def test_first_now_runs_at_the_moment_of_registration_and_then_as_ever(when: dict[str, Any]) -> None:
    a_schedule = schedule(first="now", **when)

    ticks, after = due(a_schedule, NOON)

    assert ticks == (NOON,)
    assert after.next_at == NOON + HOUR


def test_no_tick_precedes_the_registration() -> None:
    assert next_tick(schedule(every=60), NOON - DAY) == NOON + MINUTE
    assert next_tick(schedule(every=60, first="now"), NOON - DAY) == NOON
    assert next_tick(schedule(cron="* * * * *"), NOON - DAY) == NOON + MINUTE
    assert next_tick(schedule(cron="* * * * *", first="now"), NOON - DAY) == NOON


def test_a_new_schedule_knows_when_it_was_registered() -> None:
    a_schedule = schedule(every=60)

    assert (a_schedule.anchor_at, a_schedule.created_at, a_schedule.updated_at) == (NOON, NOON, NOON)
    assert (a_schedule.executions, a_schedule.last_at, a_schedule.paused) == (0, None, False)


# Intervals are anchored


@given(
    st.integers(1, 10**7),
    st.lists(st.integers(0, 10**9), min_size=1, max_size=20),
    st.sampled_from(sorted(CATCH_UP)),
    st.sampled_from(sorted(FIRST)),
)
def test_interval_ticks_stay_on_the_anchor_however_late_they_are_served(
    milliseconds: int, delays: list[int], catch_up: str, first: str
) -> None:
    a_schedule = schedule(every=milliseconds / 1000, catch_up=catch_up, first=first)
    now, seen = NOON, list[int]()
    for delay in delays:
        now += delay
        ticks, a_schedule = due(a_schedule, now, limit=5)
        seen.extend(ticks)

    assert all((tick - NOON) % milliseconds == 0 for tick in [*seen, a_schedule.next_at or 0])
    assert all(earlier < later for earlier, later in pairwise([*seen, a_schedule.next_at or 0]))
    assert a_schedule.executions == len(seen)


def test_an_interval_of_a_third_of_a_second_is_as_long_after_a_million_ticks() -> None:
    a_schedule = schedule(every=0.333)

    assert next_tick(a_schedule, NOON + 333 * 1_000_000) == NOON + 333 * 1_000_001


# What is due


def test_nothing_is_due_before_the_tick_and_the_schedule_is_the_same_object() -> None:
    a_schedule = schedule(every=60)

    ticks, after = due(a_schedule, NOON + MINUTE - 1)

    assert ticks == ()
    assert after is a_schedule


@pytest.mark.parametrize("late", [0, 400])
@pytest.mark.parametrize("catch_up", sorted(CATCH_UP))
@pytest.mark.parametrize("when", [{"cron": "* * * * *"}, {"every": 60}])
def test_a_tick_on_time_gets_one_job_whatever_catch_up(catch_up: str, when: dict[str, Any], late: int) -> None:
    now = NOON + MINUTE + late

    ticks, after = due(schedule(catch_up=catch_up, **when), now)

    assert ticks == (NOON + MINUTE,)
    assert (after.executions, after.last_at, after.next_at) == (1, NOON + MINUTE, NOON + 2 * MINUTE)
    assert after.updated_at == now
    assert due(after, now) == ((), after)


@pytest.mark.parametrize("when", [{"cron": "*/10 * * * *"}, {"every": 600}])
def test_one_makes_up_for_downtime_with_a_single_job_for_the_newest_tick(when: dict[str, Any]) -> None:
    ticks, after = due(schedule(catch_up="one", **when), NOON + 35 * MINUTE)

    assert ticks == (NOON + 30 * MINUTE,)
    assert (after.executions, after.last_at, after.next_at) == (1, NOON + 30 * MINUTE, NOON + 40 * MINUTE)


@pytest.mark.parametrize("when", [{"cron": "*/10 * * * *"}, {"every": 600}])
def test_all_makes_up_for_downtime_with_a_job_for_each_tick_oldest_first(when: dict[str, Any]) -> None:
    ticks, after = due(schedule(catch_up="all", **when), NOON + 35 * MINUTE)

    assert ticks == (NOON + 10 * MINUTE, NOON + 20 * MINUTE, NOON + 30 * MINUTE)
    assert (after.executions, after.last_at, after.next_at) == (3, NOON + 30 * MINUTE, NOON + 40 * MINUTE)


@pytest.mark.parametrize("when", [{"cron": "*/10 * * * *"}, {"every": 600}])
def test_all_gives_no_more_than_the_limit_and_goes_on_where_it_stopped(when: dict[str, Any]) -> None:
    now = NOON + 35 * MINUTE

    two, rest = due(schedule(catch_up="all", **when), now, limit=2)
    one, done = due(rest, now, limit=2)

    assert two == (NOON + 10 * MINUTE, NOON + 20 * MINUTE)
    assert rest.next_at == NOON + 30 * MINUTE
    assert one == (NOON + 30 * MINUTE,)
    assert due(done, now) == ((), done)


@pytest.mark.parametrize("when", [{"cron": "*/10 * * * *"}, {"every": 600}])
def test_none_drops_what_was_missed_and_moves_on(when: dict[str, Any]) -> None:
    now = NOON + 35 * MINUTE

    ticks, after = due(schedule(catch_up="none", **when), now)

    assert ticks == ()
    assert (after.executions, after.last_at, after.next_at, after.updated_at) == (
        0,
        None,
        NOON + 40 * MINUTE,
        now,
    )


@pytest.mark.parametrize("when", [{"cron": "*/10 * * * *"}, {"every": 600}])
def test_none_drops_a_lone_tick_only_when_it_is_more_than_a_minute_late(when: dict[str, Any]) -> None:
    a_schedule = schedule(catch_up="none", **when)
    tick = NOON + 10 * MINUTE

    assert due(a_schedule, tick + MISSED_AFTER)[0] == (tick,)
    assert due(a_schedule, tick + MISSED_AFTER + 1)[0] == ()


def test_a_dropped_tick_is_not_the_last_one_that_pushed_a_job() -> None:
    _, served = due(schedule(catch_up="none", every=600), NOON + 10 * MINUTE)

    ticks, after = due(served, NOON + 35 * MINUTE)

    assert ticks == ()
    assert (after.executions, after.last_at) == (1, NOON + 10 * MINUTE)


def test_none_drops_a_tick_whose_successor_is_due_too() -> None:
    assert due(schedule(catch_up="none", every=1), NOON + 3 * SECOND + 500)[0] == (NOON + 3 * SECOND,)


def test_downtime_over_the_skipped_hour_is_caught_up_tick_by_tick() -> None:
    zone = "Europe/Berlin"
    a_schedule = schedule(cron="30 2 * * *", timezone=zone, catch_up="all", now=at("2024-03-30T12:00", zone))

    ticks, _ = due(a_schedule, at("2024-04-02", zone))

    assert [local(tick, zone) for tick in ticks] == ["2024-03-31T03:00+02:00", "2024-04-01T02:30+02:00"]


@pytest.mark.parametrize("catch_up", sorted(CATCH_UP))
@pytest.mark.parametrize("when", [{"cron": "* * * * *"}, {"every": 60}])
def test_max_executions_is_never_exceeded_and_finishes_the_schedule(catch_up: str, when: dict[str, Any]) -> None:
    a_schedule = schedule(catch_up=catch_up, max_executions=3, **when)
    now, pushed = NOON, 0
    while not a_schedule.is_finished:
        now += 2 * MINUTE + 100
        ticks, a_schedule = due(a_schedule, now)
        pushed += len(ticks)

    assert pushed == a_schedule.executions == 3
    assert a_schedule.next_at is None
    assert next_tick(a_schedule, now) is None
    assert due(a_schedule, now + DAY) == ((), a_schedule)
    assert due(a_schedule, now + DAY)[1] is a_schedule


# However long it was down


class Count:
    """Calls through, and knows how often."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self.function(*arguments)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Count:
    """How many ticks were computed one after the other."""
    count = Count(schedule_module._tick_after)
    monkeypatch.setattr(schedule_module, "_tick_after", count)
    return count


@pytest.mark.parametrize("catch_up", ["one", "none"])
def test_ten_million_missed_interval_ticks_are_answered_by_arithmetic(catch_up: str, looks: Count) -> None:
    a_schedule = schedule(every=1, catch_up=catch_up)
    looks.calls = 0

    ticks, after = due(a_schedule, NOON + 10_000_000 * SECOND + 7)

    assert ticks == (NOON + 10_000_000 * SECOND,)
    assert after.next_at == NOON + 10_000_001 * SECOND
    assert looks.calls <= 2


@pytest.mark.parametrize("catch_up", ["one", "none"])
@pytest.mark.parametrize("cron", ["* * * * *", "*/7 1-5 * * *"])
def test_ten_years_of_missed_cron_ticks_are_found_in_a_few_looks(catch_up: str, cron: str, looks: Count) -> None:
    a_schedule = schedule(cron=cron, timezone="America/New_York", catch_up=catch_up)
    looks.calls = 0

    _, after = due(a_schedule, NOON + 3650 * DAY)

    assert after.next_at == next_tick(a_schedule, NOON + 3650 * DAY)
    assert looks.calls < 60


def test_a_cron_tick_on_time_costs_two_looks(looks: Count) -> None:
    a_schedule = schedule(cron="* * * * *")
    looks.calls = 0

    due(a_schedule, NOON + MINUTE + 900)

    assert looks.calls == 2


def test_all_computes_no_more_ticks_than_its_limit(looks: Count) -> None:
    a_schedule = schedule(every=0.001, catch_up="all")
    looks.calls = 0

    ticks, _ = due(a_schedule, NOON + DAY, limit=100)

    assert len(ticks) == 100
    assert looks.calls <= 102


# Pause and resume


def test_nothing_is_due_while_paused() -> None:
    paused = pause(schedule(every=60), NOON + 5)

    ticks, after = due(paused, NOON + DAY)

    assert ticks == ()
    assert after is paused
    assert paused.updated_at == NOON + 5


@pytest.mark.parametrize("catch_up", sorted(CATCH_UP))
@pytest.mark.parametrize("when", [{"cron": "* * * * *"}, {"every": 60}])
def test_resume_drops_what_was_missed_and_stays_on_the_anchor(catch_up: str, when: dict[str, Any]) -> None:
    now = NOON + 10 * MINUTE + 5

    resumed = resume(pause(schedule(catch_up=catch_up, **when), NOON), now)

    assert (resumed.paused, resumed.next_at, resumed.updated_at) == (False, NOON + 11 * MINUTE, now)
    assert due(resumed, now) == ((), resumed)


def test_pause_and_resume_twice_are_as_good_as_once() -> None:
    running = schedule(every=60)
    paused = pause(running, NOON + 5)

    assert pause(paused, NOON + 9) is paused
    assert resume(running, NOON + 9) is running


def test_a_resume_after_the_wall_went_back_repeats_no_tick() -> None:
    _, served = due(schedule(cron="* * * * *"), NOON + 10 * MINUTE)

    resumed = resume(pause(served, NOON), NOON)

    assert resumed.next_at == NOON + 11 * MINUTE


def test_a_finished_schedule_stays_finished_when_resumed() -> None:
    _, finished = due(schedule(every=60, max_executions=1), NOON + MINUTE)

    assert resume(pause(finished, NOON + DAY), NOON + DAY).next_at is None


# The same registration


def test_how_far_a_schedule_has_come_does_not_change_its_definition() -> None:
    registered = schedule(every=60)
    _, served = due(registered, NOON + DAY)

    assert same_definition(registered, served)
    assert same_definition(registered, pause(served, NOON + DAY))
    assert same_definition(registered, schedule(every=timedelta(minutes=1), now=NOON + DAY))


@pytest.mark.parametrize(
    "other",
    [
        {"name": "other"},
        {"queue": "other"},
        {"job_name": "other"},
        {"options": msgspec.Raw(b'{"priority":1}')},
        {"every": 61},
        {"every": None, "cron": "* * * * *"},
        {"timezone": "Europe/Berlin"},
        {"first": "now"},
        {"catch_up": "all"},
        {"max_executions": 5},
    ],
)
def test_anything_a_caller_asks_for_differently_is_another_definition(other: dict[str, Any]) -> None:
    assert not same_definition(schedule(every=60), schedule(**{"every": 60, **other}))


def test_a_schedule_comes_back_from_json_as_it_went_in() -> None:
    for a_schedule in (
        schedule(cron="@daily", timezone="Europe/Berlin", max_executions=2, options=msgspec.Raw(b'{"data":[1]}')),
        pause(due(schedule(every=0.333), NOON + DAY)[1], NOON + DAY),
    ):
        back = msgspec.json.decode(msgspec.json.encode(a_schedule), type=Schedule)

        assert back == a_schedule
        assert same_definition(back, a_schedule)


def test_computing_a_tick_leaves_the_calendar_that_threads_share_as_it_was() -> None:
    a_schedule = schedule(cron="0 0 * * *")
    before = schedule_module._calendar("0 0 * * *").get_current()

    next_tick(a_schedule, NOON + 5 * DAY)

    assert schedule_module._calendar("0 0 * * *").get_current() == before


def test_importing_schedule_does_not_import_croniter() -> None:
    code = "import sys, rqlab.schedule; sys.exit('croniter' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_schedule_shows_itself_in_aware_datetimes_and_seconds() -> None:
    instant = datetime.fromtimestamp(NOON / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")
    interval = replace(schedule(every=60.5, max_executions=3), next_at=NOON, last_at=NOON, executions=2)
    nightly = schedule(cron="0 3 * * *", timezone="Europe/Berlin")

    assert f"every 60.5 s, pushes {interval.queue}/{interval.job_name}, executions 2 of 3" in repr(interval)
    assert f"next_at {instant}, last_at {instant}>" in repr(interval)
    assert instant.endswith("+00:00")
    assert repr(nightly).startswith(f"<Schedule {nightly.name!r} cron '0 3 * * *' in Europe/Berlin, pushes ")
    assert ", paused" in repr(replace(nightly, paused=True))
    assert "next_at" not in repr(replace(nightly, next_at=None))
    assert str(NOON) not in repr(interval)
