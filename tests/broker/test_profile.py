"""`lstmstream run --profile`: from the start to SIGTERM."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.broker.harness import RunningDaemon, create_topics, produce, write_config
from tests.models import random_model
from tests.speedscope import check_speedscope, seconds_in

pytestmark = pytest.mark.broker

EVENTS = 3_000
NOW_MS = 1_700_000_000_000


def test_a_run_is_profiled(tmp_path: Path, broker: str, topic_prefix: str) -> None:
    create_topics(broker, [f"{topic_prefix}.in", f"{topic_prefix}.out"], partitions=1)
    config = write_config(
        tmp_path / "c.yaml", name=topic_prefix, model=random_model(tmp_path, hidden=4), servers=broker
    )
    file = tmp_path / "p.json"
    command = [sys.executable, "-m", "lstmstream", "run", str(config), "--profile", str(file)]
    with RunningDaemon(config, tmp_path / "log", command=command) as daemon:
        daemon.wait_ready()
        records = [(b"k%d" % (i % 50), b'{"amount": %d}' % i, NOW_MS + i, 0) for i in range(EVENTS)]
        produce(broker, f"{topic_prefix}.in", records)
        daemon.wait(lambda: daemon.count("events_total") == EVENTS, "all answered")
        batches = daemon.count("batch_events_count")
        assert daemon.sigterm() == 0
    said = [line["message"] for line in daemon.log_lines]
    (head,) = [text for text in said if text.startswith(f"{EVENTS:,} events in ")]
    assert head.endswith(f" and {batches:,.0f} batches")
    stages = [text.split()[0] for text in said if text.endswith("%")]
    assert stages[:8] == ["poll", "decode", "gather", "step", "stage", "reasons", "encode", "commit"]
    assert any(text.startswith("MainThread") for text in said)
    assert file.stat().st_mode & 0o077 == 0, "for its user alone"
    profile = json.loads(file.read_bytes())
    check_speedscope(profile)
    assert seconds_in(profile, "MainThread")["Daemon.run"] > 0
    assert {"lstmstream-consumer", "lstmstream-http"} <= {one["name"] for one in profile["profiles"]}
