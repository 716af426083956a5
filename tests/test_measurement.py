"""What rqlab.measure promises: figures that add up, losses that are counted, nothing left behind."""

import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import rqlab
from rqlab import clock, measurement, notebook
from rqlab.errors import StoreError, ValidationError
from rqlab.measurement import COLUMNS, Measurement, callers, cuts, kills, losses, machine, paced, promises, speed
from rqlab.measurement.progress import Progress
from rqlab.simulation import recorder, recovery
from rqlab.storage import cache

DEADLINE_SECONDS = 60.0
SMALL = {"seconds": 0.02, "repeats": 1, "jobs": 20, "progress": False}
FILED = [mode for mode in rqlab.MODES if mode != "memory"]
LATER = [mode for mode in rqlab.MODES if 0 < promises.bound(mode).jobs < math.inf]


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with recovery.scratch_directory() as path:
        yield path


@pytest.fixture(scope="module")
def measured() -> Measurement:
    """All modes, small."""
    return rqlab.measure(callers=(3, 1), **SMALL)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> "list[subprocess.Popen[bytes]]":
    """Every process that is started to be killed."""
    started = []

    class Started(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: object, **settings: object) -> None:
            super().__init__(*arguments, **settings)  # type: ignore[call-overload]
            started.append(self)

    monkeypatch.setattr(kills.subprocess, "Popen", Started)
    return started


def left_behind(directory: Path, children: "list[subprocess.Popen[bytes]]") -> list[object]:
    """Files, processes and threads that a measurement has not cleared away."""
    alive = [child for child in children if child.returncode is None]
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("rqlab-")]
    return [*directory.iterdir(), *alive, *threads]


# What it finds.


def test_there_is_one_row_for_each_mode_number_of_callers_and_repeat(measured: Measurement) -> None:
    frame = measured.frame

    assert list(frame.columns) == list(COLUMNS)
    assert [*zip(frame["mode"], frame["callers"], frame["repeat"], strict=True)] == [
        (mode, number, 1) for mode in rqlab.MODES for number in (1, 3)
    ]
    assert (frame[["push_per_second", "cycles_per_second", "push_p50_seconds"]] > 0).all(axis=None)
    assert (frame["push_p50_seconds"] <= frame["push_p99_seconds"]).all()


def test_the_frame_says_what_it_was_measured_on(measured: Measurement) -> None:
    said = measured.frame.attrs

    assert said["rqlab"] == rqlab.__version__
    assert said["fsync_low_seconds"] <= said["fsync_median_seconds"] <= said["fsync_high_seconds"]
    assert said["settings"]["modes"] == list(rqlab.MODES)
    assert {"platform", "cores", "python", "sqlite", "file_system", "is_in_memory", "measured_at"} <= said.keys()


def test_no_mode_loses_more_than_it_promises(measured: Measurement) -> None:
    assert measured.broken == []
    assert measured.frame["promise_held"].all()


def test_durable_loses_nothing_and_memory_everything(measured: Measurement) -> None:
    rows = measured.frame.set_index("mode")

    for crash in ("kill", "power_cut"):
        assert (rows.loc["durable", f"lost_jobs_{crash}"] == 0).all()
        assert (rows.loc["durable", f"acknowledged_jobs_{crash}"] >= SMALL["jobs"]).all()
        assert (rows.loc["memory", f"lost_jobs_{crash}"] == rows.loc["memory", f"acknowledged_jobs_{crash}"]).all()
    assert (rows.loc["durable", "loss_window_seconds"] == 0).all()
    assert (rows.loc["memory", "loss_window_seconds"] == math.inf).all()


@pytest.mark.parametrize("mode", LATER)
def test_a_mode_that_may_lose_some_loses_some_and_not_what_was_flushed(measured: Measurement, mode: str) -> None:
    rows = measured.frame.set_index("mode").loc[mode]

    assert (rows["lost_jobs_power_cut"] > 0).all()
    assert (rows["lost_jobs_power_cut"] < rows["acknowledged_jobs_power_cut"]).all()
    assert (rows["loss_window_seconds"] > 0).all()
    assert (rows["loss_window_seconds"] < math.inf).all()


def test_a_durable_job_costs_an_fsync_a_call_and_a_later_mode_fewer(measured: Measurement) -> None:
    alone = measured.frame.query("callers == 1").set_index("mode")

    assert alone.loc["durable", "fsyncs_per_job"] >= 3  # push, pull, ack
    assert all(0 < alone.loc[mode, "fsyncs_per_job"] < 3 for mode in LATER)
    assert (alone.loc["memory", ["fsyncs_per_job", "bytes_per_job"]] == 0).all()
    assert all(alone.loc[mode, "bytes_per_job"] > 0 for mode in FILED)


@pytest.mark.parametrize("mode", FILED)
def test_what_was_acknowledged_is_there_after_a_clean_close(mode: str, tmp_path: Path) -> None:
    found = speed.measure_speed(mode, 3, 0.02, tmp_path / "jobs")

    with rqlab.open(tmp_path / "jobs") as rq:
        assert rq.counts("pushes").waiting == found.acknowledged > 0
        assert rq.counts("cycles").completed == rq.counts("cycles").total == found.cycles > 0


def test_a_round_goes_through_all_modes_and_each_begins_with_another() -> None:
    plan = list(measurement._plan(("a", "b", "c"), measurement.QUICK._replace(callers=(1, 9), repeats=2)))

    assert [f"{mode}{number}" for mode, number, _ in plan] == [
        "a1", "b1", "c1", "a9", "b9", "c9", "b1", "c1", "a1", "b9", "c9", "a9",
    ]  # fmt: skip
    assert [repeat for _, _, repeat in plan] == [1] * 6 + [2] * 6


def test_rows_are_told_as_they_arrive() -> None:
    told: list[dict[str, object]] = []

    found = rqlab.measure("memory", callers=(1, 2), on_row=told.append, **SMALL)

    assert told == [row for _, row in found.frame.astype(object).iterrows() for row in [row.to_dict()]]


# What it would notice.


def test_synchronous_normal_planted_in_durable_loses_jobs_and_breaks_the_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(cache.SETTINGS, "sqlite_synchronous", 1)

    found = rqlab.measure("durable", callers=1, **SMALL)

    (row,) = found.broken
    assert 0 < row["lost_jobs_power_cut"] <= row["acknowledged_jobs_power_cut"]
    assert 0 < row["loss_window_seconds"] < math.inf
    assert "PROMISE BROKEN: durable" in repr(found)


def test_a_process_that_acknowledged_what_it_had_not_stored_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "liar.py").write_text(
        "import sys, time, rqlab\n"
        "with rqlab.open(sys.argv[2]) as rq:\n"
        "    for number in range(30):\n"
        "        print(rq.push('pushes', 'send'), time.monotonic(), flush=True)\n"
        "    for number in range(7):\n"
        "        print(f'never-stored-{number}', time.monotonic(), flush=True)\n"
        "    sys.stdin.read() or time.sleep(60)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(kills, "MODULE", "liar")

    found = kills.lost_at_kill("durable", 1, 36, (0.0, 0.0), tmp_path / "jobs")

    assert (found.acknowledged, found.lost) == (37, 7)
    assert 0 < found.window_seconds < DEADLINE_SECONDS
    assert not promises.held("durable", found.lost, 0)


def test_a_process_that_ends_by_itself_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file, not a directory")

    with pytest.raises(StoreError, match=r"ended by itself: .*jobs"):
        kills.lost_at_kill("durable", 1, 1, (0.0, 0.0), tmp_path / "jobs")


def test_a_mode_whose_keeper_sleeps_loses_for_longer_than_it_promises(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asleep = rqlab.MODES["hybrid"]._replace(keeper=lambda store, opening: None)
    monkeypatch.setitem(rqlab.MODES, "hybrid", asleep)

    recorded = paced.record("hybrid", paced.QUIET, scratch / "asleep")
    found = losses.worst(cuts.losses(recorded, 8, 0, scratch))

    assert found.window_seconds > promises.bound("hybrid").seconds * 2


@pytest.mark.parametrize("mode", LATER)
def test_a_quiet_queue_shows_the_whole_loss_window(scratch: Path, mode: str) -> None:
    recorded = paced.record(mode, paced.QUIET, scratch / f"quiet-{mode}")
    found = losses.worst(cuts.losses(recorded, 24, 0, scratch))

    promised = promises.bound(mode)
    assert promised.seconds / 2 <= found.window_seconds <= promised.seconds
    assert found.lost <= promised.jobs


def test_the_age_of_a_loss_is_that_of_its_oldest_push() -> None:
    pushes = [losses.Acknowledgement(f"job-{at}", float(at)) for at in range(10)]
    kept = frozenset(push.job_id for push in pushes[:7])

    assert losses.loss(pushes, kept, 12.5, keeps_nothing=False) == losses.Loss(10, 3, 5.5)
    assert losses.loss(pushes, frozenset(), 12.5, keeps_nothing=True) == losses.Loss(10, 10, math.inf)
    assert losses.loss(pushes, kept | {push.job_id for push in pushes}, 12.5, keeps_nothing=False).lost == 0


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("durable", "nothing"), ("buffered", "100 jobs, 10 ms + a commit"), ("hybrid", "20 000 jobs, 1 s + a commit"),
        ("memory", "all"),
    ],
)  # fmt: skip
def test_a_promise_is_said_in_short(mode: str, said: str) -> None:
    assert promises.promised(mode) == said


def test_where_nothing_can_be_recorded_the_rest_is_measured_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "BACKENDS", ("no_such_backend",))

    found = rqlab.measure("durable", callers=1, **SMALL)

    (row,) = found.frame.to_dict("records")
    assert all(math.isnan(row[name]) for name in ("lost_jobs_power_cut", "loss_window_seconds", "fsyncs_per_job"))
    assert row["lost_jobs_kill"] == 0
    assert "were not measured: cannot record what SQLite writes" in repr(found)
    assert Measurement.from_json(found.to_json()) == found


# Callers.


def test_the_first_error_of_a_caller_ends_all_of_them() -> None:
    made = []

    def call() -> None:
        made.append(None)
        if len(made) > 50:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        callers.keep_calling(5, call, lambda: True)

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rqlab-caller")]


def test_a_timed_run_leaves_its_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = itertools.count()
    monkeypatch.setattr(clock, "monotonic", lambda: next(reads) / 100)  # each look at the clock takes 10 ms

    timed = callers.timed(1, lambda: None, 1.0)

    assert timed.calls > len(timed.took) > 10
    assert len(timed.took) * 0.03 == pytest.approx(1.0, abs=0.05), "a call and the look after it take three looks"
    assert timed.percentile(0.5) <= timed.percentile(0.99) <= timed.percentile(1.0) == timed.took[-1]


def test_a_timed_run_has_a_figure_however_slow_a_call_is() -> None:
    moment = threading.Event()

    timed = callers.timed(2, lambda: moment.wait(0.03), 0.001)

    assert timed.calls >= len(timed.took) >= 1


# How far it is.


def test_nothing_is_drawn_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, is_wanted=True) as progress:
        progress.next("durable")

    assert capsys.readouterr() == ("", "")


def test_a_notebook_has_one_line_that_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def show(bundle: dict[str, str], **_: object) -> SimpleNamespace:
        shown.append(bundle["text/plain"])
        return SimpleNamespace(update=show)

    monkeypatch.setattr(notebook, "is_kernel", lambda: True)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=show))
    with Progress(2, is_wanted=True) as progress:
        for mode in ("durable", "memory"):
            progress.next(mode)
            progress.done()

    assert shown[1] == "row 1 of 2: durable"
    assert shown[2].startswith("row 2 of 2: memory, ")
    assert shown[3].startswith("measured 2 of 2 rows in ")


def test_the_bar_of_a_terminal_draws_from_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    before = threading.active_count()
    with Progress(2, is_wanted=True) as progress:
        progress.next("durable, 1 caller")
        during = threading.active_count()

    assert "durable, 1 caller" in terminal.getvalue()
    assert during == before


# The result.


def test_a_measurement_is_kept_in_one_file(measured: Measurement, tmp_path: Path) -> None:
    measured.save(tmp_path / "here.json")
    loaded = Measurement.load(tmp_path / "here.json")

    assert loaded == measured
    assert loaded.frame.equals(measured.frame)
    assert loaded.frame.attrs == measured.frame.attrs
    assert [path.name for path in tmp_path.iterdir()] == ["here.json"]


def test_its_file_is_plain_json(measured: Measurement) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    document = json.loads(measured.to_json(), parse_constant=refuse)

    assert [row["mode"] for row in document["rows"]] == list(measured.frame["mode"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "expected a measurement, as Measurement.save writes it"),
        ("not JSON", "expected a measurement, as Measurement.save writes it"),
        ('{"format": 1, "machine": {}, "rows": [{"mode": 5}]}', "expected a measurement"),
        ('{"format": 99, "machine": {}, "rows": []}', "format 1 or less; found 99: a newer rqlab wrote it"),
        ("[]", "expected a measurement"),
    ],
)
def test_a_file_that_is_no_measurement_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(text)

    with pytest.raises(ValidationError, match=said) as raised:
        Measurement.load(tmp_path / "other.json")

    assert str(tmp_path / "other.json") in str(raised.value)


def test_it_shows_itself_as_tables_with_units(measured: Measurement) -> None:
    said, page = repr(measured), measured._repr_html_()

    for shown in (said, page):
        assert all(mode in shown for mode in rqlab.MODES)
        assert "push p99, ms" in shown
        assert "One repeat, so no spread" in shown
    assert "<style" not in page
    assert len(page) < 5_000 + 400 * len(measured)


def test_what_it_shows_in_a_notebook_is_escaped(measured: Measurement) -> None:
    machine = {**measured.machine, "platform": "<script>alert(1)</script>"}

    assert "<script>" not in Measurement([], machine)._repr_html_()


def test_a_measurement_without_rows_has_a_frame_and_shows_itself(measured: Measurement) -> None:
    empty = Measurement([], measured.machine)

    assert list(empty.frame.columns) == list(COLUMNS)
    assert repr(empty).startswith("mode")
    assert empty.plot().alt


def test_a_file_system_in_memory_is_said_aloud(measured: Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "file_system", lambda path: "tmpfs")

    found = machine.machine(Path.cwd())

    assert found["is_in_memory"]
    assert "BEWARE: tmpfs is in memory" in repr(Measurement([], {**measured.machine, **found}))
    assert "BEWARE" not in repr(Measurement([], {**measured.machine, "is_in_memory": False}))


def test_it_draws_throughput_against_loss_window(measured: Measurement) -> None:
    said = measured.plot(callers=3).alt

    assert "3 callers" in said
    assert all(mode in said for mode in rqlab.MODES)


# What it refuses.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"modes": "durrable"}, "modes: expected one or more of 'durable'.*got 'durrable'"),
        ({"modes": []}, "modes: expected one or more of"),
        ({"modes": 5}, "modes: expected one or more of"),
        ({"callers": 0}, "callers: expected a whole number, 1 to 1000; got 0"),
        ({"callers": [1, 2.5]}, "callers: expected a whole number"),
        ({"callers": []}, "callers: expected a whole number, or some of them"),
        ({"callers": "10"}, "callers: expected a whole number, or some of them"),
        ({"seconds": -1}, "seconds: expected a duration in seconds"),
        ({"seconds": 0}, "seconds: expected a duration in seconds"),
        ({"repeats": 0}, "repeats: expected a whole number"),
        ({"jobs": 0}, "jobs: expected a whole number"),
        ({"progress": "yes"}, "progress: expected True or False"),
        ({"directory": "/no/such/place"}, "directory: expected a directory that can be written to; got '/no"),
        ({"directory": __file__}, "directory: expected a directory that can be written to"),
        ({"directory": 5}, "directory: expected a directory that can be written to; got 5"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused_before_anything_is_measured(
    arguments: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rqlab.measurement.rows.Rows.measure", None)

    with pytest.raises(ValidationError, match=said):
        rqlab.measure(**arguments)  # type: ignore[arg-type]


# What it leaves: nothing.


def test_nothing_is_left_behind(tmp_path: Path, children: "list[subprocess.Popen[bytes]]") -> None:
    rqlab.measure(callers=2, directory=tmp_path, **SMALL)

    assert len(children) == len(rqlab.MODES)
    assert left_behind(tmp_path, children) == []


def test_an_interrupted_measurement_returns_what_there_is(
    tmp_path: Path, children: "list[subprocess.Popen[bytes]]"
) -> None:
    def interrupt(row: dict[str, object]) -> None:
        raise KeyboardInterrupt

    found = rqlab.measure(callers=1, directory=tmp_path, on_row=interrupt, **SMALL)

    assert len(found) == 1
    assert not found.is_complete
    assert "Interrupted" in repr(found)
    assert left_behind(tmp_path, children) == []


@pytest.mark.parametrize("where", ["rqlab.measurement.kills.random.uniform", "rqlab.measurement.cuts.losses"])
def test_an_interrupt_in_the_first_row_is_raised_and_leaves_nothing(
    where: str, tmp_path: Path, children: "list[subprocess.Popen[bytes]]", monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        rqlab.measure("durable", callers=2, directory=tmp_path, **SMALL)

    assert len(children) == 1
    assert left_behind(tmp_path, children) == []


# The command.

QUICKLY = ("--seconds", "0.02", "--repeats", "1", "--jobs", "10", "--callers", "1")


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "rqlab", "measure", *arguments],
        capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False,
    )  # fmt: skip


def test_the_command_prints_draws_and_keeps_one_measurement(tmp_path: Path) -> None:
    kept, picture = tmp_path / "kept.json", tmp_path / "picture.png"

    run = command(*QUICKLY, "--modes", "durable,memory", "--json", "--save", str(kept), "--plot", str(picture))

    assert (run.returncode, run.stderr) == (0, "")
    printed = Measurement.from_json(run.stdout)
    assert printed == Measurement.load(kept)
    assert printed.frame[["mode", "callers", "repeat"]].to_numpy().tolist() == [["durable", 1, 1], ["memory", 1, 1]]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_command_shows_tables(tmp_path: Path) -> None:
    run = command(*QUICKLY, "--modes", "memory", "--directory", str(tmp_path))

    assert run.returncode == 0
    assert "lost at kill -9" in run.stdout
    assert "everything" in run.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--modes", "fast"), "error: modes: expected one or more of"),
        (("--callers", "1,two"), "error: --callers: expected whole numbers, such as 1,10,100"),
        (("--callers", "0"), "error: callers: expected a whole number, 1 to 1000"),
        (("--directory", "/no/such/place"), "error: directory: expected a directory that can be written to"),
        (
            ("--plot", "picture.doc"),
            "error: --plot: expected the name of a file ending in .png, .svg, .pdf; got picture.doc",
        ),
        (("--save", "/no/such/place/kept.json"), "error: /no/such/place/kept.json: expected the name of a file"),
    ],
)
def test_the_command_refuses_what_it_cannot_do_in_one_line(arguments: tuple[str, ...], said: str) -> None:
    run = command(*arguments)

    assert run.returncode == 2
    assert said in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_all_that_it_started(number: signal.Signals, tmp_path: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "rqlab", "measure", "--modes", "durable", "--callers", "2", "--seconds", "0.02"],
        env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not list(tmp_path.glob("rqlab-measure-*/killed/cache.db")):  # the process that is to be killed is at work
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.002)
        running.send_signal(number)
        running.communicate(timeout=DEADLINE_SECONDS)
    finally:
        running.kill()
        running.wait()

    assert running.returncode == 130
    assert list(tmp_path.iterdir()) == []
    assert not [line for line in processes() if str(tmp_path) in line]


def processes() -> list[str]:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
