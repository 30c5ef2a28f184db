"""The measures behind the checks for leaks: how much a column tells of a label, of a later value or of a group."""

from __future__ import annotations

import numpy as np

from lstmstream.evaluation.metrics import Doubles
from lstmstream.history.events import Events
from lstmstream.history.split import NONE, TRAIN, Split
from lstmstream.records import Bools, Floats, Ints

CERTAIN_AUC = 0.9995  # an area under the ROC curve that is no chance even with few positives
MAX_VALUES = 1000  # distinct values of a number that are looked at one by one; more are put into bins
MAX_BINS = 200
REPEATED_EVENTS = 4  # in a row, with the same values, that make a repetition
MAX_SAME_KEYS = 3  # a sequence of values that more keys have is a usual one


def auc_of_values(values: Floats | Doubles, positive: Bools) -> float:
    """How well a threshold on the values [n] parts positives from others: 0.5 to 1. Missing values are left out.

    0.5 where less than half of the values are known.
    """
    known = ~np.isnan(values)
    if known.sum() < len(values) / 2:
        return 0.5
    area = _auc(values[known], positive[known])
    return max(area, 1 - area)


def auc_of_codes(codes: Ints, positive: Bools) -> float:
    """How well the share of positives of each code tells them; each half of the rows is told by the other's shares."""
    half = np.random.default_rng(0).random(len(codes)) < 0.5
    size, base = int(codes.max()) + 1, positive.mean()
    told = np.empty(len(codes))
    for here in (half, ~half):
        count = np.bincount(codes[~here], minlength=size)
        ones = np.bincount(codes[~here], weights=positive[~here], minlength=size)
        told[here] = ((ones + base) / (count + 1))[codes[here]]
    return _auc(told, positive)


def _auc(values: Floats | Doubles, positive: Bools) -> float:
    """The area under the ROC curve; ties count half. 0.5 without both classes."""
    count, ones = len(positive), int(positive.sum())
    if not 0 < ones < count:
        return 0.5
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # of equal values
    return float((mean_rank[index][positive].sum() - ones * (ones + 1) / 2) / (ones * (count - ones)))


def value_codes(values: Floats | Doubles) -> Ints:
    """[n] Codes of the distinct values, or of bins of about equal counts where there are many; 0 for missing ones."""
    codes = np.zeros(len(values), np.int64)
    known = ~np.isnan(values)
    if known.any():
        distinct, index, counts = np.unique(values[known], return_inverse=True, return_counts=True)
        bins = max(2, min(MAX_BINS, int(known.sum()) // 20))
        if len(distinct) > min(MAX_VALUES, bins):
            index = (np.cumsum(counts) - 1)[index] * bins // int(known.sum())
        codes[known] = 1 + index
    return codes


def gain_of(columns: list[Doubles], past: list[Doubles], target: Doubles) -> float:
    """The part of a squared error that columns [n] take away from a linear forecast of `target` [n] by `past` [n].

    0 where many values are missing, or where `past` or the columns themselves leave nothing open.
    """
    everything = np.column_stack([target, *past, *columns])
    complete = ~np.isnan(everything).any(axis=1)
    if complete.sum() < 50 or complete.mean() < 0.5:
        return 0.0
    everything = everything[complete] - everything[complete].mean(axis=0)
    spread = everything.std(axis=0)
    everything = everything[:, spread > 0] / spread[spread > 0]
    if spread[0] == 0:
        return 0.0
    known = 1 + int((spread[1 : 1 + len(past)] > 0).sum())
    without, rest = (_error(everything[:, 1:width], everything[:, 0]) for width in (known, everything.shape[1]))
    return 1 - rest / without if without > 1e-4 else 0.0  # less is rounding


def _error(columns: Doubles, target: Doubles) -> float:
    """The mean squared error of the linear forecast."""
    if columns.shape[1] == 0:
        return float((target**2).mean())
    return float(((target - columns @ np.linalg.lstsq(columns, target, rcond=None)[0]) ** 2).mean())


def gain_over_past(later: Doubles, now: Doubles, before: Doubles, target: int) -> Doubles:
    """[F] The part of the error of a forecast of `later` [n] that each column of `now` [n, F] explains.

    The forecast without it is linear in the target's value now and before. 0 for the target itself.
    """
    past = [now[:, target], before[:, target]]
    columns = range(now.shape[1])
    return np.array([0.0 if one == target else gain_of([now[:, one]], past, later) for one in columns])


def group_aggregates(values: Doubles, group: Ints, positive: Bools, min_groups: int) -> float:
    """How far a column follows from the labels of the groups: R², or the area under the ROC curve for two values.

    0 where the column is not the same for all events of nearly every group, or where few groups have several events.
    """
    order = np.argsort(group, kind="stable")
    values, group, positive = values[order], group[order], positive[order]
    starts = np.flatnonzero(np.append(True, np.diff(group) != 0)) if len(group) else np.empty(0, np.int64)
    if len(starts) < min_groups:
        return 0.0
    count = np.diff(np.append(starts, len(group)))
    several = count > 1
    low, high = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    if several.sum() < min_groups or (low == high)[several].mean() < 0.95:
        return 0.0
    ones = np.add.reduceat(positive.astype(np.float64), starts)
    same = several & (low == high)
    value, ones, share = low[same], ones[same], (ones / count)[same]
    distinct, index = np.unique(value, return_inverse=True)
    if len(distinct) == 2:
        if np.bincount(index).min() < min_groups // 2:
            return 0.0
        areas = [_auc(told, index == 1) for told in (ones, share)]
        return max(max(area, 1 - area) for area in areas)
    fits = [_r2(value, told) for told in (ones, share, np.sign(ones))]
    return max(fits)


def _r2(values: Doubles, told: Doubles) -> float:
    if values.std() == 0 or told.std() == 0:
        return 0.0
    return float(np.corrcoef(values, told)[0, 1] ** 2)


def repeated_rows(events: Events, split: Split) -> Ints:
    """Rows outside the training split whose last REPEATED_EVENTS events equal those of another key in it.

    Equal are numbers, categories and the time since the event before. Sequences that several keys have, or that repeat
    inside a key, are usual ones and do not count.
    """
    if len(events) < REPEATED_EVENTS:
        return np.empty(0, np.int64)
    width = events.x.shape[1] + events.codes.shape[1] + 1
    factors = np.random.default_rng(0).integers(-(2**62), 2**62, width) * 2 + 1
    elapsed = np.nan_to_num(np.asarray(events.elapsed), nan=-1.0).astype(np.float32)
    hashes = elapsed.view(np.int32) * factors[:1]
    for column in range(events.x.shape[1]):
        numbers = np.ascontiguousarray(events.x[:, column], np.float32)
        hashes += numbers.view(np.int32) * factors[1 + column : 2 + column]
    for column, factor in enumerate(factors[1 + events.x.shape[1] :]):
        hashes += np.asarray(events.codes[:, column]) * np.array([factor])
    sequence, key = hashes.copy(), events.key_indices()
    for back in range(1, REPEATED_EVENTS):
        hashes *= factors[:1]  # each event by its place: the order counts
        sequence[back:] += hashes[:-back]
    whole = np.zeros(len(events), np.bool_)
    whole[REPEATED_EVENTS - 1 :] = key[REPEATED_EVENTS - 1 :] == key[: 1 - REPEATED_EVENTS]
    rows = np.flatnonzero(whole & (split.labels != NONE))
    _, index, counts = np.unique(sequence[rows], return_inverse=True, return_counts=True)
    rows, index = rows[counts[index] > 1], index[counts[index] > 1]
    if not len(rows):
        return rows
    training = split.labels[rows] == TRAIN
    size = int(index.max()) + 1
    in_training = np.bincount(index[training], minlength=size)
    # one row in the training split, of one key; a few elsewhere, of other keys
    key_there = np.full(size, -1, np.int64)
    key_there[index[training]] = key[rows[training]]
    usual = (np.bincount(index, minlength=size) > MAX_SAME_KEYS) | (in_training != 1)
    return np.asarray(rows[~training & ~usual[index] & (key_there[index] != key[rows])])
