"""An alert names the features without which its score would be lower, with the size of each; nothing else changes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmstream import codec
from lstmstream.errors import CannotServe
from lstmstream.model import load_model
from lstmstream.model.card import Card, Feature, StatePart, StateSpec
from lstmstream.records import Predictions
from lstmstream.serve import reasons
from lstmstream.serve.reasons import Occlusion
from lstmstream.serve.split_step import SplitRounds
from lstmstream.serve.step import OnnxStep
from lstmstream.serve.step_model import StepInput, StepOutput
from tests.models import poisoned_model
from tests.serve.helpers import ALERTS, OUT, Message, batch, engine, flatten, run, snapshot
from tests.serve.reference import Answer, Event, Reference
from tests.serve.scoring import run as score

NOW_MS = 1_767_609_067_123
TTL_MS = 50_000


class Sums:
    """Its score is a + the sum of `many` + shop / 4 + elapsed / 1000 + the state, which is the last a; NaN is 0."""

    def __init__(self, *, strict: bool = False) -> None:
        """`strict`: without `many` there is no score."""
        self.card = Card(
            name="sums",
            version="1",
            task="anomaly",
            features=(
                Feature("a", "number"),
                Feature("shop", "category", vocabulary=("x", "y")),
                Feature("many", "number", size=3),
                Feature("unused", "number"),
            ),
            state=StateSpec(1, (0.0,), (StatePart("last", 0, (1,)),)),
            outputs=("state_out", "score"),
            threshold=3.0,
        )
        self._strict = strict
        self.rows = 0

    def step(self, given: StepInput) -> StepOutput:
        self.rows += len(given.x)
        x = np.nan_to_num(given.x)
        score = x[:, 0] + x[:, 1:4].sum(axis=1) + given.categories[:, 0].astype(np.float32) / 4
        score += np.nan_to_num(given.elapsed) / np.float32(1000) + given.state[:, 0]
        if self._strict:
            score[np.isnan(given.x[:, 1])] = np.nan
        return StepOutput(x[:, :1].copy(), score.astype(np.float32), None)


def event(offset: int, value: dict[str, Any], *, at_s: float = 0.0) -> Event:
    return Event(0, offset, NOW_MS + round(at_s * 1000), b"k", json.dumps(value).encode())


def predictions(messages: Sequence[Message], topic: str = OUT) -> list[dict[str, Any]]:
    return [json.loads(message.value or b"") for message in messages if message.topic == topic]


def test_each_feature_has_its_size_and_the_largest_come_first() -> None:
    made = engine(Sums(), reasons=10)
    events = [
        event(0, {"a": 2, "shop": "y", "many": [0.25, 0.5, 1], "unused": 7}),
        event(1, {"a": -1, "shop": "z", "many": [3, 1, -0.5]}, at_s=500),  # on the state 2
        event(2, {"a": 1, "shop": "x"}, at_s=501),
        event(3, {"a": None, "shop": "x", "many": [None, 4, None]}, at_s=502),
    ]
    found = predictions(run(made, events, [4]))
    assert [one["score"] for one in found] == [4.25, 5.0, pytest.approx(0.251), pytest.approx(5.251)]
    assert [one.get("reasons") for one in found] == [
        [{"feature": "a", "size": 2.0}, {"feature": "many", "size": 1.75}, {"feature": "shop", "size": 0.5}],
        [{"feature": "many", "size": 3.5}, {"feature": "elapsed", "size": 0.5}],
        None,  # no alert
        [
            {"feature": "many", "size": pytest.approx(4.0)},
            {"feature": "shop", "size": pytest.approx(0.25)},
            {"feature": "elapsed", "size": pytest.approx(0.001, rel=1e-3)},
        ],
    ]


def test_only_so_many_are_named_and_equal_ones_in_the_order_of_the_card() -> None:
    values = {"a": 1, "shop": "y", "many": [0.5, 0.5, 0], "unused": 1}
    events = [event(0, values | {"a": 3}), event(1, {"a": 2, "shop": "x", "many": [0, 1, 1]}), event(2, values)]
    (_, second, third) = predictions(run(engine(Sums(), reasons=2), events, [3]))
    assert [one["feature"] for one in second["reasons"]] == ["a", "many"]
    assert third["reasons"] == [{"feature": "a", "size": 1.0}, {"feature": "many", "size": 1.0}]


def test_an_alert_that_the_state_alone_makes_has_none() -> None:
    found = predictions(run(engine(Sums(), reasons=3), [event(0, {"a": 4}), event(1, {})], [2]))
    assert [one["reasons"] for one in found] == [[{"feature": "a", "size": 4.0}], []]


def test_rows_are_tried_for_alerts_and_for_what_they_have_only() -> None:
    model = Sums()
    made = engine(model, reasons=3)
    model.rows = 0
    run(made, [event(n, {"a": 4 if n == 5 else 1, "many": [0, 0, 0]}) for n in range(6)], [1] * 6)
    assert model.rows == 6 + 1 + 3  # the alert once more, then without a, many and elapsed


def test_a_field_of_two_kinds_is_taken_away_as_a_whole() -> None:
    model = Sums()
    model.card = replace(
        model.card,
        features=(
            Feature("shop", "number"),
            Feature("shop", "category", vocabulary=("3",)),
            Feature("elapsed", "number", size=3),
            Feature("unused", "number"),
        ),
    )
    events = [event(0, {"shop": 0.0, "elapsed": [2, 0, 0]}), event(1, {"shop": 3, "elapsed": [1, 0, 0]}, at_s=250)]
    model.card = replace(model.card, threshold=0.0)
    found = predictions(run(engine(model, reasons=3), events, [2]))
    assert found[0]["reasons"] == [{"feature": "elapsed", "size": 2.0}]
    assert found[1]["reasons"] == [{"feature": "shop", "size": 3.25}, {"feature": "elapsed", "size": 1.25}]


def test_wide_rows_are_tried_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event(n, {"a": n, "shop": "x", "many": [n, 2, 3], "unused": n}, at_s=n) for n in range(40)]
    at_once = run(engine(Sums(), reasons=9), events, [40])
    monkeypatch.setattr(reasons, "_ROWS_AT_ONCE", 3)
    model = Sums()
    assert run(engine(model, reasons=9), events, [40]) == at_once


def test_a_model_that_cannot_do_without_a_feature_is_refused() -> None:
    with pytest.raises(CannotServe, match=r"'many' is missing.*--missing zero"):
        Occlusion(Sums(strict=True))
    engine(Sums(strict=True))


# -- real models, against a plain second implementation


def stream(count: int, *, seed: int = 3, keys: int = 4) -> list[Event]:
    """Key 0 has half of all events; some are late, some expire, some fail, some lack fields."""
    source, events, now_ms = random.Random(seed), [], NOW_MS
    for offset in range(count):
        now_ms += source.choice([0, 10, 900, 4_000, TTL_MS + 1 if source.random() < 0.1 else 5])
        value: dict[str, Any] = {"amount": 666 if source.random() < 0.03 else round(source.uniform(-50, 90), 1)}
        value |= {"risk": source.choice([None, 1.5, -2]), "channel": source.choice(["web", "fax", None])}
        key = b"k%d" % (0 if source.random() < 0.5 else source.randrange(keys))
        at_ms = now_ms - source.choice([0, 0, 0, 7_000])
        events.append(Event(offset % 2, offset, at_ms, key, json.dumps(value).encode()))
    return events


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return poisoned_model(
        tmp_path_factory.mktemp("model"),
        numbers=("amount", "risk"),
        categories={"channel": ["web", "app"]},
        hidden=4,
        threshold=0.4,  # of about every third event
    )


def opened(path: Path) -> OnnxStep:
    return OnnxStep(load_model(path), device="cpu")


@pytest.mark.usefixtures("either_place")
@pytest.mark.parametrize("late", ["apply", "score", "drop"])
def test_any_batches_give_the_reasons_of_one_event_after_the_other(path: Path, late: str) -> None:
    events = stream(400)
    reference = Reference(path, late=late, ttl_ms=TTL_MS, reasons=2)
    answers = [answer for one in events if isinstance(answer := reference.answer(one), Answer)]
    for sizes in ([1] * 400, [3] * 134, [170, 1, 229]):
        made = engine(opened(path), late=late, ttl_ms=TTL_MS, partitions=range(2), reasons=2)
        written = run(made, events, sizes)
        for topic, wanted in ((OUT, answers), (ALERTS, [one for one in answers if one.alert])):
            assert sorted(one.value or b"" for one in written if one.topic == topic) == sorted(
                one.value for one in wanted
            )
    assert sum(b'"reasons":[{' in one.value for one in answers) > 50


def test_a_hot_key_has_them_in_the_middle_of_its_events(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = SplitRounds.step_key
    monkeypatch.setattr(SplitRounds, "step_key", lambda *given: calls.append(1) or real(*given))
    events = [replace_value(one, amount=n % 37 - 50) for n, one in enumerate(stream(200, keys=1))]
    at_once = run(engine(opened(path), partitions=range(2), reasons=3), events, [200])
    assert calls
    one_by_one = run(engine(opened(path), partitions=range(2), reasons=3), events, [1] * 200)
    assert sorted(at_once, key=str) == sorted(one_by_one, key=str)
    assert sum("reasons" in one for one in predictions(at_once)) > 20


def replace_value(one: Event, **members: Any) -> Event:
    return one._replace(value=json.dumps(json.loads(one.value or b"") | members).encode())


@pytest.mark.usefixtures("either_place")
def test_without_its_reasons_every_byte_and_state_is_as_before(path: Path) -> None:
    events = stream(300)
    off = engine(opened(path), ttl_ms=TTL_MS, partitions=range(2))
    on = engine(opened(path), ttl_ms=TTL_MS, partitions=range(2), reasons=3)
    plain, named = run(off, events, [100] * 3), run(on, events, [100] * 3)
    assert not any(b"reasons" in (one.value or b"") for one in plain)
    assert sum(b"reasons" in (one.value or b"") for one in named) > 50
    assert [one._replace(value=without_reasons(one.value)) for one in named] == plain
    assert snapshot(on.scorer.states) == snapshot(off.scorer.states)


def without_reasons(value: bytes | None) -> bytes | None:
    if value is None or b',"reasons":[' not in value:
        return value
    start = value.index(b',"reasons":[')
    return value[:start] + value[value.index(b"]", start) + 1 :]


@pytest.mark.usefixtures("either_place")
def test_a_batch_that_is_rolled_back_and_done_again_has_the_same(path: Path) -> None:
    events = stream(200)
    made = engine(opened(path), partitions=range(2), reasons=3)
    made.process(batch(events[:80]))
    made.commit()
    before = snapshot(made.scorer.states)
    first = flatten(made.process(batch(events[80:140])).outputs)
    ahead = flatten(made.process(batch(events[140:])).outputs)  # while the first is in flight
    made.rollback()
    made.rollback()
    assert snapshot(made.scorer.states) == before
    assert flatten(made.process(batch(events[80:140])).outputs) == first
    assert flatten(made.process(batch(events[140:])).outputs) == ahead


def test_both_codecs_write_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = stream(200)
    monkeypatch.setenv(codec.VARIABLE, "pure")
    pure = run(engine(opened(path), partitions=range(2), reasons=2), events, [200])
    monkeypatch.setenv(codec.VARIABLE, "compiled")
    assert run(engine(opened(path), partitions=range(2), reasons=2), events, [200]) == pure
    assert any("reasons" in one for one in predictions(pure))


def test_what_is_refused_takes_its_reasons_with_it() -> None:
    numbers = np.arange(5)
    alert = np.array([True, False, True, False, True])
    given = Predictions(numbers, numbers.astype(np.float32), None, alert, numbers, np.eye(3, dtype=np.float32))
    kept = given.take(np.array([1, 2, 3, 4]))
    assert kept.reasons is not None
    assert kept.reasons.tolist() == [[0, 1, 0], [0, 0, 1]]
    nothing = given.take(np.array([1]))
    assert nothing.reasons is not None
    assert nothing.reasons.shape == (0, 3)


def test_score_writes_them_where_its_config_asks(path: Path, tmp_path: Path) -> None:
    config, data, out = tmp_path / "c.yaml", tmp_path / "d.jsonl", tmp_path / "o.jsonl"
    config.write_text(
        f"{{name: n, model: {path}, kafka: {{bootstrap_servers: 'b:1'}}, input: {{topic: i, key: id, timestamp: at}},"
        " output: {topic: o, threshold: 0.0, reasons: 1}}"
    )
    data.write_text('{"id": "k", "at": "2026-01-05", "amount": 60, "channel": "web"}\n')
    assert score(config, data, "--out", out) == 0
    reference = Reference(path, key="id", timestamp="at", reasons=1)
    reference.card["threshold"] = 0.0
    answer = reference.answer(Event(0, 0, -1, None, data.read_bytes()))
    assert isinstance(answer, Answer)
    assert json.loads(out.read_bytes())["reasons"] == json.loads(answer.value)["reasons"]
