"""Keys whose events come in several partitions, and records without a key: said, counted, and never named."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from lstmstream.serve import key_check
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.key_check import WARN_INTERVAL_S
from tests.serve.memory_world import INPUT, World

EVENT = b'{"amount": 1, "customer": "c1"}'
BY_FIELD: dict[str, Any] = {"input": {"topic": INPUT, "key": "customer"}}


def warnings(caplog: pytest.LogCaptureFixture, text: str) -> list[dict[str, Any]]:
    return [record.__dict__ for record in caplog.records if text in record.message]


@pytest.mark.parametrize(
    ("settings", "record_key", "by"), [({}, b"c1", "the record key"), (BY_FIELD, None, "customer")]
)
def test_a_key_in_two_partitions_is_said_once_and_counted(
    settings: dict[str, Any], record_key: bytes | None, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(**settings)
    for number in range(8):
        world.produce(record_key, EVENT, number % 2)
    daemon = world.start()
    world.settle()
    for number in range(8):
        world.produce(record_key, EVENT, number % 2)
    world.settle()
    (said,) = warnings(caplog, "arrive in several partitions")
    assert by in said["message"]
    assert (said["keys"], {said["partition"], said["other_partition"]}) == (1, {0, 1})
    assert all("c1" not in str(value) for value in said.values())
    assert world.metric(daemon, "keys_in_several_partitions_total") == 1
    assert world.metric(daemon, "records_without_key_total") == 0


def test_keys_in_one_partition_each_are_nothing_to_say(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    for number in range(60):
        world.produce(b"k%d" % number, EVENT, number % 3)
    daemon = world.start()
    world.settle()
    assert not warnings(caplog, "partition")
    assert world.metric(daemon, "keys_in_several_partitions_total") == 0


def test_a_key_that_was_restored_in_both_is_found(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    for partition in (0, 1):
        world.produce(b"c1", EVENT, partition)
    first = world.start()
    world.settle()
    assert world.stop(first) == 0
    caplog.clear()
    world.produce(b"c1", EVENT, 1)
    world.start()
    world.settle()
    assert len(warnings(caplog, "arrive in several partitions")) == 1


def test_of_a_large_batch_some_keys_are_looked_at_and_in_the_end_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_check, "LOOK_UPS", 6)
    world = World(batch={"max_events": 1000})
    daemon = world.start()
    world.settle()
    for _ in range(40):
        for number in range(20):
            for partition in (0, 1):
                world.produce(b"k%d" % number, EVENT, partition)
        world.settle()
    assert world.metric(daemon, "keys_in_several_partitions_total") == 20


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_check, "MAX_REMEMBERED", 5)
    world = World()
    for number in range(40):
        world.produce(b"k%d" % (number // 2), EVENT, number % 2)
    daemon = world.start()
    world.settle()
    assert world.metric(daemon, "keys_in_several_partitions_total") == 5


def test_records_without_a_key_are_said_once_an_hour_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    world = World()
    daemon = world.start()

    def more() -> None:
        for number in range(6):
            world.produce(None, EVENT, number % 3)
        world.produce(b"k", EVENT, 0)
        world.settle()

    more()
    more()
    (said,) = warnings(caplog, "without a key")
    assert (said["topic"], said["partitions"], said["partition"]) == (INPUT, 3, 0)
    assert world.metric(daemon, "records_without_key_total") == 12
    assert not warnings(caplog, "arrive in several"), "a null key is in every partition by nature"
    world.now_s += WARN_INTERVAL_S
    more()
    assert [one["records"] >= 12 for one in warnings(caplog, "without a key")[1:]] == [True]


@pytest.mark.parametrize("point", ["commit", "begin", "committed"])
def test_nothing_is_counted_before_it_is_committed(point: str) -> None:
    world = World()
    world.produce(None, EVENT, 0)
    daemon: Daemon = world.start()
    world.faults += [point, point]
    world.settle()
    assert world.metric(daemon, "records_without_key_total") == 1
