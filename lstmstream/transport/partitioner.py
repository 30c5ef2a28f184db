"""Which partition a key belongs to: murmur2, as Java's clients have it.

The clients' own defaults differ (librdkafka's is CRC32), so that the same key would go elsewhere after a change of
client. Hence no client chooses: the partition is always given.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lstmstream.records import BY_KEY, Ints, RecordBatch

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


def partitions_of_keys(keys: Sequence[bytes | None], partitions: int) -> Ints:
    """[N] `partition_of` for N keys at once; no Python code runs for each."""
    texts = [b"" if key is None else key for key in keys] if None in keys else keys
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))  # type: ignore[arg-type]  # no None
    joined = b"".join(texts) + bytes(4)  # type: ignore[arg-type]  # likewise
    words = np.ndarray(len(joined) - 3, "<u4", joined, strides=(1,))  # the little-endian number at each place
    hashes = _murmur2_all(words, np.cumsum(lengths) - lengths, lengths)
    found = (hashes & np.uint32(0x7FFFFFFF)).astype(np.int64) % partitions
    if None in keys:
        found[[key is None for key in keys]] = 0
    return found


def _murmur2_all(words: NDArray[np.uint32], starts: Ints, lengths: Ints) -> NDArray[np.uint32]:
    """[N] `murmur2` of the bytes at `starts`, four of each at a time; uint32 wraps around as it has to."""
    m = np.uint32(_M)
    h = np.uint32(_SEED) ^ lengths.astype(np.uint32)
    for at in range(0, int(lengths.max(initial=0)) & ~3, 4):
        rows: Ints | slice = slice(None) if (whole := lengths >= at + 4).all() else np.flatnonzero(whole)
        k = words[starts[rows] + at] * m
        k = (k ^ k >> np.uint32(24)) * m
        h[rows] = h[rows] * m ^ k
    for rest in (1, 2, 3):
        rows = np.flatnonzero(lengths & 3 == rest)
        k = words[starts[rows] + lengths[rows] - rest] & np.uint32((1 << 8 * rest) - 1)
        h[rows] = (h[rows] ^ k) * m
    h = (h ^ h >> np.uint32(13)) * m
    return h ^ h >> np.uint32(15)


def partitions_of(batch: RecordBatch, partitions: int) -> list[int]:
    """The partition of each record: the one that it names, or that of its key."""
    chosen: list[int] = batch.partitions.tolist()
    for row in np.flatnonzero(batch.partitions == BY_KEY).tolist():
        chosen[row] = partition_of(batch.keys[row], partitions)
    return chosen
