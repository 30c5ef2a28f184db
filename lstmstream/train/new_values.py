"""Numbers whose values are new in the validation split: a time, a counter, anything that keeps growing.

The network has seen none of these values, and in the stream it will see newer ones still.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from lstmstream.history.events import Events
from lstmstream.records import Ints
from lstmstream.train.schema import TrainConfig

MIN_SHARE = 0.5  # of the validation split's values, outside the range of the training split
MIN_VALUES = 20  # in the validation split


def values_out_of_range(
    events: Events, training: Ints, validation: Ints, config: TrainConfig, skipped: Collection[int]
) -> Iterator[str]:
    """A sentence for each number most of whose values at the rows `validation` [m] lie outside those at `training` [n].

    `skipped` are columns about which something else is said. A column that is constant in training is left out too.
    """
    for column, number in enumerate(config.features.numbers):
        seen = _known(events, training, column)
        new = _known(events, validation, column)
        if column in skipped or len(new) < MIN_VALUES or not len(seen) or seen.min() == seen.max():
            continue
        low, high = float(seen.min()), float(seen.max())
        share = float(((new < low) | (new > high)).mean())
        if share < MIN_SHARE:
            continue
        remedy = (
            "If it keeps growing, as a time or a counter does, use the difference from the previous event, in these"
            " data and in the stream"
        )
        if number.name == config.data.timestamp:
            remedy = "It is data.timestamp: leave it out, and use features.elapsed, hour_of_day or day_of_week"
        yield (
            f"{number.name} lies outside the range of the training split ({low:.4g} to {high:.4g}) in {share:.0%} of"
            f" the validation split's events, so the network has not learned from such values. {remedy}"
        )


def _known(events: Events, rows: Ints, column: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    values = np.asarray(events.x[rows, column])
    known: np.ndarray[tuple[int], np.dtype[np.float32]] = values[~np.isnan(values)]
    return known
