"""Keys that go, on a real broker: a daemon that is killed meanwhile, judged by `verify`; and what is in the topic."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lstmstream.serve.state_records import FLOOR, unpack_key
from tests.broker.harness import (
    RunningDaemon,
    committed_offsets,
    create_topics,
    end_offsets,
    produce,
    read_all,
    write_config,
)
from tests.broker.test_verify import verify
from tests.models import random_model
from tests.verify.world import NOW_MS

PARTITIONS = 2
COUNT = 3_000  # of each partition


def churn() -> Iterator[tuple[bytes, bytes, int, int]]:
    """Keys that come, have a few events and never come back; a few that do; events that are late."""
    source = random.Random(3)
    for number in range(COUNT):
        for partition in range(PARTITIONS):
            key = source.randrange(5) if source.random() < 0.05 else 5 + number // 4 - source.randrange(3)
            late_ms = source.choice([0, 0, 0, 500, 4_000, 12_000])
            yield b"k%d-%d" % (partition, key), b'{"amount": %d}' % number, NOW_MS + 1000 * number - late_ms, partition


def keys_in_topic(broker: str, name: str) -> set[bytes | None]:
    """Those whose newest record in the state topic is a state."""
    newest = {
        (record.partition, record.key): record.value
        for record in read_all(broker, f"{name}.state", partitions=PARTITIONS)
    }
    return {unpack_key(key) for (_, key), value in newest.items() if key[:1] != FLOOR and value is not None}


@pytest.mark.parametrize(
    ("options", "most_keys"),
    [
        ({"input": {"max_lateness": "10s"}, "state": {"ttl": "60s", "checkpoint_interval": "1s"}}, 300),
        ({"state": {"max_keys": 40, "checkpoint_interval": "1s"}}, 2 * 40),
    ],
    ids=["ttl", "max_keys"],
)
def test_keys_go_and_every_answer_is_right(
    broker: str, topic_prefix: str, tmp_path: Path, options: dict[str, dict[str, Any]], most_keys: int
) -> None:
    name = topic_prefix
    create_topics(broker, [f"{name}.in", f"{name}.out"], partitions=PARTITIONS)
    config = write_config(
        tmp_path / "c.yaml",
        name=name,
        model=random_model(tmp_path, hidden=4),
        servers=broker,
        batch={"max_events": 100},
        **options,
    )
    produce(broker, f"{name}.in", list(churn()))
    with RunningDaemon(config, tmp_path / "log1") as daemon:
        daemon.wait(lambda: sum(committed_offsets(broker, name).values()) > COUNT, "a part is answered")
        daemon.kill9()
    with RunningDaemon(config, tmp_path / "log") as daemon:
        ends = end_offsets(broker, f"{name}.in", partitions=PARTITIONS)
        daemon.wait(lambda: committed_offsets(broker, name) == ends, "all answered")
        daemon.wait(lambda: len(keys_in_topic(broker, name)) <= most_keys, "old keys leave the state topic")
        assert daemon.sigterm() == 0, daemon.last_words()
    code, summary, said = verify(config)
    assert (code, summary["result"], summary["events"]) == (0, "right", COUNT * PARTITIONS), said
