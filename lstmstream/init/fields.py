"""What the fields of some events look like: numbers, categories, times, keys, labels. A person has to check it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from lstmstream.config.types import is_field
from lstmstream.errors import BadRecord
from lstmstream.formats.json_documents import Document
from lstmstream.formats.timestamps import spells_number, timestamp_ms
from lstmstream.formats.values import category_text

MAX_DEPTH = 3  # of nested objects
FEW_VALUES = 50  # a category has no more
MOSTLY = 0.95  # of a field's values are numbers: one that is text would be a dead letter, and the field still a number
REPEATED = 0.2  # of the events: a category, or a key, has no more different values
EPOCH_S = (9e8, 1e11)  # 1998 to 5138; milliseconds are a thousand times as much
_TIME_NAME = re.compile(r"(^|[_.\W])(time|timestamp|ts|date|datetime|at|when)$|(time|timestamp|date)$", re.IGNORECASE)
_KEY_NAME = re.compile(
    r"(^|[_.])(key|id|customer|card|account|user|client|device|sensor|machine|host|terminal|vehicle)s?(_?id)?$|id$",
    re.IGNORECASE,
)
_NUMBER_AS_TEXT = re.compile(r"[^\w+-]?[+-]?\d[\d.,' ]*\W?[a-zA-Z%]{0,5}")  # 1,014.0 or 3 kWh
_LABEL_NAME = re.compile(r"(^|[_.]|^is_)(fraud|label|target|anomaly|fault|failure|churn|class)\w*$", re.IGNORECASE)


@dataclass(slots=True)
class Profile:
    """One field of N events."""

    name: str
    events: int = 0  # that have it, and not null
    numbers: int = 0
    whole: int = 0  # numbers without a part behind the point
    texts: int = 0
    booleans: int = 0
    times: int = 0  # values that can be times
    values: set[str] = field(default_factory=set)
    example: str = ""  # the first text
    rises: bool = True  # each number is larger than the one before
    _last: float | None = None

    def add(self, value: Any) -> None:
        """One value."""
        self.events += 1
        if isinstance(value, bool):
            self.booleans += 1
        elif isinstance(value, int | float):
            self.numbers += 1
            self.whole += isfinite(value) and value == int(value)  # 1e400, of which a dead letter is made
            self.rises &= self._last is None or value > self._last
            self._last = float(value)
        elif isinstance(value, str):
            self.texts += 1
            self.example = self.example or value
        try:
            self.values.add(category_text(value, self.name) or "")
        except BadRecord:  # a number that is not whole
            self.values.add(repr(value))
        self.times += _can_be_time(value)

    @property
    def is_number(self) -> bool:
        """Whether a model can read it as a number, but for a few values that are text."""
        return self.numbers + self.texts == self.events and self.numbers > 0 and self.numbers >= MOSTLY * self.events

    @property
    def is_counter(self) -> bool:
        """Whether it only numbers the events."""
        return self.is_number and self.whole == self.numbers and self.rises and len(self.values) > 2

    def is_category(self, events: int) -> bool:
        """Whether it has few values, each of them often."""
        few = 2 <= len(self.values) <= min(FEW_VALUES, max(2, REPEATED * events))
        return few and self.events in (self.texts, self.booleans, self.whole)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What each field could be."""

    key: str | None  # None: the record's
    timestamp: str | None  # None: the record's
    label: str | None
    numbers: list[str]
    categories: list[str]
    others: list[str]  # that are left out
    reasons: dict[str, str]  # of some of `others`
    texts: dict[str, int]  # of `numbers` that are text in some events: in how many


def profiles(documents: Sequence[Document]) -> list[Profile]:
    """Of all fields, nested ones with dots, in the order of their first appearance."""
    found: dict[str, Profile] = {}
    for document in documents:
        for name, value in _walk(document, "", MAX_DEPTH):
            found.setdefault(name, Profile(name)).add(value)
    return list(found.values())


def propose(fields: Sequence[Profile], events: int, *, keyed: bool) -> Proposal:
    """`events`: their number. `keyed`: the records have keys."""
    unnamed = [one.name for one in fields if not is_field(one.name)]
    fields = [one for one in fields if is_field(one.name)]
    timestamp = _best(
        (one for one in fields if one.times == one.events and 2 * one.events > events),
        lambda one: (bool(_TIME_NAME.search(one.name)), one.texts > 0, one.events),
        lambda one: bool(_TIME_NAME.search(one.name)) or one.texts > 0,
    )
    key = None
    if not keyed:
        key = _best(
            (one for one in fields if one.name != timestamp and _can_be_key(one, events)),
            lambda one: (bool(_KEY_NAME.search(one.name)), -len(one.values)),
            lambda one: bool(_KEY_NAME.search(one.name)),
        )
    left = [one for one in fields if one.name not in {timestamp, key}]
    label = next((one.name for one in left if _LABEL_NAME.search(one.name) and _can_be_label(one)), None)
    left = [one for one in left if one.name != label]
    categories = [one.name for one in left if one.is_category(events) and not _measures(one)]
    numbers = [
        one.name
        for one in left
        if one.is_number and one.name not in categories and not one.is_counter and not _is_identifier(one)
    ]
    rest = [one for one in left if one.name not in {*categories, *numbers}]
    reasons = {one.name: reason for one in rest if (reason := _why_left_out(one))}
    reasons |= dict.fromkeys(unnamed, "an option cannot name it")
    others = [*(one.name for one in rest), *unnamed]
    texts = {one.name: one.texts for one in left if one.name in numbers and one.texts}
    return Proposal(key, timestamp, label, numbers, categories, others, reasons, texts)


def _walk(document: Document, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and depth > 1:
            yield from _walk(value, f"{path}.", depth - 1)
        elif value is not None and not isinstance(value, dict | list):
            yield path, value


def _can_be_time(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int | float):
        low, high = EPOCH_S
        return low <= value < high or 1000 * low <= value < 1000 * high
    if not isinstance(value, str) or len(value) < 8:
        return False
    if spells_number(value):  # seconds as CSV writes them
        return "e" not in value.lower() and _can_be_time(float(value))
    try:
        timestamp_ms(value, "time")
    except BadRecord:
        return False
    return any(sign in value for sign in "-:T")


def _can_be_label(one: Profile) -> bool:
    """Few values, though some may be of another type, such as None as text: a label must not become a feature."""
    return 2 <= len(one.values) <= FEW_VALUES and one.events in (one.texts + one.numbers, one.booleans)


def _why_left_out(one: Profile) -> str:
    """What a person may not expect: a number that some events have as text."""
    if not one.texts or not (one.numbers or _NUMBER_AS_TEXT.fullmatch(one.example)):
        return ""
    return f"text in {one.texts:,} of {one.events:,} events, such as {one.example[:40]!r}"


def _can_be_key(one: Profile, events: int) -> bool:
    repeated = 1 < len(one.values) <= max(2, 0.5 * events)
    return one.events == events and repeated and one.events in (one.texts, one.whole)


def _measures(one: Profile) -> bool:
    """A number with few values that is still a number: with parts behind the point, or many of them."""
    return one.is_number and (one.whole < one.numbers or len(one.values) > 10)


def _is_identifier(one: Profile) -> bool:
    return bool(_KEY_NAME.search(one.name)) and one.whole == one.numbers


def _best(candidates: Iterator[Profile], rank: Any, good: Any) -> str | None:
    found = max((one for one in candidates if good(one)), key=rank, default=None)
    return None if found is None else found.name
