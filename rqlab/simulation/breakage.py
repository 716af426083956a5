"""Lets faults strike: what each kind does to the processes, the clocks and the machine of a world.

`faults.py` says what can break and how it is drawn; here it happens. It decides nothing about a job.
"""

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from rqlab.errors import RQLabError
from rqlab.executors import Report, Run
from rqlab.job import Job
from rqlab.simulation.actors import BeatActor, Process, WorkerActor, late
from rqlab.simulation.chance import Chance
from rqlab.simulation.faults import FAULTS, Fault
from rqlab.simulation.history import History
from rqlab.simulation.judge import Judge
from rqlab.simulation.machine import Disk, Machine, is_in_snapshot
from rqlab.simulation.recorder import Kind
from rqlab.simulation.windows import SNAPSHOT
from rqlab.simulation.world import Call, World
from rqlab.storage.locks import Lock

SLOW_WRITE_MS = 400
LONGEST_RELEASE_MS = 10_000  # what has not stopped by then is killed


class Breakage:
    """Everything that is broken at the moment, and how it came about."""

    def __init__(
        self,
        world: World,
        chance: Chance,
        history: History,
        machine: Machine,
        judge: Judge,
        processes: Sequence[Process],
        workers: dict[str, WorkerActor],
    ) -> None:
        self.world = world
        self.chance = chance
        self.history = history
        self.machine = machine
        self.judge = judge
        self.processes = processes
        self.workers = workers
        self.struck: dict[str, int] = {}  #: by worker: the event of the fault that last struck it
        self.ended_by: dict[str, int] = {}  #: by process that is down: the event of the fault that ended it
        self.write_ms = 0  #: what each write takes
        self.furthest_ahead = 0  #: milliseconds by which a wall was ever wrong
        self.repeat_pushes = 0
        self._poisoned: set[str] = set()
        self._hanging: dict[str, list[int]] = {}  #: by job: the events of the faults that its next runs never end by
        self._hung: dict[
            tuple[str, int], int
        ] = {}  #: by job and delivery: the event of the fault that it never ends by
        self._late_acks: dict[str, list[Fault]] = {}
        self._repeated_acks: dict[str, list[Fault]] = {}
        self._lurking: dict[str, Callable[[int], None]] = {}  #: by job: a report that waits for the job's next run
        self._armed: list[tuple[Fault, Process | None]] = []  #: crashes that wait for an operation or a window
        self._operations_left = 0
        self._operations_before = 0
        self._locks: list[Lock] = []

    def strike(self, fault: Fault) -> None:
        FAULTS[fault.kind].strike(self, fault)

    # What the stage asks.

    def before_step(self, process: Process) -> None:
        if self._armed:
            _, target = self._armed[0]
            if target is process:
                assert isinstance(self.machine, Disk), "only a disk has operations"
                self._operations_before = len(self.machine.recorder)
                self.machine.recorder.stop_at = self._operations_before + self._operations_left

    def after_step(self, process: Process) -> bool:
        """Whether the step came to its end: a crash may have come inside it."""
        machine = self.machine
        if self._armed and isinstance(machine, Disk):
            fault, target = self._armed[0]
            if target is process and not machine.is_down:
                self._operations_left -= len(machine.recorder) - self._operations_before
                machine.recorder.stop_at = None
            elif machine.is_down:
                self._armed.pop(0)
                if target is None:
                    self._power_fails(fault)
                else:
                    self._die(process)
                    machine.revive()
                    self._killed(process, fault)
                self._arm_next()
                return False
            elif fault.window == SNAPSHOT and process.is_alive and is_in_snapshot(process.store.real):
                self._armed.pop(0)
                self._power_fails(fault)
                self._arm_next()
                return False
        return True

    def begins(self, actor: WorkerActor, job: Job, label: str, duration: int) -> bool:
        """A run begins that is going to take `duration` milliseconds; whether it never ends of itself."""
        lurking = self._lurking.pop(job.id, None)
        if lurking is not None:
            lurking(self.world.now + duration // 2)
        if label in self._poisoned:
            cause = self.history.note(self.world.now, "poison job", job.id, actor.name)
            crash = Fault(self.world.now / 1000, "worker crash", actor.name, 1.0)
            name = f"poison {label} {job.deliveries}"
            self.world.call(Call(name, lambda now: self._crash(actor, crash, cause)), self.world.now + duration)
            return True
        if faults := self._hanging.get(label):
            self._hung[job.id, job.deliveries] = faults.pop()
            return True
        return False

    def ended(self, actor: WorkerActor, run: Run, report: Report) -> bool:
        """A run has ended; whether its worker hears of it now."""
        name = f"{actor.name} {run.job.id} {run.job.deliveries}"
        if faults := self._late_acks.get(actor.name):
            fault = faults.pop()
            if actor.worker.runs.get(run.job.id) is run:
                del actor.worker.runs[run.job.id]  # nobody keeps its lease any more
            self._note_fault(fault, actor.name, run.job.id)
            if fault.seconds:
                late(actor, f"late ack of {name}", self.world.now + _ms(fault.seconds), run, report)
            else:
                self._lurking[run.job.id] = lambda at: late(actor, f"late ack of {name}", at, run, report)
            return False
        if faults := self._repeated_acks.get(actor.name):
            fault = faults.pop()
            self._note_fault(fault, actor.name, run.job.id)
            late(actor, f"duplicate ack of {name}", self.world.now + 1 + _ms(fault.seconds), run, report)
        return True

    # The scene.

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
            self._armed.append((fault, process))
            if len(self._armed) == 1:
                self._arm_next()
        else:
            self._die(process)
            self._killed(process, fault)

    def cut_power(self, fault: Fault) -> None:
        if (fault.operation or fault.window) and isinstance(self.machine, Disk):
            self._armed.append((fault, None))
            if len(self._armed) == 1:
                self._arm_next()
            if fault.window == "last close":  # which comes only when somebody ends everything
                self.redeploy(Fault(fault.at, "redeploy", seconds=fault.seconds))
        else:
            self._power_fails(fault)

    def _arm_next(self) -> None:
        if not self._armed:
            return
        fault, process = self._armed[0]
        if process is None:
            self.machine.arm(fault)
        elif process.is_alive:
            self._operations_left = fault.operation
        else:
            self._armed.pop(0)
            self._arm_next()

    def _die(self, process: Process, how: str = "kill") -> None:
        if process.is_alive:
            process.silence()
            self.judge.went_down(how, [process.store.real])
            self.machine.leave(process.store.real)

    def _killed(self, process: Process, fault: Fault) -> None:
        number = self._note_fault(fault, fault.target or process.name)
        self._blame(process, number, ends=True)
        self.judge.went_down("kill")
        witness = next((each for each in self.processes if each.is_alive), None)
        if witness is not None:
            self.judge.recovered(witness.store.real, number, self.is_disturbed, by_witness=True)
        self.start_in(process, _ms(fault.seconds) or 1)

    def _power_fails(self, fault: Fault) -> None:
        in_snapshot = any(process.is_alive and is_in_snapshot(process.store.real) for process in self.processes)
        for process in self.processes:
            if process.is_alive:
                self._die(process)
        number = self._note_fault(fault, "machine")
        for process in self.processes:
            self._blame(process, number, ends=True)
        for lock in self._locks:
            lock.close()
        self._locks = []
        drawn_from = self.chance.bits("cut", fault.how, round(fault.at * 1000))
        self.judge.went_down(self.machine.cut(fault, drawn_from, in_snapshot))
        for process in self.processes:
            self.start_in(process, _ms(fault.seconds) or 1)

    def redeploy(self, fault: Fault) -> None:
        number = self._note_fault(fault, "machine")
        leaving = [process for process in self.processes if process.is_alive]
        for process in leaving:
            process.is_leaving = True
            self._blame(process, number, ends=True)
            for actor in process.actors:
                if isinstance(actor, WorkerActor) and not actor.is_down:
                    actor.worker.release()
                    self.world.call(actor, self.world.now)
        until = self.world.now + LONGEST_RELEASE_MS

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
                    self.start_in(process, 0)
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
                self.history.note(self.world.now, "error", "", process.name, -1, type(error).__name__)
                how = "kill"
        if not self.after_step(process):
            return  # a crash came first
        if how == "kill" or not self.machine.survives_kill:
            self._die(process, how)
        else:
            process.silence()
            self.judge.went_down(how)

    def jump(self, fault: Fault) -> None:
        process = self._target(fault).process
        self._note_fault(fault, fault.target)
        process.wall.jump(round(fault.seconds * 1000))
        self.judge.excuse(self.world.now)
        self.furthest_ahead = max(self.furthest_ahead, abs(process.wall.ahead))

    def drift(self, fault: Fault) -> None:
        self._note_fault(fault, fault.target)
        self._target(fault).process.wall.drift(fault.seconds)
        self.judge.slowest_clock = min(self.judge.slowest_clock, 1 + fault.seconds)

    def freeze(self, fault: Fault) -> None:
        process = self._target(fault).process
        if not process.is_alive:
            return
        number = self._note_fault(fault, fault.target)
        self._blame(process, number)
        until = self.world.now + _ms(fault.seconds)
        process.frozen_until = max(process.frozen_until, until)
        self.judge.excuse(process.frozen_until)

        def thaw(now: int) -> None:
            if process.frozen_until == now:
                self.history.note(now, "thaw", "", fault.target, number)

        self.world.call(Call(f"thaw {fault.target} {fault.at}", thaw), until)

    def delay_ack(self, fault: Fault) -> None:
        self._late_acks.setdefault(fault.target, []).append(fault)

    def repeat_ack(self, fault: Fault) -> None:
        self._repeated_acks.setdefault(fault.target, []).append(fault)

    def repeat_push(self, fault: Fault) -> None:
        self._note_fault(fault, "producer")
        self.repeat_pushes += 1

    def slow_disk(self, fault: Fault) -> None:
        number = self._note_fault(fault, "machine")
        self.write_ms += SLOW_WRITE_MS
        self.judge.commit_ms = self.write_ms

        def heal(now: int) -> None:
            if self.write_ms:
                self._speed_up(self.write_ms - SLOW_WRITE_MS)
                self._healed(fault, number)

        self.world.call(Call(f"heal slow disk {fault.at}", heal), self.world.now + _ms(fault.seconds))

    def _speed_up(self, write_ms: int) -> None:
        self.judge.excuse(self.world.now + self.write_ms)  # the commit under way takes what it would have taken
        self.write_ms = self.judge.commit_ms = write_ms

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
        self._poisoned.add(fault.target)

    def hang(self, fault: Fault) -> None:
        self._hanging.setdefault(fault.target, []).append(self._note_fault(fault, fault.target))

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

    @property
    def is_disturbed(self) -> bool:
        """Whether the disk refuses something now."""
        return bool(self._locks) or self.machine.is_refusing

    def calm(self, now: int) -> None:
        """Nothing breaks any more: clocks are right, disks are whole, and every process runs."""
        while self._armed:  # a crash whose moment never came comes now
            fault, process = self._armed.pop(0)
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
        self._speed_up(0)
        self.judge.excuse(now)  # clocks are set right
        self._late_acks.clear()
        self._repeated_acks.clear()
        self._hanging.clear()
        for worker in self.workers.values():
            for run in worker.let_end(self._hung):
                number = self._hung[run.job.id, run.job.deliveries]
                self.history.note(now, "heal", "", worker.name, number, "hanging handler")
        self.repeat_pushes = 0
        for process in self.processes:
            self.furthest_ahead = max(self.furthest_ahead, abs(process.wall.ahead))
            process.wall.set_right()
            if process.frozen_until > now:
                process.frozen_until = now

    def _target(self, fault: Fault) -> WorkerActor:
        actor = self.workers.get(fault.target)
        return actor if actor is not None else next(iter(self.workers.values()))

    def _disk(self, fault: Fault) -> Disk:
        assert isinstance(self.machine, Disk), f"{fault.kind} needs a disk"
        return self.machine

    def start_in(self, process: Process, milliseconds: int) -> None:
        name = f"start {process.name} {process.starts}"
        self.world.call(Call(name, process.start), self.world.now + milliseconds)

    def _note_fault(self, fault: Fault, target: str, job_id: str = "", cause: int = -1) -> int:
        detail = {
            field: value
            for field in ("seconds", "how", "operation", "window")
            if (value := getattr(fault, field)) not in (0, 0.0, "")
        }
        number = self.history.note(self.world.now, fault.kind, job_id, target, cause, {"fault": True, **detail})
        self.struck[target] = number
        return number

    def _blame(self, process: Process, number: int, ends: bool = False) -> None:
        self.struck[process.name] = number
        if ends:
            self.ended_by.setdefault(process.name, number)  # another one while it starts ends nothing
        for actor in process.actors:
            self.struck[actor.name] = number

    def cause(self, worker: str, job_id: str) -> int:
        """The fault that struck the worker since the job's last event; else that event."""
        struck = self.struck.get(worker, -1)
        return struck if struck > self.history.newest(job_id) else -1


def _has_stopped(process: Process) -> bool:
    return all(actor.is_down for actor in process.actors if isinstance(actor, WorkerActor))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
