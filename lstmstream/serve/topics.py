"""The topics a daemon needs: create what it owns, refuse what would lose data. Asks the broker, changes no setting."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lstmstream.config import Config
from lstmstream.errors import CannotServe, TryAgain
from lstmstream.serve.checkpoint import Retention, StateTopic
from lstmstream.serve.restore_errors import move_states
from lstmstream.serve.state_records import state_record_bytes
from lstmstream.serve.topic_settings import (
    DEAD_LETTER_ROOM_BYTES,
    DEFAULT_MAX_MESSAGE_BYTES,
    STATE_ROOM_BYTES,
    check_settings,
    max_message_bytes,
    roles,
)
from lstmstream.transport.ports import Admin, TopicInfo
from lstmstream.wording import counted

log = logging.getLogger(__name__)

GONE_S = 10.0  # a topic, or a partition, that nobody knows for so long is gone
MADE_AGAIN_S = 2.0  # the same for another topic under the name: what is written meanwhile would be lost with it

STATE_SETTINGS = {
    "cleanup.policy": "compact",
    "min.cleanable.dirty.ratio": "0.1",
    "segment.ms": str(3600 * 1000),
    "max.compaction.lag.ms": str(24 * 3600 * 1000),
    "delete.retention.ms": str(24 * 3600 * 1000),
}


_NOT_AS_THE_INPUT = (
    "it must have as many as the input. Start under another name, from the beginning; or, to go on with empty states,"
    " delete the topic and set on_model_change: reset"
)


class Topics(NamedTuple):
    """What is known of them once all are right."""

    partitions: int  # of the input
    state: StateTopic
    key_hashed: frozenset[str]  # topics where murmur2 of the key decides on the partition
    partition_counts: Mapping[str, int]  # of all topics, by name
    topic_ids: Mapping[str, str]  # of all topics, by name
    retention: Retention  # of the input
    warnings: frozenset[str] = frozenset()  # about settings, as they were logged
    state_floats: int | None = None  # of a state row


class MissingTopics(CannotServe):
    """A topic is not there, or the broker that was asked does not know it yet."""


class NotVisibleYet(TryAgain):
    """A topic was made a moment ago, and the broker that was asked does not know it yet."""


def ensure_topics(config: Config, admin: Admin, state_floats: int | None = None) -> Topics:
    """Create and check. Raises CannotServe with every problem at once, TryAgain where the broker is away.

    `state_floats`: of a state row.
    """
    owned = owned_topics(config)
    found = admin.describe([config.input.topic, *sorted(owned)])
    if config.input.topic not in found or not found[config.input.topic].partitions:
        raise MissingTopics(f"input.topic: topic {config.input.topic!r} does not exist; create it, or correct the name")
    source = found[config.input.topic]
    findings = check_settings(config, found, state_floats)
    problems = partition_problems(config, found, source) + [finding.text for finding in findings if finding.error]
    if problems:
        raise CannotServe(*problems)
    missing = sorted(owned - found.keys())
    if missing and not config.create_topics:
        raise MissingTopics(
            *(
                f"topic {name!r} does not exist, and create_topics is false; create it with"
                f" {counted(source.partitions, 'partition')}{_required_settings(name, config)}"
                for name in missing
            )
        )
    for name in missing:
        admin.create(name, source.partitions, _settings(config, name, source, state_floats))
        log.info("topic created", extra={"topic": name, "partitions": source.partitions})
    if missing:
        found |= admin.describe(missing)
    unseen = {name for name in owned if name not in found or not found[name].partitions}
    if unseen:
        raise NotVisibleYet(f"topics that were created are not visible yet: {', '.join(sorted(unseen))}")
    warnings = [finding.text for finding in check_settings(config, found, state_floats) if not finding.error]
    for text in warnings:
        log.warning("%s", text)
    key_hashed = {name for name in owned if found[name].partitions != source.partitions}
    if config.output.key is not None:
        key_hashed |= _prediction_topics(config)
    if config.output.events.topic is not None and config.output.events.key is not None:
        key_hashed.add(config.output.events.topic)
    state_topic_id = found[config.state.topic].topic_id
    return Topics(
        source.partitions,
        StateTopic(config.state.topic, state_topic_id, source.topic_id, source.partitions),
        frozenset(key_hashed),
        {name: info.partitions for name, info in found.items()},
        {name: info.topic_id for name, info in found.items()},
        _retention(source),
        frozenset(warnings),
        state_floats,
    )


class TopicWatch:
    """Looks whether all topics are as they were at the start.

    A broker may not know a topic for a moment, or know fewer of its partitions, or an old one under its name: what is
    no longer there counts as gone only once it has stayed so for some seconds.
    """

    def __init__(self, config: Config, admin: Admin, known: Topics, clock: Callable[[], float]) -> None:
        self._config = config
        self._admin = admin
        self._known = known
        self._clock = clock
        self._since_s: dict[str, float] = {}  # when each doubt first came up, by its text
        self._warned: set[str] = set()
        self._seen_ids = {name: {topic_id} for name, topic_id in known.topic_ids.items()}
        self.retention = known.retention

    @property
    def doubtful(self) -> bool:
        """Whether something was not as it should be when it last looked."""
        return bool(self._since_s)

    def look(self) -> dict[str, TopicInfo]:
        """All topics. Raises CannotServe where something is wrong for good, TryAgain where that is not sure yet."""
        names = [name for _, name in roles(self._config)]
        found = self._admin.describe(names)
        certain, doubts = self._compare(names, found)
        now_s = self._clock()
        self._since_s = {text: self._since_s.get(text, now_s) for text, _ in doubts}
        certain += [text for text, patience_s in doubts if now_s - self._since_s[text] >= patience_s]
        for finding in check_settings(self._config, found, self._known.state_floats):
            if finding.error:
                certain.append(finding.text)
            elif finding.text not in self._warned and finding.text not in self._known.warnings:
                self._warned.add(finding.text)
                log.warning("%s", finding.text)
        self._warn_of_new_outputs(found)
        if certain:
            raise CannotServe(*certain)
        if doubts:
            raise TryAgain("; ".join(text for text, _ in doubts))
        self.retention = _retention(found[self._config.input.topic])
        return found

    def _compare(
        self, names: Sequence[str], found: Mapping[str, TopicInfo]
    ) -> tuple[list[str], list[tuple[str, float]]]:
        """(what is wrong for good, what seems wrong and how many seconds it has to stay so)."""
        certain: list[str] = []
        doubts: list[tuple[str, float]] = []
        known = self._known
        cannot_be_new = {self._config.input.topic, self._config.state.topic}
        for name in names:
            topic = found.get(name)
            if topic is None or not topic.partitions:
                doubts.append((f"topic {name!r} is gone; restore it", GONE_S))
                continue
            before = known.partition_counts.get(name, topic.partitions)
            changed = _partitions_changed(name, before, topic.partitions, self._config)
            if name in cannot_be_new and topic.topic_id != known.topic_ids[name]:
                doubts.append((_made_again(name, self._config), MADE_AGAIN_S))
            elif topic.partitions > before:
                certain.append(changed)
            elif topic.partitions < before:
                doubts.append((changed, GONE_S))
        return certain, doubts

    def _warn_of_new_outputs(self, found: Mapping[str, TopicInfo]) -> None:
        """A topic for predictions or dead letters that was made again can be written to, but what it held is lost."""
        for name in sorted(found.keys() - {self._config.input.topic, self._config.state.topic}):
            seen = self._seen_ids.setdefault(name, set())
            if found[name].topic_id not in seen:  # a broker may still know the old one for a moment
                seen.add(found[name].topic_id)
                log.warning(
                    "topic %r was deleted and recreated: the records that it held are lost, also those written since"
                    " the last look; new ones go into the new topic. To publish them again, start under another name",
                    name,
                )


def _made_again(name: str, config: Config) -> str:
    if name == config.state.topic:
        return (
            f"topic {name!r} was deleted and recreated: the states in it are lost. Delete it and set on_model_change:"
            " reset to start with empty states"
        )
    return (
        f"topic {name!r} was deleted and recreated, or kafka.bootstrap_servers lead to another cluster: the states"
        " belong to the old one. Correct the servers; or delete the state topic and the group's offsets, or use another"
        " name"
    )


def _partitions_changed(name: str, before: int, now: int, config: Config) -> str:
    if name == config.input.topic:
        return (
            f"topic {name!r} has grown from {before} to {counted(now, 'partition')}: keys have moved, and"
            " their states with them."
            f" {move_states(now)}"
        )
    if name == config.state.topic:
        return f"topic {name!r} had {counted(before, 'partition')} and now has {now}: {_NOT_AS_THE_INPUT}"
    return f"topic {name!r} had {counted(before, 'partition')} and now has {now}; restart to continue with that"


def _prediction_topics(config: Config) -> set[str]:
    """The topics that predictions go to."""
    return {topic for topic in (config.output.topic, config.output.alerts_topic) if topic is not None}


def owned_topics(config: Config) -> set[str]:
    """The topics that the daemon makes where they are missing."""
    events = {config.output.events.topic} if config.output.events.topic is not None else set()
    return {*_prediction_topics(config), *events, config.dead_letter.topic, config.state.topic}


def _settings(config: Config, name: str, source: TopicInfo, state_floats: int | None) -> dict[str, str]:
    if name == config.state.topic:
        needed = state_record_bytes(state_floats or 0) + STATE_ROOM_BYTES
        large = {"max.message.bytes": str(needed)} if needed > DEFAULT_MAX_MESSAGE_BYTES else {}
        return STATE_SETTINGS | large
    if name in {config.dead_letter.topic, config.output.events.topic}:  # the event, and something more
        return {"max.message.bytes": str(max_message_bytes(source) + DEAD_LETTER_ROOM_BYTES)}
    return {}


def partition_problems(config: Config, found: Mapping[str, TopicInfo], source: TopicInfo) -> list[str]:
    """What is wrong with the number of partitions of the state topic; `source` is the input."""
    state = found.get(config.state.topic)
    if state is None or state.partitions == source.partitions:
        return []
    text = f"state.topic: topic {config.state.topic!r} has {counted(state.partitions, 'partition')} and the input"
    text += f" {config.input.topic!r} has {source.partitions}: "
    if state.partitions > source.partitions:
        return [text + _NOT_AS_THE_INPUT]
    return [
        f"{text}states would not be found. If the input has grown, keys have moved. {move_states(source.partitions)}"
    ]


def _retention(source: TopicInfo) -> Retention:
    """How long the input is kept, and whether its size is limited."""
    if "delete" not in source.settings.get("cleanup.policy", "delete"):
        return Retention(None, by_size=False)
    retention_ms, retention_bytes = (
        int(source.settings.get(name, "-1")) for name in ("retention.ms", "retention.bytes")
    )
    return Retention(retention_ms if retention_ms >= 0 else None, by_size=retention_bytes >= 0)


def _required_settings(topic: str, config: Config) -> str:
    settings = STATE_SETTINGS if topic == config.state.topic else {}
    return "".join(f", {name}={value}" for name, value in settings.items())
