"""The simulator: the same seed gives the same days, in order, with habits and three kinds of fraud."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import orjson
import pytest

from lstmstream.demo.simulate import (
    DAY_MS,
    KINDS,
    LARGE,
    LEAKED,
    START_MS,
    TERMINAL,
    Transactions,
    World,
    to_json_lines,
    transactions,
)


@pytest.fixture(scope="module")
def history() -> Transactions:
    return transactions(customers=500, terminals=600, days=40, seed=7)


def equal(one: Transactions, other: Transactions) -> bool:
    return all(
        np.array_equal(getattr(one, column.name), getattr(other, column.name), equal_nan=column.name == "distance_km")
        for column in fields(Transactions)
    )


def test_the_same_seed_gives_the_same_bytes(history: Transactions) -> None:
    again = transactions(customers=500, terminals=600, days=40, seed=7)
    assert equal(history, again)
    assert to_json_lines(history[:2000]) == to_json_lines(again[:2000])
    assert not equal(history[:100], transactions(customers=500, terminals=600, days=1, seed=8)[:100])


def test_a_day_does_not_depend_on_what_was_asked_for_before() -> None:
    world, other = World(customers=50, terminals=60, seed=3), World(customers=50, terminals=60, seed=3)
    world.day(0)
    world.day(11)
    assert equal(world.day(5), other.day(5))


def test_time_and_numbers_ascend_across_days(history: Transactions) -> None:
    assert (np.diff(history.time_ms) >= 0).all()
    assert np.array_equal(history.transaction_id, np.arange(len(history)))
    assert history.time_ms[0] >= START_MS
    assert history.time_ms[-1] < START_MS + 40 * DAY_MS
    assert (np.bincount((history.time_ms - START_MS) // DAY_MS) > 0).all()


def test_fraud_is_rare_and_of_three_kinds(history: Transactions) -> None:
    share = np.bincount(history.kind, minlength=len(KINDS)) / len(history)
    assert 0.004 < history.fraud.mean() < 0.02
    assert (share[[LARGE, TERMINAL, LEAKED]] > 0.0005).all()


def test_each_kind_of_fraud_does_what_it_says(history: Transactions) -> None:
    genuine = history[~history.fraud]
    usual = np.bincount(genuine.customer, genuine.amount) / np.bincount(genuine.customer)
    large, tampered, stolen = (history[history.kind == kind] for kind in (LARGE, TERMINAL, LEAKED))
    assert (large.amount > 3 * usual[large.customer]).mean() > 0.9
    assert len(np.unique(tampered.terminal)) < 60
    assert len(np.unique(stolen.customer)) < 60
    assert np.median(stolen.amount / usual[stolen.customer]) > 2


def test_a_terminal_is_compromised_for_two_weeks_and_a_card_for_one() -> None:
    world = World(customers=3000, terminals=5000, seed=5)
    for struck, days in ((world.taken_over, 14), (world.leaked, 7)):
        fresh = struck(20) & ~struck(19)
        assert fresh.any()
        assert struck(20 + days - 1)[fresh].all()
        assert not struck(20 + days)[fresh].all()


def test_customers_keep_their_habits(history: Transactions) -> None:
    genuine = history[~history.fraud]
    amount = np.log(genuine.amount)
    mean = np.bincount(genuine.customer, amount) / np.bincount(genuine.customer)
    assert np.var(amount - mean[genuine.customer]) < 0.6 * np.var(amount)
    pairs = np.unique(np.stack([genuine.customer, genuine.terminal]), axis=1)
    assert pairs.shape[1] < 0.4 * len(genuine)
    for customer in np.flatnonzero(np.bincount(genuine.customer, minlength=500) > 100)[:20]:
        visits = np.sort(np.bincount(genuine.terminal[genuine.customer == customer]))[::-1]
        assert visits[:12].sum() > 0.8 * visits.sum()


def test_events_hold_no_label(history: Transactions) -> None:
    events = [orjson.loads(line) for line in to_json_lines(history[:500]).splitlines()]
    assert {name for event in events for name in event} == {
        "transaction_id", "customer_id", "terminal_id", "time", "amount", "distance_km", "merchant", "entry",
    }  # fmt: skip
    assert [event["customer_id"].encode() for event in events] == history[:500].keys()
    assert [event["distance_km"] is None for event in events] == [event["entry"] == "online" for event in events]


def test_event_times_are_those_of_the_columns(history: Transactions) -> None:
    event = orjson.loads(history[:1].values()[0])
    assert np.datetime64(event["time"].removesuffix("Z"), "ms").astype(np.int64) == history.time_ms[0]
    assert event["time"].endswith("Z")
    assert event["amount"] == history.amount[0]


@pytest.mark.parametrize("wrong", [{"customers": 0}, {"terminals": 3}, {"days": 0}])
def test_an_empty_world_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        transactions(**wrong)
