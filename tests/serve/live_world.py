"""A daemon as far as its live figures go: metrics, health and observers, with clocks that stand still."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from lstmstream.config.files import RenewableSecret
from lstmstream.serve.checkpoint import CheckpointPlan
from lstmstream.serve.engine import Result
from lstmstream.serve.health import Health
from lstmstream.serve.http import Guard
from lstmstream.serve.live import Live
from lstmstream.serve.metrics import Metrics
from lstmstream.serve.observers import Gauges, MetricsObserver, Observers, PartitionGauges, StageTimer
from tests.serve.helpers import NumpyStep, batch, engine
from tests.serve.reference import Event

REFERENCE = {"score": {"edges": [0.0, 5.0, 10.0, 100.0], "counts": [90, 9, 1]}}


class LiveWorld:
    """`process` events as the loop would, move `now_s`, and take a `snapshot`."""

    def __init__(self, *, reference: dict[str, Any] | None = None, show_keys: bool = True) -> None:
        self.now_s = 100.0
        self.cpu_s = 0.0
        self.metrics = Metrics()
        self.health = Health(stall_after=30.0, clock=lambda: self.now_s, blocked={})
        self.timer = StageTimer(lambda: self.now_s)
        self.live = Live(
            "payments",
            self.metrics,
            self.health,
            show_keys=show_keys,
            clock=lambda: self.now_s,
            wall_s=lambda: self.now_s + 1_000_000,
            cpu_s=lambda: self.cpu_s,
        )
        self._step = NumpyStep()
        if reference is not None:
            self._step.card = dataclasses.replace(self._step.card, reference=reference)
        self._offset = 0

    def load(self) -> None:
        """The model is loaded."""
        card = self._step.card
        watching = self.live.start(card, "cpu", 3.0)
        counted = MetricsObserver(
            self.metrics, card, input_topic="in", late_policy="apply", timer=self.timer, wall_s=self.wall_s
        )
        self.observer = Observers([counted, watching])
        self.engine = engine(self._step, threshold=3.0, include=["amount", "note"])

    def wall_s(self) -> float:
        return self.now_s + 1_000_000

    def process(self, *values: bytes, key: bytes = b"k", age_s: float = 0.004) -> Result:
        """One batch of events, committed."""
        timestamp = round((self.wall_s() - age_s) * 1000)
        events = [Event(0, self._offset + n, timestamp, key, value) for n, value in enumerate(values)]
        self._offset += len(events)
        result = self.engine.process(batch(events))
        self.engine.commit()
        self.observer.on_commit(result, CheckpointPlan([], {}, {}, {0: self._offset}, 0), 0.01)
        return result

    def gauges(self, lags: Sequence[int | None], *, restoring: int = 0) -> None:
        partitions = [PartitionGauges(number, 7, lag) for number, lag in enumerate(lags)]
        self.observer.on_gauges(Gauges(partitions, 11, 2_048, restoring))

    def snapshot(self) -> dict[str, Any]:
        return self.live.snapshot()


def amounts(values: Sequence[float]) -> list[bytes]:
    return [b'{"amount":%d}' % value for value in np.asarray(values).astype(int)]


def guard(token: str | None) -> Guard:
    """Of a page on a loopback address."""
    return Guard(None if token is None else RenewableSecret(token), local_only=True)
