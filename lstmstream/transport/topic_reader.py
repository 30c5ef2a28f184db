"""A stretch of a topic, read once from its beginning to its end, outside any group: history to learn from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from lstmstream.errors import BadRecord, CannotServe, Fatal, TryAgain, UnreadableRecords
from lstmstream.formats.timestamps import timestamp_ms
from lstmstream.records import RecordBatch
from lstmstream.transport.clients.choose import open_client
from lstmstream.transport.diagnosis import diagnose
from lstmstream.transport.kafka_admin import KafkaAdmin
from lstmstream.transport.ports import LogReader
from lstmstream.transport.security import SecuritySettings

_SILENCE_S = 60.0  # without a step forward, though the end is not reached: the broker is gone


def read_topic(
    servers: Sequence[str],
    topic: str,
    start: str | int,
    end: str | int,
    *,
    properties: Mapping[str, int | str] | None = None,
    security: SecuritySettings | None = None,
    client: str = "auto",
) -> Iterator[RecordBatch]:
    """The committed records from `start` to before `end`: `earliest`, `latest`, an offset, or an ISO 8601 time.

    One partition after the other. An offset holds for every partition. The ends are fixed when reading starts.
    Raises CannotServe.
    """
    library = open_client(
        client, servers=servers, group="lstmstream-history", properties=properties or {}, security=security or _OPEN
    )
    kafka = KafkaAdmin(library, diagnose=lambda: diagnose(servers, security or _OPEN))
    try:
        try:
            kafka.connect()
        except TryAgain as error:
            raise CannotServe(f"kafka.bootstrap_servers: {', '.join(servers)} cannot be reached ({error})") from error
        yield from _read(kafka, topic, start, end)
    except UnreadableRecords as error:
        raise CannotServe(
            f"data.topic: {error.problem}. Set data.start to {error.next_offset}, or data.end to {error.first}, to"
            " leave it out"
        ) from error
    except (TryAgain, Fatal) as error:
        raise CannotServe(f"data.topic: {topic!r} cannot be read: {error}") from error
    finally:
        kafka.close(1.0)


_OPEN = SecuritySettings()


def _read(kafka: KafkaAdmin, topic: str, start: str | int, end: str | int) -> Iterator[RecordBatch]:
    described = kafka.describe([topic])
    if topic not in described:
        raise CannotServe(f"data.topic: there is no topic {topic!r}")
    partitions = range(described[topic].partitions)
    ends = [_offset(kafka, topic, partition, end, "data.end") for partition in partitions]
    starts = [_offset(kafka, topic, partition, start, "data.start") for partition in partitions]
    for partition in partitions:
        if starts[partition] < ends[partition]:
            reader = kafka.open_reader(topic, partition, starts[partition], ends[partition])
            try:
                yield from _read_all(reader, topic)
            finally:
                reader.close()


def _read_all(reader: LogReader, topic: str) -> Iterator[RecordBatch]:
    moved = time.monotonic()
    while reader.position < reader.end:
        before = reader.position
        records = reader.next(0.5)
        if reader.position > before:
            moved = time.monotonic()
        elif time.monotonic() - moved > _SILENCE_S:
            raise CannotServe(f"data.topic: {topic!r} returned no records for {_SILENCE_S:g} s; is the broker healthy?")
        if len(records):
            yield records


def _offset(kafka: KafkaAdmin, topic: str, partition: int, bound: str | int, option: str) -> int:
    """The first offset of a partition at or after the bound."""
    first, _ = kafka.offset_range(topic, partition)
    last = kafka.last_stable_offsets(topic, [partition])[partition]  # beyond it a reader may wait for ever
    if bound == "earliest":
        return first
    if bound == "latest":
        return last
    if isinstance(bound, int):
        return min(max(bound, first), last)
    try:
        moment = timestamp_ms(bound, option)
    except BadRecord as bad:
        raise CannotServe(f"{option}: {bound!r} is not earliest, latest, an offset or an ISO 8601 time") from bad
    found = kafka.offset_for_time(topic, partition, moment)
    return last if found is None else found
