"""What other programs do to the daemon's topics and group is seen by both clients."""

from __future__ import annotations

import time

import pytest
from kafka import KafkaProducer

from lstmstream.transport.clients.choose import open_client
from lstmstream.transport.kafka import KafkaTransport
from lstmstream.transport.security import SecuritySettings
from tests.broker.harness import create_topics, foreign_member

SHORT = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}


@pytest.fixture
def transport(broker: str, topic_prefix: str, client: str) -> KafkaTransport:
    create_topics(broker, [f"{topic_prefix}.in"], partitions=2)
    library = open_client(client, servers=[broker], group=topic_prefix, properties=SHORT, security=SecuritySettings())
    return KafkaTransport(library, group=topic_prefix, input_topic=f"{topic_prefix}.in")


def test_an_open_transaction_has_a_place_until_it_ends(
    broker: str, topic_prefix: str, transport: KafkaTransport
) -> None:
    topic = f"{topic_prefix}.in"
    transport.connect()
    assert transport.open_transactions(topic, [0, 1]) == {}
    producer = KafkaProducer(bootstrap_servers=broker, transactional_id=topic_prefix)
    try:
        producer.init_transactions()
        producer.begin_transaction()
        for _ in range(3):
            producer.send(topic, value=b"{}", partition=1)
        producer.flush()
        assert transport.open_transactions(topic, [0, 1]) == {1: (0, 3)}
        producer.commit_transaction()
        deadline = time.monotonic() + 180
        while transport.open_transactions(topic, [0, 1]):
            assert time.monotonic() < deadline
    finally:
        producer.close()
        transport.close(5.0)


def test_the_members_of_the_group_are_named(broker: str, topic_prefix: str, transport: KafkaTransport) -> None:
    topic = f"{topic_prefix}.in"
    transport.connect()
    assert transport.group_members() == []
    with foreign_member(broker, topic, topic_prefix, client_id="reports"):
        (member,) = transport.group_members()
        assert (member.client_id, sorted(member.partitions)) == ("reports", [0, 1])
        assert "127.0.0.1" in member.host
    transport.close(5.0)


def test_this_member_is_found_among_them(topic_prefix: str, transport: KafkaTransport) -> None:
    transport.connect()
    transport.join()
    try:
        deadline = time.monotonic() + 180
        while not (polled := transport.poll(0.1, 1)).assignment:
            assert time.monotonic() < deadline
        (member,) = transport.group_members()
        assert polled.membership.member_id == member.member_id
        assert sorted(member.partitions) == sorted(polled.assignment) == [0, 1]
    finally:
        transport.close(5.0)
