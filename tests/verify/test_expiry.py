"""`verify` knows which events are too late and which keys have a state, and finds states that went too early."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lstmstream.errors import CannotServe
from lstmstream.records import Bools, Ints
from lstmstream.serve.checkpoint import Checkpointer
from lstmstream.serve.expiry import Expiry
from lstmstream.serve.key_limit import KeyLimit
from lstmstream.serve.recency import Recency
from lstmstream.serve.scorer import Scorer
from lstmstream.serve.state import Slab
from lstmstream.serve.stream_time import StreamTime
from tests.verify.test_findings import COUNT, kinds, made
from tests.verify.world import INPUT, OUTPUT, VerifyWorld

LATENESS: dict[str, Any] = {
    "input": {"topic": INPUT, "max_lateness": "5s"},
    "state": {"ttl": "20s", "checkpoint_interval": "1s"},
}
Patch = pytest.MonkeyPatch


def served(folder: Path, *, kill: bool = False) -> VerifyWorld:
    """Daemons that have answered all, with pauses in which keys go; with `kill` some die, and commits fail."""
    world = made(folder, **LATENESS)
    daemon = world.start(world.onnx_step())
    for number in range(60):
        world.step(daemon)
        world.now_s += 0.5
        if kill and number % 4 == 1:
            world.faults.append("commit")
        if kill and number % 13 == 5:
            world.kill(daemon)
            daemon = world.start(world.onnx_step())
    world.settle()
    world.stop(daemon)
    return world


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("sample", [1.0, 0.4])
def test_late_events_and_removed_keys_are_right(tmp_path: Path, kill: bool, sample: float) -> None:
    world = served(tmp_path, kill=kill)
    done = world.verify(sample=sample)
    assert kinds(done) == {}
    summary = done.summary()
    assert summary["events"] == COUNT
    assert (summary["result"], summary["not_judged"]) == ("right", 0)


PLANTS: dict[str, Callable[[Patch], None]] = {}


def plants(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
    PLANTS[plant.__name__.strip("_")] = plant
    return plant


@plants
def no_bound(patch: Patch) -> None:
    """No event is too late."""
    patch.setattr(Scorer, "_split_by_time", lambda _self, _observations: (None, []))


@plants
def gone_too_early(patch: Patch) -> None:
    """Keys go as if no event could be late."""

    def gone(self: Expiry, slab: Slab, rows: Ints) -> Bools:
        found: Bools = (slab.steps[rows] > 0) & (slab.last_timestamp[rows] < slab.stream_time.now_ms - 1000)
        return found

    patch.setattr(Expiry, "gone", gone)


@plants
def time_that_is_not_taken_back(patch: Patch) -> None:
    """A batch that is done again meets the time after it."""
    patch.setattr(StreamTime, "take_back", lambda self: self._notes.pop())


@pytest.mark.parametrize("plant", PLANTS)
def test_what_is_wrong_is_found(tmp_path: Path, monkeypatch: Patch, plant: str) -> None:
    with monkeypatch.context() as patch:
        PLANTS[plant](patch)
        world = served(tmp_path, kill=True)
    assert kinds(world.verify()).keys() & {"wrong", "missing", "duplicate"}


def test_without_the_first_events_it_is_judged_from_the_floor_on(tmp_path: Path) -> None:
    """What the newest event was before is not known."""
    world = served(tmp_path)
    world.broker.truncate(INPUT, 0, 10)
    done = world.verify()
    assert len(done.comparison.findings) == 0
    assert done.exit_code == 2
    assert "the input no longer has the events that input.max_lateness compares them with" in {
        stretch["reason"] for stretch in done.summary()["unjudged"]
    }


def test_another_bound_is_not_what_the_events_were_answered_with(tmp_path: Path) -> None:
    world = served(tmp_path)
    other = world.config(input={"topic": INPUT, "max_lateness": "6s"})
    with pytest.raises(CannotServe, match="max_lateness 5000ms"):
        world.verification(config=other)


# -- state.max_keys

LIMIT: dict[str, Any] = {"state": {"max_keys": 2, "checkpoint_interval": "1s"}}


def limited(folder: Path, **settings: Any) -> VerifyWorld:
    """Daemons of which some die."""
    world = made(folder, **LIMIT, **settings)
    daemon = world.start(world.onnx_step())
    for number in range(60):
        world.step(daemon)
        world.now_s += 0.5
        if number % 4 == 1:
            world.faults.append("commit")
        if number % 11 == 5:
            world.kill(daemon)
            daemon = world.start(world.onnx_step())
    world.settle()
    world.stop(daemon)
    return world


@pytest.mark.parametrize("late", ["apply", "drop", "score"])
def test_the_most_recent_keys_are_right(tmp_path: Path, late: str) -> None:
    world = limited(tmp_path, input={"topic": INPUT, "late": late})
    done = world.verify()
    assert kinds(done) == {}
    assert done.summary()["events"] == COUNT
    steps = [json.loads(record.value or b"")["steps"] for record in world.log(OUTPUT)]
    assert steps.count(1) > 10


@pytest.mark.parametrize("late", ["apply", "score"])
def test_incidents_go_with_their_keys(tmp_path: Path, late: str) -> None:
    policy = {"cooldown": "10m", "hold": True, "end_record": True}
    done = limited(tmp_path, alerts=policy, input={"topic": INPUT, "late": late}).verify()
    assert kinds(done) == {}
    assert done.summary()["end_records"] > 0


def lives_with(folder: Path, policies: list[dict[str, Any]]) -> VerifyWorld:
    """One after the other, with late events that are answered; then a damaged record makes the last one rebuild all."""
    folder.mkdir()
    world = made(folder, **LIMIT, input={"topic": INPUT, "late": "score"})
    for policy in policies:
        daemon = world.start(world.onnx_step(), alerts=policy)
        for _ in range(3):
            world.step(daemon)
            world.now_s += 0.5
        world.stop(daemon)
    for partition in range(3):
        log = world.log("t.state", partition)
        for at in [i for i, one in enumerate(log) if one.key and one.key[:1] == b"\x01" and one.value][-1:]:
            log[at] = log[at]._replace(value=b"x" + (log[at].value or b"")[1:])
    daemon = world.start(world.onnx_step(), alerts=policies[-1])
    world.settle()
    world.stop(daemon)
    return world


def test_which_keys_go_does_not_depend_on_the_policy_for_alerts(tmp_path: Path) -> None:
    """A late event may change what is remembered of its key; it sees its key in any case."""
    hold = [{"cooldown": "10m", "hold": True}, {"cooldown": "20m", "hold": True, "end_record": True}]
    world = lives_with(tmp_path / "1", hold * 3)
    done = world.verify(config=world.config(alerts=hold[-1]))
    assert kinds(done) == {}
    steps = [answer["steps"] for answer in world.answers()]
    for number, policies in enumerate([[{}, *hold, {}], [*hold, {}, hold[0]]]):
        other = lives_with(tmp_path / f"other{number}", policies)
        assert [answer["steps"] for answer in other.answers()] == steps


def forget_nothing(patch: Patch) -> None:
    patch.setattr(KeyLimit, "evict", lambda *_: {})


def forget_the_newest(patch: Patch) -> None:
    least = Recency.least
    patch.setattr(Recency, "least", lambda self, count: least(self, self.present)[::-1][:count])


def one_batch_at_once(patch: Patch) -> None:
    patch.setattr(KeyLimit, "_fits", lambda *_: True)


def evictions_that_are_not_written(patch: Patch) -> None:
    plan = Checkpointer.plan
    patch.setattr(Checkpointer, "plan", lambda self, **named: plan(self, **{**named, "evicted": {}}))


@pytest.mark.parametrize(
    "plant",
    [forget_nothing, forget_the_newest, one_batch_at_once, evictions_that_are_not_written],
)
def test_an_eviction_that_is_wrong_is_found(tmp_path: Path, monkeypatch: Patch, plant: Callable[[Patch], None]) -> None:
    with monkeypatch.context() as patch:
        plant(patch)
        world = limited(tmp_path)
    assert kinds(world.verify()).keys() & {"wrong", "missing", "duplicate"}


def test_a_sample_of_the_keys_cannot_tell(tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match=r"--sample: with state.max_keys it depends on the events of all other keys"):
        made(tmp_path, **LIMIT).verification(sample=0.5)
