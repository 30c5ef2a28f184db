"""Kafka's own settings, under Kafka's names: those that may safely differ, and why the others may not."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lstmstream.config.values import ByteCount, Line, Milliseconds, Name, PositiveMs, Section

_OURS = "the daemon sets this itself; take it away"
REFUSED = {
    "group.id": "the group is `name`; set that",
    "transactional.id": "the daemon makes its own, which the fence against a second owner needs; take it away",
    "enable.auto.commit": "offsets are committed with the answers, never by the clock; take it away",
    "auto.offset.reset": "it could skip or repeat events without a word; set `input.start` for a new group",
    "isolation.level": "only committed records may be read; take it away",
    "acks": "answers must reach every in-sync copy; take it away",
    "enable.idempotence": "without it a retry writes twice; take it away",
    "partition.assignment.strategy": "states move with their partitions, cooperatively; take it away",
    "bootstrap.servers": "set `kafka.bootstrap_servers`",
    "max.poll.records": "set `batch.max_events`",
    "security.protocol": "set `kafka.security.protocol`",
    "sasl.mechanism": "set `kafka.security.mechanism`",
    "auto.commit.interval.ms": "offsets are committed with the answers, never by the clock; take it away",
    "allow.auto.create.topics": "set `create_topics`",
    "check.crcs": _OURS,
    "retries": "`delivery.timeout.ms` bounds the retries; set that",
    "max.in.flight.requests.per.connection": _OURS,
    "key.serializer": _OURS,
    "value.serializer": _OURS,
    "key.deserializer": _OURS,
    "value.deserializer": _OURS,
}


class Properties(Section):
    """`kafka.properties`: Kafka's own settings under Kafka's names, for those that may safely differ."""

    client_id: Line = Field("", alias="client.id", description="Name of this client in the broker's logs.")
    client_rack: Line = Field("", alias="client.rack", description="Rack of this process, to fetch from a near copy.")
    client_dns_lookup: Literal["use_all_dns_ips", "resolve_canonical_bootstrap_servers_only"] = Field(
        "use_all_dns_ips", alias="client.dns.lookup", description="How the brokers' host names are resolved."
    )
    metadata_max_age_ms: PositiveMs = Field(
        30_000, alias="metadata.max.age.ms", description="Age at which the list of topics and brokers is read again."
    )
    reconnect_backoff_ms: Milliseconds = Field(
        50, alias="reconnect.backoff.ms", description="Wait before connecting to a broker again."
    )
    reconnect_backoff_max_ms: Milliseconds = Field(
        1_000, alias="reconnect.backoff.max.ms", description="The most that this wait grows to."
    )
    retry_backoff_ms: Milliseconds = Field(5, alias="retry.backoff.ms", description="Wait before a request is retried.")
    request_timeout_ms: PositiveMs = Field(
        5_000, alias="request.timeout.ms", description="Longest wait for the answer to one request."
    )
    connections_max_idle_ms: PositiveMs = Field(
        540_000, alias="connections.max.idle.ms", description="Idle time after which a connection is closed."
    )
    receive_buffer_bytes: ByteCount | None = Field(
        None, alias="receive.buffer.bytes", description="The socket's SO_RCVBUF; the system's choice if left out."
    )
    send_buffer_bytes: ByteCount | None = Field(
        None, alias="send.buffer.bytes", description="The socket's SO_SNDBUF; the system's choice if left out."
    )

    session_timeout_ms: PositiveMs = Field(
        45_000, alias="session.timeout.ms", description="Silence after which the group drops this member."
    )
    heartbeat_interval_ms: PositiveMs = Field(
        3_000, alias="heartbeat.interval.ms", description="How often this member tells the group that it lives."
    )
    max_poll_interval_ms: PositiveMs = Field(
        60_000, alias="max.poll.interval.ms", description="Longest time between polls before the group drops it."
    )
    group_instance_id: Name = Field(
        "", alias="group.instance.id", description="Fixed name of this member: a quick restart keeps its partitions."
    )
    fetch_min_bytes: ByteCount = Field(1, alias="fetch.min.bytes", description="Bytes the broker waits to gather.")
    fetch_max_bytes: ByteCount = Field(
        16_777_216, alias="fetch.max.bytes", description="The most bytes of one answer from a broker."
    )
    fetch_max_wait_ms: Milliseconds = Field(
        100, alias="fetch.max.wait.ms", description="The longest the broker waits to gather fetch.min.bytes."
    )
    max_partition_fetch_bytes: ByteCount = Field(
        2_097_152, alias="max.partition.fetch.bytes", description="The most bytes of one partition in one answer."
    )

    batch_size: ByteCount = Field(
        262_144, alias="batch.size", description="The most bytes of one batch of records that is sent."
    )
    linger_ms: Milliseconds = Field(0, alias="linger.ms", description="Wait for more records before a batch is sent.")
    compression_type: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        "none", alias="compression.type", description="Compression of what is written."
    )
    max_request_size: ByteCount = Field(
        100_000_000, alias="max.request.size", description="The most bytes of one request that is sent."
    )
    max_block_ms: PositiveMs = Field(
        10_000, alias="max.block.ms", description="Longest wait for room or for a topic's whereabouts when sending."
    )
    delivery_timeout_ms: PositiveMs = Field(
        8_000, alias="delivery.timeout.ms", description="Longest time until a record that was sent counts as failed."
    )
    transaction_timeout_ms: PositiveMs = Field(
        10_000, alias="transaction.timeout.ms", description="Age at which the broker aborts an open transaction."
    )


def given_properties(value: object) -> object:
    """Those of `value`, by Kafka's dotted names; each with its own type."""
    return Properties.model_validate(value).model_dump(by_alias=True, exclude_unset=True)
