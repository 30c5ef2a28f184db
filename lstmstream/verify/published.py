"""Which event a published record names, read back from predictions and dead letters; how two predictions differ."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from lstmstream.records import Headers

# A quotation mark within a string has a backslash before it, so this is found nowhere but where it stands.
_SOURCE = re.compile(rb'"source":\{"topic":("(?:[^"\\]|\\.)*"),"partition":(\d{1,10}),"offset":(\d{1,19})\}')
_ERRORS = "__streams.errors."


class Source(NamedTuple):
    """An event of an input topic."""

    topic: str
    partition: int
    offset: int


def prediction_source(value: bytes | None) -> Source | None:
    """None where the record is not a prediction."""
    if value is None:
        return None
    found = _SOURCE.search(value)
    try:
        if found is not None:
            return Source(orjson.loads(found[1]), int(found[2]), int(found[3]))
        source = orjson.loads(value)["source"]
        return Source(str(source["topic"]), int(source["partition"]), int(source["offset"]))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None


class DeadLetterHeaders(NamedTuple):
    """What a dead letter says in its headers."""

    source: Source
    stage: str
    timestamp: str | None  # of the input's record, where the dead letter has another one
    others: Headers  # the record's own


def dead_letter_headers(headers: Headers) -> DeadLetterHeaders | None:
    """None where the record is not a dead letter of this program. Its headers come last."""
    count = 7 if headers and headers[-1][0] == "lstmstream.timestamp" else 6
    own = {name: (value or b"").decode("utf-8", "replace") for name, value in headers[-count:]}
    others = list(headers[:-count])
    try:
        source = Source(own[f"{_ERRORS}topic"], int(own[f"{_ERRORS}partition"]), int(own[f"{_ERRORS}offset"]))
        return DeadLetterHeaders(source, own["lstmstream.stage"], own.get("lstmstream.timestamp"), others)
    except (KeyError, ValueError):
        return None


def parse(value: bytes | None) -> dict[str, Any]:
    """The members of a prediction, none where it is not one."""
    try:
        found = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def differences(expected: bytes, found: bytes | None, tolerance: float) -> Iterator[tuple[str, Any, Any]]:
    """(member, expected, found) of each member that differs; numbers of the model may by `tolerance`."""
    wanted, there = parse(expected), parse(found)
    score = there.get("score")
    for name in dict.fromkeys([*wanted, *there]):
        want, have = wanted.get(name), there.get(name)
        if want == have and (name in wanted) == (name in there):
            continue
        if tolerance and name in {"score", "prediction"} and _close(want, have, tolerance):
            continue
        if tolerance and name == "alert" and _close(wanted.get("score"), score, tolerance):
            continue  # the score lies at the threshold
        if tolerance and name == "reasons" and _close_reasons(wanted, there, tolerance):
            continue
        yield name, want, have


def _close_reasons(wanted: dict[str, Any], there: dict[str, Any], tolerance: float) -> bool:
    """Whether the reasons are the same for scores that may differ by `tolerance`: then a size may by twice that.

    So may the order, and which of the smallest are among those that an alert has at most.
    """
    if wanted.get("alert") != there.get("alert"):
        return True  # only one of the two has reasons; whether that may be is said of `alert`
    try:
        one, other = ({r["feature"]: float(r["size"]) for r in record["reasons"]} for record in (wanted, there))
    except (KeyError, TypeError, ValueError):
        return False
    allowed = 2 * tolerance * max(1.0, abs(wanted["score"]), *one.values())
    return _fits(one, other, allowed) and _fits(other, one, allowed)


def _fits(one: dict[str, float], other: dict[str, float], allowed: float) -> bool:
    """Whether each size of `one` is that of `other`; one that is not there must not be larger than its smallest."""
    smallest = min(other.values(), default=0.0) if len(other) >= len(one) else 0.0
    return all(
        abs(size - other[name]) <= allowed if name in other else size <= smallest + allowed
        for name, size in one.items()
    )


def _close(want: Any, have: Any, tolerance: float) -> bool:
    if isinstance(want, list) and isinstance(have, list):
        return len(want) == len(have) and all(map(_close, want, have, [tolerance] * len(want)))
    numbers = isinstance(want, float | int) and isinstance(have, float | int)
    return numbers and abs(want - have) <= tolerance * max(1.0, abs(want))
