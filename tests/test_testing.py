"""What an application's tests are promised: the same engine, in a time that passes only when they say so."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import rqlab
from rqlab import Context, DeadLetter, Job, RetryAfter, ValidationError, testing
from rqlab.testing import Crash, Effect, VirtualQueues

DAY = 86_400


@pytest.fixture
def rq() -> Iterator[VirtualQueues]:
    with testing.queues() as queues:
        yield queues


# Time.


def test_time_passes_only_when_a_test_says_so(rq: VirtualQueues) -> None:
    began = rq.at

    rq.push("emails", "welcome")
    rq.drain("emails", lambda job: None)
    stood_still = rq.at
    rq.advance(90)

    assert stood_still == began == datetime(2026, 1, 1, tzinfo=UTC)
    assert rq.elapsed == 90
    assert rq.get(rq.jobs()[0].id).finished_at == began.timestamp() * 1000


def test_retries_happen_without_waiting_at_their_backoffs(rq: VirtualQueues) -> None:
    ran = []

    def send(job: Job) -> str:
        ran.append(rq.elapsed)
        if len(ran) < 3:
            raise ConnectionError("the server hung up")
        return "sent"

    job_id = rq.push("emails", "welcome", backoff_delay=10)
    outcomes = rq.drain("emails", send, within=DAY)

    assert ran == [0.0, 10.0, 30.0]
    assert outcomes == {"failed": 2, "completed": 1}
    assert rq.get(job_id).result == "sent"
    assert rq.elapsed == 30, "the clock stands where the last thing happened"


def test_a_drain_without_within_runs_what_is_due_now_as_in_production(rq: VirtualQueues) -> None:
    rq.push("emails", "welcome")
    rq.push("emails", "reminder", delay=60)

    assert rq.drain("emails", lambda job: None) == {"completed": 1}
    assert rq.counts("emails").delayed == 1


def test_a_schedule_fires_at_its_instants_while_time_passes(rq: VirtualQueues) -> None:
    ran = []
    rq.schedule("nightly", "reports", "report", cron="0 3 * * *")

    with rq.worker("reports", lambda job: ran.append(rq.at)):
        rq.advance(3 * DAY)

    assert ran == [datetime(2026, 1, day, 3, tzinfo=UTC) for day in (1, 2, 3)]
    assert rq.elapsed == 3 * DAY


def test_a_month_of_idle_time_costs_no_steps(rq: VirtualQueues) -> None:
    rq.push("emails", "reminder", delay=30 * DAY)

    assert rq.advance(29 * DAY) == Counter()
    assert rq.drain("emails", lambda job: None, within=DAY) == {"completed": 1}


def test_time_may_be_moved_to_an_instant_and_never_back(rq: VirtualQueues) -> None:
    rq.advance_to(datetime(2026, 2, 1, tzinfo=UTC))

    with pytest.raises(ValidationError, match=r"expected an instant after 2026-02-01 .*; got 2026-01-15"):
        rq.advance_to(datetime(2026, 1, 15, tzinfo=UTC))
    with pytest.raises(ValidationError, match="an aware datetime"):
        rq.advance_to(datetime(2027, 1, 1))
    assert rq.at == datetime(2026, 2, 1, tzinfo=UTC)


def test_a_job_that_nobody_starts_in_time_expires(rq: VirtualQueues) -> None:
    job_id = rq.push("emails", "code", ttl=60)

    rq.advance(61)

    assert rq.get(job_id).last_error == "expired"


def test_a_pull_that_waits_lets_time_pass(rq: VirtualQueues) -> None:
    rq.push("emails", "reminder", delay=5)

    assert rq.pull("emails", wait=2) == []
    assert [job.name for job in rq.pull("emails", wait=60)] == ["reminder"]
    assert rq.elapsed == 5


def test_the_same_test_gives_the_same_ids_and_the_same_jitter() -> None:
    def run(seed: int) -> tuple[str, list[float]]:
        ran: list[float] = []

        def fail(job: Job) -> None:
            ran.append(rq.elapsed)
            raise ValueError

        with testing.queues(seed=seed) as rq:
            job_id = rq.push("emails", "welcome", jitter=0.5)
            rq.drain("emails", fail, within=DAY)
        return job_id, ran

    assert run(1) == run(1)
    assert run(1) != run(2)


# Runs.


def test_async_handlers_and_contexts_work_also_within_a_running_loop(rq: VirtualQueues) -> None:
    async def send(job: Job, ctx: rqlab.AsyncContext) -> int:
        ctx.progress(50, "half way")
        await asyncio.sleep(0)
        return int(job.data) * 2

    async def test() -> Counter[str]:
        return rq.drain("emails", send)

    job_id = rq.push("emails", "double", 21)

    assert asyncio.run(test()) == {"completed": 1}
    assert rq.get(job_id).result == 42
    assert rq.get(job_id).logs == ("half way",)


def test_a_handler_that_takes_long_lets_time_pass_and_keeps_its_lease(rq: VirtualQueues) -> None:
    def slow(job: Job, ctx: Context) -> None:
        rq.advance(600)
        ctx.log("ten minutes later")

    job_id = rq.push("reports", "yearly")

    assert rq.drain("reports", slow) == {"completed": 1}
    assert rq.get(job_id).deliveries == 1
    assert rq.elapsed == 600


def test_a_run_that_takes_longer_than_its_timeout_is_charged(rq: VirtualQueues) -> None:
    job_id = rq.push("reports", "yearly", timeout=60, max_attempts=1)

    rq.drain("reports", lambda job: rq.advance(61))

    assert rq.get(job_id).state == "dlq"
    assert rq.get(job_id).last_error == "timed out after 60 s"


def test_a_worker_that_crashes_reports_nothing_and_its_job_is_recovered(
    rq: VirtualQueues, monkeypatch: pytest.MonkeyPatch
) -> None:
    charges: list[int] = []

    class Bank:
        @staticmethod
        def confirm(deliveries: int) -> None:
            if deliveries == 1:
                rq.crash()

    def charge(job: Job) -> None:
        charges.append(job.deliveries)
        try:
            Bank.confirm(job.deliveries)
        except Exception:  # noqa: BLE001  # what many an application does
            pytest.fail("nothing is caught by the dead")

    job_id = rq.push("payments", "charge")
    first = rq.drain("payments", charge)
    between = rq.get(job_id)
    second = rq.drain("payments", charge, within=DAY)

    assert first == {"crashed": 1}
    assert (between.state, between.history) == ("active", ())
    assert second == {"completed": 1}
    assert charges == [1, 2], "charged twice: what `ctx.token` is for"
    assert [line.outcome for line in rq.get(job_id).history] == ["stalled", "completed"]
    assert rq.failures == []


def test_effects_show_what_a_recovered_run_did_twice(rq: VirtualQueues) -> None:
    def charge(job: Job, ctx: Context) -> None:
        ctx.effect("charged card")
        if job.deliveries == 1:
            rq.crash()
        ctx.effect("sent receipt")

    job_id = rq.push("payments", "charge")
    rq.drain("payments", charge, within=DAY)

    assert rq.effects == [
        Effect(job_id, "charged card", 1),
        Effect(job_id, "charged card", 2),
        Effect(job_id, "sent receipt", 2),
    ]


def test_rq_crash_stands_in_for_any_function(rq: VirtualQueues) -> None:
    with pytest.raises(Crash):
        rq.crash("charge", amount=3)


def test_what_a_handler_raised_can_be_looked_at_or_raised(rq: VirtualQueues) -> None:
    def send(job: Job) -> None:
        raise KeyError(job.name)

    first, second = rq.push("emails", "first"), rq.push("emails", "second")

    with pytest.raises(KeyError, match="first"):
        rq.drain("emails", send, raises=True)

    assert [failure.job.id for failure in rq.failures] == [first]
    assert rq.get(first).attempt == 1, "it was charged before it was raised"
    assert rq.get(second).state == "waiting"
    with pytest.raises(AssertionError, match=r"expected no run to raise; 1 did:\n  emails/first None: KeyError"):
        rq.assert_no_failures()


def test_outcomes_of_rqlab_are_no_failures(rq: VirtualQueues) -> None:
    def send(job: Job) -> None:
        raise RetryAfter(5) if job.deliveries == 1 else DeadLetter("no such address")

    rq.push("emails", "welcome")
    rq.drain("emails", send, within=60, raises=True)

    rq.assert_no_failures()
    assert [job.last_error for job in rq.get_dlq_jobs("emails")] == ["no such address"]


def test_a_job_that_is_due_again_and_again_is_told_of(rq: VirtualQueues, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "MOST_STEPS", 50)
    rq.push("emails", "again")

    with pytest.raises(RuntimeError, match=r"after 50 instants: something is due again and again"):
        rq.drain("emails", lambda job: rq.push("emails", "again", delay=0.001), within=DAY)


def test_a_worker_of_an_application_runs_while_time_passes(rq: VirtualQueues) -> None:
    ran = []

    async def lifespan() -> None:
        async with rq.worker(["emails", "reports"], lambda job: ran.append(job.name)):
            rq.push("emails", "now")
            rq.push("reports", "later", delay=10)
            rq.advance(0)
            assert ran == ["now"]
            rq.advance(10)

    asyncio.run(lifespan())
    rq.push("emails", "after")
    rq.advance(60)

    assert ran == ["now", "later"]


def test_run_worker_returns_when_nothing_is_due(rq: VirtualQueues) -> None:
    rq.push("emails", "welcome")

    rq.run_worker("emails", lambda job: None, concurrency=4)

    assert rq.counts("emails").completed == 1


# Getting hold of what the application opens.


def test_an_application_that_opens_its_own_queues_gets_these(rq: VirtualQueues, tmp_path: Path) -> None:
    def sign_up(address: str) -> None:
        with rqlab.open(tmp_path / "jobs", "buffered", stall_timeout=5, retention=rqlab.Retention(completed=60)) as own:
            own.push("emails", "welcome", {"to": address})

    sign_up("ada@example.org")

    rq.assert_pushed("emails", "welcome", {"to": "ada@example.org"}, count=1)
    assert rqlab.memory() is rq
    assert rq.stall_timeout == 5
    assert not (tmp_path / "jobs").exists()
    rq.drain("emails", lambda job: None)
    rq.advance(DAY)
    assert rq.jobs() == [], "the application's own retention"


def test_open_is_as_it_was_after_the_block_and_mistakes_are_those_of_the_real_one() -> None:
    real = rqlab.open, rqlab.memory
    with testing.queues():
        with pytest.raises(TypeError, match="unexpected keyword argument 'retension'"):
            rqlab.open("jobs", retension=3)  # type: ignore[call-arg]
        with pytest.raises(ValidationError, match="durability"):
            rqlab.open("jobs", "sturdy")
    with testing.queues(stands_in=False):
        left_alone = rqlab.open, rqlab.memory

    assert (rqlab.open, rqlab.memory) == left_alone == real


def test_after_the_block_the_queues_are_closed() -> None:
    with testing.queues() as rq:
        rq.push("emails", "welcome")

    with pytest.raises(rqlab.StoreError, match="closed"):
        rq.push("emails", "welcome")


# What was pushed.


def test_a_push_is_found_by_what_it_was_pushed_with(rq: VirtualQueues) -> None:
    rq.push(
        "emails", "welcome", {"to": "ada", "lang": "en"}, priority=5, tags=["vip"], delay=60, metadata={"by": "web"}
    )
    rq.push("emails", "welcome", {"to": "bob", "lang": "en"})
    rq.drain("emails", lambda job: None)

    (found,) = rq.assert_pushed("emails", "welcome", has={"to": "ada"}, priority=5, tags=["vip"], delay=60)
    assert found.metadata == {"by": "web"}
    assert len(rq.assert_pushed("emails", has={"lang": "en"}, count=2)) == 2
    rq.assert_pushed("emails", data={"to": "bob", "lang": "en"}, count=1)
    rq.assert_not_pushed("emails", "goodbye")
    rq.assert_not_pushed("reports")
    assert [job.data["to"] for job in rq.pushed("emails", "welcome")] == ["ada", "bob"]
    rq.forget_pushed()
    rq.assert_not_pushed("emails")


def test_a_missing_push_shows_what_was_pushed_instead_the_nearest_first(rq: VirtualQueues) -> None:
    rq.push("reports", "daily")
    rq.push("emails", "welcome", {"to": "bob"})

    with pytest.raises(AssertionError) as caught:
        rq.assert_pushed("emails", "welcome", has={"to": "ada"}, priority=5)

    assert str(caught.value).splitlines() == [
        "expected at least one job of queue='emails', name='welcome', priority=5, has={'to': 'ada'} to be pushed; "
        "found 0",
        "pushed were, the nearest first:",
        "  emails/welcome {'to': 'bob'}: priority 0, not 5; data['to'] 'bob', not 'ada'",
        "  reports/daily None: queue 'reports', not 'emails'; name 'daily', not 'welcome'; priority 0, not 5; "
        "data['to'] None, not 'ada'",
    ]


def test_a_push_too_many_shows_itself(rq: VirtualQueues) -> None:
    rq.push("emails", "welcome", "x" * 200)

    with pytest.raises(AssertionError) as caught:
        rq.assert_not_pushed("emails", "welcome")

    assert "expected no job of queue='emails', name='welcome' to be pushed; found 1" in str(caught.value)
    assert "…: this is one" in str(caught.value)


def test_nothing_pushed_is_said(rq: VirtualQueues) -> None:
    with pytest.raises(AssertionError, match="found 0\nnothing was pushed"):
        rq.assert_pushed("emails", count=2)


def test_a_field_that_no_job_has_is_a_mistake_of_the_test(rq: VirtualQueues) -> None:
    with pytest.raises(ValidationError, match="expected fields of Job; got prioritty"):
        rq.assert_pushed("emails", prioritty=3)


# The plugin.

A_TEST = """
import sys
import rqlab

def test_application(rq):
    with rqlab.open("nowhere") as own:
        own.push("emails", "welcome", {"to": "ada"}, delay=3600)
    rq.assert_pushed("emails", "welcome", {"to": "ada"}, delay=3600)
    assert rq.drain("emails", lambda job: None, within=3600) == {"completed": 1}
    assert not {"pandas", "matplotlib", "ipywidgets"} & sys.modules.keys()
"""


def pytest_says(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pytest_rqlab", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=100)


def test_the_fixture_rq_is_there_without_an_import(tmp_path: Path) -> None:
    (tmp_path / "test_application.py").write_text(A_TEST)

    said = pytest_says(tmp_path)

    assert said.returncode == 0, said.stdout + said.stderr
    assert "queues whose time passes only when the test says so" in pytest_says(tmp_path, "--fixtures").stdout.lower()


def test_the_plugin_costs_nothing_until_a_test_asks_for_rq() -> None:
    code = (
        "import pytest, sys; before = set(sys.modules); import pytest_rqlab; print(sorted(set(sys.modules) - before))"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout

    assert said.strip() == "['pytest_rqlab']"
