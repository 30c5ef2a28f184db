"""`lstmstream.Scorer`: the daemon's answers in a notebook, and states that are kept between calls."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmstream import CannotServe, Scorer
from lstmstream.testing import TestDriver

MODEL = Path(__file__).parents[1] / "data" / "small.onnx"


def opened(**options: Any) -> Scorer:
    return Scorer.open(MODEL, **{"key": "customer", "timestamp": "time", **options})


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"customer": f"c{i % 3}", "time": 1_767_225_600 + i, "amount": i * 7 % 31, "channel": "web"}
        for i in range(count)
    ]


def test_the_answers_are_the_daemons() -> None:
    config = {
        "name": "t",
        "model": str(MODEL),
        "input": {"topic": "in", "key": "customer", "timestamp": "time"},
        "output": {"topic": "out"},
    }
    with TestDriver(config) as driver:
        driver.pipe_all(rows(50))
        streamed = [prediction.value for prediction in driver.read_predictions()]
    names = ("key", "timestamp", "score", "prediction", "alert", "steps")
    answers = opened().score(rows(50))
    assert [{name: answer[name] for name in names} for answer in answers] == [
        {name: value[name] for name in names} for value in streamed
    ]


def test_states_go_on_from_call_to_call() -> None:
    at_once = opened().score(rows(50))
    scorer = opened()
    assert scorer.score(rows(50)[:20]) + scorer.score(rows(50)[20:]) == at_once
    state = scorer.state("c0")
    assert state is not None
    assert (state.steps, state.last_timestamp) == (17, "2026-01-01T00:00:48Z")
    assert {name: part.shape for name, part in state.parts.items()} == {"h0": (8,), "c0": (8,)}
    assert scorer.state("c9") is None


def test_more_rows_than_a_batch() -> None:
    answers = opened().score(rows(10_000))
    assert len(answers) == 10_000
    assert answers[-1]["steps"] == 3334


def test_a_row_that_cannot_be_answered_says_why() -> None:
    answers = opened().score(
        [*rows(1), {"time": 0}, {"customer": "c0", "time": "soon"}, {"customer": "c0", "time": 1, "amount": "x"}]
    )
    assert answers[0]["error"] is None
    assert [answer["error"] for answer in answers[1:]] == [
        "field 'customer', the key, is missing",
        "field 'time' is not an ISO 8601 time such as 2026-01-31T12:00:00Z, nor a number",
        "field 'amount' is a string, not a number",
    ]
    assert all(answer["score"] is None for answer in answers[1:])


def test_values_of_python_are_those_of_json() -> None:
    plain = {"customer": "c0", "time": "2026-01-05T10:31:07.250Z", "amount": 12.5}
    same = [
        {"customer": "c0", "time": datetime(2026, 1, 5, 10, 31, 7, 250_000, tzinfo=UTC), "amount": np.float32(12.5)},
        {"customer": "c0", "time": np.datetime64("2026-01-05T10:31:07.250"), "amount": Decimal("12.5")},
    ]
    for row in same:
        assert opened().score([row]) == opened().score([plain])
    missing = [{**plain, "amount": value} for value in (None, float("nan"), np.float64("nan"))]
    without = {name: value for name, value in plain.items() if name != "amount"}
    for row in missing:
        assert opened().score([row]) == opened().score([without])
    for infinite in (float("inf"), np.float32("-inf")):
        (answer,) = opened().score([{**plain, "amount": infinite}])
        assert answer["error"] == "field 'amount' is not finite in float32"


def test_the_key_and_the_timestamp_are_the_models_own_unless_given() -> None:
    scorer = Scorer.open("builtin:demo")
    assert scorer.card.training["fields"]["key"] == "customer"
    answers = scorer.score([{"customer": "c1", "time": 1_767_225_600, "amount": 3}, {"customer": "c2", "time": 0}])
    assert [answer["key"] for answer in answers] == ["c1", "c2"]
    assert answers[0]["timestamp"] == "2026-01-01T00:00:00.000Z"


def test_saved_states_go_on(tmp_path: Path) -> None:
    first = opened()
    first.score(rows(20))
    first.save(tmp_path / "states")
    second = opened()
    second.score(rows(5))  # forgotten
    second.load(tmp_path / "states")
    assert second.score(rows(50)[20:]) == first.score(rows(50)[20:])
    assert [path.name for path in tmp_path.iterdir()] == ["states"]


@pytest.mark.parametrize(
    "options", [{"ttl": "1h"}, {"late": "drop"}, {"key": "channel"}, {"timestamp": "when"}], ids=str
)
def test_states_of_other_settings_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    scorer = opened()
    scorer.score(rows(3))
    scorer.save(tmp_path / "states")
    with pytest.raises(CannotServe, match="its states belong to model small"):
        opened(**options).load(tmp_path / "states")


def test_a_damaged_file_of_states_is_refused(tmp_path: Path) -> None:
    scorer = opened()
    scorer.score(rows(3))
    path = tmp_path / "states"
    scorer.save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"PK\x03\x04", whole[:-1], whole[:-20] + b"\0" * 20, whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(CannotServe, match="cannot be used as a file of states"):
            opened().load(path)


def test_options_are_checked_as_the_daemons() -> None:
    with pytest.raises(CannotServe, match=r"state\.ttl"):
        opened(ttl="soon")
    with pytest.raises(CannotServe, match="does not exist"):
        Scorer.open("nowhere.onnx")


def test_alerts_follow_the_threshold() -> None:
    answers = opened(threshold=0.0).score(rows(5))
    assert all(answer["alert"] for answer in answers)
