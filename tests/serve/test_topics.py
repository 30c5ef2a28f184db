"""The topics that a daemon needs: made where they are missing, refused where they would lose data."""

from __future__ import annotations

import pytest
from memory_world import INPUT, LETTERS, OUTPUT, PARTITIONS, STATES, World

from lstmstream.errors import CannotServe
from lstmstream.serve import topics
from lstmstream.transport.memory import MemoryTransport


def prepare(world: World, **changes: object) -> topics.Topics:
    return topics.prepare(world.config(**changes), MemoryTransport(world.broker, INPUT))


def refusal(world: World, **changes: object) -> str:
    with pytest.raises(CannotServe) as caught:
        prepare(world, **changes)
    return str(caught.value)


def test_what_the_daemon_owns_is_made() -> None:
    world = World()
    world.broker.topics[INPUT].settings["max.message.bytes"] = "2000000"
    prepare(world)
    made = {name: world.broker.topics[name] for name in (OUTPUT, LETTERS, STATES)}
    assert {len(topic.logs) for topic in made.values()} == {PARTITIONS}
    assert made[STATES].settings["cleanup.policy"] == "compact"
    assert int(made[LETTERS].settings["max.message.bytes"]) == 2_000_000 + 64 * 1024


def test_a_missing_input_is_named() -> None:
    world = World()
    del world.broker.topics[INPUT]
    assert f"'{INPUT}' does not exist" in refusal(world)
    assert OUTPUT not in world.broker.topics


def test_without_leave_to_create_every_missing_topic_is_listed() -> None:
    message = refusal(World(), create_topics=False)
    assert all(repr(name) in message for name in (OUTPUT, LETTERS, STATES))
    assert "cleanup.policy=compact" in message


def test_a_state_topic_that_deletes_or_has_other_partitions_is_refused() -> None:
    world = World()
    world.broker.create(STATES, PARTITIONS + 1, {"cleanup.policy": "compact,delete"})
    message = refusal(world)
    assert "cleanup.policy=compact,delete" in message
    assert f"has {PARTITIONS + 1} partitions" in message


def test_a_dead_letter_topic_that_takes_less_than_the_input_is_refused() -> None:
    world = World()
    world.broker.create(LETTERS, PARTITIONS, {"max.message.bytes": str(1_048_588 + 64 * 1024 - 1)})
    assert str(1_048_588 + 64 * 1024) in refusal(world)


def test_where_partition_counts_differ_the_key_decides() -> None:
    world = World()
    world.broker.create(OUTPUT, PARTITIONS + 2)
    assert prepare(world).hashed == {OUTPUT}
    alerts = {"topic": OUTPUT, "alerts_topic": "alerts", "key": "terminal"}
    assert prepare(World(), output=alerts).hashed == {OUTPUT, "alerts"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"retention.ms": "-1"}, None),
        ({"retention.ms": "1000"}, 1000),
        ({"retention.ms": "1000", "cleanup.policy": "compact"}, None),
    ],
)
def test_the_inputs_retention(settings: dict[str, str], expected: int | None) -> None:
    world = World()
    world.broker.topics[INPUT].settings.clear()
    world.broker.topics[INPUT].settings.update(settings)
    assert prepare(world).retention_ms == expected


def test_a_topic_that_vanishes_or_grows_is_noticed() -> None:
    world = World()
    known = prepare(world)
    transport = MemoryTransport(world.broker, INPUT)
    topics.still_there(world.config(), transport, known)
    del world.broker.topics[OUTPUT]
    world.broker.topics[INPUT].logs.append([])
    with pytest.raises(CannotServe) as caught:
        topics.still_there(world.config(), transport, known)
    assert f"'{OUTPUT}' is gone" in str(caught.value)
    assert f"from {PARTITIONS} to {PARTITIONS + 1} partitions" in str(caught.value)
