"""Records that cannot be decoded and that a restore meets: passed over if they were never answered, else refused."""

from __future__ import annotations

import logging

import pytest

from lstmstream.errors import CannotServe, Fatal, UnreadableRecords
from lstmstream.records import RecordBatch
from tests.serve.restore_world import INPUT, STATE, Reader, World, rows_of

BAD = range(5, 8)  # offsets of the input
FOREIGN = ""  # metadata of a commit by kafka-consumer-groups


def damaged(world: World, topic: str, offsets: range) -> World:
    """These offsets of a topic cannot be decoded."""

    class Damaged(Reader):
        def next(self, timeout_s: float) -> RecordBatch:
            if self.topic == topic and self.position in offsets:
                raise UnreadableRecords(topic, 0, self.position, offsets.stop, "its CRC does not match")
            end, self.end = self.end, min(self.end, offsets.start) if self.position < offsets.start else self.end
            try:
                return super().next(timeout_s)
            finally:
                self.end = end

    def open_reader(name: str, partition: int, start: int, end: int) -> Reader:
        world.transport.readers.append(Damaged(world.broker, name, partition, start, end))
        return world.transport.readers[-1]

    world.transport.open_reader = open_reader  # type: ignore[method-assign]
    return world


def with_events(*, floor: int, position: int = 0, accept: bool = False) -> World:
    """Ten events; those of the key x are the ones that cannot be decoded, so that states never contain them."""
    world = World(on_foreign_commit="accept" if accept else "fail")
    world.produce(*[b"x" if offset in BAD else b"k%d" % (offset % 3) for offset in range(10)])
    world.write_floor(floor, position=position)
    if floor:
        world.write(b"k0", b"k1", b"k2", at=floor)
    return damaged(world, INPUT, BAD)


def check_without_them(world: World) -> None:
    expected = rows_of(world.states_at(world.broker.offsets[0]))
    expected.pop(b"x", None)
    assert rows_of(world.partitions[0].slab) == expected


def test_the_group_is_moved_past_them(caplog: pytest.LogCaptureFixture) -> None:
    """What the daemon's last line says is done, and it goes on; once more after that, when it replays them again."""
    world = with_events(floor=0, position=5)
    world.commit_offset(8, metadata=FOREIGN)
    with caplog.at_level(logging.ERROR):
        world.finish(world.begin())
    assert "in[0]@5: the batch of offsets 5 to 7 cannot be decoded" in caplog.text
    assert world.broker.offsets[0] == 8
    check_without_them(world)

    again = with_events(floor=0, position=8)
    again.commit_offset(10)
    again.finish(again.begin())
    check_without_them(again)


def test_records_beside_them_that_can_be_read_are_not_passed_over() -> None:
    world = with_events(floor=0, position=4)
    world.commit_offset(9, metadata=FOREIGN)
    with pytest.raises(CannotServe, match="offsets 4 to 8 have no prediction"):
        world.finish(world.begin())
    accepted = with_events(floor=0, position=4, accept=True)
    accepted.commit_offset(9, metadata=FOREIGN)
    accepted.finish(accepted.begin())
    check_without_them(accepted)


def test_what_was_answered_is_not_left_out() -> None:
    """The disk failed later: states without these events would be wrong."""
    world = with_events(floor=3, position=3)
    world.commit_offset(10)
    with pytest.raises(Fatal, match=r"in\[0\]@5: .* It was already processed, .*on_model_change: reset"):
        world.finish(world.begin())


def test_states_that_cannot_be_read_are_rebuilt() -> None:
    world = World()
    world.produce(*[b"k%d" % (offset % 3) for offset in range(10)])
    world.write_floor(0)
    world.write(b"k0", b"k1", at=4)
    world.write(b"k0", b"k1", b"k2", at=9)
    world.write_floor(9)
    world.commit_offset(10)
    damaged(world, STATE, range(3, 6))
    world.restored()
    assert world.replayed_from == 0
