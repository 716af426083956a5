"""The power cut at every operation of one recorded run, in every way a disk can lose what it was not told to keep."""

from pathlib import Path
from typing import TYPE_CHECKING

from rqlab.simulation.machine import JOBS, Disk
from rqlab.simulation.platter import CRASH_KINDS, NAME_MODELS, Cut, Platter
from rqlab.simulation.recovery import History
from rqlab.simulation.stage import Stage
from rqlab.simulation.windows import windows_at

if TYPE_CHECKING:
    import pandas


def every_operation(stage: Stage, disk: Disk, scratch: Path) -> "pandas.DataFrame":
    """Cut at each operation, in each crash kind, the name models in turn: one row a cut. Broken promises are noted.

    What is left must be the state after some prefix of the transactions; in durable, after all that were acknowledged.
    """
    import pandas

    for process in stage.processes:
        process.silence()
        process.store.real.close()
    recording = disk.recorder.recording
    disk.close()
    platter = Platter(recording)
    history = History(platter, JOBS, stage.acknowledged_at, scratch)
    windows = windows_at(recording.operations)
    rows = []
    names = list(NAME_MODELS)
    for number, kind in enumerate(CRASH_KINDS):
        for at in range(len(platter) + 1):
            cut = Cut(at, kind, names[(at + number) % len(names)], stage.settings.seed)
            verdict = history.judge(platter, cut, scratch)
            rows.append(
                (at, kind, cut.names, verdict.lost, ", ".join(sorted(windows[at])), "; ".join(verdict.complaints))
            )
            if verdict.complaints:
                stage.judge.violate("R1", f"{cut}: {'; '.join(verdict.complaints)}")
            elif verdict.lost:
                stage.judge.violate("R3", f"{cut} took {verdict.lost} acknowledged writes")
    return pandas.DataFrame(rows, columns=["operation", "kind", "names", "lost", "windows", "complaints"])
