"""How a published record differs from the one that its event should have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lstmstream.records import Headers
from lstmstream.transport.partitioner import partition_of
from lstmstream.verify.published import DeadLetterHeaders, Source, differences
from lstmstream.verify.window import NO_HEADERS, STAGES, Row, Window, header_hash

PREDICTION, ALERT, DEAD_LETTER = "prediction", "alert", "dead letter"
ENDED, SUMMARY = "end record", "summary"  # in the topic of the alerts
NOTICES = (ENDED, SUMMARY)
Difference = tuple[str, str | None, Any, Any]  # what it is about; the field, what it should be, and what it is


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the daemon was told of its outputs."""

    input_topic: str
    partitions: dict[str, int]  # of the topic of each kind of record
    hashed: frozenset[str]  # kinds whose partition is murmur2 of the key
    alerts: bool  # whether there is a topic for them
    exactly_once: bool = True
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """One record that was published."""

    record: str
    source: Source
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def place_of(found: Found, key: bytes | None, outputs: Outputs) -> int:
    """The partition where the record belongs."""
    record = ALERT if found.record in NOTICES else found.record
    if record in outputs.hashed:
        return partition_of(key, outputs.partitions[record])
    return found.source.partition


def prediction_differences(
    found: Found, window: Window, row: int, wanted: bytes, outputs: Outputs
) -> Iterator[Difference]:
    """Those of a prediction or an alert; `wanted` is the value that it should have."""
    members = list(differences(wanted, found.value, outputs.tolerance))
    for name, want, have in members:
        yield "the value differs", name, want, have
    if not members and not outputs.tolerance and found.value != wanted:
        yield "the text differs", "value", _text(wanted), _text(found.value)
    key, timestamp_ms = window.record_keys[row], window.timestamps[row]
    if found.timestamp_ms != timestamp_ms:
        yield "the record differs", "record timestamp", timestamp_ms, found.timestamp_ms
    if found.key != key:
        yield "the record differs", "record key", _text(key), _text(found.key)
    yield from _wrong_partition(found, place_of(found, key, outputs))
    yield from _wrong_headers(found.headers, window.carried_hash(row))


def notice_differences(found: Found, window: Window, row: int, wanted: bytes, outputs: Outputs) -> Iterator[Difference]:
    """Those of an end record or a summary; the key of a summary names the partition of the input."""
    if found.value != wanted:
        yield "the text differs", "value", _text(wanted), _text(found.value)
    of_event = found.record == ENDED
    key = window.record_keys[row] if of_event else f"{found.source.topic}-{found.source.partition}".encode()
    if found.timestamp_ms != window.timestamps[row]:
        yield "the record differs", "record timestamp", window.timestamps[row], found.timestamp_ms
    if found.key != key:
        yield "the record differs", "record key", _text(key), _text(found.key)
    yield from _wrong_partition(found, place_of(found, key, outputs))
    yield from _wrong_headers(found.headers, window.carried_hash(row) if of_event else NO_HEADERS)


def dead_letter_differences(
    found: Found, said: DeadLetterHeaders, window: Window, row: int, outputs: Outputs
) -> Iterator[Difference]:
    """Stage, key, value, timestamp and headers; a dead letter that its topic refuses may have less."""
    stage = STAGES.get(Row(window.kinds[row]))
    if stage is None and (said.stage != "publish" or window.kinds[row] == Row.SILENT):
        right = "it should have no answer" if window.kinds[row] == Row.SILENT else "it should be a prediction"
        yield right, "stage", None, said.stage
    elif stage not in (None, said.stage):
        yield "the stage differs", "stage", stage, said.stage
    reduced, timestamp_ms, key = said.timestamp is not None, window.timestamps[row], window.input_keys[row]
    original = said.timestamp if reduced else str(found.timestamp_ms)
    if str(timestamp_ms) != original:
        yield "the record differs", "record timestamp", str(timestamp_ms), original
    made = f"{found.source.topic}-{found.source.partition}-{found.source.offset}".encode()
    if found.key != key and not (reduced and found.key == made):
        yield "the record differs", "record key", _text(key), _text(found.key)
    yield from _wrong_partition(found, place_of(found, found.key, outputs))
    if hash(found.value) != window.value_hashes[row] and not (reduced and found.value is None):
        yield "the record differs", "value", "that of the event", _text(found.value)
    if not (reduced and not said.others):
        yield from _wrong_headers(said.others, window.header_hashes[row])


def _wrong_partition(found: Found, place: int) -> Iterator[Difference]:
    if found.partition != place:
        yield "the record differs", "record partition", place, found.partition


def _wrong_headers(headers: Headers, wanted: int) -> Iterator[Difference]:
    if header_hash(headers) != wanted:
        shown = [[name, _text(value)] for name, value in headers]
        yield "the record differs", "headers", "those of the event", shown


def _text(value: bytes | None) -> str | None:
    return None if value is None else value[:200].decode("utf-8", "backslashreplace")
