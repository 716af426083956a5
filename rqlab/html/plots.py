"""The trade-off as SVG, for a panel that draws it while rows arrive; the marks are those of `rqlab.charts.tradeoff`."""

import math
from collections.abc import Callable
from itertools import product

from rqlab.charts.looks import count, seconds, series
from rqlab.charts.tradeoffs import SHORT, Tradeoff
from rqlab.html.svg import FAINT, FONT, INK, LETTER, QUIET, text

WIDTH, HEIGHT = 620, 340
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 26, 52  # pixels around the plot
LINE = 13  # pixels a line of a label

#: Markers by matplotlib's letters, around 0, 0.
MARKERS = {
    "o": '<circle r="6"/>',
    "s": '<path d="M-5-5H5V5H-5z"/>',
    "^": '<path d="M0-6L6 5H-6z"/>',
    "v": '<path d="M0 6L6-5H-6z"/>',
    "D": '<path d="M0-7L7 0 0 7-7 0z"/>',
    "P": '<path d="M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2z"/>',
    "X": '<path d="M-6-3L-3-6 0-3 3-6 6-3 3 0 6 3 3 6 0 3-3 6-6 3-3 0z"/>',
    "*": '<path d="M0-7L2-2H7L3 1 5 6 0 3-5 6-3 1-7-2H-2z"/>',
}

Scale = Callable[[float], float]  # a value's pixel
Box = tuple[float, float, float, float]  # left, top, right, bottom


def tradeoff(drawn: Tradeoff) -> str:
    """The marks as an SVG element; it scales with its container."""
    low, high = drawn.edges()
    least, most = drawn.heights()

    def across(loss: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(loss / low) / math.log(high / low)

    def up(rate: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * math.log(rate / least) / math.log(most / least)

    floor = HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'style="max-width:100%;height:auto;{FONT};font-size:11px;color:{INK}" fill="currentColor">'
        f"<title>Throughput against loss window</title><desc>{text(drawn.said(), 2000)}</desc>"
    ]
    for left, right in ((low, drawn.span[0]), (drawn.span[1], high)):
        wide = across(right) - across(left)
        parts.append(
            f'<rect x="{across(left):.1f}" y="{TOP}" width="{wide:.1f}" height="{floor - TOP}" fill="{FAINT}" '
            'fill-opacity="0.4"/>'
        )
    grid = "".join(f"M{LEFT} {up(rate):.1f}H{WIDTH - RIGHT}" for rate in drawn.rates())
    grid += "".join(f"M{across(at):.1f} {TOP}V{floor}" for at in drawn.decades())
    parts.append(
        f'<path d="{grid}" stroke="{FAINT}"/><path d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}" stroke="{QUIET}" '
    )
    parts.append('fill="none"/>')
    broken = "".join(f"M{across(at) + by:.1f} {floor + 5}l4-10" for at, by in product(drawn.span, (-5, -1)))
    parts.append(f'<path d="{broken}" stroke="currentColor"/><g fill="{QUIET}" text-anchor="middle">')
    parts += [f'<text x="{across(at):.1f}" y="{floor + 15}">{seconds(at)}</text>' for at in drawn.decades()]
    for loss, words in ((0.0, "nothing lost"), (math.inf, "everything lost")):
        first, second = words.split()
        x = across(drawn.place(loss))
        parts.append(f'<text x="{x:.1f}" y="{floor + 15}">{first}<tspan x="{x:.1f}" dy="12">{second}</tspan></text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}">loss window at a crash (log)</text></g>')
    parts.append(f'<g fill="{QUIET}" text-anchor="end">')
    parts += [f'<text x="{LEFT - 5}" y="{up(rate) + 4:.1f}">{count(rate)}</text>' for rate in drawn.rates()]
    callers = f"{drawn.callers} caller{'s' if drawn.callers != 1 else ''}"
    parts.append(f'</g><text x="{LEFT}" y="14" fill="{QUIET}">{SHORT[drawn.throughput]} (log), {callers}</text>')
    parts += _points(drawn, across, up)
    if drawn.unplaced:
        words = "; ".join(f"{point.mode} {count(point.rate)}/s" for point in drawn.unplaced)
        said = text(f"loss not measured: {words}", 70)
        parts.append(f'<text x="{WIDTH - RIGHT}" y="14" text-anchor="end" fill="{QUIET}">{said}</text>')
    return "".join([*parts, "</svg>"])


def _points(drawn: Tradeoff, across: Scale, up: Scale) -> list[str]:
    """Bars, markers, and labels where nothing else is."""
    looks = series([point.mode for point in drawn.points])
    parts, labels = [], []
    taken: list[Box] = []
    for point in drawn.points:
        x, y = across(drawn.place(point.loss)), up(point.rate)
        left, right = (across(drawn.place(at)) for at in (point.loss_low, point.loss_high))
        low, high = up(point.rate_low), up(point.rate_high)
        taken += [(left - 6, y - 7, right + 6, y + 7), (x - 7, high - 3, x + 7, low + 3)]
        marker, colour, _ = looks[point.mode]
        bars = f"M{left:.1f} {y:.1f}H{right:.1f}M{x:.1f} {high:.1f}V{low:.1f}"
        for at in (left, right):
            bars += f"M{at:.1f} {y - 3:.1f}v6"
        for at in (low, high):
            bars += f"M{x - 3:.1f} {at:.1f}h6"
        parts.append(
            f'<path d="{bars}" stroke="{QUIET}" stroke-width="1.2"/><g transform="translate({x:.1f} {y:.1f})" '
            f'fill="{colour}" stroke="currentColor">{MARKERS[marker]}'
            f"<title>{text(point.mode)}: {point.kept}</title></g>"
        )
        labels.append((x, y, point.label().split("\n")))
    for x, y, lines in labels:
        box = _free(x, y, lines, taken)
        taken.append(box)
        spans = "".join(
            f'<tspan x="{box[0]:.1f}" y="{box[1] + 10 + LINE * n:.1f}">{text(line)}</tspan>'
            for n, line in enumerate(lines)
        )
        gap = max(box[0] - x, x - box[2], box[1] - y, y - box[3])
        if gap > 16:
            near = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
            parts.append(
                f'<path d="M{x:.1f} {y:.1f}L{near[0]:.1f} {near[1]:.1f}" stroke="{QUIET}" stroke-width="0.7"/>'
            )
        parts.append(f"<text>{spans}</text>")
    return parts


def _free(x: float, y: float, lines: list[str], taken: list[Box]) -> Box:
    """The nearest box for a label that is inside the plot and meets no other; the last one tried, if there is none."""
    wide, high = max(map(len, lines)) * LETTER, len(lines) * LINE
    box = (x + 10, y - high / 2, x + 10 + wide, y + high / 2)
    for far in range(10, 240, 12):
        for left, top in (
            (x + far, y - high / 2), (x - far - wide, y - high / 2), (x - wide / 2, y - far - high),
            (x - wide / 2, y + far), (x + far / 2, y - far - high), (x - far / 2 - wide, y - far - high),
            (x + far / 2, y + far), (x - far / 2 - wide, y + far),
        ):  # fmt: skip
            box = (left, top, left + wide, top + high)
            inside = box[0] >= LEFT + 2 and box[1] >= TOP - 8 and box[2] <= WIDTH and box[3] <= HEIGHT - BOTTOM
            if inside and not any(_meet(box, other) for other in taken):
                return box
    return box


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
