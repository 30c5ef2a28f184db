"""Damage to what a broker answers to a fetch: one batch is replaced by other bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from kafka.record.util import calc_crc32c

_OVERHEAD = 12  # base offset and length


def replacing(base: int, other: bytes, *, holding: bytes = b"") -> Callable[[bytes], bytes]:
    """A change for KafkaProxy: the batch that begins at this offset becomes `other`, of whatever length.

    `holding`: bytes in it, where other topics are read through the same proxy.
    """

    def change(answer: bytes) -> bytes:
        batches = list(_batches(answer))
        if not batches:
            return answer
        first, end = batches[0][0], batches[-1][1]
        parts = [other if offset == base and holding in answer[at:to] else answer[at:to] for at, to, offset in batches]
        content = b"".join(parts)
        size = end - first
        if answer[first - 4 : first] == struct.pack(">i", size):
            return answer[: first - 4] + struct.pack(">i", len(content)) + content + answer[end:]
        before = _unsigned_varint(size + 1)
        assert answer[first - len(before) : first] == before
        return answer[: first - len(before)] + _unsigned_varint(len(content) + 1) + content + answer[end:]

    return change


def _batches(answer: bytes) -> Iterator[tuple[int, int, int]]:
    """Begin, end and first offset of the whole batches of one partition, found by their CRC."""
    at, found = 0, False
    while at + 61 <= len(answer):
        offset, length = struct.unpack_from(">qi", answer, at)
        end = at + _OVERHEAD + length
        sound = answer[at + 16] == 2 and length >= 49 and end <= len(answer)
        if sound and calc_crc32c(answer[at + 21 : end]) == int.from_bytes(answer[at + 17 : at + 21]):
            yield at, end, offset
            at, found = end, True
        elif found:
            return
        else:
            at += 1


def _unsigned_varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
