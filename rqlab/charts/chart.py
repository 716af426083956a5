"""A picture for keeping: a matplotlib figure with its data and its words.

matplotlib is imported when the first picture is drawn, and only through its object API: pyplot keeps figures of its
own, and drawing with it from a click handler or a thread spoils them for good.
"""

import base64
import html
import io
import os
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from rqlab.charts.looks import Theme

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

DPI = 144  # sharp on a laptop, and a timeline stays below 150 kB


class Chart:
    """A picture: shown by Jupyter as PNG with its own background, printed as the sentence that says what is in it."""

    def __init__(self, ax: "Axes", data: "pandas.DataFrame", alt: str) -> None:
        self.ax = ax  #: matplotlib's axes, to draw more on
        self.figure: Figure = ax.figure  # type: ignore[assignment]  # never a SubFigure here
        self.data = data  #: what is shown, as a tidy DataFrame
        self.alt = alt  #: what the picture says, in words
        if isinstance(ax, _own_axes()):
            ax.chart = self  # type: ignore[attr-defined]  # it is one of ours, made at first use

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture to a file; its suffix says the format. A .png and an .svg carry the alt text.

        ValueError for a suffix that matplotlib does not know.
        """
        suffix = os.fspath(path).rpartition(".")[2].lower()
        words = {"png": {"Description": self.alt}, "svg": {"Description": self.alt, "Date": None}}.get(suffix)
        self.figure.savefig(path, dpi=DPI, facecolor=self.figure.get_facecolor(), metadata=words)

    def _repr_png_(self) -> bytes:
        image = io.BytesIO()
        self.figure.savefig(
            image,
            format="png",
            dpi=DPI,
            facecolor=self.figure.get_facecolor(),
            metadata={"Description": self.alt},
            pil_kwargs={"compress_level": 1},  # 3 % more bytes, in a sixth less time
        )
        return image.getvalue()

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        """The PNG, for readers that cannot see it with its alt text.

        JupyterLab and nbconvert's pages show a bare PNG without one, and prefer HTML; PDFs want the bare PNG.
        """
        picture = self._repr_png_()
        source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        shown = f'<img alt="{html.escape(self.alt)}" style="max-width:100%" src="{source}">'
        return {"image/png": picture, "text/html": shown, "text/plain": self.alt}, {"image/png": {"alt": self.alt}}

    def __repr__(self) -> str:
        return self.alt


@cache
def _own_axes() -> type["Axes"]:
    """Axes that show themselves in a notebook: no pyplot is behind them, whose figures are shown after a cell.

    A class made at first use, since its base is matplotlib's.
    """
    from matplotlib.axes import Axes

    class PictureAxes(Axes):
        chart: Chart | None = None  #: set when the picture is complete

        def _repr_mimebundle_(self, **how: object) -> tuple[dict[str, Any], dict[str, Any]] | None:
            return None if self.chart is None else self.chart._repr_mimebundle_(**how)

    return PictureAxes


def new_axes(theme: Theme, width: float, height: float, box: tuple[float, float, float, float]) -> "Axes":
    """Axes on a figure of their own. Sizes in inches; `box` is left, bottom, right, top in inches from those edges.

    All colours are set here and none is left to the user's style sheet, which may be dark or without ticks.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    left, bottom, right, top = box
    place = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    ax: Axes = figure.add_axes(place, axes_class=_own_axes())
    dress(ax, theme)
    return ax


def dress(ax: "Axes", theme: Theme) -> None:
    """The theme's paper and inks, no box, a faint grid below the data."""
    ax.set_facecolor(theme.paper)
    ax.set_axisbelow(True)
    ax.grid(False)
    ax.tick_params(which="both", colors=theme.quiet, labelcolor=theme.quiet, labelsize=9, length=3, direction="out")
    ax.tick_params(which="minor", length=0)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.quiet)
        spine.set_linewidth(0.8)


def say(
    ax: "Axes", theme: Theme, title: str, subtitle: str = "", below: str = "", aside: str = "", up: float = 0.0
) -> None:
    """The title over the plot, at its left edge, what was measured under it, and the names of the axes.

    `up` lifts both by as many inches, for what stands between them and the plot.
    """
    style: dict[str, Any] = {
        "xycoords": "axes fraction", "textcoords": "offset points", "ha": "left", "va": "bottom", "parse_math": False,
        "annotation_clip": False,
    }  # fmt: skip
    low = 72 * up + 7
    high = low + (10.8 * (subtitle.count("\n") + 1) + 5 if subtitle else 0)  # nine points and what lies between lines
    ax.annotate(subtitle, (0, 1), xytext=(0, low), color=theme.quiet, size=9, linespacing=1.2, **style)
    ax.annotate(title, (0, 1), xytext=(0, high), color=theme.ink, size=12, weight="bold", **style)
    ax.set_xlabel(below, color=theme.quiet, size=9.5)
    ax.set_ylabel(aside, color=theme.quiet, size=9.5)


Box = tuple[float, float, float, float]  #: in pixels: left, bottom, right, top

BESIDE = 8  # so many of the spots are beside the mark; further off a line leads to it
#: Where a label may stand: offset in points from its place, and how it is aligned there; the first that is free wins.
SPOTS = (
    (9, 0, "left", "center"), (-9, 0, "right", "center"), (0, 10, "center", "bottom"), (0, -10, "center", "top"),
    (9, 12, "left", "bottom"), (-9, 12, "right", "bottom"), (9, -12, "left", "top"), (-9, -12, "right", "top"),
    *((x, y * far, side, level)
      for far in (26, 44, 64, 88, 116, 146, 180, 220)
      for x, side in ((6, "left"), (-6, "right"), (0, "center"), (60, "left"), (-60, "right"), (120, "left"))
      for y, level in ((1, "bottom"), (-1, "top"))),
)  # fmt: skip


def label_without_overlap(
    ax: "Axes", theme: Theme, labels: list[tuple[float, float, str]], taken: list[Box]
) -> list["Text"]:
    """Write each text beside its place, clear of the others, of what is `taken`, and inside the axes.

    Places are in data coordinates. A label that had to go far gets a line to its place.
    """
    scale = ax.figure.dpi / 72  # pixels a point
    edges = ax.get_window_extent()
    room = (edges.x0 - 2, edges.y0, edges.x1 + 4, edges.y1 + 2)
    written: list[Box] = []
    lines: list[Box] = []
    notes: list[Text] = []
    for x, y, text in labels:
        at = tuple(float(pixel) for pixel in ax.transData.transform((x, y)))
        style: dict[str, Any] = {"color": theme.ink, "size": 9, "linespacing": 1.25, "parse_math": False, "zorder": 5}
        note = ax.annotate(text, (x, y), xytext=(0, 0), textcoords="offset points", **style)
        spot = _free_spot(text_box(note), at, scale, room, [*taken, *written], written, lines)
        note.remove()
        right, up, side, level = spot
        leader: dict[str, Any] = {"arrowstyle": "-", "color": theme.quiet, "linewidth": 0.6, "shrinkB": 6}
        far = spot not in SPOTS[:BESIDE]
        notes.append(
            ax.annotate(
                text, (x, y), xytext=(right, up), textcoords="offset points", ha=side, va=level,
                arrowprops=leader if far else None, **style,
            )
        )  # fmt: skip
        written.append(text_box(notes[-1]))
        lines += _dots(at, written[-1]) if far else []
    return notes


def _free_spot(
    size: Box, at: tuple[float, ...], scale: float, room: Box, taken: list[Box], texts: list[Box], lines: list[Box]
) -> tuple[float, float, str, str]:
    """The first spot that is clear of all; failing that, one that only lines run through; failing that, the last."""
    width, height = size[2] - size[0], size[3] - size[1]
    second = None
    for number, spot in enumerate(SPOTS):
        right, up, side, level = spot
        left = at[0] + right * scale - {"left": 0, "center": width / 2, "right": width}[side]
        low = at[1] + up * scale - {"bottom": 0, "center": height / 2, "top": height}[level]
        box = (left, low, left + width, low + height)
        if box[0] < room[0] or box[1] < room[1] or box[2] > room[2] or box[3] > room[3]:
            continue
        if any(meet(box, other) for other in taken):
            continue
        line = _dots(at, box) if number >= BESIDE else []
        if not any(meet(box, dot) for dot in lines) and not any(meet(dot, text) for dot in line for text in texts):
            return spot
        second = second or spot
    return second or SPOTS[-1]


def _dots(at: tuple[float, ...], box: Box) -> list[Box]:
    """The line to a label as small boxes, so that it can be kept clear of texts like everything else."""
    steps = 24
    to = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    dots = [(at[0] + (to[0] - at[0]) * n / steps, at[1] + (to[1] - at[1]) * n / steps) for n in range(steps)]
    return [(x - 1, y - 1, x + 1, y + 1) for x, y in dots]


def text_box(text: "Text") -> Box:
    """Where a text stands, in pixels, without the line of an annotation."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.text import Annotation, Text

    assert text.figure is not None
    renderer = RendererAgg(1, 1, text.figure.dpi)  # type: ignore[no-untyped-call]  # to measure with: the figure's own canvas may be of any kind
    if isinstance(text, Annotation):
        text.update_positions(renderer)
    box = Text.get_window_extent(text, renderer)
    return (box.x0, box.y0, box.x1, box.y1)


@lru_cache(maxsize=4_000)
def text_width(words: str, size: float, bold: bool = False) -> float:
    """How wide words of so many points are, in hundredths of an inch: known before there is a figure."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight="bold" if bold else "normal")
    width, _, _ = text_to_path.get_text_width_height_descent(words, font, False)
    return float(width) * 100 / 72


def lines(words: str, width: float, most: int, size: float = 9) -> list[str]:
    """The words in lines that are at most so many hundredths of an inch wide; what exceeds the last is cut off."""
    made: list[str] = []
    for word in words.split():
        if made and text_width(f"{made[-1]} {word}", size) <= width:
            made[-1] += f" {word}"
        else:
            made.append(word)
    return made if len(made) <= most else [*made[: most - 1], f"{made[most - 1]} …"]


def meet(one: Box, other: Box) -> bool:
    """Whether two boxes share more than an edge."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
