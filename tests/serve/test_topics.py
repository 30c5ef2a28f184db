"""The topics that a daemon needs: made where they are missing, refused where they would lose data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest

from lstmstream.errors import CannotServe, TryAgain
from lstmstream.serve import topics
from lstmstream.transport.memory import MemoryTransport
from lstmstream.transport.ports import TopicInfo
from tests.serve import memory_world
from tests.serve.memory_world import INPUT, LETTERS, OUTPUT, PARTITIONS, STATES, World


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
    assert f"has {PARTITIONS + 1} partitions and the input '{INPUT}' has {PARTITIONS}: it must have as many" in message
    world.broker.topics[STATES].logs[:] = [[]]
    assert "has 1 partition " in refusal(world)
    assert "states would not be found" in refusal(world)


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
        ({"retention.ms": "-1"}, (None, False)),
        ({"retention.ms": "1000"}, (1000, False)),
        ({"retention.ms": "-1", "retention.bytes": "1000"}, (None, True)),
        ({"retention.ms": "1000", "cleanup.policy": ""}, (None, False)),
    ],
)
def test_the_inputs_retention(settings: dict[str, str], expected: tuple[int | None, bool]) -> None:
    world = World()
    world.broker.topics[INPUT].settings.clear()
    world.broker.topics[INPUT].settings.update(settings)
    assert ensure(world).retention == expected


# -- topics that change


class Watched:
    """A world whose topics are made, and a look at them now and then."""

    def __init__(self) -> None:
        self.world = World()
        self.topics = self.world.broker.topics
        self.known = ensure(self.world)
        transport = MemoryTransport(self.world.broker, INPUT)
        self.watch = topics.TopicWatch(self.world.config(), transport, self.known, lambda: self.world.now_s)
        self.world.call_s = 0.0
        self.watch.look()

    def doubted(self) -> bool:
        try:
            self.watch.look()
        except TryAgain:
            return True
        return False

    def refused_after(self, seconds: float) -> str:
        """Only after so long, and never before."""
        end_s = self.world.now_s + seconds
        while self.world.now_s < end_s:
            assert self.doubted()
            self.world.now_s += min(0.7, end_s - self.world.now_s)
        with pytest.raises(CannotServe) as caught:
            self.watch.look()
        return str(caught.value)


@pytest.mark.parametrize("name", [INPUT, OUTPUT, LETTERS, STATES])
def test_a_topic_is_gone_once_it_has_stayed_away(name: str) -> None:
    watched = Watched()
    topic = watched.topics.pop(name)
    assert watched.doubted()
    watched.world.now_s += topics.GONE_S - 1
    assert watched.doubted()
    watched.topics[name] = topic
    assert not watched.doubted()
    del watched.topics[name]
    assert f"'{name}' is gone" in watched.refused_after(topics.GONE_S)


@pytest.mark.parametrize(
    ("name", "lost"),
    [(INPUT, "belong to the old one. Correct the servers; or"), (STATES, "the states in it are lost. Delete it")],
)
def test_a_topic_that_is_made_again_under_its_name_is_noticed(name: str, lost: str) -> None:
    watched = Watched()
    ids = (watched.topics[STATES].topic_id, watched.topics[INPUT].topic_id)
    known = watched.known
    assert (known.state.topic_id, known.state.input_topic_id) == ids
    assert (known.state.name, known.state.partitions, known.partitions) == (STATES, PARTITIONS, PARTITIONS)
    before = watched.topics.pop(name)
    watched.world.broker.create(name, PARTITIONS, {"cleanup.policy": "compact"} if name == STATES else {})
    assert watched.doubted()
    again, watched.topics[name] = watched.topics[name], before  # seen for one look only
    assert not watched.doubted()
    watched.topics[name] = again
    message = watched.refused_after(topics.MADE_AGAIN_S)
    assert f"'{name}' was deleted and recreated" in message
    assert lost in message


@pytest.mark.parametrize("name", [OUTPUT, LETTERS])
def test_an_output_that_is_made_again_is_said_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """It can be written to, so the daemon goes on; but what it held is lost."""
    watched = Watched()
    for _ in range(2):
        before = watched.topics[name]
        watched.world.make_again(name)
        again = watched.topics[name]
        for seen in (again, before, again):  # a broker may know the old one for a moment
            watched.topics[name] = seen
            assert not watched.doubted()
    said = [record.getMessage() for record in caplog.records if "recreated" in record.getMessage()]
    assert len(said) == 2
    assert all(f"topic {name!r} was deleted and recreated: the records that it held are lost" in text for text in said)


def test_an_input_that_has_grown_is_noticed_at_once() -> None:
    watched = Watched()
    watched.topics[INPUT].logs.append([])
    assert f"from {PARTITIONS} to {PARTITIONS + 1} partitions" in watched.refused_after(0)


@pytest.mark.parametrize(
    ("name", "remedy"), [(OUTPUT, "restart to continue with that"), (STATES, "it must have as many as the input")]
)
def test_an_owned_topic_that_has_grown_is_noticed_at_once(name: str, remedy: str) -> None:
    watched = Watched()
    watched.topics[name].logs.append([])
    message = watched.refused_after(0)
    assert f"'{name}' had {PARTITIONS} partitions and now has {PARTITIONS + 1}" in message
    assert remedy in message


@pytest.mark.parametrize("partitions", [0, PARTITIONS - 1])
def test_partitions_that_are_not_known_for_a_moment_are_waited_for(partitions: int) -> None:
    watched = Watched()
    log = watched.topics[OUTPUT].logs
    watched.topics[OUTPUT].logs = log[:partitions]
    assert watched.doubted()
    watched.topics[OUTPUT].logs = log
    assert not watched.doubted()
    watched.topics[OUTPUT].logs = log[:partitions]
    message = watched.refused_after(topics.GONE_S)
    assert "is gone" in message or f"had {PARTITIONS} partitions and now has {partitions}; restart" in message


# -- topics that were just made, at the start


class SlowToKnow(MemoryTransport):
    """A broker that knows a topic only after a number of questions."""

    unknown: ClassVar[dict[str, int]] = {}

    def describe(self, topics: Sequence[str]) -> dict[str, TopicInfo]:
        found = super().describe(topics)
        for name in [name for name in found if self.unknown.get(name, 0) > 0]:
            self.unknown[name] -= 1
            del found[name]
        return found


@pytest.mark.parametrize("name", [INPUT, OUTPUT, LETTERS, STATES])
def test_a_start_waits_for_topics_that_are_not_known_yet(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_world, "MemoryTransport", SlowToKnow)
    monkeypatch.setattr(SlowToKnow, "unknown", {name: 5})
    world = World()
    world.produce(b"k", b'{"amount": 1}')
    world.start()
    world.settle()
    assert SlowToKnow.unknown == {name: 0}
    assert world.steps(b"k") == [1]


@pytest.mark.parametrize("create", [True, False])
def test_a_start_does_not_wait_for_ever(create: bool) -> None:
    world = World()
    if create:
        del world.broker.topics[INPUT]
    began_s = world.now_s
    with pytest.raises(CannotServe, match="does not exist"):
        world.start(create_topics=create)
    assert topics.GONE_S <= world.now_s - began_s < topics.GONE_S + 2


@pytest.mark.parametrize("name", [OUTPUT, STATES])
@pytest.mark.parametrize("seconds", [3.0, 30.0])
def test_a_recovery_waits_for_a_topic_that_is_not_known(name: str, seconds: float) -> None:
    """It stays in the recovery, alive, until the topic is back, or counts as gone."""
    world = World()
    world.produce(b"k", b'{"amount": 1}')
    daemon = world.start()
    world.settle()
    topic = world.broker.topics.pop(name)
    back_s = world.now_s + seconds

    def come_back(_point: str) -> None:
        if world.now_s >= back_s:
            world.broker.topics[name] = topic

    world.watch = come_back
    world.faults.append("poll")
    if seconds > topics.GONE_S:
        with pytest.raises(CannotServe, match="is gone"):
            world.step(daemon)
        return
    world.step(daemon)
    world.produce(b"k", b'{"amount": 1}')
    world.settle()
    assert world.steps(b"k") == [1, 2]
