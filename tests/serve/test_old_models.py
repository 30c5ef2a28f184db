"""States of a model that was replaced: deleted after a while, and nothing of them comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lstmstream.serve import checkpoint, old_models, restore
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.state_records import FLOOR, Floor, key_kind, unpack_floor
from lstmstream.transport.memory import LogRecord
from tests.serve.memory_world import INPUT, FakeStep, World, amount_of, card, crash_at_call
from tests.serve.test_expiry import answers
from tests.serve.test_key_limit import RULES as LIMITED
from tests.serve.test_key_limit import Books, churn, in_memory

OLD, NEW = "a" * 32, "b" * 32
KEEP_S = 3600.0
RULES: dict[str, Any] = {
    "on_model_change": "replay",
    "state": {"checkpoint_interval": "5s", "keep_old_models": "1h", "replay": "10s"},
}
KEYS = 40
MAX_CALLS = 3


def model(fingerprint: str) -> FakeStep:
    return FakeStep(card(fingerprint=fingerprint))


def produce(world: World, count: int, keys: int = KEYS) -> None:
    for number in range(count):
        world.produce(b"k%d" % (number % keys), b'{"amount": 3}', 0)


def serve(world: World, fingerprint: str, count: int = 0, keys: int = KEYS, **changes: Any) -> None:
    """A daemon's life, stopped in order."""
    daemon = world.start(model(fingerprint), **changes)
    produce(world, count, keys)
    world.settle()
    assert world.stop(daemon) == 0


def idle(world: World, daemon: Daemon, rounds: int = 60) -> None:
    for _ in range(rounds):
        world.now_s += 1
        world.step(daemon)


def newest(world: World) -> dict[bytes, LogRecord]:
    """As compaction leaves the state topic of partition 0."""
    return {record.key: record for record in world.state_logs()[0] if record.key}


def floors(world: World) -> dict[str, Floor]:
    found = [unpack_floor(r.value) for key, r in newest(world).items() if key[:1] == FLOOR and r.value]
    return {one.identity.fingerprint: one for one in found}


def states(world: World, fingerprint: str) -> int:
    """Live records of this model's states in partition 0."""
    if fingerprint not in floors(world):
        return 0
    prefix = floors(world)[fingerprint].identity.digest[:8]
    return sum(
        1 for key, r in newest(world).items() if r.value and key_kind(key)[0] != FLOOR and key_kind(key)[1] == prefix
    )


def replaced(world: World) -> Daemon:
    """The new model has taken over, and the time of the old one's states is about to be over."""
    serve(world, OLD, 80)
    daemon = world.start(model(NEW))
    produce(world, 40)
    world.settle()
    assert (states(world, OLD), floors(world)[OLD].dropped) == (KEYS, None)
    world.now_s += KEEP_S
    return daemon


def test_they_are_deleted_after_a_while() -> None:
    world = World(**RULES)
    daemon = replaced(world)
    before, kept = world.metric(daemon, "state_records_deleted_total"), states(world, NEW)
    assert kept > 0
    idle(world, daemon)
    assert states(world, OLD) == 0
    assert states(world, NEW) >= kept
    assert world.metric(daemon, "state_records_deleted_total") == before + KEYS
    dropped = floors(world)[OLD].dropped
    assert dropped is not None
    assert dropped[0] == dropped[1]
    written = len(world.state_logs()[0])
    idle(world, daemon, 90)
    assert len(world.state_logs()[0]) == written, "it is done once"


@pytest.mark.parametrize(("keep", "left"), [("2h", KEYS), (None, KEYS), ("0s", 0)])
def test_not_before_their_time(keep: str | None, left: int) -> None:
    world = World(**RULES | {"state": RULES["state"] | {"keep_old_models": keep}})
    serve(world, OLD, 80)
    daemon = world.start(model(NEW))
    produce(world, 40)
    world.settle()
    world.now_s += KEEP_S
    idle(world, daemon)
    assert states(world, OLD) == left


def test_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(old_models, "KEYS_AT_ONCE", 5)
    world = World(**RULES)
    daemon = replaced(world)
    sizes: list[int] = []
    commits = world.state_logs()[0]
    left, seen = states(world, OLD), len(commits)
    for _ in range(100):
        world.now_s += 1
        world.step(daemon)
        now = states(world, OLD)
        if now < left:
            sizes.append(left - now)
        left = now
    assert left == 0
    assert len(commits) > seen
    assert max(sizes) <= 5 + world.broker.read_records
    assert len(sizes) >= KEYS / (5 + world.broker.read_records)


def test_within_the_time_the_old_one_goes_on_with_its_states() -> None:
    world = World(**RULES)
    for fingerprint, count in ((OLD, 80), (NEW, 40), (OLD, 40)):
        serve(world, fingerprint, count)
    assert world.steps(b"k1")[-1] == 4


def test_the_old_one_starts_afresh_after_that() -> None:
    """With what the last ten seconds have, and nothing of before."""
    world = World(**RULES)
    daemon = replaced(world)
    idle(world, daemon)
    world.stop(daemon)
    serve(world, OLD, 40)
    assert world.steps(b"k39")[-1] == 2  # its last event before is of that time, and those before are not
    assert world.steps(b"k1")[-1] == 1
    floor = floors(world)[OLD]
    assert (floor.dropped, floor.earlier, floor.answers_from) == (None, (0, 80), 120)


@pytest.mark.parametrize("on_model_change", ["fail", "reset"])
def test_with_other_ways_to_change_the_model(on_model_change: str) -> None:
    world = World(**RULES | {"on_model_change": "reset"})
    daemon = replaced(world)
    idle(world, daemon)
    assert states(world, OLD) == 0
    world.stop(daemon)
    world.start(model(OLD), on_model_change=on_model_change)
    if on_model_change == "fail":
        with pytest.raises(Exception, match="its states belong to"):
            world.settle()
        return
    produce(world, 40)
    world.settle()
    assert world.steps(b"k39")[-1] == 1


# -- to and fro, with crashes


def lives(world: World, crash: Iterator[tuple[str, int] | None]) -> bool:
    """Old, new, old, new: each time until the other's states are dropped, killed once on the way where it says so.

    Whether it came to the call at which it was to be killed.
    """
    happened = False
    for number, fingerprint in enumerate((OLD, NEW, OLD, NEW)):
        daemon = world.start(model(fingerprint))
        churn(world, 40, seed=number, keys=20)
        world.settle()
        world.now_s += KEEP_S
        if (point := next(crash)) is not None:
            with crash_at_call(world, *point) as killed:
                idle(world, daemon, 14)
            world.kill(daemon)
            world.busy.clear()
            happened |= killed.happened
        else:
            if number != 1:  # this one is stopped in the middle of it
                idle(world, daemon, 14)
            world.kill(daemon)
    return happened


def check_limited(world: World) -> None:
    """Each answer is that of the rule over the whole log, since the whole input was replayed each time."""
    books = Books(6)
    expected = {r.offset: books.take(r.key, amount_of(r.value)) for r in world.broker.topics[INPUT].logs[0]}
    assert answers(world) == expected
    if world.daemons:
        assert in_memory(world) == list(books.kept)


@pytest.mark.parametrize("point", ["read", "begin", "committed"])
@pytest.mark.parametrize("life", [1, 2])
def test_a_crash_while_they_are_deleted_revives_nothing(life: int, point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `state.max_keys`, whose order a single state of before would change."""
    monkeypatch.setattr(old_models, "KEYS_AT_ONCE", 3)
    crashes = 0
    for nth in range(MAX_CALLS):
        world = World(**LIMITED | {"on_model_change": "replay"})
        world.settings["state"] = LIMITED["state"] | {"keep_old_models": "1h"}
        points = iter([(point, nth) if number == life else None for number in range(4)])
        happened = lives(world, points)
        for fingerprint in (OLD, NEW, OLD):
            daemon = world.start(model(fingerprint))
            churn(world, 15, seed=nth, keys=20)
            world.settle()
            check_limited(world)
            world.kill(daemon)
        crashes += happened
        if not happened:
            break
    assert crashes > 0


def test_a_model_that_has_only_just_come_back_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no time for a floor record of what it answers; that it took over is written before."""
    world = World(**LIMITED | {"on_model_change": "replay"})
    unlimited: dict[str, Any] = {"state": {"checkpoint_interval": "5s"}}
    lives: list[tuple[str, dict[str, Any]]] = [(NEW, unlimited), (OLD, {}), (NEW, unlimited), (OLD, {})]
    for number, (fingerprint, changes) in enumerate(lives):
        monkeypatch.setattr(checkpoint, "FLOOR_INTERVAL_S", 1e9 if number == 2 else 1.0)
        daemon = world.start(model(fingerprint), **changes)
        churn(world, 40, seed=number, keys=20)
        world.settle()
        (world.kill if number == 2 else world.stop)(daemon)
    daemon = world.start(model(OLD))
    world.settle()
    books = Books(6)
    expected = {r.offset: books.take(r.key, amount_of(r.value)) for r in world.broker.topics[INPUT].logs[0]}
    assert {at: said for at, said in answers(world).items() if at >= 120} == {
        at: said for at, said in expected.items() if at >= 120
    }
    assert in_memory(world) == list(books.kept)


@pytest.mark.parametrize("fault", [None, "begin", "commit", "committed"])
def test_what_is_left_of_an_earlier_life_is_deleted_before_the_next(
    fault: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its floor record is gone, as after `state repartition`, and its states are not. A part may fail at first."""
    monkeypatch.setattr(restore, "CLEARED_AT_ONCE", 15)
    world = World(**RULES | {"on_model_change": "reset"})
    serve(world, OLD, 80)
    key = next(key for key in newest(world) if key[:1] == FLOOR)
    world.broker.append("t.state", 0, key, None)
    world.faults += [] if fault is None else [fault]
    daemon = world.start(model(OLD))
    world.settle()
    assert states(world, OLD) == 0
    produce(world, 40)
    world.settle()
    assert world.steps(b"k1")[-1] == 1
    world.kill(daemon)
    serve(world, OLD, 40)
    assert world.steps(b"k1")[-1] == 2
