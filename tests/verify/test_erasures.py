"""`verify` knows erased keys by code of its own, and finds a daemon that brings one back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lstmstream.serve.daemon import Daemon
from lstmstream.serve.erasure_records import pack_request
from lstmstream.serve.erasures import INTERVAL_S, Erasures, RebuildErasures
from lstmstream.serve.partition import Partition
from lstmstream.serve.restore import Restore
from lstmstream.serve.state import Slab
from lstmstream.verify.run import Verification
from tests.models import poisoned_model
from tests.serve.memory_world import PARTITIONS, STATES
from tests.verify.test_findings import kinds
from tests.verify.world import INPUT, VerifyWorld, events, fill

COUNT = 240
HALF = COUNT // 2
POLICY = {"cooldown": "10m", "hold": True, "end_record": True, "max_per_hour": 3}


def made(folder: Path, **settings: Any) -> VerifyWorld:
    path = poisoned_model(folder, categories={"channel": ["web", "7"], "shop": 5})
    settings = {"output": {"threshold": 0.6}, "batch": {"max_events": 10}, **settings}
    return VerifyWorld(path, **settings)


def ask(world: VerifyWorld, *keys: bytes | None) -> None:
    for partition in range(PARTITIONS):
        world.broker.append(STATES, partition, *pack_request(keys))


def erase(world: VerifyWorld, daemon: Daemon, *keys: bytes | None) -> None:
    ask(world, *keys)
    world.now_s += INTERVAL_S
    for _ in range(4):
        world.step(daemon)


def lives(world: VerifyWorld, *, follow: bool = False) -> Verification | None:
    """Two keys are erased in the middle of a life, which is killed with the floor behind them; then another life."""
    found = events(COUNT)
    fill(world, found[:HALF])
    daemon = world.start(world.onnx_step())
    world.settle()
    done = world.verify() if follow else None
    erase(world, daemon, b"k1", None)
    fill(world, found[HALF : HALF + 60])
    world.settle()
    world.kill(daemon)
    fill(world, found[HALF + 60 :])
    world.serve()
    return done


@pytest.mark.parametrize("settings", [{}, {"alerts": POLICY}, {"input": {"topic": INPUT, "late": "score"}}])
def test_erased_keys_begin_anew(tmp_path: Path, settings: dict[str, Any]) -> None:
    world = made(tmp_path, **settings)
    lives(world)
    assert {key for _, key in world.erased_at(sum(b"k1") % 3)} == {b"k1", None}
    done = world.verify()
    assert (kinds(done), done.exit_code) == ({}, 0)


def test_erasures_that_come_while_it_follows(tmp_path: Path) -> None:
    world = made(tmp_path)
    done = lives(world, follow=True)
    assert done is not None
    done.round()
    assert (kinds(done), done.exit_code) == ({}, 0)
    assert done.comparison.counts["events"] == COUNT


def test_a_daemon_that_keeps_the_state_in_memory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Partition, "erase", lambda _self, _keys: None)
    world = made(tmp_path)
    lives(world)
    assert "wrong" in kinds(world.verify())


def test_a_replay_that_brings_it_back_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Erasures, "kept", lambda _self, _observations, salt: None)
    world = made(tmp_path, state={"checkpoint_interval": "1h"})
    found = events(COUNT)
    fill(world, found[:HALF])
    daemon = world.start(world.onnx_step())
    world.settle()
    erase(world, daemon, b"k1")
    world.kill(daemon)
    fill(world, found[HALF:])
    world.serve()
    assert "wrong" in kinds(world.verify())


def test_an_erasure_that_the_daemon_has_made_up_is_found(tmp_path: Path) -> None:
    """The state topic says less than the predictions."""
    world = made(tmp_path)
    lives(world)
    log = world.log(STATES, sum(b"k1") % 3)
    log[:] = [record for record in log if not record.key or record.key[:1] != b"\x04"]
    assert "wrong" in kinds(world.verify())


# -- state.max_keys

LIMITED: dict[str, Any] = {"state": {"max_keys": 3, "checkpoint_interval": "1h"}}


def limited_lives(world: VerifyWorld) -> None:
    """Two lives: keys are erased at the end of the first one, and a damaged record makes the second rebuild all."""
    found = events(COUNT, keys=15)
    fill(world, found[:HALF])
    daemon = world.start(world.onnx_step())
    world.settle()
    erase(world, daemon, *(b"k%d" % number for number in range(0, 15, 2)))
    world.stop(daemon)
    for partition in range(PARTITIONS):
        log = world.log(STATES, partition)
        at = max(i for i, one in enumerate(log) if one.key and one.key[:1] == b"\x01" and one.value)
        log[at] = log[at]._replace(value=b"x" + (log[at].value or b"")[1:])
    fill(world, found[HALF:])
    world.serve()


@pytest.mark.parametrize("settings", [{}, {"alerts": {"cooldown": "10m", "hold": True, "end_record": True}}])
def test_erased_keys_make_room_for_others(tmp_path: Path, settings: dict[str, Any]) -> None:
    world = made(tmp_path, **LIMITED, **settings)
    limited_lives(world)
    assert any(world.erased_at(partition) for partition in range(PARTITIONS))
    done = world.verify()
    assert (kinds(done), done.exit_code) == ({}, 0)
    assert done.comparison.counts["events"] == COUNT


def keep_the_place(patch: pytest.MonkeyPatch) -> None:
    """The state is a fresh one, and the key goes on to count."""
    remove_all = Slab.remove_all

    def keep(self: Slab, keys: list[bytes | None]) -> None:
        recency = self.recency
        self.recency = None
        remove_all(self, keys)
        self.recency = recency

    patch.setattr(Slab, "remove_all", keep)


def leave_events_out_of_rebuilds(patch: pytest.MonkeyPatch) -> None:
    replay = Restore._replay_some

    def without(self: Restore, batch: Any) -> None:
        self._erasures = None
        replay(self, batch)

    patch.setattr(Restore, "_replay_some", without)


def stay_in_rebuilds(patch: pytest.MonkeyPatch) -> None:
    take_due = RebuildErasures.take_due
    patch.setattr(RebuildErasures, "take_due", lambda self, offset: take_due(self, offset)[:0])


@pytest.mark.parametrize("plant", [keep_the_place, leave_events_out_of_rebuilds, stay_in_rebuilds])
def test_a_wrong_set_of_keys_after_an_erasure_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    world = made(tmp_path, **LIMITED)
    with monkeypatch.context() as patch:
        plant(patch)
        limited_lives(world)
    assert "wrong" in kinds(world.verify())
