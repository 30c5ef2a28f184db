"""`input.silent`: the event moves its key's state as any other does, and nothing is published for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream import Scorer
from lstmstream.config.diagnostics import validate
from lstmstream.config.schema import Config
from lstmstream.serve.score import score_file
from lstmstream.testing import TestDriver
from tests.serve.helpers import DATA, batch, engine, messages_of, one, snapshot, stage_of
from tests.serve.reference import Event

CONFIG: dict[str, Any] = {
    "name": "t",
    "model": str(DATA / "small.onnx"),
    "input": {"topic": "in", "key": "customer", "silent": {"field": "kind", "equals": "report"}},
    "output": {"topic": "out", "alerts_topic": "alerts", "threshold": 0.0},
}

pytestmark = pytest.mark.usefixtures("either_codec")

kinds = st.sampled_from([b"null", b'"report"', b'"reports"', b'"r\\u0065port"', b'""', b"7", b"true"])
amounts = st.sampled_from([b"null", b"3", b"-1.5", b"12.25", b"666", b"true"])


@st.composite
def streams(draw: Any) -> list[Event]:
    """Events of two keys, with and without the field, some of them late, some dead letters."""
    drawn = draw(st.lists(st.tuples(kinds, amounts, st.sampled_from([b"a", b"b"]), st.integers(-2000, 9000))))
    events, now_ms = [], 1_767_609_067_000
    for offset, (kind, amount, key, pause_ms) in enumerate(drawn):
        now_ms += pause_ms
        mark = b"" if kind == b'""' else b',"kind":' + kind
        events.append(Event(0, offset, now_ms, key, b'{"amount":%b%b}' % (amount, mark)))
    return events


def is_marked(event: Event) -> bool:
    return json.loads(event.value or b"").get("kind") == "report"


@given(events=streams(), size=st.integers(1, 9), late=st.sampled_from(["apply", "score", "drop"]))
@settings(max_examples=60, deadline=None)
def test_states_are_those_of_ordinary_events_and_only_predictions_are_left_out(
    events: list[Event], size: int, late: str
) -> None:
    silent = engine("small", late=late, ttl_ms=60_000, silent=("kind", "report"))
    ordinary = engine("small", late=late, ttl_ms=60_000)
    for start in range(0, len(events), size):
        some = events[start : start + size]
        found, plain = silent.process(batch(some)), ordinary.process(batch(some))
        marked = {event.offset for event in some if is_marked(event)}
        answered = [
            message
            for message in messages_of(plain.outputs.predictions)
            if orjson.loads(message.value or b"")["source"]["offset"] not in marked
        ]
        assert messages_of(found.outputs.predictions) == answered
        assert messages_of(found.outputs.dead_letters) == messages_of(plain.outputs.dead_letters)
        assert found.silent_events == len(marked - {some[letter.index].offset for letter in plain.dead_letters})
        assert (found.late_events, found.expired) == (plain.late_events, plain.expired)
        silent.commit()
        ordinary.commit()
    assert snapshot(silent.scorer.states) == snapshot(ordinary.scorer.states)


@pytest.mark.parametrize(
    ("value", "equals", "is_silent"),
    [
        (b"1", "1", True),
        (b"1.0", "1", True),
        (b'"1.0"', "1", True),
        (b'"1"', "1.0", True),
        (b"true", "true", True),
        (b'"True"', "true", True),
        (b"1", "true", False),
        (b'"Report"', "report", False),
        (b"null", "", False),
        (b'""', "", True),
    ],
)
def test_a_value_is_compared_as_the_text_of_a_category(value: bytes, equals: str, is_silent: bool) -> None:
    found = engine("small", silent=("mark.kind", equals)).process(one(b'{"amount":1,"mark":{"kind":%b}}' % value))
    assert (found.silent_events, len(found.predictions.index)) == (int(is_silent), int(not is_silent))
    assert not found.dead_letters


@pytest.mark.parametrize("value", [b"1.5", b'["report"]', b'{"report":1}'])
def test_a_value_without_a_text_is_a_dead_letter(value: bytes) -> None:
    found = engine("small", silent=("kind", "report")).process(one(b'{"amount":1,"kind":%b}' % value))
    (letter,) = messages_of(found.outputs.dead_letters)
    assert stage_of(letter) == "validate"
    assert "'kind'" in found.dead_letters[0].message
    assert found.silent_events == 0


def test_the_field_may_be_one_that_the_model_reads() -> None:
    made = engine("small", silent=("channel", "app"))
    found = made.process(
        batch([Event(0, i, i, b"k", b'{"channel":"%b"}' % name) for i, name in enumerate([b"web", b"app"])])
    )
    assert found.predictions.index.tolist() == [0]


def test_silent_events_are_committed_counted_and_survive_a_crash() -> None:
    purchase = {"customer": "c1", "amount": 5, "channel": "web"}
    with TestDriver(CONFIG) as driver:
        driver.pipe(purchase)
        driver.pipe_all([{**purchase, "kind": "report"}] * 3)
        assert [prediction.value["steps"] for prediction in driver.read_predictions()] == [1]
        assert len(driver.read_alerts()) == 1
        assert driver.metric("lstmstream_silent_events_total") == 3
        assert driver.metric("lstmstream_events_total") == 4
        driver.crash()
        driver.pipe({"customer": "c1", "kind": "report", "amount": "x"})
        driver.pipe(purchase)
        driver.restart()
        assert [prediction.value["steps"] for prediction in driver.read_predictions()] == [5]
        assert [letter.stage for letter in driver.read_dead_letters()] == ["validate"]
        state = driver.state("c1")
        assert state is not None
        assert state.steps == 5


def test_score_and_scorer_do_as_the_daemon_does(tmp_path: Path) -> None:
    rows = [
        {"customer": f"c{i % 2}", "time": 1_767_225_600 + i, "amount": i, "kind": "report" if i % 3 == 1 else "buy"}
        for i in range(12)
    ]
    inputs = {**CONFIG["input"], "timestamp": "time"}
    config = tmp_path / "t.yaml"
    config.write_text(
        yaml.safe_dump({**CONFIG, "kafka": {"bootstrap_servers": "x:1"}, "input": inputs}), encoding="utf-8"
    )
    with TestDriver({**CONFIG, "input": inputs}) as driver:
        driver.pipe_all(rows)
        wanted = [(p.value["source"]["offset"], p.value["score"], p.value["steps"]) for p in driver.read_predictions()]
    assert len(wanted) == 8
    data, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    data.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    assert score_file(str(config), str(data), out=str(out), key=None, timestamp=None, dead_letters=None) == 0
    scored = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert [(one["source"]["row"], one["score"], one["steps"]) for one in scored] == wanted

    settings = validate(Config, {**CONFIG, "input": inputs, "kafka": {"bootstrap_servers": "x:1"}}, tmp_path)
    answers = Scorer(settings).score(rows)
    assert [(i, a["score"], a["steps"]) for i, a in enumerate(answers) if a["score"] is not None] == [
        (row, pytest.approx(score, abs=0), steps) for row, score, steps in wanted
    ]
    assert all(answer["error"] is None for answer in answers)
