"""Whole batches of JSON objects to columns by the compiled codec, `native/codec.c`; tests/serve/test_codec.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import orjson

from lstmstream.formats.timestamps import timestamp_ms
from lstmstream.formats.values import canonical_text
from lstmstream.model import Card
from lstmstream.records import Bools, Floats, Ints, RecordBatch

_EVENT = 0  # the number of the object that is the event itself
_NUMBER, _CATEGORY, _TIME, _KEY, _INNER, _GUARD = range(6)  # kinds of fields, as in native/codec.c


class EventColumns(NamedTuple):
    """N events; rows that were not read hold anything."""

    keys: list[bytes | None]
    timestamps: Ints  # [N]
    x: Floats  # [N, F]
    categories: Ints  # [N, C]
    absent: Bools  # [N, C]


class CompiledDecoder:
    """Reads the fields of one model; holds the codes of texts that it has met."""

    def __init__(
        self,
        codec: ModuleType,
        card: Card,
        codes: Sequence[Callable[[str], int]],
        *,
        key: str | None,
        timestamp: str | None,
        max_bytes: int,
    ) -> None:
        """As for FastDecoder, which has found that no name can be read in two ways."""
        self._has_key, self._has_time = key is not None, timestamp is not None
        self._width, self._categories = sum(f.size for f in card.numbers), len(codes)
        assert len({feature.name for feature in card.features}) == len(card.features)

        def time_of(value: Any) -> int:
            return timestamp_ms(value, timestamp or "")

        self._decode = codec.Decoder(
            _fields(card, key, timestamp), self._width, tuple(codes), time_of, orjson.loads, max_bytes
        ).decode

    def read(self, records: RecordBatch) -> tuple[EventColumns, Ints] | None:
        """As FastDecoder.read."""
        n = len(records)
        x, times = np.empty((n, self._width), np.float32), np.empty(n, np.int64)
        categories, absent = np.empty((n, self._categories), np.int64), np.empty((n, self._categories), np.bool_)
        found = self._decode(records.values, records.keys, x, categories, absent, times)
        if found is None:
            return None
        keys, odd_keys, declined = found
        if not self._has_key:
            keys = records.keys
        elif odd_keys:  # `17.0` is 17
            keys = [None if text is None else canonical_text(text.decode()).encode() for text in keys]
        if not self._has_time:
            times = records.timestamps
        return EventColumns(keys, times, x, categories, absent), np.array(declined, np.int64)


def _fields(card: Card, key: str | None, timestamp: str | None) -> list[tuple[bytes, int, int, int, int, int]]:
    """Name, number of the object it is in, kind, column or number of the object it is, size of an array, is it the key.

    A name with a dot is the name of a field, which is left to Python code, and else leads into an object.
    """
    wanted: dict[str, tuple[int, int, int, bool]] = {}
    column = 0
    for feature in card.numbers:
        wanted[feature.name] = _NUMBER, column, feature.size if feature.size > 1 else 0, False
        column += feature.size
    for column, feature in enumerate(card.categories):
        wanted[feature.name] = _CATEGORY, column, 0, feature.name == key
    if key is not None and key not in wanted:
        wanted[key] = _KEY, 0, 0, True
    if timestamp is not None:
        wanted[timestamp] = _TIME, 0, 0, False
    fields = []
    objects: dict[str, int] = {}
    for name, (kind, column, size, is_key) in wanted.items():
        outer, dot, inner = name.partition(".")
        if not dot:
            fields.append((name.encode(), _EVENT, kind, column, size, is_key))
            continue
        if outer not in objects:
            objects[outer] = len(objects) + 1
            fields.append((outer.encode(), _EVENT, _INNER, objects[outer], 0, False))
        fields.append((name.encode(), _EVENT, _GUARD, 0, 0, False))
        fields.append((inner.encode(), objects[outer], kind, column, size, is_key))
    return [(name, place, kind, column, size, int(is_key)) for name, place, kind, column, size, is_key in fields]
