"""The data of a training in a few numbers, for the report: how much, since when, each field, each split."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from lstmstream.evaluation.alignment import key_index
from lstmstream.history.events import Events, row_slices
from lstmstream.model.card import Feature
from lstmstream.records import Ints

MAX_SAMPLE_ROWS = 200_000  # for means and most frequent values
TOP_VALUES = 5


@dataclass(frozen=True, slots=True)
class FieldFacts:
    """One field, from evenly spread rows. The statistics are NaN where the field has no value."""

    name: str
    kind: str  # number | category
    missing: float  # share of the rows; of a category, missing or unknown
    mean: float = np.nan
    std: float = np.nan
    min: float = np.nan
    max: float = np.nan
    distinct: int = 0  # values of a category
    top: tuple[tuple[str, float], ...] = ()  # the most frequent values and their shares

    @property
    def is_constant(self) -> bool:
        """Whether the field has one value at most, and so no information."""
        return not self.std > 0 if self.kind == "number" else self.distinct < 2


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """The size of one split: train, validation or test."""

    name: str
    rows: int
    keys: int
    start_ms: int | None  # ms since 1970 UTC of the first event; None without events
    end_ms: int | None  # of the last event
    labelled: int  # events with a label
    positives: int  # events of any class but the first


@dataclass(frozen=True, slots=True)
class DataSummary:
    """The size of the whole data set, and its fields."""

    rows: int
    keys: int
    start_ms: int | None  # ms since 1970 UTC of the first event; None without events
    end_ms: int | None  # of the last event
    events_per_key: tuple[int, float, int]  # minimum, median, maximum
    fields: tuple[FieldFacts, ...]


def summarize(events: Events, features: Sequence[Feature]) -> DataSummary:
    """The summary of all events. `features` are in the order of the columns; the codes are those of the card."""
    count = len(events.timestamp)
    sample = np.arange(0, count, max(1, -(-count // MAX_SAMPLE_ROWS)))
    x, codes = np.asarray(events.x[sample]), np.asarray(events.codes[sample])
    numbers = [feature for feature in features if feature.kind == "number"]
    categories = [feature for feature in features if feature.kind == "category"]
    lengths = np.diff(events.starts)
    return DataSummary(
        rows=count,
        keys=len(events.keys),
        start_ms=int(events.timestamp.min()) if count else None,
        end_ms=int(events.timestamp.max()) if count else None,
        events_per_key=(int(lengths.min()), float(np.median(lengths)), int(lengths.max())) if count else (0, 0.0, 0),
        fields=(
            *(_number_facts(feature.name, x[:, column].astype(np.float64)) for column, feature in enumerate(numbers)),
            *(_category_facts(feature, codes[:, column]) for column, feature in enumerate(categories)),
        ),
    )


def _number_facts(name: str, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> FieldFacts:
    known = values[~np.isnan(values)]
    missing = 1 - len(known) / max(1, len(values))
    if not len(known):
        return FieldFacts(name, "number", missing)
    low, high = float(known.min()), float(known.max())
    std = float(known.std()) if high > low else 0.0
    return FieldFacts(name, "number", missing, float(known.mean()), std, low, high)


def _category_facts(feature: Feature, codes: Ints) -> FieldFacts:
    values, counts = np.unique(codes[codes > 0], return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:TOP_VALUES]

    def text(code: int) -> str:
        return feature.vocabulary[code - 1] if feature.vocabulary is not None else f"bucket {code}"

    top = tuple((text(int(values[i])), float(counts[i] / len(codes))) for i in frequent)
    missing = float((codes == 0).mean()) if len(codes) else 0.0
    return FieldFacts(feature.name, "category", missing, distinct=len(values), top=top)


def split_facts(name: str, events: Events, rows: Collection[int] | Ints) -> SplitFacts:
    """The size of the split with these rows of the events, ascending."""
    rows = np.asarray(rows, np.int64)
    if not len(rows):
        return SplitFacts(name, 0, 0, None, None, 0, 0)
    times = np.asarray(events.timestamp)[rows]
    labelled = positives = 0
    if len(events.label):
        for chunk in row_slices(len(rows)):
            label = events.label[rows[chunk]]
            labelled, positives = labelled + int((label >= 0).sum()), positives + int((label > 0).sum())
    keys = len(np.unique(key_index(events, rows)))
    return SplitFacts(name, len(rows), keys, int(times.min()), int(times.max()), labelled, positives)
