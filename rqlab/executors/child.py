"""The other end of `processes.py`: a process that runs one handler at a time for its parent, and dies with it."""

import asyncio
import inspect
import os
import signal
import sys
import threading
from collections.abc import Awaitable
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from rqlab.errors import LeaseLost
from rqlab.executors import Handlers, Run, Services, call, is_async
from rqlab.executors.processes import (
    Ended,
    Log,
    Progress,
    Ready,
    Said,
    Setup,
    Start,
    Stop,
    ToParent,
    decode_to_child,
    encode,
    unpacked,
)


def main(fd: int) -> None:
    """Serve the parent on the socket `fd` until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides what it means
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _Child(Connection(fd)).serve()


class _Child:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._starts: SimpleQueue[Run] = SimpleQueue()
        self._said: SimpleQueue[Said] = SimpleQueue()
        self._services = Services(
            progress=lambda run, percent, message: self._ask(Progress(percent, message)),
            log=lambda run, line: self._ask(Log(line)),
        )
        self._run: Run | None = None

    def serve(self) -> None:
        setup = decode_to_child(self._connection.recv_bytes())
        assert isinstance(setup, Setup), "a parent first says what to run"
        try:
            handlers = self._load(setup)
        except BaseException as error:  # noqa: BLE001  # whatever an import does, the parent must hear of it
            self._send(Ready(f"{type(error).__name__}: {error}"))
            return
        self._send(Ready())
        threading.Thread(target=self._listen, name="rqlab-parent", daemon=True).start()
        while True:
            self._run = self._starts.get()
            self._send(Ended(call(handlers, self._run)))

    def _load(self, setup: Setup) -> Handlers:
        sys.path[:] = setup.paths
        loaded = {name: unpacked(packed) for name, packed in setup.handlers.items()}
        if is_async(loaded):
            loaded = {name: _waited_for(function) for name, function in loaded.items()}
        handlers: Handlers = loaded.get("", loaded)
        return handlers

    def _listen(self) -> None:
        while True:
            try:
                message = decode_to_child(self._connection.recv_bytes())
            except (EOFError, OSError):
                os._exit(1)  # the parent is gone, and with it whoever keeps this run's lease
            match message:
                case Start(job):
                    self._starts.put(Run(job, self._services))
                case Stop():
                    if self._run is not None:
                        self._run.is_stopped = True
                case Said():
                    self._said.put(message)

    def _ask(self, message: ToParent) -> None:
        self._send(message)
        said = self._said.get()
        if said.lost is not None:
            if self._run is not None:
                self._run.is_lost = True
            raise LeaseLost(said.lost)

    def _send(self, message: ToParent) -> None:
        with self._sending:
            self._connection.send_bytes(encode(message))


def _waited_for(function: Any) -> Any:
    """An async handler as a sync one, with an event loop for each run; it keeps the handler's signature."""

    async def awaited(result: Awaitable[Any]) -> Any:
        return await result

    def run(*arguments: Any) -> Any:
        return asyncio.run(awaited(function(*arguments)))

    run.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return run
