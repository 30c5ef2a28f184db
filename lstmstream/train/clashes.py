"""What no training option by itself can be blamed for: options that do not go together, each said with its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import ValidationError

from lstmstream.config.explain import faults

if TYPE_CHECKING:
    from lstmstream.train.schema import Split, TrainConfig


def clashes(config: TrainConfig) -> Iterator[str]:
    """What no option by itself can be blamed for."""
    yield from _data_clashes(config)
    yield from _target_clashes(config)
    yield from _split_clashes(config.split)
    yield from _tune_clashes(config)
    model, threshold = config.model, config.threshold
    if model.projection is not None and model.cell == "gru":
        yield "model.projection: only an LSTM has one; take it away, or use cell: lstm"
    elif model.projection is not None and model.projection >= model.hidden:
        yield f"model.projection: {model.projection} must be smaller than model.hidden, {model.hidden}"
    if config.task == "forecast" and threshold.rule not in {"auto", "value", "none"}:
        yield f"threshold.rule: {threshold.rule} is not for forecasts; write rule: value, or take it away"
    if threshold.rule == "alerts_per_day" and threshold.alerts_per_day is None:
        yield "threshold.alerts_per_day: is missing; write how many alerts a day somebody can look at"
    if threshold.rule == "value" and threshold.value is None:
        yield "threshold.value: is missing; write the score from which on it is an alert"
    given = {"alerts_per_day": threshold.alerts_per_day is not None, "value": threshold.value is not None}
    for rule, there in (given | {"cost": bool(threshold.cost.model_fields_set)}).items():
        if there and threshold.rule != rule:
            yield f"threshold.{rule}: has no effect with rule: {threshold.rule}; write rule: {rule}, or take it away"
    if config.training.monitor == "average_precision" and config.task != "classify":
        yield "training.monitor: average_precision needs task: classify; use loss"


def _data_clashes(config: TrainConfig) -> Iterator[str]:
    data, features = config.data, config.features
    if data.source == "files" and not data.path:
        yield "data.path: is missing; name a CSV, JSONL or Parquet file"
    if data.source == "kafka" and data.topic is None:
        yield "data.topic: is missing; name the topic to read"
    if data.source == "files" and data.timestamp is None:
        yield from (
            f"features.{name}: needs data.timestamp, as the daemon will feed real times; name that, or take this away"
            for name in ("elapsed", "hour_of_day", "day_of_week")
            if getattr(features, name)
        )
    names = [number.name for number in features.numbers]
    if not names and not features.categories and not (features.hour_of_day or features.day_of_week or features.elapsed):
        yield "features: is empty; name at least one of numbers or categories"
    for section, found in (("numbers", names), ("categories", [category.name for category in features.categories])):
        yield from (
            f"features.{section}: {name} stands there twice; keep one"
            for name in dict.fromkeys(found)
            if found.count(name) > 1
        )


def _target_clashes(config: TrainConfig) -> Iterator[str]:
    target, names = config.target, [number.name for number in config.features.numbers]
    if config.task == "classify":
        if target.field is None:
            yield "target.field: is missing; name the field that holds the label"
        if target.fields:
            yield "target.fields: is for forecasts; to classify, name one label in target.field"
        if len(set(target.classes)) != len(target.classes) or len(target.classes) == 1:
            yield "target.classes: needs two or more values, each once"
        return
    if not names:
        yield f"features.numbers: is empty; task {config.task} needs numbers to forecast"
    for field in target.fields:
        if field not in names:
            yield f"target.fields: {field} is not among features.numbers; add it there, it is an input too"
    if config.task == "anomaly" and target.horizon != 1:
        yield "target.horizon: anomaly detection looks one event ahead; take it away"
    if config.task == "forecast" and target.field is not None:
        yield "target.field: is for labels; a forecast's fields stand in target.fields"
    if target.per == "sequence":
        yield f"target.per: sequence needs task: classify, not {config.task}"


def _split_clashes(split: Split) -> Iterator[str]:
    if split.validation + split.test >= 1:
        yield "split.test: validation and test together leave nothing to learn from; make them smaller"
    if split.by != "given" and not split.validation and split.validation_from is None:
        yield "split.validation: is 0, and it chooses the epoch and the threshold; make it larger"
    if split.by == "given" and split.field is None:
        yield "split.field: is missing; name the field that says train, validation or test"
    if split.by != "given" and split.field is not None:
        yield "split.field: has no effect without by: given; write that, or take it away"
    dates = [
        name for name in ("train_from", "train_to", "validation_from", "test_from", "test_to") if getattr(split, name)
    ]
    if dates and split.by != "time":
        yield f"split.{dates[0]}: dates need split.by: time"
    if split.by != "time" and split.gap:
        yield "split.gap: a gap needs split.by: time"


def _tune_clashes(config: TrainConfig) -> Iterator[str]:
    tune = config.tune
    for name in ("learning_rate", "weight_decay"):
        bounds = getattr(tune, name)
        if bounds is not None and bounds[0] <= 0:
            yield f"tune.{name}: its lower bound must be above 0, for it is searched on a logarithmic scale"
    for name, (_, high) in tune.bounds.items():
        section = config.model if name in type(config.model).model_fields else config.training
        try:
            type(section).model_validate({name: high})
        except ValidationError as error:
            yield from (f"tune.{name}: its upper bound {text}" for _, text in faults(error, {}))
