"""The series of each benchmark. Labels are for scoring, never an input of a detector."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

START_MS = 1_600_000_000_000
SECOND_MS = 1_000
GAP_MS = 2 * 86_400_000
MAX_SHIFT_ROWS = 50

Numbers = NDArray[np.float64]
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Series:
    """One stream of T rows."""

    name: str
    x: NDArray[np.float32]  # [T, C]
    times_ms: NDArray[np.int64]  # [T]
    truth: tuple[Range, ...]  # first and last anomalous row, both inclusive
    first: int = 0  # row from which alarms count
    labels: tuple[str, ...] = ()  # [T] what the scorer calls the rows, where it does


def every_second(rows: int) -> NDArray[np.int64]:
    """Times of series that have none."""
    return START_MS + np.arange(rows, dtype=np.int64) * SECOND_MS


def ranges_of(mask: NDArray[np.bool_]) -> tuple[Range, ...]:
    """First and last row of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return tuple((int(first), int(last) - 1) for first, last in zip(edges[::2], edges[1::2], strict=True))


def nab_series(folder: Path) -> list[Series]:
    """Numenta's files. The first 15 % of the rows, 750 at most, do not count."""
    windows: dict[str, Any] = json.loads((folder / "windows.json").read_text())
    found = []
    for path in sorted(folder.glob("data/*/*.csv")):
        name = str(path.relative_to(folder / "data"))
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        labels = tuple(row["timestamp"] for row in rows)
        times = np.array([_utc_ms(label) for label in labels], np.int64)
        values = np.array([[float(row["value"])] for row in rows], np.float32)
        truth = [(_utc_ms(first), _utc_ms(last)) for first, last in windows[name]]
        inside = np.zeros(len(rows), bool)
        for first_ms, last_ms in truth:
            inside |= (times >= first_ms) & (times <= last_ms)
        found.append(Series(name, values, times, ranges_of(inside), min(int(0.15 * len(rows)), 750), labels))
    return found


def _utc_ms(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def npz_series(folder: Path) -> list[Series]:
    """Touchstone's and GutenTAG's."""
    found = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            x, truth = file["x"].astype(np.float32), ranges_of(file["y"] > 0)
        found.append(Series(path.stem, x, every_second(len(x)), truth))
    return found


def smapmsl_series(folder: Path) -> list[Series]:
    """NASA's telemetry: the training part, a gap of two days, and the test part, of which alone the alarms count."""
    labels: dict[str, Any] = json.loads((folder / "labels.json").read_text())
    found = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            parts = [np.asarray(file[name], np.float32).ravel() for name in ("train_y", "test_y")]
        first = len(parts[0])
        times = every_second(sum(map(len, parts)))
        times[first:] += GAP_MS
        truth = tuple((first + begin, first + end) for begin, end in labels[path.stem]["anomalies"])
        found.append(Series(path.stem, np.concatenate(parts)[:, np.newaxis], times, truth, first))
    return found


READERS: dict[str, Callable[[Path], list[Series]]] = {
    "nab": nab_series,
    "touchstone": npz_series,
    "gutentag": npz_series,
    "smapmsl": smapmsl_series,
}


def shifted(series: Series, phase: int) -> Series:
    """The series without some of its first rows: none in phase 0, else 1 to 50 by phase and name.

    Blocks and windows of a detector then begin elsewhere: a figure of one start alone is luck. For detectors only:
    `truth`, `first` and `labels` stay those of the file.
    """
    if phase == 0:
        return series
    random = np.random.default_rng([phase, zlib.crc32(series.name.encode())])
    rows = min(int(random.integers(1, MAX_SHIFT_ROWS + 1)), series.first)
    return replace(series, x=series.x[rows:], times_ms=series.times_ms[rows:])
