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
from lstmstream.verify.model import may_use_gpu
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
        if sample < 1 and config.state.max_keys is not None:
            raise CannotServe(
                "--sample: with state.max_keys it depends on the events of all other keys whether a key has a state,"
                " and on what the model says to them, so that none can be left out; verify without --sample"
            )
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
        exact = config.delivery == "exactly_once" and not may_use_gpu(config.device.device)
        self.tolerance = tolerance if tolerance is not None else 0.0 if exact else ANOTHER_CPU
        self._enriched = self._open_enriched(limits)
        settings = settings_of(config, model.card, sample=sample)
        self.comparison = Comparison(
            model,
            settings,
            Outputs(
                input_topic=self.topics.input,
                partitions=self.topics.counts,
                hashed=self.topics.hashed,
                alerts=ALERT in self.topics.outputs,
                exactly_once=config.delivery == "exactly_once",
                tolerance=self.tolerance,
            ),
            self.ranges,
            carried=partial(carried, config),
            enriched=None if self._enriched is None else self._enriched.events,
        )
        if history is not None:
            self.comparison.take_history(read_past(history, model.card, settings, self.topics.partitions))
        self._positions = {number: given.start for number, given in self.ranges.items()}
        self._judged = dict(self._positions)  # up to where the last round has come
        self._output_positions: dict[tuple[str, int], int] = {}  # by kind of record and partition
        self._first_sources: dict[tuple[str, int], dict[int, int]] = {}  # of outputs that do not begin at 0
        self._done = self._total = 0

    def round(self) -> None:
        """Raises CannotServe where records cannot be read."""
        self._committed = committed_offsets(self._broker, self.topics)
        ends = {
            number: max(self._positions[number], min(self._committed.get(number, 0), given.last))
            for number, given in self.ranges.items()
        }
        self._read_erasures()
        outputs = self._output_ends()
        if self._enriched is not None:
            self._enriched.find_ends(self._broker)
        self._total = self._done + sum(end - self._positions[number] for number, end in ends.items())
        self._total += sum(end - self._output_positions[place] for place, end in outputs.items())
        for number, end in ends.items():
            for records in self._broker.read(self.topics.input, number, self._positions[number], end):
                self.comparison.take_input(records, self._envelopes.read(records))
                self._progress(records, count=True)
            self._positions[number] = end
            self.comparison.set_end(number, end)
        self.comparison.take_held()
        for (record, partition), end in outputs.items():
            topic, start = self.topics.outputs[record], self._output_positions[record, partition]
            for records in self._broker.read(topic, partition, start, end):
                published = records if record == DEAD_LETTER else self._forms.read(record, records)
                self._note_first_sources(record, partition, published)
                self.comparison.take_output(record, published)
                self._progress(records)
            self._output_positions[record, partition] = end
        if self._enriched is not None:
            self._enriched.judge(self._broker, self.comparison.findings)
        self._set_complete_from()
        self._committed = committed_offsets(self._broker, self.topics)
        self.comparison.finish(self._committed)
        self._judged = dict(self._positions)

    def _open_enriched(self, limits: Limits) -> EnrichedTopic | None:
        """None where there are none, or they cannot be compared."""
        if self._config.output.events.topic is None or self.tolerance:
            return None
        complete = limits == Limits() and self.sample == 1 and all(given.whole for given in self.ranges.values())
        return EnrichedTopic(self._broker, self._config, self._model.card, self.topics.partitions, complete=complete)

    def _read_erasures(self) -> None:
        """After the group's offsets were asked for: all that lie before these are in the state topic then."""
        for number, given in self.ranges.items():
            _, end = self._broker.offset_range(self.topics.state, number)
            for _ in given.erasures.watched(self._broker.read(self.topics.state, number, given.erasures.read_to, end)):
                pass
            given.erasures.read_to = max(end, given.erasures.read_to)
            self.comparison.add_erasures(number, given.erasures.take_new())

    def _output_ends(self) -> dict[tuple[str, int], int]:
        """Up to the high watermarks, so that what is in doubt now is waited for. Predictions before dead letters."""
        ends = {}
        for record in (PREDICTION, ALERT, DEAD_LETTER):
            for partition in range(self.topics.counts.get(record, 0)):
                place = record, partition
                beginning, end = self._broker.offset_range(self.topics.outputs[record], partition)
                if place not in self._output_positions and beginning > 0:
                    self._first_sources[place] = {}
                ends[place] = max(end, self._output_positions.setdefault(place, beginning))
        return ends

    def _note_first_sources(self, record: str, partition: int, records: RecordBatch) -> None:
        first = self._first_sources.get((record, partition))
        if first is None:
            return
        for value, headers in zip(records.values, records.headers, strict=True):
            source: Source | None = None
            if record != DEAD_LETTER:
                source = prediction_source(value)
            elif (said := dead_letter_headers(headers)) is not None:
                source = said.source
            if source is not None and source.topic == self.topics.input:
                first.setdefault(source.partition, source.offset)

    def _set_complete_from(self) -> None:
        """Retention has deleted what was written before the first record that is left."""
        for (record, partition), first in self._first_sources.items():
            for number in self.ranges:
                if record in self.topics.hashed or number == partition:
                    self.comparison.set_complete_from(record, number, first.get(number, self._positions[number]))

    def _progress(self, records: RecordBatch, *, count: bool = False) -> None:
        self._done += len(records)
        if count:
            self.comparison.counts["read"] += len(records)
        self._on_progress(self.comparison.counts["read"], min(1.0, self._done / max(1, self._total)))

    # -- the end

    @property
    def exit_code(self) -> int:
        """0 all is right, 1 there are findings, 2 some or all of it could not be judged."""
        if len(self.comparison.findings):
            return 1
        return 2 if self.comparison.counts["not_judged"] or not self.comparison.counts["events"] else 0

    def summary(self) -> dict[str, Any]:
        """As JSON values."""
        comparison, card, seconds = self.comparison, self._model.card, time.monotonic() - self._started_s
        counts = comparison.counts
        return {
            "result": {0: "right", 1: "findings", 2: "not judged"}[self.exit_code],
            "name": self._config.name,
            "model": card.name,
            "version": card.version,
            "fingerprint": card.fingerprint,
            "sample": self.sample,
            "tolerance": self.tolerance,
            "partitions": [
                {
                    "partition": number,
                    "from": max(given.first, given.start),
                    "to": self._judged[number],
                    "group_offset": self._committed.get(number),
                }
                for number, given in sorted(self.ranges.items())
            ],
            "events": counts["events"],
            "predictions": counts[PREDICTION],
            "alerts": counts[ALERT],
            "end_records": counts[ENDED],
            "summaries": counts[SUMMARY],
            "dead_letters": counts[DEAD_LETTER],
            "enriched_events": None if self._enriched is None else self._enriched.events.count,
            "silent": counts["silent"],
            "repeated": counts["repeated"],
            "others": counts["others"],
            "not_judged": counts["not_judged"],
            "unjudged": [
                {"reason": reason, "partition": partition, "from": first, "to": last + 1}
                for reason, by_partition in comparison.unjudged.items()
                for partition, (first, last) in sorted(by_partition.items())
            ],
            "counts": {kind: comparison.findings.counts[kind] for kind in KINDS},
            "findings": [finding.to_dict() for finding in comparison.findings.kept],
            "seconds": round(seconds, 3),
            "events_per_second": round(counts["read"] / seconds, 1),
        }
