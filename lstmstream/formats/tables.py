"""Rows of CSV and Parquet as JSON events, so that a table is decoded as an event from Kafka is.

Only columns that are asked for are read. Each becomes a field under the name it was asked for: the field
`merchant.city` may be a column of that name, or a column `merchant` of structs. Needs polars (extra `tables`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from math import isinf
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import polars as pl

from lstmstream.errors import BadRecord, CannotServe
from lstmstream.formats import csv_cells
from lstmstream.formats.columns import ColumnRole, find_column, is_repeated, repeated_column, type_problem
from lstmstream.formats.csv_form import FROM_FILE, CsvForm, CsvOptions, csv_form
from lstmstream.formats.field_roles import FieldRoles
from lstmstream.formats.files import table_kind
from lstmstream.formats.iso_columns import iso_texts
from lstmstream.formats.timestamps import TIMESTAMP_MAX_MS, TIMESTAMP_MIN_MS
from lstmstream.formats.values import INT_LIMIT, INT_MIN, decode_bytes
from lstmstream.wording import counted

CHUNK_ROWS = 4096
PER_MS = {"ms": 1, "us": 1000, "ns": 1_000_000}
_CODE = r"^(?:0[0-9]|\+[0-9]{7,}$)"  # 007, and a telephone number
_MOSTLY = 0.95  # of a column's cells are numbers
_BLANK = "\0blank"  # a column name that no file has
_DAY_MS = 86_400_000
_JSON_NUMBER = r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?$"


class _Column(NamedTuple):
    """Where the values of one field come from and what they are read as."""

    path: tuple[str, ...]  # of the value in the event
    expression: pl.Expr
    is_number: bool = False
    is_time: bool = False
    is_text: bool = False
    number_literals: bool = False  # of CSV: each cell is a JSON number


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a table, not yet read. `form` is that of CSV, all of whose columns are text: 007 is not 7."""

    path: Path
    scan: pl.LazyFrame
    form: CsvForm | None
    found: list[str]  # of the form of CSV, what nobody has said

    @property
    def fields(self) -> list[str]:
        """The names of the columns, and with dots those of the fields of structs."""
        with reading(self.path, self.form):
            schema = self.scan.collect_schema()
        return [name for first, kind in schema.items() for name in _nested_names(first, kind)]

    @property
    def notes(self) -> list[str]:
        """What the user should know, one line each."""
        found = " and ".join(self.found).removesuffix(",")
        return [f"{self.path}: {found}; it is read as such"] if found else []

    def count(self) -> int | None:
        """The number of rows where the file says it; None for CSV."""
        if self.form is not None:
            return None
        with reading(self.path):
            return int(self.scan.select(pl.len()).collect().item())

    def with_decimals(self, options: CsvOptions, numbers: Mapping[str, pl.Expr]) -> Table:
        """The table with the decimal comma in its form if its `numbers` have it. Raises CannotServe."""
        if self.form is None:
            return self
        form, found = csv_cells.find_decimal_comma(self.path, self.scan, self.form, options, numbers)
        return replace(self, form=form, found=[*self.found, *found])


@contextmanager
def reading(path: Path, form: CsvForm | None = None) -> Iterator[None]:
    """Turns errors of polars and of the system into CannotServe."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        raise csv_cells.read_error(path, error, form) from error


def open_table(path: Path, options: CsvOptions, wanted: Collection[str]) -> Table:
    """The table in a file. `wanted`: fields that are asked for, which help to find the delimiter of CSV.

    Raises CannotServe for a file that cannot be read.
    """
    with reading(path):
        kind = table_kind(path)
        if kind != "csv":
            return Table(path, pl.scan_ipc(path) if kind == "arrow" else pl.scan_parquet(path), None, [])
        form, found = csv_form(path, options, wanted)
        scan = pl.scan_csv(path, infer_schema=False, separator=form.delimiter, skip_lines=form.skipped_lines)
        return Table(path, scan, form, found)


def table_events(table: Table, roles: FieldRoles, options: CsvOptions = FROM_FILE) -> Iterator[bytes]:
    """Each row as a JSON object, b"" for a blank row of CSV. Nulls and NaN are left out, times are ISO 8601.

    `options` must be those that the table was opened with; its `found` gets decimal commas too.

    Raises CannotServe, at once for a column whose type cannot be read in its role, and while its rows are read where
    one cannot be.
    """
    with reading(table.path, table.form):
        columns = _plan(table, roles)
        numbers = {".".join(one.path): one.expression for one in columns if one.is_number}
        found = table.with_decimals(options, numbers)
        table.found[:] = found.found
        if found.form is not None:
            columns = _with_literals(found.scan, found.form, columns)
    return _rows(found, columns)


def numeric_columns(table: Table, options: CsvOptions, *, without: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Columns of CSV that are numbers, for a reader that knows no roles; and a note for those with other cells too.

    A column is of numbers if they are most of its cells, and none of them is a code. Looks at the whole file.

    Raises CannotServe.
    """
    names = [name for name in table.scan.collect_schema() if name not in without]
    if table.form is None or not names:
        return [], []
    with reading(table.path, table.form):
        comma = table.form.decimal_comma or (table.form.delimiter == ";" and options.decimal is None)
        number = csv_cells.NUMBER_WITH_EITHER if comma else csv_cells.NUMBER_WITH_POINT
        cells = [pl.col(name).str.strip_chars() for name in names]
        found = (
            table.scan.select(
                pl.struct(
                    filled=(one.is_not_null() & (one != "")).sum(),
                    numbers=one.str.contains(number).sum(),
                    codes=one.str.contains(_CODE).sum(),
                ).alias(name)
                for name, one in zip(names, cells, strict=True)
            )
            .collect(engine="streaming")
            .row(0, named=True)
        )
    numeric, notes = [], []
    for name, seen in found.items():
        others = seen["filled"] - seen["numbers"]
        if seen["codes"] or not seen["numbers"] or seen["numbers"] < _MOSTLY * seen["filled"]:
            continue
        numeric.append(name)
        if others:
            notes.append(
                f"{table.path}: column {name!r} has numbers and {counted(others, 'cell')} of other text, which"
                " a model that reads a number refuses"
            )
    return numeric, notes


def _nested_names(name: str, kind: Any) -> list[str]:
    inner = kind.fields if isinstance(kind, pl.Struct) else []
    return [name, *(f"{name}.{deeper}" for field in inner for deeper in _nested_names(field.name, field.dtype))]


def _plan(table: Table, roles: FieldRoles) -> list[_Column]:
    file, schema, csv = table.path, table.scan.collect_schema(), table.form is not None
    columns, problems = [], []
    checked: list[tuple[ColumnRole, Sequence[str]]] = [
        ("key", roles.keys), ("time", roles.times), ("number", roles.numbers), ("array", roles.arrays),
        ("category", roles.categories),
    ]  # fmt: skip
    for name in roles.all():
        if csv and is_repeated(name, schema):
            problems.append(repeated_column(file, name))
        expression = find_column(name, schema)
        if expression is None:
            if name in roles.passthrough:  # an object of flat columns
                columns += [
                    _Column((name, *inner[len(name) + 1 :].split(".")), pl.col(inner))
                    for inner in schema
                    if inner.startswith(f"{name}.")
                ]
            continue
        kind = pl.LazyFrame(schema=schema).select(expression).collect_schema().dtypes()[0]
        problems += [
            f"{file}: field {name!r} is {reason}"
            for role, names in checked
            if name in names and (reason := type_problem(kind, role, csv=csv)) is not None
        ]
        is_text = name in roles.keys or name in roles.categories
        columns.append(_Column((name,), expression, name in roles.numbers, name in roles.times, is_text))
    if problems:
        raise CannotServe(*problems)
    return columns


def _with_literals(scan: pl.LazyFrame, form: CsvForm, columns: list[_Column]) -> list[_Column]:
    """The columns of CSV, with those noted that hold JSON numbers only. Looks at the whole file."""
    free = [at for at, column in enumerate(columns) if not (column.is_number or column.is_time or column.is_text)]
    if not free:
        return columns
    found = scan.select(
        _pointed(columns[at].expression, form).str.contains(_JSON_NUMBER).all(ignore_nulls=True).alias(str(at))
        for at in free
    ).collect(engine="streaming")
    for at in free:
        columns[at] = columns[at]._replace(number_literals=bool(found[str(at)][0]))
    return columns


def _pointed(cells: Any, form: CsvForm) -> Any:
    """Cells, a series or an expression, with decimal points."""
    return csv_cells.swap_marks(cells) if form.decimal_comma else cells


def _rows(table: Table, columns: list[_Column]) -> Iterator[bytes]:
    csv = table.form is not None
    blank = pl.all_horizontal(pl.all().is_null()) if csv else pl.first().is_null()
    wanted = [column.expression.alias(str(at)) for at, column in enumerate(columns)]
    if csv or not wanted:
        wanted.append(blank.alias(_BLANK))
    row = 0
    with reading(table.path, table.form):
        for chunk in table.scan.select(wanted).collect_batches(maintain_order=True, chunk_size=CHUNK_ROWS):
            if not columns:
                values: Iterator[tuple[Any, ...]] = iter([()] * len(chunk))
            else:
                values = zip(
                    *(_values(table, row, chunk[str(at)], column) for at, column in enumerate(columns)), strict=True
                )
            blanks = chunk[_BLANK].to_list() if csv else [False] * len(chunk)
            paths = [column.path for column in columns]
            for is_blank, cells in zip(blanks, values, strict=True):
                yield b"" if is_blank else _event(paths, cells)
            row += len(chunk)


def _event(paths: list[tuple[str, ...]], cells: tuple[Any, ...]) -> bytes:
    event: dict[str, Any] = {}
    for (*outer, last), value in zip(paths, cells, strict=True):
        if value is None:
            continue
        here = event
        for name in outer:
            here = here.setdefault(name, {})
        here[last] = value
    return orjson.dumps(event, default=str, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)


def _values(table: Table, row: int, series: pl.Series, column: _Column) -> list[Any]:
    """[M] What orjson writes for each value; None where it is missing. `row` is the first row's in the file."""
    kind = series.dtype
    values: list[Any]
    if table.form is not None and column.is_number:
        values = _csv_numbers(series, table.form)
    elif table.form is not None and column.number_literals:
        cells = _pointed(series, table.form).to_list()
        values = [None if cell is None else orjson.Fragment(cell) for cell in cells]
    elif table.form is not None:
        values = series.to_list()
    elif kind.is_float():
        values = series.fill_nan(None).to_list()
        if series.is_infinite().any():
            values = [_json_value(value) for value in values]
    elif kind.is_decimal():
        values = [None if value is None else _decimal(value, as_text=column.is_time) for value in series.to_list()]
    elif kind == pl.Binary:
        values = _binary_texts(table.path, row, series, column)
    elif isinstance(kind, pl.Datetime):
        values = _moments(series, kind)
    elif kind.is_nested() or kind in {pl.Int128, pl.UInt128}:
        values = [_json_value(value) for value in series.to_list()]
    else:  # of dates the text, since Python has none after 9999
        values = (series.dt.to_string("iso") if kind == pl.Date else series).to_list()
    return values


def _csv_numbers(cells: pl.Series, form: CsvForm) -> list[Any]:
    """Cells that spell a number as that number; other text as it is."""
    values: list[Any] = csv_cells.parse_cells(cells, decimal_comma=form.decimal_comma)
    for index, value in enumerate(values):
        if type(value) is float or type(value) is int:
            values[index] = None if value != value else _json_value(value)  # noqa: PLR0124 -- NaN
        elif value is not None and not value.strip():
            values[index] = None
    return values


def _binary_texts(file: Path, row: int, series: pl.Series, column: _Column) -> list[str | None]:
    """Texts of bytes. Those that are not UTF-8 are missing in a field that is only written to predictions."""
    texts: list[str | None] = []
    for index, value in enumerate(series.to_list()):
        try:
            texts.append(None if value is None else decode_bytes(value, column.path[0]))
        except BadRecord as bad:
            if column.is_text or column.is_time:
                raise CannotServe(f"{file}: row {row + index}: {bad}") from bad
            texts.append(None)
    return texts


def _moments(series: pl.Series, kind: pl.Datetime) -> list[Any]:
    """Datetimes, which orjson writes as ISO 8601; what Python's years cannot hold as a number of milliseconds."""
    ms = series.to_physical() // PER_MS[kind.time_unit]
    far = (ms < TIMESTAMP_MIN_MS + _DAY_MS) | (ms > TIMESTAMP_MAX_MS - _DAY_MS)  # a time zone may add some hours
    if not far.any():
        return series.to_list()
    values: list[Any] = series.set(far.fill_null(value=False), None).to_list()
    for index in far.fill_null(value=False).arg_true().to_list():
        inside = TIMESTAMP_MIN_MS <= ms[index] <= TIMESTAMP_MAX_MS
        values[index] = iso_texts(ms[index : index + 1].to_numpy())[0].decode() + "Z" if inside else ms[index]
    return values


def _decimal(value: Decimal, *, as_text: bool) -> Any:
    """A whole number with all its digits. Others as JSON's number, or as text, which keeps digits beyond a double's."""
    if value == value.to_integral_value():
        return _json_value(int(value))
    return format(value, "f") if as_text else orjson.Fragment(format(value, "f"))


def _json_value(value: Any) -> Any:
    """What orjson writes exactly, or, for an infinite number, in a way that is refused and not taken for missing."""
    if isinstance(value, float) and isinf(value):
        return orjson.Fragment("1e400" if value > 0 else "-1e400")
    if isinstance(value, int):
        return value if INT_MIN <= value < INT_LIMIT else orjson.Fragment(str(value))
    if isinstance(value, Decimal):
        return _decimal(value, as_text=False)
    if isinstance(value, dict):
        return {name: _json_value(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_json_value(inner) for inner in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value
