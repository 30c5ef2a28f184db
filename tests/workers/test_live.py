"""The live figures of several workers are those that one daemon with all of their events would have."""

from __future__ import annotations

import json

from lstmstream.serve.live_figures import MAX_ALERTS, MAX_REASONS
from lstmstream.workers.live import WorkerView, merge
from tests.serve.live_world import REFERENCE, LiveWorld, amounts


def worlds(count: int) -> list[LiveWorld]:
    made = []
    for _ in range(count):
        world = LiveWorld(reference=REFERENCE)
        world.load()
        world.health.set_phase("running")
        world.snapshot()
        world.now_s += 1
        made.append(world)
    return made


def view(number: int, world: LiveWorld | None, stage: str | None = None) -> WorkerView:
    snapshot = None if world is None else json.loads(json.dumps(world.snapshot()))
    label = f"worker {number}" if stage is None else f"stage {stage}, worker {number}"
    return WorkerView(number, label, stage, f"http://127.0.0.1:{number}", 0, snapshot, "it is starting")


def test_two_workers_are_as_one_daemon() -> None:
    first, second, whole = worlds(3)
    for share, world in enumerate((first, second)):
        for one in (world, whole):
            one.process(*amounts([1] * (3 + share)), b"no json", age_s=0.004 + share)
            one.process(b'{"amount":99,"note":"n"}', key=b"k%d" % share)
    first.gauges([4, 5])
    second.gauges([1])
    merged = merge([view(0, first), view(1, second)], show_keys=True, wall_s=whole.wall_s)
    expected = whole.snapshot()
    for name in (
        "time",
        "name",
        "phase",
        "ready",
        "reasons",
        "model",
        "events_per_s",
        "totals",
        "latency",
        "batch_events",
    ):
        assert merged[name] == expected[name], name
    assert merged["batches_per_s"] == 4
    assert merged["scores"] == expected["scores"]
    assert sorted(alert["key"] for alert in merged["alerts"]) == sorted(alert["key"] for alert in expected["alerts"])
    assert merged["dead_letters"]["decode"]["count"] == 2
    assert merged["lag"] == {"total": 10, "count": 3, "partitions": [[0, 4, 7], [1, 5, 7]]}, "0 moves between them"
    assert merged["state"] == {"keys": 22, "bytes": 4_096}
    assert set(expected) | {"workers"} == set(merged)


def test_lists_are_bounded_and_newest_first() -> None:
    made = worlds(3)
    for late, world in enumerate(made):
        world.now_s += late
        world.process(*[b'{"amount":99}'] * MAX_ALERTS, *[b"no json"] * 9, key=b"k%d" % late)
    merged = merge([view(number, world) for number, world in enumerate(made)], show_keys=True)
    assert {alert["key"] for alert in merged["alerts"]} == {"k2"}
    assert len(merged["alerts"]) == MAX_ALERTS
    assert len(merged["dead_letters"]["decode"]["reasons"]) == MAX_REASONS


def test_the_parent_leaves_keys_out_where_others_can_reach_it() -> None:
    (world,) = worlds(1)
    world.process(b'{"amount":99,"note":"canary"}', key=b"canary")
    assert "canary" in json.dumps(merge([view(0, world)], show_keys=True))
    assert "canary" not in json.dumps(merge([view(0, world)], show_keys=False))


def test_restores_are_done_when_the_slowest_is() -> None:
    first, second = worlds(2)
    for world, left in ((first, 100), (second, 1_000)):
        world.gauges([0], restoring=1_000)
        world.snapshot()
        world.gauges([0], restoring=left)
    merged = merge([view(0, first), view(1, second)], show_keys=True)
    assert merged["restore"] == {"records_remaining": 1_100, "progress": 0.0}


def test_while_none_answers() -> None:
    merged = merge([view(0, None), view(1, None)], show_keys=True)
    assert (merged["ready"], merged["phase"], merged["model"]) == (False, "absent", None)
    assert merged["reasons"] == ["worker 0: it is starting", "worker 1: it is starting"]
    assert merged["lag"] == {"total": None, "count": 0, "partitions": []}
    assert json.loads(json.dumps(merged, allow_nan=False)) == merged
    (world,) = worlds(1)
    half = merge([view(0, world), view(1, None)], show_keys=True)
    assert (half["ready"], half["phase"], half["name"]) == (False, "absent, running", "payments")


def test_each_stage_has_partitions_of_its_own() -> None:
    first, second = worlds(2)
    first.gauges([4])
    second.gauges([1])
    second.health.block("broker", "the broker cannot be reached")
    merged = merge([view(0, first, "cards"), view(1, second, "shops")], show_keys=True)
    assert merged["lag"] == {"total": 5, "count": 2, "partitions": [["cards 0", 4, 7], ["shops 0", 1, 7]]}
    assert [one["stage"] for one in merged["workers"]] == ["cards", "shops"]
    assert merged["reasons"] == ["stage shops, worker 1: the broker cannot be reached"]
