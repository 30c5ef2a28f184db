"""Offsets that hold no record (control records, aborted transactions) under retention: nothing is lost or lags."""

from __future__ import annotations

import json
from pathlib import Path

from kafka import KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from lstmstream.dev.broker import DevBroker
from lstmstream.serve.state_records import FLOOR, unpack_floor
from tests.broker.harness import (
    RunningDaemon,
    admin,
    committed_offsets,
    create_topics,
    end_offsets,
    read_all,
    write_config,
)
from tests.models import random_model

NOW_MS = 1_700_000_000_000


def transaction(servers: str, topic: str, events: int, *, commit: bool = True) -> None:
    """So many events of one key in one transaction."""
    producer = KafkaProducer(bootstrap_servers=servers, transactional_id=f"{topic}-{events}-{commit}")
    try:
        producer.init_transactions()
        producer.begin_transaction()
        for number in range(events):
            producer.send(topic, key=b"k", value=b'{"amount": %d}' % number, partition=0, timestamp_ms=NOW_MS + number)
        producer.flush()
        if commit:
            producer.commit_transaction()
        else:
            producer.abort_transaction()
    finally:
        producer.close()


def delete_all(servers: str, topic: str) -> int:
    """Delete the records up to the end of partition 0, as retention does; the end."""
    end = end_offsets(servers, topic, partitions=1)[0]
    with admin(servers) as client:
        client.delete_records({TopicPartition(topic, 0): end})
    return end


def steps(servers: str, name: str) -> list[int]:
    return [json.loads(record.value)["steps"] for record in read_all(servers, f"{name}.out", partitions=1)]


def move_offset(servers: str, group: str, topic: str, offset: int) -> None:
    """As kafka-consumer-groups does it."""
    with admin(servers) as client:
        client.alter_group_offsets(group, {TopicPartition(topic, 0): OffsetAndMetadata(offset, "", -1)})


def floor_position(servers: str, name: str) -> int:
    """Up to where a restart has nothing to replay."""
    records = [r for r in read_all(servers, f"{name}.state", partitions=1) if r.key[:1] == FLOOR]
    return unpack_floor(records[-1].value).offset


def lag(daemon: RunningDaemon, name: str) -> float | None:
    labels = (("partition", "0"), ("topic", f"{name}.in"))
    return daemon.metrics().get(("lstmstream_consumer_lag_records", labels))


def test_a_stop_then_retention_takes_all_that_was_answered(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    name, topic = topic_prefix, f"{topic_prefix}.in"
    create_topics(broker, [topic], partitions=1)
    config = write_config(tmp_path / "c.yaml", name=name, model=random_model(tmp_path, hidden=4), servers=broker)
    transaction(broker, topic, 5)
    with RunningDaemon(config, tmp_path / "log") as daemon:
        daemon.wait(lambda: committed_offsets(broker, name).get(0, 0) >= 5, "all committed")
        assert daemon.sigterm() == 0
    delete_all(broker, topic)
    with RunningDaemon(config, tmp_path / "log2") as daemon:
        daemon.wait_ready()
        daemon.wait(lambda: lag(daemon, name) == 0, "without lag")
        transaction(broker, topic, 1)
        daemon.wait(lambda: steps(broker, name) == [1, 2, 3, 4, 5, 6], "answering the sixth event")
        assert daemon.sigterm() == 0


def test_aborted_records_are_passed_over_and_the_offset_says_so(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """While it runs it sees that they hold nothing. While it is away nobody can tell: it asks, and keeps the states."""
    name, topic = topic_prefix, f"{topic_prefix}.in"
    create_topics(broker, [topic], partitions=1)
    model = random_model(tmp_path, hidden=4)
    state = {"checkpoint_interval": "1s"}
    config = write_config(tmp_path / "c.yaml", name=name, model=model, servers=broker, state=state)
    transaction(broker, topic, 5)
    with RunningDaemon(config, tmp_path / "log") as daemon:
        daemon.wait(lambda: daemon.count("events_total") == 5, "answering")
        transaction(broker, topic, 100, commit=False)
        daemon.wait(lambda: committed_offsets(broker, name).get(0) == 107, "past the aborted records")
        daemon.wait(lambda: lag(daemon, name) == 0, "without lag")
        daemon.wait(lambda: floor_position(broker, name) == 107, "there with its floor: the states are written")
        daemon.kill9()
    delete_all(broker, topic)
    with RunningDaemon(config, tmp_path / "log2") as daemon:
        transaction(broker, topic, 1)
        daemon.wait(lambda: steps(broker, name) == [1, 2, 3, 4, 5, 6], "answering the sixth event")
        assert daemon.sigterm() == 0
    transaction(broker, topic, 99, commit=False)
    end = delete_all(broker, topic)
    with RunningDaemon(config, tmp_path / "log3") as daemon:
        assert daemon.wait_end() == 2
        assert f"Move the group's offset to {end}" in daemon.last_words()
        assert "keep the state topic" in daemon.last_words()
    move_offset(broker, name, topic, end)
    with RunningDaemon(config, tmp_path / "log4") as daemon:
        transaction(broker, topic, 2)
        daemon.wait(lambda: steps(broker, name) == [1, 2, 3, 4, 5, 6, 7, 8], "answering the seventh and eighth event")
        assert daemon.sigterm() == 0


def test_retention_passes_an_idle_daemon_and_the_broker_starts_again(tmp_path: Path) -> None:
    own = DevBroker(tmp_path / "broker")
    servers = own.up(port=0)
    name, topic = "idle", "idle.in"
    try:
        create_topics(servers, [topic], partitions=1)
        config = write_config(tmp_path / "c.yaml", name=name, model=random_model(tmp_path, hidden=4), servers=servers)
        transaction(servers, topic, 5)
        with RunningDaemon(config, tmp_path / "log") as daemon:
            daemon.wait(lambda: daemon.count("events_total") == 5, "answering")
            transaction(servers, topic, 100, commit=False)
            delete_all(servers, topic)
            own.kill()
            daemon.wait(lambda: not daemon.ready(), "aware of it")
            own.up(port=int(servers.rpartition(":")[2]))
            daemon.wait(daemon.ready, "ready again")
            transaction(servers, topic, 1)
            daemon.wait(lambda: steps(servers, name) == [1, 2, 3, 4, 5, 6], "answering the sixth event")
            assert daemon.sigterm() == 0
    finally:
        own.down(wipe=True)
