"""A key's state on a real broker: in the workers' memory (`/state/<key>`) and in the topic (`lstmstream state`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.broker.harness import write_config
from tests.broker.test_workers import EVENTS, RunningWorkers, fill, wait_answered
from tests.models import random_model

PARTITIONS = 3
TOKEN = "s3cret-s3cret"


def ask(daemon: RunningWorkers, key: str) -> tuple[int, dict[str, Any]]:
    status, body = daemon.get(f"/state/{key}", token=TOKEN)
    return status, json.loads(body or b"{}")


def state_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lstmstream", "state", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_the_state_of_a_key(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    fill(broker, topic_prefix, PARTITIONS)
    config = write_config(
        tmp_path / "c.yaml",
        name=topic_prefix,
        model=random_model(tmp_path, hidden=4),
        servers=broker,
        state={"checkpoint_interval": "1h"},
        http={"token": TOKEN, "port": 0},
    )
    with RunningWorkers(config, tmp_path / "log", workers=2) as daemon:
        wait_answered(daemon, broker, topic_prefix, PARTITIONS)
        # A partition that changes its owner at the stop has its states in the input only.
        daemon.wait(lambda: {line["worker"] for line in daemon.said("partition restored")} == {0, 1}, "shared")
        daemon.wait(lambda: daemon.partitions() == set(range(PARTITIONS)), "serving all partitions")
        bodies: list[dict[str, Any]] = []

        def answered(key: str, status: int) -> bool:  # it may be busy, or still learn of the commit
            found, body = ask(daemon, key)
            bodies.append(body)
            return found == status and all(state["committed"] for state in body.get("states", []))

        daemon.wait(lambda: answered("nobody", 404), "no answer")
        assert bodies[-1] == {"error": "not found", "hint": "no worker has a state of this key"}
        daemon.wait(lambda: answered("k2-1", 200), "an answer")
        (state,) = bodies[-1]["states"]
        assert (bodies[-1]["key"], state["partition"], state["steps"]) == ("k2-1", 2, EVENTS // 5)
        assert daemon.sigterm() == 0, daemon.last_words()
    del state["committed"], state["scores"]  # of the daemon, not of the state
    got = state_command("get", str(config), "k2-1", "--json")
    assert (got.returncode, got.stderr) == (0, "")
    assert json.loads(got.stdout) == {"key": "k2-1", "states": [state]}
    listed = state_command("list", str(config), "--prefix", "k1-", "--json")
    assert sorted(json.loads(line)["key"] for line in listed.stdout.splitlines()) == [f"k1-{i}" for i in range(5)]
    exported = state_command("export", str(config), "--out", "-")
    rows = [json.loads(line) for line in exported.stdout.splitlines()]
    assert len(rows) == 5 * PARTITIONS
    assert [row["parts"] for row in rows if row["key"] == "k2-1"] == [state["parts"]]
