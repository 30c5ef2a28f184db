"""`lstmstream run` with `stages:` on a real broker: the bits of `score`, feedback events and a kill in between."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import yaml
from kafka.partitioner.default import murmur2

from lstmstream.serve.score import score_file
from tests.broker import harness
from tests.broker.harness import SHORT_SESSION, create_topics, produce, read_all
from tests.broker.test_verify import verify
from tests.broker.test_workers import RunningWorkers, running
from tests.test_stages import chain, history, models

COUNT = 3_000
PARTITIONS = 3  # of the second stage's input


class RunningStages(RunningWorkers):
    """The parent of the processes of all stages."""

    def __init__(self, config: Path, log: Path) -> None:
        command = [sys.executable, "-m", "lstmstream", "run", str(config)]
        super(RunningWorkers, self).__init__(config, log, command=command)


def configured(folder: Path, prefix: str, servers: str) -> Path:
    """The two stages, with topics of this test; the first has few events in a batch, so that a kill is amid them."""
    models(folder)
    properties: Mapping[str, Any] = SHORT_SESSION
    text = yaml.safe_dump(
        chain(
            name=prefix,
            kafka={"bootstrap_servers": servers, "client": harness.CLIENT, "properties": dict(properties)},
            batch={"max_events": 20},
            log={"format": "json"},
        ),
        sort_keys=False,
    )
    for topic in ("transactions", "terminals", "by-customer", "predictions"):
        text = text.replace(f"topic: {topic}\n", f"topic: {prefix}.{topic}\n")
    file = folder / "chain.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_stages_give_the_bits_of_score_over_a_kill(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    config, rows = configured(tmp_path, topic_prefix, broker), history(COUNT)
    create_topics(broker, [f"{topic_prefix}.transactions"], partitions=1)
    create_topics(broker, [f"{topic_prefix}.by-customer", f"{topic_prefix}.predictions"], partitions=PARTITIONS)
    texts = list(map(orjson.dumps, rows))
    half = COUNT // 2
    records = [(b"t", text, row["time"] * 1000, 0) for row, text in zip(rows, texts, strict=True)]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(texts))
    out = tmp_path / "out.jsonl"
    score_file(str(config), str(tmp_path / "rows.jsonl"), out=str(out), key=None, timestamp=None, dead_letters=None)
    scored = [orjson.loads(line) for line in out.read_bytes().splitlines()]

    def answered(number: int) -> bool:
        """Of the customers' stage, which is not killed; end offsets would count the markers of transactions too."""
        return daemon.metrics().get(("lstmstream_predictions_total", (("stage_name", "customer"),)), 0) >= number

    with RunningStages(config, tmp_path / "log") as daemon:
        daemon.wait_ready()
        produce(broker, f"{topic_prefix}.transactions", records[:half])
        daemon.wait(lambda: answered(1), "answering")
        victim = next(line["pid"] for line in daemon.said("worker started") if line["stage_name"] == "terminal")
        os.kill(victim, signal.SIGKILL)
        daemon.wait(lambda: not running(victim), "without it")
        produce(broker, f"{topic_prefix}.transactions", records[half:])
        daemon.wait(lambda: answered(len(scored)), "done")
        daemon.wait(daemon.ready, "ready with both")
        samples = daemon.metrics()
        assert samples["lstmstream_predictions_total", (("stage_name", "customer"),)] == len(scored)
        assert samples["lstmstream_worker_restarts_total", (("stage_name", "terminal"), ("worker", "0"))] == 1
        assert daemon.sigterm() == 0, daemon.last_words()

    found = list(read_all(broker, f"{topic_prefix}.predictions", partitions=PARTITIONS))
    by_place = {(one["key"], one["steps"]): one for one in (json.loads(record.value) for record in found)}
    assert len(found) == len(by_place) == len(scored)
    for one in scored:
        assert {**one, "source": 0} == {**by_place[one["key"], one["steps"]], "source": 0}
    events = list(read_all(broker, f"{topic_prefix}.by-customer", partitions=PARTITIONS))
    assert len({record.partition for record in events}) > 1
    assert all(record.partition == (murmur2(record.key) & 0x7FFFFFFF) % PARTITIONS for record in events)
    assert {record.timestamp for record in events} == {row["time"] * 1000 for row in rows if "kind" not in row}
    for stage, silent in (("terminal", COUNT // 10), ("customer", 0)):
        code, summary, errors = verify(config, "--stage", stage)
        assert (code, summary["result"], summary["silent"]) == (0, "right", silent), (summary, errors)
