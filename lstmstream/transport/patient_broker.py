"""The broker as a command asks it that reads topics: while it cannot be used, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

from lstmstream.errors import CannotServe, Fatal, TryAgain
from lstmstream.records import RecordBatch, concatenate
from lstmstream.transport.ports import CommittedOffset, LogReader, TopicInfo

LIMIT_S = 60.0  # without an answer, or without a step forward of a reader that has not reached its end
SAID_AFTER_S = 10.0  # a transaction may be pending for so long, and nothing is wrong
RETRY_S = 0.2
READ_S = 0.5
CLOSE_S = 1.0

T = TypeVar("T")


class Broker(Protocol):
    """What is needed of a transport. Each call may raise TryAgain."""

    def connect(self) -> None:
        """Reach it, perhaps once more."""

    def describe(self, topics: Sequence[str]) -> dict[str, TopicInfo]:
        """The topics that exist."""

    def broker_settings(self) -> dict[str, str]:
        """Those of one of the brokers; empty where they may not be read."""

    def offset_range(self, topic: str, partition: int) -> tuple[int, int]:
        """(beginning, high watermark)."""

    def last_stable_offsets(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        """Up to where committed records can be read, by partition."""

    def offset_for_time(self, topic: str, partition: int, timestamp_ms: int) -> int | None:
        """The first offset at or after a time, None where there is none."""

    def group_offsets(self, topic: str, partitions: Collection[int]) -> dict[int, CommittedOffset]:
        """The group's offsets, once no transaction is pending on them."""

    def open_reader(self, topic: str, partition: int, start: int, end: int) -> LogReader:
        """A reader of committed records."""

    def close(self, timeout_s: float) -> None:
        """Free it."""


class Stopped(Exception):
    """It was asked to stop while it waited for the broker."""


class PatientBroker:
    """Asks a broker until it answers. Its calls raise CannotServe once the limit is over, and Stopped."""

    def __init__(
        self,
        broker: Broker,
        *,
        limit_s: float = LIMIT_S,
        stopping: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """`say` is told of a broker that has not answered for a while, and once more when it does."""
        self._broker = broker
        self._limit_s = limit_s
        self._stopping = stopping
        self._say = say
        self._silent_since_s: float | None = None
        self._said = False

    def describe(self, topics: Sequence[str]) -> dict[str, TopicInfo]:
        """See Broker."""
        return self._ask("the topics cannot be read", lambda: self._broker.describe(topics))

    def broker_settings(self) -> dict[str, str]:
        """See Broker."""
        return self._ask("the broker's settings cannot be read", self._broker.broker_settings)

    def offset_range(self, topic: str, partition: int) -> tuple[int, int]:
        """See Broker."""
        what = f"the offsets of {topic}[{partition}] cannot be read"
        return self._ask(what, lambda: self._broker.offset_range(topic, partition))

    def last_stable_offsets(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        """See Broker."""
        what = f"the offsets of {topic} cannot be read"
        return self._ask(what, lambda: self._broker.last_stable_offsets(topic, partitions))

    def offset_for_time(self, topic: str, partition: int, timestamp_ms: int) -> int | None:
        """See Broker."""
        what = f"the offsets of {topic}[{partition}] cannot be read"
        return self._ask(what, lambda: self._broker.offset_for_time(topic, partition, timestamp_ms))

    def group_offsets(self, topic: str, partitions: Collection[int]) -> dict[int, CommittedOffset]:
        """See Broker."""
        return self._ask("the group's offsets cannot be read", lambda: self._broker.group_offsets(topic, partitions))

    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[RecordBatch]:
        """The committed records of start..end (end not included)."""
        if start >= end:
            return
        what = f"{topic}[{partition}] cannot be read"
        reader = self._ask(what, lambda: self._broker.open_reader(topic, partition, start, end))
        try:
            while reader.position < reader.end:
                before, problem = reader.position, "an open transaction holds them back, or the broker is not healthy"
                try:
                    records = reader.next(READ_S)
                except TryAgain as error:
                    records, problem = RecordBatch.empty(topic), str(error)
                if reader.position > before:
                    self._answered()
                else:
                    self._wait(f"{topic}[{partition}]: no records at {before} of {reader.end}", problem)
                if len(records):
                    yield records
        finally:
            reader.close()

    def newest(self, topic: str, partitions: int, count: int) -> RecordBatch:
        """The newest committed records, about as many of each partition, `count` in all."""
        share = max(1, count // partitions)
        batches = [RecordBatch.empty(topic)]
        for number, end in self.last_stable_offsets(topic, range(partitions)).items():
            first, _ = self.offset_range(topic, number)
            batches += self.read(topic, number, max(first, end - share), end)
        return concatenate(batches)

    def _ask(self, what: str, question: Callable[[], T]) -> T:
        while True:
            try:
                answer = question()
            except TryAgain as error:
                self._wait(what, str(error))
                time.sleep(RETRY_S)
                with suppress(TryAgain):  # the next question says what is wrong
                    self._broker.connect()
            else:
                self._answered()
                return answer

    def _answered(self) -> None:
        if self._said:
            self._say("the broker answers again")
        self._silent_since_s, self._said = None, False

    def _wait(self, what: str, problem: str) -> None:
        """Raises CannotServe, Stopped."""
        now_s = time.monotonic()
        if self._silent_since_s is None:
            self._silent_since_s = now_s
        silent_s = now_s - self._silent_since_s
        if silent_s > self._limit_s:
            raise CannotServe(f"{what}, for {self._limit_s:g} s: {problem}")
        if self._stopping():
            raise Stopped
        if silent_s > SAID_AFTER_S and not self._said:
            self._said = True
            self._say(f"{what}, still trying: {problem}")


@contextmanager
def connected(
    broker: Broker,
    what_failed: str,
    *,
    limit_s: float = LIMIT_S,
    stopping: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda _text: None,
) -> Iterator[PatientBroker]:
    """The broker of a command, which is connected here, and closed afterwards. What ends the command is CannotServe."""
    try:
        broker.connect()
        yield PatientBroker(broker, limit_s=limit_s, stopping=stopping, say=say)
    except (TryAgain, Fatal) as error:
        raise CannotServe(f"{what_failed}: {error}") from error
    finally:
        broker.close(CLOSE_S)
