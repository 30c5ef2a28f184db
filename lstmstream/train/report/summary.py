"""The data in a few numbers, for the report: how much, since when, what each field holds, what each part got."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from lstmstream.card import Feature
from lstmstream.serve.records import Ints
from lstmstream.train.history.data import CHUNK_ROWS, Events
from lstmstream.train.measure.judge import key_of

MOST_ROWS = 200_000  # looked at for means and top values
TOP = 5


@dataclass(frozen=True, slots=True)
class FieldFacts:
    """One field, from evenly spread rows. Numbers are NaN where the field has none."""

    name: str
    kind: str  # number | category
    missing: float  # share of the rows; of a category, missing or unknown
    mean: float = np.nan
    spread: float = np.nan  # standard deviation
    low: float = np.nan
    high: float = np.nan
    values: int = 0  # distinct ones of a category
    top: tuple[tuple[str, float], ...] = ()  # most frequent values and their shares

    @property
    def is_constant(self) -> bool:
        """Whether it says nothing: one value, or none."""
        return not self.spread > 0 if self.kind == "number" else self.values < 2


@dataclass(frozen=True, slots=True)
class PartFacts:
    """One part of the split."""

    name: str
    rows: int
    keys: int
    start_ms: int | None
    end_ms: int | None
    labelled: int
    positives: int  # of a label above the first class


@dataclass(frozen=True, slots=True)
class Summary:
    """The whole of the data."""

    rows: int
    keys: int
    start_ms: int | None
    end_ms: int | None
    events_per_key: tuple[int, float, int]  # fewest, median, most
    fields: tuple[FieldFacts, ...]


def summarise(events: Events, features: Sequence[Feature]) -> Summary:
    """`features` in the order of the columns, `events` with codes as the card has them."""
    count = len(events.timestamp)
    sample = np.arange(0, count, max(1, -(-count // MOST_ROWS)))
    x, codes = np.asarray(events.x[sample]), np.asarray(events.codes[sample])
    numbers = [feature for feature in features if feature.kind == "number"]
    categories = [feature for feature in features if feature.kind == "category"]
    lengths = np.diff(events.starts)
    return Summary(
        rows=count,
        keys=len(events.keys),
        start_ms=int(events.timestamp.min()) if count else None,
        end_ms=int(events.timestamp.max()) if count else None,
        events_per_key=(int(lengths.min()), float(np.median(lengths)), int(lengths.max())) if count else (0, 0.0, 0),
        fields=(
            *(_number(feature.name, x[:, column].astype(np.float64)) for column, feature in enumerate(numbers)),
            *(_category(feature, codes[:, column]) for column, feature in enumerate(categories)),
        ),
    )


def _number(name: str, values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> FieldFacts:
    known = values[~np.isnan(values)]
    missing = 1 - len(known) / max(1, len(values))
    if not len(known):
        return FieldFacts(name, "number", missing)
    low, high = float(known.min()), float(known.max())
    spread = float(known.std()) if high > low else 0.0
    return FieldFacts(name, "number", missing, float(known.mean()), spread, low, high)


def _category(feature: Feature, codes: Ints) -> FieldFacts:
    values, counts = np.unique(codes[codes > 0], return_counts=True)
    often = np.argsort(-counts, kind="stable")[:TOP]

    def text(code: int) -> str:
        return feature.vocabulary[code - 1] if feature.vocabulary is not None else f"bucket {code}"

    top = tuple((text(int(values[i])), float(counts[i] / len(codes))) for i in often)
    missing = float((codes == 0).mean()) if len(codes) else 0.0
    return FieldFacts(feature.name, "category", missing, values=len(values), top=top)


def part_facts(name: str, events: Events, rows: Collection[int] | Ints) -> PartFacts:
    """`rows` of the events, ascending."""
    rows = np.asarray(rows, np.int64)
    if not len(rows):
        return PartFacts(name, 0, 0, None, None, 0, 0)
    times = np.asarray(events.timestamp)[rows]
    labelled = positives = 0
    if len(events.label):
        for start in range(0, len(rows), CHUNK_ROWS):
            label = events.label[rows[start : start + CHUNK_ROWS]]
            labelled, positives = labelled + int((label >= 0).sum()), positives + int((label > 0).sum())
    keys = len(np.unique(key_of(events, rows)))
    return PartFacts(name, len(rows), keys, int(times.min()), int(times.max()), labelled, positives)
