"""One process of the lab, as the lab holds it: started, told, heard, killed, frozen, thawed and reaped.

It stands in a process group of its own, so that an interrupt of the notebook passes it by, but in its parent's session.
In a new session a frozen process would outlive a killed kernel for ever: it cannot read the end of its orders. A group
of the session that loses its parent gets SIGHUP and SIGCONT from the system instead, if one of it is stopped.

Whoever calls is never kept waiting: one thread writes (a pipe to a frozen process fills up), another reads and reaps.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import msgspec

from rqlab import clock
from rqlab.widgets.orders import Order, Report, Role

MODULE = "rqlab.widgets.process"
HERE = str(Path(__file__).parents[2])
SAID_LENGTH = 200


class Status(NamedTuple):
    """A process as the panel shows it."""

    name: str
    kind: str  #: worker, producer, owner; thread: a worker inside an owner
    pid: int
    state: str  #: starting, running, frozen, killed, ended
    says: str  #: why it ended, if it said so


class Handle:
    """A process from its start to its end. Signals go through Popen, which knows when a pid is no longer its own."""

    def __init__(
        self, role: Role, log: Path, on_report: Callable[["Handle", Report], None], on_end: Callable[["Handle"], None]
    ) -> None:
        self.role = role
        self.is_ready = False
        self.was_killed = False
        self.frozen_at: int | None = None  #: milliseconds since the epoch; None while it is not frozen
        self.asked: set[int] = set()  #: numbers that it was told to push and has not answered
        self.says = ""
        self.life = 0  #: its number in the ledger
        self._log = log
        self._on_report = on_report
        self._on_end = on_end
        self._ended = threading.Event()
        self._orders: SimpleQueue[bytes | None] = SimpleQueue()
        self._orders.put(msgspec.json.encode(role) + b"\n")
        with log.open("wb") as said:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-m", MODULE, role.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([HERE, *filter(None, sys.path)]),
                },  # what we can import
                process_group=0,
            )
        self.pid = self._popen.pid

    def listen(self) -> None:
        """Begin to write and to read. Until then nothing is reported."""
        for work, name in ((self._write, "orders"), (self._hear, "reports")):
            threading.Thread(target=work, name=f"rqlab-lab-{self.role.name}-{name}", daemon=True).start()

    def status(self) -> Status:
        if self.was_killed or self._popen.returncode == -signal.SIGKILL:
            state = "killed"
        elif self._ended.is_set():
            state = "ended"
        else:
            state = "frozen" if self.frozen_at is not None else "running" if self.is_ready else "starting"
        return Status(self.role.name, self.role.kind, self.pid, state, self.says)

    def is_live(self) -> bool:
        """Whether it may be told anything."""
        return not self.was_killed and not self._ended.is_set()

    def has_ended(self, within: float = 0.0) -> bool:
        """Whether it is reaped and everything that it said has been heard; waits so many seconds for that."""
        return self._ended.wait(within)

    def order(self, order: Order) -> None:
        """Tell it, at once or when it can listen."""
        self._orders.put(msgspec.json.encode(order) + b"\n")

    def kill(self) -> None:
        """kill -9."""
        self.was_killed = True
        self._popen.send_signal(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: it keeps all that it has, and does nothing. It stands still when this returns, or has ended.

        A process that is told to stop, and has not yet done so as its kernel is killed, is woken by nobody: the system
        wakes only what stands still by then.
        """
        self.frozen_at = clock.now()
        self._popen.send_signal(signal.SIGSTOP)
        with contextlib.suppress(ChildProcessError):  # it had ended, and was reaped
            os.waitid(os.P_PID, self._popen.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> int:
        """SIGCONT; for how many milliseconds it was frozen."""
        since, self.frozen_at = self.frozen_at, None
        self._popen.send_signal(signal.SIGCONT)
        return 0 if since is None else clock.now() - since

    @property
    def exit_code(self) -> int | None:
        """Below 0: the signal that ended it. None while it lives."""
        return self._popen.returncode

    def _write(self) -> None:
        stdin = self._popen.stdin
        assert stdin is not None, "it was started with a pipe"
        with contextlib.suppress(OSError), stdin:  # it has died: the other thread tells of its end
            while (line := self._orders.get()) is not None:
                stdin.write(line)
                stdin.flush()

    def _hear(self) -> None:
        stdout = self._popen.stdout
        assert stdout is not None, "it was started with a pipe"
        with stdout:
            for line in stdout:
                if line.endswith(b"\n"):  # a killed process may leave half a line: that was not said
                    self._on_report(self, msgspec.json.decode(line, type=Report))
        code = self._popen.wait()
        self._orders.put(None)
        if code not in (0, -signal.SIGKILL) and not self.says:
            self.says = self._last_line() or f"exit code {code}"
        self._on_end(self)
        self._ended.set()

    def _last_line(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").strip().splitlines()
        except OSError:  # the lab has been cleared away meanwhile
            return ""
        return lines[-1][:SAID_LENGTH] if lines else ""
