"""A history, a topic that goes on from it, and `state build` and `verify` over both."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lstmstream.serve.clock import Clock
from lstmstream.serve.factory import make_engine
from lstmstream.states.build import HistoryRun, history_config, write_built
from lstmstream.states.joining import JoinAt, find_joins
from lstmstream.states.repartition import Repartition
from lstmstream.states.seeding import Seeding
from lstmstream.transport.partitioner import partition_of
from lstmstream.verify.history import History
from tests.models import random_model
from tests.serve.memory_world import INPUT, PARTITIONS
from tests.states.seed_world import SeedTransport
from tests.verify.world import NOW_MS, VerifyWorld

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


def build_world(tmp_path: Path) -> VerifyWorld:
    path = random_model(tmp_path, hidden=2, categories={"channel": ["web", "7"]})
    made = VerifyWorld(path, state={"ttl": "1h", "checkpoint_interval": "5s"}, alerts=POLICY)
    made.settings["output"]["threshold"] = 0.312
    made.settings["input"] = {"topic": INPUT, "late": "score"}
    append_events(made, events(TOPIC, NOW_MS + 1, 2))
    return made


def append_events(world: VerifyWorld, found: Sequence[Event]) -> None:
    """To the topic, as it is partitioned now."""
    for event in found:
        key = event["id"].encode()
        number = partition_of(key, len(world.broker.topics[INPUT].logs))
        world.broker.append(INPUT, number, key, json.dumps(event).encode(), event["ts"], [])


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


def repartition(world: VerifyWorld, partitions: int) -> None:
    """As the command does, once the topic has so many."""
    config, transport = world.config(), SeedTransport(world.broker, INPUT)
    clock = Clock(lambda: world.now_s, lambda: world.now_s, world._sleep)
    run = Repartition(config, make_engine(config, world.onnx_step()), transport, partitions, clock=clock)
    try:
        run.run()
    finally:
        world.broker.leave(transport.member_id)


def judge(world: VerifyWorld, files: Sequence[Path] | None) -> tuple[int, dict[str, Any]]:
    found = world.verify(history=None if files is None else History(files, "id", "ts"))
    return found.exit_code, found.summary()
