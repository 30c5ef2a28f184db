"""Slabs and slots, and the records of the state topic: they come back whole, or are called damaged."""

from __future__ import annotations

import struct
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream.serve.checkpoint import (
    FLOOR_KEY,
    Damaged,
    Floor,
    Owner,
    decode_floor,
    decode_state,
    encode_floor,
    encode_state,
    entity_key,
    state_key,
)
from lstmstream.serve.state import KeyState, Slab, StateStore

OWNER = Owner("fraud", "3", "f" * 32, "5000ms", "apply", "the record's", "at")
int64 = st.integers(-(2**63), 2**63 - 1)
entity_keys = st.none() | st.binary(max_size=8) | st.just(b"x" * 65_536)
rows = st.lists(st.integers(0, 2**32 - 1), max_size=9).map(lambda bits: np.array(bits, np.uint32).view(np.float32))
key_states = st.builds(KeyState, rows, int64, int64, int64)


def a_state() -> tuple[bytes, bytes]:
    key = state_key(b"c000123")
    row = np.array([0.5, -0.0, 1e-45], np.float32)
    return key, encode_state(key, OWNER.digest, 7, KeyState(row, 41, 1_767_609_067_123, 48_213))


@given(entity_keys)
def test_keys_come_back(key: bytes | None) -> None:
    assert entity_key(state_key(key)) == key
    assert state_key(key) != FLOOR_KEY


@given(entity_keys, entity_keys)
def test_no_two_keys_meet(one: bytes | None, other: bytes | None) -> None:
    assert (state_key(one) == state_key(other)) == (one == other)


@pytest.mark.parametrize("key", [b"", FLOOR_KEY, b"\x02x", b"\x03", b"c000123"])
def test_other_keys_are_damaged(key: bytes) -> None:
    with pytest.raises(Damaged):
        entity_key(key)


@given(entity_keys, st.binary(min_size=16, max_size=16), int64, key_states)
def test_states_come_back(key: bytes | None, owner: bytes, start: int, state: KeyState) -> None:
    record_key = state_key(key)
    stored = decode_state(record_key, encode_state(record_key, owner, start, state))
    assert (stored.owner, stored.start, stored.state[1:]) == (owner, start, state[1:])
    assert stored.state.row.tobytes() == state.row.tobytes()
    assert stored.state.row.dtype == np.float32


def test_the_bytes_of_a_state() -> None:
    """What is in topics already: a change here needs a new format number."""
    key, value = a_state()
    head = b"LSST\x01" + OWNER.digest + struct.pack("<qqqqI", 7, 48_213, 41, 1_767_609_067_123, 3)
    body = head + struct.pack("<3f", 0.5, -0.0, 1e-45)
    assert value == body + struct.pack("<I", crc32(key + body))


def test_any_flipped_bit_or_cut_or_added_byte_is_damage() -> None:
    key, value = a_state()
    for bit in range(8 * len(value)):
        flipped = bytearray(value)
        flipped[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(Damaged):
            decode_state(key, bytes(flipped))
    for wrong in [value[:n] for n in range(len(value))] + [value + b"\x00", value * 2, b"\x00" * len(value)]:
        with pytest.raises(Damaged):
            decode_state(key, wrong)


@pytest.mark.parametrize("other", [state_key(b"c000124"), state_key(None), state_key(b""), b"c000123", FLOOR_KEY])
def test_a_state_under_another_key_is_damage(other: bytes) -> None:
    with pytest.raises(Damaged):
        decode_state(other, a_state()[1])


@pytest.mark.parametrize(("at", "byte"), [(0, b"X"), (4, b"\x02"), (53, b"\x04")])
def test_a_right_checksum_over_another_format_is_damage(at: int, byte: bytes) -> None:
    key, value = a_state()
    body = value[:at] + byte + value[at + 1 : -4]
    with pytest.raises(Damaged):
        decode_state(key, body + struct.pack("<I", crc32(key + body)))


@given(st.binary(max_size=120))
def test_any_bytes_are_damage_and_nothing_else(value: bytes) -> None:
    for read in (lambda: decode_state(b"\x01k", value), lambda: decode_floor(value)):
        with pytest.raises(Damaged):
            read()


offsets = st.integers(0, 2**62)
owners = st.builds(Owner, *[st.text(max_size=5)] * 7)
floors = st.builds(Floor, owners, offsets, offsets, st.text(max_size=9), st.integers(1, 9))


@given(floors)
def test_floors_come_back(floor: Floor) -> None:
    found = decode_floor(encode_floor(floor))
    assert found == floor
    assert found.owner.digest == floor.owner.digest


def test_damaged_floors() -> None:
    value = encode_floor(Floor(OWNER, 3, 48_213, "AbC_d-1", 6))
    for bit in range(8 * len(value)):
        flipped = bytearray(value)
        flipped[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(Damaged):
            decode_floor(bytes(flipped))
    for wrong in [value[:n] for n in range(len(value))] + [b"[]", b"null", b"{}", b'{"crc":0}', b"1", b'{"crc":[]}']:
        with pytest.raises(Damaged):
            decode_floor(wrong)


def test_an_owner_is_the_fingerprint_and_the_settings_not_the_name() -> None:
    assert OWNER._replace(model="x", version="9").digest == OWNER.digest
    others = [OWNER._replace(**{name: "x"}).digest for name in ("fingerprint", "ttl", "late", "key", "timestamp")]
    assert len({*others, OWNER.digest}) == 6


def test_a_slab_grows_and_forgets() -> None:
    slab = Slab(3)
    for i in range(1_000):
        slab.put(b"%d" % i, KeyState(np.full(3, i, np.float32), i, -i, 2 * i))
    slab.put(b"5", KeyState(np.full(3, 0.5, np.float32), 1, 2, 3))
    assert len(slab) == 1_000
    assert slab.get(slab.index[b"999"])[1:] == (999, -999, 1998)
    assert slab.get(slab.index[b"5"]).row.tolist() == [0.5] * 3
    copy = slab.get(7)
    copy.row[:] = 9
    assert slab.rows[7].tolist() == [7] * 3
    slab.forget_from(6)
    assert list(slab.index) == slab.keys == [b"%d" % i for i in range(6)]


@given(st.lists(st.tuples(st.integers(0, 3), st.none() | st.binary(max_size=1)), max_size=40))
@settings(deadline=None)
def test_rounds_take_each_key_once_and_in_order(pairs: list[tuple[int, bytes | None]]) -> None:
    store = StateStore(np.zeros(1, np.float32))
    for partition in range(4):
        store.open(partition)
    gathered = store.gather(np.array([p for p, _ in pairs], np.int64), [key for _, key in pairs])
    slot_names = [
        (p, store.slabs[p].keys[row])
        for p, row in zip(gathered.partitions.tolist(), gathered.row_numbers.tolist(), strict=True)
    ]
    assert sorted(map(repr, set(pairs))) == sorted(map(repr, slot_names))
    seen: list[int] = []
    for start, end in zip(gathered.bounds, gathered.bounds[1:], strict=False):
        events = gathered.by_turn[start:end].tolist()
        assert [pairs[i] for i in events] == slot_names[: len(events)]  # a prefix of the slots
        assert events
        seen += events
    assert sorted(seen) == list(range(len(pairs)))
    for name in slot_names:
        mine = [i for i in seen if pairs[i] == name]
        assert mine == sorted(mine)


def test_a_partition_is_not_closed_under_a_staged_batch() -> None:
    store = StateStore(np.zeros(1, np.float32))
    store.open(0)
    store.gather(np.array([0]), [b"a"])
    with pytest.raises(AssertionError):
        store.close(0)
    with pytest.raises(AssertionError):
        store.gather(np.array([0]), [b"a"])
    store.rollback()
    store.close(0)
    store.close(0)
