"""Owns the lab's processes: starts, kills, freezes, thaws and reaps them, tells them what to do, hears what they say.

Thread-safe, and every action returns at once: buttons call it from any thread. Knows no widget and draws nothing.
Processes stand in a group of their own, so that an interrupt of the notebook passes them by, and in the session of
their parent: the kernel ends stopped processes whose parent has died, and the others end as their orders do.
"""

import os
import shutil
import signal
import subprocess
import sys
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
from rqlab.errors import ValidationError
from rqlab.job import Job
from rqlab.lifecycle import Event
from rqlab.widgets import workload
from rqlab.widgets.ledger import Books, Ledger, Life
from rqlab.widgets.orders import Ask, Order, Report, Role

MOST_EVENTS = 10_000  # the newest are kept
MOST_JOBS = 10_000  # a lab reads all of them at every tick
MOST_WORKERS = 16
STOP_SECONDS = 5.0  # for a process to end cleanly before it is killed
STALL_TIMEOUT = 2.0  # seconds; the default, 30, is long to watch
TICK_INTERVAL = 0.5  # seconds
FORGIVEN_MS = 1_000  # between reading the clock and having the lock, on a busy machine


class Settings(NamedTuple):
    """What a lab is told when it is made, checked."""

    mode: str
    workers: int
    handler: str | None  #: module:qualname; None is the demo's
    name: str  #: of the jobs
    data: Any  #: of the jobs; with the demo's handler it makes its own
    seed: int
    failure_rate: float  #: 0...1
    seconds: float  #: that a run takes, on average
    stall_timeout: float
    tick_interval: float


class Status(NamedTuple):
    """A process as the panel shows it."""

    name: str
    kind: str  #: worker, producer, owner
    pid: int
    state: str  #: starting, running, frozen, killed, ended
    says: str  #: why it ended, if it said so


class Happened(NamedTuple):
    """An event of a job, or something that was done to a process."""

    at: int  #: milliseconds since the epoch, UTC
    kind: str
    job: str  #: its id
    worker: str  #: a name of the lab, or host:pid:thread
    detail: str


class _Process:
    """A process and what is known of it."""

    def __init__(self, role: Role, popen: "subprocess.Popen[bytes]", life: Life, log: Path) -> None:
        self.role = role
        self.popen = popen
        self.life = life
        self.log = log
        self.is_ready = False
        self.is_frozen = False
        self.frozen_at = 0
        self.was_killed = False
        self.has_ended = threading.Event()
        self.says = ""

    def status(self) -> Status:
        if self.has_ended.is_set():
            state = "killed" if self.was_killed or self.popen.returncode == -signal.SIGKILL else "ended"
        elif self.was_killed:
            state = "killed"
        else:
            state = "frozen" if self.is_frozen else "running" if self.is_ready else "starting"
        return Status(self.role.name, self.role.kind, self.popen.pid, state, self.says)


class Controller:
    """A queue directory (or a queue in memory), its processes, and the books on what they said."""

    def __init__(self, path: str | os.PathLike[str] | None, settings: Settings) -> None:
        self.settings = settings
        self.is_temporary = path is None
        self.home = Path(tempfile.mkdtemp(prefix="rqlab-lab-"))  #: the processes' logs, and the directory if none was given
        self.path = self.home / "jobs" if path is None else Path(path).absolute()
        self.lab = self.home.name  #: what marks the jobs of this lab
        self.mode = settings.mode
        self.failure_rate = settings.failure_rate
        self.seconds = settings.seconds
        self.is_paused = False
        self.is_changing = ""  #: what mode is being changed to
        self.began_at = clock.now()
        self.longest_freeze_ms = 0
        self.problem = ""  #: the newest thing that could not be done
        self.numbers: dict[str, int] = {}  #: by job id: the number it was asked for as
        self.names: dict[int, tuple[str, str]] = {}  #: by pid: name and kind, of every process there has been
        self._lock = threading.RLock()
        self._ledger = Ledger()
        self._events: deque[Happened] = deque(maxlen=MOST_EVENTS)
        self._processes: dict[str, _Process] = {}
        self._records: dict[str, Job] = {}  #: what a queue in memory says it has
        self._errands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._is_closed = False
        self._closed = threading.Event()
        self._hand = threading.Thread(target=self._run_errands, name="rqlab-lab-controller", daemon=True)
        self._hand.start()
        with self._lock:
            self._start_all()

    # What buttons call.

    def push(self, count: int = 1) -> None:
        """Have the producer push so many jobs, one by one."""
        arguments.whole(count, "count", 1, MOST_JOBS)
        with self._lock:
            left = MOST_JOBS - len(self._ledger.asked)
            if count > left:
                self.problem = f"cannot push {count} jobs: a lab holds at most {MOST_JOBS:,}. Open a new one"
                return
            producer = self._producer()
            if producer is None:
                return
            asks = []
            for number in range(len(self._ledger.asked) + 1, len(self._ledger.asked) + count + 1):
                self._ledger.asked.add(number)
                asks.append(self._ask(number))
            self._order(producer, Order(push=asks))

    def pause(self) -> None:
        """Stop pulls; pushes go on."""
        self._pause(True)

    def resume(self) -> None:
        """End a pause."""
        self._pause(False)

    def kill(self, name: str) -> None:
        """kill -9 this process. A worker of a mode with one owner is a thread: kill the owner."""
        with self._lock:
            process = self._live(name)
            if process is not None:
                process.was_killed = True
                self._note("kill -9", process)
                process.popen.send_signal(signal.SIGKILL)

    def kill_all(self) -> None:
        """kill -9 all processes."""
        with self._lock:
            for name, process in self._processes.items():
                if not process.was_killed and not process.has_ended.is_set():
                    self.kill(name)

    def freeze(self, name: str) -> None:
        """Stop this process where it is (SIGSTOP), as a long garbage collection or a closed lid does."""
        with self._lock:
            process = self._live(name)
            if process is not None and not process.is_frozen:
                process.is_frozen, process.frozen_at = True, clock.now()
                self._note("freeze", process)
                process.popen.send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let a frozen process go on (SIGCONT)."""
        with self._lock:
            process = self._live(name)
            if process is not None and process.is_frozen:
                self._thaw(process)

    def restart(self, name: str) -> None:
        """Start this process again; one that lives is killed first (kill -9)."""
        with self._lock:
            process = self._named(name)
            if process is None:
                return
            if not process.has_ended.is_set() and not process.was_killed:
                self.kill(name)
            self._errands.put(lambda: self._restart(process))

    def change_mode(self, mode: str) -> None:
        """Stop all processes cleanly, open the directory in this mode, start them again."""
        checked_mode(mode)
        with self._lock:
            if mode == (self.is_changing or self.mode) or self._is_closed:
                return
            self.is_changing = mode
            self._note_event("mode", f"from {self.mode} to {mode}")
            self._errands.put(lambda: self._change_mode(mode))

    def set_workload(self, *, failure_rate: float | None = None, seconds: float | None = None) -> None:
        """What jobs pushed from now on do: how often a run fails (0...1), how many seconds it takes on average."""
        if failure_rate is not None:
            self.failure_rate = arguments.fraction(failure_rate, "failure_rate")
        if seconds is not None:
            self.seconds = arguments.seconds(seconds, "seconds")

    def close(self) -> None:
        """End all processes and remove what is temporary. Idempotent."""
        with self._lock:
            first, self._is_closed = not self._is_closed, True
        if not first:
            self._closed.wait(4 * STOP_SECONDS)
            return
        self._errands.put(None)
        if threading.current_thread() is not self._hand:
            self._hand.join(4 * STOP_SECONDS)
        self._stop_all(kill=self.is_temporary)
        shutil.rmtree(self.home, ignore_errors=True)
        self._closed.set()

    # What panels read.

    def statuses(self) -> list[Status]:
        """The processes, in the order of the panel; in modes with one owner its worker threads too."""
        with self._lock:
            found = [process.status() for process in self._processes.values()]
            if self._processes and "owner" in self._processes:
                owner = found[0]
                for number in range(1, self.settings.workers + 1):
                    found.append(Status(f"w{number}", "thread", owner.pid, owner.state, ""))
            return found

    def books(self) -> Books:
        """What has been asked for, acknowledged and completed, as far as it has been heard."""
        with self._lock:
            return self._ledger.books()

    def events(self, newest: int = MOST_EVENTS) -> list[Happened]:
        """The newest events, the oldest of them first."""
        with self._lock:
            if newest >= len(self._events):
                return list(self._events)
            return [self._events[at] for at in range(-newest, 0)]

    def reported(self) -> list[Job]:
        """The records of a queue in memory, as its process last told them; none once it is dead."""
        with self._lock:
            return list(self._records.values())

    @property
    def opening(self) -> Opening:
        """What the mode was opened with."""
        return Opening(self.path)

    @property
    def forgiven_ms(self) -> int:
        """How old the instant of a pull may be."""
        with self._lock:
            now = clock.now()
            frozen = [now - process.frozen_at for process in self._processes.values() if process.is_frozen]
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
        in_memory = self.mode == "memory"
        return Role(
            name=name,
            kind=kind,
            mode=self.mode,
            path=None if in_memory else str(self.path),
            handler=self.settings.handler,
            workers=self.settings.workers,
            stall_timeout=self.settings.stall_timeout,
            tick_interval=self.settings.tick_interval,
            paused=self.is_paused and in_memory,
        )

    def _start(self, role: Role) -> None:
        log = self.home / f"{role.name}-{len(self._ledger.lives) + 1}.log"
        with log.open("wb") as said:
            popen = subprocess.Popen(
                [sys.executable, "-m", "rqlab.widgets.process", msgspec.json.encode(role).decode()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env=_environment(),
                process_group=0,
            )
        life = self._ledger.begin(role.name, popen.pid, role.mode, role.path is None)
        process = _Process(role, popen, life, log)
        self._processes[role.name] = process
        self.names[popen.pid] = role.name, role.kind
        self._note("start", process)
        if role.path is None:
            self._records = {}
        threading.Thread(target=self._hear, args=(process,), name=f"rqlab-lab-{role.name}", daemon=True).start()

    def _ask(self, number: int) -> Ask:
        if self.settings.handler is None:
            data = workload.job_data(self.settings.seed, number, self.seconds, self.failure_rate)
        else:
            data = self.settings.data
        return Ask(
            number=number,
            name=self.settings.name,
            data=data,
            metadata={"lab": self.lab, "number": number},
            max_attempts=workload.MAX_ATTEMPTS,
            backoff_delay=workload.BACKOFF_SECONDS,
        )

    def _pause(self, on: bool) -> None:
        with self._lock:
            producer = self._producer()
            if producer is not None:
                self.is_paused = on
                self._note_event("pause" if on else "resume", "")
                self._order(producer, Order(pause=on))

    def _producer(self) -> _Process | None:
        for name in ("producer", "owner"):
            if name in self._processes:
                return self._live(name)
        return None

    def _named(self, name: str) -> _Process | None:
        if self._is_closed:
            return None
        process = self._processes.get(name)
        if process is None:
            known = ", ".join(self._processes)
            thread = " (a worker here is a thread of the owner)" if "owner" in self._processes else ""
            raise ValidationError(f"name: expected one of {known}{thread}; got {name!r}")
        return process

    def _live(self, name: str) -> _Process | None:
        process = self._named(name)
        if process is None or process.was_killed or process.has_ended.is_set():
            self.problem = f"{name} is not running: restart {name}"
            return None
        self.problem = ""
        return process

    def _order(self, process: _Process, order: Order) -> None:
        """A pipe that is full would make a button wait: a thread writes."""
        line = msgspec.json.encode(order) + b"\n"

        def write() -> None:
            stdin = process.popen.stdin
            assert stdin is not None, "it was started with a pipe"
            try:
                stdin.write(line)
                stdin.flush()
            except (OSError, ValueError):  # it has died, or was closed: its end is told elsewhere
                return

        self._errands.put(write)

    def _thaw(self, process: _Process) -> None:
        self.longest_freeze_ms = max(self.longest_freeze_ms, clock.now() - process.frozen_at)
        process.is_frozen = False
        self._note("thaw", process)
        process.popen.send_signal(signal.SIGCONT)

    def _note(self, kind: str, process: _Process) -> None:
        self._events.append(Happened(clock.now(), kind, "", process.role.name, f"pid {process.popen.pid}"))

    def _note_event(self, kind: str, detail: str) -> None:
        self._events.append(Happened(clock.now(), kind, "", "", detail))

    # The threads: one hears each process, one does what takes a while.

    def _hear(self, process: _Process) -> None:
        """Read what a process reports until it has ended; then reap it."""
        stdout = process.popen.stdout
        assert stdout is not None, "it was started with a pipe"
        with stdout:
            for line in stdout:
                if line.endswith(b"\n"):  # a killed process may leave half a line: that was not said
                    report = msgspec.json.decode(line, type=Report)
                    with self._lock:
                        self._take(process, report)
        code = process.popen.wait()
        with self._lock:
            self._ledger.end(process.life.number, "stopped" if code == 0 else "crashed")
            if process.life.in_memory and self._processes.get(process.role.name) is process:
                self._records = {}
            if process.is_frozen:
                self.longest_freeze_ms = max(self.longest_freeze_ms, clock.now() - process.frozen_at)
                process.is_frozen = False
            process.has_ended.set()
            if code not in (0, -signal.SIGKILL) and not process.says:
                process.says = _last_line(process.log) or f"exit code {code}"
            if not self._is_closed:
                self._note("gone" if code == -signal.SIGKILL else "ended", process)

    def _take(self, process: _Process, report: Report) -> None:
        match report.kind:
            case "ready":
                process.is_ready = True
            case "pushed":
                self._ledger.acknowledge(report.job, report.number, process.life.number)
                self.numbers[report.job] = report.number
            case "refused":
                self._events.append(Happened(report.at, "push refused", "", process.role.name, report.says))
            case "wrong":
                process.says = report.says
            case "change":
                self._take_change(process, report)

    def _take_change(self, process: _Process, report: Report) -> None:
        if report.event == Event.ACK:
            self._ledger.complete(report.job, report.delivery, report.worker, process.life.number)
        if process.life.in_memory:
            if report.event == Event.PURGE:
                self._records.pop(report.job, None)
            else:
                self._records[report.job] = msgspec.json.decode(report.record, type=Job)
        if report.event not in (Event.PROGRESS, Event.LOG):
            self._events.append(Happened(report.at, report.event, report.job, report.worker, report.says))

    def _run_errands(self) -> None:
        while (errand := self._errands.get()) is not None:
            try:
                errand()
            except Exception as error:  # noqa: BLE001  # of whatever kind: the panel shows it, and the next errand is done
                self.problem = f"{type(error).__name__}: {error}"

    def _restart(self, process: _Process) -> None:
        if not process.has_ended.wait(STOP_SECONDS):
            raise TimeoutError(f"{process.role.name} (pid {process.popen.pid}) has not ended; kill -9 was sent")
        with self._lock:
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
                if process.is_frozen:
                    self._thaw(process)
        for process in processes:
            if kill:
                process.popen.kill()
            elif not process.has_ended.is_set() and process.popen.stdin is not None:
                try:
                    process.popen.stdin.write(msgspec.json.encode(Order(stop=True)) + b"\n")
                    process.popen.stdin.flush()
                except (OSError, ValueError):  # it has died meanwhile
                    continue
        until = clock.monotonic() + STOP_SECONDS
        for process in processes:
            if not process.has_ended.wait(max(0.0, until - clock.monotonic())):
                process.popen.kill()
                process.has_ended.wait(STOP_SECONDS)
            if process.popen.stdin is not None:
                try:
                    process.popen.stdin.close()
                except OSError:  # what was not sent to a dead process
                    continue


def checked_mode(mode: object) -> str:
    """The mode, or ValidationError."""
    if not isinstance(mode, str) or mode not in MODES:
        raise ValidationError(f"mode: expected one of {', '.join(map(repr, MODES))}; got {mode!r}")
    return mode


def _environment() -> dict[str, str]:
    """That of this process, with this very rqlab and the current directory first on the path."""
    here = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])}


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:200] if lines else ""
