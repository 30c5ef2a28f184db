"""The configuration of a fine-tuning (`--init`): the network of the given model, unless options contradict it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lstmstream.errors import CannotServe
from lstmstream.evaluation.training_data import overlap
from lstmstream.formats.durations import short_duration
from lstmstream.history.events import Events
from lstmstream.history.split import SPLIT_NAMES, TEST, VALIDATION, Split
from lstmstream.model.card import Card
from lstmstream.train.export import FeatureEncoder, NetworkSpec
from lstmstream.train.schema import Features, TrainConfig

_PURPOSE = {"classify": "to classify", "forecast": "to forecast", "anomaly": "to detect anomalies"}
_HAS = {True: "has it", False: "does not have it"}


def config_for_fine_tuning(config: TrainConfig, base: NetworkSpec, card: Card) -> TrainConfig:
    """The configuration with the architecture, clock, history and classes of the model to fine-tune.

    `base` and `card` are that model's. Raises CannotServe with a line for each option that asks for something else.
    """
    first = base.layers[0]
    architecture = {
        "cell": first.cell,
        "layers": len(base.layers),
        "hidden": first.hidden,
        "projection": first.width if first.width != first.hidden else None,
        "activation": first.activation,
        "window": base.window,
    }
    clock = {
        "elapsed": base.encoder.elapsed is not None,
        "hour_of_day": base.encoder.hour_of_day,
        "day_of_week": base.encoder.day_of_week,
    }
    classes = card.training.get("fields", {}).get("classes") or []
    problems = [
        *_architecture_conflicts(config, architecture),
        *_feature_conflicts(config, base, clock),
        *_target_conflicts(config, card, classes),
    ]
    if problems:
        raise CannotServe(*problems)
    numbers = [
        number.model_copy(update={"history": windows})
        for number, windows in zip(config.features.numbers, _windows_s(base.encoder), strict=True)
    ]
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=architecture),
            "features": config.features.model_copy(update=clock | {"numbers": numbers}),
            "target": config.target.model_copy(update={"classes": config.target.classes or classes}),
        }
    )


def overlap_warnings(
    events: Events, split: Split, base_records: Sequence[dict[str, Any]], base_seed: object
) -> list[str]:
    """A warning where the split that is evaluated has events that the model of --init has learned from."""
    label = TEST if (split.labels == TEST).any() else VALIDATION
    found = overlap(base_records, events, split.rows(label))
    if found is None or not found.share:
        return []
    name = SPLIT_NAMES[label]
    warning = (
        f"split: {found} of the events of the {name} split lie in the training data of the model of --init, so its"
        f" results are better than on new data. Use that model's split with its training.seed, {base_seed}, or take"
        f" the {name} split from after its training data"
    )
    return [warning]


def _architecture_conflicts(config: TrainConfig, architecture: dict[str, Any]) -> Iterator[str]:
    model = config.model
    for name in sorted(model.model_fields_set & architecture.keys()):
        configured, existing = getattr(model, name), architecture[name]
        if configured != existing:
            yield f"model.{name}: is {configured}, and the model of --init has {existing}; remove it"


def _feature_conflicts(config: TrainConfig, base: NetworkSpec, clock: dict[str, bool]) -> Iterator[str]:
    features, encoder = config.features, base.encoder
    for kind, configured, existing in (
        ("numbers", features.numbers, encoder.numbers),
        ("categories", features.categories, encoder.categories),
    ):
        names, base_names = [field.name for field in configured], [field.name for field in existing]
        if names != base_names:
            yield (
                f"features.{kind}: are {', '.join(names) or 'none'}, and the model of --init has"
                f" {', '.join(base_names) or 'none'}; name the same in the same order"
            )
    for name in sorted(features.model_fields_set & clock.keys()):
        if getattr(features, name) != clock[name]:
            yield f"features.{name}: the model of --init {_HAS[clock[name]]}; remove it"
    for number, base_number in zip(features.numbers, encoder.numbers, strict=False):
        same_field = number.name == base_number.name
        if same_field and "log" in number.model_fields_set and number.log != base_number.log:
            yield f"features.numbers.{number.name}.log: the model of --init {_HAS[base_number.log]}; remove it"
    yield from _history_conflicts(features, encoder)


def _history_conflicts(features: Features, encoder: FeatureEncoder) -> Iterator[str]:
    for number, base_windows in zip(features.numbers, _windows_s(encoder), strict=False):
        if "history" in number.model_fields_set and number.history != base_windows:
            configured, existing = (
                ", ".join(map(short_duration, windows)) or "none" for windows in (number.history, base_windows)
            )
            yield (
                f"features.numbers.{number.name}.history: is {configured}, and the model of --init has {existing};"
                " remove it"
            )


def _windows_s(encoder: FeatureEncoder) -> list[list[float]]:
    """The windows of each number's history."""
    windows: list[list[float]] = [[] for _ in encoder.numbers]
    if encoder.history is not None:
        for column, window in zip(encoder.history.columns, encoder.history.windows_s, strict=True):
            windows[column].append(window)
    return windows


def _target_conflicts(config: TrainConfig, card: Card, classes: list[str]) -> Iterator[str]:
    configured = config.target.classes
    if config.task == "classify" and configured and classes and configured != classes:
        yield f"target.classes: the model of --init has {', '.join(classes)}, in this order; remove it"
    if config.task != card.task:
        yield f"task: is {config.task}, and the model of --init was trained {_PURPOSE[card.task]}; use the same task"
