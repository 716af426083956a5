"""Records, results and panels as a browser shows them: nothing that callers wrote runs, and all of it can be read."""

import base64
from collections.abc import Callable
from typing import Any

import pytest
from histories import world
from msgspec.structs import replace
from playwright.sync_api import Page, expect

import rqlab
from browser import looks
from browser.conftest import Browse, Keep
from rqlab import html
from rqlab.job import Counts

#: What a caller, a handler or a broken library may write. Each names `pwned`, so that it can be found as text.
PAYLOADS = {
    "a script": "<script>window.pwned = 1</script>",
    "a picture's event": "<img src=x onerror='window.pwned = 1'>",
    "an attribute's end": '" onmouseover="window.pwned = 1" onclick="window.pwned = 1" x="',
    "an attribute's end, single": "' onmouseover='window.pwned = 1' onclick='window.pwned = 1' x='",
    "the end of pre": "</pre></td></table><script>window.pwned = 1</script>",
    "the end of svg": "</desc></title></text></svg><svg onload=window.pwned=1>",
    "a comment": "--><script>window.pwned = 1</script><!--",
    "a link": "<a href='javascript:window.pwned=1'>press</a>",
    "a form": "<form action='javascript:window.pwned=1'><button>press</button></form>",
    "another page": "<iframe srcdoc='<script>parent.pwned = 1</script>'></iframe>",
    "a template": "${window.pwned = 1} {{constructor.constructor('window.pwned = 1')()}}",
    "entities": "&lt;script&gt;window.pwned = 1&lt;/script&gt;",
    "a style": "</style><style>body{display:none}</style>pwned",
    "right to left": "\u202epwned\u2066",
    "control characters": "\x00\x07\x1b[31m\x7f\x85\u2028pwned",
}
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
#: Everything that an event handler could wait for.
PROVOKE = """() => {
    for (const each of document.querySelectorAll('body, body *')) {
        for (const kind of ['mouseover', 'mouseenter', 'mousemove', 'focus', 'load', 'error', 'toggle'])
            each.dispatchEvent(new Event(kind, {bubbles: true}));
        if (each.click) each.click();
    }
}"""


def of_a_job(said: str) -> str:
    """A job whose data, tags, log and error somebody else wrote."""
    with rqlab.memory() as rq:

        def handler(job: rqlab.Job, ctx: rqlab.Context) -> None:
            ctx.log(said)
            raise rqlab.DeadLetter(said)

        job_id = rq.push("emails", "send", {said: said}, tags=[said], metadata={"from": said})
        rq.drain("emails", handler)
        return str(rq.get(job_id)._repr_html_())


def of_a_result(said: str) -> str:
    """A result whose broken promise, replay line, workers and events somebody else wrote."""
    sound = rqlab.simulate(crashes=0, jobs=3, seed=7)
    header = replace(sound.header, violations=[("R1", 1.0, said)], replay=said)
    history = [replace(each, worker=each.worker and said) for each in sound.history]
    return html.result(rqlab.SimulationResult(header, history), picture=PIXEL)


def of_panels(said: str) -> str:
    told = world(6)
    jobs = [{**row, "id": f"{said} {n}"} for n, row in enumerate(told.jobs.to_dict("records"))]
    runs = [{**row, "job": f"{said} 1", "worker": said} for row in told.attempts.to_dict("records")]
    events = [{"at": 1.0, "kind": "fail", "job": said, "worker": said, "detail": {"error": said}}]
    workers = [{"name": said, "pid": 12, "state": "active", "job": said, "lease_left": 2.0}]
    view = {"mode": said, "now": 1.0, "counts": {"waiting": 2}, "workers": workers, "name": said, "events": events}
    faults = [{"at": 1.0, "kind": "worker crash", "target": said}]
    return html.render({**view, "jobs": jobs, "attempts": runs, "faults": faults})


#: What shows words of others.
SHOWN: dict[str, Callable[[str], str]] = {
    "job": of_a_job,
    "queues": lambda said: html.queues(said, "durable", {said: Counts(waiting=1)}, [said]),
    "result": of_a_result,
    "panels": of_panels,
}


FOREIGN = ":is(script, iframe, form, button, a, style)"  # nothing of ours has any of these


def intruders(page: Page, markup: str) -> list[str]:
    """What of it became more than text, and whether anything ran, however it was provoked."""
    looks.show(page, markup)
    page.evaluate(PROVOKE)
    found = page.locator(f"body {FOREIGN}").evaluate_all("found => found.map(each => each.tagName)")
    ran = page.evaluate("() => window.pwned !== undefined")
    return [*found, *(["it ran"] if ran else []), *([page.url] if page.url != "about:blank" else [])]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_others_wrote_is_shown_as_text_and_nothing_of_it_runs(page: Page, payload: str) -> None:
    pieces = [f"<section>{shown(PAYLOADS[payload])}</section>" for shown in SHOWN.values()]

    assert intruders(page, "".join(pieces)) == []
    words = page.locator("section").all_inner_texts()
    assert [name for name, each in zip(SHOWN, words, strict=True) if "pwned" not in each] == []


HARMLESS = {"a template", "entities", "right to left", "control characters"}  # to a browser; to other readers not


@pytest.mark.parametrize("payload", [name for name in PAYLOADS if name not in HARMLESS])
def test_the_look_would_notice_what_is_not_escaped(browse: Browse, payload: str) -> None:
    said, quote = PAYLOADS[payload], "'" if payload.endswith("single") else '"'

    assert intruders(browse(errors=False), f"<pre title={quote}{said}{quote}>{said}</pre>") != []


@pytest.fixture(scope="module")
def done() -> rqlab.SimulationResult:
    return rqlab.simulate(crashes=3, seed=7)


def pieces(done: Any) -> dict[str, str]:
    """Everything that shows itself, filled as in use."""
    with rqlab.memory() as rq:
        rq.push_many("emails", [{"name": "send", "data": {"to": "ada@example.org"}}] * 12)
        rq.push("emails", "send", {"to": "nobody"}, max_attempts=1)
        rq.drain("emails", lambda job: {"sent": 1 / (job.data["to"] != "nobody")})
        rq.push("reports", "daily", delay=60)
        (dead,) = rq.get_dlq_jobs("emails")
        shown = {"job": dead._repr_html_(), "counts": rq.counts("emails")._repr_html_(), "queues": rq._repr_html_()}
    workers = [
        {"name": f"w{n}", "pid": 4_711 + n, "state": "active", "job": f"send #{n}", "lease_left": 2.5} for n in range(3)
    ]
    tables = {name: getattr(done, name) for name in ("jobs", "attempts", "events", "faults")}
    view = {"mode": "durable", "now": 12.5, "safe": True, "counts": {"waiting": 3, "completed": 40}, "workers": workers}
    return {**shown, "result": done._repr_html_(), "panels": html.render({**view, **tables})}


@pytest.mark.parametrize("scheme", looks.SCHEMES)
def test_everything_that_shows_itself_can_be_read_in_light_and_dark(
    browse: Browse, keep: Keep, done: Any, scheme: str
) -> None:
    page = browse(scheme)

    for name, markup in pieces(done).items():
        looks.show(page, markup, scheme)
        keep(page, f"{name} in {scheme}")
        assert looks.faint(page) == [], name


def test_the_look_for_faint_text_would_notice(page: Page) -> None:
    looks.show(page, '<p style="color:#999">grey</p><div style="background:#000;color:#222"><b>night</b></div>')

    assert [each.words for each in looks.faint(page)] == ["grey", "night"]


def test_a_result_opens_with_its_verdict_its_promise_and_a_picture_that_loads(page: Page, done: Any) -> None:
    looks.show(page, done._repr_html_())

    expect(page.get_by_text("✓ SAFETY HOLDS")).to_be_visible()
    expect(page.get_by_role("cell", name="kill -9")).to_be_visible()
    expect(page.get_by_role("cell", name="nothing").first).to_be_visible()
    picture = page.get_by_role("img")
    assert picture.evaluate("each => each.decode().then(() => each.naturalWidth)") > 400
    assert "1 worker crash" in str(picture.get_attribute("alt"))


def test_without_styles_and_svg_everything_still_says_what_it_shows(page: Page, keep: Keep, done: Any) -> None:
    said = {
        "job": ["emails/send", "✗ dlq", "ZeroDivisionError"],
        "counts": ["completed", "12"],
        "queues": ["emails", "reports", "completed"],
        "result": [
            "✓ SAFETY HOLDS",
            "seed 7",
            "Nothing that was acknowledged was lost",
            "kill -9",
            "again: rqlab.simulate(seed=7)",
        ],
        "panels": ["durable", "SAFETY HOLDS", "4711", "completed 40"],
    }
    for name, markup in pieces(done).items():
        looks.show(page, markup)
        looks.strip(page)
        keep(page, f"{name} without styles")
        words = page.inner_text("body")
        assert [each for each in said[name] if each not in words] == [], words
