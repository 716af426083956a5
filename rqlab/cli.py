"""The command line: each command opens a directory, calls the front door once, and shows what came of it.

It decides nothing about a job. What is shown is made by tables.py, what `--json` prints by documents.py. A user's
mistake ends with one line on stderr: exit code 2 if the command was given wrongly, 1 if the thing could not be done.
"""

import contextlib
import errno
import json
import logging
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.live import Live
from typer.core import TyperGroup

import rqlab
from rqlab import clock, demo, doctor, documents, executors, experiments, measuring, power_cut, tables
from rqlab.errors import RQLabError, ValidationError
from rqlab.executors import Handlers
from rqlab.executors.loading import load
from rqlab.lifecycle import Change, Event
from rqlab.queues import Queues
from rqlab.widgets import page

log = logging.getLogger("rqlab")

FAILED, MISUSED = 1, 2  # exit codes
PYTHON_ONLY = " or a timedelta"  # what Python callers may also give as a duration; here it is always seconds
RUNS_SHOWN = 20  # in `status`
VERDICT_STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}

#: What a worker counts its runs by, when it says what it did.
RUN_ENDS = {
    Event.ACK: "completed",
    Event.FAIL: "failed",
    Event.TIME_OUT: "timed out",
    Event.SNOOZE: "snoozed",
    Event.RELEASE: "released",
}


class Commands(TyperGroup):
    """Turns what a user can do something about into a line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ValidationError as error:
            _fail(str(error).replace(PYTHON_ONLY, ""), MISUSED)
        except RQLabError as error:
            _fail(str(error), FAILED)
        except BrokenPipeError:  # `rqlab jobs DIR | head`: what was to be seen has been seen
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:  # those of a directory are RQLabErrors by now
            if error.errno == errno.ENOSPC:
                _fail("cannot print what was asked for: the disk that the output goes to is full", FAILED)
            _fail(str(error), FAILED)


app = typer.Typer(
    cls=Commands,
    name="rqlab",
    help="Durable job queues: one directory, no server. The directory comes first in every command.",
    epilog="Exit codes: 0 done, 1 it could not be done, 2 the command was given wrongly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The directory of the queues.", show_default=False)]
Queue = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue's name.", show_default=False)]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as push printed it.", show_default=False)]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document: instants in ISO 8601 (UTC), durations in seconds.")
]


def main() -> None:
    """The entry point of `rqlab` and `python -m rqlab`."""
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a stream that somebody has replaced
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    app(prog_name="rqlab")


def _open_what_is_closed() -> None:
    """Whoever starts us without standard streams (`>&-`, some daemons) wants no output; Python has None for them.

    Their numbers must not go to the next files that are opened: what is printed would be written into those.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"rqlab {rqlab.__version__}")
        raise typer.Exit


@app.callback()
def _rqlab(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


# Running jobs.


@app.command()
def worker(
    directory: Directory,
    queues: Annotated[
        str, typer.Argument(metavar="QUEUE[,QUEUE…]", help="The queues to serve, in turn.", show_default=False)
    ],
    handler: Annotated[
        str | None,
        typer.Argument(
            metavar="MODULE:HANDLER",
            help="A function handler(job) or handler(job, ctx), sync or async, or a dict from job names to such; "
            "MODULE is looked for in the current directory too.",
            show_default=False,
        ),
    ] = None,
    is_demo: Annotated[
        bool, typer.Option("--demo", help="Run the demo's handler: ten steps of half a second.")
    ] = False,
    concurrency: Annotated[int, typer.Option(help="Runs at once.")] = 1,
    isolation: Annotated[
        str, typer.Option(help="thread, or process: a child process for each run at once.")
    ] = "thread",
    grace: Annotated[
        float | None,
        typer.Option(help="Seconds that runs get to finish after SIGINT or SIGTERM.", show_default=False),
    ] = None,
    durability: Annotated[
        str,
        typer.Option(
            help="durable, buffered or hybrid: when a change is safe. The last two are quicker, and have the directory "
            "to themselves: beside them push and other workers are refused."
        ),
    ] = "durable",
    stall_timeout: Annotated[float, typer.Option(help="Seconds without a heartbeat until a run is stalled.")] = 30.0,
    tick_interval: Annotated[float, typer.Option(help="Seconds between two housekeeping passes.")] = 1.0,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log every change of a job on stderr.")] = False,
) -> None:
    """Run jobs and keep house, until Ctrl-C (or SIGTERM).

    The directory is made if it is not there. The first Ctrl-C lets the runs in flight finish, a second gives them back
    to the queue; no attempt is charged.
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    handlers, called = _chosen_handler(handler, is_demo)
    names = queues.split(",")
    options: dict[str, Any] = {"concurrency": concurrency, "isolation": isolation, "grace": grace}
    _rehearse(lambda rq: rq.worker(names, handlers, **options))
    ended: Counter[Event] = Counter()
    with rqlab.open(directory, durability, stall_timeout=stall_timeout, tick_interval=tick_interval) as rq:
        rq.on_change(lambda change: _count_run(ended, change))
        with _signals_set(threading.Event()) as shutdown:
            _say(f"worker {os.getpid()} starts: {', '.join(names)} in {directory}, handler {called}; Ctrl-C stops it")
            rq.run_worker(names, handlers, shutdown=shutdown, **options)
            did = ", ".join(f"{ended[event]} {end}" for event, end in RUN_ENDS.items() if ended[event])
            _say(f"worker {os.getpid()} stops: {did or 'it ran nothing'}")


@app.command()
def push(
    directory: Directory,
    queue: Queue,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What kind of job it is.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Argument(metavar="JSON", help="Its data; - reads it from standard input.", show_default=False),
    ] = None,
    priority: Annotated[int, typer.Option(help="-32768 to 32767; larger runs first.")] = 0,
    delay: Annotated[float | None, typer.Option(help="Seconds until it is due.", show_default=False)] = None,
    max_attempts: Annotated[int, typer.Option(help="Runs, at most.")] = 3,
    backoff: Annotated[str, typer.Option(help="fixed, linear or exponential.")] = "exponential",
    backoff_delay: Annotated[float, typer.Option(help="Seconds before the first retry.")] = 1.0,
    max_backoff: Annotated[float, typer.Option(help="Seconds before any retry, at most.")] = 86_400.0,
    jitter: Annotated[float, typer.Option(help="0.2 draws each backoff from ±20 %.")] = 0.0,
    timeout: Annotated[float | None, typer.Option(help="Seconds that one run may take.", show_default=False)] = None,
    ttl: Annotated[
        float | None, typer.Option(help="Seconds from when it is due until it expires unstarted.", show_default=False)
    ] = None,
    unique_key: Annotated[
        str | None, typer.Option(help="Refused while an unfinished job of the queue holds it.", show_default=False)
    ] = None,
    on_conflict: Annotated[
        str, typer.Option(help="On a key that is held: raise, or return its holder's id.")
    ] = "raise",
    tag: Annotated[list[str] | None, typer.Option(help="A label; may be given often.", show_default=False)] = None,
    metadata: Annotated[
        str | None, typer.Option(metavar="JSON", help="A JSON object kept with the job.", show_default=False)
    ] = None,
    remove_on_complete: Annotated[
        bool, typer.Option("--remove-on-complete", help="Keep no entry of it once it is completed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Store a job and print its id.

    The directory is made if it is not there.
    """
    options: dict[str, Any] = {
        "priority": priority,
        "delay": delay,
        "max_attempts": max_attempts,
        "backoff": backoff,
        "backoff_delay": backoff_delay,
        "max_backoff": max_backoff,
        "jitter": jitter,
        "timeout": timeout,
        "ttl": ttl,
        "unique_key": unique_key,
        "on_conflict": on_conflict,
        "tags": tag or (),
        "metadata": _decoded(metadata, "--metadata"),
        "remove_on_complete": remove_on_complete,
    }
    decoded = _decoded(data, "JSON")
    _rehearse(lambda rq: rq.push(queue, name, decoded, **options))
    with rqlab.open(directory) as rq:
        job_id = rq.push(queue, name, decoded, **options)
    _say(documents.text({"id": job_id}) if as_json else job_id)


# Looking: these commands open the directory read-only, and never make one.


@app.command()
def status(
    directory: Directory,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks of --watch.")] = 0.5,
    as_json: AsJson = False,
) -> None:
    """Show how many jobs are in each state, and the runs under way."""
    if watch and as_json:
        raise ValidationError("--watch, --json: expected one of them; --json prints one document and ends")
    with _looking_at(directory) as rq:
        if as_json:
            _say(documents.text(documents.status(str(directory), rq.metrics(), rq.paused())))
        elif not watch:
            tables.console().print(_status(rq))
        else:
            with contextlib.suppress(KeyboardInterrupt):
                _watch(rq, interval)


@app.command()
def jobs(
    directory: Directory,
    queue: Annotated[str | None, typer.Option(help="Only of this queue.", show_default=False)] = None,
    state: Annotated[
        str | None,
        typer.Option(help="waiting, delayed, active, completed, dlq or cancelled.", show_default=False),
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this label.", show_default=False)] = None,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Go on behind this job.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(help="Jobs, at most.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List jobs: state by state, each in the order of its line."""
    with _looking_at(directory) as rq:
        found = rq.jobs(queue, state=state, tag=tag, after=after, limit=limit)
        if as_json:
            _say(documents.text(documents.jobs(found)))
            return
        if queue is not None:
            _note_unknown(rq, queue)
        if not found:
            _say("no such jobs")
            return
        tables.console().print(tables.jobs(found, clock.now()))
        if len(found) == limit:
            _note(f"these are the first {limit}; the next: --after {found[-1].id}, more at once: --limit")


@app.command()
def show(directory: Directory, job_id: JobId, as_json: AsJson = False) -> None:
    """Show all that is known of one job."""
    with _looking_at(directory) as rq:
        job = rq.get(job_id)
    if as_json:
        _say(documents.text(documents.job(job)))
    else:
        tables.console().print(tables.job(job, clock.now()))


@app.command()
def dlq(
    directory: Directory,
    queue: Queue,
    limit: Annotated[int, typer.Option(help="Jobs, at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the dead-lettered jobs of a queue, newest first."""
    with _looking_at(directory) as rq:
        found = rq.get_dlq_jobs(queue, limit)
        if as_json:
            _say(documents.text(documents.jobs(found)))
            return
        _note_unknown(rq, queue)
        total = rq.counts(queue).dlq
    if not found:
        _say(f"no dead-lettered jobs in {queue}")
        return
    tables.console().print(tables.dlq(found, clock.now()))
    if total > len(found):
        _note(f"these are the newest {len(found)} of {total}; more: --limit")
    _note(f"to run them again: rqlab requeue {directory} ID, or rqlab requeue {directory} --all {queue}")


@app.command()
def schedules(directory: Directory, as_json: AsJson = False) -> None:
    """List the schedules: what each pushes, when, and when next."""
    with _looking_at(directory) as rq:
        found = rq.schedules()
    if as_json:
        _say(documents.text([documents.schedule(schedule) for schedule in found]))
    elif found:
        tables.console().print(tables.schedules(found, clock.now()))
    else:
        _say("no schedules")


@app.command(name="doctor")
def examine(directory: Directory, as_json: AsJson = False) -> None:
    """Check the directory and what it lies on; change nothing.

    Exit code 1 if something is wrong. It reads all of the file and counts every job, so it takes a while on a large
    directory.
    """
    findings = doctor.examine(directory, clock.now())
    is_healthy = doctor.is_healthy(findings)
    if as_json:
        checks = [finding._asdict() for finding in findings]
        _say(documents.text({"path": str(directory), "is_healthy": is_healthy, "checks": checks}))
    else:
        for finding in findings:
            _print_finding(finding)
        _say("healthy" if is_healthy else "NOT healthy: see the lines marked wrong")
    raise typer.Exit(0 if is_healthy else FAILED)


# Managing: these commands change a directory that is there.


@app.command()
def requeue(
    directory: Directory,
    job_id: Annotated[str | None, typer.Argument(metavar="ID", help="The job's id.", show_default=False)] = None,
    all_of: Annotated[
        str | None, typer.Option("--all", metavar="QUEUE", help="Instead of ID: all dead-lettered jobs of this queue.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put dead-lettered or cancelled jobs back in the line.

    A requeued job has all its attempts again.
    """
    if (job_id is None) == (all_of is None):
        raise ValidationError("requeue: expected either the id of a job or --all QUEUE")
    with _managing(directory) as rq:
        if job_id is not None:
            job = rq.requeue(job_id)
            _say(documents.text(documents.job(job)) if as_json else f"{job.id} is {job.state}")
        elif all_of is not None:
            _note_unknown(rq, all_of)
            requeued = rq.requeue_all(all_of)
            left = rq.counts(all_of).dlq
            _say(documents.text({"requeued": requeued}) if as_json else f"requeued {_jobs(requeued)}")
            if left:
                _note(f"{_jobs(left)} stayed: their unique keys are held by others, or they have just arrived")


@app.command()
def cancel(directory: Directory, job_id: JobId, as_json: AsJson = False) -> None:
    """Cancel a job that is not finished.

    A run in flight is told at once, and its result is dropped.
    """
    with _managing(directory) as rq:
        job = rq.cancel(job_id)
    _say(documents.text(documents.job(job)) if as_json else f"{job.id} is {job.state}")


@app.command()
def purge(
    directory: Directory,
    queue: Queue,
    state: Annotated[str, typer.Option(help="dlq, completed or cancelled.")] = "dlq",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a queue's jobs in one finished state, for good."""
    with _managing(directory) as rq:
        _note_unknown(rq, queue)
        if not yes:
            _confirm(f"Remove {_jobs(getattr(rq.counts(queue), state, 0))} ({state}) of {queue} for good?")
        purged = rq.purge(queue, state)
    _say(documents.text({"purged": purged}) if as_json else f"purged {_jobs(purged)}")


@app.command()
def pause(directory: Directory, queue: Queue, as_json: AsJson = False) -> None:
    """Stop pulls from a queue, in every process; pushes go on."""
    _set_paused(directory, queue, True, as_json)


@app.command()
def resume(directory: Directory, queue: Queue, as_json: AsJson = False) -> None:
    """End a pause."""
    _set_paused(directory, queue, False, as_json)


# Showing what it can do.


@app.command(name="demo")
def walk_through(
    kills: Annotated[int, typer.Option(min=1, help="How often the worker is killed.")] = 1,
    max_attempts: Annotated[int, typer.Option(min=1, help="Of the job: as many kills end in the DLQ.")] = 3,
    power: Annotated[bool, typer.Option("--power", help="Cut the power instead, in every durability mode.")] = False,
    seed: Annotated[int, typer.Option(help="Of --power: the same seed, the same cut.")] = power_cut.SEED,
) -> None:
    """Kill -9 a worker in the middle of a job; watch it complete.

    It takes about 15 seconds, and leaves no file and no process behind. With --power, the same jobs are pushed in every
    durability mode, and a power cut shows what each had really kept; that takes a second. Exit code 0 if what happened
    is what must.
    """
    if (power and (kills, max_attempts) != (1, 3)) or (seed != power_cut.SEED and not power):
        raise ValidationError("demo: expected --kills and --max-attempts without --power, or --seed with it")
    held = power_cut.run(seed, _say) if power else demo.run(kills, max_attempts, _say)
    raise typer.Exit(0 if held else FAILED)


app.command()(measuring.measure)
app.command()(page.lab)


# Below: what the commands share.


experiments.add_to(app)


@contextlib.contextmanager
def _looking_at(directory: Path) -> Iterator[Queues]:
    with rqlab.open(directory, read_only=True) as rq:
        yield rq


@contextlib.contextmanager
def _managing(directory: Path) -> Iterator[Queues]:
    """Open for writing what is already there: a mistyped name must not become a new directory."""
    with _looking_at(directory):
        pass
    with rqlab.open(directory) as rq:
        yield rq


def _set_paused(directory: Path, queue: str, paused: bool, as_json: bool) -> None:
    with _managing(directory) as rq:
        _note_unknown(rq, queue)
        (rq.pause if paused else rq.resume)(queue)
    state = "paused" if paused else "running"
    _say(documents.text({"queue": queue, "paused": paused}) if as_json else f"{queue} is {state}")


def _rehearse(call: Callable[[Queues], object]) -> None:
    """Make the call on queues in memory first: a wrong argument is refused before a directory is made."""
    with rqlab.memory() as rq:
        call(rq)


def _chosen_handler(name: str | None, is_demo: bool) -> tuple[Handlers, str]:
    """The handler, and what it is called; ValidationError says what is wrong with it."""
    if (name is None) != is_demo:
        raise ValidationError("handler: expected either MODULE:HANDLER, such as tasks:send, or --demo")
    if name is None:
        return demo.handler, "of the demo"
    return executors.checked(load(name)), name


def _count_run(ended: Counter[Event], change: Change) -> None:
    ended[change.event] += 1
    if change.event is Event.FAIL:  # the library leaves a handler's errors to the records; here somebody is looking
        job = change.job
        said = (job.last_error or "").splitlines()[:1]
        log.warning(
            "%s/%s %s failed, attempt %d of %d: %s",
            job.queue,
            job.name,
            job.id,
            job.attempt,
            job.max_attempts,
            tables.spelled(said[0]) if said else "",
        )


@contextlib.contextmanager
def _signals_set(shutdown: threading.Event) -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set the event: also in the moments before and after the worker itself listens to them."""
    before = {number: signal.signal(number, lambda *_: shutdown.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield shutdown
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _decoded(text: str | None, what: str) -> Any:
    """The JSON value that a text is; - reads the text from standard input."""
    if text is None:
        return None
    try:
        text = sys.stdin.read() if text == "-" else text
        return json.loads(text)
    except RecursionError:
        raise ValidationError(f"{what}: expected JSON of fewer levels") from None
    except ValueError as error:
        raise ValidationError(
            f'{what}: expected a JSON value, such as \'{{"to": "ada"}}\' or \'"text"\' (in a shell, in single quotes); '
            f"got {text[:60]!r}{'…' if len(text) > 60 else ''} ({error})"
        ) from None


def _status(rq: Queues) -> Any:
    return tables.status(rq.metrics(), rq.paused(), rq.jobs(state="active", limit=RUNS_SHOWN))


def _watch(rq: Queues, interval: float) -> None:
    """Redraw in place on a terminal; elsewhere print it again and again."""
    screen = tables.console()
    pause = clock.Bell().wait
    if not screen.is_terminal:
        while True:
            screen.print(_status(rq))
            pause(interval)
    with Live(_status(rq), console=screen, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            pause(interval)
            live.update(_status(rq), refresh=True)


def _print_finding(finding: doctor.Finding) -> None:
    style = VERDICT_STYLES[finding.verdict]
    verdict = finding.verdict.upper() if finding.verdict is doctor.Verdict.WRONG else finding.verdict
    line = tables.line((f"{verdict:<5}", style), (f"{finding.check:<12}", "bold"), (tables.spelled(finding.says), ""))
    tables.console().print(line)


def _note_unknown(rq: Queues, queue: str) -> None:
    known = rq.queues()
    if queue not in known:
        there = ", ".join(known) or "none"
        _note(f"no queue called {queue!r} has had a job yet; there are: {there}")


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise ValidationError("purge: expected --yes, because nobody is at a terminal to be asked")
    if not typer.confirm(question, err=True):  # no error: it was asked for. The code is that of typer's own abort
        _note("nothing was removed")
        raise typer.Exit(FAILED)


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


def _say(line: str) -> None:
    print(line, flush=True)


def _note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {tables.spelled(message)}", file=sys.stderr)
    raise typer.Exit(code)
