"""What the scorer needs of a model: one step for N different keys. Knows no runtime."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from lstmstream.model import Card
from lstmstream.records import Floats, Ints


class StepInput(NamedTuple):
    """What N keys meet in one round; `state` is [N, S], one row for each key."""

    x: Floats  # [N, F]
    categories: Ints  # [N, C]
    timestamp: Ints  # [N] milliseconds since 1970 UTC
    elapsed: Floats  # [N] seconds since the key's previous event; NaN on its first
    state: Floats  # [N, S]

    def rows(self, start: int, count: int) -> StepInput:
        """The rows start..start+count."""
        end = start + count
        return StepInput(
            self.x[start:end],
            self.categories[start:end],
            self.timestamp[start:end],
            self.elapsed[start:end],
            self.state[start:end],
        )


class StepOutput(NamedTuple):
    """What the model said of N keys."""

    state: Floats  # [N, S]
    score: Floats  # [N]
    prediction: Floats | None  # [N, P]

    def finite(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """[N] Whether everything in the row is finite."""
        good = np.isfinite(self.score) & np.isfinite(self.state).all(axis=1)
        if self.prediction is not None:
            good &= np.isfinite(self.prediction).all(axis=1)
        return good


class StepModel(Protocol):
    """What the engine needs of a model."""

    card: Card

    def step(self, given: StepInput) -> StepOutput:
        """Move N different keys forward by one event each. Remembers nothing and leaves its arguments untouched."""
