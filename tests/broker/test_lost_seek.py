"""librdkafka loses a seek that comes while it asks for the end of the partition: records would be skipped."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import OFFSET_END, Consumer, TopicPartition
from kafka import KafkaProducer

from lstmstream.transport.clients.choose import open_client
from lstmstream.transport.clients.confluent_consumer import ConfluentConsumer
from lstmstream.transport.kafka import KafkaTransport
from lstmstream.transport.security import SecuritySettings
from tests.broker.harness import create_topics
from tests.broker.proxy import Api, KafkaProxy

pytestmark = pytest.mark.broker

PARTITIONS = 4
RECORDS = 20  # in each partition
ANSWER_S = 0.3  # until a question for offsets is answered


@pytest.fixture
def proxy(broker: str) -> Iterator[KafkaProxy]:
    with KafkaProxy(broker) as proxy:
        yield proxy


def read_from_the_start(broker: str, proxy: KafkaProxy, client: str, topic: str) -> dict[int, list[int]]:
    """The offsets that a member of a group gets which resumes each partition at 0 as soon as it has it."""
    create_topics(broker, [topic], partitions=PARTITIONS)
    producer = KafkaProducer(bootstrap_servers=broker)
    for i in range(PARTITIONS * RECORDS):
        producer.send(topic, b"{}", partition=i % PARTITIONS)
    producer.close()
    library = open_client(client, servers=[proxy.servers], group=topic, properties={}, security=SecuritySettings())
    transport = KafkaTransport(library, group=topic, input_topic=topic)
    transport.connect()
    proxy.delay(Api.LIST_OFFSETS, ANSWER_S)
    transport.join()
    given: dict[int, list[int]] = {partition: [] for partition in range(PARTITIONS)}
    resumed: set[int] = set()
    deadline_s = time.monotonic() + 180
    try:
        while any(len(offsets) < RECORDS for offsets in given.values()):
            assert time.monotonic() < deadline_s, given
            polled = transport.poll(0.1, 1_000)
            for partition in polled.assignment.keys() - resumed:
                transport.resume(partition, 0)
                resumed.add(partition)
            for partition, offset in zip(polled.records.partitions, polled.records.offsets, strict=True):
                given[int(partition)].append(int(offset))
    finally:
        transport.close(timeout_s=5)
    return given


def test_no_record_is_skipped_after_an_assignment(
    broker: str, proxy: KafkaProxy, client: str, topic_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = read_from_the_start(broker, proxy, client, topic_prefix)
    assert given == {partition: list(range(RECORDS)) for partition in range(PARTITIONS)}
    assert "skipped records" not in caplog.text


@pytest.mark.only_client("confluent")
def test_a_seek_that_is_lost_all_the_same_is_noticed(
    broker: str,
    proxy: KafkaProxy,
    client: str,
    topic_prefix: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where the ends could not be asked for: the library asks for them itself. It still loses the seek."""

    def at_end(self: ConfluentConsumer, _: Consumer, assigned: list[TopicPartition]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, at.partition, OFFSET_END) for at in assigned]

    monkeypatch.setattr(ConfluentConsumer, "_at_end", at_end)
    given = read_from_the_start(broker, proxy, client, topic_prefix)
    assert given == {partition: list(range(RECORDS)) for partition in range(PARTITIONS)}
    assert "skipped records" in caplog.text
