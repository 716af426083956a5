"""The other end of `processes.py`: a process that calls functions for its parent, and ends when that is gone."""

import os
import pickle
import sys
import threading
from multiprocessing.connection import Connection
from queue import SimpleQueue

import cloudpickle

from rqlab.executors.child import leave_signals_to_the_parent
from rqlab.exploration.hunting import leaving


def main(fd: int) -> None:
    """Serve the parent on the socket `fd` until it closes its end: then end what runs, answer, and go."""
    os.set_inheritable(fd, False)
    leave_signals_to_the_parent()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what a handler prints is shown in time
    connection = Connection(fd)
    calls: SimpleQueue[bytes | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, calls), name="rqlab-parent", daemon=True).start()
    while (call := calls.get()) is not None:
        try:
            connection.send_bytes(_answer(call))
        except OSError:
            return  # nobody is there to hear it


def _listen(connection: Connection, calls: "SimpleQueue[bytes | None]") -> None:
    while True:
        try:
            calls.put(connection.recv_bytes())
        except (EOFError, OSError):
            leaving.set()
            calls.put(None)
            return


def _answer(call: bytes) -> bytes:
    """(True, what it returned) or (False, what it raised)."""
    try:
        function, arguments = cloudpickle.loads(call)
        return pickle.dumps((True, function(*arguments)))
    except BaseException as error:  # noqa: BLE001  # whatever it raises, the parent must hear of it
        return _told(error)


def _told(error: BaseException) -> bytes:
    try:
        told = pickle.dumps((False, error))
        pickle.loads(told)  # some errors can be written and not be read
    except Exception:  # noqa: BLE001  # then its words travel
        told = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
    return told
