"""Interrupts at every place where Python looks for one: as a function begins, as a call into C returns, as loops turn.

`Moments` in test_group_commit hears of C functions only through the profiler, which is silent about types: `set()` is a
call too. This one watches the instructions themselves, so it visits those places as well; it is ten times slower.
"""

import dis
import os
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

STRIDE = int(
    os.environ.get("RQLAB_INTERRUPT_STRIDE", "13")
)  # of all those places an ordinary run visits one in so many


class Instructions:
    """Raises KeyboardInterrupt at the nth such place while its block runs."""

    def __init__(self, nth: int, stride: int = STRIDE) -> None:
        self.left = 1 + (nth - 1) * stride
        self._has_called: dict[FrameType, bool] = {}  #: by frame: the instruction before was one of those
        self._looks: dict[CodeType, set[int]] = {}

    @property
    def has_struck(self) -> bool:
        return self.left == 0

    def __enter__(self) -> "Instructions":
        sys.settrace(self._begin)
        return self

    def __exit__(self, kind: type | None, *rest: object) -> bool:
        sys.settrace(None)
        return kind is KeyboardInterrupt

    def _begin(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        if frame.f_code is Instructions.__exit__.__code__:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self._count()
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if event == "opcode":
            if self._has_called.pop(frame, False):
                self._count()
            if frame.f_lasti in self._of(frame.f_code):
                self._has_called[frame] = True
        elif event == "return" and frame.f_back is not None:
            self._has_called.pop(frame.f_back, None)  # Python does not look as its own functions return
        return self._step

    def _count(self) -> None:
        if self.left:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    def _of(self, code: CodeType) -> set[int]:
        found = self._looks.get(code)
        if found is None:
            found = self._looks[code] = {
                each.offset
                for each in dis.get_instructions(code)
                if each.opname.startswith("CALL") or each.opname == "JUMP_BACKWARD"
            }
        return found
