"""Speed and memory of `lstmstream train` on this machine.

    python -m benchmarks.training [--events 1200000] [--large 0] [--epochs 3] [--json FILE]

Two classes, LSTM(64), 5,000 keys, three numbers and one category from Parquet, one thread. `--large N` then trains one
epoch on N events, to show that memory does not grow with the data: above 1 GB of rows they are sorted through files.
Anonymous memory is held by the process; file memory is the system's cache of those files, and can be given back.
There is no pass or fail: absolute figures differ from machine to machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

KEYS = 5000
START_S, SPAN_S = 1_767_225_600, 90 * 86_400  # 2026-01-01, 90 days
CHUNK = 2_000_000
SHOPS = ("grocery", "fuel", "online", "travel", "restaurant")


def write_history(folder: Path, events: int) -> None:
    """Parquet files of 2,000,000 rows in the order of time; labels depend on the amount against the key's usual one."""
    random = np.random.default_rng(0)
    usual = random.normal(3, 1, KEYS)
    for number, first in enumerate(range(0, events, CHUNK)):
        count = min(CHUNK, events - first)
        key = random.integers(0, KEYS, count)
        size = random.normal(0, 1, count)
        time_s = START_S + (first + np.arange(count)) * SPAN_S // events
        frame = pl.DataFrame(
            {
                "key": key,
                "time": time_s,
                "amount": np.exp(usual[key] + size).astype(np.float32),
                "distance": np.abs(random.normal(0, 10, count)).astype(np.float32),
                "pace": random.normal(0, 1, count).astype(np.float32),
                "shop": np.array(SHOPS)[random.integers(0, len(SHOPS), count)],
                "label": (random.random(count) < 0.01 + 0.3 * (size > 2)).astype(np.int8),
            }
        )
        frame.write_parquet(folder / f"history-{number:03}.parquet")


def train(folder: Path, epochs: int) -> dict[str, Any]:
    """Runs the command once; returns the seconds of its epochs and in all, and its peak memory in MiB."""
    config = {
        "name": "speed",
        "task": "classify",
        "data": {"path": "history-*.parquet", "key": "key", "timestamp": "time"},
        "features": {
            "numbers": [{"name": "amount", "log": True}, {"name": "distance", "log": True}, "pace"],
            "categories": ["shop"],
            "elapsed": True,
        },
        "target": {"field": "label"},
        "model": {"hidden": 64},
        "training": {"epochs": epochs, "patience": epochs, "batch": 256, "steps": 64},
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    log = folder / "log"
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "lstmstream", "train", str(folder / "train.yaml")],
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
        peak = {"RssAnon": 0, "RssFile": 0}
        first_epoch_s = None
        while process.poll() is None:
            for name, value in re.findall(r"(RssAnon|RssFile):\s+(\d+)", _status(process.pid)):
                peak[name] = max(peak[name], int(value) // 1024)
            if first_epoch_s is None and "parameters, on" in log.read_text(encoding="utf-8"):
                first_epoch_s = time.monotonic() - started
            time.sleep(0.05)
    output = log.read_text(encoding="utf-8")
    if process.returncode:
        raise SystemExit(output)
    seconds = [float(found) for found in re.findall(r"^epoch +\d+ +([\d.]+) s", output, re.MULTILINE)]
    splits = {name: int(count.replace(",", "")) for name, count in re.findall(r"  (\w+) +([\d,]+) events", output)}
    return {
        "events": sum(splits.values()),
        "trained_events": splits["train"],
        "prepared_s": first_epoch_s,
        "epoch_s": seconds,
        "trained_events_per_s": round(splits["train"] / min(seconds)),
        "whole_s": time.monotonic() - started,
        "peak_anonymous_mib": peak["RssAnon"],
        "peak_file_mib": peak["RssFile"],
    }


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:  # the process has just ended
        return ""


def main() -> None:
    """Runs one or both trainings and prints their figures as JSON."""
    parser = argparse.ArgumentParser(description="Speed and memory of training.")
    parser.add_argument("--events", type=int, default=1_200_000)
    parser.add_argument("--large", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {"machine": {"python": platform.python_version(), "processor": platform.machine()}}
    for name, events, epochs in (("training", options.events, options.epochs), ("large", options.large, 1)):
        if events:
            with tempfile.TemporaryDirectory(prefix="lstmstream-") as folder:
                write_history(Path(folder), events)
                results[name] = train(Path(folder), epochs)
            print(name, json.dumps(results[name]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
