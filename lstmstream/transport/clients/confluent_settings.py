"""librdkafka's names and values: of which kind its own errors are, and which settings each of its objects gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError

from lstmstream.transport.decisions import ErrorKind

# Errors that the library raises by itself. The broker's are in transport/error_codes.py; anything else is TRANSIENT.
KINDS: Mapping[int, ErrorKind] = {
    KafkaError._FENCED: ErrorKind.PRODUCER_FENCED,
    KafkaError._INVALID_DIFFERENT_RECORD: ErrorKind.RECORD_REFUSED,  # in one batch with the one that is refused
    KafkaError._AUTO_OFFSET_RESET: ErrorKind.RECORDS_GONE,
    KafkaError._LOG_TRUNCATION: ErrorKind.RECORDS_GONE,
    KafkaError._BAD_MSG: ErrorKind.RECORD_UNREADABLE,
    KafkaError._BAD_COMPRESSION: ErrorKind.RECORD_UNREADABLE,
    KafkaError._AUTHENTICATION: ErrorKind.BAD_CREDENTIALS,
    KafkaError._INVALID_ARG: ErrorKind.BAD_SETTINGS,
    KafkaError._UNSUPPORTED_FEATURE: ErrorKind.BAD_SETTINGS,
    KafkaError._NOT_IMPLEMENTED: ErrorKind.BAD_SETTINGS,
}

# Kafka's names where librdkafka has others; None: it has no such property.
OTHER_NAMES: Mapping[str, str | None] = {
    "metadata.max.age.ms": "topic.metadata.refresh.interval.ms",
    "receive.buffer.bytes": "socket.receive.buffer.bytes",
    "send.buffer.bytes": "socket.send.buffer.bytes",
    "request.timeout.ms": "socket.timeout.ms",
    "fetch.max.wait.ms": "fetch.wait.max.ms",
    "max.request.size": "message.max.bytes",
    "delivery.timeout.ms": "message.timeout.ms",
    "max.block.ms": None,
}
OF_CONSUMER = {
    "fetch.wait.max.ms",
    "fetch.min.bytes",
    "fetch.max.bytes",
    "max.partition.fetch.bytes",
    "client.rack",
}
OF_MEMBER = {"session.timeout.ms", "heartbeat.interval.ms", "max.poll.interval.ms", "group.instance.id"}
OF_PRODUCER = {
    "message.max.bytes",
    "message.timeout.ms",
    "transaction.timeout.ms",
    "batch.size",
    "linger.ms",
    "compression.type",
    "retry.backoff.ms",
}

COMMON: dict[str, Any] = {
    "reconnect.backoff.max.ms": 1000,
    "topic.metadata.refresh.interval.ms": 30_000,
    "metadata.recovery.rebootstrap.trigger.ms": 20_000,  # then it asks at bootstrap.servers again
}
CONSUMER: dict[str, Any] = {
    "isolation.level": "read_committed",
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "allow.auto.create.topics": False,
    "check.crcs": True,
    "enable.partition.eof": True,  # the only word on control records that were passed over
    "message.max.bytes": 1000,  # of what is written; the library demands fetch.max.bytes to be larger
    "fetch.max.bytes": 16 << 20,
    "max.partition.fetch.bytes": 2 << 20,
    "queued.max.messages.kbytes": 32 << 10,  # prefetch, of all partitions together
    "fetch.wait.max.ms": 100,
    "fetch.error.backoff.ms": 100,
    "fetch.queue.backoff.ms": 2,  # a second of pause when the queue is full otherwise: a quarter of the throughput
}
READER: dict[str, Any] = {"fetch.wait.max.ms": 10}  # so long does the end of a partition keep a restore waiting
MEMBER: dict[str, Any] = {"partition.assignment.strategy": "cooperative-sticky", "max.poll.interval.ms": 60_000}
PRODUCER: dict[str, Any] = {
    "acks": "all",
    "enable.idempotence": True,
    "allow.auto.create.topics": False,
    "transaction.timeout.ms": 10_000,
    "message.timeout.ms": 8_000,
    "socket.timeout.ms": 5_000,
    "retry.backoff.ms": 5,
    # Just below the default of max.message.bytes. While records wait for the answer to the batch before theirs, the
    # library's thread goes round and round, at the cost of a quarter of a core.
    "batch.size": 1_000_000,
    "linger.ms": 5,  # a flush does not wait for it
    "message.max.bytes": 100_000_000,  # the topic's max.message.bytes decides
    "queue.buffering.max.messages": 0,  # no limit: a micro-batch is one
    "queue.buffering.max.kbytes": 2_000_000,
    "delivery.report.only.error": True,  # no call for each record that arrives
}
