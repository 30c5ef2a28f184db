"""What a value means as a number, and as the text of a key, a category, a label or a split.

These functions are the definition, for events of Kafka, JSONL, CSV and Parquet alike (docs/semantics.md, "Values").
What reads whole columns at a time is a faster form of them. Times are in `lstmstream.formats.timestamps`.
Every function raises BadRecord, stage `validate`, with the field's name and never with the value.
"""

from __future__ import annotations

import math
import re
from datetime import date, datetime
from decimal import Decimal
from types import NoneType
from typing import Any, Literal

from lstmstream.errors import BadRecord
from lstmstream.formats.json_types import a_json_type

Role = Literal["key", "category", "label", "split"]

EXACT_DOUBLE_MAX = 2**53  # a double beyond it may have been another integer before it was rounded
INT_MIN, INT_LIMIT = -(2**63), 2**64  # integers of 64 bits, signed or unsigned

NUMBER_TYPES = {float, int, NoneType}
TEXT_TYPES = {str, NoneType}

_BOOLEANS = dict.fromkeys(("true", "True", "TRUE"), "true") | dict.fromkeys(("false", "False", "FALSE"), "false")
_LABELS = {"true": "1", "false": "0"}
_WHOLE = re.compile(r"[+-]?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][+-]?[0-9]{1,3})?")
_CELL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?inf(?:inity)?|[+-]?nan", re.IGNORECASE)


def number(value: Any, name: str) -> Any:
    """The number, or None where it is missing."""
    if type(value) not in NUMBER_TYPES:
        remedy = "; declare it as a category, or send 0 and 1" if type(value) is bool else ""
        raise BadRecord("validate", f"field {name!r} is {a_json_type(value)}, not a number{remedy}")
    return value


def number_array(value: Any, name: str, size: int) -> list[Any]:
    """The `size` numbers of an array, each None where it is null; all of them None where the array is missing."""
    if value is None:
        return [None] * size
    if type(value) is not list:
        raise BadRecord("validate", f"field {name!r} is {a_json_type(value)}, not an array of {size} numbers")
    if len(value) != size:
        raise BadRecord("validate", f"field {name!r} is an array of {len(value)}, not of {size} numbers")
    if not NUMBER_TYPES.issuperset(map(type, value)):
        wrong = next(element for element in value if type(element) not in NUMBER_TYPES)
        raise BadRecord("validate", f"field {name!r} holds {a_json_type(wrong)}, not {size} numbers")
    return value


def cell_number(cell: str) -> float | None:
    """The number that a cell of CSV spells, with or without spaces around it; None where it spells none."""
    text = cell.strip()
    return float(text) if _CELL.fullmatch(text) else None


def canonical_text(text: str) -> str:
    """The text itself, but `17` for `17.0` and `true` for `True`.

    A file without types, such as CSV, spells integers and booleans in these ways, and a table should mean the same in
    every format. Codes such as `007`, `1e5` and `+5` are not touched.
    """
    boolean = _BOOLEANS.get(text)
    if boolean is not None:
        return boolean
    if "." not in text or not _WHOLE.fullmatch(text):
        return text
    exact = Decimal(text)
    whole = exact.copy_abs() <= EXACT_DOUBLE_MAX and exact == exact.to_integral_value()
    return str(int(exact)) if whole else text


def canonical_texts(texts: list[str]) -> list[str]:
    """`canonical_text` of each."""
    if "." not in "\n".join(texts) and _BOOLEANS.keys().isdisjoint(texts):
        return texts
    return list(map(canonical_text, texts))


def text_of(value: Any, name: str, role: Role) -> str | None:
    """The text of a key, category, label or split; None where it is missing."""
    kind = type(value)
    if kind is str:
        text = canonical_text(value)
    elif value is None or (kind is float and math.isnan(value)):
        return None
    elif kind is bool and role != "key":
        text = "true" if value else "false"
    elif kind is int:
        if not INT_MIN <= value < INT_LIMIT:
            raise BadRecord("validate", f"field {name!r} is {BEYOND_64_BITS}")
        text = str(value)
    elif kind is float:
        if not (value.is_integer() and abs(value) <= EXACT_DOUBLE_MAX):
            raise BadRecord("validate", f"field {name!r} is {_not_whole(value)}")
        text = str(int(value))
    elif kind is Decimal:
        return text_of(_whole_decimal(value, name), name, role)
    elif kind is bytes:
        text = canonical_text(decode_bytes(value, name))
    elif isinstance(value, date) and not isinstance(value, datetime):
        text = value.isoformat()
    else:
        raise BadRecord("validate", f"field {name!r} is {a_json_type(value)}, {_allowed(role)}")
    return _LABELS.get(text, text) if role == "label" else text


def key_text(value: Any, name: str) -> str:
    """The text of a key taken from a field. A missing key is refused."""
    text = text_of(value, name, "key")
    if text is None:
        raise BadRecord("validate", f"field {name!r}, the key, is missing")
    return text


def category_text(value: Any, name: str) -> str | None:
    """The text of a category, or None where it is missing."""
    return text_of(value, name, "category")


def label_text(text: str) -> str:
    """The text of a label that is given as text: `1` for `1.0` and for `True`."""
    text = canonical_text(text)
    return _LABELS.get(text, text)


def decode_bytes(value: bytes, name: str) -> str:
    """The text of a binary column."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise BadRecord("validate", f"field {name!r} is {NOT_UTF8}") from error


BEYOND_64_BITS = "an integer beyond 64 bits; send such an id as a string"
NOT_UTF8 = "bytes that are not UTF-8; write it as text"


def _not_whole(value: float) -> str:
    if math.isfinite(value) and value.is_integer():  # a JSON parser makes a double of an integer of more than 64 bits
        size = "an integer beyond 64 bits, or a" if abs(value) >= -INT_MIN else "a"
        return f"{size} number with a fraction or exponent beyond 2^53; send such an id as a string"
    return "a number that is not whole; send it as a string, or use the field as a number"


def _whole_decimal(value: Decimal, name: str) -> int | None:
    if value.is_nan():
        return None
    if not value.is_finite() or value != value.to_integral_value():
        raise BadRecord("validate", f"field {name!r} is {_not_whole(math.nan)}")
    return int(value) if value.copy_abs() < INT_LIMIT else INT_LIMIT


def _allowed(role: Role) -> str:
    if role == "key":
        return "neither a string nor an integer"
    return "neither a string, an integer nor a boolean"
