"""Over TLS, with a password or a certificate, and with the rights that docs/security.md names and no others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import orjson
import pytest
import yaml
from confluent_kafka.admin import AclOperation, ResourceType
from kafka import KafkaProducer

from tests.broker.harness import (
    RunningDaemon,
    check_lines,
    committed_offsets,
    create_topics,
    produce,
    read_all,
    write_config,
)
from tests.broker.secured import (
    COMMON_NAME,
    PASSWORD,
    REAUTH_MS,
    USER,
    Right,
    SecuredBroker,
    secured_broker,
    unsigned_token,
)
from tests.models import random_model
from tests.transport.token_endpoint import TokenEndpoint

EVENTS = 40
TOKEN_S = 15.0


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    with secured_broker(tmp_path_factory.mktemp("secured")) as broker:
        yield broker


def rights(name: str) -> dict[str, Right]:
    """Those of docs/security.md."""
    topic, group, author = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.TRANSACTIONAL_ID
    return {
        "read the input": Right(topic, f"{name}.in", AclOperation.READ),
        "write predictions": Right(topic, f"{name}.out", AclOperation.WRITE),
        "write dead letters": Right(topic, f"{name}.dead-letter", AclOperation.WRITE),
        "read states": Right(topic, f"{name}.state", AclOperation.READ),
        "write states": Right(topic, f"{name}.state", AclOperation.WRITE),
        "be a member": Right(group, name, AclOperation.READ),
        "write transactions": Right(author, name, AclOperation.WRITE, prefixed=True),
    }


RIGHTS = tuple(rights("t"))


def send(secured: SecuredBroker, name: str) -> None:
    produce(secured.plain, f"{name}.in", [(b"k", b'{"amount": 1}', None, 0)] * EVENTS)


def answered(secured: SecuredBroker, name: str, count: int) -> Callable[[], bool]:
    return lambda: committed_offsets(secured.plain, name).get(0) == count


def prepared(secured: SecuredBroker, folder: Path, name: str, kafka: Mapping[str, Any]) -> Path:
    """A configuration, and its topics with some events, of which one is bad."""
    create_topics(secured.plain, [f"{name}.{end}" for end in ("in", "out", "dead-letter", "state")], partitions=1)
    events = [(b"k", b'{"amount": 1}', None, 0)] * EVENTS
    produce(secured.plain, f"{name}.in", [*events, (b"k", b"bad", None, 0)])
    model = random_model(folder, hidden=4)
    return write_config(folder / "c.yaml", name=name, model=model, servers=secured.sasl, kafka=kafka)


@pytest.mark.parametrize("way", ["scram", "mutual_tls"])
def test_these_rights_are_enough(secured: SecuredBroker, topic_prefix: str, tmp_path: Path, way: str) -> None:
    kafka, principal = (secured.scram(), USER) if way == "scram" else (secured.mutual_tls(), COMMON_NAME)
    config = prepared(secured, tmp_path, topic_prefix, kafka)
    with (
        secured.allowing(rights(topic_prefix).values(), principal),
        RunningDaemon(config, tmp_path / "log") as daemon,
    ):
        daemon.wait_ready()
        daemon.wait(lambda: committed_offsets(secured.plain, topic_prefix).get(0) == EVENTS + 1, "past all events")
        assert daemon.sigterm() == 0, daemon.last_words()
    assert len(list(read_all(secured.plain, f"{topic_prefix}.out", partitions=1))) == EVENTS


def test_they_are_enough_to_end_what_a_dead_member_has_left_open(
    secured: SecuredBroker, topic_prefix: str, tmp_path: Path
) -> None:
    config = prepared(secured, tmp_path, topic_prefix, secured.scram())
    gone = f"{topic_prefix}.member:gone"
    producer = KafkaProducer(bootstrap_servers=secured.plain, transactional_id=gone, transaction_timeout_ms=600_000)
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(f"{topic_prefix}.out", b"unfinished").get(60)
    with (
        secured.allowing(rights(topic_prefix).values(), USER),
        RunningDaemon(config, tmp_path / "log") as daemon,
    ):
        daemon.wait(lambda: committed_offsets(secured.plain, topic_prefix).get(0) == EVENTS + 1, "past all events")
        assert [line for line in daemon.log_lines if line.get("transactional_id") == gone]
        assert daemon.sigterm() == 0, daemon.last_words()
    assert len(list(read_all(secured.plain, f"{topic_prefix}.out", partitions=1))) == EVENTS
    producer.close()


@pytest.mark.parametrize("missing", RIGHTS)
def test_a_right_that_is_missing_is_named(
    secured: SecuredBroker, topic_prefix: str, tmp_path: Path, missing: str
) -> None:
    given = rights(topic_prefix)
    right = given.pop(missing)
    with (
        secured.allowing(given.values(), USER),
        RunningDaemon(prepared(secured, tmp_path, topic_prefix, secured.scram()), tmp_path / "log") as daemon,
    ):
        assert daemon.wait_end() == 2, daemon.last_words()
    said = daemon.log_lines[-1]["message"]
    assert right.name in said
    assert right.operation.name in said


def test_check_says_that_it_may_not_read_the_brokers_settings(
    secured: SecuredBroker, topic_prefix: str, tmp_path: Path
) -> None:
    with secured.allowing(rights(topic_prefix).values(), USER):
        code, lines = check_lines(prepared(secured, tmp_path, topic_prefix, secured.scram()), "timeouts")
    assert (code, [status for status, _ in lines]) == (0, ["warning"])
    assert "allow DESCRIBE_CONFIGS on the cluster" in lines[0][1]


def test_nothing_that_anybody_may_read_shows_a_secret_a_key_or_a_value(
    secured: SecuredBroker, topic_prefix: str, tmp_path: Path
) -> None:
    """At the level `debug`, with predictions, alerts and dead letters."""
    config = prepared(secured, tmp_path, topic_prefix, secured.scram())
    settings = yaml.safe_load(config.read_text())
    settings |= {"log": {"level": "debug"}, "http": {"port": 0, "token": "canary-token"}}
    settings["output"] |= {"threshold": 0.0, "include": ["amount", "note"], "reasons": 1}
    config.write_text(yaml.safe_dump(settings))
    for value in (b'{"amount": 1, "note": "canary-value"}', b'{"amount": "canary-amount"}', b"canary-bytes"):
        produce(secured.plain, f"{topic_prefix}.in", [(b"canary-key", value, None, 0)])
    with (
        secured.allowing(rights(topic_prefix).values(), USER),
        RunningDaemon(config, tmp_path / "log") as daemon,
    ):
        daemon.wait_ready()
        daemon.wait(answered(secured, topic_prefix, EVENTS + 4), "past all events")
        pages = {
            path: daemon.get(path) for path in ("/metrics", "/", "/livez", "/readyz", "/live", "/live/events", "/x")
        }
        assert daemon.sigterm() == 0, daemon.last_words()
    assert b"lstmstream_dead_letters_total" in pages["/metrics"][1]
    assert pages["/live"][0] == 401
    log = daemon.log_file.read_bytes()
    assert b'"level": "debug"' in log
    for shown in (log, *(body for _, body in pages.values())):
        assert b"canary" not in shown
        assert PASSWORD.encode() not in shown
        assert orjson.dumps(PASSWORD)[1:-1] not in shown


def test_a_password_is_changed_while_the_daemon_runs(secured: SecuredBroker, topic_prefix: str, tmp_path: Path) -> None:
    """First at the broker, which asks for it again every few seconds; the file follows once the daemon was refused."""
    user, file = topic_prefix, tmp_path / "password"
    secured.set_password(user, "first")
    file.write_text("first\n")
    config = prepared(secured, tmp_path, topic_prefix, secured.short_scram(user))
    variables = {"LSTMSTREAM_KAFKA__SECURITY__PASSWORD_FILE": str(file)}
    with (
        secured.allowing(rights(topic_prefix).values(), user),
        RunningDaemon(config, tmp_path / "log", variables=variables) as daemon,
    ):
        daemon.wait_ready()
        daemon.wait(answered(secured, topic_prefix, EVENTS + 1), "past the first events")
        secured.set_password(user, "second")
        send(secured, topic_prefix)
        daemon.wait(lambda: "does not accept the credentials" in daemon.log_file.read_text(), "refused")
        file.write_text("second\n")
        daemon.wait(answered(secured, topic_prefix, 2 * EVENTS + 1), "past the others")
        assert daemon.sigterm() == 0, daemon.last_words()
    assert len(list(read_all(secured.plain, f"{topic_prefix}.out", partitions=1))) == 2 * EVENTS
    log = daemon.log_file.read_text()
    assert "first" not in log
    assert "second" not in log


class Renewing(Thread):
    """Writes a token to a file every second, each good for a few."""

    def __init__(self, file: Path, subject: str) -> None:
        super().__init__(daemon=True)
        self._file, self._subject = file, subject
        self._end = Event()
        self._renew()
        self.first_expires_s = time.time() + TOKEN_S

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()

    def run(self) -> None:
        while not self._end.wait(1):
            self._renew()

    def _renew(self) -> None:
        unfinished = self._file.with_suffix(".part")
        unfinished.write_text(unsigned_token(self._subject, lifetime_s=TOKEN_S))
        unfinished.replace(self._file)


def test_a_token_is_renewed_in_its_file(secured: SecuredBroker, topic_prefix: str, tmp_path: Path) -> None:
    """The broker asks for one again and again, and the first has expired when the last events come."""
    file = tmp_path / "token"
    config = prepared(secured, tmp_path, topic_prefix, secured.bearer())
    variables = {"LSTMSTREAM_KAFKA__SECURITY__OAUTH__TOKEN_FILE": str(file)}
    with (
        secured.allowing(rights(topic_prefix).values(), topic_prefix),
        Renewing(file, topic_prefix) as tokens,
        RunningDaemon(config, tmp_path / "log", variables=variables) as daemon,
    ):
        daemon.wait_ready()
        daemon.wait(answered(secured, topic_prefix, EVENTS + 1), "past the first events")
        daemon.wait(lambda: time.time() > tokens.first_expires_s + REAUTH_MS / 1000, "past the first token")
        send(secured, topic_prefix)
        daemon.wait(answered(secured, topic_prefix, 2 * EVENTS + 1), "past the others")
        assert daemon.sigterm() == 0, daemon.last_words()
    assert len(list(read_all(secured.plain, f"{topic_prefix}.out", partitions=1))) == 2 * EVENTS
    assert [line for line in daemon.log_lines if line["level"] == "error"] == []


def test_a_token_that_the_broker_does_not_accept(secured: SecuredBroker, topic_prefix: str, tmp_path: Path) -> None:
    config = prepared(secured, tmp_path, topic_prefix, secured.bearer(token=unsigned_token("x", lifetime_s=-60)))
    with RunningDaemon(config, tmp_path / "log") as daemon:
        assert daemon.wait_end() == 2, daemon.last_words()
    assert "the broker refuses the token: " in daemon.log_lines[-1]["message"]


def test_tokens_of_an_endpoint(secured: SecuredBroker, topic_prefix: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("first")
    endpoint = TokenEndpoint(topic_prefix, "first", lifetime_s=TOKEN_S)
    with endpoint.serving() as url:
        kafka = secured.bearer(token_url=url, client_id="daemon", scope="kafka")
        kafka["security"]["insecure"] = True
        config = prepared(secured, tmp_path, topic_prefix, kafka)
        with (
            secured.allowing(rights(topic_prefix).values(), topic_prefix),
            RunningDaemon(
                config,
                tmp_path / "log",
                variables={"LSTMSTREAM_KAFKA__SECURITY__OAUTH__CLIENT_SECRET_FILE": str(secret)},
            ) as daemon,
        ):
            daemon.wait_ready()
            daemon.wait(answered(secured, topic_prefix, EVENTS + 1), "past the first events")
            endpoint.secret = "second"
            secret.write_text("second")
            before = endpoint.given
            daemon.wait(lambda: endpoint.given > before, "given a token for the new secret")
            endpoint.answer = (503, b"")
            daemon.wait(lambda: "token_url answers 503" in daemon.log_file.read_text(), "without a token")
            endpoint.answer = None
            send(secured, topic_prefix)
            daemon.wait(answered(secured, topic_prefix, 2 * EVENTS + 1), "past the others")
            assert daemon.sigterm() == 0, daemon.last_words()
    assert endpoint.given < 20, "a token is used until it is about to expire"
