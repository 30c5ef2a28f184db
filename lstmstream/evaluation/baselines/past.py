"""What a key's past amounts to at each event, for all keys at once: recurrences without a loop over events."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lstmstream.evaluation.metrics import Doubles
from lstmstream.history.events import Events
from lstmstream.records import Bools, Ints

BLOCK_ROWS = 250_000  # whole keys that are processed together, so that data on disk need little memory
_FORGOTTEN = 1e-7  # what weighs less than this no longer counts


def key_blocks(events: Events, rows: Ints) -> Iterator[tuple[slice, slice]]:
    """Blocks of whole keys with at least one of the ascending rows `rows`.

    Yields the block's rows in the events, and which of `rows` lie in it.
    """
    first = 0
    while first < len(events.keys):
        last = int(np.searchsorted(events.starts, events.starts[first] + BLOCK_ROWS, side="right")) - 1
        last = min(max(last, first + 1), len(events.keys))
        block = slice(int(events.starts[first]), int(events.starts[last]))
        begin, end = np.searchsorted(rows, [block.start, block.stop]).tolist()
        if end > begin:
            yield block, slice(begin, end)
        first = last


def is_first(events: Events, block: slice) -> Bools:
    """[n] Whether each row of the block of whole keys is its key's first."""
    first = np.zeros(block.stop - block.start, np.bool_)
    starts = events.starts[:-1]
    inside = starts[(starts >= block.start) & (starts < block.stop)]
    first[inside - block.start] = True
    return first


def recurrence(decay: Doubles, values: Doubles) -> Doubles:
    """[n, F] y[i] = decay[i] y[i - 1] + values[i] for values [n, F]; `decay` [n] is 0 where a sequence begins.

    By doubling: after each pass y[i] includes twice as many values (Hillis & Steele 1986). Values whose weight has
    fallen below 1e-7 are left out.
    """
    sums, weight = values.astype(np.float64), decay.astype(np.float64)
    distance = 1
    while distance < len(sums) and weight[distance:].max() > _FORGOTTEN:
        sums[distance:] += weight[distance:, None] * sums[:-distance]
        weight[distance:] = weight[distance:] * weight[:-distance]
        distance *= 2
    return sums


def before(values: Doubles, first: Bools) -> Doubles:
    """[n, F] The values of the key's previous event; 0 at its first."""
    shifted = np.zeros_like(values)
    shifted[1:] = values[:-1]
    shifted[first] = 0
    return shifted


def running_sums(values: Doubles, first: Bools) -> Doubles:
    """[n, F] The sums of each key's values up to and including each event."""
    totals = np.cumsum(values, axis=0, dtype=np.float64)
    starts = np.flatnonzero(first)
    offset = np.zeros((len(starts), totals.shape[1]))
    offset[starts > 0] = totals[starts[starts > 0] - 1]
    return np.asarray(totals - offset[np.cumsum(first) - 1])
