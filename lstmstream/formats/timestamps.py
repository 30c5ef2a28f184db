"""Event times: text or numbers to milliseconds since 1970 UTC, and back to ISO 8601."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from math import isfinite
from typing import Any

from lstmstream.errors import BadRecord
from lstmstream.formats.json_types import a_json_type

TIMESTAMP_MIN_MS = -62_135_596_800_000  # 0001-01-01T00:00:00.000Z
TIMESTAMP_MAX_MS = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z
SECONDS_BELOW = 10**11  # a smaller number is seconds, a larger one milliseconds
MICROSECONDS_FROM, NANOSECONDS_FROM = TIMESTAMP_MAX_MS + 1, 10**17  # of today 1.8e15 and 1.8e18

# numbers that are dates if their digits are: YYYYMMDD, and the same with HHMM, HHMMSS and milliseconds
DATES_FROM = 19_000_101
DATES_8 = (DATES_FROM, 21_001_231)
_LONG_DATES = (
    (190_001_010_000, 210_012_312_359),
    (19_000_101_000_000, 21_001_231_235_959),
    (19_000_101_000_000_000, 21_001_231_235_959_999),
)
DATE_RANGES = (DATES_8, *_LONG_DATES)
NOT_A_DATE = -(2**63) + 1  # "milliseconds" of a number in one of these ranges whose digits are not a date
_WITH_SECONDS = _LONG_DATES[1]  # YYYYMMDDHHMMSS, which may have a fraction

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_MISSING = {"", "nan"}  # as a CSV file may write it
_MAX_DIGITS = 400
_HUGE = Decimal(10**30)
_EXACT = Context(prec=2 * _MAX_DIGITS)
# a date, and T or a space before a time: fromisoformat takes any sign there, as in 20260105-0812
_ISO = re.compile(r"(?:[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{8}|[0-9]{4}-?W[0-9]{2}(?:-?[1-7])?)(?:[Tt ].+)?", re.DOTALL)

_TIME_FOLLOWS = {"T", "t", " "}
_YEAR_1971_MS = 31_536_000_000
_YEAR_MS = 365 * 86_400_000  # ahead of now, as input.max_future has it
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def timestamp_ms(value: Any, name: str) -> int:
    """Milliseconds since 1970 UTC of ISO 8601 text or a number; what is finer than a millisecond is cut off.

    Text that spells a number is that number. The digits of a calendar date from 1900 to 2100 are that date: YYYYMMDD,
    YYYYMMDDHHMM, YYYYMMDDHHMMSS, and the last with milliseconds or a fraction. What only looks like one, such as
    20260230, is refused: a column of dates must not have seconds of 1970 among them. Any other number below 1e11 is
    seconds, else milliseconds. `name` is the field, for the message. Raises BadRecord, stage `validate`.
    """
    kind = type(value)
    if kind is int:
        ms = epoch_ms(value)
    elif kind is str:
        ms = _text_ms(value, name)
    elif kind is float and isfinite(value):
        ms = epoch_ms(int(value)) if value.is_integer() else _fraction_ms(Decimal(repr(value)))
    elif kind is Decimal and value.is_finite():
        ms = _exact_ms(value)
    elif kind is bytes:  # of a binary column
        ms = _text_ms(value.decode(errors="replace"), name)
    elif value is None or value != value:  # noqa: PLR0124 -- NaN
        raise BadRecord("validate", f"field {name!r}, the timestamp, is missing")
    elif kind is float or kind is Decimal:
        raise BadRecord("validate", f"field {name!r} is an infinite number, not a time")
    else:
        raise BadRecord("validate", f"field {name!r} is {a_json_type(value)}, not a time")
    if not TIMESTAMP_MIN_MS <= ms <= TIMESTAMP_MAX_MS:
        raise BadRecord("validate", f"field {name!r} {outside_years(ms)}")
    return ms


def spells_number(text: str) -> bool:
    """Whether text is read as a number, and not as ISO 8601."""
    return len(text) < _MAX_DIGITS and _NUMBER.fullmatch(text.strip()) is not None


def epoch_ms(number: int) -> int:
    """Milliseconds of a whole number: a date in digits, else seconds or milliseconds. Not checked for its bounds.

    NOT_A_DATE where the digits look like a date and are none.
    """
    if number >= DATES_FROM:
        if number < SECONDS_BELOW:  # the usual case is seconds, of more digits than YYYYMMDD
            return number * 1000 if number > DATES_8[1] else _date_ms(number)
        if any(first <= number <= last for first, last in _LONG_DATES):
            return _date_ms(number)
        return number
    return number * 1000 if number > -SECONDS_BELOW else number


def outside_years(ms: int) -> str:
    """Why a time is refused, as the end of a message."""
    if ms == NOT_A_DATE:
        return "looks like a date from 1900 to 2100, but is not a valid one; write the time as ISO 8601"
    size = abs(ms)
    if MICROSECONDS_FROM <= size < NANOSECONDS_FROM:
        hint = "; it looks like microseconds; divide by 1000"
    elif NANOSECONDS_FROM <= size < 1e20:
        hint = "; it looks like nanoseconds; divide by 1000000"
    else:
        hint = ""
    return f"lies outside years 1..9999{hint}"


def _date_ms(number: int) -> int:
    """Milliseconds of YYYYMMDD and what may follow; NOT_A_DATE where it is not a date and a time of day."""
    text = str(number).ljust(17, "0")
    year, month, day, hour, minute, second = (
        int(text[start:end]) for start, end in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 14))
    )
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return NOT_A_DATE
    return (moment - _EPOCH) // _MILLISECOND + int(text[14:])


def _text_ms(text: str, name: str) -> int:
    if text[4:5] == "-" and text[10:11] in _TIME_FOLLOWS:  # the usual form, without a closer look
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return _any_text_ms(text.strip(), name)
        return ((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)) - _EPOCH) // _MILLISECOND
    return _any_text_ms(text.strip(), name)


def _any_text_ms(text: str, name: str) -> int:
    if spells_number(text):
        return _exact_ms(Decimal(text))
    if text.lower() in _MISSING:
        raise BadRecord("validate", f"field {name!r}, the timestamp, is missing")
    try:
        if not _ISO.fullmatch(text):
            raise ValueError(text)
        moment = datetime.fromisoformat(text.replace("z", "Z"))  # RFC 3339 has both
    except ValueError as error:
        raise BadRecord(
            "validate", f"field {name!r} is not an ISO 8601 time such as 2026-01-31T12:00:00Z, nor a number"
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MILLISECOND


def _exact_ms(number: Decimal) -> int:
    """Milliseconds of the number as it was written: 1.001 s is 1001 ms, though 1.001 * 1000 < 1001 in binary."""
    if number.copy_abs() >= _HUGE:
        return int(_HUGE) if number > 0 else -int(_HUGE)
    if number == number.to_integral_value():
        return epoch_ms(int(number))
    return _fraction_ms(number)


def _fraction_ms(number: Decimal) -> int:
    """As `_exact_ms`, for a number that is not whole."""
    if number >= DATES_FROM and any(first <= int(number) <= last for first, last in DATE_RANGES):
        whole = int(number)
        if not _WITH_SECONDS[0] <= whole <= _WITH_SECONDS[1] or (ms := _date_ms(whole)) == NOT_A_DATE:
            return NOT_A_DATE
        return ms + int(_EXACT.multiply(_EXACT.subtract(number, whole), 1000))
    return int(_EXACT.multiply(number, 1000) if number.copy_abs() < SECONDS_BELOW else number)


def format_iso(ms: int) -> str:
    """Milliseconds since 1970 UTC as ISO 8601 with Z; milliseconds are written only where there are any."""
    timespec = "milliseconds" if ms % 1000 else "seconds"
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def unlikely_times(name: str, latest_ms: int, now_ms: float) -> str | None:
    """A sentence for data whose latest time says that a unit or a value is a mistake; None where it is plausible."""
    if latest_ms < _YEAR_1971_MS:
        return (
            f"all times of {name!r} lie before 1971 (latest: {format_iso(latest_ms)}); numbers are read"
            " as seconds below 1e11, else as milliseconds: is the unit a different one?"
        )
    if latest_ms > now_ms + _YEAR_MS:
        return (
            f"the latest time of {name!r} is {format_iso(latest_ms)}, more than a year from now: is it a placeholder,"
            " or another unit? A daemon refuses such events (input.max_future)"
        )
    return None
