"""`on_model_change: replay` on a real broker: the new model has seen what the old one has answered."""

from __future__ import annotations

import json
from pathlib import Path

import orjson

from tests.broker.harness import RunningDaemon, committed_offsets, create_topics, produce, read_all, write_config
from tests.broker.test_states import state_command
from tests.broker.test_verify import verify
from tests.models import random_model

NOW_MS = 1_700_000_000_000
PARTITIONS = 2


def fill(broker: str, name: str, first: int, count: int) -> None:
    """Of each partition; a second apart."""
    records = [
        (b"k%d-%d" % (p, i % 3), b'{"amount": %d}' % i, NOW_MS + 1000 * i, p)
        for i in range(first, first + count)
        for p in range(PARTITIONS)
    ]
    produce(broker, f"{name}.in", records)


def serve(broker: str, name: str, config: Path, log: Path, end: int) -> None:
    with RunningDaemon(config, log) as daemon:
        daemon.wait(lambda: committed_offsets(broker, name) == dict.fromkeys(range(PARTITIONS), end), "all answered")
        assert daemon.sigterm() == 0, daemon.last_words()


def test_a_new_model_goes_on_with_states_rebuilt_from_the_input(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    name = topic_prefix
    create_topics(broker, [f"{name}.in", f"{name}.out"], partitions=PARTITIONS)
    models = [tmp_path / "old", tmp_path / "new"]
    for seed, folder in enumerate(models):
        folder.mkdir()
        random_model(folder, hidden=4, seed=seed)
    old, new = (
        write_config(
            folder / "c.yaml",
            name=name,
            model=next(folder.glob("*.onnx")),
            servers=broker,
            on_model_change="replay",
            state={"replay": "60s"},
        )
        for folder in models
    )
    fill(broker, name, 0, 100)
    serve(broker, name, old, tmp_path / "log1", 100)
    fill(broker, name, 100, 20)
    serve(broker, name, new, tmp_path / "log2", 120)
    answers = [orjson.loads(record.value) for record in read_all(broker, f"{name}.out", partitions=PARTITIONS)]
    ours = [one for one in answers if one["source"]["offset"] >= 100]
    assert len(ours) == 20 * PARTITIONS
    # The record at 99 is 60 s after that at 39: each key's events from there on are in its state.
    assert all(
        one["steps"] == sum(i % 3 == one["source"]["offset"] % 3 for i in range(39, one["source"]["offset"] + 1))
        for one in ours
    )
    code, summary, said = verify(new, "--from", "100")
    assert (code, summary["predictions"]) == (0, 20 * PARTITIONS), said
    got = state_command("get", str(new), "k0-1", "--json")
    assert json.loads(got.stdout)["states"][0]["offset"] == 118
