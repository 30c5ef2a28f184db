"""The events that a group's states were built from (`lstmstream state build`), read once more, by code of its own."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from lstmstream.errors import CannotServe
from lstmstream.extras import require
from lstmstream.model import Card
from lstmstream.transport.partitioner import partition_of
from lstmstream.verify.envelopes import Event
from lstmstream.verify.expected import Settings
from lstmstream.verify.values import Refused, find, read_key, read_object, read_time

OFFSET = -1  # of an event that is in no topic


class History(NamedTuple):
    """The files, in the order in which they were run, and the fields with what a record has besides its value."""

    files: Sequence[Path]
    key: str | None = None
    timestamp: str | None = None


class Past(NamedTuple):
    """One event of a history, as if it had been a record."""

    partition: int
    timestamp_ms: int
    key: bytes | None
    event: Event


def read_past(history: History, card: Card, settings: Settings, partitions: int) -> Iterator[Past]:
    """Those whose key and time can be read: the others changed no state. Raises CannotServe."""
    key_field = history.key or settings.key
    time_field = history.timestamp or settings.timestamp
    if time_field is None or (key_field is None and partitions > 1):
        raise CannotServe("--history: give --key and --timestamp as they were given to state build")
    numbers = {feature.name for feature in card.numbers if feature.size == 1}
    for path in history.files:
        for event in _events(path, numbers):
            try:
                fields = read_object(event) if isinstance(event, bytes) else event
                key = None if key_field is None else read_key(find(fields, key_field))
                time_ms = read_time(find(fields, time_field))
            except Refused:
                continue
            yield Past(partition_of(key, partitions), -1 if settings.timestamp else time_ms, key, event)


def _events(path: Path, numbers: set[str]) -> Iterator[bytes | dict[str, Any]]:
    form = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    try:
        if form in ("jsonl", "ndjson", "json"):
            with _open(path) as file:
                yield from (line for line in file if line.strip())
        elif form == "csv":
            with _open(path) as file:
                lines = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(file))
                yield from (_of_csv(row, numbers) for row in csv.DictReader(lines))
        elif form == "parquet":
            require("tables", f"--history {path}: reading Parquet")
            from lstmstream.verify.history_tables import parquet_rows  # noqa: PLC0415 -- needs polars

            yield from parquet_rows(path)
        else:
            raise CannotServe(f"--history {path}: the name must end with .jsonl, .csv or .parquet, perhaps with .gz")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CannotServe(f"--history {path}: cannot be read ({error})") from error


def _open(path: Path) -> IO[bytes]:
    opened: Any = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115 -- the caller closes it
    return cast("IO[bytes]", opened)


def _of_csv(row: dict[str, Any], numbers: set[str]) -> dict[str, Any]:
    return {name: _number(cell) if name in numbers else cell for name, cell in row.items() if cell}


def _number(cell: str) -> Any:
    """A cell that spells a number as that number; other text is refused as it is."""
    text = cell.strip()
    if not text or text.lower() == "nan":
        return None
    try:
        number = float(text)
    except ValueError:
        return cell
    return number if math.isfinite(number) else cell
