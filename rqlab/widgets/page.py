"""The command `rqlab lab`: the lab as a page of its own, by Voila; or in JupyterLab, with the code that made it.

The page is a notebook of one cell, made when it is asked for: so it shows what was asked. Each visitor gets a kernel,
and with it a lab; both end when the page is closed.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from rqlab import executors
from rqlab.errors import ValidationError
from rqlab.executors.loading import load
from rqlab.widgets.controller import checked_mode
from rqlab.widgets.shell import INSTALL

LOOPBACK = "127.0.0.1"
PORT = 8866  # Voila's own
IDLE_SECONDS = 300  # after which the kernel of a page that was closed without a word is ended
#: Voila refuses its own page's word that a tab was closed, for want of a token, and kernel and workers stay: Voila 0.5
#: with jupyter_server 2 (2024-04, https://github.com/voila-dashboards/voila/issues/1458; tests/browser/test_page.py).
#: The word names the kernel by an id that no other page knows.
TAB_CLOSES = "--Voila.tornado_settings=disable_check_xsrf=True"


def lab(
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Of the queue; else a temporary one.", show_default=False)
    ] = None,
    durability: Annotated[str, typer.Option(help="The durability mode to begin with.")] = "durable",
    workers: Annotated[int, typer.Option(min=1, max=16, help="How many.")] = 2,
    handler: Annotated[
        str | None, typer.Option(metavar="MODULE:HANDLER", help="What runs the jobs.", show_default="the demo's")
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, max=1000, help="Pushed at the start.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of durations and failures.")] = 1,
    jupyter: Annotated[bool, typer.Option("--jupyter", help="In JupyterLab, with the code.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="To listen on.")] = PORT,
    ip: Annotated[str, typer.Option(help="To listen on; 0.0.0.0 lets a classroom in, without a password.")] = LOOPBACK,
    browser: Annotated[bool, typer.Option(help="Open it in a browser.")] = True,
) -> None:
    """Open the lab: real workers to kill, freeze and restart by buttons.

    It ends with Ctrl-C, and leaves no process behind. What it needs beside rqlab is the extra called lab.
    """
    server = "jupyterlab" if jupyter else "voila"
    if importlib.util.find_spec(server) is None:
        raise ValidationError(f"lab: expected {server} to be installed, found none. {INSTALL}")
    checked_mode(durability)
    if handler is not None:
        executors.checked(load(handler))
    said = {"durability": durability, "workers": workers, "seed": seed, "handler": handler}
    defaults = {"durability": "durable", "workers": 2, "seed": 1, "handler": None}
    options = {name: value for name, value in said.items() if value != defaults[name]}
    with tempfile.TemporaryDirectory(prefix="rqlab-page-") as home:
        path = Path(home) / "lab.ipynb"
        path.write_text(json.dumps(notebook(source(directory, jobs, options))))
        raise typer.Exit(_served(_command(server, path, ip, port, browser)))


def source(directory: Path | None, jobs: int, options: dict[str, Any]) -> str:
    """The cell: what somebody would write who wants this lab."""
    place = [] if directory is None else [repr(str(directory.absolute()))]
    arguments = ", ".join([*place, *(f"{name}={value!r}" for name, value in options.items())])
    push = f"lab.push({jobs})\n" if jobs else ""
    return f"import rqlab\n\nlab = rqlab.lab({arguments})\n{push}lab"


def notebook(code: str) -> dict[str, Any]:
    """A notebook of one cell, without outputs."""
    cell: dict[str, Any] = {
        "cell_type": "code",
        "id": "lab",
        "execution_count": None,
        "metadata": {},
        "outputs": [],
        "source": code,
    }
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {
        "cells": [cell],
        "metadata": {"kernelspec": kernel, "title": "rqlab.lab"},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _command(server: str, path: Path, ip: str, port: int, browser: bool) -> list[str]:
    app = "ServerApp" if server == "jupyterlab" else "Voila"
    command = [sys.executable, "-m", server, str(path), f"--{app}.ip={ip}", f"--{app}.port={port}"]
    if server == "jupyterlab" and os.geteuid() == 0:
        command.append("--allow-root")  # it asks for it in containers, where everybody is root
    if server == "voila":
        command += [
            "--show_tracebacks=True",
            TAB_CLOSES,
            "--MappingKernelManager.cull_interval=60",
            f"--MappingKernelManager.cull_idle_timeout={IDLE_SECONDS}",
        ]
    return [*command, *([] if browser else ["--no-browser"])]


def _served(command: list[str]) -> int:
    """Serve until it is told to end: Ctrl-C and SIGTERM end it with its kernels, and without a question."""
    path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))  # of the user's handlers
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, env=environment)
    told = threading.Event()

    def end(number: int, frame: object) -> None:
        told.set()
        process.terminate()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0 if told.is_set() else code  # Voila, told to end as it begins, says 1
