"""Thresholds against a search over every possible one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lstmstream.errors import CannotServe
from lstmstream.evaluation.metrics import Evaluated, alerts, compute_metrics
from lstmstream.evaluation.thresholds import ThresholdRule, check_rule, choose_threshold
from tests.evaluated import DAY, evaluated


def random_part(seed: int, count: int = 400, steps: int = 50) -> Evaluated:
    rng = np.random.default_rng(seed)
    score = (rng.integers(0, steps, count) / steps).astype(np.float32) ** 3  # many ties, no short decimals
    label = (rng.random(count) < 0.02 + 0.9 * score).astype(np.int64)
    return evaluated(score, label, timestamp=np.linspace(0, 10 * DAY, count).astype(np.int64))


def every(part: Evaluated) -> list[float]:
    return [*np.unique(part.score).tolist(), 2.0]


@pytest.mark.parametrize("seed", range(5))
def test_f1_is_the_highest_possible(seed: int) -> None:
    part = random_part(seed)
    threshold, message = choose_threshold(part, ThresholdRule("f1"))
    assert threshold is not None
    best = max(compute_metrics(part, cut).get("f1", 0) for cut in every(part))
    assert compute_metrics(part, threshold)["f1"] == pytest.approx(best)
    assert "the highest F1" in message
    hits = int(part.label[alerts(part, threshold)].sum())
    assert f"finds {hits} of {part.label.sum()} positives" in message


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [0.1, 1, 3.3, 20, 1000])
def test_an_alert_budget_is_kept_and_used(seed: int, budget: float) -> None:
    part = random_part(seed)
    threshold, message = choose_threshold(part, ThresholdRule("alerts_per_day", budget))
    assert threshold is not None
    raised = alerts(part, threshold).sum()
    assert raised <= budget * 10
    affordable = [alerts(part, cut).sum() for cut in every(part) if alerts(part, cut).sum() <= budget * 10]
    assert raised == max(affordable)
    assert f"at most {budget:g} alerts per day" in message


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("missed", "alert"), [(100, 2), (1, 1), (3, 2), (1, 50)])
def test_costs_are_least(seed: int, missed: float, alert: float) -> None:
    part = random_part(seed)

    def cost(cut: float) -> float:
        raised = alerts(part, cut)
        return missed * int((part.label[~raised] == 1).sum()) + alert * int(raised.sum())

    threshold, _ = choose_threshold(part, ThresholdRule("cost", missed=missed, alert=alert))
    assert threshold is not None
    assert cost(threshold) == min(map(cost, every(part)))
    if alert > missed:
        assert not alerts(part, threshold).any()


def test_equal_f1_takes_the_fewest_alerts() -> None:
    part = evaluated([0.9, 0.8, 0.7, 0.6, 0.5], [1, 1, 0, 0, 1])  # 0.9: 2/4; 0.8: 4/5; 0.5: 6/8
    assert choose_threshold(part, ThresholdRule("f1"))[0] == 0.8
    part = evaluated([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 1])  # 0.9: 2/4; 0.7: 4/6; 0.1: 6/7
    assert choose_threshold(part, ThresholdRule("f1"))[0] == 0.1
    part = evaluated([0.9, 0.8, 0.7, 0.6], [1, 0, 0, 1])  # 0.9: 2/3; 0.6: 4/6
    assert choose_threshold(part, ThresholdRule("f1"))[0] == 0.9


def test_ties_at_the_budget_are_left_out_together() -> None:
    part = evaluated([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 0], timestamp=[0, 0, 0, DAY])
    assert choose_threshold(part, ThresholdRule("alerts_per_day", 2))[0] == 0.9
    assert choose_threshold(part, ThresholdRule("alerts_per_day", 3))[0] == 0.5
    tied = evaluated([0.5, 0.5], [1, 0], timestamp=[0, DAY])
    threshold, _ = choose_threshold(tied, ThresholdRule("alerts_per_day", 1))
    assert threshold is not None
    assert not alerts(tied, threshold).any()


@pytest.mark.parametrize("seed", range(3))
def test_a_threshold_gives_its_float32_back_from_the_card(seed: int) -> None:
    part = random_part(seed, steps=3000)
    for rule in (ThresholdRule("f1"), ThresholdRule("alerts_per_day", 3), ThresholdRule("cost", missed=10, alert=1)):
        threshold, _ = choose_threshold(part, rule)
        again = json.loads(json.dumps(threshold))
        assert np.float32(again) in part.score
        assert (part.score >= np.float32(again)).sum() == alerts(part, again).sum()
        assert len(repr(threshold)) <= 15  # the shortest text, not the float32 written out as a double


def test_given_and_no_thresholds() -> None:
    part = random_part(0)
    assert choose_threshold(part, ThresholdRule("value", 0.25))[0] == 0.25
    assert choose_threshold(part, ThresholdRule("none")) == (None, "No threshold was requested; nothing alerts.")
    assert choose_threshold(evaluated([1.0], task="forecast"), ThresholdRule("f1"))[0] is None


def test_the_default_for_anomalies_is_explained() -> None:
    scores, label = [0.1, 0.2, 0.6, 0.9], [0, 0, 1, 0]
    part = evaluated(scores, label, task="anomaly", timestamp=[0, 0, 0, 2 * DAY])
    assert choose_threshold(part, ThresholdRule("default")) == (
        0.5,
        (
            "Threshold 0.5 is the default for anomalies: scores are scaled so that 1 in 200 events of the validation"
            " split reaches it. On the validation split it gives 2 alerts (1 per day) in 4 events and finds 1 of 1"
            " positives. To choose the number of alerts yourself, set threshold.rule: alerts_per_day, or rule: f1 to"
            " use the labels."
        ),
    )
    _, text = choose_threshold(evaluated(scores, task="anomaly"), ThresholdRule("default"))
    assert text.endswith("set threshold.rule: alerts_per_day.")  # without labels f1 would be refused
    _, text = choose_threshold(part, ThresholdRule("value", 0.25))
    assert text.startswith("Threshold 0.25 was set by threshold.value. On the validation split")


def test_more_than_two_classes_alert_on_any_but_the_first() -> None:
    part = evaluated([0.1, 0.8, 0.9], [0, 1, 2], names=("usual", "b", "c"), prediction=np.eye(3))
    threshold, message = choose_threshold(part, ThresholdRule("f1"))
    assert threshold == 0.8
    assert message.endswith("finds 2 of 2 positives (any class but 'usual').")


@pytest.mark.parametrize(
    ("part", "rule", "message"),
    [
        (
            evaluated([0.1, 0.2], [0, 0]),
            ThresholdRule("f1"),
            "none of the 2 labelled events of the validation split is positive",
        ),
        (evaluated([0.1, 0.2], [0, -1]), ThresholdRule("cost", missed=1, alert=1), "none of the 1 labelled events"),
        (
            evaluated([0.1, 0.2], [1, 1]),
            ThresholdRule("f1"),
            "all 2 labelled events of the validation split are positive",
        ),
        (evaluated([0.1, 0.2], task="anomaly"), ThresholdRule("f1"), "needs labels, but the validation split has none"),
        (evaluated([]), ThresholdRule("f1"), "the validation split is empty"),
        (evaluated([0.1, 0.2], timestamp=[7, 7]), ThresholdRule("alerts_per_day", 5), "or all the same"),
        (replace(evaluated([0.1, 0.2]), timed=False), ThresholdRule("alerts_per_day", 5), "have no timestamps"),
    ],
)
def test_a_rule_that_cannot_choose_is_refused(part: Evaluated, rule: ThresholdRule, message: str) -> None:
    with pytest.raises(CannotServe, match=message):
        check_rule(part, rule)
    with pytest.raises(CannotServe, match=message):
        choose_threshold(part, rule)
