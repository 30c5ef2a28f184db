"""Whole batches of JSON objects to columns, where each value is of the plain type that its field wants.

The compiled codec is asked first, where there is one. Else, and where it declines a whole batch, msgspec reads only the
fields that are wanted, into objects without dictionaries. What the two read, they read as `Decoder._decode_each` does,
which is the definition. What they do not read, or would read more liberally, is left to that one: the codec names the
records, msgspec leaves all of the batch. tests/serve/test_fast_decode.py and tests/serve/test_codec.py compare them on
hostile bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import attrgetter
from types import NoneType
from typing import Any, NamedTuple, overload

import msgspec
import numpy as np

from lstmstream import codec
from lstmstream.errors import BadRecord
from lstmstream.formats.iso_columns import iso_column_ms
from lstmstream.formats.json_documents import Document, parse_document
from lstmstream.formats.timestamps import timestamp_ms
from lstmstream.formats.values import INT_LIMIT, INT_MIN, canonical_texts
from lstmstream.model import Card
from lstmstream.records import Bools, Floats, Ints, RecordBatch
from lstmstream.serve.compiled_decode import CompiledDecoder, EventColumns
from lstmstream.serve.event_fields import only_written_so, plain_names, string_texts

_BYTES, _TEXT = {bytes}, {str}
_NONE = np.empty(0, np.int64)
_ESCAPED = re.compile(r'[\x00-\x1f"\\]')


class LazyDocuments(Sequence[Document]):
    """The JSON objects of some values, each parsed when it is asked for, or before."""

    def __init__(self, values: Sequence[bytes | Document | None]) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, at: int) -> Document: ...
    @overload
    def __getitem__(self, at: slice) -> LazyDocuments: ...
    def __getitem__(self, at: int | slice) -> Document | LazyDocuments:
        return LazyDocuments(self._values[at]) if isinstance(at, slice) else _document(self._values[at])

    def __iter__(self) -> Iterator[Document]:
        return map(_document, self._values)

    def replaced(self, rows: Sequence[int], documents: Sequence[Document]) -> LazyDocuments:
        """The same with other objects at these rows."""
        values = list(self._values)
        for row, document in zip(rows, documents, strict=True):
            values[row] = document
        return LazyDocuments(values)


def _document(value: bytes | Document | None) -> Document:
    return value if isinstance(value, dict) else parse_document(value)


class FastDecoder:
    """Reads the fields of one model. Holds no data between calls."""

    def __init__(
        self,
        card: Card,
        codes: Sequence[Callable[[str], int]],
        *,
        key: str | None,
        timestamp: str | None,
        max_bytes: int,
        texts: Sequence[str] = (),
    ) -> None:
        """`codes`: of the card's categories, text to integer. The others: see Decoder."""
        number, text, moment = float | None, str | int | None, str | int | float | None
        wanted: list[tuple[str, Any]] = [(f.name, number if f.size == 1 else list[number] | None) for f in card.numbers]  # type: ignore[valid-type]
        wanted += [(feature.name, text) for feature in card.categories]
        if key is not None:
            wanted.append((key, text))
        if timestamp is not None:
            wanted.append((timestamp, moment))
        texts = plain_names(texts)
        others = {name.split(".")[0] for name, _ in wanted} | dict(wanted).keys()
        raw_texts = [name for name in texts if name not in others]  # msgspec reads a field once
        shape = _event_shape([*wanted, *((name, msgspec.Raw) for name in raw_texts)])
        self._usable = shape is not None
        self._compiled: CompiledDecoder | None = None
        if shape is None:
            return
        compiled = codec.load()
        if compiled is not None:
            self._compiled = CompiledDecoder(
                compiled, card, codes, key=key, timestamp=timestamp, max_bytes=max_bytes, texts=texts
            )
        self._decode = msgspec.json.Decoder(shape.event).decode
        self._guards = list(map(attrgetter, shape.guards))
        at = shape.attributes
        self._raw_texts = {name: attrgetter(at[name]) for name in raw_texts}
        of_strings = {key, timestamp, *(feature.name for feature in card.categories)}
        self._strings = {name: attrgetter(at[name]) for name in texts if name in of_strings}
        self._max_bytes = max_bytes
        self._numbers = [(attrgetter(at[f.name]), f.size) for f in card.numbers]
        self._width = sum(f.size for f in card.numbers)
        self._categories = [(attrgetter(at[f.name]), code) for f, code in zip(card.categories, codes, strict=True)]
        self._key = None if key is None else attrgetter(at[key])
        self._timestamp = None if timestamp is None else (timestamp, attrgetter(at[timestamp]))

    def read(self, records: RecordBatch) -> tuple[EventColumns, Ints] | None:
        """The columns, and the rows that need a closer look; None where too many do.

        Of all other rows the event can be an observation, if its time is good.
        """
        values = records.values
        if not self._usable or not values:
            return None
        if self._compiled is not None and (found := self._compiled.read(records)) is not None:
            return found
        columns = self._read_objects(records) if self._are_plain(records) else None
        return None if columns is None else (columns, _NONE)

    def _read_objects(self, records: RecordBatch) -> EventColumns | None:
        values = records.values
        try:
            events = list(map(self._decode, values))  # type: ignore[arg-type]  # all are bytes
            if any(guard(event) is not msgspec.UNSET for guard in self._guards for event in events):
                return None
            x = self._read_numbers(events)
            categories, absent = self._read_categories(events)
            keys = records.keys if self._key is None else _key_column(list(map(self._key, events)))
            timestamps = records.timestamps if self._timestamp is None else self._read_timestamps(events)
        except (msgspec.MsgspecError, BadRecord, ValueError, AttributeError, RecursionError, OverflowError):
            return None
        if keys is None or np.isinf(x).any():
            return None
        return EventColumns(keys, timestamps, x, categories, absent, self._read_texts(events))

    def _are_plain(self, records: RecordBatch) -> bool:
        """Whether all values are bytes of UTF-8 within the limit."""
        values, keys = records.values, records.keys
        if set(map(type, values)) != _BYTES:
            return False
        longest_key = max(map(len, filter(None, keys)), default=0)
        if max(map(len, values)) + longest_key > self._max_bytes:  # type: ignore[arg-type]
            return False
        text = b"\n".join(values)  # type: ignore[arg-type]
        if text.isascii():
            return True
        try:
            text.decode()  # msgspec does not look at strings in fields that nobody wants
        except UnicodeDecodeError:
            return False
        return True

    def _read_numbers(self, events: list[Any]) -> Floats:
        """[N, F] float32, NaN where missing. Raises ValueError for an array of another size."""
        wide = np.empty((len(events), self._width), np.float64)
        column = 0
        for get, size in self._numbers:
            if size == 1:
                wide[:, column] = _number_column(get, events)
            else:
                rows = [row if row is not None else (None,) * size for row in map(get, events)]
                if set(map(len, rows)) != {size}:
                    raise ValueError(f"an array is not of size {size}")
                numbers = np.array(list(chain.from_iterable(rows)), np.float64)  # None becomes NaN
                wide[:, column : column + size] = numbers.reshape(-1, size)
            column += size
        with np.errstate(over="ignore"):
            return wide.astype(np.float32)

    def _read_texts(self, events: list[Any]) -> dict[str, list[bytes | None]]:
        """Those of fields that were read as they stand, and those of strings."""
        texts = {
            name: only_written_so([b"" if raw is None else bytes(raw) for raw in map(get, events)])
            for name, get in self._raw_texts.items()
        }
        for name, get in self._strings.items():
            values = list(map(get, events))
            if set(map(type, values)) == _TEXT:
                texts[name] = string_texts(values)
        return texts

    def _read_categories(self, events: list[Any]) -> tuple[Ints, Bools]:
        """[N, C] codes; [N, C] whether it is missing."""
        codes = np.zeros((len(events), len(self._categories)), np.int64)
        absent = np.zeros(codes.shape, np.bool_)
        for column, (get, code) in enumerate(self._categories):
            values = list(map(get, events))
            kinds = set(map(type, values))
            if int in kinds:
                values = [_digits(value) if type(value) is int else value for value in values]
            if NoneType not in kinds:
                codes[:, column] = np.fromiter(map(code, values), np.int64, len(values))
            else:
                codes[:, column] = [0 if value is None else code(value) for value in values]
                absent[:, column] = [value is None for value in values]
        return codes, absent

    def _read_timestamps(self, events: list[Any]) -> Ints:
        """[N] milliseconds since 1970 UTC. Raises BadRecord."""
        assert self._timestamp is not None
        name, get = self._timestamp
        values = list(map(get, events))
        if set(map(type, values)) == _TEXT and (column := iso_column_ms(values)) is not None:
            return column
        return np.array([timestamp_ms(value, name) for value in values], np.int64)


class _Shape(NamedTuple):
    """A class for the wanted fields of an event."""

    event: type[msgspec.Struct]
    attributes: dict[str, str]  # field → attribute, through objects where it has a dot
    guards: list[str]  # attributes of fields that would be read in place of those in objects; UNSET where there is none


def _event_shape(wanted: list[tuple[str, Any]]) -> _Shape | None:
    """None for a field with two types or more than one dot, and where one is inside another.

    None too for a name that JSON writes with escapes, which msgspec does not take. A name with a dot is the name of a
    field, and else leads into an object: `locate` in formats/json_documents.py.
    """
    names = dict(wanted)
    outers = {name.split(".")[0] for name in names if "." in name}
    if any(names[name] != kind for name, kind in wanted) or not outers.isdisjoint(names):
        return None
    if any(name.count(".") > 1 or _ESCAPED.search(name) for name in names):
        return None
    here: list[tuple[str, Any]] = []  # fields of the event itself
    inside: dict[str, list[tuple[str, Any]]] = {}
    for name, kind in names.items():
        outer, dot, inner = name.partition(".")
        if dot:
            inside.setdefault(outer, []).append((inner, kind))
        else:
            here.append((name, kind))
    place = {name: f"f{number}" for number, (name, _) in enumerate(here)}
    fields: list[tuple[str, Any, Any]] = [(place[name], kind, None) for name, kind in here]
    attributes = dict(place)
    guards = []
    for outer, inners in inside.items():
        inner_type = _struct(
            "Inner", [(f"f{i}", kind, None) for i, (_, kind) in enumerate(inners)], [n for n, _ in inners]
        )
        at = place[outer] = f"f{len(place)}"
        fields.append((at, inner_type, inner_type()))
        for number, (inner, _) in enumerate(inners):
            attributes[f"{outer}.{inner}"] = f"{at}.f{number}"
            guard = place[f"{outer}.{inner}"] = f"f{len(place)}"
            fields.append((guard, Any | msgspec.UnsetType, msgspec.UNSET))
            guards.append(guard)
    return _Shape(_struct("Event", fields, list(place)), attributes, guards)


def _struct(name: str, fields: list[tuple[str, Any, Any]], names: list[str]) -> type[msgspec.Struct]:
    """A class whose attributes are read from JSON fields with any names."""
    rename = {attribute: field for (attribute, *_), field in zip(fields, names, strict=True)}
    return msgspec.defstruct(name, fields, rename=rename, frozen=True, gc=False)


def _number_column(get: Callable[[Any], Any], events: list[Any]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    try:
        return np.fromiter(map(get, events), np.float64, len(events))  # raises at None
    except TypeError:
        return np.array(list(map(get, events)), np.float64)  # None becomes NaN


def _key_column(values: list[Any]) -> list[bytes | None] | None:
    """The texts of the keys; None where one is missing."""
    kinds = set(map(type, values))
    if int in kinds:
        values = [_digits(value) if type(value) is int else value for value in values]
        kinds = kinds - {int} | _TEXT
    if kinds != _TEXT:
        return None
    return list(map(str.encode, canonical_texts(values)))


def _digits(value: int) -> str:
    if not INT_MIN <= value < INT_LIMIT:
        raise ValueError("an integer beyond 64 bits")
    return str(value)
