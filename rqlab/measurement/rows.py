"""One row of a measurement: three runs of one mode, each in a new directory, and what they came to."""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rqlab.measurement import cuts, kills, losses, paced, promises, speed
from rqlab.measurement.machine import latency, machine, syncs
from rqlab.measurement.result import COLUMNS, Row
from rqlab.measurement.settings import Settings
from rqlab.simulation.recorder import RecorderUnavailable
from rqlab.simulation.recovery import scratch_directory

RECORDED_SECONDS = 0.25  # of pushes, and of cycles: the recorder keeps every byte in memory
SYNCS_A_ROW = 5  # after each, on the same disk: what durable had to wait for in that very minute

NOT_RECORDED: Row = dict.fromkeys(
    (
        "fsyncs_per_job",
        "bytes_per_job",
        "lost_jobs_power_cut",
        "acknowledged_jobs_power_cut",
        "mean_lost_jobs_power_cut",
        "loss_window_seconds",
    ),
    math.nan,
)


class Rows:
    """Measures row after row in one directory, and learns what it stands on."""

    def __init__(self, modes: tuple[str, ...], settings: Settings, here: Path) -> None:
        self._settings = settings
        self._here = here
        self._syncs: list[float] = []
        self._quiet: dict[str, float] = {}
        self.machine: dict[str, Any] = {
            **machine(here),
            "settings": {"modes": list(modes), **{name: _in_json(each) for name, each in settings._asdict().items()}},
            "is_complete": True,
        }

    def measure(self, mode: str, callers: int, repeat: int) -> Row:
        """One row. Its order is kept: what is timed comes first, before the others have written much."""
        row: Row = {"mode": mode, "callers": callers, "repeat": repeat, "promised": promises.promised(mode)}
        row |= self._timed(mode, callers)
        killed = self._killed(mode, callers)
        row |= {"lost_jobs_kill": float(killed.lost), "acknowledged_jobs_kill": float(killed.acknowledged)}
        try:
            row |= self._recorded(mode, callers, repeat, killed)
        except RecorderUnavailable as error:
            row |= NOT_RECORDED
            self.machine["recorder"] = str(error)
        row["promise_held"] = promises.held(mode, row["lost_jobs_kill"], row["lost_jobs_power_cut"])
        self._syncs += syncs(self._here, SYNCS_A_ROW)
        self.machine |= latency(self._syncs)
        return {name: row[name] for name in COLUMNS}

    def _timed(self, mode: str, callers: int) -> Row:
        with self._emptied():
            found = speed.measure_speed(mode, callers, self._settings.seconds, self._here / "timed")
        return {name: value for name, value in found._asdict().items() if name in COLUMNS}

    def _killed(self, mode: str, callers: int) -> losses.Loss:
        with self._emptied():
            return kills.lost_at_kill(mode, callers, self._settings.jobs, self._settings.alive, self._here / "killed")

    def _recorded(self, mode: str, callers: int, repeat: int, killed: losses.Loss) -> Row:
        seconds = min(self._settings.seconds / 2, RECORDED_SECONDS)
        with self._emptied(), scratch_directory() as scratch:
            recorded, cost = cuts.record(mode, callers, self._settings.jobs, seconds, self._here / "recorded")
            found = cuts.losses(recorded, self._settings.cuts, repeat, scratch)
            worst = losses.worst(found)
            return {
                **cost._asdict(),
                "lost_jobs_power_cut": float(worst.lost),
                "acknowledged_jobs_power_cut": float(worst.acknowledged),
                "mean_lost_jobs_power_cut": sum(each.lost for each in found) / len(found),
                "loss_window_seconds": max(
                    worst.window_seconds, killed.window_seconds, self._quiet_window(mode, scratch)
                ),
            }

    def _quiet_window(self, mode: str, scratch: Path) -> float:
        """Seconds. In virtual time: neither callers nor another repeat would change it."""
        if mode not in self._quiet:
            recorded = paced.record(mode, paced.QUIET, scratch / "quiet")
            found = cuts.losses(recorded, self._settings.cuts, 0, scratch)
            self._quiet[mode] = losses.worst(found).window_seconds
        return self._quiet[mode]

    @contextmanager
    def _emptied(self) -> Iterator[None]:
        """Remove what a run has left, however it ends."""
        try:
            yield
        finally:
            for path in self._here.iterdir():
                shutil.rmtree(path)


def _in_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
