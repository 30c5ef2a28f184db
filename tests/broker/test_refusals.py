"""What the broker refuses: a record, a setting, or more bytes than its quota. Never an endless loop."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from kafka import KafkaProducer
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.errors import KafkaError, for_code
from kafka.protocol.admin import AlterClientQuotasRequest

from tests.broker.harness import (
    KEEP_FOR_EVER,
    RunningDaemon,
    admin,
    committed_offsets,
    create_topics,
    foreign_member,
    produce,
    read_all,
    write_config,
)
from tests.broker.proxy import Api, KafkaProxy
from tests.models import random_model

DAY_MS = 86_400_000


def now_ms() -> int:
    return int(time.time() * 1000)


def make_topic(servers: str, name: str, partitions: int = 1, **settings: Any) -> None:
    configs = {**KEEP_FOR_EVER, **{key.replace("_", "."): str(value) for key, value in settings.items()}}
    with admin(servers) as client:
        client.create_topics({name: {"num_partitions": partitions, "configs": configs}}, wait_for_metadata=True)


def configured(tmp_path: Path, name: str, servers: str, **sections: Mapping[str, Any]) -> Path:
    return write_config(
        tmp_path / "c.yaml", name=name, model=random_model(tmp_path, hidden=4), servers=servers, **sections
    )


def predicted(servers: str, topic: str) -> list[int]:
    """The offsets that have a prediction."""
    return [orjson.loads(r.value)["source"]["offset"] for r in read_all(servers, topic, partitions=1)]


def letters(servers: str, name: str) -> list[tuple[Any, dict[str, str]]]:
    """Dead letters with their headers."""
    found = read_all(servers, f"{name}.dead-letter", partitions=1)
    return [(r, {key: (value or b"").decode() for key, value in r.headers}) for r in found]


def wait_committed(daemon: RunningDaemon, servers: str, name: str, offset: int, timeout_s: float = 60) -> None:
    def committed() -> bool:
        with contextlib.suppress(KafkaError):  # a new broker's group coordinator takes a moment
            return committed_offsets(servers, name).get(0) == offset
        return False

    daemon.wait(committed, f"committed to {offset}", timeout_s)


@pytest.mark.parametrize(
    ("output", "bad_ms"),
    [
        ({}, lambda: now_ms() + 2 * DAY_MS),
        ({}, lambda: now_ms() * 1000),  # microseconds
        ({"message_timestamp_before_max_ms": DAY_MS}, lambda: now_ms() - 7 * DAY_MS),
        ({"message_timestamp_after_max_ms": 3_545_000}, lambda: now_ms() + 3_600_000),  # within the clock's margin
    ],
    ids=["future", "microseconds", "old", "near the bound"],
)
def test_a_record_time_that_the_output_topic_refuses(
    broker: str, topic_prefix: str, tmp_path: Path, output: dict[str, Any], bad_ms: Any
) -> None:
    name = topic_prefix
    make_topic(broker, f"{name}.in", message_timestamp_after_max_ms=2**63 - 1)
    make_topic(broker, f"{name}.out", **output)
    bad = bad_ms()
    times = [now_ms(), now_ms(), bad, now_ms()]
    produce(broker, f"{name}.in", [(b"k", b'{"amount": 1}', at, 0) for at in times])
    with RunningDaemon(configured(tmp_path, name, broker), tmp_path / "log") as daemon:
        wait_committed(daemon, broker, name, 4)
        daemon.wait_ready()
        assert predicted(broker, f"{name}.out") == [0, 1, 3]
        steps = [orjson.loads(r.value)["steps"] for r in read_all(broker, f"{name}.out", partitions=1)]
        # Microseconds lie beyond the calendar: no event. The other times are right, and the state takes them.
        assert steps == ([1, 2, 3] if bad > 1e14 else [1, 2, 4])
        [(letter, headers)] = letters(broker, name)
        assert headers["__streams.errors.offset"] == "2"
        assert headers["lstmstream.stage"] == ("validate" if bad > 1e14 else "publish")
        assert letter.value == b'{"amount": 1}'
        if letter.timestamp != bad:  # its topic does not take it either
            assert headers["lstmstream.timestamp"] == str(bad)
        assert len([line for line in daemon.log_lines if line["level"] == "warning"]) < 12
        assert daemon.sigterm() == 0


def test_a_null_key_in_compacted_topics(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    name = topic_prefix
    make_topic(broker, f"{name}.in")
    make_topic(broker, f"{name}.out", cleanup_policy="compact")
    make_topic(broker, f"{name}.dead-letter", cleanup_policy="compact", max_message_bytes=2_000_000)
    keys = [b"a", None, b"a", None]
    produce(broker, f"{name}.in", [(key, b'{"amount": 1}', now_ms(), 0) for key in keys])
    with RunningDaemon(configured(tmp_path, name, broker), tmp_path / "log") as daemon:
        wait_committed(daemon, broker, name, 4)
        assert predicted(broker, f"{name}.out") == [0, 2]
        found = letters(broker, name)
        assert [(r.key.decode(), r.value) for r, _ in found] == [
            (f"{name}.in-0-{offset}", b'{"amount": 1}') for offset in (1, 3)
        ]
        assert daemon.sigterm() == 0


def test_headers_and_values_too_large_for_any_topic(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """They came in compressed, where a topic's limit is on the compressed bytes."""
    name = topic_prefix
    make_topic(broker, f"{name}.in")
    huge = b"x" * 3_000_000
    producer = KafkaProducer(bootstrap_servers=broker, compression_type="gzip", max_request_size=20_000_000)
    good = b'{"amount": 1}'
    sent: Sequence[tuple[bytes, list[tuple[str, bytes]]]] = [(good, []), (good, [("h", huge)]), (huge, []), (good, [])]
    for value, headers in sent:
        producer.send(f"{name}.in", key=b"k", value=value, headers=headers, partition=0, timestamp_ms=now_ms())
        producer.flush(30)
    producer.close()
    with RunningDaemon(configured(tmp_path, name, broker), tmp_path / "log") as daemon:
        wait_committed(daemon, broker, name, 4)
        assert predicted(broker, f"{name}.out") == [0, 3]
        found = letters(broker, name)
        assert [headers["lstmstream.stage"] for _, headers in found] == ["publish", "decode"]
        assert all(r.value is None and "3000" in headers["__streams.errors.message"] for r, headers in found)
        assert daemon.sigterm() == 0


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"transaction.timeout.ms": 3_600_000}, ["transaction.timeout.ms", "3600000", "transaction.max.timeout.ms"]),
        (
            {"session.timeout.ms": 3_600_000, "max.poll.interval.ms": 3_600_000},
            ["session.timeout.ms", "3600000", "group.max.session.timeout.ms"],
        ),
        (
            {"session.timeout.ms": 500, "heartbeat.interval.ms": 100},
            ["session.timeout.ms", "500", "group.min.session.timeout.ms"],
        ),
    ],
    ids=["transaction", "long session", "short session"],
)
def test_a_setting_that_the_broker_refuses(
    broker: str, topic_prefix: str, tmp_path: Path, properties: dict[str, int], words: list[str]
) -> None:
    create_topics(broker, [f"{topic_prefix}.in"], partitions=1)
    config = configured(tmp_path, topic_prefix, broker, kafka={"properties": properties})
    with RunningDaemon(config, tmp_path / "log") as daemon:
        assert daemon.wait_end() == 2, daemon.last_words()
        [error] = [line["message"] for line in daemon.log_lines if line["level"] == "error"]
        assert all(word in error for word in words), error


def test_another_kind_of_consumer_in_the_group(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=1)
    with (
        foreign_member(broker, f"{name}.in", name, partition_assignment_strategy=[RangePartitionAssignor]) as other,
        RunningDaemon(configured(tmp_path, name, broker), tmp_path / "log") as daemon,
    ):
        deadline = time.monotonic() + 60
        while daemon.exit_code is None and time.monotonic() < deadline:
            other.poll(timeout_ms=100)
        assert daemon.exit_code == 2, daemon.last_words()
        [error] = [line["message"] for line in daemon.log_lines if line["level"] == "error"]
        assert error.startswith(f"name: the broker refuses {name!r}"), error


def set_produce_quota(servers: str, client_id: str, bytes_per_s: float) -> None:
    request = AlterClientQuotasRequest
    entity = request.EntryData.EntityData(entity_type="client-id", entity_name=client_id)
    value = request.EntryData.OpData(key="producer_byte_rate", value=bytes_per_s, remove=False)
    entry = request.EntryData(entity=[entity], ops=[value])
    with admin(servers) as client:
        client._manager.run(
            client._send_request_to_controller,
            request(entries=[entry], validate_only=False),
            lambda response: [for_code(entry.error_code) for entry in response.entries],
            True,
        )


def test_a_quota_smaller_than_a_batch(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """What the events that wait become takes a minute: the offset moves all the same."""
    name = topic_prefix
    make_topic(broker, f"{name}.in")
    produce(broker, f"{name}.in", [(b"k%d" % (i % 50), b'{"amount": 1}', now_ms(), 0) for i in range(4_000)])
    set_produce_quota(broker, f"lstmstream-{name}", 20_000)
    with RunningDaemon(configured(tmp_path, name, broker), tmp_path / "log") as daemon:
        seen: list[int] = []
        offset = 0

        def moved() -> bool:
            nonlocal offset
            with contextlib.suppress(KafkaError):  # a new broker's group coordinator takes a moment
                offset = committed_offsets(broker, name).get(0, 0)
            if offset > (seen[-1] if seen else 0):
                seen.append(offset)
            return len(seen) >= 2

        daemon.wait(moved, "committed twice", 120)
        warnings = [line["message"] for line in daemon.log_lines if line["level"] == "warning"]
        assert len(warnings) < 30, warnings
        assert daemon.sigterm() in (0, 1)  # by whether its states fit the quota in time
        offset = committed_offsets(broker, name)[0]
    assert predicted(broker, f"{name}.out") == list(range(offset))


@pytest.mark.only_client("confluent")
def test_a_topic_that_may_not_be_written_is_named(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """librdkafka purges the records then, and does not say why."""
    name = topic_prefix
    make_topic(broker, f"{name}.in")
    produce(broker, f"{name}.in", [(b"k", b'{"amount": 1}', now_ms(), 0)])
    topic = f"{name}.out".encode()

    def denied(answer: bytes) -> bytes:
        at = answer.find(topic)
        if at < 0:
            return answer
        error_at = at + len(topic) + 8  # after the number of partitions and that of the first
        return answer[:error_at] + struct.pack(">h", 29) + answer[error_at + 2 :]

    with KafkaProxy(broker) as proxy:
        proxy.change_answers(Api.ADD_PARTITIONS_TO_TXN, denied)
        with RunningDaemon(configured(tmp_path, name, proxy.servers), tmp_path / "log") as daemon:
            assert daemon.wait_end() == 2, daemon.last_words()
            [error] = [line["message"] for line in daemon.log_lines if line["level"] == "error"]
            assert "TOPIC_AUTHORIZATION_FAILED" in error
            assert f"'{name}.out'" in error
