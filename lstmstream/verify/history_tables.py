"""Rows of Parquet as events of a history. The only module of this package that needs polars (extra `tables`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl

from lstmstream.errors import CannotServe

_CHUNK_ROWS = 4096


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Each row as JSON has its values; nulls are left out. Raises CannotServe, OSError."""
    try:
        for frame in pl.scan_parquet(path).collect_batches(maintain_order=True, chunk_size=_CHUNK_ROWS):
            for row in frame.iter_rows(named=True):
                yield {name: _plain(value) for name, value in row.items() if value is not None}
    except pl.exceptions.PolarsError as error:
        raise CannotServe(f"--history {path}: cannot be read ({error})") from error


def _plain(value: Any) -> Any:
    """As JSON would have it."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return value
