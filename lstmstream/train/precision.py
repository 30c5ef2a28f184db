"""Numbers that float32 cannot tell apart: large values that change little.

Events are computed in float32, in training as in serving. At 1.7e9 its values are 128 apart, so a change of 5 is lost
before the network sees it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lstmstream.evaluation.metrics import Doubles
from lstmstream.history.events import Events
from lstmstream.records import Ints
from lstmstream.train.schema import TrainConfig

MIN_SPREAD = 8  # in spacings of float32: with a smaller standard deviation a feature has only a few distinct values
MIN_STEP = 4  # in spacings: a smaller typical change from event to event is mostly rounding
MIN_SCALE = 1e-30  # a smaller standard deviation cannot be scaled to 1
LARGE = 1e5  # a column that is constant at such a value may have varied before it was rounded


def coarse_numbers(events: Events, sample: Ints, config: TrainConfig) -> Iterator[tuple[int, str]]:
    """The column of each number of `features.numbers` that float32 cannot resolve at the rows `sample` [n]; a sentence.

    Columns without two different values are left out: `data_checks` names them as constant.
    """
    targets = set(config.targets) if config.task != "classify" else set()
    rows = _rows_with_next(events, sample)
    for column, number in enumerate(config.features.numbers):
        values = np.asarray(events.x[sample, column]).astype(np.float64)
        pairs = np.stack([events.x[rows, column], events.x[rows + 1, column]]).astype(np.float64)
        magnitude = float(np.median(np.abs(values[~np.isnan(values)]))) if not np.isnan(values).all() else 0.0
        if _is_coarse(values, pairs, magnitude):
            spacing = f"{_spacing(magnitude):g}"
            multiple = f"; as it is, its forecast is a multiple of {spacing}" if column in targets else ""
            text = (
                f"{number.name} changes by less than float32 can tell apart: at values like {magnitude:.3g} its steps"
                f" are {spacing}. Use the difference from the previous event, or subtract a fixed offset, in these data"
                f" and in the stream{multiple}"
            )
            yield column, text
        elif number.log and _is_coarse(_log(values), _log(pairs), float(np.log1p(magnitude))):
            text = (
                f"{number.name} changes by less than float32 can tell apart after log: true, because its values near"
                f" {magnitude:.3g} differ little; leave out log: true for it"
            )
            yield column, text
        elif 0 < _spread(values) <= MIN_SCALE:
            text = (
                f"{number.name} has values so small (up to {np.nanmax(np.abs(values)):.3g}) that float32 cannot scale"
                " them, so nothing can be learned from it; use other units, in these data and in the stream"
            )
            yield column, text


def constant_note(value: float) -> str:
    """What to add about a column that is always `value`: whether float32 may have made it constant; else empty."""
    if not abs(value) >= LARGE:
        return ""
    return (
        f" (float32 values are {_spacing(value):g} apart there, and smaller changes are lost: if it does change,"
        " subtract a fixed offset before training and in the stream)"
    )


def _spread(values: Doubles) -> float:
    """The standard deviation of the values that are not missing."""
    known = values[~np.isnan(values)]
    return float(known.std()) if len(known) else 0.0


def _is_coarse(values: Doubles, pairs: Doubles, magnitude: float) -> bool:
    """Whether values [n], or the typical change between events of a key, pairs [2, m], are too close for float32.

    Missing values are NaN.
    """
    known = values[~np.isnan(values)]
    if not len(known) or known.min() == known.max():
        return False
    steps = np.abs(pairs[1] - pairs[0])
    steps = steps[steps > 0]  # equal neighbours may be equal in truth, or by rounding; NaN is left out too
    step = float(np.median(steps)) if len(steps) else np.inf
    spacing = _spacing(magnitude)
    return bool(known.std() < MIN_SPREAD * spacing or step < MIN_STEP * spacing)


def _rows_with_next(events: Events, sample: Ints) -> Ints:
    """[m] The rows of the sample that are followed by another event of their key."""
    key_ends = events.starts[np.searchsorted(events.starts, sample, side="right")]
    return sample[sample + 1 < key_ends]


def _log(values: Doubles) -> Doubles:
    """As `log: true` does it."""
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


def _spacing(value: float) -> float:
    """The distance between neighbouring float32 values at `value`."""
    return float(np.spacing(np.abs(np.float32(value))))
