"""The lab's panels: each is a pure function from a view to HTML. What simulations show too is in `rqlab.html`.

Inline styles and colours of Jupyter's theme alone; whatever a caller or a handler wrote is escaped.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from rqlab import html
from rqlab.charts.histories import times
from rqlab.charts.looks import STATES
from rqlab.html.svg import QUIET, text
from rqlab.widgets.view import newest, only

View = Mapping[str, Any]

FRAME = "font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:13px;line-height:1.5"
WIDTH = 960  # pixels of the timeline; it shrinks with its page
NUMBERS = "font-variant-numeric:tabular-nums"
COLUMNS = "5.5em 5em 6.5em 7em 9em"  # of a worker's row: name, pid, state, job, lease
LIGHTS = {True: ("SAFETY HOLDS ✓", "#00694d"), False: ("SAFETY BROKEN ✗", "#a32e00")}

#: How the state of a process is shown; a second cue beside the word, as everywhere.
PROCESSES: dict[str, str] = {
    "starting": "↻", "running": "●", "idle": "○", "active": "▶", "frozen": "❄", "killed": "⚡", "ended": "■",
}  # fmt: skip


def header(view: View) -> str:
    """The light, the mode, the seed, how long it runs; and what is under way."""
    words, paper = LIGHTS[bool(view["safe"])]
    light = (
        f'<span role="status" style="background:{paper};color:#fff;padding:2px 10px;border-radius:3px"><b>{words}</b>'
        "</span>"
    )
    facts = [f"mode {view['mode']}", f"seed {view['seed']}", f"{int(view['now']):,} s"]
    if view["changing"]:
        facts.append(f"changing to {view['changing']}: all processes end, and start again")
    if view["paused"]:
        facts.append("‖ the queue is paused")
    broken = view["broken_by"]
    why = "" if broken is None else f"<div><b>✗ at {broken['at']:.1f} s:</b> {text(broken['says'], 300)}</div>"
    problem = f'<div role="alert"><b>✗</b> {text(view["problem"], 300)}</div>' if view["problem"] else ""
    return _framed(f"{light} <b>rqlab.lab</b> {text(' · '.join(facts), 300)}{why}{problem}")


def checks(view: View) -> str:
    """Every check: what is judged here, and, greyed, what is not."""
    lines = []
    for check in view["checks"]:
        mark = {True: "✓", False: "✗"}.get(check["holds"], "·")
        said = f"{mark} {text(check['sentence'], 120)}"
        if check["holds"] is None:
            said = f'<span style="opacity:0.6">{said}: not judged here, rqlab.simulate does</span>'
        said += "".join(f"<br>&emsp;{text(each, 240)}" for each in check["says"])
        lines.append(f"<div>{said}</div>")
    judged = sum(check["holds"] is not None for check in view["checks"])
    return _framed(f"<details><summary>what the light judges: {judged} checks</summary>{''.join(lines)}</details>")


def states(view: View) -> str:
    """The state bar with counts."""
    return _framed(html.states(view))


def worker(row: View) -> str:
    """One process: name, pid, what it runs, how much of its lease is left."""
    look = STATES.get(row["state"])
    glyph = PROCESSES.get(row["state"]) or (look.glyph if look else "")
    cells = [
        f"<b>{text(row['name'], 20)}</b>",
        text(row["pid"]) if row["kind"] != "thread" else f'<span style="color:{QUIET}">thread</span>',
        f"{glyph} {text(row['state'])}",
        text(row["job"], 24),
        text(_lease(row), 60),
    ]
    said = f'<div style="grid-column:1/-1;color:{QUIET}">{text(row["says"], 200)}</div>' if row["says"] else ""
    body = "".join(f"<span>{cell}</span>" for cell in cells)
    return _framed(f'<div style="display:grid;grid-template-columns:{COLUMNS};{NUMBERS}">{body}{said}</div>')


def columns(view: View) -> str:
    """The heads of the workers' rows, and what one owner means."""
    heads = "".join(
        f'<span style="color:{QUIET}">{head}</span>' for head in ("worker", "pid", "state", "runs", "lease")
    )
    note = ""
    if view["mode"] != "durable":
        note = (
            f"<div>In {text(view['mode'])} one process owns the jobs: producer, workers and housekeeping are its "
            "threads. <b>kill -9 owner</b> takes them all.</div>"
        )
    return _framed(f'{note}<div style="display:grid;grid-template-columns:{COLUMNS}">{heads}</div>')


def _lease(row: View) -> str:
    left = row["lease_left"]
    if left is None:
        return ""
    if left <= 0:
        return "lease is over"
    silent = row["state"] in ("killed", "frozen", "ended")
    return f"runs out in {left:.1f} s" if silent else f"{left:.1f} s left"


def mission(view: View) -> str:
    """What there is to try, and how far it has come."""
    row = f"{view['mode']} at kill -9: {view['promise'].replace('`', '')}"
    risk = f" At risk now: {times(view['at_risk'], 'job')}." if view["at_risk"] else ""
    undone = f" Undone, too: {times(view['undone'], 'completion')}; such a job runs again." if view["undone"] else ""
    return _framed(
        f"<div><b>Mission: make the queue lose an acknowledged job.</b> {_so_far(view)}{risk}{undone}</div>"
        f'<div style="color:{QUIET}">{text(row, 200)}. A power cut is out of reach here: kill -9 leaves what was '
        "written in the system's cache. rqlab.explorer() and rqlab.simulate cut the power.</div>"
    )


def _so_far(view: View) -> str:
    """How far the mission has come."""
    lost, crashes = view["lost"], times(view["crashes"], "crash")
    if lost and not view["safe"]:
        return f"<b>✗ {times(lost, 'job')} lost, and safety is broken: that is a bug of rqlab. Please report it.</b>"
    if lost:
        allowed = "all" if math.isinf(view["allowed"]) else f"at most {view['allowed']:,.0f} writes"
        are = "is" if lost == 1 else "are"
        return (
            f"<b>✓ Done: {times(lost, 'job')} of {view['acknowledged']:,} acknowledged {are} gone</b>, after "
            f"{crashes}; the modes' rows allow {allowed}. Now try durable."
        )
    hope = "It can be done: push, and kill -9 the owner before what it holds is on the disk."
    if view["mode"] == "durable":
        hope = "durable cannot be beaten: try, then take another mode."
    tried = f"{crashes} so far" if view["crashes"] else "no crash so far"
    return f"{view['acknowledged']:,} acknowledged, 0 lost; {tried}. {hope}"


def hint(view: View) -> str:
    """What keeps the queue from going on, if anything does."""
    rows = {row["name"]: row for row in view["workers"]}
    works = [row for row in rows.values() if row["kind"] in ("worker", "owner")]
    unfinished = sum(view["counts"][state] for state in ("waiting", "delayed", "active"))
    says = []
    if unfinished and works and all(row["state"] in ("killed", "ended") for row in works):
        names = ", ".join(row["name"] for row in works)
        says.append(f"Nobody works or keeps house; not finished: {times(unfinished, 'job')}. Restart {names}")
    elif unfinished and works and all(row["state"] in ("killed", "ended", "frozen") for row in works):
        says.append(f"Who lives is frozen; not finished: {times(unfinished, 'job')}. Thaw one")
    elif view["paused"] and unfinished:
        says.append("Paused: pushes go on, pulls do not. Resume the queue")
    producer = rows.get("producer")
    if producer and producer["state"] in ("killed", "ended"):
        says.append("The producer is dead: nothing can be pushed. Restart producer")
    return _framed("".join(f"<div>→ {text(each, 240)}.</div>" for each in says)) if says else ""


def timeline(view: View) -> str:
    """The newest runs as SVG, by job: back-off waits, leases that run out, kills."""
    if not view["jobs"]:
        return _framed(f'<div style="color:{QUIET}">No job yet: push some.</div>')
    shown = newest(dict(view))
    drawn = html.timeline({**shown, "by": "job", "name": "lab", "width": WIDTH})
    left = ", ".join(times(number, words) for words, number in shown["left_out"].items() if number)
    return _framed(drawn + (f'<div style="color:{QUIET}">Further: {left}</div>' if left else ""))


def events(view: View) -> str:
    """The last events, the newest first; of pushes in a row the last one, and how many they were."""
    told: list[dict[str, Any]] = []
    pushes = 0
    for event in view["events"]:
        pushes = pushes + 1 if event["kind"] == "push" else 0
        if pushes > 1:
            told[-1] = {**event, "detail": f"the last of {pushes:,} pushes in a row"}
        else:
            told.append(event)
    return _framed(html.events({"events": told}))


#: What a panel shows of a view besides its workers, by the name of the piece. A new one is a row here.
PANELS: dict[str, Callable[[View], str]] = {
    "header": header,
    "checks": checks,
    "states": states,
    "columns": columns,
    "mission": mission,
    "hint": hint,
    "timeline": timeline,
    "events": events,
}

FILTERED = {"timeline", "events"}  # the filters choose what these show


def render(view: View, *, failed: bool = False, job: str = "") -> dict[str, str]:
    """All pieces of HTML by name: those of PANELS, and a row for each worker, `worker-w1`."""
    chosen = only(dict(view), failed=failed, job=job)
    pieces = {name: panel(chosen if name in FILTERED else view) for name, panel in PANELS.items()}
    return pieces | {f"worker-{row['name']}": worker(row) for row in view["workers"]}


def _framed(body: str) -> str:
    return f'<div style="{FRAME}">{body}</div>'
