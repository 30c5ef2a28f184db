"""What a dead member has left open is ended by whoever gets its partitions, and nothing that a living one has open."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from lstmstream.errors import CannotServe, LstmstreamError, TryAgain
from lstmstream.serve.abandoned import ATTEMPTS, AbandonedTransactions
from lstmstream.serve.daemon import Daemon
from lstmstream.transport.memory_transactions import TIMEOUT_S
from lstmstream.transport.ports import GroupMember, Membership
from tests.serve.memory_world import OUTPUT, PARTITIONS
from tests.serve.schedule_world import Killed, ScheduleWorld

MEMBERSHIP = Membership("token", valid=True, member_id="m-1")


def fill(world: ScheduleWorld) -> None:
    for number in range(12):
        world.produce(b"k%d" % (number % 3), b'{"amount": %d}' % number)


def serving(*, daemons: int = 1) -> tuple[ScheduleWorld, list[Daemon]]:
    """Each of them has answered."""
    world = ScheduleWorld(overlap="none")
    started = [world.start() for _ in range(daemons)]
    fill(world)
    world.settle()
    return world, started


def at_next_commit(world: ScheduleWorld, daemon: Daemon, act: Callable[[], None]) -> None:
    """`act` when records and offsets of its next transaction are written, and its end is not decided."""
    world.actions.append(("commit", act))
    fill(world)
    world.step(daemon)


def die_in_a_transaction(world: ScheduleWorld, daemon: Daemon) -> None:
    def die() -> None:
        world.kill(daemon)
        raise Killed

    at_next_commit(world, daemon, die)
    assert world.broker.transactions.open


def test_a_successor_does_not_wait_for_what_a_dead_member_has_left_open() -> None:
    world, (first,) = serving()
    die_in_a_transaction(world, first)
    (left_open,) = world.broker.transactions.open.values()
    second = world.start()
    reader = world.transports[id(second)].open_reader(OUTPUT, 0, 0, world.broker.topics[OUTPUT].end(0))
    world.settle()
    assert world.serving(second) == set(range(PARTITIONS))
    while reader.position < reader.end:
        reader.next(0.0)
    assert world.now_s < left_open.began_s + TIMEOUT_S
    world.check()


def test_a_member_that_takes_over_leaves_the_transaction_of_a_living_one_alone() -> None:
    """Its partitions have moved while its transaction was about to be committed, and it is: it was the owner then."""
    world, (first,) = serving()

    def another_comes() -> None:
        second = world.start()
        for _ in range(3):
            world.step(second)
        assert world.assigned(second)
        assert len(world.broker.transactions.open) == 1

    at_next_commit(world, first, another_comes)
    assert world.metric(first, "transactions_total", outcome="aborted") == 0
    world.settle()
    world.check()


def test_a_member_that_was_dropped_in_a_transaction_is_fenced_and_goes_on() -> None:
    """It stood still for too long. What it had open is done again by its successor, once."""
    world, (first,) = serving()

    def sleep() -> None:
        world.expire(first)
        second = world.start()
        world.let_others_work(round_s=0.1)
        assert not world.broker.transactions.open
        assert world.serving(second)

    at_next_commit(world, first, sleep)
    assert world.metric(first, "transactions_total", outcome="aborted") == 1
    fill(world)
    world.settle()
    assert world.serving(first)
    world.check()


class Answers:
    """A member of the group, of which only the question matters."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.asked: list[float] = []
        self.error: LstmstreamError | None = None

    def end_abandoned(self, membership: Membership) -> int:
        assert membership == MEMBERSHIP
        self.asked.append(self.now_s)
        if self.error is not None:
            raise self.error
        return 0


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def abandoned(answers: Answers) -> AbandonedTransactions:
    member: GroupMember = answers  # type: ignore[assignment]
    return AbandonedTransactions(member, lambda: answers.now_s)


def test_it_is_asked_once_for_each_assignment(answers: Answers, abandoned: AbandonedTransactions) -> None:
    abandoned.tick(MEMBERSHIP)
    assert answers.asked == []
    for now_s in (1.0, 2.0):
        answers.now_s = now_s
        abandoned.on_assigned()
        abandoned.tick(MEMBERSHIP)
        abandoned.tick(MEMBERSHIP)
    assert answers.asked == [1.0, 2.0]


def test_after_a_failure_it_is_asked_again_later_and_not_for_ever(
    answers: Answers, abandoned: AbandonedTransactions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answers.error = TryAgain("the coordinator is loading")
    abandoned.on_assigned()
    for tenths in range(600):
        answers.now_s = tenths / 10
        abandoned.tick(MEMBERSHIP)
    assert answers.asked == [0.0, 1.0, 3.0, 7.0, 15.0]
    assert len(answers.asked) == ATTEMPTS
    assert [record.levelname for record in caplog.records] == ["INFO"]
    abandoned.on_assigned()
    abandoned.tick(MEMBERSHIP)
    assert len(answers.asked) == ATTEMPTS + 1


def test_where_it_is_denied_it_is_said_once_and_never_asked_again(
    answers: Answers, abandoned: AbandonedTransactions, caplog: pytest.LogCaptureFixture
) -> None:
    answers.error = CannotServe("the broker denies access")
    for _ in range(3):
        abandoned.on_assigned()
        abandoned.tick(MEMBERSHIP)
    assert len(answers.asked) == 1
    (line,) = caplog.records
    assert line.levelname == "WARNING"
    assert "the broker denies access" in line.getMessage()


@pytest.mark.parametrize("error", [TryAgain("no answer"), CannotServe("denied")])
def test_a_restore_goes_on_without_it(error: LstmstreamError, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits until the broker has ended the transaction."""
    world, (first,) = serving()
    die_in_a_transaction(world, first)
    second = world.start()

    def fail(_membership: Membership) -> int:
        raise error

    monkeypatch.setattr(world.transports[id(second)], "end_abandoned", fail)
    world.settle()
    assert world.serving(second) == set(range(PARTITIONS))
    world.check()
