"""Thresholds against a search over every possible one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from test_measures import DAY, judged

from lstmstream.errors import CannotServe
from lstmstream.train.measure.metrics import Judged, alerts, measure
from lstmstream.train.measure.threshold import Rule, check, choose


def random_part(seed: int, count: int = 400, steps: int = 50) -> Judged:
    rng = np.random.default_rng(seed)
    score = (rng.integers(0, steps, count) / steps).astype(np.float32) ** 3  # many ties, no short decimals
    label = (rng.random(count) < 0.02 + 0.9 * score).astype(np.int64)
    return judged(score, label, timestamp=np.linspace(0, 10 * DAY, count).astype(np.int64))


def every(part: Judged) -> list[float]:
    return [*np.unique(part.score).tolist(), 2.0]


@pytest.mark.parametrize("seed", range(5))
def test_f1_is_the_best_there_is(seed: int) -> None:
    part = random_part(seed)
    threshold, said = choose(part, Rule("f1"))
    assert threshold is not None
    best = max(measure(part, cut).get("f1", 0) for cut in every(part))
    assert measure(part, threshold)["f1"] == pytest.approx(best)
    assert "the highest F1" in said
    hits = int(part.label[alerts(part, threshold)].sum())
    assert f"finds {hits} of {part.label.sum()} positives" in said


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [0.1, 1, 3.3, 20, 1000])
def test_an_alert_budget_is_kept_and_used(seed: int, budget: float) -> None:
    part = random_part(seed)
    threshold, said = choose(part, Rule("alerts_per_day", budget))
    assert threshold is not None
    raised = alerts(part, threshold).sum()
    assert raised <= budget * 10
    affordable = [alerts(part, cut).sum() for cut in every(part) if alerts(part, cut).sum() <= budget * 10]
    assert raised == max(affordable)
    assert f"at most {budget:g} alerts a day" in said


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("missed", "alert"), [(100, 2), (1, 1), (3, 2), (1, 50)])
def test_costs_are_least(seed: int, missed: float, alert: float) -> None:
    part = random_part(seed)

    def cost(cut: float) -> float:
        raised = alerts(part, cut)
        return missed * int((part.label[~raised] == 1).sum()) + alert * int(raised.sum())

    threshold, _ = choose(part, Rule("cost", missed=missed, alert=alert))
    assert threshold is not None
    assert cost(threshold) == min(map(cost, every(part)))
    if alert > missed:
        assert not alerts(part, threshold).any()


def test_equal_f1_takes_the_fewest_alerts() -> None:
    part = judged([0.9, 0.8, 0.7, 0.6, 0.5], [1, 1, 0, 0, 1])  # 0.9: 2/4; 0.8: 4/5; 0.5: 6/8
    assert choose(part, Rule("f1"))[0] == 0.8
    part = judged([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 1])  # 0.9: 2/4; 0.7: 4/6; 0.1: 6/7
    assert choose(part, Rule("f1"))[0] == 0.1
    part = judged([0.9, 0.8, 0.7, 0.6], [1, 0, 0, 1])  # 0.9: 2/3; 0.6: 4/6
    assert choose(part, Rule("f1"))[0] == 0.9


def test_ties_at_the_budget_are_left_out_together() -> None:
    part = judged([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 0], timestamp=[0, 0, 0, DAY])
    assert choose(part, Rule("alerts_per_day", 2))[0] == 0.9
    assert choose(part, Rule("alerts_per_day", 3))[0] == 0.5
    tied = judged([0.5, 0.5], [1, 0], timestamp=[0, DAY])
    threshold, _ = choose(tied, Rule("alerts_per_day", 1))
    assert threshold is not None
    assert not alerts(tied, threshold).any()


@pytest.mark.parametrize("seed", range(3))
def test_a_threshold_gives_its_float32_back_from_the_card(seed: int) -> None:
    part = random_part(seed, steps=3000)
    for rule in (Rule("f1"), Rule("alerts_per_day", 3), Rule("cost", missed=10, alert=1)):
        threshold, _ = choose(part, rule)
        again = json.loads(json.dumps(threshold))
        assert np.float32(again) in part.score
        assert (part.score >= np.float32(again)).sum() == alerts(part, again).sum()
        assert len(repr(threshold)) <= 15  # the shortest text, not the float32 written out as a double


def test_given_and_no_thresholds() -> None:
    part = random_part(0)
    assert choose(part, Rule("value", 0.25))[0] == 0.25
    assert choose(part, Rule("none")) == (None, "No threshold was asked for; nothing alerts.")
    assert choose(judged([1.0], task="forecast"), Rule("f1"))[0] is None


def test_more_than_two_classes_alert_on_any_but_the_first() -> None:
    part = judged([0.1, 0.8, 0.9], [0, 1, 2], names=("usual", "b", "c"), prediction=np.eye(3))
    threshold, said = choose(part, Rule("f1"))
    assert threshold == 0.8
    assert said.endswith("finds 2 of 2 positives (any class but 'usual').")


@pytest.mark.parametrize(
    ("part", "rule", "said"),
    [
        (judged([0.1, 0.2], [0, 0]), Rule("f1"), "none of the 2 labelled events of the validation part is positive"),
        (judged([0.1, 0.2], [0, -1]), Rule("cost", missed=1, alert=1), "none of the 1 labelled events"),
        (judged([0.1, 0.2], [1, 1]), Rule("f1"), "all 2 labelled events of the validation part are positive"),
        (judged([0.1, 0.2], task="anomaly"), Rule("f1"), "needs labels, and the validation part has none"),
        (judged([]), Rule("f1"), "the validation part is empty"),
        (judged([0.1, 0.2], timestamp=[7, 7]), Rule("alerts_per_day", 5), "the same time"),
        (replace(judged([0.1, 0.2]), timed=False), Rule("alerts_per_day", 5), "the same time or none"),
    ],
)
def test_what_cannot_be_chosen_is_said(part: Judged, rule: Rule, said: str) -> None:
    with pytest.raises(CannotServe, match=said):
        check(part, rule)
    with pytest.raises(CannotServe, match=said):
        choose(part, rule)
