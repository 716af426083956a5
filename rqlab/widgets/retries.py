"""The explorer's retries tab: how long a job waits before each retry, and one job that the engine itself retries.

The delays are those of `rqlab.backoff`; the job runs in a simulation, with nothing broken but its handler.
"""

from typing import NamedTuple

from rqlab.charts import delays as curves
from rqlab.charts import timelines
from rqlab.charts.histories import moment
from rqlab.charts.looks import OUTCOMES, seconds
from rqlab.errors import ValidationError
from rqlab.html import FRAME, NUMBERS, svg
from rqlab.html.delays import delays
from rqlab.job import Job
from rqlab.simulation.chance import Chance
from rqlab.simulation.result import SimulationResult
from rqlab.simulation.run import simulate

DURATION = 1.0  # seconds that a run takes, on average
SHOWN_RUNS = 12


class Retries(NamedTuple):
    """What the tab's controls say."""

    strategy: str = "exponential"
    base: float = 1.0  #: seconds; push's backoff_delay
    jitter: float = 0.2
    cap: float = 60.0  #: seconds; push's max_backoff
    max_attempts: int = 6
    failure_rate: float = 0.8
    seed: int = 1


def curve(chosen: Retries) -> str:
    """The delay after each failed attempt, as SVG."""
    attempts = max(chosen.max_attempts - 1, 1)
    return delays(curves.marks([chosen.strategy], chosen.base, chosen.cap, chosen.jitter, attempts))


def run(chosen: Retries) -> SimulationResult:
    """One job of that kind, run by the production engine in virtual time until it completes or is given up."""
    chance = Chance(chosen.seed)

    def handler(job: Job) -> str:
        if chance("retries", job.name, job.deliveries) < chosen.failure_rate:
            raise ConnectionError("the server hung up")
        return "sent"

    if chosen.cap < 0:
        raise ValidationError(f"cap: expected 0 s or more, got {chosen.cap!r}")
    longest = curves.marks([chosen.strategy], chosen.base, chosen.cap, chosen.jitter, chosen.max_attempts)
    pause = max(1.0, max(point.most for point in longest.curves[0]) / 50)  # an idle day is not lived second by second
    job = {
        "name": "job", "max_attempts": chosen.max_attempts, "backoff": chosen.strategy, "backoff_delay": chosen.base,
        "max_backoff": chosen.cap, "jitter": chosen.jitter,
    }  # fmt: skip
    return simulate(
        0, seed=chosen.seed, jobs=[job], workers=1, faults=(), store="memory", handler=handler, duration=DURATION,
        stall_timeout=4 * pause, tick_interval=pause,
    )  # fmt: skip


def story(done: SimulationResult, name: str = "rq-retries") -> str:
    """The job's runs and waits: as a lane in time, and as lines."""
    drawn = timelines.marks(done, "job")
    lane = svg.timeline(drawn, name=name)
    *runs, end = told(done)
    lines = "".join(f"<li>{svg.text(line, 160)}</li>" for line in runs)
    return f'<div style="{FRAME};{NUMBERS}">{lane}<ol style="margin:4px 0">{lines}</ol>{svg.text(end)}</div>'


def told(done: SimulationResult) -> list[str]:
    """One line a run: when, how it ended, how long until the next; and how it came out."""
    rows = list(done.attempts.itertuples())
    lines = []
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        line = f"at {moment(row.started)}: {OUTCOMES[str(row.outcome).replace(' ', '_')].label}"
        if after is not None:
            line += f", waited {seconds(round(after.started - row.ended, 3))}"
        lines.append(line)
    if len(lines) > SHOWN_RUNS:
        lines = [*lines[: SHOWN_RUNS - 1], f"and {len(lines) - SHOWN_RUNS + 1} more runs"]
    state = str(done.jobs.state.iloc[0]) if len(done.jobs) else "waiting"
    return [
        *lines,
        {"completed": "then it is completed", "dlq": "then it is given up: it is in the DLQ"}.get(state, state),
    ]
