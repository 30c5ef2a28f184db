"""How kafka-python finds a broker among several addresses of which some are dead."""

from __future__ import annotations

import errno
import selectors
import socket
import time
from pathlib import Path
from typing import Any

import kafka.errors as kerr
import pytest
from kafka.net.inet import KafkaNetSocket
from kafka.net.selector import NetworkSelector

from lstmstream.transport.clients.kafka_python_network import (
    _RECEIVE_BYTES,
    Network,
    Turns,
    _connect_to_any,
    _Selector,
    _Transport,
)
from tests.transport.servers import kafka, serving, silent


def bootstrap(turns: Turns, servers: list[str], timeout_s: float) -> bool:
    settings: dict[str, Any] = {"bootstrap_servers": servers, "reconnect_backoff_max_ms": 1000}
    network = Network(turns, timeout_s, settings)
    try:
        network._manager.bootstrap(timeout_s * 1000)
        return bool(network._manager.bootstrapped)
    finally:
        network.close()


@pytest.mark.parametrize("first", range(3))
def test_servers_that_do_not_answer_do_not_keep_it_from_one_that_does(first: int) -> None:
    """Whichever is asked first; and the next client begins with the one that answered."""
    turns = Turns()
    turns._turn = first
    with serving(silent) as one, serving(silent) as two, serving(kafka("127.0.0.1:1", complete=True)) as well:
        servers = sorted([one, two, well], key=lambda at: int(at.rpartition(":")[2]))
        assert bootstrap(turns, servers, 5.0)
        assert servers[turns._turn % 3] == well
        before = turns._turn
        assert bootstrap(turns, servers, 5.0)
        assert turns._turn == before, "no other was asked"


def test_an_address_of_a_host_that_does_not_answer_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(silent) as at:
        good = socket.getaddrinfo("127.0.0.1", int(at.rpartition(":")[2]), type=socket.SOCK_STREAM)[0]
        dead = (*good[:4], ("127.0.0.1", 1))
        tried: list[Any] = []

        async def connect(self: Any, net: Any, address: Any, options: Any = (), timeout_at: float = 0) -> Any:
            tried.append(address)
            if address is dead:
                raise kerr.KafkaTimeoutError("Connection timed out")
            return "connected"

        monkeypatch.setattr(KafkaNetSocket, "connect", connect)
        monkeypatch.setattr(KafkaNetSocket, "dns_lookup", lambda self, host, port: [dead, good])
        net = NetworkSelector()
        found: list[Any] = []

        async def run() -> None:
            found.append(await _connect_to_any(net, "two.example", 1, timeout_at=time.monotonic() + 60))

        net.run(run)
        net.close()
    assert found == ["connected"]
    assert tried == [dead, good]


@pytest.mark.parametrize("refused", [True, False])
def test_the_socket_of_a_failed_attempt_is_closed(refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, or without an answer in time."""
    made: list[socket.socket] = []
    make = KafkaNetSocket.socket

    def noted(self: KafkaNetSocket, *arguments: Any) -> socket.socket:
        made.append(make(self, *arguments))
        return made[-1]

    monkeypatch.setattr(KafkaNetSocket, "socket", noted)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        if not refused:
            monkeypatch.setattr(KafkaNetSocket, "connect_ex", lambda *_: errno.EINPROGRESS)
        net = NetworkSelector()
        try:
            with pytest.raises(kerr.KafkaConnectionError):
                net.run(_connect_to_any, net, "127.0.0.1", nobody.getsockname()[1], (), None, time.monotonic() + 0.2)
        finally:
            net.close()
    assert [one.fileno() for one in made] == [-1]


def test_failures_that_are_told_twice_count_once() -> None:
    turns = Turns()

    class Server:
        def __init__(self, node_id: str) -> None:
            self.node_id = node_id

    servers = [Server("bootstrap-0"), Server("bootstrap-1")]
    first = turns.current(servers)
    for _ in range(2):
        turns.failed(servers, first.node_id)
    assert turns.current(servers) is not first


def test_a_connection_takes_all_that_has_come_and_sees_its_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        net = NetworkSelector()
        transport = _Transport(net, ours)
        assert transport._sock_recv() == (b"", None), "nothing yet"
        for size in (3, _RECEIVE_BYTES, _RECEIVE_BYTES + 1):
            sent = bytes(range(256)) * (size // 256 + 1)
            assert theirs.send(sent[:size]) == size
            assert transport._sock_recv() == (sent[:size], None)
        theirs.close()
        rest, failure = transport._sock_recv()
        assert rest == b""
        assert "socket disconnected" in str(failure)
        ours.close()
        rest, failure = transport._sock_recv()
        assert rest == b""
        assert isinstance(failure, kerr.KafkaConnectionError)
        net.close()


def sending(transport: _Transport, net: NetworkSelector, sent: bytes) -> None:
    """One step of the loop after a write."""
    transport.write(sent)
    net.poll(timeout_ms=0)


def test_a_connection_sends_at_once_and_waits_only_where_the_socket_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Any] = []
    wait_write = NetworkSelector.wait_write
    monkeypatch.setattr(NetworkSelector, "wait_write", lambda net, at: waits.append(at) or wait_write(net, at))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        net = NetworkSelector(selector=_Selector)
        transport = _Transport(net, ours)
        sending(transport, net, b"one")
        sending(transport, net, b"two")
        assert theirs.recv(100) == b"onetwo"
        assert not waits
        large = bytes(range(256)) * (16 << 10)
        sending(transport, net, large)
        assert waits == [ours]
        come = b""
        while len(come) < len(large):
            come += theirs.recv(1 << 20)
            net.poll(timeout_ms=0)
        assert come == large
        assert not transport._writing, "the next request starts a task of its own"
        sending(transport, net, b"three")
        assert theirs.recv(100) == b"three"
        net.close()


def test_a_connection_that_was_lost_ends_when_it_is_written_to() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        theirs.close()
        net = NetworkSelector(selector=_Selector)
        transport = _Transport(net, ours)
        lost: list[Any] = []

        class Protocol:
            def connection_lost(self, error: BaseException) -> None:
                lost.append(error)

        transport.set_protocol(Protocol())
        sending(transport, net, b"one")
        assert transport.is_closing()
        assert isinstance(lost[0], kerr.KafkaConnectionError)
        assert not transport._writing
        net.close()


def test_a_socket_that_is_not_registered_is_told_without_its_text() -> None:
    class Socket(socket.socket):
        def __repr__(self) -> str:
            raise AssertionError("its text was made")

    with Socket() as at, _Selector() as selector:
        with pytest.raises(KeyError):
            selector.get_key(at)
        key = selector.register(at, selectors.EVENT_READ, "data")
        assert selector.get_key(at) == key
        selector.unregister(at)
        with pytest.raises(KeyError):
            selector.get_key(at)


def test_connections_without_tls_are_ours() -> None:
    with serving(silent) as at:
        network = Network(Turns(), 5.0, {"bootstrap_servers": [at], "reconnect_backoff_max_ms": 1000})
        manager, found = network._manager, []

        async def run() -> None:
            found.append(await manager._build_transport(manager.cluster.bootstrap_brokers()[0]))

        try:
            manager._net.run(run)
            assert type(found[0]) is _Transport
            assert type(manager._net._selector) is _Selector
            found[0].close()
        finally:
            network.close()


def test_what_is_wrong_with_a_file_of_tls_is_an_error_of_the_library(tmp_path: Path) -> None:
    """Its heartbeats end for good with any other. The socket is closed."""
    (tmp_path / "tls.crt").write_text("half of a cert")
    settings: dict[str, Any] = {"security_protocol": "SSL", "ssl_certfile": str(tmp_path / "tls.crt")}
    with serving(silent) as at:
        network = Network(Turns(), 1.0, {"bootstrap_servers": [at], **settings})
        try:
            (node,) = network._manager.cluster.bootstrap_brokers()
            with pytest.raises(kerr.KafkaConnectionError):
                network._manager._net.run(network._manager._build_transport, node)
        finally:
            network.close()


def test_secrets_are_asked_for_at_each_login() -> None:
    """Of one connection too, where the broker wants another login (KIP-368)."""
    passwords = iter(["one", "two", "three"])
    network = Network(Turns(), 1.0, {}, secrets=lambda: {"sasl_plain_password": next(passwords)})
    used: list[str] = []

    class Connection:
        closed = False

        def __init__(self) -> None:
            self.config: dict[str, Any] = {}

        async def _sasl_authenticate(self) -> None:
            used.append(self.config["sasl_plain_password"])
            if len(used) == 2:
                raise OSError("no token")

        def connection_lost(self, error: Exception) -> None: ...

    connection = Connection()

    async def fails(*_: Any, **__: Any) -> None:
        raise kerr.KafkaConnectionError("away")

    network._manager._build_transport = fails
    try:
        (node,) = network._manager.cluster.bootstrap_brokers()
        network._manager._net.run(network._manager._connect, node, connection)
        network._manager._net.run(connection._sasl_authenticate)
        with pytest.raises(kerr.KafkaConnectionError, match="no token"):
            network._manager._net.run(connection._sasl_authenticate)
    finally:
        network.close()
    assert used == ["two", "three"]
