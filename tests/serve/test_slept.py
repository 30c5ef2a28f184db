"""A member that sleeps through its session: others have its partitions, answer and go, and its client notices nothing.

kafka-python was seen to do so with a frozen static member: when it was back, its partitions were its own, under the
same assignment as before, though another member had answered their events meanwhile.
"""

from __future__ import annotations

import pytest

from tests.serve.memory_world import World


def produce(world: World, count: int) -> None:
    for number in range(count):
        world.produce(b"abc"[number % 3 :][:1], b'{"amount": %d}' % number)


def asleep(world: World, events: int) -> None:
    """The only daemon sleeps; another one answers so many events and dies; the first one wakes."""
    (daemon,) = world.daemons
    member_id = world.transports[id(daemon)].member_id
    kept = dict(world.broker.assignment(member_id) or {})
    world.broker.leave(member_id)
    world.daemons.remove(daemon)
    other = world.start()
    produce(world, events)
    world.settle()
    world.kill(other)
    world.broker.come_back(member_id, kept)
    world.daemons.append(daemon)


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("events", [0, 1, 20])
@pytest.mark.parametrize("more", [0, 9])
def test_its_partitions_are_restored_where_their_events_were_answered(delivery: str, events: int, more: int) -> None:
    world = World(delivery=delivery)
    world.start()
    produce(world, 12)
    world.settle()
    asleep(world, events)
    offsets = dict(world.broker.offsets)
    produce(world, more)
    world.settle()
    world.check()
    world.check_states()
    assert all(world.broker.offsets[partition] >= offset for partition, offset in offsets.items())


@pytest.mark.parametrize("events", [0, 1, 20])
def test_it_is_stopped_as_it_wakes(events: int) -> None:
    world = World()
    daemon = world.start()
    produce(world, 12)
    world.settle()
    asleep(world, events)
    assert world.stop(daemon) == 0
    world.start()
    produce(world, 9)
    world.settle()
    world.check()
    world.check_states()


def test_it_sleeps_with_a_transaction_open() -> None:
    world = World(batch={"max_events": 3})
    daemon = world.start()
    produce(world, 12)
    world.settle()
    produce(world, 12)
    world.step(daemon)
    asleep(world, 5)
    world.settle()
    world.check()
    world.check_states()


def test_a_restore_sleeps() -> None:
    """It works towards an offset that is no longer the group's."""
    world = World(state={"checkpoint_interval": "1d"})
    produce(world, 40)
    world.start()
    world.settle()
    world.kill(world.daemons[0])
    world.call_s = 0.4  # a slice of a restore is a second
    daemon = world.start()
    for _ in range(50):
        if world.phase(daemon) == "restoring":
            break
        world.step(daemon)
    assert world.phase(daemon) == "restoring"
    world.call_s = 0.01
    asleep(world, 20)
    world.settle()
    world.check()
    world.check_states()
