"""What the lab's jobs do: wait a while, and fail now and then, as a seed says.

Duration and failure are drawn from the seed by the job's number (and its delivery), so the same seed gives the same
jobs whoever runs them. Knows no process and no widget.
"""

import hashlib
from typing import Any

from rqlab.clock import Bell
from rqlab.executors import Context
from rqlab.job import Job

QUEUE = "lab"
NAME = "work"
STEP_SECONDS = 0.1  # between two looks at whether the run is still wanted
MAX_ATTEMPTS = 5  # more than the default 3: workers are interrupted often here
BACKOFF_SECONDS = 0.5  # the first; the default, 1 s, makes a lab slow


def draw(seed: int, purpose: str, *entity: int) -> float:
    """A number in [0, 1) that depends on nothing but its key."""
    key = f"{seed}/{purpose}/{'/'.join(map(str, entity))}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest()) / 2**56


def duration(seed: int, number: int, seconds: float) -> float:
    """Seconds that a run of job `number` takes: 0.5 to 1.5 times what was asked for."""
    return round(seconds * (0.5 + draw(seed, "duration", number)), 3)


def job_data(seed: int, number: int, seconds: float, failure_rate: float) -> dict[str, Any]:
    """What the demo's handler needs to know."""
    took = duration(seed, number, seconds)
    return {"number": number, "seconds": took, "failure_rate": failure_rate, "seed": seed}


def handler(job: Job, ctx: Context) -> dict[str, Any]:
    """Wait `seconds`, then fail with the probability `failure_rate`."""
    asked = job.data
    steps = max(1, round(asked["seconds"] / STEP_SECONDS))
    for _ in range(steps):
        if ctx.cancelled:
            break
        Bell().wait(asked["seconds"] / steps)
    if draw(asked["seed"], "failure", asked["number"], job.deliveries) < asked["failure_rate"]:
        raise RuntimeError(f"bad luck at delivery {job.deliveries} (seed {asked['seed']})")
    return {"number": asked["number"]}
