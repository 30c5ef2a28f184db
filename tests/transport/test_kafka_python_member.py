"""kafka-python's consumer with a library that is made up: what a membership is worth."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import kafka.errors as kerr
import pytest
from kafka import TopicPartition
from kafka.coordinator.base import MemberState
from kafka.future import Future

from lstmstream.records import RecordBatch
from lstmstream.transport.clients.kafka_python_consumer import KafkaPythonConsumer
from lstmstream.transport.kafka import Assignments


def member(
    generation: int = 3, member_id: str = "m", instance: str | None = None, state: MemberState = MemberState.STABLE
) -> SimpleNamespace:
    return SimpleNamespace(generation_id=generation, member_id=member_id, group_instance_id=instance, state=state)


class Coordinator:
    """Stable, with a heartbeat."""

    def __init__(self) -> None:
        self._lock = self
        self._heartbeat_enabled = True
        self._join_task: Any = None
        self.rejoining = False
        self.group_instance_id: str | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def stable(self) -> bool:
        return True

    def need_rejoin(self) -> bool:
        return self.rejoining


class FakeLibraryConsumer:
    def __init__(self) -> None:
        self.member = member(instance="one")
        self.timeouts: list[int] = []
        self._coordinator = Coordinator()
        self._subscription = SimpleNamespace(assignment={})
        self._fetcher = SimpleNamespace(
            _paused_partition_records={},
            _paused_completed_fetches={},
            fetch_records=lambda _max_records, timeout_ms: ({}, True),
        )
        self.told: list[tuple[Any, ...]] = []

    def pause(self, at: TopicPartition) -> None:
        self.told.append(("pause", at.partition))

    def resume(self, at: TopicPartition) -> None:
        self.told.append(("resume", at.partition))

    def seek(self, at: TopicPartition, offset: int) -> None:
        self.told.append(("seek", at.partition, offset))

    def subscribe(self, topics: list[str], listener: object) -> None: ...

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0}

    def poll(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        self.timeouts.append(timeout_ms)
        return {}

    def group_metadata(self) -> Any:
        return self.member


@pytest.fixture
def library() -> FakeLibraryConsumer:
    return FakeLibraryConsumer()


@pytest.fixture
def consumer(library: FakeLibraryConsumer) -> KafkaPythonConsumer:
    return KafkaPythonConsumer(library, "in", Assignments(iter(range(9))))


@pytest.mark.parametrize(("generation", "member_id"), [(-1, ""), (-1, "m"), (3, "")])
def test_a_member_that_was_dropped_is_not_valid(
    library: FakeLibraryConsumer, consumer: KafkaPythonConsumer, generation: int, member_id: str
) -> None:
    """The library goes on with (-1, ""), which the broker does not fence."""
    assert consumer.poll(0.0, 1).membership.valid
    library.member = member(generation, member_id)
    assert not consumer.poll(0.0, 1).membership.valid


def test_a_new_generation_counts_once_its_partitions_are_there(
    library: FakeLibraryConsumer, consumer: KafkaPythonConsumer
) -> None:
    library.member = member(3, state=MemberState.REBALANCING)
    assert not consumer.poll(0.0, 1).membership.valid, "the first join is answered, and nothing is assigned yet"
    library.member = member(3)
    assert consumer.poll(0.0, 1).membership.valid
    library.member = member(3, state=MemberState.REBALANCING)
    assert consumer.poll(0.0, 1).membership.valid, "the partitions are its own while the group waits for others"
    library.member = member(4, state=MemberState.REBALANCING)
    assert not consumer.poll(0.0, 1).membership.valid, "some may have another owner"
    library.member = member(4)
    assert consumer.poll(0.0, 1).membership.valid


def test_a_join_that_has_ended_between_two_polls_is_not_thrown_away(
    library: FakeLibraryConsumer, consumer: KafkaPythonConsumer
) -> None:
    coordinator = library._coordinator
    going_on = coordinator._join_task = Future()
    consumer.poll(0.0, 1)
    assert coordinator._join_task is going_on
    going_on.success(b"assignment")
    consumer.poll(0.0, 1)
    found: list[bytes] = []
    assert not coordinator._join_task.is_done, "the library waits for it, and does not begin another"
    coordinator._join_task.add_callback(found.append)
    assert found == [b"assignment"]


def test_what_is_assigned_is_silent_until_it_is_resumed(
    library: FakeLibraryConsumer, consumer: KafkaPythonConsumer
) -> None:
    """Also where the partition was here before: its states are to be restored first, and it goes on elsewhere."""
    both = [TopicPartition("in", 0), TopicPartition("in", 1)]
    for _ in range(2):
        consumer.on_partitions_assigned(both)
        paused = [call[1] for call in library.told if call[0] == "pause"]
        assert paused == [0, 1]
        library.told.clear()
        consumer.resume(1, 7)
        assert library.told == [("seek", 1, 7), ("resume", 1)]
        library.told.clear()


def test_what_was_fetched_before_a_partition_was_resumed_is_dropped(
    library: FakeLibraryConsumer, consumer: KafkaPythonConsumer
) -> None:
    """It is of another position, and as long as it is parked the library fetches nothing new of the partition."""
    at, other = TopicPartition("in", 0), TopicPartition("in", 1)
    parked = (library._fetcher._paused_partition_records, library._fetcher._paused_completed_fetches)
    for of_library in parked:
        of_library |= {at: "records", other: "records"}
    consumer.on_partitions_assigned([at, other])
    consumer.resume(0, 7)
    assert parked == ({other: "records"}, {other: "records"})


def test_a_poll_is_long_enough_to_join(library: FakeLibraryConsumer, consumer: KafkaPythonConsumer) -> None:
    consumer.poll(0.005, 1)
    consumer.poll(0.005, 1)
    library.member = member(-1, "", state=MemberState.UNJOINED)
    consumer.poll(0.005, 1)
    consumer.poll(0.005, 1)
    assert library.timeouts == [50, 5, 5, 50]


def test_a_static_member_whose_heartbeat_was_stopped_is_fenced(
    library: FakeLibraryConsumer, consumer: KafkaPythonConsumer
) -> None:
    coordinator = library._coordinator
    coordinator._heartbeat_enabled = False
    consumer.poll(0.0, 1)  # not a static one
    coordinator.group_instance_id = "one"
    with pytest.raises(kerr.FencedInstanceIdError):
        consumer.poll(0.0, 1)
    coordinator.rejoining = True  # it is stopped for a join as well
    consumer.poll(0.0, 1)


def test_a_commit_under_an_old_membership_is_refused(
    library: FakeLibraryConsumer, consumer: KafkaPythonConsumer
) -> None:
    before = consumer.poll(0.0, 1).membership
    library.member = member(4)
    with pytest.raises(kerr.CommitFailedError, match="rebalanced"):
        consumer.commit({}, before, 1.0)


def test_what_was_fetched_is_handed_out_during_a_rebalance(
    consumer: KafkaPythonConsumer, library: FakeLibraryConsumer
) -> None:
    """The library's own poll gives nothing until the group is complete."""
    waiting = RecordBatch.empty("in")
    asked: list[int] = []

    def fetch_records(max_records: int, timeout_ms: int) -> tuple[dict[TopicPartition, list[RecordBatch]], bool]:
        asked.append(max_records)
        assert timeout_ms == 0, "the poll has waited already"
        return {TopicPartition("in", 0): [waiting]}, False

    library._fetcher.fetch_records = fetch_records
    consumer.poll(0.1, 7)
    assert not asked
    library._coordinator.rejoining = True
    assert consumer.poll(0.1, 7).records.topic == "in"
    assert asked == [7]
