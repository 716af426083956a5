"""A directory that any version has ever written opens in this one, and works; so does a measurement."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest

import rqlab
from fixtures import stories
from rqlab.engine import LISTED
from rqlab.measurement.result import FORMAT as RESULT_FORMAT
from rqlab.storage.place import LAST, shelf

QUEUES = Path(__file__).parent.parent / "fixtures" / "queues"
RESULTS = Path(__file__).parent.parent / "fixtures" / "results"
VERSIONS = sorted(path.name for path in QUEUES.glob("v*") if path.is_dir())


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def directory(version: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(QUEUES / version, tmp_path / version))


def test_there_is_a_fixture_of_the_format_that_is_written() -> None:
    assert f"v{rqlab.storage.FORMAT}" in VERSIONS


def test_an_old_directory_holds_what_it_held(version: str, directory: Path) -> None:
    expected = json.loads((QUEUES / f"{version}.json").read_text())

    with rqlab.open(directory) as rq:
        found = {job.id: json.loads(msgspec.json.encode(job)) for job in rq.jobs(limit=1_000)}
        counts, paused = msgspec.to_builtins(rq.counts()), rq.paused()
        schedules = [schedule.name for schedule in rq.schedules()]

    assert found == expected["jobs"]
    assert (counts, paused, schedules) == (expected["counts"], expected["paused"], expected["schedules"])


def test_an_old_directory_has_a_job_in_every_state(version: str, directory: Path) -> None:
    with rqlab.open(directory, read_only=True) as rq:
        assert {job.state for job in rq.jobs(limit=1_000)} == set(rqlab.State)


def test_the_counters_of_an_old_directory_equal_a_recount(version: str, directory: Path) -> None:
    with rqlab.open(directory) as rq:
        for queue in rq.queues():
            counts = rq.counts(queue)
            for state in LISTED:
                start = shelf(queue, state)
                assert rq._store.count(start, start + LAST) == getattr(counts, state), (queue, state)


def test_an_old_directory_works_on(version: str, directory: Path) -> None:
    with rqlab.open(directory) as rq:
        with pytest.raises(rqlab.DuplicateKey):
            rq.push("waiting", "again", unique_key="invoice/7")
        (dead,) = rq.get_dlq_jobs("finished")
        rq.requeue(dead.id)
        rq.resume("paused")
        rq.tick()
        runs = rq.drain(["waiting", "paused", "finished"], lambda job: len(str(job.data)))

        assert runs["completed"] == 7
        assert rq.push("waiting", "again", unique_key="invoice/7")


def test_there_is_a_reference_measurement_of_the_format_that_is_written() -> None:
    assert (RESULTS / f"v{RESULT_FORMAT}.json").exists()


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_an_old_measurement_loads_and_plots(path: Path, tmp_path: Path) -> None:
    measurement = rqlab.Measurement.load(path)
    measurement.plot().save(tmp_path / "tradeoff.png")
    measurement.save(tmp_path / "again.json")

    assert measurement.is_complete
    assert measurement.broken == []
    assert set(measurement.frame["callers"]) == {1, 10, 100}
    assert rqlab.Measurement.load(tmp_path / "again.json") == measurement
    assert (tmp_path / "tradeoff.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", stories.STORIES)
def test_a_kept_history_is_told_again_event_by_event(name: str) -> None:
    """Or the change is explained: python -m fixtures histories "why", which writes histories/CHANGES.md."""
    then = rqlab.SimulationResult.from_jsonl(stories.HISTORIES / f"{name}.jsonl")

    now = stories.told(name)

    assert now.ok, now.summary()
    assert now.hash == then.hash, stories.difference(then, now)
    assert now.plan == then.plan
    assert eval(then.replay_line, {"rqlab": rqlab}).hash == then.hash


def test_the_newest_reason_is_that_of_the_histories_that_are_kept() -> None:
    newest = next(line for line in stories.CHANGES.read_text().splitlines() if line.startswith("- "))

    assert newest.startswith(f"- `{stories.name_of(stories.kept())}` ")
    assert set(stories.kept()) == set(stories.STORIES)
