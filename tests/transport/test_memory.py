"""The broker in memory decides, delays and fences transactions as Kafka does, so that tests on it mean something."""

from __future__ import annotations

import numpy as np
import pytest

from lstmstream.errors import TryAgain
from lstmstream.records import RecordBatch
from lstmstream.transport.memory import MemoryBroker, MemoryTransport
from lstmstream.transport.memory_transactions import TIMEOUT_S
from lstmstream.transport.ports import Membership

IN, OUT = "in", "out"


class World:
    """A topic of one partition on both sides, and members of the group."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.broker = MemoryBroker(clock=lambda: self.now_s)
        for topic in (IN, OUT):
            self.broker.create(topic, 1)
        self.fails_at = ""
        self.broker.fault = self._fault

    def _fault(self, point: str) -> None:
        if point == self.fails_at:
            self.fails_at = ""
            raise TryAgain(point)

    def member(self, *, exactly_once: bool = True) -> MemoryTransport:
        made = MemoryTransport(self.broker, IN, exactly_once=exactly_once)
        made.join()
        return made

    def commit(self, member: MemoryTransport, value: bytes, offset: int, membership: Membership | None = None) -> None:
        one = np.zeros(1, dtype=np.int64)
        member.commit(
            [RecordBatch.to_write(OUT, one, one, [b"k"], [value])],
            [],
            {0: offset},
            nonce=f"n{offset}",
            membership=membership or member.poll(0.0, 1).membership,
            timeout_s=1.0,
        )

    def fail(self, member: MemoryTransport, value: bytes, offset: int, at: str = "commit") -> None:
        self.fails_at = at
        with pytest.raises(TryAgain):
            self.commit(member, value, offset)

    def values(self) -> list[bytes | None]:
        return [record.value for record in self.broker.topics[OUT].logs[0]]


def test_a_reader_waits_before_an_open_transaction_and_goes_on_at_its_end() -> None:
    world = World()
    first, second = world.member(), world.member()
    world.commit(first, b"a", 1)
    world.fail(first, b"b", 2)
    assert world.broker.topics[OUT].end(0) == 2
    reader = second.open_reader(OUT, 0, 0, 2)
    assert reader.next(0.0).values == [b"a"]
    assert (len(reader.next(0.0)), reader.position) == (0, 1)
    with pytest.raises(TryAgain):
        second.committed_offsets([0])
    first.recover()
    assert (len(reader.next(0.0)), reader.position) == (0, 2)
    assert second.committed_offsets([0])[0] == (1, "n1")


def test_a_record_has_its_offset_from_when_it_was_written() -> None:
    """What is written beside an open transaction stands behind its records, whichever is seen first."""
    world = World()
    member = world.member()
    world.fail(member, b"late", 1)
    world.broker.transactions.leave_behind(member.member_id)
    world.broker.append(OUT, 0, b"k", b"beside")
    assert world.values() == [b"beside"]
    assert world.broker.transactions.arrive(0)
    assert world.values() == [b"late", b"beside"]
    assert world.broker.offsets == {0: 1}


@pytest.mark.parametrize("again", [True, False])
def test_a_request_that_arrives_after_a_new_producer_does_nothing(again: bool) -> None:
    world = World()
    member = world.member()
    world.fail(member, b"a", 1)
    world.broker.transactions.leave_behind(member.member_id)
    member.recover()
    assert not world.broker.transactions.arrive(0, again=again)
    world.fail(member, b"b", 2)
    if again:
        assert not world.broker.transactions.arrive(0), "it would end the next transaction (KAFKA-17754)"
    assert world.values() == []


def test_without_a_new_producer_it_ends_the_next_transaction() -> None:
    world = World()
    member = world.member()
    world.fail(member, b"a", 1)
    transactions = world.broker.transactions
    transactions.leave_behind(member.member_id)
    assert transactions.arrive(0, again=True)
    transactions.begin(member.member_id, 1)
    assert transactions.arrive(0)


def test_a_decided_transaction_becomes_visible_as_a_whole_later() -> None:
    world = World()
    first, second = world.member(), world.member()
    world.broker.transactions.visible_after_s = 3.0
    world.commit(first, b"a", 1)
    assert (world.values(), world.broker.offsets) == ([], {})
    with pytest.raises(TryAgain):
        second.committed_offsets([0])
    world.now_s += 3
    assert second.committed_offsets([0])[0] == (1, "n1")
    assert (world.values(), world.broker.offsets) == ([b"a"], {0: 1})


@pytest.mark.parametrize("then", ["recover", "commit"])
def test_its_author_waits_for_it(then: str) -> None:
    world = World()
    member = world.member()
    world.broker.transactions.visible_after_s = 1e9
    world.commit(member, b"a", 1)
    if then == "recover":
        member.recover()
    else:
        world.commit(member, b"b", 2)
    assert world.values() == [b"a"]


def test_what_a_dead_member_left_open_stays_open_until_its_timeout() -> None:
    world = World()
    world.broker.transactions.lingering = True
    dead, alive = world.member(), world.member()
    world.fail(dead, b"a", 1)
    world.broker.leave(dead.member_id)
    world.now_s += TIMEOUT_S - 1
    with pytest.raises(TryAgain):
        alive.committed_offsets([0])
    world.now_s += 2
    assert alive.committed_offsets([0]) == {}
    assert world.values() == []
    with pytest.raises(TryAgain):  # the broker has fenced it
        world.broker.transactions.commit(dead.member_id, 1)


def test_a_member_ends_what_dead_ones_have_left_open_and_nothing_else() -> None:
    world = World()
    world.broker.transactions.lingering = True
    dead, alive, third = world.member(), world.member(), world.member()
    world.fail(dead, b"a", 1)
    membership = alive.poll(0.0, 1).membership
    assert alive.end_abandoned(membership) == 0, "its author is in the group"
    world.broker.leave(dead.member_id)
    world.fail(third, b"b", 1)
    membership = alive.poll(0.0, 1).membership
    assert alive.end_abandoned(membership) == 1
    assert set(world.broker.transactions.open) == {third.member_id}
    with pytest.raises(TryAgain):
        world.broker.transactions.commit(dead.member_id, 1)
    third.recover()
    assert alive.committed_offsets([0]) == {}
    assert world.values() == []


def test_what_is_decided_is_not_undone_by_it() -> None:
    world = World()
    world.broker.transactions.lingering = True
    dead, alive = world.member(), world.member()
    world.broker.transactions.visible_after_s = 1e9
    world.commit(dead, b"a", 1)
    world.broker.leave(dead.member_id)
    alive.end_abandoned(alive.poll(0.0, 1).membership)
    assert world.values() == [b"a"]


def test_a_member_that_was_dropped_is_another_one_when_it_is_back() -> None:
    """What it had open is fenced under its former id, by itself or by others, and it goes on under the new one."""
    world = World()
    world.broker.transactions.lingering = True
    dropped, alive = world.member(), world.member()
    world.fail(dropped, b"a", 1)
    former = dropped.member_id
    world.broker.leave(former)
    dropped.poll(0.0, 1)
    assert dropped.member_id != former
    assert alive.end_abandoned(alive.poll(0.0, 1).membership) == 1
    with pytest.raises(AssertionError, match="after an error comes recover"):
        world.commit(dropped, b"b", 1)
    dropped.recover()
    world.commit(dropped, b"b", 1)
    assert world.values() == [b"b"]


def test_offsets_of_an_old_generation_are_refused_and_what_was_written_is_aborted() -> None:
    world = World()
    first = world.member()
    before = first.poll(0.0, 1).membership
    world.member()
    with pytest.raises(TryAgain, match="old generation"):
        world.commit(first, b"a", 1, before)
    first.recover()
    assert (world.values(), world.broker.offsets) == ([], {})


def test_at_least_once_without_states_commits_offsets_outside_a_transaction() -> None:
    world = World()
    member = world.member(exactly_once=False)
    world.commit(member, b"a", 1)
    world.fail(member, b"b", 2)
    assert world.values() == [b"a", b"b"]
    assert world.broker.transactions.open == {}
    assert member.committed_offsets([0])[0] == (1, "n1")
