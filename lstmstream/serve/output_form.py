"""Predictions and alerts in another form than plain JSON: `output.format` and `output.cloudevents`.

What they say is the same in each form, and `Encoder` writes it as JSON first. The registry is asked for the number of
the schema once, before the first batch is decoded, so that a registry that is away costs no state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

import orjson

from lstmstream.formats.cloudevents import CONTENT_TYPE, PREFIX, STRUCTURED
from lstmstream.formats.timestamps import format_iso
from lstmstream.formats.wire_format import frame
from lstmstream.records import Headers, Ints, RecordBatch

Kind = Literal["prediction", "alert"]
ToAvro = Callable[[str, bytes, int], bytes]  # the kind, the JSON and the event time → the record


class AvroOutput(NamedTuple):
    """How predictions become Avro."""

    encode: ToAvro
    register: Callable[[str, str], int]  # the kind and its topic → the number of the schema. Raises SchemaRegistryDown


class OutputForm:
    """Writes the records of one daemon."""

    def __init__(
        self, name: str, topics: dict[Kind, str], *, avro: AvroOutput | None = None, cloudevents: str | None = None
    ) -> None:
        """`name`: the daemon's, by which the events of its two topics are told apart from others.

        `topics`: of predictions and alerts. `cloudevents`: `binary`, `structured` or None.
        """
        self._topics = topics
        self._avro = avro
        self._mode = cloudevents
        self._sources = {kind: f"/lstmstream/{name}/{kind}s" for kind in topics}
        self._schemas: dict[Kind, int] = {}

    def prepare(self) -> None:
        """Have the schemas registered. Raises SchemaRegistryDown."""
        if self._avro is not None and len(self._schemas) < len(self._topics):
            self._schemas = {kind: self._avro.register(kind, topic) for kind, topic in self._topics.items()}

    def write(self, kind: Kind, records: RecordBatch, timestamps: Ints, sources: list[str]) -> RecordBatch:
        """N records of JSON in their final form.

        `timestamps` [N]: event times. `sources` [N]: topic, partition and offset of each event, as one name.
        """
        rows = zip(records.values, timestamps.tolist(), sources, records.headers, strict=True)
        pairs = [self._record(kind, value or b"", time_ms, source, headers) for value, time_ms, source, headers in rows]
        return replace(records, values=[value for value, _ in pairs], headers=[headers for _, headers in pairs])

    def _record(
        self, kind: Kind, text: bytes, time_ms: int, source: str, headers: Headers
    ) -> tuple[bytes | None, Headers]:
        value = text if self._avro is None else frame(self._schemas[kind], self._avro.encode(kind, text, time_ms))
        if self._mode is None:
            return value, headers
        attributes = {
            "specversion": "1.0",
            "id": source,
            "source": self._sources[kind],
            "type": f"lstmstream.{kind}",
            "time": format_iso(time_ms),
        }
        if key := orjson.loads(text).get("key"):
            attributes["subject"] = key
        if self._mode == "structured":
            members = orjson.dumps({**attributes, "datacontenttype": "application/json"})
            return b'%b,"data":%b}' % (members[:-1], text), [*headers, (CONTENT_TYPE, STRUCTURED.encode())]
        content_type = b"application/json" if self._avro is None else b"application/avro"
        own = [(PREFIX + name, attribute.encode()) for name, attribute in attributes.items()]
        return value, [*headers, *own, (CONTENT_TYPE, content_type)]
