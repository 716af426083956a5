"""Runs handlers in child processes, one kept a slot, replaced after a kill or a crash.

A segfault, an out-of-memory kill or a handler that hogs the GIL hurts one job; a time-out or cancel really stops the
run. Children are `python -m rqlab _child`, so a script needs no main guard. They die with their parent: each watches
its end of the socket.
"""

import base64
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

import cloudpickle
import msgspec

from rqlab.errors import LeaseLost, ValidationError
from rqlab.executors import Finished, Handler, Handlers, Report, Run
from rqlab.job import Job

READY_SECONDS = 60.0  # for a child to import the handler's module
END_SECONDS = 5.0  # for a killed child to be reaped


class Setup(msgspec.Struct, frozen=True, tag=True):
    """Parent to child, once: where to import from, and the handlers."""

    paths: list[str]
    directory: str
    handlers: dict[str, str]  #: by job name, "" for a lone handler: module:qualname, or cloudpickle in base64


class Start(msgspec.Struct, frozen=True, tag=True):
    """Parent to child: run this job."""

    job: Job


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Parent to child: the run should end; seen as ctx.cancelled."""


class Said(msgspec.Struct, frozen=True, tag=True):
    """Parent to child: what came of a progress or log call."""

    lost: str | None = None  #: the text of a LeaseLost


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Child to parent: the handlers are loaded, or the error."""

    error: str | None = None


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Child to parent: ctx.progress; the child waits for Said."""

    percent: float
    message: str | None


class Log(msgspec.Struct, frozen=True, tag=True):
    """Child to parent: ctx.log; the child waits for Said."""

    line: str


class Ended(msgspec.Struct, frozen=True, tag=True):
    """Child to parent: the handler has ended."""

    report: Report


ToChild = Setup | Start | Stop | Said
ToParent = Ready | Progress | Log | Ended

encode = msgspec.json.Encoder().encode
decode_to_child = msgspec.json.Decoder(ToChild).decode
decode_to_parent = msgspec.json.Decoder(ToParent).decode


class ProcessExecutor:
    """At most `concurrency` kept children; `ring` is called when a run ends.

    Raises ValidationError if the handler cannot travel into a child; no job has been pulled then.
    """

    def __init__(self, handlers: Handlers, concurrency: int, ring: Callable[[], None]) -> None:
        self.concurrency = concurrency
        self._setup = Setup([path or str(Path.cwd()) for path in sys.path], str(Path.cwd()), packed(handlers))
        self._ring = ring
        self._finished: deque[Finished] = deque()
        self._busy: dict[Run, _Child] = {}
        self._idle: list[_Child] = [self._spawn()]

    def free(self) -> int:
        return self.concurrency - len(self._busy)

    def start(self, run: Run) -> None:
        child = None
        while self._idle and child is None:
            kept = self._idle.pop()
            child = kept if kept.is_alive() else None
        try:
            child = child or self._spawn()
        except (ValidationError, OSError) as error:
            self._finished.append(
                Finished(run, Report(event="fail", error=f"no child process could be started: {error}"))
            )
            self._ring()
            return
        self._busy[run] = child
        child.start(run, self._end)

    def poll(self) -> Sequence[Finished]:
        finished = []
        while self._finished:
            finished.append(self._finished.popleft())
        for run, _ in finished:
            child = self._busy.pop(run, None)
            if child is not None and child.is_alive():
                self._idle.append(child)
        return finished

    def stop(self, run: Run) -> None:
        run.is_stopped = True
        child = self._busy.get(run)
        if child is not None:
            child.kill()

    def close(self) -> None:
        for child in [*self._idle, *self._busy.values()]:
            child.kill()
        for child in [*self._idle, *self._busy.values()]:
            child.reap()
        self._idle.clear()
        self._busy.clear()

    def pids(self) -> list[int]:
        """The children that are running a job now."""
        return [child.process.pid for child in self._busy.values()]

    def _spawn(self) -> "_Child":
        return _Child(self._setup)

    def _end(self, run: Run, report: Report) -> None:
        self._finished.append(Finished(run, report))
        self._ring()


class _Child:
    """A child process and the thread that listens to it."""

    def __init__(self, setup: Setup) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # No `start_new_session`: a child that its terminal cannot reach is harder to find. It ignores SIGINT.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rqlab", "_child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(setup.paths)},
            )
        self._connection = Connection(ours.detach())
        self._sending = threading.Lock()
        self._run: Run | None = None
        self._on_end: Callable[[Run, Report], None] | None = None
        self._send(setup)
        self._wait_until_ready()
        threading.Thread(target=self._listen, name=f"rqlab-child-{self.process.pid}", daemon=True).start()

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def start(self, run: Run, on_end: Callable[[Run, Report], None]) -> None:
        self._run, self._on_end = run, on_end
        self._send(Start(run.job))

    def kill(self) -> None:
        self.process.kill()

    def reap(self) -> None:
        self.process.wait(END_SECONDS)

    def _wait_until_ready(self) -> None:
        problem = None
        try:
            if self._connection.poll(READY_SECONDS):
                said = decode_to_parent(self._connection.recv_bytes())
                assert isinstance(said, Ready), "a child first says whether it is ready"
                problem = said.error
            else:
                problem = f"it was not ready within {READY_SECONDS:g} s"
        except (EOFError, OSError):
            problem = f"it ended before it was ready: {self._how_it_ended()}"
        if problem is not None:
            self.kill()
            self.reap()
            self._connection.close()
            raise ValidationError(
                f'handler: expected one that a child process can load, for isolation="process"; got: {problem}. '
                'Put it into a module that can be imported, or use isolation="thread"'
            )

    def _listen(self) -> None:
        while True:
            try:
                said = decode_to_parent(self._connection.recv_bytes())
            except (EOFError, OSError):
                break
            match said:
                case Ended(report):
                    self._end(report)
                case Progress(percent, message):
                    self._serve(lambda run, p=percent, m=message: run.services.progress(run, p, m))  # type: ignore[misc]
                case Log(line):
                    self._serve(lambda run, text=line: run.services.log(run, text))  # type: ignore[misc]
        self._end(Report(event="fail", error=f"the process that ran the handler died: {self._how_it_ended()}"))
        with self._sending:
            self._connection.close()

    def _serve(self, call: Callable[[Run], None]) -> None:
        run, lost = self._run, None
        if run is not None:
            try:
                call(run)
            except LeaseLost as error:
                lost = str(error)
        self._send(Said(lost))

    def _end(self, report: Report) -> None:
        run, self._run = self._run, None
        if run is not None and self._on_end is not None:
            self._on_end(run, report)

    def _send(self, message: ToChild) -> None:
        try:
            with self._sending:
                self._connection.send_bytes(encode(message))
        except OSError:  # it has died: `_listen` sees that too, and reports the run
            pass

    def _how_it_ended(self) -> str:
        try:
            code = self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its connection and is still running"
        if code >= 0:
            return f"exit code {code}"
        return f"killed by signal {-code} ({signal.Signals(-code).name})"


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
    found: object = import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found if callable(found) else None
