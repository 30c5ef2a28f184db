"""Predictions and alerts in other forms than plain JSON, read back: `output.format` and `output.cloudevents`.

Shares nothing with what has written them. What is not exactly as it should be stays as it is, so that it is found to be
wrong, or to be no prediction.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import orjson

from lstmstream.config import Config
from lstmstream.errors import CannotServe, SchemaRegistryDown
from lstmstream.extras import require
from lstmstream.records import Headers, RecordBatch
from lstmstream.transport.schema_registry import LIMIT_S, RETRY_S, RegistryClient
from lstmstream.verify.values import iso_text

_FRAME = struct.Struct(">bI")
_STRUCTURED = ("content-type", b"application/cloudevents+json")
_WRONG_HEADERS = "(the headers of the CloudEvent are not at the end, or not these)"  # differs from any header
ReadAvro = Callable[[bytes], Any]


def carried(config: Config, headers: Headers) -> Headers:
    """Those of an event's headers that its prediction has too."""
    if config.input.unwrap != "cloudevents" and config.output.cloudevents is None:
        return headers
    return [(name, value) for name, value in headers if name[:3] != "ce_" and name.lower() != "content-type"]


class Forms:
    """Of one configuration."""

    def __init__(self, config: Config) -> None:
        """Raises CannotServe where the package for Avro is not installed."""
        self._name = config.name
        self._mode = config.output.cloudevents
        self._readers: dict[int, ReadAvro | None] = {}
        self._registry: RegistryClient | None = None
        if config.output.format == "avro":
            require("avro", "output.format: avro")
            self._registry = RegistryClient(config.kafka.schema_registry, config.folder)
        self.plain = self._registry is None and self._mode is None

    def read(self, kind: str, records: RecordBatch) -> RecordBatch:
        """The records of `kind` as if they were published in JSON."""
        if self.plain:
            return records
        pairs = [self._read(kind, *one) for one in zip(records.values, records.headers, strict=True)]
        return RecordBatch(
            records.topic,
            records.partitions,
            records.offsets,
            records.timestamps,
            records.keys,
            [value for value, _ in pairs],
            [headers for _, headers in pairs],
        )

    def _read(self, kind: str, value: bytes | None, headers: Headers) -> tuple[bytes | None, Headers]:
        text = value
        try:
            if self._registry is not None:
                text = self._from_avro(value or b"")
            elif self._mode == "structured":
                text = _data(value or b"")
            members = orjson.loads(text or b"")
            return (
                (text, headers) if self._mode is None else self._without_attributes(kind, text, value, members, headers)
            )
        except (ValueError, KeyError, TypeError, struct.error):
            return value, headers

    def _without_attributes(
        self, kind: str, text: bytes | None, value: bytes | None, members: dict[str, Any], headers: Headers
    ) -> tuple[bytes | None, Headers]:
        source = members["source"]
        beside = "-ended" if "ended" in members else "-summary" if "summary" in members else ""
        attributes = {
            "specversion": "1.0",
            "id": f"{source['topic']}-{source['partition']}-{source['offset']}{beside}",
            "source": f"/lstmstream/{self._name}/{kind}s",
            "type": f"lstmstream.{kind}",
            "time": members["timestamp"].replace(".000Z", "Z"),
        }
        if members.get("key"):
            attributes["subject"] = members["key"]
        if self._mode == "structured":
            envelope = orjson.dumps({**attributes, "datacontenttype": "application/json"})[:-1]
            own = [_STRUCTURED]
            if value != envelope + b',"data":' + (text or b"") + b"}":
                return value, headers
        else:
            content_type = b"application/json" if self._registry is None else b"application/avro"
            own = [(f"ce_{name}", attribute.encode()) for name, attribute in attributes.items()]
            own.append(("content-type", content_type))
        before = max(0, len(headers) - len(own))
        if [tuple(one) for one in headers[before:]] != own:
            return text, [*headers, (_WRONG_HEADERS, None)]
        return text, headers[:before]

    def _from_avro(self, value: bytes) -> bytes:
        magic, number = _FRAME.unpack_from(value)
        if number not in self._readers:
            self._readers[number] = self._reader(number)
        reader = self._readers[number]
        if magic or reader is None:
            raise ValueError("it is not of a schema of Avro")
        found = reader(value[_FRAME.size :])
        members: dict[str, Any] = {name: one for name, one in found.items() if one is not None}
        if not {"key", "key_base64", "summary"} & members.keys():  # a summary is about a partition
            members = {"key": None, **members}
        members["timestamp"] = iso_text(found["timestamp"])
        if "score" in members:
            members["score"] = np.float32(found["score"])
        if "ended" in members:
            members["ended"] |= {name: iso_text(members["ended"][name]) for name in ("started", "last")}
        if "summary" in members:
            for hour in members["summary"]["hours"]:
                hour["hour"] = iso_text(hour["hour"])
        if "prediction" in members:
            members["prediction"] = np.array(members["prediction"], np.float32)
        for reason in members.get("reasons", ()):
            reason["size"] = np.float32(reason["size"])
        if "event" in members:
            members["event"] = orjson.Fragment(members["event"])
        return orjson.dumps(members, option=orjson.OPT_SERIALIZE_NUMPY)

    def _reader(self, number: int) -> ReadAvro | None:
        import fastavro  # noqa: PLC0415 -- optional

        parsed = fastavro.parse_schema(_plain_types(orjson.loads(self._schema_text(number))))

        def read(body: bytes) -> Any:
            try:
                return fastavro.schemaless_reader(BytesIO(body), parsed, None)
            except (EOFError, IndexError) as error:
                raise ValueError("it ends too early") from error

        return read

    def _schema_text(self, number: int) -> str:
        assert self._registry is not None, "it is asked where there is Avro"
        give_up_s = time.monotonic() + LIMIT_S
        ask = partial(self._registry.schema, number)
        while True:
            try:
                return ask().text
            except SchemaRegistryDown as error:
                if time.monotonic() >= give_up_s:
                    raise CannotServe(str(error)) from error
                time.sleep(RETRY_S)


def _plain_types(schema: Any) -> Any:
    """A schema of Avro whose times are read as the numbers that they are."""
    if isinstance(schema, list):
        return [_plain_types(one) for one in schema]
    if isinstance(schema, dict):
        return {name: _plain_types(one) for name, one in schema.items() if name != "logicalType"}
    return schema


def _data(value: bytes) -> bytes:
    """The text of the member `data`, the last one; before it there is no such text outside of a string."""
    found = value.find(b',"data":')
    if found < 0 or not value.endswith(b"}"):
        raise ValueError("it has no data")
    return value[found + len(b',"data":') : -1]
