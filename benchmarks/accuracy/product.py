"""The readings of a detector that ships with the package, by `lstmstream score`: in the engine that serves it."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import orjson

from benchmarks.accuracy.detectors import Readings
from benchmarks.accuracy.series import Numbers, Series

LIMIT_S = 6 * 3600


def predictions(series: Sequence[Series], folder: Path, model: str = "anomaly") -> list[Numbers]:
    """[T, 4] for each series. Each is a key; those of one width are in one file, since batches cost less than rows."""
    found: list[Numbers] = [np.empty(0)] * len(series)
    widths: dict[int, list[int]] = defaultdict(list)
    for number, one in enumerate(series):
        widths[one.x.shape[1]].append(number)
    for width, numbers in widths.items():
        made = _score([series[number] for number in numbers], width, folder, model)
        for number, prediction in zip(numbers, made, strict=True):
            found[number] = prediction
    return found


def _score(series: Sequence[Series], width: int, folder: Path, model: str) -> list[Numbers]:
    fields = [f"c{number}" for number in range(width)]
    events, answers = folder / "events.jsonl", folder / "predictions.jsonl"
    with events.open("wb") as file:
        file.writelines(_events(series, fields))
    command = [sys.executable, "-m", "lstmstream", "score", f"builtin:{model}:{','.join(fields)}", str(events)]
    command += ["--key", "key", "--timestamp", "time", "--out", str(answers)]
    subprocess.run(command, check=True, timeout=LIMIT_S, stderr=subprocess.DEVNULL)
    found = [np.empty((len(one.x), 4)) for one in series]
    seen = 0
    with answers.open("rb") as file:
        for line in file:
            answer = orjson.loads(line)
            found[int(answer["key"])][answer["steps"] - 1] = answer["prediction"]
            seen += 1
    if seen != sum(len(one.x) for one in series):
        raise SystemExit(f"{seen} predictions of {sum(len(one.x) for one in series)} rows")
    return found


def _events(series: Sequence[Series], fields: Sequence[str]) -> Iterable[bytes]:
    """One row of each series in turn."""
    for row in range(max(len(one.x) for one in series)):
        for number, one in enumerate(series):
            if row < len(one.x):
                event = {
                    "key": number,
                    "time": int(one.times_ms[row]),
                    **dict(zip(fields, one.x[row].tolist(), strict=True)),
                }
                yield orjson.dumps(event) + b"\n"


def readings(prediction: Numbers) -> Readings:
    """What each benchmark gets of the model's four numbers (docs/anomaly.md)."""
    rank, score, novelty = prediction[:, :3].T
    return Readings(rank, score, novelty / (novelty + 1))  # 0.5 where the novelty is 1
