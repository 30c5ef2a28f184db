"""Checks for leaks: fields, keys and splits that tell what is not known at the time of an event.

A model that learns from them is good on the test split and useless in the stream. Each check looks for one kind and
returns a sentence with field and number. They say what is suspicious, and not what is certain: only the user knows when
a value becomes known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lstmstream.evaluation.metrics import Doubles
from lstmstream.history.events import Events
from lstmstream.history.split import NONE, TRAIN, Split
from lstmstream.records import Bools, Floats, Ints
from lstmstream.train.leak_measures import (
    CERTAIN_AUC,
    auc_of_codes,
    auc_of_values,
    gain_of,
    gain_over_past,
    group_aggregates,
    repeated_rows,
    value_codes,
)
from lstmstream.train.schema import TrainConfig

LEAK_AUC = 0.98  # area under the ROC curve above which a field alone gives the label away
MIN_POSITIVES = 20  # events of a class; with fewer, such an area is chance, and only CERTAIN_AUC counts
PURE_SHARE = 0.98  # of a class among the events that have, or lack, a value: this gives the label away too
LEAK_GAIN = 0.99  # part of a forecast's error that one other column explains
COUNT_GAIN = 0.95  # part of the label's variance that a number explains with the values and labels before
AGGREGATE_R2 = 0.9  # of a constant of a key, or of a category's value, by the labels of its events
MIN_GROUPS = 20  # keys or values of a category to find that in
SORTED_TIES = 0.95  # of the groups of equal key and time
NEWEST_SHARE = 0.03  # of the events, whose missing values are compared with the others'
LATER_MS = 600_000  # a time at least this much later than its event; float32 rounds seconds since 1970 to 2 minutes
REPEATED_SHARE = 0.2  # of a key's events outside the training split that repeat another key's
MIN_REPEATED = 5  # such events of a key
MAX_CLASSES = 20  # with more classes, fields are not checked against each
MAX_LOOK_AHEAD = 24  # events that values are compared with
MAX_ROWS = 50_000  # for comparing columns with later values
MAX_COLUMNS = 64  # for the same
_IS_LATER = "if it is not known at the time of the event, it is a leak: leave it out"


class Candidate(NamedTuple):
    """Something that the network sees of an event, or of a key."""

    name: str
    codes: Ints  # [n] of its values, small whole numbers; what is missing has a code too
    values: Floats | Doubles | None = None  # [n] where they have an order


def leak_warnings(events: Events, split: Split, config: TrainConfig, sample: Ints) -> list[str]:
    """A sentence for each suspicion. `sample` are ascending rows of the training split."""
    found: list[str] = []
    told: set[str] = set()  # fields that need no further warning
    if config.task == "classify" and len(events.classes) <= MAX_CLASSES:
        found += _telling_fields(events, config, sample, told)
        if config.target.per == "event":
            found += _labels_of_neighbours(events, config, sample, told)
            found += _running_counts(events, config, sample, told)
            found += _aggregates(events, config)
            found += _keys_of_one_class(events, config)
            found += _sorted_ties(events, config)
    found += _later_values(events, split, config)
    found += _later_times(events, config, sample)
    found += _filled_in_later(events, config)
    found += _repeated_keys(events, split)
    return found


def _telling_fields(events: Events, config: TrainConfig, sample: Ints, told: set[str]) -> Iterator[str]:
    """Single fields that predict the label."""
    field = config.target.field
    rows = sample
    if config.target.per == "sequence":  # the label counts at a key's last event
        rows = np.intersect1d(sample, events.starts[1:] - 1)
    rows = rows[np.asarray(events.label[rows]) >= 0]
    label = np.asarray(events.label[rows])
    if not _enough(label):
        return
    for name, missing in _missing_values(events, config, rows):
        area = _least_area(Candidate(name, missing.astype(np.int64)), label)
        if _suspicious(area, label):
            told.add(name)
            yield (
                f"whether {name} is missing alone predicts {field!r} (area under the ROC curve {area:.3f}); if it is"
                " filled in when the label is known, it is a leak: leave it out"
            )
        else:
            yield from _pure_groups(name, missing, label, events.classes, field)
    for candidate in _candidates(events, config, rows):
        area = _least_area(candidate, label)
        if candidate.name not in told and _suspicious(area, label):
            told.add(candidate.name)
            yield f"{candidate.name} alone predicts {field!r} (area under the ROC curve {area:.3f}); {_IS_LATER}"


def _enough(label: Ints) -> bool:
    return len(label) >= 50 and len(np.unique(label)) > 1


def _suspicious(area: float, label: Ints) -> bool:
    rarest = np.bincount(label)[np.unique(label)].min()
    return bool(area > (LEAK_AUC if rarest >= MIN_POSITIVES else CERTAIN_AUC))


def _least_area(candidate: Candidate, label: Ints) -> float:
    """The area under the ROC curve of the class that the candidate tells least of; one of two classes is enough."""
    classes = np.unique(label)
    areas = []
    for one in classes if len(classes) > 2 else classes[1:]:
        positive = label == one
        by_value = 0.5 if candidate.values is None else auc_of_values(candidate.values, positive)
        areas.append(max(by_value, auc_of_codes(candidate.codes, positive)))
    return min(areas)


def _candidates(events: Events, config: TrainConfig, rows: Ints) -> Iterator[Candidate]:
    """The fields at the rows, what the network computes from the times, and of keys their length."""
    for name, values in _numbers(events, config, rows):
        yield Candidate(name, value_codes(values), values)
    for name, codes in _categories(events, config, rows):
        yield Candidate(name, codes)
    if config.features.elapsed:
        elapsed = np.asarray(events.elapsed[rows])
        yield Candidate("the time since the key's previous event", value_codes(elapsed), elapsed)
    if config.features.hour_of_day and events.timed:
        minute = np.asarray(events.timestamp[rows]) // 60_000 % 1440
        yield Candidate("the time of day", minute)
    if config.target.per == "sequence":
        length = events.lengths[np.searchsorted(events.starts, rows, side="right") - 1].astype(np.float64)
        yield Candidate("the number of events of a key", value_codes(length), length)


def _numbers(events: Events, config: TrainConfig, rows: Ints) -> Iterator[tuple[str, Floats]]:
    for column, number in enumerate(config.features.numbers):
        yield number.name, np.asarray(events.x[rows, column])


def _categories(events: Events, config: TrainConfig, rows: Ints) -> Iterator[tuple[str, Ints]]:
    for column, category in enumerate(config.features.categories):
        yield category.name, np.asarray(events.codes[rows, column])


def _missing_values(events: Events, config: TrainConfig, rows: Ints) -> Iterator[tuple[str, Bools]]:
    """Fields with missing values, and where they are missing."""
    for name, values in _numbers(events, config, rows):
        yield name, np.isnan(values)
    for name, codes in _categories(events, config, rows):
        yield name, codes == 0


def _pure_groups(name: str, missing: Bools, label: Ints, classes: tuple[str, ...], field: str | None) -> Iterator[str]:
    """A field that is there, or missing, nearly only with one class, and not with all events of that class."""
    for group, word in ((~missing, "there"), (missing, "missing")):
        counts = np.bincount(label[group], minlength=int(label.max()) + 1)
        one = int(counts.argmax())
        of_class = label == one
        if counts.sum() >= MIN_POSITIVES and counts[one] >= PURE_SHARE * counts.sum() and of_class.mean() <= 0.5:
            others = group[~of_class].mean()
            yield (
                f"{name} is {word} in {group[of_class].mean():.0%} of the events whose {field!r} is {classes[one]!r},"
                f" and in {others:.1%} of the others; if it is filled in when the label is known, it is a leak: leave"
                " it out"
            )


def _labels_of_neighbours(events: Events, config: TrainConfig, sample: Ints, told: set[str]) -> Iterator[str]:
    """Fields that have the label of the key's next or previous event."""
    for offset, word in ((1, "next"), (-1, "previous")):
        rows = sample[(sample + offset >= 0) & (sample + offset < len(events))]
        key, neighbour = (np.searchsorted(events.starts, one, side="right") for one in (rows, rows + offset))
        rows = rows[key == neighbour]
        rows = rows[(np.asarray(events.label[rows]) >= 0) & (np.asarray(events.label[rows + offset]) >= 0)]
        label = np.asarray(events.label[rows + offset])
        if not _enough(label):
            continue
        for candidate in _candidates(events, config, rows):
            area = _least_area(candidate, label)
            if candidate.name not in told and _suspicious(area, label):
                told.add(candidate.name)
                known = "; " + _IS_LATER
                if offset < 0:
                    known = "; if labels are not known by the time of the next event, it is a leak: leave it out"
                yield (
                    f"{candidate.name} is the {config.target.field!r} of the key's {word} event (area under the ROC"
                    f" curve {area:.3f}){known}"
                )


def _running_counts(events: Events, config: TrainConfig, sample: Ints, told: set[str]) -> Iterator[str]:
    """Numbers that contain a label, as a sum or a mean does: it follows linearly from values and labels before."""
    rows = sample[(sample >= 2) & (sample + 1 < len(events))]
    key, first, last = (np.searchsorted(events.starts, rows + offset, side="right") for offset in (0, -2, 1))
    rows = rows[(key == first) & (key == last)]
    labels = np.stack([np.asarray(events.label[rows + offset]) for offset in (-2, -1, 0, 1)])
    complete = (labels >= 0).all(axis=0)
    rows, labels = rows[complete], labels[:, complete]
    if not _enough(labels[2]):
        return
    number_in_key = rows - events.starts[np.searchsorted(events.starts, rows, side="right") - 1] + 1.0
    second_last, previous, own, following = (labels > 0).astype(np.float64)
    cases = (
        ("its event", own, [second_last, previous], "count up to the event before only"),
        ("the key's next event", following, [previous, own], "count up to the event before only"),
        (
            "the key's previous event",
            previous,
            [second_last],
            "if labels are not known by the next event, leave it out",
        ),
    )
    for column, number in enumerate(config.features.numbers):
        values = [np.asarray(events.x[rows - back], np.float64)[:, column] for back in (0, 1, 2)]
        sums = [value * (number_in_key - back) for back, value in enumerate(values)]  # of a mean so far
        for event, target, past, remedy in cases if number.name not in told else ():
            gain = gain_of([*values, *sums], past, target)
            if gain > COUNT_GAIN:
                yield (
                    f"{number.name} has the {config.target.field!r} of {event} in it, as a running count or mean has"
                    f" (with the values and labels before, it explains {gain:.1%} of the label); {remedy}"
                )
                break


def _aggregates(events: Events, config: TrainConfig) -> Iterator[str]:
    """Fields that are the same for all events of a key, or of a category's value, and are computed from the labels."""
    label = np.asarray(events.label)
    known = np.flatnonzero(label >= 0)
    groups = {"a key": events.key_indices()[known]}
    every_row = np.arange(len(events))
    groups |= {f"a value of {name}": codes[known] for name, codes in _categories(events, config, every_row)}
    fields = {name: values[known].astype(np.float64) for name, values in _numbers(events, config, every_row)}
    fields |= {name: codes[known].astype(np.float64) for name, codes in _categories(events, config, every_row)}
    for group, index in groups.items():
        for name, values in fields.items():
            if group != f"a value of {name}":
                explained = group_aggregates(values, index, label[known] != 0, MIN_GROUPS)
                if explained > AGGREGATE_R2:
                    yield (
                        f"{name} is the same for all events of {group}, and follows from how many of them have a"
                        f" {config.target.field!r} other than {events.classes[0]!r} (R² {explained:.3f}); if it was"
                        " computed from the labels of later events, or written over all rows, it is a leak: leave it"
                        " out, or compute it from earlier events only"
                    )


def _keys_of_one_class(events: Events, config: TrainConfig) -> Iterator[str]:
    """Labels of events that are the same for all events of each key."""
    label, keys = np.asarray(events.label), events.key_indices()
    known = label >= 0
    counts = np.bincount(keys[known], minlength=len(events.keys))
    first = np.full(len(events.keys), len(events.classes), np.int64)
    np.minimum.at(first, keys[known], label[known])
    last = np.full(len(events.keys), -1, np.int64)
    np.maximum.at(last, keys[known], label[known])
    several = counts > 1
    if (first[several] != last[several]).any() or not several.any():
        return
    per_class = np.bincount(last[several], minlength=len(events.classes))
    if (per_class >= MIN_GROUPS // 2).sum() > 1:
        yield (
            f"data.key: no key has events of more than one class, of {int(several.sum()):,} keys with several labelled"
            f" events. If the label is one of the key as a whole, set target.per: sequence and split.by: key; if"
            f" {config.data.key!r} was made from the label, it gives it away: use another key"
        )


def _sorted_ties(events: Events, config: TrainConfig) -> Iterator[str]:
    """Events with the same key and time whose order tells the label."""
    if not events.timed:
        return
    label = np.asarray(events.label)
    tied = np.append(False, np.diff(np.asarray(events.timestamp)) == 0)
    tied[events.starts[:-1]] = False
    known = np.append(False, (label[1:] >= 0) & (label[:-1] >= 0))
    change = np.append(0, np.diff(label))[tied & known]
    rises, falls = int((change > 0).sum()), int((change < 0).sum())
    if rises + falls >= MIN_POSITIVES and max(rises, falls) > SORTED_TIES * (rises + falls):
        yield (
            f"rows of the same key and time are sorted by {config.target.field!r} (in {max(rises, falls):,} of"
            f" {rises + falls:,} cases where it changes), so that the order of the rows tells it; write them in the"
            " order of the stream, or use exact times"
        )


def _later_values(events: Events, split: Split, config: TrainConfig) -> Iterator[str]:
    """Columns that have a value of a later event, of the columns to forecast or, for a label, of any."""
    names = [number.name for number in config.features.numbers]
    targets = range(len(names)) if config.task == "classify" else config.targets
    horizon = config.target.horizon if config.task == "forecast" else 1
    training = split.labels == TRAIN
    last = min(horizon, MAX_LOOK_AHEAD)
    key = events.key_indices()
    usable = np.flatnonzero(training)
    usable = usable[(usable > 0) & (usable + last < len(events))]
    usable = usable[(key[usable - 1] == key[usable]) & (key[usable + last] == key[usable]) & training[usable + last]]
    rows = usable[:: max(1, len(usable) // MAX_ROWS)]
    if len(rows) < 50 or len(names) < 2 or len(names) > MAX_COLUMNS:
        return
    now, before = np.asarray(events.x[rows], np.float64), np.asarray(events.x[rows - 1], np.float64)
    told: set[int] = set()
    for ahead in range(1, last + 1):
        later = np.asarray(events.x[rows + ahead], np.float64)
        for target in targets:
            gains = gain_over_past(later[:, target], now, before, target)
            for column in np.flatnonzero(gains > LEAK_GAIN).tolist():
                if column in told:
                    continue
                told.add(column)
                which = f"the next value of {names[target]}"
                if ahead > 1:
                    which = f"the value of {names[target]} {ahead} events later"
                yield (
                    f"{names[column]} predicts {which} (it explains {gains[column]:.1%} of what its own past leaves"
                    f" open); if it was computed from later events, it is a leak: leave it out"
                )


def _later_times(events: Events, config: TrainConfig, sample: Ints) -> Iterator[str]:
    """Numbers that are times, and later than the event's."""
    if not events.timed or not len(sample):
        return
    time = np.asarray(events.timestamp[sample])
    low, high = float(time.min()) - 3e10, float(time.max()) + 3e10  # a year
    for name, values in _numbers(events, config, sample):
        known = ~np.isnan(values)
        for unit_ms in (1000.0, 1.0):
            moment = values[known].astype(np.float64) * unit_ms
            if not len(moment) or not (low > 0 and ((moment > low) & (moment < high)).mean() > 0.9):
                continue
            later = moment - time[known]
            share = float((later > LATER_MS).mean())
            if share > 0.01:
                days = float(np.median(later[later > LATER_MS])) / 86_400_000
                yield (
                    f"{name} holds times after the event's in {share:.0%} of the events (by {days:.3g} days in the"
                    " median); if something became known then, it is a leak: leave it out. A plan, such as a due date,"
                    " is none: use the difference from the event's time"
                )


def _filled_in_later(events: Events, config: TrainConfig) -> Iterator[str]:
    """Fields that the newest events lack and the others have."""
    newest = int(NEWEST_SHARE * len(events))
    if not events.timed or newest < 50:
        return
    time = np.asarray(events.timestamp)
    is_new = time > np.partition(time, len(time) - newest - 1)[len(time) - newest - 1]
    if not is_new.any():
        return
    for name, missing in _missing_values(events, config, np.arange(len(events))):
        new, old = float(missing[is_new].mean()), float(missing[~is_new].mean())
        if new > old + 0.5:
            yield (
                f"{name} is missing in {new:.0%} of the last {NEWEST_SHARE:.0%} of the events, and in {old:.1%} of"
                " those before; if it is filled in some time after the event, it is a leak: leave it out"
            )


def _repeated_keys(events: Events, split: Split) -> Iterator[str]:
    """Keys outside the training split whose events are those of another key in it."""
    repeated = repeated_rows(events, split)
    key_count, key = len(events.keys), events.key_indices()
    outside = np.bincount(key[(split.labels != TRAIN) & (split.labels != NONE)], minlength=key_count)
    found = np.bincount(key[repeated], minlength=key_count)
    keys = np.flatnonzero((found >= MIN_REPEATED) & (found >= REPEATED_SHARE * outside))  # a few repeat by chance
    if len(keys):
        yield (
            f"split: {int(found[keys].sum()):,} events of {len(keys):,} keys outside the training split repeat"
            " those of other keys in it, with the same values in the same order; if one thing has several keys, give it"
            " one, or the results are better than on new data"
        )
