"""The lab: a queue, real workers, and a panel to kill them by. Each button is a method: code can do what a hand does.

Buttons are for people, methods for notebooks that run in CI; both end in the controller, and neither waits.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rqlab import arguments, clock, executors
from rqlab.charts.histories import times
from rqlab.clock import Bell
from rqlab.durability import MODES, Opening
from rqlab.errors import ValidationError
from rqlab.executors import Handlers
from rqlab.executors.loading import load
from rqlab.job import Job
from rqlab.queues import MAX_UNSAFE, MIN_STALL_TIMEOUT
from rqlab.widgets import panels, registry
from rqlab.widgets.controller import MOST_WORKERS, Controller, Settings, checked_mode, checked_seconds
from rqlab.widgets.report import LabReport
from rqlab.widgets.shell import Panel, Shell
from rqlab.widgets.ticker import TICKER, Ticker
from rqlab.widgets.view import LIVE, Viewer

LOOK_SECONDS = 0.03  # between two looks of who waits
TEMPORARY = "a temporary directory"  # under which labs without a directory are registered: one at a time
PUSHES = (1, 10, 100)
MOST_SEED = 2**63 - 1
BUTTONS = (  # of a process: what they say, their colour, in which states they can be pressed, what they mean
    ("kill -9", "danger", ("starting", "running", "idle", "active", "frozen"), "SIGKILL: it can do nothing any more"),
    ("freeze", "warning", ("starting", "running", "idle", "active"), "SIGSTOP: as a long pause, or a closed lid"),
    ("thaw", "plain", ("frozen",), "SIGCONT: it goes on, and does not know that it was away"),
    (
        "restart",
        "plain",
        ("running", "idle", "active", "frozen", "killed", "ended"),
        "kill it, if it lives, and start it",
    ),
)


class Lab(Panel):
    """A queue with real workers and a panel. Made by `rqlab.lab`; a context manager.

    Every method returns at once, but for those that wait by name. Processes are called as the panel calls them: in
    durable `producer`, `w1`, `w2` …, in the other modes `owner`, whose threads w1, w2 … die with it.
    """

    name = "lab"

    def __init__(self, controller: Controller, ticker: Ticker = TICKER) -> None:
        super().__init__(ticker)
        self._controller = controller
        self._viewer = Viewer(controller)
        self._failed_only = False
        self._only_job = ""
        self._rows: dict[str, tuple[Any, tuple[Any, ...]]] = {}  #: by process: its row, and its buttons
        self._controls: dict[str, Any] = {}

    def __repr__(self) -> str:
        if self.is_closed:
            return f"<rqlab.Lab {self.mode}, closed>"
        said = ", ".join(f"{each.name} {each.state}" for each in self._controller.statuses())
        return f"<rqlab.Lab {self.mode} in {self.path}: {said}>"

    # What a hand does.

    def push(self, count: int = 1) -> None:
        """Have the producer push so many jobs, one by one. RQLabError if it is dead."""
        self._controller.push(count)

    def push_and_kill(self, count: int = 300) -> None:
        """Push so many jobs, and kill -9 the producer (the owner) when half of them have been acknowledged."""
        self._controller.push_and_kill(count)

    def pause(self) -> None:
        """Stop pulls; pushes go on."""
        self._controller.pause()

    def resume(self) -> None:
        """End a pause."""
        self._controller.resume()

    def kill(self, name: str) -> None:
        """kill -9 (SIGKILL) this process."""
        self._controller.kill(name)

    def kill_all(self) -> None:
        """kill -9 all processes."""
        self._controller.kill_all()

    def freeze(self, name: str) -> None:
        """Stop this process where it is (SIGSTOP)."""
        self._controller.freeze(name)

    def thaw(self, name: str) -> None:
        """Let a frozen process go on (SIGCONT)."""
        self._controller.thaw(name)

    def restart(self, name: str) -> None:
        """Start this process again, with a new pid; one that lives is killed first (kill -9)."""
        self._controller.restart(name)

    def change_mode(self, durability: str) -> None:
        """Stop all processes cleanly, open the directory in this mode, start them again."""
        self._controller.change_mode(durability)

    def set_workload(self, *, failure_rate: float | None = None, seconds: float | None = None) -> None:
        """What jobs pushed from now on do: how often a run fails (0...1), how many seconds it takes on average."""
        self._controller.set_workload(failure_rate=failure_rate, seconds=seconds)

    def show(self, *, failed_only: bool = False, job: str | int = "") -> None:
        """What the timeline and the events show: jobs that had trouble, or one job (`3`, `"job 3"`); else all."""
        self._failed_only, self._only_job = arguments.truth(failed_only, "failed_only"), str(job)
        self._ticker.ring()

    # What an eye sees.

    @property
    def mode(self) -> str:
        """A row of `rqlab.MODES`."""
        return self._controller.mode

    @property
    def path(self) -> Path:
        """The directory; it is not used while the mode is memory."""
        return self._controller.path

    @property
    def pids(self) -> dict[str, int]:
        """The processes by name, alive or not."""
        return {each.name: each.pid for each in self._controller.statuses() if each.kind != "thread"}

    def view(self) -> dict[str, Any]:
        """All that the panel shows, as a plain dict: mode, safe, counts, workers, jobs, attempts, events, lost, …"""
        return self._viewer.view()

    def jobs(self) -> list[Job]:
        """The jobs, as the directory has them now (in memory: as its process last told them)."""
        return self._viewer.records()

    def wait_until(self, happened: Callable[[dict[str, Any]], bool], timeout: float = 60.0) -> dict[str, Any]:
        """Wait until this is true of the view; that view. TimeoutError, which says what is, after `timeout` seconds."""
        until = clock.monotonic() + arguments.seconds(timeout, "timeout")
        while True:
            view = self.view()
            if happened(view):
                return view
            if self.is_closed:
                raise TimeoutError("the lab was closed while somebody waited for it")
            if clock.monotonic() >= until:
                raise TimeoutError(f"waited {timeout:g} s; found {_said(view)}")
            Bell().wait(LOOK_SECONDS)

    def wait_for_run(self, seconds: float = 0.5, timeout: float = 60.0) -> str:
        """Wait until some run has gone on for so many seconds; the name of its worker. TimeoutError, as above."""
        age = arguments.seconds(seconds, "seconds")
        view = self.wait_until(lambda view: bool(_runs_older_than(age, view)), timeout)
        return str(_runs_older_than(age, view)[0]["worker"])

    def settle(self, timeout: float = 60.0) -> dict[str, Any]:
        """Wait until every job is finished, and that is on the disk; the view. TimeoutError after `timeout` seconds."""
        return self.wait_until(_is_settled, timeout)

    def report(self) -> LabReport:
        """What there is to see now, as an object that stays when the lab and the kernel are gone."""
        return LabReport(self.view())

    # The panel.

    def _lay_out(self, shell: Shell) -> None:
        workers = [f"w{number}" for number in range(1, self._controller.settings.workers + 1)]
        rows = [self._row(shell, name) for name in ("producer", "owner", *workers)]
        pieces = {name: shell.html(name) for name in panels.PANELS}
        shell.place(
            pieces["header"], pieces["states"], pieces["mission"],
            shell.row(*self._pushes(shell)), shell.row(*self._knobs(shell)), pieces["hint"],
            pieces["columns"], *rows, shell.row(*self._filters(shell)), pieces["timeline"], pieces["events"],
            pieces["checks"],
        )  # fmt: skip

    def _row(self, shell: Shell, name: str) -> Any:
        actions = (self.kill, self.freeze, self.thaw, self.restart)
        buttons = tuple(
            shell.button(
                f"{words} {name}", partial(action, name), name=f"{words.split()[0]}-{name}", tip=tip, colour=colour
            )
            for (words, colour, _, tip), action in zip(BUTTONS, actions, strict=True)
        )
        row = shell.row(shell.html(f"worker-{name}"), *buttons)
        self._rows[name] = row, buttons
        return row

    def _pushes(self, shell: Shell) -> list[Any]:
        made = [
            shell.button(
                f"push {count}", partial(self.push, count), name=f"push-{count}", tip=f"push {count}, one by one"
            )
            for count in PUSHES
        ]
        half = shell.button(
            "push 300, kill -9 halfway", self.push_and_kill, name="push-and-kill", colour="danger",
            tip="push 300 jobs, and kill -9 who pushes when half of them have been acknowledged",
        )  # fmt: skip
        every = shell.button(
            "kill -9 all", self.kill_all, name="kill-all", colour="danger", tip="kill -9 every process"
        )
        pause = shell.button("pause queue", self.pause, name="pause", tip="stop pulls; pushes go on")
        resume = shell.button("resume queue", self.resume, name="resume", tip="end the pause")
        self._controls |= {"pause": pause, "resume": resume}
        return [*made, half, every, pause, resume]

    def _knobs(self, shell: Shell) -> list[Any]:
        lab = self._controller
        wide = {"style": {"description_width": "initial"}, "layout": {"width": "23em"}}
        made = {
            "failure_rate": shell.control(
                "FloatSlider", lambda rate: self.set_workload(failure_rate=rate), name="failure-rate", min=0.0, max=1.0,
                step=0.05, value=lab.failure_rate, description="failure rate", continuous_update=False, **wide,
            ),
            "seconds": shell.control(
                "FloatSlider", lambda seconds: self.set_workload(seconds=seconds), name="seconds", min=0.0,
                max=max(5.0, lab.seconds), step=0.1, value=lab.seconds, description="seconds a run",
                continuous_update=False, **wide,
            ),
            "mode": shell.control(
                "Dropdown", self.change_mode, name="mode", options=list(MODES), value=lab.mode,
                description="durability (stops, reopens, restarts)", style={"description_width": "initial"},
                layout={"width": "26em"},
            ),
        }  # fmt: skip
        self._controls |= made
        for name in ("failure_rate", "seconds"):
            made[name].disabled = not lab.settings.is_demo  # a handler of the user's does what it does
        return list(made.values())

    def _filters(self, shell: Shell) -> list[Any]:
        failed = shell.control(
            "ToggleButton", self._choose_failed, name="failed-only", value=False, description="failed only",
            tooltip="only jobs that had trouble", layout={"width": "auto"},
        )  # fmt: skip
        job = shell.control(
            "Text", self._choose_job, name="this-job", placeholder="a number: 3", description="this job",
            layout={"width": "16em"}, style={"description_width": "initial"},
        )  # fmt: skip
        self._controls |= {"failed_only": failed, "only_job": job}
        return [failed, job]

    def _choose_failed(self, on: bool) -> None:
        self._failed_only = on

    def _choose_job(self, job: str) -> None:
        self._only_job = job

    def _as_html(self) -> str:
        """What a page without a kernel shows where the panel was."""
        workers = times(self._controller.settings.workers, "worker")
        return (
            f"<p>A live panel stood here: <code>rqlab.lab</code> in {self.mode}, with {workers} and buttons "
            "to kill them by. It needs a kernel; <code>lab.report()</code> is what can be kept.</p>"
        )

    def _draw(self, shell: Shell) -> None:
        lab = self._controller
        view = self._viewer.view()
        pieces = panels.render(view, failed=self._failed_only, job=self._only_job)
        for name, piece in pieces.items():
            shell.set(name, piece)
        for name, (row, buttons) in self._rows.items():
            self._draw_row(shell, view, name, row, buttons)
        shell.change(self._controls["pause"], disabled=view["paused"])
        shell.change(self._controls["resume"], disabled=not view["paused"])
        shell.change(self._controls["mode"], value=lab.is_changing or lab.mode)
        shell.change(self._controls["failure_rate"], value=lab.failure_rate)
        shell.change(self._controls["seconds"], value=lab.seconds)
        shell.change(self._controls["failed_only"], value=self._failed_only)
        shell.change(self._controls["only_job"], value=self._only_job)

    def _draw_row(self, shell: Shell, view: dict[str, Any], name: str, row: Any, buttons: tuple[Any, ...]) -> None:
        """A row is there while its process is, and has buttons if it is one."""
        found = next((each for each in view["workers"] if each["name"] == name), None)
        shell.change(row.layout, display="none" if found is None else None)
        if found is None:
            return
        for button, (_, _, states, _) in zip(buttons, BUTTONS, strict=True):
            is_thread = found["kind"] == "thread"
            shell.change(button.layout, display="none" if is_thread else None)
            shell.change(button, disabled=is_thread or found["state"] not in states)

    def _end(self) -> None:
        self._viewer.close()
        self._controller.close()


def lab(
    directory: str | os.PathLike[str] | None = None,
    *,
    durability: str = "durable",
    workers: int = 2,
    handler: Handlers | str | None = None,
    name: str = "work",
    data: Any = None,
    seed: int = 1,
    failure_rate: float = 0.1,
    seconds: float = 1.0,
    stall_timeout: float = 2.0,
    tick_interval: float = 0.5,
    flush_interval: float = 0.010,
    max_batch: int = 100,
    snapshot_interval: float = 1.0,
    max_dirty: int = 5_000,
) -> Lab:
    """Start a queue, real worker processes and a panel to kill them by; shown where a notebook shows its last line.

    Without a `directory` there is a temporary one, which goes with the lab. A lab on a directory takes the place of the
    one that is open there, as a cell that is run again wants it; of those without a directory there is one at a time.

    - `durability`: a row of `rqlab.MODES`. In durable each worker is a process (`workers`, 1...16). In the other modes
      one process owns the jobs, and workers are its threads;
    - `handler`: a function, a mapping of them by job name, or "module:handler"; None waits `seconds` (on average) and
      fails with the probability `failure_rate`, drawn from `seed`: the same seed, the same jobs. `name` and `data` are
      those of the jobs that are pushed for a handler of yours;
    - `stall_timeout` and `tick_interval` (seconds) are short, 2 and 0.5 instead of 30 and 1: a lab is to be watched;
    - `flush_interval`, `max_batch`, `snapshot_interval`, `max_dirty`: of the modes that have them, as in `rqlab.open`.

    Raises ValidationError for a wrong argument; nothing is started then. The panel needs ipywidgets
    (`pip install 'rqlab[lab]'`); the lab itself, driven by its methods, does not.
    """
    if directory is not None and not isinstance(directory, str | os.PathLike):
        raise ValidationError(f"directory: expected the path of a directory, or None; got {arguments.shown(directory)}")
    named, by_value = _checked_handler(handler)
    path = None if directory is None else Path(directory).absolute()
    settings = Settings(
        mode=checked_mode(durability),
        workers=arguments.whole(workers, "workers", 1, MOST_WORKERS),
        handler=named,
        handlers=by_value,
        name=arguments.job_name(name),
        data=data if arguments.data(data) is not None else None,
        seed=arguments.whole(seed, "seed", 0, MOST_SEED),
        failure_rate=arguments.fraction(failure_rate, "failure_rate"),
        seconds=checked_seconds(seconds),
        stall_timeout=arguments.seconds(stall_timeout, "stall_timeout", at_least=MIN_STALL_TIMEOUT),
        tick_interval=arguments.seconds(tick_interval, "tick_interval", above=0),
        opening=Opening(
            path or "",
            flush_interval=arguments.seconds(flush_interval, "flush_interval", above=0),
            max_batch=arguments.whole(max_batch, "max_batch", 1, MAX_UNSAFE),
            snapshot_interval=arguments.seconds(snapshot_interval, "snapshot_interval", above=0),
            max_dirty=arguments.whole(max_dirty, "max_dirty", 1, MAX_UNSAFE),
        ),
    )
    return registry.replace(str(path or TEMPORARY), lambda: Lab(Controller(path, settings)))


def _checked_handler(handler: Handlers | str | None) -> tuple[str | None, dict[str, str] | None]:
    """The handler as it travels: by its name, or by value. It is tried here, where somebody reads the error."""
    if handler is None:
        return None, None
    if isinstance(handler, str):
        executors.checked(load(handler))
        return handler, None
    from rqlab.executors.processes import packed  # cloudpickle, for those who need it

    return None, packed(executors.checked(handler))


def _runs_older_than(seconds: float, view: dict[str, Any]) -> list[dict[str, Any]]:
    return [run for run in view["attempts"] if run["ended"] is None and view["now"] - run["started"] >= seconds]


def _is_settled(view: dict[str, Any]) -> bool:
    unfinished = sum(view["counts"][state] for state in LIVE)
    return not (unfinished or view["unanswered"] or view["at_risk"] or view["changing"])


def _said(view: dict[str, Any]) -> str:
    """A view in a line, for who waited in vain."""
    counted = ", ".join(f"{state} {number}" for state, number in view["counts"].items() if number) or "no jobs"
    workers = ", ".join(f"{row['name']} {row['state']}" for row in view["workers"])
    paused = "; the queue is paused" if view["paused"] else ""
    problem = f"; {view['problem']}" if view["problem"] else ""
    return f"{counted}; {workers}; {view['unanswered']} pushes unanswered{paused}{problem}"
