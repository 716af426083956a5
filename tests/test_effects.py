"""A handler that says what it does runs unmodified everywhere; a simulation tells what it did twice, and why."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from handlers_that_travel import charges, charges_async

import rqlab
from rqlab import AsyncContext, Context, Fault, Job, SimulationResult
from rqlab.simulation.run import simulate

CHARGE = {"name": "charge", "at": 0.0}
KILL = Fault(0.5, "process kill", "worker-1", seconds=1.0)  # in the middle of the first run


def killed(handler: Any, **changed: Any) -> SimulationResult:
    """One worker, one job, and a kill while it runs."""
    given = {"jobs": [CHARGE], "workers": 1, "faults": [KILL], "duration": 2.0, "seed": 1}
    return simulate(0, handler=handler, **given | changed)


@pytest.mark.parametrize("handler", [charges, charges_async], ids=["sync", "async"])
@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_handler_that_says_its_effects_runs_in_a_worker(handler: Any, isolation: str) -> None:
    with rqlab.memory() as rq:
        job = rq.push("mail", "charge")
        with rq.worker("mail", handler, isolation=isolation):
            done = _finished(rq, job)

    assert done.result == "charged"
    assert done.attempt == 0


def _finished(rq: rqlab.Queues, job_id: str) -> Job:
    """The job when it is over. A change is waited for, not a time."""
    import threading

    over = threading.Event()
    rq.on_change(lambda change: over.set() if change.job.id == job_id and change.job.is_finished else None)
    if not rq.get(job_id).is_finished:
        assert over.wait(60)
    return rq.get(job_id)


@pytest.mark.parametrize("handler", [charges, charges_async], ids=["sync", "async"])
def test_in_production_an_effect_is_a_line_in_the_log(handler: Any, caplog: pytest.LogCaptureFixture) -> None:
    with rqlab.memory() as rq, caplog.at_level(logging.DEBUG, "rqlab"):
        job = rq.push("mail", "charge")
        rq.drain("mail", handler)
        stored = rq.get(job)

    assert f"job {job}, delivery 1: effect 'charged card'" in caplog.messages
    assert stored.logs == ()


@pytest.mark.parametrize("handler", [charges, charges_async], ids=["sync", "async"])
def test_an_effect_before_a_kill_happens_twice_and_the_kill_is_named(handler: Any) -> None:
    result = killed(handler)
    effect = result.effects.iloc[0]

    assert (effect.effect, effect.times, effect.deliveries) == ("charged card", 2, [1, 2])
    assert effect.why == "its worker was killed after it and before the ack (process kill at 0.5 s)"
    said = f"charged card happened twice for job 1 (charge): {effect.why}"
    assert said in result.effects_in_words
    assert said in str(result.summary())
    assert said in result._repr_html_()


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (Fault(0.5, "worker crash", "worker-1", seconds=1.0), "its worker crashed after it and before the ack"),
        (Fault(0.5, "power cut", seconds=1.0, how="lost"), "the power failed after it and before the ack"),
        (Fault(0.5, "freeze", "worker-1", seconds=9.0), "its worker stood still after it until the lease had run out"),
        (Fault(0.1, "late ack", "worker-1", seconds=6.0), "its report came when the lease had run out"),
        (Fault(0.5, "redeploy", seconds=1.0), "its worker was told to stop after it and before the ack"),
        (Fault(0.0, "hanging handler", "job 0"), "the run timed out after it"),
    ],
    ids=lambda each: each.kind if isinstance(each, Fault) else "",
)
def test_each_fault_that_makes_a_job_run_again_is_named(fault: Fault, why: str) -> None:
    job = {**CHARGE, "timeout": 3.0} if fault.kind == "hanging handler" else CHARGE
    result = killed(charges, faults=[fault], jobs=[job], workers=2)

    assert result.effects["why"].iloc[0].startswith(why), result.summary()


def test_a_failure_after_an_effect_is_named_too() -> None:
    def fails_once(job: Job, ctx: Context) -> None:
        ctx.effect("charged card")
        if ctx.token == 1:
            raise ConnectionError

    assert (
        killed(fails_once, faults=()).effects["why"].iloc[0].startswith("the run failed after it, and was tried again")
    )


def test_an_ack_that_hybrid_lost_makes_an_effect_happen_again() -> None:
    whys = [
        why
        for seed in range(12)
        for why in simulate(
            0, seed=seed, handler=charges, jobs=[CHARGE], workers=1, durability="hybrid", duration=1.0,
            faults=[Fault(2.0, "power cut", seconds=1.0, how="lost")],
        ).effects["why"]
    ]  # fmt: skip

    assert "its ack was lost (power cut at 2.0 s)" in whys


def with_a_ledger() -> Callable[[Job, Context], None]:
    charged: set[str] = set()

    def handler(job: Job, ctx: Context) -> None:
        if job.id not in charged:
            charged.add(job.id)
            ctx.effect("charged card")

    return handler


def with_a_token() -> Callable[[Job, Context], None]:
    """A run that is not the first asks whether the card was charged, as with a payment service's own list."""
    charged: dict[str, int] = {}

    def handler(job: Job, ctx: Context) -> None:
        if ctx.token > 1 and job.id in charged:
            return
        charged[job.id] = ctx.token
        ctx.effect("charged card")

    return handler


def with_an_async_ledger() -> Any:
    charged: set[str] = set()

    async def handler(job: Job, ctx: AsyncContext) -> None:
        await asyncio.sleep(0)
        if job.id not in charged:
            charged.add(job.id)
            await ctx.effect("charged card")

    return handler


@pytest.mark.parametrize("make", [with_a_ledger, with_a_token, with_an_async_ledger])
def test_an_idempotent_handler_is_not_accused(make: Callable[[], Any]) -> None:
    jobs = [{"name": "charge"} for _ in range(10)]
    for seed in range(10):
        result = simulate(seed=seed, handler=make(), jobs=jobs, faults=6.0)
        assert result.effects["times"].max() == 1
        assert result.effects_in_words == ["Each side effect happened once: charged card for 10 jobs."]


@pytest.mark.parametrize("handler", [charges, charges_async], ids=["sync", "async"])
def test_a_handler_that_is_not_idempotent_is_caught_by_most_seeds(handler: Any) -> None:
    jobs = [{"name": "charge"} for _ in range(10)]
    caught = [simulate(seed=seed, handler=handler, jobs=jobs, faults=6.0).effects["times"].max() for seed in range(10)]

    assert sum(times > 1 for times in caught) >= 7


def test_an_async_handler_is_simulated_where_a_loop_runs_already() -> None:
    """As in a cell of a notebook."""

    async def cell() -> SimulationResult:
        return killed(charges_async)

    assert asyncio.run(cell()).hash == killed(charges_async).hash


def test_an_async_handler_may_await_what_it_says_in_a_simulation() -> None:
    async def handler(job: Job, ctx: AsyncContext) -> None:
        await ctx.progress(50)
        await ctx.log("half")

    result = killed(handler, faults=())

    assert list(result.attempts["outcome"]) == ["completed"]
    assert {"progress", "log"} <= {each.kind for each in result.history}
