"""The explorer as a class sees it, in Voila: sliders make new simulations, the scrubber goes through one of them."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from browser import looks, notebooks
from browser.conftest import Keep
from browser.servers import Server


class Explorer:
    """What a person does and reads."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def piece(self, name: str) -> Locator:
        return self.page.locator(f".rq-{name}")

    def press(self, words: str) -> None:
        self.page.get_by_role("button", name=words, exact=True).click()

    def says(self, piece: str, words: str | re.Pattern[str]) -> None:
        expect(self.piece(piece)).to_contain_text(words)

    def slide(self, name: str, key: str) -> None:
        """Move a slider by the keyboard."""
        self.piece(name).locator(".noUi-handle").press(key)

    @property
    def event(self) -> int:
        (number,) = re.findall(r"event (\d+) of", self.piece("caption").inner_text())
        return int(number)


@pytest.fixture
def explorer(voila: Server, page: Page) -> Iterator[Explorer]:
    with notebooks.in_voila(voila, page, "import rqlab\nrqlab.explorer()"):
        shown = Explorer(page)
        shown.says("verdict", "again: rqlab.simulate(seed=7)")
        shown.says("caption", "event 0 of")
        yield shown
        expect(shown.piece("problem")).to_have_text("")


def test_a_slider_makes_a_new_result(explorer: Explorer, keep: Keep) -> None:
    explorer.slide("crashes", "ArrowLeft")
    explorer.says("verdict", "rqlab.simulate(2, seed=7)")

    explorer.press("next seed")
    explorer.says("verdict", "durable, seed 8")

    explorer.press("hybrid")
    explorer.says("verdict", "hybrid, seed 8")
    explorer.says("verdict", "SAFETY HOLDS")
    keep(explorer.page, "explorer of another seed in hybrid")


def test_the_scrubber_goes_from_crash_to_crash_and_says_what_each_took(explorer: Explorer, keep: Keep) -> None:
    seen = []
    for caption in ("kill -9 took worker-3's process", "worker-1's thread crashed", "The power failed"):
        explorer.press("next crash")
        explorer.says("caption", caption)
        seen.append(explorer.event)
    explorer.says("platter", "power cut")
    keep(explorer.page, "explorer at the power cut")
    explorer.press("previous crash")
    explorer.says("caption", f"event {seen[1]} of")
    explorer.press("step back")
    explorer.says("caption", f"event {seen[1] - 1} of")

    assert seen == sorted(set(seen))
    assert looks.faint(explorer.page, ".rq-caption, .rq-standing, .rq-platter, .rq-verdict") == []


def test_play_goes_through_the_events_and_each_has_a_caption(explorer: Explorer) -> None:
    caption = explorer.piece("caption")
    captions = [caption.inner_text()]
    explorer.piece("play").get_by_role("button").first.click()
    for _ in range(3):
        expect(caption).not_to_have_text(captions[-1], use_inner_text=True)
        captions.append(caption.inner_text())

    assert len(set(captions)) == 4
    assert all(re.search(r"event \d+ of \d+, at [\d.]+ m?s\n.+\.", caption) for caption in captions)


def test_the_retries_tab_draws_the_strategy_that_was_chosen(explorer: Explorer, keep: Keep) -> None:
    explorer.page.get_by_role("tab", name="retries").click()
    explorer.says("retries-curve", "exponential")
    expect(explorer.piece("retries-story").locator("svg")).to_be_visible()

    explorer.press("fixed")
    explorer.slide("retries-failure-rate", "End")

    explorer.says("retries-curve", "fixed")
    explorer.says("retries-story", "then it is given up")
    expect(explorer.piece("retries-story").get_by_role("listitem")).to_have_count(6)
    keep(explorer.page, "explorer's retries")
    assert looks.faint(explorer.page, ".rq-retries-curve, .rq-retries-story") == []
