"""Chromium, its pages, and the servers that they look at.

A page fails its test when its console shows an error. Every page is kept as a screenshot in build/screenshots: at the
end of a test that failed, and where a test says so. Chromium is Debian's; `playwright install` is not needed.

Nothing sleeps: a wait names what it waits for. playwright's own waits let the page's events through; time.sleep stops
them.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Error, Page, expect, sync_playwright

from browser import servers
from browser.servers import Server

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
INSTALL = "apt-get install --yes chromium"
NAMES = ("chromium", "chromium-browser", "google-chrome")
TEST_SECONDS = 300  # for one test with its servers, where the others have 120: about 20 on a quiet machine
WAIT_MILLISECONDS = 60_000  # for anything to show: a kernel starts in 2 s, on a busy machine in 20
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip
#: Errors that a console may show, and why.
EXPECTED = {
    r"ERR_NAME_NOT_RESOLVED": "a page asked for something outside this machine, and was refused",
    r"/lsp/status": "no test needs a language server, and not every installation has one",
    r"favicon\.ico": "nobody gave the page an icon",
}

CONTEXTS = pytest.StashKey[list[BrowserContext]]()  # of a test: where its pages are

Keep = Callable[[Page, str], Path]
expect.set_options(timeout=WAIT_MILLISECONDS)

Browse = Callable[..., Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Where chromium is. Without it a person's tests are skipped, as the README says; the gate's fail."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        said = f"no chromium (looked for {', '.join(NAMES)}): {INSTALL}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(said)
    return found


@pytest.fixture(scope="package")
def chromium(chromium_path: str) -> Iterator[Browser]:
    """One browser. It is closed before other tests go on: playwright keeps an event loop running in this thread."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Browse]:
    """Opens an empty page, `browse("dark")` for a person who likes the dark. `errors=False`: they are its point."""
    contexts = request.node.stash.setdefault(CONTEXTS, [])
    found: list[str] = []

    def open_page(scheme: str = "light", width: int = 1100, height: int = 1500, errors: bool = True) -> Page:
        context = chromium.new_context(color_scheme=scheme, viewport={"width": width, "height": height})  # type: ignore[arg-type]
        context.set_default_timeout(WAIT_MILLISECONDS)
        if errors:
            context.on("console", lambda message: _note(message, found))
            context.on("weberror", lambda error: found.append(str(error.error)))
        contexts.append(context)
        return context.new_page()

    yield open_page
    for context in contexts:
        context.close()
    assert found == []


@pytest.fixture
def page(browse: Browse) -> Page:
    return browse()


@pytest.fixture
def keep() -> Keep:
    """Keeps a picture of a moment that is worth a look: `keep(page, "the lab in the dark")`."""
    return _screenshot


@pytest.fixture(scope="package")
def voila(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.voila(tmp_path_factory.mktemp("voila")) as server:
        yield server


@pytest.fixture(scope="package")
def jupyterlab(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.jupyterlab(tmp_path_factory.mktemp("jupyterlab")) as server:
        yield server


def _note(message: ConsoleMessage, errors: list[str]) -> None:
    where = message.location.get("url", "")
    if message.type == "error" and not any(re.search(each, f"{message.text} {where}") for each in EXPECTED):
        errors.append(f"{message.text} ({where})")


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-")


def _screenshot(page: Page, name: str) -> Path:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{_slug(name)}.png"
    try:
        page.screenshot(path=path, full_page=True)
    except Error as error:  # a page that crashed, at the end of a test that failed: that one is to be read
        path.with_suffix(".txt").write_text(str(error))
    return path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
    """Keeps how the pages of a test look that has just failed, and shows the log of its servers."""
    report = yield
    if report.when == "setup":
        for old in SCREENSHOTS.glob(f"failed-*-{_slug(item.name)}-[0-9].png"):
            old.unlink(missing_ok=True)
    if report.failed:
        pages = [page for context in item.stash.get(CONTEXTS, []) for page in context.pages]
        for number, page in enumerate(pages):
            _screenshot(page, f"failed {report.when} {item.name} {number}")
        used = getattr(item, "funcargs", {})
        for name in ("voila", "jupyterlab"):
            if name in used:
                report.sections.append((f"log of {name}", used[name].newest_log()))
    return report
