"""The bug base: a directory of plans that broke a promise, one JSON file each. They are run before anything new.

A plan stays when its bug is mended: it is then the test that the bug does not come back. `why` is for people.
"""

import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from rqlab import arguments
from rqlab.errors import ValidationError
from rqlab.files import write_whole
from rqlab.simulation.faults import Fault, checked_plan
from rqlab.simulation.run import DEFAULTS, settings_of

FORMAT = 1  # of the files; a higher number is refused


class Bug(msgspec.Struct, frozen=True, kw_only=True):
    """A plan that broke a promise."""

    rqlab: int = FORMAT  #: the format of the file
    check: str  #: the row of CHECKS
    says: str  #: how it was broken
    seed: int
    arguments: dict[str, Any]  #: what `simulate` is called with, but its seed and plan
    plan: list[Fault]
    replay: str  #: the call
    why: str = ""  #: what was wrong, and what cured it, as soon as somebody knows

    @property
    def name(self) -> str:
        """Of its file: the same plan has the same name."""
        plan = msgspec.json.encode([self.seed, self.arguments, self.plan])
        return (
            f"{self.check}-{self.arguments['durability']}-seed-{self.seed}-{blake2b(plan, digest_size=4).hexdigest()}"
        )


class BugBase:
    """A directory of bugs; it is made when the first one is kept."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike):
            raise ValidationError(f"bugs: expected the path of a directory, or None; got {arguments.shown(path)}")
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValidationError(f"bugs: expected a directory, or a path where one can be made; {path} is a file")

    def read(self) -> dict[Path, Bug]:
        """All that are kept, by their files, in order. ValidationError names a file that is none of ours."""
        return {file: read(file) for file in sorted(self.path.glob("*.json"))}

    def keep(self, bug: Bug) -> Path:
        """Write it, whole or not at all; one that is there already is left as it is, with what people wrote into it."""
        self.path.mkdir(parents=True, exist_ok=True)
        target = self.path / f"{bug.name}.json"
        if target.exists():
            return target
        write_whole(target, msgspec.json.format(msgspec.json.encode(bug), indent=1) + b"\n")
        return target


def read(file: Path) -> Bug:
    """The bug in a file."""
    try:
        bug = msgspec.json.decode(file.read_bytes(), type=Bug)
    except (msgspec.MsgspecError, OSError) as error:
        raise ValidationError(f"cannot read {file}: expected a bug that rqlab kept; {error}") from error
    if bug.rqlab > FORMAT:
        raise ValidationError(
            f"cannot read {file}: expected a bug of format {FORMAT} or older, found {bug.rqlab}; upgrade rqlab"
        )
    if unknown := sorted(bug.arguments.keys() - DEFAULTS.keys()):
        raise ValidationError(f"cannot read {file}: simulate has no argument {', '.join(unknown)}")
    if "durability" not in bug.arguments:
        raise ValidationError(f"cannot read {file}: expected arguments with a durability; found {bug.arguments!r:.100}")
    try:
        settings_of(DEFAULTS | bug.arguments | {"handler": None})
        checked_plan(bug.plan)
        arguments.whole(bug.seed, "seed", 0, 2**63)
    except ValidationError as error:
        raise ValidationError(f"cannot run {file} again: {error}") from error
    return bug
