"""How long to wait before a job is tried again: the formulas, the cap, the jitter."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqlab.backoff import retry_in
from rqlab.job import Backoff, Job


def job(attempt: int, **fields: Any) -> Job:
    return Job(id="", queue="q", name="n", attempt=attempt, **fields)


@pytest.mark.parametrize(
    ("backoff", "base", "expected"),
    [
        ("fixed", 1.0, [1_000, 1_000, 1_000, 1_000]),
        ("linear", 1.0, [1_000, 2_000, 3_000, 4_000]),
        ("exponential", 1.0, [1_000, 2_000, 4_000, 8_000]),
        ("fixed", 0.25, [250, 250, 250, 250]),
        ("linear", 0.25, [250, 500, 750, 1_000]),
        ("exponential", 0.25, [250, 500, 1_000, 2_000]),
    ],
)
def test_the_delays_of_the_first_attempts(backoff: str, base: float, expected: list[int]) -> None:
    delays = [retry_in(job(n, backoff=Backoff(backoff), backoff_delay=base), 0.5) for n in (1, 2, 3, 4)]

    assert delays == expected


@pytest.mark.parametrize("backoff", Backoff)
def test_no_backoff_is_longer_than_max_backoff(backoff: Backoff) -> None:
    delays = [retry_in(job(n, backoff=backoff, backoff_delay=10.0, max_backoff=25.0), 0.5) for n in range(1, 50)]

    assert max(delays) <= 25_000
    assert (max(delays) == 25_000) is (backoff is not Backoff.FIXED)


def test_jitter_does_not_lift_a_backoff_over_the_cap() -> None:
    assert retry_in(job(9, backoff_delay=10.0, max_backoff=25.0, jitter=1.0), 0.999999) == 25_000


@pytest.mark.parametrize(("draw", "expected"), [(0.0, 8_000), (0.25, 9_000), (0.5, 10_000), (0.75, 11_000)])
def test_jitter_draws_from_both_sides(draw: float, expected: int) -> None:
    assert retry_in(job(1, backoff_delay=10.0, jitter=0.2), draw) == expected


def test_without_jitter_the_draw_has_no_effect() -> None:
    assert {retry_in(job(1, backoff_delay=10.0), draw) for draw in (0.0, 0.3, 0.999)} == {10_000}


def test_full_jitter_reaches_from_nothing_to_double() -> None:
    assert retry_in(job(1, backoff_delay=10.0, jitter=1.0), 0.0) == 0
    assert 19_999 <= retry_in(job(1, backoff_delay=10.0, jitter=1.0), 0.999999) <= 20_000


@pytest.mark.parametrize("base", [0.0, 0.001, 1.0, 86_400.0, 100 * 365.25 * 86_400])
@pytest.mark.parametrize("backoff", Backoff)
@pytest.mark.parametrize("attempt", [1, 63, 64, 65, 66, 1_000, 1_025, 10**6, 2**31])
def test_no_attempt_overflows(backoff: Backoff, base: float, attempt: int) -> None:
    delay = retry_in(job(attempt, backoff=backoff, backoff_delay=base, max_attempts=2**31, jitter=1.0), 0.9)

    assert 0 <= delay <= 86_400_000
    assert delay > 0 or base == 0


def test_a_backoff_of_nothing_is_no_delay() -> None:
    assert [retry_in(job(n, backoff_delay=0.0, jitter=0.5), 0.9) for n in (1, 5, 10**6)] == [0, 0, 0]


def test_a_part_of_a_millisecond_is_rounded_up() -> None:
    assert retry_in(job(1, backoff_delay=0.001, jitter=0.5), 0.6) == 2


@given(
    backoff=st.sampled_from(list(Backoff)),
    base=st.floats(0, 1e9),
    cap=st.floats(0, 1e9),
    jitter=st.floats(0, 1),
    attempt=st.integers(1, 10**6),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_every_delay_is_whole_and_between_nothing_and_the_cap(
    backoff: Backoff, base: float, cap: float, jitter: float, attempt: int, draw: float
) -> None:
    fields: dict[str, Any] = {"backoff": backoff, "backoff_delay": base, "max_backoff": cap, "jitter": jitter}
    delay = retry_in(job(attempt, **fields), draw)

    assert isinstance(delay, int)
    assert 0 <= delay <= cap * 1000 + 1


@given(base=st.floats(0.001, 1e4), attempt=st.integers(1, 60))
def test_without_jitter_a_backoff_never_falls_from_one_attempt_to_the_next(base: float, attempt: int) -> None:
    for backoff in Backoff:
        fields: dict[str, Any] = {"backoff": backoff, "backoff_delay": base}
        assert retry_in(job(attempt + 1, **fields), 0.5) >= retry_in(job(attempt, **fields), 0.5)
