"""What of a store's files is on the platter at one instant: each file as a strip of sectors, by where its bytes are.

A write goes three ways down: the process's memory, which `kill -9` takes; the page cache, which a power cut takes; the
platter. `rqlab.simulation.sectors` finds out where each sector is; `draw` puts the strips on matplotlib's axes, and
`rqlab.html.platter` writes them as SVG.
"""

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from rqlab.charts.chart import Chart, dress, new_axes
from rqlab.charts.histories import moment, times
from rqlab.charts.looks import GREEN, ORANGE, SKY, VERMILLION, YELLOW, Look, Theme, count, plain, theme

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

SECTOR = 512  # bytes; what a disk writes whole or not at all, at the least
CELLS_A_ROW = 120
MOST_ROWS = 4  # a longer file has several sectors in a cell
DRAWN_WRITES = 60  # in a process's memory; more are counted

#: Where a sector is. What stands further down shows where several share a cell: trouble is not to be hidden.
SECTORS: dict[str, Look] = {
    "durable": Look("on the platter", GREEN, "■"),
    "kept": Look("survived unsynced", SKY, "▤", "---"),
    "cached": Look("in the page cache only", ORANGE, "▨", "///"),
    "lost": Look("lost", VERMILLION, "▩", "xxx"),
    "torn": Look("torn", YELLOW, "▥", "|||"),
}
MEMORY = Look("in memory only", "#0072b2", "▢", "\\\\\\")
MEMORY_IS = "memory of the process:"
LOG = "-wal"  # how the name of SQLite's log ends; each commit is synced before the next is written
#: Why sectors that survived do not save a job: nobody can read it off the squares.
PIECES = "A commit counts only if the log has all of it: SQLite ignores these pieces, also what survived unsynced."
TWO_CHANGES = "(an ack with the next pull: two changes, one write)"  # else it seems to contradict the writes lost


class Sectors(NamedTuple):
    """Neighbours that are in the same place."""

    start: int
    length: int
    where: str  #: a key of SECTORS


class Strip(NamedTuple):
    """One file."""

    name: str
    says: str  #: what it is for
    size: int  #: bytes
    runs: tuple[Sectors, ...]  #: in order, without gaps
    room: int  #: sectors that it ever has in this run: so that nothing jumps as it grows
    note: str = ""  #: of its name: made or deleted, and not safe yet

    def counts(self) -> dict[str, int]:
        """Sectors by where they are; nothing is left out."""
        counted = {where: sum(run.length for run in self.runs if run.where == where) for where in SECTORS}
        return {where: number for where, number in counted.items() if number}

    def said(self) -> str:
        """The strip in words."""
        if not self.runs:
            return self.note or "empty"
        several = times(sum(self.counts().values()), "sector")
        parts = ", ".join(f"{number:,} {SECTORS[where].word}" for where, number in self.counts().items())
        return f"{several}: {parts}" + (f" ({self.note})" if self.note else "")

    def head(self) -> str:
        """The file, and what it is for."""
        return (
            f"{plain(self.name)} {self.says} ({size(self.size)})"
            if self.says
            else f"{plain(self.name)} ({size(self.size)})"
        )


class PlatterView(NamedTuple):
    """The store's files at one instant of a simulation."""

    at: float  #: seconds
    event: int  #: what has happened by then: the number of the newest event
    mode: str
    strips: tuple[Strip, ...]
    in_memory: int  #: acknowledged changes of jobs that no file has yet; one write may make several
    may_be_in_memory: bool  #: whether the mode answers before a file has the write
    crash: str = ""  #: "kill", or the kind of the power cut that came at this instant
    crash_says: str = ""
    operations: int = 0  #: of the disk, so far

    def lines(self) -> Iterator[str]:
        """The picture in words, a line a part."""
        if not self.strips and not self.operations:
            yield f"{self.mode}: there is no platter. No file is ever written; what ends the process takes everything"
            return
        if self.crash:
            yield self.crash_said()
            if self.has_pieces():
                yield PIECES
        yield f"{MEMORY_IS} {self.memory_said()}"
        for strip in self.strips:
            yield f"{strip.head()}: {strip.said()}"

    def crash_said(self) -> str:
        """What struck at this instant, and what it leaves."""
        said = "⚡ kill -9" if self.crash == "kill" else f"⌁ power cut, {plain(self.crash, 20)}"
        return f"{said}: {plain(self.crash_says, 200)}"

    def has_pieces(self) -> bool:
        """Whether a power cut left some of a commit in the log, and not all of it."""
        logs = [strip.counts() for strip in self.strips if strip.name.endswith(LOG)]
        return bool(self.crash) and any({"lost", "torn"} & counts.keys() for counts in logs)

    def memory_said(self) -> str:
        """What the process's memory alone has."""
        if not self.may_be_in_memory:
            return "nothing that was acknowledged: durable answers when the fsync has returned"
        changes = times(self.in_memory, "acknowledged change")
        if not self.in_memory:
            return "no acknowledged change: every one is in the files"
        return f"{changes} {f'gone with the process {TWO_CHANGES}' if self.crash else 'that no file has yet'}"

    def counts(self) -> dict[str, int]:
        """Sectors of all files, by where they are."""
        counted = {where: sum(strip.counts().get(where, 0) for strip in self.strips) for where in SECTORS}
        return {where: number for where, number in counted.items() if number}

    def said(self) -> str:
        """The picture in words."""
        return f"The platter at {moment(self.at)}: " + "; ".join(self.lines()) + "."

    def frame(self) -> "pandas.DataFrame":
        """One row a stretch of sectors: file, start, length, where."""
        import pandas

        rows = [(strip.name, *run) for strip in self.strips for run in strip.runs]
        return pandas.DataFrame(rows, columns=["file", "start", "length", "where"])

    def plot(self, *, ax: "Axes | None" = None, dark: bool = False) -> Chart:
        """Draw it, to be kept."""
        look = theme(dark)
        ax = ax or new_axes(look, 9.2, 1.15 + 0.2 * _rows(self), (0.2, 0.4, 0.2, 0.75))
        draw(ax, self, look)
        return Chart(ax, self.frame(), self.said())

    def _repr_html_(self) -> str:
        from rqlab.html.platter import shown  # which reads this file

        return shown(self)

    def __repr__(self) -> str:
        return "\n".join([f"the platter at {moment(self.at)}, after event {self.event}", *self.lines()])


class Cell(NamedTuple):
    """Neighbouring cells in one row of a strip."""

    row: int
    column: int
    wide: int
    where: str


class Grid(NamedTuple):
    """A strip laid out in rows of cells."""

    rows: int
    sectors: int  #: in a cell
    room: int  #: cells
    cells: tuple[Cell, ...]


def grid(strip: Strip) -> Grid:
    """Rows of at most CELLS_A_ROW cells; a long file has 2, 4, 8 … sectors in each, and the worst of them shows."""
    per_cell = 1
    while strip.room > per_cell * CELLS_A_ROW * MOST_ROWS:
        per_cell *= 2
    room = max(-(-strip.room // per_cell), 1)
    rank = {where: number for number, where in enumerate(SECTORS)}
    cells: dict[int, str] = {}
    for run in strip.runs:
        for cell in range(run.start // per_cell, (run.start + run.length - 1) // per_cell + 1):
            if cell not in cells or rank[run.where] > rank[cells[cell]]:
                cells[cell] = run.where
    return Grid(-(-room // CELLS_A_ROW), per_cell, room, tuple(_joined(cells)))


def _joined(cells: dict[int, str]) -> Iterator[Cell]:
    begun: Cell | None = None
    for number in sorted(cells):
        row, column = divmod(number, CELLS_A_ROW)
        if begun is not None and (begun.row, begun.column + begun.wide, begun.where) == (row, column, cells[number]):
            begun = begun._replace(wide=begun.wide + 1)
            continue
        if begun is not None:
            yield begun
        begun = Cell(row, column, 1, cells[number])
    if begun is not None:
        yield begun


HEAD = 1.15  # rows that a line of words takes


def _rows(view: PlatterView) -> float:
    return HEAD + 0.3 + view.may_be_in_memory + sum(grid(strip).rows + HEAD + 0.3 for strip in view.strips)


def draw(ax: "Axes", view: PlatterView, look: Theme) -> None:
    """The strips on matplotlib's axes: a square a sector, and words that say the same."""
    dress(ax, look)
    ax.set_xlim(-0.5, CELLS_A_ROW + 0.5)
    ax.set_ylim(_rows(view), 0)
    ax.set_axis_off()
    _words(ax, HEAD - 0.2, f"{MEMORY_IS} {view.memory_said()}" if view.strips else next(view.lines()), look)
    y = HEAD
    if view.may_be_in_memory:
        _box(ax, y, DRAWN_WRITES, look.faint, look)
        kind = SECTORS["lost"] if view.crash else MEMORY
        _box(ax, y, min(view.in_memory, DRAWN_WRITES), kind.colour, look, kind)
        y += 1
    for strip in view.strips:
        laid = grid(strip)
        several = f" {laid.sectors} sectors a square." if laid.sectors > 1 else ""
        _words(ax, y + HEAD + 0.1, f"{strip.head()}:{several} {strip.said()}", look)
        y += HEAD + 0.3
        for row in range(laid.rows):
            _box(ax, y + row, min(CELLS_A_ROW, laid.room - row * CELLS_A_ROW), look.faint, look)
        for cell in laid.cells:
            kind = SECTORS[cell.where]
            _box(ax, y + cell.row, cell.wide, kind.colour, look, kind, cell.column)
        y += laid.rows
    _legend(ax, view, look)
    _title(ax, f"The platter at {moment(view.at)}, {view.mode}", _crash_title(view), look)


def _legend(ax: "Axes", view: PlatterView, look: Theme) -> None:
    from matplotlib.patches import Patch

    kinds = ([MEMORY] if view.may_be_in_memory else []) + list(SECTORS.values()) if view.strips else []
    patches = [
        Patch(facecolor=kind.colour, hatch=kind.hatch, edgecolor=kind.ink, label=kind.word, linewidth=0)
        for kind in kinds
    ]
    if patches:
        ax.legend(
            handles=patches, loc="upper left", bbox_to_anchor=(0, 0), ncols=6, frameon=False, labelcolor=look.ink,
            fontsize=8.5, handlelength=1.3, columnspacing=1.2, borderaxespad=0.6, borderpad=0,
        )  # fmt: skip


def _crash_title(view: PlatterView) -> str:
    said = view.crash_said() if view.crash else ""
    return f"{said}\n{PIECES}" if view.has_pieces() else said


def _title(ax: "Axes", title: str, said: str, look: Theme) -> None:
    ax.annotate(
        title, (0, 1), xycoords="axes fraction", xytext=(0, 30 if said else 12), textcoords="offset points", size=12,
        weight="bold", color=look.ink, parse_math=False,
    )  # fmt: skip
    ax.annotate(
        "\n".join(textwrap.shorten(plain(line, 240), 118, placeholder=" …") for line in said.splitlines()), (0, 1),
        xycoords="axes fraction",
        xytext=(0, 26), textcoords="offset points", size=9, va="top", color=look.quiet, parse_math=False,
    )  # fmt: skip


def _words(ax: "Axes", y: float, said: str, look: Theme) -> None:
    ax.text(0, y - 0.08, plain(said, 140), size=8.5, va="bottom", color=look.ink, parse_math=False)


def _box(ax: "Axes", top: float, wide: int, colour: str, look: Theme, kind: Look | None = None, left: int = 0) -> None:
    """Neighbouring squares of one look."""
    style = {"hatch": kind.hatch, "edgecolor": kind.ink} if kind is not None else {}
    ax.barh(top + 0.45, wide, left=left, height=0.86, facecolor=colour, linewidth=0.0, **style)  # type: ignore[arg-type]
    edges = [left + edge for edge in range(wide + 1)]
    ax.vlines(edges, top, top + 0.9, colors=look.paper, linewidth=0.6)


def size(octets: int) -> str:
    """Bytes for people: 44 KiB."""
    return f"{count(octets / 1024)} KiB" if octets >= 1024 else f"{octets} bytes"
