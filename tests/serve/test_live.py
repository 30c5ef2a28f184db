"""The live figures: what a snapshot says of what the loop did, with a clock that only the test moves."""

from __future__ import annotations

import json

import pytest

from lstmstream.serve.live import MAX_ALERT_BYTES, MAX_FIELDS, reference_scores
from lstmstream.serve.live_figures import MAX_ALERTS, MAX_PARTITIONS, MAX_REASONS, MAX_TEXT, quantile
from tests.serve.helpers import NumpyStep
from tests.serve.live_world import REFERENCE, LiveWorld, amounts


@pytest.fixture
def world() -> LiveWorld:
    world = LiveWorld()
    world.load()
    return world


def test_before_the_model_is_loaded() -> None:
    world = LiveWorld()
    world.health.block("model", "the model is not loaded yet")
    snapshot = world.snapshot()
    assert (snapshot["phase"], snapshot["ready"], snapshot["model"]) == ("starting", False, None)
    assert snapshot["reasons"] == ["the model is not loaded yet"]
    assert snapshot["events_per_s"] == 0
    assert snapshot["lag"] == {"total": 0, "count": 0, "partitions": []}
    assert json.loads(json.dumps(snapshot, allow_nan=False)) == snapshot


def test_rates_are_of_the_last_second_and_totals_of_all(world: LiveWorld) -> None:
    world.snapshot()
    world.now_s += 1
    world.process(*amounts([-9] * 4))
    assert world.snapshot()["events_per_s"] == 4
    world.now_s += 2
    world.process(*amounts([-9] * 2))
    snapshot = world.snapshot()
    assert snapshot["events_per_s"] == 1
    assert snapshot["totals"] == {"events": 6, "predictions": 6, "alerts": 0, "dead_letters": 0}
    assert snapshot["batch_events"] == 3
    assert snapshot["batches_per_s"] == pytest.approx(2 / 3, rel=1e-3)
    assert snapshot["model"]["name"] == "numpy"
    world.now_s += 1
    assert world.snapshot()["events_per_s"] == 0


def test_latency_is_of_the_last_ten_seconds(world: LiveWorld) -> None:
    world.snapshot()
    for _ in range(99):
        world.process(*amounts([1]), age_s=0.004)
    world.process(*amounts([1]), age_s=40.0)
    world.now_s += 1
    latency = world.snapshot()["latency"]
    assert latency["buckets"] == [[0.0025, 0.005, 99], [30.0, 60.0, 1]]
    assert 0.0025 < latency["p50_s"] < 0.005
    assert latency["p99_s"] == 0.005
    for _ in range(12):
        world.now_s += 1
        latency = world.snapshot()["latency"]
    assert latency == {"p50_s": None, "p99_s": None, "buckets": []}


def test_a_quantile_is_interpolated() -> None:
    assert quantile([], 0.5) is None
    assert quantile([(0.0, 1.0, 4)], 0.5) == 0.5
    assert quantile([(0.0, 1.0, 1), (1.0, 3.0, 3)], 0.5) == pytest.approx(1.667, abs=1e-3)
    assert quantile([(86_400.0, None, 1)], 0.99) == 86_400.0


def test_stages_are_shares_of_the_time(world: LiveWorld) -> None:
    world.snapshot()
    with world.timer("decode"):
        world.now_s += 1
    with world.timer("commit"):
        world.now_s += 3
    world.process(*amounts([1]))
    stages = world.snapshot()["stages"]
    assert (stages["decode"], stages["commit"], stages["step"]) == (0.25, 0.75, 0)


def test_cpu_and_memory(world: LiveWorld) -> None:
    world.snapshot()
    world.now_s += 2
    world.cpu_s += 1
    snapshot = world.snapshot()
    assert snapshot["cpu_cores"] == 0.5
    assert snapshot["memory_bytes"] > 1_000_000


def test_lag_and_state(world: LiveWorld) -> None:
    world.gauges([5, None, 0])
    snapshot = world.snapshot()
    assert snapshot["lag"] == {"total": 5, "count": 3, "partitions": [[0, 5, 7], [1, None, 7], [2, 0, 7]]}
    assert snapshot["state"] == {"keys": 11, "bytes": 2_048}
    world.gauges([None])
    assert world.snapshot()["lag"]["total"] is None, "not known is not 0"


def test_of_many_partitions_those_that_lag_most(world: LiveWorld) -> None:
    world.gauges(list(range(1_000)))
    lag = world.snapshot()["lag"]
    assert (lag["total"], lag["count"]) == (sum(range(1_000)), 1_000)
    assert [number for number, _, _ in lag["partitions"]] == list(range(1_000 - MAX_PARTITIONS, 1_000))


def test_a_restore_has_progress_until_it_is_done(world: LiveWorld) -> None:
    found = []
    for left in (100, 400, 100, 0, 50):
        world.gauges([0], restoring=left)
        found.append(world.snapshot()["restore"])
    assert [one["records_remaining"] for one in found] == [100, 400, 100, 0, 50]
    assert [one["progress"] for one in found] == [0, 0, 0.75, None, 0]


def test_the_last_alerts_newest_first_with_the_fields_of_their_event(world: LiveWorld) -> None:
    world.process(b'{"amount":9,"note":"first"}', key=b"a")
    world.now_s += 1
    world.process(b'{"amount":12345678901,"note":{"deep":[1]}}', b'{"amount":-99999999999}', key=b"b")
    alerts = world.snapshot()["alerts"]
    assert [alert["key"] for alert in alerts] == ["b", "a"]
    assert alerts[0]["event"] == {"amount": "12345678901", "note": '{"deep":[1]}'}, "no digit is lost in JavaScript"
    assert alerts[1] | {"score": 0} == {
        "at_s": 1_000_100.0,
        "score": 0,
        "steps": 1,
        "timestamp": "1970-01-12T13:48:19.996Z",
        "partition": 0,
        "offset": 0,
        "key": "a",
        "event": {"amount": "9", "note": "first"},
    }


def test_alerts_are_few_and_small_whatever_comes(world: LiveWorld) -> None:
    note = b"x" * (MAX_TEXT * 3)
    world.process(*[b'{"amount":99,"note":"%b"}' % note] * (MAX_ALERTS * 3), key=b"K" * 5_000)
    world.process(b'{"amount":99,"note":"%b"}' % (b"x" * MAX_ALERT_BYTES))
    alerts = world.snapshot()["alerts"]
    assert len(alerts) == MAX_ALERTS
    assert set(alerts[0]) == {"at_s", "score", "steps"}, "too large to keep"
    assert len(alerts[1]["key"]) == len(alerts[1]["event"]["note"]) == MAX_TEXT + 1
    assert len(json.dumps(alerts)) < 20 * (MAX_FIELDS + 2) * (MAX_TEXT + 100)


def test_without_keys_alerts_have_neither_key_nor_fields() -> None:
    world = LiveWorld(show_keys=False)
    world.load()
    world.process(b'{"amount":99,"note":"canary"}', key=b"canary")
    assert "canary" not in json.dumps(world.snapshot())
    assert set(world.snapshot()["alerts"][0]) == {"at_s", "score", "steps", "timestamp", "partition", "offset"}


def test_dead_letters_by_stage_with_their_last_reasons(world: LiveWorld) -> None:
    world.process(b'{"amount":"a lot"}', b"no json", b'{"amount":1}')
    world.now_s += 1
    world.process(*[b'{"amount":true}'] * 100)
    letters = world.snapshot()["dead_letters"]
    assert {stage: one["count"] for stage, one in letters.items()} == {"decode": 1, "validate": 101}
    (reason,) = letters["decode"]["reasons"]
    assert (reason["partition"], reason["offset"], reason["at_s"]) == (0, 1, 1_000_100.0)
    assert [one["offset"] for one in letters["validate"]["reasons"]] == [102, 101, 100][:MAX_REASONS]
    assert "field 'amount'" in letters["validate"]["reasons"][0]["message"]
    assert world.snapshot()["totals"]["dead_letters"] == 102


def test_scores_of_the_last_minutes_beside_the_reference() -> None:
    world = LiveWorld(reference=REFERENCE)
    world.load()
    world.process(*amounts([1]))
    first = world.snapshot()["scores"]
    assert first == {"edges": [0.0, 5.0, 10.0, 100.0], "counts": [1, 0, 0], "reference": [90, 9, 1]}
    world.process(*amounts([9_000]))
    assert world.snapshot()["scores"]["counts"] == [1, 0, 1], "an outlier counts in the outermost bin"
    for _ in range(62):
        world.now_s += 10
        world.snapshot()
    assert world.snapshot()["scores"]["counts"] == [0, 0, 0]


@pytest.mark.parametrize(
    "score",
    [
        None,
        [],
        {"edges": [1.0], "counts": [5]},
        {"edges": [0, 1], "counts": [1, 2]},
        {"edges": [1, 0], "counts": [1]},
        {"edges": ["<b>", 1], "counts": [1]},
        {"edges": [0, float("nan")], "counts": [1]},
        {"edges": list(range(10_000)), "counts": [0] * 9_999},
    ],
)
def test_a_reference_that_cannot_be_used_is_none(score: object) -> None:
    world = LiveWorld(reference={"score": score})
    world.load()
    world.process(*amounts([1]))
    assert world.snapshot()["scores"] is None


def test_a_card_without_reference() -> None:
    edges, counts = reference_scores(NumpyStep().card)
    assert (len(edges), counts) == (0, [])
