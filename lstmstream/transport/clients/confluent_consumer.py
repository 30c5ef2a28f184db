"""confluent-kafka's consumers: a member of the group, and readers outside of it. See confluent.py."""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from confluent_kafka import (
    OFFSET_END,
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from lstmstream.records import NO_TIMESTAMP, Headers, RecordBatch
from lstmstream.transport.clients import AssignmentListener, Fetched
from lstmstream.transport.clients.confluent_gaps import GapCheck, OtherOpinion, unless_too_large
from lstmstream.transport.clients.offset_metadata import with_end
from lstmstream.transport.ports import CommittedOffset, Membership

log = logging.getLogger(__name__)

_READ_RECORDS = 4096  # of one read outside the group
_WAKE_S = 0.5  # for a question whose answer does not matter
_ENDS_S = 2.0  # for the ends of partitions that were just assigned
_SILENT_S = 3.0  # a reader that has come no further asks for another opinion
_TOLD_TWICE_S = 1.0  # the same for a partition of the group that is told once more where to read
_LONGEST_SILENT_S = 60.0
_KNOWN = 0.0  # in place of the time to look at a suspect: the library has said so, or left records out
_UNDECODABLE = {
    KafkaError._BAD_MSG,
    KafkaError._BAD_COMPRESSION,
    KafkaError._NOT_IMPLEMENTED,
    KafkaError._UNSUPPORTED_FEATURE,
    KafkaError._UNDERFLOW,
    KafkaError.INVALID_MSG,
    KafkaError.MSG_SIZE_TOO_LARGE,  # what the library says of a batch that it cannot find the end of
}
# Called like this its error is raised at once: where Python's own loop calls it, at some later record.
_get_headers = operator.methodcaller("headers")
_GENERATION = struct.Struct("=7si")  # how a group's metadata begin


class SelfFencedError(KafkaException):
    """A consumer has ended for good, and no other process has taken its place."""


class ConfluentConsumer:
    """A GroupConsumer (see clients/__init__.py). The library's callbacks run within `poll`."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        topic: str,
        listener: AssignmentListener,
        member_of_instance: Callable[[], str],
        other_opinion: OtherOpinion,
    ) -> None:
        """`member_of_instance`: asks which member the group has under our instance id."""
        self._topic = topic
        self._listener = listener
        self._member_of_instance = member_of_instance
        self._member = ""  # our id in the group, as it was last
        self._token = b""  # the group's metadata as they were when our partitions were assigned
        self._broken = False
        self._positions: dict[int, int] = {}  # of resumed partitions
        self._told: set[int] = set()  # partitions that were told where to read, and have given nothing since
        self._other_opinion = other_opinion
        self._suspects: dict[int, float] = {}  # partitions that may hold what cannot be decoded, and when to look
        self._gap_check = GapCheck(topic, other_opinion)
        self._consumer = Consumer(dict(settings))
        self._consumer.subscribe([topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke)

    def _on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        """At the end, and paused.

        The library begins to fetch before it is told to pause: at the group's offset it might ask for one that is
        pending, and at 0 for records that retention has taken. The end is given as a number, because the library loses
        a seek that comes while it asks for the end itself.
        """
        self._token = consumer.consumer_group_metadata()
        consumer.incremental_assign(self._at_end(consumer, assigned))
        consumer.pause(assigned)
        self._forget(assigned)
        self._listener.assigned([at.partition for at in assigned])

    def _at_end(self, consumer: Consumer, assigned: list[TopicPartition]) -> list[TopicPartition]:
        ends = [TopicPartition(self._topic, at.partition, OFFSET_END) for at in assigned]
        try:
            found = consumer.offsets_for_times(ends, timeout=_ENDS_S)  # the time -1 stands for the end
        except KafkaException as error:
            log.info("the ends of the assigned partitions are not known yet: %s", error)
            return ends
        return [TopicPartition(self._topic, at.partition, OFFSET_END if at.error else at.offset) for at in found]

    def _on_revoke(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        self._token = consumer.consumer_group_metadata()
        consumer.incremental_unassign(revoked)
        self._forget(revoked)
        self._listener.revoked([at.partition for at in revoked])

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        for at in partitions:
            self._positions.pop(at.partition, None)
            self._told.discard(at.partition)
            self._suspects.pop(at.partition, None)

    def poll(self, timeout_s: float, max_events: int) -> Fetched:
        """See GroupConsumer."""
        if self._broken:
            raise self._judged()
        try:
            records, ends, undecodable = _consume(self._consumer, self._topic, timeout_s, max_events)
        except KafkaException as error:
            self._broken = error.args[0].code() == KafkaError._FATAL
            if self._broken:
                raise self._judged() from error
            raise
        records = self._advance(records, ends)
        self._suspects |= dict.fromkeys(undecodable & set(self._positions), _KNOWN)
        if not len(records):
            records = self._look_at_suspects(max_events)
        self._member = self._consumer.memberid() or self._member
        return Fetched(records, self._membership(), dict(self._positions))

    def _membership(self) -> Membership:
        """Valid if its generation is the one that our partitions were assigned in: each rebalance calls back.

        The library's metadata are live: they name a new generation as soon as a join is answered, while the partitions
        are still those of the one before. Some may have another owner by then.
        """
        live = self._consumer.consumer_group_metadata()
        return Membership(live, _is_member(live) and live == self._token, self._member)

    def _advance(self, records: RecordBatch, ends: dict[int, int]) -> RecordBatch:
        """Move the positions on; the records without those behind others that the library left out.

        From there on the other library reads, and this one is told again. It leaves out records of a batch, and loses
        a seek that comes while it asks for the end of a partition (tests/broker/test_lost_seek.py): then it goes on
        from the end. `_on_assign` prevents that where it can. Raises UnreadableRecords.
        """
        read = records.next_offsets()
        counts = np.bincount(records.partitions, minlength=max(ends, default=0) + 1)
        given = {p: max(read.get(p, 0), ends.get(p, 0)) for p in {*read, *ends} & self._positions.keys()}
        # All of them before a position moves: where this raises, these records are read again.
        left_out = {
            partition: self._first_lost(partition, records, end)
            for partition, end in given.items()
            if end - self._positions[partition] > counts[partition]
        }
        for partition, end in given.items():
            lost = left_out.get(partition)
            if lost is None:
                self._positions[partition] = end
                self._suspects.pop(partition, None)
                if partition in read:  # an end alone is no proof: it may be one of before the seek
                    self._told.discard(partition)
                continue
            log.warning(
                "the Kafka client skipped records; reading them with kafka-python",
                extra={"topic": self._topic, "partition": partition, "offset": lost},
            )
            records = records.take(np.flatnonzero((records.partitions != partition) | (records.offsets < lost)))
            self._suspects[partition] = _KNOWN
            self._seek_to(partition, lost)
        return records

    def _first_lost(self, partition: int, records: RecordBatch, end: int) -> int | None:
        offsets = records.offsets[records.partitions == partition]
        start, told = self._positions[partition], partition in self._told
        return self._gap_check.first_lost(partition, start, offsets, end, certain=told)

    def _look_at_suspects(self, max_events: int) -> RecordBatch:
        """What the other library reads there; perhaps nothing. Raises UnreadableRecords."""
        now_s = time.monotonic()
        for partition, when_s in list(self._suspects.items()):
            if when_s <= now_s:
                opinion = self._other_opinion if when_s == _KNOWN else unless_too_large(self._other_opinion)
                records, position = opinion(self._topic, partition, self._positions[partition], max_events)
                del self._suspects[partition]  # the next error, or whoever tells it again where to read, brings it back
                if position > self._positions[partition]:
                    self._seek_to(partition, position)
                if len(records):
                    return records
        return RecordBatch.empty(self._topic)

    def _seek_to(self, partition: int, offset: int) -> None:
        """The library reads on from there, or has lost the partition meanwhile."""
        self._positions[partition] = offset
        self._told.add(partition)
        with contextlib.suppress(KafkaException):
            self._consumer.seek(TopicPartition(self._topic, partition, offset))

    def member_id(self) -> str:
        """See GroupConsumer."""
        return str(self._consumer.memberid() or "")

    def keep_alive(self) -> None:
        """See GroupConsumer. It also runs callbacks that wait; the library may fence itself while they do (below)."""
        self.poll(0.0, 1)

    def _judged(self) -> KafkaException:
        """Who has fenced this consumer, which is what its one fatal error says.

        librdkafka does it to itself: where no heartbeat was answered for a session's time it forgets its member id,
        and still sends a heartbeat with the instance id alone, which the broker takes for another process's.
        """
        if self._consumer.memberid() or self._member_of_instance() not in {"", self._member}:
            return KafkaException(KafkaError(KafkaError.FENCED_INSTANCE_ID))
        return SelfFencedError(KafkaError(KafkaError.FENCED_INSTANCE_ID, "after a session without an answer"))

    def resume(self, partition: int, offset: int) -> None:
        """See GroupConsumer.

        By `seek`, which drops what was fetched before. To assign it again would do too, but a rebalance that waits for
        its own answer might take that for it. A broker's thread that has nothing to fetch sleeps for up to a second,
        and neither call wakes it: a question to that broker does.
        """
        if self._positions.get(partition) == offset:
            self._suspects[partition] = time.monotonic() + _TOLD_TWICE_S
        at = TopicPartition(self._topic, partition, offset)
        self._consumer.seek(at)
        self._consumer.resume([at])
        with contextlib.suppress(KafkaException):
            self._consumer.get_watermark_offsets(at, timeout=_WAKE_S)
        self._positions[partition] = offset
        self._told.add(partition)

    def commit(self, offsets: Mapping[int, CommittedOffset], membership: Membership, timeout_s: float) -> None:
        """See GroupConsumer. The library commits under the generation of now, and without a time limit."""
        if self._consumer.consumer_group_metadata() != membership.token:
            raise KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION))
        raise_first(self._consumer.commit(offsets=topic_offsets(self._topic, offsets), asynchronous=False))

    def close(self, timeout_s: float) -> None:
        """See GroupConsumer."""
        self._consumer.close()


class ConfluentReader:
    """A Reader (see clients/__init__.py)."""

    def __init__(self, settings: Mapping[str, Any], at: TopicPartition, other_opinion: OtherOpinion) -> None:
        self._at = at
        self._position = at.offset
        self._other_opinion = other_opinion
        self._gap_check = GapCheck(at.topic, other_opinion)
        self._moved_s = time.monotonic()
        self._silent_s = _SILENT_S  # until the other opinion is asked for
        self._consumer = Consumer(dict(settings))
        self._consumer.assign([at])

    def read(self, start: int, end: int, timeout_s: float) -> tuple[RecordBatch, int]:
        """See Reader."""
        topic, partition = self._at.topic, self._at.partition
        if start != self._position:
            self._consumer.seek(TopicPartition(topic, partition, start))
        self._position = -1  # until this has worked
        records, ends, undecodable = _consume(self._consumer, topic, timeout_s, _READ_RECORDS, up_to_end=True)
        position = ends.get(partition, start)
        now_s = time.monotonic()
        sought = False
        if len(records):
            position = max(position, int(records.offsets[-1]) + 1)
        elif undecodable or (position == start and now_s - self._moved_s > self._silent_s):
            self._moved_s, self._silent_s = now_s, min(2 * self._silent_s, _LONGEST_SILENT_S)
            opinion = self._other_opinion if undecodable else unless_too_large(self._other_opinion)
            records, position = opinion(topic, partition, start, _READ_RECORDS)
            sought = True  # where the library is to go on is to be told
        lost = None if sought else self._gap_check.first_lost(partition, start, records.offsets, position)
        if lost is not None:  # a part that the library left out is read by the other one, or what comes before it first
            records, position, sought = records.take(np.flatnonzero(records.offsets < lost)), lost, True
            if not len(records):
                records, position = self._other_opinion(topic, partition, lost, _READ_RECORDS)
        if position > start:
            self._moved_s, self._silent_s = now_s, _SILENT_S
        inside = np.flatnonzero(records.offsets < end)
        records = records if len(inside) == len(records) else records.take(inside)
        self._position = -1 if sought else position
        return records, position

    def close(self) -> None:
        """See Reader."""
        self._consumer.close()


def _consume(
    consumer: Consumer, topic: str, timeout_s: float, max_records: int, *, up_to_end: bool = False
) -> tuple[RecordBatch, dict[int, int], set[int]]:
    """Records as soon as there are any, the ends of partitions that were read so far, and what cannot be decoded.

    Ends are offsets by partition; of what the library cannot decode it is the partitions. `up_to_end`: the end of a
    partition is news too.

    `Consumer.consume` waits out its timeout even when it has some: hence one record by `poll`, the rest at once.
    """
    deadline = time.monotonic() + timeout_s
    ends: dict[int, int] = {}
    undecodable: set[int] = set()
    while True:
        # Whole milliseconds: the library cuts off the rest, and the last one would be hundreds of polls of 0 ms.
        left_s = math.ceil((deadline - time.monotonic()) * 1000) / 1000
        first = consumer.poll(max(0.0, left_s))
        messages = [] if first is None else [first]
        if messages and max_records > 1:
            messages += consumer.consume(max_records - 1, 0)
        if any(message.error() is not None for message in messages):
            messages = _without_events(messages, ends, undecodable)
        if messages or undecodable or (up_to_end and ends) or time.monotonic() >= deadline:
            return _to_batch(topic, messages), ends, undecodable


def _without_events(messages: Sequence[Message], ends: dict[int, int], undecodable: set[int]) -> list[Message]:
    """The records among them; ends of partitions, and what cannot be decoded, are noted. Raises the first error."""
    records = []
    for message in messages:
        error = message.error()
        partition, offset = message.partition(), message.offset()
        if partition in undecodable:
            continue  # it is told again where to read
        if error is None:
            records.append(message)
            ends.pop(cast("int", partition), None)  # the end has moved on
        elif error.code() == KafkaError._PARTITION_EOF:
            ends[cast("int", partition)] = cast("int", offset)
        elif message.topic() is not None and error.code() in _UNDECODABLE:
            undecodable.add(cast("int", partition))
        else:
            text = error.str() if message.topic() is None else f"{_place(message)}: {error.str()}"
            raise KafkaException(KafkaError(error.code(), text))
    return records


def _to_batch(topic: str, messages: Sequence[Message]) -> RecordBatch:
    """Where a record has no timestamp, as in the oldest format of the log, the library gives 0 and says so."""
    times = [message.timestamp() for message in messages]
    return RecordBatch(
        topic=topic,
        partitions=np.array([message.partition() for message in messages], dtype=np.int64),
        offsets=np.array([message.offset() for message in messages], dtype=np.int64),
        timestamps=np.array(
            [NO_TIMESTAMP if kind == TIMESTAMP_NOT_AVAILABLE else at for kind, at in times], dtype=np.int64
        ),
        keys=[message.key() for message in messages],
        values=[message.value() for message in messages],
        headers=[_headers(message) for message in messages],
    )


def _headers(message: Message) -> Headers:
    """Where the name of one is not UTF-8 the library gives none of them."""
    try:
        return cast("Headers", _get_headers(message) or ())
    except (ValueError, SystemError):
        at = {"partition": message.partition(), "offset": message.offset()}
        log.debug("the headers of a record are left out: a name is not UTF-8", extra=at)
        return ()


def _place(message: Message) -> str:
    return f"{message.topic()}[{message.partition()}]@{message.offset()}"


def _is_member(token: bytes) -> bool:
    """Whether a snapshot of the group's metadata names a generation and a member.

    It is opaque but for its first fields: a magic, the generation, the group's and the member's id, each ended by a
    zero byte. One without them would not be fenced.
    """
    if len(token) < _GENERATION.size:
        return False
    magic, generation = _GENERATION.unpack_from(token)
    member = token[_GENERATION.size :].split(b"\0")[1:2]
    return magic == b"CGMDv2:" and generation >= 0 and member != [b""]


def topic_offsets(topic: str, offsets: Mapping[int, CommittedOffset]) -> list[TopicPartition]:
    """Offsets of a topic as the library wants them."""
    return [TopicPartition(topic, partition, o.offset, with_end(o.metadata)) for partition, o in offsets.items()]


def raise_first(partitions: Iterable[TopicPartition] | None) -> None:
    """Errors of single partitions are told nowhere else."""
    for at in partitions or ():
        if at.error is not None:
            raise KafkaException(at.error)
