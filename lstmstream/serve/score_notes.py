"""What `lstmstream score` tells besides its predictions: refused rows, fields that no row has, rows out of order.

Everything is counted, and few lines are printed, however many rows there are.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from lstmstream.errors import BadRecord
from lstmstream.formats.field_names import MAX_LISTED, unknown_fields
from lstmstream.formats.json_documents import ABSENT, ONE_VALUE, locate, may_be_a_table, parse_document
from lstmstream.formats.timestamps import unlikely_times
from lstmstream.logs import message_kind
from lstmstream.model import Card
from lstmstream.records import RecordBatch
from lstmstream.serve.engine import Result
from lstmstream.wording import counted

EARLY_ROWS = 4096  # after which a field that none of them has is named
MAX_REASONS = 5  # named, of refused rows
_MAX_COUNTED = 1000  # different reasons
_UNREAD_STAGES = {"decode", "validate"}  # of dead letters that are not among the decoded rows


def say(text: str) -> None:
    """One line to standard error."""
    print(f"lstmstream: {text}", file=sys.stderr, flush=True)


class RefusedRows:
    """Dead letters by reason. The first of each kind is named at once, the numbers come at the end."""

    def __init__(self, name: str, *, kept: Path | None, place: Callable[[int], str] = "row {}".format) -> None:
        """`kept`: the file of the dead letters; only the numbers are said then. `place`: how a row is named."""
        self._name = name
        self._kept = kept
        self._place = place
        self._reasons: dict[str, tuple[int, int, str]] = {}  # by the message without its numbers: count, row, message
        self._may_be_a_table = False  # the only row
        self.rows = 0
        self.refused = 0

    def add(self, result: Result) -> None:
        """Counts the rows of a batch."""
        self.rows += len(result.records)
        self.refused += len(result.dead_letters)
        if self.rows == 1 and result.dead_letters:
            self._may_be_a_table = may_be_a_table(result.records.values[0] or b"")
        for letter in result.dead_letters:
            kind = message_kind(letter.message)
            if kind not in self._reasons and len(self._reasons) >= _MAX_COUNTED:
                continue
            count, row, message = self._reasons.get(
                kind, (0, int(result.records.offsets[letter.index]), letter.message)
            )
            self._reasons[kind] = (count + 1, row, message)
            if not count and self._kept is None and len(self._reasons) <= MAX_REASONS:
                say(f"{self._name}, {self._place(row)}: {message}")

    def finish(self, *, json: bool = False) -> bool:
        """Says the totals; whether there were rows and none was answered.

        `json`: the file is JSON, which may hold a whole table in one object.
        """
        nothing = self.refused > 0 and self.refused == self.rows
        if self.refused:
            often = sorted(self._reasons.values(), reverse=True, key=lambda reason: (reason[0], -reason[1]))
            parts = [f"{message} ({self._where(count, row)})" for count, row, message in often[:MAX_REASONS]]
            parts += [f"{len(often) - MAX_REASONS:,} more reasons"] if len(often) > MAX_REASONS else []
            share = f"none of {self.rows:,} rows" if nothing else f"{self.refused:,} of {self.rows:,} rows"
            what = "could be scored" if nothing else "are dead letters"
            hint = "; --dead-letters FILE keeps them" if self._kept is None else f"; they are in {self._kept}"
            if json and nothing and self.rows == 1 and self._may_be_a_table:
                hint = f"; {ONE_VALUE}"
            say(f"{self._name}: {share} {what}: {'; '.join(parts)}{hint}")
        return nothing

    def _where(self, count: int, first: int) -> str:
        place = self._place(first)
        return place if count == 1 else f"{count:,} rows, the first is {place}"


class UnseenFields:
    """Which of the fields that the model reads no row of JSON has had so far."""

    def __init__(self, name: str, fields: Sequence[str]) -> None:
        self._name = name
        self._unseen = list(fields)
        self._names: dict[str, None] = {}  # some that the rows have
        self._rows = 0
        self._parsed = False  # whether any row is a JSON object
        self._said = False

    def look(self, records: RecordBatch) -> None:
        """Looks for the fields in a batch, and names those that the first rows lack."""
        if self._unseen:
            self._search(records.values)
        self._rows += len(records)
        if self._rows >= EARLY_ROWS and self._parsed and not self._said:
            self._say(f"first {counted(self._rows, 'row')}")

    def finish(self) -> None:
        """Names the fields that no row had. Where no row is a JSON object there is nothing to say of fields."""
        if self._parsed and self._unseen:
            self._say(counted(self._rows, "row"))

    @property
    def unseen(self) -> list[str]:
        """The fields that no row has had so far."""
        return self._unseen

    def _say(self, rows: str) -> None:
        self._said = True
        if self._unseen:
            say(f"{unknown_fields(self._name, self._unseen, self._names)} ({rows})")

    def _search(self, values: Sequence[bytes | None]) -> None:
        for value in values:
            if value is None or (len(self._names) >= MAX_LISTED and not self._may_have(value)):
                continue
            try:
                document = parse_document(value)
            except BadRecord:
                continue
            self._parsed = True
            if len(self._names) < MAX_LISTED:
                self._names |= dict.fromkeys(document)
            self._unseen = [field for field in self._unseen if locate(document, field) is ABSENT]
            if not self._unseen:
                return

    def _may_have(self, value: bytes) -> bool:
        """Cheaper than parsing: whether the text of one of the names is in it, perhaps escaped."""
        return b"\\u" in value or any(field.rpartition(".")[2].encode() in value for field in self._unseen)


class FeaturesWithoutValues:
    """Features of the model that have a field, but no usable value in any row that could be read."""

    def __init__(self, name: str, card: Card) -> None:
        self._name = name
        self._features = card.features
        self._missing = np.zeros(len(card.features), np.int64)
        self._unknown = np.zeros(len(card.features), np.int64)
        self._rows = 0

    def add(self, result: Result) -> None:
        """Counts the rows of a batch."""
        self._missing += result.decoded.field_counts.missing
        self._unknown += result.decoded.field_counts.unknown
        self._rows += len(result.records) - sum(letter.stage in _UNREAD_STAGES for letter in result.dead_letters)

    def finish(self, unseen: Collection[str]) -> None:
        """One line per feature; those in `unseen` have been named before."""
        for place, feature in enumerate(self._features):
            missing, unknown = int(self._missing[place]), int(self._unknown[place])
            if not self._rows or missing + unknown < self._rows or feature.name in unseen:
                continue
            if unknown:
                known = ", ".join(map(repr, (feature.vocabulary or ())[:MAX_LISTED])) or "none"
                say(
                    f"{self._name}: no row has a value of {feature.name!r} that the model knows"
                    f" ({counted(unknown, 'row')} with"
                    f" other values, {missing:,} without any); it knows {known}"
                )
            else:
                say(
                    f"{self._name}: no row has a value of {feature.name!r}: in all {missing:,} it is empty or null, and"
                    " was scored as missing"
                )


class RowTimes:
    """Rows that are older than the row of their key before them, and a latest time that tells a wrong unit."""

    def __init__(self, name: str, policy: str, field: str | None) -> None:
        """`policy`: input.late. `field`: of the time; None: the rows have none."""
        self._name = name
        self._policy = policy
        self._field = field
        self._count = 0
        self._latest_ms: int | None = None

    def add(self, result: Result) -> None:
        """Looks at the rows of a batch that could be read."""
        times = result.decoded.observations.timestamps
        if self._field is None or not len(times):
            return
        self._count += result.late_events
        newest = int(times.max())
        self._latest_ms = newest if self._latest_ms is None else max(self._latest_ms, newest)

    def finish(self) -> None:
        """Says how many are late, and what is unlikely of the latest time."""
        if self._count:
            effect = {
                "apply": "they were scored in the order of the file",
                "score": "they were scored, and did not change the state",
                "drop": "they became dead letters",
            }[self._policy]
            say(
                f"{self._name}: {counted(self._count, 'row is', 'rows are')} older than an earlier row of"
                f" their key; {effect}"
                f" (input.late: {self._policy}). Sort the file by time if it is not in the order of the stream"
            )
        if self._field is None or self._latest_ms is None:
            return
        if note := unlikely_times(self._field, self._latest_ms, time.time() * 1000):
            say(f"{self._name}: {note}")
