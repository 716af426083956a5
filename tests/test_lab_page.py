"""`rqlab lab`: the page of the lab, as a command. What it looks like is for the browser tests."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rqlab import clock
from rqlab.clock import Bell
from rqlab.widgets.page import notebook, source

PATIENCE = 60.0


@pytest.mark.parametrize(
    ("directory", "jobs", "options", "says"),
    [
        (None, 10, {}, "lab = rqlab.lab()\nlab.push(10)\nlab"),
        (None, 0, {"durability": "hybrid"}, "lab = rqlab.lab(durability='hybrid')\nlab"),
        (Path("/a'b"), 1, {"seed": 7}, 'lab = rqlab.lab("/a\'b", seed=7)\nlab.push(1)\nlab'),
    ],
)
def test_the_page_says_what_was_asked_for(directory: Any, jobs: int, options: dict[str, Any], says: str) -> None:
    code = source(directory, jobs, options)

    assert code == f"import rqlab\n\n{says}"
    compile(code, "cell", "exec")


def test_the_page_is_a_notebook_without_outputs() -> None:
    nbformat = pytest.importorskip("nbformat")
    made = notebook("1 + 1")

    nbformat.validate(made)
    assert [cell["outputs"] for cell in made["cells"]] == [[]]


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_the_command_serves_on_loopback_and_ends_at_an_interrupt(port: int, tmp_path: Path) -> None:
    places = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR", "TMPDIR")}
    Path(places["TMPDIR"]).mkdir()
    share = os.pathsep.join(
        str(Path(place).parents[2] / "share" / "jupyter") for place in sys.path if "site-p" in place
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "rqlab", "lab", "--no-browser", "--port", str(port)],
        env={**os.environ, **places, "JUPYTER_PATH": share}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert listens("127.0.0.1", port, process)
        with pytest.raises(OSError):  # noqa: PT011  # refused or unreachable, as the system says it
            socket.create_connection(("127.0.0.2", port), 1).close()  # what listens on all addresses answers here
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE)[0].decode()
    finally:
        process.kill()
        process.wait()

    assert process.returncode == 0, said
    assert list(Path(places["TMPDIR"]).glob("rqlab-*")) == []


def listens(host: str, port: int, process: "subprocess.Popen[bytes]") -> bool:
    by = clock.monotonic() + PATIENCE
    while clock.monotonic() < by and process.poll() is None:
        try:
            socket.create_connection((host, port), 1).close()
        except OSError:
            Bell().wait(0.05)
        else:
            return True
    return False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--durability", "eventual"], "expected one of 'durable'"),
        (["--handler", "nowhere:send"], "no module named 'nowhere'"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_served(arguments: list[str], says: str) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "rqlab", "lab", "--no-browser", *arguments], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip

    assert told.returncode == 2
    assert says in told.stderr
