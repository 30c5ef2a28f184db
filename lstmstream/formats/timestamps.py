"""Event times: text or numbers to milliseconds since 1970 UTC, and back to ISO 8601."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

from lstmstream.errors import BadRecord
from lstmstream.formats.json_types import json_type
from lstmstream.records import Ints

TIMESTAMP_MIN_MS = -62_135_596_800_000  # 0001-01-01T00:00:00.000Z
TIMESTAMP_MAX_MS = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z
SECONDS_BELOW = 1e11  # a smaller number is seconds, a larger one milliseconds

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def timestamp_ms(value: Any, name: str) -> int:
    """Milliseconds since 1970 UTC of ISO 8601 text or a number of seconds or milliseconds; finer parts are cut off.

    `name` is the field, for the message. Raises BadRecord, stage `validate`.
    """
    if type(value) is str:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as error:
            raise BadRecord("validate", f"field {name!r} is not an ISO 8601 time") from error
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        ms = (moment - _EPOCH) // _MILLISECOND
    elif type(value) is int:
        ms = value * 1000 if abs(value) < SECONDS_BELOW else value
    elif type(value) is float and abs(value) < float("inf"):
        ms = _seconds_to_ms(value) if abs(value) < SECONDS_BELOW else int(value)
    elif value is None:
        raise BadRecord("validate", f"field {name!r}, the timestamp, is missing")
    else:
        raise BadRecord("validate", f"field {name!r} is a {json_type(value)}, not a time")
    if not TIMESTAMP_MIN_MS <= ms <= TIMESTAMP_MAX_MS:
        raise BadRecord("validate", f"field {name!r} lies outside years 1..9999")
    return ms


def iso_texts(timestamps_ms: Ints) -> list[bytes]:
    """ISO 8601 in milliseconds, UTC, without the closing Z, of each of [N] times."""
    texts = np.datetime_as_string(timestamps_ms.astype("datetime64[ms]"), unit="ms")
    return texts.astype(np.bytes_).tolist()  # type: ignore[no-any-return]


def format_iso(ms: int) -> str:
    """Milliseconds since 1970 UTC as ISO 8601 with Z; milliseconds are written only where there are any."""
    timespec = "milliseconds" if ms % 1000 else "seconds"
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def _seconds_to_ms(seconds: float) -> int:
    """Whole milliseconds of the number as it was written: 1.001 s is 1001 ms, though 1.001 * 1000 < 1001 in binary."""
    return int(Decimal(repr(seconds)) * 1000)
