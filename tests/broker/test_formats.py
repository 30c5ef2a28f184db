"""Events in other formats through a real broker, by a schema that changes in mid-stream, judged by `verify`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from tests.broker.harness import (
    RunningDaemon,
    check_lines,
    committed_offsets,
    create_topics,
    end_offsets,
    read_all,
    write_config,
)
from tests.models import random_model
from tests.registry import Registry
from tests.verify.test_formats import (
    CATEGORIES,
    Write,
    as_avro,
    as_avro_change,
    as_cloudevent,
    as_protobuf,
    payments,
)
from tests.verify.world import NOW_MS

PARTITIONS = 3
COUNT = 1_200
BAD = b"\0\0\0\x03\xe7 of a schema that nobody has"
EVOLVING = ("avro", "protobuf")  # by a new schema; the others need none that is not known

FORMATS: dict[str, tuple[Callable[[Registry], Write], dict[str, Any], dict[str, Any]]] = {
    "avro": (as_avro, {"format": "avro"}, {"cloudevents": "binary"}),
    "protobuf": (as_protobuf, {"format": "protobuf"}, {"format": "avro"}),
    "cloudevents": (lambda _: as_cloudevent, {"unwrap": "cloudevents"}, {"cloudevents": "structured"}),
    "debezium": (as_avro_change, {"format": "avro", "unwrap": "after"}, {"format": "avro", "cloudevents": "binary"}),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("avro", marks=pytest.mark.only_client("confluent")),
        pytest.param("protobuf", marks=pytest.mark.only_client("kafka-python")),
        pytest.param("cloudevents", marks=pytest.mark.only_client("confluent")),
        pytest.param("debezium", marks=pytest.mark.only_client("kafka-python")),
    ],
)
def test_events_of_a_format(broker: str, topic_prefix: str, tmp_path: Path, name: str) -> None:
    """With a registry that is away when the new schema comes, a kill meanwhile, and bytes of no schema."""
    make, reading, writing = FORMATS[name]
    with Registry() as registry:
        topics = [f"{topic_prefix}.{kind}" for kind in ("in", "out", "alerts")]
        create_topics(broker, topics, partitions=PARTITIONS)
        config = write_config(
            tmp_path / "c.yaml",
            name=topic_prefix,
            model=random_model(tmp_path, categories=CATEGORIES),
            servers=broker,
            kafka={"schema_registry": {"url": registry.url}},
            input=reading,
            output={"alerts_topic": topics[2], "include": ["id", "note"], "threshold": 0.5, **writing},
            state={"checkpoint_interval": "1s"},
        )
        writer, events = make(registry), payments(COUNT)
        _produce(broker, topics[0], writer, events[: COUNT // 2], start=0)
        daemon = RunningDaemon(config, tmp_path / "log1")
        with daemon:
            daemon.wait_ready()
            daemon.wait(lambda: sum(committed_offsets(broker, topic_prefix).values()) >= COUNT / 2, "the first half")
            if name in EVOLVING:
                registry.stop()
            _produce(broker, topics[0], writer, events[COUNT // 2 :], start=COUNT // 2)
            if name not in EVOLVING:
                _finish(daemon, broker, topic_prefix)
            else:
                log = daemon.log_file
                daemon.wait(lambda: "a schema is needed, asking again" in log.read_text(), "the registry is waited for")
        if name in EVOLVING:
            registry.start()
            with RunningDaemon(config, tmp_path / "log2") as another:
                another.wait_ready()
                _finish(another, broker, topic_prefix)
        summary = _verify(config)
        assert (summary["result"], sum(summary["counts"].values())) == ("right", 0), summary
        bad = 0 if name == "cloudevents" else PARTITIONS
        assert (summary["predictions"], summary["dead_letters"]) == (COUNT, bad)
        assert summary["alerts"] > 100
        letters = list(read_all(broker, f"{topic_prefix}.dead-letter", partitions=PARTITIONS))
        assert [letter.value for letter in letters] == [BAD] * bad
        if name == "avro":
            assert [status for status, _ in check_lines(config, "schema registry")[1]] == ["ok"]


def _finish(daemon: RunningDaemon, servers: str, name: str) -> None:
    ends = end_offsets(servers, f"{name}.in", partitions=PARTITIONS)
    daemon.wait(lambda: committed_offsets(servers, name) == ends, "everything")
    assert daemon.sigterm() == 0


def _produce(servers: str, topic: str, writer: Write, events: list[Any], *, start: int) -> None:
    producer = KafkaProducer(bootstrap_servers=servers)
    try:
        for number, event in enumerate(events, start):
            value, headers = writer(event, number)
            key = b"k%d" % (number % 40)
            at = {"partition": number % 40 % PARTITIONS, "timestamp_ms": NOW_MS + 1000 * number}
            producer.send(topic, key=key, value=value, headers=headers, **at)
        if start and not headers:
            for partition in range(PARTITIONS):
                producer.send(topic, key=b"bad", value=BAD, partition=partition, timestamp_ms=NOW_MS)
        producer.flush(30)
    finally:
        producer.close()


def _run(*arguments: str) -> Any:
    command = [sys.executable, "-m", "lstmstream", *arguments, "--json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def _verify(config: Path) -> dict[str, Any]:
    found: dict[str, Any] = _run("verify", str(config))
    return found
