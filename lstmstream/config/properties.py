"""Kafka's own client settings under Kafka's names: those that may be set, and why the others may not."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from lstmstream.config.paths import Keys
from lstmstream.config.types import ByteCount, Milliseconds, Name, PositiveMs, Section, SingleLine

SecondOrMore = Annotated[PositiveMs, Field(ge=1000)]  # in less, a broker may never answer what it limits
_OWNED = "the daemon sets it itself; remove it"
_REFUSED = {
    "group.id": "the consumer group is `name`; set that instead",
    "transactional.id": "the daemon chooses its own, which fences off a second owner; remove it",
    "enable.auto.commit": "offsets are committed together with the predictions; remove it",
    "auto.offset.reset": "it could skip or repeat events silently; set `input.start` for a new group",
    "isolation.level": "only committed records may be read; remove it",
    "acks": "predictions must reach every in-sync replica; remove it",
    "enable.idempotence": "without it a retry writes a record twice; remove it",
    "partition.assignment.strategy": "states move with their partitions, cooperatively; remove it",
    "bootstrap.servers": "it has an option of its own; set `kafka.bootstrap_servers`",
    "max.poll.records": "it has an option of its own; set `batch.max_events`",
    "security.protocol": "it has an option of its own; set `kafka.security.protocol`",
    "sasl.mechanism": "it has an option of its own; set `kafka.security.mechanism`",
    "auto.commit.interval.ms": "offsets are committed together with the predictions; remove it",
    "allow.auto.create.topics": "it has an option of its own; set `create_topics`",
    "check.crcs": _OWNED,
    "retries": "`delivery.timeout.ms` limits the retries; set that instead",
    "max.in.flight.requests.per.connection": _OWNED,
    "key.serializer": _OWNED,
    "value.serializer": _OWNED,
    "key.deserializer": _OWNED,
    "value.deserializer": _OWNED,
}


def _client_id(value: str) -> str:
    """Kafka's protocol has room for 32767 bytes, and a request that is longer is never answered."""
    if len(value) > 255:
        raise ValueError("is too long; use at most 255 characters")
    return value


def refusal(section: Keys, key: str) -> str | None:
    """Why a key of Kafka may not be set in `section`, and what to do instead; None for any other unknown key."""
    if section != ("kafka", "properties"):
        return None
    if key in _REFUSED:
        return f"cannot be set here: {_REFUSED[key]}"
    if key.startswith(("sasl.", "ssl.")):
        return "cannot be set here: `kafka.security` has its own options; use those"
    return None


class Properties(Section):
    """`kafka.properties`: the client settings that may be set, under Kafka's dotted names."""

    client_id: Annotated[SingleLine, AfterValidator(_client_id)] = Field(
        "", alias="client.id", description="Name of this client in the broker's logs: at most 255 characters."
    )
    client_rack: SingleLine = Field(
        "", alias="client.rack", description="Rack of this process, to fetch from a nearby replica."
    )
    client_dns_lookup: Literal["use_all_dns_ips", "resolve_canonical_bootstrap_servers_only"] = Field(
        "use_all_dns_ips", alias="client.dns.lookup", description="How the host names of the brokers are resolved."
    )
    metadata_max_age_ms: PositiveMs = Field(
        30_000, alias="metadata.max.age.ms", description="Maximum age of topic and broker metadata."
    )
    reconnect_backoff_ms: Milliseconds = Field(
        50, alias="reconnect.backoff.ms", description="Wait before reconnecting to a broker."
    )
    reconnect_backoff_max_ms: Milliseconds = Field(
        1_000, alias="reconnect.backoff.max.ms", description="Maximum wait before reconnecting."
    )
    retry_backoff_ms: Milliseconds = Field(5, alias="retry.backoff.ms", description="Wait before retrying a request.")
    request_timeout_ms: PositiveMs = Field(
        5_000, alias="request.timeout.ms", description="Maximum wait for the response to a request."
    )
    connections_max_idle_ms: PositiveMs = Field(
        540_000, alias="connections.max.idle.ms", description="Idle time after which a connection is closed."
    )
    receive_buffer_bytes: ByteCount | None = Field(
        None, alias="receive.buffer.bytes", description="The socket's SO_RCVBUF. Default: the system's."
    )
    send_buffer_bytes: ByteCount | None = Field(
        None, alias="send.buffer.bytes", description="The socket's SO_SNDBUF. Default: the system's."
    )

    session_timeout_ms: PositiveMs = Field(
        45_000,
        alias="session.timeout.ms",
        description="Time without a heartbeat after which the group drops this member.",
    )
    heartbeat_interval_ms: PositiveMs = Field(
        3_000, alias="heartbeat.interval.ms", description="Interval of this member's heartbeats."
    )
    max_poll_interval_ms: PositiveMs = Field(
        60_000,
        alias="max.poll.interval.ms",
        description="Maximum time between polls before the group drops this member.",
    )
    group_instance_id: Name = Field(
        "",
        alias="group.instance.id",
        description="Static name of this member; it keeps its partitions over a quick restart.",
    )
    fetch_min_bytes: ByteCount = Field(1, alias="fetch.min.bytes", description="Minimum bytes per fetch response.")
    fetch_max_bytes: Annotated[ByteCount, Field(ge=1024)] = Field(
        16_777_216, alias="fetch.max.bytes", description="Maximum bytes per fetch response."
    )
    fetch_max_wait_ms: Milliseconds = Field(
        500, alias="fetch.max.wait.ms", description="Maximum time that the broker waits for fetch.min.bytes."
    )
    max_partition_fetch_bytes: ByteCount = Field(
        2_097_152,
        alias="max.partition.fetch.bytes",
        description="Maximum bytes per partition in a fetch response, before they are unpacked.",
    )

    batch_size: ByteCount = Field(1_000_000, alias="batch.size", description="Maximum bytes per batch of records sent.")
    linger_ms: Milliseconds = Field(
        0, alias="linger.ms", description="How long to wait for more records before a batch is sent."
    )
    compression_type: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(
        "none", alias="compression.type", description="Compression of the records written."
    )
    max_request_size: ByteCount = Field(
        100_000_000, alias="max.request.size", description="Maximum bytes per request sent."
    )
    max_block_ms: SecondOrMore = Field(
        10_000, alias="max.block.ms", description="Maximum wait for buffer space or topic metadata when sending."
    )
    delivery_timeout_ms: PositiveMs = Field(
        8_000, alias="delivery.timeout.ms", description="Maximum time to deliver a record before it counts as failed."
    )
    transaction_timeout_ms: SecondOrMore = Field(
        10_000, alias="transaction.timeout.ms", description="Age at which the broker aborts an open transaction."
    )


def given_properties(value: object) -> object:
    """Validate each setting by its own type. Returns those that are set, under Kafka's dotted names."""
    return Properties.model_validate(value).model_dump(by_alias=True, exclude_unset=True)
