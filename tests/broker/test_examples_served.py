"""Three examples through real Kafka: the daemon's answers are those of `lstmstream score`, bit for bit."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from lstmstream.serve.score import score_file
from tests.broker.harness import RunningDaemon, create_topics, produce, read_all, write_config

pytestmark = pytest.mark.torch

EXAMPLES = Path(__file__).parents[2] / "examples"
PARTITIONS = 2
T0 = 1_767_225_600_000  # 2026-01-01, in ms
By = dict[tuple[str, int], dict[str, Any]]


def trained(name: str, to: Path) -> Path:
    """A folder with the example's model and events."""
    from lstmstream.train.run import train  # this module is read where there is no torch, too

    folder = to / name
    folder.mkdir()
    for file in ("make_data.py", "train.yaml", "stream.yaml"):
        shutil.copy(EXAMPLES / name / file, folder)
    subprocess.run([sys.executable, "make_data.py", "--small"], cwd=folder, check=True, timeout=180)
    assert train(folder / "train.yaml") == 0
    return folder


def by_key_and_step(lines: list[bytes]) -> By:
    """Each answer under its key and its place in the key's sequence; none twice."""
    answers = [orjson.loads(line) for line in lines]
    found = {(answer["key"], answer["steps"]): answer for answer in answers}
    assert len(found) == len(answers)
    return found


def offline(folder: Path) -> By:
    """What `lstmstream score` answers, with the example's own stream.yaml."""
    out = folder / "answers.jsonl"
    score_file(
        str(folder / "stream.yaml"),
        str(folder / "events.jsonl"),
        out=str(out),
        key=None,
        timestamp=None,
        dead_letters=None,
    )
    return by_key_and_step(out.read_bytes().splitlines())


def without(answer: dict[str, Any], *fields: str) -> bytes:
    """Its bytes but for these fields."""
    return orjson.dumps({field: value for field, value in answer.items() if field not in fields})


def answering(daemon: RunningDaemon, count: int) -> None:
    """Until it has given so many answers since its start."""
    daemon.wait(lambda: daemon.count("predictions_total") >= count, f"done with {count} events")


@pytest.mark.parametrize("name", ["next-number", "number-line", "binary-sequence"])
def test_served_answers_are_those_of_score(broker: str, topic_prefix: str, tmp_path: Path, name: str) -> None:
    folder = trained(name, tmp_path)
    expected = offline(folder)
    events = (folder / "events.jsonl").read_bytes().splitlines()
    assert len(expected) == len(events)

    stream = yaml.safe_load((folder / "stream.yaml").read_text())
    source, sink = f"{topic_prefix}.in", f"{topic_prefix}.out"
    config = write_config(
        tmp_path / "served.yaml",
        name=topic_prefix,
        model=folder / stream["model"],
        servers=broker,
        input={**stream["input"], "topic": source},
        output={**stream["output"], "topic": sink},
    )
    keys = [orjson.loads(event)[stream["input"]["key"]].encode() for event in events]
    partitions = [zlib.crc32(key) % PARTITIONS for key in keys]  # a key's events in one partition, as they came
    sent = [(None, event, T0 + at, partitions[at]) for at, event in enumerate(events)]
    create_topics(broker, [source], partitions=PARTITIONS)
    half = len(sent) // 2
    produce(broker, source, sent[:half])
    for some in ([], sent[half:]):  # two daemons, one after the other: the second goes on from the first's states
        with RunningDaemon(config, tmp_path / "log") as daemon:
            daemon.wait_ready()
            produce(broker, source, some)
            answering(daemon, len(some) or half)
            assert daemon.sigterm() == 0

    lines: dict[int, list[bytes]] = defaultdict(list)
    for record in read_all(broker, sink, partitions=PARTITIONS):
        lines[record.partition].append(record.value)
    served = by_key_and_step([line for partition in sorted(lines) for line in lines[partition]])
    assert served.keys() == expected.keys()
    offsets: dict[int, int] = defaultdict(int)
    for at, event in enumerate(events):
        offset = offsets[partitions[at]]
        offsets[partitions[at]] += 1
        answer = orjson.loads(lines[partitions[at]][offset])
        assert answer["source"] == {"topic": source, "partition": partitions[at], "offset": offset}
        told = orjson.loads(event)
        assert answer["event"] == {field: told[field] for field in stream["output"]["include"]}
    for place, answer in expected.items():
        # without a field for the time it is the record's, and for a file the moment of reading
        assert without(served[place], "source", "timestamp") == without(answer, "source", "timestamp")
