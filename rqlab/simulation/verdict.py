"""What a simulation came to, in words: the sentences that its summary, its pictures and its HTML share."""

from collections import Counter
from collections.abc import Callable, Sequence

from rqlab.job import State
from rqlab.simulation.checks import loses_the_last
from rqlab.simulation.history import Happening

LOST = "lost"  #: the kind of event, and the state, of a job that a crash took
UNDONE = "undone"
NO_POWER_SAFE_OVERWRITE = ", as a disk without power-safe overwrite may in any mode"
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


def _number(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"
