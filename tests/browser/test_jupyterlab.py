"""JupyterLab as people use it: open a notebook, run all of it, kill a worker by its button, run the cell again."""

from playwright.sync_api import expect

from browser import looks, notebooks
from browser.conftest import Browse, Keep
from browser.servers import Server

CELL = "import rqlab\nlab = rqlab.lab(workers=1, seconds=3, failure_rate=0, seed=7)\nlab"


def test_a_notebook_runs_and_its_panel_kills_a_worker_in_the_dark(
    jupyterlab: Server, browse: Browse, keep: Keep
) -> None:
    notebooks.write(jupyterlab, "lab.ipynb", CELL)
    page = browse("dark", width=1500)

    with notebooks.in_jupyterlab(jupyterlab, page, "lab.ipynb"):
        notebooks.run_all(page)
        expect(page.locator(".rq-worker-w1")).to_contain_text("idle")
        page.get_by_role("button", name="push 1", exact=True).click()
        expect(page.locator(".rq-worker-w1")).to_contain_text("active")
        page.get_by_role("button", name="kill -9 w1", exact=True).click()
        expect(page.locator(".rq-worker-w1")).to_contain_text("killed")
        page.get_by_role("button", name="restart w1", exact=True).click()
        expect(page.locator(".rq-states")).to_contain_text("completed 1")
        expect(page.locator(".rq-header")).to_contain_text("SAFETY HOLDS ✓")
        keep(page, "lab in JupyterLab in the dark")
        assert looks.faint(page, ".rq-lab") == []
