"""Both clients speak Kafka's protocol only behind TLS 1.2 or newer, with a certificate of a known authority."""

from __future__ import annotations

import gc
import queue
import socket
import ssl
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from kafka.errors import KafkaError

from lstmstream.transport.clients.choose import open_client
from lstmstream.transport.security import SecuritySettings
from tests.transport.servers import Certificates, serving

CLIENTS = ("kafka-python", "confluent")
BAD = ("another authority", "another host", "expired", "self-signed", "TLS 1.1")
PROPERTIES = {"reconnect.backoff.ms": 10}
LONGEST_S = 30.0
Offered = tuple[type[Exception], str] | bytes  # why a handshake failed, or what came behind it


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def old_tls(certificates: Certificates) -> ssl.SSLContext:
    """A server that offers nothing newer than TLS 1.1."""
    context = certificates.server(certificates.certificate("old"))
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def server_of(kind: str, certificates: Certificates) -> ssl.SSLContext:
    """The server's side of a connection that must not be."""
    if kind == "TLS 1.1":
        return old_tls(certificates)
    makes = {
        "good": lambda: certificates.certificate("good"),
        "another authority": lambda: certificates.certificate("stranger", by="other"),
        "another host": lambda: certificates.certificate("elsewhere", names="DNS:elsewhere.example.com"),
        "expired": lambda: certificates.certificate("expired", days=-1),
        "self-signed": lambda: certificates.other_root,
    }
    return certificates.server(makes[kind]())


def first_try(client: str, context: ssl.SSLContext, ca: Path) -> Offered:
    """What a server with that context gets of a client's first connection; once the client has given up."""
    tries: queue.Queue[Offered] = queue.Queue()

    def serve(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as encrypted:
                tries.put(encrypted.recv(1000))
        except OSError as error:
            tries.put((type(error), str(error)))

    with serving(serve) as servers:
        security = SecuritySettings(protocol="SSL", ca=str(ca))
        library = open_client(client, servers=[servers], group="g", properties=PROPERTIES, security=security)
        with pytest.raises((KafkaError, KafkaException)):
            library.admin()
        return tries.get(timeout=LONGEST_S)


@pytest.fixture(scope="module")
def offered(certificates: Certificates) -> dict[tuple[str, str], Offered]:
    """The same of each client and server, all at once: a client takes seconds to give up."""
    contexts = {kind: server_of(kind, certificates) for kind in (*BAD, "good")}
    with ThreadPoolExecutor(2 * len(contexts)) as pool:
        tries = {
            (client, kind): pool.submit(first_try, client, context, certificates.root)
            for client in CLIENTS
            for kind, context in contexts.items()
        }
        found = {which: one.result() for which, one in tries.items()}
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()  # kafka-python leaves the socket of a failed handshake to the garbage collector
    return found


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("kind", BAD)
def test_a_connection_that_is_not_secure_carries_nothing(
    offered: dict[tuple[str, str], Offered], client: str, kind: str
) -> None:
    got = offered[client, kind]
    assert got == b"" or isinstance(got, tuple), got


@pytest.mark.parametrize("client", CLIENTS)
def test_a_secure_one_does(offered: dict[tuple[str, str], Offered], client: str) -> None:
    """So that the test above looks at TLS and at nothing else."""
    got = offered[client, "good"]
    assert isinstance(got, bytes), got
    assert b"lstmstream-g" in got


def test_the_old_server_serves_who_still_speaks_its_protocol(certificates: Certificates) -> None:
    """So that its refusal is the client's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificates.root)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with serving(lambda connection: connection.sendall(b"hello"), tls=old_tls(certificates)) as servers:
        host, _, port = servers.rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=host) as encrypted,
        ):
            assert encrypted.recv(10) == b"hello"
