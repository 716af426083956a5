"""JupyterLab as people use it: run a notebook, run a cell again, kill a worker by its button. In the dark."""

import shutil
from pathlib import Path

from playwright.sync_api import expect

from browser import looks, notebooks
from browser.conftest import Browse, Keep
from browser.servers import Server

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NAME = "01_kill_a_worker.ipynb"


def test_a_notebook_runs_and_its_panel_kills_a_worker(jupyterlab: Server, browse: Browse, keep: Keep) -> None:
    shutil.copy(NOTEBOOKS / NAME, jupyterlab.folder)
    page = browse("dark", width=1500)

    with notebooks.in_jupyterlab(jupyterlab, page, NAME):
        notebooks.run_all(page)
        keep(page, "notebook 01 in JupyterLab")
        assert page.locator("[data-mime-type$='err']:visible, [data-mime-type$='error']:visible").count() == 0

        page.locator(".jp-CodeCell", has_text="rqlab.lab(").locator(".cm-content").click()
        page.keyboard.press("Control+Enter")
        worker = page.locator(".rq-worker-w1")
        expect(worker).to_contain_text("idle")
        page.get_by_role("button", name="freeze w2", exact=True).click()
        page.get_by_role("button", name="push 1", exact=True).click()
        expect(worker).to_contain_text("active")
        page.get_by_role("button", name="kill -9 w1", exact=True).click()
        expect(worker).to_contain_text("killed")
        page.get_by_role("button", name="restart w1", exact=True).click()
        expect(page.locator(".rq-states")).to_contain_text("completed 1")
        expect(page.locator(".rq-header")).to_contain_text("SAFETY HOLDS ✓")
        keep(page, "lab in JupyterLab")
        assert looks.faint(page, ".rq-lab, .jp-OutputArea-output") == []
