"""The names of JSON's types, for messages."""

from __future__ import annotations

from typing import Any

_NAMES = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}


def json_type(value: Any) -> str:
    """`boolean`, `number`, `string`, `array`, `object` or `null`."""
    return _NAMES.get(type(value), "null")


def a_json_type(value: Any) -> str:
    """The same with its article; `null` has none."""
    name = json_type(value)
    if name == "null":
        return name
    return f"an {name}" if name[0] in "ao" else f"a {name}"
