"""What each cell costs, and how well it forecasts or remembers: accuracy, ns a step, bytes of state a key.

    python -m benchmarks.cells [--data ../shared] [--epochs 10] [--hidden 32] [--seeds 1] [--only SERIES ...]

Each model is trained by `lstmstream train` and its test split, the last 15 % of the time, is scored by `lstmstream
score`, with the state of the events before. Series:

    nyc_taxi, ec2_cpu   two NAB files in DATA/nab; mean absolute error of the next value, over that of the last value
    waves               generated: 10 keys, two sines and noise; the same
    recall              generated: 40 keys, label: was the number 5 events ago positive; share of errors, 0.5 is chance

A step is one call for 1,024 keys with one thread, the fastest of 100, divided by 1,024: other programs
only add to it. The smallest of the models counts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import yaml

from lstmstream.model import load_model
from lstmstream.serve.model_checks import probe
from lstmstream.serve.score import score_file
from lstmstream.serve.step import OnnxStep
from lstmstream.train.run import train
from lstmstream.train.schema import CELL_TITLES

BATCH, CALLS = 1024, 100
TEST = 0.15
LAG = 5  # events, of `recall`
START_S, STEP_S = 1_767_225_600, 300
NAB = {"nyc_taxi": "realKnownCause/nyc_taxi.csv", "ec2_cpu": "realAWSCloudwatch/ec2_cpu_utilization_24ae8d.csv"}


def nab_series(data: Path, name: str) -> pl.DataFrame:
    """One key with the values of the file, at equal distances."""
    values = pl.read_csv(data / "nab" / "data" / NAB[name])["value"].cast(pl.Float64)
    return _frame(values.to_numpy()[np.newaxis])


def waves(_: Path) -> pl.DataFrame:
    """10 keys of 400 events."""
    random = np.random.default_rng(0)
    now, phase = np.arange(400), random.uniform(0, 6, (10, 2, 1))
    clean = np.sin(now / 8 + phase[:, 0]) + 0.7 * np.sin(now / 3.1 + phase[:, 1])
    return _frame(clean + random.normal(0, 0.1, clean.shape))


def recall(_: Path) -> pl.DataFrame:
    """40 keys of 200 events with their labels."""
    values = np.random.default_rng(1).normal(size=(40, 200))
    label = np.roll(values, LAG, axis=1) > 0
    label[:, :LAG] = False
    return _frame(values).with_columns(label=pl.Series(label.T.ravel()).cast(pl.Int64))


def _frame(values: np.ndarray[Any, Any]) -> pl.DataFrame:
    """[K, T] values of K keys as rows in the order of time."""
    keys, events = values.shape
    return pl.DataFrame(
        {
            "key": np.tile([f"k{key}" for key in range(keys)], events),
            "time": np.repeat(START_S + STEP_S * np.arange(events), keys),
            "value": values.T.ravel(),
        }
    )


SERIES: dict[str, Callable[[Path], pl.DataFrame]] = {
    **{name: (lambda data, name=name: nab_series(data, name)) for name in NAB},  # type: ignore[misc]
    "waves": waves,
    "recall": recall,
}


def measure(folder: Path, frame: pl.DataFrame, cell: str, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Trains and scores one model. error: see the module's docstring; ns: a step; bytes: of a state; s: of training."""
    frame.write_csv(folder / "data.csv")
    labelled = "label" in frame.columns
    config = {
        "name": "cells",
        "task": "classify" if labelled else "forecast",
        "data": {"path": "data.csv", "key": "key", "timestamp": "time"},
        "features": {"numbers": ["value"]},
        **({"target": {"field": "label"}} if labelled else {}),
        "split": {"validation": TEST, "test": TEST},
        "model": {"cell": cell, "hidden": options.hidden},
        "training": {"epochs": options.epochs, "patience": options.epochs, "seed": seed},
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    out = folder / "model.onnx"
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert train(folder / "train.yaml", out=out) == 0
        spent = time.perf_counter() - started
        scores = folder / "scores.jsonl"
        assert score_file(str(out), str(folder / "data.csv"), out=str(scores), key="key", timestamp="time",
                          dead_letters=None) == 0  # fmt: skip
    predictions = [orjson.loads(line) for line in scores.read_bytes().splitlines()]
    step = OnnxStep(load_model(out), device="cpu")
    return {
        "error": test_error(frame, predictions, labelled=labelled),
        "ns": step_ns(step),
        "bytes": 4 * step.card.state.size,
        "s": spent,
    }


def test_error(frame: pl.DataFrame, predictions: list[dict[str, Any]], *, labelled: bool) -> float:
    """The error on the last events of all keys; predictions are in the order of the rows."""
    keys = frame["key"].n_unique()
    test = slice(int((1 - TEST) * len(frame) / keys), None)
    if labelled:
        said = np.array([one["score"] for one in predictions]).reshape(-1, keys) >= 0.5
        return float((said != frame["label"].to_numpy().reshape(-1, keys))[test].mean())
    said = np.array([np.ravel(one["prediction"])[0] for one in predictions]).reshape(-1, keys)
    true = frame["value"].to_numpy().reshape(-1, keys)
    ours, last = (np.abs(one[:-1] - true[1:])[test].mean() for one in (said, true))
    return float(ours / last)


def step_ns(step: OnnxStep) -> float:
    """Nanoseconds for one of BATCH keys."""
    given = probe(step.card, rows=BATCH)
    given = given._replace(state=step.step(given).state)
    times = []
    for _ in range(CALLS):
        started = time.perf_counter_ns()
        step.step(given)
        times.append(time.perf_counter_ns() - started)
    return min(times) / BATCH


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=SERIES, default=list(SERIES))
    options = parser.parse_args()
    print(f"| cell | {' | '.join(options.only)} | ns a step | bytes a key | training, s |")
    print(f"|{' --- |' * (len(options.only) + 4)}")
    for cell, title in CELL_TITLES.items():
        results = []
        for name in options.only:
            frame = SERIES[name](options.data)
            for seed in range(options.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    results.append((name, measure(Path(folder), frame, cell, options, seed)))
        errors = [np.median([one["error"] for at, one in results if at == name]) for name in options.only]
        state, spent = (np.median([one[what] for _, one in results]) for what in ("bytes", "s"))
        ns = min(one["ns"] for _, one in results)
        print(
            f"| {title} | {' | '.join(f'{e:.3f}' for e in errors)} | {ns:.0f} | {state:.0f} | {spent:.1f} |", flush=True
        )


if __name__ == "__main__":
    main()
