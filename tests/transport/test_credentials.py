"""Secrets and certificates that are replaced while the daemon runs."""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException
from kafka.errors import KafkaError

from lstmstream.errors import TryAgain
from lstmstream.transport import credentials
from lstmstream.transport.clients import kafka_python_settings
from lstmstream.transport.clients.choose import open_client
from lstmstream.transport.credentials import Credentials
from lstmstream.transport.decisions import BadCredentials, ErrorKind, decide
from lstmstream.transport.security import SecuritySettings
from tests.transport.servers import Certificates, serving, silent

REFUSED = BadCredentials("the broker does not accept the credentials")


@pytest.fixture
def password(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text("old\n")
    return file


def with_password(file: Path) -> SecuritySettings:
    return SecuritySettings("SASL_SSL", "PLAIN", "u", "old", secret_files={"password": file})


def test_a_secret_is_what_its_file_holds_now(password: Path) -> None:
    security = with_password(password)
    assert security.current().password == "old"
    password.write_text("new\n")
    assert security.current() == SecuritySettings("SASL_SSL", "PLAIN", "u", "new", secret_files={"password": password})


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff", None], ids=str)
def test_a_file_that_holds_none_leaves_the_secret_as_it_was(password: Path, content: bytes | None) -> None:
    """A file that is being written is empty for a moment."""
    if content is None:
        password.unlink()
    else:
        password.write_bytes(content)
    assert with_password(password).current().password == "old"


@pytest.mark.parametrize("name", ["password", "ca", "cert", "key"])
def test_a_file_that_was_replaced_is_noticed_until_a_consumer_is_made(tmp_path: Path, name: str) -> None:
    files = {one: tmp_path / one for one in ("password", "ca", "cert", "key")}
    for file in files.values():
        file.write_text("old")
    tls = {one: str(files[one]) for one in ("ca", "cert", "key")}
    found = Credentials(SecuritySettings("SSL", secret_files={"password": files["password"]}, **tls))
    assert not found.changed()
    files[name].write_text("new")
    assert found.changed()
    found.on_join()
    assert not found.changed()


def test_a_refusal_is_final_at_the_start_and_where_nothing_can_change(password: Path) -> None:
    assert Credentials(with_password(password)).judge(REFUSED) is REFUSED
    fixed = Credentials(SecuritySettings("SASL_SSL", "PLAIN", "u", "p"))
    fixed.on_accepted()
    assert fixed.judge(REFUSED) is REFUSED


def test_a_refusal_may_be_the_time_between_two_passwords(password: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(credentials.time, "monotonic", lambda: now_s)
    found = Credentials(with_password(password))
    found.on_accepted()
    with pytest.raises(TryAgain, match="files are read again"), found.patient():
        raise REFUSED
    now_s = credentials.PATIENCE_S
    assert type(found.judge(REFUSED)) is TryAgain
    now_s += 1
    assert found.judge(REFUSED) is REFUSED
    found.on_accepted()
    assert type(found.judge(REFUSED)) is TryAgain


@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
def test_a_certificate_without_its_key_is_an_error_of_the_library(tmp_path: Path, client: str) -> None:
    """As in the moment between two files. kafka-python's heartbeats end with any other error."""
    made = Certificates(tmp_path)
    cert, other = made.certificate("one"), made.certificate("two").with_suffix(".key")
    security = SecuritySettings("SSL", ca=str(made.root), cert=str(cert), key=str(other))
    with serving(silent) as servers:
        library = open_client(client, servers=[servers], group="g", properties={}, security=security)
        with pytest.raises((KafkaError, KafkaException)) as caught:
            library.admin()
    found = library.problem(caught.value)
    assert found is not None
    assert found.kind in {ErrorKind.TRANSIENT, ErrorKind.BAD_SETTINGS}
    judged = Credentials(security)
    judged.on_accepted()
    assert type(judged.judge(decide(found))) is TryAgain


@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
def test_a_certificate_that_was_replaced_is_shown_to_the_broker(
    tmp_path: Path, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same client, before and after."""
    made = Certificates(tmp_path)
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    shown: list[Any] = []

    def use(name: str) -> None:
        cert.write_bytes(made.certificate(name, common_name=name).read_bytes())
        key.write_bytes(made.key(name).read_bytes())

    def serve(connection: socket.socket) -> None:
        assert isinstance(connection, ssl.SSLSocket)
        certificate: Any = connection.getpeercert()
        shown.append(dict(part[0] for part in certificate["subject"])["commonName"])

    use("before")
    security = SecuritySettings("SSL", ca=str(made.root), cert=str(cert), key=str(key))
    monkeypatch.setitem(kafka_python_settings.CONSUMER, "bootstrap_timeout_ms", 500)
    with serving(serve, tls=made.server(made.certificate("server"), demand=made.root)) as servers:
        library = open_client(client, servers=[servers], group="g", properties={}, security=security)
        for name in ("before", "after"):  # a connection of before may be told late
            use(name)
            while name not in shown:
                with contextlib.suppress(KafkaError, KafkaException):
                    reader = library.reader("in", 0, 0)
                    try:
                        reader.read(0, 1, 0.2)
                    finally:
                        reader.close()
