"""A key's partition: Java's murmur2."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2 as kafka_python_murmur2

from lstmstream.records import RecordBatch
from lstmstream.transport.partitioner import murmur2, partition_of, partitions_of, partitions_of_keys

# From the tests of Kafka's own client (UtilsTest.testMurmur2), as signed numbers there.
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "signed"), JAVA.items())
def test_the_hash_is_javas(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed % (1 << 32)


@given(st.binary(max_size=40))
def test_the_hash_is_the_other_clients(key: bytes) -> None:
    assert murmur2(key) == kafka_python_murmur2(key) % (1 << 32)


def test_a_named_partition_stays_and_a_key_decides_elsewhere() -> None:
    keys = [b"abc", b"abc", None, b"", b"21"]
    batch = RecordBatch.to_write("t", np.array([3, -1, -1, -1, 0]), np.zeros(5, dtype=np.int64), keys, [b"v"] * 5)
    assert partitions_of(batch, 7) == [3, 479470107 % 7, 0, partition_of(b"", 7), 0]
    assert partition_of(b"foobar", 7) == (-790332482 & 0x7FFFFFFF) % 7


@given(st.lists(st.none() | st.binary(max_size=40)), st.integers(1, 50))
def test_many_keys_at_once_go_where_each_goes(keys: list[bytes | None], partitions: int) -> None:
    assert partitions_of_keys(keys, partitions).tolist() == [partition_of(key, partitions) for key in keys]
