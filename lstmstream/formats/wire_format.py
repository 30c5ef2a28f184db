"""What serializers with a schema registry put before a value: a zero byte, and the number of the schema in four bytes.

Protobuf adds the path to the message type within its file. This is the format of Confluent's serializers, which
Apicurio, Karapace and Redpanda read and write too.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from lstmstream.errors import BadRecord

_PREFIX = struct.Struct(">bI")
_MAX_INDEXES = 100  # message types inside each other
_MAX_VARINT_BYTES = 5  # of 32 bits


class Frame(NamedTuple):
    """A value taken apart."""

    schema_id: int
    body: bytes


def split_frame(value: bytes) -> Frame:
    """Raises BadRecord, stage `decode`, for a value without the prefix."""
    if len(value) < _PREFIX.size:
        raise BadRecord(
            "decode", f"the value has {len(value)} bytes, fewer than the {_PREFIX.size} that name its schema"
        )
    magic, schema_id = _PREFIX.unpack_from(value)
    if magic != 0:
        raise BadRecord(
            "decode",
            f"the value begins with the byte {value[0]}, not with the 0 of a schema registry's serializer; see"
            " input.format",
        )
    if schema_id == 0:  # no registry has it
        raise BadRecord(
            "decode",
            "the value names the schema 0: Apicurio's serializer writes numbers of eight bytes unless it has"
            " apicurio.registry.as-confluent: true; see docs/formats.md",
        )
    return Frame(schema_id, value[_PREFIX.size :])


def frame(schema_id: int, body: bytes) -> bytes:
    """The value of a record."""
    return _PREFIX.pack(0, schema_id) + body


def split_message_indexes(body: bytes) -> tuple[tuple[int, ...], bytes]:
    """The path to a Protobuf message type, one index for each level, and the message. Raises BadRecord."""
    count, at = _read_varint(body, 0)
    if count == 0:
        return (0,), body[at:]
    if not 0 < count <= _MAX_INDEXES:
        raise BadRecord("decode", f"the value names {count} message indexes; 1 to {_MAX_INDEXES} are possible")
    indexes = []
    for _ in range(count):
        index, at = _read_varint(body, at)
        indexes.append(index)
    return tuple(indexes), body[at:]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag integer of 32 bits, and where it ends."""
    number = 0
    for place, byte in enumerate(data[at : at + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at + place + 1
    raise BadRecord("decode", "the value ends within its message indexes, or they are too large")
