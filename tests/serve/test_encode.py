"""The bytes of section 7: golden records for each variation, float32 text, alerts, dead letters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmstream.formats.iso_columns import iso_texts
from lstmstream.formats.json_documents import parse_document
from lstmstream.records import BY_KEY, DeadLetter, Observations, Predictions, RecordBatch
from lstmstream.serve.decode import Decoded, Decoder, FieldCounts
from lstmstream.serve.encode import Encoder, OutputTopics
from lstmstream.serve.step_model import StepInput, StepOutput
from tests.serve.helpers import ALERTS, LETTERS, OUT, Message, batch, engine, flatten, messages_of, onnx_step
from tests.serve.reference import Event

pytestmark = pytest.mark.usefixtures("either_codec")

NOW_MS = 1_767_609_067_123
NONE = np.zeros(0, np.int64)
HEADERS = [("traceparent", b"00-1-2-01"), ("empty", None)]
CARD = dataclasses.replace(onnx_step("small").card, name='card-"fraud"', version="3")


def encode(
    *,
    key: bytes | None = b"c000123",
    score: float = 0.0312,
    prediction: list[float] | None = None,
    alert: bool = False,
    document: bytes = b"{}",
    record_ms: int = NOW_MS,
    event_ms: int = NOW_MS,
    alerts_topic: str | None = None,
    key_hashed: Collection[str] = (),
    names: tuple[str, ...] = (),
    **named: Any,
) -> list[Message]:
    """What is written for one record with a prediction: partition 2, offset 48213."""
    records = batch([Event(2, 48213, record_ms, b"the record's", document)], topic="transactions", headers=[HEADERS])
    at = np.array([0])
    observations = Observations(
        index=at,
        partitions=np.array([2]),
        offsets=np.array([48213]),
        keys=[key],
        timestamps=np.array([event_ms]),
        x=np.zeros((1, 1), np.float32),
        categories=np.zeros((1, 0), np.int64),
    )
    predictions = Predictions(
        at,
        np.array([score], np.float32),
        None if prediction is None else np.array([prediction], np.float32),
        np.array([alert]),
        np.array([41]),
    )
    card = dataclasses.replace(CARD, prediction_names=names)
    made = Encoder(card, OutputTopics(OUT, alerts_topic, LETTERS, key_hashed), **named)
    counts, silent = FieldCounts(NONE, NONE), np.zeros(1, np.bool_)
    decoded = Decoded(observations, [], [parse_document(document)], counts, silent, [document], {})
    return flatten(made.encode(records, decoded, predictions, []))


SOURCE = rb'"source":{"topic":"transactions","partition":2,"offset":48213}'
TAIL = rb'"steps":41,"model":"card-\"fraud\"","version":"3",' + SOURCE
TIME = b'"timestamp":"2026-01-05T10:31:07.123Z"'


@pytest.mark.parametrize(
    ("named", "value"),
    [
        ({}, b'{"key":"c000123",%b,"score":0.0312,"alert":false,%b}' % (TIME, TAIL)),
        ({"key": None}, b'{"key":null,%b,"score":0.0312,"alert":false,%b}' % (TIME, TAIL)),
        ({"key": b""}, b'{"key":"",%b,"score":0.0312,"alert":false,%b}' % (TIME, TAIL)),
        ({"key": b"\xff\xfe"}, b'{"key_base64":"//4=",%b,"score":0.0312,"alert":false,%b}' % (TIME, TAIL)),
        (
            {"key": 'q"\\\n\x00ü'.encode()},
            '{"key":"q\\"\\\\\\n\\u0000ü",'.encode() + b'%b,"score":0.0312,"alert":false,%b}' % (TIME, TAIL),
        ),
        (
            {"prediction": [0.0312]},
            b'{"key":"c000123",%b,"score":0.0312,"prediction":[0.0312],"alert":false,%b}' % (TIME, TAIL),
        ),
        (
            {"prediction": [0.5, -1e-10, 3.0], "alert": True},
            b'{"key":"c000123",%b,"score":0.0312,"prediction":[0.5,-1e-10,3.0],"alert":true,%b}' % (TIME, TAIL),
        ),
        (
            {"prediction": [0.5, 1.0], "names": ("rank", "warm")},
            b'{"key":"c000123",%b,"score":0.0312,"prediction":[0.5,1.0],"warm":true,"alert":false,%b}' % (TIME, TAIL),
        ),
        (
            {"prediction": [0.0, 1.0], "names": ("warm", "rank"), "include": ["a"]},
            b'{"key":"c000123",%b,"score":0.0312,"prediction":[0.0,1.0],"warm":false,"alert":false,%b,"event":{}}'
            % (TIME, TAIL),
        ),
        (
            {"prediction": [0.5, 1.0], "names": ("rank", "other")},
            b'{"key":"c000123",%b,"score":0.0312,"prediction":[0.5,1.0],"alert":false,%b}' % (TIME, TAIL),
        ),
        ({"prediction": []}, b'{"key":"c000123",%b,"score":0.0312,"prediction":[],"alert":false,%b}' % (TIME, TAIL)),
        (
            {"include": ["a"], "document": b'{"b":2,"a":1}'},
            b'{"key":"c000123",%b,"score":0.0312,"alert":false,%b,"event":{"a":1}}' % (TIME, TAIL),
        ),
        ({"include": ["a"]}, b'{"key":"c000123",%b,"score":0.0312,"alert":false,%b,"event":{}}' % (TIME, TAIL)),
        (
            {"from_file": True, "include": ["a"]},
            b'{"key":"c000123",%b,"score":0.0312,"alert":false,%b,"event":{}}'
            % (TIME, TAIL.replace(SOURCE, b'"source":{"file":"transactions","row":48213}')),
        ),
        ({"score": -0.0}, b'{"key":"c000123",%b,"score":-0.0,"alert":false,%b}' % (TIME, TAIL)),
        (
            {"event_ms": -1},
            b'{"key":"c000123","timestamp":"1969-12-31T23:59:59.999Z","score":0.0312,"alert":false,%b}' % TAIL,
        ),
    ],
)
def test_golden_bytes(named: dict[str, Any], value: bytes) -> None:
    (message,) = encode(**named)
    assert message.value == value
    assert message == Message(OUT, 2, named.get("key", b"c000123"), value, NOW_MS, HEADERS)
    json.loads(value)


def test_where_a_prediction_goes() -> None:
    assert encode(key_hashed=[OUT])[0].partition == BY_KEY
    assert encode(key_hashed=[ALERTS, LETTERS])[0].partition == 2
    assert encode(record_ms=-1)[0].timestamp_ms == -1
    assert encode(record_ms=0)[0].timestamp_ms == 0


def test_an_alert_is_the_same_record_once_more() -> None:
    prediction, alert = encode(alert=True, alerts_topic=ALERTS, key_hashed=[ALERTS])
    assert prediction.partition == 2
    assert alert == prediction._replace(topic=ALERTS, partition=BY_KEY)
    prediction, alert = encode(alert=True, alerts_topic=ALERTS, key_hashed=[OUT])
    assert prediction.partition == BY_KEY
    assert alert == prediction._replace(topic=ALERTS, partition=2)
    assert len(encode(alert=False, alerts_topic=ALERTS)) == 1
    assert len(encode(alert=True)) == 1


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b'"c1"', b"c1"), (b'""', b""), ('"ключ"'.encode(), "ключ".encode()), (b"42", b"42"), (b"-7", b"-7"),
        (b"9007199254740992", b"9007199254740992"), (b"9007199254740993", b"9007199254740993"), (b"null", None),
        (b"true", None),
        (b"1.0", b"1"), (b"1e3", b"1000"), (b"1.5", None), (b"18446744073709551616", None),
        (b"1e400", None),
        (b'"17.0"', b"17"), (b"[]", None), (b"{}", None),
    ],
)  # fmt: skip
def test_the_key_from_a_field(value: bytes, key: bytes | None) -> None:
    """Where the field has no string or integer the key is null, and the prediction still names its own key."""
    for name, document in (("id", b'{"id":%b}' % value), ("who.id", b'{"who":{"id":%b}}' % value)):
        message, alert = encode(output_key=name, document=document, alert=True, alerts_topic=ALERTS)
        assert message.key == alert.key == key
        assert json.loads(message.value or b"")["key"] == "c000123"
    assert encode(output_key="id")[0].key is None


def event_of(document: bytes, *include: str) -> bytes:
    """The text of `event` in a prediction."""
    (message,) = encode(document=document, include=include)
    text = message.value or b""
    json.loads(text, parse_constant=pytest.fail)
    return text[text.index(b',"event":') + 9 : -1]


def test_fields_that_are_carried_along() -> None:
    names = ["a", "b.c", "none", "b", 'q"ü']
    doc = {"b": {"c": [1, 2.5, "x"], "d": None}, "none": None, "more": 1, 'q"ü': "null"}
    assert event_of(json.dumps(doc).encode(), *names) == (
        '{"b.c":[1,2.5,"x"],"none":null,"b":{"c":[1,2.5,"x"],"d":null},"q\\"ü":"null"}'.encode()
    )
    assert event_of(b'{"b":3}', "b.c") == b"{}"
    assert event_of(b'{"b.c":1,"b":{"c":2}}', "b.c", "b") == b'{"b.c":1,"b":{"c":2}}'
    assert event_of(b'{"b.c":null,"b":{"c":2}}', "b.c") == b'{"b.c":null}'
    assert event_of(b"{}", "b.c") == b"{}"
    assert b'"event"' not in (encode(document=b'{"a":1}')[0].value or b"")


@pytest.mark.parametrize(
    "value",
    [b"1e400", b"[[-1e400]]", b'{"x":{"y":1e400}}', b"[" * 600 + b"]" * 600, b"[null," * 600 + b"1" + b"]" * 600],
)
def test_what_cannot_be_carried_along_is_left_out(value: bytes) -> None:
    """The prediction is there all the same: how an event is published does not decide whether it counts."""
    assert event_of(b'{"f":%b,"amount":1}' % value, "amount", "f", "g") == b'{"amount":1}'
    assert event_of(b'{"f":%b,"amount":1}' % value, "f") == b"{}"
    assert event_of(b'{"f":%b,"amount":1}' % value, "amount") == b'{"amount":1}'
    assert event_of(b'{"f":{"bad":%b,"good":2}}' % value, "f.bad", "f.good", "f") == b'{"f.good":2}'


def test_large_integers_beside_an_infinite_number_are_kept() -> None:
    text = b'{"f":[99999999999999999999,18446744073709551615,-9223372036854775808],"g":1e400}'
    found = event_of(text, "f")
    assert found == event_of(text.replace(b"1e400", b"1"), "f")
    assert json.loads(found) == {"f": [99999999999999999999, 18446744073709551615, -9223372036854775808]}


@pytest.mark.parametrize(
    "value",
    [
        b"1234567890123456789012345",
        b"-1234567890123456789012345",
        b"18446744073709551616",
        b'{"x":[{"y":1234567890123456789012345}],"z":1.5,"s":"\xc3\xa9 123456789012345678901234567890"}',
        b"9" * 4000,
        b"1e+30",
        b"1.2345678901234568e+24",
    ],
)
def test_integers_come_out_digit_for_digit(value: bytes) -> None:
    for padding in (b"", b',"g":1e400'):
        assert event_of(b'{"f":%b,"h.i":%b%b}' % (value, value, padding), "f", "h.i") == b'{"f":%b,"h.i":%b}' % (
            value,
            value,
        )


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_float32_text_is_the_shortest_that_gives_the_bits_back(bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    values = np.concatenate([values[np.isfinite(values)], np.float32([0.1, 1e-45, 3.4028235e38, 16777216])])
    messages = encode(prediction=values.tolist(), score=float(values[0]))
    found = (messages[0].value or b"").decode()
    texts = found[found.index('"prediction":[') + 14 : found.index("]")].split(",")
    assert found[found.index('"score":') + 8 : found.index(',"prediction"')] == texts[0]
    for text, value in zip(texts, values, strict=True):
        assert text.encode() == orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
        assert np.float32(text).tobytes() == value.tobytes()
        digits = [
            t.partition("e")[0].replace(".", "").lstrip("-0").rstrip("0")
            for t in (text, np.format_float_scientific(value))
        ]
        assert len(digits[0]) <= len(digits[1])


@given(st.integers(-62135596800000, 253402300799999))
def test_times_are_iso_8601_in_milliseconds(ms: int) -> None:
    moment = datetime(1970, 1, 1) + timedelta(milliseconds=ms)
    assert iso_texts(np.array([ms, 0])) == [
        moment.isoformat(timespec="milliseconds").encode(),
        b"1970-01-01T00:00:00.000",
    ]


class Says:
    """A model whose score is the event's amount."""

    card = dataclasses.replace(onnx_step("small").card, threshold=None)

    def step(self, given: StepInput) -> StepOutput:
        return StepOutput(given.state, given.x[:, 0], None)


@pytest.mark.parametrize("threshold", [0.5, 0.1, 0.3, 0.7, 1e-45, 16777217.0])
def test_alert_is_score_at_least_the_float32_threshold(threshold: float) -> None:
    edge = np.float32(threshold)
    scores = [np.nextafter(edge, np.float32(-1e9)), edge, np.nextafter(edge, np.float32(1e9))]
    made = engine(Says(), threshold=threshold)
    events = [Event(0, i, 0, b"k", b'{"amount":%r}' % float(score)) for i, score in enumerate(scores)]
    result = made.process(batch(events))
    assert result.predictions.alert.tolist() == [False, True, True]
    alerts = [json.loads(m.value or b"")["source"]["offset"] for m in flatten(result.outputs) if m.topic == ALERTS]
    assert alerts == [1, 2]


def test_without_a_threshold_nothing_alerts() -> None:
    result = engine(Says()).process(batch([Event(0, 0, 0, b"k", b'{"amount":3e38}')]))
    assert (result.predictions.alert.tolist(), len(flatten(result.outputs))) == ([False], 1)


def dead_letter(
    letter: DeadLetter, *, record_ms: int = NOW_MS, key_hashed: Collection[str] = ()
) -> tuple[RecordBatch, Message]:
    records = batch(
        [Event(0, 1, 2, b"other", b"{}"), Event(3, 2**40, record_ms, b"\xffkey", b"\xff{not json")],
        topic="transactions",
        headers=[(), HEADERS],
    )
    decoded = Decoder(CARD).decode(batch([]))
    nothing = np.empty(0, np.int64)
    predictions = Predictions(nothing, np.empty(0, np.float32), None, np.empty(0, np.bool_), nothing)
    made = Encoder(CARD, OutputTopics(OUT, ALERTS, LETTERS, key_hashed))
    outputs = made.encode(records, decoded, predictions, [letter])
    (message,) = messages_of(outputs.dead_letters)
    assert outputs.batches() == [outputs.dead_letters]
    return records, message


@pytest.mark.parametrize("stage", ["decode", "validate", "late", "step"])
def test_a_dead_letter_is_the_record_untouched_and_why(stage: str) -> None:
    records, message = dead_letter(DeadLetter(1, stage, "field 'größe' is wrong"))
    assert message == Message(
        LETTERS,
        3,
        records.keys[1],
        records.values[1],
        NOW_MS,
        [
            ("traceparent", b"00-1-2-01"),
            ("empty", None),
            ("__streams.errors.exception", b"lstmstream.errors.BadRecord"),
            ("__streams.errors.message", "field 'größe' is wrong".encode()),
            ("__streams.errors.topic", b"transactions"),
            ("__streams.errors.partition", b"3"),
            ("__streams.errors.offset", b"1099511627776"),
            ("lstmstream.stage", stage.encode()),
        ],
    )


def test_a_dead_letter_keeps_even_a_missing_time_and_may_lack_value_and_partition() -> None:
    _, message = dead_letter(DeadLetter(1, "decode", "too large", with_value=False), record_ms=-1, key_hashed=[LETTERS])
    assert (message.value, message.key, message.timestamp_ms, message.partition) == (None, b"\xffkey", -1, BY_KEY)


def test_an_oversized_value_leaves_its_size_only() -> None:
    result = engine("small", max_bytes=100).process(batch([Event(0, 5, NOW_MS, b"k", b'{"x":"%b"}' % (b"y" * 100))]))
    (message,) = flatten(result.outputs)
    assert (message.topic, message.value, message.key) == (LETTERS, None, b"k")
    assert b"109 bytes" in (dict(message.headers)["__streams.errors.message"] or b"")


def test_predictions_keep_the_records_order_and_dead_letters_theirs() -> None:
    values = [b"{", b"{}", b'{"amount":666}', b"{}", b"{", b'{"amount":666}', b"{}"]
    events = [Event(0, 10 + i, NOW_MS, b"%d" % (i % 2), value) for i, value in enumerate(values)]
    messages = flatten(engine("poisoned_score", alerts=None).process(batch(events)).outputs)
    offsets = [json.loads(m.value or b"")["source"]["offset"] for m in messages if m.topic == OUT]
    assert offsets == [11, 13, 16]
    letters = [dict(m.headers)["__streams.errors.offset"] for m in messages if m.topic == LETTERS]
    assert letters == [b"10", b"12", b"14", b"15"]
