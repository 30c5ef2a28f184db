"""The replay against `lstmstream score`, the daemon's own engine over a file: bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lstmstream.evaluation.offline import score_events
from lstmstream.history.events import Events
from lstmstream.model import load_model
from lstmstream.serve.score import score_file
from lstmstream.serve.step import OnnxStep
from tests.models import MAGIC, poisoned_model, random_model
from tests.random_events import history, write_jsonl

NETWORK = {"numbers": ("amount", "age"), "categories": {"shop": ("a", "b"), "city": 7}, "clock": True, "hidden": 16}


def by_the_engine(model: Path, events: Events, folder: Path) -> tuple[np.ndarray, list[list[float] | None]]:
    """(score, prediction) of each event, in the order of `events`; NaN and None where it was a dead letter."""
    rows = write_jsonl(events, folder / "events.jsonl", shuffle=5)
    out = folder / "answers.jsonl"
    assert score_file(str(model), str(folder / "events.jsonl"), out=str(out), key="key", timestamp="time",
                      dead_letters=folder / "dead.jsonl") == 0  # fmt: skip
    score = np.full(len(events.timestamp), np.nan, np.float32)
    prediction: list[list[float] | None] = [None] * len(score)
    for line in out.read_text().splitlines():
        answer = json.loads(line)
        row = rows[answer["source"]["row"]]
        score[row], prediction[row] = answer["score"], answer["prediction"]
    return score, prediction


@pytest.mark.parametrize(("outputs", "layers", "batch_keys"), [(1, 1, 4096), (1, 2, 7), (3, 1, 64)])
def test_it_answers_as_the_engine_does(tmp_path: Path, outputs: int, layers: int, batch_keys: int) -> None:
    model = random_model(tmp_path, outputs=outputs, layers=layers, **NETWORK)
    events = history(keys=150, longest=40, seed=outputs, numbers=2, codes=(2, 7))
    score, prediction = score_events(OnnxStep(load_model(model)), events, batch_keys=batch_keys)
    assert prediction is not None
    expected, expected_prediction = by_the_engine(model, events, tmp_path)
    assert np.isfinite(score).all()
    assert score.tobytes() == expected.tobytes()
    assert prediction.tobytes() == np.array(expected_prediction, np.float32).tobytes()


def test_one_long_key_and_one_event_keys(tmp_path: Path) -> None:
    model = random_model(tmp_path)
    events = history(lengths=[1, 300, 1], seed=2, numbers=1)
    score, _ = score_events(OnnxStep(load_model(model)), events)
    assert score.tobytes() == by_the_engine(model, events, tmp_path)[0].tobytes()


def test_an_answer_that_is_not_finite_leaves_the_key_as_it_was(tmp_path: Path) -> None:
    for where in ("score", "state_out"):
        model = poisoned_model(tmp_path, where=where)
        events = history(keys=20, longest=12, seed=3, numbers=1)
        events.x[::5, 0] = MAGIC  # among them first events of keys
        score, prediction = score_events(OnnxStep(load_model(model)), events)
        assert prediction is not None
        expected, _ = by_the_engine(model, events, tmp_path)
        assert np.isnan(score[::5]).all()
        assert np.isnan(prediction[::5]).all()
        assert np.isfinite(np.delete(score, np.s_[::5])).all()
        assert score.tobytes() == expected.tobytes()


def test_no_events(tmp_path: Path) -> None:
    score, prediction = score_events(
        OnnxStep(load_model(random_model(tmp_path))), history(lengths=[], seed=0, numbers=1)
    )
    assert score.shape == (0,)
    assert prediction is None
