"""Small files for tests of reading, and what is read of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmstream.errors import CannotServe
from lstmstream.history.fields import Chunk, Fields
from lstmstream.history.read import read_chunks

FIELDS = Fields("k", "t", ("n",), ("c",))
NESTED = Fields("u.k", "t", ("m.n",), ("u.c",))
ROW: dict[str, Any] = {"k": "a", "t": 1, "n": 1, "c": "a"}


def line(**changes: Any) -> str:
    return json.dumps(ROW | changes)


def rows(chunks: list[Chunk]) -> list[tuple[Any, ...]]:
    """(key, ms, numbers, categories) of each row; NaN as None."""
    return [
        (key, int(time), [None if np.isnan(v) else v for v in x.tolist()], [texts[i] for texts in chunk.categories])
        for chunk in chunks
        for i, (key, time, x) in enumerate(zip(chunk.keys, chunk.timestamp, chunk.x, strict=True))
    ]


def jsonl(folder: Path, *lines: str | bytes, fields: Fields = FIELDS) -> list[tuple[Any, ...]]:
    file = folder / "x.jsonl"
    file.write_bytes(b"".join((one.encode() if isinstance(one, str) else one) + b"\n" for one in lines))
    return rows(list(read_chunks([file], fields)))


def csv(folder: Path, text: str, *, fields: Fields = FIELDS) -> list[tuple[Any, ...]]:
    file = folder / "x.csv"
    file.write_text(text)
    return rows(list(read_chunks([file], fields)))


def parquet(folder: Path, fields: Fields = FIELDS, **columns: Any) -> list[tuple[Any, ...]]:
    import polars as pl

    count = len(next(iter(columns.values())))
    file = folder / "x.parquet"
    pl.DataFrame({name: [value] * count for name, value in ROW.items()} | columns).write_parquet(file)
    return rows(list(read_chunks([file], fields)))


def refused(what: str, act: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(CannotServe) as caught:
        act(*args, **named)
    assert what in str(caught.value)
    return str(caught.value)
