"""Files that rqlab writes beside its directories of jobs: each is there whole, or as it was, whatever fails meanwhile.

Knows neither jobs nor documents. A rename alone is not enough: after a power cut the new name may be there with nothing
in it, so the content is made safe before the name, and the name before the call returns.
"""

import contextlib
import os
from pathlib import Path


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, safe from a power cut when this returns; the file that was there before is replaced at once.

    What is no file, as a pipe or a terminal, is written to as it is.
    """
    target = Path(path).resolve()  # a link stays one, and what it points to is replaced
    if target.exists() and not target.is_file():
        target.write_bytes(content)
        return
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    with contextlib.suppress(PermissionError):  # it may be entered but not read: then nobody can make its names safe
        sync_names(target.parent)


def sync_names(directory: Path) -> None:
    """Make the names of the files in a directory safe: a file is safe under its name only when the directory is."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
