"""Which fields of an event are read, and the rows of a file as columns. Shared by the readers of all formats."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lstmstream.formats.json_documents import EXACT_INTEGER_MAX
from lstmstream.records import Floats, Ints

_CODE = re.compile(r"\s*[+-]?0\d|.*_")  # text that Python would parse as a number and that is a code


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the event's fields that are read; dots lead into nested objects."""

    key: str | None
    timestamp: str | None
    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    label: str | None = None
    split: str | None = None  # the field that holds train, validation or test

    def all(self) -> tuple[str, ...]:
        """Every field once, in the order above."""
        single = [field for field in (self.key, self.timestamp, self.label, self.split) if field is not None]
        return tuple(dict.fromkeys([*single, *self.numbers, *self.categories]))


@dataclass(frozen=True, slots=True)
class Chunk:
    """M consecutive rows of the files. Texts are None where the field is missing."""

    first_row: int  # index of the first row among all rows that are not blank, from 0
    keys: list[str]  # [M]
    timestamp: Ints  # [M] milliseconds since 1970 UTC
    x: Floats  # [M, F] raw numbers, NaN where missing
    categories: list[list[str | None]]  # C lists of M texts
    label: list[str | None] | None  # [M]; None without a label field
    split: list[str | None] | None  # [M]; None without a split field

    def __len__(self) -> int:
        return len(self.timestamp)


def label_text(text: str | None) -> str | None:
    """The decimal text of a whole number (`1.0` becomes `1`); other text, and codes with leading zeros, unchanged."""
    try:
        value = float(text or "")
    except ValueError:
        return text
    if text is None or not value.is_integer() or abs(value) > EXACT_INTEGER_MAX or _CODE.match(text):
        return text
    return str(int(value))
