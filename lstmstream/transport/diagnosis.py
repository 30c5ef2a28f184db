"""Why a broker cannot be used: what the network, TLS or the broker itself says, whichever client library is in use.

The libraries tell most of it to their own log only, if at all. So after a failure each bootstrap server is asked once
more, step by step, by the standard library: name, connection, TLS, the first questions of Kafka's protocol, the
password; and then whether the addresses that the brokers advertise can be reached from here. Nothing is changed, and
no secret is in what is said.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import hmac
import math
import secrets
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lstmstream.errors import TryAgain
from lstmstream.transport.calls import CallBound
from lstmstream.transport.security import SecuritySettings

STEP_S = 2.0  # for one connection, or one answer
LIMIT_S = 5.0  # for everything
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 60.0  # between two diagnoses
_MOST_ASKED = 8  # servers, and advertised addresses
_MOST_BYTES = 10 << 20  # of an answer

_METADATA, _SASL_HANDSHAKE, _API_VERSIONS, _SASL_AUTHENTICATE = 3, 17, 18, 36
_UNSUPPORTED_MECHANISM, _WRONG_CREDENTIALS = 33, 58


class Address(NamedTuple):
    """Where a broker is said to be."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _Cause(Exception):
    """Why a server cannot be used."""


class _Silent(_Cause):
    """It does not answer at all."""

    def __init__(self) -> None:
        super().__init__("it accepts the connection but does not answer: is it a Kafka broker, and is it healthy?")


class _Closed(_Cause):
    """It does not answer but ends the connection."""

    def __init__(self) -> None:
        super().__init__("it closes the connection at the first Kafka request")


def diagnose(servers: Sequence[str], security: SecuritySettings, limit_s: float = LIMIT_S) -> str:
    """Why the brokers cannot be used; empty where nothing is found, or nothing in time. Never raises."""
    bootstrap = [_address(server) for server in servers[:_MOST_ASKED]]
    deadline_s = time.monotonic() + limit_s
    asked = _all_at_once([lambda at=at: _ask(at, security) for at in bootstrap], deadline_s)  # type: ignore[misc]
    causes = [f"{at}: {found}" for at, found in zip(bootstrap, asked, strict=True) if isinstance(found, str)]
    advertised = {address for found in asked if isinstance(found, list) for address in found}
    if not advertised:
        return "; ".join(causes)
    others = sorted(advertised - set(bootstrap))[:_MOST_ASKED]
    reached = _all_at_once([lambda at=at: _reach(at, security) for at in others], deadline_s)  # type: ignore[misc]
    wrong = [f"{at} ({found})" for at, found in zip(others, reached, strict=True) if isinstance(found, str)]
    if not wrong:
        return ""
    through = ", ".join(str(at) for at, found in zip(bootstrap, asked, strict=True) if isinstance(found, list))
    return (
        f"{through} can be reached, but the brokers advertise addresses that cannot be used from here:"
        f" {', '.join(wrong)}; set advertised.listeners of the brokers to addresses that this machine can reach"
    )


def _address(server: str) -> Address:
    host, _, port = server.rpartition("://")[2].rpartition(":")
    return Address(host.strip("[]"), int(port) if port.isdecimal() else 9092)


def _all_at_once(
    questions: Sequence[Callable[[], list[Address]]], deadline_s: float
) -> list[list[Address] | str | None]:
    """The answer or the cause of each, None where neither came in time: a name server may take half a minute."""
    found: list[list[Address] | str | None] = [None] * len(questions)

    def ask(number: int) -> None:
        try:
            found[number] = questions[number]()
        except _Cause as cause:
            found[number] = str(cause)
        except Exception as error:  # what it is about is lost anyway, and this is no more than a help
            found[number] = str(error) or type(error).__name__

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    return list(found)


def _ask(at: Address, security: SecuritySettings) -> list[Address]:
    """The addresses that the brokers behind it advertise. Raises _Cause."""
    with contextlib.closing(_connected(at, security)) as connection:
        try:
            _check_protocol(connection, at, security)
            if security.protocol.startswith("SASL"):
                _authenticate(connection, security)
            return _advertised(_request(connection, _METADATA, 1, struct.pack(">i", 0)))
        except (ssl.SSLError, _Closed) as error:  # in TLS 1.3 a client's certificate is judged after the handshake
            if not security.protocol.endswith("SSL"):
                raise
            raise _Cause(_after_handshake_cause(error, security)) from error


def _reach(at: Address, security: SecuritySettings) -> list[Address]:
    """Nothing, where an advertised address can be reached. Raises _Cause."""
    _connected(at, security).close()
    return []


class Diagnosis:
    """`diagnose` after failures, less and less often, so that a broker that is away is not asked all the time."""

    def __init__(self, find: Callable[[], str], bound: CallBound) -> None:
        """`bound`: of all waits of the process."""
        self._find = find
        self._bound = bound
        self._found = ""
        self._pause_s = _FIRST_PAUSE_S
        self._next_s = -math.inf

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """A TryAgain that comes out of it says what the network says, if that is known."""
        try:
            yield
        except TryAgain as error:
            found = self._after_failure() if type(error) is TryAgain else ""
            if not found:
                raise
            raise TryAgain(found) from error
        self._found, self._pause_s, self._next_s = "", _FIRST_PAUSE_S, -math.inf

    def _after_failure(self) -> str:
        if time.monotonic() >= self._next_s and not self._bound.stopping:
            found: list[str] = []
            finished = threading.Event()

            def find() -> None:
                found.append(self._find())
                finished.set()

            threading.Thread(target=find, name="lstmstream-diagnosis", daemon=True).start()
            self._bound.wait(finished, LIMIT_S + 1)
            self._found = found[0] if found else ""
            self._next_s = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return self._found


# -- the network and TLS


def _connected(at: Address, security: SecuritySettings) -> socket.socket:
    plain = _tcp(at)
    if not security.protocol.endswith("SSL"):
        return plain
    try:
        return _with_tls(plain, at, security)
    except BaseException:
        plain.close()
        raise


def _tcp(at: Address) -> socket.socket:
    try:
        found = socket.getaddrinfo(at.host, at.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        code = error.args[0] if isinstance(error, socket.gaierror) else socket.EAI_NONAME
        if code == socket.EAI_AGAIN:
            raise _Cause("the name server does not answer, so the host's address is not known") from error
        raise _Cause("there is no such host; check its name") from error
    cause = "it has no address"
    for family, kind, protocol, _, address in found[:4]:
        tcp = socket.socket(family, kind, protocol)
        tcp.settimeout(STEP_S)
        try:
            tcp.connect(address)
        except OSError as error:
            tcp.close()
            cause = _network_cause(error)
        else:
            return tcp
    raise _Cause(cause)


def _network_cause(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer to the connection in time; a firewall, or a host that is down?"
    if error.errno == errno.ECONNREFUSED:
        return "connection refused: nothing listens on this port"
    return f"cannot connect: {error.strerror or error}"


def _with_tls(plain: socket.socket, at: Address, security: SecuritySettings) -> socket.socket:
    context = _tls_context(security)
    try:
        return context.wrap_socket(plain, server_hostname=at.host)
    except ssl.SSLCertVerificationError as error:
        raise _Cause(_certificate_cause(error, at, security)) from error
    except TimeoutError as error:
        raise _Cause(_does_not_speak_tls("it does not answer a TLS handshake")) from error
    except ssl.SSLError as error:
        raise _Cause(_tls_cause(error, security)) from error
    except OSError as error:
        raise _Cause(_does_not_speak_tls("it closes the connection during the TLS handshake")) from error


def _tls_context(security: SecuritySettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=security.ca)
    except (OSError, ssl.SSLError) as error:
        raise _Cause(f"kafka.security.ca cannot be used: {error}") from error
    if security.cert is not None:
        try:
            # A password that is missing must not be asked for on the terminal.
            context.load_cert_chain(security.cert, security.key, password=security.key_password or "")
        except (OSError, ssl.SSLError) as error:
            raise _Cause(f"kafka.security.cert and key cannot be used: {error}") from error
    return context


def _certificate_cause(error: ssl.SSLCertVerificationError, at: Address, security: SecuritySettings) -> str:
    said = error.verify_message or str(error)
    authority = "the system's authorities" if security.ca is None else "kafka.security.ca"
    reasons = {
        9: "it is not valid yet; is a clock wrong?",
        10: "it has expired",
        18: f"it is self-signed and is not among {authority}",
        19: f"an authority that signed it is not among {authority}",
        20: f"the authority that signed it is not among {authority}, or the broker leaves an intermediate one out",
        21: f"the authority that signed it is not among {authority}, or the broker leaves an intermediate one out",
        2: f"an intermediate authority is known, but the root above it is not among {authority}",
        62: f"it is for a host other than {at.host!r} ({said})",
        64: f"it is for an address other than {at.host!r} ({said})",
    }
    reason = reasons.get(error.verify_code)
    return f"the broker's certificate is not accepted: {reason or said}" + (
        "" if reason is None or said in reason else f" ({said})"
    )


def _tls_cause(error: ssl.SSLError, security: SecuritySettings) -> str:
    said = _words(error)
    if "wrong version number" in said or "http request" in said or "record layer failure" in said:
        return _does_not_speak_tls("it does not speak TLS")
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return _does_not_speak_tls("it closes the connection during the TLS handshake")
    return _alert_cause(said, security)


def _after_handshake_cause(error: Exception, security: SecuritySettings) -> str:
    said = _words(error)
    if "alert" in said or "certificate required" in said:
        return _alert_cause(said, security)
    certificate = (
        "if it demands a client certificate, set kafka.security.cert"
        if security.cert is None
        else "it may not accept the client certificate, kafka.security.cert"
    )
    return f"it closes the connection after the TLS handshake; {certificate}"


def _words(error: Exception) -> str:
    said = error.reason if isinstance(error, ssl.SSLError) else None
    return (said or str(error)).replace("_", " ").lower()


def _alert_cause(said: str, security: SecuritySettings) -> str:
    """What a broker says when it ends a handshake."""
    if "certificate required" in said or ("handshake failure" in said and security.cert is None):
        return f"the broker demands a client certificate: set kafka.security.cert and key ({said})"
    if "alert" in said and ("certificate" in said or "unknown ca" in said) and security.cert is not None:
        return f"the broker does not accept the client certificate, kafka.security.cert ({said})"
    return f"the TLS handshake fails: {said}"


def _does_not_speak_tls(what: str) -> str:
    return f"{what}; is kafka.security.protocol right, or is the port that of a listener without TLS?"


# -- the protocol


def _check_protocol(connection: socket.socket, at: Address, security: SecuritySettings) -> None:
    """Whether it answers as Kafka does. Raises _Cause."""
    try:
        answer = _request(connection, _API_VERSIONS, 0, b"", bound=1 << 16)
    except _Silent:
        raise
    except _Cause as cause:
        if not security.protocol.endswith("SSL") and _speaks_tls(at):
            protocol = "SASL_SSL" if security.protocol.startswith("SASL") else "SSL"
            raise _Cause(f"it speaks TLS: set kafka.security.protocol to {protocol}") from cause
        raise
    if len(answer) < 6:
        raise _Cause("it does not respond like Kafka")


def _speaks_tls(at: Address) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with _tcp(at) as plain, context.wrap_socket(plain):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except (OSError, _Cause):
        return False


def _request(connection: socket.socket, api: int, version: int, body: bytes, *, bound: int = _MOST_BYTES) -> bytes:
    """The answer's body. Raises _Cause."""
    client = b"lstmstream-diagnosis"
    head = struct.pack(">hhih", api, version, api, len(client)) + client
    try:
        connection.sendall(struct.pack(">i", len(head) + len(body)) + head + body)
        size = _exactly(connection, 4)
        if size is None:
            raise _Closed
        length = int.from_bytes(size, signed=True)
        if not 4 <= length <= bound:
            raise _Cause(_what_else(size))
        answer = _exactly(connection, length)
    except TimeoutError as error:
        raise _Silent from error
    except ssl.SSLError:  # `_ask` knows more of what it means
        raise
    except OSError as error:
        raise _Closed from error
    if answer is None or int.from_bytes(answer[:4]) != api:
        raise _Cause("it does not respond like Kafka")
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


def _advertised(metadata: bytes) -> list[Address]:
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
        raise _Cause("it knows of no broker: the cluster is starting, or has no leader")
    return found


def _string(content: bytes, at: int) -> tuple[str | None, int]:
    (length,) = struct.unpack_from(">h", content, at)
    if length < 0:
        return None, at + 2
    return content[at + 2 : at + 2 + length].decode(errors="replace"), at + 2 + length


# -- who we are


def _authenticate(connection: socket.socket, security: SecuritySettings) -> None:
    """Raises _Cause where the mechanism is not enabled or the password is not accepted."""
    mechanism = security.mechanism or ""
    name = mechanism.encode()
    answer = _request(connection, _SASL_HANDSHAKE, 1, struct.pack(">h", len(name)) + name)
    code, count = struct.unpack_from(">hi", answer)
    enabled, at = [], 6
    for _ in range(count):
        text, at = _string(answer, at)
        enabled.append(text or "")
    if code == _UNSUPPORTED_MECHANISM:
        raise _Cause(
            f"the broker does not offer SASL mechanism {mechanism}, but {', '.join(enabled) or 'none'}: see"
            " kafka.security.mechanism"
        )
    user, password = security.username or "", security.password or ""
    if mechanism == "PLAIN":
        _step(connection, f"\0{user}\0{password}".encode())
    elif mechanism.startswith("SCRAM-SHA-"):
        _scram(connection, mechanism.replace("SCRAM-SHA-", "sha"), user, password)


def _step(connection: socket.socket, message: bytes) -> bytes:
    """One message of the client and the answer to it. Raises _Cause."""
    answer = _request(connection, _SASL_AUTHENTICATE, 0, struct.pack(">i", len(message)) + message)
    (code,) = struct.unpack_from(">h", answer)
    said, at = _string(answer, 2)
    if code:
        what = "user name or password is wrong" if code == _WRONG_CREDENTIALS else f"error {code}"
        raise _Cause(f"the broker refuses the authentication: {what} ({said or 'no reason given'}); see kafka.security")
    (length,) = struct.unpack_from(">i", answer, at)
    return answer[at + 4 : at + 4 + max(0, length)]


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
