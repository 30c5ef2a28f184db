"""Predictions, and the records of the alerts' topic, as Avro. Needs fastavro (extra `avro`).

The two schemas are the same for every model: what a model does not have is null. Fields of the event, whose types
nobody declares, are JSON text. An alert, the end of an incident and a summary are one schema, since a topic has one:
what only some of them have is null in the others.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import fastavro
import orjson

from lstmstream.formats.json_members import read_members
from lstmstream.formats.timestamps import timestamp_ms as parse_timestamp_ms

_TIME = {"type": "long", "logicalType": "timestamp-millis"}
_OPTIONAL_TEXT: dict[str, Any] = {"type": ["null", "string"], "default": None}


def _record(name: str, **types: Any) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": field, "type": one} for field, one in types.items()]}


_REASON = _record("Reason", feature="string", size="float")
_SOURCE = _record("Source", topic="string", partition="int", offset="long")
_ENDED = _record("Ended", started=_TIME, last=_TIME, offset="long", held_back="long")
_HOUR = _record("Hour", hour=_TIME, alerts="long", held_back="long", first_offset="long", last_offset="long")
_SUMMARY = _record("Summary", partition="int", hours={"type": "array", "items": _HOUR})
_IN_PREDICTIONS_ONLY = ("score", "alert", "steps")  # an end record and a summary have none of them
_FIELDS: list[dict[str, Any]] = [
    {"name": "key", **_OPTIONAL_TEXT},
    {"name": "key_base64", **_OPTIONAL_TEXT, "doc": "In place of a key that is not UTF-8."},
    {"name": "timestamp", "type": _TIME},
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
]
_OF_INCIDENTS: list[dict[str, Any]] = [
    {"name": "ended", "type": ["null", _ENDED], "default": None, "doc": "The incident of an end record."},
    {"name": "summary", "type": ["null", _SUMMARY], "default": None, "doc": "The hours of a summary."},
]


def _optional(field: dict[str, Any]) -> dict[str, Any]:
    return {**field, "type": ["null", field["type"]], "default": None}


def _schema(name: str, fields: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "record", "name": name, "namespace": "lstmstream", "fields": fields}


def _of_alerts() -> list[dict[str, Any]]:
    """The fields in the order of the JSON, in which `ended` or `summary` stands where the score would."""
    fields = [_optional(field) if field["name"] in _IN_PREDICTIONS_ONLY else field for field in _FIELDS]
    at = next(place for place, field in enumerate(fields) if field["name"] == "score")
    return [*fields[:at], *_OF_INCIDENTS, *fields[at:]]


_SCHEMAS = {"prediction": _schema("Prediction", _FIELDS), "alert": _schema("Alert", _of_alerts())}
SCHEMA_TEXTS = {kind: orjson.dumps(schema).decode() for kind, schema in _SCHEMAS.items()}
_PARSED = {kind: fastavro.parse_schema(schema) for kind, schema in _SCHEMAS.items()}


def avro_record(kind: str, text: bytes, timestamp_ms: int) -> bytes:
    """The Avro record of a `prediction`, or of what is in the topic of the alerts (`alert`), in JSON.

    `timestamp_ms` is its `timestamp`.
    """
    members = read_members(text, "the prediction")
    event = members.pop("event", None)
    record = {name: orjson.loads(value) for name, value in members.items()}
    record |= {"timestamp": timestamp_ms, "event": None if event is None else event.decode()}
    if ended := record.get("ended"):
        ended |= {name: parse_timestamp_ms(ended[name], name) for name in ("started", "last")}
    if summary := record.get("summary"):
        for hour in summary["hours"]:
            hour["hour"] = parse_timestamp_ms(hour["hour"], "hour")
    out = BytesIO()
    fastavro.schemaless_writer(out, _PARSED[kind], record)
    return out.getvalue()
