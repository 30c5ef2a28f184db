"""Every option of a training configuration, each described once, and the file they come from.

`load_training` tells everything that is wrong at once, as `path: what is wrong; remedy`. It reads no data: what only
the data can tell is for `history/inspection.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError

from lstmstream.config.explain import faults
from lstmstream.config.load import override, read_yaml
from lstmstream.config.schema import Kafka, options_of
from lstmstream.config.values import (
    Duration,
    FieldPath,
    FieldPaths,
    Line,
    Name,
    Section,
    Servers,
    Topic,
    Whole,
    lower,
)
from lstmstream.errors import CannotServe
from lstmstream.train.clashes import clashes
from lstmstream.train.values import Count, Moment, Place, Real, Share, Weights, named, text_list

Task = Literal["forecast", "classify", "anomaly"]


class Broker(Kafka):
    """`kafka`: the broker that `data.from: kafka` reads from, as for the daemon."""

    bootstrap_servers: Servers = Field(["127.0.0.1:9092"], description="Where to find the cluster, for `from: kafka`.")


class Data(Section):
    """`data`: the history to learn from."""

    source: Literal["files", "kafka"] = Field("files", alias="from", description="Where the events are.")
    path: Annotated[list[Line], BeforeValidator(text_list)] = Field(
        [], description="CSV, JSONL or Parquet; a list or a pattern with * for several. Relative to this file's folder."
    )
    topic: Topic | None = Field(
        None, description="With `from: kafka`: the topic, JSON objects as the daemon reads them."
    )
    start: Place = Field("earliest", description="With `from: kafka`: `earliest`, an offset, or an ISO 8601 time.")
    end: Place = Field("latest", description="With `from: kafka`: `latest`, an offset, or a time; not included.")
    key: FieldPath | None = Field(
        None,
        description="Field that holds the entity key. Left out: one sequence; with `from: kafka`, the record's key.",
    )
    timestamp: FieldPath | None = Field(
        None,
        description="Field of the event's time, ISO 8601 or epoch. Left out: rows in order, a second apart; with"
        " `from: kafka`, the record's time.",
    )


class NumberField(Section):
    """One of `features.numbers`."""

    name: FieldPath = Field(description="The event's field.")
    log: bool = Field(default=False, description="Take sign(v) log(1 + |v|) first: for amounts, counts, sizes.")
    scale: Literal["standard", "robust", "none"] = Field(
        "standard", description="By mean and standard deviation, by median and quartiles, or not at all."
    )


class CategoryField(Section):
    """One of `features.categories`."""

    name: FieldPath = Field(description="The event's field: text or whole numbers.")
    buckets: Annotated[Whole, Field(ge=1, le=10_000_000)] | None = Field(
        None, description="Hash the values into so many buckets, instead of a vocabulary."
    )
    min_count: Count = Field(2, description="A value that is rarer in the training part counts as unknown.")
    width: Count | None = Field(None, description="Columns of the embedding (by the number of values, 2 to 16).")


class Features(Section):
    """`features`: what the model sees of an event."""

    numbers: Annotated[list[NumberField], BeforeValidator(named)] = Field([], description="Numeric fields.")
    categories: Annotated[list[CategoryField], BeforeValidator(named)] = Field([], description="Categorical fields.")
    elapsed: bool = Field(default=False, description="The time since the key's previous event.")
    hour_of_day: bool = Field(default=False, description="The hour of the day (UTC), as sine and cosine.")
    day_of_week: bool = Field(default=False, description="The day of the week (UTC), as sine and cosine.")


class Target(Section):
    """`target`: what is to be known."""

    field: FieldPath | None = Field(
        None, description="The label. Needed to classify; in anomaly detection only measured with, never learned from."
    )
    classes: list[str] = Field(
        [],
        description="The label's values in order, the usual one first (numbers ascend; else the most frequent first).",
    )
    per: Literal["event", "sequence"] = Field(
        "event", description="Whether each event has a label, or each key, whose label counts at its last event."
    )
    fields: FieldPaths = Field([], description="Numeric fields to forecast, of `features.numbers` (all of them).")
    horizon: Annotated[Whole, Field(ge=1, le=1000)] = Field(1, description="How many events ahead to forecast.")
    residual: bool = Field(default=True, description="Forecast the change from the present value, not the value.")
    memory: Count = Field(500, description="Anomalies: events over which the usual size of an error is learned.")
    loss: Literal["mse", "mae", "huber"] = Field("mse", description="A forecast's error.")


class Split(Section):
    """`split`: which events are learned from, which choose epoch and threshold, which only measure."""

    by: Literal["time", "key", "given"] = Field("time", description="By time, by key, or by a field of the data.")
    validation: Share = Field(0.15, description="Share of the events (of the keys) that chooses epoch and threshold.")
    test: Share = Field(0.15, description="Share that is only measured.")
    gap: Annotated[Duration, Field(ge=0)] = Field(
        0.0, description="Time left out after the training part and after the validation part: labels come late."
    )
    train_from: Moment | None = Field(None, description="Earlier events only warm the states up. ISO 8601.")
    train_to: Moment | None = Field(
        None, description="End of the training part, not included (where validation begins)."
    )
    validation_from: Moment | None = Field(None, description="Start of the validation part, instead of a share.")
    test_from: Moment | None = Field(None, description="Start of the test part, instead of a share.")
    test_to: Moment | None = Field(None, description="End of the test part, not included.")
    field: FieldPath | None = Field(None, description="With `by: given`: holds train, validation, test, or nothing.")


class Design(Section):
    """`model`: the network."""

    cell: Annotated[Literal["lstm", "gru"], BeforeValidator(lower)] = Field("lstm", description="Kind of cell.")
    layers: Annotated[Whole, Field(ge=1, le=16)] = Field(1, description="Recurrent layers.")
    hidden: Annotated[Whole, Field(ge=1, le=8192)] = Field(64, description="Hidden size of each layer.")
    projection: Count | None = Field(None, description="Project h to so many values (LSTM only; smaller than hidden).")
    dropout: Share = Field(0.0, description="Share of each layer's outputs that is dropped while training.")
    activation: Literal["tanh", "relu"] = Field("tanh", description="Of the cell; relu as Keras' LSTM has it.")
    window: Annotated[Whole, Field(ge=1, le=500)] | None = Field(
        None, description="The network sees only the last so many events; the state then holds them (all events)."
    )


class Training(Section):
    """`training`: how it learns."""

    epochs: Count = Field(30, description="The most passes over the training part.")
    patience: Count = Field(5, description="Epochs without a better validation before it stops.")
    monitor: Literal["auto", "loss", "average_precision", "none"] = Field(
        "auto",
        description="What chooses the epoch: average precision for two classes, else the validation loss; `none`: the"
        " last epoch is kept.",
    )
    batch: Count = Field(64, description="Keys (with `window`: windows) that are learned from at once.")
    steps: Annotated[Whole, Field(ge=1, le=65536)] = Field(
        64, description="Events of a key between updates; the state is carried on, the gradient is cut."
    )
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="Optimiser (sgd: with momentum 0.9).")
    learning_rate: Annotated[Real, Field(gt=0)] = Field(3e-3, description="Learning rate.")
    schedule: Literal["none", "cosine", "plateau"] = Field(
        "cosine", description="Learning rate over the epochs: cosine to a hundredth; plateau: halved where it stalls."
    )
    clip: Annotated[Real, Field(gt=0)] = Field(1.0, description="Longest gradient (L2 norm).")
    weight_decay: Annotated[Real, Field(ge=0)] = Field(0.0, description="Weight decay.")
    class_weights: Weights = Field(
        "none", description="Weight of each class in the loss: none, balanced, or a list in the order of the classes."
    )
    noise: Annotated[Real, Field(ge=0)] = Field(
        0.0, description="Standard deviation of noise that is added to scaled numbers while training."
    )
    mask: Share = Field(0.0, description="Share of the numbers that is hidden while training: robust to missing ones.")
    seed: Annotated[Whole, Field(ge=0, le=2**32 - 1)] = Field(0, description="Seed of everything random.")
    device: Annotated[Literal["auto", "cpu", "cuda"], BeforeValidator(lower)] = Field(
        "auto", description="`auto`: an NVIDIA GPU where there is one."
    )
    threads: Count = Field(
        1, description="Threads on the CPU. More pay for large networks only, and may change the last bits of sums."
    )


class Cost(Section):
    """`threshold.cost`: what a mistake costs."""

    missed: Annotated[Real, Field(gt=0)] = Field(100.0, description="Cost of a case without an alert.")
    alert: Annotated[Real, Field(gt=0)] = Field(1.0, description="Cost of looking at an alert.")


class Threshold(Section):
    """`threshold`: how the score from which on it is an alert is chosen, on the validation part."""

    rule: Literal["auto", "f1", "alerts_per_day", "cost", "value", "none"] = Field(
        "auto",
        description="Best F1, a budget of alerts, least cost, a value, or none (auto: f1, or 0.5 for anomalies).",
    )
    alerts_per_day: Annotated[Real, Field(gt=0)] | None = Field(None, description="The budget, over all keys.")
    cost: Cost
    value: Real | None = Field(None, description="The threshold itself, for `rule: value`.")


def _bounds(value: object) -> object:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("needs two bounds; write it like [16, 128]")
    if all(isinstance(bound, int | float) for bound in value) and not value[0] <= value[1]:
        raise ValueError("has its bounds the wrong way round; write the smaller one first")
    return value


WholeBounds = Annotated[tuple[Count, Count], BeforeValidator(_bounds)]
RealBounds = Annotated[tuple[Annotated[Real, Field(ge=0)], Annotated[Real, Field(ge=0)]], BeforeValidator(_bounds)]


class Tune(Section):
    """`tune`: what `lstmstream tune` searches, between bounds. Without any bounds: the first four, within the usual."""

    trials: Count = Field(30, description="Trainings to try.")
    learning_rate: RealBounds | None = Field(None, description="Bounds of `training.learning_rate`, above 0.")
    hidden: WholeBounds | None = Field(None, description="Bounds of `model.hidden`.")
    layers: WholeBounds | None = Field(None, description="Bounds of `model.layers`.")
    dropout: RealBounds | None = Field(None, description="Bounds of `model.dropout`, below 1.")
    weight_decay: RealBounds | None = Field(None, description="Bounds of `training.weight_decay`, above 0.")
    batch: WholeBounds | None = Field(None, description="Bounds of `training.batch`.")
    steps: WholeBounds | None = Field(None, description="Bounds of `training.steps`.")

    @property
    def bounds(self) -> dict[str, tuple[int, int] | tuple[float, float]]:
        """Option to its bounds."""
        names = [name for name in type(self).model_fields if name != "trials"]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        usual = {"learning_rate": (3e-4, 3e-2), "hidden": (16, 128), "layers": (1, 2), "dropout": (0.0, 0.4)}
        return given or usual


class TrainConfig(Section):
    """Everything that `lstmstream train` can be told."""

    name: Name = Field(description="The model's name.")
    version: Line = Field("1", description="The model's version.")
    task: Task = Field(
        description="forecast: next values. classify: two or more classes. anomaly: learns what is usual."
    )
    out: Path | None = Field(None, description="The model file (`<name>.onnx` beside this file; --out overrides).")
    data: Data
    kafka: Broker
    features: Features
    target: Target
    split: Split
    model: Design
    training: Training
    threshold: Threshold
    tune: Tune

    _folder: Path = PrivateAttr(default_factory=Path)

    @property
    def folder(self) -> Path:
        """What relative paths start from: the folder of the configuration file."""
        return self._folder

    @property
    def targets(self) -> tuple[int, ...]:
        """Columns of `features.numbers` that are forecast."""
        names = [number.name for number in self.features.numbers]
        return tuple(names.index(field) for field in self.target.fields) or tuple(range(len(names)))


TRAIN_OPTIONS = {option.path: option for option in options_of(TrainConfig)}


def load_training(path: Path, environ: Mapping[str, str] = os.environ) -> TrainConfig:
    """The training configuration at `path`. Raises CannotServe with one line for each thing that is wrong.

    With `data.from: kafka` the daemon's variables for section `kafka` hold here too: passwords need not be in the file.
    """
    tree = read_yaml(path)
    data = tree.get("data")
    if isinstance(data, dict) and data.get("from") == "kafka":
        _, problems = override(tree, environ, "kafka")
        if problems:
            raise CannotServe(*problems)
    return judge_training(tree, path.parent.resolve())


def shown(path: Path) -> str:
    """The configuration's text for a report, without section `kafka`: it may hold a password."""
    tree = read_yaml(path)
    if "kafka" not in tree:
        return path.read_text(encoding="utf-8-sig")
    del tree["kafka"]
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def judge_training(tree: dict[str, object], folder: Path) -> TrainConfig:
    """The configuration that `tree` describes. Raises CannotServe with one line for each thing that is wrong."""
    try:
        config = TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise CannotServe(*(f"{place}: {text}" for place, text in faults(error, TRAIN_OPTIONS))) from None
    problems = list(clashes(config))
    if problems:
        raise CannotServe(*problems)
    config._folder = folder
    return config
