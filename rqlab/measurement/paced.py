"""Pushes at given instants of virtual time, on the real store, recorded: what a quiet queue risks.

Under full load a mode that writes later is hurried by its other bound, a number of writes, and its loss window looks
shorter than it is. Here one job comes every few milliseconds. Nothing waits, so it takes a moment, and the same seed
gives the same bytes; the disk takes no time in it.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from rqlab import arguments
from rqlab.durability import MODES, Opening
from rqlab.engine import Engine, Push
from rqlab.ids import Ids
from rqlab.job import Job
from rqlab.measurement.cuts import JOBS, Pushed, Recorded
from rqlab.measurement.losses import Acknowledgement
from rqlab.measurement.workload import DATA, PUSHED
from rqlab.simulation.recorder import Recorder

START = 1_767_225_600_000  # milliseconds since the epoch: 2026-01-01 00:00:00 UTC
PAUSE_MS = 5  # between two pushes: a few to a flush interval, hundreds to a snapshot interval
LAST_MS = 2_200  # beyond two snapshot intervals
QUIET = range(0, LAST_MS, PAUSE_MS)


def record(mode: str, instants: Sequence[int], path: Path, seed: int = 0) -> Recorded:
    """Push one job at each instant (milliseconds, rising); the mode's keeper steps when it is due.

    What may be cut begins with the first push that has returned, and ends with the last; one more is in flight.
    Acknowledgements and operations are stamped in seconds of virtual time.
    """
    path.mkdir()
    now = START
    push = Push(Job(id="", queue=PUSHED, name="send", encoded_data=arguments.data(DATA)))
    ids = Ids(random.Random(seed).getrandbits)
    pushes: list[Pushed] = []
    with Recorder(path, seed=seed, stamp=lambda: (now - START) / 1000) as recorder:
        opening = Opening(path / JOBS)
        store = MODES[mode].open(opening)
        try:
            engine = Engine(store, lambda purpose, entity, counter: 0.5)
            keeper = MODES[mode].keeper(store, opening)
            rings: list[None] = []
            again_at = START
            if keeper is not None:
                keeper.store.on_unsafe = lambda: rings.append(None)
            for instant in instants:
                while keeper is not None and again_at <= START + instant:
                    now = max(again_at, now)
                    again_at = keeper.step(now)
                now = START + instant
                (job_id,) = engine.push([(push, ids.draw(now))], now)
                pushes.append(Pushed(len(recorder), Acknowledgement(job_id, instant / 1000)))
                if keeper is not None and rings:
                    rings.clear()
                    again_at = keeper.step(now)
            end = len(recorder)
            engine.push([(push, ids.draw(now))], now)  # in flight: nobody is told that it has returned
            in_flight_end = len(recorder)
        finally:
            store.close()
    return Recorded(
        recorder.recording, recorder.stamps, pushes, pushes[0].operations, (now - START) / 1000, end, in_flight_end
    )
