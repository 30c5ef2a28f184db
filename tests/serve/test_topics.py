"""The topics that a daemon needs: made where they are missing, refused where they would lose data."""

from __future__ import annotations

import pytest
from memory_world import INPUT, LETTERS, OUTPUT, PARTITIONS, STATES, World

from lstmstream.errors import CannotServe
from lstmstream.serve import topics
from lstmstream.transport.memory import MemoryTransport


def ensure(world: World, **changes: object) -> topics.Topics:
    return topics.ensure_topics(world.config(**changes), MemoryTransport(world.broker, INPUT))


def refusal(world: World, **changes: object) -> str:
    with pytest.raises(CannotServe) as caught:
        ensure(world, **changes)
    return str(caught.value)


def test_what_the_daemon_owns_is_made() -> None:
    world = World()
    world.broker.topics[INPUT].settings["max.message.bytes"] = "2000000"
    ensure(world)
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
    assert ensure(world).key_hashed == {OUTPUT}
    alerts = {"topic": OUTPUT, "alerts_topic": "alerts", "key": "terminal"}
    assert ensure(World(), output=alerts).key_hashed == {OUTPUT, "alerts"}


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
    assert ensure(world).state.input_retention_ms == expected


def test_a_topic_that_vanishes_or_grows_is_noticed() -> None:
    world = World()
    known = ensure(world)
    transport = MemoryTransport(world.broker, INPUT)
    topics.check_topics_unchanged(world.config(), transport, known)
    del world.broker.topics[OUTPUT]
    world.broker.topics[INPUT].logs.append([])
    with pytest.raises(CannotServe) as caught:
        topics.check_topics_unchanged(world.config(), transport, known)
    assert f"'{OUTPUT}' is gone" in str(caught.value)
    assert f"from {PARTITIONS} to {PARTITIONS + 1} partitions" in str(caught.value)


@pytest.mark.parametrize(("name", "lost"), [(INPUT, "belong to the old one"), (STATES, "the states in it are lost")])
def test_a_topic_that_is_made_again_under_its_name_is_noticed(name: str, lost: str) -> None:
    world = World()
    known = ensure(world)
    ids = (world.broker.topics[STATES].topic_id, world.broker.topics[INPUT].topic_id)
    assert (known.state.topic_id, known.state.input_topic_id) == ids
    assert (known.state.name, known.state.partitions, known.partitions) == (STATES, PARTITIONS, PARTITIONS)
    del world.broker.topics[name]
    world.broker.create(name, PARTITIONS)
    with pytest.raises(CannotServe) as caught:
        topics.check_topics_unchanged(world.config(), MemoryTransport(world.broker, INPUT), known)
    assert f"'{name}' was deleted and made again" in str(caught.value)
    assert lost in str(caught.value)


def test_an_output_with_another_number_of_partitions_than_at_the_start_is_noticed() -> None:
    world = World()
    known = ensure(world)
    del world.broker.topics[OUTPUT]
    world.broker.create(OUTPUT, PARTITIONS + 1)
    with pytest.raises(CannotServe, match=f"had {PARTITIONS} partitions and now has {PARTITIONS + 1}; start again"):
        topics.check_topics_unchanged(world.config(), MemoryTransport(world.broker, INPUT), known)
