"""What a JSON event and its values mean, written a second time from docs/semantics.md ("Reading", "Values").

The engine has definitions of its own in lstmstream/formats and lstmstream/serve; neither knows the other.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import orjson

MIN_MS, MAX_MS = -62_135_596_800_000, 253_402_300_799_999  # the years 1 to 9999
_LARGEST_FLOAT32 = float(2**128 - 2**103)  # from here on a number rounds to infinity
_MAX_DEPTH = 1024  # of objects and arrays in an event
_MAX_CARRIED_DEPTH = 254  # of a field that is copied into a prediction
_MAX_INT_DIGITS = 4000  # what Python's int takes is a little more
_EXACT_DOUBLE = 2**53

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BOM = b"\xef\xbb\xbf"
_BOOLEANS = {"true": "true", "True": "true", "TRUE": "true", "false": "false", "False": "false", "FALSE": "false"}
_WHOLE_WITH_POINT = re.compile(r"[+-]?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_ISO = re.compile(r"(?:\d{4}-\d\d-\d\d|\d{8}|\d{4}-?W\d\d(?:-?[1-7])?)(?:[Tt ].+)?", re.ASCII | re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_DATE_DIGITS = (8, 12, 14, 17)  # YYYYMMDD, then HHMM, SS and milliseconds


class Refused(Exception):
    """The event is a dead letter."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


class TooLarge(Refused):
    """The same, and its dead letter has no value."""

    def __init__(self) -> None:
        super().__init__("decode")


class Absent:
    """Neither a value nor null."""


ABSENT = Absent()


class LongInteger(float):
    """An integer of thousands of digits, as it was written."""

    digits: str


def _integer(digits: str) -> int | LongInteger:
    if len(digits) < _MAX_INT_DIGITS:
        return int(digits)
    found = LongInteger(digits)
    found.digits = digits
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode
_decode_long = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_integer).decode


def read_object(value: bytes | None) -> dict[str, Any]:
    """The JSON object of a record's value. Raises Refused."""
    if value is None:
        raise Refused("decode")
    try:
        text = value.removeprefix(_BOM).decode("utf-8")
        if "\\u" in text and _has_half_surrogate(text):
            raise Refused("decode")
        try:
            found = _decode(text)
        except (RecursionError, ValueError):
            found = _decode_slowly(text)
    except (ValueError, RecursionError):
        raise Refused("decode") from None
    if type(found) is not dict:
        raise Refused("decode")
    return found


def _decode_slowly(text: str) -> Any:
    """With integers of any length, and as deep as an event may be."""
    if _depth(text) > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 4 * _MAX_DEPTH)
    try:
        return _decode_long(text)
    finally:
        sys.setrecursionlimit(limit)


def _depth(text: str) -> int:
    deepest = depth = 0
    for sign in re.sub(r'"(?:[^"\\]|\\.)*"', "", text, flags=re.DOTALL):
        if sign in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in "]}":
            depth -= 1
    return deepest


def _has_half_surrogate(text: str) -> bool:
    """Whether an escape is half of a surrogate pair: no character, and no text of UTF-8."""
    return _SURROGATE.search(_SURROGATE_PAIR.sub("", text.replace("\\\\", ""))) is not None


def find(fields: Any, path: str) -> Any:
    """The field of this name; else the longest part before a dot that leads to an object with the rest."""
    if type(fields) is not dict:
        return ABSENT
    if path in fields:
        return fields[path]
    at = path.rfind(".")
    while at > 0:
        found = find(fields.get(path[:at]), path[at + 1 :])
        if found is not ABSENT:
            return found
        at = path.rfind(".", 0, at)
    return ABSENT


def read_number(value: Any) -> float:
    """A number that is finite in float32; NaN where it is missing. Raises Refused."""
    if value is None or value is ABSENT:
        return float("nan")
    if type(value) not in (int, float, LongInteger):
        raise Refused("validate")
    try:
        number = float(value)
    except OverflowError:
        raise Refused("validate") from None
    if not -_LARGEST_FLOAT32 < number < _LARGEST_FLOAT32:
        raise Refused("validate")
    return number


def read_numbers(value: Any, size: int) -> list[float]:
    """The numbers of an array of this size. Raises Refused."""
    if value is None or value is ABSENT:
        return [float("nan")] * size
    if type(value) is not list or len(value) != size:
        raise Refused("validate")
    return [read_number(one) for one in value]


def canonical(text: str) -> str:
    """`17` for `17.0` and `true` for `True`; any other text is itself."""
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if "." not in text or not _WHOLE_WITH_POINT.fullmatch(text):
        return text
    number = Fraction(text)
    return str(number.numerator) if number.denominator == 1 and abs(number) <= _EXACT_DOUBLE else text


def _text(value: Any) -> str:
    if type(value) is str:
        return canonical(value)
    if type(value) is int and -(2**63) <= value < 2**64:
        return str(value)
    if type(value) is float and abs(value) <= _EXACT_DOUBLE and value == int(value):
        return str(int(value))
    raise Refused("validate")


def read_category(value: Any) -> str | None:
    """The text of a category, None where it is missing. Raises Refused."""
    if value is None or value is ABSENT:
        return None
    if type(value) is bool:
        return "true" if value else "false"
    return _text(value)


def read_key(value: Any) -> bytes:
    """The key that a field gives. Raises Refused."""
    return _text(value).encode()


def read_time(value: Any) -> int:
    """Milliseconds since 1970 UTC of a time in a field. Raises Refused."""
    if type(value) is str:
        ms = _ms_of_text(value.strip())
    elif type(value) is int:
        ms = _ms_of_number(Fraction(value)) if abs(value) < 10**30 else MAX_MS + 1
    elif type(value) is float and abs(value) < 1e30:
        ms = _ms_of_number(Fraction(repr(value)))
    else:
        raise Refused("validate")
    if not MIN_MS <= ms <= MAX_MS:
        raise Refused("validate")
    return ms


def _ms_of_text(text: str) -> int:
    if len(text) < 400 and _NUMBER.fullmatch(text):
        return _ms_of_number(Fraction(text))
    if not _ISO.fullmatch(text):
        raise Refused("validate")
    try:
        moment = datetime.fromisoformat(text.replace("z", "Z"))
    except ValueError:
        raise Refused("validate") from None
    return _since_1970(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _ms_of_number(number: Fraction) -> int:
    """The digits of a date are that date; else seconds below 1e11, and milliseconds from there on."""
    whole, fraction = divmod(number, 1)
    digits = str(whole)
    if len(digits) in _DATE_DIGITS and _is_in_date_range(digits):
        if fraction and len(digits) != 14:
            raise Refused("validate")
        try:
            padded = digits.ljust(17, "0")
            year, *rest = padded[:4], *(padded[at : at + 2] for at in range(4, 14, 2))
            month, day, hour, minute, second = map(int, rest)
            moment = datetime(int(year), month, day, hour, minute, second, int(padded[14:]) * 1000, UTC)
        except ValueError:
            raise Refused("validate") from None
        return _since_1970(moment) + int(fraction * 1000)
    return int(number * 1000) if abs(number) < 10**11 else int(number)


def _is_in_date_range(digits: str) -> bool:
    """Whether the digits lie between the first moment of 1900 and the last of 2100."""
    first, last = "19000101".ljust(len(digits), "0"), "21001231235959999"[: len(digits)]
    return digits.isdecimal() and first <= digits <= last


def _since_1970(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def iso_text(ms: int) -> str:
    """The time as predictions have it."""
    return (datetime(1970, 1, 1) + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds") + "Z"


def carried_text(value: Any) -> bytes | None:
    """The JSON text of a field that a prediction carries along; None where it cannot be written."""
    try:
        _check_writable(value, 0)
        try:
            return orjson.dumps(value)
        except TypeError:  # an integer beyond 64 bits
            return _written(value)
    except ValueError:
        return None


def _check_writable(value: Any, depth: int) -> None:
    if depth > _MAX_CARRIED_DEPTH:
        raise ValueError("nested too deeply")
    if type(value) is float and not abs(value) < float("inf"):
        raise ValueError("not finite")
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            _check_writable(one, depth + 1)


def _written(value: Any) -> bytes:
    if isinstance(value, LongInteger):
        return value.digits.encode()
    if type(value) is int:
        return b"%d" % value
    if isinstance(value, Mapping):
        return b"{%b}" % b",".join(orjson.dumps(name) + b":" + _written(one) for name, one in value.items())
    if isinstance(value, list):
        return b"[%b]" % b",".join(map(_written, value))
    return orjson.dumps(value)
