"""As much of Kafka's protocol as a diagnosis speaks: a question and its answer, what a broker advertises, and SASL."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import socket
import ssl
import struct
from typing import NamedTuple

from lstmstream.logs import escape_untrusted
from lstmstream.transport.oauth import NoToken, TokenRefused, TokenSource
from lstmstream.transport.security import SecuritySettings

_MOST_BYTES = 10 << 20  # of an answer

METADATA, _SASL_HANDSHAKE, API_VERSIONS, _SASL_AUTHENTICATE = 3, 17, 18, 36
_UNSUPPORTED_MECHANISM, _NO_SASL_HERE, _WRONG_CREDENTIALS = 33, 34, 58


class Address(NamedTuple):
    """Where a broker is said to be."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Cause(Exception):
    """Why a server cannot be used."""


class Refused(Cause):
    """It does not accept who we are."""


class Silent(Cause):
    """It does not answer at all."""

    def __init__(self) -> None:
        super().__init__("it accepts the connection but does not answer: is it a Kafka broker, and is it healthy?")


class Closed(Cause):
    """It does not answer but ends the connection."""

    def __init__(self) -> None:
        super().__init__("it closes the connection at the first Kafka request")


def request(connection: socket.socket, api: int, version: int, body: bytes, *, bound: int = _MOST_BYTES) -> bytes:
    """The answer's body. Raises Cause."""
    client = b"lstmstream-diagnosis"
    head = struct.pack(">hhih", api, version, api, len(client)) + client
    try:
        connection.sendall(struct.pack(">i", len(head) + len(body)) + head + body)
        size = _exactly(connection, 4)
        if size is None:
            raise Closed
        length = int.from_bytes(size, signed=True)
        if not 4 <= length <= bound:
            raise Cause(_what_else(size))
        answer = _exactly(connection, length)
    except TimeoutError as error:
        raise Silent from error
    except ssl.SSLError:  # `_ask` knows more of what it means
        raise
    except OSError as error:
        raise Closed from error
    if answer is None or int.from_bytes(answer[:4]) != api:
        raise Cause("it does not respond like Kafka")
    return answer[4:]


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(min(1 << 16, count - len(parts)))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _what_else(start: bytes) -> str:
    """What a server is whose answer begins with these four bytes."""
    if start == b"HTTP":
        return "it is an HTTP server, not a Kafka broker"
    if start == b"SSH-":
        return "it is an SSH server, not a Kafka broker"
    if start[:2] in {b"\x15\x03", b"\x16\x03"}:
        return "it speaks TLS"
    return "it does not respond like a Kafka broker"


def advertised_addresses(metadata: bytes) -> list[Address]:
    """Host and port of each broker in a Metadata answer, version 1."""
    (count,) = struct.unpack_from(">i", metadata)
    at, found = 4, []
    for _ in range(count):
        at += 4  # its id
        host, at = _string(metadata, at)
        (port,) = struct.unpack_from(">i", metadata, at)
        _, at = _string(metadata, at + 4)  # its rack
        found.append(Address(host or "", port))
    if not found:
        raise Cause("it knows of no broker: the cluster is starting, or has no leader")
    return found


def _string(content: bytes, at: int) -> tuple[str | None, int]:
    (length,) = struct.unpack_from(">h", content, at)
    if length < 0:
        return None, at + 2
    return content[at + 2 : at + 2 + length].decode(errors="replace"), at + 2 + length


def sasl_handshake(connection: socket.socket, mechanism: str) -> tuple[int, list[str]]:
    """The error code, and the mechanisms that the broker offers. Raises Cause."""
    name = mechanism.encode()
    answer = request(connection, _SASL_HANDSHAKE, 1, struct.pack(">h", len(name)) + name)
    code, count = struct.unpack_from(">hi", answer)
    enabled, at = [], 6
    for _ in range(count):
        text, at = _string(answer, at)
        enabled.append(text or "")
    return code, enabled


def authenticate(connection: socket.socket, security: SecuritySettings) -> None:
    """Raises Refused where the mechanism is not enabled or the password is not accepted."""
    mechanism = security.mechanism or ""
    code, enabled = sasl_handshake(connection, mechanism)
    if code == _NO_SASL_HERE:
        protocol = "SSL" if security.protocol == "SASL_SSL" else "PLAINTEXT"
        raise Refused(
            f"this listener has no login by SASL: set kafka.security.protocol to {protocol} and remove mechanism,"
            " username and password, or use the port of a listener with SASL"
        )
    if code == _UNSUPPORTED_MECHANISM:
        raise Refused(
            f"the broker does not offer SASL mechanism {mechanism}, but {', '.join(enabled) or 'none'}: see"
            " kafka.security.mechanism"
        )
    user, password = security.username or "", security.password or ""
    if mechanism == "PLAIN":
        _step(connection, f"\0{user}\0{password}".encode())
    elif security.tokens is not None:
        _bearer(connection, security.tokens)
    elif mechanism.startswith("SCRAM-SHA-"):
        _scram(connection, mechanism.replace("SCRAM-SHA-", "sha"), user, password)


def _step(connection: socket.socket, message: bytes) -> bytes:
    """One message of the client and the answer to it. Raises Cause."""
    answer = request(connection, _SASL_AUTHENTICATE, 0, struct.pack(">i", len(message)) + message)
    (code,) = struct.unpack_from(">h", answer)
    said, at = _string(answer, 2)
    if code:
        what = "user name or password is wrong" if code == _WRONG_CREDENTIALS else f"error {code}"
        raise Refused(
            f"the broker refuses the authentication: {what} ({said or 'no reason given'}); see kafka.security"
        )
    (length,) = struct.unpack_from(">i", answer, at)
    return answer[at + 4 : at + 4 + max(0, length)]


def _bearer(connection: socket.socket, tokens: TokenSource) -> None:
    """RFC 7628. A broker that does not accept the token says why before it ends the login."""
    try:
        token = tokens.token()
    except TokenRefused as error:
        raise Refused(f"there is no token: {error}") from error
    except NoToken as error:
        raise Cause(f"there is no token: {error}") from error
    if said := _step(connection, f"n,,\x01auth=Bearer {token.text}\x01\x01".encode()):
        raise Refused(f"the broker refuses the token: {escape_untrusted(said.decode(errors='replace'), 200)}")


def _scram(connection: socket.socket, algorithm: str, user: str, password: str) -> None:
    """RFC 5802, without checking the server's own proof: it is not believed in anything but its addresses."""
    nonce = secrets.token_hex(16)
    name = user.replace("=", "=3D").replace(",", "=2C")
    first = f"n={name},r={nonce}"
    server_first = _step(connection, f"n,,{first}".encode()).decode()
    given = dict(part.split("=", 1) for part in server_first.split(",") if "=" in part)
    final = f"c=biws,r={given['r']}"
    iterations = min(int(given["i"]), 100_000)
    salted = hashlib.pbkdf2_hmac(algorithm, password.encode(), base64.b64decode(given["s"]), iterations)
    key = hmac.digest(salted, b"Client Key", algorithm)
    signature = hmac.digest(hashlib.new(algorithm, key).digest(), f"{first},{server_first},{final}".encode(), algorithm)
    proof = base64.b64encode(bytes(a ^ b for a, b in zip(key, signature, strict=True))).decode()
    _step(connection, f"{final},p={proof}".encode())
