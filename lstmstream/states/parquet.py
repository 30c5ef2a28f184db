"""States to Parquet. The only module of this package that needs polars (extra `tables`)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl

from lstmstream.errors import CannotServe
from lstmstream.model import Card
from lstmstream.serve.state_view import key_member, state_parts
from lstmstream.states.stored import StoredStates


def write_parquet(out: Path, card: Card, partitions: Iterable[StoredStates]) -> int:
    """Columns as the members of a prediction, and `state.<part>` for each part of the row; how many rows."""
    frames = [_frame(card, stored) for stored in partitions]
    frame = pl.concat(frames)
    try:
        frame.write_parquet(out)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise CannotServe(f"--out {out}: cannot be written ({error})") from error
    return len(frame)


def _frame(card: Card, stored: StoredStates) -> pl.DataFrame:
    slab, rows = stored.slab, stored.rows
    members = [key_member(key) for key in slab.index.keys_at(rows)]
    columns = {
        "key": pl.Series([one.get("key") for one in members], dtype=pl.String),
        "key_base64": pl.Series([one.get("key_base64") for one in members], dtype=pl.String),
        "partition": pl.Series(np.full(len(rows), stored.partition), dtype=pl.Int32),
        "offset": pl.Series(slab.last_offset[rows], dtype=pl.Int64),
        "timestamp": pl.Series(slab.last_timestamp[rows], dtype=pl.Int64).cast(pl.Datetime("ms", "UTC")),
        "steps": pl.Series(slab.steps[rows], dtype=pl.Int64),
        "failures": pl.Series(slab.failures[rows], dtype=pl.Int64),
    }
    for part, values in zip(card.state.parts, state_parts(card, slab.rows.read(rows)).values(), strict=True):
        size = math.prod(part.shape)
        columns[f"state.{part.name}"] = pl.Series(values.reshape(-1, size), dtype=pl.Array(pl.Float32, size))
    return pl.DataFrame(columns)
