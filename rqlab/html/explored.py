"""The scrubber's words as HTML: the caption of an event, and how things stood after it. Sent again at each step."""

from collections.abc import Mapping, Sequence

from rqlab.charts.histories import moment
from rqlab.html import FRAME, LEFT, NUMBERS, state_bar
from rqlab.html.svg import QUIET, text
from rqlab.job import State

MOST_WORKERS = 16

Cause = tuple[float, str]  # when, and the sentence


def caption(place: str, at: float, says: str, causes: Sequence[Cause], glyph: str = "") -> str:
    """The sentence of an event, and because of what it happened. Its height is the same whatever it says."""
    because = "".join(
        f'<div style="color:{QUIET}">↳ because, at {moment(when)}: {text(cause, 240)}</div>' for when, cause in causes
    )
    return (
        f'<div style="{FRAME};{NUMBERS};min-height:72px" aria-live="polite">'
        f'<div style="color:{QUIET}">{text(place)}, at {moment(at)}</div>'
        f'<div style="font-size:15px"><b>{text(glyph)} {text(says, 300)}</b></div>{because}</div>'
    )


def standing(counts: Mapping[str, int], workers: Sequence[tuple[str, str, str]]) -> str:
    """Jobs by state, and a line a worker: name, what it is at, what it holds."""
    lost = counts.get("lost", 0)
    gone = f'<div style="{NUMBERS}">∅ lost <b>{lost:,}</b></div>' if lost else ""
    head = "".join(f"<th{LEFT}>{name} </th>" for name in ("worker", "is", "holds"))
    lines = "".join(
        f"<tr>{''.join(f'<td{LEFT}>{text(fact, 120)} </td>' for fact in worker)}</tr>"
        for worker in workers[:MOST_WORKERS]
    )
    left = len(workers) - MOST_WORKERS
    more = f"<div>and {left} more workers</div>" if left > 0 else ""
    style = f"border-spacing:10px 0;margin:4px 0;min-width:420px;font-size:inherit;color:inherit;{NUMBERS}"
    shown = {str(state): counts.get(state, 0) for state in State}
    table = f'<table style="{style}"><tr>{head}</tr>{lines}</table>'
    return f'<div style="{FRAME}">{state_bar(shown)}{gone}{table}{more}</div>'
