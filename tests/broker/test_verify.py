"""`lstmstream verify` on a real broker: a sound daemon that was killed passes, and what is wrong is found."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from kafka import KafkaProducer, TopicPartition

from tests.broker.harness import (
    RunningDaemon,
    admin,
    committed_offsets,
    create_topics,
    end_offsets,
    produce,
    read_all,
    write_config,
)
from tests.models import MAGIC, poisoned_model
from tests.verify.world import NOW_MS, events

PARTITIONS = 3
COUNT = 4_000
HELD_BACK = "lstmstream_alerts_held_back_total"


@pytest.fixture
def served(broker: str, topic_prefix: str, tmp_path: Path) -> Path:
    """The configuration of a daemon that was killed, started again, and has answered everything."""
    return serve(broker, topic_prefix, tmp_path)


def serve(broker: str, name: str, tmp_path: Path, **sections: dict[str, Any]) -> Path:
    """See `served`; `sections` of the configuration are added."""
    create_topics(broker, [f"{name}.{kind}" for kind in ("in", "out", "alerts")], partitions=PARTITIONS)
    config = write_config(
        tmp_path / "c.yaml",
        name=name,
        model=poisoned_model(tmp_path, categories={"channel": ["web", "7"], "shop": 5}),
        servers=broker,
        input={"late": "drop"},
        output={"alerts_topic": f"{name}.alerts", "include": ["note", "amount"], "threshold": 0.6},
        state={"ttl": "1h", "checkpoint_interval": "1s"},
        batch={"max_events": 200},
        **sections,
    )
    found = events(COUNT, keys=50)
    found[70] = (found[70][0], b'{"amount": %r}' % MAGIC, NOW_MS)
    produce(broker, f"{name}.in", ((key, value, at, sum(key or b"") % PARTITIONS) for key, value, at in found))
    with RunningDaemon(config, tmp_path / "log1") as daemon:
        daemon.wait_ready()
        daemon.wait(lambda: sum(committed_offsets(broker, name).values()) > COUNT / 4, "a part is answered")
        daemon.kill9()
    with RunningDaemon(config, tmp_path / "log2") as daemon:
        daemon.wait(lambda: committed_offsets(broker, name) == end_offsets(broker, f"{name}.in", partitions=3), "done")
        assert daemon.sigterm() == 0
    return config


def verify(config: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "lstmstream", "verify", str(config), "--json", *options]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_a_daemon_that_was_killed_passes_and_what_others_write_is_found(
    broker: str, topic_prefix: str, served: Path
) -> None:
    code, summary, errors = verify(served)
    assert (code, summary["result"]) == (0, "right"), (summary, errors)
    assert summary["events"] == COUNT == summary["predictions"] + summary["dead_letters"]
    assert summary["alerts"] > 100
    assert summary["dead_letters"] > 100
    code, summary, _ = verify(served, "--sample", "20%", "--from", "500")
    assert (code, summary["events"]) == (0, COUNT - 3 * 500)

    first = next(iter(read_all(broker, f"{topic_prefix}.out", partitions=PARTITIONS)))
    producer = KafkaProducer(bootstrap_servers=broker)
    try:
        at = {"partition": first.partition, "timestamp_ms": first.timestamp}
        producer.send(f"{topic_prefix}.out", key=first.key, value=first.value, headers=list(first.headers), **at)
        source = json.loads(first.value)["source"]
        ahead = first.value.replace(b'"offset":%d}' % source["offset"], b'"offset":99999}')
        producer.send(f"{topic_prefix}.out", key=first.key, value=ahead, **at)
        producer.flush(30)
    finally:
        producer.close()
    code, summary, _ = verify(served)
    assert (code, summary["counts"]) == (
        1,
        {"missing": 0, "duplicate": 1, "wrong": 0, "out_of_order": 0, "ahead": 1},
    ), summary
    repeated = next(one for one in summary["findings"] if one["kind"] == "duplicate")
    assert (repeated["partition"], repeated["offset"]) == (source["partition"], source["offset"])


def test_a_policy_for_alerts_survives_a_kill_and_a_new_threshold(
    broker: str, topic_prefix: str, tmp_path: Path
) -> None:
    policy = {"cooldown": "10m", "hold": True, "end_record": True, "max_per_hour": 20, "mute": ["k1*"]}
    config = serve(broker, topic_prefix, tmp_path, alerts=policy)
    code, summary, errors = verify(config)
    assert (code, summary["result"]) == (0, "right"), (summary, errors)
    assert min(summary[kind] for kind in ("alerts", "end_records", "summaries")) > 3, summary
    predictions = [json.loads(record.value) for record in read_all(broker, f"{topic_prefix}.out", partitions=3)]
    held = Counter(one["held_back"] for one in predictions if "held_back" in one)
    assert set(held) == {"mute", "hold", "max_per_hour"}
    assert summary["alerts"] == sum(one["alert"] for one in predictions) - held.total()

    settings = yaml.safe_load(config.read_text())
    settings["output"]["threshold"] = 0.5
    config.write_text(yaml.safe_dump(settings))
    more = [(key, value, at + 10**10) for key, value, at in events(500, seed=2, keys=50)]
    produce(broker, f"{topic_prefix}.in", ((key, value, at, sum(key or b"") % PARTITIONS) for key, value, at in more))
    with RunningDaemon(config, tmp_path / "log3") as daemon:
        daemon.wait(lambda: daemon.count("events_total") == len(more), "done")
        counted = {dict(labels)["reason"]: n for (name, labels), n in daemon.metrics().items() if name == HELD_BACK}
        assert daemon.sigterm() == 0
    code, summary, errors = verify(config)
    assert (code, summary["result"]) == (0, "right"), (summary, errors)
    assert summary["events"] == COUNT + 500, "its states are in use"
    every = [json.loads(record.value) for record in read_all(broker, f"{topic_prefix}.out", partitions=3)]
    assert Counter(one["held_back"] for one in every if "held_back" in one) - held == +Counter(counted)


@pytest.mark.only_client("kafka-python")
def test_it_says_what_it_cannot_judge_once_events_were_deleted(broker: str, topic_prefix: str, served: Path) -> None:
    with admin(broker) as client:
        client.delete_records({TopicPartition(f"{topic_prefix}.in", 1): 300})
    code, summary, _ = verify(served)
    assert (code, summary["result"]) == (2, "not judged")
    assert {one["partition"] for one in summary["unjudged"]} == {1}
    assert summary["unjudged"][0]["from"] >= 300
    assert summary["not_judged"] > 0
    assert not any(summary["counts"].values()), summary
    other = served.with_name("other.yaml")
    other.write_text(served.read_text().replace("ttl: 1h", "ttl: 2h"))  # its states would be others
    code, summary, errors = verify(other)
    assert (code, summary) == (2, {})
    assert "not answered with this model and these settings" in errors


def test_it_follows_a_daemon_that_runs(broker: str, topic_prefix: str, served: Path, tmp_path: Path) -> None:
    """It sees nothing wrong while they come, finds a wrong one at once, and takes no static member's place."""
    settings = yaml.safe_load(served.read_text())
    settings["kafka"]["properties"] = {**settings["kafka"].get("properties", {}), "group.instance.id": "one"}
    served.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "lstmstream", "verify", str(served), "--follow", "--json"]
    with RunningDaemon(served, tmp_path / "log3") as daemon:
        daemon.wait_ready()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as following:
            limit = threading.Timer(120, following.kill)
            limit.start()
            try:
                assert following.stdout is not None
                more = events(1_000, seed=2, keys=50)
                later = ((k, v, at + 10**10, sum(k or b"") % PARTITIONS) for k, v, at in more)
                produce(broker, f"{topic_prefix}.in", later)
                ends = end_offsets(broker, f"{topic_prefix}.in", partitions=PARTITIONS)
                daemon.wait(lambda: committed_offsets(broker, topic_prefix) == ends, "done")
                produce(broker, f"{topic_prefix}.out", [_wrong(broker, topic_prefix)])
                finding = json.loads(following.stdout.readline())
                following.send_signal(signal.SIGTERM)
                summary = json.loads(following.stdout.read())
                code = following.wait(120)
            finally:
                limit.cancel()
                following.kill()
        assert daemon.sigterm() == 0
    assert (finding["kind"], finding["record"]) == ("duplicate", "prediction")
    assert summary["counts"] == {"missing": 0, "duplicate": 1, "wrong": 0, "out_of_order": 0, "ahead": 0}, summary
    assert summary["events"] == COUNT + 1_000
    assert code == 1


def _wrong(broker: str, name: str) -> tuple[bytes | None, bytes | None, int | None, int]:
    last = list(read_all(broker, f"{name}.out", partitions=PARTITIONS))[-1]
    return last.key, last.value, last.timestamp, last.partition
