"""Random histories of many keys for tests, and the JSON lines that hold the same events."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from lstmstream.history.events import Events

START_MS = 1_770_000_000_000
CITY_BUCKETS = 7


def history(
    *,
    keys: int = 0,
    longest: int = 0,
    lengths: Sequence[int] | None = None,
    seed: int,
    numbers: int = 0,
    codes: Sequence[int] = (),
    missing: float = 0.1,
    gap_s: float | None = None,
    values: Any = None,
    label: Any = (),
) -> Events:
    """Random events, or `values` [N, F] in their place; `gap_s` between events, else random gaps, also none."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, longest + 1, keys) if lengths is None else np.array(lengths, np.int64)
    starts = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    count = int(starts[-1])
    gaps = np.full(count, gap_s) if gap_s is not None else np.round(10.0 ** rng.uniform(-4, 5, count), 3)
    timestamp = np.empty(count, np.int64)
    elapsed = np.full(count, np.nan, np.float32)
    for start, end in pairwise(starts.tolist()):
        timestamp[start:end] = START_MS + np.cumsum(np.round(gaps[start:end] * 1000)).astype(np.int64)
        elapsed[start + 1 : end] = np.diff(timestamp[start:end]) / 1000
    x = rng.normal(scale=100, size=(count, numbers)).astype(np.float32)
    x[rng.random(x.shape) < missing] = np.nan
    if values is not None:
        x = np.array(values, np.float32).reshape(count, -1)
    categories = [rng.integers(0, high + 1, count) for high in codes]
    return Events(
        keys=[f"k{i}" for i in range(len(length))],
        starts=starts,
        timestamp=timestamp,
        elapsed=elapsed,
        x=x,
        codes=np.stack(categories, 1) if codes else np.empty((count, 0), np.int64),
        label=np.array(label, np.int64),
        split=np.empty(0, np.int64),
    )


def write_jsonl(events: Events, path: Path, *, shuffle: int) -> list[int]:
    """Events in an order that keeps each key's own; returns, for each line, its row in `events`.

    The fields: numbers `amount`, `age`; categories `shop` (vocabulary a, b) and `city` (buckets).
    """
    owner = np.repeat(np.arange(len(events.keys)), np.diff(events.starts))
    nexts = events.starts[:-1].copy()
    cities = {1 + crc32(str(i).encode()) % CITY_BUCKETS: str(i) for i in range(200)}
    rows = []
    with path.open("w") as file:
        for key in np.random.default_rng(shuffle).permutation(owner).tolist():
            row = int(nexts[key])
            nexts[key] += 1
            rows.append(row)
            event: dict[str, Any] = {"key": events.keys[key], "time": int(events.timestamp[row])}
            numbers = zip(("amount", "age"), events.x[row].tolist(), strict=False)
            event |= {name: value for name, value in numbers if not math.isnan(value)}
            for name, code in zip(("shop", "city"), events.codes[row].tolist(), strict=False):
                if code:  # 0 is missing
                    event[name] = "-ab"[code] if name == "shop" else cities[code]
            file.write(json.dumps(event) + "\n")
    return rows
