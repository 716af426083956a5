"""A line keeps its order, whatever comes in, goes out and is asked: held against a plain sorted list."""

import random
from bisect import bisect_left
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqlab.storage import line as line_module
from rqlab.storage.line import BLOCK, Line

KINDS = ("at the end", "anywhere", "anywhere", "pop", "pop", "remove", "remove")


class Step(NamedTuple):
    """One change, and one question after it."""

    kind: str
    number: int
    start: int
    end: int
    limit: int


places = st.integers(0, 99)
steps = st.builds(Step, st.sampled_from(KINDS), places, places, places, st.integers(0, 12))


def text(number: int) -> str:
    return f"ready/a/{number:09d}"


def follow(line: Line, model: list[str], step: Step) -> None:
    """Do the step to the line and to the plain list, and ask both."""
    if step.kind == "at the end":
        place = model[-1] + "'" if model else text(step.number)
        line.add(place)
        model.append(place)
    elif step.kind == "anywhere" and text(step.number) not in model:
        line.add(text(step.number))
        model.insert(bisect_left(model, text(step.number)), text(step.number))
    elif step.kind == "pop" and model:
        assert line.first("", "~") == model[0]
        line.remove(model.pop(0))
    elif step.kind == "remove" and model:
        line.remove(model.pop(step.number % len(model)))
    start, end = text(step.start), text(step.end)
    there = [place for place in model if start <= place < end]

    assert line.first(start, end) == (there[0] if there else None)
    assert line.run(start, end, step.limit) == there[: step.limit]
    assert line.run_backwards(start, end, step.limit) == there[::-1][: step.limit]
    assert line.count(start, end) == len(there)


@pytest.mark.parametrize("block", [1, 2, 3, 8])
def test_a_line_keeps_its_order_under_any_changes(block: int) -> None:
    @settings(deadline=None)
    @given(st.lists(places, unique=True, max_size=30), st.lists(steps, max_size=80))
    def check(numbers: list[int], program: list[Step]) -> None:
        line, model = Line(map(text, numbers)), sorted(map(text, numbers))
        for step in program:
            follow(line, model, step)
        assert line.run("", "~", 1_000) == model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_module, "BLOCK", block)
        check()


def test_a_long_line_keeps_its_order_across_its_blocks() -> None:
    chance = random.Random(7)
    numbers = range(10 * BLOCK)
    line = Line(text(number) for number in numbers if number % 3)
    there = {number for number in numbers if number % 3}
    for number in chance.sample(numbers, len(numbers)):
        if number in there:
            line.remove(text(number))
        else:
            line.add(text(number))
        there ^= {number}

    assert line.run("", "~", len(numbers)) == [text(number) for number in sorted(there)]
    assert line.run_backwards("", "~", 2 * BLOCK) == [text(number) for number in sorted(there)[: -2 * BLOCK - 1 : -1]]
    assert line.count(text(BLOCK), text(5 * BLOCK)) == len([number for number in there if BLOCK <= number < 5 * BLOCK])


def test_a_line_that_emptied_fills_again() -> None:
    line = Line(map(text, range(3 * BLOCK)))
    while (head := line.first("", "~")) is not None:
        line.remove(head)

    assert line.run("", "~", 9) == line.run_backwards("", "~", 9) == []
    line.add(text(5))
    line.add(text(3))
    assert line.run("", "~", 9) == [text(3), text(5)]


def test_what_does_not_stand_in_a_line_cannot_be_let_out() -> None:
    line = Line([text(1), text(3)])

    with pytest.raises(AssertionError, match="does not stand"):
        line.remove(text(2))
    assert line.run("", "~", 9) == [text(1), text(3)]
