"""The same marks as SVG text: what a live panel shows, many times a second and without matplotlib.

Colours of the paper are Jupyter's variables with a fallback, so that one text reads in light and dark.
"""

import math
from html import escape

from rqlab.charts.histories import moment
from rqlab.charts.looks import FAULTS, LEASE, WAIT, Look, plain, seconds
from rqlab.charts.timelines import Bar, Timeline

INK = "var(--jp-ui-font-color1, currentColor)"
QUIET = "var(--jp-ui-font-color2, #767676)"
FAINT = "var(--jp-border-color2, #8884)"
PAPER = "var(--jp-layout-color0, #fff)"
POINTER = "#d55e00"
FONT = "font-family:var(--jp-ui-font-family, system-ui, sans-serif)"

LEFT, RIGHT, TOP = 92, 24, 45  # pixels beside and above the lanes
WORD_ROWS, WORD_HIGH = 3, 13  # of the words of faults, above the lanes: they fill TOP
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
    name = "".join(letter for letter in name if letter.isalnum() or letter in "-_") or "rq"
    pitch, lanes, height = _heights(drawn, width)
    scale = (width - LEFT - RIGHT) / (drawn.end - drawn.start)
    zero = LEFT - drawn.start * scale
    words = _words(drawn, zero, scale, width)
    empty = WORD_HIGH * (WORD_ROWS - 1 - max((row for _, row, _ in words), default=-1))  # above the words
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {empty} {width} {height - empty}" '
        f'width="{width}" role="img" fill="currentColor" '
        f'style="display:block;max-width:100%;height:auto;{FONT};font-size:11px;color:{INK}">'
        f"<title>Timeline by {drawn.by}</title><desc>{text(drawn.said(), 2000)}</desc>",
        _patterns(drawn.legend, name),
        _axis(drawn, zero, scale, pitch, lanes),
    ]
    skip = -(-12 // pitch)
    last = -skip
    for lane in drawn.lanes:
        middle = lane.row + (lane.rows - 1) / 2
        if middle - last >= skip:
            y = TOP + (middle + 0.5) * pitch + 4
            parts.append(
                f'<text x="{LEFT - 8}" y="{y:.1f}" text-anchor="end">{text(lane.name, 14)}'
                f"<title>{text(lane.full_name, 80)}</title></text>"
            )
            last = middle  # type: ignore[assignment]
    parts += [_bar(bar, zero, scale, pitch, name, drawn.by) for bar in drawn.bars]
    if drawn.ticks:
        beats = "".join(f"M{zero + at * scale:.1f} {TOP + (row + 0.72) * pitch:.1f}v4" for row, at in drawn.ticks)
        parts.append(f'<path d="{beats}" stroke="currentColor" fill="none"><title>heartbeats</title></path>')
    parts += _marks(drawn, zero, scale, pitch, lanes)
    parts += [f'<text x="{x:.1f}" y="{TOP - 5 - WORD_HIGH * row}">{text(said)}</text>' for x, row, said in words]
    parts.append(_legend(drawn, TOP + lanes + 34, width, name))
    parts.append("</svg>")
    return "".join(parts)


def cursor(drawn: Timeline, at: float, width: int = 760) -> str:
    """A line at an instant, and a veil over what is still to come, to be laid over the SVG of the same timeline.

    It takes no height, lies over what stands above it, and lets the mouse through to the hover titles there.
    """
    _, lanes, height = _heights(drawn, width)
    scale = (width - LEFT - RIGHT) / (drawn.end - drawn.start)
    x = LEFT + (min(max(at, drawn.start), drawn.end) - drawn.start) * scale
    return (
        '<div style="position:relative;height:0;pointer-events:none" aria-hidden="true">'
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'style="position:absolute;left:0;bottom:0;max-width:100%;height:auto;pointer-events:none">'
        f'<rect x="{x:.1f}" y="{TOP}" width="{width - RIGHT - x:.1f}" height="{lanes}" style="fill:{PAPER}" '
        f'fill-opacity="0.65"/><path d="M{x:.1f} {TOP}v{lanes}" stroke="{POINTER}" stroke-width="2"/>'
        f'<path d="M{x - 5:.1f} {TOP - 7}h10l-5 7z" fill="{POINTER}"/></svg></div>'
    )


def _heights(drawn: Timeline, width: int) -> tuple[int, int, int]:
    """Pixels: of a row, of all lanes, of the whole picture."""
    pitch = 24 if drawn.rows <= 12 else 18 if drawn.rows <= 40 else 12
    lanes = max(1, drawn.rows) * pitch
    return pitch, lanes, TOP + lanes + 22 + 18 * _legend_rows(drawn, width)


def _patterns(legend: tuple[Look, ...], name: str) -> str:
    """One pattern a hatched look, filled with its colour; a wait has its hatch in its colour and no fill."""
    made = []
    for look in legend:
        if look.hatch:
            bare = look is WAIT
            fill = "" if bare else f'<rect width="6" height="6" fill="{look.colour}"/>'
            lines = PATTERNS[look.hatch].format(ink=look.colour if bare else look.ink)
            made.append(
                f'<pattern id="{name}-{_key(look)}" width="6" height="6" patternUnits="userSpaceOnUse">'
                f"{fill}{lines}</pattern>"
            )
    return f"<defs>{''.join(made)}</defs>" if made else ""


def _key(look: Look) -> str:
    return look.word.replace(" ", "-")


def _fill(look: Look, name: str) -> str:
    return f"url(#{name}-{_key(look)})" if look.hatch else look.colour


def _axis(drawn: Timeline, zero: float, scale: float, pitch: int, lanes: int) -> str:
    """Lines at round seconds, and what they are."""
    grid, words = [], []
    for at in round_instants(drawn.start, drawn.end):
        x = zero + at * scale
        grid.append(f"M{x:.1f} {TOP}v{lanes}")
        words.append(f'<text x="{x:.1f}" y="{TOP + lanes + 14}" text-anchor="middle">{moment(at)}</text>')
    if drawn.by == "worker":
        grid += [
            f"M{LEFT} {TOP + lane.row * pitch}h{(drawn.end - drawn.start) * scale:.1f}" for lane in drawn.lanes[1:]
        ]
    return f'<path d="{"".join(grid)}" stroke="{FAINT}" fill="none"/><g fill="{QUIET}">{"".join(words)}</g>'


def round_instants(start: float, end: float, most: int = 8) -> list[float]:
    """At most nine round numbers from the start to the end."""
    span = end - start
    step = 10.0 ** math.ceil(math.log10(span / most))
    step = next((step * part for part in (0.2, 0.5) if span / (step * part) <= most), step)
    first = math.ceil(start / step - 1e-9)
    return [round(step * n, 9) for n in range(first, math.floor(end / step + 1e-9) + 1)]


def _bar(bar: Bar, zero: float, scale: float, pitch: int, name: str, by: str) -> str:
    x, width = zero + bar.start * scale, max((bar.end - bar.start) * scale - (bar.part == "run"), 1.5)
    y = TOP + bar.row * pitch
    look = bar.look
    share = {"run": 0.74, "wait": 0.5, "lease": 0.5, "in line": 0.12}[bar.part]
    high = pitch * share
    top = y + (pitch - high) / 2
    fill = f'fill="{_fill(look, name)}"'
    if bar.part == "lease":
        fill = f'fill="none" stroke="{look.colour}" stroke-dasharray="4 2" pointer-events="all"'
    drawn = (
        f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{high:.1f}" {fill}>'
        f"<title>{text(bar.said(), 200)}</title></rect>"
    )
    if bar.part != "run" or width < 13 or pitch < 14 or (by == "job" and bar.outcome == "completed"):
        return drawn
    words = f"{look.glyph} {bar.name}"
    words = words if by == "worker" and width >= len(words) * LETTER + 6 else look.glyph
    middle = x + width / 2
    wide = min(max(len(words) * LETTER + 2, 13), width)
    cover = (
        f'<rect x="{middle - wide / 2:.1f}" y="{top + 2:.1f}" width="{wide:.1f}" height="{high - 4:.1f}" '
        f'fill="{look.colour}"/>'
        if look.hatch
        else ""
    )
    return (
        f'{drawn}<g pointer-events="none">{cover}<text x="{middle:.1f}" y="{top + high / 2 + 4:.1f}" '
        f'text-anchor="middle" fill="{look.ink}">{text(words)}</text></g>'
    )


def _marks(drawn: Timeline, zero: float, scale: float, pitch: int, lanes: int) -> list[str]:
    """Lines of faults, and the final glyphs."""
    parts = []
    for mark in drawn.marks:
        x = zero + mark.at * scale
        colour = "currentColor" if mark.look.colour == "#000000" else mark.look.colour
        if not mark.fault:
            y = TOP + ((mark.row or 0) + 0.5) * pitch + 4
            parts.append(
                f'<text x="{x + 2:.1f}" y="{y:.1f}" fill="{colour if mark.look.word != "lost" else "currentColor"}" '
                f'font-weight="bold">{mark.look.glyph}<title>{text(mark.look.word)}</title></text>'
            )
            continue
        top, high = (TOP, lanes) if mark.row is None else (TOP + mark.row * pitch, pitch)
        said = text(f"{mark.label}, at {seconds(round(mark.at, 3))}", 120)
        parts.append(
            f'<path d="M{x:.1f} {top}v{high}" stroke="{colour}" stroke-width="2" stroke-dasharray="4 2">'
            f"<title>{said}</title></path>"
        )
    return parts


def _words(drawn: Timeline, zero: float, scale: float, width: int) -> list[tuple[float, int, str]]:
    """The words above the lines of faults, as far as there is room: (left, row, words). A power cut's come first.

    They are in the ink of the page: in the colours of their lines they could not be read. At the right edge, where the
    newest are, they move in.
    """
    taken: list[list[tuple[float, float]]] = [[] for _ in range(WORD_ROWS)]
    placed = []
    for mark in sorted((mark for mark in drawn.marks if mark.fault), key=lambda mark: mark.look != FAULTS["power cut"]):
        for words in (mark.label, mark.look.glyph):
            wide = len(words) * LETTER + 6
            left = min(zero + mark.at * scale - 3, width - wide)
            free = [n for n, row in enumerate(taken) if all(left + wide + 3 <= a or b <= left for a, b in row)]
            if free:
                taken[free[0]].append((left, left + wide + 3))
                placed.append((left, free[0], words))
                break
    return placed


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


def _legend(drawn: Timeline, y: int, width: int, name: str) -> str:
    parts = []
    for look, (x, row) in zip(drawn.legend, _legend_places(drawn, width), strict=True):
        low = y + 18 * row
        fill = (
            f'fill="none" stroke="{LEASE.colour}" stroke-dasharray="4 2"'
            if look is LEASE
            else f'fill="{_fill(look, name)}"'
        )
        parts.append(
            f'<rect x="{x + 1:.0f}" y="{low - 9}" width="18" height="11" {fill}/>'
            f'<text x="{x + 24:.0f}" y="{low}">{text(look.label)}</text>'
        )
    return "".join(parts)
