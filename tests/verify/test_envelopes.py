"""Two readings of the same envelopes, the engine's and that of `verify`, agree on any bytes."""

from __future__ import annotations

import json
import random
from base64 import b64encode
from typing import Any

import numpy as np
import pytest

from lstmstream.config import Config
from lstmstream.errors import BadRecord
from lstmstream.formats.event_reader import EventReader
from lstmstream.formats.json_documents import parse_document
from lstmstream.records import Headers, RecordBatch, UnreadableValue
from lstmstream.verify.envelopes import Envelopes
from lstmstream.verify.values import Refused, read_object
from tests.formats.test_schema_formats import hostile

ROW = {"id": 1, "amount": 1.5, "note": "é", "after": {"op": "x"}}
CHANGES: list[Any] = [
    {"before": None, "after": ROW, "op": "c", "ts_ms": 5, "source": {"ts_ms": 4}},
    {"schema": {}, "payload": {"before": ROW, "after": ROW, "op": "u", "source": None}},
    {"payload": None}, {"payload": {"after": ROW}}, {"op": "d", "after": None}, {"op": "d", "after": ROW},
    {"op": None, "after": ROW, "ts_ms": None}, {"op": "c", "after": []}, {"op": ["c"], "after": {}}, {"op": "t"}, {},
    {"op": "c", "after": {"__op": "mine"}, "payload": {"op": "u", "after": {}}}, {"op": "c", "after": ROW, "source": 5},
    [],
]  # fmt: skip
EVENTS: list[Any] = [
    {"specversion": "1.0", "id": "1", "data": ROW, "time": "2026-01-05T10:00:00Z", "count": 7, "gone": None},
    {"specversion": "1.0", "data_base64": b64encode(json.dumps(ROW).encode()).decode()},
    {"specversion": "1.0", "data_base64": None, "data": {"ce_id": "x"}, "id": "1"},
    {"specversion": "1.0"}, {"specversion": "0.3", "data": ROW}, {"data": ROW}, {"specversion": "1.0", "data": "text"},
    {"specversion": "1.0", "data": None}, {"specversion": "1.0", "data_base64": 7}, [], ROW,
]  # fmt: skip
HEADERS: list[Headers] = [
    [],
    [("ce_specversion", b"1.0"), ("ce_id", b"7"), ("ce_time", "é".encode()), ("ce_none", None)],
    [("ce_specversion", b"2.0")],
    [("ce_id", b"1"), ("content-type", b"application/json")],
    [("Content-Type", b"Application/CloudEvents+JSON; charset=utf-8"), ("ce_specversion", b"1.0")],
    [("content-type", b"application/cloudevents+avro")],
    [("content-type", b"application/cloudevents+json"), ("content-type", b"text/plain"), ("ce_specversion", b"1.0")],
    [("ce_specversion", b"\xff"), ("ce_id", b"\xff")],
]


NAMES = ["op", "after", "payload", "ts_ms", "source", "data", "data_base64", "specversion", "id", "datacontenttype"]
VALUES: list[Any] = [
    None,
    1,
    2**70,
    1.5,
    True,
    "c",
    "d",
    "1.0",
    "e30=",
    "%",
    "\ud83d\ude00",
    [],
    [1],
    {},
    {"ts_ms": 3},
    ROW,
]


def config(unwrap: str) -> Config:
    return Config.model_validate(
        {
            "name": "t",
            "model": "m",
            "kafka": {"bootstrap_servers": "h:1"},
            "input": {"topic": "in", "unwrap": unwrap, "max_bytes": 5000},
            "output": {"topic": "out"},
        }
    )


def changed(source: random.Random, document: Any) -> Any:
    """The document with one value in it that is another, gone, or beside a new one."""
    copy = json.loads(json.dumps(document))
    here, objects = copy, []
    while isinstance(here, dict):
        objects.append(here)
        here = source.choice([*here.values(), None])
    if objects:
        place = source.choice(objects)
        name = source.choice([*place, *NAMES])
        if source.random() < 0.2:
            place.pop(name, None)
        else:
            place[name] = source.choice(VALUES)
    return copy


def batch(values: list[bytes | None], headers: list[Headers]) -> RecordBatch:
    count = len(values)
    zeros = np.zeros(count, np.int64)
    return RecordBatch("in", zeros, np.arange(count), zeros, [b"k"] * count, values, headers)


@pytest.mark.parametrize(("unwrap", "documents"), [("after", CHANGES), ("cloudevents", EVENTS)])
def test_both_read_the_same(unwrap: str, documents: list[Any]) -> None:
    source = random.Random(11)
    texts = [json.dumps(document, ensure_ascii=source.random() < 0.5).encode() for document in documents]
    values: list[bytes | None] = [*texts, None, b"", b"\xef\xbb\xbf" + texts[0], b"x" * 6000, UnreadableValue(b"", "x")]
    values += [hostile(source, text) for _ in range(100) for text in texts]
    values += [json.dumps(changed(source, document)).encode() for _ in range(150) for document in documents]
    headers = [HEADERS[source.randrange(len(HEADERS))] for _ in values]
    if unwrap == "cloudevents":
        values += texts * len(HEADERS)
        headers += [one for one in HEADERS for _ in texts]
    given = batch(values, headers)
    ours = EventReader(None, unwrap, max_bytes=5000).read(given).values
    events = 0
    for value, head, one, other in zip(values, headers, ours, Envelopes(config(unwrap)).read(given), strict=True):
        if value is None or len(value) > 5000:
            assert one is other is value
            continue
        assert _document(one) == _reread(other), (value, head)
        events += _document(one) is not None
    assert events > 100


def _document(value: bytes | None) -> dict[str, Any] | None:
    try:
        return None if isinstance(value, UnreadableValue) else parse_document(value)
    except BadRecord:
        return None


def _reread(value: Any) -> dict[str, Any] | None:
    try:
        found = None if isinstance(value, UnreadableValue) else value if isinstance(value, dict) else read_object(value)
    except Refused:
        return None
    return found  # type: ignore[no-any-return]
