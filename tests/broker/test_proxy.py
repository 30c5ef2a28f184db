"""The proxy of the fault tests does to requests what it says. The broker here is a few lines that answer anything."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.broker.proxy import Api, Fault, KafkaProxy, _framed, _frames


class Upstream:
    """Answers each request with its correlation id and its own address; notes what has come."""

    def __init__(self) -> None:
        self.seen: list[int] = []  # correlation ids
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.servers = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        port = int(self.servers.rpartition(":")[2])
        with client:
            for frame in _frames(client):
                (correlation_id,) = struct.unpack_from(">i", frame, 4)
                self.seen.append(correlation_id)
                client.sendall(_framed(struct.pack(">i", correlation_id) + b"127.0.0.1" + struct.pack(">i", port)))


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


@pytest.fixture
def proxy(upstream: Upstream) -> Iterator[KafkaProxy]:
    with KafkaProxy(upstream.servers) as made:
        yield made


def connect(proxy: KafkaProxy) -> socket.socket:
    host, _, port = proxy.servers.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=1)


def send(client: socket.socket, api: Api, correlation_id: int, client_id: bytes = b"me") -> None:
    client.sendall(_framed(struct.pack(">hhih", api, 3, correlation_id, len(client_id)) + client_id + b"body"))


def answer(client: socket.socket) -> bytes | None:
    """None where the connection was closed. TimeoutError where nothing comes."""
    return next(_frames(client), None)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_addresses_are_replaced_where_clients_look_for_them(upstream: Upstream, proxy: KafkaProxy) -> None:
    ports = []
    with connect(proxy) as client:
        for number, api in enumerate((Api.METADATA, Api.FIND_COORDINATOR, Api.DESCRIBE_CLUSTER, Api.FETCH)):
            send(client, api, number)
            ports.append(struct.unpack(">i", (answer(client) or b"")[-4:])[0])
    ours, theirs = (int(servers.rpartition(":")[2]) for servers in (proxy.servers, upstream.servers))
    assert ports == [ours, ours, ours, theirs]


def test_a_request_that_is_swallowed_never_arrives_and_the_connection_is_mute(
    upstream: Upstream, proxy: KafkaProxy
) -> None:
    fault = proxy.swallow(Api.END_TXN, times=1, client="me")
    with connect(proxy) as client:
        send(client, Api.END_TXN, 1, b"you")
        assert answer(client)
        send(client, Api.END_TXN, 2)
        send(client, Api.FETCH, 3)
        with pytest.raises(TimeoutError):
            answer(client)
    assert ([request.correlation_id for request in fault.struck], upstream.seen) == ([2], [1])
    with connect(proxy) as client:
        send(client, Api.END_TXN, 4)
        assert answer(client), "it was to strike once"
    assert proxy.seen(Api.END_TXN) == 3


def test_a_lost_answer_is_of_a_request_that_was_done(upstream: Upstream, proxy: KafkaProxy) -> None:
    proxy.lose_answer(Api.END_TXN)
    with connect(proxy) as client:
        send(client, Api.END_TXN, 1)
        with pytest.raises(TimeoutError):
            answer(client)
    assert upstream.seen == [1]


@pytest.mark.parametrize("after", [False, True])
def test_a_connection_is_cut_before_or_after_the_request(upstream: Upstream, proxy: KafkaProxy, after: bool) -> None:
    fault: Fault = proxy.cut(Api.PRODUCE, after=after)
    with connect(proxy) as client:
        send(client, Api.PRODUCE, 1)
        assert answer(client) is None
    assert upstream.seen == ([1] if after else [])
    fault.lift()
    with connect(proxy) as client:
        send(client, Api.PRODUCE, 2)
        assert answer(client)


def test_a_delayed_request_arrives_though_its_sender_is_gone(upstream: Upstream, proxy: KafkaProxy) -> None:
    proxy.delay(Api.END_TXN, 0.3)
    with connect(proxy) as client:
        send(client, Api.END_TXN, 1)
    assert upstream.seen == []
    until(lambda: upstream.seen == [1])


def test_a_broker_that_is_down_refuses_and_comes_back_on_its_port(proxy: KafkaProxy) -> None:
    with connect(proxy) as client:
        send(client, Api.FETCH, 1)
        assert answer(client)
        proxy.down()
        assert answer(client) is None
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.up()
    with connect(proxy) as client:
        send(client, Api.FETCH, 2)
        assert answer(client)


def test_a_stalled_broker_takes_connections_and_answers_later(proxy: KafkaProxy) -> None:
    proxy.stall()
    with connect(proxy) as client:
        send(client, Api.FETCH, 1)
        with pytest.raises(TimeoutError):
            answer(client)
        proxy.resume()
        assert answer(client)
