"""`/state/<key>`: what is in memory of one key, asked for on the thread of the endpoints and read on the loop's."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote_to_bytes

import orjson

from lstmstream.model import Card
from lstmstream.serve.http import json_response, ok_json
from lstmstream.serve.observers import Observer
from lstmstream.serve.recent_scores import RecentScores
from lstmstream.serve.state import KeyState, StateStore
from lstmstream.serve.state_view import key_member, state_fields, state_parts

if TYPE_CHECKING:
    from lstmstream.serve.checkpoint import CheckpointPlan
    from lstmstream.serve.engine import Result
    from lstmstream.serve.restore import Restored

ANSWER_TIMEOUT_S = 1.5  # the loop takes one batch at a time; less than a parent waits for its workers


class _Found(NamedTuple):
    partition: int
    state: KeyState
    committed: bool
    scores: list[dict[str, Any]]


class _Answer(NamedTuple):
    found: list[_Found]
    restoring: list[int]  # partitions whose states are not known yet


class StateLookup(Observer):
    """Answers between two batches, so a state that it shows is never half changed."""

    def __init__(self, recent: RecentScores | None = None) -> None:
        """`recent`: where predictions are kept; without it none are shown."""
        self._recent = recent
        self._card: Card | None = None
        self._states: StateStore | None = None
        self._positions: dict[int, int] = {}  # of running partitions: committed offsets
        self._questions: deque[tuple[bytes, Future[_Answer]]] = deque()
        self._loop_thread = 0

    def start(self, card: Card, states: StateStore) -> None:
        """The daemon is there. Called on the thread that runs it."""
        self._card, self._states = card, states
        self._loop_thread = threading.get_ident()

    # -- on the thread of the endpoints

    async def respond(self, target: str) -> bytes:
        """The response to `/state/<target>`; the key is `target`, percent-decoded."""
        key = unquote_to_bytes(target)
        future: Future[_Answer] = Future()
        self._questions.append((key, future))
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                answer = await asyncio.wrap_future(future)
        except TimeoutError:
            return _refusal(HTTPStatus.SERVICE_UNAVAILABLE, "busy", "it processes a batch or waits for the broker")
        if answer.found:
            body = {**key_member(key), "states": [self._shown(one) for one in answer.found]}
            return ok_json(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))
        if answer.restoring:
            numbers = ", ".join(map(str, sorted(answer.restoring)))
            return _refusal(HTTPStatus.SERVICE_UNAVAILABLE, "not ready", f"partitions {numbers} are being restored")
        hint = "no partition of this daemon has a state of this key"
        return _refusal(HTTPStatus.NOT_FOUND, "not found", hint)

    def _shown(self, found: _Found) -> dict[str, Any]:
        card = self._card
        assert card is not None
        shown = {"model": card.name, "version": card.version, **state_fields(found.partition, found.state)}
        parts = state_parts(card, found.state.row)
        return {**shown, "committed": found.committed, "scores": found.scores, "parts": parts}

    # -- on the loop's thread

    def on_loop(self) -> None:
        """Answer what was asked."""
        if threading.get_ident() != self._loop_thread:  # a commit beside the loop waits for the broker
            return
        while self._questions:
            key, future = self._questions.popleft()
            if future.set_running_or_notify_cancel():
                future.set_result(self._find(key))

    def _find(self, key: bytes) -> _Answer:
        assert self._states is not None
        found, restoring = [], []
        for partition, slab in self._states.slabs.items():
            position = self._positions.get(partition)
            if position is None:
                restoring.append(partition)
                continue
            row = slab.index.get(key)
            if row is not None and slab.steps[row]:
                state = slab.get(row)
                scores = [] if self._recent is None else self._recent.of_key(key, partition, most=state.steps)
                found.append(_Found(partition, state, state.last_offset < position, scores))
        return _Answer(found, restoring)

    def on_restored(self, restored: Restored) -> None:
        """Its states are those of the offset from now on."""
        self._positions[restored.partition] = restored.offset

    def on_close(self, partition: int) -> None:
        """Its states are another's, or are restored again."""
        self._positions.pop(partition, None)

    def on_commit(self, result: Result, plan: CheckpointPlan, duration_s: float | None) -> None:
        """The offsets that are committed now, and the predictions; those of erased keys are gone."""
        if self._recent is not None:
            self._recent.add(result)
            for partition, erasures in plan.erasures.items():
                for keys in erasures.requests.values():
                    self._recent.forget(set(keys), partition)
        for partition, offset in result.records.next_offsets().items():
            if partition in self._positions:
                self._positions[partition] = offset


def _refusal(status: HTTPStatus, error: str, hint: str) -> bytes:
    return json_response(ok=False, body={"error": error, "hint": hint}, otherwise=status)
