"""The endpoints and the live page over HTTP/1.1, in a thread of its own, with a limit on everything.

One thread serves all connections without blocking, so a slow or hostile client costs a socket and a few kilobytes,
never a thread. Each connection carries one request and is then closed. When too many are open, the oldest one is
dropped: a probe gets through while 200 sockets are silent. No request is logged.
`/live/events` alone does not end: its connections are counted apart, and live_feed.py sends to them.
The server knows only what answers which path: `daemon_routes` for a daemon, `lstmstream.workers.pages` for several.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import os
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Self, cast

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, generate_latest

from lstmstream.config.files import RenewableSecret
from lstmstream.errors import CannotServe
from lstmstream.logs import escape_untrusted
from lstmstream.serve.health import Health
from lstmstream.serve.live_feed import Feed
from lstmstream.serve.live_page import live_page

MAX_CONNECTIONS = 64
HEAD_LIMIT = 16_384  # bytes of request line and headers
HEADER_COUNT = 64
TARGET_LIMIT = 1_024  # characters of the request's target
REQUEST_TIMEOUT_S = 5.0  # from accepting to the last header
RESPONSE_TIMEOUT_S = 10.0  # until the client has received all of it
LINGER_S = 1.0  # for the client to close first: closing with unread bytes could discard the response
LINGER_BYTES = 4_194_304

_HEAD_END = re.compile(rb"\r?\n\r?\n")  # RFC 9112, section 2.2: a line may end in LF alone
_JSON_TYPE = "application/json"
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
    b"X-Content-Type-Options: nosniff\r\nX-Accel-Buffering: no\r\nConnection: close\r\n\r\n"
)
# With http.token set, these ask for it: they show keys. Without one, on a loopback address, they are for this machine.
GUARDED_PATHS = frozenset({"/live", "/live/events"})
STATE_PREFIX = "/state/"  # guarded as well; the key follows


# Takes the request's Accept header, returns a whole response (`json_response`, ...); it may first await others.
Route = Callable[[str], bytes | Awaitable[bytes]]
KeyRoute = Callable[[str], Awaitable[bytes]]  # takes what follows STATE_PREFIX, percent-encoded


class Stream(bytes):
    """The beginning of a response that has no end: the client joins the feed."""

    feed: Feed

    def __new__(cls, beginning: bytes, feed: Feed) -> Self:
        """`beginning`: head and first events."""
        stream = super().__new__(cls, beginning)
        stream.feed = feed
        return stream


class HttpServer:
    """Serves from its construction until `close()`. Raises CannotServe if it cannot listen."""

    def __init__(
        self,
        host: str,
        port: int,
        routes: Mapping[str, Route],
        *,
        not_found: Callable[[], bytes] | None = None,
        feed: Feed | None = None,
        guard: Guard | None = None,
        state: KeyRoute | None = None,
    ) -> None:
        """Port 0 takes any free port; the property `port` is the one taken. `routes`: by path.

        `not_found`: the response to any other path. `feed` runs on this server's thread. `guard`: of GUARDED_PATHS.
        `state`: the response to STATE_PREFIX and a key.
        """
        self._socket = _listen(host, port)
        self._port = int(self._socket.getsockname()[1])
        self._router = _Router(routes, not_found, guard, state)
        self._feed = feed
        self._open: dict[_Connection, None] = {}  # oldest first
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="lstmstream-http", daemon=True)
        self._serving = threading.Event()
        self._closed = False
        self._thread.start()
        self._serving.wait()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    def close(self) -> None:
        """Stop immediately and drop open connections. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        loop = self._loop
        server = loop.run_until_complete(
            loop.create_server(lambda: _Connection(self._router, self._open), sock=self._socket, backlog=128)
        )
        loop.call_soon(self._serving.set)  # from here on `close` can stop the loop
        feeding = None if self._feed is None else loop.create_task(self._feed.run())
        try:
            loop.run_forever()
        finally:
            loop.remove_reader(self._socket)  # nothing more is accepted,
            loop.run_until_complete(asyncio.sleep(0))  # and what just was gets its transport from an open server
            server.close()
            if feeding is not None:
                feeding.cancel()
            for _ in range(2):  # the second time those that were just being accepted
                self._drop_all()
                if waiting := asyncio.all_tasks(loop):
                    loop.run_until_complete(asyncio.wait(waiting))
            loop.run_until_complete(asyncio.sleep(0))  # let the transports close their sockets
            loop.close()

    def _drop_all(self) -> None:
        for connection in list(self._open):
            connection.drop()
        if self._feed is not None:
            self._feed.close()


class _Connection(asyncio.Protocol):
    """One connection: one request, one response, then it is closed."""

    def __init__(self, router: _Router, connections: dict[_Connection, None]) -> None:
        self._router = router
        self._connections = connections
        self._received = bytearray()
        self._responded = False
        self._discarded = 0
        self._task: asyncio.Task[None] | None = None
        self._feed: Feed | None = None  # of the stream that it has become

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(REQUEST_TIMEOUT_S, self._on_timeout)
        while len(self._connections) >= MAX_CONNECTIONS:
            next(iter(self._connections)).drop()
        self._connections[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def data_received(self, data: bytes) -> None:
        if self._responded:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self.drop()
            return
        if not self._received:
            data = data.lstrip(b"\r\n")  # RFC 9112, section 2.2: empty lines before a request are ignored
        searched = max(0, len(self._received) - 3)
        self._received += data
        end = _HEAD_END.search(self._received, searched, HEAD_LIMIT + 4)
        if end is not None:
            self._responded = True  # or is about to be: what still comes is discarded
            self._timer.cancel()
            self._timer = self._loop.call_later(RESPONSE_TIMEOUT_S, self.drop)
            head = bytes(self._received[: end.start()])
            self._task = self._loop.create_task(self._respond(head))
        elif len(self._received) > HEAD_LIMIT:
            self._send(_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))

    def eof_received(self) -> None:
        """The client has finished sending. Returning None lets asyncio close the connection."""

    def drop(self) -> None:
        """Close the connection immediately."""
        self._end()
        self._transport.abort()

    def _end(self) -> None:
        self._connections.pop(self, None)
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        if self._feed is not None:
            self._feed.leave(self._transport)

    async def _respond(self, head: bytes) -> None:
        response = await self._router.respond(head)
        if isinstance(response, Stream):
            self._begin_stream(response)
        else:
            self._send(response)

    def _begin_stream(self, stream: Stream) -> None:
        self._received.clear()
        self._timer.cancel()
        self._connections.pop(self, None)  # a probe must not drop it, nor it a probe
        self._feed = stream.feed
        self._transport.write(bytes(stream))
        stream.feed.join(self._transport)

    def _on_timeout(self) -> None:
        self._send(_error(HTTPStatus.REQUEST_TIMEOUT))

    def _send(self, response: bytes) -> None:
        self._responded = True
        self._received.clear()
        self._timer.cancel()
        self._timer = self._loop.call_later(RESPONSE_TIMEOUT_S, self.drop)
        # Called back when the last byte has left this process, to start the shorter wait.
        self._transport.set_write_buffer_limits(high=0)
        self._transport.write(response)
        if self._transport.get_write_buffer_size() == 0:
            self.resume_writing()

    def resume_writing(self) -> None:
        if self._feed is not None or self._transport.is_closing():
            return
        self._timer.cancel()
        self._timer = self._loop.call_later(LINGER_S, self.drop)
        with contextlib.suppress(OSError):
            self._transport.write_eof()


class _Router:
    """Turns the head of a request into the bytes of its response."""

    def __init__(
        self,
        routes: Mapping[str, Route],
        not_found: Callable[[], bytes] | None,
        guard: Guard | None = None,
        state: KeyRoute | None = None,
    ) -> None:
        self._routes = routes
        self._not_found = not_found
        self._state = state
        self._guard = Guard(None, local_only=False) if guard is None else guard

    async def respond(self, head: bytes) -> bytes:
        """Return the whole response to the request line and headers in `head`, without their final empty line."""
        request, *lines = head.decode("latin-1").replace("\r\n", "\n").split("\n")
        parts = request.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/"):
            return _error(HTTPStatus.BAD_REQUEST)
        method, target, version = parts
        if version not in {"HTTP/1.0", "HTTP/1.1"}:
            return _error(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        if len(target) > TARGET_LIMIT:
            return _error(HTTPStatus.REQUEST_URI_TOO_LONG)
        if len(lines) > HEADER_COUNT:
            return _error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if method not in {"GET", "HEAD"}:
            return _error(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD\r\n")
        try:
            path = _path(target)
            guarded = path in GUARDED_PATHS or path.startswith(STATE_PREFIX)
            refused = self._guard.refuse(lines) if guarded else None
            response = await self._route(path, _header(lines, "accept")) if refused is None else refused
        except Exception:  # a failing metric must not end the thread that answers the probes
            response = _error(HTTPStatus.INTERNAL_SERVER_ERROR)
        return response if method == "GET" else response[: response.index(b"\r\n\r\n") + 4]

    async def _route(self, path: str, accept: str) -> bytes:
        if path.startswith(STATE_PREFIX) and self._state is not None:
            if not self._guard.has_token:
                return _error(HTTPStatus.NOT_FOUND, hint="set http.token to look up states")
            return await self._state(path.removeprefix(STATE_PREFIX))
        route = self._routes.get(path)
        if route is None:
            return _error(HTTPStatus.NOT_FOUND) if self._not_found is None else self._not_found()
        response = route(accept)
        return response if isinstance(response, bytes) else await response


class Guard:
    """Who may ask for what shows keys."""

    def __init__(self, token: RenewableSecret | None, *, local_only: bool) -> None:
        """`local_only`: without a token, refuse requests to a name that is not of this machine.

        A page of somebody else's, open in a browser on this machine, could otherwise read it all: its own name only
        has to be made to point to 127.0.0.1 (DNS rebinding).
        """
        self._token = token
        self._local_only = local_only

    @property
    def has_token(self) -> bool:
        """Whether a token is asked for."""
        return self._token is not None

    def refuse(self, lines: list[str]) -> bytes | None:
        """The response to a request with these headers, if it may not be answered."""
        if self._token is not None:
            kind, _, given = _header(lines, "authorization").partition(" ")
            token = self._token.current().encode()
            if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token):
                return None
            return _error(
                HTTPStatus.UNAUTHORIZED, "WWW-Authenticate: Bearer\r\n", hint="send http.token as bearer token"
            )
        host = _header(lines, "host")
        if self._local_only and host and not _is_local_name(host):
            return _error(HTTPStatus.FORBIDDEN, hint="ask for 127.0.0.1 or localhost, or set http.token")
        return None


def daemon_routes(health: Health, registry: CollectorRegistry, feed: Feed | None = None) -> Mapping[str, Route]:
    """What one daemon answers, by path."""

    def livez(_accept: str) -> bytes:
        ok, text = health.livez()
        return json_response(ok=ok, body={"live": ok, "reason": text})

    def readyz(_accept: str) -> bytes:
        ok, reasons = health.readyz()
        return json_response(ok=ok, body={"ready": ok, "phase": health.phase, "reasons": reasons})

    def metrics(accept: str) -> bytes:
        return metrics_response(registry, accept)

    return {"/metrics": metrics, "/livez": livez, "/readyz": readyz, **live_routes(feed)}


def live_routes(feed: Feed | None) -> Mapping[str, Route]:
    """The page for people, and what it shows; none without a feed."""
    if feed is None:
        return {}

    def page(_accept: str) -> bytes:
        text, policy = live_page()
        extra = f"Content-Security-Policy: {policy}\r\nReferrer-Policy: no-referrer\r\n"
        return _response(HTTPStatus.OK, text.encode(), "text/html; charset=utf-8", extra)

    async def live(_accept: str) -> bytes:
        return ok_json(await feed.body())

    def events(_accept: str) -> bytes:
        if feed.full:
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, "Retry-After: 5\r\n", hint="too many pages are open")
        return Stream(_STREAM_HEAD + feed.first_events(), feed)

    return {"/": page, "/live": live, "/live/events": events}


def metrics_response(registry: CollectorRegistry, accept: str) -> bytes:
    """Every metric of `registry`, in the format that the Accept header asks for."""
    try:
        encode, kind = choose_encoder(accept)
    except Exception:  # an Accept header that it cannot read
        encode, kind = choose_encoder("")
    if not kind.isascii() or not kind.isprintable():
        encode, kind = generate_latest, "text/plain; version=0.0.4; charset=utf-8"
    return _response(HTTPStatus.OK, encode(registry), kind)


def json_response(*, ok: bool, body: Mapping[str, object], otherwise: int = HTTPStatus.SERVICE_UNAVAILABLE) -> bytes:
    """`body` as JSON, with status 200 if `ok`."""
    status = HTTPStatus.OK if ok else HTTPStatus(otherwise)
    return _response(status, json.dumps(body).encode() + b"\n", _JSON_TYPE)


def ok_json(body: bytes) -> bytes:
    """The response with a body that is JSON already."""
    return _response(HTTPStatus.OK, body, _JSON_TYPE)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise CannotServe(
            f"http.host: {escape_untrusted(host)} is not an address of this machine; use 127.0.0.1 or 0.0.0.0"
        ) from None
    listening = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
        listening.settimeout(0.0)
    except OSError as error:
        listening.close()
        why = escape_untrusted(error.strerror or type(error).__name__)
        raise CannotServe(
            f"http.port: cannot listen on {escape_untrusted(host)}:{port} ({why}); set another port or host"
        ) from None
    return listening


def _path(target: str) -> str:
    """The path of a request target, which may be a whole URL (RFC 9112, section 3.2.2)."""
    if target.lower().startswith(("http://", "https://")):
        target = "/" + target.split("://", 1)[1].partition("/")[2]
    return target.partition("?")[0]


def _header(lines: list[str], name: str) -> str:
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() == name:
            return value.strip()
    return ""


def _is_local_name(host: str) -> bool:
    """Whether the Host header names this machine, or an address: neither can be another's name."""
    name = host.rpartition("]")[0].lstrip("[") or host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _error(status: HTTPStatus, extra: str = "", *, hint: str | None = None) -> bytes:
    body = {"error": status.phrase.lower()} | ({} if hint is None else {"hint": hint})
    return _response(status, json.dumps(body).encode() + b"\n", _JSON_TYPE, extra)


def _response(status: HTTPStatus, body: bytes, kind: str, extra: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"{extra}Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
