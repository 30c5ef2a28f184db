"""What may not see the test split, and what may not see the validation split, is the same whatever stands there."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from lstmstream.train.dataset import prepare_dataset
from lstmstream.train.factory import make_network, make_trainer
from lstmstream.train.finalize import finalize_model
from lstmstream.train.schema import validate_training
from lstmstream.train.tune import tune
from tests.train.planted_leaks import PER_KEY, Frame, Leak, purchases, sensors, settings, with_outcome

pytestmark = pytest.mark.torch

CLASSIFY: dict[str, Any] = {"training": {"class_weights": "balanced"}, "features": {"hour_of_day": True}}
FORECAST: dict[str, Any] = {"target": {"horizon": 3, "fields": ["level", "other"]}}
ANOMALY: dict[str, Any] = {"task": "anomaly"}
LAST_EPOCH: dict[str, Any] = {"training": {"monitor": "none"}}


@dataclass(frozen=True)
class Outcome:
    """What training gives. Graph and weights are in the fingerprint: scaling, vocabularies and calibration too."""

    fingerprint: str
    threshold: float | None
    threshold_rule: str
    reference: str
    epochs: tuple[Any, ...]
    test: dict[str, float]

    @property
    def learned(self) -> tuple[Any, ...]:
        """All but the results on the test split."""
        return self.fingerprint, self.threshold, self.threshold_rule, self.reference, self.epochs


def trained(folder: Path, frame: Frame, sections: dict[str, Any], world: str = "purchases") -> Outcome:
    """A small network on the frame; each section given is merged into the world's configuration."""
    frame.write_csv(folder / "history.csv")
    tree = settings(Leak("", lambda frame, _: frame, "", sections=sections), ["history.csv"], world)
    with closing(prepare_dataset(validate_training(tree, folder))) as dataset:
        trainer = make_trainer(make_network(dataset), dataset, folder / "m.checkpoint")
        trainer.run(lambda _: None, lambda _: None, lambda: False)
        model = finalize_model(trainer, dataset, folder / "m.onnx")
    epochs = tuple((one["train_loss"], one["validation_loss"], one["metric"]) for one in trainer.result.history)
    test = {name: interval["value"] for name, interval in model.metrics["test"].items()}
    card = model.card
    return Outcome(card.fingerprint, model.threshold, model.threshold_rule, repr(card.reference), epochs, test)


def cut(frame: Frame, share: float) -> pl.Expr:
    """Whether an event lies after this share of them in time."""
    time = np.sort(frame["time"].to_numpy())
    return pl.col("time") >= int(time[int(share * len(time))])


def wild(world: str, where: pl.Expr) -> list[pl.Expr]:
    """Other numbers by orders of magnitude, categories that are new, and the labels exchanged, at some events."""
    numbers = ["amount", "balance"] if world == "purchases" else ["level", "other"]
    changes = [pl.when(where).then(pl.col(name) ** 2 * 1000 + 5).otherwise(name).alias(name) for name in numbers]
    if world == "purchases":
        changes.append(pl.when(where).then(pl.lit("moon")).otherwise("shop").alias("shop"))
        changes.append(pl.when(where).then(1 - pl.col("fraud")).otherwise("fraud").alias("fraud"))
    return changes


@pytest.mark.parametrize(
    ("world", "sections"),
    [("purchases", CLASSIFY), ("sensors", FORECAST), ("sensors", ANOMALY)],
    ids=["classify", "forecast", "anomaly"],
)
def test_nothing_is_learned_or_chosen_from_the_test_split(tmp_path: Path, world: str, sections: dict[str, Any]) -> None:
    """Scaling, vocabulary, class weights, weights, epoch, calibration, threshold and reference."""
    frame = {"purchases": purchases, "sensors": sensors}[world]()
    changed = frame.with_columns(wild(world, cut(frame, 0.85)))
    before, after = (trained(tmp_path, one, sections, world) for one in (frame, changed))
    assert after.learned == before.learned
    assert after.test != before.test


@pytest.mark.parametrize(("world", "sections"), [("purchases", LAST_EPOCH), ("sensors", FORECAST | LAST_EPOCH)])
def test_no_weight_comes_from_the_validation_split(tmp_path: Path, world: str, sections: dict[str, Any]) -> None:
    """The values that the last events of the training split are followed by are not among their targets, either."""
    frame = {"purchases": purchases, "sensors": sensors}[world]()
    changed = frame.with_columns(wild(world, cut(frame, 0.7)))
    before, after = (trained(tmp_path, one, sections, world) for one in (frame, changed))
    assert after.fingerprint == before.fingerprint
    assert [losses[0] for losses in after.epochs] == [losses[0] for losses in before.epochs]
    assert [losses[1] for losses in after.epochs] != [losses[1] for losses in before.epochs]


def test_labels_inside_the_gap_are_not_used(tmp_path: Path) -> None:
    frame = purchases()
    gap = 86_400
    starts = [int(np.sort(frame["time"].to_numpy())[int(share * len(frame))]) for share in (0.7, 0.85)]
    inside = pl.any_horizontal(pl.col("time").is_between(start - gap, start - 1) for start in starts)
    changed = frame.with_columns(pl.when(inside).then(1 - pl.col("fraud")).otherwise("fraud").alias("fraud"))
    before, after = (trained(tmp_path, one, {"split": {"gap": "1d"}}) for one in (frame, changed))
    assert frame.filter(inside).height > 50
    assert after == before
    without = [trained(tmp_path, one, {}) for one in (frame, changed)]
    assert without[0].learned != without[1].learned


def test_only_the_label_of_a_keys_last_event_counts_per_sequence(tmp_path: Path) -> None:
    frame = with_outcome(purchases(), np.random.default_rng(1))
    is_last = pl.int_range(pl.len()).reverse().over("customer") == 0
    changed = frame.with_columns(pl.when(is_last).then("fraud").otherwise(1 - pl.col("fraud")).alias("fraud"))
    before, after = (trained(tmp_path, one, PER_KEY) for one in (frame, changed))
    assert after == before


def test_the_text_of_a_key_is_not_seen(tmp_path: Path) -> None:
    """A key with the outcome of the whole key in it."""
    frame = with_outcome(purchases(), np.random.default_rng(1))
    named = frame.with_columns(customer=pl.format("{}-{}", "customer", "fraud"))
    per_key = {"target": {"per": "sequence"}}
    before, after = (trained(tmp_path, one, per_key) for one in (frame, named))
    assert after == before


@pytest.mark.parametrize(
    "plant",
    [
        (pl.col("balance") - pl.col("balance").filter(pl.col("time") > 1_600_700_000).mean()).alias("balance"),
        ((pl.col("balance") - pl.col("balance").mean()) / pl.col("balance").std()).alias("balance"),
    ],
    ids=["centred by the mean of the last days", "scaled by mean and deviation of all data"],
)
def test_statistics_of_all_data_in_a_column_change_nothing(tmp_path: Path, plant: pl.Expr) -> None:
    """The network scales every column itself, so that only rounding is left of them."""
    frame = purchases()
    before, after = (trained(tmp_path, one, {}) for one in (frame, frame.with_columns(plant)))
    assert after.test["average_precision"] == pytest.approx(before.test["average_precision"], abs=0.01)


@pytest.mark.parametrize("field", ["number", "text"])
def test_the_number_of_a_transaction_does_not_help(tmp_path: Path, field: str) -> None:
    frame = purchases().with_row_index("note").with_columns(pl.col("note").cast(pl.Float64))
    features: dict[str, Any] = {"numbers": ["amount", "balance", "note"]}
    if field == "text":
        frame = frame.with_columns(note=pl.format("t{}", pl.col("note").cast(pl.Int64)))
        features = {"categories": ["shop", "note"]}
    before, after = (trained(tmp_path, frame, sections) for sections in ({}, {"features": features}))
    assert after.test["average_precision"] < before.test["average_precision"] + 0.03


def test_another_time_zone_in_the_test_split_does_not_help(tmp_path: Path) -> None:
    frame = purchases()
    shifted = frame.with_columns(time=pl.when(cut(frame, 0.85)).then(pl.col("time") + 5 * 3600).otherwise("time"))
    before, after = (trained(tmp_path, one, {"features": {"hour_of_day": True}}) for one in (frame, shifted))
    assert after.test["average_precision"] < before.test["average_precision"] + 0.03


def test_tuning_does_not_see_the_test_split(tmp_path: Path) -> None:
    frame = purchases()
    tuned = []
    for one in (frame, frame.with_columns(wild("purchases", cut(frame, 0.85)))):
        one.write_csv(tmp_path / "history.csv")
        tree = settings(None, ["history.csv"]) | {
            "tune": {"trials": 3, "learning_rate": [0.001, 0.1], "hidden": [4, 16]}
        }
        tree["training"] |= {"epochs": 3}
        (tmp_path / "train.yaml").write_text(yaml.safe_dump(tree))
        assert tune(tmp_path / "train.yaml") == 0
        tuned.append((tmp_path / "train.tuned.yaml").read_text())
    assert tuned[0] == tuned[1]
