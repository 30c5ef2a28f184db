"""The policy for alerts: daemons that die, stall and take over in mid-incident publish what one that lives on does."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmstream.errors import CannotServe
from lstmstream.records import HELD_BACK
from lstmstream.serve import alert_policy, state_records
from lstmstream.serve.alert_policy import AlertPolicy, _PartitionPass
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.state_records import FLOOR, STATE_FORMAT
from lstmstream.serve.step import OnnxStep
from lstmstream.verify.run import Verification
from tests.models import poisoned_model
from tests.serve.memory_world import STATES
from tests.verify.world import ALERTS, INPUT, NOW_MS, OUTPUT, VerifyWorld, events, fill

COUNT = 300
POLICY: dict[str, Any] = {
    "cooldown": "10m",
    "hold": True,
    "end_record": True,
    "max_per_hour": 3,
    "mute": ["k6", "no?such*"],
}
REASONS = {"mute", "hold", "max_per_hour"}


class AlertWorld(VerifyWorld):
    """Its daemons share one session of ONNX Runtime."""

    def __init__(self, path: Path, **settings: Any) -> None:
        super().__init__(path, **settings)
        self._step = super().onnx_step()

    def onnx_step(self) -> OnnxStep:
        return self._step


def made(folder: Path, **settings: Any) -> VerifyWorld:
    path = poisoned_model(folder, categories={"channel": ["web", "7"], "shop": 5})
    settings = {"output": {"threshold": 0.6}, "alerts": POLICY, "batch": {"max_events": 10}, **settings}
    world = AlertWorld(path, **settings)
    fill(world, events(COUNT, bad=0.02), partitions=2)
    return world


def step(world: VerifyWorld, daemon: Daemon, rounds: int) -> None:
    for _ in range(rounds):
        world.step(daemon)


def published(world: VerifyWorld, topic: str) -> list[dict[str, Any]]:
    """The records that a reader of committed ones sees, without `source` of the model."""
    found = [record for partition in range(2) for record in world.log(topic, partition) if record.value is not None]
    return [json.loads(record.value or b"") for record in found]


def told(world: VerifyWorld) -> list[tuple[int, bytes | None, bytes | None]]:
    """What is in the topic of the alerts, in its order."""
    return [(p, record.key, record.value) for p in range(2) for record in world.log(ALERTS, p)]


def held_back(world: VerifyWorld) -> Counter[str]:
    return Counter(record["held_back"] for record in published(world, OUTPUT) if "held_back" in record)


def assert_right(done: Verification) -> None:
    assert [str(finding) for finding in done.comparison.findings.kept] == []
    assert done.exit_code == 0


@pytest.fixture
def undisturbed(tmp_path: Path) -> VerifyWorld:
    """Everything answered, by a daemon that has stopped."""
    world = made(tmp_path)
    world.serve()
    return world


def test_alerts_are_held_back_for_each_reason_and_verify_agrees(undisturbed: VerifyWorld) -> None:
    counts = held_back(undisturbed)
    assert set(counts) == REASONS
    assert min(counts.values()) >= 3
    done = undisturbed.verify()
    assert_right(done)
    summary = done.summary()
    high = sum(record["alert"] for record in published(undisturbed, OUTPUT))
    assert summary["alerts"] == high - counts.total()
    assert summary["end_records"] >= 3
    assert summary["summaries"] >= 1
    assert len(undisturbed.log(ALERTS, 0)) + len(undisturbed.log(ALERTS, 1)) == sum(
        summary[name] for name in ("alerts", "end_records", "summaries")
    )


# -- the same through faults


def killed(world: VerifyWorld, daemon: Daemon) -> Daemon:
    world.kill(daemon)
    return world.start(world.onnx_step())


def stopped(world: VerifyWorld, daemon: Daemon) -> Daemon:
    assert world.stop(daemon) == 0
    return world.start(world.onnx_step())


def aborted(world: VerifyWorld, daemon: Daemon) -> Daemon:
    world.faults.append("commit")
    step(world, daemon, 1)
    return daemon


def lost_answer(world: VerifyWorld, daemon: Daemon) -> Daemon:
    """The transaction is committed, and its author is not told."""
    world.faults.append("committed")
    step(world, daemon, 1)
    return daemon


def taken_over(world: VerifyWorld, daemon: Daemon) -> Daemon:
    """One partition, by a second member, which dies; the first one gets it back."""
    second = world.start(world.onnx_step())
    for _ in range(6):
        step(world, daemon, 1)
        step(world, second, 1)
    world.kill(second)
    step(world, daemon, 1)
    return daemon


FAULTS = [killed, stopped, aborted, lost_answer, taken_over]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_change_no_alert(fault: Callable[[VerifyWorld, Daemon], Daemon], tmp_path: Path) -> None:
    undisturbed, world = (
        made(tmp_path, input={"topic": INPUT, "late": "score"}, state={"checkpoint_interval": "5s"}) for _ in range(2)
    )
    undisturbed.serve()
    daemon = world.start(world.onnx_step())
    step(world, daemon, 4)
    while world.unanswered():
        daemon = fault(world, daemon)
        step(world, daemon, 3)
        world.now_s += 1
    world.settle()
    assert world.stop(daemon) == 0
    assert told(world) == told(undisturbed)
    for topic in (OUTPUT, ALERTS):
        assert published(world, topic) == published(undisturbed, topic)
    assert_right(world.verify())


@pytest.mark.parametrize("seed", range(int(os.environ.get("LSTMSTREAM_ALERT_SCHEDULES", "4"))))
def test_any_schedule_gives_the_same_alerts(seed: int, tmp_path: Path) -> None:
    """Members that come, go, fail, die and are dropped, with any checkpoints in between."""
    source = random.Random(seed)
    late = source.choice(["apply", "score", "drop"])
    undisturbed, world = (
        made(tmp_path, input={"topic": INPUT, "late": late}, state={"checkpoint_interval": "5s"}) for _ in range(2)
    )
    undisturbed.serve()
    world.start(world.onnx_step())
    while world.unanswered():
        action = source.choice(["step"] * 8 + ["fault", "fault", "start", "kill", "stop", "expire", "time"])
        if action == "fault":
            world.faults.append(source.choice(["commit", "committed", "sent", "poll"]))
        elif action == "time":
            world.now_s += source.choice([1, 6, 60])
        elif action == "start" and len(world.daemons) < 3:
            world.start(world.onnx_step())
        elif action in ("kill", "stop", "expire") and len(world.daemons) > 1:
            daemon = source.choice(world.daemons)
            {"kill": world.kill, "stop": world.stop, "expire": world.expire}[action](daemon)
        for daemon in list(world.daemons):
            step(world, daemon, source.randrange(3))
    world.settle()
    assert told(world) == told(undisturbed)
    for topic in (OUTPUT, ALERTS):
        assert published(world, topic) == published(undisturbed, topic)
    assert_right(world.verify())


def test_a_changed_policy_counts_from_where_it_was_changed(tmp_path: Path) -> None:
    """Also where the daemon dies before it has written a state: the replay goes by the settings of the time."""
    world = made(tmp_path, state={"checkpoint_interval": "1h"})
    for threshold in (0.6, 0.4, 0.8):
        changes = {"output": {**world.settings["output"], "threshold": threshold}}
        daemon = world.start(world.onnx_step(), **changes)
        step(world, daemon, 8)
        world.kill(daemon)
    daemon = world.start(world.onnx_step(), **changes)
    world.settle()
    assert world.stop(daemon) == 0
    assert_right(world.verify(config=world.config(**changes)))
    with pytest.raises(CannotServe, match="another policy for alerts"):
        world.verify()


def test_a_policy_that_was_away_begins_anew(tmp_path: Path) -> None:
    """What it remembered of a time before is void, also where the key's record still has it."""
    path = poisoned_model(tmp_path, categories={"channel": ["web", "7"], "shop": 5})
    world = AlertWorld(path, output={"threshold": -1e9}, alerts=POLICY)
    lives = ((b"rare", POLICY), (b"other", {}), (b"other", POLICY), (b"rare", POLICY), (b"rare", POLICY))
    for number, (key, alerts) in enumerate(lives):
        world.broker.append(INPUT, 0, key, b'{"amount": 1}', NOW_MS + 1000 * number, [])
        world.serve(alerts=alerts)
    assert [record.get("held_back") for record in published(world, OUTPUT)] == [None, None, None, None, "hold"]
    done = world.verify()
    assert [offset for offset, _ in done.ranges[0].alert_rules] == [2]
    assert_right(done)


def test_without_a_policy_no_byte_is_different(tmp_path: Path) -> None:
    world = made(tmp_path, alerts={})
    world.serve()
    assert_right(world.verify())
    assert not any("held_back" in record for record in published(world, OUTPUT))
    records = [record for p in range(2) for record in world.log(STATES, p)]
    assert {(record.value or b"")[4] for record in records if (record.key or b"")[:1] != FLOOR} == {STATE_FORMAT}
    assert not any(b'"alerts"' in (record.value or b"") for record in records if (record.key or b"")[:1] == FLOOR)


def test_offsets_that_are_moved_back_count_alerts_again(tmp_path: Path) -> None:
    """The hours that the floor record has contain events that are still to come: they are counted from the start."""
    world, undisturbed = made(tmp_path), made(tmp_path)
    undisturbed.serve()
    world.serve()
    moved = {number: offset - 40 for number, offset in world.broker.offsets.items() if offset}
    world.broker.offsets.update(moved)
    before = [len(world.log(ALERTS, p)) for p in range(2)]
    world.serve()
    for p in range(2):
        again = [record.value for record in world.log(ALERTS, p)[before[p] :]]
        first = [record.value for record in undisturbed.log(ALERTS, p)]
        assert again == first[len(first) - len(again) :]
        assert again


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_as_cloudevents_each_record_has_an_id_of_its_own(mode: str, tmp_path: Path) -> None:
    world = made(tmp_path, output={"threshold": 0.6, "cloudevents": mode})
    world.serve()
    done = world.verify()
    assert_right(done)
    assert min(done.summary()[kind] for kind in ("end_records", "summaries")) >= 1
    records = [record for p in range(2) for record in world.log(ALERTS, p)]
    ids = [json.loads(record.value or b"").get("id") or dict(record.headers)["ce_id"] for record in records]
    assert len(set(ids)) == len(ids)


def test_states_that_were_rebuilt_for_other_settings_remember_no_alert_of_before(tmp_path: Path) -> None:
    """Those were alerts of another model: a key in mid-incident alerts once more."""
    world = made(tmp_path)
    daemon = world.start(world.onnx_step())
    step(world, daemon, 9)
    assert world.stop(daemon) == 0
    others = dict(world.broker.offsets)
    changes = {"input": {"topic": INPUT, "late": "drop"}, "on_model_change": "replay"}
    daemon = world.start(world.onnx_step(), **changes)
    step(world, daemon, 9)
    world.kill(daemon)
    world.serve(**changes)
    done = world.verify(config=world.config(**changes))
    assert len(done.comparison.findings) == 0
    assert [done.ranges[p].alert_rules[0][0] for p in range(2)] == [others[p] for p in range(2)]
    first = {
        (one["source"]["partition"], one["key"]): one
        for one in reversed(published(world, OUTPUT))
        if one["alert"] and one["source"]["offset"] >= others[one["source"]["partition"]]
    }
    assert first
    assert not any(one.get("held_back") == "hold" for one in first.values())


# -- what verify finds


def _ignored(reason: str) -> Callable[[pytest.MonkeyPatch], None]:
    """A daemon that publishes every third alert that is to be held back for this reason."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        decide, seen = AlertPolicy.decide, Counter[str]()

        def wrong(self: AlertPolicy, *args: Any, **kwargs: Any) -> Any:
            decisions = decide(self, *args, **kwargs)
            for i in np.flatnonzero(decisions.held_back == HELD_BACK.index(reason)).tolist():
                seen[reason] += 1
                if seen[reason] % 3 == 0:
                    decisions.held_back[i] = 0
            return decisions

        patch.setattr(AlertPolicy, "decide", wrong)

    return plant


def _too_long(patch: pytest.MonkeyPatch) -> None:
    """The first alert after a cooldown is held back as well."""
    near = alert_policy._is_near
    patch.setattr(
        alert_policy, "_is_near", lambda time_ms, incident, cooldown_ms: near(time_ms, incident, 10 * cooldown_ms)
    )


def _forgotten(patch: pytest.MonkeyPatch) -> None:
    """What the policy remembers is not in the state records."""
    patch.setattr(state_records, "_with_incident", lambda body, _incident: body)


def _notices_lost(patch: pytest.MonkeyPatch) -> None:
    """Neither end records nor summaries are written."""
    patch.setattr(_PartitionPass, "_notice", lambda *_: None)


PLANTS = {
    "an alert of a muted key": (_ignored("mute"), {"it should be held back: mute"}),
    "an alert in an incident": (_ignored("hold"), {"it should be held back: hold"}),
    "an alert over the limit": (_ignored("max_per_hour"), {"it should be held back: max_per_hour"}),
    "no alert after the cooldown": (_too_long, {"there is no alert", "there is no end record"}),
    "an incident forgotten": (_forgotten, {"the value differs"}),
    "no notices": (_notices_lost, {"there is no end record", "there is no summary"}),
}


@pytest.mark.parametrize("bug", PLANTS)
def test_a_fault_of_the_policy_is_found(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, expected = PLANTS[bug]
    plant(monkeypatch)
    world = made(tmp_path)
    daemon = world.start(world.onnx_step())
    step(world, daemon, 12)
    assert world.stop(daemon) == 0
    world.serve()
    done = world.verify()
    assert done.exit_code == 1
    assert expected <= {finding.detail for finding in done.comparison.findings.kept}


def test_a_cooldown_without_hold(tmp_path: Path) -> None:
    """It counts from the alert, not from the last event above the threshold."""
    world = made(tmp_path, alerts={"cooldown": "2m"})
    daemon = world.start(world.onnx_step())
    world.faults += ["commit", "committed"]
    world.settle()
    assert world.stop(daemon) == 0
    counts = held_back(world)
    assert set(counts) == {"cooldown"}
    assert world.metric(daemon, "alerts_held_back_total", reason="cooldown") == counts["cooldown"]
    assert world.metric(daemon, "alerts_total") == counts.total() + len(told(world))
    assert_right(world.verify())
    held = made(tmp_path, alerts={"cooldown": "2m", "hold": True})
    held.serve()
    assert len(told(held)) < len(told(world))


def test_keys_of_every_kind_are_muted_by_patterns(tmp_path: Path) -> None:
    world = made(tmp_path, alerts={"mute": ["k[1]", "k?", "\u00e9*\u00fc", "*x"]})
    for key in (b"k[1]", b"k1", b"k12", None, b"\xff", "\u00e9a\u00fc".encode(), b"x", b"xy", b"", b"k\nx"):
        world.broker.append(INPUT, 0, key, b'{"amount": 1990, "channel": "web"}', NOW_MS, [])
    world.serve()
    assert_right(world.verify())
    muted = {record.get("key", 0) for record in published(world, OUTPUT) if record.get("held_back") == "mute"}
    assert {"k[1]", "k1", "x", "k\nx", "\u00e9a\u00fc"} <= muted
    assert not muted & {"k12", None, 0, "xy", ""}


def test_a_sample_of_keys_cannot_judge_a_limit_for_all(undisturbed: VerifyWorld) -> None:
    with pytest.raises(CannotServe, match=r"--sample: alerts\.max_per_hour"):
        undisturbed.verify(sample=0.5)
