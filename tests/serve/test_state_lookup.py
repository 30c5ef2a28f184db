"""`/state/<key>`: the state as it is in memory, to those who have the token, between two batches."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lstmstream.serve import recent_scores, state_lookup
from lstmstream.serve.checkpoint import CheckpointPlan
from lstmstream.serve.http import HttpServer
from lstmstream.serve.recent_scores import SHOWN, RecentScores
from lstmstream.serve.restore import Restored
from lstmstream.serve.state_lookup import StateLookup
from tests.serve.helpers import NumpyStep
from tests.serve.live_world import LiveWorld, guard

TOKEN = "s3cret"


class Daemon:
    """A loop with nothing to do, an engine, and the endpoint."""

    def __init__(self, token: str | None = TOKEN) -> None:
        self.world = LiveWorld()
        self.world.load()
        self.lookup = StateLookup(RecentScores())
        self._stopping = threading.Event()
        self.paused = threading.Event()
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()
        self.server = HttpServer("127.0.0.1", 0, {}, guard=guard(token), state=self.lookup.respond)

    def _loop(self) -> None:
        self.lookup.start(NumpyStep().card, self.world.engine.scorer.states)
        while not self._stopping.wait(0.005):
            if not self.paused.is_set():
                self.lookup.on_loop()

    def run_partition(self, offset: int = 0) -> None:
        self.lookup.on_restored(Restored(0, offset, 0, 0, 0, 0.0))

    def ask(self, target: str, token: str = TOKEN) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            connection.request("GET", f"/state/{target}", headers={"Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()
        self.server.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.close()


def test_a_state_is_shown_by_its_parts(daemon: Daemon) -> None:
    daemon.run_partition()
    daemon.world.process(b'{"amount":1}', b'{"amount":2}', key=b"customer 7")
    status, body = daemon.ask("customer%207")
    assert (status, body["key"]) == (200, "customer 7")
    (state,) = body["states"]
    slab = daemon.world.engine.scorer.states.slabs[0]
    kept = slab.get(slab.index[b"customer 7"])
    card = NumpyStep().card
    assert [(part.name, np.shape(state["parts"][part.name])) for part in card.state.parts] == [
        (part.name, part.shape) for part in card.state.parts
    ]
    flat = np.concatenate([np.ravel(np.float32(state["parts"][part.name])) for part in card.state.parts])
    assert flat.tobytes() == kept.row.tobytes()
    assert (state["partition"], state["offset"], state["steps"], state["failures"]) == (0, 1, 2, 0)
    assert (state["model"], state["version"]) == (card.name, card.version)


def test_its_last_scores(daemon: Daemon) -> None:
    """Those that are committed, the newest first, and not of another key."""
    daemon.run_partition()
    first = daemon.world.process(b'{"amount":1}', b'{"amount":2}', b"no event", b'{"amount":3}')
    for result in (first, daemon.world.process(b'{"amount":4}', key=b"other")):
        daemon.lookup.on_commit(result, CheckpointPlan([], {}, {}, {}, 0), 0.01)
    daemon.world.process(b'{"amount":5}')
    (state,) = daemon.ask("k")[1]["states"]
    newest_first = list(zip([0, 1, 3], first.predictions.score.tolist(), strict=True))[::-1]
    assert [(one["offset"], one["score"]) for one in state["scores"]] == newest_first
    assert {one["timestamp"] for one in state["scores"]} == {"1970-01-12T13:48:19.996Z"}
    assert len(daemon.ask("other")[1]["states"][0]["scores"]) == 1


def test_no_more_scores_than_it_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_scores, "KEPT", 200)
    world = LiveWorld()
    world.load()
    recent = RecentScores()
    for number in range(25):
        recent.add(world.process(*[b'{"amount":1}'] * 10, key=b"first" if number == 0 else b"k"))
    assert recent.of_key(b"first", 0, most=1000) == [], "the oldest went"
    assert len(recent._batches) == 20
    assert len(recent.of_key(b"k", 0, most=1000)) == SHOWN
    assert [one["offset"] for one in recent.of_key(b"k", 0, most=2)] == [249, 248], "since its state began"
    assert recent.of_key(b"k", 1, most=2) == [], "of another partition"
    recent.forget({b"k"}, 1)
    assert len(recent.of_key(b"k", 0, most=1000)) == SHOWN
    recent.forget({b"k"}, 0)
    assert recent.of_key(b"k", 0, most=1000) == [], "it was erased"


@pytest.mark.parametrize("key", [b"a/b?c", "Zoë".encode(), b""], ids=["path", "utf-8", "empty"])
def test_any_key_can_be_written_percent_encoded(daemon: Daemon, key: bytes) -> None:
    daemon.run_partition()
    daemon.world.process(b'{"amount":1}', key=key)
    status, body = daemon.ask("".join(f"%{byte:02x}" for byte in key))
    assert (status, body["key"]) == (200, key.decode())


def test_a_key_that_is_not_utf_8(daemon: Daemon) -> None:
    daemon.run_partition()
    daemon.world.process(b'{"amount":1}', key=b"\xff\x00")
    status, body = daemon.ask("%ff%00")
    assert (status, base64.b64decode(body["key_base64"])) == (200, b"\xff\x00")


def test_what_is_not_committed_is_said(daemon: Daemon) -> None:
    daemon.run_partition(offset=5)
    daemon.world.process(*[b'{"amount":1}'] * 5)
    assert daemon.ask("k")[1]["states"][0]["committed"] is True
    daemon.world.process(b'{"amount":1}')
    assert daemon.ask("k")[1]["states"][0]["committed"] is False


def test_a_key_that_nobody_has_seen(daemon: Daemon) -> None:
    daemon.run_partition()
    assert daemon.ask("nobody") == (
        404,
        {"error": "not found", "hint": "no partition of this daemon has a state of this key"},
    )


def test_while_a_partition_is_restored_it_may_be_there(daemon: Daemon) -> None:
    daemon.world.process(b'{"amount":1}')
    status, body = daemon.ask("k")
    assert (status, body["hint"]) == (503, "partitions 0 are being restored")
    daemon.run_partition(1)
    assert daemon.ask("k")[0] == 200
    daemon.lookup.on_close(0)
    assert daemon.ask("k")[0] == 503


def test_a_loop_that_is_busy_is_not_waited_for(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_lookup, "ANSWER_TIMEOUT_S", 0.05)
    daemon.run_partition()
    daemon.paused.set()
    assert daemon.ask("k")[0] == 503
    daemon.lookup.on_loop()  # of another thread, such as that of a commit: the loop may be in the middle of a batch
    assert daemon.ask("k")[0] == 503
    monkeypatch.undo()
    daemon.paused.clear()
    assert daemon.ask("k")[0] == 404


def test_only_with_the_token(daemon: Daemon) -> None:
    daemon.run_partition()
    daemon.world.process(b'{"amount":1}')
    status, body = daemon.ask("k", token="wrong")
    assert (status, body["error"]) == (401, "unauthorized")


def test_without_a_token_there_is_no_such_page() -> None:
    daemon = Daemon(token=None)
    try:
        daemon.run_partition()
        daemon.world.process(b'{"amount":1}')
        assert daemon.ask("k") == (404, {"error": "not found", "hint": "set http.token to look up states"})
    finally:
        daemon.close()
