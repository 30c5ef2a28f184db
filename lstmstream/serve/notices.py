"""Records beside the alerts: the end of an incident, and the summary of what `alerts.max_per_hour` has held back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import orjson

from lstmstream.formats.iso_columns import iso_texts
from lstmstream.model import Card
from lstmstream.records import ENDED, Headers, Ints, Notice, RecordBatch, concatenate
from lstmstream.serve.rows import key_texts


class NoticeWriter:
    """Writes them for the topic of the alerts."""

    def __init__(self, card: Card) -> None:
        self._model = orjson.dumps({"model": card.name, "version": card.version})[1:-1]

    def write(
        self,
        topic: str,
        notices: Sequence[Notice],
        records: RecordBatch,
        published: RecordBatch,
        rows: Ints,
        keys: Sequence[bytes | None],
        timestamps: Ints,
    ) -> RecordBatch:
        """N records.

        `published`: the predictions, of which `rows` [N] are those of the events. `keys` and `timestamps`: entity keys
        and event times of all of them. An end record has record key and headers of the prediction; a summary belongs
        to a partition, and so is its key.
        """
        values: list[bytes | None] = []
        record_keys: list[bytes | None] = []
        headers: list[Headers] = []
        texts = iso_texts(timestamps[rows])
        for notice, row, time in zip(notices, rows.tolist(), texts, strict=True):
            ended = notice.kind == ENDED
            partition = int(records.partitions[notice.index])
            source = {"topic": records.topic, "partition": partition, "offset": int(records.offsets[notice.index])}
            about = key_texts([keys[row]])[0] + b"," if ended else b""
            values.append(
                b'{%b"timestamp":"%bZ",%b,%b,"source":%b}'
                % (about, time, notice.members, self._model, orjson.dumps(source))
            )
            record_keys.append(published.keys[row] if ended else f"{records.topic}-{partition}".encode())
            headers.append(published.headers[row] if ended else ())
        return RecordBatch.to_write(
            topic, published.partitions[rows], published.timestamps[rows], record_keys, values, headers
        )


def before_alerts(notices: RecordBatch, of_notices: Ints, alerts: RecordBatch, of_alerts: Ints) -> RecordBatch:
    """Both in the order of their events, `of_notices` and `of_alerts`; a notice before the alert of its event."""
    order = np.argsort(np.concatenate([of_notices, of_alerts]), kind="stable")
    return concatenate([notices, alerts]).take(order)
