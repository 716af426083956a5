"""Whether a notebook runs this process. Nothing is imported to ask: a kernel has imported it all."""

import sys
from typing import Any


def shell() -> Any:
    """IPython's shell in this process; None if there is none."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def is_kernel() -> bool:
    """Whether this process is a notebook's kernel: that ipykernel was imported, as by a test, does not make it one."""
    return getattr(shell(), "kernel", None) is not None
