"""Frames are tidy: a row a thing, types and categories that do not depend on what happens to be in them."""

from datetime import UTC, datetime

import pandas
import pytest

import rqlab
from rqlab import charts, frames
from rqlab.job import Delivery, Job, Outcome, State
from rqlab.lifecycle import Change, Event

NOW = 1_795_000_000_000


def a_job(number: int, **fields: object) -> Job:
    return Job(**{"id": f"job-{number}", "queue": "emails", "name": "send", "created_at": NOW + number} | fields)  # type: ignore[arg-type]


def line(delivery: int, started: int, ended: int, outcome: Outcome) -> Delivery:
    return Delivery(delivery, f"w{delivery}", NOW + started, NOW + ended, outcome)


TRIED = a_job(
    0, state=State.ACTIVE, deliveries=3, worker="w3", started_at=NOW + 9_000,
    history=(line(1, 1_000, 2_000, Outcome.FAILED), line(2, 4_000, 5_500, Outcome.STALLED)),
)  # fmt: skip


def test_an_attempt_is_a_row_also_while_it_runs() -> None:
    frame = frames.attempts([TRIED])

    assert frame.drop(columns=["ended"]).values.tolist() == [
        ["job-0", 1, "w1", 1.0, "failed", 1.0],
        ["job-0", 2, "w2", 4.0, "stalled", 2.0],
        ["job-0", 3, "w3", 9.0, "active", 3.5],
    ]
    assert frame["ended"].tolist()[:2] == [2.0, 5.5]
    assert frame["ended"].isna().tolist() == [False, False, True]


def test_attempts_of_many_jobs_stand_by_their_start() -> None:
    other = a_job(1, history=(line(1, 3_000, 3_100, Outcome.COMPLETED),))

    assert frames.attempts([other, TRIED])["started"].is_monotonic_increasing


def test_an_event_is_a_row_caused_by_the_one_before() -> None:
    changes = [
        Change(Event.PUSH, a_job(0), NOW),
        Change(Event.PUSH, a_job(1), NOW + 10),
        Change(Event.PULL, a_job(0, worker="w1"), NOW + 1_500),
        Change(Event.FAIL, a_job(0, last_error="ValueError: no\ntrace", history=TRIED.history[:1]), NOW + 2_000),
    ]

    frame = frames.events(changes)

    assert frame["at"].tolist() == [0.0, 0.01, 1.5, 2.0]
    assert frame["cause"].astype(object).where(frame["cause"].notna(), None).tolist() == [None, None, 0, 2]
    assert frame["worker"].tolist() == ["", "", "w1", "w1"]
    assert frame["detail"].tolist()[-1] == "ValueError: no"


@pytest.mark.parametrize("make", [frames.attempts, frames.events], ids=["attempts", "events"])
def test_categories_and_types_are_there_in_an_empty_frame(make: object) -> None:
    empty = make([])  # type: ignore[operator]
    full = frames.attempts([TRIED]) if make is frames.attempts else frames.events([Change(Event.PUSH, TRIED, NOW)])

    assert empty.dtypes.to_dict() == full.dtypes.to_dict()
    assert list(empty.columns) == list(full.columns)


def test_categories_have_all_their_values() -> None:
    assert set(frames.attempts([])["outcome"].cat.categories) == {*map(str, Outcome), "active"}
    assert set(frames.events([])["kind"].cat.categories) == set(map(str, Event))


def test_a_frame_carries_its_start_its_seed_and_its_replay_line() -> None:
    frame = frames.attempts([TRIED], seed=7, replay="rqlab.simulate(seed=7)")

    assert frame.attrs == {
        "since": datetime.fromtimestamp(NOW / 1000, UTC), "seed": 7, "replay": "rqlab.simulate(seed=7)",
    }  # fmt: skip


def test_modes_are_compared_side_by_side_in_their_order() -> None:
    frame = frames.compare([{"mode": "memory", "lost": 9}, {"mode": "durable", "lost": 0}], seed=3)

    assert frame.set_index("mode").loc["durable", "lost"] == 0
    assert list(frame["mode"].cat.categories) == ["memory", "durable"]
    assert frame.attrs["seed"] == 3
    with pytest.raises(ValueError, match="expected a mode in every row"):
        frames.compare([{"lost": 1}])


def test_a_real_queue_can_be_drawn() -> None:
    changes: list[Change] = []
    with rqlab.memory() as rq:
        rq.on_change(changes.append)
        for number in range(6):
            rq.push("emails", "send", number, max_attempts=2, backoff_delay=0)
        rq.drain("emails", lambda job: 1 // (job.data % 3))
        jobs = rq.jobs()

    told = frames.history(jobs, changes, [(jobs[0].created_at + 1, "worker crash", "w1")])

    assert len(told.attempts) == 4 + 2 * 2
    assert told.jobs["state"].value_counts()["dlq"] == 2
    assert "6 jobs (4 completed, 2 dlq); 8 runs on 1 worker (4 completed, 4 failed)" in charts.timeline(told).alt
    assert charts.backlog(told).data[["completed", "dlq"]].iloc[-1].tolist() == [4, 2]
    assert "at most 2 runs of one job" in charts.retries(told).alt


def test_nothing_can_be_drawn_too() -> None:
    told = frames.history([])

    assert isinstance(told.jobs, pandas.DataFrame)
    assert "0 jobs" in charts.timeline(told).alt


def test_ticks_shows_a_cron_line_through_the_skipped_hour() -> None:
    frame = frames.ticks("30 2 * * *", "Europe/Berlin", start="2026-03-28", count=3)

    assert [f"{at:%d %H:%M}" for at in frame["local"]] == ["28 02:30", "29 03:00", "30 02:30"]
    assert [f"{at:%d %H:%M}" for at in frame["utc"]] == ["28 01:30", "29 01:00", "30 00:30"]
    assert frame.attrs == {"cron": "30 2 * * *", "timezone": "Europe/Berlin"}


def test_ticks_refuses_what_cannot_tick() -> None:
    with pytest.raises(rqlab.ValidationError, match="cron: expected 5 fields"):
        frames.ticks("half past seven", start="2026-01-01")
    with pytest.raises(rqlab.ValidationError, match="timezone: expected"):
        frames.ticks("@daily", "Berlin", start="2026-01-01")
