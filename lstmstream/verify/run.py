"""One verification: the group's offsets, the input up to them, then the outputs, then the offsets once more."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from lstmstream.config import Config
from lstmstream.errors import CannotServe
from lstmstream.model import Model
from lstmstream.records import RecordBatch
from lstmstream.transport.patient_broker import PatientBroker
from lstmstream.verify.compare import Comparison
from lstmstream.verify.differences import ALERT, DEAD_LETTER, ENDED, PREDICTION, SUMMARY, Outputs
from lstmstream.verify.enriched import EnrichedTopic
from lstmstream.verify.envelopes import Envelopes
from lstmstream.verify.expected import settings_of
from lstmstream.verify.findings import KINDS
from lstmstream.verify.forms import Forms, carried
from lstmstream.verify.history import History, read_past
from lstmstream.verify.published import Source, dead_letter_headers, prediction_source
from lstmstream.verify.topics import Limits, committed_offsets, find_topics, plan

ANOTHER_CPU = 1e-5  # how far scores may lie apart where bits are not promised
OnProgress = Callable[[int, float], None]  # events so far, and the fraction of all records from 0 to 1


class Verification:
    """`round` judges everything up to the group's offsets, from where the last one has ended."""

    def __init__(
        self,
        broker: PatientBroker,
        config: Config,
        model: Model,
        *,
        limits: Limits = Limits(),  # noqa: B008 - immutable
        sample: float = 1.0,
        tolerance: float | None = None,
        history: History | None = None,
        on_progress: OnProgress = lambda _events, _fraction: None,
    ) -> None:
        """`history`: that the states were built from. Raises CannotServe where nothing can be judged."""
        if sample < 1 and config.alerts.max_per_hour is not None:
            raise CannotServe("--sample: alerts.max_per_hour counts the alerts of all keys; verify without --sample")
        self._broker, self._config, self._model = broker, config, model
        self._envelopes = Envelopes(config)
        self._forms = Forms(config)
        self._started_s = time.monotonic()
        self._on_progress = on_progress
        self.topics = find_topics(config, broker)
        self._committed = committed_offsets(broker, self.topics)
        self.ranges = plan(
            broker, config, model.card, self.topics, self._committed, limits, with_history=history is not None
        )
        self.sample = sample
        exact = config.delivery == "exactly_once" and config.device.device != "cuda"
        self.tolerance = tolerance if tolerance is not None else 0.0 if exact else ANOTHER_CPU
        settings = settings_of(config, model.card, sample=sample)
