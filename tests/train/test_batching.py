"""Every event up to a key's last one in the loss is in one batch, in order, with the right state before it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream.train.batching import (
    SequenceBatch,
    default_batch_size,
    tbptt_batches,
    updates_per_epoch,
    window_batches,
)


@st.composite
def sequences(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """The first rows of K keys [K + 1] and a loss mask [N]."""
    lengths = draw(st.lists(st.integers(1, 12), max_size=12))
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    count = int(starts[-1])
    loss_mask = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), np.bool_)
    if draw(st.booleans()):
        loss_mask[:] = True
    return starts, loss_mask


def rows_of_keys(starts: np.ndarray, loss_mask: np.ndarray) -> list[list[int]]:
    """For each key, the rows up to its last one in the loss."""
    rows = []
    for low, high in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        in_loss = np.flatnonzero(loss_mask[low:high])
        rows.append(list(range(low, low + int(in_loss[-1]) + 1)) if len(in_loss) else [])
    return rows


def check_batch(batch: SequenceBatch, starts: np.ndarray, loss_mask: np.ndarray) -> None:
    """What is true of each batch by itself."""
    keys, steps = batch.rows.shape
    assert batch.keys.shape == (keys,)
    assert batch.mask.shape == batch.loss_mask.shape == (keys, steps)
    assert batch.mask.any(axis=1).all()
    assert batch.mask.all(axis=1).any()  # T is the length of the longest
    assert not (batch.loss_mask & ~batch.mask).any()
    assert (np.diff(batch.mask.astype(int), axis=1) <= 0).all()  # padding is at the end
    key_of_row = np.searchsorted(starts, batch.rows, side="right") - 1
    assert (key_of_row == batch.keys[:, np.newaxis]).all()  # in the padding too
    for rows, mask in zip(batch.rows, batch.mask, strict=True):
        assert (np.diff(rows[mask]) == 1).all()
    assert not (batch.loss_mask & ~loss_mask[batch.rows]).any()


@settings(max_examples=300, deadline=None)
@given(sequences(), st.integers(1, 5), st.integers(1, 9), st.none() | st.integers(0, 10**6))
def test_every_event_up_to_the_last_in_the_loss_comes_once_and_in_order(
    case: tuple[np.ndarray, np.ndarray], batch_size: int, steps: int, seed: int | None
) -> None:
    starts, loss_mask = case
    rng = None if seed is None else np.random.default_rng(seed)
    rows_seen: list[list[int]] = [[] for _ in starts[1:]]
    rows_in_loss = []
    for batch in tbptt_batches(starts, loss_mask, batch_size=batch_size, steps=steps, rng=rng):
        check_batch(batch, starts, loss_mask)
        assert batch.rows.shape[0] <= batch_size
        assert batch.rows.shape[1] <= steps
        assert len(set(batch.keys.tolist())) == len(batch.keys)  # a key has one state
        for index, key in enumerate(batch.keys.tolist()):
            rows_seen[key] += batch.rows[index, batch.mask[index]].tolist()
            done = len(rows_seen[key]) == len(rows_of_keys(starts, loss_mask)[key])
            assert done or batch.mask[index].all()  # or the state that is carried on would be that after padding
        rows_in_loss += batch.rows[batch.loss_mask].tolist()
    assert rows_seen == rows_of_keys(starts, loss_mask)
    assert sorted(rows_in_loss) == np.flatnonzero(loss_mask).tolist()


@settings(max_examples=100, deadline=None)
@given(sequences(), st.integers(1, 5), st.integers(1, 9), st.none() | st.integers(0, 10**6))
def test_a_state_carried_from_batch_to_batch_is_that_of_the_whole_sequence(
    case: tuple[np.ndarray, np.ndarray], batch_size: int, steps: int, seed: int | None
) -> None:
    starts, loss_mask = case
    values = np.random.default_rng(0).normal(size=len(loss_mask))
    state = np.zeros(len(starts) - 1)
    outputs = np.full(len(loss_mask), np.nan)
    rng = None if seed is None else np.random.default_rng(seed)
    for batch in tbptt_batches(starts, loss_mask, batch_size=batch_size, steps=steps, rng=rng):
        now = state[batch.keys]
        for step in range(batch.rows.shape[1]):
            now = np.where(batch.mask[:, step], np.tanh(now + values[batch.rows[:, step]]), now)
            in_loss = batch.loss_mask[:, step]
            outputs[batch.rows[in_loss, step]] = now[in_loss]
        state[batch.keys] = now
    for low, high in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        now = 0.0
        for row in range(low, high):
            now = np.tanh(now + values[row])
            if loss_mask[row]:
                assert outputs[row] == now
    assert np.isnan(outputs[~loss_mask]).all()


def test_with_a_generator_order_and_cuts_differ_between_epochs_and_repeat_with_the_seed() -> None:
    starts, loss_mask = np.arange(0, 1001, 20), np.ones(1000, np.bool_)

    def schedule(rng: np.random.Generator | None) -> list[tuple[list[int], list[int]]]:
        batches = tbptt_batches(starts, loss_mask, batch_size=8, steps=8, rng=rng)
        return [(batch.keys.tolist(), batch.mask.sum(1).tolist()) for batch in batches]

    assert schedule(None) == schedule(None)
    assert schedule(np.random.default_rng(1)) == schedule(np.random.default_rng(1))
    rng = np.random.default_rng(1)
    one, other = schedule(rng), schedule(rng)
    assert {tuple(sorted(keys)) for keys, _ in one} != {tuple(sorted(keys)) for keys, _ in other}  # other groups
    first_lengths = {}
    for keys, lengths in one:
        first_lengths.setdefault(tuple(sorted(keys)), lengths[0])
    assert len(set(first_lengths.values())) > 3  # cut at many places
    assert [lengths for _, lengths in schedule(None)[:3]] == [[8] * 8, [8] * 8, [4] * 8]


def shuffled_epochs(lengths: list[int], epochs: int) -> list[list[SequenceBatch]]:
    """The batches of 8 keys and 8 events of each epoch."""
    starts, rng = np.concatenate([[0], np.cumsum(lengths)]), np.random.default_rng(0)
    mask = np.ones(starts[-1], np.bool_)
    return [list(tbptt_batches(starts, mask, batch_size=8, steps=8, rng=rng)) for _ in range(epochs)]


def test_long_and_short_keys_come_mixed() -> None:
    """One group of long keys and 80 of short ones: no quarter of an epoch is without long ones, or has more of them."""
    fractions = []
    for batches in shuffled_epochs([640] * 8 + [8] * 640, epochs=20):
        is_long = np.array([batch.keys[0] < 8 for batch in batches])
        fractions.append([quarter.mean() / is_long.mean() for quarter in np.array_split(is_long, 4)])
    assert np.min(fractions) > 0.2
    assert np.max(fractions) < 2
    np.testing.assert_allclose(np.mean(fractions, axis=0), 1, atol=0.2)


def test_the_order_of_the_groups_does_not_go_by_length() -> None:
    """Where long and short groups are equally many, each comes last in about half of the epochs."""
    epochs = shuffled_epochs([64] * 32 + [24] * 32, epochs=100)
    assert 30 < sum(batches[-1].keys[0] < 32 for batches in epochs) < 70


def test_keys_of_usual_length_are_run_through_in_one_go() -> None:
    """Or the state carried on would be that of a network many updates ago, at every batch."""
    for batches in shuffled_epochs([200] * 40 + [400], epochs=10):
        usual = [tuple(sorted(batch.keys.tolist())) for batch in batches if batch.keys[0] < 40]
        changes = sum(one != other for one, other in itertools.pairwise(usual))
        assert changes == len(set(usual)) - 1


def test_a_long_key_does_not_keep_short_ones_from_sharing_batches() -> None:
    """One key of 1,000 batches and 63 of one: two groups, so that the short keys are one update and not one each."""
    lengths = np.array([64_000] + [64] * 63)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    sizes = [len(b.keys) for b in tbptt_batches(starts, np.ones(starts[-1], np.bool_), batch_size=64, steps=64)]
    assert sizes == [1] * 1_000 + [63]


def test_similar_lengths_are_batched_together() -> None:
    lengths = np.array([1, 50] * 20)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    for batch in tbptt_batches(starts, np.ones(starts[-1], np.bool_), batch_size=20, steps=64):
        assert batch.mask.all()


@settings(max_examples=200, deadline=None)
@given(sequences(), st.integers(1, 5), st.integers(1, 9), st.none() | st.integers(0, 10**6))
def test_there_is_a_window_for_each_event_in_the_loss(
    case: tuple[np.ndarray, np.ndarray], batch_size: int, window: int, seed: int | None
) -> None:
    starts, loss_mask = case
    rng = None if seed is None else np.random.default_rng(seed)
    ends = []
    for batch in window_batches(starts, loss_mask, batch_size=batch_size, window=window, rng=rng):
        check_batch(batch, starts, loss_mask)
        assert batch.rows.shape[0] <= batch_size
        assert batch.rows.shape[1] <= window
        assert batch.loss_mask.sum(axis=1).tolist() == [1] * len(batch.rows)
        for index, key in enumerate(batch.keys.tolist()):
            rows = batch.rows[index, batch.mask[index]].tolist()
            end = rows[-1]
            assert rows == list(range(max(int(starts[key]), end - window + 1), end + 1))
            assert batch.rows[index, batch.loss_mask[index]].tolist() == [end]
            ends.append(end)
    assert sorted(ends) == np.flatnonzero(loss_mask).tolist()
    if seed is None:
        assert ends == sorted(ends)


def test_windows_are_shuffled() -> None:
    starts, loss_mask = np.array([0, 100]), np.ones(100, np.bool_)
    batches = list(window_batches(starts, loss_mask, batch_size=100, window=3, rng=np.random.default_rng(0)))
    ends = batches[0].rows[batches[0].loss_mask].tolist()
    assert ends != sorted(ends)
    assert sorted(ends) == list(range(100))


@pytest.mark.parametrize("loss_mask", [np.zeros(0, np.bool_), np.zeros(5, np.bool_)])
def test_without_an_event_in_the_loss_there_is_no_batch(loss_mask: np.ndarray) -> None:
    starts = np.array([0, len(loss_mask)]) if len(loss_mask) else np.array([0])
    assert list(tbptt_batches(starts, loss_mask, batch_size=4, steps=4)) == []
    assert list(window_batches(starts, loss_mask, batch_size=4, window=4)) == []
    assert list(tbptt_batches(starts, loss_mask, batch_size=4, steps=4, rng=np.random.default_rng(0))) == []


@settings(max_examples=100, deadline=None)
@given(sequences(), st.integers(1, 5), st.integers(1, 9), st.booleans())
def test_updates_are_counted(case: tuple[np.ndarray, np.ndarray], batch_size: int, steps: int, windows: bool) -> None:
    starts, loss_mask = case
    window = steps if windows else None
    batches = (
        window_batches(starts, loss_mask, batch_size=batch_size, window=steps)
        if windows
        else tbptt_batches(starts, loss_mask, batch_size=batch_size, steps=steps)
    )
    expected = updates_per_epoch(starts, loss_mask, batch_size=batch_size, steps=steps, window=window)
    assert sum(bool(batch.loss_mask.any()) for batch in batches) == expected


@pytest.mark.parametrize(
    ("lengths", "window", "size"),
    [
        pytest.param([100] * 5000, None, 64, id="many keys"),
        pytest.param([2016] * 20, None, 5, id="few long keys"),
        pytest.param([2000], None, 1, id="one key"),
        pytest.param([6000] * 2, None, 2, id="two long keys"),
        pytest.param([20] * 40, None, 10, id="little data"),
        pytest.param([1] * 10_000, None, 64, id="keys of one event"),
        pytest.param([100_000, *[5] * 300], None, 64, id="one key much longer"),
        pytest.param([500] * 20, 10, 64, id="many windows"),
        pytest.param([1000], 10, 32, id="few windows"),
    ],
)
def test_the_default_batch_size_fits_the_data(lengths: list[int], window: int | None, size: int) -> None:
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    mask = np.ones(int(starts[-1]), np.bool_)
    assert default_batch_size(starts, mask, steps=64, window=window) == size
