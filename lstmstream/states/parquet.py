"""States to Parquet and back. The only module of this package that needs polars (extra `tables`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl

from lstmstream.errors import CannotServe
from lstmstream.model import Card
from lstmstream.serve.state_records import StateIdentity
from lstmstream.serve.state_view import key_member, state_parts
from lstmstream.serve.stream_time import NEVER
from lstmstream.states.state_file import UNNAMED, FileStates
from lstmstream.states.stored import StoredStates

_TIME = pl.Datetime("ms", "UTC")


def write_parquet(out: IO[bytes], card: Card, identity: StateIdentity, partitions: Iterable[StoredStates]) -> int:
    """Columns as the members of a prediction, and `state.<part>` for each part of the row; how many rows.

    Raises OSError where it cannot be written.
    """
    frames = [_frame(card, identity, stored) for stored in partitions]
    frame = pl.concat(frames)
    try:
        frame.write_parquet(out, compression="snappy")  # the numbers hardly get smaller, whatever is tried
    except pl.exceptions.PolarsError as error:
        raise OSError(str(error)) from error
    return len(frame)


def _frame(card: Card, identity: StateIdentity, stored: StoredStates) -> pl.DataFrame:
    slab, rows = stored.slab, stored.rows
    members = [key_member(key) for key in slab.index.keys_at(rows)]
    columns = {
        "key": pl.Series([one.get("key") for one in members], dtype=pl.String),
        "key_base64": pl.Series([one.get("key_base64") for one in members], dtype=pl.String),
        "partition": pl.Series(np.full(len(rows), stored.partition), dtype=pl.Int32),
        "offset": pl.Series(np.maximum(slab.last_offset[rows], -1), dtype=pl.Int64),
        "timestamp": pl.Series(slab.last_timestamp[rows], dtype=pl.Int64).cast(_TIME),
        "steps": pl.Series(slab.steps[rows], dtype=pl.Int64),
        "failures": pl.Series(slab.failures[rows], dtype=pl.Int64),
        "identity": pl.repeat(identity.digest.hex(), len(rows), dtype=pl.String, eager=True),
    }
    stream_time_ms = None if stored.stream_time_ms == NEVER else stored.stream_time_ms
    columns["stream_time"] = pl.repeat(stream_time_ms, len(rows), dtype=pl.Int64, eager=True).cast(_TIME)
    for part, values in zip(card.state.parts, state_parts(card, slab.rows.read(rows)).values(), strict=True):
        size = math.prod(part.shape)
        columns[f"state.{part.name}"] = pl.Series(values.reshape(-1, size), dtype=pl.Array(pl.Float32, size))
    return pl.DataFrame(columns)


class ParquetStates:
    """A StateFile (see state_file.py) of Parquet."""

    def __init__(self, path: Path, card: Card) -> None:
        """Raises CannotServe for a file that is not Parquet, or lacks a column."""
        self._path = path
        self._card = card
        try:
            self._scan = pl.scan_parquet(path)
            self._names = set(self._scan.collect_schema().names())
            self.count: int | None = int(self._scan.select(pl.len()).collect().item())
        except (OSError, pl.exceptions.PolarsError) as error:
            raise self._unreadable(error) from error
        wanted = ["timestamp", "steps", *(f"state.{part.name}" for part in card.state.parts)]
        missing = [name for name in wanted if name not in self._names]
        if not {"key", "key_base64"} & self._names:
            missing.insert(0, "key")
        if missing:
            raise CannotServe(f"{path}: has no column {', '.join(map(repr, missing))}; see state export")

    def read(self, chunk_rows: int) -> Iterator[FileStates]:
        """See StateFile."""
        parts = self._card.state.parts
        columns = [
            self._column("key", pl.String),
            self._column("key_base64", pl.String),
            self._column("partition", pl.Int64).fill_null(UNNAMED),
            pl.col("timestamp").cast(_TIME).to_physical(),
            self._column("steps", pl.Int64),
            self._column("failures", pl.Int64).fill_null(0),
            self._column("identity", pl.String),
            self._column("stream_time", _TIME).to_physical().fill_null(NEVER),
            *(pl.col(f"state.{part.name}").cast(pl.Array(pl.Float32, math.prod(part.shape))) for part in parts),
        ]
        row = 1
        try:
            for frame in self._scan.select(columns).collect_batches(maintain_order=True, chunk_size=chunk_rows):
                for start in range(0, len(frame), chunk_rows):  # a row group may come as a whole
                    piece = frame.slice(start, chunk_rows)
                    yield self._states(row, piece)
                    row += len(piece)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise self._unreadable(error) from error

    def _column(self, name: str, kind: type[pl.DataType] | pl.DataType) -> pl.Expr:
        return (pl.col(name) if name in self._names else pl.lit(None).alias(name)).cast(kind)

    def _states(self, first_row: int, frame: pl.DataFrame) -> FileStates:
        size = self._card.state.size
        rows = np.empty((len(frame), size), np.float32)
        for part in self._card.state.parts:
            values = frame[f"state.{part.name}"]
            if values.null_count():  # a null within is not finite
                raise CannotServe(f"{self._path}: a state of rows {first_row} and on has no {part.name!r}")
            rows[:, part.offset : part.offset + math.prod(part.shape)] = values.to_numpy()
        for name in ("timestamp", "steps"):
            if frame[name].null_count():
                raise CannotServe(f"{self._path}: a state of rows {first_row} and on has no {name}")
        partitions, timestamps, stream_times, steps, failures = (
            frame[name].to_numpy() for name in ("partition", "timestamp", "stream_time", "steps", "failures")
        )
        identities = frame["identity"].unique().to_list()
        keys = _keys(frame)
        return FileStates(first_row, identities, keys, partitions, timestamps, stream_times, steps, failures, rows)

    def _unreadable(self, error: Exception) -> CannotServe:
        return CannotServe(f"{self._path}: cannot be read, it is cut, damaged or not a file of states ({error})")


def _keys(frame: pl.DataFrame) -> list[bytes | None]:
    keys = frame["key"].cast(pl.Binary)
    if frame["key_base64"].null_count() < len(frame):
        decoded = frame["key_base64"].str.decode("base64")
        keys = keys.zip_with(decoded.is_null(), decoded)
    return keys.to_list()
