"""The HTTP side: right answers, and nothing a client does costs the daemon more than a socket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.registry import Collector

from lstmstream import __version__
from lstmstream.errors import CannotServe
from lstmstream.serve import http as served
from lstmstream.serve.health import Health
from lstmstream.serve.live import Live
from lstmstream.serve.live_feed import Feed
from lstmstream.serve.metrics import Metrics


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Side:
    """A server with what it serves."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.health = Health(stall_after=30.0, clock=self.clock)
        self.registry = CollectorRegistry()
        Counter("demo_total", "Demo.", registry=self.registry).inc(3)
        self.feed = Feed(Live("payments", Metrics(), self.health, show_keys=True).take)
        routes = served.daemon_routes(self.health, self.registry, self.feed)
        self.server = served.HttpServer("127.0.0.1", 0, routes, feed=self.feed)

    def ask(
        self, path: str, method: str = "GET", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            connection.request(method, path, headers=headers or {})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=60)

    def raw(self, request: bytes) -> bytes:
        with self.connect() as connection:
            connection.sendall(request)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(65_536):
        received += part
    return received


@pytest.fixture
def side() -> Iterator[Side]:
    side = Side()
    yield side
    side.server.close()
    assert not any(thread.name == "lstmstream-http" for thread in threading.enumerate())


def test_metrics(side: Side) -> None:
    status, headers, body = side.ask("/metrics?x=1")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=")
    assert b"demo_total 3.0" in body
    assert "server" not in headers
    assert headers["connection"] == "close"


def test_metrics_in_openmetrics_for_who_asks(side: Side) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    _, headers, body = side.ask("/metrics", headers={"accept": accept})
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    for odd in ("application/openmetrics-text;version=x.y", "text/plain;version=1.0.0\x7f", ";;;,,,"):
        status, _, body = side.ask("/metrics", headers={"accept": odd})
        assert status == 200
        assert b"demo_total 3.0" in body


def test_live_until_the_loop_stands_still(side: Side) -> None:
    side.health.unblock("model")
    assert side.ask("/livez")[0] == 200
    side.clock.now = 31.0
    status, headers, body = side.ask("/livez")
    assert status == 503
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == {"live": False, "reason": "starting: the loop has made no progress for 31 s"}


def test_ready_says_why_not(side: Side) -> None:
    status, _, body = side.ask("/readyz")
    assert status == 503
    assert json.loads(body)["phase"] == "starting"
    assert len(json.loads(body)["reasons"]) == 3
    for what in ("model", "assignment", "restore"):
        side.health.unblock(what)
    side.health.set_phase("running")
    status, _, body = side.ask("/readyz")
    assert (status, json.loads(body)) == (200, {"ready": True, "phase": "running", "reasons": []})


@pytest.mark.parametrize(
    "path",
    ["/index.html", "/state/c1", "/metrics/", "/metrics/../livez", "//livez", "/%6civez", "/../../etc/passwd", "*"],
)
def test_everything_else_is_not_found(side: Side, path: str) -> None:
    status, headers, body = side.ask(path)
    assert status == 404
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == {"error": "not found"}


def test_the_root_is_a_page_that_loads_nothing_else(side: Side) -> None:
    status, headers, body = side.ask("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    text = body.decode()
    assert __version__ in text
    assert all(f'href="{path}"' in text for path in ("/readyz", "/livez", "/metrics"))
    assert "<!-- " not in text, "a place that was not filled"
    assert not re.search(r'(src|href)="(https?:)?//', text)
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        for content in re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy


@pytest.mark.parametrize("path", ["/", "/metrics", "/livez", "/readyz", "/nothing"])
def test_head_is_get_without_the_body(side: Side, path: str) -> None:
    status, headers, body = side.ask(path)
    head = side.ask(path, "HEAD")
    assert head[0] == status
    assert head[1]["content-type"] == headers["content-type"]
    assert head[1]["content-length"] == str(len(body)) or path == "/metrics"
    assert head[2] == b""
    assert side.raw(f"HEAD {path} HTTP/1.1\r\n\r\n".encode()).endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get", "PATCH"])
def test_other_methods_are_refused(side: Side, method: str) -> None:
    status, headers, _ = side.ask("/metrics", method)
    assert status == 405
    assert headers["allow"] == "GET, HEAD"


def test_a_post_with_a_body_gets_its_answer(side: Side) -> None:
    request = b"POST /metrics HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000
    assert side.raw(request).startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(b"GARBAGE\r\n\r\n", 400, id="garbage"),
        pytest.param(b"\r\nGET /livez HTTP/1.1\r\n\r\n", 200, id="an empty line first"),
        pytest.param(b"GET /livez HTTP/1.1\nHost: x\n\n", 200, id="lines that end in LF"),
        pytest.param(b"GET http://127.0.0.1/livez?x=1 HTTP/1.1\r\n\r\n", 200, id="a whole URL"),
        pytest.param(b"GET http://127.0.0.1 HTTP/1.1\r\n\r\n", 200, id="a whole URL without a path"),
        pytest.param(b"GET  /livez HTTP/1.1\r\n\r\n", 400, id="two spaces"),
        pytest.param(b"GET /livez FTP/1.1\r\n\r\n", 400, id="no HTTP"),
        pytest.param(b"GET /livez HTTP/2.0\r\n\r\n", 505, id="HTTP/2"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400, id="TLS"),
        pytest.param(b"GET /" + b"a" * 2_000 + b" HTTP/1.1\r\n\r\n", 414, id="long target"),
        pytest.param(b"GET /livez HTTP/1.1\r\n" + b"A: b\r\n" * 100 + b"\r\n", 431, id="many headers"),
        pytest.param(b"GET /livez HTTP/1.1\r\nA: " + b"b" * 1_000_000 + b"\r\n\r\n", 431, id="1 MB header"),
        pytest.param(b"GET /" + b"a" * 1_000_000, 431, id="1 MB target"),
        pytest.param(b"GET /livez HTTP/1.1\r\n\r\nGET /livez HTTP/1.1\r\n\r\n", 200, id="two at once"),
        pytest.param(b"GET /livez HTTP/1.0\r\n\r\n", 200, id="HTTP/1.0"),
    ],
)
def test_what_is_no_good_request_gets_one_answer_and_the_end(side: Side, request_: bytes, status: int) -> None:
    answer = side.raw(request_)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_request_may_come_byte_by_byte(side: Side) -> None:
    with side.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n":
            connection.sendall(bytes([byte]))
            time.sleep(0.001)
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def test_200_slow_sockets_do_not_keep_a_probe_out(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "REQUEST_TIMEOUT_S", 600.0)  # so a probe that waited for one would not be answered
    slow = [side.connect() for _ in range(200)]
    try:
        for connection in slow:
            try:
                connection.sendall(b"GET /metrics HTTP/1.1\r\nA: ")
            except OSError:  # thrown out by those who came later
                continue
        for _ in range(20):
            assert side.ask("/livez")[0] == 200
        assert sum(thread.name == "lstmstream-http" for thread in threading.enumerate()) == 1
        assert len(side.server._open) <= served.MAX_CONNECTIONS
    finally:
        for connection in slow:
            connection.close()


def test_a_slow_request_is_cut_off_however_it_drips(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "REQUEST_TIMEOUT_S", 0.3)
    with side.connect() as connection:
        started = time.monotonic()
        connection.sendall(b"GET /metrics HTTP/1.1\r\n")
        connection.settimeout(0.05)
        answer = b""
        while not answer and time.monotonic() - started < 60:
            connection.sendall(b"A")
            try:
                answer = connection.recv(1000)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_does_not_read_is_dropped(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "RESPONSE_TIMEOUT_S", 0.3)

    async def long(_self: object, _head: bytes) -> bytes:
        return b"x" * 50_000_000

    monkeypatch.setattr(served._Router, "respond", long)
    with side.connect() as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
        deadline = time.monotonic() + 60
        while not side.server._open and time.monotonic() < deadline:
            time.sleep(0.01)
        while side.server._open and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not side.server._open


def test_a_route_that_waits_holds_up_nobody_and_ends_with_the_server() -> None:
    asked, release = threading.Event(), threading.Event()

    async def slow(_accept: str) -> bytes:
        asked.set()
        while not release.is_set():
            await asyncio.sleep(0.01)
        return served.json_response(ok=True, body={"slow": True})

    def other(_accept: str) -> bytes:
        return served.json_response(ok=True, body={})

    with served.HttpServer("127.0.0.1", 0, {"/slow": slow, "/other": other}) as server:

        def connect(path: str) -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
            connection.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
            return connection

        with connect("/slow") as waiting:
            assert asked.wait(60)
            with connect("/other") as second:
                assert read_all(second).startswith(b"HTTP/1.1 200 ")
            release.set()
            assert b'"slow": true' in read_all(waiting)
        release.clear()
        asked.clear()
        with connect("/slow") as waiting:
            assert asked.wait(60)
            server.close()
            with contextlib.suppress(ConnectionResetError):
                assert not read_all(waiting)
    assert not any(thread.name == "lstmstream-http" for thread in threading.enumerate())


def test_a_client_that_stays_after_its_answer_is_dropped(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "LINGER_S", 0.2)
    with side.connect() as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")
        deadline = time.monotonic() + 60
        while side.server._open and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not side.server._open


def test_a_client_that_goes_leaves_nothing_behind(side: Side) -> None:
    for _ in range(50):
        side.connect().close()
    assert side.ask("/livez")[0] == 200
    deadline = time.monotonic() + 60
    while side.server._open and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not side.server._open


def test_a_metric_that_fails_does_not_end_the_probes(side: Side) -> None:
    class Bad(Collector):
        def collect(self) -> Iterator[object]:  # type: ignore[override]
            raise RuntimeError("canary")

        def describe(self) -> list[object]:  # type: ignore[override]
            return []

    side.registry.register(Bad())
    status, _, body = side.ask("/metrics")
    assert status == 500
    assert b"canary" not in body
    assert side.ask("/livez")[0] == 200


def test_no_request_is_logged(side: Side, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level("INFO")
    side.ask("/canary%0d%0afake")
    side.raw(b"GET /\x1b[31mcanary\r\n\r\n")
    assert "canary" not in caplog.text + "".join(capfd.readouterr())


def test_a_port_in_use_is_named(side: Side) -> None:
    with pytest.raises(CannotServe, match=r"^http\.port: cannot listen on 127\.0\.0\.1:\d+ \(Address already in use\)"):
        served.HttpServer("127.0.0.1", side.server.port, {})


@pytest.mark.parametrize("host", ["no such host", "256.1.1.1.", "\x1b[31m"])
def test_a_host_that_is_none_is_named(side: Side, host: str) -> None:
    with pytest.raises(CannotServe, match=r"^http\.(host|port): ") as caught:
        served.HttpServer(host, 0, {})
    assert str(caught.value).isprintable()


def test_closing_does_not_wait_for_open_connections_and_may_be_repeated() -> None:
    side = Side()
    open_ones = [side.connect() for _ in range(10)]
    assert side.ask("/livez")[0] == 200
    side.server.close()
    assert not any(thread.name == "lstmstream-http" for thread in threading.enumerate())
    side.server.close()
    with pytest.raises(OSError, match="refused"):
        side.connect()
    for connection in open_ones:
        connection.close()


def test_it_closes_at_the_end_of_a_with_block() -> None:
    side = Side()
    with side.server as server:
        assert server.port > 0
    with pytest.raises(OSError, match="refused"):
        side.connect()
