"""Finds a state that grows without bound: a model that was trained on short windows and meets a long stream.

A few hundred events are walked in the range that scaled features have. A state that saturates, converges or counts is
in order; one that multiplies its size again and again ends in numbers that are not finite, and its key gets no more
predictions. This is a test on random events, which can miss such a state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lstmstream.model import Card
from lstmstream.records import Floats
from lstmstream.serve.step_model import StepInput, StepModel

EVENTS = 512  # a power of two
_LEAST_EVENTS = 128  # below that nothing is said of growth
_INTERVAL_S = 60
# Log of the growth over a doubling of the events. A power law n^k has k ln 2 at each doubling, so a counter or a sum of
# sums stays below; exponential growth doubles its own log each time.
_LEAST_LOG_GROWTH = np.log(8.0)
_LEAST_ACCELERATION = 1.5


@dataclass(frozen=True, slots=True)
class Growth:
    """A part of the state that grows without bound."""

    part: str  # of the state row
    event: int  # 1-based: where it was found
    finite: bool  # False: the part, or the prediction made of it, was no longer finite
    size: float  # its largest finite number

    def __str__(self) -> str:
        end = f"is {self.size:.3g} after {self.event} events"
        if not self.finite:
            end = f"was {self.size:.3g} before event {self.event}, whose result is not finite"
        return f"the state part {self.part!r} grows without bound: it {end}"


def find_growth(
    model: StepModel,
    *,
    events: int = EVENTS,
    seconds: float = 5.0,
    centre: Floats | float = 0.0,
    scale: Floats | float = 1.0,
    on_event: Callable[[int], None] | None = None,
) -> Growth | None:
    """Walks `events` events of several keys, for at most `seconds`, and returns the state part that grows fastest.

    Raw features are `centre` + `scale` * v, each [F] or one number for all, with v as a feature is after scaling.
    """
    card = model.card
    walk = _walk(card, events, centre, scale)
    rows = walk.x.shape[1]
    names = [part.name for part in card.state.parts]
    starts = [part.offset for part in card.state.parts]
    state = np.tile(np.array(card.state.initial, np.float32), (rows, 1))
    sizes = np.zeros((events, rows, len(names)))
    until = time.monotonic() + seconds
    for event in range(events):
        if event and time.monotonic() > until:
            events = event
            break
        out = model.step(walk.at(event, state))
        finite = out.finite()
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            return _not_finite(names, starts, out.state[row], sizes[:event, row])
        state = out.state
        sizes[event] = np.maximum.reduceat(np.abs(state).astype(np.float64), starts, axis=1)
        if on_event is not None:
            on_event(event + 1)
    return _exponential(names, sizes[:events])


def _not_finite(names: list[str], starts: list[int], state: Floats, sizes: NDArray[np.float64]) -> Growth:
    """`state` is the row of the key at the event after those of `sizes` [events, parts]."""
    event = len(sizes) + 1
    if not len(sizes):
        return Growth(names[0], event, finite=False, size=0.0)
    bad = ~np.logical_and.reduceat(np.isfinite(state), starts)
    growth = sizes[-1] / np.maximum(sizes[len(sizes) // 2], np.finfo(np.float32).tiny)
    part = int(np.where(bad if bad.any() else True, growth, -1.0).argmax())
    return Growth(names[part], event, finite=False, size=float(sizes[-1][part]))


def _exponential(names: list[str], sizes: NDArray[np.float64]) -> Growth | None:
    """The part that multiplies its size; `sizes` is [events, keys, parts]."""
    events = len(sizes)
    if events < _LEAST_EVENTS:
        return None
    ends = [events // 8, events // 4, events // 2, events]
    largest = [sizes[low:high].max(axis=0) for low, high in pairwise(ends)]
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (np.log(later / earlier) for earlier, later in pairwise(largest))
    grows = np.isfinite(second) & (second > _LEAST_LOG_GROWTH) & (second > _LEAST_ACCELERATION * first)
    grows &= np.isfinite(first) & (first > 0)
    if not grows.any():
        return None
    _, part = np.unravel_index(int(np.where(grows, second, -np.inf).argmax()), grows.shape)
    return Growth(names[part], events, finite=True, size=float(largest[-1][:, part].max()))


@dataclass(frozen=True, slots=True)
class _Walk:
    """Events of several keys: x [T, keys, F], categories [T, keys, C]."""

    x: Floats
    categories: NDArray[np.int64]

    def at(self, event: int, state: Floats) -> StepInput:
        """The input of the step at an event."""
        rows = self.x.shape[1]
        return StepInput(
            self.x[event],
            self.categories[event],
            np.full(rows, 1_700_000_000_000 + event * _INTERVAL_S * 1000, np.int64),
            np.full(rows, _INTERVAL_S if event else np.nan, np.float32),
            state,
        )


def _walk(card: Card, events: int, centre: Floats | float, scale: Floats | float) -> _Walk:
    """Noise, values of 0 to 1 as they are or rising and falling, and constants: what scaled features look like."""
    generator = np.random.default_rng(20260105)
    columns, categories = card.number_columns, card.categories
    shape = (events, columns)
    wave = 0.55 + 0.45 * np.sin(np.arange(events) / 10)[:, np.newaxis] * np.ones(columns)
    constants = [np.full(shape, value) for value in (1.0, -1.0, 0.1)]
    keys = [generator.standard_normal(shape), generator.uniform(0.1, 1, shape), wave, *constants]
    x = (np.stack(keys, axis=1) * scale + centre).astype(np.float32)
    highest = np.array([feature.buckets or len(feature.vocabulary or ()) for feature in categories], np.int64)
    codes = generator.integers(0, highest + 1, (events, len(keys), len(highest)), dtype=np.int64)
    return _Walk(x, codes)
