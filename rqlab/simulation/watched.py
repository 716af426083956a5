"""The seams through which a world looks at the production code: a store that notes what is committed, an engine that
notes on whose behalf. Both hand every call on unchanged.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from rqlab.engine import Ending, Engine, Pull
from rqlab.errors import RQLabError, StoreError
from rqlab.job import Job
from rqlab.simulation.ledger import Effects
from rqlab.storage import Store, Transaction
from rqlab.storage.disk import DiskStore

T = TypeVar("T")


class Watcher(Protocol):
    """Who wants to know."""

    def before_write(self) -> None:
        """A write begins; raise a StoreError to refuse it."""

    def committed(self, effects: Effects) -> None:
        """These changes are stored, and the caller is about to hear of it."""

    def failed(self, effects: Effects, error: StoreError) -> None:
        """The transaction with these changes raised: they may be stored or not."""

    def holding(self, tokens: Mapping[str, int], endings: Sequence[Ending]) -> None:
        """A worker calls on behalf of these runs; empty: nobody's."""

    def answered(self, job: Job, attempted: str, outcome: Job | RQLabError) -> None:
        """What the engine said to one of them."""


class WatchedStore:
    """A store that tells a watcher of each write."""

    def __init__(self, real: Store, watcher: Watcher) -> None:
        self.real = real
        self.listener: Callable[[list[Any]], None] | None = None
        self.get = real.get
        self.load = real.load
        self.first = real.first
        self.scan = real.scan
        self.entry = real.entry
        self.entries = real.entries
        self.counters = real.counters
        self.count = real.count
        self.queues = real.queues
        self.changed = real.changed
        self.flush = real.flush
        self.close = real.close
        self._watcher = watcher
        self._noted = _Noted()

    def write(self, work: Callable[[Transaction], T]) -> T:
        self._watcher.before_write()
        return self._write(work)

    def _write(self, work: Callable[[Transaction], T]) -> T:
        noted = self._noted

        def watched(tx: Transaction) -> T:
            noted.begin(tx)
            return work(noted)

        noted.forget()
        try:
            result = self.real.write(watched)
        except StoreError as error:
            self._watcher.failed(Effects(noted.changes, noted.side), error)
            raise
        if noted.changes or noted.side:
            self._watcher.committed(Effects(noted.changes, noted.side))
        return result

    def write_together(self, works: Sequence[Callable[[Transaction], Any]]) -> list[Any]:
        """The work of several callers in one commit, where the store commits so; for each its result or its error."""
        self._watcher.before_write()
        if type(self.real) is not DiskStore:
            return [self._outcome(work) for work in works]
        noted = [_Noted() for _ in works]
        outcomes = self.real.write_together([_noting(work, note) for work, note in zip(works, noted, strict=True)])
        broken = [outcome for outcome in outcomes if isinstance(outcome, StoreError)]
        kept = [note for note, outcome in zip(noted, outcomes, strict=True) if not isinstance(outcome, Exception)]
        told = noted if broken else kept
        effects = Effects(
            [each for note in told for each in note.changes], [each for note in told for each in note.side]
        )
        if broken:
            self._watcher.failed(effects, broken[0])
        elif effects.changes or effects.entries:
            self._watcher.committed(effects)
        return outcomes

    def _outcome(self, work: Callable[[Transaction], Any]) -> Any:
        try:
            return self._write(work)
        except RQLabError as error:
            return error


def _noting(work: Callable[[Transaction], Any], noted: "_Noted") -> Callable[[Transaction], Any]:
    def noting(tx: Transaction) -> Any:
        noted.begin(tx)
        return work(noted)

    return noting


class _Noted:
    """A transaction that remembers what it was asked to do."""

    __slots__ = (
        "_tx", "changes", "counters", "delete", "entries", "entry", "first", "get", "load", "put", "put_new", "scan",
        "side", "tally",
    )  # fmt: skip

    def __init__(self) -> None:
        self._tx: Transaction | None = None
        self.forget()

    def forget(self) -> None:
        self.changes: list[Any] = []
        self.side: list[tuple[str, bytes | None]] = []

    def begin(self, tx: Transaction) -> None:
        """Stand before this transaction; what an interrupted try has left is forgotten."""
        if self.changes or self.side:
            self.forget()
        if tx is not self._tx:
            self._tx = tx
            self.get, self.load, self.first, self.scan = tx.get, tx.load, tx.first, tx.scan
            self.entry, self.entries, self.counters = tx.entry, tx.entries, tx.counters
            self.put, self.put_new, self.delete, self.tally = tx.put, tx.put_new, tx.delete, tx.tally

    def put_entry(self, key: str, value: bytes, place: str | None = None) -> None:
        assert self._tx is not None, "it has begun"
        self.side.append((key, value))
        self._tx.put_entry(key, value, place)

    def delete_entry(self, key: str) -> None:
        assert self._tx is not None, "it has begun"
        self.side.append((key, None))
        self._tx.delete_entry(key)

    def emit(self, change: Any) -> None:
        self.changes.append(change)  # nobody else listens in a world


class WatchedEngine(Engine):
    """The production engine, telling a watcher on behalf of which runs it is called and what it answers."""

    def __init__(self, store: Store, chance: Callable[[str, str, int], float], watcher: Watcher) -> None:
        super().__init__(store, chance)
        self._watcher = watcher

    def finish(
        self, endings: Sequence[Ending], request: Pull | None, now: int
    ) -> tuple[list[Job | RQLabError], list[Job]]:
        self._watcher.holding({ending.job.id: ending.job.deliveries for ending in endings}, endings)
        try:
            outcomes, jobs = super().finish(endings, request, now)
        finally:
            self._watcher.holding({}, ())
        for ending, outcome in zip(endings, outcomes, strict=True):
            self._watcher.answered(ending.job, ending.event, outcome)
        return outcomes, jobs

    def heartbeat(self, jobs: Sequence[Job], now: int) -> list[Job | RQLabError]:
        self._watcher.holding({job.id: job.deliveries for job in jobs}, ())
        try:
            outcomes = super().heartbeat(jobs, now)
        finally:
            self._watcher.holding({}, ())
        for job, outcome in zip(jobs, outcomes, strict=True):
            self._watcher.answered(job, "heartbeat", outcome)
        return outcomes

    def progress(self, held: Job, percent: float, message: str | None, now: int) -> Job:
        self._watcher.holding({held.id: held.deliveries}, ())
        try:
            return super().progress(held, percent, message, now)
        finally:
            self._watcher.holding({}, ())

    def log(self, held: Job, line: str, now: int) -> Job:
        self._watcher.holding({held.id: held.deliveries}, ())
        try:
            return super().log(held, line, now)
        finally:
            self._watcher.holding({}, ())


class Collector:
    """Stands in for a store, and keeps what it should write: the work of one caller, to be run with that of others."""

    def __init__(self) -> None:
        self.works: list[Callable[[Transaction], Any]] = []

    def write(self, work: Callable[[Transaction], Any]) -> None:
        self.works.append(work)
