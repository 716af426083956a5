"""Schedules in the queue: housekeeping fires them, once a tick, whatever crashes. The rules of ticks: test_schedule."""

import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import START, Wall

import rqlab
from rqlab.errors import ScheduleNotFound
from rqlab.job import State


def jobs(rq: rqlab.Queues, queue: str = "q") -> list[rqlab.Job]:
    return rq.jobs(queue, limit=10_000)


def keep_house(rq: rqlab.Queues, wall: Wall, seconds: int) -> None:
    """A tick every second."""
    for _ in range(seconds):
        wall.advance(1)
        rq.tick()


def only(rq: rqlab.Queues) -> rqlab.Schedule:
    (schedule,) = rq.schedules()
    return schedule


def test_an_interval_pushes_its_first_job_after_one_interval(wall: Wall, rq: rqlab.Queues) -> None:
    rq.schedule("report", "q", "make", {"of": "day"}, every=10)

    keep_house(rq, wall, 9)
    assert jobs(rq) == []
    keep_house(rq, wall, 1)

    (job,) = jobs(rq)
    assert (job.name, job.data, job.state) == ("make", {"of": "day"}, State.WAITING)


def test_with_first_now_the_first_job_is_pushed_at_the_next_tick(wall: Wall, rq: rqlab.Queues) -> None:
    rq.schedule("report", "q", "make", every=10, first="now")

    rq.tick()
    assert len(jobs(rq)) == 1
    keep_house(rq, wall, 10)

    assert len(jobs(rq)) == 2


def test_a_cron_line_pushes_at_its_matches_in_its_zone(wall: Wall, rq: rqlab.Queues) -> None:
    rq.schedule("report", "q", "make", cron="30 5 * * *", timezone="Asia/Kolkata")  # 00:00 UTC

    wall.advance(86_400 - 1)
    rq.tick()
    assert jobs(rq) == []
    wall.advance(1)
    rq.tick()

    assert len(jobs(rq)) == 1
    assert only(rq).last_at == START + 86_400_000
    assert only(rq).next_at == START + 2 * 86_400_000


def test_intervals_do_not_drift_though_housekeeping_is_late(wall: Wall, rq: rqlab.Queues) -> None:
    rq.schedule("report", "q", "make", every=10)
    for _ in range(20):
        wall.advance(10.7)
        rq.tick()

    assert (only(rq).last_at - START) % 10_000 == 0
    assert len(jobs(rq)) == 20


def test_a_schedule_fires_once_a_tick_however_often_housekeeping_looks(wall: Wall, rq: rqlab.Queues) -> None:
    rq.schedule("report", "q", "make", every=10)
    wall.advance(10)

    for _ in range(5):
        rq.tick()

    assert len(jobs(rq)) == 1


def test_a_tick_is_not_fired_again_after_the_wall_clock_went_back(wall: Wall, rq: rqlab.Queues) -> None:
    rq.schedule("report", "q", "make", every=10)
    keep_house(rq, wall, 30)

    wall.advance(-25)
    keep_house(rq, wall, 25)
    assert len(jobs(rq)) == 3
    keep_house(rq, wall, 10)

    assert len(jobs(rq)) == 4


@pytest.mark.parametrize(("catch_up", "made_up_for"), [("one", 1), ("all", 12), ("none", 0)])
def test_what_was_missed_while_nobody_kept_house_is_made_up_for_as_asked(
    wall: Wall, rq: rqlab.Queues, catch_up: str, made_up_for: int
) -> None:
    rq.schedule("report", "q", "make", every=600, catch_up=catch_up)
    wall.advance(12 * 600 + 300)  # down for two hours, and up half-way between two ticks

    rq.tick()
    assert len(jobs(rq)) == made_up_for
    wall.advance(300)
    rq.tick()

    assert len(jobs(rq)) == made_up_for + 1, "the next tick comes at its time"
    assert only(rq).executions == made_up_for + 1


def test_a_tick_that_is_a_little_late_is_not_missed(wall: Wall, rq: rqlab.Queues) -> None:
    rq.schedule("report", "q", "make", every=600, catch_up="none")

    wall.advance(605)
    rq.tick()

    assert len(jobs(rq)) == 1


@pytest.mark.parametrize("catch_up", ["one", "all"])
def test_a_schedule_ends_after_max_executions(wall: Wall, rq: rqlab.Queues, catch_up: str) -> None:
    rq.schedule("report", "q", "make", every=10, max_executions=3, catch_up=catch_up)

    for _ in range(10):
        wall.advance(25)
        rq.tick()

    schedule = only(rq)
    assert (len(jobs(rq)), schedule.executions, schedule.next_at, schedule.is_finished) == (3, 3, None, True)


def test_registering_the_same_schedule_again_changes_nothing(wall: Wall, rq: rqlab.Queues) -> None:
    asked: dict[str, Any] = {"every": 10, "priority": 3, "tags": ["a"], "max_executions": 5}
    first = rq.schedule("report", "q", "make", {"x": 1}, **asked)
    keep_house(rq, wall, 25)
    before = only(rq)

    again = rq.schedule("report", "q", "make", {"x": 1}, **asked)

    assert again == before == only(rq)
    assert (before.executions, before.anchor_at) == (2, first.anchor_at)
    keep_house(rq, wall, 5)
    assert len(jobs(rq)) == 3, "its ticks stay where they were"


def test_registering_a_paused_or_finished_schedule_again_does_not_start_it(wall: Wall, rq: rqlab.Queues) -> None:
    rq.schedule("paused", "q", "make", every=10)
    rq.pause_schedule("paused")
    rq.schedule("finished", "q", "make", every=10, max_executions=1)
    keep_house(rq, wall, 20)

    rq.schedule("paused", "q", "make", every=10)
    rq.schedule("finished", "q", "make", every=10, max_executions=1)
    keep_house(rq, wall, 30)

    assert len(jobs(rq)) == 1


def test_another_schedule_of_the_same_name_replaces_it(wall: Wall, rq: rqlab.Queues) -> None:
    rq.schedule("report", "q", "make", every=10)
    wall.advance(5)
    rq.schedule("report", "other", "make", every=20)

    keep_house(rq, wall, 20)

    assert (len(jobs(rq)), len(jobs(rq, "other"))) == (0, 1)
    assert len(rq.schedules()) == 1


def test_threads_that_register_the_same_schedule_at_once_make_one(wall: Wall, rq: rqlab.Queues) -> None:
    threads = [threading.Thread(target=rq.schedule, args=("s", "q", "make"), kwargs={"every": 10}) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    keep_house(rq, wall, 10)

    assert len(jobs(rq)) == 1


def test_a_paused_schedule_pushes_nothing_and_does_not_make_up_for_it(wall: Wall, rq: rqlab.Queues) -> None:
    rq.schedule("report", "q", "make", every=10, catch_up="all")
    keep_house(rq, wall, 15)
    rq.pause_schedule("report")
    keep_house(rq, wall, 50)
    assert only(rq).paused
    assert len(jobs(rq)) == 1

    rq.resume_schedule("report")  # at 65 s
    keep_house(rq, wall, 4)
    assert len(jobs(rq)) == 1
    keep_house(rq, wall, 1)

    assert len(jobs(rq)) == 2
    assert only(rq).last_at == START + 70_000


def test_an_unscheduled_schedule_is_gone_and_its_jobs_stay(wall: Wall, rq: rqlab.Queues) -> None:
    rq.schedule("report", "q", "make", every=10)
    keep_house(rq, wall, 10)
    rq.unschedule("report")

    keep_house(rq, wall, 20)

    assert rq.schedules() == []
    assert len(jobs(rq)) == 1


@pytest.mark.parametrize("what", ["pause_schedule", "resume_schedule", "unschedule"])
def test_a_schedule_that_is_not_there_is_named_beside_those_that_are(wall: Wall, rq: rqlab.Queues, what: str) -> None:
    rq.schedule("weekly", "q", "make", every=10)

    with pytest.raises(ScheduleNotFound, match=r"'report'.*weekly"):
        getattr(rq, what)("report")


def test_scheduled_jobs_have_the_push_options_of_their_schedule(wall: Wall, rq: rqlab.Queues) -> None:
    options: dict[str, Any] = {"priority": 7, "max_attempts": 9, "ttl": 60.0, "timeout": 5.0, "metadata": {"a": 1}}
    rq.schedule("report", "q", "make", every=10, delay=30, tags=["x", "y"], backoff="linear", **options)

    keep_house(rq, wall, 10)

    (job,) = jobs(rq)
    assert {name: getattr(job, name) for name in options} == options
    assert (job.tags, job.backoff, job.state, job.delay_until) == (("x", "y"), "linear", State.DELAYED, START + 40_000)
    assert job.expires_at == START + 100_000


def test_every_scheduled_job_has_an_id_of_its_own(wall: Wall, rq: rqlab.Queues) -> None:
    rq.schedule("report", "q", "make", every=1, catch_up="all")
    wall.advance(1_200)

    rq.tick()

    ids = [job.id for job in jobs(rq)]
    assert len(set(ids)) == 1_200
    assert ids == sorted(ids)


def test_while_a_scheduled_job_holds_its_unique_key_its_schedule_pushes_no_second(wall: Wall, rq: rqlab.Queues) -> None:
    rq.schedule("report", "q", "make", every=10, unique_key="report", catch_up="all")
    keep_house(rq, wall, 45)
    assert len(jobs(rq)) == 1

    rq.drain("q", lambda job: "done")
    keep_house(rq, wall, 10)

    assert Counter(job.state for job in jobs(rq)) == {State.COMPLETED: 1, State.WAITING: 1}


def test_a_schedule_outlives_the_process_that_registered_it(wall: Wall, tmp_path: Path) -> None:
    with rqlab.open(tmp_path) as rq:
        rq.schedule("report", "q", "make", every=10)
        keep_house(rq, wall, 10)

    with rqlab.open(tmp_path) as rq:
        keep_house(rq, wall, 20)

        assert len(jobs(rq)) == 3
        assert only(rq).executions == 3


def test_several_who_keep_house_fire_each_tick_once(wall: Wall, tmp_path: Path) -> None:
    with rqlab.open(tmp_path) as one, rqlab.open(tmp_path) as two:
        one.schedule("report", "q", "make", every=1, catch_up="all")
        for _ in range(20):
            wall.advance(3)
            threads = [threading.Thread(target=rq.tick) for rq in (one, two, one, two)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        assert len(jobs(one)) == only(one).executions == 60


def test_a_due_schedule_wakes_a_worker(tmp_path: Path) -> None:
    done = threading.Event()
    with rqlab.memory(tick_interval=0.01) as rq:
        with rq.worker("q", lambda job: done.set()):
            rq.schedule("now", "q", "make", every=3600, first="now")

            assert done.wait(20)


def run_killed(what: str, directory: Path) -> list[dict[str, Any]]:
    script = Path(__file__).parent / "killed_housekeeping.py"
    ran = subprocess.run(
        [sys.executable, str(script), what, str(directory)], capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_a_housekeeper_killed_between_any_two_statements_leaves_no_tick_undone_and_none_done_twice(
    tmp_path: Path,
) -> None:
    outcomes = run_killed("each", tmp_path)

    assert [outcome["killed"] for outcome in outcomes] == [True] * (len(outcomes) - 1) + [False]
    assert len(outcomes) > 20, "it was killed at each of its statements"
    assert {outcome["left"] for outcome in outcomes} == {1, 7}, "the pushes and their bookkeeping are one transaction"
    for outcome in outcomes:
        assert outcome["waiting"] == {"all": 5, "cron": 1, "delayed": 1}
        assert outcome["schedules"] == {"all": [5, None], "cron": [1, START + 120_000]}


def test_one_run_a_tick_while_one_housekeeper_lives_and_others_are_killed_beside_it(tmp_path: Path) -> None:
    (outcome,) = run_killed("beside", tmp_path)

    assert outcome["kills"] >= 20
    assert outcome["jobs"] == outcome["executions"] == outcome["ticks"] >= 5
