"""Inputs of the logistic regressions: the event, and decayed counts and means of its key's past."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from lstmstream.evaluation.baselines.past import before, is_first, key_blocks, recurrence, running_sums
from lstmstream.evaluation.metrics import Doubles
from lstmstream.history.events import Events
from lstmstream.records import Bools, Floats, Ints

DenseInputs = Callable[[Ints], Floats]  # rows of the events to the network's numeric inputs [n, D]

MAX_CATEGORY_VALUES = 30  # values of a category with a column of their own
HALF_LIVES_EVENTS = (3, 30)  # of the means
GAP_QUANTILES = (0.1, 0.5, 0.9)  # of the gaps in the sample; TYPICAL_GAPS of each are the half-lives of the counts
TYPICAL_GAPS = 5
_MIN_HALF_LIFE_MS = 1000.0


class RegressionInputs:
    """Standardised inputs, fitted on the ascending rows `sample`; constant columns are dropped."""

    def __init__(self, events: Events, sample: Ints, dense: DenseInputs | None, *, with_past: bool) -> None:
        self._events, self._dense, self._with_past = events, dense, with_past
        categories = range(events.codes.shape[1])
        self._values = [_frequent(np.asarray(events.codes[sample, column])) for column in categories]
        self._half_lives_ms = _half_lives(events, sample)
        raw = np.concatenate([matrix for _, matrix in self._raw(sample)])
        self._centre, scale = raw.mean(axis=0), raw.std(axis=0)
        self._used = scale > 1e-9
        self._scale = scale
        self.sample = self._standardised(raw)  # [n, D']

    def matrices(self, rows: Ints) -> Iterator[tuple[slice, Doubles]]:
        """Parts of the ascending `rows`, each with its inputs [n, D']."""
        for part, raw in self._raw(rows):
            yield part, self._standardised(raw)

    def _standardised(self, raw: Doubles) -> Doubles:
        """Clipped at 10 standard deviations, so that no single event dominates."""
        scaled = (raw[:, self._used] - self._centre[self._used]) / self._scale[self._used]
        return np.asarray(np.clip(scaled, -10, 10))

    def _raw(self, rows: Ints) -> Iterator[tuple[slice, Doubles]]:
        for block, part in key_blocks(self._events, rows):
            inside = rows[part]
            columns = [np.zeros((len(inside), 0))]
            if self._dense is not None:
                columns.append(np.asarray(self._dense(inside), np.float64))
            for column, values in enumerate(self._values):
                columns.append((np.asarray(self._events.codes[inside, column])[:, None] == values).astype(np.float64))
            if self._with_past:
                columns += [each[inside - block.start] for each in self._past(block)]
            yield part, np.concatenate(columns, axis=1)

    def _past(self, block: slice) -> Iterator[Doubles]:
        """Columns [n, ...] about the past of each event of a block of whole keys, without the event itself."""
        first = is_first(self._events, block)
        count = running_sums(np.ones((len(first), 1)), first) - 1
        yield np.log1p(count)
        gap_ms = np.diff(np.asarray(self._events.timestamp[block]), prepend=0).astype(np.float64)
        for half_life_ms in self._half_lives_ms:
            decay = np.where(first, 0, 0.5 ** (np.maximum(gap_ms, 0) / half_life_ms))
            yield np.log1p(recurrence(decay, decay[:, None]))
        dense = self._dense(np.arange(block.start, block.stop)) if self._dense is not None else None
        if dense is not None and dense.shape[1]:
            previous = before(np.asarray(dense, np.float64), first)
            yield running_sums(previous, first) / np.maximum(1, count)
        for half_life in HALF_LIVES_EVENTS:
            decay = np.where(first, 0, 0.5 ** (1 / half_life))
            weight = recurrence(decay, decay[:, None])  # of the past events together
            if dense is not None and dense.shape[1]:
                yield recurrence(decay, decay[:, None] * previous) / np.maximum(weight, 0.5)
            for column in range(self._events.codes.shape[1]):
                codes = np.asarray(self._events.codes[block, column])
                yield _same_before(codes, first, half_life) / np.maximum(weight, 0.5)


def _same_before(codes: Ints, first: Bools, half_life: int) -> Doubles:
    """[n, 1] The decayed number of the key's past events with the event's own value of a category."""
    row, key = np.arange(len(codes)), np.cumsum(first)
    order = np.lexsort((row, codes, key))
    same = np.zeros(len(codes), np.bool_)
    same[1:] = (np.diff(key[order]) == 0) & (np.diff(codes[order]) == 0)
    distance = np.where(same, np.diff(row[order], prepend=0), np.inf)  # from the last event with that value
    decay = 0.5 ** (distance / half_life)
    found = np.empty((len(codes), 1))
    found[order] = recurrence(decay, decay[:, None])
    return found


def _half_lives(events: Events, sample: Ints) -> list[float]:
    """Milliseconds, in the order of the quantiles; fewer where the gaps resemble each other."""
    gaps = np.asarray(events.elapsed[sample], np.float64) * 1000
    gaps = gaps[gaps > 0]  # not NaN, a key's first event
    if not len(gaps):
        return []
    wanted = np.maximum(_MIN_HALF_LIFE_MS, TYPICAL_GAPS * np.quantile(gaps, GAP_QUANTILES))
    return [float(wanted[0]), *(now for last, now in pairwise(wanted.tolist()) if now > 1.5 * last)]


def _frequent(codes: Ints) -> Ints:
    """The most frequent codes, at most MAX_CATEGORY_VALUES."""
    values, counts = np.unique(codes, return_counts=True)
    return values[np.argsort(-counts, kind="stable")][:MAX_CATEGORY_VALUES]
