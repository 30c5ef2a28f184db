"""What `lstmstream train` refuses before it begins, with a message that says what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lstmstream.errors import CannotServe
from lstmstream.train.run import train
from tests.train.histories import command, purchases, write_config

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"path": "nothing.csv"}}, "nothing.csv does not exist"),
        ({"features": {"numbers": ["amont"]}}, "no field 'amont'; the fields are 'customer', 'time', 'amount'"),
        ({"model": {"hiden": 3}}, "model.hiden: unknown key; did you mean hidden?"),
        ({"training": {"device": "cuda"}}, "training.device: cuda needs an NVIDIA GPU, and torch finds none"),
        ({"split": {"validation": 0.9, "test": 0.2}}, "split.test: validation and test together"),
    ],
)
def test_exit_code_2_with_a_message(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    done = command(tmp_path, "train", str(write_config(tmp_path, **sections)), check=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize("taken", ["card-fraud.onnx", "card-fraud.html", "card-fraud.checkpoint"])
def test_a_folder_at_the_output_path_is_refused_before_training(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).mkdir()
    with pytest.raises(CannotServe, match=f"{taken}: is a folder; choose another path with --out"):
        train(write_config(tmp_path))


def test_numbers_out_of_range_are_refused_before_training(tmp_path: Path) -> None:
    frame = purchases(tmp_path / "history.csv")
    frame.with_columns(amount=pl.col("amount") * 1e31).write_csv(tmp_path / "history.csv")
    features = {"numbers": ["amount", "distance"]}
    with pytest.raises(CannotServe, match=r"features\.numbers: amount has centre .* and scale .*log: true for it"):
        train(write_config(tmp_path, features=features))


@pytest.mark.parametrize("task", ["forecast", "anomaly"])
def test_data_without_a_target_are_refused_before_training(tmp_path: Path, task: str) -> None:
    frame = purchases(tmp_path / "history.csv")
    late = frame["time"].quantile(0.6)
    frame.with_columns(amount=pl.when(pl.col("time") < late).then("amount")).write_csv(tmp_path / "history.csv")
    file = write_config(tmp_path, task=task, target={"fields": ["amount"]})
    with pytest.raises(CannotServe, match="in the validation split no event is followed by a value of amount"):
        train(file)


def test_an_output_path_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    if Path("/proc").is_dir():
        done = command(tmp_path, "train", str(write_config(tmp_path)), "--out", "/proc/m.onnx", check=2)
        assert "/proc/m.onnx: " in done.stderr
        assert "epoch" not in done.stderr
    done = command(tmp_path, "train", str(write_config(tmp_path)), "--out", "nowhere/m.onnx", check=2)
    assert "there is no folder nowhere" in done.stderr
    assert "epoch" not in done.stderr
    done = command(tmp_path, "train", str(write_config(tmp_path)), "--out", "m.pt", check=2)
    assert "the name of a model file must end in .onnx" in done.stderr


def test_a_threshold_that_cannot_be_chosen_is_refused_before_training(tmp_path: Path) -> None:
    rows = purchases(tmp_path / "history.csv")
    last = rows["time"].quantile(0.7)
    rows.with_columns(fraud=pl.when(pl.col("time") < last).then("fraud").otherwise(0)).write_csv(
        tmp_path / "history.csv"
    )
    done = command(tmp_path, "train", str(write_config(tmp_path, threshold={"rule": "f1"})), check=2)
    assert "threshold.rule: f1 cannot choose, as none of the" in done.stderr
    assert "epoch" not in done.stderr
