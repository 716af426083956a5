"""One daemon thread that keeps all live panels up to date, so that no panel needs an event loop.

An asyncio task stands still while a cell runs; a thread that sets traits does not. It knows no widget: a panel says
whether somebody looks, and draws itself.
"""

import threading
from collections.abc import Callable
from typing import Protocol

from rqlab import clock
from rqlab.clock import Bell

PERIOD = 0.25  # seconds between two looks at a panel: 4 Hz reads as live
SHARE = 0.2  # of its time that the thread may spend on drawing a panel: cells run beside it
UNWATCHED = 3600.0  # seconds until it looks again by itself; who begins to look rings


class Drawn(Protocol):
    """What the ticker draws."""

    def is_watched(self) -> bool:
        """Whether anybody looks; if not, nothing is done."""
        ...

    def tick(self) -> None:
        """Draw what has changed."""
        ...

    def show_error(self, error: Exception) -> None:
        """Tell whoever looks that it could not be drawn."""
        ...


class Ticker:
    """Draws panels in turn. The thread starts with the first panel and ends with the last."""

    def __init__(self, monotonic: Callable[[], float] = clock.monotonic) -> None:
        self._monotonic = monotonic
        self._due: dict[Drawn, float] = {}  #: when each is next drawn
        self._lock = threading.Lock()
        self._bell = Bell()
        self._thread: threading.Thread | None = None

    def add(self, panel: Drawn) -> None:
        """Draw this panel from now on."""
        with self._lock:
            self._due[panel] = 0.0
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rqlab-ticker", daemon=True)
                self._thread.start()
        self._bell.ring()

    def remove(self, panel: Drawn) -> None:
        """Draw it no more. A tick of it may be under way."""
        with self._lock:
            self._due.pop(panel, None)
        self._bell.ring()

    def ring(self) -> None:
        """Somebody has begun to look, or has done something: look at the panels now. None is drawn before it is due."""
        self._bell.ring()

    def step(self) -> float:
        """Draw what is due; how many seconds may pass until the next step."""
        wait = UNWATCHED
        for panel in self._panels():
            if not panel.is_watched():
                continue
            due = self._due.get(panel, 0.0)
            if due <= self._monotonic():
                due = self._draw(panel)
            wait = min(wait, due - self._monotonic())
        return max(wait, 0.0)

    def _panels(self) -> list[Drawn]:
        with self._lock:
            return list(self._due)

    def _draw(self, panel: Drawn) -> float:
        """Draw it; when it is due again."""
        began = self._monotonic()
        try:
            panel.tick()
        except Exception as error:  # noqa: BLE001  # of whatever kind: its own panel shows it, the others go on
            panel.show_error(error)
        ended = self._monotonic()
        due = max(began + PERIOD, ended + (ended - began) * (1 / SHARE - 1))
        with self._lock:
            if panel in self._due:
                self._due[panel] = due
        return due

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._due:
                    self._thread = None
                    return
            self._bell.wait(self.step())


TICKER = Ticker()  #: for all panels of this process
