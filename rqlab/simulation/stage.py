"""One run of a world: puts the parts together, and hands on what actors tell to those who want to know.

`actors` act, `breakage` breaks, `judge` looks on, `history` remembers; nothing here decides anything about a job.
"""

from collections.abc import Callable
from math import ceil, inf

import msgspec
from msgspec.structs import replace

from rqlab import backoff
from rqlab.durability import MODES, RETRY_MS, Keeper
from rqlab.errors import LeaseLost, RQLabError, StoreError
from rqlab.executors import Report, Run
from rqlab.job import Job, State
from rqlab.lifecycle import Event
from rqlab.schedule import Schedule
from rqlab.simulation import callers
from rqlab.simulation.actors import BeatActor, HousekeeperActor, Play, Process, ProducerActor, WorkerActor, perform
from rqlab.simulation.breakage import Breakage
from rqlab.simulation.chance import Chance
from rqlab.simulation.faults import Fault, Plan
from rqlab.simulation.history import History
from rqlab.simulation.judge import Judge
from rqlab.simulation.ledger import Effects
from rqlab.simulation.machine import Disk, Machine
from rqlab.simulation.settings import Settings
from rqlab.simulation.world import EPOCH, Call, World
from rqlab.storage import Store

WAKES_ALL = frozenset({Event.STALL, Event.TIME_OUT, Event.CANCEL})
STARTS_RUN = frozenset({State.WAITING, State.DELAYED})
PATIENCE = 120.0  # seconds, and what the work is worth: by then everything has come to rest
BACKOFFS_SUMMED = 100  # one by one; of more retries each counts as the longest


class Stage:
    """A world, its processes and its faults. `span` is how long its story is, in seconds."""

    processes: list[Process]
    workers: dict[str, WorkerActor]

    def __init__(self, settings: Settings, plan: Plan, machine: Machine, span: float) -> None:
        self.settings = settings
        self.plan = plan
        self.machine = machine
        self.calm_at = round(max(span, 0.0, *(fault.at for fault in plan)) * 1000) + 1  #: nothing breaks from there on
        self.is_calm = False
        self.chance = Chance(settings.seed)
        self.world = World(self.chance)
        self.history = History()
        self.stall_timeout = settings.stall_timeout
        self.tick_interval = settings.tick_interval
        self.judge = Judge(self.world, self.history, machine, settings)
        self.labels: dict[str, str] = {}  #: by job id: what it is called whatever its id is, for chance
        self._ids: dict[str, list[str]] = {}  #: and the other way round
        self.acknowledged_at: list[int] = []  #: lengths of the disk's log at which a write had been promised to be safe
        self._pushes_again_at = self.calm_at + _breath(settings)
        self._pushes_failed = 0  #: since then
        self._cast(span)
        self.breakage = Breakage(
            self.world, self.chance, self.history, machine, self.judge, self.processes, self.workers
        )
        self.before_step = self.breakage.before_step  #: every step of every actor asks it
        self.after_step = self.breakage.after_step

    def _cast(self, span: float) -> None:
        settings = self.settings
        many = MODES[settings.durability].processes == "many"
        names = ["producer", *(f"process {number + 1}" for number in range(settings.workers))]
        self.processes = [Process(self, name) for name in (names if many else names[1:2])]
        self.workers = {}
        for number in range(settings.workers):
            process = self.processes[number + 1] if many else self.processes[0]
            name = f"worker-{number + 1}"
            phase = int(self.chance("phase", name) * 1000)
            self.workers[name] = WorkerActor(name, process, callers.queues(settings), settings.concurrency, phase)
            BeatActor(self.workers[name])
            if many or number == 0:
                HousekeeperActor(f"{process.name} housekeeping", process)
        acts = callers.acts(self, self.chance, settings, span)
        first = callers.register if isinstance(settings.jobs, int) else None
        self.producer = ProducerActor(self.processes[0], acts, first, callers.push_together(self))

    def run(self) -> None:
        """Let it happen: faults, then calm, until everything has come to rest; or until the given instant."""
        world, until = self.world, self.settings.until
        for number, fault in enumerate(self.plan):
            self._plan(fault, self.plan[:number].count(fault))
        for process in self.processes:
            self.breakage.start_in(process, 0)
        if until is not None:
            world.run(round(until * 1000))
            self._count()
            return
        world.call(Call("calm", self._calm), self.calm_at)
        world.run(self.calm_at)
        allowed_until = self._rest()
        self._count()
        if not self.judge.violations:
            self.judge.rest(allowed_until, self._pushes_refused(), world.steps >= world.steps_allowed)

    def _pushes_refused(self) -> int:
        """Pushes since it is calm that failed and should not have. Where writes are safe later, the first caller after
        a flush that failed is told so; the last fault may have been behind that, however long ago it was.
        """
        has_keeper = any(process.keeper.keeper is not None for process in self.processes)
        return max(self._pushes_failed - has_keeper, 0)

    def _plan(self, fault: Fault, same: int) -> None:
        if fault.at <= 0:
            self.breakage.strike(fault)
        else:
            name = f"fault/{fault.kind}/{fault.target}/{fault.at}/{same}"
            self.world.call(Call(name, lambda now: self.breakage.strike(fault)), round(fault.at * 1000))

    def _calm(self, now: int) -> None:
        self.breakage.calm(now)
        self.is_calm = True
        self.history.note(now, "calm")

    def _count(self) -> None:
        alive = next((process for process in self.processes if process.is_alive), None)
        if alive is not None and not self.judge.violations:
            self.judge.count(alive.store.real)

    def _rest(self) -> int:
        """Wait until everything has come to rest, or should have; by when.

        As long as runs go on patience begins anew: a handler may ask for a retry in a day, again and again. Who goes
        round for ever is stopped by their number.
        """
        world = self.world
        allowed_until, runs = self._patience(), -1
        self._end_if_over()
        while not world.is_over and runs < len(self.judge.ran) and not self._goes_round():
            runs = len(self.judge.ran)
            allowed_until = self._patience()
            world.run(allowed_until)
        return allowed_until

    def _goes_round(self) -> bool:
        return self.judge.deliveries > self.judge.deliveries_allowed or self.world.steps >= self.world.steps_allowed

    def _patience(self) -> int:
        """By when everything must have come to rest: far more than any jobs like these need."""
        settings = self.settings
        left = [job for job in self.judge.ledger.jobs.values() if not job.is_finished]
        total = settings.jobs if isinstance(settings.jobs, int) else len(settings.jobs)
        runs = sum(job.max_attempts - job.attempt for job in left)
        most = max((job.max_attempts - job.attempt for job in left), default=0)
        seconds = PATIENCE + settings.duration * max(20 * total, 4 * runs) / settings.workers
        seconds += (30 + 2 * most) * settings.stall_timeout + 2 * most * settings.tick_interval
        instants = [at for job in left for at in (job.delay_until, job.lease_until, job.timeout_at) if at]
        furthest = max(instants, default=EPOCH) - EPOCH
        waits = max(map(_longest_backoffs, left), default=0)
        return max(self.world.now, furthest) + self.breakage.furthest_ahead + ceil(seconds * 1000) + waits

    def _end_if_over(self) -> None:
        ledger = self.judge.ledger
        if (
            self.is_calm
            and not ledger.unfinished
            and self.producer.is_done
            and not self.judge.crash
            and all(process.is_alive for process in self.processes)
            and not ledger.has_ticks_to_come
        ):
            self.world.is_over = True

    # Chance.

    def draw(self, purpose: str, entity: str, counter: int) -> float:
        """The engine's chance: keyed by what the job is called in every run, not by its id."""
        return self.chance(purpose, self.labels.get(entity, entity), counter)

    def draw_id_bits(self, process: Process) -> Callable[[int], int]:
        count = 0
        entity = f"{process.name} {process.starts}"

        def bits(wanted: int) -> int:
            nonlocal count
            count += 1
            return self.chance.bits("id", entity, count) >> (64 - wanted)

        return bits

    # What processes tell.

    def open_store(self, process: Process) -> Store:
        return self.machine.open()

    def keeper_of(self, store: Store) -> Keeper | None:
        return MODES[self.settings.durability].keeper(store, self.settings.opening)

    def opened(self, process: Process) -> None:
        cause = self.breakage.ended_by.pop(process.name, -1)
        number = self.history.note(self.world.now, "start", "", process.name, cause)
        if self.judge.crash:
            self.judge.recovered(process.store.real, number, self.breakage.is_disturbed)
        self._end_if_over()

    def callers_are_done(self) -> None:
        self._end_if_over()

    @property
    def is_disturbed(self) -> bool:
        return self.breakage.is_disturbed

    @property
    def write_ms(self) -> int:
        """What a write, or a commit of a keeper, takes now."""
        return self.breakage.write_ms

    def keeper_failed(self) -> None:
        self.judge.excuse(self.world.now)

    def not_opened(self, process: Process, error: RQLabError, was_disturbed: bool) -> None:
        self.met(process, process.name, error)
        if not was_disturbed:
            self.judge.not_opened(error)

    def before_write(self, process: Process) -> None:
        process.spent += self.breakage.write_ms

    def committed(self, process: Process, effects: Effects) -> None:
        now, judge, note = self.world.now, self.judge, self.history.note
        tokens, endings, clock = process.tokens, process.endings, process.wall.shows()
        commit = judge.begin(effects)
        wakes = wakes_all = False
        for event, new, at in effects.changes:
            old = judge.change(commit, event, new, at, clock, tokens.get(new.id), endings.get(new.id))
            worker = (old.worker if old is not None and old.worker else new.worker) or ""
            if event in WAKES_ALL:
                wakes_all = True
                note(now, event, new.id, worker, self.breakage.cause(worker, new.id), new)
            else:
                wakes = wakes or new.state in STARTS_RUN
                note(now, event, new.id, "producer" if event is Event.PUSH else worker, -1, new)
        judge.end(commit, effects, process.store.real)
        if isinstance(self.machine, Disk) and self.settings.durability == "durable":
            self.acknowledged_at.append(len(self.machine.recorder))
        if wakes or wakes_all:
            for actor in self.workers.values():
                if actor.entry and (wakes_all or actor.executor.free()):
                    actor.wake(now, actor.process is process)
        if self.is_calm and not judge.ledger.unfinished:
            self._end_if_over()

    def failed(self, process: Process, effects: Effects, error: StoreError) -> None:
        if not (effects.changes or effects.entries):
            return
        if self.machine.is_down:
            self.judge.ledger.unknown.append(effects)
        elif self.judge.failed(effects, error, process.store.real):
            self.committed(process, effects)

    def answered(self, process: Process, job: Job, attempted: str, outcome: Job | RQLabError) -> None:
        if not isinstance(outcome, RQLabError):
            return
        worker = job.worker or ""
        if isinstance(outcome, LeaseLost):
            cause = self.breakage.cause(worker, job.id)
            detail = {"attempted": str(attempted), "delivery": job.deliveries}
            self.history.note(self.world.now, "refused", job.id, worker, cause, detail)
        self.judge.answered(str(attempted), job, outcome)

    def met(self, process: Process, who: str, error: Exception) -> None:
        """A step raised."""
        if not isinstance(error, RQLabError):
            self.judge.met_a_bug(f"{who}: {type(error).__name__}: {error}")
            return
        self.history.note(self.world.now, "error", "", who, -1, type(error).__name__)
        if who == "producer" and self.world.now >= self._pushes_again_at and isinstance(error, StoreError):
            self._pushes_failed += 1

    # What handlers do.

    def play(self, actor: WorkerActor, run: Run) -> Play:
        job, settings = run.job, self.settings
        self.judge.begins(job)
        label = self.labels.get(job.id, job.name)
        low, high = 0.4 * settings.duration, 1.6 * settings.duration
        duration = max(round(self.chance.between(low, high, "duration", label, job.deliveries) * 1000), 1)
        never_ends = self.breakage.begins(actor, job, label, duration)
        if settings.handler is None:
            report = self._outcome(label, job.deliveries)
        else:  # also of a run that never ends: what it does, it has done
            report = perform(settings.handler, run, lambda run, what: self._note_effect(run.job, actor.name, what))
        return Play(report, None if never_ends else duration)

    def _note_effect(self, job: Job, worker: str, what: str) -> None:
        detail = {"what": what, "delivery": job.deliveries}
        self.history.note(self.world.now, "effect", job.id, worker, -1, detail)

    def _outcome(self, label: str, delivery: int) -> Report:
        if self.chance("outcome", label, delivery) >= self.settings.failure_rate:
            return Report(event="ack", result=msgspec.Raw(b'{"delivery":%d}' % delivery))
        kind = self.chance("failure", label, delivery)
        if kind < 0.05:
            return Report(event="fail", error="DeadLetter: no such address", final=True)
        if kind < 0.10:
            return Report(event="fail", error="RetryAfter: the server asks for 3 s", delay=3.0)
        if kind < 0.15:
            return Report(event="snooze", delay=1.5)
        return Report(event="fail", error="ConnectionError: the server hung up")

    def ended(self, actor: WorkerActor, run: Run, report: Report) -> bool:
        return self.breakage.ended(actor, run, report)

    def fires(self, schedule: Schedule, tick: int, job_id: str) -> None:
        self.pushes(job_id, f"{schedule.name} {tick}")
        self.judge.ledger.ticks[job_id] = (f"{schedule.name} of {schedule.created_at}", tick)

    # What callers ask.

    def pushes(self, job_id: str, label: str) -> None:
        self.labels[job_id] = label
        self._ids.setdefault(label, []).append(job_id)
        self.judge.ledger.ever.add(job_id)

    def ids_of(self, label: str) -> list[str]:
        return [job_id for job_id in self._ids.get(label, ()) if job_id in self.judge.ledger.jobs]

    def pushes_twice(self) -> bool:
        if not self.breakage.repeat_pushes:
            return False
        self.breakage.repeat_pushes -= 1
        return True

    def was_duplicate(self, holder: str) -> None:
        self.history.note(self.world.now, "duplicate", holder, "producer")


def _breath(settings: Settings) -> int:
    """How long a keeper waits after a failure before it tries again, in milliseconds.

    Writers who meet the bound meanwhile wait for it, and here get StoreBusy at once, as one steps at a time.
    """
    row = MODES[settings.durability]
    window = row.window_seconds(settings.opening)
    return max(ceil(window * 1000), RETRY_MS) if 0 < window < inf else 0


def _longest_backoffs(job: Job) -> int:
    """How long a job may wait between all the runs that it has left, in milliseconds."""
    retries = range(job.attempt + 1, job.max_attempts)
    waits = [backoff.retry_in(replace(job, attempt=attempt), 1.0) for attempt in retries[:BACKOFFS_SUMMED]]
    longer = len(retries) - len(waits)
    return sum(waits) + (longer * backoff.retry_in(replace(job, attempt=job.max_attempts), 1.0) if longer else 0)
