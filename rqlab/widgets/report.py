"""What a lab has seen, as an object that stays: numbers, tables and a picture, without a kernel and without widgets."""

import base64
from collections.abc import Mapping
from typing import Any, Literal

from rqlab import charts
from rqlab.charts import Chart
from rqlab.html.svg import text
from rqlab.widgets.panels import FRAME

MOST_LINES = 12  # of a summary, in the HTML that notebooks keep: at most 5 KB
NOT_TRIED = "not tried: real processes cannot have one; rqlab.simulate can"


class LabReport:
    """A lab at one moment. It shows itself in a notebook, and as text; the tables are lists of dicts, times seconds."""

    def __init__(self, view: Mapping[str, Any]) -> None:
        self.view = view  #: all that the panel knew
        self.ok = bool(view["safe"])  #: whether safety holds, as far as a lab can judge it
        self.mode: str = view["mode"]
        self.seed: int = view["seed"]
        self.jobs: list[dict[str, Any]] = view["jobs"]
        self.attempts: list[dict[str, Any]] = view["attempts"]
        self.events: list[dict[str, Any]] = view["events"]  #: the newest
        self.faults: list[dict[str, Any]] = view["faults"]  #: kills and freezes
        self.counts: dict[str, int] = view["counts"]
        self.acknowledged: int = view["acknowledged"]  #: pushes that returned
        self.lost: int = view["lost"]  #: acknowledged jobs that are gone
        self.crashes: int = view["crashes"]  #: processes that ended without being asked to
        self.violations = [said for check in view["checks"] for said in check["says"]]

    def summary(self) -> str:
        """It in a few lines of text."""
        judged = [check["id"] for check in self.view["checks"] if check["holds"] is not None]
        left = [check["id"] for check in self.view["checks"] if check["holds"] is None]
        said = ", ".join(f"{number:,} {state}" for state, number in self.counts.items() if number) or "no jobs"
        kills = sum(fault["kind"] == "kill -9" for fault in self.faults)
        lines = [
            f"rqlab.lab, durability {self.mode}, seed {self.seed}, {self.view['now']:.1f} s: "
            f"SAFETY {'HOLDS ✓' if self.ok else 'BROKEN ✗'}",
            f"jobs: {said}; {len(self.attempts):,} runs",
            f"kill -9: {kills:,}; acknowledged {self.acknowledged:,}, lost {self.lost:,} "
            f"({self.mode} may lose: {self.view['promise'].replace('`', '')})",
            f"a power cut: {NOT_TRIED}",
            f"judged: {', '.join(judged)}; not judged here: {', '.join(left)}",
        ]
        return "\n".join([*lines, *(f"✗ {each}" for each in self.violations)])

    def timeline(self, by: Literal["worker", "job"] = "job", *, dark: bool = False) -> Chart:
        """Who ran what, when, and what broke."""
        return charts.timeline(self, by, dark=dark)

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        drawn = self.timeline()
        picture = base64.b64encode(drawn._repr_png_()).decode()
        first, *lines = self.summary().splitlines()
        body = "\n".join(text(line, 240) for line in lines[:MOST_LINES])
        return (
            f'<div style="{FRAME}"><p><b>{text(first, 200)}</b></p>\n'
            f'<img alt="{text(drawn.alt, 500)}" style="max-width:100%;background:#fff" '
            f'src="data:image/png;base64,{picture}">\n'
            f'<pre style="white-space:pre-wrap;color:inherit;background:none">{body}</pre></div>'
        )
