"""The transport over each client library, against a real broker: what the libraries get wrong, one claim a test."""

from __future__ import annotations

import gc
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from lstmstream.errors import CannotServe, OwnershipLost, RecordRefused, TryAgain
from lstmstream.records import Headers, RecordBatch, concatenate
from lstmstream.transport.clients.choose import open_client
from lstmstream.transport.clients.kafka_python_consumer import KafkaPythonConsumer
from lstmstream.transport.kafka import KafkaTransport
from lstmstream.transport.ports import CommittedOffset, LogReader, Membership, PollResult
from lstmstream.transport.security import SecuritySettings
from tests.broker.harness import admin, in_transaction
from tests.broker.proxy import Api, KafkaProxy
from tests.transport.hanging import LONG_S, leave_behind

NOW_MS = 1_700_000_000_000
SHORT = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}
CLIENTS = ("kafka-python", "confluent")


class Names(NamedTuple):
    group: str
    input: str
    output: str
    state: str


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def names(broker: str, topic_prefix: str) -> Names:
    """An input, an output and a state topic with two partitions each; a record may have 100,000 bytes."""
    found = Names(topic_prefix, f"{topic_prefix}.in", f"{topic_prefix}.out", f"{topic_prefix}.state")
    configs = {"retention.ms": "-1", "max.message.bytes": "100000"}
    with admin(broker) as kafka:
        kafka.create_topics(
            {name: {"num_partitions": 2, "configs": configs} for name in found[1:]}, wait_for_metadata=True
        )
    return found


@pytest.fixture
def proxy(broker: str) -> Iterator[KafkaProxy]:
    """Before the broker; it outlives the clients of `make` where it is named before that."""
    with KafkaProxy(broker) as made:
        yield made


Make = Callable[..., KafkaTransport]


@pytest.fixture
def make(broker: str, names: Names, client: str) -> Iterator[Make]:
    """Makes members of the group, connected and joined; closed when the test is over."""
    made: list[KafkaTransport] = []

    def joined(
        *,
        exactly_once: bool = True,
        instance: str | None = None,
        servers: str = broker,
        join: bool = True,
        **properties: int | str,
    ) -> KafkaTransport:
        given: dict[str, int | str] = {**SHORT, **{k.replace("_", "."): v for k, v in properties.items()}}
        if instance is not None:
            given["group.instance.id"] = instance
        library = open_client(
            client, servers=[servers], group=names.group, properties=given, security=SecuritySettings()
        )
        transport = KafkaTransport(
            library, group=names.group, input_topic=names.input, exactly_once=exactly_once, instance=instance
        )
        made.append(transport)
        transport.connect()
        if join:
            transport.join()
        return transport

    yield joined
    for transport in made:
        transport.close(5.0)


def poll_until(
    transport: KafkaTransport, good: Callable[[PollResult], bool], *others: KafkaTransport, timeout_s: float = 120
) -> PollResult:
    """Polls until a result is good; other members are polled too, so that they take part in rebalances."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for other in others:
            other.poll(0.05, 100)
        polled = transport.poll(0.05, 100)
        if good(polled):
            return polled
    raise AssertionError(f"not within {timeout_s:g} s")


def until_assigned(transport: KafkaTransport, partitions: int = 2, *others: KafkaTransport) -> PollResult:
    return poll_until(transport, lambda p: p.membership.valid and len(p.assignment) == partitions, *others)


def commit(
    transport: KafkaTransport,
    membership: Membership,
    offsets: dict[int, int],
    outputs: Sequence[RecordBatch] = (),
    states: Sequence[RecordBatch] = (),
    nonce: str = "n",
    timeout_s: float = 20,
) -> None:
    transport.commit(outputs, states, offsets, nonce=nonce, membership=membership, timeout_s=timeout_s)


def make_producer_of(transport: KafkaTransport, membership: Membership) -> None:
    """The one that its first commit would make: its transactional id names the member."""
    transport._take_name(membership.member_id)
    transport.recover()


def commit_at_last(
    transport: KafkaTransport,
    membership: Membership,
    offsets: dict[int, int],
    outputs: Sequence[RecordBatch],
    nonce: str = "n",
) -> None:
    """As the daemon does: again until it works; a client may have to try with smaller batches."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return commit(transport, membership, offsets, outputs, nonce=nonce)
        except RecordRefused:
            raise
        except TryAgain:
            assert time.monotonic() < deadline
            transport.recover()


def batch(
    topic: str,
    values: Sequence[bytes | None],
    *,
    keys: Sequence[bytes | None] | None = None,
    partition: int = 0,
    timestamps: Sequence[int] | None = None,
    headers: list[Headers] | None = None,
) -> RecordBatch:
    count = len(values)
    return RecordBatch.to_write(
        topic,
        np.full(count, partition, dtype=np.int64),
        np.array([NOW_MS] * count if timestamps is None else timestamps, dtype=np.int64),
        [b"k"] * count if keys is None else list(keys),
        list(values),
        headers,
    )


def committed_at_last(transport: KafkaTransport, partition: int = 0) -> CommittedOffset | None:
    """The committed offset, asked for again where the broker takes its time, as the daemon does."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return transport.committed_offsets([partition]).get(partition)
        except TryAgain:
            assert time.monotonic() < deadline, "no answer within 60 s"


def fill(broker: str, topic: str, count: int, *, partition: int = 0, first: int = 0) -> None:
    producer = KafkaProducer(bootstrap_servers=broker)
    for i in range(first, first + count):
        producer.send(topic, b"%d" % i, key=b"k", partition=partition, timestamp_ms=NOW_MS + i)
    producer.close()


def read(broker: str, topic: str, *, committed: bool = True) -> list[tuple[int, bytes | None, bytes | None, Any]]:
    """Everything in the topic, as a reader sees it now."""
    consumer = KafkaConsumer(
        bootstrap_servers=broker,
        isolation_level="read_committed" if committed else "read_uncommitted",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    at = [TopicPartition(topic, partition) for partition in range(2)]
    consumer.assign(at)
    consumer.seek_to_beginning(*at)
    ends = consumer.end_offsets(at)
    found = []
    deadline = time.monotonic() + 60
    while any(consumer.position(place) < ends[place] for place in at):
        assert time.monotonic() < deadline
        for records in consumer.poll(200).values():
            found += [(record.partition, record.key, record.value, list(record.headers)) for record in records]
    consumer.close()
    return found


def values_in(broker: str, topic: str, *, committed: bool = True) -> list[bytes | None]:
    return [value for _, _, value, _ in read(broker, topic, committed=committed)]


def read_to_end(reader: LogReader) -> RecordBatch:
    """All that a reader has."""
    found: list[RecordBatch] = []
    deadline = time.monotonic() + 60
    while reader.position < reader.end:
        assert time.monotonic() < deadline, f"stuck at {reader.position} of {reader.end}"
        found.append(reader.next(0.5))
    reader.close()
    return RecordBatch(
        found[0].topic,
        np.concatenate([b.partitions for b in found]),
        np.concatenate([b.offsets for b in found]),
        np.concatenate([b.timestamps for b in found]),
        [key for b in found for key in b.keys],
        [value for b in found for value in b.values],
        [headers for b in found for headers in b.headers],
    )


class OpenTransaction:
    """Somebody else's transaction, left open."""

    def __init__(self, broker: str, topic: str, value: bytes) -> None:
        self._producer = KafkaProducer(bootstrap_servers=broker, transactional_id=f"other.{uuid.uuid4().hex}")
        self._producer.init_transactions()
        self._producer.begin_transaction()
        self._producer.send(topic, value, key=b"k", partition=0)
        self._producer.flush()

    def end(self, *, commit: bool) -> None:
        if commit:
            self._producer.commit_transaction()
        else:
            self._producer.abort_transaction()
        self._producer.close()


# -- reading


def test_records_come_only_after_resume(broker: str, make: Make, names: Names) -> None:
    """A new partition is silent until the daemon says where to go on."""
    transport = make()
    until_assigned(transport)
    fill(broker, names.input, 5)
    assert sum(len(transport.poll(0.1, 100).records) for _ in range(10)) == 0
    transport.resume(0, 2)
    values: list[bytes | None] = []
    records = []
    deadline = time.monotonic() + 60
    while len(values) < 3 and time.monotonic() < deadline:
        records.append(transport.poll(0.2, 100).records)
        values += records[-1].values
    assert values == [b"2", b"3", b"4"]
    assert [offset for r in records for offset in r.offsets.tolist()] == [2, 3, 4]
    assert [t for r in records for t in r.timestamps.tolist()] == [NOW_MS + 2, NOW_MS + 3, NOW_MS + 4]


def test_a_partition_is_read_soon_after_its_resume(broker: str, make: Make, names: Names) -> None:
    """librdkafka sleeps for a second otherwise, each time. On a busy machine anything may take a second once."""
    waits_s = []
    for _ in range(5):
        transport = make()
        until_assigned(transport)
        fill(broker, names.input, 5)
        began = time.monotonic()
        transport.resume(0, 0)
        poll_until(transport, lambda polled: len(polled.records) > 0)
        waits_s.append(time.monotonic() - began)
        if waits_s[-1] < 0.8:
            return
        transport.close(5.0)
    raise AssertionError(f"always late: {waits_s}")


def test_a_poll_is_not_longer_than_it_is_told_and_not_fuller(broker: str, make: Make, names: Names) -> None:
    fill(broker, names.input, 50)
    transport = make()
    until_assigned(transport)
    transport.resume(0, 0)
    sizes = []
    while sum(sizes) < 50:
        sizes.append(len(transport.poll(1.0, 7).records))
    assert max(sizes) <= 7
    began = time.monotonic()
    assert len(transport.poll(0.3, 7).records) == 0
    assert 0.2 < time.monotonic() - began < 60


def test_positions_pass_over_control_records(broker: str, make: Make, names: Names) -> None:
    """Else a group that has read everything would show a lag for ever."""
    transport = make()
    assert until_assigned(transport).positions == {}
    OpenTransaction(broker, names.input, b"1").end(commit=True)
    OpenTransaction(broker, names.input, b"aborted").end(commit=False)
    transport.resume(0, 0)
    deadline = time.monotonic() + 60
    while transport.stable_end_offsets([0, 1]) != {
        0: 4,
        1: 0,
    }:  # two records, two control records, these a little later
        assert time.monotonic() < deadline
    seen: list[bytes | None] = []

    def at_end(polled: PollResult) -> bool:
        seen.extend(polled.records.values)
        return polled.positions == {0: 4}

    poll_until(transport, at_end)
    assert seen == [b"1"]


def test_the_stable_end_stops_before_an_open_transaction(broker: str, make: Make, names: Names) -> None:
    fill(broker, names.input, 3)
    transport = make()
    opened = OpenTransaction(broker, names.input, b"open")
    fill(broker, names.input, 2)
    assert transport.stable_end_offsets([0]) == {0: 3}
    assert transport.offset_range(names.input, 0) == (0, 6), "the high watermark is behind it"
    opened.end(commit=True)
    deadline = time.monotonic() + 60
    while transport.stable_end_offsets([0]) != {0: 7}:
        assert time.monotonic() < deadline


def test_a_position_outside_of_the_log_is_said(broker: str, make: Make, names: Names) -> None:
    fill(broker, names.input, 10)
    with admin(broker) as kafka:
        kafka.delete_records({TopicPartition(names.input, 0): 5})
    transport = make()
    until_assigned(transport)
    for _ in range(10):  # silent, though there is no offset 0
        assert len(transport.poll(0.05, 10).records) == 0
    transport.resume(0, 5)
    poll_until(transport, lambda polled: len(polled.records) > 0)
    transport.resume(0, 2)
    with pytest.raises(CannotServe, match=f"are gone .*{names.input}"):
        poll_until(transport, lambda _: False, timeout_s=60)


class NotUtf8(str):
    """A header's name that Kafka takes and no client can read as text."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"


def send_unreadable(broker: str, topic: str) -> None:
    producer = KafkaProducer(bootstrap_servers=broker)
    producer.partitions_for(topic)
    producer._accumulator.append(TopicPartition(topic, 0), NOW_MS, b"k", b"v", [(NotUtf8("h"), b"x")])
    producer._sender.wakeup()
    producer.flush()
    producer.close()


def test_a_header_whose_name_is_no_text_does_not_hold_up_its_record(broker: str, make: Make, names: Names) -> None:
    """kafka-python gave up the whole batch, and its next poll went round for ever."""
    fill(broker, names.input, 2)
    send_unreadable(broker, names.input)
    fill(broker, names.input, 2)
    transport = make()
    until_assigned(transport)
    transport.resume(0, 0)
    records: list[RecordBatch] = []

    def all_there(polled: PollResult) -> bool:
        records.append(polled.records)
        return sum(map(len, records)) == 5

    poll_until(transport, all_there)
    everything = concatenate(records)
    assert everything.offsets.tolist() == [0, 1, 2, 3, 4]
    assert everything.values[2] == b"v"
    assert list(everything.headers[2]) == []
    reader = transport.open_reader(names.input, 0, 0, 5)
    assert read_to_end(reader).offsets.tolist() == [0, 1, 2, 3, 4]
    reader.close()


def test_the_timestamp_0_stays_in_1970(make: Make, names: Names) -> None:
    """librdkafka takes it for now."""
    transport = make()
    membership = until_assigned(transport).membership
    commit(transport, membership, {0: 1}, [batch(names.output, [b"a"], timestamps=[0])])
    found = read_to_end(transport.open_reader(names.output, 0, 0, 1))
    assert found.timestamps[0] <= 1


def test_join_again_gives_a_new_member_and_new_epochs(broker: str, make: Make, names: Names) -> None:
    fill(broker, names.input, 5)
    transport = make()
    before = until_assigned(transport)
    transport.join()
    after = until_assigned(transport)
    assert set(before.assignment.values()).isdisjoint(after.assignment.values())
    assert before.membership.token != after.membership.token
    transport.resume(0, 0)
    poll_until(transport, lambda polled: len(polled.records) > 0)
    with pytest.raises(TryAgain):
        commit(transport, before.membership, {0: 1})
    transport.recover()
    commit(transport, transport.poll(0.05, 1).membership, {0: 1})


class Interrupted:
    """A member with two partitions, of which the first is taken and given back in the middle of what was fetched."""

    def __init__(self, broker: str, transport: KafkaTransport, topic: str) -> None:
        self._transport = transport
        self._topic = topic
        self._producer = KafkaProducer(bootstrap_servers=broker, linger_ms=0)
        self._written = [0, 0]
        self._random = random.Random(17)
        until_assigned(transport)
        for partition in (0, 1):
            transport.resume(partition, 0)

    def round(self, patience_s: float) -> bool:
        """Whether all of the first partition was read from where it was resumed."""
        self._write(0, 40)
        if self._random.random() < 0.7:
            self._write(1, self._random.randrange(1, 6))
        for _ in range(self._random.randrange(4)):  # half taken
            self._transport.poll(0.05, 3)
        self._reassign(0)
        if self._random.random() < 0.8:
            self._write(1, self._random.randrange(1, 6))
        for _ in range(self._random.randrange(4)):  # what the first has is put aside, the second may take its slot
            assert 0 not in self._transport.poll(0.02, 5).records.partitions, "silent until it is resumed"
        start = self._random.randrange(self._written[0])
        self._transport.resume(0, start)
        return self._read_from(start, patience_s)

    def _read_from(self, start: int, patience_s: float) -> bool:
        wanted = list(range(start, self._written[0]))
        found: list[int] = []
        deadline = time.monotonic() + patience_s
        while found != wanted and time.monotonic() < deadline:
            records = self._transport.poll(0.05, 100).records
            found += records.offsets[records.partitions == 0].tolist()
            assert found == wanted[: len(found)]
        return found == wanted

    def _write(self, partition: int, count: int) -> None:
        for _ in range(count):
            self._producer.send(self._topic, b"v", partition=partition)
        self._producer.flush()
        self._written[partition] += count

    def _reassign(self, partition: int) -> None:
        """As the library does on its own thread when a partition comes back in the next rebalance."""
        thread = self._transport._consumer
        assert thread is not None
        at = [TopicPartition(self._topic, partition)]
        thread._object.on_partitions_assigned(at)  # type: ignore[union-attr]
        self._transport.poll(0.0, 1)  # hands out the new epoch

    def close(self) -> None:
        self._producer.close()


@pytest.mark.parametrize("client", ["kafka-python"], indirect=True)
def test_what_was_fetched_before_a_partition_came_again_does_not_silence_it(
    broker: str, make: Make, names: Names
) -> None:
    interrupted = Interrupted(broker, make(), names.input)
    assert all(interrupted.round(patience_s=60) for _ in range(100))
    interrupted.close()


@pytest.mark.parametrize("client", ["kafka-python"], indirect=True)
def test_the_library_still_silences_it(broker: str, make: Make, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the remedy; if this fails, the remedy can go."""
    monkeypatch.setattr(KafkaPythonConsumer, "_drop_parked", lambda _self, _at: None)
    interrupted = Interrupted(broker, make(), names.input)
    assert not all(interrupted.round(patience_s=1) for _ in range(100))
    interrupted.close()


# -- readers


def test_the_reader_ends_at_the_high_watermark_in_spite_of_aborted_records(
    broker: str, make: Make, names: Names
) -> None:
    """Control records and aborted ones are passed over: the position reaches the end."""
    transport = make()
    membership = until_assigned(transport).membership
    commit(transport, membership, {0: 1}, [batch(names.output, [b"1"])])
    OpenTransaction(broker, names.output, b"aborted").end(commit=False)
    beginning, end = 0, 0
    deadline = time.monotonic() + 60
    while end < 4 and time.monotonic() < deadline:  # the broker writes the marks of a transaction's end a little later
        beginning, end = transport.offset_range(names.output, 0)
    reader = transport.open_reader(names.output, 0, beginning, end)
    assert read_to_end(reader).values == [b"1"]
    assert (reader.position, end) == (4, 4)


def test_readers_are_open_side_by_side_and_stop_where_they_were_told_to(broker: str, make: Make, names: Names) -> None:
    fill(broker, names.input, 20)
    fill(broker, names.input, 20, partition=1, first=100)
    transport = make()
    first, second, third = (
        transport.open_reader(names.input, partition, start, end)
        for partition, start, end in ((0, 3, 9), (1, 0, 20), (0, 15, 20))
    )
    assert read_to_end(second).values == [b"%d" % i for i in range(100, 120)]
    assert read_to_end(first).values == [b"%d" % i for i in range(3, 9)]
    found = read_to_end(third)
    assert found.values == [b"%d" % i for i in range(15, 20)]
    assert (found.offsets.tolist(), found.partitions.tolist()) == (list(range(15, 20)), [0] * 5)
    assert first.position == 9


# -- writing


def test_a_transaction_is_whole_and_bears_its_nonce(broker: str, make: Make, names: Names) -> None:
    transport = make()
    membership = until_assigned(transport).membership
    outputs = [batch(names.output, [b"a"]), batch(names.output, [b"b"], partition=1)]
    commit(transport, membership, {0: 7}, outputs, [batch(names.state, [b"s"])], nonce="me.1")
    assert sorted(value or b"" for value in values_in(broker, names.output)) == [b"a", b"b"]
    assert values_in(broker, names.state) == [b"s"]
    assert transport.committed_offsets([0, 1]) == {0: CommittedOffset(7, "me.1")}


def test_null_key_null_value_and_null_header_can_be_sent(broker: str, make: Make, names: Names) -> None:
    """A dead letter that could not be sent would stop its partition for ever."""
    transport = make()
    membership = until_assigned(transport).membership
    headers: list[Headers] = [[("h", None), ("h", b""), ("h", b"x")], [], []]
    outputs = [batch(names.output, [None, None, b""], keys=[None, b"k", b""], headers=headers)]
    commit(transport, membership, {0: 1}, outputs)
    assert read(broker, names.output) == [(0, None, None, headers[0]), (0, b"k", None, []), (0, b"", b"", [])]
    beginning, end = transport.offset_range(names.output, 0)
    found = read_to_end(transport.open_reader(names.output, 0, beginning, end))
    assert (found.keys, found.values) == ([None, b"k", b""], [None, None, b""])
    assert [list(h) for h in found.headers] == headers


def test_a_record_without_a_timestamp_is_sent_on_without_one(make: Make, names: Names) -> None:
    transport = make()
    membership = until_assigned(transport).membership
    outputs = [batch(names.output, [b"a", b"v", b"b"], timestamps=[NOW_MS, -1, NOW_MS + 5])]
    commit(transport, membership, {0: 1}, outputs)
    found = read_to_end(transport.open_reader(names.output, 0, 0, 3))
    assert found.timestamps.tolist() == [NOW_MS, -1, NOW_MS + 5]


def test_the_partition_of_a_key_is_murmur2s(broker: str, make: Make, names: Names) -> None:
    transport = make()
    membership = until_assigned(transport).membership
    keys = [b"key-%d" % i for i in range(20)]
    commit(transport, membership, {0: 1}, [batch(names.output, [b""] * 20, keys=keys, partition=-1)])
    ours = {key: partition for partition, key, _, _ in read(broker, names.output)}
    producer = KafkaProducer(bootstrap_servers=broker)
    theirs = {key: producer.send(names.state, b"", key=key).get(10).partition for key in keys}
    producer.close()
    assert ours == theirs
    assert set(ours.values()) == {0, 1}


def test_a_partition_that_the_topic_does_not_have_is_said_at_once(make: Make, names: Names) -> None:
    transport = make()
    membership = until_assigned(transport).membership
    with pytest.raises(TryAgain, match="has only 2 partitions"):
        commit(transport, membership, {0: 1}, [batch(names.output, [b"x"], partition=5)])


def test_many_small_records_pass_where_a_batch_of_them_is_too_big(broker: str, make: Make, names: Names) -> None:
    """The topic takes 100,000 bytes at once, the client's batches are larger."""
    transport = make()
    membership = until_assigned(transport).membership
    values: list[bytes | None] = [b"%04d" % i + b"x" * 2000 for i in range(300)]
    commit_at_last(transport, membership, {0: 1}, [batch(names.output, values)])
    assert values_in(broker, names.output) == values


def test_a_record_that_is_too_big_is_refused_and_commits_nothing(broker: str, make: Make, names: Names) -> None:
    transport = make()
    membership = until_assigned(transport).membership
    with pytest.raises(RecordRefused) as refused:
        commit_at_last(transport, membership, {0: 1}, [batch(names.output, [b"x" * 200_000, b"y"])])
    assert (refused.value.topic, refused.value.too_large) == (names.output, True)
    transport.recover()
    assert transport.committed_offsets([0]) == {}
    assert values_in(broker, names.output) == []


# -- fences and faults


def test_a_member_of_an_old_generation_commits_nothing(broker: str, make: Make, names: Names) -> None:
    transport = make()
    old = until_assigned(transport).membership
    second = make()
    until_assigned(second, 1, transport)
    until_assigned(transport, 1, second)
    with pytest.raises(TryAgain):
        commit(transport, old, {0: 99}, [batch(names.output, [b"zombie"])])
    transport.recover()
    assert committed_at_last(transport) is None
    now = until_assigned(transport, 1, second)
    mine = next(iter(now.assignment))
    commit(transport, now.membership, {mine: 1}, [batch(names.output, [b"fine"])])
    assert values_in(broker, names.output) == [b"fine"]
    assert b"zombie" in values_in(broker, names.output, committed=False), "the fault was real"


def test_a_new_generation_counts_only_with_its_partitions(
    broker: str, proxy: KafkaProxy, make: Make, names: Names
) -> None:
    """The libraries name it as soon as their join is answered. Some of the old partitions may have a new owner then."""
    transport = make(servers=proxy.servers)
    before = until_assigned(transport)
    waiting = proxy.delay(Api.SYNC_GROUP, 3.0)
    second = make()
    poll_until(transport, lambda _: bool(waiting.struck), second)  # its join is answered, its partitions are not
    for _ in range(10):
        polled = transport.poll(0.05, 100)
        assert polled.assignment == before.assignment
        assert not polled.membership.valid, "the new generation is not that of these partitions"
    waiting.lift()
    now = until_assigned(transport, 1, second)
    assert now.membership.token != before.membership.token


def test_committed_offsets_do_not_wait_for_a_rebalance(make: Make, names: Names) -> None:
    """The broker answers nothing else on the connection of a member that is joining; it was seen to take 30 s."""
    transport = make()
    commit(transport, until_assigned(transport).membership, {0: 3}, nonce="n")
    second = make()
    until_assigned(second, 1, transport)
    third = make()
    third.poll(0.5, 1)
    began = time.monotonic()
    while time.monotonic() - began < 2:
        transport.poll(0.05, 1)  # joins again, and waits for the second, which does not poll
    began = time.monotonic()
    assert transport.committed_offsets([0]) == {0: CommittedOffset(3, "n")}
    assert time.monotonic() - began < 20
    until_assigned(third, 0, transport, second)


def test_offsets_and_nonce_of_a_failed_transaction_do_not_go_out_with_the_next(
    broker: str, make: Make, names: Names
) -> None:
    """An aborted transaction's offsets were seen to be committed by the one after it: 90 became 10."""
    transport = make()
    membership = until_assigned(transport).membership
    commit(transport, membership, {0: 90}, [batch(names.output, [b"1"])], nonce="me.1")
    hang_in_commit(transport)
    with pytest.raises(TryAgain, match="did not answer"):
        commit(transport, membership, {0: 95}, [batch(names.output, [b"2"])], nonce="me.2", timeout_s=LONG_S)
    transport.recover()
    assert transport.committed_offsets([0]) == {0: CommittedOffset(90, "me.1")}
    commit(transport, membership, {1: 5}, [batch(names.output, [b"3"])], nonce="me.3")
    assert transport.committed_offsets([0, 1]) == {0: CommittedOffset(90, "me.1"), 1: CommittedOffset(5, "me.3")}
    assert values_in(broker, names.output) == [b"1", b"3"]


def hang_in_commit(transport: KafkaTransport) -> None:
    """The producer's next commit does not return, and commits nothing; it is left behind."""
    writer = transport._writer
    assert writer is not None
    producer = writer.transactional._object
    assert producer is not None
    hanging = threading.Event()

    def hang(_timeout_s: float) -> None:
        hanging.set()
        threading.Event().wait(LONG_S)

    producer.commit = hang  # type: ignore[method-assign]
    leave_behind(transport._bound, hanging)


def test_committed_offsets_wait_for_a_transaction_that_is_pending(make: Make, names: Names) -> None:
    """Whether it goes through is not known yet: an answer now would be a guess."""
    transport = make()
    membership = until_assigned(transport).membership
    commit(transport, membership, {0: 3}, [batch(names.output, [b"1"])], nonce="me.1")
    hang_in_commit(transport)
    with pytest.raises(TryAgain):
        commit(transport, membership, {0: 5}, [batch(names.output, [b"2"])], nonce="me.2", timeout_s=LONG_S)
    with pytest.raises(TryAgain):
        transport.committed_offsets([0], 1.0)
    transport.recover()
    assert committed_at_last(transport) == CommittedOffset(3, "me.1")


def test_close_ends_an_open_transaction(broker: str, make: Make, names: Names) -> None:
    """A reader of the outputs would wait for its timeout otherwise."""
    transport = make()
    membership = until_assigned(transport).membership
    with pytest.raises(RecordRefused):
        commit_at_last(
            transport, membership, {0: 1}, [batch(names.output, [b"y"] * 3), batch(names.state, [b"x" * 200_000])]
        )
    transport.close(5.0)
    with admin(broker) as kafka:
        assert not in_transaction(kafka, names.output, partitions=2)


def test_a_call_that_was_left_behind_writes_nothing_more(broker: str, make: Make, names: Names) -> None:
    """It wakes up after its successor has begun: what it still does meets its own producer, which is fenced."""
    transport = make()
    membership = until_assigned(transport).membership
    make_producer_of(transport, membership)
    writer = transport._writer
    assert writer is not None
    producer = writer.transactional._object
    assert producer is not None
    flush, commit_transaction, woke = producer.flush, producer.commit, []
    hanging, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def late_flush(_timeout_s: float) -> None:
        hanging.set()
        assert go_on.wait(LONG_S)
        woke.append("flush")
        try:
            flush(10.0)
        finally:
            ended.set()

    def late_commit(timeout_s: float) -> None:
        woke.append("commit")
        commit_transaction(timeout_s)

    producer.flush = late_flush  # type: ignore[method-assign]
    producer.commit = late_commit  # type: ignore[method-assign]
    leave_behind(transport._bound, hanging)
    with pytest.raises(TryAgain):
        commit(transport, membership, {0: 50}, [batch(names.output, [b"late"])], timeout_s=LONG_S)
    transport.recover()
    commit_at_last(transport, membership, {0: 2}, [batch(names.output, [b"next"])], nonce="next")
    go_on.set()
    assert ended.wait(LONG_S)
    assert woke == ["flush"], "the steps after the one that was late are not taken"
    assert transport.committed_offsets([0]) == {0: CommittedOffset(2, "next")}
    assert values_in(broker, names.output) == [b"next"]


def test_a_consumer_whose_call_was_left_behind_is_replaced(broker: str, make: Make, names: Names) -> None:
    fill(broker, names.input, 3)
    transport = make()
    until_assigned(transport)
    thread = transport._consumer
    assert thread is not None
    hanging, go_on = threading.Event(), threading.Event()

    def hang(_consumer: object) -> None:
        hanging.set()
        assert go_on.wait(LONG_S)

    leave_behind(transport._bound, hanging)
    with pytest.raises(TryAgain, match="did not answer"):
        thread.call(hang, LONG_S)
    transport.recover()
    go_on.set()
    assert transport._consumer is not thread
    until_assigned(transport)
    transport.resume(0, 0)
    poll_until(transport, lambda polled: len(polled.records) > 0)


def test_a_static_member_that_is_replaced_leaves(make: Make, names: Names) -> None:
    """Two processes with one group.instance.id: the older exits, and does not take the place back."""
    first = make(instance="one")
    membership = until_assigned(first).membership
    second = make(instance="one")
    until_assigned(second)
    with pytest.raises((OwnershipLost, TryAgain)):
        commit(first, membership, {0: 1}, [batch(names.output, [b"old"])])
    assert second.committed_offsets([0]) == {}
    with pytest.raises(OwnershipLost):
        first.recover()


def test_the_later_of_two_static_members_survives_an_earlier_one_that_goes_on_until_it_has_joined(
    broker: str, make: Make, names: Names
) -> None:
    """Starting fences the earlier one's producer. That one makes another, which fences the later one's."""
    earlier = make(instance="one")
    membership = until_assigned(earlier).membership
    later = make(instance="one", join=False)
    commit_at_last(earlier, membership, {0: 1}, [batch(names.output, [b"earlier"])])
    later.join()
    joined = until_assigned(later).membership
    with pytest.raises(OwnershipLost):
        earlier.recover()
    commit_at_last(later, joined, {0: 2}, [batch(names.output, [b"later"])])
    assert later.committed_offsets([0]) == {0: CommittedOffset(2, "n")}
    assert values_in(broker, names.output) == [b"earlier", b"later"]


def test_a_static_member_that_is_replaced_is_told_by_a_poll_too(make: Make) -> None:
    first = make(instance="one")
    until_assigned(first)
    second = make(instance="one")
    until_assigned(second)
    with pytest.raises(OwnershipLost):
        poll_until(first, lambda _: False, second)


# -- at least once


def test_at_least_once_writes_outputs_outside_and_states_inside_a_transaction(
    broker: str, make: Make, names: Names
) -> None:
    transport = make(exactly_once=False)
    membership = until_assigned(transport).membership
    make_producer_of(transport, membership)
    hang_in_commit(transport)
    with pytest.raises(TryAgain):
        commit(
            transport, membership, {0: 3}, [batch(names.output, [b"a"])], [batch(names.state, [b"s"])], timeout_s=LONG_S
        )
    transport.recover()
    assert transport.committed_offsets([0]) == {}
    assert values_in(broker, names.output) == [b"a"], "outputs come first, and stay"
    assert values_in(broker, names.state) == [], "states only with their offsets"
    commit(transport, membership, {0: 3}, [batch(names.output, [b"a"])], [batch(names.state, [b"s"])], nonce="n.2")
    assert transport.committed_offsets([0]) == {0: CommittedOffset(3, "n.2")}
    assert values_in(broker, names.state) == [b"s"]
    commit(transport, membership, {0: 4}, [batch(names.output, [b"b"])], nonce="n.3")  # no states: no transaction
    assert transport.committed_offsets([0]) == {0: CommittedOffset(4, "n.3")}
    assert values_in(broker, names.output) == [b"a", b"a", b"b"]


def test_at_least_once_commits_no_offset_of_an_output_that_was_not_taken(broker: str, make: Make, names: Names) -> None:
    """No transaction fails with it: only a look at each acknowledgement tells."""
    transport = make(exactly_once=False)
    membership = until_assigned(transport).membership
    with pytest.raises(RecordRefused) as refused:
        commit_at_last(transport, membership, {0: 2}, [batch(names.output, [b"small", b"x" * 200_000])])
    assert refused.value.topic == names.output
    transport.recover()
    assert transport.committed_offsets([0]) == {}


def test_at_least_once_fences_states_and_offsets_of_an_old_generation(broker: str, make: Make, names: Names) -> None:
    """A member that was replaced while it slept would write old states over its successor's."""
    transport = make(exactly_once=False)
    old = until_assigned(transport).membership
    second = make(exactly_once=False)
    until_assigned(second, 1, transport)
    until_assigned(transport, 1, second)
    with pytest.raises(TryAgain):
        commit(transport, old, {0: 9}, [], [batch(names.state, [b"zombie"])])
    transport.recover()
    with pytest.raises(TryAgain):
        commit(transport, old, {0: 9}, [batch(names.output, [b"twice"])])
    assert committed_at_last(second) is None
    assert values_in(broker, names.state) == []
    assert values_in(broker, names.output) == [b"twice"]


# -- topics


def test_topics_are_made_and_described(broker: str, make: Make, names: Names) -> None:
    transport = make()
    transport.create(f"{names.group}.made", 3, {"cleanup.policy": "compact"})
    transport.create(f"{names.group}.made", 5, {})  # is there meanwhile
    deadline = time.monotonic() + 60
    while f"{names.group}.made" not in (found := transport.describe([f"{names.group}.made", f"{names.group}.none"])):
        assert time.monotonic() < deadline
    assert list(found) == [f"{names.group}.made"]
    made = found[f"{names.group}.made"]
    assert (made.partitions, made.settings["cleanup.policy"]) == (3, "compact")
    assert str(uuid.UUID(made.topic_id)) == made.topic_id
    with admin(broker) as kafka:
        theirs = kafka.describe_topics([f"{names.group}.made"])[0]["topic_id"]
    assert made.topic_id == str(theirs), "whichever client: the floor records name it"
    assert transport.offset_for_time(names.input, 0, 0) is None


def test_offsets_by_time(broker: str, make: Make, names: Names) -> None:
    fill(broker, names.input, 10)
    transport = make()
    assert transport.offset_for_time(names.input, 0, NOW_MS + 4) == 4
    assert transport.offset_for_time(names.input, 0, NOW_MS + 10) is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kafka-python's: an unclosed socket
def test_a_broker_that_is_not_there_is_said(client: str) -> None:
    library = open_client(client, servers=["127.0.0.1:9"], group="nobody", properties={}, security=SecuritySettings())
    transport = KafkaTransport(library, group="nobody", input_topic="nothing")
    with pytest.raises(TryAgain):
        transport.connect()
    transport.close(1.0)
    gc.collect()


def test_members_that_come_and_go_leave_no_partition_behind(broker: str, make: Make, names: Names) -> None:
    """Real rebalances in the middle of fetched batches: every record is read by whoever owns its partition."""
    first = make()
    until_assigned(first)
    for partition in (0, 1):
        fill(broker, names.input, 400, partition=partition)
        first.resume(partition, 0)
    for _ in range(4):
        first.poll(0.5, 7)  # half taken
        second = make()
        resume_from(second, until_assigned(second, 1, first), 100)
        resume_from(first, until_assigned(first, 1, second), 100)
        second.poll(0.5, 7)
        second.close(5.0)
        polled = until_assigned(first, 2)
        resume_from(first, polled, 250)
        seen: dict[int, list[int]] = {0: [], 1: []}
        deadline = time.monotonic() + 60
        assignment = polled.assignment
        while any(offsets[-1:] != [399] for offsets in seen.values()) and time.monotonic() < deadline:
            polled = first.poll(0.1, 50)
            for partition, epoch in polled.assignment.items():
                if assignment.get(partition) != epoch:  # the group rebalanced once more
                    first.resume(partition, seen[partition][-1] + 1 if seen[partition] else 250)
            assignment = polled.assignment
            for partition in seen:
                seen[partition] += polled.records.offsets[polled.records.partitions == partition].tolist()
        assert seen == {0: list(range(250, 400)), 1: list(range(250, 400))}


def resume_from(transport: KafkaTransport, polled: PollResult, offset: int) -> None:
    for partition in polled.assignment:
        transport.resume(partition, offset)
