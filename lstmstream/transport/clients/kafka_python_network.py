"""How kafka-python's clients find a broker and read from it.

The library picks one of the `bootstrap_servers` by chance and gives it all the time there is, so that one that is dead
keeps a client from its neighbours, which are well; the same among the addresses of one host name. It takes what has
come in pieces of 4 kB; here they are larger. It waits for the selector before each request; here it sends at once. It
keeps a password as it was when the client was made; here each login has that of now. And it leaves the socket of a
connection or a TLS handshake that failed open; here it is closed.
"""

from __future__ import annotations

import random
import selectors
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import kafka.errors as kerr
from kafka.net import manager as net_manager
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.sasl.oauth import AbstractTokenProvider
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from lstmstream.transport.oauth import TokenSource

_RECEIVE_BYTES = 64 << 10  # at a time; more would have the allocator ask the system for memory each time
_LEAST_SHARE_S = 1.5  # of the time there is, for one address
Secrets = Callable[[], Mapping[str, Any]]


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """Tokens of OAUTHBEARER, asked for at each login."""

    def __init__(self, tokens: TokenSource) -> None:
        self._tokens = tokens

    def token(self) -> str:
        """See AbstractTokenProvider. Raises NoToken."""
        return self._tokens.token().text


class Turns:
    """Which of the bootstrap servers is asked: the one that answered last, else each in turn. Shared by all clients."""

    def __init__(self) -> None:
        self._turn = random.randrange(1 << 16)  # noqa: S311 - processes spread over the servers

    def current(self, servers: Sequence[Any]) -> Any:
        """The server to ask now."""
        return servers[self._turn % len(servers)]

    def failed(self, servers: Sequence[Any], node_id: str) -> None:
        """This server did not answer: the next one is asked, however often its failure is told."""
        if self.current(servers).node_id == node_id:
            self._turn += 1


class _Manager(KafkaConnectionManager):  # type: ignore[misc]
    """Connections that are made with a fair share of the time for each server."""

    def __init__(self, net: Any, turns: Turns, bootstrap_s: float, settings: dict[str, Any], secrets: Secrets) -> None:
        super().__init__(net, **settings)
        self._turns = turns
        self._secrets = secrets
        # In one order for all clients: the library shuffles them.
        servers = self._servers = sorted(self.cluster.bootstrap_brokers(), key=lambda at: (at.host, at.port))
        self._share_s = max(_LEAST_SHARE_S, bootstrap_s / len(servers))
        self.cluster.bootstrap_brokers = lambda: [turns.current(servers)]  # the library picks one of them by chance

    def get_connection(self, node_id: Any, timeout_ms: float | None = None, **options: Any) -> Any:
        """The library's."""
        if timeout_ms is not None and self.cluster.is_bootstrap(node_id):
            timeout_ms = min(timeout_ms, self._share_s * 1000)
        return super().get_connection(node_id, timeout_ms=timeout_ms, **options)

    def update_backoff(self, node_id: Any) -> Any:
        """The library's, called when a server could not be used."""
        if self.cluster.is_bootstrap(node_id):
            self._turns.failed(self._servers, node_id)
        return super().update_backoff(node_id)

    async def _connect(self, node: Any, conn: Any, *args: Any, **options: Any) -> None:
        """The library's; with the secrets of now, also where the broker asks for them again later (KIP-368)."""
        self.config.update(self._secrets())  # the library reads the files of TLS for each connection
        authenticate = conn._sasl_authenticate

        async def with_secrets_of_now(*args: Any, **options: Any) -> None:
            conn.config.update(self._secrets())
            with _as_kafka_error():
                await authenticate(*args, **options)

        conn._sasl_authenticate = with_secrets_of_now
        await super()._connect(node, conn, *args, **options)

    async def _build_transport(self, *args: Any, **options: Any) -> Any:
        """The library's."""
        with _as_kafka_error():  # a file of TLS that is being replaced
            return await super()._build_transport(*args, **options)


@contextmanager
def _as_kafka_error() -> Iterator[None]:
    """What keeps a connection from being made as an error of the library's: any other ends its heartbeats for good."""
    try:
        yield
    except kerr.KafkaError:
        raise
    except (OSError, ValueError, LookupError) as error:
        raise kerr.KafkaConnectionError(str(error)) from error


class _TlsTransport(KafkaSSLTransport):  # type: ignore[misc]
    """A connection with TLS, whose socket is closed where the handshake fails."""

    def __init__(self, net: Any, sock: Any, host: str | None = None, **settings: Any) -> None:
        try:
            super().__init__(net, sock, host=host, **settings)
        except BaseException:
            sock.close()  # a certificate or key that cannot be read
            raise

    async def handshake(self) -> None:
        """The library's."""
        try:
            await super().handshake()
        except BaseException as error:
            self.abort(error)
            raise


class _Transport(KafkaTCPTransport):  # type: ignore[misc]
    """A connection without TLS, whose pieces are never larger than 16 kB.

    Each piece costs a system call, and then a wait for Python's lock, which the thread that computes may keep for 5 ms.
    """

    async def _write_to_sock(self) -> None:
        """The library's, which first waits until the selector says that the socket takes something: it mostly does."""
        _, failure = self._sock_send()
        if failure is not None:
            self._writing = False
            self.abort(error=failure)
            return
        self.last_write = time.monotonic()
        await super()._write_to_sock()  # what the socket did not take

    def _sock_recv(self) -> tuple[bytes, BaseException | None]:
        """What has come, and why there will be no more."""
        pieces: list[bytes] = []
        failure: BaseException | None = None
        while failure is None:
            try:
                piece = self._sock.recv(_RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except Exception as error:
                failure = kerr.KafkaConnectionError(error)
                break
            if not piece:
                failure = kerr.KafkaConnectionError("socket disconnected")
            pieces.append(piece)
            if len(piece) < _RECEIVE_BYTES:  # what comes now, or the end, wakes the thread again
                break
        return b"".join(pieces), failure


class _Selector(selectors.DefaultSelector):
    """The usual one. The library asks it for each wait whether a socket is registered, and catches a KeyError if not.

    The usual KeyError has the text of the socket in it, twice, for which the system is asked for both its addresses.
    """

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """Raises KeyError."""
        key: selectors.SelectorKey | None = self._fd_to_key.get(fileobj.fileno())  # type: ignore[attr-defined]
        if key is None:
            raise KeyError("not registered")
        return key


class Network(KafkaNetClient):  # type: ignore[misc]
    """The connections of one client object."""

    def __init__(self, turns: Turns, bootstrap_s: float, settings: dict[str, Any], *, secrets: Secrets = dict) -> None:
        """`bootstrap_s`: how long the client looks for a broker; `settings` are the library's.

        `secrets`: settings that may be others for each connection.
        """
        net_manager.create_connection = _connect_to_any
        net_manager.KafkaTCPTransport = _Transport
        net_manager.KafkaSSLTransport = _TlsTransport
        net = NetworkSelector(**{**settings, "selector": _Selector})
        super().__init__(net, _Manager(net, turns, bootstrap_s, settings, secrets))


async def _connect_to_any(
    net: Any,
    host: str,
    port: int,
    socket_options: Any = (),
    proxy_url: str | None = None,
    timeout_at: float | None = None,
) -> Any:
    """In place of the library's, which gives up at the first address of a host that does not answer."""
    sockets = KafkaNetSocket(proxy_url)
    failure = kerr.KafkaConnectionError("DNS Resolution failure")
    addresses = sockets.dns_lookup(host, port)
    for number, address in enumerate(addresses):
        share_at = timeout_at
        if timeout_at is not None:
            now_s = time.monotonic()
            share_at = now_s + (timeout_at - now_s) / (len(addresses) - number)
        try:
            return await _connect(net, sockets, address, socket_options, share_at)
        except kerr.KafkaTimeoutError:
            failure = kerr.KafkaConnectionError("Connection timed out")
        except kerr.KafkaConnectionError as error:
            failure = error
        except OSError as error:
            failure = kerr.KafkaConnectionError(f"unable to connect: {error}")
    raise failure


async def _connect(net: Any, sockets: Any, address: Any, socket_options: Any, timeout_at: float | None) -> Any:
    """The library's, which leaves the socket of a failed attempt open."""
    opened: list[Any] = []
    make = sockets.socket

    def noted(*arguments: Any) -> Any:
        opened.append(make(*arguments))
        return opened[-1]

    sockets.socket = noted
    try:
        return await sockets.connect(net, address, socket_options, timeout_at=timeout_at)
    except BaseException:
        for one in opened:
            one.close()
        raise
    finally:
        sockets.socket = make
