"""What is wrong, one finding for each record or event, and how many there are of each kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["missing", "duplicate", "wrong", "out_of_order", "ahead"]
KINDS: tuple[Kind, ...] = ("missing", "duplicate", "wrong", "out_of_order", "ahead")
MAX_KEPT = 1000  # findings; the rest is counted

MEANING = {
    "missing": "events or alerts without the record that they should have",
    "duplicate": "records of an event that has one already",
    "wrong": "records that are not what the event gives",
    "out_of_order": "predictions behind one of a later event of their key",
    "ahead": "records of events beyond the group's offset",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference. `partition` and `offset` are the event's, in the input."""

    kind: Kind
    record: str  # prediction | alert | dead letter | enriched event
    partition: int
    offset: int
    detail: str
    field: str | None = None
    expected: Any = None
    found: Any = None
    topic: str | None = None  # where the record stands that was found, and in the next two
    record_partition: int | None = None
    record_offset: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        where = "" if self.topic is None else f" (at {self.topic}[{self.record_partition}]@{self.record_offset})"
        values = ""
        if self.field is not None:
            values = f": {self.field} is {self.found!r}, should be {self.expected!r}"
        kind = self.kind.replace("_", " ")
        return f"{kind}: {self.record} of event [{self.partition}]@{self.offset}: {self.detail}{values}{where}"


@dataclass(slots=True)
class Findings:
    """All that was found so far."""

    counts: Counter[str] = field(default_factory=Counter)
    kept: list[Finding] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Count it, and keep it while there is room."""
        self.counts[finding.kind] += 1
        if len(self.kept) < MAX_KEPT:
            self.kept.append(finding)

    def __len__(self) -> int:
        return self.counts.total()
