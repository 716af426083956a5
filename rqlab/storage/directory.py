"""Directories whose names survive a power cut. Knows nothing of what is stored in them."""

import contextlib
from pathlib import Path

from rqlab.files import sync_names
from rqlab.storage.entries import DATABASE


def make_safely(path: Path) -> None:
    """Make a directory whose name survives a power cut: SQLite syncs the names in it, nobody its own.

    The parent of a directory that is there but has no database is synced too: whoever made it may have died first.
    """
    path = path.absolute()
    if (path / DATABASE).exists():
        return
    unsafe = [path.parent, *(each.parent for each in path.parents if not each.exists())]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)  # diskcache would make it 0755
    for parent in unsafe:
        with contextlib.suppress(PermissionError):  # it may be entered but not read: then it was there before us
            sync_names(parent)
