"""Whether the timeouts and sizes of `kafka.properties` lie within the bounds that the broker sets.

property                 bound of the broker                                beyond it
session.timeout.ms       group.min.session.timeout.ms to group.max.…        the group refuses the daemon: exit 2
transaction.timeout.ms   at most transaction.max.timeout.ms                 no transaction can begin: exit 2
max.request.size         at most socket.request.max.bytes                   the broker drops the connection
                         at least a state, and a dead letter of the input   it is never written, or shortened
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lstmstream.check.results import Check, failed, ok, warning
from lstmstream.config import Config
from lstmstream.serve.state_records import state_record_bytes
from lstmstream.serve.topic_settings import DEAD_LETTER_ROOM_BYTES, STATE_ROOM_BYTES, max_message_bytes
from lstmstream.transport.error_codes import PROPERTY_DEFAULTS
from lstmstream.transport.ports import TopicInfo

TIMEOUTS = (
    ("session.timeout.ms", "group.min.session.timeout.ms", "group.max.session.timeout.ms"),
    ("transaction.timeout.ms", None, "transaction.max.timeout.ms"),
)


def check_timeouts(config: Config, broker: Mapping[str, str]) -> Iterator[Check]:
    """One line for each timeout. `broker`: its settings, empty where they may not be read."""
    if not broker:
        yield warning(
            "timeouts",
            "the broker's settings may not be read, so its bounds are not checked; allow DESCRIBE_CONFIGS on the"
            " cluster to have them checked",
        )
        return
    for name, least_name, most_name in TIMEOUTS:
        value = _given(config, name)
        least = None if least_name is None else _number(broker, least_name)
        most = _number(broker, most_name)
        if least is not None and value < least:
            yield _beyond(name, value, f"less than the broker's {least_name} = {least}", f"{least} or more")
        elif most is not None and value > most:
            yield _beyond(name, value, f"more than the broker's {most_name} = {most}", f"{most} or less")
        elif most is not None:
            bounds = f"at most {most}" if least is None else f"{least} to {most}"
            yield ok("timeouts", f"{name} = {value}; the broker accepts {bounds}")


def check_request_size(
    config: Config, broker: Mapping[str, str], source: TopicInfo, state_floats: int | None
) -> Iterator[Check]:
    """Of what is written. `source`: the input topic; `state_floats`: of a state row, None where it is not known."""
    name, value = "kafka.properties max.request.size", _given(config, "max.request.size")
    most = _number(broker, "socket.request.max.bytes")
    if most is not None and value > most:
        yield failed(
            "message sizes",
            f"{name} = {value} is more than the broker's socket.request.max.bytes = {most}, and the broker closes a"
            f" connection with larger requests; set it to {most} or less",
        )
        return
    state = 0 if state_floats is None else state_record_bytes(state_floats) + STATE_ROOM_BYTES
    letter = max_message_bytes(source) + DEAD_LETTER_ROOM_BYTES
    if value < state:
        yield failed(
            "message sizes",
            f"{name} = {value}, and a state of this model with its key may need {state}; set it to that or more",
        )
    elif value < letter:
        yield warning(
            "message sizes",
            f"{name} = {value}, and a dead letter from {config.input.topic!r} may need {letter}: larger ones are"
            " written without the event. Set it to that or more",
        )
    else:
        yield ok("message sizes", f"max.request.size = {value}; states and dead letters are smaller")


def _beyond(name: str, value: int, bound: str, remedy: str) -> Check:
    return failed(
        "timeouts",
        f"kafka.properties {name} = {value} is {bound}, so the broker refuses the daemon; set it to {remedy}",
    )


def _given(config: Config, name: str) -> int:
    value = config.kafka.properties.get(name, PROPERTY_DEFAULTS[name])
    assert isinstance(value, int)
    return value


def _number(broker: Mapping[str, str], name: str) -> int | None:
    """None where this broker does not have the setting, or does not tell it."""
    text = broker.get(name, "")
    return int(text) if text.isdecimal() else None
