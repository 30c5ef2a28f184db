"""A transaction of another program that stays open is said: what lies behind it cannot be read, and no lag shows it."""

from __future__ import annotations

from typing import Any

import pytest

from lstmstream.errors import TryAgain
from lstmstream.serve.open_transactions import OPEN_S, OpenTransactions
from lstmstream.transport.memory import MemoryTransport
from tests.serve.memory_world import INPUT, STATES, World


class Watched:
    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.world = World()
        self.world.call_s = 0.0
        self.world.broker.create(STATES, 2)
        transport = MemoryTransport(self.world.broker, INPUT)
        clock = lambda: self.world.now_s  # noqa: E731
        self.check = OpenTransactions(transport, clock, input_topic=INPUT, state_topic=STATES)
        self._caplog = caplog
        caplog.set_level("INFO")

    def said(self, running: tuple[int, ...] = (0,), restoring: tuple[int, ...] = ()) -> list[dict[str, Any]]:
        """What is logged by a look now."""
        self._caplog.clear()
        self.check.check(running, restoring)
        return [vars(record) for record in self._caplog.records]


@pytest.mark.parametrize(("topic", "running", "restoring"), [(INPUT, (0,), ()), (STATES, (), (0,))])
def test_one_that_stays_is_said_once_and_when_it_is_over(
    topic: str, running: tuple[int, ...], restoring: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(caplog)
    for _ in range(5):
        watched.world.broker.append(topic, 0, b"k", b"{}")
    watched.world.broker.hanging[topic, 0] = 3
    assert watched.said(running, restoring) == []
    watched.world.now_s += OPEN_S - 1
    assert watched.said(running, restoring) == []
    watched.world.now_s += 1
    (line,) = watched.said(running, restoring)
    assert line["levelname"] == "WARNING"
    assert [line[name] for name in ("topic", "partition", "offset", "waiting")] == [topic, 0, 3, 2]
    watched.world.now_s += OPEN_S
    assert watched.said(running, restoring) == []
    del watched.world.broker.hanging[topic, 0]
    (line,) = watched.said(running, restoring)
    assert line["levelname"] == "INFO"
    assert watched.said(running, restoring) == []


def test_short_ones_one_after_the_other_are_nothing_to_say(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(caplog)
    for offset in range(20):
        watched.world.broker.hanging[INPUT, 0] = offset
        assert watched.said() == []
        watched.world.now_s += OPEN_S / 2


def test_a_daemon_looks_and_goes_on_where_the_broker_does_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    daemon = world.start()
    world.produce(b"k", b'{"amount": 1}', partition=0)
    world.settle()
    world.broker.hanging[INPUT, 0] = 0
    world.faults.append("open_transactions")
    end_s = world.now_s + OPEN_S + 20
    while world.now_s < end_s:
        world.now_s += 1
        world.step(daemon)
    assert "open_transactions" not in world.faults
    assert sum("has been open for" in record.getMessage() for record in caplog.records) == 1


def test_what_is_asked_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(caplog)
    watched.world.faults.append("open_transactions")
    with pytest.raises(TryAgain):
        watched.said()
    assert watched.said() == []
