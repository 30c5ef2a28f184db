"""kafka-python's producer. See kafka_python.py.

The library encodes record by record, and makes a future of each. Here whole batches are encoded and put where the
library keeps its own; it sends, retries, splits and completes them as it does those.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import kafka.errors as kerr
import numpy as np
from kafka import TopicPartition
from kafka.producer.future import FutureRecordMetadata
from kafka.producer.producer_batch import ProducerBatch
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecordsBuilder

from lstmstream.records import Ints, RecordBatch, partition_numbers
from lstmstream.transport.clients.kafka_python_consumer import topic_offsets
from lstmstream.transport.decisions import PASSING_OF_WRITES, Problem, write_failed
from lstmstream.transport.ports import CommittedOffset, Membership
from lstmstream.transport.record_format import encode_records, record_bytes_at_most

_SPLIT_WAIT_S = 0.001  # while the library's thread takes a batch apart


class KafkaPythonProducer:
    """A Producer (see clients/__init__.py)."""

    def __init__(self, producer: Any, problem: Callable[[BaseException], Problem]) -> None:
        """`problem`: what one error of a record means."""
        self._producer = producer
        self._problem = problem
        self._sent: list[_SentBatch] = []  # since the last flush

    def partition_count(self, topic: str, timeout_s: float) -> int:
        """See Producer."""
        return len(self._producer.partitions_for(topic))

    def init_transactions(self, timeout_s: float) -> None:
        """See Producer."""
        self._producer.init_transactions()

    def begin(self) -> None:
        """See Producer."""
        self._producer.begin_transaction()

    def send(self, batch: RecordBatch, partitions: Sequence[int]) -> None:
        """See Producer."""
        accumulator, manager = self._producer._accumulator, self._producer._transaction_manager
        of_record = np.asarray(partitions, np.int64)
        accumulator._appends_in_progress.increment()  # a producer that is being closed waits for it
        try:
            for partition in partition_numbers(of_record):
                at = TopicPartition(batch.topic, partition)
                if manager is not None and manager.is_transactional():
                    manager.maybe_add_partition_to_transaction(at)
                for part in _parts(
                    batch.take(np.flatnonzero(of_record == partition)), accumulator.config["batch_size"]
                ):
                    sent = _encode(at, part, accumulator.config)
                    with accumulator._tp_lock(at):
                        if accumulator._closed:
                            raise kerr.IllegalStateError("the producer is closed")
                        accumulator._batches[at].append(sent.batch)
                        accumulator._incomplete.add(sent.batch)
                    self._sent.append(sent)
        finally:
            accumulator._appends_in_progress.decrement()
        self._producer._sender.wakeup()

    def flush(self, timeout_s: float) -> None:
        """See Producer. A batch that is too old is dropped without a word: hence a look at every one.

        While the broker is away nothing is dropped for being old either: hence a limit that knows the delivery timeout.
        """
        sent, self._sent = self._sent, []
        timeout_s = min(timeout_s, self._producer.config["delivery_timeout_ms"] / 1000 + 2)
        with contextlib.suppress(kerr.UnknownError):  # a batch was split while it was waited for
            self._producer.flush(timeout=timeout_s)
        deadline_s = time.monotonic() + timeout_s
        failed = [(error, batch.topic, batch.partition) for batch in sent for error in batch.errors(deadline_s)]
        if not failed:
            return
        problems = [(self._problem(error), topic, partition) for error, topic, partition in failed]
        if (cause := write_failed(problems)) is not None:
            raise cause from failed[0][0]
        for (error, *_), (problem, *_) in zip(failed, problems, strict=True):
            if problem.kind not in PASSING_OF_WRITES:
                raise error
        raise failed[0][0]

    def send_offsets(
        self, topic: str, offsets: Mapping[int, CommittedOffset], membership: Membership, timeout_s: float
    ) -> None:
        """See Producer."""
        self._producer.send_offsets_to_transaction(topic_offsets(topic, offsets), membership.token)

    def commit(self, timeout_s: float) -> None:
        """See Producer. It has no limit of its own."""
        self._producer.commit_transaction()

    def abort(self, timeout_s: float) -> None:
        """See Producer."""
        self._producer.abort_transaction()

    def discard(self) -> None:
        """See Producer. `KafkaProducer.close` flushes first, and raises where it cannot."""
        self._producer._sender.force_close()
        self._producer._sender.join(2.0)
        with contextlib.suppress(kerr.KafkaError):
            self._producer.close(timeout=0)


class _SentBatch:
    """A batch that was handed to the library, and how it ended."""

    def __init__(self, at: TopicPartition, batch: Any, count: int) -> None:
        self.topic: str = at.topic
        self.partition: int = at.partition
        self.batch = batch
        self._count = count
        self._futures = batch._record_futures = _Futures(batch, count)

    def errors(self, deadline_s: float) -> Iterator[BaseException]:
        """Of its records that were not written; one that says so where that is not known in time."""
        result = self.batch.produce_future
        while not result.is_done:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not result.wait(left_s):
                yield kerr.KafkaTimeoutError("the records were not acknowledged in time")
                return
            if self._futures.split:
                yield from self._errors_of_parts(deadline_s)
                return
            if not result.is_done:
                time.sleep(_SPLIT_WAIT_S)
        if result.failed():
            yield result.exception
            return
        _, _, error_of = result.value
        if error_of is not None:
            yield from map(error_of, range(self._count))

    def _errors_of_parts(self, deadline_s: float) -> Iterator[BaseException]:
        while len(self._futures.made) < self._count and time.monotonic() < deadline_s:
            time.sleep(_SPLIT_WAIT_S)
        for future in list(self._futures.made):
            try:
                future.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except kerr.KafkaError as error:
                yield error


class _Futures:
    """A future for each record, made when the library asks for it: where it splits a batch that is too large."""

    def __init__(self, batch: Any, count: int) -> None:
        self._batch = batch
        self._count = count
        self.made: list[Any] = []

    @property
    def split(self) -> bool:
        """Whether the batch will never complete, but its parts."""
        return bool(self.made)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        future = FutureRecordMetadata(self._batch.produce_future, index, None, None, -1, -1, -1)
        self.made.append(future)
        return future


def _parts(batch: RecordBatch, batch_bytes: int) -> Iterator[RecordBatch]:
    """Records that together are not larger than a batch may be; one that is larger is alone."""
    room = batch_bytes - DefaultRecordBatchBuilder.header_size_in_bytes()
    ends = np.cumsum(record_bytes_at_most(batch.keys, batch.values, batch.headers))
    start = 0
    while start < len(batch):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + room, side="right")))
        yield batch if stop - start == len(batch) else batch.slice(start, stop)
        start = stop


def _encode(at: TopicPartition, part: RecordBatch, config: Mapping[str, Any]) -> _SentBatch:
    """As the library's own builder would have it after so many records."""
    count, timestamps = len(part), part.timestamps
    builder = MemoryRecordsBuilder(config["message_version"], config["compression_attrs"], config["batch_size"])
    inner = builder._builder
    inner._buffer += encode_records(_deltas(timestamps), part.keys, part.values, part.headers)
    inner._first_timestamp, inner._max_timestamp = int(timestamps[0]), int(timestamps.max())
    inner._num_records = builder._next_offset = count
    inner._last_offset = count - 1
    builder._batch_size = 1  # it counts as full, and is sent without waiting for more
    return _SentBatch(at, ProducerBatch(at, builder), count)


def _deltas(timestamps: Ints) -> list[int]:
    first = int(timestamps[0])
    if int(timestamps.max()) - int(timestamps.min()) < 1 << 63:
        deltas: list[int] = (timestamps - first).tolist()
        return deltas
    return [timestamp - first for timestamp in timestamps.tolist()]  # beyond 64 bits
