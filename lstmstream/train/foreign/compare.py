"""Runs the step and the window form of one model over the user's data and says where their scores part.

Reads CSV, JSONL and Parquet. Decides nothing: which form is right depends on how the model was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from lstmstream.errors import CannotServe
from lstmstream.train.foreign.graph import printable, run, session
from lstmstream.train.foreign.layout import Floats
from lstmstream.train.foreign.rewrite import Step

MAX_KEYS, MAX_EVENTS = 2000, 500  # of the data; enough to see, soon done
_TOLERANCE = 1e-5


def compare_modes(
    step: Step, window: Step, length: int, data: Path, features: tuple[str, ...], key: str | None, timestamp: str | None
) -> list[str]:
    """The comparison for a person. Raises CannotServe where the data cannot be read."""
    sequences = read_sequences(data, features, key, timestamp)
    ours, theirs = (scores(one, sequences) for one in (step, window))
    gaps = np.abs(ours - theirs)  # NaN behind a sequence's end
    counts = (~np.isnan(gaps)).sum(axis=0)
    lines = [
        f"  compare   {data}: {len(sequences)} keys, {int(counts.sum())} events",
        f"            |score of step mode - score of window mode| with windows of {length} events",
        f"            {'event':>7} {'keys':>7} {'mean':>10} {'largest':>10}",
    ]
    for event in _shown(len(counts), length):
        column = gaps[:, event][~np.isnan(gaps[:, event])]
        if len(column):  # with --missing error a value that is missing for all keys leaves no score
            lines.append(f"            {event + 1:>7} {len(column):>7} {column.mean():>10.3g} {column.max():>10.3g}")
    return [*lines, *_verdict(gaps, length)]


def _shown(events: int, length: int) -> list[int]:
    """Positions worth a line: the first ones, those around the window's length, then ever fewer."""
    wanted = {
        1,
        2,
        3,
        length - 1,
        length,
        length + 1,
        length + 2,
        2 * length,
        3 * length,
        5 * length,
        10 * length,
        events,
    }
    return sorted(place - 1 for place in wanted if 1 <= place <= events)


def _verdict(gaps: NDArray[Any], length: int) -> list[str]:
    after = gaps[:, length:]
    if after.size == 0 or np.isnan(after).all():
        return [f"            no key has more than {length} events: the two modes part only after that"]
    largest = np.nanmax(np.where(np.isnan(after), -1.0, after), axis=0)
    parted = np.flatnonzero(largest > _TOLERANCE)
    if not len(parted):
        return [f"            they agree after a full window too: step mode costs {length} times less"]
    mean, most = np.nanmean(after), np.nanmax(after)
    return [
        f"            they part from event {length + int(parted[0]) + 1} on: {mean:.3g} on average, {most:.3g} at most",
        f"            (before event {length} the window begins with zeros, which the step never sees)",
        "            small against your threshold: step mode; else window mode, or train with the state carried on",
    ]


def scores(model: Step, sequences: list[Floats]) -> NDArray[np.float32]:
    """[keys, events] the score after each event, NaN behind a sequence's end. Longest sequences first."""
    opened = session(model.model, "compare")
    lengths = np.array([len(one) for one in sequences])
    result = np.full((len(sequences), int(lengths.max())), np.nan, np.float32)
    state = np.tile(np.array(model.state.initial, np.float32), (len(sequences), 1))
    for event in range(result.shape[1]):
        active = int((lengths > event).sum())  # a prefix, for they are sorted
        x = np.stack([one[event] for one in sequences[:active]])
        out = run(opened, ["state_out", "score"], {"x": x, "state": state[:active]}, "compare")
        state[:active], result[:active, event] = out["state_out"], out["score"]
    return result


def read_sequences(data: Path, features: tuple[str, ...], key: str | None, timestamp: str | None) -> list[Floats]:
    """One array [T, F] for each key, longest first; NaN where a value is missing. Raises CannotServe."""
    readers: dict[str, Any] = {
        ".csv": pl.read_csv, ".parquet": pl.read_parquet, ".jsonl": pl.read_ndjson, ".ndjson": pl.read_ndjson,
    }  # fmt: skip
    if data.suffix not in readers:
        raise CannotServe(f"--compare {data}: should end in {', '.join(readers)}")
    try:
        table = readers[data.suffix](data)
    except Exception as error:  # polars raises many kinds
        raise CannotServe(f"--compare {data}: cannot be read ({printable(error)})") from error
    wanted = [*features, *([key] if key else []), *([timestamp] if timestamp else [])]
    if lacking := [name for name in wanted if name not in table.columns]:
        raise CannotServe(
            f"--compare {data}: no column {', '.join(lacking)}; there are {', '.join(table.columns[:30])}"
            " (--features names the columns in the model's order, --key and --timestamp those of key and time)"
        )
    if not len(table):
        raise CannotServe(f"--compare {data}: has no rows")
    try:
        table = table.with_columns(pl.col(list(features)).cast(pl.Float32))
    except pl.exceptions.PolarsError as error:
        raise CannotServe(f"--compare {data}: a feature is no number ({printable(error)})") from error
    if timestamp:
        table = table.sort(timestamp, maintain_order=True)
    groups = table.partition_by(key, maintain_order=True) if key else [table]
    groups.sort(key=len, reverse=True)
    return [
        group.select(features).fill_null(float("nan")).head(MAX_EVENTS).to_numpy().astype(np.float32)
        for group in groups[:MAX_KEYS]
    ]
