"""What the transport needs of a Kafka client library, and nothing of the protocol: that is written in `kafka.py`.

An adapter says how to consume, produce, begin, send offsets, commit, abort and administer, and what an error means.
Its objects are each used from one thread of their own (`calls.ClientThread`); only `discard` may come from another
one. The time limits that calls take are hints: whoever calls does not rely on them. Errors are the library's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from lstmstream.records import RecordBatch
from lstmstream.transport.decisions import Problem
from lstmstream.transport.ports import CommittedOffset, MemberInfo, Membership, TopicInfo


class AssignmentListener(Protocol):
    """Is told what the group gives to this member and takes from it, perhaps on a thread of the library."""

    def assigned(self, partitions: Iterable[int]) -> None:
        """These are ours from now on, and silent until they are resumed."""

    def revoked(self, partitions: Iterable[int]) -> None:
        """These are no longer ours."""


class Fetched(NamedTuple):
    """What one poll of a consumer gave."""

    records: RecordBatch
    membership: Membership  # as it was right after the records were taken
    positions: Mapping[int, int]  # resumed partition → next offset to read, control records passed over


class Admin(Protocol):
    """Topics and offsets, on connections of its own."""

    def describe(self, topics: Sequence[str], timeout_s: float) -> dict[str, TopicInfo]:
        """The topics that exist; ids in the canonical text of a UUID."""

    def create(self, topic: str, partitions: int, settings: Mapping[str, str], timeout_s: float) -> None:
        """Create a topic, unless it exists."""

    def grow(self, topic: str, partitions: int, timeout_s: float) -> None:
        """Give a topic so many partitions; one that has as many or more is left as it is."""

    def broker_settings(self, timeout_s: float) -> dict[str, str]:
        """Those of one of the brokers; empty where they may not be read."""

    def beginning_offset(self, topic: str, partition: int, timeout_s: float) -> int:
        """The first offset of a partition."""

    def end_offsets(
        self, topic: str, partitions: Collection[int], timeout_s: float, *, committed: bool
    ) -> dict[int, int]:
        """The last stable offsets if `committed`, else the high watermarks."""

    def offset_for_time(self, topic: str, partition: int, timestamp_ms: int, timeout_s: float) -> int | None:
        """The first offset at or after a time; None where there is no such record."""

    def group_members(self, group: str, topic: str, timeout_s: float) -> Sequence[MemberInfo]:
        """All members of a group, with their partitions of the topic."""

    def committed(self, topic: str, partitions: Collection[int], timeout_s: float) -> dict[int, CommittedOffset]:
        """The group's offsets, once no transaction is pending on them.

        Not by the group's own consumer: a broker answers no other request of a connection while a join is pending.
        """

    def open_transactional_ids(self, timeout_s: float) -> Collection[str]:
        """Of all transactions that are open on any broker, as far as we may see them."""

    def fence(self, transactional_id: str, timeout_s: float) -> None:
        """Have the broker abort what is open under this id, and refuse its producer from now on.

        The end of the transaction is not waited for.
        """

    def close(self) -> None:
        """Free it."""


class Reader(Protocol):
    """Reads committed records of one partition, outside of the group."""

    def read(self, start: int, end: int, timeout_s: float) -> tuple[RecordBatch, int]:
        """Records of start..end (end not included), perhaps none, and the offset to go on from.

        That offset passes over gaps of compaction and over control records. Where the last call ended at `start`, it
        goes on with what is fetched already.
        """

    def close(self) -> None:
        """Free it."""


class GroupConsumer(Protocol):
    """One member of the group. A partition that is assigned is paused until `resume`."""

    def poll(self, timeout_s: float, max_events: int) -> Fetched:
        """Up to `max_events` records, as soon as there are any."""

    def member_id(self) -> str:
        """That it has now; empty where it has none."""

    def keep_alive(self) -> None:
        """Tell the group that its member lives, while it does not poll. What was fetched may be lost by it."""

    def resume(self, partition: int, offset: int) -> None:
        """Read on from `offset`, whatever was fetched before; nothing, where the partition is no longer assigned."""

    def commit(self, offsets: Mapping[int, CommittedOffset], membership: Membership, timeout_s: float) -> None:
        """Commit offsets outside any transaction, if the membership is still the present one."""

    def close(self, timeout_s: float) -> None:
        """Leave the group (a static member stays in it) and free everything."""


class Producer(Protocol):
    """One producer; after any error it is only good for `discard`."""

    def partition_count(self, topic: str, timeout_s: float) -> int:
        """How many partitions a topic has."""

    def init_transactions(self, timeout_s: float) -> None:
        """End what an earlier producer of this transactional id has left open, and fence it."""

    def begin(self) -> None:
        """Begin a transaction."""

    def send(self, batch: RecordBatch, partitions: Sequence[int]) -> None:
        """Hand records over, each for its partition; whether they arrived, `flush` tells."""

    def flush(self, timeout_s: float) -> None:
        """Until all records were acknowledged. Raises if one of them was not."""

    def send_offsets(
        self, topic: str, offsets: Mapping[int, CommittedOffset], membership: Membership, timeout_s: float
    ) -> None:
        """Make the group's offsets, fenced by the membership, part of the transaction."""

    def commit(self, timeout_s: float) -> None:
        """Commit the transaction."""

    def abort(self, timeout_s: float) -> None:
        """Abort the transaction."""

    def discard(self) -> None:
        """Stop at once, send nothing more and free everything; a call that is waiting ends with an error."""


class Client(Protocol):
    """A client library with its settings for one group. Each method opens a connection of its own."""

    def admin(self) -> Admin:
        """Raises an error where the broker cannot be reached."""

    def group_consumer(self, topic: str, listener: AssignmentListener) -> GroupConsumer:
        """A member of the group, subscribed to the topic."""

    def fetch_less(self) -> None:
        """Group consumers and readers that are opened from now on ask for a quarter of the bytes at once."""

    def reader(self, topic: str, partition: int, start: int) -> Reader:
        """A consumer outside of the group, about to read from `start`."""

    def producer(self, transactional_id: str | None) -> Producer:
        """An idempotent producer, transactional where there is an id."""

    def problem(self, error: BaseException) -> Problem | None:
        """What an error means; None for one that is not the library's."""
