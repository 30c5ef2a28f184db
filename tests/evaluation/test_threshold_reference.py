"""Every rule against plain loops over all thresholds, on what the daemon would live through; no code is shared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest

from lstmstream.evaluation.intervals import alert_rate_intervals, bootstrap_intervals
from lstmstream.evaluation.metrics import Evaluated, compute_metrics
from lstmstream.evaluation.thresholds import ThresholdRule, choose_threshold
from tests.evaluated import DAY, evaluated


@dataclass
class Outcome:
    """What one threshold gives, by counting."""

    alerts: int
    right: int  # alerts at positives
    judged: int  # alerts at events whose label is known
    found: int  # positives (events, or keys) with an alert
    positives: int

    @property
    def f1(self) -> float:
        if not self.right or not self.found:
            return 0.0
        precision, recall = self.right / self.judged, self.found / self.positives
        return 2 * precision * recall / (precision + recall)

    def cost(self, missed: float, alert: float) -> float:
        return missed * (self.positives - self.found) + alert * self.alerts


def outcome(part: Evaluated, threshold: float) -> Outcome:
    """Event by event: the label of an event is its own, or that of its key, which is known at the key's last event."""
    events = list(zip(part.sequence.tolist(), part.score.tolist(), part.label.tolist(), strict=True))
    of_key = {key: label for key, _, label in events if label >= 0}
    alerts = right = judged = 0
    positives, found = set(), set()
    for row, (key, score, label) in enumerate(events):
        known = label if part.per == "event" else of_key.get(key, -1)
        case = row if part.per == "event" else key
        if known > 0:
            positives.add(case)
        if score >= threshold:
            alerts += 1
            right += known > 0
            judged += known >= 0
            if known > 0:
                found.add(case)
    return Outcome(alerts, right, judged, len(found), len(positives))


def all_outcomes(part: Evaluated) -> Iterator[Outcome]:
    for threshold in [*sorted(set(part.score.tolist())), math.inf]:
        yield outcome(part, threshold)


def random_part(seed: int, *, per: str = "event", rare: bool = False) -> Evaluated:
    """40 keys in ten days; a tenth of the labels, or of the keys, is not known; high scores without a positive."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, 40)
    sequence = np.repeat(np.arange(40), lengths)
    count = len(sequence)
    score = (rng.integers(0, 60, count) / 60).astype(np.float32) ** 2
    chance = 0.02 if rare else 0.05 + 0.6 * score
    label = np.where(rng.random(count) < 0.1, -1, rng.random(count) < chance)
    label[np.argmin(score)] = 1
    if per == "sequence":
        ends = np.cumsum(lengths) - 1
        label = np.full(count, -1)
        label[ends] = np.where(rng.random(40) < 0.1, -1, rng.random(40) < 0.3)
        label[ends[:2]] = [0, 1]
    if rare:
        score[np.argsort(-score)[:20]] += np.float32(0.5)
        label[score > 1] = np.minimum(label[score > 1], 0)
    times = rng.permutation(np.linspace(0, 10 * DAY, count).astype(np.int64))
    return replace(evaluated(score, label, sequence=sequence, timestamp=times), per=per)


PARTS = [(seed, per, rare) for seed in range(6) for per in ("event", "sequence") for rare in (False, True)]


@pytest.mark.parametrize(("seed", "per", "rare"), PARTS)
def test_f1_is_the_highest_of_all_thresholds(seed: int, per: str, rare: bool) -> None:
    part = random_part(seed, per=per, rare=rare)
    threshold, _ = choose_threshold(part, ThresholdRule("f1"))
    assert threshold is not None
    assert outcome(part, np.float32(threshold)).f1 == pytest.approx(max(one.f1 for one in all_outcomes(part)))


@pytest.mark.parametrize(("seed", "per", "rare"), PARTS)
@pytest.mark.parametrize(("missed", "alert"), [(100, 1), (5, 1), (3, 2), (1, 1), (1, 3)])
def test_cost_is_the_lowest_of_all_thresholds_and_of_none(
    seed: int, per: str, rare: bool, missed: float, alert: float
) -> None:
    part = random_part(seed, per=per, rare=rare)
    threshold, _ = choose_threshold(part, ThresholdRule("cost", missed=missed, alert=alert))
    assert threshold is not None
    lowest = min(one.cost(missed, alert) for one in all_outcomes(part))
    assert outcome(part, np.float32(threshold)).cost(missed, alert) == lowest


def test_no_alert_where_each_costs_more_than_it_saves() -> None:
    """29 alerts on events that are harmless, at scores above all positives: it is cheapest not to alert."""
    score = [*np.linspace(0.9, 0.99, 29), *np.linspace(0.1, 0.5, 24), *np.linspace(0.51, 0.6, 300)]
    part = evaluated(score, [0] * 29 + [1] * 24 + [0] * 300)
    threshold, message = choose_threshold(part, ThresholdRule("cost", missed=5, alert=1))
    assert threshold is not None
    assert outcome(part, threshold).cost(5, 1) == 120
    assert "gives 0 alerts" in message


@pytest.mark.parametrize("per", ["event", "sequence"])
@pytest.mark.parametrize("share", [1.0, 0.15])
@pytest.mark.parametrize("budget", [0.29, 1, 3.3, 20, 1000])
def test_a_budget_is_that_of_the_whole_stream_and_counts_every_event(per: str, share: float, budget: float) -> None:
    part = replace(random_part(3, per=per), stream_share=share, span_days=100.0)
    threshold, _ = choose_threshold(part, ThresholdRule("alerts_per_day", budget))
    assert threshold is not None
    affordable = [one.alerts for one in all_outcomes(part) if one.alerts / (100 * share) <= budget * (1 + 1e-12)]
    assert outcome(part, np.float32(threshold)).alerts == max(affordable)


@pytest.mark.parametrize(("seed", "per", "rare"), PARTS)
def test_metrics_at_a_threshold_are_those_of_the_events_that_alert(seed: int, per: str, rare: bool) -> None:
    part = replace(random_part(seed, per=per, rare=rare), stream_share=0.25)
    for threshold in (0.05, 0.3, 0.7, 0.95, 9.0):
        found, metrics = outcome(part, np.float32(threshold)), compute_metrics(part, threshold)
        assert metrics["alerts_per_day"] == pytest.approx(found.alerts / 10 / 0.25)
        assert metrics["alert_share"] == pytest.approx(found.alerts / len(part))
        assert metrics["recall"] == pytest.approx(found.found / found.positives)
        assert metrics["f1"] == pytest.approx(found.f1)
        if found.judged:
            assert metrics["precision"] == pytest.approx(found.right / found.judged)


def test_ranking_metrics_of_keys_are_those_of_their_last_events() -> None:
    part = random_part(0, per="sequence")
    last = [row for row, key in enumerate(part.sequence) if row + 1 == len(part) or part.sequence[row + 1] != key]
    known = [(float(part.score[row]), int(part.label[row])) for row in last if part.label[row] >= 0]
    pairs = [(a, b) for a, one in known for b, other in known if one > other]
    expected = sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)
    assert compute_metrics(part)["roc_auc"] == pytest.approx(expected)


def test_the_intervals_of_alerts_per_day_are_those_of_a_resampling_of_keys() -> None:
    """Against the spread of a sum of the keys' alert counts: n draws with replacement have n times their variance."""
    part = replace(random_part(1), stream_share=0.5)
    thresholds = [0.6, 0.3, 0.1]
    intervals = alert_rate_intervals(part, thresholds, resamples=4000)
    for threshold, interval in zip(thresholds, intervals, strict=True):
        by_key = [int((part.score[part.sequence == key] >= np.float32(threshold)).sum()) for key in range(40)]
        assert interval["value"] == pytest.approx(sum(by_key) / 10 / 0.5)
        width = 1.96 * math.sqrt(40 * np.var(by_key)) / 10 / 0.5
        assert (interval["high"] - interval["low"]) / 2 == pytest.approx(width, rel=0.1)
        same = bootstrap_intervals(part, threshold, resamples=4000)["alerts_per_day"]
        assert same == pytest.approx(interval)
    assert all(fewer["high"] < more["high"] for fewer, more in pairwise(intervals))


def test_no_alert_so_far_does_not_mean_none_ever() -> None:
    """The rate at which a Poisson process has no event with 2.5 % probability: exp(-rate * days * share) = 0.025."""
    part = replace(random_part(1), stream_share=0.5)
    (interval,) = alert_rate_intervals(part, [9.0])
    assert (interval["value"], interval["low"]) == (0, 0)
    assert math.exp(-interval["high"] * 10 * 0.5) == pytest.approx(0.025)
    metrics = bootstrap_intervals(part, 9.0)
    assert metrics["alerts_per_day"] == interval
    assert 0 < metrics["alert_share"]["high"] < 0.1
