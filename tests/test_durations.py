"""Lengths of time as a person writes them."""

from __future__ import annotations

import re

import pytest

from lstmstream.formats.durations import format_duration, parse_short_duration, short_duration

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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.001, "1ms"), (1.5, "1500ms"), (45, "45s"), (90, "90s"), (3600, "1h"), (86_400 * 7, "7d"), (3.1536e9, "36500d")],
)
def test_the_exact_duration_in_one_unit(seconds: float, text: str) -> None:
    assert short_duration(seconds) == text
    assert parse_short_duration(text) == seconds


@pytest.mark.parametrize("text", ["7", "d", "7y", "1h30m", "1.5s"])
def test_another_text_is_no_short_duration(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        parse_short_duration(text)
