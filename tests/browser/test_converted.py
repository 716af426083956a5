"""Notebooks as pages without a kernel, as a reader on the web has them: run, converted, and read in a browser."""

import re
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from nbconvert.preprocessors import ExecutePreprocessor
from playwright.sync_api import Locator, Page, expect

from browser import looks, servers
from browser.conftest import Keep

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
#: What a page says instead of a widget that has no kernel, and instead of what a cell wanted to say.
EXCUSES = ("model not found", "Error displaying widget", "Loading widget", "A Jupyter Widget", "Traceback (most recent")
CUT = re.compile(r"(\.\.\.|…)$")
SECONDS = 100  # for one cell


def converted(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The notebook's page, with its outputs but without the state of its widgets."""
    for variable, value in servers.environment(home).items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    run = ExecutePreprocessor(timeout=SECONDS, store_widget_state=False)
    run.preprocess(notebook, {"metadata": {"path": str(NOTEBOOKS)}})
    page, _ = HTMLExporter(theme="light").from_notebook_node(notebook)
    return str(page)


@pytest.mark.parametrize(
    "name",
    [
        "01_kill_a_worker.ipynb",
        "03_what_does_durable_mean.ipynb",
        "06_scrub_a_crash.ipynb",
        "07_exactly_once_is_a_lie.ipynb",
    ],
)
def test_a_converted_notebook_reads_well_without_a_kernel(
    name: str, page: Page, keep: Keep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "converted.html"
    file.write_text(converted(name, tmp_path, monkeypatch))

    page.goto(file.as_uri())

    outputs = page.locator(".jp-OutputArea-output")
    expect(outputs.first).to_be_visible()
    keep(page, f"converted {Path(name).stem}")
    words = page.inner_text("body")
    assert [each for each in EXCUSES if each in words] == []
    assert [each for each in outputs.all() if not is_there(each)] == []
    pictures = page.locator(".jp-OutputArea-output img")
    assert pictures.evaluate_all("all => all.filter(each => !(each.complete && each.naturalWidth)).length") == 0
    assert page.locator("img[alt^='No description']").count() == 0, "nbconvert found no alt text"
    assert looks.faint(page, ".jp-OutputArea-output") == []
    assert page.locator("td", has_text=CUT).all_inner_texts() == [], "pandas cut what explains"
    assert page.locator("script[type*='widget-state']").count() == 0
    assert "rqlab-lab-" not in words, "a directory of the machine that ran it"


def is_there(output: Locator) -> bool:
    """Whether an output shows words or a picture."""
    box = output.bounding_box()
    return bool(box and box["height"] and (output.inner_text().strip() or output.locator("img, svg").count()))
