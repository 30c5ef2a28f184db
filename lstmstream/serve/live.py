"""The live figures of one daemon: what the loop notes, and a snapshot of it once a second.

The loop pays next to nothing: what metrics count anyway is read from them, and `LiveObserver` keeps the last few
alerts and dead letters as they are, without parsing or copying them. Everything else is done by whoever takes a
snapshot, which is the thread of the HTTP server. docs/reference.md, "Live figures", has the fields of a snapshot.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import orjson

from lstmstream import __version__
from lstmstream.model import Card
from lstmstream.records import Ints
from lstmstream.serve.health import Health
from lstmstream.serve.live_figures import (
    MAX_ALERTS,
    MAX_PARTITIONS,
    MAX_REASONS,
    MAX_TEXT,
    Bucket,
    Snapshot,
    latency,
    rounded,
)
from lstmstream.serve.metrics import DEAD_LETTER_STAGES, Metrics
from lstmstream.serve.observers import Gauges, Observer

if TYPE_CHECKING:
    from lstmstream.serve.checkpoint import CheckpointPlan
    from lstmstream.serve.engine import Result

WINDOW_S = 10.0  # of latency, batch size and stages: one second has too few batches to be smooth
SCORES_WINDOW_S = 600.0
SCORES_INTERVAL_S = 10.0
MAX_ALERT_BYTES = 16_384  # of a record; a larger one is shown without its key and fields
MAX_FIELDS = 12  # of an alert's event
MAX_READ = 64  # alerts, and dead letters, of one batch that are looked at

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Alert(NamedTuple):
    """One alert, as it was published."""

    at_s: float  # when it was committed, seconds since 1970 UTC
    score: float
    steps: int
    value: bytes  # the record; empty if it is too large to keep


class Rejected(NamedTuple):
    """One dead letter: its reason, which repeats no value of the event, and where the record is."""

    at_s: float
    message: str
    partition: int
    offset: int


class LiveObserver(Observer):
    """Keeps the last alerts, the last dead letters of each stage, the last gauges, and counts scores."""

    def __init__(self, card: Card, wall_s: Callable[[], float]) -> None:
        """`wall_s`: seconds since 1970 UTC. Scores are counted between the edges of the card's reference, if any."""
        self._wall_s = wall_s
        self._lock = threading.Lock()
        self._alerts: deque[Alert] = deque(maxlen=MAX_ALERTS)
        self._rejected: dict[str, deque[Rejected]] = {s: deque(maxlen=MAX_REASONS) for s in DEAD_LETTER_STAGES}
        self._edges, self.reference = reference_scores(card)
        # Of the scores' own type, or each search would convert them. Outliers count in the outermost bins.
        self._bounds = self._edges[1:-1].astype(np.float32)
        self._scores: Ints = np.zeros(max(0, len(self._edges) - 1), dtype=np.int64)
        self.gauges: Gauges | None = None  # replaced as a whole, so that any thread may read it

    @property
    def edges(self) -> list[float]:
        """Of the bins of scores; none where the card has no reference."""
        return [float(edge) for edge in self._edges]

    def on_gauges(self, gauges: Gauges) -> None:
        """Keep them."""
        self.gauges = gauges

    def on_commit(self, result: Result, plan: CheckpointPlan, duration_s: float | None) -> None:
        """Keep the last alerts and dead letters of the batch."""
        predictions, letters = result.predictions, result.dead_letters
        rows = np.flatnonzero(predictions.published_alerts)[-MAX_ALERTS:].tolist()
        if rows or letters:
            now_s = self._wall_s()
            alerts = []
            values, texts = result.outputs.predictions.values, result.outputs.texts
            if texts is not None:  # they are published in another form
                values = list(texts)
            for row in rows:
                value = values[row] or b""
                small = value if len(value) <= MAX_ALERT_BYTES else b""
                alerts.append(Alert(now_s, float(predictions.score[row]), int(predictions.steps[row]), small))
            records = result.records
            with self._lock:
                self._alerts.extend(alerts)
                for letter in letters[-MAX_READ:]:
                    at = letter.index
                    self._rejected[letter.stage].append(
                        Rejected(now_s, letter.message, int(records.partitions[at]), int(records.offsets[at]))
                    )
        if len(self._scores) and len(predictions.score):
            bins = np.searchsorted(self._bounds, predictions.score, side="right")
            self._scores += np.bincount(bins, minlength=len(self._scores))

    def scores(self) -> Ints:
        """Scores so far in each bin."""
        return self._scores.copy()

    def last(self) -> tuple[list[Alert], dict[str, list[Rejected]]]:
        """The last alerts, and the last dead letters by stage, newest first."""
        with self._lock:
            return self._alerts_newest_first(), {stage: list(kept)[::-1] for stage, kept in self._rejected.items()}

    def _alerts_newest_first(self) -> list[Alert]:
        return list(self._alerts)[::-1]


class _Totals(NamedTuple):
    """What has been counted up to a time."""

    at_s: float  # monotonic
    events: int
    batches: int
    stages_s: Mapping[str, float]
    latencies: Ints
    cpu_s: float


class Live:
    """Takes snapshots. All but `start` is called by one thread."""

    def __init__(
        self,
        name: str,
        metrics: Metrics,
        health: Health,
        *,
        show_keys: bool,
        clock: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
        cpu_s: Callable[[], float] = time.process_time,
    ) -> None:
        """`show_keys`: whether alerts have the key and the event's fields. `wall_s`: seconds since 1970 UTC."""
        self._name, self._metrics, self._health, self._show_keys = name, metrics, health, show_keys
        self._clock, self._wall_s, self._cpu_s = clock, wall_s, cpu_s
        self._began_s = clock()
        self._model: dict[str, Any] | None = None
        self._observer: LiveObserver | None = None
        self._window: deque[_Totals] = deque()
        self._score_window: deque[tuple[float, Ints]] = deque()
        self._restore_peak = 0

    def start(self, card: Card, device: str, threshold: float | None) -> LiveObserver:
        """The model is loaded: who is to be told what the loop does."""
        observer = LiveObserver(card, self._wall_s)
        self._model = {
            "name": card.name,
            "version": card.version,
            "fingerprint": card.fingerprint,
            "device": device,
            "task": card.task,
            "threshold": threshold,
        }
        self._observer = observer
        return observer

    async def take(self) -> Snapshot:
        """As `snapshot`; for a Feed."""
        return self.snapshot()

    def snapshot(self) -> Snapshot:
        """What the daemon does now."""
        now = self._totals()
        self._window.append(now)
        while len(self._window) > 2 and now.at_s - self._window[1].at_s >= WINDOW_S:
            self._window.popleft()
        before, first = self._window[max(0, len(self._window) - 2)], self._window[0]
        spent_s = max(now.at_s - before.at_s, 1e-9)
        window_s = max(now.at_s - first.at_s, 1e-9)
        batches = now.batches - first.batches
        ready, reasons = self._health.readyz()
        gauges = None if self._observer is None else self._observer.gauges
        return {
            "time": round(self._wall_s(), 3),
            "name": self._name,
            "version": __version__,
            "phase": self._health.phase,
            "ready": ready,
            "reasons": reasons,
            "uptime_s": round(now.at_s - self._began_s, 1),
            "model": self._model,
            "events_per_s": rounded((now.events - before.events) / spent_s),
            "totals": self._sums(now.events),
            "latency": latency(self._latency_buckets(now.latencies - first.latencies)),
            "batches_per_s": rounded(batches / window_s),
            "batch_events": rounded((now.events - first.events) / batches) if batches else None,
            "stages": {
                stage: rounded(max(0.0, seconds - first.stages_s[stage]) / window_s)
                for stage, seconds in now.stages_s.items()
            },
            "lag": _lag(gauges),
            "state": {"keys": gauges.state_keys, "bytes": gauges.state_bytes} if gauges else {"keys": 0, "bytes": 0},
            "memory_bytes": _resident_bytes(),
            "cpu_cores": rounded(max(0.0, now.cpu_s - before.cpu_s) / spent_s),
            "restore": self._restore(gauges),
            "scores": self._scores(now.at_s),
            **self._last(),
        }

    def _totals(self) -> _Totals:
        events, batches, stages = self._metrics.batch_totals()
        latencies = self._metrics.event_latency_seconds.counts()
        return _Totals(self._clock(), events, batches, stages, latencies, self._cpu_s())

    def _sums(self, events: int) -> dict[str, int]:
        letters = self._metrics.dead_letter_totals()
        return {
            "events": events,
            "predictions": self._metrics.score.totals()[""][0],
            "alerts": self._metrics.alert_total(),
            "dead_letters": sum(letters.values()),
        }

    def _latency_buckets(self, counts: Ints) -> list[Bucket]:
        bounds = self._metrics.event_latency_seconds.bounds
        buckets = zip([0.0, *bounds], [*bounds, None], counts.tolist(), strict=True)
        return [bucket for bucket in buckets if bucket[2]]

    def _restore(self, gauges: Gauges | None) -> dict[str, Any]:
        """Records that are left to read, and the part that is done of the most that there were."""
        left = 0 if gauges is None else gauges.restore_records_remaining
        self._restore_peak = max(self._restore_peak, left) if left else 0
        return {"records_remaining": left, "progress": rounded(1 - left / self._restore_peak) if left else None}

    def _scores(self, now_s: float) -> dict[str, Any] | None:
        """Scores of the last minutes, beside the card's reference; None where the card has none."""
        if self._observer is None or not self._observer.edges:
            return None
        counts = self._observer.scores()
        window = self._score_window
        if not window or now_s - window[-1][0] >= SCORES_INTERVAL_S:
            window.append((now_s, np.zeros_like(counts) if not window else counts))
        while len(window) > 1 and now_s - window[1][0] >= SCORES_WINDOW_S:
            window.popleft()
        return {
            "edges": self._observer.edges,
            "counts": (counts - window[0][1]).tolist(),
            "reference": self._observer.reference,
        }

    def _last(self) -> dict[str, Any]:
        totals = self._metrics.dead_letter_totals()
        alerts, rejected = ([], {}) if self._observer is None else self._observer.last()
        return {
            "alerts": [_alert(one, show_keys=self._show_keys) for one in alerts],
            "dead_letters": {
                stage: {
                    "count": count,
                    "reasons": [one._asdict() | {"message": one.message[:MAX_TEXT]} for one in rejected.get(stage, ())],
                }
                for stage, count in totals.items()
                if count
            },
        }


def reference_scores(card: Card) -> tuple[np.ndarray[Any, np.dtype[np.float64]], list[int]]:
    """Edges [B + 1] and counts [B] of the card's histogram of scores; none where it has none, or not a usable one."""
    none = np.empty(0)
    found = card.reference.get("score")
    if not isinstance(found, dict):
        return none, []
    edges, counts = found.get("edges"), found.get("counts")
    if not isinstance(edges, list) or not isinstance(counts, list) or not 2 <= len(edges) == len(counts) + 1 <= 201:
        return none, []
    if not all(isinstance(value, int | float) for value in [*edges, *counts]):
        return none, []
    ascending = np.asarray(edges, dtype=np.float64)
    if not np.isfinite(ascending).all() or (np.diff(ascending) <= 0).any():
        return none, []
    return ascending, [int(count) for count in counts]


def _lag(gauges: Gauges | None) -> dict[str, Any]:
    """Of the partitions that lag most."""
    partitions = [] if gauges is None else gauges.partitions
    known = [one.consumer_lag for one in partitions if one.consumer_lag is not None]
    worst = sorted(partitions, key=lambda one: (-(one.consumer_lag or 0), one.number))[:MAX_PARTITIONS]
    return {
        "total": sum(known) if known or not partitions else None,
        "count": len(partitions),
        "partitions": sorted([one.number, one.consumer_lag, one.floor_lag] for one in worst),
    }


def _alert(alert: Alert, *, show_keys: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"at_s": round(alert.at_s, 3), "score": float(f"{alert.score:.6g}"), "steps": alert.steps}
    try:
        record = orjson.loads(alert.value)
    except orjson.JSONDecodeError:
        return shown  # too large to keep
    shown |= {"timestamp": record["timestamp"], "partition": record["source"]["partition"]}
    shown["offset"] = record["source"]["offset"]
    if "reasons" in record:
        shown["reasons"] = [[one["feature"][:MAX_TEXT], one["size"]] for one in record["reasons"][:MAX_FIELDS]]
    if show_keys:
        shown["key"] = _short(record.get("key", record.get("key_base64")))
        fields = list(record.get("event", {}).items())[:MAX_FIELDS]
        shown["event"] = {name[:MAX_TEXT]: _short(value) for name, value in fields}
    return shown


def _short(value: object) -> object:
    """A JSON value that is small: what is nested becomes text, and text is cut."""
    if value is None or isinstance(value, bool | float):
        return value
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


def _resident_bytes(statm: Path = Path("/proc/self/statm")) -> int | None:
    try:
        return int(statm.read_text().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None
