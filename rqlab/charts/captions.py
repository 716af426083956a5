"""What stands above a plot over time: what broke, what came back, and what it took with it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rqlab.charts.chart import text_width
from rqlab.charts.histories import Happening, History, fault_look, worker_names
from rqlab.charts.looks import FAULTS, Look, Theme, on_paper

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = 3  # rows of captions
LEVEL_POINTS = 12  # the height of one
SIZE = 8  # points


class Mark(NamedTuple):
    """A fault, a recovery, a refusal, or the end of a job."""

    at: float
    row: int | None  #: None is all of them, or none
    look: Look
    label: str
    reach: str  #: all (a line through all lanes), lane (through its own), above (a caption alone), here (a glyph)
    rows: int = 1
    stops: bool = False  #: whether workers do nothing from there on


class Caption(NamedTuple):
    """Words above the lanes."""

    left: float  #: in the unit of the renderer
    level: int  #: 0 is next to the plot
    words: str
    mark: Mark


#: By the worker's full name: its first row, and how many it has.
Rows = dict[str, tuple[int, int]]


def fault_marks(told: History, lanes: Rows | None = None) -> list[Mark]:
    """What broke and what came back. One that strikes a worker with a lane is marked there."""
    lanes = lanes or {}
    short = worker_names(sorted({*lanes, *(fault.worker for fault in told.faults if fault.worker)}))
    found = []
    for each in (*told.faults, *told.marked):
        if each.kind == "refused" or (each.kind == "recovered" and any(each.at == fault.at for fault in told.faults)):
            continue  # a refusal is marked in its run; and who went on at that very instant did not come back
        look = fault_look(each.kind)
        row, rows = lanes.get(each.worker, (None, 1)) if each.strikes == "worker" else (None, 1)
        reach = "lane" if row is not None else "all" if each.strikes == "all" else "above"
        found.append(Mark(each.at, row, look, _label(each, look, short, reach), reach, rows, each.stops))
    return found


def _label(each: Happening, look: Look, short: dict[str, str], reach: str) -> str:
    """The fault, whom it strikes where no line says so, and what it took."""
    whom = f" {short.get(each.worker, '')}" if reach == "above" and each.worker else ""
    lost = f": {each.lost}" if each.lost else ""
    return f"{look.glyph} {look.word}{whom}{lost}".replace("job job", "job")  # a poison job is the job itself


def refusals(told: History, rows: dict[tuple[str, str], int]) -> list[Mark]:
    """Reports that came too late, in the rows of (job, worker)."""
    look = FAULTS["refused"]
    late = [each for each in told.marked if each.kind == "refused" and (each.job, each.worker) in rows]
    return [Mark(each.at, rows[each.job, each.worker], look, look.label, "here") for each in late]


def captions(
    marks: Sequence[Mark], place: Callable[[float], float], wide: Callable[[str], float], edge: float
) -> list[Caption]:
    """Which marks are named above the plot, so that none covers another: by words, else their glyph, else not.

    A power cut is named first, then what stops workers. `place` is where an instant is, `wide` how wide words are,
    `edge` the right end.
    """
    taken: list[list[tuple[float, float]]] = [[] for _ in range(LEVELS)]
    found = []
    named = [mark for mark in marks if mark.reach != "here"]
    cut = FAULTS["power cut"].glyph
    for mark in sorted(named, key=lambda mark: (mark.look.glyph != cut, not mark.stops, mark.at)):
        options = [(words, level) for words in (mark.label, mark.look.glyph) for level in range(LEVELS)]
        for words, level in options:
            width = wide(words)
            left = min(place(mark.at) - 3, edge - width)
            if all(left >= end or left + width <= start for start, end in taken[level]):
                taken[level].append((left, left + width))
                found.append(Caption(left, level, words, mark))
                break
    return found


def on_axis(marks: Sequence[Mark], start: float, end: float, width: float) -> list[Caption]:
    """The captions over an axis from start to end that is so many hundredths of an inch wide."""
    return captions(
        marks, lambda at: (at - start) / (end - start) * width, lambda words: text_width(words, SIZE, True) + 9,
        width + 30,
    )  # fmt: skip


def height(written: Sequence[Caption]) -> float:
    """What the captions take, in inches."""
    return max((caption.level + 1 for caption in written), default=0) * LEVEL_POINTS / 72


def draw_captions(ax: "Axes", marks: Sequence[Mark], look: Theme) -> float:
    """Write the captions above the axes, as wide as they are; gives their height in inches."""
    width = ax.get_window_extent().width * 100 / ax.figure.dpi
    written = on_axis(marks, *ax.get_xlim(), width)
    for caption in written:
        ax.annotate(
            caption.words, (caption.left / width, 1), xycoords="axes fraction",
            xytext=(0, 3 + LEVEL_POINTS * caption.level), textcoords="offset points", ha="left", va="bottom",
            size=SIZE, color=look.ink, parse_math=False, weight="bold" if caption.mark.stops else "normal",
        )  # fmt: skip
    return height(written)


def draw_line(ax: "Axes", mark: Mark, low: float, high: float, look: Theme) -> None:
    """A line through what the mark strikes; a heavy one where work stops."""
    colour = on_paper(mark.look.colour, look.paper)
    wide, dash = (2.0, "-") if mark.stops else (1.2, (0, (4, 2)))
    ax.plot([mark.at] * 2, [low, high], color=colour, linewidth=wide, linestyle=dash, zorder=5)
