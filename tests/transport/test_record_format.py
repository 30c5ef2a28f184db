"""Records of the log's format are written as kafka-python writes them, and read back as they were."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.record.memory_records import MemoryRecordsBuilder

from lstmstream.records import RecordBatch
from lstmstream.transport.clients.kafka_python_producer import _encode, _parts
from lstmstream.transport.record_format import decode_records, encode_records, record_bytes_at_most, varint
from tests.serve.codec_oracle import hostile_records, records_alike
from tests.transport.batches import varint as plain_varint

pytestmark = pytest.mark.usefixtures("either_codec")

CONFIG = {"message_version": 2, "compression_attrs": 0, "batch_size": 262_144}
content = st.none() | st.binary(max_size=20) | st.sampled_from([b"x" * 63, b"x" * 64, b"x" * 8192, b"x" * 20_000])
headers = st.lists(st.tuples(st.text(max_size=4), st.none() | st.binary(max_size=70)), max_size=3)
times = st.integers(-1, 2**41) | st.sampled_from([1_700_000_000_000, -(2**60), 2**60])
records = st.lists(st.tuples(times, content, content, st.just([]) | headers), min_size=1, max_size=30)


def to_batch(rows: list[Any]) -> RecordBatch:
    timestamps = np.array([time for time, *_ in rows], np.int64)
    columns = [[row[i] for row in rows] for i in (1, 2, 3)]
    return RecordBatch.to_write("out", np.zeros(len(rows), np.int64), timestamps, *columns)


@given(records)
@settings(max_examples=300, deadline=None)
def test_a_batch_has_the_bytes_of_the_librarys_builder(rows: list[Any]) -> None:
    library = MemoryRecordsBuilder(2, 0, 1 << 30)
    for time, key, value, of_record in rows:
        library.append(time, key, value, of_record)
    library.close()
    ours = _encode(TopicPartition("out", 0), to_batch(rows), CONFIG).batch.records
    assert ours.is_full()
    assert ours.next_offset() == len(rows)
    ours.close()
    assert bytes(ours.buffer()) == bytes(library.buffer())


@given(records)
@settings(max_examples=300, deadline=None)
def test_records_are_read_back_as_they_were(rows: list[Any]) -> None:
    deltas = [time - rows[0][0] for time, *_ in rows]
    batch = to_batch(rows)
    found = decode_records(encode_records(deltas, batch.keys, batch.values, batch.headers), len(rows))
    assert found.offset_deltas.tolist() == list(range(len(rows)))
    assert found.timestamp_deltas.tolist() == deltas
    assert (found.keys, found.values) == (batch.keys, batch.values)
    assert [list(of_record) for of_record in found.headers] == batch.headers


@pytest.mark.parametrize(
    "value", [0, 1, -1, 63, 64, -64, -65, 8191, 8192, 16_383, 16_384, 2**31, -(2**31), 2**62, -(2**62)]
)
def test_varints(value: int) -> None:
    assert varint(value) == plain_varint(value)


@given(records, st.integers(100, 3_000))
@settings(max_examples=200, deadline=None)
def test_batches_are_no_larger_than_allowed(rows: list[Any], batch_bytes: int) -> None:
    batch = to_batch(rows)
    parts = list(_parts(batch, batch_bytes))
    assert [value for part in parts for value in part.values] == batch.values
    bounds = record_bytes_at_most(batch.keys, batch.values, batch.headers)
    for part in parts:
        encoded = _encode(TopicPartition("out", 0), part, CONFIG).batch.records
        encoded.close()
        assert len(part) == 1 or len(encoded.buffer()) <= batch_bytes
    assert sum(bounds) >= sum(len(encode_records([0], [k], [v], [h])) for _, k, v, h in rows)


@given(st.binary(max_size=60), st.integers(0, 5))
@settings(max_examples=2_000, deadline=None)
def test_any_bytes_are_read_or_refused(body: bytes, count: int) -> None:
    try:
        found = decode_records(body, count)
    except ValueError:
        return
    assert len(found.keys) == count


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_records_is_refused(count: int) -> None:
    body = encode_records([0, 1], [b"a", b"b"], [b"v", None], [[], []])
    with pytest.raises(ValueError, match="records"):
        decode_records(body, count)


def test_damaged_records_are_read_or_refused_alike() -> None:
    source, read = random.Random(2), 0
    for _ in range(5_000):
        read += records_alike(*hostile_records(source))
    assert 500 < read < 4_500


def test_deltas_beyond_64_bits_are_written_by_python() -> None:
    found = encode_records([2**63, 1], [b"k", None], [b"v", b""], [[("n", b"x")], []])
    assert found.startswith(b"*\0\x81" + b"\x80" * 8 + b"\x02\0\x02k\x02v\x02\x02n\x02x")
    assert found.endswith(b"\x0c\0\x02\x02\x01\0\0")


def test_other_sequences_than_lists_are_written_by_python() -> None:
    assert encode_records((1,), (b"k",), (b"v",), ((),)) == encode_records([1], [b"k"], [b"v"], [[]])
