"""After a fault of the transport a restore goes on where it was, or starts over if the committed offset has moved."""

from __future__ import annotations

import pytest

from lstmstream.errors import CannotServe, TryAgain
from lstmstream.serve.restore import RETRY_S, Restore, RestorePhase
from tests.serve.restore_world import INPUT, STATE, World, marks

KEYS = [b"%d" % i for i in range(20)]


@pytest.mark.parametrize("point", ["committed_offset", "bounds", "open_reader", "read"])
def test_a_fault_of_the_broker_loses_nothing(point: str) -> None:
    world = World()
    keys = [b"%d" % i for i in range(20)]
    world.produce(*keys, *keys)
    world.commit_offset(40)
    world.write(*keys, at=20)
    world.write_floor(20)
    restore = world.begin()
    world.read_takes_s = 0.3
    for _ in range(3):
        world.faults.append(point)
        try:
            restore.advance(world.membership, 0.5)
        except TryAgain:
            continue
    world.faults.clear()
    world.finish(restore)
    world.check()


def under_way(phase: RestorePhase) -> tuple[World, Restore]:
    """A restore that has read seven records in this phase, and has more than seven left."""
    world = World()
    world.produce(*KEYS, *KEYS)
    world.commit_offset(40)
    world.write(*KEYS, at=20)
    world.write_floor(20)
    world.read_takes_s = 0.3
    restore = world.begin()
    while restore.phase is not phase:
        assert restore.advance(world.membership, 0.1) is None
    assert restore.remaining > 7
    return world, restore


@pytest.mark.parametrize("phase", [RestorePhase.LOAD, RestorePhase.REPLAY])
def test_it_goes_on_where_it_was_if_the_committed_offset_is_the_same(phase: RestorePhase) -> None:
    world, restore = under_way(phase)
    world.broker.metadata[0] = "of another transaction"
    left = restore.remaining
    restore.check_again()
    world.points.clear()
    assert restore.advance(world.membership, 0.1) is None
    assert (restore.phase, restore.remaining) == (phase, left - 7)
    restored = world.finish(restore)
    assert world.points.count("committed_offset") == 1, "asked once for each failure"
    assert (restored.offset, restored.replayed) == (40, 20)
    assert [reader.topic for reader in world.transport.readers] == [STATE, INPUT]
    world.check()


@pytest.mark.parametrize("phase", [RestorePhase.LOAD, RestorePhase.REPLAY])
def test_without_a_failure_the_committed_offset_is_asked_for_once(phase: RestorePhase) -> None:
    world, restore = under_way(phase)
    world.commit_offset(41)
    assert world.finish(restore).offset == 40
    assert world.points.count("committed_offset") == 1


@pytest.mark.parametrize("phase", [RestorePhase.LOAD, RestorePhase.REPLAY])
def test_it_starts_over_if_the_committed_offset_has_gone_on(phase: RestorePhase) -> None:
    """Nothing of the first attempt may be left: neither states nor which of them are not written."""
    world, restore = under_way(phase)
    world.produce(*KEYS[:5])
    world.commit_offset(45)
    world.write(*KEYS, at=43)
    world.write_floor(43)
    (*_, reader) = world.transport.readers
    restore.check_again()
    assert restore.advance(world.membership, 0.1) is None
    assert (restore.phase, reader.closed) == (RestorePhase.LOAD, True)
    restored = world.finish(restore)
    assert (restored.offset, restored.replayed, restored.states) == (45, 2, 20)
    assert world.partitions[0].floor == 43
    assert marks(world.partitions[0]) == {KEYS[3]: 43, KEYS[4]: 44}
    assert all(reader.closed for reader in world.transport.readers)
    world.check()


@pytest.mark.parametrize("phase", [RestorePhase.LOAD, RestorePhase.REPLAY])
@pytest.mark.parametrize("offset", [25, 10])
def test_it_starts_over_if_the_committed_offset_was_moved_back(phase: RestorePhase, offset: int) -> None:
    world, restore = under_way(phase)
    world.commit_offset(offset)
    restore.check_again()
    assert world.finish(restore).offset == offset
    world.check()


@pytest.mark.parametrize("phase", [RestorePhase.LOAD, RestorePhase.REPLAY])
def test_an_offset_that_is_gone_after_a_fault_is_refused(phase: RestorePhase) -> None:
    world, restore = under_way(phase)
    world.broker.offsets.clear()
    restore.check_again()
    with pytest.raises(CannotServe, match="the group's offsets are gone"):
        world.finish(restore)


def test_nothing_that_the_first_attempt_has_read_is_believed_in_the_second() -> None:
    """The state topic and the group's offset were removed meanwhile: there are no states, so it begins with none."""
    world = World()
    world.produce(*KEYS)
    world.commit_offset(20)
    world.write_floor(20)
    world.write(*KEYS, at=20)
    world.read_takes_s = 0.3
    restore = world.begin()
    assert restore.advance(world.membership, 0.1) is None
    assert (restore.phase, len(world.partitions[0].slab)) == (RestorePhase.LOAD, 6), "the floor and six states"
    world.state_log.clear()
    world.broker.offsets.clear()
    restore.check_again()
    restored = world.finish(restore)
    assert (restored.offset, restored.states) == (0, 0)


@pytest.mark.parametrize("appears", [False, True])
def test_a_group_without_an_offset_is_as_good_as_one_with(appears: bool) -> None:
    world = World()
    world.read_takes_s = 0.3
    world.append(b"x", b"x")
    restore = world.begin()
    assert restore.advance(world.membership, 0.1) is None
    if appears:
        world.commit_offset(0)
        world.write_floor(0)
    restore.check_again()
    world.finish(restore)
    assert [reader.topic for reader in world.transport.readers] == ([STATE, STATE, INPUT] if appears else [STATE])
    assert (world.partitions[0].position, world.broker.offsets) == (0, {0: 0})


@pytest.mark.parametrize("on_model_change", ["fail", "reset"])
@pytest.mark.parametrize("offset", [40, 23, 10])
def test_an_input_that_cannot_be_opened_leaves_the_choice_as_it_was(offset: int, on_model_change: str) -> None:
    """Also where states were dropped, and all must be rebuilt because the group's offset was moved back."""
    world = World(on_model_change=on_model_change)
    world.produce(*KEYS, *KEYS)
    world.write(*KEYS, at=20)
    world.write(*KEYS[:5], at=25)
    world.write_floor(20)
    world.commit_offset(offset)
    world.read_takes_s = 0.3
    restore = world.begin()
    while restore.remaining > 0 or restore.phase is RestorePhase.LOOK_UP:
        restore.advance(world.membership, 0.1)
    world.faults += ["open_reader", "open_reader"]
    while world.faults:
        with pytest.raises(TryAgain):
            world.finish(restore, 0.1)
    assert world.finish(restore).offset == offset
    assert world.partitions[0].floor == (20 if offset == 40 else 0)
    world.check()


def test_a_check_that_fails_is_made_again() -> None:
    world, restore = under_way(RestorePhase.REPLAY)
    world.commit_offset(30)
    restore.check_again()
    for _ in range(2):
        world.faults.append("committed_offset")
        with pytest.raises(TryAgain):
            restore.advance(world.membership, 0.1)
        assert restore.phase is RestorePhase.REPLAY
    assert world.finish(restore).offset == 30
    world.check()


def test_a_restore_that_has_not_begun_has_nothing_to_check() -> None:
    world = World()
    world.produce(b"a")
    world.write_floor(0)
    restore = world.begin()
    restore.check_again()
    world.commit_offset(1)
    assert world.finish(restore).offset == 1
    world.check()


def test_a_failure_is_followed_by_a_pause() -> None:
    restore = (world := World()).begin()
    assert restore.retry_at_s <= world.now_s, "the first attempt does not wait"
    for number in range(1, 3):
        restore.note_failure()
        assert (restore.failures, restore.retry_at_s) == (number, world.now_s + RETRY_S)
        world.now_s += 7
