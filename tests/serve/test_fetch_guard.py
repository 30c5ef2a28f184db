"""Partitions whose records wait and never come: told again where to read, then given a new consumer."""

from __future__ import annotations

import numpy as np
import pytest

from lstmstream.errors import TryAgain
from lstmstream.serve.fetch_guard import LONGEST_POLL_S, PATIENCE_KEPT_S, STALL_S, STARVED_STALL_S, FetchGuard
from lstmstream.serve.observers import Observer
from lstmstream.serve.partition import Partition
from lstmstream.serve.state import StateStore


class Member:
    """As much of a GroupMember as the guard needs."""

    def __init__(self) -> None:
        self.resumed: list[tuple[int, int]] = []
        self.joined = 0
        self.away = False

    def resume(self, partition: int, offset: int) -> None:
        self.resumed.append((partition, offset))

    def join(self, *, smaller_fetches: bool = False) -> None:
        if self.away:
            raise TryAgain("the broker is away")
        assert smaller_fetches, "the network may be too slow for what the last one asked for"
        self.joined += 1


class Told(Observer):
    def __init__(self) -> None:
        self.actions: list[str] = []
        self.blocked: dict[str, str] = {}

    def on_stalled_fetch(self, action: str) -> None:
        self.actions.append(action)

    def on_blocked(self, what: str, reason: str) -> None:
        self.blocked[what] = reason

    def on_unblocked(self, what: str) -> None:
        self.blocked.pop(what, None)


class World:
    """A daemon that polls once a second and looks after its fetching once a second."""

    def __init__(self, *positions: int) -> None:
        self.now_s = 1_000.0
        self.member, self.told = Member(), Told()
        self.guard = FetchGuard(self.member, self.member, self.told, lambda: self.now_s)  # type: ignore[arg-type]
        states = StateStore(np.zeros(1, np.float32))
        self.partitions = [Partition(number, 1, states) for number in range(len(positions))]
        for partition, position in zip(self.partitions, positions, strict=True):
            partition.run(position=position, floor=0, now_s=self.now_s)
        self.ends = dict(enumerate(positions))  # of the broker
        self.client: dict[int, int] = {}  # positions
        self.saturated = False  # each poll gives as many records as were asked for

    def second(self, *with_records: int) -> None:
        """A poll with records of these partitions, then the look."""
        for number in with_records:
            self.partitions[number].position += 1
        self.guard.on_poll(with_records, self.partitions, saturated=self.saturated)
        self.guard.check(self.partitions, self.client, self.ends)
        self.now_s += 1

    def seconds(self, count: float, *with_records: int) -> None:
        for _ in range(int(count)):
            self.second(*with_records)


def test_a_partition_whose_records_wait_is_told_again_where_to_read() -> None:
    world = World(7, 4)
    world.ends[0] = 9
    world.seconds(STALL_S, 1)
    assert (world.member.resumed, world.told.actions) == ([], []), "not before its time"
    world.second(1)
    assert (world.member.resumed, world.member.joined) == ([(0, 7)], 0)
    assert world.told.actions == ["seek"]
    assert world.told.blocked == {"fetch": "1 partition returns no records although some are waiting"}
    world.second(0, 1)
    assert world.told.blocked == {}, "it gives records again"
    world.second(0, 1)
    assert world.ends[0] == world.partitions[0].position
    world.seconds(3 * STALL_S, 1)
    assert (world.member.resumed, world.member.joined, world.told.actions) == ([(0, 7)], 0, ["seek"])


def test_where_that_does_not_help_the_consumer_is_replaced() -> None:
    world = World(7, 4)
    world.ends[0] = 9
    world.seconds(STALL_S + 1, 1)
    assert world.told.actions == ["seek"]
    for _ in range(int(STALL_S) - 1):
        world.second(1)
        assert world.told.blocked, "not ready for as long as it lasts"
        assert (world.told.actions, world.member.joined) == (["seek"], 0)
    world.second(1)
    assert (world.told.actions, world.member.joined) == (["seek", "rejoin"], 1)
    assert world.member.resumed == [(0, 7)]
    assert world.told.blocked == {}, "the partitions are assigned again: that is for `restore` to tell"
    world.seconds(2 * STALL_S - 1, 1)
    assert world.told.actions == ["seek", "rejoin"], "it is given twice the time"
    world.second(1)
    assert world.told.actions == ["seek", "rejoin", "seek"], "it begins again with the gentler means"


def test_each_consumer_that_was_replaced_in_vain_doubles_the_time_up_to_a_limit() -> None:
    """A broker that holds answers back for a quota would never be waited for long enough."""
    world = World(7)
    world.ends[0] = 99
    world.second()
    for patience in (1, 2, 4, 8, 16, 16):
        before = world.member.joined
        world.seconds(2 * patience * STALL_S - 1)
        assert world.member.joined == before
        world.second()
        assert world.member.joined == before + 1
    world.seconds(PATIENCE_KEPT_S + 1, 0)
    world.ends[0] = world.partitions[0].position + 9
    world.seconds(STALL_S)
    assert world.told.actions[-1] == "seek", "a stall long after is a new one"
    assert len(world.member.resumed) == 7


def test_a_broker_that_is_away_is_asked_again_later() -> None:
    world = World(7)
    world.ends[0] = 9
    world.seconds(STALL_S + 1)
    world.member.away = True
    world.seconds(STALL_S - 1)
    with pytest.raises(TryAgain):
        world.second()
    world.member.away = False
    world.seconds(2 * STALL_S + 1)
    assert world.told.actions == ["seek", "rejoin", "seek"]


def test_several_partitions_are_told_at_once() -> None:
    world = World(7, 4, 2)
    world.ends |= {0: 9, 2: 3}
    world.seconds(STALL_S + 1, 1)
    assert world.member.resumed == [(0, 7), (2, 2)]
    assert world.told.actions == ["seek", "seek"]
    assert world.told.blocked == {"fetch": "2 partitions return no records although some are waiting"}
    world.second(0, 1)
    assert world.told.blocked == {"fetch": "1 partition returns no records although some are waiting"}


def test_one_that_still_stalls_is_enough_for_a_new_consumer() -> None:
    world = World(7, 4)
    world.ends[0] = 99
    world.seconds(STALL_S + 1, 1)
    world.ends[1] = world.partitions[1].position + 9  # the other one stalls now too
    world.seconds(STALL_S + 1)
    assert (world.told.actions, world.member.joined) == (["seek", "rejoin"], 1)


def test_a_partition_without_waiting_records_may_be_quiet() -> None:
    world = World(7)
    world.seconds(5 * STALL_S)
    assert (world.member.resumed, world.told.actions, world.told.blocked) == ([], [], {})


def test_control_records_at_the_end_are_no_stall() -> None:
    """The broker counts them, and the client has passed over them."""
    world = World(7)
    world.ends[0] = 9
    world.client[0] = 9
    world.seconds(5 * STALL_S)
    assert (world.member.resumed, world.told.actions) == ([], [])
    world.ends[0] = 10  # and an event after them
    world.seconds(1)
    assert (world.member.resumed, world.told.actions) == ([(0, 7)], ["seek"])


def test_a_client_that_is_behind_is_no_measure() -> None:
    """Its position is that before a seek; what is committed is what counts."""
    world = World(7)
    world.client[0] = 3
    world.seconds(5 * STALL_S)
    assert world.told.actions == []


def test_a_stall_that_ends_without_a_record_is_over() -> None:
    """What waited may have been of a transaction that was aborted: the client passes over it."""
    world = World(7)
    world.ends[0] = 9
    world.seconds(STALL_S + 1)
    assert world.told.blocked
    world.client[0] = 9
    world.seconds(STALL_S)
    assert world.told.blocked == {}
    world.ends[0] = 12
    world.seconds(1)
    assert world.told.actions == ["seek", "seek"], "and a later one is another"


def test_a_partition_has_its_time_from_the_moment_it_runs() -> None:
    world = World(7, 4)
    world.ends |= {0: 9, 1: 9}
    late = world.partitions.pop()
    world.seconds(STALL_S - 1)
    world.partitions.append(late)
    world.seconds(2)
    assert world.member.resumed == [(0, 7)]
    world.seconds(STALL_S - 1)
    assert world.member.resumed[-1] == (1, 4)


def test_a_partition_that_was_given_up_is_forgotten() -> None:
    world = World(7, 4)
    world.ends[0] = 9
    world.seconds(STALL_S + 1, 1)
    assert world.told.blocked
    gone = world.partitions.pop(0)
    world.guard.on_poll([1], world.partitions, saturated=False)
    assert world.told.blocked == {}
    world.partitions.insert(0, gone)  # and comes back
    world.seconds(STALL_S, 1)
    assert world.told.actions == ["seek"]
    world.second(1)
    assert (world.told.actions, world.member.joined) == (["seek", "seek"], 0)


def test_records_of_a_partition_that_is_not_running_are_no_news() -> None:
    world = World(7)
    world.guard.on_poll([0, 5], world.partitions, saturated=False)
    world.guard.check(world.partitions, {}, {})
    assert (world.told.actions, world.told.blocked) == ([], {})


def test_a_partition_that_others_starve_is_given_more_time() -> None:
    """A client hands out one partition after the other: while its polls are full, the others wait their turn."""
    world = World(7, 4)
    world.ends[0] = 9
    world.saturated = True
    world.seconds(STARVED_STALL_S, 1)
    assert world.told.actions == [], "not before its time"
    world.second(1)
    assert world.told.actions == ["seek"], "but not for ever"


def test_only_polls_that_left_room_count_for_the_shorter_time() -> None:
    world = World(7, 4)
    world.ends[0] = 9
    for turn in range(2 * int(STALL_S) - 1):
        world.saturated = turn % 2 == 0
        world.second(1)
        assert world.told.actions == []
    world.saturated = False
    world.second(1)
    assert world.told.actions == ["seek"]


def test_time_in_which_nobody_polled_does_not_count() -> None:
    """The loop was held up by a commit, say: the client was not asked."""
    world = World(7)
    world.ends[0] = 9
    world.second()
    world.now_s += 100
    world.seconds(STALL_S - LONGEST_POLL_S)
    assert world.told.actions == []
    world.second()
    assert world.told.actions == ["seek"]
