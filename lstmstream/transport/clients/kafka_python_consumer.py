"""kafka-python's consumers: a member of the group, and readers outside of it. See kafka_python.py."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import kafka.errors as kerr
import numpy as np
from kafka import TopicPartition
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.base import MemberState
from kafka.structs import OffsetAndMetadata

from lstmstream.records import RecordBatch, concatenate
from lstmstream.transport.clients import AssignmentListener, Fetched
from lstmstream.transport.clients.kafka_python_records import begin_poll, read_by_batch
from lstmstream.transport.clients.offset_metadata import with_end
from lstmstream.transport.ports import CommittedOffset, Membership

log = logging.getLogger(__name__)

_READ_RECORDS = 4096  # of one read outside the group
_JOIN_MS = 50  # a poll shorter than this never completes a join


class KafkaPythonConsumer(ConsumerRebalanceListener):  # type: ignore[misc]
    """A GroupConsumer (see clients/__init__.py)."""

    def __init__(self, consumer: Any, topic: str, listener: AssignmentListener) -> None:
        read_by_batch(consumer)
        self._consumer = consumer
        self._topic = topic
        self._listener = listener
        self._lock = threading.Lock()
        self._resumed: set[int] = set()
        self._settled = False  # the last poll found the member in its group
        self._generation: tuple[int, str] | None = None  # and member id, as they were when our partitions were assigned
        consumer.subscribe([topic], listener=self)
        # A leader that joins before it knows the topic's partitions was seen to assign none, and to leave it at that.
        if not consumer.partitions_for_topic(topic):
            raise kerr.UnknownTopicOrPartitionError(f"the partitions of topic {topic!r} are not known yet")

    # The library calls these on its I/O thread, where a call that blocks raises: note, pause and seek, nothing else.

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """Pause what has come."""
        with self._lock:
            for at in assigned:
                self._resumed.discard(at.partition)
                self._consumer.pause(at)
                self._consumer.seek(at, 0)  # a position, so that the client does not go and look for one
        self._listener.assigned([at.partition for at in assigned])

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """Forget what has gone."""
        with self._lock:
            self._resumed -= {at.partition for at in revoked}
        self._listener.revoked([at.partition for at in revoked])

    on_partitions_lost = on_partitions_revoked

    def poll(self, timeout_s: float, max_events: int) -> Fetched:
        """See GroupConsumer.

        The library reads nothing while a rebalance goes on, which may wait a whole session for a member that has died.
        But the partitions that this member has are its own until it gives them up.
        """
        timeout_ms = int(timeout_s * 1000)
        self._keep_join()
        records = _poll(
            self._consumer, self._topic, timeout_ms if self._settled else max(timeout_ms, _JOIN_MS), max_events
        )
        if not len(records) and self._consumer._coordinator.need_rejoin():
            fetched, _ = self._consumer._fetcher.fetch_records(max_events, timeout_ms=0)
            records = _joined(self._topic, fetched)
        membership = self._membership()
        self._settled = membership.valid
        if self._fenced():
            raise kerr.FencedInstanceIdError(self._consumer.group_metadata().group_instance_id)
        return Fetched(records, membership, self._positions())

    def _keep_join(self) -> None:
        """Have the library take a join that has ended since the last poll.

        It throws the result away, assignment and all, and joins again: then the whole group rebalances once more, and
        for as long as the end always comes between two polls.
        """
        coordinator = self._consumer._coordinator
        join = coordinator._join_task
        if join is not None and join.is_done:
            coordinator._join_task = _EndedJoin(join)

    def _membership(self) -> Membership:
        """Valid if its generation is the one that our partitions were assigned in.

        group_metadata() is live. Once the member was dropped it is (-1, ""), which the broker does not fence. And as
        soon as a join is answered it names the new generation, while the partitions are still those of the one before:
        some may have another owner by then. Java's client, too, takes a generation only together with its partitions.
        """
        live = self._consumer.group_metadata()
        if live.state is MemberState.STABLE:
            self._generation = (live.generation_id, live.member_id)
        in_group = live.generation_id >= 0 and bool(live.member_id)
        return Membership(live, in_group and self._generation == (live.generation_id, live.member_id), live.member_id)

    def member_id(self) -> str:
        """See GroupConsumer."""
        return str(self._consumer.group_metadata().member_id or "")

    def keep_alive(self) -> None:
        """See GroupConsumer."""
        self._consumer._coordinator.heartbeat.poll()

    def _fenced(self) -> bool:
        """Whether another process has joined under our instance id: the library stops its heartbeat, and reads on."""
        coordinator = self._consumer._coordinator
        with coordinator._lock:
            silent = coordinator.stable() and not coordinator.rejoining and not coordinator._heartbeat_enabled
            return bool(silent and coordinator.group_instance_id is not None)

    def _positions(self) -> dict[int, int]:
        with self._lock:
            resumed = sorted(self._resumed)
        assignment = self._consumer._subscription.assignment
        states = {partition: assignment.get(TopicPartition(self._topic, partition)) for partition in resumed}
        return {
            partition: int(state.position.offset)
            for partition, state in states.items()
            if state is not None and state.position is not None
        }

    def resume(self, partition: int, offset: int) -> None:
        """See GroupConsumer.

        The client parks what it has half taken of a paused partition. What is parked comes back only while the slot
        for the next records is None, and an exhausted slot is not None (`Fetcher.fetched_records`); a partition that
        has something parked is not fetched (`Fetcher._fetchable_partitions`). So a partition that came again, and was
        resumed, was never read again as long as no other one took the slot. What is parked belongs to an earlier
        position: it is dropped. This thread is the only one that parks and brings back.
        """
        at = TopicPartition(self._topic, partition)
        self._drop_parked(at)
        try:
            self._consumer.seek(at, offset)
            self._consumer.resume(at)
        except (ValueError, kerr.IllegalStateError, KeyError, AttributeError):
            log.info("a partition was lost before it could be resumed", extra={"partition": partition})
            return
        with self._lock:
            self._resumed.add(partition)

    def _drop_parked(self, at: TopicPartition) -> None:
        fetcher = self._consumer._fetcher
        fetcher._paused_partition_records.pop(at, None)
        fetcher._paused_completed_fetches.pop(at, None)

    def commit(self, offsets: Mapping[int, CommittedOffset], membership: Membership, timeout_s: float) -> None:
        """See GroupConsumer. The client commits under the generation of now, whatever the records were read under."""
        now, then = self._consumer.group_metadata(), membership.token
        if (now.generation_id, now.member_id) != (then.generation_id, then.member_id):  # type: ignore[attr-defined]
            raise kerr.CommitFailedError("the group has rebalanced since the records were read")
        self._consumer.commit(topic_offsets(self._topic, offsets), timeout_ms=int(timeout_s * 1000))

    def close(self, timeout_s: float) -> None:
        """See GroupConsumer."""
        self._consumer.close(autocommit=False, timeout_ms=int(timeout_s * 1000))


class _EndedJoin:
    """A join that has ended, as the library waits for one that goes on."""

    is_done = False

    def __init__(self, join: Any) -> None:
        self.add_callback, self.add_errback = join.add_callback, join.add_errback  # called at once


class KafkaPythonReader:
    """A Reader (see clients/__init__.py)."""

    def __init__(self, consumer: Any, at: TopicPartition, start: int) -> None:
        read_by_batch(consumer)
        self._consumer = consumer
        self._at = at
        self._position = start
        consumer.assign([at])
        consumer.seek(at, start)

    def read(self, start: int, end: int, timeout_s: float) -> tuple[RecordBatch, int]:
        """See Reader."""
        if start != self._position:
            self._consumer.seek(self._at, start)
        self._position = -1  # until this has worked
        records = _poll(self._consumer, self._at.topic, max(1, int(timeout_s * 1000)), _READ_RECORDS)
        position = self._consumer.position(self._at, timeout_ms=1000)
        records = records.slice(0, int(np.searchsorted(records.offsets, end)))
        self._position = start if position is None else max(start, int(position))
        return records, self._position

    def close(self) -> None:
        """See Reader."""
        self._consumer.close(autocommit=False, timeout_ms=1000)


def _poll(consumer: Any, topic: str, timeout_ms: int, max_records: int) -> RecordBatch:
    begin_poll(consumer._fetcher)
    return _joined(topic, consumer.poll(timeout_ms=timeout_ms, max_records=max_records))


def _joined(topic: str, polled: Mapping[TopicPartition, Sequence[RecordBatch]]) -> RecordBatch:
    batches = list(chain.from_iterable(polled.values()))
    return concatenate(batches) if batches else RecordBatch.empty(topic)


def topic_offsets(topic: str, offsets: Mapping[int, CommittedOffset]) -> dict[TopicPartition, OffsetAndMetadata]:
    """Offsets of a topic as the library wants them."""
    return {TopicPartition(topic, p): OffsetAndMetadata(o.offset, with_end(o.metadata), -1) for p, o in offsets.items()}
