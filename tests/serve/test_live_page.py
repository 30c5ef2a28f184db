"""The page at `/` in a real browser: what it shows, hostile text, clicks and keys, a token, a daemon that goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from lstmstream.serve.http import HttpServer, daemon_routes, json_response
from lstmstream.serve.live_feed import Feed
from tests.serve.chromium import Browser
from tests.serve.live_world import REFERENCE, LiveWorld, guard

HOSTILE = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


class Served:
    """A daemon that never was, with a page."""

    def __init__(self, *, token: str | None = None, port: int = 0) -> None:
        self.world = LiveWorld(reference=REFERENCE)
        self.world.load()
        self.world.health.set_phase("running")
        feed = Feed(self.world.live.take)
        routes = daemon_routes(self.world.health, self.world.metrics.registry, feed)
        self.server = HttpServer("127.0.0.1", port, routes, feed=feed, guard=guard(token), state=_state)
        self.url = f"http://127.0.0.1:{self.server.port}/"


async def _state(target: str) -> bytes:
    """What `/state/<key>` answers: two numbers and a matrix of one key."""
    if unquote(target) != HOSTILE:
        return json_response(ok=False, body={"error": "not found", "hint": "it is not here"}, otherwise=404)
    parts = {"mean": 0.25, HOSTILE: [[0.1, -2.0], [3.0, 4.0]], "ring": list(range(40))}
    state = {"partition": 3, "offset": 77, "committed": False, "timestamp": "2026-01-05T10:31:07.123Z", "steps": 41}
    scores = [{"offset": 77, "timestamp": state["timestamp"], "score": 0.98765, "alert": True}]
    return json_response(
        ok=True, body={"key": HOSTILE, "states": [{**state, "failures": 2, "scores": scores, "parts": parts}]}
    )


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.server.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(Path(tmp_path_factory.mktemp("chromium")))
    yield browser
    browser.close()


@pytest.fixture(autouse=True)
def _no_script_failed(browser: Browser) -> Iterator[None]:
    browser.log.clear()
    yield
    assert not browser.log


def test_it_shows_what_the_daemon_does(browser: Browser, served: Served) -> None:
    world = served.world
    world.process(*[b'{"amount":1}'] * 1_233, b'{"amount":"a lot"}')
    world.process(b'{"amount":99,"note":"by night"}', key=b"customer-7")
    world.gauges([5, None])
    browser.open(served.url)
    browser.wait_for("document.querySelector('#events').innerText === '1,235 in all'")
    assert browser.text("#phase") == "running"
    assert "model numpy version 1" in browser.text("#model")
    assert (browser.text("#lag"), browser.text("#keys")) == ("5", "11")
    row = browser.text("#alert-table tbody tr")
    assert "customer-7" in row
    assert "by night" in row
    assert "field 'amount' is a string, not a number" in browser.text("#letter-table")
    assert "unknown" in browser.text("#lag-table")
    assert browser.value("document.querySelectorAll('.plot canvas').length") == 4
    world.health.block("broker", "the broker cannot be reached")
    browser.wait_for("document.querySelector('#reasons').innerText.includes('the broker cannot be reached')")
    assert browser.text("#phase") == "running, not ready"


def test_hostile_text_stays_text(browser: Browser, served: Served) -> None:
    event = json.dumps({"amount": 99, "note": HOSTILE}).encode()
    served.world.process(event, key=HOSTILE.encode())
    served.world.health.block("x", HOSTILE)
    browser.open(served.url)
    browser.wait_for("document.querySelectorAll('#alert-table tbody tr, #reasons li').length === 2")
    assert browser.text("#alert-table tbody td:nth-child(2)") == HOSTILE
    assert browser.text("#reasons li") == HOSTILE
    assert browser.value("document.querySelectorAll('img, main script').length") == 0
    assert "owned" not in browser.value("document.title")


def test_a_click_pauses_and_a_key_goes_on(browser: Browser, served: Served) -> None:
    browser.open(served.url)
    browser.wait_for("document.querySelector('#events').innerText === '0 in all'")
    browser.click("#pause")
    browser.wait_for("document.querySelector('#pause').getAttribute('aria-pressed') === 'true'")
    assert browser.text("#updated").startswith("paused")
    served.world.process(b'{"amount":1}')
    browser.press("Enter", 13, "\r")  # the button has the focus
    browser.wait_for("document.querySelector('#events').innerText === '1 in all'")
    browser.press("Tab", 9)
    assert browser.value("document.activeElement.matches(':focus-visible')")


def test_it_says_that_the_daemon_is_gone_and_comes_back_by_itself(browser: Browser, served: Served) -> None:
    browser.open(served.url)
    browser.wait_for("!document.querySelector('#figures').hidden")
    served.server.close()
    browser.wait_for("!document.querySelector('#gone').hidden")
    assert browser.text("#gone").startswith("The daemon is gone; the figures below are of ")
    again = Served(port=served.server.port)
    try:
        again.world.process(b'{"amount":1}')
        browser.wait_for("document.querySelector('#events').innerText === '1 in all'")
        assert browser.value("document.querySelector('#gone').hidden")
    finally:
        again.server.close()


def test_with_a_token_it_asks_for_it(browser: Browser) -> None:
    served = Served(token="s3cret")
    try:
        browser.open(served.url)
        browser.wait_for("!document.querySelector('#login').hidden")
        assert browser.value("document.activeElement.id") == "token"
        browser.write("wrong")
        browser.press("Enter", 13, "\r")
        browser.wait_for("document.querySelector('#refused').innerText !== ''")
        browser.click("#token")
        browser.write("s3cret")
        browser.click("#login button")
        browser.wait_for("!document.querySelector('#figures').hidden")
        assert browser.value("document.querySelector('#login').hidden")
        browser.open(served.url)
        browser.wait_for("!document.querySelector('#figures').hidden")
    finally:
        browser.value("sessionStorage.clear()")
        served.server.close()


def test_the_state_of_a_key_is_looked_up(browser: Browser) -> None:
    served = Served(token="s3cret")
    try:
        browser.open(served.url, width=900)
        browser.wait_for("!document.querySelector('#login').hidden")
        browser.write("s3cret")
        browser.press("Enter", 13, "\r")
        browser.wait_for("!document.querySelector('#key-section').hidden")
        browser.click("#key")
        browser.write("nobody")
        browser.press("Enter", 13, "\r")
        browser.wait_for("document.querySelector('#key-answer').innerText === 'No state: it is not here.'")
        browser.value("document.querySelector('#key').value = ''")
        browser.click("#key")
        browser.write(HOSTILE)
        browser.click("#look-up button")
        browser.wait_for("!document.querySelector('#key-table').hidden")
        assert browser.text("#key-answer") == (
            "partition 3: 41 events, the last at 2026-01-05T10:31:07.123Z (offset 77, not committed yet),"
            " 2 failures in a row"
        )
        names = "[...document.querySelectorAll('#key-table tbody td:first-child')].map((one) => one.innerText)"
        assert browser.value(names) == ["mean", HOSTILE, "ring"]
        assert "0.1, -2, 3, 4" in browser.text("#key-table")
        assert "14, 15, …" in browser.text("#key-table")
        assert browser.text("#key-scores tbody").split() == ["2026-01-05T10:31:07.123Z", "0.9877", "yes", "77"]
        assert browser.value("document.documentElement.scrollWidth") <= 900
    finally:
        browser.value("sessionStorage.clear()")
        served.server.close()


def test_without_a_token_no_state_can_be_looked_up(browser: Browser, served: Served) -> None:
    browser.open(served.url)
    browser.wait_for("!document.querySelector('#figures').hidden")
    assert browser.value("document.querySelector('#key-section').hidden")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_screen(browser: Browser, served: Served, width: int, dark: bool) -> None:
    served.world.process(b'{"amount":99,"note":"%b"}' % (b"x" * 500), b"no json", key=b"k" * 500)
    browser.open(served.url, width=width, dark=dark)
    browser.wait_for("document.querySelectorAll('#alert-table tbody tr').length === 1")
    assert browser.value("document.documentElement.scrollWidth") <= width
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(17, 21, 27)" if dark else "rgb(246, 247, 249)")
