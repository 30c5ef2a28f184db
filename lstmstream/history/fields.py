"""Which fields of an event are read, and the rows of a file as columns. Shared by the readers of all formats."""

from __future__ import annotations

from dataclasses import dataclass

from lstmstream.records import Bools, Floats, Ints


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the event's fields that are read; dots lead into nested objects."""

    key: str | None
    timestamp: str | None
    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    label: str | None = None
    split: str | None = None  # the field that holds train, validation or test
    silent: tuple[str, str] | None = None  # the field that marks events without a prediction, and its value there
    sizes: tuple[int, ...] = ()  # of each of `numbers`, above 1 for an array; () if all are single numbers

    @property
    def widths(self) -> tuple[int, ...]:
        """How many columns of x each of `numbers` fills."""
        return self.sizes or (1,) * len(self.numbers)

    def all(self) -> tuple[str, ...]:
        """Every field once, in the order above."""
        mark = None if self.silent is None else self.silent[0]
        single = [field for field in (self.key, self.timestamp, self.label, self.split, mark) if field is not None]
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
    silent: Bools | None = None  # [M]; None where every event has a prediction

    def __len__(self) -> int:
        return len(self.timestamp)
