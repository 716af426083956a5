"""Where acknowledged jobs are: what a kill -9 takes and what a power cut takes, in every mode, and its picture."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

import rqlab
from rqlab import charts


def unsynced(directory: Path) -> Iterator[int]:
    """A queue of a few lines, in the mode that SQLite's users are often advised to take."""
    connection = sqlite3.connect(directory / "queue.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE jobs (number)")
    for number in range(20):
        connection.execute("INSERT INTO jobs VALUES (?)", (number,))
        yield number
    connection.close()


def what_is_there(directory: Path) -> list[int]:
    with sqlite3.connect(directory / "queue.db") as connection:
        return [number for (number,) in connection.execute("SELECT number FROM jobs")]


@pytest.fixture(scope="module")
def where() -> rqlab.Whereabouts:
    return rqlab.whereabouts(queues={"unsynced": (unsynced, what_is_there)})


def test_each_mode_has_its_jobs_where_its_promise_says(where: rqlab.Whereabouts) -> None:
    assert where.lost("durable") == (0, 0)
    assert where.lost("memory") == (40, 40)
    for mode in ("buffered", "hybrid"):
        killed, cut = where.lost(mode)
        assert 0 < killed == cut < 40


def test_a_queue_that_does_not_sync_loses_nothing_at_a_kill_and_all_at_a_power_cut(where: rqlab.Whereabouts) -> None:
    assert where.lost("unsynced") == (0, 20)


def test_what_is_not_safe_is_the_newest(where: rqlab.Whereabouts) -> None:
    for _, row in where.frame.groupby("row"):
        safe = list(row.sort_values("job")["where"] == "disk")
        assert safe == sorted(safe, reverse=True)


def test_a_snapshot_makes_safe_what_was_there_when_it_was_taken() -> None:
    found = rqlab.whereabouts("hybrid", at=[0.5, 1.5, 2.4])

    assert [found.lost(f"hybrid, {at} s")[1] < sum(found.frame.row == f"hybrid, {at} s") for at in (0.5, 1.5, 2.4)] == [
        False, True, True,
    ]  # fmt: skip


def test_the_same_seed_gives_the_same_answer_and_another_one_another() -> None:
    modes = ("hybrid",)

    assert rqlab.whereabouts(modes, seed=3).spots == rqlab.whereabouts(modes, seed=3).spots
    assert len({rqlab.whereabouts(modes, seed=seed).spots for seed in range(4)}) > 1


def test_the_picture_says_in_words_what_each_crash_takes(where: rqlab.Whereabouts) -> None:
    bundle, metadata = where._repr_mimebundle_()

    assert bundle["image/png"].startswith(b"\x89PNG")
    assert "unsynced: of 20 jobs" in metadata["image/png"]["alt"]
    assert "kill -9 loses 0, a power cut 20" in repr(where)


def test_a_long_row_shows_its_newest_jobs_and_still_counts_all() -> None:
    found = rqlab.whereabouts("memory", jobs=500)
    chart = found.plot()

    assert "of 500 jobs 500 in the memory" in chart.alt
    assert len(chart.data) == 500
    assert len(chart.ax.patches) == 120


def test_what_cannot_be_asked_is_refused(where: rqlab.Whereabouts) -> None:
    with pytest.raises(rqlab.ValidationError, match="modes: expected some of 'durable'"):
        rqlab.whereabouts("redb")
    with pytest.raises(rqlab.ValidationError, match="jobs: expected"):
        rqlab.whereabouts(jobs=3)
    with pytest.raises(KeyError, match="no row 'redb'; there are: durable"):
        where.lost("redb")
    with pytest.raises(ValueError, match="where: expected one of disk"):
        charts.whereabouts([{"row": "a", "job": 1, "where": "moon"}])  # type: ignore[arg-type]
