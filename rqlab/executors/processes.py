"""Runs handlers in child processes, one kept a slot, replaced after a kill or a crash.

A segfault, an out-of-memory kill or a handler that hogs the GIL hurts one job; a time-out or cancel really stops the
run. Children are `python -m rqlab _child`, so a script needs no main guard. They die with their parent: each watches
its end of the socket. There is no word for "stop" between the two: a run that should end is killed with its child.
"""

import base64
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

import cloudpickle
import msgspec

from rqlab.errors import LeaseLost, ValidationError
from rqlab.executors import Finished, Handler, Handlers, OnEnd, Report, Run
from rqlab.job import Job

log = logging.getLogger("rqlab")

READY_SECONDS = 60.0  # for a child to import the handler's module
END_SECONDS = 5.0  # for a child that has closed its connection, or was killed, to be gone
LOOK_SECONDS = 1.0  # between two looks whether a silent child lives: what it left behind may keep its socket open
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # what a terminal or a service manager sends to the whole group


class Setup(msgspec.Struct, frozen=True, tag=True):
    """Parent to child, once: where to import from, and the handlers."""

    paths: list[str]
    python_path: str | None  #: PYTHONPATH as the parent has it: for what a handler starts in its turn
    handlers: dict[str, str]  #: by job name, "" for a lone handler: module:qualname, or cloudpickle in base64


class Start(msgspec.Struct, frozen=True, tag=True):
    """Parent to child: run this job."""

    job: Job


class Said(msgspec.Struct, frozen=True, tag=True):
    """Parent to child: what came of a progress or log call."""

    lost: str | None = None  #: the text of a LeaseLost


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Child to parent: the handlers are loaded, or the error."""

    error: str | None = None


class Delivery(msgspec.Struct, frozen=True):
    """Which run a message of a child is about: the parent drops one about another than it waits for."""

    job_id: str
    number: int  #: the job's `deliveries`

    @classmethod
    def of(cls, job: Job) -> "Delivery":
        return cls(job.id, job.deliveries)


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Child to parent: ctx.progress; the child waits for Said."""

    delivery: Delivery
    percent: float
    message: str | None


class Log(msgspec.Struct, frozen=True, tag=True):
    """Child to parent: ctx.log; the child waits for Said."""

    delivery: Delivery
    line: str


class Ended(msgspec.Struct, frozen=True, tag=True):
    """Child to parent: the handler has ended."""

    delivery: Delivery
    report: Report


ToChild = Setup | Start | Said
ToParent = Ready | Progress | Log | Ended

encode = msgspec.json.Encoder().encode
decode_to_child = msgspec.json.Decoder(ToChild).decode
decode_to_parent = msgspec.json.Decoder(ToParent).decode


class ProcessExecutor:
    """At most `concurrency` kept children, each with a thread that talks to it.

    Raises ValidationError if the handler cannot travel into a child; no job has been pulled then.
    """

    def __init__(self, handlers: Handlers, concurrency: int, on_end: OnEnd) -> None:
        self.concurrency = concurrency
        self._setup = Setup(import_paths(), os.environ.get("PYTHONPATH"), packed(handlers))
        self._on_end = on_end
        self._finished: deque[Finished] = deque()
        self._busy: dict[Run, _Child] = {}
        self._idle: list[_Child] = [self._spawn()]
        self._refuse_what_cannot_travel(self._idle[0])

    def free(self) -> int:
        return self.concurrency - len(self._busy)

    def is_over(self) -> bool:
        return False

    def start(self, run: Run) -> None:
        child = None
        while self._idle and child is None:
            child = _fit(self._idle.pop())
        self._busy[run] = child = child or self._spawn()
        child.give(run)

    def poll(self) -> Sequence[Finished]:
        finished = []
        while self._finished:
            finished.append(self._finished.popleft())
        for run, _ in finished:
            child = _fit(self._busy.pop(run))
            if child is not None:
                self._idle.append(child)
        return finished

    def stop(self, run: Run) -> None:
        run.is_stopped = True
        if run in self._busy:  # a child keeps its run until `poll`, so this can hit no other run of the child
            self._busy[run].kill()

    def close(self) -> None:
        children = [*self._idle, *self._busy.values()]
        self._idle.clear()
        for child in children:
            child.kill()
        for child in children:
            child.end()

    def pids(self) -> list[int]:
        """The children that are running a job now."""
        return [child.process.pid for child in self._busy.values()]

    def _spawn(self) -> "_Child":
        return _Child(self._setup, self._end)

    def _refuse_what_cannot_travel(self, first: "_Child") -> None:
        problem = first.wait_until_ready()
        if problem is not None:
            first.kill()
            first.end()
            raise ValidationError(
                f'handler: expected one that a child process can load, for isolation="process"; got: {problem}. '
                'Put it into a module that can be imported, or use isolation="thread"'
            )

    def _end(self, run: Run, report: Report) -> None:
        self._finished.append(Finished(run, report))
        self._on_end(True)


class _Child:
    """A child process and the thread that talks to it: a new child is at work before it is known to be ready."""

    def __init__(self, setup: Setup, on_end: Callable[[Run, Report], None]) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.process = started_child("_child", theirs, setup.paths)
            self._connection = Connection(ours.detach())
        self._on_end = on_end
        self._runs: SimpleQueue[Run | None] = SimpleQueue()
        self._is_dismissed = False
        self._is_ready = threading.Event()
        self._problem: str | None = None
        self._thread = threading.Thread(
            target=self._talk, args=(setup,), name=f"rqlab-child-{self.process.pid}", daemon=True
        )
        self._thread.start()

    def is_fit(self) -> bool:
        """Whether it may be given a run. One that was killed may not, even if it is not dead yet."""
        return not self._is_dismissed and self.process.poll() is None

    def wait_until_ready(self) -> str | None:
        """What keeps it from running handlers, if anything."""
        self._is_ready.wait()
        return self._problem

    def give(self, run: Run) -> None:
        """Run this job; `on_end` is called at its end, from another thread."""
        self._runs.put(run)

    def kill(self) -> None:
        """End it, and with it the run that it has. Its thread reaps it."""
        self._is_dismissed = True
        self.process.kill()
        self._runs.put(None)

    def end(self) -> None:
        """Wait until a killed child, its thread and its socket are gone."""
        self._thread.join(END_SECONDS)

    def _talk(self, setup: Setup) -> None:
        with self._connection:
            self._problem = self._set_up(setup)
            self._is_ready.set()
            while (run := self._runs.get()) is not None:
                self._on_end(run, self._converse(run))
        self.process.wait()

    def _set_up(self, setup: Setup) -> str | None:
        try:
            self._connection.send_bytes(encode(setup))
            if not self._connection.poll(READY_SECONDS):
                problem: str | None = f"it was not ready within {READY_SECONDS:g} s"
            else:
                said = self._heard()
                assert isinstance(said, Ready), "a child first says whether it is ready"
                problem = said.error
        except (EOFError, OSError):
            problem = f"it ended before it was ready: {how_it_ended(self.process)}"
        return problem

    def _converse(self, run: Run) -> Report:
        if self._problem is not None:
            self.kill()
            return Report(event="fail", error=f"no child process could be started: {self._problem}")
        delivery = Delivery.of(run.job)
        try:
            self._connection.send_bytes(encode(Start(run.job)))
            while True:
                match self._heard():
                    case Ended(about, report) if about == delivery:
                        return report
                    case Progress(about, percent, message) if about == delivery:
                        self._say(run.services.progress, run, percent, message)
                    case Log(about, line) if about == delivery:
                        self._say(run.services.log, run, line)
                    case stray:
                        log.warning("job %s: its child said what is not about it, dropped: %s", run.job.id, stray)
        except msgspec.MsgspecError as error:
            self.kill()
            return Report(event="fail", error=f"the process that ran the handler is out of step: {error}")
        except (EOFError, OSError):
            died = f"the process that ran the handler died: {how_it_ended(self.process)}"
            self.kill()
            return Report(event="fail", error=died)

    def _heard(self) -> ToParent:
        while not self._connection.poll(LOOK_SECONDS):
            if self.process.poll() is not None and not self._connection.poll():
                raise EOFError  # something that the handler started has inherited the other end, and lives on
        said: ToParent = decode_to_parent(self._connection.recv_bytes())
        return said

    def _say(self, service: Callable[..., None], run: Run, *what: object) -> None:
        lost = None
        try:
            service(run, *what)
        except LeaseLost as error:
            lost = str(error)
        self._connection.send_bytes(encode(Said(lost)))


def _fit(child: _Child) -> _Child | None:
    """The child, if it may be given another run; else what is left of it is cleared away."""
    if child.is_fit():
        return child
    child.kill()
    return None


def import_paths() -> list[str]:
    """Where this process imports from, as a child elsewhere must be told it."""
    return [path or str(Path.cwd()) for path in sys.path]


def started_child(role: str, theirs: socket.socket, paths: Sequence[str]) -> "subprocess.Popen[bytes]":
    """`python -m rqlab ROLE` with its end of a socket.

    No `start_new_session`: a child that its terminal cannot reach is harder to find. -P: what lies in the current
    directory is not imported instead of what the parent would import.
    """
    with _held_back(TERMINAL_SIGNALS):
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "rqlab", role, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )


def how_it_ended(process: "subprocess.Popen[bytes]") -> str:
    """The end of a child, in words."""
    try:
        code = process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        return "it closed its connection and is still running"
    if code >= 0:
        return f"exit code {code}"
    return f"killed by signal {-code} ({signal.Signals(-code).name})"


@contextlib.contextmanager
def _held_back(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """What is started meanwhile begins with these signals blocked: none kills it before it can say otherwise."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def packed(handlers: Handlers) -> dict[str, str]:
    """The handlers in a form that travels: by name where a child can import them, by value where it cannot."""
    named: Mapping[str, Handler] = handlers if isinstance(handlers, Mapping) else {"": handlers}
    return {name: _packed(function) for name, function in named.items()}


def _packed(function: Handler) -> str:
    module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module not in (None, "__main__") and _found(module, qualname) is function:
        return f"{module}:{qualname}"
    try:
        return "=" + base64.b64encode(cloudpickle.dumps(function)).decode()
    except Exception as error:
        raise ValidationError(
            f"handler: expected a function that can travel into a child process; got {function!r}: "
            f'{type(error).__name__}: {error}. Put it into a module that can be imported, or use isolation="thread"'
        ) from error


def unpacked(packed: str) -> Handler:
    """The handler that `packed` made text of."""
    if packed.startswith("="):
        loaded: Handler = cloudpickle.loads(base64.b64decode(packed[1:]))
        return loaded
    module, _, qualname = packed.partition(":")
    found = _found(module, qualname)
    if found is None:
        raise ImportError(f"{module} has no {qualname}")
    return found


def _found(module: str, qualname: str) -> Handler | None:
    try:
        found: object = import_module(module)
    except ImportError:
        return None
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found if callable(found) else None
