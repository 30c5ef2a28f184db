"""Columns of ISO 8601 times to milliseconds since 1970 UTC and back, in a few array operations for all of them.

Days to dates and back by the algorithms of H. Hinnant, "chrono-compatible low-level date algorithms".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lstmstream.records import Ints

# YYYY-MM-DDTHH:MM:SS, with a fraction of three or six digits, with Z or without: the length tells which.
_FRACTION_DIGITS = {19: 0, 20: 0, 23: 3, 24: 3, 26: 6, 27: 6}
_SEPARATORS = ((4, b"-"), (7, b"-"), (13, b":"), (16, b":"))
_DIGITS = ((0, 4), (5, 7), (8, 10), (11, 13), (14, 16), (17, 19))
_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
_ZERO = ord("0")
_TEMPLATE = b"0000-00-00T00:00:00.000"


def iso_column_ms(texts: list[str]) -> Ints | None:  # noqa: PLR0911 - one for each way to be another form
    """[N] milliseconds since 1970 UTC; None where they are not all of one usual form, or one is no valid time."""
    length = len(texts[0])
    fraction_digits = _FRACTION_DIGITS.get(length)
    if fraction_digits is None or set(map(len, texts)) != {length}:
        return None
    joined = "".join(texts)
    if not joined.isascii():
        return None
    characters = np.frombuffer(joined.encode(), np.uint8).reshape(len(texts), length)
    separators = [*_SEPARATORS, *([(19, b".")] if fraction_digits else [])]
    if length in (20, 24, 27):
        separators.append((length - 1, b"Z"))
    if any((characters[:, at] != ord(sign)).any() for at, sign in separators):
        return None
    between = characters[:, 10]
    if not ((between == ord("T")) | (between == ord(" "))).all():
        return None
    fields = [*_DIGITS, *([(20, 20 + fraction_digits)] if fraction_digits else [])]
    numbers = [_number(characters[:, start:end]) for start, end in fields]
    if any(number is None for number in numbers):
        return None
    year, month, day, hour, minute, second, *rest = (number for number in numbers if number is not None)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    valid = (year >= 1) & (month >= 1) & (month <= 12) & (hour < 24) & (minute < 60) & (second < 60)
    if not valid.all() or not ((day >= 1) & (day <= _DAYS[month] + (leap & (month == 2)))).all():
        return None
    shifted = year - (month <= 2)  # a year that begins in March
    era = shifted // 400
    of_era = shifted - era * 400
    day_of_year = (153 * (month + np.where(month > 2, -3, 9)) + 2) // 5 + day - 1
    days = era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + day_of_year - 719_468
    ms = ((days * 24 + hour) * 60 + minute) * 60_000 + second * 1000
    if rest:
        ms += rest[0] if fraction_digits == 3 else rest[0] // 1000
    return ms  # type: ignore[no-any-return]


def iso_texts(timestamps_ms: Ints) -> list[bytes]:
    """ISO 8601 in milliseconds, UTC, without the closing Z, of each of [N] times in the years 1 to 9999."""
    days, of_day_ms = np.divmod(timestamps_ms, 86_400_000)
    days = days + 719_468  # since 0000-03-01
    era, day_of_era = np.divmod(days, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month = (5 * day_of_year + 2) // 153  # 0 is March
    day = day_of_year - (153 * month + 2) // 5 + 1
    month = np.where(month < 10, month + 3, month - 9)
    year = year_of_era + era * 400 + (month <= 2)
    seconds, ms = np.divmod(of_day_ms, 1000)
    minutes, second = np.divmod(seconds, 60)
    hour, minute = np.divmod(minutes, 60)
    texts = np.empty((len(timestamps_ms), len(_TEMPLATE)), np.uint8)
    texts[:] = np.frombuffer(_TEMPLATE, np.uint8)
    for number, (start, end) in zip((year, month, day, hour, minute, second, ms), (*_DIGITS, (20, 23)), strict=True):
        rest = number.astype(np.int32)
        for column in range(end - 1, start - 1, -1):
            rest, digit = np.divmod(rest, 10)
            texts[:, column] += digit.astype(np.uint8)
    return texts.view(f"S{len(_TEMPLATE)}")[:, 0].tolist()  # type: ignore[no-any-return]


def _number(characters: NDArray[np.uint8]) -> Ints | None:
    """[N] of [N, digits]; None where one is no digit."""
    digits = characters - np.uint8(_ZERO)  # what is below wraps around
    if (digits > 9).any():
        return None
    number = digits[:, 0].astype(np.int64)
    for column in range(1, digits.shape[1]):
        number = number * 10 + digits[:, column]
    return number
