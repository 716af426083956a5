"""How far an exploration is: one line that is written over, in a terminal and in a notebook; nothing in a log.

In a notebook it is text too, and on standard output: a widget shows nothing in a saved notebook, and what is on
standard error looks like something that went wrong.
"""

import sys
from typing import Any

from rqlab import notebook


class Progress:
    """A bar of tqdm's; `is_wanted=False` draws none."""

    def __init__(self, total: int, what: str, is_wanted: bool) -> None:
        from tqdm.std import tqdm  # here: `import rqlab` does not wait for it

        in_notebook = notebook.is_kernel()
        is_shown = is_wanted and (in_notebook or sys.stderr.isatty())
        self._bar: Any = _without_monitor(tqdm)(
            total=total,
            desc=what,
            unit=" seeds",
            file=sys.stdout if in_notebook else sys.stderr,
            disable=not is_shown,
            mininterval=0.5,  # a saved notebook may keep every line that was written over
            ncols=100 if in_notebook else None,
            leave=in_notebook,
        )

    def add(self, seeds: int) -> None:
        """So many more are done."""
        self._bar.update(seeds)

    def say(self, what: str) -> None:
        """Something that stands behind the bar."""
        self._bar.set_postfix_str(what, refresh=False)

    def close(self) -> None:
        self._bar.close()


def _without_monitor(kind: Any) -> Any:
    """tqdm starts a thread that outlives the bar; ours is updated often enough."""
    return type("Bar", (kind,), {"monitor_interval": 0})
