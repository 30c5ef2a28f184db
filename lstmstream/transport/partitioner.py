"""Which partition a key belongs to: murmur2, as Java's clients have it.

The clients' own defaults differ (librdkafka's is CRC32), so that the same key would go elsewhere after a change of
client. Hence no client chooses: the partition is always given.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lstmstream.records import BY_KEY, RecordBatch

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The hash of Kafka's default partitioner, as an unsigned 32-bit number."""
    length = len(data)
    h = _SEED ^ length
    whole = length & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if length > whole:
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


@lru_cache(maxsize=1 << 17)
def _positive_hash(key: bytes) -> int:
    return murmur2(key) & 0x7FFFFFFF


def partition_of(key: bytes | None, partitions: int) -> int:
    """The partition of a key in a topic of so many; a null key goes to 0."""
    return 0 if key is None else _positive_hash(key) % partitions


def partitions_of(batch: RecordBatch, partitions: int) -> list[int]:
    """The partition of each record: the one that it names, or that of its key."""
    chosen: list[int] = batch.partitions.tolist()
    for row in np.flatnonzero(batch.partitions == BY_KEY).tolist():
        chosen[row] = partition_of(batch.keys[row], partitions)
    return chosen
