"""How well `builtin:anomaly` finds anomalies on public benchmarks: one configuration, through `lstmstream score`.

    python -m benchmarks.accuracy --data FOLDER [--sets nab,touchstone,gutentag,smapmsl] [--files PART] [--out DIR]

FOLDER has a folder for each set, and `scorers/` with a program for each. Each series is a stream of events in their
order, and a prediction knows the events up to its own. Of the model's readings (docs/anomaly.md) NAB gets the score,
touchstone and GutenTAG `prediction[0]`, SMAP/MSL alarms: ranges of 100 rows from where `prediction[2]` is 1 and more.
In SMAP/MSL a series is its training part, a gap of two days, then its test part, of which alone the alarms count.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

START_MS = 1_600_000_000_000
SECOND_MS = 1_000
GAP_MS = 2 * 86_400_000
ALARM_ROWS = 100
LIMIT_S = 3600

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Series:
    """One stream."""

    name: str
    x: NDArray[np.float32]  # [T, C]
    times_ms: NDArray[np.int64]  # [T]
    labels: tuple[str, ...] = ()  # [T] what the scorer calls the rows, where it does


def every_second(rows: int) -> NDArray[np.int64]:
    """Times of series that have none."""
    return START_MS + np.arange(rows, dtype=np.int64) * SECOND_MS


def nab_series(folder: Path) -> Iterator[Series]:
    """Numenta's files."""
    for path in sorted(folder.glob("data/*/*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        labels = tuple(row["timestamp"] for row in rows)
        moments = [datetime.fromisoformat(label).replace(tzinfo=UTC) for label in labels]
        times = np.array([round(moment.timestamp() * 1000) for moment in moments], np.int64)
        values = np.array([[float(row["value"])] for row in rows], np.float32)
        yield Series(str(path.relative_to(folder / "data")), values, times, labels)


def npz_series(folder: Path) -> Iterator[Series]:
    """Touchstone's and GutenTAG's."""
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            x = file["x"].astype(np.float32)
        yield Series(path.stem, x, every_second(len(x)))


def smapmsl_series(folder: Path) -> Iterator[Series]:
    """NASA's telemetry: training part, gap, test part."""
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            parts = [np.asarray(file[name], np.float32).ravel() for name in ("train_y", "test_y")]
        times = every_second(sum(map(len, parts)))
        times[len(parts[0]) :] += GAP_MS
        yield Series(path.stem, np.concatenate(parts)[:, np.newaxis], times, (str(len(parts[0])),))


def predictions(series: Series, folder: Path) -> Numbers:
    """[T, 4] By `lstmstream score`, of one key."""
    fields = [f"c{number}" for number in range(series.x.shape[1])]
    events, found = folder / "events.jsonl", folder / "predictions.jsonl"
    with events.open("wb") as file:
        for row, time_ms in zip(series.x.tolist(), series.times_ms.tolist(), strict=True):
            file.write(orjson.dumps({"time": time_ms, **dict(zip(fields, row, strict=True))}) + b"\n")
    command = [sys.executable, "-m", "lstmstream", "score", f"builtin:anomaly:{','.join(fields)}", str(events)]
    command += ["--no-key", "--timestamp", "time", "--out", str(found)]
    subprocess.run(command, check=True, timeout=LIMIT_S, stderr=subprocess.DEVNULL)
    made = np.array([orjson.loads(line)["prediction"] for line in found.read_bytes().splitlines()])
    if len(made) != len(series.x):
        raise SystemExit(f"{series.name}: {len(made)} predictions of {len(series.x)} rows")
    return made


def write_nab(series: Series, found: Numbers, out: Path) -> None:
    """Timestamp and score."""
    path = out / series.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["timestamp", "anomaly_score"])
        writer.writerows(zip(series.labels, found[:, 1].tolist(), strict=True))


def write_ranks(series: Series, found: Numbers, out: Path) -> None:
    """One number per row."""
    np.save(out / f"{series.name}.npy", found[:, 0])


def write_alarms(series: Series, found: Numbers, out: Path) -> None:
    """Ranges of the test part, one file for each channel."""
    novel = found[int(series.labels[0]) :, 2] >= 1
    alarmed = np.convolve(novel, np.ones(ALARM_ROWS), mode="full")[: len(novel)] > 0
    edges = np.flatnonzero(np.diff(np.concatenate([[False], alarmed, [False]]).astype(int)))
    ranges = [[int(first), int(last) - 1] for first, last in zip(edges[::2], edges[1::2], strict=True)]
    (out / f"{series.name}.json").write_text(json.dumps(ranges))


def judge_nab(data: Path, out: Path) -> list[list[str]]:
    """At the model's threshold, and at the best one."""
    scorer = [str(data / "scorers" / "nab.py"), str(out), "--labels", str(data / "nab" / "windows.json")]
    return [[*scorer, "--threshold", "0.5"], scorer]


def judge_ranks(name: str) -> Callable[[Path, Path], list[list[str]]]:
    """Areas under curves."""
    return lambda data, out: [[str(data / "scorers" / "touchstone.py"), str(out), str(data / name)]]


def judge_alarms(data: Path, out: Path) -> list[list[str]]:
    """By ranges, of the channels that were made."""
    made = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json") if path.stem != "all"}
    labels = json.loads((data / "smapmsl" / "labels.json").read_text())
    (out / "all.json").write_text(json.dumps(made))
    kept = out.parent / "smapmsl-labels.json"
    kept.write_text(json.dumps({name: label for name, label in labels.items() if name in made}))
    return [[str(data / "scorers" / "smapmsl.py"), str(kept), str(out / "all.json")]]


SETS: dict[str, tuple[Any, Any, Any]] = {
    "nab": (nab_series, write_nab, judge_nab),
    "touchstone": (npz_series, write_ranks, judge_ranks("touchstone")),
    "gutentag": (npz_series, write_ranks, judge_ranks("gutentag")),
    "smapmsl": (smapmsl_series, write_alarms, judge_alarms),
}


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description="Anomaly detection benchmarks.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets and their scorers")
    parser.add_argument("--sets", default=",".join(SETS), help="(%(default)s)")
    parser.add_argument("--files", default="", help="only series whose name has this in it")
    parser.add_argument("--out", type=Path, default=Path(".cache/accuracy"), help="(%(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lstmstream-accuracy-") as folder:
        for name in given.sets.split(","):
            read, write, judge = SETS[name]
            out = given.out.absolute() / name
            out.mkdir(parents=True, exist_ok=True)
            for series in read(given.data / name):
                if given.files in series.name:
                    began_s = time.monotonic()
                    write(series, predictions(series, Path(folder)), out)
                    took_s = time.monotonic() - began_s
                    print(f"{name} {series.name}: {len(series.x)} rows in {took_s:.1f} s", file=sys.stderr, flush=True)
            print(f"## {name}\n", flush=True)
            for command in judge(given.data.absolute(), out):
                subprocess.run([sys.executable, *command], check=True, timeout=LIMIT_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
