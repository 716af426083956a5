"""A process of its own for test_scheduling: forks housekeepers that are killed at their k-th SQL statement.

`python killed_housekeeping.py each DIRECTORY` kills one in the middle of one tick, at every statement in turn, and has
another one tick over what it left; prints one line a statement. `python killed_housekeeping.py beside DIRECTORY` kills
one after the other by the wall clock beside a process that keeps house all the time; prints what came of it.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import rqlab
from rqlab import clock

NOW = 1_767_225_600_000  # 2026-01-01 00:00:00 UTC
OWED = 4  # ticks that are due at the tick that is killed
EVERY = 0.05  # seconds; of the schedule beside a process that lives


def forked(work: Callable[[], None]) -> int:
    """Do this in a child; its pid. It ends without tidying anything up."""
    pid = os.fork()
    if pid:
        return pid
    work()
    os._exit(0)


def tick_and_die(directory: Path, statement: int, ticks: int = 1) -> None:
    """Tick, and be killed before the given statement; return if there are not so many."""
    rq = rqlab.open(directory)
    seen = 0

    def trace(sql: str) -> None:
        nonlocal seen
        seen += 1
        if seen == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    rq._store._connection.set_trace_callback(trace)
    for _ in range(ticks):
        rq.tick()


def was_killed(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def each(directory: Path) -> None:
    statement, killed = 0, True
    while killed:
        statement += 1
        here = directory / str(statement)
        clock.now = lambda: NOW
        with rqlab.open(here) as rq:
            rq.schedule("all", "all", "tick", every=10, catch_up="all", max_executions=OWED + 1)
            rq.schedule("cron", "cron", "tick", cron="* * * * *", unique_key="only")
            rq.push("delayed", "work", delay=1)
        clock.now = lambda: NOW + OWED * 10_000 + 20_000
        killed = was_killed(forked(lambda here=here, k=statement: tick_and_die(here, k)))
        with rqlab.open(here) as rq:
            left = rq.counts().total
            rq.tick()
            rq.tick()
            schedules = {each.name: (each.executions, each.next_at) for each in rq.schedules()}
            counted = {queue: rq.counts(queue).waiting for queue in rq.queues()}
            print(json.dumps({"killed": killed, "left": left, "waiting": counted, "schedules": schedules}))


def beside(directory: Path) -> None:
    with rqlab.open(directory) as rq:
        rq.schedule("s", "q", "tick", every=EVERY, catch_up="all")
    ending = directory / "ending"

    def keep_house() -> None:
        with rqlab.open(directory) as rq:
            while not ending.exists():
                rq.tick()
                time.sleep(EVERY / 5)

    living = forked(keep_house)
    kills = sum(was_killed(forked(lambda k=k: tick_and_die(directory, k, ticks=3))) for k in range(1, 80))
    ending.touch()
    assert os.waitpid(living, 0)[1] == 0
    with rqlab.open(directory) as rq:
        rq.tick()
        (schedule,) = rq.schedules()
        print(
            json.dumps(
                {
                    "kills": kills,
                    "jobs": rq.counts("q").waiting,
                    "executions": schedule.executions,
                    "ticks": round((schedule.last_at - schedule.anchor_at) / (EVERY * 1000)),
                }
            )
        )


if __name__ == "__main__":
    {"each": each, "beside": beside}[sys.argv[1]](Path(sys.argv[2]))
