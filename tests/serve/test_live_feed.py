"""`/live` and `/live/events` over real sockets: the same bytes for all, and no client can cost the daemon much."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lstmstream.config.files import RenewableSecret
from lstmstream.serve import live_feed
from lstmstream.serve.http import Guard, HttpServer, daemon_routes
from lstmstream.serve.live_feed import Feed
from tests.serve.live_world import LiveWorld


class Served:
    """A server whose snapshots are taken when the test says so."""

    def __init__(self, *, guard: Guard | None = None) -> None:
        self.world = LiveWorld()
        self.world.load()
        self.feed = Feed(self.world.live.take)
        routes = daemon_routes(self.world.health, self.world.metrics.registry, self.feed)
        self.server = HttpServer("127.0.0.1", 0, routes, feed=self.feed, guard=guard)

    def tick(self, feed_tick: Callable[[], Any] | None = None) -> None:
        """One second passes, and a snapshot is sent."""
        self.world.now_s += 1
        asyncio.run_coroutine_threadsafe((feed_tick or self.feed.tick)(), self.server._loop).result(60)

    def connect(self, path: str = "/live/events", headers: str = "", receive_bytes: int | None = None) -> Client:
        connection = socket.socket()
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", self.server.port))
        connection.sendall(f"GET {path} HTTP/1.1\r\n{headers}\r\n".encode())
        return Client(connection)

    def get(self, path: str, headers: str = "") -> tuple[int, dict[str, Any]]:
        client = self.connect(path, headers)
        while client.more():
            pass
        head, _, body = client.received.partition(b"\r\n\r\n")
        client.connection.close()
        return int(head.split(b" ")[1]), json.loads(body or b"{}")

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)


class Client:
    """One connection to the feed."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = b""

    def more(self) -> bool:
        part = self.connection.recv(65_536)
        self.received += part
        return bool(part)

    def events(self, count: int) -> list[tuple[str, dict[str, Any]]]:
        """The first `count` events, once they have come."""
        while self.received.count(b"\nevent: ") < count or not self.received.endswith(b"\n\n"):
            assert self.more(), "the connection was closed"
        blocks = self.received.partition(b"\r\n\r\n")[2].decode().strip().split("\n\n")
        found = []
        for block in blocks:
            lines = dict(line.split(": ", 1) for line in block.split("\n"))
            if "event" in lines:
                found.append((lines["event"], json.loads(lines["data"])))
        return found


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_feed, "INTERVAL_S", 3_600.0)


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.server.close()
    assert not any(thread.name == "lstmstream-http" for thread in threading.enumerate())


def test_live_is_the_last_snapshot(served: Served) -> None:
    status, body = served.get("/live")
    assert (status, body["name"], body["phase"]) == (200, "payments", "starting")
    served.world.health.set_phase("running")
    assert served.get("/live")[1]["phase"] == "starting", "asking often costs no snapshots"
    served.tick()
    assert served.get("/live")[1]["phase"] == "running"


def test_a_client_gets_the_past_and_then_each_snapshot(served: Served) -> None:
    served.tick()
    served.tick()
    client = served.connect()
    (first, history), (second, snapshot) = client.events(2)
    assert (first, second) == ("history", "snapshot")
    assert b"Content-Type: text/event-stream\r\n" in client.received
    assert [point[0] for point in history["points"]][-1] == snapshot["time"]
    served.wait_for(lambda: len(served.feed._clients) == 1)
    served.tick()
    _, _, (name, newest) = client.events(3)
    assert (name, newest["time"]) == ("snapshot", snapshot["time"] + 1)
    client.connection.close()
    served.wait_for(lambda: not served.feed._clients)


def test_all_get_the_same_bytes_from_one_snapshot(served: Served) -> None:
    clients = [served.connect() for _ in range(50)]
    for client in clients:
        client.events(2)
    served.wait_for(lambda: len(served.feed._clients) == 50)
    taken = []
    take = served.feed._take

    async def counted() -> dict[str, Any]:
        taken.append(1)
        return await take()

    served.feed._take = counted
    served.tick()
    for client in clients:
        client.events(3)
    assert taken == [1]
    assert len({client.received for client in clients}) == 1
    assert sum(thread.name == "lstmstream-http" for thread in threading.enumerate()) == 1
    for client in clients:
        client.connection.close()


def test_pages_do_not_keep_a_probe_out_nor_probes_a_page(served: Served) -> None:
    pages = []
    for _ in range(200):
        pages.append(served.connect())
        pages[-1].events(2)
    silent = [socket.create_connection(("127.0.0.1", served.server.port)) for _ in range(100)]
    assert served.get("/livez")[0] == 200
    served.tick()
    for page in pages:
        assert page.events(3)[-1][0] == "snapshot"
    for connection in [*silent, *(page.connection for page in pages)]:
        connection.close()


def test_more_pages_than_there_may_be_are_told_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_feed, "MAX_CLIENTS", 2)
    pages = [served.connect() for _ in range(2)]
    for page in pages:
        page.events(2)
    served.wait_for(lambda: len(served.feed._clients) == 2)
    assert served.get("/live/events") == (503, {"error": "service unavailable", "hint": "too many pages are open"})
    pages[0].connection.close()
    served.wait_for(lambda: len(served.feed._clients) == 1)
    last = served.connect()
    assert last.events(2)
    for page in (*pages, last):
        page.connection.close()


def test_a_client_that_does_not_read_is_dropped_and_holds_up_nobody(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_feed, "SEND_BUFFER_BYTES", 4_096)
    large = {"padding": "x" * 300_000}
    take = served.feed._take

    async def padded() -> dict[str, Any]:
        return await take() | large

    slow, good = served.connect(receive_bytes=4_096), served.connect()
    good.events(2)
    served.wait_for(lambda: len(served.feed._clients) == 2)
    served.feed._take = padded
    (stuck,) = [
        client for client in served.feed._clients if client.get_extra_info("peername") == slow.connection.getsockname()
    ]
    for number in range(live_feed.MAX_MISSED + 1):
        served.tick()
        assert good.events(3 + number)
        assert stuck.get_write_buffer_size() < 400_000, "no more than one snapshot is held for it"
    served.wait_for(lambda: len(served.feed._clients) == 1)
    good.connection.close()
    slow.connection.close()


def test_a_head_request_and_what_a_client_sends_later_begin_nothing(served: Served) -> None:
    connection = socket.create_connection(("127.0.0.1", served.server.port), timeout=60)
    connection.sendall(b"HEAD /live/events HTTP/1.1\r\n\r\n")
    received = b""
    while part := connection.recv(65_536):
        received += part
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(b"\r\n\r\n")
    connection.close()
    client = served.connect()
    client.events(2)
    client.connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    served.wait_for(lambda: len(served.feed._clients) == 1)
    served.tick()
    assert client.events(3)[-1][0] == "snapshot"
    assert client.received.count(b"HTTP/1.1") == 1
    client.connection.close()


def test_a_snapshot_that_fails_ends_nothing(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    client = served.connect()
    client.events(2)
    take = served.feed._take

    async def fails() -> dict[str, Any]:
        raise RuntimeError("broken")

    served.feed._take = fails
    served.tick()
    served.tick()
    assert [record.message for record in caplog.records] == ["the live figures cannot be put together"]
    assert served.get("/livez")[0] == 200
    served.feed._take = take
    served.tick()
    assert client.events(3)
    client.connection.close()


def test_the_server_closes_while_pages_are_open(served: Served) -> None:
    client = served.connect()
    client.events(2)
    served.server.close()
    with contextlib.suppress(ConnectionResetError):
        assert not client.more()
    client.connection.close()


@pytest.mark.parametrize("path", ["/live", "/live/events"])
def test_with_a_token_only_who_has_it(path: str) -> None:
    served = Served(guard=Guard(RenewableSecret("s3cret"), local_only=True))
    try:
        for headers in (
            "",
            "Authorization: Bearer wrong\r\n",
            "Authorization: Basic s3cret\r\n",
            "Authorization: é\r\n",
        ):
            status, body = served.get(path, headers)
            assert (status, body["error"]) == (401, "unauthorized")
        client = served.connect(path, "Host: example.org\r\nAuthorization: Bearer s3cret\r\n")
        client.more()
        assert client.received.startswith(b"HTTP/1.1 200 ")
        client.connection.close()
        assert served.get("/livez")[0] == 200
    finally:
        served.server.close()


def test_a_token_may_be_replaced_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    served = Served(guard=Guard(RenewableSecret("old", file), local_only=True))

    def status(token: str) -> int:
        return served.get("/live", f"Authorization: Bearer {token}\r\n")[0]

    try:
        assert (status("old"), status("new")) == (200, 401), "the file is not there for a moment"
        file.write_text("new\n")
        assert (status("old"), status("new")) == (401, 200)
        file.write_text("")
        assert (status("old"), status("")) == (200, 401), "an empty file is no token"
    finally:
        served.server.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9108", 200),
        ("localhost:9108", 200),
        ("LOCALHOST", 200),
        ("[::1]:9108", 200),
        ("attacker.example:9108", 403),
        ("localhost.attacker.example", 403),
    ],
)
def test_another_site_cannot_read_it_by_a_name_that_points_here(host: str, status: int) -> None:
    served = Served(guard=Guard(None, local_only=True))
    try:
        assert served.get("/live", f"Host: {host}\r\n")[0] == status
    finally:
        served.server.close()
