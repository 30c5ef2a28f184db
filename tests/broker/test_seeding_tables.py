"""States that were there before the input, on a real broker; `lstmstream score` over all events is the oracle."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from lstmstream.config import load_config
from lstmstream.model import load_model
from lstmstream.serve.identity import state_identity
from lstmstream.transport.partitioner import partition_of
from tests.broker.harness import (
    RunningDaemon,
    committed_offsets,
    create_topics,
    read_all,
    write_config,
    written_states,
)
from tests.broker.older_events import COLUMNS, NOW_MS, PARTITIONS, Event, events, to_topic, write_lines
from tests.broker.test_states import state_command
from tests.broker.test_verify import verify
from tests.models import random_model


def lstmstream(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lstmstream", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def oracle(config: Path, found: Sequence[Event], folder: Path) -> dict[int, Any]:
    """What one run over all events answers, by the number of the event."""
    data, out = write_lines(folder / "all.jsonl", found), folder / "scored.jsonl"
    done = lstmstream("score", str(config), str(data), "--key", "id", "--timestamp", "ts", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return {one["event"]["n"]: comparable(one) for one in map(json.loads, out.read_text().splitlines())}


def comparable(answer: dict[str, Any]) -> Any:
    return answer["key"], answer["score"], answer["steps"], answer["alert"], answer.get("held_back")


def answers(broker: str, topic: str) -> dict[int, Any]:
    found = [json.loads(record.value) for record in read_all(broker, topic, partitions=PARTITIONS)]
    assert len({one["event"]["n"] for one in found}) == len(found)
    return {one["event"]["n"]: comparable(one) for one in found}


def configure(broker: str, name: str, folder: Path, **sections: Any) -> Path:
    create_topics(broker, [f"{name}.in", f"{name}.out"], partitions=PARTITIONS)
    folder.mkdir()
    model = random_model(folder, hidden=4)
    output = {"include": ["n"], "threshold": 0.5, **sections.pop("output", {})}
    state = {"ttl": "1h", **sections.pop("state", {})}
    return write_config(
        folder / "c.yaml", name=name, model=model, servers=broker, output=output, state=state, **sections
    )


def serve(broker: str, name: str, config: Path, log: Path, wanted: Sequence[Event]) -> None:
    """A daemon's life until it has answered these and stopped."""
    ends = [0] * PARTITIONS
    for event in wanted:
        ends[partition_of(event["id"].encode(), PARTITIONS)] += 1
    with RunningDaemon(config, log) as daemon:
        daemon.wait(lambda: committed_offsets(broker, name) == dict(enumerate(ends)), "all answered")
        assert daemon.sigterm() == 0, daemon.last_words()


def test_an_import_goes_on_where_the_export_stopped(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    found, half = events(1_200), 700
    old, new = f"{topic_prefix}a", f"{topic_prefix}b"
    first = configure(broker, old, tmp_path / "a")
    to_topic(broker, f"{old}.in", found[:half])
    serve(broker, old, first, tmp_path / "log1", found[:half])
    second = configure(broker, new, tmp_path / "b")
    to_topic(broker, f"{new}.in", found[half:])
    states = str(tmp_path / "states.parquet")
    done = state_command("export", str(first), "--out", states)
    assert done.returncode == 0, done.stderr
    done = state_command("import", str(second), states)
    assert done.returncode == 0, done.stderr
    assert "states were written; the input goes on at" in done.stderr
    serve(broker, new, second, tmp_path / "log2", found[half:])
    wanted = oracle(second, found, tmp_path)
    assert answers(broker, f"{new}.out") == {n: one for n, one in wanted.items() if n >= half}
    code, summary, said = verify(second)
    assert (code, summary["counts"]["wrong"], summary["not_judged"] > 0) == (2, 0, True), said
    assert "history" in said + json.dumps(summary["unjudged"])


def test_states_built_from_history_go_on_in_the_topic(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """With a policy for alerts, whose memory comes along."""
    found, half, name = events(1_200), 700, topic_prefix
    config = configure(
        broker,
        name,
        tmp_path / "a",
        output={"alerts_topic": f"{name}.alerts"},
        alerts={"cooldown": "2h", "hold": True, "end_record": True},
    )
    create_topics(broker, [f"{name}.alerts"], partitions=PARTITIONS)
    to_topic(broker, f"{name}.in", found[half:])
    files = [str(write_lines(tmp_path / "h1.jsonl", found[:300]))]
    pl.DataFrame(found[300:half]).write_parquet(tmp_path / "h2.parquet")
    files.append(str(tmp_path / "h2.parquet"))
    done = state_command("build", str(config), *files, *COLUMNS)
    assert done.returncode == 0, done.stderr
    serve(broker, name, config, tmp_path / "log1", found[half:])
    wanted = {n: one for n, one in oracle(config, found, tmp_path).items() if n >= half}
    assert answers(broker, f"{name}.out") == wanted
    assert any(one[-1] for one in wanted.values())
    history = [argument for file in files for argument in ("--history", file)]
    code, summary, said = verify(config, *history, *COLUMNS)
    assert (code, summary["predictions"]) == (0, len(found) - half), said


HALF, BEFORE_EXPORT = 350, 500


def build_and_go_on(
    broker: str, name: str, config: Path, found: Sequence[Event], folder: Path, *joined: str
) -> tuple[str, list[str]]:
    """States of the first half, and the daemon behind it, through a restart; what was said, arguments for `verify`."""
    file = str(write_lines(folder / "h.jsonl", found[:HALF]))
    to_topic(broker, f"{name}.in", found[HALF:450])
    done = state_command("build", str(config), file, *COLUMNS, *joined)
    assert done.returncode == 0, done.stderr
    serve(broker, name, config, folder / "log1", found[HALF:450])
    to_topic(broker, f"{name}.in", found[450:BEFORE_EXPORT])
    serve(broker, name, config, folder / "log2", found[HALF:BEFORE_EXPORT])
    return done.stderr, ["--history", file, *COLUMNS]


def answers_of_both(
    broker: str, groups: Sequence[tuple[str, Path]], found: Sequence[Event], folder: Path, *joined: str
) -> list[dict[int, Any]]:
    """What the rest gets from a group that imports what the states are by now, and from the one that goes on."""
    (name, config), (other, second) = groups
    states = str(folder / "states.parquet")
    assert state_command("export", str(config), "--out", states).returncode == 0
    to_topic(broker, f"{other}.in", found[BEFORE_EXPORT:])
    done = state_command("import", str(second), states, *joined)
    assert done.returncode == 0, done.stderr
    serve(broker, other, second, folder / "log3", found[BEFORE_EXPORT:])
    to_topic(broker, f"{name}.in", found[BEFORE_EXPORT:])
    serve(broker, name, config, folder / "log4", found[HALF:])
    going_on = {n: one for n, one in answers(broker, f"{name}.out").items() if n >= BEFORE_EXPORT}
    return [answers(broker, f"{other}.out"), going_on]


def test_the_most_recent_keys_of_a_history_go_on_in_the_topic(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """With `state.max_keys`, through a restart; then with an import of what is left, as of another group."""
    found, name, other = events(600), f"{topic_prefix}a", f"{topic_prefix}b"
    config = configure(broker, name, tmp_path / "a", state={"max_keys": 4})
    said, judged_by = build_and_go_on(broker, name, config, found, tmp_path)
    assert "12 states were written" in said
    code, summary, said = verify(config, *judged_by)
    assert (code, summary["predictions"]) == (0, 150), said
    second = configure(broker, other, tmp_path / "b", state={"max_keys": 4})
    imported, going_on = answers_of_both(broker, [(name, config), (other, second)], found, tmp_path)
    assert imported == going_on


@pytest.mark.only_client("confluent")
def test_the_stream_time_of_a_history_goes_on_in_the_topic(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """With `input.max_lateness`, through a restart; then with an import of what is left, as of another group."""
    found, name, other = events(600), f"{topic_prefix}a", f"{topic_prefix}b"
    for event in found:
        event["ts"] -= 60_000 * (event["n"] % 4 == 2)
    joined, bound = [f"--at-offset={number}:0" for number in range(PARTITIONS)], {"max_lateness": "20s"}
    config = configure(broker, name, tmp_path / "a", input=bound)
    said, judged_by = build_and_go_on(broker, name, config, found, tmp_path, *joined)
    assert "of 350 rows are too late and change no state" in said
    code, summary, said = verify(config, *judged_by)
    assert (code, summary["events"], summary["dead_letters"] > 0) == (0, 150, True), said
    second = configure(broker, other, tmp_path / "b", input=bound)
    imported, going_on = answers_of_both(broker, [(name, config), (other, second)], found, tmp_path, *joined)
    assert imported == going_on
    assert len(imported) < 100


@pytest.mark.only_client("confluent")
def test_an_import_that_was_killed_is_done_again(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    """Until then a daemon refuses to start."""
    name, count = topic_prefix, 150_000
    config = configure(broker, name, tmp_path / "a")
    card = load_model(next((tmp_path / "a").glob("*.onnx"))).card
    columns: dict[str, Any] = {
        "key": [f"k{number}" for number in range(count)],
        "timestamp": pl.repeat(NOW_MS - 1, count, dtype=pl.Int64, eager=True),
        "steps": pl.repeat(41, count, dtype=pl.Int64, eager=True),
        "identity": pl.repeat(state_identity(load_config(config), card).digest.hex(), count, eager=True),
    }
    for part in card.state.parts:
        values = np.full((count, int(np.prod(part.shape))), 0.25, np.float32)
        columns[f"state.{part.name}"] = pl.Series(values, dtype=pl.Array(pl.Float32, values.shape[1]))
    pl.DataFrame(columns).write_parquet(tmp_path / "states.parquet")
    found = [{"id": f"k{n}", "ts": NOW_MS, "amount": 1.0, "n": n} for n in range(60)]
    to_topic(broker, f"{name}.in", found)
    command = [sys.executable, "-m", "lstmstream", "state", "import", str(config), str(tmp_path / "states.parquet")]
    with RunningDaemon(config, tmp_path / "import.log", command=command) as importing:
        importing.freeze_when(lambda: written_states(broker, name, partitions=PARTITIONS) > 0)
        importing.kill9()
    with RunningDaemon(config, tmp_path / "log1") as daemon:
        assert daemon.wait_end() == 2
        assert "was stopped before it had written all" in daemon.last_words()
    done = state_command("import", str(config), str(tmp_path / "states.parquet"))
    assert done.returncode == 0, done.stderr
    assert "of an unfinished import or build will not count" in done.stderr or "150,000 states" in done.stderr
    serve(broker, name, config, tmp_path / "log2", found)
    assert {one[2] for one in answers(broker, f"{name}.out").values()} == {42}
