"""Files of events to chunks of columns: JSONL, CSV or Parquet, a chunk at a time, so that a file may exceed memory.

What a file holds is seen by its first bytes, as in `lstmstream score` (`lstmstream.formats.files`). A value means what
the daemon reads in an event: a line of JSONL goes through the daemon's decoder, and what would be a dead letter there
is an error here. CSV and Parquet need polars (extra `tables`); JSONL does not.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from lstmstream.errors import CannotServe
from lstmstream.extras import require_for_table
from lstmstream.formats.csv_form import FROM_FILE, CsvOptions
from lstmstream.formats.files import DataFile
from lstmstream.history.fields import Chunk, Fields
from lstmstream.history.jsonl import JsonlReader
from lstmstream.row_progress import RowProgress

_NUMBER_OR_CHAR = re.compile(r"[0-9]+|[^0-9]", re.DOTALL)
_LISTED_FILES = 3  # at the beginning and at the end of a list in a message


def resolve_paths(
    paths: Sequence[str], folder: Path, notes: list[str] | None = None, *, option: str = "data.path"
) -> list[Path]:
    """The files that `paths` name, each file once; the matches of a pattern with * by name, numbers by their value.

    Relative paths start from `folder`; `notes` gets a line for a file that is named twice. Raises CannotServe, naming
    the `option`, for a path or pattern without a file.
    """
    files: list[Path] = []
    for entry in paths:
        path = folder / entry
        if path.exists() and not path.is_dir():  # even if its name contains * or [; a pipe too
            files.append(path)
        elif any(char in entry for char in "*?["):
            matches = [match for match in map(Path, glob.glob(str(path))) if match.is_file()]  # noqa: PTH207 -- the pattern may be absolute
            if not matches:
                raise CannotServe(f"{option}: no file matches {entry}; check the pattern, it starts from {folder}")
            files += sorted(matches, key=natural_order)
        elif path.exists():
            example = f"{entry.rstrip('/')}/*.parquet"
            raise CannotServe(f"{option}: {path} is not a file; for a folder write a pattern, such as {example}")
        else:
            raise CannotServe(f"{option}: {path} does not exist; relative paths start from {folder}")
    return _each_once(files, [] if notes is None else notes, option)


def natural_order(path: Path) -> tuple[list[tuple[str, int]], str]:
    """A sort key: by name, but the numbers in names by their value, so that part-2 comes before part-10."""
    name = str(path)
    pieces = _NUMBER_OR_CHAR.findall(name)
    return [("0", int(piece)) if "0" <= piece[0] <= "9" else (piece, 0) for piece in pieces], name


def order_note(files: Sequence[Path]) -> str:
    """The line that says in which order rows without a timestamp count."""
    names = [path.name for path in files]
    if len(set(names)) < len(names):
        names = list(map(str, files))
    if len(names) > 2 * _LISTED_FILES:
        names[_LISTED_FILES:-_LISTED_FILES] = ["..."]
    return (
        f"there is no timestamp field, so the rows of the {len(files)} files are taken in this order:"
        f" {', '.join(names)}; if that is not chronological, name a timestamp field or list the files in order"
    )


def read_chunks(
    files: Sequence[Path],
    fields: Fields,
    notes: list[str] | None = None,
    csv: CsvOptions = FROM_FILE,
) -> Iterator[Chunk]:
    """The rows of the files in order, in chunks. `notes` gets a line for each thing that the user should know.

    Long reading shows its progress on standard error. Raises CannotServe naming the file, the field and the row in the
    file (from 0), and where polars is missing.
    """
    row = 0
    notes = [] if notes is None else notes
    jsonl = JsonlReader(fields)
    with closing(RowProgress(f"reading {files[0]}" if len(files) == 1 else f"reading {len(files)} files")) as progress:
        for number, path in enumerate(files):
            with closing(DataFile(path)) as file:
                if file.kind == "jsonl":
                    chunks = jsonl.read(file, row)
                else:
                    require_for_table(path)
                    from lstmstream.history.tables import read_table  # noqa: PLC0415 -- polars is an optional dependency

                    chunks = read_table(path, fields, row, csv, notes)
                notes += file.notes
                for chunk in chunks:
                    yield chunk
                    row += len(chunk)
                    progress.update(row, _done(file, number, len(files)))
    if problems := jsonl.unknown_fields(files[0] if len(files) == 1 else "data.path"):
        raise CannotServe(*problems)


def _done(file: DataFile, number: int, count: int) -> float | None:
    """The fraction that was read of all files, as if they were of one size; None while that is not known."""
    part = file.position / file.size if file.kind == "jsonl" and file.size else 0.0
    return (number + part) / count or None


def _each_once(files: Sequence[Path], notes: list[str], option: str) -> list[Path]:
    """The files without those that came before under the same or another name."""
    seen: dict[str, Path] = {}
    for path in files:
        first = seen.setdefault(os.path.realpath(path), path)
        if first is not path:
            other = "" if first == path else f" (as {first})"
            notes.append(f"{option}: {path} is named twice{other} and read once")
    return list(seen.values())
