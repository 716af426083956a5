"""One run of a world: its processes, what breaks in it, and the checks that look on.

It puts the parts together and decides nothing about a job. What was committed goes into the ledger and the history,
and every check is asked at its moment; the first broken promise ends the run, as what follows from it proves nothing.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from rqlab import schedule as schedules
from rqlab.durability import MODES, Keeper, Opening
from rqlab.engine import Push
from rqlab.errors import DuplicateKey, InvalidState, JobNotFound, LeaseLost, RQLabError, StoreError
from rqlab.executors import Handlers, Report, Run
from rqlab.job import Job, State
from rqlab.lifecycle import Event
from rqlab.schedule import Schedule
from rqlab.simulation.actors import (
    Act,
    BeatActor,
    HousekeeperActor,
    Play,
    Process,
    ProducerActor,
    WorkerActor,
    late,
    perform,
)
from rqlab.simulation.chance import Chance
from rqlab.simulation.checks import Answer, Begun, Check, End, Moment, Recovery, Seen, Violation, loses_the_last
from rqlab.simulation.faults import FAULTS, Fault, Plan
from rqlab.simulation.history import History
from rqlab.simulation.ledger import Commit, Effects, Found, Ledger, read
from rqlab.simulation.machine import Disk, Machine
from rqlab.simulation.recorder import Kind
from rqlab.simulation.workload import drawn, given
from rqlab.simulation.world import EPOCH, Call, World
from rqlab.storage import Store
from rqlab.storage.locks import Lock

SLOW_WRITE_MS = 400
ALL_WRITES = 2**62  # of a store that goes with its process
COMMITS_KEPT = 50_000  # what can be taken back after a crash
COUNT_EVERY = 500  # commits between two readings of the whole store
WAKES_ALL = frozenset({Event.STALL, Event.TIME_OUT, Event.CANCEL})
STARTS_RUN = frozenset({State.WAITING, State.DELAYED})


class Settings(NamedTuple):
    """What a run is of, but for its plan."""

    seed: int
    jobs: int | Sequence[Mapping[str, object]]
    workers: int
    concurrency: int
    durability: str
    store: str
    handler: Handlers | None
    failure_rate: float
    duration: float  #: seconds; the mean of a run
    stall_timeout: float  #: seconds
    tick_interval: float  #: seconds
    opening: Opening  #: the settings of the mode
    until: float | None  #: seconds; None: until everything has come to rest
    checks: tuple[Check, ...]


class Stage:
    """A world, its processes and its faults."""

    def __init__(self, settings: Settings, plan: Plan, machine: Machine, span: float) -> None:
        self.settings = settings
        self.plan = plan
        self.machine = machine
        self.span = span  #: seconds; nothing breaks after it
        self.chance = Chance(settings.seed)
        self.world = World(self.chance)
        self.history = History()
        self.stall_timeout = settings.stall_timeout
        self.tick_interval = settings.tick_interval
        self.is_durable = settings.durability == "durable"
        self.ledger = Ledger(COMMITS_KEPT)
        self.violations: list[Violation] = []
        self.ran: dict[tuple[str, int], bytes] = {}  #: by job and delivery: the data that the handler got
        self.labels: dict[str, str] = {}  #: by job id: what it is called whatever its id is, for chance
        self.struck: dict[str, int] = {}  #: by worker: the event of the fault that last struck it
        self.crash = ""  #: how the machine, or a process, last went down, until what is left has been judged
        self.acknowledged_at: list[int] = []  #: lengths of the disk's log at which a write had been promised to be safe
        self._at_risk = 0  #: acknowledged writes that were not safe then
        self.losses: list[tuple[str, int, int]] = []  #: (how, writes lost, jobs lost) of each crash
        self.engine_events = 0
        self.write_ms = 0
        self.is_calm = False
        self.pushes_failed = 0  #: since it is calm
        self.poisoned: set[str] = set()
        self.hanging: dict[str, int] = {}
        self.late_acks: dict[str, list[Fault]] = {}
        self.repeated_acks: dict[str, list[Fault]] = {}
        self.lurking: dict[str, Callable[[int], None]] = {}  #: by job: a report that waits for the job's next run
        self.repeat_pushes = 0
        self.armed: list[tuple[Fault, Process | None]] = []  #: crashes that wait for an operation or a window
        self._operations_left = 0
        self._operations_before = 0
        self._locks: list[Lock] = []
        self._furthest_ahead = 0
        by_moment = {moment: [check for check in settings.checks if check.moment is moment] for moment in Moment}
        self._on_change = [(check.id, check.broken) for check in by_moment[Moment.CHANGE]]
        self._by_moment = by_moment
        self._commits_until_count = COUNT_EVERY
        self._people()

    # The cast.

    def _people(self) -> None:
        many = self.is_durable
        names = ["producer", *(f"process {number + 1}" for number in range(self.settings.workers))]
        self.processes = [Process(self, name) for name in (names if many else names[1:2])]
        self.workers: dict[str, WorkerActor] = {}
        queues = self._queues()
        for number in range(self.settings.workers):
            process = self.processes[number + 1] if many else self.processes[0]
            name = f"worker-{number + 1}"
            phase = int(self.chance("phase", name) * 1000)
            self.workers[name] = WorkerActor(name, process, queues, self.settings.concurrency, phase)
            BeatActor(self.workers[name])
            if many or number == 0:
                HousekeeperActor(f"{process.name} housekeeping", process)
        is_drawn = isinstance(self.settings.jobs, int)
        self.producer = ProducerActor(self.processes[0], self._acts(), _register if is_drawn else None)

    def _queues(self) -> tuple[str, ...]:
        if isinstance(self.settings.jobs, int):
            return ("mail", "reports")
        return tuple(dict.fromkeys(str(item.get("queue", "mail")) for item in self.settings.jobs)) or ("mail",)

    def _acts(self) -> list[Act]:
        jobs = self.settings.jobs
        if not isinstance(jobs, int):
            return [
                Act(at, f"job {number}", _pusher(self, f"job {number}", push))
                for number, (at, push) in enumerate(given(jobs))
            ]
        acts = []
        for number, (at, push, cancel_at) in enumerate(drawn(self.chance, jobs, self.span, self.settings)):
            label = f"job {number}"
            acts.append(Act(at, label, _pusher(self, label, push)))
            if cancel_at is not None:
                acts.append(Act(cancel_at, f"{label} cancelled", _canceller(self, label)))
        if jobs >= 10:
            acts.append(Act(int(self.span * 900), "requeue", _requeue_all))
        return acts

    # The play.

    def run(self) -> None:
        """Let it happen: faults until `span` is over, then calm, until everything has come to rest."""
        world, settings = self.world, self.settings
        for number, fault in enumerate(self.plan):
            if fault.at <= 0:
                self._strike(fault)
            else:
                name = f"fault/{fault.kind}/{fault.target}/{fault.at}/{number if fault in self.plan[:number] else 0}"
                world.call(Call(name, lambda now, fault=fault: self._strike(fault)), round(fault.at * 1000))  # type: ignore[misc]
        for process in self.processes:
            self._start_in(process, 0)
        if settings.until is not None:
            world.run(round(settings.until * 1000))
        else:
            world.call(Call("calm", self._calm), round(self.span * 1000) + 1)
            world.run(round(self.span * 1000) + 1)
            self._allowed_until = self._patience()
            if not world.is_over:
                self._end_if_over()
            world.run(self._allowed_until)
        if not self.violations:
            self._judge_end()

    def _start_in(self, process: Process, milliseconds: int) -> None:
        process.is_restarting = True
        name = f"start {process.name} {process.starts}"
        self.world.call(Call(name, process.start), self.world.now + milliseconds)

    def _patience(self) -> int:
        """By when everything must have come to rest: far more than any plan of this size needs."""
        settings = self.settings
        total = settings.jobs if isinstance(settings.jobs, int) else len(settings.jobs)
        work = 20 * settings.duration * total / settings.workers
        seconds = 120 + 30 * settings.stall_timeout + work
        furthest = max((job.delay_until - EPOCH for job in self.ledger.jobs.values() if job.delay_until), default=0)
        leases = max((job.lease_until - EPOCH for job in self.ledger.jobs.values() if job.lease_until), default=0)
        return max(self.world.now, furthest, leases) + self._furthest_ahead + ceil(seconds * 1000)

    def _end_if_over(self) -> None:
        if (
            self.is_calm
            and not self.ledger.unfinished
            and self.producer.is_done
            and not self.crash
            and all(process.is_alive for process in self.processes)
            and all(self._is_spent(entry) for entry in self.ledger.entries.values())
        ):
            self.world.is_over = True

    def _is_spent(self, entry: bytes) -> bool:
        return not entry.startswith(b"{") or b'"next_at":' not in entry.replace(b'"next_at":null', b"")

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

    def name_job(self, job_id: str, label: str) -> None:
        self.labels[job_id] = label
        self.ledger.ever.add(job_id)

    # What processes tell.

    def open_store(self, process: Process) -> Store:
        return self.machine.open()

    def keeper_of(self, store: Store) -> Keeper | None:
        return MODES[self.settings.durability].keeper(store, self.settings.opening)

    def opened(self, process: Process) -> None:
        number = self.history.note(self.world.now, "start", "", process.name, self.struck.get(process.name, -1))
        if self.crash:
            self._judge_recovery(process.store.real, number)
        for actor in process.actors:
            if isinstance(actor, WorkerActor):
                self.late_acks.pop(actor.name, None)
        if self.is_calm:
            self._end_if_over()

    def before_write(self, process: Process) -> None:
        process.spent += self.write_ms

    def committed(self, process: Process, effects: Effects) -> None:
        now, ledger = self.world.now, self.ledger
        commit = ledger.begin(now, effects.changes)
        ledger.unknown.clear()
        clock = process.wall.shows()
        tokens, endings, ran = process.tokens, process.endings, self.ran
        wakes, wakes_all = False, False
        for event, new, at in effects.changes:
            old = ledger.jobs.get(new.id)
            if self._on_change:
                seen = Seen(event, old, new, at, clock, tokens.get(new.id), endings.get(new.id), ran)
                for check_id, broken in self._on_change:
                    says = broken(ledger, seen)
                    if says is not None:
                        self.violate(check_id, says)
            ledger.apply(commit, event, new)
            worker = (old.worker if old is not None and old.worker else new.worker) or ""
            cause = -1
            if event in WAKES_ALL:
                wakes_all = True
                cause = self._cause(worker, new.id)
            elif new.state in STARTS_RUN:
                wakes = True
            self.history.note(now, event, new.id, worker if event is not Event.PUSH else "producer", cause, new)
        for key, value in effects.entries:
            ledger.put_entry(commit, key, value)
        self.engine_events += len(effects.changes)
        if self.is_durable and isinstance(self.machine, Disk):
            self.acknowledged_at.append(len(self.machine.recorder))
        if wakes or wakes_all:
            for actor in self.workers.values():
                if actor.entry and (wakes_all or actor.executor.free()):
                    actor.wake(now, actor.process is process)
        self._commits_until_count -= 1
        if self._commits_until_count <= 0:
            self._commits_until_count = COUNT_EVERY
            self._count(process.store.real)
        if self.is_calm and not ledger.unfinished:
            self._end_if_over()

    def failed(self, process: Process, effects: Effects, error: StoreError) -> None:
        """A write raised. If the machine still runs, what it touched is there whole or not at all."""
        if not (effects.changes or effects.entries):
            return
        if self.machine.is_down:
            self.ledger.unknown.append(effects)
            return
        newest = {job.id: (event, job) for event, job, _ in effects.changes}
        try:
            stored = {job_id: process.store.real.get(job_id) for job_id in newest}
        except StoreError:
            self.ledger.unknown.append(effects)  # the disk cannot be read either: a later look will tell
            return
        is_new = {job_id for job_id, (event, job) in newest.items() if stored[job_id] == _left(event, job)}
        is_old = {job_id for job_id in newest if stored[job_id] == self.ledger.jobs.get(job_id)}
        torn = sorted(newest.keys() - is_new - is_old)
        if not torn and is_new - is_old and is_old - is_new:
            torn = sorted(is_new)
        first = next((job for _, job, _ in effects.changes), None)
        if first is not None:
            self._answer(Answer("a write", first, error, None, torn, ""))
        if is_new - is_old:
            self.committed(process, effects)
        else:
            self.ledger.unknown.append(effects)

    def answered(self, process: Process, job: Job, attempted: str, outcome: Job | RQLabError) -> None:
        if isinstance(outcome, RQLabError):
            if isinstance(outcome, LeaseLost):
                cause = self._cause(job.worker or "", job.id)
                self.history.note(
                    self.world.now, "refused", job.id, job.worker or "", cause,
                    {"attempted": str(attempted), "delivery": job.deliveries},
                )  # fmt: skip
            self._answer(Answer(str(attempted), job, outcome, self.ledger.jobs.get(job.id), (), ""))

    def met(self, process: Process, who: str, error: Exception) -> None:
        """A step raised."""
        if isinstance(error, RQLabError):
            self.history.note(self.world.now, "error", "", who, -1, type(error).__name__)
            if who == "producer" and self.is_calm and isinstance(error, StoreError):
                self.pushes_failed += 1
            return
        said = f"{who}: {type(error).__name__}: {error}"
        nobody = Job(id="", queue="", name="")
        self._answer(Answer("a step", nobody, StoreError(said), None, (), said))

    def before_step(self, process: Process) -> None:
        if self.armed:
            _, target = self.armed[0]
            if target is process:
                assert isinstance(self.machine, Disk), "only a disk has operations"
                self._operations_before = len(self.machine.recorder)
                self.machine.recorder.stop_at = self._operations_before + self._operations_left

    def after_step(self, process: Process) -> bool:
        """Whether the step came to its end: a crash may have come inside it."""
        machine = self.machine
        if self.armed and isinstance(machine, Disk):
            fault, target = self.armed[0]
            if target is process and not machine.is_down:
                self._operations_left -= len(machine.recorder) - self._operations_before
                machine.recorder.stop_at = None
            elif machine.is_down:
                self.armed.pop(0)
                if target is None:
                    self._power_fails(fault)
                else:
                    self._die(process)
                    machine.revive()
                    self._killed(process, fault)
                self._arm_next()
                return False
        return True

    # Handlers.

    def play(self, actor: WorkerActor, run: Run) -> Play:
        job, settings = run.job, self.settings
        label = self.labels.get(job.id, job.name)
        begun = Begun(job, self.is_durable)
        for check in self._by_moment[Moment.RUN]:
            says = check.broken(self.ledger, begun)
            if says is not None:
                self.violate(check.id, says)
        self.ran[job.id, job.deliveries] = bytes(job.encoded_data)
        low, high = 0.4 * settings.duration, 1.6 * settings.duration
        duration = max(round(self.chance.between(low, high, "duration", label, job.deliveries) * 1000), 1)
        lurking = self.lurking.pop(job.id, None)
        if lurking is not None:
            lurking(self.world.now + duration // 2)
        if label in self.poisoned:
            cause = self.history.note(self.world.now, "poison job", job.id, actor.name)
            crash = Fault(self.world.now / 1000, "worker crash", actor.name, 1.0)
            name = f"poison {label} {job.deliveries}"
            self.world.call(Call(name, lambda now: self._crash(actor, crash, cause)), self.world.now + duration)
            return Play(Report(event="ack"), None)
        if self.hanging.get(label):
            self.hanging[label] -= 1
            return Play(Report(event="ack"), None)
        if settings.handler is not None:
            return Play(perform(settings.handler, run, self._effect(job, actor.name)), duration)
        return Play(self._outcome(label, job.deliveries), duration)

    def _effect(self, job: Job, worker: str) -> Callable[[str], None]:
        def note(what: str) -> None:
            self.history.note(self.world.now, "effect", job.id, worker, -1, {"what": what, "delivery": job.deliveries})

        return note

    def _outcome(self, label: str, delivery: int) -> Report:
        draw = self.chance("outcome", label, delivery)
        rate = self.settings.failure_rate
        if draw >= rate:
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
        """A run has ended; whether its worker hears of it now."""
        name = f"{actor.name} {run.job.id} {run.job.deliveries}"
        if faults := self.late_acks.get(actor.name):
            fault = faults.pop()
            if actor.worker.runs.get(run.job.id) is run:
                del actor.worker.runs[run.job.id]  # nobody keeps its lease any more
            self._note_fault(fault, actor.name, run.job.id)
            if fault.seconds:
                late(actor, f"late ack of {name}", self.world.now + _ms(fault.seconds), run, report)
            else:
                self.lurking[run.job.id] = lambda at: late(actor, f"late ack of {name}", at, run, report)
            return False
        if faults := self.repeated_acks.get(actor.name):
            fault = faults.pop()
            self._note_fault(fault, actor.name, run.job.id)
            late(actor, f"duplicate ack of {name}", self.world.now + 1 + _ms(fault.seconds), run, report)
        return True

    def fires(self, schedule: Schedule, tick: int, job_id: str) -> None:
        self.name_job(job_id, f"{schedule.name} {tick}")
        self.ledger.ticks[job_id] = (f"{schedule.name} of {schedule.created_at}", tick)

    # What breaks.

    def _strike(self, fault: Fault) -> None:
        FAULTS[fault.kind].strike(self, fault)

    def crash_worker(self, fault: Fault) -> None:
        self._crash(self._target(fault), fault, -1)

    def _crash(self, actor: WorkerActor, fault: Fault, cause: int) -> None:
        if not actor.process.is_alive or actor.is_down:
            return
        self._note_fault(fault, actor.name, cause=cause)
        beats = next(each for each in actor.process.actors if isinstance(each, BeatActor) and each.of is actor)
        for each in (actor, beats):
            each.is_down = True
            self.world.cancel(each)
        starts = actor.process.starts

        def again(now: int) -> None:
            if actor.process.is_alive and actor.process.starts == starts and actor.is_down:
                for each in (actor, beats):
                    each.begin()
                    self.world.call(each, now)

        self.world.call(Call(f"restart {actor.name} {len(self.history)}", again), self.world.now + _ms(fault.seconds))

    def kill(self, fault: Fault) -> None:
        process = self._target(fault).process
        if not process.is_alive:
            return
        if fault.operation and isinstance(self.machine, Disk):
            self.armed.append((fault, process))
            if len(self.armed) == 1:
                self._arm_next()
        else:
            self._die(process)
            self._killed(process, fault)

    def cut_power(self, fault: Fault) -> None:
        if (fault.operation or fault.window) and isinstance(self.machine, Disk):
            self.armed.append((fault, None))
            if len(self.armed) == 1:
                self._arm_next()
        else:
            self._power_fails(fault)

    def _arm_next(self) -> None:
        if not self.armed:
            return
        fault, process = self.armed[0]
        if process is None:
            self.machine.arm(fault)
        elif process.is_alive:
            self._operations_left = fault.operation
        else:
            self.armed.pop(0)
            self._arm_next()

    def _die(self, process: Process) -> None:
        was_open = process.is_alive
        process.silence()
        if was_open:
            self._at_risk += self._unsafe(process.store.real)
            self.machine.leave(process.store.real)

    def _unsafe(self, store: Store) -> int:
        """Acknowledged writes that a crash takes now."""
        if not self.machine.survives_kill:
            return ALL_WRITES
        return int(getattr(store, "unsafe_writes", 0))

    def _killed(self, process: Process, fault: Fault) -> None:
        number = self._note_fault(fault, fault.target or process.name)
        self._blame(process, number)
        if self.crash in ("", "exit"):
            self.crash = "kill"
        witness = next((each for each in self.processes if each.is_alive), None)
        if witness is not None:
            self._judge_recovery(witness.store.real, number)
        self._start_in(process, _ms(fault.seconds) or 1)

    def _power_fails(self, fault: Fault) -> None:
        for process in self.processes:
            if process.is_alive:
                self._die(process)
        number = self._note_fault(fault, "machine")
        for process in self.processes:
            self._blame(process, number)
        for lock in self._locks:
            lock.close()
        self._locks = []
        self.crash = self.machine.cut(fault, self.chance.bits("cut", fault.how, round(fault.at * 1000)))
        for process in self.processes:
            self._start_in(process, _ms(fault.seconds) or 1)

    def redeploy(self, fault: Fault) -> None:
        number = self._note_fault(fault, "machine")
        leaving = [process for process in self.processes if process.is_alive]
        for process in leaving:
            process.is_leaving = True
            self._blame(process, number)
            for actor in process.actors:
                if isinstance(actor, WorkerActor) and not actor.is_down:
                    actor.worker.release()
                    self.world.call(actor, self.world.now)
        until = self.world.now + 10_000

        def look(now: int) -> int | None:
            for process in leaving:
                if process.is_alive and process.is_leaving and (now >= until or _has_stopped(process)):
                    self._close(process)
            if any(process.is_alive and process.is_leaving for process in leaving):
                return now + 50
            return None

        def again(now: int) -> int | None:
            if any(process.is_alive and process.is_leaving for process in leaving):
                return now + 100
            for process in leaving:
                if not process.is_alive and process.is_leaving:
                    process.start(now)
            return None

        name = f"redeploy {fault.at}"
        self.world.call(Call(name, look), self.world.now + 1)
        self.world.call(Call(f"{name} again", again), self.world.now + 100 + _ms(fault.seconds))

    def _close(self, process: Process) -> None:
        """It ends in peace: whatever the mode, nothing is lost then, but what is in memory."""
        self.before_step(process)
        how = "exit"
        if isinstance(self.machine, Disk):
            try:
                process.store.real.close()
            except RQLabError as error:
                self.met(process, process.name, error)
                how = "kill"
        if not self.after_step(process):
            return  # a crash came first
        if how == "kill" or not self.machine.survives_kill:
            self._die(process)
        else:
            process.silence()
        self.crash = self.crash or how

    def jump(self, fault: Fault) -> None:
        process = self._target(fault).process
        self._note_fault(fault, fault.target)
        process.wall.jump(round(fault.seconds * 1000))
        self._furthest_ahead = max(self._furthest_ahead, abs(process.wall.ahead))

    def drift(self, fault: Fault) -> None:
        self._note_fault(fault, fault.target)
        self._target(fault).process.wall.drift(fault.seconds)
        self._furthest_ahead += round(abs(fault.seconds) * self.span * 1000)

    def freeze(self, fault: Fault) -> None:
        process = self._target(fault).process
        if not process.is_alive:
            return
        number = self._note_fault(fault, fault.target)
        self._blame(process, number)
        until = self.world.now + _ms(fault.seconds)
        process.frozen_until = max(process.frozen_until, until)

        def thaw(now: int) -> None:
            if process.frozen_until == now:
                self.history.note(now, "thaw", "", fault.target, number)

        self.world.call(Call(f"thaw {fault.target} {fault.at}", thaw), until)

    def delay_ack(self, fault: Fault) -> None:
        self.late_acks.setdefault(fault.target, []).append(fault)

    def repeat_ack(self, fault: Fault) -> None:
        self.repeated_acks.setdefault(fault.target, []).append(fault)

    def repeat_push(self, fault: Fault) -> None:
        self._note_fault(fault, "producer")
        self.repeat_pushes += 1

    def slow_disk(self, fault: Fault) -> None:
        number = self._note_fault(fault, "machine")
        self.write_ms += SLOW_WRITE_MS

        def heal(now: int) -> None:
            if self.write_ms:
                self.write_ms -= SLOW_WRITE_MS
                self._healed(fault, number)

        self.world.call(Call(f"heal slow disk {fault.at}", heal), self.world.now + _ms(fault.seconds))

    def fill_disk(self, fault: Fault) -> None:
        disk = self._disk(fault)
        number = self._note_fault(fault, "machine")
        disk.refuse("disk full", (Kind.CREATE, Kind.WRITE))
        self._heal_later(fault, number, "disk full")

    def break_disk(self, fault: Fault) -> None:
        disk = self._disk(fault)
        number = self._note_fault(fault, "machine")
        disk.refuse("I/O error", times=None if fault.seconds else 1)
        if fault.seconds:
            self._heal_later(fault, number, "I/O error")

    def fail_sync(self, fault: Fault) -> None:
        disk = self._disk(fault)
        self._note_fault(fault, "machine")
        disk.refuse("I/O error", (Kind.SYNC,), 1)

    def lock(self, fault: Fault) -> None:
        disk = self._disk(fault)
        number = self._note_fault(fault, "machine")
        try:
            lock = disk.lock()
        except RQLabError:
            return  # another one has it
        self._locks.append(lock)

        def heal(now: int) -> None:
            if lock in self._locks:
                self._locks.remove(lock)
                lock.close()
                self._healed(fault, number)

        self.world.call(Call(f"unlock {fault.at}", heal), self.world.now + _ms(fault.seconds))

    def poison(self, fault: Fault) -> None:
        self._note_fault(fault, fault.target)
        self.poisoned.add(fault.target)

    def hang(self, fault: Fault) -> None:
        self._note_fault(fault, fault.target)
        self.hanging[fault.target] = self.hanging.get(fault.target, 0) + 1

    def _heal_later(self, fault: Fault, number: int, error: str) -> None:
        assert isinstance(self.machine, Disk), "a disk broke"
        recorder = self.machine.recorder
        refusal = recorder.refusals[-1]

        def heal(now: int) -> None:
            if refusal in recorder.refusals:
                recorder.refusals.remove(refusal)
                self._healed(fault, number)

        self.world.call(Call(f"heal {error} {fault.at}", heal), self.world.now + _ms(fault.seconds))

    def _healed(self, fault: Fault, number: int) -> None:
        self.history.note(self.world.now, "heal", "", "machine", number, fault.kind)

    def _calm(self, now: int) -> None:
        """Nothing breaks any more: clocks are right, disks are whole, and every process runs."""
        while self.armed:  # a crash whose moment never came comes now
            fault, process = self.armed.pop(0)
            self.machine.disarm()
            plain = replace(fault, operation=0, window="")
            if process is None:
                self._power_fails(plain)
            elif process.is_alive:
                self.kill(plain)
        if isinstance(self.machine, Disk):
            self.machine.recorder.refusals = []
        for lock in self._locks:
            lock.close()
        self._locks = []
        self.write_ms = 0
        self.late_acks.clear()
        self.repeated_acks.clear()
        self.repeat_pushes = 0
        for process in self.processes:
            process.wall.set_right()
            if process.frozen_until > now:
                process.frozen_until = now
        self.is_calm = True
        self.history.note(now, "calm")

    def _target(self, fault: Fault) -> WorkerActor:
        actor = self.workers.get(fault.target)
        return actor if actor is not None else next(iter(self.workers.values()))

    def _disk(self, fault: Fault) -> Disk:
        assert isinstance(self.machine, Disk), f"{fault.kind} needs a disk"
        return self.machine

    def _note_fault(self, fault: Fault, target: str, job_id: str = "", cause: int = -1) -> int:
        detail = {
            field: value
            for field in ("seconds", "how", "operation", "window")
            if (value := getattr(fault, field)) not in (0, 0.0, "")
        }
        number = self.history.note(self.world.now, fault.kind, job_id, target, cause, {"fault": True, **detail})
        self.struck[target] = number
        return number

    def _blame(self, process: Process, number: int) -> None:
        self.struck[process.name] = number
        for actor in process.actors:
            self.struck[actor.name] = number

    def _cause(self, worker: str, job_id: str) -> int:
        """The fault that struck the worker since the job's last event; else that event."""
        struck = self.struck.get(worker, -1)
        return struck if struck > self.history.newest(job_id) else -1

    # The checks.

    def violate(self, check_id: str, says: str) -> None:
        self.violations.append(Violation(check_id, self.world.now / 1000, says))
        self.history.note(self.world.now, "violation", "", "", -1, {"check": check_id, "says": says})
        self.world.is_over = True

    def _ask(self, moment: Moment, seen: object) -> None:
        for check in self._by_moment[moment]:
            says = check.broken(self.ledger, seen)
            if says is not None:
                self.violate(check.id, says)

    def _answer(self, answer: Answer) -> None:
        self._ask(Moment.ANSWER, answer)

    def _count(self, store: Store) -> None:
        if not self._by_moment[Moment.COUNT]:
            return
        try:
            found = read(store)
        except StoreError:
            return  # a fault that strikes now: there is another count
        self._ask(Moment.COUNT, found)

    def _judge_recovery(self, store: Store, cause: int) -> None:
        how, self.crash = self.crash, ""
        ledger = self.ledger
        try:
            complaints = self.machine.complaints(store)
            found = read(store)
        except StoreError as error:
            if self._is_disturbed():
                self.crash = how  # a fault that strikes now: the next opening is judged
                return
            self._ask(Moment.RECOVERY, Recovery(None, [str(error)], how, None, 0, ()))
            return
        before = dict(ledger.jobs)
        taken_back = self._taken_back(found)
        ledger.unknown.clear()
        lost_jobs = 0
        if taken_back:
            ledger.lost_writes += len(taken_back)
            lost_jobs = self._lose(taken_back, before, cause)
        held = [job for job in ledger.jobs.values() if job.state is State.ACTIVE]
        mode, opening = MODES[self.settings.durability], self.settings.opening
        allowed = min(self._at_risk, mode.most_lost(opening))
        if loses_the_last(how):
            allowed += max(mode.most_lost(opening), 1)  # one transaction more
        self._at_risk = 0
        self._ask(Moment.RECOVERY, Recovery(found, complaints, how, taken_back, allowed, held))
        self.losses.append((how, len(taken_back or ()), lost_jobs))
        detail = {"after": how, "writes_lost": len(taken_back or ()), "jobs_lost": lost_jobs}
        self.history.note(self.world.now, "recovered", "", "machine", cause, detail)
        if not self.violations:
            self._ask(Moment.COUNT, found)

    def _is_disturbed(self) -> bool:
        return bool(self._locks) or (isinstance(self.machine, Disk) and bool(self.machine.recorder.refusals))

    def _taken_back(self, found: Found) -> list[Commit] | None:
        """The commits that what was found has not got; None if it is the state after no prefix of them."""
        ledger = self.ledger
        if not ledger.differs_from(found):
            return []
        for effects in ledger.unknown:
            commit = ledger.begin(self.world.now, effects.changes)
            for event, job, _ in effects.changes:
                ledger.apply(commit, event, job)
            for key, value in effects.entries:
                ledger.put_entry(commit, key, value)
            if not ledger.differs_from(found):
                for event, job, _ in effects.changes:
                    self.history.note(self.world.now, event, job.id, job.worker or "", -1, job)
                return []
            self._undo(commit)
        taken: list[Commit] = []
        while True:
            commit_taken = ledger.take_back()
            if commit_taken is None:
                ledger.count_again()
                return taken if not ledger.differs_from(found) else None
            taken.append(commit_taken)
            if len(found.jobs) == len(ledger.jobs) and not ledger.differs_from(found):
                ledger.count_again()
                return taken

    def _undo(self, commit: Commit) -> None:
        taken = self.ledger.take_back()
        assert taken is commit, "the newest commit is taken back"
        self.ledger.pushed -= sum(event is Event.PUSH for event, _, _ in commit.changes)
        self.ledger.removed -= sum(_left(event, job) is None for event, job, _ in commit.changes)
        self.ledger.count_again()

    def _lose(self, taken_back: Sequence[Commit], before: Mapping[str, Job], cause: int) -> int:
        ledger, lost = self.ledger, 0
        for commit in taken_back:
            for event, job, _ in commit.changes:
                if event is Event.PUSH:
                    ledger.lost[job.id] = before.get(job.id, job)
                    self.history.note(self.world.now, "lost", job.id, "", cause)
                    lost += 1
                elif _left(event, job) is None:
                    ledger.removed -= 1
        ledger.count_again()
        return lost

    def _judge_end(self) -> None:
        now, ledger = self.world.now, self.ledger
        alive = next((process for process in self.processes if process.is_alive), None)
        if alive is not None:
            self._count(alive.store.real)
        if self.settings.until is not None:
            return
        deliveries = sum(job.deliveries for job in ledger.jobs.values())
        most = 20 + 6 * sum(job.max_attempts for job in ledger.jobs.values())
        exhausted = self.world.steps >= self.world.steps_allowed
        end = End(now, self._allowed_until, self.pushes_failed, deliveries, most, EPOCH + now, exhausted)
        self._ask(Moment.END, end)


def _register(producer: ProducerActor, wall: int) -> None:
    """A schedule; registering it again changes nothing."""
    push = Push(Job(id="", queue="reports", name="report", max_attempts=4, timeout=30.0))
    schedule = schedules.new(
        name="hourly", queue="reports", job_name="report", options=msgspec.Raw(msgspec.json.encode(push)), now=wall,
        every=3.0, max_executions=3, catch_up="all",
    )  # fmt: skip
    producer.process.engine.put_schedule(schedule, lambda stored: schedules.same_definition(stored, schedule))


def _pusher(stage: Stage, label: str, push: Push) -> Callable[[ProducerActor, int], None]:
    def do(producer: ProducerActor, wall: int) -> None:
        process = producer.process
        for _ in range(2 if stage.repeat_pushes else 1):
            job_id = process.ids.draw(wall)
            stage.name_job(job_id, label)
            try:
                process.engine.push([(push, job_id)], wall)
            except DuplicateKey as error:
                stage.history.note(stage.world.now, "duplicate", error.job_id, "producer")
        stage.repeat_pushes = max(stage.repeat_pushes - 1, 0)

    return do


def _canceller(stage: Stage, label: str) -> Callable[[ProducerActor, int], None]:
    def do(producer: ProducerActor, wall: int) -> None:
        ids = [job_id for job_id in stage.ledger.jobs if stage.labels.get(job_id) == label]
        for job_id in ids:
            with contextlib.suppress(InvalidState, JobNotFound):  # it is finished
                producer.process.engine.cancel(job_id, wall)

    return do


def _requeue_all(producer: ProducerActor, wall: int) -> None:
    producer.process.engine.requeue_all("mail", wall)


def _left(event: Event, job: Job) -> Job | None:
    """The record that an event leaves; None if it leaves none."""
    is_gone = event is Event.PURGE or (event is Event.ACK and job.remove_on_complete)
    return None if is_gone else job


def _has_stopped(process: Process) -> bool:
    return all(actor.is_down for actor in process.actors if isinstance(actor, WorkerActor))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
