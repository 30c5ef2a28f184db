"""librdkafka leaves out records of a batch without a word: the other library reads them, in their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from confluent_kafka import KafkaError, TopicPartition

from lstmstream.errors import UnreadableRecords
from lstmstream.records import RecordBatch
from lstmstream.transport.clients import confluent_consumer, confluent_gaps
from lstmstream.transport.clients.confluent_consumer import ConfluentConsumer, ConfluentReader
from lstmstream.transport.decompression import BatchTooLargeError
from lstmstream.transport.kafka import Assignments
from tests.transport.test_lost_seek import LOG, FakeLibraryConsumer, FakeMessage, other_library, read_all


class LeavesOut(FakeLibraryConsumer):
    """Gives neither record nor error for some offsets."""

    lost = 0
    left_out: frozenset[int] = frozenset()

    def poll(self, timeout: float) -> FakeMessage | None:
        message = super().poll(timeout)
        while message is not None and message.offset() in self.left_out:
            message = super().poll(timeout)
        return message

    def assign(self, partitions: list[TopicPartition]) -> None:
        self._at = partitions[0].offset

    def close(self) -> None: ...


class Asked:
    """The other library, which remembers where it was asked. Control records are at `control`."""

    def __init__(self, control: frozenset[int] = frozenset()) -> None:
        self.starts: list[int] = []
        self._control = control

    def __call__(self, topic: str, partition: int, start: int, max_records: int) -> tuple[RecordBatch, int]:
        self.starts.append(start)
        records, position = other_library(0)(topic, partition, start, len(LOG))
        kept = np.flatnonzero(~np.isin(records.offsets, list(self._control)))[:max_records]
        return records.take(kept), int(records.offsets[kept[-1]]) + 1 if len(kept) else position


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confluent_consumer, "Consumer", LeavesOut)


def consumer(other: Any) -> ConfluentConsumer:
    made = ConfluentConsumer({}, "in", Assignments(iter(range(9))), lambda: "", other)
    made.resume(0, 0)
    return made


@pytest.mark.parametrize(
    "left_out",
    [{5}, {5, 6, 7}, {0, 1}, {19}, {18, 19}, {3, 9, 14, 15}, set(LOG)],
    ids=["one", "some", "first", "last", "last two", "several", "all"],
)
def test_no_record_is_lost_and_none_comes_twice(left_out: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeavesOut, "left_out", frozenset(left_out))
    assert read_all(consumer(Asked())) == list(LOG)


@pytest.mark.parametrize("left_out", [{5}, {5, 6, 7}, {0, 1}, {18, 19}], ids=["one", "some", "first", "last two"])
def test_a_reader_leaves_nothing_out_either(left_out: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeavesOut, "left_out", frozenset(left_out))
    reader = ConfluentReader({}, TopicPartition("in", 0, 0), Asked())
    offsets: list[int] = []
    position = 0
    for _ in range(40):
        records, position = reader.read(position, LOG.stop, 0.0)
        offsets += records.offsets.tolist()
        if position >= LOG.stop:
            break
    assert offsets == list(LOG)


def test_no_position_moves_where_the_other_library_cannot_read_either() -> None:
    """What was given of other partitions is not handed out then, so it is to be read again."""

    def unreadable(topic: str, partition: int, start: int, max_records: int) -> tuple[RecordBatch, int]:
        raise UnreadableRecords(topic, partition, start, start + 1, "damaged")

    made = consumer(unreadable)
    made.resume(1, 0)
    records, _ = other_library(0)("in", 0, 0, 4)
    records = replace(records, partitions=np.array([0, 0, 1, 1]), offsets=np.array([0, 1, 0, 2]))
    with pytest.raises(UnreadableRecords):
        made._advance(records, {})
    assert made._positions == {0: 0, 1: 0}


def test_gaps_without_records_are_asked_about_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic with transactions has a control record behind each: to ask about every one would take too long."""
    control = frozenset({3, 7, 11, 15})
    monkeypatch.setattr(LeavesOut, "left_out", control)
    other = Asked(control)
    assert read_all(consumer(other)) == [offset for offset in LOG if offset not in control]
    assert other.starts == [3], "once, though there are four gaps"
    clock = [confluent_gaps.time.monotonic() + 61.0]
    monkeypatch.setattr(confluent_gaps.time, "monotonic", lambda: clock[0])
    check = confluent_gaps.GapCheck("in", other)
    assert check.first_lost(0, 0, np.array([0, 1, 2, 4]), 5) is None
    assert check.first_lost(0, 5, np.array([5, 6, 8]), 9) is None
    assert other.starts == [3, 3]
    clock[0] += 61.0
    assert check.first_lost(0, 9, np.array([9, 10, 12]), 13) is None
    assert other.starts == [3, 3, 11]


def too_large(topic: str, partition: int, start: int, max_records: int) -> tuple[RecordBatch, int]:
    raise UnreadableRecords(topic, partition, start, start + 1, "too large to unpack") from BatchTooLargeError()


def damaged(topic: str, partition: int, start: int, max_records: int) -> tuple[RecordBatch, int]:
    raise UnreadableRecords(topic, partition, start, start + 1, "damaged")


class Silent(LeavesOut):
    """Neither a record nor an error, nor the end."""

    def poll(self, timeout: float) -> FakeMessage | None:
        return None


class Complains(LeavesOut):
    """It cannot decode what is there."""

    def poll(self, timeout: float) -> FakeMessage | None:
        return Undecodable(0)


class Undecodable(FakeMessage):
    def error(self) -> KafkaError:
        return KafkaError(KafkaError._BAD_COMPRESSION)


def member(other: Any) -> Callable[[], int]:
    """A member of the group that was told twice where to read. It gives the number of records of a poll."""
    made = consumer(other)
    made.resume(0, 0)
    return lambda: len(made.poll(0.0, 10).records)


def outside_reader(other: Any) -> Callable[[], int]:
    made = ConfluentReader({}, TopicPartition("in", 0, 0), other)
    return lambda: len(made.read(0, LOG.stop, 0.0)[0])


@pytest.mark.parametrize("reading", [member, outside_reader])
def test_a_silence_may_be_a_batch_that_takes_long_to_unpack(
    reading: Callable[[Any], Callable[[], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """librdkafka has no bound of its own for what it unpacks; the other library has. Damage is another thing."""
    monkeypatch.setattr(confluent_consumer, "Consumer", Silent)
    monkeypatch.setattr(confluent_consumer, "_TOLD_TWICE_S", 0.0)
    monkeypatch.setattr(confluent_consumer, "_SILENT_S", -1.0)
    assert reading(too_large)() == 0
    with pytest.raises(UnreadableRecords, match="damaged"):
        reading(damaged)()
    monkeypatch.setattr(confluent_consumer, "Consumer", Complains)
    with pytest.raises(UnreadableRecords, match="too large to unpack"):
        reading(too_large)()
