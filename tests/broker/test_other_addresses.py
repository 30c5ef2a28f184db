"""Brokers that come back under other addresses, behind an address that stays."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka.errors import KafkaError

from lstmstream.dev.broker import DevBroker
from tests.broker.harness import RunningDaemon, committed_offsets, create_topics, produce, write_config
from tests.models import random_model

NOW_MS = 1_700_000_000_000


class Forwarder:
    """A fixed port that leads to a broker, which advertises another one: what it answers is not changed."""

    def __init__(self) -> None:
        self.target = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    broker = socket.create_connection(("127.0.0.1", self.target), timeout=5)
                except OSError:
                    client.close()
                    continue
                broker.settimeout(None)
                for source, to in ((client, broker), (broker, client)):
                    threading.Thread(target=self._pump, args=(source, to), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                to.sendall(data)
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def forwarder() -> Iterator[Forwarder]:
    found = Forwarder()
    yield found
    found.close()


def port_of(servers: str) -> int:
    return int(servers.rpartition(":")[2])


def answered(servers: str, group: str, offset: int) -> bool:
    with contextlib.suppress(KafkaError):
        return committed_offsets(servers, group).get(0) == offset
    return False


@pytest.mark.parametrize("unseen", [False, True])
def test_a_daemon_finds_a_broker_that_has_moved(
    client: str, forwarder: Forwarder, tmp_path: Path, unseen: bool
) -> None:
    """It answers again within a minute. `unseen`: it is stopped while the broker moves, so that no call to it fails."""
    own = DevBroker(tmp_path / "broker")
    servers = own.up(port=0)
    forwarder.target = port_of(servers)
    name = "moved"
    try:
        create_topics(servers, [f"{name}.in"], partitions=1)
        produce(servers, f"{name}.in", [(b"k", b'{"amount": 1}', NOW_MS, 0)] * 5)
        config = write_config(
            tmp_path / "c.yaml", name=name, model=random_model(tmp_path, hidden=4), servers=forwarder.address
        )
        with RunningDaemon(config, tmp_path / "log") as daemon:
            daemon.wait(lambda: answered(servers, name, 5), "five answered")
            if unseen:
                daemon.freeze()
            own.down()
            if not unseen:
                daemon.wait(lambda: not daemon.ready(), "aware of the outage")
            moved = own.up(port=port_of(servers) + 1)
            forwarder.target = port_of(moved)
            if unseen:
                daemon.thaw()
            produce(moved, f"{name}.in", [(b"k", b'{"amount": 1}', NOW_MS, 0)] * 5)
            daemon.wait(lambda: answered(moved, name, 10), "five more answered", timeout_s=75)
            assert daemon.sigterm() == 0, daemon.last_words()
    finally:
        own.down(wipe=True)
