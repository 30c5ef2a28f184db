"""The events once more, with outputs of the model added: `output.events`, the input of a next stage.

The text of an event stays as it came, with the new members at its end, so that no digit of it is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import orjson

from lstmstream.errors import BadRecord
from lstmstream.formats.json_members import with_members
from lstmstream.formats.values import key_text
from lstmstream.records import Predictions
from lstmstream.serve.decode import Decoded
from lstmstream.serve.event_fields import EventFields


class Enriched(NamedTuple):
    """Keys and values for M predictions, and what stands in the way of some, by their index in the batch."""

    keys: list[bytes | None]
    values: list[bytes | None]
    faults: dict[int, str]


class EventWriter:
    """Writes the events of one batch. Holds no data between calls."""

    def __init__(self, topic: str, key: str | None, add: Mapping[str, str], names: Sequence[str] = ()) -> None:
        """`key`: the field that keys them; None: the entity key. `add`: name → output of the model (config/schema).

        `names`: of the columns of the prediction, where the model names them.
        """
        self.topic = topic
        self.rekeys = key is not None
        self._key = key
        self._add = {name: orjson.dumps(name) + b":" for name in add}
        self._outputs = list(add.values())
        self._names = names
        self._fields = EventFields([*add, *([] if key is None else [key])])

    def write(self, decoded: Decoded, predictions: Predictions) -> Enriched:
        """One event for each prediction. Where there is a fault, neither key nor value may be used."""
        index = predictions.index.tolist()
        faults: dict[int, str] = {}
        if not index:
            return Enriched([], [], faults)
        present = self._fields.read(decoded.values, decoded.documents, predictions.index)
        for name, texts in zip(self._add, present, strict=False):
            for i, text in zip(index, texts, strict=True):
                if text:
                    faults.setdefault(i, f"the event has a field {name!r} already, which output.events.add would write")
        keys = self._keys(decoded, index, present[-1] if self.rekeys else [], faults)
        added = list(zip(*(self._members(name, predictions) for name in range(len(self._outputs))), strict=True))
        values: list[bytes | None] = [
            with_members(decoded.values[i] or b"", added[row] if added else ()) for row, i in enumerate(index)
        ]
        return Enriched(keys, values, faults)

    def _keys(
        self, decoded: Decoded, index: list[int], texts: list[bytes], faults: dict[int, str]
    ) -> list[bytes | None]:
        if self._key is None:
            observed = np.searchsorted(decoded.observations.index, index).tolist()
            return [decoded.observations.keys[at] for at in observed]
        keys: list[bytes | None] = []
        for i, text in zip(index, texts, strict=True):
            try:
                keys.append(key_text(orjson.loads(text) if text else None, self._key).encode())
            except BadRecord as bad:
                faults.setdefault(i, f"output.events.key: {bad}")
                keys.append(None)
        return keys

    def _members(self, number: int, predictions: Predictions) -> list[bytes]:
        """[M] The text of one added member."""
        output, name = self._outputs[number], list(self._add.values())[number]
        if output == "alert":
            return [name + (b"true" if alert else b"false") for alert in predictions.alert.tolist()]
        if output == "steps":
            return [b"%b%d" % (name, steps) for steps in predictions.steps.tolist()]
        if output == "score":
            column = predictions.score
        else:
            assert predictions.prediction is not None, "the factory checks this at the start"
            at = prediction_column(output, self._names)
            assert at is not None, "as above"
            column = predictions.prediction[:, at]
        texts = orjson.dumps(np.ascontiguousarray(column), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
        return [name + text for text in texts]


def prediction_column(output: str, names: Sequence[str]) -> int | None:
    """2 for `prediction[2]`, or for the third name; -1 for other outputs, None where no column has the name."""
    if not output.startswith("prediction["):
        return -1
    column = output[len("prediction[") : -1]
    if column in names:
        return names.index(column)
    return int(column) if column.isascii() and column.isdigit() else None
