"""Lengths of time as a person writes them."""

from __future__ import annotations

import re

_YEAR_D = 365.25
_SHORT = re.compile(r"(\d+)(ms|s|m|h|d)")
_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


def format_duration(seconds: float) -> str:
    """The length of time in the largest unit of which there are at least one and a half, two of years.

    For example "45 s", "12 min", "5.3 h", "36 days", "199 years".
    """
    if seconds < 90:
        return _in_unit(seconds, "s")
    if seconds < 90 * 60:
        return _in_unit(seconds / 60, "min")
    if seconds < 36 * 3600:
        return _in_unit(seconds / 3600, "h")
    days = seconds / 86_400
    return _in_unit(days, "days") if days < 2 * _YEAR_D else _in_unit(days / _YEAR_D, "years")


def _in_unit(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if value < 100 else f"{value:,.0f} {unit}"


def short_duration(seconds: float) -> str:
    """The exact length of time, to the millisecond, in the largest unit that divides it, as options are written: 7d."""
    milliseconds = round(seconds * 1000)
    unit = next(unit for unit, size in _UNITS_MS.items() if milliseconds % size == 0)
    return f"{milliseconds // _UNITS_MS[unit]}{unit}"


def parse_short_duration(text: str) -> float:
    """The seconds of a text that `short_duration` wrote. Raises ValueError for another one."""
    match = _SHORT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration in one unit")
    return int(match[1]) * _UNITS_MS[match[2]] / 1000
