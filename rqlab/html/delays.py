"""How the delay before a retry grows, as SVG: the marks are those of `rqlab.charts.backoff_curves`."""

import math

from rqlab.charts.delays import Delay, Delays
from rqlab.charts.looks import seconds, series
from rqlab.html.plots import MARKERS
from rqlab.html.svg import FAINT, FONT, INK, QUIET, text

WIDTH, HEIGHT = 620, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 84, 24, 40  # pixels around the plot


def delays(drawn: Delays) -> str:
    """The curves as an SVG element, each with its name at its end; with jitter, the band that a delay is drawn from."""
    points = [point for curve in drawn.curves for point in curve]
    last = max((point.attempt for point in points), default=1)
    most = max((point.most for point in points), default=1.0) or 1.0
    least = min((point.least for point in points if point.least > 0), default=most / 10)

    def across(attempt: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (attempt - 1) / max(last - 1, 1)

    def up(delay: float) -> float:
        share = delay / most
        if drawn.logarithmic:
            share = math.log(max(delay, least) / least) / math.log(most / least)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share * 0.96

    looks = series([curve[0].strategy for curve in drawn.curves])
    floor = HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        f'style="max-width:100%;height:auto;{FONT};font-size:11px;color:{INK}" fill="currentColor">'
        f"<title>Delay before a retry</title><desc>{text(drawn.said(), 2000)}</desc>"
        f'<path d="M{LEFT} {TOP}V{floor}H{WIDTH - RIGHT}" stroke="{QUIET}" fill="none"/>'
    ]
    grid, words = [], []
    for at in _ticks(drawn, least, most):
        grid.append(f"M{LEFT} {up(at):.1f}H{WIDTH - RIGHT}")
        words.append(f'<text x="{LEFT - 6}" y="{up(at) + 4:.1f}" text-anchor="end">{seconds(at)}</text>')
    for attempt in range(1, last + 1):
        words.append(f'<text x="{across(attempt):.1f}" y="{floor + 15}" text-anchor="middle">{attempt}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    words.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">attempts that have failed so far</text>')
    scale = "delay (log)" if drawn.logarithmic else "delay"
    words.append(f'<text x="{LEFT}" y="13">{scale}, {text(drawn.settings())}</text>')
    parts.append(f'<path d="{"".join(grid)}" stroke="{FAINT}"/><g fill="{QUIET}">{"".join(words)}</g>')
    for curve in drawn.curves:
        marker, colour, dash = looks[curve[0].strategy]
        line = _line([(across(point.attempt), up(point.delay)) for point in curve])
        if drawn.jitter:
            band = [(across(p.attempt), up(p.most)) for p in curve]
            band += [(across(p.attempt), up(p.least)) for p in reversed(curve)]
            parts.append(f'<path d="{_line(band)}z" fill="{colour}" fill-opacity="0.18"/>')
        dashes = {"--": ' stroke-dasharray="7 4"', "-.": ' stroke-dasharray="7 3 2 3"', ":": ' stroke-dasharray="2 3"'}
        parts.append(f'<path d="{line}" stroke="{colour}" stroke-width="2" fill="none"{dashes.get(dash, "")}/>')
        parts += [_mark(point, across(point.attempt), up(point.delay), marker, colour) for point in curve]
        end = curve[-1]
        x, y = across(end.attempt) + 10, up(end.delay) + 4
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}">{text(end.strategy)}</text>')
    return "".join([*parts, "</svg>"])


def _mark(point: Delay, x: float, y: float, marker: str, colour: str) -> str:
    band = f" ({seconds(point.least)} to {seconds(point.most)})" if point.most > point.least else ""
    said = text(f"{point.strategy}, after attempt {point.attempt}: {seconds(point.delay)}{band}", 100)
    return (
        f'<g transform="translate({x:.1f} {y:.1f}) scale(0.7)" fill="{colour}">{MARKERS[marker]}'
        f"<title>{said}</title></g>"
    )


def _line(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _ticks(drawn: Delays, least: float, most: float) -> list[float]:
    """At most six delays that the axis names: decades on a logarithmic one, round numbers else."""
    if drawn.logarithmic:
        powers = range(math.ceil(math.log10(least) - 1e-9), math.floor(math.log10(most) + 1e-9) + 1)
        return [10.0**power for power in powers][:: 1 + len(powers) // 6]
    step = 10.0 ** math.floor(math.log10(most))
    step = next(step * part for part in (0.2, 0.5, 1.0, 2.0) if most / (step * part) <= 6)
    return [step * number for number in range(1, math.floor(most / step + 1e-9) + 1)]
