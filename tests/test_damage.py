"""A damaged entry holds up nothing but itself: the others go on, and the log says which it is."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Wall

import rqlab
from rqlab import doctor
from rqlab.errors import StoreCorrupt
from rqlab.job import State
from rqlab.storage.place import LAST, shelf

DAMAGE = b"{not a record"


@pytest.fixture
def rq(tmp_path: Path, wall: Wall) -> Iterator[rqlab.Queues]:
    with rqlab.open(tmp_path / "jobs", stall_timeout=30) as queues:
        yield queues


def damage(rq: rqlab.Queues, job_id: str) -> None:
    """What stands in the place of a job cannot be read any more; its place stays."""
    job = rq.get(job_id)
    (place,) = _places(rq, job)
    rq._store.write(lambda tx: tx.put_entry(job_id, DAMAGE, place))


def _places(rq: rqlab.Queues, job: rqlab.Job) -> list[str]:
    start = at = shelf(job.queue, job.state)
    found = []
    while (place := rq._store.first(at, start + LAST)) is not None:
        found.append(place)
        at = place + LAST
    return [place for place in found if place.endswith(job.id)]


def test_a_damaged_job_stops_no_heartbeat_of_the_others(rq: rqlab.Queues, wall: Wall) -> None:
    rq.push_many("q", [{"name": "n"}] * 3)
    jobs = rq.pull("q", 3)
    damage(rq, jobs[1].id)
    wall.advance(10)

    outcomes = rq._engine.heartbeat(jobs, wall.now)

    assert [type(outcome) for outcome in outcomes] == [rqlab.Job, StoreCorrupt, rqlab.Job]
    assert rq.get(jobs[2].id).lease_until == wall.now + 30_000


def test_a_worker_says_which_heartbeat_it_cannot_store_and_reports_its_other_runs(
    rq: rqlab.Queues, caplog: pytest.LogCaptureFixture
) -> None:
    ids = rq.push_many("q", [{"name": "n"}] * 3)

    def handler(job: rqlab.Job) -> None:
        if job.id == ids[1]:
            damage(rq, job.id)

    outcomes = rq.drain("q", handler)

    assert outcomes == {"completed": 2, "lost": 1}
    assert [rq.get(job_id).state for job_id in (ids[0], ids[2])] == [State.COMPLETED] * 2
    assert any(ids[1] in record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


def test_a_damaged_job_stops_no_recovery_of_the_others(
    rq: rqlab.Queues, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    rq.push_many("q", [{"name": "n"}] * 3)
    jobs = rq.pull("q", 3)
    damage(rq, jobs[0].id)
    wall.advance(31)

    rq.tick()

    assert [rq.get(job.id).attempt for job in jobs[1:]] == [1, 1]
    assert any(jobs[0].id in record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


def test_a_damaged_job_stops_no_promotion_and_no_expiry_of_the_others(rq: rqlab.Queues, wall: Wall) -> None:
    delayed = [rq.push("later", "n", delay=1) for _ in range(3)]
    mortal = [rq.push("mortal", "n", ttl=1) for _ in range(3)]
    damage(rq, delayed[0])
    damage(rq, mortal[0])
    wall.advance(2)

    rq.tick()

    assert [rq.get(job_id).state for job_id in delayed[1:]] == [State.WAITING] * 2
    assert [rq.get(job_id).state for job_id in mortal[1:]] == [State.DLQ] * 2


def test_a_damaged_schedule_stops_no_other_and_can_be_replaced_or_removed(
    rq: rqlab.Queues, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        rq.schedule(name, "q", name, every=10)
    place = f"due/{wall.now + 10_000:015d}/a"
    rq._store.write(lambda tx: tx.put_entry("schedule/a", DAMAGE, place))
    wall.advance(11)

    rq.tick()
    rq.tick()

    assert [job.name for job in rq.jobs("q")] == ["b"]
    said = [record for record in caplog.records if "'a'" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.WARNING]  # once, not at every tick
    assert [schedule.name for schedule in rq.schedules()] == ["b"]
    rq.unschedule("a")
    rq._store.write(lambda tx: tx.put_entry("schedule/a", DAMAGE, place))
    rq.schedule("a", "q", "a", every=10)
    assert [schedule.name for schedule in rq.schedules()] == ["a", "b"]


def test_the_doctor_names_what_cannot_be_read(rq: rqlab.Queues, wall: Wall) -> None:
    ids = rq.push_many("q", [{"name": "n"}] * 1_100)
    for job_id in (ids[0], ids[700]):
        damage(rq, job_id)
    rq.schedule("a", "q", "a", every=10)
    rq._store.write(lambda tx: tx.put_entry("schedule/a", DAMAGE, f"due/{wall.now + 10_000:015d}/a"))
    assert rq.path is not None

    (finding,) = (each for each in doctor.examine(rq.path, wall.now) if each.check == "records")

    assert finding.verdict is doctor.Verdict.WRONG
    assert finding.found == {"jobs": [ids[0], ids[700]], "schedules": ["a"]}
    assert ids[700] in finding.says


def test_a_queue_whose_counters_are_damaged_stops_no_other(
    rq: rqlab.Queues, wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    rq.push("a", "n", delay=1)
    sound = rq.push("b", "n", delay=1)
    rq.close()
    # Counters are kept in memory by whoever writes them, so the damage is there when the directory is opened.
    with rqlab.open(rq.path or "", stall_timeout=30) as again:
        again._store.write(lambda tx: tx.put_entry("queue/a", DAMAGE, "queue/a"))
        wall.advance(2)
        again.tick()

        assert again.get(sound).state is State.WAITING
        assert list(again.metrics()["queues"]) == ["b"]
        assert any("queue a" in record.getMessage() for record in caplog.records)


# In line: pulls go round it.


@pytest.fixture(params=["record", "data"])
def ruin(request: pytest.FixtureRequest) -> Callable[[rqlab.Queues, str], None]:
    """What can be damaged of a job: its record, or its large data."""
    if request.param == "record":
        return damage
    return lambda rq, job_id: rq._store.write(lambda tx: tx.delete_entry(f"payload/{job_id}"))


@pytest.mark.parametrize("delay", [None, 1])
def test_a_damaged_job_in_line_holds_up_none_behind_it(
    rq: rqlab.Queues,
    wall: Wall,
    delay: float | None,
    ruin: Callable[[rqlab.Queues, str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = [rq.push("q", "n", "x" * 5_000, delay=delay) for _ in range(5)]
    ruin(rq, ids[0])
    ruin(rq, ids[2])
    wall.advance(2)

    assert [job.id for job in rq.pull("q", 2)] == [ids[1], ids[3]]
    assert [job.id for job in rq.pull("q", 2)] == [ids[4]]
    assert rq.pull("q") == []
    said = [record.getMessage() for record in caplog.records if "is damaged" in record.getMessage()]
    assert [sum(job_id in line for line in said) for job_id in ids] == [1, 0, 1, 0, 0], "named once, not at every pull"
    assert rq.path is not None
    (finding,) = (each for each in doctor.examine(rq.path, wall.now) if each.check == "records")
    assert finding.found["jobs"] == sorted((ids[0], ids[2]))


def test_a_worker_goes_round_a_damaged_job_and_is_idle_at_the_end(rq: rqlab.Queues) -> None:
    ids = rq.push_many("q", [{"name": "n"}] * 4)
    damage(rq, ids[1])

    assert rq.drain("q", lambda job: None) == {"completed": 3}
    assert not rq._engine.has_due(["q"], 2**45), "or it would look again and again"


def test_the_age_of_the_line_is_read_past_damage(rq: rqlab.Queues, wall: Wall) -> None:
    ids = rq.push_many("q", [{"name": "n"}] * 2)
    wall.advance(5)
    damage(rq, ids[0])

    assert rq.metrics()["queues"]["q"]["oldest_waiting_seconds"] == 5.0


def test_hybrid_opens_beside_a_damaged_job_and_leaves_it_on_the_disk(
    rq: rqlab.Queues, caplog: pytest.LogCaptureFixture
) -> None:
    ids = rq.push_many("q", [{"name": "n"}] * 3)
    damage(rq, ids[1])
    rq.close()

    with rqlab.open(rq.path or "", "hybrid") as again:
        assert [job.id for job in again.pull("q", 3)] == [ids[0], ids[2]]
        with pytest.raises(StoreCorrupt):
            again.get(ids[1])
    assert any(ids[1] in record.getMessage() for record in caplog.records)
