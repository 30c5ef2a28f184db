"""`lstmstream dev events` on a real broker: keyed payments in a topic, and clear errors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient

pytestmark = pytest.mark.broker


def send(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lstmstream", "dev", "events", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


def test_payments_are_written_with_their_customer_as_key(broker: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}.transactions"
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.create_topics({topic: {"num_partitions": 1}}, wait_for_metadata=True)
    admin.close()
    done = send("--bootstrap-servers", broker, "--topic", topic, "--rate", "2000", "--count", "300")
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"300 events were written to topic {topic}.\n"
    consumer = KafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest", enable_auto_commit=False)
    consumer.assign([TopicPartition(topic, 0)])
    found = []
    while len(found) < 300:
        found += [record for records in consumer.poll(timeout_ms=1000).values() for record in records]
    consumer.close()
    assert [json.loads(record.value)["transaction_id"] for record in found] == list(range(300))
    assert all(json.loads(record.value)["customer_id"] == record.key.decode() for record in found)


def test_a_broker_that_is_not_there_is_said() -> None:
    done = send("--bootstrap-servers", "127.0.0.1:1")
    assert done.returncode == 2
    assert done.stderr.startswith("lstmstream: --bootstrap-servers 127.0.0.1:1: cannot be reached")


def test_a_topic_that_is_not_there_is_said(broker: str, topic_prefix: str) -> None:
    done = send("--bootstrap-servers", broker, "--topic", f"{topic_prefix}.nothing", "--count", "1")
    assert done.returncode == 1
    assert "does the topic exist?" in done.stderr
