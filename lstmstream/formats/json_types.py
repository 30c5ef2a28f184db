"""The names of JSON's types, for messages."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import NoneType
from typing import Any

_OTHER_NAMES = {  # of tables and of Python
    bytes: "binary value", Decimal: "number", date: "date", datetime: "date and time", time: "time of day",
    timedelta: "duration", NoneType: "null",
}  # fmt: skip
_NAMES = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}


def json_type(value: Any) -> str:
    """`boolean`, `number`, `string`, `array`, `object` or `null`; a word for what JSON does not have."""
    kind = type(value)
    return _NAMES.get(kind) or _OTHER_NAMES.get(kind) or kind.__name__


def a_json_type(value: Any) -> str:
    """The same with its article; `null` has none."""
    name = json_type(value)
    if name == "null":
        return name
    return f"an {name}" if name[0] in "aeioAEIO" else f"a {name}"
