"""Why an event is an alert: by how much its score falls when one of its features is taken away (occlusion).

The event meets the state that it met, each time with one feature missing: NaN for a number, 0 for a category. What a
missing feature means is the model's own: a model of `lstmstream train` puts the mean of the training data in its
place. Nothing of that is kept.
"""

from __future__ import annotations

import numpy as np

from lstmstream.errors import CannotServe
from lstmstream.model import Card
from lstmstream.records import Bools, Floats, Ints
from lstmstream.serve.step_model import StepInput, StepModel

ELAPSED = "elapsed"  # the seconds since the key's previous event, beside the card's features
_ROWS_AT_ONCE = 4096
_NUMBERS_AT_ONCE = 1 << 22  # in the features and states of these rows


def feature_names(card: Card) -> list[str]:
    """[G] What can be a reason: the fields of the event, in the order of the card, then `elapsed`."""
    return list(dict.fromkeys([*(feature.name for feature in card.features), ELAPSED]))


class Occlusion:
    """One model, asked for its scores without a feature."""

    def __init__(self, model: StepModel) -> None:
        """Raises CannotServe where the model cannot do without one of its features."""
        card = model.card
        self._model = model
        self.names = feature_names(card)
        numbers = [self.names.index(feature.name) for feature in card.numbers]
        sizes = np.array([feature.size for feature in card.numbers], np.int64)
        self._of_number: Ints = np.array(numbers, np.int64)  # number → its place in the names
        self._of_column: Ints = np.repeat(self._of_number, sizes)  # [F]
        self._first_column: Ints = np.cumsum(sizes) - sizes  # of each number
        categories = [self.names.index(feature.name) for feature in card.categories]
        self._of_category: Ints = np.array(categories, np.int64)  # [C]
        self._elapsed = self.names.index(ELAPSED)
        width = card.number_columns + len(categories) + card.state.size
        self._rows_at_once = max(1, min(_ROWS_AT_ONCE, _NUMBERS_AT_ONCE // width))
        self._check_missing()

    def sizes(self, given: StepInput, score: Floats) -> Floats:
        """[A, G] By how much each feature raised the scores [A] of A events.

        NaN where the event has no such feature, and where the score without it is not finite.
        """
        sizes = np.full((len(score), len(self.names)), np.nan, np.float32)
        events, features = np.nonzero(self._has_features(given))
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(events), self._rows_at_once):
                at, without = events[start : start + self._rows_at_once], features[start : start + self._rows_at_once]
                sizes[at, without] = score[at] - self._scores_without(given.take(at), without)
        sizes[~np.isfinite(sizes)] = np.nan
        return sizes

    def _has_features(self, given: StepInput) -> Bools:
        """[A, G] Which of the features the events have: without another one nothing would change."""
        present: Bools = np.zeros((len(given.x), len(self.names)), np.bool_)
        if len(self._of_number):
            present[:, self._of_number] = np.logical_or.reduceat(~np.isnan(given.x), self._first_column, axis=1)
        present[:, self._of_category] |= given.categories != 0
        present[:, self._elapsed] |= ~np.isnan(given.elapsed)
        return present

    def _scores_without(self, given: StepInput, features: Ints) -> Floats:
        """[n] The scores of n events, each without one feature [n]."""
        one = features[:, np.newaxis]
        hidden = given._replace(
            x=np.where(self._of_column == one, np.float32(np.nan), given.x),
            categories=np.where(self._of_category == one, 0, given.categories),
            elapsed=np.where(features == self._elapsed, np.float32(np.nan), given.elapsed),
        )
        return self._model.step(hidden).score

    def _check_missing(self) -> None:
        """Try an event of zeros without each feature in turn."""
        card, zeros = self._model.card, np.zeros(len(self.names), np.int64)
        initial = np.array(card.state.initial, np.float32)
        event = StepInput(
            np.zeros((1, card.number_columns), np.float32),
            np.zeros((1, len(card.categories)), np.int64),
            np.zeros(1, np.int64),
            np.zeros(1, np.float32),
            initial[np.newaxis],
        )
        for start in range(0, len(self.names), self._rows_at_once):
            features = np.arange(start, min(len(self.names), start + self._rows_at_once))
            wrong = ~np.isfinite(self._scores_without(event.take(zeros[features]), features))
            if wrong.any():
                name = self.names[int(features[wrong][0])]
                raise CannotServe(
                    f"output.reasons: the score of model {card.name!r} is not finite where the field {name!r} is"
                    " missing, so nothing can be said about its part in an alert. Remove output.reasons, or use a model"
                    " that takes missing values (lstmstream import --missing zero)"
                )
