"""The adapter of confluent-kafka (librdkafka). Its comments name what the library gets wrong and what is done about it.

What remains:
- a gzip or lz4 batch is unpacked without limit, to about a thousand times its size (docs/operations.md, "Memory"). So
  the bound is the topic's `max.message.bytes`: 1 GB for its default of 1 MB. zstd is bound by
  `receive.message.max.bytes`. The batches of one fetch (`max.partition.fetch.bytes`) are unpacked at once: 12 of 100 MB
  took 1.3 GB;
- the number of records that a batch claims, and the offsets of its records, are not checked. What is left out shows as
  a gap in the offsets (confluent_gaps.py); in a topic with transactions not every gap is looked at;
- after an outage longer than the session timeout the library joins as a new member, and the group waits once more for
  the session of the one that it was before. With a `group.instance.id` it does not.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import kafka.errors
import numpy as np
from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined] # public, says its manual
    AdminClient,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from lstmstream.records import RecordBatch
from lstmstream.transport.clients import AssignmentListener
from lstmstream.transport.clients.confluent_consumer import (
    ConfluentConsumer,
    ConfluentReader,
    SelfFencedError,
    raise_first,
)
from lstmstream.transport.clients.confluent_producer import BatchBytes, ConfluentProducer
from lstmstream.transport.clients.confluent_settings import (
    COMMON,
    CONSUMER,
    KINDS,
    MEMBER,
    OF_CONSUMER,
    OF_MEMBER,
    OF_PRODUCER,
    OTHER_NAMES,
    PRODUCER,
    READER,
)
from lstmstream.transport.clients.fetch_limit import FetchLimit
from lstmstream.transport.clients.offset_metadata import metadata_of
from lstmstream.transport.decisions import ErrorKind, Problem
from lstmstream.transport.error_codes import broker_problem
from lstmstream.transport.ports import CommittedOffset, MemberInfo, TopicInfo
from lstmstream.transport.security import SecuritySettings, for_librdkafka

log = logging.getLogger(__name__)
_library_log = logging.getLogger("kafka.librdkafka")  # it writes to standard error otherwise

_DESCRIBE_S = 5.0
OPINION_S = 2.0  # that another library may take
_NO_END = 1 << 62
if TYPE_CHECKING:
    from lstmstream.transport.clients.kafka_python import KafkaPythonAdmin, KafkaPythonClient

_OF_OTHER_OPINION = {"client.rack", "fetch.max.bytes", "max.partition.fetch.bytes", "request.timeout.ms"}
_NOT_ACQUIRED = "acquire SASL OAUTHBEARER token"  # by `_token` below: where tokens come from may be away
_EARLIEST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]


class ConfluentClient:
    """A Client (see clients/__init__.py)."""

    def __init__(
        self, servers: Sequence[str], group: str, properties: Mapping[str, int | str], security: SecuritySettings
    ) -> None:
        """`properties` under Kafka's dotted names; one that librdkafka does not have is left out, which is logged."""
        self._group = group
        self._properties = properties
        self._servers, self._security = servers, security
        self._given = {OTHER_NAMES.get(name, name) or "": value for name, value in properties.items()}
        self._given.pop("", None)
        unknown = sorted(name for name in properties if OTHER_NAMES.get(name, name) is None)
        if unknown:
            log.warning("kafka.properties that librdkafka does not have are left out: %s", ", ".join(unknown))
        self._common = {
            **COMMON,
            "bootstrap.servers": ",".join(servers),
            "client.id": f"lstmstream-{group}",
            "logger": _library_log,
        }
        self._fetch_limit = FetchLimit("fetch.max.bytes", "max.partition.fetch.bytes")
        self._batch_bytes = BatchBytes(int(self._given.get("batch.size", PRODUCER["batch.size"])))

    def admin(self) -> ConfluentAdmin:
        """See Client. Making an object connects to nothing: hence the question."""
        errors: list[KafkaError] = []
        settings: dict[str, Any] = {**self._settings(set()), "error_cb": errors.append}
        admin = AdminClient(settings)
        try:
            admin.list_topics(timeout=5.0)
        except KafkaException as error:
            admin.poll(0)  # calls `error_cb`: credentials that are refused look like a broker that is away otherwise
            for cause in errors:
                if self._problem(cause).kind is ErrorKind.BAD_CREDENTIALS:
                    raise KafkaException(cause) from error
            raise
        return ConfluentAdmin(admin, self._offsets_consumer, self._other_admin)

    def _offsets_consumer(self) -> Consumer:
        """It never subscribes: for the group's offsets, for which an admin client was seen to wait for ever."""
        return Consumer({**CONSUMER, **self._settings(OF_CONSUMER), "group.id": self._group})

    def group_consumer(self, topic: str, listener: AssignmentListener) -> ConfluentConsumer:
        """See Client."""
        settings = {**CONSUMER, **MEMBER, **self._settings(OF_CONSUMER | OF_MEMBER), "group.id": self._group}
        settings = self._fetch_limit.apply(settings)
        return ConfluentConsumer(settings, topic, listener, self._member_of_instance, self._other_opinion)

    def fetch_less(self) -> None:
        """See Client."""
        self._fetch_limit.shrink()

    def reader(self, topic: str, partition: int, start: int) -> ConfluentReader:
        """See Client. The library wants a group's name, and does not join it."""
        settings = {**CONSUMER, **READER, **self._settings(OF_CONSUMER), "group.id": self._group}
        settings = self._fetch_limit.apply(settings)
        return ConfluentReader(settings, TopicPartition(topic, partition, start), self._other_opinion)

    def producer(self, transactional_id: str | None) -> ConfluentProducer:
        """See Client."""
        settings = {**PRODUCER, **self._settings(OF_PRODUCER), "batch.size": self._batch_bytes.now}
        if transactional_id is not None:
            settings["transactional.id"] = transactional_id
        return ConfluentProducer(settings, self._batch_bytes, self._problem)

    def problem(self, error: BaseException) -> Problem | None:
        """See Client. A fatal error is raised in the midst of a callback, which makes it a SystemError's cause."""
        if isinstance(error, SystemError) and error.__cause__ is not None:
            return self.problem(error.__cause__)
        if isinstance(error, BufferError | OSError):
            return Problem(ErrorKind.TRANSIENT, str(error))
        if isinstance(error, SelfFencedError):
            return Problem(ErrorKind.CONSUMER_BROKEN, str(error))
        if not isinstance(error, KafkaException):
            return None
        cause = error.args[0] if error.args else None
        if not isinstance(cause, KafkaError):
            return Problem(ErrorKind.TRANSIENT, str(error))
        return self._problem(cause)

    def _problem(self, cause: KafkaError) -> Problem:
        text = f"{cause.name()}: {cause.str().strip()}"
        if cause.code() == KafkaError._AUTHENTICATION and _NOT_ACQUIRED in text:
            return Problem(ErrorKind.TRANSIENT, text)
        own = KINDS.get(cause.code())
        if own is ErrorKind.BAD_SETTINGS:
            return Problem(own, self._kafka_names(text))
        if own is not None:
            return Problem(own, text)
        if cause.code() < 0:
            return Problem(ErrorKind.TRANSIENT, text)
        return broker_problem(cause.code(), text, self._properties, self._group)

    @staticmethod
    def _kafka_names(text: str) -> str:
        """The library's names of settings as they stand in the configuration."""
        for kafkas, librdkafkas in OTHER_NAMES.items():
            if librdkafkas is not None:
                text = text.replace(f"`{librdkafkas}`", f"`{kafkas}`")
        return text

    def _other_opinion(self, topic: str, partition: int, start: int, max_records: int) -> tuple[RecordBatch, int]:
        """What kafka-python, which every installation has, reads there: see OtherOpinion."""
        client = self._other_client
        deadline_s = time.monotonic() + OPINION_S
        try:
            reader = client.reader(topic, partition, start)
            try:
                while True:
                    records, position = reader.read(start, _NO_END, 0.2)
                    if position > start or time.monotonic() > deadline_s:
                        break
            finally:
                reader.close()
        except kafka.errors.KafkaError as error:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT, f"{topic}[{partition}]@{start}: {error}")) from error
        if len(records) > max_records:
            records = records.take(np.arange(max_records))
            position = int(records.offsets[-1]) + 1
        return records, position

    def _member_of_instance(self) -> str:
        """The id of the member that the group has under our instance id; empty where there is none."""
        admin = AdminClient(self._settings(set()))
        found = admin.describe_consumer_groups([self._group], request_timeout=_DESCRIBE_S)[self._group].result()
        instance = str(self._given.get("group.instance.id"))
        return next((member.member_id for member in found.members if member.group_instance_id == instance), "")

    def _settings(self, of: Collection[str]) -> dict[str, Any]:
        others = {*OF_CONSUMER, *OF_MEMBER, *OF_PRODUCER} - set(of)
        given = {name: value for name, value in self._given.items() if name not in others}
        settings = {**self._common, **for_librdkafka(self._security.current()), **given}
        if self._security.tokens is not None:
            self._security.tokens.token()  # so that an error is told: the library would wait ten seconds for a token
            settings["oauth_cb"] = self._token
        return settings

    def _token(self, config: str) -> tuple[str, float, str, dict[str, str]]:
        """Called by a thread of the library, again and again before a token expires."""
        del config
        assert self._security.tokens is not None
        token = self._security.tokens.token()
        return token.text, token.expires_s, token.principal, {}

    @contextmanager
    def _other_admin(self) -> Iterator[KafkaPythonAdmin]:
        try:
            admin = self._other_client.admin()
            try:
                yield admin
            finally:
                admin.close()
        except (kafka.errors.KafkaError, OSError) as error:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT, str(error))) from error

    @cached_property
    def _other_client(self) -> KafkaPythonClient:
        """One for all questions, since it remembers the broker's version: to find it out takes most of a question."""
        from lstmstream.transport.clients.kafka_python import KafkaPythonClient  # noqa: PLC0415 - hardly ever needed

        properties = {name: value for name, value in self._properties.items() if name in _OF_OTHER_OPINION}
        return KafkaPythonClient(self._servers, self._group, properties, self._security)


class ConfluentAdmin:
    """An Admin (see clients/__init__.py)."""

    def __init__(
        self,
        admin: AdminClient,
        offsets_consumer: Callable[[], Consumer],
        other_admin: Callable[[], AbstractContextManager[KafkaPythonAdmin]],
    ) -> None:
        """`other_admin`: one of kafka-python, for a while. Its errors are raised as this library's."""
        self._admin = admin
        self._other_admin = other_admin
        self._offsets_consumer = offsets_consumer
        self._consumer: Consumer | None = None

    def describe(self, topics: Sequence[str], timeout_s: float) -> dict[str, TopicInfo]:
        """See Admin."""
        found: dict[str, TopicInfo] = {}
        described = self._admin.describe_topics(
            TopicCollection(list(topics)), include_authorized_operations=True, request_timeout=timeout_s
        )
        for name, future in described.items():
            try:
                topic = future.result()
            except KafkaException as error:
                if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    continue
                raise _of_topic(error, name) from error
            replicas = min((len(partition.replicas) for partition in topic.partitions), default=0)
            allowed = frozenset(operation.name for operation in topic.authorized_operations or ()) or None
            found[name] = TopicInfo(_canonical(topic.topic_id), len(topic.partitions), {}, replicas, allowed)
        readable = [name for name, info in found.items() if not info.settings_denied]
        if not readable:
            return found
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in readable]
        for resource, future in self._admin.describe_configs(resources, request_timeout=timeout_s).items():
            try:
                settings = {entry.name: str(entry.value) for entry in future.result().values()}
            except KafkaException as error:
                raise _of_topic(error, f"settings of {resource.name}") from error
            found[resource.name] = found[resource.name]._replace(settings=settings)
        return found

    def create(self, topic: str, partitions: int, settings: Mapping[str, str], timeout_s: float) -> None:
        """See Admin."""
        new = NewTopic(topic, num_partitions=partitions, replication_factor=-1, config=dict(settings))
        try:
            self._admin.create_topics([new], request_timeout=timeout_s)[topic].result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise

    def grow(self, topic: str, partitions: int, timeout_s: float) -> None:
        """See Admin."""
        try:
            self._admin.create_partitions([NewPartitions(topic, partitions)], request_timeout=timeout_s)[topic].result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.INVALID_PARTITIONS:
                raise

    def broker_settings(self, timeout_s: float) -> dict[str, str]:
        """See Admin."""
        broker = ConfigResource(ResourceType.BROKER, str(min(self._admin.list_topics(timeout=timeout_s).brokers)))
        try:
            found = self._admin.describe_configs([broker], request_timeout=timeout_s)[broker].result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.CLUSTER_AUTHORIZATION_FAILED:
                return {}
            raise
        return {name: str(entry.value) for name, entry in found.items()}

    def beginning_offset(self, topic: str, partition: int, timeout_s: float) -> int:
        """See Admin."""
        return self._offsets(topic, [partition], _EARLIEST, timeout_s, committed=False)[partition]

    def end_offsets(
        self, topic: str, partitions: Collection[int], timeout_s: float, *, committed: bool
    ) -> dict[int, int]:
        """See Admin."""
        return self._offsets(topic, partitions, _LATEST, timeout_s, committed=committed)

    def offset_for_time(self, topic: str, partition: int, timestamp_ms: int, timeout_s: float) -> int | None:
        """See Admin."""
        spec = OffsetSpec.for_timestamp(timestamp_ms)
        found = self._offsets(topic, [partition], spec, timeout_s, committed=False)[partition]
        return None if found < 0 else found

    def _offsets(
        self, topic: str, partitions: Collection[int], spec: OffsetSpec, timeout_s: float, *, committed: bool
    ) -> dict[int, int]:
        isolation = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        specs = {TopicPartition(topic, partition): spec for partition in partitions}
        if not specs:
            return {}
        found = self._admin.list_offsets(specs, isolation_level=isolation, request_timeout=timeout_s)
        return {at.partition: int(future.result().offset) for at, future in found.items()}

    def group_members(self, group: str, topic: str, timeout_s: float) -> Sequence[MemberInfo]:
        """See Admin. Asked with kafka-python: librdkafka's call was seen to abort the process after an outage.

        (Assertion `eonce->refcnt > 0' in rd_kafka_enq_once_del_source_return, version 2.16.1.)
        """
        with self._other_admin() as admin:
            return admin.group_members(group, topic, timeout_s)

    def committed(self, topic: str, partitions: Collection[int], timeout_s: float) -> dict[int, CommittedOffset]:
        """See Admin. The consumer reads committed, so the library asks until no transaction is pending."""
        if self._consumer is None:
            self._consumer = self._offsets_consumer()
        found = self._consumer.committed([TopicPartition(topic, p) for p in partitions], timeout=timeout_s)
        raise_first(found)
        return {at.partition: CommittedOffset(at.offset, metadata_of(at)) for at in found if at.offset >= 0}

    def open_transactional_ids(self, timeout_s: float) -> list[str]:
        """See Admin. Asked with kafka-python: librdkafka has no such call."""
        with self._other_admin() as admin:
            return admin.open_transactional_ids(timeout_s)

    def fence(self, transactional_id: str, timeout_s: float) -> None:
        """See Admin. The same: a producer of librdkafka takes a second to come and go."""
        with self._other_admin() as admin:
            admin.fence(transactional_id, timeout_s)

    def close(self) -> None:
        """See Admin: the admin client ends with its last reference."""
        if self._consumer is not None:
            self._consumer.close()


def _of_topic(error: KafkaException, name: str) -> KafkaException:
    """The error with the topic's name, which it does not have."""
    cause: KafkaError = error.args[0]
    return KafkaException(KafkaError(cause.code(), f"{name}: {cause.str()}"))


def _canonical(topic_id: Any) -> str:
    """The text that the other client has for a topic's id; the library gives it as two signed halves."""
    high, low = topic_id.get_most_significant_bits(), topic_id.get_least_significant_bits()
    return str(uuid.UUID(int=high % (1 << 64) << 64 | low % (1 << 64)))
