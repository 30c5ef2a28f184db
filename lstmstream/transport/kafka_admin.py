"""Topics, offsets and log readers over either client library: the part of the transport that needs no group."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeVar

from lstmstream.config import Config
from lstmstream.errors import CannotServe, LstmstreamError, TryAgain
from lstmstream.records import RecordBatch
from lstmstream.transport.abandoned import abandoned_ids
from lstmstream.transport.calls import CallBound, ClientThread
from lstmstream.transport.clients import Admin, Client, Producer, Reader
from lstmstream.transport.clients.choose import open_client
from lstmstream.transport.decisions import decide
from lstmstream.transport.diagnosis import Diagnosis, diagnose
from lstmstream.transport.ports import CALL_TIMEOUT_S, CommittedOffset, LogReader, MemberInfo, TopicInfo
from lstmstream.transport.security import SecuritySettings, security_settings
from lstmstream.transport.writer import CLOSE_TIMEOUT_S, Writer, discard, left_s

log = logging.getLogger(__name__)

C = TypeVar("C")
T = TypeVar("T")

SILENT_S, LONGEST_SILENT_S = 15.0, 120.0  # a reader that gets no further is replaced, less and less often
END_ABANDONED_S = 5.0  # restores wait for it
FAILURES = 3  # of a reader, in a row, before it is replaced
READ_GRACE_S = 5.0  # a reader may take so much longer than it is told, while it connects or asks another library


class KafkaAdmin:
    """An Admin (see ports.py)."""

    def __init__(self, client: Client, *, diagnose: Callable[[], str] = lambda: "") -> None:
        """`diagnose`: why the brokers cannot be used, asked after a failure; empty where it does not know."""
        self._client = client
        self._admin: ClientThread[Admin] | None = None
        self._doubtful = False  # the admin client did not answer the last question
        self._bound = CallBound()
        self._diagnosis = Diagnosis(diagnose, self._bound)

    def bound_calls(self, timeout_s: float) -> None:
        """See Transport."""
        self._bound.deadline_s = time.monotonic() + timeout_s

    def on_wait(self, callback: Callable[[], None]) -> None:
        """See Transport."""
        self._bound.on_wait = callback

    def connect(self) -> None:
        """Reach the broker. Raises TryAgain where it cannot be reached, CannotServe where it turns us away."""
        with self._diagnosis.explaining():
            self._reconnect(CALL_TIMEOUT_S)

    def _reconnect(self, timeout_s: float) -> None:
        """Another admin client; the one before stays where there can be no other."""
        opened = self._open("admin", self._client.admin, lambda admin: admin.close(), timeout_s)
        if self._admin is not None:
            self._admin.end(lambda admin: admin.close(), 0.0)
        self._admin, self._doubtful = opened, False

    def describe(self, topics: Sequence[str]) -> dict[str, TopicInfo]:
        """See Admin."""
        return self._ask(lambda admin: admin.describe(topics, CALL_TIMEOUT_S))

    def create(self, topic: str, partitions: int, settings: Mapping[str, str]) -> None:
        """See Admin."""
        try:
            self._ask(lambda admin: admin.create(topic, partitions, settings, CALL_TIMEOUT_S))
        except CannotServe as error:
            raise CannotServe(f"topic {topic!r} cannot be created: {error}") from error
        except TryAgain as error:
            raise TryAgain(f"creating topic {topic!r}: {error}") from error

    def grow(self, topic: str, partitions: int) -> None:
        """See Admin."""
        try:
            self._ask(lambda admin: admin.grow(topic, partitions, CALL_TIMEOUT_S))
        except CannotServe as error:
            raise CannotServe(f"topic {topic!r} cannot get {partitions} partitions: {error}") from error
        except TryAgain as error:
            raise TryAgain(f"giving topic {topic!r} {partitions} partitions: {error}") from error

    def offset_range(self, topic: str, partition: int) -> tuple[int, int]:
        """See Admin. Up to the high watermark, not to the last stable offset (KAFKA-10167)."""
        beginning = self._ask(lambda admin: admin.beginning_offset(topic, partition, CALL_TIMEOUT_S))
        ends = self._ask(lambda admin: admin.end_offsets(topic, [partition], CALL_TIMEOUT_S, committed=False))
        return beginning, ends[partition]

    def broker_settings(self) -> dict[str, str]:
        """Those of one of the brokers; empty where they may not be read. Raises TryAgain."""
        return self._ask(lambda admin: admin.broker_settings(CALL_TIMEOUT_S))

    def last_stable_offsets(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        """Up to where committed records can be read, by partition. Raises TryAgain."""
        return self._ask(lambda admin: admin.end_offsets(topic, partitions, CALL_TIMEOUT_S, committed=True))

    def open_transactions(self, topic: str, partitions: Collection[int]) -> dict[int, tuple[int, int]]:
        """See Admin. The high watermark first: what is written between the questions is then no open transaction."""
        ends = self._ask(lambda admin: admin.end_offsets(topic, partitions, CALL_TIMEOUT_S, committed=False))
        stable = self.last_stable_offsets(topic, partitions)
        return {p: (stable[p], end) for p, end in ends.items() if stable[p] < end}

    def offset_for_time(self, topic: str, partition: int, timestamp_ms: int) -> int | None:
        """The first offset at or after a time, None where there is no such record. Raises TryAgain."""
        return self._ask(lambda admin: admin.offset_for_time(topic, partition, timestamp_ms, CALL_TIMEOUT_S))

    def group_offsets(
        self, topic: str, partitions: Collection[int], timeout_s: float = CALL_TIMEOUT_S
    ) -> dict[int, CommittedOffset]:
        """The group's offsets, once no transaction is pending on them; see GroupMember. Raises TryAgain."""
        return self._ask(lambda admin: admin.committed(topic, partitions, timeout_s), timeout_s)

    def members_of(self, group: str, topic: str) -> Sequence[MemberInfo]:
        """All members of a group, with their partitions of the topic. Raises TryAgain, CannotServe."""
        return self._ask(lambda admin: admin.group_members(group, topic, CALL_TIMEOUT_S))

    def open_reader(self, topic: str, partition: int, start: int, end: int) -> LogReader:
        """See Admin. It has a consumer of its own, so that several may be open."""

        def open_at(position: int) -> ClientThread[Reader]:
            make = lambda: self._client.reader(topic, partition, position)  # noqa: E731 - one to each opening
            return self._open(f"reader-{partition}", make, lambda reader: reader.close(), CALL_TIMEOUT_S)

        return WatchedReader(open_at, start, end, self._client.fetch_less)

    def open_writer(self, transactional_id: str, timeout_s: float, *, plain_too: bool = False) -> Writer:
        """New producers; whatever an earlier one of this transactional id left open is ended, and it is fenced.

        `plain_too`: also one without transactions. Raises as a commit does.
        """
        deadline = time.monotonic() + timeout_s
        plain = self._producer(None, deadline) if plain_too else None
        try:
            transactional = self._producer(transactional_id, deadline)
        except BaseException:
            if plain is not None:
                discard(plain)
            raise
        writer = Writer(transactional, plain)
        try:
            left = left_s(deadline)
            transactional.call(lambda producer: producer.init_transactions(left), left)
        except BaseException:
            writer.discard()
            raise
        return writer

    def end_abandoned_of(self, group: str, topic: str, member_id: str, timeout_s: float = END_ABANDONED_S) -> int:
        """For a member of a group: end what others have left open that are gone; see GroupMember.end_abandoned.

        With an admin client of its own, so that one that gets no answer is in nobody's way.
        """
        deadline = time.monotonic() + timeout_s
        admin = self._open("abandoned", self._client.admin, lambda admin: admin.close(), left_s(deadline))
        try:
            left = left_s(deadline)
            open_ids = admin.call(lambda admin: admin.open_transactional_ids(left), left)
            if not abandoned_ids(open_ids, group, {member_id}):
                return 0
            left = left_s(deadline)
            member_ids = {one.member_id for one in admin.call(lambda a: a.group_members(group, topic, left), left)}
            if member_id not in member_ids:  # a coordinator that has just started may answer with those of long before
                raise TryAgain("the broker does not name this member among those of its group")
            abandoned = abandoned_ids(open_ids, group, member_ids)
            for transactional_id in abandoned:
                left = left_s(deadline)
                admin.call(partial(_fence, transactional_id=transactional_id, timeout_s=left), left)
                log.info("ended the transaction of a member that is gone", extra={"transactional_id": transactional_id})
            return len(abandoned)
        finally:
            admin.end(lambda admin: admin.close(), 0.0)

    def close(self, timeout_s: float) -> None:
        """Free the admin client; readers are closed by whoever opened them. Never raises."""
        if self._admin is not None:
            self._admin.end(lambda admin: admin.close(), timeout_s)
            self._admin = None

    def _ask(self, question: Callable[[Admin], T], timeout_s: float = CALL_TIMEOUT_S) -> T:
        if self._admin is None:
            raise TryAgain("the broker was not reached yet")
        self._doubtful = True
        answer = self._admin.call(question, timeout_s)
        self._doubtful = False
        return answer

    def _producer(self, transactional_id: str | None, deadline: float) -> ClientThread[Producer]:
        name = "producer" if transactional_id is None else "transactional-producer"
        make = lambda: self._client.producer(transactional_id)  # noqa: E731 - bound to this id
        return self._open(name, make, lambda producer: producer.discard(), left_s(deadline))

    def _open(self, name: str, make: Callable[[], C], close: Callable[[C], None], timeout_s: float) -> ClientThread[C]:
        return ClientThread.open(name, make, self._to_error, self._bound, close=close, timeout_s=timeout_s)

    def _to_error(self, error: BaseException) -> LstmstreamError | None:
        if isinstance(error, LstmstreamError):
            return error
        problem = self._client.problem(error)
        return None if problem is None else decide(problem)


def _fence(admin: Admin, transactional_id: str, timeout_s: float) -> None:
    admin.fence(transactional_id, timeout_s)


def open_kafka_admin(config: Config) -> KafkaAdmin:
    """Topics and offsets, as a configuration says; it reads and writes nothing as a member of the group."""
    return KafkaAdmin(client_of(config), diagnose=diagnosis_of(config))


def client_of(config: Config) -> Client:
    """The client library that a configuration asks for; nothing is connected yet. Raises CannotServe."""
    return open_client(
        config.kafka.client,
        servers=config.kafka.bootstrap_servers,
        group=config.name,
        properties=config.kafka.properties,
        security=security_of(config),
    )


def security_of(config: Config) -> SecuritySettings:
    """How its brokers are reached."""
    return security_settings(config.kafka.security, config.folder, config.files)


def diagnosis_of(config: Config) -> Callable[[], str]:
    """Why its brokers cannot be used."""
    security = security_of(config)
    return lambda: diagnose(config.kafka.bootstrap_servers, security.current())


class WatchedReader:
    """A LogReader. It knows its position itself: a read that was left behind is done again from there.

    A consumer that comes no further, or fails again and again, is replaced: it may know the brokers by addresses that
    they no longer have.
    """

    def __init__(
        self, open_at: Callable[[int], ClientThread[Reader]], start: int, end: int, fetch_less: Callable[[], None]
    ) -> None:
        """`fetch_less`: have the next one ask for less at once, in case that the network is slow."""
        self.position = start
        self.end = end
        self._open_at = open_at
        self._fetch_less = fetch_less
        self._reader: ClientThread[Reader] | None = open_at(start)
        self._failures = 0  # in a row
        self._moved_s = time.monotonic()
        self._patience_s = SILENT_S

    def next(self, timeout_s: float) -> RecordBatch:
        """See LogReader."""
        start, end = self.position, self.end
        if self._failures >= FAILURES or time.monotonic() - self._moved_s > self._patience_s:
            self._replace()
        if self._reader is None:
            self._reader = self._open_at(start)
        try:
            records, position = self._reader.call(
                lambda reader: reader.read(start, end, timeout_s), timeout_s + READ_GRACE_S
            )
        except TryAgain:
            self._failures += 1
            raise
        self._failures = 0
        if position > start:
            self._moved_s, self._patience_s = time.monotonic(), SILENT_S
        self.position = min(position, end)
        return records

    def _replace(self) -> None:
        if self._failures < FAILURES:  # it is silent
            self._fetch_less()
        log.info("a log reader makes no progress; replacing it", extra={"offset": self.position})
        self.close()
        self._failures = 0
        self._moved_s, self._patience_s = time.monotonic(), min(2 * self._patience_s, LONGEST_SILENT_S)

    def close(self) -> None:
        """See LogReader."""
        if self._reader is not None:
            self._reader.end(lambda reader: reader.close(), 0.0 if self._reader.stuck else CLOSE_TIMEOUT_S)
            self._reader = None
