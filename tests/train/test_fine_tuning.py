"""Fine-tuning with --init, and what evaluation and fine-tuning say about data that a model has learned from."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import numpy as np
import orjson
import polars as pl
import pytest

from lstmstream.errors import CannotServe
from lstmstream.evaluation.command import evaluate
from lstmstream.history.split import TEST
from lstmstream.model import load_model
from lstmstream.train.dataset import prepare_dataset
from lstmstream.train.export.named_cells import NAMED_CELLS
from lstmstream.train.run import train
from lstmstream.train.schema import load_training
from tests.train.histories import purchases, scores, write_config

pytestmark = pytest.mark.torch


# --- what a model has learned from ---


def test_evaluating_on_a_part_of_the_training_data_is_said_with_its_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(write_config(tmp_path))
    frame = pl.read_csv(tmp_path / "history.csv").sort("time")
    frame[: len(frame) // 2].write_csv(tmp_path / "first.csv")
    frame[-len(frame) // 10 :].write_csv(tmp_path / "last.csv")
    capsys.readouterr()
    shares = []
    for name in ("first.csv", "last.csv"):
        evaluate(str(tmp_path / "card-fraud.onnx"), str(tmp_path / name), as_json=True, resamples=10)
        shares.append(orjson.loads(capsys.readouterr().out)["share_in_training_data"])
    assert shares == [1.0, 0.0]  # the test split is the last 15 of 100


@pytest.mark.parametrize("seeds", [(0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)])
def test_fine_tuning_says_where_it_tests_on_keys_that_the_base_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seeds: tuple[int, int, int]
) -> None:
    """Three models, each from the one before; the last one knows what the first has learned from."""
    learned: set[str] = set()
    for number, seed in enumerate(seeds):
        file = write_config(tmp_path, split={"by": "key", "test": 0.3}, training={"epochs": 1, "seed": seed})
        out = tmp_path / f"{number}.onnx"
        train(file, out=out, init=str(tmp_path / f"{number - 1}.onnx") if number else None)
        said = " ".join(capsys.readouterr().err.split())
        with closing(prepare_dataset(load_training(file))) as dataset:
            owner = np.array(dataset.events.keys)[dataset.events.key_indices()]
            test = owner[dataset.split.labels == TEST]
            share = np.isin(test, list(learned)).mean()
            learned |= set(owner[dataset.split.labels != TEST].tolist())
        message = "of the events of the test split lie in the training data of the model of --init"
        assert (message in said) == (share > 0)
        if share > 0:
            percent = float(re.findall(rf"([0-9.]+)% {message}", said)[0])
            assert percent == pytest.approx(100 * share, abs=12)  # times count too: few events lie outside of them


# --- fine-tuning ----------------------------------------------------------------------------------------------------


def test_fine_tuning_keeps_the_scaling_and_starts_with_the_weights(tmp_path: Path) -> None:
    train(write_config(tmp_path), out=tmp_path / "old.onnx")
    frame = pl.read_csv(tmp_path / "history.csv")
    frame.with_columns(amount=pl.col("amount") * 3).write_csv(tmp_path / "history.csv")
    file = write_config(tmp_path, training={"epochs": 1, "learning_rate": 1e-9})
    train(file, out=tmp_path / "new.onnx", init=str(tmp_path / "old.onnx"))
    old, new = (scores(tmp_path / name, tmp_path / "history.csv", tmp_path) for name in ("old.onnx", "new.onnx"))
    for one, other in zip(old, new, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


@pytest.mark.parametrize("cell", NAMED_CELLS)
def test_every_cell_is_trained_scored_and_fine_tuned(tmp_path: Path, cell: str) -> None:
    train(write_config(tmp_path, model={"cell": cell, "layers": 2, "dropout": 0.1}), out=tmp_path / "old.onnx")
    file = write_config(tmp_path, training={"epochs": 1, "learning_rate": 1e-9})  # the cell is that of --init
    train(file, out=tmp_path / "new.onnx", init=str(tmp_path / "old.onnx"))
    old, new = (scores(tmp_path / name, tmp_path / "history.csv", tmp_path) for name in ("old.onnx", "new.onnx"))
    assert [one["score"] for one in new] == pytest.approx([one["score"] for one in old], abs=1e-5)
    assert len({one["score"] for one in old}) > len(old) // 2
    letters = [f"{letter}{layer}" for layer in range(2) for letter, _, _ in NAMED_CELLS[cell].state]
    assert [part.name for part in load_model(tmp_path / "new.onnx").card.state.parts] == letters


def test_fine_tuning_another_network_is_refused(tmp_path: Path) -> None:
    train(write_config(tmp_path), out=tmp_path / "old.onnx")
    for sections, message in (
        ({"model": {"hidden": 16}}, r"model\.hidden: is 16, and the model of --init has 8; remove it"),
        ({"model": {"cell": "gru"}}, r"model\.cell: is gru, and the model of --init has lstm"),
        (
            {"features": {"numbers": ["amount"]}},
            r"features\.numbers: are amount, and the model of --init has amount, dist",
        ),
        ({"task": "forecast"}, "task: is forecast, and the model of --init was trained to classify"),
        ({"features": {"elapsed": False}}, r"features\.elapsed: the model of --init has it; remove it"),
        (
            {"features": {"numbers": [{"name": "amount", "log": False}, "distance"]}},
            r"features\.numbers\.amount\.log: the model of --init has it; remove it",
        ),
        ({"target": {"classes": ["1", "0"]}}, r"target\.classes: the model of --init has 0, 1, in this order"),
    ):
        with pytest.raises(CannotServe, match=message):
            train(write_config(tmp_path, **sections), init=str(tmp_path / "old.onnx"))


@pytest.mark.parametrize("reference", ["builtin:anomaly", "builtin:anomaly:amount,dist"])
def test_the_detector_that_ships_has_nothing_to_fine_tune(tmp_path: Path, reference: str) -> None:
    with pytest.raises(CannotServe, match="it has no weights to train"):
        train(write_config(tmp_path), init=reference)


def test_fine_tuning_keeps_the_order_of_the_classes(tmp_path: Path) -> None:
    kinds = {"rest": ["usual", "odd", "rare"], "new": ["odd", "rare", "usual"]}  # most frequent first
    frame = purchases(tmp_path / "history.csv")
    random = np.random.default_rng(0)

    def write(order: list[str]) -> None:
        labels = random.choice(order, len(frame), p=[0.6, 0.3, 0.1])
        frame.with_columns(fraud=pl.Series(labels)).write_csv(tmp_path / "history.csv")

    write(kinds["rest"])
    train(write_config(tmp_path), out=tmp_path / "old.onnx")
    write(kinds["new"])
    train(write_config(tmp_path), out=tmp_path / "new.onnx", init=str(tmp_path / "old.onnx"))
    classes = [load_model(tmp_path / name).card.training["fields"]["classes"] for name in ("old.onnx", "new.onnx")]
    assert classes[0] == classes[1] == ["usual", "odd", "rare"]
    write(["usual", "odd", "never seen"])
    message = r"'fraud' has 'never seen', and the model of --init has the classes 'usual', 'odd'"
    with pytest.raises(CannotServe, match=message):
        train(write_config(tmp_path), out=tmp_path / "new.onnx", init=str(tmp_path / "old.onnx"))
