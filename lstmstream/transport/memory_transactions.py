"""The transaction coordinator of the broker in memory: what is open, what is decided, and what arrives too late.

As in Kafka: records of an open transaction take offsets at once, and a `read_committed` reader stops before the first
of them; its end is decided first, and becomes visible a little later; a producer that is initialised again ends what
its predecessor had open and fences it; a request that its sender has given up may still arrive, once or twice.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lstmstream.errors import TryAgain

if TYPE_CHECKING:
    from lstmstream.transport.memory import LogRecord, MemoryBroker

TIMEOUT_S = 10.0  # of a transaction; Kafka's transaction.timeout.ms


@dataclass(slots=True)
class Transaction:
    """One that is not visible yet."""

    epoch: int  # of its producer
    began_s: float
    records: list[tuple[str, int, LogRecord]] = field(default_factory=list)  # topic, partition
    offsets: dict[int, int] = field(default_factory=dict)  # the group's, by input partition
    nonce: str = ""
    offsets_written: int = 0  # when, in the order of all that the group was sent
    visible_at_s: float | None = None  # once it is decided that it is committed


class LateRequest(NamedTuple):
    """The request to commit a transaction, whose sender waits for it no longer."""

    author: int
    epoch: int


class Transactions:
    """Those of one broker; an author has one transactional id and at most one transaction."""

    def __init__(self, broker: MemoryBroker, clock: Callable[[], float]) -> None:
        self.lingering = False  # what a dead member has left open stays open until its timeout, as in Kafka
        self.visible_after_s = 0.0  # how long the markers of a decided transaction take
        self.late: list[LateRequest] = []
        self.open: dict[int, Transaction] = {}
        self._broker = broker
        self._clock = clock
        self._epochs: dict[int, int] = {}
        self._writes = 0
        self._written: dict[int, int] = {}  # by input partition: the write that its offset is from

    def tick(self) -> None:
        """Time has passed: markers arrive, and what has been open for too long is aborted."""
        now_s = self._clock()
        for author, found in list(self.open.items()):
            if found.visible_at_s is not None:
                if found.visible_at_s <= now_s:
                    self._complete(author)
            elif now_s - found.began_s > TIMEOUT_S:
                self.abort(author)

    # -- a producer's requests

    def init(self, author: int) -> int:
        """A new producer: what was open ends, one way or the other. Its epoch."""
        self.abort(author)
        return self._epochs[author]

    def begin(self, author: int, epoch: int) -> None:
        """Wait for the one before, and begin. Raises TryAgain, as all requests of a fenced producer do."""
        self._check(author, epoch)
        found = self.open.get(author)
        if found is not None and found.visible_at_s is not None:
            self._complete(author)
        self.open.setdefault(author, Transaction(epoch, self._clock()))

    def write(self, author: int, epoch: int, topic: str, partition: int, record: LogRecord) -> None:
        """A record, at an offset that is its own from now on."""
        self._current(author, epoch).records.append((topic, partition, record))

    def add_offsets(self, author: int, epoch: int, offsets: Mapping[int, int], nonce: str) -> None:
        """The group's offsets, from now on pending."""
        found = self._current(author, epoch)
        found.offsets.update(offsets)
        found.nonce = nonce
        found.offsets_written = self._next_write()

    def write_offsets(self, offsets: Mapping[int, int], nonce: str) -> None:
        """Outside of any transaction."""
        self._set_offsets(offsets, nonce, self._next_write())

    def commit(self, author: int, epoch: int) -> None:
        """Decide that it is committed."""
        found = self._current(author, epoch)
        found.visible_at_s = self._clock() + self.visible_after_s
        if not self.visible_after_s:
            self._complete(author)

    # -- what else happens

    def leave_behind(self, author: int) -> None:
        """The author gives up waiting for its commit, and the request is still on its way."""
        if author in self.open:
            self.late.append(LateRequest(author, self.open[author].epoch))

    def arrive(self, number: int, *, again: bool = False) -> bool:
        """A late request arrives, with `again` not for the last time; whether it did anything."""
        request = self.late[number] if again else self.late.pop(number)
        found = self.open.get(request.author)
        if found is None or found.visible_at_s is not None or request.epoch != self._epochs.get(request.author):
            return False
        self.commit(request.author, request.epoch)
        return True

    def abort(self, author: int) -> None:
        """End what the author has open, if it is not decided, and fence it."""
        self._epochs[author] = self._epochs.get(author, 0) + 1
        found = self.open.get(author)
        if found is not None and found.visible_at_s is not None:
            self._complete(author)
        else:
            self.open.pop(author, None)

    def abort_all(self) -> None:
        """As if all were open for too long."""
        for author in list(self.open):
            self.abort(author)

    def on_leave(self, author: int) -> None:
        """The author has left its group, or was dropped from it."""
        if not self.lingering and author in self.open:
            self.abort(author)

    # -- what readers see

    def pending(self, partitions: Collection[int]) -> bool:
        """Whether offsets of these partitions are not decided, or not visible yet."""
        return any(not found.offsets.keys().isdisjoint(partitions) for found in self.open.values())

    def stable_end(self, topic: str, partition: int, end: int) -> int:
        """The offset before `end` at which a read_committed reader has to wait, else `end`."""
        first = [r.offset for found in self.open.values() for t, p, r in found.records if (t, p) == (topic, partition)]
        return min([end, *first])

    def _check(self, author: int, epoch: int) -> None:
        if epoch != self._epochs.get(author):
            raise TryAgain("the transaction was aborted meanwhile, or a newer producer has fenced this one")

    def _current(self, author: int, epoch: int) -> Transaction:
        self._check(author, epoch)
        found = self.open.get(author)
        if found is None or found.visible_at_s is not None:
            raise TryAgain("there is no open transaction")
        return found

    def _complete(self, author: int) -> None:
        found = self.open.pop(author)
        broker = self._broker
        for topic, partition, record in found.records:
            if topic in broker.topics:
                insort(broker.topics[topic].logs[partition], record, key=lambda one: one.offset)
        self._set_offsets(found.offsets, found.nonce, found.offsets_written)

    def _next_write(self) -> int:
        self._writes += 1
        return self._writes

    def _set_offsets(self, offsets: Mapping[int, int], nonce: str, written: int) -> None:
        """What was sent last counts, whichever is seen first."""
        for partition, offset in offsets.items():
            if written > self._written.get(partition, 0):
                self._written[partition] = written
                self._broker.offsets[partition] = offset
                self._broker.metadata[partition] = nonce
