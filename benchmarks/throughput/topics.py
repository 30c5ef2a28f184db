"""Topics on the benchmark's own broker: made, watched, read, deleted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.cimpl import NewTopic

from benchmarks.throughput.workload import LOG_LEVEL

REQUEST_S = 15.0

# For a moment after a topic was made, on a busy machine for longer.
_OF_NEW_TOPICS = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)
_LATEST: Any = OffsetSpec.latest()  # type: ignore[no-untyped-call]


class Topics:
    """The topics of one broker; each has the same number of partitions."""

    def __init__(self, servers: str, partitions: int) -> None:
        self.servers = servers
        self._partitions = partitions
        self._admin = AdminClient({"bootstrap.servers": servers, "log_level": LOG_LEVEL})

    def create(self, name: str) -> None:
        """Make a topic."""
        self._await(self._admin.create_topics([NewTopic(name, self._partitions, 1)], request_timeout=REQUEST_S))

    def delete_all_but(self, kept: str) -> None:
        """Delete what an app and its library made, so that each app finds the same broker."""
        names = set(self._admin.list_topics(timeout=REQUEST_S).topics)
        left = sorted(name for name in names if name != kept and not name.startswith("__"))
        if left:
            self._await(self._admin.delete_topics(left, request_timeout=REQUEST_S))

    def committed_end(self, name: str) -> int:
        """The sum over the partitions of the offset up to which a read_committed reader sees the topic."""
        return sum(self.committed_ends(name).values())

    def committed_ends(self, name: str) -> Mapping[int, int]:
        """The same by partition."""
        deadline = time.monotonic() + REQUEST_S
        while True:
            try:
                return self._ask_ends(name)
            except KafkaException as error:
                new = error.args[0].code() in _OF_NEW_TOPICS
                if not new or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _ask_ends(self, name: str) -> Mapping[int, int]:
        latest = {TopicPartition(name, number): _LATEST for number in range(self._partitions)}
        futures = self._admin.list_offsets(
            latest, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=REQUEST_S
        )
        return {at.partition: int(future.result().offset) for at, future in futures.items()}

    def reader(self, name: str, settings: Mapping[str, Any], offsets: Mapping[int, int] | None = None) -> Consumer:
        """A read_committed reader of the whole topic, from these offsets or the beginning."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.servers,
                "log_level": LOG_LEVEL,
                "group.id": "throughput-reader",  # never joined: the partitions are assigned
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                **settings,
            }
        )
        places = [TopicPartition(name, number, (offsets or {}).get(number, 0)) for number in range(self._partitions)]
        consumer.assign(places)
        return consumer

    def read(self, name: str, records: int, timeout_s: float) -> Iterator[Any]:
        """The messages from the beginning on: about so many, or what there is, or what comes in this time."""
        consumer = self.reader(name, {"enable.partition.eof": True})
        ended: set[int | None] = set()
        deadline = time.monotonic() + timeout_s
        try:
            while records > 0 and len(ended) < self._partitions and time.monotonic() < deadline:
                for message in consumer.consume(10_000, 0.2):
                    error = message.error()
                    if error is None:
                        records -= 1
                        yield message
                    elif error.code() == KafkaError._PARTITION_EOF:
                        ended.add(message.partition())
                    else:
                        raise RuntimeError(str(error))
        finally:
            consumer.close()

    @staticmethod
    def _await(futures: Mapping[str, Any]) -> None:
        for future in futures.values():
            future.result(REQUEST_S)
