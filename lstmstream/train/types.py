"""Types of training options beyond those of `lstmstream.config.types`: times, positions in a topic, short forms."""

from __future__ import annotations

import math
from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from lstmstream.config.types import Duration, Float32, StrictInt, Written
from lstmstream.errors import BadRecord
from lstmstream.formats.timestamps import spells_number, timestamp_ms


def expand_names(value: object) -> object:
    """Expand the short form of a list of sections: `amount` is short for `{name: amount}`, `a, b` for two of them."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    return (
        [{"name": entry} if isinstance(entry, str) else entry for entry in value] if isinstance(value, list) else value
    )


def as_list(value: object) -> object:
    """Expand the short form of a list: a single text is short for a list of one."""
    return [value] if isinstance(value, str) else value


def _windows(value: object) -> object:
    """Expand the short form: `7d` is short for a list of one, `1d, 7d` for two of them."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _distinct_windows(value: list[float]) -> list[float]:
    if len(value) > MAX_WINDOWS:
        raise ValueError(f"has {len(value)} windows; list {MAX_WINDOWS} at most")
    if not all(window > 0 for window in value):
        raise ValueError("has a window of 0; write durations such as 1d")
    if len(set(value)) < len(value):
        raise ValueError("has a window twice; list each once")
    return value


def _is_epoch(text: str) -> bool:
    """Whether the text is a number and no date. An option with a number in quotes is more likely an offset."""
    return spells_number(text) and len(text) != len("20260131")


def _iso_time(value: object) -> object:
    """Check that the value is an ISO 8601 time. YAML has already parsed a date without quotes."""
    value = value.isoformat() if isinstance(value, date) else value
    try:
        if isinstance(value, str) and _is_epoch(value):
            raise ValueError(value)
        timestamp_ms(value if isinstance(value, str) else None, "")
    except (BadRecord, ValueError):
        raise ValueError("is not an ISO 8601 time; write 2026-01-31 or 2026-01-31T12:00Z") from None
    return value


def _log_position(value: object) -> object:
    """Check that the value is a position in a topic: `earliest`, `latest`, an offset or an ISO 8601 time."""
    if (
        isinstance(value, bool)
        or not isinstance(value, str | int | date)
        or (isinstance(value, str) and _is_epoch(value))
    ):
        raise ValueError("must be earliest, latest, an offset or an ISO 8601 time; write one of these")
    return value.isoformat() if isinstance(value, date) else value


def _class_weights(value: object) -> object:
    is_list = isinstance(value, list) and all(type(one) in {int, float} and 0 < one < math.inf for one in value)
    if not is_list and value not in ("none", "balanced"):
        raise ValueError("must be none, balanced, or a list of positive numbers, one for each class")
    return [float(one) for one in value] if isinstance(value, list) else value


MAX_WINDOWS = 16  # of one number
Float = Float32
Fraction = Annotated[Float, Field(ge=0, lt=1)]
Count = Annotated[StrictInt, Field(ge=1)]
IsoTime = Annotated[str, BeforeValidator(_iso_time)]
LogPosition = Annotated[str | int, PlainValidator(_log_position), Written({"type": ["string", "integer"]})]
Windows = Annotated[list[Duration], BeforeValidator(_windows), AfterValidator(_distinct_windows)]
_WEIGHTS = {
    "anyOf": [{"enum": ["none", "balanced"]}, {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}}]
}
ClassWeights = Annotated[Literal["none", "balanced"] | list[float], PlainValidator(_class_weights), Written(_WEIGHTS)]
