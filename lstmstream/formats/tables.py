"""Rows of CSV and Parquet as JSON events, so that a table is decoded as an event from Kafka is.

A cell of CSV has no type: where the model reads a number or a time, text that is a number becomes one. A column
`merchant.city` becomes the field `city` of the object `merchant`. Needs polars (extra `tables`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from decimal import Decimal
from math import isinf
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from lstmstream.errors import CannotServe
from lstmstream.formats import csv_cells
from lstmstream.formats.files import table_kind

CHUNK_ROWS = 4096


def table_events(path: Path, texts: Collection[str], numbers: Collection[str]) -> Iterator[bytes]:
    """Each row as a JSON object, b"" for a blank row of CSV. Nulls and NaN are left out, times are ISO 8601.

    Of a CSV file, `texts` are the fields that are text whatever they look like (`007` is not `7`), and `numbers` the
    fields that should hold numbers or times. Raises CannotServe: for a file that is not CSV at once, for one that
    cannot be read when its rows are asked for.
    """
    if _is_csv(path):
        csv_cells.check_csv_format(path, {*texts, *numbers})
    return _rows(path, texts, numbers)


def field_names(path: Path) -> list[str]:
    """The names of the columns, and with dots those of the fields of structs.

    Raises CannotServe for a file that cannot be read.
    """
    try:
        frame = pl.scan_csv(path, infer_schema=False) if _is_csv(path) else _scan_binary(path)
        return [name for first, kind in frame.collect_schema().items() for name in _nested_names(first, kind)]
    except (pl.exceptions.PolarsError, OSError) as error:
        raise csv_cells.read_error(path, error) from error


def count_rows(path: Path) -> int | None:
    """The number of rows where the file says it; None for CSV."""
    if _is_csv(path):
        return None
    return int(_scan_binary(path).select(pl.len()).collect().item())


def _scan_binary(path: Path) -> pl.LazyFrame:
    return pl.scan_ipc(path) if table_kind(path) == "arrow" else pl.scan_parquet(path)


def _nested_names(name: str, kind: Any) -> list[str]:
    inner = kind.fields if isinstance(kind, pl.Struct) else []
    return [name, *(f"{name}.{deeper}" for field in inner for deeper in _nested_names(field.name, field.dtype))]


def _is_csv(path: Path) -> bool:
    return table_kind(path) == "csv"


def _rows(path: Path, texts: Collection[str], numbers: Collection[str]) -> Iterator[bytes]:
    csv = _is_csv(path)
    try:
        if csv:  # types of the other columns from the whole file, or a row after the 100th could fail
            as_written = dict.fromkeys([*texts, *numbers], pl.String)
            frame = pl.scan_csv(path, infer_schema_length=None, schema_overrides=as_written)
        else:
            frame = _scan_binary(path)
        names = frame.collect_schema().names()
        paths = _paths(path, names)
        parsed = set(numbers) if csv else set()
        for chunk in frame.collect_batches(maintain_order=True, chunk_size=CHUNK_ROWS):
            columns = [
                csv_cells.parse_cells(chunk[name]) if name in parsed else chunk[name].to_list() for name in names
            ]
            for row in zip(*columns, strict=True):
                yield b"" if csv and row.count(None) == len(row) else _event(paths, row)
    except pl.exceptions.PolarsError as error:
        raise csv_cells.read_error(path, error) from error


def _paths(file: Path, names: list[str]) -> list[list[str]]:
    """Each column's path into the event. Raises CannotServe where one column lies inside another."""
    for name in names:
        inside = next((other for other in names if other.startswith(f"{name}.")), None)
        if inside is not None:
            raise CannotServe(f"{file}: columns {name!r} and {inside!r} cannot both be in an event; rename one")
    return [name.split(".") for name in names]


def _event(paths: list[list[str]], row: tuple[Any, ...]) -> bytes:
    event: dict[str, Any] = {}
    for (*outer, last), value in zip(paths, row, strict=True):
        if value is None or value != value:  # noqa: PLR0124 -- NaN
            continue
        here = event
        for name in outer:
            here = here.setdefault(name, {})
        # orjson would write null, so that an infinite number would pass as a missing one
        here[last] = orjson.Fragment("1e400") if _is_infinite(value) else value
    return orjson.dumps(event, default=_to_json_type, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)


def _is_infinite(value: object) -> bool:
    return isinstance(value, float) and isinf(value)


def _to_json_type(value: object) -> object:
    """A value that JSON has no type for: a decimal as a number, any other as text."""
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    return str(value)
