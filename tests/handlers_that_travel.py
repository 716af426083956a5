"""Handlers that child processes import by name; what each does is what the tests of process isolation need."""

import contextvars
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rqlab import AsyncContext, Context, DeadLetter, Job, LeaseLost, RetryAfter, Snooze

colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


def echo(job: Job) -> Any:
    return job.data


def pid(job: Job) -> int:
    return os.getpid()


def misbehave(job: Job) -> Any:
    """What `job.data` says."""
    match job.data:
        case "raise":
            raise ValueError("no such customer")
        case "surrogate":
            raise ValueError("half a character: \ud800")
        case "long":
            raise ValueError("x" * 10_000_000)
        case "snooze":
            raise Snooze(60)
        case "retry":
            raise RetryAfter(7, "rate limit")
        case "dead":
            raise DeadLetter("hopeless")
        case "exit":
            sys.exit(4)
        case "interrupt":
            raise KeyboardInterrupt
        case "os._exit":
            os._exit(3)
        case "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "set":
            return {1, 2}
        case "huge":
            return "x" * (1024 * 1024)
        case "closed":
            os.closerange(3, 100)
    return os.getpid()


def sleep(job: Job) -> str:
    """Says in a file that it has begun, sleeps, and says that it has ended: `data` is the path and the seconds."""
    path, seconds = job.data
    with Path(path).open("a") as file:
        file.write(f"begun {os.getpid()}\n")
    time.sleep(seconds)
    with Path(path).open("a") as file:
        file.write(f"ended {os.getpid()}\n")
    return "slept"


def talk(job: Job, ctx: Context) -> Any:
    ctx.log("begun")
    ctx.progress(50, "half")
    ctx.log("no character: \ud800")
    return {"token": ctx.token, "job": ctx.job.id, "cancelled": ctx.cancelled, "lost": ctx.lost}


def talk_until_lost(job: Job, ctx: Context) -> str:
    while True:
        try:
            ctx.progress(1)
        except LeaseLost:
            return f"lost {ctx.lost}, cancelled {ctx.cancelled}"
        time.sleep(0.01)


def talk_from_threads(job: Job, ctx: Context) -> str:
    threads = [threading.Thread(target=lambda: [ctx.log("line") for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return "all said"


_left_behind: list[str] = []


def talk_after_the_end(job: Job, ctx: Context) -> list[str]:
    """Leaves a thread behind that goes on talking when its run is over; the next run returns what it met."""

    def chatter() -> None:
        try:
            while True:
                ctx.log(job.id)
                time.sleep(0.001)
        except LeaseLost as error:
            _left_behind.append(str(error))

    if job.data == "first":
        threading.Thread(target=chatter, daemon=True).start()
    else:
        time.sleep(0.1)
    return _left_behind


def leave_a_child_behind(job: Job) -> None:
    """Forks something that keeps all open files, writes down its pid, and dies."""
    forked = os.fork()
    if forked == 0:
        time.sleep(60)
        os._exit(0)
    Path(job.data).write_text(str(forked))
    os.kill(os.getpid(), signal.SIGKILL)


def environment(job: Job) -> Any:
    """What a program sees that the handler starts, and whether it can be ended."""
    shown = subprocess.run(["/bin/sh", "-c", "echo ${PYTHONPATH-unset}"], capture_output=True, text=True, check=True)
    sleeping = subprocess.Popen(["sleep", "60"])
    sleeping.terminate()
    return [shown.stdout.strip(), sleeping.wait(20), str(Path.cwd())]


def signal_itself(job: Job) -> str:
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
        time.sleep(0.01)
    return "alive"


def say(job: Job) -> None:
    """Prints, and is killed before anything could be flushed."""
    print("said", job.data)
    os.kill(os.getpid(), signal.SIGKILL)


async def wait_and_echo(job: Job, ctx: Context) -> Any:
    import asyncio

    await asyncio.sleep(0.01)
    ctx.log("awaited")
    return job.data


class Greeter:
    """A handler with something in it: it travels by value."""

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    def greet(self, job: Job) -> str:
        return f"{self.greeting}, {job.data}"

    def __call__(self, job: Job) -> str:
        return self.greet(job)

    @staticmethod
    def shout(job: Job) -> str:
        return f"{job.data}!"


def charges(job: Job, ctx: Context) -> str:
    ctx.effect("charged card")
    return "charged"


async def charges_async(job: Job, ctx: AsyncContext) -> str:
    ctx.effect("charged card")
    await ctx.effect("sent receipt")
    return "charged"
