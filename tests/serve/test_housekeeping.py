"""What the daemon looks after beside the stream, and how often: gauges, fetching, topics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lstmstream.errors import CannotServe, TryAgain
from lstmstream.records import RecordBatch
from lstmstream.serve.batch_limit import BatchLimit
from lstmstream.serve.checkpoint import Checkpointer, Retention
from lstmstream.serve.fetch_guard import STALL_S, STARVED_STALL_S
from lstmstream.serve.housekeeping import DOUBT_INTERVAL_S, INTERVAL_S, TOPICS_INTERVAL_S, Housekeeping
from lstmstream.serve.observers import Gauges, Observer, PartitionGauges
from lstmstream.serve.partition import Partition, Partitions
from lstmstream.serve.scored import ChangedRows
from lstmstream.serve.seeks import Seeks
from lstmstream.serve.state import StateStore
from lstmstream.serve.topics import GONE_S, ensure_topics
from lstmstream.transport.memory import MemoryTransport
from lstmstream.transport.ports import Membership, PollResult
from tests.serve.helpers import batch
from tests.serve.memory_world import INPUT, LETTERS, OUTPUT, PARTITIONS, STATES, World
from tests.serve.reference import Event
from tests.serve.restore_world import IDENTITY


class Told(Observer):
    def __init__(self) -> None:
        self.gauges: list[Gauges] = []
        self.actions: list[str] = []

    def on_gauges(self, gauges: Gauges) -> None:
        self.gauges.append(gauges)

    def on_stalled_fetch(self, action: str) -> None:
        self.actions.append(action)


class SomeRestore:
    """As much of a Restore as is measured."""

    def __init__(self, remaining: int) -> None:
        self.remaining = remaining
        self.committed_offset: int | None = None  # not known yet


class House:
    """Housekeeping over a memory broker, with a clock of its own."""

    def __init__(self, **settings: Any) -> None:
        self.now_s = 500.0
        world = World(**settings)
        self.broker = world.broker
        self.broker.fault = self._point
        self.points: list[str] = []  # what was asked of the broker
        self.away: set[str] = set()
        transport = MemoryTransport(self.broker, INPUT)
        transport.join()
        topics = ensure_topics(world.config(), transport)
        self.states = StateStore(np.zeros(2, np.float32))
        self.partitions, self.told = Partitions(), Told()
        clock = lambda: self.now_s  # noqa: E731
        self.checkpointer = Checkpointer(
            topics.state,
            IDENTITY,
            self.partitions,
            interval_s=10,
            clock=clock,
            wall_s=clock,
            retention=topics.retention,
        )
        self.housekeeping = Housekeeping(
            world.config(),
            transport,
            topics,
            self.partitions,
            self.checkpointer,
            self.told,
            clock,
            seeks=Seeks(transport, world.config().input.topic, clock),
            batch_limit=BatchLimit(world.config().batch.max_events),
        )
        self.points.clear()

    def _point(self, point: str) -> None:
        self.points.append(point)
        if point in self.away:
            raise TryAgain("the broker is away")

    def partition(self, number: int, *, position: int | None = None, floor: int = 0) -> Partition:
        """A partition that runs, or without a position is being restored."""
        partition = Partition(number, 1, self.states)
        self.partitions.add(partition)
        if position is not None:
            partition.run(position=position, floor=floor, now_s=self.now_s)
        return partition

    def produce(self, partition: int, events: int) -> None:
        for _ in range(events):
            self.broker.append(INPUT, partition, b"k", b"{}", 0)

    def tick(self, *partitions: int, **positions: int) -> None:
        """A round of the loop that polled a record of each of these partitions."""
        found = {int(name[1:]): at for name, at in positions.items()}
        events = [Event(partition, 0, 0, b"k", b"{}") for partition in partitions]
        records = batch(events) if events else RecordBatch.empty(INPUT)
        self.housekeeping.tick(PollResult(records, Membership(None, valid=True, member_id="m-1"), {}, found))


def test_gauges_are_measured_once_a_second() -> None:
    house = House()
    house.partition(0, position=0)
    house.tick()
    assert len(house.told.gauges) == 1
    for step in range(1, 31):
        house.now_s = 500.0 + step * INTERVAL_S / 10
        house.tick()
        assert len(house.told.gauges) == 1 + step // 10
    assert house.points.count("stable_end") == 4, "the broker is asked no more often"


def test_what_changed_can_be_shown_at_once() -> None:
    house = House()
    house.tick()
    house.housekeeping.hurry()
    house.tick()
    house.tick()
    assert len(house.told.gauges) == 2


def test_what_is_measured() -> None:
    house = House()
    first = house.partition(0, position=3, floor=1)
    house.partition(1, position=2, floor=2)
    third = house.partition(2)
    third.restore = SomeRestore(17)  # type: ignore[assignment]
    house.produce(0, 8)
    house.produce(1, 2)
    first.slab.add(b"a")
    third.slab.add(b"b")
    third.slab.add(b"c")
    house.tick()
    (gauges,) = house.told.gauges
    assert gauges.partitions == [
        PartitionGauges(0, floor_lag=2, consumer_lag=5),
        PartitionGauges(1, 0, 0),
        PartitionGauges(2, None, None),
    ]
    assert gauges.state_keys == 3, "those that are being restored are in memory too"
    assert gauges.state_bytes == sum(partition.slab.nbytes for partition in house.partitions)
    assert gauges.restore_records_remaining == 17
    assert house.points.count("stable_end") == 1


def test_control_records_behind_the_last_event_are_no_lag() -> None:
    """They were passed over. What the client has only read ahead is lag: it is not committed."""
    house = House()
    for number, passed in enumerate((5, 4, 1)):
        house.partition(number, position=3).passed = passed
        house.produce(number, 5)
    house.tick(p0=9, p1=9, p2=9)
    assert [one.consumer_lag for one in house.told.gauges[0].partitions] == [0, 1, 2]
    house.partitions[0].passed = 9
    house.now_s += INTERVAL_S
    house.tick()
    assert house.told.gauges[1].partitions[0].consumer_lag == 0


def test_a_partition_that_is_being_restored_lags_behind_the_groups_offset() -> None:
    house = House()
    house.produce(0, 8)
    restore = SomeRestore(17)
    house.partition(0).restore = restore  # type: ignore[assignment]
    house.tick()
    restore.committed_offset = 3
    house.now_s += INTERVAL_S
    house.tick()
    assert [gauges.partitions[0] for gauges in house.told.gauges] == [
        PartitionGauges(0, None, None),
        PartitionGauges(0, None, 5),
    ]


def test_without_partitions_the_broker_is_not_asked() -> None:
    house = House()
    house.tick()
    assert "stable_end" not in house.points
    assert (house.told.gauges[0].partitions, house.told.gauges[0].state_keys) == ([], 0)


def test_a_partition_that_gives_nothing_is_noticed() -> None:
    house = House()
    house.partition(0, position=0)
    house.produce(0, 3)
    for _ in range(int(STALL_S)):
        house.tick()
        assert house.told.actions == []
        house.now_s += INTERVAL_S
    house.tick()
    assert house.told.actions == ["seek"]


@pytest.mark.parametrize(("polled", "limit_s"), [(1, STALL_S), (2, STARVED_STALL_S), (3, STARVED_STALL_S)])
def test_a_full_poll_may_have_left_others_waiting(polled: int, limit_s: float) -> None:
    """With `batch.max_events` of 2: a partition whose turn it is not has more time than one beside an idle client."""
    house = House(batch={"max_events": 2})
    house.partition(0, position=0)
    house.partition(1, position=0)
    house.produce(0, 3)
    for _ in range(int(limit_s)):
        house.tick(*[1] * polled)
        assert house.told.actions == []
        house.now_s += INTERVAL_S
    house.tick(*[1] * polled)
    assert house.told.actions == ["seek"]


def doubts(caplog: pytest.LogCaptureFixture) -> int:
    return sum("checking again" in record.getMessage() for record in caplog.records)


def test_topics_are_looked_at_every_few_seconds(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    for _ in range(int(3 * TOPICS_INTERVAL_S)):
        house.tick()
        house.now_s += 1
    assert house.points.count("describe") == 3
    del house.broker.topics[OUTPUT]
    for _ in range(int(GONE_S)):
        house.tick()
        house.now_s += DOUBT_INTERVAL_S
    with pytest.raises(CannotServe, match="is gone"):
        house.tick()
    assert doubts(caplog) == 1, "not at each look"


def test_a_topic_that_a_broker_does_not_know_for_a_moment_is_not_gone(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    house.tick()
    output = house.broker.topics.pop(OUTPUT)
    for _ in range(3):
        house.now_s += GONE_S - 1
        house.broker.topics.pop(OUTPUT, None)
        house.tick()
        house.now_s += DOUBT_INTERVAL_S
        house.broker.topics[OUTPUT] = output
        house.tick()
    assert doubts(caplog) == 3, "each time that it is doubtful anew"


def test_retention_that_is_changed_while_it_runs_is_seen() -> None:
    house = House()
    partition = house.partition(0, position=6, floor=2)
    house.produce(0, 10)
    house.tick()
    assert house.checkpointer.retention == Retention(None, by_size=False)
    partition.dirty.mark(ChangedRows(np.array([partition.slab.add(b"k")]), np.array([2])), house.now_s, 500_000)
    settings = house.broker.topics[INPUT].settings

    def due_after(**changes: str) -> bool:
        settings.update({name.replace("_", "."): value for name, value in changes.items()})
        house.now_s += TOPICS_INTERVAL_S
        house.tick()
        return house.checkpointer.due()

    assert not due_after(retention_ms="100000000", retention_bytes="-1")
    assert due_after(retention_ms="6000"), "half of it has passed"
    assert not due_after(retention_ms="-1")
    assert due_after(retention_bytes="1000"), "the floor is in the older half of the log"
    partition.floor = 5
    assert not due_after()
    house.broker.truncate(INPUT, 0, 4)
    assert due_after(), "the log begins at 4 by now and ends at 10"


@pytest.mark.parametrize(
    ("topic", "change", "expected"),
    [
        (INPUT, {"cleanup.policy": "compact"}, "compaction removes events"),
        (STATES, {"cleanup.policy": "compact,delete"}, "does not keep all states"),
        (LETTERS, {"max.message.bytes": "1000"}, "accepts only 1000 bytes per record"),
    ],
)
def test_a_setting_that_is_changed_to_a_wrong_one_stops_it(topic: str, change: dict[str, str], expected: str) -> None:
    house = House()
    house.tick()
    house.broker.topics[topic].settings.update(change)
    house.now_s += TOPICS_INTERVAL_S
    with pytest.raises(CannotServe, match=expected):
        house.tick()


def test_a_setting_that_is_changed_to_a_doubtful_one_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    house.broker.topics[INPUT].settings["unclean.leader.election.enable"] = "true"
    for _ in range(3):
        house.tick()
        house.now_s += TOPICS_INTERVAL_S
    assert sum("unclean.leader.election.enable=true" in record.message for record in caplog.records) == 1


def test_a_broker_that_is_away_is_asked_again_at_the_next_time() -> None:
    for point in ("stable_end", "describe"):
        house = House()
        house.partition(0, position=0)
        house.away.add(point)
        with pytest.raises(TryAgain):
            house.tick()
        house.away.clear()
        house.now_s += TOPICS_INTERVAL_S
        house.tick()
        assert house.told.gauges
        assert "describe" in house.points


def test_partitions_that_the_input_did_not_have_mean_that_it_has_grown() -> None:
    house = House()
    house.housekeeping.check_assignment(range(PARTITIONS))
    assert house.points == []
    house.broker.topics[INPUT].logs.append([])
    house.broker.topics[INPUT].beginnings.append(0)
    with pytest.raises(CannotServe, match=f"has grown from {PARTITIONS} to {PARTITIONS + 1}"):
        house.housekeeping.check_assignment([0, PARTITIONS])


def test_lag_is_shown_while_each_commit_fails() -> None:
    """A round does not come to its end then; the recovery measures."""
    world = World()
    daemon = world.start()
    world.settle()
    for _ in range(50):
        world.produce(b"k", b'{"amount": 1}', 0)
    for _ in range(5):
        world.faults.append("commit")
        world.step(daemon)
        world.now_s += INTERVAL_S
    assert world.metric(daemon, "consumer_lag_records", topic=INPUT, partition="0") == 50
    world.settle()
    world.now_s += INTERVAL_S
    world.step(daemon)
    assert world.metric(daemon, "consumer_lag_records", topic=INPUT, partition="0") == 0


def test_lag_is_shown_while_the_member_is_out_of_its_group() -> None:
    """What it has read meanwhile is not committed, so it is lag."""
    world = World()
    daemon = world.start()
    world.settle()
    for _ in range(5):
        world.produce(b"k", b'{"amount": 1}', 0)
    world.expire(daemon)
    world.now_s += INTERVAL_S
    world.step(daemon)
    assert world.metric(daemon, "consumer_lag_records", topic=INPUT, partition="0") == 5


@pytest.mark.parametrize("name", [OUTPUT, LETTERS])
def test_an_output_that_is_made_again_with_fewer_partitions_ends_it(name: str) -> None:
    """Nothing is written to partitions that are not there; after a restart, keys choose among those that are."""
    world = World()
    daemon = world.start()
    world.settle()
    del world.broker.topics[name]
    settings = {"max.message.bytes": "2000000"} if name == LETTERS else {}
    world.broker.create(name, 1, settings)

    def on_write(batch: RecordBatch) -> None:
        if batch.topic == name and max(batch.partitions, default=0) > 0:  # as the client says it
            raise TryAgain(f"topic {name!r} has only 1 partitions")

    world.broker.on_write = on_write
    for key in (b"a", b"b", b"c"):
        world.produce(key, b'{"amount": 1}')
        world.produce(key, b"{")

    def serve() -> None:
        for _ in range(60):
            world.step(daemon)
            world.now_s += 1

    with pytest.raises(CannotServe, match=f"topic '{name}' had 3 partitions and now has 1; restart"):
        serve()
    world.kill(daemon)
    world.start()
    world.settle()
    assert len(world.broker.topics[LETTERS].logs[0]) == (3 if name == LETTERS else 1)
    assert not world.unanswered()
    assert sorted(world.steps(b"a") + world.steps(b"b") + world.steps(b"c")) == [1, 1, 1]
