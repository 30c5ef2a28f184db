"""Settings of topics under which a promise cannot be kept: by role and setting, an error, a warning or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from lstmstream.errors import CannotServe
from lstmstream.serve.topic_settings import CLOCKS_APART_MS, STATE_ROOM_BYTES, check_settings
from lstmstream.serve.topics import ensure_topics
from lstmstream.transport.memory import MemoryTransport
from lstmstream.transport.ports import TopicInfo
from tests.serve.memory_world import INPUT, LETTERS, OUTPUT, STATES, World

ALERTS = "alerts"
FOR_EVER_MS = str(2**63 - 1)
DAY_MS = 24 * 3600 * 1000
ROLES = (INPUT, OUTPUT, ALERTS, LETTERS, STATES)
SOUND = {
    "cleanup.policy": "delete",
    "retention.ms": "604800000",
    "retention.bytes": "-1",
    "message.timestamp.type": "CreateTime",
    "message.timestamp.before.max.ms": FOR_EVER_MS,
    "message.timestamp.after.max.ms": "3600000",
    "max.message.bytes": "1048588",
    "min.insync.replicas": "2",
    "unclean.leader.election.enable": "false",
    "remote.storage.enable": "false",
    "segment.ms": "604800000",
    "min.compaction.lag.ms": "0",
    "max.compaction.lag.ms": FOR_EVER_MS,
    "delete.retention.ms": "86400000",
}


def findings(
    topic: str, change: dict[str, str], *, replicas: int = 3, floats: int = 256, **options: Any
) -> list[tuple[bool, str]]:
    """(error, text) of a cluster whose topics are sound but for one."""
    output = {"topic": OUTPUT, "alerts_topic": ALERTS, **options.pop("output", {})}
    config = World(output=output, **options).config()
    described = {}
    for name in ROLES:
        settings = dict(SOUND)
        if name == STATES:
            settings["cleanup.policy"] = "compact"
        if name == LETTERS:
            settings["max.message.bytes"] = str(1_048_588 + 64 * 1024)
        described[name] = TopicInfo("id", 3, settings | (change if name == topic else {}), replicas)
    return [(finding.error, finding.text) for finding in check_settings(config, described, floats)]


def test_sound_topics_give_nothing_to_say() -> None:
    assert findings("none", {}) == []


DAEMON = frozenset({"DESCRIBE_CONFIGS", "READ", "WRITE"})


@pytest.mark.parametrize(
    ("topic", "allowed", "said"),
    [
        (INPUT, DAEMON - {"WRITE"}, None),
        (OUTPUT, DAEMON - {"READ"}, None),
        (STATES, DAEMON, None),
        (INPUT, DAEMON - {"READ"}, "for READ; allow it: kafka-acls --add --allow-principal 'User:me' --operation READ"),
        (LETTERS, DAEMON - {"WRITE"}, f"--operation WRITE --topic {LETTERS}"),
        (STATES, DAEMON - {"READ", "WRITE"}, f"--operation READ --operation WRITE --topic {STATES}"),
    ],
)
def test_a_right_that_is_missing_is_named_with_its_remedy(
    topic: str, allowed: frozenset[str], said: str | None
) -> None:
    security = {"protocol": "SASL_SSL", "mechanism": "PLAIN", "username": "me", "password": "x"}
    config = World(
        output={"topic": OUTPUT, "alerts_topic": ALERTS}, kafka={"bootstrap_servers": "a:1", "security": security}
    ).config()
    found = check_settings(config, {topic: TopicInfo("id", 3, {}, 3, allowed)}, None)
    assert [finding.error for finding in found if "closed to this user" in finding.text] == [True] * (said is not None)
    assert said is None or said in found[0].text


def test_settings_that_may_not_be_read_are_said_and_not_guessed() -> None:
    found = check_settings(World().config(), {STATES: TopicInfo("id", 3, {}, 3, frozenset({"READ", "WRITE"}))}, 10**7)
    assert [(finding.error, "DESCRIBE_CONFIGS" in finding.text) for finding in found] == [(False, True)]


FINE, WARNING, ERROR = None, False, True
CASES: list[tuple[dict[str, str], dict[str, bool | None]]] = [
    ({"cleanup.policy": "compact"}, {INPUT: ERROR, OUTPUT: WARNING, ALERTS: WARNING, LETTERS: WARNING}),
    (
        {"cleanup.policy": "compact,delete"},
        {INPUT: ERROR, OUTPUT: WARNING, ALERTS: WARNING, LETTERS: WARNING, STATES: ERROR},
    ),
    ({"cleanup.policy": "delete"}, {STATES: ERROR}),
    ({"cleanup.policy": ""}, {STATES: ERROR}),
    ({"retention.ms": "60000"}, {INPUT: WARNING}),
    ({"retention.ms": "-1"}, {}),
    ({"retention.bytes": "1000000"}, {}),
    ({"message.timestamp.type": "LogAppendTime"}, {OUTPUT: WARNING, ALERTS: WARNING, LETTERS: WARNING}),
    (
        {"message.timestamp.before.max.ms": str(DAY_MS)},
        {OUTPUT: WARNING, ALERTS: WARNING},
    ),
    (
        {"message.timestamp.after.max.ms": "1000"},
        {OUTPUT: WARNING, ALERTS: WARNING, STATES: WARNING},
    ),
    (
        {"message.timestamp.before.max.ms": str(CLOCKS_APART_MS - 1)},
        {OUTPUT: WARNING, ALERTS: WARNING, STATES: WARNING},
    ),
    ({"message.timestamp.after.max.ms": FOR_EVER_MS}, {INPUT: WARNING}),
    ({"max.message.bytes": "2000"}, {OUTPUT: WARNING, ALERTS: WARNING, LETTERS: ERROR, STATES: ERROR}),
    ({"max.message.bytes": "10000000"}, {INPUT: ERROR}),
    ({"min.insync.replicas": "4"}, {INPUT: WARNING, OUTPUT: ERROR, ALERTS: ERROR, LETTERS: ERROR, STATES: ERROR}),
    ({"min.insync.replicas": "1"}, {STATES: WARNING}),
    ({"unclean.leader.election.enable": "true"}, dict.fromkeys(ROLES, WARNING)),
    ({"remote.storage.enable": "true"}, {}),
    ({"segment.ms": "1000", "segment.bytes": "1000000"}, {}),
    ({"delete.retention.ms": "0", "min.compaction.lag.ms": FOR_EVER_MS}, {}),
]


@pytest.mark.parametrize(
    ("change", "topic", "expected"),
    [(change, topic, outcome.get(topic)) for change, outcome in CASES for topic in ROLES],
)
def test_each_setting_of_each_role(change: dict[str, str], topic: str, expected: bool | None) -> None:
    found = findings(topic, change)
    assert {error for error, _ in found} == (set() if expected is None else {expected})
    option = {INPUT: "input", OUTPUT: "output", ALERTS: "output.alerts", LETTERS: "dead_letter", STATES: "state"}
    for _, text in found:
        setting, value = next(iter(change.items()))
        assert f"{topic!r}" in text or value == FOR_EVER_MS
        assert text.startswith(option[topic]) or topic == INPUT
        assert setting in text
        assert value.split(",")[0] in text or value in ("", FOR_EVER_MS, "10000000")


def test_a_compacted_output_keeps_the_newest_and_says_what_becomes_of_records_without_key() -> None:
    ((error, text),) = findings(OUTPUT, {"cleanup.policy": "compact"})
    assert (error, "one without a key becomes a dead letter" in text) == (False, True)
    ((error, text),) = findings(LETTERS, {"cleanup.policy": "compact"})
    assert (error, "one without a key gets a key of its own" in text) == (False, True)


def test_the_times_of_an_input_that_the_broker_stamps_are_those_of_arrival() -> None:
    """They are as old as what it keeps, and never in the future."""
    stamped = {"message.timestamp.type": "LogAppendTime", "message.timestamp.after.max.ms": FOR_EVER_MS}
    assert findings(INPUT, stamped) == []


@pytest.mark.parametrize(("spare", "refused"), [(-1, True), (0, False)])
def test_a_state_must_fit_into_its_topic(spare: int, refused: bool) -> None:
    needed = 9 + 59 + 4 * 100_000 + 4 + STATE_ROOM_BYTES
    found = findings(STATES, {"max.message.bytes": str(needed + spare)}, floats=100_000)
    assert bool(found) is refused
    assert all(error and f"may need {needed}" in text for error, text in found)


def test_a_state_topic_is_made_so_that_large_states_fit() -> None:
    world = World()
    transport = MemoryTransport(world.broker, INPUT)
    ensure_topics(world.config(), transport, 1_000_000)
    assert int(world.broker.topics[STATES].settings["max.message.bytes"]) > 4_000_000
    ensure_topics(world.config(), transport, 1_000_000)


def test_errors_stop_the_start_and_warnings_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    settings = world.broker.topics[INPUT].settings
    settings["unclean.leader.election.enable"] = "true"
    daemon = world.start()
    for _ in range(20):
        world.now_s += 1
        world.step(daemon)
    assert sum("unclean.leader.election" in record.message for record in caplog.records) == 1
    world.kill(daemon)
    for policy in ("compact", "compact,delete"):
        settings["cleanup.policy"] = policy
        with pytest.raises(CannotServe, match=f"cleanup.policy={policy}: compaction removes events"):
            world.start()
