"""Who acts in a world: simulated processes, and in each the production worker, its heartbeats and housekeeping.

An actor's step is the production step, given what the process takes for the time. A process is a name, a wall clock and
a store opened for itself; it can stand still, die, and start again. Each step runs to its end at one instant; what its
writes would have taken is added to when it is called again.
"""

import contextvars
from collections.abc import Awaitable, Callable, Container, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import msgspec

from rqlab import executors
from rqlab.durability import Keeper
from rqlab.engine import Ending, Push
from rqlab.errors import LeaseLost, RQLabError, StoreBusy, StoreError
from rqlab.executors import AsyncContext, Finished, Handlers, Report, Run, Stored
from rqlab.housekeeping import Housekeeper, Retention
from rqlab.ids import Ids
from rqlab.job import Job, milliseconds
from rqlab.schedule import Schedule
from rqlab.simulation.ledger import Effects
from rqlab.simulation.watched import WatchedEngine, WatchedStore
from rqlab.simulation.world import Actor, Call, Wall, World
from rqlab.storage import Store
from rqlab.worker import POLL_MS, Worker

OPEN_AGAIN_MS = 500  # after an error while a process opened the queues
PUSH_AGAIN_MS = 500  # after an error of a push: its outcome is not known
NEVER = 2**62


class Play(NamedTuple):
    """What a handler is going to do."""

    report: Report
    duration: int | None  #: milliseconds; None: it never ends


class Stage(Protocol):
    """What actors need to know of everything else."""

    world: World
    stall_timeout: float
    tick_interval: float

    @property
    def is_disturbed(self) -> bool: ...
    @property
    def write_ms(self) -> int: ...
    def keeper_failed(self) -> None: ...
    def open_store(self, process: "Process") -> Store: ...
    def keeper_of(self, store: Store) -> Keeper | None: ...
    def draw(self, purpose: str, entity: str, counter: int) -> float: ...
    def draw_id_bits(self, process: "Process") -> Callable[[int], int]: ...
    def before_write(self, process: "Process") -> None: ...
    def committed(self, process: "Process", effects: Effects) -> None: ...
    def failed(self, process: "Process", effects: Effects, error: StoreError) -> None: ...
    def answered(self, process: "Process", job: Job, attempted: str, outcome: Job | RQLabError) -> None: ...
    def before_step(self, process: "Process") -> None: ...
    def after_step(self, process: "Process") -> bool: ...
    def met(self, process: "Process", who: str, error: Exception) -> None: ...
    def play(self, actor: "WorkerActor", run: Run) -> Play: ...
    def ended(self, actor: "WorkerActor", run: Run, report: Report) -> bool: ...
    def fires(self, schedule: Schedule, tick: int, job_id: str) -> None: ...
    def opened(self, process: "Process") -> None: ...
    def callers_are_done(self) -> None: ...
    def not_opened(self, process: "Process", error: RQLabError, was_disturbed: bool) -> None: ...


class Process:
    """A simulated operating-system process; the watcher of its store."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.name = name
        self.stage = stage
        self.wall = Wall(stage.world)
        self.actors: list[ProcessActor] = []
        self.keeper = KeeperActor(f"{name} keeper", self)
        self.is_alive = False
        self.is_leaving = False  #: it was told to end
        self.frozen_until = 0
        self.starts = 0
        self.spent = 0  #: milliseconds that the writes of the present step took
        self.tokens: Mapping[str, int] = {}
        self.endings: Mapping[str, Ending] = {}
        self.store: WatchedStore
        self.engine: WatchedEngine
        self.ids: Ids

    def start(self, now: int) -> int | None:
        """Open the queues and set all actors to work; when to try again if that fails."""
        if self.is_alive:
            return None
        stage = self.stage
        self.starts += 1
        stage.before_step(self)
        was_disturbed = stage.is_disturbed
        try:
            real = stage.open_store(self)
        except RQLabError as error:
            if stage.after_step(self):
                stage.not_opened(self, error, was_disturbed)
                return now + OPEN_AGAIN_MS
            return None
        self.store = WatchedStore(real, self)
        self.engine = WatchedEngine(self.store, stage.draw, self)
        self.keeper.keeper = stage.keeper_of(real)
        if self.keeper.keeper is not None:
            self.keeper.listen(real)
        self.ids = Ids(stage.draw_id_bits(self))
        self.is_alive, self.is_leaving = True, False
        if not stage.after_step(self):
            return None
        stage.opened(self)
        if self.is_alive:
            for actor in self.actors:
                actor.begin()
                stage.world.call(actor, now)
        return None

    def silence(self) -> None:
        """None of its actors steps any more."""
        self.is_alive = False
        self.frozen_until = 0
        for actor in self.actors:
            self.stage.world.cancel(actor)
            actor.is_down = True

    # Its store's watcher.

    def before_write(self) -> None:
        self.stage.before_write(self)

    def committed(self, effects: Effects) -> None:
        self.stage.committed(self, effects)

    def failed(self, effects: Effects, error: StoreError) -> None:
        self.stage.failed(self, effects, error)

    def holding(self, tokens: Mapping[str, int], endings: Sequence[Ending]) -> None:
        self.tokens = tokens
        self.endings = {ending.job.id: ending for ending in endings} if endings else {}

    def answered(self, job: Job, attempted: str, outcome: Job | RQLabError) -> None:
        self.stage.answered(self, job, attempted, outcome)


class ProcessActor(Actor):
    """An actor that lives in a process: it stands still with it, dies with it, and knows the time from it."""

    __slots__ = ("is_down", "process")

    def __init__(self, name: str, process: Process) -> None:
        super().__init__(name)
        self.process = process
        self.is_down = True
        process.actors.append(self)

    def begin(self) -> None:
        """Its process has started."""
        self.is_down = False

    def act(self, wall: int) -> int | None:
        """The production step, by the process's wall clock."""
        raise NotImplementedError

    def step(self, now: int) -> int | None:
        process = self.process
        if not process.is_alive or self.is_down:
            return None
        if process.frozen_until > now:
            return process.frozen_until
        process.spent = 0
        process.stage.before_step(process)
        wall = process.wall.shows()
        try:
            again_at = self.act(wall)
        except Exception as error:  # noqa: BLE001  # the stage judges it: only rqlab's own may come
            process.stage.met(process, self.name, error)
            again_at = wall + PUSH_AGAIN_MS
        if not process.stage.after_step(process) or again_at is None or self.is_down or not process.is_alive:
            return None
        return self.next_at(now, max(again_at - wall, 0) + process.spent)

    def next_at(self, now: int, wait: int) -> int:
        return now + wait


class WorkerActor(ProcessActor):
    """The production worker, with an executor whose handlers end by the agenda."""

    __slots__ = ("concurrency", "executor", "phase", "queues", "worker")

    worker: Worker
    executor: "WorldExecutor"

    def __init__(self, name: str, process: Process, queues: tuple[str, ...], concurrency: int, phase: int) -> None:
        super().__init__(name, process)
        self.queues = queues
        self.concurrency = concurrency
        self.phase = phase  #: milliseconds; where its polls lie

    def begin(self) -> None:
        super().begin()
        process = self.process
        self.executor = WorldExecutor(self)
        self.worker = Worker(
            process.engine,
            self.executor,
            self.queues,
            stall_timeout=process.stage.stall_timeout,
            name=self.name,
            clock=process.wall.shows,
        )

    def act(self, wall: int) -> int | None:
        again_at = self.worker.step(wall)
        if again_at is None:
            self.is_down = True
        return again_at

    def next_at(self, now: int, wait: int) -> int:
        """Its polls that would find nothing are left out: whoever stores something wakes it (`Stage.committed`)."""
        if wait != POLL_MS:
            return min(now + wait, max(self.executor.next_end, now))
        worker = self.worker
        idle = worker.idle_until - self.process.wall.shows()
        longest = milliseconds(worker.stall_timeout) // 2  # a longer pause would look like a late step
        return min(now + max(min(idle, longest), POLL_MS), max(self.executor.next_end, now))

    def let_end(self, hung: Container[tuple[str, int]]) -> Sequence[Run]:
        """Those of these runs (job, delivery) that it has, and that no time-out will end, end now; which they are."""
        now = self.process.stage.world.now
        ended = [] if self.is_down else self.executor.let_end(hung, now)
        if ended:
            self.wake(now, True)
        return ended

    def wake(self, now: int, is_here: bool) -> None:
        """Something was stored: in its own process a bell rings, else the next poll sees it."""
        self.process.stage.world.call_by(self, now if is_here else now + 1 + (self.phase - now) % POLL_MS)


class BeatActor(ProcessActor):
    """The heartbeats of one worker: production has a thread for them."""

    __slots__ = ("of",)

    def __init__(self, of: WorkerActor) -> None:
        super().__init__(f"{of.name} heartbeats", of.process)
        self.of = of

    def act(self, wall: int) -> int | None:
        return None if self.of.is_down else self.of.worker.beat(wall)


class HousekeeperActor(ProcessActor):
    """The production housekeeper."""

    __slots__ = ("housekeeper",)

    def begin(self) -> None:
        super().begin()
        stage = self.process.stage
        self.housekeeper = Housekeeper(
            self.process.engine,
            self._make,
            stall_timeout=stage.stall_timeout,
            tick_interval=stage.tick_interval,
            retention=Retention,
        )

    def act(self, wall: int) -> int | None:
        return self.housekeeper.step(wall)

    def _make(self, schedule: Schedule, tick: int, now: int) -> tuple[Push, str]:
        job_id = self.process.ids.draw(now)
        self.process.stage.fires(schedule, tick, job_id)
        return msgspec.json.decode(schedule.options, type=Push), job_id


class KeeperActor(ProcessActor):
    """What makes writes safe in the modes where they become so later; idle in the others."""

    __slots__ = ("keeper", "stored_at")

    keeper: Keeper | None

    def begin(self) -> None:
        super().begin()
        self.stored_at: int | None = None  #: when a slow disk will have done with what is being stored

    def act(self, wall: int) -> int | None:
        keeper, stage = self.keeper, self.process.stage
        if keeper is None:
            return None
        now = stage.world.now
        if keeper.is_storing:
            self.stored_at = now + stage.write_ms if self.stored_at is None else self.stored_at
            if now < self.stored_at:
                return wall + self.stored_at - now
        self.stored_at = None
        again_at = keeper.step(wall)
        if keeper.failures:
            stage.keeper_failed()
        return again_at

    def listen(self, store: Store) -> None:
        """Be called when the store says so; a writer that meets the bound waits for the keeper, at that instant."""
        world, process, keeper = self.process.stage.world, self.process, self.keeper
        assert keeper is not None, "there is something to keep"

        def hurry() -> None:
            if not self.is_down:
                world.call(self, world.now)

        def make_room() -> None:
            for _ in range(4):  # store what was taken; take; store; look
                keeper.step(process.wall.shows())
            if keeper.failures:
                raise StoreBusy("no snapshot could be stored, and no more may be unsafe")

        later: Any = store  # a LaterStore: that is why it has a keeper
        later.on_unsafe = hurry
        if hasattr(store, "make_room"):
            later.make_room = make_room


class Act(NamedTuple):
    """Something that a caller does at an instant."""

    at: int
    label: str
    do: Callable[["ProducerActor", int], None]
    push: Push | None = None  #: what it pushes: with others that push at the same instant, in one commit


class ProducerActor(ProcessActor):
    """Callers of the queues: who push, cancel and requeue, and try again when they get an error for an answer."""

    __slots__ = ("acts", "done", "has_begun", "on_start", "together")

    def __init__(
        self,
        process: Process,
        acts: Sequence[Act],
        on_start: Callable[["ProducerActor", int], None] | None,
        together: Callable[["ProducerActor", Sequence[Act], int], None],
    ) -> None:
        super().__init__("producer", process)
        self.acts = sorted(acts, key=lambda act: (act.at, act.label))
        self.done = 0  #: acts that are over
        self.has_begun = False
        self.together = together  #: pushes of several callers at once
        self.on_start = on_start  #: what it does first, whenever its process starts

    @property
    def is_done(self) -> bool:
        return self.done == len(self.acts)

    def begin(self) -> None:
        super().begin()
        self.has_begun = False

    def act(self, wall: int) -> int | None:
        now = self.process.stage.world.now
        if self.on_start is not None and not self.has_begun:
            self.on_start(self, wall)
        self.has_begun = True
        while not self.is_done and self.acts[self.done].at <= now:
            burst = self._burst()  # if it raises, that is noted, and the same acts tried again
            if len(burst) > 1:
                self.together(self, burst, wall)
            else:
                burst[0].do(self, wall)
            self.done += len(burst)
        if self.is_done:
            self.process.stage.callers_are_done()
            return None
        return wall + self.acts[self.done].at - now

    def _burst(self) -> Sequence[Act]:
        first = self.acts[self.done]
        end = self.done + 1
        if first.push is not None:
            while end < len(self.acts) and self.acts[end].at == first.at and self.acts[end].push is not None:
                end += 1
        return self.acts[self.done : end]


class WorldExecutor:
    """Runs handlers by the agenda: what they do is known as they start, and is reported when they end."""

    def __init__(self, actor: WorkerActor) -> None:
        self.concurrency = actor.concurrency
        self._actor = actor
        self._runs: list[tuple[int, Run, Report]] = []
        self.next_end = NEVER  #: when the first of them ends; NEVER if none does

    def free(self) -> int:
        return self.concurrency - len(self._runs)

    def is_over(self) -> bool:
        return False

    def start(self, run: Run) -> None:
        stage = self._actor.process.stage
        play = stage.play(self._actor, run)
        ends_at = NEVER if play.duration is None else stage.world.now + play.duration
        self._runs.append((ends_at, run, play.report))
        self.next_end = min(self.next_end, ends_at)

    def poll(self) -> Sequence[Finished]:
        stage = self._actor.process.stage
        now = stage.world.now
        if self.next_end > now:
            return ()
        over = [each for each in self._runs if each[0] <= now]
        over.sort(key=lambda each: each[0])
        self._keep([each for each in self._runs if each[0] > now])
        return [Finished(run, report) for _, run, report in over if stage.ended(self._actor, run, report)]

    def let_end(self, hung: Container[tuple[str, int]], now: int) -> Sequence[Run]:
        jobs = ((run, run.job) for _, run, _ in self._runs)
        ended = [run for run, job in jobs if job.timeout is None and (job.id, job.deliveries) in hung]
        if ended:
            self._keep([(now if run in ended else at, run, report) for at, run, report in self._runs])
        return ended

    def stop(self, run: Run) -> None:
        """As a child process: it is gone at once."""
        run.is_stopped = True
        self._keep([each for each in self._runs if each[1] is not run])

    def close(self) -> None:
        self._keep([])

    def _keep(self, runs: list[tuple[int, Run, Report]]) -> None:
        self._runs = runs
        self.next_end = min((at for at, _, _ in runs), default=NEVER)


class WorldContext(AsyncContext):
    """The context of an async handler in a world: storing takes no time there, so no thread does it."""

    def _store(self, call: Callable[[], None]) -> Awaitable[None]:
        try:
            call()
        except LeaseLost as error:
            return Stored(error)
        return Stored()


def perform(handlers: Handlers, run: Run, effect: Callable[[Run, str], None]) -> Report:
    """Run the user's own handler to its end, now."""
    run.services = run.services._replace(effect=effect)
    if not executors.is_async(handlers):
        return executors.call(handlers, run, through=(KeyboardInterrupt,))
    function = executors.chosen(handlers, run.job)
    if isinstance(function, Report):
        return function
    try:
        wants_context = executors.wants_context(function)
        result = _awaited(function(run.job, WorldContext(run)) if wants_context else function(run.job))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  # as in production: whatever it raises fails the attempt
        return executors.failure(error)
    return executors.success(result)


def _awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What the coroutine returns; a cell of a notebook has a loop running, so there it needs another thread."""
    import asyncio  # here: it is a fifth of what the first simulation imports

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1, "rqlab-simulated-handler") as thread:
        return thread.submit(context.run, asyncio.run, coroutine).result()


def late(actor: WorkerActor, name: str, at: int, run: Run, report: Report) -> None:
    """Report the end of a run at `at`, by whoever still has it then: nobody, if its process has died."""
    process, starts = actor.process, actor.process.starts
    ending = report.ending(run.job)

    def send(now: int) -> int | None:
        if not process.is_alive or process.starts != starts:
            return None
        if process.frozen_until > now:
            return process.frozen_until
        stage = process.stage
        stage.before_step(process)
        try:
            process.engine.finish([ending], None, process.wall.shows())
        except RQLabError as error:
            stage.met(process, name, error)
        stage.after_step(process)
        return None

    process.stage.world.call(Call(name, send), at)
