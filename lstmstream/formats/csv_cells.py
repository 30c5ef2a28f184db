"""What scoring and training must read alike in a CSV file: which cells are numbers, and why a file is not valid CSV.

polars guesses a column's type from the whole column, so that one odd cell would turn every number into text. Columns
whose type matters are therefore read as text, and each cell is parsed by itself. Needs polars (extra `tables`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from lstmstream.errors import CannotServe
from lstmstream.formats.csv_form import CsvForm, CsvOptions, Source, not_utf8, ragged_row
from lstmstream.formats.files import table_kind

_INT64_LIMIT = 2**63
_INTEGER = re.compile(r"[+-]?[0-9]+")
_WITH_COMMA = r"^\s*[+-]?[0-9]*,[0-9]+(?:[eE][+-]?[0-9]+)?\s*$"
_THOUSANDS = r"^\s*[+-]?[1-9][0-9]{0,2},[0-9]{3}\s*$"  # or a decimal comma
_WITH_POINT = r"^\s*[+-]?[0-9]*\.[0-9]+(?:[eE][+-]?[0-9]+)?\s*$"
NUMBER_WITH_POINT = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
NUMBER_WITH_EITHER = NUMBER_WITH_POINT.replace(r"\.", "[.,]")
_ERROR_CHARS = 160  # polars quotes all the text that follows an unclosed quote
_RAGGED = "found more fields"
_HELD = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a '|'"}
_ADVICE = {  # by words of polars' message, whose own advice is for its callers
    "not properly escaped": "close each quote, and write a quote inside quotes twice",
    _RAGGED: "a row has more cells than the header; put quotes around text that holds the delimiter",
    "utf-8": "save it as UTF-8 (such as by iconv -f WINDOWS-1252 -t UTF-8)",
    "empty CSV": "its first line must name the columns",
    "unexpected end of file": "the file was cut off: fetch it again",
}


def read_error(path: Path, error: Exception, form: CsvForm | None = None) -> CannotServe:
    """The error for a CSV or Parquet file that polars cannot read, in one line."""
    text = str(error)
    first_line = text.partition("\n")[0][:_ERROR_CHARS]
    advice = next((advice for words, advice in _ADVICE.items() if words in text), "fix the file, or write it again")
    if form is not None and advice is _ADVICE[_RAGGED]:
        first_line = ragged_row(path, form) or first_line
        advice = f"put quotes around text that holds {_HELD.get(form.delimiter, 'the delimiter')}"
    if advice is _ADVICE["utf-8"]:
        first_line = not_utf8(path) or first_line
    return CannotServe(f"{path}: cannot be read as {table_kind(path)}: {first_line}; {advice}")


def find_decimal_comma(
    path: Path, scan: pl.LazyFrame, form: CsvForm, options: CsvOptions, numbers: Mapping[str, pl.Expr]
) -> tuple[CsvForm, list[str]]:
    """The form with the decimal comma, if the file has it, and what was found; `numbers`: columns of numbers, by name.

    Only a file with semicolons is searched, as its commas cannot separate cells. Each number with a comma is either a
    decimal (59,71) or has thousands (1,234): a file that has only such as 1,234, or points in other numbers, does not
    say which. Raises CannotServe for it, with the row of an example. Looks at the whole file.
    """
    if form.delimiter != ";" or options.decimal is not None or not numbers:
        return form, []
    cells = list(numbers.values())
    comma = [one.str.contains(_WITH_COMMA) for one in cells]
    seen = {
        "comma": comma,
        "decimal": [has & ~one.str.contains(_THOUSANDS) for has, one in zip(comma, cells, strict=True)],
        "point": [one.str.contains(_WITH_POINT) for one in cells],
    }
    found = scan.select(pl.any_horizontal(any_of).any().alias(name) for name, any_of in seen.items()).collect(
        engine="streaming"
    )
    if not found["comma"][0]:
        return form, []
    if found["decimal"][0] and not found["point"][0]:
        return form._replace(decimal_comma=True), ["has decimal commas"]
    examples = [_example(path, scan, form, numbers, _WITH_COMMA)]
    examples += [_example(path, scan, form, numbers, _WITH_POINT)] if found["point"][0] else []
    raise CannotServe(
        f"{' and '.join(examples)}: it is not clear whether the comma is decimal; say so, by {options.names[1]} comma"
        " or point"
    )


def _example(path: Path, scan: pl.LazyFrame, form: CsvForm, numbers: Mapping[str, pl.Expr], pattern: str) -> str:
    """Where the first number is that has the pattern, and what it is."""
    rows = {
        name: scan.select(cells).with_row_index("row").filter(pl.last().str.contains(pattern)).head(1).collect()
        for name, cells in numbers.items()
    }
    name, frame = min(((name, frame) for name, frame in rows.items() if len(frame)), key=lambda pair: pair[1]["row"][0])
    return f"{Source(path, form).row(frame['row'][0])}: field {name!r} is {frame.row(0)[1]!r}"


def swap_marks(cells: Any) -> Any:
    """Cells, a series or an expression: decimal commas become points, and points, perhaps of thousands, commas."""
    return cells.str.replace_many([",", "."], [".", ","])


def parse_numbers(cells: pl.Series, *, decimal_comma: bool = False) -> pl.Series:
    """[M] float64 of cells that hold a number, with or without spaces around it; null for all other cells."""
    pointed: pl.Series = swap_marks(cells) if decimal_comma else cells
    return pointed.str.strip_chars().cast(pl.Float64, strict=False)


def invalid_numbers(cells: pl.Series, numbers: pl.Series) -> list[int]:
    """Indices of cells that are neither empty nor a number; `numbers` is the result of `parse_numbers`."""
    return (numbers.is_null() & (cells.str.strip_chars() != "")).arg_true().to_list()


def parse_cells(cells: pl.Series, *, decimal_comma: bool = False) -> list[int | float | str | None]:
    """[M] Each cell as JSON would have it: a number, integers of any size exactly, else the text as it is written.

    None where the cell is empty.
    """
    integers = cells.str.strip_chars().cast(pl.Int64, strict=False)
    if not integers.null_count():
        return integers.to_list()
    numbers = parse_numbers(cells, decimal_comma=decimal_comma)
    pairs = zip(integers.to_list(), numbers.to_list(), strict=True)
    values = [number if integer is None else integer for integer, number in pairs]
    for index in (integers.is_null() & (numbers.abs() >= _INT64_LIMIT) & numbers.is_finite()).arg_true().to_list():
        if _INTEGER.fullmatch(text := cells[index].strip()):
            values[index] = int(text)
    if invalid := invalid_numbers(cells, numbers):
        texts = cells.to_list()
        for index in invalid:
            values[index] = texts[index]
    return values
