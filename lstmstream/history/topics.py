"""A range of a topic into a JSONL file with the fields that training reads.

A record that the daemon would send to the dead letter topic, by the same decoder, is left out and counted.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from lstmstream.config.schema import Kafka
from lstmstream.errors import CannotServe
from lstmstream.formats.event_reader import EventReader
from lstmstream.formats.json_documents import ABSENT, Document, locate
from lstmstream.history.events import disk_of
from lstmstream.history.fields import Fields
from lstmstream.model.card import Card, Feature, StateSpec
from lstmstream.serve.decode import Decoder
from lstmstream.transport.schema_registry import read_patiently
from lstmstream.transport.security import security_settings
from lstmstream.transport.topic_reader import read_topic

KEY, TIMESTAMP = "record key", "record timestamp"  # fields of the file that hold the record's own


@dataclass(frozen=True, slots=True)
class TopicRange:
    """Which records of a topic are read, by offset or by ISO 8601 time."""

    topic: str
    start: str | int = "earliest"
    end: str | int = "latest"  # not included


def fetch_topic(
    kafka: Kafka, source: TopicRange, fields: Fields, file: Path, *, folder: Path, reader: EventReader | None = None
) -> tuple[Fields, list[str]]:
    """Writes the records to `file` as JSON lines; relative paths of the security settings start from `folder`.

    `reader`: what makes JSON objects of the records; None where they are.

    Returns the fields under their names in the file, and a warning where records were left out. Raises CannotServe
    where the topic cannot be read or has no usable record in the range.
    """
    widths = zip(fields.numbers, fields.widths, strict=True)
    numbers = tuple(Feature(name, "number", size=width) for name, width in widths)
    categories = tuple(Feature(name, "category", buckets=1) for name in fields.categories)
    card = Card("history", "1", "classify", (*numbers, *categories), StateSpec(1, (0.0,), ()), ())
    decoder = Decoder(card, key=fields.key, timestamp=fields.timestamp, silent=fields.silent)
    rejected, first_rejected, count = 0, "", 0
    with file.open("wb") as out:
        for raw in read_topic(
            kafka.bootstrap_servers,
            source.topic,
            source.start,
            source.end,
            properties=kafka.properties,
            security=security_settings(kafka.security, folder),
            client=kafka.client,
        ):
            records = read_patiently(reader, raw)
            observations, dead_letters, documents, *_ = decoder.decode(records)
            for letter in dead_letters:
                partition, offset = records.partitions[letter.index], records.offsets[letter.index]
                first_rejected = first_rejected or f"{source.topic}[{partition}]@{offset}: {letter.message}"
            rejected += len(dead_letters)
            count += len(observations.index)
            with disk_of(str(file.parent)):
                for place, row in enumerate(observations.index.tolist()):
                    timestamp = int(observations.timestamps[place])
                    out.write(_line(documents[row], records.keys[row], timestamp, fields))
                out.flush()
    if not count:
        reason = f" that can be read (first: {first_rejected})" if first_rejected else ""
        raise CannotServe(f"data.topic: {source.topic!r} has no event between data.start and data.end{reason}")
    warnings = []
    if rejected:
        warnings.append(
            f"{rejected:,} of {rejected + count:,} records were left out, as dead letters (first: {first_rejected})"
        )
    return replace(fields, key=fields.key or KEY, timestamp=fields.timestamp or TIMESTAMP), warnings


def _line(document: Document, key: bytes | None, timestamp: int, fields: Fields) -> bytes:
    """The wanted fields of one record as a JSON line, each under its whole name."""
    values = ((name, locate(document, name)) for name in sorted(fields.all()))
    wanted: dict[str, Any] = {name: None if value is ABSENT else value for name, value in values}
    if fields.key is None:
        wanted[KEY] = _key_text(key)
    if fields.timestamp is None:
        wanted[TIMESTAMP] = timestamp
    return orjson.dumps(wanted) + b"\n"


def _key_text(key: bytes | None) -> str:
    """The record's key as text; base64 where it is not UTF-8."""
    try:
        return (key or b"").decode()
    except UnicodeDecodeError:
        return b64encode(key or b"").decode()
