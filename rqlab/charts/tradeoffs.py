"""Throughput against loss window: what each durability mode costs, and what it loses at a crash.

Nothing lost and everything lost have no place on a logarithmic axis, so each has a band of its own beyond a broken
edge.
"""

import math
import textwrap
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rqlab.charts.chart import Chart, dress, label_without_overlap, new_axes, say
from rqlab.charts.looks import Theme, count, plain, seconds, series, theme

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

RATES = {"push": "push_per_second", "cycles": "cycles_per_second"}
WORDS = {"push": "pushes per second", "cycles": "jobs pushed, run and acked per second"}
SHORT = {"push": "pushes/s", "cycles": "jobs/s"}
BAND = 10.0  # the width of a band, as a factor on the axis
NARROWEST = (1e-3, 1.0)  # seconds; what the axis shows at least, so that a loss window has a scale to be read on


class Point(NamedTuple):
    """One mode: medians over the repeats, and their range."""

    mode: str
    repeats: int
    rate: float  #: a second
    rate_low: float
    rate_high: float
    loss: float  #: seconds; 0 is nothing, inf is everything, nan was not measured
    loss_low: float
    loss_high: float
    promised: str  #: what the mode's row allows to be lost

    @property
    def kept(self) -> str:
        """What was lost, in words."""
        if math.isnan(self.loss):
            return "loss not measured"
        if self.loss == 0 == self.loss_high:
            return "nothing lost"
        if self.loss == math.inf:
            return "everything lost"
        most = "everything" if self.loss_high == math.inf else f"the last {seconds(self.loss_high)}"
        return f"lost up to {most}" if self.loss_high > self.loss else f"lost {most}"

    def label(self) -> str:
        """The mode, its rate, and what it may lose, in lines short enough to stand beside each other."""
        head = f"{plain(self.mode, 24)} · {count(self.rate)}/s"
        if self.promised in ("", "nan", "None"):
            return head
        promise = f"may lose: {plain(self.promised, 90)}"
        return "\n".join([head, *textwrap.wrap(promise, 27, max_lines=2, placeholder=" …")])


class Tradeoff(NamedTuple):
    """The marks of the picture, in the order of the modes in the frame."""

    points: tuple[Point, ...]
    unplaced: tuple[Point, ...]  #: without a loss window: said in words, not drawn at an invented place
    throughput: str  #: push or cycles
    callers: int
    span: tuple[float, float]  #: seconds; the logarithmic part of the axis
    repeats: tuple[int, int]  #: fewest and most repeats of a mode

    def place(self, loss: float) -> float:
        """Where a loss window stands on the axis: seconds, or the middle of a band."""
        low, high = self.span
        return low / math.sqrt(BAND) if loss == 0 else high * math.sqrt(BAND) if loss == math.inf else loss

    def edges(self) -> tuple[float, float]:
        """The ends of the loss axis, bands included."""
        return self.span[0] / BAND, self.span[1] * BAND

    def decades(self) -> list[float]:
        """The loss windows that the axis names, at most nine; not its broken edges."""
        powers = range(round(math.log10(self.span[0])), round(math.log10(self.span[1])) + 1)
        return [10.0**power for power in powers][1 : -1 : 1 + len(powers) // 9]

    def heights(self) -> tuple[float, float]:
        """The span of the rates with room for labels; a decade at least, or small differences would look large."""
        rates = [at for p in self.points for at in (p.rate_low, p.rate_high)] or [100.0, 1000.0]
        low, high = min(rates) / 1.9, max(rates) * 1.9
        middle = math.sqrt(low * high)
        return min(low, middle / 3.2), max(high, middle * 3.2)

    def rates(self) -> list[float]:
        """The rates that the axis names: 1, 2, 5, 10 …, or only 1, 10, 100 where those are enough."""
        low, high = self.heights()
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1,) if math.log10(high / low) > 3 else (1, 2, 5)
        return [at for power in powers for step in steps if low <= (at := step * 10.0**power) <= high]

    def said(self) -> str:
        """The picture in words."""
        each = "; ".join(
            f"{plain(p.mode)} {count(p.rate)} {SHORT[self.throughput]}, {p.kept}"
            for p in (*self.points, *self.unplaced)
        )
        callers = f"{self.callers} caller{'s' if self.callers != 1 else ''}"
        return f"Throughput against loss window at a crash, {callers}: {each or 'no measurement'}. {self.spread()}."

    def spread(self) -> str:
        """What a mark and its bars are."""
        low, high = self.repeats
        if high <= 1:
            return "One run each, so no spread"
        return f"Median of {low if low == high else f'{low} to {high}'} repeats, bars from lowest to highest"


def marks(
    frame: "pandas.DataFrame", throughput: Literal["push", "cycles"] = "push", callers: int | None = None
) -> Tradeoff:
    """One point a mode, from one row a (mode, callers, repeat)."""
    if throughput not in RATES:
        raise ValueError(f"throughput: expected 'push' or 'cycles', got {throughput!r}")
    known = sorted({int(n) for n in frame["callers"]})
    if callers is None:
        callers = known[-1] if known else 1
    elif callers not in known:
        raise ValueError(f"callers: expected one that was measured ({', '.join(map(str, known))}), got {callers!r}")
    rows = frame[frame["callers"] == callers]
    columns = (rows[name].tolist() for name in ("mode", RATES[throughput], "loss_window_seconds", "promised"))
    modes: dict[str, list[tuple[float, float, str]]] = {}
    for mode, rate, loss, promised in zip(*columns, strict=True):
        if rate is not None and rate > 0:  # nan is not: a mode that was not measured is no point
            lost = math.nan if loss is None or loss != loss else float(loss)
            modes.setdefault(str(mode), []).append((float(rate), lost, str(promised)))
    points = [_point(mode, runs) for mode, runs in modes.items()]
    placed = tuple(point for point in points if not math.isnan(point.loss))
    finite = [at for p in placed for at in (p.loss, p.loss_low, p.loss_high) if 0 < at < math.inf]
    span = (
        min(NARROWEST[0], *(10 ** math.floor(math.log10(at) - 0.1) for at in finite), math.inf),
        max(NARROWEST[1], *(10 ** math.ceil(math.log10(at) + 0.1) for at in finite), 0.0),
    )
    repeats = [point.repeats for point in points] or [0]
    unplaced = tuple(point for point in points if math.isnan(point.loss))
    return Tradeoff(placed, unplaced, throughput, callers, span, (min(repeats), max(repeats)))


def _point(mode: str, runs: list[tuple[float, float, str]]) -> Point:
    rates = sorted(rate for rate, _, _ in runs)
    losses = sorted(loss for _, loss, _ in runs if loss == loss) or [math.nan]
    middle = len(rates) // 2
    rate = rates[middle] if len(rates) % 2 else (rates[middle - 1] + rates[middle]) / 2
    loss = losses[len(losses) // 2]  # of two the worse: no mean of nothing and everything, and never too kind
    return Point(mode, len(runs), rate, rates[0], rates[-1], loss, losses[0], losses[-1], runs[0][2])


def data(drawn: Tradeoff) -> "pandas.DataFrame":
    """One row a mode: what the picture shows."""
    import pandas

    columns = list(Point._fields)
    frame = pandas.DataFrame([*drawn.points, *drawn.unplaced], columns=columns)
    frame = frame.rename(columns={name: f"{name}_seconds" for name in ("loss", "loss_low", "loss_high")})
    frame.insert(1, "callers", drawn.callers)
    return frame


def tradeoff(
    frame: "pandas.DataFrame",
    throughput: Literal["push", "cycles"] = "push",
    callers: int | None = None,
    *,
    ax: "Axes | None" = None,
    dark: bool = False,
) -> Chart:
    """Draw what each mode costs and what it loses: up is faster, left is safer.

    `throughput` is `push` (default: the call whose durability differs) or `cycles` (push, pull and ack of a job);
    `callers` is how many called at once, by default the most that were measured. Without `ax` on a figure of its own.
    ValueError for a number of callers that the frame has not.
    """
    drawn = marks(frame, throughput, callers)
    look = theme(dark)
    ax = ax or new_axes(look, 7.6, 4.8, (0.85, 0.95, 0.2, 0.75))
    draw(ax, drawn, look)
    return Chart(ax, data(drawn), drawn.said())


def draw(ax: "Axes", drawn: Tradeoff, look: Theme) -> None:
    """The marks on matplotlib's axes."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    dress(ax, look)
    low, high = drawn.span
    edges = drawn.edges()
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(*edges)
    ax.set_ylim(*drawn.heights())
    decades = drawn.decades()
    ax.xaxis.set_major_locator(FixedLocator([drawn.place(0), *decades, drawn.place(math.inf)]))
    ax.xaxis.set_major_formatter(FixedFormatter(["nothing\nlost", *map(seconds, decades), "everything\nlost"]))
    ax.xaxis.set_minor_locator(NullLocator())
    heights = drawn.rates()
    ax.yaxis.set_major_locator(FixedLocator(heights))
    ax.yaxis.set_major_formatter(FixedFormatter([count(height) for height in heights]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.grid(True, axis="y", color=look.faint, linewidth=0.8)
    for at in decades:
        ax.axvline(at, color=look.faint, linewidth=0.5, zorder=0)
    for band, edge in (((edges[0], low), low), ((high, edges[1]), high)):
        ax.axvspan(*band, color=look.faint, alpha=0.55, linewidth=0, zorder=0)
        _break_the_axis(ax, edge, look)
    taken = _draw_points(ax, drawn, look)
    label_without_overlap(ax, look, [(drawn.place(p.loss), p.rate, p.label()) for p in drawn.points], taken)
    callers = f"{drawn.callers} caller{'s' if drawn.callers != 1 else ''}"
    say(
        ax,
        look,
        "What a durability mode costs, and what it loses",
        f"{callers}. {drawn.spread()}.",
        "loss window at a crash: age of the oldest acknowledged write that was lost (log)",
        f"{WORDS[drawn.throughput]} (log)",
    )
    if drawn.unplaced:
        words = "; ".join(f"{plain(p.mode, 30)} {count(p.rate)}/s" for p in drawn.unplaced)
        ax.text(
            0.5, 0.01, f"loss not measured: {words}", transform=ax.transAxes, ha="center", va="bottom", size=8.5,
            color=look.quiet, parse_math=False,
        )  # fmt: skip


def _draw_points(ax: "Axes", drawn: Tradeoff, look: Theme) -> list[tuple[float, float, float, float]]:
    """Markers and bars; gives the boxes in pixels that they take."""
    looks = series([point.mode for point in drawn.points])
    taken = []
    for point in drawn.points:
        marker, colour, _ = looks[point.mode]
        x, left, right = (drawn.place(at) for at in (point.loss, point.loss_low, point.loss_high))
        ax.errorbar(
            [x], [point.rate], xerr=[[x - left], [right - x]],
            yerr=[[point.rate - point.rate_low], [point.rate_high - point.rate]],
            marker=marker, markersize=9, color=colour, markeredgecolor=look.ink, markeredgewidth=0.8,
            ecolor=look.quiet, elinewidth=1.2, capsize=3, linestyle="none", zorder=4,
        )  # fmt: skip
        corners: list[Any] = [
            ax.transData.transform(at)
            for at in ((left, point.rate), (right, point.rate), (x, point.rate_low), (x, point.rate_high))
        ]
        taken.append((corners[0][0] - 7, corners[0][1] - 7, corners[1][0] + 7, corners[1][1] + 7))
        taken.append((corners[2][0] - 7, corners[2][1] - 4, corners[3][0] + 7, corners[3][1] + 4))
    return taken


def _break_the_axis(ax: "Axes", edge: float, look: Theme) -> None:
    """Two slanted strokes over the axis: what lies beyond is not to scale."""
    from matplotlib.transforms import ScaledTranslation

    for points in (-2.0, 2.0):
        shift = ScaledTranslation(points / 72, 0, ax.figure.dpi_scale_trans)
        ax.plot(
            [edge], [0], transform=ax.get_xaxis_transform() + shift, clip_on=False, marker=[(-0.4, -1), (0.4, 1)],
            markersize=10, markeredgewidth=1.1, color=look.ink, linestyle="none", zorder=6,
        )  # fmt: skip
