"""Which alerts are published, and why others are held back: docs/alerts.md, line for line. No I/O, no clock."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import translate
from typing import NamedTuple

import numpy as np
import orjson

from lstmstream.formats.iso_columns import iso_texts
from lstmstream.records import (
    ENDED,
    HELD_BACK,
    SUMMARY,
    Bools,
    Codes,
    Floats,
    Ints,
    Notice,
    Observations,
    partition_numbers,
)
from lstmstream.serve.alert_memory import HOUR_MS, AlertRules, Hour, Incident
from lstmstream.serve.key_table import Key
from lstmstream.serve.state import StateStore

MAX_HOURS = 24  # that a partition counts at a time
_PUBLISHED = HELD_BACK.index("")
_MUTE, _COOLDOWN, _HOLD, _MAX_PER_HOUR = map(HELD_BACK.index, ("mute", "cooldown", "hold", "max_per_hour"))


class Decisions(NamedTuple):
    """About M observations."""

    held_back: Codes  # [M] indices of HELD_BACK
    notices: list[Notice]
    touched: list[int]  # observations that have changed what is remembered of their key


class AlertPolicy:
    """One set of rules. What is remembered is with the states, and is rolled back with them."""

    def __init__(self, rules: AlertRules) -> None:
        self.rules = rules
        self._threshold = None if rules.threshold is None else np.float32(rules.threshold)
        self._is_muted = _matcher(rules.mute)

    def decide(
        self, observations: Observations, answered: Bools, scores: Floats, states: StateStore, *, count_hours: bool
    ) -> Decisions:
        """Of the M observations of the newest batch of `states`, those `answered` [M] have a prediction.

        `count_hours`: False for a replay, whose alerts are in the partition's hours already.
        """
        decisions = Decisions(np.zeros(len(scores), np.int8), [], [])
        if self._threshold is None:
            return decisions
        high = answered & (scores >= self._threshold)
        for partition in partition_numbers(observations.partitions):
            mine = np.flatnonzero(answered & (observations.partitions == partition))
            _PartitionPass(self, partition, observations, high, states, decisions, count_hours=count_hours).run(mine)
        return decisions

    def is_muted(self, key: Key) -> bool:
        """Whether a key matches one of the patterns; one that is null or not UTF-8 matches none."""
        return self._is_muted(key)


class _PartitionPass:
    """The observations of one partition, in the order of their offsets."""

    def __init__(
        self,
        policy: AlertPolicy,
        partition: int,
        observations: Observations,
        high: Bools,
        states: StateStore,
        decisions: Decisions,
        *,
        count_hours: bool,
    ) -> None:
        self._policy = policy
        self._rules = policy.rules
        self._partition = partition
        self._observations = observations
        self._high = high
        self._states = states
        self._incidents: Mapping[Key, Incident] = states.slabs[partition].incidents
        self._decisions = decisions
        self._hours = _Hours(states.slabs[partition].alert_hours, self._rules.max_per_hour if count_hours else None)

    def run(self, mine: Ints) -> None:
        """`mine`: positions of the partition's observations that have a prediction."""
        keys, limited = self._observations.keys, self._hours.limit is not None
        alerting = {keys[i] for i in mine[self._high[mine]].tolist()}
        if not (alerting or self._incidents or limited):
            return
        hours = (self._observations.timestamps[mine] // HOUR_MS).tolist()
        for i, hour in zip(mine.tolist(), hours, strict=True):
            if limited and (ended := self._hours.open(hour)):
                self._notice(i, SUMMARY, summary_json(self._partition, ended))
            if keys[i] in alerting or keys[i] in self._incidents:
                self._decisions.held_back[i] = self._held_back_by(i)
        if self._hours.changed:
            self._states.set_alert_hours(self._partition, self._hours.all())

    def _held_back_by(self, i: int) -> int:
        """Why the observation's alert is held back; _PUBLISHED where it is not, or where there is none."""
        rules, key, high = self._rules, self._observations.keys[i], bool(self._high[i])
        time_ms = int(self._observations.timestamps[i])
        incident = self._incidents.get(key)
        if self._policy.is_muted(key):
            if incident is not None:
                self._set(i, None)
            return _MUTE if high else _PUBLISHED
        if incident is not None and not _is_near(time_ms, incident, rules.cooldown_ms):
            self._end(i, incident)
            incident = None
        if not high:
            return _PUBLISHED
        if incident is not None:
            last_ms = max(incident.last_ms, time_ms) if rules.hold else incident.last_ms
            self._set(i, incident._replace(last_ms=last_ms, held_back=incident.held_back + 1))
            return _HOLD if rules.hold else _COOLDOWN
        offset = int(self._observations.offsets[i])
        if rules.cooldown_ms is not None:
            self._set(i, Incident(time_ms, time_ms, offset, 0))
        return _PUBLISHED if self._hours.take(time_ms // HOUR_MS, offset) else _MAX_PER_HOUR

    def _set(self, i: int, incident: Incident | None) -> None:
        self._states.set_incident(self._partition, self._observations.keys[i], incident)
        self._decisions.touched.append(i)

    def _end(self, i: int, incident: Incident) -> None:
        self._set(i, None)
        if self._rules.hold and self._rules.end_record:
            self._notice(i, ENDED, ended_json(incident))

    def _notice(self, i: int, kind: str, members: bytes) -> None:
        self._decisions.notices.append(Notice(int(self._observations.index[i]), kind, members))


class _Hours:
    """The hours of one partition, in the order in which they were first seen."""

    def __init__(self, hours: tuple[Hour, ...], limit: int | None) -> None:
        """`limit`: alerts in each; None: nothing is counted."""
        self.limit = limit
        self.changed = False
        self._hours = {hour.number: hour for hour in hours}

    def all(self) -> tuple[Hour, ...]:
        """As they are now."""
        return tuple(self._hours.values())

    def open(self, number: int) -> list[Hour]:
        """Begin to count an hour, unless it is counted; then the hours with alerts that no summary has told of."""
        if number in self._hours:
            return []
        untold = [hour for hour in self._hours.values() if hour.held_back]
        for hour in untold:
            self._hours[hour.number] = hour._replace(held_back=0)
        self._hours[number] = Hour(number, 0, 0, -1, -1)
        if len(self._hours) > MAX_HOURS:
            del self._hours[next(iter(self._hours))]
        self.changed = True
        return untold

    def take(self, number: int, offset: int) -> bool:
        """Whether one more alert may be published in this hour."""
        if self.limit is None:
            return True
        self.changed = True
        hour = self._hours[number]
        if hour.alerts < self.limit:
            self._hours[number] = hour._replace(alerts=hour.alerts + 1)
            return True
        first = hour.first_offset if hour.held_back else offset
        self._hours[number] = hour._replace(held_back=hour.held_back + 1, first_offset=first, last_offset=offset)
        return False


def ended_json(incident: Incident) -> bytes:
    """The members of an end record that tell of its incident."""
    ended = {
        "started": _iso(incident.started_ms),
        "last": _iso(incident.last_ms),
        "offset": incident.offset,
        "held_back": incident.held_back,
    }
    return b'"ended":' + orjson.dumps(ended)


def summary_json(partition: int, hours: Sequence[Hour]) -> bytes:
    """The members of a summary record that tell of its hours."""
    told = [
        {
            "hour": _iso(hour.number * HOUR_MS),
            "alerts": hour.alerts,
            "held_back": hour.held_back,
            "first_offset": hour.first_offset,
            "last_offset": hour.last_offset,
        }
        for hour in hours
    ]
    return b'"summary":' + orjson.dumps({"partition": partition, "hours": told})


def _iso(time_ms: int) -> str:
    """As the timestamp of a prediction."""
    return iso_texts(np.array([time_ms], np.int64))[0].decode() + "Z"


def _is_near(time_ms: int, incident: Incident, cooldown_ms: int | None) -> bool:
    return cooldown_ms is not None and abs(time_ms - incident.last_ms) < cooldown_ms


def _matcher(patterns: Sequence[str]) -> Callable[[Key], bool]:
    """In a pattern `*` stands for any text and `?` for one character; `[` for itself."""
    if not patterns:
        return lambda _key: False
    # `translate` writes `*` in a way that takes linear time, whatever the key.
    found = re.compile("|".join(translate(pattern.replace("[", "[[]")) for pattern in patterns))

    def matches(key: Key) -> bool:
        try:
            return key is not None and found.match(key.decode()) is not None
        except UnicodeDecodeError:
            return False

    return matches
