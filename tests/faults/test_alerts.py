"""Every alert is made to fire once, by the fault that it is for, in a real Prometheus that scrapes real daemons.

The rules are the shipped ones with all durations, and the thresholds that are durations, divided by FASTER: what fires
after ten minutes there fires after thirty seconds here. `-s` prints how long each took.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import Producer

from tests.broker.harness import Producing, RunningDaemon, create_topics, write_config
from tests.broker.proxy import Api, KafkaProxy
from tests.broker.test_workers import RunningWorkers, running
from tests.models import random_model
from tests.prometheus import RULES, RunningPrometheus

pytestmark = [pytest.mark.only_client("kafka-python"), pytest.mark.timeout(400)]

FASTER = 20
FIRE_S = 200.0
PARTITIONS = 2
SECONDS_OF = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def faster_rules(folder: Path) -> Path:
    """The rules with their durations divided."""

    def shorter(match: re.Match[str]) -> str:
        return f"{int(match[1]) * SECONDS_OF[match[2]] // FASTER}s"

    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = re.sub(r"\b(\d+)([smhd])\b", shorter, rule["expr"])
            if "for" in rule:
                rule["for"] = re.sub(r"^(\d+)([smhd])$", shorter, rule["for"])
            if rule.get("alert") in {"LstmstreamStalled", "LstmstreamLagHigh"}:
                rule["expr"] = re.sub(r"> (\d\d+)", lambda match: f"> {int(match[1]) // FASTER}", rule["expr"])
    path = folder / "rules.yml"
    path.write_text(yaml.safe_dump(rules))
    return path


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[RunningPrometheus]:
    with RunningPrometheus(tmp_path, rule_file=faster_rules(tmp_path)) as running:
        yield running


@pytest.fixture
def name(broker: str, topic_prefix: str) -> str:
    create_topics(broker, [f"{topic_prefix}.in"], partitions=PARTITIONS)
    return topic_prefix


def wait_firing(prometheus: RunningPrometheus, *expected: str, look: Callable[[], None] = lambda: None) -> None:
    """Until all of these fire; `look` is called meanwhile."""
    began_s = time.monotonic()
    missing = set(expected)

    def all_fire() -> bool:
        look()
        for alert in sorted(missing & prometheus.firing()):
            missing.discard(alert)
            print(f"{alert} fires after {time.monotonic() - began_s:.0f} s", flush=True)
        return not missing

    prometheus.wait(all_fire, f"firing: {expected}", FIRE_S)


class Sending:
    """Sends what `event` gives, so many a second, until the `with` block ends: (key, value, timestamp, partition)."""

    def __init__(self, servers: str, topic: str, event: Callable[[int], tuple[Any, ...]], *, rate: float = 20) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(servers, topic, event, rate), daemon=True)

    def _run(self, servers: str, topic: str, event: Callable[[int], tuple[Any, ...]], rate: float) -> None:
        with Producing(servers, topic) as producer:
            number = 0
            while not self._ended.wait(1 / rate):
                producer.send(*event(number))
                number += 1
            producer.flush()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def good(number: int) -> tuple[bytes, bytes, None, int]:
    value = {"amount": 12.5, "distance_km": 1.0, "merchant": "grocery", "entry": "chip"}
    return b"c%d" % (number % 8), json.dumps(value).encode(), None, number % PARTITIONS


def demo_config(tmp_path: Path, name: str, servers: str, **sections: Any) -> Path:
    return write_config(tmp_path / "c.yaml", name=name, model=Path("builtin:demo"), servers=servers, **sections)


def scrape(prometheus: RunningPrometheus, *daemons: RunningDaemon) -> None:
    for daemon in daemons:
        daemon.wait_ready()
    prometheus.set_targets([daemon.port or 0 for daemon in daemons])
    prometheus.wait(lambda: len(prometheus.query("lstmstream_ready")) == len(daemons), "scraped")


def test_no_daemon(prometheus: RunningPrometheus) -> None:
    wait_firing(prometheus, "LstmstreamAbsent")


def test_a_daemon_that_is_killed_again_and_again(
    broker: str, name: str, tmp_path: Path, prometheus: RunningPrometheus
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    config = demo_config(tmp_path, name, broker, http={"port": port})
    prometheus.set_targets([port])
    for _ in range(4):
        began_s = time.time()
        with RunningDaemon(config, tmp_path / "log") as daemon:
            daemon.wait(lambda: daemon.port is not None, "listening")
            start = f"process_start_time_seconds > {began_s - 1} and on (instance) up == 1"
            prometheus.wait(lambda query=start: prometheus.query(query), "scraped")  # type: ignore[misc]
    wait_firing(prometheus, "LstmstreamCrashLooping", "LstmstreamDown")


def test_a_worker_that_is_killed_again_and_again(
    broker: str, name: str, tmp_path: Path, prometheus: RunningPrometheus
) -> None:
    config = demo_config(tmp_path, name, broker)
    with RunningWorkers(config, tmp_path / "log", workers=2) as daemon:
        scrape(prometheus, daemon)

        def kill() -> None:
            for pid in filter(running, daemon.pids(1)):
                os.kill(pid, signal.SIGKILL)

        wait_firing(prometheus, "LstmstreamWorkerDown", "LstmstreamCrashLooping", look=kill)


def test_a_broker_that_is_away(broker: str, name: str, tmp_path: Path, prometheus: RunningPrometheus) -> None:
    with (
        KafkaProxy(broker) as proxy,
        RunningDaemon(demo_config(tmp_path, name, proxy.servers), tmp_path / "log") as daemon,
    ):
        scrape(prometheus, daemon)
        proxy.down()
        wait_firing(prometheus, "LstmstreamNotReady")


def test_a_broker_that_takes_no_records(broker: str, name: str, tmp_path: Path, prometheus: RunningPrometheus) -> None:
    with (
        KafkaProxy(broker) as proxy,
        RunningDaemon(demo_config(tmp_path, name, proxy.servers), tmp_path / "log") as daemon,
    ):
        scrape(prometheus, daemon)
        proxy.cut(Api.PRODUCE)
        with Sending(broker, f"{name}.in", good):
            wait_firing(prometheus, "LstmstreamStalled", "LstmstreamLagHigh", "LstmstreamTransactionsFailing")


def test_a_group_that_never_rests(broker: str, name: str, tmp_path: Path, prometheus: RunningPrometheus) -> None:
    config = demo_config(tmp_path, name, broker)
    with RunningDaemon(config, tmp_path / "log") as daemon:
        scrape(prometheus, daemon)

        def join_and_leave() -> None:
            with RunningDaemon(config, tmp_path / "other.log") as other:
                other.wait_ready()
                other.wait(lambda: bool(other.partitions()), "serving a partition")
                assert other.sigterm() == 0, other.last_words()

        wait_firing(prometheus, "LstmstreamRebalancing", look=join_and_leave)


def test_a_producer_with_bad_events(broker: str, name: str, tmp_path: Path, prometheus: RunningPrometheus) -> None:
    """Late, a field missing, an unknown category, no key, two partitions for a key, not JSON; and a threshold of 0."""

    def bad(number: int) -> tuple[bytes | None, bytes, int, int]:
        value = {"distance_km": 1.0, "merchant": "moon", "entry": "chip"}
        key = None if number % 10 == 0 else b"c%d" % (number % 3)
        text = b"not JSON" if number % 10 == 5 else json.dumps(value).encode()
        return key, text, int(time.time() * 1000) - 60_000, number % PARTITIONS

    config = demo_config(tmp_path, name, broker, output={"threshold": 0.0})
    with RunningDaemon(config, tmp_path / "log") as daemon:
        scrape(prometheus, daemon)
        with Sending(broker, f"{name}.in", bad):
            wait_firing(
                prometheus,
                "LstmstreamLatencyHigh",
                "LstmstreamFieldMissing",
                "LstmstreamUnknownCategories",
                "LstmstreamRecordsWithoutKey",
                "LstmstreamKeysInSeveralPartitions",
                "LstmstreamDeadLetters",
                "LstmstreamManyAlerts",
            )


def test_states_that_are_never_written(broker: str, name: str, tmp_path: Path, prometheus: RunningPrometheus) -> None:
    config = demo_config(tmp_path, name, broker, state={"checkpoint_interval": "1h"})
    with RunningDaemon(config, tmp_path / "log") as daemon:
        scrape(prometheus, daemon)
        producer = Producer({"bootstrap.servers": broker, "queue.buffering.max.messages": 2_000_000})
        for number in range(1_010_000):
            producer.produce(f"{name}.in", b"{}", b"c%d" % (number % 50), partition=0)
        assert producer.flush(60) == 0
        wait_firing(prometheus, "LstmstreamFloorLagHigh")


def test_a_rollout_that_does_not_end(broker: str, name: str, tmp_path: Path, prometheus: RunningPrometheus) -> None:
    (tmp_path / "new").mkdir()
    old = demo_config(tmp_path, name, broker)
    model = random_model(tmp_path, hidden=4)
    topic = {"topic": f"{name}.in"}
    new = write_config(tmp_path / "new" / "c.yaml", name=f"{name}-2", model=model, servers=broker, input=topic)
    with RunningDaemon(old, tmp_path / "log") as one, RunningDaemon(new, tmp_path / "new" / "log") as two:
        scrape(prometheus, one, two)
        wait_firing(prometheus, "LstmstreamModelsDiffer")
