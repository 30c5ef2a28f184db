"""What scoring and training must read alike in a CSV file: which cells are numbers, and why a file is not valid CSV.

polars guesses a column's type from the whole column, so that one odd cell would turn every number into text. Columns
whose type matters are therefore read as text, and each cell is parsed by itself. Needs polars (extra `tables`).
"""

from __future__ import annotations

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Collection
from pathlib import Path

import polars as pl

from lstmstream.errors import CannotServe
from lstmstream.formats.files import first_line, table_kind

_INT64_LIMIT = 2**63
_INTEGER = re.compile(r"[+-]?[0-9]+")
_HEADER_BYTES = 65_536
_ERROR_CHARS = 160  # polars quotes all the text that follows an unclosed quote
_SEPARATORS = {";": "';'", "\t": "tabs", "|": "'|'"}
_ADVICE = {  # by words of polars' message, whose own advice is for its callers
    "not properly escaped": "close each quote, and write a quote inside quotes twice",
    "found more fields": "a row has more cells than the header; put quotes around text that holds a comma",
    "utf-8": "save it as UTF-8",
    "empty CSV": "its first line must name the columns",
    "unexpected end of file": "the file was cut off: fetch it again",
}


def check_csv_format(path: Path, wanted: Collection[str]) -> None:
    """Raises CannotServe for UTF-16, for lines that end in CR, and for a file whose cells are not separated by commas.

    A header that has any column of `wanted` is accepted, whatever else is in it.
    """
    start = first_line(path, _HEADER_BYTES)
    if start[:2] in {BOM_UTF16_BE, BOM_UTF16_LE} or b"\0" in start[:2]:
        raise CannotServe(f"{path}: looks like UTF-16; save it with commas, as UTF-8")
    try:
        header = start.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        return  # polars decides
    if "\r" in header:
        raise CannotServe(f"{path}: its lines end in CR only; save it with LF or CRLF (mac2unix does so)")
    if header.casefold().startswith("sep="):
        raise CannotServe(f"{path}: begins with Excel's line {header[:10]!r}; remove it, and separate by commas")
    separator = max([",", *_SEPARATORS], key=header.count)
    if separator not in _SEPARATORS or not header.count(separator):
        return
    if not {name.strip('"') for name in header.split(",")} & set(wanted):
        raise CannotServe(
            f"{path}: looks separated by {_SEPARATORS[separator]}; save it with commas, and with points in"
            " numbers, as UTF-8"
        )


def read_error(path: Path, error: Exception) -> CannotServe:
    """The error for a CSV or Parquet file that polars cannot read, in one line."""
    text = str(error)
    first_line = text.partition("\n")[0][:_ERROR_CHARS]
    advice = next((advice for words, advice in _ADVICE.items() if words in text), "fix the file, or write it again")
    return CannotServe(f"{path}: cannot be read as {table_kind(path)}: {first_line}; {advice}")


def parse_numbers(cells: pl.Series) -> pl.Series:
    """[M] float64 of cells that hold a number, with or without spaces around it; null for all other cells."""
    return cells.str.strip_chars().cast(pl.Float64, strict=False)


def invalid_numbers(cells: pl.Series, numbers: pl.Series) -> list[int]:
    """Indices of cells that are neither empty nor a number; `numbers` is the result of `parse_numbers`."""
    return (numbers.is_null() & (cells.str.strip_chars() != "")).arg_true().to_list()


def parse_cells(cells: pl.Series) -> list[int | float | str | None]:
    """[M] Each cell as JSON would have it: a number, integers of any size exactly, else the text as it is written.

    None where the cell is empty.
    """
    integers = cells.str.strip_chars().cast(pl.Int64, strict=False)
    if not integers.null_count():
        return integers.to_list()
    numbers = parse_numbers(cells)
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
