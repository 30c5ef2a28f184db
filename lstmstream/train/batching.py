"""Cuts the keys' sequences into batches for the network.

`tbptt_batches` is for truncated backpropagation through time: some keys at once, some events of each, and every key's
batches in order, so that its state can be carried from one to the next as in serving. `window_batches` is for networks
that see a window. Both know rows, not what is in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lstmstream.records import Bools, Ints

MAX_BATCH = 64  # keys, or windows
LENGTH_BLUR = 1.25  # keys whose lengths differ by no more than this factor are grouped at random
MIN_UPDATES = 100  # per epoch; with fewer an epoch hardly changes the network
MIN_UPDATE_EVENTS = 128  # in the loss per update, on average; with fewer the gradient is mostly noise
MIN_UPDATE_WINDOWS = 16  # the same for windows, of which only the last event is in the loss


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """Consecutive events of B keys, padded at the end to T, the length of the longest."""

    keys: Ints  # [B] indices of the keys
    rows: Ints  # [B, T] rows of the events; in the padding, a row of the same key
    mask: Bools  # [B, T] true for events, false for padding
    loss_mask: Bools  # [B, T] true where the network's output enters the loss


def tbptt_batches(
    starts: Ints, loss_mask: Bools, *, batch_size: int, steps: int, rng: np.random.Generator | None = None
) -> Iterator[SequenceBatch]:
    """All events of each key up to its last one in the loss, `batch_size` keys and `steps` events at a time.

    `starts` [K + 1] are the first rows of the keys, `loss_mask` [N] marks the events in the loss. Only a key's last
    batch is padded, so that no state after padding is ever carried on. With `rng` the keys are grouped differently in
    every epoch, long and short ones come mixed, and each group is cut at other places.
    """
    keys, begins, ends = _sequence_bounds(starts, loss_mask)
    for group, low, high in _pieces(ends - begins, batch_size=batch_size, steps=steps, rng=rng):
        yield _make_batch(keys[group], begins[group] + low, begins[group] + high, loss_mask)


def _pieces(
    lengths: Ints, *, batch_size: int, steps: int, rng: np.random.Generator | None = None
) -> Iterator[tuple[Ints, Ints, Ints]]:
    """The batches as (keys [B], first event [B], end [B]), of keys with these numbers of events.

    A group of keys is cut at the same events for all of them, and goes through its batches in order. With `rng` the
    groups come in random order. One with several times the median number of batches goes through them in parts of
    about the median, between those of others, or an epoch could end with those of one long key. More parts are not
    better: at the first batch of each, the state carried on is that of a network many updates ago.
    """
    groups = _groups(lengths, batch_size=batch_size, steps=steps, rng=rng)
    if not groups:
        return
    first = np.full(len(groups), steps) if rng is None else rng.integers(1, steps + 1, len(groups))
    longest = np.array([lengths[group].max() for group in groups], dtype=np.int64)
    batches = 1 + np.maximum(0, -(-(longest - first) // steps))
    parts = np.maximum(1, batches // int(np.median(batches)))
    turns = [
        part for index in range(len(groups)) for part in np.array_split(np.full(batches[index], index), parts[index])
    ]
    if rng is not None:
        rng.shuffle(turns)
    ends = np.zeros(len(groups), dtype=np.int64)  # how far each group has come
    for turn in np.concatenate(turns).tolist():
        low, high = int(ends[turn]), int(ends[turn] + (steps if ends[turn] else first[turn]))
        ends[turn] = high
        group = groups[turn]
        group = group[lengths[group] > low]
        yield group, np.full(len(group), low), np.minimum(lengths[group], high)


def _groups(lengths: Ints, *, batch_size: int, steps: int, rng: np.random.Generator | None) -> list[Ints]:
    """The keys in groups of up to `batch_size`, of similar length: little padding, and no batches of a few keys."""
    blurred = lengths if rng is None else lengths * rng.uniform(1, LENGTH_BLUR, len(lengths))
    order = np.argsort(-blurred, kind="stable")
    batches = -(-lengths[order] // steps)
    groups, start = [], 0
    while start < len(order):
        end = min(start + batch_size, len(order))
        much_shorter = np.flatnonzero(2 * batches[start:end] < batches[start])
        if len(much_shorter):
            end = start + int(much_shorter[0])
        groups.append(order[start:end])
        start = end
    return groups


def window_batches(
    starts: Ints, loss_mask: Bools, *, batch_size: int, window: int, rng: np.random.Generator | None = None
) -> Iterator[SequenceBatch]:
    """For each event in the loss, that event and up to `window` - 1 events of its key before it; shuffled with `rng`.

    `starts` [K + 1] are the first rows of the keys, `loss_mask` [N] marks the events in the loss. In a batch only the
    last event of each window is in the loss.
    """
    rows = np.flatnonzero(loss_mask)
    if rng is not None:
        rng.shuffle(rows)
    for at in range(0, len(rows), batch_size):
        last = rows[at : at + batch_size]
        keys = np.searchsorted(starts, last, side="right") - 1
        low = np.maximum(starts[keys], last + 1 - window)
        batch = _make_batch(keys, low, last + 1, np.zeros(0, np.bool_))
        batch.loss_mask[np.arange(len(last)), last - low] = True
        yield batch


def default_batch_size(starts: Ints, loss_mask: Bools, *, steps: int, window: int | None) -> int:
    """The batch size where none is configured: MAX_BATCH, less where keys are few and long or the data are small.

    Halved until an epoch has MIN_UPDATES updates, as long as the updates do not get too small. Arguments are as for
    `tbptt_batches`; with `window` those of `window_batches` count, and `steps` does not.
    """
    in_loss = int(loss_mask.sum())
    size = min(MAX_BATCH, max(1, sequence_count(starts, loss_mask, window=window)))
    smallest = MIN_UPDATE_EVENTS if window is None else MIN_UPDATE_WINDOWS
    while size > 1:
        if updates_per_epoch(starts, loss_mask, batch_size=size, steps=steps, window=window) >= MIN_UPDATES:
            break
        if in_loss < smallest * updates_per_epoch(starts, loss_mask, batch_size=size // 2, steps=steps, window=window):
            break
        size //= 2
    return size


def sequence_count(starts: Ints, loss_mask: Bools, *, window: int | None) -> int:
    """The number of keys, or of windows, that an epoch has: a larger batch size makes no difference."""
    return int(loss_mask.sum()) if window is not None else len(_sequence_bounds(starts, loss_mask)[0])


def updates_per_epoch(starts: Ints, loss_mask: Bools, *, batch_size: int, steps: int, window: int | None = None) -> int:
    """The number of batches with an event in the loss, without the random cuts and groups of a shuffled epoch."""
    if window is not None:
        return -(-int(loss_mask.sum()) // batch_size)
    _, begins, ends = _sequence_bounds(starts, loss_mask)
    in_loss = np.concatenate([[0], np.cumsum(loss_mask)])  # before each row
    return sum(
        bool((in_loss[begins[group] + high] > in_loss[begins[group] + low]).any())
        for group, low, high in _pieces(ends - begins, batch_size=batch_size, steps=steps)
    )


def _sequence_bounds(starts: Ints, loss_mask: Bools) -> tuple[Ints, Ints, Ints]:
    """Of the keys with an event in the loss: their indices, first rows, and the rows after their last such event."""
    rows = np.flatnonzero(loss_mask)
    keys = np.searchsorted(starts, rows, side="right") - 1
    last = np.append(np.diff(keys) != 0, True)[: len(rows)]
    return keys[last], starts[keys[last]], rows[last] + 1


def _make_batch(keys: Ints, low: Ints, high: Ints, loss_mask: Bools) -> SequenceBatch:
    """The batch of rows low[b] .. high[b] - 1 for each key; `loss_mask` is [N], or [0] for no event in the loss."""
    offsets = np.arange(int((high - low).max()))
    rows = low[:, np.newaxis] + offsets
    mask = rows < high[:, np.newaxis]
    rows = np.where(mask, rows, high[:, np.newaxis] - 1)
    return SequenceBatch(keys, rows, mask, mask & loss_mask[rows] if len(loss_mask) else np.zeros_like(mask))
