"""What runs a handler: start it, learn how it ended, stop it. Knows no queue and no store.

An executor is one of the three seams: `inline` for drains and simulations, `threads`, `processes` and `loop` (async)
for workers. None of them decides anything about the job; each turns what a handler did into a Report.
"""

import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from rqlab import arguments
from rqlab.engine import Ending
from rqlab.errors import DeadLetter, RetryAfter, Snooze, ValidationError
from rqlab.job import MAX_ERROR_BYTES, MAX_LOG_LINE_BYTES, NULL, Job
from rqlab.lifecycle import Event, cut

if TYPE_CHECKING:  # imported where they are used: a third of `import rqlab` otherwise
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger("rqlab")

CONTEXT_NAMES = ("ctx", "context")  # of a second parameter that is the context although it has a default

Handler = Callable[..., Any]
Handlers = Handler | Mapping[str, Handler]


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a handler ended, in a form that travels between processes."""

    event: str  #: ack, fail, snooze or release
    result: msgspec.Raw = NULL
    error: str = ""
    delay: float | None = None  #: seconds, of RetryAfter and Snooze
    final: bool = False  #: DeadLetter

    def ending(self, job: Job) -> Ending:
        return Ending(job, Event(self.event), self.result, self.error, self.delay, self.final)


class Run:
    """One delivery in the hands of an executor."""

    __slots__ = ("forgiven_until", "is_lost", "is_stopped", "job", "services")

    def __init__(self, job: Job, services: "Services") -> None:
        self.job = job
        self.services = services
        self.is_lost = False  #: the lease went to somebody else: its report will be dropped
        self.is_stopped = False  #: it should end: cancelled, timed out, lost or released
        self.forgiven_until = 0  #: not timed out before this instant: its worker itself was late


def _log_effect(run: Run, what: str) -> None:
    """%r: what a handler says may not break the line."""
    log.debug("job %s, delivery %d: effect %r", run.job.id, run.job.deliveries, what)


class Services(NamedTuple):
    """What a run's context may ask of its worker: progress and log are stored before they return."""

    progress: Callable[[Run, float, str | None], None]
    log: Callable[[Run, str], None]
    effect: Callable[[Run, str], None] = _log_effect  #: a simulation counts them


class Finished(NamedTuple):
    run: Run
    report: Report


#: What an executor calls when a run has ended. True: in a thread that has nothing else to do, so it may at once make
#: the step that reports the run and starts the next; False: whoever drives the worker is to be told.
OnEnd = Callable[[bool], None]


class Executor(Protocol):
    """Runs at most `concurrency` handlers at once."""

    concurrency: int

    def free(self) -> int:
        """How many runs may be started now. A thread that was told to stop but still runs is not free."""

    def is_over(self) -> bool:
        """Whether it can run nothing any more: the loop that it runs on is closed. Its worker stops."""

    def start(self, run: Run) -> None:
        """Begin the run, and return at once. What this raises fails the attempt."""

    def poll(self) -> Sequence[Finished]:
        """The runs that ended since the last call, of stopped ones too."""

    def stop(self, run: Run) -> None:
        """Make the run end: a process is killed, an async handler cancelled, a thread is only told."""

    def close(self) -> None:
        """Let go of threads, loops and children; nothing of them is left but threads still in a handler."""


class _Known:
    """What a handler may know about its run."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def job(self) -> Job:
        """The job as it was pulled."""
        return self._run.job

    @property
    def token(self) -> int:
        """The fencing token: the job's `deliveries`. It rises with each run, so a store that keeps the highest
        token it has seen can refuse a run that has been overtaken."""
        return self._run.job.deliveries

    @property
    def lost(self) -> bool:
        """Whether the job went to another run: stop, and write nothing more."""
        return self._run.is_lost

    @property
    def cancelled(self) -> bool:
        """Whether the run should end: it was cancelled, timed out, lost or released."""
        return self._run.is_stopped or self._run.is_lost


class Context(_Known):
    """What a handler may know and say about its run: the second argument of `handler(job, ctx)`."""

    def progress(self, percent: float, message: str | None = None) -> None:
        """Store how far the run is, 0-100, and a line for the log. It is no heartbeat. LeaseLost if the job is lost."""
        checked = arguments.percent(percent)
        self._run.services.progress(self._run, checked, None if message is None else _line(message))

    def log(self, line: str) -> None:
        """Store a line in the job's log. LeaseLost if the job is lost."""
        self._run.services.log(self._run, _line(line))

    def effect(self, what: str) -> None:
        """Say that the run has just changed the world outside: `ctx.effect("charged card")`.

        Under `rqlab.simulate(handler=…)` these are counted, and the result tells which happened twice for a job, and
        which fault did that. In a worker it is a line at DEBUG in the log `rqlab`: nothing is stored or raised.
        """
        self._run.services.effect(self._run, _line(what))


class AsyncContext(_Known):
    """The same for an async handler. Nothing here blocks its event loop: a thread does the storing.

    What is said is stored in the order of the calls, and before the end of the run is. Await a call to go on when it is
    stored, and to have its LeaseLost raised; one that is not awaited shows in `ctx.lost`. Called in another thread than
    the loop's, it returns when it is stored.
    """

    def __init__(self, run: Run, pool: "ThreadPoolExecutor | None" = None) -> None:
        super().__init__(run)
        self._pool = pool  #: the threads that store; None: those of the loop
        self._newest: asyncio.Task[None] | None = None

    def progress(self, percent: float, message: str | None = None) -> Awaitable[None]:
        """Store how far the run is, 0-100, and a line for the log. It is no heartbeat."""
        checked = arguments.percent(percent)
        said = None if message is None else _line(message)
        return self._store(lambda: self._run.services.progress(self._run, checked, said))

    def log(self, line: str) -> Awaitable[None]:
        """Store a line in the job's log."""
        said = _line(line)
        return self._store(lambda: self._run.services.log(self._run, said))

    def effect(self, what: str) -> Awaitable[None]:
        """Say that the run has just changed the world outside, as `Context.effect` does; it need not be awaited."""
        self._run.services.effect(self._run, _line(what))
        return Stored()

    async def stored(self) -> None:
        """Wait until everything said so far is stored."""
        import asyncio

        if self._newest is not None:
            await asyncio.wait([self._newest])

    def _store(self, call: Callable[[], None]) -> Awaitable[None]:
        import asyncio

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # in a thread that the handler has started
            call()
            return Stored()
        before = self._newest

        async def in_order() -> None:
            if before is not None:
                await asyncio.wait([before])
            await loop.run_in_executor(self._pool, call)

        self._newest = task = loop.create_task(in_order())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen: a handler need not await it
        return task


class Stored:
    """What need not be waited for: it is done, or it failed, which whoever awaits it is told."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def __await__(self) -> Generator[None, None, None]:
        if self._error is not None:
            raise self._error
        yield from ()


def is_async(handlers: Handlers) -> bool:
    """Whether the handlers are coroutine functions; all must be of one kind."""
    functions = list(handlers.values()) if isinstance(handlers, Mapping) else [handlers]
    kinds = {_is_coroutine_function(function) for function in functions}
    if len(kinds) > 1:
        raise ValidationError(
            "handler: expected all functions of the mapping to be async, or none; got both. "
            "Use a worker for each kind, on queues of their own"
        )
    return kinds.pop()


def checked(handlers: object) -> Handlers:
    """The handler, or mapping of job names to handlers, if each can be called as handler(job) or handler(job, ctx)."""
    if isinstance(handlers, Mapping):
        if not handlers:
            raise ValidationError("handler: expected at least one function in the mapping; got an empty one")
        for name, function in handlers.items():
            arguments.job_name(name)
            wants_context(function)
        return dict(handlers)
    if not callable(handlers):
        raise ValidationError(
            f"handler: expected a function handler(job) or handler(job, ctx), or a mapping from job names to such; "
            f"got {arguments.shown(handlers)}"
        )
    wants_context(handlers)
    return handlers


def wants_context(function: object) -> bool:
    """Whether the handler takes a context: (job, ctx) rather than (job).

    A second parameter with a default is an option of its own, unless it is called ctx or context.
    """
    if not callable(function):
        raise ValidationError(f"handler: expected a function; got {arguments.shown(function)}")
    try:
        return _has_context_parameter(function)
    except TypeError:  # a callable object that cannot be hashed
        return _has_context_parameter.__wrapped__(function)


@lru_cache(maxsize=1_000)  # looking at a signature took 20 us of every run
def _has_context_parameter(function: Handler) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return False
    try:
        signature.bind(None, None)
        return not _is_an_option(_second(signature))
    except TypeError:
        pass
    try:
        signature.bind(None)
    except TypeError:
        raise ValidationError(
            f"handler: expected a function handler(job) or handler(job, ctx); got {getattr(function, '__name__', '')}"
            f"{signature}"
        ) from None
    return False


def _second(signature: inspect.Signature) -> inspect.Parameter:
    """The parameter that takes the second argument, where one does: *both takes the rest."""
    by_position = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = [p for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL]
    return [*by_position, *rest, *rest][1]


def _is_an_option(parameter: inspect.Parameter) -> bool:
    return parameter.default is not parameter.empty and parameter.name not in CONTEXT_NAMES


def chosen(handlers: Handlers, job: Job) -> Handler | Report:
    """The function for this job; for a name that a mapping does not have, the report that dead-letters it."""
    if not isinstance(handlers, Mapping):
        return handlers
    function = handlers.get(job.name)
    if function is None:
        known = ", ".join(sorted(handlers))
        return Report(event="fail", error=f"no handler called {job.name!r}; this worker has: {known}", final=True)
    return function


def call(handlers: Handlers, run: Run, through: tuple[type[BaseException], ...] = ()) -> Report:
    """Run a sync handler to its end, whatever that is; errors of the kinds `through` are the caller's own."""
    try:
        function = chosen(handlers, run.job)
        if isinstance(function, Report):
            return function
        result = function(run.job, Context(run)) if wants_context(function) else function(run.job)
    except through:
        raise
    except BaseException as error:  # noqa: BLE001  # also SystemExit: a handler may not end its worker
        return failure(error, through)
    return success(result, through)


def success(result: object, through: tuple[type[BaseException], ...] = ()) -> Report:
    """The report of a handler that returned; a result that JSON cannot say fails the attempt."""
    try:
        return Report(event="ack", result=arguments.result(result))
    except through:
        raise
    except ValidationError as error:
        return Report(event="fail", error=f"the handler returned what cannot be stored: {error}")
    except BaseException as problem:  # noqa: BLE001  # the result's own code: whatever it does, the run has ended
        return _untold(f"it returned {_kind(result)}", problem)


def failure(error: BaseException, through: tuple[type[BaseException], ...] = ()) -> Report:
    """The report of a handler that raised; the three outcomes are not failures like others."""
    try:
        return _failure(error)
    except through:
        raise
    except BaseException as problem:  # noqa: BLE001  # the error's own code: whatever it does, the run has ended
        report = _untold(f"it raised {_kind(error)}", problem)
        return msgspec.structs.replace(report, final=issubclass(type(error), DeadLetter))


def _failure(error: BaseException) -> Report:
    match error:
        case Snooze():
            return _timed(error, Report(event="snooze", delay=0.0))
        case RetryAfter():
            return _timed(error, Report(event="fail", error=described(error)))
        case DeadLetter():
            return Report(event="fail", error=described(error), final=True)
        case _:
            return Report(event="fail", error=described(error))


def described(error: BaseException) -> str:
    """An error as `last_error` keeps it: what was raised, then where; cut to what is kept, and valid Unicode."""
    if isinstance(error, DeadLetter | RetryAfter):
        return cut(str(error), MAX_ERROR_BYTES)
    head = "".join(traceback.format_exception_only(error)).strip()
    frames = traceback.format_tb(error.__traceback__)
    own = [frame for frame in frames if f"{__name__.split('.')[0]}/executors" not in frame]
    return cut(head if not own else f"{head}\n{''.join(own).rstrip()}", MAX_ERROR_BYTES)


def _untold(outcome: str, problem: BaseException) -> Report:
    """The report of a run whose outcome could not be described: it ends all the same, and says so."""
    try:
        why = f"{_kind(problem)}: {problem}"
    except BaseException:  # noqa: BLE001  # what was met cannot be described either: its kind must do
        why = _kind(problem)
    text = f"the outcome of the handler could not be told: {outcome}, and describing that raised {why}"
    return Report(event="fail", error=cut(text, MAX_ERROR_BYTES))


def _kind(value: object) -> str:
    name: str = type.__dict__["__name__"].__get__(type(value))  # not what a metaclass may say instead
    return name


def _line(line: object) -> str:
    return cut(str(line), MAX_LOG_LINE_BYTES)


def _timed(error: Snooze | RetryAfter, report: Report) -> Report:
    try:
        delay = arguments.seconds(error.seconds, type(error).__name__)
    except ValidationError as mistake:
        return Report(event="fail", error=str(mistake))
    return msgspec.structs.replace(report, delay=delay)


def _is_coroutine_function(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004  # an object with an async __call__ is an async handler
