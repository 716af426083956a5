"""The walkthrough: `kill -9` a worker in the middle of a job, and the job completes with no one's help.

It does what a person does in two terminals, with real processes and real signals, and looks at the directory from
outside, as `rqlab show` does. `handler` is what its workers run; `rqlab worker … --demo` runs it by hand.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rqlab import clock
from rqlab.clock import Bell
from rqlab.executors import Context
from rqlab.job import Job, Outcome, State
from rqlab.queues import Queues
from rqlab.queues import open as open_queues

QUEUE = "demo"
STEPS = 10
STEP_SECONDS = 0.5
STALL_TIMEOUT = 3.0  # seconds; the default, 30 s, would make a long demo
BACKOFF_SECONDS = 1.0  # fixed: the default's 1, 2, 4 s would make it longer with each kill
KILLED_AT = 30  # per cent of the job, at the earliest
LOOK_SECONDS = 0.03  # between two looks at the directory
PATIENCE_SECONDS = 60.0  # for any one thing to happen, on a machine that is busy with other things


def handler(job: Job, ctx: Context) -> dict[str, int]:
    """Take ten steps of half a second; job data such as {"steps": 3, "seconds": 2} changes that."""
    asked = job.data if isinstance(job.data, dict) else {}
    steps, seconds = int(asked.get("steps", STEPS)), float(asked.get("seconds", STEP_SECONDS))
    for step in range(1, steps + 1):
        Bell().wait(seconds)
        ctx.progress(100 * step / steps, f"delivery {job.deliveries}: step {step} of {steps}")
        print(f"{job.name} {job.id}, delivery {job.deliveries}: step {step} of {steps}", flush=True)
    return {"steps": steps}


def run(kills: int, max_attempts: int, say: Callable[[str], None] = print) -> bool:
    """The walkthrough; whether what happened is what must happen. Nothing of it stays: no process, no file."""
    with _terminated_like_interrupted(), tempfile.TemporaryDirectory(prefix="rqlab-demo-") as directory:
        walkthrough = Walkthrough(Path(directory), kills, max_attempts, say)
        try:
            return walkthrough.walk()
        except Unexpected as error:
            say(f"\nThis was not expected: {error}")
            walkthrough.tell_what_workers_said()
            return False
        finally:
            walkthrough.end_processes()


class Unexpected(Exception):
    """Something that must happen did not, or something else did."""


class Walkthrough:
    """One run of it: its directory, its processes, and the job that it follows."""

    def __init__(self, directory: Path, kills: int, max_attempts: int, say: Callable[[str], None]) -> None:
        self.directory = directory
        self.path = directory / "jobs"
        self.kills = min(kills, max_attempts)  # after the last attempt there is nothing left to kill
        self.asked = kills
        self.max_attempts = max_attempts
        self.workers: list[subprocess.Popen[bytes]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._say = say
        self._began = clock.monotonic()

    def walk(self) -> bool:
        self._introduce()
        self._start_worker()
        with open_queues(self.path, read_only=True) as rq:
            bystanders = [rq.get(self._push(*other)) for other in BYSTANDERS]
            job_id = self._push_job()
            for number in range(1, self.kills + 1):
                self._kill_in_the_middle(rq, job_id)
                self._start_worker()
                self._watch_recovery(rq, job_id, number)
            job = self._watch_the_end(rq, job_id)
            return self._judge(rq, job, bystanders)

    def end_processes(self) -> None:
        """Kill whatever is left of them, and wait until it is gone."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()

    def tell_what_workers_said(self) -> None:
        for log in sorted(self.directory.glob("worker-*.log")):
            self._say(f"\n{log.name}:\n{log.read_text(errors='replace').rstrip()}")

    # The acts.

    def _introduce(self) -> None:
        times = "once" if self.kills == 1 else f"{self.kills} times"
        self._say(f"A job of {STEPS} steps. Its worker is killed {times} with kill -9, and nobody helps.")
        if self.asked > self.kills:
            self._say(f"(Not {self.asked} times: max_attempts {self.max_attempts} means at most that many runs.)")
        self._say(f"The directory is {self.path} (it goes at the end).\n")
        self._say("seconds    pid")

    def _start_worker(self) -> None:
        number = len(self.workers) + 1
        log = self.directory / f"worker-{number}.log"
        arguments = ("worker", str(self.path), QUEUE, "--demo", "--stall-timeout", f"{STALL_TIMEOUT:g}")
        with log.open("wb") as output:
            worker = self._start(arguments, stdout=output, stderr=subprocess.STDOUT)
        self.workers.append(worker)
        self._until(lambda: b" starts: " in log.read_bytes(), "it starts", needs=worker)
        self._tell(f"worker {number} starts; stall_timeout {STALL_TIMEOUT:g} s, heartbeats every 1 s", worker.pid)

    def _push_job(self) -> str:
        options = (
            *("--backoff", "fixed", "--backoff-delay", f"{BACKOFF_SECONDS:g}"),
            *("--max-attempts", f"{self.max_attempts}"),
        )
        job_id = self._push(QUEUE, "ten-steps", f'{{"steps": {STEPS}, "seconds": {STEP_SECONDS}}}', *options)
        self._tell(f"another process pushes the job: {STEPS} steps of {STEP_SECONDS} s", self._processes[-1].pid)
        self._tell(f"  its id: {job_id}")
        self._tell(f"  max_attempts {self.max_attempts}, backoff fixed at {BACKOFF_SECONDS:g} s")
        return job_id

    def _kill_in_the_middle(self, rq: Queues, job_id: str) -> None:
        worker, number = self.workers[-1], len(self.workers)
        job = self._until_job(rq, job_id, lambda job: job.state is State.ACTIVE, "a worker pulls it")
        if f":{worker.pid}:" not in (job.worker or ""):
            raise Unexpected(f"expected worker {number}, pid {worker.pid}, to hold the job; found {job.worker}")
        self._tell(f"worker {number} pulls it: active, delivery {job.deliveries}", worker.pid)
        first_lease, delivery = job.lease_until, job.deliveries
        job = self._until_job(
            rq,
            job_id,
            lambda job: job.lease_until != first_lease and job.progress >= KILLED_AT,
            "a heartbeat moves lease_until",
            meanwhile=lambda job: job.state is State.ACTIVE and job.deliveries == delivery,
        )
        moved = ((job.lease_until or 0) - (first_lease or 0)) / 1000
        self._tell(f"heartbeats have moved lease_until by {moved:.1f} s; progress {job.progress:g} %", worker.pid)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        killed = rq.get(job_id)
        self._tell(f"kill -9: worker {number} is gone, {killed.progress:g} % of the job done", worker.pid)
        self._show_silence(rq, killed)

    def _show_silence(self, rq: Queues, killed: Job) -> None:
        """The record does not know yet: active, its lease running out."""
        Bell().wait(0.5)
        job = rq.get(killed.id)
        if job != killed or job.state is not State.ACTIVE:
            raise Unexpected(f"expected the job of a dead worker to stay as it was; found {job!r}")
        left = ((job.lease_until or 0) - clock.now()) / 1000
        self._tell(f"the job is still active, but silent; its lease ends in {left:.1f} s")

    def _watch_recovery(self, rq: Queues, job_id: str, number: int) -> None:
        worker = self.workers[-1]
        self._tell("it may not take the job: the lease still holds", worker.pid)
        silent = rq.get(job_id)
        self._until(lambda: clock.now() > (silent.lease_until or 0), "the lease ends", needs=worker)
        self._tell("the lease has ended: housekeeping may judge it at its next tick")
        job = self._until_job(
            rq,
            job_id,
            lambda job: job.attempt == number,
            "housekeeping recovers it",
            meanwhile=lambda job: job.attempt == number - 1,
            needs=worker,
        )
        self._tell(f"housekeeping recovers the job: attempt {job.attempt} of {job.max_attempts} failed", worker.pid)
        self._tell(f"  {job.history[-1].error or job.last_error}")
        if job.state is State.DELAYED:
            self._tell(f"  its backoff delays it {BACKOFF_SECONDS:g} s, then it is in the line again")

    def _watch_the_end(self, rq: Queues, job_id: str) -> Job:
        job = self._until_job(
            rq, job_id, lambda job: job.state is not State.DELAYED, "its backoff ends", needs=self.workers[-1]
        )
        pulled = False
        told = 0.0
        waiting_since = clock.monotonic()
        while not job.is_finished:
            if job.state is State.ACTIVE and not pulled:
                pulled = True
                self._tell(
                    f"worker {len(self.workers)} pulls it: active, delivery {job.deliveries}", self.workers[-1].pid
                )
            elif job.progress >= told + 50 and job.state is State.ACTIVE:
                told = job.progress
                self._tell(f"  progress {job.progress:g} %")
            if clock.monotonic() - waiting_since > PATIENCE_SECONDS:
                self._give_up("the job ends", job)
            self._refuse_dead(self.workers[-1], "the job ends")
            Bell().wait(LOOK_SECONDS)
            job = rq.get(job_id)
        if job.state is State.COMPLETED:
            self._tell(f"completed: result {job.result}", self.workers[-1].pid)
        else:
            self._tell("no attempt is left: the job is in the dead-letter queue")
        return job

    def _judge(self, rq: Queues, job: Job, bystanders: list[Job]) -> bool:
        """Compare what happened with what must happen, and say both."""
        completes = self.kills < self.max_attempts
        expected = {
            "state": State.COMPLETED if completes else State.DLQ,
            "attempt": self.kills,
            "deliveries": self.kills + 1 if completes else self.kills,
            "history": [Outcome.STALLED] * self.kills + [Outcome.COMPLETED] * completes,
            "other jobs changed": 0,
        }
        found: dict[str, Any] = {
            "state": job.state,
            "attempt": job.attempt,
            "deliveries": job.deliveries,
            "history": [delivery.outcome for delivery in job.history],
            "other jobs changed": sum(rq.get(other.id) != other for other in bystanders)
            + abs(rq.counts().total - len(bystanders) - 1),
        }
        self._say("")
        for name in expected:
            verdict = "" if found[name] == expected[name] else f"   WRONG: expected {_said(expected[name])}"
            self._say(f"  {name:<20}{_said(found[name])}{verdict}")
        if found != expected:
            self.tell_what_workers_said()
            return False
        self._say(f"\n{_lesson(job, completes)}")
        return True

    # Below: processes, waiting, and telling.

    def _start(self, arguments: tuple[str, ...], **streams: Any) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-m", "rqlab", *arguments], stdin=subprocess.DEVNULL, env=_environment(), **streams
        )
        self._processes.append(process)
        return process

    def _push(self, *arguments: str) -> str:
        """Push from a process of its own; the job's id."""
        pushing = self._start(("push", str(self.path), *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            said, wrong = pushing.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise Unexpected("rqlab push did not end") from None
        if pushing.returncode != 0:
            raise Unexpected(f"rqlab push ended with {pushing.returncode}: {wrong.decode(errors='replace')}")
        return said.decode().strip()

    def _until_job(
        self,
        rq: Queues,
        job_id: str,
        happened: Callable[[Job], bool],
        what: str,
        *,
        meanwhile: Callable[[Job], bool] = lambda job: True,
        needs: "subprocess.Popen[bytes] | None" = None,
    ) -> Job:
        """The job once it has `happened`; Unexpected if it takes too long, or something else happens `meanwhile`."""
        seen = [rq.get(job_id)]

        def look() -> bool:
            seen[0] = rq.get(job_id)
            if not happened(seen[0]) and not meanwhile(seen[0]):
                self._give_up(what, seen[0])
            return happened(seen[0])

        self._until(look, what, needs=needs or self.workers[-1])
        return seen[0]

    def _until(self, happened: Callable[[], bool], what: str, *, needs: "subprocess.Popen[bytes]") -> None:
        began = clock.monotonic()
        while not happened():
            self._refuse_dead(needs, what)
            if clock.monotonic() - began > PATIENCE_SECONDS:
                raise Unexpected(f"waited {PATIENCE_SECONDS:g} s until {what}")
            Bell().wait(LOOK_SECONDS)

    def _refuse_dead(self, worker: "subprocess.Popen[bytes]", what: str) -> None:
        if worker.poll() is not None:
            raise Unexpected(f"worker {worker.pid} ended with {worker.returncode} before {what}")

    def _give_up(self, what: str, job: Job) -> NoReturn:
        raise Unexpected(f"waited until {what}; found {job!r}")

    def _tell(self, line: str, pid: int | None = None) -> None:
        self._say(f"{clock.monotonic() - self._began:7.1f} {pid or '':>6}  {line}")


#: Jobs that nothing may touch: one in another queue, one that stands in the same queue and is not due.
BYSTANDERS = (("bystanders", "wait-here"), (QUEUE, "not-yet", "--delay", "3600"))


def _lesson(job: Job, completes: bool) -> str:
    stalls = f"{job.attempt} stall{'s' if job.attempt > 1 else ''}"
    if completes:
        return (
            f"As it must be: {stalls}, then completed. The steps before a kill ran again:\n"
            "delivery is at least once, so a handler must bear a second run."
        )
    return (
        f"As it must be: {stalls} used up max_attempts {job.max_attempts}.\n"
        "Where workers are interrupted often, raise it:\n"
        "    rqlab push … --max-attempts 10        rq.push(…, max_attempts=10)\n"
        "A dead-lettered job is not lost; this puts it back, with all its attempts:\n"
        "    rqlab requeue DIR ID\n"
        f"See the difference:\n    rqlab demo --kills {job.attempt} --max-attempts {job.max_attempts + 1}"
    )


def _said(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _environment() -> dict[str, str]:
    """That of this process, with this very rqlab first on the path, whatever the directory it was started in."""
    here = str(Path(__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])}


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that no worker is left behind."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # no signal comes here
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
