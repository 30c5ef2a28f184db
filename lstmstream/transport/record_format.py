"""The records of a batch of Kafka's log, format 2, as columns: all of them at once, and all or nothing.

    Record => Length: varint, Attributes: int8, TimestampDelta: varint, OffsetDelta: varint, Key, Value, Headers
    Key, Value => varint length (negative: null), bytes;  Headers => varint count, (name, value) as Key and Value

Integers are zigzag varints. Format: https://kafka.apache.org/documentation/#recordbatch. Knows no client library.
The compiled codec does the same, where it is there; what it declines is done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmstream import codec
from lstmstream.records import Headers, Ints, lengths

Bytes = NDArray[np.uint8]

_NULL = b"\x01"  # the length of what is null
_MIN_RECORD_BYTES = 7  # lengths of the record, its key and its value, attributes, two deltas, count of headers
_LONGEST = 9  # bytes of a varint that is read here; ten are allowed, and no usual value needs them


def _varint(value: int) -> bytes:
    bits = (value << 1) ^ (value >> 63)
    found = bytearray()
    while bits > 0x7F:
        found.append(bits & 0x7F | 0x80)
        bits >>= 7
    found.append(bits)
    return bytes(found)


_SMALL = [_varint(value) for value in range(1 << 14)]


def varint(value: int) -> bytes:
    """A zigzag varint."""
    return _SMALL[value] if 0 <= value < len(_SMALL) else _varint(value)


class RecordColumns(NamedTuple):
    """N records; deltas are to the batch's base offset and first timestamp."""

    offset_deltas: Ints
    timestamp_deltas: Ints
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[Headers]


def decode_records(body: bytes, count: int) -> RecordColumns:
    """The `count` records of an unpacked batch, without its head. Raises ValueError where one is not sound."""
    compiled = codec.load()
    if compiled is not None and count * _MIN_RECORD_BYTES <= len(body):
        offset_deltas, timestamp_deltas = np.empty(count, np.int64), np.empty(count, np.int64)
        found = compiled.read_records(body, count, offset_deltas, timestamp_deltas)
        if found is not None:
            keys, values, with_headers = found
            return RecordColumns(offset_deltas, timestamp_deltas, keys, values, _all_headers(body, count, with_headers))
    return _decode_columns(body, count)


def _decode_columns(body: bytes, count: int) -> RecordColumns:
    starts, ends = _frame(body, count)
    content = np.zeros(len(body) + 2 * _LONGEST, np.uint8)  # so that a varint that is cut short ends
    content[: len(body)] = np.frombuffer(body, np.uint8)
    if (content[starts] > 0x7F).any():
        raise ValueError("attributes that no version of the format has")
    at = starts + 1  # after the attributes, which are not in use
    timestamp_deltas, at = _read_varints(content, at, ends)
    offset_deltas, at = _read_varints(content, at, ends)
    keys, at = _read_fields(body, content, at, ends)
    values, at = _read_fields(body, content, at, ends)
    counts, at = _read_varints(content, at, ends)
    if (counts < 0).any():
        raise ValueError("a negative number of headers")
    bare = counts == 0
    if (at[bare] != ends[bare]).any():
        raise ValueError("bytes are left after a record's headers")
    rows = np.flatnonzero(counts)
    with_headers = np.column_stack([rows, at[rows], ends[rows], counts[rows]]).tolist()
    headers = _all_headers(body, count, with_headers)
    return RecordColumns(offset_deltas, timestamp_deltas, keys, values, headers)


def _all_headers(body: bytes, count: int, with_headers: Sequence[Sequence[int]]) -> list[Headers]:
    """Of each of `count` records. `with_headers`: row, begin, end and number of headers of each that has some."""
    headers: list[Headers] = [()] * count
    for row, at, end, number in with_headers:
        headers[row], stop = _read_headers(body, at, end, number)
        if stop != end:
            raise ValueError("bytes are left after a record's headers")
    return headers


def _frame(body: bytes, count: int) -> tuple[Ints, Ints]:
    """Where each record begins, after its length, and ends."""
    starts, ends, at, size = [], [], 0, len(body)
    for _ in range(count):
        if at >= size:
            raise ValueError("fewer records than the batch claims")
        length, at = _read_length(body, at, size)
        if length < 1:
            raise ValueError("the length of a record is not positive")
        starts.append(at)
        at += length
        ends.append(at)
    if at != size:
        raise ValueError("the records do not fill their batch")
    return np.array(starts, np.int64), np.array(ends, np.int64)


def _read_length(body: bytes, at: int, end: int) -> tuple[int, int]:
    """A varint of up to five bytes, and where it ends."""
    bits = shift = 0
    while True:
        if at >= end or shift > 28:
            raise ValueError("a length is damaged")
        byte = body[at]
        at += 1
        bits |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (bits >> 1) ^ -(bits & 1), at
        shift += 7


def _read_varints(content: Bytes, at: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """One of each record, from `at` on; and where each ends. Raises ValueError where one leaves its record."""
    byte = content[at]
    bits = (byte & 0x7F).astype(np.uint64)
    at = at + 1
    more = np.flatnonzero(byte > 0x7F)
    for length in range(1, _LONGEST):
        if not len(more):
            break
        byte = content[at[more]]
        bits[more] |= (byte & 0x7F).astype(np.uint64) << np.uint64(7 * length)
        at[more] += 1
        more = more[byte > 0x7F]
    if len(more) or (at > ends).any():
        raise ValueError("a number in a record is damaged")
    values = (bits >> np.uint64(1)).astype(np.int64)
    return values ^ -(bits & np.uint64(1)).astype(np.int64), at


def _read_fields(body: bytes, content: Bytes, at: Ints, ends: Ints) -> tuple[list[bytes | None], Ints]:
    """A key or a value of each record, and where it ends."""
    lengths, at = _read_varints(content, at, ends)
    stop = at + np.maximum(lengths, 0)
    if (stop > ends).any():
        raise ValueError("a key or a value is longer than its record")
    fields: list[bytes | None] = [body[start:end] for start, end in zip(at.tolist(), stop.tolist(), strict=True)]
    for row in np.flatnonzero(lengths < 0).tolist():
        fields[row] = None
    return fields, stop


def _read_headers(body: bytes, at: int, end: int, count: int) -> tuple[Headers, int]:
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        name, at = _read_field(body, at, end)
        value, at = _read_field(body, at, end)
        if name is None:
            raise ValueError("a header without a name")
        headers.append((name.decode(), value))  # UnicodeDecodeError is a ValueError
    return headers, at


def _read_field(body: bytes, at: int, end: int) -> tuple[bytes | None, int]:
    length, at = _read_length(body, at, end)
    if length < 0:
        return None, at
    stop = at + length
    if stop > end:
        raise ValueError("a header is longer than its record")
    return body[at:stop], stop


def encode_records(
    timestamp_deltas: Sequence[int],
    keys: Sequence[bytes | None],
    values: Sequence[bytes | None],
    headers: Sequence[Headers],
) -> bytes:
    """The records of one batch, not packed, without its head."""
    compiled = codec.load()
    if compiled is not None:
        packed: list[bytes | None] = [None] * len(headers)
        if any(headers):
            packed = [_headers(of_record) if of_record else None for of_record in headers]
        found: bytes | None = compiled.write_records(timestamp_deltas, keys, values, packed)
        if found is not None:
            return found
    pieces: list[bytes] = []
    add = pieces.append
    for number, (delta, key, value, of_record) in enumerate(zip(timestamp_deltas, keys, values, headers, strict=True)):
        content = b"\0%b%b%b%b%b%b%b" % (
            varint(delta),
            varint(number),
            _NULL if key is None else varint(len(key)),
            key or b"",
            _NULL if value is None else varint(len(value)),
            value or b"",
            _headers(of_record) if of_record else b"\0",
        )
        add(varint(len(content)))
        add(content)
    return b"".join(pieces)


def _headers(headers: Headers) -> bytes:
    pieces = [varint(len(headers))]
    for name, value in headers:
        text = name.encode()
        pieces += [varint(len(text)), text, *((_NULL,) if value is None else (varint(len(value)), value))]
    return b"".join(pieces)


def record_bytes_at_most(keys: list[bytes | None], values: list[bytes | None], headers: list[Headers]) -> Ints:
    """[N] No encoded record is longer."""
    overhead = 5 + 1 + 10 + 5 + 5 + 5 + 5  # length, attributes, timestamp, offset, lengths of key and value, count
    sizes = lengths(keys) + lengths(values) + overhead
    if any(headers):
        sizes += [sum(10 + 4 * len(name) + len(value or b"") for name, value in of_record) for of_record in headers]
    return sizes
