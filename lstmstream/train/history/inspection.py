"""What the data cannot teach, and what in them would mislead: said before the long part starts.

Refuses (CannotServe) what makes training pointless; returns a sentence for each thing that a person should know. Looks
at the training part only, but for labels that are missing there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lstmstream.errors import CannotServe
from lstmstream.train.export import Encoder
from lstmstream.train.export.checks import LARGEST_SCALE
from lstmstream.train.history.data import Events
from lstmstream.train.history.read import Floats, Ints
from lstmstream.train.history.split import TRAIN, Parts
from lstmstream.train.pieces import Bools
from lstmstream.train.schema import TrainConfig

_SAMPLE_ROWS = 200_000  # that leaks are looked for in
_TELLS = 0.9995  # area under the ROC curve from which on a feature alone gives the label away
_FEW_VALUES = 1000  # a feature with more values than this is no copy of a label
_CGROUP = Path("/sys/fs/cgroup")  # as a container sees its own, version 2
_PER_STEP_BYTES = 40  # of activations and gradients, for each hidden unit of each event of a piece


def refuse(events: Events, parts: Parts, config: TrainConfig, counted: dict[str, Bools]) -> None:
    """Raises CannotServe with everything in the data that training cannot do without.

    `counted` has for `train` and `validation` the events whose output counts.
    """
    problems = [*_empty_features(events, parts, config), *_uncounted(events, config, counted)]
    if config.task == "classify" and not problems:
        problems += _classes(events, config, counted)
    if problems:
        raise CannotServe(*problems)


def warn(events: Events, parts: Parts, config: TrainConfig, counted: dict[str, Bools]) -> list[str]:
    """A sentence for each thing that is odd and not forbidden."""
    training = parts.rows(TRAIN)
    sample = training[:: max(1, len(training) // _SAMPLE_ROWS)]
    return [
        *_order(events),
        *_short_keys(events, config),
        *_constant(events, sample, training, config),
        *_leaks(events, sample, config),
        *_unlabelled(events, parts, config),
    ]


def check_scale(encoder: Encoder) -> None:
    """Raises CannotServe for numbers that are too large or too alike for float32 arithmetic."""
    problems = [
        f"features.numbers: {one.name} has centre {one.centre:.3g} and scale {one.scale:.3g}, beyond what can be"
        " computed with; write log: true for it, or take other units"
        for one in encoder.numbers
        if not (abs(one.centre) < LARGEST_SCALE and 1 / LARGEST_SCALE < one.scale < LARGEST_SCALE)
    ]
    if problems:
        raise CannotServe(*problems)


def check_memory(config: TrainConfig, keys: int, width: int) -> None:
    """Raises CannotServe where states and one piece's gradients will not fit. `width`: of the network's inputs."""
    model, training = config.model, config.training
    state = (model.projection or model.hidden) + (model.hidden if model.cell == "lstm" else 0)
    states = 0 if model.window else 4 * keys * state * model.layers
    steps = model.window or training.steps
    piece = training.batch * steps * (_PER_STEP_BYTES * 4 * model.hidden * model.layers + 8 * width)
    free = _free_bytes()
    if free is not None and states + piece > free:
        raise CannotServe(
            f"training: needs about {_gib(states + piece)} ({_gib(states)} for the states of {keys:,} keys,"
            f" {_gib(piece)} for a piece of {training.batch} x {steps} events), and {_gib(free)} are free;"
            " make training.batch, training.steps or model.hidden smaller"
        )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def _free_bytes() -> int | None:
    """Memory that can be had, on Linux: of the machine, and of the container's limit where there is one."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    try:
        limit, used, parts = (
            (_CGROUP / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current", "memory.stat")
        )
        # file cache goes when memory is asked for
        cached = int(dict(line.split() for line in parts.splitlines())["inactive_file"])
        return min(free, int(limit) - int(used) + cached)
    except (OSError, KeyError, ValueError):  # no cgroup v2, or "max"
        return free


def _empty_features(events: Events, parts: Parts, config: TrainConfig) -> Iterator[str]:
    training = parts.rows(TRAIN)
    for column, number in enumerate(config.features.numbers):
        if np.isnan(np.asarray(events.x[training, column])).all():
            yield (
                f"features.numbers: {number.name} has no value in the training part ({len(training):,} events);"
                " leave it out, or bring data that have it"
            )


def _uncounted(events: Events, config: TrainConfig, counted: dict[str, Bools]) -> Iterator[str]:
    if config.task != "classify" and int(events.lengths.max(initial=0)) <= config.target.horizon:
        yield (
            f"data: no key has more than {config.target.horizon} event(s), so nothing comes after one to forecast"
            f" (data.key is {config.data.key!r}: {len(events.keys):,} keys, {len(events):,} events)"
        )
        return
    for name, rows in counted.items():
        if not rows.any():
            what = (
                f"no event with a label in {config.target.field!r}"
                if config.task == "classify"
                else "no event that is followed by another of its key in the same part"
            )
            yield f"split: the {name} part has {what}; change the shares or dates under split"
        elif config.task != "classify" and not _comes_true(events, config, rows):
            names = ", ".join(config.features.numbers[column].name for column in config.targets)
            yield f"split: in the {name} part no event is followed by a value of {names}; there is nothing to forecast"


def _comes_true(events: Events, config: TrainConfig, counted: Bools) -> bool:
    """Whether any of the values that are to be forecast is known."""
    rows = np.flatnonzero(counted)
    return any(
        bool((~np.isnan(np.asarray(events.x[rows + ahead, column]))).any())
        for ahead in range(1, config.target.horizon + 1)
        for column in config.targets
    )


def _classes(events: Events, config: TrainConfig, counted: dict[str, Bools]) -> Iterator[str]:
    counts = np.bincount(np.asarray(events.label)[counted["train"]], minlength=len(events.classes))
    field = config.target.field
    if len(events.classes) < 2:
        yield f"target.field: {field!r} has one value only, {events.classes[0]!r}; two are needed to tell them apart"
    elif (counts > 0).sum() < 2:
        only = events.classes[int(np.argmax(counts))]
        yield (
            f"target.field: in the training part {field!r} is always {only!r}; two classes are needed there:"
            " change the dates under split, or bring more data"
        )
    elif (counts == 0).any():
        missing = [name for name, count in zip(events.classes, counts, strict=True) if count == 0]
        names = ", ".join(map(repr, missing[:5]))
        yield f"target.field: the training part has no {names}; leave the class out, or split anew"
    weights = config.training.class_weights
    if isinstance(weights, list) and len(weights) != len(events.classes):
        yield (
            f"training.class_weights: has {len(weights)} values, and there are {len(events.classes)} classes:"
            f" {', '.join(events.classes)}"
        )


def _order(events: Events) -> Iterator[str]:
    if events.unsorted:
        yield (
            f"the rows are not in order of time (first: {events.unsorted}); they were sorted. In the stream they should"
            " come in order too: see input.late"
        )


def _short_keys(events: Events, config: TrainConfig) -> Iterator[str]:
    lengths = events.lengths
    single = int((lengths == 1).sum())
    if single == len(lengths) and len(lengths) > 1:
        yield f"every key has one event only, so there is nothing to remember; is {config.data.key!r} the right key?"
    elif single > len(lengths) / 2:
        yield f"{single:,} of {len(lengths):,} keys have one event only; the state helps them nothing"


def _constant(events: Events, sample: Ints, training: Ints, config: TrainConfig) -> Iterator[str]:
    """Looks at all rows only where those of the sample are all the same."""

    def always(column: Floats | Ints) -> bool:
        return bool((column[sample] == column[sample[0]]).all() and (column[training] == column[sample[0]]).all())

    useless = "in the training part; it can teach nothing, leave it out"
    for place, number in enumerate(config.features.numbers):
        values = events.x[:, place]
        if always(values):
            yield f"{number.name} is always {values[sample[0]]:g} {useless}"
    for place, category in enumerate(config.features.categories):
        codes = events.codes[:, place]
        if always(codes):
            what = "always has the same value" if codes[sample[0]] else "is always missing"
            yield f"{category.name} {what} {useless}"


def _unlabelled(events: Events, parts: Parts, config: TrainConfig) -> Iterator[str]:
    if config.task == "classify" and config.target.per == "event":
        without = int(((parts.of == TRAIN) & (np.asarray(events.label) < 0)).sum())
        if without:
            whole = int((parts.of == TRAIN).sum())
            yield f"{without:,} of {whole:,} events of the training part have no label; they only move the state on"


def _leaks(events: Events, sample: Ints, config: TrainConfig) -> Iterator[str]:
    """Features that give the label away by themselves."""
    if config.task != "classify":
        return
    label = np.asarray(events.label[sample])
    rows, label = sample[label >= 0], label[label >= 0]
    if len(label) < 50 or len(np.unique(label)) < 2:
        return
    told = f"gives {config.target.field!r} away by itself"
    remedy = "if it is not known when the event happens, it leaks: leave it out"
    for column, number in enumerate(config.features.numbers):
        values = np.asarray(events.x[rows, column])
        if _separates(values, label) or _determines(values, label):
            yield f"{number.name} {told}; {remedy}"
    for column, category in enumerate(config.features.categories):
        if _determines(np.asarray(events.codes[rows, column]), label):
            yield f"{category.name} {told}; {remedy}"


def _separates(values: Floats, label: Ints) -> bool:
    """Whether two classes lie on either side of a value (area under the ROC curve, ties half)."""
    known = ~np.isnan(values)
    positive = label[known] == 1
    count, ones = len(positive), int(positive.sum())
    if len(np.unique(label)) != 2 or not 0 < ones < count or count < len(label) / 2:
        return False
    _, place, counts = np.unique(values[known], return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2  # mean rank of equal values
    area = (middle[place][positive].sum() - ones * (ones + 1) / 2) / (ones * (count - ones))
    return bool(max(area, 1 - area) > _TELLS)


def _determines(values: Floats | Ints, label: Ints) -> bool:
    """Whether each of a few values goes with one class."""
    found, place = np.unique(values, return_inverse=True)
    if not 1 < len(found) <= min(_FEW_VALUES, len(label) // 10):
        return False
    table = np.zeros((len(found), int(label.max()) + 1), np.int64)
    np.add.at(table, (place, label), 1)
    usual = np.bincount(label).max()
    return bool(table.max(axis=1).sum() > _TELLS * len(label) > usual)
