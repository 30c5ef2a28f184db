"""CloudEvents and changes of Debezium: which event a record stands for, and what is said of one that is none."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import numpy as np
import pytest

from lstmstream.errors import BadRecord
from lstmstream.formats.debezium import row_after
from lstmstream.formats.event_reader import EventReader, json_schema_body
from lstmstream.formats.wire_format import frame, split_message_indexes
from lstmstream.records import Headers, RecordBatch, UnreadableValue

CHANGE = {"before": None, "after": {"id": 7, "amount": 1.5}, "op": "c", "ts_ms": 12, "source": {"ts_ms": 11, "db": "d"}}
BINARY: Headers = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_time", b"2026-01-05T10:00:00Z"), ("trace", b"t")]


def read(reader: EventReader, value: bytes | None, headers: Headers = ()) -> bytes | None:
    batch = RecordBatch("in", *[np.zeros(1, np.int64)] * 3, [None], [value], [headers])
    return reader.read(batch).values[0]


def reason(reader: EventReader, value: bytes, headers: Headers = ()) -> str:
    found = read(reader, value, headers)
    assert isinstance(found, UnreadableValue), found
    assert bytes(found) == value, "a dead letter has the value as it came"
    return found.reason


def debezium(change: Any = None, **members: Any) -> bytes:
    return json.dumps({**CHANGE, **members} if change is None else change).encode()


AFTER = EventReader(None, "after", max_bytes=1_000_000)
NEITHER = (
    "the record is not a CloudEvent: it has neither a header ce_specversion nor the content type"
    " application/cloudevents+json"
)
CLOUD = EventReader(None, "cloudevents", max_bytes=1_000_000)


def test_the_row_after_a_change_is_the_event() -> None:
    wanted = {"id": 7, "amount": 1.5, "__op": "c", "__ts_ms": 12, "__source_ts_ms": 11}
    for value in (
        debezium(),
        debezium({"schema": {"type": "struct"}, "payload": CHANGE}),
        b"\xef\xbb\xbf" + debezium(),
    ):
        assert json.loads(read(AFTER, value) or b"") == wanted
    assert json.loads(read(AFTER, debezium(op="r", source=None)) or b"")["__op"] == "r", "a row of a snapshot"
    assert row_after(b'{"op":"u","after":{}}') == b'{"__op":"u"}'


def test_no_digit_of_a_row_is_lost() -> None:
    row = b'{"id": 123456789012345678901234567890, "amount": 1.10, "x": 1e400}'
    found = row_after(b'{"op": "u", "before": {"id": 1}, "after": %b}' % row)
    assert found == row[:-1] + b',"__op":"u"}'


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (debezium(op="d", after=None), "the change is a delete, after which there is no row to score"),
        (debezium({"op": "t"}), "the change is a truncation of the table, after which there is no row to score"),
        (debezium({"op": "m"}), "the change is a message of the database, after which there is no row to score"),
        (debezium({"payload": None}), "the Debezium envelope has no payload: a delete, of which there is no row"),
        (debezium(after=None), "the change has no row in its member 'after'"),
        (debezium(after=[1]), "the member 'after' of the change is a JSON array, not an object"),
        (debezium({"amount": 1}), "the value is not a Debezium change event: it has no member 'op'; see input.unwrap"),
        (debezium({"payload": "x"}), "the payload of the Debezium envelope is a JSON string, not an object"),
        (b"[1]", "the value is a JSON array, not an object"),
        (b"{", None),
        (b'{"op":"c","after":{"a":1}', None),
        (b"\xff\xfe", None),
        (b"", None),
        (b'{"op":"c","after":' + b'{"a":' * 50_000, None),
    ],
)  # fmt: skip
def test_what_is_no_change_with_a_row(value: bytes, said: str | None) -> None:
    found = reason(AFTER, value)
    assert said is None or found == said
    assert len(found) < 200


def test_a_tombstone_and_a_value_over_the_limit_are_left_to_the_decoder() -> None:
    small = EventReader(None, "after", max_bytes=10)
    assert read(AFTER, None) is None
    assert type(read(small, debezium())) is bytes
    damaged = UnreadableValue(b"x", "damaged")
    assert read(AFTER, damaged) is damaged


def structured(**members: Any) -> bytes:
    return json.dumps({"specversion": "1.0", "id": "1", "time": "2026-01-05T10:00:00Z", **members}).encode()


def test_both_modes_of_a_cloudevent_give_the_same_event() -> None:
    wanted = {"amount": 1, "ce_specversion": "1.0", "ce_id": "1", "ce_time": "2026-01-05T10:00:00Z"}
    binary = read(CLOUD, b' {"amount": 1} ', BINARY)
    assert json.loads(binary or b"") == wanted
    kind: Headers = [("Content-Type", b"application/CloudEvents+JSON; charset=utf-8")]
    for headers in (kind, ()):  # some producers leave the content type out
        assert json.loads(read(CLOUD, structured(data={"amount": 1}), headers) or b"") == wanted
        encoded = structured(data_base64=b64encode(b'{"amount": 1}').decode())
        assert json.loads(read(CLOUD, encoded, headers) or b"") == wanted
    assert json.loads(read(CLOUD, structured(), kind) or b"") == {k: v for k, v in wanted.items() if k != "amount"}
    assert read(CLOUD, None, BINARY) is None
    last = read(CLOUD, b'{"ce_id": "data"}', BINARY)
    assert json.loads(last or b"")["ce_id"] == "1", "an attribute counts, not a field of the data"


@pytest.mark.parametrize(
    ("value", "headers", "said"),
    [
        (b"{}", [], NEITHER),
        (b"{}", [("ce_specversion", b"0.3")], "the CloudEvent's specversion is not 1.0, the only one supported"),
        (b"{}", [("content-type", b"application/cloudevents+json")], "the CloudEvent has no specversion"),
        (b"[]", [("content-type", b"application/cloudevents-batch+json")],
         "the content type is of CloudEvents, but not application/cloudevents+json"),
        (b"[]", [("content-type", b"application/cloudevents+json")], "the value is a JSON array, not an object"),
        (structured(data_base64="*"), [], "the CloudEvent's data_base64 is not base64 text"),
        (structured(data_base64=7), [], "the CloudEvent's data_base64 is not base64 text"),
    ],
)  # fmt: skip
def test_what_is_no_cloudevent(value: bytes, headers: Headers, said: str) -> None:
    assert reason(CLOUD, value, headers) == said


@pytest.mark.parametrize(
    "value", [b"[1]", b'"x"', b"{", b"}", b'{"a": 1]', b'{"a": 1x', b"", b"{} {", b'{"a":"}', b"{,}"]
)
def test_attributes_make_no_event_of_what_is_none(value: bytes) -> None:
    found = read(CLOUD, value, [*BINARY, ('ce_"},{"', b'"}')])
    try:
        document = json.loads(found or b"")
    except json.JSONDecodeError:
        return
    assert type(document) is not dict


def test_the_prefix_of_json_schema() -> None:
    reader = EventReader(json_schema_body, None, max_bytes=1_000_000)
    assert read(reader, frame(9, b'{"a": 1}')) == b'{"a": 1}'
    assert reason(reader, b'{"a": 1}') == (
        "the value begins with the byte 123, not with the 0 of a schema registry's serializer; see input.format"
    )
    assert "apicurio.registry.as-confluent: true" in reason(reader, bytes(9) + b"{}")
    assert reason(reader, b"\0\0\0") == "the value has 3 bytes, fewer than the 5 that name its schema"
    both = EventReader(json_schema_body, "after", max_bytes=1_000_000)
    assert json.loads(read(both, frame(9, debezium())) or b"")["amount"] == 1.5
    cloud = EventReader(json_schema_body, "cloudevents", max_bytes=1_000_000)
    assert json.loads(read(cloud, frame(9, b'{"a": 1}'), BINARY) or b"")["a"] == 1
    assert json.loads(read(cloud, structured(data={"a": 1})) or b"")["a"] == 1, "data of a structured one is JSON"


@pytest.mark.parametrize(
    ("body", "indexes"),
    [(b"\0m", (0,)), (b"\x02\x00m", (0,)), (b"\x04\x02\x04m", (1, 2)), (b"\x02\x80\x01m", (64,))],
)
def test_message_indexes(body: bytes, indexes: tuple[int, ...]) -> None:
    assert split_message_indexes(body) == (indexes, b"m")


@pytest.mark.parametrize("body", [b"", b"\x04\x02", b"\x01", b"\xff" * 9, b"\xfe\xff\xff\xff\x0f" + b"\0" * 9])
def test_message_indexes_that_cannot_be(body: bytes) -> None:
    with pytest.raises(BadRecord, match="message indexes"):
        split_message_indexes(body)
