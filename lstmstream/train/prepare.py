"""From a configuration to data that are ready to learn from: read, labelled, divided, looked at, scaled."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from lstmstream.errors import CannotServe
from lstmstream.train.export import Encoder
from lstmstream.train.export.parts import Network
from lstmstream.train.history import inspection
from lstmstream.train.history.data import Events, encode_categories, load, order_classes
from lstmstream.train.history.features import features_of, learn
from lstmstream.train.history.read import Fields, label_text, resolve
from lstmstream.train.history.split import NAMES, TRAIN, VALIDATION, Parts, divide
from lstmstream.train.measure.judge import Goal
from lstmstream.train.objective import counting
from lstmstream.train.pieces import Bools
from lstmstream.train.schema import TrainConfig

_TRUE_LAST = (("false", "true"), ("no", "yes"))  # in any case


@dataclass(frozen=True, slots=True)
class Prepared:
    """Data and what was decided about them."""

    config: TrainConfig
    fields: Fields
    events: Events
    parts: Parts
    counted: dict[str, Bools]  # by part's name: [N] whether the network's output at an event belongs to the part
    encoder: Encoder
    warnings: tuple[str, ...]

    @property
    def goal(self) -> Goal:
        """What the model will say."""
        config = self.config
        names = tuple(number.name for number in config.features.numbers)
        forecast = config.task != "classify"
        return Goal(
            task=config.task,
            numbers=names,
            targets=tuple(names[column] for column in config.targets) if forecast else (),
            horizon=config.target.horizon if forecast else 1,
            classes=self.events.classes,
            per=config.target.per,
        )


def prepare(config: TrainConfig, base: Network | None = None) -> Prepared:
    """Reads the data and gets them ready. `base` is the network to fine-tune: its scaling and vocabularies are kept.

    Raises CannotServe with all that the data lack.
    """
    fields = fields_of(config)
    events, fields, told = _read(config, fields)
    if not len(events):
        raise CannotServe("data: there is no event in it; check data.path")
    if config.target.field is not None:
        # 0.0 in the configuration is the class 0 of a CSV file that says 0.0
        wanted = [text if text in events.classes else label_text(text) or text for text in config.target.classes]
        unknown = sorted(set(events.classes) - set(wanted))
        if base is not None and config.task == "classify" and unknown:
            raise CannotServe(
                f"target.field: {config.target.field!r} holds {', '.join(map(repr, unknown[:5]))}, and the model of"
                f" --init knows {', '.join(map(repr, wanted))}; leave such rows out, or train anew"
            )
        events = order_classes(events, wanted or _classes(events))
    parts = divide(events, config.split, config.training.seed)
    names = {part: name for part, name in NAMES.items() if (parts.of == part).any()}
    counted = {name: counting(events, parts, config, part) for part, name in names.items()}
    inspection.refuse(events, parts, config, {name: counted[name] for name in (NAMES[TRAIN], NAMES[VALIDATION])})
    warnings = [*told, *inspection.warn(events, parts, config, counted)]
    if base is None:
        encoder = learn(events, parts.rows(TRAIN), config.features, flag_missing=config.training.mask > 0)
        inspection.check_scale(encoder)
    else:
        encoder = base.encoder
    inspection.check_memory(config, len(events.keys), encoder.width)
    events = encode_categories(events, features_of(encoder))
    return Prepared(config, fields, events, parts, counted, encoder, tuple(warnings))


def fields_of(config: TrainConfig) -> Fields:
    """What is read of an event."""
    return Fields(
        key=config.data.key,
        timestamp=config.data.timestamp,
        numbers=tuple(number.name for number in config.features.numbers),
        categories=tuple(category.name for category in config.features.categories),
        label=config.target.field,
        part=config.split.field if config.split.by == "given" else None,
    )


def _read(config: TrainConfig, fields: Fields) -> tuple[Events, Fields, Sequence[str]]:
    if config.data.source == "files":
        return load(resolve(config.data.path, config.folder), fields), fields, ()
    from lstmstream.train.history.from_kafka import fetch  # noqa: PLC0415 -- files need no broker's client

    with tempfile.TemporaryDirectory(prefix="lstmstream-") as folder:
        file = Path(folder) / "events.jsonl"
        there, told = fetch(config, fields, file)
        return load([file], there), fields, told


def _classes(events: Events) -> Sequence[str]:
    """The label's values in an order: numbers ascend; else the most frequent first, then by name."""
    found = events.classes
    by_lower = {text.lower(): text for text in found}
    for pair in _TRUE_LAST:
        if len(found) == len(pair) and set(by_lower) == set(pair):
            return [by_lower[text] for text in pair]
    if all(map(_is_number, found)):
        return sorted(found, key=lambda text: (float(text), text))
    counts = np.bincount(np.asarray(events.label)[np.asarray(events.label) >= 0], minlength=len(found))
    usual = found[int(np.argmax(counts))]
    return [usual, *sorted(text for text in found if text != usual)]


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False
