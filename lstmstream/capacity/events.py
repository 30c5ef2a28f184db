"""Generated events: one for each key in turn, with every field that the model and the configuration want."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from lstmstream.config import Config
from lstmstream.model import Card
from lstmstream.records import RecordBatch

KEY = b"key-%012d"  # 16 bytes
START_MS = 1_767_225_600_000  # 2026-01-01
STEP_MS = 1_000  # from one event of a key to its next


class Events:
    """Batches of events, whose keys come in turn; all are in partition 0."""

    def __init__(self, config: Config, card: Card, keys: int) -> None:
        self._config = config
        self._card = card
        self._keys = keys
        self._offset = 0
        self._random = np.random.default_rng(1)

    def next(self, count: int) -> RecordBatch:
        """The next `count` events, as a poll gives them."""
        offsets = np.arange(self._offset, self._offset + count, dtype=np.int64)
        self._offset += count
        timestamps = START_MS + offsets // self._keys * STEP_MS
        keys = [KEY % (offset % self._keys) for offset in offsets.tolist()]
        values = [self._value(key, at_ms) for key, at_ms in zip(keys, timestamps.tolist(), strict=True)]
        partitions = np.zeros(count, dtype=np.int64)
        return RecordBatch(
            self._config.input.topic, partitions, offsets, timestamps, list(keys), list(values), [()] * count
        )

    def _value(self, key: bytes, at_ms: int) -> bytes:
        event: dict[str, Any] = {}
        for feature in self._card.features:
            numbers = self._random.standard_normal(feature.size).round(3).tolist()
            if feature.kind == "category":
                _set(event, feature.name, self._random.choice(feature.vocabulary or ("a", "b", "c")))
            else:
                _set(event, feature.name, numbers if feature.size > 1 else numbers[0])
        if self._config.input.key is not None:
            _set(event, self._config.input.key, key.decode())
        if self._config.input.timestamp is not None:
            _set(event, self._config.input.timestamp, at_ms)
        return orjson.dumps(event)


def _set(event: dict[str, Any], name: str, value: Any) -> None:
    """A field, at its path along the dots."""
    *path, last = name.split(".")
    for part in path:
        event = event.setdefault(part, {})
    event[last] = value
