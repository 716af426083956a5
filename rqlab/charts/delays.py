"""How the delay before a retry grows: curves made by the very function that the engine calls."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from rqlab.backoff import retry_in
from rqlab.charts.chart import Chart, dress, label_without_overlap, new_axes, say
from rqlab.charts.looks import Theme, on_paper, seconds, series, theme
from rqlab.job import Backoff, Job

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

NEARLY_ONE = 1 - 2**-53  # the largest draw


class Delay(NamedTuple):
    """The wait after one failed attempt, in seconds: without chance, and the least and most that jitter makes of it."""

    strategy: str
    attempt: int
    delay: float
    least: float
    most: float


class Delays(NamedTuple):
    """One curve a strategy, attempt by attempt."""

    curves: tuple[tuple[Delay, ...], ...]
    base: float
    cap: float
    jitter: float
    logarithmic: bool

    def said(self) -> str:
        """The picture in words."""
        each = "; ".join(
            f"{curve[0].strategy} {', '.join(seconds(point.delay) for point in curve[:4])}"
            + (f" … {seconds(curve[-1].delay)} after attempt {curve[-1].attempt}" if len(curve) > 4 else "")
            for curve in self.curves
        )
        return f"Delay before a retry by attempt, {self.settings()}: {each}."

    def settings(self) -> str:
        jitter = f", jitter ±{self.jitter:.0%}" if self.jitter else ""
        return f"base {seconds(self.base)}, at most {seconds(self.cap)}{jitter}"


def marks(
    strategies: Sequence[str] = ("fixed", "linear", "exponential"),
    base: float = 1.0,
    cap: float = 86_400.0,
    jitter: float = 0.0,
    attempts: int = 10,
) -> Delays:
    """What `rqlab.backoff.retry_in` gives for each attempt."""
    if attempts < 1:
        raise ValueError(f"attempts: expected 1 or more, got {attempts!r}")
    curves = tuple(
        tuple(_delay(Backoff(strategy), attempt, base, cap, jitter) for attempt in range(1, attempts + 1))
        for strategy in dict.fromkeys(strategies)
    )
    points = [point for curve in curves for point in curve]
    most, least = max((p.most for p in points), default=1.0), min((p.least for p in points), default=1.0)
    return Delays(curves, base, cap, jitter, least > 0 and most / least > 25)


def _delay(strategy: Backoff, attempt: int, base: float, cap: float, jitter: float) -> Delay:
    job = Job(
        id="", queue="", name="", attempt=attempt, backoff=strategy, backoff_delay=base, max_backoff=cap, jitter=jitter
    )
    delay, least, most = (retry_in(job, draw) / 1000 for draw in (0.5, 0.0, NEARLY_ONE))
    return Delay(str(strategy), attempt, delay, least, most)


def backoff_curves(
    strategies: Sequence[str] = ("fixed", "linear", "exponential"),
    *,
    base: float = 1.0,
    cap: float = 86_400.0,
    jitter: float = 0.0,
    attempts: int = 10,
    ax: "Axes | None" = None,
    dark: bool = False,
) -> Chart:
    """Draw the delay before a retry against the attempt that failed; with jitter, the band it is drawn from.

    `base` is `backoff_delay`, `cap` is `max_backoff`, both in seconds; defaults are those of `push`. ValueError for a
    strategy that is none. The axis is logarithmic where the delays span more than a factor of 25.
    """
    drawn = marks(strategies, base, cap, jitter, attempts)
    look = theme(dark)
    ax = ax or new_axes(look, 7.6, 4.2, (0.95, 0.75, 1.2, 0.75))
    draw(ax, drawn, look)
    return Chart(ax, data(drawn), drawn.said())


def data(drawn: Delays) -> "pandas.DataFrame":
    """One row a (strategy, attempt); seconds."""
    import pandas

    return pandas.DataFrame([p for curve in drawn.curves for p in curve], columns=list(Delay._fields))


def draw(ax: "Axes", drawn: Delays, look: Theme) -> None:
    """Curves with markers, bands, and names at their ends."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    dress(ax, look)
    if drawn.logarithmic:
        ax.set_yscale("log")
    ax.grid(True, axis="y", color=look.faint, linewidth=0.7)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    looks = series([curve[0].strategy for curve in drawn.curves])
    labels: list[tuple[float, float, str]] = []
    for curve in drawn.curves:
        marker, colour, dash = looks[curve[0].strategy]
        at = [point.attempt for point in curve]
        if drawn.jitter:
            ax.fill_between(
                at, [p.least for p in curve], [p.most for p in curve], color=colour, alpha=0.22, linewidth=0
            )
        ax.plot(
            at, [p.delay for p in curve], color=on_paper(colour, look.paper), linestyle=dash, marker=marker,
            markersize=6, markeredgecolor=look.paper, markeredgewidth=0.6, linewidth=1.8,
        )  # fmt: skip
        labels.append((curve[-1].attempt, curve[-1].delay, f"{curve[0].strategy}\n{seconds(curve[-1].delay)}"))
    points = [p for curve in drawn.curves for p in curve]
    last = max((p.attempt for p in points), default=1)
    ax.set_xlim(0.7, last + 0.04 * last + max(0.5, last * 0.17))
    low, high = min((p.least for p in points), default=0.0), max((p.most for p in points), default=1.0)
    if drawn.logarithmic:
        ax.set_ylim(low / 2.2, high * 2.6)
    else:
        ax.set_ylim(0, (high or 1.0) * 1.22)
    if low <= drawn.cap <= high:
        ax.axhline(drawn.cap, color=look.quiet, linewidth=0.9, linestyle=(0, (2, 2)))
        ax.annotate(
            f"at most {seconds(drawn.cap)}", (0, drawn.cap), xycoords=("axes fraction", "data"), xytext=(4, 3),
            textcoords="offset points", size=8.5, color=look.quiet,
        )  # fmt: skip
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))
    ax.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    label_without_overlap(ax, look, labels, [])
    say(
        ax,
        look,
        "How long until a job is tried again",
        drawn.settings(),
        "attempts that have failed so far",
        "delay (log)" if drawn.logarithmic else "delay",
    )
