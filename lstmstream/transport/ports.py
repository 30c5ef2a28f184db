"""What the daemon needs of a broker. serve/ knows these protocols and nothing of Kafka's clients.

Rules that hold for every transport:
- a partition newly assigned is silent until `resume` says where to go on;
- `poll` hands out records together with the membership they were read under, and `commit` is fenced by it;
- each commit carries a nonce, which stands in the metadata of the offsets that it commits. After an error it tells
  whether the transaction went through: the offsets alone cannot (another member may have committed the same ones);
- after any error but OwnershipLost, Fatal and CannotServe: `recover`, ask for the committed offsets, resume there.

Every method returns within its time limit. All are called from one thread, but for `commit`: other methods may be
called while it runs, until it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from lstmstream.records import RecordBatch

CALL_TIMEOUT_S = 12.0


class TopicInfo(NamedTuple):
    """A topic as the broker has it."""

    topic_id: str  # another one under the same name is another topic
    partitions: int
    settings: Mapping[str, str]
    replicas: int = 0  # of the partition that has fewest; 0: not known
    allowed: frozenset[str] | None = None  # what we may do there, in Kafka's words: READ, WRITE, …; None: not known

    @property
    def settings_denied(self) -> bool:
        """Whether the settings may not be read; they are empty then."""
        return self.allowed is not None and "DESCRIBE_CONFIGS" not in self.allowed


class CommittedOffset(NamedTuple):
    """The group's offset of one partition."""

    offset: int
    metadata: str  # the nonce of the commit that wrote it; something else if somebody else did


class Membership(NamedTuple):
    """This member's place in its group at one moment: the fence of a commit."""

    token: object  # the client's own; handed back to `commit`
    valid: bool  # one without a generation is not fenced by the broker: commit nothing under it
    member_id: str  # that the broker gave; empty before the first, and another one after an outage


class MemberInfo(NamedTuple):
    """A member of the group, as the broker has it."""

    member_id: str
    client_id: str
    host: str
    partitions: Collection[int]  # of the input topic; empty while a rebalance goes on
    group_instance_id: str = ""  # of a static member


class PollResult(NamedTuple):
    """What one poll gave. The records may be of partitions that were revoked meanwhile: see `assignment`."""

    records: RecordBatch
    membership: Membership
    assignment: Mapping[int, int]  # partition → a number that is new each time the partition is assigned
    positions: Mapping[int, int]  # partition → next offset to read, control records passed over; only resumed ones


class LogReader(Protocol):
    """Reads committed records of one partition, outside the group, with a consumer of its own."""

    position: int  # the next offset to read; gaps of compaction and control records are passed over
    end: int

    def next(self, timeout_s: float) -> RecordBatch:
        """The next records before `end`, perhaps none. Raises TryAgain; it can then be called again."""

    def close(self) -> None:
        """Free the consumer. Never raises."""


class Admin(Protocol):
    """Topics and offsets, from outside the group."""

    def describe(self, topics: Sequence[str]) -> dict[str, TopicInfo]:
        """The topics that exist. Raises TryAgain, CannotServe."""

    def create(self, topic: str, partitions: int, settings: Mapping[str, str]) -> None:
        """Create a topic; one that exists meanwhile is left as it is. Raises TryAgain, CannotServe."""

    def grow(self, topic: str, partitions: int) -> None:
        """Give a topic so many partitions; one that has more of them already is left as it is. Raises as `create`."""

    def offset_range(self, topic: str, partition: int) -> tuple[int, int]:
        """(beginning, high watermark), read uncommitted. Raises TryAgain."""

    def offset_for_time(self, topic: str, partition: int, timestamp_ms: int) -> int | None:
        """The first offset with a timestamp at or after this; None where there is none. Raises TryAgain."""

    def open_transactions(self, topic: str, partitions: Collection[int]) -> dict[int, tuple[int, int]]:
        """(last stable offset, high watermark) of those partitions where they differ. Raises TryAgain."""

    def last_stable_offsets(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        """Up to where committed records can be read, by partition. Raises TryAgain."""

    def open_reader(self, topic: str, partition: int, start: int, end: int) -> LogReader:
        """A reader of start..end (end not included); several may be open. Raises TryAgain."""


class GroupMember(Protocol):
    """One member of the consumer group on the input topic, with the producers that are fenced by it."""

    def join(self, *, smaller_fetches: bool = False) -> None:
        """Begin to join the consumer group; a consumer that was there before is closed. Raises TryAgain.

        `smaller_fetches`: it asks for less at once than the one before, whose records did not come in time.
        """

    def poll(self, timeout_s: float, max_events: int) -> PollResult:
        """Up to `max_events` records, as soon as there are any. Raises TryAgain, Fatal, OwnershipLost, CannotServe."""

    def resume(self, partition: int, offset: int) -> None:
        """Read an assigned partition from `offset`, whatever was fetched before; one lost meanwhile is left alone."""

    def committed_offsets(
        self, partitions: Collection[int], timeout_s: float = CALL_TIMEOUT_S
    ) -> dict[int, CommittedOffset]:
        """The group's offsets, once no transaction is pending on them; a partition without one is left out.

        The partitions need not be assigned to this member. Raises TryAgain.
        """

    def stable_end_offsets(self, partitions: Collection[int]) -> dict[int, int]:
        """The last stable offset of input partitions, asked of the broker. Raises TryAgain."""

    def group_members(self) -> Sequence[MemberInfo]:
        """All members of the group, this one too. Raises TryAgain, CannotServe."""

    def end_abandoned(self, membership: Membership) -> int:
        """End what members have left open in a transaction that the group has no more; how many transactions.

        One of a member that the group has is left alone, whatever it does. A transaction whose author is not known,
        such as one of another program, stays open. Raises TryAgain, CannotServe.
        """

    def commit(
        self,
        outputs: Sequence[RecordBatch],
        states: Sequence[RecordBatch],
        offsets: Mapping[int, int],
        *,
        nonce: str,
        membership: Membership,
        timeout_s: float,
    ) -> None:
        """Write all of it or nothing: outputs, states, and the offsets (input partition → next offset) with the nonce.

        In the batches, partition -1 stands for murmur2 of the key, and timestamp -1 for none. With
        `delivery: at_least_once` outputs are written first, outside a transaction; states are in one that carries the
        offsets in this mode too, for only that fences them.

        Raises TryAgain (fate unknown until `recover`), OwnershipLost (another process has our place), Fatal.
        """

    def recover(self, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """After an error: end whatever transaction is open, one way or the other. Raises as `commit` does.

        Of two processes with one group.instance.id the one that the group no longer knows gets OwnershipLost here.
        """


class Transport(Admin, GroupMember, Protocol):
    """A broker, seen by one member of one consumer group."""

    def connect(self) -> None:
        """Reach the broker. Raises TryAgain where it cannot be reached, CannotServe where it turns us away."""

    def bound_calls(self, timeout_s: float) -> None:
        """The process is stopping: in so many seconds no call waits any longer, one that is waiting now included.

        It raises TryAgain then. For a signal handler.
        """

    def on_wait(self, callback: Callable[[], None]) -> None:
        """Call it again and again while a call waits for the broker, within its limit: the process is alive."""

    def close(self, timeout_s: float) -> None:
        """Leave the group and free everything; never raises."""
