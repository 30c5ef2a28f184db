"""Python, numpy and pandas values to the JSON event that is decoded, by the role of each field.

What JSON has no type for goes through the functions of `lstmstream.formats.values` and `timestamps`, so that bytes,
dates and Decimals mean what they mean in a Parquet file. Needs neither polars nor pandas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from math import isfinite, isnan
from typing import Any, Literal
from uuid import UUID

import numpy as np
import orjson

from lstmstream.errors import BadRecord
from lstmstream.formats.field_roles import FieldRoles
from lstmstream.formats.iso_columns import iso_texts
from lstmstream.formats.json_documents import ABSENT, Document, locate
from lstmstream.formats.timestamps import TIMESTAMP_MAX_MS, TIMESTAMP_MIN_MS, outside_years, timestamp_ms
from lstmstream.formats.values import INT_LIMIT, INT_MIN, number, text_of

ValueRole = Literal["key", "category", "number", "array", "time"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_MAX_EXPONENT = 400  # a Decimal beyond it is as infinite as any double
_PLAIN = {str, int, float, bool, type(None)}  # what Python's JSON has


def roles_by_field(roles: FieldRoles) -> list[tuple[str, ValueRole]]:
    """Each field once per role; `passthrough` has no role and is left out."""
    pairs: list[tuple[ValueRole, tuple[str, ...]]] = [  # a number that is a key too is written as a number
        ("number", roles.numbers), ("array", roles.arrays), ("time", roles.times), ("key", roles.keys),
        ("category", roles.categories),
    ]  # fmt: skip
    return [(name, role) for role, names in pairs for name in names]


def document(row: Mapping[Any, Any], *, nested: bool) -> Document:
    """A row with names that are strings; `nested`: and so are the objects in it."""
    if nested:
        return {
            str(name): document(value, nested=True) if isinstance(value, Mapping) else value
            for name, value in row.items()
        }
    if type(row) is dict and {str}.issuperset(map(type, row)):
        return row
    return {str(name): value for name, value in row.items()}


def json_event(row: Document, fields: list[tuple[str, ValueRole]]) -> bytes:
    """The wanted fields of a row as a JSON object, each under its whole name; other fields are not looked at.

    None, NaN, NaT and NA are missing. Raises BadRecord, stage `validate` or `decode`, for a value that its role refuses
    and that JSON has no type for; other faults are left to the decoder.
    """
    event: dict[str, Any] = {}
    for name, role in fields:
        value = row.get(name, ABSENT)
        if value is ABSENT and (value := locate(row, name)) is ABSENT:
            continue
        value = _plain(value)
        if value is not None and name not in event:
            event[name] = _json_value(value, name, role)
    try:
        return orjson.dumps(event)
    except TypeError as error:  # a lone surrogate, or too many levels
        raise BadRecord("decode", f"the row cannot be written as JSON: {error}") from error


def _plain(value: Any) -> Any:
    """The value of a numpy scalar or array, or of another array; None for what is missing."""
    kind = type(value)
    if kind in _PLAIN:
        return None if kind is float and isnan(value) else value
    for kinds, convert in _CONVERSIONS:
        if isinstance(value, kinds):
            return convert(value)
    if callable(getattr(value, "tolist", None)):  # arrays of numpy, columns of polars and pandas, tensors
        return _plain(value.tolist())
    return None if _is_missing(value) else value


def _is_missing(value: Any) -> bool:
    """NaT, and pandas' NA, which compares with nothing."""
    try:
        return bool(value != value)  # noqa: PLR0124
    except (TypeError, ValueError):
        return True


_CONVERSIONS: list[tuple[Any, Callable[[Any], Any]]] = [  # the first that fits
    (np.datetime64 | np.timedelta64, lambda value: None if np.isnat(value) else value),
    (np.floating, lambda value: _plain(float(value))),
    (np.generic, lambda value: _plain(value.item())),
    (bytearray | memoryview, bytes),
    (Enum, lambda value: _plain(value.value)),
    (UUID, str),
    (str, str.__str__),  # of a subclass, as those below
    (int, int),
    (float, lambda value: _plain(float(value))),
    (Mapping, lambda value: {str(name): _plain(inner) for name, inner in value.items()}),
    (list | tuple, lambda value: [_plain(inner) for inner in value]),
    (Decimal, lambda value: None if value.is_nan() else value),
    (date, lambda value: value if value == value else None),  # noqa: PLR0124 -- NaT is a datetime to Python
]


def _json_value(value: Any, name: str, role: ValueRole) -> Any:
    kind = type(value)
    if kind is str or kind is bool:
        return value
    if (kind is int and INT_MIN <= value < INT_LIMIT) or (kind is float and isfinite(value)):
        return value
    if role == "time":
        return _time_text(value, name)
    if role in ("key", "category"):
        return text_of(value, name, role)
    return _json_number(value, name)


def _json_number(value: Any, name: str) -> Any:
    """A number with all its digits, or an array of such; the decoder refuses what is of another JSON type."""
    kind = type(value)
    if kind is float:
        return value if isfinite(value) else _infinite(value)
    if kind is int:
        return value if INT_MIN <= value < INT_LIMIT else orjson.Fragment(str(value))
    if kind is Decimal:
        if not value.is_finite() or value.adjusted() > _MAX_EXPONENT:
            return _infinite(value)
        return orjson.Fragment(format(value, "f"))
    if kind is list:
        return [_json_number(inner, name) for inner in value]
    return value if kind in {str, bool, dict, type(None)} else number(value, name)


def _infinite(value: Any) -> orjson.Fragment:
    return orjson.Fragment("1e400" if value > 0 else "-1e400")  # orjson would write null, which is missing


def _time_text(value: Any, name: str) -> str:
    """ISO 8601 of a moment or a date, in UTC where it has no zone."""
    if isinstance(value, np.datetime64):
        ms = int(value.astype("datetime64[ms]").astype(np.int64))
    elif isinstance(value, datetime):
        moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        ms = int((moment - _EPOCH) // _MILLISECOND)
    elif isinstance(value, date):
        ms = int(np.datetime64(value, "ms").astype(np.int64))
    else:
        ms = timestamp_ms(value, name)
    if not TIMESTAMP_MIN_MS <= ms <= TIMESTAMP_MAX_MS:
        raise BadRecord("validate", f"field {name!r} {outside_years(ms)}")
    return iso_texts(np.array([ms], np.int64))[0].decode() + "Z"
