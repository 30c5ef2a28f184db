"""Offsets that hold no record: control records, aborted records, gaps. And offsets that somebody else committed."""

from __future__ import annotations

import logging

import pytest

from lstmstream.errors import CannotServe
from lstmstream.serve.checkpoint import FLOOR_INTERVAL_S
from lstmstream.serve.committer import is_ours
from lstmstream.serve.daemon import Daemon
from tests.serve import restore_world
from tests.serve.memory_world import INPUT, PARTITIONS, STATES, World

EVENT = b'{"amount": 1}'


def running(world: World, events: int = 5, **changes: object) -> Daemon:
    """A daemon that has answered so many events of one key in partition 0."""
    for _ in range(events):
        world.produce(b"k", EVENT, 0)
    daemon = world.start(**changes)
    world.settle()
    return daemon


def idle(world: World, daemon: Daemon, seconds: float = 10.0) -> None:
    for _ in range(int(seconds / FLOOR_INTERVAL_S)):
        world.now_s += FLOOR_INTERVAL_S
        world.step(daemon)


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("control", [1, 102])
def test_they_are_committed_when_idle_and_retention_may_take_them(control: int, delivery: str) -> None:
    world = World(delivery=delivery)
    daemon = running(world)
    world.broker.append_control(INPUT, 0, control)
    idle(world, daemon)
    assert world.broker.offsets[0] == 5 + control
    assert world.floors()[0] == 5 + control
    assert world.metric(daemon, "consumer_lag_records", topic=INPUT, partition="0") == 0
    world.kill(daemon)
    world.broker.truncate(INPUT, 0, 5 + control)
    world.produce(b"k", EVENT, 0)
    world.start()
    world.settle()
    assert world.steps(b"k") == [1, 2, 3, 4, 5, 6]


def test_no_more_than_one_commit_per_second_is_made_for_them() -> None:
    world = World()
    daemon = running(world)
    idle(world, daemon)
    points: list[str] = []
    world.watch = points.append
    for _ in range(30):
        world.broker.append_control(INPUT, 0)
        world.now_s += FLOOR_INTERVAL_S / 10
        world.step(daemon)
    assert points.count("commit") <= 4
    idle(world, daemon, 3)
    points.clear()
    idle(world, daemon)
    assert points.count("commit") == 0, "nothing has changed"


def test_a_batch_takes_the_control_records_behind_it_along() -> None:
    world = World()
    running(world)
    world.produce(b"k", EVENT, 0)
    world.broker.append_control(INPUT, 0, 3)
    world.settle()
    assert world.broker.offsets[0] == 9


def test_a_stop_commits_what_was_passed_over() -> None:
    world = World()
    daemon = running(world)
    world.broker.append_control(INPUT, 0)
    world.step(daemon)
    assert world.stop(daemon) == 0
    assert (world.broker.offsets[0], world.floors()[0]) == (6, 6)


def test_a_stop_looks_for_those_that_no_poll_has_passed_over_yet() -> None:
    """A producer's commit marker comes last, and so may SIGTERM: then retention takes the whole transaction."""
    world = World()
    daemon = running(world)
    world.broker.append_control(INPUT, 0)
    assert world.stop(daemon) == 0
    assert world.broker.offsets[0] == 6
    world.broker.truncate(INPUT, 0, 6)
    world.produce(b"k", EVENT, 0)
    world.start()
    world.settle()
    assert world.steps(b"k") == [1, 2, 3, 4, 5, 6]


def test_a_stop_reads_no_events() -> None:
    """Those that the last look finds are the next owner's."""
    world = World()
    daemon = running(world)
    world.broker.append_control(INPUT, 0)
    world.produce(b"k", EVENT, 0)
    assert world.stop(daemon) == 0
    world.start()
    world.settle()
    assert world.steps(b"k") == [1, 2, 3, 4, 5, 6]


def test_after_an_outage_it_reads_on_behind_them() -> None:
    """Retention took what it had passed over and not committed yet: nothing that was to be read is gone."""
    world = World()
    daemon = running(world)
    idle(world, daemon)
    world.broker.append_control(INPUT, 0)
    world.faults.append("begin")
    world.actions.append(("recover", lambda: world.broker.truncate(INPUT, 0, 6)))
    world.step(daemon)
    assert not world.actions
    assert world.broker.offsets[0] == 5
    world.produce(b"k", EVENT, 0)
    world.settle()
    assert world.steps(b"k") == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("point", ["commit", "committed"])
def test_a_batch_that_is_done_again_is_not_passed_over(point: str) -> None:
    world = World()
    daemon = running(world)
    world.faults.append(point)
    world.produce(b"k", EVENT, 0)
    world.broker.append_control(INPUT, 0, 2)
    world.step(daemon)
    world.settle()
    world.check()
    idle(world, daemon)
    assert world.broker.offsets[0] == 8


def test_a_state_topic_that_begins_in_the_middle_is_read_from_there() -> None:
    world = World()
    daemon = running(world)
    idle(world, daemon)
    assert world.stop(daemon) == 0
    log = world.broker.topics[STATES].logs[0]
    world.broker.compact(STATES)
    world.broker.truncate(STATES, 0, log[0].offset)
    assert log[0].offset > 0
    world.broker.append_control(STATES, 0)
    world.produce(b"k", EVENT, 0)
    world.start()
    world.settle()
    assert world.steps(b"k") == [1, 2, 3, 4, 5, 6]


# -- offsets that somebody else committed


def foreign(world: World, offset: int, metadata: str = "") -> None:
    world.broker.offsets[0], world.broker.metadata[0] = offset, metadata


def stopped(events: int = 5, **settings: object) -> World:
    """A world whose daemon has answered so many events and was stopped."""
    world = World(**settings)
    daemon = running(world, events)
    assert world.stop(daemon) == 0
    return world


def refusal(world: World) -> str:
    daemon = world.start()
    with pytest.raises(CannotServe) as caught:
        world.settle()
    world.kill(daemon)
    return str(caught.value)


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_one_that_skips_records_is_refused_with_the_range(delivery: str) -> None:
    world = stopped(delivery=delivery)
    for _ in range(4):
        world.produce(b"k", EVENT, 0)
    foreign(world, 8)
    message = refusal(world)
    assert "moved from 5 to 8, and not by lstmstream: offsets 5 to 7 have no prediction" in message
    assert "group id ('t')" in message
    assert "Set the group's offset back to 5" in message
    foreign(world, 5)
    world.start()
    world.settle()
    world.check()


def test_one_that_skips_records_can_be_accepted_once(caplog: pytest.LogCaptureFixture) -> None:
    """The states contain what has no prediction; from the next commit on the offset is our own."""
    world = stopped(input={"topic": INPUT, "on_foreign_commit": "accept"})
    for _ in range(4):
        world.produce(b"k", EVENT, 0)
    foreign(world, 8)
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            daemon = world.start()
            world.settle()
        world.kill(daemon)
    assert world.steps(b"k") == [1, 2, 3, 4, 5, 9]
    said = [(r.__dict__["first"], r.__dict__["last"]) for r in caplog.records if "not by lstmstream" in r.message]
    assert said == [(5, 7)]


def test_one_that_was_accepted_is_our_own_even_if_no_event_follows(caplog: pytest.LogCaptureFixture) -> None:
    world = stopped(input={"topic": INPUT, "on_foreign_commit": "accept"})
    for _ in range(3):
        world.produce(b"k", EVENT, 0)
    foreign(world, 8)
    daemon = world.start()
    world.settle()
    world.kill(daemon)
    assert sum("not by lstmstream" in record.message for record in caplog.records) == 1
    assert is_ours(world.broker.metadata[0])
    world.start(input={"topic": INPUT})
    world.settle()


def test_one_that_skips_control_records_only_is_no_loss() -> None:
    world = stopped()
    world.broker.append_control(INPUT, 0, 3)
    foreign(world, 8)
    world.produce(b"k", EVENT, 0)
    world.start()
    world.settle()
    assert world.steps(b"k") == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("at", [5, 3])
def test_one_at_our_own_position_or_before_it_goes_on(at: int) -> None:
    """Moved back: the records from there are answered again, as the semantics have it."""
    world = stopped()
    foreign(world, at)
    world.produce(b"k", EVENT, 0)
    world.start()
    world.settle()
    assert world.steps(b"k") == [1, 2, 3, 4, 5, *range(at + 1, 7)]


def test_one_made_beside_a_running_daemon_is_noticed_when_it_looks() -> None:
    """Its own next commit would take it back. After a failure it asks for the offsets, and knows its own exactly."""
    world = World()
    daemon = running(world)
    idle(world, daemon)
    world.call_s = 0.0
    for _ in range(2):  # within the second after a floor record
        world.broker.append(INPUT, 0, b"k", EVENT)
        world.step(daemon)
    world.step(daemon)
    assert world.broker.offsets[0] == 7
    world.broker.withheld.add(0)
    for _ in range(3):
        world.broker.append(INPUT, 0, b"k", EVENT)
    foreign(world, 9)
    world.faults.append("poll")
    with pytest.raises(CannotServe, match="moved from 7 to 9, and not by lstmstream: offsets 7 to 8 have no"):
        world.settle()


def test_one_made_while_a_partition_was_away_skips_nothing_that_was_answered() -> None:
    """Another consumer had the partition. The floor record is older than the last answers, but this member knows."""
    world, last = World(), PARTITIONS - 1
    world.call_s = 0.0
    daemon = world.start()
    world.settle()
    for _ in range(3):
        world.broker.append(INPUT, last, b"k", EVENT)
    world.settle()
    assert (world.broker.offsets[last], world.floors()[last]) == (3, 0)
    peer = world.start()
    world.step(daemon)
    assert last in world.assigned(peer)
    world.kill(peer)
    for _ in range(3):
        world.broker.append(INPUT, last, b"k", EVENT)
    world.broker.offsets[last], world.broker.metadata[last] = 5, ""
    with pytest.raises(CannotServe, match="moved from 3 to 5, and not by lstmstream: offsets 3 to 4 have no"):
        world.settle()


def test_one_behind_records_that_are_deleted_is_what_the_message_asks_for(caplog: pytest.LogCaptureFixture) -> None:
    world = stopped()
    for _ in range(3):
        world.produce(b"k", EVENT, 0)
    world.broker.truncate(INPUT, 0, 8)
    message = refusal(world)
    assert "offsets 5 to 7 were deleted before they were read. Move the group's offset to 8" in message
    assert "keep the state topic" in message
    foreign(world, 8)
    world.produce(b"k", EVENT, 0)
    with caplog.at_level(logging.WARNING):
        world.start()
        world.settle()
    assert world.steps(b"k") == [1, 2, 3, 4, 5, 6]
    assert any("these offsets have no prediction; they were deleted" in r.message for r in caplog.records)


def test_an_offset_beyond_the_input_is_refused() -> None:
    world = stopped()
    foreign(world, 50)
    assert "the group's offset is 50, but the input ends at 5: records were lost" in refusal(world)


@pytest.mark.parametrize(("offset", "gap"), [(4, None), (6, "offsets 4 to 5")])
def test_a_floor_of_an_earlier_version_names_no_position(offset: int, gap: str | None) -> None:
    """Its offset and the states say how far the group had come at least."""
    world = restore_world.World()
    world.produce(*[b"a"] * 8)
    world.write(b"a", at=4)
    world.write_floor(2)
    world.commit_offset(offset, metadata="somebody")
    if gap is None:
        world.restored()
    else:
        assert gap in world.refusal()
