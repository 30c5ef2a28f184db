"""One configuration, two client libraries: properties, security, and which library it is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Consumer, Producer
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from lstmstream.config import load_config
from lstmstream.config.properties import Properties
from lstmstream.errors import CannotServe, RecordRefused
from lstmstream.records import RecordBatch
from lstmstream.transport.clients import choose, confluent, confluent_consumer, confluent_producer, kafka_python
from lstmstream.transport.clients.confluent import ConfluentClient
from lstmstream.transport.clients.kafka_python import KafkaPythonClient
from lstmstream.transport.kafka import open_kafka_transport
from lstmstream.transport.security import SecuritySettings, for_kafka_python, for_librdkafka, security_settings
from tests.transport.servers import Certificates

# Every property that the configuration takes, with a value that is no default.
GIVEN: Mapping[str, int | str] = {
    "client.id": "me",
    "client.rack": "r1",
    "client.dns.lookup": "resolve_canonical_bootstrap_servers_only",
    "metadata.max.age.ms": 20_000,
    "reconnect.backoff.ms": 60,
    "reconnect.backoff.max.ms": 900,
    "retry.backoff.ms": 7,
    "request.timeout.ms": 6_000,
    "connections.max.idle.ms": 500_000,
    "receive.buffer.bytes": 70_000,
    "send.buffer.bytes": 71_000,
    "session.timeout.ms": 7_000,
    "heartbeat.interval.ms": 2_000,
    "max.poll.interval.ms": 50_000,
    "group.instance.id": "one",
    "fetch.min.bytes": 2,
    "fetch.max.bytes": 9_000_000,
    "fetch.max.wait.ms": 90,
    "max.partition.fetch.bytes": 1_000_001,
    "batch.size": 100_000,
    "linger.ms": 3,
    "compression.type": "lz4",
    "max.request.size": 5_000_000,
    "max.block.ms": 9_000,
    "delivery.timeout.ms": 7_500,
    "transaction.timeout.ms": 9_500,
}


def test_this_list_is_complete() -> None:
    assert {field.alias or name for name, field in Properties.model_fields.items()} == set(GIVEN)


class Recorded(Exception):
    """Raised by a stand-in, so that nothing is connected."""


def recording(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, real: Any) -> list[dict[str, Any]]:
    """The settings that a library's class is made with."""
    seen: list[dict[str, Any]] = []

    class Standin:
        DEFAULT_CONFIG = getattr(real, "DEFAULT_CONFIG", None)

        def __init__(self, settings: Mapping[str, Any] | None = None, **named: Any) -> None:
            seen.append({**(settings or {}), **named})
            raise Recorded

    monkeypatch.setattr(module, name, Standin)
    return seen


def test_kafka_python_gets_each_property_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    consumers = recording(monkeypatch, kafka_python, "KafkaConsumer", KafkaConsumer)
    producers = recording(monkeypatch, kafka_python, "KafkaProducer", KafkaProducer)
    admins = recording(monkeypatch, kafka_python, "KafkaAdminClient", KafkaAdminClient)
    client = KafkaPythonClient(["a:1", "b:2"], "g", GIVEN, SecuritySettings())
    for make in (
        client.admin,
        lambda: client.group_consumer("in", None),  # type: ignore[arg-type]
        lambda: client.reader("in", 0, 0),
        lambda: client.producer("tx"),
    ):
        with pytest.raises(Recorded):
            make()
    member, reader = consumers
    everywhere = {**member, **producers[0]}
    assert {name for name in GIVEN if everywhere.get(name.replace(".", "_")) != GIVEN[name]} == set()
    assert member["bootstrap_servers"] == ["a:1", "b:2"]
    assert (member["group_id"], member["group_instance_id"]) == ("g", "one")
    assert member["isolation_level"] == reader["isolation_level"] == "read_committed"
    assert {"group_id", "group_instance_id"}.isdisjoint(reader)
    assert (producers[0]["transactional_id"], producers[0]["acks"]) == ("tx", "all")
    assert admins[0]["request_timeout_ms"] == 10_000, "creating topics takes longer than a commit may"


def test_librdkafka_gets_each_property_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    consumers = recording(monkeypatch, confluent_consumer, "Consumer", Consumer)
    producers = recording(monkeypatch, confluent_producer, "RdProducer", Producer)
    client = ConfluentClient(["a:1", "b:2"], "g", GIVEN, SecuritySettings())
    for make in (
        lambda: client.group_consumer("in", None),  # type: ignore[arg-type]
        lambda: client.reader("in", 0, 0),
        lambda: client.producer("tx"),
    ):
        with pytest.raises(Recorded):
            make()
    member, reader = consumers
    other = {
        "metadata.max.age.ms": "topic.metadata.refresh.interval.ms",
        "receive.buffer.bytes": "socket.receive.buffer.bytes",
        "send.buffer.bytes": "socket.send.buffer.bytes",
        "request.timeout.ms": "socket.timeout.ms",
        "fetch.max.wait.ms": "fetch.wait.max.ms",
        "max.request.size": "message.max.bytes",
        "delivery.timeout.ms": "message.timeout.ms",
    }
    everywhere = {**member, **producers[0]}
    wrong = {name for name in GIVEN if everywhere.get(other.get(name, name)) != GIVEN[name]}
    assert wrong == {"max.block.ms"}
    assert member["bootstrap.servers"] == "a:1,b:2"
    assert (member["group.id"], member["group.instance.id"]) == ("g", "one")
    assert member["isolation.level"] == reader["isolation.level"] == "read_committed"
    assert {"group.instance.id", "session.timeout.ms"}.isdisjoint(reader)
    assert (producers[0]["transactional.id"], producers[0]["acks"]) == ("tx", "all")
    assert {"fetch.max.bytes", "session.timeout.ms"}.isdisjoint(producers[0])


# What a client must be told, whichever it is: each of these lost, doubled or stalled something when it was left out.
NEEDED_BY_CONSUMERS: Mapping[str, object] = {
    "isolation.level": "read_committed",
    "enable.auto.commit": False,
    "allow.auto.create.topics": False,
    "check.crcs": True,
    "reconnect.backoff.max.ms": 1000,
    "fetch.max.bytes": 16 << 20,
    "max.partition.fetch.bytes": 2 << 20,
}
NEEDED_BY_PRODUCERS: Mapping[str, object] = {
    "acks": "all",
    "enable.idempotence": True,
    "allow.auto.create.topics": False,
    "transaction.timeout.ms": 10_000,
    "retry.backoff.ms": 5,
    "reconnect.backoff.max.ms": 1000,
}


def make_each(client: ConfluentClient | KafkaPythonClient) -> None:
    """A member of the group, a reader and a producer, as far as their settings."""
    makes = (
        lambda: client.group_consumer("in", None),  # type: ignore[arg-type]
        lambda: client.reader("in", 0, 0),
        lambda: client.producer("tx"),
    )
    for make in makes:
        with pytest.raises(Recorded):
            make()


def test_what_exactly_once_needs_of_kafka_python(monkeypatch: pytest.MonkeyPatch) -> None:
    consumers = recording(monkeypatch, kafka_python, "KafkaConsumer", KafkaConsumer)
    producers = recording(monkeypatch, kafka_python, "KafkaProducer", KafkaProducer)
    client = KafkaPythonClient(["a:1"], "g", {}, SecuritySettings())
    make_each(client)
    needed = {name.replace(".", "_"): value for name, value in NEEDED_BY_CONSUMERS.items()}
    needed |= {"auto_offset_reset": "none", "bootstrap_timeout_ms": 5000}
    assert all(needed.items() <= consumer.items() for consumer in consumers)
    member = consumers[0]
    assert member["partition_assignment_strategy"] == [CooperativeStickyAssignor], "eager ones stop all at each change"
    assert member["max_poll_interval_ms"] == 60_000
    needed = {name.replace(".", "_"): value for name, value in NEEDED_BY_PRODUCERS.items()}
    needed |= {"delivery_timeout_ms": 8_000, "request_timeout_ms": 5_000, "bootstrap_timeout_ms": 5000}
    assert needed.items() <= producers[0].items()
    assert producers[0]["delivery_timeout_ms"] < producers[0]["transaction_timeout_ms"]


def test_what_exactly_once_needs_of_librdkafka(monkeypatch: pytest.MonkeyPatch) -> None:
    consumers = recording(monkeypatch, confluent_consumer, "Consumer", Consumer)
    producers = recording(monkeypatch, confluent_producer, "RdProducer", Producer)
    client = ConfluentClient(["a:1"], "g", {}, SecuritySettings())
    make_each(client)
    needed = {**NEEDED_BY_CONSUMERS, "auto.offset.reset": "error", "enable.auto.offset.store": False}
    assert all(needed.items() <= consumer.items() for consumer in consumers)
    member = consumers[0]
    assert member["partition.assignment.strategy"] == "cooperative-sticky", "eager ones stop all at each change"
    assert member["max.poll.interval.ms"] == 60_000
    needed = {**NEEDED_BY_PRODUCERS, "message.timeout.ms": 8_000, "socket.timeout.ms": 5_000}
    assert needed.items() <= producers[0].items()


def test_fetches_become_smaller_and_never_smaller_than_is_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of members and readers of both libraries; what the configuration says is where it begins."""
    sizes: list[tuple[int, int]] = []

    def record(largest: str, of_partition: str) -> Any:
        def take(settings: Mapping[str, Any], *_: object) -> None:
            sizes.append((settings[largest], settings[of_partition]))
            raise Recorded(settings)

        return take

    ours = record("fetch_max_bytes", "max_partition_fetch_bytes")
    theirs = record("fetch.max.bytes", "max.partition.fetch.bytes")
    monkeypatch.setattr(KafkaPythonClient, "_make", lambda self, kind, settings: ours(settings))
    monkeypatch.setattr(confluent, "ConfluentConsumer", theirs)
    monkeypatch.setattr(confluent, "ConfluentReader", theirs)
    given = {"max.partition.fetch.bytes": 200_000}
    security = SecuritySettings()
    for kind in (KafkaPythonClient, ConfluentClient):
        client = kind(["a:1"], "g", given, security)
        sizes.clear()
        for _ in range(3):
            for make in (lambda c=client: c.group_consumer("t", None), lambda c=client: c.reader("t", 0, 0)):
                with pytest.raises(Recorded):
                    make()
            client.fetch_less()
        assert sizes[::2] == sizes[1::2] == [(16 << 20, 200_000), (4 << 20, 50_000), (1 << 20, 16 << 10)]


def test_librdkafka_takes_what_it_is_given() -> None:
    """Its own check of names, values and combinations; nothing is connected by this."""
    client = ConfluentClient(["127.0.0.1:9"], "g", GIVEN, SecuritySettings())
    client.producer("tx").discard()
    client.producer(None).discard()
    client.reader("in", 0, 0).close()
    plain = ConfluentClient(["127.0.0.1:9"], "g", {}, SecuritySettings())
    plain.producer("tx").discard()
    plain.reader("in", 0, 0).close()


def test_a_record_over_the_clients_own_limit_names_that_limit() -> None:
    """The topic is not asked, so its settings would be the wrong place to look. Nothing is connected by this."""
    producer = ConfluentClient(["127.0.0.1:9"], "g", {"max.request.size": 2_000}, SecuritySettings()).producer(None)
    batch = RecordBatch.to_write("out", np.zeros(1, np.int64), np.ones(1, np.int64), [b"k"], [b"v" * 3_000])
    try:
        with pytest.raises(RecordRefused, match=r"^out\[0\]: .*too large.*max\.request\.size = 2000") as refused:
            producer.send(batch, [0])
        assert refused.value.too_large
    finally:
        producer.discard()


def test_a_property_that_a_client_does_not_have_is_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    ConfluentClient(["a:1"], "g", {"max.block.ms": 1, "linger.ms": 2}, SecuritySettings())
    KafkaPythonClient(["a:1"], "g", {"new.in.kafka": 1, "linger.ms": 2}, SecuritySettings())
    assert [record.getMessage() for record in caplog.records] == [
        "kafka.properties that librdkafka does not have are left out: max.block.ms",
        "kafka.properties that kafka-python does not have are left out: new.in.kafka",
    ]


FULL = SecuritySettings("SASL_SSL", "SCRAM-SHA-512", "me", "secret", "/ca", "/cert", "/key", "key-secret")


def test_security_in_both_tongues() -> None:
    assert for_kafka_python(FULL) == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "me",
        "sasl_plain_password": "secret",
        "ssl_cafile": "/ca",
        "ssl_certfile": "/cert",
        "ssl_keyfile": "/key",
        "ssl_password": "key-secret",
    }
    assert for_librdkafka(FULL) == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "me",
        "sasl.password": "secret",
        "ssl.ca.location": "/ca",
        "ssl.certificate.location": "/cert",
        "ssl.key.location": "/key",
        "ssl.key.password": "key-secret",
    }
    assert for_kafka_python(SecuritySettings()) == {"security_protocol": "PLAINTEXT"}
    assert for_librdkafka(SecuritySettings()) == {"security.protocol": "PLAINTEXT"}
    assert set(for_kafka_python(FULL)) <= set(KafkaConsumer.DEFAULT_CONFIG)


def test_secrets_are_not_printed() -> None:
    assert "secret" not in repr(FULL)


CONFIG = """
name: n
model: m.onnx
delivery: at_least_once
kafka:
  bootstrap_servers: a:1
  client: {client}
  security: {{protocol: SASL_SSL, mechanism: PLAIN, username: u, password: p, ca: tls/ca.pem}}
  properties: {{group.instance.id: one}}
input: {{topic: in}}
output: {{topic: out}}
"""


def config_file(folder: Path, client: str) -> Path:
    if not (folder / "tls").exists():
        (folder / "tls").mkdir()
        (folder / "tls" / "ca.pem").write_bytes(Certificates(folder / "tls").root.read_bytes())
    path = folder / "c.yaml"
    path.write_text(CONFIG.format(client=client))
    return path


def test_the_configuration_chooses_the_client(tmp_path: Path) -> None:
    for name, expected in (
        ("kafka-python", KafkaPythonClient),
        ("confluent", ConfluentClient),
        ("auto", ConfluentClient),
    ):
        config = load_config(config_file(tmp_path, name))
        transport = open_kafka_transport(config)
        assert isinstance(transport._client, expected)
        assert transport._transactional_id == "n.one"
        assert not transport._exactly_once
        assert security_settings(config.kafka.security, config.folder).ca == str(tmp_path / "tls/ca.pem")


def test_without_confluent_auto_is_kafka_python_and_confluent_says_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    assert isinstance(open_kafka_transport(load_config(config_file(tmp_path, "auto")))._client, KafkaPythonClient)
    with pytest.raises(CannotServe, match=r"kafka\.client: .*pip install '\.\[fast\]'"):
        open_kafka_transport(load_config(config_file(tmp_path, "confluent")))
