"""What a restore makes of what it finds: go on, start with empty states, or refuse with the cure."""

from __future__ import annotations

import struct
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from lstmstream.errors import CannotServe, TryAgain
from lstmstream.serve.committer import NONCE_PREFIX
from lstmstream.serve.partition import PartitionPhase
from lstmstream.serve.state import KeyState
from lstmstream.serve.state_records import (
    StateIdentity,
    floor_key,
    pack_key,
    unpack_floor,
)
from tests.serve.memory_world import PARTITIONS
from tests.serve.memory_world import World as MemoryWorld
from tests.serve.restore_world import BASE_MS, IDENTITY, INPUT, OTHER, STATE, World


def test_a_damaged_floor_is_refused_unless_a_newer_one_is_good() -> None:
    world = World()
    world.produce(b"a")
    world.commit_offset(1)
    world.write(b"a", at=1)
    world.append(floor_key(IDENTITY.digest), b"damaged")
    world.write_floor(1)
    world.restored()
    world.append(floor_key(IDENTITY.digest), b"damaged")
    message = world.refusal()
    assert f"the floor record in topic {STATE!r}, partition 0, is damaged (at offset 3: " in message
    assert "on_model_change: reset" in message


def test_a_floor_that_was_removed_is_no_floor() -> None:
    world = World()
    world.produce(b"a")
    world.commit_offset(1)
    world.write(b"a", at=1)
    world.write_floor(1)
    world.append(floor_key(IDENTITY.digest), None)
    assert "holds no states" in world.refusal()
    world.write_floor(1, identity=OTHER)
    world.append(floor_key(OTHER.digest), None)
    world.append(floor_key(IDENTITY.digest), b"damaged")
    world.append(floor_key(IDENTITY.digest), None)
    assert "holds no states" in world.refusal()


def test_floors_of_other_identities_alone_are_refused_and_all_are_named() -> None:
    third = OTHER._replace(model="third", fingerprint="d" * 32)
    world = World()
    world.produce(b"a")
    world.commit_offset(1)
    for identity in (OTHER, third):
        world.write(b"a", at=1, identity=identity)
        world.write_floor(1, identity=identity)
    message = world.refusal()
    theirs = [
        f"model {name} version 1 (fingerprint {letter * 32})" for name, letter in (("other", "e"), ("third", "d"))
    ]
    ours = f"model m version 1 (fingerprint {'f' * 32})"
    assert f"its states belong to {' and '.join(theirs)}, but this is {ours}. Serve the old one" in message
    assert "on_model_change: replay" in message


@pytest.mark.parametrize(
    ("change", "there", "here"),
    [
        ({"ttl": "3600000ms"}, "state.ttl 3600000ms", "state.ttl none"),
        ({"others": "max_keys 5"}, "max_keys 5", "no other settings"),
        ({"late": "drop", "key": "id"}, "input.late drop, input.key id", "input.late apply, input.key the record's"),
    ],
)
def test_of_the_settings_those_are_named_that_differ(change: dict[str, str], there: str, here: str) -> None:
    world = World()
    world.produce(b"a")
    world.commit_offset(1)
    identity = IDENTITY._replace(**change)
    world.write(b"a", at=1, identity=identity)
    world.write_floor(1, identity=identity)
    assert f"to model m version 1 ({there}), but this is model m version 1 ({here})." in world.refusal()


def test_a_reset_begins_at_the_committed_offset_and_leaves_the_others_states() -> None:
    world = World(on_model_change="reset")
    world.produce(b"a", b"a", b"b")
    world.commit_offset(2)
    world.write(b"a", at=2, identity=OTHER)
    world.write_floor(2, identity=OTHER)
    before = list(world.state_log)
    partition = world.restored()
    assert (partition.origin, partition.floor, len(partition.slab)) == (2, 2, 0)
    *same, floor = world.state_log
    assert same == before
    assert (floor.key, unpack_floor(floor.value).origin) == (floor_key(IDENTITY.digest), 2)
    assert world.broker.metadata[0], "the offset was committed with it"
    again = World(on_model_change="reset")  # a reset that was done is not done once more
    again.produce(b"a", b"b")
    again.commit_offset(2)
    again.write(b"b", at=2, origin=1)
    again.write_floor(2, origin=1)
    assert again.restored().origin == 1
    assert len(again.state_log) == 2


@pytest.mark.parametrize(
    ("start", "origin"),
    [
        ("earliest", 2),
        ("latest", 5),
        (BASE_MS, 2),
        (BASE_MS + 2_001, 3),
        (BASE_MS + 4_000, 4),
        (BASE_MS + 4_001, 5),
    ],
)
def test_where_nothing_is_there_states_begin_where_the_config_says(start: str | int, origin: int) -> None:
    world = World(start=start)
    world.produce(*[b"a"] * 5)
    world.broker.truncate(INPUT, 0, 2)
    partition = world.restored()
    assert (partition.origin, partition.floor, partition.position) == (origin, origin, origin)
    assert world.broker.offsets == {0: origin}
    (floor,) = world.state_log
    assert unpack_floor(floor.value)[:7] == (IDENTITY, origin, origin, world.ids[1], 1, world.ids[0], origin)


def test_states_left_by_an_aborted_beginning_do_not_count() -> None:
    """The floor and the offset are committed at once, so states without either are nobody's."""
    world = World()
    world.produce(b"a", b"a")
    world.write(b"a", at=2)
    assert world.restored().position == 0
    assert len(world.partitions[0].slab) == 0


@pytest.mark.parametrize("identity", [IDENTITY, OTHER])
def test_states_without_offsets_are_refused(identity: StateIdentity) -> None:
    world = World(on_model_change="reset")
    world.produce(b"a")
    world.write_floor(1, identity=identity)
    message = world.refusal()
    assert "the group's offsets are gone" in message
    assert ("of this partition to where it stopped: 1 after a clean stop" in message) is (identity == IDENTITY)


def test_an_offset_without_states_is_refused() -> None:
    world = World()
    world.produce(b"a")
    world.commit_offset(1)
    assert f"the group's offset is 1, but topic {STATE!r} holds no states" in world.refusal()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_topic_id": "another"}, f"were not written for the topic {INPUT!r} that is there now: it was deleted"),
        ({"state_topic_id": "another"}, f"topic {STATE!r} was deleted and recreated"),
        ({"partitions": 2}, f"topic {INPUT!r} has 1 partition, and had 2"),
    ],
)
@pytest.mark.parametrize("committed", [1, None, 9], ids=["in the log", "gone with the topic", "behind the end"])
def test_states_of_other_topics_are_refused(changes: dict[str, Any], message: str, committed: int | None) -> None:
    """Whatever the group's offset: moving it would not help."""
    world = World()
    world.produce(b"a")
    if committed is not None:
        world.commit_offset(committed)
    world.write_floor(1, **changes)
    assert message in world.refusal()


def test_an_input_that_no_longer_reaches_back_to_the_floor_is_refused() -> None:
    world = World()
    world.produce(b"a", b"b", b"a")
    world.commit_offset(3)
    world.write(b"a", at=1)
    world.write_floor(1)
    world.broker.truncate(INPUT, 0, 2)
    message = world.refusal()
    assert "must be rebuilt from offset 1, but the input begins at 2" in message
    assert "retention is too short" in message


@pytest.mark.parametrize("damaged_beside", [False, True])
@pytest.mark.parametrize("row", [[1.0, np.nan], [np.inf, 0.0], [1.0, 2.0, 3.0], []])
def test_a_state_that_does_not_fit_the_model_is_refused(row: list[float], damaged_beside: bool) -> None:
    world = World()
    world.produce(b"a", b"b")
    world.commit_offset(2)
    if damaged_beside:
        world.write(b"b", at=2)
        world.damage(0)
    world.write_state(b"a", KeyState(np.array(row, np.float32), 1, BASE_MS, 0))
    world.write_floor(2)
    assert "does not fit the model or is not finite" in world.refusal()


@pytest.mark.parametrize("what", ["floor", "state"])
def test_states_of_format_1_are_refused_with_the_cure(what: str) -> None:
    world = World()
    world.produce(b"a")
    world.commit_offset(1)
    if what == "floor":
        for key in (b"\x01c1", b"\x01a-longer-key", b"\x02"):
            world.append(key, b"whatever it was")
        world.append(b"\x00", b'{"format":1}')
    else:
        key = pack_key(b"a", IDENTITY.digest)
        head = struct.pack("<4sB16sqqqqI", b"LSST", 1, IDENTITY.digest, 0, 0, 1, BASE_MS, 2)
        body = head + struct.pack("<2f", 0.5, 0.0)
        world.append(key, body + struct.pack("<I", crc32(key + body)))
    message = world.refusal()
    assert f"topic {STATE!r}, partition 0, offset {len(world.state_log) - 1}: states of an earlier version" in message
    assert "on_model_change: reset" in message


def test_a_beginning_that_is_not_committed_is_begun_again() -> None:
    world = World()
    world.produce(b"a")
    world.faults.append("commit")
    restore = world.begin()
    with pytest.raises(TryAgain):
        world.finish(restore)
    assert world.partitions[0].phase is PartitionPhase.RESTORING
    assert (world.state_log, world.broker.offsets) == ([], {})
    restore.check_again()


@pytest.mark.parametrize("on_model_change", ["fail", "reset"])
def test_an_offset_outside_the_log_is_refused_with_where_to_move_it(on_model_change: str) -> None:
    """Set by hand, or records were lost: it would wait for ever. Deleted before they were answered: it must be said."""
    world = World(on_model_change=on_model_change)
    world.produce(*[b"k"] * 5)
    world.write_floor(0)
    world.commit_offset(9)
    assert "the group's offset is 9, but the input ends at 5" in world.refusal()
    world = World(on_model_change=on_model_change)
    world.produce(*[b"k"] * 5)
    world.write_floor(0)
    world.commit_offset(2)
    world.broker.truncate(INPUT, 0, 4)
    message = world.refusal()
    assert "the group's offset is 2, but the input begins at 4" in message
    assert "Move the group's offset to 4" in message


@pytest.mark.parametrize("topic", [INPUT, STATE])
@pytest.mark.parametrize("committed", [None, 9], ids=["gone with the topic", "behind the end"])
def test_a_topic_that_is_made_again_while_the_daemon_runs_is_named(topic: str, committed: int | None) -> None:
    """The daemon knows the ids of its start; the group's offsets go with the input."""
    world = World()
    world.produce(b"a")
    if committed is not None:
        world.commit_offset(committed)
    world.write_floor(1)
    world.broker.topics[topic].topic_id = "another"
    message = world.refusal()
    assert "was deleted and recreated" in message
    assert repr(topic) in message


@pytest.mark.parametrize(
    ("metadata", "refused"),
    [
        (f"{NONCE_PREFIX}x:7:of{PARTITIONS - 1}", True),
        (f"{NONCE_PREFIX}x:7:of{PARTITIONS}", False),
        (f"{NONCE_PREFIX}x:7", False),
        ("", False),
    ],
)
def test_a_partition_that_the_input_has_grown_by_is_not_begun(metadata: str, refused: bool) -> None:
    """Partition 0, whose states are refused for it, may be another member's."""
    world = MemoryWorld()
    world.start()
    world.broker.offsets[0], world.broker.metadata[0] = 0, metadata
    peer = world.start()
    number = min(world.assigned(peer))
    assert number > 0
    if refused:
        with pytest.raises(CannotServe, match=f"has {PARTITIONS} partitions, and had {PARTITIONS - 1} when"):
            world.step(peer)
        assert number not in world.broker.offsets
    else:
        world.step(peer)
        assert number in world.serving(peer)
