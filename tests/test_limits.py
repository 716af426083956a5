"""What callers may pass: at, below and above each limit; what is refused says why, and has changed nothing."""

import datetime
import enum
import fractions
import json
import math
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from conftest import Unequal
from hypothesis import given, settings
from hypothesis import strategies as st

import rqlab
from rqlab import arguments, queues
from rqlab.errors import RQLabError, ValidationError
from rqlab.job import Job, milliseconds

MIB = 1024 * 1024
SURROGATE = "caf\ud800"


class Kind(enum.StrEnum):
    MAIL = "mail"


class OldKind(str, enum.Enum):  # noqa: UP042  # people have them, and their str() is not their value
    MAIL = "mail"


def everything(rq: rqlab.Queues) -> Any:
    """All records, counters and pauses."""
    return rq.jobs(), {queue: dict(rq._store.counters(queue)) for queue in rq.queues()}, rq.paused()


@contextmanager
def refused(rq: rqlab.Queues, *said: str) -> Iterator[None]:
    """A ValidationError with these words, that says what was expected and got; nothing has changed."""
    before = everything(rq)
    with pytest.raises(ValidationError) as error:
        yield
    text = str(error.value)
    assert "expected" in text
    assert "got" in text
    assert len(text) < 600
    text.encode()
    for words in said:
        assert words in text
    assert everything(rq) == before


# Names.


@pytest.mark.parametrize("name", ["q", "a.b-c_D9", ".", "-", "q" * 256])
def test_a_queue_may_be_called_so(rq: rqlab.Queues, name: str) -> None:
    job_id = rq.push(name, "send")

    assert rq.queues() == [name]
    assert [job.id for job in rq.pull(name)] == [job_id]


@pytest.mark.parametrize(
    "name", ["", "q" * 257, "a b", "a/b", "a\n", "\n", "é", "a\0", "~", "a:b", SURROGATE, None, 7, b"q", ["q"], True]
)
def test_a_queue_may_not_be_called_so(rq: rqlab.Queues, name: Any) -> None:
    with refused(rq, "queue: expected 1 to 256 characters"):
        rq.push(name, "send")
    for call in (rq.pull, rq.counts, rq.jobs, rq.purge, rq.pause, rq.resume, rq.requeue_all, rq.get_dlq_jobs):
        if name is None and call in (rq.counts, rq.jobs):
            continue  # there it means all queues
        with refused(rq, "queue: expected"):
            call(name)


@pytest.mark.parametrize("name", ["n", "n" * 1024, "send.welcome_mail-2"])
def test_a_job_may_be_called_so(rq: rqlab.Queues, name: str) -> None:
    assert rq.get(rq.push("q", name)).name == name


@pytest.mark.parametrize("name", ["", "n" * 1025, "a b", "a/b", "a\n", "é", None, 7])
def test_a_job_may_not_be_called_so(rq: rqlab.Queues, name: Any) -> None:
    with refused(rq, "name: expected 1 to 1024 characters"):
        rq.push("q", name)


def test_a_long_name_of_a_job_is_too_long_for_a_queue() -> None:
    rq = rqlab.memory()
    rq.push("q", "n" * 1024)

    with refused(rq, "got 1024 characters"):
        rq.push("n" * 1024, "send")


@pytest.mark.parametrize("kind", [Kind.MAIL, OldKind.MAIL])
def test_a_member_of_a_text_enum_stands_for_its_value(rq: rqlab.Queues, kind: str) -> None:
    job_id = rq.push(kind, kind, {"kind": kind}, unique_key=kind, tags=[kind])

    job = rq.get(job_id)
    assert (job.queue, job.name, job.data, job.unique_key) == ("mail", "mail", {"kind": "mail"}, "mail")
    assert job.tags == ("mail",)


# Data: what JSON can say comes back as it went in.


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**53, 2**64, -(2**200), pytest.param(10**4_299, id="4300 digits"),
        0.1, -0.0, 1e308, 5e-324, "", "é", "\u2028", "\0",
        '"\\/\b\f\n\r\t', "😀", [], {}, [[]], {"": None}, {"a": {"b": [1, "2", None, True]}},
    ],
)  # fmt: skip
def test_a_json_value_comes_back_as_it_went_in(rq: rqlab.Queues, value: Any) -> None:
    job_id = rq.push("q", "n", value)
    (job,) = rq.pull("q")
    done = rq.ack(job, value)

    for record in (job, done, rq.get(job_id)):
        assert record.data == value
        assert type(record.data) is type(value)
    assert rq.get(job_id).result == value


def test_negative_zero_keeps_its_sign(rq: rqlab.Queues) -> None:
    assert math.copysign(1, rq.get(rq.push("q", "n", -0.0)).data) == -1


def test_a_tuple_is_taken_as_a_list(rq: rqlab.Queues) -> None:
    assert rq.get(rq.push("q", "n", {"pair": (1, ("é", None))})).data == {"pair": [1, ["é", None]]}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (float("nan"), "data"),
        (float("inf"), "data"),
        ([1, {"a": [float("-inf")]}], "data[1]['a'][0]"),
        (datetime.datetime(2026, 1, 1), "data"),
        ({"at": datetime.date(2026, 1, 1)}, "data['at']"),
        ({"for": timedelta(1)}, "data['for']"),
        (b"bytes", "data"),
        (bytearray(b"x"), "data"),
        ([{1, 2}], "data[0]"),
        (frozenset("a"), "data"),
        ({1: "a"}, "data"),
        ({None: "a"}, "data"),
        ({"a": {True: 1}}, "data['a']"),
        ({("a", "b"): 1}, "data"),
        (Decimal("1.5"), "data"),
        (fractions.Fraction(1, 2), "data"),
        (uuid.UUID(int=1), "data"),
        (1j, "data"),
        (object(), "data"),
        (object, "data"),
        (lambda: None, "data"),
        (Path("x"), "data"),
        (msgspec.Raw(b"1"), "data"),
        (msgspec.Raw(b"{broken"), "data"),
        (Job(id="1", queue="q", name="n"), "data"),
        (enum.Enum("Colour", "RED").RED, "data"),  # type: ignore[attr-defined]
        (range(3), "data"),
        (iter([1]), "data"),
        (SURROGATE, "data"),
        ([{"x": SURROGATE}], "data[0]['x']"),
        ({SURROGATE: 1}, "data"),
        pytest.param(10**4_300, "data", id="4301 digits"),
        pytest.param([-(10**5_000)], "data[0]", id="5001 digits"),
    ],
)
def test_what_json_cannot_say_is_refused_with_the_path_to_it(rq: rqlab.Queues, value: Any, path: str) -> None:
    with refused(rq, f"{path}: expected"):
        rq.push("q", "n", value)


def test_what_json_cannot_say_is_refused_as_a_result_too(rq: rqlab.Queues) -> None:
    rq.push("q", "n")
    (job,) = rq.pull("q")

    with refused(rq, "result['at']: expected"):
        rq.ack(job, {"at": datetime.date(2026, 1, 1)})
    (outcome,) = rq.ack_many([(job, float("nan"))])
    assert isinstance(outcome, rqlab.ValidationError)
    assert rq.get(job.id).state == "active"


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_a_value_that_cannot_be_printed_is_refused_all_the_same(rq: rqlab.Queues) -> None:
    with refused(rq, "unprintable"):
        rq.push("q", "n", Unprintable())


def nested(levels: int, innermost: Any) -> Any:
    for level in range(levels):
        innermost = [innermost] if level % 2 else {"a": innermost}
    return innermost


@pytest.mark.parametrize("innermost", [1, (), [], "[[[", {}])
def test_five_hundred_levels_are_the_most(rq: rqlab.Queues, innermost: Any) -> None:
    own = int(not isinstance(innermost, int | str))
    deepest = nested(500 - own, innermost)

    assert rq.get(rq.push("q", "n", deepest)).data == json.loads(json.dumps(deepest))
    for too_deep in (nested(501 - own, innermost), nested(800 - own, innermost), [[1] * 2_000, nested(500, 1)]):
        with refused(rq, "data: expected at most 500 levels"):
            rq.push("q", "n", too_deep)


def test_many_lists_side_by_side_are_not_deep(rq: rqlab.Queues) -> None:
    wide = [[index] for index in range(2_000)] + ["[" * 2_000]  # type: ignore[list-item]

    assert rq.get(rq.push("q", "n", wide)).data == wide


def test_a_value_that_contains_itself_is_refused(rq: rqlab.Queues) -> None:
    ring: list[Any] = []
    ring += [ring, ring, {"again": ring}]

    with refused(rq, "levels"):
        rq.push("q", "n", ring)


# Sizes: in exact encoded bytes.


@pytest.mark.parametrize(
    ("unit", "encoded_bytes"), [("x", 1), ('"', 2), ("\\", 2), ("\n", 2), ("\x01", 6), ("é", 2), ("€", 3), ("😀", 4)]
)
@pytest.mark.parametrize("as_tuple", [False, True])
def test_data_may_have_a_mebibyte_of_encoded_bytes(unit: str, encoded_bytes: int, as_tuple: bool) -> None:
    rq = rqlab.memory()
    free = MIB - 2 - 2  # brackets and quotes
    text = unit * (free // encoded_bytes) + "x" * (free % encoded_bytes)

    def wrapped(text: str) -> Any:
        return (text,) if as_tuple else [text]

    job = rq.get(rq.push("q", "n", wrapped(text)))
    assert len(job.encoded_data) == MIB
    assert job.data == [text]
    with refused(rq, f"data: expected at most {MIB} bytes", f"got {MIB + 1} bytes"):
        rq.push("q", "n", wrapped(text + "x"))


def test_a_mebibyte_of_data_goes_through_a_whole_life(rq: rqlab.Queues) -> None:
    data = "x" * (MIB - 2)
    job_id = rq.push("q", "n", data)
    (job,) = rq.pull("q")

    assert job.data == data
    assert rq.heartbeat(job).data == data
    assert rq.fail(job, "boom").data == data
    assert rq.cancel(job_id).data == data
    assert rq.requeue(job_id).data == data
    (again,) = rq.pull("q")
    assert rq.ack(again, data).result == data
    assert rq.get(job_id).data == data
    with refused(rq):
        rq.push("q", "n", data + "x")


def test_a_result_may_have_a_mebibyte(rq: rqlab.Queues) -> None:
    rq.push("q", "n")
    (job,) = rq.pull("q")

    with refused(rq, f"result: expected at most {MIB} bytes"):
        rq.ack(job, "x" * (MIB - 1))
    assert rq.ack(job, "x" * (MIB - 2)).state == "completed"


@pytest.mark.parametrize("size", [4_095, 4_096, 4_097, 33_000])
def test_data_comes_back_on_both_sides_of_being_kept_apart(rq: rqlab.Queues, size: int) -> None:
    data = "y" * (size - 2)
    job_id = rq.push("q", "n", data)

    assert rq.get(job_id).data == data
    assert rq.jobs("q")[0].data == data
    assert rq.pull("q")[0].data == data


def test_metadata_may_have_64_kibibytes(rq: rqlab.Queues) -> None:
    room = 64 * 1024 - len('{"k":""}')

    assert rq.get(rq.push("q", "n", metadata={"k": "x" * room})).metadata == {"k": "x" * room}
    with refused(rq, "metadata: expected at most 65536 bytes", "got 65537 bytes"):
        rq.push("q", "n", metadata={"k": "x" * (room + 1)})


@pytest.mark.parametrize("metadata", [[1], "text", 7, True, ("a", 1), {1: 2}, {"at": datetime.date(2026, 1, 1)}])
def test_metadata_is_a_json_object(rq: rqlab.Queues, metadata: Any) -> None:
    with refused(rq, "metadata"):
        rq.push("q", "n", metadata=metadata)


def test_metadata_may_be_empty_or_none(rq: rqlab.Queues) -> None:
    assert rq.get(rq.push("q", "n", metadata={})).metadata == {}
    assert rq.get(rq.push("q", "n", metadata=None)).metadata is None


@pytest.mark.parametrize("key", ["k", "k" * 1024, "é" * 512, "a/b c\0~%_", "rqlab/format"])
def test_a_unique_key_may_be(rq: rqlab.Queues, key: str) -> None:
    job_id = rq.push("q", "n", unique_key=key)

    assert rq.get(job_id).unique_key == key
    with pytest.raises(rqlab.DuplicateKey):
        rq.push("q", "n", unique_key=key)


@pytest.mark.parametrize("key", ["", "k" * 1025, "é" * 513, SURROGATE, 7, b"k", True, ["k"]])
def test_a_unique_key_may_not_be(rq: rqlab.Queues, key: Any) -> None:
    with refused(rq, "unique_key: expected"):
        rq.push("q", "n", unique_key=key)


def test_keys_that_differ_behind_a_zero_byte_are_different(rq: rqlab.Queues) -> None:
    rq.push("q", "n", unique_key="a\0b")
    rq.push("q", "n", unique_key="a\0c")

    assert rq.counts().waiting == 2


@pytest.mark.parametrize("tags", [[], (), ["a"], ("a", "b"), ["x" * 256], [str(n) for n in range(100)]])
def test_tags_may_be(rq: rqlab.Queues, tags: Any) -> None:
    assert rq.get(rq.push("q", "n", tags=tags)).tags == tuple(tags)


@pytest.mark.parametrize("tags", ["urgent", ["x" * 257], [""], [7], [None], 7, None, [SURROGATE], ["t"] * 101, b"ab"])
def test_tags_may_not_be(rq: rqlab.Queues, tags: Any) -> None:
    with refused(rq, "tags: expected"):
        rq.push("q", "n", tags=tags)


# Numbers: a bool is none.


def accepted(what: str, value: Any) -> Job:
    rq = rqlab.memory()
    return rq.get(rq.push("q", "n", **{what: value}))


@pytest.mark.parametrize(
    ("what", "values"),
    [("priority", [-32_768, -1, 0, 1, 32_767]), ("max_attempts", [1, 2, 3, 2**31 - 1]), ("jitter", [0, 0.0, 0.2, 1])],
)
def test_a_number_may_be(what: str, values: list[Any]) -> None:
    assert [getattr(accepted(what, value), what) for value in values] == values


@pytest.mark.parametrize(
    ("what", "values"),
    [
        ("priority", [-32_769, 32_768, 10**5_000, 0.0, 1.5, "1", True, False, math.nan, None]),
        ("max_attempts", [0, -1, 2**31, 3.0, 1.5, "3", True, False, math.nan, math.inf, None]),
        ("jitter", [-0.1, 1.1, math.nan, math.inf, "0.2", True, False, None, 1j]),
        ("backoff", ["quadratic", "", None, 1, True, "FIXED", ["fixed"]]),
        ("on_conflict", ["ignore", "", None, True, 0, ["raise"], "RAISE"]),
        ("remove_on_complete", [1, 0, "yes", None, ""]),
    ],
)
def test_a_number_or_choice_may_not_be(what: str, values: list[Any]) -> None:
    rq = rqlab.memory()
    for value in values:
        with refused(rq, f"{what}: expected"):
            rq.push("q", "n", **{what: value})


@pytest.mark.parametrize("count", [0, -1, 1_001, 1.0, "1", True, None])
def test_a_pull_takes_1_to_1000(rq: rqlab.Queues, count: Any) -> None:
    with refused(rq, "count: expected a whole number, 1 to 1000"):
        rq.pull("q", count)


def test_a_pull_takes_1_and_1000(rq: rqlab.Queues) -> None:
    rq.push_many("q", [{"name": "n"}] * 1_002)

    assert [len(rq.pull("q", count)) for count in (1, 1_000, 1_000)] == [1, 1_000, 1]


@pytest.mark.parametrize("limit", [0, -1, 1.0, True, None, 10**20, 1_000_001])
def test_a_listing_has_a_limit(rq: rqlab.Queues, limit: Any) -> None:
    for call in (rq.jobs, rq.frame, rq.get_dlq_jobs):
        with refused(rq, "limit: expected"):
            call("q", limit=limit)


@pytest.mark.parametrize("percent", [-0.1, 100.1, math.nan, math.inf, "50", True, None])
def test_progress_is_0_to_100(rq: rqlab.Queues, percent: Any) -> None:
    rq.push("q", "n")
    (job,) = rq.pull("q")

    with refused(rq, "progress: expected a number from 0 to 100"):
        rq.progress(job, percent)
    assert rq.get(job.id) == job


@pytest.mark.parametrize("percent", [0, 0.0, 33.3, 100])
def test_progress_may_be(rq: rqlab.Queues, percent: Any) -> None:
    rq.push("q", "n")

    assert rq.progress(rq.pull("q")[0], percent, "so far").progress == percent


# Durations.

FROM_0 = ["delay", "backoff_delay", "max_backoff"]
ABOVE_0 = ["timeout", "ttl"]
CENTURY = 100 * 365.25 * 86_400


@pytest.mark.parametrize("what", FROM_0 + ABOVE_0)
def test_a_duration_may_be(what: str) -> None:
    for value in (0.001, 1, 2.5, timedelta(days=1), CENTURY, timedelta(microseconds=1), 1e-12):
        job = accepted(what, value)
        seconds = value.total_seconds() if isinstance(value, timedelta) else value
        kept = (job.delay_until or 0) - job.created_at if what == "delay" else milliseconds(getattr(job, what))
        assert kept == math.ceil(round(seconds * 1000, 6) or 1)


@pytest.mark.parametrize("what", FROM_0)
def test_a_duration_that_may_be_nothing(what: str) -> None:
    assert accepted(what, 0).state == "waiting"
    assert accepted(what, timedelta(0)).state == "waiting"


@pytest.mark.parametrize("what", FROM_0 + ABOVE_0)
def test_a_duration_may_not_be(what: str) -> None:
    rq = rqlab.memory()
    wrong = [-1, -0.001, timedelta(-1), math.nan, math.inf, -math.inf, "5", "5s", True, False, 1j, CENTURY * 1.01]
    wrong += [timedelta.max, 10**400, Decimal(5)]
    wrong += [0, 0.0, timedelta(0)] if what in ABOVE_0 else []
    wrong += [] if what in ("delay", "timeout", "ttl") else [None]
    for value in wrong:
        with refused(rq, f"{what}: expected a duration in seconds or a timedelta"):
            rq.push("q", "n", **{what: value})


@pytest.mark.parametrize(
    ("seconds", "whole"),
    [(0, 0), (0.001, 1), (0.0001, 1), (1e-12, 1), (5e-324, 1), (16.1, 16_100), (1.0000001, 1_001), (2.5, 2_500),
     (0.1 + 0.2, 300), (86_400, 86_400_000)],
)  # fmt: skip
def test_durations_are_rounded_up_to_the_millisecond(seconds: float, whole: int) -> None:
    assert milliseconds(seconds) == whole


def test_a_timedelta_is_rounded_up_to_the_millisecond() -> None:
    assert arguments.seconds(timedelta(milliseconds=5, microseconds=1), "x") == 0.006
    assert arguments.seconds(timedelta(milliseconds=5), "x") == 0.005


@given(st.floats(0, 1e6))  # eleven days: beyond, a float of seconds is itself coarser than the binary error forgiven
def test_no_duration_is_rounded_down(seconds: float) -> None:
    kept = arguments.seconds(seconds, "x")

    assert kept * 1000 >= seconds * 1000 - 1e-3
    assert kept - seconds <= 0.0011
    assert milliseconds(kept) == milliseconds(seconds)


@pytest.mark.parametrize("wait", [-1, math.nan, "1", True])
def test_a_wait_is_a_duration(rq: rqlab.Queues, wait: Any) -> None:
    with refused(rq, "wait: expected"):
        rq.pull("q", wait=wait)


# Opening.


@pytest.mark.parametrize(
    "wrong",
    [
        {"stall_timeout": 0.099}, {"stall_timeout": 0}, {"stall_timeout": -1}, {"stall_timeout": math.nan},
        {"stall_timeout": "30"}, {"stall_timeout": None}, {"stall_timeout": True}, {"stall_timeout": math.inf},
        {"tick_interval": 0}, {"tick_interval": -1}, {"tick_interval": math.nan}, {"tick_interval": None},
        {"retention": 7}, {"retention": None}, {"retention": rqlab.Retention(completed=-1)},
        {"retention": rqlab.Retention(dlq="week")}, {"retention": rqlab.Retention(cancelled=math.nan)},
    ],
)  # fmt: skip
def test_opening_refuses_wrong_settings_and_makes_no_directory(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (what,) = wrong
    for opened in (lambda: rqlab.memory(**wrong), lambda: rqlab.open(tmp_path / "jobs", **wrong)):
        with pytest.raises(ValidationError, match=f"{what}.*expected.*got"):
            opened()
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"busy_timeout": -1}, {"busy_timeout": math.nan}, {"durability": "fast"}, {"durability": "memory"},
        {"durability": None}, {"durability": ["durable"]}, {"durability": Unequal()}, {"read_only": 1},
        {"allow_network_filesystem": "yes"},
    ],
)  # fmt: skip
def test_opening_a_directory_refuses_wrong_settings(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (what,) = wrong
    with pytest.raises(ValidationError, match=f"{what}.*expected.*got"):
        rqlab.open(tmp_path / "jobs", **wrong)
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize("path", ["", None, 7, b"jobs", ["jobs"], SURROGATE])
def test_a_path_is_text_or_a_path(path: Any, rq: rqlab.Queues) -> None:
    for call in (rqlab.open, rq.backup):
        with pytest.raises(ValidationError, match=r"path: expected.*got"):
            call(path)


@pytest.mark.parametrize("setting", [{"stall_timeout": 0.1}, {"tick_interval": 0.001}, {"tick_interval": 1e-12}])
def test_the_smallest_settings_are_accepted(setting: dict[str, float]) -> None:
    with rqlab.memory(**setting) as rq:  # type: ignore[arg-type]
        assert rq.stall_timeout >= 0.1
        assert rq.tick_interval >= 0.001


def test_settings_may_be_timedeltas(tmp_path: Path) -> None:
    retention = rqlab.Retention(completed=timedelta(days=1), cancelled=None)  # type: ignore[arg-type]
    with rqlab.open(tmp_path / "jobs", stall_timeout=timedelta(seconds=5), retention=retention) as rq:
        assert rq.stall_timeout == 5.0
        assert rq._retention() == rqlab.Retention(completed=86_400.0, cancelled=None)
        rq.tick()


# Other arguments.


@pytest.mark.parametrize("wrong", [None, 7, b"id", True, ["id"]])
def test_a_job_id_is_text(rq: rqlab.Queues, wrong: Any) -> None:
    for call in (rq.get, rq.cancel, rq.requeue):
        with refused(rq, "job_id: expected the id of a job"):
            call(wrong)


@pytest.mark.parametrize(
    "unknown",
    ["", "nope", SURROGATE, "a\0b", "x" * 1_000, "queue/q", "unique/q/key", "paused/q", "rqlab/format", "payload/x",
     "019b76da-a800-7000-8000-000000000001", "019B76DA-A800-7000-8000-000000000001"],
)  # fmt: skip
def test_no_job_has_this_id(rq: rqlab.Queues, unknown: str) -> None:
    rq.push("q", "n", unique_key="key")
    rq.pause("q")
    before = rq.counts()

    for call, attempted in ((rq.get, "find"), (rq.cancel, "cancel"), (rq.requeue, "requeue")):
        with pytest.raises(rqlab.JobNotFound, match=f"cannot {attempted} job") as error:
            call(unknown)
        str(error.value).encode()
        assert len(str(error.value)) < 600
    assert rq.counts() == before


@pytest.mark.parametrize("wrong", [None, "id", 7, {"id": 1}])
def test_a_call_about_a_run_takes_the_job_that_pull_returned(rq: rqlab.Queues, wrong: Any) -> None:
    calls = [rq.ack, rq.heartbeat, rq.release, lambda job: rq.fail(job, "boom"), lambda job: rq.progress(job, 5)]
    for call in (*calls, lambda job: rq.ack_many([(job, None)])):
        with refused(rq, "job: expected the Job that pull returned"):
            call(wrong)


@pytest.mark.parametrize("error", [None, 7, b"boom", ["boom"], ValueError])
def test_an_error_is_text_or_an_exception(rq: rqlab.Queues, error: Any) -> None:
    rq.push("q", "n")
    (job,) = rq.pull("q")

    with refused(rq, "error: expected text or an exception"):
        rq.fail(job, error)
    assert rq.get(job.id).state == "active"


@pytest.mark.parametrize("message", [7, b"x", ["x"]])
def test_a_progress_message_is_text(rq: rqlab.Queues, message: Any) -> None:
    rq.push("q", "n")
    (job,) = rq.pull("q")

    with refused(rq, "message: expected text"):
        rq.progress(job, 5, message)


def test_words_that_are_not_valid_unicode_are_kept_in_logs_and_errors(rq: rqlab.Queues) -> None:
    rq.push("q", "n")
    (job,) = rq.pull("q")

    assert rq.progress(job, 5, SURROGATE).logs == ("caf\\ud800",)
    assert rq.fail(job, SURROGATE).last_error == "caf\\ud800"
    assert rq.get(job.id).last_error == "caf\\ud800"


@pytest.mark.parametrize("state", ["waiting", "delayed", "active", "gone", None, 1])
def test_only_finished_jobs_can_be_purged(rq: rqlab.Queues, state: Any) -> None:
    rq.push("q", "n")

    with refused(rq, "state: expected"):
        rq.purge("q", state)


@pytest.mark.parametrize("state", ["gone", "", 1, True, ["dlq"]])
def test_a_listing_knows_its_states(rq: rqlab.Queues, state: Any) -> None:
    with refused(rq, "state: expected one of 'waiting'"):
        rq.jobs(state=state)


@pytest.mark.parametrize("callback", [None, "print", 7])
def test_a_callback_is_callable(rq: rqlab.Queues, callback: Any) -> None:
    with refused(rq, "callback: expected"):
        rq.on_change(callback)


@pytest.mark.parametrize("wrong", [{"data": 1}, {"name": "n", "prio": 1}, ["name"], "name", None, {1: 2}])
def test_a_wrong_item_is_named_by_its_index_and_nothing_is_pushed(rq: rqlab.Queues, wrong: Any) -> None:
    with refused(rq, "items[1]: expected"):
        rq.push_many("q", [{"name": "n"}, wrong, {"name": "n"}])


@pytest.mark.parametrize(
    "wrong", [{"name": "n", "data": object()}, {"name": "a b"}, {"name": OldKind}, {"name": ["n"]}]
)
def test_an_item_is_checked_whatever_stood_before_it(rq: rqlab.Queues, wrong: Any) -> None:
    with refused(rq, "items[2]: ", "data: expected" if "data" in wrong else "name: expected"):
        rq.push_many("q", [{"name": "n"}, {"name": "n", "data": 1}, wrong])


class Vague:
    """Its truth is ambiguous, and so is whether it equals anything: as with numpy arrays and DataFrames."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> "Vague":  # type: ignore[override]
        return self

    def __ne__(self, other: object) -> "Vague":  # type: ignore[override]
        return self

    def __bool__(self) -> bool:
        raise ValueError("the truth value of this is ambiguous")


@pytest.mark.parametrize("vague", [Vague(), np.zeros(2), pd.Series([1, 2])], ids=["vague", "array", "series"])
@pytest.mark.parametrize("what", ["queue", "name", *queues.PUSH_DEFAULTS])
def test_a_value_of_ambiguous_truth_is_refused_like_any_wrong_one(what: str, vague: Any) -> None:
    with rqlab.memory() as rq:
        given = {"queue": "q", "name": "n", what: vague}
        with refused(rq, f"{what}: expected"):
            rq.push(**given)
        with refused(rq, f"{what}: expected"):
            rq.push_many(given.pop("queue"), [{"name": "n"}, given])


VAGUE_CALLS: dict[str, Callable[[rqlab.Queues, Any], object]] = {
    "state": lambda rq, vague: rq.jobs(state=vague),
    "state: expected": lambda rq, vague: rq.purge("q", vague),
    "tag": lambda rq, vague: rq.jobs(tag=vague),
    "limit": lambda rq, vague: rq.jobs(limit=vague),
    "count": lambda rq, vague: rq.pull("q", vague),
    "wait": lambda rq, vague: rq.pull("q", wait=vague),
    "worker": lambda rq, vague: rq.pull("q", worker=vague),
    "isolation": lambda rq, vague: rq.worker("q", print, isolation=vague),
    "grace": lambda rq, vague: rq.worker("q", print, grace=vague),
    "job": lambda rq, vague: rq.ack(vague),
    "result": lambda rq, vague: rq.ack(rq.pull("a")[0], vague),
    "first": lambda rq, vague: rq.schedule("s", "q", "n", every=1, first=vague),
    "catch_up": lambda rq, vague: rq.schedule("s", "q", "n", every=1, catch_up=vague),
    "timezone": lambda rq, vague: rq.schedule("s", "q", "n", every=1, timezone=vague),
    "cron": lambda rq, vague: rq.schedule("s", "q", "n", cron=vague),
    "every": lambda rq, vague: rq.schedule("s", "q", "n", every=vague),
}


@pytest.mark.parametrize("vague", [Vague(), np.zeros(2)], ids=["vague", "array"])
@pytest.mark.parametrize("what", VAGUE_CALLS)
def test_no_call_trips_over_a_value_of_ambiguous_truth(what: str, vague: Any) -> None:
    with rqlab.memory() as rq:
        rq.push("a", "n")
        with pytest.raises(ValidationError, match=what):
            VAGUE_CALLS[what](rq, vague)


def test_a_wrong_argument_of_an_item_is_named_by_its_index(rq: rqlab.Queues) -> None:
    with refused(rq, "items[2]: priority: expected"):
        rq.push_many("q", [{"name": "n"}, {"name": "n"}, {"name": "n", "priority": 40_000}])


@pytest.mark.parametrize("items", [{"name": "n"}, "name", None, 7])
def test_items_are_a_list(rq: rqlab.Queues, items: Any) -> None:
    with refused(rq, "items: expected"):
        rq.push_many("q", items)


@pytest.mark.parametrize("pairs", [{}, "ab", 7, [1], [("a",)], [(1, 2, 3)]])
def test_pairs_are_pairs(rq: rqlab.Queues, pairs: Any) -> None:
    if pairs == {}:
        pairs = {"a": 1}
    with refused(rq, "pairs: expected"):
        rq.ack_many(pairs)


def test_unknown_arguments_are_type_errors(rq: rqlab.Queues) -> None:
    calls: list[Any] = [
        lambda: rq.push("q", "n", prio=1),  # type: ignore[call-arg]
        lambda: rq.pull("q", timeout=1),  # type: ignore[call-arg]
        lambda: rq.jobs("q", status="waiting"),  # type: ignore[call-arg]
        lambda: rqlab.open("x", mode="durable"),  # type: ignore[call-arg]
        lambda: rqlab.memory(durability="durable"),  # type: ignore[call-arg]
        lambda: rq.push("q", "n", None, 5),  # type: ignore[misc]
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    assert rq.queues() == []
    assert not Path("x").exists()


def test_a_retry_delay_that_is_none_fails_the_attempt_and_says_so(rq: rqlab.Queues) -> None:
    rq.push("q", "n")
    (job,) = rq.pull("q")

    assert "RetryAfter: expected a duration" in str(rq.fail(job, rqlab.RetryAfter(-5)).last_error)


# Any value at all.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.characters(categories=["Cs"])
    | st.datetimes() | st.decimals() | st.text(),
    lambda inner: st.lists(inner)
    | st.tuples(inner, inner)
    | st.dictionaries(st.text() | st.integers() | st.booleans(), inner),
    max_leaves=10,
)  # fmt: skip


@settings(deadline=None)
@given(JSON)
def test_every_json_value_comes_back_equal(value: Any) -> None:
    raw = arguments.data(value)

    assert msgspec.json.decode(raw) == value
    assert json.loads(bytes(raw)) == value


def as_json(value: Any) -> Any:
    """Tuples as lists: the one thing that may come back otherwise."""
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return {key: as_json(item) for key, item in value.items()} if isinstance(value, dict) else value


@settings(deadline=None)
@given(ANYTHING)
def test_any_value_is_kept_as_it_is_or_refused(value: Any) -> None:
    raw, problem = None, ""
    try:
        raw = arguments.data(value)
    except RQLabError as error:
        problem = str(error)

    if raw is None:
        assert re.search(r"expected .*got", problem, re.DOTALL)
    else:
        assert msgspec.json.decode(raw) == as_json(value)
