"""Cuts sequences into pieces for the network: some keys at once, some events of each, every key's pieces in order.

The state goes from a key's piece to its next, as in serving. Knows rows, not what is in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lstmstream.train.history.read import Ints

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some events of B keys; T is the longest."""

    sequence: Ints  # [B] whose state goes in and comes out
    rows: Ints  # [B, T] rows of the events; where not `there`, some row of the same key
    there: Bools  # [B, T]
    counted: Bools  # [B, T] whether the answer to this event matters


def walk(
    starts: Ints, counted: Bools, *, batch: int, steps: int, random: np.random.Generator | None = None
) -> Iterator[Piece]:
    """All keys' events up to the last that counts, `batch` keys and `steps` events of each at a time.

    `starts` is [K + 1], `counted` [N]. With `random` the keys are shuffled and each is cut at other places every time.
    """
    sequences, begins, ends = _spans(starts, counted)
    first = np.full(len(sequences), steps) if random is None else random.integers(1, steps + 1, len(sequences))
    length = ends - begins
    low, high = np.zeros_like(length), np.minimum(first, length)
    left = np.flatnonzero(length)  # keys that have events left; few, where one is much longer than the others
    while len(left):
        active = left.copy()
        if random is not None:
            random.shuffle(active)
        active = active[np.argsort(-(high - low)[active], kind="stable")]  # alike ones together: little padding
        groups = [active[at : at + batch] for at in range(0, len(active), batch)]
        if random is not None:
            random.shuffle(groups)
        for group in groups:
            yield _piece(sequences[group], begins[group] + low[group], begins[group] + high[group], counted)
        left = left[high[left] < length[left]]
        low[left], high[left] = high[left], np.minimum(high[left] + steps, length[left])


def windows(
    starts: Ints, counted: Bools, *, batch: int, window: int, random: np.random.Generator | None = None
) -> Iterator[Piece]:
    """For each event that counts, itself and up to `window` - 1 events of its key before it; only it counts."""
    rows = np.flatnonzero(counted)
    if random is not None:
        random.shuffle(rows)
    for at in range(0, len(rows), batch):
        last = rows[at : at + batch]
        sequence = np.searchsorted(starts, last, side="right") - 1
        low = np.maximum(starts[sequence], last + 1 - window)
        only_last = np.zeros(0, np.bool_)
        piece = _piece(sequence, low, last + 1, only_last)
        piece.counted[np.arange(len(last)), last - low] = True
        yield piece


def _spans(starts: Ints, counted: Bools) -> tuple[Ints, Ints, Ints]:
    """The keys that have an event that counts: which, where each begins, and the end of the last that counts."""
    rows = np.flatnonzero(counted)
    sequence = np.searchsorted(starts, rows, side="right") - 1
    last = np.append(np.diff(sequence) != 0, True)[: len(rows)]
    return sequence[last], starts[sequence[last]], rows[last] + 1


def _piece(sequence: Ints, low: Ints, high: Ints, counted: Bools) -> Piece:
    offsets = np.arange(int((high - low).max()))
    rows = low[:, np.newaxis] + offsets
    there = rows < high[:, np.newaxis]
    rows = np.where(there, rows, high[:, np.newaxis] - 1)
    matters = there & counted[rows] if len(counted) else np.zeros_like(there)
    return Piece(sequence, rows, there, matters)
