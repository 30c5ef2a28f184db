"""Why a broker cannot be used: what the network, TLS or the broker itself says, whichever client library is in use.

The libraries tell most of it to their own log only, if at all. So after a failure each bootstrap server is asked once
more, step by step, by the standard library: name, connection, TLS, the first questions of Kafka's protocol, the
password; and then whether the addresses that the brokers advertise can be reached from here. Nothing is changed, and
no secret is in what is said.
"""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from lstmstream.errors import TryAgain
from lstmstream.transport.calls import CallBound
from lstmstream.transport.decisions import BadCredentials
from lstmstream.transport.diagnosis_protocol import (
    API_VERSIONS,
    METADATA,
    Address,
    Cause,
    Closed,
    Refused,
    Silent,
    advertised_addresses,
    authenticate,
    request,
    sasl_handshake,
)
from lstmstream.transport.security import SecuritySettings

STEP_S = 2.0  # for one connection, or one answer
LIMIT_S = 5.0  # for everything
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 60.0  # between two diagnoses
_MOST_ASKED = 8  # servers, and advertised addresses


class Refusal(str):
    """What is found, where it is that the broker does not accept the credentials: trying again does not help."""

    __slots__ = ()


def diagnose(servers: Sequence[str], security: SecuritySettings, limit_s: float = LIMIT_S) -> str:
    """Why the brokers cannot be used; empty where nothing is found, or nothing in time. Never raises."""
    bootstrap = [_address(server) for server in servers[:_MOST_ASKED]]
    deadline_s = time.monotonic() + limit_s
    asked = _all_at_once([lambda at=at: _ask(at, security) for at in bootstrap], deadline_s)  # type: ignore[misc]
    causes = [f"{at}: {found}" for at, found in zip(bootstrap, asked, strict=True) if isinstance(found, str)]
    advertised = {address for found in asked if isinstance(found, list) for address in found}
    if not advertised:
        text = "; ".join(causes)
        return Refusal(text) if any(isinstance(found, Refusal) for found in asked) else text
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
        except Refused as cause:
            found[number] = Refusal(cause)
        except Cause as cause:
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
    """The addresses that the brokers behind it advertise. Raises Cause."""
    with contextlib.closing(_connected(at, security)) as connection:
        try:
            _check_protocol(connection, at, security)
            if security.protocol.startswith("SASL"):
                authenticate(connection, security)
            return advertised_addresses(request(connection, METADATA, 1, struct.pack(">i", 0)))
        except (ssl.SSLError, Closed) as error:  # in TLS 1.3 a client's certificate is judged after the handshake
            if not security.protocol.startswith("SASL") and (offered := _sasl_mechanisms(at, security)):
                protocol = "SASL_SSL" if security.protocol == "SSL" else "SASL_PLAINTEXT"
                raise Cause(
                    f"it demands a login by SASL ({', '.join(offered)}): set kafka.security.protocol to {protocol}, and"
                    " mechanism, username and password"
                ) from error
            if not security.protocol.endswith("SSL"):
                raise
            raise Cause(_after_handshake_cause(error, security)) from error


def _reach(at: Address, security: SecuritySettings) -> list[Address]:
    """Nothing, where an advertised address can be reached. Raises Cause."""
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
        """A TryAgain or BadCredentials that comes out of it says what the network says, if that is known."""
        try:
            yield
        except BadCredentials as error:
            self._next_s = -math.inf  # what was found before was something else
            if found := self._after_failure():
                raise BadCredentials(f"the broker does not accept the credentials: {found}") from error
            raise
        except TryAgain as error:
            found = self._after_failure() if type(error) is TryAgain else ""
            if isinstance(found, Refusal):  # kafka-python says only that it found no broker
                raise BadCredentials(f"the broker does not accept the credentials: {found}") from error
            if not found:
                raise
            raise TryAgain(found) from error
        self._found, self._pause_s, self._next_s = "", _FIRST_PAUSE_S, -math.inf

    @property
    def found(self) -> str:
        """What the last look found, after failures; empty where the network and the brokers seem well."""
        return self._found

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
            raise Cause("the name server does not answer, so the host's address is not known") from error
        raise Cause("there is no such host; check its name") from error
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
    raise Cause(cause)


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
        raise Cause(_certificate_cause(error, at, security)) from error
    except TimeoutError as error:
        raise Cause(_does_not_speak_tls("it does not answer a TLS handshake")) from error
    except ssl.SSLError as error:
        raise Cause(_tls_cause(error, security)) from error
    except OSError as error:
        raise Cause(_does_not_speak_tls("it closes the connection during the TLS handshake")) from error


def _tls_context(security: SecuritySettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=security.ca)
    except (OSError, ssl.SSLError) as error:
        raise Cause(f"kafka.security.ca cannot be used: {error}") from error
    if security.cert is not None:
        try:
            # A password that is missing must not be asked for on the terminal.
            context.load_cert_chain(security.cert, security.key, password=security.key_password or "")
        except (OSError, ssl.SSLError) as error:
            raise Cause(f"kafka.security.cert and key cannot be used: {error}") from error
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
    demanded = "certificate required" in said
    if security.cert is None:  # a Java broker finds the certificate that it did not get a bad one
        demanded = demanded or "handshake failure" in said or "bad certificate" in said
    if demanded:
        return f"the broker demands a client certificate: set kafka.security.cert and key ({said})"
    if "alert" in said and ("certificate" in said or "unknown ca" in said) and security.cert is not None:
        return f"the broker does not accept the client certificate, kafka.security.cert ({said})"
    return f"the TLS handshake fails: {said}"


def _does_not_speak_tls(what: str) -> str:
    return f"{what}; is kafka.security.protocol right, or is the port that of a listener without TLS?"


# -- the protocol


def _check_protocol(connection: socket.socket, at: Address, security: SecuritySettings) -> None:
    """Whether it answers as Kafka does. Raises Cause."""
    try:
        answer = request(connection, API_VERSIONS, 0, b"", bound=1 << 16)
    except Silent:
        raise
    except Cause as cause:
        if not security.protocol.endswith("SSL") and _speaks_tls(at):
            protocol = "SASL_SSL" if security.protocol.startswith("SASL") else "SSL"
            raise Cause(f"it speaks TLS: set kafka.security.protocol to {protocol}") from cause
        raise
    if len(answer) < 6:
        raise Cause("it does not respond like Kafka")


def _speaks_tls(at: Address) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with _tcp(at) as plain, context.wrap_socket(plain):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except (OSError, Cause):
        return False


def _sasl_mechanisms(at: Address, security: SecuritySettings) -> list[str]:
    """What a listener offers that asks who one is; nothing where it does not, or where that is not known."""
    with contextlib.suppress(Cause, OSError, struct.error), contextlib.closing(_connected(at, security)) as connection:
        return sasl_handshake(connection, "PLAIN")[1]
    return []
