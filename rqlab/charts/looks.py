"""What things look like: the one table of colours and second cues that every picture reads, drawn or written as SVG.

The colours are Okabe and Ito's, which people of every colour vision tell apart. Colour never carries meaning alone:
each look has a glyph, and looks that are equally light in grey have different hatches, dashes or markers. Knows no
renderer.
"""

import unicodedata
from typing import Literal, NamedTuple

from rqlab.job import Outcome, State

BLACK, WHITE = "#000000", "#ffffff"
ORANGE, SKY, GREEN, YELLOW = "#e69f00", "#56b4e9", "#009e73", "#f0e442"
BLUE, VERMILLION, PINK, GREY = "#0072b2", "#d55e00", "#cc79a7", "#999999"

#: How a bar is filled besides its colour; matplotlib's letters, which the SVG renderer has patterns for.
Hatch = Literal["", "///", "\\\\\\", "|||", "---", "xxx", "..."]


class Look(NamedTuple):
    """How one kind of thing is shown."""

    word: str  #: what it is called, beside its glyph
    colour: str  #: the fill, #rrggbb
    glyph: str  #: one character that stands for it without colour
    hatch: Hatch = ""  #: over the fill

    @property
    def label(self) -> str:
        """What a legend says: the glyph and the word."""
        return f"{self.glyph} {self.word}"

    @property
    def ink(self) -> str:
        """Black or white: what reads on the fill."""
        return ink_on(self.colour)


STATES: dict[str, Look] = {
    State.WAITING: Look("waiting", "#bdbdbd", "○"),
    State.DELAYED: Look("delayed", ORANGE, "↻", "///"),
    State.ACTIVE: Look("active", BLUE, "▶"),
    State.COMPLETED: Look("completed", GREEN, "✓"),
    State.DLQ: Look("dlq", VERMILLION, "✗", "xxx"),
    State.CANCELLED: Look("cancelled", SKY, "⊘", "---"),
}

REMOVED = Look("removed", "#767676", "−")  # by a purge or its retention: there is no job any more

#: How a run ended; the last two are no outcome of a delivery: the run goes on, or nobody remembers it.
OUTCOMES: dict[str, Look] = {
    Outcome.COMPLETED: Look("completed", GREEN, "✓"),
    Outcome.FAILED: Look("failed", VERMILLION, "✗", "xxx"),
    Outcome.STALLED: Look("stalled", PINK, "‖", "|||"),
    Outcome.TIMED_OUT: Look("timed out", YELLOW, "⊣", "\\\\\\"),
    Outcome.RELEASED: Look("released", GREY, "↩", "..."),
    Outcome.CANCELLED: Look("cancelled", SKY, "⊘", "---"),
    "active": Look("active", BLUE, "▶"),
    "lost": Look("lost", "#444444", "∅", "xxx"),
}

#: What happened to the machinery, as a line across the lanes or a mark in one.
FAULTS: dict[str, Look] = {
    "crash": Look("crash", VERMILLION, "⚡"),
    "power cut": Look("power cut", BLACK, "⌁"),
    "recovery": Look("recovery", GREEN, "⟳"),
    "freeze": Look("freeze", SKY, "❄"),
    "redeploy": Look("redeploy", BLUE, "↺"),
    "refused": Look("late report refused", BLACK, "⊗"),
    "fault": Look("fault", VERMILLION, "⚠"),
}

#: Parts of a timeline that are no run.
WAIT = Look("back-off wait", ORANGE, "↻", "///")
LEASE = Look("lease runs out", PINK, "‖")
DOWN = Look("worker down", "#8c8c8c", "⊖", "///")
FROZEN = Look("worker frozen", SKY, "❄", "...")

#: What a check said of one simulated crash.
VERDICTS: dict[str, Look] = {
    "held": Look("held", "#bfe3d7", "✓"),
    "lost": Look("lost, as the mode allows", ORANGE, "∅", "///"),
    "violated": Look("violated", "#a32e00", "✗", "xxx"),
    "missed": Look("not tried", WHITE, "·"),
}

#: How far a write had come when everything stopped; what follows is what that means.
WHEREABOUTS: dict[str, Look] = {
    "disk": Look("on the disk: survives both", "#bfe3d7", "✓"),
    "cache": Look("in the kernel's page cache, not yet synced: a power cut takes it", ORANGE, "⌁", "///"),
    "process": Look("in the memory of its process: kill −9 takes it, and a power cut too", VERMILLION, "✗", "xxx"),
}

#: Marker, colour and dash of the series of a plot; what has a name keeps its own, whatever else is drawn.
SERIES: tuple[tuple[str, str, str], ...] = (
    ("o", BLUE, "-"), ("s", ORANGE, "--"), ("^", GREEN, "-."), ("v", VERMILLION, ":"),
    ("D", PINK, "-"), ("P", SKY, "--"), ("X", GREY, "-."), ("*", BLACK, ":"),
)  # fmt: skip
OWN_SERIES = {
    "durable": 0, "buffered": 1, "hybrid": 2, "memory": 3,
    "fixed": 0, "linear": 1, "exponential": 2,
}  # fmt: skip


class Theme(NamedTuple):
    """The paper and the inks of a picture that is kept; a panel takes Jupyter's instead."""

    paper: str
    ink: str
    quiet: str  #: axis labels and notes
    faint: str  #: grid lines and bands


LIGHT = Theme(paper=WHITE, ink="#1a1a1a", quiet="#595959", faint="#e6e6e6")
DARK = Theme(paper="#111111", ink="#ececec", quiet="#b0b0b0", faint="#333333")


def theme(dark: bool) -> Theme:
    return DARK if dark else LIGHT


def on_paper(colour: str, paper: str) -> str:
    """The colour, or ink where it could not be told from the paper: black on black is nothing."""
    if abs(luminance(colour) - luminance(paper)) >= 0.08:
        return colour
    return ink_on(paper)


def series(names: list[str]) -> dict[str, tuple[str, str, str]]:
    """Marker, colour and dash of each; names of ours keep theirs, the others take what is left, in order."""
    taken = {OWN_SERIES[name] for name in names if name in OWN_SERIES}
    free = [n for n in range(len(SERIES)) if n not in taken] or list(range(len(SERIES)))
    strangers = [name for name in names if name not in OWN_SERIES]
    chosen = {name: free[n % len(free)] for n, name in enumerate(strangers)}
    return {name: SERIES[OWN_SERIES.get(name, chosen.get(name, 0))] for name in names}


def luminance(colour: str) -> float:
    """How light a colour is, 0 to 1, as WCAG 2 has it: what is left of it in grey."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink_on(colour: str) -> str:
    """Black or white, whichever has more contrast with the colour."""
    light = luminance(colour)
    return WHITE if 1.05 / (light + 0.05) >= (light + 0.05) / 0.05 else BLACK


def plain(text: object, limit: int = 60) -> str:
    """One line of text that can be shown: no control or direction-changing characters, at most `limit` characters."""
    line = str(text)[: limit * 2 + 1]  # what is far beyond the limit is not looked at
    if not line.isprintable():
        bad = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        line = "".join("\ufffd" if unicodedata.category(letter) in bad else letter for letter in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def seconds(value: float) -> str:
    """A duration for people: 0 s, 12 ms, 3.4 s, 5 min."""
    if value == 0:
        return "0 s"
    for factor, unit, below in ((1e6, "µs", 1e-3), (1e3, "ms", 1.0), (1.0, "s", 120.0), (1 / 60, "min", 7200.0)):
        if abs(value) < below:
            return f"{three_digits(value * factor)} {unit}"
    return f"{three_digits(value / 3600)} h"


def count(value: float) -> str:
    """A number for people, to three digits: 950, 3.3 k, 12 M."""
    for factor, unit in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= factor * 0.9995:
            return three_digits(value / factor) + unit
    return three_digits(value)


def three_digits(value: float) -> str:
    return f"{float(f'{value:.3g}'):.15g}"
