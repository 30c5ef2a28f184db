"""kafka-python's producer with a broker that is made up: a flush tells what has become of every record."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import kafka.errors as kerr
import numpy as np
import pytest
from kafka.producer.record_accumulator import RecordAccumulator

from lstmstream.errors import RecordRefused, TryAgain
from lstmstream.records import RecordBatch
from lstmstream.transport.clients.kafka_python import KafkaPythonClient
from lstmstream.transport.clients.kafka_python_producer import KafkaPythonProducer
from lstmstream.transport.security import SecuritySettings

PROBLEM = KafkaPythonClient(["a:1"], "g", {}, SecuritySettings())._problem


class FakeLibraryProducer:
    """The library's accumulator; what becomes of each of its batches, `answer` decides."""

    def __init__(self, answer: Callable[[Any], None]) -> None:
        self.config = {"delivery_timeout_ms": 8_000}
        self._accumulator = RecordAccumulator(message_version=2)
        self._transaction_manager = None
        self._sender = SimpleNamespace(wakeup=lambda: None)
        self._answer = answer

    def flush(self, timeout: float) -> None:
        for batches in self._accumulator._batches.values():
            while batches:
                self._answer(batches.popleft())


def flush(answer: Callable[[Any], None]) -> None:
    """Records of two partitions, so that there are two batches."""
    producer = KafkaPythonProducer(FakeLibraryProducer(answer), PROBLEM)
    partitions = np.array([0, 0, 0, 1])
    records = RecordBatch.to_write("out", partitions, np.ones(4, np.int64), [b"k"] * 4, [b"v"] * 4)
    producer.send(records, partitions.tolist())
    producer.flush(0.05)


def fails(error: Exception, *, of: int, record: int | None = None) -> Callable[[Any], None]:
    """The batch of partition `of`, or one record in it; everything else arrives."""

    def answer(batch: Any) -> None:
        if batch.topic_partition.partition != of:
            batch.complete(0, -1)
        elif record is None:
            batch.complete_exceptionally(error, lambda _index: error)
        else:
            batch.complete_exceptionally(error, lambda index: error if index == record else None)

    return answer


def test_records_that_arrived_are_nothing_to_say() -> None:
    flush(lambda batch: batch.complete(0, -1))


@pytest.mark.parametrize("of", [0, 1])
def test_a_batch_that_was_too_old_to_be_sent_is_not_dropped_without_a_word(of: int) -> None:
    """The library drops it, its own flush returns, and a commit would succeed without its records."""
    with pytest.raises(TryAgain, match=rf"out\[{of}\]: .*expired"):
        flush(fails(kerr.KafkaTimeoutError("the batch expired"), of=of))


def test_a_batch_whose_end_is_not_known_is_not_taken_for_written() -> None:
    with pytest.raises(TryAgain, match=r"out\[1\]: .*not acknowledged in time"):
        flush(lambda batch: None if batch.topic_partition.partition else batch.complete(0, -1))


@pytest.mark.parametrize("record", [None, 0, 2])
def test_one_refused_record_is_enough(record: int | None) -> None:
    error = kerr.InvalidTimestampError("its time")
    with pytest.raises(RecordRefused, match=r"out\[0\]: the broker refuses a record for good"):
        flush(fails(error, of=0, record=record))
