"""The adapter of kafka-python. Its comments name what the library gets wrong and what is done about it.

Where no public call will do, the adapter reaches below it; the versions that it may meet are pinned for that reason.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import kafka.errors as kerr
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, OffsetSpec, TransactionState
from kafka.protocol.consumer.offsets import IsolationLevel
from kafka.protocol.metadata import CoordinatorType
from kafka.protocol.producer.transaction import InitProducerIdRequest

from lstmstream.transport.clients import AssignmentListener
from lstmstream.transport.clients.fetch_limit import FetchLimit
from lstmstream.transport.clients.kafka_python_consumer import KafkaPythonConsumer, KafkaPythonReader
from lstmstream.transport.clients.kafka_python_network import Network, TokenProvider, Turns
from lstmstream.transport.clients.kafka_python_producer import KafkaPythonProducer
from lstmstream.transport.clients.kafka_python_settings import ADMIN, CONSUMER, KINDS, MEMBER, PRODUCER, READER
from lstmstream.transport.clients.offset_metadata import up_to_end
from lstmstream.transport.decisions import ErrorKind, Problem
from lstmstream.transport.error_codes import PROPERTY_DEFAULTS, broker_problem
from lstmstream.transport.ports import CommittedOffset, MemberInfo, TopicInfo
from lstmstream.transport.security import SecuritySettings, for_kafka_python

log = logging.getLogger(__name__)

_CODE = re.compile(r"\[Error (-?\d+)\]")


class KafkaPythonClient:
    """A Client (see clients/__init__.py)."""

    def __init__(
        self, servers: Sequence[str], group: str, properties: Mapping[str, int | str], security: SecuritySettings
    ) -> None:
        """`properties` under Kafka's dotted names; one that no client object knows is left out, which is logged."""
        given: dict[str, Any] = {"client_id": f"lstmstream-{group}"}
        given |= {name.replace(".", "_"): value for name, value in properties.items()}
        if given.get("compression_type") == "none":
            given["compression_type"] = None
        self._common = {"bootstrap_servers": list(servers), **for_kafka_python(security)}
        if security.tokens is not None:
            self._common["sasl_oauth_token_provider"] = TokenProvider(security.tokens)
        self._security = security
        self._group = group
        self._properties = properties
        self._given = given
        self._turns = Turns()
        self._broker_version: Any = None  # as the last object has found it: to ask again costs the next one 0.1 s
        self._fetch_limit = FetchLimit("fetch_max_bytes", "max_partition_fetch_bytes")
        known = {*KafkaConsumer.DEFAULT_CONFIG, *KafkaProducer.DEFAULT_CONFIG}
        unknown = sorted(name for name in properties if name.replace(".", "_") not in known)
        if unknown:
            log.warning("kafka.properties that kafka-python does not have are left out: %s", ", ".join(unknown))

    def admin(self) -> KafkaPythonAdmin:
        """See Client."""
        given = {name: value for name, value in self._given.items() if name != "request_timeout_ms"}
        return KafkaPythonAdmin(self._make(KafkaAdminClient, {**ADMIN, **given}), self._offsets_consumer)

    def _offsets_consumer(self) -> Any:
        """It never subscribes: for the group's offsets, which the admin client gives with transactions pending."""
        given = {name: value for name, value in self._given.items() if name != "group_instance_id"}
        return self._make(KafkaConsumer, {**CONSUMER, **given, "group_id": self._group})

    def group_consumer(self, topic: str, listener: AssignmentListener) -> KafkaPythonConsumer:
        """See Client."""
        settings = self._fetch_limit.apply({**CONSUMER, **MEMBER, **self._given, "group_id": self._group})
        consumer = self._make(KafkaConsumer, settings)
        try:
            return KafkaPythonConsumer(consumer, topic, listener)
        except BaseException:
            consumer.close(autocommit=False, timeout_ms=1000)
            raise

    def fetch_less(self) -> None:
        """See Client."""
        self._fetch_limit.shrink()

    def reader(self, topic: str, partition: int, start: int) -> KafkaPythonReader:
        """See Client."""
        given = {name: value for name, value in self._given.items() if name != "group_instance_id"}
        consumer = self._make(KafkaConsumer, self._fetch_limit.apply({**CONSUMER, **READER, **given}))
        return KafkaPythonReader(consumer, TopicPartition(topic, partition), start)

    def producer(self, transactional_id: str | None) -> KafkaPythonProducer:
        """See Client."""
        wanted = {**PRODUCER, **self._given, "transactional_id": transactional_id}
        return KafkaPythonProducer(self._make(KafkaProducer, wanted), self._problem)

    def _make(self, kind: Any, wanted: Mapping[str, Any]) -> Any:
        """An object with those of the settings that it has.

        One that does not reach the broker raises, and leaves its I/O thread and its connections behind.
        """
        networks: list[Network] = []

        def network(**settings: Any) -> Network:
            networks.append(
                Network(self._turns, wanted["bootstrap_timeout_ms"] / 1000, settings, secrets=self._secrets)
            )
            return networks[-1]

        wanted = {**wanted, **self._common, "api_version": self._broker_version}
        settings = {name: value for name, value in wanted.items() if name in kind.DEFAULT_CONFIG}
        try:
            made = kind(**settings, kafka_client=network)
        except BaseException as error:
            for left in networks:
                left.close()
            if isinstance(error, AssertionError | ValueError | TypeError | NotImplementedError | ImportError):
                raise kerr.KafkaConfigurationError(str(error)) from error  # how it turns some settings down
            raise
        self._broker_version = networks[-1]._manager.broker_version
        return made

    def _secrets(self) -> dict[str, str]:
        """Settings for a new connection: those of now."""
        return for_kafka_python(self._security.current())

    def problem(self, error: BaseException) -> Problem | None:
        """See Client. Often it is a bare KafkaError with the cause among its arguments."""
        if not isinstance(error, kerr.KafkaError | OSError):
            return None
        problems = [self._problem(cause) for cause in _causes(error)]
        return next((p for p in problems if p.kind is not ErrorKind.TRANSIENT), problems[-1])

    def _problem(self, cause: BaseException) -> Problem:
        for errors, kind in KINDS:
            if isinstance(cause, errors):
                return Problem(kind, self._dotted(str(cause)) if kind is ErrorKind.BAD_SETTINGS else str(cause))
        code = _code(cause)
        if code is not None:
            text = str(cause) if cause.args != (None,) else type(cause).__name__  # it has no words of the broker
            return broker_problem(code, text, self._properties, self._group)
        return Problem(ErrorKind.TRANSIENT, str(cause))

    def _dotted(self, text: str) -> str:
        """The library's names of settings as they stand in the configuration."""
        for name in sorted(PROPERTY_DEFAULTS, key=len, reverse=True):
            text = text.replace(name.replace(".", "_"), name)
        return text


class KafkaPythonAdmin:
    """An Admin (see clients/__init__.py)."""

    def __init__(self, admin: Any, offsets_consumer: Callable[[], Any]) -> None:
        self._admin = admin
        self._offsets_consumer = offsets_consumer
        self._consumer: Any = None

    def describe(self, topics: Sequence[str], timeout_s: float) -> dict[str, TopicInfo]:
        """See Admin."""
        found: dict[str, TopicInfo] = {}
        for topic in self._admin.describe_topics(list(topics)):
            if topic["error_code"] == kerr.UnknownTopicOrPartitionError.errno:
                continue
            if topic["error_code"]:
                error = kerr.for_code(topic["error_code"])
                raise error(f"topic {topic['name']!r}: {error.__name__}")
            partitions = topic["partitions"]
            replicas = min((len(partition["replica_nodes"]) for partition in partitions), default=0)
            allowed = frozenset(topic["authorized_operations"] or ()) or None
            found[topic["name"]] = TopicInfo(str(topic["topic_id"]), len(partitions), {}, replicas, allowed)
        readable = [name for name, info in found.items() if not info.settings_denied]
        if not readable:
            return found
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in readable]
        settings = self._admin.describe_configs(resources, config_filter="all")
        by_topic = settings[ConfigResourceType.TOPIC] if ConfigResourceType.TOPIC in settings else settings["topic"]
        for name in readable:
            if not by_topic.get(name):  # an error of a single topic is told in no other way
                raise kerr.UnknownTopicOrPartitionError(
                    f"the settings of topic {name!r} cannot be read; if this persists, grant the permission"
                    " DESCRIBE_CONFIGS"
                )
            found[name] = found[name]._replace(settings={k: _setting(v) for k, v in by_topic[name].items()})
        return found

    def create(self, topic: str, partitions: int, settings: Mapping[str, str], timeout_s: float) -> None:
        """See Admin."""
        new = {topic: {"num_partitions": partitions, "configs": dict(settings)}}
        with contextlib.suppress(kerr.TopicAlreadyExistsError):
            self._admin.create_topics(new, timeout_ms=int(timeout_s * 1000))

    def grow(self, topic: str, partitions: int, timeout_s: float) -> None:
        """See Admin."""
        with contextlib.suppress(kerr.InvalidPartitionsError):
            self._admin.create_partitions({topic: partitions}, timeout_ms=int(timeout_s * 1000))

    def broker_settings(self, timeout_s: float) -> dict[str, str]:
        """See Admin. The library leaves out what the broker refuses to tell."""
        broker = str(self._admin.describe_cluster()["brokers"][0]["broker_id"])
        found = self._admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, broker)], config_filter="all")
        return {k: _setting(v) for settings in found.values() for k, v in settings.get(broker, {}).items()}

    def beginning_offset(self, topic: str, partition: int, timeout_s: float) -> int:
        """See Admin."""
        return self._offsets(topic, [partition], OffsetSpec.EARLIEST, timeout_s, committed=False)[partition]

    def end_offsets(
        self, topic: str, partitions: Collection[int], timeout_s: float, *, committed: bool
    ) -> dict[int, int]:
        """See Admin."""
        return self._offsets(topic, partitions, OffsetSpec.LATEST, timeout_s, committed=committed)

    def offset_for_time(self, topic: str, partition: int, timestamp_ms: int, timeout_s: float) -> int | None:
        """See Admin."""
        found = self._offsets(topic, [partition], timestamp_ms, timeout_s, committed=False)[partition]
        return None if found < 0 else found

    def _offsets(
        self, topic: str, partitions: Collection[int], spec: Any, timeout_s: float, *, committed: bool
    ) -> dict[int, int]:
        isolation = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        specs = {TopicPartition(topic, partition): spec for partition in partitions}
        if not specs:
            return {}
        found = self._admin.list_partition_offsets(specs, isolation_level=isolation, timeout_ms=int(timeout_s * 1000))
        return {at.partition: int(offset.offset) for at, offset in found.items()}

    def group_members(self, group: str, topic: str, timeout_s: float) -> list[MemberInfo]:
        """See Admin."""
        found = []
        for member in self._admin.describe_groups([group])[group]["members"]:
            assigned = (member["member_assignment"] or {}).get("assigned_partitions", ())
            partitions = [number for one in assigned if one["topic"] == topic for number in one["partitions"]]
            instance = member.get("group_instance_id") or ""
            found.append(
                MemberInfo(member["member_id"], member["client_id"], member["client_host"], partitions, instance)
            )
        return found

    def committed(self, topic: str, partitions: Collection[int], timeout_s: float) -> dict[int, CommittedOffset]:
        """See Admin. The consumer reads committed, so the broker waits for transactions that are pending."""
        if self._consumer is None:
            self._consumer = self._offsets_consumer()
        at = [TopicPartition(topic, partition) for partition in partitions]
        found = self._consumer._coordinator.fetch_committed_offsets(at, timeout_ms=int(timeout_s * 1000))
        return {
            at.partition: CommittedOffset(int(o.offset), up_to_end(o.metadata))
            for at, o in found.items()
            if o.offset >= 0
        }

    def open_transactional_ids(self, timeout_s: float) -> list[str]:
        """See Admin. Each broker knows those that it coordinates.

        The library takes the state's member for a filter too, and sends its name, by which the broker finds nothing.
        """
        found = self._admin.list_transactions(state_filters=[TransactionState.ONGOING.value])
        return [one.transactional_id for of_broker in found.values() for one in of_broker]

    def fence(self, transactional_id: str, timeout_s: float) -> None:
        """See Admin. As a new producer of this id begins, for which the library has no call without such a producer."""
        request = InitProducerIdRequest(
            transactional_id=transactional_id,
            transaction_timeout_ms=1000,
            producer_id=-1,
            producer_epoch=-1,
            max_version=4,
        )

        async def send() -> Any:
            at = await self._admin._find_coordinator_id(transactional_id, key_type=CoordinatorType.TRANSACTION)
            return await self._admin._manager.send(request, node_id=at)

        error = kerr.for_code(self._admin._manager.run(send).error_code)
        # Of an open transaction the broker begins the end, and then has the caller ask again for a producer.
        if error not in (kerr.NoError, kerr.ConcurrentTransactionsError):
            raise error(f"transactional id {transactional_id!r}: {error.__name__}")

    def close(self) -> None:
        """See Admin."""
        if self._consumer is not None:
            self._consumer.close(autocommit=False, timeout_ms=500)
        self._admin.close()


def _code(cause: BaseException) -> int | None:
    """The number of the broker's error. Of some answers the library keeps it in the text only."""
    if isinstance(cause, kerr.BrokerResponseError):
        return cause.errno if isinstance(cause.errno, int) else None
    found = _CODE.search(str(cause)) if type(cause) is kerr.KafkaError else None
    return None if found is None else int(found[1])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and errors among its arguments."""
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        here = queue.pop(0)
        if here is None or any(here is other for other in seen):
            continue
        seen.append(here)
        yield here
        queue += [here.__cause__, *(arg for arg in here.args if isinstance(arg, BaseException))]


def _setting(value: Any) -> str:
    return str(value["value"] if isinstance(value, dict) else value)
