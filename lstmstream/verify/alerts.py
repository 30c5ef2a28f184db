"""Which alerts should have been published: docs/alerts.md, with books of its own, one event after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson

from lstmstream.config import Config
from lstmstream.model import Card
from lstmstream.verify.values import iso_text

_HOUR_MS = 60 * 60 * 1000
_COUNTED_HOURS = 24


class Rules(NamedTuple):
    """The settings of the policy."""

    threshold: float | None
    cooldown_ms: int | None
    hold: bool
    end_record: bool
    max_per_hour: int | None
    mute: tuple[str, ...]


class AlertDecision(NamedTuple):
    """What one event gives."""

    alert: bool
    held_back: str | None = None  # why the alert is not published
    ended: bytes = b""  # the members of an end record; empty: there is none
    summary: bytes = b""  # the hours of a summary; likewise


def rules_of(config: Config, card: Card) -> Rules | None:
    """Those of a daemon's configuration; None: it publishes all alerts."""
    alerts, threshold = config.alerts, config.output.threshold
    if alerts.cooldown is None and alerts.max_per_hour is None and not alerts.mute:
        return None
    return Rules(
        card.threshold if threshold is None else threshold,
        None if alerts.cooldown is None else round(alerts.cooldown * 1000),
        alerts.hold,
        alerts.end_record,
        alerts.max_per_hour,
        tuple(alerts.mute),
    )


def read_history(floor: dict[str, Any]) -> tuple[tuple[int, Rules], ...]:
    """From which input offset on which rules were in force, as a floor record has it."""
    told = (floor.get("alerts") or {}).get("rules", ())
    return tuple(
        (one["from"], Rules(**{name: one[name] for name in Rules._fields if name != "mute"}, mute=tuple(one["mute"])))
        for one in told
    )


@dataclass(slots=True)
class _Open:
    """An alert of a key after which others are held back."""

    began_ms: int
    newest_ms: int
    offset: int
    held_back: int = 0


@dataclass(slots=True)
class _Count:
    """One hour of the partition."""

    hour: int
    published: int = 0
    untold: int = 0  # held back, and no summary has told of it
    first: int = -1
    last: int = -1


class AlertBooks:
    """Of one partition."""

    def __init__(self, history: Sequence[tuple[int, Rules]]) -> None:
        self._later = list(history)
        self._rules: Rules | None = None
        self._open: dict[bytes | None, _Open] = {}
        self._counts: list[_Count] = []

    def judge(self, offset: int, key: bytes | None, time_ms: int, score: float) -> AlertDecision | None:
        """The next prediction; None: there was no policy yet."""
        rules = self._rules_at(offset)
        if rules is None:
            return None
        if rules.threshold is None:
            return AlertDecision(alert=False)
        alert = bool(np.float32(score) >= np.float32(rules.threshold))
        summary = self._begin_hour(time_ms) if rules.max_per_hour is not None else b""
        held_back, ended = self._of_key(rules, offset, key, time_ms, alert=alert)
        if alert and held_back is None and rules.max_per_hour is not None:
            held_back = self._over_limit(rules.max_per_hour, time_ms, offset)
        return AlertDecision(alert, held_back, ended, summary)

    def forget(self, key: bytes | None) -> None:
        """A key that was erased, or whose state was discarded."""
        self._open.pop(key, None)

    def threshold_at(self, offset: int, otherwise: float | None) -> float | None:
        """The threshold in force, where the history says it."""
        rules = self._rules_at(offset)
        return otherwise if rules is None else rules.threshold

    def _rules_at(self, offset: int) -> Rules | None:
        while self._later and self._later[0][0] <= offset:
            self._rules = self._later.pop(0)[1]
        return self._rules

    def _of_key(
        self, rules: Rules, offset: int, key: bytes | None, time_ms: int, *, alert: bool
    ) -> tuple[str | None, bytes]:
        """(why the alert is held back, the members of an end record)."""
        if any(_fits(pattern, key) for pattern in rules.mute):
            self._open.pop(key, None)
            return "mute" if alert else None, b""
        if rules.cooldown_ms is None:
            self._open.pop(key, None)
            return None, b""
        going_on, ended = self._open.get(key), b""
        if going_on is not None:
            distance = time_ms - going_on.newest_ms
            if not -rules.cooldown_ms < distance < rules.cooldown_ms:
                del self._open[key]
                ended = _ended(going_on) if rules.hold and rules.end_record else b""
                going_on = None
        if not alert:
            return None, ended
        if going_on is None:
            self._open[key] = _Open(time_ms, time_ms, offset)
            return None, ended
        going_on.held_back += 1
        if not rules.hold:
            return "cooldown", ended
        going_on.newest_ms = max(going_on.newest_ms, time_ms)
        return "hold", ended

    def _begin_hour(self, time_ms: int) -> bytes:
        """The summary, where this is the first event of an hour and alerts of others were held back."""
        hour = time_ms // _HOUR_MS
        if any(count.hour == hour for count in self._counts):
            return b""
        told = []
        for count in self._counts:
            if count.untold:
                told.append(
                    {
                        "hour": iso_text(count.hour * _HOUR_MS),
                        "alerts": count.published,
                        "held_back": count.untold,
                        "first_offset": count.first,
                        "last_offset": count.last,
                    }
                )
                count.untold = 0
        self._counts = [*self._counts, _Count(hour)][-_COUNTED_HOURS:]
        return orjson.dumps(told) if told else b""

    def _over_limit(self, limit: int, time_ms: int, offset: int) -> str | None:
        count = next(one for one in self._counts if one.hour == time_ms // _HOUR_MS)
        if count.published < limit:
            count.published += 1
            return None
        if not count.untold:
            count.first = offset
        count.untold, count.last = count.untold + 1, offset
        return "max_per_hour"


def _ended(incident: _Open) -> bytes:
    return b'"ended":{"started":"%b","last":"%b","offset":%d,"held_back":%d}' % (
        iso_text(incident.began_ms).encode(),
        iso_text(incident.newest_ms).encode(),
        incident.offset,
        incident.held_back,
    )


def _fits(pattern: str, key: bytes | None) -> bool:
    """Whether the text of a key is that of a pattern, in which `*` is any text and `?` one character."""
    try:
        text = None if key is None else key.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    if text is None:
        return False
    at, here, star, resumed = 0, 0, -1, 0
    while here < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, resumed, at = at, here, at + 1
        elif at < len(pattern) and pattern[at] in ("?", text[here]):
            at, here = at + 1, here + 1
        elif star >= 0:  # the star takes one character more
            at, resumed = star + 1, resumed + 1
            here = resumed
        else:
            return False
    return not pattern[at:].strip("*")
