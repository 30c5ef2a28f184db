"""Files of events to chunks of columns: JSONL, CSV or Parquet, a chunk at a time, so that a file may exceed memory.

A value means what the daemon reads in an event: a line of JSONL goes through the daemon's decoder, and what would be
a dead letter there is an error here. CSV and Parquet need polars (extra `tables`); JSONL does not.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from lstmstream.errors import CannotServe
from lstmstream.extras import require_for_table
from lstmstream.history.fields import Chunk, Fields
from lstmstream.history.jsonl import JsonlReader

JSONL_SUFFIXES = {".jsonl", ".ndjson", ".json"}
TABLE_SUFFIXES = {".csv", ".parquet"}


def resolve_paths(paths: Sequence[str], folder: Path) -> list[Path]:
    """The files that `paths` name, patterns with * expanded in order of name, each file once.

    Relative paths start from `folder`. Raises CannotServe for a path or pattern without a file.
    """
    files: list[Path] = []
    for entry in paths:
        path = folder / entry
        if path.is_file():  # even if its name contains * or [
            files.append(path)
        elif any(char in entry for char in "*?["):
            matches = [match for match in map(Path, sorted(glob.glob(str(path)))) if match.is_file()]  # noqa: PTH207 -- the pattern may be absolute
            if not matches:
                raise CannotServe(f"data.path: no file matches {entry}; check the pattern, it starts from {folder}")
            files += matches
        elif path.exists():
            example = f"{entry.rstrip('/')}/*.parquet"
            raise CannotServe(f"data.path: {path} is not a file; for a folder write a pattern, such as {example}")
        else:
            raise CannotServe(f"data.path: {path} does not exist; relative paths start from {folder}")
    return list(dict.fromkeys(files))


def read_chunks(files: Sequence[Path], fields: Fields) -> Iterator[Chunk]:
    """The rows of the files in order, in chunks.

    Raises CannotServe naming the file, the field and the row in the file (from 0), and where polars is missing.
    """
    row = 0
    jsonl = JsonlReader(fields)
    for file in files:
        suffix = file.suffix.lower()
        if suffix in JSONL_SUFFIXES:
            chunks = jsonl.read(file, row)
        elif suffix in TABLE_SUFFIXES:
            require_for_table(file)
            from lstmstream.history.tables import read_table  # noqa: PLC0415 -- polars is an optional dependency

            chunks = read_table(file, fields, row)
        else:
            raise CannotServe(f"{file}: should be .csv, .jsonl or .parquet; convert the file, or rename it")
        for chunk in chunks:
            yield chunk
            row += len(chunk)
    if problems := jsonl.unknown_fields(files[0] if len(files) == 1 else "data.path"):
        raise CannotServe(*problems)
