"""The same marks as SVG text: what a live panel shows, many times a second and without matplotlib.

Colours of the paper are Jupyter's variables with a fallback, so that one text reads in light and dark.
"""

import math
from html import escape
from typing import NamedTuple

from rqlab.charts.captions import Caption, Mark, captions
from rqlab.charts.histories import moment
from rqlab.charts.looks import BLACK, DOWN, FAULTS, FROZEN, LEASE, OUTCOMES, WAIT, Look, plain, seconds
from rqlab.charts.timelines import BANDS, UNDER, Bar, Link, Timeline

INK = "var(--jp-ui-font-color1, currentColor)"
QUIET = "var(--jp-ui-font-color2, #767676)"
FAINT = "var(--jp-border-color2, #8884)"
PAPER = "var(--jp-layout-color0, #fff)"
POINTER = "#d55e00"
FONT = "font-family:var(--jp-ui-font-family, system-ui, sans-serif)"

LEFT, RIGHT = 92, 24  # pixels beside the lanes
WORD_HIGH = 13  # pixels a line of captions above them
DARK = (BLACK, OUTCOMES["lost"].colour)  # colours that dark paper would hide
LETTER = 6.1  # pixels a letter of 11 px takes, at most on average: texts are kept apart by this

#: Patterns of the second cue, drawn over a fill; the names are matplotlib's hatches.
PATTERNS = {
    "///": '<path d="M0 6L6 0" stroke="{ink}"/>',
    "\\\\\\": '<path d="M0 0L6 6" stroke="{ink}"/>',
    "|||": '<path d="M3 0V6" stroke="{ink}"/>',
    "---": '<path d="M0 3H6" stroke="{ink}"/>',
    "xxx": '<path d="M0 0L6 6M0 6L6 0" stroke="{ink}"/>',
    "...": '<circle cx="3" cy="3" r="1" fill="{ink}"/>',
}


def text(value: object, limit: int = 60) -> str:
    """Text for HTML or SVG: one line, cut, without control characters, escaped for content and attributes."""
    return escape(plain(value, limit), quote=True)


def timeline(drawn: Timeline, width: int = 760, name: str = "rq") -> str:
    """The marks of a timeline as an SVG element, `width` pixels wide; it scales with its container.

    `name` keeps its patterns apart from those of other pictures on the page.
    """
    to, written = _canvas(drawn, width, name)
    lanes, height = _heights(drawn, to, width)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'style="display:block;max-width:100%;height:auto;{FONT};font-size:11px;color:{INK}" fill="currentColor">'
        f"<title>Timeline by {drawn.by}</title><desc>{text(drawn.said(), 2000)}</desc>",
        _patterns(drawn.legend, to.name),
        _axis(drawn, to, lanes),
    ]
    parts += [
        f'<text x="{LEFT - 8}" y="{to.y(middle) + 4:.1f}" text-anchor="end">{text(lane.name, 14)}'
        f"<title>{text(lane.full_name, 80)}</title></text>"
        for middle, lane in drawn.named_lanes(-(-12 // to.pitch))
    ]
    in_layers = sorted(drawn.bars, key=lambda bar: bar.part not in BANDS)
    parts += [_bar(bar, to, drawn.by) for bar in in_layers]
    if drawn.ticks:
        beats = "".join(f"M{to.x(at):.1f} {to.y(row + 0.22):.1f}v4" for row, at in drawn.ticks)
        parts.append(f'<path d="{beats}" stroke="currentColor" fill="none"><title>heartbeats</title></path>')
    parts += [_link(link, to) for link in drawn.links]
    parts += [_mark(mark, to, lanes, drawn.by) for mark in drawn.marks]
    parts += [
        f'<text x="{caption.left:.1f}" y="{to.top - 5 - WORD_HIGH * caption.level}">{text(caption.words)}</text>'
        for caption in written
    ]
    parts.append(_legend(drawn, to.top + lanes + 34, width, to.name))
    parts.append("</svg>")
    return "".join(parts)


def cursor(drawn: Timeline, at: float, width: int = 760) -> str:
    """A line at an instant, and a veil over what is still to come, to be laid over the SVG of the same timeline.

    It takes no height, lies over what stands above it, and lets the mouse through to the hover titles there.
    """
    to, _ = _canvas(drawn, width, "")
    lanes, height = _heights(drawn, to, width)
    x = to.x(min(max(at, drawn.start), drawn.end))
    return (
        '<div style="position:relative;height:0;pointer-events:none" aria-hidden="true">'
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'style="position:absolute;left:0;bottom:0;max-width:100%;height:auto;pointer-events:none">'
        f'<rect x="{x:.1f}" y="{to.top}" width="{width - RIGHT - x:.1f}" height="{lanes}" style="fill:{PAPER}" '
        f'fill-opacity="0.65"/><path d="M{x:.1f} {to.top}v{lanes}" stroke="{POINTER}" stroke-width="2"/>'
        f'<path d="M{x - 5:.1f} {to.top - 7}h10l-5 7z" fill="{POINTER}"/></svg></div>'
    )


class Canvas(NamedTuple):
    """Where things are in pixels."""

    zero: float  #: of the start of time
    scale: float  #: a second
    top: int  #: of the lanes
    pitch: int  #: a row
    name: str  #: of the patterns

    def x(self, at: float) -> float:
        return self.zero + at * self.scale

    def y(self, row: float) -> float:
        """The middle of a row; above it is smaller."""
        return self.top + (row + 0.5) * self.pitch


def _canvas(drawn: Timeline, width: int, name: str) -> tuple[Canvas, list[Caption]]:
    """Where the lanes are, and the captions above them."""
    pitch = 24 if drawn.rows <= 12 else 18 if drawn.rows <= 40 else 12
    scale = (width - LEFT - RIGHT) / (drawn.end - drawn.start)
    zero = LEFT - drawn.start * scale
    written = captions(drawn.marks, lambda at: zero + at * scale, lambda words: len(words) * LETTER + 6, width)
    top = 8 + WORD_HIGH * max((caption.level + 1 for caption in written), default=0)
    safe = "".join(letter for letter in name if letter.isalnum() or letter in "-_") or "rq"
    return Canvas(zero, scale, top, pitch, safe), written


def _heights(drawn: Timeline, to: Canvas, width: int) -> tuple[int, int]:
    """Pixels: of all lanes, and of the whole picture."""
    lanes = max(1, drawn.rows) * to.pitch
    return lanes, to.top + lanes + 22 + 18 * _legend_rows(drawn, width)


def _patterns(legend: tuple[Look, ...], name: str) -> str:
    """One pattern a hatched look, filled with its colour; a wait has its hatch in its colour and no fill."""
    made = []
    for look in legend:
        if look.hatch:
            paper = {WAIT: "none", DOWN: FAINT, FROZEN: FAINT}.get(look, look.colour)
            ink = look.ink if paper == look.colour else look.colour
            fill = f'<rect width="6" height="6" fill="{paper}"/>'
            made.append(
                f'<pattern id="{name}-{_key(look)}" width="6" height="6" patternUnits="userSpaceOnUse">'
                f"{fill}{PATTERNS[look.hatch].format(ink=ink)}</pattern>"
            )
    return f"<defs>{''.join(made)}</defs>" if made else ""


def _key(look: Look) -> str:
    return look.word.replace(" ", "-")


def _fill(look: Look, name: str) -> str:
    """How a look is filled, in SVG's words; the legend shows the same."""
    if look is LEASE:
        return f'fill="none" stroke="{look.colour}" stroke-dasharray="4 2" pointer-events="all"'
    return f'fill="{f"url(#{name}-{_key(look)})" if look.hatch else look.colour}"'


def _axis(drawn: Timeline, to: Canvas, lanes: int) -> str:
    """Lines at round seconds, and what they are."""
    grid, words = [], []
    for at in round_instants(drawn.start, drawn.end):
        grid.append(f"M{to.x(at):.1f} {to.top}v{lanes}")
        words.append(f'<text x="{to.x(at):.1f}" y="{to.top + lanes + 14}" text-anchor="middle">{moment(at)}</text>')
    if drawn.by == "worker":
        wide = (drawn.end - drawn.start) * to.scale
        grid += [f"M{LEFT} {to.y(lane.row - 0.5):.1f}h{wide:.1f}" for lane in drawn.lanes[1:]]
    return f'<path d="{"".join(grid)}" stroke="{FAINT}" fill="none"/><g fill="{QUIET}">{"".join(words)}</g>'


def round_instants(start: float, end: float, most: int = 8) -> list[float]:
    """At most nine round numbers from the start to the end."""
    span = end - start
    step = 10.0 ** math.ceil(math.log10(span / most))
    step = next((step * part for part in (0.2, 0.5) if span / (step * part) <= most), step)
    first = math.ceil(start / step - 1e-9)
    return [round(step * n, 9) for n in range(first, math.floor(end / step + 1e-9) + 1)]


def _bar(bar: Bar, to: Canvas, by: str) -> str:
    x, width = to.x(bar.start), max((bar.end - bar.start) * to.scale - (bar.part == "run"), 1.5)
    above, share = bar.box(by)
    top, high = to.y(bar.row - above), share * to.pitch
    drawn = (
        f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{high:.1f}" {_fill(bar.look, to.name)}>'
        f"<title>{text(bar.said(), 200)}</title></rect>"
    )
    if width < 13 or to.pitch < 14:
        return drawn
    words = bar.words(by, lambda words: len(words) == 1 or width >= len(words) * LETTER + 6)
    if not words:
        return drawn
    middle = x + width / 2
    wide = min(max(len(words) * LETTER + 2, 13), width)
    cover = (
        f'<rect x="{middle - wide / 2:.1f}" y="{top + 2:.1f}" width="{wide:.1f}" height="{high - 4:.1f}" '
        f'fill="{bar.look.colour}"/>'
        if bar.look.hatch
        else ""
    )
    return (
        f'{drawn}<g pointer-events="none">{cover}<text x="{middle:.1f}" y="{top + high / 2 + 4:.1f}" '
        f'text-anchor="middle" fill="{bar.look.ink}">{text(words)}</text></g>'
    )


def _link(link: Link, to: Canvas) -> str:
    """From the end of a lease to the next run of its job, with a point."""
    x, y = to.x(link.to), to.y(link.to_row + (0.37 if link.to_row < link.row else -0.37))
    start = to.x(link.at), to.y(link.row - 0.44)
    far = math.hypot(x - start[0], y - start[1]) or 1.0
    along, across = (x - start[0]) / far, (y - start[1]) / far
    wings = "".join(
        f"M{x:.1f} {y:.1f}l{-6 * along + 3 * side * across:.1f} {-6 * across - 3 * side * along:.1f}"
        for side in (1, -1)
    )
    return (
        f'<path d="M{start[0]:.1f} {start[1]:.1f}L{x:.1f} {y:.1f}{wings}" stroke="{LEASE.colour}" fill="none">'
        "<title>taken back, runs again</title></path>"
    )


def _mark(mark: Mark, to: Canvas, lanes: int, by: str) -> str:
    """The line of a fault, or a glyph in its row."""
    x = to.x(mark.at)
    colour = "currentColor" if mark.look.colour in DARK else mark.look.colour
    said = text(f"{mark.label}, at {seconds(round(mark.at, 3))}", 120)
    if mark.reach == "here" and mark.row is not None:
        aside = f'x="{x + 2:.1f}"' if by == "job" else f'x="{x:.1f}" text-anchor="middle"'
        y = to.y(mark.row + (0 if by == "job" else UNDER)) + 4
        return (
            f'<text {aside} y="{y:.1f}" fill="{colour}" font-weight="bold">{mark.look.glyph}'
            f"<title>{said}</title></text>"
        )
    if mark.reach == "above":
        return ""
    top, high = (float(to.top), lanes) if mark.row is None else (to.y(mark.row - 0.5), mark.rows * to.pitch)
    wide, dash = (2.5, "") if mark.stops else (1.5, ' stroke-dasharray="4 2"')
    return (
        f'<path d="M{x:.1f} {top:.1f}v{high:.1f}" stroke="{colour}" stroke-width="{wide}"{dash}>'
        f"<title>{said}</title></path>"
    )


def _legend_places(drawn: Timeline, width: int) -> list[tuple[float, int]]:
    places, x, row = [], 0.0, 0
    for look in drawn.legend:
        wide = 24 + len(look.label) * LETTER + 12
        if x + wide > width and x:
            x, row = 0.0, row + 1
        places.append((x, row))
        x += wide
    return places


def _legend_rows(drawn: Timeline, width: int) -> int:
    return max((row for _, row in _legend_places(drawn, width)), default=-1) + 1


def _legend(drawn: Timeline, y: float, width: int, name: str) -> str:
    parts = []
    for look, (x, row) in zip(drawn.legend, _legend_places(drawn, width), strict=True):
        low = y + 18 * row
        if look.glyph != FAULTS["refused"].glyph:
            parts.append(f'<rect x="{x + 1:.0f}" y="{low - 9}" width="18" height="11" {_fill(look, name)}/>')
        parts.append(f'<text x="{x + 24:.0f}" y="{low}">{text(look.label)}</text>')
    return "".join(parts)
