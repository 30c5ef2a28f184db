"""Metrics against sums written out by hand, and against plain definitions on random events with ties."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from lstmstream.evaluation.intervals import bootstrap_intervals, paired_difference, resampling_units
from lstmstream.evaluation.metrics import Evaluated, alerts, compute_metrics, metric_function
from tests.evaluated import DAY, evaluated


def forecast(prediction: Any, truth: Any, naive: Any, names: tuple[str, ...] = ("a t+1",), **more: Any) -> Evaluated:
    score = np.array(prediction, np.float32).reshape(len(prediction), -1)[:, 0]
    return evaluated(score, task="forecast", names=names, prediction=prediction, truth=truth, naive=naive, **more)


def test_a_column_that_never_changes_leaves_the_others_their_error() -> None:
    values = compute_metrics(forecast([[1, 5], [2, 5]], [[2, 5], [2, 5]], [[3, 5], [3, 5]], names=("a t+1", "b t+1")))
    assert values["mase[a t+1]"] == values["mase"] == pytest.approx(1 / 2)
    assert "mase[b t+1]" not in values or np.isnan(values["mase[b t+1]"])


def test_binary_by_hand() -> None:
    values = compute_metrics(evaluated([0.9, 0.8, 0.8, 0.2], [1, 0, 1, 0]), 0.8, k=(1, 2))
    # one step at 0.9 (1 of 1), one at 0.8 (2 of 3): 1/2 · 1 + 1/2 · 2/3
    assert values["average_precision"] == pytest.approx(5 / 6)
    assert values["roc_auc"] == pytest.approx((2 + 1.5) / 4)  # 0.9 beats both; 0.8 beats one and ties one
    assert values["precision_at_1"] == 1
    assert values["precision_at_2"] == pytest.approx(1.5 / 2)  # of the two at 0.8, one is a positive: half of one
    assert "precision_at_100" not in values
    assert (values["precision"], values["recall"]) == (pytest.approx(2 / 3), 1)
    assert values["f1"] == pytest.approx(0.8)
    assert values["alert_share"] == 0.75
    assert values["alerts_per_day"] == pytest.approx(3 / 3)
    assert values["brier"] == pytest.approx((0.01 + 0.64 + 0.04 + 0.04) / 4, rel=1e-6)
    assert values["log_loss"] == pytest.approx(-np.log([0.9, 0.2, 0.8, 0.8]).mean(), rel=1e-6)
    # bins 13 (0.9), 12 (0.8, 0.8), 3 (0.2): gaps 0.1, |1.6 - 1|, 0.2
    assert values["calibration_error"] == pytest.approx((0.1 + 0.6 + 0.2) / 4, rel=1e-6)


def test_the_threshold_is_compared_in_float32() -> None:
    assert float(np.float32(0.7)) < 0.7  # so in float64 the score that is the threshold would not alert
    assert alerts(evaluated([0.1, 0.3, 0.7]), 0.7).tolist() == [False, False, True]


@pytest.mark.parametrize("seed", range(5))
def test_binary_against_definitions_with_many_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = (rng.integers(0, 12, 300) / 12).astype(np.float32)
    label = (rng.random(300) < 0.1 + 0.5 * score).astype(np.int64)
    values = compute_metrics(evaluated(score, label))
    assert values["average_precision"] == pytest.approx(scorers_average_precision(label, score), abs=1e-12)
    pairs = [(a > b) + (a == b) / 2 for a in score[label == 1] for b in score[label == 0]]
    assert values["roc_auc"] == pytest.approx(np.mean(pairs), abs=1e-12)


def scorers_average_precision(label: np.ndarray, score: np.ndarray) -> float:
    """Σ over distinct scores, from the highest, of precision times what it adds to recall."""
    total, recall = 0.0, 0.0
    for cut in sorted(set(score.tolist()), reverse=True):
        said = score >= cut
        now = label[said].sum() / label.sum()
        total += (now - recall) * label[said].mean()
        recall = now
    return total


def test_unknown_labels_do_not_count_but_their_alerts_do() -> None:
    part = evaluated([0.9, 0.95, 0.1], [1, -1, 0])
    values = compute_metrics(part, 0.5)
    assert values["precision"] == 1
    assert values["average_precision"] == 1
    assert values["brier"] == pytest.approx(0.01)
    assert values["alert_share"] == pytest.approx(2 / 3)


def test_what_the_rows_do_not_determine_is_left_out() -> None:
    one_class = compute_metrics(evaluated([0.2, 0.4], [0, 0]), 0.9)
    assert not {"average_precision", "roc_auc", "recall", "precision", "f1"} & set(one_class)
    assert one_class["alert_share"] == 0
    assert compute_metrics(evaluated([0.2, 0.4], timestamp=[5, 5]), 0.3) == {"alert_share": 0.5}
    logits = compute_metrics(evaluated([2.0, -1.0], [1, 0]))
    assert not {"brier", "log_loss", "calibration_error"} & set(logits)
    assert logits["roc_auc"] == 1


def test_classes_by_hand() -> None:
    prediction = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.7, 0.1]]
    part = evaluated([0.3, 0.9, 0.5, 0.8], [0, 1, 1, 1], names=("a", "b", "c"), prediction=prediction)
    values = compute_metrics(part)
    assert values["accuracy"] == 0.75
    assert values["recall[a]"] == 1
    assert values["recall[b]"] == pytest.approx(2 / 3)
    assert "recall[c]" not in values  # none came
    assert values["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)  # a: 1 of 2 said; b: 2 of 2 said, of 3; c never
    assert values["log_loss"] == pytest.approx(-np.log([0.7, 0.6, 0.3, 0.7]).mean(), rel=1e-6)
    # sure of 0.7 (right), 0.6 (right), 0.5 (wrong), 0.7 (right): bins 10, 9 (or 8), 7
    assert values["calibration_error"] == pytest.approx((0.6 + 0.4 + 0.5) / 4, rel=1e-5)
    at = compute_metrics(part, 0.6)
    assert (at["precision"], at["recall"]) == (1, pytest.approx(2 / 3))


def test_forecast_by_hand() -> None:
    part = forecast([[1], [2], [3], [9]], truth=[[2], [2], [6], [np.nan]], naive=[[0], [np.nan], [5], [1]])
    values = compute_metrics(part)
    assert values["mae"] == pytest.approx((1 + 0 + 3) / 3)
    assert values["rmse"] == pytest.approx(np.sqrt(10 / 3))
    assert values["mase"] == pytest.approx((1 + 3) / (2 + 1))  # the second row has no naive forecast
    assert set(values) == {"mae", "rmse", "mase"}


def test_columns_of_a_forecast_and_their_means() -> None:
    part = forecast([[1, 10], [2, 20]], [[1, 12], [3, 22]], [[0, 11], [2, 12]], names=("a t+1", "b t+1"))
    values = compute_metrics(part)
    assert values["mae[a t+1]"] == 0.5
    assert values["mae[b t+1]"] == 2
    assert values["mae"] == 1.25
    assert values["mase[b t+1]"] == pytest.approx(4 / 11)
    assert values["mase"] == pytest.approx((1 / 2 + 4 / 11) / 2)


def test_anomalies_without_labels() -> None:
    part = evaluated(np.arange(1000) / 1000, task="anomaly", timestamp=np.arange(1000) * DAY / 999)
    values = compute_metrics(part, 0.9)
    assert values == {
        "score_p50": pytest.approx(0.499),
        "score_p90": pytest.approx(0.899),
        "score_p99": pytest.approx(0.989),
        "score_p999": pytest.approx(0.998),
        "alert_share": pytest.approx(0.1),
        "alerts_per_day": pytest.approx(100),
    }


def test_an_anomaly_score_is_no_probability() -> None:
    values = compute_metrics(evaluated([0.9, 0.1], [1, 0], task="anomaly", names=("a t+1",)))
    assert values["average_precision"] == 1
    assert "brier" not in values


@pytest.mark.parametrize("kind", ["binary", "classes", "forecast", "anomaly"])
def test_a_weight_is_a_repetition(kind: str) -> None:
    """The bootstrap stands on it: weight 3 gives what the row three times gives."""
    rng = np.random.default_rng(4)
    count = 60
    times = rng.integers(0, 3, count)
    prediction = rng.random((count, 3)).astype(np.float32)
    fields: dict[str, Any] = {
        "binary": {"label": rng.integers(-1, 2, count)},
        "classes": {"label": rng.integers(-1, 3, count), "names": ("a", "b", "c"), "prediction": prediction},
        "forecast": {
            "task": "forecast", "names": ("a", "b", "c"), "prediction": prediction,
            "truth": np.where(rng.random((count, 3)) < 0.2, np.nan, rng.random((count, 3))),
            "naive": np.where(rng.random((count, 3)) < 0.2, np.nan, rng.random((count, 3))),
        },
        "anomaly": {"task": "anomaly", "label": rng.integers(0, 2, count)},
    }[kind]  # fmt: skip
    score, stamp = rng.integers(0, 9, count) / 9, np.linspace(0, 30 * DAY, count).astype(np.int64)
    weighted = metric_function(evaluated(score, timestamp=stamp, **fields), 0.5, k=(10,))(times.astype(np.float64))
    twice = np.repeat(np.arange(count), times)
    repeated = {name: v[twice] if isinstance(v, np.ndarray) else v for name, v in fields.items()}
    again = compute_metrics(evaluated(score[twice], timestamp=stamp[twice], **repeated), 0.5, k=(10,))
    span = (stamp[twice].max() - stamp[twice].min()) / (30 * DAY)
    for name, value in again.items():
        expected = value * span if name == "alerts_per_day" else value  # the span is the part's, not the resample's
        assert weighted[name] == pytest.approx(expected, rel=1e-9), name
    assert set(again) == {name for name, value in weighted.items() if np.isfinite(value)}


def test_keys_and_blocks_of_time_are_resampled_where_there_are_enough() -> None:
    part = evaluated(np.zeros(40), sequence=np.repeat(np.arange(20), 2) * 7)
    assert [one[1:] for one in resampling_units(part)] == [(20, "keys"), (30, "blocks of time")]
    assert [one.name for one in resampling_units(replace(part, timed=False))] == ["keys"]
    few = evaluated(np.zeros(90), sequence=np.tile(np.arange(3), 30), timestamp=np.arange(90)[::-1])
    (blocks,) = resampling_units(few)
    assert blocks[1:] == (30, "blocks of time")
    assert blocks.of_row.tolist() == [i // 3 for i in range(90)][::-1]
    assert [one.name for one in resampling_units(replace(few, timed=False))] == ["blocks of time"]


def test_intervals_hold_the_truth_where_all_keys_share_their_shocks() -> None:
    """40 keys once a day for 60 days: on a bad day all are wrong together. Keys alone hold the truth 2 times."""
    inside, better = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        day = np.tile(np.arange(60), 40)
        error = np.abs(rng.normal(size=60)[day] + 0.1 * rng.normal(size=2400))
        zeros, when = np.zeros(2400), {"sequence": np.repeat(np.arange(40), 60), "timestamp": day * DAY}
        part = forecast(error, zeros, np.ones(2400), **when)
        found = bootstrap_intervals(part, resamples=60)["mae"]
        truth = np.sqrt(2 / np.pi) * np.hypot(1, 0.1)  # the mean of |N(0, 1 + 0.01)|
        inside.append(found["low"] <= truth <= found["high"])
        other = forecast(np.abs(rng.normal(size=60)[day]) * np.hypot(1, 0.1), zeros, np.ones(2400), **when)
        difference = paired_difference(part, other, "mae", resamples=60)
        better.append(difference["low"] > 0 or difference["high"] < 0)  # they are equally good
    assert np.mean(inside) >= 0.85
    assert np.mean(better) <= 0.15


def test_intervals_hold_the_truth_about_95_times_in_100() -> None:
    inside = []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        error = np.repeat(rng.normal(size=60), 5)  # events of one key are alike
        part = forecast(error, np.zeros(300), np.ones(300), sequence=np.repeat(np.arange(60), 5))
        interval = bootstrap_intervals(part, resamples=100, seed=seed)["mae"]
        inside.append(interval["low"] <= np.sqrt(2 / np.pi) <= interval["high"])
    assert 0.87 <= np.mean(inside) <= 0.99


def test_intervals_repeat_and_hold_their_value() -> None:
    rng = np.random.default_rng(1)
    label = (rng.random(500) < 0.2).astype(int)
    part = evaluated(rng.random(500) / 2 + label * rng.random(500) / 2, label, sequence=np.arange(500) // 5)
    found = bootstrap_intervals(part, 0.4, resamples=50, seed=3)
    assert found == bootstrap_intervals(part, 0.4, resamples=50, seed=3)
    assert found != bootstrap_intervals(part, 0.4, resamples=50, seed=4)
    assert {name: one["value"] for name, one in found.items()} == compute_metrics(part, 0.4)
    assert all(one["low"] <= one["value"] <= one["high"] for one in found.values())
    assert found["average_precision"]["low"] < found["average_precision"]["high"]


@pytest.mark.parametrize(
    ("metric", "rows"), [("precision", 62), ("recall", 62), ("average_precision", 62), ("precision_at_10", 10)]
)
def test_a_share_that_never_fails_is_not_certain(metric: str, rows: int) -> None:
    """62 alerts in as many keys, all right: with the lower end as the truth, that happens 1 time in 40."""
    label = np.repeat([1, 0], [62, 300])
    part = evaluated(np.where(label > 0, 0.9, 0.1), label)
    found = bootstrap_intervals(part, 0.5, resamples=50, k=(10,))[metric]
    assert found["value"] == found["high"] == 1
    chance = np.prod(np.full(rows, found["low"]))
    assert chance == pytest.approx(0.025)
    none = bootstrap_intervals(evaluated(np.where(label > 0, 0.1, 0.9), label), 0.5, resamples=50, k=(10,))
    if metric in {"precision", "recall"}:
        counted = 300 if metric == "precision" else 62
        assert none[metric]["value"] == none[metric]["low"] == 0
        assert (1 - none[metric]["high"]) ** counted == pytest.approx(0.025)


def test_events_of_one_key_count_once_for_a_share_that_never_fails() -> None:
    label = np.repeat([1, 0], [50, 150])
    part = evaluated(np.where(label > 0, 0.9, 0.1), label, sequence=np.arange(200) // 5)
    assert bootstrap_intervals(part, 0.5, resamples=50)["recall"]["low"] == pytest.approx(0.025 ** (1 / 10))


def test_the_recall_of_a_class_that_never_fails_is_not_certain() -> None:
    prediction = np.eye(3, dtype=np.float32)[np.tile([0, 1, 2], 30)]
    part = evaluated(prediction[:, 1], np.tile([0, 1, 2], 30), prediction=prediction, names=("a", "b", "c"))
    found = bootstrap_intervals(part, resamples=50)
    assert found["recall[b]"]["low"] == pytest.approx(0.025 ** (1 / 30))
    assert found["accuracy"]["low"] == pytest.approx(0.025 ** (1 / 90))


def test_one_event_has_no_interval() -> None:
    assert np.isnan(bootstrap_intervals(evaluated([0.5], [1]))["brier"]["low"])


def test_a_difference_is_paired_and_has_a_sign() -> None:
    rng = np.random.default_rng(2)
    truth = np.repeat(rng.normal(size=200) * 100, 2)  # hard and easy keys, alike for both models
    keys, naive = np.repeat(np.arange(200), 2), np.zeros(400)
    worse = forecast(truth + 1 + np.abs(truth), truth, naive, sequence=keys)
    better = forecast(truth + 0.5 + np.abs(truth), truth, naive, sequence=keys)
    gain = paired_difference(better, worse, "mae", resamples=50)
    assert gain["value"] == pytest.approx(0.5, abs=1e-4)
    assert gain["low"] == pytest.approx(0.5, abs=1e-3)  # each model's own interval is a hundred times wider
    assert gain["high"] == pytest.approx(0.5, abs=1e-3)
    assert paired_difference(worse, better, "mae", resamples=20)["high"] < 0
    good, bad = evaluated([0.9, 0.1] * 30, [1, 0] * 30), evaluated([0.1, 0.9] * 30, [1, 0] * 30)
    assert paired_difference(good, bad, "roc_auc", resamples=20)["low"] == 1


def test_alert_counts_fall_as_the_threshold_rises() -> None:
    part = evaluated(np.random.default_rng(0).random(100), np.arange(100) % 2)
    shares = [compute_metrics(part, cut)["alert_share"] for cut in (0.0, 0.3, 0.6, 1.1)]
    assert shares[0] == 1
    assert shares[-1] == 0
    assert all(a > b for a, b in pairwise(shares))
