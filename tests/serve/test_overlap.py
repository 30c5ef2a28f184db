"""A commit in the background: the next batch is stepped before its end is known, and undone with it."""

from __future__ import annotations

import pytest

from lstmstream.serve.daemon import Daemon
from tests.serve.memory_world import INPUT, World

pytestmark = pytest.mark.usefixtures("either_place")

KEYS = (b"a", b"b", b"c")


def produce(world: World, count: int) -> None:
    for number in range(count):
        world.produce(KEYS[number % 3], b'{"amount": %d}' % number, 0)


def running(world: World) -> Daemon:
    """A daemon that has nothing left to restore."""
    daemon = world.start(batch={"max_events": 2})
    world.settle()
    return daemon


def test_the_next_batch_is_stepped_before_a_full_one_is_committed() -> None:
    world = World()
    daemon = running(world)
    produce(world, 4)
    world.step(daemon)
    assert world.broker.offsets[0] == 0
    assert daemon._engine.in_flight == 1
    seen = []
    world.watch = lambda point: seen.append((point, daemon._engine.in_flight))
    world.step(daemon)
    assert ("commit", 2) in seen, "the second batch was not stepped while the first was committed"
    assert world.broker.offsets[0] == 2
    world.settle()
    world.check()


def test_a_batch_that_is_not_full_is_committed_at_once() -> None:
    world = World()
    daemon = running(world)
    produce(world, 1)
    world.step(daemon)
    assert world.broker.offsets[0] == 1
    assert world.background.calls == 0


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("point", ["outputs", "begin", "commit", "committed"])
def test_a_commit_that_fails_in_the_background_takes_the_next_batch_with_it(point: str, delivery: str) -> None:
    world = World(delivery=delivery)
    daemon = running(world)
    produce(world, 8)
    world.step(daemon)
    world.faults = [point]
    for _ in range(4):
        world.step(daemon)
    world.settle()
    assert world.background.calls
    world.check()
    world.check_states()


def test_a_poll_that_fails_beside_a_commit_does_not_lose_it() -> None:
    world = World()
    daemon = running(world)
    produce(world, 4)
    world.step(daemon)
    world.faults = ["poll"]
    world.step(daemon)
    assert world.broker.offsets[0] == 2
    world.settle()
    world.check()


def test_control_records_behind_an_open_transaction_are_not_passed_over() -> None:
    """Its events are before them, and are read again if it fails."""
    world = World()
    daemon = running(world)
    produce(world, 2)
    world.broker.append_control(INPUT, 0, 3)
    world.step(daemon)
    assert world.background.calls == 1
    world.produce(b"d", b'{"amount": 5}', 1)
    world.faults = ["begin"]
    world.step(daemon)
    world.settle()
    world.check()


def test_an_open_transaction_ends_before_a_partition_is_given_up() -> None:
    world = World()
    daemon = running(world)
    produce(world, 4)
    world.step(daemon)
    other = world.start(batch={"max_events": 2})
    for _ in range(10):
        world.step(daemon)
        world.step(other)
    world.settle()
    assert world.serving(daemon) | world.serving(other) == {0, 1, 2}
    world.check()
    world.check_states()


def test_a_stop_waits_for_the_open_transaction() -> None:
    world = World()
    daemon = running(world)
    produce(world, 2)
    world.step(daemon)
    assert world.broker.offsets[0] == 0
    assert world.stop(daemon) == 0
    assert world.broker.offsets[0] == 2
    world.check()
    assert len(world.state_records()) == 2


def test_a_stop_whose_open_transaction_fails_does_it_again() -> None:
    world = World()
    daemon = running(world)
    produce(world, 2)
    world.step(daemon)
    world.faults = ["commit"]
    world.stop(daemon)
    world.start()
    world.settle()
    world.check()


def test_a_kill_leaves_the_open_transaction_to_the_next_owner() -> None:
    world = World()
    daemon = running(world)
    produce(world, 4)
    world.step(daemon)
    world.kill(daemon)
    world.start()
    world.settle()
    world.check()
