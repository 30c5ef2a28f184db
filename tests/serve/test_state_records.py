"""The records of the state topic, byte for byte: they come back whole, or are called corrupt."""

from __future__ import annotations

import struct
from zlib import crc32

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lstmstream.serve.alert_memory import AlertRules, Hour, Incident, PartitionMemory, RulesFrom
from lstmstream.serve.state import KeyState, Slab
from lstmstream.serve.state_records import (
    ENTITY_KEY,
    FLOOR,
    IDENTITY_BYTES,
    NULL_KEY,
    CorruptStateRecord,
    Floor,
    OldStateFormat,
    StateIdentity,
    StoredState,
    floor_key,
    is_unusual,
    key_kind,
    pack_floor,
    pack_key,
    pack_states,
    unpack_floor,
    unpack_key,
    unpack_state,
    unpack_states,
)

pytestmark = pytest.mark.usefixtures("either_codec")

IDENTITY = StateIdentity("fraud", "3", "f" * 32, "5000ms", "apply", "the record's", "at", "10000000")
OTHER = IDENTITY._replace(ttl="none")
DIGEST = IDENTITY.digest

int64 = st.integers(-(2**63), 2**63 - 1)
entity_keys = st.none() | st.binary(max_size=20) | st.just(b"x" * 65_536) | st.just(OTHER.digest[:8])
digests = st.binary(min_size=16, max_size=16) | st.sampled_from([bytes(16), b"\x00" + b"d" * 14 + b"\x00"])


def row_of(bits: list[int]) -> np.ndarray:
    return np.array(bits, np.uint32).view(np.float32)


rows = st.lists(st.integers(0, 2**32 - 1), max_size=9).map(row_of)
failures = st.integers(0, 2**16 - 1)
incidents = st.none() | st.builds(Incident, int64, int64, int64, int64)
key_states = st.builds(KeyState, rows, int64, int64, int64, failures, incidents)


def pack(key: bytes | None, digest: bytes, origin: int, state: KeyState) -> tuple[bytes, bytes]:
    """(record key, value) of one state, which stands in a slab among others."""
    slab = Slab(len(state.row))
    for i in range(3):
        slab.put(b"another %d" % i, KeyState(np.zeros(len(state.row), np.float32), 9, 9, 9))
    slab.put(key, state)
    (record_key,), (value,) = pack_states(slab, np.array([slab.index[key]]), digest, origin)
    assert record_key is not None
    assert value is not None
    return record_key, value


def a_state() -> tuple[bytes, bytes]:
    row = np.array([0.5, -0.0, 1e-45], np.float32)
    return pack(b"c000123", DIGEST, 7, KeyState(row, 41, 1_767_609_067_123, 48_213, 5))


# -- record keys


@given(entity_keys, digests)
def test_keys_come_back(key: bytes | None, digest: bytes) -> None:
    record_key = pack_key(key, digest)
    assert unpack_key(record_key) == key
    assert key_kind(record_key) == (NULL_KEY if key is None else ENTITY_KEY, digest[:IDENTITY_BYTES])


@given(entity_keys, digests, entity_keys, digests)
def test_keys_of_two_identities_or_two_entities_never_meet(
    one: bytes | None, mine: bytes, other: bytes | None, theirs: bytes
) -> None:
    same = one == other and mine[:8] == theirs[:8]
    assert (pack_key(one, mine) == pack_key(other, theirs)) == same
    assert floor_key(mine) != pack_key(other, theirs)
    assert (floor_key(mine) == floor_key(theirs)) == (mine[:8] == theirs[:8])


def test_an_entity_key_that_looks_like_another_identitys_record_does_no_harm() -> None:
    assert pack_key(OTHER.digest[:8] + b"a", DIGEST) != pack_key(b"a", OTHER.digest)
    assert key_kind(pack_key(pack_key(b"a", OTHER.digest), DIGEST)) == (ENTITY_KEY, DIGEST[:8])
    assert key_kind(pack_key(floor_key(DIGEST), DIGEST))[0] == ENTITY_KEY


def test_the_bytes_of_keys() -> None:
    assert DIGEST.hex() == GOLDEN_DIGEST
    assert pack_key(b"c1", DIGEST) == b"\x01" + DIGEST[:8] + b"c1"
    assert pack_key(b"", DIGEST) == b"\x01" + DIGEST[:8]
    assert pack_key(None, DIGEST) == b"\x02" + DIGEST[:8]
    assert floor_key(DIGEST) == b"\x00" + DIGEST[:8]


@pytest.mark.parametrize(
    "key",
    [
        None, b"", b"\x01", b"\x02", b"\x01" + DIGEST[:7], b"\x02" + DIGEST[:8] + b"x", b"\x00" + DIGEST[:8] + b"x",
        b"\x03" + DIGEST[:8], b"c000123-and-more",
    ],
)  # fmt: skip
def test_other_keys_are_corrupt(key: bytes | None) -> None:
    with pytest.raises(CorruptStateRecord):
        key_kind(key)


def test_a_floors_key_is_no_states() -> None:
    assert key_kind(floor_key(DIGEST)) == (FLOOR, DIGEST[:8])
    with pytest.raises(CorruptStateRecord):
        unpack_key(floor_key(DIGEST))


# -- states


@given(entity_keys, digests, int64, key_states)
def test_states_come_back(key: bytes | None, digest: bytes, origin: int, state: KeyState) -> None:
    record_key, value = pack(key, digest, origin, state)
    assert record_key == pack_key(key, digest)
    stored = unpack_state(record_key, value)
    assert (stored.digest, stored.origin, stored.state[1:]) == (digest, origin, state[1:])
    assert stored.state.row.tobytes() == state.row.tobytes()
    assert stored.state.row.dtype == np.float32


def test_states_are_packed_in_the_order_that_was_asked_for() -> None:
    slab = Slab(2)
    for i in range(600):
        slab.put(b"%d" % i, KeyState(np.full(2, i, np.float32), i, 2 * i, 3 * i))
    wanted = np.array([599, 0, 7, 300])
    keys, values = pack_states(slab, wanted, DIGEST, 5)
    found = [(unpack_key(k or b""), unpack_state(k or b"", v or b"")) for k, v in zip(keys, values, strict=True)]
    for i, (key, stored) in zip(wanted.tolist(), found, strict=True):
        assert (key, stored.state[1:], stored.state.row.tolist()) == (b"%d" % i, (i, 2 * i, 3 * i, 0, None), [i, i])
    assert pack_states(slab, np.empty(0, np.int64), DIGEST, 5) == ([], [])


# What is in topics already: a change here needs a new STATE_FORMAT.
GOLDEN_DIGEST = "1832182201111cc81550c38a7ba5eb58"
GOLDEN_KEY = "011832182201111cc863303030313233"
GOLDEN_VALUE = (
    "4c53535403 1832182201111cc81550c38a7ba5eb58 0700000000000000 55bc000000000000 2900000000000000"
    " 73e6b58d9b010000 0500 03000000 0000003f 00000080 01000000 227a75d0"
)
GOLDEN_VALUE_OF_FORMAT_2 = (
    "4c53535402 1832182201111cc81550c38a7ba5eb58 0700000000000000 55bc000000000000 2900000000000000"
    " 73e6b58d9b010000 03000000 0000003f 00000080 01000000 65f7d622"
)
GOLDEN_FLOOR = (
    b'{"format":2,"identity":{"model":"fraud","version":"3","fingerprint":"ffffffffffffffffffffffffffffffff",'
    b'"ttl":"5000ms","late":"apply","key":"the record\'s","timestamp":"at","max_bytes":"10000000"},'
    b'"origin":3,"offset":48213,"input_topic_id":"AbC_d-1","partitions":6,"state_topic_id":"XyZ","crc":259873502}'
)


def test_the_bytes_of_a_state() -> None:
    key, value = a_state()
    head = b"LSST\x03" + DIGEST + struct.pack("<qqqqHI", 7, 48_213, 41, 1_767_609_067_123, 5, 3)
    body = head + struct.pack("<3f", 0.5, -0.0, 1e-45)
    assert value == body + struct.pack("<I", crc32(key + body))
    assert (key, value) == (bytes.fromhex(GOLDEN_KEY), bytes.fromhex(GOLDEN_VALUE))


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def test_any_flipped_bit_or_cut_or_added_byte_is_corrupt() -> None:
    key, value = a_state()
    damaged = [(key, flipped(value, bit)) for bit in range(8 * len(value))]
    damaged += [(flipped(key, bit), value) for bit in range(8 * len(key))]
    damaged += [(key, value[:n]) for n in range(len(value))]
    damaged += [(key, value + b"\x00"), (key, value * 2), (key, b"\x00" * len(value))]
    for wrong_key, wrong in damaged:
        with pytest.raises(CorruptStateRecord):
            unpack_state(wrong_key, wrong)
        assert unpack_states([wrong_key], [wrong], DIGEST, 3) is None


@pytest.mark.parametrize(
    "other", [pack_key(b"c000124", DIGEST), pack_key(None, DIGEST), pack_key(b"c000123", OTHER.digest), b"c000123"]
)
def test_a_state_under_another_key_is_corrupt(other: bytes) -> None:
    with pytest.raises(CorruptStateRecord):
        unpack_state(other, a_state()[1])


@pytest.mark.parametrize(
    ("at", "byte"), [(0, b"X"), (4, b"\x04"), (4, b"\x02"), (4, b"\x00"), (55, b"\x04"), (55, b"\x02")]
)
def test_a_right_checksum_over_another_format_is_corrupt(at: int, byte: bytes) -> None:
    key, value = a_state()
    body = value[:at] + byte + value[at + 1 : -4]
    wrong = body + struct.pack("<I", crc32(key + body))
    with pytest.raises(CorruptStateRecord):
        unpack_state(key, wrong)
    assert unpack_states([key], [wrong], DIGEST, 3) is None


@given(st.binary(max_size=120))
def test_any_bytes_are_corrupt_and_nothing_else(value: bytes) -> None:
    key = pack_key(b"k", DIGEST)
    for read in (lambda: unpack_state(key, value), lambda: unpack_floor(value)):
        with pytest.raises(CorruptStateRecord):
            read()
    assert unpack_states([key], [value], DIGEST, 3) is None


# -- format 1


def of_format_1(key: bytes) -> tuple[bytes, bytes]:
    """As versions before wrote it: no identity in the key, else the same."""
    record_key = b"\x01" + key
    head = struct.pack("<4sB16sqqqqI", b"LSST", 1, DIGEST, 7, 48_213, 41, 1_767_609_067_123, 3)
    body = head + struct.pack("<3f", 0.5, 0.0, 1.0)
    return record_key, body + struct.pack("<I", crc32(record_key + body))


def test_records_of_format_1_are_known_for_what_they_are() -> None:
    with pytest.raises(OldStateFormat):
        key_kind(b"\x00")  # the floor record
    for key in (b"c000123", DIGEST[:8] + b"k"):
        record_key, value = of_format_1(key)
        with pytest.raises(OldStateFormat):
            unpack_state(record_key, value)
        assert unpack_states([record_key], [value], DIGEST, 3) is None
        with pytest.raises(CorruptStateRecord):
            unpack_state(record_key, flipped(value, 8))


# -- format 2


def test_states_of_format_2_are_read_with_no_failures() -> None:
    key, _ = a_state()
    head = b"LSST\x02" + DIGEST + struct.pack("<qqqqI", 7, 48_213, 41, 1_767_609_067_123, 3)
    body = head + struct.pack("<3f", 0.5, -0.0, 1e-45)
    value = body + struct.pack("<I", crc32(key + body))
    assert value == bytes.fromhex(GOLDEN_VALUE_OF_FORMAT_2)
    stored = unpack_state(key, value)
    assert (stored.digest, stored.origin, stored.state[1:]) == (DIGEST, 7, (41, 1_767_609_067_123, 48_213, 0, None))
    assert stored.state.row.tolist() == np.array([0.5, -0.0, 1e-45], np.float32).tolist()
    assert unpack_states([key], [value], DIGEST, 3) is None, "one by one then"
    for n in range(len(value)):
        with pytest.raises(CorruptStateRecord):
            unpack_state(key, value[:n])


# -- many at once


records = st.lists(
    st.tuples(entity_keys, st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3), int64, int64, int64, int64),
    min_size=1,
    max_size=6,
    unique_by=lambda record: record[0],
)
odd = st.sampled_from(["bit", "cut", "added", "identity", "size", "key", "format 1", "empty"])


def pack_all(given_records: list) -> tuple[list[bytes], list[bytes]]:
    pairs = [
        pack(key, DIGEST, origin, KeyState(row_of(bits), steps, last_timestamp, last_offset))
        for key, bits, origin, last_offset, steps, last_timestamp in given_records
    ]
    return [key for key, _ in pairs], [value for _, value in pairs]


@given(records)
@settings(deadline=None)
def test_many_at_once_are_as_one_by_one(given_records: list) -> None:
    keys, values = pack_all(given_records)
    found = unpack_states(keys, values, DIGEST, 3)
    assert found is not None
    assert (found.rows.dtype, found.rows.shape) == (np.float32, (len(keys), 3))
    for i, (key, value) in enumerate(zip(keys, values, strict=True)):
        columns = (found.steps, found.last_timestamps, found.last_offsets, found.failures)
        numbers = [int(column[i]) for column in columns]
        state = KeyState(found.rows[i], *numbers)
        alone = unpack_state(key, value)
        assert (alone.digest, alone.origin, alone.state[1:]) == (DIGEST, int(found.origins[i]), state[1:])
        assert alone.state.row.tobytes() == state.row.tobytes()


@given(records, odd, st.integers(0, 10**6), st.integers(0, 10**6))
@example([(b"a", [0, 0, 0], 0, 0, 0, 0), (b"b", [0, 0, 0], 0, 0, 0, 0)], "identity", 1, 0)
@settings(deadline=None)
def test_many_at_once_are_refused_where_one_of_them_is_not_sound(
    given_records: list, what: str, at: int, bit: int
) -> None:
    """As one by one: a fault of any is found, whichever it is and wherever it stands."""
    keys, values = pack_all(given_records)
    at %= len(keys)
    state = unpack_state(keys[at], values[at]).state
    if what == "bit":
        values[at] = flipped(values[at], bit % (8 * len(values[at])))
    elif what == "cut":
        values[at] = values[at][: -1 - bit % (len(values[at]) - 1)]
    elif what == "added":
        values[at] += b"\x00" * (1 + bit % 9)
    elif what == "identity":  # one whose first bytes are those of ours
        keys[at], values[at] = pack(unpack_key(keys[at]), DIGEST[:8] + b"8 others", 0, state)
    elif what == "size":
        keys[at], values[at] = pack(unpack_key(keys[at]), DIGEST, 0, state._replace(row=row_of([1, 2])))
    elif what == "key":
        keys[at] = pack_key(b"not its own", DIGEST)
    elif what == "format 1":
        keys[at], values[at] = of_format_1(DIGEST[:8] + b"k")
    else:
        values[at] = b""
    assert unpack_states(keys, values, DIGEST, 3) is None
    assert not all(is_sound(key, value) for key, value in zip(keys, values, strict=True))


def is_sound(key: bytes, value: bytes) -> bool:
    try:
        stored: StoredState = unpack_state(key, value)
    except (CorruptStateRecord, OldStateFormat):
        return False
    return stored.digest == DIGEST and len(stored.state.row) == 3


# -- floors


offsets = st.integers(0, 2**62)
identities = st.builds(StateIdentity, *[st.text(max_size=5)] * 8)
floors = st.builds(
    Floor,
    identities,
    offsets,
    offsets,
    st.text(max_size=9),
    st.integers(1, 9),
    st.text(max_size=9),
    st.just(-1) | offsets,
    answers_from=st.just(-1) | offsets,
    alerts=st.none(),
    seed=st.just(0) | st.integers(-(2**63), -2),
    moved_from=st.integers(0, 2**31 - 1),
    outside_times=st.lists(st.tuples(offsets, st.integers(-(2**62), 2**62)), max_size=3).map(tuple),
    moves=st.lists(st.tuples(offsets, st.integers(1, 99), st.integers(1, 99)), max_size=3).map(tuple),
    rebuilt_to=st.just(-1) | offsets,
    stream_time_ms=st.integers(-(2**62), 2**62),
    dropped=st.none() | st.tuples(offsets, offsets),
    earlier=st.none() | st.tuples(offsets, offsets),
)


@given(floors)
def test_floors_come_back(floor: Floor) -> None:
    found = unpack_floor(pack_floor(floor))
    assert found == floor
    assert found.identity.digest == floor.identity.digest


def a_floor() -> bytes:
    return pack_floor(Floor(IDENTITY, 3, 48_213, "AbC_d-1", 6, "XyZ"))


def test_the_bytes_of_a_floor() -> None:
    """A floor without a position, as earlier versions wrote it; one with it has one more field."""
    assert a_floor() == GOLDEN_FLOOR
    assert unpack_floor(GOLDEN_FLOOR).position == -1
    with_position = pack_floor(unpack_floor(GOLDEN_FLOOR)._replace(position=48_214))
    assert orjson.loads(with_position)["position"] == 48_214
    assert unpack_floor(with_position).position == 48_214


def test_a_floor_keeps_what_the_alert_policy_remembers() -> None:
    rules = AlertRules(0.1, 600_000, hold=True, end_record=True, max_per_hour=20, mute=("a*", "\u00e9"))
    history = (RulesFrom(7, AlertRules(None)), RulesFrom(48_000, rules))
    memory = PartitionMemory(history, (Hour(491_008, 20, 3, 48_100, 48_200), Hour(-1, 0, 0, -1, -1)))
    found = unpack_floor(pack_floor(unpack_floor(GOLDEN_FLOOR)._replace(position=48_214, alerts=memory)))
    assert found.alerts == memory
    assert found._replace(position=-1, alerts=None) == unpack_floor(GOLDEN_FLOOR)


def test_the_bytes_of_a_state_with_an_incident() -> None:
    """One format higher, and four numbers before the row; without one, the bytes are those of before."""
    key, value = a_state()
    incident = Incident(1_767_609_067_123, 1_767_609_068_000, 48_200, 17)
    _, with_incident = pack(b"c000123", DIGEST, 7, unpack_state(key, value).state._replace(incident=incident))
    at = 59  # of the row
    assert with_incident[:4] + b"\x03" + with_incident[5:at] == value[:at]
    assert with_incident[4] == 4
    assert with_incident[at:-4] == struct.pack("<4q", *incident) + value[at:-4]
    assert is_unusual(with_incident)
    assert not is_unusual(value)
    assert unpack_states([key], [with_incident], DIGEST, 3) is None


def test_damaged_floors() -> None:
    value = a_floor()
    wrong = [flipped(value, bit) for bit in range(8 * len(value))] + [value[:n] for n in range(len(value))]
    wrong += [b"[]", b"null", b"{}", b'{"crc":0}', b"1", b'{"crc":[]}']
    for fields in ({"format": 1}, {"format": 3}, {"more": 1}, {"identity": {}}, {"identity": 1}):
        changed = {**orjson.loads(value), **fields}
        del changed["crc"]
        wrong.append(orjson.dumps({**changed, "crc": crc32(orjson.dumps(changed))}))
    for one in wrong:
        with pytest.raises(CorruptStateRecord):
            unpack_floor(one)


def test_an_identity_is_the_fingerprint_and_the_settings_not_the_name() -> None:
    assert IDENTITY._replace(model="x", version="9").digest == DIGEST
    changed = [name for name in StateIdentity._fields if name not in ("model", "version")]
    others = [IDENTITY._replace(**{name: "x"}).digest for name in changed]
    assert len({*others, DIGEST}) == len(changed) + 1 == 8
    moved = IDENTITY._replace(ttl=IDENTITY.late, late=IDENTITY.ttl)
    assert moved.digest != DIGEST
