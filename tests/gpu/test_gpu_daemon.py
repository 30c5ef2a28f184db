"""The daemon with `device: cuda`: killed and started again, and judged by `verify`, which computes on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.broker.harness import (
    RunningDaemon,
    committed_offsets,
    create_topics,
    end_offsets,
    produce,
    write_config,
)
from tests.broker.test_verify import verify
from tests.models import random_model
from tests.verify.world import events

PARTITIONS = 3
COUNT = 20_000
HIDDEN = 64


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_a_daemon_that_was_killed_is_right(broker: str, topic_prefix: str, tmp_path: Path, device: str) -> None:
    create_topics(broker, [f"{topic_prefix}.{kind}" for kind in ("in", "out", "alerts")], partitions=PARTITIONS)
    config = write_config(
        tmp_path / "c.yaml",
        name=topic_prefix,
        model=random_model(tmp_path, hidden=HIDDEN, layers=2, categories={"channel": ["web", "7"], "shop": 5}),
        servers=broker,
        output={"alerts_topic": f"{topic_prefix}.alerts", "threshold": 0.6},
        state={"checkpoint_interval": "1s"},
        batch={"max_events": 500},
        device={"device": device},
    )
    found = events(COUNT, keys=700)
    produce(broker, f"{topic_prefix}.in", ((key, value, at, sum(key or b"") % PARTITIONS) for key, value, at in found))
    with RunningDaemon(config, tmp_path / "log1") as daemon:
        daemon.wait_ready()
        daemon.wait(lambda: sum(committed_offsets(broker, topic_prefix).values()) > COUNT / 4, "a part is answered")
        loaded = next(line for line in daemon.log_lines if line["message"] == "model loaded")
        daemon.kill9()
    if device == "cuda":
        assert loaded["device"] == "cuda"
    ends = end_offsets(broker, f"{topic_prefix}.in", partitions=PARTITIONS)
    with RunningDaemon(config, tmp_path / "log2") as daemon:
        daemon.wait(lambda: committed_offsets(broker, topic_prefix) == ends, "done")
        assert daemon.sigterm() == 0
        chosen = [line["message"] for line in daemon.log_lines if "device.device is auto" in line["message"]]
    assert bool(chosen) == (device == "auto"), "auto says what it measured"
    code, summary, errors = verify(config)
    assert (code, summary["result"]) == (0, "right"), (summary, errors)
    assert summary["tolerance"] == pytest.approx(1e-5)
    assert summary["events"] == COUNT


def test_score_gives_what_the_cpu_gives(tmp_path: Path) -> None:
    model = random_model(tmp_path, hidden=HIDDEN, numbers=("amount",), categories={"channel": ["web", "7"]})
    lines = [
        json.dumps({"k": n % 90, "t": 1_700_000_000 + n, "amount": n % 17, "channel": "web"}) for n in range(COUNT)
    ]
    scores = {}
    for device in ("cpu", "cuda"):
        config = tmp_path / f"{device}.yaml"
        write_config(config, name="t", model=model, servers="127.0.0.1:1", device={"device": device})
        command = [sys.executable, "-m", "lstmstream", "score", str(config), "-", "--key", "k", "--timestamp", "t"]
        done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        scores[device] = [json.loads(line)["score"] for line in done.stdout.splitlines()]
    assert len(scores["cuda"]) == len(lines)
    assert scores["cuda"] == pytest.approx(scores["cpu"], rel=1e-4, abs=1e-4)
