"""How a CSV file separates cells and decimals: by its header, by its rows, or as the user says. Needs no polars.

Nothing is guessed silently: what is not a plain CSV file with commas is noted, and what can be read in two ways is an
error that names the option which decides.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

from lstmstream.errors import CannotServe
from lstmstream.formats.files import text_start
from lstmstream.formats.framing import GZIP, compression

Delimiter = Literal[",", ";", "|", "tab"]
Decimal = Literal["point", "comma"]

DELIMITERS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}  # that are looked for, and their names in messages
_START_BYTES = 65_536
_COMPARED_ROWS = 20
_LISTED_CELLS = 6
_NOT_IN_CP1252 = {b"\x81", b"\x8d", b"\x8f", b"\x90", b"\x9d"}
_NUMBER = re.compile(r"[+-]?[0-9]+(?:[.,][0-9]+)*")


@dataclass(frozen=True, slots=True)
class CsvOptions:
    """What the user says of CSV files; None is found from the file. `names`: of the two options, in messages."""

    delimiter: str | None = None
    decimal: Decimal | None = None
    names: tuple[str, str] = ("--delimiter", "--decimal")

    @classmethod
    def of(
        cls, delimiter: Delimiter | None, decimal: Decimal | None, names: tuple[str, str] = ("--delimiter", "--decimal")
    ) -> CsvOptions:
        """The options as a command line or a configuration has them."""
        return cls("\t" if delimiter == "tab" else delimiter, decimal, names)


FROM_FILE = CsvOptions()  # nothing is said


class CsvForm(NamedTuple):
    """How one file is written."""

    delimiter: str
    decimal_comma: bool = False
    skipped_lines: int = 0  # before the header


@dataclass(frozen=True, slots=True)
class Source:
    """A file and its rows, as messages name them. `form` is that of CSV."""

    path: Path
    form: CsvForm | None = None
    options: CsvOptions = FROM_FILE

    def __str__(self) -> str:
        return str(self.path)

    def row(self, row: int) -> str:
        """The place of a row, counted from 0; for CSV with its line, as editors understand it."""
        line = None if self.form is None else line_of_row(self.path, self.form, row)
        return f"{self.path}: row {row}" if line is None else f"{self.path}:{line}: row {row}"


def csv_form(path: Path, options: CsvOptions, wanted: Collection[str]) -> tuple[CsvForm, list[str]]:
    """The file's form by its first rows, and what was found that nobody has said; decimal commas only by `options`.

    `wanted` are the fields that are asked for: where the header can be split in several ways, it is the way that finds
    them. Raises CannotServe for UTF-16, for lines that end in CR, and where the header does not decide.
    """
    start = text_start(path, _START_BYTES)
    if start[:2] in {BOM_UTF16_BE, BOM_UTF16_LE} or b"\0" in start[:2]:
        raise CannotServe(f"{path}: looks like UTF-16; save it as UTF-8")
    text = start.decode("utf-8-sig", errors="replace")  # what is not UTF-8, polars refuses
    header = text.partition("\n")[0].removesuffix("\r")
    if "\r" in header:
        raise CannotServe(f"{path}: its lines end in CR only; save it with LF or CRLF (mac2unix does so)")
    comma = options.decimal == "comma"
    if header.casefold().startswith("sep=") and len(header) == len("sep=;"):  # Excel's line
        found = options.delimiter or header[-1]
        return CsvForm(found, comma, 1), [f"is separated by {delimiter_name(found)}, as its first line says,"]
    lines = list(io.StringIO(text, newline=""))
    _check_header(path, lines, options, wanted)
    if options.delimiter is not None:
        return CsvForm(options.delimiter, comma), []
    found, others = _delimiter(path, lines[:-1] if len(start) >= _START_BYTES else lines, options, wanted)
    if found == "," and not others:
        return CsvForm(found, comma), []
    also = f", though its header has {_names(others)} too," if others else ""
    return CsvForm(found, comma), [f"is separated by {delimiter_name(found)}{also}"]


def delimiter_name(delimiter: str) -> str:
    """How messages call it."""
    return DELIMITERS.get(delimiter, repr(delimiter))


def _check_header(path: Path, lines: Sequence[str], options: CsvOptions, wanted: Collection[str]) -> None:
    """Raises CannotServe where the first line has none of the fields `wanted`: it is a row, or above the header.

    Other names are left to those who know which fields are similar.
    """
    signs = DELIMITERS if options.delimiter is None else [options.delimiter]
    numbers = [number for number, line in enumerate(lines[:_COMPARED_ROWS], 1) if line.strip()]
    rows = [[_cells(lines[number - 1], sign) for sign in signs] for number in numbers]
    names = set(wanted)
    if not names or not rows or any(names & set(cells) for cells in rows[0]):
        return
    for number, ways in zip(numbers[1:], rows[1:], strict=True):
        if any(2 * len(names & set(cells)) > len(names) for cells in ways):  # those of output.include may be missing
            raise CannotServe(
                f"{path}: the names of the columns are in line {number}, and must be in the first one; remove the"
                " lines before them"
            )
    first = max(rows[0], key=len)
    if any(_NUMBER.fullmatch(cell.strip()) for cell in first):
        cells = ", ".join(map(repr, first[:_LISTED_CELLS]))
        raise CannotServe(
            f"{path}: its first line must name the columns, and begins with {cells}; put a line with the names before"
            " it"
        )


def _cells(line: str, delimiter: str) -> list[str]:
    cells: list[str] = []
    with suppress(csv.Error):
        cells = next(csv.reader([line], delimiter=delimiter), [])
    return cells


def _delimiter(
    path: Path, lines: Sequence[str], options: CsvOptions, wanted: Collection[str]
) -> tuple[str, Sequence[str]]:
    """The delimiter, and the others that may be meant as well. Raises CannotServe."""
    tables = {sign: _rows(lines, sign) for sign in DELIMITERS}
    present = [sign for sign, rows in tables.items() if len(rows[0]) > 1]
    if not present:
        return ",", ()
    found = {sign: len(set(tables[sign][0]) & set(wanted)) for sign in {",", *present}}
    best = [sign for sign, count in found.items() if count == max(found.values())]
    if best == [","] and found[","] == len(set(wanted)):
        return ",", ()
    if len(best) > 1:
        best = [sign for sign in best if sign in present]
    if len(best) > 1:
        best = [sign for sign in best if all(len(row) == len(tables[sign][0]) for row in tables[sign])]
    if len(best) == 1:
        return best[0], [sign for sign in present if sign != best[0]]
    ways = " and ".join(f"at {delimiter_name(sign)} into {len(tables[sign][0])} columns" for sign in present)
    raise CannotServe(f"{path}: its header can be split {ways}; say which is meant, such as {options.names[0]} ';'")


def _names(signs: Sequence[str]) -> str:
    return " and ".join(map(delimiter_name, signs))


def _rows(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """The header and some rows after it, without blank ones."""
    rows = []
    with suppress(csv.Error):
        rows = list(islice(filter(None, csv.reader(lines, delimiter=delimiter)), _COMPARED_ROWS))
    return rows or [[]]


def line_of_row(path: Path, form: CsvForm, row: int) -> int | None:
    """The line, from 1, at which a row begins, from 0 and with blank ones; None where that is not known."""
    with _opened(path) as file, suppress(csv.Error, OSError, UnicodeError, EOFError):
        reader = _reader(file, form)
        next(filter(None, reader), None)  # the header, after blank rows
        for _ in islice(reader, row):
            pass
        line: int = form.skipped_lines + reader.line_num + 1
        return line if next(reader, None) is not None else None
    return None


def ragged_row(path: Path, form: CsvForm) -> str | None:
    """Where the first row is that has more cells than the header, and how many; None where there is none."""
    with _opened(path) as file, suppress(csv.Error, OSError, UnicodeError, EOFError):
        reader = _reader(file, form)
        header: list[str] = next(filter(None, reader), [])
        line = form.skipped_lines + reader.line_num + 1
        for row in reader:
            if len(row) > len(header):
                return f"line {line} has {len(row)} cells, and the header {len(header)}"
            line = form.skipped_lines + reader.line_num + 1
    return None


def not_utf8(path: Path) -> str | None:
    """Where the first byte is that is not of UTF-8, and what it most likely means; None where there is none."""
    with _bytes(path) as file, suppress(OSError, EOFError):
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = line[error.start : error.start + 1]
                meant = f" ({byte.decode('cp1252')!r} in Windows-1252)" if byte not in _NOT_IN_CP1252 else ""
                return f"line {number} has the byte 0x{byte.hex()}{meant}, which is not UTF-8"
    return None


def _opened(path: Path) -> IO[str]:
    """The text of a file, plain or compressed by gzip; nothing of others. What is not UTF-8 is replaced."""
    return io.TextIOWrapper(_bytes(path), encoding="utf-8-sig", errors="replace", newline="")


def _bytes(path: Path) -> IO[bytes]:
    """The bytes of `_opened`."""
    with path.open("rb") as file:
        packed = compression(file.read(6))
    if packed == GZIP:
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return io.BytesIO() if packed else path.open("rb")


def _reader(file: IO[str], form: CsvForm) -> Any:
    for _ in range(form.skipped_lines):
        file.readline()
    return csv.reader(file, delimiter=form.delimiter)
