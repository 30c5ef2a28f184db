"""What the demo knows about each event: when it was sent, whether it was normal, and what the daemon wrote for it.

The labels stay here, on the producer's side; the daemon never sees them. Times are seconds of one monotonic clock.
This module knows neither Kafka nor the screen.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from dataclasses import dataclass
from threading import Lock
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from lstmstream.demo.scenario import Part, Scenario

_MAX_KEPT = 2_000_000  # predictions that quality and latency are computed over; older ones are dropped
RECENT = 4_000  # predictions that the latency on the screen is computed over


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert and its label."""

    key: str
    shown: float
    score: float
    steps: int
    kind: int  # index into the scenario's kinds, 0 for a false alarm


@dataclass(frozen=True, slots=True)
class Errors:
    """Of `count` forecasts whose value has come: mean absolute errors, NaN without any."""

    count: int = 0
    model: float = math.nan
    last_value: float = math.nan  # of forecasting that nothing changes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the stream. Latencies are in milliseconds, from sending an event to reading its prediction."""

    seconds: float
    sent: int
    predictions: int
    dead_letters: int
    rate: float
    p50: float
    p99: float
    keys: int
    alerts: int
    true_alerts: int
    last_alerts: tuple[Alert, ...]  # newest first
    errors: Errors


@dataclass(frozen=True, slots=True)
class Quality:
    """Alerts compared with the labels. A number is NaN where there was nothing to count."""

    precision: float
    recall: float
    average_precision: float  # of single events; NaN where an incident may be several
    alerts: int
    counts: tuple[int, ...]  # [kinds] incidents with a prediction; of kind 0, events
    alerted: tuple[int, ...]  # [kinds] those of them with an alert


class Tally:
    """Counts what is sent and what is read. `record_sent` and the other methods may run in different threads."""

    def __init__(self, scenario: Scenario) -> None:
        kinds = len(scenario.kinds)
        self._lock = Lock()
        self._pending: dict[int, tuple[float, int, int, float]] = {}  # event → sent at, kind, incident, number shown
        self._keys: set[str] = set()
        self._scores = array("f")
        self._latencies = array("f")
        self._kinds = bytearray()
        self._counts = [0] * kinds
        self._alerted = [0] * kinds
        self._incidents: dict[int, bool] = {}  # those with a prediction: whether one of its events is an alert
        self._alerts = self._true_alerts = self._labelled = 0
        self._last_alerts: deque[Alert] = deque(maxlen=10)
        self._forecasts: dict[str, tuple[float, float]] = {}  # key → the newest forecast, the value when it was made
        self._errors = np.zeros(3)  # forecasts that were compared, sum of their errors, of those of the last value
        self._unmatched_alerts: set[int] = set()
        self._alert_records = 0
        self._mark: tuple[float, int] = (monotonic(), 0)
        self._rate = 0.0
        self.sent = self.predictions = self.dead_letters = self.duplicates = 0
        self.first_sent: float | None = None
        self.first_prediction: float | None = None
        self.last_prediction: float | None = None

    def record_sent(self, part: Part) -> None:
        """Record events that are about to be sent."""
        now = monotonic()
        columns = (part.numbers, part.kind, part.incidents, part.shown)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        with self._lock:
            self._pending.update((number, (now, kind, incident, shown)) for number, kind, incident, shown in rows)
            self.sent += len(part)
            self.first_sent = self.first_sent or now

    def record_prediction(
        self, number: int, key: str, score: float, steps: int, *, alert: bool, forecast: float | None = None
    ) -> None:
        """Record a prediction that was read; one that no event waits for counts as a duplicate.

        `forecast`: of the key's next event, in the order of which the predictions of a key are read.
        """
        now = monotonic()
        with self._lock:
            entry = self._pending.pop(number, None)
            if entry is None:
                self.duplicates += 1
                return
            sent_at, kind, incident, shown = entry
            self.predictions += 1
            self.first_prediction = self.first_prediction or now
            self.last_prediction = now
            self._keys.add(key)
            self._count(kind, incident, alert=alert)
            if forecast is not None:
                if (before := self._forecasts.get(key)) is not None:
                    self._errors += (1, abs(before[0] - shown), abs(before[1] - shown))
                self._forecasts[key] = forecast, shown
            if alert:
                self._last_alerts.appendleft(Alert(key, shown, score, steps, kind))
                self._unmatched_alerts ^= {number}
            if len(self._scores) >= _MAX_KEPT:
                for column in (self._scores, self._latencies, self._kinds):
                    del column[: _MAX_KEPT // 2]
            self._scores.append(score)
            self._latencies.append((now - sent_at) * 1000)
            self._kinds.append(kind)

    def _count(self, kind: int, incident: int, *, alert: bool) -> None:
        """Of an incident the first event counts, and the first alert."""
        before = self._incidents.get(incident) if kind else None
        self._counts[kind] += before is None
        self._alerted[kind] += alert and not before
        self._alerts += alert
        if kind:
            self._incidents[incident] = alert or bool(before)
            self._true_alerts += alert
            self._labelled += 1

    def record_alert(self, number: int) -> None:
        """Record a record of the alerts topic; its prediction may be read before or after it."""
        with self._lock:
            self._alert_records += 1
            self._unmatched_alerts ^= {number}

    def record_dead_letter(self, number: int) -> None:
        """Record a dead letter."""
        with self._lock:
            if self._pending.pop(number, None) is None:
                self.duplicates += 1
            else:
                self.dead_letters += 1

    @property
    def in_flight(self) -> int:
        """Events sent that have neither a prediction nor a dead letter yet."""
        return len(self._pending)

    def snapshot(self, since: float) -> Snapshot:
        """Return the state of the stream; `since` is the time it began."""
        now = monotonic()
        with self._lock:
            then, count = self._mark
            if now - then >= 1:
                self._rate, self._mark = (self.predictions - count) / (now - then), (now, self.predictions)
            p50, p99 = _percentiles(np.array(self._latencies[-RECENT:]))
            return Snapshot(
                seconds=now - since,
                sent=self.sent,
                predictions=self.predictions,
                dead_letters=self.dead_letters,
                rate=self._rate,
                p50=p50,
                p99=p99,
                keys=len(self._keys),
                alerts=self._alerts,
                true_alerts=self._true_alerts,
                last_alerts=tuple(self._last_alerts),
                errors=self.errors(),
            )

    def errors(self) -> Errors:
        """Return how far off the forecasts were."""
        count, model, last_value = self._errors.tolist()
        return Errors(int(count), model / count, last_value / count) if count else Errors()

    def latency(self) -> tuple[float, float]:
        """Return p50 and p99 of the latency in milliseconds, over all predictions kept."""
        return _percentiles(np.array(self._latencies))

    def throughput(self) -> float:
        """Return predictions per second, from the first event sent to the last prediction read."""
        if self.first_sent is None or self.last_prediction is None:
            return 0.0
        return self.predictions / max(self.last_prediction - self.first_sent, 1e-9)

    def quality(self) -> Quality:
        """Compare the alerts so far with the labels."""
        labels = np.frombuffer(bytes(self._kinds), np.uint8) > 0
        single = self._labelled == len(self._incidents)
        return Quality(
            precision=_share(self._true_alerts, self._alerts),
            recall=_share(sum(self._alerted[1:]), sum(self._counts[1:])),
            average_precision=average_precision(np.array(self._scores, np.float32), labels) if single else math.nan,
            alerts=self._alerts,
            counts=tuple(self._counts),
            alerted=tuple(self._alerted),
        )

    def faults(self) -> list[str]:
        """Return what contradicts "one prediction for each event", at the end of the stream."""
        faults = []
        if self._pending:
            shown = ", ".join(str(number) for number in sorted(self._pending)[:5])
            faults.append(f"{len(self._pending):,} events have no prediction, for example {shown}")
        if self.duplicates:
            faults.append(f"duplicates, or predictions that belong to no event of this demo: {self.duplicates:,}")
        if self._unmatched_alerts or self._alert_records != self._alerts:
            alerts, records = self._alerts, self._alert_records
            faults.append(f"{alerts:,} predictions are alerts, but the alerts topic has {records:,} records")
        return faults


def average_precision(scores: NDArray[np.float32], fraud: NDArray[np.bool_]) -> float:
    """Return the mean precision over the frauds, by falling score; equal scores are one step. NaN without fraud."""
    if not fraud.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    scores, fraud = scores[order], fraud[order]
    last_of_equal = np.append(scores[1:] != scores[:-1], True)
    found = np.cumsum(fraud)[last_of_equal]
    precision = found / (np.flatnonzero(last_of_equal) + 1)
    return float(np.sum(np.diff(found, prepend=0) * precision) / found[-1])


def _percentiles(latencies: NDArray[np.float32]) -> tuple[float, float]:
    if not len(latencies):
        return float("nan"), float("nan")
    p50, p99 = np.percentile(latencies, [50, 99])
    return float(p50), float(p99)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
