"""What a simulation came to, in words: the sentences that its summary, its pictures and its HTML share."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rqlab.job import State
from rqlab.lifecycle import Event
from rqlab.simulation.checks import loses_the_last
from rqlab.simulation.history import Happening

LOST = "lost"  #: the kind of event, and the state, of a job that a crash took
UNDONE = "undone"
NO_POWER_SAFE_OVERWRITE = ", as a disk without power-safe overwrite may in any mode"
#: What ends a run so that its job runs again, in words: where no fault of the plan did.
BETWEEN: dict[str, str] = {
    Event.STALL: "its lease ran out after it",
    Event.TIME_OUT: "the run timed out after it",
    Event.FAIL: "the run failed after it, and was tried again",
    Event.RELEASE: "its worker was told to stop after it and before the ack",
    Event.SNOOZE: "the run was snoozed after it",
    Event.REQUEUE: "the job was requeued",
    UNDONE: "the run was forgotten",
}
#: And where one did.
AFTER_FAULT = {
    "worker crash": "its worker crashed after it and before the ack",
    "process kill": "its worker was killed after it and before the ack",
    "power cut": "the power failed after it and before the ack",
    "freeze": "its worker stood still after it until the lease had run out",
    "late ack": "its report came when the lease had run out",
    "redeploy": "its worker was told to stop after it and before the ack",
    "wall jump": "its worker's clock jumped after it, so its lease was over",
    "drift": "its worker's clock was wrong, so its lease was over",
}
LISTED_EFFECTS = 5
LISTED_CRASHES = 4  # in one sentence; a table has them all


def what_was_lost(
    history: Sequence[Happening], crash_of: Callable[[Happening], Happening], durability: str, is_sound: bool
) -> str:
    """Which crash took what, in a sentence, and whether the mode may lose that."""
    recoveries = [(crash_of(each), each) for each in history if each.kind == "recovered"]
    if not recoveries:
        return "Nothing was lost: the store met no kill and no power cut."
    harmful = [(crash, each) for crash, each in recoveries if each.detail.get("writes_lost")]
    if not harmful:
        crashes = Counter(crash.kind for crash, _ in recoveries)
        told = ", ".join(f"{count} x {kind}" for kind, count in crashes.items())
        return f"Nothing that was acknowledged was lost ({told})."
    completed = _completed_before(history)
    told = "; ".join(_taken(crash, each, completed) for crash, each in harmful[:LISTED_CRASHES])
    more = f"; and {len(harmful) - LISTED_CRASHES} more crashes" if len(harmful) > LISTED_CRASHES else ""
    is_of_the_mode = any(not loses_the_last(each.detail["after"]) for _, each in harmful)
    may = f", as {durability} may" if is_sound and is_of_the_mode else ""
    return f"Lost{may}: {told}{more}."


def _taken(crash: Happening, recovery: Happening, completed: dict[int, int]) -> str:
    """What one crash took: the power cut at 8.9 s took 10 acknowledged writes (3 jobs; …)."""
    writes, jobs = recovery.detail["writes_lost"], recovery.detail["jobs_lost"]
    parts = [f"{_number(jobs, 'job is', 'jobs are')} gone"] if jobs else []
    again = completed.get(recovery.cause or -1, 0)
    if again:
        parts.append(f"{_number(again, 'completed job', 'completed jobs')} forgotten and run again")
    held = f" ({', '.join(parts)})" if parts else ""
    disk = NO_POWER_SAFE_OVERWRITE if loses_the_last(recovery.detail["after"]) else ""
    return f"the {crash.kind} at {crash.at:.1f} s took {_number(writes, 'acknowledged write')}{held}{disk}"


def _completed_before(history: Sequence[Happening]) -> dict[int, int]:
    """By the cause of a loss: how many jobs had completed before it, and had not after it."""
    states: dict[str, str] = {}
    undone: Counter[int] = Counter()
    for each in history:
        if each.kind == UNDONE and states.get(each.job) == State.COMPLETED and each.detail["state"] != State.COMPLETED:
            undone[-1 if each.cause is None else each.cause] += 1
        states[each.job] = each.detail.get("state", states.get(each.job, ""))
    return undone


class Repeat(NamedTuple):
    """A side effect that happened more than once for a job."""

    job: str
    effect: str
    deliveries: list[int]  #: in which runs
    why: str  #: what came between the first run and the next


def effects(history: Sequence[Happening], crash_of: Callable[[Happening], Happening]) -> list[Repeat]:
    """Every (job, effect), in the order of their first time; `why` is empty where it happened once."""
    found: dict[tuple[str, str], list[Happening]] = {}
    for each in history:
        if each.kind == "effect":
            found.setdefault((each.job, each.detail["what"]), []).append(each)
    told = []
    for (job, what), times in found.items():
        why = _between(history, times[0], times[1], crash_of) if len(times) > 1 else ""
        told.append(Repeat(job, what, [each.detail["delivery"] for each in times], why))
    return told


def effects_in_words(told: Sequence[Repeat], names: Mapping[str, str]) -> list[str]:
    """What happened more than once, each with its cause; or that nothing did."""
    twice = [each for each in told if each.why]
    if not twice:
        counts = Counter(each.effect for each in told)
        each_once = ", ".join(f"{what} for {_number(jobs, 'job')}" for what, jobs in counts.items())
        return [f"Each side effect happened once: {each_once}."] if told else []
    lines = [
        f"{each.effect} happened {_times(len(each.deliveries))} for {names[each.job]}: {each.why}"
        for each in twice[:LISTED_EFFECTS]
    ]
    more = len(twice) - len(lines)
    return lines + ([f"and {_number(more, 'more effect')} more than once"] if more else [])


def _between(
    history: Sequence[Happening], first: Happening, second: Happening, crash_of: Callable[[Happening], Happening]
) -> str:
    """Why a job ran again between two of its effects: what ended the run that had the first one."""
    if first.detail["delivery"] == second.detail["delivery"] and not _was_undone(history, first, second):
        return "twice in one run"
    mine = [each for each in history[first.n + 1 : second.n] if each.job == first.job]
    acked = next((each.n for each in mine if each.kind == Event.ACK), second.n)
    forgotten = next((each for each in mine if each.kind == UNDONE and each.n > acked), None)
    ending = forgotten or next((each for each in reversed(mine) if each.kind in BETWEEN), None)
    if ending is None:
        return "it ran again"
    fault = crash_of(ending)
    if fault.kind not in AFTER_FAULT or fault.n < first.n:
        return f"{BETWEEN[ending.kind]} (at {ending.at:.1f} s)"
    says = "its ack was lost" if forgotten else AFTER_FAULT[fault.kind]
    return f"{says} ({fault.kind} at {fault.at:.1f} s)"


def _was_undone(history: Sequence[Happening], first: Happening, second: Happening) -> bool:
    return any(each.kind == UNDONE and each.job == first.job for each in history[first.n + 1 : second.n])


def _times(count: int) -> str:
    return "twice" if count == 2 else f"{count} times"


def _number(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"
