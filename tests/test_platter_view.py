"""The platter at an instant: which sectors were safe, and what a crash left of the others, as the disk model has it."""

import time
from functools import cache
from xml.etree import ElementTree

import pytest
from msgspec.structs import replace

import rqlab
from rqlab.charts.platters import CELLS_A_ROW, MOST_ROWS, PIECES, SECTOR, PlatterView, Sectors, Strip, grid
from rqlab.html.platter import platter, shown
from rqlab.simulation.platter import Cut, Platter
from rqlab.simulation.recorder import Kind, Operation, Recording
from rqlab.simulation.result import SimulationResult
from rqlab.simulation.sectors import DiskLog, Trace

HOSTILE = "<script>alert('1')</script>\"'&\x00</svg>"


@cache
def run(mode: str, **options: int) -> SimulationResult:
    return rqlab.simulate(seed=7, durability=mode, **options)  # type: ignore[arg-type]


def write(name: str, sector: int, sectors: int = 1, letter: bytes = b"x") -> Operation:
    return Operation(Kind.WRITE, f"jobs/{name}", sector * SECTOR, letter * SECTOR * sectors)


def sync(name: str) -> Operation:
    return Operation(Kind.SYNC, f"jobs/{name}")


def strip(name: str, view: tuple[Strip, ...]) -> Strip:
    return next(each for each in view if each.name == name)


LOG = [
    Operation(Kind.CREATE, "jobs/cache.db"),
    write("cache.db", 0, 4),
    sync("cache.db"),
    write("cache.db", 1),
    write("cache.db", 6, 2),
]


def test_a_sector_is_in_the_page_cache_from_its_write_until_the_sync() -> None:
    disk = DiskLog(Recording({}, LOG), 0, None)
    counts = [strip("cache.db", disk.strips(at)).counts() for at in range(6)]

    assert counts == [
        {}, {}, {"cached": 4}, {"durable": 4}, {"durable": 3, "cached": 1}, {"durable": 5, "cached": 3},
    ]  # fmt: skip


def test_a_name_is_unsafe_until_something_is_synced() -> None:
    disk = DiskLog(Recording({}, LOG), 0, None)

    assert [strip("cache.db", disk.strips(at)).note for at in (0, 2, 3)] == [
        "it is not there", "its name is not safe yet", "",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["lost", "sigkill", "torn", "reorder", "garbage"])
def test_what_a_cut_left_is_what_the_disk_model_laid_out(kind: str) -> None:
    recording = Recording({}, LOG)
    cut = Cut(len(recording.operations), kind, seed=3)
    image = Platter(recording).cut(cut).files.get("jobs/cache.db", b"")
    left = strip("cache.db", DiskLog(recording, 0, cut).left)
    where = [run.where for run in left.runs for _ in range(run.length)]

    assert left.size == len(image)
    assert where[0] == where[2] == where[3] == "durable", "it was synced"
    for sector in (6, 7):
        here = image[sector * SECTOR : (sector + 1) * SECTOR]
        assert (where[sector] == "kept") == (here == b"x" * SECTOR)
    assert where[6:] == {"lost": ["lost"] * 2, "sigkill": ["kept"] * 2}.get(kind, where[6:])


def test_a_refused_write_changes_no_sector() -> None:
    refused = write("cache.db", 9)._replace(payload=b"", refused=True)
    disk = DiskLog(Recording({}, [*LOG, refused]), 0, None)

    assert disk.strips(6) == disk.strips(5)


@pytest.mark.parametrize("mode", ["durable", "buffered", "hybrid"])
def test_every_event_of_every_mode_has_a_platter(mode: str) -> None:
    result = run(mode)
    views = [result.trace.at_event(each.n) for each in result.history]

    assert all(view.strips[0].name == "cache.db" and view.strips[1].name == "cache.db-wal" for view in views)
    assert all(strip.room >= sum(strip.counts().values()) for view in views for strip in view.strips)
    assert [view.operations for view in views] == sorted(view.operations for view in views)


def test_durable_has_nothing_in_memory_and_answers_after_the_sync() -> None:
    result = run("durable")
    acknowledged = [result.trace.at_event(each.n) for each in result.history if each.kind in ("push", "ack")]

    assert {view.in_memory for view in acknowledged} == {0}
    assert all("cached" not in strip.counts() for view in acknowledged for strip in view.strips[1:]), (
        "the log is synced"
    )


@pytest.mark.parametrize("mode", ["buffered", "hybrid"])
def test_modes_that_answer_early_have_writes_in_memory_that_a_crash_takes(mode: str) -> None:
    result = run(mode)
    views = {each.n: result.trace.at_event(each.n) for each in result.history}
    kill = next(each for each in result.history if each.kind == "process kill")

    assert max(view.in_memory for view in views.values()) > 1
    assert views[kill.n].crash == "kill"
    assert views[kill.n].in_memory > 0
    assert "gone with the process" in repr(views[kill.n])
    assert views[kill.n + 1].in_memory == 0, "it has started again"


def test_a_power_cut_shows_what_survived_and_the_next_disk_is_all_safe() -> None:
    result = run("durable")
    cut = next(each for each in result.history if each.kind == "power cut")
    view, later = result.platter(cut.at), result.trace.at_event(cut.n + 1)

    assert view.crash == "torn"
    assert {"lost", "kept", "torn"} <= view.counts().keys()
    assert later.counts().keys() == {"durable"}
    assert [strip.size for strip in later.strips] == [strip.size for strip in view.strips]


@pytest.mark.parametrize("mode", ["durable", "buffered", "hybrid"])
def test_what_a_cut_decided_about_is_what_was_in_the_page_cache(mode: str) -> None:
    """Also where a sector was written as it had been: it was not synced, and nothing became of that."""
    checked = 0
    for seed in range(5):
        result = rqlab.simulate(seed=seed, durability=mode, jobs=6)
        steps = list(result.trace.steps())
        for disk, cut in enumerate(each for each in result.history if each.kind == "power cut"):
            before = [step for step in steps if step.disk == disk]  # none, if the power fails again at once
            cached = result.trace.at_step(before[-1]).counts().get("cached", 0) if before else 0
            view = result.trace.at_event(cut.n)
            if any(strip.note for strip in view.strips):
                continue  # a file without a name has lost what was synced in it, too
            counts = view.counts()
            if counts.get("torn", 0) == 0 or cut.detail["how"].startswith("torn"):  # nopsow takes synced neighbours
                assert sum(counts.get(where, 0) for where in ("kept", "lost", "torn")) == cached, (seed, cut)
                checked += 1
    assert checked


def test_the_disk_goes_on_between_two_events() -> None:
    """A snapshot of hybrid's is no event: the platter must move all the same."""
    result = run("hybrid")
    steps = list(result.trace.steps())
    views = [result.trace.at_step(step) for step in steps]

    assert {step.kind for step in steps} >= {"write", "sync"}
    assert [step.event for step in steps] == sorted(step.event for step in steps)
    assert all("cached" in view.counts() for step, view in zip(steps, views, strict=True) if step.kind == "write")
    first = next(step for step in steps if step.kind == "sync" and step.event > 4)
    assert result.platter(first.at).in_memory < result.platter(first.at - 0.01).in_memory


def test_memory_says_that_there_is_no_platter() -> None:
    view = run("memory").platter(3.0)

    assert view.strips == ()
    assert "no platter" in repr(view)
    assert "no platter" in platter(view)
    assert view.plot().alt


def test_the_users_handler_is_not_run_again_behind_their_back() -> None:
    seen: list[str] = []
    result = rqlab.simulate(0, seed=1, jobs=1, faults=(), handler=lambda job: seen.append(job.id))
    before = len(seen)

    with pytest.raises(rqlab.ValidationError, match="handler"):
        result.platter(1.0)
    assert len(seen) == before


def test_a_history_from_a_file_has_the_same_platter(tmp_path: object) -> None:
    result = run("buffered")
    result.to_jsonl(f"{tmp_path}/it.jsonl")
    again = SimulationResult.from_jsonl(f"{tmp_path}/it.jsonl")

    assert [again.trace.at_event(n) for n in range(40)] == [result.trace.at_event(n) for n in range(40)]


def test_the_trouble_in_a_cell_shows_whatever_else_is_in_it() -> None:
    room = CELLS_A_ROW * MOST_ROWS * 16
    laid = grid(Strip("f", "", 0, (Sectors(0, 31, "durable"), Sectors(31, 1, "torn"), Sectors(32, 9, "durable")), room))

    assert laid.sectors == 16
    assert laid.rows == MOST_ROWS
    assert [(cell.column, cell.wide, cell.where) for cell in laid.cells] == [
        (0, 1, "durable"), (1, 1, "torn"), (2, 1, "durable"),
    ]  # fmt: skip


def test_a_platter_is_small_whatever_the_files_are() -> None:
    """Every other sector of a 100 MB file is unsafe: the worst there is."""
    runs = tuple(Sectors(n * 400, 200 if n % 2 else 400, ("durable", "torn")[n % 2]) for n in range(480))
    view = PlatterView(1.0, 1, "hybrid", (Strip("cache.db", "", 1 << 27, runs, 200_000),) * 3, 9_999, True)
    drawn = platter(view)

    assert len(drawn.encode()) < 20 * 1024
    ElementTree.fromstring(drawn)


def test_a_platter_costs_a_panel_little() -> None:
    trace = run("durable", jobs=60).trace
    began = time.perf_counter()
    for number in range(100):
        platter(trace.at_event(number))

    assert (time.perf_counter() - began) / 100 < 0.2, "seconds; about 2 ms when nothing else runs"


def test_hostile_names_are_escaped_in_the_platter() -> None:
    view = PlatterView(0.0, 0, HOSTILE, (Strip(HOSTILE, HOSTILE, 1, (Sectors(0, 1, "lost"),), 1, HOSTILE),), 1, True)
    for drawn in (platter(view, HOSTILE), shown(view._replace(crash=HOSTILE, crash_says=HOSTILE))):
        assert "<script" not in drawn
        assert "\x00" not in drawn
    ElementTree.fromstring(platter(view, HOSTILE))


def test_a_changed_history_is_noticed() -> None:
    """As after a change of the code: the header names another history than its plan gives now."""
    result = run("buffered")
    other = SimulationResult(replace(result.header, hash="0" * 16), result.history)

    with pytest.raises(rqlab.RQLabError, match="expected the history 0000"):
        other.platter(1.0)


def test_the_trace_is_worked_out_once() -> None:
    result = run("hybrid")

    assert isinstance(result.trace, Trace)
    assert result.trace is result.trace


@pytest.mark.parametrize(
    ("crash", "where", "says"),
    [("torn", "torn", True), ("lost", "lost", True), ("kept", "kept", False), ("", "cached", False)],
)
def test_pieces_of_a_commit_are_said_to_count_for_nothing(crash: str, where: str, says: bool) -> None:
    log = Strip("cache.db-wal", "the log", 2 * SECTOR, (Sectors(0, 1, "durable"), Sectors(1, 1, where)), 4)
    view = PlatterView(2.0, 60, "hybrid", (log,), 33, True, crash, "of each file a prefix" if crash else "")

    chart = view.plot()
    drawn = {each.get_text() for each in chart.ax.texts}

    assert (PIECES in repr(view)) == (PIECES in platter(view)) == (PIECES in chart.alt) == says
    assert any(PIECES in each for each in drawn) == says


def test_pieces_of_the_database_alone_are_no_commit_that_is_ignored() -> None:
    database = Strip("cache.db", "the database", 2 * SECTOR, (Sectors(0, 2, "lost"),), 4)

    assert PIECES not in repr(PlatterView(2.0, 60, "durable", (database,), 0, False, "lost", "nothing"))
