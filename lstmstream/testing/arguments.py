"""What a test gives to `TestDriver`, checked: a mistake in a test must not look like a daemon that does nothing."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_OPEN_LABELS = {"topic", "partition"}  # whose values come and go; those of others are known from the start


def record_value(value: Any) -> bytes | None:
    """The bytes of an event or of a record's value. Raises TypeError."""
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, bytearray):
        return bytes(value)
    if not isinstance(value, Mapping):
        raise TypeError(f"a value is a mapping, bytes or None, not {_type(value)}; of JSON text pipe text.encode()")
    try:
        return orjson.dumps(dict(value), default=_json_value, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise TypeError(
            f"the event cannot be written as JSON: {error}; pipe the bytes of the record's value"
        ) from error


def record_key(key: Any) -> bytes | None:
    """The bytes of a record key. Raises TypeError."""
    if key is None or isinstance(key, bytes):
        return key
    if isinstance(key, str):
        return key.encode()
    raise TypeError(f"a record key is text, bytes or None, not {_type(key)}; {key!r} as text is {str(key)!r}")


def record_time(timestamp: Any) -> int | None:
    """The milliseconds of a record's time. A datetime without a zone is in UTC, as in an event. Raises TypeError."""
    if isinstance(timestamp, datetime):
        moment = timestamp if timestamp.tzinfo is not None else timestamp.replace(tzinfo=UTC)
        return int(moment.timestamp() * 1000)
    if timestamp is None:
        return None
    try:
        return operator.index(timestamp)
    except TypeError:
        raise TypeError(
            f"a record's timestamp is a datetime, or whole milliseconds since 1970, not {_type(timestamp)}"
        ) from None


def record_headers(headers: Any) -> list[tuple[str, bytes | None]]:
    """The headers of a record. Raises TypeError."""
    if headers is None:
        return []
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers are a mapping of names to bytes, not {_type(headers)}")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, bytes | None):
            raise TypeError(f"header {name!r}: {value!r}: its name is text, and its value bytes or None")
    return list(headers.items())


def checked_partition(partition: int, count: int, topic: str) -> int:
    """The partition. Raises ValueError where the topic does not have it."""
    if not 0 <= partition < count:
        raise ValueError(f"partition {partition}: topic {topic!r} has the partitions 0 to {count - 1}")
    return partition


def checked_seconds(seconds: float) -> float:
    """The time that is to pass. Raises ValueError for a time that does not: the clock never goes back."""
    if not (isfinite(seconds) and seconds >= 0):
        raise ValueError(f"advance({seconds}): time passes by a number of seconds, 0 or more")
    return seconds


def metric_value(registry: CollectorRegistry, name: str, labels: Mapping[str, str]) -> float:
    """The value of a metric, 0 for a topic or partition that it was never counted for.

    Raises ValueError for a metric or labels that the daemon does not have: 0 would be taken for its value.
    """
    found = registry.get_sample_value(name, dict(labels))
    if found is not None:
        return found
    families = list(registry.collect())
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    if not samples:
        empty = {family.name for family in families if not family.samples}  # those of partitions that are not there yet
        if name.removesuffix("_total") in empty:
            return 0.0
        close = difflib.get_close_matches(name, {sample.name for family in families for sample in family.samples}, 3)
        raise ValueError(f"there is no metric {name!r}" + (f"; did you mean {' or '.join(close)}?" if close else ""))
    if not any(sample.labels.keys() == labels.keys() for sample in samples):
        given = " or ".join(sorted({_labels(sample.labels) for sample in samples})[:5])
        raise ValueError(f"metric {name} has other labels: {given or 'none'}")
    for label in labels.keys() - _OPEN_LABELS:
        known = sorted({sample.labels[label] for sample in samples})
        if labels[label] not in known:
            raise ValueError(f"metric {name} has no {label}={labels[label]!r}; there are {', '.join(known)}")
    return 0.0


def _json_value(value: Any) -> Any:
    """What orjson does not know."""
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(format(value, "f"))
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a value is of type {type(value).__name__}")


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in labels.items())


def _type(value: Any) -> str:
    return f"of type {type(value).__name__}"
