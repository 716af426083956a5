"""Child processes that call functions: the executor of `explore`, where it is given none.

Why not ProcessPoolExecutor. Its children are forks where that is the default (Linux, Python 3.11 to 3.13): copies of a
process that may have threads, as a notebook has, and locks that these held. Or they are spawned and import the main
module again: a script without a main guard would explore without end, and a notebook's handler is not found. And when
one child dies, all work is given up. These children are `python -m rqlab`, as those of workers are; one that dies takes
with it the call that it had, and no other.
"""

import contextlib
import pickle
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

import cloudpickle

from rqlab.errors import RQLabError
from rqlab.executors.processes import how_it_ended, import_paths, started_child

T = TypeVar("T")

LOOK_SECONDS = 1.0  # between two looks whether a silent child lives
END_SECONDS = 5.0  # for a child to finish the simulation that it is in; then it is killed


class ChildDied(RQLabError):
    """The process that had the call has ended."""


class _Call(NamedTuple):
    future: "Future[Any]"
    packed: bytes


class Processes(Executor):
    """`count` kept children, each with a thread that talks to it. They end with this process."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._is_over = False
        self._slots = [_Slot(self._calls, number) for number in range(count)]

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """Call it in a child. Its future gets ChildDied if the child ends first."""
        if self._is_over:
            raise RuntimeError("these processes have been shut down")
        assert not kwargs, "nobody passes any"
        future: Future[T] = Future()
        self._calls.put(_Call(future, cloudpickle.dumps((fn, args))))
        return future

    def hurry(self) -> None:
        """Ask the children to end what they run, and answer with what there is. They take no call after that."""
        self._is_over = True
        self._cancel_waiting()
        for slot in self._slots:
            slot.hurry()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the children when they have done what was submitted; with `cancel_futures` what they do now."""
        self._is_over = True
        if cancel_futures:
            self._cancel_waiting()
        for _ in self._slots:
            self._calls.put(None)
        if wait:
            for slot in self._slots:
                slot.join()

    def pids(self) -> list[int]:
        """The children that are there."""
        return [slot.process.pid for slot in self._slots if slot.process is not None]

    def _cancel_waiting(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                call = self._calls.get_nowait()
                if call is not None:
                    call.future.cancel()
                    call.future.set_running_or_notify_cancel()  # it wakes who waits


class _Slot(threading.Thread):
    """One child at a time, and who talks to it; a new child when that has died."""

    def __init__(self, calls: "SimpleQueue[_Call | None]", number: int) -> None:
        super().__init__(name=f"rqlab-explorer-{number + 1}", daemon=True)
        self.process: subprocess.Popen[bytes] | None = None
        self._calls = calls
        self._connection: Connection | None = None
        self._socket: socket.socket | None = None
        self.start()

    def hurry(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)  # it hears that nobody asks any more, and can still answer

    def run(self) -> None:
        try:
            while (call := self._calls.get()) is not None:
                if call.future.set_running_or_notify_cancel():
                    self._serve(call)
        finally:
            self._end()

    def _serve(self, call: _Call) -> None:
        try:
            done, value = self._converse(call.packed)
        except (EOFError, OSError):
            process = self.process
            self._end()
            died = "could not be started" if process is None else how_it_ended(process)
            call.future.set_exception(ChildDied(f"the process that ran it has ended: {died}"))
            return
        if done:
            call.future.set_result(value)
        else:
            call.future.set_exception(value)

    def _converse(self, packed: bytes) -> tuple[bool, Any]:
        if self.process is None:
            self._begin()
        assert self._connection is not None, "it has begun"
        self._connection.send_bytes(packed)
        while not self._connection.poll(LOOK_SECONDS):
            if self.process is None or (self.process.poll() is not None and not self._connection.poll()):
                raise EOFError  # what a handler started has inherited the other end, and lives on
        answer: tuple[bool, Any] = pickle.loads(self._connection.recv_bytes())
        return answer

    def _begin(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = started_child("_explore", theirs, import_paths())
        self._socket = ours
        self._connection = Connection(ours.dup().detach())

    def _end(self) -> None:
        for end in (self._connection, self._socket):
            if end is not None:
                end.close()
        if self.process is not None:
            try:
                self.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = self._connection = self._socket = None
