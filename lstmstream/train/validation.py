"""Conflicts between options of the training, each of them valid by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import ValidationError

from lstmstream.config.diagnostics import describe_errors
from lstmstream.config.document import Conflict
from lstmstream.config.validation import (
    WITH_REGISTRY,
    needs_registry,
    registry_conflicts,
    security_conflicts,
    silent_conflicts,
)

if TYPE_CHECKING:
    from lstmstream.train.schema import SplitOptions, TrainConfig


def training_conflicts(config: TrainConfig) -> Iterator[Conflict]:
    """Find every conflict of a training configuration. With `data.from: kafka`, reads the certificate files."""
    yield from _data_conflicts(config)
    yield from silent_conflicts(config.data.silent, "data.silent")
    yield from _feature_conflicts(config)
    yield from _target_conflicts(config)
    yield from _split_conflicts(config.split)
    yield from _model_conflicts(config)
    yield from _threshold_conflicts(config)
    yield from _tune_conflicts(config)
    if config.data.source == "kafka":
        yield from security_conflicts(config.kafka.security, config.folder)
        yield from registry_conflicts(config.kafka.schema_registry, config.folder)
        if config.data.format in WITH_REGISTRY:
            yield from needs_registry(config.kafka.schema_registry, "data.format", config.data.format)


def _data_conflicts(config: TrainConfig) -> Iterator[Conflict]:
    data = config.data
    if data.source == "files" and not data.path:
        yield Conflict(("data.path", "data.from"), "is missing; name a CSV, JSONL or Parquet file")
    if data.source == "kafka" and data.topic is None:
        yield Conflict(("data.topic", "data.from"), "is missing; name the topic to read")
    if data.source == "files" and data.timestamp is None:
        for name in ("elapsed", "hour_of_day", "day_of_week"):
            if getattr(config.features, name):
                text = "needs data.timestamp, because the daemon feeds real event times; set that, or remove this"
                yield Conflict((f"features.{name}", "data.timestamp", "data.from"), text)
        for index, number in enumerate(config.features.numbers):
            if number.history:
                text = "needs data.timestamp, because the daemon feeds real event times; set that, or remove this"
                yield Conflict((f"features.numbers.{index}.history", "data.timestamp", "data.from"), text)


def _feature_conflicts(config: TrainConfig) -> Iterator[Conflict]:
    features = config.features
    numbers = [number.name for number in features.numbers]
    categories = [category.name for category in features.categories]
    if not (numbers or categories or features.hour_of_day or features.day_of_week or features.elapsed):
        yield Conflict(("features",), "is empty; list at least one of numbers or categories")
    for section, names in (("numbers", numbers), ("categories", categories)):
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                yield Conflict((f"features.{section}",), f"{name} is listed twice; keep one")


def _target_conflicts(config: TrainConfig) -> Iterator[Conflict]:
    target, numbers = config.target, [number.name for number in config.features.numbers]
    if config.task == "classify":
        if target.field is None:
            yield Conflict(("target.field", "task"), "is missing; name the field that holds the label")
        if target.field is not None and target.field == config.data.key:
            text = f"{target.field} is data.key too, and a label that the key tells needs no model; name another field"
            yield Conflict(("target.field", "data.key"), text)
        if target.fields:
            text = "is for forecasts; for task: classify, name the label in target.field"
            yield Conflict(("target.fields", "task"), text)
        if len(set(target.classes)) != len(target.classes) or len(target.classes) == 1:
            yield Conflict(("target.classes", "task"), "needs two or more values, each listed once")
        return
    if not numbers:
        text = f"is empty, and task: {config.task} forecasts numbers; list at least one"
        yield Conflict(("features.numbers", "task"), text)
    for field in target.fields:
        if field not in numbers:
            text = f"{field} is not one of features.numbers; add it there, because it is an input as well"
            yield Conflict(("target.fields", "features.numbers", "task"), text)
    if config.task == "anomaly" and target.horizon != 1:
        yield Conflict(("target.horizon", "task"), "anomaly detection forecasts one event ahead; remove it")
    if config.task == "forecast" and target.field is not None:
        yield Conflict(("target.field", "task"), "is for labels; list the fields to forecast in target.fields")
    if target.per == "sequence":
        yield Conflict(("target.per", "task"), f"sequence needs task: classify, not {config.task}; remove it")


def _split_conflicts(split: SplitOptions) -> Iterator[Conflict]:
    if split.validation + split.test >= 1:
        text = "validation and test together leave nothing to train on; make them smaller"
        yield Conflict(("split.test", "split.validation"), text)
    if split.by != "given" and not split.validation and split.validation_from is None:
        text = "is 0, but validation selects the epoch and the threshold; make it larger"
        yield Conflict(("split.validation", "split.by", "split.validation_from"), text)
    if split.by == "given" and split.field is None:
        text = "is missing; name the field that holds train, validation or test"
        yield Conflict(("split.field", "split.by"), text)
    if split.by != "given" and split.field is not None:
        yield Conflict(("split.field", "split.by"), "has no effect without by: given; set that, or remove this")
    if split.by != "time":
        dates = ("train_from", "train_to", "validation_from", "test_from", "test_to")
        first = next((name for name in dates if getattr(split, name)), None)
        if first is not None:
            yield Conflict((f"split.{first}", "split.by"), "a date needs split.by: time; set that, or remove this")
        if split.gap:
            yield Conflict(("split.gap", "split.by"), "a gap needs split.by: time; set that, or remove this")


def _model_conflicts(config: TrainConfig) -> Iterator[Conflict]:
    model = config.model
    if model.projection is not None and model.cell != "lstm":
        yield Conflict(
            ("model.projection", "model.cell"), "only an LSTM has a projection; remove it, or use cell: lstm"
        )
    elif model.projection is not None and model.projection >= model.hidden:
        text = f"{model.projection} must be less than model.hidden ({model.hidden}); change one of them"
        yield Conflict(("model.projection", "model.hidden"), text)
    if model.activation != "tanh" and model.cell not in {"lstm", "gru"}:
        text = f"{model.cell} has its own activations; remove it, or use cell: lstm or gru"
        yield Conflict(("model.activation", "model.cell"), text)
    if config.training.monitor == "average_precision" and config.task != "classify":
        yield Conflict(("training.monitor", "task"), "average_precision needs task: classify; use loss")


def _threshold_conflicts(config: TrainConfig) -> Iterator[Conflict]:
    threshold = config.threshold
    if config.task == "forecast" and threshold.rule not in {"auto", "value", "none"}:
        text = f"{threshold.rule} does not apply to forecasts; write rule: value, or remove it"
        yield Conflict(("threshold.rule", "task"), text)
    if threshold.rule == "alerts_per_day" and threshold.alerts_per_day is None:
        text = "is missing; write how many alerts per day can be investigated"
        yield Conflict(("threshold.alerts_per_day", "threshold.rule"), text)
    if threshold.rule == "value" and threshold.value is None:
        yield Conflict(("threshold.value", "threshold.rule"), "is missing; write the lowest score that is an alert")
    if config.task != "forecast" and threshold.value is not None and threshold.value > 1:
        text = f"{threshold.value:g} is above every score of task: {config.task}, which are from 0 to 1; lower it"
        yield Conflict(("threshold.value", "task"), text)
    given = {
        "alerts_per_day": threshold.alerts_per_day is not None,
        "value": threshold.value is not None,
        "cost": bool(threshold.cost.model_fields_set),
    }
    for rule, is_given in given.items():
        if is_given and threshold.rule != rule:
            text = f"has no effect with rule: {threshold.rule}; write rule: {rule}, or remove it"
            yield Conflict((f"threshold.{rule}", "threshold.rule"), text)


def _tune_conflicts(config: TrainConfig) -> Iterator[Conflict]:
    tune = config.tune
    for name in ("learning_rate", "weight_decay"):
        bounds = getattr(tune, name)
        if bounds is not None and bounds[0] <= 0:
            text = "its lower bound must be above 0, because the scale of the search is logarithmic; raise it"
            yield Conflict((f"tune.{name}",), text)
    for name, (_, high) in tune.bounds.items():
        section = config.model if name in type(config.model).model_fields else config.training
        try:
            type(section).model_validate({name: high})
        except ValidationError as error:
            for _, text in describe_errors(error, {}):
                yield Conflict((f"tune.{name}",), f"its upper bound {text}")
