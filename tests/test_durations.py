"""Lengths of time as a person writes them."""

from __future__ import annotations

import pytest

from lstmstream.formats.durations import format_duration

DAY_S = 86_400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.25, "0.25 s"),
        (45.4, "45.4 s"),
        (90, "1.5 min"),
        (12 * 60, "12 min"),
        (5.3 * 3600, "5.3 h"),
        (36 * 3600, "1.5 days"),
        (365 * DAY_S + 0.001, "365 days"),
        (729.6 * DAY_S, "730 days"),
        (72_800 * DAY_S, "199 years"),
        (2_900_000 * DAY_S, "7,940 years"),
    ],
)
def test_a_length_of_time_is_in_a_unit_that_fits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
