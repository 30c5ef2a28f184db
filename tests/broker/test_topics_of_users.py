"""Topics as users have them: compacted, just made with many partitions, keys in two partitions, a shared group id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata

from tests.broker.harness import RunningDaemon, admin, committed_offsets, create_topics, produce, read_all, write_config
from tests.models import random_model

NOW_MS = 1_700_000_000_000


def config_of(tmp_path: Path, servers: str, name: str, **sections: Any) -> Path:
    model = random_model(tmp_path, hidden=4)
    return write_config(tmp_path / "c.yaml", name=name, model=model, servers=servers, **sections)


def events(count: int, partition: int = 0, *, key: bytes | None = b"k") -> list[tuple[bytes | None, bytes, int, int]]:
    return [(key, b'{"amount": %d, "customer": "customer-1"}' % n, NOW_MS + n * 1000, partition) for n in range(count)]


def answered(servers: str, name: str, partitions: int = 1) -> list[tuple[int, int]]:
    """(offset, steps) of the predictions."""
    values = [json.loads(record.value) for record in read_all(servers, f"{name}.out", partitions=partitions)]
    return [(value["source"]["offset"], value["steps"]) for value in values]


def warnings(daemon: RunningDaemon, text: str) -> list[dict[str, Any]]:
    return [line for line in daemon.log_lines if line["level"] == "warning" and text in line["message"]]


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
def test_a_compacted_input_is_refused_at_the_first_start(
    broker: str, topic_prefix: str, tmp_path: Path, policy: str
) -> None:
    name = topic_prefix
    with admin(broker) as client:
        configs = {"cleanup.policy": policy}
        client.create_topics({f"{name}.in": {"num_partitions": 1, "configs": configs}}, wait_for_metadata=True)
    with RunningDaemon(config_of(tmp_path, broker, name), tmp_path / "log") as daemon:
        assert daemon.wait_end() == 2
        assert f"cleanup.policy={policy}: compaction removes events" in daemon.last_words()


def test_a_first_start_with_many_partitions(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """The topics that it has just made are not gone. The input is made at the same moment as the daemon starts."""
    for number in range(2):
        name = f"{topic_prefix}-{number}"
        with RunningDaemon(config_of(tmp_path, broker, name), tmp_path / f"log{number}") as daemon:
            with admin(broker) as client:
                client.create_topics({f"{name}.in": {"num_partitions": 200}}, wait_for_metadata=False)
            daemon.wait_ready()
            assert not any("is gone" in line["message"] for line in daemon.log_lines)
            assert daemon.sigterm() == 0, daemon.last_words()
        with admin(broker) as client:
            client.delete_topics([f"{name}.in", f"{name}.out", f"{name}.state", f"{name}.dead-letter"])


def test_offsets_that_another_consumer_committed(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """A consumer with the daemon's group id takes three events while it is stopped: refused, or accepted and said."""
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=1)
    config = config_of(tmp_path, broker, name)
    produce(broker, f"{name}.in", events(5))
    with RunningDaemon(config, tmp_path / "log") as daemon:
        daemon.wait(lambda: committed_offsets(broker, name).get(0) == 5, "all committed")
        assert daemon.sigterm() == 0
    produce(broker, f"{name}.in", events(3))
    other = KafkaConsumer(bootstrap_servers=broker, group_id=name, enable_auto_commit=False)
    at = TopicPartition(f"{name}.in", 0)
    other.assign([at])
    other.commit({at: OffsetAndMetadata(8, "", -1)})
    other.close()
    produce(broker, f"{name}.in", events(1))
    with RunningDaemon(config, tmp_path / "log2") as daemon:
        assert daemon.wait_end() == 2
        assert "moved from 5 to 8, and not by lstmstream: offsets 5 to 7 have no prediction" in daemon.last_words()
    accepting = config_of(tmp_path, broker, name, input={"on_foreign_commit": "accept"})
    for number in range(2):
        with RunningDaemon(accepting, tmp_path / f"log3-{number}") as daemon:
            daemon.wait(lambda: answered(broker, name)[-1] == (8, 9), "answering the last event")
            daemon.wait_ready()
            said = warnings(daemon, "not by lstmstream")
            assert [(line["first"], line["last"]) for line in said] == [(5, 7)][number:]
            assert daemon.sigterm() == 0


def test_one_key_in_two_partitions_and_records_without_key(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=4)
    config = config_of(tmp_path, broker, name, input={"key": "customer"})
    produce(broker, f"{name}.in", events(4, 0, key=None) + events(4, 1, key=None))
    with RunningDaemon(config, tmp_path / "log") as daemon:
        daemon.wait(lambda: daemon.count("keys_in_several_partitions_total") == 1, "finding the key")
        (said,) = warnings(daemon, "arrive in several partitions")
        assert "'customer'" in said["message"]
        assert "customer-1" not in str({k: v for k, v in said.items() if k != "ts"})
        assert daemon.sigterm() == 0
