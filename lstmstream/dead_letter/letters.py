"""Dead letters, read back from their topic, and which of them were replayed."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import orjson

from lstmstream.errors import CannotServe
from lstmstream.formats.timestamps import format_iso
from lstmstream.records import Headers, RecordBatch
from lstmstream.transport.patient_broker import PatientBroker

_ERRORS = "__streams.errors."
_STAGE, _TIMESTAMP = "lstmstream.stage", "lstmstream.timestamp"
_OURS = (*(f"{_ERRORS}{name}" for name in ("exception", "message", "topic", "partition", "offset")), _STAGE, _TIMESTAMP)
REPLAYED_SUFFIX = ".replayed"  # of the topic that says which dead letters were replayed


class Place(NamedTuple):
    """Partition and offset of a dead letter."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}@{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Of `partition@offset`. Raises CannotServe."""
        partition, _, offset = text.partition("@")
        if not (partition.isascii() and partition.isdigit() and offset.isascii() and offset.isdigit()):
            raise CannotServe(f"{text!r} is not a dead letter; name it by partition and offset, as in 0@17")
        return cls(int(partition), int(offset))


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter."""

    place: Place
    source: tuple[str, int, int]  # topic, partition and offset of the event
    stage: str
    reason: str
    key: bytes | None
    value: bytes | None
    timestamp_ms: int  # of the event's record
    headers: Headers  # the event's own
    replayed: bool = False

    @property
    def key_text(self) -> str | None:
        """The key as text; bytes that are not UTF-8 as base64."""
        return None if self.key is None else _text(self.key)

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        topic, partition, offset = self.source
        return {
            "partition": self.place.partition,
            "offset": self.place.offset,
            "timestamp": format_iso(self.timestamp_ms) if self.timestamp_ms >= 0 else None,
            "stage": self.stage,
            "reason": self.reason,
            "replayed": self.replayed,
            "source": {"topic": topic, "partition": partition, "offset": offset},
            **_bytes_member("key", self.key),
            **_bytes_member("value", self.value),
            "headers": [{"name": name, **_bytes_member("value", value)} for name, value in self.headers],
        }


class Filter(NamedTuple):
    """Which dead letters are meant; those left at None do not matter."""

    stage: str | None = None
    reason: str | None = None  # part of it, in any case
    key: str | None = None
    since_ms: int | None = None  # by the timestamp of the event's record
    until_ms: int | None = None
    places: frozenset[Place] = frozenset()  # empty: any

    def takes(self, letter: Letter) -> bool:
        """Whether it is meant."""
        return (
            (not self.places or letter.place in self.places)
            and (self.stage is None or letter.stage == self.stage)
            and (self.reason is None or self.reason.casefold() in letter.reason.casefold())
            and (self.key is None or letter.key_text == self.key)
            and (self.since_ms is None or letter.timestamp_ms >= self.since_ms)
            and (self.until_ms is None or letter.timestamp_ms < self.until_ms)
        )


def read_letters(broker: PatientBroker, topic: str, filter_: Filter) -> Iterator[Letter]:
    """The dead letters that are meant, partition by partition. Raises CannotServe.

    Records that others wrote to the topic are passed over.
    """
    found = broker.describe([topic, topic + REPLAYED_SUFFIX])
    if topic not in found:
        raise CannotServe(f"dead_letter.topic: topic {topic!r} does not exist; the daemon creates it when it starts")
    replayed = read_replayed(broker, topic, found[topic].topic_id) if topic + REPLAYED_SUFFIX in found else set()
    # The ends are fixed first: an event that is replayed meanwhile may become a dead letter again.
    for partition, end in broker.last_stable_offsets(topic, range(found[topic].partitions)).items():
        start, _ = broker.offset_range(topic, partition)
        for records in broker.read(topic, partition, start, end):
            for letter in letters_of(records, replayed):
                if filter_.takes(letter):
                    yield letter


def letters_of(records: RecordBatch, replayed: set[Place]) -> Iterator[Letter]:
    """Those among the records."""
    for row, headers in enumerate(records.headers):
        place = Place(int(records.partitions[row]), int(records.offsets[row]))
        letter = _letter(place, records.keys[row], records.values[row], int(records.timestamps[row]), headers)
        if letter is not None:
            yield replace(letter, replayed=place in replayed)


def _letter(place: Place, key: bytes | None, value: bytes | None, timestamp_ms: int, headers: Headers) -> Letter | None:
    # The daemon writes its headers last: an event may have brought others of these names.
    first = max((i for i, (name, _) in enumerate(headers) if name == _OURS[0]), default=None)
    if first is None:
        return None
    about = {name: (text or b"").decode("utf-8", "replace") for name, text in headers[first:] if name in _OURS}
    try:
        source = (about[f"{_ERRORS}topic"], int(about[f"{_ERRORS}partition"]), int(about[f"{_ERRORS}offset"]))
        return Letter(
            place,
            source,
            about[_STAGE],
            about[f"{_ERRORS}message"],
            key,
            value,
            int(about.get(_TIMESTAMP, timestamp_ms)),
            list(headers[:first]),
        )
    except (KeyError, ValueError):
        return None


def replayed_key(topic_id: str, place: Place) -> bytes:
    """The key of the record that says that a dead letter was replayed.

    With the topic's id: the offsets of a topic that was made again begin at 0 once more.
    """
    return orjson.dumps([topic_id, place.partition, place.offset])


def read_replayed(broker: PatientBroker, topic: str, topic_id: str) -> set[Place]:
    """Which dead letters of a topic were replayed."""
    name = topic + REPLAYED_SUFFIX
    start, end = broker.offset_range(name, 0)  # up to the high watermark: a transaction that ends just now counts
    places = set()
    for records in broker.read(name, 0, start, end):
        places |= {place for key in records.keys if (place := _replayed_place(key, topic_id)) is not None}
    return places


def _replayed_place(key: bytes | None, topic_id: str) -> Place | None:
    """What a `replayed_key` names; None of another topic of that name, and of a record that others wrote."""
    try:
        of, partition, offset = orjson.loads(key or b"")
    except (ValueError, TypeError):
        return None
    return Place(partition, offset) if of == topic_id else None


def _bytes_member(name: str, value: bytes | None) -> dict[str, str | None]:
    if value is None:
        return {name: None}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()
