"""Lengths of time as a person writes them."""

from __future__ import annotations

_YEAR_D = 365.25


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
