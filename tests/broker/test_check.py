"""`lstmstream check` against a real broker: what it says of timeouts is what the broker does to a daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.broker.harness import RunningDaemon, check_lines, create_topics, write_config
from tests.models import random_model

OVER = {"session.timeout.ms": 900, "heartbeat.interval.ms": 300}  # the development broker's least is 1000
LONG = {"transaction.timeout.ms": 900_001}


@pytest.mark.parametrize(
    ("properties", "said"),
    [(OVER, "group.min.session.timeout.ms = 1000"), (LONG, "transaction.max.timeout.ms = 900000")],
    ids=["session", "transaction"],
)
def test_what_the_broker_refuses_is_said_before(
    broker: str, topic_prefix: str, tmp_path: Path, properties: dict[str, int], said: str
) -> None:
    create_topics(broker, [f"{topic_prefix}.in"], partitions=1)
    model = random_model(tmp_path, hidden=4)
    kafka = {"properties": properties}
    config = write_config(tmp_path / "c.yaml", name=topic_prefix, model=model, servers=broker, kafka=kafka)
    code, lines = check_lines(config, "timeouts")
    assert (code, sorted(status for status, _ in lines)) == (1, ["failed", "ok"])
    assert any(status == "failed" and said in text for status, text in lines)
    with RunningDaemon(config, tmp_path / "log") as daemon:
        assert daemon.wait_end() == 2, daemon.last_words()
    assert next(iter(properties)) in daemon.log_lines[-1]["message"]
