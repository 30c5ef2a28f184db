"""From raw events to the inputs of the network: scaling and vocabularies, fitted on the training split.

`fit_encoder` makes the encoder that goes into the model file. `transform` computes what the file's graph computes, so
that training and serving have the same inputs; embeddings belong to the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lstmstream.history.events import Events, row_slices
from lstmstream.model.card import Feature
from lstmstream.records import Floats, Ints
from lstmstream.train.export import Category, Elapsed, FeatureEncoder, Number
from lstmstream.train.key_history import fit_history, history_inputs, history_pairs, key_statistics
from lstmstream.train.schema import CategoryField, Features, NumberField

MAX_SAMPLE_ROWS = 1_000_000  # rows that scaling is fitted on, evenly over the training split
MAX_VOCABULARY = 100_000  # values of a category; of more, the most frequent
SAME_IN_FLOAT32 = 2.0**-24  # a spread below this share of the mean is less than the spacing of float32: constant
_DAY_MS = 86_400_000
_THURSDAY = 3  # the day of the week of 1970-01-01, with Monday as 0


def fit_encoder(events: Events, rows: Ints, options: Features, *, flag_missing: bool = False) -> FeatureEncoder:
    """The encoder, fitted on the rows `rows` [n] alone.

    With `flag_missing` every number gets a missing flag, even if no value is missing in these rows. The embedding
    tables are zeros: they only give the number of codes and the width. `scale_history` fits what is left of a history.
    """
    sample = _sample(rows)
    x = np.asarray(events.x[sample])
    numbers = tuple(
        _fit_number(option, x[:, column], flag_missing=flag_missing) for column, option in enumerate(options.numbers)
    )
    elapsed = None
    if options.elapsed:
        seconds = np.asarray(events.elapsed[sample])
        fitted = _fit_number(NumberField(name="elapsed", log=True), seconds, flag_missing=True)
        elapsed = Elapsed(fitted.centre, fitted.scale)
    categories = tuple(_fit_category(option, events, column, rows) for column, option in enumerate(options.categories))
    return FeatureEncoder(
        numbers,
        categories,
        elapsed,
        options.hour_of_day,
        options.day_of_week,
        history=history_pairs([number.history for number in options.numbers]),
    )


def add_statistics(events: Events, encoder: FeatureEncoder) -> Events:
    """The events with the statistics of each key's earlier events, where the encoder has a history."""
    if encoder.history is None:
        return events

    def scaled(raw: Floats) -> Floats:
        return scale_numbers(encoder.numbers, raw, encoder.limit)

    return replace(events, statistics=key_statistics(events, encoder.history, scaled))


def scale_history(encoder: FeatureEncoder, events: Events, rows: Ints) -> FeatureEncoder:
    """The encoder with its history's inputs scaled by the rows `rows` [n]; `events` have their statistics."""
    if encoder.history is None or events.statistics is None:
        return encoder
    sample = _sample(rows)
    x = np.asarray(events.x[sample])
    values = scale_numbers(encoder.numbers, x, encoder.limit)
    fitted = fit_history(encoder.history, np.asarray(events.statistics[sample]), values, np.isnan(x))
    return replace(encoder, history=fitted)


def _sample(rows: Ints) -> Ints:
    return rows if len(rows) <= MAX_SAMPLE_ROWS else rows[:: -(-len(rows) // MAX_SAMPLE_ROWS)]


def _fit_number(option: NumberField, raw: Floats, *, flag_missing: bool) -> Number:
    """Centre and scale of the values that are not missing: scale 1 for constant values, centre 0 without any value."""
    present = raw[~np.isnan(raw)].astype(np.float64)
    if option.log:
        present = np.sign(present) * np.log1p(np.abs(present))
    centre, scale = 0.0, 1.0
    if len(present) and option.scale == "standard":
        centre, scale = float(present.mean()), float(present.std())
    elif len(present) and option.scale == "robust":
        low, centre, high = (float(q) for q in np.quantile(present, [0.25, 0.5, 0.75]))
        scale = (high - low) / 1.349  # the standard deviation of a normal distribution with these quartiles
        if scale == 0:  # most values are equal; then the rest gives the scale
            scale = float(present.std())
    if not scale > max(SAME_IN_FLOAT32 * abs(centre), 1e-30):
        scale = 1.0
    missing = bool(np.isnan(raw).any())
    return Number(option.name, _round_to_float32(centre), _round_to_float32(scale), option.log, flag_missing or missing)


def _round_to_float32(value: float) -> float:
    """The nearest float32 value, so that training and the graph use the same bits."""
    return float(np.float32(value))


def _fit_category(option: CategoryField, events: Events, column: int, rows: Ints) -> Category:
    if option.buckets is not None:
        vocabulary, codes = None, option.buckets
    else:
        counts = np.zeros(len(events.texts[column]) + 1, np.int64)
        for chunk in row_slices(len(rows)):
            counts += np.bincount(events.codes[rows[chunk], column], minlength=len(counts))
        frequent = [
            index for index in np.argsort(-counts[1:], kind="stable").tolist() if counts[1 + index] >= option.min_count
        ]
        vocabulary = tuple(sorted(events.texts[column][index] for index in frequent[:MAX_VOCABULARY]))
        codes = len(vocabulary)
    width = option.width or min(16, max(2, math.ceil(math.sqrt(codes + 1))))
    return Category(option.name, np.zeros((codes + 1, width), np.float32), vocabulary, option.buckets)


def category_features(encoder: FeatureEncoder) -> tuple[Feature, ...]:
    """The encoder's categories in the form of the model card."""
    return tuple(
        Feature(category.name, "category", category.vocabulary, category.buckets) for category in encoder.categories
    )


def transform_rows(encoder: FeatureEncoder, events: Events, rows: Ints) -> Floats:
    """The dense inputs [..., D] of the events at the rows [...]."""
    return transform(
        encoder,
        np.asarray(events.x[rows]),
        np.asarray(events.elapsed[rows]),
        np.asarray(events.timestamp[rows]),
        None if events.statistics is None else np.asarray(events.statistics[rows]),
    )


def transform(
    encoder: FeatureEncoder, x: Floats, elapsed: Floats, timestamp: Ints, statistics: Floats | None = None
) -> Floats:
    """The dense inputs [..., D] of raw x [..., F], elapsed [...] in seconds and timestamp [...] in ms since 1970.

    The columns are those of the export package's docstring, without the embeddings. `statistics` [..., 3J] are needed
    for an encoder with a history (key_history.py).
    """
    numbers = list(encoder.numbers)
    raw = x
    if encoder.elapsed is not None:
        raw = np.concatenate([x, elapsed[..., np.newaxis]], axis=-1)
        numbers.append(Number("elapsed", encoder.elapsed.centre, encoder.elapsed.scale, log=True, flag_missing=True))
    blocks = []
    if numbers:
        blocks.append(scale_numbers(numbers, raw, encoder.limit))
        flagged = [index for index, number in enumerate(numbers) if number.flag_missing]
        if flagged:
            blocks.append(np.isnan(raw[..., flagged]))
    if encoder.hour_of_day:
        blocks.append(_sine_and_cosine(timestamp, _DAY_MS, 0))
    if encoder.day_of_week:
        blocks.append(_sine_and_cosine(timestamp, 7 * _DAY_MS, _THURSDAY * _DAY_MS))
    if encoder.history is not None:
        assert statistics is not None, "an encoder with a history needs the statistics of the earlier events"
        blocks.append(history_inputs(encoder, statistics, blocks[0], np.isnan(x)))
    return np.concatenate(blocks, axis=-1, dtype=np.float32) if blocks else np.zeros((*x.shape[:-1], 0), np.float32)


def scale_numbers(numbers: Sequence[Number], raw: Floats, limit: float) -> Floats:
    """Raw values [..., F] of F numbers, scaled, 0 where missing, clipped to +-limit; [..., F]."""
    values = raw
    if any(number.log for number in numbers):
        logs = np.sign(raw) * np.log(np.abs(raw) + np.float32(1))
        values = np.where(np.array([number.log for number in numbers]), logs, raw)
    centre = np.array([number.centre for number in numbers], np.float32)
    inverse = np.array([1 / number.scale for number in numbers], np.float32)
    with np.errstate(over="ignore"):  # infinite values are clipped too
        scaled: Floats = np.where(np.isnan(raw), np.float32(0), (values - centre) * inverse)
    return np.clip(scaled, -limit, limit)


def _sine_and_cosine(timestamp: Ints, period_ms: int, epoch_offset_ms: int) -> Floats:
    """[..., 2] Sine and cosine of the position of timestamp [...] in the period."""
    angle = 2 * np.pi * ((timestamp + epoch_offset_ms) % period_ms) / period_ms
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)


def missing_flag_columns(encoder: FeatureEncoder) -> Sequence[int | None]:
    """For each number the index of its missing flag among the dense inputs, None where it has no flag."""
    column = len(encoder.numbers) + (encoder.elapsed is not None)
    columns: list[int | None] = []
    for number in encoder.numbers:
        columns.append(column if number.flag_missing else None)
        column += number.flag_missing
    return columns


def deviation_columns(encoder: FeatureEncoder) -> Sequence[tuple[int, int]]:
    """Each number with a history, and the index among the dense inputs of one of its deviations from it."""
    if encoder.history is None:
        return ()
    first = encoder.dense_width - len(encoder.history)
    return [(column, first + index) for index, column in enumerate(encoder.history.columns)]
