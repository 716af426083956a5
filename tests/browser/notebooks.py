"""Notebooks for the tests of pages: made of a few cells, opened in Voila or in JupyterLab, run as a person would."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import nbformat
import psutil
from playwright.sync_api import Page, expect

from browser.servers import DEADLINE_SECONDS, Server


def write(server: Server, name: str, *cells: str) -> None:
    """A notebook of code cells, where the server finds it."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, server.folder / name)


@contextmanager
def in_voila(server: Server, page: Page, *cells: str, name: str = "page.ipynb") -> Iterator[None]:
    """The page of a notebook, with a kernel. Leaving it ends the kernel, as closing its tab does."""
    write(server, name, *cells)
    page.goto(f"{server.url}/voila/render/{name}")
    yield
    leave(server, page)


@contextmanager
def in_jupyterlab(server: Server, page: Page, name: str) -> Iterator[None]:
    """A notebook that is there already, opened with a kernel that answers.

    JupyterLab says "idle" before its kernel is connected, and then forgets what it was told to run: so the session is
    made first, and the page is ready when the server has seen it connect.
    """
    kernel = {"path": name, "name": name, "type": "notebook", "kernel": {"name": "python3"}}
    headers = {"Authorization": f"token {server.token}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=DEADLINE_SECONDS) as ask:
        session = ask.post("/api/sessions", json=kernel).raise_for_status().json()
        page.goto(f"{server.url}/lab/tree/{name}?token={server.token}")

        def connected() -> bool:
            found = ask.get(f"/api/kernels/{session['kernel']['id']}").raise_for_status().json()
            return found["connections"] >= 1 and found["execution_state"] == "idle"

        until(page, connected, "the page is connected to its kernel")
        yield
        ask.delete(f"/api/sessions/{session['id']}").raise_for_status()
    leave(server, page)


def run_all(page: Page) -> None:
    """Run every cell by the menu, as a person does, and wait until each has its number."""
    cells = page.locator(".jp-CodeCell .jp-InputPrompt")
    expect(cells.first).to_be_visible()
    assert set(cells.all_inner_texts()) == {"[ ]:"}
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    for number in range(cells.count()):
        expect(cells.nth(number)).to_have_text(re.compile(r"\[\d+\]:"))


def until(page: Page, condition: Callable[[], bool], promise: str) -> None:
    """Wait for something outside the page, while its events go on."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"after {DEADLINE_SECONDS} s still not: {promise}"
        page.wait_for_timeout(50)


def leave(server: Server, page: Page) -> None:
    """Go to an empty page, and wait until nothing that the old one started is left."""
    started = server.processes()
    page.goto("about:blank")
    _, alive = psutil.wait_procs(started, timeout=DEADLINE_SECONDS)
    assert not alive, f"closing the page left {[each.pid for each in alive]}\n{server.newest_log()}"
