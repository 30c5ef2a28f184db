"""What the alert policy remembers (docs/alerts.md), and the settings that it follows.

An incident is part of its key's record in the state topic, hours and the history of settings are part of the floor
record. All of it follows from the input alone: time is event time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

HOUR_MS = 3_600_000


class Incident(NamedTuple):
    """What began with an alert of a key, and goes on. In milliseconds since 1970 UTC."""

    started_ms: int  # event time of its alert
    last_ms: int  # what the cooldown counts from: its alert, and with `hold` its newest event at the threshold or above
    offset: int  # of the event with its alert, in the input
    held_back: int  # alerts since then


class Hour(NamedTuple):
    """The alerts of one partition in one hour of event time."""

    number: int  # hours since 1970 UTC
    alerts: int  # published
    held_back: int  # by `max_per_hour`, since the last summary
    first_offset: int  # of those, in the input
    last_offset: int


class AlertRules(NamedTuple):
    """The settings that decide which alerts are published."""

    threshold: float | None  # compared in float32
    cooldown_ms: int | None = None
    hold: bool = False
    end_record: bool = False
    max_per_hour: int | None = None
    mute: tuple[str, ...] = ()


class RulesFrom(NamedTuple):
    """Settings, and the input offset from which they are in force."""

    offset: int
    rules: AlertRules


class PartitionMemory(NamedTuple):
    """What a floor record keeps for the policy: as of the offset that the same transaction commits."""

    history: tuple[RulesFrom, ...]  # ascending; nothing was remembered before the first one
    hours: tuple[Hour, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        rules = [{"from": one.offset, **one.rules._asdict(), "mute": list(one.rules.mute)} for one in self.history]
        return {"rules": rules, "hours": [hour._asdict() for hour in self.hours]}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse. Raises KeyError and TypeError for anything else."""
        history = []
        for one in fields["rules"]:
            settings = {name: value for name, value in one.items() if name != "from"}
            history.append(RulesFrom(one["from"], AlertRules(**{**settings, "mute": tuple(one["mute"])})))
        return cls(tuple(history), tuple(Hour(**hour) for hour in fields["hours"]))


def extend_history(history: tuple[RulesFrom, ...], offset: int, rules: AlertRules) -> tuple[RulesFrom, ...]:
    """The history where `rules` answer from `offset` on; what it says of later offsets is void."""
    before = tuple(one for one in history if one.offset < offset)
    if before and before[-1].rules == rules:
        return before
    return (*before, RulesFrom(offset, rules))
