"""Published records against what the events should have become; every difference is a finding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lstmstream.model import Model
from lstmstream.records import Headers, RecordBatch
from lstmstream.verify.differences import (
    ALERT,
    DEAD_LETTER,
    ENDED,
    NOTICES,
    PREDICTION,
    SUMMARY,
    Found,
    Outputs,
    dead_letter_differences,
    notice_differences,
    place_of,
    prediction_differences,
)
from lstmstream.verify.enriched import EnrichedEvents
from lstmstream.verify.envelopes import Event
from lstmstream.verify.erasures import Erased
from lstmstream.verify.expected import Recomputation, Renderer, Settings
from lstmstream.verify.findings import Finding, Findings, Kind
from lstmstream.verify.history import OFFSET, Past
from lstmstream.verify.model import RowModel
from lstmstream.verify.partition import JudgedPartition, PartitionRange
from lstmstream.verify.published import dead_letter_headers, parse, prediction_source
from lstmstream.verify.window import (
    SEEN_ALERT,
    SEEN_DEAD_LETTER,
    SEEN_ENDED,
    SEEN_PREDICTION,
    SEEN_SUMMARY,
    STAGES,
    Row,
    Window,
    header_hash,
)

_SEEN = {
    PREDICTION: SEEN_PREDICTION,
    ALERT: SEEN_ALERT,
    DEAD_LETTER: SEEN_DEAD_LETTER,
    ENDED: SEEN_ENDED,
    SUMMARY: SEEN_SUMMARY,
}
_OTHER = {PREDICTION: SEEN_DEAD_LETTER, DEAD_LETTER: SEEN_PREDICTION}


class Comparison:
    """Takes the input first, then the outputs up to where they answer it; `finish` says what is missing."""

    def __init__(
        self,
        model: Model,
        settings: Settings,
        outputs: Outputs,
        ranges: dict[int, PartitionRange],
        carried: Callable[[Headers], Headers] = lambda headers: headers,
        enriched: EnrichedEvents | None = None,
    ) -> None:
        """`carried`: those of an event's headers that its prediction has. `enriched`: where these are compared."""
        self._enriched = enriched
        self.findings = Findings()
        self.counts: Counter[str] = Counter()
        self.unjudged: dict[str, dict[int, list[int]]] = {}  # reason → partition → first and last offset
        self._card = model.card
        self._outputs = outputs
        self._carried = carried
        self._renderer = Renderer(model, outputs.input_topic)
        self._held: list[Found] = []
        row_model = RowModel(model)
        row_model.x[:] = 0
        first = row_model.run(row_model.initial).prediction
        self._columns = 0 if first is None else len(first)
        self._partitions = {
            number: JudgedPartition(
                given,
                Recomputation(row_model, model.card, settings, given.alert_rules, given.input_topic_id),
                Window(self._columns),
                end=given.start,
            )
            for number, given in ranges.items()
        }

    # -- the input

    def take_history(self, past: Iterable[Past]) -> None:
        """The events that states were built from; nobody has answered them."""
        for number, timestamp_ms, key, event in past:
            if number in self._partitions:
                self._partitions[number].recomputation.expect(timestamp_ms, key, event, OFFSET)

    def add_erasures(self, partition: int, erased: Sequence[Erased]) -> None:
        """Keys that start over at offsets of the input that are still to come."""
        self._partitions[partition].recomputation.add_erasures(erased)

    def take_input(self, records: RecordBatch, events: Sequence[Event] | None = None) -> None:
        """The next events of one or more partitions; `events`: of records in other formats."""
        for (number, offset, timestamp_ms, key, value, headers), event in zip(
            _one_by_one(records), records.values if events is None else events, strict=True
        ):
            partition = self._partitions[number]
            given = partition.range
            kind = None
            if offset >= given.own:
                expected = partition.recomputation.expect(timestamp_ms, key, event, offset)
            else:
                expected = partition.recomputation.expect_unknown(key, event)
            if not given.first <= offset < given.last:
                kind = Row.OUTSIDE
            elif offset < given.own:
                kind = Row.UNSAMPLED_SILENT if expected.silent else Row.UNJUDGED
                self._leave_out(_OTHERS if given.newest_ms is None else _TIME_GONE, number, offset)
            is_prediction = kind is None and expected.sampled and expected.stage is None and not expected.silent
            rendered = self._renderer.render(expected, number, offset) if is_prediction else b""
            partition.window.add(
                offset, timestamp_ms, key, value, headers, expected, rendered, kind=kind, carried=self._carried(headers)
            )
            if is_prediction and self._enriched is not None:
                partition.window.enriched[len(partition.window) - 1] = self._enriched.expect(
                    number, timestamp_ms, event, self._carried(headers), expected
                )
            if is_prediction and (expected.ended or expected.summary):
                ended = self._renderer.render_ended(expected, number, offset) if expected.ended else None
                summary = self._renderer.render_summary(expected, number, offset) if expected.summary else None
                partition.window.add_notices(ended, summary)

    def set_end(self, partition: int, end: int) -> None:
        """All events before it have been taken."""
        self._partitions[partition].end = end

    def set_complete_from(self, record: str, partition: int, offset: int) -> None:
        """Records of this kind for events before `offset` may be gone from their topic."""
        self._partitions[partition].complete_from[record] = offset

    # -- the outputs

    def take_held(self) -> None:
        """The records that were read before the events that they answer."""
        held, self._held = self._held, []
        for found in held:
            self._take(found)

    def take_output(self, record: str, records: RecordBatch) -> None:
        """The next predictions, alerts or dead letters."""
        for partition, offset, timestamp_ms, key, value, headers in _one_by_one(records):
            if record == DEAD_LETTER:
                said = dead_letter_headers(headers)
                source = None if said is None else said.source
            else:
                source = prediction_source(value)
            if source is None or source.topic != self._outputs.input_topic:
                self.counts["others"] += 1
                continue
            kind = _notice_kind(value) if record == ALERT else None
            found = Found(kind or record, source, records.topic, partition, offset, timestamp_ms, key, value, headers)
            self._take(found)

    def _take(self, found: Found) -> None:
        source = found.source
        partition = self._partitions.get(source.partition)
        if partition is None:
            self._add("ahead", found, "the group has no offset for this partition of the input")
            return
        if source.offset >= partition.end:
            self._held.append(found)
            return
        if source.offset < partition.range.start:
            return  # the event is no longer there
        row = partition.window.row(source.offset)
        if row is not None:
            self._take_row(found, partition, row)
        elif partition.had(source.offset):
            self._repeated(found)
        else:
            self._add("wrong", found, "there is no event at this offset of the input")

    def _take_row(self, found: Found, partition: JudgedPartition, row: int) -> None:
        kind, window = Row(partition.window.kinds[row]), partition.window
        seen, flag = window.seen[row], _SEEN[found.record]
        window.seen[row] |= flag
        if found.record == PREDICTION and not partition.range.whole:
            partition.learn(found.value, row)
        if kind is Row.OUTSIDE:
            return
        self.counts[found.record] += 1
        if seen & flag:
            self._repeated(found)
            if self._outputs.exactly_once:
                return
        elif found.record == PREDICTION:
            self._check_order(found, partition, row)
        if seen & _OTHER.get(found.record, 0):
            self._add("duplicate", found, "the event has a prediction and a dead letter")
        elif found.record == DEAD_LETTER:
            self._judge_dead_letter(found, partition, row, kind)
        elif found.record in NOTICES:
            self._judge_notice(found, partition, row)
        else:
            self._judge_prediction(found, partition, row, kind)

    def _repeated(self, found: Found) -> None:
        if self._outputs.exactly_once:
            self._add("duplicate", found, f"the event has more than one {found.record}")
        else:
            self.counts["repeated"] += 1

    def _check_order(self, found: Found, partition: JudgedPartition, row: int) -> None:
        place = found.partition, partition.window.entities[row]
        last = partition.last_answered.get(place, -1)
        if last > found.source.offset:
            self._add("out_of_order", found, f"behind that of offset {last}")
        else:
            partition.last_answered[place] = found.source.offset

    def _judge_prediction(self, found: Found, partition: JudgedPartition, row: int, kind: Row) -> None:
        window = partition.window
        if kind in (Row.UNSAMPLED, Row.UNJUDGED):
            return
        if kind in (Row.SILENT, Row.UNSAMPLED_SILENT):
            if not self._of_another_model(found) and not self._in_between(found, partition):
                self._add("wrong", found, "the event should have none: see input.silent")
            return
        if not self._is_known(found, partition, row):
            return
        same = (
            hash(found.value) == window.hashes[row]
            and found.timestamp_ms == window.timestamps[row]
            and found.key == window.record_keys[row]
            and header_hash(found.headers) == window.carried_hash(row)
            and found.partition == place_of(found, window.record_keys[row], self._outputs)
        )
        if kind is Row.PREDICTION and same and (found.record == PREDICTION or window.alerts[row]):
            if self._enriched is not None and found.record == PREDICTION:
                self._enriched.confirm(found.source.partition, found.source.offset, window.enriched.get(row, 0))
            return
        if self._of_another_model(found) or self._in_between(found, partition):
            return
        if kind is not Row.PREDICTION:
            detail = "it should be a dead letter"
            self._add("wrong", found, detail, "stage", STAGES[kind], None)
            return
        self._explain(found, window, row)

    def _judge_notice(self, found: Found, partition: JudgedPartition, row: int) -> None:
        """An end record or a summary: what it tells was remembered of other events."""
        if not partition.range.whole or self._of_another_model(found) or self._in_between(found, partition):
            return
        window = partition.window
        wanted = (window.ended if found.record == ENDED else window.summaries).get(row)
        if wanted is None:
            self._add("wrong", found, "the event should have none: see alerts")
            return
        for difference in notice_differences(found, window, row, wanted, self._outputs):
            self._add("wrong", found, *difference)

    def _explain(self, found: Found, window: Window, row: int) -> None:
        """Add a finding for each member and each part of the record that differs."""
        wanted = self._renderer.render(window.expected(row), found.source.partition, found.source.offset)
        for difference in prediction_differences(found, window, row, wanted, self._outputs):
            self._add("wrong", found, *difference)
        if found.record == PREDICTION and self._outputs.tolerance:
            said = parse(found.value)
            window.alerts[row] = said.get("alert") is True and "held_back" not in said
        elif found.record == ALERT and not window.alerts[row]:
            reason = window.expected(row).held_back
            detail = "the event is below the threshold" if reason is None else f"it should be held back: {reason}"
            self._add("wrong", found, detail)

    def _judge_dead_letter(self, found: Found, partition: JudgedPartition, row: int, kind: Row) -> None:
        window = partition.window
        said = dead_letter_headers(found.headers)
        assert said is not None
        if kind in (Row.UNSAMPLED, Row.UNSAMPLED_SILENT, Row.UNJUDGED):
            return
        if kind not in (Row.DECODE, Row.VALIDATE) and not partition.knows(row):
            self._leave_out(_unknown(partition), found.source.partition, found.source.offset)
            return
        if said.stage == "publish" and kind is Row.PREDICTION:
            window.drop_alerts(row)  # it stands in place of the alert too
        wrong = list(dead_letter_differences(found, said, window, row, self._outputs))
        if wrong and self._in_between(found, partition):
            return
        for difference in wrong:
            self._add("wrong", found, *difference)

    def _is_known(self, found: Found, partition: JudgedPartition, row: int) -> bool:
        """Whether the state that the event met is known; else it is left out."""
        if partition.knows(row) and (partition.range.whole or not self._depends_on_others(partition, row)):
            return True
        if found.record == PREDICTION:
            self._leave_out(_unknown(partition), found.source.partition, found.source.offset)
        return False

    def _depends_on_others(self, partition: JudgedPartition, row: int) -> bool:
        """Whether a policy has decided on its alert, by events that the input may no longer have."""
        return bool(partition.range.alert_rules) and partition.window.is_high(row)

    def _of_another_model(self, found: Found) -> bool:
        said = parse(found.value)
        if self._names_own_model(said) or "model" not in said:
            return False
        if found.record == PREDICTION:
            reason = f"answered by model {said.get('model')} version {said.get('version')}"
            self._leave_out(reason, found.source.partition, found.source.offset)
        return True

    def _in_between(self, found: Found, partition: JudgedPartition) -> bool:
        """Whether others may have answered: this model was in use before and after."""
        offset = found.source.offset
        own = found.record != DEAD_LETTER and self._names_own_model(parse(found.value))
        if not any(first <= offset < end and (alike or not own) for first, end, alike in partition.range.between):
            return False
        if found.record != ALERT:
            self._leave_out(_OTHERS, found.source.partition, offset)
        return True

    def _names_own_model(self, members: Mapping[str, Any]) -> bool:
        return (members.get("model"), members.get("version")) == (self._card.name, self._card.version)

    # -- the end of a window

    def finish(self, committed: dict[int, int]) -> None:
        """All outputs were read that answer the events taken so far; `committed` are the group's offsets after that."""
        held, self._held = self._held, []
        for number, partition in self._partitions.items():
            self._finish_partition(number, partition)
        for found in held:
            number, offset = found.source.partition, found.source.offset
            if offset >= committed.get(number, self._partitions[number].range.start):
                if self._outputs.exactly_once:
                    self._add("ahead", found, f"the group's offset is {committed.get(number, 'not there yet')}")
            elif offset < self._partitions[number].range.last:
                self._held.append(found)

    def _finish_partition(self, number: int, partition: JudgedPartition) -> None:
        window = partition.window
        for row, (offset, kind, seen) in enumerate(zip(window.offsets, window.kinds, window.seen, strict=True)):
            if kind == Row.OUTSIDE:
                continue
            self.counts["events"] += 1
            if not seen & (SEEN_PREDICTION | SEEN_DEAD_LETTER):
                if kind in (Row.SILENT, Row.UNSAMPLED_SILENT):
                    self.counts["silent"] += 1
                    continue
                self._note_missing(number, partition, offset, Row(kind))
            else:
                for record in self._lacks(number, partition, row):
                    self.findings.add(Finding("missing", record, number, offset, f"there is no {record}"))
        if len(window):
            start = partition.range.start
            partition.done.extend(bytes(max(0, partition.end - start - len(partition.done))))
            for offset in window.offsets:
                partition.done[offset - start] = 1
        partition.window = Window(self._columns)

    def _lacks(self, number: int, partition: JudgedPartition, row: int) -> list[str]:
        """The records that are not in the topic of the alerts and should be."""
        window, offset = partition.window, partition.window.offsets[row]
        wanted = [
            record
            for record, there in (
                (ALERT, bool(window.alerts[row])),
                (ENDED, row in window.ended),
                (SUMMARY, row in window.summaries),
            )
            if there and not window.seen[row] & _SEEN[record]
        ]
        if not wanted or not self._outputs.alerts or window.kinds[row] != Row.PREDICTION:
            return []
        whole = partition.range.whole or (wanted == [ALERT] and not self._depends_on_others(partition, row))
        known = whole and partition.knows(row) and not self._left_out(number, offset)
        return wanted if known and offset >= partition.complete_from.get(ALERT, 0) else []

    def _note_missing(self, number: int, partition: JudgedPartition, offset: int, kind: Row) -> None:
        records = {PREDICTION: [PREDICTION], DEAD_LETTER: [DEAD_LETTER]}
        record = DEAD_LETTER if kind in STAGES else PREDICTION
        may_be = records[record] if kind in STAGES or kind is Row.PREDICTION else [PREDICTION, DEAD_LETTER]
        if any(offset < partition.complete_from.get(one, 0) for one in may_be):
            self._leave_out("the output's retention has deleted what answered them", number, offset)
            return
        stage = f" of stage {STAGES[kind]}" if kind in STAGES else ""
        self.findings.add(Finding("missing", record, number, offset, f"there is no {record}{stage}"))

    # -- notes

    def _leave_out(self, reason: str, partition: int, offset: int) -> None:
        self.counts["not_judged"] += 1
        stretch = self.unjudged.setdefault(reason, {}).setdefault(partition, [offset, offset])
        stretch[0], stretch[1] = min(stretch[0], offset), max(stretch[1], offset)

    def _left_out(self, partition: int, offset: int) -> bool:
        """Whether another model has answered around here."""
        stretches = [by_partition.get(partition) for why, by_partition in self.unjudged.items() if why not in _UNKNOWN]
        return any(one is not None and one[0] <= offset <= one[1] for one in stretches)

    def _add(
        self, kind: Kind, found: Found, detail: str, name: str | None = None, expected: Any = None, have: Any = None
    ) -> None:
        source = found.source
        self.findings.add(
            Finding(
                kind,
                found.record,
                source.partition,
                source.offset,
                detail,
                name,
                expected,
                have,
                found.topic,
                found.partition,
                found.offset,
            )
        )


def _notice_kind(value: bytes | None) -> str | None:
    """Of a record in the topic of the alerts; None: it is an alert."""
    if value is None or (b'"ended":{' not in value and b'"summary":{' not in value):
        return None
    members = parse(value)
    return ENDED if "ended" in members else SUMMARY if "summary" in members else None


def _one_by_one(records: RecordBatch) -> Iterator[tuple[int, int, int, bytes | None, bytes | None, Headers]]:
    """(partition, offset, timestamp, key, value, headers) of each record."""
    return zip(
        records.partitions.tolist(),
        records.offsets.tolist(),
        records.timestamps.tolist(),
        records.keys,
        records.values,
        records.headers,
        strict=True,
    )


def _unknown(partition: JudgedPartition) -> str:
    """Why the state that an event met is not known."""
    return _SEEDED if partition.range.seeded else _STATE_GONE


_STATE_GONE = "the input no longer has the first events of their keys"
_SEEDED = "their keys may have had states that were moved, or imported or built from history (--history)"
_UNKNOWN = (_STATE_GONE, _SEEDED)
_TIME_GONE = "the input no longer has the events that input.max_lateness compares them with"
_OTHERS = "answered by another model or with other settings"
