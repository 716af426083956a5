"""`rqlab lab`, as make voila calls it: a page for each visitor, which ends with its tab."""

from pathlib import Path

from playwright.sync_api import Page, expect

from browser import notebooks, servers


def test_a_visitor_has_a_lab_that_ends_with_its_tab(page: Page, tmp_path: Path) -> None:
    with servers.lab_page(tmp_path, "--jobs", "1", "--workers", "1") as server:
        page.goto(server.url)
        expect(page.locator(".rq-states")).to_contain_text("completed 1")
        expect(page.locator(".rq-header")).to_contain_text("SAFETY HOLDS ✓")
        started = server.processes()
        assert sum("rqlab" in " ".join(each.cmdline()) for each in started) >= 2, "a producer and a worker"

        notebooks.leave(server, page)
