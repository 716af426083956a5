"""What notebooks show: records, results and panels as HTML and SVG text. Pure functions; nothing here asks a queue.

Pages that show notebooks strip style sheets, scripts and SVG, and some all markup. So: inline styles alone, colours of
Jupyter's theme with a fallback, words that read on when the markup is gone, and everything that callers wrote escaped.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

from rqlab.charts import timelines
from rqlab.charts.histories import Result, Table, in_words, moment, names_in, rows, times
from rqlab.charts.looks import OUTCOMES, STATES, Look, plain, seconds
from rqlab.html import svg
from rqlab.html.plots import tradeoff
from rqlab.html.svg import FAINT, QUIET, text
from rqlab.job import Counts, Job, instant

__all__ = [
    "PANELS", "counts", "events", "header", "job", "of", "queues", "render", "result", "state_bar", "states",
    "timeline", "tradeoff", "verdict", "workers",
]  # fmt: skip

MOST_BYTES = 5 * 1024  # of a representation that is kept in a notebook, its PNG apart
MOST_QUEUES = 12
MOST_DELIVERIES = 6
MOST_VIOLATIONS = 5
MOST_EVENTS = 8
MOST_WORKERS = 32
PANEL_LANES = 22  # jobs in a live timeline
PANEL_RUNS = 60  # the newest; a panel is sent again with every change and should stay below 20 kB
PANEL_EVENTS = 2_000  # the newest that a panel looks at

FRAME = "font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:13px;line-height:1.5"
NUMBERS = "font-variant-numeric:tabular-nums"
MONO = "font-family:var(--jp-code-font-family,monospace);font-size:12px"
RIGHT = ' style="text-align:right"'
CLOSE = ' style="margin:4px 0"'
LEFT = ' style="text-align:left;overflow-wrap:anywhere"'
#: A second cue for the swatches, as CSS: the hatches of the looks.
STRIPES = {
    "///": "repeating-linear-gradient(135deg,#0008 0 1px,transparent 1px 5px)",
    "---": "repeating-linear-gradient(0deg,#0008 0 1px,transparent 1px 5px)",
    "xxx": "repeating-linear-gradient(45deg,#0008 0 1px,transparent 1px 5px),"
    "repeating-linear-gradient(135deg,#0008 0 1px,transparent 1px 5px)",
}

EVENT_COLUMNS = ("at", "kind", "job", "worker", "detail")

IMAGE = "picture:here"  # where a result's picture goes; no escaped text has it inside quotes after src=

View = Mapping[str, Any]


def job(record: Job) -> str:
    """A job as a small table: what it is, where it stands, and its newest runs."""
    return _fitted(lambda share: _job(record, share))


def _job(record: Job, share: float) -> str:
    look = STATES[record.state]
    facts: list[tuple[str, str]] = [
        ("state", f"{look.glyph} {look.word}"),
        ("attempt", f"{record.attempt} of {record.max_attempts}, deliveries {record.deliveries}"),
        ("pushed", instant(record.created_at)),
    ]
    if record.priority:
        facts.append(("priority", str(record.priority)))
    for name in ("delay_until", "lease_until", "finished_at"):
        at = getattr(record, name)
        if at is not None:
            facts.append((name.removesuffix("_at"), instant(at)))
    if record.worker:
        facts.append(("worker", record.worker))
    if record.tags:
        facts.append(("tags", ", ".join(record.tags[:20])))
    if not record.data_apart:
        facts.append(("data", bytes(record.encoded_data)[:400].decode(errors="replace")))
    if bytes(record.encoded_result) != b"null":
        facts.append(("result", bytes(record.encoded_result)[:400].decode(errors="replace")))
    if record.last_error is not None:
        facts.append(("last error", _first_line(record.last_error)))
    lines = record.history[-int(MOST_DELIVERIES * share) or -1 :]
    runs = [
        f"run {line.delivery}: {OUTCOMES[line.outcome].label} after {seconds((line.ended_at - line.started_at) / 1000)}"
        + (f": {plain(_first_line(line.error), int(80 * share))}" if line.error else "")
        for line in reversed(lines)
    ]
    if len(record.history) > len(lines):
        runs.append(f"and {times(len(record.history) - len(lines), 'older run')}")
    title = f"<b>{text(record.queue)}/{text(record.name)}</b> <code>{text(record.id)}</code>"
    return _framed(title + _facts(facts, int(160 * share)) + _lines(runs))


def counts(numbers: Counts) -> str:
    """How many jobs are in each state: a bar, and the same in words."""
    return _framed(state_bar({state: getattr(numbers, state) for state in STATES}))


def queues(where: str, durability: str, numbers: Mapping[str, Counts], paused: Sequence[str] = ()) -> str:
    """A set of queues: one row a queue, jobs by state."""
    return _fitted(lambda share: _queues(where, durability, numbers, paused, share))


def _queues(where: str, durability: str, numbers: Mapping[str, Counts], paused: Sequence[str], share: float) -> str:
    total = {state: sum(getattr(each, state) for each in numbers.values()) for state in STATES}
    title = f"<b>rqlab.Queues</b> {text(where, 160)}, {text(durability)}, {times(len(numbers), 'queue')}"
    if not numbers:
        return _framed(f"{title}: no job was ever pushed")
    head = "".join(f"<th{RIGHT}>{look.glyph} {look.word} </th>" for look in STATES.values())
    listed = list(numbers.items())[: int(MOST_QUEUES * share)]
    lines = [(f"<th{LEFT}>queue </th>", head)]
    for name, each in listed:
        cells = "".join(f"<td{RIGHT}>{getattr(each, state):,} </td>" for state in STATES)
        lines.append((f"<td{LEFT}>{text(name, 40)}{' (paused)' if name in paused else ''} </td>", cells))
    left = len(numbers) - len(listed)
    more = f"<div>and {times(left, 'more queue')}</div>" if left else ""
    return _framed(title + state_bar(total, words=len(numbers) > 1) + _table(lines) + more)


def of(thing: object) -> str:
    """The HTML of a job or of counts. TypeError for anything else."""
    match thing:
        case Job():
            return job(thing)
        case Counts():
            return counts(thing)
    raise TypeError(f"rqlab.html.of: expected a Job or Counts, got {type(thing).__name__}")


class Simulated(Result, Protocol):
    """What `result` shows besides the tables that are drawn: a SimulationResult."""

    @property
    def ok(self) -> bool: ...
    @property
    def seed(self) -> int: ...
    @property
    def durability(self) -> str: ...
    @property
    def violations(self) -> Sequence[object]: ...
    @property
    def what_was_lost(self) -> str: ...
    @property
    def effects_in_words(self) -> Sequence[str]: ...
    @property
    def promise(self) -> Table: ...  #: crash, may lose, crashes, writes lost, jobs lost
    @property
    def replay_line(self) -> str: ...


def result(done: Simulated, *, picture: bytes | None = None) -> str:
    """A simulation: the verdict, what was lost and what was promised, the timeline, and how to see it again.

    The timeline is a PNG with a background of its own, since pages strip SVG; `picture` is one that was drawn already.
    Apart from it at most 5 KB.
    """
    from rqlab import charts

    drawn = charts.timeline(done) if picture is None else None
    said = timelines.marks(done).said() if drawn is None else drawn.alt
    shown = drawn._repr_png_() if drawn is not None else picture
    encoded = base64.b64encode(shown or b"").decode()
    words = _fitted(lambda share: _result(done, said, share))
    return words.replace(f'src="{IMAGE}"', f'src="data:image/png;base64,{encoded}"', 1)


def _result(done: Simulated, said: str, share: float) -> str:
    """The result with a place for its picture."""
    alt = text(said, int(500 * share))
    picture = f'<img alt="{alt}" style="max-width:100%;background:#fff" src="{IMAGE}">\n'
    return _framed(_verdict(done, share) + picture + _again(done, share))


def verdict(done: Simulated) -> str:
    """The same without the picture: what a panel shows above its own."""
    return _fitted(lambda share: _framed(_verdict(done, share) + _again(done, share)))


def _verdict(done: Simulated, share: float) -> str:
    verdict, paper = ("✓ SAFETY HOLDS", "#00694d") if done.ok else ("✗ SAFETY BROKEN", "#a32e00")
    light = f'<span style="background:{paper};color:#fff;padding:2px 8px;border-radius:3px"><b>{verdict}</b></span>'
    parts = [f"<p{CLOSE}>{light} {text(done.durability)}, seed {done.seed}</p>\n"]
    broken = [str(each) for each in done.violations]
    listed = broken[: max(1, int(MOST_VIOLATIONS * share))]
    more = [f"and {times(len(broken) - len(listed), 'more violation')}"] if len(broken) > len(listed) else []
    parts.append(_lines([*(f"✗ {plain(each, int(200 * share))}" for each in listed), *more]))
    parts.append(f"<p{CLOSE}>{text(done.what_was_lost, int(500 * share))}</p>")
    parts.append(_lines([plain(each, int(240 * share)) for each in done.effects_in_words]))
    parts.append(_promise(done.promise, int(120 * share)))
    return "".join(parts)


def _again(done: Simulated, share: float) -> str:
    line = text(done.replay_line, int(400 * share))
    return f'<p{CLOSE}>again: <code style="{MONO};color:inherit;overflow-wrap:anywhere">{line}</code></p>'


def _promise(promise: Table, limit: int) -> str:
    """What may be lost beside what was, for each way to go down."""
    head = ("at", "may be lost", "happened", "acknowledged writes lost", "jobs lost")
    at_spaces, unbroken = ' style="text-align:left"', ' style="text-align:left;white-space:nowrap"'
    lines = [("", "".join(f"<th{at_spaces}>{name} </th>" for name in head))]
    for crash, may_lose, *numbers in rows(promise, "crash", "may lose", "crashes", "writes lost", "jobs lost"):
        cells = [
            f"<td{unbroken}>{text(crash, limit)} </td><td{LEFT}>{text(str(may_lose).replace('`', ''), limit)} </td>"
        ]
        cells += [f"<td{RIGHT}>{int(number):,} </td>" for number in numbers]
        lines.append(("", "".join(cells)))
    return _table(lines)


def _first_line(error: str) -> str:
    """The error itself; its traceback is in the record."""
    return error.partition("\n")[0]


def _fitted(make: Callable[[float], str]) -> str:
    """The fullest version that is small enough to be kept: texts are cut to a share of their usual length."""
    made = ""
    for share in (1.0, 0.6, 0.35, 0.2, 0.1):
        made = make(share)
        if len(made.encode()) <= MOST_BYTES:
            break
    return made


# Panels: each is a function from a view, a small plain dict, to HTML.


def header(view: View) -> str:
    """Mode, seed and time, and whether safety holds as far as it can be judged; nothing said is nothing shown."""
    facts = [str(view["mode"])] if view.get("mode") else []
    facts += [f"seed {view['seed']}"] if view.get("seed") is not None else []
    facts += [f"t = {moment(float(view['now']))}"] if view.get("now") is not None else []
    light = {True: "SAFETY HOLDS ✓", False: "SAFETY BROKEN ✗"}.get(view.get("safe"), "")  # type: ignore[arg-type]
    said = " · ".join(facts)
    return f'<div style="{NUMBERS}"><b>rqlab</b> {text(said, 120)} <b>{light}</b></div>'


def state_bar(numbers: Mapping[str, int], words: bool = True) -> str:
    """Jobs by state as a bar whose parts are as long as they are many, and under it in words."""
    total = sum(numbers.values())
    shares = "".join(
        f'<span title="{look.word} {numbers[state]:,}" style="width:{100 * numbers[state] / total:.2f}%;min-width:3px;'
        f'{_swatch(look)}"></span>'
        for state, look in STATES.items()
        if numbers.get(state)
    )
    bar = (
        '<div aria-hidden="true" style="display:flex;gap:1px;height:16px;margin:4px 0;border-radius:3px;'
        f'overflow:hidden">{shares}</div>'
        if total
        else ""
    )
    if not words:
        return bar
    said = "".join(
        f'<span style="white-space:nowrap;margin-right:14px"><span aria-hidden="true" style="display:inline-block;'
        f'width:10px;height:10px;margin-right:4px;{_swatch(look)}"></span>{look.label} '
        f"<b>{numbers.get(state, 0):,}</b></span> "
        for state, look in STATES.items()
    )
    return f'{bar}<div style="{NUMBERS}">{said}</div>'


def states(view: View) -> str:
    """The state bar of a view."""
    return state_bar({state: int(view.get("counts", {}).get(state, 0)) for state in STATES})


def workers(view: View) -> str:
    """One row a worker: name, pid, state, job, how much of its lease is left."""
    listed = list(rows(view.get("workers"), "name", "pid", "state", "job", "lease_left"))
    if not listed:
        return ""
    head = "".join(f"<th{LEFT}>{name} </th>" for name in ("worker", "pid", "state", "job", "lease left"))
    lines = [("", head)]
    for name, pid, state, at_job, lease in listed[:MOST_WORKERS]:
        look = STATES.get(str(state))
        said = f"{look.glyph} {look.word}" if look else str(state or "")
        left = "" if lease is None else f"{max(0.0, float(lease)):.1f} s"
        facts = (name, "" if pid is None else pid, said, at_job or "", left)
        lines.append(("", "".join(f"<td{LEFT}>{text(fact, 40)} </td>" for fact in facts)))
    left_out = len(listed) - MOST_WORKERS
    return _table(lines) + (f"<div>and {times(left_out, 'more worker')}</div>" if left_out > 0 else "")


def timeline(view: View) -> str:
    """The SVG timeline of a view; `by` is `job` (default) or `worker`, `name` keeps two on one page apart.

    It begins at `since`, if the view says so.
    """
    told: Result = SimpleNamespace(
        jobs=view.get("jobs"), attempts=view.get("attempts"), events=_newest(view.get("events")),
        faults=view.get("faults"), seed=view.get("seed"), since=view.get("since"),
    )  # fmt: skip
    drawn = timelines.marks(told, view.get("by", "job"), int(view.get("lanes", PANEL_LANES)), PANEL_RUNS)
    said = f'<div style="color:{QUIET}">{text(drawn.hidden, 200)}</div>' if drawn.hidden else ""
    return svg.timeline(drawn, int(view.get("width", 760)), str(view.get("name", "rq"))) + said


def events(view: View) -> str:
    """The last events as text, the newest first; heartbeats are ticks in the timeline and not news."""
    names = names_in(view.get("jobs"))
    lines = []
    newest = list(rows(_newest(view.get("events")), *EVENT_COLUMNS))
    for at, kind, about, worker, detail in reversed(newest):
        if kind == "heartbeat":
            continue
        facts = [f"{float(at or 0):8.3f} s", f"{plain(kind, 14):<14}"]
        facts += [names.get(about) or plain(about, 40)] if about else []
        facts += [plain(fact, 100) for fact in (worker, in_words(detail)) if fact]
        lines.append("  ".join(facts))
        if len(lines) == MOST_EVENTS:
            break
    return _lines(lines)


def _newest(table: Table) -> Table:
    return table.tail(PANEL_EVENTS) if hasattr(table, "tail") else list(table or ())[-PANEL_EVENTS:]


#: The panels, from the top. A new one is a row here.
PANELS: dict[str, Callable[[View], str]] = {
    "header": header,
    "states": states,
    "workers": workers,
    "timeline": timeline,
    "events": events,
}


def render(view: View, panels: Sequence[str] = tuple(PANELS)) -> str:
    """The panels of a view, one under another. ValueError for a panel that there is not."""
    unknown = [name for name in panels if name not in PANELS]
    if unknown:
        raise ValueError(f"panels: expected some of {', '.join(PANELS)}; got {', '.join(map(repr, unknown))}")
    return _framed("".join(PANELS[name](view) for name in panels))


def _framed(body: str) -> str:
    return f'<div style="{FRAME}">{body}</div>'


def _table(lines: Sequence[tuple[str, str]]) -> str:
    body = "\n".join(f"<tr>{first}{rest}</tr>" for first, rest in lines)
    style = f"border-collapse:separate;border-spacing:10px 0;margin:4px 0;font-size:inherit;color:inherit;{NUMBERS}"
    return f'\n<table style="{style}">{body}</table>\n'


def _facts(facts: Sequence[tuple[str, str]], limit: int) -> str:
    names = '<th style="text-align:left;white-space:nowrap">'
    return _table([(f"{names}{text(name, 40)} </th>", f"<td{LEFT}>{text(value, limit)}</td>") for name, value in facts])


def _lines(said: Sequence[str]) -> str:
    """Lines of text, as they stand also where markup is stripped."""
    if not said:
        return ""
    body = "\n".join(text(line, 240) for line in said)
    style = f"{MONO};{NUMBERS};white-space:pre-wrap;overflow-wrap:anywhere;margin:4px 0;color:inherit;background:none"
    return f'<pre style="{style};border-left:2px solid {FAINT};padding:0 8px">{body}</pre>'


def _swatch(look: Look) -> str:
    stripes = STRIPES.get(look.hatch)
    return f"background:{stripes + ',' if stripes else ''}{look.colour}"
