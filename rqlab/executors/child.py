"""The other end of `processes.py`: a process that runs one handler at a time for its parent, and dies with it."""

import asyncio
import inspect
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NoReturn

from rqlab.errors import LeaseLost
from rqlab.executors import AsyncContext, Context, Handlers, Run, Services, call, is_async
from rqlab.executors.processes import (
    TERMINAL_SIGNALS,
    Delivery,
    Ended,
    Log,
    Progress,
    Ready,
    Said,
    Setup,
    Start,
    ToChild,
    ToParent,
    decode_to_child,
    encode,
    unpacked,
)
from rqlab.job import MAX_ERROR_BYTES, Job
from rqlab.lifecycle import cut


def main(fd: int) -> None:
    """Serve the parent on the socket `fd` until it closes."""
    os.set_inheritable(fd, False)  # what a handler starts must not keep it open when this process is gone
    leave_signals_to_the_parent()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a process that is killed flushes nothing
    _Child(Connection(fd)).serve()


def leave_signals_to_the_parent() -> None:
    """Ctrl-C reaches the whole terminal, a service manager's SIGTERM the whole group: the parent decides what it means.

    They are handled by nothing rather than ignored: what a handler starts would inherit that, and could not be ended.
    """
    for number in TERMINAL_SIGNALS:
        signal.signal(number, lambda number, frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINAL_SIGNALS)  # held back by the parent until now


class _Child:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._asking = threading.Lock()  # a handler may ask from several threads; answers come in order
        self._starts: SimpleQueue[Run] = SimpleQueue()
        self._said: SimpleQueue[Said] = SimpleQueue()
        self._services = Services(
            progress=lambda run, percent, message: self._ask(run, Progress(Delivery.of(run.job), percent, message)),
            log=lambda run, line: self._ask(run, Log(Delivery.of(run.job), line)),
        )
        self._run: Run | None = None
        self._pid = os.getpid()  #: what a handler forks has another, and the same socket: it may not speak on it

    def serve(self) -> None:
        setup = self._received()
        assert isinstance(setup, Setup), "a parent first says what to run"
        try:
            handlers = self._load(setup)
        except BaseException as error:  # noqa: BLE001  # whatever an import does, the parent must hear of it
            self._send(Ready(f"{type(error).__name__}: {cut(str(error), MAX_ERROR_BYTES)}"))
            return
        self._send(Ready())
        threading.Thread(target=self._listen, name="rqlab-parent", daemon=True).start()
        while True:
            self._run = run = self._starts.get()
            report = call(handlers, run)
            if self._is_forked():
                os._exit(1)  # it has left the handler, as only the process that was given the run may
            sys.stdout.flush()
            with self._asking:
                self._run = None
            self._send(Ended(Delivery.of(run.job), report))

    def _load(self, setup: Setup) -> Handlers:
        sys.path[:] = setup.paths
        os.environ.pop("PYTHONPATH", None)
        if setup.python_path is not None:
            os.environ["PYTHONPATH"] = setup.python_path
        loaded = {name: unpacked(packed) for name, packed in setup.handlers.items()}
        if is_async(loaded):
            loaded = {name: _waited_for(function) for name, function in loaded.items()}
        handlers: Handlers = loaded.get("", loaded)
        return handlers

    def _listen(self) -> None:
        while True:
            match self._received():
                case Start(job):
                    self._starts.put(Run(job, self._services))
                case Said() as said:
                    self._said.put(said)

    def _is_forked(self) -> bool:
        return os.getpid() != self._pid

    def _ask(self, run: Run, message: ToParent) -> None:
        if self._is_forked():  # before the lock, which another thread may have held at the fork
            raise LeaseLost(f"job {run.job.id}: what its handler forked does not hold it, and cannot speak for it")
        with self._asking:
            if run is not self._run:
                raise LeaseLost(f"the run of job {run.job.id}, delivery {run.job.deliveries}, has ended")
            self._send(message)
            lost = self._said.get().lost
        if lost is not None:
            run.is_lost = True
            raise LeaseLost(lost)

    def _received(self) -> ToChild:
        try:
            return decode_to_child(self._connection.recv_bytes())
        except (EOFError, OSError):
            _die_with_the_parent()

    def _send(self, message: ToParent) -> None:
        try:
            with self._sending:
                self._connection.send_bytes(encode(message))
        except (BrokenPipeError, ConnectionResetError):
            _die_with_the_parent()


def _die_with_the_parent() -> NoReturn:
    """It is gone, and with it whoever keeps this run's lease. Without a word: nobody has done anything wrong here."""
    os._exit(1)


def _waited_for(function: Any) -> Any:
    """An async handler as a sync one, with an event loop for each run; it keeps the handler's signature."""

    async def awaited(job: Job, *context: Context) -> Any:
        if not context:
            return await function(job)
        own = AsyncContext(context[0]._run)
        try:
            return await function(job, own)
        finally:
            await own.stored()

    def run(job: Job, *context: Context) -> Any:
        return asyncio.run(awaited(job, *context))

    run.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return run
