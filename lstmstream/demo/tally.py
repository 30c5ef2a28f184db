"""What the demo knows about each transaction: when it was sent, whether it was fraud, and what the daemon wrote for it.

The labels stay here, on the producer's side; the daemon never sees them. Times are seconds of one monotonic clock.
This module knows neither Kafka nor the screen.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass
from threading import Lock
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from lstmstream.demo.simulate import KINDS, Transactions

_MAX_KEPT = 2_000_000  # predictions that quality and latency are computed over; older ones are dropped
RECENT = 4_000  # predictions that the latency on the screen is computed over


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert and its label."""

    key: str
    amount: float
    score: float
    steps: int
    kind: int  # index into KINDS, 0 for a false alarm


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


@dataclass(frozen=True, slots=True)
class Quality:
    """Alerts compared with the labels. A number is NaN where there was nothing to count."""

    precision: float
    recall: float
    average_precision: float
    counts: tuple[int, ...]  # [len(KINDS)] transactions with a prediction, by kind
    alerted: tuple[int, ...]  # [len(KINDS)] those of them with an alert


class Tally:
    """Counts what is sent and what is read. `record_sent` and the other methods may run in different threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pending: dict[int, tuple[float, int, float]] = {}  # transaction → sent at, kind, amount
        self._keys: set[str] = set()
        self._scores = array("f")
        self._latencies = array("f")
        self._kinds = bytearray()
        self._counts = [0] * len(KINDS)
        self._alerted = [0] * len(KINDS)
        self._last_alerts: deque[Alert] = deque(maxlen=10)
        self._unmatched_alerts: set[int] = set()
        self._alert_records = 0
        self._mark: tuple[float, int] = (monotonic(), 0)
        self._rate = 0.0
        self.sent = self.predictions = self.dead_letters = self.duplicates = 0
        self.first_sent: float | None = None
        self.first_prediction: float | None = None
        self.last_prediction: float | None = None

    def record_sent(self, part: Transactions) -> None:
        """Record transactions that are about to be sent."""
        now = monotonic()
        rows = zip(part.transaction_id.tolist(), part.kind.tolist(), part.amount.tolist(), strict=True)
        with self._lock:
            self._pending.update((number, (now, kind, amount)) for number, kind, amount in rows)
            self.sent += len(part)
            self.first_sent = self.first_sent or now

    def record_prediction(self, number: int, key: str, score: float, steps: int, *, alert: bool) -> None:
        """Record a prediction that was read; one that no transaction waits for counts as a duplicate."""
        now = monotonic()
        with self._lock:
            entry = self._pending.pop(number, None)
            if entry is None:
                self.duplicates += 1
                return
            sent_at, kind, amount = entry
            self.predictions += 1
            self.first_prediction = self.first_prediction or now
            self.last_prediction = now
            self._keys.add(key)
            self._counts[kind] += 1
            if alert:
                self._alerted[kind] += 1
                self._last_alerts.appendleft(Alert(key, amount, score, steps, kind))
                self._unmatched_alerts ^= {number}
            if len(self._scores) >= _MAX_KEPT:
                for column in (self._scores, self._latencies, self._kinds):
                    del column[: _MAX_KEPT // 2]
            self._scores.append(score)
            self._latencies.append((now - sent_at) * 1000)
            self._kinds.append(kind)

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
        """Transactions sent that have neither a prediction nor a dead letter yet."""
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
                alerts=sum(self._alerted),
                true_alerts=sum(self._alerted[1:]),
                last_alerts=tuple(self._last_alerts),
            )

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
        fraud = np.frombuffer(bytes(self._kinds), np.uint8) > 0
        return Quality(
            precision=_share(sum(self._alerted[1:]), sum(self._alerted)),
            recall=_share(sum(self._alerted[1:]), sum(self._counts[1:])),
            average_precision=average_precision(np.array(self._scores, np.float32), fraud),
            counts=tuple(self._counts),
            alerted=tuple(self._alerted),
        )

    def faults(self) -> list[str]:
        """Return what contradicts "one prediction for each event", at the end of the stream."""
        faults = []
        if self._pending:
            shown = ", ".join(str(number) for number in sorted(self._pending)[:5])
            faults.append(f"{len(self._pending):,} transactions have no prediction, for example {shown}")
        if self.duplicates:
            faults.append(f"duplicates, or predictions that belong to no transaction of this demo: {self.duplicates:,}")
        if self._unmatched_alerts or self._alert_records != sum(self._alerted):
            alerts, records = sum(self._alerted), self._alert_records
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
