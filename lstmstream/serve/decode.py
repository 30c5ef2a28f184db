"""Bytes to columns. A record that cannot be decoded becomes a dead letter and never spoils its neighbours.

The fast path is whole columns with one type check each; only where a check fails are single records looked at,
to say exactly what is wrong with each. Knows the model card and the input's settings, nothing of state or Kafka.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import NoneType
from typing import Any
from zlib import crc32

import numpy as np
import orjson

from lstmstream.errors import BadRecord
from lstmstream.model import Card, Feature
from lstmstream.serve.records import Columns, DeadLetter, Floats, Ints, RecordBatch

TIMESTAMP_MIN_MS = -62_135_596_800_000  # 0001-01-01T00:00:00.000Z
TIMESTAMP_MAX_MS = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z
SECONDS_BELOW = 1e11  # a smaller number is seconds, a larger one milliseconds
EXACT_INTEGER_MAX = 2**53  # beyond it a producer that uses doubles has rounded already

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_NUMBER = {float, int, NoneType}

Document = dict[str, Any]
Getter = Callable[[Document], Any]


class Decoder:
    """Turns a RecordBatch into Columns and dead letters. Holds no data between calls."""

    def __init__(
        self,
        card: Card,
        *,
        key: str | None = None,
        timestamp: str | None = None,
        output_key: str | None = None,
        include: Sequence[str] = (),
        max_bytes: int = 10_000_000,
    ) -> None:
        """`key`, `timestamp` and `output_key` name event fields (dots for nested ones); None takes the record's own."""
        self._numbers = [(f.name, _getter(f.name)) for f in card.numbers]
        self._categories = [(f.name, _getter(f.name), _coder(f)) for f in card.categories]
        self._key = None if key is None else (key, _getter(key))
        self._timestamp = None if timestamp is None else (timestamp, _getter(timestamp))
        self._output_key = None if output_key is None else (output_key, _getter(output_key))
        self._include = [(orjson.dumps(name), _getter(name)) for name in include]
        self._max_bytes = max_bytes

    def decode(self, records: RecordBatch) -> tuple[Columns, list[DeadLetter]]:
        """Columns of the M good records, and a dead letter for each of the other N - M, by index."""
        found = _Rejects()
        docs = self._parse(records, found)
        keys = records.keys if self._key is None else self._field_keys(self._key, docs, found)
        output_keys = None if self._output_key is None else self._field_keys(self._output_key, docs, found)
        timestamps = self._timestamps(records, docs, found)
        x = self._x(docs, found)
        categories = self._codes(docs, found)
        included = self._included(docs, found) if self._include else None
        columns = Columns(
            np.arange(len(records), dtype=np.int64),
            records.partitions,
            records.offsets,
            keys,
            timestamps,
            x,
            categories,
            included,
            output_keys,
        )
        if not found.by_index:
            return columns, []
        good = np.ones(len(records), dtype=np.bool_)
        good[list(found.by_index)] = False
        return columns.take(np.flatnonzero(good)), [found.by_index[i] for i in sorted(found.by_index)]

    def _parse(self, records: RecordBatch, found: _Rejects) -> list[Document]:
        """One JSON object for each record; an empty one stands where there is none."""
        docs: list[Document] = []
        loads, append, limit = orjson.loads, docs.append, self._max_bytes
        for i, (value, key) in enumerate(zip(records.values, records.keys, strict=True)):
            if value is not None and len(value) + len(key or b"") > limit:
                size = len(value) + len(key or b"")
                message = f"key and value have {size} bytes, more than input.max_bytes = {limit}"
                found.by_index[i] = DeadLetter(i, "decode", message, keep_value=False)
                append({})
                continue
            try:
                doc = loads(value)  # type: ignore[arg-type]  # a null value raises, and is explained below
                if type(doc) is not dict:
                    raise BadRecord("decode", f"the value is a JSON {_json_type(doc)}, not an object")
            except orjson.JSONDecodeError as error:
                try:
                    doc = _parse_exactly(value, error)
                except BadRecord as bad:
                    found.add(i, bad)
                    doc = {}
            except BadRecord as bad:
                found.add(i, bad)
                doc = {}
            append(doc)
        return docs

    def _field_keys(self, field: tuple[str, Getter], docs: list[Document], found: _Rejects) -> list[bytes | None]:
        name, get = field
        texts = _each(docs, found, lambda doc: _key_text(get(doc), name), default="")
        return [text.encode() for text in texts]

    def _timestamps(self, records: RecordBatch, docs: list[Document], found: _Rejects) -> Ints:
        if self._timestamp is not None:
            name, get = self._timestamp
            return np.array(_each(docs, found, lambda doc: timestamp_ms(get(doc), name), default=0), np.int64)
        timestamps = records.timestamps
        for i in np.flatnonzero((timestamps < 0) | (timestamps > TIMESTAMP_MAX_MS)).tolist():
            wrong = "has no timestamp (-1)" if timestamps[i] == -1 else "has a timestamp outside years 1970..9999"
            found.add(i, BadRecord("validate", f"the record {wrong}"))
        return timestamps

    def _x(self, docs: list[Document], found: _Rejects) -> Floats:
        wide = np.empty((len(docs), len(self._numbers)), dtype=np.float64)
        for column, (name, get) in enumerate(self._numbers):
            values = list(map(get, docs))
            if not _NUMBER.issuperset(map(type, values)):
                values = _each(docs, found, lambda doc, get=get, name=name: _number(get(doc), name), default=None)  # type: ignore[misc]
            wide[:, column] = np.array(values, dtype=np.float64)  # None becomes NaN: missing
        with np.errstate(over="ignore"):
            x = wide.astype(np.float32)
        infinite = np.isinf(x)
        if infinite.any():
            for i, column in np.argwhere(infinite).tolist():
                name = self._numbers[column][0]
                found.add(i, BadRecord("validate", f"field {name!r} is not finite in float32"))
        return x

    def _codes(self, docs: list[Document], found: _Rejects) -> Ints:
        codes = np.zeros((len(docs), len(self._categories)), dtype=np.int64)
        for column, (name, get, code) in enumerate(self._categories):
            values = list(map(get, docs))
            if not {str, NoneType}.issuperset(map(type, values)):
                values = _each(docs, found, lambda doc, get=get, name=name: _category(get(doc), name), default=None)  # type: ignore[misc]
            codes[:, column] = [0 if text is None else code(text) for text in values]
        return codes

    def _included(self, docs: list[Document], found: _Rejects) -> list[bytes]:
        return _each(docs, found, self._include_one, default=b"{}")

    def _include_one(self, doc: Document) -> bytes:
        parts = []
        for name, get in self._include:
            value = get(doc)
            if value is None and not _present(doc, orjson.loads(name)):
                continue
            try:
                parts.append(name + b":" + _dump_finite(value))
            except (ValueError, TypeError, RecursionError) as error:
                message = f"field {orjson.loads(name)!r} cannot be carried along: it is not finite or nested too deeply"
                raise BadRecord("validate", message) from error
        return b"{" + b",".join(parts) + b"}"


class _Rejects:
    """The first fault found of each bad record, by its index in the batch."""

    def __init__(self) -> None:
        self.by_index: dict[int, DeadLetter] = {}

    def add(self, index: int, bad: BadRecord) -> None:
        self.by_index.setdefault(index, DeadLetter(index, bad.stage, str(bad)))


def _each(docs: Iterable[Document], found: _Rejects, read: Callable[[Document], Any], *, default: Any) -> list[Any]:
    """`read` of every document; where it raises BadRecord, the default and a dead letter."""
    values = []
    for i, doc in enumerate(docs):
        try:
            values.append(read(doc))
        except BadRecord as bad:
            found.add(i, bad)
            values.append(default)
    return values


def _getter(path: str) -> Getter:
    """Reads a field; a path through something that is no object finds nothing (None)."""
    if "." not in path:
        return lambda doc: doc.get(path)
    *outer, last = path.split(".")

    def get(doc: Document) -> Any:
        here: Any = doc
        for name in outer:
            here = here.get(name)
            if type(here) is not dict:
                return None
        return here.get(last)

    return get


def _present(doc: Document, path: str) -> bool:
    """Whether the field is there at all; a null counts."""
    here: Any = doc
    for name in path.split("."):
        if type(here) is not dict or name not in here:
            return False
        here = here[name]
    return True


def _coder(feature: Feature) -> Callable[[str], int]:
    """Text to the feature's integer; 0 is unknown."""
    if feature.buckets is not None:
        buckets = feature.buckets
        return lambda text: 1 + crc32(text.encode()) % buckets
    codes = {text: i for i, text in enumerate(feature.vocabulary or (), start=1)}
    return lambda text: codes.get(text, 0)


def _parse_exactly(value: bytes | None, error: orjson.JSONDecodeError) -> Document:
    """A second, slower look at what the strict parser refused: 1e400 in a field that nobody reads does no harm.

    Raises BadRecord, stage `decode`, for everything that is not a UTF-8 JSON object.
    """
    if value is None:
        raise BadRecord("decode", "the value is null")
    if "infinity" not in error.msg:
        raise BadRecord("decode", f"the value is not UTF-8 JSON: {error.msg} at character {error.pos}") from error
    try:
        doc = _EXACT.decode(value.decode())
        _UNICODE.encode(doc).encode()  # lone surrogates, which the strict parser refuses too
    except (ValueError, RecursionError) as second:
        raise BadRecord("decode", f"the value is not UTF-8 JSON: {type(second).__name__}") from second
    if type(doc) is not dict:
        raise BadRecord("decode", f"the value is a JSON {_json_type(doc)}, not an object")
    return doc


def _parse_int(digits: str) -> int | float:
    """As the strict parser does it: what 64 bits cannot hold is a float."""
    value = int(digits) if len(digits) <= 20 else 2**64
    return value if -(2**63) <= value < 2**64 else float(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_EXACT = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_parse_int)
_UNICODE = json.JSONEncoder(ensure_ascii=False)


def _dump_finite(value: Any) -> bytes:
    """JSON text of an event's field. Raises ValueError for an infinite number, TypeError for too many levels."""
    text = orjson.dumps(value)
    if b"null" in text:  # orjson writes an infinite number as null
        json.dumps(value, allow_nan=False)
    return text


def _number(value: Any, name: str) -> Any:
    if type(value) not in _NUMBER:
        raise BadRecord("validate", f"field {name!r} is a {_json_type(value)}, not a number")
    return value


def _category(value: Any, name: str) -> str | None:
    if value is None or type(value) is str:
        return value
    return _integer_text(value, name)


def _key_text(value: Any, name: str) -> str:
    if value is None:
        raise BadRecord("validate", f"field {name!r}, the key, is missing")
    return value if type(value) is str else _integer_text(value, name)


def _integer_text(value: Any, name: str) -> str:
    if type(value) is not int:
        raise BadRecord("validate", f"field {name!r} is a {_json_type(value)}, neither a string nor an integer")
    if abs(value) > EXACT_INTEGER_MAX:
        raise BadRecord("validate", f"field {name!r} is an integer beyond 2^53; send such an id as a string")
    return str(value)


def timestamp_ms(value: Any, name: str) -> int:
    """Milliseconds since 1970 UTC of ISO 8601 text or a number of seconds or milliseconds; finer parts are cut off.

    Raises BadRecord, stage `validate`.
    """
    if type(value) is str:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as error:
            raise BadRecord("validate", f"field {name!r} is not an ISO 8601 time") from error
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        ms = (moment - _EPOCH) // _MILLISECOND
    elif type(value) is int:
        ms = value * 1000 if abs(value) < SECONDS_BELOW else value
    elif type(value) is float and abs(value) < float("inf"):
        ms = _seconds_to_ms(value) if abs(value) < SECONDS_BELOW else int(value)
    elif value is None:
        raise BadRecord("validate", f"field {name!r}, the timestamp, is missing")
    else:
        raise BadRecord("validate", f"field {name!r} is a {_json_type(value)}, not a time")
    if not TIMESTAMP_MIN_MS <= ms <= TIMESTAMP_MAX_MS:
        raise BadRecord("validate", f"field {name!r} lies outside years 1..9999")
    return ms


def _seconds_to_ms(seconds: float) -> int:
    """Whole milliseconds of the number as it was written: 1.001 s is 1001 ms, though 1.001 * 1000 < 1001 in binary."""
    return int(Decimal(repr(seconds)) * 1000)


def _json_type(value: Any) -> str:
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")
