"""The endpoints of all workers under one port. Each request asks the workers, all at once and with a time limit."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from lstmstream.config.files import RenewableSecret
from lstmstream.serve.http import STATE_PREFIX, Route, json_response, live_routes, metrics_response
from lstmstream.serve.live_feed import Feed
from lstmstream.serve.live_figures import Snapshot
from lstmstream.serve.worker import LOOPBACK
from lstmstream.workers.live import WorkerView, merge
from lstmstream.workers.metrics import MergedMetrics, parse
from lstmstream.workers.process import WorkerStatus

ASK_TIMEOUT_S = 2.0


class Answer(NamedTuple):
    """A worker's answer to one request."""

    status: int
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body, an object."""
        loaded = json.loads(self.body)
        return loaded if isinstance(loaded, dict) else {}


class Pages:
    """Runs on the thread of the HTTP server."""

    def __init__(
        self,
        statuses: Callable[[], Sequence[WorkerStatus]],
        *,
        stall_after_s: float,
        token: RenewableSecret | None = None,
        show_keys: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`stall_after_s`: how long a worker may be absent, or take to start, before the whole counts as dead.

        `token`: the workers', for their live figures. `show_keys`: whether alerts have the key and the event's fields.
        """
        self._statuses = statuses
        self._stall_after_s = stall_after_s
        self._clock = clock
        self._token = token
        self._show_keys = show_keys
        self.feed = Feed(self._live)  # for the HTTP server to run
        self._merged = MergedMetrics()
        self._merging = asyncio.Lock()  # an answer that was asked for earlier must not come after a later one

    def routes(self) -> Mapping[str, Route]:
        """By path."""
        own = {"/metrics": self._metrics, "/livez": self._livez, "/readyz": self._readyz}
        return {**own, **live_routes(self.feed)}

    def not_found(self) -> bytes:
        """To any other path: it may be that of one worker."""
        workers = {one.label: _address(one) for one in self._statuses()}
        body = {"error": "not found", "hint": "with --workers, ask one of the workers on this machine", **workers}
        return json_response(ok=False, body=body, otherwise=HTTPStatus.NOT_FOUND)

    async def state(self, target: str) -> bytes:
        """The response to `/state/<target>`: what all workers have of the key."""
        answers = await self._ask(f"{STATE_PREFIX}{target}")
        found = [answer.json() for _, answer in answers if answer is not None and answer.status == HTTPStatus.OK]
        if found:
            states = [state for one in found for state in one["states"]]
            return json_response(ok=True, body={**found[0], "states": states})
        silent = [f"{worker.label}: {_absence(worker)}" for worker, answer in answers if answer is None]
        refused = [answer for _, answer in answers if answer is not None and answer.status != HTTPStatus.NOT_FOUND]
        if silent or refused:
            hint = "; ".join([*silent, *(str(answer.json().get("hint", answer.status)) for answer in refused)])
            return json_response(ok=False, body={"error": "not every worker has answered", "hint": hint})
        body = {"error": "not found", "hint": "no worker has a state of this key"}
        return json_response(ok=False, body=body, otherwise=HTTPStatus.NOT_FOUND)

    async def _live(self) -> Snapshot:
        """The live figures of all, added up."""
        views = [
            WorkerView(
                worker.number,
                worker.label,
                worker.stage,
                _address(worker),
                max(0, worker.run - 1),
                answer.json() if answer is not None and answer.status == HTTPStatus.OK else None,
                _absence(worker) if answer is None else f"it answers with {answer.status}",
            )
            for worker, answer in await self._ask("/live")
        ]
        return merge(views, show_keys=self._show_keys)

    async def _livez(self, _accept: str) -> bytes:
        alive, texts = True, []
        for worker, answer in await self._ask("/livez"):
            if answer is None:
                text = _absence(worker)
                alive = alive and (worker.run == 0 or self._clock() - worker.since_s <= self._stall_after_s)
            else:
                text = str(answer.json().get("reason", ""))
                alive = alive and answer.status == HTTPStatus.OK
            texts.append(f"{worker.label}: {text}")
        return json_response(ok=alive, body={"live": alive, "reason": "; ".join(texts)})

    async def _readyz(self, _accept: str) -> bytes:
        reasons, phases = [], set()
        for worker, answer in await self._ask("/readyz"):
            phases.add(_phase(worker, answer))
            reasons += [f"{worker.label}: {reason}" for reason in self._not_ready(worker, answer)]
        body = {"ready": not reasons, "phase": ", ".join(sorted(phases)), "reasons": reasons}
        return json_response(ok=not reasons, body=body)

    async def _metrics(self, accept: str) -> bytes:
        async with self._merging:
            answers = await self._ask("/metrics")
            for worker, answer in answers:
                if answer is None or answer.status != HTTPStatus.OK:
                    self._merged.missed(worker.number)
                else:
                    self._merged.read(worker.number, worker.run, parse(answer.body.decode()), worker.stage)
            return metrics_response(self._merged.registry([worker for worker, _ in answers]), accept)

    def _not_ready(self, worker: WorkerStatus, answer: Answer | None) -> list[str]:
        if answer is None:
            return [_absence(worker)]
        if answer.status == HTTPStatus.OK:
            return []
        return [str(reason) for reason in answer.json().get("reasons", [])] or ["not ready"]

    async def _ask(self, path: str) -> list[tuple[WorkerStatus, Answer | None]]:
        """Each worker with its answer; None where it does not run, or does not answer in time."""
        statuses = self._statuses()
        token = None if self._token is None else self._token.current()
        return list(zip(statuses, await asyncio.gather(*(_ask(one, path, token) for one in statuses)), strict=True))


async def _ask(worker: WorkerStatus, path: str, token: str | None) -> Answer | None:
    if not worker.running or worker.port is None:
        return None
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            return await _get(worker.port, path, token)
    except (OSError, ValueError):  # a TimeoutError is an OSError
        return None


async def _get(port: int, path: str, token: str | None) -> Answer:
    """Raises OSError, or ValueError where the answer is cut off."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        authorization = "" if token is None else f"Authorization: Bearer {token}\r\n"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\n{authorization}\r\n".encode())
        received = await reader.read(-1)
    finally:
        writer.close()
    head, found, body = received.partition(b"\r\n\r\n")
    length = next((line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), b"")
    if not found or int(length.partition(b":")[2]) != len(body):
        raise ValueError("the answer is cut off")
    return Answer(int(head.split(b" ", 2)[1]), body)


def _phase(worker: WorkerStatus, answer: Answer | None) -> str:
    if answer is not None:
        return str(answer.json().get("phase", ""))
    return "starting" if worker.running and worker.port is None else "absent"


def _absence(worker: WorkerStatus) -> str:
    """Why there is no answer."""
    if not worker.running:
        return f"it has ended ({worker.ended}) and is being started again" if worker.run else "it is being started"
    return "it is starting" if worker.port is None else f"it does not answer on {_address(worker)}"


def _address(worker: WorkerStatus) -> str:
    return "no port yet" if worker.port is None else f"http://{LOOPBACK}:{worker.port}"
