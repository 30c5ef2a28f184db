"""States come back: from the state topic in slices, by the newest record of each key, and by replay from the floor."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream.errors import TryAgain
from lstmstream.serve.committer import NONCE_PREFIX
from lstmstream.serve.partition import PartitionPhase
from lstmstream.serve.restore import Restored, RestorePhase
from lstmstream.serve.state_records import (
    floor_key,
    pack_key,
)
from tests.serve.restore_world import BASE_MS, IDENTITY, INPUT, OTHER, STATE, Key, World, marks, rows_of

pytestmark = pytest.mark.usefixtures("either_place")


def test_states_and_the_replay_since_the_floor_give_the_present_states() -> None:
    world = World()
    world.produce(b"a", b"b", b"a", b"c", b"a", b"b", None)
    world.commit_offset(7)
    world.write(b"a", b"b", at=3)
    world.write(b"a", at=5)  # the newest record counts
    world.write_floor(3)
    partition = world.restored()
    assert world.replayed_from == 3
    assert (partition.floor, partition.floor_lag, partition.origin) == (3, 4, 0)
    assert marks(partition) == {b"b": 5, b"c": 3, None: 6}, "by the first change that no record contains"
    assert partition.dirty.oldest() == (-np.inf, BASE_MS + 3_000)


def test_what_is_replayed_in_many_slices_is_dirty_since_its_first_change() -> None:
    world = World()
    world.produce(*[b"c", b"b", b"a"] * 10)
    world.commit_offset(30)
    world.write(b"a", b"b", b"c", at=3)  # whose rows are in another order than their changes
    world.write_floor(3)
    partition = world.restored()
    assert marks(partition) == {b"c": 3, b"b": 4, b"a": 5}
    assert partition.dirty.oldest() == (-np.inf, BASE_MS + 3_000)


def test_more_keys_than_a_slab_begins_with() -> None:
    world = World()
    keys = [b"%d" % i for i in range(600)]
    world.produce(*keys)
    world.commit_offset(600)
    world.write(*keys[:590], at=590)
    world.write_floor(590)
    assert marks(world.restored()) == {b"%d" % i: i for i in range(590, 600)}


def test_events_that_were_replayed_pay_for_their_states() -> None:
    world = World()
    world.produce(*[b"%d" % i for i in range(40)])
    world.commit_offset(40)
    world.write_floor(0)
    world.restored()
    assert world.checkpointer.due()  # at once: who is killed again and again must not replay more each time
    world.now_s += 1
    plan = world.checkpointer.plan(events=0, changed={}, positions={})
    assert (len(plan.written[0]), plan.floors) == (8, {0: 8})


def test_it_works_in_slices() -> None:
    """So that the member stays in its group: some reads of the state topic, then some of the input."""
    world = World()
    keys = [b"%d" % i for i in range(50)]
    world.produce(*keys, *keys)
    world.commit_offset(100)
    world.write(*keys, at=50)
    world.write_floor(50)
    world.read_takes_s = 0.3
    restore = world.begin()
    partition = world.partitions[0]
    assert restore.remaining == 0
    left: list[tuple[RestorePhase, int]] = []
    while (restored := restore.advance(world.membership, 0.5)) is None:
        assert partition.phase is PartitionPhase.RESTORING
        assert world.partitions.running() == []
        left.append((restore.phase, restore.remaining))
    assert [n for phase, n in left if phase is RestorePhase.LOAD] == [37, 23, 9, 0]  # two reads of seven in each
    assert [n for phase, n in left if phase is RestorePhase.REPLAY] == [36, 22, 8, 0]
    assert restored == Restored(0, 100, 50, 50, 50, pytest.approx(0.3 * (8 + 8)), state_records=51)
    assert restore.phase is RestorePhase.DONE
    assert restore.remaining == 0
    world.check()
    assert world.partitions[0].restore is None
    assert [(reader.topic, reader.closed) for reader in world.transport.readers] == [(STATE, True), (INPUT, True)]


def test_a_restore_that_is_given_up_frees_its_reader() -> None:
    world = World()
    world.produce(b"a")
    world.write(b"a", at=1)
    restore = world.begin()
    world.read_takes_s = 2.0
    assert restore.advance(world.membership, 1.0) is None
    (reader,) = world.transport.readers
    assert not reader.closed
    world.partitions[0].close()
    assert reader.closed
    restore.close()


@pytest.mark.parametrize(("now", "again"), [(100, False), (101, True), (None, True)])
def test_after_a_fault_it_goes_on_if_the_committed_offset_is_the_same(now: int | None, again: bool) -> None:
    """It works towards the offset that was committed when it began, whoever committed it since."""
    world = World()
    keys = [b"%d" % i for i in range(50)]
    world.produce(*keys, *keys)
    world.commit_offset(100)
    world.write(*keys, at=50)
    world.write_floor(50)
    world.read_takes_s = 0.3
    restore = world.begin()
    assert restore.advance(world.membership, 0.5) is None
    before = (restore.phase, restore.remaining, len(world.transport.readers))
    assert before == (RestorePhase.LOAD, 37, 1)
    restore.check_again()
    if now is None:
        world.broker.offsets.clear()
    else:
        world.commit_offset(now)
    world.faults.append("committed_offset")
    with pytest.raises(TryAgain):
        restore.advance(world.membership, 0.5)
    assert (restore.phase, restore.remaining, len(world.transport.readers)) == before, "it was not seen yet"
    assert restore.advance(world.membership, 0.5) is None
    if again:
        assert (restore.remaining, len(world.transport.readers)) == (37, 2)
        assert world.transport.readers[0].closed
    else:
        assert (restore.remaining, len(world.transport.readers)) == (23, 1)
        world.finish(restore)
        world.check()


# -- what the state topic holds


def test_a_state_topic_that_does_not_start_at_0() -> None:
    world = World()
    world.produce(b"a", b"b", b"a")
    world.commit_offset(3)
    for _ in range(30):
        world.write(b"a", at=1)
    world.write(b"b", at=2)
    world.write(b"a", at=3)
    world.write_floor(3)
    world.broker.truncate(STATE, 0, 29)
    world.broker.compact(STATE)
    world.restored()
    assert world.transport.readers[0].start == 29


def test_newer_records_of_a_key_replace_older_ones_within_and_across_reads() -> None:
    world = World()
    world.produce(*[b"a", b"b"] * 20)
    world.commit_offset(40)
    for at in range(2, 41):
        world.write(b"a", b"b", at=at)
    world.write_floor(40)
    world.restored()


def test_a_tombstone_removes_a_key() -> None:
    """And its row is free for the next."""
    world = World()
    world.produce(b"a", b"b", b"c")
    world.commit_offset(3)
    world.write(b"a", b"b", at=2)
    world.append(pack_key(b"a", IDENTITY.digest), None)
    world.append(pack_key(b"never there", IDENTITY.digest), None)
    for _ in range(8):
        world.write(b"c", at=3)  # so that the reads differ
    world.append(pack_key(b"b", IDENTITY.digest), None)
    world.write_floor(3)
    world.finish(world.begin())
    assert rows_of(world.partitions[0].slab) == {b"c": rows_of(world.states_at(3))[b"c"]}


def test_a_damaged_record_means_a_rebuild_from_the_beginning() -> None:
    world = World()
    world.produce(b"a", b"b", b"a", b"b")
    world.commit_offset(4)
    world.write(b"a", b"b", at=4)
    world.write_floor(4)
    world.damage(0)
    partition = world.restored()
    assert world.replayed_from == 0
    assert partition.floor == 0, "until the state is written again, a restart would have to do the same"
    assert marks(partition) == {b"a": 0}


@pytest.mark.parametrize("apart", [0, 10])
def test_a_damaged_record_that_was_replaced_by_a_good_one_needs_no_rebuild(apart: int) -> None:
    """In the same read or in a later one; a rebuild would be refused here, for the input is gone."""
    world = World()
    world.produce(b"a", b"b", b"a", b"b")
    world.commit_offset(4)
    world.write(b"a", at=1)
    world.damage(0)
    for _ in range(apart):
        world.write(b"b", at=4)
    world.write(b"a", b"b", at=4)
    world.write_floor(4)
    world.broker.truncate(INPUT, 0, 4)
    world.finish(world.begin())
    assert rows_of(world.partitions[0].slab).keys() == {b"a", b"b"}
    assert world.partitions[0].slab.steps[:2].tolist() == [2, 2]
    assert world.replayed_from == 4


@pytest.mark.parametrize("apart", [0, 10])
def test_a_good_record_that_was_replaced_by_a_damaged_one_is_not_used(apart: int) -> None:
    world = World()
    world.produce(b"a", b"b", b"a", b"b")
    world.commit_offset(4)
    world.write(b"a", at=1)
    for _ in range(apart):
        world.write(b"b", at=4)
    world.write(b"a", at=4)
    world.damage(-1)
    world.write_floor(4)
    assert marks(world.restored()) == ({b"a": 0} if apart else {b"a": 0, b"b": 1})
    assert world.replayed_from == 0


@pytest.mark.parametrize("key", [b"", b"x", b"junk of another tool"])
def test_a_record_of_another_tool_that_was_cleared_away_needs_no_rebuild(key: bytes) -> None:
    world = World()
    world.produce(b"a", b"a")
    world.write(b"a", at=2)
    world.write_floor(2)
    world.commit_offset(2)
    world.append(key, b"junk")
    world.append(key, None)
    world.restored()
    assert world.replayed_from == 2


def test_damaged_records_of_several_keys_that_were_all_replaced_need_no_rebuild() -> None:
    """Also where the good record of one comes in the same read as a damaged one of another."""
    world = World()
    world.produce(b"a", b"b", b"c")
    world.commit_offset(3)
    world.write(b"a", at=1)
    world.damage(-1)
    for _ in range(6):
        world.write(b"c", at=3)
    world.write(b"a", b"b", at=2)
    world.damage(-1)
    for _ in range(6):
        world.write(b"c", at=3)
    world.write(b"b", at=3)
    world.write_floor(3)
    world.restored()
    assert world.replayed_from == 3


@pytest.mark.parametrize("apart", [0, 10])
def test_a_damaged_record_that_was_removed_needs_no_rebuild(apart: int) -> None:
    world = World()
    world.produce(b"a", b"b")
    world.commit_offset(2)
    world.write(b"a", b"b", at=2)
    world.damage(0)
    for _ in range(apart):
        world.write(b"b", at=2)
    world.append(pack_key(b"a", IDENTITY.digest), None)
    world.write_floor(2)
    world.finish(world.begin())
    assert world.replayed_from == 2
    assert set(world.partitions[0].slab.index) == {b"b"}


def test_a_record_that_nobody_wrote_means_a_rebuild() -> None:
    """Its key may be the damaged key of a state."""
    for key in (None, b"", b"\x07" + bytes(20), b"\x02" + IDENTITY.digest[:8] + b"x"):
        world = World()
        world.produce(b"a")
        world.commit_offset(1)
        world.write(b"a", at=1)
        world.append(key, b"x")
        world.write_floor(1)
        world.restored()
        assert world.replayed_from == 0


# -- which states count


def test_states_of_other_identities_are_another_matter() -> None:
    """The same keys, whose states are older and newer; a damaged record or floor among them does no harm."""
    world = World()
    world.produce(b"a", b"b", b"a", b"b")
    world.commit_offset(4)
    world.write(b"a", b"b", at=2, identity=OTHER)
    world.damage(1)
    world.write_floor(3, identity=OTHER)
    world.write(b"a", b"b", at=4)
    world.write_floor(4)
    world.write(b"a", at=1, identity=OTHER)
    world.append(pack_key(b"b", OTHER.digest), None)
    world.append(floor_key(OTHER.digest), b"damaged")
    partition = world.restored()
    assert world.replayed_from == 4
    assert (partition.floor, marks(partition)) == (4, {})


def test_states_of_another_origin_do_not_count() -> None:
    """Those from before a reset: not even for a key that was silent since."""
    world = World()
    world.produce(b"old", b"a", b"a", b"b")
    world.commit_offset(4)
    world.write(b"old", b"a", at=2)
    world.write(b"b", at=4, origin=2)
    world.write_floor(2, origin=2)
    partition = world.restored()
    assert (partition.origin, set(partition.slab.index)) == (2, {b"a", b"b"})
    assert world.replayed_from == 2


def test_states_of_another_origin_mean_no_rebuild_wherever_they_came_to() -> None:
    world = World()
    world.produce(b"old", b"a", b"a", b"b", b"ahead")
    world.write(b"old", b"ahead", at=5)  # before the offset was moved back and a reset was done
    world.write(b"a", at=3, origin=2)
    world.write(b"b", at=4, origin=2)
    world.write_floor(4, origin=2)
    world.commit_offset(4)
    assert world.restored().origin == 2
    assert world.replayed_from == 4


def test_the_row_of_another_origins_state_is_used_again() -> None:
    world = World()
    world.produce(b"old", *[b"%d" % i for i in range(20)])
    world.commit_offset(21)
    world.write(b"old", at=1)
    world.write_floor(1, origin=1)
    partition = world.restored()
    assert sorted(partition.slab.index.values()) == list(range(20))


def test_an_offset_that_was_moved_back_means_a_rebuild() -> None:
    """States that hold what is not committed any more are dropped; the others are brought on."""
    for floor, committed in ((2, 3), (5, 3), (2, 4)):
        world = World()
        world.produce(b"a", b"b", b"a", b"b", b"a")
        world.write(b"a", at=5)  # its last event is the one at offset 4
        world.write(b"b", at=2)
        world.write_floor(floor)
        world.commit_offset(committed)
        world.restored()
        assert world.replayed_from == 0
    world = World()
    world.produce(b"a", b"b", b"a")
    world.write(b"a", at=1)
    world.write_floor(2, origin=0)
    world.commit_offset(1)
    world.restored()  # no state is ahead, and yet b's may be: the floor is
    assert world.replayed_from == 0


@pytest.mark.parametrize("metadata", ["", f"{NONCE_PREFIX}before:1"])
def test_an_offset_that_was_moved_back_says_which_events_are_answered_again(
    metadata: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The floor may be older than the last predictions: the states tell as well, those that are not used too."""
    for floor, state, expected in ((5, 5, (3, 4)), (2, 4, (3, 3)), (4, 5, (3, 4))):
        caplog.clear()
        world = World()
        world.produce(b"a", b"b", b"a", b"a", b"a")
        world.write(b"a", at=state)
        world.write_floor(floor)
        world.commit_offset(3, metadata=metadata)
        world.restored()
        (said,) = [vars(record) for record in caplog.records if "are answered again" in record.getMessage()]
        assert (said["first"], said["last"], said["partition"]) == (*expected, 0)


@pytest.mark.parametrize("stale", [None, 0, 1, 3, 4])
@pytest.mark.parametrize(("floor", "state"), [(5, 5), (5, 2), (2, 5)])
def test_an_offset_of_long_before_is_asked_for_again(
    stale: int | None, floor: int, state: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A coordinator that has just started may answer so, for a moment; also as if the group had no offset."""
    caplog.set_level("INFO")
    world = World()
    world.produce(b"a", b"b", b"a", b"b", b"a")
    world.write(b"a", at=state)
    world.write(b"b", at=max(floor, 2))
    world.write_floor(floor)
    world.broker.truncate(INPUT, 0, before=1)
    if stale is not None:
        world.commit_offset(stale)
    restore = world.begin()
    while not restore.doubtful:
        assert restore.advance(world.membership, 1.0) is None
    assert "asking again for 5 s" in caplog.text
    world.now_s += 4.9
    assert restore.advance(world.membership, 1.0) is None
    world.commit_offset(5)
    restored = world.finish(restore)
    assert (restored.offset, world.broker.offsets[0]) == (5, 5)
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_an_offset_that_was_moved_back_before_the_states_began_is_refused() -> None:
    world = World()
    world.produce(b"a", b"b", b"a", b"b", b"a")
    world.write(b"a", at=5, origin=4)
    world.write_floor(5, origin=4)
    world.commit_offset(3)
    message = world.refusal()
    assert "this model's states begin at offset 4. Set the group's offset to 4 or" in message


def test_the_newest_floor_counts() -> None:
    world = World()
    world.produce(b"a", b"b", b"a")
    world.commit_offset(3)
    world.write(b"a", b"b", at=3)
    for floor in (0, 1, 2, 3):
        world.write_floor(floor)
    world.restored()
    assert world.replayed_from == 3


# -- any history


keys = st.sampled_from([None, b"", b"a", b"b", b"c"])
events = st.tuples(st.just("events"), st.lists(keys, max_size=12), st.sampled_from([1.0, 2.5, 666.0]))
others = st.sampled_from([("floor",), ("compact",), ("damage",), ("commit",), ("other",)])
histories = st.lists(
    st.one_of(events, events, events, st.tuples(st.just("write"), st.integers(0, 31)), others), max_size=30
)


@given(histories)
@settings(max_examples=200, deadline=None)
def test_any_history_is_restored_to_the_states_of_its_whole_input(history: list[tuple[Any, ...]]) -> None:
    """Also which rows are dirty, and by which change: those that the newest good record does not contain."""
    world = World()
    world.write_floor(0)
    world.commit_offset(0)
    written: dict[Key, int] = {}  # the offset of the last event in the newest record
    damaged: set[Key] = set()
    for what, *details in history:
        if what == "events":
            world.produce(*details[0], amount=details[1])
        elif what == "commit":
            world.commit_offset(world.end)
        elif what == "compact":
            world.broker.compact(STATE)
        elif what == "floor":
            world.commit_offset(world.end)
            world.write_floor(min([world.end, *first_changes(world, written).values()]))
        elif what == "other":
            world.write_floor(world.end, identity=OTHER)
            world.write(*sorted(world.states_at(world.end).index, key=repr), at=world.end, identity=OTHER)
        elif what == "write":
            world.commit_offset(world.end)
            slab = world.states_at(world.end)
            keys = [key for i, key in enumerate(sorted(slab.index, key=repr)) if details[0] >> i & 1]
            world.write(*keys, at=world.end)
            written |= {key: int(slab.last_offset[slab.index[key]]) for key in keys}
            damaged -= set(keys)
        elif what == "damage" and written:
            key = sorted(written, key=repr)[0]
            record_key = pack_key(key, IDENTITY.digest)
            world.damage(max(i for i, record in enumerate(world.state_log) if record.key == record_key))
            damaged ^= {key}  # the same bit once more: as good as before
    partition = world.restored()
    good = {key: offset for key, offset in written.items() if key not in damaged}
    assert marks(partition) == first_changes(world, good, before=partition.position)
    assert partition.floor == world.replayed_from
    assert world.replayed_from == 0 or not damaged


def first_changes(world: World, written: dict[Key, int], before: int = 2**63 - 1) -> dict[Key, int]:
    """Each key's first event that changed its state and is in no record."""
    found: dict[Key, int] = {}
    for record in world.broker.topics[INPUT].logs[0]:
        counts = json.loads(record.value or b"")["amount"] != 666 and record.offset < before
        if counts and record.offset > written.get(record.key, -1):
            found.setdefault(record.key, record.offset)
    return found
