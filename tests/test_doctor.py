"""What doctor must notice, what it must only note, and that it changes nothing."""

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rqlab
from rqlab import clock, doctor
from rqlab.cli import app
from rqlab.doctor import Finding, Verdict
from rqlab.errors import StoreError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A directory with jobs in every state, in two queues."""
    path = tmp_path / "jobs"
    with rqlab.open(path) as rq:
        for number in range(20):
            rq.push("emails", "send", number)
        rq.push("emails", "send", delay=3600)
        rq.push("reports", "weekly", "x" * 10_000)
        active, done, failed = rq.pull("emails", 3)
        rq.ack(done)
        rq.fail(failed, rqlab.DeadLetter("no"))
        rq.cancel(rq.jobs("emails", state="waiting")[0].id)
        assert active.lease_until is not None
    return path


def examined(path: Path, now: int | None = None) -> dict[str, Finding]:
    return {finding.check: finding for finding in doctor.examine(path, now or clock.now())}


def tamper(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path / "cache.db")) as connection, connection:
        assert connection.execute(statement, values).rowcount > 0


def test_a_healthy_directory_is_healthy_and_every_check_speaks(path: Path) -> None:
    findings = doctor.examine(path, clock.now())

    assert doctor.is_healthy(findings)
    assert [finding.check for finding in findings] == ["sqlite", "file system", "fsync", *doctor.CHECKS]
    assert all(finding.says for finding in findings)
    assert examined(path)["counts"].found == {"queues": 2, "jobs": 22, "differing": [], "jobs_in_no_queue": 0}


def test_a_counter_that_is_wrong_is_found(path: Path) -> None:
    with closing(sqlite3.connect(path / "cache.db")) as connection:
        (value,) = connection.execute("SELECT value FROM Cache WHERE key = 'queue/emails'").fetchone()
    counters = json.loads(value)
    tamper(
        path,
        "UPDATE Cache SET value = ? WHERE key = 'queue/emails'",
        json.dumps({**counters, "waiting": counters["waiting"] + 1}).encode(),
    )

    found = examined(path)["counts"]

    assert found.verdict is Verdict.WRONG
    assert found.found["differing"] == [{"queue": "emails", "state": "waiting", "counter": 17, "recounted": 16}]
    assert "emails waiting: 16, not 17" in found.says


@pytest.mark.parametrize(
    ("shelf", "state"),
    [
        ("ready/emails/", "waiting"),
        ("later/emails/", "delayed"),
        ("leased/emails/", "active"),
        ("done/completed/emails/", "completed"),
        ("done/dlq/emails/", "dlq"),
        ("done/cancelled/emails/", "cancelled"),
    ],
)
def test_a_job_that_vanished_is_missed_in_every_state(path: Path, shelf: str, state: str) -> None:
    tamper(path, "DELETE FROM Cache WHERE tag = (SELECT min(tag) FROM Cache WHERE tag GLOB ?)", f"{shelf}*")

    found = examined(path)["counts"]

    assert found.verdict is Verdict.WRONG
    assert [(each["queue"], each["state"]) for each in found.found["differing"]] == [("emails", state)]


def test_jobs_of_a_queue_without_counters_are_found(path: Path) -> None:
    tamper(path, "DELETE FROM Cache WHERE key = 'queue/reports'")

    found = examined(path)["counts"]

    assert found.verdict is Verdict.WRONG
    assert found.found["jobs_in_no_queue"] == 1


def test_the_count_is_of_one_instant_however_busy_the_writers_are(tmp_path: Path) -> None:
    stop = threading.Event()
    with rqlab.open(tmp_path) as rq:

        def write() -> None:
            while not stop.is_set():
                rq.push_many("emails", [{"name": "send"}] * 50)
                rq.ack_many([(job, None) for job in rq.pull("emails", 50)])

        writer = threading.Thread(target=write)
        writer.start()
        try:
            findings = [examined(tmp_path)["counts"] for _ in range(40)]
        finally:
            stop.set()
            writer.join()

    assert [finding.says for finding in findings if finding.verdict is not Verdict.FINE] == []
    assert findings[-1].found["jobs"] > findings[0].found["jobs"]


def test_a_damaged_file_is_wrong(path: Path) -> None:
    with (path / "cache.db").open("r+b") as file:
        file.seek(4096 * 2)
        file.write(b"\xff" * 4096 * 3)

    result = CliRunner().invoke(app, ["doctor", str(path)])

    assert result.exit_code == 1
    assert "WRONG" in result.stdout
    assert "Traceback" not in result.output


def test_a_file_that_is_no_database_is_wrong(path: Path) -> None:
    (path / "cache.db").write_bytes(b"no database at all " * 1000)

    result = CliRunner().invoke(app, ["doctor", str(path), "--json"])

    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["is_healthy"] is False
    assert [check["check"] for check in document["checks"] if check["verdict"] == "wrong"] == ["file"]


def test_a_directory_of_a_newer_rqlab_is_wrong_and_says_what_to_do(path: Path) -> None:
    tamper(path, "UPDATE Cache SET value = ? WHERE key = 'rqlab/format'", b"99")

    assert examined(path)["file"].verdict is Verdict.WRONG
    assert "upgrade rqlab" in examined(path)["file"].says


def test_a_file_that_cannot_be_opened_is_a_finding_beside_what_lies_around_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise StoreError(f"cannot read {path}: attempt to write a readonly database")

    monkeypatch.setattr(doctor, "ReadOnlyStore", refuse)

    findings = examined(path)

    assert list(findings) == ["sqlite", "file system", "fsync", "file"]
    assert findings["file"].verdict is Verdict.WRONG
    assert "attempt to write a readonly database" in findings["file"].says


def test_settings_that_somebody_changed_are_wrong(path: Path) -> None:
    tamper(path, "UPDATE Settings SET value = 'least-recently-stored' WHERE key = 'eviction_policy'")

    found = examined(path)["settings"]

    assert found.verdict is Verdict.WRONG
    assert "eviction_policy is 'least-recently-stored', expected 'none'" in found.says


def test_stored_retention_is_told(tmp_path: Path) -> None:
    with rqlab.open(tmp_path, retention=rqlab.Retention(completed=86_400, dlq=None)):
        pass

    found = examined(tmp_path)["settings"]

    assert found.found["retention_seconds"] == {"completed": 86_400.0, "cancelled": 604_800.0, "dlq": None}
    assert "completed 1 d" in found.says
    assert "dlq for ever" in found.says


def test_runs_past_due_are_noted_with_what_to_do_and_are_not_wrong(path: Path) -> None:
    findings = examined(path, clock.now() + 60_000)

    assert findings["leases"].verdict is Verdict.NOTE
    assert findings["leases"].found["past_due"] == 1
    assert 30 <= findings["leases"].found["longest_seconds"] < 60
    assert "Start a worker" in findings["leases"].says
    assert doctor.is_healthy(list(findings.values()))


def test_a_run_just_past_due_is_left_to_housekeeping(path: Path) -> None:
    assert examined(path, clock.now() + 31_000)["leases"].verdict is Verdict.FINE


def test_free_pages_are_noted_with_what_gives_them_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MUCH_FREE_BYTES", 0)
    with rqlab.open(path) as rq:
        rq.push_many("bulk", [{"name": "x", "data": "x" * 50_000, "remove_on_complete": True}] * 50)
        rq.drain("bulk", lambda job: None)

    found = examined(path)["space"]

    assert found.verdict is Verdict.NOTE
    assert found.found["free_bytes"] > found.found["file_bytes"] / 2
    assert "vacuum()" in found.says


def test_a_large_log_is_noted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LARGE_WAL_BYTES", 1)
    with rqlab.open(path) as rq:
        rq.push("emails", "send")

        found = examined(path)["space"]

    assert found.verdict is Verdict.NOTE
    assert found.found["wal_bytes"] > 1


@pytest.mark.parametrize(("version", "verdict"), [("3.51.2", Verdict.NOTE), ("3.51.3", Verdict.FINE)])
def test_an_sqlite_with_the_wal_reset_bug_is_noted(
    version: str, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "SQLITE_VERSION", version)

    assert doctor.sqlite().verdict is verdict
    assert doctor.sqlite().found == {"version": version}


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "tmpfs", None])
def test_a_file_system_that_cannot_keep_the_promise_is_noted(
    kind: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "file_system", lambda path: kind)

    assert doctor.disk(tmp_path).verdict is Verdict.NOTE
    assert doctor.disk(tmp_path).found == {"type": kind, "is_network": kind in ("nfs4", "cifs")}


def test_fsync_is_measured_and_told_as_a_median(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.machine, "syncs", lambda path: [0.002, 0.004, 0.1])

    found = doctor.fsync(tmp_path)

    assert found.verdict is Verdict.FINE
    assert found.found == {"median_seconds": 0.004, "least_seconds": 0.002, "most_seconds": 0.1, "samples": 3}
    assert "4 ms" in found.says
    assert "250 times a second" in found.says


def test_an_fsync_faster_than_any_disk_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.machine, "syncs", lambda path: [0.000_001] * 21)

    assert doctor.fsync(tmp_path).verdict is Verdict.NOTE
    assert "a power cut may lose jobs" in doctor.fsync(tmp_path).says


def test_where_nothing_can_be_written_fsync_is_not_measured_and_that_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.machine.tempfile, "TemporaryFile", refuse)

    assert examined(path)["fsync"].found == {"median_seconds": None}
    assert "not measured" in examined(path)["fsync"].says
    assert "Permission denied" in examined(path)["fsync"].says


def test_doctor_changes_nothing_in_a_directory_in_use(path: Path) -> None:
    with rqlab.open(path) as rq:
        rq.push("emails", "send")
        before = {file.name: file.read_bytes() for file in path.iterdir() if not file.name.endswith("-shm")}
        jobs = rq.jobs()

        examined(path)

        assert {file.name: file.read_bytes() for file in path.iterdir() if not file.name.endswith("-shm")} == before
        assert rq.jobs() == jobs


def test_doctor_makes_no_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected a directory that rqlab has made"):
        doctor.examine(tmp_path / "none", clock.now())

    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_a_line_a_check_and_exits_0_when_healthy(path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", str(path)])

    assert result.exit_code == 0
    assert [line.split()[1] for line in result.stdout.splitlines()[:-1]] == [
        *("sqlite", "file", "fsync"),
        *doctor.CHECKS,
    ]
    assert result.stdout.splitlines()[-1] == "healthy"


def test_the_document_has_every_check(path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", str(path), "--json"])

    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["path"] == str(path)
    assert document["is_healthy"] is True
    assert {check["check"] for check in document["checks"]} == {"sqlite", "file system", "fsync", *doctor.CHECKS}
    assert all(set(check) == {"check", "verdict", "says", "found"} for check in document["checks"])
