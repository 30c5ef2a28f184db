"""JSON objects: bytes to documents, and the values at the end of a field's name."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable
from typing import Any

import orjson

from lstmstream.errors import BadRecord
from lstmstream.formats.framing import describe_bytes
from lstmstream.formats.json_types import json_type

Document = dict[str, Any]
Getter = Callable[[Document], Any]


class _Absent:
    """Neither a value nor null."""


ABSENT = _Absent()
ONE_VALUE = (  # advice for a file whose only event is refused
    "the file holds one JSON value; write one object per event and line, or an array of them (pandas:"
    " to_json(orient='records', lines=True))"
)


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
        raise BadRecord("decode", f"the value is not UTF-8 JSON: {_what_is_wrong(value, error)}") from error
    try:
        document = _EXACT.decode(value.decode())
        _UNICODE.encode(document).encode()  # lone surrogates, which the strict parser refuses too
    except (ValueError, RecursionError) as second:
        raise BadRecord("decode", f"the value is not UTF-8 JSON: {type(second).__name__}") from second
    return document


def _what_is_wrong(value: bytes, error: orjson.JSONDecodeError) -> str:
    """The parser's reason, and what programs write that takes Python's or JavaScript's objects for JSON."""
    rest = value.decode()[error.pos :]
    written = next((word for word in _NOT_JSON if rest.startswith(word)), None)
    hint = "" if written is None else f" ({_NOT_JSON[written]})"
    return f"{error.msg} at character {error.pos}{hint}"


_NOT_JSON = {
    **dict.fromkeys(("NaN", "nan"), "NaN is not JSON; write null"),
    **dict.fromkeys(("Infinity", "-Infinity", "inf"), "infinity is not JSON; write null"),
    "None": "None is not JSON; write null",
    **dict.fromkeys(("True", "False"), "JSON has true and false in lower case"),
    "'": "JSON strings have double quotes",
}


def _parse_int(digits: str) -> int | float:
    """As the strict parser does it: what 64 bits cannot hold is a float."""
    value = int(digits) if len(digits) <= 20 else 2**64
    return value if -(2**63) <= value < 2**64 else float(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_EXACT = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_parse_int)
_UNICODE = json.JSONEncoder(ensure_ascii=False)


def may_be_a_table(value: bytes) -> bool:
    """Whether a value that is not an event may hold many: an array, or an object of arrays or objects."""
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError:
        return False
    inner = document.values() if type(document) is dict else ()
    return type(document) is list or any(type(part) in _NESTED for part in inner)


def field_getter(path: str) -> Getter:
    """Reads a field: the name as it is, else its dots lead into nested objects; None where there is nothing."""
    if "." not in path:
        return lambda document: document.get(path)

    outer, inner = path.split(".", 1)
    if "." in inner:
        return lambda document: None if (found := locate(document, path)) is ABSENT else found

    def get(document: Document) -> Any:  # `locate`, for the usual depth
        if path in document:
            return document[path]
        here = document.get(outer)
        return here.get(inner) if type(here) is dict else None

    return get


def locate(document: Document, path: str) -> Any:
    """The value of a field, ABSENT where it is not there at all.

    Names may have dots on every level: the longest name that leads to the end counts.
    """
    if path in document:
        return document[path]
    end = path.rfind(".")
    while end > 0:
        inner = document.get(path[:end])
        if type(inner) is dict and (found := locate(inner, path[end + 1 :])) is not ABSENT:
            return found
        end = path.rfind(".", 0, end)
    return ABSENT


def dump_finite(value: Any) -> bytes:
    """JSON text of an event's field. Raises ValueError for an infinite number, TypeError for too many levels."""
    text = orjson.dumps(value)
    if b"null" in text:  # orjson writes an infinite number as null
        json.dumps(value, allow_nan=False, default=lambda _digits: 0)  # raises for one
    return text


def may_be_rounded(value: Any, text: bytes) -> bool:
    """Whether a parsed value may hold a double in place of an integer beyond 64 bits. `text` is the whole document."""
    if type(value) is float:
        return abs(value) >= _INT_MAX
    return type(value) in _NESTED and _LONG_DIGITS.search(text) is not None


def parse_digits(text: bytes) -> Document:
    """A document that has been parsed before, each integer beyond 64 bits as it is written (an orjson.Fragment)."""
    return _DIGITS.decode(text.decode())  # type: ignore[no-any-return]


def _keep_digits(digits: str) -> int | orjson.Fragment:
    value = _parse_int(digits)
    return value if type(value) is int else orjson.Fragment(digits)


_INT_MAX = 2**63
_NESTED = {dict, list}
_LONG_DIGITS = re.compile(rb"[0-9]{19}")
_DIGITS = json.JSONDecoder(parse_int=_keep_digits)
