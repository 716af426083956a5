"""How a piece of HTML looks to people: in JupyterLab's own light and dark, and where pages strip what they distrust."""

from typing import NamedTuple

from playwright.sync_api import Page

from browser.servers import installed_share

SCHEMES = ("light", "dark")
LEAST_CONTRAST = 4.5  # of text; WCAG 2.2, level AA

#: What GitHub leaves of a notebook's output: no styles, no SVG, nothing that runs.
STRIP = """() => {
    for (const each of document.querySelectorAll('svg, style, script')) each.remove();
    for (const each of document.querySelectorAll('*')) for (const name of ['style', 'class', 'id']) each.removeAttribute(name);
}"""  # noqa: E501  # JavaScript

#: Each piece of visible text that has letters, with its contrast: colours are laid over one another from the page's
#: paper up to the text. A glyph alone is a second cue, and may be as faint as the colour that it goes with, and what
#: cannot be pressed is meant to step back.
CONTRASTS = """within => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = colour => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const over = (top, below) => below.map((each, n) => top[n] * top[3] / 255 + each * (1 - top[3] / 255));
    const light = colour => {
        const [r, g, b] = colour.map(each => each / 255).map(
            each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const paper = element => {
        const below = element.parentElement ? paper(element.parentElement) : [255, 255, 255];
        return over(rgba(getComputedStyle(element).backgroundColor), below);
    };
    const under = (text, drawing) => {
        const at = text.getBoundingClientRect(), x = (at.left + at.right) / 2, y = (at.top + at.bottom) / 2;
        return [...drawing.querySelectorAll('rect')].filter(each => {
            const box = each.getBoundingClientRect(), drawn = each.compareDocumentPosition(text) & 4;
            return drawn && box.left <= x && x <= box.right && box.top <= y && y <= box.bottom;
        }).map(each => getComputedStyle(each).fill).filter(fill => fill.startsWith('rgb')).reduce(
            (ground, fill) => over(rgba(fill), ground), paper(drawing));
    };
    const found = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const words = walk.currentNode.textContent.trim(), element = walk.currentNode.parentElement;
        if (!/[\\p{L}\\p{N}]/u.test(words)) continue;
        if (!element.checkVisibility() || element.closest('title, desc, :disabled')) continue;
        if (!element.closest(within)) continue;
        const style = getComputedStyle(element), drawing = element.closest('svg');
        const ground = drawing ? under(element, drawing) : paper(element);
        const ink = over(rgba(drawing ? style.fill : style.color), ground);
        const [low, high] = [light(ink), light(ground)].sort((a, b) => a - b);
        found.push([words.slice(0, 40), (high + 0.05) / (low + 0.05)]);
    }
    return found;
}"""


class Faint(NamedTuple):
    """Text that is hard to read."""

    words: str
    contrast: float


def show(page: Page, html: str, scheme: str = "light") -> None:
    """A piece of HTML on JupyterLab's paper, in JupyterLab's colours."""
    theme = installed_share() / "lab" / "themes" / "@jupyterlab" / f"theme-{scheme}-extension" / "index.css"
    page.set_content(
        f'<!DOCTYPE html><meta charset="utf-8"><style>{theme.read_text()}</style>'
        '<body style="background:var(--jp-layout-color0);color:var(--jp-content-font-color1);'
        f'font-family:var(--jp-content-font-family);margin:12px">{html}'
    )


def strip(page: Page) -> None:
    """Take away what GitHub takes away."""
    page.evaluate(STRIP)


def faint(page: Page, within: str = "body") -> list[Faint]:
    """Visible text below the contrast that people need, in whatever this selects."""
    found = page.evaluate(CONTRASTS, within)
    return [Faint(words, round(contrast, 1)) for words, contrast in found if contrast < LEAST_CONTRAST]
