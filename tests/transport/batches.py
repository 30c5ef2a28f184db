"""Record batches of Kafka's log as bytes, sound and damaged in every way."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from kafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from kafka.record.util import calc_crc32c, encode_varint

TIMESTAMP_MS = 1_700_000_000_000
HEAD = struct.Struct(">qiibIhiqqqhii")
CRC_AT, ATTRIBUTES_AT = 17, 21
CODECS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "gzip": (1, gzip_encode),
    "snappy": (2, snappy_encode),
    "lz4": (3, lz4_encode),
    "zstd": (4, zstd_encode),
}


def varint(value: int) -> bytes:
    found = bytearray()
    encode_varint(value, found.append)
    return bytes(found)


def field(content: bytes | None) -> bytes:
    return varint(-1) if content is None else varint(len(content)) + content


def record(
    delta: int,
    value: bytes | None = b"v",
    *,
    key: bytes | None = b"k",
    headers: Sequence[tuple[bytes | None, bytes | None]] = (),
    time: bytes = b"\0",
    tail: bytes | None = None,
) -> bytes:
    """`time`: the varint of its timestamp's delta. `tail`: bytes in place of its headers and their count."""
    if tail is None:
        tail = varint(len(headers)) + b"".join(field(name) + field(content) for name, content in headers)
    content = b"\0" + time + varint(delta) + field(key) + field(value) + tail
    return varint(len(content)) + content


def batch(
    records: Sequence[bytes],
    *,
    base: int = 0,
    codec: str | None = None,
    payload: bytes | None = None,
    attributes: int = 0,
    count: int | None = None,
    last_delta: int | None = None,
    magic: int = 2,
    length: int | None = None,
    crc: int | None = None,
    producer: int = -1,
) -> bytes:
    """What is given stands in place of what would be right."""
    content = b"".join(records)
    if codec is not None:
        number, encode = CODECS[codec]
        attributes |= number
        content = encode(content)
    if payload is not None:
        content = payload
    count = len(records) if count is None else count
    last_delta = max(0, len(records) - 1) if last_delta is None else last_delta
    head = HEAD.pack(
        base,
        HEAD.size - 12 + len(content) if length is None else length,
        0,
        magic,
        0,
        attributes,
        last_delta,
        TIMESTAMP_MS,
        TIMESTAMP_MS,
        producer,
        0 if producer >= 0 else -1,
        -1,
        count,
    )
    whole = bytearray(head + content)
    right = calc_crc32c(bytes(whole[ATTRIBUTES_AT:]))
    struct.pack_into(">I", whole, CRC_AT, right if crc is None else crc)
    return bytes(whole)


def many(count: int, first: int = 0) -> list[bytes]:
    return [record(first + number, b"v%d" % number) for number in range(count)]


# Each of one batch of the offsets 1 to 3, which cannot be decoded; and a word of why not.
DAMAGED: dict[str, tuple[bytes, str]] = {
    "CRC": (batch(many(3), base=1, crc=7), "CRC"),
    "codec that is not known": (batch(many(3), base=1, attributes=6), "compression"),
    "gzip": (batch(many(3), base=1, attributes=1, payload=b"\x1f\x8b\x08\x00garbage"), ""),
    "snappy": (batch(many(3), base=1, attributes=2, payload=b"\xff\xff\xff\xff\xff garbage"), ""),
    "lz4": (batch(many(3), base=1, attributes=3, payload=b"\x04\x22\x4d\x18 garbage"), ""),
    "zstd": (batch(many(3), base=1, attributes=4, payload=b"\x28\xb5\x2f\xfd garbage"), ""),
    "gzip of no records": (batch(many(3), base=1, attributes=1, payload=gzip_encode(b"\xff" * 50)), ""),
    "too many records": (batch(many(3), base=1, count=4), "4 records"),
    "huge number of records": (batch(many(3), base=1, count=2**31 - 1), "records"),
    "too few records": (batch(many(3), base=1, count=2), "left"),
    "negative number of records": (batch(many(3), base=1, count=-5), "-5 records"),
    "offsets that go back": (batch(many(3), base=1, last_delta=-2), "offsets"),
    "offset outside": (batch([record(0), record(9), record(2)], base=1), "offset 10"),
    "length of a record": (batch([record(0), varint(5000) + record(1)[1:], record(2)], base=1), "damaged"),
    "negative length of a record": (batch([record(0), varint(-7) + record(1)[1:], record(2)], base=1), "damaged"),
    "varint without end": (batch([record(0), b"\xff" * 12 + record(1), record(2)], base=1), ""),
    "magic": (batch(many(3), base=1, magic=5), "format"),
    "cut short": (batch(many(3), base=1)[:-4], "cut"),
    "length": (batch(many(3), base=1, length=1 << 30), "length"),
    "negative length": (batch(many(3), base=1, length=-40), ""),
    "no length": (batch(many(3), base=1, length=0), ""),
}

# One bad record, of offset 2, in the midst of two good ones.
BAD_RECORDS: dict[str, tuple[bytes, str]] = {
    "value beyond its end": (record(1, tail=b"")[:-2] + varint(40) + b"\0", "value"),
    "negative number of headers": (record(1, tail=varint(-3)), "headers"),
    "header beyond its end": (record(1, tail=varint(1) + varint(30) + b"x"), "header"),
    "more headers than there are": (record(1, tail=varint(2) + varint(-4) + varint(0)), ""),
    "more after the headers": (record(1, tail=b"\0rest"), "left"),
    "ends too early": (varint(3) + b"\0\0\2", ""),
    "varint that is too long": (record(1, time=b"\xff" * 11 + b"\0"), ""),
}
