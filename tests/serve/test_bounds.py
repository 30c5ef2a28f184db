"""One event, or a state that has grown too far, does not take a key out for good."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest

from lstmstream.serve.step_model import StepInput, StepOutput
from lstmstream.transport.memory import FAULT_POINTS
from tests.serve.memory_world import INPUT, LETTERS, FakeStep, World, card

HOUR_MS, YEAR_MS = 3_600_000, 365 * 86_400_000


class Growing(FakeStep):
    """Its state doubles with each event until it is not finite; an amount of 7 is not finite on any state."""

    def step(self, given: StepInput) -> StepOutput:
        amount = np.nan_to_num(given.x[:, 0])
        with np.errstate(over="ignore"):
            mean = given.state[:, 0] * np.float32(1e10)
        mean = np.where(amount == np.float32(7), np.float32(np.inf), mean)
        count = given.state[:, 1] + np.float32(1)
        return StepOutput(np.stack([mean, count], axis=1), count, None)


def produce(world: World, amounts: list[float]) -> None:
    for amount in amounts:
        world.produce(b"k", b'{"amount": %d}' % amount, 0)


def letters(world: World) -> list[str]:
    return [(dict(r.headers)["__streams.errors.message"] or b"").decode() for r in world.broker.topics[LETTERS].logs[0]]


def test_a_state_that_has_grown_too_far_starts_over(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    daemon = world.start(Growing(card()))
    produce(world, [1] * 20)
    world.settle()
    # 0.5e10, ..., 0.5e30: three events; the next ten are not finite; then it starts over.
    assert world.steps(b"k") == [1, 2, 3, 1, 2, 3]
    assert len(letters(world)) == 14
    assert letters(world)[0] == (
        "the model's output for this event is not finite; the key's state stays as it was. It has grown to 5e+29 in"
        " 'mean'; after 10 such events in a row the key starts with a fresh state"
    )
    assert world.metric(daemon, "state_resets_total") == 1
    assert [r.levelno for r in caplog.records if "start with fresh states" in r.getMessage()] == [logging.WARNING]


def test_events_that_fail_on_any_state_discard_none() -> None:
    world = World()
    daemon = world.start(Growing(card()))
    produce(world, [1, 1] + [7] * 50 + [1])
    world.settle()
    assert world.steps(b"k") == [1, 2, 3]
    assert world.metric(daemon, "state_resets_total") == 0


def test_an_answer_in_between_begins_the_count_anew() -> None:
    world = World(state={"checkpoint_interval": "5s", "reset_after_failures": 2})
    world.start(Growing(card()))
    produce(world, [1, 1, 1, 1, 7, 1])
    world.settle()
    assert world.steps(b"k") == [1, 2, 3], "the 7 between them is nobody's fault and no answer either"
    produce(world, [1, 1])
    world.settle()
    assert world.steps(b"k") == [1, 2, 3, 1, 2]


@pytest.mark.parametrize("point", [p for p in FAULT_POINTS if p not in ("connect", "outputs")])
@pytest.mark.parametrize("kill", [False, True])
def test_the_count_survives_whatever_happens(point: str, kill: bool) -> None:
    """Faults, kills and restarts at any event: the same answers and dead letters as without."""
    expected = World()
    expected.start(Growing(card()))
    produce(expected, [1] * 40)
    expected.settle()
    world = World()
    daemon = world.start(Growing(card()))
    for number in range(40):
        produce(world, [1])
        world.faults.append(point)
        world.settle()
        if number % 3 == 2:
            world.now_s += 6
            world.step(daemon)  # states may be due
        if number % 4 == 3:
            if kill:
                world.kill(daemon)
            else:
                assert world.stop(daemon) == 0
            world.faults.clear()
            daemon = world.start(Growing(card()))
            world.settle()
    world.check_states()
    assert world.steps(b"k") == expected.steps(b"k")
    assert len(letters(world)) == len(letters(expected))


def event(at_ms: int) -> bytes:
    return json.dumps({"amount": 1, "at": at_ms}).encode()


@pytest.mark.parametrize(
    ("named", "ahead_ms", "refused"),
    [
        ({}, YEAR_MS, ""),
        ({}, YEAR_MS + 1, "365 days"),
        ({}, 200 * YEAR_MS, "200 years"),
        ({}, -50 * YEAR_MS, ""),
        ({"max_future": "1h"}, HOUR_MS, ""),
        ({"max_future": "1h"}, HOUR_MS + 1, "60 min"),
        ({"max_future": "36500d"}, 50 * YEAR_MS, ""),
    ],
)
def test_a_time_far_after_the_records_own_is_a_dead_letter(named: dict[str, Any], ahead_ms: int, refused: str) -> None:
    world = World(input={"topic": INPUT, "timestamp": "at", "late": "drop", **named})
    world.now_s = 1_767_225_600.0
    world.start()
    now_ms = int(world.now_s * 1000)
    for at_ms in (now_ms, now_ms + ahead_ms, now_ms + 1):
        world.broker.append(INPUT, 0, b"k", event(at_ms), now_ms)
    world.settle()
    if ahead_ms > 0 and not refused:
        assert world.steps(b"k") == [1, 2], "the last one is late then"
    elif not refused:
        assert world.steps(b"k") == [1, 2], "the one from the past is late"
    else:
        assert world.steps(b"k") == [1, 2]
        (message,) = letters(world)
        assert message == f"field 'at' lies {refused} after the record's timestamp, more than input.max_future"


def test_records_without_a_time_of_their_own_have_no_bound() -> None:
    world = World(input={"topic": INPUT, "timestamp": "at"})
    world.start()
    world.broker.append(INPUT, 0, b"k", event(200 * YEAR_MS), -1)
    world.settle()
    assert world.steps(b"k") == [1]


@pytest.mark.parametrize(
    "change", [{"input": {"topic": INPUT, "max_future": "1h"}}, {"state": {"reset_after_failures": 3}}]
)
def test_states_of_another_bound_are_others(change: dict[str, Any]) -> None:
    world = World()
    daemon = world.start()
    world.produce(b"k", b'{"amount": 1}')
    world.settle()
    assert world.stop(daemon) == 0
    world.settings = change | {"on_model_change": "reset"}
    world.start()
    world.produce(b"k", b'{"amount": 1}')
    world.settle()
    assert world.steps(b"k") == [1, 1]
