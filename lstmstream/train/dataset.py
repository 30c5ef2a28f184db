"""From a configuration to a data set ready for training: read, labeled, split, checked, with its encoder fitted."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from lstmstream.errors import CannotServe
from lstmstream.evaluation.alignment import TaskSpec
from lstmstream.formats.values import label_text
from lstmstream.history.events import Events, encode_categories, load_events, order_classes
from lstmstream.history.fields import Fields
from lstmstream.history.read import resolve_paths
from lstmstream.history.split import SPLIT_NAMES, TRAIN, VALIDATION, Split, split_events, without_silent
from lstmstream.records import Bools
from lstmstream.train import data_checks
from lstmstream.train.export import FeatureEncoder, NetworkSpec
from lstmstream.train.features import add_statistics, category_features, fit_encoder, scale_history
from lstmstream.train.fine_tuning import overlap_warnings
from lstmstream.train.loss import make_loss_mask
from lstmstream.train.schema import TrainConfig

CLEAR_MAJORITY = 2  # times the next class: then the most frequent one is the normal one without a doubt
_FALSE_AND_TRUE = (("false", "true"), ("no", "yes"))  # labels, in lower case: the first is class 0


@dataclass(frozen=True, slots=True)
class Dataset:
    """The events, their split into training, validation and test split, and what was derived from them."""

    config: TrainConfig
    fields: Fields
    events: Events
    split: Split
    loss_masks: dict[str, Bools]  # by name of the split: [N] whether the output at an event is in its loss
    encoder: FeatureEncoder
    warnings: tuple[str, ...]  # sentences for the user
    base_records: tuple[dict[str, Any], ...] = ()  # what the model of --init learned from, as its card says it

    @property
    def task_spec(self) -> TaskSpec:
        """What the model predicts, in the form that the evaluation takes."""
        config = self.config
        names = tuple(number.name for number in config.features.numbers)
        forecast = config.task != "classify"
        return TaskSpec(
            task=config.task,
            numbers=names,
            targets=tuple(names[column] for column in config.targets) if forecast else (),
            horizon=config.target.horizon if forecast else 1,
            classes=self.events.classes,
            per=config.target.per,
        )

    def close(self) -> None:
        """Removes the temporary files of events that are larger than the memory."""
        if self.events.scratch is not None:
            self.events.scratch.cleanup()


def prepare_dataset(
    config: TrainConfig, base: NetworkSpec | None = None, base_training: Mapping[str, Any] | None = None
) -> Dataset:
    """Reads and splits the data, checks them and fits the encoder.

    `base` is the network to fine-tune: its scaling, its vocabularies and its classes are kept. `base_training` is what
    its card says of its training. Raises CannotServe with everything that is wrong with the data.
    """
    fields = event_fields(config)
    events, fields, read_warnings = _read_events(config, fields)
    if not len(events):
        raise CannotServe("data: it has no events; check data.path")
    if config.target.field is not None:
        events = _order_classes(events, config, fine_tuning=base is not None)
        read_warnings = [*read_warnings, *_class_order_warning(events, config)]
    all_events = split_events(events, config.split, config.training.seed)
    seen = all_events.rows(TRAIN)  # with the silent ones, whose values are inputs too
    split = without_silent(all_events, events)
    present = {label: name for label, name in SPLIT_NAMES.items() if (split.labels == label).any()}
    loss_masks = {name: make_loss_mask(events, split, config, label) for label, name in present.items()}
    problems = data_checks.errors(
        events, all_events, config, {name: loss_masks[name] for name in (SPLIT_NAMES[TRAIN], SPLIT_NAMES[VALIDATION])}
    )
    if problems:
        raise CannotServe(*problems)
    warnings = [*read_warnings, *data_checks.warnings(events, split, config)]
    base_training = base_training or {}
    base_records = tuple(base_training.get("learned_from") or ())
    warnings += overlap_warnings(events, split, base_records, base_training.get("seed"))
    if base is None:
        flag_missing = config.training.mask > 0
        encoder = fit_encoder(events, seen, config.features, flag_missing=flag_missing)
        warnings += data_checks.rare_values(events, seen, encoder, config)
        data_checks.check_scale(encoder)
        events = add_statistics(events, encoder)
        encoder = scale_history(encoder, events, split.rows(TRAIN))
    else:
        encoder = base.encoder
        events = add_statistics(events, encoder)
    data_checks.check_memory(config, len(events.keys), encoder.width)
    events = encode_categories(events, category_features(encoder))
    return Dataset(config, fields, events, split, loss_masks, encoder, tuple(warnings), base_records)


def event_fields(config: TrainConfig) -> Fields:
    """The fields of an event that training reads."""
    return Fields(
        key=config.data.key,
        timestamp=config.data.timestamp,
        numbers=tuple(number.name for number in config.features.numbers),
        categories=tuple(category.name for category in config.features.categories),
        label=config.target.field,
        split=config.split.field if config.split.by == "given" else None,
        silent=config.data.silent.mark,
    )


def _read_events(config: TrainConfig, fields: Fields) -> tuple[Events, Fields, Sequence[str]]:
    """The events of the files or of the topic, the fields under the names they were read by, and warnings."""
    if config.data.source == "files":
        warnings: list[str] = []
        files = resolve_paths(config.data.path, config.folder, warnings)
        return load_events(files, fields, csv=config.data.csv.options), fields, warnings
    from lstmstream.history.topics import TopicRange, fetch_topic  # noqa: PLC0415 -- files need no Kafka client
    from lstmstream.transport.schema_registry import open_event_reader  # noqa: PLC0415 -- as above

    with tempfile.TemporaryDirectory(prefix="lstmstream-") as folder:
        file = Path(folder) / "events.jsonl"
        assert config.data.topic is not None
        source = TopicRange(config.data.topic, config.data.start, config.data.end)
        reader = open_event_reader(
            config.kafka,
            record_format=config.data.format,
            unwrap=config.data.unwrap,
            max_bytes=10_000_000,
            folder=config.folder,
        )
        file_fields, warnings = fetch_topic(config.kafka, source, fields, file, folder=config.folder, reader=reader)
        return load_events([file], file_fields), fields, warnings


def _order_classes(events: Events, config: TrainConfig, *, fine_tuning: bool) -> Events:
    """The events with their labels as indices into the classes in order. Raises CannotServe for an unknown class."""
    # 0.0 in the configuration is the class 0 of data that have 0.0
    configured = [text if text in events.classes else label_text(text) for text in config.target.classes]
    unknown = sorted(set(events.classes) - set(configured))
    if fine_tuning and config.task == "classify" and unknown:
        raise CannotServe(
            f"target.field: {config.target.field!r} has {', '.join(map(repr, unknown[:5]))}, and the model of --init"
            f" has the classes {', '.join(map(repr, configured))}; leave such rows out, or train a new model"
        )
    return order_classes(events, configured or default_class_order(events))


def default_class_order(events: Events) -> Sequence[str]:
    """The label's values in order: numbers ascend; otherwise the most frequent comes first, then by name."""
    found = events.classes
    by_lower_case = {text.lower(): text for text in found}
    for pair in _FALSE_AND_TRUE:
        if len(found) == len(pair) and set(by_lower_case) == set(pair):
            return [by_lower_case[text] for text in pair]
    if all(map(_is_number, found)):
        return sorted(found, key=lambda text: (float(text), text))
    counts = np.bincount(np.asarray(events.label)[np.asarray(events.label) >= 0], minlength=len(found))
    most_frequent = found[int(np.argmax(counts))]
    return [most_frequent, *sorted(text for text in found if text != most_frequent)]


def _class_order_warning(events: Events, config: TrainConfig) -> list[str]:
    """A sentence where the class without alerts was taken by its frequency, and another is about as frequent."""
    classes = events.classes
    by_name = {text.lower() for text in classes} in [set(pair) for pair in _FALSE_AND_TRUE]
    if config.target.classes or len(classes) < 2 or by_name or all(map(_is_number, classes)):
        return []
    counts = np.bincount(np.asarray(events.label)[np.asarray(events.label) >= 0], minlength=len(classes))
    if counts[0] >= CLEAR_MAJORITY * counts[1:].max():
        return []
    others = ", ".join(map(repr, classes[1 : 1 + data_checks.MAX_LISTED]))
    return [
        (
            f"target.classes is not set, so {classes[0]!r} counts as the normal class, as the most frequent"
            f" ({counts[0] / counts.sum():.0%} of the labels), and alerts are for {others}; list the classes there, the"
            " normal one first"
        )
    ]


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False
