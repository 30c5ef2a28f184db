"""When training stopped at the wrong time, the report names the option to change."""

from __future__ import annotations

import numpy as np
import pytest

from lstmstream.train.advice import score_note, training_advice
from lstmstream.train.schema import Training
from lstmstream.train.trainer import TrainingResult

FIRST = "The first of 6 epochs was the best."
LAST = "The last epoch was the best, and the model was still improving. Try more training.epochs."
FEW = " An epoch had only 32 updates of the weights."
FALLING, RISING, FLAT = [0.5 - 0.1 * n for n in range(6)], [0.1 * n for n in range(6)], [0.1, 0.5, 0.6, 0.6, 0.6, 0.601]
OPTIONS = {"epochs": 6}


def result_of(metrics: list[float], **changes: str) -> TrainingResult:
    history = [{"epoch": n + 1.0, "metric": metric} for n, metric in enumerate(metrics)]
    best = metrics.index(max(metrics)) + 1
    return TrainingResult(history=history, best_epoch=best, **{"monitor": "loss", "stop_reason": "x"} | changes)


@pytest.mark.parametrize(
    ("metrics", "batch", "updates", "window", "text"),
    [
        (FALLING, 20, 32, False, f"{FIRST}{FEW} Try a training.batch below 20, or training.steps below 64."),
        (FALLING, 16, 32, True, f"{FIRST}{FEW} Try a training.batch below 16."),
        (FALLING, 1, 32, False, f"{FIRST}{FEW} Try training.steps below 64, or more data."),
        (FALLING, 1, 32, True, f"{FIRST}{FEW} Use more data."),
        (FALLING, 64, 500, False, f"{FIRST} Try a training.learning_rate below 0.003, or more data."),
        (RISING, 64, 500, False, LAST),
        (RISING, 64, 32, False, f"{LAST}{FEW} Try a training.batch below 64, or training.steps below 64."),
        (FLAT, 64, 32, False, ""),
        ([0.1, 0.5, 0.4], 64, 32, False, ""),
        ([0.5], 64, 32, False, ""),
    ],
)
def test_the_option_to_change(metrics: list[float], batch: int, updates: int, window: bool, text: str) -> None:
    options = Training.model_validate(OPTIONS)
    found = training_advice(result_of(metrics), options, batch_size=batch, updates=updates, window=window)
    assert found == text


@pytest.mark.parametrize("changes", [{"monitor": "none"}, {"stop_reason": "stopped by the user"}])
def test_a_choice_of_the_user_is_not_criticized(changes: dict[str, str]) -> None:
    options = Training.model_validate(OPTIONS)
    for metrics in (FALLING, RISING):
        result = result_of(metrics, **changes)
        assert training_advice(result, options, batch_size=64, updates=1, window=False) == ""


SHIFTED = "shift the scores, so that they rank events but are not probabilities"


@pytest.mark.parametrize(
    ("weights", "note"),
    [
        ([], ""),
        ([1, 1], ""),
        ([0.55, 5], f"training.class_weights (0.55, 5) {SHIFTED}: where the score is 0.5, about 9.9% are 'fraud'."),
        ([1, 2, 1], f"training.class_weights (1, 2, 1) {SHIFTED}."),
    ],
)
def test_weighted_scores_are_not_shown_as_probabilities(weights: list[float], note: str) -> None:
    classes = ("ok", "fraud", "other")[: max(2, len(weights))]
    assert score_note(classes, np.array(weights, np.float32)) == note
