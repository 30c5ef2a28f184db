"""A real Prometheus scrapes a running daemon: what rules, dashboard and documents name is there; queries work."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.broker.harness import create_topics, produce, write_config
from tests.broker.test_snapshots import with_frequent_snapshots
from tests.broker.test_workers import RunningWorkers
from tests.prometheus import METRIC, RECORDED, ROOT, RunningPrometheus, panels, queries, rules

PARTITIONS = 2
EVENTS = 400
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DEPLOYED = [path for path in sorted((ROOT / "deploy").rglob("*")) if path.suffix in {".yml", ".yaml", ".json", ".tpl"}]
IDLE = {"Alerts that fire"}  # panels that are empty while all is well


def named() -> dict[str, str]:
    """Each name of a metric or a recorded series, and a file that has it."""
    found = {}
    for path in [*DOCUMENTS, *DEPLOYED]:
        text = path.read_text(encoding="utf-8")
        if path in DOCUMENTS:
            text = " ".join(re.findall(r"`([^`\n]+)`", text))
        for name in [*METRIC.findall(text), *RECORDED.findall(text)]:
            found[name] = str(path.relative_to(ROOT))
    return found


@pytest.mark.only_client("kafka-python")
def test_every_metric_that_is_named_exists_and_every_query_works(
    broker: str, topic_prefix: str, tmp_path: Path
) -> None:
    name = topic_prefix
    create_topics(broker, [f"{name}.in"], partitions=PARTITIONS)
    model = Path("builtin:demo")
    config = write_config(tmp_path / "c.yaml", name=name, model=model, servers=broker)
    with (
        RunningWorkers(config, tmp_path / "log", workers=2) as daemon,
        RunningPrometheus(tmp_path) as prometheus,
        ExitStack() as more,
    ):
        daemon.wait_ready()
        prometheus.set_targets([daemon.port or 0])
        prometheus.wait(lambda: prometheus.query("lstmstream_ready == 1"), "scraped")
        events = [(b"%d" % (n % 9), b"{}", None, n % 9 % PARTITIONS) for n in range(EVENTS)]
        produce(broker, f"{name}.in", events)
        counted = f"sum(rate(lstmstream_events_total[20s])) > 0 and sum(lstmstream_events_total) == {EVENTS}"
        prometheus.wait(lambda: prometheus.query(counted), "seen counting")
        prometheus.wait(lambda: prometheus.query("job:lstmstream_alerts:ratio_rate5m"), "recording")

        for lag in ("lstmstream_consumer_lag_records", "lstmstream_consumer_lag_seconds"):
            prometheus.wait(lambda lag=lag: len(prometheus.query(f"{lag} == 0")) == PARTITIONS, f"{lag} is 0 when idle")  # type: ignore[misc]
        # Another one of the same input, with snapshots.
        (tmp_path / "other").mkdir()
        other = write_config(
            tmp_path / "other" / "c.yaml",
            name=f"{name}.other",
            model=model,
            servers=broker,
            input={"topic": f"{name}.in"},
            state={"dir": str(tmp_path / "snapshots"), "checkpoint_interval": "1s"},
        )
        snapshotting = more.enter_context(with_frequent_snapshots(other, tmp_path / "log2"))
        snapshotting.wait_ready()
        prometheus.set_targets([daemon.port or 0, snapshotting.port or 0])
        prometheus.wait(lambda: prometheus.query("lstmstream_state_snapshot_bytes"), "a snapshot is there")
        there = prometheus.names()
        # A histogram is named without the ends of its series where a document speaks of it.
        missing = {n: file for n, file in named().items() if n not in there and f"{n}_bucket" not in there}
        assert missing == {}

        produce(broker, f"{name}.in", events)  # panels show the last seconds
        prometheus.wait(lambda: prometheus.query("sum(rate(lstmstream_predictions_total[20s])) > 0"), "counting again")
        for panel in panels():
            answers = [prometheus.query(query) for query in queries(panel)]
            assert any(answers) or panel["title"] in IDLE, (panel["title"], queries(panel))
        for rule in rules():
            prometheus.query(rule["expr"])
        assert prometheus.firing() == set()
        health = {rule["name"]: rule["health"] for g in prometheus.api("rules")["groups"] for rule in g["rules"]}
        assert set(health.values()) == {"ok"}, health
