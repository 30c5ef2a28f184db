"""From raw events to the network's inputs: scaling and vocabularies learned from the training part, and their use.

`learn` makes the encoder that goes into the model file; `encode` computes what the file's graph computes, so that
training and serving see the same inputs. Embeddings are the network's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lstmstream.card import Feature
from lstmstream.train.export import Category, Elapsed, Encoder, Number
from lstmstream.train.history.data import Events, chunks
from lstmstream.train.history.read import Floats, Ints
from lstmstream.train.schema import CategoryField, Features, NumberField

SAMPLE_ROWS = 1_000_000  # rows that scaling is learned from, evenly over the training part
_DAY_MS = 86_400_000
_THURSDAY = 3  # 1970-01-01 was one; Monday is 0
_CODES_MAX = 100_000


def learn(events: Events, training: Ints, wanted: Features, *, flag_missing: bool = False) -> Encoder:
    """The encoder, from the rows `training` alone. `flag_missing`: a flag for each number, missing so far or not.

    Tables of categories are of zeros: they only say how many codes and columns there are.
    """
    sample = training if len(training) <= SAMPLE_ROWS else training[:: -(-len(training) // SAMPLE_ROWS)]
    x = np.asarray(events.x[sample])
    numbers = tuple(
        _number(option, x[:, column], flag_missing=flag_missing) for column, option in enumerate(wanted.numbers)
    )
    elapsed = None
    if wanted.elapsed:
        first = _number(NumberField(name="elapsed", log=True), np.asarray(events.elapsed[sample]), flag_missing=True)
        elapsed = Elapsed(first.centre, first.scale)
    categories = tuple(_category(option, events, column, training) for column, option in enumerate(wanted.categories))
    return Encoder(numbers, categories, elapsed, wanted.hour_of_day, wanted.day_of_week)


def _number(option: NumberField, raw: Floats, *, flag_missing: bool) -> Number:
    """Centre and scale of the values there are; 0 and 1 where there is nothing to scale by."""
    present = raw[~np.isnan(raw)].astype(np.float64)
    if option.log:
        present = np.sign(present) * np.log1p(np.abs(present))
    centre, scale = 0.0, 1.0
    if len(present) and option.scale == "standard":
        centre, scale = float(present.mean()), float(present.std())
    elif len(present) and option.scale == "robust":
        low, centre, high = (float(q) for q in np.quantile(present, [0.25, 0.5, 0.75]))
        scale = (high - low) / 1.349  # of a normal distribution, the standard deviation
        if scale == 0:  # most values are equal; then the rest gives the scale
            scale = float(present.std())
    if not scale > max(1e-6 * abs(centre), 1e-30):  # constant, as far as float32 can tell
        scale = 1.0
    missing = bool(np.isnan(raw).any())
    return Number(option.name, _short(centre), _short(scale), option.log, flag_missing or missing)


def _short(value: float) -> float:
    """As float32 holds it, so that training and graph use the same bits."""
    return float(np.float32(value))


def _category(option: CategoryField, events: Events, column: int, training: Ints) -> Category:
    if option.buckets is not None:
        vocabulary, codes = None, option.buckets
    else:
        counts = np.zeros(len(events.texts[column]) + 1, np.int64)
        for chunk in chunks(len(training)):
            counts += np.bincount(events.codes[training[chunk], column], minlength=len(counts))
        often = [
            place for place in np.argsort(-counts[1:], kind="stable").tolist() if counts[1 + place] >= option.min_count
        ]
        vocabulary = tuple(sorted(events.texts[column][place] for place in often[:_CODES_MAX]))
        codes = len(vocabulary)
    width = option.width or min(16, max(2, math.ceil(math.sqrt(codes + 1))))
    return Category(option.name, np.zeros((codes + 1, width), np.float32), vocabulary, option.buckets)


def features_of(encoder: Encoder) -> tuple[Feature, ...]:
    """The categories as the card has them."""
    return tuple(
        Feature(category.name, "category", category.vocabulary, category.buckets) for category in encoder.categories
    )


def encode(encoder: Encoder, x: Floats, elapsed: Floats, timestamp: Ints) -> Floats:
    """Raw x [..., F], elapsed [...], timestamp [...] to dense inputs [..., D], in the order of the encoder's text."""
    numbers = list(encoder.numbers)
    raw = x
    if encoder.elapsed is not None:
        raw = np.concatenate([x, elapsed[..., np.newaxis]], axis=-1)
        numbers.append(Number("elapsed", encoder.elapsed.centre, encoder.elapsed.scale, log=True, flag_missing=True))
    blocks = []
    if numbers:
        blocks.append(scale(numbers, raw, encoder.limit))
        flagged = [place for place, number in enumerate(numbers) if number.flag_missing]
        if flagged:
            blocks.append(np.isnan(raw[..., flagged]))
    if encoder.hour_of_day:
        blocks.append(_waves(timestamp, _DAY_MS, 0))
    if encoder.day_of_week:
        blocks.append(_waves(timestamp, 7 * _DAY_MS, _THURSDAY * _DAY_MS))
    return np.concatenate(blocks, axis=-1, dtype=np.float32) if blocks else np.zeros((*x.shape[:-1], 0), np.float32)


def scale(numbers: Sequence[Number], raw: Floats, limit: float) -> Floats:
    """Raw values [..., F] of these numbers to inputs: scaled, 0 where missing, cut to +-limit."""
    values = raw
    if any(number.log for number in numbers):
        logs = np.sign(raw) * np.log(np.abs(raw) + np.float32(1))
        values = np.where(np.array([number.log for number in numbers]), logs, raw)
    centre = np.array([number.centre for number in numbers], np.float32)
    inverse = np.array([1 / number.scale for number in numbers], np.float32)
    with np.errstate(over="ignore"):  # infinite is cut too
        scaled: Floats = np.where(np.isnan(raw), np.float32(0), (values - centre) * inverse)
    return np.clip(scaled, -limit, limit)


def _waves(timestamp: Ints, period_ms: int, at_epoch_ms: int) -> Floats:
    """[..., 2] sine and cosine."""
    angle = 2 * np.pi * ((timestamp + at_epoch_ms) % period_ms) / period_ms
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)


def flag_columns(encoder: Encoder) -> Sequence[int | None]:
    """For each number, the dense column of its flag."""
    place = len(encoder.numbers) + (encoder.elapsed is not None)
    columns: list[int | None] = []
    for number in encoder.numbers:
        columns.append(place if number.flag_missing else None)
        place += number.flag_missing
    return columns
