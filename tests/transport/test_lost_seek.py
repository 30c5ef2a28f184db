"""librdkafka loses a seek after an assignment: it reads on from the end, and skips the records before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from confluent_kafka import KafkaError, TopicPartition

from lstmstream.records import RecordBatch
from lstmstream.transport.clients import confluent_consumer
from lstmstream.transport.clients.confluent_consumer import ConfluentConsumer
from lstmstream.transport.kafka import Assignments

MEMBER = b"CGMDv2:\x01\x00\x00\x00g\x00one-1\x00\x00one\x00"
LOG = range(20)  # the offsets that the topic has


class FakeMessage:
    """A record, or the end of a partition."""

    def __init__(self, offset: int, *, end: bool = False) -> None:
        self._offset = offset
        self._error = KafkaError(KafkaError._PARTITION_EOF) if end else None

    def error(self) -> KafkaError | None:
        return self._error

    def topic(self) -> str:
        return "in"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_000

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"{}"

    def headers(self) -> None: ...


class FakeLibraryConsumer:
    """Loses its first seeks, as many as `lost`: it reads from `wrong` on then."""

    lost = 1
    wrong = 15
    sought: list[int]

    def __init__(self, settings: dict[str, Any]) -> None:
        self.sought = []
        self._at = -1

    def subscribe(self, topics: list[str], **callbacks: Any) -> None: ...

    def seek(self, at: TopicPartition) -> None:
        self.sought.append(at.offset)
        self._at = at.offset if len(self.sought) > self.lost else self.wrong

    def resume(self, partitions: list[TopicPartition]) -> None: ...

    def get_watermark_offsets(self, at: TopicPartition, timeout: float) -> None: ...

    def poll(self, timeout: float) -> FakeMessage | None:
        if self._at > LOG.stop:
            return None
        self._at = max(self._at, self.first_in_log)
        self._at += 1
        return FakeMessage(self._at - 1, end=self._at > LOG.stop)

    first_in_log = 0

    def consume(self, count: int, timeout: float) -> list[FakeMessage]:
        messages = [self.poll(0.0) for _ in range(min(count, 3))]
        return [message for message in messages if message is not None]

    def consumer_group_metadata(self) -> bytes:
        return MEMBER

    def memberid(self) -> str:
        return "one-1"


def other_library(first_in_log: int) -> Any:
    """Reads what the topic has; offsets before `first_in_log` are control records."""

    def read(topic: str, partition: int, start: int, max_records: int) -> tuple[RecordBatch, int]:
        if start < first_in_log:
            return RecordBatch.empty(topic), first_in_log
        offsets = np.arange(start, LOG.stop)[:max_records]
        return RecordBatch(
            topic=topic,
            partitions=np.zeros(len(offsets), dtype=np.int64),
            offsets=offsets,
            timestamps=np.zeros(len(offsets), dtype=np.int64),
            keys=[b"k"] * len(offsets),
            values=[b"{}"] * len(offsets),
            headers=[()] * len(offsets),
        ), start + len(offsets)

    return read


def read_all(consumer: ConfluentConsumer) -> list[int]:
    """The offsets of the records up to the topic's end."""
    offsets: list[int] = []
    for _ in range(2 * len(LOG)):
        fetched = consumer.poll(0.0, 4)
        offsets += fetched.records.offsets.tolist()
        if fetched.positions[0] == LOG.stop:
            break
    return offsets


@pytest.mark.parametrize(
    ("lost", "wrong", "start", "first_in_log"),
    [
        pytest.param(1, 15, 0, 0, id="lost"),
        pytest.param(1, 15, 7, 0, id="lost-within-the-log"),
        pytest.param(3, 15, 0, 0, id="lost-three-times"),
        pytest.param(1, LOG.stop, 0, 0, id="only-the-end-is-given"),
        pytest.param(0, 0, 0, 0, id="kept"),
        pytest.param(0, 0, 2, 5, id="control-records-at-the-start"),
        pytest.param(1, 15, 2, 5, id="lost-before-control-records"),
        pytest.param(0, 0, 2, LOG.stop, id="nothing-but-control-records"),
    ],
)
def test_records_are_not_skipped_where_the_library_loses_a_seek(
    monkeypatch: pytest.MonkeyPatch, lost: int, wrong: int, start: int, first_in_log: int
) -> None:
    fakes: list[FakeLibraryConsumer] = []

    def make(settings: dict[str, Any]) -> FakeLibraryConsumer:
        fakes.append(FakeLibraryConsumer(settings))
        fakes[0].lost, fakes[0].wrong, fakes[0].first_in_log = lost, wrong, first_in_log
        return fakes[0]

    monkeypatch.setattr(confluent_consumer, "Consumer", make)
    consumer = ConfluentConsumer({}, "in", Assignments(iter(range(9))), lambda: "", other_library(first_in_log))
    consumer.resume(0, start)

    assert read_all(consumer) == list(range(max(start, first_in_log), LOG.stop))
    assert fakes[0].sought[0] == start
    assert (len(fakes[0].sought) > 1) == (lost > 0), "it is told again where it skipped records, and only there"
