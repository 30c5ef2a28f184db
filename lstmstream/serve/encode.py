"""Answers to bytes: predictions, alerts and dead letters as section 7 of the design has them.

Numbers are written a column at a time by orjson, which gives each float32 its shortest text; the records are then
joined from the pieces. Knows nothing of how they are sent.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection

import numpy as np
import orjson

from lstmstream.model import Card
from lstmstream.serve.records import Answers, Columns, DeadLetter, Floats, Ints, Message, RecordBatch


class Encoder:
    """Writes the messages of one batch."""

    def __init__(
        self,
        card: Card,
        *,
        output_topic: str,
        alerts_topic: str | None,
        dead_letter_topic: str,
        hashed_topics: Collection[str] = (),
        from_file: bool = False,
    ) -> None:
        """`hashed_topics`: where murmur2 of the key decides on the partition, not the input's partition number.

        `from_file`: the source of an answer is a file and a row (the record's offset), not a topic.
        """
        self._output_topic = output_topic
        self._alerts_topic = alerts_topic
        self._dead_letter_topic = dead_letter_topic
        self._hashed_topics = frozenset(hashed_topics)
        self._from_file = from_file
        model = orjson.dumps({"model": card.name, "version": card.version})[1:-1]
        self._model = b"," + model + b',"source":{'

    def encode(
        self, records: RecordBatch, columns: Columns, answers: Answers, dead_letters: list[DeadLetter]
    ) -> list[Message]:
        """Predictions in the order of the records, each alert after its prediction; then the dead letters."""
        messages: list[Message] = []
        place = np.searchsorted(columns.index, answers.index).tolist()  # of each answer among the observations
        texts = self._texts(records, columns, answers, place)
        topics = [self._output_topic] if self._alerts_topic is None else [self._output_topic, self._alerts_topic]
        timestamps, partitions = records.timestamps.tolist(), records.partitions.tolist()
        keys = columns.keys if columns.output_keys is None else columns.output_keys
        for i, at, text, alert in zip(answers.index.tolist(), place, texts, answers.alert.tolist(), strict=True):
            for topic in topics if alert else topics[:1]:
                partition = None if topic in self._hashed_topics else partitions[i]
                messages.append(Message(topic, partition, keys[at], text, timestamps[i], records.headers[i]))
        messages += [self._dead_letter(records, letter) for letter in dead_letters]
        return messages

    def _texts(self, records: RecordBatch, columns: Columns, answers: Answers, place: list[int]) -> list[bytes]:
        count = len(place)
        if not count:
            return []
        keys = [_key_json(columns.keys[at]) for at in place]
        times = iso_texts(columns.timestamps[place])
        scores = _number_texts(answers.score)
        if answers.prediction is None:
            predictions = [b""] * count
        else:
            predictions = [b',"prediction":[' + row + b"]" for row in _row_texts(answers.prediction)]
        alerts = [b"true" if alert else b"false" for alert in answers.alert.tolist()]
        sources = self._sources(records, answers.index)
        if columns.included is None:
            ends = [b"}}"] * count
        else:
            ends = [b'},"event":' + columns.included[at] + b"}" for at in place]
        return [
            b'{%b,"timestamp":"%bZ","score":%b%b,"alert":%b,"steps":%d%b%b%b'
            % (key, time, score, prediction, alert, steps, self._model, source, end)
            for key, time, score, prediction, alert, steps, source, end in zip(
                keys, times, scores, predictions, alerts, answers.steps.tolist(), sources, ends, strict=True
            )
        ]

    def _sources(self, records: RecordBatch, index: Ints) -> list[bytes]:
        name = orjson.dumps(records.topic)
        offsets = records.offsets[index].tolist()
        if self._from_file:
            return [b'"file":%b,"row":%d' % (name, row) for row in offsets]
        partitions = records.partitions[index].tolist()
        return [b'"topic":%b,"partition":%d,"offset":%d' % (name, *at) for at in zip(partitions, offsets, strict=True)]

    def _dead_letter(self, records: RecordBatch, letter: DeadLetter) -> Message:
        i = letter.index
        partition, timestamp = int(records.partitions[i]), int(records.timestamps[i])
        about = {
            "__streams.errors.exception": "lstmstream.errors.BadRecord",
            "__streams.errors.message": letter.message,
            "__streams.errors.topic": records.topic,
            "__streams.errors.partition": str(partition),
            "__streams.errors.offset": str(records.offsets[i]),
            "lstmstream.stage": letter.stage,
        }
        return Message(
            self._dead_letter_topic,
            None if self._dead_letter_topic in self._hashed_topics else partition,
            records.keys[i],
            records.values[i] if letter.keep_value else None,
            timestamp,
            [*records.headers[i], *((name, text.encode()) for name, text in about.items())],
        )


def _key_json(key: bytes | None) -> bytes:
    if key is None:
        return b'"key":null'
    try:
        return b'"key":' + orjson.dumps(key.decode())
    except UnicodeDecodeError:
        return b'"key_base64":"' + b64encode(key) + b'"'


def iso_texts(timestamps_ms: Ints) -> list[bytes]:
    """ISO 8601 in milliseconds, UTC, without the closing Z."""
    texts = np.datetime_as_string(timestamps_ms.astype("datetime64[ms]"), unit="ms")
    return texts.astype(np.bytes_).tolist()  # type: ignore[no-any-return]


def _number_texts(values: Floats) -> list[bytes]:
    return orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")


def _row_texts(rows: Floats) -> list[bytes]:
    if not rows.shape[1]:
        return [b""] * len(rows)
    return orjson.dumps(np.ascontiguousarray(rows), option=orjson.OPT_SERIALIZE_NUMPY)[2:-2].split(b"],[")
