"""The port on kafka-python against a real broker: what the client gets wrong, one claim a test."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

from lstmstream.errors import Fatal, OwnershipLost, TryAgain
from lstmstream.serve.records import Message
from lstmstream.transport.base import CommittedOffset
from lstmstream.transport.kafka_python import KafkaPythonTransport, within

NOW_MS = 1_700_000_000_000


@pytest.fixture
def names(broker: str, topic_prefix: str) -> tuple[str, str, str]:
    """An input, an output and a state topic with two partitions each."""
    topics = (f"{topic_prefix}.in", f"{topic_prefix}.out", f"{topic_prefix}.state")
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.create_topics([NewTopic(topic, 2, 1, topic_configs={"max.message.bytes": "100000"}) for topic in topics])
    admin.close()
    return topics


@pytest.fixture
def transport(broker: str, topic_prefix: str, names: tuple[str, str, str]) -> Iterator[KafkaPythonTransport]:
    made = joined(broker, topic_prefix, names[0])
    yield made
    made.close(5.0)


def joined(broker: str, group: str, topic: str, **properties: object) -> KafkaPythonTransport:
    made = KafkaPythonTransport(
        bootstrap_servers=[broker],
        group=group,
        input_topic=topic,
        properties={"session.timeout.ms": 6000, **properties},
    )
    made.connect()
    made.join()
    return made


def until_assigned(transport: KafkaPythonTransport, partitions: int = 2) -> Any:
    """Polls until the member has that many partitions."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        turn = transport.poll(0.1, 100)
        if turn.member_valid and len(turn.assignment) == partitions:
            return turn
    raise AssertionError("no assignment within 30 s")


def committed_at_last(transport: KafkaPythonTransport) -> CommittedOffset | None:
    """The committed offset, asked for again where the broker takes its time, as the daemon does."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return transport.committed(0)
        except TryAgain:
            assert time.monotonic() < deadline, "no answer within 60 s"


def fill(broker: str, topic: str, count: int) -> None:
    producer = KafkaProducer(bootstrap_servers=broker)
    for i in range(count):
        producer.send(topic, b"%d" % i, key=b"k", partition=0, timestamp_ms=NOW_MS + i)
    producer.close()


def read(broker: str, topic: str, *, committed: bool = True) -> list[tuple[int, bytes | None, bytes | None, list]]:  # type: ignore[type-arg]
    """Everything in the topic, as a reader sees it now."""
    consumer = KafkaConsumer(
        bootstrap_servers=broker,
        isolation_level="read_committed" if committed else "read_uncommitted",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    places = [TopicPartition(topic, partition) for partition in range(2)]
    consumer.assign(places)
    consumer.seek_to_beginning(*places)
    ends = consumer.end_offsets(places)
    found = []
    deadline = time.monotonic() + 20
    while any(consumer.position(place) < ends[place] for place in places):
        assert time.monotonic() < deadline
        for records in consumer.poll(200).values():
            found += [(record.partition, record.key, record.value, list(record.headers)) for record in records]
    consumer.close()
    return found


def message(topic: str, value: bytes | None, key: bytes | None = b"k", partition: int | None = 0) -> Message:
    return Message(topic, partition, key, value, NOW_MS, [])


def test_records_come_only_after_resume(
    broker: str, transport: KafkaPythonTransport, names: tuple[str, str, str]
) -> None:
    """A new partition is silent until the daemon says where to go on."""
    fill(broker, names[0], 5)
    until_assigned(transport)
    assert sum(len(transport.poll(0.1, 100).records) for _ in range(10)) == 0
    transport.resume(0, 2)
    deadline = time.monotonic() + 10
    values: list[bytes | None] = []
    while len(values) < 3 and time.monotonic() < deadline:
        values += transport.poll(0.2, 100).records.values
    assert values == [b"2", b"3", b"4"]


def test_a_transaction_is_whole(broker: str, transport: KafkaPythonTransport, names: tuple[str, str, str]) -> None:
    member = until_assigned(transport).member
    _, out, state = names
    answers = [message(out, b"a"), message(out, b"b", partition=1)]
    transport.commit(answers, [message(state, b"s")], {0: 7}, member, nonce="n", limit_s=20)
    assert sorted(value or b"" for _, _, value, _ in read(broker, out)) == [b"a", b"b"]
    assert [value for _, _, value, _ in read(broker, state)] == [b"s"]
    assert transport.committed(0) == (7, "n")
    assert transport.committed(1) is None


def test_null_key_null_value_and_null_header_can_be_sent(
    broker: str, transport: KafkaPythonTransport, names: tuple[str, str, str]
) -> None:
    """A dead letter that could not be sent would stop its partition for ever."""
    member = until_assigned(transport).member
    nothing = Message(names[1], 0, None, None, None, [("h", None), ("h", b""), ("h", b"x")])
    transport.commit([nothing, message(names[1], None)], [], {0: 1}, member, nonce="n", limit_s=20)
    assert read(broker, names[1]) == [(0, None, None, [("h", None), ("h", b""), ("h", b"x")]), (0, b"k", None, [])]


def test_a_record_without_a_timestamp_is_sent_on_without_one(
    broker: str, transport: KafkaPythonTransport, names: tuple[str, str, str]
) -> None:
    member = until_assigned(transport).member
    timeless = Message(names[1], 0, b"k", b"v", -1, [])
    transport.commit(
        [message(names[1], b"a"), timeless, message(names[1], b"b")], [], {0: 1}, member, nonce="n", limit_s=20
    )
    reader = transport.reader(names[1], 0, 0, 3)
    times: list[int] = []
    deadline = time.monotonic() + 20
    while reader.position < reader.end and time.monotonic() < deadline:
        times += reader.next(0.5).timestamps.tolist()
    assert times == [NOW_MS, -1, NOW_MS]


def test_the_partition_of_a_key_is_murmur2s(
    broker: str, transport: KafkaPythonTransport, names: tuple[str, str, str]
) -> None:
    member = until_assigned(transport).member
    keys = [b"key-%d" % i for i in range(20)]
    transport.commit([message(names[1], b"", key, None) for key in keys], [], {0: 1}, member, nonce="n", limit_s=20)
    ours = {key: partition for partition, key, _, _ in read(broker, names[1])}
    producer = KafkaProducer(bootstrap_servers=broker)
    theirs = {key: producer.send(names[2], b"", key=key).get(10).partition for key in keys}
    producer.close()
    assert ours == theirs
    assert set(ours.values()) == {0, 1}


def test_a_member_of_an_old_generation_commits_nothing(
    broker: str, transport: KafkaPythonTransport, topic_prefix: str, names: tuple[str, str, str]
) -> None:
    old = until_assigned(transport).member
    second = joined(broker, topic_prefix, names[0])
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            turns = [transport.poll(0.1, 1), second.poll(0.1, 1)]
            if all(len(turn.assignment) == 1 and turn.member.state == "<stable>" for turn in turns):
                break
        with pytest.raises(TryAgain):
            transport.commit([message(names[1], b"zombie")], [], {0: 99}, old, nonce="n", limit_s=20)
        transport.recover()
        assert committed_at_last(transport) is None
        now = transport.poll(0.1, 1).member
        transport.commit([message(names[1], b"fine")], [], {0: 1}, now, nonce="n", limit_s=20)
    finally:
        second.close(5.0)
    assert [value for _, _, value, _ in read(broker, names[1])] == [b"fine"]
    assert b"zombie" in [value for _, _, value, _ in read(broker, names[1], committed=False)], "the fault was real"


def test_offsets_of_a_failed_transaction_do_not_go_out_with_the_next(
    broker: str, transport: KafkaPythonTransport, names: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An aborted transaction's offsets were seen to be committed by the one after it: 90 became 10."""
    member = until_assigned(transport).member
    transport.commit([message(names[1], b"1")], [], {0: 90}, member, nonce="n", limit_s=20)
    with monkeypatch.context() as patch:
        patch.setattr(transport._producer, "commit_transaction", lambda: time.sleep(30))
        with pytest.raises(TryAgain, match="did not answer"):
            transport.commit([message(names[1], b"2")], [], {0: 95}, member, nonce="n2", limit_s=2)
    transport.recover()
    assert transport.committed(0) == (90, "n"), "its nonce is still the first one's"
    transport.commit([message(names[1], b"3")], [], {1: 5}, member, nonce="n3", limit_s=20)
    assert (transport.committed(0), transport.committed(1)) == ((90, "n"), (5, "n3"))
    assert [value for _, _, value, _ in read(broker, names[1])] == [b"1", b"3"]


def test_a_record_that_is_too_big_is_fatal_and_commits_nothing(
    broker: str, transport: KafkaPythonTransport, names: tuple[str, str, str]
) -> None:
    member = until_assigned(transport).member
    with pytest.raises(Fatal, match="take a record"):
        transport.commit(
            [message(names[1], b"x" * 200_000), message(names[1], b"y")], [], {0: 1}, member, nonce="n", limit_s=20
        )
    transport.recover()
    assert transport.committed(0) is None
    assert read(broker, names[1]) == []


def test_a_stable_instance_that_is_replaced_leaves(broker: str, topic_prefix: str, names: tuple[str, str, str]) -> None:
    """Two processes with one group.instance.id: the older exits, and does not take the place back."""
    first = joined(broker, topic_prefix, names[0], **{"group.instance.id": "one"})
    member = until_assigned(first).member
    second = joined(broker, topic_prefix, names[0], **{"group.instance.id": "one"})
    try:
        until_assigned(second)
        with pytest.raises(OwnershipLost):
            first.commit([message(names[1], b"old")], [], {0: 1}, member, nonce="n", limit_s=20)
        assert second.committed(0) is None
    finally:
        second.close(5.0)
        first.close(5.0)


def test_the_reader_ends_at_the_high_watermark_in_spite_of_aborted_records(
    broker: str, transport: KafkaPythonTransport, names: tuple[str, str, str]
) -> None:
    """Control records and aborted ones are passed over: the position reaches the end."""
    member = until_assigned(transport).member
    transport.commit([message(names[1], b"1")], [], {0: 1}, member, nonce="n", limit_s=20)
    aborting = KafkaProducer(bootstrap_servers=broker, transactional_id=f"{names[1]}.other")
    aborting.init_transactions()
    aborting.begin_transaction()
    aborting.send(names[1], b"aborted", key=b"k", partition=0)
    aborting.flush()
    aborting.abort_transaction()
    aborting.close()
    beginning, end = transport.bounds(names[1], 0)
    reader = transport.reader(names[1], 0, beginning, end)
    values: list[bytes | None] = []
    deadline = time.monotonic() + 20
    while reader.position < reader.end and time.monotonic() < deadline:
        values += reader.next(0.5).values
    assert (reader.position, values) == (end, [b"1"])


def test_a_reader_stops_where_it_was_told_to(
    broker: str, transport: KafkaPythonTransport, names: tuple[str, str, str]
) -> None:
    fill(broker, names[0], 20)
    reader = transport.reader(names[0], 0, 3, 9)
    values: list[bytes | None] = []
    deadline = time.monotonic() + 20
    while reader.position < reader.end and time.monotonic() < deadline:
        values += reader.next(0.5).values
    assert values == [b"%d" % i for i in range(3, 9)]


def test_at_least_once_commits_offsets_and_writes_states_after_them(
    broker: str, topic_prefix: str, names: tuple[str, str, str]
) -> None:
    transport = KafkaPythonTransport(
        bootstrap_servers=[broker], group=topic_prefix, input_topic=names[0], exactly_once=False
    )
    transport.connect()
    transport.join()
    member = until_assigned(transport).member
    transport.commit([message(names[1], b"a")], [message(names[2], b"s")], {0: 3}, member, nonce="n", limit_s=20)
    assert transport.committed(0) == (3, "n")
    transport.close(5.0)
    assert [len(read(broker, topic)) for topic in names[1:]] == [1, 1]


def test_a_call_that_hangs_is_left_behind() -> None:
    began = time.monotonic()
    with pytest.raises(TryAgain, match="did not answer"):
        within(0.2, lambda: time.sleep(5))
    assert time.monotonic() - began < 3
