"""The endpoints of several workers: right for the whole, with the worker's number, whatever one of them does."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from lstmstream.config.files import RenewableSecret
from lstmstream.serve.health import Health
from lstmstream.serve.http import Guard, HttpServer, daemon_routes, json_response
from lstmstream.serve.live import Live
from lstmstream.serve.live_feed import Feed
from lstmstream.serve.metrics import Metrics
from lstmstream.workers import pages as served
from lstmstream.workers.pages import Pages
from lstmstream.workers.process import WorkerStatus

STALL_S = 30.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Side:
    """Two workers, as far as HTTP goes, and the server in front of them."""

    def __init__(self, token: str | None = None) -> None:
        self.clock = Clock()
        secret = None if token is None else RenewableSecret(token)
        guard = Guard(secret, local_only=True)
        self.healths = [Health(stall_after=STALL_S, clock=self.clock, blocked={}) for _ in range(2)]
        self.events = []
        self.servers = []
        self.feeds: list[Feed] = []
        self.statuses = []
        for number, health in enumerate(self.healths):
            registry = CollectorRegistry()
            self.events.append(Counter("lstmstream_events_total", "Events.", registry=registry))
            Gauge("lstmstream_last_progress_timestamp_seconds", "Time.", registry=registry).set(1)
            health.set_phase("running")
            feed = Feed(Live("payments", Metrics(), health, show_keys=True).take)
            self.feeds.append(feed)
            routes = daemon_routes(health, registry, feed)
            state = partial(self._state, number)
            server = HttpServer("127.0.0.1", 0, routes, feed=feed, guard=guard, state=state)
            self.servers.append(server)
            self.statuses.append(WorkerStatus(number, 1, running=True, since_s=1000.0, port=server.port, ended=""))
        self.pages = pages = Pages(lambda: self.statuses, stall_after_s=STALL_S, token=secret, clock=self.clock)
        self.server = HttpServer(
            "127.0.0.1",
            0,
            pages.routes(),
            not_found=pages.not_found,
            feed=pages.feed,
            guard=guard,
            state=pages.state,
        )
        self.states: dict[str, list[int]] = {}  # by key as it is asked for: the workers that have it
        self.restoring: set[int] = set()

    async def _state(self, number: int, target: str) -> bytes:
        if number in self.states.get(target, []):
            return json_response(ok=True, body={"key": target, "states": [{"partition": number}]})
        if number in self.restoring:
            return json_response(ok=False, body={"error": "not ready", "hint": "partitions 1 are being restored"})
        return json_response(ok=False, body={"error": "not found"}, otherwise=404)

    def ask(self, path: str, accept: str = "", token: str = "") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            connection.request("GET", path, headers={"Accept": accept, "Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def json(self, path: str, token: str = "") -> tuple[int, dict[str, Any]]:
        status, body = self.ask(path, token=token)
        return status, json.loads(body)

    def tick(self) -> None:
        """New live figures: of each worker that runs, and then of the parent."""
        for feed, server in [*zip(self.feeds, self.servers, strict=True), (self.pages.feed, self.server)]:
            if server._loop.is_running():
                asyncio.run_coroutine_threadsafe(feed.tick(), server._loop).result(60)

    def end(self, number: int) -> None:
        """The worker is killed, and waits to be started again."""
        self.servers[number].close()
        self.statuses[number] = self.statuses[number]._replace(
            running=False, port=None, since_s=self.clock.now, ended="signal SIGKILL"
        )


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    monkeypatch.setattr(served, "ASK_TIMEOUT_S", 120.0)
    side = Side()
    yield side
    for server in (side.server, *side.servers):
        server.close()


def test_all_is_well(side: Side) -> None:
    assert side.json("/readyz") == (200, {"ready": True, "phase": "running", "reasons": []})
    status, body = side.json("/livez")
    assert (status, body["live"]) == (200, True)
    assert "worker 1: running: the loop is making progress" in body["reason"]


def test_not_ready_with_the_reason_of_each_worker(side: Side) -> None:
    side.healths[0].block("broker", "the broker cannot be reached")
    side.healths[1].block("restore", "the states are not restored yet")
    side.healths[1].set_phase("restoring")
    assert side.json("/readyz") == (
        503,
        {
            "ready": False,
            "phase": "restoring, running",
            "reasons": ["worker 0: the broker cannot be reached", "worker 1: the states are not restored yet"],
        },
    )
    assert side.json("/livez")[0] == 200


def test_one_whose_loop_stands_still_is_not_live(side: Side) -> None:
    side.clock.now += STALL_S + 1
    side.healths[0].heartbeat()
    status, body = side.json("/livez")
    assert (status, body["live"]) == (503, False)
    assert "worker 1: running: the loop has made no progress for 31 s" in body["reason"]


def test_one_that_has_ended_is_not_ready_and_for_a_while_still_live(side: Side) -> None:
    """As long as a loop may stand still: it is started again meanwhile, and the others go on."""
    side.end(1)
    status, body = side.json("/readyz")
    assert status == 503
    assert body["reasons"] == ["worker 1: it has ended (signal SIGKILL) and is being started again"]
    assert body["phase"] == "absent, running"
    assert side.json("/livez")[0] == 200
    side.clock.now += STALL_S + 1
    side.healths[0].heartbeat()
    assert side.json("/livez")[0] == 503


def test_one_that_was_not_started_yet_is_no_failure(side: Side) -> None:
    side.statuses[1] = WorkerStatus(1, 0, running=False, since_s=0.0, port=None, ended="")
    assert side.json("/livez")[0] == 200
    assert side.json("/readyz")[1]["reasons"] == ["worker 1: it is being started"]


def test_one_that_starts_has_as_long(side: Side) -> None:
    side.statuses[1] = side.statuses[1]._replace(port=None)
    status, body = side.json("/readyz")
    assert (status, body["reasons"], body["phase"]) == (503, ["worker 1: it is starting"], "running, starting")
    assert side.json("/livez")[0] == 200
    side.clock.now += STALL_S + 1
    side.healths[0].heartbeat()
    assert side.json("/livez")[0] == 503


@pytest.mark.parametrize("silent", [True, False])
def test_one_that_does_not_answer_holds_up_nothing(side: Side, monkeypatch: pytest.MonkeyPatch, silent: bool) -> None:
    """It is stopped, or somebody else has its port and says what is no HTTP."""
    monkeypatch.setattr(served, "ASK_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        side.statuses[1] = side.statuses[1]._replace(port=port)
        if not silent:
            listening.close()
        side.clock.now += STALL_S + 1
        side.healths[0].heartbeat()
        side.events[0].inc(4)
        deadline_s = time.monotonic() + 180
        reasons: list[str] = []  # on a busy machine the other one may not answer in time either, the first time
        while reasons != [f"worker 1: it does not answer on http://127.0.0.1:{port}"]:
            assert time.monotonic() < deadline_s, reasons
            status, body = side.json("/readyz")
            assert status == 503
            reasons = body["reasons"]
        assert side.json("/livez")[0] == 503
        text = b""
        while b"lstmstream_events_total 4.0" not in text:
            assert time.monotonic() < deadline_s, text
            status, text = side.ask("/metrics")
            assert status == 200
            assert b'lstmstream_worker_up{worker="1"} 0.0' in text


def test_metrics_are_added_up_and_never_fall(side: Side) -> None:
    side.events[0].inc(4)
    side.events[1].inc(3)
    assert b"\nlstmstream_events_total 7.0\n" in side.ask("/metrics")[1]
    side.end(1)
    assert b"\nlstmstream_events_total 7.0\n" in side.ask("/metrics")[1]
    side.events[0].inc(1)
    assert b"\nlstmstream_events_total 8.0\n" in side.ask("/metrics")[1]


def test_metrics_in_the_format_that_is_asked_for(side: Side) -> None:
    status, text = side.ask("/metrics", "application/openmetrics-text; version=1.0.0")
    assert status == 200
    assert text.endswith(b"# EOF\n")


def test_any_other_path_names_the_workers(side: Side) -> None:
    status, body = side.json("/other")
    assert status == 404
    assert body["error"] == "not found"
    assert body["worker 1"] == f"http://127.0.0.1:{side.servers[1].port}"


def test_the_page_shows_all_workers(side: Side) -> None:
    side.healths[1].block("x", "<waiting>")
    side.tick()
    status, page = side.ask("/")
    assert status == 200
    assert b"/live/events" in page
    status, live = side.json("/live")
    assert status == 200
    assert [(one["number"], one["ready"], one["restarts"]) for one in live["workers"]] == [(0, True, 0), (1, False, 0)]
    assert live["workers"][0]["address"] == f"http://127.0.0.1:{side.servers[0].port}"
    assert (live["ready"], live["reasons"]) == (False, ["worker 1: <waiting>"])


def test_the_page_says_which_worker_does_not_answer(side: Side) -> None:
    side.end(1)
    side.tick()
    _, live = side.json("/live")
    assert live["phase"] == "absent, running"
    assert live["reasons"] == ["worker 1: it has ended (signal SIGKILL) and is being started again"]
    assert live["workers"][1]["phase"] == "absent"


def test_the_workers_ask_for_the_token_too() -> None:
    side = Side(token="s3cret")
    try:
        side.tick()
        assert side.json("/live")[0] == 401
        assert side.json("/live", "s3cret")[1]["reasons"] == []
    finally:
        for server in (side.server, *side.servers):
            server.close()


def test_the_state_of_a_key_is_that_of_the_worker_that_has_it() -> None:
    side = Side(token="s3cret")
    try:
        assert side.json("/state/k%2f", token="s3cret") == (
            404,
            {"error": "not found", "hint": "no worker has a state of this key"},
        )
        side.states["k%2f"] = [1]
        assert side.json("/state/k%2f", token="s3cret") == (200, {"key": "k%2f", "states": [{"partition": 1}]})
        side.states["k%2f"] = [0, 1]
        assert side.json("/state/k%2f", token="s3cret")[1]["states"] == [{"partition": 0}, {"partition": 1}]
        side.restoring.add(1)
        status, body = side.json("/state/other", token="s3cret")
        assert (status, body["hint"]) == (503, "partitions 1 are being restored")
        side.end(1)
        status, body = side.json("/state/other", token="s3cret")
        assert (status, body["hint"]) == (
            503,
            "worker 1: it has ended (signal SIGKILL) and is being started again",
        )
        assert side.json("/state/other", token="wrong")[0] == 401
    finally:
        for server in (side.server, *side.servers):
            server.close()
