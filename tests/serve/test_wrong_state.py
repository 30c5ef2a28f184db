"""Ways to a wrong state that nothing would speak of: each key's `steps` tell at once."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from lstmstream.errors import CannotServe
from lstmstream.transport.memory import AT_LEAST_ONCE_POINTS
from tests.serve.memory_world import INPUT, OUTPUT, PARTITIONS, STATES, FakeStep, World, card

OLD, NEW = "f" * 32, "e" * 32  # fingerprints
RESET = {"on_model_change": "reset"}


def events(world: World, key: bytes, count: int, partition: int = 0, value: bytes = b'{"amount": 3}') -> None:
    for _ in range(count):
        world.produce(key, value, partition)


def rounds(world: World, count: int, **but: Any) -> None:
    """Each daemon's loop so many times, a second apart."""
    for _ in range(count):
        for daemon in [daemon for daemon in world.daemons if daemon is not but.get("but")]:
            world.step(daemon)
        world.now_s += 1


def move_floor(world: World, beyond: int, partition: int = 0) -> None:
    """Traffic of other keys, until a restart would no longer read what lies before `beyond`."""
    for _ in range(60):
        events(world, b"other", 2, partition)
        rounds(world, 3)
        if world.floors().get(partition, -1) >= beyond:
            return
    raise AssertionError(f"the floor stays at {world.floors()}")


def refusal(world: World, begin: Callable[[], Any] | None = None) -> str:
    """What a daemon says that does not serve; where it serves, the error says with which `steps`."""
    try:
        if begin is not None:
            begin()
        rounds(world, 40)
    except CannotServe as error:
        return str(error)
    raise AssertionError(f"it serves; the steps of `a` are {world.steps(b'a')}")


def model(fingerprint: str) -> FakeStep:
    return FakeStep(card(name={OLD: "old", NEW: "new"}[fingerprint], fingerprint=fingerprint))


# -- the state topic


def test_a_state_topic_made_again_while_running_is_refused() -> None:
    """The states that were in it are lost, and a daemon that goes on would let its floor pass over them."""
    world = World()
    world.start()
    events(world, b"a", 12)
    world.settle()
    rounds(world, 10)
    world.make_again(STATES)
    assert STATES in refusal(world, lambda: events(world, b"a", 1))


def test_a_floor_in_another_state_topic_does_not_vouch_for_lost_states() -> None:
    """The old process wrote it before it noticed that the topic is another one, and then it died."""
    world = World()
    daemon = world.start()
    events(world, b"a", 12)
    world.settle()
    rounds(world, 10)
    assert world.state_records() == {(0, b"a"): 11}
    for partition in range(PARTITIONS):
        events(world, b"other", 10, partition)
    world.settle()
    world.now_s += 10  # their states are due, and the floors with them
    world.actions.append(("commit", lambda: world.make_again(STATES)))
    with contextlib.suppress(CannotServe):  # it may notice at once
        world.step(daemon)
    assert not world.actions
    assert world.floors() == {0: 22, 1: 10, 2: 10}, "the floor did not reach the new topic"
    world.kill(daemon)
    events(world, b"a", 1)
    assert STATES in refusal(world, world.start)


# -- settings that were changed between a crash and the restart

DEEP = b'{"amount": 3, "note": ' + b"[" * 300 + b"]" * 300 + b"}"
CARRIED = {
    "infinite": (b'{"amount": 3, "note": 1e400}', {"topic": OUTPUT, "include": ["note"]}),
    "deep": (DEEP, {"topic": OUTPUT, "include": ["note"]}),
    "keyless": (b'{"amount": 3}', {"topic": OUTPUT, "key": "who"}),
}


@pytest.mark.parametrize("case", CARRIED)
def test_output_settings_decide_nothing_about_states(case: str) -> None:
    """Events that were answered before the crash count in the replay, whatever of them is to be carried along now."""
    value, output = CARRIED[case]
    world = World()
    daemon = world.start()
    events(world, b"a", 5, value=value)
    world.settle()
    world.kill(daemon)
    world.start(output=output)
    events(world, b"a", 1, value=b'{"amount": 3, "note": 1, "who": "x"}')
    world.settle()
    assert world.steps(b"a")[-1] == 6


@pytest.mark.parametrize("case", CARRIED)
def test_an_event_of_which_nothing_can_be_carried_along_is_answered_without(case: str) -> None:
    value, output = CARRIED[case]
    world = World(output=output)
    world.start()
    events(world, b"a", 1, value=value)
    world.settle()
    found = [record for log in world.broker.topics[OUTPUT].logs for record in log]
    assert len(found) == 1, "it is a dead letter"
    answer = json.loads(found[0].value or b"")
    assert answer["steps"] == 1
    assert not answer.get("event")
    assert found[0].key == (None if case == "keyless" else b"a")


def test_another_bound_on_the_size_of_events_is_refused() -> None:
    """It decides which events count: those that were answered would be left out of the replay."""
    world = World(input={"topic": INPUT, "max_bytes": 1000})
    daemon = world.start()
    events(world, b"a", 5, value=b'{"amount": 3, "note": "' + b"n" * 500 + b'"}')
    world.settle()
    world.kill(daemon)
    events(world, b"a", 1)
    text = refusal(world, lambda: world.start(input={"topic": INPUT, "max_bytes": 100}))
    assert text.count("max_bytes") == 2, f"it does not name both: {text}"


# -- on_model_change: reset, left in the file


def test_a_model_that_comes_back_goes_on_from_its_own_states() -> None:
    """Another was tried meanwhile. What was answered in its time is replayed, by each model for itself."""
    world = World(**RESET)
    for fingerprint, count in ((OLD, 12), (NEW, 3), (OLD, 1), (NEW, 1)):
        daemon = world.start(model(fingerprint))
        events(world, b"a", count)
        world.settle()
        world.stop(daemon)
    assert world.steps(b"a") == [*range(1, 13), 1, 2, 3, 16, 5]


@pytest.mark.parametrize("clean", [True, False])
def test_old_and_new_daemons_in_one_group_do_not_wipe_each_others_states(clean: bool) -> None:
    """A rolling deployment, back and forth: partition 2 goes to the new one and back, by a stop or a crash."""
    world = World(**RESET)
    world.start(model(OLD))
    world.settle()
    wanted = []
    old = new = 0  # events that each model's states of the key contain
    for count in (12, 4, 5):
        events(world, b"a", count, partition=2)
        world.settle()
        wanted += range(old + 1, old + count + 1)
        old, new = old + count, new + count if new else 0
        second = world.start(model(NEW))
        world.settle()
        events(world, b"a", 3, partition=2)
        world.settle()
        assert world.assigned(second) == {2}
        wanted += range(new + 1, new + 4)
        old, new = old + 3, new + 3
        rounds(world, 10)
        (world.stop if clean else world.kill)(second)
    world.settle()
    events(world, b"a", 1, partition=2)
    world.settle()
    assert world.steps(b"a") == [*wanted, old + 1]


def test_a_reset_is_said_once_and_names_both(caplog: pytest.LogCaptureFixture) -> None:
    world = World(**RESET)

    def serve(fingerprint: str) -> list[str]:
        """The warnings of a daemon's life."""
        caplog.clear()
        daemon = world.start(model(fingerprint))
        events(world, b"a", 5)
        world.settle()
        world.stop(daemon)
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    assert serve(OLD) == [], "nothing was there to be reset"
    resets = serve(NEW)
    assert len(resets) == 1
    assert OLD in resets[0]
    assert NEW in resets[0]
    assert [serve(OLD), serve(NEW)] == [[], []]


@pytest.mark.parametrize("on_model_change", ["fail", "reset"])
def test_a_damaged_floor_is_refused_and_nothing_is_wiped(on_model_change: str) -> None:
    """It may be anybody's: whether to give the states up is for a person to say."""
    world = World()
    daemon = world.start()
    events(world, b"a", 12)
    world.settle()
    world.stop(daemon)
    world.broker.compact(STATES)  # no older floor is left to fall back to
    offset = world.damage_floor(0)
    before = len(world.broker.topics[STATES].logs[0])
    events(world, b"a", 1)
    text = refusal(world, lambda: world.start(on_model_change=on_model_change))
    assert f"{STATES}[0]" in text or (STATES in text and "partition 0" in text)
    assert str(offset) in text
    assert len(world.broker.topics[STATES].logs[0]) == before


# -- at_least_once


@pytest.mark.parametrize("point", AT_LEAST_ONCE_POINTS)
def test_a_stalled_owner_does_not_write_over_its_successors_states(point: str) -> None:
    """It wakes within a commit, after another member has taken over and written newer states."""
    world = World(delivery="at_least_once")
    first = world.start()
    events(world, b"a", 6)
    world.settle()
    world.now_s += 10  # the state of `a` is due
    events(world, b"a", 1)

    def stall() -> None:
        world.abort_transactions()
        world.expire(first)
        world.start()
        for _ in range(4):
            rounds(world, 10, but=first)
            events(world, b"a", 5)
        rounds(world, 20, but=first)
        assert world.state_records()[0, b"a"] == 26

    world.actions.append((point, stall))
    world.step(first)
    assert not world.actions
    world.kill(first)
    world.settle()
    move_floor(world, beyond=27)
    for daemon in list(world.daemons):
        world.kill(daemon)
    world.start()
    events(world, b"a", 1)
    world.settle()
    assert world.steps(b"a")[-1] == 28
    world.check()
