"""The lab: real processes, killed by methods and by buttons, without a browser. What it starts it ends by its id."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ipywidgets.widgets.widget import _instances as alive

import rqlab
from benchmarks.panel import MAX_BYTES, MAX_MILLISECONDS, a_full_lab, ticks
from rqlab import clock
from rqlab.clock import Bell
from rqlab.durability import MODES, Opening
from rqlab.errors import RQLabError, StoreError, ValidationError
from rqlab.widgets import registry, view
from rqlab.widgets.lab import Lab
from rqlab.widgets.view import LIVE, DirectoryReader, newest
from tests.test_panels import found, tickers

PATIENCE = 60.0  # seconds, for what takes one on a quiet machine
QUICK = {"seconds": 0.0, "failure_rate": 0.0}


def state_of(view: dict[str, Any], name: str) -> str:
    return next((str(row["state"]) for row in view["workers"] if row["name"] == name), "not there")


def until(lab: Lab, happened: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    return lab.wait_until(happened, PATIENCE)


def until_state(lab: Lab, name: str, *states: str) -> dict[str, Any]:
    return until(lab, lambda view: state_of(view, name) in states)


def holding(lab: Lab, name: str) -> dict[str, Any]:
    """Wait until this worker runs a job."""
    return until(lab, lambda view: any(row["name"] == name and row["job"] for row in view["workers"]))


def lives(pid: int) -> bool:
    """Whether it is there, and no zombie that waits to be reaped by whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids: list[int], seconds: float) -> bool:
    """Whether all of them end within so many seconds."""
    by = clock.monotonic() + seconds
    while any(map(lives, pids)):
        if clock.monotonic() > by:
            return False
        Bell().wait(0.02)
    return True


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Two workers in durable; jobs take about a second."""
    with rqlab.lab(failure_rate=0.0, seconds=1.0, stall_timeout=1.0, tick_interval=0.2) as opened:
        yield opened


@pytest.fixture
def quick() -> Iterator[Lab]:
    """The same; jobs take no time."""
    with rqlab.lab(**QUICK, stall_timeout=1.0, tick_interval=0.2) as opened:
        yield opened


# What code can do.


def test_what_is_pushed_is_run_by_processes_of_its_own(quick: Lab) -> None:
    quick.push(20)
    view = quick.settle(PATIENCE)

    assert view["counts"]["completed"] == view["acknowledged"] == 20
    assert {row["worker"] for row in view["attempts"]} <= {"w1", "w2"}
    assert [row["id"] for row in view["jobs"]] == [f"job {number}" for number in range(1, 21)]
    assert len({os.getpid(), *quick.pids.values()}) == 4
    assert view["safe"]


def test_the_job_of_a_killed_worker_is_recovered_and_completes(lab: Lab) -> None:
    lab.push(2)
    holding(lab, "w1")
    pid = lab.pids["w1"]

    lab.kill("w1")
    silent = until(lab, lambda view: bool(view["silent"]))
    view = lab.settle(PATIENCE)

    assert gone([pid], PATIENCE)
    assert state_of(silent, "w1") == "killed"
    assert view["counts"]["completed"] == 2
    assert [fault["target"] for fault in view["faults"]] == ["w1"]
    assert [row["outcome"] for row in view["attempts"] if row["job"] == silent["silent"][0]] == ["stalled", "completed"]
    assert view["safe"]


def test_one_can_wait_until_a_run_is_under_way(lab: Lab) -> None:
    lab.push()

    name = lab.wait_for_run(0.2, PATIENCE)

    (run,) = lab.view()["attempts"]
    assert name == run["worker"]
    with pytest.raises(TimeoutError, match="waited 0 s"):
        lab.wait_for_run(3600, timeout=0)


def test_a_restart_gives_a_new_pid_also_to_one_that_lives(quick: Lab) -> None:
    until_state(quick, "w1", "idle")
    before = quick.pids

    quick.restart("w1")
    until(quick, lambda view: quick.pids["w1"] != before["w1"] and state_of(view, "w1") == "idle")

    assert gone([before["w1"]], PATIENCE)
    assert quick.pids["w2"] == before["w2"]


def test_a_frozen_worker_loses_its_job_and_does_no_harm_when_it_thaws(lab: Lab) -> None:
    lab.push(2)
    holding(lab, "w1")

    lab.freeze("w1")
    assert state_of(lab.view(), "w1") == "frozen"
    until(lab, lambda view: any(row["outcome"] == "stalled" for row in view["attempts"]))
    lab.thaw("w1")
    view = lab.settle(PATIENCE)

    assert (view["counts"]["completed"], view["safe"]) == (2, True)
    until_state(lab, "w1", "idle")


def test_a_paused_queue_takes_pushes_and_gives_no_job(quick: Lab) -> None:
    quick.pause()
    until(quick, lambda view: bool(view["paused"]))
    quick.push(3)
    view = until(quick, lambda view: view["acknowledged"] == 3)
    assert view["counts"]["waiting"] == 3

    with pytest.raises(TimeoutError, match=r"waiting 3.*; the queue is paused"):
        quick.settle(0.0)
    quick.resume()

    assert quick.settle(PATIENCE)["counts"]["completed"] == 3


def test_kill_all_leaves_nobody_and_every_job_there(quick: Lab) -> None:
    quick.pause()
    quick.push(10)
    until(quick, lambda view: view["acknowledged"] == 10)
    pids = list(quick.pids.values())

    quick.kill_all()

    assert gone(pids, PATIENCE)
    view = until(quick, lambda view: view["crashes"] == 3)
    assert (view["counts"]["waiting"], view["lost"], view["safe"]) == (10, 0, True)
    assert {state_of(view, name) for name in ("producer", "w1", "w2")} == {"killed"}


def test_what_cannot_be_done_is_said_and_to_whom_it_was_to_be_done(quick: Lab) -> None:
    quick.kill("producer")
    until_state(quick, "producer", "killed")

    with pytest.raises(RQLabError, match=r"cannot push: expected producer to run, found it killed\. Restart producer"):
        quick.push()
    with pytest.raises(RQLabError, match="cannot freeze producer: expected producer to run, found it killed"):
        quick.freeze("producer")
    with pytest.raises(ValidationError, match="expected one of producer, w1, w2; got 'w3'"):
        quick.kill("w3")


def test_sliders_change_what_is_pushed_from_then_on(quick: Lab) -> None:
    quick.set_workload(failure_rate=1.0, seconds=0.0)
    quick.push(1)
    view = until(quick, lambda view: any(row["outcome"] == "failed" for row in view["attempts"]))

    assert "bad luck" in view["jobs"][0]["error"]
    with pytest.raises(ValidationError, match="failure_rate"):
        quick.set_workload(failure_rate=2.0)
    with pytest.raises(ValidationError, match="seconds: expected at most 60"):
        quick.set_workload(seconds=100)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"durability": "eventual"}, "mode: expected one of 'durable'"), ({"workers": 0}, "workers"),
        ({"workers": 17}, "workers"), ({"handler": "nowhere:send"}, "no module named 'nowhere'"),
        ({"handler": 7}, "handler"), ({"seed": -1}, "seed"), ({"stall_timeout": 0.01}, "stall_timeout"),
        ({"directory": 3}, "directory: expected the path"), ({"data": object()}, "data"),
        ({"max_batch": 0}, "max_batch"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused_before_anything_starts(wrong: dict[str, Any], says: str) -> None:
    threads = threading.active_count()

    with pytest.raises(ValidationError, match=says):
        rqlab.lab(**wrong)

    assert threading.active_count() == threads


def test_the_same_seed_gives_the_same_jobs() -> None:
    data = []
    for seed in (5, 5, 6):
        with rqlab.lab(workers=1, seed=seed, **(QUICK | {"seconds": 0.01})) as lab:
            lab.push(3)
            lab.settle(PATIENCE)
            data.append([job.data for job in lab.jobs()])

    assert data[0] == data[1] != data[2]


def test_a_handler_from_here_travels_to_the_workers() -> None:
    factor = 3

    def triple(job: rqlab.Job) -> int:
        return int(job.data) * factor

    with rqlab.lab(handler=triple, data=14, name="triple") as lab:
        lab.push(2)
        lab.settle(PATIENCE)

        assert [(job.name, job.result) for job in lab.jobs()] == [("triple", 42)] * 2


def test_a_handler_is_found_by_name() -> None:
    with rqlab.lab(handler="tests.handlers_that_travel:echo", data=4, durability="buffered") as lab:
        lab.push(1)
        lab.settle(PATIENCE)

        assert [job.result for job in lab.jobs()] == [4]


def test_a_directory_of_ones_own_is_kept_and_opened_cleanly(tmp_path: Path) -> None:
    with rqlab.lab(tmp_path / "jobs", durability="hybrid", **QUICK) as lab:
        lab.pause()
        lab.push(5)
        until(lab, lambda view: view["acknowledged"] == 5)

    with rqlab.open(tmp_path / "jobs") as rq:
        assert rq.counts().waiting == 5


def test_a_directory_that_cannot_be_had_is_told_in_the_panel(tmp_path: Path) -> None:
    with (
        rqlab.open(tmp_path / "jobs", "buffered"),
        rqlab.lab(tmp_path / "jobs", durability="hybrid") as lab,
    ):
        view = until_state(lab, "owner", "ended")

    (owner,) = [row for row in view["workers"] if row["name"] == "owner"]
    assert "buffered" in owner["says"]


# The mission.


@pytest.mark.parametrize("mode", ["buffered", "hybrid", "memory"])
def test_the_mission_can_be_done_within_the_modes_row(mode: str) -> None:
    with rqlab.lab(durability=mode, **QUICK) as lab:
        for _ in range(20):  # a commit may have come just then
            until_state(lab, "owner", "running")
            lab.push_and_kill(300)
            view = until(lab, lambda view: state_of(view, "owner") == "killed" and not view["at_risk"])
            if view["lost"]:
                break
            lab.restart("owner")
            until(lab, lambda view: state_of(view, "owner") != "killed")

        lab.restart("owner")
        view = lab.settle(PATIENCE)

    assert view["lost"] > 0
    assert view["safe"], view["broken_by"]
    assert view["lost"] + view["undone"] <= view["allowed"]
    assert view["counts"]["completed"] + view["lost"] == view["acknowledged"] + _unheard(view)


def _unheard(view: dict[str, Any]) -> int:
    """Jobs that were stored, but whose producer died before it could say so."""
    return len([row for row in view["jobs"] if not row["lost"]]) + view["lost"] - view["acknowledged"]


def test_durable_cannot_be_beaten() -> None:
    names = ("producer", "w1", "w2", "w3")
    with rqlab.lab(workers=3, **QUICK) as lab:
        for _ in range(5):  # four processes each time: twenty kills
            until(lab, lambda view: all(state_of(view, name) in ("running", "idle", "active") for name in names))
            lab.push_and_kill(80)
            until_state(lab, "producer", "killed")
            lab.kill_all()
            until(lab, lambda view: {row["state"] for row in view["workers"]} == {"killed"})
            for name in names:
                lab.restart(name)
        lab.settle(PATIENCE)
        view = until(lab, lambda view: view["crashes"] == 20)

    assert (view["lost"], view["undone"]) == (0, 0)
    assert view["safe"], view["broken_by"]
    assert view["acknowledged"] >= 200


def test_a_mode_is_changed_by_stopping_and_opening_anew() -> None:
    with rqlab.lab(**QUICK) as lab:
        lab.push(5)
        lab.settle(PATIENCE)
        before = list(lab.pids.values())
        for mode in ("hybrid", "memory", "buffered", "durable"):
            lab.change_mode(mode)
            view = until(lab, lambda view, mode=mode: view["mode"] == mode and not view["changing"])
            assert lab.pids.keys() == ({"producer", "w1", "w2"} if mode == "durable" else {"owner"})
            lab.push(5)
            view = lab.settle(PATIENCE)
            assert view["safe"], view["broken_by"]

    assert gone(before, PATIENCE)
    assert view["lost"] == 5  # those of memory, at its clean end: its row says all
    assert view["counts"]["completed"] == 20


def test_what_is_asked_of_a_producer_that_is_on_its_way_waits_for_it() -> None:
    with rqlab.lab(**QUICK) as lab:
        lab.kill("producer")
        lab.restart("producer")
        lab.push(3)
        assert lab.settle(PATIENCE)["counts"]["completed"] == 3

        lab.change_mode("hybrid")
        lab.pause()
        lab.push(4)
        view = until(lab, lambda view: view["counts"]["waiting"] == 4 and bool(view["paused"]))
        lab.change_mode("memory")
        lab.resume()
        lab.push(5)
        view = lab.settle(PATIENCE)

    assert (view["mode"], view["counts"]["completed"], view["unanswered"]) == ("memory", 5, 0)


# Ends.


def test_close_ends_a_frozen_worker_too_and_is_idempotent(lab: Lab) -> None:
    lab.push(2)
    holding(lab, "w1")
    lab.freeze("w1")
    pids, home = list(lab.pids.values()), lab.path.parent

    lab.close()
    lab.close()

    assert not any(map(lives, pids))
    assert not home.exists()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("rqlab-lab")] == []
    with pytest.raises(RQLabError, match="closed"):
        lab.push()


def test_close_does_not_wait_for_a_frozen_owner_whose_pipe_is_full() -> None:
    with rqlab.lab(durability="buffered", handler=_nothing, data="x" * 4_000, **QUICK) as lab:
        until_state(lab, "owner", "running")
        lab.freeze("owner")
        lab.push(100)
        lab.change_mode("hybrid")
        lab.kill("owner")


def _nothing(job: rqlab.Job) -> None:
    """A handler that does nothing."""


PARENT = """
import sys, rqlab
from rqlab.clock import Bell
lab = rqlab.lab(durability=sys.argv[1], seconds=30.0, failure_rate=0.0)
lab.push(2)
name = "w1" if sys.argv[1] == "durable" else "owner"
lab.wait_until(lambda view: view["counts"]["active"] > 0)
if sys.argv[2] == "frozen":
    lab.freeze(name)
try:
    print(*lab.pids.values(), lab.path.parent, flush=True)
    Bell().wait(600)
except KeyboardInterrupt:
    dead = [row["name"] for row in lab.view()["workers"] if row["state"] in ("killed", "ended")]
    print("interrupted, dead:", *dead, flush=True)
    Bell().wait(600)
"""


@contextlib.contextmanager
def parent(mode: str, how: str) -> Iterator[tuple["subprocess.Popen[str]", list[int], Path]]:
    """A Python process with a lab, in a session of its own as a kernel is."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, mode, how], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    home = None
    try:
        assert process.stdout is not None
        *pids, home = process.stdout.readline().split()
        yield process, list(map(int, pids)), Path(home)
    finally:
        process.kill()
        process.wait()
        if home is not None:
            subprocess.run(["rm", "-rf", home], check=True)
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.parametrize("how", ["running", "frozen"])
@pytest.mark.parametrize("mode", ["durable", "hybrid"])
def test_no_worker_survives_a_killed_kernel_by_two_seconds(mode: str, how: str) -> None:
    with parent(mode, how) as (process, pids, home):
        assert all(map(lives, pids))

        process.kill()

        assert gone(pids, 2.0)
        assert (mode, how) == (
            "hybrid",
            "frozen",
        ) or not home.exists()  # a frozen owner has nobody to clear up after it


def test_a_process_stands_still_when_freeze_returns(lab: Lab) -> None:
    """Else a kernel that is killed right then leaves it frozen for ever: the system wakes what stands still."""
    lab.wait_until(lambda view: all(row["state"] != "starting" for row in view["workers"]))
    states = []
    for _ in range(100):
        lab.freeze("w1")
        states.append(psutil.Process(lab.pids["w1"]).status())
        lab.thaw("w1")

    assert set(states) == {psutil.STATUS_STOPPED}


def test_an_interrupt_of_the_kernel_leaves_the_workers_alone() -> None:
    with parent("durable", "running") as (process, pids, _):
        os.killpg(process.pid, signal.SIGINT)

        assert process.stdout is not None
        assert process.stdout.readline().split() == ["interrupted,", "dead:"]
        assert all(map(lives, pids))


# The panel.


def labs_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rqlab-")]


def test_ten_runs_of_the_cell_leave_one_ticker_and_no_widget_behind() -> None:
    counted, pids = [], []
    for _ in range(10):
        lab = rqlab.lab(workers=1)  # nobody closes it: that is what a cell does
        lab.widget._view_count = 1
        pids.append(list(lab.pids.values()))
        counted.append((len(alive), len(tickers())))

    assert len(set(counted)) == 1
    assert counted[0][1] == 1
    assert gone([pid for each in pids[:-1] for pid in each], PATIENCE)
    lab.close()
    assert gone(pids[-1], PATIENCE)


def test_labs_on_two_directories_stand_side_by_side(tmp_path: Path) -> None:
    with rqlab.lab(tmp_path / "a", workers=1) as first, rqlab.lab(tmp_path / "b", workers=1) as second:
        assert not first.is_closed
        with rqlab.lab(tmp_path / "a", workers=1) as third:
            assert (first.is_closed, second.is_closed, third.is_closed) == (True, False, False)


SPAN = {"started": 0.0, "ended": 1.0, "outcome": "completed", "worker": "w1", "delivery": 1}
WAITS = {"finished": None, "lost": False, "pushed": 0.0}


@pytest.mark.parametrize(
    ("runs", "since"),
    [
        ([(0.0, 1.0), (5.0, 6.0)], None),  # no long silence
        ([(0.0, 1.0), (90.0, 91.0), (95.0, 96.0)], 90.0),  # after one
        ([(0.0, 100.0), (90.0, 91.0)], None),  # somebody ran all the while
        ([(0.0, None), (90.0, 91.0)], None),  # and runs still
    ],
)
def test_a_timeline_begins_after_the_last_long_silence(runs: list[tuple[float, float | None]], since: Any) -> None:
    attempts = [{**SPAN, "job": f"job {n}", "started": began, "ended": ended} for n, (began, ended) in enumerate(runs)]
    jobs = [{**WAITS, "id": f"job {n}", "finished": ended} for n, (_, ended) in enumerate(runs)]
    view = {
        "attempts": attempts,
        "jobs": jobs,
        "events": [],
        "silent": [],
        "now": 100.0,
        "counts": dict.fromkeys(LIVE, 0),
    }

    assert newest(view)["since"] == since


def test_a_timeline_leaves_out_what_would_say_nothing_more_and_says_so() -> None:
    attempts = [{**SPAN, "job": f"job {n}", "started": float(n), "ended": n + 1.0} for n in range(100)]
    jobs = [{**WAITS, "id": f"job {n}", "finished": n + 1.0} for n in range(100)]
    jobs += [{**WAITS, "id": f"job {n}"} for n in range(100, 140)]
    jobs += [{**WAITS, "id": f"job {n}", "lost": True} for n in range(140, 150)]
    counts = dict.fromkeys(LIVE, 1)
    view = {"attempts": attempts, "jobs": jobs, "events": [], "silent": [], "now": 100.0, "counts": counts}

    shown = newest(view)

    assert shown["left_out"] == {"older run": 40, "waiting job": 35, "lost job": 5}
    assert len(shown["jobs"]) == 70
    assert shown["since"] == 40.0


def press(lab: Lab, name: str) -> None:
    button = found(lab, name)
    assert not button.disabled, name
    button.click()


def test_every_control_does_what_it_says(lab: Lab) -> None:
    """One lab, every button and slider, in an order in which each can be pressed."""
    until(lab, lambda view: state_of(view, "producer") == "running" and state_of(view, "w1") == "idle")
    lab.draw()
    for count in (1, 10):
        press(lab, f"push-{count}")
    until(lab, lambda view: view["acknowledged"] == 11)
    press(lab, "pause")
    until(lab, lambda view: bool(view["paused"]))
    lab.draw()
    press(lab, "resume")
    until(lab, lambda view: not view["paused"])
    found(lab, "seconds").value = 0.0
    found(lab, "failure-rate").value = 1.0
    assert (lab._controller.seconds, lab._controller.failure_rate) == (0.0, 1.0)
    holding(lab, "w1")
    lab.draw()
    pid = lab.pids["w1"]
    press(lab, "freeze-w1")
    until_state(lab, "w1", "frozen")
    lab.draw()
    press(lab, "thaw-w1")
    until_state(lab, "w1", "idle", "active")
    lab.draw()
    press(lab, "kill-w1")
    until_state(lab, "w1", "killed")
    lab.draw()
    assert found(lab, "kill-w1").disabled
    assert "killed" in found(lab, "worker-w1").value
    assert gone([pid], PATIENCE)
    press(lab, "restart-w1")
    until_state(lab, "w1", "idle", "active")
    found(lab, "failure-rate").value = 0.0
    press(lab, "push-100")
    until(lab, lambda view: view["acknowledged"] == 111)
    press(lab, "push-and-kill")
    until_state(lab, "producer", "killed")
    lab.draw()
    assert "The producer is dead" in found(lab, "hint").value
    press(lab, "kill-all")
    until(lab, lambda view: {row["state"] for row in view["workers"]} == {"killed"})
    lab.draw()
    assert "Nobody works or keeps house" in found(lab, "hint").value
    found(lab, "mode").value = "buffered"
    until_state(lab, "owner", "running")
    lab.draw()
    assert "<b>kill -9 owner</b> takes them all" in found(lab, "columns").value
    assert [found(lab, f"kill-{name}").layout.display for name in ("owner", "w1")] == [None, "none"]
    assert "SAFETY HOLDS ✓" in found(lab, "header").value
    assert found(lab, "problem").value == ""


def test_clicks_may_come_from_many_threads_at_once(quick: Lab) -> None:
    until_state(quick, "w1", "idle")
    quick.draw()
    names = ["push-1"] * 20 + ["push-10"] * 4 + ["freeze-w1", "thaw-w1", "kill-w1", "restart-w1", "pause", "resume"]
    started = threading.Barrier(len(names))

    def click(name: str) -> None:
        started.wait(PATIENCE)
        found(quick, name).click()

    threads = [threading.Thread(target=click, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    quick.resume()
    until(quick, lambda view: not view["paused"])
    view = quick.settle(PATIENCE)

    assert not any(thread.is_alive() for thread in threads)
    assert (view["acknowledged"], view["counts"]["completed"], view["safe"]) == (60, 60, True)


def test_the_filters_choose_what_the_timeline_shows(quick: Lab) -> None:
    quick.push(1)
    quick.set_workload(failure_rate=0.5)
    quick.push(6)
    quick.settle(PATIENCE)
    quick.draw()
    assert "job 1<" in found(quick, "timeline").value

    found(quick, "failed-only").value = True
    quick.draw()
    assert "job 1<" not in found(quick, "timeline").value
    quick.show(job=1)
    quick.draw()

    assert found(quick, "this-job").value == "1"
    assert "job 1<" in found(quick, "timeline").value
    assert "job 2" not in found(quick, "timeline").value


def test_what_a_click_cannot_do_stands_in_the_panel(quick: Lab) -> None:
    quick.draw()
    quick.kill("producer")

    found(quick, "push-1").click()

    assert "expected producer to run, found it killed" in found(quick, "problem").value


def test_nobody_looking_reads_nothing(quick: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    quick.draw()
    view = quick._viewer.view
    monkeypatch.setattr(quick._viewer, "view", lambda: looks.append(1) or view())

    quick._ticker.step()
    assert looks == []
    quick.widget._view_count = 1
    by = clock.monotonic() + PATIENCE
    while not looks and clock.monotonic() < by:
        Bell().wait(0.02)

    assert looks


def test_the_panel_is_text_where_widgets_cannot_be_shown(quick: Lab) -> None:
    data, _ = (
        quick._repr_mimebundle_() if isinstance(quick._repr_mimebundle_(), tuple) else (quick._repr_mimebundle_(), 0)
    )

    assert data["text/plain"].startswith("<rqlab.Lab durable in ")
    assert data["text/html"].startswith("<p>A live panel stood here: <code>rqlab.lab</code> in durable, with ")
    assert "application/vnd.jupyter.widget-view+json" in data


def test_a_tick_of_a_full_lab_costs_little_and_sends_little() -> None:
    """The contract's 20 ms are the benchmark's; here ten times as much, of the processor, since others use it too."""
    with a_full_lab() as lab:
        _, used, most = ticks(lab, 5)

    assert sorted(used)[2] < 10 * MAX_MILLISECONDS
    assert 0 < most <= MAX_BYTES


HOSTILE = "<img src=x onerror=alert(1)>\"'&\u202e\x1b[31m"


def _hostile(job: rqlab.Job) -> None:
    raise RuntimeError(HOSTILE)


def test_hostile_errors_and_payloads_are_escaped_everywhere() -> None:
    with rqlab.lab(handler=_hostile, data=HOSTILE, durability="memory", stall_timeout=5.0) as lab:
        lab.push(1)
        until(lab, lambda view: any(row["outcome"] == "failed" for row in view["attempts"]))
        lab.show(job=HOSTILE)
        lab.draw()
        lab.show()
        lab.draw()
        shown = "".join(lab._shell.texts.values()) if lab._shell else ""
        report = lab.report()._repr_html_()

    assert "RuntimeError: &lt;img" in shown
    for page in (shown, report):
        assert "<img src=x" not in page
        assert "\u202e" not in page
        assert "\x1b" not in page


def test_the_report_stays_when_the_lab_is_gone(quick: Lab) -> None:
    quick.push(3)
    quick.settle(PATIENCE)
    report = quick.report()
    quick.close()

    assert quick.report().summary().splitlines()[1:] == report.summary().splitlines()[1:]  # a closed lab is as it was
    assert len(quick.jobs()) == 3
    page = report._repr_html_()
    words = page.replace(page[page.index("base64,") : page.index('">', page.index("base64,"))], "")
    assert len(words.encode()) <= 5 * 1024
    assert "SAFETY HOLDS ✓" in words
    assert "kill -9: 0; acknowledged 3, lost 0 (durable may lose: nothing)" in repr(report)
    assert "not judged here: power cut" in repr(report)
    assert report.timeline().figure is not None


def test_every_mode_has_a_row_to_be_held_against() -> None:
    opening = Opening("jobs")

    assert {name: MODES[name].most_lost(opening) > 0 for name in MODES} == {
        "durable": False, "buffered": True, "hybrid": True, "memory": True,
    }  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def nothing_is_left() -> Iterator[None]:
    yield
    registry.close_all()
    assert [name for name in labs_threads() if name.startswith("rqlab-lab")] == []


def test_a_directory_that_is_made_while_somebody_looks_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_meanwhile(path: Path) -> None:
        (path / "cache.db").touch()
        raise StoreError(f"cannot read {path}: found none")

    monkeypatch.setattr(view, "ReadOnlyStore", made_meanwhile)

    assert DirectoryReader(tmp_path).read() is None
