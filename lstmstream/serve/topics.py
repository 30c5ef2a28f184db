"""The topics a daemon needs: create what it owns, refuse what would lose data. Asks the broker, changes no setting."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

from lstmstream.config import Config
from lstmstream.errors import CannotServe
from lstmstream.transport.base import TopicInfo, Transport

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

    input_id: str
    partitions: int
    retention_ms: int | None  # of the input; None keeps for ever
    hashed: frozenset[str]  # topics where murmur2 of the key decides on the partition


def prepare(config: Config, transport: Transport) -> Topics:
    """Create and check. Raises CannotServe with every problem at once, TryAgain where the broker is away."""
    answers, owned = _answers(config), _owned(config)
    found = transport.describe([config.input.topic, *sorted(owned)])
    if config.input.topic not in found:
        raise CannotServe(f"input.topic: topic {config.input.topic!r} does not exist; create it, or mend the name")
    source = found[config.input.topic]
    problems = [*_state_problems(config, found, source), *_dead_letter_problems(config, found, source)]
    if problems:
        raise CannotServe(*problems)
    missing = sorted(owned - found.keys())
    if missing and not config.create_topics:
        raise CannotServe(
            *(
                f"topic {name!r} does not exist, and create_topics is false; create it with"
                f" {source.partitions} partitions{_needed(name, config)}"
                for name in missing
            )
        )
    for name in missing:
        transport.create(name, source.partitions, _settings(config, name, source))
        log.info("topic created", extra={"topic": name, "partitions": source.partitions})
    if missing:
        found |= transport.describe(missing)
    hashed = {name for name in owned if name in found and found[name].partitions != source.partitions}
    if config.output.key is not None:
        hashed |= answers
    return Topics(source.topic_id, source.partitions, _retention_ms(source), frozenset(hashed))


def still_there(config: Config, transport: Transport, known: Topics) -> None:
    """Whether all topics are as they were at the start. Raises CannotServe, TryAgain."""
    names = [config.input.topic, *sorted(_owned(config))]
    found = transport.describe(names)
    problems = [
        f"topic {name!r} is gone; nothing was committed since. Bring it back" for name in names if name not in found
    ]
    source = found.get(config.input.topic)
    if source is not None and source.topic_id != known.input_id:
        problems.append(f"topic {config.input.topic!r} was deleted and made again: its states belong to the old one")
    elif source is not None and source.partitions != known.partitions:
        problems.append(
            f"topic {config.input.topic!r} has grown from {known.partitions} to {source.partitions} partitions: keys"
            " have moved, and their states with them. Start under another name, from the beginning"
        )
    if problems:
        raise CannotServe(*problems)


def _answers(config: Config) -> set[str]:
    """The topics that predictions go to."""
    return {topic for topic in (config.output.topic, config.output.alerts_topic) if topic is not None}


def _owned(config: Config) -> set[str]:
    """The topics that the daemon makes where they are missing."""
    return {*_answers(config), config.dead_letter.topic, config.state.topic}


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


def _needed(topic: str, config: Config) -> str:
    settings = STATE_SETTINGS if topic == config.state.topic else {}
    return "".join(f", {name}={value}" for name, value in settings.items())
