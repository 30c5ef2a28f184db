"""CSV and Parquet to chunks of columns. The only module of this package that needs polars (extra `tables`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lstmstream.errors import BadRecord, CannotServe
from lstmstream.formats import csv_cells
from lstmstream.formats.field_names import unknown_field
from lstmstream.formats.files import table_kind
from lstmstream.formats.json_documents import EXACT_INTEGER_MAX
from lstmstream.formats.timestamps import SECONDS_BELOW, TIMESTAMP_MAX_MS, TIMESTAMP_MIN_MS, timestamp_ms
from lstmstream.history.fields import Chunk, Fields, label_text
from lstmstream.records import Floats, Ints

CHUNK_ROWS = 131_072
_BLANK = "\0blank"  # a column name that no file has
_PER_MS = {"ms": 1, "us": 1000, "ns": 1_000_000}


def read_table(file: Path, fields: Fields, first_row: int) -> Iterator[Chunk]:
    """The rows of one file, of which the first has the index `first_row` among all rows; blank rows of CSV are skipped.

    Raises CannotServe.
    """
    row = 0  # in this file
    try:
        scan = _scan(file, fields)
        columns = _columns(file, scan, fields)
        if _is_csv(file):
            columns.append(pl.all_horizontal(pl.all().is_null()).alias(_BLANK))
        for frame in scan.select(columns).collect_batches(maintain_order=True, chunk_size=CHUNK_ROWS):
            rows: Sequence[int] = range(row, row + len(frame))
            row += len(frame)
            if _is_csv(file) and frame[_BLANK].any():
                rows = [rows[index] for index in (~frame[_BLANK]).arg_true()]
                frame = frame.filter(~pl.col(_BLANK))  # noqa: PLW2901 -- the same rows
            if rows:
                yield _chunk(file, frame, fields, rows, first_row)
                first_row += len(rows)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise csv_cells.read_error(file, error) from error


def _is_csv(file: Path) -> bool:
    return table_kind(file) == "csv"


def _scan(file: Path, fields: Fields) -> pl.LazyFrame:
    if _is_csv(file):  # every column as text: 007 is not 7
        csv_cells.check_csv_format(file, fields.all())
        return pl.scan_csv(file, infer_schema=False)
    return pl.scan_ipc(file) if table_kind(file) == "arrow" else pl.scan_parquet(file)


def _columns(file: Path, scan: pl.LazyFrame, fields: Fields) -> list[pl.Expr]:
    """One expression for each field, named as the field. Raises CannotServe with all fields that are not there."""
    schema = scan.collect_schema()
    expressions, problems = [], []
    for name in fields.all():
        expression = _expression(name, schema)
        if expression is None:
            problems.append(unknown_field(file, name, schema.names()))
        else:
            expressions.append(expression.alias(name))
    if problems:
        raise CannotServe(*problems)
    return expressions


def _expression(name: str, schema: pl.Schema) -> pl.Expr | None:
    """The column of that name, or the value at the end of that path through structs; None where there is neither."""
    if name in schema:
        return pl.col(name)
    first, *rest = name.split(".")
    here: Any = schema.get(first)
    expression = pl.col(first)
    for inner in rest:
        if not isinstance(here, pl.Struct):
            return None
        here = {field.name: field.dtype for field in here.fields}.get(inner)
        expression = expression.struct.field(inner)
    return None if here is None else expression


def _chunk(file: Path, frame: pl.DataFrame, fields: Fields, rows: Sequence[int], first_row: int) -> Chunk:
    """`rows` [M] are the frame's rows in the file; `first_row` is the index of the first among all rows kept."""

    def texts(name: str, *, label: bool = False) -> list[str | None]:
        return _texts(file, frame[name], rows, label=label)

    if fields.key is None:
        keys = [""] * len(frame)
    else:
        given = texts(fields.key)
        if None in given:
            where = rows[given.index(None)]
            raise CannotServe(f"{file}: row {where}: field {fields.key!r}, the key, is missing; remove such rows")
        keys = [key for key in given if key is not None]
    if fields.timestamp is None:
        timestamp = np.arange(first_row, first_row + len(frame), dtype=np.int64) * 1000
    else:
        timestamp = _timestamps(file, frame[fields.timestamp], rows)
    x = np.empty((len(frame), len(fields.numbers)), np.float32)
    for column, name in enumerate(fields.numbers):
        x[:, column] = _numbers(file, frame[name], rows)
    return Chunk(
        first_row=first_row,
        keys=keys,
        timestamp=timestamp,
        x=x,
        categories=[texts(name) for name in fields.categories],
        label=None if fields.label is None else texts(fields.label, label=True),
        split=None if fields.split is None else texts(fields.split),
    )


def _texts(file: Path, series: pl.Series, rows: Sequence[int], *, label: bool = False) -> list[str | None]:
    """[M] Text; of whole numbers the decimal text. Whole floats count as such: ids are floats where some are missing.

    As a `label`, true and false are 1 and 0, which the daemon accepts neither as a key nor as a category, and CSV's
    1.0 is 1, as in any other file. Raises CannotServe.
    """
    kind = series.dtype
    if label and kind == pl.Boolean:
        series = series.cast(pl.Int8)
    elif label and _is_csv(file):
        known = {text: label_text(text) for text in series.unique()}
        return [known[text] for text in series]
    elif kind.is_integer():
        extremes = [abs(int(extreme)) for extreme in (series.min(), series.max()) if isinstance(extreme, int)]
        if max(extremes, default=0) > EXACT_INTEGER_MAX:
            raise CannotServe(f"{file}: field {series.name!r} has integers beyond 2^53; write such ids as text")
    elif kind.is_float() or kind.is_decimal():
        series = series.cast(pl.Float64).fill_nan(None)
        wrong = (series != series.round()) | (series.abs() > EXACT_INTEGER_MAX)
        if wrong.any():
            index = int(wrong.fill_null(value=False).arg_true()[0])
            raise CannotServe(
                f"{file}: row {rows[index]}: field {series.name!r} is {series[index]}, but a key, a category or a"
                " label must be text or a whole number up to 2^53; write it as text, or use the field as a number"
            )
        series = series.cast(pl.Int64)
    elif kind not in {pl.String, pl.Null} and not isinstance(kind, pl.Categorical | pl.Enum):
        raise CannotServe(f"{file}: field {series.name!r} is {kind}, neither text nor whole numbers; write it as text")
    return series.cast(pl.String).to_list()


def _numbers(file: Path, series: pl.Series, rows: Sequence[int]) -> Floats:
    """[M] float32, NaN where missing. Raises CannotServe."""
    kind = series.dtype
    empty = series.null_count() == len(series)
    if kind == pl.String and (empty or _is_csv(file)):
        wide = csv_cells.parse_numbers(series)
        if invalid := csv_cells.invalid_numbers(series, wide):
            index = invalid[0]
            raise CannotServe(
                f"{file}: row {rows[index]}: field {series.name!r} is {series[index][:40]!r}, not a number; leave the"
                " cell empty where the value is missing, or use the field as a category"
            )
    elif kind == pl.Boolean or not (kind.is_numeric() or kind == pl.Null):
        remedy = "write 0 and 1" if kind == pl.Boolean else "use the field as a category, or fix the data"
        raise CannotServe(f"{file}: field {series.name!r} is {kind}, not a number; {remedy}")
    else:
        wide = series.cast(pl.Float64)
    with np.errstate(over="ignore"):
        values: Floats = wide.to_numpy().astype(np.float32)
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        where = rows[int(infinite[0])]
        raise CannotServe(
            f"{file}: row {where}: field {series.name!r} is not finite in float32; fix the value, or leave it empty"
        )
    return values


def _timestamps(file: Path, series: pl.Series, rows: Sequence[int]) -> Ints:
    """[M] milliseconds since 1970 UTC, as the daemon reads a time. Raises CannotServe, naming the row."""
    mixed: list[Any] | None = None
    if _is_csv(file):
        cells = csv_cells.parse_cells(series)
        types = set(map(type, cells))
        if types == {int}:
            series = pl.Series(series.name, cells, pl.Int64)
        elif types == {float}:
            series = pl.Series(series.name, cells, pl.Float64)
        else:
            mixed = cells
    kind = series.dtype
    if kind.is_float() or kind.is_decimal():
        series = series.cast(pl.Float64).fill_nan(None)
    missing = series.is_null()
    if missing.any():
        where = rows[int(missing.arg_true()[0])]
        raise CannotServe(f"{file}: row {where}: field {series.name!r}, the timestamp, is missing; remove such rows")
    times: Ints | None = None
    if isinstance(kind, pl.Datetime):  # with a zone or without, the physical value is UTC
        times = series.to_physical().to_numpy() // _PER_MS[kind.time_unit]
    elif kind == pl.Date:
        times = series.to_physical().cast(pl.Int64).to_numpy() * 86_400_000
    elif kind.is_integer() and (whole := series.cast(pl.Int64, strict=False)).null_count() == 0:
        epochs = whole.to_numpy()
        with np.errstate(over="ignore"):
            times = np.where((epochs > -SECONDS_BELOW) & (epochs < SECONDS_BELOW), epochs * 1000, epochs)
    elif kind.is_temporal():
        raise CannotServe(f"{file}: field {series.name!r} is {kind}, not a time; give date and time, or an epoch")
    if times is None:
        return np.array(_each(mixed or series, lambda value: timestamp_ms(value, series.name), file, rows), np.int64)
    outside = np.flatnonzero((times < TIMESTAMP_MIN_MS) | (times > TIMESTAMP_MAX_MS))
    if len(outside):
        where = rows[int(outside[0])]
        raise CannotServe(f"{file}: row {where}: field {series.name!r} lies outside years 1..9999; fix the value")
    return times


def _each(values: Iterable[Any], parse: Callable[[Any], Any], file: Path, rows: Sequence[int]) -> list[Any]:
    """`parse` of every value. Raises CannotServe naming the row where it raises BadRecord."""
    parsed = []
    for index, value in enumerate(values):
        try:
            parsed.append(parse(value))
        except BadRecord as bad:
            raise CannotServe(f"{file}: row {rows[index]}: {bad}; fix the value, or remove the row") from bad
    return parsed
