"""The lab as a class sees it: a Voila page whose buttons kill real processes. The system is asked if that is true."""

import re
from collections.abc import Iterator

import psutil
import pytest
from playwright.sync_api import Locator, Page, expect

from browser import looks, notebooks
from browser.conftest import Keep
from browser.servers import Server

CELL = "import rqlab\nlab = rqlab.lab(workers=2, seconds={seconds}, failure_rate={failure_rate}, seed=7)\nlab"


class Lab:
    """What a person does and reads."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def piece(self, name: str) -> Locator:
        return self.page.locator(f".rq-{name}")

    def press(self, words: str) -> None:
        self.page.get_by_role("button", name=words, exact=True).click()

    def row(self, name: str) -> Locator:
        return self.piece(f"worker-{name}")

    def says(self, piece: str, *words: str) -> None:
        """Wait until a piece of the panel says all of this."""
        for each in words:
            expect(self.piece(piece)).to_contain_text(each)

    def pid(self, name: str) -> int:
        expect(self.row(name)).to_contain_text(re.compile(r"\d{2}"))
        return int(re.findall(r"\d+", self.row(name).inner_text().removeprefix(name))[0])

    def active(self) -> str:
        """The name of a worker that runs a job."""
        row = self.page.locator("[class*='rq-worker-w']", has_text="active").first
        expect(row).to_be_visible()
        return row.inner_text().split()[0]

    def holds(self) -> None:
        expect(self.piece("header").get_by_role("status")).to_have_text("SAFETY HOLDS ✓")


@pytest.fixture
def lab(voila: Server, page: Page, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab on a page; after it nothing that it started is left."""
    told = {"seconds": 1.0, "failure_rate": 0.0} | getattr(request, "param", {})
    with notebooks.in_voila(voila, page, CELL.format(**told)):
        shown = Lab(page)
        shown.holds()
        for name in ("w1", "w2"):
            shown.says(f"worker-{name}", "idle")
        yield shown
        expect(shown.piece("problem")).to_have_text("")


@pytest.mark.parametrize("lab", [{"seconds": 4.0}], indirect=True)
def test_the_job_of_a_killed_worker_is_recovered_and_the_worker_starts_again(lab: Lab, keep: Keep) -> None:
    lab.press("push 1")
    victim = lab.active()
    pid = lab.pid(victim)

    lab.press(f"kill -9 {victim}")

    lab.says(f"worker-{victim}", "killed")
    assert not psutil.pid_exists(pid)
    lab.says("events", "kill -9")
    keep(lab.page, "lab after kill -9")
    lab.press(f"restart {victim}")
    lab.says(f"worker-{victim}", "idle")
    assert lab.pid(victim) != pid
    assert psutil.pid_exists(lab.pid(victim))
    lab.says("events", "stall")
    lab.says("states", "completed 1")
    lab.holds()
    keep(lab.page, "lab after recovery")


@pytest.mark.parametrize("lab", [{"seconds": 4.0}], indirect=True)
def test_a_frozen_worker_loses_its_job_and_cannot_finish_it_when_it_thaws(lab: Lab, keep: Keep) -> None:
    lab.press("push 1")
    victim = lab.active()
    process = psutil.Process(lab.pid(victim))

    lab.press(f"freeze {victim}")

    lab.says(f"worker-{victim}", "frozen")
    assert process.status() == psutil.STATUS_STOPPED
    lab.says("events", "stall")
    keep(lab.page, "lab with a frozen worker")
    lab.press(f"thaw {victim}")
    lab.says("states", "completed 1")
    lab.says(f"worker-{victim}", "idle")
    assert process.status() != psutil.STATUS_STOPPED
    lab.holds()


def test_the_selector_changes_the_mode_and_one_process_then_owns_the_jobs(lab: Lab, keep: Keep) -> None:
    pids = [lab.pid(name) for name in ("producer", "w1", "w2")]

    lab.piece("mode").locator("select").select_option("hybrid")

    lab.says("header", "mode hybrid")
    lab.says("worker-owner", "running")
    assert not any(map(psutil.pid_exists, pids))
    lab.press("push 100")
    lab.says("mission", "100 acknowledged")
    owner = lab.pid("owner")
    lab.press("kill -9 owner")
    lab.says("worker-owner", "killed")
    assert not psutil.pid_exists(owner)
    lab.press("restart owner")
    lab.says("worker-owner", "running")
    lab.holds()
    keep(lab.page, "lab in hybrid after kill -9")


def test_the_lab_can_be_read_and_says_what_its_light_judges(lab: Lab, keep: Keep) -> None:
    lab.press("push 10")
    lab.says("states", "completed 10")
    lab.piece("checks").locator("summary").click()

    expect(lab.piece("checks")).to_contain_text("not judged here")
    keep(lab.page, "lab in light")
    assert looks.faint(lab.page) == []


HOSTILE = """
import rqlab
said = "<img src=x onerror='window.pwned = 1'></pre></svg><script>window.pwned = 1</script>\\x1b[31m\\u202e"
def handler(job):
    raise rqlab.DeadLetter(said)
lab = rqlab.lab(workers=1, handler=handler, data={said: said})
lab
"""


def test_what_a_handler_raises_is_shown_as_text(voila: Server, page: Page, keep: Keep) -> None:
    with notebooks.in_voila(voila, page, HOSTILE):
        lab = Lab(page)
        lab.says("worker-w1", "idle")
        lab.press("push 1")
        lab.says("states", "dlq 1")
        lab.says("events", "<img src=x onerror='window.pwned")
        page.locator(".rq-timeline rect:has(title)").first.hover()
        keep(page, "lab with a hostile handler")

        assert page.locator(".rq-lab :is(img, script, iframe)").count() == 0
        assert page.evaluate("() => window.pwned") is None
