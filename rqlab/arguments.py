"""What callers may pass: each check returns the value as a record keeps it, or says what was expected.

Every error says what was expected, what came and what to do; nothing has been changed when it is raised.
"""

import json
import math
import numbers
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from rqlab.errors import ValidationError
from rqlab.job import (
    MAX_DATA_BYTES,
    MAX_METADATA_BYTES,
    MAX_NAME_BYTES,
    MAX_QUEUE_BYTES,
    MAX_RESULT_BYTES,
    MAX_TAG_BYTES,
    MAX_TAGS,
    MAX_UNIQUE_KEY_BYTES,
    NULL,
    milliseconds,
)

MAX_SECONDS = 100 * 365.25 * 86_400  # a hundred years: longer is a mistake in the unit
MAX_DEPTH = 500  # levels of lists and objects in a value; deeper ones break JSON readers, ours in a deep stack too
WHOLE_END = 10**4_300  # Python reads back no number of more than 4 300 digits
NAME = re.compile(r"[A-Za-z0-9._-]+")
MAX_GOOD_NAMES = 1_000  # names that need no second look: a program uses few, over and over

Choice = TypeVar("Choice", bound=StrEnum)

_good_names: set[str] = set()
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def queue_name(value: object) -> str:
    return _name(value, "queue", MAX_QUEUE_BYTES)


def job_name(value: object) -> str:
    return _name(value, "name", MAX_NAME_BYTES)


def whole(value: object, what: str, low: int, high: int | None = None) -> int:
    """An int in [low, high]; a bool is not a number here."""
    if isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high):
        return int(value)
    upper = f" to {high}" if high is not None else " or more"
    raise ValidationError(f"{what}: expected a whole number, {low}{upper}; got {shown(value)}")


def plain(value: object) -> Any:
    """A number of numpy's as Python's own, a timedelta as its seconds; anything else as it is.

    What is kept in a file, or printed to be pasted, is made of these.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def fraction(value: object, what: str) -> float:
    """A number in [0, 1]."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    raise ValidationError(f"{what}: expected a number from 0 to 1, such as 0.2 for ±20 %; got {shown(value)}")


def percent(value: object) -> float:
    """A number in [0, 100]."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100:
        return value if type(value) is int else float(value)
    raise ValidationError(f"progress: expected a number from 0 to 100; got {shown(value)}")


def seconds(value: object, what: str, *, at_least: float = 0.0, above: float | None = None) -> float:
    """A duration: int, float or timedelta in, seconds out, rounded up to the millisecond."""
    number = math.nan  # fails every comparison
    if isinstance(value, timedelta):
        number = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = value
    if at_least <= number <= MAX_SECONDS and (above is None or number > above):
        return milliseconds(number) / 1000
    bound = f"more than {above:g}" if above is not None else f"{at_least:g} or more"
    raise ValidationError(
        f"{what}: expected a duration in seconds or a timedelta, {bound}, at most 100 years; got {shown(value)}"
    )


def choice(value: object, what: str, kind: type[Choice]) -> Choice:
    """A member of a closed set, given as the member or as its text."""
    if isinstance(value, str) and value in kind.__members__.values():
        return kind(value)
    expected = ", ".join(repr(str(member)) for member in kind)
    raise ValidationError(f"{what}: expected one of {expected}; got {shown(value)}")


def one_of(value: object, what: str, *texts: str) -> str:
    """One of these texts."""
    if isinstance(value, str) and value in texts:
        return str.__str__(value)
    raise ValidationError(f"{what}: expected {' or '.join(map(repr, texts))}; got {shown(value)}")


def truth(value: object, what: str) -> bool:
    if isinstance(value, bool):
        return value
    raise ValidationError(f"{what}: expected True or False; got {shown(value)}")


def text(value: object, what: str, max_bytes: int) -> str:
    """Text of 1...max_bytes bytes in UTF-8."""
    if isinstance(value, str) and value:
        if len(_utf8(value, what)) <= max_bytes:
            return str.__str__(value)
        raise ValidationError(f"{what}: expected at most {max_bytes} bytes of text; got {len(value.encode())} bytes")
    raise ValidationError(f"{what}: expected text of 1 to {max_bytes} bytes; got {shown(value)}")


def unique_key(value: object) -> str:
    return text(value, "unique_key", MAX_UNIQUE_KEY_BYTES)


def tags(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValidationError(f'tags: expected a list or tuple of text, such as ("urgent",); got {shown(value)}')
    labels = tuple(text(label, "tags", MAX_TAG_BYTES) for label in value)
    if len(labels) > MAX_TAGS:
        raise ValidationError(f"tags: expected at most {MAX_TAGS}; got {len(labels)}")
    return labels


def data(value: object) -> msgspec.Raw:
    """A job's data, encoded; at most 1 MiB."""
    return encoded(value, "data", MAX_DATA_BYTES)


def result(value: object) -> msgspec.Raw:
    """What a handler returned, encoded; at most 1 MiB."""
    return NULL if value is None else encoded(value, "result", MAX_RESULT_BYTES)


def metadata(value: object) -> msgspec.Raw:
    """A JSON object, encoded; at most 64 KiB."""
    if value is None:
        return NULL
    if not isinstance(value, Mapping):
        raise ValidationError(f"metadata: expected a JSON object (a dict) or None; got {shown(value)}")
    return encoded(dict(value), "metadata", MAX_METADATA_BYTES)


def encoded(value: object, what: str, max_bytes: int) -> msgspec.Raw:
    """A JSON value as bytes. What could not come back as it went in is refused, with the path to it.

    The encoder would turn NaN into null, a datetime into text and the key 1 into "1" without a word; a value
    that decodes to something else than itself is therefore looked through.
    """
    try:
        raw = _encode(value)
        same = (_decode(raw) == value) is True
    except Exception:  # noqa: BLE001  # also of a foreign __eq__; what it is, is looked at below
        same = False
    if not same or (len(raw) > 2 * MAX_DEPTH and _has_many_levels(raw)):
        _refuse_depth(value, what)
    if not same:
        _refuse_what_is_not_json(value, what)
        raw = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    if len(raw) > max_bytes:
        raise ValidationError(
            f"{what}: expected at most {max_bytes} bytes of JSON; got {len(raw)} bytes. "
            "Keep the large part in a file or a table, and pass its name"
        )
    return msgspec.Raw(raw)


def _has_many_levels(raw: bytes) -> bool:
    """Whether there are brackets enough to nest too deep: a quick look."""
    return raw.count(b"[") + raw.count(b"{") > MAX_DEPTH


def _refuse_depth(value: Any, what: str) -> None:
    """Level by level, each container once: it also ends for a list that contains itself."""
    level = [value] if isinstance(value, list | tuple | dict) else []
    for _ in range(MAX_DEPTH):
        inner = [item for each in level for item in (each.values() if isinstance(each, dict) else each)]
        level = list({id(item): item for item in inner if isinstance(item, list | tuple | dict)}.values())
    if level:
        raise ValidationError(f"{what}: expected at most {MAX_DEPTH} levels of lists and objects; got more")


def _refuse_what_is_not_json(value: Any, path: str) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, int):
        if abs(value) >= WHOLE_END:
            raise ValidationError(f"{path}: expected a whole number of at most 4300 digits; got more. Pass it as text")
    elif isinstance(value, str):
        _utf8(value, path)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValidationError(f"{path}: expected a JSON value; got {value}, which JSON cannot say; use None")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_what_is_not_json(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValidationError(f"{path}: expected text as the keys of an object; got the key {shown(key)}")
            _utf8(key, path)
            _refuse_what_is_not_json(item, f"{path}[{key!r:.60}]")
    else:
        raise ValidationError(
            f"{path}: expected a JSON value (None, bool, number, text, list, dict); got {shown(value)}. "
            "Convert it first, for example with str() or .isoformat()"
        )


def _name(value: object, what: str, max_bytes: int) -> str:
    if type(value) is str and value in _good_names and len(value) <= max_bytes:
        return value
    if isinstance(value, str) and NAME.fullmatch(value) and len(value) <= max_bytes:
        name = str.__str__(value)  # of an enum that is a str: str(value) would say Kind.MAIL, not mail
        if len(_good_names) < MAX_GOOD_NAMES:
            _good_names.add(name)
        return name
    came = f"{len(value)} characters" if isinstance(value, str) and len(value) > max_bytes else shown(value)
    raise ValidationError(f"{what}: expected 1 to {max_bytes} characters of A-Z a-z 0-9 . _ -; got {came}")


def _utf8(value: str, what: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ValidationError(
            f"{what}: expected text that is valid Unicode; got a lone surrogate at character {error.start}. "
            'Encode it first, for example with text.encode("utf-8", "replace").decode()'
        ) from None


def shown(value: object) -> str:
    """A value for an error message: its repr, cut, and its type."""
    try:
        said = repr(value)
    except Exception as error:  # noqa: BLE001  # a hostile or broken __repr__ must not hide the real mistake
        said = f"<unprintable: {type(error).__name__}>"
    return f"{said[:100]}{'…' if len(said) > 100 else ''} ({type(value).__name__})"
