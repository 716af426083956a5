"""The command line as its users meet it: what is printed where, which exit code, and never a traceback."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import rqlab
from rqlab import tables
from rqlab.cli import app
from rqlab.engine import LISTED

PATIENCE_SECONDS = 30.0  # for one thing to happen, on a busy machine
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"

HANDLERS = """
import time

def send(job, ctx):
    if job.data == "bad":
        raise ValueError("no such address")
    if job.data == "slow":
        ctx.progress(50, "half of it")
        time.sleep(1.5)
    return {"sent": job.data}

def forever(job):
    while True:
        time.sleep(0.1)

async def later(job):
    return "later"

table = {"send": send}
number = 3

def wrong(a, b, c):
    pass

class Mail:
    @staticmethod
    def send(job):
        return "from a class"
"""


class Answer:
    """What a command said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def document(self) -> Any:
        return json.loads(self.out)


def run(*arguments: object, given: str | None = None) -> Answer:
    """A command in this process; no mistake may show a traceback."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=given)
    assert "Traceback" not in result.output
    if result.exception is not None:
        assert isinstance(result.exception, SystemExit), result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)


def refused(code: int, *arguments: object, given: str | None = None) -> str:
    """What stderr says of a command that must fail with this exit code, and print nothing else."""
    answer = run(*arguments, given=given)
    assert (answer.code, answer.out) == (code, "")
    return answer.err


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with the module `mail` in it; modules of one test are no other's."""
    (tmp_path / "mail.py").write_text(HANDLERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("mail", "broken", "needs", "leaves"):
        sys.modules.pop(name, None)


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class TestPush:
    def test_it_prints_the_id_of_the_job_and_makes_the_directory(self, path: Path) -> None:
        answer = run("push", path, "emails", "send", '{"to": "ada"}')

        assert (answer.code, answer.err) == (0, "")
        assert re.fullmatch(UUID, answer.out.strip())
        with rqlab.open(path, read_only=True) as rq:
            assert rq.get(answer.out.strip()).data == {"to": "ada"}

    def test_every_option_reaches_the_job(self, path: Path) -> None:
        options = (
            "--priority -7 --delay 60 --max-attempts 9 --backoff linear --backoff-delay 2.5 --max-backoff 50 "
            "--jitter 0.1 --timeout 4 --ttl 100 --unique-key k --on-conflict return --tag a --tag b "
            "--remove-on-complete"
        )
        answer = run("push", path, "emails", "send", "[1]", *options.split(), "--metadata", '{"by": "test"}')

        with rqlab.open(path, read_only=True) as rq:
            job = rq.get(answer.out.strip())
        assert (job.priority, job.state, job.max_attempts, job.backoff) == (-7, "delayed", 9, "linear")
        assert (job.backoff_delay, job.max_backoff, job.jitter) == (2.5, 50, 0.1)
        assert (job.timeout, job.ttl, job.unique_key, job.tags) == (4, 100, "k", ("a", "b"))
        assert (job.metadata, job.remove_on_complete, job.data) == ({"by": "test"}, True, [1])

    def test_a_dash_reads_the_data_from_standard_input(self, path: Path) -> None:
        run("push", path, "emails", "send", "-", given='{"from": "stdin"}\n')

        assert run("jobs", path, "--json").document[0]["data"] == {"from": "stdin"}

    def test_a_unique_key_that_is_held_is_refused_with_its_holder_or_returns_it(self, path: Path) -> None:
        holder = run("push", path, "emails", "send", "--unique-key", "k").out.strip()

        assert holder in refused(1, "push", path, "emails", "send", "--unique-key", "k")
        assert run("push", path, "emails", "send", "--unique-key", "k", "--on-conflict", "return").out.strip() == holder

    def test_whole_numbers_of_any_size_stay_exact(self, path: Path) -> None:
        job_id = run("push", path, "emails", "send", str(2**70)).out.strip()

        assert run("show", path, job_id, "--json").document["data"] == 2**70

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("{to: 3}",), "in single quotes"),
            (("ada",), "expected a JSON value"),
            (("",), "expected a JSON value"),
            (("-",), "expected a JSON value"),
            (("[" * 100_000,), "JSON: expected"),
            (("NaN",), "which JSON cannot say"),
            (("1", "--delay", "-5"), "delay: expected a duration"),
            (("1", "--metadata", "[1]"), "metadata: expected a JSON object"),
            (("1", "--metadata", "{"), "--metadata: expected a JSON value"),
            (("1", "--backoff", "quick"), "backoff: expected one of 'fixed', 'linear', 'exponential'"),
            (("1", "--on-conflict", "shrug"), "on_conflict: expected 'raise' or 'return'"),
            (("1", "--max-attempts", "0"), "max_attempts: expected a whole number, 1"),
            (("1", "--timeout", "0"), "timeout: expected a duration"),
            (("1", "--priority", "high"), "--priority"),
        ],
    )
    def test_a_wrong_argument_says_what_was_expected_and_leaves_no_directory(
        self, arguments: tuple[str, ...], says: str, path: Path
    ) -> None:
        assert says in refused(2, "push", path, "emails", "send", *arguments, given="")
        assert not path.exists()

    def test_a_wrong_name_is_refused_before_a_directory_is_made(self, path: Path) -> None:
        assert "queue: expected" in refused(2, "push", path, "my queue", "send")
        assert "name: expected" in refused(2, "push", path, "emails", "send it")
        assert not path.exists()

    def test_a_file_in_the_place_of_the_directory_is_refused_and_kept(self, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.write_text("mine")

        assert f"cannot make the directory {file}" in refused(1, "push", file, "emails", "send")
        assert file.read_text() == "mine"


COMMANDS = (
    *("worker", "push", "status", "jobs", "show", "dlq", "requeue", "cancel", "purge", "pause", "resume"),
    *("schedules", "demo", "doctor"),
)
READING = [("status",), ("jobs",), ("show", "some-id"), ("dlq", "emails"), ("schedules",), ("doctor",)]
MANAGING = [
    ("requeue", "some-id"),
    ("requeue", "--all", "emails"),
    ("cancel", "some-id"),
    ("purge", "emails", "--yes"),
    ("pause", "emails"),
    ("resume", "emails"),
]


@pytest.mark.parametrize("command", [*READING, *MANAGING], ids=" ".join)
class TestEveryCommandOnWhatIsThere:
    def test_refuses_a_directory_that_is_not_there_and_makes_none(
        self, command: tuple[str, ...], tmp_path: Path
    ) -> None:
        said = refused(1, command[0], tmp_path / "none", *command[1:])

        assert "expected a directory that rqlab has made; found none. Look for a mistake in the path" in said
        assert list(tmp_path.iterdir()) == []

    def test_refuses_a_directory_that_is_a_file_or_not_its_own(self, command: tuple[str, ...], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")

        assert "has made; found a file." in refused(1, command[0], tmp_path / "file", *command[1:])
        assert "has made; found one without cache.db." in refused(1, command[0], tmp_path, *command[1:])
        assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_reading_commands_open_the_directory_read_only(
    command: tuple[str, ...], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("push", path, "emails", "send")

    def refuse(*arguments: object, **settings: object) -> None:
        raise AssertionError("a reading command opened the directory for writing")

    monkeypatch.setattr("rqlab.storage.disk.DiskStore.__init__", refuse)

    assert run(command[0], path, *command[1:]).code in (0, 1)


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_reading_commands_change_nothing_beside_an_owner(command: tuple[str, ...], path: Path) -> None:
    with rqlab.open(path) as rq:
        rq.push("emails", "send")
        before = {file.name: file.read_bytes() for file in path.iterdir() if not file.name.endswith("-shm")}

        run(command[0], path, *command[1:])

        assert {file.name: file.read_bytes() for file in path.iterdir() if not file.name.endswith("-shm")} == before


class TestLooking:
    @pytest.fixture
    def ids(self, path: Path) -> dict[str, str]:
        """A directory with a job in each state; its ids by state."""
        with rqlab.open(path) as rq:
            rq.push("emails", "send", "bad", max_attempts=1)
            rq.drain("emails", rejecting)
            done = rq.push("emails", "send", {"to": "ada"}, tags=["vip"], metadata={"a": 1})
            rq.drain("emails", lambda job, ctx: ctx.progress(40, "a line") or {"sent": True})
            active = rq.push("emails", "send", "active")
            rq.pull("emails")
            cancelled = rq.push("emails", "send")
            rq.cancel(cancelled)
            waiting = rq.push("emails", "send", "w", timeout=5, unique_key="k")
            delayed = rq.push("reports", "weekly", delay=3600)
            (dead,) = rq.get_dlq_jobs("emails")
            rq.schedule("nightly", "reports", "weekly", {"a": 1}, cron="0 3 * * *", timezone="Europe/Berlin")
            rq.schedule("often", "reports", "weekly", every=90)
            rq.pause("reports")
        return {
            "dlq": dead.id,
            "completed": done,
            "active": active,
            "cancelled": cancelled,
            "waiting": waiting,
            "delayed": delayed,
        }

    def test_status_counts_every_queue_and_shows_runs_and_pauses(self, path: Path, ids: dict[str, str]) -> None:
        answer = run("status", path)

        rows = {line.split()[0]: line.split()[1:] for line in answer.out.splitlines() if line}
        assert rows["queue"] == [*map(str, LISTED), "oldest", "waiting"]
        assert rows["emails"][:6] == ["1", "0", "1", "1", "1", "1"]
        assert rows["reports"][:7] == ["(paused)", "0", "1", "0", "0", "0", "0"]
        assert rows["all"][:6] == ["1", "1", "1", "1", "1", "1"]
        assert rows[ids["active"]][0] == "emails/send"

    def test_status_as_a_document_has_the_metrics_of_every_queue(self, path: Path, ids: dict[str, str]) -> None:
        document = run("status", path, "--json").document

        assert document["path"] == str(path)
        assert datetime.fromisoformat(document["at"]).tzinfo is not None
        assert document["queues"]["emails"]["paused"] is False
        assert document["queues"]["reports"]["paused"] is True
        assert document["queues"]["emails"]["jobs"]["dlq"] == 1
        assert document["queues"]["emails"]["pushed"] == 5
        assert document["queues"]["emails"]["run"]["count"] == 2

    def test_status_of_an_empty_directory_says_so(self, path: Path) -> None:
        rqlab.open(path).close()

        assert run("status", path).out == "no queue has had a job yet\n"

    def test_jobs_are_listed_one_a_line_with_whole_ids(self, path: Path, ids: dict[str, str]) -> None:
        lines = run("jobs", path).out.splitlines()

        assert {line.split()[0] for line in lines[1:]} == set(ids.values())
        assert lines[0].split() == ["id", "state", "job", "attempt", "when"]

    def test_jobs_can_be_chosen_by_queue_state_and_tag_and_paged(self, path: Path, ids: dict[str, str]) -> None:
        def found(*options: str) -> list[str]:
            return [job["id"] for job in run("jobs", path, "--json", *options).document]

        assert found("--queue", "reports") == [ids["delayed"]]
        assert found("--state", "dlq") == [ids["dlq"]]
        assert found("--tag", "vip") == [ids["completed"]]
        everything = found()
        assert len(everything) == 6
        assert found("--limit", "2") == everything[:2]
        assert found("--after", everything[1]) == everything[2:]
        assert "--after " + everything[1] in run("jobs", path, "--limit", "2").err

    def test_a_queue_that_never_had_a_job_is_noted_with_those_that_had(self, path: Path, ids: dict[str, str]) -> None:
        for arguments in (("jobs", path, "--queue", "emials"), ("dlq", path, "emials"), ("pause", path, "emials")):
            answer = run(*arguments)

            assert answer.code == 0
            assert "no queue called 'emials' has had a job yet; there are: emails, reports" in answer.err

    @pytest.mark.parametrize("state", ["dlq", "completed", "active", "cancelled", "waiting", "delayed"])
    def test_show_tells_all_of_a_job_in_any_state(self, state: str, path: Path, ids: dict[str, str]) -> None:
        out = run("show", path, ids[state]).out

        assert re.search(rf"^id +{ids[state]} *$", out, re.MULTILINE)
        assert re.search(rf"^state +{state} *$", out, re.MULTILINE)

    def test_show_tells_the_result_the_logs_the_history_and_the_error(self, path: Path, ids: dict[str, str]) -> None:
        completed, dead = run("show", path, ids["completed"]).out, run("show", path, ids["dlq"]).out

        assert re.search(r"^result +\{\"sent\": true\}", completed, re.MULTILINE)
        assert re.search(r"^metadata +\{\"a\": 1\}", completed, re.MULTILINE)
        assert "logs\na line" in completed
        assert re.search(r"^ +1  completed", completed, re.MULTILINE)
        assert re.search(r"^last error\nValueError: no such address", dead, re.MULTILINE)

    def test_a_job_as_a_document_has_every_field_instants_as_text_and_durations_in_seconds(
        self, path: Path, ids: dict[str, str]
    ) -> None:
        documents = [run("show", path, job_id, "--json").document for job_id in ids.values()]

        fields = {name.removeprefix("encoded_") for name in rqlab.Job.__struct_fields__} - {"data_apart"}
        assert all(set(document) == fields for document in documents)
        by_state = {document["state"]: document for document in documents}
        for field in ("created_at", "updated_at", "started_at", "finished_at"):
            assert datetime.fromisoformat(by_state["completed"][field]).tzinfo is not None
        assert datetime.fromisoformat(by_state["active"]["lease_until"]).tzinfo is not None
        assert by_state["waiting"]["timeout"] == 5.0
        assert by_state["completed"]["result"] == {"sent": True}
        assert by_state["completed"]["metadata"] == {"a": 1}
        assert by_state["completed"]["history"][0]["outcome"] == "completed"
        assert by_state["dlq"]["last_error"].startswith("ValueError: no such address")

    def test_dlq_lists_what_ended_each_job_and_how_to_run_it_again(self, path: Path, ids: dict[str, str]) -> None:
        answer = run("dlq", path, "emails")

        assert answer.out.splitlines()[0].split()[:4] == [ids["dlq"], "send", "attempt", "1/1"]
        assert answer.out.splitlines()[1] == "    ValueError: no such address"
        assert f"rqlab requeue {path} --all emails" in answer.err
        assert [job["id"] for job in run("dlq", path, "emails", "--json").document] == [ids["dlq"]]

    def test_schedules_are_listed_with_their_next_tick(self, path: Path, ids: dict[str, str]) -> None:
        rows = run("schedules", path).out.splitlines()
        documents = {each["name"]: each for each in run("schedules", path, "--json").document}

        assert re.match(r"nightly +reports/weekly +0 3 \* \* \* Europe/Berlin +in [\d.]+ (min|h) +never +0", rows[1])
        assert re.match(r"often +reports/weekly +every 90 s +in ", rows[2])
        assert documents["nightly"]["data"] == {"a": 1}
        assert documents["often"]["every"] == 90.0
        assert datetime.fromisoformat(documents["often"]["next_at"]).tzinfo is not None

    def test_an_empty_listing_says_so_and_is_an_empty_document(self, path: Path) -> None:
        rqlab.open(path).close()

        assert run("jobs", path).out == "no such jobs\n"
        assert run("schedules", path).out == "no schedules\n"
        assert run("jobs", path, "--json").document == []
        assert run("dlq", path, "emails", "--json").document == []
        assert run("schedules", path, "--json").document == []

    def test_what_callers_wrote_cannot_steer_the_terminal(self, path: Path) -> None:
        evil = "\x1b[2J\x1b]0;owned\x07[bold]red[/bold] \x9b31m"
        with rqlab.open(path) as rq:
            job_id = rq.push("emails", "send", {"x": evil}, tags=[evil], unique_key=evil, metadata={"x": evil})
            rq.fail(*rq.pull("emails", worker=evil), evil)
        with rqlab.open(path) as rq:
            rq.requeue(rq.cancel(job_id).id)
            rq.fail(*rq.pull("emails"), rqlab.DeadLetter(evil))

        for arguments in (("show", path, job_id), ("dlq", path, "emails"), ("jobs", path), ("status", path)):
            said = run(*arguments).out

            assert not set(said) & {"\x1b", "\x07", "\x9b"}
        assert "[bold]red[/bold]" in run("dlq", path, "emails").out

    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            (("show", "nope"), 1, "cannot find job"),
            (("jobs", "--state", "done"), 2, "state: expected one of 'waiting'"),
            (("jobs", "--limit", "0"), 2, "limit: expected a whole number"),
            (("jobs", "--after", "nope"), 1, "cannot find job"),
            (("status", "--watch", "--json"), 2, "expected one of them"),
            (("dlq", "two words"), 2, "queue: expected"),
            (("dlq",), 2, "Missing argument"),
        ],
    )
    def test_a_wrong_question_says_what_was_expected(
        self, arguments: tuple[str, ...], code: int, says: str, path: Path
    ) -> None:
        rqlab.open(path).close()

        assert says in refused(code, arguments[0], path, *arguments[1:])


def rejecting(job: rqlab.Job) -> None:
    raise ValueError("no such address")


class TestManaging:
    def test_cancel_and_requeue_say_where_the_job_is_now(self, path: Path) -> None:
        job_id = run("push", path, "emails", "send").out.strip()

        assert run("cancel", path, job_id).out == f"{job_id} is cancelled\n"
        assert run("requeue", path, job_id).out == f"{job_id} is waiting\n"
        assert run("cancel", path, job_id, "--json").document["state"] == "cancelled"
        assert run("requeue", path, job_id, "--json").document["state"] == "waiting"

    def test_requeue_all_puts_the_dead_letter_queue_back(self, path: Path) -> None:
        with rqlab.open(path) as rq:
            rq.push_many("emails", [{"name": "send", "max_attempts": 1}] * 3)
            rq.drain("emails", rejecting)

        assert run("requeue", path, "--all", "emails").out == "requeued 3 jobs\n"
        assert run("requeue", path, "--all", "emails", "--json").document == {"requeued": 0}

    def test_requeue_all_says_what_stayed(self, path: Path) -> None:
        with rqlab.open(path) as rq:
            rq.push("emails", "send", max_attempts=1, unique_key="k")
            rq.drain("emails", rejecting)
            rq.push("emails", "send", unique_key="k")

        answer = run("requeue", path, "--all", "emails")

        assert (answer.code, answer.out) == (0, "requeued 0 jobs\n")
        assert "1 job stayed" in answer.err

    def test_a_job_in_the_wrong_state_is_refused_with_the_state_it_is_in(self, path: Path) -> None:
        job_id = run("push", path, "emails", "send").out.strip()

        assert "expected dlq or cancelled, got waiting" in refused(1, "requeue", path, job_id)
        run("cancel", path, job_id)
        assert "got cancelled" in refused(1, "cancel", path, job_id)

    def test_an_unknown_id_is_refused(self, path: Path) -> None:
        rqlab.open(path).close()

        assert "no job has this id" in refused(1, "cancel", path, "nope")
        assert "no job has this id" in refused(1, "requeue", path, "nope")

    def test_requeue_wants_an_id_or_all_of_a_queue(self, path: Path) -> None:
        assert "expected either" in refused(2, "requeue", path)
        assert "expected either" in refused(2, "requeue", path, "id", "--all", "emails")

    def test_pause_and_resume_are_stored(self, path: Path) -> None:
        run("push", path, "emails", "send")

        assert run("pause", path, "emails").out == "emails is paused\n"
        with rqlab.open(path) as rq:
            assert rq.pull("emails") == []
        assert run("resume", path, "emails", "--json").document == {"queue": "emails", "paused": False}
        with rqlab.open(path) as rq:
            assert len(rq.pull("emails")) == 1

    def test_purge_without_a_terminal_wants_yes_and_removes_nothing(self, path: Path) -> None:
        job_id = run("push", path, "emails", "send").out.strip()
        run("cancel", path, job_id)

        assert "expected --yes" in refused(2, "purge", path, "emails", "--state", "cancelled")
        assert run("purge", path, "emails", "--yes").out == "purged 0 jobs\n"
        assert run("purge", path, "emails", "--state", "cancelled", "--yes", "--json").document == {"purged": 1}

    @pytest.mark.parametrize("option", ["--delay", "--timeout", "--ttl", "--backoff-delay", "--max-backoff"])
    def test_a_wrong_duration_is_told_in_the_words_of_a_command_line(self, option: str, path: Path) -> None:
        said = refused(2, "push", path, "emails", "send", f"{option}=-1")

        assert "expected a duration in seconds, " in said
        assert "timedelta" not in said

    def test_purge_of_a_state_that_is_not_finished_is_refused(self, path: Path) -> None:
        run("push", path, "emails", "send")

        assert "expected 'dlq', 'completed' or 'cancelled'" in refused(
            2, "purge", path, "emails", "--state", "waiting", "--yes"
        )

    @pytest.mark.parametrize(("answered", "left", "code"), [("y", 0, 0), ("n", 1, 1)])
    def test_purge_asks_at_a_terminal(self, answered: str, left: int, code: int, path: Path) -> None:
        job_id = run("push", path, "emails", "send").out.strip()
        run("cancel", path, job_id)

        with Terminal("purge", path, "emails", "--state", "cancelled") as terminal:
            terminal.read_until("Remove 1 job (cancelled) of emails for good?")
            terminal.type(f"{answered}\n")

            assert terminal.wait() == code
        assert ("note: nothing was removed" in terminal.said) is (answered == "n")
        with rqlab.open(path, read_only=True) as rq:
            assert rq.counts().cancelled == left


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "COLUMNS": "80", **more}


class Terminal:
    """A command at a terminal of 80 columns."""

    def __init__(self, *arguments: object) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(
                sys.executable,
                [sys.executable, "-m", "rqlab", *map(str, arguments)],
                environment(TERM="xterm", LINES="40"),
            )
        self.said = ""
        self._code: int | None = None

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *error: object) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)

    def read_until(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.said:
            assert time.monotonic() < deadline, f"expected {text!r}; it said {self.said!r}"
            self._read(0.1)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait(self) -> int:
        """Read on until it ends; its exit code."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._code is None:
            assert time.monotonic() < deadline, f"it did not end; it said {self.said!r}"
            self._read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def _read(self, seconds: float) -> None:
        if select.select([self.fd], [], [], seconds)[0]:
            try:
                self.said += os.read(self.fd, 65_536).decode(errors="replace")
            except OSError:  # it has ended
                time.sleep(0.01)


class TestTerminal:
    def test_status_watch_follows_the_queue_and_ends_well_at_ctrl_c(self, path: Path) -> None:
        with rqlab.open(path) as rq:
            rq.push("emails", "send")
            with Terminal("status", path, "--watch", "--interval", "0.1") as terminal:
                terminal.read_until("emails")
                rq.push("a-new-queue", "send")
                terminal.read_until("a-new-queue")
                terminal.type("\x03")

                assert terminal.wait() == 0
        assert "Traceback" not in terminal.said

    def test_ids_are_whole_at_80_columns(self, path: Path) -> None:
        with rqlab.open(path) as rq:
            ids = rq.push_many("a-queue-with-a-rather-long-name", [{"name": "and-a-long-job-name-as-well"}] * 3)

        with Terminal("jobs", path) as terminal:
            assert terminal.wait() == 0

        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in terminal.said.splitlines()]
        assert max(map(len, lines)) <= 80
        assert {line.split()[0] for line in lines if re.match(UUID, line)} == set(ids)
        assert "…" not in terminal.said


def test_status_watch_in_a_pipe_prints_again_and_again(path: Path) -> None:
    run("push", path, "emails", "send")
    watching = subprocess.Popen(
        [sys.executable, "-m", "rqlab", "status", str(path), "--watch", "--interval", "0.05"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    try:
        seen = [watching.stdout.readline().split()[0] for _ in range(4)]
    finally:
        watching.send_signal(signal.SIGINT)
        watching.stdout.close()
        watching.wait(PATIENCE_SECONDS)

    assert seen == ["queue", "emails", "queue", "emails"]


def test_a_reader_that_has_seen_enough_is_no_error(path: Path) -> None:
    with rqlab.open(path) as rq:
        rq.push_many("emails", [{"name": "send", "data": "x" * 1_000}] * 500)

    for options in ("", "--json"):
        command = f"{sys.executable} -m rqlab jobs {path} --limit 501 {options} | head -n 1"
        ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=PATIENCE_SECONDS)

        assert ended.stderr == ""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_without_standard_streams_does_its_work(path: Path, closed: str) -> None:
    """As some daemons and cron jobs start one; files that are opened then may not become those streams."""
    for command in ("push {} emails send 1", "status {}", "push {} emails send 2"):
        shell = f"exec {sys.executable} -m rqlab {command.format(path)} {closed}"
        ended = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=PATIENCE_SECONDS)

        assert (ended.returncode, ended.stderr) == (0, "")

    assert [job["data"] for job in run("jobs", path, "--json").document] == [1, 2]
    assert run("doctor", path).code == 0


def test_an_output_that_cannot_be_written_is_told_from_a_directory_that_cannot(path: Path) -> None:
    run("push", path, "emails", "send")
    shell = f"{sys.executable} -m rqlab jobs {path} >/dev/full"

    ended = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=PATIENCE_SECONDS)

    assert ended.returncode == 1
    assert ended.stderr.startswith("error: cannot print")


class TestWorker:
    """Real processes: they get signals, and run handlers of the current directory."""

    @pytest.fixture(autouse=True)
    def _no_worker_is_left(self) -> Iterator[None]:
        self.started: list[subprocess.Popen[str]] = []
        yield
        for worker in self.started:
            worker.kill()
            worker.wait()

    def start(self, directory: Path, *arguments: object) -> "subprocess.Popen[str]":
        """A worker that has said that it starts."""
        worker = subprocess.Popen(
            [sys.executable, "-m", "rqlab", "worker", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=directory,
        )
        self.started.append(worker)
        assert worker.stdout is not None
        line = worker.stdout.readline()
        assert re.match(rf"worker {worker.pid} starts: ", line), worker.communicate()
        return worker

    def end(self, worker: "subprocess.Popen[str]", number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        worker.send_signal(number)
        out, err = worker.communicate(timeout=PATIENCE_SECONDS)
        return worker.returncode, out, err

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_lets_the_run_finish_then_it_stops(self, number: signal.Signals, path: Path, in_tmp: Path) -> None:
        with rqlab.open(path) as rq:
            job_id = rq.push("emails", "send", "slow")
            rq.push("emails", "send", "never pulled")
            worker = self.start(in_tmp, path, "emails", "mail:send")
            until(lambda: rq.get(job_id).progress == 50)

            code, out, err = self.end(worker, number)

            assert code == 0
            assert "stopping: 1 in flight finish first" in err
            assert out == f"worker {worker.pid} stops: 1 completed\n"
            assert rq.get(job_id).state == "completed"
            assert rq.counts().waiting == 1

    def test_a_second_signal_gives_the_run_back_and_charges_no_attempt(self, path: Path, in_tmp: Path) -> None:
        with rqlab.open(path) as rq:
            job_id = rq.push("emails", "send")
            worker = self.start(in_tmp, path, "emails", "mail:forever")
            until(lambda: rq.get(job_id).state == "active")
            worker.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                worker.wait(0.5)

            code, out, err = self.end(worker, signal.SIGINT)

            assert code == 0
            assert "asked again, they are released" in err
            assert "1 released" in out
            assert (rq.get(job_id).state, rq.get(job_id).attempt) == ("waiting", 0)

    def test_grace_ends_a_run_that_does_not(self, path: Path, in_tmp: Path) -> None:
        with rqlab.open(path) as rq:
            job_id = rq.push("emails", "send")
            worker = self.start(in_tmp, path, "emails", "mail:forever", "--grace", "0.2")
            until(lambda: rq.get(job_id).state == "active")

            assert self.end(worker)[0] == 0
            assert rq.get(job_id).state == "waiting"

    def test_a_signal_in_its_first_moment_ends_it_well(self, path: Path, in_tmp: Path) -> None:
        code, out, err = self.end(self.start(in_tmp, path, "emails", "mail:send"))

        assert (code, err) == (0, "")
        assert out.endswith("stops: it ran nothing\n")

    @pytest.mark.parametrize(
        ("handler", "options", "result"),
        [
            ("mail:send", (), {"sent": "x"}),
            ("mail:table", (), {"sent": "x"}),
            ("mail:later", (), "later"),
            ("mail:Mail.send", (), "from a class"),
            ("mail:send", ("--concurrency", "3"), {"sent": "x"}),
            ("mail:send", ("--isolation", "process"), {"sent": "x"}),
        ],
    )
    def test_it_runs_functions_mappings_and_coroutines_of_the_current_directory(
        self, handler: str, options: tuple[str, ...], result: object, path: Path, in_tmp: Path
    ) -> None:
        with rqlab.open(path) as rq:
            job_ids = [rq.push(queue, "send", "x") for queue in ("emails", "reports")]
            worker = self.start(in_tmp, path, "emails,reports", handler, *options)
            until(lambda: rq.counts().completed == 2)

            assert self.end(worker)[0] == 0
            assert [rq.get(job_id).result for job_id in job_ids] == [result, result]

    @pytest.mark.parametrize("durability", ["buffered", "hybrid"])
    def test_one_that_owns_the_directory_runs_what_is_there_and_loses_nothing_as_it_stops(
        self, durability: str, path: Path, in_tmp: Path
    ) -> None:
        with rqlab.open(path) as rq:
            job_ids = [rq.push("emails", "send", "x") for _ in range(20)]
        worker = self.start(in_tmp, path, "emails", "mail:send", "--durability", durability)

        said = refused(1, "push", path, "emails", "send")
        assert f"process {worker.pid} has it open as '{durability}'" in said
        assert "Close it there first" in said
        with rqlab.open(path, read_only=True) as look:
            until(lambda: look.counts().completed == 20)
        code, out, _ = self.end(worker)
        assert (code, out) == (0, f"worker {worker.pid} stops: 20 completed\n")
        with rqlab.open(path) as rq:
            assert {rq.get(job_id).state for job_id in job_ids} == {"completed"}

    def test_the_demo_handler_needs_no_module(self, path: Path, tmp_path: Path) -> None:
        with rqlab.open(path) as rq:
            job_id = rq.push("demo", "ten-steps", {"steps": 2, "seconds": 0.01})
            worker = self.start(tmp_path, path, "demo", "--demo")
            until(lambda: rq.get(job_id).state == "completed")

            code, out, _ = self.end(worker)

        assert code == 0
        assert f"ten-steps {job_id}, delivery 1: step 2 of 2" in out

    def test_verbose_logs_every_change_on_stderr(self, path: Path, in_tmp: Path) -> None:
        with rqlab.open(path) as rq:
            job_id = rq.push("emails", "send")
            worker = self.start(in_tmp, path, "emails", "mail:send", "--verbose")
            until(lambda: rq.get(job_id).state == "completed")

            _, _, err = self.end(worker)

        assert re.search(rf"DEBUG ack emails/send {job_id}", err)

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("emails", "nomod:send"), "no module named 'nomod'"),
            (("emails", "nomod:send"), "Start the worker in the directory that holds it"),
            (("emails", "json.nomod:send"), "no module named 'json.nomod'"),
            (("emails", "mail:sned"), "did you mean mail:send?"),
            (("emails", "mail:nothing_like_it"), "module 'mail' has no 'nothing_like_it'"),
            (("emails", "mail:number"), "expected a function handler(job)"),
            (("emails", "mail:wrong"), "got wrong(a, b, c)"),
            (("emails", "mail"), "expected MODULE:HANDLER"),
            (("emails", "mail.py:send"), "expected MODULE:HANDLER"),
            (("emails", ":send"), "expected MODULE:HANDLER"),
            (("emails", "broken:send"), "cannot import 'broken': NameError"),
            (("emails", "broken:send"), "broken.py, line 2"),
            (("emails", "needs:send"), "No module named 'not_there_at_all'"),
            (("emails", "leaves:send"), "cannot import 'leaves': SystemExit"),
            (("emails",), "expected either MODULE:HANDLER"),
            (("emails", "mail:send", "--demo"), "expected either MODULE:HANDLER"),
            (("my emails", "mail:send"), "queue: expected"),
            (("emails,,b", "mail:send"), "queue: expected"),
            (("emails", "mail:send", "--concurrency", "0"), "concurrency: expected"),
            (("emails", "mail:send", "--isolation", "vm"), "isolation: expected 'thread' or 'process'"),
            (("emails", "mail:send", "--grace", "-1"), "grace: expected"),
            (("emails", "mail:send", "--stall-timeout", "0"), "stall_timeout: expected"),
            (("emails", "mail:send", "--tick-interval", "0"), "tick_interval: expected"),
        ],
    )
    def test_a_wrong_start_says_what_to_do_and_leaves_no_directory(
        self, arguments: tuple[str, ...], says: str, path: Path, in_tmp: Path
    ) -> None:
        (in_tmp / "broken.py").write_text("import json\nx = not_defined\n")
        (in_tmp / "needs.py").write_text("import not_there_at_all\n")
        (in_tmp / "leaves.py").write_text("import sys\nsys.exit(3)\n")

        assert says in refused(2, "worker", path, *arguments)
        assert not path.exists()


class TestHelp:
    def test_the_version_is_that_of_the_package(self) -> None:
        assert run("--version").out == f"rqlab {rqlab.__version__}\n"

    def test_every_command_of_the_issue_is_there_and_explains_itself(self) -> None:
        listed = run("--help").out

        for command in COMMANDS:
            assert re.search(rf"^\W*{command}  +[A-Z]", listed, re.MULTILINE)
            assert (run(command, "--help").code, run(command, "--help").err) == (0, "")

    def test_json_says_what_instants_and_durations_are(self) -> None:
        assert "ISO 8601" in run("jobs", "--help").out

    def test_the_module_is_the_command(self, tmp_path: Path) -> None:
        ended = subprocess.run(
            [sys.executable, "-m", "rqlab", "status", str(tmp_path / "none")],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith("error: cannot read")

    def test_an_unknown_command_is_refused_with_what_is_close(self) -> None:
        assert "push" in refused(2, "pushh")

    def test_output_survives_a_terminal_that_knows_only_ascii(self, path: Path) -> None:
        with rqlab.open(path) as rq:
            job_id = rq.push("emails", "send", {"to": "Ada Löwe 雪"})

        for options in ([], ["--json"]):
            ended = subprocess.run(
                [sys.executable, "-m", "rqlab", "show", str(path), job_id, *options],
                capture_output=True,
                timeout=PATIENCE_SECONDS,
                env=environment(PYTHONIOENCODING="ascii", LC_ALL="C"),
            )

            assert (ended.returncode, ended.stderr) == (0, b"")
        assert json.loads(ended.stdout)["data"] == {"to": "Ada Löwe 雪"}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.0004, "0 ms"),
        (0.25, "250 ms"),
        (1, "1 s"),
        (1.25, "1.2 s"),
        (59.6, "60 s"),
        (119, "119 s"),
        (120, "2 min"),
        (3_600, "60 min"),
        (7_200, "2 h"),
        (172_800, "2.0 d"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, said: str) -> None:
    assert tables.duration(seconds) == said


def test_a_worker_says_that_a_run_failed_and_why(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text("def fail(job): raise ValueError('no such address')")
    with rqlab.open(tmp_path / "jobs") as rq:
        rq.push("emails", "send", max_attempts=1)
    worker = subprocess.Popen(
        [sys.executable, "-m", "rqlab", "worker", "jobs", "emails", "work:fail"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert worker.stderr is not None
        line = worker.stderr.readline()
    finally:
        worker.kill()
        worker.communicate()

    assert "emails/send" in line
    assert "failed, attempt 1 of 1: ValueError: no such address" in line
