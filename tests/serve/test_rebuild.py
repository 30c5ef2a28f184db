"""`on_model_change: replay`: a new model's states are rebuilt from the input before its first answer."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from lstmstream.errors import CannotServe
from lstmstream.serve.state_records import FLOOR, unpack_floor
from tests.serve.memory_world import FakeStep, World, card, crash_at_call

OLD, NEW = "a" * 32, "b" * 32
REPLAY: dict[str, Any] = {"on_model_change": "replay"}
MAX_CALLS = 12


def model(fingerprint: str) -> FakeStep:
    return FakeStep(card(fingerprint=fingerprint))


def produce(world: World, count: int, key: bytes = b"a", partition: int = 0) -> None:
    for _ in range(count):
        world.produce(key, b'{"amount": 3}', partition)


def serve(world: World, fingerprint: str, count: int = 0, *, kill: bool = False, **changes: Any) -> None:
    """A daemon's life with so many events of one key."""
    daemon = world.start(model(fingerprint), **changes)
    produce(world, count)
    world.settle()
    (world.kill if kill else world.stop)(daemon)


def floor(world: World, fingerprint: str, partition: int = 0) -> dict[str, int]:
    found = [unpack_floor(r.value) for r in world.state_logs()[partition] if r.key and r.key[:1] == FLOOR and r.value]
    newest = [one for one in found if one.identity.fingerprint == fingerprint][-1]
    return {"origin": newest.origin, "answers_from": newest.answers_from}


def test_the_new_model_has_seen_all_that_the_input_has() -> None:
    world = World(**REPLAY)
    serve(world, OLD, 12)
    serve(world, NEW, 3)
    assert world.steps(b"a") == list(range(1, 16))
    world.check()
    assert floor(world, NEW) == {"origin": 0, "answers_from": 12}


def test_only_so_much_of_the_input_as_is_asked_for() -> None:
    """Events are a second apart: the last ten seconds before the newest that was answered, and that itself."""
    world = World(**REPLAY, state={"replay": "10s"})
    serve(world, OLD, 100)
    serve(world, NEW, 2)
    assert world.steps(b"a")[-2:] == [12, 13]
    assert floor(world, NEW) == {"origin": 89, "answers_from": 100}


def test_what_the_input_no_longer_has_is_not_missed() -> None:
    world = World(**REPLAY)
    serve(world, OLD, 20)
    world.broker.truncate("in", 0, 15)
    serve(world, NEW, 1)
    assert world.steps(b"a")[-1] == 6
    assert floor(world, NEW) == {"origin": 15, "answers_from": 20}


def test_an_input_without_times_and_records_starts_empty() -> None:
    world = World(**REPLAY)
    serve(world, OLD, 20)
    world.broker.truncate("in", 0, 20)
    serve(world, NEW, 1)
    assert world.steps(b"a")[-1] == 1


def test_a_time_of_zero_is_a_time() -> None:
    """As a producer gives that knows no better."""
    world = World(**REPLAY, state={"replay": "10s"})
    daemon = world.start(model(OLD))
    for _ in range(5):
        world.broker.append("in", 0, b"a", b'{"amount": 3}', 0)
    world.settle()
    world.stop(daemon)
    serve(world, NEW, 1)
    assert world.steps(b"a")[-1] == 6


def test_where_it_began_stays_fixed() -> None:
    """Whatever `state.replay` says later, and however much of the input is there then."""
    world = World(**REPLAY, state={"replay": "10s"})
    serve(world, OLD, 100)
    serve(world, NEW, 5)
    serve(world, NEW, 5, state={"replay": "7d"})
    assert world.steps(b"a")[-5:] == list(range(17, 22))
    assert floor(world, NEW) == {"origin": 89, "answers_from": 100}


def test_to_and_fro_each_model_has_seen_every_event_once() -> None:
    world = World(**REPLAY)
    for fingerprint, count in ((OLD, 12), (NEW, 3), (OLD, 1), (NEW, 1)):
        serve(world, fingerprint, count)
    assert world.steps(b"a") == list(range(1, 18))


def test_states_that_were_lost_are_rebuilt() -> None:
    world = World(**REPLAY)
    serve(world, OLD, 12)
    world.make_again("t.state")
    serve(world, OLD, 3)
    assert world.steps(b"a") == list(range(1, 16))


@pytest.mark.parametrize("point", ["read", "begin", "commit", "committed", "committed_offset", "poll"])
def test_a_crash_while_it_rebuilds_changes_nothing(point: str) -> None:
    """At each call of its kind, up to the first answers."""
    crashes = 0
    while crash_at(point, crashes):
        crashes += 1
    assert crashes > 0


def crash_at(point: str, nth: int) -> bool:
    """Whether there was such a call."""
    world = World(**REPLAY, state={"replay": "10s"})
    serve(world, OLD, 100)
    daemon = world.start(model(NEW))
    produce(world, 2)
    with crash_at_call(world, point, nth) as crash:
        for _ in range(30):
            world.step(daemon)
    world.kill(daemon)
    world.busy.clear()
    serve(world, NEW, 1)
    assert world.steps(b"a")[100:] == [12, 13, 14]
    assert floor(world, NEW) == {"origin": 89, "answers_from": 100}
    return crash.happened and nth < MAX_CALLS


@pytest.mark.parametrize("point", ["read", "begin", "commit", "committed"])
def test_a_broker_that_fails_meanwhile(point: str) -> None:
    world = World(**REPLAY)
    serve(world, OLD, 30)
    world.faults += [point] * 3
    serve(world, NEW, 2)
    assert world.steps(b"a") == list(range(1, 33))


def test_it_is_said_with_the_offsets(caplog: pytest.LogCaptureFixture) -> None:
    world = World(**REPLAY)
    serve(world, OLD, 12)
    caplog.clear()
    serve(world, NEW)
    said = [record for record in caplog.records if "rebuilding the states" in record.getMessage()]
    assert [(record.partition, record.first, record.last) for record in said][:1] == [(0, 0, 11)]  # type: ignore[attr-defined]
    assert NEW in said[0].getMessage()
    caplog.clear()
    caplog.set_level(logging.INFO)
    serve(world, NEW)
    assert not [record for record in caplog.records if "rebuilding the states" in record.getMessage()]


def test_without_it_the_message_names_it() -> None:
    world = World()
    serve(world, OLD, 12)
    world.start(model(NEW))
    with pytest.raises(CannotServe, match="on_model_change: replay to rebuild the states from the input"):
        world.settle()
