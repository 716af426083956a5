"""Exploration: every seed once, whoever runs it; what broke is shrunk, kept and run first; nothing done is lost."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from html.parser import HTMLParser
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer
from planted_bugs import MEMORY, Patch, no_fencing, no_stall_recovery

import rqlab
from rqlab import experiments, exploration, notebook
from rqlab.exploration import Exploration, explore
from rqlab.exploration.bugs import Bug, BugBase, read
from rqlab.exploration.processes import ChildDied, Processes
from rqlab.simulation.faults import FAULTS, Fault
from rqlab.simulation.run import simulate
from rqlab.simulation.windows import WINDOWS

SMALL: dict[str, Any] = {"store": "memory", "jobs": 6, "progress": False}


def hashes(found: Exploration) -> list[str]:
    return [row.hash for row in found.rows]


@pytest.fixture
def bugs(tmp_path: Path) -> Path:
    return tmp_path / "bugs"


# Every seed once, whoever runs it.


def test_an_exploration_is_its_simulations(bugs: Path) -> None:
    found = explore(5, processes=0, bugs=bugs, **SMALL)

    assert found.ok
    assert found.is_complete
    assert hashes(found) == [simulate(seed=seed, store="memory", jobs=6).hash for seed in range(5)]
    assert [eval(row.replay, {"rqlab": rqlab}).hash for row in found.rows] == hashes(found)
    assert not bugs.exists(), "no bug, no directory"


def test_processes_run_every_seed_once_and_give_the_same() -> None:
    found = explore(range(100, 130), processes=2, bugs=None, **SMALL)

    assert found.facts.executor == "2 processes"
    assert [row.seed for row in found.rows] == list(range(100, 130))
    assert hashes(found) == hashes(explore(range(100, 130), processes=0, bugs=None, **SMALL))


@pytest.mark.parametrize(
    "executor",
    [
        lambda: ProcessPoolExecutor(2, mp_context=get_context("spawn")),
        lambda: ProcessPoolExecutor(2, mp_context=get_context("fork")),
        lambda: ThreadPoolExecutor(4),
    ],
    ids=["spawned processes", "forked processes", "threads"],
)
def test_any_executor_will_do(executor: Any) -> None:
    with executor() as pool:
        found = explore(6, executor=pool, bugs=None, progress=False, jobs=6, durability=["durable", "hybrid"])

        assert pool.submit(len, "it is the caller's, and still open").result() > 0
    assert found.ok
    assert hashes(found) == hashes(
        explore(6, processes=0, bugs=None, progress=False, jobs=6, durability=["durable", "hybrid"])
    )


def test_a_cluster_of_dask_will_do() -> None:
    distributed = pytest.importorskip("distributed", reason="pip install 'rqlab[dask]'")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        found = explore(12, executor=client.get_executor(), bugs=None, **SMALL)

    assert found.ok
    assert found.facts.executor == "ClientExecutor"
    assert hashes(found) == hashes(explore(12, processes=0, bugs=None, **SMALL))


def test_a_script_without_a_main_guard_explores_once_also_with_a_handler_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import rqlab\n"
        "def charge(job):\n    return job.data\n"
        "found = rqlab.explore(8, handler=charge, store='memory', jobs=4, processes=2, bugs=None)\n"
        "print('explored', len(found), found.ok)\n"
    )

    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100)

    assert (run.stdout, run.stderr, run.returncode) == ("explored 8 True\n", "", 0)


def test_each_seed_is_run_in_each_mode() -> None:
    found = explore([3, 1], durability=["memory", "durable"], processes=0, bugs=None, **SMALL)

    assert [(row.durability, row.seed) for row in found.rows] == [
        ("durable", 1),
        ("durable", 3),
        ("memory", 1),
        ("memory", 3),
    ]
    assert set(found.runs["durability"]) == {"memory", "durable"}


# What broke.


def test_what_broke_is_shrunk_kept_and_told_with_its_replay_line(bugs: Path, monkeypatch: Patch) -> None:
    no_fencing(monkeypatch)

    found = explore(12, processes=0, bugs=bugs, progress=False, **MEMORY)

    assert not found.ok
    assert {failure.check for failure in found.failures} == {"I3"}
    shrunk = [failure for failure in found.failures if failure.smaller]
    assert len(shrunk) == min(len(found.failures), exploration.MOST_SHRUNK), "the others are likely the same bug"
    for failure in shrunk:
        assert failure.shrunk is not None
        assert failure.kept is not None
        assert [fault.kind for fault in failure.plan] in (["late ack"], ["freeze"])
        assert not failure.shrunk.replay().ok
        assert not eval(failure.replay_line, {"rqlab": rqlab}).ok
        assert failure.replay_line in repr(found)
        assert str(failure.kept) in repr(found)


def test_threads_shrink_too(bugs: Path, monkeypatch: Patch) -> None:
    no_stall_recovery(monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        found = explore(4, executor=pool, bugs=bugs, progress=False, **MEMORY)

    assert [failure.check for failure in found.failures] == ["L1"] * 4
    assert len(list(bugs.glob("*.json"))) == 3


def test_kept_plans_are_run_first_until_they_hold(bugs: Path, monkeypatch: Patch) -> None:
    with monkeypatch.context() as planted:
        no_fencing(planted)
        explore(3, processes=0, bugs=bugs, progress=False, **MEMORY)
        again = explore(0, processes=0, bugs=bugs, progress=False, **MEMORY)
    mended = explore(2, processes=0, bugs=bugs, **SMALL)

    assert again.known == len(list(bugs.glob("*.json"))) > 0
    assert len(again.failures) == again.known
    assert all(failure.was_known and failure.kept for failure in again.failures)
    assert "known to the bug base" in repr(again)
    assert mended.ok
    assert f"{again.known} kept plans run first" in repr(mended)


def test_an_exploration_ends_when_enough_has_failed(bugs: Path, monkeypatch: Patch) -> None:
    no_stall_recovery(monkeypatch)

    found = explore(100, processes=0, bugs=bugs, stop_after=2, progress=False, **MEMORY)

    assert len(found.failures) >= 2
    assert len(found) < 30
    assert not found.is_complete
    assert f"(stopped after {len(found.failures)} failures; 100 were planned)" in repr(found)
    assert all(failure.smaller for failure in found.failures[:2])


def test_a_simulation_that_raises_is_a_find_and_no_end(bugs: Path, monkeypatch: Patch) -> None:
    def fail(self: object) -> None:
        raise ZeroDivisionError("a bug in the simulator")

    monkeypatch.setattr("rqlab.simulation.stage.Stage.run", fail)

    found = explore(3, processes=0, bugs=bugs, **SMALL)

    assert [failure.check for failure in found.failures] == ["raised"] * 3
    assert "ZeroDivisionError: a bug in the simulator" in repr(found)


# The bug base.


def test_a_bug_is_written_whole_or_not_at_all_and_never_over_what_people_wrote(bugs: Path, monkeypatch: Patch) -> None:
    bug = Bug(
        check="I3", says="x", seed=1, arguments={"durability": "durable"}, plan=[Fault(1.0, "freeze")], replay="y"
    )
    base = BugBase(bugs)
    kept = base.keep(bug)
    kept.write_text(kept.read_text().replace('"why": ""', '"why": "a person wrote this"'))

    assert base.keep(bug) == kept
    assert read(kept).why == "a person wrote this"

    def fail(fd: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        base.keep(Bug(check="R1", says="x", seed=2, arguments={"durability": "durable"}, plan=[], replay="y"))
    assert list(bugs.iterdir()) == [kept]


@pytest.mark.parametrize(
    "content",
    ["", "{}", '{"check": 1}', '{"rqlab":9,"check":"I3","says":"","seed":1,"arguments":{},"plan":[],"replay":""}'],
)
def test_a_file_that_is_no_bug_is_named(bugs: Path, content: str) -> None:
    bugs.mkdir()
    (bugs / "other.json").write_text(content)

    with pytest.raises(rqlab.ValidationError, match=r"cannot read .*other\.json: expected"):
        explore(1, processes=0, bugs=bugs, **SMALL)


def test_a_bug_of_another_handler_is_left_alone(bugs: Path) -> None:
    given = {**simulate(0, seed=1, jobs=1, store="memory").header.arguments, "handler": "somebody_elses"}
    BugBase(bugs).keep(Bug(check="I3", says="x", seed=1, arguments=given, plan=[], replay="y"))

    assert explore(1, processes=0, bugs=bugs, **SMALL).known == 0


# When it does not go well.


@pytest.fixture
def fatal() -> dict[str, Any]:
    """What is simulated with these under seed 7 kills its process."""
    return {**SMALL, "handler": _deadly, "jobs": [{"name": "x"}], "crashes": 0, "faults": ()}


def _deadly(job: rqlab.Job) -> None:
    """Ids are drawn from the seed: by them a handler can tell worlds apart."""
    if job.id == DEADLY:
        os.kill(os.getpid(), signal.SIGKILL)


DEADLY = simulate(0, seed=7, faults=(), jobs=[{"name": "x"}], store="memory").jobs["id"].iloc[0]


def test_a_seed_that_ends_its_process_is_named_and_the_others_are_run(fatal: dict[str, Any]) -> None:
    found = explore(10, processes=2, bugs=None, **fatal)

    assert not found.ok
    assert [death.seeds for death in found.died] == [((7, "durable"),)]
    assert [row.seed for row in found.rows] == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert "killed by signal 9 (SIGKILL): 7 (durable)" in repr(found)


def test_a_pool_that_breaks_is_told_with_the_seeds_in_flight(fatal: dict[str, Any]) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = explore(10, executor=pool, bugs=None, **fatal)

    (death,) = found.died
    assert (7, "durable") in death.seeds
    assert not found.is_complete
    assert {row.seed for row in found.rows}.isdisjoint(seed for seed, _ in death.seeds)
    assert "ProcessPoolExecutor lost a process (BrokenProcessPool" in repr(found)


def test_a_child_that_dies_takes_its_call_and_no_other() -> None:
    with Processes(1) as children:
        (doomed, other) = children.submit(os._exit, 3), children.submit(len, "four")

        with pytest.raises(ChildDied, match="exit code 3"):
            doomed.result(60)
        assert other.result(60) == 4
        with pytest.raises(ZeroDivisionError):
            children.submit(divmod, 1, 0).result(60)
        (pid,) = children.pids()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_interrupt_gives_what_was_done_so_far(monkeypatch: Patch) -> None:
    calls = iter(range(100))
    wait = exploration.wait

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return wait(*arguments, **options)

    monkeypatch.setattr(exploration, "wait", interrupted)

    found = explore(10_000, processes=2, bugs=None, **SMALL)

    assert found.ok
    assert 4 <= len(found) < 10_000
    assert not found.is_complete
    assert "(interrupted; 10,000 were planned)" in repr(found)


def test_ctrl_c_ends_the_command_with_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from pathlib import Path\ndef handler(job):\n    Path('begun').touch()\n")
    command = subprocess.Popen(
        [Path(sys.executable).parent / "rqlab", "explore", "100000", "--store", "memory", "--jobs", "4",
         "--processes", "1", "--handler", "mine:handler"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        tasks = Path(f"/proc/{command.pid}/task").glob("*/children")
        children = [child for each in tasks for child in each.read_text().split()]
        command.send_signal(signal.SIGINT)
        said, complained = command.communicate(timeout=60)
    finally:
        command.kill()
        command.wait()

    assert (command.returncode, complained) == (130, "")
    assert "every promise held (interrupted; 100,000 were planned)" in said
    assert children
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


# What is shown.


def test_what_was_tried_is_counted_and_what_was_not_is_named() -> None:
    found = explore(8, processes=0, bugs=None, progress=False, faults=9, durability=["durable", "hybrid"])
    alone = [simulate(seed=row.seed, durability=row.durability, faults=9) for row in found.rows]

    assert found.coverage["power cut"] == sum(each.coverage["power cut"] for each in alone) > 0
    assert {*FAULTS, *(f"window: {window}" for window in WINDOWS), *(f"check: {each}" for each in rqlab.CHECKS)} <= set(
        found.coverage
    )
    assert found.coverage["check: I3"] > 1_000
    assert "cut: sigkill" in found.missed, "a power cut that loses nothing is no power cut"
    rates = found.rates
    assert rates["seeds_per_second"] * found.facts.seconds == pytest.approx(16)
    assert rates["events_per_second"] * found.facts.seconds == pytest.approx(sum(len(each.history) for each in alone))
    assert rates["cuts_per_second"] > 0
    assert rates["simulated_hours_per_second"] > 0
    assert "every promise held" in repr(found)
    assert "seeds/s" in repr(found)


def test_the_tables_are_tidy_and_agree_with_the_simulations() -> None:
    found = explore(6, processes=0, bugs=None, progress=False, durability="hybrid")
    alone = [simulate(seed=seed, durability="hybrid") for seed in range(6)]

    assert list(found.runs["seed"]) == list(range(6))
    assert list(found.runs["writes_lost"]) == [sum(loss.writes for loss in each.header.losses) for each in alone]
    assert list(found.runs["recoveries"]) == [len(each.header.losses) for each in alone]
    assert len(found.crashes) == found.runs["recoveries"].sum()
    assert set(found.crashes["verdict"]) <= {"held", "lost"}
    assert (found.crashes["verdict"] == "lost").sum() == (found.crashes["writes_lost"] > 0).sum()


def test_the_picture_has_each_crash_and_the_lines_of_what_broke(monkeypatch: Patch, tmp_path: Path) -> None:
    no_fencing(monkeypatch)
    found = explore(6, processes=0, bugs=None, progress=False, shrink=False, **MEMORY)

    chart = found.plot()
    chart.save(tmp_path / "grid.png")

    assert (tmp_path / "grid.png").stat().st_size > 5_000
    assert set(chart.data["verdict"]) == {"held", "violated"}
    broken = chart.data[chart.data["verdict"] == "violated"]
    assert set(broken["crash"]) == {"no crash"}
    assert found.failures[0].replay_line in set(broken["replay"])


def test_what_a_notebook_shows_is_escaped_and_says_it_all(monkeypatch: Patch) -> None:
    no_fencing(monkeypatch)
    found = explore(4, processes=0, bugs=None, progress=False, shrink=False, **MEMORY)
    found.failures[0] = found.failures[0]._replace(says="<script>alert(1)</script>")

    shown = found._repr_html_()

    class Page(HTMLParser):
        tags: ClassVar[list[str]] = []

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.tags.append(tag)

    Page().feed(shown)
    assert "script" not in Page.tags
    assert "SAFETY BROKEN" in shown
    assert "checkpoint" in shown
    assert found.failures[1].replay_line.partition("(")[0] in shown


def test_the_bar_is_drawn_for_people_alone(capsys: pytest.CaptureFixture[str], monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", sys)  # a program may import it; that makes no kernel of it
    explore(2, processes=0, bugs=None, store="memory", jobs=2)
    assert capsys.readouterr() == ("", ""), "not in a log"

    monkeypatch.setattr(notebook, "is_kernel", lambda: True)
    explore(2, processes=0, bugs=None, store="memory", jobs=2)
    said = capsys.readouterr()
    assert "exploring durable: 100%" in said.out
    assert "2/2" in said.out
    assert said.err == "", "a notebook shows that in red"

    explore(2, processes=0, bugs=None, store="memory", jobs=2, progress=False)
    assert capsys.readouterr() == ("", "")


# Wrong arguments.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"seed": 7}, "expected seeds, not a seed"),
        ({"seeds": -1}, "seeds: expected a whole number"),
        ({"seeds": ["a"]}, "seeds: expected a whole number"),
        ({"jbos": 3}, "simulate has no argument jbos; it has crashes, seed, jobs"),
        ({"durability": "sturdy"}, "durability: expected durable, buffered, hybrid, memory"),
        ({"durability": []}, "durability: expected"),
        ({"executor": 4}, "executor: expected one of concurrent.futures"),
        ({"executor": ThreadPoolExecutor(1), "processes": 2}, "not both"),
        ({"processes": -1}, "processes: expected"),
        ({"budget": 0}, "budget: expected"),
        ({"stop_after": 0}, "stop_after: expected"),
        ({"workers": 0}, "workers: expected"),
        ({"store": "memory", "durability": "hybrid"}, 'store: expected "disk"'),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused_and_said(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(rqlab.ValidationError) as refused:
        explore(**{"seeds": 2, "processes": 0, "bugs": None, "progress": False} | arguments | _unless(arguments))

    assert said in str(refused.value)


def _unless(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"processes": arguments.get("processes")} if "executor" in arguments else {}


def test_a_handler_that_cannot_travel_is_refused() -> None:
    lock = threading.Lock()

    with pytest.raises(rqlab.ValidationError, match="expected a handler that can travel"):
        explore(2, handler=lambda job: lock.locked(), bugs=None, **SMALL)


def test_an_executor_that_refuses_work_ends_the_exploration() -> None:
    class Closed(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
            raise RuntimeError("cannot schedule new futures after shutdown")

    with pytest.raises(RuntimeError, match="after shutdown"):
        explore(2, executor=Closed(), bugs=None, **SMALL)


# The command line.


def test_the_command_explores_and_ends_with_1_when_a_promise_broke(
    tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_stall_recovery(monkeypatch)

    with pytest.raises(typer.Exit) as ended:
        experiments.explore(
            "2-4", store="memory", faults=9.0, processes=0, bugs=tmp_path / "bugs", plot=tmp_path / "grid.png"
        )

    said = capsys.readouterr().out
    assert ended.value.exit_code == 1
    assert said.startswith("3 seeds in durable: 3 broke a promise")
    assert "replay: rqlab.simulate(seed=2, store='memory', faults=9.0)" in said
    assert "shrunk to 1 fault in " in said
    assert (tmp_path / "grid.png").exists()


def test_the_command_explores_every_mode_in_processes(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "rqlab", "explore", "2", "--durability", "all", "--jobs", "3"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip

    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("8 runs in buffered, durable, hybrid, memory: every promise held\n")
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_seeds_is_one_line() -> None:
    with pytest.raises(rqlab.ValidationError, match="seeds: expected a number, such as 1000, or a range, 500-999"):
        experiments.explore("many")
