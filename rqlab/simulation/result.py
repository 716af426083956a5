"""What a simulation came to: a verdict, the promise beside what was lost, and tidy tables of all that happened.

Everything here is made of the history and its header, so a history in a file gives the same result. pandas is
imported when a table is asked for. Instants are seconds since the world began.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from rqlab import charts, html
from rqlab.charts.platters import PlatterView
from rqlab.durability import MODES
from rqlab.errors import RQLabError, ValidationError
from rqlab.executors import Handler
from rqlab.files import write_whole
from rqlab.job import Outcome, State
from rqlab.lifecycle import Event
from rqlab.simulation import verdict
from rqlab.simulation.checks import Violation, loses_the_last
from rqlab.simulation.faults import FAULTS, Fault
from rqlab.simulation.history import FORMAT, KINDS, Happening
from rqlab.simulation.platter import CRASH_KINDS
from rqlab.simulation.sectors import Trace

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

#: How each event ends a run, as a delivery's `outcome` says it.
ENDS = {
    Event.ACK: Outcome.COMPLETED,
    Event.FAIL: Outcome.FAILED,
    Event.STALL: Outcome.STALLED,
    Event.TIME_OUT: Outcome.TIMED_OUT,
    Event.RELEASE: Outcome.RELEASED,
    Event.SNOOZE: Outcome.RELEASED,
    Event.CANCEL: Outcome.CANCELLED,
}
LOST, RUNNING = verdict.LOST, "running"
OUTCOMES = [*map(str, Outcome), LOST, RUNNING]  #: lost: a crash took the run's record back; running: at the end
STATES = [*map(str, State), "removed", LOST]
EVENT_KINDS = [*map(str, Event), *FAULTS, *KINDS]
STRIKES = ["worker", "all", "job", "producer"]  #: whom a fault strikes: its target alone, or all workers
OF_A_PROCESS = ("process kill", "freeze", "wall jump", "drift")  # all workers live in one, in a mode with one owner
OVER = ("thaw", "heal", "start")  # events that end the fault that is their cause


class Loss(msgspec.Struct, frozen=True):
    """What one crash took."""

    how: str  #: "kill", "exit" (a clean one), or a row of CRASH_KINDS
    writes: int  #: acknowledged writes that are gone
    jobs: int  #: jobs that are gone
    windows: list[str] = []  #: rows of WINDOWS that a power cut fell into


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a history in a file."""

    rqlab: int = FORMAT  #: the format of the file
    seed: int
    arguments: dict[str, Any]  #: what `simulate` was called with, but its plan
    plan: list[Fault]
    replay: str  #: the line that replays it
    hash: str
    violations: list[tuple[str, float, str]] = []
    losses: list[Loss] = []
    windows: list[str] = []  #: rows of WINDOWS that the power cuts fell into, one for each
    cut_at: list[int] = []  #: of each power cut: how many operations the disk had done, since it began or the last cut
    asked: dict[str, int] = {}  #: by row of CHECKS: how often it was asked
    operations: int = 0  #: of the disk
    syncs: int = 0  #: of these
    steps: int = 0  #: of actors
    ended_at: float = 0.0  #: seconds


class Moment(NamedTuple):
    """The state of everything at one instant."""

    at: float
    jobs: "pandas.DataFrame"  #: one row a job that was pushed by then: id, queue, state, attempt, deliveries, worker
    counts: dict[str, int]  #: jobs by state
    running: dict[str, list[str]]  #: by worker: the jobs that it holds


class Summary(str):
    """Text that shows itself as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class SimulationResult:
    """A simulation that is over."""

    def __init__(self, header: Header, happenings: Sequence[Happening]) -> None:
        self.header = header
        self.history = happenings  #: every event, in order
        self.cuts: pandas.DataFrame | None = None  #: with `cuts="every-operation"`: one row a cut

    @property
    def ok(self) -> bool:
        """Whether every promise held."""
        return not self.header.violations

    @property
    def violations(self) -> list[Violation]:
        """The promises that were broken, each with its check, the instant and what was found."""
        return [Violation(*each) for each in self.header.violations]

    @property
    def seed(self) -> int:
        return self.header.seed

    @property
    def plan(self) -> tuple[Fault, ...]:
        """The faults, in the order in which they were to strike."""
        return tuple(self.header.plan)

    @property
    def hash(self) -> str:
        """The name of the history: equal hashes are equal histories."""
        return self.header.hash

    @property
    def replay_line(self) -> str:
        """The call that gives this very result again."""
        return self.header.replay

    @property
    def plan_as_python(self) -> str:
        """The plan as an expression, to be edited and given as `faults=` (with `crashes=0`)."""
        return "[" + "".join(f"\n    rqlab.{fault!r}," for fault in self.plan) + ("\n]" if self.plan else "]")

    def replay(self) -> "SimulationResult":
        """Run it again; RQLabError if that gives another history, as a changed version of rqlab may."""
        from rqlab.simulation.run import replay  # here: what runs a world makes results

        again = replay(self)
        if again.hash != self.hash:
            raise RQLabError(
                f"{self.replay_line}: expected the history {self.hash}, got {again.hash}. The code has changed since, "
                "or a handler does not depend on its job alone"
            )
        return again

    def shrink(self, *, budget: int = 200, handler: Handler | Mapping[str, Handler] | None = None) -> "Shrunk":
        """The smallest simulation found that breaks the same promise: its few faults are the cause.

        `budget` is how many simulations it may take (a dozen faults take some 50); the best so far is returned in any
        case. One with a handler of your own needs it again. ValidationError if every promise held.
        """
        from rqlab.simulation.shrinking import shrink  # here: it runs worlds, which make results

        return shrink(self, budget=budget, handler=handler)

    # Tables.

    @cached_property
    def jobs(self) -> "pandas.DataFrame":
        """One row a job: id, queue, name, state, attempt, deliveries, pushed, finished, lost."""
        rows = [
            (job_id, it.queue, it.name, it.state, it.attempt, it.deliveries, it.pushed, it.finished, it.state == LOST)
            for job_id, it in self._lives(None).items()
        ]
        columns = ["id", "queue", "name", "state", "attempt", "deliveries", "pushed", "finished", "lost"]
        return self._frame(rows, columns, {"state": STATES, "queue": None, "name": None}, ("pushed", "finished"))

    @cached_property
    def attempts(self) -> "pandas.DataFrame":
        """One row a run: job, delivery, worker, started, ended, outcome, waited (seconds since it could have begun).

        `lost` is the outcome of a run that a crash took out of the records, whether or not it had ended by then.
        """
        rows: list[list[Any]] = []
        runs: dict[str, list[list[Any]]] = {}
        due: dict[str, float] = {}
        for happening in self.history:
            job, kind = happening.job, happening.kind
            if kind == Event.PULL:
                waited = max(happening.at - due.get(job, happening.at), 0.0)
                row = [job, happening.detail["deliveries"], happening.worker, happening.at, None, RUNNING, waited]
                rows.append(row)
                runs.setdefault(job, []).append(row)
            elif kind in ENDS and job in runs and runs[job][-1][4] is None:
                runs[job][-1][4:6] = happening.at, str(ENDS[Event(kind)])
            elif kind in (LOST, verdict.UNDONE):
                for row in _taken_back(runs.get(job, ()), happening):
                    row[4:6] = self.crash_of(happening).at if row[4] is None else row[4], LOST
            if happening.detail.get("state") in (State.WAITING, State.DELAYED):
                due[job] = happening.detail.get("due", happening.at)
        columns = ["job", "delivery", "worker", "started", "ended", "outcome", "waited"]
        return self._frame(rows, columns, {"worker": None, "outcome": OUTCOMES}, ("started", "ended", "waited"))

    @cached_property
    def events(self) -> "pandas.DataFrame":
        """One row an event: at, kind, job, worker, cause (the row of the event that brought it about), detail, state.

        `state` is the job's from then on; missing where an event changes none.
        """
        rows = [
            (each.at, each.kind, each.job, each.worker, each.cause, _said(each.detail), _state_after(each))
            for each in self.history
        ]
        columns = ["at", "kind", "job", "worker", "cause", "detail", "state"]
        frame = self._frame(rows, columns, {"kind": EVENT_KINDS, "worker": None, "state": STATES}, ("at",))
        frame["cause"] = frame["cause"].astype("Int64")
        return frame

    @cached_property
    def faults(self) -> "pandas.DataFrame":
        """One row a fault that struck: at, kind, target, strikes, until, and the number of its event.

        `strikes` says whether it struck the target alone or all workers, `until` when it was over: who was down had
        started again, who was frozen went on, the disk was whole. Faults of the plan may miss, and are not here.
        """
        over = {each.cause: each.at for each in self.history if each.kind in OVER and each.cause is not None}
        rows = [
            (each.at, each.kind, each.worker, self._strikes(each), over.get(each.n, _back_at(each)), each.n)
            for each in self.history
            if each.detail.get("fault")
        ]
        categories: dict[str, list[str] | None] = {"kind": list(FAULTS), "strikes": STRIKES}
        return self._frame(rows, ["at", "kind", "target", "strikes", "until", "event"], categories, ("at", "until"))

    @cached_property
    def effects(self) -> "pandas.DataFrame":
        """One row a job and side effect (`ctx.effect`): job, effect, times, deliveries (that had it), why.

        `why` says what made it happen again: the handler is not idempotent under that fault. It is empty where the
        effect happened once.
        """
        rows = [
            (each.job, each.effect, len(each.deliveries), each.deliveries, each.why)
            for each in verdict.effects(self.history, self.crash_of)
        ]
        return self._frame(rows, ["job", "effect", "times", "deliveries", "why"], {"effect": None}, ())

    @property
    def effects_in_words(self) -> list[str]:
        """Which side effects happened more than once, for which job, and after which fault: one line each."""
        told = verdict.effects(self.history, self.crash_of)
        pushes = [each for each in self.history if each.kind == Event.PUSH] if told else []
        names = {each.job: f"job {n} ({each.detail.get('name', '')})" for n, each in enumerate(pushes, 1)}
        return verdict.effects_in_words(told, names)

    @cached_property
    def losses(self) -> "pandas.DataFrame":
        """One row a job that a crash took something from: at, crash, job, acknowledged, stored.

        Its caller had heard that it is `acknowledged` (a state), and what is stored after the crash is `stored`: the
        job is lost, or again what it was before.
        """
        rows = []
        states: dict[str, str] = {}
        for each in self.history:
            if each.kind in (LOST, verdict.UNDONE):
                crash = self.crash_of(each)
                rows.append((crash.at, crash.kind, each.job, states.get(each.job), _state_after(each)))
            states[each.job] = _state_after(each) or states.get(each.job, "")
        columns = ["at", "crash", "job", "acknowledged", "stored"]
        return self._frame(rows, columns, {"crash": None, "acknowledged": STATES, "stored": STATES}, ("at",))

    @property
    def what_was_lost(self) -> str:
        """What crashes took, and which, in a sentence: the answer that the pictures illustrate."""
        return verdict.what_was_lost(self.history, self.crash_of, self.durability, self.ok)

    @property
    def durability(self) -> str:
        """The mode that was simulated."""
        return str(self.header.arguments["durability"])

    @cached_property
    def promise(self) -> "pandas.DataFrame":
        """What the mode promises beside what was lost: a row for kills, for power cuts, for clean exits.

        Power cuts on a disk without power-safe overwrite have a row of their own, if there were any: such a disk may
        take the last commit of any mode, synced or not.
        """
        mode = MODES[self.durability]
        at_cut = mode.lost_at_power_cut.replace("the same", mode.lost_at_kill)
        rows = [
            ("kill -9", mode.lost_at_kill, ("kill",)),
            ("power cut", at_cut, tuple(kind for kind in CRASH_KINDS if not loses_the_last(kind))),
            ("clean exit", mode.lost_at_exit, ("exit",)),
        ]
        if any(loses_the_last(loss.how) for loss in self.header.losses):
            broken = tuple(filter(loses_the_last, CRASH_KINDS))
            may_lose = "the last commit" if at_cut == "nothing" else f"{at_cut}; and the last commit"
            rows.insert(2, ("power cut, disk without power-safe overwrite", may_lose, broken))
        columns = ["mode", "crash", "may lose", "crashes", "writes lost", "jobs lost"]
        counted = [(mode.name, crash, may_lose, *self._lost_at(hows)) for crash, may_lose, hows in rows]
        return self._frame(counted, columns, {}, ())

    def _lost_at(self, hows: Sequence[str]) -> tuple[int, int, int]:
        """Of crashes of these kinds: how many, and the writes and jobs that they took."""
        losses = [loss for loss in self.header.losses if loss.how in hows]
        return len(losses), sum(each.writes for each in losses), sum(each.jobs for each in losses)

    @property
    def coverage(self) -> Counter[str]:
        """How often each kind of fault struck, and each window was hit by a power cut."""
        struck = Counter(each.kind for each in self.history if each.detail.get("fault"))
        return struck + Counter(f"window: {window}" for window in self.header.windows)

    def summary(self) -> Summary:
        """The verdict in a few lines."""
        lives = self._lives(None)
        states = Counter(life.state for life in lives.values())
        kinds = Counter(each.kind for each in self.history)
        struck = Counter(each.kind for each in self.history if each.detail.get("fault"))
        recovered = [each for each in self.history if each.kind == "recovered"]
        held = "every promise held" if self.ok else f"{len(self.violations)} promise(s) broken"
        lines = [
            f"seed {self.seed}: {held} in {self.header.ended_at:.1f} simulated seconds ({len(self.history)} events)",
            f"jobs: {len(lives)} pushed; " + ", ".join(f"{count} {state}" for state, count in sorted(states.items())),
            f"runs: {kinds[Event.PULL]}; {kinds[Event.FAIL]} failed, {kinds[Event.STALL]} stalled, "
            f"{kinds[Event.TIME_OUT]} timed out, {kinds['refused']} late reports refused",
            "faults: " + (", ".join(f"{count} x {kind}" for kind, count in struck.items()) or "none"),
            f"{self.durability}: lost {sum(each.writes for each in self.header.losses)} "
            f"acknowledged writes in {len(recovered)} recoveries",
            self.what_was_lost,
            *self.effects_in_words,
        ]
        lines += [f"BROKEN {violation}" for violation in self.violations]
        lines.append(f"replay: {self.replay_line}")
        return Summary("\n".join(lines))

    def __repr__(self) -> str:
        found = "ok" if self.ok else "BROKEN " + ", ".join(sorted({each.check for each in self.violations}))
        size = f"{len(self.history)} events, hash {self.hash}"
        return f"<SimulationResult {found}, seed {self.seed}, {size}: {self.replay_line}>"

    def at(self, t: float) -> Moment:
        """The state at an instant, `t` seconds after the beginning: what happened at that instant included."""
        lives = self._lives(t)
        rows = [
            (job_id, it.queue, it.name, it.state, it.attempt, it.deliveries, it.worker) for job_id, it in lives.items()
        ]
        columns = ["id", "queue", "name", "state", "attempt", "deliveries", "worker"]
        jobs = self._frame(rows, columns, {"state": STATES, "queue": None, "name": None}, ())
        counts = Counter(life.state for life in lives.values())
        running: dict[str, list[str]] = {}
        for job_id, life in lives.items():
            if life.state == State.ACTIVE:
                running.setdefault(life.worker, []).append(job_id)
        return Moment(t, jobs, {state: counts[state] for state in STATES}, running)

    @cached_property
    def trace(self) -> Trace:
        """What the disk did, operation by operation: worked out at first use, by running the plan again."""
        from rqlab.simulation.tracing import trace  # here: what runs a world makes results

        return trace(self)

    def platter(self, t: float) -> PlatterView:
        """Where the sectors of the store's files were at an instant, `t` seconds after the beginning.

        From a crash until something happens again: what it left. The first call runs the plan again; ValidationError if
        that needs a handler of the user's.
        """
        return self.trace.at(t)

    # Pictures.

    def plot_timeline(
        self, ax: "Axes | None" = None, *, by: Literal["worker", "job"] = "worker", dark: bool = False
    ) -> "Axes":
        """Who ran what, when, and what broke: one lane a worker (default), or one lane a job.

        Without `ax` on a figure of its own, whose axes show themselves in a notebook; `ax.chart` is the Chart, with
        the marks as a DataFrame (`.data`), the picture in words (`.alt`), and `.save(path)`.
        """
        return charts.timeline(self, by, ax=ax, dark=dark).ax

    def plot_retries(self, ax: "Axes | None" = None, *, dark: bool = False) -> "Axes":
        """The runs of each job, the waits between them, and how it ended. `ax` as for `plot_timeline`."""
        return charts.retries(self, ax=ax, dark=dark).ax

    def plot_backlog(self, ax: "Axes | None" = None, *, dark: bool = False) -> "Axes":
        """How many jobs were in each state over time, and what broke. `ax` as for `plot_timeline`."""
        return charts.backlog(self, ax=ax, dark=dark).ax

    def _repr_html_(self) -> str:
        return html.result(self)

    # Files.

    def to_jsonl(self, path: str | Path) -> None:
        """Write the history: a header, then one event a line. A crash leaves the file that was there, or this one."""
        encode = msgspec.json.Encoder().encode
        lines = [encode(self.header), *map(encode, self.history)]
        write_whole(path, b"\n".join(lines) + b"\n")

    @classmethod
    def from_jsonl(cls, path: str | Path) -> "SimulationResult":
        """Read what `to_jsonl` wrote; ValidationError if it is none of that."""
        lines = Path(path).read_bytes().splitlines()
        try:
            header = msgspec.json.decode(lines[0] if lines else b"", type=Header)
            if header.rqlab > FORMAT:
                raise ValidationError(
                    f"cannot read {path}: expected a history of format {FORMAT} or older, found {header.rqlab}; "
                    "upgrade rqlab"
                )
            decode = msgspec.json.Decoder(Happening).decode
            happenings = [decode(line) for line in lines[1:]]
        except msgspec.MsgspecError as error:
            raise ValidationError(f"cannot read {path}: expected a history that rqlab wrote; {error}") from error
        return cls(header, happenings)

    # Below.

    def _lives(self, until: float | None) -> dict[str, "_Life"]:
        lives: dict[str, _Life] = {}
        for happening in self.history:
            if until is not None and happening.at > until:
                break
            if happening.kind == Event.PUSH:
                detail = happening.detail
                lives[happening.job] = _Life(detail["queue"], detail.get("name", ""), happening.at)
            life = lives.get(happening.job)
            if life is not None:
                life.follow(happening)
        return lives

    def crash_of(self, happening: Happening) -> Happening:
        """The fault that brought an event about, by its causes; the event itself if it was none."""
        cause = happening
        while not cause.detail.get("fault") and cause.cause is not None:
            cause = self.history[cause.cause]
        return cause if cause.detail.get("fault") else happening

    def _strikes(self, fault: Happening) -> str:
        if fault.worker == "machine":
            return "all"
        if not fault.worker.startswith("worker"):
            return "producer" if fault.worker == "producer" else "job"
        has_one_owner = MODES[self.durability].processes != "many"
        return "all" if has_one_owner and fault.kind in OF_A_PROCESS else "worker"

    def _frame(
        self,
        rows: Iterable[Sequence[Any]],
        columns: list[str],
        categories: dict[str, list[str] | None],
        floats: Sequence[str],
    ) -> "pandas.DataFrame":
        import pandas

        frame = pandas.DataFrame(list(rows), columns=columns)
        for column, kinds in categories.items():
            if kinds is not None:  # a later version may have written kinds that we do not know
                kinds = [
                    *kinds,
                    *dict.fromkeys(each for each in frame[column] if isinstance(each, str) and each not in kinds),
                ]
            frame[column] = pandas.Categorical(frame[column], categories=kinds)
        for column in floats:
            frame[column] = frame[column].astype("float64")
        frame.attrs.update(seed=self.seed, replay=self.replay_line)
        return frame


class Shrunk(NamedTuple):
    """The smallest simulation found that breaks the same promise."""

    result: SimulationResult
    check: str  #: the row of CHECKS that is broken in both
    runs: int  #: simulations that it took
    is_minimal: bool  #: nothing that was tried makes it smaller; False: the budget ended the search
    faults_before: int  #: in the plan that it was made of

    @property
    def plan(self) -> tuple[Fault, ...]:
        """The faults that are left."""
        return self.result.plan

    @property
    def replay_line(self) -> str:
        """The call that breaks the promise again."""
        return self.result.replay_line

    def __str__(self) -> str:
        end = "" if self.is_minimal else ", when the budget was used up"
        counted = f"{self.faults_before} faults to {len(self.plan)} in {self.runs} runs{end}"
        return f"{self.check}: {counted}\n{self.result.summary()}"

    def __repr__(self) -> str:
        return f"<Shrunk {self.check}, {self.faults_before} faults to {len(self.plan)}: {self.replay_line}>"

    def _repr_html_(self) -> str:
        return self.result._repr_html_()


class _Life:
    """What became of one job."""

    __slots__ = ("attempt", "deliveries", "finished", "name", "pushed", "queue", "state", "worker")

    def __init__(self, queue: str, name: str, pushed: float) -> None:
        self.queue, self.name, self.pushed = queue, name, pushed
        self.state, self.attempt, self.deliveries, self.worker = str(State.WAITING), 0, 0, ""
        self.finished: float | None = None

    def follow(self, happening: Happening) -> None:
        detail = happening.detail
        if happening.kind == "lost":
            self.state, self.finished, self.worker = LOST, None, ""
        elif happening.kind == Event.PURGE:
            self.state = "removed"
        elif "state" in detail:
            self.state, self.attempt, self.deliveries = detail["state"], detail["attempt"], detail["deliveries"]
            self.worker = happening.worker if self.state == State.ACTIVE else ""
            self.finished = happening.at if self.state in (State.COMPLETED, State.DLQ, State.CANCELLED) else None


def _taken_back(runs: Sequence[list[Any]], happening: Happening) -> Iterator[list[Any]]:
    """The runs of a job that its store does not know any more, or not that they ended."""
    kept = happening.detail.get("deliveries", 0)
    goes_on = happening.detail.get("state") == State.ACTIVE
    for row in runs:
        has_ended = row[4] is not None
        if row[5] != LOST and (row[1] > kept or (row[1] == kept and goes_on and has_ended)):
            yield row


def _state_after(happening: Happening) -> str | None:
    if happening.kind == LOST:
        return LOST
    return "removed" if happening.kind == Event.PURGE else happening.detail.get("state")


def _back_at(fault: Happening) -> float | None:
    """When a worker whose thread died is there again: no event says so."""
    return fault.at + fault.detail["seconds"] if fault.kind == "worker crash" else None


def _said(detail: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in detail.items() if key != "fault")
