"""JSON objects and the values in them: numbers, categories and keys, each with one rule for what it may be.

Every function raises BadRecord with the field's name; nothing is rounded, guessed or converted in silence.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Callable
from types import NoneType
from typing import Any

import orjson

from lstmstream.errors import BadRecord
from lstmstream.formats.framing import describe_bytes
from lstmstream.formats.json_types import json_type

EXACT_INTEGER_MAX = 2**53  # beyond it a producer that uses doubles has rounded already

Document = dict[str, Any]
Getter = Callable[[Document], Any]

NUMBER_TYPES = {float, int, NoneType}


def parse_document(value: bytes | None) -> Document:
    """The JSON object in the value. Raises BadRecord, stage `decode`, for all that is not a UTF-8 JSON object."""
    document = _parse(value)
    if type(document) is not dict:
        raise BadRecord("decode", f"the value is a JSON {json_type(document)}, not an object")
    return document


def _parse(value: bytes | None) -> Any:
    if value is not None and value.startswith(BOM_UTF8):  # once, not by recursion
        value = value[len(BOM_UTF8) :]
    try:
        return orjson.loads(value)  # type: ignore[arg-type]  # a null value raises too
    except orjson.JSONDecodeError as error:
        return _parse_exactly(value, error)


def _parse_exactly(value: bytes | None, error: orjson.JSONDecodeError) -> Any:
    """A second, slower look at what the strict parser refused: 1e400 in a field that nobody reads does no harm."""
    if value is None:
        raise BadRecord("decode", "the value is null")
    if "infinity" not in error.msg:
        if (found := describe_bytes(value)) is not None:
            raise BadRecord("decode", f"the value is not UTF-8 JSON: it looks like {found}") from error
        raise BadRecord("decode", f"the value is not UTF-8 JSON: {error.msg} at character {error.pos}") from error
    try:
        document = _EXACT.decode(value.decode())
        _UNICODE.encode(document).encode()  # lone surrogates, which the strict parser refuses too
    except (ValueError, RecursionError) as second:
        raise BadRecord("decode", f"the value is not UTF-8 JSON: {type(second).__name__}") from second
    return document


def _parse_int(digits: str) -> int | float:
    """As the strict parser does it: what 64 bits cannot hold is a float."""
    value = int(digits) if len(digits) <= 20 else 2**64
    return value if -(2**63) <= value < 2**64 else float(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_EXACT = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_parse_int)
_UNICODE = json.JSONEncoder(ensure_ascii=False)


def field_getter(path: str) -> Getter:
    """Reads a field, dots leading into nested objects; a path through something that is no object gives None."""
    if "." not in path:
        return lambda document: document.get(path)
    *outer, last = path.split(".")

    def get(document: Document) -> Any:
        here: Any = document
        for name in outer:
            here = here.get(name)
            if type(here) is not dict:
                return None
        return here.get(last)

    return get


def has_field(document: Document, path: str) -> bool:
    """Whether the field is there at all; a null counts."""
    here: Any = document
    for name in path.split("."):
        if type(here) is not dict or name not in here:
            return False
        here = here[name]
    return True


def dump_finite(value: Any) -> bytes:
    """JSON text of an event's field. Raises ValueError for an infinite number, TypeError for too many levels."""
    text = orjson.dumps(value)
    if b"null" in text:  # orjson writes an infinite number as null
        json.dumps(value, allow_nan=False)
    return text


def number(value: Any, name: str) -> Any:
    """The number, or None where it is missing."""
    if type(value) not in NUMBER_TYPES:
        raise BadRecord("validate", f"field {name!r} is a {json_type(value)}, not a number")
    return value


def number_array(value: Any, name: str, size: int) -> list[Any]:
    """The `size` numbers of an array, each None where it is null; all of them None where the array is missing."""
    if value is None:
        return [None] * size
    if type(value) is not list:
        raise BadRecord("validate", f"field {name!r} is a {json_type(value)}, not an array of {size} numbers")
    if len(value) != size:
        raise BadRecord("validate", f"field {name!r} is an array of {len(value)}, not of {size} numbers")
    return [number(element, name) for element in value]


def category(value: Any, name: str) -> str | None:
    """The category's text, or None where it is missing."""
    if value is None or type(value) is str:
        return value
    return _integer_text(value, name)


def key_text(value: Any, name: str) -> str:
    """The text of a key taken from a field."""
    if value is None:
        raise BadRecord("validate", f"field {name!r}, the key, is missing")
    return value if type(value) is str else _integer_text(value, name)


def _integer_text(value: Any, name: str) -> str:
    if type(value) is not int:
        raise BadRecord("validate", f"field {name!r} is a {json_type(value)}, neither a string nor an integer")
    if abs(value) > EXACT_INTEGER_MAX:
        raise BadRecord("validate", f"field {name!r} is an integer beyond 2^53; send such an id as a string")
    return str(value)
