"""What the tests share: a wall clock to turn by hand, and queues and engines on every store that is there."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rqlab
from rqlab import clock
from rqlab.engine import Engine
from rqlab.errors import RQLabError
from rqlab.simulation import recovery
from rqlab.storage import Store
from rqlab.storage.disk import DiskStore
from rqlab.storage.memory import MemoryStore

# A shell that runs the tests in its background ignores Ctrl-C for them and all that they start, and they try Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

START = 1_767_225_600_000  # 2026-01-01 00:00:00 UTC


class Wall:
    """A wall clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = START

    def advance(self, seconds: float) -> int:
        self.now += round(seconds * 1000)
        return self.now


class StubbornStore(MemoryStore):
    """Counts its commits, and refuses as often as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.commits = 0
        self.refusals: list[RQLabError] = []

    def write(self, work: Callable[[Any], Any]) -> Any:
        if self.refusals:
            raise self.refusals.pop(0)
        self.commits += 1
        return super().write(work)


class Unequal:
    """A value that cannot be compared, as an array of numbers cannot."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("neither true nor false")

    __hash__ = object.__hash__


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    """The front door's clock; queues opened in the test tell its time."""
    wall = Wall()
    monkeypatch.setattr(clock, "now", lambda: wall.now)
    return wall


@pytest.fixture(params=["memory", "durable"])
def mode(request: pytest.FixtureRequest) -> str:
    """Each mode in turn: a test that asks for it runs once in memory and once in a directory.

    A file whose tests drive one thing by hand gives "stubborn" instead: its `store` and `engine` are of that kind.
    """
    return str(request.param)


@pytest.fixture
def rq(mode: str, tmp_path: Path) -> Iterator[rqlab.Queues]:
    with rqlab.memory() if mode == "memory" else rqlab.open(tmp_path / "jobs") as queues:
        yield queues


@pytest.fixture
def store(mode: str, tmp_path: Path) -> Iterator[Store]:
    kinds: dict[str, Callable[[], Store]] = {
        "memory": MemoryStore,
        "durable": lambda: DiskStore(tmp_path / "store"),
        "stubborn": StubbornStore,
    }
    store = kinds[mode]()
    yield store
    store.close()


@pytest.fixture
def engine(store: Store) -> Engine:
    """An engine whose chance is always in the middle."""
    return Engine(store, lambda purpose, entity, counter: 0.5)


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A directory in memory, where the system has one: for tests that open or sync hundreds of times."""
    with recovery.scratch_directory() as path:
        yield path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What broke a promise once is tried first."""
    items.sort(key=lambda item: item.path.name != "test_bugs.py")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Which share of the seeds notices each planted bug: a number that falls tells of worlds that try less."""
    passed = terminalreporter.stats.get("passed", [])
    shares = [said for report in passed for name, said in report.user_properties if name == "noticed"]
    if shares:
        terminalreporter.section("planted bugs")
        for said in sorted(shares):
            terminalreporter.line(said)
