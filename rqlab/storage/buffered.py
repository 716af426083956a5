"""A directory whose writes become safe together, a little later: one open transaction, one commit for many writes.

The same group commit as the durable store's, but the caller hears back earlier: when its write is in the transaction.
Whoever owns the store commits in time, by `flush`; the store itself does when `max_batch` writes are open.

What was acknowledged may be lost by a crash, and by nothing else: not by an interrupt, nor by a commit that failed. So
the open writes are also kept here, in order, and put back whenever SQLite's transaction may not hold exactly them.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rqlab.errors import RQLabError, StoreError
from rqlab.storage import Transaction
from rqlab.storage.disk import MAX_BATCH, Batch, DiskStore
from rqlab.storage.entries import KEPT, in_our_words

T = TypeVar("T")


class BufferedStore(DiskStore):
    """A DiskStore that acknowledges a write before its commit; one process may have it open."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        busy_timeout: float = 30.0,
        max_batch: int = 100,
        allow_network: bool = False,
    ) -> None:
        self.max_batch = max_batch  #: writes
        self.on_unsafe: Callable[[], None] = lambda: None
        self._open_batches: list[Batch] = []  #: acknowledged, not yet committed; the oldest first
        self._is_whole = True  #: SQLite's transaction holds exactly the open batches
        self._failure: RQLabError | None = None  #: of a commit, for the next caller
        super().__init__(
            path, busy_timeout=busy_timeout, durability="buffered", exclusive=True, allow_network=allow_network
        )

    @property
    def unsafe_writes(self) -> int:
        """Acknowledged writes that a crash would lose now."""
        newest = self._open_batches[-1:]  # one step: another thread may be committing
        return newest[0].writes_so_far if newest else 0

    @property
    def must_hurry(self) -> bool:
        """Whether the bound is reached: how long writes may stay unsafe no longer counts."""
        return self.unsafe_writes >= self.max_batch

    def write(self, work: Callable[[Transaction], T]) -> T:
        failure = self._told()
        if failure is not None:
            raise failure
        return super().write(work)

    def write_together(self, works: Sequence[Callable[[Transaction], Any]]) -> list[Any]:
        failure = self._told() if works else None
        return super().write_together(works) if failure is None else [failure, *super().write_together(works[1:])]

    def _told(self) -> RQLabError | None:
        """The error of a commit that nobody has been told of yet."""
        failure, self._failure = self._failure, None
        return None if failure is None else type(failure)(str(failure))

    def flush(self) -> None:
        """Return when every acknowledged write is on the disk; StoreError if it cannot be, and then none is lost."""
        self._refuse_if_closed()
        self._refuse_if_inside()
        self._flush()

    def _flush(self) -> None:
        with self._lead:
            self._refuse_if_closed()
            try:
                self._write_lock.acquire()
                with self._lock:
                    self._refuse_if_gone()
                    self._settle()
                    self._commit()
            finally:
                self._write_lock.release()
        self._call_next()

    def take(self) -> None:
        """The first of the two steps of a keeper's flush. Here all of it is done in the second."""

    def store_taken(self) -> None:
        """The second step; its error is raised here, and to the next caller who writes."""
        try:
            self.flush()
        except RQLabError as error:
            self._failure = error
            raise

    def close(self) -> None:
        """Flush, and let go. If the flush fails its error is raised and the store stays open: close it again later."""
        super().close()

    def _let_go(self) -> None:
        with self._lead:  # nobody is acknowledged between the last flush and the end
            if not self._closed:
                try:
                    self._flush()
                except StoreError:
                    if self.is_there():
                        raise
                    self._abandon()  # nothing can be stored any more where there is no directory
                    super()._let_go()
                    raise
            super()._let_go()

    def backup(self, target: Path) -> None:
        self.flush()
        super().backup(target)

    def _run_alone(self, attempted: str, *statements: str) -> None:
        with self._lead:  # nobody opens the next transaction between the two
            self._flush()
            super()._run_alone(attempted, *statements)

    def _room(self) -> int:
        return min(MAX_BATCH, max(self.max_batch - self.unsafe_writes, 1))

    def _counters_so_far(self) -> dict[str, dict[str, int]]:
        return dict(self._open_batches[-1].counters) if self._open_batches else {}

    def _run(self, batch: Batch) -> None:
        try:
            if self.must_hurry:  # the last commit has failed
                self._commit()
                batch.counters = {}
            self._is_whole = False
            self._begin()
            self._run_works(batch)
            batch.writes_so_far = self.unsafe_writes + batch.writes
            # One call into C: no interrupt comes between the acknowledgement and the note of it.
            (self._open_batches if batch.writes else batch.committed).append(batch)
            self._is_whole = True
        except Exception as error:  # noqa: BLE001  # everybody's, and raised there
            batch.error = in_our_words(error, self.path)

    def _apply_late(self) -> None:
        if self._late:
            was_whole, self._is_whole = self._is_whole, False  # a full disk may end SQLite's transaction right here
            super()._apply_late()
            self._is_whole = was_whole

    def _mend(self) -> None:
        if not self._is_whole:
            try:
                self._put_back()
            except Exception as error:
                raise in_our_words(error, self.path, "use", KEPT) from error
        batch = self._batch
        if batch is not None and self._open_batches and self._open_batches[-1] is batch:
            batch.committed.append(batch)

    def _put_back(self) -> None:
        """Make SQLite's transaction hold exactly the open batches, after whatever went wrong."""
        self._late = {}
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        if self._open_batches:
            self._begin()
            for batch in self._open_batches:
                for step in batch.steps:
                    self._leave_for_later(step)
        self._raw.pending = self._counters_so_far()
        self._is_whole = True

    def _hand_out(self, batch: Batch) -> None:
        if self._open_batches and self._open_batches[0] is batch:
            self.on_unsafe()  # first: after an interrupt nobody may be acknowledged whom the keeper does not know of
        super()._hand_out(batch)
        if self.must_hurry:
            try:
                self._commit()
            except StoreError as error:  # the next caller's: these were told that only a crash loses theirs
                self._failure = error

    def _begin(self) -> None:
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")

    def _commit(self) -> None:
        try:
            self._is_whole = False
            if self._open_batches:
                self._begin()
                self._apply_late()
                self._store_counters(self._open_batches[-1].counters)
            if self._connection.in_transaction:
                self._connection.execute("COMMIT")
        except Exception as error:
            raise in_our_words(error, self.path, "flush", KEPT) from error
        self._open_batches.clear()  # after an interrupt before this line they are stored once more, as they are
        self._raw.pending = {}
        self._is_whole = True
        self._failure = None

    def _abandon(self) -> None:
        with self._lead, self._lock:
            self._open_batches.clear()
            self._put_back()
