"""The baselines beside plain loops over the events that share nothing with them, and what they may not see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lstmstream.evaluation.alignment import TaskSpec, align_with_truth, evaluated_rows
from lstmstream.evaluation.baselines import compute_baselines
from lstmstream.evaluation.baselines.anomalies import CENTROID_RATE, EWMA_ALPHA, kmeans
from lstmstream.evaluation.baselines.classes import logistic, stratified
from lstmstream.evaluation.baselines.forecasts import MAX_LAGS
from lstmstream.evaluation.baselines.inputs import HALF_LIVES_EVENTS, RegressionInputs
from lstmstream.evaluation.comparison import compare
from lstmstream.evaluation.metrics import Evaluated, compute_metrics
from tests.random_events import history


def results(
    spec: TaskSpec, events: Any, training: Any, mask: Any = None, dense: Any = None
) -> tuple[Evaluated, dict[str, Evaluated], Any]:
    """The evaluated events of the mask, their baselines and their rows."""
    count = len(events.timestamp)
    score = np.zeros(count, np.float32)
    prediction = None if spec.task == "classify" else np.zeros((count, len(spec.names)), np.float32)
    evaluated = align_with_truth(spec, events, score, prediction, mask)
    rows = evaluated_rows(spec, events, score, mask)
    return evaluated, compute_baselines(spec, events, evaluated, rows, training=training, dense=dense).evaluated, rows


def key_of(events: Any) -> Any:
    return np.repeat(np.arange(len(events.keys)), np.diff(events.starts))


def last_values(events: Any, row: int, count: int) -> list[float]:
    """The key's values at `row` and before it, newest first: the last known one for a missing one."""
    filled: list[float] = []
    for one in range(events.starts[key_of(events)[row]], row + 1):
        value = float(events.x[one, 0])
        filled.append(filled[-1] if np.isnan(value) and filled else value)
    known = [value for value in filled if not np.isnan(value)]
    newest = filled[::-1][:count]
    return [
        known[0] if known and np.isnan(value) else value for value in newest + [known[0] if known else np.nan] * count
    ][:count]


@pytest.mark.parametrize("horizon", [1, 3])
def test_the_autoregression_is_the_least_squares_of_the_plain_design_matrix(horizon: int) -> None:
    events = history(keys=40, longest=60, seed=3, numbers=1, missing=0.1)
    spec = TaskSpec("forecast", ("a",), ("a",), horizon)
    count = len(events.timestamp)
    training = np.flatnonzero(np.arange(count) - np.repeat(events.starts[:-1], np.diff(events.starts)) < 40)
    _, found, rows = results(spec, events, training)
    lags = min(MAX_LAGS, len(training) // 10)
    key, in_training = key_of(events), np.isin(np.arange(count), training)
    design = np.array([[1.0, *last_values(events, row, lags)] for row in range(count)])
    said = found["linear autoregression"].prediction
    assert said is not None
    for ahead in range(1, horizon + 1):
        learned = [
            row
            for row in training
            if row + ahead < count
            and key[row + ahead] == key[row]
            and in_training[row + ahead]
            and np.isfinite(events.x[row + ahead, 0])
            and np.isfinite(design[row]).all()
        ]
        truth = events.x[np.array(learned) + ahead, 0].astype(np.float64)
        fit = np.linalg.lstsq(design[learned], truth, rcond=None)[0]
        known = np.isfinite(design[rows]).all(axis=1)
        assert known.mean() > 0.8
        np.testing.assert_allclose(said[known, ahead - 1], (design[rows] @ fit)[known], rtol=1e-4, atol=1e-3)
    mean = np.nanmean(events.x[training, 0].astype(np.float64))
    np.testing.assert_allclose(said[~known], mean, rtol=1e-5)


def test_two_lags_are_known_by_the_autoregression_and_the_verdict_says_so() -> None:
    """A network at a relative error of about one half is not worth it where two lags by least squares do better."""
    rng = np.random.default_rng(0)
    values = np.zeros((30, 400))
    for step in range(2, 400):
        values[:, step] = 1.8 * values[:, step - 1] - 0.9 * values[:, step - 2] + rng.normal(size=30)
    events = history(lengths=[400] * 30, seed=0, values=values.ravel(), gap_s=1.0)
    training = np.flatnonzero(np.tile(np.arange(400) < 300, 30))
    mask = np.ones(12_000, np.bool_)
    mask[training] = False
    evaluated, found, _ = results(TaskSpec("forecast", ("v",), ("v",)), events, training, mask)
    best = compute_metrics(found["linear autoregression"])["mase"]
    noise = np.abs(evaluated.truth[:, 0] - evaluated.naive[:, 0]).mean()
    assert best == pytest.approx(np.sqrt(2 / np.pi) / noise, rel=0.05)  # that of the noise, which nobody can forecast
    said = evaluated.truth + rng.normal(size=evaluated.truth.shape) * 1.3  # a network that does not find all of it
    model = replace(evaluated, prediction=said.astype(np.float32))
    assert best < compute_metrics(model)["mase"] < 0.7
    comparison = compare(model, found)
    assert (comparison.answer, comparison.baseline) == ("No", "linear autoregression")


def test_the_mean_of_a_key_is_that_of_its_values_so_far() -> None:
    events = history(keys=30, longest=20, seed=5, numbers=2, missing=0.3)
    training = np.arange(100)
    spec = TaskSpec("forecast", ("a", "b"), ("b", "a"), 2)
    _, found, rows = results(spec, events, training)
    said = found["mean of the key"].prediction
    assert said is not None
    for index, row in enumerate(rows):
        own = events.x[events.starts[key_of(events)[row]] : row + 1].astype(np.float64)
        for place, column in enumerate([1, 0]):
            known = own[np.isfinite(own[:, column]), column]
            mean = known.mean() if len(known) else np.nanmean(events.x[training, column].astype(np.float64))
            np.testing.assert_allclose(said[index, [place, place + 2]], mean, rtol=1e-4, atol=1e-4)


def test_inputs_of_the_past_are_decayed_counts_and_means_of_earlier_events() -> None:
    events = history(keys=12, longest=70, seed=7, numbers=2, codes=(3,), missing=0)
    count = len(events.timestamp)
    dense = lambda rows: events.x[rows] / 100  # noqa: E731
    inputs = RegressionInputs(events, np.arange(count), dense, with_past=True)
    (part, ours), *others = list(inputs._raw(np.arange(count)))
    assert (part, others) == (slice(0, count), [])
    gaps = events.elapsed[events.elapsed > 0].astype(np.float64)
    half_lives: list[float] = []
    for quantile in (0.1, 0.5, 0.9):
        wanted = max(1.0, 5 * float(np.quantile(gaps, quantile)))
        if not half_lives or wanted > 1.5 * half_lives[-1]:
            half_lives.append(wanted)
    frequent = sorted(range(4), key=lambda code: (-(events.codes[:, 0] == code).sum(), code))
    key, x = key_of(events), events.x.astype(np.float64) / 100
    for row in range(count):
        past = np.arange(events.starts[key[row]], row)
        seconds = (events.timestamp[row] - events.timestamp[past]) / 1000
        plain = [*x[row], *(events.codes[row, 0] == np.array(frequent)).astype(float), np.log1p(len(past))]
        plain += [np.log1p((0.5 ** (seconds / half_life)).sum()) for half_life in half_lives]
        plain += list(x[past].mean(axis=0)) if len(past) else [0, 0]
        for half_life in HALF_LIVES_EVENTS:
            weights = 0.5 ** ((row - past) / half_life)
            total = weights.sum() if len(past) else 1.0
            plain += list(weights @ x[past] / total)
            plain.append(weights[events.codes[past, 0] == events.codes[row, 0]].sum() / total)
        np.testing.assert_allclose(ours[row], plain, atol=1e-4, err_msg=f"row {row}")


def test_blocks_of_keys_give_what_all_keys_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    events = history(keys=50, longest=30, seed=9, numbers=2, codes=(3,), missing=0.2)
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, len(events.timestamp))
    training = np.arange(0, len(label), 2)
    cases = [TaskSpec("classify", ("a", "b"), classes=("0", "1")), TaskSpec("anomaly", ("a", "b"), ("a", "b"))]
    whole = [
        results(spec, replace(events, label=label), training, dense=lambda rows: np.nan_to_num(events.x[rows]))[1]
        for spec in cases
    ]
    monkeypatch.setattr("lstmstream.evaluation.baselines.past.BLOCK_ROWS", 40)
    for spec, expected in zip(cases, whole, strict=True):
        _, found, _ = results(
            spec, replace(events, label=label), training, dense=lambda rows: np.nan_to_num(events.x[rows])
        )
        for name, one in found.items():
            np.testing.assert_allclose(one.score, expected[name].score, atol=1e-5, err_msg=name)


def test_a_label_that_follows_the_past_is_known_with_the_past_only() -> None:
    """Risk grows with the load that a key has accumulated; one event alone says little."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(200, 60))
    load = np.zeros((200, 60))
    for step in range(1, 60):
        load[:, step] = 0.9 * load[:, step - 1] + values[:, step]
    label = (rng.random((200, 60)) < 1 / (1 + np.exp(3 - 1.5 * load))).astype(np.int64)
    events = history(lengths=[60] * 200, seed=0, values=values.ravel(), gap_s=60.0, label=label.ravel())
    training = np.arange(9000)
    mask = np.arange(12_000) >= 9000
    spec = TaskSpec("classify", ("v",), classes=("0", "1"))
    _, found, _ = results(spec, events, training, mask, dense=lambda rows: events.x[rows])
    alone, past = (
        compute_metrics(found[name])["average_precision"]
        for name in ("logistic regression", "logistic regression with the past")
    )
    assert past > alone + 0.15


def gradient_descent(inputs: Any, positive: Any, weights: Any) -> Any:
    """The minimum of the penalised log loss by many small steps."""
    design = np.concatenate([np.ones((len(inputs), 1)), inputs], axis=1)
    penalty = np.array([0.0, *([1.0] * inputs.shape[1])])
    fit = np.zeros(design.shape[1])
    for _ in range(40_000):
        probability = 1 / (1 + np.exp(-design @ fit))
        fit -= 2 / weights.sum() * (design.T @ (weights * (probability - positive)) + penalty * fit)
    return fit


def test_logistic_regression_is_the_minimum_that_gradient_descent_finds() -> None:
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(300, 3))
    positive = (rng.random(300) < 1 / (1 + np.exp(-inputs @ [1.0, -2.0, 0.5] + 1))).astype(np.float64)
    weights = rng.integers(1, 5, 300).astype(np.float64)
    np.testing.assert_allclose(
        logistic(inputs, positive, weights), gradient_descent(inputs, positive, weights), atol=1e-5
    )
    repeated = np.repeat(np.arange(300), weights.astype(np.int64))
    np.testing.assert_allclose(
        logistic(inputs, positive, weights), logistic(inputs[repeated], positive[repeated]), atol=1e-6
    )


def test_a_sample_keeps_rare_classes_and_the_frequencies(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    label = (rng.random(20_000) < 0.005).astype(np.int64)
    kept = stratified(label, 1000)
    assert len(kept) == 1000
    assert label[kept].sum() == label.sum()
    assert (np.diff(kept) > 0).all()
    values = rng.normal(size=20_000) + 2 * label
    events = history(lengths=[20] * 1000, seed=0, values=values, label=label)
    spec = TaskSpec("classify", ("v",), classes=("0", "1"))
    monkeypatch.setattr("lstmstream.evaluation.baselines.compute.MAX_ROWS", 1000)
    score = np.zeros(20_000, np.float32)
    evaluated = align_with_truth(spec, events, score, None)
    rows = np.arange(20_000)
    found = compute_baselines(spec, events, evaluated, rows, training=rows, dense=lambda rows: events.x[rows])
    assert found.notes[0] == "The logistic regression learned from 1,000 of 20,000 events."
    said = found.evaluated["logistic regression"].score
    assert said.mean() == pytest.approx(label.mean(), rel=0.4)  # not that of the sample, 0.13


def test_the_ewma_deviation_is_that_of_the_recursion() -> None:
    events = history(keys=20, longest=80, seed=4, numbers=2, missing=0.2)
    training = np.arange(0, len(events.timestamp), 3)
    _, found, _ = results(TaskSpec("anomaly", ("a", "b"), ("a", "b")), events, training)
    values = events.x.astype(np.float64)
    overall, start = np.nanmean(values[training], axis=0), np.nanvar(values[training], axis=0)
    for key in range(20):
        mean: list[float | None] = [None, None]
        variance = list(start)
        for row in range(events.starts[key], events.starts[key + 1]):
            deviations = []
            for column in range(2):
                value, last = values[row, column], mean[column]
                if np.isnan(value):
                    continue
                if last is None:
                    mean[column] = value
                    continue
                error = value - last
                deviations.append(error / np.sqrt(max(variance[column], 1e-4 * start[column])))
                mean[column] = last + EWMA_ALPHA * error
                variance[column] = (1 - EWMA_ALPHA) * (variance[column] + EWMA_ALPHA * error**2)
            expected = np.sqrt(np.mean(np.square(deviations))) if deviations else 0
            one = found["EWMA deviation"]
            assert one.score[row] == pytest.approx(expected, rel=1e-4, abs=1e-6)
            forecast = [overall[column] if mean[column] is None else mean[column] for column in range(2)]
            assert one.prediction is not None
            np.testing.assert_allclose(one.prediction[row], forecast, rtol=1e-4, atol=1e-3)


def test_centroids_follow_each_key_after_its_events() -> None:
    events = history(keys=15, longest=50, seed=6, numbers=3, missing=0.2)
    training = np.arange(0, len(events.timestamp), 2)
    _, found, _ = results(TaskSpec("anomaly", ("a", "b", "c"), ("c", "a")), events, training)
    values = events.x[:, [2, 0]].astype(np.float64)
    values = (values - np.nanmean(values[training], axis=0)) / np.nanstd(values[training], axis=0)
    start = kmeans(np.where(np.isnan(values[training]), 0, values[training]))
    for key in range(15):
        centroids = start.copy()
        for row in range(events.starts[key], events.starts[key + 1]):
            known = np.isfinite(values[row])
            squares = [((values[row] - centroid)[known] ** 2).sum() / max(1, known.sum()) for centroid in centroids]
            nearest = int(np.argmin(squares))
            assert found["nearest centroid"].score[row] == pytest.approx(np.sqrt(squares[nearest]), rel=1e-3, abs=1e-4)
            centroids[nearest, known] += CENTROID_RATE * (values[row] - centroids[nearest])[known]


def test_centroids_of_a_long_history_move_after_every_few_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lstmstream.evaluation.baselines.anomalies._MAX_ROUNDS", 10)
    events = history(lengths=[35, 12, 1], seed=6, numbers=2, missing=0.2)
    training = np.arange(48)
    _, found, _ = results(TaskSpec("anomaly", ("a", "b"), ("a", "b")), events, training)
    values = events.x.astype(np.float64)
    values = (values - np.nanmean(values, axis=0)) / np.nanstd(values, axis=0)
    start = kmeans(np.where(np.isnan(values), 0, values))
    for key in range(3):
        centroids = start.copy()
        for first in range(events.starts[key], events.starts[key + 1], 4):  # 35 events in at most 10 rounds
            met: dict[tuple[int, int], list[float]] = {}
            for row in range(first, min(first + 4, events.starts[key + 1])):
                known = np.isfinite(values[row])
                squares = [((values[row] - one)[known] ** 2).sum() / max(1, known.sum()) for one in centroids]
                nearest = int(np.argmin(squares))
                assert found["nearest centroid"].score[row] == pytest.approx(np.sqrt(min(squares)), rel=1e-3, abs=1e-4)
                for column in np.flatnonzero(known).tolist():
                    met.setdefault((nearest, column), []).append(values[row, column])
            for place, those in met.items():
                share = 1 - (1 - CENTROID_RATE) ** len(those)
                centroids[place] += share * (np.mean(those) - centroids[place])


def test_centroids_are_the_means_of_what_is_nearest_to_them() -> None:
    rng = np.random.default_rng(8)
    values = np.concatenate([rng.normal(centre, 0.05, (100, 2)) for centre in range(8)])
    found = kmeans(values)
    member = np.linalg.norm(values[:, None] - found, axis=2).argmin(axis=1)
    for one in range(8):
        np.testing.assert_allclose(found[one], values[member == one].mean(axis=0), atol=1e-5)
    assert kmeans(np.ones((50, 2))).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("task", ["classify", "forecast", "anomaly"])
def test_no_baseline_sees_what_comes_later_or_other_keys(task: str) -> None:
    """The last third of the events of each key, and a whole key, change: what was said before stays."""
    events = history(keys=30, longest=60, seed=10, numbers=2, codes=(4,), missing=0.1, gap_s=21_600.0)
    key, count = key_of(events), len(events.timestamp)
    events = replace(events, label=np.random.default_rng(0).integers(0, 2, count))
    place = np.arange(count) - np.repeat(events.starts[:-1], np.diff(events.starts))
    late = place >= 2 * np.diff(events.starts)[key] // 3
    late[key == 29] = True
    training = np.flatnonzero(~late & (key < 20))
    spec = TaskSpec(task, ("a", "b"), ("a", "b") if task != "classify" else (), 2 if task == "forecast" else 1,
                    ("0", "1") if task == "classify" else ())  # fmt: skip

    def said(one: Any) -> dict[str, Evaluated]:
        mask = np.ones(count, np.bool_)
        return results(spec, one, training, mask, dense=lambda rows: np.nan_to_num(one.x[rows] / 100))[1]

    rng = np.random.default_rng(1)
    changed = replace(events, x=events.x.copy(), codes=events.codes.copy(), timestamp=events.timestamp.copy())
    changed.x[late] = rng.normal(scale=300, size=changed.x[late].shape)
    changed.codes[late] = rng.integers(0, 5, changed.codes[late].shape)
    plain, other = said(events), said(changed)
    rows = results(spec, events, training)[2]
    assert plain.keys() == other.keys()
    assert len(plain) >= 3
    # a forecast's rows depend on which values follow, so what is compared are rows that both have
    other_rows = results(spec, changed, training)[2]
    kept = np.intersect1d(rows[~late[rows]], other_rows)
    assert len(kept) > 100
    ours, theirs = np.searchsorted(rows, kept), np.searchsorted(other_rows, kept)
    for name, one in plain.items():
        np.testing.assert_allclose(one.score[ours], other[name].score[theirs], rtol=1e-5, atol=1e-6, err_msg=name)
        first, second = one.prediction, other[name].prediction
        if first is not None and second is not None:
            np.testing.assert_allclose(first[ours], second[theirs], rtol=1e-4, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("task", ["classify", "forecast", "anomaly"])
@pytest.mark.parametrize("lengths", [[1], [2], [1] * 30, [3, 1, 40]])
@pytest.mark.parametrize("values", ["random", "missing", "constant"])
def test_little_data_give_finite_answers(task: str, lengths: list[int], values: str) -> None:
    count = sum(lengths)
    given = {"random": None, "missing": np.full((count, 2), np.nan), "constant": np.full((count, 2), 7.0)}[values]
    label = np.arange(count) % 2 if count > 2 else np.zeros(count, np.int64)
    events = history(lengths=lengths, seed=0, numbers=2, codes=(3,), values=given, label=label)
    spec = TaskSpec(task, ("a", "b"), ("a", "b") if task != "classify" else (),
                    classes=("0", "1") if task == "classify" else ())  # fmt: skip
    for training in (np.arange(count), np.arange(1), np.arange(0)):
        evaluated, found, _ = results(spec, events, training, dense=lambda rows: np.nan_to_num(events.x[rows]))
        for name, one in found.items():
            assert np.isfinite(one.score).all(), name
            assert len(one) == len(evaluated)
            if one.prediction is not None and name != "last value" and "ago" not in name:
                assert np.isfinite(one.prediction).all(), name


def test_a_season_by_the_clock_takes_the_value_at_that_time() -> None:
    """Events every 6 hours with gaps and jitter; the value belongs to the time of the day."""
    rng = np.random.default_rng(12)
    hours = np.array([6 * step for step in range(400) if rng.random() > 0.1])
    events = history(lengths=[len(hours)], seed=0, values=(hours % 24) * 10.0, gap_s=1.0)
    events = replace(
        events, timestamp=1_770_000_000_000 + hours * 3_600_000 + rng.integers(-60_000, 60_000, len(hours))
    )
    spec = TaskSpec("forecast", ("v",), ("v",))
    _, found, rows = results(spec, events, np.arange(200))
    said = found["a day ago"].prediction
    assert said is not None
    for row, forecast in zip(rows.tolist(), said[:, 0].tolist(), strict=True):
        wanted = hours[row] + 6 - 24  # the next event is expected a median gap later
        expected = events.x[np.flatnonzero(hours == wanted)[0], 0] if wanted in hours else events.x[row, 0]
        assert forecast == expected
