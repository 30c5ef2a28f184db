"""A stretch of a topic, read once from its beginning to its end, outside any group: history to learn from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

from lstmstream.errors import BadRecord, CannotServe, Fatal, TryAgain, UnreadableRecords
from lstmstream.formats.timestamps import timestamp_ms
from lstmstream.records import RecordBatch
from lstmstream.transport.clients.choose import open_client
from lstmstream.transport.diagnosis import diagnose
from lstmstream.transport.kafka_admin import KafkaAdmin
from lstmstream.transport.patient_broker import PatientBroker
from lstmstream.transport.security import SecuritySettings

log = logging.getLogger(__name__)


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
        yield from _read(PatientBroker(kafka, say=_say), topic, start, end)
    except UnreadableRecords as error:
        raise CannotServe(
            f"data.topic: {error.problem}. Set data.start to {error.next_offset}, or data.end to {error.first}, to"
            " leave it out"
        ) from error
    except Fatal as error:
        raise CannotServe(f"data.topic: {topic!r} cannot be read: {error}") from error
    finally:
        kafka.close(1.0)


_OPEN = SecuritySettings()


def _say(text: str) -> None:
    log.warning("reading history: %s", text)


def _read(broker: PatientBroker, topic: str, start: str | int, end: str | int) -> Iterator[RecordBatch]:
    described = broker.describe([topic])
    if topic not in described:
        raise CannotServe(f"data.topic: there is no topic {topic!r}")
    partitions = range(described[topic].partitions)
    ends = [_offset(broker, topic, partition, end, "data.end") for partition in partitions]
    starts = [_offset(broker, topic, partition, start, "data.start") for partition in partitions]
    for partition in partitions:
        yield from broker.read(topic, partition, starts[partition], ends[partition])


def _offset(broker: PatientBroker, topic: str, partition: int, bound: str | int, option: str) -> int:
    """The first offset of a partition at or after the bound."""
    first, _ = broker.offset_range(topic, partition)
    last = broker.last_stable_offsets(topic, [partition])[partition]  # beyond it a reader may wait for ever
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
    found = broker.offset_for_time(topic, partition, moment)
    return last if found is None else found
