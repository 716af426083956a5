"""What a pupil hands in gets a helpful answer: right, not yet and why, or not answered yet; never a traceback."""

import inspect
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import rqlab
from rqlab import exercises


def in_order(rq: rqlab.Queues) -> None:
    for priority, name in enumerate(exercises.PUSHED):
        rq.push("letters", name, priority=priority)


def without_priorities(rq: rqlab.Queues) -> None:
    for name in exercises.PUSHED:
        rq.push("letters", name)


def later(rq: rqlab.Queues) -> None:
    for name in exercises.PUSHED:
        rq.push("letters", name, delay=60)


def elsewhere(rq: rqlab.Queues) -> None:
    rq.push("emails", "urgent")


def once(job: rqlab.Job, ctx: Any, done: set[str]) -> None:
    if job.id not in done:
        ctx.effect("charged card")
        done.add(job.id)


def every_time(job: rqlab.Job, ctx: Any) -> None:
    ctx.effect("charged card")


def now_and_then(job: rqlab.Job, ctx: Any) -> None:
    """Skips jobs; no job's effect happens twice."""
    if job.deliveries == 1 and int(job.id[-1], 16) % 2:
        ctx.effect("charged card")


def leave(anything: Any) -> None:
    raise SystemExit(3)


def workload(directory: Path, pushes: int = 50) -> Iterator[int]:
    with rqlab.open(directory / "jobs") as rq:
        for number in range(pushes):
            rq.push("q", "n", number)
            yield number


def survivors(directory: Path) -> list[int]:
    with rqlab.open(directory / "jobs") as rq:
        return [job.data for job in rq.jobs(limit=1000)]


def forgetful(directory: Path) -> list[int]:
    return survivors(directory)[1:]


WRONG_STORY = {**exercises.STORIES, "docker kill": "power cut"}
WRONG_MODE = {**exercises.NEEDS, "four worker processes share the directory": "hybrid"}
NO_MODE = {**exercises.NEEDS, "a unit test": "none"}

CUT = [rqlab.Fault(2.0, "power cut", seconds=1.0, how="lost")]
PUSHES = [{"name": "send", "at": at} for at in (0.1, 0.2, 1.5, 1.6, 2.5)]
STORY = rqlab.simulate(CUT, faults=(), seed=1, jobs=PUSHES, durability="hybrid", failure_rate=0)
HARMLESS = rqlab.simulate(CUT, faults=(), seed=1, jobs=PUSHES, failure_rate=0)

#: Of each exercise: an answer, the mark that it gets, and words that must be said.
ANSWERS: list[tuple[str, tuple[Any, ...], str, str]] = [
    ("order", (in_order,), "✓", "pushed last, run first"),
    ("order", (lambda rq: None,), "○", "Push the jobs"),
    ("order", (without_priorities,), "✗", "they ran later, normal, urgent"),
    ("order", (later,), "✗", "not due"),
    ("order", (elsewhere,), "✗", "into emails"),
    ("order", (lambda rq: rq.push("letters"),), "✗", "raised TypeError"),
    ("order", (lambda rq: rq.close(),), "✗", "raised StoreError"),
    ("order", (leave,), "✗", "raised SystemExit"),
    ("stall_timeout", (8,), "✓", "are forgiven"),
    ("stall_timeout", (2,), "✗", "Allow more"),
    ("stall_timeout", (60,), "✗", "Allow less"),
    ("stall_timeout", (0,), "✗", "stall_timeout: expected"),
    ("waits", ({"max_attempts": 5, "backoff_delay": 2, "max_backoff": 10},), "✓", "caps it"),
    ("waits", ({"max_attempts": 5},), "✗", "1, 2, 4, 8 s"),
    ("waits", ({"max_attempts": 1},), "✗", "no wait"),
    ("waits", ({"jitter": 0.2},), "✗", "jitter"),
    ("waits", ({"tries": 5},), "✗", "raised TypeError"),
    ("waits", (5,), "✗", "expected a dict"),
    ("crashes", (exercises.STORIES,), "✓", "page cache"),
    ("crashes", (WRONG_STORY,), "✗", "5 of 6 are right. docker kill: the process dies"),
    ("crashes", ({**exercises.STORIES, "docker kill": ...},), "✗", "still open: docker kill"),
    ("crashes", ({"docker kill": "kill -9"},), "✗", "expected a dict with these keys"),
    ("modes", (exercises.NEEDS,), "✓", "what you may lose"),
    ("modes", (WRONG_MODE,), "✗", "processes: one"),
    ("modes", (NO_MODE,), "✗", "there are durable, buffered, hybrid, memory"),
    ("seed", (1,), "✓", "is refused"),
    ("seed", (7,), "✗", "the one that the notebook shows"),
    ("seed", ("seven",), "✗", "seed: expected"),
    ("seed", (None,), "✗", "nobody could replay"),
    ("handler", (partial(once, done=set()),), "✓", "none of them twice"),
    ("handler", (every_time,), "✗", "Who remembers"),
    ("handler", (lambda job, ctx: None,), "○", "Write a handler"),
    ("handler", (now_and_then,), "✗", "completed without its effect"),
    ("cron", ("30 7 * * 1-5", "Europe/Berlin"), "✓", "07:30"),
    ("cron", ("30 6 * * mon-fri",), "✗", "put forward in March"),
    ("cron", ("30 7 * * *", "Europe/Berlin"), "✗", "a tick that should not be: Sat 03 Jan"),
    ("cron", ("half past seven",), "✗", "expected 5 fields"),
    ("grace", (25,), "✓", "no attempt charged"),
    ("grace", (None,), "✗", "SIGKILL takes the worker"),
    ("grace", (30,), "✗", "no time left"),
    ("grace", (0,), "✗", "wasted"),
    ("grace", ("long",), "✗", "expected seconds"),
    ("grace", (math.nan,), "✗", "expected seconds"),
    ("grace", (10**400,), "✗", "expected seconds"),
    ("queue", (workload, survivors), "✓", "are what that costs"),
    ("queue", (workload, forgetful), "✗", "loses up to"),
    ("queue", (lambda directory: workload(directory, 5), survivors), "✗", "prove little"),
    ("queue", (lambda directory: [], survivors), "✗", "raised ValueError"),
    ("queue", (leave, survivors), "✗", "raised SystemExit"),
    ("safe_until", (STORY, 1.0), "✓", "There is no hole"),
    ("safe_until", (STORY, 0.15), "✗", "Later"),
    ("safe_until", (STORY, 2.5), "✗", "Earlier"),
    ("safe_until", (STORY, "late"), "✗", "expected an instant"),
    ("safe_until", (STORY, math.nan), "✗", "expected an instant"),
    ("safe_until", (1.0, STORY), "✗", "expected what rqlab.simulate(…) returned; got float"),
    ("safe_until", (HARMLESS, 1.0), "✗", "nothing was lost in this result"),
    ("mission", (STORY,), "✓", "hybrid had said so"),
    ("mission", (HARMLESS,), "✗", "try another mode"),
    ("mission", (SimpleNamespace(acknowledged=9, mode="buffered", lost=3, ok=True),), "✓", "the open batch"),
    ("mission", (SimpleNamespace(acknowledged=9, mode="durable", lost=3, ok=False),), "✓", "found a bug"),
    ("mission", (5,), "✗", "expected what rqlab.simulate(…) or lab.report() returned"),
]


@pytest.mark.parametrize(("exercise", "answer", "mark", "words"), ANSWERS)
def test_an_answer_gets_its_verdict_and_words_that_help(
    exercise: str, answer: tuple[Any, ...], mark: str, words: str
) -> None:
    verdict = rqlab.EXERCISES[exercise].check(*answer)

    assert repr(verdict).startswith(mark), verdict
    assert words in verdict.says
    assert bool(verdict) == (mark == "✓")


@pytest.mark.parametrize("exercise", rqlab.EXERCISES)
def test_an_exercise_that_was_not_answered_says_what_it_asks(exercise: str) -> None:
    check = rqlab.EXERCISES[exercise].check
    needed = [each for each in inspect.signature(check).parameters.values() if each.default is each.empty]

    verdict = check(*[...] * len(needed))

    assert not verdict
    assert verdict.says == f"○ Not answered yet. {rqlab.EXERCISES[exercise].asks}"


def test_every_exercise_is_a_function_at_top_level() -> None:
    for name, row in rqlab.EXERCISES.items():
        assert getattr(rqlab, f"check_{name}") is row.check
        assert (row.check.__doc__ or "").rstrip().endswith("?")
