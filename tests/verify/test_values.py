"""What verify reads from hostile events, beside the engine, which has its own definitions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from lstmstream.model import load_model
from lstmstream.serve.step import OnnxStep
from lstmstream.verify.expected import Recomputation, Renderer, Settings
from lstmstream.verify.model import RowModel
from lstmstream.verify.values import Refused, carried_text, read_object, read_time
from tests.models import random_model
from tests.serve.helpers import batch, engine, flatten
from tests.serve.hostile_events import hostile_event
from tests.serve.reference import Event

NOW_MS = 1_700_000_000_000
THRESHOLD = 0.4
INCLUDE = ("other", "place", "spectrum", "amount", "channel", "é", "a b")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hostile_events_mean_what_they_mean_to_the_engine(tmp_path: Path, seed: int) -> None:
    categories: dict[str, Any] = {"channel": ["web", "7", "true"], "shop": 5, "a b": ["x"]}
    model = load_model(random_model(tmp_path, numbers=("amount", "place.risk", "risk"), categories=categories))
    fields = {"key": "id", "timestamp": "at"}
    made = engine(
        OnnxStep(model, device="cpu"),
        include=INCLUDE,
        output_key="shop",
        max_future_ms=365 * 86_400_000,
        threshold=THRESHOLD,
        reasons=3,
        **fields,
    )
    settings = Settings(include=INCLUDE, output_key="shop", threshold=THRESHOLD, reasons=3, **fields)
    own, renderer = Recomputation(RowModel(model), model.card, settings), Renderer(model, "in")
    source, predictions, with_reasons = random.Random(seed), 0, 0
    for offset in range(1500):
        value = hostile_event(source)
        (message,) = (
            one
            for one in flatten(made.process(batch([Event(0, offset, NOW_MS, b"k", value)])).outputs)
            if one.topic != "alerts"
        )
        made.commit()
        expected = own.expect(NOW_MS, b"k", value)
        stage = dict(message.headers).get("lstmstream.stage")
        assert (expected.stage or "").encode() == (stage or b""), value
        if stage is None:
            predictions += 1
            assert renderer.render(expected, 0, offset) == message.value, value
            assert expected.record_key == message.key
            with_reasons += b'"reasons":[{' in (message.value or b"")
    assert predictions > 100
    assert predictions > with_reasons > 20


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1_700_000_000, 1_700_000_000_000),
        (1_700_000_000_123, 1_700_000_000_123),
        (1.0019, 1001),
        (-1.5, -1500),
        (20260105, 1_767_571_200_000),
        ("202601050812", 1_767_600_720_000),
        ("20260105081240.123", 1_767_600_760_123),
        (20260105081240123, 1_767_600_760_123),
        ("2026-01-05", 1_767_571_200_000),
        ("2026-01-05T08:12:40.1239+01:00", 1_767_597_160_123),
        (" 1e3 ", 1_000_000),
    ],
)
def test_times(value: Any, expected: int) -> None:
    assert read_time(value) == expected


@pytest.mark.parametrize(
    "value",
    [True, None, [], "", "nan", 20260230, 20243805214578560.0, 10**18, 1e300, "01/05/2026", "20260105-0812", 2**70],
)
def test_what_is_no_time(value: Any) -> None:
    with pytest.raises(Refused):
        read_time(value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"[1]",
        b'"x"',
        b"\xff{}",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": "\\ud83d"}',
        b'{"\\ud83d": 1, "a": 2}',
        b'{"a": ' + b"[" * 1024 + b"]" * 1024 + b"}",
        b'{"a": ' + b"[" * 100_000,
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
    ],
)
def test_what_is_no_event(value: bytes | None) -> None:
    with pytest.raises(Refused, match="decode"):
        read_object(value)


def test_what_is_an_event() -> None:
    assert read_object(b"\xef\xbb\xbf{}") == {}
    assert read_object(b'{"a": 1, "a": "\\\\ud83d\\ud83d\\ude00"}') == {"a": "\\ud83d\U0001f600"}
    deep = b'{"a": ' + b"[" * 1023 + b"]" * 1023 + b"}"
    assert json.dumps(read_object(b'{"a": 1e400}')) == '{"a": Infinity}'
    assert list(read_object(deep)) == ["a"]
    digits = b"9" * 10_000
    assert carried_text(read_object(b'{"a": [%b]}' % digits)["a"]) == b"[%b]" % digits
