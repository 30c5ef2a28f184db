"""The bytes of section 7: golden records for each variation, float32 text, alerts, dead letters."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import orjson
import pytest
from helpers import ALERTS, LETTERS, OUT, batch, engine, onnx_step
from hypothesis import given
from hypothesis import strategies as st
from reference import Event

from lstmstream.serve.encode import Encoder, iso_texts
from lstmstream.serve.engine import Engine
from lstmstream.serve.records import Answers, Columns, DeadLetter, Message, RecordBatch
from lstmstream.serve.step import StepInput, StepOutput

NOW_MS = 1_767_609_067_123
HEADERS = [("traceparent", b"00-1-2-01"), ("empty", None)]
CARD = dataclasses.replace(onnx_step("small").card, name='card-"fraud"', version="3")


def encode(
    *,
    key: bytes | None = b"c000123",
    score: float = 0.0312,
    prediction: list[float] | None = None,
    alert: bool = False,
    included: bytes | None = None,
    output_key: bytes | None = None,
    record_ms: int = NOW_MS,
    event_ms: int = NOW_MS,
    **named: Any,
) -> list[Message]:
    """The messages of one answered record: partition 2, offset 48213."""
    records = batch([Event(2, 48213, record_ms, b"the record's", b"{}")], topic="transactions", headers=[HEADERS])
    at = np.array([0])
    columns = Columns(
        index=at,
        partitions=np.array([2]),
        offsets=np.array([48213]),
        keys=[key],
        timestamps=np.array([event_ms]),
        x=np.zeros((1, 1), np.float32),
        categories=np.zeros((1, 0), np.int64),
        included=None if included is None else [included],
        output_keys=None if output_key is None else [output_key],
    )
    answers = Answers(
        at,
        np.array([score], np.float32),
        None if prediction is None else np.array([prediction], np.float32),
        np.array([alert]),
        np.array([41]),
    )
    topics = {"output_topic": OUT, "alerts_topic": None, "dead_letter_topic": LETTERS} | named
    return Encoder(CARD, **topics).encode(records, columns, answers, [])


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
        ({"prediction": []}, b'{"key":"c000123",%b,"score":0.0312,"prediction":[],"alert":false,%b}' % (TIME, TAIL)),
        (
            {"included": b'{"a":1}'},
            b'{"key":"c000123",%b,"score":0.0312,"alert":false,%b,"event":{"a":1}}' % (TIME, TAIL),
        ),
        ({"included": b"{}"}, b'{"key":"c000123",%b,"score":0.0312,"alert":false,%b,"event":{}}' % (TIME, TAIL)),
        (
            {"from_file": True, "included": b"{}"},
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
    assert encode(output_key=b"merchant")[0].key == b"merchant"
    assert json.loads(encode(output_key=b"merchant")[0].value or b"")["key"] == "c000123"
    assert encode(hashed_topics=[OUT])[0].partition is None
    assert encode(record_ms=-1)[0].timestamp_ms == -1
    assert encode(record_ms=0)[0].timestamp_ms == 0


def test_an_alert_is_the_same_record_once_more() -> None:
    prediction, alert = encode(alert=True, alerts_topic=ALERTS, hashed_topics=[ALERTS])
    assert alert == prediction._replace(topic=ALERTS, partition=None)
    assert len(encode(alert=False, alerts_topic=ALERTS)) == 1
    assert len(encode(alert=True)) == 1


def digits(number: str) -> int:
    return len(number.partition("e")[0].replace(".", "").lstrip("-0").rstrip("0"))


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
    made = engine(Says())
    edge = np.float32(threshold)
    scores = [np.nextafter(edge, np.float32(-1e9)), edge, np.nextafter(edge, np.float32(1e9))]
    made = Engine(Says(), made._decoder, made._encoder, ttl_ms=None, late="apply", threshold=threshold)
    made.states.open(0)
    events = [Event(0, i, 0, b"k", b'{"amount":%r}' % float(score)) for i, score in enumerate(scores)]
    assert made.process(batch(events)).answers.alert.tolist() == [False, True, True]


def test_without_a_threshold_nothing_alerts() -> None:
    result = engine(Says()).process(batch([Event(0, 0, 0, b"k", b'{"amount":3e38}')]))
    assert (result.answers.alert.tolist(), len(result.messages)) == ([False], 1)


def dead_letter(letter: DeadLetter, *, record_ms: int = NOW_MS, **named: Any) -> tuple[RecordBatch, Message]:
    records = batch(
        [Event(0, 1, 2, b"other", b"{}"), Event(3, 2**40, record_ms, b"\xffkey", b"\xff{not json")],
        topic="transactions",
        headers=[(), HEADERS],
    )
    columns, _ = engine("small")._decoder.decode(batch([]))
    nothing = np.empty(0, np.int64)
    answers = Answers(nothing, np.empty(0, np.float32), None, np.empty(0, np.bool_), nothing)
    made = Encoder(CARD, output_topic=OUT, alerts_topic=ALERTS, dead_letter_topic=LETTERS, **named)
    (message,) = made.encode(records, columns, answers, [letter])
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
    _, message = dead_letter(
        DeadLetter(1, "decode", "too large", keep_value=False), record_ms=-1, hashed_topics=[LETTERS]
    )
    assert (message.value, message.key, message.timestamp_ms, message.partition) == (None, b"\xffkey", -1, None)


def test_an_oversized_value_leaves_its_size_only() -> None:
    result = engine("small", max_bytes=100).process(batch([Event(0, 5, NOW_MS, b"k", b'{"x":"%b"}' % (b"y" * 100))]))
    (message,) = result.messages
    assert (message.topic, message.value, message.key) == (LETTERS, None, b"k")
    assert b"109 bytes" in (dict(message.headers)["__streams.errors.message"] or b"")


def test_predictions_keep_the_records_order_and_dead_letters_theirs() -> None:
    values = [b"{", b"{}", b'{"amount":666}', b"{}", b"{", b'{"amount":666}', b"{}"]
    events = [Event(0, 10 + i, NOW_MS, b"%d" % (i % 2), value) for i, value in enumerate(values)]
    messages = engine("poisoned_score", alerts=None).process(batch(events)).messages
    offsets = [json.loads(m.value or b"")["source"]["offset"] for m in messages if m.topic == OUT]
    assert offsets == [11, 13, 16]
    letters = [dict(m.headers)["__streams.errors.offset"] for m in messages if m.topic == LETTERS]
    assert letters == [b"10", b"12", b"14", b"15"]
