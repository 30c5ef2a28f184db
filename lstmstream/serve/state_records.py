"""The records of the state topic, byte for byte. What is in topics already: a change here needs a new STATE_FORMAT.

Two kinds: a *state record* holds one key's state; a *floor record*, one for each partition, says where a restore has to
begin to read the input. Several models may share a topic: each record key holds a part of the state identity. Two more
kinds are about keys that are erased: erasure_records.py has them.

    record key     kind (1 byte) + first 8 bytes of the identity's digest + entity key (none for kinds FLOOR, NULL_KEY)
    state record   magic, format, digest, origin offset, last offset, steps, last timestamp, failures, count of floats;
                   the row in little-endian float32; CRC-32 of the record key and all before it. Of a key with an
                   incident (docs/alerts.md) the format is one higher, and four numbers stand before the row: start and
                   newest event in milliseconds, offset of its alert, alerts held back. Of a key that was evicted
                   (`state.max_keys`) there are no steps and no floats, and the last offset is that of the eviction
    floor record   JSON, so that people can read it, with a CRC-32 of its other fields
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from hashlib import sha256
from operator import methodcaller
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard
from zlib import crc32

import numpy as np
import orjson

from lstmstream import codec
from lstmstream.records import Bools, Floats, Ints
from lstmstream.serve.alert_memory import Incident, PartitionMemory
from lstmstream.serve.state import KeyState, Slab
from lstmstream.serve.stream_time import NEVER

STATE_FORMAT = 3
WITH_INCIDENT = 4  # the format of a state whose key has an incident
FLOOR_FORMAT = 2
_FORMAT_2 = 2  # of states: had no failures; is still read
FLOOR, ENTITY_KEY, NULL_KEY = b"\x00", b"\x01", b"\x02"  # kinds of record keys
REQUEST, ERASURE = b"\x03", b"\x04"  # to erase a key, and that it was done: see erasure_records.py
_KEY_BYTES = {REQUEST: 1 + 16, ERASURE: 1 + 16 + 8}  # of a record key
IDENTITY_BYTES = 8  # of the digest, in a record key
_PREFIX_BYTES = 1 + IDENTITY_BYTES

_STATE = struct.Struct("<4sB16sqqqqHI")  # the header of a state record
_STATE_2 = struct.Struct("<4sB16sqqqqI")
_INCIDENT = struct.Struct("<qqqq")
_HEADER = np.dtype(
    [
        ("magic", "S4"),
        ("format", "u1"),
        ("digest", "V16"),
        ("origin", "<i8"),
        ("last_offset", "<i8"),
        ("steps", "<i8"),
        ("last_timestamp", "<i8"),
        ("failures", "<u2"),
        ("floats", "<u4"),
    ]
)  # the same, for whole arrays of records
_MAGIC = b"LSST"
_CRC = struct.Struct("<I")
_EMPTY_BYTES = _STATE.size + _CRC.size


class CorruptStateRecord(ValueError):
    """A record of the state topic that cannot be trusted."""


class OldStateFormat(ValueError):
    """A record in a format of an earlier version."""


class StateIdentity(NamedTuple):
    """What a state belongs to: the model, and the settings that decide what a state means and which events count."""

    model: str
    version: str
    fingerprint: str
    ttl: str
    late: str
    key: str
    timestamp: str
    max_bytes: str
    others: str = ""  # options that came later, where they are not the default

    @property
    def digest(self) -> bytes:
        """16 bytes that name it. A model's name and version are for people and do not count."""
        return sha256(orjson.dumps(self[2:] if self.others else self[2:-1])).digest()[:16]

    def to_dict(self) -> dict[str, str]:
        """The fields, without `others` where there are none: earlier versions know none."""
        return {name: value for name, value in self._asdict().items() if value or name != "others"}

    def __str__(self) -> str:
        return (
            f"model {self.model} version {self.version} (fingerprint {self.fingerprint}; ttl {self.ttl},"
            f" late {self.late}, key {self.key}, timestamp {self.timestamp}, max_bytes {self.max_bytes}"
            f"{self.others and ', ' + self.others})"
        )


class Floor(NamedTuple):
    """Every key whose last change lies before `offset` has a state record at least that new (ARIES: the redo point)."""

    identity: StateIdentity
    origin: int  # input offset at which this identity's states begin; a state counts only if it names the same
    offset: int
    input_topic_id: str
    partitions: int  # of the input topic
    state_topic_id: str  # a floor in another topic than it was written for vouches for nothing
    position: int = -1  # the group's offset of the same transaction; -1 in records of earlier versions
    answers_from: int = -1  # input offset of this identity's first answer; -1: the origin
    alerts: PartitionMemory | None = None  # what the alert policy remembers; None: there is none
    seed: int = 0  # what states of `lstmstream state import | build` name in place of an origin; 0: there are none
    rebuilt_to: int = -1  # with state.max_keys: until `offset` comes here, a restart rebuilds all from the origin
    stream_time_ms: int = NEVER  # greatest event time before `offset`; NEVER also where it is not needed
    moved_from: int = 0  # partitions before `lstmstream state repartition`; 0: it was never done
    # (input offset, event time), ascending: the stream time that is met there is not less, because of events that this
    # partition's input does not have: those of a history, or of other partitions. Empty without input.max_lateness.
    outside_times: tuple[tuple[int, int], ...] = ()
    # Of each `lstmstream state repartition`: (input offset from which on, partitions before, partitions after).
    moves: tuple[tuple[int, int, int], ...] = ()
    # Another model has replaced this one, and none of its states counts: (its records in the state topic below this
    # offset are deleted, those below this one are to be).
    dropped: tuple[int, int] | None = None
    earlier: tuple[int, int] | None = None  # input offsets between which it has answered before its states were dropped

    def vouches_for(self, origins: Ints) -> Bools:
        """[N] Which states count, by the origins that their records name."""
        counts: Bools = origins == self.origin
        return counts | (origins == self.seed) if self.seed else counts

    def answered(self) -> tuple[int, int]:
        """The input offsets between which this identity has answered; others may have, too."""
        first, end = self.origin if self.answers_from < 0 else self.answers_from, max(self.position, self.offset)
        return (first, end) if self.earlier is None else (min(first, self.earlier[0]), max(end, self.earlier[1]))


class StoredState(NamedTuple):
    """One key's state as it stands in the state topic."""

    digest: bytes
    origin: int
    state: KeyState


# -- record keys


def pack_key(key: bytes | None, digest: bytes) -> bytes:
    """The record key of an entity key's state."""
    prefix = digest[:IDENTITY_BYTES]
    return NULL_KEY + prefix if key is None else ENTITY_KEY + prefix + key


def floor_key(digest: bytes) -> bytes:
    """The record key of a floor."""
    return FLOOR + digest[:IDENTITY_BYTES]


def key_kind(record_key: bytes | None) -> tuple[bytes, bytes]:
    """(kind, identity bytes) of a record key; erasures belong to none. Raises CorruptStateRecord, OldStateFormat."""
    if record_key == FLOOR:
        raise OldStateFormat("a floor record of format 1")
    if record_key is None or len(record_key) < _PREFIX_BYTES:
        raise CorruptStateRecord("its key is too short")
    kind = record_key[:1]
    if kind in _KEY_BYTES and len(record_key) == _KEY_BYTES[kind]:
        return kind, b""
    if kind not in (FLOOR, ENTITY_KEY, NULL_KEY) or (kind != ENTITY_KEY and len(record_key) != _PREFIX_BYTES):
        raise CorruptStateRecord(f"unknown kind of key, first byte {kind.hex()}")
    return kind, record_key[1:_PREFIX_BYTES]


def unpack_key(record_key: bytes) -> bytes | None:
    """The entity key of a state record's key. Raises CorruptStateRecord, OldStateFormat."""
    kind, _ = key_kind(record_key)
    if kind not in (ENTITY_KEY, NULL_KEY):
        raise CorruptStateRecord("not the key of a state")
    return None if kind == NULL_KEY else record_key[_PREFIX_BYTES:]


def are_of_keys(record_keys: list[bytes | None], digest: bytes) -> TypeGuard[list[bytes]]:
    """Whether all are record keys of this identity's states, of keys that are not null."""
    prefix = ENTITY_KEY + digest[:IDENTITY_BYTES]
    return None not in record_keys and all(map(methodcaller("startswith", prefix), record_keys))


def entity_keys(record_keys: Iterable[bytes]) -> list[bytes | None]:
    """`unpack_key` of record keys that are known to be those of states."""
    null = NULL_KEY[0]
    return [None if key[0] == null else key[_PREFIX_BYTES:] for key in record_keys]


# -- states


class StateColumns(NamedTuple):
    """C states of one identity, as arrays."""

    origins: Ints  # [C]
    last_offsets: Ints  # [C]
    steps: Ints  # [C]
    last_timestamps: Ints  # [C]
    failures: Ints  # [C]
    rows: Floats  # [C, S]


def pack_states(
    slab: Slab, rows: Ints, digest: bytes, origin: int, evicted: Bools | None = None
) -> tuple[list[bytes | None], list[bytes | None]]:
    """(record keys, values) of the states at `rows` [n], as they are now; `evicted` [n] marks empty ones."""
    if evicted is not None and evicted.any():
        keys, values = pack_states(slab, rows[~evicted], digest, origin)
        empty_keys, empty_values = _pack_empty(slab, rows[evicted], digest, origin)
        return keys + empty_keys, values + empty_values
    columns = StateColumns(
        np.full(len(rows), origin),
        slab.last_offset[rows],
        slab.steps[rows],
        slab.last_timestamp[rows],
        slab.failures[rows],
        slab.rows.read(rows),
    )
    return pack_columns(slab.index.keys_at(rows), columns, digest, slab.incidents)


def _pack_empty(slab: Slab, rows: Ints, digest: bytes, origin: int) -> tuple[list[bytes | None], list[bytes | None]]:
    keys = [pack_key(key, digest) for key in slab.index.keys_at(rows)]
    values: list[bytes | None] = []
    for key, last_offset in zip(keys, slab.last_offset[rows].tolist(), strict=True):
        body = _STATE.pack(_MAGIC, STATE_FORMAT, digest, origin, last_offset, 0, 0, 0, 0)
        values.append(body + _CRC.pack(crc32(body, crc32(key))))
    return list(keys), values


def pack_columns(
    entities: list[bytes | None],
    columns: StateColumns,
    digest: bytes,
    incidents: Mapping[bytes | None, Incident] = MappingProxyType({}),
) -> tuple[list[bytes | None], list[bytes | None]]:
    """(record keys, values) of the states of C entity keys; `incidents` of those that have one."""
    count, floats = columns.rows.shape
    records = np.empty(count, _record_type(floats))
    header = records["header"]
    header["magic"], header["format"], header["digest"] = _MAGIC, STATE_FORMAT, np.void(digest)
    header["origin"], header["floats"] = columns.origins, floats
    header["last_offset"], header["steps"] = columns.last_offsets, columns.steps
    header["last_timestamp"], header["failures"] = columns.last_timestamps, columns.failures
    records["row"] = columns.rows
    keys, values = _with_checksums(entities, records, digest)
    for i, entity in enumerate(entities) if incidents else ():
        if (incident := incidents.get(entity)) is not None:
            longer = _with_incident(values[i][: -_CRC.size], incident)
            values[i] = longer + _CRC.pack(crc32(longer, crc32(keys[i])))
    return list(keys), list(values)


def _with_checksums(
    entities: list[bytes | None], records: np.ndarray[Any, np.dtype[np.void]], digest: bytes
) -> tuple[list[bytes], list[bytes]]:
    """(record keys, values): `records` [C] with their checksums, which go with the key."""
    size = records.dtype.itemsize
    if (compiled := codec.load()) is not None:
        prefix = digest[:IDENTITY_BYTES]
        found: tuple[list[bytes], list[bytes]] = compiled.write_states(
            entities, ENTITY_KEY + prefix, NULL_KEY + prefix, records, size
        )
        return found
    keys = [pack_key(key, digest) for key in entities]
    body, view = size - _CRC.size, records.view(np.uint8).data
    starts = range(0, len(records) * size, size)
    records["crc"] = [crc32(view[at : at + body], crc32(key)) for at, key in zip(starts, keys, strict=True)]
    packed = records.tobytes()
    return keys, [packed[at : at + size] for at in starts]


def _record_type(floats: int) -> np.dtype[np.void]:
    return np.dtype([("header", _HEADER), ("row", "<f4", (floats,)), ("crc", "<u4")])


def _with_incident(body: bytes, incident: Incident) -> bytes:
    before, at = len(_MAGIC), _STATE.size
    return body[:before] + bytes([WITH_INCIDENT]) + body[before + 1 : at] + _INCIDENT.pack(*incident) + body[at:]


def state_record_bytes(floats: int) -> int:
    """Bytes of a state record whose entity key is empty."""
    return _PREFIX_BYTES + _STATE.size + 4 * floats + _CRC.size


def unpack_state(record_key: bytes, value: bytes) -> StoredState:
    """The inverse, for one record. Raises CorruptStateRecord for anything but what was written, OldStateFormat."""
    if len(value) < _STATE_2.size + _CRC.size:
        raise CorruptStateRecord(f"{len(value)} bytes are too few")
    body = value[: -_CRC.size]
    if _CRC.unpack(value[-_CRC.size :])[0] != crc32(body, crc32(record_key)):
        raise CorruptStateRecord("the checksum is wrong")
    magic, version = body[: len(_MAGIC)], body[len(_MAGIC)]
    if (magic, version) == (_MAGIC, 1):
        raise OldStateFormat("a state record of format 1")
    if magic != _MAGIC or version not in {_FORMAT_2, STATE_FORMAT, WITH_INCIDENT}:
        raise CorruptStateRecord(f"format {version} is not known; this program reads {_FORMAT_2} to {WITH_INCIDENT}")
    header = _STATE_2 if version == _FORMAT_2 else _STATE
    at = header.size + (_INCIDENT.size if version == WITH_INCIDENT else 0)  # of the row
    if len(body) < at:
        raise CorruptStateRecord("the header is cut short")
    _, _, digest, origin, offset, steps, last_timestamp, *failures, floats = header.unpack_from(body)
    if len(body) != at + 4 * floats:
        raise CorruptStateRecord("the row is cut short")
    row = np.frombuffer(body, dtype="<f4", offset=at).astype(np.float32)
    state = KeyState(row, steps, last_timestamp, offset, *failures)
    if version == WITH_INCIDENT:
        state = state._replace(incident=Incident(*_INCIDENT.unpack_from(body, header.size)))
    return StoredState(digest, origin, state)


def is_seed(value: bytes) -> bool:
    """Whether `lstmstream state import | build` has written a state record: its origin is a number of that run."""
    if len(value) < _STATE.size or value[: len(_MAGIC)] != _MAGIC:
        return False
    origin: int = _STATE_2.unpack_from(value)[3]  # where it stands in all formats
    return origin < -1


def is_unusual(value: bytes) -> bool:
    """Whether a state record has an incident, or is one of an empty state; `unpack_states` takes none of these."""
    return value[len(_MAGIC) : len(_MAGIC) + 1] == bytes([WITH_INCIDENT]) or len(value) == _EMPTY_BYTES


def state_columns(numbers: Ints, rows: Floats) -> StateColumns:
    """Of `numbers` [5, C], in the order of the fields, and `rows` [C, S]."""
    return StateColumns(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], rows)


def unpack_states(record_keys: list[bytes], values: list[bytes], digest: bytes, floats: int) -> StateColumns | None:
    """All of C records at once; None where one is not sound, has an incident or another size or identity."""
    found = _without_checksums(record_keys, values, floats)
    if found is None:
        return None
    header = found["header"]
    sound = (
        (header["magic"] == _MAGIC)
        & (header["format"] == STATE_FORMAT)
        & (header["digest"] == np.void(digest))
        & (header["floats"] == floats)
    )
    if not sound.all():
        return None
    return StateColumns(
        header["origin"].astype(np.int64),
        header["last_offset"].astype(np.int64),
        header["steps"].astype(np.int64),
        header["last_timestamp"].astype(np.int64),
        header["failures"].astype(np.int64),
        found["row"].astype(np.float32, copy=False),
    )


def _without_checksums(
    record_keys: list[bytes], values: list[bytes], floats: int
) -> np.ndarray[Any, np.dtype[np.void]] | None:
    """[C] Records whose checksums are right; None where one is not, or has another size."""
    kind = _record_type(floats)
    if (compiled := codec.load()) is not None:
        found = np.empty(len(values), kind)
        return found if compiled.read_states(record_keys, values, found, kind.itemsize) else None
    size = kind.itemsize - _CRC.size
    if any(len(value) != kind.itemsize for value in values):
        return None
    for key, value in zip(record_keys, values, strict=True):
        if crc32(memoryview(value)[:size], crc32(key)) != int.from_bytes(value[size:], "little"):
            return None
    return np.frombuffer(b"".join(values), dtype=kind)


# -- floors


def pack_floor(floor: Floor) -> bytes:
    """The value of a floor record."""
    fields = {"format": FLOOR_FORMAT, **floor._asdict(), "identity": floor.identity.to_dict()}
    for name in ("position", "answers_from", "rebuilt_to"):
        if fields[name] < 0:
            del fields[name]
    for name in ("seed", "moved_from", "outside_times", "moves"):
        if not fields[name]:
            del fields[name]
    for name in ("dropped", "earlier"):
        if fields[name] is None:
            del fields[name]
    if floor.stream_time_ms == NEVER:
        del fields["stream_time_ms"]
    if floor.alerts is None:
        del fields["alerts"]
    else:
        fields["alerts"] = floor.alerts.to_json()
    return orjson.dumps({**fields, "crc": crc32(orjson.dumps(fields))})


def unpack_floor(value: bytes) -> Floor:
    """The inverse. Raises CorruptStateRecord."""
    try:
        fields = orjson.loads(value)
        crc = fields.pop("crc")
        if crc != crc32(orjson.dumps(fields)):
            raise CorruptStateRecord("the checksum is wrong")
        if fields.pop("format") != FLOOR_FORMAT:
            raise CorruptStateRecord("unknown format")
        alerts = fields.pop("alerts", None)
        for name in {"dropped", "earlier"} & fields.keys():
            first, end = fields[name]
            fields[name] = int(first), int(end)
        outside = tuple((int(offset), int(time_ms)) for offset, time_ms in fields.pop("outside_times", ()))
        moves = tuple((int(offset), int(old), int(new)) for offset, old, new in fields.pop("moves", ()))
        return Floor(
            **{**fields, "identity": StateIdentity(**fields["identity"])},
            alerts=None if alerts is None else PartitionMemory.from_json(alerts),
            outside_times=outside,
            moves=moves,
        )
    except CorruptStateRecord:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptStateRecord(f"not a floor record: {type(error).__name__}") from error
