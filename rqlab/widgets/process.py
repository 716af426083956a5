"""A process of the lab: `python -m rqlab.widgets.process NAME`. It takes orders, reports, and is there to be killed.

Orders come through standard input, which is also how it learns that the lab is gone: at end of file it ends at once.
What handlers print goes to standard error. A worker here is what `rqlab worker` is, and also tells what it does.
"""

import os
import shutil
import sys
import threading
from queue import SimpleQueue
from typing import IO, Any

import msgspec

from rqlab import clock, executors
from rqlab.errors import RQLabError
from rqlab.executors import Handlers
from rqlab.executors.loading import load
from rqlab.lifecycle import Change, Event
from rqlab.queues import Queues, memory
from rqlab.queues import open as open_queues
from rqlab.widgets import workload
from rqlab.widgets.orders import Ask, Order, Report, Role
from rqlab.widgets.workload import QUEUE

GRACE_SECONDS = 0.3  # for runs under way when it is told to stop; then they are released
SAID_LENGTH = 200
UNRECORDED = {Event.PROGRESS, Event.LOG, Event.HEARTBEAT}  # not news
FAILURES = {Event.FAIL, Event.STALL, Event.TIME_OUT, Event.EXPIRE}


class LabProcess:
    """One role, from its start to its end."""

    def __init__(self, role: Role, orders: IO[bytes], reports: int) -> None:
        self.role = role
        self.shutdown = threading.Event()
        self._orders = orders
        self._reports = reports  #: a file descriptor: what is written there survives a SIGKILL
        self._reporting = threading.Lock()  # a pipe takes a long line in pieces
        self._to_do: SimpleQueue[Order | None] = SimpleQueue()

    def run(self) -> int:
        """Be what the role says, until told to stop; the exit code."""
        threading.Thread(target=self._listen, name="orders", daemon=True).start()
        try:
            self._run()
        except RQLabError as error:
            print(f"error: {error}", file=sys.stderr)
            self._report(Report(kind="wrong", at=clock.now(), says=str(error)[:SAID_LENGTH]))
            return 1
        return 0

    def _run(self) -> None:
        handlers = self._handlers()
        with self._open() as rq:
            rq.on_change(self._report_change)
            if self.role.paused is not None:
                (rq.pause if self.role.paused else rq.resume)(QUEUE)
            self._report(Report(kind="ready", at=clock.now()))
            match self.role.kind:
                case "worker":
                    self._work(rq, handlers)
                case "producer":
                    self._produce(rq)
                case "owner":
                    self._own(rq, handlers)

    def _handlers(self) -> Handlers:
        if self.role.handlers is not None:
            from rqlab.executors.processes import unpacked

            loaded = {name: unpacked(each) for name, each in self.role.handlers.items()}
            return executors.checked(loaded.get("", loaded))
        return executors.checked(workload.handler if self.role.handler is None else load(self.role.handler))

    def _open(self) -> Queues:
        role = self.role
        timing: dict[str, Any] = {"stall_timeout": role.stall_timeout, "tick_interval": role.tick_interval}
        if role.path is None:
            return memory(**timing)
        return open_queues(role.path, role.mode, **timing, **role.settings)

    def _work(self, rq: Queues, handlers: Handlers) -> None:
        rq.run_worker(QUEUE, handlers, shutdown=self.shutdown, grace=GRACE_SECONDS)

    def _own(self, rq: Queues, handlers: Handlers) -> None:
        names = [f"w{number}" for number in range(1, self.role.workers + 1)]
        threads = [threading.Thread(target=self._work, args=(rq, handlers), name=name, daemon=True) for name in names]
        for thread in threads:
            thread.start()
        self._produce(rq)
        for thread in threads:
            thread.join()

    def _produce(self, rq: Queues) -> None:
        """Push what is asked for, one by one, as strangers would, and say what was acknowledged."""
        while (order := self._to_do.get()) is not None:
            for ask in order.push:
                if self.shutdown.is_set():
                    return
                self._push(rq, ask)
            if order.pause is not None:
                (rq.pause if order.pause else rq.resume)(QUEUE)

    def _push(self, rq: Queues, ask: Ask) -> None:
        try:
            job_id = rq.push(
                QUEUE, ask.name, ask.data, metadata=ask.metadata, max_attempts=ask.max_attempts,
                backoff_delay=ask.backoff_delay,
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001  # of whatever kind: the panel shows it, and the next may do better
            said = f"{type(error).__name__}: {error}"[:SAID_LENGTH]
            self._report(Report(kind="refused", at=clock.now(), number=ask.number, says=said))
        else:
            self._report(Report(kind="pushed", at=clock.now(), number=ask.number, job=job_id))

    def _report_change(self, change: Change) -> None:
        event, job, at = change
        if event in UNRECORDED and self.role.path is not None:
            return
        ended = job.history[-1] if job.history and event in (*FAILURES, Event.ACK, Event.RELEASE) else None
        self._report(
            Report(
                kind="change",
                at=at,
                job=job.id,
                event=str(event),
                delivery=job.deliveries,
                worker=ended.worker if ended else job.worker or "",
                says=(job.last_error or "").partition("\n")[0][:SAID_LENGTH] if event in FAILURES else "",
                record=msgspec.Raw(msgspec.json.encode(job) if self.role.path is None else b"null"),
            )
        )

    def _report(self, report: Report) -> None:
        line = msgspec.json.encode(report) + b"\n"
        with self._reporting:
            while line:
                line = line[os.write(self._reports, line) :]

    def _listen(self) -> None:
        for line in self._orders:
            order = msgspec.json.decode(line, type=Order)
            if order.stop:
                self.shutdown.set()
                self._to_do.put(None)
            else:
                self._to_do.put(order)
        shutil.rmtree(self.role.home, ignore_errors=True)  # the lab is gone; it is a temporary directory of its own
        os._exit(1)  # nobody wants a clean end


def main() -> None:
    reports = os.dup(1)
    os.dup2(2, 1)  # what a handler prints is no report
    first = sys.stdin.buffer.readline()
    if not first:  # the lab went before it could say anything
        return
    code = LabProcess(msgspec.json.decode(first, type=Role), sys.stdin.buffer, reports).run()
    sys.stderr.flush()
    os._exit(code)  # the interpreter's own end may not happen while a thread reads standard input


if __name__ == "__main__":
    main()
