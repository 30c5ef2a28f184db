"""`lstmstream dead-letter` on a real broker: events are corrected and replayed once, whatever else is going on."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.broker.harness import (
    RunningDaemon,
    committed_offsets,
    create_topics,
    end_offsets,
    produce,
    read_all,
    write_config,
)
from tests.models import random_model
from tests.verify.world import NOW_MS

PARTITIONS = 2
GOOD, BAD = 200, 40


def lstmstream(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lstmstream", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)


def test_events_are_corrected_and_replayed_once_by_two_at_the_same_time(
    broker: str, topic_prefix: str, tmp_path: Path
) -> None:
    name = topic_prefix
    create_topics(broker, [f"{name}.in", f"{name}.out"], partitions=PARTITIONS)
    config = write_config(tmp_path / "c.yaml", name=name, model=random_model(tmp_path), servers=broker)
    keys = [f"k{number % 10}".encode() for number in range(GOOD + BAD)]
    amounts = [b'"much"' if number < BAD else b"1.5" for number in range(GOOD + BAD)]
    values = [b'{"amount": %s, "number": %d}' % (amount, number) for number, amount in enumerate(amounts)]
    produce(broker, f"{name}.in", ((k, v, NOW_MS, int(k[1:]) % PARTITIONS) for k, v in zip(keys, values, strict=True)))
    with RunningDaemon(config, tmp_path / "log") as daemon:

        def answered() -> bool:
            return committed_offsets(broker, name) == end_offsets(broker, f"{name}.in", partitions=PARTITIONS)

        daemon.wait_ready()
        daemon.wait(answered, "all is answered")
        done = lstmstream("dead-letter", "list", str(config), "--json", "--stage", "validate")
        assert (done.returncode, len(done.stdout.splitlines())) == (0, BAD), done.stderr
        first = json.loads(done.stdout.splitlines()[0])
        assert json.loads(first["value"])["amount"] == "much"

        replay = ("dead-letter", "replay", str(config), "--all", "--set", "amount=7")
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda _: lstmstream(*replay), range(2)))
        assert {done.returncode for done in both} <= {0, 2}, [done.stderr for done in both]
        done = lstmstream(*replay)
        assert done.returncode == 0, done.stderr
        assert sum(end_offsets(broker, f"{name}.in", partitions=PARTITIONS).values()) >= GOOD + 2 * BAD
        daemon.wait(answered, "what was replayed is answered")
        assert daemon.sigterm() == 0
    events = [json.loads(record.value)["number"] for record in read_all(broker, f"{name}.in", partitions=PARTITIONS)]
    assert sorted(events) == sorted([*range(GOOD + BAD), *range(BAD)])
    assert len(list(read_all(broker, f"{name}.out", partitions=PARTITIONS))) == GOOD + BAD
    verified = lstmstream("verify", str(config))
    assert verified.returncode == 0, verified.stdout
