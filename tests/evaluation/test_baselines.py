"""Baselines where the answer is known, and a comparison that does not flatter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lstmstream.evaluation.alignment import TaskSpec, align_with_truth, evaluated_rows
from lstmstream.evaluation.baselines import compute_baselines
from lstmstream.evaluation.baselines.classes import logistic
from lstmstream.evaluation.comparison import compare, main_metric
from lstmstream.evaluation.metrics import Evaluated, compute_metrics
from tests.random_events import history

HOUR_S = 3600.0


def all_of(spec: TaskSpec, events: Any, *, score: Any = None, **options: Any) -> tuple[Evaluated, dict[str, Evaluated]]:
    """The evaluated events, all of them, and their baselines; everything is training part too."""
    count = len(events.timestamp)
    score = np.zeros(count, np.float32) if score is None else score
    prediction = None if spec.task == "classify" else np.zeros((count, len(spec.names)), np.float32)
    evaluated = align_with_truth(spec, events, score, prediction)
    rows = evaluated_rows(spec, events, score)
    training = options.pop("training", np.arange(count))
    return evaluated, compute_baselines(spec, events, evaluated, rows, training=training, **options).evaluated


def daily(days: int, *, keys: int = 1) -> Any:
    """A value that repeats every day, with another phase for each key, hourly."""
    hours = np.arange(24 * days)
    values = np.concatenate([np.sin(2 * np.pi * (hours + 5 * key) / 24) * 10 + hours // 168 for key in range(keys)])
    return history(lengths=[24 * days] * keys, seed=0, values=values, gap_s=HOUR_S)


@pytest.mark.parametrize("horizon", [1, 3, 30])
def test_a_seasonal_series_is_known_a_day_before(horizon: int) -> None:
    evaluated, found = all_of(TaskSpec("forecast", ("load",), ("load",), horizon), daily(6, keys=2))
    assert set(found) == {"last value", "mean", "mean of the key", "linear autoregression", "a day ago"}
    later = evaluated.timestamp >= evaluated.timestamp.min() + 2 * 86_400_000
    said = found["a day ago"].prediction
    assert said is not None
    known = np.isfinite(evaluated.truth[later])
    np.testing.assert_allclose(said[later][known], evaluated.truth[later][known], atol=1e-4)
    assert compute_metrics(found["a day ago"])["mase"] < compute_metrics(found["last value"])["mase"] == 1


def test_a_week_ago_needs_two_weeks() -> None:
    _, found = all_of(TaskSpec("forecast", ("load",), ("load",)), daily(21))
    assert {"a day ago", "a week ago"} <= set(found)
    _, found = all_of(TaskSpec("forecast", ("load",), ("load",)), daily(1), period_s=6 * HOUR_S)
    assert set(found) == {"last value", "mean", "mean of the key", "linear autoregression", "21600 s ago"}


def test_a_seasonal_forecast_does_not_see_the_future() -> None:
    """Values known only from the event on: with a period shorter than the horizon, whole periods further back."""
    values = np.arange(100.0)
    spec = TaskSpec("forecast", ("v",), ("v",), horizon=5)
    _, found = all_of(spec, history(lengths=[100], seed=0, values=values, gap_s=1.0), period_s=2.0)
    said = found["2 s ago"].prediction
    assert said is not None
    # at event 50: t+1 is 49, one period before 51; t+3 is 49, two periods before 53, not 51
    assert said[50].tolist() == [49, 50, 49, 50, 49]


def test_a_key_does_not_borrow_from_the_one_before() -> None:
    """The second key begins where the first ends, so the first's events lie just where the second's past would."""
    values = np.concatenate([np.full(40, 5.0), np.arange(40.0)])
    events = history(lengths=[40, 40], seed=0, values=values, gap_s=1.0)
    events.timestamp[40:] += 40_000
    _, found = all_of(TaskSpec("forecast", ("v",), ("v",)), events, period_s=2.0)
    said = found["2 s ago"].prediction
    assert said is not None
    assert said[39].tolist() == [0.0]  # the second key's first event: no value of its own before it, so its last value
    assert said[39 + 20].tolist() == [19.0]
    _, errors = all_of(TaskSpec("anomaly", ("v",), ("v",)), events)
    assert errors["last value"].score[40] == 0
    assert errors["last value"].score[41] > 0


def test_the_mean_and_the_last_value_come_from_their_own_places() -> None:
    events = history(lengths=[4], seed=0, values=[1.0, np.nan, 3.0, 100.0])
    evaluated, found = all_of(TaskSpec("forecast", ("v",), ("v",)), events, training=np.array([0, 1, 2]))
    assert found["mean"].prediction is not None
    assert found["last value"].prediction is not None
    assert found["mean"].prediction[:, 0].tolist() == [2.0, 2.0]  # not of 100, which is outside the training part
    assert evaluated.truth[:, 0].tolist() == [3.0, 100.0]
    assert found["last value"].prediction[:, 0].tolist() == [1.0, 3.0]


def test_logistic_regression_finds_the_weights() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(50_000, 3))
    positive = (rng.random(50_000) < 1 / (1 + np.exp(-(inputs @ [2.0, -1.0, 0.0] - 1.5)))).astype(np.float64)
    np.testing.assert_allclose(logistic(inputs, positive), [-1.5, 2, -1, 0], atol=0.06)
    separable = logistic(np.array([[-1.0], [1.0]]), np.array([0.0, 1.0]))
    assert np.isfinite(separable).all()
    # its own condition: the gradient is 0
    p = 1 / (1 + np.exp(-separable[1]))
    assert 2 * (p - 1) + separable[1] == pytest.approx(0, abs=1e-4)


def test_regression_on_the_event_alone() -> None:
    events = history(keys=300, longest=20, seed=1, numbers=2, codes=(5,), missing=0)
    label = ((events.codes[:, 0] == 3) | (events.x[:, 0] > 100)).astype(np.int64)
    events = replace(events, label=label)
    spec = TaskSpec("classify", ("a", "b"), classes=("no", "yes"))
    dense = lambda rows: events.x[rows] / 100  # noqa: E731
    _, found = all_of(spec, events, dense=dense)
    assert compute_metrics(found["logistic regression"])["average_precision"] > 0.9
    assert compute_metrics(found["class frequencies"])["average_precision"] == pytest.approx(label.mean())
    assert compute_metrics(found["class frequencies"])["log_loss"] < 0.7
    _, blind = all_of(spec, events)  # categories only
    assert 0.5 < compute_metrics(blind["logistic regression"])["average_precision"] < 0.9


def test_three_classes_add_up_to_one() -> None:
    events = history(keys=200, longest=20, seed=2, numbers=2, missing=0)
    events = replace(events, label=np.digitize(events.x[:, 0], [-50, 50]))
    spec = TaskSpec("classify", ("a", "b"), classes=("low", "middle", "high"))
    _, found = all_of(spec, events, dense=lambda rows: np.stack([events.x[rows, 0], events.x[rows, 0] ** 2], 1))
    said = found["logistic regression"]
    assert said.prediction is not None
    np.testing.assert_allclose(said.prediction.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(said.score, 1 - said.prediction[:, 0], atol=1e-6)
    assert compute_metrics(said)["accuracy"] > 0.95


def test_only_labelled_training_events_teach() -> None:
    events = history(lengths=[8], seed=0, values=[0.0, 1, 0, 1, 0, 1, 0, 1], label=[0, 1, 0, 1, -1, -1, 0, 0])
    spec = TaskSpec("classify", ("a",), classes=("0", "1"))
    _, found = all_of(spec, events, training=np.arange(6))
    np.testing.assert_allclose(found["class frequencies"].score, 0.5)
    _, none = all_of(spec, events, training=np.array([4, 5]))
    assert none == {}
    _, one = all_of(spec, events, training=np.array([0, 2]), dense=lambda rows: events.x[rows])
    assert set(one) == {"class frequencies"}


def test_sequences_are_learned_from_their_ends() -> None:
    label = np.zeros(40, np.int64)
    label[3::8] = 1  # the last events of every second key
    events = history(lengths=[4] * 10, seed=0, values=np.arange(40.0), label=label)
    spec = TaskSpec("classify", ("a",), classes=("0", "1"), per="sequence")
    evaluated, found = all_of(spec, events)
    assert len(evaluated.labelled) == 10
    np.testing.assert_allclose(found["class frequencies"].score, 0.5)


def test_errors_of_an_anomaly() -> None:
    values = np.sin(np.arange(200) / 3)
    values[150] = 4.0
    label = np.zeros(200, np.int64)
    label[150] = 1
    events = history(lengths=[200], seed=0, values=values, label=label)
    evaluated, found = all_of(TaskSpec("anomaly", ("v",), ("v",)), events)
    assert compute_metrics(found["mean"])["average_precision"] == 1
    score = found["last value"].score
    assert score[0] == 0  # nothing came before
    assert sorted(np.argsort(-score)[:2].tolist()) == [150, 151]
    assert score[150] == pytest.approx(abs(values[150] - values[149]) / values.std(), rel=1e-4)
    assert main_metric(evaluated) == "average_precision"
    assert compute_metrics(found["last value"])["mase"] == 1


def noisy(spread: float, seed: int = 0) -> Evaluated:
    rng = np.random.default_rng(seed)
    label = np.tile([0, 0, 0, 1], 300)
    score = np.clip(0.5 + 0.2 * (label * 2 - 1) + spread * rng.normal(size=1200), 0, 1)
    empty = np.empty((0, 0), np.float32)
    return Evaluated("classify", np.arange(1200) // 4, np.arange(1200), score.astype(np.float32), None, label, empty,
                  ("0", "1"), empty)  # fmt: skip


def test_the_comparison_is_yes_only_beyond_chance() -> None:
    better = compare(noisy(0.1), {"poor": noisy(1.0, 2), "logistic regression": noisy(0.4, 1)}, resamples=50)
    assert better.better is True
    assert better.baseline == "logistic regression"
    assert better.difference is not None
    assert better.difference["low"] > 0
    same = compare(noisy(0.4, 3), {"logistic regression": noisy(0.4, 1)}, resamples=50)
    assert same.better is False
    assert "as good" in same.text
    worse = compare(noisy(0.4), {"logistic regression": noisy(0.1, 1)}, resamples=50, called="GRU")
    assert worse.better is False
    assert "The GRU is worse" in worse.text


def test_the_comparison_without_a_baseline() -> None:
    assert compare(noisy(0.1), {}).better is None


def test_without_labels_the_comparison_says_that_it_is_of_forecasts() -> None:
    labelled = noisy(0.1)
    unlabelled = replace(labelled, task="anomaly", label=np.full(len(labelled), -1))
    found = compare(unlabelled, {})
    assert found.forecasts_only
    assert "no labels, so this says nothing about which faults the alerts find" in found.text
    assert not compare(labelled, {}).forecasts_only


def test_the_comparison_on_one_event_does_not_pretend() -> None:
    evaluated, found = all_of(
        TaskSpec("forecast", ("v",), ("v",)), history(lengths=[2], seed=0, values=np.array([1.0, 3.0]))
    )
    assert len(evaluated) == 1
    comparison = compare(replace(evaluated, prediction=evaluated.truth), found)
    assert (comparison.better, comparison.answer) == (None, "Unclear")
    assert "nan" not in comparison.text
    assert "too few events" in comparison.text


def test_the_comparison_on_forecasts_takes_the_lower_error() -> None:
    evaluated, found = all_of(TaskSpec("forecast", ("load",), ("load",)), daily(6))
    comparison = compare(replace(evaluated, prediction=evaluated.truth + 5), found, resamples=50)
    assert (comparison.metric, comparison.baseline, comparison.better) == ("mase", "linear autoregression", False)
    assert comparison.difference is not None
    assert comparison.difference["value"] < comparison.difference["high"] < 0
    right = replace(evaluated, prediction=evaluated.truth)
    assert compare(right, {"mean": found["mean"]}, resamples=20).better is True
