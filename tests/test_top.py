"""`lstmstream top`: a row for each daemon, whatever one of them says."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lstmstream import top
from lstmstream.errors import CannotServe
from lstmstream.serve.http import HttpServer, daemon_routes, json_response
from lstmstream.serve.live_feed import Feed
from tests.serve.live_world import LiveWorld, guard

HOSTILE = "\x1b[31m[bold]\r\n\u202e"


class Daemon:
    def __init__(self, token: str | None = None) -> None:
        self.world = LiveWorld()
        self.world.load()
        feed = Feed(self.world.live.take)
        routes = daemon_routes(self.world.health, self.world.metrics.registry, feed)
        self.server = HttpServer("127.0.0.1", 0, routes, feed=feed, guard=guard(token))
        self.url = f"http://127.0.0.1:{self.server.port}"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.server.close()


def shown(*answers: top.Answer, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(top.render(answers, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_table_and_what_needs_a_person() -> None:
    world = LiveWorld()
    world.load()
    world.process(b'{"amount":99,"note":"by night"}', b"no json", key=b"customer")
    world.health.block("broker", "the broker cannot be reached")
    world.gauges([1_200, 34], restoring=5)
    text = shown(
        top.Answer("http://one:9108", world.snapshot()), top.Answer("http://two:9108", None, "does not answer (x)")
    )
    assert "payments" in text
    assert "1,234" in text
    assert "starting 0%" in text
    assert "numpy 1" in text
    assert "payments: the broker cannot be reached" in text
    assert "alert in payments: key customer score" in text
    assert "note by night" in text
    assert "dead letter in payments (decode)" in text
    assert "two:9108" in text
    assert "http://two:9108 does not answer (x)" in text


def test_it_fits_a_narrow_terminal() -> None:
    world = LiveWorld()
    world.load()
    row = shown(top.Answer("http://127.0.0.1:9108", world.snapshot()), width=80).splitlines()[1]
    assert row.startswith("payments")
    assert "starting" in row


def test_hostile_text_stays_text() -> None:
    world = LiveWorld()
    world.load()
    world.process(json.dumps({"amount": 99, "note": HOSTILE}).encode(), key=HOSTILE.encode())
    text = shown(top.Answer("http://one", world.snapshot() | {"name": HOSTILE, "phase": HOSTILE}))
    assert not {"\x1b", "\r", "\u202e"} & set(text)
    assert "\\x1b[31m[bold]\\r\\n" in text


def test_once_and_json(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert top.run_top([daemon.url], once=True, as_json=False, token_file=None) == 0
    assert "payments" in capsys.readouterr().out
    assert top.run_top([daemon.url, "127.0.0.1:1"], once=False, as_json=True, token_file=None) == 1
    one, other = json.loads(capsys.readouterr().out)
    assert (one["url"], one["live"]["name"]) == (daemon.url, "payments")
    assert other["url"] == "http://127.0.0.1:1"
    assert "does not answer" in other["error"]


def test_lines_for_a_program_are_not_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert top.run_top(["127.0.0.1:1"], once=True, as_json=False, token_file=None) == 1
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "does not answer" in line]
    assert said.startswith("http://127.0.0.1:1 does not answer (")
    assert said.endswith(")")


def test_a_token_comes_from_a_file_or_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    daemon = Daemon("s3cret")
    try:
        assert "asks for its token" in top.ask(daemon.url, None).error
        monkeypatch.setenv(top.TOKEN_VARIABLE, "s3cret")
        assert top.run_top([daemon.url], once=True, as_json=False, token_file=None) == 0
        monkeypatch.delenv(top.TOKEN_VARIABLE)
        (tmp_path / "token").write_text("s3cret\n")
        assert top.run_top([daemon.url], once=True, as_json=False, token_file=tmp_path / "token") == 0
        with pytest.raises(CannotServe, match="No such file"):
            top.run_top([daemon.url], once=True, as_json=False, token_file=tmp_path / "none")
    finally:
        daemon.server.close()


@pytest.mark.parametrize("body", [{}, {"name": 1}, {"model": None, "totals": 3}])
def test_an_answer_that_is_something_else(body: dict[str, Any]) -> None:
    with HttpServer("127.0.0.1", 0, {"/live": lambda _: json_response(ok=True, body=body)}) as server:
        answer = top.ask(f"http://127.0.0.1:{server.port}", None)
    assert answer.error == "answers, but not with the live figures of lstmstream"
    with HttpServer("127.0.0.1", 0, {}) as server:
        assert top.ask(f"http://127.0.0.1:{server.port}", None).error == "answers with HTTP status 404"


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:port", "a b", "http://x\r\nHost: y", "http://x:0"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(CannotServe, match="is not the address of a daemon"):
        top.run_top([url], once=True, as_json=False, token_file=None)


def test_a_terminal_of_60_columns_breaks_no_word() -> None:
    world = LiveWorld()
    world.load()
    rows = shown(top.Answer("http://127.0.0.1:9108", world.snapshot()), width=60).splitlines()
    assert rows[0].split() == ["daemon", "phase", "events/s", "p99", "lag", "alerts", "dead"]
    assert rows[1].split()[:2] == ["payments", "starting"]
