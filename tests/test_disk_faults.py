"""Disk full and I/O errors, at every operation in turn, in every mode with a file: said, and nothing is forgotten.

A life of a directory is recorded from its creation to its second close. Then it is lived again for each operation, with
that one refused, alone (transient) or with all that follow until the fault is lifted (lasting). A call that raises has
no effect; its error says what to do; the same call then works; and a kill or a power cut at any of these moments leaves
what was promised by then.
"""

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import Wall
from msgspec.structs import replace
from power_cuts import CHECKPOINT_FRAMES, JOBS, fix_chance

import rqlab
from rqlab.errors import StoreError, StoreFull
from rqlab.job import NULL, Job
from rqlab.simulation import recovery
from rqlab.simulation.platter import Cut, Platter
from rqlab.simulation.recorder import ERRORS, Fault, Kind, Recorder
from rqlab.storage.entries import KEPT, REMEDIES

STRIDE = int(os.environ.get("RQLAB_FAULT_STRIDE", "53"))  # of the operations an ordinary run refuses one in so many
NEVER = 86_400.0  # seconds; an interval that no test lives to see
LARGE = 4 * 1024  # bytes of data that are kept apart
MODES: dict[str, dict[str, Any]] = {
    "durable": {},
    "buffered": {"flush_interval": NEVER, "max_batch": 3},
    "hybrid": {"snapshot_interval": NEVER, "max_dirty": 1_000},
}
#: Errors that one fault may make. Where writes become safe later the call that met it may be the keeper's: the next
#: caller is told once more.
TOLD = {"durable": 1, "buffered": 2, "hybrid": 2}

Shape = tuple[str, ...]


class Life:
    """A directory in use, and the jobs that its steps hand each other."""

    def __init__(self, directory: Path, mode: str, wall: Wall) -> None:
        self.directory = directory
        self.mode = mode
        self.wall = wall
        self.copies = itertools.count()
        self.held: dict[str, Job] = {}
        self.rq: rqlab.Queues

    def open(self) -> None:
        self.rq = rqlab.open(self.directory / JOBS, self.mode, **MODES[self.mode])
        store: Any = self.rq._store
        store.on_unsafe = lambda: None  # its keeper is driven by hand
        disk = getattr(store, "disk", store)
        disk._connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_FRAMES}").fetchall()

    @property
    def is_open(self) -> bool:
        return hasattr(self, "rq") and not self.rq._store._closed  # type: ignore[attr-defined]

    def keep(self) -> None:
        store: Any = self.rq._store
        if self.mode != "durable":
            store.take()
            store.store_taken()

    def hold(self, queue: str, *names: str) -> None:
        for name, job in zip(names, self.rq.pull(queue, len(names), worker="w"), strict=True):
            self.held[name] = job


STEPS: dict[str, Callable[[Life], object]] = {
    "push": lambda life: life.rq.push("mail", "ada", {"to": "ada"}, priority=5),
    "push with a key": lambda life: life.rq.push("mail", "bob", unique_key="bob", max_attempts=1),
    "push large data": lambda life: life.rq.push("mail", "large", "x" * 3 * LARGE, priority=3),
    "keep": Life.keep,
    "push later": lambda life: life.rq.push("mail", "later", delay=30, ttl=300),
    "push many": lambda life: life.rq.push_many("web", [{"name": "fetch", "data": number} for number in range(8)]),
    "schedule": lambda life: life.rq.schedule("hourly", "mail", "report", every=60),
    "pull": lambda life: life.hold("mail", "ada", "large", "bob"),
    "keep again": Life.keep,
    "heartbeat": lambda life: life.rq.heartbeat(life.held["large"]),
    "progress": lambda life: life.rq.progress(life.held["large"], 50, "half"),
    "ack": lambda life: life.rq.ack(life.held["ada"], {"sent": True}),
    "fail": lambda life: life.rq.fail(life.held["bob"], "no such address"),
    "flush": lambda life: life.rq.flush(),
    "release": lambda life: life.rq.release(life.held["large"]),
    "requeue": lambda life: life.rq.requeue(life.held["bob"].id),
    "cancel": lambda life: life.rq.cancel(life.held["bob"].id),
    "pause": lambda life: life.rq.pause("web"),
    "keep a third time": Life.keep,
    "resume": lambda life: life.rq.resume("web"),
    "purge": lambda life: life.rq.purge("mail", "completed"),
    "checkpoint": lambda life: life.rq._store.checkpoint(),  # type: ignore[attr-defined]
    "pull many": lambda life: life.hold("web", "0", "1", "2", "3"),
    "ack many": lambda life: life.rq.ack_many([(life.held[name], None) for name in "0123"]),
    "backup": lambda life: life.rq.backup(life.directory / f"copy-{next(life.copies)}"),
    "vacuum": lambda life: life.rq.vacuum(),
    "unschedule": lambda life: life.rq.unschedule("hourly"),
    "push at the end": lambda life: life.rq.push("mail", "last"),
    "close": lambda life: life.rq.close(),
    "open again": Life.open,
    "push after it": lambda life: life.rq.push("mail", "after"),
    "close again": lambda life: life.rq.close(),
}


Lives = Callable[[str, Fault | None], "Lived"]


def shape(jobs: Iterator[Job] | list[Job]) -> Shape:
    """The jobs without what a repeated call may give anew (ids), and what two modes write differently."""
    return tuple(sorted(repr(_plain(job)) for job in jobs))


def _plain(job: Job) -> Job:
    is_apart = job.data_apart or len(job.encoded_data) > LARGE
    data = NULL if is_apart else job.encoded_data
    return replace(job, id="", encoded_data=data, data_apart=False, progress=float(job.progress))


def live(life: Life) -> tuple[Any, ...]:
    rq = life.rq
    jobs = {job.id: job for job in rq.jobs(limit=1_000)}
    return jobs, rq.paused(), [schedule.name for schedule in rq.schedules()], rq.counts()


class Moment(NamedTuple):
    """What was promised when the log was so long."""

    at: int
    shapes: int  #: how many shapes there had been: the newest is what was acknowledged
    floor: int  #: the index of the oldest that a crash may take us back to


class Lived(NamedTuple):
    """A life that has been lived."""

    platter: Platter
    errors: list[StoreError]
    shapes: list[Shape]
    moments: list[Moment]


class Witness:
    """Writes down what was promised when, and what was refused."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.errors: list[StoreError] = []
        self.shapes: list[Shape] = [()]
        self.moments: list[Moment] = []
        self.floor = 0

    def saw(self, error: StoreError) -> None:
        self.errors.append(error)
        self._note()

    def saw_it_work(self, life: Life) -> None:
        if life.is_open:
            self.shapes.append(shape(life.rq.jobs(limit=1_000)))
        if not life.is_open or not getattr(life.rq._store, "unsafe_writes", 0):
            self.floor = len(self.shapes) - 1
        self._note()

    def _note(self) -> None:
        self.moments.append(Moment(len(self.recorder), len(self.shapes), self.floor))


def live_through(directory: Path, mode: str, wall: Wall, fault: Fault | None) -> Lived:
    """Take every step; one that is refused is taken again."""
    life = Life(directory, mode, wall)
    with Recorder(directory, faults=() if fault is None else (fault,)) as recorder:
        witness = Witness(recorder)
        for name, step in {"open": Life.open, **STEPS}.items():
            insist(name, step, life, witness, fault)
            witness.saw_it_work(life)
    return Lived(Platter(recorder.recording), witness.errors, witness.shapes, witness.moments)


def insist(name: str, step: Callable[[Life], object], life: Life, witness: Witness, fault: Fault | None) -> None:
    """Take a step until it works; a lasting fault is lifted after the second error."""
    before = live(life) if life.is_open else None
    errors = 0
    while True:
        try:
            step(life)
            return
        except StoreError as error:
            errors += 1
            witness.saw(error)
            if before is not None and live(life) != before:
                raise AssertionError(f"{name} has half an effect") from error
            if fault is None or errors > TOLD[life.mode] + 2 * fault.lasting:
                raise AssertionError(f"{name} does not work again") from error
            if fault.lasting and errors == 2:
                witness.recorder.faults = ()


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with recovery.scratch_directory() as path:
        yield path


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch, wall: Wall) -> Lives:
    """Each life in a directory of its own, with the same ids at the same instants."""
    started = wall.now

    def live_one(mode: str, fault: Fault | None) -> Lived:
        wall.now = started
        fix_chance(monkeypatch)
        with recovery.scratch_directory() as directory:
            return live_through(directory, mode, wall, fault)

    return live_one


def assert_kept(lived: Lived, since: int, kinds: tuple[str, ...], scratch: Path) -> None:
    """Cut at every moment after an operation: what was safe is there, and of a call that raised all or nothing is."""
    for moment in lived.moments:
        if moment.at <= since:
            continue
        for kind in kinds:
            cut = Cut(moment.at, kind)
            with recovery.laid_out(lived.platter, cut, scratch) as image:
                found = recovery.read(image / JOBS)
                wrong = found.complaints + recovery.complaints_about(found.state, image / JOBS)
            assert wrong == [], f"refused at {since}: {cut}"
            allowed = lived.shapes[moment.floor : moment.shapes + 1]
            assert shape(recovery.jobs_in(found.state)) in allowed, f"refused at {since}: {cut} leaves another state"


def assert_helpful(told: StoreError, error: str) -> None:
    """It says what to do; a full disk is called that wherever SQLite tells it from others."""
    said = str(told)
    if isinstance(told, StoreFull):
        assert error == "disk full"
        assert said.endswith("Free some space")
    else:
        assert said.endswith(tuple(REMEDIES.values()))
    assert "nothing was changed" in said or KEPT in said


@pytest.mark.parametrize("lasting", [False, True], ids=["transient", "lasting"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("mode", MODES)
def test_an_error_at_any_operation_is_said_has_no_half_effect_and_forgets_nothing(
    lives: Lives, scratch: Path, mode: str, error: str, lasting: bool
) -> None:
    plain = lives(mode, None)
    told: list[StoreError] = []
    others = [(each, is_lasting) for each in ERRORS for is_lasting in (False, True)]
    for at in range(others.index((error, lasting)) % STRIDE, len(plain.platter), STRIDE):
        lived = lives(mode, Fault(at, error, lasting))

        assert lived.platter.recording.operations[at].refused
        assert lived.shapes[-1] == plain.shapes[-1], f"refused at {at}: the end is another"
        assert_kept(lived, at, ("sigkill", "lost"), scratch)
        told += lived.errors

    for each in told:
        assert_helpful(each, error)
    assert told


@pytest.mark.parametrize("mode", MODES)
def test_a_sync_that_failed_and_was_forgotten_by_the_system_takes_nothing_along_that_was_acknowledged_later(
    lives: Lives, scratch: Path, mode: str
) -> None:
    syncs = [at for at, done in enumerate(lives(mode, None).platter.recording.operations) if done.kind is Kind.SYNC]
    for at in syncs[:: STRIDE // 10 + 1]:
        lived = lives(mode, Fault(at, "I/O error"))
        forgetful = lived._replace(platter=Platter(lived.platter.recording, forgets=True))

        assert_kept(forgetful, at, ("lost",), scratch)


# A sync that failed, then a kill: what the next process reads is not on the disk.


def kill(rq: rqlab.Queues, recorder: Recorder) -> None:
    """Let go of the files as the kernel does for the dead: nothing is written back."""
    store: Any = rq._store
    was_stopped, recorder.is_stopped = recorder.is_stopped, True
    store._closed = True
    store._connection.close()
    store._write_lock.close()
    store._owner.close()
    recorder.is_stopped = was_stopped


def two_pushes(directory: Path, faults: tuple[Fault, ...]) -> tuple[rqlab.Queues, Recorder]:
    """One is stored before the other begins."""
    recorder = Recorder(directory, faults=faults).__enter__()
    rq = rqlab.open(directory / JOBS)
    rq.push("mail", "n", "before")
    with suppress(StoreError):
        rq.push("mail", "n", "failed")
    return rq, recorder


def kept_after(scratch: Path, forget: Callable[[Recorder, Path], None]) -> list[Any]:
    """A push meets a failed sync, its process is killed; the next process pushes, and the power is cut."""
    with recovery.scratch_directory() as directory:
        rq, recorder = two_pushes(directory, ())
        rq.close()
        recorder.__exit__(None, None, None)
        syncs = [at for at, done in enumerate(recorder.operations) if done.kind is Kind.SYNC]
    with recovery.scratch_directory() as directory, pytest.MonkeyPatch.context() as patch:
        rq, recorder = two_pushes(directory, (Fault(syncs[-3], "I/O error"),))  # the last two are the close's
        kill(rq, recorder)
        patch.setattr(os, "posix_fadvise", lambda *how: forget(recorder, directory / JOBS / "cache.db-wal"))
        rq = rqlab.open(directory / JOBS)
        rq.push("mail", "n", "after")
        at = len(recorder)
        kill(rq, recorder)
        recorder.__exit__(None, None, None)
        platter = Platter(recorder.recording, forgets=True)
        with recovery.laid_out(platter, Cut(at, "lost"), scratch) as image:
            return sorted(
                job.data for job in recovery.jobs_in(recovery.read(image / JOBS).state)
            )  # a state has no order


def test_what_a_failed_sync_left_in_memory_is_not_taken_for_stored_after_a_kill(scratch: Path) -> None:
    def forget(recorder: Recorder, log: Path) -> None:
        cut = Cut(len(recorder), "lost")
        log.write_bytes(Platter(recorder.recording, forgets=True).cut(cut).files[f"{JOBS}/{log.name}"])

    assert kept_after(scratch, forget) == ["after", "before"]
    assert "after" not in kept_after(scratch, lambda recorder, log: None), "a cure of nothing"


def test_a_log_that_cannot_be_made_safe_is_not_built_upon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with rqlab.open(tmp_path) as rq:
        rq.push("mail", "n")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(StoreError, match=r"look into the system's log \(dmesg\)"):
                rqlab.open(tmp_path)
        with rqlab.open(tmp_path) as again:
            assert len(again.jobs()) == 1
