"""Runs the plan of a result again and looks on: the operations of its disk, beside the events of its history.

A result keeps no operations: a campaign of a thousand seeds would carry them for nothing. The run must give the same
history, so what was seen the second time is what happened the first time.
"""

from typing import Any

from rqlab.errors import RQLabError
from rqlab.simulation import run
from rqlab.simulation.actors import Process
from rqlab.simulation.faults import Fault
from rqlab.simulation.history import hash_of
from rqlab.simulation.ledger import Effects
from rqlab.simulation.machine import Disk
from rqlab.simulation.result import SimulationResult
from rqlab.simulation.sectors import DiskLog, Look, Trace
from rqlab.simulation.stage import Stage


def trace(result: SimulationResult) -> Trace:
    """Run the plan of a result again and look on.

    ValidationError if it ran a handler of the user's: that is not run again behind their back. RQLabError if the
    history is not the same, as a changed version of rqlab may make it.
    """
    settings, plan, span = run.once_more(result)
    with run.staged(settings, plan, span, KeptDisk, Onlooker) as (stage, machine, _):
        assert isinstance(stage, Onlooker), "it was asked for"
        stage.run()
        stage.look()
        happenings = stage.history.happenings()
        again = hash_of(happenings, stage.judge.ledger.jobs.values())
        if again != result.hash:
            raise RQLabError(
                f"cannot tell where the sectors were: {result.replay_line}: expected the history {result.hash}, got "
                f"{again}. The code has changed since"
            )
        disks = machine.disks() if isinstance(machine, KeptDisk) else []
    mode = settings.durability if disks else f"{settings.durability}, in memory"
    return Trace(settings.durability if settings.durability == "memory" else mode, happenings, stage.looks, disks)


class KeptDisk(Disk):
    """A Disk that remembers the recordings that power cuts ended."""

    def __init__(self, *given: Any) -> None:
        self._kept: list[DiskLog] = []
        super().__init__(*given)

    @property
    def number(self) -> int:
        return len(self._kept)

    def cut(self, fault: Fault, seed: int, in_snapshot: bool) -> str:
        recording = self.recorder.recording
        kind = super().cut(fault, seed, in_snapshot)
        cut, _ = self.cuts[-1]
        self._kept.append(DiskLog(recording, self.number, cut))
        return kind

    def disks(self) -> list[DiskLog]:
        """All of them, the last one too."""
        return [*self._kept, DiskLog(self.recorder.recording, self.number, None)]


class Onlooker(Stage):
    """A Stage that looks at its disk whenever a step or a commit is over."""

    def __init__(self, *given: Any) -> None:
        self.looks: list[Look] = []
        super().__init__(*given)

    def look(self) -> None:
        disk, operations = 0, 0
        if isinstance(self.machine, KeptDisk):
            disk, operations = self.machine.number, len(self.machine.recorder)
        alive = [process.store.real for process in self.processes if process.is_alive]
        in_memory = sum(int(getattr(store, "unsafe_writes", 0)) for store in alive)
        self.looks.append(Look(len(self.history), disk, operations, in_memory, self.world.now))

    def committed(self, process: Process, effects: Effects) -> None:
        self.look()
        super().committed(process, effects)

    def opened(self, process: Process) -> None:
        self.look()
        super().opened(process)

    def after_step(self, process: Process) -> bool:
        self.look()
        return super().after_step(process)
