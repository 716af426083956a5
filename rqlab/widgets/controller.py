"""Owns the lab's processes: says which there are, tells them what to do, and keeps the books on what they say.

Thread-safe, and every action returns at once: buttons call it from any thread. Knows no widget and draws nothing.
"""

import os
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import msgspec

from rqlab import arguments, clock
from rqlab.durability import MODES, Opening
from rqlab.errors import RQLabError, ValidationError
from rqlab.job import Job
from rqlab.lifecycle import Event
from rqlab.widgets import workload
from rqlab.widgets.handle import Handle, Status
from rqlab.widgets.ledger import Books, Ledger
from rqlab.widgets.orders import Ask, Order, Report, Role

MOST_EVENTS = 10_000  # the newest are kept
MOST_JOBS = 10_000  # a panel reads all of them at every tick
MOST_WORKERS = 16
MOST_SECONDS = 60.0  # of a run
STOP_SECONDS = 5.0  # for a process to end cleanly before it is killed
FORGIVEN_MS = 1_000  # between reading the clock and having the lock, on a busy machine
QUIET = {Event.PROGRESS, Event.LOG, Event.HEARTBEAT}  # not told as events
BY_PRODUCER = ("push", "pause", "resume")  #: what is done by the producer, or the owner
FAULTS = ("kill -9", "freeze")  # of a process, as its events name them


class Settings(NamedTuple):
    """What a lab is told when it is made, checked."""

    mode: str
    workers: int
    handler: str | None  #: module:handler; None is the demo's, if there are no `handlers`
    handlers: dict[str, str] | None  #: functions that travel by value, by job name
    name: str  #: of the jobs
    data: Any  #: of the jobs; the demo's handler gets its own
    seed: int
    failure_rate: float  #: 0...1
    seconds: float  #: that a run takes, on average
    stall_timeout: float
    tick_interval: float
    opening: Opening  #: how each mode is opened

    @property
    def is_demo(self) -> bool:
        """Whether jobs do what the sliders say."""
        return self.handler is None and self.handlers is None


class Happened(NamedTuple):
    """An event of a job, or something that was done to a process."""

    at: int  #: milliseconds since the epoch, UTC
    kind: str
    job: str  #: its id
    worker: str  #: a name of the lab, or host:pid:thread
    detail: str


class Controller:
    """A queue directory (or a queue in memory), its processes, and the books on what they said."""

    def __init__(self, path: str | os.PathLike[str] | None, settings: Settings) -> None:
        self.settings = settings
        self.is_temporary = path is None
        self.home = Path(
            tempfile.mkdtemp(prefix="rqlab-lab-")
        )  #: the processes' logs; the directory, if none was given
        self.path = self.home / "jobs" if path is None else Path(path).absolute()
        self.lab = self.home.name  #: what marks the jobs of this lab
        self.mode = settings.mode
        self.failure_rate = settings.failure_rate
        self.seconds = settings.seconds
        self.is_paused: bool | None = None  #: None: nobody has said
        self.is_changing = ""  #: what mode is being changed to
        self.began_at = clock.now()
        self.longest_freeze_ms = 0
        self.has_been_opened = False  #: the directory, by any of the processes
        self.problem = ""  #: what could not be done, by a thread that has nobody to raise it to
        self.numbers: dict[str, int] = {}  #: by job id: the number it was asked for as
        self.names: dict[int, tuple[str, str]] = {}  #: by pid: name and kind, of every process there has been
        self._lock = threading.RLock()
        self._ledger = Ledger()
        self._events: deque[Happened] = deque(maxlen=MOST_EVENTS)
        self._faults: deque[Happened] = deque(maxlen=MOST_EVENTS)
        self._processes: dict[str, Handle] = {}
        self._records: dict[str, Job] = {}  #: what a queue in memory says it has
        self._restarting: list[str] = []  #: processes that are to be started again, once for each time
        self._put_off = 0  #: actions that wait for a producer
        self._kill_at = 0  #: the number of the job after whose push the producer is killed; 0: none
        self._errands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._is_closed = False
        self._closed = threading.Event()
        self._hand = threading.Thread(target=self._run_errands, name="rqlab-lab-errands", daemon=True)
        try:
            with self._lock:
                self._start_all()
        except BaseException:
            self.close()
            raise
        self._hand.start()

    # What buttons call.

    def push(self, count: int = 1) -> None:
        """Have the producer push so many jobs, one by one. RQLabError if it is dead, or the lab is full."""
        arguments.whole(count, "count", 1, MOST_JOBS)
        self._by_producer(lambda: self._ask(count))

    def push_and_kill(self, count: int = 300) -> None:
        """Have the producer push so many jobs, and kill -9 it when half of them have been acknowledged."""
        arguments.whole(count, "count", 2, MOST_JOBS)
        self._by_producer(lambda: self._ask(count, kill_after=count // 2))

    def pause(self) -> None:
        """Stop pulls; pushes go on."""
        self._by_producer(lambda: self._pause(True))

    def resume(self) -> None:
        """End a pause."""
        self._by_producer(lambda: self._pause(False))

    def kill(self, name: str) -> None:
        """kill -9 this process. A worker of a mode with one owner is a thread: kill the owner."""
        with self._lock:
            process = self._live(name, "kill")
            self._note("kill -9", process)
            process.kill()

    def kill_all(self) -> None:
        """kill -9 all processes."""
        with self._lock:
            for name, process in self._processes.items():
                if process.is_live():
                    self.kill(name)

    def freeze(self, name: str) -> None:
        """Stop this process where it is (SIGSTOP), as a long garbage collection or a closed lid does."""
        with self._lock:
            process = self._live(name, "freeze")
            if process.frozen_at is None:
                self._note("freeze", process)
                process.freeze()

    def thaw(self, name: str) -> None:
        """Let a frozen process go on (SIGCONT)."""
        with self._lock:
            process = self._live(name, "thaw")
            if process.frozen_at is not None:
                self._thaw(process)

    def restart(self, name: str) -> None:
        """Start this process again; one that lives is killed first (kill -9)."""
        with self._lock:
            process = self._named(name, "restart")
            if process.is_live():
                self.kill(name)
            self._restarting.append(name)
            self._errands.put(lambda: self._restart(process))

    def change_mode(self, mode: str) -> None:
        """Stop all processes cleanly, open the directory in this mode, start them again."""
        checked_mode(mode)
        with self._lock:
            self._refuse_if_closed("change the mode of")
            if mode == (self.is_changing or self.mode):
                return
            self.is_changing = mode
            self._note_event("mode", f"from {self.mode} to {mode}")
            self._errands.put(lambda: self._change_mode(mode))

    def set_workload(self, *, failure_rate: float | None = None, seconds: float | None = None) -> None:
        """What jobs pushed from now on do: how often a run fails (0...1), how many seconds it takes on average."""
        if failure_rate is not None:
            self.failure_rate = arguments.fraction(failure_rate, "failure_rate")
        if seconds is not None:
            self.seconds = checked_seconds(seconds)

    def close(self) -> None:
        """End all processes and remove what is temporary. Idempotent; who calls it meanwhile waits for the end."""
        with self._lock:
            first, self._is_closed = not self._is_closed, True
        if not first:
            self._closed.wait(3 * STOP_SECONDS)
            return
        self._errands.put(None)
        self._stop_all(kill=self.is_temporary)  # an errand that waits for a process is not kept waiting any more
        if self._hand.is_alive() and threading.current_thread() is not self._hand:
            self._hand.join(3 * STOP_SECONDS)
        shutil.rmtree(self.home, ignore_errors=True)
        self._closed.set()

    # What panels read.

    def statuses(self) -> list[Status]:
        """The processes, in the order of the panel; in modes with one owner its worker threads too."""
        with self._lock:
            found = [process.status() for process in self._processes.values()]
            if "owner" in self._processes:
                owner = found[0]
                for number in range(1, self.settings.workers + 1):
                    found.append(Status(f"w{number}", "thread", owner.pid, owner.state, ""))
            return found

    def books(self) -> Books:
        """What has been asked for, acknowledged and completed, as far as it has been heard."""
        with self._lock:
            return self._ledger.books()

    def unanswered(self) -> int:
        """Pushes that a live producer was told to make and has not answered; what waits for one counts as one."""
        with self._lock:
            asked = sum(len(process.asked) for process in self._processes.values() if process.is_live())
            return asked + self._put_off

    def events(self, newest: int = MOST_EVENTS) -> list[Happened]:
        """The newest events, the oldest of them first."""
        with self._lock:
            return _last(self._events, newest)

    def faults(self, newest: int = MOST_EVENTS) -> list[Happened]:
        """The newest kills and freezes, the oldest of them first."""
        with self._lock:
            return _last(self._faults, newest)

    def reported(self) -> list[Job]:
        """The records of a queue in memory, as its process last told them; none once it is dead."""
        with self._lock:
            return list(self._records.values())

    @property
    def forgiven_ms(self) -> int:
        """How old the instant of a pull may be."""
        with self._lock:
            now = clock.now()
            frozen = [now - each.frozen_at for each in self._processes.values() if each.frozen_at is not None]
            return FORGIVEN_MS + max([self.longest_freeze_ms, *frozen])

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    # Below: with the lock held.

    def _start_all(self) -> None:
        self._processes = {}
        if self.mode == "durable":
            self._start(self._role("producer", "producer"))
            for number in range(1, self.settings.workers + 1):
                self._start(self._role(f"w{number}", "worker"))
        else:
            self._start(self._role("owner", "owner"))

    def _role(self, name: str, kind: str) -> Role:
        own = MODES[self.mode].settings
        return Role(
            name=name,
            kind=kind,
            mode=self.mode,
            path=None if self.mode == "memory" else str(self.path),
            handler=self.settings.handler,
            handlers=self.settings.handlers,
            workers=self.settings.workers,
            stall_timeout=self.settings.stall_timeout,
            tick_interval=self.settings.tick_interval,
            home=str(self.home),
            paused=None if kind == "worker" else self.is_paused,
            settings={setting: getattr(self.settings.opening, setting) for setting in own},
        )

    def _start(self, role: Role) -> None:
        log = self.home / f"{role.name}-{len(self._ledger.lives) + 1}.log"
        process = Handle(role, log, self._take, self._take_end)
        process.life = self._ledger.begin(role.name, process.pid, role.mode, role.path is None).number
        self._processes[role.name] = process
        self.names[process.pid] = role.name, role.kind
        self._note("start", process)
        if role.path is None:
            self._records = {}
        process.listen()

    def _by_producer(self, action: Callable[[], None]) -> None:
        """Do what needs a producer, at once; or, if one is on its way, when it is there."""
        with self._lock:
            if not self.is_changing and not {"producer", "owner"} & {*self._restarting}:
                action()
                return
            self._refuse_if_closed("use")
            self._put_off += 1
            self._errands.put(lambda: self._do_put_off(action))

    def _do_put_off(self, action: Callable[[], None]) -> None:
        with self._lock:
            self._put_off -= 1
            action()

    def _ask(self, count: int, kill_after: int = 0) -> None:
        producer = self._producer("push")
        asked = len(self._ledger.asked)
        if asked + count > MOST_JOBS:
            raise RQLabError(
                f"cannot push {count}: expected at most {MOST_JOBS:,} jobs in a lab, {asked:,} were asked for"
            )
        numbers = range(asked + 1, asked + count + 1)
        self._ledger.asked.update(numbers)
        producer.asked.update(numbers)
        producer.order(Order(push=[self._asked(number) for number in numbers]))
        if kill_after:
            self._kill_at = asked + kill_after

    def _asked(self, number: int) -> Ask:
        demo = self.settings.is_demo
        return Ask(
            number=number,
            name=self.settings.name,
            data=workload.job_data(self.settings.seed, number, self.seconds, self.failure_rate)
            if demo
            else self.settings.data,
            metadata={"lab": self.lab, "number": number},
            max_attempts=workload.MAX_ATTEMPTS,
            backoff_delay=workload.BACKOFF_SECONDS,
        )

    def _pause(self, on: bool) -> None:
        producer = self._producer("pause" if on else "resume")
        self.is_paused = on
        self._note_event("pause" if on else "resume", "")
        producer.order(Order(pause=on))

    def _producer(self, attempted: str) -> Handle:
        return self._live("producer" if "producer" in self._processes else "owner", attempted)

    def _named(self, name: str, attempted: str) -> Handle:
        self._refuse_if_closed(f"{attempted} {name} of")
        process = self._processes.get(name)
        if process is None:
            known = ", ".join(self._processes)
            thread = " (a worker here is a thread of the owner)" if "owner" in self._processes else ""
            raise ValidationError(f"name: expected one of {known}{thread}; got {name!r}")
        return process

    def _live(self, name: str, attempted: str) -> Handle:
        process = self._named(name, attempted)
        if not process.is_live():
            what = attempted if attempted in BY_PRODUCER else f"{attempted} {name}"
            raise RQLabError(
                f"cannot {what}: expected {name} to run, found it {process.status().state}. Restart {name}"
            )
        return process

    def _refuse_if_closed(self, attempted: str) -> None:
        if self._is_closed:
            raise RQLabError(f"cannot {attempted} this lab: it is closed")

    def _thaw(self, process: Handle) -> None:
        self._note("thaw", process)
        self.longest_freeze_ms = max(self.longest_freeze_ms, process.thaw())

    def _note(self, kind: str, process: Handle) -> None:
        event = Happened(clock.now(), kind, "", process.role.name, f"pid {process.pid}")
        self._events.append(event)
        if kind in FAULTS:
            self._faults.append(event)

    def _note_event(self, kind: str, detail: str) -> None:
        self._events.append(Happened(clock.now(), kind, "", "", detail))

    # What processes report, each in a thread of its own.

    def _take(self, process: Handle, report: Report) -> None:
        with self._lock:
            match report.kind:
                case "ready":
                    process.is_ready = True
                    self.has_been_opened = self.has_been_opened or process.role.path is not None
                case "pushed":
                    self._take_push(process, report)
                case "refused":
                    process.asked.discard(report.number)
                    self._events.append(Happened(report.at, "push refused", "", process.role.name, report.says))
                case "wrong":
                    process.says = report.says
                case "change":
                    self._take_change(process, report)

    def _take_push(self, process: Handle, report: Report) -> None:
        process.asked.discard(report.number)
        self._ledger.acknowledge(report.job, report.number, process.life, report.at)
        self.numbers[report.job] = report.number
        if self._kill_at and report.number >= self._kill_at:
            self._kill_at = 0
            if process.is_live():
                self._note("kill -9", process)
                process.kill()

    def _take_change(self, process: Handle, report: Report) -> None:
        if report.event == Event.ACK:
            self._ledger.complete(report.job, report.delivery, report.worker, process.life)
        if process.role.path is None:
            if report.event == Event.PURGE:
                self._records.pop(report.job, None)
            else:
                self._records[report.job] = msgspec.json.decode(report.record, type=Job)
        if report.event not in QUIET:
            self._events.append(Happened(report.at, report.event, report.job, report.worker, report.says))

    def _take_end(self, process: Handle) -> None:
        code = process.exit_code
        with self._lock:
            self._ledger.end(process.life, "stopped" if code == 0 else "crashed")
            if process.role.path is None and self._processes.get(process.role.name) is process:
                self._records = {}
            if process.frozen_at is not None:
                self.longest_freeze_ms = max(self.longest_freeze_ms, clock.now() - process.frozen_at)
                process.frozen_at = None
            if not self._is_closed:
                self._note("gone" if code == -signal.SIGKILL else "ended", process)

    # What takes a while, in a thread of its own.

    def _run_errands(self) -> None:
        while (errand := self._errands.get()) is not None:
            try:
                errand()
                self.problem = ""
            except Exception as error:  # noqa: BLE001  # of whatever kind: the panel shows it, and the next is done
                self.problem = f"{type(error).__name__}: {error}"

    def _restart(self, process: Handle) -> None:
        ended = process.has_ended(STOP_SECONDS)
        with self._lock:
            self._restarting.remove(process.role.name)
            if not ended:
                raise TimeoutError(f"{process.role.name} (pid {process.pid}) has not ended, though kill -9 was sent")
            if self._processes.get(process.role.name) is process and not self._is_closed:
                self._start(self._role(process.role.name, process.role.kind))

    def _change_mode(self, mode: str) -> None:
        self._stop_all(kill=False)
        with self._lock:
            if not self._is_closed:
                self.mode, self.is_changing = mode, ""
                self._records = {}
                self._start_all()

    def _stop_all(self, *, kill: bool) -> None:
        """End all processes, cleanly if that does not take too long; all are reaped."""
        with self._lock:
            processes = list(self._processes.values())
            for process in processes:
                if process.frozen_at is not None and process.is_live() and not kill:
                    self._thaw(process)
                if kill and not process.has_ended():
                    process.kill()
                else:
                    process.order(Order(stop=True))
        until = clock.monotonic() + STOP_SECONDS
        for process in processes:
            if not process.has_ended(max(0.0, until - clock.monotonic())):
                process.kill()
                process.has_ended(STOP_SECONDS)


def checked_mode(mode: object) -> str:
    """The mode, or ValidationError."""
    if not isinstance(mode, str) or mode not in MODES:
        raise ValidationError(f"mode: expected one of {', '.join(map(repr, MODES))}; got {mode!r}")
    return mode


def checked_seconds(seconds: object) -> float:
    """How long a run takes, or ValidationError."""
    checked = arguments.seconds(seconds, "seconds")
    if checked > MOST_SECONDS:
        raise ValidationError(f"seconds: expected at most {MOST_SECONDS:g}; got {seconds!r}")
    return checked


def _last(kept: "deque[Happened]", newest: int) -> list[Happened]:
    return list(kept) if newest >= len(kept) else [kept[at] for at in range(-newest, 0)]
