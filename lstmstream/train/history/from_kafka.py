"""A topic's history into a JSONL file, of which training then reads the fields it wants.

A record that the daemon would send to the dead letters is left out and counted, as the same decoder judges it.
"""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from lstmstream.card import Card, Feature, StateSpec
from lstmstream.errors import CannotServe
from lstmstream.serve.decode import Decoder
from lstmstream.serve.records import RecordBatch
from lstmstream.train.history.read import Fields
from lstmstream.train.schema import TrainConfig
from lstmstream.transport.history import read_topic
from lstmstream.transport.login import security_settings

KEY, TIMESTAMP = "record key", "record timestamp"  # names of the record's own in the file


def fetch(config: TrainConfig, fields: Fields, file: Path) -> tuple[Fields, list[str]]:
    """Writes the records to `file`; returns the fields as they are named there, and what was left out as a sentence.

    Raises CannotServe where the topic cannot be read or has nothing in that stretch.
    """
    data = config.data
    assert data.topic is not None
    numbers = tuple(Feature(name, "number") for name in fields.numbers)
    categories = tuple(Feature(name, "category", buckets=1) for name in fields.categories)
    card = Card("train", "1", config.task, (*numbers, *categories), StateSpec(1, (0.0,), ()), ())
    decoder = Decoder(card, key=fields.key, timestamp=fields.timestamp)
    bad, first_bad, count = 0, "", 0
    with file.open("wb") as out:
        for records in read_topic(
            config.kafka.bootstrap_servers,
            data.topic,
            data.start,
            data.end,
            properties=config.kafka.properties,
            security=security_settings(config.kafka.security, config.folder),
        ):
            columns, letters = decoder.decode(records)
            for letter in letters:
                partition, offset = records.partitions[letter.index], records.offsets[letter.index]
                first_bad = first_bad or f"{data.topic}[{partition}]@{offset}: {letter.message}"
            bad += len(letters)
            count += len(columns.index)
            for place, row in enumerate(columns.index.tolist()):
                out.write(_line(records, row, int(columns.timestamps[place]), fields))
    if not count:
        raise CannotServe(f"data.topic: {data.topic!r} has no event between data.start and data.end" + _told(first_bad))
    warnings = (
        [f"{bad:,} of {bad + count:,} records were left out, as dead letters (first: {first_bad})"] if bad else []
    )
    return replace(fields, key=fields.key or KEY, timestamp=fields.timestamp or TIMESTAMP), warnings


def _line(records: RecordBatch, row: int, timestamp: int, fields: Fields) -> bytes:
    """The wanted fields of one record, those within objects with the whole object."""
    value = records.values[row] or b"{}"
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError:  # 1e400 in a field that nobody wants, or the decoder had refused it
        document = json.loads(value)
    outermost = {name.partition(".")[0] for name in fields.all()}
    wanted: dict[str, Any] = {name: document.get(name) for name in sorted(outermost)}
    if fields.key is None:
        wanted[KEY] = _text(records.keys[row])
    if fields.timestamp is None:
        wanted[TIMESTAMP] = timestamp
    return orjson.dumps(wanted) + b"\n"


def _text(key: bytes | None) -> str:
    try:
        return (key or b"").decode()
    except UnicodeDecodeError:
        return b64encode(key or b"").decode()


def _told(first_bad: str) -> str:
    return f" that can be read (first: {first_bad})" if first_bad else ""
