"""`lstmstream dead-letter replay` after `state repartition`: a key has one state, where it is now."""

from __future__ import annotations

from pathlib import Path

import pytest

from lstmstream.dead_letter import command
from lstmstream.dead_letter.command import replay_letters
from lstmstream.dead_letter.letters import Filter
from lstmstream.transport.partitioner import partition_of
from tests.dead_letter.test_commands import Opened
from tests.serve.memory_world import INPUT, PARTITIONS
from tests.states.seed_world import KEYS
from tests.states.test_repartition import MORE, Growing


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Growing:
    made = Growing()
    monkeypatch.setattr(command, "load_config", lambda _path, stage=None: made.config())
    monkeypatch.setattr(command, "open_kafka_admin", lambda _config: Opened(made))
    made.serve(30)
    return made


def replayed(world: Growing) -> dict[bytes | None, int]:
    """Corrects an event of each key; in which partition each has it now."""
    ends = [world.broker.topics[INPUT].end(number) for number in range(len(world.broker.topics[INPUT].logs))]
    assert replay_letters(Path("c.yaml"), Filter(), everything=True, settings=["amount=1"]) == 0
    logs = world.broker.topics[INPUT].logs
    return {record.key: number for number, end in enumerate(ends) for record in logs[number][end:]}


def fail(world: Growing, partitions: int, *, shift: int = 0) -> None:
    """An event of each key that becomes a dead letter."""
    for key in KEYS:
        world.produce(key, b'{"amount": "much"}', (partition_of(key, partitions) + shift) % partitions)
    world.serve()


def test_an_event_from_before_goes_where_its_key_is_now(world: Growing) -> None:
    fail(world, PARTITIONS)
    world.grow()
    world.repartition()
    assert replayed(world) == {key: partition_of(key, MORE) for key in KEYS}
    world.serve()
    assert world.homes() == {key: {partition_of(key, MORE)} for key in KEYS}
    world.grow(11)
    world.repartition(11)
    assert world.homes() == {key: {partition_of(key, 11)} for key in KEYS}


def test_an_event_from_after_it_stays_where_it_came(world: Growing) -> None:
    """Its producer puts it there, whatever the reason: the next one of this key comes there too."""
    world.grow()
    world.repartition()
    fail(world, MORE, shift=1)
    assert replayed(world) == {key: (partition_of(key, MORE) + 1) % MORE for key in KEYS}


def test_without_a_move_each_stays_where_it_came(world: Growing) -> None:
    fail(world, PARTITIONS, shift=1)
    assert replayed(world) == {key: (partition_of(key, PARTITIONS) + 1) % PARTITIONS for key in KEYS}
