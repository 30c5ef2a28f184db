"""The producers of one writer, and the order of a transaction: written once, over either client library."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lstmstream.errors import LstmstreamError, OutcomeUnknown, TryAgain
from lstmstream.records import RecordBatch
from lstmstream.transport.calls import ClientThread
from lstmstream.transport.clients import Producer
from lstmstream.transport.partitioner import partitions_of
from lstmstream.transport.ports import CommittedOffset, Membership
from lstmstream.wording import counted

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 2.0  # for a client that is no longer needed
REPEATED_S = 0.5  # a library repeats a request only after a lost connection or seconds without an answer


class GroupOffsets(NamedTuple):
    """The group's offsets in a transaction, fenced by the membership."""

    topic: str
    offsets: Mapping[int, CommittedOffset]
    membership: Membership


class Writer:
    """The producers of one attempt; after any error they are thrown away, and others are made."""

    def __init__(self, transactional: ClientThread[Producer], plain: ClientThread[Producer] | None) -> None:
        self.transactional = transactional
        self.plain = plain  # of at_least_once, for outputs
        self.in_transaction = False
        self.repeated = False  # the end of a transaction may have been sent twice
        self._partition_counts: dict[str, int] = {}

    def write(self, producer: ClientThread[Producer], batches: Sequence[RecordBatch], deadline: float) -> None:
        """Hand over, flush, and look at every acknowledgement: nothing is in flight afterwards, nothing was dropped."""
        for batch in batches:
            if len(batch):
                self._send(producer, batch, deadline)
        left = left_s(deadline)
        producer.call(lambda p: p.flush(left), left)

    def _send(self, producer: ClientThread[Producer], batch: RecordBatch, deadline: float) -> None:
        topic = batch.topic
        count = self._partition_counts.get(topic)
        if count is None:
            left = left_s(deadline)
            count = self._partition_counts[topic] = producer.call(lambda p: p.partition_count(topic, left), left)
        partitions = partitions_of(batch, count)
        if max(partitions) >= count:  # a client would wait for such a partition to come
            raise TryAgain(f"topic {topic!r} has only {counted(count, 'partition')}")
        producer.call(lambda p: p.send(batch, partitions), left_s(deadline))

    def transact(self, batches: Sequence[RecordBatch], offsets: GroupOffsets | None, deadline: float) -> None:
        """One transaction. Between its calls nothing of it can go on by itself: a call that is late is the last.

        Without `offsets` only the transactional id fences it: for writers that have no part in a group.
        """
        producer = self.transactional
        self.in_transaction = True
        producer.call(lambda p: p.begin(), left_s(deadline))
        self.write(producer, batches, deadline)
        if offsets is not None:
            topic, of, membership = offsets
            left = left_s(deadline)
            producer.call(lambda p: p.send_offsets(topic, of, membership, left), left)
        left, began_s = left_s(deadline), time.monotonic()
        try:
            producer.call(lambda p: p.commit(left), left)
        except TryAgain as error:
            raise OutcomeUnknown(str(error)) from error
        self.in_transaction = False
        self.repeated = time.monotonic() - began_s > REPEATED_S

    def discard(self) -> None:
        """Never raises."""
        for producer in (self.transactional, self.plain):
            if producer is not None:
                discard(producer)

    def close(self, deadline: float) -> None:
        """Discard, but end an open transaction first: a reader would wait for its timeout otherwise. Never raises."""
        if self.in_transaction and not self.transactional.stuck:
            left = min(CLOSE_TIMEOUT_S, left_s(deadline))
            try:
                self.transactional.call(lambda p: p.abort(left), left)
            except LstmstreamError as error:
                log.info("an open transaction is left to its timeout: %s", error)
        self.discard()


def discard(producer: ClientThread[Producer]) -> None:
    """Now, beside whatever call is running, which ends with it; and once more for one that is still being made."""
    producer.interrupt(lambda p: p.discard())
    producer.end(lambda p: p.discard(), timeout_s=0.0)


def left_s(deadline: float) -> float:
    """Seconds until a moment of time.monotonic(), 0 after it."""
    return max(0.0, deadline - time.monotonic())
