"""The explorer, driven by its own sliders and buttons, without a kernel or a browser."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import ipywidgets
import pytest
from ipywidgets.widgets.widget import _instances as alive

import rqlab
from rqlab.charts.histories import fault_look, names_in
from rqlab.simulation.history import Happening
from rqlab.simulation.result import EVENT_KINDS, SimulationResult
from rqlab.simulation.sectors import DiskStep
from rqlab.widgets import registry, retries
from rqlab.widgets.captions import CAPTIONS, DISK_CAPTIONS, Captions, of_step
from rqlab.widgets.explored import STOPS, Explored, Stop
from rqlab.widgets.explorer import Explorer, explorer
from rqlab.widgets.instants import Instants

HOSTILE = "<script>alert('1')</script>\"'&{worker}\x00\u202e"


@pytest.fixture(scope="module")
def durable() -> SimulationResult:
    return rqlab.simulate(seed=7)


@pytest.fixture(scope="module")
def hybrid() -> SimulationResult:
    return rqlab.simulate(seed=7, durability="hybrid")


@pytest.fixture
def panel() -> Iterator[Explorer]:
    with Explorer({"jobs": 8, "durability": "hybrid"}) as made:
        made.draw()
        assert made.wait()
        made.draw()
        yield made


def control(panel: Explorer, name: str) -> Any:
    """The widget that a browser finds by its class."""
    found = [each for each in walk(panel.widget) if f"rq-{name}" in getattr(each, "_dom_classes", ())]
    assert len(found) == 1, (name, found)
    return found[0]


def walk(widget: Any) -> Iterator[Any]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


def shown(panel: Explorer, name: str) -> str:
    assert panel.wait()
    panel.draw()
    return str(control(panel, name).value)


# Captions.


def test_every_kind_of_event_has_a_caption_and_no_caption_is_of_a_kind_that_is_none() -> None:
    assert CAPTIONS.keys() == set(map(str, EVENT_KINDS))
    assert {"write", "sync", "create", "delete", "truncate", "refused"} == DISK_CAPTIONS.keys()


@pytest.mark.parametrize("kind", sorted(CAPTIONS))
def test_a_caption_is_one_sentence_even_of_an_event_without_details(kind: str) -> None:
    said = Captions([Happening(0, 1.0, kind)], {}).at(0)

    assert said.endswith(".")
    assert ". " not in said.replace("0. ", "")
    assert "{" not in said


@pytest.mark.parametrize("mode", list(rqlab.MODES))
def test_every_event_of_many_simulations_has_its_caption(mode: str) -> None:
    for seed in range(6):
        result = rqlab.simulate(8, seed=seed, durability=mode, jobs=12, faults=20.0)
        captions = Captions(result.history, names_in(result.jobs))
        for event in result.history:
            said = captions.at(event.n)
            assert "–" not in said, (event, said)
            assert "nobody" not in said.replace("nobody keeps", ""), (event, said)
            assert len(captions.causes(event.n)) <= 3


def test_captions_say_what_happened(durable: SimulationResult) -> None:
    captions = Captions(durable.history, names_in(durable.jobs))
    kill = next(each for each in durable.history if each.kind == "process kill")
    beat = next(each for each in durable.history if each.kind == "heartbeat")
    cut = next(each for each in durable.history if each.kind == "power cut")

    assert captions.at(beat.n) == "worker-1's heartbeat moved job 2's lease to 5.33 s."
    assert captions.at(kill.n).startswith("kill -9 took worker-3's process in the middle of a write")
    assert "25 sectors had not been synced (20 survived, 4 lost, 1 torn)" in captions.at(
        cut.n, durable.trace.at_event(cut.n)
    )


def test_a_kill_in_a_mode_with_one_owner_says_that_it_takes_all_workers(hybrid: SimulationResult) -> None:
    it = Explored(hybrid)
    kill = next(each for each in hybrid.history if each.kind == "process kill")

    assert "kill -9 took all workers&#x27; process" in it.caption(Stop(kill.n))


def test_a_stall_is_explained_by_the_fault_that_caused_it(durable: SimulationResult) -> None:
    captions = Captions(durable.history, names_in(durable.jobs))
    stall = next(each for each in durable.history if each.kind == "stall" and each.n > 70)
    (cause, says), *_ = captions.causes(stall.n)

    assert cause.kind == "process kill"
    assert "worker-3's process" in says


def test_a_cause_that_points_forward_ends_the_trail() -> None:
    """A file may say anything; a loop of causes must not hang a panel."""
    history = [Happening(n, 0.0, "stall", "j", "w", 1 - n) for n in range(2)]

    assert len(Captions(history, {}).causes(0)) <= 3
    assert len(Captions(history, {}).causes(1)) <= 3


def test_a_step_of_the_disk_has_its_sentence() -> None:
    said = of_step(DiskStep(1.0, 3, "sync", "cache.db-wal", 8704, 0, 12))

    assert said == "fsync of cache.db-wal: 8.5 KiB went from the page cache to the platter."


# How things stood.


@pytest.mark.parametrize("mode", list(rqlab.MODES))
@pytest.mark.parametrize("seed", [1, 7])
def test_jobs_by_state_are_those_of_the_result_at_every_event(mode: str, seed: int) -> None:
    result = rqlab.simulate(seed=seed, durability=mode, jobs=10)
    instants = Instants(result.history, mode, 3)
    last = {event.at: event.n for event in result.history}
    for at, number in list(last.items())[::7]:
        counts = {state: count for state, count in result.at(at).counts.items() if count}
        assert {state: count for state, count in instants[number].counts.items() if count} == counts, (at, number)


def test_a_worker_is_down_from_its_kill_until_its_process_starts(durable: SimulationResult) -> None:
    instants = Instants(durable.history, "durable", 3)
    kill = next(each for each in durable.history if each.kind == "process kill")
    start = next(each for each in durable.history if each.kind == "start" and each.n > kill.n)
    standing = [instants[n].workers["worker-3"].standing(durable.history[n].at) for n in range(kill.n, start.n + 1)]

    assert set(standing[:-1]) == {"down"}
    assert standing[-1] != "down"
    assert instants[kill.n].workers["worker-1"].standing(kill.at) != "down", "each has a process of its own"


def test_in_a_mode_for_one_process_a_kill_takes_all_workers(hybrid: SimulationResult) -> None:
    instants = Instants(hybrid.history, "hybrid", 3)
    kill = next(each for each in hybrid.history if each.kind == "process kill")

    assert {each.standing(kill.at) for each in instants[kill.n].workers.values()} == {"down"}


def test_a_crashed_worker_comes_back_after_its_seconds(durable: SimulationResult) -> None:
    crash = next(each for each in durable.history if each.kind == "worker crash")
    worker = Instants(durable.history, "durable", 3)[crash.n].workers[crash.worker]

    assert worker.standing(crash.at) == "down"
    assert worker.standing(crash.at + crash.detail["seconds"]) != "down"


# What is shown.


def test_what_is_sent_at_each_stop_is_small_and_quick(durable: SimulationResult) -> None:
    it = Explored(durable)
    it.trace = durable.trace
    stops = it.stops("every event and disk step")
    began = time.perf_counter()
    sizes = [sum(len(piece.encode()) for piece in it.pieces(stop).values()) for stop in stops]

    assert max(sizes) < 20 * 1024
    assert len(stops) > len(durable.history)
    assert (time.perf_counter() - began) / len(stops) < 0.2, "seconds; about 2 ms when nothing else runs"


def test_every_row_of_stops_has_stops_in_order(hybrid: SimulationResult) -> None:
    it = Explored(hybrid)
    it.trace = hybrid.trace
    for which in STOPS:
        stops = it.stops(which)
        assert stops
        assert [it.at(stop) for stop in stops] == sorted(it.at(stop) for stop in stops)


def test_a_history_without_events_can_be_explored() -> None:
    result = rqlab.simulate(0, seed=1, jobs=0, faults=(), until=0.5, store="memory")
    it = Explored(SimulationResult(result.header, []))

    assert "Nothing happened" in it.pieces(it.stops("every event")[0])["caption"]


def test_hostile_names_are_escaped_in_every_piece(durable: SimulationResult) -> None:
    detail = {"queue": HOSTILE, "state": "waiting", "attempt": 0, "deliveries": 0, "delivery": 1}
    detail |= {"name": HOSTILE, "what": HOSTILE}
    history = [
        Happening(0, 0.0, "push", HOSTILE, HOSTILE, None, detail),
        Happening(1, 0.5, HOSTILE, HOSTILE, HOSTILE, 0, {HOSTILE: HOSTILE}),
        Happening(2, 1.0, "effect", HOSTILE, HOSTILE, 1, detail),
        Happening(3, 2.0, "violation", "", "", 2, {"check": HOSTILE, "says": HOSTILE}),
        Happening(4, 2.0, "power cut", "", HOSTILE, 2, {"fault": True, "window": HOSTILE, "how": HOSTILE}),
        Happening(5, 3.0, "pull", HOSTILE, "worker-1", 4, detail | {"state": "active", "lease_until": 9.0}),
    ]
    it = Explored(SimulationResult(durable.header, history), HOSTILE)
    for number in range(len(history)):
        for piece in (*it.pieces(Stop(number)).values(), it.timeline, it.verdict):
            assert "<script" not in piece
            assert "\x00" not in piece
            assert "\u202e" not in piece


# The panel.


def test_a_slider_makes_a_new_result_and_the_verdict_says_its_replay_line(panel: Explorer) -> None:
    before = panel.result
    control(panel, "seed").value = 11

    assert "seed=11" in shown(panel, "verdict").replace("&#x27;", "'")
    assert panel.result.seed == 11
    assert panel.result is not before


def test_going_back_to_known_arguments_simulates_nothing(panel: Explorer) -> None:
    before = panel.result
    panel.choose(seed=3)
    assert panel.wait()
    panel.choose(seed=7)

    assert panel.result is before


def test_the_mode_buttons_show_the_platter_of_the_mode(panel: Explorer) -> None:
    assert "cache.db-wal" in shown(panel, "platter")
    control(panel, "durability").value = "memory"

    assert "no platter" in shown(panel, "platter")


def test_the_position_moves_everything_that_depends_on_it(panel: Explorer) -> None:
    before = {name: shown(panel, name) for name in ("caption", "cursor", "standing", "platter")}
    control(panel, "position").value = 30
    after = {name: shown(panel, name) for name in before}

    assert panel.event == 30
    assert "event 30 of" in after["caption"]
    assert all(after[name] != before[name] for name in before)


def test_play_moves_the_slider_and_a_step_moves_play(panel: Explorer) -> None:
    control(panel, "play").value = 5
    panel.draw()
    assert control(panel, "position").value == 5

    control(panel, "step").click()
    panel.draw()
    assert (control(panel, "position").value, control(panel, "play").value) == (6, 6)


def test_a_playing_browser_is_not_told_where_it_is(panel: Explorer) -> None:
    """It is further by the time it hears of it, and would jump back."""
    play = control(panel, "play")
    play.value = 5
    told: list[object] = []
    play.observe(told.append, names="value")
    panel.draw()

    assert told == []


def test_the_crash_buttons_go_from_crash_to_crash(panel: Explorer) -> None:
    crashes = Explored(panel.result).crashes
    seen = []
    for _ in crashes:
        control(panel, "next-crash").click()
        seen.append(panel.event)
        kind = panel.result.history[panel.event].kind
        assert fault_look(kind).glyph in shown(panel, "caption"), f"{kind} looks otherwise in the timeline"
    control(panel, "previous-crash").click()

    assert seen == crashes
    assert panel.event == crashes[-2]


def test_stopping_at_faults_leaves_the_rest_out(panel: Explorer) -> None:
    every = control(panel, "position").max
    control(panel, "stops").value = "faults and their consequences"
    panel.draw()

    assert control(panel, "position").max < every / 3


def test_disk_steps_lie_between_events(panel: Explorer) -> None:
    panel.stop_at("every event and disk step")
    captions = []
    for _ in range(12):
        panel.step()
        captions.append(shown(panel, "caption"))

    assert any("fsync of cache.db-wal" in caption for caption in captions)


def test_a_change_of_stops_leaves_the_scrubber_where_it_is(panel: Explorer) -> None:
    """At the crash, not at the last write before it, which came at the same instant."""
    panel.next_crash()
    before = panel.event, panel.caption
    for which in (*STOPS, *reversed(STOPS)):
        panel.stop_at(which)
        assert (panel.event, panel.caption) == before


def test_a_wrong_argument_is_said_in_the_panel_and_the_control_goes_back(panel: Explorer) -> None:
    before = panel.result
    control(panel, "jobs").max = 10**9
    control(panel, "jobs").value = 10**8

    assert "jobs: expected" in shown(panel, "problem")
    assert panel.result is before
    assert control(panel, "jobs").value == 8


def test_a_wrong_argument_of_the_call_is_raised_in_the_cell() -> None:
    with pytest.raises(rqlab.ValidationError, match="workers"):
        explorer(workers=0)
    with pytest.raises(TypeError):
        explorer(colour="red")


def test_the_marker_counts_only_what_was_sent(panel: Explorer) -> None:
    before = shown(panel, "marker")
    assert shown(panel, "marker") == before

    panel.step()
    assert shown(panel, "marker") != before


def test_a_result_of_the_users_is_shown_with_its_own_plan(hybrid: SimulationResult) -> None:
    with Explorer({}, hybrid) as panel:
        panel.draw()

        assert panel.result is hybrid
        assert control(panel, "crashes").disabled
        assert "as given" in control(panel, "crashes").description
        control(panel, "durability").value = "durable"
        assert panel.wait()
        assert [fault.kind for fault in panel.result.plan] == [fault.kind for fault in hybrid.plan], "the same plan"
        control(panel, "draw-faults").click()
        assert panel.wait()
        panel.draw()
        assert not control(panel, "crashes").disabled


def test_a_users_handler_has_no_platter_but_everything_else() -> None:
    with Explorer({"handler": lambda job: None, "jobs": 3}) as panel:
        panel.draw()

        assert "handler" in shown(panel, "platter")
        assert "event 0 of" in shown(panel, "caption")


def test_every_control_has_a_label(panel: Explorer) -> None:
    controls = [each for each in walk(panel.widget) if hasattr(each, "value") or isinstance(each, ipywidgets.Button)]
    bare = [each for each in controls if not isinstance(each, ipywidgets.HTML) and not each.description]

    assert bare == []


def test_a_cell_run_again_leaves_as_many_widgets_and_threads(panel: Explorer) -> None:
    def cell() -> Explorer:
        made = explorer(jobs=4, durability="hybrid")
        made.draw()
        assert made.wait()
        return made

    first = cell()
    widgets, threads = len(alive), threading.active_count()
    for _ in range(5):
        last = cell()

    assert len(alive) == widgets
    assert threading.active_count() <= threads
    assert first.is_closed
    assert not last.is_closed
    last.close()
    last.close()


def test_two_calls_in_a_notebook_are_two_explorers() -> None:
    one, other = explorer(jobs=2), explorer(jobs=2)
    assert one.is_closed, "the same line"
    third = explorer(jobs=2)

    assert not other.is_closed
    other.close()
    third.close()


def test_a_closed_explorer_leaves_no_widget() -> None:
    before = set(alive)
    panel = Explorer({"jobs": 2})
    panel.draw()
    panel.close()
    panel.wait()

    assert set(alive) == before
    assert "closed" in repr(panel)


def test_the_report_is_small_and_says_where_the_scrubber_stands(panel: Explorer) -> None:
    panel.next_crash()
    report = panel.report()
    page = report._repr_html_()
    words, _, picture = page.partition("data:image/png;base64,")

    assert panel.caption.split(": ", 1)[1][:40] in repr(report)
    assert len(page.encode()) - len(picture.partition('"')[0]) < 5 * 1024
    assert "SAFETY HOLDS" in words


def test_going_to_an_event_that_is_none_is_refused(panel: Explorer) -> None:
    with pytest.raises(IndexError, match="there are"):
        panel.go_to(10**6)
    with pytest.raises(ValueError, match="stop_at"):
        panel.stop_at("tea")


# The retries tab.


def test_the_retries_tab_draws_its_curve_and_a_job_that_the_engine_retries(panel: Explorer) -> None:
    before = shown(panel, "retries-curve"), shown(panel, "retries-story")
    control(panel, "retries-strategy").value = "fixed"
    control(panel, "retries-failure-rate").value = 1.0
    after = shown(panel, "retries-curve"), shown(panel, "retries-story")

    assert "exponential" in before[0]
    assert "fixed" in after[0]
    assert "in the DLQ" in after[1]


@pytest.mark.parametrize("strategy", ["fixed", "linear", "exponential"])
def test_the_job_waits_as_the_curve_says(strategy: str) -> None:
    chosen = retries.Retries(strategy=strategy, base=10.0, jitter=0.0, cap=30.0, max_attempts=5, failure_rate=1.0)
    attempts = retries.run(chosen).attempts
    waited = [b - a for a, b in zip(attempts.ended[:-1], attempts.started[1:], strict=True)]
    expected = {"fixed": [10] * 4, "linear": [10, 20, 30, 30], "exponential": [10, 20, 30, 30]}[strategy]

    assert all(-0.01 < got - want < 1.5 for got, want in zip(waited, expected, strict=True)), waited


def test_the_longest_back_off_is_simulated_at_once() -> None:
    began = time.perf_counter()
    done = retries.run(retries.Retries(base=60.0, cap=100_000.0, max_attempts=12, failure_rate=1.0))

    assert len(done.attempts) == 12
    assert time.perf_counter() - began < 10, "seconds; 0.3 when nothing else runs"
    assert len(retries.curve(retries.Retries(base=60.0, cap=100_000.0, max_attempts=12))) < 20_000


def test_nothing_is_left_registered() -> None:
    registry.close_all()
