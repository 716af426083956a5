"""A verdict with tables under it: what an exploration or a comparison shows of itself in a notebook."""

from collections.abc import Sequence
from typing import NamedTuple

from rqlab.charts.looks import plain
from rqlab.html import FRAME, LEFT, MONO, NUMBERS, RIGHT
from rqlab.html.svg import FAINT, text

HELD, BROKEN, OPEN = "#00694d", "#a32e00", "#595959"  # white text reads on each

MOST_LINES = 24
SHORT = 30  # characters
MOST_CELL = 600  # characters


class Grid(NamedTuple):
    """A table of text; columns named in `words` are aligned to the left, the others are figures."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[str] = frozenset()


def card(
    verdict: str,
    colour: str,
    title: str,
    above: Sequence[Grid] = (),
    lines: Sequence[str] = (),
    below: Sequence[Grid] = (),
) -> str:
    """The verdict as a light and a title, tables, lines to copy from, and more tables. Everything is escaped."""
    light = (
        f'<span style="background:{colour};color:#fff;padding:2px 8px;border-radius:3px"><b>{text(verdict, 40)}</b>'
        "</span>"
    )
    parts = [f"<div>{light} {text(title, 300)}</div>", *map(_table, above)]
    if lines:
        shown = "\n".join(text(plain(line, 400), 400) for line in lines[:MOST_LINES])
        more = f"\nand {len(lines) - MOST_LINES} more" if len(lines) > MOST_LINES else ""
        style = f"{MONO};white-space:pre-wrap;overflow-wrap:anywhere;margin:6px 0;color:inherit;background:none"
        parts.append(f'<pre style="{style};border-left:2px solid {FAINT};padding:0 8px">{shown}{more}</pre>')
    parts += map(_table, below)
    return f'<div style="{FRAME}">{"".join(parts)}</div>'


def _table(grid: Grid) -> str:
    sides = [LEFT if name in grid.words else RIGHT for name in grid.head]
    head = _row("th", grid.head, sides)
    body = "\n".join(_row("td", row, sides) for row in grid.rows)
    style = f"border-collapse:separate;border-spacing:10px 0;margin:4px 0;font-size:inherit;color:inherit;{NUMBERS}"
    return f'\n<table style="{style}">{head}\n{body}</table>\n'


def _row(tag: str, cells: Sequence[str], sides: Sequence[str]) -> str:
    told = [
        f"<{tag}{_whole(cell, side)}>{text(cell, MOST_CELL)} </{tag}>" for cell, side in zip(cells, sides, strict=True)
    ]
    return f"<tr>{''.join(told)}</tr>"


def _whole(cell: str, side: str) -> str:
    """The style of a cell: a short one is not broken in the middle of a word."""
    return f'{side[:-1]};white-space:nowrap"' if len(cell) <= SHORT else side
