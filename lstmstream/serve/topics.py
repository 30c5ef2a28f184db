"""The topics a daemon needs: create what it owns, refuse what would lose data. Asks the broker, changes no setting."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

from lstmstream.config import Config
from lstmstream.errors import CannotServe, TryAgain
from lstmstream.serve.checkpoint import StateTopic
from lstmstream.transport.ports import Admin, TopicInfo

log = logging.getLogger(__name__)

DEAD_LETTER_ROOM_BYTES = 64 * 1024  # for the headers that say what was wrong
DEFAULT_MAX_MESSAGE_BYTES = 1_048_588

STATE_SETTINGS = {
    "cleanup.policy": "compact",
    "min.cleanable.dirty.ratio": "0.1",
    "segment.ms": str(3600 * 1000),
    "max.compaction.lag.ms": str(24 * 3600 * 1000),
    "delete.retention.ms": str(24 * 3600 * 1000),
}


class Topics(NamedTuple):
    """What is known of them once all are right."""

    partitions: int  # of the input
    state: StateTopic
    key_hashed: frozenset[str]  # topics where murmur2 of the key decides on the partition
    partition_counts: Mapping[str, int]  # of all topics, by name


def ensure_topics(config: Config, admin: Admin) -> Topics:
    """Create and check. Raises CannotServe with every problem at once, TryAgain where the broker is away."""
    owned = _owned_topics(config)
    found = admin.describe([config.input.topic, *sorted(owned)])
    if config.input.topic not in found:
        raise CannotServe(f"input.topic: topic {config.input.topic!r} does not exist; create it, or correct the name")
    source = found[config.input.topic]
    problems = [*_state_problems(config, found, source), *_dead_letter_problems(config, found, source)]
    if problems:
        raise CannotServe(*problems)
    missing = sorted(owned - found.keys())
    if missing and not config.create_topics:
        raise CannotServe(
            *(
                f"topic {name!r} does not exist, and create_topics is false; create it with"
                f" {source.partitions} partitions{_required_settings(name, config)}"
                for name in missing
            )
        )
    for name in missing:
        admin.create(name, source.partitions, _settings(config, name, source))
        log.info("topic created", extra={"topic": name, "partitions": source.partitions})
    if missing:
        found |= admin.describe(missing)
    unseen = owned - found.keys()
    if unseen:
        raise TryAgain(f"topics that were created are not visible yet: {', '.join(sorted(unseen))}")
    key_hashed = {name for name in owned if found[name].partitions != source.partitions}
    if config.output.key is not None:
        key_hashed |= _prediction_topics(config)
    state_topic_id = found[config.state.topic].topic_id
    return Topics(
        source.partitions,
        StateTopic(config.state.topic, state_topic_id, source.topic_id, source.partitions, _retention_ms(source)),
        frozenset(key_hashed),
        {name: info.partitions for name, info in found.items()},
    )


def check_topics_unchanged(config: Config, admin: Admin, known: Topics) -> dict[str, TopicInfo]:
    """All topics, which must be as they were at the start. Raises CannotServe, TryAgain."""
    names = [config.input.topic, *sorted(_owned_topics(config))]
    found = admin.describe(names)
    problems = [
        f"topic {name!r} is gone; nothing was committed since. Bring it back" for name in names if name not in found
    ]
    ids = {config.input.topic: known.state.input_topic_id, config.state.topic: known.state.topic_id}
    for name, topic in found.items():
        if name in ids and topic.topic_id != ids[name]:
            problems.append(_made_again(name, config))
        elif topic.partitions != known.partition_counts.get(name, topic.partitions):
            problems.append(_partitions_changed(name, known.partition_counts[name], topic.partitions, config))
    if problems:
        raise CannotServe(*problems)
    return found


def _made_again(name: str, config: Config) -> str:
    if name == config.state.topic:
        return (
            f"topic {name!r} was deleted and made again: the states in it are lost. Delete it and set on_model_change:"
            " reset to go on with empty states"
        )
    return f"topic {name!r} was deleted and made again: the states belong to the old one"


def _partitions_changed(name: str, before: int, now: int, config: Config) -> str:
    if name == config.input.topic:
        return (
            f"topic {name!r} has grown from {before} to {now} partitions: keys have moved, and their states with them."
            " Start under another name, from the beginning"
        )
    return f"topic {name!r} had {before} partitions and now has {now}; start again to go on with that"


def _prediction_topics(config: Config) -> set[str]:
    """The topics that predictions go to."""
    return {topic for topic in (config.output.topic, config.output.alerts_topic) if topic is not None}


def _owned_topics(config: Config) -> set[str]:
    """The topics that the daemon makes where they are missing."""
    return {*_prediction_topics(config), config.dead_letter.topic, config.state.topic}


def _settings(config: Config, name: str, source: TopicInfo) -> dict[str, str]:
    if name == config.state.topic:
        return STATE_SETTINGS
    if name == config.dead_letter.topic:
        return {"max.message.bytes": str(_max_message_bytes(source) + DEAD_LETTER_ROOM_BYTES)}
    return {}


def _state_problems(config: Config, found: Mapping[str, TopicInfo], source: TopicInfo) -> list[str]:
    state = found.get(config.state.topic)
    if state is None:
        return []
    problems = []
    if state.partitions != source.partitions:
        problems.append(
            f"state.topic: topic {config.state.topic!r} has {state.partitions} partitions and the input"
            f" {config.input.topic!r} has {source.partitions}: states would not be found. If the input has grown, keys"
            " have moved: start under another name, from the beginning"
        )
    if state.settings.get("cleanup.policy", "compact") != "compact":
        problems.append(
            f"state.topic: topic {config.state.topic!r} has cleanup.policy={state.settings['cleanup.policy']}, which"
            " deletes states; set it to compact"
        )
    return problems


def _dead_letter_problems(config: Config, found: Mapping[str, TopicInfo], source: TopicInfo) -> list[str]:
    letters = found.get(config.dead_letter.topic)
    needed = _max_message_bytes(source) + DEAD_LETTER_ROOM_BYTES
    if letters is None or _max_message_bytes(letters) >= needed:
        return []
    return [
        (
            f"dead_letter.topic: topic {config.dead_letter.topic!r} takes {_max_message_bytes(letters)} bytes a record,"
            f" and a dead letter from {config.input.topic!r} may need {needed}; set its max.message.bytes to that"
        )
    ]


def _max_message_bytes(topic: TopicInfo) -> int:
    return int(topic.settings.get("max.message.bytes", DEFAULT_MAX_MESSAGE_BYTES))


def _retention_ms(source: TopicInfo) -> int | None:
    retention_ms = int(source.settings.get("retention.ms", "-1"))
    deletes = "delete" in source.settings.get("cleanup.policy", "delete")
    return retention_ms if deletes and retention_ms >= 0 else None


def _required_settings(topic: str, config: Config) -> str:
    settings = STATE_SETTINGS if topic == config.state.topic else {}
    return "".join(f", {name}={value}" for name, value in settings.items())
