"""Values of records in other formats and envelopes, as the JSON objects that they stand for.

From there on everything is as with JSON: the same decoder, the same fields, the same output. JSON without an envelope
does not come by here at all. What cannot be read becomes an UnreadableValue with its reason, and so a dead letter of
the stage `decode` with the value as it came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import orjson

from lstmstream.errors import BadRecord
from lstmstream.formats.cloudevents import read_cloudevent
from lstmstream.formats.debezium import row_after
from lstmstream.formats.json_members import with_members
from lstmstream.formats.wire_format import split_frame
from lstmstream.records import Headers, RecordBatch, UnreadableValue

ReadBody = Callable[[bytes], bytes]  # the value of a record → JSON text; raises BadRecord, TryAgain


def json_schema_body(value: bytes) -> bytes:
    """The JSON text behind the prefix of a JSON Schema serializer. The schema itself is not looked up."""
    return split_frame(value).body


class EventReader:
    """Reads one format and one envelope. Holds no data between calls, but for the schemas of `read_body`."""

    def __init__(self, read_body: ReadBody | None, unwrap: str | None, *, max_bytes: int) -> None:
        """`read_body`: None for plain JSON. `unwrap`: `after`, `cloudevents` or None.

        A larger value than `max_bytes` is left to the decoder, which refuses it.
        """
        self._read_body = read_body
        self._unwrap = unwrap
        self._max_bytes = max_bytes

    def read(self, records: RecordBatch) -> RecordBatch:
        """The same records with JSON objects as values.

        Raises TryAgain where a schema cannot be asked for now; nothing has changed then.
        """
        return replace(records, values=list(map(self._read, records.values, records.headers)))

    def _read(self, value: bytes | None, headers: Headers) -> bytes | None:
        if value is None or isinstance(value, UnreadableValue) or len(value) > self._max_bytes:
            return value
        try:
            return self.event(value, headers)
        except BadRecord as bad:
            return UnreadableValue(value, str(bad))

    def event(self, value: bytes, headers: Headers) -> bytes | None:
        """The JSON object of one record; None where its envelope has none. Raises BadRecord, TryAgain."""
        if self._unwrap == "cloudevents":
            event = read_cloudevent(value, headers)
            if event.data is None:
                return None
            text = event.data if event.is_json or self._read_body is None else self._read_body(event.data)
            return _with_attributes(text, event.attributes)
        text = value if self._read_body is None else self._read_body(value)
        return row_after(text) if self._unwrap == "after" else text


def _with_attributes(text: bytes, attributes: Mapping[str, bytes]) -> bytes:
    text = text.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n")
    if not text.startswith(b"{") or not text.endswith(b"}"):
        return text  # is no object: the decoder says so
    return with_members(text, [orjson.dumps(name) + b":" + value for name, value in attributes.items()])
