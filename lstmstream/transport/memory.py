"""A broker in this process's memory, for tests: topics, one consumer group, transactions, fences and faults.

It keeps what the daemon relies on and nothing else: a commit becomes visible as a whole, or never; a member of an old
generation commits nothing; rebalances are cooperative. A test sets `MemoryBroker.fault` to raise at named points, and
has `MemoryBroker.transactions` decide late, or let requests arrive that nobody waits for any longer.
"""

from __future__ import annotations

import uuid
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import crc32

import numpy as np

from lstmstream.errors import CannotServe, OutcomeUnknown, TryAgain
from lstmstream.records import BY_KEY, Headers, RecordBatch
from lstmstream.transport.abandoned import abandoned_ids, transactional_id_of
from lstmstream.transport.memory_transactions import Transactions
from lstmstream.transport.ports import (
    CALL_TIMEOUT_S,
    CommittedOffset,
    MemberInfo,
    Membership,
    PollResult,
    TopicInfo,
    Transport,
)

GROUP = "group"  # there is one
# Where a test may strike. At `sent` the records are written and the offsets are not, at `commit` they are too; after
# `committed` the transaction is decided, after `recovered` the producer is a new one, though the caller does not know
# it. `outputs` is passed with `at_least_once` only, where they are written before the transaction begins.
FAULT_POINTS = (
    *("connect", "describe", "recover", "recovered", "abandoned"),
    *("poll", "resume", "committed_offset", "bounds", "stable_end", "read"),
    *("outputs", "begin", "sent", "commit", "committed"),
)
# Those of a commit with `at_least_once`: before the outputs, before the transaction, in it, and after it.
AT_LEAST_ONCE_POINTS = ("outputs", "begin", "commit", "committed")


class LogRecord(NamedTuple):
    """One record in a partition's log."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(slots=True)
class MemoryTopic:
    """Logs by partition; `beginnings` are the first offsets that retention has left."""

    logs: list[list[LogRecord]]
    settings: dict[str, str]
    topic_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    beginnings: list[int] = field(default_factory=list)
    passed: dict[int, int] = field(default_factory=dict)  # partition → up to where offsets hold no record

    def end(self, partition: int) -> int:
        """The high watermark."""
        log = self.logs[partition]
        return max(log[-1].offset + 1 if log else self.beginnings[partition], self.passed.get(partition, 0))


class _Token(NamedTuple):
    member_id: int
    generation: int


class MemoryBroker:
    """Shared by all transports of one test. The group has one topic."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        """`clock`: seconds since 1970, for records that bring no timestamp."""
        self.topics: dict[str, MemoryTopic] = {}
        self.offsets: dict[int, int] = {}  # the group's, by input partition
        self.metadata: dict[int, str] = {}  # of those offsets
        self.transactions = Transactions(self, clock)  # an author is a member of the group
        self.hanging: dict[tuple[str, int], int] = {}  # topic and partition → offset of a transaction of others
        self.others: list[MemberInfo] = []  # members of the group that are not ours
        self.withheld: set[int] = set()  # partitions that give nothing to a consumer that has them already
        self.rejoining: set[int] = (
            set()
        )  # members that have no generation in their next poll, and keep their partitions
        self.misled: dict[int, int] = {}  # partition → how far behind the offset of its next seek the client goes on
        self.fault: Callable[[str], None] = lambda _point: None
        self.on_write: Callable[[RecordBatch], None] = lambda _batch: None  # may raise: what it is given is not written
        self.on_fence: Callable[[int], None] = lambda _author: None  # of an author whom another member takes for gone
        self.read_records = 7  # of one read outside the group: few, so that slices are real
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

    def grow(self, topic: str, partitions: int) -> None:
        """Give a topic so many partitions."""
        known = self.topics[topic]
        known.beginnings += [0] * max(0, partitions - len(known.logs))
        known.logs += [[] for _ in range(partitions - len(known.logs))]

    def append(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int | None = None,
        headers: Headers = (),
    ) -> None:
        """Write one record outside any transaction; without a timestamp, the clock's."""
        at_ms = int(self._clock() * 1000) if timestamp_ms is None else timestamp_ms
        to, partition = self.topics[topic], self._partition(topic, partition, key)
        to.logs[partition].append(LogRecord(to.end(partition), at_ms, key, value, list(headers)))

    def append_batch(self, batch: RecordBatch) -> None:
        """Write records outside any transaction."""
        for partition, key, value, timestamp_ms, headers in _rows(batch):
            self.append(batch.topic, partition, key, value, timestamp_ms, headers)

    def write_in_transaction(self, author: int, epoch: int, batch: RecordBatch) -> None:
        """Write records that are seen once the transaction is committed. Raises TryAgain."""
        to = self.topics[batch.topic]
        for number, key, value, timestamp_ms, headers in _rows(batch):
            partition = self._partition(batch.topic, number, key)
            record = LogRecord(to.end(partition), timestamp_ms, key, value, list(headers))
            self.transactions.write(author, epoch, batch.topic, partition, record)
            to.passed[partition] = record.offset + 1

    def _partition(self, topic: str, partition: int, key: bytes | None) -> int:
        # Not Kafka's hash; that the same key goes the same way is enough here.
        return crc32(key or b"") % len(self.topics[topic].logs) if partition == BY_KEY else partition

    def at(self, point: str) -> None:
        """A call has come to a point of FAULT_POINTS."""
        self.transactions.tick()
        self.fault(point)

    def compact(self, topic: str) -> None:
        """Leave the newest record of each key."""
        for log in self.topics[topic].logs:
            newest = {record.key: record.offset for record in log}
            log[:] = [record for record in log if newest[record.key] == record.offset]

    def append_control(self, topic: str, partition: int, offsets: int = 1) -> None:
        """Offsets that hold no record, as markers of transactions and aborted records do."""
        to = self.topics[topic]
        to.passed[partition] = to.end(partition) + offsets

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
        self.transactions.on_leave(member_id)
        mine = self._assignments.pop(member_id, None)
        if mine is not None and self._assignments:
            self._rebalance(sum(map(len, self._assignments.values())) + len(mine))
        self._generation += 1

    def come_back(self, member_id: int, kept: dict[int, int]) -> None:
        """A member that was dropped is back, and its client has not noticed that it had lost these partitions."""
        self._assignments[member_id] = kept
        for other, theirs in self._assignments.items():
            if other != member_id:
                for partition in kept:
                    theirs.pop(partition, None)
        self._generation += 1

    def assignment(self, member_id: int) -> dict[int, int] | None:
        """Partition → epoch of a member; None for one that is not in the group."""
        return self._assignments.get(member_id)

    def members(self) -> list[MemberInfo]:
        """Those of the group that are ours, with their partitions."""
        return [MemberInfo(str(one), "lstmstream-t", "here", list(mine)) for one, mine in self._assignments.items()]

    def token(self, member_id: int) -> _Token:
        """What a commit must show."""
        return _Token(member_id, self._generation)

    def fenced(self, token: object) -> bool:
        """Whether a member is no longer of this generation. As in Kafka, one without a generation is not fenced."""
        assert isinstance(token, _Token)
        current = token.generation == self._generation and token.member_id in self._assignments
        return token.generation >= 0 and not current

    def _rebalance(self, partitions: int) -> None:
        """Sticky: only partitions of the fullest members move."""
        self._generation += 1
        owned = {p for mine in self._assignments.values() for p in mine}
        for partition in sorted(set(range(partitions)) - owned):
            self._assign(partition)
        while True:
            fullest = max(self._assignments.values(), key=len)
            emptiest = min(self._assignments.values(), key=len)
            if len(fullest) - len(emptiest) < 2:
                return
            partition = max(fullest)
            del fullest[partition]
            self._assign(partition)

    def _assign(self, partition: int) -> None:
        self._epoch += 1
        min(self._assignments.values(), key=len)[partition] = self._epoch


class MemoryTransport:
    """A Transport (see transport/ports.py) on a MemoryBroker."""

    _made = 0

    def __init__(self, broker: MemoryBroker, input_topic: str, *, exactly_once: bool = True) -> None:
        MemoryTransport._made += 1
        self.member_id = MemoryTransport._made
        self._broker = broker
        self._input_topic = input_topic
        self._exactly_once = exactly_once
        self._positions: dict[int, tuple[int, int]] = {}  # partition → (epoch, next offset) once resumed
        self._joined = False
        self.author = self.member_id  # of transactions: the member that has made the last commit
        self._epoch = broker.transactions.init(self.author)  # of the producer
        self._usable = True  # the producer

    def connect(self) -> None:
        """See Transport."""
        self._broker.at("connect")

    # -- Admin

    def describe(self, topics: Sequence[str]) -> dict[str, TopicInfo]:
        """See Admin."""
        self._broker.at("describe")
        found = {name: self._broker.topics[name] for name in topics if name in self._broker.topics}
        return {name: TopicInfo(topic.topic_id, len(topic.logs), topic.settings) for name, topic in found.items()}

    def create(self, topic: str, partitions: int, settings: Mapping[str, str]) -> None:
        """See Admin."""
        self._broker.create(topic, partitions, settings)

    def grow(self, topic: str, partitions: int) -> None:
        """See Admin."""
        self._broker.grow(topic, partitions)

    def offset_range(self, topic: str, partition: int) -> tuple[int, int]:
        """See Admin."""
        self._broker.at("bounds")
        known = self._broker.topics[topic]
        return known.beginnings[partition], known.end(partition)

    def offset_for_time(self, topic: str, partition: int, timestamp_ms: int) -> int | None:
        """See Admin."""
        log = self._broker.topics[topic].logs[partition]
        return next((record.offset for record in log if record.timestamp_ms >= timestamp_ms), None)

    def open_transactions(self, topic: str, partitions: Collection[int]) -> dict[int, tuple[int, int]]:
        """See Admin."""
        self._broker.at("open_transactions")
        known, hanging = self._broker.topics[topic], self._broker.hanging
        return {p: (hanging[topic, p], known.end(p)) for p in partitions if (topic, p) in hanging}

    def last_stable_offsets(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        """See Admin."""
        self._broker.at("last_stable_offset")
        known, transactions = self._broker.topics[topic], self._broker.transactions
        return {p: transactions.stable_end(topic, p, known.end(p)) for p in partitions}

    def open_reader(self, topic: str, partition: int, start: int, end: int) -> MemoryReader:
        """See Admin."""
        return MemoryReader(self._broker, topic, partition, start, end)

    # -- GroupMember

    def join(self, *, smaller_fetches: bool = False) -> None:
        """See GroupMember."""
        self._broker.withheld.clear()
        self._broker.leave(self.member_id)
        if self._joined:  # the group gives no id twice
            MemoryTransport._made += 1
            self.member_id = MemoryTransport._made
        self._joined = True
        self._broker.join(self.member_id, len(self._broker.topics[self._input_topic].logs))

    def poll(self, timeout_s: float, max_events: int) -> PollResult:  # nothing ever comes by waiting
        """See GroupMember."""
        self._broker.at("poll")
        assignment = self._broker.assignment(self.member_id)
        if assignment is None:  # dropped: the client joins again by itself
            before = {partition: epoch for partition, (epoch, _) in self._positions.items()}
            self.join()
            batch = _batch(self._input_topic, self._fetch(before))  # the worst case: nobody has told the member yet
            dropped = Membership(_Token(self.member_id, -1), valid=False, member_id="")
            return PollResult(batch, dropped, before, self._fetch_positions(before))
        batch = _batch(self._input_topic, self._fetch(assignment, max_events))
        membership = Membership(self._broker.token(self.member_id), valid=True, member_id=str(self.member_id))
        if self.member_id in self._broker.rejoining:
            self._broker.rejoining.remove(self.member_id)
            membership = Membership(_Token(self.member_id, -1), valid=False, member_id="")
        return PollResult(batch, membership, dict(assignment), self._fetch_positions(assignment))

    def _fetch_positions(self, assignment: Mapping[int, int]) -> dict[int, int]:
        return {p: offset for p, (epoch, offset) in self._positions.items() if assignment.get(p) == epoch}

    def _fetch(self, assignment: Mapping[int, int], max_events: int = 10) -> list[tuple[int, LogRecord]]:
        """The next records of the partitions that were resumed."""
        found: list[tuple[int, LogRecord]] = []
        for partition, epoch in sorted(assignment.items()):
            at = self._positions.get(partition)
            if at is None or at[0] != epoch or partition in self._broker.withheld:
                continue
            topic = self._broker.topics[self._input_topic]
            if at[1] < topic.beginnings[partition]:
                raise CannotServe(f"{self._input_topic}[{partition}]@{at[1]} is gone")
            first = bisect_left(topic.logs[partition], at[1], key=lambda record: record.offset)
            room = max_events - len(found)
            fresh = topic.logs[partition][first : first + room]
            if len(fresh) < room:  # read to the end, which may be behind control records
                self._positions[partition] = (epoch, max(at[1], topic.end(partition)))
            elif fresh:
                self._positions[partition] = (epoch, fresh[-1].offset + 1)
            found += [(partition, record) for record in fresh]
        return found

    def resume(self, partition: int, offset: int) -> None:
        """See GroupMember."""
        self._broker.at("resume")
        epoch = (self._broker.assignment(self.member_id) or {}).get(partition)
        if epoch is not None:
            end = self._broker.topics[self._input_topic].end(partition)
            misled = min(self._broker.misled.pop(partition, 0), end - offset)
            self._positions[partition] = (epoch, offset + misled)

    def committed_offsets(
        self, partitions: Collection[int], timeout_s: float = CALL_TIMEOUT_S
    ) -> dict[int, CommittedOffset]:
        """See GroupMember."""
        self._broker.at("committed_offset")
        if self._broker.transactions.pending(partitions):
            raise TryAgain("a transaction is pending on the offset")
        known = self._broker.offsets
        return {p: CommittedOffset(known[p], self._broker.metadata.get(p, "")) for p in partitions if p in known}

    def stable_end_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        """See GroupMember. There are no open transactions here: the end is stable."""
        self._broker.at("stable_end")
        return {p: self._broker.topics[self._input_topic].end(p) for p in partitions}

    def group_members(self) -> list[MemberInfo]:
        """See GroupMember."""
        self._broker.at("group_members")
        return [*self._broker.members(), *self._broker.others]

    def end_abandoned(self, membership: Membership) -> int:
        """See GroupMember."""
        self._broker.at("abandoned")
        open_ids = [transactional_id_of(GROUP, str(author)) for author in self._broker.transactions.open]
        members = {member.member_id for member in self._broker.members()}
        if membership.member_id not in members:
            raise TryAgain("this member is not in its group")
        found = abandoned_ids(open_ids, GROUP, members)
        for transactional_id in found:
            author = int(transactional_id.removeprefix(transactional_id_of(GROUP, "")))
            self._broker.on_fence(author)
            self._broker.transactions.abort(author)
        return len(found)

    def commit(
        self,
        outputs: Sequence[RecordBatch],
        states: Sequence[RecordBatch],
        offsets: Mapping[int, int],
        *,
        nonce: str,
        membership: Membership,
        timeout_s: float,  # nothing here takes time
    ) -> None:
        """See GroupMember."""
        if membership.member_id != str(self.author):
            self.author = int(membership.member_id)
            self._epoch = self._broker.transactions.init(self.author)
        assert offsets, "a transaction without offsets is not fenced"
        for batch in states:
            assert set(batch.partitions.tolist()) <= set(offsets), (
                "a state without its partition's offset is not fenced"
            )
        assert self._usable, "after an error comes recover()"
        self._usable = False
        if not self._exactly_once:
            self._broker.at("outputs")
            for batch in outputs:
                self._broker.on_write(batch)
                self._broker.append_batch(batch)
        self._broker.at("begin")
        if self._exactly_once or any(map(len, states)):
            self._transact([*outputs, *states] if self._exactly_once else states, offsets, nonce, membership)
        else:  # offsets alone: the group's own request, outside any transaction
            self._broker.at("commit")
            self._check_fence(membership)
            self._broker.transactions.write_offsets(offsets, nonce)
            self._broker.at("committed")
        self._usable = True

    def _transact(
        self, batches: Sequence[RecordBatch], offsets: Mapping[int, int], nonce: str, membership: Membership
    ) -> None:
        author, epoch, transactions = self.author, self._epoch, self._broker.transactions
        transactions.begin(author, epoch)
        for batch in batches:
            self._broker.on_write(batch)
            self._broker.write_in_transaction(author, epoch, batch)
        self._broker.at("sent")
        self._check_fence(membership)
        transactions.add_offsets(author, epoch, offsets, nonce)
        try:
            self._broker.at("commit")
            transactions.commit(author, epoch)
            self._broker.at("committed")
        except TryAgain as error:
            raise OutcomeUnknown(str(error)) from error

    def _check_fence(self, membership: Membership) -> None:
        if self._broker.fenced(membership.token):
            raise TryAgain("the member is of an old generation")

    def recover(self, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """See GroupMember."""
        self._usable = False  # the old producer is gone, whatever becomes of the new one
        self._broker.at("recover")
        self._epoch = self._broker.transactions.init(self.author)
        self._broker.at("recovered")
        self._usable = True

    def bound_calls(self, timeout_s: float) -> None:  # nothing here takes time
        """See Transport."""

    def on_wait(self, callback: Callable[[], None]) -> None:
        """See Transport."""

    def close(self, timeout_s: float) -> None:  # nothing here takes time
        """See Transport."""
        self._broker.leave(self.member_id)


class MemoryReader:
    """A LogReader (see transport/ports.py)."""

    def __init__(self, broker: MemoryBroker, topic: str, partition: int, start: int, end: int) -> None:
        self.position = start
        self.end = end
        self._broker = broker
        self._topic = topic
        self._partition = partition

    def next(self, timeout_s: float) -> RecordBatch:  # nothing ever comes by waiting
        """See LogReader."""
        self._broker.at("read")
        log = self._broker.topics[self._topic].logs[self._partition]
        if self.position < self._broker.topics[self._topic].beginnings[self._partition]:
            raise TryAgain(f"{self._topic}[{self._partition}]@{self.position} is out of range")
        first = bisect_left(log, self.position, key=lambda record: record.offset)
        end = self._broker.transactions.stable_end(self._topic, self._partition, self.end)
        found = [record for record in log[first : first + self._broker.read_records] if record.offset < end]
        self.position = found[-1].offset + 1 if found else max(self.position, end)
        return _batch(self._topic, [(self._partition, record) for record in found])

    def close(self) -> None:
        """See LogReader."""


def _rows(batch: RecordBatch) -> Iterator[tuple[int, bytes | None, bytes | None, int, Headers]]:
    columns = (batch.partitions.tolist(), batch.keys, batch.values, batch.timestamps.tolist(), batch.headers)
    return zip(*columns, strict=True)


def _batch(topic: str, found: Sequence[tuple[int, LogRecord]]) -> RecordBatch:
    return RecordBatch(
        topic,
        np.array([partition for partition, _ in found], dtype=np.int64),
        np.array([record.offset for _, record in found], dtype=np.int64),
        np.array([record.timestamp_ms for _, record in found], dtype=np.int64),
        [record.key for _, record in found],
        [record.value for _, record in found],
        [record.headers for _, record in found],
    )


def _is_a_transport(transport: MemoryTransport) -> Transport:
    """For the type checker: the memory transport is what the daemon needs."""
    return transport
