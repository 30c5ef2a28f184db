"""`lstmstream dev send`: the events of a file into a topic, with keys and in order, as a producer would write them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from lstmstream.dev.producer import send_all
from lstmstream.errors import BadRecord, CannotServe
from lstmstream.extras import require_for_table
from lstmstream.formats.csv_form import CsvOptions
from lstmstream.formats.field_names import unknown_field
from lstmstream.formats.field_roles import FieldRoles
from lstmstream.formats.files import DataFile
from lstmstream.formats.json_documents import ABSENT, Document, locate, parse_document
from lstmstream.formats.timestamps import timestamp_ms
from lstmstream.formats.values import text_of
from lstmstream.wording import counted

_BATCH_EVENTS = 4096
_FIRST_MS = -(2**63)


class FileFields(NamedTuple):
    """What the fields of the file are."""

    key: str | None  # None: records have no key
    timestamp: str | None = None  # None: the file is in order
    texts: tuple[str, ...] = ()  # columns of CSV that are text though they look like numbers


class _Found(NamedTuple):
    """Events in the order in which they are sent, and the first of those that lack something."""

    events: list[tuple[bytes | None, bytes]]
    moved: int  # events that are elsewhere in the file
    without_key: list[str]
    without_time: list[str]


def send_file(
    path: Path,
    topic: str,
    bootstrap_servers: str,
    fields: FileFields,
    *,
    csv: CsvOptions,
    rate: float | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Send the events of `path`; the number sent. The file is held in memory.

    With a timestamp they are sent in its order; events of one time stay in the file's. The records' own timestamps are
    the time of sending, so that the topic's retention does not remove old events.

    Raises CannotServe for a file that cannot be read and for a broker that cannot be reached, Fatal where an event
    cannot be written.
    """
    found = _in_order(path, fields, csv)
    if not found.events:
        raise CannotServe(f"{path}: has no events; give a file with at least one")
    if fields.key is not None and len(found.without_key) == len(found.events):
        raise CannotServe(f"{path}: no event has the field {fields.key!r}, the key; correct --key")
    if found.moved:
        _say(f"{path}: is not in order of {fields.timestamp!r}: {counted(found.moved, 'event')} came to another place")
    for missing, what in (
        (found.without_key, "a key"),
        (found.without_time, "a time, after the one before it in the file"),
    ):
        if missing:
            _say(
                f"{path}: {counted(len(missing), 'event was', 'events were')} sent without {what}; the"
                f" first: {missing[0]}"
            )
    return send_all(bootstrap_servers, topic, found.events, rate=rate, stopping=stopping)


def _in_order(path: Path, fields: FileFields, csv: CsvOptions) -> _Found:
    """The events by time. Those whose time is missing or no time come after the one before them."""
    events: list[tuple[int, bytes | None, bytes]] = []
    without_key: list[str] = []
    without_time: list[str] = []
    last_ms = _FIRST_MS
    for row, value in enumerate(_values(path, fields, csv)):
        if not value.strip():
            continue
        document, key = None, None
        try:
            document = parse_document(value)
            key = None if fields.key is None else _key(document, fields.key)
        except BadRecord as bad:
            without_key.append(f"row {row}: {bad}")
        try:
            if document is not None and fields.timestamp is not None:
                time = locate(document, fields.timestamp)
                last_ms = timestamp_ms(None if time is ABSENT else time, fields.timestamp)
        except BadRecord as bad:
            without_time.append(f"row {row}: {bad}")
        events.append((last_ms, key, value))
    order = sorted(range(len(events)), key=lambda at: events[at][0])
    moved = sum(at != place for place, at in enumerate(order))
    return _Found([events[at][1:] for at in order], moved, without_key, without_time)


def _key(document: Document, name: str) -> bytes:
    """The record key: the text that the daemon takes for the key of that field. Raises BadRecord."""
    value = locate(document, name)
    text = None if value is ABSENT else text_of(value, name, "key")
    if text is None:
        raise BadRecord("validate", f"field {name!r} is missing")
    return text.encode()


def _values(path: Path, fields: FileFields, csv: CsvOptions) -> Iterator[bytes]:
    """The events as JSON; b"" for blank rows."""
    with closing(DataFile(path)) as file:
        for note in file.notes:
            _say(note)
        if file.kind == "jsonl":
            for lines in file.batches(_BATCH_EVENTS):
                yield from lines
            return
    require_for_table(path)
    from lstmstream.formats.tables import numeric_columns, open_table, table_events  # noqa: PLC0415 -- needs polars

    asked = [name for name in (fields.key, fields.timestamp, *fields.texts) if name is not None]
    table = open_table(path, csv, asked)
    names = table.fields
    if problems := [unknown_field(path, name, names) for name in asked if name not in names]:
        raise CannotServe(*problems)
    columns = [name for name in table.scan.collect_schema() if name]
    numbers, notes = numeric_columns(table, csv, without=[*asked, ""])
    roles = FieldRoles(
        keys=() if fields.key is None else (fields.key,),
        times=() if fields.timestamp is None else (fields.timestamp,),
        numbers=tuple(numbers),
        categories=fields.texts,
        passthrough=tuple(columns),
    )
    events = table_events(table, roles, csv)
    if "" in names:  # pandas' index
        notes.append(f"{path}: the column without a name is left out; give it a name to send it")
    for note in (*table.notes, *notes):
        _say(note)
    yield from events


def _say(text: str) -> None:
    print(f"lstmstream: {text}", file=sys.stderr)
