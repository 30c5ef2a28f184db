"""`lstmstream state build`: the engine over a history, then the daemon over the topic; `verify` judges both."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lstmstream.errors import CannotServe
from lstmstream.serve.clock import Clock
from lstmstream.serve.factory import make_engine
from lstmstream.states.build import HistoryRun, history_config, write_built
from lstmstream.states.joining import JoinAt, find_joins
from lstmstream.states.seeding import Seeding
from lstmstream.transport.partitioner import partition_of
from lstmstream.verify.history import History
from tests.models import random_model
from tests.serve.memory_world import INPUT, PARTITIONS
from tests.states.seed_world import SeedTransport
from tests.verify.world import ALERTS, NOW_MS, VerifyWorld

HISTORY, TOPIC = 150, 150
POLICY: dict[str, Any] = {"cooldown": "1h", "hold": True, "end_record": True, "max_per_hour": 6, "mute": ["k3"]}
Event = dict[str, Any]


def events(count: int, start_ms: int, seed: int) -> list[Event]:
    """With late ones, silences, and some that are no events. All times are at `start_ms` or later."""
    source, now_ms, found = random.Random(seed), start_ms + 10_000, []
    for _ in range(count):
        now_ms += 4_000_000 if source.random() < 0.02 else source.choice([0, 900, 30_000])
        at_ms = now_ms - source.choice([0, 0, 0, 7_000])
        event: Event = {"id": f"k{source.randrange(8)}", "ts": at_ms, "amount": round(source.uniform(-5, 40), 2)}
        event["channel"] = source.choice(["web", "pos", "7", None])
        if source.random() < 0.05:
            event["amount"] = "much"
        found.append(event)
    return found


@pytest.fixture
def world(tmp_path: Path) -> VerifyWorld:
    path = random_model(tmp_path, hidden=2, categories={"channel": ["web", "7"]})
    made = VerifyWorld(path, state={"ttl": "1h", "checkpoint_interval": "5s"}, alerts=POLICY)
    made.settings["output"]["threshold"] = 0.312
    made.settings["input"] = {"topic": INPUT, "late": "score"}
    for event in events(TOPIC, NOW_MS + 1, 2):
        key = event["id"].encode()
        made.broker.append(INPUT, partition_of(key, PARTITIONS), key, json.dumps(event).encode(), event["ts"], [])
    return made


def past() -> list[Event]:
    """The newest a minute before the topic begins, so that states and incidents go on there."""
    found = events(HISTORY, NOW_MS, 1)
    shift_ms = NOW_MS - 60_000 - max(event["ts"] for event in found)
    return [{**event, "ts": event["ts"] + shift_ms} for event in found]


def lines(path: Path, found: Sequence[Event]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in found))
    return path


def build(world: VerifyWorld, files: Sequence[Path], at: JoinAt | None = None) -> int:
    """As the command does."""
    config, transport = world.config(), SeedTransport(world.broker, INPUT)
    seeding = Seeding(
        config, world.model.card, transport, clock=Clock(lambda: world.now_s, lambda: world.now_s, world._sleep)
    )
    seeding.rows_at_once = 3
    try:
        seeding.prepare()
        engine = make_engine(config, world.onnx_step())
        joins = find_joins(seeding.broker, INPUT, PARTITIONS, at or JoinAt({}), engine)
        built = HistoryRun(history_config(config, world.model, "id", "ts"), world.onnx_step(), joins)
        for file in files:
            built.read(file)
        return write_built(seeding, built, joins)
    finally:
        seeding.close()


def judge(world: VerifyWorld, files: Sequence[Path] | None) -> tuple[int, dict[str, Any]]:
    found = world.verify(history=None if files is None else History(files, "id", "ts"))
    return found.exit_code, found.summary()


def test_answers_and_alerts_are_those_of_one_run_over_both(world: VerifyWorld, tmp_path: Path) -> None:
    """With late events, silences and dead letters, and with what the policy for alerts remembers."""
    found = past()
    files = [lines(tmp_path / "1.jsonl", found[:70]), lines(tmp_path / "2.jsonl", found[70:])]
    assert build(world, files) == len({event["id"] for event in found})
    world.serve()
    code, summary = judge(world, files)
    assert (code, summary["findings"]) == (0, [])
    assert summary["predictions"] + summary["dead_letters"] == TOPIC
    held_back = [answer["held_back"] for answer in world.answers() if "held_back" in answer]
    assert {"hold", "mute"} <= set(held_back)
    ended = [json.loads(record.value or b"").get("ended") for p in range(PARTITIONS) for record in world.log(ALERTS, p)]
    assert any(one and one["offset"] == -1 for one in ended)  # it began with an event of the history
    world.serve()  # from what the daemon has written since
    assert judge(world, files)[0] == 0


def test_a_history_that_is_not_the_one_is_found_out(world: VerifyWorld, tmp_path: Path) -> None:
    found = past()
    build(world, [lines(tmp_path / "1.jsonl", found)])
    world.serve()
    other = lines(tmp_path / "2.jsonl", [event for event in found if event["id"] != "k1"])
    code, summary = judge(world, [other])
    assert code == 1
    assert {json.loads(json.dumps(one))["kind"] for one in summary["findings"]} <= {"wrong", "missing"}


def test_without_the_history_it_says_what_it_cannot_judge(world: VerifyWorld, tmp_path: Path) -> None:
    build(world, [lines(tmp_path / "1.jsonl", past())])
    world.serve()
    code, summary = judge(world, None)
    assert (code, summary["findings"]) == (2, [])
    assert "imported or built from history" in summary["unjudged"][0]["reason"]


def test_a_history_of_nobody(world: VerifyWorld, tmp_path: Path) -> None:
    world.serve()
    with pytest.raises(CannotServe, match="--history: the states of this group were not built from history"):
        judge(world, [lines(tmp_path / "1.jsonl", past())])


def test_a_table_gives_the_same(world: VerifyWorld, tmp_path: Path) -> None:
    found = [event for event in past() if event["amount"] != "much"]
    table = tmp_path / "h.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    build(world, [table])
    world.serve()
    for files in ([table], [lines(tmp_path / "h.jsonl", found)]):
        code, summary = judge(world, files)
        assert (code, summary["findings"]) == (0, [])


@pytest.mark.parametrize("late_ms", [0, 5])
def test_an_overlap_is_refused(world: VerifyWorld, tmp_path: Path, late_ms: int) -> None:
    """At the time of the first event that the input has in the partition, or later."""
    first = min((record.timestamp_ms, record.key) for log in world.broker.topics[INPUT].logs for record in log)
    event = {"id": (first[1] or b"").decode(), "ts": first[0] + late_ms, "amount": 1}
    with pytest.raises(CannotServe, match=r"2\.jsonl: row 1: has an event of key .* they overlap"):
        build(world, [lines(tmp_path / "1.jsonl", past()), lines(tmp_path / "2.jsonl", [event])])
    assert not any(world.state_logs())


def test_an_empty_history(world: VerifyWorld, tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match="the history has no events"):
        build(world, [lines(tmp_path / "1.jsonl", [])])


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"key": "id"}, ("other", "ts"), "--key other: the config names another field, input.key: id"),
        ({}, ("id", None), "--timestamp COLUMN"),
        ({}, (None, "ts"), "--key COLUMN"),
    ],
)
def test_what_is_not_known_of_a_history(
    world: VerifyWorld, settings: dict[str, str], options: tuple[str | None, str | None], message: str
) -> None:
    world.settings["input"] = {"topic": INPUT, **settings}
    with pytest.raises(CannotServe, match=message):
        history_config(world.config(), world.model, *options)
