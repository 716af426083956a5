"""`kill -9` of a real process in the middle of pushing, and the count of what it had promised.

The list of acknowledged ids is kept outside the process that dies: it writes each into a pipe after its push has
returned, and what is in a pipe survives its writer. `python -m rqlab.measurement.kills` is that process.
"""

import contextlib
import os
import random
import select
import subprocess
import sys
from pathlib import Path

from rqlab import clock
from rqlab.errors import StoreError
from rqlab.measurement import workload
from rqlab.measurement.callers import keep_calling
from rqlab.measurement.losses import Acknowledgement, Loss, found_in, loss

PATIENCE_SECONDS = 60.0  # for a child to start, or to acknowledge its next push, on a busy machine
PIPE_BYTES = 64 * 1024
MODULE = "rqlab.measurement.kills"
HERE = str(Path(__file__).parents[2])


def lost_at_kill(mode: str, callers: int, jobs: int, alive: tuple[float, float], path: Path) -> Loss:
    """Kill a process that pushes, at a random moment, and count what is gone.

    It pushes `jobs` jobs and flushes; the moment lies `alive` (least, most) seconds after its next push has returned.
    StoreError if the process ends by itself.
    """
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE, mode, str(path), str(callers), str(jobs)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([HERE, *filter(None, sys.path)])},  # this very rqlab
        start_new_session=True,  # Ctrl-C is for this process, which kills the child
    )
    with child:
        try:
            told = _Told(child)
            told.until(jobs + callers, 0.0)
            told.until(0, clock.monotonic() + random.uniform(*alive))
            killed_at = clock.monotonic()
        finally:
            child.kill()
        acknowledged = told.rest()
    keeps_nothing = not any(path.glob("*.db"))
    return loss(acknowledged, frozenset() if keeps_nothing else found_in(path), killed_at, keeps_nothing=keeps_nothing)


class _Told:
    """What the child has written into its pipe."""

    def __init__(self, child: "subprocess.Popen[bytes]") -> None:
        assert child.stdout is not None
        self._child = child
        self._pipe = child.stdout.fileno()
        self._read = bytearray()
        self._lines = 0

    def until(self, lines: int, at: float) -> None:
        """Read on until the child has told so much, and it is so late."""
        while self._lines < lines or clock.monotonic() < at:
            left = at - clock.monotonic() if self._lines >= lines else PATIENCE_SECONDS
            if select.select([self._pipe], [], [], max(left, 0.0))[0]:
                if not self._more():
                    raise StoreError(f"the process that was to be killed ended by itself: {self._complaint()}")
            elif self._lines < lines:
                raise StoreError(
                    f"the process that was to be killed has acknowledged nothing for {PATIENCE_SECONDS:g} s"
                )

    def rest(self) -> list[Acknowledgement]:
        """All that it told before it was gone."""
        while self._more():
            pass
        whole, _, _ = bytes(self._read).rpartition(b"\n")
        pairs = (line.split() for line in whole.decode().splitlines())
        return [Acknowledgement(job_id, float(at)) for job_id, at in pairs]

    def _more(self) -> bool:
        piece = os.read(self._pipe, PIPE_BYTES)
        self._read += piece
        self._lines += piece.count(b"\n")
        return bool(piece)

    def _complaint(self) -> str:
        assert self._child.stderr is not None
        said = self._child.stderr.read().decode(errors="replace").strip()
        return said.splitlines()[-1] if said else f"exit code {self._child.wait()}"


def main(mode: str, path: str, callers: str, jobs: str) -> None:
    """Push and flush, then push for ever; tell each acknowledged id with its instant. It ends with whoever reads it."""
    with workload.opened(mode, Path(path)) as rq:
        told: list[None] = []

        def push() -> None:
            job_id = workload.push(rq)
            os.write(1, f"{job_id} {clock.monotonic()!r}\n".encode())  # short enough to be written whole or not at all
            told.append(None)

        with contextlib.suppress(BrokenPipeError):  # the reader is gone
            keep_calling(int(callers), push, lambda: len(told) < int(jobs))
            rq.flush()
            told.clear()
            keep_calling(int(callers), push, lambda: True)


if __name__ == "__main__":
    main(*sys.argv[1:])
