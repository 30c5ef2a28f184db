"""What the value of a training option may look like, beyond config/values.py: times, places in a topic, short forms."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from lstmstream.config.values import Float32, Whole
from lstmstream.errors import BadRecord
from lstmstream.serve.decode import timestamp_ms


def named(value: object) -> object:
    """`amount` is short for `{name: amount}`."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    return (
        [{"name": entry} if isinstance(entry, str) else entry for entry in value] if isinstance(value, list) else value
    )


def text_list(value: object) -> object:
    """One text is short for a list of one."""
    return [value] if isinstance(value, str) else value


def _iso_time(value: object) -> object:
    """ISO 8601; without quotes, YAML has made a date of it."""
    value = value.isoformat() if isinstance(value, date) else value
    try:
        timestamp_ms(value if isinstance(value, str) else None, "")
    except BadRecord:
        raise ValueError("is not an ISO 8601 time; write 2026-01-31 or 2026-01-31T12:00Z") from None
    return value


def _place(value: object) -> object:
    """In a topic."""
    if isinstance(value, bool) or not isinstance(value, str | int | date):
        raise ValueError("is neither earliest, latest, an offset nor an ISO 8601 time; write one of these")  # noqa: TRY004 -- pydantic's way
    return value.isoformat() if isinstance(value, date) else value


def _weights(value: object) -> object:
    many = isinstance(value, list) and all(type(one) in {int, float} and 0 < one < math.inf for one in value)
    if not many and value not in ("none", "balanced"):
        raise ValueError("must be none, balanced, or a list of positive numbers, one for each class")
    return [float(one) for one in value] if isinstance(value, list) else value


def moment(ms: int) -> str:
    """Milliseconds since 1970 as ISO 8601, UTC."""
    return (
        datetime.fromtimestamp(ms / 1000, UTC)
        .isoformat(timespec="milliseconds" if ms % 1000 else "seconds")
        .replace("+00:00", "Z")
    )


Real = Float32
Share = Annotated[Real, Field(ge=0, lt=1)]
Count = Annotated[Whole, Field(ge=1)]
Moment = Annotated[str, BeforeValidator(_iso_time)]
Place = Annotated[str | int, PlainValidator(_place)]
Weights = Annotated[Literal["none", "balanced"] | list[float], PlainValidator(_weights)]
