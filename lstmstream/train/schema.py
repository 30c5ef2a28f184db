"""Every option of a training configuration, each described once, and how the file is loaded.

`load_training` reports all faults at once, each as `path: what is wrong; how to fix it`. It reads no data: faults that
only the data can show are found by `train/data_checks.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BeforeValidator, Field

from lstmstream.config.diagnostics import validate
from lstmstream.config.document import Conflict, Document
from lstmstream.config.environment import apply_environment
from lstmstream.config.options import Option, options_of
from lstmstream.config.paths import Keys
from lstmstream.config.schema import Kafka, SilentEvents
from lstmstream.config.types import (
    Duration,
    FieldPath,
    FieldPaths,
    Format,
    Name,
    Section,
    Servers,
    SingleLine,
    StrictInt,
    Topic,
    Unwrap,
    lower,
)
from lstmstream.config.yaml_file import read_placed, read_yaml
from lstmstream.errors import CannotServe
from lstmstream.formats.csv_form import CsvOptions, Decimal, Delimiter
from lstmstream.train.types import (
    ClassWeights,
    Count,
    Float,
    Fraction,
    IsoTime,
    LogPosition,
    Windows,
    as_list,
    expand_names,
)
from lstmstream.train.validation import training_conflicts

Task = Literal["forecast", "classify", "anomaly"]
Cell = Literal["lstm", "gru", "mingru", "minlstm", "slstm", "s4d"]
CELL_TITLES: dict[Cell, str] = {
    "lstm": "LSTM",
    "gru": "GRU",
    "mingru": "minGRU",
    "minlstm": "minLSTM",
    "slstm": "sLSTM",
    "s4d": "S4D",
}


class KafkaSource(Kafka):
    """`kafka`: the broker that `data.from: kafka` reads from, as for the daemon."""

    bootstrap_servers: Servers = Field(["127.0.0.1:9092"], description="Addresses of the cluster, for `from: kafka`.")


class Csv(Section):
    """`data.csv`: how CSV files are written, where that cannot be seen or is seen wrongly."""

    delimiter: Delimiter | None = Field(
        None, description="What separates cells. Default: found from the header and the fields above."
    )
    decimal: Decimal | None = Field(
        None, description="What separates decimals. Default: a point; in files with `;` it is found from the numbers."
    )

    @property
    def options(self) -> CsvOptions:
        """What the readers of CSV need."""
        return CsvOptions.of(self.delimiter, self.decimal, ("data.csv.delimiter:", "data.csv.decimal:"))


class Data(Section):
    """`data`: the events to train on."""

    source: Literal["files", "kafka"] = Field("files", alias="from", description="Where the events are read from.")
    path: Annotated[list[SingleLine], BeforeValidator(as_list)] = Field(
        [],
        description="CSV, JSONL or Parquet; several as a list, or as a pattern with *, which sorts by name with numbers"
        " by their value (part-2 before part-10). Relative to this file's folder.",
    )
    topic: Topic | None = Field(
        None, description="With `from: kafka`: the topic; its records are read as the daemon's."
    )
    format: Format = Field(
        "json", description="With `from: kafka`: the format of the record values, as the daemon's `input.format`."
    )
    unwrap: Unwrap | None = Field(
        None, description="With `from: kafka`: the envelope around the event, as the daemon's `input.unwrap`."
    )
    start: LogPosition = Field(
        "earliest", description="With `from: kafka`: `earliest`, an offset, or an ISO 8601 time."
    )
    end: LogPosition = Field(
        "latest", description="With `from: kafka`: `latest`, an offset, or an ISO 8601 time; exclusive."
    )
    key: FieldPath | None = Field(
        None,
        description="Field that holds the entity key. Default: one sequence; with `from: kafka`, the record's key.",
    )
    timestamp: FieldPath | None = Field(
        None,
        description="Field that holds the event time, ISO 8601 or epoch. Default: rows in order, one second apart; with"
        " `from: kafka`, the record's timestamp.",
    )
    silent: SilentEvents
    csv: Csv


class NumberField(Section):
    """One of `features.numbers`."""

    name: FieldPath = Field(description="The event's field.")
    log: bool = Field(default=False, description="Apply sign(v) log(1 + |v|) first: for amounts, counts, sizes.")
    scale: Literal["standard", "robust", "none"] = Field(
        "standard", description="Scale by mean and standard deviation, by median and quartiles, or not at all."
    )
    history: Windows = Field(
        [],
        description="Time constants, such as [1d, 7d, 30d]: for each the network also sees how many earlier events the"
        " key has had, their mean and deviation, and how far the value is from them.",
    )


class CategoryField(Section):
    """One of `features.categories`."""

    name: FieldPath = Field(description="The event's field: text, whole numbers or booleans.")
    buckets: Annotated[StrictInt, Field(ge=1, le=10_000_000)] | None = Field(
        None, description="Hash the values into this many buckets instead of using a vocabulary."
    )
    min_count: Count = Field(2, description="Values seen fewer times than this in the training split count as unknown.")
    width: Count | None = Field(None, description="Embedding size. Default: 2 to 16, by the number of values.")


class Features(Section):
    """`features`: the model's inputs."""

    numbers: Annotated[list[NumberField], BeforeValidator(expand_names)] = Field([], description="Numeric fields.")
    categories: Annotated[list[CategoryField], BeforeValidator(expand_names)] = Field(
        [], description="Categorical fields."
    )
    elapsed: bool = Field(default=False, description="The time since the key's previous event.")
    hour_of_day: bool = Field(default=False, description="The hour of the day (UTC), as sine and cosine.")
    day_of_week: bool = Field(default=False, description="The day of the week (UTC), as sine and cosine.")


class TargetOptions(Section):
    """`target`: what the model predicts."""

    field: FieldPath | None = Field(
        None,
        description="Field that holds the label. Required to classify; anomaly detection uses it for evaluation only.",
    )
    classes: list[str] = Field(
        [],
        description="Values of the label, the normal one first. Default: numbers ascending, text most frequent first.",
    )
    per: Literal["event", "sequence"] = Field(
        "event",
        description="Whether each event has a label, or each key; the label of a key counts at its last event, and for"
        " alerts at all of them.",
    )
    fields: FieldPaths = Field(
        [], description="Fields to forecast, each one of `features.numbers`. Default: all of them."
    )
    horizon: Annotated[StrictInt, Field(ge=1, le=1000)] = Field(1, description="Number of events to forecast ahead.")
    residual: bool = Field(default=True, description="Forecast the change from the current value instead of the value.")
    memory: Count = Field(
        500, description="Anomaly detection: number of events over which a key's typical error is tracked."
    )
    loss: Literal["mse", "mae", "huber"] = Field("mse", description="Loss of a forecast.")


class SplitOptions(Section):
    """`split`: which events train the model, which select epoch and threshold, which only evaluate it."""

    by: Literal["time", "key", "given"] = Field("time", description="Split by time, by key, or by a field of the data.")
    validation: Fraction = Field(
        0.15, description="Fraction of the events (with `by: key`: of the keys) that selects epoch and threshold."
    )
    test: Fraction = Field(0.15, description="Fraction that is used for evaluation only.")
    gap: Annotated[Duration, Field(ge=0)] = Field(
        0.0, description="Time left out after the training and the validation split, for labels that arrive late."
    )
    train_from: IsoTime | None = Field(
        None, description="Events before this ISO 8601 time only warm up the states, and are in no fraction."
    )
    train_to: IsoTime | None = Field(
        None, description="End of the training split, exclusive. Default: the start of validation, less `gap`."
    )
    validation_from: IsoTime | None = Field(None, description="Start of the validation split, instead of a fraction.")
    test_from: IsoTime | None = Field(None, description="Start of the test split, instead of a fraction.")
    test_to: IsoTime | None = Field(None, description="End of the test split, exclusive. Default: the last event.")
    field: FieldPath | None = Field(
        None, description="With `by: given`: field that holds train, validation, test, or nothing."
    )


class ModelOptions(Section):
    """`model`: the architecture of the network."""

    cell: Annotated[Cell, BeforeValidator(lower)] = Field(
        "lstm", description="Type of the recurrent cell; docs/training.md says which one to choose."
    )
    layers: Annotated[StrictInt, Field(ge=1, le=16)] = Field(1, description="Number of recurrent layers.")
    hidden: Annotated[StrictInt, Field(ge=1, le=8192)] = Field(64, description="Hidden size of each layer.")
    projection: Count | None = Field(
        None, description="Project h to this size; LSTM only, must be smaller than `hidden`. Default: no projection."
    )
    dropout: Fraction = Field(0.0, description="Fraction of each layer's outputs that is dropped during training.")
    activation: Literal["tanh", "relu"] = Field(
        "tanh", description="Activation of an LSTM or GRU; relu as in Keras' LSTM."
    )
    window: Annotated[StrictInt, Field(ge=1, le=500)] | None = Field(
        None,
        description="The network sees only this many of the last events, which the state holds. Default: all events.",
    )


class Training(Section):
    """`training`: how the network is trained."""

    epochs: Count = Field(30, description="Maximum number of passes over the training split.")
    patience: Count = Field(5, description="Stop after this many epochs without improvement on the validation split.")
    monitor: Literal["auto", "loss", "average_precision", "none"] = Field(
        "auto",
        description="What selects the epoch; `auto`: average precision for two classes with at least 50"
        " positives in the validation split, else the validation loss;"
        " `none`: the last epoch.",
    )
    batch: Count | None = Field(
        None,
        description="Batch size in keys (with `window`: in windows). Default: 64, less where keys are few and long or"
        " the data are small, so that an epoch has 100 updates if possible.",
    )
    steps: Annotated[StrictInt, Field(ge=1, le=65536)] = Field(
        64, description="Events per key between updates; the state is carried over, the gradient is truncated."
    )
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="Optimizer; sgd with momentum 0.9.")
    learning_rate: Annotated[Float, Field(gt=0)] = Field(3e-3, description="Learning rate.")
    schedule: Literal["none", "cosine", "plateau"] = Field(
        "cosine",
        description="Learning rate schedule; cosine: down to a hundredth; plateau: halved when validation loss stalls.",
    )
    clip: Annotated[Float, Field(gt=0)] = Field(1.0, description="Maximum L2 norm of the gradient.")
    weight_decay: Annotated[Float, Field(ge=0)] = Field(0.0, description="Weight decay.")
    class_weights: ClassWeights = Field(
        "none",
        description="Weights of the classes in the loss: none, balanced, or a list in the order of the classes. With"
        " weights the scores are not probabilities; they rank as well.",
    )
    noise: Annotated[Float, Field(ge=0)] = Field(
        0.0, description="Standard deviation of the noise added to scaled numbers during training."
    )
    mask: Fraction = Field(
        0.0, description="Fraction of the numbers hidden during training, for robustness to missing values."
    )
    seed: Annotated[StrictInt, Field(ge=0, le=2**32 - 1)] = Field(0, description="Seed of all random numbers.")
    device: Annotated[Literal["auto", "cpu", "cuda"], BeforeValidator(lower)] = Field(
        "auto", description="`cuda`: an NVIDIA GPU. `auto`: the GPU if there is one, else the CPU."
    )
    threads: Count = Field(
        1, description="Threads on the CPU. More help large networks only, and may change the last bits of sums."
    )


class Cost(Section):
    """`threshold.cost`: what an error costs."""

    missed: Annotated[Float, Field(gt=0)] = Field(
        100.0, description="Cost of a positive event (with `per: sequence`: of a positive key) without an alert."
    )
    alert: Annotated[Float, Field(gt=0)] = Field(
        1.0, description="Cost of each alert, on events with a label or without."
    )


class Threshold(Section):
    """`threshold`: how the alert threshold is chosen on the validation split."""

    rule: Literal["auto", "f1", "alerts_per_day", "cost", "value", "none"] = Field(
        "auto",
        description="Best F1, an alert budget, minimum cost, a value, or none; `auto`: f1 for two classes;"
        " for anomalies 0.5, which 1 in 200 events of the validation split reach; else none.",
    )
    alerts_per_day: Annotated[Float, Field(gt=0)] | None = Field(
        None,
        description="Alert budget per day, for all events of all keys, even if validation has a part of them.",
    )
    cost: Cost
    value: Float | None = Field(None, description="The threshold for `rule: value`.")


def _bounds(value: object) -> object:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("needs two bounds; write it like [16, 128]")
    if all(isinstance(bound, int | float) for bound in value) and not value[0] <= value[1]:
        raise ValueError("has its bounds in the wrong order; write the smaller one first")
    return value


IntBounds = Annotated[tuple[Count, Count], BeforeValidator(_bounds)]
FloatBounds = Annotated[tuple[Annotated[Float, Field(ge=0)], Annotated[Float, Field(ge=0)]], BeforeValidator(_bounds)]


class Tune(Section):
    """`tune`: the search space of `lstmstream tune`. Without bounds, the first four options with usual bounds."""

    trials: Count = Field(30, description="Number of trials.")
    learning_rate: FloatBounds | None = Field(None, description="Bounds of `training.learning_rate`, above 0.")
    hidden: IntBounds | None = Field(None, description="Bounds of `model.hidden`.")
    layers: IntBounds | None = Field(None, description="Bounds of `model.layers`.")
    dropout: FloatBounds | None = Field(None, description="Bounds of `model.dropout`, below 1.")
    weight_decay: FloatBounds | None = Field(None, description="Bounds of `training.weight_decay`, above 0.")
    batch: IntBounds | None = Field(None, description="Bounds of `training.batch`.")
    steps: IntBounds | None = Field(None, description="Bounds of `training.steps`.")

    @property
    def bounds(self) -> dict[str, tuple[int, int] | tuple[float, float]]:
        """The search space: option → its lower and upper bound."""
        names = [name for name in type(self).model_fields if name != "trials"]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        usual = {"learning_rate": (3e-4, 3e-2), "hidden": (16, 128), "layers": (1, 2), "dropout": (0.0, 0.4)}
        return given or usual


class TrainConfig(Document):
    """The configuration of `lstmstream train`. Durations are float seconds."""

    placeholders: ClassVar[Mapping[Keys, str]] = {("name",): "placeholder", ("task",): "classify"}

    name: Name = Field(description="Name of the model.")
    version: SingleLine = Field("1", description="Version of the model.")
    task: Task = Field(
        description="forecast: predict next values. classify: predict one of two or more classes. anomaly: learn what"
        " is normal."
    )
    out: Path | None = Field(
        None, description="Model file. Default: `<name>.onnx` beside this file; --out overrides it."
    )
    data: Data
    kafka: KafkaSource
    features: Features
    target: TargetOptions
    split: SplitOptions
    model: ModelOptions
    training: Training
    threshold: Threshold
    tune: Tune

    @property
    def targets(self) -> tuple[int, ...]:
        """Columns of `features.numbers` that are forecast."""
        names = [number.name for number in self.features.numbers]
        return tuple(names.index(field) for field in self.target.fields) or tuple(range(len(names)))

    def conflicts(self) -> Iterable[Conflict]:
        """Find options that are valid by themselves and cannot be used together."""
        return training_conflicts(self)


def load_training(path: Path, environ: Mapping[str, str] = os.environ) -> TrainConfig:
    """Return the training configuration at `path`.

    With `data.from: kafka`, the daemon's environment variables for section `kafka` apply here too, so that passwords
    need not be in the file. Raises CannotServe with one line for each fault.
    """
    tree, places = read_placed(path)
    if "input" in tree and "output" in tree:
        raise CannotServe(f"{path}: is a daemon's configuration, which `lstmstream run` reads; give one for training")
    data = tree.get("data")
    reads_kafka = isinstance(data, dict) and data.get("from") == "kafka"
    kafka = [option for option in training_options() if reads_kafka and option.keys[0] == "kafka"]
    overrides = apply_environment(tree, kafka, environ, refuse_unknown=False)
    return validate(TrainConfig, tree, path.parent, overrides, places)


def validate_training(tree: dict[str, Any], folder: Path) -> TrainConfig:
    """Return the configuration that `tree` describes, with paths relative to `folder`.

    Raises CannotServe with one line for each fault.
    """
    return validate(TrainConfig, tree, folder)


def training_options() -> list[Option]:
    """Return every option of a training configuration, in the order of the file."""
    return list(options_of(TrainConfig).values())


def config_text(path: Path) -> str:
    """Return the text of the configuration file for a report, without section `kafka`: it may hold a password."""
    tree = read_yaml(path)
    if "kafka" not in tree:
        return path.read_text(encoding="utf-8-sig")
    del tree["kafka"]
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
