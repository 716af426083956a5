"""The life of a job: every state and every event, and the arithmetic that belongs to each."""

import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from rqlab import lifecycle
from rqlab.errors import InvalidState, LeaseLost
from rqlab.job import (
    FINISHED,
    MAX_ERROR_BYTES,
    MAX_HISTORY,
    MAX_HISTORY_ERROR_BYTES,
    MAX_LOG_LINE_BYTES,
    MAX_LOGS,
    MAX_LOGS_BYTES,
    NULL,
    Job,
    Outcome,
    State,
)
from rqlab.lifecycle import TRANSITIONS, Event

NOW = 1_767_225_600_000
STALL = 30.0  # seconds
ID = "019b76da-a800-7000-8000-000000000001"

#: How each event but `push` and `purge` is brought: (job, now) -> the next record.
STEPS: dict[Event, Callable[[Job, int], Job]] = {
    Event.PROMOTE: lifecycle.promote,
    Event.PULL: lambda job, now: lifecycle.pull(job, now, "host:1:main", STALL),
    Event.HEARTBEAT: lambda job, now: lifecycle.heartbeat(replace(job, stall_timeout=STALL), now),
    Event.PROGRESS: lambda job, now: lifecycle.progress(job, now, 50, "half"),
    Event.LOG: lambda job, now: lifecycle.log(job, now, "line"),
    Event.ACK: lambda job, now: lifecycle.ack(job, now, NULL),
    Event.FAIL: lambda job, now: lifecycle.fail(job, now, "boom", 0.5),
    Event.STALL: lambda job, now: lifecycle.stall(
        replace(job, lease_until=job.lease_until or now, stall_timeout=STALL), now, 0.5
    ),
    Event.TIME_OUT: lambda job, now: lifecycle.time_out(replace(job, timeout=60.0), now, 0.5),
    Event.RELEASE: lifecycle.release,
    Event.SNOOZE: lambda job, now: lifecycle.snooze(job, now, 10.0),
    Event.EXPIRE: lifecycle.expire,
    Event.CANCEL: lifecycle.cancel,
    Event.REQUEUE: lifecycle.requeue,
}


def new(delay: float = 0.0, **fields: Any) -> Job:
    return lifecycle.push(Job(id="", queue="emails", name="send", **fields), ID, NOW, delay)


def active(**fields: Any) -> Job:
    return lifecycle.pull(new(**fields), NOW, "host:1:main", STALL)


def in_state(state: State, **fields: Any) -> Job:
    """A job that has come to `state` by the rules."""
    match state:
        case State.WAITING:
            return new(**fields)
        case State.DELAYED:
            return new(5.0, **fields)
        case State.ACTIVE:
            return active(**fields)
        case State.COMPLETED:
            return lifecycle.ack(active(**fields), NOW + 10, NULL)
        case State.DLQ:
            return lifecycle.fail(active(**fields), NOW + 10, "boom", 0.5, final=True)
        case State.CANCELLED:
            return lifecycle.cancel(new(**fields), NOW + 10)


LEGAL = [
    (state, event)
    for event, transition in TRANSITIONS.items()
    for state in transition.sources
    if event is not Event.PURGE
]
ILLEGAL = [(state, event) for event in TRANSITIONS for state in State if state not in TRANSITIONS[event].sources]


# The table.


def test_every_event_has_a_row_in_the_table() -> None:
    assert set(TRANSITIONS) == set(Event)


def test_the_table_is_the_contract() -> None:
    waiting, delayed, active, completed, dlq, cancelled = State
    by_contract = {
        Event.PUSH: ((), {waiting, delayed}),
        Event.PROMOTE: ({delayed}, {waiting}),
        Event.PULL: ({waiting}, {active}),
        Event.HEARTBEAT: ({active}, {active}),
        Event.PROGRESS: ({active}, {active}),
        Event.LOG: ({active}, {active}),
        Event.ACK: ({active}, {completed}),
        Event.FAIL: ({active}, {delayed, waiting, dlq}),
        Event.STALL: ({active}, {delayed, waiting, dlq}),
        Event.TIME_OUT: ({active}, {delayed, waiting, dlq}),
        Event.RELEASE: ({active}, {waiting}),
        Event.SNOOZE: ({active}, {waiting, delayed}),
        Event.EXPIRE: ({waiting, delayed}, {dlq}),
        Event.CANCEL: ({waiting, delayed, active}, {cancelled}),
        Event.REQUEUE: ({dlq, cancelled}, {waiting}),
        Event.PURGE: ({completed, dlq, cancelled}, set()),
    }

    for event, (sources, targets) in by_contract.items():
        assert set(TRANSITIONS[event].sources) == set(sources), event
        assert set(TRANSITIONS[event].targets) == set(targets), event


@pytest.mark.parametrize(("state", "event"), LEGAL)
def test_a_legal_event_leads_to_a_state_of_the_table(state: State, event: Event) -> None:
    before = in_state(state)

    after = STEPS[event](before, NOW + 1_000)

    assert after.state in TRANSITIONS[event].targets
    assert after.updated_at == NOW + 1_000
    assert (after.id, after.queue, after.name, after.priority) == (before.id, before.queue, before.name, 0)
    assert after.created_at == NOW


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_an_illegal_event_is_refused_and_says_why(state: State, event: Event) -> None:
    if event is Event.PUSH:
        return  # there is no job yet that could be in a state
    job = in_state(state)
    step = STEPS.get(event, lambda job, now: lifecycle.require(job, event))  # type: ignore[arg-type,return-value]

    with pytest.raises(InvalidState) as refused:
        step(job, NOW + 1_000)

    said = str(refused.value)
    assert ID in said
    assert f"got {state}" in said
    assert event.replace("_", " ") in said
    for expected in TRANSITIONS[event].sources:
        assert expected in said.split("expected")[1].split("got")[0]
    assert job == in_state(state)


@pytest.mark.parametrize("state", TRANSITIONS[Event.PURGE].sources)
def test_a_finished_job_may_be_purged(state: State) -> None:
    lifecycle.require(in_state(state), Event.PURGE)


def test_every_target_of_the_table_is_reached() -> None:
    reached: dict[Event, set[State]] = {event: set() for event in Event}
    for delay in (0.0, 5.0):
        reached[Event.PUSH].add(new(delay).state)
    for state, event in LEGAL:
        reached[event].add(STEPS[event](in_state(state), NOW + 1).state)
    for event in (Event.FAIL, Event.STALL, Event.TIME_OUT):
        reached[event].add(STEPS[event](active(max_attempts=1), NOW + 1).state)
        reached[event].add(STEPS[event](active(backoff_delay=0.0), NOW + 1).state)
    reached[Event.SNOOZE].add(lifecycle.snooze(active(), NOW, 0.0).state)

    assert {event: set(row.targets) for event, row in TRANSITIONS.items()} == reached


# Entering the line.


def test_a_job_without_a_delay_waits() -> None:
    job = new()

    assert (job.state, job.delay_until, job.created_at, job.updated_at) == (State.WAITING, None, NOW, NOW)
    assert (job.attempt, job.deliveries, job.started_at, job.finished_at, job.lease_until) == (0, 0, None, None, None)


def test_a_job_with_a_delay_is_delayed_until_then() -> None:
    job = new(1.2345)

    assert (job.state, job.delay_until) == (State.DELAYED, NOW + 1_235)


@pytest.mark.parametrize(("delay", "expires_in"), [(0.0, 60_000), (10.0, 70_000)])
def test_ttl_counts_from_when_the_job_is_first_due(delay: float, expires_in: int) -> None:
    job = new(delay, ttl=60.0)

    assert job.expires_at == NOW + expires_in


def test_ttl_ends_with_the_first_pull() -> None:
    pulled = lifecycle.pull(new(ttl=60.0), NOW, "w", STALL)

    assert pulled.expires_at is None
    assert lifecycle.release(pulled, NOW + 1).expires_at is None
    assert lifecycle.fail(pulled, NOW + 1, "boom", 0.5).expires_at is None


def test_promotion_keeps_the_ttl() -> None:
    job = new(10.0, ttl=60.0)

    assert lifecycle.promote(job, NOW + 10_000).expires_at == NOW + 70_000


# A run.


def test_a_pull_is_a_new_delivery_with_a_fresh_lease() -> None:
    job = lifecycle.pull(new(), NOW + 5, "host:1:main", 12.5)

    assert (job.deliveries, job.attempt, job.worker) == (1, 0, "host:1:main")
    assert (job.started_at, job.lease_until, job.stall_timeout) == (NOW + 5, NOW + 5 + 12_500, 12.5)


def test_a_heartbeat_moves_the_lease_to_now_plus_stall_timeout() -> None:
    job = lifecycle.heartbeat(active(), NOW + 20_000)

    assert job.lease_until == NOW + 50_000
    assert (job.deliveries, job.attempt, job.started_at) == (1, 0, NOW)


def test_a_heartbeat_cuts_a_lease_that_a_clock_gone_back_left_too_long() -> None:
    job = lifecycle.heartbeat(active(), NOW - 3_600_000)

    assert job.lease_until == NOW - 3_600_000 + 30_000


def test_progress_is_no_heartbeat() -> None:
    job = lifecycle.progress(active(), NOW + 20_000, 40, "four of ten")

    assert (job.progress, job.logs, job.lease_until) == (40, ("four of ten",), NOW + 30_000)


def test_progress_without_words_adds_no_line() -> None:
    assert lifecycle.progress(active(), NOW, 40, None).logs == ()


def test_a_new_run_starts_at_no_progress_and_keeps_the_logs() -> None:
    job = lifecycle.progress(active(backoff_delay=0.0), NOW, 40, "four of ten")
    again = lifecycle.pull(lifecycle.fail(job, NOW, "boom", 0.5), NOW, "w", STALL)

    assert (again.progress, again.logs) == (0, ("four of ten",))


def test_ack_completes_and_keeps_the_result() -> None:
    job = lifecycle.ack(active(), NOW + 10, msgspec.Raw(b"[1]"))

    assert (job.state, job.result, job.finished_at, job.attempt) == (State.COMPLETED, [1], NOW + 10, 0)
    assert (job.lease_until, job.stall_timeout, job.worker) == (None, None, None)


# Failed attempts.


@pytest.mark.parametrize("event", [Event.FAIL, Event.STALL, Event.TIME_OUT])
def test_a_failed_attempt_counts_and_the_job_is_delayed_by_its_backoff(event: Event) -> None:
    job = STEPS[event](active(backoff_delay=2.0), NOW + 10)

    assert (job.state, job.attempt, job.deliveries, job.delay_until) == (State.DELAYED, 1, 1, NOW + 2_010)
    assert (job.lease_until, job.stall_timeout, job.worker, job.finished_at) == (None, None, None, None)


@pytest.mark.parametrize("event", [Event.FAIL, Event.STALL, Event.TIME_OUT])
def test_a_backoff_of_nothing_leaves_the_job_waiting(event: Event) -> None:
    job = STEPS[event](active(backoff_delay=0.0), NOW + 10)

    assert (job.state, job.attempt, job.delay_until) == (State.WAITING, 1, None)


@pytest.mark.parametrize("event", [Event.FAIL, Event.STALL, Event.TIME_OUT])
@pytest.mark.parametrize("max_attempts", [1, 2, 3])
def test_max_attempts_counts_runs(event: Event, max_attempts: int) -> None:
    job, runs = new(max_attempts=max_attempts, backoff_delay=0.0), 0
    while job.state is State.WAITING:
        job, runs = STEPS[event](lifecycle.pull(job, NOW, "w", STALL), NOW), runs + 1

    assert runs == max_attempts
    assert (job.state, job.attempt, job.deliveries) == (State.DLQ, max_attempts, max_attempts)
    assert job.finished_at == NOW


def test_the_third_backoff_counts_all_failures() -> None:
    job = active(max_attempts=9)
    for expected in (1_000, 2_000, 4_000):
        job = lifecycle.fail(job, NOW, "boom", 0.5)
        assert job.delay_until == NOW + expected
        job = lifecycle.pull(lifecycle.promote(job, NOW), NOW, "w", STALL)


def test_retry_after_replaces_the_backoff() -> None:
    job = lifecycle.fail(active(), NOW, "busy", 0.5, retry_after=90.0)

    assert (job.attempt, job.delay_until) == (1, NOW + 90_000)


def test_retry_after_on_the_last_attempt_goes_to_the_dlq() -> None:
    assert lifecycle.fail(active(max_attempts=1), NOW, "busy", 0.5, retry_after=90.0).state is State.DLQ


def test_a_final_failure_goes_to_the_dlq_with_attempts_left() -> None:
    job = lifecycle.fail(active(), NOW, "no such customer", 0.5, final=True)

    assert (job.state, job.attempt, job.last_error) == (State.DLQ, 1, "no such customer")


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_a_stall_names_the_silent_worker_and_how_long(max_attempts: int) -> None:
    job = lifecycle.stall(active(max_attempts=max_attempts), NOW + 31_500, 0.5)

    assert job.last_error == "stalled: no heartbeat from host:1:main for 31.5 s"
    assert job.history[-1].outcome is Outcome.STALLED


def test_the_silence_of_a_stall_counts_from_the_last_heartbeat() -> None:
    job = lifecycle.stall(lifecycle.heartbeat(active(), NOW + 20_000), NOW + 50_000, 0.5)

    assert job.last_error == "stalled: no heartbeat from host:1:main for 30.0 s"


@pytest.mark.parametrize(("timeout", "said"), [(90.0, "90"), (0.25, "0.25"), (1_234_567.5, "1234567.5")])
def test_a_time_out_says_after_how_long(timeout: float, said: str) -> None:
    job = lifecycle.time_out(active(timeout=timeout, max_attempts=1), NOW + 91_000, 0.5)

    assert (job.state, job.last_error) == (State.DLQ, f"timed out after {said} s")
    assert job.history[-1].outcome is Outcome.TIMED_OUT


def test_a_retry_with_a_backoff_longer_than_its_lease_starts_its_next_run_with_a_full_lease() -> None:
    job = lifecycle.heartbeat(active(backoff_delay=100.0), NOW + 10_000)
    job = lifecycle.fail(job, NOW + 11_000, "boom", 0.5)
    due_at = NOW + 111_000

    again = lifecycle.pull(lifecycle.promote(job, due_at), due_at, "w2", STALL)

    assert job.delay_until == due_at
    assert again.lease_until == due_at + 30_000
    assert again.started_at == due_at


def test_the_timeout_of_a_retry_counts_from_its_own_start() -> None:
    job = lifecycle.fail(active(timeout=5.0, backoff_delay=0.0), NOW + 1_000, "boom", 0.5)
    again = lifecycle.pull(job, NOW + 60_000, "w2", STALL)

    assert job.timeout_at is None
    assert again.timeout_at == NOW + 65_000


# Given up, put off, called off.


def test_a_release_charges_nothing() -> None:
    job = lifecycle.release(active(), NOW + 10)

    assert (job.state, job.attempt, job.deliveries, job.last_error) == (State.WAITING, 0, 1, None)
    assert (job.lease_until, job.stall_timeout, job.worker) == (None, None, None)


@pytest.mark.parametrize(("delay", "state", "delay_until"), [(0, State.WAITING, None), (5, State.DELAYED, NOW + 5_000)])
def test_a_snooze_charges_nothing(delay: float, state: State, delay_until: int | None) -> None:
    job = lifecycle.snooze(active(), NOW, delay)

    assert (job.state, job.delay_until, job.attempt, job.deliveries) == (state, delay_until, 0, 1)


@pytest.mark.parametrize("state", [State.WAITING, State.DELAYED])
def test_an_expired_job_is_dead_lettered_as_expired(state: State) -> None:
    job = lifecycle.expire(in_state(state, ttl=1.0), NOW + 60_000)

    assert (job.state, job.last_error, job.finished_at) == (State.DLQ, "expired", NOW + 60_000)
    assert (job.expires_at, job.delay_until, job.history, job.attempt) == (None, None, (), 0)


@pytest.mark.parametrize("state", [State.WAITING, State.DELAYED, State.ACTIVE])
def test_a_cancelled_job_leaves_nothing_to_wake_it(state: State) -> None:
    job = lifecycle.cancel(in_state(state, ttl=1.0), NOW + 10)

    assert (job.state, job.finished_at) == (State.CANCELLED, NOW + 10)
    assert (job.delay_until, job.expires_at, job.lease_until, job.worker) == (None, None, None, None)


def test_cancelling_a_run_revokes_its_lease_and_charges_nothing() -> None:
    held = active()

    cancelled = lifecycle.cancel(held, NOW + 10)

    assert cancelled.attempt == 0
    assert cancelled.history[-1].outcome is Outcome.CANCELLED
    with pytest.raises(LeaseLost, match="cancelled"):
        lifecycle.fence(cancelled, held)


@pytest.mark.parametrize("state", [State.DLQ, State.CANCELLED])
def test_a_requeue_starts_over_and_keeps_the_past(state: State) -> None:
    ended = in_state(state, ttl=60.0)

    job = lifecycle.requeue(ended, NOW + 99)

    assert (job.state, job.attempt, job.started_at, job.finished_at) == (State.WAITING, 0, None, None)
    assert (job.ttl, job.expires_at, job.last_error, job.delay_until) == (None, None, None, None)
    assert (job.history, job.deliveries, job.created_at) == (ended.history, ended.deliveries, NOW)


def test_a_requeued_job_has_all_its_attempts_again() -> None:
    job = lifecycle.requeue(lifecycle.fail(active(max_attempts=2), NOW, "boom", 0.5, final=True), NOW)
    job = lifecycle.fail(lifecycle.pull(job, NOW, "w", STALL), NOW, "boom", 0.5)

    assert (job.state, job.attempt, job.deliveries) == (State.DELAYED, 1, 2)


# History, logs, errors.


def test_a_line_of_history_says_who_ran_when_and_how_it_ended() -> None:
    job = lifecycle.fail(active(), NOW + 70, "boom", 0.5)

    (line,) = job.history
    assert (line.delivery, line.worker, line.started_at, line.ended_at) == (1, "host:1:main", NOW, NOW + 70)
    assert (line.outcome, line.error) == (Outcome.FAILED, "boom")


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        (Event.ACK, Outcome.COMPLETED),
        (Event.FAIL, Outcome.FAILED),
        (Event.STALL, Outcome.STALLED),
        (Event.TIME_OUT, Outcome.TIMED_OUT),
        (Event.RELEASE, Outcome.RELEASED),
        (Event.SNOOZE, Outcome.RELEASED),
        (Event.CANCEL, Outcome.CANCELLED),
    ],
)
def test_each_end_of_a_delivery_has_its_outcome(event: Event, outcome: Outcome) -> None:
    assert [line.outcome for line in STEPS[event](active(), NOW).history] == [outcome]


def test_history_keeps_the_newest_hundred() -> None:
    job = new()
    for _ in range(MAX_HISTORY + 5):
        job = lifecycle.release(lifecycle.pull(job, NOW, "w", STALL), NOW)

    assert len(job.history) == MAX_HISTORY == 100
    assert [line.delivery for line in job.history] == list(range(6, 106))
    assert job.deliveries == 105


def test_logs_keep_the_newest_thousand_lines() -> None:
    job = active()
    for number in range(MAX_LOGS + 5):
        job = lifecycle.log(job, NOW, str(number))

    assert MAX_LOGS == 1_000
    assert job.logs == tuple(str(number) for number in range(5, 1_005))


def test_a_log_line_is_cut_at_a_kibibyte_on_a_character_boundary() -> None:
    job = lifecycle.log(active(), NOW, "é" * 600)
    odd = lifecycle.log(active(), NOW, "a" + "é" * 600)

    assert MAX_LOG_LINE_BYTES == 1_024
    assert job.logs == ("é" * 512,)
    assert odd.logs == ("a" + "é" * 511,)


def test_logs_keep_64_kibibytes_in_all() -> None:
    job = active()
    for number in range(70):
        job = lifecycle.log(job, NOW, f"{number:02d}" + "x" * 1_022)

    assert sum(len(line.encode()) for line in job.logs) == MAX_LOGS_BYTES == 65_536
    assert [line[:2] for line in job.logs] == [f"{number:02d}" for number in range(6, 70)]


def test_a_full_log_gives_up_only_as_many_lines_as_it_must() -> None:
    job = active()
    for number in range(64):
        job = lifecycle.log(job, NOW, f"{number:02d}" + "x" * 1_022)

    job = lifecycle.log(job, NOW, "short")

    assert job.logs[0].startswith("01")
    assert job.logs[-1] == "short"


def test_an_error_is_cut_at_8_kibibytes_on_a_character_boundary() -> None:
    exact = lifecycle.fail(active(), NOW, "é" * 4_096, 0.5)
    longer = lifecycle.fail(active(), NOW, "a" + "é" * 4_096, 0.5)

    assert MAX_ERROR_BYTES == 8_192
    assert exact.last_error == "é" * 4_096
    assert longer.last_error == "a" + "é" * 4_095


def test_history_keeps_the_head_of_an_error() -> None:
    job = lifecycle.fail(active(), NOW, "a" + "é" * 4_000, 0.5)

    assert job.history[0].error == "a" + "é" * 255
    assert len(job.history[0].error.encode()) <= MAX_HISTORY_ERROR_BYTES


def test_an_error_that_is_not_valid_unicode_is_kept_all_the_same() -> None:
    assert lifecycle.fail(active(), NOW, "caf\udce9", 0.5).last_error == "caf\\udce9"


# Fencing.


def test_the_run_that_holds_the_job_passes_the_fence() -> None:
    held = active()
    stored = lifecycle.heartbeat(held, NOW + 5)

    assert lifecycle.fence(stored, held) is stored


@pytest.mark.parametrize("state", [state for state in State if state is not State.ACTIVE])
def test_a_run_whose_job_is_not_active_is_refused(state: State) -> None:
    stored = replace(in_state(state), deliveries=1)

    with pytest.raises(LeaseLost, match=state):
        lifecycle.fence(stored, active())


def test_a_stale_delivery_is_refused_though_the_job_is_active_again() -> None:
    held = active()
    stored = lifecycle.pull(lifecycle.release(held, NOW), NOW, "w2", STALL)

    with pytest.raises(LeaseLost, match=re.escape("expected active, delivery 1; found active, delivery 2")):
        lifecycle.fence(stored, held)


def test_a_requeue_does_not_bring_an_old_run_back() -> None:
    held = active()
    stored = lifecycle.requeue(lifecycle.stall(replace(held, max_attempts=1), NOW + 30_000, 0.5), NOW)
    again = lifecycle.pull(stored, NOW, "w2", STALL)

    assert again.attempt == held.attempt
    with pytest.raises(LeaseLost):
        lifecycle.fence(again, held)


def test_a_run_whose_job_was_removed_is_refused() -> None:
    with pytest.raises(LeaseLost, match="removed"):
        lifecycle.fence(None, active())


# A clock that went back.


@pytest.mark.parametrize(("back_ms", "is_too_far"), [(0, False), (1_000, False), (1_001, True), (3_600_000, True)])
def test_a_lease_is_too_far_ahead_only_beyond_a_second_of_disagreement(back_ms: int, is_too_far: bool) -> None:
    assert lifecycle.is_too_far_ahead(active(), NOW - back_ms) is is_too_far


# Whatever happens.

EVENTS = st.tuples(
    st.sampled_from(sorted(STEPS)), st.integers(min_value=-5_000, max_value=200_000), st.sampled_from([0.0, 0.5, 0.999])
)


def check(job: Job) -> None:
    """What is true of every record."""
    assert 0 <= job.attempt <= job.max_attempts
    assert (job.lease_until is not None) == (job.state is State.ACTIVE)
    assert (job.stall_timeout is not None) == (job.state is State.ACTIVE)
    assert (job.worker is not None) == (job.state is State.ACTIVE)
    assert (job.finished_at is not None) == (job.state in FINISHED)
    assert job.state is not State.DELAYED or job.delay_until is not None
    assert job.expires_at is None or (job.state in (State.WAITING, State.DELAYED) and job.deliveries == 0)
    finished_deliveries = job.deliveries - (job.state is State.ACTIVE)
    assert len(job.history) == min(finished_deliveries, MAX_HISTORY)
    assert [line.delivery for line in job.history] == sorted(line.delivery for line in job.history)
    assert msgspec.json.decode(msgspec.json.encode(job), type=Job) == job


@settings(max_examples=300, deadline=None)
@given(
    max_attempts=st.integers(1, 4),
    backoff_delay=st.sampled_from([0.0, 1.0, 1e6]),
    ttl=st.sampled_from([None, 10.0]),
    delay=st.sampled_from([0.0, 5.0]),
    events=st.lists(EVENTS, max_size=40),
)
def test_no_program_of_events_breaks_a_record(
    max_attempts: int, backoff_delay: float, ttl: float | None, delay: float, events: list[tuple[Event, int, float]]
) -> None:
    job, now = new(delay, max_attempts=max_attempts, backoff_delay=backoff_delay, ttl=ttl), NOW
    check(job)
    for event, passed, _ in events:
        now += passed
        before = job
        step = STEPS[Event(event)]
        if job.state is State.ACTIVE and event == Event.TIME_OUT:
            job = replace(job, timeout=60.0)
        if before.state in TRANSITIONS[Event(event)].sources:
            job = step(job, now)
            assert job.state in TRANSITIONS[Event(event)].targets
        else:
            with pytest.raises(InvalidState):
                step(job, now)

        check(job)
        assert job.deliveries >= before.deliveries
        assert job.deliveries == before.deliveries + (event == Event.PULL and job is not before)
        assert job.attempt >= before.attempt or event == Event.REQUEUE
        assert job.id == before.id
