"""What is on the platter, as SVG: the marks are those of `rqlab.charts.platters`."""

from collections.abc import Iterable

from rqlab.charts.looks import Look, plain
from rqlab.charts.platters import CELLS_A_ROW, DRAWN_WRITES, MEMORY, MEMORY_IS, PIECES, SECTORS, Cell, PlatterView, grid
from rqlab.html.svg import FAINT, FONT, INK, LETTER, PATTERNS, QUIET, text

LEFT, CELL, ROW, LINE = 4, 6, 9, 18  # pixels: the margin, a cell's width and height, a line of words
WIDTH = 2 * LEFT + CELLS_A_ROW * CELL
ROOM = "room"  # the pattern of cells that no file has


def platter(view: PlatterView, name: str = "rq-platter") -> str:
    """The strips as an SVG element; it scales with its container. Below 20 kB, however large the files are.

    `name` keeps its patterns apart from those of other pictures on the page.
    """
    name = "".join(letter for letter in name if letter.isalnum() or letter in "-_") or "rq"
    parts: list[str] = []
    y = 0

    def words(said: str, bold: int = 0) -> None:
        nonlocal y
        y += LINE
        parts.append(_words(y - 5, plain(said, 300), bold))

    def strip(rows: int, *cells: str) -> None:
        nonlocal y
        parts.append(f'<g transform="translate({LEFT} {y})">{"".join(cells)}</g>')
        y += rows * ROW + 6

    if view.crash and view.strips:
        words(view.crash_said(), 300)
        if view.has_pieces():
            words(PIECES)
    if not view.strips:
        for line in view.lines():
            words(line)
    else:
        words(f"{MEMORY_IS} {view.memory_said()}", len(MEMORY_IS))
        if view.may_be_in_memory:
            writes = [Cell(0, 0, min(view.in_memory, DRAWN_WRITES), "memory")] if view.in_memory else []
            look = SECTORS["lost"] if view.crash else MEMORY
            strip(1, _path([Cell(0, 0, DRAWN_WRITES, "")], ROOM, name), _path(writes, _key(look), name))
    for each in view.strips:
        laid = grid(each)
        several = f" {laid.sectors} sectors a square." if laid.sectors > 1 else ""
        words(f"{each.head()}:{several} {each.said()}", len(each.name))
        rows = [Cell(row, 0, min(CELLS_A_ROW, laid.room - row * CELLS_A_ROW), "") for row in range(laid.rows)]
        by_look = {where: [cell for cell in laid.cells if cell.where == where] for where in SECTORS}
        strip(
            laid.rows, _path(rows, ROOM, name),
            *(_path(cells, _key(SECTORS[where]), name) for where, cells in by_look.items()),
        )  # fmt: skip
    legend = _legend(view, y, name)
    high = y + (LINE if legend else 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {high}" width="{WIDTH}" role="img" '
        f'style="max-width:100%;height:auto;{FONT};font-size:11px;color:{INK}" fill="currentColor">'
        f"<title>The platter</title><desc>{text(view.said(), 2000)}</desc>"
        f"{_patterns(name)}{''.join(parts)}{legend}</svg>"
    )


def shown(view: PlatterView) -> str:
    """The picture, and the same in words for pages that strip it."""
    lines = "\n".join(text(line, 300) for line in repr(view).splitlines())
    return (
        f'<div style="{FONT};font-size:13px">{platter(view)}<details><summary>in words</summary>'
        f'<pre style="white-space:pre-wrap;color:inherit;background:none">{lines}</pre></details></div>'
    )


def _words(y: int, said: str, bold: int) -> str:
    """A line, its first letters bold, cut where the picture ends."""
    said = plain(said, int((WIDTH - 2 * LEFT) / LETTER * 1.12))
    first, rest = text(said[:bold], 300), text(said[bold:], 300)
    return f'<text x="{LEFT}" y="{y}"><tspan font-weight="bold">{first}</tspan>{rest}</text>'


def _path(cells: Iterable[Cell], key: str, name: str) -> str:
    """All cells of one look in one path: a strip of a thousand sectors is a few hundred bytes."""
    drawn = "".join(
        f"M{cell.column * CELL} {cell.row * ROW}h{cell.wide * CELL}v{ROW}h-{cell.wide * CELL}z" for cell in cells
    )
    return f'<path d="{drawn}" fill="url(#{name}-{key})"/>' if drawn else ""


def _patterns(name: str) -> str:
    """A cell of each look, with its second cue and a gap around it."""
    made = [
        _pattern(f"{name}-{_key(look)}", look.colour, PATTERNS[look.hatch].format(ink=look.ink) if look.hatch else "")
        for look in (*SECTORS.values(), MEMORY)
    ]
    return f"<defs>{''.join(made)}{_pattern(f'{name}-{ROOM}', FAINT)}</defs>"


def _pattern(key: str, fill: str, hatch: str = "") -> str:
    return (
        f'<pattern id="{key}" width="{CELL}" height="{ROW}" patternUnits="userSpaceOnUse">'
        f'<rect width="{CELL - 1}" height="{ROW - 1}" fill="{fill}"/>{hatch}</pattern>'
    )


def _key(look: Look) -> str:
    return next((where for where, each in SECTORS.items() if each is look), "memory")


def _legend(view: PlatterView, y: int, name: str) -> str:
    """All looks that a platter may have, so that a reader knows what has not happened."""
    parts, x = [], float(LEFT)
    for look in (*([MEMORY] if view.may_be_in_memory else []), *SECTORS.values()) if view.strips else ():
        parts.append(
            f'<g transform="translate({x:.0f} {y + 4})">{_path([Cell(0, 0, 2, "")], _key(look), name)}'
            f'<text x="{2 * CELL + 3}" y="8" fill="{QUIET}">{text(look.word)}</text></g>'
        )
        x += 2 * CELL + 3 + len(look.word) * LETTER + 12
    return "".join(parts)
