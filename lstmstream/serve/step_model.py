"""What the scorer needs of a model: one step for N different keys. Knows no runtime."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeGuard

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

    def take(self, rows: np.ndarray[tuple[int], np.dtype[np.intp]]) -> StepInput:
        """A copy of the rows at `rows`."""
        return StepInput(
            self.x[rows], self.categories[rows], self.timestamp[rows], self.elapsed[rows], self.state[rows]
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


class Rounds(Protocol):
    """The M events of a batch, in the order of its rounds."""

    def step(self, start: int, stop: int, state: Floats) -> Floats:
        """Move the keys of the events start..stop forward; `state` and the result are [stop - start, S]."""

    def step_key(self, events: Ints, state: Floats) -> Floats | None:
        """Move one key forward by T events [T], one after the other; `state` and the result are [1, S].

        None where the model has no such way; it has one for all keys and events, or for none.
        """

    def outputs(self) -> tuple[Floats, Floats | None]:
        """Scores [M] and predictions [M, P] of all events, once each was in a `step` or a `step_key`."""


class BatchedModel(StepModel, Protocol):
    """A model that knows the events of all rounds beforehand does a part of its work at once."""

    def begin_rounds(self, given: StepInput) -> Rounds | None:
        """Begin a batch; nothing is read of its states. None: by `step`."""


class RoundsByStep:
    """Rounds of a model that has no other way."""

    def __init__(self, model: StepModel, given: StepInput) -> None:
        self._model = model
        self._given = given
        self._score = np.empty(len(given.x), np.float32)
        self._prediction: np.ndarray[tuple[int, int], np.dtype[np.float32]] | None = None

    def step(self, start: int, stop: int, state: Floats) -> Floats:
        """See Rounds."""
        out = self._model.step(self._given.rows(start, stop - start)._replace(state=state))
        self._score[start:stop] = out.score
        if out.prediction is not None:
            if self._prediction is None:
                self._prediction = np.empty((len(self._score), out.prediction.shape[1]), np.float32)
            self._prediction[start:stop] = out.prediction
        return out.state

    def step_key(self, events: Ints, state: Floats) -> None:
        """See Rounds."""

    def outputs(self) -> tuple[Floats, Floats | None]:
        """See Rounds."""
        return self._score, self._prediction


def rounds_of(model: StepModel, given: StepInput) -> Rounds:
    """By the model's own way, where it has one."""
    rounds = model.begin_rounds(given) if _is_batched(model) else None
    return RoundsByStep(model, given) if rounds is None else rounds


def _is_batched(model: StepModel) -> TypeGuard[BatchedModel]:
    return hasattr(model, "begin_rounds")  # `isinstance` of a protocol takes a tenth of a small batch's time
