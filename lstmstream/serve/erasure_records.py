"""The records of the state topic by which a key is erased, byte for byte. See docs/erasure.md.

`lstmstream state delete` writes an *erasure request* into each partition. The owner of the partition applies it at its
position, in one transaction: an *erasure* for each key, tombstones for their states, a tombstone for the request. So
the keys themselves stand in requests only, and compaction removes those. An erasure names a digest of its key.

    request   record key: kind REQUEST, 16 random bytes; value: JSON, {"format", "keys": base64, null for the null key}
    erasure   record key: kind ERASURE, 16 bytes of the key's digest, 8 bytes of the input offset (big-endian): events
              of the key before it are in no state. Value: JSON, {"format", "offset", "request", "found"}, for whoever
              has asked
"""

from __future__ import annotations

import struct
import uuid
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

import orjson

from lstmstream.serve.state_records import (
    ENTITY_KEY,
    ERASURE,
    NULL_KEY,
    REQUEST,
    CorruptStateRecord,
    key_kind,
)

FORMAT = 1
DIGEST_BYTES = 16
MAX_KEYS = 500  # of one request: they are erased in one transaction
MAX_KEY_BYTES = 256 << 10  # of all of these, but for a single key: a request is one record

_OFFSET = struct.Struct(">q")


class Erasure(NamedTuple):
    """A key that was erased."""

    digest: bytes  # of the key
    offset: int  # of the input: the key's events before it are in no state


class Applied(NamedTuple):
    """What the value of an erasure's record tells whoever has asked for it."""

    digest: bytes
    offset: int
    request: str  # the request's name, in hexadecimal
    found: bool  # whether the key had a state


def digest_of(key: bytes | None, salt: str) -> bytes:
    """What names an entity key in an erasure. `salt`: the id of the input topic, so that it means nothing elsewhere."""
    text = NULL_KEY if key is None else ENTITY_KEY + key
    return blake2b(text, digest_size=DIGEST_BYTES, key=salt.encode()[:64]).digest()


# -- requests


def pack_request(keys: Sequence[bytes | None]) -> tuple[bytes, bytes]:
    """(record key, value) of a request for up to MAX_KEYS keys."""
    assert 0 < len(keys) <= MAX_KEYS
    texts = [None if key is None else b64encode(key).decode() for key in keys]
    return REQUEST + uuid.uuid4().bytes, orjson.dumps({"format": FORMAT, "keys": texts})


def unpack_request(value: bytes) -> list[bytes | None]:
    """The keys that a request names. Raises CorruptStateRecord."""
    try:
        fields = orjson.loads(value)
        if fields["format"] != FORMAT:
            raise CorruptStateRecord(f"an erasure request of format {fields['format']}; this program reads {FORMAT}")
        return [None if text is None else b64decode(text, validate=True) for text in fields["keys"]]
    except CorruptStateRecord:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptStateRecord(f"not an erasure request: {type(error).__name__}") from error


def request_name(record_key: bytes) -> str:
    """The name of a request, by which an erasure refers to it."""
    return record_key[1:].hex()


# -- erasures


def pack_erasure(digest: bytes, offset: int, request: bytes, *, found: bool) -> tuple[bytes, bytes]:
    """(record key, value); `request` is the record key of the one that asked for it."""
    fields = {"format": FORMAT, "offset": offset, "request": request_name(request), "found": found}
    return ERASURE + digest + _OFFSET.pack(offset), orjson.dumps(fields)


def unpack_erasure(record_key: bytes) -> Erasure:
    """Which key, and from where on, of a record key of kind ERASURE."""
    return Erasure(record_key[1 : 1 + DIGEST_BYTES], _OFFSET.unpack(record_key[1 + DIGEST_BYTES :])[0])


def read_applied(record_keys: Iterable[bytes | None], values: Iterable[bytes | None]) -> list[Applied]:
    """The erasures among records of the state topic; what cannot be read is left out."""
    found = []
    for record_key, value in zip(record_keys, values, strict=True):
        if record_key is None or value is None or record_key[:1] != ERASURE:
            continue
        try:
            key_kind(record_key)
            fields = orjson.loads(value)
            found.append(Applied(*unpack_erasure(record_key), str(fields["request"]), bool(fields["found"])))
        except (ValueError, TypeError, KeyError):
            continue
    return found
