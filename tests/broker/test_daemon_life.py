"""`lstmstream run` against a real broker: bad input, a broker that goes away, topics that vanish, its end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from lstmstream.dev.broker import DevBroker
from tests.broker.harness import (
    Producing,
    RunningDaemon,
    admin,
    committed_offsets,
    create_topics,
    end_offsets,
    produce,
    read_all,
    write_config,
)
from tests.models import MAGIC, poisoned_model, random_model

PARTITIONS = 2
NOW_MS = 1_700_000_000_000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return random_model(tmp_path, hidden=4)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def good(number: int, partition: int = 0) -> tuple[bytes, bytes, int, int]:
    return b"k%d" % (number % 5), b'{"amount": %d}' % number, NOW_MS + number * 1000, partition


def answered(servers: str, name: str) -> list[dict[str, Any]]:
    return [json.loads(record.value) for record in read_all(servers, f"{name}.out", partitions=PARTITIONS)]


def sources(answers: list[dict[str, Any]]) -> Counter[tuple[int, int]]:
    return Counter((answer["source"]["partition"], answer["source"]["offset"]) for answer in answers)


def test_without_a_broker_it_lives_and_says_so_and_stops_cleanly(tmp_path: Path, model: Path) -> None:
    config = write_config(tmp_path / "c.yaml", name="away", model=model, servers=f"127.0.0.1:{free_port()}")
    with RunningDaemon(config, tmp_path / "log") as daemon:
        daemon.wait(lambda: daemon.port is not None, "listening")
        daemon.wait(lambda: "cannot be used yet" in daemon.last_words(), "complaining")
        assert daemon.get("/livez")[0] == 200
        status, body = daemon.get("/readyz")
        assert status == 503
        assert any("broker" in reason for reason in json.loads(body)["reasons"])
        assert daemon.sigterm() == 0
        assert all({"ts", "level", "message"} <= line.keys() for line in daemon.log_lines)
        assert len(daemon.log_lines) < 100, "one line a try, not a flood"


def test_a_stop_is_heard_from_the_first_moment_to_the_last(
    broker: str, topic_prefix: str, tmp_path: Path, model: Path
) -> None:
    """While it still loads, while it is on its way out, again and again: exit code 0."""
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=PARTITIONS)
    config = write_config(tmp_path / "c.yaml", name=name, model=model, servers=broker)
    for wait_s in (0, 0.25, 0.55):
        with RunningDaemon(config, tmp_path / "log") as daemon:
            daemon.wait(daemon.hears_sigterm, "listening to signals")
            time.sleep(wait_s)
            assert daemon.sigterm() == 0, daemon.last_words()
    with RunningDaemon(config, tmp_path / "log") as daemon:
        daemon.wait_ready()
        while daemon.exit_code is None:
            daemon._process.send_signal(signal.SIGTERM)
            time.sleep(0.005)
        assert daemon.exit_code == 0, daemon.last_words()


def test_bad_records_become_dead_letters_and_harm_nobody(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """The original bytes, null keys and null headers included, with the reason in headers; neighbours untouched."""
    name, model = topic_prefix, poisoned_model(tmp_path)
    create_topics(broker, [f"{name}.in"], partitions=PARTITIONS)
    bad: list[tuple[bytes | None, bytes | None, str]] = [
        (b"k1", b"not json", "decode"),
        (b"k1", b"[1]", "decode"),
        (b"k1", b'{"amount": NaN}', "decode"),
        (b"k1", b"\xff\xfe", "decode"),
        (b"k1", b"[" * 100_000, "decode"),
        (b"k1", None, "decode"),
        (None, None, "decode"),
        (b"k1", b'{"amount": "12"}', "validate"),
        (b"k1", b'{"amount": true}', "validate"),
        (b"k1", b'{"amount": 1e400}', "validate"),
        (b"k1", b'{"amount": 1e39}', "validate"),
        (b"k1", b'{"amount": %r}' % MAGIC, "step"),
        (b"k1", b'"' + b"x" * 300_000 + b'"', "decode"),
    ]
    with Producing(broker, f"{name}.in") as producer:
        for number, (key, value, _) in enumerate(bad):
            producer.send(*good(2 * number))
            transport_send(producer, key, value)
        producer.send(None, b'{"amount": 1}', NOW_MS, 0)
        producer.send(b"\xff", b"{}", NOW_MS, 0)
        producer.flush()
    config = write_config(tmp_path / "c.yaml", name=name, model=model, servers=broker, input={"max_bytes": 200_000})
    total = 2 * len(bad) + 2
    with RunningDaemon(config, tmp_path / "log") as daemon:
        daemon.wait_ready()
        daemon.wait(lambda: committed_offsets(broker, name).get(0) == total, "all committed")
        assert daemon.sigterm() == 0
    letters = list(read_all(broker, f"{name}.dead-letter", partitions=PARTITIONS))
    expected = [(key, value if value is None or len(value) <= 200_000 else None) for key, value, _ in bad]
    assert [(letter.key, letter.value) for letter in letters] == expected
    about = [dict(letter.headers) for letter in letters]
    assert [headers["lstmstream.stage"].decode() for headers in about] == [stage for _, _, stage in bad]
    assert [int(headers["__streams.errors.offset"]) for headers in about] == [2 * i + 1 for i in range(len(bad))]
    assert all(headers["trace"] is None for headers in about)
    answers = answered(broker, name)
    assert len(answers) == len(bad) + 2
    assert [answer["key"] for answer in answers if "key" in answer][-1] is None
    assert "key_base64" in answers[-1]
    steps = [answer["steps"] for answer in answers if answer.get("key") == "k1"]
    assert steps == list(range(1, len(steps) + 1)), "a dead letter does not count as a step"


def transport_send(producer: Producing, key: bytes | None, value: bytes | None) -> None:
    """Below the client's public call, which refuses a null key with a null value."""
    from kafka import TopicPartition

    class NullableHeaders(list[tuple[str, bytes | None]]):
        """The client stumbles where it counts the bytes of a null header value, which it skips if this is falsy."""

        def __bool__(self) -> bool:
            return False

    client = producer._producer
    client.partitions_for(producer._topic)
    client._accumulator.append(
        TopicPartition(producer._topic, 0), NOW_MS, key, value, NullableHeaders([("trace", None)])
    )
    client._sender.wakeup()


def test_an_output_topic_that_vanishes_stops_it_and_nothing_is_skipped(
    broker: str, topic_prefix: str, tmp_path: Path, model: Path
) -> None:
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=PARTITIONS)
    produce(broker, f"{name}.in", [good(i) for i in range(50)])
    config = write_config(tmp_path / "c.yaml", name=name, model=model, servers=broker)
    with RunningDaemon(config, tmp_path / "log") as daemon:
        daemon.wait_ready()
        daemon.wait(lambda: committed_offsets(broker, name).get(0) == 50, "all committed")
        with admin(broker) as client:
            client.delete_topics([f"{name}.out"])
        produce(broker, f"{name}.in", [good(i) for i in range(50)])
        assert daemon.wait_end() == 2
        assert f"{name}.out" in daemon.last_words()
    assert committed_offsets(broker, name)[0] == 50
    with RunningDaemon(config, tmp_path / "log2") as daemon:  # makes the topic again, and goes on where it was
        daemon.wait_ready()
        daemon.wait(lambda: committed_offsets(broker, name).get(0) == 100, "all committed")
        assert daemon.sigterm() == 0
    assert sources(answered(broker, name)) == Counter((0, offset) for offset in range(50, 100))


def send_bomb(broker: str, topic: str, codec: str) -> None:
    """A few hundred kilobytes that hold 200 MB, at offset 5."""
    create_topics(broker, [topic], partitions=PARTITIONS)
    produce(broker, topic, [good(i) for i in range(5)])
    bomb = KafkaProducer(bootstrap_servers=broker, compression_type=codec, max_request_size=1 << 30)
    bomb.send(topic, b" " * (200 << 20), key=b"k", partition=0, timestamp_ms=NOW_MS).get(60)
    bomb.close()


@pytest.mark.only_client("confluent")
@pytest.mark.parametrize("codec", ["gzip", "lz4"])
def test_what_librdkafka_unpacks_is_a_dead_letter_without_its_value(
    broker: str, topic_prefix: str, tmp_path: Path, model: Path, codec: str
) -> None:
    """It has no bound of its own for these, but the topic's max.message.bytes; the record is too large all the same."""
    name = topic_prefix
    send_bomb(broker, f"{name}.in", codec)
    produce(broker, f"{name}.in", [good(5)])
    config = write_config(tmp_path / "c.yaml", name=name, model=model, servers=broker)
    with RunningDaemon(config, tmp_path / "log") as daemon:
        # It may take longer than a partition may be silent, and is begun again then.
        daemon.wait(lambda: committed_offsets(broker, name).get(0) == 7, "all committed", 240.0)
        assert daemon.sigterm() == 0
    (letter,) = read_all(broker, f"{name}.dead-letter", partitions=PARTITIONS)
    assert (letter.key, letter.value) == (b"k", None)
    assert b"209715201 bytes" in dict(letter.headers)["__streams.errors.message"]
    assert sources(answered(broker, name)) == Counter((0, offset) for offset in (0, 1, 2, 3, 4, 6))


@pytest.mark.only_client("kafka-python")
@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
def test_a_batch_that_unpacks_without_end_stops_it_and_its_place_is_named(
    broker: str, topic_prefix: str, tmp_path: Path, model: Path, codec: str
) -> None:
    """Exit code 1 within bounded memory, nothing skipped."""
    name = topic_prefix
    send_bomb(broker, f"{name}.in", codec)
    config = write_config(tmp_path / "c.yaml", name=name, model=model, servers=broker)
    with RunningDaemon(config, tmp_path / "log") as daemon:
        assert daemon.wait_end() == 1
        said = daemon.last_words()
        assert f"{name}.in[0]@5: the batch of offsets 5 to 5 cannot be decoded" in said
        assert "too large" in said
    assert committed_offsets(broker, name).get(0) in (0, 5)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_input_is_read(broker: str, topic_prefix: str, tmp_path: Path, model: Path, codec: str) -> None:
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=PARTITIONS)
    producer = KafkaProducer(bootstrap_servers=broker, compression_type=codec, linger_ms=50)
    for i in range(500):
        key, value, timestamp_ms, partition = good(i)
        producer.send(f"{name}.in", value, key=key, timestamp_ms=timestamp_ms, partition=partition)
    producer.close()
    config = write_config(tmp_path / "c.yaml", name=name, model=model, servers=broker)
    with RunningDaemon(config, tmp_path / "log") as daemon:
        daemon.wait(lambda: committed_offsets(broker, name).get(0) == 500, "all committed")
        assert daemon.sigterm() == 0
    assert sources(answered(broker, name)) == Counter((0, offset) for offset in range(500))


def test_an_answer_that_is_too_big_becomes_a_dead_letter(
    broker: str, topic_prefix: str, tmp_path: Path, model: Path
) -> None:
    name = topic_prefix
    create_topics(broker, [f"{name}.in", f"{name}.out"], partitions=PARTITIONS)
    with admin(broker) as client:
        from kafka.admin import ConfigResource, ConfigResourceType

        resource = ConfigResource(ConfigResourceType.TOPIC, f"{name}.out", configs={"max.message.bytes": "2000"})
        client.alter_configs([resource])
    note = b'{"amount": 1, "note": "' + b"n" * 5000 + b'"}'
    produce(broker, f"{name}.in", [(b"k", note, NOW_MS, 0)])
    config = write_config(
        tmp_path / "c.yaml",
        name=name,
        model=model,
        servers=broker,
        output={"topic": f"{name}.out", "include": ["note"]},
    )
    with RunningDaemon(config, tmp_path / "log") as daemon:
        produce(broker, f"{name}.in", [(b"k", b'{"amount": 1}', NOW_MS + 1, 0)])
        daemon.wait(lambda: committed_offsets(broker, name).get(0) == 2, "both offsets committed")
    (prediction,) = answered(broker, name)
    (letter,) = read_all(broker, f"{name}.dead-letter", partitions=PARTITIONS)
    assert (prediction["steps"], prediction["source"]["offset"]) == (2, 1), "the state has seen both events"
    headers = dict(letter.headers)
    assert (letter.value, headers["lstmstream.stage"]) == (note, b"publish")
    assert b"max.message.bytes=2000" in headers["__streams.errors.message"]


def test_another_model_under_the_same_name_is_refused(
    broker: str, topic_prefix: str, tmp_path: Path, model: Path
) -> None:
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=PARTITIONS)
    produce(broker, f"{name}.in", [good(i, i % 2) for i in range(20)])
    config = write_config(tmp_path / "c.yaml", name=name, model=model, servers=broker)
    with RunningDaemon(config, tmp_path / "log") as daemon:
        daemon.wait_ready()
        daemon.wait(lambda: sum(committed_offsets(broker, name).values()) == 20, "all committed")
        assert daemon.sigterm() == 0
    other = random_model(tmp_path, file="other.onnx", name="other-model", hidden=4, seed=5)
    config = write_config(tmp_path / "c.yaml", name=name, model=other, servers=broker)
    with RunningDaemon(config, tmp_path / "log2") as daemon:
        assert daemon.wait_end() == 2
        assert "test-model" in daemon.last_words()
        assert "other-model" in daemon.last_words()


def test_at_least_once_answers_everything_and_keeps_states_over_a_kill(
    broker: str, topic_prefix: str, tmp_path: Path, model: Path
) -> None:
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=PARTITIONS)
    config = write_config(
        tmp_path / "c.yaml", name=name, model=model, servers=broker, state={"checkpoint_interval": "1s"}
    )
    config.write_text("delivery: at_least_once\n" + config.read_text())
    for half in (0, 1):
        produce(broker, f"{name}.in", [good(half * 500 + i) for i in range(500)])
        with RunningDaemon(config, tmp_path / f"log{half}") as daemon:
            daemon.wait_ready()
            daemon.wait(lambda half=half: committed_offsets(broker, name).get(0) == 500 * (half + 1), "committed")
            daemon.kill9()
    found: dict[int, set[tuple[float, int]]] = {}
    for answer in answered(broker, name):
        found.setdefault(answer["source"]["offset"], set()).add((answer["score"], answer["steps"]))
    assert sorted(found) == list(range(1000))
    assert all(len(said) == 1 for said in found.values()), "a second answer says the same"
    assert [next(iter(found[offset]))[1] for offset in range(1000)] == [offset // 5 + 1 for offset in range(1000)]


def test_a_broker_that_is_killed_and_comes_back_loses_and_doubles_nothing(tmp_path: Path, model: Path) -> None:
    """Two outages under load, one longer than every time limit of the clients' requests: alive, not ready, then on."""
    own = DevBroker(tmp_path / "broker")
    servers = own.up(port=0)
    port = int(servers.rpartition(":")[2])
    try:
        create_topics(servers, ["outage.in"], partitions=PARTITIONS)
        config = write_config(tmp_path / "c.yaml", name="outage", model=model, servers=servers)
        with RunningDaemon(config, tmp_path / "log") as daemon:
            daemon.wait_ready()
            sent = 0
            for down_s in (1.0, 15.0):
                with Producing(servers, "outage.in") as producer:
                    for _ in range(5_000):
                        producer.send(*good(sent, sent % PARTITIONS))
                        sent += 1
                    producer.flush()
                own.kill()
                daemon.wait(lambda: not daemon.ready(), "aware of it")
                time.sleep(down_s)
                assert daemon.get("/livez")[0] == 200
                own.up(port=port)
                daemon.wait(daemon.ready, "ready again")
                daemon.wait(lambda sent=sent: sum(committed_offsets(servers, "outage").values()) == sent, "caught up")
            assert daemon.sigterm() == 0
        ends = end_offsets(servers, "outage.in", partitions=PARTITIONS)
        wanted = Counter((p, offset) for p, end in ends.items() for offset in range(end))
        assert sources(answered(servers, "outage")) == wanted
    finally:
        own.down(wipe=True)


def test_every_mistake_of_a_config_is_told_at_once(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("name: x\nmodel: nowhere.onnx\nkafka: {}\ninput: {topic: a, lat: drop}\noutput: {topic: a}\n")
    done = subprocess.run(
        [sys.executable, "-m", "lstmstream", "run", str(config)],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 2
    assert "kafka.bootstrap_servers" in done.stderr
    assert "input.lat" in done.stderr
