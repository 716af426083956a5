"""What happened, in one sentence an event, and because of what: the words beside a scrubber. Pure, and plain text.

CAPTIONS has a row for each kind of event. Whoever shows a caption escapes it: it holds what callers wrote.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rqlab.charts.histories import moment, times
from rqlab.charts.looks import plain, seconds
from rqlab.charts.platters import PlatterView, size
from rqlab.job import State
from rqlab.simulation.history import Happening
from rqlab.simulation.sectors import DiskStep

MOST_CAUSES = 3
#: Events that are worth naming as a cause; the others only lie on the way to one.
TELLING = frozenset({
    "fail", "stall", "time_out", "release", "snooze", "cancel", "requeue", "expire", "recovered", "lost", "undone",
    "refused",
})  # fmt: skip
#: Events that have a cause worth asking for; a run that ends in its own way needs none.
EXPLAINED = frozenset({
    "promote", "pull", "stall", "time_out", "start", "thaw", "heal", "recovered", "lost", "undone", "refused", "expire",
    "worker crash",
})  # fmt: skip

#: A sentence a kind of event. {it} is the job; {stands} where it now is; the others are from the event's details.
CAPTIONS: dict[str, str] = {
    "push": "The producer pushed {it} ({name}) to {queue}; {stands}.",
    "promote": "{It} was due, so it may be pulled: {stands}.",
    "pull": "{worker} pulled {it} for run {deliveries}; the lease holds until {lease}.",
    "heartbeat": "{worker}'s heartbeat moved {it}'s lease to {lease}.",
    "progress": "{worker} reported progress on {it}.",
    "log": "{worker} wrote a line into the log of {it}.",
    "ack": "{worker} acked {it}; {stands}.",
    "fail": "{It} failed on {worker} ({error}); {stands}.",
    "stall": "{It} stalled: {worker} sent no heartbeat before the lease ran out; {stands}.",
    "time_out": "{It} ran longer on {worker} than its timeout allows; {stands}.",
    "release": "{worker} gave {it} back as it stopped, and no attempt is charged; {stands}.",
    "snooze": "{It}'s handler asked for later, and no attempt is charged; {stands}.",
    "expire": "{It} was not started within its ttl; {stands}.",
    "cancel": "A caller cancelled {it}.",
    "requeue": "A caller requeued {it}: {stands}, and its attempts count from 0.",
    "purge": "{It} was removed for good.",
    "worker crash": "{worker}'s thread crashed; its process lives on, and the worker starts again {later}.",
    "process kill": "kill -9 took {whose} process{inside}; {memory}.",
    "power cut": "The power failed{inside}: {platter}; {memory}.",
    "redeploy": "All workers were told to stop: they release what they hold, and start again {later}.",
    "wall jump": "The wall clock of {whose} process jumped {direction} by {lasting}.",
    "drift": "The wall clock of {whose} process began to run {pace} by {lasting} a second.",
    "freeze": "{Whose} process froze for {lasting}: no heartbeat leaves it.",
    "late ack": "{worker}'s report on {it} is held up {until}; nobody keeps the lease meanwhile.",
    "duplicate ack": "{worker}'s report on {it} will be sent a second time {later}.",
    "duplicate push": "The producer will not hear that its next push was stored, and will push again.",
    "slow disk": "The disk became slow: for {lasting} every write takes 0.4 s.",
    "disk full": "The disk is full: for {lasting} nothing more can be written.",
    "I/O error": "The disk began to fail: {refused} an I/O error for an answer.",
    "failed fsync": "The next fsync will fail.",
    "locked database": "A stopped process took the write lock, and holds it for {lasting}.",
    "poison job": "{Target} is poison: it crashes its worker whenever it runs.",
    "hanging handler": "{Target} hangs: its next run will not end of itself.",
    "start": "{worker} opened the queues.",
    "effect": "The handler of {it} did something to the world outside in run {delivery}: {what}.",
    "refused": "{worker}'s {attempted} of {it} was refused: run {delivery} does not hold the job any more.",
    "error": "{worker} got an error for an answer: {says}.",
    "duplicate": "A push was refused: {it} holds its unique key.",
    "thaw": "{Whose} process goes on.",
    "heal": "The trouble is over: {says}.",
    "recovered": "The queues were opened after the {after}, and read: {loss}.",
    "lost": "{It} is lost: its push had been acknowledged, and was not safe yet.",
    "undone": "The crash took {it} back to where it was before: {stands}.",
    "calm": "From here on nothing breaks: everything has to come to rest.",
    "violation": "A promise was broken, {check}: {says}.",
}

#: The same for what the disk does between two events.
DISK_CAPTIONS: dict[str, str] = {
    "write": "SQLite wrote {size} to {file}: so far that is in the page cache only.",
    "sync": "fsync of {file}: {size} went from the page cache to the platter.",
    "create": "SQLite made {file}; its name is safe after the next fsync.",
    "delete": "SQLite deleted {file}.",
    "truncate": "SQLite cut {file} to {size}.",
    "refused": "The disk refused what SQLite wanted to do to {file}: nothing changed there.",
}

STANDS = {
    State.WAITING: "it is waiting",
    State.ACTIVE: "it is active",
    State.COMPLETED: "it is completed",
    State.DLQ: "it went to the DLQ",
    State.CANCELLED: "it is cancelled",
}


class Captions:
    """The captions of one history; jobs are called by the names that its pictures give them."""

    def __init__(
        self, happenings: Sequence[Happening], names: Mapping[str, str], has_one_process: bool = False
    ) -> None:
        self._has_one_process = has_one_process  #: all workers share it, as in the modes with one owner
        self._happenings = happenings
        self._names = names

    def at(self, number: int, view: PlatterView | None = None) -> str:
        """The sentence of an event. `view` is the platter right after it; crashes say what it tells."""
        happening = self._happenings[number]
        template = CAPTIONS.get(happening.kind)
        if template is None:  # of a later version's history
            return f"{plain(happening.kind)}: {plain(happening.detail, 200)}"
        if happening.kind == "poison job" and happening.job:
            return f"{self._name(happening.job)} is poison: it is about to crash {plain(happening.worker)}."
        words = self._words(happening)
        if view is not None:
            words.update(_crash_words(view))
        return template.format_map(words)

    def causes(self, number: int) -> list[tuple[Happening, str]]:
        """What brought it about, the nearest first: faults and their consequences, along the `cause` links."""
        found: list[tuple[Happening, str]] = []
        cause = self._happenings[number].cause if self._happenings[number].kind in EXPLAINED else None
        while cause is not None and len(found) < MOST_CAUSES:
            happening = self._happenings[cause]
            if happening.kind in TELLING or happening.detail.get("fault"):
                found.append((happening, self.at(cause)))
            cause = happening.cause if happening.cause is None or happening.cause < cause else None
        return found

    def _name(self, job: str) -> str:
        return self._names.get(job) or plain(job, 20)

    def _words(self, happening: Happening) -> "_Words":
        detail = happening.detail
        lasting = abs(float(detail.get("seconds", 0)))
        it = self._name(happening.job)
        worker = plain(happening.worker) or "somebody"
        whose = "all workers'" if self._has_one_process else f"{worker}'s"
        words = _Words({key: plain(value, 120) for key, value in detail.items()})
        words.update({
            "it": it, "It": it[:1].upper() + it[1:], "worker": worker,
            "whose": whose, "Whose": whose[:1].upper() + whose[1:] if self._has_one_process else whose,
            "Target": f"The plan's {plain(happening.worker)}", "stands": _stands(detail),
            "lease": _moment(detail.get("lease_until")), "lasting": seconds(lasting),
            "later": f"{seconds(lasting)} later" if lasting else "at once",
            "direction": "back" if float(detail.get("seconds", 0)) < 0 else "ahead",
            "pace": "slow" if float(detail.get("seconds", 0)) < 0 else "fast",
            "until": f"for {seconds(lasting)}" if lasting else "until the middle of the job's next run",
            "refused": f"for {seconds(lasting)} every operation gets" if lasting else "the next operation gets",
            "inside": _inside(detail), "loss": _loss(detail), "after": AFTER.get(str(detail.get("after")), "power cut"),
            "platter": "what was not on the platter is gone", "memory": "whatever it had in memory is gone",
        })  # fmt: skip
        return words


LEFT = {
    "kept": "survived",
    "lost": "lost",
    "torn": "torn",
}  #: what became of sectors that no fsync had made safe
AFTER = {"kill": "kill", "exit": "clean exit"}


class _Words(dict[str, str]):
    """What a template asks for and the event has not is a dash, not an error: a history may come from a file."""

    def __missing__(self, key: str) -> str:
        return "–"


def of_step(step: DiskStep) -> str:
    """The sentence of a step of the disk."""
    template = DISK_CAPTIONS.get(step.kind, "The disk did {kind} on {file}.")
    return template.format_map(_Words(size=size(step.size), file=plain(step.file), kind=plain(step.kind)))


def _stands(detail: Mapping[str, Any]) -> str:
    state = detail.get("state")
    if state == State.DELAYED:
        return f"it is delayed until {_moment(detail.get('due'))}"
    return STANDS.get(str(state), "nobody knows its state")  # type: ignore[call-overload, no-any-return]


def _moment(value: Any) -> str:
    return "–" if value is None else moment(float(value))


def _inside(detail: Mapping[str, Any]) -> str:
    """When exactly a crash came."""
    if detail.get("window"):
        return f" in a {plain(detail['window'])}"
    return " in the middle of a write" if detail.get("operation") else ""


def _loss(detail: Mapping[str, Any]) -> str:
    writes, jobs = int(detail.get("writes_lost", 0)), int(detail.get("jobs_lost", 0))
    if not writes:
        return "nothing that was acknowledged is lost"
    are = "is" if writes == 1 else "are"
    return f"{times(writes, 'acknowledged write')} {are} lost" + (f", with them {times(jobs, 'job')}" if jobs else "")


def _crash_words(view: PlatterView) -> dict[str, str]:
    """What a crash took, from the platter that it left."""
    if not view.strips:
        return {"platter": "there is no platter", "memory": "everything was in memory, and is gone"}
    if not view.may_be_in_memory:
        memory = "nothing that was acknowledged was in memory only"
    elif not view.in_memory:
        memory = "no acknowledged change was in memory only"
    else:
        memory = (
            f"{times(view.in_memory, 'acknowledged change')} {'was' if view.in_memory == 1 else 'were'} in memory only"
        )
    counts = view.counts()
    parts = [f"{counts[where]:,} {did}" for where, did in LEFT.items() if where in counts]
    unsynced = sum(counts.get(where, 0) for where in LEFT)
    platter = (
        f"{times(unsynced, 'sector')} had not been synced ({', '.join(parts)})" if parts else "every sector was synced"
    )
    return {"platter": platter, "memory": memory}
