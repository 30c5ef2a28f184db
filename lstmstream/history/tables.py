"""CSV and Parquet to chunks of columns. The only module of this package that needs polars (extra `tables`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lstmstream.errors import BadRecord, CannotServe
from lstmstream.formats import csv_cells
from lstmstream.formats.columns import ColumnRole, find_column, is_repeated, repeated_column, type_problem
from lstmstream.formats.csv_form import CsvOptions, Source
from lstmstream.formats.field_names import unknown_field
from lstmstream.formats.tables import PER_MS, Table, open_table, reading
from lstmstream.formats.timestamps import (
    DATE_RANGES,
    SECONDS_BELOW,
    TIMESTAMP_MAX_MS,
    TIMESTAMP_MIN_MS,
    epoch_ms,
    outside_years,
    timestamp_ms,
)
from lstmstream.formats.values import EXACT_DOUBLE_MAX, Role, canonical_text, number_array, text_of
from lstmstream.history.fields import Chunk, Fields
from lstmstream.records import Bools, Floats, Ints

CHUNK_ROWS = 131_072
_WITH_MARKS = re.compile(r"\s*[+-]?\d[\d.,]*,\d+\s*|\s*[+-]?\d+(?:,\d{3})+\.\d+\s*")  # 59,71 and 1.234,5 and 1,234.5
_BLANK = "\0blank"  # a column name that no file has


def read_table(file: Path, fields: Fields, first_row: int, options: CsvOptions, notes: list[str]) -> Iterator[Chunk]:
    """The rows of one file, of which the first has the index `first_row` among all rows; blank rows of CSV are skipped.

    `notes` gets a line for what the user should know of the form of CSV. Raises CannotServe.
    """
    row = 0  # in this file
    table = open_table(file, options, fields.all())
    with reading(file, table.form):
        columns = _columns(table, fields)
        numbers = [name for name, width in zip(fields.numbers, fields.widths, strict=True) if width == 1]
        cells = dict(zip(fields.all(), columns, strict=True))
        table = table.with_decimals(options, {name: cells[name] for name in numbers})
        notes += table.notes
        source, csv = Source(file, table.form, options), table.form is not None
        if csv:
            columns.append(pl.all_horizontal(pl.all().is_null()).alias(_BLANK))
        for frame in table.scan.select(columns).collect_batches(maintain_order=True, chunk_size=CHUNK_ROWS):
            rows: Sequence[int] = range(row, row + len(frame))
            row += len(frame)
            if csv and frame[_BLANK].any():
                rows = [rows[index] for index in (~frame[_BLANK]).arg_true()]
                frame = frame.filter(~pl.col(_BLANK))  # noqa: PLW2901 -- the same rows
            if rows:
                yield _chunk(source, frame, fields, rows, first_row)
                first_row += len(rows)


def _columns(table: Table, fields: Fields) -> list[pl.Expr]:
    """One expression for each field, named as the field. Raises CannotServe with all fields that cannot be read."""
    file, schema, csv = table.path, table.scan.collect_schema(), table.form is not None
    expressions, problems = [], []
    for name in fields.all():
        expression = find_column(name, schema)
        if expression is None:
            problems.append(unknown_field(file, name, schema.names()))
            continue
        if csv and is_repeated(name, schema):
            problems.append(repeated_column(file, name))
        expressions.append(expression.alias(name))
    if problems:
        raise CannotServe(*problems)
    kinds = table.scan.select(expressions).collect_schema()
    arrays = [name for name, width in zip(fields.numbers, fields.widths, strict=True) if width > 1]
    roles: list[tuple[ColumnRole, Sequence[str | None]]] = [
        ("key", [fields.key]), ("time", [fields.timestamp]), ("label", [fields.label]), ("split", [fields.split]),
        ("category", [] if fields.silent is None else [fields.silent[0]]),
        ("number", [name for name in fields.numbers if name not in arrays]), ("array", arrays),
        ("category", fields.categories),
    ]  # fmt: skip
    wrong = [
        f"{file}: field {name!r} is {reason}"
        for role, names in roles
        for name in names
        if name is not None and (reason := type_problem(kinds[name], role, csv=csv)) is not None
    ]
    if wrong:
        raise CannotServe(*wrong)
    return expressions


def _chunk(file: Source, frame: pl.DataFrame, fields: Fields, rows: Sequence[int], first_row: int) -> Chunk:
    """`rows` [M] are the frame's rows in the file; `first_row` is the index of the first among all rows kept."""
    comma = file.form is not None and file.form.decimal_comma

    def texts(name: str, role: Role) -> list[str | None]:
        if file.form is not None and name in fields.numbers and role in ("key", "category"):  # 07 is 7 then, as in JSON
            cells = csv_cells.parse_cells(frame[name], decimal_comma=comma)
            return _each(cells, lambda value: text_of(value, name, role), file, rows)
        return _texts(file, frame[name], rows, role)

    if fields.key is None:
        keys = [""] * len(frame)
    else:
        given = texts(fields.key, "key")
        if None in given:
            where = rows[given.index(None)]
            raise CannotServe(f"{file.row(where)}: field {fields.key!r}, the key, is missing; remove such rows")
        keys = [key for key in given if key is not None]
    if fields.timestamp is None:
        timestamp = np.arange(first_row, first_row + len(frame), dtype=np.int64) * 1000
    else:
        timestamp = _timestamps(file, frame[fields.timestamp], rows)
    x = np.concatenate(
        [
            np.empty((len(frame), 0), np.float32),
            *(
                _numbers(file, frame[name], rows)[:, None] if width == 1 else _arrays(file, frame[name], rows, width)
                for name, width in zip(fields.numbers, fields.widths, strict=True)
            ),
        ],
        axis=1,
    )
    return Chunk(
        first_row=first_row,
        keys=keys,
        timestamp=timestamp,
        x=x,
        categories=[texts(name, "category") for name in fields.categories],
        label=None if fields.label is None else texts(fields.label, "label"),
        split=None if fields.split is None else texts(fields.split, "split"),
        silent=None if fields.silent is None else _silent(texts(fields.silent[0], "category"), fields.silent[1]),
    )


def _silent(texts: list[str | None], equals: str) -> Bools:
    """[M] Which events have no prediction."""
    wanted = canonical_text(equals)
    return np.array([text == wanted for text in texts], dtype=np.bool_)


def _texts(file: Source, series: pl.Series, rows: Sequence[int], role: Role) -> list[str | None]:
    """[M] What `text_of` gives for each value, whole columns at a time where they have a simple type.

    Raises CannotServe.
    """
    kind = series.dtype
    if kind.is_float():
        series = series.cast(pl.Float64).fill_nan(None)
        if ((series == series.round()) & (series.abs() <= EXACT_DOUBLE_MAX)).all():
            series = series.cast(pl.Int64)
    elif kind == pl.Date:
        series = series.dt.to_string("iso")
    elif kind == pl.Boolean and role == "label":
        series = series.cast(pl.Int8)
    elif kind == pl.String or isinstance(kind, pl.Categorical | pl.Enum):
        series = _canonical(series.cast(pl.String), role)
    simple = series.dtype.is_integer() and series.dtype not in {pl.Int128, pl.UInt128}
    if simple or series.dtype in {pl.String, pl.Boolean, pl.Null}:
        return series.cast(pl.String).to_list()
    return _each(series, lambda value: text_of(value, series.name, role), file, rows)


def _canonical(series: pl.Series, role: Role) -> pl.Series:
    """Texts with those replaced that spell an integer or a boolean; each distinct text is looked at once."""
    distinct = series.unique().drop_nulls()
    if role != "label":
        distinct = distinct.filter(distinct.str.contains(r"\.[0-9]|^(?:true|True|TRUE|false|False|FALSE)$"))
    known = {text: text_of(text, series.name, role) for text in distinct}
    changed = {text: other for text, other in known.items() if text != other}
    return series.replace(list(changed), list(changed.values())) if changed else series


def _numbers(file: Source, series: pl.Series, rows: Sequence[int]) -> Floats:
    """[M] float32, NaN where missing. Raises CannotServe."""
    kind, csv = series.dtype, file.form is not None
    comma = file.form is not None and file.form.decimal_comma
    empty = series.null_count() == len(series)
    if kind == pl.String and (empty or csv):
        wide = csv_cells.parse_numbers(series, decimal_comma=comma)
        if invalid := csv_cells.invalid_numbers(series, wide):
            index = invalid[0]
            text = series[index]
            advice = "leave the cell empty where the value is missing, or use the field as a category"
            if _WITH_MARKS.fullmatch(text.replace(".", ",") if comma else text):
                advice = f"write decimals with a {'comma' if comma else 'point'}, and thousands without a separator"
                if not comma and text.count(",") == 1 and "." not in text:
                    advice += f", or say that the comma is decimal: {file.options.names[1]} comma"
            raise CannotServe(
                f"{file.row(rows[index])}: field {series.name!r} is {text[:40]!r}, not a number; {advice}"
            )
    elif kind == pl.String:
        raise CannotServe(
            f"{file}: field {series.name!r} is {kind}, not a number; use the field as a category, or fix the data"
        )
    elif kind.is_decimal() or kind in {pl.Int128, pl.UInt128}:  # through text, which is rounded once
        wide = series.cast(pl.String).cast(pl.Float64)
    else:
        wide = series.cast(pl.Float64)
    with np.errstate(over="ignore"):
        values: Floats = wide.to_numpy().astype(np.float32)
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        where = rows[int(infinite[0])]
        raise CannotServe(
            f"{file.row(where)}: field {series.name!r} is not finite in float32; fix the value, or leave it empty"
        )
    return values


def _arrays(file: Source, series: pl.Series, rows: Sequence[int], size: int) -> Floats:
    """[M, size] float32 of a column of lists, NaN where a number or a whole list is missing. Raises CannotServe."""
    lists = _each(series.to_list(), lambda value: number_array(value, series.name, size), file, rows)
    inner = pl.Series(
        series.name, [value for values in lists for value in values], getattr(series.dtype, "inner", None)
    )
    return _numbers(file, inner, [row for row in rows for _ in range(size)]).reshape(len(series), size)


def _timestamps(file: Source, series: pl.Series, rows: Sequence[int]) -> Ints:
    """[M] What `timestamp_ms` gives for each value, whole columns at a time for integers and for moments.

    Raises CannotServe, naming the row.
    """
    name, kind = series.name, series.dtype
    if kind.is_float():
        series = series.cast(pl.Float64).fill_nan(None)
    elif isinstance(kind, pl.Categorical | pl.Enum):
        series = series.cast(pl.String)
    missing = series.is_null()
    if missing.any():
        where = rows[int(missing.arg_true()[0])]
        raise CannotServe(f"{file.row(where)}: field {name!r}, the timestamp, is missing; remove such rows")
    if kind == pl.String:  # all digits, as the epochs of a CSV file are
        whole = series.cast(pl.Int64, strict=False) if not series.str.contains("[^0-9]").any() else series
        series = whole if whole.null_count() == 0 else series
    if isinstance(kind, pl.Datetime):  # with a zone or without, the physical value is UTC
        times = series.to_physical().to_numpy() // PER_MS[kind.time_unit]
    elif kind == pl.Date:
        times = series.to_physical().cast(pl.Int64).to_numpy() * 86_400_000
    elif series.dtype.is_integer() and (whole := series.cast(pl.Int64, strict=False)).null_count() == 0:
        times = _epochs_ms(whole.to_numpy())
    else:
        return np.array(_each(series, lambda value: timestamp_ms(value, name), file, rows), np.int64)
    outside = np.flatnonzero((times < TIMESTAMP_MIN_MS) | (times > TIMESTAMP_MAX_MS))
    if len(outside):
        index = int(outside[0])
        reason = outside_years(int(times[index]))
        raise CannotServe(f"{file.row(rows[index])}: field {name!r} {reason}; fix the value")
    return times


def _epochs_ms(epochs: Ints) -> Ints:
    """[M] `epoch_ms` of each."""
    with np.errstate(over="ignore"):
        times = np.where((epochs > -SECONDS_BELOW) & (epochs < SECONDS_BELOW), epochs * 1000, epochs)
    for first, last in DATE_RANGES:
        dates = np.flatnonzero((epochs >= first) & (epochs <= last))
        distinct, place = np.unique(epochs[dates], return_inverse=True)
        times[dates] = np.array([epoch_ms(number) for number in distinct.tolist()], np.int64)[place]
    return times


def _each(values: Iterable[Any], parse: Callable[[Any], Any], file: Source, rows: Sequence[int]) -> list[Any]:
    """`parse` of every value. Raises CannotServe naming the row where it raises BadRecord."""
    parsed = []
    for index, value in enumerate(values):
        try:
            parsed.append(parse(value))
        except BadRecord as bad:
            raise CannotServe(f"{file.row(rows[index])}: {bad}; fix the value, or remove the row") from bad
    return parsed
