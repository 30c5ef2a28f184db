"""Runs the step and the window form of one model on the user's data and reports where their scores diverge.

Which form is right depends on how the model was trained, so this decides nothing. CSV and Parquet need polars.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmstream.errors import CannotServe
from lstmstream.formats.csv_form import FROM_FILE, CsvOptions
from lstmstream.history.events import load_events
from lstmstream.history.fields import Fields
from lstmstream.importer.graph import open_session, run
from lstmstream.importer.layout import Floats
from lstmstream.importer.step_form import StepGraph
from lstmstream.wording import counted

MAX_KEYS, MAX_EVENTS = 2000, 500  # of the data: enough to see a difference, and quick
_TOLERANCE = 1e-5


def compare_modes(
    step: StepGraph,
    window: StepGraph,
    length: int,
    data: Path,
    features: tuple[str, ...],
    key: str | None,
    timestamp: str | None,
    csv: CsvOptions = FROM_FILE,
) -> list[str]:
    """Lines of a report; `length` is the window's. Raises CannotServe where the data cannot be read."""
    sequences = read_sequences(data, features, key, timestamp, csv)
    step_scores, window_scores = (scores(model, sequences) for model in (step, window))
    gaps = np.abs(step_scores - window_scores)  # NaN after a sequence's end
    counts = (~np.isnan(gaps)).sum(axis=0)
    lines = [
        f"  compare   {data}: {counted(len(sequences), 'key')}, {counted(int(counts.sum()), 'event')}",
        f"            |score of step mode - score of window mode| with windows of {length} events",
        f"            {'event':>7} {'keys':>7} {'mean':>10} {'largest':>10}",
    ]
    for event in _listed_events(len(counts), length):
        column = gaps[:, event][~np.isnan(gaps[:, event])]
        if len(column):  # with --missing error, an event at which every key lacks a value has no score
            lines.append(f"            {event + 1:>7} {len(column):>7} {column.mean():>10.3g} {column.max():>10.3g}")
    return [*lines, *_conclusion(gaps, length)]


def _listed_events(events: int, length: int) -> list[int]:
    """Positions with a line of their own: the first ones, those around the window's length, then ever fewer."""
    around = {length - 1, length, length + 1, length + 2}
    later = {times * length for times in (2, 3, 5, 10)}
    return sorted(event - 1 for event in {1, 2, 3, *around, *later, events} if 1 <= event <= events)


def _conclusion(gaps: NDArray[Any], length: int) -> list[str]:
    after = gaps[:, length:]
    if after.size == 0 or np.isnan(after).all():
        return [f"            no key has more than {counted(length, 'event')}: the two modes differ only after that"]
    largest = np.nanmax(np.where(np.isnan(after), -1.0, after), axis=0)
    different = np.flatnonzero(largest > _TOLERANCE)
    if not len(different):
        return [f"            they agree after a full window too: step mode costs {length} times less"]
    first, mean, most = length + int(different[0]) + 1, np.nanmean(after), np.nanmax(after)
    return [
        f"            they differ from event {first} on: {mean:.3g} on average, {most:.3g} at most",
        f"            (before event {length} the window is padded with zeros, which the step never sees)",
        "            if this is small against your threshold: step mode; else window mode, or train on more events",
    ]


def scores(model: StepGraph, sequences: list[Floats]) -> NDArray[np.float32]:
    """[keys, events] The score after each event, NaN after a sequence's end; the longest sequences come first."""
    opened = open_session(model.model, "compare")
    lengths = np.array([len(sequence) for sequence in sequences])
    result = np.full((len(sequences), int(lengths.max())), np.nan, np.float32)
    state = np.tile(np.array(model.state.initial, np.float32), (len(sequences), 1))
    for event in range(result.shape[1]):
        active = int((lengths > event).sum())  # a prefix, as the sequences are sorted
        x = np.stack([sequence[event] for sequence in sequences[:active]])
        out = run(opened, ["state_out", "score"], {"x": x, "state": state[:active]}, "compare")
        state[:active], result[:active, event] = out["state_out"], out["score"]
    return result


def read_sequences(
    data: Path,
    features: tuple[str, ...],
    key: str | None,
    timestamp: str | None,
    csv: CsvOptions = FROM_FILE,
) -> list[Floats]:
    """One array [T, F] for each key, longest first; NaN where a value is missing. Raises CannotServe."""
    try:
        if not data.is_file():
            raise CannotServe(f"{data}: no such file")
        events = load_events([data], Fields(key, timestamp, features, ()), csv=csv)
    except CannotServe as error:
        raise CannotServe(*(f"--compare {problem}" for problem in error.problems)) from error
    if not len(events):
        raise CannotServe(f"--compare {data}: has no events")
    try:
        longest_first = np.argsort(-events.lengths, kind="stable")[:MAX_KEYS]
        ends = np.minimum(events.starts[:-1] + MAX_EVENTS, events.starts[1:])
        return [np.array(events.x[events.starts[one] : ends[one]]) for one in longest_first.tolist()]
    finally:
        if events.scratch is not None:
            events.scratch.cleanup()
