"""A model that takes long: between two batches the group and /livez hear of the daemon, however much waits."""

from __future__ import annotations

from itertools import pairwise

import pytest

from lstmstream.serve.batch_limit import FIRST_EVENTS, BatchLimit
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.step_model import StepInput, StepOutput
from lstmstream.serve.time_limits import LONGEST_BATCH_S
from tests.serve.memory_world import FakeStep, World, card

EVENT_S = 0.25  # 2,500 s for a batch of 10,000
EVENTS = 400


class SlowStep(FakeStep):
    """Takes its time for each row."""

    def __init__(self, world: World) -> None:
        super().__init__(card())
        self.world = world

    def step(self, given: StepInput) -> StepOutput:
        self.world.now_s += EVENT_S * len(given.state)
        return super().step(given)


def with_waiting_events(**settings: object) -> tuple[World, Daemon, list[float]]:
    """A daemon, not yet in its group, and the times of its polls."""
    world = World(**settings)
    for number in range(EVENTS):
        world.produce(b"k%d" % number, b'{"amount": 1}', 0)
    polls: list[float] = []
    world.watch = lambda point: polls.append(world.now_s) if point == "poll" else None
    world.broker.read_records = 10_000
    return world, world.start(SlowStep(world)), polls


@pytest.mark.parametrize(
    ("settings", "limit_s"),
    [
        ({}, LONGEST_BATCH_S),
        ({"http": {"stall_after": "8s"}}, 2.0),
        ({"kafka": {"bootstrap_servers": "x:1", "properties": {"max.poll.interval.ms": 12_000}}}, 3.0),
    ],
)
def test_a_backlog(settings: dict[str, object], limit_s: float) -> None:
    world, daemon, polls = with_waiting_events(**settings)
    world.settle()
    world.check()
    *gaps_s, first_s = sorted(later - earlier for earlier, later in pairwise(polls))
    assert first_s < FIRST_EVENTS * EVENT_S + limit_s, "of the first batch nothing was known"
    assert max(gaps_s) < 1.5 * limit_s
    assert daemon._batch_limit.of_time <= limit_s / EVENT_S


def test_a_restore() -> None:
    """All that was read of the input at once would be replayed at once."""
    world, first, _ = with_waiting_events(state={"checkpoint_interval": "1d"})
    world.settle()
    world.kill(first)
    polls: list[float] = []
    world.watch = lambda point: polls.append(world.now_s) if point == "poll" else None
    daemon = world.start(SlowStep(world))
    while 0 not in world.serving(daemon):
        world.step(daemon)
    assert max(later - earlier for earlier, later in pairwise(polls)) < LONGEST_BATCH_S + FIRST_EVENTS * EVENT_S
    assert len(polls) > EVENTS * EVENT_S / LONGEST_BATCH_S / 2
    world.settle()
    world.check()
    world.check_states()


def test_the_limit_follows_the_time() -> None:
    limit = BatchLimit(10_000, longest_s=5.0)
    assert limit.now == FIRST_EVENTS
    for _ in range(20):
        limit.on_processed(limit.now, 0.01)
    assert limit.now == 10_000
    limit.on_processed(10_000, 50.0)
    assert limit.now == 1_000
    limit.on_processed(999, 0.1)
    assert limit.now == 1_000, "less than it says nothing of more"
    limit.on_processed(1_000, 3.0)
    assert limit.now == 1_000, "twice as much would take too long"
    limit.on_processed(1_000, 2.0)
    assert limit.now == 2_000
    limit.on_processed(1, 100.0)
    assert limit.now == 1, "there is no smaller batch"
    limit.on_failure(1, 60.0)
    assert limit.now == 1
    assert BatchLimit(10).now == 10
    assert BatchLimit(10, longest_s=5.0).now == 10
