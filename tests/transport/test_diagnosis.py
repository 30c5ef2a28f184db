"""What is said of a broker that cannot be used: each cause by a server that is really like that."""

from __future__ import annotations

import gc
import socket
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

from lstmstream.errors import TryAgain
from lstmstream.transport import diagnosis
from lstmstream.transport.calls import CallBound
from lstmstream.transport.clients.choose import open_client
from lstmstream.transport.decisions import BadCredentials
from lstmstream.transport.diagnosis import Diagnosis
from lstmstream.transport.kafka_admin import KafkaAdmin
from lstmstream.transport.security import SecuritySettings
from tests.transport.hanging import LONG_S
from tests.transport.servers import Certificates, answering, closing, kafka, serving, silent

PLAIN, TLS = SecuritySettings(), SecuritySettings(protocol="SSL")
SASL = SecuritySettings(protocol="SASL_PLAINTEXT", mechanism="PLAIN", username="user", password="wrong-pass-word")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handshake takes what a busy machine needs for it."""
    monkeypatch.setattr(diagnosis, "STEP_S", LONG_S)
    monkeypatch.setattr(diagnosis, "LIMIT_S", LONG_S)


def diagnose(servers: Sequence[str], security: SecuritySettings, limit_s: float = LONG_S) -> str:
    return diagnosis.diagnose(servers, security, limit_s)


def test_a_host_that_is_not_there() -> None:
    assert diagnose(["nowhere.invalid:9092"], PLAIN).startswith("nowhere.invalid:9092: there is no such host")


def test_a_port_where_nothing_listens() -> None:
    at = closed_port()
    assert diagnose([at], PLAIN) == f"{at}: connection refused: nothing listens on this port"


def test_a_connection_that_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mute(socket.socket):
        def connect(self, address: object) -> None:
            raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "socket", Mute)
    assert "no answer to the connection" in diagnose(["127.0.0.1:9"], PLAIN)


@pytest.mark.parametrize(
    ("text", "first", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, "an HTTP server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", True, "an SSH server"),
        (b"\x15\x03\x03\x00\x02\x02\x50", False, "TLS"),
        (b"220 mail.example ESMTP\r\n", True, "does not respond like a Kafka broker"),
        (b"\x00\x00\x00\x06abcdef", False, "does not respond like Kafka"),
        (b"\xff\xff\xff\xff", False, "does not respond like a Kafka broker"),
    ],
)
def test_something_else_answers(text: bytes, first: bool, said: str) -> None:
    with serving(answering(text, first=first)) as at:
        found = diagnose([at], PLAIN)
    assert found.startswith(f"{at}: ")
    assert said in found


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "STEP_S", 0.5)
    with serving(silent) as at:
        assert "does not answer" in diagnose([at], PLAIN)
        assert "does not answer a TLS handshake" in diagnose([at], TLS)


def test_a_server_that_closes() -> None:
    with serving(closing) as at:
        assert "closes the connection" in diagnose([at], PLAIN)
        assert "closes the connection during the TLS handshake" in diagnose([at], TLS)


def test_tls_where_none_was_configured(certificates: Certificates) -> None:
    context = certificates.server(certificates.certificate("plain"))
    with serving(kafka("a:1"), tls=context) as at:
        assert "it speaks TLS: set kafka.security.protocol to SSL" in diagnose([at], PLAIN)
        assert "set kafka.security.protocol to SASL_SSL" in diagnose([at], SASL)


def test_no_tls_where_it_was_configured() -> None:
    with serving(answering(b"\x00\x00\x00\x06\x00\x00\x00\x12\x00\x23")) as at:
        found = diagnose([at], TLS)
    assert "it does not speak TLS; is kafka.security.protocol right" in found


@pytest.mark.parametrize(
    ("made", "ca", "said"),
    [
        ({"names": "DNS:elsewhere.example"}, "root", "an address other than '127.0.0.1'"),
        ({"days": -1}, "root", "it has expired"),
        ({}, "other", "the authority that signed it is not among kafka.security.ca"),
        ({}, None, "the authority that signed it is not among the system's authorities"),
        ({"by": "intermediate"}, "root", "leaves an intermediate one out"),
        ({"by": "intermediate"}, "intermediate", "the root above it is not among kafka.security.ca"),
        ({"by": "self"}, "root", "it is self-signed"),
    ],
)
def test_a_certificate_that_is_not_accepted(
    certificates: Certificates, made: dict[str, object], ca: str | None, said: str
) -> None:
    name = f"c{abs(hash((str(made), ca)))}"
    own = made.get("by") == "self"
    certificate = certificates.root if own else certificates.certificate(name, **made)  # type: ignore[arg-type]
    authorities = {
        "root": certificates.root,
        "other": certificates.other_root,
        "intermediate": certificates.intermediate,
    }
    ca_file = None if ca is None else str(authorities["other" if made.get("by") == "self" else ca])
    with serving(kafka("a:1"), tls=certificates.server(certificate)) as at:
        found = diagnose([at], SecuritySettings(protocol="SSL", ca=ca_file))
    assert "the broker's certificate is not accepted: " in found
    assert said in found


def test_a_client_certificate_is_demanded(certificates: Certificates) -> None:
    context = certificates.server(certificates.certificate("demanding"), demand=certificates.root)
    stranger = certificates.certificate("stranger", by="other")
    ca = str(certificates.root)
    with serving(kafka("a:1"), tls=context) as at:
        found = diagnose([at], SecuritySettings(protocol="SSL", ca=ca))
        assert "demands a client certificate" in found
        assert "set kafka.security.cert" in found
        refused = SecuritySettings(protocol="SSL", ca=ca, cert=str(stranger), key=str(certificates.key("stranger")))
        assert "accept the client certificate, kafka.security.cert" in diagnose([at], refused)


def test_files_that_are_no_certificates(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with serving(silent) as at:
        assert "kafka.security.ca cannot be used" in diagnose(
            [at], SecuritySettings(protocol="SSL", ca=str(tmp_path / "ca.pem"))
        )


@pytest.mark.parametrize(
    ("mechanisms", "said"),
    [
        (("SCRAM-SHA-256", "GSSAPI"), "does not offer SASL mechanism PLAIN, but SCRAM-SHA-256, GSSAPI"),
        (("PLAIN",), "user name or password is wrong (Authentication failed: Invalid username or password)"),
    ],
)
def test_who_we_are_is_not_accepted_and_no_secret_is_said(mechanisms: tuple[str, ...], said: str) -> None:
    with serving(kafka("a:1", mechanisms=mechanisms)) as at:
        found = diagnose([at], SASL)
    assert said in found
    assert "wrong-pass-word" not in found


@pytest.mark.parametrize(("security", "protocol"), [(PLAIN, "SASL_PLAINTEXT"), (TLS, "SASL_SSL")])
def test_a_login_is_demanded_where_none_was_configured(
    certificates: Certificates, security: SecuritySettings, protocol: str
) -> None:
    tls = None
    if security is TLS:
        tls = certificates.server(certificates.certificate("login"))
        security = SecuritySettings(protocol="SSL", ca=str(certificates.root))
    with serving(kafka("a:1", mechanisms=("SCRAM-SHA-512",)), tls=tls) as at:
        found = diagnose([at], security)
    assert f"demands a login by SASL (SCRAM-SHA-512): set kafka.security.protocol to {protocol}" in found


def test_a_login_is_configured_where_there_is_none() -> None:
    with serving(kafka("a:1")) as at:
        found = diagnose([at], SASL)
    assert "this listener has no login by SASL: set kafka.security.protocol to PLAINTEXT" in found


def test_what_a_java_broker_says_of_a_certificate_that_it_did_not_get() -> None:
    said = diagnosis._alert_cause("sslv3 alert bad certificate", TLS)
    assert said.startswith("the broker demands a client certificate: set kafka.security.cert and key")


def test_advertised_addresses_that_cannot_be_reached() -> None:
    closed = closed_port()
    for advertised, cause in (("kafka-internal.invalid:9092", "no such host"), (closed, "connection refused")):
        with serving(kafka(advertised)) as at:
            found = diagnose([at], PLAIN)
        assert found.startswith(f"{at} can be reached, but the brokers advertise addresses")
        assert f"{advertised} (" in found
        assert cause in found
        assert "advertised.listeners" in found


def test_a_broker_that_is_well_is_not_blamed() -> None:
    with serving(silent) as other, serving(kafka(other)) as at:
        assert diagnose([at], PLAIN) == ""
        assert diagnose([closed_port(), at], PLAIN) == "", "one server of several is enough"
    with serving(kafka("a:1", brokers=False)) as at:
        assert "knows of no broker" in diagnose([at], PLAIN)


def test_it_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def slow(*_: object, **__: object) -> list[object]:
        assert release.wait(600), "nobody went on"
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    assert diagnose(["a:1", "b:1"], PLAIN, limit_s=0.3) == ""
    release.set()


class Asked:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> str:
        self.times += 1
        return "a:1: refused"


def fail(explained: Diagnosis) -> str:
    with pytest.raises(TryAgain) as raised, explained.explaining():
        raise TryAgain("Unable to bootstrap")
    return str(raised.value)


def test_it_is_not_asked_at_each_failure() -> None:
    asked = Asked()
    explained = Diagnosis(asked, CallBound())
    assert [fail(explained) for _ in range(4)] == ["a:1: refused"] * 4
    assert asked.times == 1
    with explained.explaining():
        pass
    fail(explained)
    assert asked.times == 2, "a new outage"


def test_credentials_that_are_refused_say_what_the_broker_offers() -> None:
    """It is asked anew: what was found a moment before was another failure."""
    asked = Asked()
    explained = Diagnosis(asked, CallBound())
    fail(explained)
    with pytest.raises(BadCredentials) as raised, explained.explaining():
        raise BadCredentials("the broker does not accept the credentials: [Error 33]; see kafka.security")
    assert str(raised.value) == "the broker does not accept the credentials: a:1: refused"
    assert asked.times == 2


def test_it_is_not_asked_while_the_process_stops() -> None:
    asked, bound = Asked(), CallBound()
    bound.deadline_s = time.monotonic() + 5
    assert fail(Diagnosis(asked, bound)) == "Unable to bootstrap"
    assert asked.times == 0


@pytest.fixture(params=["kafka-python", "confluent"])
def client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_both_clients_end_where_credentials_are_refused(client: str) -> None:
    for mechanisms, said in (
        (("SCRAM-SHA-256",), "does not offer SASL mechanism PLAIN, but SCRAM-SHA-256"),
        (("PLAIN",), "user name or password is wrong"),
        ((), "this listener has no login by SASL"),
    ):
        with serving(kafka("a:1", mechanisms=mechanisms, complete=True)) as at:
            library = open_client(client, servers=[at], group="g", properties={}, security=SASL)
            asked = KafkaAdmin(library, diagnose=lambda at=at: diagnose([at], SASL))
            with pytest.raises(BadCredentials) as raised:
                asked.connect()
            assert said in str(raised.value)
            asked.close(1.0)


def test_both_clients_say_the_same(client: str, certificates: Certificates) -> None:
    """Each library has other words for it, or hardly any."""
    context = certificates.server(certificates.certificate(f"both-{client}"))
    strange = SecuritySettings(protocol="SSL", ca=str(certificates.other_root))
    for serve, tls, security, cause in (
        (answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"), None, PLAIN, "it is an HTTP server, not a Kafka broker"),
        (kafka("a:1"), context, PLAIN, "it speaks TLS: set kafka.security.protocol to SSL"),
        (kafka("a:1"), context, strange, "the broker's certificate is not accepted: the authority that signed it"),
        (answering(b"\x00\x00\x00\x06\x00\x00\x00\x12\x00\x23"), None, strange, "it does not speak TLS"),
    ):
        with serving(serve, tls=tls) as at:
            library = open_client(client, servers=[at], group="g", properties={}, security=security)
            asked = KafkaAdmin(library, diagnose=lambda at=at, security=security: diagnose([at], security))
            with pytest.raises(TryAgain) as raised:
                asked.connect()
            assert str(raised.value).startswith(f"{at}: {cause}")
            asked.close(1.0)
    del library, asked, raised
    with warnings.catch_warnings():  # kafka-python leaves sockets whose handshake failed to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
