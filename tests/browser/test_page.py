"""`rqlab lab`, as make voila calls it: a page for each visitor, which ends with its tab."""

from pathlib import Path

from playwright.sync_api import Page, expect

from browser import looks, notebooks, servers
from browser.conftest import Browse, Keep


def test_a_visitor_has_a_lab_that_ends_with_its_tab(page: Page, tmp_path: Path) -> None:
    with servers.lab_page(tmp_path, "--jobs", "1", "--workers", "1") as server:
        page.goto(server.url)
        expect(page.locator(".rq-states")).to_contain_text("completed 1")
        expect(page.locator(".rq-header")).to_contain_text("SAFETY HOLDS ✓")
        started = server.processes()
        assert sum("rqlab" in " ".join(each.cmdline()) for each in started) >= 2, "a producer and a worker"

        notebooks.leave(server, page)


def test_the_page_is_dark_where_its_address_asks_for_it_and_can_be_read(
    browse: Browse, keep: Keep, tmp_path: Path
) -> None:
    page = browse("dark", width=900)
    with servers.lab_page(tmp_path, "--jobs", "1", "--workers", "1") as server:
        page.goto(f"{server.url}/?theme=dark")
        expect(page.locator(".rq-states")).to_contain_text("completed 1")
        keep(page, "the lab as a dark page")

        assert page.evaluate("getComputedStyle(document.body).getPropertyValue('--jp-layout-color0')").strip() == "#111"
        assert looks.faint(page) == []

        notebooks.leave(server, page)
