"""Bytes of the log that no client can decode, by a proxy that changes what the broker answers."""

from __future__ import annotations

import gzip
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.record.legacy_records import LegacyRecordBatchBuilder
from kafka.structs import OffsetAndMetadata

from lstmstream.errors import TryAgain, UnreadableRecords
from lstmstream.records import NO_TIMESTAMP, RecordBatch, UnreadableValue, concatenate
from lstmstream.transport.clients.choose import open_client
from lstmstream.transport.kafka import KafkaTransport
from lstmstream.transport.ports import LogReader
from lstmstream.transport.security import SecuritySettings
from tests.broker.damage import replacing
from tests.broker.harness import RunningDaemon, admin, committed_offsets, create_topics, read_all, write_config
from tests.broker.proxy import Api, KafkaProxy
from tests.models import random_model

sys.path.append(str(Path(__file__).parents[1] / "transport"))
from tests.transport.batches import BAD_RECORDS, DAMAGED, batch, record

# What librdkafka does not look at: it hands out the records that it finds.
TAKEN_BY_LIBRDKAFKA = {
    "too many records",
    "huge number of records",
    "too few records",
    "negative number of records",
    "offsets that go back",
    "offset outside",
}
# Records that can be read, but for a header.
STRANGE = {
    "null name of a header": record(1, headers=[(None, b"1"), (b"a", b"2")]),
    "name of a header that is not UTF-8": record(1, headers=[(b"\xff\xfe", b"1"), (b"a", b"2")]),
    "null value of a header": record(1, headers=[(b"a", None)]),
    "no key and no value": record(1, None, key=None),
}
NOW_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def topic(broker: str) -> str:
    """Five records in three batches: of offset 0, of 1 to 3, and of 4."""
    name = f"unreadable-{uuid.uuid4().hex[:12]}.in"  # made again where tests of other files come between
    create_topics(broker, [name], partitions=1)
    fill(broker, name)
    return name


def fill(broker: str, topic: str, values: tuple[bytes, ...] = (b"v",) * 5) -> None:
    producer = KafkaProducer(bootstrap_servers=broker, linger_ms=500)
    for number, value in enumerate(values):
        producer.send(topic, key=b"k", value=value, timestamp_ms=NOW_MS + number, partition=0)
        if number in (0, 3, 4):
            producer.flush()
    producer.close()


@pytest.fixture
def proxy(broker: str) -> Iterator[KafkaProxy]:
    with KafkaProxy(broker) as between:
        yield between


def transport_of(client: str, servers: str, topic: str, group: str = "unreadable") -> KafkaTransport:
    library = open_client(client, servers=[servers], group=group, properties={}, security=SecuritySettings())
    return KafkaTransport(library, group=group, input_topic=topic)


def read_on(reader: LogReader, seconds: int = 60) -> RecordBatch:
    found = []
    for _ in range(seconds * 2):
        if reader.position >= reader.end:
            return concatenate(found)
        found.append(reader.next(0.5))
    raise AssertionError(f"the reader does not come past offset {reader.position}")


@pytest.mark.parametrize("name", DAMAGED)
def test_a_reader_names_the_batch_and_goes_on_after_it(client: str, proxy: KafkaProxy, topic: str, name: str) -> None:
    if client == "confluent" and name in TAKEN_BY_LIBRDKAFKA:
        return
    proxy.change_answers(Api.FETCH, replacing(1, DAMAGED[name][0]))
    transport = transport_of(client, proxy.servers, topic)
    transport.connect()
    reader = transport.open_reader(topic, 0, 0, 5)
    found: list[RecordBatch] = []
    said: list[UnreadableRecords] = []
    try:
        for _ in range(4):
            try:
                found.append(read_on(reader))
                break
            except UnreadableRecords as error:
                said.append(error)
                reader.position = error.next_offset
        assert said[0].first >= 1
        assert f"{topic}[0]@{said[0].first}: " in str(said[0])
        assert 4 in concatenate(found).offsets
    finally:
        reader.close()
        transport.close(2.0)


@pytest.mark.parametrize("name", [*BAD_RECORDS, *STRANGE])
def test_a_reader_hands_out_the_record_and_its_neighbours(
    client: str, proxy: KafkaProxy, topic: str, name: str
) -> None:
    bad = batch([record(0), BAD_RECORDS[name][0] if name in BAD_RECORDS else STRANGE[name], record(2)], base=1)
    proxy.change_answers(Api.FETCH, replacing(1, bad))
    transport = transport_of(client, proxy.servers, topic)
    transport.connect()
    reader = transport.open_reader(topic, 0, 0, 5)
    records = read_on(reader)
    assert records.offsets.tolist() == [0, 1, 2, 3, 4]
    if client == "kafka-python":  # the other one overlooks some faults of headers
        assert isinstance(records.values[2], UnreadableValue) == (name in BAD_RECORDS)
    reader.close()
    transport.close(2.0)


@pytest.mark.parametrize("where", ["reader", "member"])
def test_no_record_of_a_batch_is_left_out(
    client: str, proxy: KafkaProxy, topic: str, topic_prefix: str, where: str
) -> None:
    """A gzip stream may have several members, which librdkafka does not know: it gives the first one's records."""
    three = [record(0), record(1), record(2)]
    members = gzip.compress(three[0]) + gzip.compress(three[1] + three[2])
    proxy.change_answers(Api.FETCH, replacing(1, batch(three, base=1, attributes=1, payload=members)))
    transport = transport_of(client, proxy.servers, topic, group=topic_prefix)
    transport.connect()
    found: list[int] = []
    if where == "reader":
        reader = transport.open_reader(topic, 0, 0, 5)
        found += read_on(reader).offsets.tolist()
        reader.close()
    else:
        transport.join()
        resumed = False
        deadline_s = time.monotonic() + 60
        while len(found) < 5 and time.monotonic() < deadline_s:
            polled = transport.poll(0.2, 100)
            if not resumed and 0 in polled.assignment:
                transport.resume(0, 0)
                resumed = True
            found += polled.records.offsets.tolist()
    transport.close(2.0)
    assert found == [0, 1, 2, 3, 4]


def test_a_record_of_the_oldest_format_has_no_timestamp(client: str, proxy: KafkaProxy, topic: str) -> None:
    """On both clients, so that it is the same dead letter: librdkafka gives 1970."""
    builder = LegacyRecordBatchBuilder(0, 0, 10_000)
    builder.append(1, None, b"k", b"old")
    proxy.change_answers(Api.FETCH, replacing(1, bytes(builder.build())))
    transport = transport_of(client, proxy.servers, topic)
    transport.connect()
    reader = transport.open_reader(topic, 0, 0, 5)
    records = read_on(reader)
    assert dict(zip(records.values, records.timestamps.tolist(), strict=True))[b"old"] == NO_TIMESTAMP
    reader.close()
    transport.close(2.0)


@pytest.mark.parametrize("name", ["CRC", "gzip", "length of a record", "magic", "no length"])
def test_a_member_of_the_group_names_it(
    client: str, proxy: KafkaProxy, topic: str, topic_prefix: str, name: str
) -> None:
    """Where librdkafka says nothing, once it is told again where to read, as the fetch guard does."""
    proxy.change_answers(Api.FETCH, replacing(1, DAMAGED[name][0]))
    transport = transport_of(client, proxy.servers, topic, topic_prefix)
    transport.connect()
    transport.join()
    resumed, said = False, None
    for number in range(600):
        try:
            polled = transport.poll(0.1, 100)
        except UnreadableRecords as error:
            said = error
            break
        except TryAgain:
            continue
        if polled.membership.valid and 0 in polled.assignment and (not resumed or number % 40 == 0):
            transport.resume(0, polled.positions.get(0, 0))
            resumed = True
    transport.close(2.0)
    assert said is not None
    assert f"{topic}[0]@{said.first}: the batch of offsets" in str(said)
    assert 1 <= said.first <= 2


def test_a_daemon_names_it_and_goes_on_once_the_group_is_moved(
    broker: str, client: str, proxy: KafkaProxy, topic_prefix: str, tmp_path: Path
) -> None:
    """What the last line advises works, and a record that alone is bad is a dead letter."""
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=1)
    fill(broker, f"{name}.in", tuple(b'{"amount": %d}' % number for number in range(5)))
    one_bad = batch([record(0, b'{"amount": 1}'), BAD_RECORDS["value beyond its end"][0], record(2, b"{}")], base=1)
    config = write_config(tmp_path / "c.yaml", name=name, model=random_model(tmp_path, hidden=4), servers=proxy.servers)
    proxy.change_answers(Api.FETCH, replacing(1, DAMAGED["CRC"][0], holding=b'"amount": 1'))
    with RunningDaemon(config, tmp_path / "log") as daemon:
        assert daemon.wait_end() == 1, daemon.last_words()
        said = [line["message"] for line in daemon.log_lines if line["level"] == "error"]
        assert f"{name}.in[0]@1: the batch of offsets 1 to 3 cannot be decoded: its CRC" in said[-1]
        assert "--to-offset 4" in said[-1]
    assert committed_offsets(broker, name)[0] == 1, "what was before it is answered"
    with admin(broker) as kafka:
        kafka.alter_group_offsets(name, {TopicPartition(f"{name}.in", 0): OffsetAndMetadata(4, "", -1)})
    with RunningDaemon(config, tmp_path / "log2") as daemon:
        daemon.wait(lambda: committed_offsets(broker, name)[0] == 5, "the last event answered")
        assert daemon.sigterm() == 0, daemon.last_words()
    predictions = [r.value for r in read_all(broker, f"{name}.out", partitions=1)]
    assert len(predictions) == 2

    other = f"{name}-other"
    config = write_config(
        tmp_path / "d.yaml",
        name=other,
        model=random_model(tmp_path, hidden=4),
        servers=proxy.servers,
        input={"topic": f"{name}.in"},
    )
    proxy.change_answers(Api.FETCH, replacing(1, one_bad, holding=b'"amount": 1'))
    with RunningDaemon(config, tmp_path / "log3") as daemon:
        daemon.wait(lambda: committed_offsets(broker, other).get(0) == 5, "all answered")
        assert daemon.sigterm() == 0, daemon.last_words()
    dead = list(read_all(broker, f"{other}.dead-letter", partitions=1))
    headers = dict(dead[0].headers)
    assert headers["lstmstream.stage"] == b"decode"
    assert headers["__streams.errors.offset"] == b"2"
    assert len(dead) == 1
