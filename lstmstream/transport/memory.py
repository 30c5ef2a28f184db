"""A broker in this process's memory, for tests: topics, one consumer group, atomic commits, fences and faults.

It keeps what the daemon relies on and nothing else: a commit is visible at once and whole, or never; a member of an
old generation commits nothing; rebalances are cooperative. A test sets `MemoryBroker.fault` to raise at named points.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lstmstream.errors import CannotServe, TryAgain
from lstmstream.serve.records import Headers, Message, RecordBatch
from lstmstream.transport.base import CommittedOffset, TopicInfo, Turn

# Where a test may strike. After `committed` the transaction has been applied, though its author does not know it.
POINTS = (
    *("connect", "describe", "recover"),
    *("poll", "committed_offset", "bounds", "read"),
    *("begin", "commit", "committed"),
)
# The points of a commit without a transaction: `outputs` comes before the answers, `begin` before the offsets, `commit`
# between offsets and states.
AT_LEAST_ONCE_POINTS = ("outputs", "begin", "commit", "committed")


class Stored(NamedTuple):
    """One record in a partition's log."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(slots=True)
class MemoryTopic:
    """Logs by partition; `beginnings` are the first offsets that retention has left."""

    logs: list[list[Stored]]
    settings: dict[str, str]
    topic_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    beginnings: list[int] = field(default_factory=list)

    def end(self, partition: int) -> int:
        """The high watermark."""
        log = self.logs[partition]
        return log[-1].offset + 1 if log else self.beginnings[partition]


class _Member(NamedTuple):
    member_id: int
    generation: int


class MemoryBroker:
    """Shared by all transports of one test. The group has one topic."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        """`clock`: seconds since 1970, for records that bring no timestamp."""
        self.topics: dict[str, MemoryTopic] = {}
        self.offsets: dict[int, int] = {}  # the group's, by input partition
        self.nonces: dict[int, str] = {}  # of the commits that wrote them
        self.open: dict[int, set[int]] = {}  # member → partitions that its transaction has offsets of
        self.fault: Callable[[str], None] = lambda _point: None
        self._clock = clock
        self._generation = 0
        self._assignments: dict[int, dict[int, int]] = {}  # member → partition → epoch
        self._epoch = 0

    def create(self, topic: str, partitions: int, settings: Mapping[str, str] | None = None) -> MemoryTopic:
        """Make a topic, if it is not there."""
        if topic not in self.topics:
            made = MemoryTopic([[] for _ in range(partitions)], dict(settings or {}))
            made.beginnings = [0] * partitions
            self.topics[topic] = made
        return self.topics[topic]

    def append(self, message: Message) -> None:
        """Write one record outside any transaction."""
        topic = self.topics[message.topic]
        partition = message.partition
        assert partition is not None, "the memory broker does no hashing"
        timestamp_ms = int(self._clock() * 1000) if message.timestamp_ms is None else message.timestamp_ms
        record = Stored(topic.end(partition), timestamp_ms, message.key, message.value, list(message.headers))
        topic.logs[partition].append(record)

    def set_offsets(self, offsets: Mapping[int, int], nonce: str) -> None:
        """Commit offsets for the group, each with the nonce as its metadata."""
        self.offsets.update(offsets)
        self.nonces.update(dict.fromkeys(offsets, nonce))

    def compact(self, topic: str) -> None:
        """Leave the newest record of each key."""
        for log in self.topics[topic].logs:
            newest = {record.key: record.offset for record in log}
            log[:] = [record for record in log if newest[record.key] == record.offset]

    def truncate(self, topic: str, partition: int, before: int) -> None:
        """Delete the records before an offset, as retention does."""
        log = self.topics[topic].logs[partition]
        log[:] = [record for record in log if record.offset >= before]
        self.topics[topic].beginnings[partition] = before

    def join(self, member_id: int, partitions: int) -> None:
        """A member comes: rebalance."""
        self._assignments[member_id] = {}
        self._rebalance(partitions)

    def leave(self, member_id: int) -> None:
        """A member goes, or is dropped because it was silent: rebalance among the others."""
        self.open.pop(member_id, None)  # Kafka aborts it after a while; here at once
        mine = self._assignments.pop(member_id, None)
        if mine is not None and self._assignments:
            self._rebalance(sum(map(len, self._assignments.values())) + len(mine))
        self._generation += 1

    def assignment(self, member_id: int) -> dict[int, int] | None:
        """Partition → epoch of a member; None for one that is not in the group."""
        return self._assignments.get(member_id)

    def member(self, member_id: int) -> _Member:
        """What a commit must show."""
        return _Member(member_id, self._generation)

    def fenced(self, member: object) -> bool:
        """Whether a member is no longer of this generation. As in Kafka, one without a generation is not fenced."""
        assert isinstance(member, _Member)
        current = member.generation == self._generation and member.member_id in self._assignments
        return member.generation >= 0 and not current

    def _rebalance(self, partitions: int) -> None:
        """Sticky: only partitions of the fullest members move."""
        self._generation += 1
        owned = {p for mine in self._assignments.values() for p in mine}
        for partition in sorted(set(range(partitions)) - owned):
            self._give(partition)
        while True:
            fullest = max(self._assignments.values(), key=len)
            emptiest = min(self._assignments.values(), key=len)
            if len(fullest) - len(emptiest) < 2:
                return
            partition = max(fullest)
            del fullest[partition]
            self._give(partition)

    def _give(self, partition: int) -> None:
        self._epoch += 1
        min(self._assignments.values(), key=len)[partition] = self._epoch


class MemoryTransport:
    """A Transport (see transport/base.py) on a MemoryBroker."""

    _made = 0

    def __init__(self, broker: MemoryBroker, input_topic: str, *, exactly_once: bool = True) -> None:
        MemoryTransport._made += 1
        self.member_id = MemoryTransport._made
        self._broker = broker
        self._input_topic = input_topic
        self._exactly_once = exactly_once
        self._positions: dict[int, tuple[int, int]] = {}  # partition → (epoch, next offset) once resumed
        self._usable = True  # the producer

    def connect(self) -> None:
        """See Transport."""
        self._broker.fault("connect")

    def describe(self, topics: Sequence[str]) -> dict[str, TopicInfo]:
        """See Transport."""
        self._broker.fault("describe")
        found = {name: self._broker.topics[name] for name in topics if name in self._broker.topics}
        return {name: TopicInfo(topic.topic_id, len(topic.logs), topic.settings) for name, topic in found.items()}

    def create(self, topic: str, partitions: int, settings: Mapping[str, str]) -> None:
        """See Transport."""
        self._broker.create(topic, partitions, settings)

    def join(self) -> None:
        """See Transport."""
        self._broker.join(self.member_id, len(self._broker.topics[self._input_topic].logs))

    def poll(self, timeout_s: float, max_events: int) -> Turn:  # nothing ever comes by waiting
        """See Transport."""
        self._broker.fault("poll")
        assignment = self._broker.assignment(self.member_id)
        if assignment is None:  # dropped: the client joins again by itself
            before = {partition: epoch for partition, (epoch, _) in self._positions.items()}
            self.join()
            batch = _batch(self._input_topic, self._fetch(before))  # the worst case: nobody has told the member yet
            return Turn(batch, _Member(self.member_id, -1), False, before)  # noqa: FBT003
        batch = _batch(self._input_topic, self._fetch(assignment, max_events))
        return Turn(batch, self._broker.member(self.member_id), True, dict(assignment))  # noqa: FBT003

    def _fetch(self, assignment: Mapping[int, int], max_events: int = 10) -> list[tuple[int, Stored]]:
        """The next records of the partitions that were resumed."""
        found: list[tuple[int, Stored]] = []
        for partition, epoch in sorted(assignment.items()):
            at = self._positions.get(partition)
            if at is None or at[0] != epoch:
                continue
            topic = self._broker.topics[self._input_topic]
            if at[1] < topic.beginnings[partition]:
                raise CannotServe(f"{self._input_topic}[{partition}]@{at[1]} is gone")
            fresh = [record for record in topic.logs[partition] if record.offset >= at[1]][: max_events - len(found)]
            if fresh:
                self._positions[partition] = (epoch, fresh[-1].offset + 1)
            found += [(partition, record) for record in fresh]
        return found

    def resume(self, partition: int, offset: int) -> None:
        """See Transport."""
        epoch = (self._broker.assignment(self.member_id) or {}).get(partition)
        if epoch is not None:
            self._positions[partition] = (epoch, offset)

    def committed(self, partition: int) -> CommittedOffset | None:
        """See Transport."""
        self._broker.fault("committed_offset")
        if any(partition in pending for pending in self._broker.open.values()):
            raise TryAgain("a transaction is pending on the offset")
        offset = self._broker.offsets.get(partition)
        return None if offset is None else CommittedOffset(offset, self._broker.nonces.get(partition, ""))

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """See Transport."""
        self._broker.fault("bounds")
        known = self._broker.topics[topic]
        return known.beginnings[partition], known.end(partition)

    def high_watermark(self, partition: int) -> int | None:
        """See Transport."""
        return self._broker.topics[self._input_topic].end(partition)

    def reader(self, topic: str, partition: int, start: int, end: int) -> MemoryReader:
        """See Transport."""
        return MemoryReader(self._broker, topic, partition, start, end)

    def commit(
        self,
        messages: Sequence[Message],
        states: Sequence[Message],
        offsets: Mapping[int, int],
        member: object,
        *,
        nonce: str,
        limit_s: float,  # nothing here takes time
    ) -> None:
        """See Transport."""
        assert offsets, "a transaction without offsets is not fenced"
        assert self._usable, "after an error comes recover()"
        self._usable = False
        if self._exactly_once:
            self._begin(member)
            self._broker.open[self.member_id] = set(offsets)
            self._broker.fault("commit")
            if self._broker.open.pop(self.member_id, None) is None:
                raise TryAgain("the transaction was aborted meanwhile")
            self._write([*messages, *states])
            self._broker.set_offsets(offsets, nonce)
        else:  # the order of kafka_python.py
            self._broker.fault("outputs")
            self._write(messages)
            self._begin(member)
            self._broker.set_offsets(offsets, nonce)
            self._broker.fault("commit")
            self._write(states)
        self._broker.fault("committed")
        self._usable = True

    def _begin(self, member: object) -> None:
        self._broker.fault("begin")
        if self._broker.fenced(member):
            raise TryAgain("the member is of an old generation")

    def _write(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._broker.append(message)

    def recover(self) -> None:
        """See Transport."""
        self._usable = False  # the old producer is gone, whatever becomes of the new one
        self._broker.fault("recover")
        self._broker.open.pop(self.member_id, None)
        self._usable = True

    def bound_calls(self, limit_s: float) -> None:  # nothing here takes time
        """See Transport."""

    def close(self, timeout_s: float) -> None:  # nothing here takes time
        """See Transport."""
        self._broker.leave(self.member_id)


class MemoryReader:
    """A Reader (see transport/base.py); a few records at a time, so that slices are real."""

    def __init__(self, broker: MemoryBroker, topic: str, partition: int, start: int, end: int) -> None:
        self.position = start
        self.end = end
        self._broker = broker
        self._topic = topic
        self._partition = partition

    def next(self, timeout_s: float) -> RecordBatch:  # nothing ever comes by waiting
        """See Reader."""
        self._broker.fault("read")
        log = self._broker.topics[self._topic].logs[self._partition]
        found = [record for record in log if self.position <= record.offset < self.end][:7]
        self.position = found[-1].offset + 1 if found else self.end
        return _batch(self._topic, [(self._partition, record) for record in found])


def _batch(topic: str, found: Sequence[tuple[int, Stored]]) -> RecordBatch:
    return RecordBatch(
        topic,
        np.array([partition for partition, _ in found], dtype=np.int64),
        np.array([record.offset for _, record in found], dtype=np.int64),
        np.array([record.timestamp_ms for _, record in found], dtype=np.int64),
        [record.key for _, record in found],
        [record.value for _, record in found],
        [record.headers for _, record in found],
    )
