"""What the settings of the topics must be, by the role of the topic: errors (exit 2) and warnings, with the remedy.

    setting                         input           predictions, alerts   dead letters      states
    cleanup.policy, with compact    error           warning               warning           needed, and alone
    retention.ms                    < 1 h: warning  fine                  fine              fine
    retention.bytes                 fine            fine                  fine              fine
    message.timestamp.type broker's fine            warning               warning           fine
    message.timestamp bounds        fine            < input's: warning    fine              < 1 min: warning
    max.message.bytes               fine            < 64 KiB: warning     < input's: error  < a state: error
    min.insync.replicas > replicas  warning         error                 error             error
    min.insync.replicas 1           fine            fine                  fine              warning
    unclean.leader.election         warning         warning               warning           warning

Tiered storage, segments and the lags of compaction are fine as they are: they change when, not what is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lstmstream.config import Config
from lstmstream.serve.state_records import state_record_bytes
from lstmstream.transport.ports import TopicInfo

DEAD_LETTER_ROOM_BYTES = 64 * 1024  # for the headers that say what was wrong
STATE_ROOM_BYTES = 1024  # for a key and the batch around a state
DEFAULT_MAX_MESSAGE_BYTES = 1_048_588
SMALL_MESSAGE_BYTES = 64 * 1024
SHORT_RETENTION_MS = 3600 * 1000
CLOCKS_APART_MS = 60_000
_NO_BOUND_MS = 2**62


class Finding(NamedTuple):
    """One setting that does not do."""

    text: str
    error: bool = True


def check_settings(config: Config, found: Mapping[str, TopicInfo], state_floats: int | None) -> list[Finding]:
    """Everything in the settings of the topics that are there. `state_floats`: of a state row, None: not known."""
    findings: list[Finding] = []
    source = found.get(config.input.topic)
    for option, name in roles(config):
        if name in found:
            topic = _Topic(option, name, found[name])
            findings += _rights(topic, config)
            if topic.info.settings_denied:
                findings.append(
                    topic.warning(
                        "has settings that may not be read, so they are not checked; allow DESCRIBE_CONFIGS on it, or"
                        " see docs/operations.md for what they must be"
                    )
                )
                continue
            findings += _replication(topic)
            if option == "input.topic":
                findings += _input(topic, config)
            elif option == "state.topic":
                findings += _state(topic, state_floats)
            else:
                findings += _output(topic, config, None if source is None else _Topic("input.topic", "", source))
    return findings


def roles(config: Config) -> list[tuple[str, str]]:
    """(option, topic) of all topics of a daemon."""
    topics = [
        ("input.topic", config.input.topic),
        ("output.topic", config.output.topic),
        ("output.alerts_topic", config.output.alerts_topic),
        ("output.events.topic", config.output.events.topic),
        ("dead_letter.topic", config.dead_letter.topic),
        ("state.topic", config.state.topic),
    ]
    return [(option, name) for option, name in topics if name is not None]


def max_message_bytes(topic: TopicInfo) -> int:
    """Of a batch of records, which may be one."""
    return int(topic.settings.get("max.message.bytes", DEFAULT_MAX_MESSAGE_BYTES))


def is_compacted(topic: TopicInfo) -> bool:
    """With or without deletion."""
    return "compact" in topic.settings.get("cleanup.policy", "delete")


def _rights(topic: _Topic, config: Config) -> Iterator[Finding]:
    """Before they are needed: states are read when a partition is taken over, dead letters are written now and then."""
    needed = {"input.topic": ("READ",), "state.topic": ("READ", "WRITE")}.get(topic.option, ("WRITE",))
    if topic.info.allowed is not None:
        missing = [operation for operation in needed if operation not in topic.info.allowed]
        if missing:
            principal = config.kafka.security.username or "NAME"
            options = " ".join(f"--operation {operation}" for operation in missing)
            yield topic.error(
                f"is closed to this user for {' and '.join(missing)}; allow it: kafka-acls --add"
                f" --allow-principal 'User:{principal}' {options} --topic {topic.name}"
            )


class _Topic(NamedTuple):
    option: str
    name: str
    info: TopicInfo

    def number(self, setting: str, default: int) -> int:
        value = self.info.settings.get(setting)
        return default if value in (None, "") else int(value)

    def text(self, setting: str, default: str) -> str:
        return self.info.settings.get(setting, default)

    def error(self, text: str) -> Finding:
        return Finding(text=f"{self.option}: topic {self.name!r} {text}")

    def warning(self, text: str) -> Finding:
        return Finding(error=False, text=f"{self.option}: topic {self.name!r} {text}")


def _replication(topic: _Topic) -> Iterator[Finding]:
    needed, replicas = topic.number("min.insync.replicas", 1), topic.info.replicas
    if replicas and needed > replicas:
        text = (
            f"has min.insync.replicas={needed} and only {replicas} replicas, so the broker accepts no records; lower"
            " it, or add replicas"
        )
        yield topic.warning(text) if topic.option == "input.topic" else topic.error(text)
    elif topic.option == "state.topic" and replicas > 1 and needed < 2:
        yield topic.warning(
            f"has {replicas} replicas and min.insync.replicas={needed}: committed states can be lost with a"
            " single broker; set min.insync.replicas to 2"
        )
    if topic.text("unclean.leader.election.enable", "false") == "true":
        yield topic.warning(
            "has unclean.leader.election.enable=true: committed records can be lost with a single broker; set it to"
            " false"
        )


def _input(topic: _Topic, config: Config) -> Iterator[Finding]:
    policy = topic.text("cleanup.policy", "delete")
    if is_compacted(topic.info):
        yield topic.error(
            f"has cleanup.policy={policy}: compaction removes events, and states that are rebuilt from the rest would"
            " be wrong. Set cleanup.policy to delete, or read from another topic"
        )
    retention_ms = topic.number("retention.ms", -1)
    shortest_ms = max(SHORT_RETENTION_MS, int(10 * config.state.checkpoint_interval * 1000))
    if "delete" in policy and 0 <= retention_ms < shortest_ms:
        yield topic.warning(
            f"has retention.ms={retention_ms}: a daemon that is down for that long loses events, and cannot start again"
            f" without a human decision. Set it to {shortest_ms} or more"
        )


def _output(topic: _Topic, config: Config, source: _Topic | None) -> Iterator[Finding]:
    letters = topic.option == "dead_letter.topic"
    if is_compacted(topic.info):
        policy = topic.text("cleanup.policy", "delete")
        if letters:
            loss = "only the newest dead letter of a key stays, and one without a key gets a key of its own"
        else:
            loss = "only the newest prediction of a key stays, and one without a key becomes a dead letter"
        yield topic.warning(f"has cleanup.policy={policy}: {loss}. Set cleanup.policy to delete to keep all")
    if topic.text("message.timestamp.type", "CreateTime") == "LogAppendTime":
        yield topic.warning(
            "has message.timestamp.type=LogAppendTime: its records get the broker's time instead of their event's. Set"
            " it to CreateTime"
        )
    elif source is not None and not letters:
        yield from _time_bounds(topic, source)
    if letters and source is not None:
        needed = max_message_bytes(source.info) + DEAD_LETTER_ROOM_BYTES
        if max_message_bytes(topic.info) < needed:
            yield topic.error(
                f"accepts only {max_message_bytes(topic.info)} bytes per record, and a dead letter from"
                f" {config.input.topic!r} may need {needed}; set its max.message.bytes to that"
            )
    elif max_message_bytes(topic.info) < SMALL_MESSAGE_BYTES:
        yield topic.warning(
            f"has max.message.bytes={max_message_bytes(topic.info)}: a prediction with the event's key, headers and"
            f" output.include may be larger. Set it to {SMALL_MESSAGE_BYTES} or more"
        )


def _time_bounds(topic: _Topic, source: _Topic) -> Iterator[Finding]:
    """A prediction has the time of its event, so its topic must take what the input takes."""
    by_broker = source.text("message.timestamp.type", "CreateTime") == "LogAppendTime"
    for side in ("before", "after"):
        setting = f"message.timestamp.{side}.max.ms"
        taken_ms = topic.number(setting, _NO_BOUND_MS)
        given_ms = source.number(setting, _NO_BOUND_MS)
        if by_broker:  # its times are those of arrival: past ones, as old as what it keeps
            retention_ms = source.number("retention.ms", -1)
            given_ms = 0 if side == "after" else _NO_BOUND_MS if retention_ms < 0 else retention_ms
        if taken_ms < given_ms:
            limit = "no such bound" if given_ms >= _NO_BOUND_MS else f"{given_ms}"
            yield topic.warning(
                f"has {setting}={taken_ms} and the input {limit}: predictions of events that are further"
                f" {'in the past' if side == 'before' else 'in the future'} cannot be written, and become dead letters."
                " Set it to the input's"
            )


def _state(topic: _Topic, state_floats: int | None) -> Iterator[Finding]:
    policy = topic.text("cleanup.policy", "compact")
    if policy != "compact":
        yield topic.error(f"has cleanup.policy={policy or 'none'}, which does not keep all states; set it to compact")
    for side in ("before", "after"):
        setting = f"message.timestamp.{side}.max.ms"
        bound_ms = topic.number(setting, _NO_BOUND_MS)
        if bound_ms < CLOCKS_APART_MS and topic.text("message.timestamp.type", "CreateTime") == "CreateTime":
            yield topic.warning(
                f"has {setting}={bound_ms}: where this machine's clock differs by more, no state can be written. Set it"
                f" to {CLOCKS_APART_MS} or more"
            )
    if state_floats is not None:
        needed = state_record_bytes(state_floats) + STATE_ROOM_BYTES
        if max_message_bytes(topic.info) < needed:
            yield topic.error(
                f"accepts only {max_message_bytes(topic.info)} bytes per record, and a state of this model with its key"
                f" may need {needed}; set its max.message.bytes to that or more"
            )
