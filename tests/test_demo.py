"""The walkthrough, with real processes; and that it would say so if the job were lost."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import rqlab
from rqlab import clock, demo
from rqlab.demo import Walkthrough
from rqlab.queues import Queues

LONG_SECONDS = 90.0  # for a whole walkthrough, on a busy machine


def start(tmp_path: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "rqlab", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )


def pids(timeline: str) -> set[int]:
    """The processes that the timeline names."""
    return {int(pid) for pid in re.findall(r"^ +\d+\.\d +(\d+)  ", timeline, re.MULTILINE)}


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_job_survives_kill_9_of_its_worker_with_no_ones_help(tmp_path: Path) -> None:
    process = start(tmp_path)
    out, err = process.communicate(timeout=LONG_SECONDS)

    assert (process.returncode, err) == (0, "")
    acts = [
        "worker 1 starts",
        "another process pushes the job",
        "worker 1 pulls it: active, delivery 1",
        "heartbeats have moved lease_until",
        "kill -9: worker 1 is gone",
        "the job is still active, but silent",
        "worker 2 starts",
        "housekeeping recovers the job: attempt 1 of 3 failed",
        "worker 2 pulls it: active, delivery 2",
        "completed",
    ]
    places = [out.find(act) for act in acts]
    assert -1 not in places
    assert places == sorted(places)
    assert re.search(r"attempt +1\n  deliveries +2\n  history +stalled, completed\n  other jobs changed +0\n", out)
    assert max(map(len, out.replace(str(tmp_path), "/tmp").splitlines())) <= 80
    assert len(pids(out)) == 3
    assert not any(map(is_alive, pids(out)))
    assert list(tmp_path.iterdir()) == []


def test_three_kills_end_in_the_dead_letter_queue_and_it_says_what_to_raise(tmp_path: Path) -> None:
    process = start(tmp_path, "--kills", "3")
    out, err = process.communicate(timeout=LONG_SECONDS)

    assert (process.returncode, err) == (0, "")
    assert re.search(r"state +dlq\n  attempt +3\n  deliveries +3\n  history +stalled, stalled, stalled\n", out)
    assert "raise it:\n    rqlab push … --max-attempts" in out
    assert "rqlab requeue DIR ID" in out
    assert not any(map(is_alive, pids(out)))
    assert list(tmp_path.iterdir()) == []


def test_more_kills_than_attempts_stop_at_the_attempts(tmp_path: Path) -> None:
    process = start(tmp_path, "--kills", "2", "--max-attempts", "1")
    out, err = process.communicate(timeout=LONG_SECONDS)

    assert (process.returncode, err) == (0, "")
    assert "max_attempts 1 means at most that many runs" in out
    assert re.search(r"state +dlq\n  attempt +1\n  deliveries +1\n  history +stalled\n", out)


def test_a_job_with_attempts_to_spare_survives_two_kills(tmp_path: Path) -> None:
    process = start(tmp_path, "--kills", "2", "--max-attempts", "3")
    out, err = process.communicate(timeout=LONG_SECONDS)

    assert (process.returncode, err) == (0, "")
    assert re.search(r"state +completed\n  attempt +2\n  deliveries +3\n  history +stalled, stalled, completed\n", out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process_and_no_file(number: signal.Signals, tmp_path: Path) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    said = ""
    while "worker 1 pulls it" not in said:
        line = process.stdout.readline()
        assert line, f"it ended early, having said: {said}"
        said += line

    process.send_signal(number)
    out, err = process.communicate(timeout=30)

    left = [pid for pid in pids(said) if is_alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert process.returncode not in (0, None)
    assert "Traceback" not in out + err
    assert left == []
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_cannot_start_is_told_with_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "QUEUE", "not a queue")
    said: list[str] = []

    assert not demo.run(1, 3, said.append)

    assert "ended with 2 before it starts" in "\n".join(said)
    assert "error: queue: expected" in "\n".join(said)


class TestJudgement:
    """It must say no when the job was not recovered, or something else was touched."""

    @pytest.fixture
    def rq(self) -> Queues:
        return rqlab.memory(stall_timeout=0.1)

    def judge(self, rq: Queues, job_id: str, tmp_path: Path, *others: rqlab.Job) -> tuple[bool, str]:
        said: list[str] = []
        verdict = Walkthrough(tmp_path, 1, 3, said.append)._judge(rq, rq.get(job_id), list(others))
        return verdict, "\n".join(said)

    def recovered(self, rq: Queues) -> str:
        """A job that stalled once and was then completed."""
        job_id = rq.push(demo.QUEUE, "ten-steps", backoff_delay=0)
        (job,) = rq.pull(demo.QUEUE)
        deadline = clock.monotonic() + 10
        while rq.get(job.id).attempt == 0 and clock.monotonic() < deadline:
            rq.tick()
        rq.ack(*rq.pull(demo.QUEUE))
        return job_id

    def test_a_job_that_was_recovered_and_completed_is_as_it_must_be(self, rq: Queues, tmp_path: Path) -> None:
        bystander = rq.get(rq.push("bystanders", "wait-here"))

        assert self.judge(rq, self.recovered(rq), tmp_path, bystander)[0]

    def test_a_job_that_never_stalled_is_not_what_must_happen(self, rq: Queues, tmp_path: Path) -> None:
        job_id = rq.push(demo.QUEUE, "ten-steps")
        rq.ack(*rq.pull(demo.QUEUE))

        verdict, said = self.judge(rq, job_id, tmp_path)

        assert not verdict
        assert "WRONG: expected 1" in said

    def test_a_bystander_that_was_touched_is_noticed(self, rq: Queues, tmp_path: Path) -> None:
        bystander = rq.get(rq.push("bystanders", "wait-here"))
        job_id = self.recovered(rq)
        rq.cancel(bystander.id)

        verdict, said = self.judge(rq, job_id, tmp_path, bystander)

        assert not verdict
        assert "other jobs changed  1   WRONG: expected 0" in said

    def test_a_job_that_came_from_nowhere_is_noticed(self, rq: Queues, tmp_path: Path) -> None:
        job_id = self.recovered(rq)
        rq.push("elsewhere", "surprise")

        assert not self.judge(rq, job_id, tmp_path)[0]


def test_its_handler_takes_its_steps_and_tells_its_progress() -> None:
    with rqlab.memory() as rq:
        job_id = rq.push(demo.QUEUE, "ten-steps", {"steps": 2, "seconds": 0})
        rq.drain(demo.QUEUE, demo.handler)

        job = rq.get(job_id)

    assert (job.state, job.result, job.progress) == ("completed", {"steps": 2}, 100)
    assert job.logs == ("delivery 1: step 1 of 2", "delivery 1: step 2 of 2")
