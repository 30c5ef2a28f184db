"""A stretch of a topic, read once from its beginning to its end, outside any group: history to learn from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import kafka.errors as kerr
import numpy as np
from kafka import KafkaConsumer, TopicPartition

from lstmstream.errors import BadRecord, CannotServe
from lstmstream.serve.decode import timestamp_ms
from lstmstream.serve.records import RecordBatch
from lstmstream.transport import unpack

_SILENCE_S = 60.0  # without a record, though the end is not reached: the broker is gone
_SETTINGS = {
    "isolation_level": "read_committed",
    "enable_auto_commit": False,
    "auto_offset_reset": "earliest",
    "allow_auto_create_topics": False,
    "bootstrap_timeout_ms": 10_000,
    "max_partition_fetch_bytes": 4 << 20,
}


def read_topic(
    servers: Sequence[str],
    topic: str,
    start: str | int,
    end: str | int,
    *,
    properties: Mapping[str, Any] | None = None,
    security: Mapping[str, Any] | None = None,
) -> Iterator[RecordBatch]:
    """The committed records from `start` to before `end`: `earliest`, `latest`, an offset, or an ISO 8601 time.

    An offset holds for every partition. The end is fixed when reading starts. Raises CannotServe.
    """
    unpack.install()
    given = {name.replace(".", "_"): value for name, value in (properties or {}).items()}
    wanted = {name: value for name, value in given.items() if name in KafkaConsumer.DEFAULT_CONFIG}
    try:
        consumer = KafkaConsumer(bootstrap_servers=list(servers), **{**wanted, **_SETTINGS, **(security or {})})
    except kerr.KafkaError as error:
        raise CannotServe(f"kafka.bootstrap_servers: {', '.join(servers)} cannot be reached ({error})") from error
    try:
        yield from _read(consumer, topic, start, end)
    except kerr.KafkaError as error:
        raise CannotServe(f"data.topic: {topic!r} cannot be read: {type(error).__name__}: {error}") from error
    finally:
        consumer.close()


def _read(consumer: Any, topic: str, start: str | int, end: str | int) -> Iterator[RecordBatch]:
    partitions = consumer.partitions_for_topic(topic)
    if not partitions:
        raise CannotServe(f"data.topic: there is no topic {topic!r}")
    places = [TopicPartition(topic, number) for number in sorted(partitions)]
    consumer.assign(places)
    ends = _offsets(consumer, places, end, "data.end")
    for place, offset in _offsets(consumer, places, start, "data.start").items():
        consumer.seek(place, offset)
    heard = time.monotonic()
    left = {place for place in places if consumer.position(place) < ends[place]}
    while left:
        polled = consumer.poll(timeout_ms=500, max_records=5000)
        if polled:
            heard = time.monotonic()
        elif time.monotonic() - heard > _SILENCE_S:
            raise CannotServe(f"data.topic: {topic!r} gave no record for {_SILENCE_S:g} s; is the broker well?")
        for place, records in polled.items():
            wanted = [record for record in records if record.offset < ends[place]]
            if wanted:
                yield _batch(place, wanted)
        for place in [place for place in left if consumer.position(place) >= ends[place]]:
            left.discard(place)
            consumer.pause(place)


def _offsets(consumer: Any, places: Sequence[Any], bound: str | int, option: str) -> dict[Any, int]:
    """The first offset at or after the bound, by partition."""
    first, last = consumer.beginning_offsets(places), consumer.end_offsets(places)
    if bound == "earliest":
        return {place: int(first[place]) for place in places}
    if bound == "latest":
        return {place: int(last[place]) for place in places}
    if isinstance(bound, int):
        return {place: min(max(bound, int(first[place])), int(last[place])) for place in places}
    try:
        moment = timestamp_ms(bound, option)
    except BadRecord as bad:
        raise CannotServe(f"{option}: {bound!r} is not earliest, latest, an offset or an ISO 8601 time") from bad
    found = consumer.offsets_for_times(dict.fromkeys(places, moment))
    return {place: int(last[place]) if found[place] is None else int(found[place].offset) for place in places}


def _batch(place: Any, records: Sequence[Any]) -> RecordBatch:
    count = len(records)
    return RecordBatch(
        topic=place.topic,
        partitions=np.full(count, place.partition, np.int64),
        offsets=np.array([record.offset for record in records], np.int64),
        timestamps=np.array([record.timestamp for record in records], np.int64),
        keys=[record.key for record in records],
        values=[record.value for record in records],
        headers=[()] * count,
    )
