"""Whole batches of JSON objects to columns by the compiled codec, `native/codec.c`; tests/serve/test_codec.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import orjson

from lstmstream.formats.timestamps import timestamp_ms
from lstmstream.formats.values import canonical_text
from lstmstream.model import Card
from lstmstream.records import Bools, Floats, Ints, RecordBatch

_EVENT = 0  # the number of the object that is the event itself
_NUMBER, _CATEGORY, _TIME, _KEY, _INNER, _GUARD, _TEXT = range(7)  # kinds of fields, as in native/codec.c


class EventColumns(NamedTuple):
    """N events; rows that were not read hold anything."""

    keys: list[bytes | None]
    timestamps: Ints  # [N]
    x: Floats  # [N, F]
    categories: Ints  # [N, C]
    absent: Bools  # [N, C]
    texts: Mapping[str, list[bytes | None]]  # [N] of some fields, as `EventFields.read` takes them


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
        texts: Sequence[str],
    ) -> None:
        """As for FastDecoder, which has found that no name can be read in two ways."""
        self._has_key, self._has_time = key is not None, timestamp is not None
        self._texts = texts
        self._width, self._categories = sum(f.size for f in card.numbers), len(codes)
        assert len({feature.name for feature in card.features}) == len(card.features)

        def time_of(value: Any) -> int:
            return timestamp_ms(value, timestamp or "")

        self._decode = codec.Decoder(
            _fields(card, key, timestamp, texts),
            self._width,
            len(texts),
            tuple(codes),
            time_of,
            orjson.loads,
            max_bytes,
        ).decode

    def read(self, records: RecordBatch) -> tuple[EventColumns, Ints] | None:
        """As FastDecoder.read."""
        n = len(records)
        x, times = np.empty((n, self._width), np.float32), np.empty(n, np.int64)
        categories, absent = np.empty((n, self._categories), np.int64), np.empty((n, self._categories), np.bool_)
        found = self._decode(records.values, records.keys, x, categories, absent, times)
        if found is None:
            return None
        keys, odd_keys, declined, texts = found
        if not self._has_key:
            keys = records.keys
        elif odd_keys:  # `17.0` is 17
            keys = [None if text is None else canonical_text(text.decode()).encode() for text in keys]
        if not self._has_time:
            times = records.timestamps
        by_name = dict(zip(self._texts, texts, strict=True))
        return EventColumns(keys, times, x, categories, absent, by_name), np.array(declined, np.int64)


class _Field(NamedTuple):
    """One as the codec takes it."""

    name: bytes
    place: int  # the number of the object it is in
    kind: int
    column: int = 0  # or the number of the object that it is
    size: int = 0  # of an array
    is_key: int = 0
    text: int = -1  # the number of the column that its text goes to; -1: none


def _fields(card: Card, key: str | None, timestamp: str | None, texts: Sequence[str]) -> list[_Field]:
    """A name with a dot is the name of a field, which is left to Python code, and else leads into an object."""
    wanted: dict[str, tuple[int, int, int, int]] = {}
    column = 0
    for feature in card.numbers:
        wanted[feature.name] = _NUMBER, column, feature.size if feature.size > 1 else 0, 0
        column += feature.size
    for column, feature in enumerate(card.categories):
        wanted[feature.name] = _CATEGORY, column, 0, int(feature.name == key)
    if key is not None and key not in wanted:
        wanted[key] = _KEY, 0, 0, 1
    if timestamp is not None:
        wanted[timestamp] = _TIME, 0, 0, 0
    fields: dict[str, _Field] = {}
    inner_fields: list[_Field] = []
    for name, of_model in wanted.items():
        outer, dot, inner = name.partition(".")
        if not dot:
            fields[name] = _Field(name.encode(), _EVENT, *of_model)
            continue
        if outer not in fields:
            number = 1 + sum(field.kind == _INNER for field in fields.values())
            fields[outer] = _Field(outer.encode(), _EVENT, _INNER, number)
        fields[name] = _Field(name.encode(), _EVENT, _GUARD)
        inner_fields.append(_Field(inner.encode(), fields[outer].column, *of_model))
    for number, name in enumerate(texts):
        fields[name] = fields.get(name, _Field(name.encode(), _EVENT, _TEXT))._replace(text=number)
    return [*fields.values(), *inner_fields]
