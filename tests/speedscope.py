"""The rules of speedscope's file format, as its schema has them: https://www.speedscope.app/file-format-schema.json."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

UNITS = {"bytes", "microseconds", "milliseconds", "nanoseconds", "none", "seconds"}


def check_speedscope(profile: dict[str, Any]) -> None:
    """An AssertionError at the first rule that is broken."""
    assert profile["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert set(profile) <= {"$schema", "name", "exporter", "activeProfileIndex", "shared", "profiles"}
    assert isinstance(profile["name"], str)
    assert isinstance(profile["exporter"], str)
    frames = profile["shared"]["frames"]
    for frame in frames:
        assert set(frame) <= {"name", "file", "line", "col"}
        assert isinstance(frame["name"], str)
        assert isinstance(frame.get("file", ""), str)
        assert type(frame.get("line", 1)) is int
    assert profile["activeProfileIndex"] in range(max(1, len(profile["profiles"])))
    for one in profile["profiles"]:
        assert set(one) == {"type", "name", "unit", "startValue", "endValue", "samples", "weights"}
        assert one["type"] == "sampled"
        assert isinstance(one["name"], str)
        assert one["unit"] in UNITS
        assert len(one["samples"]) == len(one["weights"]) > 0
        assert all(type(number) is int and 0 <= number < len(frames) for stack in one["samples"] for number in stack)
        assert all(weight >= 0 for weight in one["weights"])
        assert one["endValue"] - one["startValue"] == pytest.approx(sum(one["weights"]))


def seconds_in(profile: dict[str, Any], thread: str) -> Counter[str]:
    """Seconds of each function of a thread, those that it calls included."""
    names = [frame["name"] for frame in profile["shared"]["frames"]]
    seconds: Counter[str] = Counter()
    for one in profile["profiles"]:
        if one["name"] == thread:
            for stack, weight in zip(one["samples"], one["weights"], strict=True):
                for name in {names[number] for number in stack}:
                    seconds[name] += weight
    return seconds
