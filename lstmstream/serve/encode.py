"""Predictions, alerts and dead letters to records (docs/reference.md, "Records"): one RecordBatch per output topic.

Numbers are written a column at a time by orjson, which gives each float32 its shortest text; the records are then
joined from the pieces. Knows nothing of how they are sent.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import orjson

from lstmstream.errors import BadRecord
from lstmstream.formats.cloudevents import is_own_header
from lstmstream.formats.values import key_text
from lstmstream.model import Card
from lstmstream.records import (
    BY_KEY,
    HELD_BACK,
    Bools,
    Codes,
    DeadLetter,
    Floats,
    Headers,
    Ints,
    Observations,
    Predictions,
    RecordBatch,
    UnreadableValue,
    pick,
)
from lstmstream.serve.decode import Decoded
from lstmstream.serve.enriched import Enriched, EventWriter
from lstmstream.serve.event_fields import EventFields
from lstmstream.serve.notices import NoticeWriter, before_alerts
from lstmstream.serve.output_form import OutputForm
from lstmstream.serve.reasons import feature_names
from lstmstream.serve.rows import Rows

# Forms of a dead letter, each plainer than the one before: what its topic refuses is written in the next one.
AS_IT_CAME, NOW, WITH_KEY, BARE, OWN_KEY = range(5)
# NOW: with the present time, and the record's own in a header. WITH_KEY: and a key where it has none, made from topic,
# partition and offset. BARE: and without value and headers. OWN_KEY: and with the made key whatever it has.


_HELD_BACK = [b',"held_back":"%b"' % reason.encode() if reason else b"" for reason in HELD_BACK]


class Outputs(NamedTuple):
    """What one micro-batch publishes."""

    predictions: RecordBatch
    alerts: RecordBatch | None  # None: there is no topic for them
    dead_letters: RecordBatch
    events: RecordBatch | None = None  # None: there is no topic for them
    texts: Sequence[bytes | None] | None = None  # the predictions as JSON, where `predictions` has another form
    of_alerts: Ints | None = None  # index of the event of each record of `alerts`

    def batches(self) -> list[RecordBatch]:
        """Those that hold records."""
        return [batch for batch in self if isinstance(batch, RecordBatch) and len(batch)]


class OutputTopics(NamedTuple):
    """Where outputs go. In `key_hashed` topics murmur2 of the key decides on the partition, not the input's number."""

    predictions: str
    alerts: str | None
    dead_letters: str
    key_hashed: Collection[str] = ()


class Encoder:
    """Writes the records of one batch."""

    def __init__(
        self,
        card: Card,
        topics: OutputTopics,
        *,
        include: Sequence[str] = (),
        output_key: str | None = None,
        from_file: bool = False,
        reasons: int = 0,
        events: EventWriter | None = None,
        form: OutputForm | None = None,
        without_cloudevent: bool = False,
    ) -> None:
        """`include` names fields of the event that a prediction carries along, `output_key` the one that keys it.

        Neither decides whether an event counts: a field that cannot be written as JSON is left out, and where
        `output_key` finds no string or integer the key is null. `from_file`: the source is a file and a row.
        `reasons`: how many of them an alert has at most.
        `events` writes them once more for a next stage. `form`: of predictions and alerts; None: JSON.
        `without_cloudevent`: the headers by which a record is a CloudEvent are not carried along.
        """
        self._topics = topics
        self._names = [orjson.dumps(name) + b":" for name in include]
        self._included = EventFields(include)
        self._output_key = None if output_key is None else (output_key, EventFields([output_key]))
        self._from_file = from_file
        self._max_reasons = reasons
        self._features = [b'{"feature":%b,"size":' % orjson.dumps(name) for name in feature_names(card)]
        self._warm_column = card.warm_column
        self.events = events
        self.form = form
        self._without_cloudevent = without_cloudevent
        self._notices = NoticeWriter(card)
        model = orjson.dumps({"model": card.name, "version": card.version})[1:-1]
        self._model = b"," + model + b',"source":{'

    def encode(
        self,
        records: RecordBatch,
        decoded: Decoded,
        predictions: Predictions,
        dead_letters: list[DeadLetter],
        *,
        now_ms: int = 0,
        enriched: Enriched | None = None,
    ) -> Outputs:
        """Each in the order of the records; an alert is its prediction once more, behind the notices of its event.

        `now_ms`, milliseconds since 1970 UTC, is the time of dead letters that cannot bear their record's own.
        `enriched` is what `events` wrote for these predictions, if that is known.
        """
        index = predictions.index
        observations = decoded.observations
        if len(index) < len(observations.index):
            observations = observations.take(np.searchsorted(observations.index, index))
        values = self._values(records, decoded, predictions, observations)
        keys = observations.keys
        if self._output_key is not None:
            name, fields = self._output_key
            (texts,) = fields.read(decoded.values, decoded.documents, index, decoded.texts)
            keys = [_output_key(text, name) for text in texts]
        published = RecordBatch.to_write(
            self._topics.predictions,
            self._partitions(self._topics.predictions, records.partitions[index]),
            records.timestamps[index],
            keys,
            values,
            self._headers(records, index),
        )
        alerts, of_alerts = self._alerts(records, published, predictions, observations)
        if self.form is not None:
            sources = self._sources(records, index)
            published = self.form.write("prediction", published, observations.timestamps, sources)
        return Outputs(
            published,
            alerts,
            self._dead_letters(records, dead_letters, now_ms),
            self._events(records, decoded, predictions, enriched),
            None if self.form is None else values,
            of_alerts,
        )

    def _headers(self, records: RecordBatch, index: Ints) -> list[Headers]:
        """Those of the records at `index` that are carried along."""
        headers = pick(records.headers, index)
        if not self._without_cloudevent:
            return headers
        return [[header for header in one if not is_own_header(header[0])] if one else one for one in headers]

    def _events(
        self, records: RecordBatch, decoded: Decoded, predictions: Predictions, enriched: Enriched | None
    ) -> RecordBatch | None:
        if self.events is None:
            return None
        if enriched is None:
            enriched = self.events.write(decoded, predictions)
        index, topic = predictions.index, self.events.topic
        return RecordBatch.to_write(
            topic,
            self._partitions(topic, records.partitions[index]),
            records.timestamps[index],
            enriched.keys,
            enriched.values,
            self._headers(records, index),
        )

    def _alerts(
        self, records: RecordBatch, published: RecordBatch, predictions: Predictions, observations: Observations
    ) -> tuple[RecordBatch | None, Ints | None]:
        """The records of the alerts' topic, and the index of the event of each; None: there is no topic for them.

        `published`: the predictions, as JSON.
        """
        topic, index = self._topics.alerts, predictions.index
        if topic is None:
            return None, None
        rows = np.flatnonzero(predictions.published_alerts)
        same = published.take(rows)
        alerts = RecordBatch.to_write(
            topic,
            self._partitions(topic, records.partitions[index[rows]]),
            same.timestamps,
            same.keys,
            same.values,
            same.headers,
        )
        times = observations.timestamps
        alerts = self._in_form(alerts, times[rows], records, index[rows])
        if not predictions.notices:
            return alerts, index[rows]
        of_notices = np.array([notice.index for notice in predictions.notices], np.int64)
        told = np.searchsorted(index, of_notices)
        notices = self._notices.write(topic, predictions.notices, records, published, told, observations.keys, times)
        partitions = self._partitions(topic, records.partitions[of_notices])
        notices = self._in_form(
            replace(notices, partitions=partitions),
            times[told],
            records,
            of_notices,
            [f"-{notice.kind}" for notice in predictions.notices],
        )
        both = before_alerts(notices, of_notices, alerts, index[rows])
        return both, np.sort(np.concatenate([of_notices, index[rows]]))

    def _in_form(
        self, alerts: RecordBatch, times: Ints, records: RecordBatch, index: Ints, suffixes: Sequence[str] = ()
    ) -> RecordBatch:
        """Records for the alerts' topic in their final form; they are about the events at `index`."""
        if self.form is None:
            return alerts
        sources = self._sources(records, index)
        if suffixes:
            sources = list(map("".join, zip(sources, suffixes, strict=True)))
        return self.form.write("alert", alerts, times, sources)

    def _sources(self, records: RecordBatch, index: Ints) -> list[str]:
        """A name for each event."""
        places = zip(records.partitions[index].tolist(), records.offsets[index].tolist(), strict=True)
        return [f"{records.topic}-{partition}-{offset}" for partition, offset in places]

    def _partitions(self, topic: str, partitions: Ints) -> Ints:
        return np.full_like(partitions, BY_KEY) if topic in self._topics.key_hashed else partitions

    def _values(
        self, records: RecordBatch, decoded: Decoded, predictions: Predictions, observations: Observations
    ) -> list[bytes | None]:
        """`observations`: those with a prediction."""
        index, rows = predictions.index, Rows(len(predictions.index))
        if not len(index):
            return []
        rows.keys(b"{", observations.keys)
        rows.times(b',"timestamp":"', observations.timestamps)
        rows.texts(b'Z","score":', _number_texts(predictions.score))
        end = b""
        if predictions.prediction is not None:
            rows.texts(b',"prediction":[', _row_texts(predictions.prediction))
            end = b"]"
            if self._warm_column is not None:
                rows.flags(end + b',"warm":', predictions.prediction[:, self._warm_column] >= 1)
                end = b""
        rows.flags(end + b',"alert":', predictions.alert)
        if predictions.held_back is not None:
            rows.texts(b"", _held_back(predictions.held_back))
        if predictions.reasons is not None:
            rows.texts(b"", self._reasons(predictions.alert, predictions.reasons))
        rows.integers(b',"steps":', predictions.steps)
        name = orjson.dumps(records.topic)
        if self._from_file:
            rows.integers(self._model + b'"file":%b,"row":' % name, records.offsets[index])
        else:
            rows.integers(self._model + b'"topic":%b,"partition":' % name, records.partitions[index])
            rows.integers(b',"offset":', records.offsets[index])
        end = b"}}"
        if self._names:
            texts = self._included.read(decoded.values, decoded.documents, index, decoded.texts)
            self._add_event(rows, texts)
            end = b"}}"
        return rows.join(end)

    def _reasons(self, alert: Bools, sizes: Floats) -> list[bytes]:
        """[M] The member `reasons` of each prediction that is an alert; `sizes` [A, G] as Predictions has them."""
        order = np.argsort(-sizes, axis=1, kind="stable")[:, : self._max_reasons]  # NaN comes last
        largest = np.take_along_axis(sizes, order, axis=1)
        raised = largest > 0
        texts = iter(_number_texts(largest[raised]))
        members = [b""] * len(alert)
        for row, features, count in zip(
            np.flatnonzero(alert).tolist(), order.tolist(), raised.sum(axis=1).tolist(), strict=True
        ):
            named = [self._features[feature] + next(texts) + b"}" for feature in features[:count]]
            members[row] = b',"reasons":[%b]' % b",".join(named)
        return members

    def _add_event(self, rows: Rows, columns: list[list[bytes]]) -> None:
        """The member `event` without its closing bracket; what is absent is left out."""
        if all(map(all, columns)):
            before = b'},"event":{'
            for name, column in zip(self._names, columns, strict=True):
                rows.texts(before + name, column)
                before = b","
            return
        objects = []
        for texts in zip(*columns, strict=True):
            members = [name + text for name, text in zip(self._names, texts, strict=True) if text]
            objects.append(b",".join(members))
        rows.texts(b'},"event":{', objects)

    def _dead_letters(self, records: RecordBatch, dead_letters: list[DeadLetter], now_ms: int) -> RecordBatch:
        rows = np.array([letter.index for letter in dead_letters], dtype=np.int64)
        same = records.take(rows)
        topic = self._topics.dead_letters
        forms = np.array([letter.form for letter in dead_letters], dtype=np.int64)
        return RecordBatch.to_write(
            topic,
            self._partitions(topic, same.partitions),
            np.where(forms >= NOW, now_ms, same.timestamps),
            [_dead_letter_key(same, row, letter.form) for row, letter in enumerate(dead_letters)],
            [
                _plain(value) if letter.with_value and letter.form < BARE else None
                for value, letter in zip(same.values, dead_letters, strict=True)
            ],
            [
                _dead_letter_headers(records, letter, headers)
                for headers, letter in zip(same.headers, dead_letters, strict=True)
            ],
        )


def _held_back(codes: Codes) -> list[bytes]:
    return [_HELD_BACK[code] for code in codes.tolist()]


def _plain(value: bytes | None) -> bytes | None:
    """A client takes nothing but bytes."""
    return bytes(value) if isinstance(value, UnreadableValue) else value


def _dead_letter_key(records: RecordBatch, row: int, form: int) -> bytes | None:
    key = records.keys[row]
    if form >= OWN_KEY or (form >= WITH_KEY and key is None):
        return f"{records.topic}-{records.partitions[row]}-{records.offsets[row]}".encode()
    return key


def _dead_letter_headers(records: RecordBatch, letter: DeadLetter, headers: Headers) -> Headers:
    """The record's own, then why it has no prediction (the names are those of KIP-1034)."""
    message = letter.message
    if letter.form >= BARE:
        value, size = records.values[letter.index], sum(len(name) + len(value or b"") for name, value in headers)
        message += f" (left out here: a value of {len(value or b'')} bytes, headers of {size} bytes)"
        headers = []
    about = {
        "__streams.errors.exception": "lstmstream.errors.BadRecord",
        "__streams.errors.message": message,
        "__streams.errors.topic": records.topic,
        "__streams.errors.partition": str(records.partitions[letter.index]),
        "__streams.errors.offset": str(records.offsets[letter.index]),
        "lstmstream.stage": letter.stage,
    }
    if letter.form >= NOW:
        about["lstmstream.timestamp"] = str(records.timestamps[letter.index])
    return [*headers, *((name, text.encode()) for name, text in about.items())]


def _output_key(text: bytes, name: str) -> bytes | None:
    try:
        return key_text(orjson.loads(text) if text else None, name).encode()
    except BadRecord:
        return None


def _number_texts(values: Floats) -> list[bytes]:
    return orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")


def _row_texts(rows: Floats) -> list[bytes]:
    if not rows.shape[1]:
        return [b""] * len(rows)
    return orjson.dumps(np.ascontiguousarray(rows), option=orjson.OPT_SERIALIZE_NUMPY)[2:-2].split(b"],[")
