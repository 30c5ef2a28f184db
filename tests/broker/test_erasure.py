"""`lstmstream state delete` on a real broker: a running daemon, then one that was killed, judged by `verify`."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from tests.broker.harness import (
    RunningDaemon,
    committed_offsets,
    create_topics,
    produce,
    read_all,
    two_models,
    write_config,
)
from tests.broker.test_states import state_command
from tests.broker.test_verify import verify
from tests.models import random_model

NOW_MS = 1_700_000_000_000
PARTITIONS = 2
KEY = "k0-1"


def fill(broker: str, name: str, first: int, count: int) -> None:
    """Three keys in each partition, a second apart."""
    records = [
        (b"k%d-%d" % (p, i % 3), b'{"amount": %d}' % i, NOW_MS + 1000 * i, p)
        for i in range(first, first + count)
        for p in range(PARTITIONS)
    ]
    produce(broker, f"{name}.in", records)


def answered(broker: str, name: str, end: int) -> bool:
    return committed_offsets(broker, name) == dict.fromkeys(range(PARTITIONS), end)


def delete(config: Path, key: str) -> tuple[int, dict[str, Any]]:
    done = state_command("delete", str(config), key, "--json", "--timeout", "100s")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_key_is_erased_and_stays_so(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    name = topic_prefix
    create_topics(broker, [f"{name}.in", f"{name}.out"], partitions=PARTITIONS)
    config = write_config(
        tmp_path / "c.yaml",
        name=name,
        model=random_model(tmp_path, hidden=4),
        servers=broker,
        state={"checkpoint_interval": "1h"},
    )
    fill(broker, name, 0, 60)
    with RunningDaemon(config, tmp_path / "log1") as daemon:
        daemon.wait(lambda: answered(broker, name, 60), "all answered")
        code, body = delete(config, KEY)
        assert (code, body["confirmed"]) == (0, True)
        assert [(one["partition"], one["offset"], one["found"]) for one in body["erasures"]] == [
            (0, 60, True),
            (1, 60, False),
        ]
        fill(broker, name, 60, 30)
        daemon.wait(lambda: answered(broker, name, 90), "all answered")
        daemon.kill9()  # the floor lies before the erasure: its replay comes past the key's events
    fill(broker, name, 90, 30)
    with RunningDaemon(config, tmp_path / "log2") as daemon:
        daemon.wait(lambda: answered(broker, name, 120), "all answered")
        assert daemon.sigterm() == 0, daemon.last_words()
    code, body = delete(config, KEY)
    assert (code, body["members"], body["confirmed"]) == (0, False, False)
    fill(broker, name, 120, 30)
    with RunningDaemon(config, tmp_path / "log3") as daemon:
        daemon.wait(lambda: answered(broker, name, 150), "all answered")
        code, body = delete(config, "nobody")
        assert (code, body["keys_without_state"]) == (1, [{"key": "nobody"}])
        assert daemon.sigterm() == 0, daemon.last_words()
    answers = [orjson.loads(record.value) for record in read_all(broker, f"{name}.out", partitions=PARTITIONS)]
    steps = {key: [one["steps"] for one in answers if one["key"] == key] for key in (KEY, "k0-2")}
    assert steps[KEY] == [*range(1, 21), *range(1, 21), *range(1, 11)]
    assert steps["k0-2"] == list(range(1, 51))
    code, summary, said = verify(config)
    assert (code, summary["predictions"]) == (0, 150 * PARTITIONS), said


def limited_events(first: int, count: int) -> Iterator[tuple[bytes, bytes, int, int]]:
    """Of each partition: some of six keys often, others seldom."""
    source = random.Random(first)
    for i in range(first, first + count):
        for p in range(PARTITIONS):
            key = min(source.randrange(6), source.randrange(6))
            yield b"k%d-%d" % (p, key), b'{"amount": %d}' % i, NOW_MS + 1000 * i, p


def test_an_erased_key_makes_room_for_others(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """With `state.max_keys`: live, after a kill, and in the rebuild of a new model, which the whole log decides."""
    name = topic_prefix
    old, new = two_models(broker, name, tmp_path, partitions=PARTITIONS, max_keys=3, checkpoint_interval="1h")
    found = list(limited_events(0, 60))
    produce(broker, f"{name}.in", found)
    with RunningDaemon(old, tmp_path / "log1") as daemon:
        daemon.wait(lambda: answered(broker, name, 60), "all answered")
        code, body = delete(old, found[-PARTITIONS][0].decode())  # the most recent one has a state
        assert (code, body["confirmed"]) == (0, True), body
        produce(broker, f"{name}.in", list(limited_events(60, 30)))
        daemon.wait(lambda: answered(broker, name, 90), "all answered")
        daemon.kill9()
    produce(broker, f"{name}.in", list(limited_events(90, 30)))
    with RunningDaemon(old, tmp_path / "log2") as daemon:
        daemon.wait(lambda: answered(broker, name, 120), "all answered")
        assert daemon.sigterm() == 0, daemon.last_words()
    code, summary, said = verify(old)
    assert (code, summary["predictions"]) == (0, 120 * PARTITIONS), said
    produce(broker, f"{name}.in", list(limited_events(120, 30)))
    with RunningDaemon(new, tmp_path / "log3") as daemon:
        daemon.wait(lambda: answered(broker, name, 150), "all answered")
        assert daemon.sigterm() == 0, daemon.last_words()
    code, summary, said = verify(new, "--from", "120")
    assert (code, summary["predictions"], summary["not_judged"]) == (0, 30 * PARTITIONS, 0), said
