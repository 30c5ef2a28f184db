"""A transaction whose outcome is not known: it counts if it went through, and is done again if it did not."""

from __future__ import annotations

from typing import Any

import pytest

from lstmstream.transport.memory import AT_LEAST_ONCE_POINTS
from tests.serve.memory_world import World

COMMIT_POINTS = [
    *(("exactly_once", point) for point in ("begin", "commit", "committed")),
    *(("at_least_once", point) for point in AT_LEAST_ONCE_POINTS),
]


def events(world: World, key: bytes, count: int, partition: int) -> None:
    for i in range(count):
        world.produce(key, b'{"amount": %d}' % (i * 37 % 101), partition)


def move_floor(world: World, daemon: Any, beyond: int, partition: int) -> None:
    """Traffic of other keys, until a restart would no longer read what lies before `beyond`."""
    for i in range(60):
        events(world, b"other-%d" % (i % 3), 2, partition)
        world.now_s += 3
        world.step(daemon)
        if world.floors()[partition] >= beyond:
            return
    raise AssertionError(f"the floor stays at {world.floors()}")


@pytest.mark.parametrize("then", [(), ("recover",), ("describe",), ("committed_offset",)])
@pytest.mark.parametrize(("delivery", "point"), COMMIT_POINTS)
def test_an_idle_checkpoint_that_fails_loses_no_state(delivery: str, point: str, then: tuple[str, ...]) -> None:
    """It sends the offsets that are committed already, so they are the same whether it went through or not."""
    world = World(delivery=delivery)
    daemon = world.start()
    events(world, b"a", 12, partition=0)
    world.settle()
    world.now_s += 10  # the state of `a` is due
    world.faults += [point, *then]
    world.step(daemon)
    assert not world.faults, "nothing was written, so nothing has failed"
    move_floor(world, daemon, beyond=12, partition=0)
    world.kill(daemon)
    world.start()
    events(world, b"a", 1, partition=0)
    world.settle()
    assert world.steps(b"a")[-1] == 13
    world.check()


@pytest.mark.parametrize(("delivery", "point"), COMMIT_POINTS)
def test_a_batch_whose_commit_fails_is_answered_and_its_states_are_kept(delivery: str, point: str) -> None:
    """The same with events in it, whose keys' states are due in the same transaction."""
    world = World(delivery=delivery)
    daemon = world.start()
    events(world, b"a", 12, partition=0)
    world.settle()
    world.now_s += 10
    events(world, b"a", 3, partition=0)
    world.faults.append(point)
    world.step(daemon)
    assert not world.faults
    world.check_states()
    world.settle()
    assert world.metric(daemon, "events_total") == 15
    move_floor(world, daemon, beyond=15, partition=0)
    world.kill(daemon)
    world.start()
    events(world, b"a", 1, partition=0)
    world.settle()
    assert world.steps(b"a")[-1] == 16
    world.check()


def test_an_idle_checkpoint_that_went_through_is_not_written_twice() -> None:
    world = World()
    daemon = world.start()
    events(world, b"a", 12, partition=0)
    world.settle()
    world.now_s += 10
    world.faults.append("committed")
    for _ in range(5):
        world.step(daemon)
        world.now_s += 10
    assert world.state_records() == {(0, b"a"): 11}
    assert world.metric(daemon, "state_checkpoints_total") == 1


def test_offsets_from_before_a_commit_that_went_through_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that has just taken over may answer without the last commit, for a moment."""
    world = World()
    daemon = world.start()
    events(world, b"a", 12, partition=0)
    world.settle()
    transport = world.transports[id(daemon)]
    ask, before_s = transport.committed_offsets, 0.0
    stale = ask([0, 1, 2])
    world.faults.append("committed")

    def answer(partitions: Any, *limits: float) -> Any:
        nonlocal before_s
        found = ask(partitions, *limits)
        before_s = before_s or world.now_s
        return found if world.now_s > before_s + 0.5 else {number: stale[number] for number in partitions}

    monkeypatch.setattr(transport, "committed_offsets", answer)
    events(world, b"a", 3, partition=0)
    world.step(daemon)
    assert before_s, "the outcome was asked for"
    for _ in range(5):
        world.step(daemon)
    assert world.steps(b"a") == list(range(1, 16)), "none is answered twice"
    world.check()


@pytest.mark.parametrize("point", ["begin", "commit"])
def test_another_members_commit_is_not_taken_for_ones_own(point: str) -> None:
    """An event of partition 2 and a due state of partition 0 fail together; another answers that same event.

    Every committed offset is then as the failed transaction would have left it.
    """
    world = World()
    first = world.start()
    world.settle()
    events(world, b"a", 12, partition=0)
    world.settle()
    world.now_s += 10
    events(world, b"p", 1, partition=2)

    def take_over() -> None:
        world.abort_transactions()
        second = world.start()
        for _ in range(40):
            world.step(second)
        assert world.assigned(second) == {2}

    world.actions.append((point, take_over))
    world.step(first)
    assert not world.actions
    assert not world.unanswered(), "the second has answered it"
    move_floor(world, first, beyond=12, partition=0)
    world.kill(first)
    events(world, b"a", 1, partition=0)
    world.settle()
    assert world.steps(b"a")[-1] == 13
    world.check()
