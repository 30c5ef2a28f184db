"""Kafka through kafka-python. The comments name what the client gets wrong and what is done about it.

Four clients: a consumer in the group, a producer, a reader outside the group (restores), an admin client. Only this
module calls them, and only from the daemon's thread; the rebalance listener alone runs on the client's I/O thread,
where it notes, pauses and seeks, nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import kafka.errors as kerr
import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, NewTopic, OffsetSpec
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.partitioner.default import murmur2
from kafka.structs import OffsetAndMetadata

from lstmstream.errors import CannotServe, Fatal, OwnershipLost, TryAgain
from lstmstream.serve.records import Message, RecordBatch
from lstmstream.transport import unpack
from lstmstream.transport.base import CommittedOffset, TopicInfo, Turn

log = logging.getLogger(__name__)

T = TypeVar("T")

CALL_LIMIT_S = 12.0  # for a call to the admin client or the coordinator
_FATAL_WRITES = (kerr.MessageSizeTooLargeError, kerr.RecordListTooLargeError, kerr.InvalidTopicError)
_FENCED = (kerr.ProducerFencedError, kerr.InvalidProducerEpochError, kerr.FencedInstanceIdError)


class KafkaPythonTransport:
    """A Transport (see transport/base.py) on kafka-python."""

    def __init__(
        self,
        *,
        bootstrap_servers: Sequence[str],
        group: str,
        input_topic: str,
        exactly_once: bool = True,
        properties: Mapping[str, Any] | None = None,
        security: Mapping[str, Any] | None = None,
    ) -> None:
        """`properties` under Kafka's dotted names; `security` under kafka-python's own."""
        given = {k.replace(".", "_"): v for k, v in (properties or {}).items()}
        if given.get("compression_type") == "none":
            given["compression_type"] = None
        given.setdefault("client_id", f"lstmstream-{group}")
        common = {"bootstrap_servers": list(bootstrap_servers), **(security or {})}
        instance = given.get("group_instance_id")
        self._input_topic = input_topic
        self._exactly_once = exactly_once
        # With an instance id another process may follow under the same transactional id; without one, none can.
        self._stable = instance is not None
        transactional_id = f"{group}.{instance if instance is not None else uuid.uuid4().hex}"
        self._consumer_settings = {**_settings(KafkaConsumer, {**_CONSUMER, **given}, common), "group_id": group}
        self._reader_settings = {
            k: v for k, v in self._consumer_settings.items() if k not in {"group_instance_id", *_GROUP_ONLY}
        }
        self._producer_settings = _settings(KafkaProducer, {**_PRODUCER, **given}, common)
        if exactly_once:
            self._producer_settings["transactional_id"] = transactional_id
        self._admin_settings = _settings(KafkaAdminClient, {**_ADMIN, **_admin_only(given)}, common)
        self._consumer: Any = None
        self._producer: Any = None
        self._reading: Any = None
        self._admin: Any = None
        self._listener = _Listener()
        self._idle_marks: dict[int, int] = {}
        self._leave_by: float | None = None  # time.monotonic() at which no call may wait any longer

    # -- topics

    def connect(self) -> None:
        """See Transport."""
        unpack.install()
        for client in (self._admin, self._reading):  # of a try that failed half-way
            if client is not None:
                client.close()
        self._admin = self._reading = None
        self._admin = self._within(CALL_LIMIT_S, lambda: _tell(lambda: KafkaAdminClient(**self._admin_settings)))
        self._reading = self._within(CALL_LIMIT_S, lambda: _tell(lambda: KafkaConsumer(**self._reader_settings)))
        self.recover()

    def describe(self, topics: Sequence[str]) -> dict[str, TopicInfo]:
        """See Transport."""
        found = {}
        for topic in self._within(CALL_LIMIT_S, lambda: _tell(lambda: self._admin.describe_topics(list(topics)))):
            if topic["error_code"] == kerr.UnknownTopicOrPartitionError.errno:
                continue
            if topic["error_code"]:
                raise _refused(topic["error_code"], f"topic {topic['name']!r}")
            found[topic["name"]] = (str(topic["topic_id"]), len(topic["partitions"]))
        if not found:
            return {}
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in found]
        settings = self._within(
            CALL_LIMIT_S, lambda: _tell(lambda: self._admin.describe_configs(resources, config_filter="all"))
        )
        by_topic = settings[ConfigResourceType.TOPIC] if ConfigResourceType.TOPIC in settings else settings["topic"]
        return {
            name: TopicInfo(topic_id, partitions, {k: _plain(v) for k, v in by_topic[name].items()})
            for name, (topic_id, partitions) in found.items()
        }

    def create(self, topic: str, partitions: int, settings: Mapping[str, str]) -> None:
        """See Transport."""
        new = NewTopic(topic, num_partitions=partitions, replication_factor=-1, topic_configs=dict(settings))
        try:
            self._within(CALL_LIMIT_S, lambda: self._admin.create_topics([new], timeout_ms=10_000))
        except kerr.TopicAlreadyExistsError:
            return
        except (kerr.AuthorizationError, kerr.PolicyViolationError, kerr.InvalidReplicationFactorError) as error:
            raise CannotServe(f"topic {topic!r} cannot be created: {error}; create it by hand") from error
        except kerr.KafkaError as error:
            raise TryAgain(f"creating topic {topic!r}: {error}") from error

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """See Transport."""
        at = TopicPartition(topic, partition)

        def ask(spec: OffsetSpec) -> int:
            found = self._admin.list_partition_offsets({at: spec}, timeout_ms=10_000)
            return int(found[at].offset)

        # The admin client reads uncommitted: up to the high watermark, not the last stable offset (KAFKA-10167).
        return self._within(CALL_LIMIT_S, lambda: _tell(lambda: (ask(OffsetSpec.EARLIEST), ask(OffsetSpec.LATEST))))

    # -- reading

    def join(self) -> None:
        """See Transport."""
        if self._consumer is not None:  # of a try that failed half-way
            self._consumer.close(autocommit=False, timeout_ms=1000)
        self._consumer = self._within(CALL_LIMIT_S, lambda: _tell(lambda: KafkaConsumer(**self._consumer_settings)))
        self._listener.consumer = self._consumer
        self._consumer.subscribe([self._input_topic], listener=self._listener)
        # A leader that joins before it knows the topic's partitions was seen to assign none, and to leave it at that.
        known = self._within(
            CALL_LIMIT_S, lambda: _tell(lambda: self._consumer.partitions_for_topic(self._input_topic))
        )
        if not known:
            raise TryAgain(f"the partitions of topic {self._input_topic!r} are not known yet")

    def poll(self, timeout_s: float, max_events: int) -> Turn:
        """See Transport."""
        try:
            polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_events)
            # group_metadata() is live, and worthless once the member was dropped: taken here, checked by the daemon.
            member = self._consumer.group_metadata()
        except (kerr.OffsetOutOfRangeError, kerr.LogTruncationError, kerr.NoOffsetForPartitionError) as error:
            raise CannotServe(
                f"topic {self._input_topic!r}: records that were still to be read are gone ({type(error).__name__}:"
                f" {error}); its retention is too short, or it was truncated or made again"
            ) from error
        except kerr.KafkaError as error:
            raise _translate(error, stable=self._stable) from error
        valid = member.generation_id >= 0 and bool(member.member_id)
        return Turn(_to_batch(self._input_topic, polled), member, valid, self._listener.assignment())

    def resume(self, partition: int, offset: int) -> None:
        """See Transport."""
        at = TopicPartition(self._input_topic, partition)
        self._idle_marks.pop(partition, None)
        try:
            self._consumer.seek(at, offset)
            self._consumer.resume(at)
        except (ValueError, kerr.IllegalStateError, KeyError, AttributeError):
            log.info("a partition was lost before it could be resumed", extra={"partition": partition})

    def committed(self, partition: int) -> CommittedOffset | None:
        """See Transport. The consumer reads committed, so the broker waits for transactions pending on the group."""
        at = TopicPartition(self._input_topic, partition)
        found = self._within(
            CALL_LIMIT_S, lambda: _tell(lambda: self._consumer.committed(at, metadata=True, timeout_ms=10_000))
        )
        return None if found is None or found.offset < 0 else CommittedOffset(int(found.offset), found.metadata or "")

    def high_watermark(self, partition: int) -> int | None:
        """See Transport."""
        try:
            mark = self._consumer.highwater(TopicPartition(self._input_topic, partition))
        except (kerr.IllegalStateError, AssertionError, KeyError):  # no longer ours
            return None
        if mark is None:  # nothing was fetched yet, and of an idle partition nothing will be
            if partition not in self._idle_marks:
                self._idle_marks[partition] = self.bounds(self._input_topic, partition)[1]
            return self._idle_marks[partition]
        return int(mark)

    def reader(self, topic: str, partition: int, start: int, end: int) -> KafkaReader:
        """See Transport."""
        at = TopicPartition(topic, partition)

        def aim() -> None:
            self._reading.assign([at])
            self._reading.seek(at, start)

        self._within(CALL_LIMIT_S, lambda: _tell(aim))
        return KafkaReader(self._reading, at, start, end)

    # -- writing

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
        """See Transport. On any error the producer is of no more use: `recover` makes a new one."""
        commit = self._transact if self._exactly_once else self._write_at_least_once
        marked = {TopicPartition(self._input_topic, p): OffsetAndMetadata(o, nonce, -1) for p, o in offsets.items()}
        try:
            self._within(limit_s, lambda: commit(messages, states, marked, member))
        except kerr.KafkaError as error:
            raise _translate(error, stable=self._stable) from error

    def _transact(
        self, messages: Sequence[Message], states: Sequence[Message], offsets: Mapping[Any, Any], member: Any
    ) -> None:
        producer = self._producer
        producer.begin_transaction()
        self._write([*messages, *states])
        # An aborted transaction's offsets go out with the next one, and a producer whose commit timed out may end
        # the next transaction (KAFKA-17754): hence a new producer after any error.
        producer.send_offsets_to_transaction(offsets, member)
        producer.commit_transaction()

    def _write_at_least_once(
        self, messages: Sequence[Message], states: Sequence[Message], offsets: Mapping[Any, Any], _member: object
    ) -> None:
        """States last: a state that is newer than the committed offset could not be used."""
        self._write(messages)
        self._consumer.commit(offsets, timeout_ms=10_000)
        self._write(states)

    def _write(self, messages: Sequence[Message]) -> None:
        """Send, flush, and look at every future: a batch that is too old is dropped without a word otherwise."""
        producer = self._producer
        counts = {topic: len(producer.partitions_for(topic)) for topic in {message.topic for message in messages}}
        futures = [self._send(producer, message, counts[message.topic]) for message in messages]
        timeout_s = self._producer_settings["delivery_timeout_ms"] / 1000 + 2
        with contextlib.suppress(kerr.UnknownError):  # a batch was split while it was waited for
            producer.flush(timeout=timeout_s)
        for future in futures:
            future.get(timeout=timeout_s)

    @staticmethod
    def _send(producer: Any, message: Message, partitions: int) -> Any:
        """`KafkaProducer.send` without its checks: it refuses a null key with a null value, and null headers."""
        partition = message.partition
        if partition is None:
            partition = 0 if message.key is None else (murmur2(message.key) & 0x7FFFFFFF) % partitions
        at = TopicPartition(message.topic, partition)
        headers = list(message.headers)
        if any(value is None for _, value in headers):
            headers = _NullableHeaders(headers)
        manager = producer._transaction_manager
        if manager is not None and manager.is_transactional():
            manager.maybe_add_partition_to_transaction(at)
        future, full, new, _ = producer._accumulator.append(
            at, message.timestamp_ms, message.key, message.value, headers
        )
        if full or new:
            producer._sender.wakeup()
        return future

    def recover(self) -> None:
        """See Transport. Making a producer with the same transactional id ends the transaction that was open."""
        old, self._producer = self._producer, None
        try:
            if old is not None:
                _discard(old)
            producer = self._within(CALL_LIMIT_S, lambda: KafkaProducer(**self._producer_settings))
            self._producer = producer
            if self._exactly_once:
                self._within(CALL_LIMIT_S, producer.init_transactions)
        except kerr.KafkaError as error:
            raise _translate(error, stable=self._stable) from error

    def bound_calls(self, limit_s: float) -> None:
        """See Transport. Sets a number that waiting calls look at."""
        self._leave_by = time.monotonic() + limit_s

    def _within(self, limit_s: float, call: Callable[[], T]) -> T:
        return within(limit_s, call, leave_by=lambda: self._leave_by)

    def close(self, timeout_s: float) -> None:
        """See Transport."""
        closing: list[Callable[[], None]] = []
        if self._consumer is not None:
            closing.append(lambda: self._consumer.close(autocommit=False, timeout_ms=int(timeout_s * 1000)))
        if self._producer is not None:
            closing.append(lambda: _discard(self._producer))
        closing += [client.close for client in (self._reading, self._admin) if client is not None]
        deadline = time.monotonic() + timeout_s
        for close in closing:
            try:
                within(max(0.2, deadline - time.monotonic()), close)
            except (kerr.KafkaError, TryAgain, OSError, RuntimeError) as error:
                log.warning("a client did not close cleanly: %s", error)


class KafkaReader:
    """A Reader (see transport/base.py) on the group-less consumer."""

    def __init__(self, consumer: Any, at: TopicPartition, start: int, end: int) -> None:
        self.position = start
        self.end = end
        self._consumer = consumer
        self._at = at

    def next(self, timeout_s: float) -> RecordBatch:
        """See Reader."""
        try:
            polled = self._consumer.poll(timeout_ms=max(1, int(timeout_s * 1000)), max_records=4096)
            position = self._consumer.position(self._at, timeout_ms=1000)
        except kerr.KafkaError as error:
            raise _translate(error, stable=False) from error
        records = [record for record in polled.get(self._at, []) if record.offset < self.end]
        if position is not None:
            self.position = max(self.position, int(position))
        return _to_batch(self._at.topic, {self._at: records})


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Notes what is assigned. Runs on the client's I/O thread, where blocking calls raise."""

    def __init__(self) -> None:
        self.consumer: Any = None
        self._lock = threading.Lock()
        self._assigned: dict[int, int] = {}
        self._count = 0

    def assignment(self) -> dict[int, int]:
        with self._lock:
            return dict(self._assigned)

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        with self._lock:
            for at in assigned:
                self._count += 1
                self._assigned[at.partition] = self._count
                self.consumer.pause(at)
                self.consumer.seek(at, 0)  # a position, so that the client does not go and look for one

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        with self._lock:
            for at in revoked:
                self._assigned.pop(at.partition, None)

    on_partitions_lost = on_partitions_revoked


class _NullableHeaders(list[tuple[str, bytes | None]]):
    """kafka-python writes a null header value, but stumbles where it counts their bytes, which it skips if falsy."""

    def __bool__(self) -> bool:
        return False


def within(limit_s: float, call: Callable[[], T], *, leave_by: Callable[[], float | None] = lambda: None) -> T:
    """`call()` on a thread of its own; TryAgain where it has not returned in time.

    `leave_by`: a time.monotonic() that may be set while the call runs, and ends the wait too.

    Some of the client's calls have no limit of their own. A thread that is left behind ends with its producer, and
    whatever that producer still sends is fenced by the epoch of the next one.
    """
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcome.append((True, call()))
        except BaseException as error:  # handed to the caller below
            outcome.append((False, error))

    thread = threading.Thread(target=run, name="lstmstream-kafka-call", daemon=True)
    thread.start()
    began = time.monotonic()
    deadline = began + limit_s
    while not outcome and (left_s := min(deadline, leave_by() or deadline) - time.monotonic()) > 0:
        thread.join(min(left_s, 0.2))
    if not outcome:
        raise TryAgain(f"the broker did not answer within {time.monotonic() - began:.3g} s")
    good, value = outcome[0]
    if not good:
        raise value
    return value  # type: ignore[no-any-return]


def _discard(producer: Any) -> None:
    """Close a producer and send nothing more: its own `close` flushes first, and raises where it cannot."""
    producer._sender.force_close()
    producer._sender.join(2.0)
    with contextlib.suppress(kerr.KafkaError):
        producer.close(timeout=0)


def _tell(call: Callable[[], T]) -> T:
    """`call()` with the client's errors in our terms."""
    try:
        return call()
    except kerr.KafkaError as error:
        raise _translate(error, stable=False) from error


def _translate(error: BaseException, *, stable: bool) -> Exception:
    """What the daemon should do about a client's error. Often it is a bare KafkaError with the cause inside."""
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, unpack.BatchTooLargeError):
            return Fatal(f"{cause}. Move the group's offset past it, if it can be done without")
        if isinstance(cause, kerr.FencedInstanceIdError) or (stable and isinstance(cause, _FENCED)):
            return OwnershipLost(f"another process has taken this one's group.instance.id: {cause}")
        if isinstance(cause, _FATAL_WRITES):
            return Fatal(
                f"the broker will not take a record: {cause}. Raise max.message.bytes of the output and dead-letter"
                " topics"
            )
        if isinstance(cause, kerr.AuthorizationError):
            return CannotServe(f"the broker denies it: {type(cause).__name__}: {cause}; grant the right it names")
        if isinstance(cause, kerr.SaslAuthenticationFailedError | kerr.UnsupportedSaslMechanismError):
            return CannotServe(f"the broker does not accept the credentials: {cause}; see kafka.security")
    return TryAgain(str(chain[-1]))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and errors among its arguments."""
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        here = queue.pop(0)
        if here is None or here in seen:
            continue
        seen.append(here)
        yield here
        queue += [here.__cause__, *(arg for arg in here.args if isinstance(arg, BaseException))]


def _refused(code: int, what: str) -> Exception:
    error = kerr.for_code(code)
    return _translate(error(f"{what}: {error.__name__}"), stable=False)


def _to_batch(topic: str, polled: Mapping[TopicPartition, Sequence[Any]]) -> RecordBatch:
    records = [record for of_partition in polled.values() for record in of_partition]
    return RecordBatch(
        topic=topic,
        partitions=np.array([record.partition for record in records], dtype=np.int64),
        offsets=np.array([record.offset for record in records], dtype=np.int64),
        timestamps=np.array([record.timestamp for record in records], dtype=np.int64),
        keys=[record.key for record in records],
        values=[record.value for record in records],
        headers=[record.headers or () for record in records],
    )


def _plain(value: Any) -> str:
    return str(value["value"] if isinstance(value, dict) else value)


def _settings(client: Any, wanted: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that this client knows."""
    return {k: v for k, v in {**wanted, **common}.items() if k in client.DEFAULT_CONFIG}


def _admin_only(given: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in given.items() if k not in {"request_timeout_ms"}}


_NETWORK = {"reconnect_backoff_max_ms": 1000, "bootstrap_timeout_ms": 5000}
_GROUP_ONLY = {"group_id", "partition_assignment_strategy"}
_CONSUMER: dict[str, Any] = {
    **_NETWORK,
    "isolation_level": "read_committed",
    "enable_auto_commit": False,
    "auto_offset_reset": "none",
    "partition_assignment_strategy": [CooperativeStickyAssignor],
    "allow_auto_create_topics": False,
    "check_crcs": True,
    "max_poll_interval_ms": 60_000,
    "fetch_max_bytes": 16 * 1024 * 1024,  # prefetch holds as much per broker, paused partitions too
    "max_partition_fetch_bytes": 2 * 1024 * 1024,
    "fetch_max_wait_ms": 100,
    "metadata_max_age_ms": 30_000,
}
_PRODUCER: dict[str, Any] = {
    **_NETWORK,
    "acks": "all",
    "enable_idempotence": True,
    "allow_auto_create_topics": False,
    "transaction_timeout_ms": 10_000,
    "retry_backoff_ms": 5,  # sleeps in the commit path
    "request_timeout_ms": 5_000,
    "delivery_timeout_ms": 8_000,
    "max_block_ms": 10_000,
    "batch_size": 262_144,
    "linger_ms": 0,
    "max_request_size": 100_000_000,  # the topic's max.message.bytes decides
}
_ADMIN: dict[str, Any] = {**_NETWORK, "request_timeout_ms": 10_000}
