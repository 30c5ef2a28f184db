"""Checks of the data before training: what makes training impossible or pointless, and what would mislead.

`errors` lists the former, `warnings` the latter, one sentence for each problem. `check_scale` and `check_memory` raise.
Apart from missing labels and the range of numbers, only the training split is looked at.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lstmstream.errors import CannotServe
from lstmstream.formats.timestamps import unlikely_times
from lstmstream.history.events import Events, row_slices
from lstmstream.history.split import NONE, TRAIN, VALIDATION, Split
from lstmstream.records import Bools, Floats, Ints
from lstmstream.train.batching import MAX_BATCH
from lstmstream.train.export import FeatureEncoder
from lstmstream.train.export.checks import MAX_SCALE
from lstmstream.train.export.named_cells import NAMED_CELLS
from lstmstream.train.leaks import leak_warnings
from lstmstream.train.new_values import values_out_of_range
from lstmstream.train.precision import coarse_numbers, constant_note
from lstmstream.train.schema import TrainConfig
from lstmstream.wording import counted

MAX_SAMPLE_ROWS = 200_000  # of the training split, for constant features and leaks
MAX_LISTED = 5  # classes named in a message
MAX_COMPARED = 200  # values of a category; with more it may be of identifiers, where case counts
MANY_CLASSES = 50  # with more, decimal points in the labels say that they are numbers
MISSING_WORDS = frozenset({"none", "null", "nil", "nan", "na", "n/a", "n.a.", "<na>", "-", "?"})  # casefolded
_CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own
_BYTES_PER_UNIT = 40  # of activations and gradients, for each gate of each hidden unit and event of a batch


def errors(events: Events, split: Split, config: TrainConfig, loss_masks: Mapping[str, Bools]) -> list[str]:
    """A sentence for each thing that the data lack and training needs.

    `loss_masks` has the masks [N] of `train` and `validation`.
    """
    problems = [*_empty_features(events, split, config), *_empty_losses(events, config, loss_masks)]
    if config.task == "classify" and not problems:
        problems += _class_problems(events, config, loss_masks)
    return problems


def warnings(events: Events, split: Split, config: TrainConfig) -> list[str]:
    """A sentence for each thing in the data that is allowed and likely to be a mistake."""
    training = split.rows(TRAIN)
    sample = training[:: max(1, len(training) // MAX_SAMPLE_ROWS)]
    validation = split.rows(VALIDATION)
    coarse = dict(coarse_numbers(events, sample, config))
    return [
        *events.notes,
        *_unsorted_rows(events),
        *_unlikely_times(events, config),
        *_short_sequences(events, config),
        *_constant_features(events, sample, training, config),
        *coarse.values(),
        *values_out_of_range(events, sample, validation[:: max(1, len(validation) // MAX_SAMPLE_ROWS)], config, coarse),
        *leak_warnings(events, split, config, sample),
        *_missing_labels(events, config),
        *_similar_values(events, config),
        *_unlabeled_events(events, split, config),
        *_unlabeled_keys(events, split, config),
        *_interleaved_splits(events, split, config),
        *_labelled_anomalies(events, training, config),
    ]


def rare_values(events: Events, rows: Ints, encoder: FeatureEncoder, config: TrainConfig) -> Iterator[str]:
    """A sentence for each category most of whose values in the rows `rows` [n] are too rare for the vocabulary.

    `events` have the texts of their categories.
    """
    for column, (category, option) in enumerate(zip(encoder.categories, config.features.categories, strict=True)):
        if category.vocabulary is None:
            continue
        known = set(category.vocabulary)
        is_rare = np.array([False, *(text not in known for text in events.texts[column])])
        present = rare = 0
        for chunk in row_slices(len(rows)):
            codes = events.codes[rows[chunk], column]
            present += int((codes > 0).sum())
            rare += int(is_rare[codes].sum())
        if rare > present / 2:
            yield (
                f"{category.name}: {rare:,} of {present:,} values in the training split are too rare to learn from"
                f" (fewer than {option.min_count} events each) and count as unknown; leave out free text and"
                " identifiers, or set buckets for it"
            )


def check_scale(encoder: FeatureEncoder) -> None:
    """Raises CannotServe for numbers whose centre or scale is out of range for float32 arithmetic."""
    problems = [
        f"features.numbers: {number.name} has centre {number.centre:.3g} and scale {number.scale:.3g}, which is out of"
        " range for float32 arithmetic; set log: true for it, or use other units"
        for number in encoder.numbers
        if not (abs(number.centre) < MAX_SCALE and 1 / MAX_SCALE < number.scale < MAX_SCALE)
    ]
    if problems:
        raise CannotServe(*problems)


def check_memory(config: TrainConfig, keys: int, width: int) -> None:
    """Raises CannotServe where the states of `keys` keys and one batch's activations do not fit into free memory.

    `width` is the number of the network's inputs.
    """
    model, training = config.model, config.training
    scanned = model.cell in NAMED_CELLS
    if scanned:
        state = model.hidden * sum(count for _, count, _ in NAMED_CELLS[model.cell].state)
    else:
        state = (model.projection or model.hidden) + (model.hidden if model.cell == "lstm" else 0)
    states = 0 if model.window else 4 * keys * state * model.layers
    steps = model.window or training.steps
    batch_size = training.batch or MAX_BATCH
    batch = batch_size * steps * (_BYTES_PER_UNIT * (8 if scanned else 4) * model.hidden * model.layers + 8 * width)
    free = _free_bytes()
    if free is not None and states + batch > free:
        raise CannotServe(
            f"training: needs about {_format_gib(states + batch)} ({_format_gib(states)} for the states of {keys:,}"
            f" keys, {_format_gib(batch)} for a batch of {batch_size} x {steps} events), and"
            f" {_format_gib(free)} are free; make training.batch, training.steps or model.hidden smaller"
        )


def _format_gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def _free_bytes() -> int | None:
    """Free memory in bytes: of the machine, and on Linux within the container's limit; None where it is not known."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    try:
        limit, used, stat = (
            (_CGROUP / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current", "memory.stat")
        )
        # the file cache is given up when memory is needed
        cached = int(dict(line.split() for line in stat.splitlines())["inactive_file"])
        return min(free, int(limit) - int(used) + cached)
    except (OSError, KeyError, ValueError):  # no cgroup v2, or "max"
        return free


def _empty_features(events: Events, split: Split, config: TrainConfig) -> Iterator[str]:
    training = split.rows(TRAIN)
    for column, number in enumerate(config.features.numbers):
        if np.isnan(np.asarray(events.x[training, column])).all():
            yield (
                f"features.numbers: {number.name} has no value in the training split"
                f" ({counted(len(training), 'event')});"
                " leave it out, or use data that have it"
            )


def _empty_losses(events: Events, config: TrainConfig, loss_masks: Mapping[str, Bools]) -> Iterator[str]:
    """Training and validation splits without any target."""
    if config.task != "classify" and int(events.lengths.max(initial=0)) <= config.target.horizon:
        yield (
            f"data: no key has more than {config.target.horizon} event(s), so there is nothing to forecast"
            f" (data.key is {config.data.key!r}: {counted(len(events.keys), 'key')}, {counted(len(events), 'event')})"
        )
        return
    for name, mask in loss_masks.items():
        if not mask.any():
            lacking = (
                f"no event with a label in {config.target.field!r}"
                if config.task == "classify"
                else "no event that is followed by another event of its key in the same split"
            )
            yield f"split: the {name} split has {lacking}; change the fractions or dates under split"
        elif config.task != "classify" and not _has_known_target(events, config, mask):
            names = ", ".join(config.features.numbers[column].name for column in config.targets)
            yield (
                f"split: in the {name} split no event is followed by a value of {names}, so there is nothing to"
                " forecast; use data that have it"
            )


def _has_known_target(events: Events, config: TrainConfig, loss_mask: Bools) -> bool:
    """Whether any of the values to forecast is not missing."""
    rows = np.flatnonzero(loss_mask)
    return any(
        bool((~np.isnan(np.asarray(events.x[rows + ahead, column]))).any())
        for ahead in range(1, config.target.horizon + 1)
        for column in config.targets
    )


def _class_problems(events: Events, config: TrainConfig, loss_masks: Mapping[str, Bools]) -> Iterator[str]:
    counts = np.bincount(np.asarray(events.label)[loss_masks["train"]], minlength=len(events.classes))
    field = config.target.field
    if len(events.classes) < 2:
        yield f"target.field: {field!r} has only one value, {events.classes[0]!r}; two classes are needed"
    elif (counts > 0).sum() < 2:
        only = events.classes[int(np.argmax(counts))]
        yield (
            f"target.field: in the training split {field!r} is always {only!r}; two classes are needed there:"
            " change the dates under split, or use more data"
        )
    elif (counts == 0).any():
        missing = [name for name, count in zip(events.classes, counts, strict=True) if count == 0]
        names = ", ".join(map(repr, missing[:MAX_LISTED]))
        remedy = "leave the class out, or change split"
        if len(events.classes) > MANY_CLASSES and any("." in name for name in events.classes):
            remedy = (
                f"{field!r} has {len(events.classes):,} different values, as a measurement has: forecast it (task:"
                " forecast), or write a class for each range of values"
            )
        yield f"target.field: the training split has no {names}; {remedy}"
    weights = config.training.class_weights
    if isinstance(weights, list) and len(weights) != len(events.classes):
        yield (
            f"training.class_weights: has {len(weights)} values, and there are"
            f" {counted(len(events.classes), 'class', 'classes')}:"
            f" {', '.join(events.classes)}"
        )


def _unsorted_rows(events: Events) -> Iterator[str]:
    if events.first_unsorted:
        yield (
            f"the rows are not in chronological order (first: {events.first_unsorted}); they were sorted. In the"
            " stream they should arrive in order too: see input.late"
        )


def _unlikely_times(events: Events, config: TrainConfig) -> Iterator[str]:
    if events.timed and len(events):
        latest = int(events.timestamp.max())
        if note := unlikely_times(str(config.data.timestamp or "the record's timestamp"), latest, time.time() * 1000):
            yield note


def _short_sequences(events: Events, config: TrainConfig) -> Iterator[str]:
    lengths = events.lengths
    single = int((lengths == 1).sum())
    if single == len(lengths) and len(lengths) > 1:
        yield f"every key has only one event, so there is nothing to remember; is {config.data.key!r} the right key?"
    elif single > len(lengths) / 2:
        yield f"{single:,} of {len(lengths):,} keys have only one event; a state is of no use for them"


def _constant_features(events: Events, sample: Ints, training: Ints, config: TrainConfig) -> Iterator[str]:
    """Looks at all training rows only where those of the sample are all equal."""

    def is_constant(column: Floats | Ints) -> bool:
        return bool((column[sample] == column[sample[0]]).all() and (column[training] == column[sample[0]]).all())

    remedy = "in the training split, so nothing can be learned from it; leave it out"
    for index, number in enumerate(config.features.numbers):
        values = events.x[:, index]
        if is_constant(values):
            value = float(values[sample[0]])
            yield f"{number.name} is always {value:g} {remedy}{constant_note(value)}"
    for index, category in enumerate(config.features.categories):
        codes = events.codes[:, index]
        if is_constant(codes):
            what = "always has the same value" if codes[sample[0]] else "is always missing"
            yield f"{category.name} {what} {remedy}"


def _missing_labels(events: Events, config: TrainConfig) -> Iterator[str]:
    """Classes that look like a missing label."""
    for name in events.classes if config.task == "classify" else ():
        if name.strip().casefold() in MISSING_WORDS:
            yield (
                f"target.field: {name!r} is a class of {config.target.field!r}, one of {len(events.classes)}; if it"
                " stands for a missing label, leave those values empty"
            )


def _similar_values(events: Events, config: TrainConfig) -> Iterator[str]:
    """Labels, and values of a category, that are different values for their case or for spaces only."""
    fields: list[tuple[str, Sequence[str]]] = []
    if config.task == "classify":
        fields.append((f"target.field: {config.target.field}", events.classes))
    names = [category.name for category in config.features.categories]
    fields += [(name, texts) for name, texts in zip(names, events.texts, strict=True) if len(texts) <= MAX_COMPARED]
    for where, texts in fields:
        alike: dict[str, list[str]] = {}
        for text in texts:
            alike.setdefault(" ".join(text.casefold().split()), []).append(text)
        if groups := [found for found in alike.values() if len(found) > 1]:
            examples = "; ".join(", ".join(map(repr, sorted(found))) for found in groups[:MAX_LISTED])
            yield (
                f"{where} has values that differ only in case or in spaces, and count as different ones: {examples}."
                " Write those that mean the same alike, in the stream too"
            )


def _unlabeled_events(events: Events, split: Split, config: TrainConfig) -> Iterator[str]:
    if config.task == "classify" and config.target.per == "event":
        in_training = split.labels == TRAIN
        unlabeled = int((in_training & (np.asarray(events.label) < 0)).sum())
        if unlabeled:
            yield (
                f"{unlabeled:,} of {int(in_training.sum()):,} events of the training split have no label; they update"
                " the state and are not in the loss"
            )


def _unlabeled_keys(events: Events, split: Split, config: TrainConfig) -> Iterator[str]:
    """With a label per key: keys without one at their last event, where it counts."""
    if config.target.per != "sequence":
        return
    last = events.starts[1:] - 1
    unlabeled = (np.asarray(events.label)[last] < 0) & (split.labels[last] != NONE)
    if unlabeled.any():
        labelled = np.add.reduceat(np.asarray(events.label) >= 0, events.starts[:-1], dtype=np.int64) > 0
        earlier = int((unlabeled & labelled).sum())
        yield (
            f"{int(unlabeled.sum()):,} of {len(last):,} keys have no label at their last event, where target.per:"
            f" sequence takes it ({earlier:,} of them have one at an earlier event); nothing is learned from these"
            " keys, and they are not evaluated. Write the label of a key to its last event"
        )


def _interleaved_splits(events: Events, split: Split, config: TrainConfig) -> Iterator[str]:
    """Keys with events of an earlier split after those of a later one."""
    if config.split.by != "given":
        return
    rows = np.flatnonzero(split.labels != NONE)
    key, label = np.searchsorted(events.starts, rows, side="right"), split.labels[rows]
    back = (np.diff(label) < 0) & (np.diff(key) == 0)
    if back.any():
        yield (
            f"split.field: in {len(np.unique(key[1:][back])):,} of {len(events.keys):,} keys, events of the training"
            " split come after events of the validation or the test split, or those of validation after test. The"
            " network has then learned from what happened next to the events that it is evaluated on: expect worse"
            " results on new data. Give whole keys to a split, or divide the events of a key by time"
        )


def _labelled_anomalies(events: Events, training: Ints, config: TrainConfig) -> Iterator[str]:
    if config.task == "anomaly" and len(events.label):
        count = sum(int((events.label[training[rows]] > 0).sum()) for rows in row_slices(len(training)))
        if count:
            yield (
                f"{count:,} of {len(training):,} events of the training split are labelled as anomalies. The model"
                " learns from all events, so it may learn such faults as normal; train on a time without them"
                " (split.train_from, train_to), or leave these events out"
            )
