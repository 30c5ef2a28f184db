"""A client that goes on from another offset than it was told: nothing is answered twice, and the log says so."""

from __future__ import annotations

import pytest

from tests.serve.memory_world import World


def produce(world: World, count: int) -> None:
    for number in range(count):
        world.produce(b"abc"[number % 3 :][:1], b'{"amount": %d}' % number, 0)


def check(world: World, caplog: pytest.LogCaptureFixture, said: str) -> None:
    assert said in caplog.text
    world.settle()
    world.check()
    world.check_states()


@pytest.mark.parametrize("offset", [0, 7, 11])
def test_events_that_were_answered_come_again(offset: int, caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    daemon = world.start()
    produce(world, 12)
    world.settle()
    world.lose_seek(daemon, 0, back=12 - offset)
    produce(world, 3)
    world.step(daemon)
    check(world, caplog, f"in[0] returned offset {offset} again, although its position was 12")


def test_events_of_the_open_transaction_come_again(caplog: pytest.LogCaptureFixture) -> None:
    """They are not committed yet, and the next batch is polled beside it."""
    world = World()
    daemon = world.start(batch={"max_events": 2})
    world.settle()
    produce(world, 6)
    world.step(daemon)
    assert world.broker.offsets[0] == 0, "the transaction is open"
    world.lose_seek(daemon, 0, back=2)
    world.step(daemon)
    check(world, caplog, "in[0] returned offset 0 again, although its position was 2")


def test_events_come_again_after_a_restore(caplog: pytest.LogCaptureFixture) -> None:
    """A client that reads from its beginning where it was told to read from the committed offset."""
    world = World()
    produce(world, 12)
    world.start()
    world.settle()
    world.kill(world.daemons[0])
    produce(world, 3)
    daemon = world.start()
    for _ in range(50):
        if world.serving(daemon):
            break
        world.step(daemon)
    world.lose_seek(daemon, 0, back=12)
    world.step(daemon)
    check(world, caplog, "in[0] returned offset 0 again, although its position was 12")
