"""What runs a handler: threads, child processes, event loops; what each does with a handler that misbehaves."""

import asyncio
import contextlib
import functools
import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import handlers_that_travel as travelling
import pytest

import rqlab
from rqlab import AsyncContext, Context, Job, LeaseLost, ValidationError, executors
from rqlab.executors import Executor, Report, Run, Services
from rqlab.executors.inline import InlineExecutor
from rqlab.executors.loop import LoopExecutor
from rqlab.executors.processes import ProcessExecutor, Setup, encode, import_paths, started_child
from rqlab.executors.threads import ThreadExecutor
from rqlab.job import State

LONG = 30.0  # seconds; whatever takes longer does not come at all


def wait_for(is_so: Callable[[], object], what: str = "it", seconds: float = LONG) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, f"{what} did not come about"
        time.sleep(0.002)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


class Hands:
    """Runs jobs on an executor, and writes down what their contexts say."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.said: list[tuple[Any, ...]] = []
        self.is_lost = False
        self._count = 0
        self._reports: dict[Run, Report] = {}

    def start(self, data: Any = None, name: str = "work", job_id: str = "") -> Run:
        self._count += 1
        job = Job(
            id=job_id or f"id-{self._count}",
            queue="q",
            name=name,
            encoded_data=rqlab.arguments.data(data),
            state=State.ACTIVE,
            deliveries=3,
        )
        run = Run(job, Services(self._progress, self._log))
        self.executor.start(run)
        return run

    def end(self, run: Run) -> Report:
        wait_for(lambda: self._reports.update(self.executor.poll()) or run in self._reports, f"the end of {run.job}")
        return self._reports.pop(run)

    def run(self, data: Any = None, name: str = "work") -> Report:
        return self.end(self.start(data, name))

    def result(self, data: Any = None, name: str = "work") -> Any:
        report = self.run(data, name)
        assert report.event == "ack", report.error
        return rqlab.job.msgspec.json.decode(report.result)

    def _progress(self, run: Run, percent: float, message: str | None) -> None:
        self._refuse(run)
        self.said.append((percent, message))

    def _log(self, run: Run, line: str) -> None:
        self._refuse(run)
        self.said.append((run.job.id, line))

    def _refuse(self, run: Run) -> None:
        if self.is_lost:
            run.is_lost = True
            raise LeaseLost("the job is not held any more")


@contextlib.contextmanager
def processes(handlers: Any, concurrency: int = 1) -> Iterator[Hands]:
    executor = ProcessExecutor(executors.checked(handlers), concurrency, lambda may_step: None)
    try:
        yield Hands(executor)
    finally:
        executor.close()


@contextlib.contextmanager
def on_a_loop(handlers: Any, concurrency: int = 1) -> Iterator[Hands]:
    executor = LoopExecutor(executors.checked(handlers), concurrency, lambda may_step: None, "test")
    try:
        yield Hands(executor)
    finally:
        executor.close()


# What a handler may be.


@pytest.mark.parametrize(
    "handler",
    [
        lambda: None,
        lambda job, ctx, more: None,
        lambda *, job: None,
        "module:function",
        None,
        {},
        {"a name": "not a function"},
        {"not a name!": lambda job: None},
    ],
)
def test_what_cannot_be_called_with_a_job_is_refused(handler: object) -> None:
    with pytest.raises(ValidationError, match=r"handler|name"):
        executors.checked(handler)


@pytest.mark.parametrize(
    ("handler", "wants"),
    [
        (lambda job: None, False),
        (lambda job, ctx: None, True),
        (lambda job, ctx=None: None, True),
        (lambda job, context=None: None, True),
        (lambda job, anything: None, True),
        (lambda job, retries=3: None, False),
        (lambda job, f=print, *more: None, False),
        (lambda job=None, f=print: None, False),
        (lambda job, *rest: None, True),
        (functools.partial(lambda a, job, ctx: None, 1), True),
        (functools.partial(lambda a, job, b=2: None, 1), False),
        (lambda *both: None, True),
        (lambda job, *, option=1: None, False),
        (functools.partial(lambda a, job: None, 1), False),
        (travelling.Greeter("hello").greet, False),
        (travelling.Greeter("hello"), False),
        (print, True),
    ],
)
def test_a_handler_gets_a_context_if_it_takes_two_arguments_and_the_second_is_no_option(
    handler: Any, wants: bool
) -> None:
    assert executors.wants_context(handler) is wants


def test_sync_and_async_handlers_in_one_mapping_are_refused_before_any_job_is_pulled() -> None:
    async def later(job: Job) -> None: ...

    with rqlab.memory() as rq:
        rq.push("q", "work")
        with pytest.raises(ValidationError, match="all functions of the mapping to be async, or none"):
            rq.run_worker("q", {"now": lambda job: None, "later": later})
        with pytest.raises(ValidationError, match="all functions of the mapping to be async, or none"):
            rq.drain("q", {"now": lambda job: None, "later": later})

        assert rq.counts("q").waiting == 1


def test_an_object_with_an_async_call_is_an_async_handler() -> None:
    class Handler:
        async def __call__(self, job: Job) -> str:
            return "awaited"

    assert executors.is_async(Handler())
    with on_a_loop(Handler()) as hands:
        assert hands.result() == "awaited"


# What cannot be told.


def untellable(job: Job) -> Any:
    """Ends as `job.data` says, in ways that raise again when they are described."""

    class Result(int):
        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError("no comparison")

        def __iter__(self) -> Any:
            raise ZeroDivisionError("no iteration")

        __hash__ = int.__hash__

    class Later(rqlab.Snooze):
        def __init__(self) -> None: ...

    class Again(rqlab.RetryAfter):
        def __init__(self) -> None: ...

    class Dead(rqlab.DeadLetter):
        def __str__(self) -> str:
            raise ZeroDivisionError("no text")

    class Noted(Exception):
        @property
        def __notes__(self) -> list[str]:
            raise SystemExit("no notes")

    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise self

    class Twice(rqlab.DeadLetter):
        def __str__(self) -> str:
            raise Unspeakable

    kinds = {"later": Later, "again": Again, "dead": Dead, "noted": Noted, "twice": Twice}
    if job.data == "result":
        return Result(1)
    raise kinds[job.data]()


async def untellable_later(job: Job) -> Any:
    return untellable(job)


@contextlib.contextmanager
def in_threads(handlers: Any) -> Iterator[Hands]:
    executor = ThreadExecutor(executors.checked(handlers), 1, lambda may_step: None, "test")
    yield Hands(executor)
    executor.close()


@contextlib.contextmanager
def inline(handlers: Any) -> Iterator[Hands]:
    yield Hands(InlineExecutor(executors.checked(handlers)))


@pytest.mark.parametrize("kind", ["threads", "loop", "child", "async child", "inline"])
def test_an_outcome_that_cannot_be_told_fails_its_run_and_the_slot_is_free_again(
    kind: str,
) -> None:
    makers: dict[str, Any] = {
        "threads": lambda: in_threads(untellable),
        "loop": lambda: on_a_loop(untellable_later),
        "child": lambda: processes(untellable),
        "async child": lambda: processes(untellable_later),
        "inline": lambda: inline(untellable),
    }
    with makers[kind]() as hands:
        for data in ("later", "again", "dead", "noted", "twice"):
            report = hands.run(data)
            assert report.event == "fail"
            assert "the outcome of the handler could not be told: it raised " in report.error
            assert report.final is (data in ("dead", "twice")), "a DeadLetter without words is one all the same"
        assert hands.executor.free() == 1
        assert hands.run("result").event in ("ack", "fail")
        assert hands.executor.free() == 1


def test_a_result_that_cannot_be_told_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(value: object) -> Any:
        raise ZeroDivisionError("no comparison")

    monkeypatch.setattr(executors.arguments, "result", refuse)

    assert executors.success(1) == Report(
        event="fail",
        error="the outcome of the handler could not be told: it returned int, and describing that raised "
        "ZeroDivisionError: no comparison",
    )


def test_a_ctrl_c_while_an_outcome_is_described_is_the_callers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(value: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(executors.arguments, "result", interrupted)

    with inline(lambda job: None) as hands, pytest.raises(KeyboardInterrupt):
        hands.start()


# Threads.


def test_a_thread_executor_runs_as_many_at_once_as_it_may_and_keeps_its_threads() -> None:
    barrier = threading.Barrier(3)
    names: list[str] = []

    def handler(job: Job) -> None:
        names.append(threading.current_thread().name)
        barrier.wait(LONG)

    executor = ThreadExecutor(handler, 3, lambda may_step: None, "test")
    hands = Hands(executor)
    for _ in range(5):
        assert executor.free() == 3
        runs = [hands.start() for _ in range(3)]
        assert executor.free() == 0
        ended: list[Run] = []
        wait_for(lambda ended=ended: len(ended) == 3 or ended.extend(run for run, _ in executor.poll()))
        assert set(ended) == set(runs)
    executor.close()

    assert len(set(names)) == 3
    wait_for(lambda: not any(thread.name.startswith("test-run") for thread in threading.enumerate()))


def test_an_error_says_what_was_raised_and_where_but_not_how_the_worker_got_there() -> None:
    def handler(job: Job) -> None:
        raise ValueError("no such customer")

    executor = ThreadExecutor(handler, 1, lambda may_step: None, "test")
    error = Hands(executor).run().error
    executor.close()

    assert error.startswith("ValueError: no such customer\n")
    assert 'raise ValueError("no such customer")' in error
    assert "executors/__init__.py" not in error


# Child processes.


def test_a_childs_result_comes_back() -> None:
    value = {"text": "ü", "list": [1, 2.5, None, True], "empty": {}}
    with processes(travelling.echo) as hands:
        assert hands.result(value) == value
        assert hands.result("x" * 1_000_000) == "x" * 1_000_000, "as large as data may be"
        assert hands.result(None) is None
        assert hands.result(0) == 0


def test_a_child_is_kept_from_run_to_run() -> None:
    with processes(travelling.pid) as hands:
        pids = {hands.result() for _ in range(10)}

    assert len(pids) == 1
    assert pids != {os.getpid()}


@pytest.mark.parametrize(
    ("data", "report"),
    [
        ("raise", Report(event="fail", error="ValueError: no such customer")),
        ("surrogate", Report(event="fail", error="ValueError: half a character: \\ud800")),
        ("long", Report(event="fail", error="ValueError: xxxxxxxxxx")),
        ("exit", Report(event="fail", error="SystemExit: 4")),
        ("interrupt", Report(event="fail", error="KeyboardInterrupt")),
        ("snooze", Report(event="snooze", delay=60.0)),
        ("retry", Report(event="fail", error="rate limit", delay=7.0)),
        ("dead", Report(event="fail", error="hopeless", final=True)),
        ("set", Report(event="fail", error="the handler returned what cannot be stored: result: expected a JSON")),
        ("huge", Report(event="fail", error="the handler returned what cannot be stored: result: expected at most")),
    ],
)
def test_a_handler_that_raises_in_a_child_fails_its_run_and_the_child_goes_on(data: str, report: Report) -> None:
    with processes(travelling.misbehave) as hands:
        before = hands.result()
        found = hands.run(data)

        assert found.error.startswith(report.error)
        assert len(found.error) <= 8 * 1024
        assert (found.event, found.delay, found.final) == (report.event, report.delay, report.final)
        assert hands.result() == before, "the same child"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("os._exit", "exit code 3"),
        ("SIGKILL", "killed by signal 9 (SIGKILL)"),
        ("segfault", "killed by signal 11 (SIGSEGV)"),
        ("closed", "exit code 1"),
    ],
)
def test_a_child_that_dies_fails_its_run_only_and_is_replaced(data: str, said: str) -> None:
    with processes(travelling.misbehave) as hands:
        before = hands.result()
        report = hands.run(data)

        assert (report.event, report.error) == ("fail", f"the process that ran the handler died: {said}")
        assert hands.result() != before


def test_a_child_that_dies_hurts_no_other_run(tmp_path: Path) -> None:
    with processes({"sleep": travelling.sleep, "misbehave": travelling.misbehave}, 2) as hands:
        slow = hands.start([str(tmp_path / "log"), 0.5], "sleep")
        wait_for(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text().endswith("\n"))
        assert hands.run("segfault", "misbehave").event == "fail"

        assert hands.end(slow).event == "ack"


def test_a_stopped_run_ends_with_its_child_and_the_slot_is_free_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with processes({"sleep": travelling.sleep, "pid": travelling.pid}) as hands:
        before = hands.result(name="pid")
        run = hands.start([str(log), 60], "sleep")
        wait_for(lambda: log.exists() and "begun" in log.read_text())
        assert hands.executor.free() == 0

        hands.executor.stop(run)
        report = hands.end(run)

        assert "killed by signal 9" in report.error
        assert hands.executor.free() == 1
        after = hands.result(name="pid")
        assert after != before
        assert "ended" not in log.read_text()
        assert not is_alive(before)


def test_a_stop_that_comes_after_the_end_does_no_harm_to_the_next_run() -> None:
    with processes(travelling.echo) as hands:
        hands.result()
        for number in range(7):
            run = hands.start("first")
            time.sleep(0.002 * number)  # it ends at some moment around the stop
            hands.executor.stop(run)
            hands.end(run)

            assert hands.result(number) == number, "the next run is given to a child that lives on"


def test_a_child_that_died_while_idle_is_replaced_before_the_next_run() -> None:
    with processes(travelling.pid) as hands:
        before = hands.result()
        os.kill(before, signal.SIGKILL)
        hands.executor._idle[0].process.wait(LONG)  # type: ignore[attr-defined]

        assert hands.result() != before


def test_starting_a_run_does_not_wait_for_its_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(0.7)\ndef handler(job): return 'run'\n")
    monkeypatch.syspath_prepend(tmp_path)
    import slow_to_import  # type: ignore[import-not-found]

    with processes(slow_to_import.handler, 3) as hands:
        began_at = time.monotonic()
        runs = [hands.start() for _ in range(3)]
        took = time.monotonic() - began_at

        assert {hands.end(run).event for run in runs} == {"ack"}
    assert took < 0.5  # 0.01 s here; a child takes 0.8


def test_a_child_whose_files_live_on_in_what_it_started_is_seen_to_be_dead(tmp_path: Path) -> None:
    left = tmp_path / "pid"
    with processes({"leave": travelling.leave_a_child_behind, "pid": travelling.pid}) as hands:
        try:
            report = hands.run(str(left), "leave")
            assert "killed by signal 9" in report.error
            assert hands.result(name="pid")
        finally:
            os.kill(int(left.read_text()), signal.SIGKILL)


def test_each_slot_has_a_child_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with processes(travelling.sleep, 3) as hands:
        runs = [hands.start([str(log), 60]) for _ in range(3)]
        assert hands.executor.free() == 0

        wait_for(lambda: log.exists() and log.read_text().count("begun") == 3)
        assert len(set(log.read_text().split("\n"))) == 4
        for run in runs:
            hands.executor.stop(run)


def test_a_childs_context_says_what_it_knows_and_stores_what_it_is_told() -> None:
    with processes(travelling.talk) as hands:
        result = hands.result()

    assert result == {"token": 3, "job": "id-1", "cancelled": False, "lost": False}
    assert hands.said == [("id-1", "begun"), (50, "half"), ("id-1", "no character: \\ud800")]


def test_a_child_learns_that_its_run_is_lost() -> None:
    with processes(travelling.talk_until_lost) as hands:
        run = hands.start()
        wait_for(lambda: hands.said)
        hands.is_lost = True

        assert bytes(hands.end(run).result) == b'"lost True, cancelled True"'


def test_several_threads_of_a_handler_may_use_its_context() -> None:
    with processes(travelling.talk_from_threads) as hands:
        assert hands.result() == "all said"

    assert len(hands.said) == 200


def test_what_a_run_left_behind_cannot_speak_for_the_next(tmp_path: Path) -> None:
    with processes(travelling.talk_after_the_end) as hands:
        hands.result("first")
        (met,) = hands.result("second")

    assert "the run of job id-1, delivery 3, has ended" in met
    assert {job_id for job_id, _ in hands.said} <= {"id-1"}


def fork_and_return(job: Job, ctx: Context) -> Any:
    """Returns twice: in the process that was given the run, and, before that, in one that it forks."""
    forked = os.fork()
    if forked:
        _, status = os.waitpid(forked, 0)
        return [job.data, os.waitstatus_to_exitcode(status)]
    with contextlib.suppress(LeaseLost):
        ctx.log("from the fork")
    return "from the fork"


def speak_out_of_turn(job: Job) -> Any:
    """Writes to the parent, on whatever socket it finds: an end of another run, or what is no message at all."""
    from multiprocessing.connection import Connection

    from rqlab.executors.processes import Delivery, Ended, encode

    stray = encode(Ended(Delivery("another", 3), executors.success("stray")))
    for fd in range(3, 30):
        with contextlib.suppress(OSError):
            if str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("socket:"):
                connection = Connection(os.dup(fd))
                connection.send_bytes(b"{}" if job.data == "rubbish" else stray)
                connection.close()
    return job.data


def test_what_a_handler_forks_cannot_end_its_run_nor_speak_for_it() -> None:
    with processes(fork_and_return) as hands:
        for number in range(3):
            assert hands.result(number) == [number, 1]

    assert hands.said == []


def test_a_message_about_another_run_is_dropped() -> None:
    with processes(speak_out_of_turn) as hands:
        assert [hands.result(number) for number in range(3)] == [0, 1, 2]


def test_a_child_that_says_what_cannot_be_read_fails_its_run_and_is_replaced() -> None:
    with processes(speak_out_of_turn) as hands:
        assert "out of step" in hands.run("rubbish").error
        assert hands.result("next") == "next"


def test_an_async_handler_runs_in_a_child_too() -> None:
    with processes(travelling.wait_and_echo) as hands:
        assert hands.result("here") == "here"
        assert hands.result("again") == "again"

    assert [line for _, line in hands.said] == ["awaited"] * 2


def test_a_mapping_travels() -> None:
    with processes({"echo": travelling.echo, "pid": travelling.pid}) as hands:
        assert hands.result("x", "echo") == "x"
        assert isinstance(hands.result(name="pid"), int)
        report = hands.run(name="other")

    assert (report.error, report.final) == ("no handler called 'other'; this worker has: echo, pid", True)


def test_lambdas_closures_and_objects_travel_by_value() -> None:
    greeting = "hello"

    def closure(job: Job) -> str:
        return f"{greeting}, {job.data}"

    handlers = {
        "lambda": lambda job: job.data * 2,
        "closure": closure,
        "partial": functools.partial(_greet, "good day"),
        "method": travelling.Greeter("hi").greet,
        "object": travelling.Greeter("salut"),
        "static": travelling.Greeter.shout,
    }
    with processes(handlers) as hands:
        found = {name: hands.result("ada", name) for name in handlers}

    assert found == {
        "lambda": "adaada",
        "closure": "hello, ada",
        "partial": "good day, ada",
        "method": "hi, ada",
        "object": "salut, ada",
        "static": "ada!",
    }


def _greet(greeting: str, job: Job) -> str:
    return f"{greeting}, {job.data}"


def test_a_handler_that_cannot_travel_is_refused_before_any_job_is_pulled() -> None:
    lock = threading.Lock()

    with rqlab.memory() as rq:
        job_id = rq.push("q", "work")
        with pytest.raises(ValidationError, match=r"can travel into a child process.*cannot pickle '_thread.lock'"):
            rq.run_worker("q", lambda job: lock.locked(), isolation="process")

        assert rq.get(job_id).deliveries == 0


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import os\nif os.getpid() != {pid}: raise RuntimeError('not here')", "RuntimeError: not here"),
        ("import os, sys\nif os.getpid() != {pid}: sys.exit(3)", "SystemExit: 3"),
        ("import os\nif os.getpid() != {pid}: os._exit(3)", "exit code 3"),
        ("import os\nif os.getpid() != {pid}: del handler", "has no handler"),
    ],
)
def test_a_handler_whose_module_does_not_load_in_a_child_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, problem: str
) -> None:
    code = "def handler(job): pass\n" + source.format(pid=os.getpid())
    (tmp_path / "only_here.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "only_here", raising=False)
    import only_here  # type: ignore[import-not-found]

    with pytest.raises(ValidationError, match=problem):
        ProcessExecutor(only_here.handler, 1, lambda may_step: None)


def test_a_module_that_lives_in_memory_only_travels_or_is_refused() -> None:
    module = types.ModuleType("made_up")
    exec("def handler(job): return 'made up'", module.__dict__)

    with processes(module.__dict__["handler"]) as hands:  # not in sys.modules: by value
        assert hands.result() == "made up"
    sys.modules["made_up"] = module
    try:
        with pytest.raises(ValidationError, match="made_up"):
            ProcessExecutor(module.__dict__["handler"], 1, lambda may_step: None)
    finally:
        del sys.modules["made_up"]


def test_what_a_handler_starts_finds_the_environment_of_the_parent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with processes(travelling.environment) as hands:
        assert hands.result() == ["unset", -signal.SIGTERM, str(tmp_path)]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with processes(travelling.environment) as hands:
        assert hands.result()[0] == str(tmp_path)


def test_a_module_in_the_current_directory_does_not_get_in_the_childs_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("queue", "json", "asyncio", "rqlab"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])

    with processes(travelling.echo) as hands:
        assert hands.result(1) == 1


def test_a_child_leaves_signals_to_its_parent() -> None:
    with processes(travelling.signal_itself) as hands:
        assert hands.result() == "alive"


def test_ctrl_c_does_not_kill_a_child_that_is_just_starting(tmp_path: Path) -> None:
    with processes({"pid": travelling.pid, "echo": travelling.echo}, 8) as hands:
        busy = [hands.start(number, "echo") for number in range(8)]  # seven of them in new children
        for pause in (0, 0.005, 0.01, 0.02, 0.03):
            time.sleep(pause)
            for pid in hands.executor.pids():  # type: ignore[attr-defined]
                os.kill(pid, signal.SIGINT)
                os.kill(pid, signal.SIGTERM)

        assert [hands.end(run).event for run in busy] == ["ack"] * 8


def test_two_hundred_kills_leave_no_file_no_thread_and_no_zombie(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    threads, files = threading.active_count(), open_files()
    with processes({"sleep": travelling.sleep, "pid": travelling.pid}, 2) as hands:
        hands.result(name="pid")
        for _ in range(100):
            runs = [hands.start([str(tmp_path / "log"), 60], "sleep") for _ in range(2)]
            for run in runs:
                hands.executor.stop(run)
            for run in runs:
                hands.end(run)
        wait_for(lambda: threading.active_count() <= threads + 2)
        wait_for(lambda: open_files() <= files + 2)
        assert hands.result(name="pid")

    wait_for(lambda: threading.active_count() <= threads, "the end of all threads")
    wait_for(lambda: open_files() <= files, "the close of all files")
    wait_for(_has_no_children, "the end of all children")


def _has_no_children() -> bool:
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        return True  # nobody tells
    return not any((task / "children").read_text().split() for task in tasks.iterdir())


def test_closing_ends_busy_and_idle_children(tmp_path: Path) -> None:
    with processes({"sleep": travelling.sleep, "pid": travelling.pid}, 2) as hands:
        runs = [hands.start(name="pid") for _ in range(2)]
        pids = [int(bytes(hands.end(run).result)) for run in runs]
        hands.start([str(tmp_path / "log"), 60], "sleep")
        wait_for(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text().endswith("\n"))
        pids.append(int((tmp_path / "log").read_text().split()[1]))

    assert not any(is_alive(pid) for pid in pids)


def run_script(tmp_path: Path, body: str) -> subprocess.CompletedProcess[str]:
    """A script of a user, with no main guard."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        check=False,
    )


def test_a_handler_of_a_script_without_a_main_guard_runs_in_a_child(tmp_path: Path) -> None:
    ran = run_script(
        tmp_path,
        """
        import os, threading
        import rqlab

        print("the script runs", flush=True)
        PREFIX = "job "
        stop = threading.Event()

        def helper(data):
            return PREFIX + data

        def handler(job):
            print("in the child")
            return [helper(job.data), os.getpid()]

        with rqlab.memory() as rq:
            job_id = rq.push("q", "work", "one")
            rq.on_change(lambda change: change.event == "ack" and stop.set())
            rq.run_worker("q", handler, isolation="process", shutdown=stop)
            result, pid = rq.get(job_id).result
            assert result == "job one" and pid != os.getpid(), result
        """,
    )

    assert ran.returncode == 0, ran.stderr
    assert sorted(ran.stdout.splitlines()) == ["in the child", "the script runs"]


def test_what_a_child_prints_is_seen_though_it_is_killed(tmp_path: Path) -> None:
    ran = run_script(
        tmp_path,
        f"""
        import sys
        sys.path.append({str(Path(__file__).parent)!r})
        import rqlab, threading
        from handlers_that_travel import say

        stop = threading.Event()
        with rqlab.memory() as rq:
            rq.push("q", "work", "loudly", max_attempts=1)
            rq.on_change(lambda change: change.event == "fail" and stop.set())
            rq.run_worker("q", say, isolation="process", shutdown=stop)
        """,
    )

    assert ran.stdout == "said loudly\n", ran.stderr


@pytest.mark.parametrize("is_busy", [True, False], ids=["mid-handler", "idle"])
def test_children_die_with_their_parent(tmp_path: Path, is_busy: bool) -> None:
    log, script = tmp_path / "log", tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            sys.path.append({str(Path(__file__).parent)!r})
            import rqlab
            from handlers_that_travel import sleep

            with rqlab.memory() as rq:
                rq.push("q", "work", [{str(log)!r}, {60 if is_busy else 0}])
                rq.run_worker("q", sleep, isolation="process")
            """
        )
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    wait_for(lambda: log.exists() and ("begun" if is_busy else "ended") in log.read_text())
    child = int(log.read_text().split()[1])
    assert is_alive(child)

    parent.kill()
    parent.wait(LONG)

    wait_for(lambda: not is_alive(child), "the child's end")


@pytest.mark.parametrize("hears", [False, True])
def test_a_child_whose_parent_is_killed_as_it_starts_ends_without_a_word(
    hears: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before it is told what to run, or when it says that it is ready: a traceback would look like a fault of ours."""
    ours, theirs = socket.socketpair()
    child = started_child("_child", theirs, import_paths())
    theirs.close()
    if hears:
        setup = Setup(import_paths(), None, {"": "handlers_that_travel:sleep"})
        Connection(ours.detach()).send_bytes(encode(setup))  # and let go of at once: nobody hears the answer
    ours.close()

    assert child.wait(LONG) == 1
    assert capfd.readouterr().err == ""


# Child processes of a worker.


def test_a_timeout_and_a_cancel_stop_a_run_in_a_child(tmp_path: Path) -> None:
    logs = [tmp_path / "timed", tmp_path / "cancelled"]
    with rqlab.memory() as rq:
        timed = rq.push("q", "work", [str(logs[0]), 60], timeout=1, max_attempts=1)
        cancelled = rq.push("q", "work", [str(logs[1]), 60])
        last = rq.push("q", "work", [str(tmp_path / "last"), 0])
        with rq.worker("q", travelling.sleep, isolation="process", concurrency=2):
            wait_for(lambda: logs[1].exists() and "begun" in logs[1].read_text())
            cancelled_at = time.monotonic()
            rq.cancel(cancelled)
            pid = int(logs[1].read_text().split()[1])
            wait_for(lambda: not is_alive(pid), "the end of the cancelled run")
            assert time.monotonic() - cancelled_at < 2.0  # promised: 0.1 s
            wait_for(lambda: rq.get(last).state is State.COMPLETED)
            wait_for(lambda: rq.get(timed).state is State.DLQ)

        assert rq.get(timed).last_error == "timed out after 1 s"
        assert rq.get(cancelled).state is State.CANCELLED
        assert not any("ended" in log.read_text() for log in logs)


def test_a_worker_completes_everything_though_its_children_are_killed_at_any_moment() -> None:
    with rqlab.memory() as rq:
        ids = [rq.push("q", "work", number, max_attempts=50, backoff_delay=0) for number in range(100)]
        with rq.worker("q", travelling.echo, isolation="process", concurrency=2) as running:
            for kill in range(20):
                for child in list(running._executor._busy.values()):  # type: ignore[union-attr]
                    child.process.kill()
                time.sleep(0.01 * (kill % 5))
            wait_for(lambda: rq.counts("q").unfinished == 0)

        assert [rq.get(job_id).result for job_id in ids] == list(range(100))


# Event loops.


def test_async_handlers_run_at_once_as_many_as_they_may() -> None:
    running, most = 0, 0

    async def handler(job: Job) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1

    with rqlab.memory() as rq:
        rq.push_many("q", [{"name": "work"}] * 100)
        with rq.worker("q", handler, concurrency=20):
            wait_for(lambda: rq.counts("q").completed == 100)

    assert most == 20


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_async_handler_may_raise_what_it_likes(error: BaseException) -> None:
    async def handler(job: Job) -> str:
        if job.data == "bad":
            raise error
        return "fine"

    with on_a_loop(handler) as hands:
        report = hands.run("bad")

        assert report.event == "fail"
        assert type(error).__name__ in report.error
        assert hands.result() == "fine"


def test_a_stopped_async_run_is_cancelled_and_may_tidy_up() -> None:
    tidied: list[str] = []
    begun = threading.Event()

    async def handler(job: Job, ctx: Context) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            tidied.append(f"cancelled {ctx.cancelled}")

    with on_a_loop(handler) as hands:
        run = hands.start()
        assert begun.wait(LONG)
        hands.executor.stop(run)
        report = hands.end(run)

        assert report.event == "fail"
        assert "CancelledError" in report.error
        assert tidied == ["cancelled True"]
        assert hands.executor.free() == 1


def test_an_async_run_that_will_not_be_cancelled_keeps_its_slot_until_it_ends() -> None:
    begun, let_go = threading.Event(), threading.Event()

    async def handler(job: Job) -> str:
        begun.set()
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return "ended"

    with on_a_loop(handler) as hands:
        run = hands.start()
        assert begun.wait(LONG)
        hands.executor.stop(run)
        time.sleep(0.05)
        assert hands.executor.poll() == []
        assert hands.executor.free() == 0

        let_go.set()
        assert hands.end(run).event == "ack"
        assert hands.executor.free() == 1


def test_a_timeout_cancels_an_async_run() -> None:
    cancelled = threading.Event()

    async def handler(job: Job) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with rqlab.memory() as rq:
        job_id = rq.push("q", "work", timeout=0.05, max_attempts=1)
        with rq.worker("q", handler):
            assert cancelled.wait(LONG)
            wait_for(lambda: rq.get(job_id).state is State.DLQ)

        assert rq.get(job_id).last_error == "timed out after 0.05 s"


def test_an_async_handler_that_blocks_its_loop_keeps_its_lease(tmp_path: Path) -> None:
    async def handler(job: Job) -> str:
        time.sleep(3.0)  # blocks the loop for twice the stall_timeout
        return "mine"

    with rqlab.open(tmp_path, stall_timeout=1.5, tick_interval=0.1) as rq:
        job_id = rq.push("q", "work")
        with rq.worker("q", handler):
            wait_for(lambda: rq.get(job_id).state is State.COMPLETED)

        job = rq.get(job_id)
        assert (job.result, job.attempt, job.deliveries) == ("mine", 0, 1)


def test_in_an_async_with_handlers_run_on_the_callers_loop_and_keep_their_leases_when_it_is_blocked() -> None:
    async def main(rq: rqlab.Queues) -> None:
        here = asyncio.get_running_loop()
        loops: list[asyncio.AbstractEventLoop] = []

        async def handler(job: Job) -> None:
            loops.append(asyncio.get_running_loop())

        async with rq.worker("q", handler):
            job_id = await asyncio.to_thread(rq.push, "q", "work")
            time.sleep(2.5)  # blocks the application's loop
            while rq.get(job_id).state is not State.COMPLETED:
                await asyncio.sleep(0.005)

        assert loops == [here]
        assert rq.get(job_id).deliveries == 1

    with rqlab.memory(stall_timeout=1.2, tick_interval=0.05) as rq:
        asyncio.run(asyncio.wait_for(main(rq), LONG))


def test_an_async_handler_sees_the_callers_context_variables_and_keeps_its_own_to_itself() -> None:
    async def handler(job: Job) -> str:
        before = travelling.colour.get()
        travelling.colour.set(job.data)
        await asyncio.sleep(0)
        assert travelling.colour.get() == job.data
        return before

    async def main(rq: rqlab.Queues) -> None:
        travelling.colour.set("blue")
        async with rq.worker("q", handler, concurrency=5):
            ids = [rq.push("q", "work", f"colour {number}") for number in range(10)]
            while rq.counts("q").completed < 10:
                await asyncio.sleep(0.005)
        assert Counter(rq.get(job_id).result for job_id in ids) == {"blue": 10}
        assert travelling.colour.get() == "blue"

    with rqlab.memory() as rq:
        asyncio.run(asyncio.wait_for(main(rq), LONG))


def test_what_async_handlers_leave_on_their_loop_ends_with_it() -> None:
    tidied: list[str] = []

    async def straggler() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            tidied.append("tidied")

    kept: list[asyncio.Task[None]] = []

    async def handler(job: Job) -> None:
        kept.append(asyncio.create_task(straggler()))
        await asyncio.sleep(0)

    with on_a_loop(handler) as hands:
        hands.result()
        threads = [thread for thread in threading.enumerate() if thread.name == "test-loop"]

    assert tidied == ["tidied"]
    assert len(threads) == 1
    assert not threads[0].is_alive()


def test_runs_on_a_loop_that_is_closed_are_given_back_and_can_be_stopped() -> None:
    async def handler(job: Job) -> None: ...

    loop = asyncio.new_event_loop()
    executor = LoopExecutor(handler, 3, lambda may_step: None, "test", loop)
    hands = Hands(executor)
    before = hands.start()
    assert executor.free() == 2
    loop.close()
    after = hands.start()

    assert executor.free() == 0
    executor.stop(before)
    assert hands.end(before) == hands.end(after) == Report(event="release")
    executor.close()


def test_a_worker_whose_applications_loop_is_closed_stops_and_charges_nothing() -> None:
    begun = threading.Event()

    async def handler(job: Job) -> None:
        begun.set()
        await asyncio.sleep(LONG)

    with rqlab.memory() as rq:
        loop = asyncio.new_event_loop()
        running = rq.worker("q", handler, concurrency=2)
        loop.run_until_complete(running.__aenter__())
        ids = [rq.push("q", "work", max_attempts=1) for _ in range(2)]
        loop.run_until_complete(asyncio.to_thread(begun.wait, LONG))
        loop.close()  # nobody has left the `async with`
        ids += [rq.push("q", "work", max_attempts=1) for _ in range(5)]
        wait_for(running._ended.is_set, "the end of the worker")

        assert {(rq.get(job_id).state, rq.get(job_id).attempt) for job_id in ids} == {(State.WAITING, 0)}
    gc.collect()  # the tasks left pending: finalized during an ast.parse, they upset Python 3.11 (SystemError)


def test_an_async_run_that_others_cancel_is_released_and_not_charged() -> None:
    begun = threading.Event()

    async def handler(job: Job) -> None:
        begun.set()
        await asyncio.sleep(LONG)

    async def application(rq: rqlab.Queues) -> None:
        await rq.worker("q", handler).__aenter__()
        await asyncio.to_thread(begun.wait, LONG)
        # asyncio.run cancels all tasks that are left, the run's too, and closes its loop.

    with rqlab.memory() as rq:
        job_id = rq.push("q", "work", max_attempts=1)
        asyncio.run(application(rq))
        wait_for(lambda: rq.get(job_id).state is State.WAITING, "the release")

        assert rq.get(job_id).attempt == 0
    gc.collect()  # as above


def test_a_run_cancelled_before_it_began_is_given_back() -> None:
    async def handler(job: Job) -> None: ...

    async def cancel_the_others() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.01)

    loop = asyncio.new_event_loop()
    executor = LoopExecutor(handler, 1, lambda may_step: None, "test", loop)
    hands = Hands(executor)
    run = hands.start()
    loop.run_until_complete(cancel_the_others())

    assert hands.end(run) == Report(event="release")
    loop.close()


def test_a_cancelled_error_of_the_handlers_own_making_is_a_failure() -> None:
    async def handler(job: Job) -> None:
        if job.data == "raised":
            raise asyncio.CancelledError
        sleeping = asyncio.create_task(asyncio.sleep(LONG))
        sleeping.cancel()
        await sleeping

    with on_a_loop(handler) as hands:
        for data in ("raised", "awaited"):
            report = hands.run(data)
            assert report.event == "fail"
            assert "CancelledError" in report.error


def test_an_async_handler_that_cancels_its_own_task_has_failed() -> None:
    """Released, it would be pulled again at once, and for ever."""

    async def handler(job: Job) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(LONG)

    with on_a_loop(handler) as hands:
        report = hands.run()

    assert (report.event, "CancelledError" in report.error) == ("fail", True)


# What an async handler says.


def test_an_async_handler_that_says_something_does_not_block_its_loop() -> None:
    loop_went_on = threading.Event()
    in_time: list[bool] = []

    async def handler(job: Job, ctx: AsyncContext) -> None:
        said = ctx.progress(50, "half")
        loop_went_on.set()
        await said

    services = Services(lambda run, percent, message: in_time.append(loop_went_on.wait(5)), lambda run, line: None)
    ended = threading.Event()
    executor = LoopExecutor(handler, 1, lambda may_step: ended.set(), "test")
    executor.start(Run(Job(id="1", queue="q", name="n"), services))
    assert ended.wait(LONG)
    executor.close()

    assert in_time == [True]


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_what_an_async_handler_says_is_stored_in_order_and_before_its_end(isolation: str) -> None:
    async def handler(job: Job, ctx: AsyncContext) -> None:
        for number in range(30):
            ctx.log(f"line {number}")
        await ctx.progress(50)
        await asyncio.to_thread(ctx.log, "from a thread")
        ctx.progress(75, "last")
        if job.data == "fails":
            raise ValueError

    with rqlab.memory() as rq:
        ids = [rq.push("q", "work", data, max_attempts=1) for data in ("returns", "fails")]
        with rq.worker("q", handler, isolation=isolation):
            wait_for(lambda: rq.counts("q").unfinished == 0, "the end")

        for job_id in ids:
            job = rq.get(job_id)
            assert job.logs == (*(f"line {number}" for number in range(30)), "from a thread", "last")
            assert job.progress == 75


def test_an_async_handler_that_awaits_what_it_says_learns_that_its_job_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    raised: list[BaseException] = []

    async def handler(job: Job, ctx: AsyncContext) -> None:
        rq.cancel(job.id)
        ctx.log("not awaited")
        try:
            await ctx.progress(50)
        except rqlab.LeaseLost as error:
            raised.append(error)
        assert ctx.lost

    with rqlab.memory() as rq:
        rq.push("q", "work")
        rq.drain("q", handler)
    gc.collect()  # an error that nobody has retrieved is told when its future goes

    assert len(raised) == 1
    assert not [record for record in caplog.records if record.name == "asyncio"]
