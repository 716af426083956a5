"""What the power tests share: a workload with every kind of write in it, recorded, and the same bytes each time."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import NamedTuple

import diskcache.core
import pytest
from conftest import Wall

import rqlab
from rqlab import queues
from rqlab.ids import Ids
from rqlab.simulation import recovery
from rqlab.simulation.platter import CRASH_KINDS, NAME_MODELS, Platter
from rqlab.simulation.recorder import Recorder
from rqlab.simulation.recovery import History
from rqlab.storage.disk import DiskStore
from rqlab.storage.entries import Row

JOBS = "jobs"  # the store's directory within the recorded one
WAYS = [(kind, names) for kind in CRASH_KINDS for names in NAME_MODELS]
ENGINE_SHARE = 10  # one cut in so many is recovered through the engine too
CHECKPOINT_FRAMES = 30  # SQLite's default is 1000: no small workload gets there


class Recorded(NamedTuple):
    """A workload that has run: cut it where you like."""

    platter: Platter
    history: History
    live: list[tuple[int, recovery.State]]  #: after each call: the length of the log, and what the store then held


def fix_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids, jitter, and the stamps of diskcache, as functions of nothing: the same workload writes the same bytes."""
    chance = Random(0)
    monkeypatch.setattr(queues, "_random", chance)
    monkeypatch.setattr(queues, "_ids", Ids(chance.getrandbits))
    monkeypatch.setattr(diskcache.core, "time", SimpleNamespace(time=lambda: 0.5, sleep=lambda seconds: None))


def let_diskcache_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own `set`, with all that it does beside: the store's own statement is the first cure of several traps."""

    def store(self: DiskStore, rows: list[Row]) -> None:
        self._cache._txn_id = threading.get_ident()  # it joins the transaction that is open
        for key, tag, value in rows:
            self._cache.set(key, value, tag=tag)
        self._cache._txn_id = None

    monkeypatch.setattr(DiskStore, "_store", store)


def record(
    directory: Path, scratch: Path, wall: Wall, workload: Callable[[rqlab.Queues, Wall], Iterator[None]]
) -> Recorded:
    """Run a workload under the recorder, which yields after each call; then close, open again, push once, close."""
    live: list[tuple[int, recovery.State]] = []
    with Recorder(directory) as recorder:
        for steps in (workload, _one_more):
            rq = rqlab.open(directory / JOBS)
            connection = rq._store._connection  # type: ignore[attr-defined]
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_FRAMES}").fetchall()
            live.append((len(recorder), recovery.state_of(connection)))
            for _ in steps(rq, wall):
                live.append((len(recorder), recovery.state_of(connection)))
            rq.close()
            live.append((len(recorder), live[-1][1]))
    platter = Platter(recorder.recording)
    return Recorded(platter, History(platter, JOBS, [at for at, _ in live], scratch), live)


def everything(rq: rqlab.Queues, wall: Wall) -> Iterator[None]:
    """Pushes, pulls, acks, fails, heartbeats, schedules and what housekeeping does, in some forty calls."""
    first = rq.push("mail", "send", {"to": "ada"}, priority=5)
    yield
    rq.push("mail", "send", {"to": "bob"}, unique_key="bob", max_attempts=1)
    yield
    rq.push("mail", "send", {"scan": "x" * 6_000}, tags=["large"])
    yield
    rq.push("mail", "send", {"scan": "y" * 40_000}, priority=-1)
    yield
    rq.push("mail", "send", delay=30, ttl=300)
    yield
    rq.push_many("web", [{"name": "fetch", "data": number} for number in range(10)])
    yield
    rq.schedule("hourly", "mail", "report", every=60)
    yield
    ada, bob = rq.pull("mail", 2, worker="w1")
    yield
    ada = rq.heartbeat(ada)
    yield
    rq.progress(ada, 50, "half")
    yield
    rq.ack(ada, {"sent": True})
    yield
    rq.fail(bob, "no such address")
    yield
    for job in rq.pull("web", 4, worker="w2"):
        yield
        rq.fail(job, "time-out")
        yield
    rq._store.checkpoint()  # type: ignore[attr-defined]
    yield
    left = rq.pull("web", 2, worker="w2")
    yield
    rq.release(left[0])
    yield
    wall.advance(61)
    rq.tick()  # promotes, fires the schedule, recovers what stalled
    yield
    wall.advance(61)
    rq.tick()
    yield
    rq.requeue(bob.id)
    yield
    rq.cancel(bob.id)
    yield
    rq.pause("web")
    yield
    rq.resume("web")
    yield
    for job in rq.pull("mail", 3, worker="w1"):
        yield
        rq.ack(job)
        yield
    rq.purge("mail", "completed")
    yield
    rq.unschedule("hourly")
    yield
    assert first


def pushes(rq: rqlab.Queues, wall: Wall) -> Iterator[None]:
    """Nothing but pushes."""
    for number in range(12):
        rq.push("mail", "send", number)
        yield


def _one_more(rq: rqlab.Queues, wall: Wall) -> Iterator[None]:
    rq.push("mail", "send", "after it was opened again")
    yield


def runs_on(directory: Path, state: recovery.State, durability: str = "durable") -> None:
    """The engine opens what a cut left, finds the jobs of this state, and takes a job from push to ack.

    Nobody may have opened the directory since the cut: who does recovers it, and tidies up.
    """
    jobs = {job.id for job in recovery.jobs_in(state)}
    with rqlab.open(directory, durability) as rq:
        before = rq.jobs(limit=1_000)
        assert {job.id for job in before} == jobs
        assert sum(getattr(rq.counts(), state) for state in rqlab.State) == len(before)
        pushed = rq.push("after", "cut")
        (job,) = rq.pull("after", worker="w3")
        assert job.id == pushed
        assert rq.ack(job).state == "completed"
        assert len(rq.jobs(limit=1_000)) == len(before) + 1
