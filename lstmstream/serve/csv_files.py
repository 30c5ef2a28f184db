"""What `score` and `train` must see alike in a CSV file: which cells are numbers, and why a file is no good CSV.

polars guesses a column's type from the whole column, so one odd cell would turn every number into text. Columns that
matter are therefore read as text, and each cell is judged by itself. Knows files and cells, not what they are for.
"""

from __future__ import annotations

from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Collection
from pathlib import Path

import polars as pl

from lstmstream.errors import CannotServe

_HEADER_BYTES = 65_536
_ERROR_CHARS = 160  # an unclosed quote is told with all that follows it
_SIGNS = {";": "';'", "\t": "tabs", "|": "'|'"}
_ADVICE = {  # by what polars says; its own advice is for those who call it
    "not properly escaped": "close each quote, and write a quote inside quotes twice",
    "found more fields": "a row has more cells than the header; put quotes around text that holds a comma",
    "utf-8": "save it as UTF-8",
    "empty CSV": "its first line must name the columns",
}


def refuse_other_formats(path: Path, wanted: Collection[str]) -> None:
    """Raises CannotServe for UTF-16, and for cells that are separated by another sign than commas.

    Where any column of `wanted` is there, the file is as it should be, whatever else is in the header.
    """
    with path.open("rb") as file:
        start = file.readline(_HEADER_BYTES)
    if start[:2] in {BOM_UTF16_BE, BOM_UTF16_LE} or b"\0" in start[:2]:
        raise CannotServe(f"{path}: it looks like UTF-16; save it with commas, as UTF-8")
    try:
        header = start.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        return  # polars judges it: it may be compressed
    sign = max([",", *_SIGNS], key=header.count)
    if sign in _SIGNS and header.count(sign) and not {name.strip('"') for name in header.split(",")} & set(wanted):
        raise CannotServe(f"{path}: it looks separated by {_SIGNS[sign]}; save it with commas, as UTF-8")


def unreadable(path: Path, error: Exception) -> CannotServe:
    """What polars could not read, in one line."""
    whole = str(error)
    first = whole.partition("\n")[0][:_ERROR_CHARS]
    advice = next((advice for mark, advice in _ADVICE.items() if mark in whole), "mend the file, or write it anew")
    return CannotServe(f"{path}: cannot be read as {path.suffix.lower()[1:]}: {first}; {advice}")


def numbers(cells: pl.Series) -> pl.Series:
    """[M] float64: text that is a number, spaces around it or not. Null where a cell is empty, or no number."""
    return cells.str.strip_chars().cast(pl.Float64, strict=False)


def not_numbers(cells: pl.Series, wide: pl.Series) -> list[int]:
    """The places of text that is there and no number; `wide` is what `numbers` made of it."""
    return (wide.is_null() & (cells.str.strip_chars() != "")).arg_true().to_list()


def values(cells: pl.Series) -> list[int | float | str | None]:
    """[M] Each cell as JSON would have it: a number, else the text as it is written; None where it is empty."""
    whole = cells.str.strip_chars().cast(pl.Int64, strict=False)
    if not whole.null_count():
        return whole.to_list()
    wide = numbers(cells)
    pairs = zip(whole.to_list(), wide.to_list(), strict=True)
    found = [real if integer is None else integer for integer, real in pairs]
    if wrong := not_numbers(cells, wide):
        written = cells.to_list()
        for place in wrong:
            found[place] = written[place]
    return found
