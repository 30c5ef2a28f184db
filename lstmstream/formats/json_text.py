"""Values of Avro and Protobuf as JSON text, with the meaning that they have in a Parquet file (docs/semantics.md).

A moment is ISO 8601, a decimal keeps its digits, NaN is null and so missing, infinity stays infinite and is refused
where a number is read. Bytes are text where they are UTF-8, else base64.
"""

from __future__ import annotations

from base64 import b64encode
from decimal import Decimal
from math import isinf
from typing import Any

import orjson

from lstmstream.errors import BadRecord

_MAX_EXPONENT = 400  # a decimal beyond it is as infinite as any double
_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_SUBCLASS


def json_text(value: Any) -> bytes:
    """Raises BadRecord, stage `decode`, for what JSON cannot say."""
    try:
        text = orjson.dumps(value, default=_other, option=_OPTIONS)
        if b"null" in text and _has_infinity(value):  # orjson writes an infinite number as null, which is missing
            text = orjson.dumps(_with_infinities(value), default=_other, option=_OPTIONS)
    except (TypeError, RecursionError) as error:  # a lone surrogate, or too many levels
        raise BadRecord("decode", f"the record cannot be written as JSON: {type(error).__name__}") from error
    return text


def _other(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return b64encode(value).decode()
    if isinstance(value, Decimal):
        return _digits(value)
    raise TypeError(f"a value of the type {type(value).__name__}")


def _digits(value: Decimal) -> Any:
    if value.is_nan():
        return None
    if not value.is_finite() or value.adjusted() > _MAX_EXPONENT:
        return _infinite(value > 0)
    return orjson.Fragment(format(value, "f")) if value.adjusted() >= -_MAX_EXPONENT else 0


def _infinite(positive: bool) -> orjson.Fragment:  # noqa: FBT001 - the sign
    return orjson.Fragment(b"1e400" if positive else b"-1e400")


def _has_infinity(value: Any) -> bool:
    if type(value) is float:
        return isinf(value)
    if type(value) is dict:
        return any(map(_has_infinity, value.values()))
    return type(value) is list and any(map(_has_infinity, value))


def _with_infinities(value: Any) -> Any:
    if type(value) is float and isinf(value):
        return _infinite(value > 0)
    if type(value) is dict:
        return {name: _with_infinities(inner) for name, inner in value.items()}
    return [_with_infinities(inner) for inner in value] if type(value) is list else value
