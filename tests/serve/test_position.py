"""A client that goes on elsewhere than it was told: nothing is answered twice or skipped, and the log says so."""

from __future__ import annotations

import pytest

from lstmstream.errors import TryAgain
from lstmstream.records import RecordBatch
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.seeks import Seeks
from tests.serve.memory_world import World


def produce(world: World, count: int) -> None:
    for number in range(count):
        world.produce(b"abc"[number % 3 :][:1], b'{"amount": %d}' % number, 0)


def answered(events: int) -> World:
    """By a daemon that was killed."""
    world = World()
    produce(world, events)
    world.start()
    world.settle()
    world.kill(world.daemons[0])
    return world


def step_until_said(world: World, daemon: Daemon, caplog: pytest.LogCaptureFixture, word: str) -> None:
    for _ in range(50):
        if word in caplog.text:
            return
        world.step(daemon)
    pytest.fail(f"{word!r} was never said")


def check(world: World, caplog: pytest.LogCaptureFixture, said: str) -> None:
    assert said in caplog.text
    world.settle()
    world.check()
    world.check_states()


@pytest.mark.parametrize("offset", [0, 7, 11])
def test_events_that_were_answered_come_again(offset: int, caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    daemon = world.start()
    produce(world, 12)
    world.settle()
    world.lose_seek(daemon, 0, back=12 - offset)
    produce(world, 3)
    world.step(daemon)
    check(world, caplog, f"in[0] returned offset {offset} again, although its position was 12")


def test_events_of_the_open_transaction_come_again(caplog: pytest.LogCaptureFixture) -> None:
    """They are not committed yet, and the next batch is polled beside it."""
    world = World()
    daemon = world.start(batch={"max_events": 2})
    world.settle()
    produce(world, 6)
    world.step(daemon)
    assert world.broker.offsets[0] == 0, "the transaction is open"
    world.lose_seek(daemon, 0, back=2)
    world.step(daemon)
    check(world, caplog, "in[0] returned offset 0 again, although its position was 2")


def test_events_come_again_after_a_restore(caplog: pytest.LogCaptureFixture) -> None:
    """A client that reads from its beginning where it was told to read from the committed offset."""
    world = answered(12)
    produce(world, 3)
    daemon = world.start()
    for _ in range(50):
        if world.serving(daemon):
            break
        world.step(daemon)
    world.lose_seek(daemon, 0, back=12)
    world.step(daemon)
    check(world, caplog, "in[0] returned offset 0 again, although its position was 12")


@pytest.mark.parametrize("events", [1, 3, 50])  # of those that wait; more: the client comes to the end, without records
def test_events_that_wait_are_skipped_after_a_restore(events: int, caplog: pytest.LogCaptureFixture) -> None:
    world = answered(12)
    produce(world, 6)
    world.broker.misled[0] = events
    daemon = world.start()
    step_until_said(world, daemon, caplog, "skipped")
    check(world, caplog, "in[0] skipped offset 12: it returned ")


def test_events_that_wait_are_skipped_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    daemon = world.start()
    produce(world, 6)
    world.settle()
    produce(world, 6)
    world.faults.append("commit")
    world.broker.misled[0] = 2
    step_until_said(world, daemon, caplog, "skipped")
    check(world, caplog, "in[0] skipped offset 6: it returned 8 after 6")


def test_events_that_wait_are_skipped_right_before_a_stop() -> None:
    """A stop looks for control records at the position: what the client has skipped is none."""
    world = answered(12)
    produce(world, 3)
    world.broker.misled[0] = 3
    daemon = world.start()
    while 0 not in world.serving(daemon):
        world.step(daemon)
    assert world.stop(daemon) == 0
    assert world.broker.offsets[0] == 12
    world.start()
    world.settle()
    world.check()
    world.check_states()


def test_a_stretch_without_records_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    """Control records, compaction and aborted transactions leave such stretches behind many a committed offset."""
    world = answered(6)
    world.broker.append_control("in", 0, 20)
    produce(world, 3)
    world.start()
    check(world, caplog, "")
    assert not caplog.text


class SlowLog:
    """As much of a transport as `Seeks` needs: a log without records, of which a call gives ten offsets in 4 s."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.opened: list[tuple[int, int]] = []
        self.closed = 0
        self.position = self.end = 0

    def resume(self, partition: int, offset: int) -> None:
        pass

    def open_reader(self, topic: str, partition: int, start: int, end: int) -> SlowLog:
        self.opened.append((start, end))
        self.position, self.end = start, end
        return self

    def next(self, timeout_s: float) -> RecordBatch:
        self.now_s += 4.0
        self.position = min(self.end, self.position + 10)
        return RecordBatch.empty("in")

    def close(self) -> None:
        self.closed += 1


def test_a_long_stretch_is_read_in_several_looks() -> None:
    """Each of them ends in time for the member's group, and none begins from the start."""
    slow = SlowLog()
    seeks = Seeks(slow, "in", lambda: slow.now_s)  # type: ignore[arg-type]
    seeks.resume(0, 5)
    with pytest.raises(TryAgain, match=r"in\[0\] returned 50 after 5; what lies between is still read, at 35"):
        seeks.check({0: 50}, {0: 51}, {0: 5}, [0])
    seeks.resume(0, 5)
    seeks.check({0: 50}, {0: 51}, {0: 5}, [0])
    assert slow.opened == [(5, 50), (35, 50)]
    assert slow.closed == 2
    seeks.resume(0, 5)
    seeks.check({0: 50}, {0: 51}, {0: 5}, [0])
    assert len(slow.opened) == 2, "all of it is known"
    seeks.check({0: 90}, {0: 91}, {0: 51}, [0])
    assert len(slow.opened) == 2, "only the first records after a seek are looked at"


def test_a_client_that_waits_where_it_was_told_may_still_go_on_elsewhere() -> None:
    """Its position proves nothing before it gives records: the library may not have made its seek yet."""
    slow = SlowLog()
    seeks = Seeks(slow, "in", lambda: slow.now_s)  # type: ignore[arg-type]
    seeks.resume(0, 5)
    seeks.check({}, {0: 5}, {}, [0])
    assert slow.opened == []
    seeks.check({0: 8}, {0: 9}, {0: 5}, [0])
    assert slow.opened == [(5, 8)]
