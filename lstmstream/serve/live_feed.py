"""The live figures for all who watch: one snapshot a second, encoded once, the same bytes for every client.

It runs on the event loop of the HTTP server. A client that does not read misses snapshots, and is dropped after ten of
them in a row; the daemon never holds more for it than the two messages of its beginning and one snapshot.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable

from lstmstream.serve.live_figures import Snapshot

INTERVAL_S = 1.0
MAX_CLIENTS = 256
MAX_MISSED = 10  # snapshots in a row
HISTORY = 300  # points, one a second, for whoever begins to watch
SEND_BUFFER_BYTES = 65_536  # of the system, for each client

log = logging.getLogger(__name__)


class Feed:
    """Takes snapshots and sends them. All methods are called on one event loop."""

    def __init__(self, take: Callable[[], Awaitable[Snapshot]]) -> None:
        """`take` gives the snapshot of now."""
        self._take = take
        self._clients: dict[asyncio.Transport, int] = {}  # with how many snapshots each missed in a row
        self._history: deque[list[float | None]] = deque(maxlen=HISTORY)
        self._body = b""  # the last snapshot as JSON; empty before the first
        self._failed = False

    async def run(self) -> None:
        """For ever, until it is cancelled."""
        while True:
            await self.tick()
            await asyncio.sleep(INTERVAL_S)

    async def tick(self) -> None:
        """Take a snapshot and send it to all."""
        try:
            snapshot = await self._take()
            self._body = json.dumps(snapshot, allow_nan=False, separators=(",", ":")).encode()
            self._history.append(_point(snapshot))
            self._failed = False
        except Exception:  # it must not end the thread that answers the probes
            if not self._failed:
                log.warning("the live figures cannot be put together", exc_info=True)
            self._failed = True
            return
        self._send(_event("snapshot", self._body))

    async def body(self) -> bytes:
        """The last snapshot as JSON."""
        if not self._body:
            await self.tick()
        return self._body or b"{}"

    @property
    def full(self) -> bool:
        """Whether no more clients are taken."""
        return len(self._clients) >= MAX_CLIENTS

    def first_events(self) -> bytes:
        """What a client gets at its beginning: the last minutes, and the last snapshot."""
        history = json.dumps({"points": list(self._history)}, separators=(",", ":")).encode()
        return b"retry: 2000\n\n" + _event("history", history) + (_event("snapshot", self._body) if self._body else b"")

    def join(self, client: asyncio.Transport) -> None:
        """Send it all snapshots from now on."""
        connected = client.get_extra_info("socket")
        if connected is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._clients[client] = 0

    def leave(self, client: asyncio.Transport) -> None:
        """It is gone."""
        self._clients.pop(client, None)

    def close(self) -> None:
        """Drop all clients."""
        for client in list(self._clients):
            client.abort()
        self._clients.clear()

    def _send(self, event: bytes) -> None:
        for client, missed in list(self._clients.items()):
            if not client.get_write_buffer_size():
                self._clients[client] = 0
                client.write(event)
            elif missed + 1 >= MAX_MISSED:
                self.leave(client)
                client.abort()
            else:
                self._clients[client] = missed + 1


def _event(name: str, data: bytes) -> bytes:
    """One server-sent event; JSON has no line breaks."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def _point(snapshot: Snapshot) -> list[float | None]:
    """What is drawn over time: time, events per second, latency p50 and p99 in seconds, lag, events per batch."""
    times, lag = snapshot["latency"], snapshot["lag"]["total"]
    drawn = (snapshot["time"], snapshot["events_per_s"], times["p50_s"], times["p99_s"], lag, snapshot["batch_events"])
    return list(drawn)
