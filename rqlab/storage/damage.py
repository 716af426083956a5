"""Reading past damage: a record that cannot be read is told of and left where it is, and those behind it are read.

Knows places and readers, and no rule about what damage means.
"""

from collections.abc import Callable, Collection, Generator, Iterator

from rqlab.errors import StoreCorrupt
from rqlab.job import Job
from rqlab.storage import Reader
from rqlab.storage.place import LAST, place

Tell = Callable[[str, StoreCorrupt], None]  #: of a place, and what is wrong with what stands there


def walk(reader: Reader, start: str, end: str, page: int, tell: Tell) -> Iterator[Job]:
    """All jobs in [start, end) that can be read: by pages, and one by one where a page cannot."""
    while True:
        try:
            jobs = reader.scan(start, end, page)
        except StoreCorrupt:
            following = yield from _one_by_one(reader, start, end, page, tell)
            if following is None:
                return
            start = following
        else:
            yield from jobs
            if len(jobs) < page:
                return
            start = place(jobs[-1]) + LAST


def first_sound(reader: Reader, start: str, end: str, damaged: Collection[str]) -> str | None:
    """The first place in [start, end) that is none of the damaged ones."""
    while (at := reader.first(start, end)) in damaged and at is not None:
        start = at + LAST
    return at


def scan_sound(reader: Reader, start: str, end: str, limit: int, damaged: Collection[str]) -> list[Job]:
    """Up to `limit` jobs in [start, end), without looking at the places that are known to be damaged."""
    if not damaged:
        return reader.scan(start, end, limit)
    found: list[Job] = []
    for at in sorted(each for each in damaged if start <= each < end):
        found += reader.scan(start, at, limit - len(found)) if len(found) < limit else []
        start = at + LAST
    return found + (reader.scan(start, end, limit - len(found)) if len(found) < limit else [])


def _one_by_one(reader: Reader, start: str, end: str, limit: int, tell: Tell) -> Generator[Job, None, str | None]:
    """Read so many places; where to go on, None at the end."""
    for _ in range(limit):
        at = reader.first(start, end)
        if at is None:
            return None
        start = at + LAST
        try:
            job = reader.get(at.rpartition("/")[2])
        except StoreCorrupt as error:
            tell(at, error)
        else:
            if job is not None:
                yield job
    return start
