"""Readiness knows whether input that waits is answered, and repeated failures leave a log that can be read."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from lstmstream.errors import RecordRefused, TryAgain
from lstmstream.records import RecordBatch
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.failure_log import LONGEST_PAUSE_S, FailureLog
from lstmstream.serve.health import Health
from lstmstream.serve.observers import Gauges, HealthObserver, PartitionGauges
from lstmstream.transport.memory import MemoryTransport
from tests.serve.memory_world import INPUT, LETTERS, OUTPUT, World


class Watch:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.health = Health(stall_after=30.0, clock=lambda: self.now_s, blocked={})

    def after(self, seconds: float) -> tuple[bool, list[str]]:
        self.now_s += seconds
        self.health.heartbeat()
        return self.health.readyz()


def test_idle_without_input_stays_ready() -> None:
    watch = Watch()
    watch.health.waiting(0)
    assert watch.after(10_000) == (True, [])


def test_input_that_waits_without_a_commit_is_not_ready_until_the_next_one() -> None:
    watch = Watch()
    watch.health.waiting(7)
    assert watch.after(30)[0]
    watch.health.waiting(8)
    assert watch.after(1) == (False, ["8 records are waiting, and no batch was committed for 31 s"])
    watch.health.failed("expired" * 100, 3)
    ready, [reason] = watch.after(1)
    assert not ready
    assert reason.startswith("8 records are waiting, and no batch was committed for 32 s; the last error: expired")
    assert len(reason) < 400
    watch.health.committed(3)
    assert watch.after(30)[0], "5 still wait, and one batch went through"
    assert watch.after(1)[1] == ["5 records are waiting, and no batch was committed for 31 s"]
    watch.health.committed(5)
    assert watch.after(100)[0], "nothing waits, as far as is known: the broker may be away before it is asked again"
    watch.health.waiting(8)
    assert not watch.after(31)[0]
    watch.health.waiting(0)
    assert watch.after(0)[0], "they were answered elsewhere"


def test_time_counts_from_when_input_began_to_wait() -> None:
    watch = Watch()
    watch.health.committed(1)
    watch.after(1_000)
    watch.health.waiting(1)
    assert watch.after(29)[0]
    assert not watch.after(2)[0]


def failing(world: World) -> Daemon:
    """A daemon whose broker is there, and takes no batch."""
    daemon = world.start()
    world.settle()

    def on_write(_batch: RecordBatch) -> None:
        world.now_s += 1
        raise TryAgain("NOT_ENOUGH_REPLICAS")

    world.broker.on_write = on_write
    for _ in range(5):
        world.produce(b"k", b'{"amount": 1}', partition=0)
    return daemon


def test_a_broker_that_fails_each_commit_makes_the_daemon_not_ready() -> None:
    world = World()
    daemon = failing(world)
    for _ in range(25):
        world.step(daemon)
    health = world.health[id(daemon)]
    assert health.livez()[0], "the loop moves"
    ready, reasons = health.readyz()
    assert not ready
    assert any("records are waiting" in reason and "NOT_ENOUGH_REPLICAS" in reason for reason in reasons), reasons
    world.broker.on_write = lambda _batch: None
    world.settle(100)
    world.step(daemon)
    assert health.readyz() == (True, [])
    world.check()


def test_recovery_after_recovery_waits_and_does_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    caplog.set_level(logging.INFO, "lstmstream")
    daemon = failing(world)
    caplog.clear()
    began_s = world.now_s
    for _ in range(200):
        world.step(daemon)
    assert world.now_s - began_s > 350, "each waits a second, beside the second of the commit"
    assert len(caplog.records) < 25, [record.message for record in caplog.records]
    assert "times in" in caplog.text


@pytest.mark.parametrize("works_again", [True, False])
def test_a_stop_while_each_commit_fails_ends_in_time_with_one_line(
    caplog: pytest.LogCaptureFixture, works_again: bool
) -> None:
    world = World(state={"checkpoint_interval": "1h"})
    daemon = failing(world)
    refuse_all, world.broker.on_write = world.broker.on_write, lambda _batch: None
    world.settle()
    assert world.dirty_rows(daemon)
    world.broker.on_write = refuse_all
    world.produce(b"k", b'{"amount": 1}', partition=0)
    for _ in range(3):
        world.step(daemon)
    if works_again:
        world.broker.on_write = lambda _batch: None
    began_s = world.now_s
    assert world.stop(daemon) == (0 if works_again else 1)
    errors = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == (0 if works_again else 1)
    assert all("shutdown_timeout" in error and "NOT_ENOUGH_REPLICAS" in error for error in errors)
    assert world.now_s - began_s < 30


def test_a_failure_is_logged_with_back_off_and_a_count(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    failures = FailureLog(logging.getLogger("lstmstream.test"), lambda: now_s)
    for _ in range(2_400):
        failures.note("the broker failed", f"no answer from node {int(now_s)}")
        now_s += 0.125
    lines = [record.message for record in caplog.records]
    assert lines[0] == "the broker failed: no answer from node 0"
    assert lines[1] == "the broker failed: no answer from node 1 (9 times in 1 s)"
    assert len(lines) == 1 + 6 + int((300 - 63) // LONGEST_PAUSE_S)
    failures.note("the broker failed", "another kind")
    now_s += 61
    failures.note("the broker failed", "another kind")
    assert [record.message for record in caplog.records][-2:] == ["the broker failed: another kind"] * 2


def test_many_refused_records_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    caplog.set_level(logging.INFO, "lstmstream")
    world.start()
    world.settle()

    def on_write(batch: RecordBatch) -> None:
        if batch.topic == OUTPUT:
            raise RecordRefused("no such time", topic=OUTPUT, partition=0)

    world.broker.on_write = on_write
    caplog.clear()
    for _ in range(200):
        world.produce(b"k", b'{"amount": 1}', partition=0)
    world.settle(3_000)
    assert len(world.broker.topics[LETTERS].logs[0]) == 200
    assert len(caplog.records) < 40, [record.message for record in caplog.records]


def test_the_lag_is_not_known_while_the_broker_is_away(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the metric nor the line a minute keeps the last one; that records wait is not forgotten."""
    caplog.set_level(logging.INFO)
    world = World()
    daemon = world.start()
    world.produce(b"a", b'{"amount": 1}', partition=0)
    world.settle()
    world.now_s += 2
    world.step(daemon)
    lag = {"topic": INPUT, "partition": "0"}
    registry = world.metrics[id(daemon)].registry
    assert registry.get_sample_value("lstmstream_consumer_lag_records", lag) == 0
    world.away = True
    back_s = world.now_s + 130

    def come_back(_point: str) -> None:
        if world.now_s >= back_s - 5:
            assert registry.get_sample_value("lstmstream_consumer_lag_records", lag) is None
        world.away = world.now_s < back_s

    world.watch = come_back
    world.step(daemon)
    assert registry.get_sample_value("lstmstream_consumer_lag_records", lag) == 0
    beats = [vars(record)["lag"] for record in caplog.records if record.getMessage() == "the last minute"]
    assert len(beats) == 2
    assert beats == [None, None]


def test_where_the_lag_is_not_known_what_waited_still_waits() -> None:
    watch = Watch()
    observer = HealthObserver(watch.health)
    known = Gauges([PartitionGauges(0, 0, 7), PartitionGauges(1, None, None)], 0, 0, 0)
    unknown = Gauges([PartitionGauges(0, 0, None), PartitionGauges(1, None, None)], 0, 0, 0)
    observer.on_gauges(known)
    watch.now_s += 20
    observer.on_gauges(unknown)
    ready, reasons = watch.after(11)
    assert not ready
    assert reasons[0].startswith("7 records are waiting")
    observer.on_gauges(Gauges([], 0, 0, 0))
    assert watch.after(0)[0], "other members have the partitions now"


def test_a_member_that_was_dropped_is_not_ready_until_it_is_back() -> None:
    world = World()
    daemon = world.start()
    world.settle()
    health = world.health[id(daemon)]
    assert health.readyz() == (True, [])
    world.expire(daemon)
    world.step(daemon)
    ready, reasons = health.readyz()
    assert not ready
    assert "dropped from the consumer group; rejoining" in reasons
    world.step(daemon)
    world.settle()
    assert health.readyz() == (True, [])


def test_a_broker_that_is_waited_for_at_the_start_is_no_loop_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call may take its seconds, and before the first round of the loop there are many."""
    world = World()
    told: list[Callable[[], None]] = []
    monkeypatch.setattr(MemoryTransport, "on_wait", lambda _self, callback: told.append(callback))
    life = world.make()

    def wait(_point: str) -> None:
        for _ in range(6):
            world.now_s += 6
            told[0]()
            assert life.health.livez()[0]

    world.watch = wait
    assert life.begin() is not None
    assert life.health.livez()[0]
