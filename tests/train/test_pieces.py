"""Every event up to a key's last that counts comes once, in order, with the right state before it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream.train.pieces import Piece, walk, windows


@st.composite
def histories(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Starts [K + 1] and what counts [N]."""
    lengths = draw(st.lists(st.integers(1, 12), max_size=12))
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    count = int(starts[-1])
    counted = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), np.bool_)
    if draw(st.booleans()):
        counted[:] = True
    return starts, counted


def wanted_rows(starts: np.ndarray, counted: np.ndarray) -> list[list[int]]:
    """Of each key, the rows up to the last that counts."""
    found = []
    for low, high in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        there = np.flatnonzero(counted[low:high])
        found.append(list(range(low, low + int(there[-1]) + 1)) if len(there) else [])
    return found


def is_sound(piece: Piece, starts: np.ndarray, counted: np.ndarray) -> None:
    """What holds for each piece by itself."""
    keys, steps = piece.rows.shape
    assert piece.sequence.shape == (keys,)
    assert piece.there.shape == piece.counted.shape == (keys, steps)
    assert piece.there.any(axis=1).all()
    assert piece.there.all(axis=1).any()  # T is the longest's
    assert not (piece.counted & ~piece.there).any()
    assert (np.diff(piece.there.astype(int), axis=1) <= 0).all()  # padding is at the end
    owner = np.searchsorted(starts, piece.rows, side="right") - 1
    assert (owner == piece.sequence[:, np.newaxis]).all()  # of padding too
    for rows, there in zip(piece.rows, piece.there, strict=True):
        assert (np.diff(rows[there]) == 1).all()
    assert not (piece.counted & ~counted[piece.rows]).any()


@settings(max_examples=300, deadline=None)
@given(histories(), st.integers(1, 5), st.integers(1, 9), st.none() | st.integers(0, 10**6))
def test_every_event_up_to_the_last_that_counts_once_and_in_order(
    history: tuple[np.ndarray, np.ndarray], batch: int, steps: int, seed: int | None
) -> None:
    starts, counted = history
    random = None if seed is None else np.random.default_rng(seed)
    seen: list[list[int]] = [[] for _ in starts[1:]]
    flags = []
    for piece in walk(starts, counted, batch=batch, steps=steps, random=random):
        is_sound(piece, starts, counted)
        assert piece.rows.shape[0] <= batch
        assert piece.rows.shape[1] <= steps
        assert len(set(piece.sequence.tolist())) == len(piece.sequence)  # a key has one state
        for place, key in enumerate(piece.sequence.tolist()):
            seen[key] += piece.rows[place, piece.there[place]].tolist()
        flags += piece.rows[piece.counted].tolist()
    assert seen == wanted_rows(starts, counted)
    assert sorted(flags) == np.flatnonzero(counted).tolist()


@settings(max_examples=100, deadline=None)
@given(histories(), st.integers(1, 5), st.integers(1, 9), st.none() | st.integers(0, 10**6))
def test_a_state_that_is_carried_on_is_that_of_the_whole_sequence(
    history: tuple[np.ndarray, np.ndarray], batch: int, steps: int, seed: int | None
) -> None:
    starts, counted = history
    values = np.random.default_rng(0).normal(size=len(counted))
    state = np.zeros(len(starts) - 1)
    answers = np.full(len(counted), np.nan)
    random = None if seed is None else np.random.default_rng(seed)
    for piece in walk(starts, counted, batch=batch, steps=steps, random=random):
        now = state[piece.sequence]
        for step in range(piece.rows.shape[1]):
            now = np.where(piece.there[:, step], np.tanh(now + values[piece.rows[:, step]]), now)
            where = piece.counted[:, step]
            answers[piece.rows[where, step]] = now[where]
        state[piece.sequence] = now
    for low, high in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        now = 0.0
        for row in range(low, high):
            now = np.tanh(now + values[row])
            if counted[row]:
                assert answers[row] == now
    assert np.isnan(answers[~counted]).all()


def test_with_a_generator_keys_and_cuts_differ_from_time_to_time_and_by_seed_agree() -> None:
    starts, counted = np.arange(0, 1001, 20), np.ones(1000, np.bool_)

    def schedule(random: np.random.Generator | None) -> list[tuple[list[int], list[int]]]:
        pieces = walk(starts, counted, batch=8, steps=8, random=random)
        return [(piece.sequence.tolist(), piece.there.sum(1).tolist()) for piece in pieces]

    assert schedule(None) == schedule(None)
    assert schedule(np.random.default_rng(1)) == schedule(np.random.default_rng(1))
    generator = np.random.default_rng(1)
    one, other = schedule(generator), schedule(generator)
    assert one != other
    first = {length for keys, lengths in one[:7] for length in lengths}
    assert len(first) > 3  # cut at many places
    assert min(first) >= 1
    assert max(first) <= 8
    assert {key for keys, _ in one[:7] for key in keys} == set(range(50))  # a turn has all keys
    assert [lengths for _, lengths in schedule(None)[:7]] == [[8] * 8] * 6 + [[8] * 2]


def test_alike_lengths_come_together() -> None:
    lengths = np.array([1, 50] * 20)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    for piece in walk(starts, np.ones(starts[-1], np.bool_), batch=20, steps=64):
        assert piece.there.all()


@settings(max_examples=200, deadline=None)
@given(histories(), st.integers(1, 5), st.integers(1, 9), st.none() | st.integers(0, 10**6))
def test_a_window_for_each_event_that_counts(
    history: tuple[np.ndarray, np.ndarray], batch: int, window: int, seed: int | None
) -> None:
    starts, counted = history
    random = None if seed is None else np.random.default_rng(seed)
    ends = []
    for piece in windows(starts, counted, batch=batch, window=window, random=random):
        is_sound(piece, starts, counted)
        assert piece.rows.shape[0] <= batch
        assert piece.rows.shape[1] <= window
        assert piece.counted.sum(axis=1).tolist() == [1] * len(piece.rows)
        for place, key in enumerate(piece.sequence.tolist()):
            rows = piece.rows[place, piece.there[place]].tolist()
            end = rows[-1]
            assert rows == list(range(max(int(starts[key]), end - window + 1), end + 1))
            assert piece.rows[place, piece.counted[place]].tolist() == [end]
            ends.append(end)
    assert sorted(ends) == np.flatnonzero(counted).tolist()
    if seed is None:
        assert ends == sorted(ends)


def test_windows_are_shuffled() -> None:
    starts, counted = np.array([0, 100]), np.ones(100, np.bool_)
    pieces = list(windows(starts, counted, batch=100, window=3, random=np.random.default_rng(0)))
    ends = pieces[0].rows[pieces[0].counted].tolist()
    assert ends != sorted(ends)
    assert sorted(ends) == list(range(100))


@pytest.mark.parametrize("counted", [np.zeros(0, np.bool_), np.zeros(5, np.bool_)])
def test_nothing_counts(counted: np.ndarray) -> None:
    starts = np.array([0, len(counted)]) if len(counted) else np.array([0])
    assert list(walk(starts, counted, batch=4, steps=4)) == []
    assert list(windows(starts, counted, batch=4, window=4)) == []
    assert list(walk(starts, counted, batch=4, steps=4, random=np.random.default_rng(0))) == []
