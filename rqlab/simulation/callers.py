"""Callers of the queues in a world: what they push, cancel and requeue, by the production engine."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import msgspec

from rqlab import schedule as schedules
from rqlab.engine import Engine, Push
from rqlab.errors import DuplicateKey, InvalidState, JobNotFound, StoreError
from rqlab.job import Job, State
from rqlab.simulation.actors import Act, ProducerActor
from rqlab.simulation.chance import Chance
from rqlab.simulation.settings import Settings
from rqlab.simulation.watched import Collector
from rqlab.simulation.workload import MANY, drawn, given
from rqlab.storage import Store

QUEUES = ("mail", "reports")  # of the jobs that are drawn
FLUSH_AT = 0.45  # of the span
REQUEUE_AT = 0.9
FEW = 10  # jobs: so few are not requeued
PAUSED_FROM, PAUSED_TO = 0.3, 0.4  # of the span
PURGE_AT = 0.6
RESUMED_AGAIN = 5.0  # seconds after the span: a crash may take what was acknowledged, a resume too


class Desk(Protocol):
    """What callers need of everything else."""

    def pushes(self, job_id: str, label: str) -> None:
        """A job is about to be pushed under this id."""

    def ids_of(self, label: str) -> list[str]:
        """The jobs that were pushed for this label, as far as they are there."""

    def pushes_twice(self) -> bool:
        """Whether the producer does not hear of this push."""

    def was_duplicate(self, holder: str) -> None:
        """A push found its key held."""


def acts(desk: Desk, chance: Chance, settings: Settings, span: float) -> list[Act]:
    """Everything that callers do."""
    jobs = settings.jobs
    if not isinstance(jobs, int):
        return [
            Act(at, f"job {number}", _pusher(desk, f"job {number}", push), push)
            for number, (at, push) in enumerate(given(jobs))
        ]
    planned = []
    for number, (at, push, cancel_at) in enumerate(drawn(chance, jobs, span, settings)):
        label = f"job {number}"
        planned.append(Act(at, label, _pusher(desk, label, push), push))
        if cancel_at is not None:
            planned.append(Act(cancel_at, f"{label} cancelled", _canceller(desk, label)))
    if jobs >= FEW:
        planned.append(Act(int(span * FLUSH_AT * 1000), "flush", _flush))
        planned.append(Act(int(span * REQUEUE_AT * 1000), "requeue", _requeue_all))
    if jobs >= MANY:
        planned.append(Act(int(span * PAUSED_FROM * 1000), "pause", _pause))
        planned.append(Act(int(span * PAUSED_TO * 1000), "resume", _resume))
        planned.append(Act(int(span * PURGE_AT * 1000), "purge", _purge))
        planned.append(Act(int((span + RESUMED_AGAIN) * 1000), "resume again", _resume))
    return planned


def queues(settings: Settings) -> tuple[str, ...]:
    """The queues that workers serve."""
    if isinstance(settings.jobs, int):
        return QUEUES
    return tuple(dict.fromkeys(str(item.get("queue", "mail")) for item in settings.jobs)) or QUEUES


def register(producer: ProducerActor, wall: int) -> None:
    """A schedule; registering it again changes nothing."""
    push = Push(Job(id="", queue="reports", name="report", max_attempts=4, timeout=30.0))
    schedule = schedules.new(
        name="hourly", queue="reports", job_name="report", options=msgspec.Raw(msgspec.json.encode(push)), now=wall,
        every=3.0, max_executions=3, catch_up="all",
    )  # fmt: skip
    producer.process.engine.put_schedule(schedule, lambda stored: schedules.same_definition(stored, schedule))


def push_together(desk: Desk) -> Callable[[ProducerActor, Sequence[Act], int], None]:
    """Several callers push at the same instant: the store may commit them together."""

    def do(producer: ProducerActor, burst: Sequence[Act], wall: int) -> None:
        process, collector = producer.process, Collector()
        engine = Engine(cast(Store, collector), process.stage.draw)
        for act in burst:
            assert act.push is not None, "a burst is of pushes"
            job_id = process.ids.draw(wall)
            desk.pushes(job_id, act.label)
            engine.push([(act.push, job_id)], wall)
        outcomes = process.store.write_together(collector.works)
        for outcome in outcomes:
            if isinstance(outcome, DuplicateKey):
                desk.was_duplicate(outcome.job_id or "")
        errors = [outcome for outcome in outcomes if isinstance(outcome, StoreError)]
        if errors:
            raise errors[0]

    return do


def _pusher(desk: Desk, label: str, push: Push) -> Callable[[ProducerActor, int], None]:
    def do(producer: ProducerActor, wall: int) -> None:
        process = producer.process
        for _ in range(2 if desk.pushes_twice() else 1):
            job_id = process.ids.draw(wall)
            desk.pushes(job_id, label)
            try:
                process.engine.push([(push, job_id)], wall)
            except DuplicateKey as error:
                desk.was_duplicate(error.job_id or "")

    return do


def _canceller(desk: Desk, label: str) -> Callable[[ProducerActor, int], None]:
    def do(producer: ProducerActor, wall: int) -> None:
        for job_id in desk.ids_of(label):
            with contextlib.suppress(InvalidState, JobNotFound):  # it is finished
                producer.process.engine.cancel(job_id, wall)

    return do


def _requeue_all(producer: ProducerActor, wall: int) -> None:
    producer.process.engine.requeue_all("mail", wall)


def _pause(producer: ProducerActor, wall: int) -> None:
    producer.process.engine.pause("mail")


def _resume(producer: ProducerActor, wall: int) -> None:
    producer.process.engine.resume("mail")


def _purge(producer: ProducerActor, wall: int) -> None:
    producer.process.engine.purge("mail", State.COMPLETED, None, wall)


def _flush(producer: ProducerActor, wall: int) -> None:
    """From here on nothing of what was stored so far may be lost."""
    producer.process.store.flush()
