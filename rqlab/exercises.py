"""The exercises of the notebooks: what each asks, and a function that tries the answer and says what came of it.

An answer is judged by what it does, never by what it looks like, so that there are many right ones. A check raises
nothing: whatever a pupil hands in, it answers in words. A new exercise is a row of EXERCISES and its function.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple

from msgspec.structs import replace

from rqlab import backoff, queues, schedule
from rqlab.durability import MODES, Mode
from rqlab.errors import RQLabError
from rqlab.simulation.audit import audit
from rqlab.simulation.faults import Fault
from rqlab.simulation.result import SimulationResult
from rqlab.simulation.run import simulate

Answer = Any  #: what a pupil hands in: what was asked for, `...`, or something else altogether


class Exercise(NamedTuple):
    """One exercise."""

    notebook: str  #: the file that sets it
    asks: str  #: in one sentence
    check: Callable[..., "Verdict"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer came to; it shows itself as its words, and is true if the answer was right."""

    ok: bool
    says: str

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        return self.says


def _right(says: str) -> Verdict:
    return Verdict(True, f"✓ Right: {says}")


def _wrong(says: str) -> Verdict:
    return Verdict(False, f"✗ Not yet: {says}")


def _open(exercise: str) -> Verdict:
    return Verdict(False, f"○ Not answered yet. {EXERCISES[exercise].asks}")


def _raised(what: str, error: BaseException) -> Verdict:
    return _wrong(f"{what} raised {type(error).__name__}: {error}")


def _answers_in_words(check: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """What the answer raises is part of the verdict, wherever the check meets it: in its code, its == or its repr.

    SystemExit too: one pupil's sys.exit() must not end the script that marks a class.
    """

    @wraps(check)
    def checked(*args: Answer, **kwargs: Answer) -> Verdict:
        try:
            return check(*args, **kwargs)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # what a pupil hands in may raise anything
            return _raised("what you handed in", error)

    return checked


def _seconds(value: Answer) -> float | None:
    """An answer in seconds as a number that can be compared; None if it is none (NaN is below and above nothing)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) else None


# 00: first queue.

PUSHED = ("later", "normal", "urgent")


@_answers_in_words
def check_order(push: Answer) -> Verdict:
    """Does `push(rq)` push later, normal and urgent, in this order, so that they run the other way round?"""
    with queues.memory() as rq:
        try:
            if push is not ...:
                push(rq)
        except Exception as error:  # noqa: BLE001  # a pupil's function may raise anything
            return _raised("push(rq)", error)
        if not rq.counts().total:
            return _open("order")
        pushed = [job.name for job in sorted(rq.jobs(), key=lambda job: job.id)]
        if rq.queues() != ["letters"] or pushed != list(PUSHED):
            return _wrong(f"expected {_listed(PUSHED)} in the queue letters; it pushed {_listed(pushed)} into "
                          f"{_listed(rq.queues())}.")  # fmt: skip
        ran: list[str] = []
        rq.drain("letters", lambda job: ran.append(job.name))
    if len(ran) < len(PUSHED):
        return _wrong(f"only {_listed(ran) or 'none of them'} ran; the others are not due. Leave `delay` out.")
    if ran != list(reversed(PUSHED)):
        return _wrong(f"they ran {_listed(ran)}. Which argument of push says what runs first? See help(rq.push).")
    return _right("pushed last, run first. Within one priority the order is that of the pushes.")


# 01: kill a worker.

PAUSE = 4.0  # seconds; what a worker may stand still without losing its job
PATIENCE = 12.0  # seconds; how long the job of a killed worker may lie idle
UNTIL = 80.0  # seconds; the end of the story
HELD_AT = 20.0  # seconds into the story: the job has been running for a while
PHASES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)  # of a heartbeat interval: nobody chooses when a crash comes
LONG_JOB: dict[str, Any] = {"jobs": [{"name": "long"}], "duration": 400.0, "failure_rate": 0.0, "workers": 2}


@_answers_in_words
def check_stall_timeout(seconds: Answer) -> Verdict:
    """Does a pause of 4 s forgive, and a kill -9 delay a job by 12 s at most, with this stall_timeout?"""
    if seconds is ...:
        return _open("stall_timeout")
    try:
        stalled = [phase for phase in PHASES if _second_run("freeze", phase, seconds, PAUSE) is not None]
        idle = max(_second_run("process kill", phase, seconds, UNTIL) or math.inf for phase in PHASES)
    except RQLabError as error:
        return _wrong(str(error))
    if stalled:
        return _wrong(f"a worker that paused for {PAUSE:g} s lost its job in {len(stalled)} of {len(PHASES)} trials: "
                      f"with {seconds:g} s its newest heartbeat was too old when it woke. Allow more.")  # fmt: skip
    if idle > PATIENCE:
        worst = f"{idle:.1f} s" if idle < math.inf else "a minute or more"
        return _wrong("pauses are forgiven, but after a kill -9 the next run began after "
                      f"{worst} in the worst trial; {PATIENCE:g} s were asked for. Allow less.")  # fmt: skip
    return _right(f"pauses of {PAUSE:g} s are forgiven, and after a kill -9 the next run began within {idle:.1f} s.")


def _second_run(kind: str, phase: float, stall_timeout: float, lasts: float) -> float | None:
    """Let the holder of a long job freeze or die; when the job's next run began, in seconds after that."""
    given = {**LONG_JOB, "seed": 1, "store": "memory", "stall_timeout": stall_timeout, "until": UNTIL}
    holder = str(simulate(0, faults=(), **given).attempts.worker.iloc[0])
    at = HELD_AT + phase * stall_timeout / 3
    attempts = simulate(0, faults=[Fault(at, kind, holder, seconds=lasts)], **given).attempts
    return None if len(attempts) < 2 else float(attempts.started.iloc[1]) - at


# 02: retries and backoff.

WAITS = (2.0, 4.0, 8.0, 10.0)  # seconds


@_answers_in_words
def check_waits(options: Answer) -> Verdict:
    """Do these options of push give five runs, with 2, 4, 8 and 10 s between them?"""
    if options is ... or options == {}:
        return _open("waits")
    if not isinstance(options, Mapping):
        return _wrong(f"expected a dict of push's arguments, such as {{'max_attempts': 2}}; got {options!r:.60}.")
    with queues.memory() as rq:
        try:
            job = rq.get(rq.push("mail", "send", **options))
        except (RQLabError, TypeError) as error:
            return _raised("rq.push('mail', 'send', …)", error)
    if job.jitter:
        return _wrong("jitter makes every wait a little different; these are to be exact.")
    shown = min(job.max_attempts, 20)
    waits = [backoff.retry_in(replace(job, attempt=failed), 0.5) / 1000 for failed in range(1, shown)]
    if tuple(waits) != WAITS:
        said = f"and between them {', '.join(f'{wait:g}' for wait in waits)} s" if waits else "so no wait"
        return _wrong(f"max_attempts is {job.max_attempts}, {said}; expected 5 runs, and 2, 4, 8, 10 s between them.")
    return _right("after each failure the wait doubles, until max_backoff caps it; the fifth failure is the last.")


# 03: what does durable mean.

KILL, CUT = "kill -9", "power cut"
STORIES = {
    "the OOM killer ends the worker": KILL,
    "somebody pulls the plug": CUT,
    "a C extension segfaults": KILL,
    "the kernel panics": CUT,
    "docker kill": KILL,
    "the cloud host dies; the VM boots elsewhere": CUT,
}


@_answers_in_words
def check_crashes(answers: Answer) -> Verdict:
    """Is each of these stories a "kill -9" or a "power cut", to the queue's files?"""
    return _check_table(
        "crashes", answers, STORIES,
        lambda story, answer: (
            f"{story}: the kernel goes down, and its page cache with it"
            if STORIES[story] == CUT
            else f"{story}: the process dies, but the kernel lives, and writes its page cache to the disk later"
        ),
        "what counts is whether the kernel survives: its page cache holds what was written and not yet synced.",
    )  # fmt: skip


# 04: durability trade-offs.

NEEDS = {
    "a payment that was accepted must run": "durable",
    "four worker processes share the directory": "durable",
    "clicks, all day; the last 50 ms may be lost": "buffered",
    "a burst faster than the disk; the last 3 s may be lost": "hybrid",
    "a unit test": "memory",
}


@_answers_in_words
def check_modes(answers: Answer) -> Verdict:
    """Which row of MODES fits each need: the one that loses little enough, and of those the quickest?"""
    return _check_table(
        "modes", answers, NEEDS,
        lambda need, answer: (
            f"{need}: there is no mode {answer!r}; there are {', '.join(MODES)}"
            if answer not in MODES
            else f"{need}: {answer} is for {MODES[answer].use_when}; a power cut loses {_taken(MODES[answer])}; "
            f"processes: {MODES[answer].processes}"
        ),
        "the mode follows from what you may lose, and only then from how fast it is.",
    )  # fmt: skip


# 05: simulate crashes.

SHOWN_SEED = 7  # whose refused report stands in the notebook


@_answers_in_words
def check_seed(seed: Answer) -> Verdict:
    """Does `simulate(crashes=3, seed=…)` show a worker that lost its job and reported all the same?"""
    if seed is ...:
        return _open("seed")
    if seed is None:
        return _wrong("None draws another seed at each call, and nobody could replay what it found. Expected a number.")
    if seed == SHOWN_SEED:
        return _wrong(f"{seed} is the one that the notebook shows. There are others.")
    try:
        result = simulate(crashes=3, seed=seed)
    except RQLabError as error:
        return _wrong(str(error))
    refused = [each for each in result.history if each.kind == "refused"]
    if not refused:
        return _wrong(f"with seed {seed} no late report was refused. Look for kind 'refused' in result.events.")
    first = refused[0]
    return _right(f"with seed {seed}, at {first.at:.1f} s, {first.worker} reports a job that it does not hold any "
                  "more, and is refused: it cannot spoil the other run.")  # fmt: skip


# 06: scrub a crash.


@_answers_in_words
def check_safe_until(result: SimulationResult, seconds: Answer) -> Verdict:
    """Were the pushes up to this instant there after the power cut, and all later ones gone?"""
    if seconds is ...:
        return _open("safe_until")
    if not isinstance(result, SimulationResult):
        return _wrong(f"expected what rqlab.simulate(…) returned; got {type(result).__name__}.")
    jobs = result.jobs.sort_values("pushed")
    lost, kept = jobs[jobs.lost], jobs[~jobs.lost]
    if lost.empty:
        return _wrong("nothing was lost in this result: take one with a power cut in a mode that may lose.")
    first_lost = float(lost.pushed.iloc[0])
    last_kept = float(kept[kept.pushed < float(lost.pushed.iloc[-1])].pushed.max()) if len(kept) else 0.0
    instant = _seconds(seconds)
    if instant is None:
        return _wrong(f"expected an instant in seconds; got {seconds!r:.60}.")
    if instant >= first_lost:
        return _wrong(f"at {first_lost:.2f} s a job was pushed, and acknowledged, that is gone. Earlier.")
    if instant < last_kept:
        return _wrong(f"at {last_kept:.2f} s a job was pushed that survived. Later.")
    return _right(f"what was pushed until {last_kept:.2f} s is there, what came from {first_lost:.2f} s on is gone. "
                  "There is no hole: what survives is a beginning of what was acknowledged.")  # fmt: skip


# 07: exactly once is a lie.

SEEDS = range(20)


@_answers_in_words
def check_handler(handler: Answer) -> Verdict:
    """Does this handler have each of its effects exactly once a job, under twenty seeds of crashes?"""
    if handler is ...:
        return _open("handler")
    effects = 0
    for seed in SEEDS:
        try:
            result = simulate(crashes=3, seed=seed, handler=handler)
        except Exception as error:  # noqa: BLE001  # a pupil's handler may raise anything
            return _raised("the handler", error)
        effects += len(result.effects)
        if not effects:
            return _open("handler")
        twice = result.effects[result.effects.times > 1]
        if len(twice):
            each = twice.iloc[0]
            return _wrong(f"with seed {seed}, the job {each.job} had the effect {each.effect!r} {each.times} times, in "
                          f"its deliveries {_listed(each.deliveries)}. Who remembers that it was done?")  # fmt: skip
        done = set(result.effects.job)
        missed = [job for job in result.jobs[result.jobs.state == "completed"].id if job not in done]
        if missed:
            return _wrong(f"with seed {seed}, the job {missed[0]} completed without its effect. If the "
                          "handler remembers an earlier check, run the cell that defines it again.")  # fmt: skip
    return _right(f"{effects} effects under {len(SEEDS)} seeds, and none of them twice.")


# 08: schedules and clocks.

EXPECTED_CRON = ("30 7 * * mon-fri", "Europe/Berlin")
NEW_YEAR, YEAR_MS = 1_767_225_600_000, 365 * 86_400_000  # 2026, UTC


@_answers_in_words
def check_cron(cron: Answer, timezone: str = "UTC") -> Verdict:
    """Does this cron line tick at half past seven on working days in Berlin, all year round?"""
    if cron is ...:
        return _open("cron")
    try:
        found = _ticks(cron, timezone)
    except (RQLabError, TypeError) as error:
        return _wrong(str(error))
    expected = _ticks(*EXPECTED_CRON)
    if found == expected:
        return _right(f"{len(found)} ticks in 2026, and a phone in Berlin shows 07:30 at each of them.")
    early = sorted(set(found) ^ set(expected))[0]
    what = "a tick that should not be" if early in found else "no tick where one should be"
    hint = ""
    if set(found) & set(expected) and timezone != EXPECTED_CRON[1]:
        hint = " Is the clock that this line reads put forward in March?"
    return _wrong(f"{len(found)} ticks in 2026, expected {len(expected)}; {what}: {_in_utc(early)}.{hint}")


def _ticks(cron: str, timezone: str) -> list[int]:
    """Every tick of 2026, or the first few hundred."""
    return [tick for tick in schedule.ticks(cron, timezone, NEW_YEAR, 600) if tick < NEW_YEAR + YEAR_MS]


def _in_utc(at: int) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(at / 1000, UTC):%a %d %b %H:%M} UTC"


# 09: graceful shutdown.

KILLED_AFTER = 30.0  # seconds from SIGTERM to SIGKILL: what Kubernetes gives by default
MARGIN = 1.0  # seconds; a release is a commit, and a process needs a moment to end


@_answers_in_words
def check_grace(seconds: Answer) -> Verdict:
    """Is every run, however long, released without a charge before the SIGKILL that comes 30 s after SIGTERM?"""
    if seconds is ...:
        return _open("grace")
    if seconds is None:
        return _wrong(f"None waits for the run, however long it takes; at {KILLED_AFTER:g} s SIGKILL takes the worker, "
                      "the job stalls, and an attempt is charged.")  # fmt: skip
    grace = _seconds(seconds)
    if grace is None or grace < 0:
        return _wrong(f"expected seconds, 0 or more; got {seconds!r:.60}.")
    if grace > KILLED_AFTER - MARGIN:
        return _wrong(f"after {grace:g} s there is no time left to release what still runs: SIGKILL comes at "
                      f"{KILLED_AFTER:g} s.")  # fmt: skip
    if grace == 0:
        return _wrong("0 releases even a run that needs one second more. Nothing is charged, but its work is wasted.")
    return _right(f"runs get {grace:g} s to finish; what still runs is released, no attempt charged.")


# 10: beat the queue.


class _Feat(NamedTuple):
    """What an adversary has achieved."""

    mode: Mode
    lost: int
    is_allowed: bool
    proof: str  #: the line, or the report, that shows it to everybody


@_answers_in_words
def check_mission(result: Answer) -> Verdict:
    """Did this simulation, or this lab, lose an acknowledged job?"""
    if result is ...:
        return _open("mission")
    feat = _feat(result)
    if feat is None:
        return _wrong(f"expected what rqlab.simulate(…) or lab.report() returned; got {type(result).__name__}.")
    name, lost = feat.mode.name, feat.lost
    if not lost:
        advice = "another mode" if feat.mode.lost_at_power_cut == "nothing" else "a crash soon after a push"
        return _wrong(f"{name} lost nothing. A crash may take {_taken(feat.mode)}: try {advice}.")
    if not feat.is_allowed:
        return _right(f"{lost} acknowledged jobs are gone, and {name} had not allowed for that: you have found a "
                      f"bug in rqlab. Please report it: {feat.proof}")  # fmt: skip
    return _right(f"{lost} acknowledged jobs are gone. {name} had said so: a crash may take {_taken(feat.mode)}. "
                  "Now try durable.")  # fmt: skip


def _feat(result: Answer) -> _Feat | None:
    """The same of a simulation and of a lab's report, which is known by what it has: widgets stand beside this file."""
    if isinstance(result, SimulationResult):
        mode = MODES[str(result.header.arguments["durability"])]
        return _Feat(mode, int(result.jobs.lost.sum()), result.ok, result.replay_line)
    if hasattr(result, "acknowledged") and getattr(result, "mode", None) in MODES:
        return _Feat(MODES[result.mode], int(result.lost), bool(result.ok), repr(result))
    return None


# 11: audit your queue.

ENOUGH_PUSHES = 50


@_answers_in_words
def check_queue(workload: Answer, survivors: Answer) -> Verdict:
    """Does this queue keep all that it acknowledged, wherever the power is cut?"""
    if workload is ... or survivors is ...:
        return _open("queue")
    try:
        found = audit(workload, survivors, cuts=60)
    except Exception as error:  # noqa: BLE001  # a pupil's functions may raise anything
        return _raised("the audit", error)
    if not found.ok:
        complaint = next((each.complaint for each in found.losses if each.complaint), "")
        return _wrong(f"{found}. {complaint}".rstrip())
    if found.acknowledged < ENOUGH_PUSHES:
        return _wrong(f"{found.acknowledged} pushes prove little: push at least {ENOUGH_PUSHES}.")
    return _right(f"{found}; {found.syncs} syncs for {found.acknowledged} pushes are what that costs.")


# Below.


def _check_table(
    exercise: str,
    answers: Answer,
    expected: Mapping[str, str],
    why_not: Callable[[str, str], str],
    lesson: str,
) -> Verdict:
    """A table of questions, each with a word for an answer."""
    if answers is ... or (isinstance(answers, Mapping) and all(answer is ... for answer in answers.values())):
        return _open(exercise)
    if not isinstance(answers, Mapping) or set(answers) != set(expected):
        return _wrong(f"expected a dict with these keys: {'; '.join(expected)}.")
    left = [question for question in expected if answers[question] is ...]
    wrong = [question for question in expected if question not in left and answers[question] != expected[question]]
    if wrong:
        said = f"{len(expected) - len(wrong) - len(left)} of {len(expected)} are right. "
        return _wrong(f"{said}{why_not(wrong[0], answers[wrong[0]])}.")
    if left:
        return _wrong(f"so far so good; still open: {'; '.join(left)}.")
    return _right(lesson)


def _taken(mode: Mode) -> str:
    """What a power cut may take; its row says "the same" where a kill takes it too."""
    return mode.lost_at_kill if mode.lost_at_power_cut == "the same" else mode.lost_at_power_cut


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


EXERCISES: dict[str, Exercise] = {
    "order": Exercise(
        "00_first_queue",
        "Push the jobs later, normal and urgent into the queue letters, in this order, so that they run the other way "
        "round.",
        check_order,
    ),
    "stall_timeout": Exercise(
        "01_kill_a_worker",
        f"Find a stall_timeout that forgives a worker that stands still for {PAUSE:g} s, and starts the job of a "
        f"killed one again within {PATIENCE:g} s.",
        check_stall_timeout,
    ),
    "waits": Exercise(
        "02_retries_and_backoff",
        "Find options of push that give a job five runs, with 2, 4, 8 and 10 s between them.",
        check_waits,
    ),
    "crashes": Exercise(
        "03_what_does_durable_mean",
        'Say of each story whether it is a "kill -9" or a "power cut" to the queue\'s files.',
        check_crashes,
    ),
    "modes": Exercise("04_durability_tradeoffs", "Choose a durability mode for each need.", check_modes),
    "seed": Exercise(
        "05_simulate_crashes",
        "Find a seed with which a worker that has lost its job reports all the same, and is refused.",
        check_seed,
    ),
    "safe_until": Exercise(
        "06_scrub_a_crash",
        "Say, in seconds, up to when the pushes were safe when the power went.",
        check_safe_until,
    ),
    "handler": Exercise(
        "07_exactly_once_is_a_lie",
        "Write a handler that has its effect once a job, however often the job is delivered.",
        check_handler,
    ),
    "cron": Exercise(
        "08_schedules_and_clocks",
        "Write the cron line, and the time zone, of half past seven on working days in Berlin.",
        check_cron,
    ),
    "grace": Exercise(
        "09_graceful_shutdown",
        f"Choose the grace of a worker that gets SIGTERM, and SIGKILL {KILLED_AFTER:g} s later. Runs may take 45 s.",
        check_grace,
    ),
    "mission": Exercise("10_beat_the_queue", "Make the queue lose an acknowledged job.", check_mission),
    "queue": Exercise(
        "11_audit_your_queue",
        "Mend the queue of ten lines, so that no power cut loses what it has acknowledged.",
        check_queue,
    ),
}
