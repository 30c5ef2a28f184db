"""The producer of confluent-kafka. Its comments name what the library gets wrong and what is done about it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import Producer as RdProducer

from lstmstream.errors import CannotServe, RecordRefused
from lstmstream.records import RecordBatch
from lstmstream.transport.clients.confluent_consumer import topic_offsets
from lstmstream.transport.decisions import PASSING_OF_WRITES, ErrorKind, Problem, record_refused, write_failed
from lstmstream.transport.ports import CommittedOffset, Membership

log = logging.getLogger(__name__)

_MIN_BATCH_BYTES = 4096
_MARKERS_S = 0.004  # a broker on the same machine needs 2 to 4 ms
_FLUSH_SLICE_S = 0.25
_PURGED = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)


class BatchBytes:
    """How large the producers' batches are: librdkafka does not split one that is too large for its topic."""

    def __init__(self, now: int) -> None:
        self.now = now

    def shrink(self, largest_record: int, topics: Collection[str]) -> bool:
        """Smaller ones from now on; False where that would not help, since the record was alone in its batch."""
        if self.now <= _MIN_BATCH_BYTES or largest_record >= self.now:
            return False
        self.now = max(_MIN_BATCH_BYTES, self.now // 4)
        log.warning(
            "topic %s does not accept batches of this size (its max.message.bytes); from now on they have at most %d"
            " bytes",
            ", ".join(map(repr, sorted(topics))),
            self.now,
        )
        return True


class ConfluentProducer:
    """A Producer (see clients/__init__.py)."""

    def __init__(
        self, settings: Mapping[str, Any], batch_bytes: BatchBytes, problem: Callable[[KafkaError], Problem]
    ) -> None:
        """`problem`: what an error of the library means."""
        self._batch_bytes = batch_bytes
        self._problem = problem
        self._max_bytes = settings.get("message.max.bytes")
        self._sent: list[RecordBatch] = []  # since the last flush
        self._undelivered: list[tuple[KafkaError, str, int]] = []  # with topic and partition
        self._ended_s = 0.0  # monotonic, of the last transaction
        self._producer = RdProducer({**settings, "on_delivery": _noting(self._undelivered)})

    def partition_count(self, topic: str, timeout_s: float) -> int:
        """See Producer."""
        found = self._producer.list_topics(topic, timeout=timeout_s).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        return len(found.partitions)

    def init_transactions(self, timeout_s: float) -> None:
        """See Producer."""
        self._producer.init_transactions(timeout_s)

    def begin(self) -> None:
        """See Producer. A moment after the end of the transaction before.

        While the broker writes its markers it refuses partitions of the next one, and the library asks again only after
        20 ms.
        """
        time.sleep(max(0.0, self._ended_s + _MARKERS_S - time.monotonic()))
        self._producer.begin_transaction()

    def send(self, batch: RecordBatch, partitions: Sequence[int]) -> None:
        """See Producer. librdkafka takes the timestamp 0 for "now": the nearest other one goes in its place.

        Arguments by position save a quarter of the time of a call (the two None: no callback for this record).
        """
        produce, topic = self._producer.produce, batch.topic
        timestamps = np.where(batch.timestamps == 0, 1, batch.timestamps).tolist()
        for partition, timestamp, key, value, headers in zip(
            partitions, timestamps, batch.keys, batch.values, batch.headers, strict=True
        ):
            try:
                produce(topic, value, key, partition, None, None, timestamp, list(headers) if headers else None)
            except KafkaException as error:  # larger than the library's own limit
                problem = self._problem(error.args[0])
                if problem.kind is ErrorKind.RECORD_TOO_LARGE:
                    text = f"it is larger than kafka.properties max.request.size = {self._max_bytes}; raise that"
                    raise record_refused(problem._replace(text=text), topic, partition) from error
                if error.args[0].code() == KafkaError._STATE:  # a partition of an earlier batch was not added
                    written = {topic, *(sent.topic for sent in self._sent)}
                    raise self._transaction_error(written) or error from error
                raise
        self._sent.append(batch)

    def flush(self, timeout_s: float) -> None:
        """See Producer. Errors of single records come to the callback alone.

        In slices: after one error what belongs to the same transaction is not sent, and times out much later.
        """
        deadline = time.monotonic() + timeout_s
        with self._fatal_error():
            while left := self._producer.flush(min(_FLUSH_SLICE_S, max(0.0, deadline - time.monotonic()))):
                if self._undelivered or time.monotonic() >= deadline:
                    break
        if self._undelivered:
            too_large = {topic for e, topic, _ in self._undelivered if e.code() == KafkaError.MSG_SIZE_TOO_LARGE}
            if too_large and self._batch_bytes.shrink(_largest(self._sent, too_large), too_large):
                text = f"the batch was too large for {', '.join(map(repr, sorted(too_large)))}"
                raise KafkaException(KafkaError(KafkaError._RETRY, text))
            raise self._cause(self._undelivered)
        if left:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"{left} records were not acknowledged"))
        self._sent.clear()

    def _cause(self, failed: Sequence[tuple[KafkaError, str, int]]) -> Exception:
        """The error that will not pass, if there is one."""
        problems = [(self._problem(error), topic, partition) for error, topic, partition in failed]
        purged = {topic for error, topic, _ in failed if error.code() in _PURGED}
        own = [one for one, (error, *_) in zip(problems, failed, strict=True) if error.code() not in _PURGED]
        cause = write_failed(own)  # it names the topic; the transaction's error, for which others are purged, does not
        if isinstance(cause, (RecordRefused, CannotServe)):
            return cause
        if purged and (lost := self._transaction_error(purged)) is not None:
            return lost
        if (cause := write_failed(problems)) is not None:
            return cause
        of_all = (e for (e, *_), (p, *_) in zip(failed, problems, strict=True) if p.kind not in PASSING_OF_WRITES)
        return KafkaException(next(of_all))

    def _transaction_error(self, topics: Collection[str]) -> KafkaException | None:
        """Why the transaction that writes to these topics cannot be committed, if that is known.

        Where the broker does not add a partition to it, for a missing right, its records are purged without a cause.
        """
        known = self._last_error()
        cause: KafkaError | None = None if known is None else known.args[0]
        if cause is None or cause.code() in (KafkaError._STATE, KafkaError._NOT_CONFIGURED):
            return None
        return KafkaException(KafkaError(cause.code(), f"{cause.str()}, of {' or '.join(map(repr, sorted(topics)))}"))

    def _last_error(self) -> KafkaException | None:
        """What a new transaction is refused with, beside an open one: the error of that, or only that it is open."""
        try:
            self._producer.begin_transaction()
        except KafkaException as error:
            return error
        return None

    @contextmanager
    def _fatal_error(self) -> Iterator[None]:
        """Raise a fatal error where the binding lost it. The library still knows the transaction's last error.

        The binding raises a fatal error among its callbacks. One that runs after it may clear the exception: what comes
        out is a SystemError without a cause.
        """
        try:
            yield
        except SystemError as error:
            if error.__cause__ is None and (known := self._last_error()) is not None:
                raise known from error
            raise

    def send_offsets(
        self, topic: str, offsets: Mapping[int, CommittedOffset], membership: Membership, timeout_s: float
    ) -> None:
        """See Producer. It was seen to overrun its limit by 25 s."""
        with self._fatal_error():
            self._producer.send_offsets_to_transaction(topic_offsets(topic, offsets), membership.token, timeout_s)

    def commit(self, timeout_s: float) -> None:
        """See Producer."""
        with self._fatal_error():
            self._producer.commit_transaction(timeout_s)
        self._ended_s = time.monotonic()

    def abort(self, timeout_s: float) -> None:
        """See Producer."""
        self._producer.abort_transaction(timeout_s)
        self._ended_s = time.monotonic()

    def discard(self) -> None:
        """See Producer. What is queued or in flight goes first: the library would wait for it as the object ends."""
        self._producer.purge(blocking=False)


def _noting(undelivered: list[tuple[KafkaError, str, int]]) -> Callable[[KafkaError | None, Message], None]:
    """A callback that knows the list alone. One that knew its producer would keep it, and its threads, alive."""

    def on_delivery(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            undelivered.append((error, message.topic() or "", message.partition() or 0))

    return on_delivery


def _largest(batches: Sequence[RecordBatch], topics: Collection[str]) -> int:
    """Bytes of the largest record in some of the topics."""
    return max(int(batch.sizes().max()) for batch in batches if batch.topic in topics and len(batch))
