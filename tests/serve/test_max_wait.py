"""`batch.max_wait`: a fuller batch is waited for, and nothing else waits for that."""

from __future__ import annotations

import pytest

from lstmstream.serve.daemon import POLL_TIMEOUT_S, Daemon
from lstmstream.transport.ports import PollResult
from tests.serve.memory_world import World

MAX_WAIT_S = 20.0


def produce(world: World, count: int) -> None:
    for number in range(count):
        world.produce(b"k%d" % (number % 7), b'{"amount": %d}' % number, 0)


def polls_of(world: World, daemon: Daemon) -> list[float]:
    """The limits of its polls from now on; one that finds nothing takes so long."""
    transport, limits_s = world.transports[id(daemon)], list[float]()
    poll = transport.poll

    def slow(timeout_s: float, max_events: int) -> PollResult:
        limits_s.append(timeout_s)
        polled = poll(timeout_s, max_events)
        world.now_s += 0.0 if len(polled.records) else timeout_s
        return polled

    setattr(transport, "poll", slow)  # noqa: B010 - a method, for the type checker
    return limits_s


def waiting(delivery: str) -> tuple[World, Daemon]:
    world = World(delivery=delivery, batch={"max_wait": f"{MAX_WAIT_S:g}s", "max_events": 5})
    daemon = world.start()
    world.settle()
    return world, daemon


def test_a_batch_is_gathered() -> None:
    world = World(batch={"max_wait": "50ms", "max_events": 7})
    produce(world, 30)
    daemon = world.start()
    for _ in range(10):
        world.step(daemon)
        world.now_s += 1
    world.settle()
    world.check()


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_it_is_waited_for_in_short_polls(delivery: str) -> None:
    """A commit of the batch before may wait in line behind one: the consumer has one thread."""
    world, daemon = waiting(delivery)
    limits_s = polls_of(world, daemon)
    produce(world, 6)
    began_s = world.now_s
    world.step(daemon)
    assert world.background.calls, "the first batch is full"
    world.step(daemon)
    assert world.now_s - began_s >= MAX_WAIT_S, "the second one is not"
    assert max(limits_s) <= POLL_TIMEOUT_S
    world.settle()
    world.check()


def test_a_stop_does_not_wait_for_it() -> None:
    world, daemon = waiting("exactly_once")
    produce(world, 1)
    limits_s = polls_of(world, daemon)
    world.actions += [("poll", lambda: None), ("poll", lambda: None), ("poll", daemon.stop)]
    world.step(daemon)
    assert len(limits_s) == 3
    assert world.stop(daemon) == 0
    assert not world.unanswered(), "what was read is answered first"
    world.check()


def test_while_a_transaction_is_open_the_next_batch_is_filled() -> None:
    """A client that fetches partition by partition gives the end of one fetch before it has the next."""
    world = World(batch={"max_events": 5})
    daemon = world.start()
    world.settle()
    produce(world, 5)
    world.step(daemon)
    assert world.background.calls == 1, "the first batch is full"
    transport = world.transports[id(daemon)]
    poll, given = transport.poll, list[int]()

    def by_pieces(timeout_s: float, max_events: int) -> PollResult:
        polled = poll(timeout_s, min(2, max_events))
        given.append(len(polled.records))
        return polled

    setattr(transport, "poll", by_pieces)  # noqa: B010 - a method, for the type checker
    produce(world, 8)
    world.step(daemon)
    assert given == [2, 2, 1], "up to the limit"
    assert world.background.calls == 2, "it is full, so the one after it may be stepped beside it"
    given.clear()
    world.step(daemon)
    assert given == [2, 1, 0], "what is there, and then no longer"
    assert world.background.calls == 2
    world.settle()
    world.check()


def test_where_no_transaction_is_open_nothing_is_waited_for() -> None:
    world = World(batch={"max_events": 5})
    daemon = world.start()
    world.settle()
    limits_s = polls_of(world, daemon)
    produce(world, 2)
    world.step(daemon)
    assert len(limits_s) == 1
    assert not world.unanswered()
