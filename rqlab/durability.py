"""When a write becomes safe: one row a mode, and the keeper that makes it so in time.

README, tests, measurement and notebooks read this table. Knows no clock: a keeper is `step(now)`, as housekeeping is.
"""

import logging
import math
import os
from collections.abc import Callable
from typing import NamedTuple

from rqlab.arguments import shown
from rqlab.errors import RQLabError, ValidationError
from rqlab.job import milliseconds
from rqlab.storage import LaterStore, Store
from rqlab.storage.buffered import BufferedStore
from rqlab.storage.disk import DiskStore
from rqlab.storage.hybrid import BOUND, HybridStore
from rqlab.storage.memory import MemoryStore

log = logging.getLogger("rqlab")

IDLE_MS = 3_600_000  # nothing is unsafe: the store says when that changes
RETRY_MS = 100  # after a failure, or the interval if that is longer


class Opening(NamedTuple):
    """What a mode needs to open its store, and to keep it."""

    path: str | os.PathLike[str]
    busy_timeout: float = 30.0  #: seconds
    flush_interval: float = 0.010  #: seconds; buffered: the longest that a write is not even on its way to the disk
    max_batch: int = 100  #: writes; buffered: a commit at the latest after so many
    snapshot_interval: float = 1.0  #: seconds; hybrid
    max_dirty: int = 5_000  #: changed jobs; hybrid: a snapshot at the latest after so many
    allow_network_filesystem: bool = False


class Keeper:
    """Makes what was acknowledged safe, at the latest `interval` seconds after it was: `step(now) -> when again`.

    The store's `on_unsafe` is to have `step` called at once. A flush is two steps, take and store.
    """

    def __init__(self, store: LaterStore, interval: float) -> None:
        self.store = store
        self.interval_ms = milliseconds(interval)
        self.due_at: int | None = None  #: when the next is to be taken; None while nothing is unsafe
        self.unsafe_since: int | None = None  #: since when the oldest unsafe write may be; None while there is none
        self.failures = 0  #: in a row
        self._taken_at: int | None = None  #: when what is to be stored next was taken

    def step(self, now: int) -> int:
        """Take or store what is due. Returns when to be called again, in ms since the epoch."""
        try:
            if self._taken_at is not None:
                self._store(self._taken_at)
            return self._look(now)
        except Exception as error:  # of whatever kind: a keeper that ends makes nothing safe any more
            if not self.store.unsafe_writes:  # closed between taking and storing; the close stored everything
                self._taken_at = self.due_at = self.unsafe_since = None
                return now + IDLE_MS
            self.failures += 1
            known = isinstance(error, RQLabError)
            log.warning("writes could not be made safe yet, and are kept: %s", error, exc_info=not known)
            self._taken_at = None
            self.due_at = now + max(self.interval_ms, RETRY_MS)
            return self.due_at

    def at_risk(self, now: int) -> dict[str, float]:
        """What a crash would lose now, in writes and in seconds."""
        writes, since = self.store.unsafe_writes, self.unsafe_since
        seconds = max(now - since, 0) / 1000 if writes and since is not None else 0.0
        return {"unsafe_writes": writes, "unsafe_seconds": seconds}

    @property
    def is_storing(self) -> bool:
        """Whether the next step stores what an earlier one took."""
        return self._taken_at is not None

    def _store(self, taken_at: int) -> None:
        self.store.store_taken()
        self._taken_at = None
        self.unsafe_since = taken_at  # what has come since then, if anything has
        self.failures = 0

    def _look(self, now: int) -> int:
        if not self.store.unsafe_writes:
            self.due_at = self.unsafe_since = None
            self.failures = 0  # somebody's flush has stored what we could not
            return now + IDLE_MS
        if self.unsafe_since is None:
            self.unsafe_since = now
        longest = max(self.interval_ms, RETRY_MS) if self.failures else self.interval_ms
        if self.due_at is None or self.due_at > now + longest:  # or the wall clock went back
            self.due_at = now + longest
        if now < self.due_at and (self.failures or not self.store.must_hurry):
            return self.due_at
        self.store.take()
        self._taken_at = now
        self.due_at = now + self.interval_ms  # for what arrives from now on
        return now


class Mode(NamedTuple):
    """One durability mode: what it opens, and what it promises."""

    name: str
    guide_name: str  #: what RustQueue's production guide calls it
    open: Callable[[Opening], Store]
    keeper: Callable[[Store, Opening], Keeper | None]  #: None where writes are safe at once, or never
    returns: str  #: when a call returns
    lost_at_kill: str  #: at kill -9
    lost_at_power_cut: str
    lost_at_exit: str  #: at a clean close
    processes: str  #: how many may share the directory
    use_when: str
    most_lost: Callable[[Opening], float]  #: writes that a crash may lose at most: the promise as a number; inf is all
    window_seconds: Callable[[Opening], float]  #: how old a lost write may be, plus one commit or snapshot; inf: any
    settings: tuple[str, ...] = ()  #: the settings of Opening that are this mode's own


def _open_durable(opening: Opening) -> Store:
    return DiskStore(
        opening.path,
        busy_timeout=opening.busy_timeout,
        durability="durable",
        allow_network=opening.allow_network_filesystem,
    )


def _open_buffered(opening: Opening) -> Store:
    return BufferedStore(
        opening.path,
        busy_timeout=opening.busy_timeout,
        max_batch=opening.max_batch,
        allow_network=opening.allow_network_filesystem,
    )


def _open_hybrid(opening: Opening) -> Store:
    disk = DiskStore(
        opening.path,
        busy_timeout=opening.busy_timeout,
        durability="hybrid",
        exclusive=True,
        allow_network=opening.allow_network_filesystem,
    )
    return HybridStore(disk, max_dirty=opening.max_dirty, busy_timeout=opening.busy_timeout)


def _keep_buffered(store: Store, opening: Opening) -> Keeper:
    assert isinstance(store, BufferedStore), "the store that this mode opened"
    return Keeper(store, opening.flush_interval)


def _keep_hybrid(store: Store, opening: Opening) -> Keeper:
    assert isinstance(store, HybridStore), "the store that this mode opened"
    return Keeper(store, opening.snapshot_interval)


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode(
            name="durable",
            guide_name="redb",
            open=_open_durable,
            keeper=lambda store, opening: None,
            returns="after fsync; callers that wait at the same time share one commit",
            lost_at_kill="nothing",
            lost_at_power_cut="nothing",
            lost_at_exit="nothing",
            processes="many",
            use_when="a job that was accepted must run",
            most_lost=lambda opening: 0,
            window_seconds=lambda opening: 0.0,
        ),
        Mode(
            name="buffered",
            guide_name="buffered redb",
            open=_open_buffered,
            keeper=_keep_buffered,
            returns="in an open batch, committed with fsync every `flush_interval` (10 ms) or `max_batch` (100) writes",
            lost_at_kill="at most the open batch",
            lost_at_power_cut="at most the open batch",
            lost_at_exit="nothing",
            processes="one",
            use_when="many small jobs, and those of the last 10 ms can be pushed again",
            most_lost=lambda opening: opening.max_batch,
            window_seconds=lambda opening: opening.flush_interval,
            settings=("flush_interval", "max_batch"),
        ),
        Mode(
            name="hybrid",
            guide_name="hybrid",
            open=_open_hybrid,
            keeper=_keep_hybrid,
            returns="from memory; what changed is stored every `snapshot_interval` (1 s) or `max_dirty` (5 000) jobs",
            lost_at_kill="at most what came since the last snapshot but one, and 4 × `max_dirty` writes",
            lost_at_power_cut="the same",
            lost_at_exit="nothing",
            processes="one",
            use_when="bursts that no disk keeps up with, and those of the last seconds can be pushed again",
            most_lost=lambda opening: BOUND * opening.max_dirty,
            window_seconds=lambda opening: opening.snapshot_interval,
            settings=("snapshot_interval", "max_dirty"),
        ),
        Mode(
            name="memory",
            guide_name="in-memory",
            open=lambda opening: MemoryStore(),
            keeper=lambda store, opening: None,
            returns="from memory",
            lost_at_kill="all",
            lost_at_power_cut="all",
            lost_at_exit="all",
            processes="–",
            use_when="tests, notebooks, and work that can be done again",
            most_lost=lambda opening: math.inf,
            window_seconds=lambda opening: math.inf,
        ),
    )
}


def mode(name: object) -> Mode:
    """The row of a mode with a file; ValidationError names those there are."""
    filed = [each for each in MODES if each != "memory"]
    if not isinstance(name, str) or name not in filed:
        hint = "; for a queue in memory call rqlab.memory()" if isinstance(name, str) and name == "memory" else ""
        raise ValidationError(f"durability: expected one of {', '.join(map(repr, filed))}; got {shown(name)}{hint}")
    return MODES[name]


def promise_table() -> str:
    """MODES as a Markdown table, as it stands in the README."""
    head = ("mode", "a call returns", "`kill -9` loses", "a power cut loses", "processes", "use it when")
    rows = [
        (f"`{m.name}`", m.returns, m.lost_at_kill, m.lost_at_power_cut, m.processes, m.use_when) for m in MODES.values()
    ]
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
