"""Which of kafka-python's own errors is of which kind, and the settings of its objects."""

from __future__ import annotations

from typing import Any

import kafka.errors as kerr
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from lstmstream.transport.decisions import ErrorKind
from lstmstream.transport.decompression import BatchTooLargeError

# Errors that the library raises by itself: the first row that an error, or what it was raised from, is an instance of.
# The broker's are in transport/error_codes.py, by `errno`; anything else is TRANSIENT.
KINDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], ErrorKind], ...] = (
    (BatchTooLargeError, ErrorKind.RECORD_UNREADABLE),
    ((kerr.LogTruncationError, kerr.NoOffsetForPartitionError), ErrorKind.RECORDS_GONE),
    ((kerr.KafkaConfigurationError, kerr.UnsupportedCodecError), ErrorKind.BAD_SETTINGS),
)

NETWORK: dict[str, Any] = {
    "reconnect_backoff_max_ms": 1000,
    "bootstrap_timeout_ms": 5000,
    "metadata_max_age_ms": 30_000,
    "metrics_enabled": False,  # nobody reads the library's own, and its network threads spend much time on them
}
CONSUMER: dict[str, Any] = {
    **NETWORK,
    "isolation_level": "read_committed",
    "enable_auto_commit": False,
    "auto_offset_reset": "none",
    "allow_auto_create_topics": False,
    "check_crcs": True,
    "fetch_max_bytes": 16 << 20,  # prefetch holds as much per broker, paused partitions too
    "max_partition_fetch_bytes": 2 << 20,
    "fetch_max_wait_ms": 500,  # of an idle daemon it is most of the work
}
READER: dict[str, Any] = {"retry_backoff_ms": 5}  # of the partition's leader: each restore opens two readers
MEMBER: dict[str, Any] = {
    "partition_assignment_strategy": [CooperativeStickyAssignor],
    "max_poll_interval_ms": 60_000,
}
PRODUCER: dict[str, Any] = {
    **NETWORK,
    "acks": "all",
    "enable_idempotence": True,
    "allow_auto_create_topics": False,
    "transaction_timeout_ms": 10_000,
    "retry_backoff_ms": 5,  # sleeps in the commit path
    "request_timeout_ms": 5_000,
    "delivery_timeout_ms": 8_000,
    "max_block_ms": 10_000,
    "batch_size": 1_000_000,  # just below the default of max.message.bytes: fewer requests
    "linger_ms": 0,
    "max_request_size": 100_000_000,  # the topic's max.message.bytes decides
}
ADMIN: dict[str, Any] = {**NETWORK, "request_timeout_ms": 10_000}
