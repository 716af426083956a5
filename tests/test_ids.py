"""Ids: UUIDv7 text that rises strictly within a process, whatever the clock does."""

import os
import random
import threading
import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rqlab
from rqlab import queues
from rqlab.ids import Ids

NOW = 1_767_225_600_000


def ids(seed: int = 7) -> Ids:
    return Ids(random.Random(seed).getrandbits)


@pytest.mark.parametrize("now", [0, 1, NOW, 2**48 - 1])
def test_an_id_is_a_uuid_of_version_7_at_its_instant(now: int) -> None:
    text = ids().draw(now)
    parsed = uuid.UUID(text)

    assert str(parsed) == text
    assert len(text) == 36
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert parsed.int >> 80 == now


def test_each_id_of_a_millisecond_is_valid() -> None:
    source = ids()

    for _ in range(10_000):
        parsed = uuid.UUID(source.draw(NOW))
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)


def test_ids_rise_strictly_within_a_millisecond() -> None:
    source = ids()
    drawn = [source.draw(NOW) for _ in range(20_000)]

    assert drawn == sorted(set(drawn))


def test_when_the_counter_is_used_up_the_milliseconds_run_ahead() -> None:
    source = ids()
    drawn = [source.draw(NOW) for _ in range(9_000)]

    assert uuid.UUID(drawn[0]).int >> 80 == NOW
    assert uuid.UUID(drawn[3_000]).int >> 80 == NOW
    assert uuid.UUID(drawn[-1]).int >> 80 in (NOW + 2, NOW + 3)


def test_ids_rise_when_the_clock_goes_back() -> None:
    source = ids()
    drawn = [source.draw(now) for now in (NOW, NOW - 1, NOW - 3_600_000, 0, NOW - 3_599_999, NOW, NOW + 1)]

    assert drawn == sorted(set(drawn))
    assert uuid.UUID(drawn[-1]).int >> 80 == NOW + 1


@given(st.lists(st.integers(0, 50), max_size=200))
def test_ids_rise_whatever_the_clock_says(instants: list[int]) -> None:
    source = ids()
    drawn = [source.draw(now) for now in instants]

    assert drawn == sorted(set(drawn))
    assert all(uuid.UUID(text).version == 7 for text in drawn)


@pytest.mark.parametrize("count", [0, 1, 2, 1_000, 9_000])
def test_many_ids_are_those_that_single_draws_would_give(count: int) -> None:
    one, many = ids(), ids()

    for now in (NOW, NOW, NOW - 5, NOW + 10):
        assert many.draw_many(now, count) == [one.draw(now) for _ in range(count)]
        assert many.draw(now) == one.draw(now)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5_000)), max_size=20))
def test_ids_drawn_in_any_numbers_rise(draws: list[tuple[int, int]]) -> None:
    source = ids()
    drawn = [text for now, count in draws for text in source.draw_many(now, count)]

    assert len(drawn) == sum(count for _, count in draws)
    assert drawn == sorted(set(drawn))
    assert all(uuid.UUID(text).version == 7 for text in drawn[:: max(1, len(drawn) // 50)])


@pytest.mark.parametrize("struck", range(6))
def test_ids_go_on_rising_after_an_interrupt_of_a_draw(struck: int) -> None:
    chance, calls = random.Random(7), iter(range(10_000))

    def interrupted_bits(bits: int) -> int:
        if next(calls) == struck:
            raise KeyboardInterrupt
        return chance.getrandbits(bits)

    source = Ids(interrupted_bits)
    drawn = []
    for now in (NOW, NOW, NOW + 1, NOW + 1, NOW):
        try:
            drawn += source.draw_many(now, 4_000)
        except KeyboardInterrupt:
            drawn += [source.draw(now) for _ in range(5_000)]

    assert len(drawn) > 20_000
    assert drawn == sorted(set(drawn))


def test_ids_of_many_threads_are_all_different_and_rise_in_each() -> None:
    chance = random.Random(7)

    def restless_bits(bits: int) -> int:
        time.sleep(0)  # lets another thread in, in the middle of a draw
        return chance.getrandbits(bits)

    source = Ids(restless_bits)
    drawn: list[list[str]] = [[] for _ in range(8)]
    start = threading.Barrier(8)

    def draw(into: list[str]) -> None:
        start.wait()
        for number in range(2_000):
            into.append(source.draw(NOW + number // 20))

    threads = [threading.Thread(target=draw, args=(into,)) for into in drawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({text for each in drawn for text in each}) == 16_000
    assert all(each == sorted(each) for each in drawn)


def test_two_sources_draw_different_ids_at_one_instant() -> None:
    assert ids(1).draw(NOW) != ids(2).draw(NOW)


def test_a_forked_child_draws_no_id_of_its_parent() -> None:
    ours = [queues._ids.draw(0) for _ in range(5)]  # the clock stands: they go on in one millisecond
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # in the child: no assertion may leave it
        try:
            os.write(writer, "\n".join(queues._ids.draw(0) for _ in range(50)).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    theirs = os.read(reader, 100_000).decode().split()
    os.close(reader)
    os.close(writer)
    ours += [queues._ids.draw(0) for _ in range(50)]

    assert len(theirs) == 50
    assert not set(ours) & set(theirs)


def test_ids_are_sorted_by_push_across_all_queues_of_a_process() -> None:
    with rqlab.memory() as one, rqlab.memory() as other:
        drawn = [rq.push("q", "n") for _ in range(500) for rq in (one, other)]

    assert drawn == sorted(set(drawn))
