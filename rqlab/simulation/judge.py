"""Holds what happened against what was promised: the ledger of what was committed, and every check at its moment.

The first broken promise ends the world, as what follows from it proves nothing. It knows stores by reading them.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from rqlab.durability import MODES, RETRY_MS
from rqlab.engine import Ending
from rqlab.errors import RQLabError, StoreError
from rqlab.job import Job, State
from rqlab.lifecycle import Event
from rqlab.simulation.checks import (
    Answer,
    Begun,
    Check,
    End,
    Moment,
    Recovery,
    Seen,
    Touched,
    Violation,
    loses_the_last,
)
from rqlab.simulation.history import History
from rqlab.simulation.ledger import Commit, Effects, Found, Ledger, read, whole, with_data_of
from rqlab.simulation.machine import Machine
from rqlab.simulation.platter import CRASH_KINDS
from rqlab.simulation.settings import Settings
from rqlab.simulation.world import EPOCH, World
from rqlab.storage import Store

ALL_WRITES = 2**62  # of a store that goes with its process
INSTANT = 0.001  # seconds: who is due at the very instant of a crash may not have had its turn
COMMITS_KEPT = 50_000  # what can be taken back after a crash
COUNT_EVERY = 500  # commits between two readings of the whole store; as many as there are jobs, if these are more


class Judge:
    """Looks on, and complains."""

    def __init__(self, world: World, history: History, machine: Machine, settings: Settings) -> None:
        self.world = world
        self.history = history
        self.machine = machine
        self.settings = settings
        self.ledger = Ledger(COMMITS_KEPT)
        self.violations: list[Violation] = []
        self.losses: list[tuple[str, int, int, list[str]]] = []  #: of each crash: how, writes and jobs lost, windows
        self.asked: Counter[Moment] = Counter()  #: how often the checks of each moment were; `change` counts nothing
        self.ran: dict[tuple[str, int], bytes] = {}  #: by job and delivery: the data that the handler got
        self.crash = ""  #: how the machine, or a process, last went down, until what is left has been judged
        self.commit_ms = 0  #: what a commit takes at present
        self.slowest_clock = 1.0  #: seconds a second, of the slowest that a process ever went by
        self._excused_until = 0  #: before it nobody could have made anything safe in time
        self._went_down_at = 0
        self._at_risk = 0  #: acknowledged writes that were not safe then
        self._last_transactions = 0  #: synced ones that a disk without power-safe overwrite may have taken with it
        self._by_moment: dict[Moment, list[Check]] = {
            moment: [check for check in settings.checks if check.moment is moment] for moment in Moment
        }
        self._on_change = {
            event: [(each.id, each.broken) for each in self._by_moment[Moment.CHANGE] if event in each.events]
            for event in Event
        }
        self._on_stored = [(each.id, each.broken) for each in self._by_moment[Moment.STORED]]
        self._commits_until_count = COUNT_EVERY

    # What happens.

    def begins(self, job: Job) -> None:
        """A handler begins."""
        self._ask(Moment.RUN, Begun(job, self.settings.durability == "durable"))
        self.ran[job.id, job.deliveries] = bytes(job.encoded_data)

    def begin(self, effects: Effects) -> Commit:
        """A commit: `change` for each of its changes, then `end`."""
        self.ledger.unknown.clear()
        return self.ledger.begin(self.world.now, effects.changes)

    def change(
        self, commit: Commit, event: Event, new: Job, at: int, clock: int, token: int | None, ending: Ending | None
    ) -> Job | None:
        """One change of a job; the record before it."""
        ledger = self.ledger
        old = ledger.jobs.get(new.id)
        if new.data_apart:
            new = with_data_of(new, old)
        asked = self._on_change[event]
        if asked:
            seen = Seen(event, old, new, at, clock, token, ending, self.ran)
            for check_id, broken in asked:
                says = broken(ledger, seen)
                if says is not None:
                    self.violate(check_id, says)
        ledger.apply(commit, event, new)
        return old

    def end(self, commit: Commit, effects: Effects, store: Store) -> None:
        for key, value in effects.entries:
            self.ledger.put_entry(commit, key, value)
        if self._on_stored:
            self._look_at(effects, store)
        self._commits_until_count -= 1
        if self._commits_until_count <= 0:
            self._commits_until_count = max(COUNT_EVERY, len(self.ledger.jobs))
            self.count(store)

    def _look_at(self, effects: Effects, store: Store) -> None:
        """What has just been committed; a whole recount after each commit would cost a thousand times as much."""
        self.asked[Moment.STORED] += 1
        for _, job, _ in effects.changes:
            was_refusing = self.machine.is_refusing
            try:
                there = store.get(job.id)
                touched = Touched(job.id, None if there is None else whole(store, there))
            except StoreError as error:
                if was_refusing or self.machine.is_down:
                    return  # a fault that strikes now: there is a count
                touched = Touched(job.id, None, str(error))
            for check_id, broken in self._on_stored:
                says = broken(self.ledger, touched)
                if says is not None:
                    self.violate(check_id, says)

    def failed(self, effects: Effects, error: StoreError, store: Store) -> bool:
        """A write raised, and the machine still runs: whether it is stored all the same. It may not be by halves."""
        before = self.ledger.jobs
        newest = {job.id: (event, with_data_of(job, before.get(job.id))) for event, job, _ in effects.changes}
        try:
            found = {job_id: store.get(job_id) for job_id in newest}
            stored = {job_id: None if job is None else whole(store, job) for job_id, job in found.items()}
        except StoreError:
            self.ledger.unknown.append(effects)  # the disk cannot be read either: a later look will tell
            return False
        is_new = {job_id for job_id, (event, job) in newest.items() if stored[job_id] == left(event, job)}
        is_old = {job_id for job_id in newest if stored[job_id] == before.get(job_id)}
        torn = sorted(newest.keys() - is_new - is_old)
        if not torn and is_new - is_old and is_old - is_new:
            torn = sorted(is_new)
        if effects.changes:
            self.answer(Answer("a write", effects.changes[0][1], error, None, torn, ""))
        if is_new - is_old:
            return True
        self.ledger.unknown.append(effects)
        return False

    def answered(self, attempted: str, job: Job, outcome: RQLabError) -> None:
        self.answer(Answer(attempted, job, outcome, self.ledger.jobs.get(job.id), (), ""))

    def met_a_bug(self, said: str) -> None:
        nobody = Job(id="", queue="", name="")
        self.answer(Answer("a step", nobody, StoreError(said), None, (), said))

    def excuse(self, until: int) -> None:
        """A process stood still, its clock was moved, or its disk refused: what is lost is no older than from then."""
        self._excused_until = max(self._excused_until, until)

    def went_down(self, how: str, stores: Sequence[Store] = ()) -> None:
        """A crash, or a clean exit, and the stores that it took."""
        if not self.crash:
            self._went_down_at = self.world.now
        if how != "exit" or not self.crash:
            self.crash = how
        for store in stores:
            self._at_risk += int(getattr(store, "unsafe_writes", 0)) if self.machine.survives_kill else ALL_WRITES
        self._last_transactions += loses_the_last(how)

    # Judgement.

    def violate(self, check_id: str, says: str) -> None:
        self.violations.append(Violation(check_id, self.world.now / 1000, says))
        self.history.note(self.world.now, "violation", "", "", -1, {"check": check_id, "says": says})
        self.world.is_over = True

    def _ask(self, moment: Moment, seen: object) -> None:
        self.asked[moment] += 1
        for check in self._by_moment[moment]:
            says = check.broken(self.ledger, seen)
            if says is not None:
                self.violate(check.id, says)

    def answer(self, answer: Answer) -> None:
        self._ask(Moment.ANSWER, answer)

    def count(self, store: Store) -> None:
        if not self._by_moment[Moment.COUNT]:
            return
        was_refusing = self.machine.is_refusing
        try:
            found = read(store)
        except StoreError as error:
            if was_refusing or self.machine.is_down:
                return  # a fault that strikes now: there is another count
            found = Found({}, {}, {}, {}, str(error))
        self._ask(Moment.COUNT, found)

    def not_opened(self, error: RQLabError) -> None:
        """A process could not open the queues, and nothing strikes now."""
        self._ask(Moment.RECOVERY, Recovery(None, [str(error)], self.crash, None, 0, (), 0.0, 0.0))

    def recovered(self, store: Store, cause: int, is_disturbed: bool, by_witness: bool = False) -> None:
        """The queues were opened after a crash. `is_disturbed`: a fault strikes now, so a failure proves nothing.

        `by_witness`: they were read by a process that lived on. What the killed one was writing may then stand in the
        log where nobody looks: the next commit is written over it, or the next reading of the whole log finds it.
        """
        how, self.crash = self.crash, ""
        ledger = self.ledger
        try:
            complaints = self.machine.complaints(store)
            found = read(store)
        except StoreError as error:
            if is_disturbed:
                self.crash = how  # a fault that strikes now: the next opening is judged
                return
            self.crash = how
            self.not_opened(error)
            return
        before = dict(ledger.jobs)
        in_flight = {job.id for effects in ledger.unknown for _, job, _ in effects.changes}
        taken_back = self._taken_back(found)
        if not by_witness:
            ledger.unknown.clear()
        lost_jobs = 0
        if taken_back:
            ledger.lost_writes += len(taken_back)
            lost_jobs = self._lose(taken_back, before, cause)
        held = [job for job in before.values() if job.state is State.ACTIVE and job.id not in in_flight]
        mode, opening = MODES[self.settings.durability], self.settings.opening
        allowed = min(self._at_risk, mode.most_lost(opening))
        allowed += self._last_transactions * max(mode.most_lost(opening), 1)
        age, age_allowed = self._age(taken_back or ()), self._age_allowed(mode.window_seconds(opening))
        self._at_risk = self._last_transactions = 0
        if taken_back and len(taken_back) <= allowed:
            ledger.forget_completions(ledger.completed)
        self._ask(Moment.RECOVERY, Recovery(found, complaints, how, taken_back, allowed, held, age, age_allowed))
        windows = sorted(self.machine.windows) if how in CRASH_KINDS else []
        self.losses.append((how, len(taken_back or ()), lost_jobs, windows))
        detail = {"after": how, "writes_lost": len(taken_back or ()), "jobs_lost": lost_jobs}
        self.history.note(self.world.now, "recovered", "", "machine", cause, detail)
        if not self.violations:
            self._ask(Moment.COUNT, found)

    def _age(self, taken_back: Sequence[Commit]) -> float:
        """How long the oldest lost write was acknowledged, in seconds in which it could have been made safe."""
        oldest = min((commit.at for commit in taken_back), default=self._went_down_at)
        return max(self._went_down_at - max(oldest, self._excused_until), 0) / 1000

    def _age_allowed(self, window_seconds: float) -> float:
        """The window of the mode's row, and one commit; one more where the next had to wait for a slow one.

        After a failure a keeper may take a breath before it tries again.
        """
        if self._last_transactions:
            return math.inf  # such a disk takes also what was synced, however old
        commit = self.commit_ms / 1000
        window = max(window_seconds, RETRY_MS / 1000) if self._excused_until else window_seconds
        return max(window / self.slowest_clock, commit) + commit + INSTANT

    def _taken_back(self, found: Found) -> list[Commit] | None:
        """The commits that what was found has not got; None if it is the state after no prefix of them."""
        ledger = self.ledger
        if not ledger.differs_from(found):
            return []
        unknown = list(ledger.unknown)  # a commit clears them
        for effects in reversed(unknown):  # the newest is the likeliest
            commit = ledger.begin(self.world.now, effects.changes)
            for event, job, _ in effects.changes:
                ledger.apply(commit, event, job)
            for key, value in effects.entries:
                ledger.put_entry(commit, key, value)
            if not ledger.differs_from(found):
                for event, job, _ in effects.changes:
                    self.history.note(self.world.now, event, job.id, job.worker or "", -1, job)
                return []
            self._undo(commit)
        ledger.unknown += unknown
        taken: list[Commit] = []
        while True:
            commit_taken = ledger.take_back()
            if commit_taken is None:
                ledger.count_again()
                return taken if not ledger.differs_from(found) else None
            if commit_taken.undo:  # who resumed what was not paused can lose nothing
                taken.append(commit_taken)
            if len(found.jobs) == len(ledger.jobs) and not ledger.differs_from(found):
                ledger.count_again()
                return taken

    def _undo(self, commit: Commit) -> None:
        taken = self.ledger.take_back()
        assert taken is commit, "the newest commit is taken back"
        self.ledger.pushed -= sum(event is Event.PUSH for event, _, _ in commit.changes)
        self.ledger.removed -= sum(left(event, job) is None for event, job, _ in commit.changes)
        self.ledger.forget_completions(job.id for _, job, _ in commit.changes)
        self.ledger.count_again()

    def _lose(self, taken_back: Sequence[Commit], before: Mapping[str, Job], cause: int) -> int:
        ledger, lost = self.ledger, 0
        for commit in taken_back:
            for event, job, _ in commit.changes:
                if event is Event.PUSH:
                    ledger.lost[job.id] = before.get(job.id, job)
                    self.history.note(self.world.now, "lost", job.id, "", cause)
                    lost += 1
                elif left(event, job) is None:
                    ledger.removed -= 1
        self._note_undone(taken_back, cause)
        ledger.count_again()
        return lost

    def _note_undone(self, taken_back: Sequence[Commit], cause: int) -> None:
        """Jobs that are there, and not as they were acknowledged to be: a history without them would go on as if."""
        changed = dict.fromkeys(job.id for commit in taken_back for _, job, _ in commit.changes)
        for job_id in changed:
            job = self.ledger.jobs.get(job_id)
            if job is not None:
                self.history.note(self.world.now, "undone", job_id, job.worker or "", cause, job)

    def rest(self, allowed_until: int, pushes_failed: int, is_exhausted: bool) -> None:
        """Some time after the last fault."""
        now, deliveries, most = self.world.now, self.deliveries, self.deliveries_allowed
        self._ask(Moment.END, End(now, allowed_until, pushes_failed, deliveries, most, EPOCH + now, is_exhausted))

    @property
    def deliveries(self) -> int:
        """Of the jobs that are there."""
        return sum(job.deliveries for job in self.ledger.jobs.values())

    @property
    def deliveries_allowed(self) -> int:
        """Enough for any plan: who needs more goes round for ever."""
        return 20 + 6 * sum(job.max_attempts for job in self.ledger.jobs.values())


def left(event: Event, job: Job) -> Job | None:
    """The record that an event leaves; None if it leaves none."""
    is_gone = event is Event.PURGE or (event is Event.ACK and job.remove_on_complete)
    return None if is_gone else job
