"""A notebook leaves nothing behind: no process, no file. nbmake runs each; this looks afterwards."""

import os
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

MARK = "RQLAB_NOTEBOOK"  # in the environment of a kernel, and so of all that it starts
GRACE_SECONDS = 2.0  # a worker whose parent is gone notices at once, and needs a moment to end
HERE = Path(__file__).parent


def started_under(mark: str) -> list[psutil.Process]:
    """Whatever lives and has this mark, children, orphans and new sessions alike."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:  # it is somebody else's, or gone
            continue
    return found


def files() -> set[Path]:
    return {path for path in HERE.rglob("*") if not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    mark = f"{item.name}-{os.getpid()}"
    before = files()
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, mark)
        patch.setenv("TMPDIR", temporary)
        outcome = yield
        deadline = time.monotonic() + GRACE_SECONDS
        while (alive := started_under(mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
        processes = [" ".join(process.cmdline()) for process in alive]
        left = [*processes, *(path.name for path in Path(temporary).iterdir()), *sorted(map(str, files() - before))]
    if left:
        pytest.fail(f"{item.name} left behind: {', '.join(left)}", pytrace=False)
    return outcome
