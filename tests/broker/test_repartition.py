"""`lstmstream state repartition` on a real broker: answers equal those of an engine that knows of no partitions."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import orjson
import pytest

from lstmstream.transport.partitioner import partition_of
from tests.broker.harness import (
    RunningDaemon,
    admin,
    committed_offsets,
    create_topics,
    produce,
    read_all,
    write_config,
)
from tests.broker.test_states import state_command
from tests.broker.test_verify import verify
from tests.models import random_model

NOW_MS = 1_700_000_000_000
KEYS = [b"k%d" % number for number in range(12)]
BEFORE, AFTER = 2, 5


def fill(broker: str, name: str, first: int, count: int, partitions: int) -> dict[int, int]:
    """A second apart; how many each partition got."""
    records, counts = [], dict.fromkeys(range(partitions), 0)
    for i in range(first, first + count):
        key = KEYS[i % len(KEYS)]
        number = partition_of(key, partitions)
        counts[number] += 1
        records.append((key, b'{"amount": %d}' % (i % 31), NOW_MS + 1000 * i, number))
    produce(broker, f"{name}.in", records)
    return counts


def alone(model: Path, folder: Path, count: int) -> dict[str, list[tuple[float, int]]]:
    """Score and steps of each key's events, of the engine over a file."""
    rows = [{"k": KEYS[i % len(KEYS)].decode(), "t": NOW_MS + 1000 * i, "amount": i % 31} for i in range(count)]
    return scored(model, folder, rows)


def scored(model: Path, folder: Path, rows: list[dict[str, Any]]) -> dict[str, list[tuple[float, int]]]:
    events = folder / "events.jsonl"
    events.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "lstmstream", "score", str(model), str(events), "--key", "k", "--timestamp", "t"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return by_key([orjson.loads(line) for line in done.stdout.splitlines()])


def by_key(answers: list[dict[str, Any]]) -> dict[str, list[tuple[float, int]]]:
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for one in sorted(answers, key=lambda one: one["timestamp"]):
        found[one["key"]].append((one["score"], one["steps"]))
    return dict(found)


def test_the_daemon_goes_on_with_more_partitions(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    name, model = topic_prefix, random_model(tmp_path, hidden=4)
    create_topics(broker, [f"{name}.in", f"{name}.out"], partitions=BEFORE)
    config = write_config(
        tmp_path / "c.yaml", name=name, model=model, servers=broker, state={"checkpoint_interval": "1h"}
    )
    counts = fill(broker, name, 0, 120, BEFORE)
    with RunningDaemon(config, tmp_path / "log1") as daemon:
        daemon.wait(lambda: committed_offsets(broker, name) == counts, "all answered")
        assert daemon.sigterm() == 0, daemon.last_words()
    early = state_command("repartition", str(config), "--partitions", str(AFTER))
    assert (early.returncode, "topic" in early.stderr) == (2, True)
    with admin(broker) as client:
        client.create_partitions({f"{name}.in": AFTER})
    with RunningDaemon(config, tmp_path / "log2") as daemon:
        assert daemon.wait_end() == 2
        assert f"lstmstream state repartition CONFIG --partitions {AFTER}" in daemon.last_words()
    done = state_command("repartition", str(config), "--partitions", str(AFTER))
    assert done.returncode == 0, done.stderr
    moved = sum(partition_of(key, BEFORE) != partition_of(key, AFTER) for key in KEYS)
    assert f"{moved} states have moved" in done.stderr
    again = state_command("repartition", str(config), "--partitions", str(AFTER))
    assert (again.returncode, "already" in again.stderr) == (0, True), again.stderr
    more = fill(broker, name, 120, 120, AFTER)
    ends = {number: more[number] + counts.get(number, 0) for number in range(AFTER)}
    with RunningDaemon(config, tmp_path / "log3") as daemon:
        daemon.wait(lambda: committed_offsets(broker, name) == ends, "all answered")
        assert daemon.sigterm() == 0, daemon.last_words()
    answers = [orjson.loads(one.value) for one in read_all(broker, f"{name}.out", partitions=BEFORE)]
    assert by_key(answers) == alone(model, tmp_path, 240)
    code, summary, said = verify(config)
    assert (code, summary["findings"]) == (2, []), said  # what keys that have moved met is not known to it
    assert all("moved" in one["reason"] for one in summary["unjudged"])
    assert summary["events"] - summary["not_judged"] >= 120


@pytest.mark.only_client("confluent")
def test_the_stream_time_goes_on_with_more_partitions(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """With `input.max_lateness`; one of the old partitions is ahead, so that events in the others become too late."""
    name, model = topic_prefix, random_model(tmp_path, hidden=4)
    create_topics(broker, [f"{name}.in", f"{name}.out"], partitions=BEFORE)
    config = write_config(tmp_path / "c.yaml", name=name, model=model, servers=broker, input={"max_lateness": "5s"})
    newest_ms, in_time = [0] * BEFORE, []

    def fill_timed(first: int, ahead_ms: int) -> dict[int, int]:
        records, counts = [], dict.fromkeys(range(len(newest_ms)), 0)
        for i in range(first, first + 120):
            key = KEYS[i * 5 % len(KEYS)]
            number = partition_of(key, len(newest_ms))
            at_ms = NOW_MS + 1000 * i + ahead_ms * (partition_of(key, BEFORE) == 1) - 9_000 * (i % 10 == 7)
            counts[number] += 1
            records.append((key, b'{"amount": %d}' % (i % 31), at_ms, number))
            if at_ms >= newest_ms[number] - 5_000:
                in_time.append({"k": key.decode(), "t": at_ms, "amount": i % 31})
            newest_ms[number] = max(newest_ms[number], at_ms)
        produce(broker, f"{name}.in", records)
        return counts

    counts = fill_timed(0, 30_000)
    with RunningDaemon(config, tmp_path / "log1") as daemon:
        daemon.wait(lambda: committed_offsets(broker, name) == counts, "all answered")
        assert daemon.sigterm() == 0, daemon.last_words()
    before = len(in_time)
    assert newest_ms[1] > newest_ms[0] + 20_000
    with admin(broker) as client:
        client.create_partitions({f"{name}.in": AFTER})
    done = state_command("repartition", str(config), "--partitions", str(AFTER))
    assert done.returncode == 0, done.stderr
    newest_ms[:] = [max(newest_ms)] * AFTER
    more = fill_timed(120, 0)
    assert before < 120
    assert len(in_time) - before < 100
    ends = {number: more[number] + counts.get(number, 0) for number in range(AFTER)}
    with RunningDaemon(config, tmp_path / "log2") as daemon:
        daemon.wait(lambda: committed_offsets(broker, name) == ends, "all answered")
        assert daemon.sigterm() == 0, daemon.last_words()
    answers = [orjson.loads(one.value) for one in read_all(broker, f"{name}.out", partitions=BEFORE)]
    assert by_key(answers) == scored(model, tmp_path, in_time)
    code, summary, said = verify(config)
    assert (code, summary["findings"]) == (2, []), said
    assert all("moved" in one["reason"] for one in summary["unjudged"])


@pytest.mark.only_client("confluent")
def test_with_a_limit_on_the_number_of_keys(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """Judged by `verify`, which knows the keys that stay; those that have moved away make room."""
    name, model, many = topic_prefix, random_model(tmp_path, hidden=4), [b"m%d" % number for number in range(30)]
    create_topics(broker, [f"{name}.in", f"{name}.out"], partitions=BEFORE)
    config = write_config(tmp_path / "c.yaml", name=name, model=model, servers=broker, state={"max_keys": 3})
    source, written = random.Random(5), dict.fromkeys(range(AFTER), 0)

    def fill_some(partitions: int) -> None:
        records = []
        for i in range(300):
            key = many[int(source.random() * source.randrange(len(many)))]
            number = partition_of(key, partitions)
            records.append((key, b'{"amount": %d}' % (i % 31), NOW_MS + 1000 * sum(written.values()), number))
            written[number] += 1
        produce(broker, f"{name}.in", records)

    def serve(log: str, partitions: int) -> None:
        wanted = {number: written[number] for number in range(partitions)}
        with RunningDaemon(config, tmp_path / log) as daemon:
            daemon.wait(lambda: committed_offsets(broker, name) == wanted, "all answered")
            assert daemon.sigterm() == 0, daemon.last_words()

    fill_some(BEFORE)
    serve("log1", BEFORE)
    with admin(broker) as client:
        client.create_partitions({f"{name}.in": AFTER})
    done = state_command("repartition", str(config), "--partitions", str(AFTER))
    assert done.returncode == 0, done.stderr
    for log in ("log2", "log3"):
        fill_some(AFTER)
        serve(log, AFTER)
    code, summary, said = verify(config)
    assert (code, summary["findings"]) == (2, []), said
    assert all("moved" in one["reason"] for one in summary["unjudged"])
    assert summary["events"] - summary["not_judged"] > 500
