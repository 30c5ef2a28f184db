"""`lstmstream check` compares timeouts and sizes with the bounds of the broker."""

from __future__ import annotations

from typing import Any

import pytest

from lstmstream.check.broker_limits import check_request_size, check_timeouts
from lstmstream.check.results import Status
from lstmstream.config import Config
from lstmstream.transport.ports import TopicInfo
from tests.verify.world import KAFKA_DEFAULTS

STATE_FLOATS = 64
INPUT = TopicInfo("id", 3, {"max.message.bytes": "1000000"})


def config(**properties: int) -> Config:
    dotted: dict[str, Any] = {name.replace("_", "."): value for name, value in properties.items()}
    kafka = {"bootstrap_servers": "a:1", "properties": dotted}
    return Config.model_validate(
        {"name": "t", "model": "m", "kafka": kafka, "input": {"topic": "in"}, "output": {"topic": "out"}}
    )


def timeouts(broker: dict[str, str], **properties: int) -> list[tuple[Status, str]]:
    return [(line.status, line.text) for line in check_timeouts(config(**properties), broker)]


def sizes(broker: dict[str, str], **properties: int) -> list[tuple[Status, str]]:
    found = check_request_size(config(**properties), broker, INPUT, STATE_FLOATS)
    return [(line.status, line.text) for line in found]


def test_the_defaults_fit_a_broker_with_its_defaults() -> None:
    assert timeouts(KAFKA_DEFAULTS) == [
        (Status.OK, "session.timeout.ms = 45000; the broker accepts 6000 to 1800000"),
        (Status.OK, "transaction.timeout.ms = 10000; the broker accepts at most 900000"),
    ]
    assert [status for status, _ in sizes(KAFKA_DEFAULTS)] == [Status.OK]


@pytest.mark.parametrize(("value", "status"), [(5999, "failed"), (6000, "ok"), (1800000, "ok"), (1800001, "failed")])
def test_the_session(value: int, status: str) -> None:
    assert timeouts(KAFKA_DEFAULTS, session_timeout_ms=value)[0][0] is Status(status)


@pytest.mark.parametrize(("value", "status"), [(900000, "ok"), (900001, "failed")])
def test_the_transaction(value: int, status: str) -> None:
    assert timeouts(KAFKA_DEFAULTS, transaction_timeout_ms=value)[1][0] is Status(status)


def test_a_failed_line_names_setting_bound_and_remedy() -> None:
    short, long = timeouts({**KAFKA_DEFAULTS, "transaction.max.timeout.ms": "9000"}, session_timeout_ms=5000)
    assert short[1] == (
        "kafka.properties session.timeout.ms = 5000 is less than the broker's group.min.session.timeout.ms = 6000, so"
        " the broker refuses the daemon; set it to 6000 or more"
    )
    assert long[1].endswith(
        "transaction.max.timeout.ms = 9000, so the broker refuses the daemon; set it to 9000 or less"
    )


def test_settings_that_may_not_be_read_or_that_the_broker_does_not_have() -> None:
    (line,) = timeouts({})
    assert line[0] is Status.WARNING
    assert "allow DESCRIBE_CONFIGS on the cluster" in line[1]
    assert timeouts({"other": "1"}) == []
    assert [status for status, _ in sizes({})] == [Status.OK]


@pytest.mark.parametrize(
    ("value", "status", "said"),
    [
        (104857601, "failed", "more than the broker's socket.request.max.bytes = 104857600"),
        (104857600, "ok", "smaller"),
        (1065536, "ok", "smaller"),
        (1065535, "warning", "a dead letter from 'in' may need 1065536"),
        (1000, "failed", "a state of this model with its key may need"),
    ],
)
def test_the_size_of_requests(value: int, status: str, said: str) -> None:
    (line,) = sizes(KAFKA_DEFAULTS, max_request_size=value)
    assert line[0] is Status(status)
    assert said in line[1]
