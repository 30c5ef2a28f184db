"""A TCP proxy before a Kafka broker that knows requests by their header: it can swallow, delay and cut chosen ones.

Clients that bootstrap at the proxy stay with it: the broker's address in its answers is replaced by the proxy's. The
bodies of requests are not looked at, so it works for every version of the protocol.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NamedTuple, Self


class Api(IntEnum):
    """Kafka's request types that tests name."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    API_VERSIONS = 18
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28
    DESCRIBE_CLUSTER = 60


_WITH_ADDRESSES = {Api.METADATA, Api.FIND_COORDINATOR, Api.DESCRIBE_CLUSTER}


class Request(NamedTuple):
    """The header of one request."""

    api: int
    version: int
    correlation_id: int
    client_id: str


class Action(Enum):
    """What becomes of a request."""

    SWALLOW = "swallow"  # it never arrives, and the connection stays mute from then on
    LOSE_ANSWER = "lose answer"  # it arrives and is done; the connection stays mute from then on
    CUT = "cut"  # it never arrives: the connection is closed
    CUT_AFTER = "cut after"  # it arrives and is done, and the connection is closed in place of the answer
    DELAY = "delay"  # it arrives later, even if its sender has given up meanwhile


@dataclass
class Fault:
    """An action on the requests of one type, until it has struck `times` times or is lifted."""

    action: Action
    api: Api
    times: int | None
    client: str  # prefix of the client id; empty takes all
    delay_s: float = 0.0
    struck: list[Request] = field(default_factory=list)
    lifted: bool = False

    def lift(self) -> None:
        """Leave all further requests alone. Connections that are mute stay so."""
        self.lifted = True

    def strikes(self, request: Request) -> bool:
        """Whether it acts on this one; counts it."""
        spent = self.lifted or (self.times is not None and len(self.struck) >= self.times)
        if spent or request.api != self.api or not request.client_id.startswith(self.client):
            return False
        self.struck.append(request)
        return True


class KafkaProxy:
    """Listens on a port of 127.0.0.1 for as long as it is entered; `servers` is where clients find the broker."""

    def __init__(self, broker: str) -> None:
        """`broker`: the HOST:PORT that it also advertises."""
        host, _, port = broker.rpartition(":")
        self._broker = (host, int(port))
        self._faults: list[Fault] = []
        self._requests: list[Request] = []
        self._changes: dict[int, Callable[[bytes], bytes]] = {}
        self._bytes_per_s: dict[int, int] = {}
        self._connections: set[_Connection] = set()
        self._lock = threading.Lock()
        self._flowing = threading.Event()  # clear while everything stands still
        self._listener: socket.socket | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self._flowing.set()

    @property
    def servers(self) -> str:
        """For `bootstrap_servers`."""
        return f"{self._broker[0]}:{self._port}"

    # -- faults

    def swallow(self, api: Api, *, times: int | None = None, client: str = "") -> Fault:
        """Requests never arrive and nobody says so."""
        return self._fault(Fault(Action.SWALLOW, api, times, client))

    def lose_answer(self, api: Api, *, times: int | None = None, client: str = "") -> Fault:
        """Requests are done, and their senders wait for ever."""
        return self._fault(Fault(Action.LOSE_ANSWER, api, times, client))

    def cut(self, api: Api, *, after: bool = False, times: int | None = None, client: str = "") -> Fault:
        """Connections are closed at requests, before they arrive or once they are done."""
        return self._fault(Fault(Action.CUT_AFTER if after else Action.CUT, api, times, client))

    def delay(self, api: Api, seconds: float, *, times: int | None = None, client: str = "") -> Fault:
        """Requests arrive late."""
        return self._fault(Fault(Action.DELAY, api, times, client, seconds))

    def change_answers(self, api: Api, change: Callable[[bytes], bytes]) -> None:
        """Answers to requests of this type go through `change`, without their length, for as long as the proxy is."""
        self._changes[api] = change

    def slow_answers(self, api: Api, bytes_per_s: int) -> None:
        """Answers to requests of this type trickle, on each connection by itself, for as long as the proxy is."""
        self._bytes_per_s[api] = bytes_per_s

    def seen(self, api: Api, client: str = "") -> int:
        """How many requests of this type have come, whatever became of them."""
        with self._lock:
            return sum(request.api == api and request.client_id.startswith(client) for request in self._requests)

    # -- the broker as a whole

    def down(self) -> None:
        """The port is closed and every connection cut, as if the broker were killed."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.close()

    def up(self) -> None:
        """Listen, on the same port as before."""
        self._flowing.set()
        self._listener = socket.create_server((self._broker[0], self._port), backlog=64)
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), name="proxy", daemon=True).start()

    def stall(self) -> None:
        """Nothing is answered on any connection, open or new, as if the broker were stopped by SIGSTOP."""
        self._flowing.clear()

    def resume(self) -> None:
        """After `stall`: what has come meanwhile is answered."""
        self._flowing.set()

    # -- inside

    def _fault(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                broker = socket.create_connection(self._broker, timeout=60)
            except OSError:
                client.close()
                continue
            broker.settimeout(None)
            connection = _Connection(self, client, broker)
            with self._lock:
                self._connections.add(connection)
            connection.start()

    def _closed(self, connection: _Connection) -> None:
        with self._lock:
            self._connections.discard(connection)

    def _strike(self, request: Request) -> Fault | None:
        """The fault that acts on the request, if one does."""
        with self._lock:
            self._requests.append(request)
            return next((fault for fault in self._faults if fault.strikes(request)), None)

    def _readdressed(self, answer: bytes) -> bytes:
        """With the proxy's port in place of the broker's; in every version it follows the host's name."""
        host = self._broker[0].encode()
        return answer.replace(host + struct.pack(">i", self._broker[1]), host + struct.pack(">i", self._port))


class _Connection:
    """One client's connection and the one that it has to the broker."""

    def __init__(self, proxy: KafkaProxy, client: socket.socket, broker: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._broker = broker
        self._mute = False
        self._apis: dict[int, int] = {}  # of the requests on their way, by correlation id
        self._last_answer: int | None = None  # correlation id after whose answer to cut or mute
        self._then_cut = False
        self._patient = False  # whether to wait for answers that nobody waits for any more

    def start(self) -> None:
        for pump in (self._upwards, self._downwards):
            threading.Thread(target=self._guarded, args=(pump,), name="proxy-connection", daemon=True).start()

    def close(self) -> None:
        for end in (self._client, self._broker):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._proxy._closed(self)

    def _guarded(self, pump: object) -> None:
        try:
            pump()  # type: ignore[operator]
        except OSError:
            pass
        finally:
            self.close()

    def _upwards(self) -> None:
        for frame in _frames(self._client):
            request = _header(frame)
            self._proxy._flowing.wait()
            fault = None if self._mute else self._proxy._strike(request)
            if self._mute:
                continue
            if fault is not None:
                if fault.action is Action.SWALLOW:
                    self._mute = True
                    continue
                if fault.action is Action.CUT:
                    return
                if fault.action is Action.DELAY:
                    time.sleep(fault.delay_s)
                    self._patient = True
                else:
                    self._last_answer, self._then_cut = request.correlation_id, fault.action is Action.CUT_AFTER
            self._apis[request.correlation_id] = request.api
            self._broker.sendall(_framed(frame))
        deadline = time.monotonic() + 30
        while self._patient and self._apis and time.monotonic() < deadline:
            time.sleep(0.01)

    def _downwards(self) -> None:
        for frame in _frames(self._broker):
            (correlation_id,) = struct.unpack_from(">i", frame)
            api = self._apis.pop(correlation_id, None)
            if correlation_id == self._last_answer:
                if self._then_cut:
                    return
                self._mute = True
            self._proxy._flowing.wait()
            if self._mute:
                continue
            answer = self._proxy._readdressed(frame) if api in _WITH_ADDRESSES else frame
            if api in self._proxy._changes:
                answer = self._proxy._changes[api](answer)
            with contextlib.suppress(OSError):  # a delayed request arrives even if its sender has gone
                self._send_down(_framed(answer), self._proxy._bytes_per_s.get(api or 0))

    def _send_down(self, content: bytes, bytes_per_s: int | None) -> None:
        if bytes_per_s is None:
            self._client.sendall(content)
            return
        step = max(1, bytes_per_s // 20)
        for at in range(0, len(content), step):
            self._client.sendall(content[at : at + step])
            time.sleep(len(content[at : at + step]) / bytes_per_s)


def _frames(end: socket.socket) -> Iterator[bytes]:
    """What comes, without the lengths, until the other side closes."""
    while len(size := _exactly(end, 4)) == 4:
        frame = _exactly(end, int.from_bytes(size))
        if len(frame) < int.from_bytes(size):
            return
        yield frame


def _exactly(end: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count and (part := end.recv(min(1 << 16, count - len(parts)))):
        parts += part
    return bytes(parts)


def _framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(4) + frame


def _header(frame: bytes) -> Request:
    """The client id follows in every version of the header, as a string with a length of two bytes."""
    api, version, correlation_id, length = struct.unpack_from(">hhih", frame)
    return Request(api, version, correlation_id, frame[10 : 10 + max(0, length)].decode(errors="replace"))
