"""The demo's own bookkeeping: it must notice what it promises to notice."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lstmstream.demo.load import Town
from lstmstream.demo.scenario import FORECAST, FRAUD, SENSORS
from lstmstream.demo.sensors import Plant
from lstmstream.demo.simulate import Transactions, transactions
from lstmstream.demo.tally import Tally, average_precision


@pytest.fixture
def some() -> Transactions:
    return transactions(customers=50, terminals=60, days=1, seed=2)[:20]


def answered(some: Transactions) -> Tally:
    tally = Tally(FRAUD)
    tally.record_sent(some)
    for number in some.transaction_id.tolist():
        tally.record_prediction(number, "c000001", 0.5, 1, alert=number == 3)
    tally.record_alert(3)
    return tally


def test_a_complete_stream_has_no_faults(some: Transactions) -> None:
    tally = answered(some)
    assert tally.faults() == []
    assert (tally.sent, tally.predictions, tally.in_flight) == (20, 20, 0)
    assert tally.snapshot(0.0).keys == 1


def test_a_missing_answer_is_a_fault(some: Transactions) -> None:
    tally = Tally(FRAUD)
    tally.record_sent(some)
    tally.record_prediction(0, "c000001", 0.5, 1, alert=False)
    assert "19 events have no prediction" in tally.faults()[0]


def test_a_second_answer_is_a_fault(some: Transactions) -> None:
    tally = answered(some)
    tally.record_prediction(3, "c000001", 0.5, 1, alert=True)
    assert "duplicates, or predictions" in tally.faults()[0]
    assert tally.predictions == 20


def test_a_dead_letter_beside_a_prediction_is_a_fault(some: Transactions) -> None:
    tally = answered(some)
    tally.record_dead_letter(5)
    assert "duplicates, or predictions" in tally.faults()[0]


@pytest.mark.parametrize("alerts", [[], [3, 3], [4], [3, 4]])
def test_alerts_must_be_those_of_the_predictions(some: Transactions, alerts: list[int]) -> None:
    tally = Tally(FRAUD)
    for number in alerts[:1]:
        tally.record_alert(number)  # may be read before its prediction
    tally.record_sent(some)
    for number in some.transaction_id.tolist():
        tally.record_prediction(number, "c000001", 0.5, 1, alert=number == 3)
    for number in alerts[1:]:
        tally.record_alert(number)
    assert "alerts topic" in tally.faults()[0]


def test_quality_counts_alerts_by_the_kind_of_fraud() -> None:
    history = transactions(customers=300, terminals=400, days=20, seed=2)
    tally = Tally(FRAUD)
    tally.record_sent(history)
    for number, kind in zip(history.transaction_id.tolist(), history.kind.tolist(), strict=True):
        tally.record_prediction(number, "c000001", 0.9 if kind in {1, 3} else 0.1, 1, alert=kind in {1, 3})
    quality = tally.quality()
    assert quality.precision == 1
    assert quality.alerted == (0, quality.counts[1], 0, quality.counts[3])
    assert quality.recall == pytest.approx(1 - quality.counts[2] / sum(quality.counts[1:]))


def test_an_incident_of_several_events_counts_once() -> None:
    readings = Plant(machines=3, seed=1).hour(0)[:12]
    kind, incidents = np.zeros(12, np.uint8), np.full(12, -1)
    kind[2:5], incidents[2:5] = 1, 70
    kind[6:8], incidents[6:8] = 1, 71
    tally = Tally(SENSORS)
    tally.record_sent(replace(readings, kind=kind, incidents=incidents))
    for number in range(12):
        tally.record_prediction(number, "m001", 0.5, 1, alert=number in {3, 4, 9})
    quality = tally.quality()
    assert (quality.alerts, quality.precision) == (3, pytest.approx(2 / 3))
    assert (quality.counts[1], quality.alerted[1], quality.recall) == (2, 1, 0.5)
    assert math.isnan(quality.average_precision)
    for number in (3, 4, 9):
        tally.record_alert(number)
    assert tally.faults() == []


def test_forecasts_are_compared_with_the_next_value_of_their_key() -> None:
    events = Town(homes=2, seed=1).day(0)[:6]
    tally = Tally(FORECAST)
    assert tally.errors().count == 0
    tally.record_sent(replace(events, kw=np.array([1.0, 10.0, 2.0, 10.0, 4.0, 10.0])))
    for number, forecast in enumerate([1.5, 10.0, 3.0, 11.0, 0.0, 0.0]):
        tally.record_prediction(number, f"h{number % 2}", 0.5, 1, alert=False, forecast=forecast)
    errors = tally.snapshot(0.0).errors
    assert errors.count == 4  # 1.5 for 2, 3 for 4; 10 for 10, 11 for 10
    assert errors.model == pytest.approx((0.5 + 1 + 0 + 1) / 4)
    assert errors.last_value == pytest.approx((1 + 2 + 0 + 0) / 4)


def test_average_precision_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    assert average_precision(scores, np.array([True, False, True, False])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.ones(4, np.float32), np.array([True, False, False, False])) == pytest.approx(0.25)
    assert math.isnan(average_precision(scores, np.zeros(4, np.bool_)))
