"""`lstmstream dev reports`: from a history with labels to the stream that a topic would have had.

A label is known some time after its event, and comes then as an event of its own. A stage that learns from such events
needs them in its history too, in the order of time, and no label in an event before it is known.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from lstmstream.errors import BadRecord, CannotServe
from lstmstream.extras import require_for_table
from lstmstream.formats.csv_form import FROM_FILE
from lstmstream.formats.field_roles import FieldRoles
from lstmstream.formats.files import DataFile
from lstmstream.formats.timestamps import format_iso, timestamp_ms
from lstmstream.whole_file import whole_file

MARK = ("kind", "report")  # field and text of a report, for input.silent
_LINES = 4096


@dataclass(frozen=True, slots=True)
class Reports:
    """What a report has: the key and the time of its event, and the label under another name."""

    key: str
    timestamp: str
    label: str
    field: str  # of the label in a report
    delay_ms: int

    def __post_init__(self) -> None:
        if self.field in {self.key, self.timestamp, self.label, MARK[0]}:
            raise CannotServe(
                f"--field {self.field}: the events have a field of that name, or the reports do; name one that only"
                " the label of a report has, or the model would read labels before they are known"
            )


def write_to(out: str, history: Path, reports: Reports) -> tuple[int, int]:
    """`write_reports` into the file `out`, or to standard output for -. Raises CannotServe, and OSError of `out`."""
    if out == "-":
        return write_reports(history, reports, sys.stdout.buffer)
    if history.exists() and Path(out).exists() and history.samefile(out):
        raise CannotServe(f"--out {out}: is the history; choose another file")
    with whole_file(Path(out)) as file:
        return write_reports(history, reports, file)


def write_reports(history: Path, reports: Reports, out: IO[bytes]) -> tuple[int, int]:
    """Write the events of `history` with the reports between them; returns how many there are of each.

    The report of an event comes `delay_ms` after it, and before an event of the same millisecond. Those that would come
    after the last event are left out. Raises CannotServe for a file or a row that cannot be read, and for rows that
    are not in the order of time.
    """
    waiting: deque[tuple[int, bytes]] = deque()  # reports of the last `delay_ms`: time and line
    events = written = newest = 0
    for row, line in enumerate(_lines(history, reports)):
        if not line:
            continue
        event, time_ms = _read(line, f"{history}: row {row}", reports)
        if events and time_ms < newest:
            raise CannotServe(
                f"{history}: row {row}: {format_iso(time_ms)} is before the row above it; sort the file by"
                f" {reports.timestamp}"
            )
        newest = time_ms
        while waiting and waiting[0][0] <= time_ms:
            out.write(waiting.popleft()[1])
            written += 1
        out.write(line.rstrip(b"\n") + b"\n")
        events += 1
        if event.get(reports.label) is not None:
            waiting.append((time_ms + reports.delay_ms, _report(event, time_ms, reports)))
    return events, written


def _lines(history: Path, reports: Reports) -> Iterator[bytes]:
    file = DataFile(history)
    if file.kind == "jsonl":
        return (line for lines in file.batches(_LINES) for line in lines)
    file.close()
    require_for_table(history)
    from lstmstream.formats.tables import open_table, table_events  # noqa: PLC0415 -- needs polars

    table = open_table(history, FROM_FILE, (reports.key, reports.timestamp, reports.label))
    return table_events(table, FieldRoles(times=(reports.timestamp,), passthrough=tuple(table.fields)))


def _read(line: bytes, where: str, reports: Reports) -> tuple[dict[str, Any], int]:
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise CannotServe(f"{where}: is not JSON ({error})") from error
    if not isinstance(event, dict):
        raise CannotServe(f"{where}: is not a JSON object")
    try:
        time_ms = timestamp_ms(event.get(reports.timestamp), reports.timestamp)
    except BadRecord as error:
        raise CannotServe(f"{where}: {error}; name the field of the time with --timestamp") from error
    if event.get(reports.key) is None:
        raise CannotServe(f"{where}: has no field {reports.key!r}; name the field of the key with --key")
    for name in (reports.field, MARK[0]):
        if name in event:
            raise CannotServe(
                f"{where}: has a field {name!r}, which only reports may have; rename it"
                + (", or choose another name with --field" if name == reports.field else "")
            )
    return event, time_ms


def _report(event: dict[str, Any], time_ms: int, reports: Reports) -> bytes:
    report = {
        MARK[0]: MARK[1],
        reports.key: event[reports.key],
        reports.timestamp: format_iso(time_ms + reports.delay_ms),
        reports.field: event[reports.label],
    }
    return orjson.dumps(report) + b"\n"
