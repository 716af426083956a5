"""A process of its own for test_processes: `python worker_process.py KIND DIRECTORY SETTINGS` (SETTINGS is JSON).

Each run appends lines to the file `log`, in one write each: job id, delivery, pid, what happened, and when.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import rqlab
from rqlab import Context, Job


def write(path: str, *words: object) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (" ".join(map(str, words)) + "\n").encode())
    os.close(file)


def handler(job: Job, ctx: Context) -> int:
    """`data`: the log; and for each delivery how many seconds it takes, or the file at whose creation it ends."""
    log = job.data["log"]

    def note(what: str) -> None:
        write(log, job.id, job.deliveries, os.getpid(), what, time.time())

    note("begun")
    takes = job.data.get("takes", [0])
    until = takes[min(job.deliveries, len(takes)) - 1]
    begun_at = time.monotonic()
    while not Path(until).exists() if isinstance(until, str) else time.monotonic() - begun_at < until:
        if ctx.cancelled and job.data.get("listens"):
            note("told")
            return os.getpid()
        time.sleep(0.002)
    note("ended")
    return os.getpid()


def work(directory: Path, settings: dict[str, Any]) -> None:
    options = {key: settings[key] for key in ("concurrency", "isolation", "grace") if key in settings}
    with rqlab.open(directory, stall_timeout=settings.get("stall_timeout", 30), tick_interval=0.2) as rq:
        print("ready", flush=True)
        rq.run_worker(settings.get("queue", "q"), handler, **options)
    print("ended", flush=True)


def push(directory: Path, settings: dict[str, Any]) -> None:
    """Push `count` jobs, one after the other, each with `data` and `options`."""
    with rqlab.open(directory) as rq:
        for _ in range(settings["count"]):
            rq.push("q", "work", settings["data"], **settings.get("options", {}))


def idle(directory: Path, settings: dict[str, Any]) -> None:
    """Have an idle worker and housekeeping for so many seconds; say what they used."""
    with rqlab.open(directory, busy_timeout=0.1) as rq, rq.worker(["q", "other"], handler):
        time.sleep(settings["after"])
        connection = rq._store._connection  # type: ignore[attr-defined]
        os.write(1, b"idle begins\n")
        changes, cpu, at = connection.total_changes, time.process_time(), time.monotonic()
        time.sleep(settings["seconds"])
        used = (time.process_time() - cpu) / (time.monotonic() - at)
        changes = connection.total_changes - changes
        os.write(1, b"idle ends\n")
        print(json.dumps({"cpu": used, "changes": changes}))


def end_with_parent() -> None:
    """A test that was killed can end nobody."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    {"work": work, "push": push, "idle": idle}[sys.argv[1]](Path(sys.argv[2]), json.loads(sys.argv[3]))
