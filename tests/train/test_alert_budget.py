"""An alert budget in a trained model, counted in the predictions of the daemon's engine on all events of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import polars as pl
import pytest

from lstmstream.history.split import SPLIT_NAMES
from lstmstream.model import load_model
from lstmstream.serve.score import score_file
from lstmstream.train.dataset import prepare_dataset
from lstmstream.train.run import train
from tests.train.histories import config_for, write_config

pytestmark = pytest.mark.torch

DAY_S = 86_400
BUDGET = 40.0


@pytest.mark.parametrize("per", ["event", "sequence"])
def test_a_budget_holds_for_all_events_of_all_keys(tmp_path: Path, per: str) -> None:
    options = {
        "target": {"per": per},
        "split": {"by": "key", "validation": 0.3, "test": 0.3},
        "threshold": {"rule": "alerts_per_day", "alerts_per_day": BUDGET},
    }
    train(write_config(tmp_path, **options))
    model = tmp_path / "card-fraud.onnx"
    out = tmp_path / "scores.jsonl"
    score_file(str(model), str(tmp_path / "history.csv"), out=str(out), key="customer", timestamp="time",
               dead_letters=None)  # fmt: skip
    predictions = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    card = load_model(model).card
    dataset = prepare_dataset(config_for(tmp_path, **options))
    split_of_key = dict(zip(dataset.events.keys, dataset.split.labels[dataset.events.starts[:-1]], strict=True))
    times = pl.read_csv(tmp_path / "history.csv")["time"]
    days = (times.max() - times.min()) / DAY_S  # type: ignore[operator]

    def per_day(name: str, threshold: float) -> float:
        keys = {key for key, label in split_of_key.items() if SPLIT_NAMES[label] == name}
        raised = sum(p["key"] in keys and np.float32(p["score"]) >= np.float32(threshold) for p in predictions)
        return raised / days * len(split_of_key) / len(keys)

    assert card.threshold is not None
    assert per_day("validation", card.threshold) <= BUDGET
    lower = [p["score"] for p in predictions
             if SPLIT_NAMES[split_of_key[p["key"]]] == "validation" and p["score"] < card.threshold]  # fmt: skip
    assert per_day("validation", max(lower)) > BUDGET
    for name in ("validation", "test"):
        metric = card.training["metrics"][name]["alerts_per_day"]
        assert metric["value"] == pytest.approx(per_day(name, card.threshold), rel=1e-4)
        assert metric["low"] <= metric["value"] <= metric["high"]
    everywhere = sum(prediction["alert"] for prediction in predictions) / days
    assert BUDGET / 3 < everywhere < BUDGET * 3  # before, a few times the budget, as the splits have a part of the keys
