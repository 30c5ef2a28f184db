"""Which event a record stands for, by `input.format` and `input.unwrap`: the envelopes written a second time.

Avro and Protobuf are read by the libraries that the engine uses too, through the same code: lstmstream/formats. What is
around the event, and everything behind it, is not.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lstmstream.config import Config
from lstmstream.records import Headers, RecordBatch, UnreadableValue
from lstmstream.transport.schema_registry import open_event_reader, read_patiently
from lstmstream.verify.values import Refused, read_object

Event = bytes | dict[str, Any] | None  # JSON text, or parsed already
_WITHOUT_ROW = ("d", "t", "m")


class Envelopes:
    """Of one configuration."""

    def __init__(self, config: Config) -> None:
        """Raises CannotServe where a package is missing."""
        source = config.input
        self._unwrap = source.unwrap
        self._max_bytes = source.max_bytes
        self._reader = open_event_reader(
            config.kafka, record_format=source.format, unwrap=None, max_bytes=source.max_bytes, folder=config.folder
        )

    def read(self, records: RecordBatch) -> Sequence[Event]:
        """The event of each record; an UnreadableValue where there is none. Raises CannotServe."""
        if self._unwrap == "cloudevents":
            return self._cloudevents(records)
        values: Sequence[Event] = read_patiently(self._reader, records).values
        if self._unwrap is None:
            return values
        return [
            _refused_or(_row_after, value) if self._is_to_be_read(value, key) else value
            for value, key in zip(values, records.keys, strict=True)
        ]

    def _is_to_be_read(self, value: Event, key: bytes | None) -> bool:
        """Not where there is nothing, or too much."""
        bad = not isinstance(value, bytes) or isinstance(value, UnreadableValue)
        return not bad and len(value or b"") + len(key or b"") <= self._max_bytes

    def _cloudevents(self, records: RecordBatch) -> list[Event]:
        found: list[Event] = list(records.values)
        attributes: dict[int, dict[str, Any]] = {}
        encoded: dict[int, bytes] = {}  # data in the format of the input
        for row, (value, key, headers) in enumerate(zip(records.values, records.keys, records.headers, strict=True)):
            if not self._is_to_be_read(value, key):
                continue
            try:
                data, attributes[row] = _cloudevent(value or b"", headers)
            except Refused:
                found[row] = UnreadableValue(value or b"", "is no CloudEvent")
                continue
            found[row] = data
            if isinstance(data, bytes):
                encoded[row] = data
        if encoded and self._reader is not None:
            some = records.take(np.array(list(encoded), np.int64))
            some = read_patiently(self._reader, replace(some, values=list(encoded.values())))
            encoded = dict(zip(encoded, (value or b"" for value in some.values), strict=True))
        for row, own in attributes.items():
            data = encoded.get(row, found[row])
            event = _refused_or(_parsed, data)
            found[row] = {**event, **own} if isinstance(event, dict) else event
        return found


def _refused_or(read: Any, value: Any) -> Event:
    try:
        found: Event = read(value)
    except Refused:
        return UnreadableValue(value if isinstance(value, bytes) else b"", "is no event")
    return found


def _parsed(data: Any) -> dict[str, Any]:
    if isinstance(data, UnreadableValue):
        raise Refused("decode")
    found = read_object(data) if isinstance(data, bytes) else data
    if not isinstance(found, dict):
        raise Refused("decode")
    return found


def _row_after(value: bytes) -> dict[str, Any]:
    change = read_object(value)
    if "op" not in change and isinstance(change.get("payload"), dict):
        change = change["payload"]
    row = change.get("after")
    if "op" not in change or change["op"] in _WITHOUT_ROW or not isinstance(row, dict):
        raise Refused("decode")
    event = {**row, "__op": change["op"]}
    source = change.get("source")
    for name, times in (("__ts_ms", change), ("__source_ts_ms", source)):
        if isinstance(times, dict) and "ts_ms" in times:
            event[name] = times["ts_ms"]
    return event


def _cloudevent(value: bytes, headers: Headers) -> tuple[Any, dict[str, Any]]:
    """Data, as bytes or parsed already, and attributes."""
    types = [text or b"" for name, text in headers if name.lower() == "content-type"]
    kind = types[-1].decode("utf-8", "replace").split(";")[0].strip().lower() if types else ""
    binary = {name: (text or b"").decode("utf-8", "replace") for name, text in headers if text is not None}
    binary = {name: text for name, text in binary.items() if name.startswith("ce_")}
    if not kind.startswith("application/cloudevents") and "ce_specversion" in binary:
        if binary["ce_specversion"] != "1.0":
            raise Refused("decode")
        return value, binary
    if kind.startswith("application/cloudevents") and kind != "application/cloudevents+json":
        raise Refused("decode")
    envelope = read_object(value)
    if envelope.get("specversion") != "1.0":
        raise Refused("decode")
    own = {f"ce_{name}": one for name, one in envelope.items() if name not in ("data", "data_base64")}
    own = {name: one for name, one in own.items() if one is not None}
    text = envelope.get("data_base64")
    if text is None:
        return envelope.get("data", {}), own
    try:
        return b64decode(text, validate=True), own
    except (ValueError, TypeError) as error:
        raise Refused("decode") from error
