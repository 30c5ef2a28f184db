"""What the daemon needs of a broker. One module owns the clients; nothing else calls them.

Rules that hold for every transport:
- a partition newly assigned is silent until `resume` says where to go on;
- `poll` hands out records together with the membership they were read under, and `commit` is fenced by it;
- after any error but OwnershipLost and CannotServe: `recover`, ask for the committed offsets, look for the nonce of the
  commit that failed, resume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from lstmstream.serve.records import Message, RecordBatch


class TopicInfo(NamedTuple):
    """A topic as the broker has it."""

    topic_id: str  # another one under the same name is another topic
    partitions: int
    settings: Mapping[str, str]


class Turn(NamedTuple):
    """What one poll gave. The records may be of partitions that were taken away meanwhile: see `assignment`."""

    records: RecordBatch
    member: object  # hand it to `commit`
    member_valid: bool  # a member without a generation is not fenced by the broker: commit nothing under it
    assignment: Mapping[int, int]  # partition → a number that is new each time the partition is assigned


class CommittedOffset(NamedTuple):
    """What the group has committed for a partition."""

    offset: int  # the next one to read
    metadata: str  # the nonce of the commit that wrote it; empty or anything else where somebody else did


class Reader(Protocol):
    """Reads committed records of one partition from `start` up to, not including, `end`, outside the group."""

    position: int  # the next offset to read; gaps of compaction and control records are passed over
    end: int

    def next(self, timeout_s: float) -> RecordBatch:
        """The next records, perhaps none. Raises TryAgain."""


class Transport(Protocol):
    """A broker, seen by one member of one consumer group."""

    def connect(self) -> None:
        """Reach the broker. Raises TryAgain where it cannot be reached, CannotServe where it turns us away."""

    def describe(self, topics: Sequence[str]) -> dict[str, TopicInfo]:
        """The topics that exist. Raises TryAgain."""

    def create(self, topic: str, partitions: int, settings: Mapping[str, str]) -> None:
        """Create a topic; one that exists meanwhile is left as it is. Raises TryAgain, CannotServe."""

    def join(self) -> None:
        """Begin to join the consumer group for the input topic. Raises TryAgain."""

    def poll(self, timeout_s: float, max_events: int) -> Turn:
        """Up to `max_events` records, as soon as there are any. Raises TryAgain, Fatal, OwnershipLost."""

    def resume(self, partition: int, offset: int) -> None:
        """Read an assigned partition from `offset` on. One that was lost meanwhile is left alone."""

    def committed(self, partition: int) -> CommittedOffset | None:
        """The group's offset, once no transaction is pending on it; None if there is none. Raises TryAgain.

        Of any partition of the input, assigned or not.
        """

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """(beginning, high watermark). Raises TryAgain."""

    def high_watermark(self, partition: int) -> int | None:
        """Of an assigned input partition, as last seen; None where it is no longer ours. Raises TryAgain."""

    def reader(self, topic: str, partition: int, start: int, end: int) -> Reader:
        """One at a time: a new reader ends the one before. Raises TryAgain."""

    def commit(
        self,
        messages: Sequence[Message],
        states: Sequence[Message],
        offsets: Mapping[int, int],
        member: object,
        *,
        nonce: str,
        limit_s: float,
    ) -> None:
        """Write all of it or nothing: answers, states, and the offsets (input partition → next offset).

        `nonce`, never used before, is committed with each of the offsets. Whether a commit in doubt went through can be
        told by it alone: the offsets may be the ones that were committed before, or another member's.

        With at_least_once it vouches for answers and offsets; the states are written after them.

        Raises TryAgain (fate unknown until `recover`), OwnershipLost (another process has our place), Fatal.
        """

    def recover(self) -> None:
        """After an error: end whatever transaction is open, one way or the other. Raises as `commit` does."""

    def bound_calls(self, limit_s: float) -> None:
        """The process is leaving: from now on, no call but `close` waits for longer than that. For a signal handler.

        A call that would have to wait for longer raises TryAgain.
        """

    def close(self, timeout_s: float) -> None:
        """Leave the group and free everything; never raises."""
