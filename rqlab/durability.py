"""When a write becomes safe: one row a mode. README, tests, measurement and notebooks read this table."""

import os
from collections.abc import Callable
from typing import NamedTuple

from rqlab.errors import ValidationError
from rqlab.storage import Store
from rqlab.storage.disk import DiskStore
from rqlab.storage.memory import MemoryStore


class Opening(NamedTuple):
    """What a mode needs to open its store."""

    path: str | os.PathLike[str]
    busy_timeout: float  #: seconds
    allow_network_filesystem: bool


class Mode(NamedTuple):
    """One durability mode: what it opens, and what it promises."""

    name: str
    guide_name: str  #: what RustQueue's production guide calls it
    open: Callable[[Opening], Store]
    returns: str  #: when a call returns
    lost_at_kill: str  #: at kill -9
    lost_at_power_cut: str
    lost_at_exit: str  #: at a clean close
    processes: str  #: how many may share the directory
    use_when: str


def _open_durable(opening: Opening) -> Store:
    return DiskStore(
        opening.path,
        busy_timeout=opening.busy_timeout,
        durability="durable",
        allow_network=opening.allow_network_filesystem,
    )


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode(
            name="durable",
            guide_name="redb",
            open=_open_durable,
            returns="after fsync; callers that wait at the same time share one commit",
            lost_at_kill="nothing",
            lost_at_power_cut="nothing",
            lost_at_exit="nothing",
            processes="many",
            use_when="a job that was accepted must run",
        ),
        Mode(
            name="memory",
            guide_name="in-memory",
            open=lambda opening: MemoryStore(),
            returns="from memory",
            lost_at_kill="all",
            lost_at_power_cut="all",
            lost_at_exit="all",
            processes="–",
            use_when="tests, notebooks, and work that can be done again",
        ),
    )
}


def mode(name: object) -> Mode:
    """The row of a mode with a file; ValidationError names those there are."""
    filed = [each for each in MODES if each != "memory"]
    if not isinstance(name, str) or name not in filed:
        hint = "; for a queue in memory call rqlab.memory()" if name == "memory" else ""
        raise ValidationError(f"durability: expected one of {', '.join(map(repr, filed))}; got {name!r}{hint}")
    return MODES[name]


def promise_table() -> str:
    """MODES as a Markdown table, as it stands in the README."""
    head = ("mode", "a call returns", "`kill -9` loses", "a power cut loses", "processes", "use it when")
    rows = [
        (f"`{m.name}`", m.returns, m.lost_at_kill, m.lost_at_power_cut, m.processes, m.use_when) for m in MODES.values()
    ]
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
