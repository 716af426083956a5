"""Voila and JupyterLab for a test run: on loopback, in folders of their own, gone afterwards with all they started."""

import importlib.metadata
import json
import os
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from rqlab.widgets.page import TAB_CLOSES

DEADLINE_SECONDS = 60.0  # for a server to listen, and to end: about 2 on a quiet machine
LOG_LINES = 60  # of a server's log, where a test fails
PORTS = (10_000, 32_000)  # below those that the kernel gives to outgoing connections: none is taken between two calls

LAB_SETTINGS = {
    "page_config.json": {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}},  # its news
    "default_setting_overrides.json": {
        "@jupyterlab/apputils-extension:themes": {"adaptive-theme": True},  # dark where the browser says dark
        "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # cells below the screen are there too
        "@jupyterlab/docmanager-extension:plugin": {"autosave": False},  # else the page asks about changes on disk
    },
}

#: A server ends with the tests, however they end: its standard input is a pipe that nobody writes to.
GUARDED = """
import os, signal, sys, threading
def end_with_the_tests():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end_with_the_tests, daemon=True).start()
module, sys.argv = sys.argv[1], sys.argv[1:]
from importlib import import_module
import_module(module).main()
"""


Options = Callable[[int, str, Path], list[str]]  #: of a port, a token, and the folder that is served


@dataclass
class Server:
    """A server that answers."""

    process: subprocess.Popen[bytes]
    port: int
    token: str
    folder: Path  #: what it serves
    log: Path
    own: frozenset[psutil.Process] = frozenset()  #: its processes before anybody opened a page

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> list[psutil.Process]:
        """What it started for its pages, and what that started: kernels and their workers."""
        return [each for each in started_below(self.folder.parent) if each not in self.own]

    def newest_log(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])


@contextmanager
def voila(home: Path) -> Iterator[Server]:
    """Voila on every notebook in `home`/served: `/voila/render/NAME.ipynb`."""

    def options(port: int, token: str, served: Path) -> list[str]:
        return [
            "--Voila.ip=127.0.0.1", f"--Voila.port={port}", "--Voila.port_retries=0", "--no-browser",
            "--show_tracebacks=True", TAB_CLOSES, str(served),
        ]  # fmt: skip

    with _served("voila.app", options, home) as server:
        yield server


@contextmanager
def lab_page(home: Path, *arguments: str) -> Iterator[Server]:
    """The command `rqlab lab` with these arguments, as `make voila` calls it."""

    def options(port: int, token: str, served: Path) -> list[str]:
        return ["lab", "--no-browser", "--port", str(port), *arguments]

    with _served("rqlab.cli", options, home) as server:
        yield server


@contextmanager
def jupyterlab(home: Path) -> Iterator[Server]:
    """JupyterLab on `home`/served."""
    settings = home / "config" / "labconfig"
    settings.mkdir(parents=True)
    for name, content in LAB_SETTINGS.items():
        (settings / name).write_text(json.dumps(content))

    def options(port: int, token: str, served: Path) -> list[str]:
        return [
            "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--no-browser",
            f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={served}",
            "--LabApp.extension_manager=readonly", *(["--allow-root"] if os.geteuid() == 0 else []),
        ]  # fmt: skip

    with _served("jupyterlab.labapp", options, home) as server:
        yield server


@contextmanager
def _served(module: str, options: Options, home: Path) -> Iterator[Server]:
    served, log = home / "served", home / "server.log"
    served.mkdir(parents=True, exist_ok=True)
    port, token = _free_port(), secrets.token_hex(16)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", GUARDED, module, *options(port, token, served)],
            stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, cwd=served, env=environment(home),
            start_new_session=True,
        )  # fmt: skip
    server = Server(process, port, token, served, log)
    try:
        _wait_until_it_listens(server)
        server.own = frozenset(started_below(home))
        yield server
    finally:
        _end(server)


def environment(home: Path) -> dict[str, str]:
    """Jupyter's folders below `home`: neither read nor written is what the person who runs the tests has."""
    folders = {
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_DATA_DIR": home / "data",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "IPYTHONDIR": home / "ipython",
        "TMPDIR": home / "tmp",
    }
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON", "VOILA"))}
    return kept | {name: str(folder) for name, folder in folders.items()} | _installed()


def started_below(home: Path) -> list[psutil.Process]:
    """Whatever lives in the environment of `home`: children, and orphans in sessions of their own."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(home / "tmp") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:  # it is somebody else's, or gone
            continue
    return found


def _installed() -> dict[str, str]:
    """Where pip put templates and extensions: an environment that borrows packages looks in the wrong place."""
    shared = installed_share()
    return {"JUPYTER_PATH": str(shared), "JUPYTERLAB_DIR": str(shared / "lab")}


def installed_share() -> Path:
    """The folder `share/jupyter` that came with the installed JupyterLab."""
    files = importlib.metadata.files("jupyterlab") or []
    (schema, *_) = [each for each in files if "share/jupyter/lab/" in each.as_posix()]
    where = Path(str(schema.locate())).resolve()
    return next(parent for parent in where.parents if parent.name == "jupyter")


def _free_port() -> int:
    for port in random.SystemRandom().sample(range(*PORTS), 100):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no port between {PORTS[0]} and {PORTS[1]} is free")


def _wait_until_it_listens(server: Server) -> None:
    def listens() -> bool:
        assert server.process.poll() is None, f"the server ended while starting:\n{server.newest_log()}"
        with socket.socket() as asked:
            return asked.connect_ex(("127.0.0.1", server.port)) == 0

    assert wait_until(listens), f"no server after {DEADLINE_SECONDS} s:\n{server.newest_log()}"


def wait_until(condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> bool:
    """Ask twenty times a second. Not where a page is open: its own waits let its events through."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.05)
    return True


def _end(server: Server) -> None:
    """SIGTERM, as a person's Ctrl-C would: kernels are shut down. What is still there then is killed, and told."""
    started = [each for each in started_below(server.folder.parent) if each.pid != server.process.pid]
    server.process.terminate()
    try:
        server.process.wait(DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
    assert server.process.stdin is not None
    server.process.stdin.close()
    _, alive = psutil.wait_procs(started, timeout=DEADLINE_SECONDS / 3)
    left = [f"{each.pid} {' '.join(each.cmdline())}" for each in alive if each.is_running()]
    for each in alive:
        each.kill()
    assert not left, f"the server left processes behind: {left}\n{server.newest_log()}"
