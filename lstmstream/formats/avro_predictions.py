"""Predictions as Avro records. Needs fastavro (extra `avro`).

The schema is the same for every model: what a model does not have is null. Fields of the event, whose types nobody
declares, are JSON text.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import fastavro
import orjson

from lstmstream.formats.json_members import read_members

_OPTIONAL_TEXT: dict[str, Any] = {"type": ["null", "string"], "default": None}
_REASON = {
    "type": "record",
    "name": "Reason",
    "fields": [{"name": "feature", "type": "string"}, {"name": "size", "type": "float"}],
}
_SOURCE = {
    "type": "record",
    "name": "Source",
    "fields": [
        {"name": "topic", "type": "string"},
        {"name": "partition", "type": "int"},
        {"name": "offset", "type": "long"},
    ],
}
SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Prediction",
    "namespace": "lstmstream",
    "fields": [
        {"name": "key", **_OPTIONAL_TEXT},
        {"name": "key_base64", **_OPTIONAL_TEXT, "doc": "In place of a key that is not UTF-8."},
        {"name": "timestamp", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "score", "type": "float"},
        {"name": "prediction", "type": ["null", {"type": "array", "items": "float"}], "default": None},
        {"name": "warm", "type": ["null", "boolean"], "default": None},
        {"name": "alert", "type": "boolean"},
        {"name": "held_back", **_OPTIONAL_TEXT, "doc": "Which rule has held the alert back."},
        {"name": "reasons", "type": ["null", {"type": "array", "items": _REASON}], "default": None},
        {"name": "steps", "type": "long"},
        {"name": "model", "type": "string"},
        {"name": "version", "type": "string"},
        {"name": "source", "type": _SOURCE},
        {"name": "event", **_OPTIONAL_TEXT, "doc": "The fields of output.include, as JSON text."},
    ],
}
SCHEMA_TEXT = orjson.dumps(SCHEMA).decode()
_PARSED = fastavro.parse_schema(SCHEMA)


def avro_prediction(text: bytes, timestamp_ms: int) -> bytes:
    """The Avro record of a prediction in JSON; `timestamp_ms` is its `timestamp`."""
    members = read_members(text, "the prediction")
    event = members.pop("event", None)
    record = {name: orjson.loads(value) for name, value in members.items()}
    record |= {"timestamp": timestamp_ms, "event": None if event is None else event.decode()}
    out = BytesIO()
    fastavro.schemaless_writer(out, _PARSED, record)
    return out.getvalue()
