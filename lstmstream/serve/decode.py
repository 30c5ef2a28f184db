"""Bytes to columns. A record that cannot be decoded becomes a dead letter and never spoils its neighbours.

The fast path is whole columns with one type check each; only where a check fails are single records looked at,
to say exactly what is wrong with each. Knows the model card and the input's settings, nothing of state, output or
Kafka: what becomes an observation must not depend on how predictions are published (docs/semantics.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import orjson

from lstmstream.errors import BadRecord
from lstmstream.formats.durations import format_duration
from lstmstream.formats.event_reader import EventReader
from lstmstream.formats.json_documents import Document, Getter, field_getter, parse_document
from lstmstream.formats.timestamps import TIMESTAMP_MAX_MS, timestamp_ms
from lstmstream.formats.values import (
    NUMBER_TYPES,
    TEXT_TYPES,
    canonical_text,
    category_text,
    key_text,
    number,
    number_array,
)
from lstmstream.model import Card, Feature
from lstmstream.records import Bools, DeadLetter, Floats, Ints, Observations, RecordBatch, UnreadableValue
from lstmstream.serve.compiled_decode import EventColumns
from lstmstream.serve.fast_decode import FastDecoder, LazyDocuments
from lstmstream.serve.silent import SilentField


class FieldCounts(NamedTuple):
    """Of the M good records, in how many each of the card's features has no usable value. In the card's order."""

    missing: Ints  # [features] absent or null; of an array, all of its numbers
    unknown: Ints  # [features] a category whose text is not in the vocabulary


class Decoded(NamedTuple):
    """N records after decoding: each is one of the M observations or one of the N - M dead letters."""

    observations: Observations
    dead_letters: list[DeadLetter]  # by index
    documents: Sequence[Document]  # [N] the JSON objects; an empty one where there is none
    field_counts: FieldCounts
    silent: Bools  # [observations] they have no prediction
    values: list[bytes | None]  # [N] the text of the JSON objects, whatever the format of the records
    texts: Mapping[str, list[bytes | None]]  # [N] of some fields, for `EventFields.read`


class Decoder:
    """Turns a RecordBatch into observations and dead letters. Holds no data between calls."""

    def __init__(
        self,
        card: Card,
        *,
        key: str | None = None,
        timestamp: str | None = None,
        max_bytes: int = 10_000_000,
        max_future_ms: int | None = None,
        silent: tuple[str, str] | None = None,
        reader: EventReader | None = None,
        texts: Sequence[str] = (),
    ) -> None:
        """`key` and `timestamp` name event fields (dots for nested ones); None takes the record's own.

        `silent`: the field that marks events without a prediction, and its value in them. `reader` makes JSON objects
        of records in other formats and envelopes; None: they are JSON objects. `texts` names fields whose texts are
        kept where they are met on the way; they decide nothing.
        """
        self._reader = reader
        self._numbers = [(f.name, field_getter(f.name), f.size) for f in card.numbers]
        self._categories = [(f.name, field_getter(f.name), category_code(f)) for f in card.categories]
        self._key = None if key is None else (key, field_getter(key))
        self._timestamp = None if timestamp is None else (timestamp, field_getter(timestamp))
        self._max_bytes = max_bytes
        self._max_future_ms = max_future_ms
        self._silent = None if silent is None else SilentField(*silent)
        codes = [code for _, _, code in self._categories]
        self._fast = FastDecoder(card, codes, key=key, timestamp=timestamp, max_bytes=max_bytes, texts=texts)
        kinds = [feature.kind for feature in card.features]  # in the card numbers and categories may be mixed
        self._number_places = [place for place, kind in enumerate(kinds) if kind == "number"]
        self._category_places = [place for place, kind in enumerate(kinds) if kind == "category"]

    def decode(self, records: RecordBatch) -> Decoded:
        """The M good records as columns, and a dead letter for each of the other N - M.

        Raises SchemaRegistryDown where a schema is not known and cannot be asked for now; nothing has changed then.
        """
        if self._reader is not None:
            records = self._reader.read(records)
        found = self._fast.read(records)
        if found is None:
            return self._decode_each(records)
        columns, rows = found
        rejects = _Rejects()
        wrong = self._with_bad_time(records, columns.timestamps)
        if len(wrong):
            rows = np.union1d(rows, wrong)
        documents = LazyDocuments(records.values)
        if len(rows):
            documents = documents.replaced(rows.tolist(), self._read_again(rows, records, columns, rejects))
        return self._decoded(records, columns, documents, rejects)

    def _read_again(
        self, rows: Ints, records: RecordBatch, columns: EventColumns, rejects: _Rejects
    ) -> Sequence[Document]:
        """Reads these rows one by one into the columns; their documents."""
        again = _Rejects()
        some, documents = self._read_each(records.take(rows), again)
        columns.x[rows], columns.categories[rows], columns.absent[rows] = some.x, some.categories, some.absent
        if self._timestamp is not None:
            columns.timestamps[rows] = some.timestamps
        numbers = rows.tolist()
        if self._key is not None:
            for row, key in zip(numbers, some.keys, strict=True):
                columns.keys[row] = key
        for at, letter in again.by_index.items():
            rejects.by_index[numbers[at]] = replace(letter, index=numbers[at])
        return documents

    def _with_bad_time(self, records: RecordBatch, timestamps: Ints) -> Ints:
        """The rows to look at for their time."""
        if self._timestamp is None:
            return np.flatnonzero(_without_time(timestamps))
        if self._max_future_ms is None:
            return np.empty(0, np.int64)
        return np.flatnonzero(_ahead_ms(records, timestamps) > self._max_future_ms)

    def _decode_each(self, records: RecordBatch) -> Decoded:
        rejects = _Rejects()
        return self._decoded(records, *self._read_each(records, rejects), rejects)

    def _read_each(self, records: RecordBatch, rejects: _Rejects) -> tuple[EventColumns, list[Document]]:
        """The definition of what a record means."""
        documents = self._parse(records, rejects)
        keys = records.keys if self._key is None else self._field_keys(self._key, documents, rejects)
        timestamps = self._timestamps(records, documents, rejects)
        x = self._read_numbers(documents, rejects)
        categories, absent = self._read_categories(documents, rejects)
        return EventColumns(keys, timestamps, x, categories, absent, {}), documents

    def _decoded(
        self, records: RecordBatch, columns: EventColumns, documents: Sequence[Document], rejects: _Rejects
    ) -> Decoded:
        keys, timestamps, x, categories, absent, texts = columns
        index = np.arange(len(records), dtype=np.int64)
        silent = self._read_silent(records, documents, rejects)
        observations = Observations(index, records.partitions, records.offsets, keys, timestamps, x, categories)
        if not rejects.by_index:
            counts = self._count(observations, absent)
            return Decoded(observations, [], documents, counts, silent, records.values, texts)
        good = np.ones(len(records), dtype=np.bool_)
        good[list(rejects.by_index)] = False
        dead_letters = [rejects.by_index[i] for i in sorted(rejects.by_index)]
        rows = np.flatnonzero(good)
        observations = observations.take(rows)
        counts = self._count(observations, absent[rows])
        return Decoded(observations, dead_letters, documents, counts, silent[rows], records.values, texts)

    def _read_silent(self, records: RecordBatch, documents: Sequence[Document], rejects: _Rejects) -> Bools:
        """[N] Whether the event has no prediction."""
        silent = np.zeros(len(records), dtype=np.bool_)
        if self._silent is not None:
            index = np.array([i for i in range(len(records)) if i not in rejects.by_index], dtype=np.int64)
            found = self._silent.read(records.values, documents, index)
            silent[index] = [mark is True for mark in found]
            for i, mark in zip(index.tolist(), found, strict=True):
                if type(mark) is BadRecord:
                    rejects.add(i, mark)
        return silent

    def _count(self, observations: Observations, absent: Bools) -> FieldCounts:
        """`absent` [M, C]: whether the category is missing."""
        features = len(self._number_places) + len(self._category_places)
        missing, unknown = np.zeros(features, np.int64), np.zeros(features, np.int64)
        nan, column = np.isnan(observations.x), 0
        if nan.any():
            for place, (_, _, size) in zip(self._number_places, self._numbers, strict=True):
                missing[place] = np.count_nonzero(nan[:, column : column + size].all(axis=1))
                column += size
        missing[self._category_places] = absent.sum(axis=0)
        unknown[self._category_places] = (observations.categories == 0).sum(axis=0) - absent.sum(axis=0)
        return FieldCounts(missing, unknown)

    def _parse(self, records: RecordBatch, rejects: _Rejects) -> list[Document]:
        """One JSON object for each record; an empty one stands where there is none."""
        documents: list[Document] = []
        loads, append, limit = orjson.loads, documents.append, self._max_bytes
        for i, (value, key) in enumerate(zip(records.values, records.keys, strict=True)):
            if value is not None and len(value) + len(key or b"") > limit:
                size = len(value) + len(key or b"")
                message = f"key and value have {size} bytes, more than input.max_bytes = {limit}"
                rejects.by_index[i] = DeadLetter(i, "decode", message, with_value=False)
                append({})
                continue
            try:
                document = loads(value)  # type: ignore[arg-type]  # a null value raises, and is explained below
                if type(document) is not dict:
                    document = parse_document(value)
            except orjson.JSONDecodeError:  # of an UnreadableValue too, for it is no plain bytes
                try:
                    document = _explained(value)
                except BadRecord as bad:
                    rejects.add(i, bad)
                    document = {}
            except BadRecord as bad:
                rejects.add(i, bad)
                document = {}
            append(document)
        return documents

    def _field_keys(
        self, field: tuple[str, Getter], documents: list[Document], rejects: _Rejects
    ) -> list[bytes | None]:
        name, get = field
        values = list(map(get, documents))
        if set(map(type, values)) == {str}:
            texts = list(map(canonical_text, values))
        else:
            texts = _each(documents, rejects, lambda document: key_text(get(document), name), default="")
        return [text.encode() for text in texts]

    def _timestamps(self, records: RecordBatch, documents: list[Document], rejects: _Rejects) -> Ints:
        if self._timestamp is not None:
            name, get = self._timestamp
            values = list(map(get, documents))
            times = np.array(_each(values, rejects, lambda value: timestamp_ms(value, name), default=0), np.int64)
            if self._max_future_ms is not None:
                ahead_ms = _ahead_ms(records, times)
                for i in np.flatnonzero(ahead_ms > self._max_future_ms).tolist():
                    ahead = format_duration(int(ahead_ms[i]) / 1000)
                    message = f"field {name!r} lies {ahead} after the record's timestamp, more than input.max_future"
                    rejects.add(i, BadRecord("validate", message))
            return times
        timestamps = records.timestamps
        for i in np.flatnonzero(_without_time(timestamps)).tolist():
            wrong = "has no timestamp (-1)" if timestamps[i] == -1 else "has a timestamp outside years 1970..9999"
            rejects.add(i, BadRecord("validate", f"the record {wrong}"))
        return timestamps

    def _read_numbers(self, documents: list[Document], rejects: _Rejects) -> Floats:
        """[N, F] float32, NaN where missing."""
        wide = np.empty((len(documents), sum(size for _, _, size in self._numbers)), dtype=np.float64)
        names: list[str] = []  # of each column
        for name, get, size in self._numbers:
            values: list[Any] = list(map(get, documents))
            if size > 1:
                values = _each(
                    documents,
                    rejects,
                    lambda doc, get=get, name=name, size=size: number_array(get(doc), name, size),  # type: ignore[misc]
                    default=[None] * size,
                )
            elif not NUMBER_TYPES.issuperset(map(type, values)):
                values = _each(documents, rejects, lambda doc, get=get, name=name: number(get(doc), name), default=None)  # type: ignore[misc]
            columns = np.array(values, dtype=np.float64).reshape(len(documents), size)  # None becomes NaN: missing
            wide[:, len(names) : len(names) + size] = columns
            names += [name] * size
        with np.errstate(over="ignore"):
            x = wide.astype(np.float32)
        infinite = np.isinf(x)
        if infinite.any():
            for i, column in np.argwhere(infinite).tolist():
                rejects.add(i, BadRecord("validate", f"field {names[column]!r} is not finite in float32"))
        return x

    def _read_categories(self, documents: list[Document], rejects: _Rejects) -> tuple[Ints, Bools]:
        """[N, C] codes, 0 where unknown or missing; [N, C] whether it is missing."""
        codes = np.zeros((len(documents), len(self._categories)), dtype=np.int64)
        absent = np.zeros(codes.shape, dtype=np.bool_)
        for column, (name, get, code) in enumerate(self._categories):
            values = list(map(get, documents))
            if not TEXT_TYPES.issuperset(map(type, values)):
                values = _each(
                    documents,
                    rejects,
                    lambda doc, get=get, name=name: category_text(get(doc), name),  # type: ignore[misc]
                    default=None,
                )
            codes[:, column] = [0 if text is None else code(text) for text in values]
            if None in values:
                absent[:, column] = [text is None for text in values]
        return codes, absent


def _without_time(timestamps: Ints) -> Bools:
    """[N] Which records have no timestamp that an event could have."""
    return (timestamps < 0) | (timestamps > TIMESTAMP_MAX_MS)


def _ahead_ms(records: RecordBatch, timestamps: Ints) -> Ints:
    """[N] How far each event's time lies after that of its record."""
    return np.where(records.timestamps < 0, 0, timestamps - records.timestamps)


def _explained(value: bytes | None) -> Document:
    if isinstance(value, UnreadableValue):
        raise BadRecord("decode", f"the record cannot be decoded: {value.reason}")
    return parse_document(value)


class _Rejects:
    """The first fault of each bad record, by its index in the batch."""

    def __init__(self) -> None:
        self.by_index: dict[int, DeadLetter] = {}

    def add(self, index: int, bad: BadRecord) -> None:
        self.by_index.setdefault(index, DeadLetter(index, bad.stage, str(bad)))


def _each(items: Iterable[Any], rejects: _Rejects, read: Callable[[Any], Any], *, default: Any) -> list[Any]:
    """`read` of every document, or of its value; where it raises BadRecord, the default and a dead letter."""
    values = []
    for i, item in enumerate(items):
        try:
            values.append(read(item))
        except BadRecord as bad:
            rejects.add(i, bad)
            values.append(default)
    return values


def category_code(feature: Feature) -> Callable[[str], int]:
    """Text to the feature's integer; 0 is unknown."""
    if feature.buckets is not None:
        buckets = feature.buckets
        return lru_cache(1 << 16)(lambda text: 1 + crc32(canonical_text(text).encode()) % buckets)
    return _VocabularyCodes(feature.vocabulary or ()).__getitem__


class _VocabularyCodes(dict[str, int]):
    """The code of each text of a vocabulary, and of what means the same: `17.0` is `17`. Texts without are 0."""

    def __init__(self, vocabulary: Iterable[str]) -> None:
        super().__init__()
        for code, text in enumerate(vocabulary, start=1):
            self.setdefault(canonical_text(text), code)
            self.setdefault(text, code)

    def __missing__(self, text: str) -> int:
        return self.get(canonical_text(text), 0)
