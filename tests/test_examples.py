"""The examples run: a person's first copy of them must work."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

import rqlab

ROOT = Path(__file__).parent.parent
DEADLINE_SECONDS = 60.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "examples.fastapi_app:app", "--host", "127.0.0.1", "--port", str(port)],
        cwd=ROOT,
        env={**os.environ, "RQLAB_DIRECTORY": str(tmp_path / "jobs")},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _until(lambda: _answers(url))
        yield process, url
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(DEADLINE_SECONDS)


def test_the_web_application_runs_what_it_accepted(server: tuple[subprocess.Popen[bytes], str]) -> None:
    _, url = server

    accepted = httpx.post(f"{url}/emails", params={"to": "ada@example.org"})

    assert accepted.status_code == 202
    job_url = f"{url}/emails/{accepted.json()['id']}"
    _until(lambda: httpx.get(job_url).json()["state"] == "completed")
    assert httpx.get(job_url).json() == {
        "state": "completed",
        "progress": 50,
        "result": {"sent_to": "ada@example.org"},
    }
    assert httpx.get(f"{url}/emails/unknown").status_code == 404


def test_the_web_application_finishes_its_runs_at_sigterm_and_charges_nothing(
    server: tuple[subprocess.Popen[bytes], str], tmp_path: Path
) -> None:
    process, url = server
    ids = [httpx.post(f"{url}/emails", params={"to": f"{n}@example.org"}).json()["id"] for n in range(30)]

    process.send_signal(signal.SIGTERM)
    process.wait(DEADLINE_SECONDS)

    with rqlab.open(tmp_path / "jobs", read_only=True) as rq:
        jobs = [rq.get(job_id) for job_id in ids]
    assert {job.state for job in jobs} <= {rqlab.State.COMPLETED, rqlab.State.WAITING}
    assert [job.attempt for job in jobs] == [0] * 30


def test_a_web_application_that_was_killed_goes_on_where_it_stopped(
    server: tuple[subprocess.Popen[bytes], str], tmp_path: Path
) -> None:
    process, url = server
    ids = [httpx.post(f"{url}/emails", params={"to": f"{n}@example.org"}).json()["id"] for n in range(30)]

    process.kill()
    process.wait(DEADLINE_SECONDS)

    with rqlab.open(tmp_path / "jobs") as rq:
        assert rq.counts("emails").total == len(ids)


def test_the_threads_example_completes_every_job(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "threads.py"), str(tmp_path / "jobs")],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )

    assert run.returncode == 0, run.stderr
    assert "completed=100" in run.stdout


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/openapi.json").status_code == 200
    except httpx.TransportError:
        return False


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "not within a minute"
        time.sleep(0.02)
