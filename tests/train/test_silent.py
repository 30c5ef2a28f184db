"""`data.silent` in training: events that move states and have no label, no loss and no metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest

from lstmstream.errors import CannotServe
from lstmstream.evaluation.command import evaluate
from lstmstream.model import load_model
from lstmstream.serve.score import score_file
from lstmstream.train.dataset import prepare_dataset
from lstmstream.train.run import train
from tests.train.histories import config_for, purchases, write_config

pytestmark = pytest.mark.torch

SILENT = {"silent": {"field": "known", "equals": 1}}


def with_reports(folder: Path) -> pl.DataFrame:
    """The purchases, and a report of the label an hour after each, with the label in another field."""
    frame = purchases(folder / "history.csv")
    empty = pl.lit(None)
    reports = frame.select(
        "customer",
        pl.col("time") + 3600,
        amount=empty.cast(pl.Float64),
        distance=empty.cast(pl.Float64),
        shop=empty.cast(pl.String),
        fraud=pl.lit(1),  # a label that must not be looked at
        report=pl.col("fraud"),
        known=pl.lit(1),
    )
    both = pl.concat(
        [frame.with_columns(report=empty.cast(pl.Int64), known=pl.lit(0)), reports], how="vertical_relaxed"
    ).sort("time")
    both.write_csv(folder / "history.csv")
    return both


def settings_for(**sections: Any) -> dict[str, Any]:
    numbers = [{"name": "amount", "log": True}, "distance", {"name": "report", "scale": "none", "history": ["1d"]}]
    return {"features": {"numbers": numbers, "categories": ["shop"], "elapsed": True}, **sections}


def test_silent_events_are_in_no_split_and_no_loss(tmp_path: Path) -> None:
    config_for(tmp_path)  # writes the purchases
    both = with_reports(tmp_path)
    dataset = prepare_dataset(config_for(tmp_path, **settings_for(data=SILENT)))
    silent = dataset.events.silent
    assert silent is not None
    assert silent.sum() == len(both) // 2
    assert not dataset.split.labels[silent].any()
    for mask in dataset.loss_masks.values():
        assert mask.any()
        assert not mask[silent].any()


def test_a_field_that_only_silent_events_have_is_learned_from_their_history(tmp_path: Path) -> None:
    write_config(tmp_path)
    both = with_reports(tmp_path)
    file = write_config(tmp_path, **settings_for(data=SILENT))
    model = _trained(file, tmp_path)
    card = load_model(model).card
    assert card.training["fields"]["silent"] == {"field": "known", "equals": "1"}
    out = tmp_path / "out.jsonl"
    data = tmp_path / "history.csv"
    assert score_file(str(model), str(data), out=str(out), key=None, timestamp=None, dead_letters=None) == 0
    scored = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert [one["source"]["row"] for one in scored] == both.with_row_index().filter(pl.col("known") == 0)[
        "index"
    ].to_list()
    assert (
        max(one["steps"] for one in scored)
        > both.filter(pl.col("known") == 0)["customer"].value_counts()["count"].max()
    )


def _trained(file: Path, folder: Path) -> Path:
    out = folder / "m.onnx"
    assert train(file, out=out) == 0
    return out


def test_evaluate_leaves_them_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(tmp_path)
    both = with_reports(tmp_path)
    model = _trained(write_config(tmp_path, **settings_for(data=SILENT)), tmp_path)
    capsys.readouterr()
    evaluate(str(model), str(tmp_path / "history.csv"), as_json=True, resamples=10)
    found = orjson.loads(capsys.readouterr().out)
    assert found["judged"] == len(both) // 2
    assert np.isfinite(found["metrics"]["average_precision"]["value"])


def test_a_split_with_silent_events_only_is_refused(tmp_path: Path) -> None:
    config_for(tmp_path)
    with_reports(tmp_path).with_columns(known=pl.lit(1)).write_csv(tmp_path / "history.csv")
    with pytest.raises(CannotServe, match=r"data\.silent: all events of the train split are silent"):
        prepare_dataset(config_for(tmp_path, **settings_for(data=SILENT)))
